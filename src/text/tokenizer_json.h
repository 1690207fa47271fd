/* Reading fields of tokenizer.json with error texts that name the field, what was found there and
 * what was expected. `where` is the path of the enclosing object ("pre_tokenizer[0]"). */
#ifndef ST_TEXT_TOKENIZER_JSON_H
#define ST_TEXT_TOKENIZER_JSON_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "starling/status.h"

typedef struct st_str {
    const char *s; /* NULL: the field is absent or null */
    size_t n;
} st_str;

/* "an object", "a string", "null", ... for error texts. */
const char *st_tj_kind(const json_t *v);

/* A field that may be absent or null (then *out is dflt, or {NULL, 0}). */
ST_NODISCARD st_status st_tj_bool(const json_t *obj, const char *where, const char *key, bool dflt,
                                  bool *out, st_error *err);
ST_NODISCARD st_status st_tj_string(const json_t *obj, const char *where, const char *key,
                                    st_str *out, st_error *err);
/* A whole number in [0, max]; absent or null: dflt. */
ST_NODISCARD st_status st_tj_uint(const json_t *obj, const char *where, const char *key,
                                  long long max, long long dflt, long long *out, st_error *err);
/* Must be there and be an array or an object. */
ST_NODISCARD st_status st_tj_array(const json_t *obj, const char *where, const char *key,
                                   const json_t **out, st_error *err);
/* The field "type" of a component; must be a string. obj must be an object. */
ST_NODISCARD st_status st_tj_type(const json_t *obj, const char *where, const char **out,
                                  st_error *err);

bool st_str_is(st_str s, const char *text);

/* `pattern` of Split and Replace: {"String": "..."} or {"Regex": "..."}. */
ST_NODISCARD st_status st_tj_pattern(const json_t *obj, const char *where, bool *is_regex,
                                     st_str *out, st_error *err);

#endif
