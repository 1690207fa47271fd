/* Products of float rows with packed int8 and int4 weights, in integers: a row becomes fixed point
 * of 16 bits, whose two bytes are two rows of an exact integer product. That takes two vpdpbusd
 * where floats take four multiply-adds and the widening of the weights besides. */
#include <math.h>
#include <string.h>

#include "kernels/avx512/avx512.h"
#include "kernels/avx512/vec_avx512.h"
#include "kernels/simd/simd_macros.h"

enum {
    PLANES = 2,
    ROWS = 18, /* of x at once */
    STRIDE = ((ST_MAX_FLOAT_K + ST_ACT_STEP - 1) / ST_ACT_STEP | 1) * ST_ACT_STEP,
    SUMS = ST_MAX_FLOAT_K / ST_ACT_SUM,
    TOP = 127 << 8, /* the largest value: its lower byte may round up */
    AHEAD = 8192    /* bytes between what is read and what is asked for, at least */
};

/* Rows whose largest element is below become zeros: their step would leave the normal numbers. */
#define LEAST 0x1p-100f

/* Rows 2 i and 2 i + 1 of q: the bytes of row i, lowest first, signed. */
typedef struct plane_rows {
    size_t ldq, lds;
    _Alignas(64) int8_t q[ROWS * PLANES * STRIDE];
    int32_t sum[ROWS * PLANES * SUMS]; /* of a group's bytes; I8: one group */
    float scale[ROWS];
} plane_rows;

/* As integers, so that NaN counts as the largest. */
static float largest(const float *x, int k)
{
    const vi magnitude = _mm512_set1_epi32(0x7fffffff);
    vi most = _mm512_setzero_si512();
    for (int at = 0; at < k; at += VL) {
        vi v = _mm512_maskz_loadu_epi32(vf_mask(k - at < VL ? k - at : VL), x + at);
        most = _mm512_max_epu32(most, _mm512_and_si512(v, magnitude));
    }
    uint32_t u = _mm512_reduce_max_epu32(most);
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* The sum of n bytes. */
static int32_t sum_of(const int8_t *q, int n)
{
    const vi ones = _mm512_set1_epi8(1);
    vi sum = _mm512_setzero_si512();
    for (; n > 0; n -= ST_ACT_STEP, q += ST_ACT_STEP) {
        __mmask64 lanes = n < ST_ACT_STEP ? ((__mmask64)1 << n) - 1 : ~(__mmask64)0;
        sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8(lanes, q));
    }
    return _mm512_reduce_add_epi32(sum);
}

/* Rounded to the nearest of n values of 16 bits, times inverse. */
static vi fixed_point(const float *x, int n, float inverse)
{
    n = n < 0 ? 0 : n < VL ? n : VL;
    return _mm512_cvtps_epi32(vf_mul(vf_load_lanes(x, vf_mask(n)), vf_set1(inverse)));
}

static void split_row(plane_rows *r, int i, const float *x, const st_packed *w)
{
    const vi half = _mm512_set1_epi16(128);
    const vi order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    int k = w->k, group = w->type == ST_WEIGHT_I4 ? w->group : k;
    int8_t *low = r->q + (size_t)i * PLANES * r->ldq, *high = low + r->ldq;
    int32_t *sum = r->sum + (size_t)i * PLANES * r->lds;
    float most = largest(x, k), inverse = 0;
    r->scale[i] = 0;
    if (!isfinite(most)) {
        r->scale[i] = NAN;
        x = NULL;
    } else if (most >= LEAST) {
        r->scale[i] = most / (float)TOP;
        inverse = (float)TOP / most;
    }
    for (int at = 0; at < k; at += 2 * VL) {
        vi a = _mm512_setzero_si512(), b = a;
        if (x) {
            a = fixed_point(x + at, k - at, inverse);
            b = fixed_point(x + at + VL, k - at - VL, inverse);
        }
        vi v = _mm512_permutexvar_epi64(order, _mm512_packs_epi32(a, b));
        _mm256_storeu_si256((__m256i *)(void *)(low + at), _mm512_cvtepi16_epi8(v));
        v = _mm512_srai_epi16(_mm512_add_epi16(v, half), 8);
        _mm256_storeu_si256((__m256i *)(void *)(high + at), _mm512_cvtepi16_epi8(v));
    }
    for (int g = 0, at = 0; at < k; g++, at += group) {
        int n = k - at < group ? k - at : group;
        sum[g] = sum_of(low + at, n);
        sum[r->lds + (size_t)g] = sum_of(high + at, n);
    }
}

/* One block of columns. What is next in memory is asked for meanwhile, beyond the last column too:
 * who asked for these columns most likely goes on there. */
static void some_columns(const plane_rows *r, int m, st_tile *t, float *y, size_t block_bytes)
{
    const st_tile_set *set = st_avx512vnni_plane_tiles(t->matrix->type);
    int strips = (m + set->rows - 1) / set->rows;
    const unsigned char *ahead = t->w + AHEAD;
    if (strips > 1 && block_bytes > AHEAD)
        ahead = t->w + block_bytes;
    size_t share = (block_bytes / ST_TILE_LINE + (size_t)strips - 1) / (size_t)strips;
    for (int s = 0; s < strips; s++) {
        size_t i = (size_t)(m * s / strips);
        int rows = m * (s + 1) / strips - (int)i;
        t->fetch = ahead;
        /* For a single row the processor's own prefetching does better. */
        t->fetch_end = ahead + (m == 1 ? 0 : share * ST_TILE_LINE);
        ahead = t->fetch_end;
        t->y = y + i * t->ldy;
        t->x = r->q + i * PLANES * r->ldq;
        t->x_scale = r->scale + i;
        t->sum = r->sum + i * PLANES * r->lds;
        set->tile[rows](t);
    }
}

static void some_rows(float *y, size_t ldy, const float *x, size_t ldx, int m, const st_packed *w,
                      int n0, int n1)
{
    plane_rows r;
    st_pack_layout layout = st_avx512vnni_pack_layout(w);
    r.ldq = st_act_ldq(w->k);
    r.lds = w->type == ST_WEIGHT_I4 ? (size_t)st_weight_groups(w->k, w->group) : 1;
    for (int i = 0; i < m; i++)
        split_row(&r, i, x + (size_t)i * ldx, w);
    st_tile t = {.ldy = ldy, .ldx = r.ldq, .lds = r.lds, .matrix = w, .k1 = w->k};
    for (int j = n0; j < n1; j += ST_AVX512_PACK_COLS) {
        t.cols = n1 - j < ST_AVX512_PACK_COLS ? n1 - j : ST_AVX512_PACK_COLS;
        t.w =
            (const unsigned char *)w->data + (size_t)(j / ST_AVX512_PACK_COLS) * layout.block_bytes;
        t.scale = t.w + layout.scale_offset;
        some_columns(&r, m, &t, y + j, layout.block_bytes);
    }
}

void st_avx512vnni_matmul_float(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0,
                                int n1)
{
    if (!st_weight_takes_int8(w->type)) {
        st_avx512_matmul(y, ldy, a, w, n0, n1);
        return;
    }
    int chunks = (a->m + ROWS - 1) / ROWS;
    for (int c = 0; c < chunks; c++) {
        int i = (int)((int64_t)a->m * c / chunks), end = (int)((int64_t)a->m * (c + 1) / chunks);
        some_rows(y + (size_t)i * ldy, ldy, a->x + (size_t)i * a->ld, a->ld, end - i, w, n0, n1);
    }
}
