/* Absorbed MLA over INT8 KV rows by integer dot products, rows (query, head) in lanes.
 *
 * A segment of 256 keys is prepared once for up to 128 rows, then, for blocks of 32 or 16 rows:
 *
 *   I[key][row] = sum over the latent of q8 * k8      vpdpbusd: 4 dims; q unsigned (+128), K signed
 *   R[key][row] = sum over the rotated part           vpdpwssd: 2 dims of 16 bits each
 *   t  = c*(q_scale*k_scale*I + q_scale'*k_scale'*R) + e    e: exponent of k_scale = 2^e * m
 *   P  = exp2(t + n)                                  n = -round(max t): the power-of-two lattice
 *   l += P * 2^-e                                     so that P's scale is V's, not the softmax's
 *   W  = round(P * m * 45000)                         16 bits: the latent is V too, its scale in W
 *   O[dim][row] = sum over keys of W * v8             vpdpbusd: 4 keys; W in two unsigned bytes
 *
 * All sums over dims and keys are exact in 32 bits, so their order is free; a segment starts afresh
 * and is merged with those before it as simd_attention.inc does it. What is rounded: q to 8 bits
 * per row, the rotated parts to 13 bits, W to 16 bits of the segment's largest. */
#include "kernels/avx512/avx512.h"

#include <math.h>
#include <string.h>

#include "kernels/avx512/vec_avx512.h"
#include "kernels/kv_rows.h"
#include "kernels/simd/simd_macros.h"
#include "kernels/simd/simd_math.inc"

enum {
    I8_ROWS = 128,          /* that share a prepared segment */
    KEYS = ST_ATTN_SEGMENT, /* of a segment */
    QUADS = KEYS / 4,       /* keys are multiplied by four */
    STRIP = 8,              /* dims of V that lie together */
    /* From one strip to the next; a cache line more than its size, so that strips share no set. */
    STRIP_LD = QUADS * STRIP + 16,
    Q_ROPE_MAX = 8191, /* of the quantized rotated query */
    ROPE_MAX = 128,    /* dims of the rotated part */
    MIN_HEADS = 16
};
_Static_assert((int64_t)KEYS * 65535 * 127 <= INT32_MAX, "weights times values fit 32 bits");
#define W_ONE 45000.0f /* of the weight 1; the largest is below 2^0.51 */

/* What a segment's keys become. */
typedef struct i8_keys {
    int8_t *k;         /* [KEYS][k_ld] */
    int32_t *v;        /* [v strips, STRIP_LD apart][QUADS][STRIP]: 4 keys of a dim each */
    int16_t *rope;     /* [KEYS][rope_ld] */
    int32_t sum[KEYS]; /* of k, times -128 */
    float scale[KEYS], rope_scale[KEYS];
    float exponent[KEYS], inverse[KEYS]; /* e and 2^-e */
    float fine[KEYS];                    /* m, or so: log2 for the maximum */
    float weight[KEYS];                  /* m * W_ONE */
} i8_keys;

/* 32 or 16 rows. */
typedef struct i8_block {
    int first, lanes;
    int common;                      /* keys of the segment that all rows see */
    uint8_t *q;                      /* [lora / 4][lanes][4] */
    int16_t *q_rope;                 /* [rope / 2][lanes][2] */
    float *total;                    /* [v_pad][lanes] */
    float scale[32], rope_scale[32]; /* of q, times c */
    float n[32], l[32];              /* of the running segment */
    float n_total[32], l_total[32];  /* of total */
    float a[32], b[32];              /* total = total * a + o * b */
    int pos[32];
    uint32_t seen[KEYS]; /* from key `common` on: a bit per row that sees it */
} i8_block;

typedef struct i8_group {
    const st_attn_shape *shape;
    const st_kv_layer *kv;
    const st_attn_seq *seq;
    st_kv_row_shape row;
    int lora, rope;   /* dims, */
    int lora4, rope2; /* rounded up to what a dot product takes */
    int v_pad, k_rope_max;
    size_t k_ld, rope_ld;
    int n_rows, n_blocks;
    i8_keys *keys;
    uint8_t *q;
    int16_t *q_rope;
    float *s;   /* [KEYS][lanes] of the running block */
    uint8_t *w; /* [2: high, low][QUADS][lanes][4] */
    float *total;
    const float *q_rows[I8_ROWS];
    i8_block blocks[I8_ROWS / VL];
} i8_group;

