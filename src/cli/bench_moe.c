/* The expert part of an MoE layer: 64 experts of 1408 x 2048 in int8, six a token, far larger than
 * any cache, against the bound that memory (the weights of the experts that were chosen) and int8
 * arithmetic set together. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cli/bench_time.h"
#include "kernels/ops_experts.h"

enum {
    EXPERTS = 64,
    CHOSEN = 6,
    HIDDEN = 2048,
    WIDTH = 1408,
    MOST_TOKENS = 256,
    MOST_ROWS = MOST_TOKENS * CHOSEN,
    H_LD = WIDTH + 16 /* no power of two: rows side by side keep to their own cache sets */
};

typedef struct moe_bench {
    st_bench *b;
    st_ops *ops;
    void *weights;
    st_packed gate[EXPERTS], up[EXPERTS], down[EXPERTS];
    float *x, *h, *y, *scales;
    int8_t *q, *gathered_q, *h_q;
    int32_t *sums, *gathered_sums, *h_sums, *rows;
    st_act in;
    st_expert_job *jobs;
    int n_jobs;
    uint32_t random;
} moe_bench;

static uint32_t next_random(moe_bench *m)
{
    m->random = m->random * 1664525u + 1013904223u;
    return m->random >> 8;
}

/* ---- setting up ---- */

/* One block of random columns; the others are copies of it: what they hold changes no timing. */
static st_status pack(const st_kernels *k, st_packed *w, char *at, st_packed shape)
{
    size_t block = k->pack_block_bytes(&shape), elements = (size_t)k->pack_cols * (size_t)shape.k;
    int8_t *values = malloc(elements);
    float *scale = malloc((size_t)k->pack_cols * sizeof *scale);
    st_status s = values && scale ? ST_OK : ST_ENOMEM;
    if (!s) {
        for (size_t i = 0; i < elements; i++)
            values[i] = (int8_t)(i * 2654435761u >> 13);
        for (int i = 0; i < k->pack_cols; i++)
            scale[i] = 1e-4f;
        st_weight_rows rows = {
            .type = ST_WEIGHT_I8, .n = k->pack_cols, .k = shape.k, .data = values, .scale = scale};
        k->pack_block(at, &shape, &rows);
        for (int32_t j = k->pack_cols; j < shape.n; j += k->pack_cols)
            memcpy(at + (size_t)(j / k->pack_cols) * block, at, block);
        *w = shape;
        w->data = at;
    }
    free(scale);
    free(values);
    return s;
}

static size_t packed_bytes(const st_kernels *k, const st_packed *shape)
{
    return k->pack_block_bytes(shape) * (size_t)((shape->n + k->pack_cols - 1) / k->pack_cols);
}

static const st_packed up_shape = {.type = ST_WEIGHT_I8, .n = WIDTH, .k = HIDDEN};
static const st_packed down_shape = {.type = ST_WEIGHT_I8, .n = HIDDEN, .k = WIDTH};

static st_status make_weights(moe_bench *m)
{
    const st_kernels *k = m->b->k;
    size_t up = packed_bytes(k, &up_shape), down = packed_bytes(k, &down_shape);
    char *at = m->weights = st_bench_pages((2 * up + down) * EXPERTS);
    st_status s = at ? ST_OK : ST_ENOMEM;
    for (int e = 0; e < EXPERTS && !s; e++, at += 2 * up + down)
        if (!(s = pack(k, &m->gate[e], at, up_shape)) &&
            !(s = pack(k, &m->up[e], at + up, up_shape)))
            s = pack(k, &m->down[e], at + 2 * up, down_shape);
    return s;
}

static st_status make_rows(moe_bench *m)
{
    size_t ldq = st_act_ldq(HIDDEN), h_ldq = st_act_ldq(WIDTH);
    m->x = aligned_alloc(64, sizeof(float) * MOST_TOKENS * HIDDEN);
    m->h = aligned_alloc(64, sizeof(float) * MOST_ROWS * H_LD);
    m->y = aligned_alloc(64, sizeof(float) * MOST_ROWS * HIDDEN);
    m->scales = calloc(MOST_TOKENS + 2 * MOST_ROWS, sizeof(float));
    m->q = aligned_alloc(64, MOST_TOKENS * ldq);
    m->gathered_q = aligned_alloc(64, MOST_ROWS * ldq);
    m->h_q = aligned_alloc(64, MOST_ROWS * h_ldq);
    m->sums = calloc(MOST_TOKENS * st_act_sums(HIDDEN), sizeof(int32_t));
    m->gathered_sums = calloc(MOST_ROWS * st_act_sums(HIDDEN), sizeof(int32_t));
    m->h_sums = calloc(MOST_ROWS * st_act_sums(WIDTH), sizeof(int32_t));
    m->rows = calloc(MOST_ROWS, sizeof(int32_t));
    m->jobs = aligned_alloc(64, EXPERTS * sizeof *m->jobs);
    if (!m->x || !m->h || !m->y || !m->scales || !m->q || !m->gathered_q || !m->h_q || !m->sums ||
        !m->gathered_sums || !m->h_sums || !m->rows || !m->jobs)
        return ST_ENOMEM;
    for (size_t i = 0; i < (size_t)MOST_TOKENS * HIDDEN; i++)
        m->x[i] = (float)(int32_t)next_random(m) * 0x1p-24f - 0.5f;
    m->in = (st_act){.x = m->x,
                     .ld = HIDDEN,
                     .q = m->q,
                     .ldq = ldq,
                     .scale = m->scales,
                     .sum = m->sums,
                     .m = MOST_TOKENS,
                     .k = HIDDEN};
    m->b->k->quantize(&m->in);
    return st_ops_new(m->b->k, m->b->pool, NULL, &m->ops, NULL);
}

