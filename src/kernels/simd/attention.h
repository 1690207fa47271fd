/* Template: attention over paged KV, absorbed MLA and GQA alike.
 *
 * Rows are (query, head) pairs that share their keys. Keys are taken in tiles of 64 at absolute
 * multiples of 64; a tile's K (and V) rows are widened once to float in scratch, then every row
 * uses them:
 *
 *   S[row][key]  = dot(q, k)           lanes along the head dimension, one tree per (row, key)
 *   P            = exp2(c*S + n)       c = scale*log2(e); n the row's integer exponent
 *   O[row][dim] += P[row][key]*V[key]  lanes along the dimension, keys in order
 *
 * n is -round(c*max S) of the keys so far and only ever falls, so that changing it multiplies O and
 * the sum of weights by a power of two: exact, and skipped exactly when n stays (AMLA's lattice,
 * arXiv 2509.25224). Keys come in segments of ST_ATTN_SEGMENT, each started afresh and merged in
 * order, so that segments may run on different threads.
 *
 * A row's result depends on its own q and its keys 0..pos alone: all its sums run over the same
 * keys in the same order whoever shares the tile, and masked keys are left out, not multiplied by
 * zero (their memory may hold anything). */

enum {
    AT_KEYS = 64, /* per tile */
    AT_ROWS = 32  /* at most, at once */
};

/* A group of rows and its scratch. */
typedef struct at_group {
    const st_attn_shape *shape;
    const st_kv_layer *kv;
    const st_attn_seq *seq;
    int n_rows;
    int k_pad, v_pad;             /* dimensions, rounded up to whole vectors */
    size_t k_ld, v_ld, o_ld;      /* row strides in floats; odd multiples of a cache line */
    int k_first, v_first;         /* first elements in a KV row; v_first < 0: V is the start of K */
    float c;                      /* scale * log2(e) */
    float *q;                     /* [n_rows][k_ld], zero padded */
    float *k;                     /* [AT_KEYS][k_ld] */
    float *v;                     /* [AT_KEYS][v_ld]; k for MLA */
    float *s;                     /* [n_rows][AT_KEYS] */
    float *o;                     /* [n_rows][o_ld]: the running segment */
    float *total;                 /* [n_rows][o_ld]: the segments merged so far */
    float n[AT_ROWS], l[AT_ROWS]; /* of o: exponent (+inf: no key yet), sum */
    float n_total[AT_ROWS], l_total[AT_ROWS]; /* of total */
    int pos[AT_ROWS];                         /* last key of each row */
} at_group;

/* A row stride that does not map every other row to the same cache sets. */
static size_t at_stride(int dim)
{
    return ((size_t)(dim + 15) / 16 | 1) * 16;
}

static size_t st_simd_attn_scratch(const st_attn_shape *shape)
{
    size_t k = at_stride(shape->k_dim), v = at_stride(shape->v_dim);
    return sizeof(float) * (AT_ROWS * (k + 2 * v + AT_KEYS) + AT_KEYS * (k + v));
}

static void at_init(at_group *g, bool mla, const st_attn_shape *shape, const st_kv_layer *kv,
                    const st_attn_seq *seq, int kv_head, float *scratch)
{
    g->shape = shape;
    g->kv = kv;
    g->seq = seq;
    g->k_pad = st_round_up(shape->k_dim, VL);
    g->v_pad = st_round_up(shape->v_dim, VL);
    g->k_ld = at_stride(shape->k_dim);
    g->o_ld = at_stride(shape->v_dim);
    g->v_ld = mla ? g->k_ld : g->o_ld;
    g->k_first = mla ? 0 : kv_head * shape->k_dim;
    g->v_first = mla ? -1 : shape->n_kv_heads * shape->k_dim + kv_head * shape->v_dim;
    g->c = (float)(shape->scale * 1.4426950408889634);
    g->q = scratch;
    g->o = g->q + AT_ROWS * g->k_ld;
    g->total = g->o + AT_ROWS * g->o_ld;
    g->s = g->total + AT_ROWS * g->o_ld;
    g->k = g->s + AT_ROWS * AT_KEYS;
    g->v = mla ? g->k : g->k + AT_KEYS * g->k_ld;
}