bool st_avx512vnni_attention_i8_takes(const st_attn_shape *shape)
{
    return shape->n_heads >= MIN_HEADS && shape->k_dim - shape->v_dim <= ROPE_MAX;
}

static size_t up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* Cuts n bytes off the scratch; with NULL it only counts. */
static void *cut(unsigned char **at, size_t *used, size_t n)
{
    void *p = *at ? *at + *used : NULL;
    *used += up(n, 64);
    return p;
}

static size_t layout(i8_group *g, const st_attn_shape *shape, void *scratch)
{
    unsigned char *at = scratch;
    size_t used = 0;
    g->lora = shape->v_dim;
    g->rope = shape->k_dim - shape->v_dim;
    g->lora4 = st_round_up(g->lora, 4);
    g->rope2 = st_round_up(g->rope, 2);
    g->v_pad = st_round_up(g->lora, 64);
    g->k_ld = up((size_t)g->lora, 64) + 64; /* rows never share a set of the cache */
    g->rope_ld = up((size_t)g->rope, 32) + 32;
    i8_keys *keys = cut(&at, &used, sizeof *keys);
    void *k = cut(&at, &used, KEYS * g->k_ld);
    void *v = cut(&at, &used, (size_t)(g->v_pad / STRIP) * STRIP_LD * 4);
    void *rope = cut(&at, &used, KEYS * g->rope_ld * sizeof(int16_t));
    if (keys) {
        keys->k = k;
        keys->v = v;
        keys->rope = rope;
    }
    g->keys = keys;
    g->q = cut(&at, &used, (size_t)I8_ROWS * up((size_t)g->lora4, 64));
    g->q_rope = cut(&at, &used, (size_t)I8_ROWS * up((size_t)g->rope2, 32) * sizeof(int16_t));
    g->s = cut(&at, &used, KEYS * 32 * sizeof(float));
    g->w = cut(&at, &used, KEYS * 32 * 2);
    g->total = cut(&at, &used, (size_t)I8_ROWS * (size_t)g->v_pad * sizeof(float));
    return used;
}

size_t st_avx512vnni_attention_i8_scratch(const st_attn_shape *shape)
{
    i8_group g;
    return layout(&g, shape, NULL);
}

/* ---- quantizing the queries ---- */

static uint32_t absmax_bits(const float *x, int n)
{
    vi most = vi_zero();
    for (int i = 0; i < n; i += VL)
        most = vi_absmax(most, vf_load_n(x + i, n - i < VL ? n - i : VL));
    return vi_hmax(most);
}

/* The scale by which values of this magnitude become integers up to max; never zero. */
static float scale_of(uint32_t bits, int max)
{
    float scale = st_float_of_bits(bits) / (float)max;
    return bits >= 0x7f800000u ? NAN : scale < 0x1p-100f ? 0x1p-100f : scale;
}

/* x / scale in integers up to max; zeros from n to padded (a multiple of VL). */
static void to_i16(int16_t *y, const float *x, int n, int padded, float scale, int max)
{
    vi most = _mm512_set1_epi32(max), least = _mm512_set1_epi32(-max);
    for (int i = 0; i < padded; i += VL) {
        int count = n - i < 0 ? 0 : n - i < VL ? n - i : VL;
        vf v = vf_div(vf_load_n(x + i, count), vf_set1(scale));
        vi r = _mm512_cvtps_epi32(v); /* NaN: clamped, and its scale says NaN */
        r = _mm512_max_epi32(_mm512_min_epi32(r, most), least);
        _mm256_storeu_si256((__m256i *)(void *)(y + i), _mm512_cvtepi32_epi16(r));
    }
}

/* 16 rows of units of four bytes, ld units apart, to [unit][lanes]. */
static void units_to_lanes(uint32_t *to, int lanes, const uint32_t *from, size_t ld, int units)
{
    for (int u = 0; u < units; u += VL) {
        vf t[VL];
        for (int i = 0; i < VL; i++)
            t[i] = vf_load(from + (size_t)i * ld + u);
        vf_transpose(t);
        for (int i = 0; i < VL && u + i < units; i++)
            vf_store((float *)(void *)(to + (size_t)(u + i) * (size_t)lanes), t[i]);
    }
}

enum { Q_DIMS = 64 }; /* dims whose quads go to lanes at once: 16 units */

