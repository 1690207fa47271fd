/* The "pre_tokenizer" of tokenizer.json: cuts text into words, which the model then encodes one
 * by one. Immutable once parsed. */
#ifndef ST_TEXT_PRETOKENIZER_H
#define ST_TEXT_PRETOKENIZER_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "starling/buf.h"
#include "starling/status.h"
#include "text/pretokenizer_regex.h"

typedef struct st_span {
    size_t off, len;
} st_span;

typedef struct st_spans {
    st_span *data;
    size_t len, cap;
} st_spans;

typedef struct st_pretokenizer st_pretokenizer;

/* json: the component, or NULL / null for none (the text is one word). */
ST_NODISCARD st_status st_pretokenizer_parse(const json_t *json, st_pretokenizer **out,
                                             st_error *err);
void st_pretokenizer_free(st_pretokenizer *p); /* NULL is fine */
/* True when words are to be encoded byte by byte. */
bool st_pretokenizer_byte_level(const st_pretokenizer *p);

/* Work memory of one caller; zero-initialise, release with st_pretokenizer_scratch_free. */
typedef struct st_pretokenizer_scratch {
    st_spans words, next;
    st_regex_run run;
} st_pretokenizer_scratch;
void st_pretokenizer_scratch_free(st_pretokenizer_scratch *s);

/* Cuts text->data[off .. off + len), valid UTF-8, into scratch->words: positions in text. May
 * append to text (a prefix space needs a copy of its word). */
ST_NODISCARD st_status st_pretokenizer_run(const st_pretokenizer *p, st_pretokenizer_scratch *s,
                                           st_buf *text, size_t off, size_t len, st_error *err);

#endif