static void at_copy_padded(float *to, const float *from, int n, int padded)
{
    memcpy(to, from, (size_t)n * sizeof *to);
    memset(to + n, 0, (size_t)(padded - n) * sizeof *to);
}

static size_t at_row(const at_group *g, int query, int head)
{
    return (size_t)(g->seq->q_row + query) * (size_t)g->shape->n_heads + (size_t)head;
}

static void at_add_row(at_group *g, const float *q, int query, int head)
{
    int r = g->n_rows++;
    at_copy_padded(g->q + (size_t)r * g->k_ld, q + at_row(g, query, head) * (size_t)g->shape->k_dim,
                   g->shape->k_dim, g->k_pad);
    g->pos[r] = g->seq->pos0 + query;
}

/* ---- one tile ---- */

ST_INLINE void at_widen_row(st_dtype dtype, float *to, const char *from, size_t first, int n,
                            int padded)
{
    int i = 0;
    for (; i + VL <= n; i += VL)
        vf_store(to + i, vf_load_as(dtype, from, first + (size_t)i));
    if (i < padded)
        vf_store(to + i, vf_load_as_n(dtype, from, first + (size_t)i, n - i));
}

ST_INLINE void at_widen_tile(st_dtype dtype, const at_group *g, int first, int count)
{
    const char *next = (const char *)st_kv_row(g->kv, g->seq->block_table, first);
    for (int i = 0; i < count; i++) {
        const char *row = next;
        if (i + 1 < count) {
            next = (const char *)st_kv_row(g->kv, g->seq->block_table, first + i + 1);
            __builtin_prefetch(next);
        }
        at_widen_row(dtype, g->k + (size_t)i * g->k_ld, row, (size_t)g->k_first, g->shape->k_dim,
                     g->k_pad);
        if (g->v_first >= 0)
            at_widen_row(dtype, g->v + (size_t)i * g->v_ld, row, (size_t)g->v_first,
                         g->shape->v_dim, g->v_pad);
    }
    /* Scores are computed four keys at a time. */
    for (int i = count; i % 4 != 0; i++)
        memset(g->k + (size_t)i * g->k_ld, 0, (size_t)g->k_pad * sizeof(float));
}

/* s[i][0..4) for mr rows of q and four keys. */
ST_INLINE void at_score_tile(int mr, float *s, const float *q, const float *k, size_t ld, int n)
{
    vf acc[QK_ROWS][4];
    ST_UNROLL
    for (int i = 0; i < mr; i++)
        ST_UNROLL
    for (int j = 0; j < 4; j++)
        acc[i][j] = vf_zero();
    for (int d = 0; d < n; d += VL) {
        vf qv[QK_ROWS];
        ST_UNROLL
        for (int i = 0; i < mr; i++)
            qv[i] = vf_load(q + (size_t)i * ld + d);
        ST_UNROLL
        for (int j = 0; j < 4; j++) {
            vf kv = vf_load(k + (size_t)j * ld + d);
            ST_UNROLL
            for (int i = 0; i < mr; i++)
                acc[i][j] = vf_fma(qv[i], kv, acc[i][j]);
        }
    }
    ST_UNROLL
    for (int i = 0; i < mr; i++)
        _mm_storeu_ps(s + i * AT_KEYS, vf_sum4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]));
}

/* Scores of rows [r0, r1) against the tile's first count keys. */
static void at_scores(const at_group *g, int r0, int r1, int count)
{
    for (int r = r0; r < r1;) {
        const float *q = g->q + (size_t)r * g->k_ld;
        float *s = g->s + (size_t)r * AT_KEYS;
        bool full = r1 - r >= QK_ROWS;
        for (int j = 0; j < count; j += 4)
            if (full)
                at_score_tile(QK_ROWS, s + j, q, g->k + (size_t)j * g->k_ld, g->k_ld, g->k_pad);
            else
                at_score_tile(1, s + j, q, g->k + (size_t)j * g->k_ld, g->k_ld, g->k_pad);
        r += full ? QK_ROWS : 1;
    }
}

