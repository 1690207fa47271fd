/* Kernel benchmarks: products through the threaded operators, each against the peak that bounds it.
 * Medians of several runs. Weights that are read from memory are larger than any cache: half of 64
 * MB lies in the last level's, and seems to come faster than memory gives. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench_time.h"
#include "kernels/ops.h"

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
    unsigned char *mem = st_bench_pages(bytes), *data;
    float *scale = st_bench_filled(rows * groups * sizeof *scale, true);
    data = st_bench_filled(n * sizeof(float), w->type == ST_WEIGHT_F32);
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

/* Columns of a matrix as large as memory's rate needs; less where that is not the question. */
static int columns_from_memory(const st_bench *b, const st_packed *w)
{
    size_t bytes = (size_t)(b->quick || b->peaks.read_all <= 0 ? 32 : 256) << 20;
    return (int)(bytes / b->k->pack_block_bytes(w)) * b->k->pack_cols;
}

/* n 0: as many columns as make the weights come from memory. */
static st_status bench_product(st_bench *b, const char *kind, int m, int n, int k,
                               st_weight_type type)
{
    st_status status = ST_ENOMEM;
    size_t mk = (size_t)m * (size_t)k, cols = (size_t)b->k->pack_cols;
    st_packed w = {.type = type, .k = k};
    w.group = type == ST_WEIGHT_I4 || type == ST_WEIGHT_F8 ? 128 : 0;
    w.n = n = n ? n : columns_from_memory(b, &w);
    size_t bytes = ((size_t)n + cols - 1) / cols * b->k->pack_block_bytes(&w);
    void *data = packed_blocks(b->k, &w, bytes);
    float *x = st_bench_filled(mk * 4, true), *y = malloc((size_t)m * (size_t)n * 4);
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
    status = add_product(b, kind, m, &w, bytes, st_bench_time(b, run_product, &p));
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

st_status st_bench_kernels(st_bench *b, st_error *err)
{
    st_bench_heading(&b->rows, "\nkernels");
    static const struct {
        const char *kind;
        int m, n, k;
        st_weight_type type;
    } products[] = {
        {"decode", 1, 0, 2048, ST_WEIGHT_F32},       {"decode", 1, 0, 2048, ST_WEIGHT_BF16},
        {"decode", 1, 0, 2048, ST_WEIGHT_F8},        {"decode", 1, 0, 2048, ST_WEIGHT_I8},
        {"decode", 1, 0, 7168, ST_WEIGHT_I8},        {"decode", 1, 0, 2048, ST_WEIGHT_I4},
        {"batch", 4, 0, 2048, ST_WEIGHT_I8},         {"batch", 8, 0, 2048, ST_WEIGHT_I8},
        {"batch", 16, 0, 2048, ST_WEIGHT_I8},        {"batch", 32, 0, 2048, ST_WEIGHT_I8},
        {"batch", 64, 0, 2048, ST_WEIGHT_I8},        {"batch", 16, 0, 2048, ST_WEIGHT_I4},
        {"prefill", 512, 2048, 2048, ST_WEIGHT_F32}, {"prefill", 512, 2048, 2048, ST_WEIGHT_BF16},
        {"prefill", 512, 2048, 2048, ST_WEIGHT_F8},  {"prefill", 256, 2048, 2048, ST_WEIGHT_I8},
        {"prefill", 256, 7168, 7168, ST_WEIGHT_I8},  {"prefill", 256, 2048, 2048, ST_WEIGHT_I4},
    };
    st_status s = ST_OK;
    for (size_t i = 0; i < sizeof products / sizeof *products && !s; i++)
        s = bench_product(b, products[i].kind, products[i].m, products[i].n, products[i].k,
                          products[i].type);
    return s ? st_fail(err, s, "no memory for the product benchmarks") : st_bench_attention(b, err);
}