/* The latent part of 16 rows, Q_DIMS dims at a time. */
static void pack_latent(const i8_group *g, i8_block *b, int lane)
{
    float scale[VL];
    for (int i = 0; i < VL; i++) {
        int row = b->first + lane + i;
        scale[i] = scale_of(row < g->n_rows ? absmax_bits(g->q_rows[row], g->lora) : 0, 127);
        b->scale[lane + i] = scale[i] * (float)(g->shape->scale * 1.4426950408889634);
    }
    for (int d = 0; d < g->lora4; d += Q_DIMS) {
        int units = g->lora4 - d < Q_DIMS ? (g->lora4 - d) / 4 : Q_DIMS / 4;
        uint8_t rows[VL][Q_DIMS];
        for (int i = 0; i < VL; i++) {
            int row = b->first + lane + i, n = g->lora - d < Q_DIMS ? g->lora - d : Q_DIMS;
            int16_t q[Q_DIMS];
            to_i16(q, g->q_rows[row < g->n_rows ? row : 0] + d, row < g->n_rows ? n : 0, Q_DIMS,
                   scale[i], 127);
            for (int j = 0; j < Q_DIMS; j++)
                rows[i][j] = (uint8_t)(q[j] + 128);
        }
        units_to_lanes((uint32_t *)(void *)(b->q + (size_t)d * (size_t)b->lanes) + lane, b->lanes,
                       (const uint32_t *)(const void *)rows, Q_DIMS / 4, units);
    }
}

/* The rotated part of 16 rows. */
static void pack_rope(const i8_group *g, i8_block *b, int lane)
{
    int16_t rows[VL][ROPE_MAX];
    for (int i = 0; i < VL; i++) {
        int row = b->first + lane + i;
        int n = row < g->n_rows ? g->rope : 0;
        const float *q = g->q_rows[n ? row : 0] + g->lora;
        float scale = scale_of(absmax_bits(q, n), Q_ROPE_MAX);
        b->rope_scale[lane + i] = scale * (float)(g->shape->scale * 1.4426950408889634);
        to_i16(rows[i], q, n, ROPE_MAX, scale, Q_ROPE_MAX);
    }
    units_to_lanes((uint32_t *)(void *)b->q_rope + lane, b->lanes,
                   (const uint32_t *)(const void *)rows, ROPE_MAX / 2, g->rope2 / 2);
}

/* Cuts the group's rows into blocks and packs them. */
static void pack_queries(i8_group *g)
{
    g->n_blocks = 0;
    for (int first = 0; first < g->n_rows;) {
        i8_block *b = &g->blocks[g->n_blocks++];
        b->first = first;
        b->lanes = g->n_rows - first > VL ? 2 * VL : VL;
        b->q = g->q + (size_t)first * up((size_t)g->lora4, 64);
        b->q_rope = g->q_rope + (size_t)first * up((size_t)g->rope2, 32);
        b->total = g->total + (size_t)first * (size_t)g->v_pad;
        for (int lane = 0; lane < b->lanes; lane += VL) {
            pack_latent(g, b, lane);
            pack_rope(g, b, lane);
        }
        first += b->lanes;
    }
}

/* ---- preparing keys ---- */

/* Copies a latent and returns -128 times its sum. */
static int32_t copy_latent(int8_t *to, const unsigned char *from, int n)
{
    __m512i sum = vi_zero(), ones = _mm512_set1_epi8(1);
    for (int i = 0; i < n; i += 64) {
        __mmask64 m = n - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (n - i)) - 1;
        __m512i x = _mm512_maskz_loadu_epi8(m, from + i);
        _mm512_storeu_si512(to + i, x);
        sum = _mm512_dpbusd_epi32(sum, ones, x);
    }
    return -128 * _mm512_reduce_add_epi32(sum);
}

/* The rotated key in integers up to max; n above 0, at most ROPE_MAX. */
static float quantize_rope(int16_t *to, const unsigned char *from, int n, int max)
{
    vf x[ROPE_MAX / VL];
    vi most = vi_zero();
    int vectors = (n + VL - 1) / VL;
    for (int i = 0; i < vectors; i++) {
        x[i] = vf_load_bf16_n(from + (size_t)i * VL * 2, n - i * VL < VL ? n - i * VL : VL);
        most = vi_absmax(most, x[i]);
    }
    float scale = scale_of(vi_hmax(most), max);
    vf by = vf_set1(1 / scale);
    vi limit = _mm512_set1_epi32(max);
    for (int i = 0; i < vectors; i++) {
        vi r = _mm512_min_epi32(_mm512_cvtps_epi32(vf_mul(x[i], by)), limit);
        r = _mm512_max_epi32(r, _mm512_sub_epi32(vi_zero(), limit));
        _mm256_storeu_si256((__m256i *)(void *)(to + i * VL), _mm512_cvtepi32_epi16(r));
    }
    return scale;
}

