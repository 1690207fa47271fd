/* Dense attention by products of 16-bit integers (vpdpwssd), which are twice as many operations a
 * cycle as floats: for keys and values that were made by products of 8-bit integers.
 *
 *   S[key][query]  = q_scale * k_scale * sum over dims of q16 * k16
 *   P              = exp2(c*S + n), the lattice and the masks of simd_attention_dense.inc
 *   T[dim][query]  = w_scale * sum over keys of w16 * v16,   w = P * v_scale
 *   O[dim][query]  = O * 2^(n - old n) + T
 *
 * Sums are exact in 32 bits. Rows of q and k are scaled by their length, so that by Cauchy and
 * Schwarz no sum of theirs overflows, whatever its order: to 16 bits where one element stands out,
 * to 14 or so of the largest where all are alike. Values have 14 bits of a key's largest, weights
 * 12 of the largest that the query has in the tile: what a query gets depends on its own keys
 * alone. Against the same keys and values in floats outputs are off by 1 to 5 in 10^4. */
#include "kernels/avx512/avx512.h"

#include <math.h>
#include <string.h>

#include "kernels/avx512/vec_avx512.h"
#include "kernels/simd/simd_macros.h"
#include "kernels/simd/simd_math.inc"

#include "kernels/simd/simd_dense_state.inc"

enum {
    AT_ONCE = 8, /* keys, or dimensions, by two vectors of queries */
    V_ONE = 8191,
    W_ONE = 4095,
    ROW_LENGTH = 32767 /* of q and k */
};
_Static_assert((int64_t)ST_DENSE_KEYS *V_ONE *W_ONE <= INT32_MAX, "weights times values fit");
/* Vectors with nothing above become zeros; weights below vanish. */
#define NOTHING 0x1p-100f

/* The state of a block of queries begins with q, [pairs][DN_LANES] of two dimensions each, and
 * scales; behind all blocks there is a tile. */
typedef struct di_layout {
    dn_layout dn;
    int pairs;         /* of a key's dimensions */
    size_t scale;      /* of q, times c: floats from a block's start */
    size_t ld_k, ld_v; /* int32 */
} di_layout;

typedef struct di_tile {
    float s[ST_DENSE_KEYS * DN_LANES];       /* [key][query]: scores, then weights */
    int32_t w[ST_DENSE_KEYS / 2 * DN_LANES]; /* [pair of keys][query] */
    float k_scale[ST_DENSE_KEYS], v_scale[ST_DENSE_KEYS];
    bool bad;       /* some v_scale is not finite */
    int32_t rows[]; /* keys [ST_DENSE_KEYS][ld_k], values [ST_DENSE_KEYS / 2][ld_v] */
} di_tile;

static di_layout di_layout_of(int k_dim, int v_dim)
{
    di_layout y = {.pairs = (k_dim + 1) / 2};
    y.dn = dn_layout_of(y.pairs + 1, v_dim);
    y.scale = (size_t)y.pairs * DN_LANES;
    y.ld_k = st_dense_stride(y.pairs);
    y.ld_v = st_dense_stride(v_dim);
    return y;
}

static size_t di_scratch(int n_q, int k_dim, int v_dim)
{
    di_layout y = di_layout_of(k_dim, v_dim);
    return dn_blocks(n_q) * y.dn.block * sizeof(float) + sizeof(di_tile) +
           ST_DENSE_KEYS * (y.ld_k + y.ld_v / 2) * sizeof(int32_t);
}

static di_tile *di_tile_of(const st_dense_attn *a, const di_layout *y)
{
    return (di_tile *)(void *)((float *)a->state + dn_blocks(a->n_q) * y->dn.block);
}

/* ---- floats to integers ---- */

/* 32 elements, those from n on zero, times `by`: 16 bits each, in order. */
ST_INLINE vi di_round(const float *x, int n, vf by)
{
    vf a = n >= VL ? vf_load(x) : vf_load_n(x, n), b = vf_zero();
    if (n >= 2 * VL)
        b = vf_load(x + VL);
    else if (n > VL)
        b = vf_load_n(x + VL, n - VL);
    return _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm512_cvtepi32_epi16(_mm512_cvtps_epi32(vf_mul(a, by)))),
        _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(vf_mul(b, by))), 1);
}

