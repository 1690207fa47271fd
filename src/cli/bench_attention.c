/* Attention benchmarks: generated tokens over long contexts and chunks of a prompt, each against
 * the peak of float32 multiply-adds. INT8 rows are computed with integers in part: above 100%. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench_time.h"
#include "kernels/ops.h"
#include "starling/kv_row.h"

enum { BLOCK = 16, MAX_SEQS = 8 };

typedef struct attention_case {
    bool mla;
    int heads, kv_heads, k_dim, v_dim;
    int keys, queries, seqs;
    bool one_thread;
} attention_case;

typedef struct attention {
    st_ops *ops;
    const attention_case *c;
    st_attn_shape shape;
    float *out, *q;
    int32_t *table;
    st_kv_layer kv;
    st_attn_seq seqs[MAX_SEQS];
} attention;

static void run_attention(void *arg)
{
    attention *a = arg;
    st_op_attention(a->ops, a->c->mla, a->out, a->q, &a->shape, &a->kv, a->seqs, a->c->seqs);
}

/* Every sequence has rows of its own: blocks of all of them follow each other. */
static bool fill(attention *a, const st_kernels *k, st_dtype dtype)
{
    const attention_case *c = a->c;
    st_kv_row_shape row = {1, c->v_dim, c->k_dim - c->v_dim};
    if (!c->mla)
        row = (st_kv_row_shape){2 * c->kv_heads, c->k_dim, 0};
    size_t elems = (size_t)st_kv_row_elems(row);
    size_t stride = dtype == ST_I8 ? st_kv_i8_row_bytes(row) : 2 * elems;
    size_t each = (size_t)(c->keys + BLOCK - 1) / BLOCK, blocks = each * (size_t)c->seqs;
    size_t queries = (size_t)c->queries * (size_t)c->seqs * (size_t)c->heads;
    enum { VARIETY = 97 };
    float *x = st_bench_filled(VARIETY * elems * sizeof *x, true);
    unsigned char *kv = st_bench_pages(blocks * BLOCK * stride);
    a->kv = (st_kv_layer){kv, BLOCK * stride, stride, BLOCK, dtype};
    a->table = malloc(blocks * sizeof *a->table);
    a->q = st_bench_filled(queries * (size_t)c->k_dim * sizeof *a->q, true);
    a->out = malloc(queries * (size_t)c->v_dim * sizeof *a->out);
    bool ok = x && kv && a->table && a->q && a->out;
    for (size_t i = 0; ok && i < blocks * BLOCK; i++)
        if (dtype == ST_I8)
            k->kv_to_i8(kv + i * stride, x + i % VARIETY * elems, row);
        else
            k->to_bf16((uint16_t *)(void *)(kv + i * stride), x + i % VARIETY * elems, (int)elems);
    for (size_t i = 0; ok && i < blocks; i++)
        a->table[i] = (int32_t)i;
    for (int i = 0; ok && i < c->seqs; i++)
        a->seqs[i] = (st_attn_seq){.q_row = i * c->queries,
                                   .n_q = c->queries,
                                   .pos0 = c->keys - c->queries,
                                   .block_table = a->table + (size_t)i * each};
    free(x);
    return ok;
}

static st_status add_row(st_bench *b, const attention_case *c, st_dtype dtype, double seconds)
{
    char name[48], shape[64], several[16] = "";
    double pairs = (double)c->seqs * c->queries * (c->keys - (c->queries - 1) / 2.0);
    double ops = 2 * pairs * c->heads * (c->k_dim + c->v_dim);
    if (c->seqs > 1)
        snprintf(several, sizeof several, "%d x ", c->seqs);
    snprintf(name, sizeof name, "attention %s %s", c->mla ? "MLA" : "GQA", st_dtype_name(dtype));
    snprintf(shape, sizeof shape, "%d heads, %s%d keys, %d %s%s", c->heads, several, c->keys,
             c->queries, c->queries == 1 ? "query" : "queries", c->one_thread ? ", 1 thread" : "");
    return st_bench_add(&b->rows, name, shape, ops / seconds * 1e-9, "GFLOP/s",
                        c->one_thread ? b->peaks.float_one : b->peaks.float_all);
}

static st_status bench_case(st_bench *b, const attention_case *c, st_dtype dtype)
{
    attention a = {
        .c = c,
        .shape = {c->heads, c->kv_heads, c->k_dim, c->v_dim, 1.0f / sqrtf((float)c->k_dim)}};
    st_status status = ST_ENOMEM;
    if (fill(&a, b->k, dtype) &&
        !st_ops_new(b->k, c->one_thread ? NULL : b->pool, &a.shape, &a.ops, NULL))
        status = add_row(b, c, dtype, st_bench_time(b, run_attention, &a));
    st_ops_free(a.ops);
    free(a.out);
    free(a.q);
    free(a.table);
    free(a.kv.base);
    return status;
}

st_status st_bench_attention(st_bench *b, st_error *err)
{
    static const attention_case cases[] = {
        {true, 128, 1, 576, 512, 4096, 1, 1, true},    {true, 128, 1, 576, 512, 4096, 1, 1, false},
        {true, 16, 1, 576, 512, 4096, 1, 1, false},    {true, 16, 1, 576, 512, 16384, 1, 8, false},
        {true, 16, 1, 576, 512, 1024, 256, 1, false},  {false, 32, 4, 128, 128, 4096, 1, 1, false},
        {false, 32, 4, 128, 128, 1024, 256, 1, false},
    };
    static const st_dtype dtypes[] = {ST_BF16, ST_I8};
    st_status s = ST_OK;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int d = 0; d < 2 && !s; d++)
            s = bench_case(b, &cases[i], dtypes[d]);
    return s ? st_fail(err, s, "no memory for the attention benchmarks") : ST_OK;
}
