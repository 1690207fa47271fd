/* config.json into st_model_config: finds the family, applies the rows of config_table.c, then
 * checks that the numbers fit together. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "model/checkpoint.h"
#include "model/config_parts.h"
#include "model/config_table.h"

/* --- JSON ------------------------------------------------------------------------------- */

json_t *st_config_get(json_t *object, const char *name)
{
    json_t *v = json_object_get(object, name);
    return json_is_null(v) ? NULL : v;
}

const char *st_config_text(json_t *value, char *buf, size_t cap)
{
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    size_t n = text ? strlen(text) : 0;
    if (!text) {
        snprintf(buf, cap, "null");
    } else if (n < cap) {
        memcpy(buf, text, n + 1);
    } else {
        n = cap - sizeof "...";
        n -= st_utf8_incomplete_tail(text, n);
        memcpy(buf, text, n);
        memcpy(buf + n, "...", sizeof "...");
    }
    free(text);
    return buf;
}

static st_status load(const char *file, const char *json, size_t len, json_t **root, st_error *err)
{
    json_error_t je;
    *root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &je);
    if (!*root)
        return st_fail(err, ST_EFORMAT, "%s: broken JSON in line %d, column %d: %s", file, je.line,
                       je.column, je.text);
    if (!json_is_object(*root))
        return st_fail(err, ST_EFORMAT, "%s: expected a JSON object", file);
    return ST_OK;
}

/* --- family ------------------------------------------------------------------------------ */

static st_status unknown_family(const char *key, const char *name, st_error *err)
{
    char list[512];
    size_t at = 0;
    for (size_t i = 0; i < st_n_families && at < sizeof list; i++)
        at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", i ? ", " : "",
                               st_families[i].model_type);
    return st_fail(err, ST_EUNSUPPORTED,
                   "config.json: %s '%.100s' is not a supported family; supported are %s", key,
                   name, list);
}

static st_status find_family(json_t *root, const st_family **family, st_error *err)
{
    json_t *type = st_config_get(root, "model_type");
    json_t *arch = json_array_get(json_object_get(root, "architectures"), 0);
    if ((type && !json_is_string(type)) || (!type && !json_is_string(arch)))
        return st_fail(err, ST_EFORMAT,
                       "config.json: model_type is missing; expected a text such as "
                       "\"deepseek_v3\"");
    const char *name = json_string_value(type ? type : arch);
    for (size_t i = 0; i < st_n_families; i++) {
        const st_family *f = &st_families[i];
        if (strcmp(name, type ? f->model_type : f->architecture) == 0) {
            *family = f;
            return ST_OK;
        }
    }
    return unknown_family(type ? "model_type" : "architectures[0]", name, err);
}

/* --- keys of the table ------------------------------------------------------------------- */

/* Looks up every spelling of names; *name gets the one found (or the first). Two spellings with
 * different values are an error. */
static st_status lookup(json_t *root, const char *names, char name[64], json_t **value,
                        st_error *err)
{
    *value = NULL;
    for (const char *p = names; *p;) {
        size_t n = strcspn(p, "|");
        char spelling[64];
        snprintf(spelling, sizeof spelling, "%.*s", (int)n, p);
        json_t *v = st_config_get(root, spelling);
        if (v && *value && !json_equal(v, *value))
            return st_fail(err, ST_EFORMAT,
                           "config.json: %s and %s mean the same but have different values", name,
                           spelling);
        if ((v && !*value) || p == names)
            memcpy(name, spelling, sizeof spelling);
        if (v)
            *value = v;
        p += n + (p[n] == '|');
    }
    return ST_OK;
}

static st_status set_number(const st_config_key *key, const char *name, json_t *value, void *dst,
                            st_error *err)
{
    char text[64];
    if (key->type == ST_KEY_INT) {
        json_int_t v = json_integer_value(value);
        if (!json_is_integer(value) || (double)v < key->min || (double)v > key->max)
            return st_fail(err, ST_EFORMAT,
                           "config.json: %s is %s; expected a whole number from %.0f to %.0f", name,
                           st_config_text(value, text, sizeof text), key->min, key->max);
        *(int32_t *)dst = (int32_t)v;
        return ST_OK;
    }
    double v = json_number_value(value);
    if (!json_is_number(value) || !(v > key->min) || v > key->max ||
        (key->type == ST_KEY_FLOAT && !((float)v > 0)))
        return st_fail(err, ST_EFORMAT,
                       "config.json: %s is %s; expected a number above %g and at most %g", name,
                       st_config_text(value, text, sizeof text), key->min, key->max);
    if (key->type == ST_KEY_FLOAT)
        *(float *)dst = (float)v;
    else
        *(double *)dst = v;
    return ST_OK;
}

