/* The experts of a layer as one task list: see ops_experts.h. */
#include "kernels/ops_experts.h"

#include <sched.h>
#include <string.h>

#include "kernels/ops_internal.h"

enum stage { GATHER, GATE_UP, QUANTIZE, DOWN };

enum {
    /* Cost of a task in bytes of weights times passes over them. A task of gate|up starts at two
     * new places in memory, so tasks are as large as threads that finish together allow. */
    EXPERT_LEAST_COST = 64 << 10,
    EXPERT_MOST_COST = 3 << 20,
    EXPERT_TASKS_PER_THREAD = 6,
    /* Rows of x for which reading the weights still costs more than the arithmetic. */
    EXPERT_FREE_ROWS = 12,
    /* Groups of rows are not cut smaller than this: each reads the weights again. */
    EXPERT_LEAST_GROUP = 48,
    EXPERT_GROUP_STEP = 12, /* groups are multiples of this: products take rows in such tiles */
    EXPERT_GATHER_ROWS = 16,
    EXPERT_FETCH = 2048, /* bytes; more, all at once, holds up the loads that are under way */
    EXPERT_QUANTIZE_ROWS = 8,
    EXPERT_SPINS = 64 /* waits before the processor is given to another thread */
};

typedef struct expert_run {
    st_ops *ops;
    st_expert_job *jobs;
    int n_jobs;
    uint64_t cost; /* of all jobs */
} expert_run;

static bool takes_int8(const st_packed *w)
{
    return st_weight_takes_int8(w->type);
}

static int32_t least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static int32_t round_up(int32_t n, int32_t to)
{
    return (n + to - 1) / to * to;
}

static uint32_t parts_of(int32_t n, int32_t size)
{
    return (uint32_t)((n + size - 1) / size);
}

/* ---- planning: sizes of tasks; results never depend on it ---- */

/* What `bytes` of weights cost with n rows. */
static uint64_t cost_of(size_t bytes, int32_t n)
{
    return bytes * (1 + (uint64_t)n / EXPERT_FREE_ROWS);
}

static size_t bytes_of(const st_kernels *k, const st_packed *w)
{
    return k->pack_block_bytes(w) * parts_of(w->n, k->pack_cols);
}

static int32_t columns_of(const st_kernels *k, size_t block_bytes, int32_t group, int32_t n,
                          uint64_t target)
{
    uint64_t blocks = target / (cost_of(block_bytes, group) + 1);
    uint64_t most = parts_of(n, k->pack_cols);
    return (int32_t)(blocks < 1 ? 1 : blocks > most ? most : blocks) * k->pack_cols;
}

static void plan(const st_kernels *k, st_expert_job *j, uint64_t target)
{
    st_expert_state *s = &j->state;
    size_t up_bytes = k->pack_block_bytes(j->gate) + k->pack_block_bytes(j->up);
    int32_t groups = (int32_t)parts_of(j->n, EXPERT_MOST_ROWS);
    int32_t group = j->n ? round_up(((j->n + groups - 1) / groups), EXPERT_GROUP_STEP) : 1;
    uint64_t cost = cost_of(up_bytes, group);
    if (cost > target && group > EXPERT_LEAST_GROUP) { /* too few columns for all threads */
        group = round_up((int32_t)((uint64_t)group * target / cost), EXPERT_GROUP_STEP);
        group = group < EXPERT_LEAST_GROUP ? EXPERT_LEAST_GROUP : group;
    }
    s->group = least(group, EXPERT_MOST_ROWS);
    s->up_columns = columns_of(k, up_bytes, s->group, j->gate->n, target);
    s->down_columns = columns_of(k, k->pack_block_bytes(j->down), s->group, j->down->n, target);
    uint32_t n_groups = parts_of(j->n, s->group);
    bool gather = j->rows && j->n > 1;
    s->tasks[GATHER] = gather ? parts_of(j->n, EXPERT_GATHER_ROWS) : 0;
    s->tasks[GATE_UP] = n_groups * parts_of(j->gate->n, s->up_columns);
    s->tasks[QUANTIZE] = takes_int8(j->down) ? parts_of(j->n, EXPERT_QUANTIZE_ROWS) : 0;
    s->tasks[DOWN] = n_groups * parts_of(j->down->n, s->down_columns);
    for (int i = 0; i < ST_EXPERT_STAGES; i++) {
        atomic_store_explicit(&s->taken[i], 0, memory_order_relaxed);
        atomic_store_explicit(&s->done[i], 0, memory_order_relaxed);
    }
}

