/* Added tokens: spellings that are found in the text before the model sees it, longest first at
 * the leftmost place. Two sets: those looked for in the text as it came, and those looked for
 * ("normalized": true) after the normalizer. */
#ifndef ST_TEXT_TOKENIZER_ADDED_H
#define ST_TEXT_TOKENIZER_ADDED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "starling/buf.h"
#include "starling/status.h"

typedef struct st_added {
    const char *text; /* what to look for */
    size_t len;
    int32_t id;
    bool lstrip, rstrip, single_word;
} st_added;

typedef struct st_added_set {
    st_added *items; /* sorted by text once st_added_set_sort was called */
    size_t n, cap;
    bool starts[256]; /* first bytes that occur */
} st_added_set;

/* Copies text. */
ST_NODISCARD st_status st_added_set_add(st_added_set *set, const char *text, size_t len,
                                        st_added flags);
void st_added_set_sort(st_added_set *set);
void st_added_set_free(st_added_set *set);

/* A pass over one text; set it up with {set, text, len}. */
typedef struct st_added_scan {
    const st_added_set *set;
    const char *text;
    size_t len, at, done; /* done: end of the last match with the spaces it took */
} st_added_scan;

/* The next match: its id, and where it begins and ends with the spaces that it takes. */
bool st_added_next(st_added_scan *scan, size_t *start, size_t *stop, int32_t *id);

#endif
