/* Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): the cache holds one latent row
 * [kv_lora | rope] a token. Absorbed, queries are taken into the latent space by each head's key
 * expansion, and the attended latents out of it by the value expansion. Expanded, most of a
 * prompt's queries stay as they are and the latents are expanded for them (expand_rule.c says whose
 * rows these are). */
#include <string.h>

#include "model/model_impl.h"

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

/* The end of the run of rows from `row` on, before `end`, that attend in the same way. */
static int32_t same_way(const st_work *w, int32_t row, int32_t end)
{
    int32_t next = row + 1;
    while (next < end && w->expanded[next] == w->expanded[row])
        next++;
    return next;
}

/* lat = q through uk[h], whose integers are without their scales: the query takes these. */
static void absorb_scaled(const mla_run *r, int32_t h, const st_act *q, float *lat, size_t ldl,
                          int worker)
{
    const st_model *m = r->m;
    const st_kv_b *b = &m->layers[r->layer].mla.kv_b;
    size_t nope = (size_t)q->k;
    const float *scale = b->key_scale + (size_t)h * (size_t)b->key_groups * nope;
    float *scaled = m->work.scaled_q + (size_t)worker * ST_HEAD_TASK_TOKENS * nope;
    const st_act a = {.x = scaled, .ld = nope, .m = q->m, .k = q->k};
    int32_t n = m->config.kv_lora_rank;
    for (int32_t at = 0; at < n; at += b->key_group, scale += nope) {
        for (size_t i = 0; i < (size_t)q->m; i++)
            for (size_t d = 0; d < nope; d++)
                scaled[i * nope + d] = q->x[i * q->ld + d] * scale[d];
        int32_t end = n - at < b->key_group ? n : at + b->key_group;
        m->k->matmul_float(lat, ldl, &a, &b->uk[h], at, end);
    }
}

/* Rows [row, end) of one head: into the latent space, and the rotated part. */
static void absorb_queries(const mla_run *r, int32_t h, int32_t row, int32_t end, int worker)
{
    const st_model *m = r->m;
    const st_model_config *c = &m->config;
    int32_t nope = c->qk_nope_head_dim, rope = c->qk_rope_head_dim, lora = c->kv_lora_rank;
    size_t ldq = (size_t)c->n_heads * (size_t)(nope + rope);
    size_t ldl = (size_t)c->n_heads * (size_t)(lora + rope);
    const float *q = m->work.q + (size_t)row * ldq + (size_t)h * (size_t)(nope + rope);
    float *lat = m->work.q_lat + (size_t)row * ldl + (size_t)h * (size_t)(lora + rope);
    const st_act a = {.x = q, .ld = ldq, .m = end - row, .k = nope};
    const st_kv_b *b = &m->layers[r->layer].mla.kv_b;
    if (b->key_scale)
        absorb_scaled(r, h, &a, lat, ldl, worker);
    else
        m->k->matmul_float(lat, ldl, &a, &b->uk[h], 0, lora);
    for (; row < end; row++, q += ldq, lat += ldl) {
        memcpy(lat + lora, q + nope, (size_t)rope * sizeof *lat);
        rotate(m, lat + lora, row);
    }
}

/* Rows [row, end) of one head that attend expanded: rotated in place. */
static void rotate_queries(const mla_run *r, int32_t h, int32_t row, int32_t end)
{
    const st_model_config *c = &r->m->config;
    size_t head = (size_t)(c->qk_nope_head_dim + c->qk_rope_head_dim);
    for (; row < end; row++)
        rotate(r->m,
               r->m->work.q + ((size_t)row * (size_t)c->n_heads + (size_t)h) * head +
                   c->qk_nope_head_dim,
               row);
}

/* Queries of one head and a group of tokens. */
static void query_task(void *arg, size_t task, int worker)
{
    const mla_run *r = arg;
    const st_work *w = &r->m->work;
    int32_t heads = r->m->config.n_heads, h = (int32_t)(task % (size_t)heads);
    int32_t row = (int32_t)(task / (size_t)heads) * ST_HEAD_TASK_TOKENS;
    int32_t end = row + ST_HEAD_TASK_TOKENS < r->s->n ? row + ST_HEAD_TASK_TOKENS : r->s->n;
    for (int32_t next; row < end; row = next) {
        next = same_way(w, row, end);
        if (w->expanded[row])
            rotate_queries(r, h, row, next);
        else
            absorb_queries(r, h, row, next, worker);
    }
}