/* What the products need of a key's scale. A NaN reaches rows by the scale alone: what a row that
 * does not see the key multiplies by zero must be finite. */
static void split_scale(i8_keys *keys, int j, float scale)
{
    uint32_t bits = st_bits_of_float(scale);
    if ((bits & 0x7f800000u) == 0x7f800000u)
        bits = st_bits_of_float(1);
    int e = (int)(bits >> 23 & 255) - 127;
    float m = st_float_of_bits((bits & 0x7fffffu) | 0x3f800000u);
    keys->scale[j] = scale;
    keys->exponent[j] = (float)e;
    keys->inverse[j] = st_float_of_bits((uint32_t)(127 - e) << 23);
    keys->fine[j] = (m - 1) * (1.3465f - 0.3465f * (m - 1)); /* log2 m within 0.009 */
    keys->weight[j] = m * W_ONE;
}

/* Four keys' latents to [strip][quad][dim]: byte i of a unit is key i. */
static void interleave_quad(int32_t *v, const int8_t *k, size_t ld, int v_pad)
{
    for (int d = 0; d < v_pad; d += 64, v += 8 * STRIP_LD) {
        __m512i a = _mm512_loadu_si512(k + d), b = _mm512_loadu_si512(k + ld + d);
        __m512i c = _mm512_loadu_si512(k + 2 * ld + d), e = _mm512_loadu_si512(k + 3 * ld + d);
        __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
        __m512i ce0 = _mm512_unpacklo_epi8(c, e), ce1 = _mm512_unpackhi_epi8(c, e);
        __m512i q[4] = {_mm512_unpacklo_epi16(ab0, ce0), _mm512_unpackhi_epi16(ab0, ce0),
                        _mm512_unpacklo_epi16(ab1, ce1), _mm512_unpackhi_epi16(ab1, ce1)};
        /* Lane i of q[j] has dims 16i + 4j .. + 3: halves of strip 2i + j / 2. */
        for (int j = 0; j < 4; j++) {
            __m128i *to = (__m128i *)(void *)(v + j / 2 * STRIP_LD + j % 2 * 4);
            enum { NEXT = 2 * STRIP_LD / 4 };
            _mm_storeu_si128(to, _mm512_castsi512_si128(q[j]));
            _mm_storeu_si128(to + NEXT, _mm512_extracti32x4_epi32(q[j], 1));
            _mm_storeu_si128(to + 2 * NEXT, _mm512_extracti32x4_epi32(q[j], 2));
            _mm_storeu_si128(to + 3 * NEXT, _mm512_extracti32x4_epi32(q[j], 3));
        }
    }
}

static void prepare_key(const i8_group *g, int j, const unsigned char *row)
{
    i8_keys *keys = g->keys;
    float scale;
    memcpy(&scale, row + st_kv_i8_scales_at(g->row), sizeof scale);
    split_scale(keys, j, scale);
    keys->sum[j] = copy_latent(keys->k + (size_t)j * g->k_ld, row, g->lora);
    keys->rope_scale[j] = quantize_rope(keys->rope + (size_t)j * g->rope_ld,
                                        row + st_kv_i8_plain_at(g->row), g->rope, g->k_rope_max);
}

static void fetch(const unsigned char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(p + i);
}

/* Finds the KV rows of keys [first, first + count). */
static void find_rows(const i8_group *g, int first, int count, const unsigned char **rows)
{
    const st_kv_layer *kv = g->kv;
    for (int j = 0; j < count;) {
        const unsigned char *row = st_kv_row(kv, g->seq->block_table, first + j);
        int end = j + kv->block_size - (first + j) % kv->block_size;
        for (; j < end && j < count; j++, row += kv->row_stride)
            rows[j] = row;
    }
}

/* Keys [first, first + count) of the sequence. */
static void prepare_keys(const i8_group *g, int first, int count)
{
    enum { AHEAD = 12 }; /* rows asked for before they are read */
    const unsigned char *rows[KEYS];
    find_rows(g, first, count, rows);
    for (int j = -AHEAD; j < count; j++) {
        if (j + AHEAD < count)
            fetch(rows[j + AHEAD], g->kv->row_stride);
        if (j >= 0)
            prepare_key(g, j, rows[j]);
    }
    for (int j = 0; j < count; j += 4)
        interleave_quad(g->keys->v + j / 4 * STRIP, g->keys->k + (size_t)j * g->k_ld, g->k_ld,
                        g->v_pad);
}

