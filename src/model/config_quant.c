/* quantization_config in config.json: compressed-tensors W8A8 INT8 is supported, everything else is
 * named in the refusal. */
#include <stdio.h>
#include <string.h>

#include "model/config_parts.h"

static const char supported[] = "supported is compressed-tensors int-quantized W8A8 (int8 weights "
                                "symmetric per channel, int8 activations dynamic per token)";

static st_status refuse(const char *what, json_t *value, st_error *err)
{
    char text[64];
    return st_fail(err, ST_EUNSUPPORTED, "config.json: quantization_config: %s is %s; %s", what,
                   st_config_text(value, text, sizeof text), supported);
}

static bool is_text(json_t *value, const char *text)
{
    return json_is_string(value) && strcmp(json_string_value(value), text) == 0;
}

/* One of the two descriptions of a group: weights or input_activations. */
static st_status check_scheme(json_t *group, const char *which, const char *strategy, bool dynamic,
                              st_error *err)
{
    char what[96];
    json_t *o = json_object_get(group, which);
    json_t *bits = json_object_get(o, "num_bits"), *type = json_object_get(o, "type");
    json_t *strat = json_object_get(o, "strategy"), *symmetric = json_object_get(o, "symmetric");
    json_t *dyn = json_object_get(o, "dynamic");
    const char *wrong = NULL;
    json_t *value = NULL;
    if (!json_is_object(o))
        return refuse(which, o, err);
    if (!json_is_integer(bits) || json_integer_value(bits) != 8) {
        wrong = "num_bits";
        value = bits;
    } else if (type && !is_text(type, "int")) {
        wrong = "type";
        value = type;
    } else if (!is_text(strat, strategy)) {
        wrong = "strategy";
        value = strat;
    } else if (symmetric && !json_is_true(symmetric)) {
        wrong = "symmetric";
        value = symmetric;
    } else if (dyn ? json_is_true(dyn) != dynamic : dynamic) {
        wrong = "dynamic";
        value = dyn;
    }
    if (!wrong)
        return ST_OK;
    snprintf(what, sizeof what, "%s.%s", which, wrong);
    return refuse(what, value, err);
}

static st_status check_groups(json_t *q, st_error *err)
{
    json_t *groups = st_config_get(q, "config_groups"), *group;
    const char *name;
    if (json_object_size(groups) == 0)
        return refuse("config_groups", groups, err);
    json_object_foreach(groups, name, group)
    {
        json_t *format = st_config_get(group, "format");
        if (format && !is_text(format, "int-quantized"))
            return refuse("format", format, err);
        if (st_config_get(group, "output_activations"))
            return refuse("output_activations", json_object_get(group, "output_activations"), err);
        st_status s = check_scheme(group, "weights", "channel", false, err);
        if (s == ST_OK)
            s = check_scheme(group, "input_activations", "token", true, err);
        if (s)
            return s;
    }
    return ST_OK;
}

st_status st_config_quant(json_t *root, st_model_config *c, st_error *err)
{
    json_t *q = st_config_get(root, "quantization_config");
    if (!q)
        q = st_config_get(root, "compression_config");
    if (!q)
        return ST_OK;
    json_t *method = st_config_get(q, "quant_method"), *format = st_config_get(q, "format");
    if (!is_text(method, "compressed-tensors"))
        return refuse("quant_method", method, err);
    if (!is_text(format, "int-quantized"))
        return refuse("format", format, err);
    if (st_config_get(q, "kv_cache_scheme"))
        return refuse("kv_cache_scheme", json_object_get(q, "kv_cache_scheme"), err);
    json_t *sparsity = st_config_get(q, "sparsity_config");
    json_t *sparse = st_config_get(sparsity, "format");
    if (sparse && !is_text(sparse, "dense"))
        return refuse("sparsity_config.format", sparse, err);
    st_status s = check_groups(q, err);
    if (s == ST_OK)
        c->w8a8 = true;
    return s;
}
