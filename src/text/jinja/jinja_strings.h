/* Python's string operations on UTF-8: what the methods and filters of templates share. */
#ifndef ST_TEXT_JINJA_STRINGS_H
#define ST_TEXT_JINJA_STRINGS_H

#include "text/jinja/jinja_value.h"

bool jchar_is_space(uint32_t cp); /* str.isspace */
bool jchar_is_alpha(uint32_t cp);
bool jchar_is_decimal(uint32_t cp);
bool jchar_is_digit(uint32_t cp);
bool jchar_is_numeric(uint32_t cp);
bool jchar_is_cased(uint32_t cp);
bool jchar_is_upper(uint32_t cp);
bool jchar_is_lower(uint32_t cp);

size_t jstr_rstrip_bytes(const char *p, size_t len); /* length without white space at the end */

enum { JSTRIP_LEFT = 1, JSTRIP_RIGHT = 2 };
/* chars: the characters to strip; NULL: white space */
jval jstr_strip(jrt *rt, const jstr *s, const jstr *chars, unsigned sides);

typedef enum jcase { JCASE_UPPER, JCASE_LOWER, JCASE_TITLE, JCASE_CAPITALIZE, JCASE_SWAP } jcase;
const jstr *jstr_case(jrt *rt, const jstr *s, jcase how);

/* sep NULL: runs of white space. max < 0: no limit. */
jlist *jstr_split(jrt *rt, const jstr *s, const jstr *sep, int64_t max);
jlist *jstr_rsplit(jrt *rt, const jstr *s, const jstr *sep, int64_t max);
jlist *jstr_lines(jrt *rt, const jstr *s, bool keep_ends);
const jstr *jstr_replace(jrt *rt, const jstr *s, const jstr *from, const jstr *to, int64_t max);
/* The byte offset of needle in s[from..to) (bytes), or SIZE_MAX; last: the last one. */
size_t jstr_find(const jstr *s, const jstr *needle, size_t from, size_t to, bool last);
/* Puts fill around s to make it width code points long. align: '<', '>' or '^'. */
const jstr *jstr_pad(jrt *rt, const jstr *s, int64_t width, char align, const jstr *fill);

#endif
