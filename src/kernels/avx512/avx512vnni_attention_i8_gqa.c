/* GQA over INT8 KV rows by integer dot products: a segment of keys for the rows (query, head) that
 * share a KV head, in blocks of eight.
 *
 *   I[row][key] = sum over dims of q8 * k8            vpdpbusd: 4 dims; K unsigned (+128), q signed
 *   t  = c * q_scale * k_scale * I + e                v_scale = 2^e * m
 *   P  = exp2(t + n)                                  n = -round(max t): the power-of-two lattice
 *   l += P * 2^-e                                     so that P's scale is V's, not the softmax's
 *   W  = round(P * m * 45000)                         16 bits, in two unsigned bytes
 *   O[row][dim] = sum over keys of W * v8             vpdpbusd: 4 keys, V interleaved by four
 *
 * Keys are in lanes for scores (simd_attention_keys.inc tells how they come there), dimensions for
 * values. Sums over dims and keys are exact in 32 bits, l is summed up in 16 lanes and one tree: a
 * row's bits depend on its own keys alone. What is rounded is what
 * avx512vnni_attention_i8.c rounds for MLA. */
#include "kernels/avx512/avx512.h"

#include <math.h>
#include <string.h>

#include "kernels/avx512/vec_avx512.h"
#include "kernels/kv_rows.h"
#include "kernels/simd/simd_macros.h"
#include "kernels/simd/simd_math.inc"

enum {
    KEYS = ST_ATTN_SEGMENT,
    QUADS = KEYS / 4, /* keys are multiplied by four */
    CHUNK = VL,       /* keys whose scores are computed at once */
    ROWS = 8,         /* of a block */
    STRIP = 64,       /* dims of V that are interleaved at once */
    ASK_QUADS = 8     /* in which keys to come are asked for once */
};
_Static_assert((int64_t)KEYS * 65535 * 127 <= INT32_MAX, "weights times values fit 32 bits");
#define W_ONE 45000.0f /* of the weight 1; the largest is below 2^0.51 */

/* What is made of a segment. Scores and weights are those of the running block. */
struct st_gqa_i8_work {
    float scale[KEYS];                   /* of K */
    float exponent[KEYS], inverse[KEYS]; /* e and 2^-e */
    float fine[KEYS], weight[KEYS];      /* log2 m, or so: for the maximum; m * W_ONE */
    float s[ROWS][KEYS];
    uint8_t w[ROWS][2][KEYS]; /* high and low bytes */
    float q_scale[AT_ROWS];   /* times c */
    int32_t q_sum[AT_ROWS];   /* times -128 */
    int8_t bytes[];           /* q [block][dim / 4][ROWS][4], V [strip][QUADS][STRIP][4] */
};

static size_t query_bytes(int dim)
{
    return (size_t)AT_ROWS * (size_t)dim;
}

size_t st_avx512vnni_gqa_i8_bytes(int dim)
{
    return sizeof(struct st_gqa_i8_work) + query_bytes(dim) +
           (size_t)KEYS * (size_t)st_round_up(dim, STRIP) + 64;
}

static int8_t *queries(const st_gqa_i8 *g, int row)
{
    int8_t *q = g->work->bytes;
    return q + (64 - (uintptr_t)q % 64) % 64 + (size_t)row * (size_t)g->dim;
}

/* q / scale in 8 bits, scale = absmax / 127; a row that is not finite has the scale NaN. */
void st_avx512vnni_gqa_i8_query(const st_gqa_i8 *g, int r, const float *q)
{
    vi most = vi_zero();
    for (int i = 0; i < g->dim; i += VL)
        most = vi_absmax(most, vf_load(q + i));
    float scale = st_kv_i8_scale(vi_hmax(most));
    int8_t *to = queries(g, r / ROWS * ROWS) + r % ROWS * 4;
    int32_t sum = 0;
    for (int i = 0; i < g->dim; i += VL) {
        int8_t x[VL];
        vf_store_i8(x, vf_div(vf_load(q + i), vf_set1(scale)));
        for (int j = 0; j < VL; j++)
            sum += x[j];
        for (int j = 0; j < VL; j += 4)
            memcpy(to + (size_t)(i + j) * ROWS, x + j, 4);
    }
    g->work->q_scale[r] = scale * g->c;
    g->work->q_sum[r] = -128 * sum;
}

/* ---- keys ---- */

/* What the products need of the scales of a chunk. A NaN reaches rows by their scores alone: what
 * a row that does not see the key multiplies by zero must be finite. */
