/* Threaded attention of MLA with expanded keys and values: one task is a head and a group of one
 * sequence's queries. For each tile of keys it expands the latent rows into the head's own keys and
 * values, in scratch, and lets all the queries of the group attend to them. Against the absorbed
 * form, a (query, key) pair costs nope + rope + v multiply-adds instead of 2 kv_lora + rope, and a
 * key kv_lora * (nope + v) once per group.
 *
 * Where the expansions are integers the latents are quantized per token, which depends on the
 * cached row alone: once for all heads, before their tasks, as far as the room for that reaches. */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/kv_rows.h"
#include "kernels/ops_internal.h"

enum {
    MOST_QUERIES = 1024,   /* of a group: their state is walked through once a tile */
    LEAST_QUERIES = 128,   /* smaller groups only where there are fewer queries */
    TASKS_PER_THREAD = 2,  /* groups are halved for so many */
    GROUP_MULTIPLE = 32,   /* queries that kernels take at once */
    SCRATCH_ALIGNMENT = 64 /* of what kernels and products work on */
};

/* Where a worker's scratch is cut, in bytes: the query state, a tile of latent rows as floats and
 * quantized, and the keys and values made of them. */
typedef struct expand_layout {
    size_t latent, quantized, keys, values, total;
    size_t ld_latent, ld_keys, ld_values; /* floats */
} expand_layout;

static size_t aligned(size_t bytes)
{
    return (bytes + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
}

/* A tile of quantized latents: q, scales, sums. */
static size_t quantized_tile_bytes(int kv_lora)
{
    return ST_DENSE_KEYS *
           (st_act_ldq(kv_lora) + sizeof(float) + st_act_sums(kv_lora) * sizeof(int32_t));
}

static st_act quantized_tile(unsigned char *tile, int kv_lora, int count)
{
    st_act a = {.q = (int8_t *)tile, .ldq = st_act_ldq(kv_lora), .m = count, .k = kv_lora};
    tile += ST_DENSE_KEYS * a.ldq;
    a.scale = (float *)(void *)tile;
    a.sum = (int32_t *)(void *)(tile + ST_DENSE_KEYS * sizeof(float));
    return a;
}

static expand_layout layout_of(const st_kernels *k, const st_expand_shape *s, int queries)
{
    expand_layout y = {.ld_latent = st_dense_stride(s->kv_lora + s->rope),
                       .ld_keys = st_dense_stride(s->nope + s->rope),
                       .ld_values = st_dense_stride(s->v)};
    size_t dense = k->dense->scratch(queries, s->nope + s->rope, s->v), other = 0;
    if (k->dense_int)
        other = k->dense_int->scratch(queries, s->nope + s->rope, s->v);
    y.latent = aligned(dense > other ? dense : other);
    y.quantized = y.latent + ST_DENSE_KEYS * y.ld_latent * sizeof(float);
    y.keys = y.quantized + quantized_tile_bytes(s->kv_lora);
    y.values = y.keys + ST_DENSE_KEYS * y.ld_keys * sizeof(float);
    y.total = y.values + ST_DENSE_KEYS * y.ld_values * sizeof(float);
    return y;
}

static int group_limit(int max_queries)
{
    return max_queries < MOST_QUERIES ? max_queries : MOST_QUERIES;
}

static size_t worker_bytes(const st_kernels *k, const st_expand_shape *s, int max_queries)
{
    return (layout_of(k, s, group_limit(max_queries)).total + 4095) / 4096 * 4096;
}

static size_t shared_tiles(int shared_rows)
{
    return ((size_t)shared_rows + ST_DENSE_KEYS - 1) / ST_DENSE_KEYS;
}

size_t st_ops_expanded_bytes(const st_kernels *k, const st_expand_shape *shape, int max_queries,
                             int shared_rows, int threads)
{
    size_t bytes, shared;
    if (!st_mul_size(worker_bytes(k, shape, max_queries), (size_t)threads, &bytes) ||
        !st_mul_size(quantized_tile_bytes(shape->kv_lora), shared_tiles(shared_rows), &shared) ||
        !st_add_size(bytes, shared, &bytes))
        return SIZE_MAX;
    return bytes;
}

st_status st_ops_use_expanded(st_ops *ops, const st_expand_shape *shape, int max_queries,
                              int shared_rows, st_error *err)
{
    int threads = st_pool_threads(ops->pool);
    size_t bytes = st_ops_expanded_bytes(ops->k, shape, max_queries, shared_rows, threads);
    ops->expand_queries = group_limit(max_queries);
    ops->expand_bytes = worker_bytes(ops->k, shape, max_queries);
    ops->shared_tiles = shared_tiles(shared_rows);
    if (bytes <= SIZE_MAX - 4096)
        ops->expand_scratch = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!ops->expand_scratch)
        return st_fail(err, ST_ENOMEM, "no memory for expanded attention on %d threads: %zu bytes",
                       threads, bytes);
    ops->shared_latents = ops->expand_scratch + (size_t)threads * ops->expand_bytes;
    return ST_OK;
}

