/* quantization_config in config.json, by method: what can be run is taken over, everything else is
 * named in the refusal. Which layers are quantized is not read here: the tensors tell. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "model/config_parts.h"

static const char supported[] =
    "compressed-tensors (int-quantized W8A8, float-quantized FP8, pack-quantized INT4), fp8 (E4M3 "
    "in blocks), gptq or awq (4 bits)";

static st_status refuse(const char *what, json_t *value, const char *expected, st_error *err)
{
    char text[64];
    return st_fail(err, ST_EUNSUPPORTED, "config.json: quantization_config: %s is %s; expected %s",
                   what, st_config_text(value, text, sizeof text), expected);
}

static bool is_text(json_t *value, const char *text)
{
    return json_is_string(value) && strcmp(json_string_value(value), text) == 0;
}

static bool is_number(json_t *value, json_int_t n)
{
    return json_is_integer(value) && json_integer_value(value) == n;
}

/* Inputs per scale of INT4: NULL where nothing is said. */
static st_status group_size(const char *what, json_t *value, int32_t *out, st_error *err)
{
    json_int_t n = json_integer_value(value);
    if (is_number(value, -1)) {
        *out = 0;
        return ST_OK;
    }
    if (!json_is_integer(value) || n < 32 || n % 32 != 0 || n > INT32_MAX)
        return refuse(what, value, "a multiple of 32, or -1 for one group", err);
    *out = (int32_t)n;
    return ST_OK;
}

/* The block of an FP8 scale: [rows, inputs]. */
static st_status block_size(const char *what, json_t *value, st_quant_config *q, st_error *err)
{
    json_t *rows = json_array_get(value, 0), *inputs = json_array_get(value, 1);
    json_int_t n = json_integer_value(rows), k = json_integer_value(inputs);
    if (json_array_size(value) != 2 || n < 1 || k < 2 || k % 2 || n > INT32_MAX || k > INT32_MAX)
        return refuse(what, value, "rows and an even number of inputs, such as [128, 128]", err);
    q->block_rows = (int32_t)n;
    q->block_inputs = (int32_t)k;
    return ST_OK;
}

/* --- compressed-tensors ------------------------------------------------------------------ */

/* What weights or input_activations have to say. */
typedef struct scheme {
    const char *which;
    int bits;
    const char *type;
    const char *strategy, *or_strategy; /* or_strategy may be NULL */
    bool dynamic, symmetric;            /* symmetric false: either */
} scheme;

static const scheme int8_weights = {"weights", 8, "int", "channel", NULL, false, true};
static const scheme int8_tokens = {"input_activations", 8, "int", "token", NULL, true, true};
static const scheme int4_weights = {"weights", 4, "int", "group", "channel", false, false};
static const scheme fp8_weights = {"weights", 8, "float", "block", "channel", false, true};

static st_status check_scheme(json_t *group, const scheme *want, st_error *err)
{
    char what[96], expected[64];
    json_t *o = json_object_get(group, want->which), *value = NULL;
    json_t *bits = json_object_get(o, "num_bits"), *type = json_object_get(o, "type");
    json_t *strategy = json_object_get(o, "strategy"), *dynamic = json_object_get(o, "dynamic");
    json_t *symmetric = json_object_get(o, "symmetric");
    const char *wrong = NULL;
    if (!json_is_object(o))
        return refuse(want->which, o, "an object", err);
    if (!is_number(bits, want->bits)) {
        wrong = "num_bits", value = bits;
        snprintf(expected, sizeof expected, "%d", want->bits);
    } else if (type ? !is_text(type, want->type) : strcmp(want->type, "int") != 0) {
        wrong = "type", value = type;
        snprintf(expected, sizeof expected, "%s", want->type);
    } else if (!is_text(strategy, want->strategy) &&
               !(want->or_strategy && is_text(strategy, want->or_strategy))) {
        wrong = "strategy", value = strategy;
        snprintf(expected, sizeof expected, "%s%s%s", want->strategy,
                 want->or_strategy ? " or " : "", want->or_strategy ? want->or_strategy : "");
    } else if (symmetric && !json_is_boolean(symmetric)) {
        wrong = "symmetric", value = symmetric;
        snprintf(expected, sizeof expected, "true or false");
    } else if (want->symmetric && symmetric && !json_is_true(symmetric)) {
        wrong = "symmetric", value = symmetric;
        snprintf(expected, sizeof expected, "true");
    } else if (dynamic ? json_is_true(dynamic) != want->dynamic : want->dynamic) {
        wrong = "dynamic", value = dynamic;
        snprintf(expected, sizeof expected, want->dynamic ? "true" : "false");
    }
    if (!wrong)
        return ST_OK;
    snprintf(what, sizeof what, "%s.%s", want->which, wrong);
    return refuse(what, value, expected, err);
}

