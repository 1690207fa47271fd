/* Threaded operators other than attention. Tasks are blocks of output columns or of rows; which
 * thread runs which block, and how large blocks are, never reaches the bits (see kernels.h). */
#include "kernels/ops.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/ops_internal.h"

enum {
    /* Weight bytes times passes over them that one matmul task should cost. Memory needs about
     * half a microsecond to reach full speed again at a new place, so tasks are as large as
     * threads that finish together allow, up to where it no longer matters. */
    MATMUL_LEAST_COST = 32 << 10,
    MATMUL_MOST_COST = 512 << 10,
    MATMUL_TASKS_PER_THREAD = 8,
    MATMUL_TINY_COST = 64 << 10, /* all of it on the caller */
    /* Rows of x for which reading the weights still costs more than the arithmetic. */
    MATMUL_FREE_ROWS = 4,
    MATMUL_COLUMNS = 32, /* blocks start at multiples of this */
};

/* Holds the parts of a 60,000-token context with 128 heads of 512. Memory that no context needs is
 * never touched. */
static const size_t parts_bytes = (size_t)64 << 20;

const char *st_op_kind_name(st_op_kind kind)
{
    static const char *const names[ST_OP_KIND_COUNT] = {
        [ST_OP_MATMUL_F] = "matmul (float)",
        [ST_OP_MATMUL_I8] = "matmul (int8)",
        [ST_OP_ATTENTION] = "attention",
        [ST_OP_NORM] = "norm",
        [ST_OP_QUANTIZE] = "quantize",
        [ST_OP_ELEMENTWISE] = "elementwise",
        [ST_OP_ROUTER] = "router",
        [ST_OP_EXPERTS] = "experts",
        [ST_OP_HEAD] = "head",
    };
    return (unsigned)kind < ST_OP_KIND_COUNT ? names[kind] : "unknown";
}

st_status st_ops_new(const st_kernels *k, st_pool *pool, const st_attn_shape *max_attn,
                     st_ops **out, st_error *err)
{
    *out = NULL;
    st_ops *ops = calloc(1, sizeof *ops);
    if (!ops)
        return st_fail(err, ST_ENOMEM, "no memory for operators");
    ops->k = k;
    ops->pool = pool;
    size_t threads = (size_t)st_pool_threads(pool), total;
    ops->shares = aligned_alloc(64, threads * sizeof *ops->shares);
    ops->expert_floats = 2 * EXPERT_MOST_ROWS * (size_t)k->pack_cols;
    ops->expert_scratch = aligned_alloc(64, threads * ops->expert_floats * sizeof(float));
    if (!ops->expert_scratch || !ops->shares) {
        st_ops_free(ops);
        return st_fail(err, ST_ENOMEM, "no memory for the tasks of %zu threads", threads);
    }
    if (max_attn) {
        ops->scratch_bytes = (k->attn_scratch(max_attn) + 4095) & ~(size_t)4095;
        if (!st_mul_size(ops->scratch_bytes, threads, &total) ||
            !(ops->scratch = aligned_alloc(4096, total))) {
            st_ops_free(ops);
            return st_fail(err, ST_ENOMEM, "no memory for attention scratch: %zu bytes x %zu",
                           ops->scratch_bytes, threads);
        }
        if (threads > 1 && k->attention_part) {
            ops->parts = aligned_alloc(64, parts_bytes);
            if (!ops->parts) {
                st_ops_free(ops);
                return st_fail(err, ST_ENOMEM, "no memory for attention: %zu bytes", parts_bytes);
            }
            ops->parts_cap = parts_bytes / sizeof(float);
        }
    }
    *out = ops;
    return ST_OK;
}

void st_ops_free(st_ops *ops)
{
    if (!ops)
        return;
    free(ops->expert_scratch);
    free(ops->shares);
    free(ops->expand_scratch);
    free(ops->parts);
    free(ops->scratch);
    free(ops);
}

const st_kernels *st_ops_kernels(const st_ops *ops)
{
    return ops->k;
}

st_pool *st_ops_pool(const st_ops *ops)
{
    return ops->pool;
}

void st_ops_profile(const st_ops *ops, uint64_t ns[ST_OP_KIND_COUNT])
{
    memcpy(ns, ops->ns, sizeof ops->ns);
}

void st_ops_profile_reset(st_ops *ops)
{
    memset(ops->ns, 0, sizeof ops->ns);
}

void st_op_run(st_ops *ops, st_op_kind kind, size_t n_tasks, st_task_fn *fn, void *arg)
{
    uint64_t start = st_now_ns();
    st_pool_run(ops->pool, n_tasks, fn, arg);
    ops->ns[kind] += st_now_ns() - start;
}

/* ---- loops whose tasks lie side by side in memory ---- */

typedef struct share_run {
    st_ops *ops;
    st_task_fn *fn;
    void *arg;
} share_run;

