/* Replies on the wire: the objects and server-sent events of completions and chats, and the small
 * objects of the other endpoints. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/api_reply.h"

st_status st_api_write_ids(const int32_t *ids, size_t n, st_buf *out)
{
    st_status s = st_buf_putc(out, '[');
    for (size_t i = 0; !s && i < n; i++)
        s = st_buf_printf(out, i ? ",%d" : "%d", ids[i]);
    return s ? s : st_buf_putc(out, ']');
}

st_status st_api_write_usage(const st_api_usage *u, st_buf *out)
{
    return st_buf_printf(out,
                         "\"usage\":{\"prompt_tokens\":%" PRId64 ",\"completion_tokens\":%" PRId64
                         ",\"total_tokens\":%" PRId64
                         ",\"prompt_tokens_details\":{\"cached_tokens\":%" PRId64 "}}",
                         u->prompt_tokens, u->completion_tokens,
                         u->prompt_tokens + u->completion_tokens, u->cached_tokens);
}

static st_status write_text(const st_buf *text, st_buf *out)
{
    return st_buf_json_string(out, text->data ? text->data : "", text->len);
}

/* ,"finish_reason":...,"stop_reason":... ; stop_reason (vLLM's) is the stop string or the id of a
 * stop token that the request asked for, else null. */
static st_status write_finish(const st_api_reply *a, const st_api_choice *c, bool show, st_buf *out)
{
    if (!show || !c->done)
        return st_buf_puts(out, ",\"finish_reason\":null");
    st_status s = st_buf_printf(out, ",\"finish_reason\":\"%s\",\"stop_reason\":",
                                c->finish == ST_FINISH_STOP ? "stop" : "length");
    int matched = st_text_stream_matched(c->stream);
    if (s)
        return s;
    if (matched >= 0)
        return st_buf_json_string(out, a->r->stops[matched].text, a->r->stops[matched].len);
    for (int32_t i = 0; i < a->r->sampling.n_stop_ids; i++)
        if (c->stop_token == a->r->sampling.stop_ids[i])
            return st_buf_printf(out, "%d", c->stop_token);
    return st_buf_puts(out, "null");
}

static const st_api_answered_prompt *prompt_of(const st_api_reply *a, size_t choice)
{
    return &a->prompts[choice / (size_t)a->r->n];
}

/* token_ids and, with first, prompt_token_ids of a completion's choice (a chat has the latter at
 * the top). */
static st_status write_choice_ids(const st_api_reply *a, size_t choice, bool first, st_buf *out)
{
    if (!a->r->return_token_ids)
        return ST_OK;
    const st_api_choice *c = &a->choices[choice];
    st_status s = st_buf_puts(out, ",\"token_ids\":");
    if (!s)
        s = st_api_write_ids(c->ids.data, c->ids.len, out);
    if (s || !first || a->r->kind == ST_API_CHAT)
        return s;
    s = st_buf_puts(out, ",\"prompt_token_ids\":");
    return s ? s : st_api_write_ids(prompt_of(a, choice)->ids, prompt_of(a, choice)->n_ids, out);
}

static st_status write_top_ids(const st_api_reply *a, bool first, st_buf *out)
{
    if (!a->r->return_token_ids || !first || a->r->kind != ST_API_CHAT)
        return ST_OK;
    st_status s = st_buf_puts(out, ",\"prompt_token_ids\":");
    return s ? s : st_api_write_ids(a->prompts[0].ids, a->prompts[0].n_ids, out);
}

/* Server-sent events */

static st_status chunk_start(const st_api_reply *a, size_t choice, st_buf *out)
{
    st_status s = st_buf_puts(out, "data: ");
    if (!s)
        s = st_buf_append(out, a->head.data, a->head.len);
    return s ? s : st_buf_printf(out, ",\"choices\":[{\"index\":%zu", choice);
}