static void plan_all(expert_run *r)
{
    const st_kernels *k = r->ops->k;
    for (int i = 0; i < r->n_jobs; i++) {
        st_expert_job *j = &r->jobs[i];
        j->state.cost =
            j->n ? cost_of(bytes_of(k, j->gate) + bytes_of(k, j->up) + bytes_of(k, j->down), j->n)
                 : 0;
        r->cost += j->state.cost;
    }
    uint64_t target = r->cost / EXPERT_TASKS_PER_THREAD / (uint64_t)st_pool_threads(r->ops->pool);
    target = target < EXPERT_LEAST_COST ? EXPERT_LEAST_COST : target;
    target = target > EXPERT_MOST_COST ? EXPERT_MOST_COST : target;
    for (int i = 0; i < r->n_jobs; i++)
        plan(k, &r->jobs[i], target);
}

/* ---- tasks ---- */

static void gather_task(const st_expert_job *j, uint32_t task)
{
    const st_act *in = j->in;
    const st_expert_rows *to = &j->gathered;
    bool i8 = takes_int8(j->gate) || takes_int8(j->up);
    bool f = !takes_int8(j->gate) || !takes_int8(j->up);
    size_t sums = st_act_sums(in->k);
    size_t i = (size_t)task * EXPERT_GATHER_ROWS;
    size_t end = (size_t)least((int32_t)i + EXPERT_GATHER_ROWS, j->n);
    for (; i < end; i++) {
        size_t row = (size_t)j->rows[i];
        if (f)
            memcpy(to->x + i * to->ld, in->x + row * in->ld, (size_t)in->k * sizeof *to->x);
        if (!i8)
            continue;
        memcpy(to->q + i * to->ldq, in->q + row * in->ldq, in->ldq < to->ldq ? in->ldq : to->ldq);
        to->scale[i] = in->scale[row];
        memcpy(to->sum + i * sums, in->sum + row * sums, sums * sizeof *to->sum);
    }
}

/* Rows [first, first + n) of the expert's input. */
static st_act input(const st_expert_job *j, int32_t first, int32_t n)
{
    const st_act *in = j->in;
    size_t i = (size_t)(j->rows && j->n == 1 ? j->rows[0] : first);
    st_act a = *in;
    a.m = n;
    if (j->rows && j->n > 1) {
        const st_expert_rows *g = &j->gathered;
        a.x = g->x;
        a.ld = g->ld;
        a.q = g->q;
        a.ldq = g->ldq;
        a.scale = g->scale;
        a.sum = g->sum;
    }
    a.x = a.x ? a.x + i * a.ld : NULL;
    if (a.q) {
        a.q += i * a.ldq;
        a.scale += i;
        a.sum += i * st_act_sums(a.k);
    }
    return a;
}

/* Columns [first, first + n) of w as a matrix of their own; first: a multiple of pack_cols. */
static st_packed columns(const st_kernels *k, const st_packed *w, int32_t first, int32_t n)
{
    st_packed v = *w;
    v.data = (const char *)w->data + (size_t)(first / k->pack_cols) * k->pack_block_bytes(w);
    v.n = n;
    return v;
}

/* Starts bringing the first of a matrix's columns from `column` on into L2. A product prefetches
 * within its own columns only; without this, memory would rest at every end of a task. */
