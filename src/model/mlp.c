/* The dense MLP: down(silu(gate(x)) * up(x)). */
#include "model/model_impl.h"

typedef struct silu_run {
    st_model *m;
    const st_layer *l;
    int32_t n, per_task;
} silu_run;

static void silu_task(void *arg, size_t task, int worker)
{
    const silu_run *r = arg;
    st_work *w = &r->m->work;
    int32_t width = r->l->mlp.gate.w.n, row = (int32_t)task * r->per_task;
    int32_t end = row + r->per_task < r->n ? row + r->per_task : r->n;
    st_rows h = w->h;
    h.k = width;
    for (; row < end; row++) {
        size_t at = (size_t)row * (size_t)width;
        r->m->k->silu_mul(h.x + at, 0, w->gate + at, w->up + at, 0, 1, width);
        if (r->l->quantize_down)
            st_quantize_row(r->m, &h, row);
    }
}

void st_mlp_run(st_model *m, const st_step *s, const st_layer *l)
{
    st_work *w = &m->work;
    const st_mlp_weights *mlp = &l->mlp;
    size_t width = (size_t)mlp->gate.w.n;
    st_act in = st_rows_act(&w->in, 0, s->n);
    st_matmul_job jobs[2] = {st_linear_job(&mlp->gate, in, w->gate, width),
                             st_linear_job(&mlp->up, in, w->up, width)};
    st_op_matmul(m->ops, jobs, 2);
    silu_run run = {.m = m, .l = l, .n = s->n};
    run.per_task = st_rows_per_task(m, s->n, mlp->gate.w.n);
    st_op_run(m->ops, ST_OP_ELEMENTWISE, (size_t)((s->n + run.per_task - 1) / run.per_task),
              silu_task, &run);
    st_rows h = w->h;
    h.k = mlp->gate.w.n;
    st_matmul_job down = st_linear_job(&mlp->down, st_rows_act(&h, 0, s->n), w->branch,
                                       (size_t)m->config.hidden_size);
    st_op_matmul(m->ops, &down, 1);
}
