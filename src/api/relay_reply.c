/* Engines' answers on their way to the client: looked at, and where a chat went out as a completion
 * turned back into a chat's. Text is copied as the JSON bytes that the engine wrote. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/json_pick.h"
#include "api/relay.h"
#include "base/sse_split.h"

enum { MAX_CHOICES = 128 };

struct st_relay_reply {
    st_relay_seen seen;
    bool translate, stream, include_usage;
    int64_t n;
    st_buf head;  /* {"id":...,"object":...,"created":...,"model":... */
    st_buf error; /* the last one, in OpenAI's shape */
    int error_status;
    bool started[MAX_CHOICES];
};

/* The members of an answer or chunk that matter, and those of one of its choices. */
enum { CHOICES, USAGE, ERROR, OBJECT, KV_PARAMS, N_TOP };
static const char *const top_names[N_TOP] = {"choices", "usage", "error", "object",
                                             "kv_transfer_params"};
enum { INDEX, TEXT, FINISH, STOP_REASON, MATCHED_STOP, TOKEN_IDS, PROMPT_IDS, N_CHOICE };
static const char *const choice_names[N_CHOICE] = {
    "index",        "text",      "finish_reason",   "stop_reason",
    "matched_stop", "token_ids", "prompt_token_ids"};

static st_status no_memory(st_error *err)
{
    return st_fail(err, ST_ENOMEM, "memory is short");
}

st_status st_relay_reply_new(const st_relay_request *r, const char *model, bool translate,
                             uint64_t id, int64_t created, st_relay_reply **out)
{
    *out = NULL;
    st_relay_reply *a = calloc(1, sizeof *a);
    if (!a)
        return ST_ENOMEM;
    a->seen.prompt_tokens = a->seen.completion_tokens = a->seen.cached_tokens = -1;
    a->translate = translate;
    a->stream = r->stream;
    a->include_usage = r->include_usage;
    a->n = r->n < MAX_CHOICES ? r->n : MAX_CHOICES;
    st_status s = ST_OK;
    if (translate)
        s = st_buf_printf(&a->head,
                          "{\"id\":\"chatcmpl-%016" PRIx64
                          "\",\"object\":\"chat.completion%s\",\"created\":%" PRId64 ",\"model\":",
                          id, r->stream ? ".chunk" : "", created);
    if (!s && translate)
        s = st_buf_json_string(&a->head, model, strlen(model));
    if (s)
        st_relay_reply_free(a);
    else
        *out = a;
    return s;
}

void st_relay_reply_free(st_relay_reply *a)
{
    if (!a)
        return;
    st_buf_free(&a->head);
    st_buf_free(&a->error);
    free(a);
}

const st_relay_seen *st_relay_reply_seen(const st_relay_reply *a)
{
    return &a->seen;
}

const st_buf *st_relay_reply_error(const st_relay_reply *a, int *http_status)
{
    *http_status = a->error_status;
    return &a->error;
}

static st_status put(st_buf *out, const st_picked *v)
{
    return st_buf_append(out, v->at, v->len);
}

/* ,"name":value for a value that is there. */
static st_status put_member(st_buf *out, const char *name, const st_picked *v)
{
    if (!st_picked_given(v))
        return ST_OK;
    st_status s = st_buf_puts(out, ",\"");
    if (!s)
        s = st_buf_puts(out, name);
    if (!s)
        s = st_buf_puts(out, "\":");
    return s ? s : put(out, v);
}

/* ---- what is noted of every answer ---- */

static void note_usage(st_relay_seen *seen, const st_picked *usage)
{
    static const char *const names[] = {"prompt_tokens", "completion_tokens",
                                        "prompt_tokens_details"};
    static const char *const details[] = {"cached_tokens"};
    st_picked v[3], cached;
    if (usage->type != ST_JSON_OBJECT || !st_json_pick(usage->at, usage->len, names, 3, v, NULL))
        return;
    (void)st_picked_int64(&v[0], &seen->prompt_tokens);
    (void)st_picked_int64(&v[1], &seen->completion_tokens);
    if (v[2].type == ST_JSON_OBJECT && st_json_pick(v[2].at, v[2].len, details, 1, &cached, NULL))
        (void)st_picked_int64(&cached, &seen->cached_tokens);
}

