/* Text to ids, and what is known about single tokens: see tokenizer.h. */
#include "starling/tokenizer.h"

#include <string.h>

#include "base/utf8.h"
#include "text/tokenizer_internal.h"

#define CACHE_FROM 256 /* bytes of text from which remembering words pays */

/* Everything one call of encode needs. */
typedef struct encoder {
    const st_tokenizer *t;
    st_buf text; /* normalized text, section after section; only grows */
    st_pretokenizer_scratch words;
    st_bpe_scratch bpe;
    st_ids *out;
    size_t max_len; /* of out */
    st_error *err;
} encoder;

static st_status too_many(encoder *e)
{
    return st_fail(e->err, ST_EFULL, "the text has more tokens than are wanted");
}

/* A stretch without added tokens, already normalized: words, then ids. */
static st_status encode_plain(encoder *e, size_t off, size_t len)
{
    if (len == 0)
        return ST_OK;
    st_status s = st_pretokenizer_run(e->t->pretokenizer, &e->words, &e->text, off, len, e->err);
    for (size_t i = 0; i < e->words.words.len && !s; i++) {
        st_span w = e->words.words.data[i];
        size_t room = e->max_len > e->out->len ? e->max_len - e->out->len : 0;
        if (st_bpe_fewest_ids(e->t->bpe, w.len) > room)
            return too_many(e);
        s = st_bpe_encode(e->t->bpe, &e->bpe, &e->text, w.off, w.len, e->out, e->err);
    }
    return s;
}

static st_status no_memory(encoder *e, st_status s)
{
    return st_fail(e->err, s, "no memory to tokenize");
}

/* A stretch between added tokens of the first set: normalizes it and looks for the second set. */
static st_status encode_section(encoder *e, const char *text, size_t len, bool find_added)
{
    size_t off = e->text.len;
    if (len == 0)
        return ST_OK;
    st_status s = st_normalizer_run(e->t->normalizer, text, len, &e->text, e->err);
    if (s)
        return s;
    size_t n = e->text.len - off, done = 0, start, stop;
    int32_t id;
    st_added_scan scan = {&e->t->normalized, NULL, n, 0, 0};
    while (!s && find_added) {
        scan.text = e->text.data ? e->text.data + off : ""; /* encode_plain may move it */
        if (!st_added_next(&scan, &start, &stop, &id))
            break;
        s = encode_plain(e, off + done, start - done);
        if (!s && st_ids_push(e->out, id))
            s = no_memory(e, ST_ENOMEM);
        done = stop;
    }
    return s ? s : encode_plain(e, off + done, n - done);
}

static st_status encode_text(encoder *e, const char *text, size_t len, bool find_added)
{
    st_status s = ST_OK;
    size_t done = 0, start, stop;
    int32_t id;
    st_added_scan scan = {&e->t->raw, text, len, 0, 0};
    while (!s && find_added && st_added_next(&scan, &start, &stop, &id)) {
        s = encode_section(e, text + done, start - done, true);
        if (!s && st_ids_push(e->out, id))
            s = no_memory(e, ST_ENOMEM);
        done = stop;
    }
    return s ? s : encode_section(e, text + done, len - done, find_added);
}

st_status st_tokenizer_encode(const st_tokenizer *t, const char *text, size_t len, unsigned flags,
                              st_ids *out, st_error *err)
{
    return st_tokenizer_encode_limited(t, text, len, flags, SIZE_MAX, out, err);
}

st_status st_tokenizer_encode_limited(const st_tokenizer *t, const char *text, size_t len,
                                      unsigned flags, size_t max_ids, st_ids *out, st_error *err)
{
    st_buf clean = ST_BUF_INIT;
    size_t before = out->len;
    encoder e = {.t = t, .out = out, .err = err};
    e.max_len = max_ids < SIZE_MAX - before ? before + max_ids : SIZE_MAX;
    bool special = flags & ST_ENCODE_ADD_SPECIAL;
    st_status s = ST_OK;
    if (!st_utf8_valid(text, len)) {
        st_utf8_stream u = {0};
        s = st_utf8_stream_push(&u, text, len, &clean);
        if (!s)
            s = st_utf8_stream_finish(&u, &clean);
        text = clean.data;
        len = clean.len;
    }
    if (!s && special)
        s = st_ids_append(out, t->prefix.data, t->prefix.len);
    if (s)
        no_memory(&e, s);
    if (len >= CACHE_FROM)
        st_bpe_scratch_cache(&e.bpe);
    if (!s)
        s = encode_text(&e, text, len, !(flags & ST_ENCODE_PLAIN_SPECIAL));
    if (!s && special && st_ids_append(out, t->suffix.data, t->suffix.len))
        s = no_memory(&e, ST_ENOMEM);
    if (!s && out->len > e.max_len)
        s = too_many(&e);
    if (s)
        out->len = before;
    st_buf_free(&clean);
    st_buf_free(&e.text);
    st_bpe_scratch_free(&e.bpe);
    st_pretokenizer_scratch_free(&e.words);
    return s;
}

static const st_token *token(const st_tokenizer *t, int32_t id)
{
    bool known = id >= 0 && id < t->vocab.size && t->vocab.tokens[id].text;
    return known ? &t->vocab.tokens[id] : NULL;
}

int32_t st_tokenizer_vocab_size(const st_tokenizer *t)
{
    return t->vocab.size;
}

const char *st_tokenizer_token_bytes(const st_tokenizer *t, int32_t id, size_t *len)
{
    const st_token *k = token(t, id);
    *len = k ? k->bytes_len : 0;
    return k ? k->bytes : NULL;
}

bool st_tokenizer_is_special(const st_tokenizer *t, int32_t id)
{
    const st_token *k = token(t, id);
    return k && k->special;
}

int32_t st_tokenizer_bos(const st_tokenizer *t)
{
    return t->bos;
}

int32_t st_tokenizer_eos(const st_tokenizer *t)
{
    return t->eos;
}

int32_t st_tokenizer_find(const st_tokenizer *t, const char *text, size_t len)
{
    return st_vocab_find(&t->vocab, text, len);
}