/* ---- scores ---- */

/* By hand, as in avx512vnni_matmul_i8.c: with intrinsics GCC 12 spills accumulators. */
ST_INLINE vi dot_bytes(vi acc, vi u, vi s)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
    return acc;
}
ST_INLINE vi dot_words(vi acc, vi a, vi b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}
ST_INLINE vi broadcast4(const void *p)
{
    int32_t x;
    memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
}

/* s = the rotated parts' product in float, for 16 / vecs keys. */
ST_INLINE void rope_tile(int vecs, float *s, const int16_t *q, const int16_t *k, size_t ld,
                         int units, const float *k_scale)
{
    vi acc[VL]; /* [16 / vecs][vecs] */
    ST_UNROLL
    for (int j = 0; j < VL / vecs; j++)
        ST_UNROLL
    for (int v = 0; v < vecs; v++)
        acc[j * vecs + v] = vi_zero();
    for (int d = 0; d < units; d++, q += vecs * VL * 2, k += 2) {
        vi qv[2];
        ST_UNROLL
        for (int v = 0; v < vecs; v++)
            qv[v] = _mm512_loadu_si512(q + v * VL * 2);
        ST_UNROLL
        for (int j = 0; j < VL / vecs; j++) {
            vi kv = broadcast4(k + (size_t)j * ld);
            ST_UNROLL
            for (int v = 0; v < vecs; v++)
                acc[j * vecs + v] = dot_words(acc[j * vecs + v], qv[v], kv);
        }
    }
    ST_UNROLL
    for (int j = 0; j < VL / vecs; j++)
        ST_UNROLL
    for (int v = 0; v < vecs; v++)
        vf_store(s + (j * vecs + v) * VL,
                 vf_mul(_mm512_cvtepi32_ps(acc[j * vecs + v]), vf_set1(k_scale[j])));
}

/* s = t for 16 / vecs keys from key j0 on; the rotated parts' product is in s. */
ST_INLINE void score_tile(int vecs, float *s, const i8_group *g, const i8_block *b, int j0)
{
    const i8_keys *keys = g->keys;
    const uint8_t *q = b->q;
    const int8_t *k = keys->k + (size_t)j0 * g->k_ld;
    vi acc[VL]; /* [16 / vecs][vecs] */
    ST_UNROLL
    for (int j = 0; j < VL / vecs; j++)
        ST_UNROLL
    for (int v = 0; v < vecs; v++)
        acc[j * vecs + v] = _mm512_set1_epi32(keys->sum[j0 + j]);
    for (int d = 0; d < g->lora4; d += 4, q += vecs * 64, k += 4) {
        vi qv[2];
        ST_UNROLL
        for (int v = 0; v < vecs; v++)
            qv[v] = _mm512_loadu_si512(q + v * 64);
        ST_UNROLL
        for (int j = 0; j < VL / vecs; j++) {
            vi kv = broadcast4(k + (size_t)j * g->k_ld);
            ST_UNROLL
            for (int v = 0; v < vecs; v++)
                acc[j * vecs + v] = dot_bytes(acc[j * vecs + v], qv[v], kv);
        }
    }
    ST_UNROLL
    for (int j = 0; j < VL / vecs; j++)
        ST_UNROLL
    for (int v = 0; v < vecs; v++) {
        float *at = s + (j * vecs + v) * VL;
        vf t =
            vf_fma(vf_load(at), vf_load(b->rope_scale + v * VL), vf_set1(keys->exponent[j0 + j]));
        vf i = vf_mul(_mm512_cvtepi32_ps(acc[j * vecs + v]), vf_set1(keys->scale[j0 + j]));
        vf_store(at, vf_fma(i, vf_load(b->scale + v * VL), t));
    }
}

ST_INLINE void scores(int vecs, const i8_group *g, const i8_block *b, int most)
{
    for (int j = 0; j < most; j += VL / vecs) {
        float *s = g->s + (size_t)j * (size_t)(vecs * VL);
        rope_tile(vecs, s, b->q_rope, g->keys->rope + (size_t)j * g->rope_ld, g->rope_ld,
                  g->rope2 / 2, g->keys->rope_scale + j);
        score_tile(vecs, s, g, b, j);
    }
}