static st_status w8a8_group(json_t *group, st_error *err)
{
    st_status s = check_scheme(group, &int8_weights, err);
    return s ? s : check_scheme(group, &int8_tokens, err);
}

/* A group of layers in INT4, which may differ from earlier ones in group size and symmetry. */
static st_status int4_group(json_t *group, bool first, st_quant_config *q, st_error *err)
{
    st_status s = check_scheme(group, &int4_weights, err);
    if (s == ST_OK && st_config_get(group, "input_activations"))
        s = check_scheme(group, &int8_tokens, err);
    json_t *weights = json_object_get(group, "weights");
    int32_t size = 0;
    if (s == ST_OK && is_text(json_object_get(weights, "strategy"), "group"))
        s = group_size("weights.group_size", json_object_get(weights, "group_size"), &size, err);
    if (s)
        return s;
    bool symmetric = !json_is_false(json_object_get(weights, "symmetric"));
    q->group = first || q->group == size ? size : -1;
    q->symmetric = symmetric || (!first && q->symmetric);
    return ST_OK;
}

/* A group of layers in FP8, by blocks or by rows: a block of one row and all of its inputs. */
static st_status fp8_group(json_t *group, bool first, st_quant_config *q, st_error *err)
{
    st_quant_config own = {.block_rows = 1, .block_inputs = INT32_MAX};
    json_t *weights = json_object_get(group, "weights");
    json_t *block = json_object_get(weights, "block_structure");
    st_status s = check_scheme(group, &fp8_weights, err);
    if (s == ST_OK && is_text(json_object_get(weights, "strategy"), "block"))
        s = block_size("weights.block_structure", block, &own, err);
    if (s)
        return s;
    if (!first && (own.block_rows != q->block_rows || own.block_inputs != q->block_inputs))
        return refuse("weights.block_structure", block, "the same for every group", err);
    q->block_rows = own.block_rows;
    q->block_inputs = own.block_inputs;
    return ST_OK;
}

/* Transforms of weights are part of the weights; others would have to be done while the model
 * runs. */
static st_status check_transforms(json_t *q, st_error *err)
{
    json_t *schemes = st_config_get(st_config_get(q, "transform_config"), "config_groups"), *scheme;
    const char *name;
    json_object_foreach(schemes, name, scheme)
    {
        json_t *list = json_object_get(scheme, "apply"), *apply;
        size_t i;
        json_array_foreach(list, i, apply)
        {
            json_t *where = json_object_get(apply, "location");
            if (!is_text(where, "weight_input") && !is_text(where, "weight_output"))
                return refuse("transform_config: location", where,
                              "weight_input or weight_output: the others transform activations",
                              err);
        }
    }
    return ST_OK;
}

typedef enum ct_format { CT_INT8, CT_FP8, CT_INT4, CT_FORMATS } ct_format;

static const struct {
    const char *name;
    st_quant_method method;
} ct_formats[CT_FORMATS] = {
    [CT_INT8] = {"int-quantized", ST_QUANT_W8A8},
    [CT_FP8] = {"float-quantized", ST_QUANT_FP8},
    [CT_INT4] = {"pack-quantized", ST_QUANT_PACKED_INT4},
};

static st_status compressed_tensors(json_t *q, st_model_config *c, st_error *err)
{
    json_t *groups = st_config_get(q, "config_groups"), *group;
    json_t *format = st_config_get(q, "format");
    ct_format f = CT_INT8;
    bool first = true;
    const char *name;
    while (f < CT_FORMATS && !is_text(format, ct_formats[f].name))
        f++;
    if (f == CT_FORMATS)
        return refuse("format", format, "int-quantized, float-quantized or pack-quantized", err);
    if (st_config_get(q, "kv_cache_scheme"))
        return refuse("kv_cache_scheme", json_object_get(q, "kv_cache_scheme"), "none", err);
    json_t *sparse = st_config_get(st_config_get(q, "sparsity_config"), "format");
    if (sparse && !is_text(sparse, "dense"))
        return refuse("sparsity_config.format", sparse, "dense", err);
    st_status s = check_transforms(q, err);
    if (s)
        return s;
    if (json_object_size(groups) == 0)
        return refuse("config_groups", groups, "at least one group", err);
    json_object_foreach(groups, name, group)
    {
        json_t *own = st_config_get(group, "format");
        if (own && !is_text(own, json_string_value(format)))
            return refuse("format", own, json_string_value(format), err);
        if (st_config_get(group, "output_activations"))
            return refuse("output_activations", json_object_get(group, "output_activations"),
                          "none", err);
        s = f == CT_INT8  ? w8a8_group(group, err)
            : f == CT_FP8 ? fp8_group(group, first, &c->quant, err)
                          : int4_group(group, first, &c->quant, err);
        if (s)
            return s;
        first = false;
    }
    c->quant.method = ct_formats[f].method;
    c->int8_activations = f != CT_FP8;
    return ST_OK;
}

