/* Logprobs in OpenAI's two formats: chats' list of objects, completions' parallel lists. */
#include <stdio.h>
#include <string.h>

#include "api/api_reply.h"
#include "base/utf8.h"

/* JSON has no infinities; vLLM's clients know this floor. */
static st_status write_number(float x, st_buf *out)
{
    return st_buf_printf(out, "%.7g", x > -9999.0f ? (double)x : -9999.0);
}

static const char *bytes_of(const st_tokenizer *tok, int32_t id, size_t *len)
{
    const char *bytes = st_tokenizer_token_bytes(tok, id, len);
    if (!bytes)
        *len = 0;
    return bytes ? bytes : "";
}

st_status st_api_write_token(const st_tokenizer *tok, int32_t id, st_buf *out)
{
    size_t len;
    const char *bytes = bytes_of(tok, id, &len);
    return st_buf_json_string(out, bytes, len);
}

/* A token as an object key: parts of characters are spelled bytes:\xe4\xbd, as OpenAI does, so
 * that different tokens keep different keys. */
static st_status write_key(const st_tokenizer *tok, int32_t id, st_buf *out)
{
    size_t len;
    const char *bytes = bytes_of(tok, id, &len);
    if (len == 0) /* ids that pad the vocabulary would all be "" */
        return st_buf_printf(out, "\"token_id:%d\"", id);
    if (st_utf8_valid(bytes, len))
        return st_buf_json_string(out, bytes, len);
    st_status s = st_buf_puts(out, "\"bytes:");
    for (size_t i = 0; !s && i < len; i++)
        s = st_buf_printf(out, "\\\\x%02x", (unsigned char)bytes[i]);
    return s ? s : st_buf_putc(out, '"');
}

/* "token":...,"logprob":...,"bytes":[...] */
static st_status write_chat_token(const st_tokenizer *tok, int32_t id, float logprob, st_buf *out)
{
    size_t len;
    const char *bytes = bytes_of(tok, id, &len);
    st_status s = st_buf_puts(out, "\"token\":");
    if (!s)
        s = st_buf_json_string(out, bytes, len);
    if (!s)
        s = st_buf_puts(out, ",\"logprob\":");
    if (!s)
        s = write_number(logprob, out);
    if (!s)
        s = st_buf_puts(out, ",\"bytes\":[");
    for (size_t i = 0; !s && i < len; i++)
        s = st_buf_printf(out, i ? ",%u" : "%u", (unsigned char)bytes[i]);
    return s ? s : st_buf_putc(out, ']');
}

static st_status write_chat(const st_api_reply *a, const st_api_choice *c, st_buf *out)
{
    st_status s = st_buf_puts(out, ",\"logprobs\":{\"content\":[");
    for (size_t i = 0; !s && i < c->n_logprobs; i++) {
        const st_api_token_logprob *l = &c->logprobs[i];
        s = st_buf_puts(out, i ? ",{" : "{");
        if (!s)
            s = write_chat_token(a->tok, l->token, l->logprob, out);
        if (!s)
            s = st_buf_puts(out, ",\"top_logprobs\":[");
        for (int32_t k = 0; !s && k < l->n_top; k++) {
            const st_logprob *t = &c->tops[l->top_at + (size_t)k];
            s = st_buf_puts(out, k ? ",{" : "{");
            if (!s)
                s = write_chat_token(a->tok, t->token, t->logprob, out);
            if (!s)
                s = st_buf_putc(out, '}');
        }
        if (!s)
            s = st_buf_puts(out, "]}");
    }
    return s ? s : st_buf_puts(out, "],\"refusal\":null}");
}

static size_t count_chars(const char *s, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)s[i] & 0xC0) != 0x80;
    return count;
}

static st_status write_tops(const st_api_reply *a, const st_api_choice *c, st_buf *out)
{
    if (a->r->sampling.logprobs == 0)
        return st_buf_puts(out, ",\"top_logprobs\":null");
    st_status s = st_buf_puts(out, ",\"top_logprobs\":[");
    for (size_t i = 0; !s && i < c->n_logprobs; i++) {
        const st_api_token_logprob *l = &c->logprobs[i];
        s = st_buf_puts(out, i ? ",{" : "{");
        for (int32_t k = 0; !s && k < l->n_top; k++) {
            const st_logprob *t = &c->tops[l->top_at + (size_t)k];
            if (k)
                s = st_buf_putc(out, ',');
            if (!s)
                s = write_key(a->tok, t->token, out);
            if (!s)
                s = st_buf_putc(out, ':');
            if (!s)
                s = write_number(t->logprob, out);
        }
        if (!s)
            s = st_buf_putc(out, '}');
    }
    return s ? s : st_buf_putc(out, ']');
}

static st_status write_completion(const st_api_reply *a, st_api_choice *c, st_buf *out)
{
    st_status s = st_buf_puts(out, ",\"logprobs\":{\"tokens\":[");
    for (size_t i = 0; !s && i < c->n_logprobs; i++) {
        if (i)
            s = st_buf_putc(out, ',');
        if (!s)
            s = write_key(a->tok, c->logprobs[i].token, out);
    }
    if (!s)
        s = st_buf_puts(out, "],\"token_logprobs\":[");
    for (size_t i = 0; !s && i < c->n_logprobs; i++) {
        if (i)
            s = st_buf_putc(out, ',');
        if (!s)
            s = write_number(c->logprobs[i].logprob, out);
    }
    if (!s)
        s = st_buf_putc(out, ']');
    if (!s)
        s = write_tops(a, c, out);
    if (!s)
        s = st_buf_puts(out, ",\"text_offset\":[");
    for (size_t i = 0; !s && i < c->n_logprobs; i++) {
        size_t len;
        const char *bytes = bytes_of(a->tok, c->logprobs[i].token, &len);
        s = st_buf_printf(out, i ? ",%zu" : "%zu", c->chars);
        c->chars += count_chars(bytes, len);
    }
    return s ? s : st_buf_puts(out, "]}");
}

st_status st_api_write_logprobs(const st_api_reply *a, st_api_choice *c, st_buf *out)
{
    if (a->r->sampling.logprobs < 0 || (a->r->stream && c->n_logprobs == 0))
        return st_buf_puts(out, ",\"logprobs\":null");
    return a->r->kind == ST_API_CHAT ? write_chat(a, c, out) : write_completion(a, c, out);
}
