/* The state of an answer while it is made: text, stop strings, logprobs, counts per choice. What
 * it looks like on the wire is api_json.c's business. */
#include "api/api_reply.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static st_status write_head(st_api_reply *a, int64_t created)
{
    const char *object = a->r->kind != ST_API_CHAT ? "text_completion"
                         : a->r->stream            ? "chat.completion.chunk"
                                                   : "chat.completion";
    st_status s = st_buf_printf(
        &a->head, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%" PRId64 ",\"model\":", a->id,
        object, created);
    return s ? s : st_buf_json_string(&a->head, a->r->model, strlen(a->r->model));
}

st_status st_api_reply_new(const st_api_request *r, const st_tokenizer *tok, uint64_t id,
                           int64_t created, st_api_reply **out)
{
    *out = NULL;
    st_api_reply *a = calloc(1, sizeof *a);
    if (!a)
        return ST_ENOMEM;
    a->r = r;
    a->tok = tok;
    snprintf(a->id, sizeof a->id, "%s-%016" PRIx64, r->kind == ST_API_CHAT ? "chatcmpl" : "cmpl",
             id);
    a->n_choices = r->n_prompts * (size_t)r->n;
    a->prompts = calloc(r->n_prompts, sizeof *a->prompts);
    a->choices = calloc(a->n_choices, sizeof *a->choices);
    st_status s = a->prompts && a->choices ? write_head(a, created) : ST_ENOMEM;
    st_text_stream_options opts = {.stops = r->stops,
                                   .n_stops = r->n_stops,
                                   .min_tokens = r->sampling.min_tokens,
                                   .keep_special = !r->skip_special_tokens,
                                   .include_stop = r->include_stop_str_in_output};
    for (size_t i = 0; !s && i < a->n_choices; i++) {
        a->choices[i].stop_token = -1;
        s = st_text_stream_new(tok, &opts, &a->choices[i].stream);
    }
    if (s)
        st_api_reply_free(a);
    else
        *out = a;
    return s;
}

void st_api_reply_free(st_api_reply *a)
{
    if (!a)
        return;
    for (size_t i = 0; a->choices && i < a->n_choices; i++) {
        st_api_choice *c = &a->choices[i];
        st_text_stream_free(c->stream);
        st_buf_free(&c->text);
        st_ids_free(&c->ids);
        free(c->logprobs);
        free(c->tops);
    }
    for (size_t i = 0; a->prompts && i < a->r->n_prompts; i++) {
        free((void *)a->prompts[i].ids);
        st_buf_free(&a->prompts[i].echo);
    }
    free(a->choices);
    free(a->prompts);
    st_buf_free(&a->offer);
    st_buf_free(&a->head);
    free(a);
}

const char *st_api_reply_id(const st_api_reply *a)
{
    return a->id;
}

/* The text that echo puts in front: as sent, or decoded from ids (unknown ids add no text). */
static st_status make_echo(st_api_reply *a, size_t p, const int32_t *ids, size_t n)
{
    const st_api_prompt *prompt = &a->r->prompts[p];
    st_buf *echo = &a->prompts[p].echo;
    if (prompt->text)
        return st_buf_append(echo, prompt->text, prompt->len);
    st_text_stream_options opts = {.keep_special = !a->r->skip_special_tokens};
    st_text_stream *stream;
    bool stopped;
    st_status s = st_text_stream_new(a->tok, &opts, &stream);
    if (s)
        return s;
    for (size_t i = 0; !s && i < n; i++)
        s = st_text_stream_push(stream, ids[i], echo, &stopped);
    if (!s)
        s = st_text_stream_finish(stream, echo, &stopped);
    st_text_stream_free(stream);
    return s;
}

st_status st_api_reply_prompt(st_api_reply *a, size_t p, const int32_t *ids, size_t n)
{
    st_api_answered_prompt *to = &a->prompts[p];
    to->n_ids = n;
    if (a->r->return_token_ids) {
        int32_t *copy = malloc((n ? n : 1) * sizeof *copy);
        if (!copy)
            return ST_ENOMEM;
        memcpy(copy, ids, n * sizeof *copy);
        to->ids = copy;
    }
    if (!a->r->echo)
        return ST_OK;
    st_status s = make_echo(a, p, ids, n);
    for (int32_t i = 0; !s && to->echo.len && i < a->r->n; i++)
        s = st_buf_append(&a->choices[p * (size_t)a->r->n + (size_t)i].text, to->echo.data,
                          to->echo.len);
    return s;
}