static st_status chunk_end(const st_api_reply *a, bool first, st_buf *out)
{
    st_status s = st_buf_puts(out, "}]");
    if (!s)
        s = write_top_ids(a, first, out);
    if (!s && a->r->continuous_usage) {
        st_api_usage u = st_api_reply_usage(a);
        s = st_buf_putc(out, ',');
        if (!s)
            s = st_api_write_usage(&u, out);
    } else if (!s && a->r->include_usage) {
        s = st_buf_puts(out, ",\"usage\":null");
    }
    return s ? s : st_buf_puts(out, "}\n\n");
}

/* The content of a chunk: text, logprobs, ids gathered since the last one. */
static st_status content_chunk(st_api_reply *a, size_t choice, bool first, st_buf *out)
{
    st_api_choice *c = &a->choices[choice];
    bool chat = a->r->kind == ST_API_CHAT;
    st_status s = chunk_start(a, choice, out);
    if (!s)
        s = st_buf_puts(out, chat ? ",\"delta\":{\"content\":" : ",\"text\":");
    if (!s)
        s = write_text(&c->text, out);
    if (!s && chat)
        s = st_buf_putc(out, '}');
    if (!s)
        s = st_api_write_logprobs(a, c, out);
    if (!s)
        s = write_finish(a, c, !chat, out);
    if (!s)
        s = write_choice_ids(a, choice, first, out);
    if (!s)
        s = chunk_end(a, false, out);
    st_buf_clear(&c->text);
    st_ids_clear(&c->ids);
    c->n_logprobs = c->n_tops = 0;
    if (!chat && c->done)
        c->finish_sent = true;
    return s;
}

/* A chat's first chunk (role) and last (finish_reason) carry an almost empty delta. */
static st_status edge_chunk(st_api_reply *a, size_t choice, bool first, st_buf *out)
{
    st_api_choice *c = &a->choices[choice];
    st_status s = chunk_start(a, choice, out);
    if (!s)
        s = st_buf_puts(out, first ? ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"}"
                                     ",\"logprobs\":null"
                                   : ",\"delta\":{},\"logprobs\":null");
    if (!s)
        s = write_finish(a, c, !first, out);
    return s ? s : chunk_end(a, first, out);
}

st_status st_api_reply_chunks(st_api_reply *a, size_t choice, st_buf *out)
{
    st_api_choice *c = &a->choices[choice];
    bool chat = a->r->kind == ST_API_CHAT, first = !c->started;
    st_status s = ST_OK;
    if (first && chat)
        s = edge_chunk(a, choice, true, out);
    c->started = true;
    bool content = c->text.len || c->n_logprobs || c->ids.len;
    if (!s && !c->finish_sent && (content || (!chat && c->done)))
        s = content_chunk(a, choice, first, out);
    if (!s && chat && c->done && !c->finish_sent) {
        s = edge_chunk(a, choice, false, out);
        c->finish_sent = true;
    }
    return s;
}

static st_status stream_end(st_api_reply *a, st_buf *out)
{
    st_status s = ST_OK;
    if (a->r->include_usage) {
        st_api_usage u = st_api_reply_usage(a);
        s = st_buf_puts(out, "data: ");
        if (!s)
            s = st_buf_append(out, a->head.data, a->head.len);
        if (!s)
            s = st_buf_puts(out, ",\"choices\":[],");
        if (!s)
            s = st_api_write_usage(&u, out);
        if (!s)
            s = st_buf_puts(out, "}\n\n");
    }
    return s ? s : st_buf_puts(out, "data: [DONE]\n\n");
}

/* Whole objects */