/* Whoever brings a group of tokens its last head quantizes its rows: they are complete then, those
 * attended expanded were before. */
static void quantize_finished(const mla_run *r, size_t task)
{
    st_model *m = r->m;
    size_t group = task / (size_t)m->config.n_heads;
    if (!m->layers[r->layer].quantize_o ||
        atomic_fetch_add_explicit(&m->work.heads_done[group], 1, memory_order_acq_rel) + 1 <
            m->config.n_heads)
        return;
    int32_t row = (int32_t)group * ST_HEAD_TASK_TOKENS;
    int32_t n = r->s->n - row < ST_HEAD_TASK_TOKENS ? r->s->n - row : ST_HEAD_TASK_TOKENS;
    st_act a = st_rows_act(&m->work.o, row, n);
    m->k->quantize(&a);
}

/* Absorbed outputs of one head and a group of tokens: out of the latent space. */
static void value_task(void *arg, size_t task, int worker)
{
    const mla_run *r = arg;
    const st_model *m = r->m;
    const st_model_config *c = &m->config;
    const st_work *w = &m->work;
    int32_t h = (int32_t)(task % (size_t)c->n_heads), v = c->v_head_dim;
    int32_t row = (int32_t)(task / (size_t)c->n_heads) * ST_HEAD_TASK_TOKENS;
    int32_t end = row + ST_HEAD_TASK_TOKENS < r->s->n ? row + ST_HEAD_TASK_TOKENS : r->s->n;
    size_t ldl = (size_t)c->n_heads * (size_t)c->kv_lora_rank, ldo = (size_t)c->n_heads * (size_t)v;
    for (int32_t next; row < end; row = next) {
        next = same_way(w, row, end);
        if (w->expanded[row])
            continue;
        const st_act a = {.x = w->o_lat + (size_t)row * ldl + (size_t)h * (size_t)c->kv_lora_rank,
                          .ld = ldl,
                          .m = next - row,
                          .k = c->kv_lora_rank};
        m->k->matmul_float(w->o.x + (size_t)row * ldo + (size_t)h * (size_t)v, ldo, &a,
                           &m->layers[r->layer].mla.kv_b.uv[h], 0, v);
    }
    quantize_finished(r, task);
}

static void attend_expanded(const mla_run *r)
{
    st_model *m = r->m;
    const st_mla_weights *a = &m->layers[r->layer].mla;
    st_kv_layer kv = st_kv_layer_of(r->s, r->layer);
    st_expand_job job = {.shape = st_expand_shape_of(&m->config),
                         .wk = a->kv_b.wk,
                         .wv = a->kv_b.uv,
                         .q = m->work.q,
                         .out = m->work.o.x,
                         .kv = &kv,
                         .seqs = m->work.expanded_seqs,
                         .n_seqs = m->work.n_expanded_seqs};
    st_op_attention_expanded(m->ops, &job);
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
        (size_t)c->n_heads * (size_t)((s->n + ST_HEAD_TASK_TOKENS - 1) / ST_HEAD_TASK_TOKENS);
    st_op_run_neighbours(m->ops, ST_OP_MATMUL_F, head_tasks, query_task, &run);
    if (w->n_expanded_seqs > 0)
        attend_expanded(&run);
    if (w->n_seqs > 0) {
        st_model_attention(m, s, layer, w->o_lat, w->q_lat);
        for (size_t i = 0; i < head_tasks / (size_t)c->n_heads; i++)
            atomic_store_explicit(&w->heads_done[i], 0, memory_order_relaxed);
        st_op_run_neighbours(m->ops, ST_OP_MATMUL_F, head_tasks, value_task, &run);
    }
    st_model_output_projection(m, s, l, &a->o, w->n_seqs > 0);
}