static st_status apply_key(json_t *root, const st_config_key *key, st_model_config *c,
                           st_error *err)
{
    char name[64], text[64];
    json_t *value;
    st_status s = lookup(root, key->names, name, &value, err);
    if (s)
        return s;
    if (!value && key->required)
        return st_fail(err, ST_EFORMAT, "config.json: %s is missing", name);
    if (!value)
        return ST_OK;
    void *dst = (char *)c + key->offset;
    if (key->type != ST_KEY_BOOL)
        return set_number(key, name, value, dst, err);
    if (!json_is_boolean(value))
        return st_fail(err, ST_EFORMAT, "config.json: %s is %s; expected true or false", name,
                       st_config_text(value, text, sizeof text));
    *(bool *)dst = json_is_true(value);
    return ST_OK;
}

/* --- keys with rules of their own -------------------------------------------------------- */

static st_status expect_plain(json_t *root, st_error *err)
{
    char text[64];
    json_t *act = st_config_get(root, "hidden_act");
    if (act && (!json_is_string(act) || strcmp(json_string_value(act), "silu") != 0))
        return st_fail(err, ST_EUNSUPPORTED,
                       "config.json: hidden_act is %s; only \"silu\" is supported",
                       st_config_text(act, text, sizeof text));
    if (json_is_true(json_object_get(root, "use_sliding_window")))
        return st_fail(err, ST_EUNSUPPORTED,
                       "config.json: use_sliding_window is true; sliding-window attention is not "
                       "supported");
    json_t *layer_types = st_config_get(root, "layer_types"), *kind;
    size_t i;
    json_array_foreach(layer_types, i, kind)
    {
        const char *name = json_string_value(kind);
        if (!name || strcmp(name, "full_attention") != 0)
            return st_fail(err, ST_EUNSUPPORTED,
                           "config.json: layer_types[%zu] is %s; only \"full_attention\" is "
                           "supported",
                           i, st_config_text(kind, text, sizeof text));
    }
    if (json_is_true(json_object_get(root, "mlp_bias")))
        return st_fail(err, ST_EUNSUPPORTED,
                       "config.json: mlp_bias is true; biases in the MLP are not supported");
    return ST_OK;
}

static st_status parse_router(json_t *root, st_model_config *c, st_error *err)
{
    char text[64];
    json_t *scoring = st_config_get(root, "scoring_func");
    json_t *method = st_config_get(root, "topk_method");
    const char *name = json_string_value(scoring);
    if (scoring) {
        if (name && strcmp(name, "softmax") == 0)
            c->router = ST_ROUTER_SOFTMAX;
        else if (name && strcmp(name, "sigmoid") == 0)
            c->router = ST_ROUTER_SIGMOID;
        else
            return st_fail(err, ST_EUNSUPPORTED,
                           "config.json: scoring_func is %s; supported are \"softmax\" and "
                           "\"sigmoid\"",
                           st_config_text(scoring, text, sizeof text));
    }
    name = json_string_value(method);
    bool greedy = method ? name && strcmp(name, "greedy") == 0 : !c->router_bias;
    if (method && name && strcmp(name, "noaux_tc") == 0)
        c->router_bias = true;
    else if (greedy || (name && strcmp(name, "group_limited_greedy") == 0))
        c->router_bias = false;
    else if (method)
        return st_fail(err, ST_EUNSUPPORTED,
                       "config.json: topk_method is %s; supported are \"greedy\", "
                       "\"group_limited_greedy\" and \"noaux_tc\"",
                       st_config_text(method, text, sizeof text));
    if (greedy)
        c->n_group = c->topk_group = 1;
    return ST_OK;
}

