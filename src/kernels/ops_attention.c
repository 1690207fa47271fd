/* Threaded attention: one task is a group of (query, head) rows that share their keys. When there
 * are few such groups, as with one long sequence being decoded, the keys are split into segments
 * too and the segments' results merged: the same arithmetic in the same order either way. */
#include "kernels/ops_internal.h"

enum {
    SPLIT_BELOW = 8,     /* groups per thread: with more, splitting the keys gains nothing */
    WHOLE_PERCENT = 108, /* what whole groups may take of the time of an even spread */
    MERGE_SHARES = 4,    /* tasks in which a group's parts are merged */
    TINY_WORK = 1 << 16  /* multiply-adds that are less than waking the pool */
};

/* How a sequence's rows are cut into groups: queries outermost. */
typedef struct attn_plan {
    int heads_each, n_head_groups; /* GQA: never across KV heads */
    int queries_each;
} attn_plan;

typedef struct attn_run {
    st_ops *ops;
    bool mla;
    float *out;
    const float *q;
    const st_attn_shape *shape;
    const st_kv_layer *kv;
    const st_attn_seq *seqs;
    int n_seqs;
    attn_plan plan;
    int threads;
    size_t part_row;    /* floats of a (query, head) part */
    size_t part_stride; /* of a group's part */
} attn_run;

/* One group of rows. */
typedef struct attn_group {
    const st_attn_seq *seq;
    int q0, q1, h0, h1;
} attn_group;

static attn_plan plan_groups(bool mla, const st_attn_shape *shape, int rows)
{
    int together = mla ? shape->n_heads : shape->n_heads / shape->n_kv_heads;
    attn_plan p;
    p.heads_each = together < rows ? together : rows;
    /* A divisor, so that groups never cross KV heads. */
    while (together % p.heads_each != 0)
        p.heads_each--;
    p.n_head_groups = shape->n_heads / p.heads_each;
    p.queries_each = rows / p.heads_each;
    return p;
}

static int query_groups(const attn_plan *p, const st_attn_seq *seq)
{
    return (seq->n_q + p->queries_each - 1) / p->queries_each;
}

/* Group number `index` of a sequence; later queries, which have more keys, come first. */
static attn_group group_of(const attn_run *run, const st_attn_seq *seq, int index)
{
    const attn_plan *p = &run->plan;
    int qg = query_groups(p, seq) - 1 - index / p->n_head_groups;
    int hg = index % p->n_head_groups;
    attn_group g = {seq, qg * p->queries_each, (qg + 1) * p->queries_each, hg * p->heads_each,
                    (hg + 1) * p->heads_each};
    if (g.q1 > seq->n_q)
        g.q1 = seq->n_q;
    return g;
}

static int segments_of(const attn_group *g)
{
    return (g->seq->pos0 + g->q1 - 1) / ST_ATTN_SEGMENT + 1;
}

static unsigned char *worker_scratch(const st_ops *ops, int worker)
{
    return ops->scratch + (size_t)worker * ops->scratch_bytes;
}

static void whole_task(void *arg, size_t task, int worker)
{
    const attn_run *run = arg;
    const st_ops *ops = run->ops;
    int i = st_ops_owner(ops->first_task, run->n_seqs, task);
    attn_group g = group_of(run, &run->seqs[i], (int)(task - ops->first_task[i]));
    (run->mla ? ops->k->attention_mla : ops->k->attention_gqa)(run->out, run->q, run->shape,
                                                               run->kv, g.seq, g.q0, g.q1, g.h0,
                                                               g.h1, worker_scratch(ops, worker));
}

/* ---- split over stretches and segments ---- */

/* A group, and which of its tasks one is. */
typedef struct attn_task {
    attn_group g;
    int index;
    size_t part; /* the group's first, counted over the slice */
} attn_task;

static int groups_of(const attn_run *run, const st_attn_seq *seq)
{
    return query_groups(&run->plan, seq) * run->plan.n_head_groups;
}

/* How many of a group's stretches are a part each. Every part is written and read again, so most
 * keys go in stretches; the last ones in segments, with which threads finish together. */
static int whole_of(const attn_run *run, const attn_group *g)
{
    int n = segments_of(g) / ST_ATTN_STRETCH - (run->threads - 1);
    return n > 0 ? n : 0;
}

static int parts_of(const attn_run *run, const attn_group *g)
{
    return segments_of(g) - whole_of(run, g) * (ST_ATTN_STRETCH - 1);
}

/* Task number `index` of the slice, where a group has `each` tasks, or one per part when that is
 * zero. There are no more groups than SPLIT_BELOW allows. */
static attn_task find_task(const attn_run *run, size_t index, int each)
{
    size_t part = 0;
    for (int i = 0;; i++)
        for (int j = 0; j < groups_of(run, &run->seqs[i]); j++) {
            attn_group g = group_of(run, &run->seqs[i], j);
            size_t n = (size_t)(each ? each : parts_of(run, &g));
            if (index < n)
                return (attn_task){g, (int)index, part};
            index -= n;
            part += (size_t)parts_of(run, &g);
        }
}

static void part_task(void *arg, size_t index, int worker)
{
    const attn_run *run = arg;
    attn_task t = find_task(run, index, 0);
    int whole = whole_of(run, &t.g);
    bool is_whole = t.index < whole;
    int first = is_whole ? t.index * ST_ATTN_STRETCH : t.index + whole * (ST_ATTN_STRETCH - 1);
    run->ops->k->attention_part(run->ops->parts + (t.part + (size_t)t.index) * run->part_stride,
                                run->mla, run->q, run->shape, run->kv, t.g.seq, t.g.q0, t.g.q1,
                                t.g.h0, t.g.h1, first, is_whole ? ST_ATTN_STRETCH : 1,
                                worker_scratch(run->ops, worker));
}

