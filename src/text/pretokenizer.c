/* Pre-tokenizers: see pretokenizer.h. All of them are splits by an expression, with what becomes
 * of the matches; ByteLevel may also put a space in front of each word. */
#include "text/pretokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/tokenizer_json.h"

#define MAX_STEPS 32

typedef enum behavior {
    REMOVED,
    ISOLATED,
    MERGED_WITH_PREVIOUS,
    MERGED_WITH_NEXT,
    CONTIGUOUS
} behavior;

typedef struct step {
    st_regex *regex; /* NULL: add a prefix space */
    behavior behavior;
    bool invert;
} step;

struct st_pretokenizer {
    step steps[MAX_STEPS];
    int n;
    bool byte_level;
};

/* ---- parsing ---- */

/* NULL when there is no room (err says so). */
static step *add_step(st_pretokenizer *p, const char *where, st_error *err)
{
    if (p->n < MAX_STEPS)
        return &p->steps[p->n++];
    st_fail(err, ST_EUNSUPPORTED, "%s: more than %d pre-tokenizers", where, MAX_STEPS);
    return NULL;
}

static st_status add_split(st_pretokenizer *p, const char *where, const char *pattern, size_t len,
                           bool literal, behavior b, bool invert, st_error *err)
{
    step *st = add_step(p, where, err);
    if (!st)
        return ST_EUNSUPPORTED;
    st->behavior = b;
    st->invert = invert;
    return st_regex_new(where, pattern, len, literal, &st->regex, err);
}

static st_status parse_behavior(const json_t *json, const char *where, behavior dflt, behavior *out,
                                st_error *err)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    st_str v;
    st_status s = st_tj_string(json, where, "behavior", &v, err);
    *out = dflt;
    if (s || !v.s)
        return s;
    for (int i = 0; i < 5; i++)
        if (strcasecmp(v.s, names[i]) == 0) {
            *out = (behavior)i;
            return ST_OK;
        }
    return st_fail(err, ST_EUNSUPPORTED,
                   "%s.behavior '%.100s' is not supported, expected Removed, Isolated, "
                   "MergedWithPrevious, MergedWithNext or Contiguous",
                   where, v.s);
}

static st_status parse_split(st_pretokenizer *p, const json_t *json, const char *where,
                             st_error *err)
{
    bool is_regex, invert;
    st_str pattern;
    behavior b;
    st_status s = st_tj_pattern(json, where, &is_regex, &pattern, err);
    if (!s)
        s = parse_behavior(json, where, ISOLATED, &b, err);
    if (!s)
        s = st_tj_bool(json, where, "invert", false, &invert, err);
    return s ? s : add_split(p, where, pattern.s, pattern.n, !is_regex, b, invert, err);
}

/* GPT-2's pattern, which ByteLevel applies unless told not to. */
static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|"
                           "\\s+(?!\\S)|\\s+";

static st_status parse_byte_level(st_pretokenizer *p, const json_t *json, const char *where,
                                  st_error *err)
{
    bool prefix, use_regex;
    st_status s = st_tj_bool(json, where, "add_prefix_space", true, &prefix, err);
    if (!s)
        s = st_tj_bool(json, where, "use_regex", true, &use_regex, err);
    if (!s && prefix && !add_step(p, where, err))
        s = ST_EUNSUPPORTED;
    if (!s && use_regex)
        s = add_split(p, where, gpt2, sizeof gpt2 - 1, false, ISOLATED, false, err);
    p->byte_level = true;
    return s;
}

static st_status parse_digits(st_pretokenizer *p, const json_t *json, const char *where,
                              st_error *err)
{
    bool each;
    st_status s = st_tj_bool(json, where, "individual_digits", false, &each, err);
    return s ? s
             : add_split(p, where, "\\p{N}", 5, false, each ? ISOLATED : CONTIGUOUS, false, err);
}