static st_status parse_mlp_only(json_t *root, st_model_config *c, st_error *err)
{
    char text[64];
    json_t *list = st_config_get(root, "mlp_only_layers"), *item;
    if (!list)
        return ST_OK;
    if (!json_is_array(list) || json_array_size(list) > ST_MAX_MLP_ONLY)
        return st_fail(err, ST_EFORMAT,
                       "config.json: mlp_only_layers is %s; expected a list of at most %d layer "
                       "numbers",
                       st_config_text(list, text, sizeof text), ST_MAX_MLP_ONLY);
    size_t i;
    json_array_foreach(list, i, item)
    {
        if (!json_is_integer(item) || json_integer_value(item) < 0 ||
            json_integer_value(item) >= c->n_layers)
            return st_fail(err, ST_EFORMAT,
                           "config.json: mlp_only_layers[%zu] is %s; expected a layer number from "
                           "0 to %d",
                           i, st_config_text(item, text, sizeof text), c->n_layers - 1);
        c->mlp_only_layers[c->n_mlp_only_layers++] = (int32_t)json_integer_value(item);
    }
    return ST_OK;
}

/* eos_token_id: a number or a list of numbers. */
static st_status parse_eos(const char *file, json_t *root, st_model_config *c, st_error *err)
{
    char text[64];
    json_t *eos = st_config_get(root, "eos_token_id");
    if (!eos)
        return ST_OK;
    size_t n = json_is_array(eos) ? json_array_size(eos) : 1;
    if (n > ST_MAX_EOS)
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: eos_token_id lists %zu ids; at most %d are supported", file, n,
                       ST_MAX_EOS);
    c->n_eos = 0;
    for (size_t i = 0; i < n; i++) {
        json_t *id = json_is_array(eos) ? json_array_get(eos, i) : eos;
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= c->vocab_size)
            return st_fail(err, ST_EFORMAT,
                           "%s: eos_token_id holds %s; expected token ids from 0 to %d", file,
                           st_config_text(id, text, sizeof text), c->vocab_size - 1);
        c->eos_ids[c->n_eos++] = (int32_t)json_integer_value(id);
    }
    return ST_OK;
}

/* --- numbers that follow from others, and checks across keys ----------------------------- */

static void derive(const st_family *f, st_model_config *c)
{
    if (f->traits & ST_TRAIT_O_BIAS)
        c->qkv_bias = c->o_bias;
    if (c->attn == ST_ATTN_GQA) {
        if (!c->n_kv_heads)
            c->n_kv_heads = c->n_heads;
        if (!c->head_dim)
            c->head_dim = f->traits & ST_TRAIT_HEAD_DIM_128 ? 128 : c->hidden_size / c->n_heads;
    } else {
        c->n_kv_heads = c->n_heads;
    }
    if (!c->n_group)
        c->n_group = c->topk_group = 1;
    if (!c->topk_group)
        c->topk_group = 1;
    if (!c->moe_layer_freq)
        c->moe_layer_freq = 1;
    int32_t k_dim =
        c->attn == ST_ATTN_GQA ? c->head_dim : c->qk_nope_head_dim + c->qk_rope_head_dim;
    double scale = 1 / sqrt(k_dim > 0 ? k_dim : 1);
    if (c->yarn && c->attn == ST_ATTN_MLA && c->yarn_mscale_all_dim > 0) {
        double m = st_yarn_mscale(c->yarn_factor, c->yarn_mscale_all_dim);
        scale *= m * m;
    }
    c->attn_scale = (float)scale;
}

static st_status check_attention(const st_model_config *c, st_error *err)
{
    if (c->attn == ST_ATTN_MLA) {
        if (c->qk_rope_head_dim % 2)
            return st_fail(err, ST_EFORMAT,
                           "config.json: qk_rope_head_dim is %d; rotary embedding needs an even "
                           "number",
                           c->qk_rope_head_dim);
        return ST_OK;
    }
    if (c->head_dim < 2 || c->head_dim % 2)
        return st_fail(err, ST_EFORMAT,
                       "config.json: head_dim is %d (hidden_size %d, num_attention_heads %d); "
                       "rotary embedding needs an even number",
                       c->head_dim, c->hidden_size, c->n_heads);
    if (c->n_heads % c->n_kv_heads)
        return st_fail(err, ST_EFORMAT,
                       "config.json: num_attention_heads %d is not a multiple of "
                       "num_key_value_heads %d",
                       c->n_heads, c->n_kv_heads);
    return ST_OK;
}

