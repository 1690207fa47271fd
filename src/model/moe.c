/* Mixture of experts. Tokens are sorted by expert once, every chosen expert's gate and up (and
 * the shared experts') run as one task list, then every down. A token's outputs are added in the
 * order of its own choices, so that nothing depends on the batch. */
#include <string.h>

#include "model/model_impl.h"
#include "model/router.h"

typedef struct moe_run {
    st_model *m;
    const st_layer *l;
    int32_t n, per_task;
} moe_run;

static size_t task_count(int32_t rows, int32_t per_task)
{
    return (size_t)((rows + per_task - 1) / per_task);
}

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
        w->expert_of_row[row] = w->choice[i];
    }
    memmove(first + 1, first, (size_t)n_experts * sizeof *first); /* ends become starts */
    first[0] = 0;
}

/* Copies the inputs of experts with several tokens into expert order; an expert with one token
 * reads it where it is. */
static void gather_task(void *arg, size_t task, int worker)
{
    const moe_run *r = arg;
    st_work *w = &r->m->work;
    size_t hidden = (size_t)r->m->config.hidden_size;
    int32_t row = (int32_t)task * r->per_task;
    int32_t end = row + r->per_task < r->n ? row + r->per_task : r->n;
    for (; row < end; row++) {
        int32_t e = w->expert_of_row[row], token = w->token_of_row[row];
        if (w->expert_first[e + 1] - w->expert_first[e] == 1)
            continue;
        size_t from = (size_t)token * hidden, to = (size_t)row * hidden;
        memcpy(w->gathered.x + to, w->in.x + from, hidden * sizeof(float));
        if (r->l->quantize_mlp_in) {
            st_act from_row = st_rows_act(&w->in, token, 1);
            st_act to_row = st_rows_act(&w->gathered, row, 1);
            memcpy(to_row.q, from_row.q, to_row.ldq);
            memcpy(to_row.sum, from_row.sum, st_act_sums(to_row.k) * sizeof *to_row.sum);
            *to_row.scale = *from_row.scale;
        }
    }
}

/* silu(gate) * up of routed rows, then of shared rows. */
static void silu_task(void *arg, size_t task, int worker)
{
    const moe_run *r = arg;
    const st_model *m = r->m;
    const st_work *w = &m->work;
    int32_t row = (int32_t)task * r->per_task, routed = w->expert_first[m->config.n_experts];
    int32_t end = row + r->per_task < r->n ? row + r->per_task : r->n;
    for (; row < end; row++) {
        bool shared = row >= routed;
        st_rows h = shared ? w->h : w->e_h;
        int32_t at = shared ? row - routed : row;
        h.k = shared ? r->l->moe.shared.gate.w.n : m->config.moe_intermediate_size;
        size_t first = (size_t)at * (size_t)h.k;
        m->k->silu_mul(h.x + first, 0, (shared ? w->gate : w->e_gate) + first,
                       (shared ? w->up : w->e_up) + first, 0, 1, h.k);
        if (r->l->quantize_down)
            st_quantize_row(m, &h, at);
    }
}

/* The input rows of expert e. */
static st_act expert_input(const st_work *w, int32_t e)
{
    int32_t first = w->expert_first[e], n = w->expert_first[e + 1] - first;
    return n == 1 ? st_rows_act(&w->in, w->token_of_row[first], 1)
                  : st_rows_act(&w->gathered, first, n);
}

static void run_gate_up(st_model *m, const st_step *s, const st_layer *l)
{
    st_work *w = &m->work;
    int n_jobs = 0;
    size_t width = (size_t)m->config.moe_intermediate_size;
    if (l->moe.shared.gate.w.n) {
        st_act in = st_rows_act(&w->in, 0, s->n);
        size_t n = (size_t)l->moe.shared.gate.w.n;
        w->jobs[n_jobs++] = st_linear_job(&l->moe.shared.gate, in, w->gate, n);
        w->jobs[n_jobs++] = st_linear_job(&l->moe.shared.up, in, w->up, n);
    }
    for (int32_t e = 0; e < m->config.n_experts; e++) {
        if (w->expert_first[e + 1] == w->expert_first[e])
            continue;
        st_act in = expert_input(w, e);
        size_t at = (size_t)w->expert_first[e] * width;
        w->jobs[n_jobs++] = st_linear_job(&l->moe.experts[e].gate, in, w->e_gate + at, width);
        w->jobs[n_jobs++] = st_linear_job(&l->moe.experts[e].up, in, w->e_up + at, width);
    }
    st_op_matmul(m->ops, w->jobs, n_jobs);
}

static void run_down(st_model *m, const st_step *s, const st_layer *l)
{
    st_work *w = &m->work;
    int n_jobs = 0;
    size_t hidden = (size_t)m->config.hidden_size;
    if (l->moe.shared.gate.w.n) {
        st_rows h = w->h;
        h.k = l->moe.shared.gate.w.n;
        w->jobs[n_jobs++] =
            st_linear_job(&l->moe.shared.down, st_rows_act(&h, 0, s->n), w->branch, hidden);
    }
    for (int32_t e = 0; e < m->config.n_experts; e++) {
        int32_t first = w->expert_first[e], n = w->expert_first[e + 1] - first;
        if (n)
            w->jobs[n_jobs++] =
                st_linear_job(&l->moe.experts[e].down, st_rows_act(&w->e_h, first, n),
                              w->e_out + (size_t)first * hidden, hidden);
    }
    st_op_matmul(m->ops, w->jobs, n_jobs);
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
    st_op_run(m->ops, ST_OP_ROUTER, task_count(run.n, run.per_task), choose_task, &run);
    sort_by_expert(m, s->n);
    if (s->n > 1) {
        run.n = s->n * c->experts_per_token;
        run.per_task = st_rows_per_task(m, run.n, c->hidden_size);
        st_op_run(m->ops, ST_OP_ROUTER, task_count(run.n, run.per_task), gather_task, &run);
    }
    run_gate_up(m, s, l);
    run.n = s->n * c->experts_per_token + (l->moe.shared.gate.w.n ? s->n : 0);
    run.per_task = st_rows_per_task(m, run.n, 4 * c->moe_intermediate_size);
    st_op_run(m->ops, ST_OP_ELEMENTWISE, task_count(run.n, run.per_task), silu_task, &run);
    run_down(m, s, l);
}

void st_moe_combine_row(const st_model *m, const st_layer *l, int32_t row)
{
    const st_work *w = &m->work;
    size_t hidden = (size_t)m->config.hidden_size, k = (size_t)m->config.experts_per_token;
    float *y = w->branch + (size_t)row * hidden;
    if (!l->moe.shared.gate.w.n)
        memset(y, 0, hidden * sizeof *y);
    for (size_t slot = (size_t)row * k; slot < ((size_t)row + 1) * k; slot++)
        m->k->add_scaled(y, w->e_out + (size_t)w->row_of_slot[slot] * hidden,
                         w->choice_weight[slot], m->config.hidden_size);
}
