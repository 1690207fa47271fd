/* Splits a stream of server-sent events (text/event-stream) into events, however the bytes were cut
 * into reads. Works in the caller's buffer: complete events are ranges of it, what is incomplete
 * stays with the caller.
 *
 *   size_t scanned = 0;
 *   while ((n = st_sse_next(buf + at, len - at, &scanned, &ev)) > 0) { use ev; at += n; }
 *
 * An event's bytes and fields never depend on the cuts. For that a CR at the end of the text waits
 * for the byte after it, which may be its LF. */
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
 * LF, CRLF and CR end lines, as the standard has it. A blank line without anything before it is an
 * event without fields. O(n) over the life of a stream: *scanned counts the bytes of the incomplete
 * event already looked at. The caller starts with 0 and hands it back with the same text, longer;
 * it is 0 again after a complete event. */
size_t st_sse_next(const char *text, size_t len, size_t *scanned, st_sse_event *out);

#endif
