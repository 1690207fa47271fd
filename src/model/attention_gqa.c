/* Grouped-query attention (Qwen2, Qwen3): optional biases, optional per-head norms of queries and
 * keys before the rotation. A KV row is [k of all KV heads | v of all KV heads]. */
#include "model/model_impl.h"

typedef struct gqa_run {
    st_model *m;
    const st_step *s;
    int32_t layer, per_task;
} gqa_run;

/* Norms and rotates n heads of one token in place. */
static void finish_heads(const st_model *m, float *x, int32_t n, const float *norm, int32_t row)
{
    size_t d = (size_t)m->config.head_dim;
    const float *cs = m->work.cos_sin + (size_t)row * d;
    if (norm)
        m->k->rmsnorm(x, d, x, d, norm, n, m->config.head_dim, m->config.rms_norm_eps);
    for (int32_t h = 0; h < n; h++) {
        if (m->rope.interleaved)
            m->k->rope_interleaved(x + (size_t)h * d, m->config.head_dim, cs);
        else
            m->k->rope_half(x + (size_t)h * d, m->config.head_dim, cs);
    }
}

static void token_task(void *arg, size_t task, int worker)
{
    const gqa_run *r = arg;
    const st_model *m = r->m;
    const st_model_config *c = &m->config;
    const st_gqa_weights *a = &m->layers[r->layer].gqa;
    int32_t row = (int32_t)task * r->per_task;
    int32_t end = row + r->per_task < r->s->n ? row + r->per_task : r->s->n;
    size_t q_row = (size_t)c->n_heads * (size_t)c->head_dim;
    size_t kv_row = 2 * (size_t)c->n_kv_heads * (size_t)c->head_dim;
    for (; row < end; row++) {
        float *kv = m->work.kv + (size_t)row * kv_row;
        finish_heads(m, m->work.q + (size_t)row * q_row, c->n_heads, a->q_norm, row);
        finish_heads(m, kv, c->n_kv_heads, a->k_norm, row);
        st_kv_put(m, r->s, r->layer, row, kv);
    }
}

void st_gqa_run(st_model *m, const st_step *s, int32_t layer)
{
    st_work *w = &m->work;
    const st_layer *l = &m->layers[layer];
    const st_gqa_weights *a = &l->gqa;
    size_t n_q = (size_t)a->q.w.n, n_kv = (size_t)a->k.w.n;
    st_act in = st_rows_act(&w->in, 0, s->n);
    st_matmul_job jobs[3] = {st_linear_job(&a->q, in, w->q, n_q),
                             st_linear_job(&a->k, in, w->kv, 2 * n_kv),
                             st_linear_job(&a->v, in, w->kv + n_kv, 2 * n_kv)};
    st_op_matmul(m->ops, jobs, 3);
    gqa_run run = {.m = m, .s = s, .layer = layer};
    run.per_task = st_rows_per_task(m, s->n, (int32_t)(n_q + 2 * n_kv));
    st_op_run(m->ops, ST_OP_ELEMENTWISE, (size_t)((s->n + run.per_task - 1) / run.per_task),
              token_task, &run);
    if (st_step_ends_with_kv(m, s, layer))
        return;
    st_model_attention(m, s, layer, w->o.x, w->q);
    st_model_output_projection(m, s, l, &a->o, false);
}