static void split_scales(const st_gqa_i8 *g, const char *const *rows, int j)
{
    struct st_gqa_i8_work *w = g->work;
    const vi inf = vi_set1(0x7f800000), one = vi_set1(0x3f800000);
    float k[CHUNK], v[CHUNK];
    for (int i = 0; i < CHUNK; i++) {
        memcpy(&k[i], rows[i] + g->k_scale_at, sizeof k[i]);
        memcpy(&v[i], rows[i] + g->v_scale_at, sizeof v[i]);
    }
    vi bits = vi_of_vf(vf_load(v));
    __mmask16 finite = _mm512_cmpneq_epi32_mask(_mm512_and_si512(bits, inf), inf);
    vf_store(w->scale + j, vf_where(finite, vf_load(k), vf_set1(NAN)));
    bits = _mm512_mask_blend_epi32(finite, one, bits);
    vi e = vi_sub(_mm512_srli_epi32(_mm512_and_si512(bits, inf), 23), vi_set1(127));
    vf m = vf_of_vi(_mm512_or_si512(_mm512_and_si512(bits, vi_set1(0x7fffff)), one));
    vf above = vf_sub(m, vf_set1(1));
    vf_store(w->exponent + j, vi_to_float(e));
    vf_store(w->inverse + j, vf_of_vi(vi_shift_left(vi_sub(vi_set1(127), e), 23)));
    /* log2 m within 0.009 */
    vf fine = vf_sub(vf_set1(1.3465f), vf_mul(vf_set1(0.3465f), above));
    vf_store(w->fine + j, vf_mul(above, fine));
    vf_store(w->weight + j, vf_mul(m, vf_set1(W_ONE)));
}

/* ---- scores ---- */

typedef int32_t __attribute__((may_alias, aligned(1))) four_bytes;

/* By hand, as in avx512vnni_packed.c. */
ST_INLINE vi dot_query(vi acc, vi k, const int8_t *q)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0"
            : "+v"(acc)
            : "v"(k), "m"(*(const four_bytes *)(const void *)q));
    return acc;
}
ST_INLINE vi dot_bytes(vi acc, vi u, vi s)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
    return acc;
}

/* t of n rows for the keys from j on. */
ST_INLINE void score_chunk(int n, const st_gqa_i8 *g, const char *const *rows, int first_row, int j)
{
    struct st_gqa_i8_work *w = g->work;
    const int8_t *q = queries(g, first_row);
    const vi flip = vi_set1((int32_t)0x80808080u);
    vi acc[ROWS];
    ST_UNROLL
    for (int r = 0; r < n; r++)
        acc[r] = vi_set1(w->q_sum[first_row + r]);
    for (int d = 0; d < g->dim; d += 16, q += 16 * ROWS) {
        /* Else the compiler keeps 16 pointers, more than there are registers. */
        __asm__("" : "+r"(rows));
        vi k[4];
        vi_load_words_in_order(rows, g->k_at + (size_t)d, k);
        ST_UNROLL
        for (int i = 0; i < 4; i++) {
            vi u = _mm512_xor_si512(k[i], flip);
            ST_UNROLL
            for (int r = 0; r < n; r++)
                acc[r] = dot_query(acc[r], u, q + (i * ROWS + r) * 4);
        }
    }
    vf scale = vf_load(w->scale + j), e = vf_load(w->exponent + j);
    ST_UNROLL
    for (int r = 0; r < n; r++)
        vf_store(w->s[r] + j,
                 vf_fma(vf_mul(vi_to_float(acc[r]), scale), vf_set1(w->q_scale[first_row + r]), e));
}

/* ---- weights ---- */

/* Lanes of the chunk at j that a row sees which sees `valid` keys. */
static uint32_t seen_lanes(int valid, int j)
{
    int n = valid - j;
    return n >= VL ? 0xffff : n <= 0 ? 0 : (1u << n) - 1;
}