static bool take(st_ops_share *s, bool own, uint32_t *task)
{
    uint64_t left = atomic_load_explicit(&s->left, memory_order_relaxed), rest;
    do {
        uint32_t first = (uint32_t)left, end = (uint32_t)(left >> 32);
        if (first >= end)
            return false;
        *task = own ? first++ : --end;
        rest = (uint64_t)end << 32 | first;
    } while (!atomic_compare_exchange_weak_explicit(&s->left, &left, rest, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

/* A thread's share is always the same one of a loop. */
static void share_task(void *arg, size_t task_of_loop, int worker)
{
    const share_run *r = arg;
    size_t n = (size_t)st_pool_threads(r->ops->pool), mine = (size_t)worker;
    uint32_t task;
    for (size_t i = 0; i < n; i++)
        while (take(&r->ops->shares[(mine + i) % n], i == 0, &task))
            r->fn(r->arg, task, worker);
}

void st_ops_run_shares(st_ops *ops, size_t n_tasks, st_task_fn *fn, void *arg)
{
    uint64_t n = (uint64_t)st_pool_threads(ops->pool), tasks = n_tasks;
    share_run run = {ops, fn, arg};
    if (n == 1 || tasks <= 1 || tasks > UINT32_MAX) {
        st_pool_run(ops->pool, n_tasks, fn, arg);
        return;
    }
    for (uint64_t i = 0; i < n; i++)
        atomic_store_explicit(&ops->shares[i].left, tasks * (i + 1) / n << 32 | tasks * i / n,
                              memory_order_relaxed);
    st_pool_run(ops->pool, n, share_task, &run);
}

void st_op_run_neighbours(st_ops *ops, st_op_kind kind, size_t n_tasks, st_task_fn *fn, void *arg)
{
    uint64_t start = st_now_ns();
    st_ops_run_shares(ops, n_tasks, fn, arg);
    ops->ns[kind] += st_now_ns() - start;
}

/* ---- matrix products ---- */

typedef struct matmul_run {
    st_ops *ops;
    const st_matmul_job *jobs;
    int n_jobs;
    size_t task_cost;
} matmul_run;

/* What one output column of a job costs, in bytes of weights times passes. */
static size_t column_cost(const st_kernels *k, const st_matmul_job *job)
{
    size_t passes = 1 + (size_t)job->a.m / MATMUL_FREE_ROWS;
    return k->pack_block_bytes(job->w) / (size_t)k->pack_cols * passes;
}

static int columns_per_task(const st_kernels *k, const st_matmul_job *job, size_t task_cost)
{
    size_t cost = column_cost(k, job);
    size_t columns = cost ? task_cost / cost : task_cost;
    columns -= columns % MATMUL_COLUMNS;
    /* A tall x would otherwise be read again for every few columns. */
    size_t least = job->a.m > 64 ? 4 * MATMUL_COLUMNS : MATMUL_COLUMNS;
    columns = columns < least ? least : columns;
    return columns > (1 << 20) ? 1 << 20 : (int)columns;
}

static void add_bias(const st_matmul_job *job, int n0, int n1)
{
    for (int i = 0; i < job->a.m; i++) {
        float *y = job->y + (size_t)i * job->ldy;
        for (int j = n0; j < n1; j++)
            y[j] += job->bias[j];
    }
}

static void matmul_task(void *arg, size_t task, int worker)
{
    const matmul_run *run = arg;
    int i = st_ops_owner(run->ops->first_task, run->n_jobs, task);
    const st_matmul_job *job = &run->jobs[i];
    int columns = columns_per_task(run->ops->k, job, run->task_cost);
    int n0 = (int)(task - run->ops->first_task[i]) * columns;
    int n = job->w->n, n1 = n - n0 < columns ? n : n0 + columns;
    const st_kernels *k = run->ops->k;
    k->matmul(job->y, job->ldy, &job->a, job->w, n0, n1);
    if (job->bias)
        add_bias(job, n0, n1);
}

static void matmul_slice(st_ops *ops, const st_matmul_job *jobs, int n)
{
    size_t tasks = 0, cost = 0;
    for (int i = 0; i < n; i++)
        if (jobs[i].a.m > 0)
            cost += column_cost(ops->k, &jobs[i]) * (size_t)jobs[i].w->n;
    size_t share = cost / MATMUL_TASKS_PER_THREAD / (size_t)st_pool_threads(ops->pool);
    share = share < MATMUL_LEAST_COST ? MATMUL_LEAST_COST : share;
    share = share > MATMUL_MOST_COST ? MATMUL_MOST_COST : share;
    for (int i = 0; i < n; i++) {
        ops->first_task[i] = tasks;
        if (jobs[i].a.m <= 0)
            continue;
        int columns = columns_per_task(ops->k, &jobs[i], share);
        tasks += ((size_t)jobs[i].w->n + (size_t)columns - 1) / (size_t)columns;
    }
    ops->first_task[n] = tasks;
    matmul_run run = {ops, jobs, n, share};
    if (cost <= MATMUL_TINY_COST)
        st_pool_run(NULL, tasks, matmul_task, &run);
    else
        st_ops_run_shares(ops, tasks, matmul_task, &run);
}

void st_op_matmul(st_ops *ops, const st_matmul_job *jobs, int n_jobs)
{
    uint64_t start = st_now_ns();
    for (int i = 0; i < n_jobs; i += OPS_SLICE)
        matmul_slice(ops, jobs + i, n_jobs - i < OPS_SLICE ? n_jobs - i : OPS_SLICE);
    if (n_jobs > 0)
        ops->ns[st_weight_takes_int8(jobs[0].w->type) ? ST_OP_MATMUL_I8 : ST_OP_MATMUL_F] +=
            st_now_ns() - start;
}