static st_status parse_punctuation(st_pretokenizer *p, const json_t *json, const char *where,
                                   st_error *err)
{
    static const char pattern[] = "[!-/:-@\\[-`{-~\\p{P}]";
    behavior b;
    st_status s = parse_behavior(json, where, ISOLATED, &b, err);
    return s ? s : add_split(p, where, pattern, sizeof pattern - 1, false, b, false, err);
}

static st_status parse_delimiter(st_pretokenizer *p, const json_t *json, const char *where,
                                 st_error *err)
{
    st_str d;
    st_status s = st_tj_string(json, where, "delimiter", &d, err);
    return s ? s : add_split(p, where, d.s, d.n, true, REMOVED, false, err);
}

static st_status parse_component(st_pretokenizer *p, const json_t *json, const char *where,
                                 int depth, st_error *err);

static st_status parse_sequence(st_pretokenizer *p, const json_t *json, const char *where,
                                int depth, st_error *err)
{
    const json_t *list;
    st_status s = st_tj_array(json, where, "pretokenizers", &list, err);
    for (size_t i = 0; !s && i < json_array_size(list); i++) {
        char path[256];
        snprintf(path, sizeof path, "%s[%zu]", where, i);
        s = parse_component(p, json_array_get(list, i), path, depth + 1, err);
    }
    return s;
}

static st_status parse_component(st_pretokenizer *p, const json_t *json, const char *where,
                                 int depth, st_error *err)
{
    const char *type;
    st_status s = st_tj_type(json, where, &type, err);
    if (s)
        return s;
    if (p->byte_level)
        return st_fail(err, ST_EUNSUPPORTED, "%s: %.100s after ByteLevel is not supported", where,
                       type);
    if (strcmp(type, "Sequence") == 0 && depth < 8)
        return parse_sequence(p, json, where, depth, err);
    if (strcmp(type, "Split") == 0)
        return parse_split(p, json, where, err);
    if (strcmp(type, "ByteLevel") == 0)
        return parse_byte_level(p, json, where, err);
    if (strcmp(type, "Digits") == 0)
        return parse_digits(p, json, where, err);
    if (strcmp(type, "Punctuation") == 0)
        return parse_punctuation(p, json, where, err);
    if (strcmp(type, "CharDelimiterSplit") == 0)
        return parse_delimiter(p, json, where, err);
    if (strcmp(type, "WhitespaceSplit") == 0)
        return add_split(p, where, "\\s", 2, false, REMOVED, false, err);
    if (strcmp(type, "Whitespace") == 0)
        return add_split(p, where, "\\w+|[^\\w\\s]+", 12, false, REMOVED, true, err);
    return st_fail(err, ST_EUNSUPPORTED,
                   "%s.type '%.100s' is not supported; supported: Sequence, Split, ByteLevel, "
                   "Digits, Punctuation, Whitespace, WhitespaceSplit, CharDelimiterSplit",
                   where, type);
}

st_status st_pretokenizer_parse(const json_t *json, st_pretokenizer **out, st_error *err)
{
    *out = NULL;
    st_pretokenizer *p = calloc(1, sizeof *p);
    if (!p)
        return st_fail(err, ST_ENOMEM, "no memory for the pre-tokenizer");
    if (json && !json_is_null(json)) {
        st_status s = parse_component(p, json, "pre_tokenizer", 0, err);
        if (s) {
            st_pretokenizer_free(p);
            return s;
        }
    }
    *out = p;
    return ST_OK;
}

void st_pretokenizer_free(st_pretokenizer *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->n; i++)
        st_regex_free(p->steps[i].regex);
    free(p);
}

bool st_pretokenizer_byte_level(const st_pretokenizer *p)
{
    return p->byte_level;
}

/* ---- running ---- */

void st_pretokenizer_scratch_free(st_pretokenizer_scratch *s)
{
    free(s->words.data);
    free(s->next.data);
    st_regex_run_free(&s->run);
    *s = (st_pretokenizer_scratch){0};
}

