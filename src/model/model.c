/* A model's life: options, threads and kernels, the checkpoint, layers, working memory. */
#include <stdlib.h>
#include <xxhash.h>

#include "model/model_impl.h"
#include "model/model_memory.h"

/* Raise this when any order of summation changes: blocks and handovers of engines that sum
 * otherwise must not mix with ours. */
#define ARITHMETIC 3

static st_attn_shape attention_shape(const st_model_config *c)
{
    if (c->attn == ST_ATTN_MLA)
        return (st_attn_shape){.n_heads = c->n_heads,
                               .n_kv_heads = 1,
                               .k_dim = c->kv_lora_rank + c->qk_rope_head_dim,
                               .v_dim = c->kv_lora_rank,
                               .scale = c->attn_scale};
    return (st_attn_shape){.n_heads = c->n_heads,
                           .n_kv_heads = c->n_kv_heads,
                           .k_dim = c->head_dim,
                           .v_dim = c->head_dim,
                           .scale = c->attn_scale};
}

static st_status set_limits(st_model *m, const st_model_options *o, st_error *err)
{
    const st_model_config *c = &m->config;
    m->max_batch_tokens = o->max_batch_tokens ? o->max_batch_tokens : 512;
    m->max_outputs = o->max_outputs ? o->max_outputs : m->max_batch_tokens;
    m->max_len = o->max_model_len ? o->max_model_len : c->max_positions;
    if (m->max_batch_tokens < 0 || m->max_outputs < 0)
        return st_fail(err, ST_EINVAL,
                       "steps of %d tokens and %d outputs: expected positive numbers",
                       m->max_batch_tokens, m->max_outputs);
    if (m->max_len < 1 || m->max_len > c->max_positions)
        return st_fail(err, ST_EINVAL,
                       "a model length of %d: expected 1 to %d, the max_position_embeddings of "
                       "%s/config.json",
                       m->max_len, c->max_positions, st_checkpoint_dir(m->ckpt));
    return ST_OK;
}

static st_status load_weights(st_model *m, const st_model_options *o, st_error *err)
{
    st_weights *w = NULL;
    const st_pack_choice how = {.cache = o->pack_cache,
                                .cache_least = o->pack_cache_least,
                                .progress = o->progress,
                                .progress_user = o->progress_user,
                                .notice = o->notice,
                                .notice_user = o->notice_user};
    st_status status = st_weights_new(m->ckpt, m->k, m->arena, &w, err);
    if (!status)
        status = st_layers_load(m, w, err);
    if (!status) {
        size_t packed = st_weights_plan(w)->bytes;
        const st_memory_steps steps = {.k = m->k,
                                       .threads = st_pool_threads(m->pool),
                                       .max_batch_tokens = m->max_batch_tokens,
                                       .max_outputs = m->max_outputs};
        status = st_model_memory_check(m->ckpt, packed, st_packs_in_file(&how, packed), &steps,
                                       o->memory_limit, err);
    }
    if (!status)
        status = st_packs_make(st_weights_plan(w), &how, m->pool, &m->packs, err);
    if (!status)
        st_checkpoint_want(st_checkpoint_find(m->ckpt, "model.embed_tokens.weight"));
    st_weights_free(w);
    return status;
}

static st_status prepare_expanded(st_model *m, st_error *err)
{
    if (m->config.attn != ST_ATTN_MLA)
        return ST_OK;
    st_expand_shape shape = st_expand_shape_of(&m->config);
    return st_ops_use_expanded(m->ops, &shape, m->max_batch_tokens,
                               st_expand_shared_rows(&m->config), err);
}

st_status st_model_load(const st_model_options *opts, st_model **out, st_error *err)
{
    *out = NULL;
    st_model *m = calloc(1, sizeof *m);
    if (!m)
        return st_fail(err, ST_ENOMEM, "no memory to load %s", opts->dir);
    st_status status = st_checkpoint_open(opts->dir, &m->ckpt, err);
    if (status)
        goto fail;
    m->config = *st_checkpoint_config(m->ckpt);
    uint64_t source = st_checkpoint_fingerprint(m->ckpt);
    m->fingerprint = XXH3_64bits_withSeed(&source, sizeof source, ARITHMETIC);
    if ((status = set_limits(m, opts, err)) || (status = st_rope_init(&m->rope, &m->config, err)) ||
        (status = st_kernels_select(opts->kernels, &m->k, err)) ||
        (status = st_pool_new(opts->n_threads, true, &m->pool, err)))
        goto fail;
    m->shape = attention_shape(&m->config);
    m->screen_least = opts->screen_least;
    if ((status = st_ops_new(m->k, m->pool, &m->shape, &m->ops, err)) ||
        (status = prepare_expanded(m, err)))
        goto fail;
    if (!(m->arena = st_arena_new((size_t)1 << 20))) {
        status = st_fail(err, ST_ENOMEM, "no memory to load %s", opts->dir);
        goto fail;
    }
    if ((status = load_weights(m, opts, err)) || (status = st_work_init(m, err)))
        goto fail;
    if (m->screened && (status = st_screen_new(&m->head.w, &m->screen_approx, &m->screen_bound,
                                               m->k, &m->screen, err)))
        goto fail;
    *out = m;
    return ST_OK;
fail:
    st_model_free(m);
    return status;
}

void st_model_free(st_model *m)
{
    if (!m)
        return;
    st_screen_free(m->screen);
    free(m->work.memory);
    st_packs_free(&m->packs);
    st_arena_free(m->arena);
    st_ops_free(m->ops);
    st_pool_free(m->pool);
    st_checkpoint_free(m->ckpt);
    free(m);
}

void st_model_pin_thread(const st_model *m)
{
    st_pool_pin_caller(m->pool);
}

const st_model_config *st_model_get_config(const st_model *m)
{
    return &m->config;
}

const char *st_model_kernels_name(const st_model *m)
{
    return m->k->name;
}

int32_t st_model_max_len(const st_model *m)
{
    return m->max_len;
}

int32_t st_model_max_batch_tokens(const st_model *m)
{
    return m->max_batch_tokens;
}

int32_t st_model_max_outputs(const st_model *m)
{
    return m->max_outputs;
}

st_kv_row_shape st_model_kv_row(const st_model *m)
{
    return st_config_kv_row(&m->config);
}

int32_t st_model_kv_row_elems(const st_model *m)
{
    return st_kv_row_elems(st_model_kv_row(m));
}

uint64_t st_model_fingerprint(const st_model *m)
{
    return m->fingerprint;
}
