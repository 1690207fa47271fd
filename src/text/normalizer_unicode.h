/* Unicode normalization forms (Unicode Standard Annex #15) on UTF-8, with the character data of
 * utf8proc. */
#ifndef ST_TEXT_NORMALIZER_UNICODE_H
#define ST_TEXT_NORMALIZER_UNICODE_H

#include <stddef.h>

#include "starling/buf.h"
#include "starling/status.h"

typedef enum st_unicode_form { ST_NFC, ST_NFD, ST_NFKC, ST_NFKD } st_unicode_form;

/* Appends the normalized form of text[0..len), valid UTF-8, to *out. Linear in len. */
ST_NODISCARD st_status st_unicode_normalize(st_unicode_form form, const char *text, size_t len,
                                            st_buf *out);

#endif
