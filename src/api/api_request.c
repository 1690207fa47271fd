/* Request bodies -> st_api_request. One table lists the fields: where each goes, its type and
 * range; the few fields with a shape of their own have a function (api_fields.c holds those of
 * prompts and stops). */
#include "api/api_request.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/api_fields.h"

enum {
    COMP = ST_API_COMPLETION,
    CHAT = ST_API_CHAT,
    GEN = COMP | CHAT,
    TOKZ = ST_API_TOKENIZE,
    DETK = ST_API_DETOKENIZE
};

typedef enum field_type { BOOL, INT, FLOAT, STRING, PARSER_INT, PARSER_BOOL, CUSTOM } field_type;

typedef struct field {
    const char *key;
    unsigned kinds;
    field_type type;
    size_t offset; /* in st_api_request, for PARSER_* in st_api_parser */
    double min, max;
    st_api_field_fn *parse;
} field;

#define AT(member) offsetof(st_api_request, member)
#define IN(member) offsetof(st_api_parser, member)
#define REFUSED(k)                                                                                 \
    {                                                                                              \
        k, GEN, CUSTOM, 0, 0, 0, st_api_field_refused                                              \
    }
#define INT_MAX32 2147483647.0
/* Smallest positive value: "above zero" as a closed range. */
#define ABOVE_ZERO 1e-6

/* clang-format off */
static const field fields[] = {
    {"model", GEN | TOKZ | DETK, CUSTOM, 0, 0, 0, st_api_field_model},
    {"prompt", COMP | TOKZ, CUSTOM, 0, 0, 0, st_api_field_prompt},
    {"tokens", DETK, CUSTOM, 0, 0, 0, st_api_field_prompt},
    {"prompt_token_ids", CHAT, CUSTOM, 0, 0, 0, st_api_field_prompt_ids},
    {"messages", CHAT | TOKZ, CUSTOM, 0, 0, 0, st_api_field_messages},
    {"tools", CHAT | TOKZ, CUSTOM, 0, 0, 0, st_api_field_tools},
    {"documents", CHAT, CUSTOM, 0, 0, 0, st_api_field_tools},
    {"tool_choice", CHAT, CUSTOM, 0, 0, 0, st_api_field_tool_choice},
    {"reasoning_effort", CHAT, CUSTOM, 0, 0, 0, st_api_field_tool_choice},
    {"chat_template_kwargs", CHAT | TOKZ, CUSTOM, 0, 0, 0, st_api_field_kwargs},
    {"add_generation_prompt", CHAT | TOKZ, CUSTOM, 0, 0, 0, st_api_field_generation_prompt},
    {"continue_final_message", CHAT | TOKZ, BOOL, AT(continue_final_message), 0, 0, NULL},
    {"add_special_tokens", GEN | TOKZ, BOOL, AT(add_special_tokens), 0, 0, NULL},
    {"return_token_strs", TOKZ, BOOL, AT(return_token_strs), 0, 0, NULL},

    {"temperature", GEN, FLOAT, AT(sampling.temperature), 0, 100, NULL},
    {"top_p", GEN, FLOAT, AT(sampling.top_p), ABOVE_ZERO, 1, NULL},
    {"min_p", GEN, FLOAT, AT(sampling.min_p), 0, 1, NULL},
    {"top_k", GEN, INT, AT(sampling.top_k), -1, INT_MAX32, NULL},
    {"repetition_penalty", GEN, FLOAT, AT(sampling.repetition_penalty), ABOVE_ZERO, 100, NULL},
    {"presence_penalty", GEN, FLOAT, AT(sampling.presence_penalty), -2, 2, NULL},
    {"frequency_penalty", GEN, FLOAT, AT(sampling.frequency_penalty), -2, 2, NULL},
    {"logit_bias", GEN, CUSTOM, 0, 0, 0, st_api_field_logit_bias},
    {"seed", GEN, CUSTOM, 0, 0, 0, st_api_field_seed},
    {"n", GEN, INT, AT(n), 1, 128, NULL},
    {"best_of", COMP, PARSER_INT, IN(best_of), 1, 128, NULL},
    {"max_tokens", GEN, PARSER_INT, IN(max_tokens), 1, INT_MAX32, NULL},
    {"max_completion_tokens", CHAT, PARSER_INT, IN(max_completion_tokens), 1, INT_MAX32, NULL},
    {"min_tokens", GEN, INT, AT(sampling.min_tokens), 0, INT_MAX32, NULL},
    {"stop", GEN, CUSTOM, 0, 0, 0, st_api_field_stop},
    {"stop_token_ids", GEN, CUSTOM, 0, 0, 0, st_api_field_stop_ids},
    {"ignore_eos", GEN, BOOL, AT(sampling.ignore_eos), 0, 0, NULL},
    {"logprobs", COMP, INT, AT(sampling.logprobs), 0, 20, NULL},
    {"logprobs", CHAT, PARSER_BOOL, IN(logprobs_wanted), 0, 0, NULL},
    {"top_logprobs", CHAT, PARSER_INT, IN(top_logprobs), 0, 20, NULL},

    {"echo", COMP, BOOL, AT(echo), 0, 0, NULL},
    {"stream", GEN, BOOL, AT(stream), 0, 0, NULL},
    {"stream_options", GEN, CUSTOM, 0, 0, 0, st_api_field_stream_options},
    {"skip_special_tokens", GEN, BOOL, AT(skip_special_tokens), 0, 0, NULL},
    {"include_stop_str_in_output", GEN, BOOL, AT(include_stop_str_in_output), 0, 0, NULL},
    {"return_token_ids", GEN, BOOL, AT(return_token_ids), 0, 0, NULL},
    {"cache_salt", GEN, STRING, AT(cache_salt), 0, 0, NULL},
    {"priority", GEN, INT, AT(priority), -2147483648.0, INT_MAX32, NULL},
    {"kv_transfer_params", GEN, CUSTOM, 0, 0, 0, st_api_field_kv_transfer},
    {"response_format", GEN, CUSTOM, 0, 0, 0, st_api_field_response_format},

    REFUSED("suffix"), REFUSED("use_beam_search"), REFUSED("prompt_logprobs"),
    REFUSED("prompt_embeds"), REFUSED("chat_template"), REFUSED("guided_json"),
    REFUSED("guided_regex"), REFUSED("guided_choice"), REFUSED("guided_grammar"),
    REFUSED("structured_outputs"), REFUSED("allowed_token_ids"), REFUSED("bad_words"),
    REFUSED("logits_processors"), REFUSED("truncate_prompt_tokens"),
};
/* clang-format on */