/* --- fp8, gptq, awq ---------------------------------------------------------------------- */

/* Whatever the activations' scheme, they stay floats here. */
static st_status fp8(json_t *q, st_model_config *c, st_error *err)
{
    json_t *fmt = st_config_get(q, "fmt"), *block = st_config_get(q, "weight_block_size");
    if (fmt && !is_text(fmt, "e4m3"))
        return refuse("fmt", fmt, "e4m3", err);
    c->quant = (st_quant_config){.method = ST_QUANT_FP8};
    return block_size("weight_block_size", block, &c->quant, err);
}

/* GPTQModel's rules for layers whose names match: "-:NAME" are left out, which the tensors tell;
 * other rules may change the group size and the symmetry. */
static st_status gptq_rules(json_t *rules, st_quant_config *q, st_error *err)
{
    const char *name;
    char what[96];
    json_t *rule;
    json_object_foreach(rules, name, rule)
    {
        json_t *bits = st_config_get(rule, "bits");
        if (strncmp(name, "-:", 2) == 0)
            continue;
        snprintf(what, sizeof what, "dynamic: \"%.64s\": bits", name);
        if (bits && !is_number(bits, 4))
            return refuse(what, bits, "4", err);
        if (st_config_get(rule, "group_size"))
            q->group = -1;
        if (st_config_get(rule, "sym"))
            q->symmetric = false;
    }
    return ST_OK;
}

static st_status gptq(json_t *q, st_model_config *c, st_error *err)
{
    json_t *bits = st_config_get(q, "bits"), *symmetric = st_config_get(q, "sym");
    const char *which = st_config_get(q, "checkpoint_format") ? "checkpoint_format" : "format";
    json_t *format = st_config_get(q, which), *rotation = st_config_get(q, "rotation");
    bool v2 = is_text(format, "gptq_v2");
    if (!is_number(bits, 4))
        return refuse("bits", bits, "4", err);
    if (format && !v2 && !is_text(format, "gptq"))
        return refuse(which, format, "gptq or gptq_v2", err);
    if (json_is_true(st_config_get(q, "is_marlin_format")))
        return refuse("is_marlin_format", json_true(), "the plain layout", err);
    if (rotation)
        return refuse("rotation", rotation, "none: activations are not rotated here", err);
    c->quant = (st_quant_config){
        .method = ST_QUANT_GPTQ, .symmetric = json_is_true(symmetric), .zeros_minus_1 = !v2};
    c->int8_activations = true;
    st_status s = group_size("group_size", st_config_get(q, "group_size"), &c->quant.group, err);
    return s ? s : gptq_rules(st_config_get(q, "dynamic"), &c->quant, err);
}

static st_status awq(json_t *q, st_model_config *c, st_error *err)
{
    json_t *bits = st_config_get(q, "bits"), *version = st_config_get(q, "version");
    json_t *group = st_config_get(q, "group_size");
    bits = bits ? bits : st_config_get(q, "w_bit"); /* older names */
    group = group ? group : st_config_get(q, "q_group_size");
    if (!is_number(bits, 4))
        return refuse("bits", bits, "4", err);
    if (version && !is_text(version, "gemm") && !is_text(version, "GEMM"))
        return refuse(
            "version", version,
            "gemm (the others store weights as one kernel reads them: quantize again with "
            "version gemm)",
            err);
    c->quant = (st_quant_config){.method = ST_QUANT_AWQ};
    c->int8_activations = true;
    return group_size("group_size", group, &c->quant.group, err);
}

st_status st_config_quant(json_t *root, st_model_config *c, st_error *err)
{
    json_t *q = st_config_get(root, "quantization_config");
    if (!q)
        q = st_config_get(root, "compression_config");
    if (!q)
        return ST_OK;
    json_t *method = st_config_get(q, "quant_method");
    if (is_text(method, "compressed-tensors"))
        return compressed_tensors(q, c, err);
    if (is_text(method, "fp8"))
        return fp8(q, c, err);
    if (is_text(method, "gptq"))
        return gptq(q, c, err);
    if (is_text(method, "awq"))
        return awq(q, c, err);
    return refuse("quant_method", method, supported, err);
}
