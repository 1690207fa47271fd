/* Kernel benchmarks: products and attention through the threaded operators, each against the peak
 * that bounds it. Medians of several runs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cli/bench.h"
#include "kernels/ops.h"

enum { MAX_RUNS = 31 };

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef void timed_fn(void *arg);

/* Median seconds of one call. */
static double time_call(const st_bench *b, timed_fn *fn, void *arg)
{
    double t[MAX_RUNS];
    uint64_t budget = b->quick ? 150000000u : 500000000u, begin = st_now_ns();
    int n = 0;
    fn(arg); /* pages, caches, clocks */
    while (n < MAX_RUNS && (n < 3 || st_now_ns() - begin < budget)) {
        uint64_t start = st_now_ns();
        fn(arg);
        t[n++] = (double)(st_now_ns() - start) * 1e-9;
    }
    qsort(t, (size_t)n, sizeof *t, by_value);
    return t[n / 2];
}

/* Bytes that are neither zero nor all alike, cheaply. */
static void *filled(size_t bytes, bool floats)
{
    unsigned char *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    uint32_t x = 12345;
    if (!p)
        return NULL;
    for (size_t i = 0; i + 4 <= bytes; i += 4) {
        x = x * 1664525u + 1013904223u;
        float f = (float)(int32_t)x * 0x1p-31f;
        memcpy(p + i, floats ? (void *)&f : (void *)&x, 4);
    }
    return p;
}

/* ---- products ---- */

typedef struct product {
    st_ops *ops;
    st_matmul_job job;
} product;

static void run_product(void *arg)
{
    product *p = arg;
    st_op_matmul(p->ops, &p->job, 1);
}

static st_status add_product(st_bench *b, const char *kind, int m, int n, int k, st_dtype dtype,
                             double seconds)
{
    char name[48], shape[64];
    double ops = 2.0 * m * n * k, bytes = (double)n * k * (double)st_dtype_size(dtype);
    snprintf(name, sizeof name, "matmul %s %s", st_dtype_name(dtype), kind);
    snprintf(shape, sizeof shape, "m %d, n %d, k %d", m, n, k);
    if (m == 1)
        return st_bench_add(&b->rows, name, shape, bytes / seconds * 1e-9, "GB/s",
                            b->peaks.read_all);
    return st_bench_add(&b->rows, name, shape, ops / seconds * 1e-9,
                        dtype == ST_I8 ? "GOP/s" : "GFLOP/s",
                        dtype == ST_I8 ? b->peaks.i8_all : b->peaks.float_all);
}

static st_status bench_product(st_bench *b, const char *kind, int m, int n, int k, st_dtype dtype)
{
    st_status status = ST_ENOMEM;
    size_t mk = (size_t)m * (size_t)k, nk = (size_t)n * (size_t)k;
    float *x = filled(mk * 4, true), *y = malloc((size_t)m * (size_t)n * 4);
    float *scale = filled((size_t)n * 4, true), *x_scale = filled((size_t)m * 4, true);
    int8_t *q = malloc(mk);
    int32_t *sums = calloc((size_t)n, sizeof *sums);
    void *data = filled(nk * st_dtype_size(dtype), dtype == ST_F32);
    product p = {NULL, {.y = y, .ldy = (size_t)n}};
    if (!x || !y || !scale || !x_scale || !q || !sums || !data ||
        st_ops_new(b->k, b->pool, NULL, &p.ops, NULL))
        goto done;
    st_matrix w = {dtype, n, k, data, scale, sums};
    p.job.row_major = &w;
    p.job.a = (st_act){.x = x, .ld = (size_t)k, .q = q, .scale = x_scale, .m = m, .k = k};
    b->k->quantize_rows(q, (size_t)k, x_scale, x, (size_t)k, m, k);
    status = add_product(b, kind, m, n, k, dtype, time_call(b, run_product, &p));
done:
    st_ops_free(p.ops);
    free(data);
    free(sums);
    free(q);
    free(x_scale);
    free(scale);
    free(y);
    free(x);
    return status;
}

/* ---- attention ---- */

typedef struct attention {
    st_ops *ops;
    bool mla;
    float *out, *q;
    st_attn_shape shape;
    st_kv_layer kv;
    st_attn_seq seq;
} attention;

static void run_attention(void *arg)
{
    attention *a = arg;
    st_op_attention(a->ops, a->mla, a->out, a->q, &a->shape, &a->kv, &a->seq, 1);
}

