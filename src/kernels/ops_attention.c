/* Threaded attention: one task is a group of (query, head) rows that share their keys. When there
 * are few such groups, as with one long sequence being decoded, the keys are split into segments
 * too and the segments' results merged: the same arithmetic in the same order either way. */
#include "kernels/ops_internal.h"

enum {
    SPLIT_BELOW = 8,    /* groups per thread: with more, splitting the keys gains nothing */
    TINY_WORK = 1 << 16 /* multiply-adds that are less than waking the pool */
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
    size_t part_row;    /* floats of a (query, head) part */
    size_t part_stride; /* of a group's part of one segment */
} attn_run;

/* One group of rows. */
typedef struct attn_group {
    const st_attn_seq *seq;
    int q0, q1, h0, h1;
} attn_group;

static attn_plan plan_groups(bool mla, const st_attn_shape *shape)
{
    int together = mla ? shape->n_heads : shape->n_heads / shape->n_kv_heads;
    attn_plan p;
    p.heads_each = together < OPS_ATTN_ROWS ? together : OPS_ATTN_ROWS;
    /* A divisor, so that groups never cross KV heads. */
    while (together % p.heads_each != 0)
        p.heads_each--;
    p.n_head_groups = shape->n_heads / p.heads_each;
    p.queries_each = OPS_ATTN_ROWS / p.heads_each;
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

/* ---- split over segments: tasks count (group, segment) pairs ---- */

/* The group that a segment task belongs to; *part counts parts before it within the slice. */
static attn_group find_segment(const attn_run *run, size_t task, int *segment)
{
    int i = st_ops_owner(run->ops->first_task, run->n_seqs, task);
    size_t left = task - run->ops->first_task[i];
    for (int index = 0;; index++) {
        attn_group g = group_of(run, &run->seqs[i], index);
        size_t n = (size_t)segments_of(&g);
        if (left < n) {
            *segment = (int)left;
            return g;
        }
        left -= n;
    }
}

static void part_task(void *arg, size_t task, int worker)
{
    const attn_run *run = arg;
    int segment;
    attn_group g = find_segment(run, task, &segment);
    run->ops->k->attention_part(run->ops->parts + task * run->part_stride, run->mla, run->q,
                                run->shape, run->kv, g.seq, g.q0, g.q1, g.h0, g.h1, segment,
                                worker_scratch(run->ops, worker));
}

/* Merges the rows of the group whose first part is number `task`; other parts do nothing. */
static void merge_task(void *arg, size_t task, int worker)
{
    const attn_run *run = arg;
    const st_attn_shape *shape = run->shape;
    int segment;
    attn_group g = find_segment(run, task, &segment);
    if (segment != 0)
        return;
    const float *part = run->ops->parts + task * run->part_stride;
    for (int q = g.q0; q < g.q1; q++) {
        int n = (g.seq->pos0 + q) / ST_ATTN_SEGMENT + 1; /* later segments hold no key of q */
        for (int h = g.h0; h < g.h1; h++, part += run->part_row) {
            size_t row = (size_t)(g.seq->q_row + q) * (size_t)shape->n_heads + (size_t)h;
            run->ops->k->attention_merge(run->out + row * (size_t)shape->v_dim, part,
                                         run->part_stride, n, shape->v_dim);
        }
    }
}

/* Segment tasks of a sequence. */
static size_t segment_tasks(const attn_run *run, const st_attn_seq *seq)
{
    size_t n = 0;
    int groups = query_groups(&run->plan, seq) * run->plan.n_head_groups;
    for (int index = 0; index < groups; index++) {
        attn_group g = group_of(run, seq, index);
        n += (size_t)segments_of(&g);
    }
    return n;
}

/* Runs the slice split when that pays and its parts fit; false: it did not. */
static bool run_split(attn_run *run, size_t groups)
{
    st_ops *ops = run->ops;
    if (!ops->parts || groups >= SPLIT_BELOW * (size_t)st_pool_threads(ops->pool))
        return false;
    size_t tasks = 0;
    for (int i = 0; i < run->n_seqs; i++) {
        ops->first_task[i] = tasks;
        tasks += segment_tasks(run, &run->seqs[i]);
    }
    ops->first_task[run->n_seqs] = tasks;
    run->part_row = (size_t)run->shape->v_dim + ST_ATTN_PART_EXTRA;
    run->part_stride =
        (size_t)run->plan.heads_each * (size_t)run->plan.queries_each * run->part_row;
    if (tasks == groups || tasks * run->part_stride > ops->parts_cap)
        return false;
    st_pool_run(ops->pool, tasks, part_task, run);
    st_pool_run(ops->pool, tasks, merge_task, run);
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
    for (int i = 0; i < n_seqs; i += OPS_SLICE) {
        attn_run run = {.ops = ops,
                        .mla = mla,
                        .out = out,
                        .q = q,
                        .shape = shape,
                        .kv = kv,
                        .seqs = seqs + i,
                        .n_seqs = n_seqs - i < OPS_SLICE ? n_seqs - i : OPS_SLICE,
                        .plan = plan_groups(mla, shape)};
        run_slice(&run);
    }
    ops->ns[ST_OP_ATTENTION] += st_now_ns() - start;
}
