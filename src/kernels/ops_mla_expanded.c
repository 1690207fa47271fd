/* Threaded attention of MLA with expanded keys and values: one task is a head and a group of one
 * sequence's queries. For each tile of keys it expands the latent rows into the head's own keys and
 * values, in scratch, and lets all the queries of the group attend to them. Against the absorbed
 * form, a (query, key) pair costs nope + rope + v multiply-adds instead of 2 kv_lora + rope, and a
 * key kv_lora * (nope + v) once per group. */
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

/* Where a worker's scratch is cut, in bytes: the query state, a tile of latent rows, and the keys
 * and values made of them. */
typedef struct expand_layout {
    size_t latent, keys, values, total;
    size_t ld_latent, ld_keys, ld_values; /* floats */
} expand_layout;

static size_t aligned(size_t bytes)
{
    return (bytes + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
}

static expand_layout layout_of(const st_kernels *k, const st_expand_shape *s, int queries)
{
    expand_layout y = {.ld_latent = st_dense_stride(s->kv_lora + s->rope),
                       .ld_keys = st_dense_stride(s->nope + s->rope),
                       .ld_values = st_dense_stride(s->v)};
    y.latent = aligned(k->dense_scratch(queries, s->nope + s->rope, s->v));
    y.keys = y.latent + ST_DENSE_KEYS * y.ld_latent * sizeof(float);
    y.values = y.keys + ST_DENSE_KEYS * y.ld_keys * sizeof(float);
    y.total = y.values + ST_DENSE_KEYS * y.ld_values * sizeof(float);
    return y;
}

static int group_limit(int max_queries)
{
    return max_queries < MOST_QUERIES ? max_queries : MOST_QUERIES;
}

st_status st_ops_use_expanded(st_ops *ops, const st_expand_shape *shape, int max_queries,
                              st_error *err)
{
    size_t total, threads = (size_t)st_pool_threads(ops->pool);
    ops->expand_queries = group_limit(max_queries);
    ops->expand_bytes = (layout_of(ops->k, shape, ops->expand_queries).total + 4095) / 4096 * 4096;
    if (st_mul_size(ops->expand_bytes, threads, &total))
        ops->expand_scratch = aligned_alloc(4096, total);
    if (!ops->expand_scratch)
        return st_fail(err, ST_ENOMEM, "no memory for expanded attention: %zu bytes x %zu",
                       ops->expand_bytes, threads);
    return ST_OK;
}

typedef struct expand_run {
    st_ops *ops;
    const st_expand_job *job;
    const st_attn_seq *seqs; /* of the slice */
    int n_seqs;
    int queries_each;
    expand_layout layout;
    size_t groups; /* of all sequences */
} expand_run;

static size_t groups_of(const st_attn_seq *seq, int queries_each)
{
    return ((size_t)seq->n_q + (size_t)queries_each - 1) / (size_t)queries_each;
}

/* Positions [first, first + count) as dense keys and values of a head. */
static void expand_tile(const expand_run *run, const st_attn_seq *seq, int head, int first,
                        int count, unsigned char *scratch)
{
    const st_kernels *k = run->ops->k;
    const st_expand_job *job = run->job;
    const st_expand_shape *s = &job->shape;
    const expand_layout *y = &run->layout;
    float *latent = (float *)(void *)(scratch + y->latent);
    float *keys = (float *)(void *)(scratch + y->keys);
    float *values = (float *)(void *)(scratch + y->values);
    for (int i = 0; i < count; i++) {
        const unsigned char *row = st_kv_row(job->kv, seq->block_table, first + i);
        float *to = latent + (size_t)i * y->ld_latent;
        if (job->kv->dtype == ST_I8)
            k->kv_from_i8(to, row, (st_kv_row_shape){1, s->kv_lora, s->rope});
        else
            k->to_f32(to, row, job->kv->dtype, s->kv_lora + s->rope);
    }
    const st_act a = {.x = latent, .ld = y->ld_latent, .m = count, .k = s->kv_lora};
    k->matmul_float(keys, y->ld_keys, &a, &job->wk[head], 0, s->nope);
    k->matmul_float(values, y->ld_values, &a, &job->wv[head], 0, s->v);
    for (int i = 0; i < count; i++)
        memcpy(keys + (size_t)i * y->ld_keys + s->nope,
               latent + (size_t)i * y->ld_latent + s->kv_lora, (size_t)s->rope * sizeof *keys);
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
    ops->k->dense_start(&a, run->job->q + row * ldq + (size_t)head * (size_t)a.k_dim, ldq);
    for (int first = 0, end = a.pos0 + n_q; first < end; first += ST_DENSE_KEYS) {
        int count = end - first < ST_DENSE_KEYS ? end - first : ST_DENSE_KEYS;
        expand_tile(run, seq, head, first, count, scratch);
        ops->k->dense_keys(&a, (const float *)(const void *)(scratch + run->layout.keys),
                           (const float *)(const void *)(scratch + run->layout.values), first,
                           count);
    }
    ops->k->dense_finish(&a, run->job->out + row * ldo + (size_t)head * (size_t)s->v, ldo);
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
    st_pool_run(ops->pool, run->groups * (size_t)run->job->shape.n_heads, expand_task, run);
}

void st_op_attention_expanded(st_ops *ops, const st_expand_job *job)
{
    uint64_t start = st_now_ns();
    for (int i = 0; i < job->n_seqs; i += OPS_SLICE) {
        expand_run run = {.ops = ops,
                          .job = job,
                          .seqs = job->seqs + i,
                          .n_seqs = job->n_seqs - i < OPS_SLICE ? job->n_seqs - i : OPS_SLICE};
        run_slice(&run);
    }
    ops->ns[ST_OP_ATTENTION] += st_now_ns() - start;
}