/* Merges a share of the rows of a group. */
static void merge_task(void *arg, size_t index, int worker)
{
    const attn_run *run = arg;
    const st_attn_shape *shape = run->shape;
    attn_task t = find_task(run, index, MERGE_SHARES);
    int heads = t.g.h1 - t.g.h0, rows = (t.g.q1 - t.g.q0) * heads;
    float *parts = run->ops->parts + t.part * run->part_stride;
    int whole = whole_of(run, &t.g);
    int end = rows * (t.index + 1) / MERGE_SHARES;
    for (int r = rows * t.index / MERGE_SHARES; r < end; r++) {
        int query = t.g.q0 + r / heads, head = t.g.h0 + r % heads;
        /* Parts of later segments hold no key of it. A group spans fewer positions than the
         * segments behind its whole stretches. */
        int segment = (t.g.seq->pos0 + query) / ST_ATTN_SEGMENT;
        int n = segment + 1 - whole * (ST_ATTN_STRETCH - 1);
        size_t row = (size_t)(t.g.seq->q_row + query) * (size_t)shape->n_heads + (size_t)head;
        run->ops->k->attention_merge(run->out + row * (size_t)shape->v_dim,
                                     parts + (size_t)r * run->part_row, run->part_stride, whole, n,
                                     shape->v_dim);
    }
}

/* The slice's groups, parts and segments in all, and the most segments that a thread gets when
 * every free one takes the next group. */
typedef struct attn_load {
    size_t groups, parts, segments, most;
} attn_load;

static attn_load load_of(const attn_run *run)
{
    enum { MOST_THREADS = 64 };
    size_t busy[MOST_THREADS] = {0};
    attn_load load = {0};
    int threads = run->threads < MOST_THREADS ? run->threads : MOST_THREADS;
    for (int i = 0; i < run->n_seqs; i++)
        for (int j = 0; j < groups_of(run, &run->seqs[i]); j++) {
            attn_group g = group_of(run, &run->seqs[i], j);
            int free = 0;
            for (int t = 1; t < threads; t++)
                free = busy[t] < busy[free] ? t : free;
            busy[free] += (size_t)segments_of(&g);
            load.most = busy[free] > load.most ? busy[free] : load.most;
            load.segments += (size_t)segments_of(&g);
            load.parts += (size_t)parts_of(run, &g);
            load.groups++;
        }
    return load;
}

/* Runs the slice split when that pays and its parts fit; false: it did not. */
static bool run_split(attn_run *run, size_t groups)
{
    st_ops *ops = run->ops;
    run->threads = st_pool_threads(ops->pool);
    size_t threads = (size_t)run->threads;
    if (!ops->parts || groups >= SPLIT_BELOW * threads)
        return false;
    attn_load load = load_of(run);
    /* Parts cost a few percent: whole groups that keep all threads busy are better. */
    if (load.most * threads * 100 <= load.segments * WHOLE_PERCENT)
        return false;
    run->part_row = (size_t)run->shape->v_dim + ST_ATTN_PART_EXTRA;
    run->part_stride =
        (size_t)run->plan.heads_each * (size_t)run->plan.queries_each * run->part_row;
    if (load.parts * run->part_stride > ops->parts_cap)
        return false;
    st_pool_run(ops->pool, load.parts, part_task, run);
    st_pool_run(ops->pool, load.groups * MERGE_SHARES, merge_task, run);
    return true;
}

static void run_slice(attn_run *run)
{
    st_ops *ops = run->ops;
    size_t groups = 0, work = 0;
    for (int i = 0; i < run->n_seqs; i++) {
        const st_attn_seq *s = &run->seqs[i];
        groups += (size_t)query_groups(&run->plan, s) * (size_t)run->plan.n_head_groups;
        work += (size_t)s->n_q * (size_t)(s->pos0 + s->n_q);
    }
    if (run_split(run, groups))
        return;
    size_t tasks = 0;
    for (int i = 0; i < run->n_seqs; i++) {
        ops->first_task[i] = tasks;
        tasks += (size_t)query_groups(&run->plan, &run->seqs[i]) * (size_t)run->plan.n_head_groups;
    }
    ops->first_task[run->n_seqs] = tasks;
    work *= (size_t)run->shape->n_heads * (size_t)(run->shape->k_dim + run->shape->v_dim);
    st_ops_run(ops, work < TINY_WORK, tasks, whole_task, run);
}

void st_op_attention(st_ops *ops, bool mla, float *out, const float *q, const st_attn_shape *shape,
                     const st_kv_layer *kv, const st_attn_seq *seqs, int n_seqs)
{
    uint64_t start = st_now_ns();
    int rows = kv->dtype == ST_I8 ? OPS_ATTN_I8_ROWS : OPS_ATTN_ROWS;
    for (int i = 0; i < n_seqs; i += OPS_SLICE) {
        attn_run run = {.ops = ops,
                        .mla = mla,
                        .out = out,
                        .q = q,
                        .shape = shape,
                        .kv = kv,
                        .seqs = seqs + i,
                        .n_seqs = n_seqs - i < OPS_SLICE ? n_seqs - i : OPS_SLICE,
                        .plan = plan_groups(mla, shape, rows)};
        run_slice(&run);
    }
    ops->ns[ST_OP_ATTENTION] += st_now_ns() - start;
}