static st_status push(st_spans *v, size_t off, size_t len)
{
    if (len == 0)
        return ST_OK;
    if (v->len == v->cap) {
        size_t cap = v->cap ? v->cap * 2 : 64;
        if (cap > SIZE_MAX / sizeof *v->data)
            return ST_ENOMEM;
        st_span *p = realloc(v->data, cap * sizeof *p);
        if (!p)
            return ST_ENOMEM;
        v->data = p;
        v->cap = cap;
    }
    v->data[v->len++] = (st_span){off, len};
    return ST_OK;
}

/* What the pieces of one word become, in text order. is_match already counts the inversion. */
typedef struct splitter {
    behavior behavior;
    st_spans *out;
    st_span open; /* a piece that may still grow */
    bool has_open, open_is_match;
} splitter;

static st_status flush(splitter *sp)
{
    st_status s = sp->has_open ? push(sp->out, sp->open.off, sp->open.len) : ST_OK;
    sp->has_open = false;
    return s;
}

static st_status take(splitter *sp, size_t off, size_t len, bool is_match)
{
    bool join = false;
    switch (sp->behavior) {
    case REMOVED:
        return is_match ? ST_OK : push(sp->out, off, len);
    case ISOLATED:
        return push(sp->out, off, len);
    case CONTIGUOUS:
        join = is_match == sp->open_is_match;
        break;
    case MERGED_WITH_PREVIOUS: /* a match joins what is before it, unless that is a match */
        join = is_match && !sp->open_is_match;
        break;
    case MERGED_WITH_NEXT: /* only the match nearest to the next text joins it */
        join = !is_match && sp->open_is_match;
        break;
    }
    if (sp->has_open && join) {
        sp->open.len += len;
        sp->open_is_match = is_match;
        return ST_OK;
    }
    st_status s = flush(sp);
    sp->open = (st_span){off, len};
    sp->has_open = true;
    sp->open_is_match = is_match;
    return s;
}

static st_status split_word(const step *st, st_pretokenizer_scratch *s, const char *text,
                            st_span word, st_error *err)
{
    splitter sp = {.behavior = st->behavior, .out = &s->next};
    size_t done = 0, start, end;
    st_status r = ST_OK;
    st_regex_begin(&s->run, st->regex, text + word.off, word.len);
    while (!r && st_regex_next(&s->run, &start, &end)) {
        if (start > done)
            r = take(&sp, word.off + done, start - done, st->invert);
        if (!r && end > start)
            r = take(&sp, word.off + start, end - start, !st->invert);
        done = end;
    }
    if (!r)
        r = st_regex_status(&s->run, err);
    if (!r && done < word.len)
        r = take(&sp, word.off + done, word.len - done, st->invert);
    return r ? r : flush(&sp);
}

static st_status prefix_space(st_pretokenizer_scratch *s, st_buf *text, st_span word)
{
    if (text->data[word.off] == ' ')
        return push(&s->next, word.off, word.len);
    size_t off = text->len;
    st_status r = st_buf_reserve(text, word.len + 1);
    if (!r)
        r = st_buf_putc(text, ' ');
    if (!r)
        r = st_buf_append(text, text->data + word.off, word.len);
    return r ? r : push(&s->next, off, word.len + 1);
}

st_status st_pretokenizer_run(const st_pretokenizer *p, st_pretokenizer_scratch *s, st_buf *text,
                              size_t off, size_t len, st_error *err)
{
    s->words.len = 0;
    st_status r = push(&s->words, off, len);
    for (int i = 0; i < p->n && !r; i++) {
        const step *st = &p->steps[i];
        s->next.len = 0;
        for (size_t k = 0; k < s->words.len && !r; k++)
            r = st->regex ? split_word(st, s, text->data, s->words.data[k], err)
                          : prefix_space(s, text, s->words.data[k]);
        st_spans swap = s->words;
        s->words = s->next;
        s->next = swap;
    }
    if (r == ST_ENOMEM)
        return st_fail(err, r, "no memory for the words of a text of %zu bytes", len);
    return r;
}