static st_status check_experts(const st_model_config *c, st_error *err)
{
    if (!c->n_experts)
        return ST_OK;
    if (!c->experts_per_token || !c->moe_intermediate_size)
        return st_fail(err, ST_EFORMAT, "config.json: %s is missing",
                       c->experts_per_token ? "moe_intermediate_size" : "num_experts_per_tok");
    if (c->experts_per_token > c->n_experts)
        return st_fail(err, ST_EFORMAT,
                       "config.json: num_experts_per_tok %d is more than the %d routed experts",
                       c->experts_per_token, c->n_experts);
    if (c->n_experts % c->n_group)
        return st_fail(err, ST_EFORMAT,
                       "config.json: the %d routed experts cannot be split into n_group %d equal "
                       "groups",
                       c->n_experts, c->n_group);
    if (c->topk_group > c->n_group)
        return st_fail(err, ST_EFORMAT, "config.json: topk_group %d is more than n_group %d",
                       c->topk_group, c->n_group);
    int32_t reachable = c->topk_group * (c->n_experts / c->n_group);
    if (c->experts_per_token > reachable)
        return st_fail(err, ST_EFORMAT,
                       "config.json: num_experts_per_tok %d is more than the %d experts of "
                       "topk_group %d groups",
                       c->experts_per_token, reachable, c->topk_group);
    return ST_OK;
}

static st_status check(const st_model_config *c, st_error *err)
{
    if (c->bos_id >= c->vocab_size)
        return st_fail(err, ST_EFORMAT,
                       "config.json: bos_token_id is %d; expected a token id from 0 to %d",
                       c->bos_id, c->vocab_size - 1);
    if (c->first_dense_layers > c->n_layers)
        return st_fail(err, ST_EFORMAT,
                       "config.json: first_k_dense_replace %d is more than the %d layers",
                       c->first_dense_layers, c->n_layers);
    st_status s = check_attention(c, err);
    return s ? s : check_experts(c, err);
}

/* --- entry points ------------------------------------------------------------------------ */

static st_status parse(json_t *root, json_t *generation, st_model_config *c, st_error *err)
{
    const st_family *f = NULL;
    st_status s = find_family(root, &f, err);
    if (s)
        return s;
    *c = f->defaults;
    c->bos_id = -1;
    snprintf(c->model_type, sizeof c->model_type, "%s", f->model_type);
    if ((s = expect_plain(root, err)))
        return s;
    for (size_t i = 0; i < st_n_config_keys; i++) {
        const st_config_key *key = &st_config_keys[i];
        if ((!key->traits || (key->traits & f->traits)) && (s = apply_key(root, key, c, err)))
            return s;
    }
    if ((f->traits & ST_TRAIT_DEEPSEEK) && (s = parse_router(root, c, err)))
        return s;
    if ((f->traits & ST_TRAIT_QWEN_MOE) && (s = parse_mlp_only(root, c, err)))
        return s;
    if ((s = parse_eos("config.json", root, c, err)) ||
        (s = parse_eos("generation_config.json", generation, c, err)) ||
        (s = st_config_rope(root, c, err)) || (s = st_config_quant(root, c, err)))
        return s;
    derive(f, c);
    return check(c, err);
}

st_status st_model_config_parse(const char *json, size_t len, const char *generation,
                                size_t generation_len, st_model_config *out, st_error *err)
{
    json_t *root = NULL, *gen = NULL;
    st_model_config c;
    st_status s = load("config.json", json, len, &root, err);
    if (s == ST_OK && generation)
        s = load("generation_config.json", generation, generation_len, &gen, err);
    if (s == ST_OK)
        s = parse(root, gen, &c, err);
    if (s == ST_OK)
        *out = c;
    json_decref(root);
    json_decref(gen);
    return s;
}

bool st_model_layer_is_moe(const st_model_config *c, int32_t layer)
{
    if (!c->n_experts || layer < c->first_dense_layers)
        return false;
    int32_t freq = c->moe_layer_freq > 0 ? c->moe_layer_freq : 1;
    if ((layer + c->moe_layer_phase) % freq != 0)
        return false;
    for (int32_t i = 0; i < c->n_mlp_only_layers; i++)
        if (c->mlp_only_layers[i] == layer)
            return false;
    return true;
}

st_kv_row_shape st_config_kv_row(const st_model_config *c)
{
    if (c->attn == ST_ATTN_MLA)
        return (st_kv_row_shape){1, c->kv_lora_rank, c->qk_rope_head_dim};
    return (st_kv_row_shape){2 * c->n_kv_heads, c->head_dim, 0};
}
