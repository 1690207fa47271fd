/* Attention of every table: against a two-pass softmax in float64 on the same (rounded) inputs,
 * the hazards of a running maximum, and the promise that a query's bits depend on its own keys
 * alone. */
#include "kernel_test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/float_bits.h"
#include "kernels/kv_rows.h"
#include "kernels/ops.h"

/* One sequence in shuffled paged memory. */
typedef struct paged {
    st_attn_shape shape;
    bool mla;
    int len; /* positions with keys */
    st_kv_layer kv;
    kt_buf memory;
    int32_t *table;
    int row_elems;
} paged;

static int row_elems(bool mla, const st_attn_shape *s)
{
    return mla ? s->k_dim : s->n_kv_heads * (s->k_dim + s->v_dim);
}

/* Unused rows hold NaN: a kernel that reads one and uses it shows. */
static paged paged_new(bool mla, const st_attn_shape *shape, int len, int block_size,
                       st_dtype dtype)
{
    paged p = {.shape = *shape, .mla = mla, .len = len};
    p.row_elems = row_elems(mla, shape);
    int blocks = (len + block_size - 1) / block_size;
    size_t elem = st_dtype_size(dtype);
    p.kv.block_size = block_size;
    p.kv.dtype = dtype;
    p.kv.row_stride = (size_t)p.row_elems * elem;
    p.kv.block_stride = (size_t)block_size * p.kv.row_stride + elem; /* odd on purpose */
    p.memory = kt_new((size_t)blocks * p.kv.block_stride / elem, elem);
    memset(p.memory.p, 0xff, p.memory.bytes);
    p.kv.base = p.memory.p;
    p.table = malloc(((size_t)blocks + 1) * sizeof *p.table);
    assert_non_null(p.table);
    for (int i = 0; i < blocks; i++)
        p.table[i] = i;
    for (int i = blocks - 1; i > 0; i--) {
        int j = kt_int(0, i), t = p.table[i];
        p.table[i] = p.table[j];
        p.table[j] = t;
    }
    return p;
}

static void paged_free(paged *p)
{
    kt_free(&p->memory);
    free(p->table);
}

static void put(paged *p, int pos, int i, float f)
{
    unsigned char *row = (unsigned char *)st_kv_row(&p->kv, p->table, pos);
    if (p->kv.dtype == ST_F32) {
        memcpy(row + (size_t)i * 4, &f, 4);
    } else {
        uint16_t h = st_f32_to_bf16(f);
        memcpy(row + (size_t)i * 2, &h, 2);
    }
}

static double get(const paged *p, int pos, int i)
{
    const unsigned char *row = st_kv_row(&p->kv, p->table, pos);
    float f;
    uint16_t h;
    if (p->kv.dtype == ST_F32) {
        memcpy(&f, row + (size_t)i * 4, 4);
        return f;
    }
    memcpy(&h, row + (size_t)i * 2, 2);
    return st_bf16_to_f32(h);
}

static void fill_random(paged *p)
{
    for (int pos = 0; pos < p->len; pos++)
        for (int i = 0; i < p->row_elems; i++)
            put(p, pos, i, kt_normal());
}

/* The same KV in another block size. */
static paged repaged(const paged *p, int block_size)
{
    paged r = paged_new(p->mla, &p->shape, p->len, block_size, p->kv.dtype);
    for (int pos = 0; pos < p->len; pos++)
        memcpy((unsigned char *)st_kv_row(&r.kv, r.table, pos), st_kv_row(&p->kv, p->table, pos),
               p->kv.row_stride);
    return r;
}

static void run(const st_kernels *t, const paged *p, float *out, const float *q, st_attn_seq seq,
                int q0, int q1, int h0, int h1)
{
    void *scratch = aligned_alloc(64, (t->attn_scratch(&p->shape) + 63) & ~(size_t)63);
    assert_non_null(scratch);
    seq.block_table = p->table;
    (p->mla ? t->attention_mla : t->attention_gqa)(out, q, &p->shape, &p->kv, &seq, q0, q1, h0, h1,
                                                   scratch);
    free(scratch);
}

