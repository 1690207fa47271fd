/* Decoders: see tokenizer_decoder.h. Supported are the chains that work token by token: ByteLevel,
 * Replace of plain text, ByteFallback, Fuse, and Strip at the start of the fused text. */
#include "text/tokenizer_decoder.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "starling/buf.h"
#include "text/tokenizer_json.h"

#define MAX_REPLACE 8

typedef struct plan {
    bool byte_level, byte_fallback, fused, any;
    st_str from[MAX_REPLACE], to[MAX_REPLACE];
    int n_replace;
} plan;

static st_status plan_replace(plan *p, const json_t *json, const char *where, st_error *err)
{
    bool is_regex;
    if (p->n_replace == MAX_REPLACE || p->fused || p->byte_fallback)
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: Replace is supported %d times, before ByteFallback and Fuse", where,
                       MAX_REPLACE);
    st_str *from = &p->from[p->n_replace], *to = &p->to[p->n_replace];
    st_status s = st_tj_pattern(json, where, &is_regex, from, err);
    if (!s)
        s = st_tj_string(json, where, "content", to, err);
    if (s)
        return s;
    if (is_regex || from->n == 0 || to->n > from->n)
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: only Replace of plain text by text that is no longer is supported",
                       where);
    p->n_replace++;
    return ST_OK;
}

static st_status plan_strip(plan *p, st_decoder *d, const json_t *json, const char *where,
                            st_error *err)
{
    st_str content;
    long long start, stop;
    st_status s = st_tj_string(json, where, "content", &content, err);
    if (!s)
        s = st_tj_uint(json, where, "start", 1 << 20, 0, &start, err);
    if (!s)
        s = st_tj_uint(json, where, "stop", 1 << 20, 0, &stop, err);
    if (s)
        return s;
    if (!p->fused || stop != 0 || content.n == 0 || content.n >= sizeof d->strip || d->strip_max)
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: Strip is supported once, of one character, at the start (\"stop\": 0), "
                       "behind Fuse",
                       where);
    memcpy(d->strip, content.s, content.n);
    d->strip_len = content.n;
    d->strip_max = (size_t)start;
    return ST_OK;
}

static st_status plan_component(plan *p, st_decoder *d, const json_t *json, const char *where,
                                int depth, st_error *err)
{
    const char *type;
    const json_t *list;
    st_status s = st_tj_type(json, where, &type, err);
    if (s)
        return s;
    if (strcmp(type, "Sequence") == 0 && depth < 8) {
        s = st_tj_array(json, where, "decoders", &list, err);
        for (size_t i = 0; !s && i < json_array_size(list); i++) {
            char path[256];
            snprintf(path, sizeof path, "%s[%zu]", where, i);
            s = plan_component(p, d, json_array_get(list, i), path, depth + 1, err);
        }
        return s;
    }
    bool first = !p->any;
    p->any = true;
    if (strcmp(type, "Replace") == 0 && !p->byte_level)
        return plan_replace(p, json, where, err);
    if (strcmp(type, "Strip") == 0 && !p->byte_level)
        return plan_strip(p, d, json, where, err);
    if (strcmp(type, "ByteFallback") == 0 && !p->byte_level && !p->fused) {
        p->byte_fallback = true;
        return ST_OK;
    }
    if (strcmp(type, "Fuse") == 0) {
        p->fused = true;
        return ST_OK;
    }
    if (strcmp(type, "ByteLevel") == 0 && first) {
        p->byte_level = true;
        return ST_OK;
    }
    return st_fail(err, ST_EUNSUPPORTED,
                   "%s.type '%.100s' is not supported here; supported: ByteLevel alone, or a "
                   "Sequence of Replace, ByteFallback, Fuse, Strip",
                   where, type);
}

/* The bytes of a spelling in the byte-level alphabet. A spelling with other characters stands for
 * itself. out has room for len bytes. */
static size_t decode_byte_level(const char *text, size_t len, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        i += st_utf8_decode(text + i, len - i, &cp);
        int byte = st_char_to_byte(cp);
        if (byte < 0) {
            memcpy(out, text, len);
            return len;
        }
        out[n++] = (char)byte;
    }
    return n;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

static size_t decode_plain(const plan *p, const char *text, size_t len, char *out)
{
    memcpy(out, text, len);
    for (int k = 0; k < p->n_replace; k++) {
        st_str from = p->from[k], to = p->to[k];
        size_t n = 0;
        for (size_t i = 0; i < len;) {
            if (len - i >= from.n && memcmp(out + i, from.s, from.n) == 0) {
                if (to.n)
                    memcpy(out + n, to.s, to.n);
                n += to.n;
                i += from.n;
            } else {
                out[n++] = out[i++];
            }
        }
        len = n;
    }
    if (p->byte_fallback && len == 6 && memcmp(out, "<0x", 3) == 0 && out[5] == '>') {
        int hi = hex_digit(out[3]), lo = hex_digit(out[4]);
        if (hi >= 0 && lo >= 0) {
            out[0] = (char)(hi << 4 | lo);
            return 1;
        }
    }
    return len;
}

st_status st_decoder_build(st_decoder *d, const json_t *json, st_vocab *vocab, st_error *err)
{
    plan p = {0};
    size_t total = 0;
    *d = (st_decoder){0};
    if (json && !json_is_null(json)) {
        st_status s = plan_component(&p, d, json, "decoder", 0, err);
        if (s)
            return s;
    }
    for (int32_t i = 0; i < vocab->size; i++)
        total += vocab->tokens[i].text_len;
    d->bytes = malloc(total + 1);
    if (!d->bytes)
        return st_fail(err, ST_ENOMEM, "no memory for the decoder");
    char *at = d->bytes;
    for (int32_t i = 0; i < vocab->size; i++) {
        st_token *t = &vocab->tokens[i];
        if (!t->text)
            continue;
        t->bytes = t->text;
        t->bytes_len = t->text_len;
        if (p.byte_level && t->added) /* added tokens are written as they are */
            continue;
        size_t n = p.byte_level ? decode_byte_level(t->text, t->text_len, at)
                                : decode_plain(&p, t->text, t->text_len, at);
        t->bytes = at;
        t->bytes_len = (uint32_t)n;
        at += n;
    }
    return ST_OK;
}

void st_decoder_free(st_decoder *d)
{
    free(d->bytes);
    *d = (st_decoder){0};
}