typedef struct expand_run {
    st_ops *ops;
    const st_expand_job *job;
    const st_attn_seq *seqs; /* of the slice */
    int n_seqs;
    int queries_each;
    expand_layout layout;
    bool int8; /* the expansions take quantized latents */
    const st_dense_kernels *dense;
    size_t groups; /* of all sequences */
    size_t shared; /* tiles that are quantized beforehand */
} expand_run;

static size_t groups_of(const st_attn_seq *seq, int queries_each)
{
    return ((size_t)seq->n_q + (size_t)queries_each - 1) / (size_t)queries_each;
}

/* ---- latent rows ---- */

static st_kv_row_shape row_shape(const st_expand_shape *s)
{
    return (st_kv_row_shape){1, s->kv_lora, s->rope};
}

/* Positions [first, first + count) as float rows; their rotated parts may follow. */
static void widen_latents(const expand_run *run, const st_attn_seq *seq, int first, int count,
                          float *to)
{
    const st_kernels *k = run->ops->k;
    const st_kv_layer *kv = run->job->kv;
    const st_expand_shape *s = &run->job->shape;
    for (int i = 0; i < count; i++, to += run->layout.ld_latent) {
        const unsigned char *row = st_kv_row(kv, seq->block_table, first + i);
        if (kv->dtype == ST_I8)
            k->kv_from_i8(to, row, row_shape(s));
        else
            k->to_f32(to, row, kv->dtype, s->kv_lora);
    }
}

/* An I8 row holds its latent quantized: by the rule of quantize, but for vectors of next to
 * nothing. */
static void take_quantized(const st_act *a, int i, const unsigned char *row, st_kv_row_shape shape)
{
    int8_t *q = a->q + (size_t)i * a->ldq;
    int32_t *sum = a->sum + (size_t)i * st_act_sums(a->k), all = 0;
    memcpy(q, row, (size_t)a->k);
    memset(q + a->k, 0, a->ldq - (size_t)a->k);
    memcpy(&a->scale[i], row + st_kv_i8_scales_at(shape), sizeof(float));
    *sum++ = 0;
    for (int k0 = 0; k0 < a->k; k0 += ST_ACT_SUM) {
        for (int j = 0; j < ST_ACT_SUM; j++)
            all += q[k0 + j];
        *sum++ = all;
    }
}

/* A tile of latents, quantized; scratch is a worker's. */
static void quantize_tile(const expand_run *run, const st_attn_seq *seq, int first, int count,
                          unsigned char *tile, unsigned char *scratch)
{
    const st_kv_layer *kv = run->job->kv;
    st_act a = quantized_tile(tile, run->job->shape.kv_lora, count);
    if (kv->dtype == ST_I8) {
        for (int i = 0; i < count; i++)
            take_quantized(&a, i, st_kv_row(kv, seq->block_table, first + i),
                           row_shape(&run->job->shape));
        return;
    }
    float *latent = (float *)(void *)(scratch + run->layout.latent);
    widen_latents(run, seq, first, count, latent);
    a.x = latent;
    a.ld = run->layout.ld_latent;
    run->ops->k->quantize(&a);
}

