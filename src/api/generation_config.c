/* Sampling defaults of a checkpoint: generation_config.json. */
#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include <jansson.h>

#include "starling/api.h"

void st_api_defaults_init(st_api_defaults *d)
{
    *d = (st_api_defaults){.temperature = NAN,
                           .top_p = NAN,
                           .min_p = NAN,
                           .repetition_penalty = NAN,
                           .top_k = -1,
                           .max_new_tokens = -1};
}

/* Reads a number within [min, max]; absent and null leave *out alone. */
static st_status number(const char *path, const json_t *root, const char *key, double min,
                        double max, float *out, st_error *err)
{
    const json_t *v = json_object_get(root, key);
    if (!v || json_is_null(v))
        return ST_OK;
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= min && x <= max))
        return st_fail(err, ST_EFORMAT, "%s: %s: expected a number from %g to %g", path, key, min,
                       max);
    *out = (float)x;
    return ST_OK;
}

st_status st_api_defaults_load(const char *dir, st_api_defaults *out, st_error *err)
{
    char path[4096];
    st_api_defaults_init(out);
    if (snprintf(path, sizeof path, "%s/generation_config.json", dir) >= (int)sizeof path)
        return st_fail(err, ST_EINVAL, "%s: the path is too long", dir);
    if (access(path, F_OK) != 0)
        return ST_OK;
    json_error_t je;
    json_t *root = json_load_file(path, 0, &je);
    if (!root)
        return st_fail(err, ST_EFORMAT, "%s: line %d: %s", path, je.line, je.text);
    float top_k = -1, max_new = -1;
    st_status s = ST_OK;
    if (!json_is_object(root))
        s = st_fail(err, ST_EFORMAT, "%s: expected an object", path);
    if (!s)
        s = number(path, root, "temperature", 0, 100, &out->temperature, err);
    if (!s)
        s = number(path, root, "top_p", 0, 1, &out->top_p, err);
    if (!s)
        s = number(path, root, "min_p", 0, 1, &out->min_p, err);
    if (!s)
        s = number(path, root, "repetition_penalty", 0, 100, &out->repetition_penalty, err);
    if (!s)
        s = number(path, root, "top_k", -1, 1e6, &top_k, err);
    if (!s)
        s = number(path, root, "max_new_tokens", 1, 1e6, &max_new, err);
    if (!s && json_is_false(json_object_get(root, "do_sample")))
        out->temperature = 0;
    out->top_k = (int32_t)top_k;
    out->max_new_tokens = (int32_t)max_new;
    json_decref(root);
    return s;
}