/* ---- weights ---- */

/* Which keys of the segment the block's rows see. */
static void find_seen(i8_block *b, int first, int most)
{
    b->common = b->pos[0] - first + 1; /* positions rise with the row */
    b->common = b->common < 0 ? 0 : b->common > most ? most : b->common;
    for (int j = b->common; j < most; j++) {
        b->seen[j] = 0;
        for (int r = 0; r < b->lanes; r++)
            b->seen[j] |= (uint32_t)(first + j <= b->pos[r]) << r;
    }
}

static vf largest(const i8_group *g, const i8_block *b, int r, int most)
{
    vf max = vf_set1(-INFINITY);
    for (int j = 0; j < most; j++) {
        vf t = vf_add(vf_load(g->s + j * b->lanes + r), vf_set1(g->keys->fine[j]));
        if (j >= b->common)
            t = vf_where(b->seen[j] >> r, t, vf_set1(-INFINITY));
        max = vf_max(max, t);
    }
    return max;
}

/* W of a key for 16 rows, 0..65535; adds to the sum. */
ST_INLINE vi weigh(const i8_group *g, const i8_block *b, int r, int j, vf n, vf *sum)
{
    vf p = vf_exp2(vf_add(vf_load(g->s + j * b->lanes + r), n));
    if (j >= b->common)
        p = vf_where(b->seen[j] >> r, p, vf_zero());
    *sum = vf_fma(p, vf_set1(g->keys->inverse[j]), *sum);
    return _mm512_cvtps_epi32(vf_mul(p, vf_set1(g->keys->weight[j])));
}

/* Scores of 16 rows to weights, their exponent and their sum. */
static void weights(const i8_group *g, i8_block *b, int r, int most)
{
    const vi sort =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
    const vi low = _mm512_set1_epi32(0xffff);
    vf n = vf_sub(vf_zero(), vf_round(largest(g, b, r, most))), sum = vf_zero();
    for (int j = 0; j < most; j += 4) {
        vi w[4];
        for (int i = 0; i < 4; i++)
            w[i] = j + i < most ? weigh(g, b, r, j + i, n, &sum) : vi_zero();
        /* Low bytes of two keys, then their high bytes. */
        vi x = _mm512_shuffle_epi8(_mm512_or_si512(w[0], _mm512_slli_epi32(w[1], 16)), sort);
        vi y = _mm512_shuffle_epi8(_mm512_or_si512(w[2], _mm512_slli_epi32(w[3], 16)), sort);
        uint8_t *to = g->w + (size_t)(j / 4 * b->lanes + r) * 4;
        _mm512_storeu_si512(to,
                            _mm512_or_si512(_mm512_srli_epi32(x, 16), _mm512_andnot_si512(low, y)));
        _mm512_storeu_si512(to + (size_t)QUADS * (size_t)b->lanes * 4,
                            _mm512_or_si512(_mm512_and_si512(x, low), _mm512_slli_epi32(y, 16)));
    }
    vf_store(b->n + r, n);
    vf_store(b->l + r, sum);
}

/* ---- values ---- */

/* o for 16 / vecs dims, into total: total * a + o * b where a row takes part, or o. */
ST_INLINE void value_tile(int vecs, float *total, const i8_group *g, const i8_block *b,
                          const int32_t *v, int quads, bool start, uint32_t takes)
{
    vi acc[VL]; /* [16 / vecs][vecs] */
    ST_UNROLL
    for (int d = 0; d < VL / vecs; d++)
        ST_UNROLL
    for (int i = 0; i < vecs; i++)
        acc[d * vecs + i] = vi_zero();
    for (int plane = 0; plane < 2; plane++) {
        const uint8_t *w = g->w + (size_t)plane * QUADS * (size_t)(vecs * 64);
        const int32_t *at = v;
        if (plane > 0)
            ST_UNROLL
        for (int d = 0; d < VL / vecs; d++)
            ST_UNROLL
        for (int i = 0; i < vecs; i++)
            acc[d * vecs + i] = _mm512_slli_epi32(acc[d * vecs + i], 8);
        for (int j = 0; j < quads; j++, w += vecs * 64, at += STRIP) {
            vi wv[2];
            ST_UNROLL
            for (int i = 0; i < vecs; i++)
                wv[i] = _mm512_loadu_si512(w + i * 64);
            ST_UNROLL
            for (int d = 0; d < VL / vecs; d++) {
                vi vv = broadcast4(at + d / STRIP * STRIP_LD + d % STRIP);
                ST_UNROLL
                for (int i = 0; i < vecs; i++)
                    acc[d * vecs + i] = dot_bytes(acc[d * vecs + i], wv[i], vv);
            }
        }
    }
    ST_UNROLL
    for (int d = 0; d < VL / vecs; d++)
        ST_UNROLL
    for (int i = 0; i < vecs; i++) {
        float *to = total + (d * vecs + i) * VL;
        vf o = vf_mul(_mm512_cvtepi32_ps(acc[d * vecs + i]), vf_set1(1 / W_ONE));
        if (!start) {
            vf t = vf_load(to);
            vf joint = vf_fma(o, vf_load(b->b + i * VL), vf_mul(t, vf_load(b->a + i * VL)));
            o = vf_where(takes >> (i * VL), joint, t);
        }
        vf_store(to, o);
    }
}

