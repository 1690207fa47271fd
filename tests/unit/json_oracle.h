/* The JSON scanner against jansson on one text: what both must agree on. Used by unit tests and
 * fuzz targets. */
#ifndef ST_TESTS_JSON_ORACLE_H
#define ST_TESTS_JSON_ORACLE_H

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_scan.h"

/* The tree that the scanner's tokens spell; NULL: it found an error. */
static json_t *oracle_build(st_json_scan *s, st_json_token token);

static json_t *oracle_string(st_json_scan *s)
{
    st_buf text = ST_BUF_INIT;
    if (st_json_text(s, &text))
        abort();
    json_t *v = json_stringn(text.data, text.len);
    if (!v || (strlen(text.data) == text.len && !st_json_text_is(s, text.data)))
        abort();
    st_buf_free(&text);
    return v;
}

static json_t *oracle_number(st_json_scan *s)
{
    char digits[512];
    int64_t whole;
    size_t n = s->span.end - s->span.begin;
    if (s->integer)
        return json_integer(st_json_int64(s, &whole) ? whole : 0);
    if (st_json_int64(s, &whole))
        abort();
    if (n >= sizeof digits)
        n = sizeof digits - 1;
    memcpy(digits, s->text + s->span.begin, n);
    digits[n] = '\0';
    double x = strtod(digits, NULL);
    return json_real(x - x == 0 ? x : 0);
}

static json_t *oracle_container(st_json_scan *s, bool object)
{
    json_t *v = object ? json_object() : json_array();
    int depth = s->depth;
    for (;;) {
        st_json_token token = st_json_next(s);
        if (token == (object ? ST_JSON_OBJECT_END : ST_JSON_ARRAY_END) && s->depth == depth - 1)
            return v;
        json_t *key = NULL;
        if (token == ST_JSON_KEY) {
            key = oracle_string(s);
            token = st_json_next(s);
        }
        if (token != ST_JSON_ERROR && object != (key != NULL))
            abort();
        json_t *member = oracle_build(s, token);
        if (member && object)
            json_object_setn_new(v, json_string_value(key), json_string_length(key), member);
        else if (member)
            json_array_append_new(v, member);
        json_decref(key);
        if (!member) {
            json_decref(v);
            return NULL;
        }
    }
}

static json_t *oracle_build(st_json_scan *s, st_json_token token)
{
    switch (token) {
    case ST_JSON_OBJECT:
    case ST_JSON_ARRAY:
        return oracle_container(s, token == ST_JSON_OBJECT);
    case ST_JSON_STRING:
        return oracle_string(s);
    case ST_JSON_NUMBER:
        return oracle_number(s);
    case ST_JSON_TRUE:
        return json_true();
    case ST_JSON_FALSE:
        return json_false();
    case ST_JSON_NULL:
        return json_null();
    default:
        return NULL;
    }
}

/* What the scanner and jansson say of text; why they disagree, or NULL. */
static const char *oracle_compare(const char *text, size_t len)
{
    json_error_t e;
    st_json_scan s;
    /* Memory of the exact size: reads past its end are seen by ASan. */
    char *copy = malloc(len ? len : 1);
    memcpy(copy, text, len);
    st_json_scan_init(&s, copy, len);
    json_t *ours = oracle_build(&s, st_json_next(&s));
    bool complete = ours && st_json_next(&s) == ST_JSON_END;
    json_t *theirs = json_loadb(text, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &e);
    const char *wrong = NULL;
    if (complete && theirs)
        wrong = json_equal(ours, theirs) ? NULL : "both read it, but not the same";
    else if (complete && json_error_code(&e) != json_error_numeric_overflow &&
             json_error_code(&e) != json_error_null_byte_in_key)
        wrong = "only the scanner takes it";
    else if (!complete && theirs && s.depth != ST_JSON_MAX_DEPTH &&
             !memchr(text, 0, len)) /* jansson loses a NUL after a number */
        wrong = "only jansson takes it";
    if (!complete && (!s.why || s.pos > len || st_json_next(&s) != ST_JSON_ERROR))
        wrong = "an error without why or where";
    json_decref(ours);
    json_decref(theirs);
    free(copy);
    return wrong;
}

#endif