/* Keeps it in OpenAI's shape. *verbatim: it had it. */
static st_status note_error(st_relay_reply *a, const char *text, size_t len, bool *verbatim)
{
    st_buf *e = &a->error;
    st_buf_clear(e);
    a->error_status = st_upstream_error_status(text, len);
    st_status s = st_upstream_error(text, len, a->error_status ? a->error_status : 500, e);
    if (s == ST_ENOTFOUND)
        s = st_buf_puts(e, "{\"error\":{\"message\":\"the engine reported an error\","
                           "\"type\":\"server_error\",\"param\":null,\"code\":null}}");
    *verbatim = !s && e->len == len && memcmp(e->data, text, len) == 0;
    return s;
}

static bool is_error(const st_picked *top)
{
    return st_picked_given(&top[ERROR]) || st_picked_is(&top[OBJECT], "error");
}

static bool has_choices(const st_picked *top)
{
    st_json_scan s = st_picked_list(&top[CHOICES]);
    return st_json_next(&s) != ST_JSON_ARRAY_END;
}

/* The first checks of an answer or chunk. */
static st_status look(st_relay_reply *a, const char *text, size_t len, st_picked *top,
                      st_error *err)
{
    const char *why;
    if (!st_json_pick(text, len, top_names, N_TOP, top, &why))
        return st_fail(err, ST_EFORMAT, "the engine's answer is no JSON object: %s", why);
    note_usage(&a->seen, &top[USAGE]);
    if (is_error(top)) {
        a->seen.error = true;
        return ST_OK;
    }
    if (top[CHOICES].type != ST_JSON_ARRAY)
        return st_fail(err, ST_EFORMAT, "the engine's answer has no list of choices");
    if (has_choices(top)) {
        a->seen.any = true;
        a->seen.events++;
    }
    return ST_OK;
}

/* ---- completion -> chat ---- */

static st_status read_choice(const st_relay_reply *a, const st_picked *choice, st_picked *v,
                             size_t *index, st_error *err)
{
    int64_t i = 0;
    *index = 0;
    if (choice->type != ST_JSON_OBJECT ||
        !st_json_pick(choice->at, choice->len, choice_names, N_CHOICE, v, NULL))
        return st_fail(err, ST_EFORMAT, "the engine's answer has a choice that is no object");
    if (!st_picked_int64(&v[INDEX], &i) || i < 0 || i >= a->n)
        return st_fail(err, ST_EFORMAT,
                       "the engine's answer has a choice without an index from 0 to %" PRId64,
                       a->n - 1);
    if (v[TEXT].type != ST_JSON_STRING)
        return st_fail(err, ST_EFORMAT, "the engine's answer has a choice without text");
    if (st_picked_given(&v[FINISH]) && v[FINISH].type != ST_JSON_STRING)
        return st_fail(err, ST_EFORMAT,
                       "the engine's answer has a finish_reason that is no string");
    *index = (size_t)i;
    return ST_OK;
}

static st_status put_finish(const st_picked *v, st_buf *out)
{
    st_status s = st_buf_puts(out, ",\"finish_reason\":");
    if (!s)
        s = st_picked_given(&v[FINISH]) ? put(out, &v[FINISH]) : st_buf_puts(out, "null");
    if (!s)
        s = put_member(out, "stop_reason", &v[STOP_REASON]);
    return s ? s : put_member(out, "matched_stop", &v[MATCHED_STOP]);
}

static st_status begin_chunk(const st_relay_reply *a, size_t index, const char *delta, st_buf *out)
{
    st_status s = st_buf_puts(out, "data: ");
    if (!s)
        s = st_buf_append(out, a->head.data, a->head.len);
    if (!s)
        s = st_buf_puts(out, ",\"choices\":[{\"index\":");
    if (!s)
        s = index < 10 ? st_buf_putc(out, (char)('0' + index)) : st_buf_printf(out, "%zu", index);
    if (!s)
        s = st_buf_puts(out, ",\"delta\":{");
    return s ? s : st_buf_puts(out, delta);
}

/* With include_usage every chunk has usage: null, but the last (and those of vLLM's
 * continuous_usage_stats). */