static void at_scale_row(float *o, int n, float by)
{
    for (int i = 0; i < n; i += VL)
        vf_store(o + i, vf_mul(vf_load(o + i), vf_set1(by)));
}

/* 2^x for an integer x <= 0 (or NaN): exact down to the smallest denormal, then 0. */
static float at_power(float x)
{
    if (x >= -126)
        return st_float_of_bits((uint32_t)((int)x + 127) << 23);
    return x >= -149 ? st_float_of_bits(1u << ((int)x + 149)) : x < -149 ? 0 : x;
}

/* Turns a row's scores into weights and brings its exponent, sum and O up to date. */
static void at_softmax_row(at_group *g, int r, int valid)
{
    float *s = g->s + (size_t)r * AT_KEYS;
    for (int j = valid; j < AT_KEYS; j++)
        s[j] = -INFINITY;
    vf max = vf_load(s);
    for (int j = VL; j < AT_KEYS; j += VL)
        max = vf_max(max, vf_load(s + j));
    float n = -rintf(vf_hmax(max) * g->c);
    if (g->n[r] <= n) {
        n = g->n[r];
    } else if (g->n[r] != INFINITY) {
        float by = at_power(n - g->n[r]);
        g->l[r] *= by;
        at_scale_row(g->o + (size_t)r * g->o_ld, g->v_pad, by);
    }
    g->n[r] = n;
    vf sum = vf_zero();
    for (int j = 0; j < AT_KEYS; j += VL) {
        vf p = vf_exp2(vf_fma(vf_load(s + j), vf_set1(g->c), vf_set1(n)));
        vf_store(s + j, p);
        sum = vf_add(sum, p);
    }
    g->l[r] += vf_sum(sum);
}

/* o[i][0..nv vectors) += p[i][key] * v[key] for keys [j0, j1). */
ST_INLINE void at_value_tile(int mr, int nv, float *o, size_t o_ld, const float *p, const float *v,
                             size_t v_ld, int j0, int j1)
{
    vf acc[PV_ROWS][PV_VECS];
    ST_UNROLL
    for (int i = 0; i < mr; i++)
        ST_UNROLL
    for (int d = 0; d < nv; d++)
        acc[i][d] = vf_load(o + (size_t)i * o_ld + d * VL);
    for (int j = j0; j < j1; j++) {
        vf vv[PV_VECS];
        ST_UNROLL
        for (int d = 0; d < nv; d++)
            vv[d] = vf_load(v + (size_t)j * v_ld + d * VL);
        ST_UNROLL
        for (int i = 0; i < mr; i++) {
            vf w = vf_set1(p[i * AT_KEYS + j]);
            ST_UNROLL
            for (int d = 0; d < nv; d++)
                acc[i][d] = vf_fma(w, vv[d], acc[i][d]);
        }
    }
    ST_UNROLL
    for (int i = 0; i < mr; i++)
        ST_UNROLL
    for (int d = 0; d < nv; d++)
        vf_store(o + (size_t)i * o_ld + d * VL, acc[i][d]);
}

/* All of one strip of nv vectors of V: rows in tiles while they share keys, then one by one. */
ST_INLINE void at_value_strip(int nv, const at_group *g, const int *valid, int d)
{
    for (int r = 0; r < g->n_rows;) {
        float *o = g->o + (size_t)r * g->o_ld + d;
        const float *p = g->s + (size_t)r * AT_KEYS;
        int common = 0, rows = 1;
        if (g->n_rows - r >= PV_ROWS) {
            rows = PV_ROWS;
            common = valid[r];
            for (int i = 1; i < PV_ROWS; i++)
                common = valid[r + i] < common ? valid[r + i] : common;
            if (common > 0)
                at_value_tile(PV_ROWS, nv, o, g->o_ld, p, g->v + d, g->v_ld, 0, common);
        }
        for (int i = 0; i < rows; i++)
            if (valid[r + i] > common)
                at_value_tile(1, nv, o + (size_t)i * g->o_ld, g->o_ld, p + i * AT_KEYS, g->v + d,
                              g->v_ld, common, valid[r + i]);
        r += rows;
    }
}