/* Float64, two passes. */
static void oracle(const paged *p, const float *q, int pos, int head, double *out)
{
    const st_attn_shape *s = &p->shape;
    int kv_head = p->mla ? 0 : head / (s->n_heads / s->n_kv_heads);
    int k0 = kv_head * s->k_dim;
    int v0 = p->mla ? 0 : s->n_kv_heads * s->k_dim + kv_head * s->v_dim;
    double *e = malloc(((size_t)pos + 1) * sizeof *e), max = -INFINITY, sum = 0;
    assert_non_null(e);
    for (int j = 0; j <= pos; j++) {
        e[j] = 0;
        for (int i = 0; i < s->k_dim; i++)
            e[j] += q[i] * get(p, j, k0 + i);
        e[j] *= s->scale;
        max = e[j] > max ? e[j] : max;
    }
    memset(out, 0, (size_t)s->v_dim * sizeof *out);
    for (int j = 0; j <= pos; j++) {
        double w = exp(e[j] - max);
        sum += w;
        for (int i = 0; i < s->v_dim; i++)
            out[i] += w * get(p, j, v0 + i);
    }
    for (int i = 0; i < s->v_dim; i++)
        out[i] /= sum;
    free(e);
}

/* The last n_q queries of the sequence, all heads, of every table against the oracle. */
static void check_against_oracle(const paged *p, const float *q, int n_q, double limit)
{
    const st_attn_shape *s = &p->shape;
    size_t n = (size_t)n_q * (size_t)s->n_heads * (size_t)s->v_dim;
    double *want = malloc(n * sizeof *want);
    assert_non_null(want);
    st_attn_seq seq = {.q_row = 0, .n_q = n_q, .pos0 = p->len - n_q};
    for (int i = 0; i < n_q; i++)
        for (int h = 0; h < s->n_heads; h++) {
            size_t r = (size_t)i * (size_t)s->n_heads + (size_t)h;
            oracle(p, q + r * (size_t)s->k_dim, seq.pos0 + i, h, want + r * (size_t)s->v_dim);
        }
    for (int t = 0; t < kt_n_tables; t++) {
        kt_buf out = kt_new(n, sizeof(float));
        run(kt_tables[t], p, out.p, q, seq, 0, n_q, 0, s->n_heads);
        double e = kt_rel_error(out.p, want, n);
        if (!(e <= limit))
            fail_msg("%s %s: %d heads, k %d v %d, %d keys, %d queries: relative error %g > %g",
                     kt_tables[t]->name, p->mla ? "mla" : "gqa", s->n_heads, s->k_dim, s->v_dim,
                     p->len, n_q, e, limit);
        kt_free(&out);
    }
    free(want);
}

static const struct {
    bool mla;
    st_attn_shape shape;
} shapes[] = {
    {true, {8, 1, 80, 64, 0.144f}},   {true, {5, 1, 27, 19, 0.2f}},
    {true, {16, 1, 576, 512, 0.07f}}, {true, {40, 1, 70, 33, 0.1f}},
    {false, {6, 2, 64, 64, 0.125f}},  {false, {4, 4, 33, 33, 0.2f}},
    {false, {16, 1, 128, 128, 0.1f}}, {false, {35, 1, 16, 16, 0.3f}},
    {false, {16, 2, 33, 33, 0.2f}},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };
static const int lengths[] = {1, 2, 63, 64, 65, 130, 511, 513, 1023, 1025, 2300};

static void matches_float64(void **state)
{
    for (int s = 0; s < N_SHAPES; s++)
        for (int l = 0; l < (int)(sizeof lengths / sizeof *lengths); l++) {
            if (lengths[l] > (kt_slow ? 65 : 600) && s == 2)
                continue; /* slow, and nothing new */
            if (lengths[l] > 600 && kt_slow)
                continue;
            int n_q = kt_int(1, lengths[l] < 5 ? lengths[l] : 5);
            paged p = paged_new(shapes[s].mla, &shapes[s].shape, lengths[l], kt_int(1, 40),
                                kt_int(0, 1) ? ST_BF16 : ST_F32);
            fill_random(&p);
            kt_buf qb;
            float *q =
                kt_floats(&qb, (size_t)n_q * (size_t)p.shape.n_heads * (size_t)p.shape.k_dim);
            check_against_oracle(&p, q, n_q, 1e-5);
            kt_free(&qb);
            paged_free(&p);
        }
}

/* ---- hazards of the running maximum: q is all ones, so a key's score is set directly ---- */

static void score_key(paged *p, int pos, float score)
{
    for (int i = 0; i < p->shape.k_dim; i++)
        put(p, pos, i, i == 0 ? score : 0);
}

typedef float score_fn(int pos, int len);
static float rising(int pos, int len)
{
    return (float)pos;
}
static float falling(int pos, int len)
{
    return (float)(len - pos);
}
static float steep(int pos, int len)
{
    return (float)(pos / 64) * 40.0f; /* beyond 2^-30 at every tile */
}
static float cliff(int pos, int len)
{
    return pos < len / 2 ? -5000.0f : 5000.0f; /* beyond 2^-126: earlier keys vanish */
}
static float huge_scores(int pos, int len)
{
    return 1e4f + (float)(pos % 7);
}
static float very_negative(int pos, int len)
{
    return -1e4f - (float)(pos % 7);
}
static float equal(int pos, int len)
{
    return 0;
}