static void free_all(moe_bench *m)
{
    st_ops_free(m->ops);
    free(m->jobs);
    free(m->rows);
    free(m->h_sums);
    free(m->gathered_sums);
    free(m->sums);
    free(m->h_q);
    free(m->gathered_q);
    free(m->q);
    free(m->scales);
    free(m->y);
    free(m->h);
    free(m->x);
    free(m->weights);
}

/* ---- measuring ---- */

static st_expert_job job_at(moe_bench *m, int e, size_t row, int32_t n)
{
    size_t ldq = st_act_ldq(HIDDEN), h_ldq = st_act_ldq(WIDTH);
    return (st_expert_job){.gate = &m->gate[e],
                           .up = &m->up[e],
                           .down = &m->down[e],
                           .in = &m->in,
                           .rows = m->rows + row,
                           .n = n,
                           .gathered = {.q = m->gathered_q + row * ldq,
                                        .ldq = ldq,
                                        .scale = m->scales + MOST_TOKENS + row,
                                        .sum = m->gathered_sums + row * st_act_sums(HIDDEN)},
                           .h = {.x = m->h + row * H_LD,
                                 .ld = H_LD,
                                 .q = m->h_q + row * h_ldq,
                                 .ldq = h_ldq,
                                 .scale = m->scales + MOST_TOKENS + MOST_ROWS + row,
                                 .sum = m->h_sums + row * st_act_sums(WIDTH)},
                           .y = m->y + row * HIDDEN,
                           .ldy = HIDDEN};
}

/* Each of `tokens` tokens chooses CHOSEN experts at random; each call others, so that caches do not
 * hold them. */
static void choose(moe_bench *m, int tokens)
{
    int32_t chosen[EXPERTS][MOST_TOKENS], count[EXPERTS] = {0};
    for (int t = 0; t < tokens; t++) {
        bool taken[EXPERTS] = {false};
        for (int i = 0; i < CHOSEN; i++) {
            uint32_t e;
            do
                e = next_random(m) % EXPERTS;
            while (taken[e]);
            taken[e] = true;
            chosen[e][count[e]++] = t;
        }
    }
    size_t row = 0;
    m->n_jobs = 0;
    for (int e = 0; e < EXPERTS; e++) {
        if (count[e] == 0)
            continue;
        memcpy(m->rows + row, chosen[e], (size_t)count[e] * sizeof(int32_t));
        m->jobs[m->n_jobs++] = job_at(m, e, row, count[e]);
        row += (size_t)count[e];
    }
}

/* The median of how far calls came towards their bounds; which bound counts depends on how many
 * experts a call's tokens chose. */
static st_status measure(moe_bench *m, int tokens)
{
    enum { CALLS = 25 };
    const st_bench *b = m->b;
    double ratio[CALLS], bytes = 0;
    double ops = 2.0 * 3 * tokens * CHOSEN * WIDTH * HIDDEN;
    double expert =
        2.0 * (double)packed_bytes(b->k, &up_shape) + (double)packed_bytes(b->k, &down_shape);
    int calls = b->quick ? 7 : CALLS;
    for (int i = -1; i < calls; i++) { /* the first brings pages and clocks */
        choose(m, tokens);
        uint64_t start = st_now_ns();
        st_op_experts(m->ops, m->jobs, m->n_jobs);
        double t = (double)(st_now_ns() - start) * 1e-9;
        if (i < 0)
            continue;
        double read = expert * m->n_jobs, memory = read / (b->peaks.read_all * 1e9);
        double arithmetic = ops / (b->peaks.i8_all * 1e9);
        ratio[i] = (memory > arithmetic ? memory : arithmetic) / t;
        bytes += read;
    }
    char shape[64];
    snprintf(shape, sizeof shape, "%d experts of %dx%d, top-%d, M %d", EXPERTS, WIDTH, HIDDEN,
             CHOSEN, tokens);
    bool reads = bytes / b->peaks.read_all > ops * calls / b->peaks.i8_all;
    double peak = reads ? b->peaks.read_all : b->peaks.i8_all;
    return st_bench_add(&m->b->rows, "moe experts int8", shape,
                        st_bench_median(ratio, calls) * peak, reads ? "GB/s" : "GOP/s", peak);
}

st_status st_bench_moe(st_bench *b, st_error *err)
{
    static const int tokens[] = {1, 4, 16, 64, 256};
    if (b->peaks.read_all <= 0 || b->peaks.i8_all <= 0)
        return ST_OK; /* the reference table has no peaks, and would take minutes */
    moe_bench m = {.b = b, .random = 1};
    st_status s = make_weights(&m);
    if (!s)
        s = make_rows(&m);
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens && !s; i++)
        s = measure(&m, tokens[i]);
    free_all(&m);
    return s ? st_fail(err, s, "no memory for the expert benchmark") : ST_OK;
}
