/* Absorbed MLA over INT8 KV rows by integer dot products, rows (query, head) in lanes.
 *
 * A segment of 256 keys is prepared once for up to 128 rows, while the first of them have their
 * scores computed; then, for blocks of 32 or 16 rows:
 *
 *   I[key][row] = sum over the latent of q8 * k8      vpdpbusd: 4 dims; K unsigned (+128), q signed
 *   R[key][row] = sum over the rotated part           vpdpwssd: 2 dims of 16 bits each
 *   t  = c*(q_scale*k_scale*I + q_scale'*k_scale'*R) + e    e: exponent of k_scale = 2^e * m
 *   P  = exp2(t + n)                                  n = -round(max t): the power-of-two lattice
 *   l += P * 2^-e                                     so that P's scale is V's, not the softmax's
 *   W  = round(P * m * 45000)                         16 bits: the latent is V too, its scale in W
 *   O[dim][row] = sum over keys of W * v8             vpdpbusd: 4 keys; W in two unsigned bytes
 *
 * All sums over dims and keys are exact in 32 bits, so their order is free; a segment starts
 * afresh, and segments are joined to stretches and those to the result as simd_attention.inc does
 * it. What is rounded: q to 8 bits per row, the rotated parts to 13 bits, W to 16 bits of the
 * segment's largest. */
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
    CHUNK = 16,             /* keys that are prepared at once */
    AHEAD = 2,              /* chunks that are asked for before they are read */
    STRIP = 16,             /* dims of V that lie together: see interleave */
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
    uint8_t *k;    /* [KEYS][k_ld]: plus 128 */
    int32_t *v;    /* [v_pad / STRIP, STRIP_LD apart][QUADS][STRIP]: 4 keys of a dim each */
    int16_t *rope; /* [KEYS][rope_ld] */
    float scale[KEYS], rope_scale[KEYS];
    float exponent[KEYS], inverse[KEYS]; /* e and 2^-e */
    float fine[KEYS];                    /* m, or so: log2 for the maximum */
    float weight[KEYS];                  /* m * W_ONE */
} i8_keys;

/* 32 or 16 rows. */
typedef struct i8_block {
    int first, lanes;
    int common;                      /* keys of the segment that all rows see */
    int8_t *q;                       /* [lora / 4][lanes][4] */
    int32_t sum[32];                 /* of q, times -128 */
    int16_t *q_rope;                 /* [rope / 2][lanes][2] */
    float *stretch, *total;          /* [v_pad][lanes], dims in the order of strips */
    float scale[32], rope_scale[32]; /* of q, times c */
    float n[32], l[32];              /* of the running segment */
    float n_stretch[32], l_stretch[32], n_total[32], l_total[32];
    int pos[32];
    uint32_t seen[KEYS]; /* from key `common` on: a bit per row that sees it */
} i8_block;

/* Two sums of keys, one added to the other, brought to one exponent. */
typedef struct i8_join {
    float a[32], b[32]; /* what the sum and what is added to it are multiplied by */
    uint32_t takes;     /* a bit per row that has keys in what is added */
} i8_join;

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
    int8_t *q;
    int16_t *q_rope;
    float *s;   /* [KEYS][lanes] of the running block */
    uint8_t *w; /* [2: high, low][QUADS][lanes][4] */
    float *stretch, *total;
    const float *q_rows[I8_ROWS];
    const unsigned char *rows[KEYS + (AHEAD + 1) * CHUNK]; /* of the segment's keys and more */
    int known, asked; /* keys of the segment and after it: whose row is known, is asked for */
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
    g->stretch = cut(&at, &used, (size_t)I8_ROWS * (size_t)g->v_pad * sizeof(float));
    g->total = cut(&at, &used, (size_t)I8_ROWS * (size_t)g->v_pad * sizeof(float));
    return used;
}

size_t st_avx512vnni_attention_i8_scratch(const st_attn_shape *shape)
{
    i8_group g;
    return layout(&g, shape, NULL);
}

#include "kernels/avx512/avx512vnni_attention_i8_prepare.inc"

/* ---- scores ---- */