static unsigned char *shared_tile(const expand_run *run, size_t tile)
{
    return run->ops->shared_latents + tile * quantized_tile_bytes(run->job->shape.kv_lora);
}

static int tile_keys(const st_attn_seq *seq, int first)
{
    int end = seq->pos0 + seq->n_q;
    return end - first < ST_DENSE_KEYS ? end - first : ST_DENSE_KEYS;
}

static void quantize_task(void *arg, size_t task, int worker)
{
    const expand_run *run = arg;
    const st_ops *ops = run->ops;
    int i = st_ops_owner(ops->first_tile, run->n_seqs, task);
    int first = (int)(task - ops->first_tile[i]) * ST_DENSE_KEYS;
    quantize_tile(run, &run->seqs[i], first, tile_keys(&run->seqs[i], first),
                  shared_tile(run, task), ops->expand_scratch + (size_t)worker * ops->expand_bytes);
}

static void quantize_shared(expand_run *run)
{
    st_ops *ops = run->ops;
    size_t tiles = 0;
    for (int i = 0; i < run->n_seqs; i++) {
        ops->first_tile[i] = tiles;
        tiles += shared_tiles(run->seqs[i].pos0 + run->seqs[i].n_q);
    }
    ops->first_tile[run->n_seqs] = tiles;
    run->shared = tiles < ops->shared_tiles ? tiles : ops->shared_tiles;
    st_pool_run(ops->pool, run->shared, quantize_task, run);
}

/* ---- attention ---- */

/* What the products that expand positions [first, first + count) take. */
static st_act latents_of(const expand_run *run, int seq, int first, int count,
                         unsigned char *scratch)
{
    const st_attn_seq *s = &run->seqs[seq];
    const expand_layout *y = &run->layout;
    int kv_lora = run->job->shape.kv_lora;
    if (!run->int8) {
        float *latent = (float *)(void *)(scratch + y->latent);
        widen_latents(run, s, first, count, latent);
        return (st_act){.x = latent, .ld = y->ld_latent, .m = count, .k = kv_lora};
    }
    size_t tile = run->ops->first_tile[seq] + (size_t)first / ST_DENSE_KEYS;
    if (tile < run->shared)
        return quantized_tile(shared_tile(run, tile), kv_lora, count);
    quantize_tile(run, s, first, count, scratch + y->quantized, scratch);
    return quantized_tile(scratch + y->quantized, kv_lora, count);
}

/* Positions [first, first + count) as dense keys and values of a head. */
static void expand_tile(const expand_run *run, int seq, int head, int first, int count,
                        unsigned char *scratch)
{
    const st_kernels *k = run->ops->k;
    const st_expand_job *job = run->job;
    const st_kv_layer *kv = job->kv;
    const st_expand_shape *s = &job->shape;
    const expand_layout *y = &run->layout;
    float *keys = (float *)(void *)(scratch + y->keys);
    float *values = (float *)(void *)(scratch + y->values);
    const st_act a = latents_of(run, seq, first, count, scratch);
    k->matmul(keys, y->ld_keys, &a, &job->wk[head], 0, s->nope);
    k->matmul(values, y->ld_values, &a, &job->wv[head], 0, s->v);
    bool i8 = kv->dtype == ST_I8;
    size_t rotated_at =
        i8 ? st_kv_i8_plain_at(row_shape(s)) : (size_t)s->kv_lora * st_dtype_size(kv->dtype);
    for (int i = 0; i < count; i++)
        k->to_f32(keys + (size_t)i * y->ld_keys + s->nope,
                  st_kv_row(kv, run->seqs[seq].block_table, first + i) + rotated_at,
                  i8 ? ST_BF16 : kv->dtype, s->rope);
}

