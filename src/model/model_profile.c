/* Figures for benchmarks: see model_profile.h. */
#include "model/model_profile.h"

#include "model/model_impl.h"

st_ops *st_model_ops(st_model *m)
{
    return m->ops;
}

static size_t matrix_bytes(const st_model *m, const st_packed *w)
{
    size_t cols = (size_t)m->k->pack_cols;
    return w->n ? ((size_t)w->n + cols - 1) / cols * m->k->pack_block_bytes(w) : 0;
}

static size_t mlp_bytes(const st_model *m, const st_mlp_weights *w)
{
    return matrix_bytes(m, &w->gate.w) + matrix_bytes(m, &w->up.w) + matrix_bytes(m, &w->down.w);
}

static size_t attention_bytes(const st_model *m, const st_layer *l)
{
    if (m->config.attn == ST_ATTN_GQA)
        return matrix_bytes(m, &l->gqa.q.w) + matrix_bytes(m, &l->gqa.k.w) +
               matrix_bytes(m, &l->gqa.v.w) + matrix_bytes(m, &l->gqa.o.w);
    size_t n = matrix_bytes(m, &l->mla.q_a.w) + matrix_bytes(m, &l->mla.q_b.w) +
               matrix_bytes(m, &l->mla.kv_a.w) + matrix_bytes(m, &l->mla.o.w);
    for (int32_t h = 0; h < m->config.n_heads; h++)
        n += matrix_bytes(m, &l->mla.kv_b.uk[h]) + matrix_bytes(m, &l->mla.kv_b.uv[h]);
    return n;
}

size_t st_model_active_bytes(const st_model *m)
{
    /* As for a greedy token: the screen instead of the head it stands for. */
    size_t n = m->screened ? matrix_bytes(m, &m->screen_approx) + matrix_bytes(m, &m->screen_bound)
                           : matrix_bytes(m, &m->head.w);
    for (int32_t i = 0; i < m->config.n_layers; i++) {
        const st_layer *l = &m->layers[i];
        n += attention_bytes(m, l);
        if (!l->is_moe) {
            n += mlp_bytes(m, &l->mlp);
            continue;
        }
        n += matrix_bytes(m, &l->moe.router);
        if (l->moe.shared.gate.w.n)
            n += mlp_bytes(m, &l->moe.shared);
        n += (size_t)m->config.experts_per_token * mlp_bytes(m, &l->moe.experts[0]);
    }
    return n;
}