ST_INLINE void values(int vecs, const i8_group *g, const i8_block *b, int most, bool start,
                      uint32_t takes)
{
    for (int d = 0; d < g->lora; d += VL / vecs)
        value_tile(vecs, b->total + (size_t)d * (size_t)(vecs * VL), g, b,
                   g->keys->v + d / STRIP * STRIP_LD, (most + 3) / 4, start, takes);
}

/* ---- segments ---- */

/* How the segment joins the total (simd_attention.inc's at_merge); returns a bit per row that has
 * keys in it. */
static uint32_t plan_merge(i8_block *b, int first, bool start)
{
    uint32_t takes = 0;
    for (int r = 0; r < b->lanes; r++)
        takes |= (uint32_t)(b->pos[r] >= first) << r;
    for (int r = 0; r < b->lanes; r += VL) {
        vf n = vf_load(b->n + r), l = vf_load(b->l + r);
        if (!start) {
            vf n_total = vf_load(b->n_total + r), l_total = vf_load(b->l_total + r);
            vf joint = vf_where(vf_le(n_total, n), n_total, n);
            vf to_a = vf_scale2(vf_set1(1), vf_sub(joint, n_total));
            vf to_b = vf_scale2(vf_set1(1), vf_sub(joint, n));
            vf_store(b->a + r, to_a);
            vf_store(b->b + r, to_b);
            n = vf_where(takes >> r, joint, n_total);
            l = vf_where(takes >> r, vf_add(vf_mul(l_total, to_a), vf_mul(l, to_b)), l_total);
        }
        vf_store(b->n_total + r, n);
        vf_store(b->l_total + r, l);
    }
    return takes;
}

static int last_position(const i8_group *g)
{
    const i8_block *b = &g->blocks[g->n_blocks - 1];
    return b->pos[b->lanes - 1];
}

/* Joins the segment to the totals; start: they are still empty. */
static void run_segment(i8_group *g, int segment, bool start)
{
    int first = segment * KEYS, last = last_position(g);
    int most = last - first + 1 < KEYS ? last - first + 1 : KEYS;
    prepare_keys(g, first, most);
    for (int i = 0; i < g->n_blocks; i++) {
        i8_block *b = &g->blocks[i];
        if (b->lanes == VL)
            scores(1, g, b, most);
        else
            scores(2, g, b, most);
        find_seen(b, first, most);
        for (int r = 0; r < b->lanes; r += VL)
            weights(g, b, r, most);
        uint32_t takes = plan_merge(b, first, start);
        if (b->lanes == VL)
            values(1, g, b, most, start, takes);
        else
            values(2, g, b, most, start, takes);
    }
}

/* ---- groups of rows ---- */

static void group_init(i8_group *g, const st_attn_shape *shape, const st_kv_layer *kv,
                       const st_attn_seq *seq, void *scratch)
{
    layout(g, shape, scratch);
    g->shape = shape;
    g->kv = kv;
    g->seq = seq;
    g->row = st_kv_attn_row(true, shape);
    int64_t most = INT32_MAX / ((int64_t)Q_ROPE_MAX * (g->rope2 ? g->rope2 : 1));
    g->k_rope_max = most < 32767 ? (int)most : 32767;
    g->n_rows = 0;
}

static size_t row_of(const i8_group *g, int query, int head)
{
    return (size_t)(g->seq->q_row + query) * (size_t)g->shape->n_heads + (size_t)head;
}