/* Elements d .. d + VL - 1 of a row of n, zero behind it. */
ST_INLINE vf di_load(const float *x, int d, int n)
{
    return n - d < VL ? vf_load_n(x + d, n - d) : vf_load(x + d);
}

/* Four rows of q or k, ld apart, as pairs, up to a whole vector of them; scale gets what they are
 * to be multiplied by: NaN for a row that is not finite or longer than floats can tell. */
static void di_rows(int32_t *to, size_t ld_to, const float *x, size_t ld, int n, float scale[4])
{
    vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    for (int d = 0; d < n; d += VL)
        ST_UNROLL
    for (int i = 0; i < 4; i++) {
        vf v = di_load(x + (size_t)i * ld, d, n);
        sum[i] = vf_fma(v, v, sum[i]);
    }
    /* The largest row whose products stay below 2^31 when each element is rounded. */
    __m128 length = _mm_sqrt_ps(vf_sum4(sum[0], sum[1], sum[2], sum[3]));
    __m128 finite = _mm_cmplt_ps(length, _mm_set1_ps(INFINITY));
    length = _mm_max_ps(_mm_and_ps(length, finite), _mm_set1_ps(NOTHING));
    __m128 one = _mm_set1_ps(ROW_LENGTH);
    __m128 by = _mm_and_ps(_mm_div_ps(one, length), finite);
    float factor[4];
    _mm_storeu_ps(factor, by);
    _mm_storeu_ps(scale, _mm_blendv_ps(_mm_set1_ps(NAN), _mm_div_ps(length, one), finite));
    for (int i = 0; i < 4; i++)
        for (int d = 0; d < n; d += 2 * VL)
            _mm512_storeu_si512(to + (size_t)i * ld_to + d / 2,
                                di_round(x + (size_t)i * ld + d, n - d, vf_set1(factor[i])));
}

static inline vi di_larger(vi a, vi b)
{
    return _mm512_max_epi32(a, b);
}

