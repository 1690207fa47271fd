/* UTF-8 primitives: see utf8.h. */
#include "base/utf8.h"

/* Bounds of the second byte by lead byte; they exclude overlong forms, surrogates and values
 * above U+10FFFF (Unicode 15, table 3-7). Returns the sequence length, 0 for a bad lead. */
static size_t lead(unsigned char c, unsigned char *lo, unsigned char *hi)
{
    *lo = 0x80;
    *hi = 0xBF;
    if (c < 0x80)
        return 1;
    if (c < 0xC2)
        return 0;
    if (c < 0xE0)
        return 2;
    if (c < 0xF0) {
        if (c == 0xE0)
            *lo = 0xA0;
        if (c == 0xED)
            *hi = 0x9F;
        return 3;
    }
    if (c < 0xF5) {
        if (c == 0xF0)
            *lo = 0x90;
        if (c == 0xF4)
            *hi = 0x8F;
        return 4;
    }
    return 0;
}

size_t st_utf8_decode(const char *s, size_t n, uint32_t *cp)
{
    const unsigned char *u = (const unsigned char *)s;
    unsigned char lo, hi;
    size_t len = lead(u[0], &lo, &hi);
    if (len == 1) {
        *cp = u[0];
        return 1;
    }
    *cp = ST_UTF8_BAD;
    if (len == 0 || n < 2 || u[1] < lo || u[1] > hi)
        return 1;
    uint32_t v = (uint32_t)(u[0] & (0x7F >> len)) << 6 | (u[1] & 0x3F);
    for (size_t i = 2; i < len; i++) {
        if (i >= n || (u[i] & 0xC0) != 0x80)
            return i;
        v = v << 6 | (u[i] & 0x3F);
    }
    *cp = v;
    return len;
}

size_t st_utf8_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        if (cp >= 0xD800 && cp < 0xE000)
            return 0;
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    if (cp > 0x10FFFF)
        return 0;
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

bool st_utf8_valid(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        if ((unsigned char)s[i] < 0x80) {
            i++;
            continue;
        }
        uint32_t cp;
        i += st_utf8_decode(s + i, n - i, &cp);
        if (cp == ST_UTF8_BAD)
            return false;
    }
    return true;
}

size_t st_utf8_incomplete_tail(const char *s, size_t n)
{
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        unsigned char c = (unsigned char)s[n - back];
        if ((c & 0xC0) == 0x80)
            continue;
        unsigned char lo, hi;
        size_t len = lead(c, &lo, &hi);
        if (len <= back)
            return 0;
        /* A second byte outside the lead's bounds will never complete. */
        if (back >= 2) {
            unsigned char second = (unsigned char)s[n - back + 1];
            if (second < lo || second > hi)
                return 0;
        }
        return back;
    }
    return 0;
}
