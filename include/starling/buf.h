/* A growable byte buffer. Always NUL-terminated once anything was appended, so that .data can be
 * handed to C string functions; .len does not count that NUL. Zero-initialise to create, or use
 * ST_BUF_INIT; st_buf_free to release. Appends return ST_ENOMEM and leave the content as it was. */
#ifndef STARLING_BUF_H
#define STARLING_BUF_H

#include <stddef.h>
#include <stdint.h>

#include "starling/status.h"

typedef struct st_buf {
    char *data; /* NULL until the first append */
    size_t len;
    size_t cap;
} st_buf;

#define ST_BUF_INIT                                                                                \
    {                                                                                              \
        NULL, 0, 0                                                                                 \
    }

void st_buf_free(st_buf *b);  /* releases and zeroes */
void st_buf_clear(st_buf *b); /* keeps the memory, len = 0 */
ST_NODISCARD st_status st_buf_reserve(st_buf *b, size_t extra);
ST_NODISCARD st_status st_buf_append(st_buf *b, const void *bytes, size_t n);
ST_NODISCARD st_status st_buf_puts(st_buf *b, const char *s);
ST_NODISCARD st_status st_buf_putc(st_buf *b, char c);
ST_NODISCARD st_status st_buf_printf(st_buf *b, const char *fmt, ...) ST_PRINTF(2, 3);

/* Appends s as a JSON string with its quotes. Control characters, '"' and '\\' are escaped; bytes
 * that are not valid UTF-8 become U+FFFD (one per maximal ill-formed subsequence). Everything
 * else is copied as it is (no \u escapes for non-ASCII). */
ST_NODISCARD st_status st_buf_json_string(st_buf *b, const char *s, size_t n);

/* A growable array of token ids. Same rules as st_buf. */
typedef struct st_ids {
    int32_t *data;
    size_t len;
    size_t cap;
} st_ids;

#define ST_IDS_INIT                                                                                \
    {                                                                                              \
        NULL, 0, 0                                                                                 \
    }

void st_ids_free(st_ids *v);
void st_ids_clear(st_ids *v);
ST_NODISCARD st_status st_ids_push(st_ids *v, int32_t id);
ST_NODISCARD st_status st_ids_append(st_ids *v, const int32_t *ids, size_t n);

#endif
