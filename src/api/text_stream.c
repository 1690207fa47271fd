/* Streaming text with stop strings: see text_stream.h. */
#include "api/text_stream.h"

#include <stdlib.h>
#include <string.h>

struct st_text_stream {
    st_text_stream_options opts;
    const st_tokenizer *tok;
    st_detokenizer *detok;
    st_buf held; /* decoded, not shown: the longest suffix that may become a stop string */
    int32_t n_tokens;
    int matched;
};

st_status st_text_stream_new(const st_tokenizer *tok, const st_text_stream_options *opts,
                             st_text_stream **out)
{
    *out = NULL;
    st_text_stream *s = calloc(1, sizeof *s);
    if (!s)
        return ST_ENOMEM;
    if (opts)
        s->opts = *opts;
    s->tok = tok;
    s->matched = -1;
    st_status st = st_detokenizer_new(tok, !s->opts.keep_special, &s->detok);
    if (st) {
        free(s);
        return st;
    }
    *out = s;
    return ST_OK;
}

void st_text_stream_free(st_text_stream *s)
{
    if (!s)
        return;
    st_detokenizer_free(s->detok);
    st_buf_free(&s->held);
    free(s);
}

int st_text_stream_matched(const st_text_stream *s)
{
    return s->matched;
}

/* Removes the first n bytes of held. */
static void drop(st_text_stream *s, size_t n)
{
    if (n == 0)
        return;
    memmove(s->held.data, s->held.data + n, s->held.len - n);
    s->held.len -= n;
    s->held.data[s->held.len] = '\0';
}

/* Appends the first n held bytes to out and forgets them. */
static st_status show(st_text_stream *s, size_t n, st_buf *out)
{
    st_status st = n ? st_buf_append(out, s->held.data, n) : ST_OK;
    if (!st)
        drop(s, n);
    return st;
}

/* Looks for the stop string that ends first; of several that end at the same byte, the longest.
 * Returns its index, or -1. */
static int find_stop(const st_text_stream *s, size_t *start)
{
    int best = -1;
    size_t best_end = 0;
    for (size_t i = 0; i < s->opts.n_stops && s->held.len; i++) {
        const st_stop *stop = &s->opts.stops[i];
        const char *at = memmem(s->held.data, s->held.len, stop->text, stop->len);
        if (!at)
            continue;
        size_t from = (size_t)(at - s->held.data), end = from + stop->len;
        if (best < 0 || end < best_end || (end == best_end && from < *start)) {
            best = (int)i;
            best_end = end;
            *start = from;
        }
    }
    return best;
}

/* Length of the longest suffix of held that is a proper beginning of a stop string. */
static size_t possible_start(const st_text_stream *s)
{
    size_t longest = 0;
    for (size_t i = 0; i < s->opts.n_stops; i++) {
        const st_stop *stop = &s->opts.stops[i];
        size_t n = stop->len - 1 < s->held.len ? stop->len - 1 : s->held.len;
        while (n > longest && memcmp(s->held.data + s->held.len - n, stop->text, n) != 0)
            n--;
        if (n > longest)
            longest = n;
    }
    return longest;
}

/* Shows what can be shown of held; last: nothing more will come. */
static st_status advance(st_text_stream *s, bool last, st_buf *out, bool *stopped)
{
    if (s->n_tokens <= s->opts.min_tokens && s->opts.min_tokens > 0)
        return show(s, s->held.len, out);
    size_t start = 0;
    int hit = find_stop(s, &start);
    if (hit >= 0) {
        st_status st = show(s, start + (s->opts.include_stop ? s->opts.stops[hit].len : 0), out);
        if (st)
            return st;
        st_buf_clear(&s->held);
        s->matched = hit;
        *stopped = true;
        return ST_OK;
    }
    return show(s, s->held.len - (last ? 0 : possible_start(s)), out);
}

st_status st_text_stream_push(st_text_stream *s, int32_t id, st_buf *out, bool *stopped)
{
    *stopped = s->matched >= 0;
    if (*stopped)
        return ST_OK;
    size_t len;
    s->n_tokens++;
    if (!st_tokenizer_token_bytes(s->tok, id, &len))
        return ST_OK;
    st_status st = st_detokenizer_push(s->detok, id, &s->held);
    if (st)
        return st;
    return advance(s, false, out, stopped);
}

st_status st_text_stream_finish(st_text_stream *s, st_buf *out, bool *stopped)
{
    *stopped = s->matched >= 0;
    if (*stopped)
        return ST_OK;
    st_status st = st_detokenizer_finish(s->detok, &s->held);
    return st ? st : advance(s, true, out, stopped);
}