st_status st_api_bad_value(const st_api_parser *p, const char *key, const json_t *v,
                           const char *expected)
{
    char shown[96] = "";
    static const char *const kinds[] = {"an object", "a list",    "a string",  "a whole number",
                                        "a number",  "a boolean", "a boolean", "null"};
    if (json_is_number(v))
        snprintf(shown, sizeof shown, "%.15g", json_number_value(v));
    else if (json_is_string(v) && json_string_length(v) < 40)
        snprintf(shown, sizeof shown, "'%s'", json_string_value(v));
    else
        snprintf(shown, sizeof shown, "%s", kinds[json_typeof(v)]);
    return st_api_fail(p->err, 400, key, NULL, "%s is %s: expected %s", key, shown, expected);
}

static st_status store_int(const st_api_parser *p, const field *f, const json_t *v, int32_t *out)
{
    double x = json_number_value(v);
    if (json_is_number(v) && x == floor(x) && x >= f->min && x <= f->max) {
        *out = (int32_t)x;
        return ST_OK;
    }
    char expected[96];
    snprintf(expected, sizeof expected, "a whole number from %.0f to %.0f", f->min, f->max);
    return st_api_bad_value(p, f->key, v, expected);
}

static st_status store_float(const st_api_parser *p, const field *f, const json_t *v, float *out)
{
    double x = json_number_value(v);
    if (json_is_number(v) && x >= f->min && x <= f->max) {
        *out = (float)x;
        return ST_OK;
    }
    char expected[96];
    if (f->min == ABOVE_ZERO)
        snprintf(expected, sizeof expected, "a number above 0 and at most %g", f->max);
    else
        snprintf(expected, sizeof expected, "a number from %g to %g", f->min, f->max);
    return st_api_bad_value(p, f->key, v, expected);
}

