/* Server-sent events: see sse_split.h. */
#include "base/sse_split.h"

#include <stdint.h>
#include <string.h>

#define REPEAT(byte) (UINT64_C(0x0101010101010101) * (byte))

/* Nonzero when some byte of w is at most '\r': a line's end, or another control character. */
static uint64_t low_bytes(uint64_t w)
{
    return (w - REPEAT('\r' + 1)) & ~w & REPEAT(0x80);
}

/* Position of the first LF or CR from p on, or len. */
static size_t line_end(const char *t, size_t p, size_t len)
{
    while (p < len) {
        uint64_t w;
        if (len - p >= sizeof w) {
            memcpy(&w, t + p, sizeof w);
            if (!low_bytes(w)) {
                p += sizeof w;
                continue;
            }
        }
        for (size_t stop = len - p < sizeof w ? len : p + sizeof w; p < stop; p++)
            if (t[p] == '\n' || t[p] == '\r')
                return p;
    }
    return len;
}

/* Bytes of the line end at t[p]: LF, CR or CRLF. */
static size_t end_length(const char *t, size_t p, size_t len)
{
    return t[p] == '\r' && p + 1 < len && t[p + 1] == '\n' ? 2 : 1;
}

static void take_data(st_sse_event *out, const char *value, size_t n)
{
    out->data = out->data_lines++ ? NULL : value;
    out->data_len = out->data ? n : 0;
}

/* "name: value", one space after the colon not counting; a line without a colon is a name. */
static void take_line(st_sse_event *out, const char *line, size_t n, bool *fields)
{
    if (line[0] == ':') {
        out->comment = true;
        return;
    }
    *fields = true;
    const char *colon = memchr(line, ':', n);
    size_t name = colon ? (size_t)(colon - line) : n;
    const char *value = colon ? colon + 1 : line + n;
    size_t value_len = (size_t)(line + n - value);
    if (value_len && *value == ' ') {
        value++;
        value_len--;
    }
    if (name == 4 && memcmp(line, "data", 4) == 0) {
        take_data(out, value, value_len);
    } else if (name == 5 && memcmp(line, "event", 5) == 0) {
        out->name = value;
        out->name_len = value_len;
    }
}

static void take_event(const char *text, size_t len, st_sse_event *out)
{
    bool fields = false;
    *out = (st_sse_event){0};
    for (size_t p = 0; p < len;) {
        size_t end = line_end(text, p, len);
        if (end > p)
            take_line(out, text + p, end - p, &fields);
        p = end + end_length(text, end, len);
    }
    out->comment = out->comment && !fields;
}

size_t st_sse_next(const char *text, size_t len, size_t *scanned, st_sse_event *out)
{
    size_t p = *scanned;
    for (;;) {
        size_t end = line_end(text, p, len);
        /* p is where a line starts, or within one that began before *scanned. */
        bool blank = end == p && (p == 0 || text[p - 1] == '\n' || text[p - 1] == '\r');
        if (end == len || (text[end] == '\r' && end + 1 == len)) {
            *scanned = end;
            return 0;
        }
        p = end + end_length(text, end, len);
        if (blank) {
            *scanned = 0;
            take_event(text, p, out);
            return p;
        }
    }
}
