/* A client's body as the gateway reads it: strictly scanned, the few fields that decide its way
 * looked at, everything else left to the engine. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/api_fields.h"
#include "api/json_pick.h"
#include "api/relay.h"

enum { MAX_N = 128 };

typedef struct reader {
    st_relay_request *r;
    st_api_error *err;
} reader;

static st_status no_memory(st_api_error *err)
{
    return st_api_fail(err, 503, NULL, NULL, "memory is short");
}

/* NULL when the member is absent or null: that is how typed clients spell "not given". */
static const st_member *given(const st_relay_request *r, const char *key)
{
    const st_member *m = st_splice_find(r->splice, key);
    return m && m->type != ST_JSON_NULL ? m : NULL;
}

static st_picked value_of(const st_relay_request *r, const st_member *m)
{
    return (st_picked){(st_json_token)m->type, st_splice_text(r->splice) + m->value.begin,
                       m->value.end - m->value.begin};
}

/* "max_tokens is 0: expected ..." */
static st_status bad_value(const reader *p, const char *key, const st_member *m,
                           const char *expected)
{
    static const char *const kinds[] = {
        [ST_JSON_OBJECT] = "an object", [ST_JSON_ARRAY] = "a list", [ST_JSON_STRING] = "a string",
        [ST_JSON_NUMBER] = "a number",  [ST_JSON_TRUE] = "true",    [ST_JSON_FALSE] = "false",
        [ST_JSON_NULL] = "null"};
    st_picked v = value_of(p->r, m);
    bool show = m->type == ST_JSON_NUMBER && v.len < 40;
    return st_api_fail(p->err, 400, key, NULL, "%s is %.*s: expected %s", key,
                       (int)(show ? v.len : strlen(kinds[m->type])), show ? v.at : kinds[m->type],
                       expected);
}

static st_status read_bool(const reader *p, const char *key, bool *out)
{
    const st_member *m = given(p->r, key);
    *out = m && m->type == ST_JSON_TRUE;
    return !m || *out || m->type == ST_JSON_FALSE ? ST_OK : bad_value(p, key, m, "true or false");
}

/* A whole number in [min, max], also one spelt 5.0, as engines take it. *out stays when it is not
 * given. */
static st_status read_int(const reader *p, const char *key, int64_t min, int64_t max, int64_t *out)
{
    const st_member *m = given(p->r, key);
    int64_t v;
    if (!m)
        return ST_OK;
    bool whole = st_member_int64(p->r->splice, m, &v);
    if (!whole && m->type == ST_JSON_NUMBER) {
        /* The text of a number within an object never ends the body: strtod stops in time. */
        double x = strtod(st_splice_text(p->r->splice) + m->value.begin, NULL);
        whole = x == floor(x) && fabs(x) <= 2147483648.0;
        v = whole ? (int64_t)x : 0;
    }
    if (!whole || v < min || v > max) {
        char expected[96];
        snprintf(expected, sizeof expected, "a whole number from %lld to %lld", (long long)min,
                 (long long)max);
        return bad_value(p, key, m, expected);
    }
    *out = v;
    return ST_OK;
}

static st_status read_string(const reader *p, const char *key, st_buf *out)
{
    const st_member *m = given(p->r, key);
    if (!m)
        return ST_OK;
    if (m->type != ST_JSON_STRING)
        return bad_value(p, key, m, "a string");
    if (st_member_text(p->r->splice, m, out))
        return no_memory(p->err);
    return strlen(out->data) == out->len ? ST_OK : bad_value(p, key, m, "a string without U+0000");
}

/* A client could point engines at memory and machines of its choice. */
const char *const st_relay_internal[ST_RELAY_INTERNAL] = {
    "kv_transfer_params", "ec_transfer_params",    "bootstrap_host",   "bootstrap_port",
    "bootstrap_room",     "bootstrap_pair_key",    "prompt_token_ids", "input_ids",
    "routed_dp_rank",     "disagg_prefill_dp_rank"};

static st_status refuse_internal(const reader *p)
{
    for (size_t i = 0; i < ST_RELAY_INTERNAL; i++) {
        const char *key = st_relay_internal[i];
        const st_member *m = st_splice_find(p->r->splice, key);
        if (m && m->type != ST_JSON_NULL)
            return st_api_fail(p->err, 400, key, NULL, "%s is given: only the gateway may set it",
                               key);
        p->r->internal_nulls |= m != NULL;
    }
    return ST_OK;
}