static void hazards_of_the_running_maximum(void **state)
{
    static score_fn *const fns[] = {rising,      falling,       steep, cliff,
                                    huge_scores, very_negative, equal};
    for (size_t f = 0; f < sizeof fns / sizeof *fns; f++)
        for (int len = 100; len < (kt_slow ? 1400 : 3000); len += 1250) {
            /* Many heads that share keys have kernels of their own, and so have eight. */
            static const int counts[] = {4, 8, 17};
            int heads = counts[((size_t)len + f) % 3];
            st_attn_shape shape = {heads, 1, 24, 24, 1.0f};
            paged p = paged_new(false, &shape, len, 16, ST_F32);
            fill_random(&p);
            for (int pos = 0; pos < len; pos++)
                score_key(&p, pos, fns[f](pos, len));
            kt_buf qb;
            float *q = kt_floats(&qb, 3 * (size_t)heads * 24);
            for (int i = 0; i < 3 * heads * 24; i++)
                q[i] = 1;
            check_against_oracle(&p, q, 3, 1e-5);
            kt_free(&qb);
            paged_free(&p);
        }
}

/* V columns of exact zeros that turn non-zero after a rise of the maximum, denormals, -0. */
static void zero_and_denormal_values(void **state)
{
    static const int counts[] = {4, 8, 20, 36};
    for (int c = 0; c < 4; c++) {
        int heads = counts[c];
        st_attn_shape shape = {heads, 1, 24, 24, 1.0f};
        paged p = paged_new(false, &shape, 400, 16, ST_F32);
        fill_random(&p);
        for (int pos = 0; pos < 400; pos++) {
            score_key(&p, pos, (float)(pos / 64) * 9);
            for (int i = 0; i < 12; i++)
                put(&p, pos, 24 + i, pos < 200 ? (i % 2 ? -0.0f : 0.0f) : (float)i);
            for (int i = 12; i < 24; i++)
                put(&p, pos, 24 + i, 1e-41f * (float)(i - 18));
        }
        kt_buf qb;
        float *q = kt_floats(&qb, (size_t)heads * 24);
        for (int i = 0; i < heads * 24; i++)
            q[i] = 1;
        check_against_oracle(&p, q, 1, 1e-5);
        kt_free(&qb);
        paged_free(&p);
    }
}

static void a_nan_stays_with_its_queries(void **state)
{
    static const int chosen[] = {0, 3, 4, 6};
    for (int t = 0; t < kt_n_tables; t++)
        for (int c = 0; c < 4; c++) {
            int s = chosen[c];
            st_attn_shape shape = shapes[s].shape;
            paged p = paged_new(shapes[s].mla, &shape, 200, 16, ST_F32);
            fill_random(&p);
            put(&p, 195, 3, NAN); /* a key that only queries 195..199 see */
            size_t row = (size_t)shape.n_heads * (size_t)shape.v_dim;
            kt_buf qb, out = kt_new(10 * row, sizeof(float));
            float *q = kt_floats(&qb, 10 * (size_t)shape.n_heads * (size_t)shape.k_dim);
            st_attn_seq seq = {.n_q = 10, .pos0 = 190};
            run(kt_tables[t], &p, out.p, q, seq, 0, 10, 0, shape.n_heads);
            for (int i = 0; i < 10; i++) /* head 0 reads element 3 as K in both layouts */
                assert_true(isfinite(((float *)out.p)[(size_t)i * row]) == (190 + i < 195));
            kt_free(&qb);
            kt_free(&out);
            paged_free(&p);
        }
}

/* ---- the same bits ---- */

/* All of the last n_q queries at once, then in other ways: the bits must agree. Rows together are
 * rescaled when one of them is, alone only when they need it: skipping changes no bit. */
