/* Mixture of experts. Tokens are sorted by expert once; every chosen expert and the shared ones run
 * as one task list (kernels/ops_experts.h). A token's outputs are added in the order of its own
 * choices, where they join the residual stream, so that nothing depends on the batch. */
#include <string.h>

#include "model/model_impl.h"
#include "model/router.h"

typedef struct moe_run {
    st_model *m;
    const st_layer *l;
    int32_t n, per_task;
} moe_run;

static void choose_task(void *arg, size_t task, int worker)
{
    const moe_run *r = arg;
    const st_model_config *c = &r->m->config;
    st_work *w = &r->m->work;
    int32_t row = (int32_t)task * r->per_task, k = c->experts_per_token;
    int32_t end = row + r->per_task < r->n ? row + r->per_task : r->n;
    for (; row < end; row++)
        st_router_choose(c, r->m->k, w->router + (size_t)row * (size_t)c->n_experts,
                         r->l->moe.router_bias, w->choice + (size_t)row * (size_t)k,
                         w->choice_weight + (size_t)row * (size_t)k);
}

/* Counting sort of (token, slot) by expert; within an expert by token. */
static void sort_by_expert(st_model *m, int32_t n)
{
    st_work *w = &m->work;
    int32_t n_experts = m->config.n_experts, k = m->config.experts_per_token;
    int32_t *first = w->expert_first;
    memset(first, 0, ((size_t)n_experts + 1) * sizeof *first);
    for (int32_t i = 0; i < n * k; i++)
        first[w->choice[i] + 1]++;
    for (int32_t e = 0; e < n_experts; e++)
        first[e + 1] += first[e];
    for (int32_t i = 0; i < n * k; i++) {
        int32_t row = first[w->choice[i]]++;
        w->row_of_slot[i] = row;
        w->token_of_row[row] = i / k;
    }
    memmove(first + 1, first, (size_t)n_experts * sizeof *first); /* ends become starts */
    first[0] = 0;
}

st_expert_job st_mlp_job(const st_mlp_weights *mlp, const st_act *in, int32_t n, const st_rows *h,
                         int32_t first, float *y)
{
    return (st_expert_job){.gate = &mlp->gate.w,
                           .up = &mlp->up.w,
                           .down = &mlp->down.w,
                           .in = in,
                           .n = n,
                           .h = st_rows_room(h, first, mlp->gate.w.n),
                           .y = y,
                           .ldy = (size_t)in->k};
}

static void run_experts(st_model *m, const st_step *s, const st_layer *l)
{
    st_work *w = &m->work;
    st_act in = st_rows_act(&w->in, 0, s->n);
    size_t hidden = (size_t)m->config.hidden_size;
    int n_jobs = 0;
    if (l->moe.shared.gate.w.n)
        w->experts[n_jobs++] = st_mlp_job(&l->moe.shared, &in, s->n, &w->h, 0, w->branch);
    for (int32_t e = 0; e < m->config.n_experts; e++) {
        int32_t first = w->expert_first[e], n = w->expert_first[e + 1] - first;
        if (n == 0)
            continue;
        st_expert_job *job = &w->experts[n_jobs++];
        *job = st_mlp_job(&l->moe.experts[e], &in, n, &w->e_h, first,
                          w->e_out + (size_t)first * hidden);
        job->rows = w->token_of_row + first;
        job->gathered = st_rows_room(&w->gathered, first, m->config.hidden_size);
    }
    st_op_experts(m->ops, w->experts, n_jobs);
}

void st_moe_run(st_model *m, const st_step *s, const st_layer *l)
{
    st_work *w = &m->work;
    const st_model_config *c = &m->config;
    st_matmul_job router = {.w = &l->moe.router,
                            .a = st_rows_act(&w->in, 0, s->n),
                            .y = w->router,
                            .ldy = (size_t)c->n_experts};
    st_op_matmul(m->ops, &router, 1);
    moe_run run = {.m = m, .l = l, .n = s->n};
    run.per_task = st_rows_per_task(m, run.n, 16 * c->n_experts);
    st_op_run(m->ops, ST_OP_ROUTER, (size_t)((run.n + run.per_task - 1) / run.per_task),
              choose_task, &run);
    sort_by_expert(m, s->n);
    run_experts(m, s, l);
}
