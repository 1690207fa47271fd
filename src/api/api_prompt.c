/* Requests -> token ids: template, tokenizer, checks. */
#include <stdio.h>
#include <string.h>

#include "api/api_request.h"

enum { COUNTED_CONTEXTS = 4 }; /* up to so many contexts a prompt's exact length is told */

/* Cuts a rendered chat right after the content of its last message, so that the model goes on
 * with that message (what transformers' continue_final_message does). */
static st_status cut_after_final_message(const json_t *chat, st_buf *text, st_api_error *err)
{
    const json_t *messages = json_object_get(chat, "messages");
    const json_t *content =
        json_object_get(json_array_get(messages, json_array_size(messages) - 1), "content");
    const char *s = json_string_value(content), *at = NULL;
    size_t n = json_string_length(content);
    /* Templates may trim the content. */
    while (n && strchr(" \t\r\n", s[n - 1]))
        n--;
    while (n && strchr(" \t\r\n", *s)) {
        s++;
        n--;
    }
    for (size_t i = text->len; n && i >= n && !at; i--)
        if (memcmp(text->data + i - n, s, n) == 0)
            at = text->data + i;
    if (!at)
        return st_api_fail(err, 400, "continue_final_message", NULL,
                           "continue_final_message: the last message has no text that the chat "
                           "template shows");
    text->len = (size_t)(at - text->data);
    return ST_OK;
}

static st_status render(const st_api_parsed *req, const st_chat_template *tmpl, int64_t now,
                        st_buf *text, st_api_error *err)
{
    st_error why;
    if (!tmpl)
        return st_api_fail(err, 400, "messages", "no_chat_template",
                           "this model has no chat template: use /v1/completions, or start the "
                           "server with --chat-template");
    st_status s = st_chat_template_render(tmpl, req->pub.chat, now, text, &why);
    if (s && s != ST_ENOMEM && req->chat_text_arguments) {
        st_error second;
        st_buf_clear(text);
        s = st_chat_template_render(tmpl, req->chat_text_arguments, now, text, &second);
    }
    if (!s)
        return req->pub.continue_final_message ? cut_after_final_message(req->pub.chat, text, err)
                                               : ST_OK;
    /* The template's own complaints and its limits are about the messages. */
    return st_api_fail(err, 400, "messages", "chat_template_error", "chat template: %s", why.text);
}

/* Prompts for the model that are far too long are not tokenized to their end. */
static st_status encode(const st_api_parsed *req, const st_api_context *ctx,
                        const st_tokenizer *tok, st_token_cache *cache, const char *text,
                        size_t len, st_ids *out, st_api_error *err)
{
    st_error why;
    const char *param = req->pub.chat ? "messages" : "prompt";
    unsigned flags = req->pub.add_special_tokens ? ST_ENCODE_ADD_SPECIAL : 0;
    bool limited = req->pub.kind & (ST_API_COMPLETION | ST_API_CHAT);
    size_t most = limited ? (size_t)ctx->max_model_len * COUNTED_CONTEXTS : SIZE_MAX;
    st_status s = cache ? st_token_cache_encode(cache, text, len, flags, most, out, &why)
                        : st_tokenizer_encode_limited(tok, text, len, flags, most, out, &why);
    if (s == ST_EFULL)
        return st_api_fail(err, 400, param, "context_length_exceeded",
                           "the prompt has more than %zu tokens: this model's context is %d "
                           "tokens, prompt and answer together",
                           most, ctx->max_model_len);
    return s ? st_api_fail_from(err, param, &why) : ST_OK;
}

st_status st_api_check_length(st_api_kind kind, const char *param, const st_api_context *ctx,
                              size_t n, st_api_error *err)
{
    if (!(kind & (ST_API_COMPLETION | ST_API_CHAT)))
        return ST_OK;
    if (n == 0)
        return st_api_fail(err, 400, param, NULL,
                           "%s: the prompt is empty: expected at least one "
                           "token",
                           param);
    if (n >= (size_t)ctx->max_model_len)
        return st_api_fail(err, 400, param, "context_length_exceeded",
                           "the prompt has %zu tokens: this model's context is %d tokens, prompt "
                           "and answer together",
                           n, ctx->max_model_len);
    return ST_OK;
}

static st_status check_length(const st_api_request *r, const st_api_context *ctx, size_t n,
                              st_api_error *err)
{
    const char *param = r->chat                  ? "messages"
                        : r->kind == ST_API_CHAT ? "prompt_token_ids"
                                                 : "prompt";
    return st_api_check_length(r->kind, param, ctx, n, err);
}

st_status st_api_prompt_ids(const st_api_request *r, size_t i, const st_api_context *ctx,
                            const st_tokenizer *tok, const st_chat_template *tmpl, int64_t now,
                            st_ids *out, st_api_error *err)
{
    return st_api_prompt_ids_cached(r, i, ctx, tok, tmpl, NULL, now, out, err);
}

st_status st_api_prompt_ids_cached(const st_api_request *r, size_t i, const st_api_context *ctx,
                                   const st_tokenizer *tok, const st_chat_template *tmpl,
                                   st_token_cache *cache, int64_t now, st_ids *out,
                                   st_api_error *err)
{
    const st_api_parsed *req = (const st_api_parsed *)r;
    size_t before = out->len;
    st_buf text = ST_BUF_INIT;
    st_status s;
    if (r->chat) {
        s = render(req, tmpl, now, &text, err);
        if (!s)
            s = encode(req, ctx, tok, cache, text.data ? text.data : "", text.len, out, err);
    } else if (r->prompts[i].text) {
        s = encode(req, ctx, tok, cache, r->prompts[i].text, r->prompts[i].len, out, err);
    } else {
        s = st_ids_append(out, r->prompts[i].ids, r->prompts[i].n_ids);
        if (s)
            s = st_api_fail(err, 503, NULL, NULL, "memory is short");
    }
    st_buf_free(&text);
    return s ? s : check_length(r, ctx, out->len - before, err);
}