static void check_invariance(const st_kernels *t, int s, int len, int n_q, st_dtype dtype)
{
    paged p = paged_new(shapes[s].mla, &shapes[s].shape, len, 16, dtype);
    fill_random(&p);
    paged other = repaged(&p, 7);
    int heads = p.shape.n_heads;
    size_t row = (size_t)heads * (size_t)p.shape.v_dim;
    kt_buf qb, a = kt_new((size_t)n_q * row, sizeof(float)), b = kt_new((size_t)n_q * row, 4);
    float *q = kt_floats(&qb, (size_t)n_q * (size_t)heads * (size_t)p.shape.k_dim);
    st_attn_seq seq = {.n_q = n_q, .pos0 = len - n_q};
    run(t, &p, a.p, q, seq, 0, n_q, 0, heads);
    for (int i = 0; i < n_q; i++) { /* one query, one head at a time, other blocks */
        for (int h = 0; h < heads; h++) {
            st_attn_seq one = {.q_row = i, .n_q = 1, .pos0 = seq.pos0 + i};
            run(t, &other, b.p, q, one, 0, 1, h, h + 1);
        }
    }
    assert_memory_equal(a.p, b.p, a.bytes);
    memset(b.p, 0, b.bytes);
    for (int i = 0; i < n_q;) { /* chunks of random size */
        int n = kt_int(1, n_q - i);
        st_attn_seq chunk = {.q_row = i, .n_q = n, .pos0 = seq.pos0 + i};
        run(t, &other, b.p, q, chunk, 0, n, 0, heads);
        i += n;
    }
    assert_memory_equal(a.p, b.p, a.bytes);
    kt_free(&a);
    kt_free(&b);
    kt_free(&qb);
    paged_free(&other);
    paged_free(&p);
}

static void a_query_depends_on_its_own_keys_alone(void **state)
{
    for (int t = 0; t < kt_n_tables; t++)
        for (int s = 0; s < N_SHAPES; s++) {
            if (s == 2 && (t == 0 || kt_slow))
                continue;
            st_dtype dtype = kt_int(0, 1) ? ST_BF16 : ST_F32;
            check_invariance(kt_tables[t], s, 70, 13, dtype);
            if (t > 0 && s != 2 && (!kt_slow || s % 4 == 0))
                check_invariance(kt_tables[t], s, 1029, 7, dtype);
        }
}

/* The operator: several sequences, any thread count, split over segments or not. */
static void check_operator(const st_kernels *t, int s, int threads, bool long_context)
{
    st_attn_shape shape = shapes[s].shape;
    paged p = paged_new(shapes[s].mla, &shape, long_context ? 3400 : 150, 16, ST_BF16);
    fill_random(&p);
    const st_attn_seq seqs[] = {
        {.q_row = 0, .n_q = 1, .pos0 = p.len - 1, .block_table = p.table},
        {.q_row = 1, .n_q = 0, .pos0 = 5, .block_table = p.table},
        {.q_row = 1, .n_q = 7, .pos0 = 20, .block_table = p.table},
        {.q_row = 8, .n_q = 3, .pos0 = p.len * 3 / 5 + 6, .block_table = p.table}, /* about 2048 */
    };
    enum { ROWS = 11 };
    size_t row = (size_t)shape.n_heads * (size_t)shape.v_dim;
    kt_buf qb, want = kt_new(ROWS * row, sizeof(float)), got = kt_new(ROWS * row, sizeof(float));
    float *q = kt_floats(&qb, ROWS * (size_t)shape.n_heads * (size_t)shape.k_dim);
    for (int i = 0; i < 4; i++)
        run(t, &p, want.p, q, seqs[i], 0, seqs[i].n_q, 0, shape.n_heads);
    st_pool *pool;
    st_ops *ops;
    assert_int_equal(st_pool_new(threads, false, &pool, NULL), ST_OK);
    assert_int_equal(st_ops_new(t, pool, &shape, &ops, NULL), ST_OK);
    st_op_attention(ops, p.mla, got.p, q, &shape, &p.kv, seqs, 4);
    assert_memory_equal(got.p, want.p, got.bytes);
    st_ops_free(ops);
    st_pool_free(pool);
    kt_free(&want);
    kt_free(&got);
    kt_free(&qb);
    paged_free(&p);
}

static void the_operator_gives_the_same_bits(void **state)
{
    for (int t = 0; t < kt_n_tables; t++)
        for (int s = 0; s < N_SHAPES; s += s == 4 ? 1 : 2)
            for (int threads = 1; threads <= 7; threads += threads == 2 ? 5 : 1)
                if (!kt_slow || (t > 0 && s != 2 && threads == 2))
                    check_operator(kt_tables[t], s, threads, t > 0 && s != 2);
}

int main(void)
{
    kt_start();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_float64),
        cmocka_unit_test(hazards_of_the_running_maximum),
        cmocka_unit_test(zero_and_denormal_values),
        cmocka_unit_test(a_nan_stays_with_its_queries),
        cmocka_unit_test(a_query_depends_on_its_own_keys_alone),
        cmocka_unit_test(the_operator_gives_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