static st_status end_chunk(const st_relay_reply *a, const st_picked *usage,
                           const st_picked *prompt_ids, st_buf *out)
{
    st_status s = st_buf_puts(out, "}]");
    if (!s && a->include_usage)
        s = st_picked_given(usage) ? put_member(out, "usage", usage)
                                   : st_buf_puts(out, ",\"usage\":null");
    if (!s && prompt_ids)
        s = put_member(out, "prompt_token_ids", prompt_ids);
    return s ? s : st_buf_puts(out, "}\n\n");
}

static const char no_finish[] = ",\"logprobs\":null,\"finish_reason\":null";

/* A choice of a completion's chunk: a chat has its role in a chunk before its text, its
 * finish_reason in one after it. */
static st_status chunk_choice(st_relay_reply *a, const st_picked *v, size_t index,
                              const st_picked *usage, st_buf *out)
{
    st_status s = ST_OK;
    if (!a->started[index]) {
        a->started[index] = true;
        s = begin_chunk(a, index, "\"role\":\"assistant\",\"content\":\"\"}", out);
        if (!s)
            s = st_buf_puts(out, no_finish);
        if (!s)
            s = end_chunk(a, usage, &v[PROMPT_IDS], out);
    }
    bool empty = v[TEXT].len == 2; /* its quotes */
    if (!s && (!empty || st_picked_given(&v[TOKEN_IDS]))) {
        s = begin_chunk(a, index, "\"content\":", out);
        if (!s)
            s = put(out, &v[TEXT]);
        if (!s)
            s = st_buf_putc(out, '}');
        if (!s)
            s = st_buf_puts(out, no_finish);
        if (!s)
            s = put_member(out, "token_ids", &v[TOKEN_IDS]);
        if (!s)
            s = end_chunk(a, usage, NULL, out);
    }
    if (!s && st_picked_given(&v[FINISH])) {
        s = begin_chunk(a, index, "},\"logprobs\":null", out);
        if (!s)
            s = put_finish(v, out);
        if (!s)
            s = end_chunk(a, usage, NULL, out);
    }
    return s;
}

static st_status chunk_choices(st_relay_reply *a, const st_picked *top, st_buf *out, st_error *err)
{
    st_picked choice, v[N_CHOICE];
    size_t index;
    bool any = false;
    for (st_json_scan s = st_picked_list(&top[CHOICES]); st_json_element(&s, &choice);) {
        st_status st = read_choice(a, &choice, v, &index, err);
        if (st)
            return st;
        if (chunk_choice(a, v, index, &top[USAGE], out))
            return no_memory(err);
        any = true;
    }
    if (any || !a->include_usage || !st_picked_given(&top[USAGE]))
        return ST_OK;
    st_status s = st_buf_puts(out, "data: ");
    if (!s)
        s = st_buf_append(out, a->head.data, a->head.len);
    if (!s)
        s = st_buf_puts(out, ",\"choices\":[]");
    if (!s)
        s = put_member(out, "usage", &top[USAGE]);
    if (!s)
        s = st_buf_puts(out, "}\n\n");
    return s ? no_memory(err) : ST_OK;
}

static st_status whole_choice(const st_picked *v, size_t index, bool first, st_buf *out)
{
    st_status s = st_buf_printf(
        out, "%s{\"index\":%zu,\"message\":{\"role\":\"assistant\",\"content\":", first ? "" : ",",
        index);
    if (!s)
        s = put(out, &v[TEXT]);
    if (!s)
        s = st_buf_puts(out, ",\"refusal\":null},\"logprobs\":null");
    if (!s)
        s = put_finish(v, out);
    if (!s)
        s = put_member(out, "token_ids", &v[TOKEN_IDS]);
    return s ? s : st_buf_putc(out, '}');
}

