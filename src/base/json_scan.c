/* JSON pull scanner: see json_scan.h. Text inside strings is most of a chat's body: it is looked at
 * eight bytes at a time, four words a round; everything else is byte by byte. */
#include "base/json_scan.h"

#include <string.h>

#include "base/utf8.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are read with the first byte low");

/* What may come next. */
enum expect {
    EXPECT_VALUE,
    EXPECT_VALUE_OR_END, /* an array was opened */
    EXPECT_KEY,
    EXPECT_KEY_OR_END, /* an object was opened */
    EXPECT_COMMA_OR_END,
    EXPECT_NOTHING, /* the outermost value is complete */
    EXPECT_FAILED
};

#define REPEAT(byte) (UINT64_C(0x0101010101010101) * (byte))

void st_json_scan_init(st_json_scan *s, const char *text, size_t len)
{
    *s = (st_json_scan){.text = text, .len = len, .expect = EXPECT_VALUE};
}

static st_json_token fail(st_json_scan *s, size_t pos, const char *why)
{
    s->pos = pos;
    s->why = why;
    s->expect = EXPECT_FAILED;
    return ST_JSON_ERROR;
}

static uint64_t load64(const char *at)
{
    uint64_t w;
    memcpy(&w, at, sizeof w);
    return w;
}

/* The high bit of each byte that is a quote, a backslash, a control character or not ASCII. Borrows
 * of the subtractions run upwards only and start at such bytes, so the lowest bit set is exact. */
static uint64_t special_bytes(uint64_t w)
{
    return ((w - REPEAT(0x20)) | ((w ^ REPEAT('"')) - REPEAT(1)) |
            ((w ^ REPEAT('\\')) - REPEAT(1)) | w) &
           REPEAT(0x80);
}

static bool is_special(unsigned char c)
{
    return c < 0x20 || c >= 0x80 || c == '"' || c == '\\';
}

/* The first position from p on whose byte is special, or len. */
static size_t skip_plain(const char *t, size_t p, size_t len)
{
    for (; len - p >= 32; p += 32)
        if (special_bytes(load64(t + p)) | special_bytes(load64(t + p + 8)) |
            special_bytes(load64(t + p + 16)) | special_bytes(load64(t + p + 24)))
            break;
    for (; len - p >= 8; p += 8) {
        uint64_t found = special_bytes(load64(t + p));
        if (found)
            return p + (size_t)__builtin_ctzll(found) / 8;
    }
    while (p < len && !is_special((unsigned char)t[p]))
        p++;
    return p;
}

/* Length of the well-formed character of two to four bytes at t[0..n), n >= 1, else 0: the same
 * answer as st_utf8_decode, from one word. */
static size_t wide_char(const char *t, size_t n)
{
    uint32_t w = 0;
    if (n >= sizeof w)
        memcpy(&w, t, sizeof w);
    else
        memcpy(&w, t, n);
    if ((w & 0xC0C0F0) == 0x8080E0) {
        uint32_t top = w & 0x200F; /* zero: overlong; 0x200D: a surrogate */
        return top && top != 0x200D ? 3 : 0;
    }
    if ((w & 0xC0E0) == 0x80C0)
        return w & 0x1E ? 2 : 0;
    if ((w & 0xC0C0C0F8) == 0x808080F0) {
        uint32_t plane = (w & 7) << 2 | (w >> 12 & 3);
        return plane >= 1 && plane <= 16 ? 4 : 0;
    }
    return 0;
}