static void *grow(void *data, size_t *cap, size_t need, size_t size)
{
    if (need <= *cap)
        return data;
    size_t cap2 = *cap ? *cap * 2 : 32;
    while (cap2 < need)
        cap2 *= 2;
    void *p = realloc(data, cap2 * size);
    if (p)
        *cap = cap2;
    return p;
}

static st_status keep_logprobs(st_api_choice *c, const st_token_event *ev)
{
    void *p = grow(c->logprobs, &c->cap_logprobs, c->n_logprobs + 1, sizeof *c->logprobs);
    if (!p)
        return ST_ENOMEM;
    c->logprobs = p;
    size_t n = ev->n_top > 0 ? (size_t)ev->n_top : 0;
    p = grow(c->tops, &c->cap_tops, c->n_tops + n, sizeof *c->tops);
    if (!p && n)
        return ST_ENOMEM;
    c->tops = p;
    c->logprobs[c->n_logprobs++] =
        (st_api_token_logprob){ev->token, ev->logprob, c->n_tops, (int32_t)n};
    if (n)
        memcpy(c->tops + c->n_tops, ev->top, n * sizeof *c->tops);
    c->n_tops += n;
    return ST_OK;
}

static void complete(st_api_reply *a, st_api_choice *c, st_finish finish)
{
    c->done = true;
    c->finish = finish;
    a->n_done++;
}

st_status st_api_reply_event(st_api_reply *a, size_t choice, const st_token_event *ev, bool *done)
{
    st_api_choice *c = &a->choices[choice];
    *done = c->done;
    if (c->done)
        return ST_OK;
    if (choice % (size_t)a->r->n == 0)
        a->prompts[choice / (size_t)a->r->n].cached = ev->cached_tokens;
    st_status s = ST_OK;
    bool stopped = false, hidden = ev->finish == ST_FINISH_STOP && ev->token >= 0;
    if (ev->token >= 0) {
        c->n_generated++;
        if (a->r->return_token_ids)
            s = st_ids_push(&c->ids, ev->token);
        /* The token that stops the answer is no part of its text, unless asked for. */
        if (!s && a->r->sampling.logprobs >= 0 && !hidden)
            s = keep_logprobs(c, ev);
        if (!s && (!hidden || a->r->include_stop_str_in_output))
            s = st_text_stream_push(c->stream, ev->token, &c->text, &stopped);
    }
    if (!s && ev->finish != ST_FINISH_NONE && !stopped)
        s = st_text_stream_finish(c->stream, &c->text, &stopped);
    if (s)
        return s;
    if (stopped || ev->finish == ST_FINISH_STOP) {
        if (!stopped)
            c->stop_token = ev->token;
        complete(a, c, ST_FINISH_STOP);
    } else if (ev->finish != ST_FINISH_NONE) {
        complete(a, c, ST_FINISH_LENGTH);
    }
    *done = c->done;
    return ST_OK;
}

bool st_api_reply_complete(const st_api_reply *a)
{
    return a->n_done == a->n_choices;
}

const char *st_api_reply_finish_reason(const st_api_reply *a, size_t choice)
{
    const st_api_choice *c = &a->choices[choice];
    return !c->done ? NULL : c->finish == ST_FINISH_STOP ? "stop" : "length";
}

st_api_usage st_api_reply_usage(const st_api_reply *a)
{
    st_api_usage u = {0, 0, 0};
    for (size_t p = 0; p < a->r->n_prompts; p++) {
        u.prompt_tokens += (int64_t)a->prompts[p].n_ids;
        u.cached_tokens += a->prompts[p].cached;
    }
    for (size_t i = 0; i < a->n_choices; i++)
        u.completion_tokens += a->choices[i].n_generated;
    return u;
}