static st_status whole_choice(st_api_reply *a, size_t choice, st_buf *out)
{
    st_api_choice *c = &a->choices[choice];
    bool chat = a->r->kind == ST_API_CHAT;
    st_status s = st_buf_printf(out, "%s{\"index\":%zu,", choice ? "," : "", choice);
    if (!s)
        s = st_buf_puts(out,
                        chat ? "\"message\":{\"role\":\"assistant\",\"content\":" : "\"text\":");
    if (!s)
        s = write_text(&c->text, out);
    if (!s && chat)
        s = st_buf_puts(out, ",\"refusal\":null}");
    if (!s)
        s = st_api_write_logprobs(a, c, out);
    if (!s)
        s = write_finish(a, c, true, out);
    if (!s)
        s = write_choice_ids(a, choice, true, out);
    return s ? s : st_buf_putc(out, '}');
}

st_status st_api_reply_end(st_api_reply *a, st_buf *out)
{
    if (a->r->stream)
        return stream_end(a, out);
    st_status s = st_buf_append(out, a->head.data, a->head.len);
    if (!s)
        s = st_buf_puts(out, ",\"choices\":[");
    for (size_t i = 0; !s && i < a->n_choices; i++)
        s = whole_choice(a, i, out);
    if (!s)
        s = st_buf_puts(out, "],");
    st_api_usage u = st_api_reply_usage(a);
    if (!s)
        s = st_api_write_usage(&u, out);
    if (!s)
        s = write_top_ids(a, true, out);
    if (!s)
        s = st_buf_append(out, a->offer.data, a->offer.len);
    return s ? s : st_buf_putc(out, '}');
}

/* The other endpoints' objects */

st_status st_api_model_json(const char *name, int64_t created, int32_t max_model_len, st_buf *out)
{
    st_status s = st_buf_puts(out, "{\"id\":");
    if (!s)
        s = st_buf_json_string(out, name, strlen(name));
    if (!s)
        s = st_buf_printf(out,
                          ",\"object\":\"model\",\"created\":%" PRId64
                          ",\"owned_by\":\"starling\",\"root\":",
                          created);
    if (!s)
        s = st_buf_json_string(out, name, strlen(name));
    return s ? s : st_buf_printf(out, ",\"parent\":null,\"max_model_len\":%d}", max_model_len);
}

st_status st_api_models_json(const st_api_context *ctx, int64_t created, st_buf *out)
{
    st_status s = st_buf_puts(out, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; !s && i < ctx->n_models; i++) {
        if (i)
            s = st_buf_putc(out, ',');
        if (!s)
            s = st_api_model_json(ctx->models[i], created, ctx->max_model_len, out);
    }
    return s ? s : st_buf_puts(out, "]}");
}

st_status st_api_tokenize_json(const st_api_request *r, const st_api_context *ctx,
                               const st_tokenizer *tok, const int32_t *ids, size_t n, st_buf *out)
{
    st_status s = st_buf_printf(out, "{\"count\":%zu,\"max_model_len\":%d,\"tokens\":", n,
                                ctx->max_model_len);
    if (!s)
        s = st_api_write_ids(ids, n, out);
    if (!s)
        s = st_buf_puts(out, r->return_token_strs ? ",\"token_strs\":[" : ",\"token_strs\":null");
    for (size_t i = 0; !s && r->return_token_strs && i < n; i++) {
        if (i)
            s = st_buf_putc(out, ',');
        if (!s)
            s = st_api_write_token(tok, ids[i], out);
    }
    return s ? s : st_buf_puts(out, r->return_token_strs ? "]}" : "}");
}

st_status st_api_detokenize_json(const st_api_request *r, const st_tokenizer *tok, st_buf *out,
                                 st_api_error *err)
{
    st_buf text = ST_BUF_INIT;
    st_error why;
    st_status s =
        st_tokenizer_decode(tok, r->prompts[0].ids, r->prompts[0].n_ids, false, &text, &why);
    if (s) {
        st_buf_free(&text);
        return st_api_fail_from(err, "tokens", &why);
    }
    s = st_buf_puts(out, "{\"prompt\":");
    if (!s)
        s = write_text(&text, out);
    if (!s)
        s = st_buf_putc(out, '}');
    st_buf_free(&text);
    return s ? st_api_fail(err, 503, NULL, NULL, "memory is short") : ST_OK;
}