/* By hand, as in avx512vnni_packed.c: with intrinsics GCC 12 spills accumulators. */
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
ST_INLINE void score_tile(int vecs, bool feed, float *s, const i8_group *g, const i8_block *b,
                          int j0, i8_feed *f)
{
    const i8_keys *keys = g->keys;
    const int8_t *q = b->q;
    const uint8_t *k = keys->k + (size_t)j0 * g->k_ld;
    vi acc[VL]; /* [16 / vecs][vecs] */
    ST_UNROLL
    for (int j = 0; j < VL / vecs; j++)
        ST_UNROLL
    for (int v = 0; v < vecs; v++)
        acc[j * vecs + v] = _mm512_loadu_si512(b->sum + v * VL);
    for (int d = 0; d < g->lora4; d += 16) {
        if (feed)
            feed_some(f);
        int units = g->lora4 - d < 16 ? (g->lora4 - d) / 4 : 4;
        for (int u = 0; u < units; u++, q += vecs * 64, k += 4) {
            vi qv[2];
            ST_UNROLL
            for (int v = 0; v < vecs; v++)
                qv[v] = _mm512_loadu_si512(q + v * 64);
            ST_UNROLL
            for (int j = 0; j < VL / vecs; j++) {
                vi kv = broadcast4(k + (size_t)j * g->k_ld);
                ST_UNROLL
                for (int v = 0; v < vecs; v++)
                    acc[j * vecs + v] = dot_bytes(acc[j * vecs + v], kv, qv[v]);
            }
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

/* Scores of keys [j0, j1). */
ST_INLINE void scores(int vecs, bool feed, const i8_group *g, const i8_block *b, int j0, int j1,
                      i8_feed *f)
{
    for (int j = j0; j < j1; j += VL / vecs) {
        float *s = g->s + (size_t)j * (size_t)(vecs * VL);
        rope_tile(vecs, s, b->q_rope, g->keys->rope + (size_t)j * g->rope_ld, g->rope_ld,
                  g->rope2 / 2, g->keys->rope_scale + j);
        score_tile(vecs, feed, s, g, b, j, f);
    }
}

/* Scores of the first block. Keys are prepared a chunk ahead. */
static void prepare_and_score(i8_group *g, int most)
{
    i8_feed f;
    feed_chunk(g, &f, 0, most);
    while (f.quad < CHUNK / 4)
        feed_piece(&f);
    for (int j = 0; j < most; j += CHUNK) {
        feed_chunk(g, &f, j + CHUNK, most);
        feed_far(g, &f, j + (1 + AHEAD) * CHUNK);
        prepare_chunk(g, j, most);
        if (g->blocks[0].lanes == VL)
            scores(1, true, g, &g->blocks[0], j, j + CHUNK, &f);
        else
            scores(2, true, g, &g->blocks[0], j, j + CHUNK, &f);
        while (f.quad < CHUNK / 4)
            feed_piece(&f);
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

/* o for 16 / vecs dims, into the stretch: stretch * a + o * b where a row takes part, or o. */
ST_INLINE void value_tile(int vecs, float *stretch, const i8_group *g, const int32_t *v, int quads,
                          const i8_join *join)
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
                vi vv = broadcast4(at + d);
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
        float *to = stretch + (d * vecs + i) * VL;
        vf o = vf_mul(_mm512_cvtepi32_ps(acc[d * vecs + i]), vf_set1(1 / W_ONE));
        if (join) {
            vf t = vf_load(to);
            vf joint = vf_fma(o, vf_load(join->b + i * VL), vf_mul(t, vf_load(join->a + i * VL)));
            o = vf_where(join->takes >> (i * VL), joint, t);
        }
        vf_store(to, o);
    }
}

ST_INLINE void values(int vecs, const i8_group *g, const i8_block *b, int most, const i8_join *join)
{
    for (int d = 0; d < g->v_pad; d += VL / vecs)
        value_tile(vecs, b->stretch + (size_t)d * (size_t)(vecs * VL), g,
                   g->keys->v + d / STRIP * STRIP_LD + d % STRIP, (most + 3) / 4, join);
}

/* ---- segments ---- */

/* How sums of keys from `first` on are added to others (simd_attention.inc's at_merge). */
static void join_sums(const i8_block *b, int first, float *n_sum, float *l_sum,
                      const float *n_added, const float *l_added, i8_join *join)
{
    join->takes = 0;
    for (int r = 0; r < b->lanes; r++)
        join->takes |= (uint32_t)(b->pos[r] >= first) << r;
    for (int r = 0; r < b->lanes; r += VL) {
        vf n = vf_load(n_added + r), l = vf_load(l_added + r);
        vf n_before = vf_load(n_sum + r), l_before = vf_load(l_sum + r);
        vf joint = vf_where(vf_le(n_before, n), n_before, n);
        vf to_a = vf_scale2(vf_set1(1), vf_sub(joint, n_before));
        vf to_b = vf_scale2(vf_set1(1), vf_sub(joint, n));
        vf_store(join->a + r, to_a);
        vf_store(join->b + r, to_b);
        l = vf_add(vf_mul(l_before, to_a), vf_mul(l, to_b));
        vf_store(n_sum + r, vf_where(join->takes >> r, joint, n_before));
        vf_store(l_sum + r, vf_where(join->takes >> r, l, l_before));
    }
}

static int last_position(const i8_group *g)
{
    const i8_block *b = &g->blocks[g->n_blocks - 1];
    return b->pos[b->lanes - 1];
}

/* Finds the segment's rows and some after it. Rows are asked for once; `fresh`: none was yet, so
 * that those of the first chunk are asked for at once. */
static void start_rows(i8_group *g, int first, bool fresh)
{
    int left = last_position(g) - first + 1, room = KEYS + (AHEAD + 1) * CHUNK;
    g->known = left < room ? left : room;
    find_rows(g, first, g->known, g->rows);
    g->asked = fresh ? 0 : g->asked - KEYS;
    for (; fresh && g->asked < g->known && g->asked < CHUNK; g->asked++)
        for (size_t i = 0; i < g->kv->row_stride; i += 64)
            __builtin_prefetch(g->rows[g->asked] + i);
}

/* Joins the segment to the stretch; start: that is still empty. */
static void run_segment(i8_group *g, int segment, bool start)
{
    int first = segment * KEYS, left = last_position(g) - first + 1;
    int most = left < KEYS ? left : KEYS;
    start_rows(g, first, start);
    prepare_and_score(g, most);
    for (int i = 0; i < g->n_blocks; i++) {
        i8_block *b = &g->blocks[i];
        if (i > 0 && b->lanes == VL)
            scores(1, false, g, b, 0, most, NULL);
        else if (i > 0)
            scores(2, false, g, b, 0, most, NULL);
        find_seen(b, first, most);
        for (int r = 0; r < b->lanes; r += VL)
            weights(g, b, r, most);
        i8_join join;
        if (start) {
            memcpy(b->n_stretch, b->n, sizeof b->n);
            memcpy(b->l_stretch, b->l, sizeof b->l);
        } else {
            join_sums(b, first, b->n_stretch, b->l_stretch, b->n, b->l, &join);
        }
        if (b->lanes == VL)
            values(1, g, b, most, start ? NULL : &join);
        else
            values(2, g, b, most, start ? NULL : &join);
    }
}

/* Leaves n segments, which belong to one stretch, in every block's stretch. */
static void run_stretch(i8_group *g, int segment, int n)
{
    for (int i = 0; i < n && last_position(g) >= (segment + i) * KEYS; i++)
        run_segment(g, segment + i, i == 0);
}

/* Joins the stretch, whose first key is `first`, to those before it; start: there are none. */
static void add_stretch(const i8_group *g, i8_block *b, int first)
{
    if (first == 0) {
        float *o = b->total;
        b->total = b->stretch;
        b->stretch = o;
        memcpy(b->n_total, b->n_stretch, sizeof b->n_total);
        memcpy(b->l_total, b->l_stretch, sizeof b->l_total);
        return;
    }
    i8_join join;
    join_sums(b, first, b->n_total, b->l_total, b->n_stretch, b->l_stretch, &join);
    for (int r = 0; r < b->lanes; r += VL) {
        vf x = vf_load(join.a + r), y = vf_load(join.b + r);
        for (int d = 0; d < g->v_pad; d++) {
            float *at = b->total + d * b->lanes + r;
            vf t = vf_load(at), o = vf_load(b->stretch + d * b->lanes + r);
            vf_store(at, vf_where(join.takes >> r, vf_fma(o, y, vf_mul(t, x)), t));
        }
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

/* Sums of a block's 16 rows from `lane` on, times `by`, to rows. */
static void sums_to_rows(const i8_group *g, const i8_block *b, const float *sums, int lane, vf by,
                         float *const *rows)
{
    for (int d = 0; d < g->lora; d += VL) {
        vf t[VL];
        int n = g->lora - d < VL ? g->lora - d : VL;
        for (int i = 0; i < VL; i++) { /* dim d + i is in strip d / 64 * 4 + i / 4 */
            int unit = d / 64 * 64 + i / 4 * STRIP + d % 64 / 16 * 4 + i % 4;
            t[i] = vf_mul(vf_load(sums + unit * b->lanes + lane), by);
        }
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
        for (int i = 0; i * KEYS <= last_position(&g); i += ST_ATTN_STRETCH) {
            run_stretch(&g, i, ST_ATTN_STRETCH);
            for (int j = 0; j < g.n_blocks; j++)
                add_stretch(&g, &g.blocks[j], i * KEYS);
        }
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
                sums_to_rows(&g, &g.blocks[i], g.blocks[i].total, r,
                             vf_div(vf_set1(1), vf_load(g.blocks[i].l_total + r)), rows);
    }
}

void st_avx512vnni_attention_i8_part(float *part, const float *q, const st_attn_shape *shape,
                                     const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1,
                                     int h0, int h1, int segment, int n_segments, void *scratch)
{
    i8_group g;
    size_t part_row = (size_t)shape->v_dim + ST_ATTN_PART_EXTRA;
    group_init(&g, shape, kv, seq, scratch);
    for (int query = q0, head = h0; query < q1 && h0 < h1;) {
        take_rows(&g, q, &query, &head, q1, h0, h1);
        float *rows[I8_ROWS];
        for (int r = 0; r < g.n_rows; r++, part += part_row)
            rows[r] = part;
        if (last_position(&g) < segment * KEYS)
            continue; /* no key of these rows: their parts are not read */
        run_stretch(&g, segment, n_segments);
        for (int i = 0; i < g.n_blocks; i++) {
            const i8_block *b = &g.blocks[i];
            for (int r = 0; r < b->lanes; r += VL)
                sums_to_rows(&g, b, b->stretch, r, vf_set1(1), rows);
            for (int r = 0; r < b->lanes && b->first + r < g.n_rows; r++) {
                rows[b->first + r][g.lora] = b->n_stretch[r];
                rows[b->first + r][g.lora + 1] = b->l_stretch[r];
            }
        }
    }
}
