/* The "normalizer" of tokenizer.json: a chain of text rewrites, run on each stretch of text
 * between added tokens. Immutable once parsed. */
#ifndef ST_TEXT_NORMALIZER_H
#define ST_TEXT_NORMALIZER_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "starling/buf.h"
#include "starling/status.h"

typedef struct st_normalizer st_normalizer;

/* json: the component, or NULL / null for none. */
ST_NODISCARD st_status st_normalizer_parse(const json_t *json, st_normalizer **out, st_error *err);
void st_normalizer_free(st_normalizer *n); /* NULL is fine */

/* True when every text is its own normalized form. */
bool st_normalizer_changes_nothing(const st_normalizer *n);

/* Appends the normalized form of text[0..len), which must be valid UTF-8, to *out. text must not
 * lie in out's memory. */
ST_NODISCARD st_status st_normalizer_run(const st_normalizer *n, const char *text, size_t len,
                                         st_buf *out, st_error *err);

#endif
