/* Names and shapes: which tensors each family's layers are made of (Hugging Face names). */
#include <stdarg.h>
#include <stdio.h>

#include "base/checked.h"
#include "model/model_impl.h"
#include "model/router.h"

/* One layer's place in the checkpoint, and where an error goes. */
typedef struct loader {
    st_model *m;
    st_weights *w;
    int32_t layer;
    char prefix[64]; /* "model.layers.3." */
    char name[256];
    st_error *err;
} loader;

static const char *ST_PRINTF(2, 3) name_of(loader *l, const char *fmt, ...)
{
    va_list args;
    int at = snprintf(l->name, sizeof l->name, "%s", l->prefix);
    va_start(args, fmt);
    vsnprintf(l->name + at, sizeof l->name - (size_t)at, fmt, args);
    va_end(args);
    return l->name;
}

static st_status linear(loader *l, const char *name, int32_t n, int32_t k, bool bias,
                        st_linear *out)
{
    st_status status = st_weights_linear(l->w, name, n, k, bias, out, l->err);
    if (!status && st_takes_int8(out))
        l->m->any_int8 = true;
    return status;
}

static st_status vector(loader *l, const char *name, int32_t n, const float **out)
{
    return st_weights_vector(l->w, name, n, out, l->err);
}

static void *allocate(loader *l, size_t n, size_t size)
{
    size_t bytes;
    void *p = st_mul_size(n, size, &bytes) ? st_arena_alloc(l->m->arena, bytes) : NULL;
    if (!p)
        (void)st_fail(l->err, ST_ENOMEM, "%s: no memory for the table of layers",
                      st_checkpoint_dir(l->m->ckpt));
    return p;
}

static st_status load_mla(loader *l, st_layer *y)
{
    const st_model_config *c = &l->m->config;
    st_mla_weights *a = &y->mla; /* taken in the order of their use, in which packs lie */
    int32_t q = c->n_heads * (c->qk_nope_head_dim + c->qk_rope_head_dim);
    int32_t kv = c->kv_lora_rank + c->qk_rope_head_dim, hidden = c->hidden_size;
    st_status s;
    if (c->q_lora_rank) {
        if ((s = linear(l, name_of(l, "self_attn.q_a_proj"), c->q_lora_rank, hidden, c->qkv_bias,
                        &a->q_a)) ||
            (s = vector(l, name_of(l, "self_attn.q_a_layernorm.weight"), c->q_lora_rank,
                        &a->q_a_norm)))
            return s;
    } else if ((s = linear(l, name_of(l, "self_attn.q_proj"), q, hidden, false, &a->q_b))) {
        return s;
    }
    st_kv_b *b = &a->kv_b;
    b->uk = allocate(l, (size_t)c->n_heads, sizeof *b->uk);
    b->wk = allocate(l, (size_t)c->n_heads, sizeof *b->wk);
    b->uv = allocate(l, (size_t)c->n_heads, sizeof *b->uv);
    if (!b->uk || !b->wk || !b->uv)
        return ST_ENOMEM;
    if ((s = linear(l, name_of(l, "self_attn.kv_a_proj_with_mqa"), kv, hidden, c->qkv_bias,
                    &a->kv_a)) ||
        (s = vector(l, name_of(l, "self_attn.kv_a_layernorm.weight"), c->kv_lora_rank,
                    &a->kv_a_norm)) ||
        (c->q_lora_rank &&
         (s = linear(l, name_of(l, "self_attn.q_b_proj"), q, c->q_lora_rank, false, &a->q_b))) ||
        (s = st_weights_kv_b(l->w, name_of(l, "self_attn.kv_b_proj"), c->n_heads,
                             c->qk_nope_head_dim, c->v_head_dim, c->kv_lora_rank, b, l->err)))
        return s;
    y->quantize_attn_in = st_takes_int8(&a->q_a) || st_takes_int8(&a->kv_a) ||
                          (!c->q_lora_rank && st_takes_int8(&a->q_b));
    y->quantize_q_b = c->q_lora_rank && st_takes_int8(&a->q_b);
    return linear(l, name_of(l, "self_attn.o_proj"), hidden, c->n_heads * c->v_head_dim, c->o_bias,
                  &a->o);
}

