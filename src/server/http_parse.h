/* A strict HTTP/1.1 request parser (RFC 9112): bytes in, one request out. No I/O, no clock.
 *
 *   HEAD -> BODY_SIZED | CHUNK_SIZE -> CHUNK_DATA -> CHUNK_END -> ... -> TRAILER -> DONE
 *
 * Whatever proxies and servers are known to read differently (bare LF, folded headers, two
 * lengths, length with chunked) is refused, so that a request cannot mean two things. How the
 * bytes were split into feeds makes no difference. */
#ifndef ST_SERVER_HTTP_PARSE_H
#define ST_SERVER_HTTP_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "starling/buf.h"

enum { ST_HTTP_MAX_HEADERS = 100 };

typedef enum st_http_state {
    ST_HTTP_HEAD,
    ST_HTTP_BODY_SIZED,
    ST_HTTP_CHUNK_SIZE,
    ST_HTTP_CHUNK_DATA,
    ST_HTTP_CHUNK_END,
    ST_HTTP_TRAILER,
    ST_HTTP_DONE,
    ST_HTTP_BAD /* error_status and error say why */
} st_http_state;

typedef enum st_http_method {
    ST_HTTP_GET,
    ST_HTTP_HEAD_METHOD,
    ST_HTTP_POST,
    ST_HTTP_OPTIONS,
    ST_HTTP_OTHER_METHOD
} st_http_method;

typedef struct st_http_header {
    size_t name, value; /* offsets of NUL-terminated texts in head */
} st_http_header;

typedef struct st_http_parser {
    size_t max_head, max_body; /* set by the caller; kept by reset */

    st_http_state state;
    int error_status; /* 400, 413, 417, 431, 501, 505 */
    const char *error;

    st_buf head;
    size_t scanned; /* bytes of head in which no end was found */
    st_http_method method;
    size_t method_name, target; /* offsets in head; the path, query cut off */
    st_http_header headers[ST_HTTP_MAX_HEADERS];
    size_t n_headers;
    int minor; /* HTTP/1.minor */
    bool keep_alive, expect_continue;

    st_buf body;
    uint64_t remaining; /* of a sized body or of a chunk */
    st_buf line;        /* a chunk's size line, or a trailer's */
    size_t trailer_bytes;
} st_http_parser;

/* Ready for the next request; keeps memory unless it is large. */
void st_http_parser_reset(st_http_parser *p);
void st_http_parser_free(st_http_parser *p);

/* Takes bytes until the request is complete (DONE) or bad; returns how many it took. What follows
 * belongs to the next request. */
size_t st_http_feed(st_http_parser *p, const char *data, size_t n);

/* Once the head is complete. */
const char *st_http_parser_path(const st_http_parser *p);
const char *st_http_parser_method_name(const st_http_parser *p);
/* The first header of that name (any case), or NULL. */
const char *st_http_parser_header(const st_http_parser *p, const char *name);

#endif
