/* Any text as config.json (and, after a NUL, as generation_config.json): refused with a text that
 * names the file, or a configuration whose numbers keep the promises the model relies on. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool sound(const st_model_config *c)
{
    bool ids = c->bos_id >= -1 && c->bos_id < c->vocab_size && c->n_eos <= ST_MAX_EOS;
    for (int32_t i = 0; i < c->n_eos; i++)
        ids = ids && c->eos_ids[i] >= 0 && c->eos_ids[i] < c->vocab_size;
    bool sizes = c->vocab_size > 0 && c->hidden_size > 0 && c->n_layers > 0 &&
                 c->intermediate_size > 0 && c->max_positions > 0 && c->n_heads > 0;
    bool attention = c->attn == ST_ATTN_MLA
                         ? c->kv_lora_rank > 0 && c->qk_nope_head_dim > 0 && c->v_head_dim > 0 &&
                               c->qk_rope_head_dim > 0 && c->qk_rope_head_dim % 2 == 0
                         : c->n_kv_heads > 0 && c->n_heads % c->n_kv_heads == 0 &&
                               c->head_dim > 0 && c->head_dim % 2 == 0;
    bool experts =
        !c->n_experts || (c->experts_per_token > 0 && c->n_group > 0 && c->topk_group > 0 &&
                          c->topk_group <= c->n_group && c->n_experts % c->n_group == 0 &&
                          c->experts_per_token <= c->n_experts / c->n_group * c->topk_group &&
                          c->moe_intermediate_size > 0 && c->moe_layer_freq > 0);
    bool numbers = c->rms_norm_eps > 0 && isfinite(c->rms_norm_eps) && c->rope_theta > 0 &&
                   isfinite(c->attn_scale) && c->attn_scale > 0 &&
                   isfinite(c->rope_attention_factor) && c->rope_attention_factor > 0 &&
                   isfinite(c->routed_scaling_factor);
    return ids && sizes && attention && experts && numbers &&
           (!c->yarn || (c->yarn_factor >= 1 && c->yarn_original_positions > 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    const char *nul = size ? memchr(text, '\0', size) : NULL;
    size_t len = nul ? (size_t)(nul - text) : size;
    st_model_config c;
    st_error err = {0};
    st_status status =
        st_model_config_parse(text, len, nul ? nul + 1 : NULL, nul ? size - len - 1 : 0, &c, &err);
    if (status ? !strstr(err.text, "config.json: ") || err.status != status : !sound(&c))
        abort();
    for (int32_t i = 0; !status && i < c.n_layers; i++)
        (void)st_model_layer_is_moe(&c, i);
    return 0;
}
