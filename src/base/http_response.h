/* An HTTP/1.1 response, parsed as its bytes arrive: head, then body by Content-Length, chunks, or
 * the end of the connection. No I/O. How the bytes were split into reads never changes the result.
 *
 * Strict where lenience would lose or mix up answers: two lengths, a length beside chunks, a bad
 * chunk size, a head beyond the limit, bare CR or LF, control characters, compressed bodies are
 * errors. 1xx heads are skipped. */
#ifndef ST_BASE_HTTP_RESPONSE_H
#define ST_BASE_HTTP_RESPONSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ST_HTTP_RESPONSE_HEAD_MAX = 16 * 1024 };

typedef enum st_http_body_kind {
    ST_HTTP_BODY_NONE, /* HEAD, 204, 304, or Content-Length: 0 */
    ST_HTTP_BODY_LENGTH,
    ST_HTTP_BODY_CHUNKED,
    ST_HTTP_BODY_CLOSE /* to the end of the connection */
} st_http_body_kind;

typedef struct st_http_response {
    int status;     /* 0 until the head is complete */
    bool head_done; /* status, headers and body_kind are valid */
    bool complete;  /* the whole body was taken */
    bool keep_alive;
    bool event_stream; /* Content-Type: text/event-stream */
    bool json;         /* Content-Type: application/json */
    st_http_body_kind body_kind;
    uint64_t length; /* of ST_HTTP_BODY_LENGTH */
    int retry_after; /* seconds, or -1 */
    const char *why; /* what is wrong, after an error */
    /* private */
    uint8_t state;
    uint64_t left;
    size_t head_bytes;
    char line[1024]; /* the head's current line; longer header lines are kept to this */
    size_t line_len;
    bool seen_length, seen_chunked, seen_connection_close;
    bool http10, cr; /* cr: the line's CR came, its LF did not */
} st_http_response;

void st_http_response_init(st_http_response *r);
/* Takes bytes. Returns how many were taken (bytes after a complete response are left), or -1 on an
 * error (r->why). After each call [*body, *body + *body_len) is a piece of the body inside data;
 * call again with the rest until all is taken or r->complete. */
long st_http_response_feed(st_http_response *r, const char *data, size_t len, const char **body,
                           size_t *body_len);
/* The connection ended: true when that completes the response, false when it cuts it short. */
bool st_http_response_eof(st_http_response *r);

#endif