static st_status whole_chat(const st_relay_reply *a, const st_picked *top, st_buf *out,
                            st_error *err)
{
    st_picked choice, v[N_CHOICE], prompt_ids = {.type = ST_JSON_ERROR};
    size_t index, n = 0;
    st_status s = st_buf_append(out, a->head.data, a->head.len);
    if (!s)
        s = st_buf_puts(out, ",\"choices\":[");
    for (st_json_scan list = st_picked_list(&top[CHOICES]); !s && st_json_element(&list, &choice);
         n++) {
        st_status st = read_choice(a, &choice, v, &index, err);
        if (st)
            return st;
        if (n == 0)
            prompt_ids = v[PROMPT_IDS];
        s = whole_choice(v, index, n == 0, out);
    }
    if (!s)
        s = st_buf_putc(out, ']');
    if (!s)
        s = put_member(out, "usage", &top[USAGE]);
    if (!s)
        s = put_member(out, "prompt_token_ids", &prompt_ids);
    if (!s)
        s = st_buf_putc(out, '}');
    return s ? no_memory(err) : ST_OK;
}

/* ---- entry points ---- */

static st_status data_event(st_relay_reply *a, const char *data, size_t len, bool *verbatim,
                            st_buf *out, st_error *err)
{
    st_picked top[N_TOP];
    st_status s = look(a, data, len, top, err);
    if (s)
        return s;
    if (is_error(top)) {
        s = note_error(a, data, len, verbatim);
        if (!s && !*verbatim)
            s = st_buf_printf(out, "data: %s\n\n", a->error.data);
        return s ? no_memory(err) : ST_OK;
    }
    *verbatim = !a->translate;
    return *verbatim ? ST_OK : chunk_choices(a, top, out, err);
}

static void cut(st_buf *out, size_t len)
{
    out->len = len;
    if (out->data)
        out->data[len] = '\0';
}

st_status st_relay_reply_event(st_relay_reply *a, const char *event, size_t len, bool *verbatim,
                               st_buf *out, st_error *err)
{
    st_sse_event ev;
    size_t scanned = 0, before = out->len;
    *verbatim = true;
    if (len == 0 || st_sse_next(event, len, &scanned, &ev) != len)
        return st_fail(err, ST_EFORMAT, "the engine's stream was cut within an event");
    if (ev.data_lines == 0) /* a keep-alive */
        return ST_OK;
    if (!ev.data)
        return st_fail(err, ST_EFORMAT, "the engine's stream has an event of several data lines");
    if (a->seen.done)
        return st_fail(err, ST_EFORMAT, "the engine's stream goes on after [DONE]");
    if (ev.data_len == 6 && memcmp(ev.data, "[DONE]", 6) == 0) {
        a->seen.done = true;
        return ST_OK;
    }
    st_status s = data_event(a, ev.data, ev.data_len, verbatim, out, err);
    if (s)
        cut(out, before);
    return s;
}

/* Where the KV lies is no business of the client's. */
static st_status without_kv_params(const char *body, size_t len, st_buf *out, st_error *err)
{
    st_splice *s;
    st_status st = st_splice_new(body, len, &s, err);
    if (st) {
        (void)st_fail_prefix(err, st, "the engine's answer");
        return st == ST_ENOMEM ? st : ST_EFORMAT;
    }
    st = st_splice_remove(s, "kv_transfer_params");
    if (!st)
        st = st_splice_apply(s, out);
    st_splice_free(s);
    return st ? no_memory(err) : ST_OK;
}

static st_status whole_answer(st_relay_reply *a, const char *body, size_t len, bool *verbatim,
                              st_buf *out, st_error *err)
{
    st_picked top[N_TOP];
    st_status s = look(a, body, len, top, err);
    if (s)
        return s;
    a->seen.done = true;
    if (is_error(top)) {
        s = note_error(a, body, len, verbatim);
        if (!s && !*verbatim)
            s = st_buf_append(out, a->error.data, a->error.len);
        return s ? no_memory(err) : ST_OK;
    }
    if (!has_choices(top))
        return st_fail(err, ST_EFORMAT, "the engine's answer has an empty list of choices");
    *verbatim = !a->translate && !st_picked_given(&top[KV_PARAMS]);
    if (*verbatim)
        return ST_OK;
    return a->translate ? whole_chat(a, top, out, err) : without_kv_params(body, len, out, err);
}

st_status st_relay_reply_whole(st_relay_reply *a, const char *body, size_t len, bool *verbatim,
                               st_buf *out, st_error *err)
{
    size_t before = out->len;
    *verbatim = true;
    st_status s = whole_answer(a, body, len, verbatim, out, err);
    if (s)
        cut(out, before);
    return s;
}
