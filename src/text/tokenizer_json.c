/* Checked access to tokenizer.json: see tokenizer_json.h. */
#include "text/tokenizer_json.h"

#include <string.h>

const char *st_tj_kind(const json_t *v)
{
    if (!v)
        return "missing";
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "a whole number";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        break;
    }
    return "null";
}

st_status st_tj_bool(const json_t *obj, const char *where, const char *key, bool dflt, bool *out,
                     st_error *err)
{
    const json_t *v = json_object_get(obj, key);
    *out = dflt;
    if (!v || json_is_null(v))
        return ST_OK;
    if (!json_is_boolean(v))
        return st_fail(err, ST_EFORMAT, "%s.%s is %s, expected true or false", where, key,
                       st_tj_kind(v));
    *out = json_is_true(v);
    return ST_OK;
}

st_status st_tj_string(const json_t *obj, const char *where, const char *key, st_str *out,
                       st_error *err)
{
    const json_t *v = json_object_get(obj, key);
    *out = (st_str){NULL, 0};
    if (!v || json_is_null(v))
        return ST_OK;
    if (!json_is_string(v))
        return st_fail(err, ST_EFORMAT, "%s.%s is %s, expected a string", where, key,
                       st_tj_kind(v));
    *out = (st_str){json_string_value(v), json_string_length(v)};
    return ST_OK;
}

st_status st_tj_uint(const json_t *obj, const char *where, const char *key, long long max,
                     long long dflt, long long *out, st_error *err)
{
    const json_t *v = json_object_get(obj, key);
    *out = dflt;
    if (!v || json_is_null(v))
        return ST_OK;
    if (!json_is_integer(v))
        return st_fail(err, ST_EFORMAT, "%s.%s is %s, expected a whole number", where, key,
                       st_tj_kind(v));
    long long n = json_integer_value(v);
    if (n < 0 || n > max)
        return st_fail(err, ST_EFORMAT, "%s.%s is %lld, expected 0 to %lld", where, key, n, max);
    *out = n;
    return ST_OK;
}

st_status st_tj_array(const json_t *obj, const char *where, const char *key, const json_t **out,
                      st_error *err)
{
    const json_t *v = json_object_get(obj, key);
    if (!json_is_array(v))
        return st_fail(err, ST_EFORMAT, "%s.%s is %s, expected an array", where, key,
                       st_tj_kind(v));
    *out = v;
    return ST_OK;
}

st_status st_tj_type(const json_t *obj, const char *where, const char **out, st_error *err)
{
    if (!json_is_object(obj))
        return st_fail(err, ST_EFORMAT, "%s is %s, expected an object", where, st_tj_kind(obj));
    const json_t *v = json_object_get(obj, "type");
    if (!json_is_string(v))
        return st_fail(err, ST_EFORMAT, "%s.type is %s, expected a string", where, st_tj_kind(v));
    *out = json_string_value(v);
    return ST_OK;
}

bool st_str_is(st_str s, const char *text)
{
    return s.s && s.n == strlen(text) && memcmp(s.s, text, s.n) == 0;
}

st_status st_tj_pattern(const json_t *obj, const char *where, bool *is_regex, st_str *out,
                        st_error *err)
{
    const json_t *p = json_object_get(obj, "pattern");
    const json_t *regex = json_object_get(p, "Regex"), *plain = json_object_get(p, "String");
    const json_t *v = regex ? regex : plain;
    if (!json_is_string(v) || (regex && plain))
        return st_fail(err, ST_EFORMAT,
                       "%s.pattern is %s, expected {\"Regex\": \"...\"} or {\"String\": \"...\"}",
                       where, st_tj_kind(p));
    *is_regex = regex != NULL;
    *out = (st_str){json_string_value(v), json_string_length(v)};
    return ST_OK;
}