/* What four rows of values are to be multiplied by: NaN where one is not finite. */
static void di_value_scales(const float *x, size_t ld, int n, float scale[4])
{
    const vi magnitude = _mm512_set1_epi32(0x7fffffff);
    vi most[4] = {0};
    for (int d = 0; d < n; d += VL)
        ST_UNROLL
    for (int i = 0; i < 4; i++) {
        vi v = _mm512_castps_si512(di_load(x + (size_t)i * ld, d, n));
        most[i] = di_larger(most[i], _mm512_and_si512(v, magnitude));
    }
    vi a =
        di_larger(_mm512_unpacklo_epi32(most[0], most[1]), _mm512_unpackhi_epi32(most[0], most[1]));
    vi b =
        di_larger(_mm512_unpacklo_epi32(most[2], most[3]), _mm512_unpackhi_epi32(most[2], most[3]));
    a = di_larger(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    __m256i c = _mm256_max_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    __m128i bits = _mm_max_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
    __m128 finite = _mm_castsi128_ps(_mm_cmplt_epi32(bits, _mm_set1_epi32(0x7f800000)));
    __m128 m = _mm_max_ps(_mm_castsi128_ps(bits), _mm_set1_ps(NOTHING));
    _mm_storeu_ps(
        scale, _mm_blendv_ps(_mm_set1_ps(NAN), _mm_mul_ps(m, _mm_set1_ps(1.0f / V_ONE)), finite));
}

/* Two rows of values as pairs of a dimension each. b may be NULL: zeros. */
static void di_values(int32_t *to, const float *a, const float *b, int n, const float *scale)
{
    vf by_a = vf_set1(1 / scale[0]), by_b = vf_set1(b ? 1 / scale[1] : 0);
    for (int d = 0; d < n; d += VL) {
        int left = n - d < VL ? n - d : VL;
        vi x = _mm512_cvtps_epi32(vf_mul(vf_load_n(a + d, left), by_a));
        vi y = b ? _mm512_cvtps_epi32(vf_mul(vf_load_n(b + d, left), by_b)) : x;
        y = b ? _mm512_slli_epi32(y, 16) : _mm512_setzero_si512();
        _mm512_storeu_si512(to + d, _mm512_mask_blend_epi16(0xaaaaaaaau, x, y));
    }
}

static void di_prepare(di_tile *t, const di_layout *y, const st_dense_attn *a, const float *k,
                       const float *v, int count)
{
    size_t ldk = st_dense_stride(a->k_dim), ldv = st_dense_stride(a->v_dim);
    t->bad = false;
    for (int j = 0; j < count; j += 4) { /* there is room for whole tiles */
        di_rows(t->rows + (size_t)j * y->ld_k, y->ld_k, k + (size_t)j * ldk, ldk, a->k_dim,
                t->k_scale + j);
        di_value_scales(v + (size_t)j * ldv, ldv, a->v_dim, t->v_scale + j);
    }
    for (int j = 0; j < count; j++)
        t->bad |= isnan(t->v_scale[j]);
    int32_t *to = t->rows + ST_DENSE_KEYS * y->ld_k;
    for (int j = 0; j < count; j += 2, to += y->ld_v) {
        const float *x = v + (size_t)j * ldv;
        di_values(to, x, j + 1 < count ? x + ldv : NULL, a->v_dim, t->v_scale + j);
    }
}

/* Queries first .. first + DN_LANES - 1 of n_q, those behind the last zero, as rows of integers. */
static void di_query_rows(int32_t *to, size_t ld_to, const st_dense_attn *a, const float *q,
                          size_t ldq, int first, float *scale)
{
    int n = a->n_q - first < DN_LANES ? a->n_q - first : DN_LANES, r = 0;
    q += (size_t)first * ldq;
    for (; r + 4 <= n; r += 4)
        di_rows(to + (size_t)r * ld_to, ld_to, q + (size_t)r * ldq, ldq, a->k_dim, scale + r);
    for (; r < n; r++) { /* four times the same */
        float same[4];
        di_rows(to + (size_t)r * ld_to, 0, q + (size_t)r * ldq, 0, a->k_dim, same);
        scale[r] = same[0];
    }
    memset(to + (size_t)n * ld_to, 0, (size_t)(DN_LANES - n) * ld_to * sizeof *to);
    memset(scale + n, 0, (size_t)(DN_LANES - n) * sizeof *scale);
}

static void di_start(const st_dense_attn *a, const float *q, size_t ldq)
{
    di_layout y = di_layout_of(a->k_dim, a->v_dim);
    di_tile *tile = di_tile_of(a, &y);
    float *b = a->state;
    vf c = vf_set1((float)(a->scale * 1.4426950408889634));
    for (int i = 0; i < a->n_q; i += DN_LANES, b += y.dn.block) {
        float *scale = b + y.scale;
        dn_clear(&y.dn, b);
        di_query_rows(tile->rows, y.ld_k, a, q, ldq, i, scale);
        for (int r = 0; r < DN_LANES; r += VL) {
            vf_store(scale + r, vf_mul(vf_load(scale + r), c));
            for (int p = 0; p < y.pairs; p += VL) {
                vf t[VL];
                for (int x = 0; x < VL; x++)
                    t[x] = vf_load(tile->rows + (size_t)(r + x) * y.ld_k + p);
                vf_transpose(t);
                for (int x = 0; x < VL && p + x < y.pairs; x++)
                    vf_store(b + (size_t)(p + x) * DN_LANES + r, t[x]);
            }
        }
    }
}

/* ---- a tile and a block of queries ---- */

/* s[key][query] for AT_ONCE keys, without q's scale. */
static void di_scores(float *s, const float *q, const int32_t *k, size_t ldk, const float *scale,
                      int pairs)
{
    vi acc[AT_ONCE][2];
    ST_UNROLL
    for (int j = 0; j < AT_ONCE; j++)
        acc[j][0] = acc[j][1] = _mm512_setzero_si512();
    for (int p = 0; p < pairs; p++, q += DN_LANES, k++) {
        vi q0 = _mm512_loadu_si512(q), q1 = _mm512_loadu_si512(q + VL);
        ST_UNROLL
        for (int j = 0; j < AT_ONCE; j++) {
            vi kv = _mm512_set1_epi32(k[(size_t)j * ldk]);
            acc[j][0] = _mm512_dpwssd_epi32(acc[j][0], q0, kv);
            acc[j][1] = _mm512_dpwssd_epi32(acc[j][1], q1, kv);
        }
    }
    ST_UNROLL
    for (int j = 0; j < AT_ONCE; j++) {
        vf by = vf_set1(scale[j]);
        vf_store(s + j * DN_LANES, vf_mul(_mm512_cvtepi32_ps(acc[j][0]), by));
        vf_store(s + j * DN_LANES + VL, vf_mul(_mm512_cvtepi32_ps(acc[j][1]), by));
    }
}

/* The lanes whose queries, the first at position pos, see the key at position key. */
static inline uint32_t di_seen(int key, int pos)
{
    int hidden = key - pos;
    return hidden <= 0 ? 0xffff : hidden >= VL ? 0 : 0xffffu << hidden & 0xffff;
}

/* What the values' sums are made into outputs with, lane by lane. */
typedef struct di_join {
    vf scale, by; /* of the tile's sum; of O */
    bool rescale; /* some `by` is not one */
} di_join;

/* Scores s of one vector of queries into w's halves: even keys below, odd ones above. */
static void di_pack_weights(int32_t *w, const float *s, int most, vf by)
{
    for (int j = 0; j < most; j += 2, w += DN_LANES, s += 2 * DN_LANES) {
        vi even = _mm512_cvtps_epi32(vf_mul(vf_load(s), by)), odd = _mm512_setzero_si512();
        if (j + 1 < most)
            odd = _mm512_slli_epi32(_mm512_cvtps_epi32(vf_mul(vf_load(s + DN_LANES), by)), 16);
        _mm512_storeu_si512(w, _mm512_or_si512(even, odd));
    }
}

/* Scores of one vector of queries, the first at position pos behind the tile's first key, become
 * weights; exponent and sum are brought up to date. All queries see the first `common` of `most`
 * keys. */
static di_join di_softmax(di_tile *t, int r, float *n_at, float *l_at, vf c, int pos, int common,
                          int most)
{
    float *s = t->s + r;
    vf max = vf_set1(-INFINITY), wide = vf_set1(NOTHING), sum = vf_zero();
    for (int j = 0; j < common; j++)
        max = vf_max(max, vf_load(s + j * DN_LANES));
    for (int j = common; j < most; j++)
        max = vf_where(di_seen(j, pos), vf_max(max, vf_load(s + j * DN_LANES)), max);
    vf n_old = vf_load(n_at), n = vf_sub(vf_zero(), vf_round(vf_mul(max, c)));
    uint32_t keep = vf_le(n_old, n), fresh = vf_le(vf_set1(INFINITY), n_old);
    n = vf_where(keep, n_old, n);
    di_join join = {.rescale = (keep | fresh) != 0xffff};
    join.by = vf_scale2(vf_set1(1), vf_max(vf_set1(-250), vf_sub(n, n_old)));
    join.by = vf_where(keep | fresh, vf_set1(1), join.by);
    for (int j = 0; j < most; j++) {
        vf p = vf_exp2(vf_fma(vf_load(s + j * DN_LANES), c, n));
        if (j >= common)
            p = vf_where(di_seen(j, pos), p, vf_zero());
        sum = vf_add(sum, p);
        p = vf_mul(p, vf_set1(t->v_scale[j]));
        if (t->bad) /* a masked key's scale may be anything */
            p = vf_where(di_seen(j, pos), p, vf_zero());
        vf_store(s + j * DN_LANES, p);
        wide = vf_max(wide, p);
    }
    di_pack_weights(t->w + r, s, most, vf_div(vf_set1(W_ONE), wide));
    join.scale = vf_mul(wide, vf_set1(1.0f / W_ONE));
    for (int j = 0; j < most && t->bad; j++) /* a NaN is none of a maximum's operands */
        join.scale = vf_fma(vf_load(s + j * DN_LANES), vf_zero(), join.scale);
    vf_store(n_at, n);
    vf_store(l_at, vf_fma(vf_load(l_at), join.by, sum));
    return join;
}

/* o[dim][query] for AT_ONCE dimensions. */
ST_INLINE void di_outputs(bool rescale, float *o, const int32_t *w, const int32_t *v, size_t ldv,
                          int pairs, const di_join join[2])
{
    vi acc[AT_ONCE][2];
    ST_UNROLL
    for (int d = 0; d < AT_ONCE; d++)
        acc[d][0] = acc[d][1] = _mm512_setzero_si512();
    for (int p = 0; p < pairs; p++, w += DN_LANES, v += ldv) {
        vi w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + VL);
        ST_UNROLL
        for (int d = 0; d < AT_ONCE; d++) {
            vi vv = _mm512_set1_epi32(v[d]);
            acc[d][0] = _mm512_dpwssd_epi32(acc[d][0], w0, vv);
            acc[d][1] = _mm512_dpwssd_epi32(acc[d][1], w1, vv);
        }
    }
    ST_UNROLL
    for (int d = 0; d < AT_ONCE; d++)
        ST_UNROLL
    for (int i = 0; i < 2; i++, o += VL) {
        vf old = vf_load(o);
        if (rescale)
            old = vf_mul(old, join[i].by);
        vf_store(o, vf_fma(_mm512_cvtepi32_ps(acc[d][i]), join[i].scale, old));
    }
}

