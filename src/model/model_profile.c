/* Figures for benchmarks: see model_profile.h. */
#include "model/model_profile.h"

#include "model/model_impl.h"

st_ops *st_model_ops(st_model *m)
{
    return m->ops;
}

static size_t matrix_bytes(const st_matrix *w)
{
    size_t n = (size_t)w->n * (size_t)w->k * st_dtype_size(w->dtype);
    return w->dtype == ST_I8 ? n + (size_t)w->n * (sizeof *w->scale + sizeof *w->row_sum) : n;
}

static size_t mlp_bytes(const st_mlp_weights *w)
{
    return matrix_bytes(&w->gate.w) + matrix_bytes(&w->up.w) + matrix_bytes(&w->down.w);
}

static size_t attention_bytes(const st_model *m, const st_layer *l)
{
    if (m->config.attn == ST_ATTN_GQA)
        return matrix_bytes(&l->gqa.q.w) + matrix_bytes(&l->gqa.k.w) + matrix_bytes(&l->gqa.v.w) +
               matrix_bytes(&l->gqa.o.w);
    size_t n = matrix_bytes(&l->mla.q_a.w) + matrix_bytes(&l->mla.q_b.w) +
               matrix_bytes(&l->mla.kv_a.w) + matrix_bytes(&l->mla.o.w);
    for (int32_t h = 0; h < m->config.n_heads; h++)
        n += matrix_bytes(&l->mla.uk[h]) + matrix_bytes(&l->mla.uv[h]);
    return n;
}

size_t st_model_active_bytes(const st_model *m)
{
    size_t n = matrix_bytes(&m->head.w);
    for (int32_t i = 0; i < m->config.n_layers; i++) {
        const st_layer *l = &m->layers[i];
        n += attention_bytes(m, l);
        if (!l->is_moe) {
            n += mlp_bytes(&l->mlp);
            continue;
        }
        n += matrix_bytes(&l->moe.router);
        if (l->moe.shared.gate.w.n)
            n += mlp_bytes(&l->moe.shared);
        n += (size_t)m->config.experts_per_token * mlp_bytes(&l->moe.experts[0]);
    }
    return n;
}