static int hex_digit(unsigned char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The four hex digits at t[0..4), or -1. */
static int32_t hex4(const char *t, size_t n)
{
    int32_t v = 0;
    if (n < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        int d = hex_digit((unsigned char)t[i]);
        if (d < 0)
            return -1;
        v = v << 4 | d;
    }
    return v;
}

/* Bytes of the escape at t[0..n), t[0] a backslash; 0: malformed, *why says how. */
static size_t escape(const char *t, size_t n, const char **why)
{
    *why = "an unknown escape in a string";
    if (n < 2)
        return 0;
    if (t[1] != 'u')
        return t[1] && strchr("\"\\/bfnrt", t[1]) ? 2 : 0;
    int32_t unit = hex4(t + 2, n - 2);
    if (unit < 0) {
        *why = "\\u without four hexadecimal digits";
        return 0;
    }
    if (unit < 0xD800 || unit > 0xDFFF)
        return 6;
    *why = "\\u with half of a surrogate pair";
    if (unit > 0xDBFF || n < 12 || t[6] != '\\' || t[7] != 'u')
        return 0;
    int32_t low = hex4(t + 8, n - 8);
    return low >= 0xDC00 && low <= 0xDFFF ? 12 : 0;
}

/* The string whose quote stands at p: sets span, escaped and pos. False after fail(). */
static bool string(st_json_scan *s, size_t p)
{
    const char *t = s->text, *why;
    size_t len = s->len, begin = p++;
    s->escaped = false;
    for (;;) {
        p = skip_plain(t, p, len);
        if (p == len) {
            (void)fail(s, p, "a string has no closing quote");
            return false;
        }
        unsigned char c = (unsigned char)t[p];
        if (c == '"')
            break;
        size_t n;
        if (c == '\\') {
            s->escaped = true;
            n = escape(t + p, len - p, &why);
        } else if (c < 0x20) {
            why = "a control character in a string: expected an escape such as \\n";
            n = 0;
        } else {
            why = "a string is not valid UTF-8";
            while ((n = wide_char(t + p, len - p)) && len - p > n &&
                   (unsigned char)t[p + n] >= 0x80)
                p += n;
        }
        if (n == 0) {
            (void)fail(s, p, why);
            return false;
        }
        p += n;
    }
    s->span = (st_span){begin, p + 1};
    s->pos = p + 1;
    return true;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static size_t skip_digits(const char *t, size_t p, size_t len)
{
    while (p < len && is_digit(t[p]))
        p++;
    return p;
}

static st_json_token number(st_json_scan *s, size_t p)
{
    const char *t = s->text;
    size_t len = s->len, begin = p;
    s->integer = true;
    if (t[p] == '-')
        p++;
    size_t end = skip_digits(t, p, len);
    if (end == p)
        return fail(s, p, "a number has no digits");
    if (t[p] == '0' && end - p > 1)
        return fail(s, p, "a number has a leading zero");
    p = end;
    if (p < len && t[p] == '.') {
        s->integer = false;
        end = skip_digits(t, ++p, len);
        if (end == p)
            return fail(s, p, "a number has no digits after its point");
        p = end;
    }
    if (p < len && (t[p] | 0x20) == 'e') {
        s->integer = false;
        p++;
        if (p < len && (t[p] == '+' || t[p] == '-'))
            p++;
        end = skip_digits(t, p, len);
        if (end == p)
            return fail(s, p, "a number has no digits in its exponent");
        p = end;
    }
    s->span = (st_span){begin, p};
    s->pos = p;
    return ST_JSON_NUMBER;
}

static bool in_object(const st_json_scan *s)
{
    unsigned top = (unsigned)s->depth - 1;
    return s->is_object[top / 64] >> (top % 64) & 1;
}

static st_json_token open_container(st_json_scan *s, size_t p, bool object)
{
    if (s->depth == ST_JSON_MAX_DEPTH)
        return fail(s, p, "more than 128 containers inside each other");
    unsigned top = (unsigned)s->depth++;
    uint64_t bit = UINT64_C(1) << (top % 64);
    if (object)
        s->is_object[top / 64] |= bit;
    else
        s->is_object[top / 64] &= ~bit;
    s->expect = object ? EXPECT_KEY_OR_END : EXPECT_VALUE_OR_END;
    s->span = (st_span){p, p + 1};
    s->pos = p + 1;
    return object ? ST_JSON_OBJECT : ST_JSON_ARRAY;
}

static void value_done(st_json_scan *s)
{
    s->expect = s->depth ? EXPECT_COMMA_OR_END : EXPECT_NOTHING;
}

static st_json_token close_container(st_json_scan *s, size_t p)
{
    bool object = in_object(s);
    s->depth--;
    value_done(s);
    s->span = (st_span){p, p + 1};
    s->pos = p + 1;
    return object ? ST_JSON_OBJECT_END : ST_JSON_ARRAY_END;
}

static st_json_token word(st_json_scan *s, size_t p, const char *spelled, st_json_token token)
{
    size_t n = strlen(spelled);
    if (s->len - p < n || memcmp(s->text + p, spelled, n) != 0)
        return fail(s, p, "expected a value");
    s->span = (st_span){p, p + n};
    s->pos = p + n;
    value_done(s);
    return token;
}

static size_t skip_space(const st_json_scan *s, size_t p)
{
    while (p < s->len &&
           (s->text[p] == ' ' || s->text[p] == '\n' || s->text[p] == '\r' || s->text[p] == '\t'))
        p++;
    return p;
}

static st_json_token value(st_json_scan *s, size_t p)
{
    st_json_token token;
    switch (s->text[p]) {
    case '"':
        if (!string(s, p))
            return ST_JSON_ERROR;
        value_done(s);
        return ST_JSON_STRING;
    case '{':
        return open_container(s, p, true);
    case '[':
        return open_container(s, p, false);
    case 't':
        return word(s, p, "true", ST_JSON_TRUE);
    case 'f':
        return word(s, p, "false", ST_JSON_FALSE);
    case 'n':
        return word(s, p, "null", ST_JSON_NULL);
    case '-':
    case '0' ... '9':
        token = number(s, p);
        if (token != ST_JSON_ERROR)
            value_done(s);
        return token;
    default:
        return fail(s, p, "expected a value");
    }
}

/* A key and the colon after it. */
static st_json_token key(st_json_scan *s, size_t p)
{
    if (s->text[p] != '"')
        return fail(s, p, "expected a key in quotes");
    if (!string(s, p))
        return ST_JSON_ERROR;
    p = skip_space(s, s->pos);
    if (p == s->len || s->text[p] != ':')
        return fail(s, p, "expected ':' after a key");
    s->pos = p + 1;
    s->expect = EXPECT_VALUE;
    return ST_JSON_KEY;
}

st_json_token st_json_next(st_json_scan *s)
{
    if (s->expect == EXPECT_FAILED)
        return ST_JSON_ERROR;
    size_t p = skip_space(s, s->pos);
    if (s->expect == EXPECT_NOTHING) {
        if (p < s->len)
            return fail(s, p, "something follows the value");
        s->pos = p;
        return ST_JSON_END;
    }
    if (p == s->len)
        return fail(s, p, s->depth ? "the text ends within a value" : "there is no value");
    uint8_t expect = s->expect;
    char c = s->text[p];
    if (expect == EXPECT_COMMA_OR_END) {
        bool object = in_object(s);
        if (c == (object ? '}' : ']'))
            return close_container(s, p);
        if (c != ',')
            return fail(s, p, object ? "expected ',' or '}'" : "expected ',' or ']'");
        p = skip_space(s, p + 1);
        if (p == s->len)
            return fail(s, p, "the text ends within a value");
        expect = object ? EXPECT_KEY : EXPECT_VALUE;
    } else if ((expect == EXPECT_KEY_OR_END && c == '}') ||
               (expect == EXPECT_VALUE_OR_END && c == ']')) {
        return close_container(s, p);
    }
    return expect == EXPECT_KEY || expect == EXPECT_KEY_OR_END ? key(s, p) : value(s, p);
}

st_status st_json_skip(st_json_scan *s, st_json_token first, st_span *value)
{
    *value = s->span;
    if (first != ST_JSON_OBJECT && first != ST_JSON_ARRAY)
        return first == ST_JSON_ERROR ? ST_EFORMAT : ST_OK;
    int outside = s->depth - 1;
    while (s->depth > outside)
        if (st_json_next(s) == ST_JSON_ERROR)
            return ST_EFORMAT;
    value->end = s->span.end;
    return ST_OK;
}

/* The character that the escape at t stands for; *used: the escape's bytes. The scanner has checked
 * it. */
static uint32_t unescape(const char *t, size_t n, size_t *used)
{
    static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
    const char *short_form = strchr(from, t[1]);
    *used = 2;
    if (t[1] != 'u')
        return (uint32_t)(unsigned char)(short_form ? to[short_form - from] : t[1]);
    uint32_t unit = (uint32_t)hex4(t + 2, n - 2);
    *used = 6;
    if (unit < 0xD800 || unit > 0xDFFF)
        return unit;
    *used = 12;
    return 0x10000 + ((unit - 0xD800) << 10) + ((uint32_t)hex4(t + 8, n - 8) - 0xDC00);
}

bool st_json_text_is(const st_json_scan *s, const char *text)
{
    const char *p = s->text + s->span.begin + 1, *end = s->text + s->span.end - 1;
    size_t n = strlen(text);
    if (!s->escaped)
        return (size_t)(end - p) == n && memcmp(p, text, n) == 0;
    while (p < end) {
        char utf8[4] = {*p};
        size_t used = 1, len = 1;
        if (*p == '\\')
            len = st_utf8_encode(unescape(p, (size_t)(end - p), &used), utf8);
        if (n < len || memcmp(text, utf8, len) != 0)
            return false;
        text += len;
        n -= len;
        p += used;
    }
    return n == 0;
}

st_status st_json_text(const st_json_scan *s, st_buf *out)
{
    const char *p = s->text + s->span.begin + 1, *end = s->text + s->span.end - 1;
    /* Text is never longer than its escaped form. */
    st_status st = st_buf_reserve(out, (size_t)(end - p));
    if (st)
        return st;
    char *to = out->data + out->len;
    while (p < end) {
        const char *stop = s->escaped ? memchr(p, '\\', (size_t)(end - p)) : NULL;
        size_t plain = (size_t)((stop ? stop : end) - p), used;
        memcpy(to, p, plain);
        to += plain;
        p += plain;
        if (stop) {
            to += st_utf8_encode(unescape(p, (size_t)(end - p), &used), to);
            p += used;
        }
    }
    *to = '\0';
    out->len = (size_t)(to - out->data);
    return ST_OK;
}

bool st_json_int64(const st_json_scan *s, int64_t *out)
{
    const char *p = s->text + s->span.begin, *end = s->text + s->span.end;
    bool negative = p < end && *p == '-';
    int64_t v = 0;
    if (!s->integer || p == end || (!negative && !is_digit(*p)))
        return false;
    /* Counted downwards: the most negative number has no positive twin. */
    for (p += negative; p < end; p++)
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_sub_overflow(v, *p - '0', &v))
            return false;
    if (!negative && v == INT64_MIN)
        return false;
    *out = negative ? v : -v;
    return true;
}