static void di_block(const st_dense_attn *a, const di_layout *y, di_tile *t, float *b, int pos,
                     int count)
{
    int most = pos + DN_LANES < count ? pos + DN_LANES : count;
    di_join join[2];
    for (int j = 0; j < most; j += AT_ONCE)
        di_scores(t->s + j * DN_LANES, b, t->rows + (size_t)j * y->ld_k, y->ld_k, t->k_scale + j,
                  y->pairs);
    for (int i = 0; i < 2; i++) {
        int first = pos + i * VL, common = first + 1 < 0 ? 0 : first + 1;
        join[i] =
            di_softmax(t, i * VL, b + y->dn.n + i * VL, b + y->dn.l + i * VL,
                       vf_load(b + y->scale + i * VL), first, common < most ? common : most, most);
    }
    const int32_t *v = t->rows + ST_DENSE_KEYS * y->ld_k;
    for (int d = 0; d < y->dn.v_pad; d += AT_ONCE)
        if (join[0].rescale || join[1].rescale)
            di_outputs(true, b + y->dn.o + d * DN_LANES, t->w, v + d, y->ld_v, (most + 1) / 2,
                       join);
        else
            di_outputs(false, b + y->dn.o + d * DN_LANES, t->w, v + d, y->ld_v, (most + 1) / 2,
                       join);
}

static void di_keys(const st_dense_attn *a, const float *k, const float *v, int first, int count)
{
    di_layout y = di_layout_of(a->k_dim, a->v_dim);
    di_tile *t = di_tile_of(a, &y);
    float *b = a->state;
    di_prepare(t, &y, a, k, v, count);
    for (int i = 0; i < a->n_q; i += DN_LANES, b += y.dn.block)
        if (a->pos0 + i + DN_LANES > first)
            di_block(a, &y, t, b, a->pos0 + i - first, count);
}

static void di_finish(const st_dense_attn *a, float *out, size_t ldo)
{
    di_layout y = di_layout_of(a->k_dim, a->v_dim);
    dn_finish(a, &y.dn, out, ldo);
}

const st_dense_kernels st_avx512vnni_dense = {di_scratch, di_start, di_keys, di_finish};
