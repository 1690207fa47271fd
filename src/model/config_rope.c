/* Rotary embedding in config.json: rope_scaling of the older dialect, rope_parameters of the newer
 * one. YaRN (Peng et al., arXiv 2309.00071) is the one scaling supported. */
#include <math.h>
#include <string.h>

#include "model/config_parts.h"

double st_yarn_mscale(double factor, double scale)
{
    return factor > 1 ? 0.1 * scale * log(factor) + 1 : 1;
}

/* Reads a number above min and at most max; leaves *dst as it is when the key is absent. */
static st_status number(json_t *o, const char *where, const char *name, double min, double max,
                        double *dst, st_error *err)
{
    char text[64];
    json_t *v = st_config_get(o, name);
    if (!v)
        return ST_OK;
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x > min) || x > max)
        return st_fail(err, ST_EFORMAT,
                       "config.json: %s.%s is %s; expected a number above %g and at most %g", where,
                       name, st_config_text(v, text, sizeof text), min, max);
    *dst = x;
    return ST_OK;
}

static st_status parse_yarn(json_t *o, const char *where, st_model_config *c, st_error *err)
{
    double original = c->max_positions, attention = 0;
    c->yarn_factor = 0;
    c->yarn_beta_fast = 32;
    c->yarn_beta_slow = 1;
    c->yarn_mscale = 1;
    c->yarn_mscale_all_dim = 0;
    st_status s;
    if ((s = number(o, where, "factor", 0, 65536, &c->yarn_factor, err)) ||
        (s = number(o, where, "beta_fast", 0, 1e6, &c->yarn_beta_fast, err)) ||
        (s = number(o, where, "beta_slow", 0, 1e6, &c->yarn_beta_slow, err)) ||
        (s = number(o, where, "mscale", -1e-9, 1e3, &c->yarn_mscale, err)) ||
        (s = number(o, where, "mscale_all_dim", -1e-9, 1e3, &c->yarn_mscale_all_dim, err)) ||
        (s = number(o, where, "attention_factor", 0, 1e3, &attention, err)) ||
        (s = number(o, where, "original_max_position_embeddings", 0, 16777216, &original, err)))
        return s;
    if (c->yarn_factor < 1)
        return st_fail(err, ST_EFORMAT,
                       "config.json: %s.factor is %g or missing; YaRN needs a number of at least 1",
                       where, c->yarn_factor);
    if (original != floor(original))
        return st_fail(err, ST_EFORMAT,
                       "config.json: %s.original_max_position_embeddings is %g; expected a whole "
                       "number",
                       where, original);
    if (c->rope_theta <= 1)
        return st_fail(err, ST_EFORMAT,
                       "config.json: rope_theta is %g; YaRN needs a number above 1", c->rope_theta);
    if (json_is_false(json_object_get(o, "truncate")))
        return st_fail(err, ST_EUNSUPPORTED,
                       "config.json: %s.truncate is false; only true is supported", where);
    c->yarn = true;
    c->yarn_original_positions = (int32_t)original;
    c->rope_attention_factor =
        (float)(attention > 0 ? attention
                              : st_yarn_mscale(c->yarn_factor, c->yarn_mscale) /
                                    st_yarn_mscale(c->yarn_factor, c->yarn_mscale_all_dim));
    /* Some checkpoints state the length before scaling in max_position_embeddings. */
    double reach = original * c->yarn_factor;
    if (reach > c->max_positions)
        c->max_positions = (int32_t)(reach < 16777216 ? reach : 16777216);
    return ST_OK;
}

static st_status parse_rope_object(json_t *o, const char *where, st_model_config *c, st_error *err)
{
    char text[64];
    double partial = 1;
    st_status s;
    if (!json_is_object(o))
        return st_fail(err, ST_EFORMAT, "config.json: %s is %s; expected an object", where,
                       st_config_text(o, text, sizeof text));
    if ((s = number(o, where, "rope_theta", 0, 1e15, &c->rope_theta, err)) ||
        (s = number(o, where, "partial_rotary_factor", 0, 1, &partial, err)))
        return s;
    if (partial != 1)
        return st_fail(err, ST_EUNSUPPORTED,
                       "config.json: %s.partial_rotary_factor is %g; only 1 is supported", where,
                       partial);
    json_t *type = st_config_get(o, "rope_type");
    if (!type)
        type = st_config_get(o, "type");
    const char *name = json_string_value(type);
    if (!type && json_object_size(o) > 0 &&
        json_is_object(json_object_iter_value(json_object_iter(o))))
        return st_fail(err, ST_EUNSUPPORTED,
                       "config.json: %s gives different settings per kind of layer; only one "
                       "setting for all layers is supported",
                       where);
    if (!type || (name && strcmp(name, "default") == 0))
        return ST_OK;
    if (name && strcmp(name, "yarn") == 0)
        return parse_yarn(o, where, c, err);
    return st_fail(err, ST_EUNSUPPORTED,
                   "config.json: %s has type %s; supported are \"default\" and \"yarn\"", where,
                   st_config_text(type, text, sizeof text));
}

st_status st_config_rope(json_t *root, st_model_config *c, st_error *err)
{
    c->rope_attention_factor = 1;
    json_t *scaling = st_config_get(root, "rope_scaling");
    json_t *parameters = st_config_get(root, "rope_parameters");
    st_status s = ST_OK;
    if (parameters)
        s = parse_rope_object(parameters, "rope_parameters", c, err);
    if (s == ST_OK && scaling && !c->yarn)
        s = parse_rope_object(scaling, "rope_scaling", c, err);
    return s;
}