static st_status read_stream(const reader *p)
{
    static const char *const names[] = {"include_usage"};
    st_picked usage;
    st_status s = read_bool(p, "stream", &p->r->stream);
    const st_member *m = given(p->r, "stream_options");
    if (s || !m)
        return s;
    st_picked options = value_of(p->r, m);
    if (m->type != ST_JSON_OBJECT || !st_json_pick(options.at, options.len, names, 1, &usage, NULL))
        return bad_value(p, "stream_options", m, "an object");
    if (!p->r->stream)
        return st_api_fail(p->err, 400, "stream_options", NULL,
                           "stream_options is given: expected stream to be true with it");
    p->r->include_usage = usage.type == ST_JSON_TRUE;
    return ST_OK;
}

static st_status read_lengths(const reader *p)
{
    st_relay_request *r = p->r;
    int64_t best_of = 1;
    r->max_tokens = -1;
    r->n = 1;
    st_status s = read_int(p, "max_tokens", 1, INT32_MAX, &r->max_tokens);
    if (!s && r->kind == ST_API_CHAT)
        s = read_int(p, "max_completion_tokens", 1, INT32_MAX, &r->max_tokens);
    if (!s)
        s = read_int(p, "n", 1, MAX_N, &r->n);
    if (!s && r->kind == ST_API_COMPLETION)
        s = read_int(p, "best_of", 1, MAX_N, &best_of);
    if (!s)
        s = read_int(p, "priority", INT32_MIN, INT32_MAX, &r->priority);
    if (r->n > 1 || best_of > 1)
        r->whole_only = r->n > 1 ? "n" : "best_of";
    r->n = best_of > r->n ? best_of : r->n;
    return s;
}

/* What the computation of one token does not begin, or the computation of a prompt elsewhere does
 * not give. */
static void find_whole_only(st_relay_request *r)
{
    static const char *const keys[] = {"use_beam_search", "prompt_logprobs"};
    for (size_t i = 0; !r->whole_only && i < sizeof keys / sizeof *keys; i++) {
        const st_member *m = given(r, keys[i]);
        if (m && m->type != ST_JSON_FALSE)
            r->whole_only = keys[i];
    }
}

static st_status read_logprobs(const reader *p)
{
    const st_member *m = given(p->r, "logprobs");
    if (p->r->kind == ST_API_CHAT)
        return read_bool(p, "logprobs", &p->r->wants_logprobs);
    p->r->wants_logprobs = m && m->type == ST_JSON_NUMBER;
    return !m || p->r->wants_logprobs ? ST_OK : bad_value(p, "logprobs", m, "a whole number");
}

/* ---- what only an engine that parses text can answer ---- */

static void text_only(st_relay_request *r, const char *why)
{
    if (!r->text_only)
        r->text_only_why = why;
    r->text_only = true;
}

static bool empty_list(const st_relay_request *r, const st_member *m)
{
    st_picked v = value_of(r, m), element;
    if (m->type != ST_JSON_ARRAY)
        return false;
    st_json_scan s = st_picked_list(&v);
    return !st_json_element(&s, &element);
}

/* A list of strings of which only "text" is ours. */
static bool only_text(const st_relay_request *r, const st_member *m)
{
    st_picked v = value_of(r, m), element;
    if (m->type != ST_JSON_ARRAY)
        return false;
    for (st_json_scan s = st_picked_list(&v); st_json_element(&s, &element);)
        if (!st_picked_is(&element, "text"))
            return false;
    return true;
}

static void find_text_only(st_relay_request *r)
{
    /* Guided decoding under vLLM's and SGLang's names, other templates, other inputs, prompts that
     * the engine cuts. */
    static const char *const keys[] = {"functions",
                                       "function_call",
                                       "guided_json",
                                       "guided_regex",
                                       "guided_choice",
                                       "guided_grammar",
                                       "structured_outputs",
                                       "json_schema",
                                       "regex",
                                       "ebnf",
                                       "chat_template",
                                       "audio",
                                       "prompt_embeds",
                                       "suffix",
                                       "truncate_prompt_tokens",
                                       "return_hidden_states",
                                       "prompt_logprobs",
                                       "mm_processor_kwargs",
                                       "image_data"};
    static const char *const names[] = {"type"};
    const st_member *m = given(r, "tools"), *choice = given(r, "tool_choice");
    if (m && !empty_list(r, m)) {
        st_picked c = choice ? value_of(r, choice) : (st_picked){.type = ST_JSON_ERROR};
        if (!st_picked_is(&c, "none"))
            text_only(r, "tools");
    }
    if ((m = given(r, "response_format"))) {
        st_picked v = value_of(r, m), type;
        if (!st_json_pick(v.at, v.len, names, 1, &type, NULL) || !st_picked_is(&type, "text"))
            text_only(r, "response_format");
    }
    if ((m = given(r, "modalities")) && !only_text(r, m))
        text_only(r, "modalities");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if ((m = given(r, keys[i])) && m->type != ST_JSON_FALSE)
            text_only(r, keys[i]);
}

