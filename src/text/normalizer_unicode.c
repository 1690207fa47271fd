/* Normalization forms: see normalizer_unicode.h. utf8proc supplies decompositions, combining
 * classes and composition; splitting the text and ordering the marks is done here, because
 * utf8proc orders marks by exchanges, which is quadratic in a long run of them. */
#include "text/normalizer_unicode.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "base/utf8.h"

/* True when cp is a starter that no form changes and that nothing before it can combine with:
 * text may be cut in front of it, and the pieces normalized one by one. NFC leaves everything
 * below U+0300 alone as well. May answer false for characters that would qualify. */
static bool is_boundary(st_unicode_form form, uint32_t cp)
{
    if (cp < 0x80 || (form == ST_NFC && cp < 0x300))
        return true;
    if (form == ST_NFC && cp >= 0xAC00 && cp <= 0xD7A3)
        return true; /* Hangul syllables */
    if ((cp >= 0x1100 && cp <= 0x11FF) || (cp >= 0xAC00 && cp <= 0xD7A3))
        return false; /* Hangul is composed by formula, not by the tables */
    const utf8proc_property_t *p = utf8proc_get_property((utf8proc_int32_t)cp);
    return p->combining_class == 0 && p->decomp_seqindex == UINT16_MAX &&
           (p->comb_index == UINT16_MAX || p->comb_index < 0x8000);
}

/* Puts each run of marks (combining class not 0) into the order of their classes; equals keep
 * their order. */
static st_status order_marks(utf8proc_int32_t *cps, size_t n)
{
    utf8proc_int32_t *copy = NULL;
    for (size_t i = 0; i < n;) {
        size_t end = i, count[257] = {0};
        bool sorted = true;
        int last = 0;
        for (; end < n; end++) {
            int class = utf8proc_get_property(cps[end])->combining_class;
            if (class == 0)
                break;
            sorted = sorted && class >= last;
            last = class;
            count[class + 1]++;
        }
        if (!sorted) {
            if (!copy)
                copy = malloc(n * sizeof *copy);
            if (!copy)
                return ST_ENOMEM;
            memcpy(copy, cps + i, (end - i) * sizeof *copy);
            for (int k = 1; k < 257; k++)
                count[k] += count[k - 1];
            for (size_t k = 0; k < end - i; k++)
                cps[i + count[utf8proc_get_property(copy[k])->combining_class]++] = copy[k];
        }
        i = end > i ? end : i + 1;
    }
    free(copy);
    return ST_OK;
}

/* Decomposes text into code points at *cps (allocated). */
static st_status decompose(utf8proc_option_t options, const char *text, size_t len,
                           utf8proc_int32_t **cps, size_t *n)
{
    size_t cap = 0;
    *cps = NULL;
    *n = 0;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        i += st_utf8_decode(text + i, len - i, &cp);
        for (;;) {
            int last_class = 0;
            utf8proc_ssize_t used =
                utf8proc_decompose_char((utf8proc_int32_t)cp, *cps ? *cps + *n : NULL,
                                        (utf8proc_ssize_t)(cap - *n), options, &last_class);
            if (used < 0)
                return ST_EINTERNAL; /* only for bad options or code points */
            if ((size_t)used <= cap - *n && *cps) {
                *n += (size_t)used;
                break;
            }
            if (cap > SIZE_MAX / 2 / sizeof **cps - len - 32)
                return ST_ENOMEM;
            cap = cap * 2 + len + 32; /* no character decomposes to more than 18 */
            utf8proc_int32_t *p = realloc(*cps, (cap + 1) * sizeof *p);
            if (!p)
                return ST_ENOMEM;
            *cps = p;
        }
    }
    return ST_OK;
}

/* One stretch that starts at a boundary and ends before one. */
static st_status normalize_stretch(st_unicode_form form, const char *text, size_t len, st_buf *out)
{
    bool compose = form == ST_NFC || form == ST_NFKC;
    bool compat = form == ST_NFKC || form == ST_NFKD;
    int options = UTF8PROC_STABLE | (compat ? UTF8PROC_COMPAT : 0);
    utf8proc_int32_t *cps;
    size_t n;
    st_status s = decompose((utf8proc_option_t)(options | UTF8PROC_DECOMPOSE), text, len, &cps, &n);
    if (!s)
        s = order_marks(cps, n);
    if (!s && compose) {
        utf8proc_ssize_t kept = utf8proc_normalize_utf32(
            cps, (utf8proc_ssize_t)n, (utf8proc_option_t)(options | UTF8PROC_COMPOSE));
        if (kept < 0)
            s = ST_EINTERNAL;
        n = kept < 0 ? 0 : (size_t)kept;
    }
    for (size_t i = 0; i < n && !s; i++) {
        char c[4];
        size_t used = st_utf8_encode((uint32_t)cps[i], c);
        s = st_buf_append(out, c, used);
    }
    free(cps);
    return s;
}

st_status st_unicode_normalize(st_unicode_form form, const char *text, size_t len, st_buf *out)
{
    st_status s = ST_OK;
    size_t done = 0, last = 0; /* text[0..done) is written; last: start of the last boundary */
    for (size_t i = 0; i < len && !s;) {
        uint32_t cp;
        if ((unsigned char)text[i] < 0x80) {
            last = i++;
            continue;
        }
        size_t used = st_utf8_decode(text + i, len - i, &cp);
        if (is_boundary(form, cp)) {
            last = i;
            i += used;
            continue;
        }
        /* The stretch reaches from the last boundary to the next. */
        size_t end = i + used;
        while (end < len) {
            used = st_utf8_decode(text + end, len - end, &cp);
            if (is_boundary(form, cp))
                break;
            end += used;
        }
        s = st_buf_append(out, text + done, last - done);
        if (!s)
            s = normalize_stretch(form, text + last, end - last, out);
        done = last = i = end;
    }
    return s ? s : st_buf_append(out, text + done, len - done);
}
