/* Splits a stream of server-sent events (text/event-stream) into events, however the bytes were cut
 * into reads. Works in the caller's buffer: complete events are ranges of it, what is incomplete
 * stays with the caller.
 *
 *   while ((n = st_sse_next(buf + at, len - at, eof, &ev)) > 0) { use ev; at += n; }
 */
#ifndef ST_BASE_SSE_SPLIT_H
#define ST_BASE_SSE_SPLIT_H

#include <stdbool.h>
#include <stddef.h>

typedef struct st_sse_event {
    const char *data; /* of the single data: line, the usual case; NULL: none or several lines */
    size_t data_len;
    const char *name; /* of event:, or NULL */
    size_t name_len;
    bool comment; /* only comment lines: a keep-alive */
    int data_lines;
} st_sse_event;

/* Bytes of the first complete event in text (its blank line included); 0: more bytes are needed.
 * LF, CRLF and CR end lines, as the standard has it. O(n) over the life of a stream when the caller
 * passes *scanned (0 for a new event), the count of bytes already known to hold no end. */
size_t st_sse_next(const char *text, size_t len, size_t *scanned, st_sse_event *out);

#endif