/* Takes up to I8_ROWS rows from *query and *head on, which advance. */
static void take_rows(i8_group *g, const float *q, int *query, int *head, int q1, int h0, int h1)
{
    int pos[I8_ROWS];
    g->n_rows = 0;
    while (*query < q1 && g->n_rows < I8_ROWS) {
        pos[g->n_rows] = g->seq->pos0 + *query;
        g->q_rows[g->n_rows++] = q + row_of(g, *query, *head) * (size_t)g->shape->k_dim;
        if (++*head == h1) {
            *head = h0;
            ++*query;
        }
    }
    pack_queries(g);
    /* Idle lanes see what the last row sees. */
    for (int i = 0; i < g->n_blocks; i++)
        for (int r = 0; r < g->blocks[i].lanes; r++) {
            int row = g->blocks[i].first + r;
            g->blocks[i].pos[r] = pos[row < g->n_rows ? row : g->n_rows - 1];
        }
}

/* The totals of a block's 16 rows from `lane` on, times `by`, to rows. */
static void totals_to_rows(const i8_group *g, const i8_block *b, int lane, vf by,
                           float *const *rows)
{
    for (int d = 0; d < g->lora; d += VL) {
        vf t[VL];
        int n = g->lora - d < VL ? g->lora - d : VL;
        for (int i = 0; i < VL; i++)
            t[i] = vf_mul(vf_load(b->total + (size_t)(d + i) * (size_t)b->lanes + lane), by);
        vf_transpose(t);
        for (int i = 0; i < VL && b->first + lane + i < g->n_rows; i++)
            vf_store_n(rows[b->first + lane + i] + d, t[i], n);
    }
}

void st_avx512vnni_attention_i8(float *out, const float *q, const st_attn_shape *shape,
                                const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1,
                                int h0, int h1, void *scratch)
{
    i8_group g;
    group_init(&g, shape, kv, seq, scratch);
    for (int query = q0, head = h0; query < q1 && h0 < h1;) {
        int from_query = query, from_head = head;
        take_rows(&g, q, &query, &head, q1, h0, h1);
        int segments = last_position(&g) / KEYS + 1;
        for (int i = 0; i < segments; i++)
            run_segment(&g, i, i == 0);
        float *rows[I8_ROWS];
        for (int r = 0, i = from_query, h = from_head; r < g.n_rows; r++) {
            rows[r] = out + row_of(&g, i, h) * (size_t)shape->v_dim;
            if (++h == h1) {
                h = h0;
                i++;
            }
        }
        for (int i = 0; i < g.n_blocks; i++)
            for (int r = 0; r < g.blocks[i].lanes; r += VL)
                totals_to_rows(&g, &g.blocks[i], r,
                               vf_div(vf_set1(1), vf_load(g.blocks[i].l_total + r)), rows);
    }
}

/* A segment's results, unnormalised. */
static void store_parts(const i8_group *g, float *part)
{
    float *rows[I8_ROWS];
    size_t stride = (size_t)g->lora + ST_ATTN_PART_EXTRA;
    for (int r = 0; r < g->n_rows; r++)
        rows[r] = part + (size_t)r * stride;
    for (int i = 0; i < g->n_blocks; i++) {
        const i8_block *b = &g->blocks[i];
        for (int r = 0; r < b->lanes; r += VL)
            totals_to_rows(g, b, r, vf_set1(1), rows);
        for (int r = 0; r < b->lanes && b->first + r < g->n_rows; r++) {
            rows[b->first + r][g->lora] = b->n_total[r];
            rows[b->first + r][g->lora + 1] = b->l_total[r];
        }
    }
}

void st_avx512vnni_attention_i8_part(float *part, size_t stride, const float *q,
                                     const st_attn_shape *shape, const st_kv_layer *kv,
                                     const st_attn_seq *seq, int q0, int q1, int h0, int h1,
                                     int segment, int n_segments, void *scratch)
{
    i8_group g;
    group_init(&g, shape, kv, seq, scratch);
    for (int query = q0, head = h0; query < q1 && h0 < h1;) {
        take_rows(&g, q, &query, &head, q1, h0, h1);
        for (int i = 0; i < n_segments && last_position(&g) >= (segment + i) * KEYS; i++) {
            run_segment(&g, segment + i, true);
            store_parts(&g, part + (size_t)i * stride);
        }
        part += (size_t)g.n_rows * ((size_t)shape->v_dim + ST_ATTN_PART_EXTRA);
    }
}
