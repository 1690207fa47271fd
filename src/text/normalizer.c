/* Normalizers: see normalizer.h. */
#include "text/normalizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "base/utf8.h"
#include "text/normalizer_unicode.h"
#include "text/pretokenizer_regex.h"
#include "text/tokenizer_json.h"

#define MAX_STEPS 32

typedef enum step_kind {
    STEP_FORM,
    STEP_LOWERCASE,
    STEP_STRIP_ACCENTS,
    STEP_STRIP,
    STEP_PREPEND,
    STEP_REPLACE
} step_kind;

typedef struct step {
    step_kind kind;
    st_unicode_form form;
    bool left, right; /* STRIP */
    st_buf content;   /* PREPEND, REPLACE */
    st_regex *regex;  /* REPLACE */
} step;

struct st_normalizer {
    step steps[MAX_STEPS];
    int n;
};

/* ---- parsing ---- */

static st_status parse_content(const json_t *json, const char *where, const char *key, step *st,
                               st_error *err)
{
    st_str v;
    st_status s = st_tj_string(json, where, key, &v, err);
    if (s)
        return s;
    if (!v.s)
        return st_fail(err, ST_EFORMAT, "%s.%s is missing, expected a string", where, key);
    if (st_buf_append(&st->content, v.s, v.n))
        return st_fail(err, ST_ENOMEM, "no memory for %s", where);
    return ST_OK;
}

static st_status parse_replace(const json_t *json, const char *where, step *st, st_error *err)
{
    bool is_regex;
    st_str pattern;
    st->kind = STEP_REPLACE;
    st_status s = st_tj_pattern(json, where, &is_regex, &pattern, err);
    if (!s)
        s = st_regex_new(where, pattern.s, pattern.n, !is_regex, &st->regex, err);
    return s ? s : parse_content(json, where, "content", st, err);
}

static st_status parse_strip(const json_t *json, const char *where, step *st, st_error *err)
{
    st->kind = STEP_STRIP;
    st_status s = st_tj_bool(json, where, "strip_left", true, &st->left, err);
    return s ? s : st_tj_bool(json, where, "strip_right", true, &st->right, err);
}

static st_status parse_step(st_normalizer *n, const json_t *json, const char *where, int depth,
                            st_error *err);

static st_status parse_sequence(st_normalizer *n, const json_t *json, const char *where, int depth,
                                st_error *err)
{
    const json_t *list;
    st_status s = st_tj_array(json, where, "normalizers", &list, err);
    for (size_t i = 0; !s && i < json_array_size(list); i++) {
        char path[256];
        snprintf(path, sizeof path, "%s[%zu]", where, i);
        s = parse_step(n, json_array_get(list, i), path, depth + 1, err);
    }
    return s;
}

static st_status parse_step(st_normalizer *n, const json_t *json, const char *where, int depth,
                            st_error *err)
{
    static const struct {
        const char *name;
        step_kind kind;
        st_unicode_form form;
    } plain[] = {
        {"NFC", STEP_FORM, ST_NFC},
        {"NFD", STEP_FORM, ST_NFD},
        {"NFKC", STEP_FORM, ST_NFKC},
        {"NFKD", STEP_FORM, ST_NFKD},
        {"Lowercase", STEP_LOWERCASE, ST_NFC},
        {"StripAccents", STEP_STRIP_ACCENTS, ST_NFC},
    };
    const char *type;
    st_status s = st_tj_type(json, where, &type, err);
    if (s)
        return s;
    if (depth > 8 || n->n == MAX_STEPS)
        return st_fail(err, ST_EUNSUPPORTED, "%s: more than %d normalizers, or nested too deep",
                       where, MAX_STEPS);
    if (strcmp(type, "Sequence") == 0)
        return parse_sequence(n, json, where, depth, err);
    step *st = &n->steps[n->n++];
    if (strcmp(type, "Replace") == 0)
        return parse_replace(json, where, st, err);
    if (strcmp(type, "Strip") == 0)
        return parse_strip(json, where, st, err);
    if (strcmp(type, "Prepend") == 0) {
        st->kind = STEP_PREPEND;
        return parse_content(json, where, "prepend", st, err);
    }
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (strcmp(type, plain[i].name) == 0) {
            st->kind = plain[i].kind;
            st->form = plain[i].form;
            return ST_OK;
        }
    return st_fail(err, ST_EUNSUPPORTED,
                   "%s.type '%.100s' is not supported; supported: Sequence, NFC, NFD, NFKC, NFKD, "
                   "Lowercase, StripAccents, Strip, Prepend, Replace",
                   where, type);
}

