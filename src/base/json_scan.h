/* A strict JSON (RFC 8259) pull scanner over one buffer. Copies nothing, allocates nothing: every
 * token is a range of the text, so that a body can be edited by splicing bytes where a value
 * stands. For hot paths; configuration and everything that wants a tree uses jansson.
 *
 * Strict: valid UTF-8 only, no lone surrogates in \u escapes, no leading zeros, no trailing commas,
 * nothing after the value but white space, at most ST_JSON_MAX_DEPTH open containers. */
#ifndef ST_BASE_JSON_SCAN_H
#define ST_BASE_JSON_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "starling/buf.h"
#include "starling/status.h"

enum { ST_JSON_MAX_DEPTH = 128 };

typedef enum st_json_token {
    ST_JSON_ERROR, /* why and pos say what and where; every further call says so again */
    ST_JSON_END,   /* the value is complete and nothing follows */
    ST_JSON_OBJECT,
    ST_JSON_OBJECT_END,
    ST_JSON_ARRAY,
    ST_JSON_ARRAY_END,
    ST_JSON_KEY, /* followed by its value's token(s) */
    ST_JSON_STRING,
    ST_JSON_NUMBER,
    ST_JSON_TRUE,
    ST_JSON_FALSE,
    ST_JSON_NULL
} st_json_token;

/* Bytes [begin, end) of the text. */
typedef struct st_span {
    size_t begin, end;
} st_span;

typedef struct st_json_scan {
    const char *text;
    size_t len, pos;
    st_span span; /* of the last token; strings and keys with their quotes */
    bool escaped; /* the last string or key has a backslash: its bytes are not its text */
    bool integer; /* the last number has neither fraction nor exponent */
    int depth;    /* containers open after the last token */
    const char *why;
    /* private */
    uint8_t expect;
    uint64_t is_object[ST_JSON_MAX_DEPTH / 64];
} st_json_scan;

void st_json_scan_init(st_json_scan *s, const char *text, size_t len);
st_json_token st_json_next(st_json_scan *s);
/* Skips the value whose first token was just returned (a container to its end; nothing for a
 * scalar). *value is the whole value's range. ST_EFORMAT on an error. */
ST_NODISCARD st_status st_json_skip(st_json_scan *s, st_json_token first, st_span *value);

/* What the last token says. */
bool st_json_text_is(const st_json_scan *s, const char *text); /* a string or key; escapes undone */
/* Appends the last string's or key's text with escapes undone. */
ST_NODISCARD st_status st_json_text(const st_json_scan *s, st_buf *out);
bool st_json_int64(const st_json_scan *s, int64_t *out); /* false: not an integer that fits */

#endif
