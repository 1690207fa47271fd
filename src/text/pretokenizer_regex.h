/* Regular expressions as tokenizer.json writes them (Oniguruma, Ruby syntax, Unicode), run by
 * PCRE2 with JIT. A compiled expression is immutable; each thread brings its own st_regex_run. */
#ifndef ST_TEXT_PRETOKENIZER_REGEX_H
#define ST_TEXT_PRETOKENIZER_REGEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "starling/buf.h"
#include "starling/status.h"

typedef struct st_regex st_regex;

/* where: the field, for error texts. literal: pattern is plain text to search for. */
ST_NODISCARD st_status st_regex_new(const char *where, const char *pattern, size_t len,
                                    bool literal, st_regex **out, st_error *err);
void st_regex_free(st_regex *re); /* NULL is fine */

/* One pass over one text. Zero-initialise once; begin may be called again for the next text and
 * reuses the memory; st_regex_run_free at the end. */
typedef struct st_regex_run {
    const st_regex *re;
    const char *text; /* valid UTF-8, stays put until the pass ends */
    size_t len, at, last_end;
    bool any; /* last_end is meaningful */
    int error;
    void *match_data, *context, *jit_stack;
} st_regex_run;

void st_regex_begin(st_regex_run *run, const st_regex *re, const char *text, size_t len);
/* The next match, leftmost first, never overlapping. False at the end of the text or when the
 * search failed: st_regex_status tells which. */
bool st_regex_next(st_regex_run *run, size_t *start, size_t *end);
/* ST_OK, or why the pass stopped: ST_EDEADLINE when the expression backtracks without end. */
ST_NODISCARD st_status st_regex_status(const st_regex_run *run, st_error *err);
void st_regex_run_free(st_regex_run *run);

/* Rewrites Oniguruma syntax to PCRE2's, appending to *out (pretokenizer_pattern.c). */
ST_NODISCARD st_status st_pattern_rewrite(const char *where, const char *pattern, size_t len,
                                          st_buf *out, st_error *err);

/* Unicode's White_Space property. */
bool st_is_white_space(uint32_t cp);

#endif