/* Scores of a row to weights; returns their sum. */
static float weigh_row(struct st_gqa_i8_work *w, int r, int valid, int most, float *n_out)
{
    vf low = vf_set1(-INFINITY), max = low, sum = vf_zero();
    for (int j = 0; j < valid; j += VL) {
        vf t = vf_add(vf_load(w->s[r] + j), vf_load(w->fine + j));
        max = vf_max(max, vf_where(seen_lanes(valid, j), t, low));
    }
    float n = -rintf(vf_hmax(max));
    for (int j = 0; j < most; j += VL) {
        vf p = vf_exp2(vf_add(vf_load(w->s[r] + j), vf_set1(n)));
        p = vf_where(seen_lanes(valid, j), p, vf_zero());
        sum = vf_fma(p, vf_load(w->inverse + j), sum);
        vi x = _mm512_cvtps_epi32(vf_mul(p, vf_load(w->weight + j)));
        _mm_storeu_si128((void *)(w->w[r][0] + j), _mm512_cvtepi32_epi8(_mm512_srli_epi32(x, 8)));
        _mm_storeu_si128((void *)(w->w[r][1] + j), _mm512_cvtepi32_epi8(x));
    }
    *n_out = n;
    return vf_sum(sum);
}

/* ---- values ---- */

/* 64 dims of four keys: byte i of a lane is key i. Lane 4q + i of v[u] is dim 16q + 4u + i. */
ST_INLINE void interleave(const char *const *rows, size_t at, __mmask64 dims, vi v[4])
{
    vi x0 = _mm512_maskz_loadu_epi8(dims, rows[0] + at);
    vi x1 = _mm512_maskz_loadu_epi8(dims, rows[1] + at);
    vi x2 = _mm512_maskz_loadu_epi8(dims, rows[2] + at);
    vi x3 = _mm512_maskz_loadu_epi8(dims, rows[3] + at);
    vi a = _mm512_unpacklo_epi8(x0, x1), b = _mm512_unpackhi_epi8(x0, x1);
    vi c = _mm512_unpacklo_epi8(x2, x3), d = _mm512_unpackhi_epi8(x2, x3);
    v[0] = _mm512_unpacklo_epi16(a, c);
    v[1] = _mm512_unpackhi_epi16(a, c);
    v[2] = _mm512_unpacklo_epi16(b, d);
    v[3] = _mm512_unpackhi_epi16(b, d);
}

/* Rows to come, a key at a time. */
typedef struct gqa_ask {
    const char *const *rows;
    int left, each; /* keys in all; at once */
} gqa_ask;

ST_INLINE void ask_keys(const st_gqa_i8 *g, gqa_ask *a)
{
    for (int n = a->each; n > 0 && a->left > 0; n--, a->left--) {
        const char *row = *a->rows++;
        for (int i = 0; i < g->dim; i += 64) {
            __builtin_prefetch(row + g->k_at + i, 0, 2);
            __builtin_prefetch(row + g->v_at + i, 0, 2);
        }
        __builtin_prefetch(row + g->k_scale_at, 0, 2);
        __builtin_prefetch(row + g->v_scale_at, 0, 2);
    }
}

/* One byte of the weights of n rows from r on, for a strip: acc += w * v. rows: V is made there and
 * then, and left in v. */
ST_INLINE void value_pass(int n, const st_gqa_i8 *g, vi acc[4][4], int r, int plane, int8_t *v,
                          const char *const *rows, size_t at, __mmask64 dims, int quads,
                          gqa_ask *ask)
{
    const uint8_t *w = g->work->w[r][plane];
    for (int j = 0; j < quads; j++, v += 4 * STRIP, w += 4) {
        vi x[4];
        if (rows) {
            interleave(rows + j * 4, at, dims, x);
            ST_UNROLL
            for (int u = 0; u < 4; u++)
                vi_store(v + u * STRIP, x[u]);
        } else {
            ST_UNROLL
            for (int u = 0; u < 4; u++)
                x[u] = _mm512_load_si512(v + u * STRIP);
        }
        if (j % ASK_QUADS == 0)
            ask_keys(g, ask);
        ST_UNROLL
        for (int i = 0; i < n; i++) {
            int32_t four;
            memcpy(&four, w + i * 2 * KEYS, sizeof four);
            vi wv = vi_set1(four);
            ST_UNROLL
            for (int u = 0; u < 4; u++)
                acc[i][u] = dot_bytes(acc[i][u], wv, x[u]);
        }
    }
}