/* Heads are outermost: their expansions stay in the caches while sequences pass by. */
static void expand_task(void *arg, size_t task, int worker)
{
    const expand_run *run = arg;
    const st_ops *ops = run->ops;
    const st_expand_shape *s = &run->job->shape;
    int head = (int)(task / run->groups);
    size_t group = task % run->groups;
    int i = st_ops_owner(ops->first_task, run->n_seqs, group);
    const st_attn_seq *seq = &run->seqs[i];
    /* Later queries, which have more keys, come first. */
    size_t index = groups_of(seq, run->queries_each) - 1 - (group - ops->first_task[i]);
    int q0 = (int)index * run->queries_each;
    int n_q = seq->n_q - q0 < run->queries_each ? seq->n_q - q0 : run->queries_each;
    unsigned char *scratch = ops->expand_scratch + (size_t)worker * ops->expand_bytes;
    st_dense_attn a = {.n_q = n_q,
                       .pos0 = seq->pos0 + q0,
                       .k_dim = s->nope + s->rope,
                       .v_dim = s->v,
                       .scale = s->scale,
                       .state = scratch};
    size_t row = (size_t)(seq->q_row + q0), ldq = (size_t)s->n_heads * (size_t)a.k_dim;
    size_t ldo = (size_t)s->n_heads * (size_t)s->v;
    run->dense->start(&a, run->job->q + row * ldq + (size_t)head * (size_t)a.k_dim, ldq);
    for (int first = 0, end = a.pos0 + n_q; first < end; first += ST_DENSE_KEYS) {
        int count = end - first < ST_DENSE_KEYS ? end - first : ST_DENSE_KEYS;
        expand_tile(run, i, head, first, count, scratch);
        run->dense->keys(&a, (const float *)(const void *)(scratch + run->layout.keys),
                         (const float *)(const void *)(scratch + run->layout.values), first, count);
    }
    run->dense->finish(&a, run->job->out + row * ldo + (size_t)head * (size_t)s->v, ldo);
}

static size_t count_groups(const expand_run *run, int queries_each)
{
    size_t n = 0;
    for (int i = 0; i < run->n_seqs; i++)
        n += groups_of(&run->seqs[i], queries_each);
    return n;
}

/* As many queries as possible share an expansion, but every thread gets something to do. */
static int choose_queries(const expand_run *run)
{
    int queries = run->ops->expand_queries;
    size_t enough = TASKS_PER_THREAD * (size_t)st_pool_threads(run->ops->pool);
    while (queries >= 2 * LEAST_QUERIES &&
           count_groups(run, queries) * (size_t)run->job->shape.n_heads < enough)
        queries = (queries / 2 + GROUP_MULTIPLE - 1) / GROUP_MULTIPLE * GROUP_MULTIPLE;
    return queries;
}

static void run_slice(expand_run *run)
{
    st_ops *ops = run->ops;
    run->queries_each = choose_queries(run);
    run->layout = layout_of(ops->k, &run->job->shape, run->queries_each);
    run->groups = 0;
    for (int i = 0; i < run->n_seqs; i++) {
        ops->first_task[i] = run->groups;
        run->groups += groups_of(&run->seqs[i], run->queries_each);
    }
    ops->first_task[run->n_seqs] = run->groups;
    if (run->int8)
        quantize_shared(run);
    st_pool_run(ops->pool, run->groups * (size_t)run->job->shape.n_heads, expand_task, run);
}

void st_op_attention_expanded(st_ops *ops, const st_expand_job *job)
{
    uint64_t start = st_now_ns();
    for (int i = 0; i < job->n_seqs; i += OPS_SLICE) {
        expand_run run = {.ops = ops,
                          .job = job,
                          .int8 = st_weight_takes_int8(job->wk[0].type),
                          .seqs = job->seqs + i,
                          .n_seqs = job->n_seqs - i < OPS_SLICE ? job->n_seqs - i : OPS_SLICE};
        run.dense = run.int8 && ops->k->dense_int ? ops->k->dense_int : ops->k->dense;
        run_slice(&run);
    }
    ops->ns[ST_OP_ATTENTION] += st_now_ns() - start;
}
