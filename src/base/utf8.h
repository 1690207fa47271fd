/* UTF-8 decoding and encoding of single characters (RFC 3629: no surrogates, nothing above
 * U+10FFFF, no overlong forms). */
#ifndef ST_BASE_UTF8_H
#define ST_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ST_UTF8_BAD 0xFFFFFFFFu /* ill-formed bytes */

/* Decodes the character at s[0..n), n >= 1. Returns the bytes consumed (1..4). For ill-formed
 * bytes *cp = ST_UTF8_BAD and the result is the length of the maximal ill-formed subsequence
 * (Unicode 15, section 3.9: what Python, WHATWG and Rust replace by one U+FFFD). */
size_t st_utf8_decode(const char *s, size_t n, uint32_t *cp);

/* Writes cp to out[0..4); returns the bytes written, 0 when cp is no Unicode scalar value. */
size_t st_utf8_encode(uint32_t cp, char out[4]);

/* True when s[0..n) is valid UTF-8 throughout. */
bool st_utf8_valid(const char *s, size_t n);

/* The number of trailing bytes of s[0..n) that are the beginning of a character whose rest has
 * not arrived yet (0..3): what a streaming writer must hold back. */
size_t st_utf8_incomplete_tail(const char *s, size_t n);

#endif