static st_status load_gqa(loader *l, st_layer *y)
{
    const st_model_config *c = &l->m->config;
    st_gqa_weights *a = &y->gqa;
    int32_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim, hidden = c->hidden_size;
    st_status s;
    if ((s = linear(l, name_of(l, "self_attn.q_proj"), q, hidden, c->qkv_bias, &a->q)) ||
        (s = linear(l, name_of(l, "self_attn.k_proj"), kv, hidden, c->qkv_bias, &a->k)) ||
        (s = linear(l, name_of(l, "self_attn.v_proj"), kv, hidden, c->qkv_bias, &a->v)) ||
        (s = linear(l, name_of(l, "self_attn.o_proj"), hidden, q, c->o_bias, &a->o)))
        return s;
    y->quantize_attn_in = st_takes_int8(&a->q) || st_takes_int8(&a->k) || st_takes_int8(&a->v);
    if (!c->qk_norm)
        return ST_OK;
    if ((s = vector(l, name_of(l, "self_attn.q_norm.weight"), c->head_dim, &a->q_norm)))
        return s;
    return vector(l, name_of(l, "self_attn.k_norm.weight"), c->head_dim, &a->k_norm);
}

/* The MLP whose tensors start with `name` ("mlp", "mlp.experts.7"). */
static st_status load_mlp(loader *l, const char *name, int32_t width, st_layer *y,
                          st_mlp_weights *out)
{
    int32_t hidden = l->m->config.hidden_size;
    st_status s;
    if ((s = linear(l, name_of(l, "%s.gate_proj", name), width, hidden, false, &out->gate)) ||
        (s = linear(l, name_of(l, "%s.up_proj", name), width, hidden, false, &out->up)) ||
        (s = linear(l, name_of(l, "%s.down_proj", name), hidden, width, false, &out->down)))
        return s;
    y->quantize_mlp_in = y->quantize_mlp_in || st_takes_int8(&out->gate) || st_takes_int8(&out->up);
    y->quantize_down = y->quantize_down || st_takes_int8(&out->down);
    return ST_OK;
}

/* The correction bias stands beside the gate or below it, by dialect. */
static st_status load_router(loader *l, st_moe_weights *moe)
{
    const st_model_config *c = &l->m->config;
    st_status s = st_weights_float(l->w, name_of(l, "mlp.gate.weight"), c->n_experts,
                                   c->hidden_size, &moe->router, l->err);
    if (s || !c->router_bias)
        return s;
    if (!st_weights_has(l->w, name_of(l, "mlp.gate.e_score_correction_bias")) &&
        st_weights_has(l->w, name_of(l, "mlp.e_score_correction_bias")))
        return vector(l, name_of(l, "mlp.e_score_correction_bias"), c->n_experts,
                      &moe->router_bias);
    return vector(l, name_of(l, "mlp.gate.e_score_correction_bias"), c->n_experts,
                  &moe->router_bias);
}

static st_status load_moe(loader *l, st_layer *y)
{
    const st_model_config *c = &l->m->config;
    st_moe_weights *moe = &y->moe;
    char name[64];
    st_status s = load_router(l, moe);
    if (s)
        return s;
    if (!(moe->experts = allocate(l, (size_t)c->n_experts, sizeof *moe->experts)))
        return ST_ENOMEM;
    for (int32_t e = 0; e < c->n_experts; e++) {
        snprintf(name, sizeof name, "mlp.experts.%d", e);
        if ((s = load_mlp(l, name, c->moe_intermediate_size, y, &moe->experts[e])))
            return s;
    }
    if (!c->n_shared_experts)
        return ST_OK;
    return load_mlp(l, "mlp.shared_experts", c->n_shared_experts * c->moe_intermediate_size, y,
                    &moe->shared);
}

