/* A request's prompt as token ids. Only the members that make the prompt become a tree; ids that
 * the client sent are read straight from the text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/api_request.h"
#include "api/json_pick.h"
#include "api/relay.h"

static st_status no_memory(st_api_error *err)
{
    return st_api_fail(err, 503, NULL, NULL, "memory is short");
}

/* ---- text -> jansson's tree, without checking again what the scanner has checked ---- */

typedef struct builder {
    st_json_scan scan;
    const char *param; /* the member, for errors */
    st_api_error *err;
    st_buf text; /* of the string at hand */
} builder;

static json_t *build(builder *b, st_json_token token);

static json_t *refuse(builder *b, const char *what)
{
    (void)st_api_fail(b->err, 400, b->param, NULL, "%s holds %s", b->param, what);
    return NULL;
}

static json_t *out_of_memory(builder *b)
{
    (void)no_memory(b->err);
    return NULL;
}

static json_t *build_string(builder *b)
{
    const st_json_scan *s = &b->scan;
    size_t len = s->span.end - s->span.begin - 2;
    json_t *v;
    if (s->escaped) {
        st_buf_clear(&b->text);
        v = st_json_text(s, &b->text) ? NULL : json_stringn_nocheck(b->text.data, b->text.len);
    } else {
        v = json_stringn_nocheck(s->text + s->span.begin + 1, len);
    }
    return v ? v : out_of_memory(b);
}

static json_t *build_number(builder *b)
{
    const st_json_scan *s = &b->scan;
    int64_t whole;
    if (st_json_int64(s, &whole))
        return json_integer(whole);
    /* Within an object something that is no number follows: strtod stops there. */
    json_t *v = s->integer ? NULL : json_real(strtod(s->text + s->span.begin, NULL));
    return v ? v : refuse(b, "a number that is too large");
}

static json_t *build_array(builder *b)
{
    json_t *list = json_array();
    st_json_token token;
    while (list && (token = st_json_next(&b->scan)) != ST_JSON_ARRAY_END) {
        json_t *v = build(b, token);
        if (!v || json_array_append_new(list, v)) {
            json_decref(list);
            return v ? out_of_memory(b) : NULL;
        }
    }
    return list ? list : out_of_memory(b);
}

static json_t *build_object(builder *b)
{
    json_t *object = json_object();
    st_json_token token;
    while (object && (token = st_json_next(&b->scan)) == ST_JSON_KEY) {
        st_buf key = ST_BUF_INIT;
        json_t *v = NULL;
        if (st_json_text(&b->scan, &key))
            (void)out_of_memory(b);
        else if (strlen(key.data) != key.len)
            (void)refuse(b, "a key with U+0000");
        else if (json_object_getn(object, key.data, key.len))
            (void)refuse(b, "an object with the same key twice");
        else
            v = build(b, st_json_next(&b->scan));
        bool kept = v && json_object_setn_new_nocheck(object, key.data, key.len, v) == 0;
        st_buf_free(&key);
        if (!kept) {
            json_decref(object);
            return v ? out_of_memory(b) : NULL;
        }
    }
    return object ? object : out_of_memory(b);
}

/* The text was scanned once without error, so there is none now. */
static json_t *build(builder *b, st_json_token token)
{
    switch (token) {
    case ST_JSON_OBJECT:
        return build_object(b);
    case ST_JSON_ARRAY:
        return build_array(b);
    case ST_JSON_STRING:
        return build_string(b);
    case ST_JSON_NUMBER:
        return build_number(b);
    case ST_JSON_TRUE:
        return json_true();
    case ST_JSON_FALSE:
        return json_false();
    default:
        return json_null();
    }
}

static json_t *build_member(const st_relay_request *r, const st_member *m, const char *key,
                            st_api_error *err)
{
    builder b = {.param = key, .err = err};
    st_json_scan_init(&b.scan, st_splice_text(r->splice) + m->value.begin,
                      m->value.end - m->value.begin);
    json_t *v = build(&b, st_json_next(&b.scan));
    st_buf_free(&b.text);
    return v;
}