st_status st_normalizer_parse(const json_t *json, st_normalizer **out, st_error *err)
{
    *out = NULL;
    st_normalizer *n = calloc(1, sizeof *n);
    if (!n)
        return st_fail(err, ST_ENOMEM, "no memory for the normalizer");
    if (json && !json_is_null(json)) {
        st_status s = parse_step(n, json, "normalizer", 0, err);
        if (s) {
            st_normalizer_free(n);
            return s;
        }
    }
    *out = n;
    return ST_OK;
}

void st_normalizer_free(st_normalizer *n)
{
    if (!n)
        return;
    for (int i = 0; i < n->n; i++) {
        st_buf_free(&n->steps[i].content);
        st_regex_free(n->steps[i].regex);
    }
    free(n);
}

/* ---- running ---- */

static st_status put(st_buf *out, uint32_t cp)
{
    char c[4];
    size_t n = st_utf8_encode(cp, c);
    return st_buf_append(out, c, n);
}

/* Character by character, as the reference does: no context rules (final sigma). */
static st_status lowercase(const char *text, size_t len, st_buf *out)
{
    st_status s = ST_OK;
    for (size_t i = 0; i < len && !s;) {
        uint32_t cp;
        i += st_utf8_decode(text + i, len - i, &cp);
        if (cp == 0x130) /* the only character whose lower case is two: i with a dot above */
            s = st_buf_append(out, "i\xCC\x87", 3);
        else
            s = put(out, (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp));
    }
    return s;
}

static st_status strip_accents(const char *text, size_t len, st_buf *out)
{
    st_status s = ST_OK;
    for (size_t i = 0; i < len && !s;) {
        uint32_t cp;
        i += st_utf8_decode(text + i, len - i, &cp);
        utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
        if (c != UTF8PROC_CATEGORY_MN && c != UTF8PROC_CATEGORY_MC && c != UTF8PROC_CATEGORY_ME)
            s = put(out, cp);
    }
    return s;
}

static st_status strip(const step *st, const char *text, size_t len, st_buf *out)
{
    size_t from = 0, to = len, keep = 0;
    bool leading = true;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        i += st_utf8_decode(text + i, len - i, &cp);
        bool space = st_is_white_space(cp);
        leading = leading && space;
        if (leading)
            from = i;
        if (!space)
            keep = i;
    }
    if (st->right)
        to = keep;
    if (!st->left)
        from = 0;
    return from < to ? st_buf_append(out, text + from, to - from) : ST_OK;
}

static st_status replace(const step *st, const char *text, size_t len, st_buf *out, st_error *err)
{
    st_regex_run run = {0};
    size_t done = 0, start, end;
    st_status s = ST_OK;
    st_regex_begin(&run, st->regex, text, len);
    while (!s && st_regex_next(&run, &start, &end)) {
        s = st_buf_append(out, text + done, start - done);
        if (!s)
            s = st_buf_append(out, st->content.data, st->content.len);
        done = end;
    }
    if (!s)
        s = st_regex_status(&run, err);
    st_regex_run_free(&run);
    return s ? s : st_buf_append(out, text + done, len - done);
}

static st_status run_step(const step *st, const char *text, size_t len, st_buf *out, st_error *err)
{
    switch (st->kind) {
    case STEP_FORM:
        return st_unicode_normalize(st->form, text, len, out);
    case STEP_LOWERCASE:
        return lowercase(text, len, out);
    case STEP_STRIP_ACCENTS:
        return strip_accents(text, len, out);
    case STEP_STRIP:
        return strip(st, text, len, out);
    case STEP_PREPEND: {
        st_status s = len ? st_buf_append(out, st->content.data, st->content.len) : ST_OK;
        return s ? s : st_buf_append(out, text, len);
    }
    case STEP_REPLACE:
        return replace(st, text, len, out, err);
    }
    return ST_EINTERNAL;
}

bool st_normalizer_changes_nothing(const st_normalizer *n)
{
    return n->n == 0;
}

st_status st_normalizer_run(const st_normalizer *n, const char *text, size_t len, st_buf *out,
                            st_error *err)
{
    st_buf a = ST_BUF_INIT, b = ST_BUF_INIT;
    st_error local = {.status = ST_OK};
    st_status s = n->n ? ST_OK : st_buf_append(out, text, len);
    for (int i = 0; i < n->n && !s; i++) {
        bool last = i == n->n - 1;
        st_buf_clear(&b);
        s = run_step(&n->steps[i], text, len, last ? out : &b, &local);
        st_buf swap = a;
        a = b;
        b = swap;
        text = a.data ? a.data : "";
        len = a.len;
    }
    st_buf_free(&a);
    st_buf_free(&b);
    if (s)
        return st_fail(err, s, "normalizer: %s", local.status ? local.text : st_status_name(s));
    return ST_OK;
}
