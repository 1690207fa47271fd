/* Request fields with a shape of their own: see api_fields.h. */
#include "api/api_fields.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static st_status no_memory(const st_api_parser *p)
{
    return st_api_fail(p->err, 503, NULL, NULL, "memory is short");
}

st_status st_api_field_model(st_api_parser *p, const char *key, json_t *v)
{
    if (!json_is_string(v))
        return st_api_bad_value(p, key, v, "a string");
    const char *name = json_string_value(v);
    for (size_t i = 0; i < p->ctx->n_models; i++) {
        if (strcmp(p->ctx->models[i], name) == 0) {
            p->req->pub.model = p->ctx->models[i];
            return ST_OK;
        }
    }
    return st_api_fail(p->err, 404, "model", "model_not_found",
                       "the model '%.200s' does not exist; GET /v1/models lists those that do",
                       name);
}

st_status st_api_parse_ids(const st_api_parser *p, const char *key, const char *path,
                           const json_t *list, const int32_t **ids, size_t *n)
{
    size_t len = json_array_size(list);
    int32_t *to = st_arena_alloc(p->req->arena, len * sizeof *to);
    if (!to)
        return no_memory(p);
    for (size_t i = 0; i < len; i++) {
        const json_t *v = json_array_get(list, i);
        json_int_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0 || id >= p->ctx->vocab_size) {
            char expected[96], field[64];
            snprintf(expected, sizeof expected, "a token id from 0 to %d", p->ctx->vocab_size - 1);
            snprintf(field, sizeof field, "%s[%zu]", path, i);
            st_status s = st_api_bad_value(p, field, v, expected);
            snprintf(p->err->param, sizeof p->err->param, "%s", key);
            return s;
        }
        to[i] = (int32_t)id;
    }
    *ids = to;
    *n = len;
    return ST_OK;
}

static st_status one_prompt(st_api_parser *p, const char *key, const char *path, const json_t *v,
                            st_api_prompt *out)
{
    if (json_is_string(v)) {
        out->text = json_string_value(v);
        out->len = json_string_length(v);
        return ST_OK;
    }
    if (json_is_array(v))
        return st_api_parse_ids(p, key, path, v, &out->ids, &out->n_ids);
    st_status s = st_api_bad_value(p, path, v, "a string or a list of token ids");
    snprintf(p->err->param, sizeof p->err->param, "%s", key);
    return s;
}

/* A string, a list of ids, or a list of either. */
st_status st_api_field_prompt(st_api_parser *p, const char *key, json_t *v)
{
    st_api_request *r = &p->req->pub;
    size_t n = json_array_size(v);
    if (!json_is_string(v) && (!json_is_array(v) || (n == 0 && p->kind != ST_API_DETOKENIZE)))
        return st_api_bad_value(p, key, v,
                                "a string, a list of token ids, or a non-empty list of those");
    bool batch = json_is_array(v) && n && !json_is_number(json_array_get(v, 0));
    if (batch && p->kind != ST_API_COMPLETION)
        return st_api_bad_value(p, key, v, "a single prompt");
    if (batch && n > ST_API_MAX_CHOICES)
        return st_api_fail(p->err, 400, key, NULL, "prompt has %zu entries: expected at most %d", n,
                           ST_API_MAX_CHOICES);
    r->n_prompts = batch ? n : 1;
    r->prompts = st_arena_alloc(p->req->arena, r->n_prompts * sizeof *r->prompts);
    if (!r->prompts)
        return no_memory(p);
    if (!batch)
        return one_prompt(p, key, key, v, &r->prompts[0]);
    for (size_t i = 0; i < n; i++) {
        char path[64];
        snprintf(path, sizeof path, "%s[%zu]", key, i);
        st_status s = one_prompt(p, key, path, json_array_get(v, i), &r->prompts[i]);
        if (s)
            return s;
    }
    return ST_OK;
}

/* A chat that was rendered and tokenized by the caller. */
st_status st_api_field_prompt_ids(st_api_parser *p, const char *key, json_t *v)
{
    st_api_request *r = &p->req->pub;
    if (!json_is_array(v) || json_array_size(v) == 0)
        return st_api_bad_value(p, key, v, "a non-empty list of token ids");
    r->prompts = st_arena_alloc(p->req->arena, sizeof *r->prompts);
    if (!r->prompts)
        return no_memory(p);
    r->prompts[0] = (st_api_prompt){.text = NULL};
    r->n_prompts = 1;
    return st_api_parse_ids(p, key, key, v, &r->prompts[0].ids, &r->prompts[0].n_ids);
}

st_status st_api_field_messages(st_api_parser *p, const char *key, json_t *v)
{
    if (!json_is_array(v) || json_array_size(v) == 0)
        return st_api_bad_value(p, key, v, "a non-empty list of messages");
    p->messages = v;
    return ST_OK;
}

static st_status set_var(st_api_parser *p, const char *key, json_t *v)
{
    return json_object_set(p->template_vars, key, v) ? no_memory(p) : ST_OK;
}

st_status st_api_field_tools(st_api_parser *p, const char *key, json_t *v)
{
    if (!json_is_array(v))
        return st_api_bad_value(p, key, v, "a list of objects");
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *item = json_array_get(v, i);
        if (!json_is_object(item)) {
            char path[64];
            snprintf(path, sizeof path, "%s[%zu]", key, i);
            return st_api_bad_value(p, path, item, "an object");
        }
    }
    /* Templates ask "if tools": an empty list means the same as none. */
    return json_array_size(v) ? set_var(p, key, v) : ST_OK;
}

