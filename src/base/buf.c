/* Growable byte buffer and id vector: see buf.h. */
#include "starling/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

/* Grows *data to hold at least need elements of size elem; doubling keeps appends linear. */
static st_status grow(void **data, size_t *cap, size_t need, size_t elem)
{
    if (need <= *cap)
        return ST_OK;
    size_t cap2 = *cap ? *cap : 64;
    while (cap2 < need) {
        if (cap2 > SIZE_MAX / 2)
            return ST_ENOMEM;
        cap2 *= 2;
    }
    if (cap2 > SIZE_MAX / elem)
        return ST_ENOMEM;
    void *p = realloc(*data, cap2 * elem);
    if (!p)
        return ST_ENOMEM;
    *data = p;
    *cap = cap2;
    return ST_OK;
}

void st_buf_free(st_buf *b)
{
    free(b->data);
    *b = (st_buf)ST_BUF_INIT;
}

void st_buf_clear(st_buf *b)
{
    b->len = 0;
    if (b->data)
        b->data[0] = '\0';
}

st_status st_buf_reserve(st_buf *b, size_t extra)
{
    if (extra > SIZE_MAX - b->len - 1)
        return ST_ENOMEM;
    void *p = b->data;
    st_status s = grow(&p, &b->cap, b->len + extra + 1, 1);
    b->data = p;
    return s;
}

st_status st_buf_append(st_buf *b, const void *bytes, size_t n)
{
    st_status s = st_buf_reserve(b, n);
    if (s)
        return s;
    if (n)
        memcpy(b->data + b->len, bytes, n);
    b->len += n;
    b->data[b->len] = '\0';
    return ST_OK;
}

st_status st_buf_puts(st_buf *b, const char *s)
{
    return st_buf_append(b, s, strlen(s));
}

st_status st_buf_putc(st_buf *b, char c)
{
    return st_buf_append(b, &c, 1);
}

st_status st_buf_printf(st_buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0)
        return ST_EINVAL;
    st_status s = st_buf_reserve(b, (size_t)n);
    if (s)
        return s;
    va_start(ap, fmt);
    vsnprintf(b->data + b->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->len += (size_t)n;
    return ST_OK;
}

st_status st_buf_json_string(st_buf *b, const char *s, size_t n)
{
    size_t start_len = b->len;
    st_status st = st_buf_reserve(b, n + 2);
    if (!st)
        st = st_buf_putc(b, '"');
    size_t i = 0;
    while (!st && i < n) {
        /* Copy the longest run that needs no escape in one append. */
        size_t run = i;
        while (run < n && (unsigned char)s[run] >= 0x20 && (unsigned char)s[run] < 0x80 &&
               s[run] != '"' && s[run] != '\\')
            run++;
        if (run > i) {
            st = st_buf_append(b, s + i, run - i);
            i = run;
            continue;
        }
        unsigned char c = (unsigned char)s[i];
        if (c >= 0x80) {
            uint32_t cp;
            size_t len = st_utf8_decode(s + i, n - i, &cp);
            st = cp == ST_UTF8_BAD ? st_buf_append(b, "\xEF\xBF\xBD", 3)
                                   : st_buf_append(b, s + i, len);
            i += len;
            continue;
        }
        const char *esc = c == '"'    ? "\\\""
                          : c == '\\' ? "\\\\"
                          : c == '\n' ? "\\n"
                          : c == '\r' ? "\\r"
                          : c == '\t' ? "\\t"
                          : c == '\b' ? "\\b"
                          : c == '\f' ? "\\f"
                                      : NULL;
        st = esc ? st_buf_puts(b, esc) : st_buf_printf(b, "\\u%04x", c);
        i++;
    }
    if (!st)
        st = st_buf_putc(b, '"');
    if (st && b->data) {
        b->len = start_len;
        b->data[start_len] = '\0';
    }
    return st;
}

void st_ids_free(st_ids *v)
{
    free(v->data);
    *v = (st_ids)ST_IDS_INIT;
}

void st_ids_clear(st_ids *v)
{
    v->len = 0;
}

st_status st_ids_push(st_ids *v, int32_t id)
{
    return st_ids_append(v, &id, 1);
}

st_status st_ids_append(st_ids *v, const int32_t *ids, size_t n)
{
    if (n > SIZE_MAX - v->len)
        return ST_ENOMEM;
    void *p = v->data;
    st_status s = grow(&p, &v->cap, v->len + n, sizeof *v->data);
    v->data = p;
    if (s)
        return s;
    if (n)
        memcpy(v->data + v->len, ids, n * sizeof *ids);
    v->len += n;
    return ST_OK;
}