static st_status load_layer(loader *l, st_layer *y)
{
    const st_model_config *c = &l->m->config;
    const st_linear *o = c->attn == ST_ATTN_MLA ? &y->mla.o : &y->gqa.o;
    int32_t d = c->hidden_size;
    st_status s;
    snprintf(l->prefix, sizeof l->prefix, "model.layers.%d.", l->layer);
    if ((s = vector(l, name_of(l, "input_layernorm.weight"), d, &y->input_norm)))
        return s;
    if (c->sandwich_norm) {
        if ((s = vector(l, name_of(l, "post_attention_layernorm.weight"), d, &y->post_attn_norm)) ||
            (s = vector(l, name_of(l, "pre_mlp_layernorm.weight"), d, &y->mlp_norm)) ||
            (s = vector(l, name_of(l, "post_mlp_layernorm.weight"), d, &y->post_mlp_norm)))
            return s;
    } else if ((s = vector(l, name_of(l, "post_attention_layernorm.weight"), d, &y->mlp_norm))) {
        return s;
    }
    if ((s = c->attn == ST_ATTN_MLA ? load_mla(l, y) : load_gqa(l, y)))
        return s;
    y->quantize_o = st_takes_int8(o);
    y->is_moe = st_model_layer_is_moe(c, l->layer);
    return y->is_moe ? load_moe(l, y) : load_mlp(l, "mlp", c->intermediate_size, y, &y->mlp);
}

/* A head of floats that does not fit in caches gets a screen. */
static st_status load_screen(loader *l)
{
    st_model *m = l->m;
    const st_model_config *c = &m->config;
    size_t least = m->screen_least ? m->screen_least : ST_SCREEN_LEAST;
    const char *name = c->tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    m->screened = !st_weight_takes_int8(m->head.w.type) && m->head.w.type != ST_WEIGHT_F8 &&
                  !m->head.bias && st_weights_has(l->w, name) &&
                  (size_t)c->vocab_size * (size_t)c->hidden_size * sizeof(uint16_t) >= least;
    if (!m->screened)
        return ST_OK;
    return st_weights_screen(l->w, name, c->vocab_size, c->hidden_size, &m->screen_approx,
                             &m->screen_bound, l->err);
}

st_status st_layers_load(st_model *m, st_weights *w, st_error *err)
{
    const st_model_config *c = &m->config;
    loader l = {.m = m, .w = w, .err = err};
    st_status s;
    if (c->n_experts && c->n_group > ST_ROUTER_MAX_GROUPS)
        return st_fail(err, ST_EUNSUPPORTED, "%s/config.json: n_group is %d: expected at most %d",
                       st_checkpoint_dir(m->ckpt), c->n_group, ST_ROUTER_MAX_GROUPS);
    if ((s = st_weights_table(w, "model.embed_tokens.weight", c->vocab_size, c->hidden_size,
                              &m->embed, err)) ||
        (s = vector(&l, "model.norm.weight", c->hidden_size, &m->final_norm)))
        return s;
    s = c->tie_embeddings ? st_weights_float(w, "model.embed_tokens.weight", c->vocab_size,
                                             c->hidden_size, &m->head.w, err)
                          : linear(&l, "lm_head", c->vocab_size, c->hidden_size, false, &m->head);
    if (s)
        return s;
    if ((s = load_screen(&l)))
        return s;
    m->quantize_last = st_takes_int8(&m->head) || m->screened;
    if (!(m->layers = allocate(&l, (size_t)c->n_layers, sizeof *m->layers)))
        return ST_ENOMEM;
    for (l.layer = 0; l.layer < c->n_layers; l.layer++)
        if ((s = load_layer(&l, &m->layers[l.layer])))
            return s;
    return ST_OK;
}

st_status st_layers_measure(const st_checkpoint *ckpt, const st_kernels *k, size_t *bytes,
                            st_error *err)
{
    st_model m = {.config = *st_checkpoint_config(ckpt), .ckpt = (st_checkpoint *)ckpt, .k = k};
    st_weights *w = NULL;
    st_status s = ST_ENOMEM;
    if (!(m.arena = st_arena_new(0)))
        return st_fail(err, s, "%s: no memory to look at its tensors", st_checkpoint_dir(ckpt));
    if (!(s = st_weights_new(ckpt, k, m.arena, &w, err)))
        s = st_layers_load(&m, w, err);
    if (!s)
        *bytes = st_weights_plan(w)->bytes;
    st_weights_free(w);
    st_arena_free(m.arena);
    return s;
}