st_status st_api_field_tool_choice(st_api_parser *p, const char *key, json_t *v)
{
    bool named = json_is_object(v) && strcmp(key, "tool_choice") == 0;
    if (!json_is_string(v) && !named)
        return st_api_bad_value(p, key, v, "a string");
    return set_var(p, key, v);
}

st_status st_api_field_kwargs(st_api_parser *p, const char *key, json_t *v)
{
    if (!json_is_object(v))
        return st_api_bad_value(p, key, v, "an object");
    if (json_object_get(v, "messages"))
        return st_api_fail(p->err, 400, key, NULL,
                           "chat_template_kwargs.messages is given: messages has a field of its "
                           "own");
    p->chat_kwargs = v;
    return ST_OK;
}

st_status st_api_field_generation_prompt(st_api_parser *p, const char *key, json_t *v)
{
    if (!json_is_boolean(v))
        return st_api_bad_value(p, key, v, "true or false");
    p->generation_prompt_given = true;
    p->add_generation_prompt = json_is_true(v);
    return ST_OK;
}

st_status st_api_field_logit_bias(st_api_parser *p, const char *key, json_t *v)
{
    size_t n = json_object_size(v), at = 0;
    if (!json_is_object(v) || n > ST_API_MAX_LOGIT_BIAS)
        return st_api_bad_value(p, key, v, "an object of at most 1024 token ids and biases");
    st_logit_bias *list = st_arena_alloc(p->req->arena, n * sizeof *list);
    if (!list)
        return no_memory(p);
    const char *id_text;
    json_t *bias;
    json_object_foreach(v, id_text, bias)
    {
        char *end;
        errno = 0;
        long long id = strtoll(id_text, &end, 10);
        if (end == id_text || *end || errno || id < 0 || id >= p->ctx->vocab_size)
            return st_api_fail(p->err, 400, key, NULL,
                               "logit_bias has the key '%.40s': expected a token id from 0 to %d",
                               id_text, p->ctx->vocab_size - 1);
        double x = json_number_value(bias);
        if (!json_is_number(bias) || !(x >= -100 && x <= 100))
            return st_api_bad_value(p, key, bias, "biases from -100 to 100");
        list[at++] = (st_logit_bias){(int32_t)id, (float)x};
    }
    p->req->pub.sampling.logit_bias = list;
    p->req->pub.sampling.n_logit_bias = (int32_t)n;
    return ST_OK;
}

st_status st_api_field_seed(st_api_parser *p, const char *key, json_t *v)
{
    if (!json_is_integer(v))
        return st_api_bad_value(p, key, v, "a 64-bit whole number");
    p->req->pub.sampling.seed = (uint64_t)json_integer_value(v);
    p->req->pub.has_seed = true;
    return ST_OK;
}

st_status st_api_field_stop(st_api_parser *p, const char *key, json_t *v)
{
    static const char expected[] = "a non-empty string or a list of at most 16 of them";
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > ST_API_MAX_STOPS)
        return st_api_bad_value(p, key, v, expected);
    st_stop *list = st_arena_alloc(p->req->arena, n * sizeof *list);
    if (!list)
        return no_memory(p);
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_string(item) || json_string_length(item) == 0)
            return st_api_bad_value(p, key, item, expected);
        list[i] = (st_stop){json_string_value(item), json_string_length(item)};
    }
    p->req->pub.stops = list;
    p->req->pub.n_stops = n;
    return ST_OK;
}

st_status st_api_field_stop_ids(st_api_parser *p, const char *key, json_t *v)
{
    if (!json_is_array(v) || json_array_size(v) > ST_API_MAX_STOP_IDS)
        return st_api_bad_value(p, key, v, "a list of at most 128 token ids");
    size_t n;
    st_status s = st_api_parse_ids(p, key, key, v, &p->req->pub.sampling.stop_ids, &n);
    if (!s)
        p->req->pub.sampling.n_stop_ids = (int32_t)n;
    return s;
}

st_status st_api_field_stream_options(st_api_parser *p, const char *key, json_t *v)
{
    if (!json_is_object(v))
        return st_api_bad_value(p, key, v, "an object");
    p->stream_options_given = true;
    p->req->pub.include_usage = json_is_true(json_object_get(v, "include_usage"));
    p->req->pub.continuous_usage = json_is_true(json_object_get(v, "continuous_usage_stats"));
    return ST_OK;
}

st_status st_api_field_response_format(st_api_parser *p, const char *key, json_t *v)
{
    const char *type = json_string_value(json_object_get(v, "type"));
    if (!type)
        return st_api_bad_value(p, key, v, "an object with a type");
    if (strcmp(type, "text") == 0)
        return ST_OK;
    return st_api_fail(p->err, 400, key, NULL,
                       "response_format.type is '%.40s': only 'text' is supported yet", type);
}

/* Fields that would change the answer if they worked: false and empty values are harmless. */
st_status st_api_field_refused(st_api_parser *p, const char *key, json_t *v)
{
    if (json_is_false(v) || (json_is_string(v) && json_string_length(v) == 0) ||
        (json_is_array(v) && json_array_size(v) == 0))
        return ST_OK;
    return st_api_fail(p->err, 400, key, NULL, "%s is not supported", key);
}
