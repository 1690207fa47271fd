/* Products of float rows with packed int8 and int4 weights, in integers: a row becomes fixed point
 * of 24 bits, whose three bytes are three rows of an exact integer product. That takes three
 * vpdpbusd where floats take four multiply-adds and the widening of the weights besides. */
#include <math.h>
#include <string.h>

#include "kernels/avx512/avx512.h"
#include "kernels/avx512/vec_avx512.h"
#include "kernels/simd/simd_macros.h"

enum {
    PLANES = 3,
    ROWS = 4,      /* of x at once: they fill a tile's rows */
    COLUMNS = 512, /* of y at once */
    STRIDE = ((ST_MAX_FLOAT_K + ST_ACT_STEP - 1) / ST_ACT_STEP | 1) * ST_ACT_STEP,
    SUMS = ST_MAX_FLOAT_K / ST_ACT_SUM + 1,
    TOP = 127 << 16 /* the largest value: its lower bytes may round up */
};

/* Rows whose largest element is below become zeros: their step would leave the normal numbers. */
#define LEAST 0x1p-100f

typedef struct plane_rows {
    _Alignas(64) int8_t q[ROWS * PLANES * STRIDE];
    int32_t sum[ROWS * PLANES * SUMS];
    float scale[ROWS * PLANES];
    _Alignas(64) float y[ROWS * PLANES * COLUMNS];
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

/* Sums of q's first 0, 32, 64 ... inputs, then of all. */
static void sum_plane(int32_t *sum, const int8_t *q, int k)
{
    const vi ones = _mm512_set1_epi8(1);
    int n = (int)st_act_sums(k);
    int32_t all = sum[0] = 0;
    for (int i = 1; i < n; i += 2, q += ST_ACT_STEP) {
        vi part = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, _mm512_loadu_si512(q));
        sum[i] = all += _mm512_mask_reduce_add_epi32(0x00ff, part);
        if (i + 1 < n)
            sum[i + 1] = all += _mm512_mask_reduce_add_epi32(0xff00, part);
    }
}

/* q[p * ldq]: the bytes of one row, lowest first, signed. */
static void split_row(int8_t *q, size_t ldq, float *scale, int32_t *sum, const float *x, int k)
{
    const vi half = _mm512_set1_epi32(128);
    int padded = (k + ST_ACT_STEP - 1) / ST_ACT_STEP * ST_ACT_STEP;
    float most = largest(x, k), inverse = 0, step = 0;
    if (!isfinite(most))
        step = NAN;
    else if (most >= LEAST) {
        step = most / (float)TOP;
        inverse = (float)TOP / most;
    }
    for (int at = 0; at < padded; at += VL) {
        int left = k - at;
        vi v = _mm512_setzero_si512();
        if (left > 0 && inverse > 0) {
            vf values = vf_load_lanes(x + at, vf_mask(left < VL ? left : VL));
            v = _mm512_cvtps_epi32(vf_mul(values, vf_set1(inverse)));
        }
        for (int p = 0; p < PLANES; p++) {
            _mm_storeu_si128((__m128i *)(void *)(q + (size_t)p * ldq + at),
                             _mm512_cvtepi32_epi8(v));
            v = _mm512_srai_epi32(_mm512_add_epi32(v, half), 8);
        }
    }
    for (int p = 0; p < PLANES; p++) {
        scale[p] = step * (float)(1 << (8 * p));
        sum_plane(sum + (size_t)p * st_act_sums(k), q + (size_t)p * ldq, k);
    }
}

/* Columns [0, n) of m rows: what three rows of t mean. */
static void join(float *y, size_t ldy, const float *t, int m, int n)
{
    for (int i = 0; i < m; i++, y += ldy, t += (size_t)PLANES * COLUMNS)
        for (int j = 0; j < n; j += VL) {
            vmask lanes = vf_mask(n - j < VL ? n - j : VL);
            vf low = vf_load_lanes(t + j, lanes), mid = vf_load_lanes(t + COLUMNS + j, lanes);
            vf high = vf_load_lanes(t + (size_t)2 * COLUMNS + j, lanes);
            vf_store_lanes(y + j, vf_add(vf_add(low, mid), high), lanes);
        }
}

static void some_rows(float *y, size_t ldy, const float *x, size_t ldx, int m, const st_packed *w,
                      int n0, int n1)
{
    plane_rows r;
    size_t ldq = st_act_ldq(w->k), block = st_avx512vnni_pack_block_bytes(w);
    for (int i = 0; i < m; i++) {
        size_t at = (size_t)i * PLANES;
        split_row(r.q + at * ldq, ldq, r.scale + at, r.sum + at * st_act_sums(w->k),
                  x + (size_t)i * ldx, w->k);
    }
    const st_act a = {
        .q = r.q, .ldq = ldq, .scale = r.scale, .sum = r.sum, .m = m * PLANES, .k = w->k};
    for (int j = n0; j < n1; j += COLUMNS) {
        st_packed part = *w;
        part.n = n1 - j < COLUMNS ? n1 - j : COLUMNS;
        part.data = (const unsigned char *)w->data + (size_t)(j / ST_AVX512_PACK_COLS) * block;
        st_avx512vnni_matmul(r.y, COLUMNS, &a, &part, 0, part.n);
        join(y + j, ldy, r.y, m, part.n);
    }
}

void st_avx512vnni_matmul_float(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0,
                                int n1)
{
    if (!st_weight_takes_int8(w->type)) {
        st_avx512_matmul(y, ldy, a, w, n0, n1);
        return;
    }
    for (int i = 0; i < a->m; i += ROWS)
        some_rows(y + (size_t)i * ldy, ldy, a->x + (size_t)i * a->ld, a->ld,
                  a->m - i < ROWS ? a->m - i : ROWS, w, n0, n1);
}
