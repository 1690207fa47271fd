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

static const char *const type_names[ST_WEIGHT_TYPE_COUNT] = {
    [ST_WEIGHT_F32] = "F32", [ST_WEIGHT_F16] = "F16", [ST_WEIGHT_BF16] = "BF16",
    [ST_WEIGHT_F8] = "F8",   [ST_WEIGHT_I8] = "I8",   [ST_WEIGHT_I4] = "I4",
};

/* The bound is what memory gives or what the arithmetic takes, whichever is longer. */
static st_status add_product(st_bench *b, const char *kind, int m, const st_packed *w, size_t bytes,
                             double seconds)
{
    char name[48], shape[64];
    bool int8 = st_weight_takes_int8(w->type);
    double ops = 2.0 * m * w->n * w->k, peak = int8 ? b->peaks.i8_all : b->peaks.float_all;
    snprintf(name, sizeof name, "matmul %s %s", type_names[w->type], kind);
    snprintf(shape, sizeof shape, "m %d, n %d, k %d", m, w->n, w->k);
    if ((double)bytes * peak > ops * b->peaks.read_all)
        return st_bench_add(&b->rows, name, shape, (double)bytes / seconds * 1e-9, "GB/s",
                            b->peaks.read_all);
    return st_bench_add(&b->rows, name, shape, ops / seconds * 1e-9, int8 ? "GOP/s" : "GFLOP/s",
                        peak);
}

/* Packed weights of one block's values over and over; NULL without memory. */
static void *packed_blocks(const st_kernels *k, const st_packed *w, size_t bytes)
{
    size_t block = k->pack_block_bytes(w), rows = (size_t)k->pack_cols, n = rows * (size_t)w->k;
    size_t groups = (size_t)st_weight_groups(w->k, w->group);
    unsigned char *mem = aligned_alloc(64, (bytes + 63) / 64 * 64), *data;
    float *scale = filled(rows * groups * sizeof *scale, true);
    data = filled(n * sizeof(float), w->type == ST_WEIGHT_F32);
    for (size_t i = 0; data && i < n; i++) {
        if (w->type == ST_WEIGHT_I4)
            data[i] &= 15;
        else if (w->type == ST_WEIGHT_F8)
            data[i] &= 0xbf; /* no NaN */
        else if (w->type == ST_WEIGHT_F16 || w->type == ST_WEIGHT_BF16)
            data[2 * i + 1] = (unsigned char)(0x30 | (data[2 * i + 1] & 0x8f)); /* finite */
    }
    st_weight_rows all = {.type = w->type,
                          .n = k->pack_cols,
                          .k = w->k,
                          .group = w->group,
                          .data = data,
                          .scale = scale};
    if (mem && data && scale) {
        k->pack_block(mem, w, &all);
        for (size_t at = block; at < bytes; at += block)
            memcpy(mem + at, mem, block);
    }
    bool ok = mem && data && scale;
    free(scale);
    free(data);
    if (ok)
        return mem;
    free(mem);
    return NULL;
}

static st_status bench_product(st_bench *b, const char *kind, int m, int n, int k,
                               st_weight_type type)
{
    st_status status = ST_ENOMEM;
    size_t mk = (size_t)m * (size_t)k, cols = (size_t)b->k->pack_cols;
    st_packed w = {.type = type, .n = n, .k = k};
    w.group = type == ST_WEIGHT_I4 || type == ST_WEIGHT_F8 ? 128 : 0;
    size_t bytes = ((size_t)n + cols - 1) / cols * b->k->pack_block_bytes(&w);
    void *data = packed_blocks(b->k, &w, bytes);
    float *x = filled(mk * 4, true), *y = malloc((size_t)m * (size_t)n * 4);
    st_act a = {.x = x, .ld = (size_t)k, .ldq = st_act_ldq(k), .m = m, .k = k};
    a.q = malloc((size_t)m * a.ldq);
    a.scale = malloc((size_t)m * sizeof *a.scale);
    a.sum = malloc((size_t)m * st_act_sums(k) * sizeof *a.sum);
    product p = {NULL, {.w = &w, .y = y, .ldy = (size_t)n}};
    if (!x || !y || !a.q || !a.scale || !a.sum || !data ||
        st_ops_new(b->k, b->pool, NULL, &p.ops, NULL))
        goto done;
    w.data = data;
    b->k->quantize(&a);
    p.job.a = a;
    status = add_product(b, kind, m, &w, bytes, time_call(b, run_product, &p));
done:
    st_ops_free(p.ops);
    free(a.sum);
    free(a.scale);
    free(a.q);
    free(y);
    free(x);
    free(data);
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
        st_weight_type type;
    } products[] = {
        {"decode", 1, 8192, 2048, ST_WEIGHT_F32},    {"decode", 1, 16384, 2048, ST_WEIGHT_BF16},
        {"decode", 1, 32768, 2048, ST_WEIGHT_F8},    {"decode", 1, 32768, 2048, ST_WEIGHT_I8},
        {"decode", 1, 9216, 7168, ST_WEIGHT_I8},     {"decode", 1, 65536, 2048, ST_WEIGHT_I4},
        {"batch", 4, 32768, 2048, ST_WEIGHT_I8},     {"batch", 8, 32768, 2048, ST_WEIGHT_I8},
        {"batch", 16, 32768, 2048, ST_WEIGHT_I8},    {"batch", 32, 32768, 2048, ST_WEIGHT_I8},
        {"batch", 64, 32768, 2048, ST_WEIGHT_I8},    {"batch", 16, 65536, 2048, ST_WEIGHT_I4},
        {"prefill", 512, 2048, 2048, ST_WEIGHT_F32}, {"prefill", 512, 2048, 2048, ST_WEIGHT_BF16},
        {"prefill", 512, 2048, 2048, ST_WEIGHT_F8},  {"prefill", 256, 2048, 2048, ST_WEIGHT_I8},
        {"prefill", 256, 7168, 7168, ST_WEIGHT_I8},  {"prefill", 256, 2048, 2048, ST_WEIGHT_I4},
    };
    st_status s = ST_OK;
    for (size_t i = 0; i < sizeof products / sizeof *products && !s; i++)
        s = bench_product(b, products[i].kind, products[i].m, products[i].n, products[i].k,
                          products[i].type);
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