/* O of n rows for a strip. */
ST_INLINE void value_rows(int n, const st_gqa_i8 *g, float *o, int r, int8_t *v,
                          const char *const *rows, size_t at, __mmask64 dims, int quads,
                          gqa_ask *ask)
{
    vi acc[4][4];
    ST_UNROLL
    for (int i = 0; i < n; i++)
        ST_UNROLL
    for (int u = 0; u < 4; u++)
        acc[i][u] = vi_zero();
    if (rows)
        value_pass(n, g, acc, r, 0, v, rows, at, dims, quads, ask);
    else
        value_pass(n, g, acc, r, 0, v, NULL, at, dims, quads, ask);
    ST_UNROLL
    for (int i = 0; i < n; i++)
        ST_UNROLL
    for (int u = 0; u < 4; u++)
        acc[i][u] = vi_shift_left(acc[i][u], 8);
    value_pass(n, g, acc, r, 1, v, NULL, at, dims, quads, ask);
    ST_UNROLL
    for (int i = 0; i < n; i++)
        ST_UNROLL
    for (int u = 0; u < 4; u++)
        vf_store(o + (size_t)i * g->o_ld + u * VL,
                 vf_mul(vi_to_float(acc[i][u]), vf_set1(1 / W_ONE)));
}

typedef void score_fn(const st_gqa_i8 *g, const char *const *rows, int first_row, int j);
typedef void value_fn(const st_gqa_i8 *g, float *o, int r, int8_t *v, const char *const *rows,
                      size_t at, __mmask64 dims, int quads, gqa_ask *ask);
#define SCORES(n)                                                                                  \
    static void scores_##n(const st_gqa_i8 *g, const char *const *rows, int first_row, int j)      \
    {                                                                                              \
        score_chunk(n, g, rows, first_row, j);                                                     \
    }
#define VALUES(n)                                                                                  \
    static void values_##n(const st_gqa_i8 *g, float *o, int r, int8_t *v,                         \
                           const char *const *rows, size_t at, __mmask64 dims, int quads,          \
                           gqa_ask *ask)                                                           \
    {                                                                                              \
        value_rows(n, g, o, r, v, rows, at, dims, quads, ask);                                     \
    }
SCORES(1)
SCORES(2)
SCORES(3)
SCORES(4)
SCORES(5)
SCORES(6)
SCORES(7)
SCORES(8)
VALUES(1)
VALUES(2)
VALUES(3)
VALUES(4)
static score_fn *const score_fns[ROWS] = {scores_1, scores_2, scores_3, scores_4,
                                          scores_5, scores_6, scores_7, scores_8};
static value_fn *const value_fns[4] = {values_1, values_2, values_3, values_4};

/* O of a block of n rows. The first block makes V. */
static void values(const st_gqa_i8 *g, const char *const *rows, int first_row, int n, int most,
                   gqa_ask *ask)
{
    int8_t *v = queries(g, AT_ROWS);
    int quads = (most + 3) / 4, step = n > 4 ? (n + 1) / 2 : n;
    for (int d = 0; d < g->dim; d += STRIP, v += QUADS * 4 * STRIP) {
        __mmask64 dims = g->dim - d >= STRIP ? ~(__mmask64)0 : ((__mmask64)1 << (g->dim - d)) - 1;
        for (int r = 0; r < n; r += step) {
            int count = n - r < step ? n - r : step;
            float *o = g->o + (size_t)(first_row + r) * g->o_ld + d;
            value_fns[count - 1](g, o, r, v, first_row + r == 0 ? rows : NULL, g->v_at + (size_t)d,
                                 dims, quads, ask);
        }
    }
}

void st_avx512vnni_gqa_i8_segment(const st_gqa_i8 *g, const char *const *rows, int most, int n_far,
                                  const int *valid)
{
    int passes = (g->n_rows + 3) / 4 * 2 * ((g->dim + STRIP - 1) / STRIP);
    gqa_ask ask = {rows + KEYS, n_far, (ASK_QUADS * 4 + passes - 1) / passes};
    for (int j = 0; j < most; j += CHUNK)
        split_scales(g, rows + j, j);
    for (int first = 0; first < g->n_rows; first += ROWS) {
        int n = g->n_rows - first < ROWS ? g->n_rows - first : ROWS;
        for (int j = 0; j < most; j += CHUNK)
            score_fns[n - 1](g, rows + j, first, j);
        for (int r = 0; r < n; r++)
            g->l[first + r] = weigh_row(g->work, r, valid[first + r], most, &g->n[first + r]);
        values(g, rows, first, n, most, &ask);
    }
}

/* Dimensions to their order. */
void st_avx512vnni_gqa_i8_plain(float *o, int dims)
{
    for (int d = 0; d < dims; d += STRIP, o += STRIP) {
        float x[STRIP];
        memcpy(x, o, sizeof x);
        for (int i = 0; i < STRIP; i += 4)
            memcpy(o + i % 16 * 4 + i / 16 * 4, x + i, 4 * sizeof *x);
    }
}