static st_status store_field(st_api_parser *p, const field *f, json_t *v)
{
    void *at = (char *)&p->req->pub + f->offset, *in = (char *)p + f->offset;
    switch (f->type) {
    case BOOL:
    case PARSER_BOOL:
        if (!json_is_boolean(v))
            return st_api_bad_value(p, f->key, v, "true or false");
        *(bool *)(f->type == BOOL ? at : in) = json_is_true(v);
        return ST_OK;
    case INT:
        return store_int(p, f, v, at);
    case PARSER_INT:
        return store_int(p, f, v, in);
    case FLOAT:
        return store_float(p, f, v, at);
    case STRING:
        if (!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v))
            return st_api_bad_value(p, f->key, v, "a string without U+0000");
        *(const char **)at = json_string_value(v);
        return ST_OK;
    case CUSTOM:
        return f->parse(p, f->key, v);
    }
    return ST_OK;
}

static float or_default(float x, float otherwise)
{
    return isnan(x) ? otherwise : x;
}

static void set_defaults(st_api_parser *p)
{
    const st_api_defaults *d = &p->ctx->defaults;
    st_api_request *r = &p->req->pub;
    r->kind = p->kind;
    r->model = p->ctx->n_models ? p->ctx->models[0] : "";
    r->n = 1;
    r->skip_special_tokens = true;
    /* A rendered template already holds the special tokens. */
    r->add_special_tokens = !json_is_array(json_object_get(p->req->root, "messages"));
    r->sampling = (st_sampling){.temperature = or_default(d->temperature, 1),
                                .top_p = or_default(d->top_p, 1),
                                .min_p = or_default(d->min_p, 0),
                                .top_k = d->top_k,
                                .repetition_penalty = or_default(d->repetition_penalty, 1),
                                .max_tokens = -1,
                                .logprobs = -1};
    p->best_of = p->max_tokens = p->max_completion_tokens = p->top_logprobs = -1;
    p->add_generation_prompt = true;
}

/* What depends on several fields. */
static st_status check_together(st_api_parser *p)
{
    st_api_request *r = &p->req->pub;
    r->sampling.max_tokens =
        p->max_completion_tokens > 0 ? p->max_completion_tokens : p->max_tokens;
    if (p->kind == ST_API_COMPLETION && r->sampling.max_tokens < 0)
        r->sampling.max_tokens = 16;
    if (r->sampling.max_tokens > 0 && r->sampling.min_tokens > r->sampling.max_tokens)
        return st_api_fail(p->err, 400, "min_tokens", NULL,
                           "min_tokens is %d: expected at most max_tokens, which is %d",
                           r->sampling.min_tokens, r->sampling.max_tokens);
    if (p->best_of > r->n)
        return st_api_fail(p->err, 400, "best_of", NULL,
                           "best_of is %d: more candidates than n (%d) are not supported",
                           p->best_of, r->n);
    /* Typed clients send top_logprobs: 0 also with logprobs: false. */
    if (p->top_logprobs > 0 && !p->logprobs_wanted)
        return st_api_fail(p->err, 400, "top_logprobs", NULL,
                           "top_logprobs is %d: expected logprobs to be true with it",
                           p->top_logprobs);
    if (p->logprobs_wanted)
        r->sampling.logprobs = p->top_logprobs > 0 ? p->top_logprobs : 0;
    if (r->echo && r->sampling.logprobs >= 0)
        return st_api_fail(p->err, 400, "echo", NULL,
                           "echo together with logprobs (logprobs of the prompt) is not "
                           "supported");
    if (p->stream_options_given && !r->stream)
        return st_api_fail(p->err, 400, "stream_options", NULL,
                           "stream_options is given: expected stream to be true with it");
    if (r->n_prompts > ST_API_MAX_CHOICES / (size_t)r->n)
        return st_api_fail(p->err, 400, p->kind == ST_API_COMPLETION ? "prompt" : "n", NULL,
                           "%zu prompts with n = %d: expected at most %d choices in all",
                           r->n_prompts, r->n, ST_API_MAX_CHOICES);
    return st_api_check_handover(p);
}

