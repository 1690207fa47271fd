/* Which tokens of a request attend with expanded keys and values: see st_model_expanded_until. */
#include "model/model_impl.h"

enum {
    LEAST_STEP = 16,
    MOST_STEP = 256,
    STEPS_IN_PROMPT = 32,
    NO_STEPS_FROM = 64, /* with integers: prompts of so many tokens .. */
    NO_STEPS_BELOW = 1024,
    SHARED_ROWS = 8192 /* latents: 5 MB of 512 values each */
};

st_expand_shape st_expand_shape_of(const st_model_config *c)
{
    return (st_expand_shape){.n_heads = c->n_heads,
                             .kv_lora = c->kv_lora_rank,
                             .nope = c->qk_nope_head_dim,
                             .rope = c->qk_rope_head_dim,
                             .v = c->v_head_dim,
                             .scale = c->attn_scale};
}

int st_expand_shared_rows(const st_model_config *c)
{
    return c->int8_activations ? SHARED_ROWS : 0;
}

/* An absorbed pair costs 2 kv_lora + rope multiply-adds, an expanded one nope + rope + v. */
static bool pays(const st_model_config *c)
{
    return c->attn == ST_ATTN_MLA && c->qk_nope_head_dim + c->v_head_dim < 2 * c->kv_lora_rank;
}

int32_t st_model_expanded_until(const st_model_config *c, int32_t n_prompt)
{
    if (n_prompt < 1 || !pays(c))
        return 0;
    if (c->integer_kv_b && n_prompt >= NO_STEPS_FROM && n_prompt < NO_STEPS_BELOW)
        return n_prompt - 1;
    int32_t step = LEAST_STEP;
    while (step < MOST_STEP && 2 * step <= n_prompt / STEPS_IN_PROMPT)
        step *= 2;
    return (n_prompt - 1) / step * step;
}