static void at_values(const at_group *g, const int *valid)
{
    int d = 0;
    for (; d + PV_VECS * VL <= g->v_pad; d += PV_VECS * VL)
        at_value_strip(PV_VECS, g, valid, d);
    for (; d < g->v_pad; d += VL)
        at_value_strip(1, g, valid, d);
}

static void at_tile(at_group *g, int first)
{
    int valid[AT_ROWS], most = 0, r0 = g->n_rows;
    for (int r = g->n_rows - 1; r >= 0; r--) {
        int n = g->pos[r] - first + 1;
        valid[r] = n < 0 ? 0 : n > AT_KEYS ? AT_KEYS : n;
        most = valid[r] > most ? valid[r] : most;
        if (valid[r] > 0)
            r0 = r; /* positions rise with r: rows before r0 have no key here */
    }
    if (g->kv->dtype == ST_BF16)
        at_widen_tile(ST_BF16, g, first, most);
    else
        at_widen_tile(ST_F32, g, first, most);
    at_scores(g, r0, g->n_rows, most);
    for (int r = r0; r < g->n_rows; r++)
        at_softmax_row(g, r, valid[r]);
    at_values(g, valid);
}

/* ---- segments ---- */

/* Leaves the segment's result in o, n and l. */
static void at_segment(at_group *g, int segment)
{
    int first = segment * ST_ATTN_SEGMENT, last = g->pos[g->n_rows - 1];
    if (last >= first + ST_ATTN_SEGMENT)
        last = first + ST_ATTN_SEGMENT - 1;
    for (int r = 0; r < g->n_rows; r++) {
        g->n[r] = INFINITY;
        g->l[r] = 0;
        memset(g->o + (size_t)r * g->o_ld, 0, (size_t)g->v_pad * sizeof(float));
    }
    for (int p = first; p <= last; p += AT_KEYS)
        at_tile(g, p);
}

/* Adds a part (exponent n, sum l, values o) to a total. */
static void at_merge(float *total, float *n_total, float *l_total, const float *o, float n, float l,
                     int dim)
{
    float joint = *n_total <= n ? *n_total : n;
    float a = at_power(joint - *n_total), b = at_power(joint - n);
    *l_total = *l_total * a + l * b;
    *n_total = joint;
    for (int i = 0; i < dim; i += VL) {
        int count = dim - i < VL ? dim - i : VL;
        vf t = vf_mul(vf_load_n(total + i, count), vf_set1(a));
        vf_store_n(total + i, vf_fma(vf_load_n(o + i, count), vf_set1(b), t), count);
    }
}

static void at_finish(float *out, const float *total, float l, int dim)
{
    vf by = vf_set1(1.0f / l);
    for (int i = 0; i < dim; i += VL) {
        int count = dim - i < VL ? dim - i : VL;
        vf_store_n(out + i, vf_mul(vf_load_n(total + i, count), by), count);
    }
}

/* All segments of a group, then its rows of out, which out_row lists. */
static void at_run(at_group *g, float *out, const size_t *out_row)
{
    int dim = g->shape->v_dim;
    int segments = g->pos[g->n_rows - 1] / ST_ATTN_SEGMENT + 1;
    for (int i = 0; i < segments; i++) {
        at_segment(g, i);
        for (int r = 0; r < g->n_rows; r++) {
            float *total = g->total + (size_t)r * g->o_ld;
            const float *o = g->o + (size_t)r * g->o_ld;
            if (i == 0) {
                memcpy(total, o, (size_t)dim * sizeof *o);
                g->n_total[r] = g->n[r];
                g->l_total[r] = g->l[r];
            } else if (g->pos[r] >= i * ST_ATTN_SEGMENT) {
                at_merge(total, &g->n_total[r], &g->l_total[r], o, g->n[r], g->l[r], dim);
            }
        }
    }
    for (int r = 0; r < g->n_rows; r++)
        at_finish(out + out_row[r] * (size_t)dim, g->total + (size_t)r * g->o_ld, g->l_total[r],
                  dim);
}

