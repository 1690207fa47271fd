/* Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), absorbed: the cache holds one
 * latent row [kv_lora | rope] a token; queries are taken into the latent space by each head's key
 * expansion, and the attended latents out of it by the value expansion. */
#include <string.h>

#include "model/model_impl.h"

/* Tokens of one (head, token group) task. */
#define HEAD_TASK_TOKENS 32

typedef struct mla_run {
    st_model *m;
    const st_step *s;
    int32_t layer, per_task;
} mla_run;

static void rotate(const st_model *m, float *x, int32_t row)
{
    const float *cs = m->work.cos_sin + (size_t)row * (size_t)m->rope.dim;
    if (m->rope.interleaved)
        m->k->rope_interleaved(x, m->rope.dim, cs);
    else
        m->k->rope_half(x, m->rope.dim, cs);
}

/* Per token: norm (and quantize) the compressed query; norm the latent, rotate the shared key,
 * and store both as the token's KV row. */
static void latent_task(void *arg, size_t task, int worker)
{
    const mla_run *r = arg;
    const st_model *m = r->m;
    const st_model_config *c = &m->config;
    const st_work *w = &m->work;
    const st_layer *l = &m->layers[r->layer];
    int32_t row = (int32_t)task * r->per_task;
    int32_t end = row + r->per_task < r->s->n ? row + r->per_task : r->s->n;
    size_t kv_row = (size_t)(c->kv_lora_rank + c->qk_rope_head_dim);
    for (; row < end; row++) {
        if (c->q_lora_rank) {
            st_residual n = st_rows_norm(&w->q_a, row, l->mla.q_a_norm, l->quantize_q_b);
            m->k->residual_norm(&n, c->q_lora_rank, c->rms_norm_eps);
        }
        float *kv = w->kv + (size_t)row * kv_row;
        m->k->rmsnorm(kv, kv_row, kv, kv_row, l->mla.kv_a_norm, 1, c->kv_lora_rank,
                      c->rms_norm_eps);
        rotate(m, kv + c->kv_lora_rank, row);
        st_kv_put(m, r->s, r->layer, row, kv);
    }
}

/* Queries of one head and a group of tokens: into the latent space, and the rotated part. */
static void query_task(void *arg, size_t task, int worker)
{
    const mla_run *r = arg;
    const st_model *m = r->m;
    const st_model_config *c = &m->config;
    const st_work *w = &m->work;
    int32_t h = (int32_t)(task % (size_t)c->n_heads);
    int32_t first = (int32_t)(task / (size_t)c->n_heads) * HEAD_TASK_TOKENS;
    int32_t n = r->s->n - first < HEAD_TASK_TOKENS ? r->s->n - first : HEAD_TASK_TOKENS;
    int32_t nope = c->qk_nope_head_dim, rope = c->qk_rope_head_dim, lora = c->kv_lora_rank;
    size_t ldq = (size_t)c->n_heads * (size_t)(nope + rope);
    size_t ldl = (size_t)c->n_heads * (size_t)(lora + rope);
    const float *q = w->q + (size_t)first * ldq + (size_t)h * (size_t)(nope + rope);
    float *lat = w->q_lat + (size_t)first * ldl + (size_t)h * (size_t)(lora + rope);
    const st_act a = {.x = q, .ld = ldq, .m = n, .k = nope};
    m->k->matmul(lat, ldl, &a, &m->layers[r->layer].mla.uk[h], 0, lora);
    for (int32_t i = 0; i < n; i++) {
        float *rotated = lat + (size_t)i * ldl + lora;
        memcpy(rotated, q + (size_t)i * ldq + nope, (size_t)rope * sizeof *rotated);
        rotate(m, rotated, first + i);
    }
}

/* Outputs of one head and a group of tokens: out of the latent space. */
static void value_task(void *arg, size_t task, int worker)
{
    const mla_run *r = arg;
    const st_model *m = r->m;
    const st_model_config *c = &m->config;
    const st_work *w = &m->work;
    int32_t h = (int32_t)(task % (size_t)c->n_heads), v = c->v_head_dim;
    int32_t first = (int32_t)(task / (size_t)c->n_heads) * HEAD_TASK_TOKENS;
    int32_t n = r->s->n - first < HEAD_TASK_TOKENS ? r->s->n - first : HEAD_TASK_TOKENS;
    size_t ldl = (size_t)c->n_heads * (size_t)c->kv_lora_rank, ldo = (size_t)c->n_heads * (size_t)v;
    const st_act a = {.x = w->o_lat + (size_t)first * ldl + (size_t)h * (size_t)c->kv_lora_rank,
                      .ld = ldl,
                      .m = n,
                      .k = c->kv_lora_rank};
    m->k->matmul(w->o.x + (size_t)first * ldo + (size_t)h * (size_t)v, ldo, &a,
                 &m->layers[r->layer].mla.uv[h], 0, v);
}

/* The input's projections: compressed (or full) queries and the latent row. */
static void project(st_model *m, const st_step *s, const st_mla_weights *a)
{
    st_work *w = &m->work;
    const st_model_config *c = &m->config;
    st_act in = st_rows_act(&w->in, 0, s->n);
    st_matmul_job jobs[2] = {c->q_lora_rank
                                 ? st_linear_job(&a->q_a, in, w->q_a.x, (size_t)c->q_lora_rank)
                                 : st_linear_job(&a->q_b, in, w->q, (size_t)a->q_b.w.n),
                             st_linear_job(&a->kv_a, in, w->kv, (size_t)a->kv_a.w.n)};
    st_op_matmul(m->ops, jobs, 2);
}

void st_mla_run(st_model *m, const st_step *s, int32_t layer)
{
    st_work *w = &m->work;
    const st_model_config *c = &m->config;
    const st_layer *l = &m->layers[layer];
    const st_mla_weights *a = &l->mla;
    mla_run run = {.m = m, .s = s, .layer = layer};
    project(m, s, a);
    run.per_task = st_rows_per_task(m, s->n, c->q_lora_rank + c->kv_lora_rank);
    st_op_run(m->ops, ST_OP_NORM, (size_t)((s->n + run.per_task - 1) / run.per_task), latent_task,
              &run);
    if (st_step_ends_with_kv(m, s, layer))
        return;
    if (c->q_lora_rank) {
        st_matmul_job q_b =
            st_linear_job(&a->q_b, st_rows_act(&w->q_a, 0, s->n), w->q, (size_t)a->q_b.w.n);
        st_op_matmul(m->ops, &q_b, 1);
    }
    size_t head_tasks =
        (size_t)c->n_heads * (size_t)((s->n + HEAD_TASK_TOKENS - 1) / HEAD_TASK_TOKENS);
    st_op_run(m->ops, ST_OP_MATMUL_F, head_tasks, query_task, &run);
    st_model_attention(m, s, layer, w->o_lat, w->q_lat);
    st_op_run(m->ops, ST_OP_MATMUL_F, head_tasks, value_task, &run);
    st_model_output_projection(m, s, l, &a->o);
}