static void fetch(const st_kernels *k, const st_packed *w, int32_t column)
{
    if (column >= w->n)
        return;
    size_t block = k->pack_block_bytes(w);
    const char *p = (const char *)w->data + (size_t)(column / k->pack_cols) * block;
    size_t bytes = block < EXPERT_FETCH ? block : EXPERT_FETCH;
    for (size_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(p + at, 0, 2);
}

static void gate_up_task(const expert_run *r, const st_expert_job *j, uint32_t task, int worker)
{
    const st_kernels *k = r->ops->k;
    const st_expert_state *s = &j->state;
    uint32_t groups = parts_of(j->n, s->group);
    int32_t row = (int32_t)(task % groups) * s->group, m = least(s->group, j->n - row);
    int32_t column = (int32_t)(task / groups) * s->up_columns;
    int32_t end = least(column + s->up_columns, j->gate->n);
    st_act a = input(j, row, m);
    int32_t most = least(s->up_columns, EXPERT_MOST_ROWS / m * k->pack_cols);
    size_t ld = (size_t)most;
    float *gate = r->ops->expert_scratch + (size_t)worker * r->ops->expert_floats;
    float *up = gate + (size_t)m * ld;
    for (; column < end; column += most) {
        int32_t n = least(most, end - column);
        st_packed g = columns(k, j->gate, column, n), u = columns(k, j->up, column, n);
        fetch(k, &u, 0);
        k->matmul(gate, ld, &a, &g, 0, n);
        fetch(k, column + n < j->gate->n ? j->gate : j->down,
              column + n < j->gate->n ? column + n : 0);
        k->matmul(up, ld, &a, &u, 0, n);
        k->silu_mul(j->h.x + (size_t)row * j->h.ld + (size_t)column, j->h.ld, gate, up, ld, m, n);
    }
}

/* Rows [first, first + n) of silu(gate) * up. */
static st_act h_rows(const st_expert_job *j, int32_t first, int32_t n)
{
    const st_expert_rows *h = &j->h;
    size_t i = (size_t)first;
    st_act a = {.x = h->x + i * h->ld, .ld = h->ld, .m = n, .k = j->down->k};
    if (h->q) {
        a.q = h->q + i * h->ldq;
        a.ldq = h->ldq;
        a.scale = h->scale + i;
        a.sum = h->sum + i * st_act_sums(a.k);
    }
    return a;
}

static void quantize_task(const st_kernels *k, const st_expert_job *j, uint32_t task)
{
    int32_t row = (int32_t)task * EXPERT_QUANTIZE_ROWS;
    st_act a = h_rows(j, row, least(EXPERT_QUANTIZE_ROWS, j->n - row));
    k->quantize(&a);
}

static void down_task(const st_kernels *k, const st_expert_job *j, uint32_t task)
{
    const st_expert_state *s = &j->state;
    uint32_t groups = parts_of(j->n, s->group);
    int32_t row = (int32_t)(task % groups) * s->group;
    int32_t column = (int32_t)(task / groups) * s->down_columns;
    st_act a = h_rows(j, row, least(s->group, j->n - row));
    fetch(k, j->down, column + s->down_columns);
    k->matmul(j->y + (size_t)row * j->ldy, j->ldy, &a, j->down, column,
              least(column + s->down_columns, j->down->n));
}

static void run_task(const expert_run *r, const st_expert_job *j, int stage, uint32_t task,
                     int worker)
{
    switch (stage) {
    case GATHER:
        gather_task(j, task);
        break;
    case GATE_UP:
        gate_up_task(r, j, task, worker);
        break;
    case QUANTIZE:
        quantize_task(r->ops->k, j, task);
        break;
    default:
        down_task(r->ops->k, j, task);
        break;
    }
}

/* ---- threads ---- */

static bool take(st_expert_state *s, int stage, uint32_t *task)
{
    if (atomic_load_explicit(&s->taken[stage], memory_order_relaxed) >= s->tasks[stage])
        return false; /* looked at often: the counter must not run away */
    *task = atomic_fetch_add_explicit(&s->taken[stage], 1, memory_order_relaxed);
    return *task < s->tasks[stage];
}

/* Runs what can be run of a job. False: others still run tasks that its next stage waits for. */
static bool advance(const expert_run *r, st_expert_job *j, int worker)
{
    st_expert_state *s = &j->state;
    uint32_t task;
    for (int stage = 0; stage < ST_EXPERT_STAGES; stage++) {
        if (stage > 0 &&
            atomic_load_explicit(&s->done[stage - 1], memory_order_acquire) < s->tasks[stage - 1])
            return false;
        while (take(s, stage, &task)) {
            run_task(r, j, stage, task, worker);
            atomic_fetch_add_explicit(&s->done[stage], 1, memory_order_acq_rel);
        }
    }
    return true;
}

/* Where worker of n begins: at the first job with as much work before it as its share. */
static int first_job(const expert_run *r, uint64_t worker, uint64_t n)
{
    uint64_t before = 0;
    for (int i = 0; i < r->n_jobs; i++) {
        if (before * n >= worker * r->cost)
            return i;
        before += r->jobs[i].state.cost;
    }
    return 0;
}

static void experts_task(void *arg, size_t task, int worker)
{
    const expert_run *r = arg;
    int first = first_job(r, task, (uint64_t)st_pool_threads(r->ops->pool)), spins = 0;
    for (;;) {
        bool finished = true;
        for (int i = 0; i < r->n_jobs; i++) {
            st_expert_job *j = &r->jobs[first + i < r->n_jobs ? first + i : first + i - r->n_jobs];
            finished = advance(r, j, worker) && finished;
        }
        if (finished)
            return;
        if (++spins % EXPERT_SPINS == 0)
            sched_yield();
        else
            st_relax();
    }
}

void st_op_experts(st_ops *ops, st_expert_job *jobs, int n_jobs)
{
    uint64_t start = st_now_ns();
    expert_run r = {.ops = ops, .jobs = jobs, .n_jobs = n_jobs};
    plan_all(&r);
    if (r.cost > 0)
        st_pool_run(ops->pool, (size_t)st_pool_threads(ops->pool), experts_task, &r);
    ops->ns[ST_OP_EXPERTS] += st_now_ns() - start;
}
