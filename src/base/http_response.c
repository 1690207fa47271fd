/* HTTP/1.1 response parser: see http_response.h. */
#include "base/http_response.h"

#include <limits.h>
#include <string.h>
#include <strings.h>

enum { MAX_SIZE_LINE = 256 }; /* a chunk's size with its extensions */

enum state {
    IN_STATUS_LINE,
    IN_HEADERS,
    IN_LENGTH,
    IN_CHUNK_SIZE,
    IN_CHUNK,
    IN_CHUNK_END, /* the CRLF after a chunk's bytes */
    IN_TRAILERS,
    IN_CLOSE,
    IS_DONE,
    IS_BAD
};

void st_http_response_init(st_http_response *r)
{
    memset(r, 0, sizeof *r);
    r->retry_after = -1;
    r->keep_alive = true;
}

static bool bad(st_http_response *r, const char *why)
{
    r->state = IS_BAD;
    r->why = why;
    r->keep_alive = false;
    return false;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* "HTTP/1.1 200 OK" */
static bool status_line(st_http_response *r)
{
    const char *l = r->line;
    if (r->line_len < 12 || memcmp(l, "HTTP/1.", 7) != 0 || (l[7] != '0' && l[7] != '1') ||
        l[8] != ' ' || !is_digit(l[9]) || !is_digit(l[10]) || !is_digit(l[11]) ||
        (r->line_len > 12 && l[12] != ' '))
        return bad(r, "the status line is not one of HTTP/1.1");
    r->http10 = l[7] == '0';
    r->keep_alive = !r->http10;
    r->status = (l[9] - '0') * 100 + (l[10] - '0') * 10 + (l[11] - '0');
    if (r->status < 100 || r->status == 101)
        return bad(r, "the status is not that of an answer");
    r->state = IN_HEADERS;
    return true;
}

/* Case-insensitive; text need not end in NUL. */
static bool same(const char *text, size_t n, const char *word)
{
    return n == strlen(word) && strncasecmp(text, word, n) == 0;
}

static bool parse_digits(const char *v, size_t n, uint64_t *out)
{
    *out = 0;
    for (size_t i = 0; i < n; i++)
        if (!is_digit(v[i]) || __builtin_mul_overflow(*out, 10, out) ||
            __builtin_add_overflow(*out, (uint64_t)(v[i] - '0'), out))
            return false;
    return n > 0;
}

static bool content_length(st_http_response *r, const char *v, size_t n)
{
    if (r->seen_length)
        return bad(r, "there are two Content-Length headers");
    r->seen_length = true;
    return parse_digits(v, n, &r->length) || bad(r, "Content-Length is not a number of bytes");
}

static bool transfer_encoding(st_http_response *r, const char *v, size_t n)
{
    if (r->seen_chunked || !same(v, n, "chunked") || r->http10)
        return bad(r, "Transfer-Encoding is not chunked");
    r->seen_chunked = true;
    return true;
}

/* A comma-separated list. */
static bool connection(st_http_response *r, const char *v, size_t n)
{
    for (size_t at = 0; at < n;) {
        size_t end = at;
        while (end < n && v[end] != ',')
            end++;
        size_t b = at, e = end;
        while (b < e && (v[b] == ' ' || v[b] == '\t'))
            b++;
        while (e > b && (v[e - 1] == ' ' || v[e - 1] == '\t'))
            e--;
        if (same(v + b, e - b, "close"))
            r->seen_connection_close = true;
        else if (same(v + b, e - b, "keep-alive"))
            r->keep_alive = true;
        at = end + 1;
    }
    return true;
}

static bool content_type(st_http_response *r, const char *v, size_t n)
{
    size_t type = 0;
    while (type < n && v[type] != ';' && v[type] != ' ' && v[type] != '\t')
        type++;
    r->event_stream = same(v, type, "text/event-stream");
    r->json = same(v, type, "application/json");
    return true;
}

static bool content_encoding(st_http_response *r, const char *v, size_t n)
{
    return n == 0 || same(v, n, "identity") ||
           bad(r, "Content-Encoding: the body is compressed, which was not asked for");
}

/* A date, the header's other form, is as good as none. */
static bool retry_after(st_http_response *r, const char *v, size_t n)
{
    uint64_t seconds;
    if (parse_digits(v, n, &seconds))
        r->retry_after = seconds < INT_MAX ? (int)seconds : INT_MAX;
    return true;
}

static const struct {
    const char *name;
    bool (*take)(st_http_response *r, const char *value, size_t n);
} known_headers[] = {
    {"Content-Length", content_length},
    {"Transfer-Encoding", transfer_encoding},
    {"Connection", connection},
    {"Content-Type", content_type},
    {"Content-Encoding", content_encoding},
    {"Retry-After", retry_after},
};

static bool is_name_char(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

/* name ":" value, space around the value not counting. */
static bool header_line(st_http_response *r)
{
    const char *l = r->line;
    size_t name = 0, end = r->line_len;
    while (name < end && is_name_char((unsigned char)l[name]))
        name++;
    if (name == 0 || name == end || l[name] != ':')
        return bad(r, "a header line is malformed");
    size_t v = name + 1;
    while (v < end && (l[v] == ' ' || l[v] == '\t'))
        v++;
    while (end > v && (l[end - 1] == ' ' || l[end - 1] == '\t'))
        end--;
    if (r->head_done) /* a trailer says nothing that is wanted */
        return true;
    for (size_t i = 0; i < sizeof known_headers / sizeof *known_headers; i++) {
        if (!same(l, name, known_headers[i].name))
            continue;
        if (r->line_len == sizeof r->line)
            return bad(r, "a header line that matters is too long");
        return known_headers[i].take(r, l + v, end - v);
    }
    return true;
}

/* The empty line: what follows? */
static bool head_done(st_http_response *r)
{
    if (r->seen_length && r->seen_chunked)
        return bad(r, "Content-Length and Transfer-Encoding are both there");
    if (r->status < 200) {
        size_t head_bytes = r->head_bytes; /* still bounded together with the heads to come */
        st_http_response_init(r);
        r->head_bytes = head_bytes;
        return true;
    }
    r->keep_alive = r->keep_alive && !r->seen_connection_close;
    r->head_done = true;
    if (r->status == 204 || r->status == 304 || (r->seen_length && r->length == 0)) {
        r->body_kind = ST_HTTP_BODY_NONE;
        r->state = IS_DONE;
    } else if (r->seen_chunked) {
        r->body_kind = ST_HTTP_BODY_CHUNKED;
        r->state = IN_CHUNK_SIZE;
    } else if (r->seen_length) {
        r->body_kind = ST_HTTP_BODY_LENGTH;
        r->left = r->length;
        r->state = IN_LENGTH;
    } else {
        r->body_kind = ST_HTTP_BODY_CLOSE;
        r->keep_alive = false;
        r->state = IN_CLOSE;
    }
    r->complete = r->state == IS_DONE;
    return true;
}

static int hex_digit(char c)
{
    if (is_digit(c))
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "1a2b;extension" */
static bool chunk_size(st_http_response *r)
{
    const char *l = r->line;
    size_t i = 0;
    uint64_t size = 0;
    for (; i < r->line_len && hex_digit(l[i]) >= 0; i++) {
        if (size >> 60)
            return bad(r, "a chunk's size is too large");
        size = size << 4 | (uint64_t)hex_digit(l[i]);
    }
    size_t digits = i;
    while (i < r->line_len && (l[i] == ' ' || l[i] == '\t'))
        i++;
    if (digits == 0 || (i < r->line_len && l[i] != ';'))
        return bad(r, "a chunk's size is not a hexadecimal number");
    r->left = size;
    r->state = size ? IN_CHUNK : IN_TRAILERS;
    return true;
}

static bool line_complete(st_http_response *r)
{
    switch (r->state) {
    case IN_STATUS_LINE:
        return status_line(r);
    case IN_HEADERS:
        return r->line_len ? header_line(r) : head_done(r);
    case IN_CHUNK_SIZE:
        return chunk_size(r);
    case IN_CHUNK_END:
        r->state = IN_CHUNK_SIZE;
        return true;
    default: /* IN_TRAILERS */
        if (r->line_len)
            return header_line(r);
        r->state = IS_DONE;
        r->complete = true;
        return true;
    }
}

/* One byte of a line. A CR is kept as the line's last byte until its LF is there. */
static bool line_byte(st_http_response *r, char c)
{
    bool head = r->state <= IN_HEADERS || r->state == IN_TRAILERS;
    if (head && ++r->head_bytes > ST_HTTP_RESPONSE_HEAD_MAX)
        return bad(r, "the head is longer than 16 KiB");
    if (r->cr) {
        if (c != '\n')
            return bad(r, "a CR without LF in a line");
        r->cr = false;
        bool ok = line_complete(r);
        r->line_len = 0;
        return ok;
    }
    if (c == '\r') {
        r->cr = true;
        return true;
    }
    if (((unsigned char)c < 0x20 && c != '\t') || c == 0x7F)
        return bad(r, c == '\n' ? "a line ends without CR" : "a control character in a line");
    if (r->state == IN_CHUNK_END)
        return bad(r, "a chunk is longer than its size");
    if (r->line_len == (head ? sizeof r->line : MAX_SIZE_LINE))
        return head || bad(r, "a chunk's size line is too long");
    r->line[r->line_len++] = c;
    return true;
}

/* A piece of the body, at most the n bytes that are there. */
static size_t body_bytes(st_http_response *r, size_t n)
{
    if (r->state == IN_CLOSE)
        return n;
    size_t take = n < r->left ? n : (size_t)r->left;
    r->left -= take;
    if (r->left == 0) {
        r->complete = r->state == IN_LENGTH;
        r->state = r->complete ? IS_DONE : IN_CHUNK_END;
    }
    return take;
}

long st_http_response_feed(st_http_response *r, const char *data, size_t len, const char **body,
                           size_t *body_len)
{
    *body = data;
    *body_len = 0;
    if (len > LONG_MAX)
        len = LONG_MAX;
    for (size_t at = 0;; at++) {
        if (r->state == IS_BAD)
            return -1;
        if (at == len || r->state == IS_DONE)
            return (long)at;
        if (r->state == IN_LENGTH || r->state == IN_CHUNK || r->state == IN_CLOSE) {
            *body = data + at;
            *body_len = body_bytes(r, len - at);
            return (long)(at + *body_len);
        }
        (void)line_byte(r, data[at]);
    }
}

bool st_http_response_eof(st_http_response *r)
{
    if (r->state == IN_CLOSE) {
        r->state = IS_DONE;
        r->complete = true;
    }
    if (r->state != IS_DONE && r->state != IS_BAD)
        (void)bad(r, r->head_done ? "the connection ended within the body"
                                  : "the connection ended before the head was complete");
    return r->complete;
}
