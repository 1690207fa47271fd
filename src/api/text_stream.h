/* Token ids -> text that may be shown: whole characters only, and cut at stop strings.
 *
 *   id --detokenizer--> text --held back while it may be the start of a stop string--> out
 *
 * What comes out, concatenated, does not depend on how the text was split into tokens or pushes:
 * it ends before the stop string whose last character arrives first (the longest of them when
 * several end there), so a streamed and a whole answer are the same text. Used by the server and
 * by `starling run`. One per answer; not thread-safe. */
#ifndef ST_API_TEXT_STREAM_H
#define ST_API_TEXT_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "starling/api.h"
#include "starling/buf.h"
#include "starling/status.h"
#include "starling/tokenizer.h"

typedef struct st_text_stream_options {
    const st_stop *stops; /* must outlive the stream */
    size_t n_stops;
    int32_t min_tokens; /* stop strings are not looked for in the first min_tokens tokens' text */
    bool keep_special;  /* show special tokens */
    bool include_stop;  /* keep the matched stop string in the text */
} st_text_stream_options;

typedef struct st_text_stream st_text_stream;

/* tok must outlive the stream; opts NULL: no stop strings, special tokens skipped. */
ST_NODISCARD st_status st_text_stream_new(const st_tokenizer *tok,
                                          const st_text_stream_options *opts, st_text_stream **out);
void st_text_stream_free(st_text_stream *s); /* NULL is fine */

/* Appends the text that id makes certain (possibly none) to *out. When a stop string is complete,
 * *stopped becomes true and the text before it has been appended: the caller ends the request;
 * further pushes append nothing. Ids that the tokenizer has no token for (models pad their
 * vocabulary) add no text. */
ST_NODISCARD st_status st_text_stream_push(st_text_stream *s, int32_t id, st_buf *out,
                                           bool *stopped);

/* No more ids: appends what was held back. */
ST_NODISCARD st_status st_text_stream_finish(st_text_stream *s, st_buf *out, bool *stopped);

/* Index of the stop string that ended the text, or -1. */
int st_text_stream_matched(const st_text_stream *s);

#endif