/* ---- prompts ---- */

/* A message's content: a string, or parts that are all text; else an engine must see to it. */
static void look_at_message(st_relay_request *r, const st_picked *message)
{
    static const char *const content_names[] = {"content"}, *const part_names[] = {"type"};
    st_picked content, part, type;
    if (!st_json_pick(message->at, message->len, content_names, 1, &content, NULL) ||
        content.type != ST_JSON_ARRAY)
        return;
    for (st_json_scan s = st_picked_list(&content); st_json_element(&s, &part);)
        if (st_json_pick(part.at, part.len, part_names, 1, &type, NULL) &&
            type.type == ST_JSON_STRING && !st_picked_is(&type, "text"))
            text_only(r, "messages");
}

static st_status read_messages(const reader *p)
{
    const st_member *m = given(p->r, "messages");
    if (!m)
        return st_api_fail(p->err, 400, "messages", NULL, "messages is missing: it is required");
    if (m->type != ST_JSON_ARRAY || empty_list(p->r, m))
        return bad_value(p, "messages", m, "a non-empty list of messages");
    st_picked list = value_of(p->r, m), message;
    for (st_json_scan s = st_picked_list(&list); st_json_element(&s, &message);)
        look_at_message(p->r, &message);
    p->r->n_prompts = 1;
    return ST_OK;
}

/* A string, a list of ids, or a list of either. */
static st_status read_prompt(const reader *p)
{
    static const char expected[] = "a string, a list of token ids, or a non-empty list of those";
    st_relay_request *r = p->r;
    const st_member *m = given(r, "prompt");
    if (!m && given(r, "prompt_embeds")) {
        r->n_prompts = 1;
        return ST_OK;
    }
    if (!m)
        return st_api_fail(p->err, 400, "prompt", NULL, "prompt is missing: it is required");
    if (m->type == ST_JSON_STRING) {
        r->n_prompts = 1;
        return ST_OK;
    }
    if (m->type != ST_JSON_ARRAY)
        return bad_value(p, "prompt", m, expected);
    st_picked list = value_of(r, m), element;
    int64_t n = 0, lists = 0, numbers = 0, strings = 0;
    for (st_json_scan s = st_picked_list(&list); st_json_element(&s, &element); n++) {
        numbers += element.type == ST_JSON_NUMBER;
        strings += element.type == ST_JSON_STRING;
        lists += element.type == ST_JSON_ARRAY;
    }
    if (n == 0 || (numbers ? numbers != n : lists + strings != n))
        return bad_value(p, "prompt", m, expected);
    r->n_prompts = numbers ? 1 : n;
    r->ids_given = numbers || (n == 1 && lists);
    if (r->n_prompts > ST_API_MAX_CHOICES)
        return st_api_fail(p->err, 400, "prompt", NULL,
                           "prompt has %lld entries: expected at most %d", (long long)n,
                           ST_API_MAX_CHOICES);
    return ST_OK;
}

static st_status read_fields(const reader *p)
{
    st_status s = refuse_internal(p);
    if (!s)
        s = read_string(p, "model", &p->r->model);
    if (!s)
        s = read_stream(p);
    if (!s)
        s = read_lengths(p);
    if (!s)
        s = read_logprobs(p);
    if (!s)
        s = read_string(p, "cache_salt", &p->r->cache_salt);
    if (s)
        return s;
    find_text_only(p->r);
    find_whole_only(p->r);
    return p->r->kind == ST_API_CHAT ? read_messages(p) : read_prompt(p);
}

st_status st_relay_parse(st_api_kind kind, const char *body, size_t len, st_relay_request **out,
                         st_api_error *err)
{
    st_error why;
    *out = NULL;
    if (len == 0)
        return st_api_fail(err, 400, NULL, NULL, "the body is empty: expected a JSON object");
    st_relay_request *r = calloc(1, sizeof *r);
    if (!r)
        return no_memory(err);
    r->kind = kind;
    st_status s = st_splice_new(body, len, &r->splice, &why);
    if (s)
        s = s == ST_ENOMEM ? no_memory(err)
                           : st_api_fail(err, 400, NULL, NULL, "the body: %s", why.text);
    else
        s = read_fields(&(reader){r, err});
    if (s)
        st_relay_request_free(r);
    else
        *out = r;
    return s;
}

void st_relay_request_free(st_relay_request *r)
{
    if (!r)
        return;
    st_splice_free(r->splice);
    st_buf_free(&r->model);
    st_buf_free(&r->cache_salt);
    free(r);
}