static st_status check_present(st_api_parser *p)
{
    st_api_request *r = &p->req->pub;
    const char *ids = p->kind == ST_API_CHAT ? "prompt_token_ids" : "prompt";
    if (p->messages)
        return r->n_prompts ? st_api_fail(p->err, 400, ids, NULL,
                                          "%s and messages: expected only one of them", ids)
                            : st_api_build_chat(p);
    if (r->n_prompts)
        return ST_OK;
    const char *need = p->kind == ST_API_CHAT         ? "messages"
                       : p->kind == ST_API_DETOKENIZE ? "tokens"
                                                      : "prompt";
    return st_api_fail(p->err, 400, need, NULL, "%s is missing: it is required", need);
}

static st_status parse_fields(st_api_parser *p)
{
    set_defaults(p);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const field *f = &fields[i];
        json_t *v = f->kinds & p->kind ? json_object_get(p->req->root, f->key) : NULL;
        /* null is how typed clients spell "not given". */
        if (!v || json_is_null(v))
            continue;
        st_status s = store_field(p, f, v);
        if (s)
            return s;
    }
    st_status s = check_present(p);
    return s ? s : check_together(p);
}

static json_t *load(const char *body, size_t len, st_api_error *err)
{
    json_error_t je;
    if (len == 0) {
        (void)st_api_fail(err, 400, NULL, NULL, "the body is empty: expected a JSON object");
        return NULL;
    }
    json_t *root = json_loadb(body, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &je);
    if (!root) {
        (void)st_api_fail(err, 400, NULL, NULL,
                          "the body is not valid JSON: line %d, column %d: %s", je.line, je.column,
                          je.text);
    } else if (!json_is_object(root)) {
        (void)st_api_fail(err, 400, NULL, NULL, "the body is not a JSON object");
        json_decref(root);
        root = NULL;
    }
    return root;
}

st_status st_api_parse_tree(st_api_kind kind, json_t *root, const st_api_context *ctx,
                            st_api_request **out, st_api_error *err)
{
    *out = NULL;
    st_api_parsed *req = calloc(1, sizeof *req);
    st_arena *arena = st_arena_new(4096);
    if (!req || !arena) {
        free(req);
        st_arena_free(arena);
        json_decref(root);
        return st_api_fail(err, 503, NULL, NULL, "memory is short");
    }
    req->arena = arena;
    req->root = root;
    st_api_parser p = {
        .req = req, .ctx = ctx, .kind = kind, .err = err, .template_vars = json_object()};
    st_status s =
        p.template_vars ? parse_fields(&p) : st_api_fail(err, 503, NULL, NULL, "memory is short");
    json_decref(p.template_vars);
    if (s)
        st_api_request_free(&req->pub);
    else
        *out = &req->pub;
    return s;
}

st_status st_api_parse(st_api_kind kind, const char *body, size_t len, const st_api_context *ctx,
                       st_api_request **out, st_api_error *err)
{
    *out = NULL;
    json_t *root = load(body, len, err);
    return root ? st_api_parse_tree(kind, root, ctx, out, err) : ST_EINVAL;
}

void st_api_request_free(st_api_request *r)
{
    if (!r)
        return;
    st_api_parsed *req = (st_api_parsed *)r;
    json_decref(r->chat);
    json_decref(req->chat_text_arguments);
    json_decref(req->root);
    st_arena_free(req->arena);
    free(req);
}

st_sampling st_api_choice_sampling(const st_api_request *r, const st_api_context *ctx,
                                   uint64_t seed, int32_t choice, int32_t n_prompt)
{
    st_sampling s = r->sampling;
    int32_t room = ctx->max_model_len - n_prompt;
    s.seed = seed + (uint64_t)choice;
    if (s.max_tokens < 0)
        s.max_tokens = ctx->defaults.max_new_tokens > 0 ? ctx->defaults.max_new_tokens : room;
    if (s.max_tokens > room)
        s.max_tokens = room;
    if (s.min_tokens > s.max_tokens)
        s.min_tokens = s.max_tokens;
    return s;
}