/* The members of the body that the prompt is made of, as an object. */
static json_t *prompt_members(const st_relay_request *r, st_api_error *err)
{
    static const char *const keys[] = {"messages",
                                       "prompt",
                                       "tools",
                                       "tool_choice",
                                       "documents",
                                       "reasoning_effort",
                                       "chat_template_kwargs",
                                       "add_generation_prompt",
                                       "continue_final_message",
                                       "add_special_tokens"};
    json_t *root = json_object();
    for (size_t i = 0; root && i < sizeof keys / sizeof *keys; i++) {
        const st_member *m = st_splice_find(r->splice, keys[i]);
        if (!m || strcmp(keys[i], r->kind == ST_API_CHAT ? "prompt" : "messages") == 0)
            continue;
        json_t *v = build_member(r, m, keys[i], err);
        if (!v || json_object_set_new(root, keys[i], v)) {
            json_decref(root);
            if (v)
                (void)no_memory(err);
            return NULL;
        }
    }
    if (!root)
        (void)no_memory(err);
    return root;
}

/* ---- ids that the client sent ---- */

static st_status bad_id(const st_json_scan *s, size_t index, const st_relay_model *m,
                        st_api_error *err)
{
    size_t len = s->span.end - s->span.begin;
    return st_api_fail(err, 400, "prompt", NULL,
                       "prompt[%zu] is %.*s: expected a token id from 0 to %d", index,
                       (int)(len < 40 ? len : 40), s->text + s->span.begin, m->ctx.vocab_size - 1);
}

/* [1,2,3] or [[1,2,3]]. */
static st_status take_ids(const st_relay_request *r, const st_relay_model *m, st_ids *out,
                          st_api_error *err)
{
    const st_member *prompt = st_splice_find(r->splice, "prompt");
    st_json_scan s;
    st_json_token token;
    int64_t id;
    size_t before = out->len;
    st_json_scan_init(&s, st_splice_text(r->splice) + prompt->value.begin,
                      prompt->value.end - prompt->value.begin);
    while ((token = st_json_next(&s)) == ST_JSON_ARRAY)
        ;
    for (; token != ST_JSON_ARRAY_END; token = st_json_next(&s)) {
        if (token != ST_JSON_NUMBER || !st_json_int64(&s, &id) || id < 0 || id >= m->ctx.vocab_size)
            return bad_id(&s, out->len - before, m, err);
        if (st_ids_push(out, (int32_t)id))
            return no_memory(err);
    }
    return st_api_check_length(r->kind, "prompt", &m->ctx, out->len - before, err);
}

/* ---- both ---- */

st_status st_relay_tokenize(const st_relay_request *r, const st_relay_model *m, int64_t now,
                            st_ids *out, st_api_error *err)
{
    if (r->ids_given)
        return take_ids(r, m, out, err);
    json_t *root = prompt_members(r, err);
    if (!root)
        return ST_EINVAL;
    st_api_request *parsed;
    st_status s = st_api_parse_tree(r->kind, root, &m->ctx, &parsed, err);
    if (s)
        return s;
    s = st_api_prompt_ids_cached(parsed, 0, &m->ctx, m->tok, m->tmpl, m->cache, now, out, err);
    st_api_request_free(parsed);
    return s;
}

st_status st_relay_ids_json(const int32_t *ids, size_t n, st_buf *out)
{
    enum { LONGEST = 12 }; /* "-2147483648," */
    /* Each number is copied as LONGEST bytes, whatever its length: one store instead of a call. */
    if (n > (SIZE_MAX - 64) / LONGEST || st_buf_reserve(out, (n + 1) * LONGEST + 2))
        return ST_ENOMEM;
    char *to = out->data + out->len, digits[2 * LONGEST] = "";
    *to++ = '[';
    for (size_t i = 0; i < n; i++) {
        int at = LONGEST;
        uint32_t v = ids[i] < 0 ? 0u - (uint32_t)ids[i] : (uint32_t)ids[i];
        do
            digits[--at] = (char)('0' + v % 10);
        while ((v /= 10) > 0);
        if (ids[i] < 0)
            digits[--at] = '-';
        if (i)
            *to++ = ',';
        memcpy(to, digits + at, LONGEST);
        to += LONGEST - at;
    }
    *to++ = ']';
    *to = '\0';
    out->len = (size_t)(to - out->data);
    return ST_OK;
}