/* Queries [q0, q1) x heads [h0, h1) that share one K/V, in groups of AT_ROWS rows. */
static void at_attend(bool mla, float *out, const float *q, const st_attn_shape *shape,
                      const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1, int h0, int h1,
                      int kv_head, float *scratch)
{
    at_group g;
    size_t out_row[AT_ROWS];
    at_init(&g, mla, shape, kv, seq, kv_head, scratch);
    g.n_rows = 0;
    for (int i = q0; i < q1; i++)
        for (int h = h0; h < h1; h++) {
            out_row[g.n_rows] = at_row(&g, i, h);
            at_add_row(&g, q, i, h);
            if (g.n_rows == AT_ROWS || (i == q1 - 1 && h == h1 - 1)) {
                at_run(&g, out, out_row);
                g.n_rows = 0;
            }
        }
}

static void st_simd_attention_mla(float *out, const float *q, const st_attn_shape *shape,
                                  const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1,
                                  int h0, int h1, void *scratch)
{
    at_attend(true, out, q, shape, kv, seq, q0, q1, h0, h1, 0, scratch);
}

static void st_simd_attention_gqa(float *out, const float *q, const st_attn_shape *shape,
                                  const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1,
                                  int h0, int h1, void *scratch)
{
    int group = shape->n_heads / shape->n_kv_heads;
    for (int h = h0; h < h1;) {
        int end = (h / group + 1) * group < h1 ? (h / group + 1) * group : h1;
        at_attend(false, out, q, shape, kv, seq, q0, q1, h, end, h / group, scratch);
        h = end;
    }
}

/* ---- the two-step form ---- */

static void at_store_parts(const at_group *g, float **part)
{
    int dim = g->shape->v_dim;
    for (int r = 0; r < g->n_rows; r++) {
        memcpy(*part, g->o + (size_t)r * g->o_ld, (size_t)dim * sizeof(float));
        (*part)[dim] = g->n[r];
        (*part)[dim + 1] = g->l[r];
        *part += dim + ST_ATTN_PART_EXTRA;
    }
}

/* Heads [h0, h1) belong to one KV head. */
static void st_simd_attention_part(float *part, bool mla, const float *q,
                                   const st_attn_shape *shape, const st_kv_layer *kv,
                                   const st_attn_seq *seq, int q0, int q1, int h0, int h1,
                                   int segment, void *scratch)
{
    at_group g;
    at_init(&g, mla, shape, kv, seq, mla ? 0 : h0 / (shape->n_heads / shape->n_kv_heads), scratch);
    g.n_rows = 0;
    for (int i = q0; i < q1; i++)
        for (int h = h0; h < h1; h++) {
            at_add_row(&g, q, i, h);
            if (g.n_rows == AT_ROWS || (i == q1 - 1 && h == h1 - 1)) {
                at_segment(&g, segment);
                at_store_parts(&g, &part);
                g.n_rows = 0;
            }
        }
}

static void st_simd_attention_merge(float *out, const float *parts, size_t stride, int n, int v_dim)
{
    /* The first part becomes the total, in out itself. */
    memcpy(out, parts, (size_t)v_dim * sizeof *out);
    float exponent = parts[v_dim], l = parts[v_dim + 1];
    for (int i = 1; i < n; i++) {
        const float *p = parts + (size_t)i * stride;
        at_merge(out, &exponent, &l, p, p[v_dim], p[v_dim + 1], v_dim);
    }
    at_finish(out, out, l, v_dim);
}