static st_status add_attention(st_bench *b, const attention *a, double seconds)
{
    char shape[64];
    double pairs = (double)a->seq.n_q * (a->seq.pos0 + (a->seq.n_q + 1) / 2.0);
    double ops = 2 * pairs * a->shape.n_heads * (a->shape.k_dim + a->shape.v_dim);
    snprintf(shape, sizeof shape, "%d heads, %d keys, %d %s", a->shape.n_heads,
             a->seq.pos0 + a->seq.n_q, a->seq.n_q, a->seq.n_q == 1 ? "query" : "queries");
    return st_bench_add(&b->rows, a->mla ? "attention MLA BF16" : "attention GQA BF16", shape,
                        ops / seconds * 1e-9, "GFLOP/s", b->peaks.float_all);
}

static st_status bench_attention(st_bench *b, bool mla, st_attn_shape shape, int keys, int queries)
{
    enum { BLOCK = 16 };
    st_status status = ST_ENOMEM;
    int blocks = (keys + BLOCK - 1) / BLOCK;
    size_t elems = (size_t)(mla ? shape.k_dim : 2 * shape.n_kv_heads * shape.k_dim);
    size_t rows = (size_t)queries * (size_t)shape.n_heads;
    attention a = {.mla = mla, .shape = shape};
    unsigned char *kv = malloc((size_t)blocks * BLOCK * elems * 2);
    int32_t *table = malloc((size_t)blocks * sizeof *table);
    a.q = filled(rows * (size_t)shape.k_dim * 4, true);
    a.out = malloc(rows * (size_t)shape.v_dim * 4);
    if (!kv || !table || !a.q || !a.out || st_ops_new(b->k, b->pool, &shape, &a.ops, NULL))
        goto done;
    for (int i = 0; i < blocks; i++)
        table[i] = i;
    for (size_t i = 0; i < (size_t)blocks * BLOCK * elems; i++) {
        uint16_t h = (uint16_t)(0x3c00 + i * 7919 % 0x380 + (i % 2) * 0x8000);
        memcpy(kv + 2 * i, &h, 2);
    }
    a.kv = (st_kv_layer){kv, BLOCK * elems * 2, elems * 2, BLOCK, ST_BF16};
    a.seq = (st_attn_seq){0, queries, keys - queries, table};
    status = add_attention(b, &a, time_call(b, run_attention, &a));
done:
    st_ops_free(a.ops);
    free(a.out);
    free(a.q);
    free(table);
    free(kv);
    return status;
}

st_status st_bench_kernels(st_bench *b, st_error *err)
{
    st_bench_heading(&b->rows, "\nkernels");
    static const struct {
        const char *kind;
        int m, n, k;
        st_dtype dtype;
    } products[] = {
        {"decode", 1, 8192, 2048, ST_F32},     {"decode", 1, 16384, 2048, ST_BF16},
        {"decode", 1, 32768, 2048, ST_I8},     {"decode", 1, 9216, 7168, ST_I8},
        {"batch", 8, 32768, 2048, ST_I8},      {"prefill", 512, 2048, 2048, ST_F32},
        {"prefill", 512, 2048, 2048, ST_BF16}, {"prefill", 512, 2048, 2048, ST_I8},
        {"prefill", 512, 2048, 7168, ST_I8},
    };
    st_status s = ST_OK;
    for (size_t i = 0; i < sizeof products / sizeof *products && !s; i++)
        s = bench_product(b, products[i].kind, products[i].m, products[i].n, products[i].k,
                          products[i].dtype);
    static const struct {
        bool mla;
        st_attn_shape shape;
        int keys, queries;
    } attentions[] = {
        {true, {128, 1, 576, 512, 0.1f}, 4096, 1},   {true, {16, 1, 576, 512, 0.1f}, 4096, 1},
        {true, {16, 1, 576, 512, 0.1f}, 1024, 256},  {false, {32, 4, 128, 128, 0.1f}, 4096, 1},
        {false, {32, 4, 128, 128, 0.1f}, 1024, 256},
    };
    for (size_t i = 0; i < sizeof attentions / sizeof *attentions && !s; i++)
        s = bench_attention(b, attentions[i].mla, attentions[i].shape, attentions[i].keys,
                            attentions[i].queries);
    return s ? st_fail(err, s, "no memory for the kernel benchmarks") : ST_OK;
}
