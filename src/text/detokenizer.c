/* Ids to text, all at once or as they come: see tokenizer.h. Both ways are the same code, so that
 * a stream's pieces always add up to the whole. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "text/tokenizer_internal.h"

static const char replacement[] = "\xEF\xBF\xBD";

st_status st_utf8_stream_push(st_utf8_stream *u, const char *bytes, size_t n, st_buf *out)
{
    st_status s = ST_OK;
    size_t i = 0;
    if (n == 0)
        return ST_OK;
    /* Complete (or condemn) the character that was held back, byte by byte. */
    while (u->n_held && i < n && !s) {
        uint32_t cp;
        u->held[u->n_held] = bytes[i];
        size_t total = u->n_held + 1, used = st_utf8_decode(u->held, total, &cp);
        if (cp != ST_UTF8_BAD) {
            s = st_buf_append(out, u->held, total);
            u->n_held = 0;
            i++;
        } else if (used == total && st_utf8_incomplete_tail(u->held, total) == total) {
            u->n_held = total;
            i++;
        } else { /* this byte does not continue it */
            s = st_buf_append(out, replacement, 3);
            u->n_held = 0;
        }
    }
    size_t tail = st_utf8_incomplete_tail(bytes + i, n - i), end = n - tail;
    while (i < end && !s) {
        size_t run = i;
        uint32_t cp = 0;
        while (run < end && cp != ST_UTF8_BAD) {
            size_t used = (unsigned char)bytes[run] < 0x80 ? 1 : 0;
            if (!used)
                used = st_utf8_decode(bytes + run, end - run, &cp);
            if (cp != ST_UTF8_BAD) {
                run += used;
                continue;
            }
            s = st_buf_append(out, bytes + i, run - i);
            if (!s)
                s = st_buf_append(out, replacement, 3);
            i = run = run + used;
        }
        if (!s && cp != ST_UTF8_BAD) {
            s = st_buf_append(out, bytes + i, run - i);
            i = run;
        }
    }
    if (!s && tail && i == end) {
        memcpy(u->held, bytes + end, tail);
        u->n_held = tail;
    }
    return s;
}

st_status st_utf8_stream_finish(st_utf8_stream *u, st_buf *out)
{
    st_status s = u->n_held ? st_buf_append(out, replacement, 3) : ST_OK;
    u->n_held = 0;
    return s;
}

struct st_detokenizer {
    const st_tokenizer *t;
    bool skip_special;
    size_t strip_left; /* how often the decoder's Strip may still take something off */
    st_utf8_stream utf8;
};

static void start(st_detokenizer *d, const st_tokenizer *t, bool skip_special)
{
    *d = (st_detokenizer){.t = t, .skip_special = skip_special, .strip_left = t->decoder.strip_max};
}

/* The next token's bytes, with the decoder's Strip taken off the front of the text. Published
 * decoders strip one space, which no token splits. */
static st_status push(st_detokenizer *d, int32_t id, st_buf *out)
{
    const st_vocab *v = &d->t->vocab;
    if (id < 0 || id >= v->size || !v->tokens[id].text)
        return ST_EINVAL;
    const st_token *t = &v->tokens[id];
    if (d->skip_special && t->special)
        return ST_OK;
    const char *bytes = t->bytes;
    size_t n = t->bytes_len;
    const st_decoder *dec = &d->t->decoder;
    while (d->strip_left && n) {
        if (n < dec->strip_len || memcmp(bytes, dec->strip, dec->strip_len) != 0) {
            d->strip_left = 0;
            break;
        }
        bytes += dec->strip_len;
        n -= dec->strip_len;
        d->strip_left--;
    }
    return st_utf8_stream_push(&d->utf8, bytes, n, out);
}

st_status st_tokenizer_decode(const st_tokenizer *t, const int32_t *ids, size_t n,
                              bool skip_special, st_buf *out, st_error *err)
{
    st_detokenizer d;
    size_t before = out->len;
    start(&d, t, skip_special);
    st_status s = ST_OK;
    for (size_t i = 0; i < n && !s; i++) {
        s = push(&d, ids[i], out);
        if (s == ST_EINVAL)
            st_fail(err, s, "token id %d (number %zu) is not in the vocabulary: expected 0 to %d",
                    ids[i], i, t->vocab.size - 1);
    }
    if (!s)
        s = st_utf8_stream_finish(&d.utf8, out);
    if (!s)
        return ST_OK;
    if (s == ST_ENOMEM)
        st_fail(err, s, "no memory to decode %zu tokens", n);
    if (out->data) {
        out->len = before;
        out->data[before] = '\0';
    }
    return s;
}

st_status st_detokenizer_new(const st_tokenizer *t, bool skip_special, st_detokenizer **out)
{
    *out = malloc(sizeof **out);
    if (!*out)
        return ST_ENOMEM;
    start(*out, t, skip_special);
    return ST_OK;
}

void st_detokenizer_free(st_detokenizer *d)
{
    free(d);
}

st_status st_detokenizer_push(st_detokenizer *d, int32_t id, st_buf *out)
{
    return push(d, id, out);
}

st_status st_detokenizer_finish(st_detokenizer *d, st_buf *out)
{
    return st_utf8_stream_finish(&d->utf8, out);
}
