/* HTTP/1.1 request parser: see http_parse.h. */
#include "server/http_parse.h"

#include <string.h>
#include <strings.h>

enum { KEEP_BYTES = 64 * 1024, MAX_CHUNK_LINE = 256 };

void st_http_parser_reset(st_http_parser *p)
{
    if (p->body.cap > KEEP_BYTES)
        st_buf_free(&p->body);
    st_buf_clear(&p->head);
    st_buf_clear(&p->body);
    st_buf_clear(&p->line);
    p->state = ST_HTTP_HEAD;
    p->error_status = 0;
    p->error = NULL;
    p->scanned = p->n_headers = p->method_name = p->target = p->trailer_bytes = 0;
    p->method = ST_HTTP_OTHER_METHOD;
    p->minor = 1;
    p->keep_alive = p->expect_continue = false;
    p->remaining = 0;
}

void st_http_parser_free(st_http_parser *p)
{
    st_buf_free(&p->head);
    st_buf_free(&p->body);
    st_buf_free(&p->line);
}

static bool bad(st_http_parser *p, int status, const char *why)
{
    p->state = ST_HTTP_BAD;
    p->error_status = status;
    p->error = why;
    p->keep_alive = false;
    return false;
}

static bool is_token_char(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

const char *st_http_parser_path(const st_http_parser *p)
{
    return p->head.data + p->target;
}

const char *st_http_parser_method_name(const st_http_parser *p)
{
    return p->head.data + p->method_name;
}

const char *st_http_parser_header(const st_http_parser *p, const char *name)
{
    for (size_t i = 0; i < p->n_headers; i++)
        if (strcasecmp(p->head.data + p->headers[i].name, name) == 0)
            return p->head.data + p->headers[i].value;
    return NULL;
}

static void set_method(st_http_parser *p)
{
    static const struct {
        const char *name;
        st_http_method method;
    } known[] = {{"GET", ST_HTTP_GET},
                 {"HEAD", ST_HTTP_HEAD_METHOD},
                 {"POST", ST_HTTP_POST},
                 {"OPTIONS", ST_HTTP_OPTIONS}};
    p->method = ST_HTTP_OTHER_METHOD;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(st_http_parser_method_name(p), known[i].name) == 0)
            p->method = known[i].method;
}

/* Cuts scheme and authority of an absolute target, then the query. */
static void normalise_target(st_http_parser *p)
{
    char *t = p->head.data + p->target;
    if (strncasecmp(t, "http://", 7) == 0) {
        size_t authority = 7 + strcspn(t + 7, "/?");
        p->target += authority;
        t += authority;
    }
    t[strcspn(t, "?#")] = '\0';
    if (!*t)
        p->target = p->head.len - 1; /* points at the '/' kept at the head's end */
}

/* METHOD SP target SP HTTP/1.x, NUL-terminated at line[n]. */
static bool request_line(st_http_parser *p, size_t at, size_t n)
{
    char *line = p->head.data + at;
    size_t m = 0;
    while (m < n && is_token_char((unsigned char)line[m]))
        m++;
    if (m == 0 || m == n || line[m] != ' ')
        return bad(p, 400, "the request line has no method");
    size_t t = m + 1, end = t;
    while (end < n && (unsigned char)line[end] > 0x20 && (unsigned char)line[end] < 0x7F)
        end++;
    if (end == t || end == n || line[end] != ' ')
        return bad(p, 400, "the request line has no valid target");
    const char *version = line + end + 1;
    if (n - end - 1 != 8 || strncmp(version, "HTTP/", 5) != 0 || version[6] != '.')
        return bad(p, 400, "the request line does not end in HTTP/1.1");
    if (version[5] != '1' || (version[7] != '0' && version[7] != '1'))
        return bad(p, 505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
    p->minor = version[7] - '0';
    line[m] = line[end] = '\0';
    p->method_name = at;
    p->target = at + t;
    set_method(p);
    if (line[t] != '/' && strncasecmp(line + t, "http://", 7) != 0 &&
        !(p->method == ST_HTTP_OPTIONS && strcmp(line + t, "*") == 0))
        return bad(p, 400, "the request target is not a path");
    normalise_target(p);
    return true;
}

/* name ":" OWS value OWS, NUL-terminated at line[n]. */
static bool header_line(st_http_parser *p, size_t at, size_t n)
{
    char *line = p->head.data + at;
    size_t name = 0;
    while (name < n && is_token_char((unsigned char)line[name]))
        name++;
    if (name == 0 || name == n || line[name] != ':')
        return bad(p, 400, "a header line is malformed");
    size_t v = name + 1, end = n;
    while (v < end && (line[v] == ' ' || line[v] == '\t'))
        v++;
    while (end > v && (line[end - 1] == ' ' || line[end - 1] == '\t'))
        end--;
    for (size_t i = v; i < end; i++)
        if (((unsigned char)line[i] < 0x20 && line[i] != '\t') || line[i] == 0x7F)
            return bad(p, 400, "a header value holds a control character");
    if (p->n_headers == ST_HTTP_MAX_HEADERS)
        return bad(p, 431, "the request has more than 100 headers");
    line[name] = line[end] = '\0';
    p->headers[p->n_headers++] = (st_http_header){at, at + v};
    return true;
}

static size_t count_headers(const st_http_parser *p, const char *name)
{
    size_t n = 0;
    for (size_t i = 0; i < p->n_headers; i++)
        n += strcasecmp(p->head.data + p->headers[i].name, name) == 0;
    return n;
}

/* True when one of the comma-separated elements of any header of that name is token. */
static bool header_has(const st_http_parser *p, const char *name, const char *token)
{
    size_t len = strlen(token);
    for (size_t i = 0; i < p->n_headers; i++) {
        if (strcasecmp(p->head.data + p->headers[i].name, name) != 0)
            continue;
        const char *s = p->head.data + p->headers[i].value;
        while (*s) {
            s += strspn(s, " \t,");
            size_t n = strcspn(s, " \t,");
            if (n == len && strncasecmp(s, token, len) == 0)
                return true;
            s += n;
        }
    }
    return false;
}

static bool parse_length(st_http_parser *p, const char *text)
{
    uint64_t n = 0;
    if (!*text)
        return bad(p, 400, "Content-Length is empty");
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return bad(p, 400, "Content-Length is not a number");
        if (n > UINT64_MAX / 10 - 1)
            return bad(p, 413, "the body is larger than this server takes");
        n = n * 10 + (uint64_t)(*text - '0');
    }
    if (n > p->max_body)
        return bad(p, 413, "the body is larger than this server takes");
    p->remaining = n;
    p->state = n ? ST_HTTP_BODY_SIZED : ST_HTTP_DONE;
    return true;
}

/* Decides how the body is framed and whether the connection goes on. */
static bool head_meaning(st_http_parser *p)
{
    const char *length = st_http_parser_header(p, "Content-Length");
    const char *coding = st_http_parser_header(p, "Transfer-Encoding");
    const char *expect = st_http_parser_header(p, "Expect");
    p->keep_alive = p->minor ? !header_has(p, "Connection", "close")
                             : header_has(p, "Connection", "keep-alive");
    size_t hosts = count_headers(p, "Host");
    if (hosts > 1 || (p->minor && hosts == 0))
        return bad(p, 400, "expected exactly one Host header");
    if (coding && (length || !p->minor))
        return bad(p, 400, "Transfer-Encoding with Content-Length or HTTP/1.0");
    if (count_headers(p, "Content-Length") > 1 || count_headers(p, "Transfer-Encoding") > 1)
        return bad(p, 400, "the body's length is given twice");
    if (expect && p->minor) {
        if (strcasecmp(expect, "100-continue") != 0)
            return bad(p, 417, "Expect: only 100-continue is known");
        p->expect_continue = true;
    }
    if (coding) {
        if (strcasecmp(coding, "chunked") != 0)
            return bad(p, 501, "Transfer-Encoding: only chunked is known");
        p->state = ST_HTTP_CHUNK_SIZE;
        return true;
    }
    if (length)
        return parse_length(p, length);
    p->state = ST_HTTP_DONE;
    return true;
}

/* The whole head is in p->head, up to and with the empty line. */
static bool parse_head(st_http_parser *p)
{
    size_t at = 0, end = p->head.len - 2; /* the empty line's CRLF */
    bool first = true;
    /* A path for targets that have none ("http://host"), within the buffer. */
    p->head.data[p->head.len - 1] = '/';
    while (at < end) {
        const char *cr = memchr(p->head.data + at, '\r', p->head.len - at);
        size_t n = (size_t)(cr - (p->head.data + at));
        if (memchr(p->head.data + at, '\n', n) || memchr(p->head.data + at, '\0', n) ||
            p->head.data[at + n + 1] != '\n')
            return bad(p, 400, "a line of the head does not end in CR LF");
        p->head.data[at + n] = '\0';
        if (!(first ? request_line(p, at, n) : header_line(p, at, n)))
            return false;
        first = false;
        at += n + 2;
    }
    return head_meaning(p);
}

/* Collects head bytes until the empty line. */
static size_t feed_head(st_http_parser *p, const char *data, size_t n)
{
    size_t used = 0;
    /* Empty lines before a request are skipped (RFC 9112, 2.2). */
    while (p->head.len == 0 && used < n && (data[used] == '\r' || data[used] == '\n'))
        used++;
    size_t before = p->head.len, room = p->max_head - before;
    size_t take = n - used < room ? n - used : room;
    if (take == 0 && n > used) {
        bad(p, 431, "the request's head is larger than this server takes");
        return used;
    }
    if (st_buf_append(&p->head, data + used, take)) {
        bad(p, 503, "memory is short");
        return used;
    }
    const char *end = memmem(p->head.data + p->scanned, p->head.len - p->scanned, "\r\n\r\n", 4);
    if (!end) {
        p->scanned = p->head.len > 3 ? p->head.len - 3 : 0;
        return used + take;
    }
    size_t head_len = (size_t)(end - p->head.data) + 4;
    p->head.len = head_len;
    p->head.data[head_len] = '\0';
    parse_head(p);
    return used + (head_len - before);
}

static size_t feed_data(st_http_parser *p, const char *data, size_t n, st_http_state next)
{
    size_t take = n < p->remaining ? n : (size_t)p->remaining;
    if (st_buf_append(&p->body, data, take)) {
        bad(p, 503, "memory is short");
        return 0;
    }
    p->remaining -= take;
    if (p->remaining == 0)
        p->state = next;
    return take;
}

/* Collects a line with its LF into p->line; true when it is complete. */
static bool take_line(st_http_parser *p, const char *data, size_t n, size_t *used)
{
    const char *lf = memchr(data, '\n', n);
    size_t take = lf ? (size_t)(lf - data) + 1 : n;
    *used = take;
    /* Limits come before the line's form, so that the answer does not depend on the split. */
    if (p->state == ST_HTTP_TRAILER) {
        p->trailer_bytes += take;
        if (p->trailer_bytes > p->max_head)
            return bad(p, 431, "the request's trailers are larger than this server takes");
    } else if (p->line.len + take > MAX_CHUNK_LINE) {
        return bad(p, 400, "a chunk's size line is too long");
    }
    if (st_buf_append(&p->line, data, take))
        return bad(p, 503, "memory is short");
    if (!lf)
        return false;
    if (p->line.len < 2 || p->line.data[p->line.len - 2] != '\r')
        return bad(p, 400, "a chunk's line does not end in CR LF");
    return true;
}

static void parse_chunk_size(st_http_parser *p)
{
    uint64_t n = 0;
    size_t i = 0;
    for (; i < p->line.len; i++) {
        char c = p->line.data[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            break;
        if (i == 15) {
            bad(p, 413, "a chunk is larger than this server takes");
            return;
        }
        n = n * 16 + (uint64_t)digit;
    }
    if (i == 0 || !memchr("\r; \t", p->line.data[i], 4)) {
        bad(p, 400, "a chunk's size is not a hexadecimal number");
        return;
    }
    st_buf_clear(&p->line);
    if (n > p->max_body - p->body.len) {
        bad(p, 413, "the body is larger than this server takes");
        return;
    }
    p->remaining = n;
    p->state = n ? ST_HTTP_CHUNK_DATA : ST_HTTP_TRAILER;
}

static size_t feed_chunk_size(st_http_parser *p, const char *data, size_t n)
{
    size_t used;
    if (take_line(p, data, n, &used))
        parse_chunk_size(p);
    return used;
}

static size_t feed_chunk_end(st_http_parser *p, const char *data, size_t n)
{
    size_t used;
    if (take_line(p, data, n, &used)) {
        if (p->line.len != 2)
            bad(p, 400, "a chunk is longer than its size");
        else
            p->state = ST_HTTP_CHUNK_SIZE;
        st_buf_clear(&p->line);
    }
    return used;
}

/* Trailers are read and ignored. */
static size_t feed_trailer(st_http_parser *p, const char *data, size_t n)
{
    size_t used;
    if (take_line(p, data, n, &used)) {
        if (p->line.len == 2)
            p->state = ST_HTTP_DONE;
        st_buf_clear(&p->line);
    }
    return used;
}

size_t st_http_feed(st_http_parser *p, const char *data, size_t n)
{
    size_t at = 0;
    while (at < n) {
        switch (p->state) {
        case ST_HTTP_HEAD:
            at += feed_head(p, data + at, n - at);
            break;
        case ST_HTTP_BODY_SIZED:
            at += feed_data(p, data + at, n - at, ST_HTTP_DONE);
            break;
        case ST_HTTP_CHUNK_SIZE:
            at += feed_chunk_size(p, data + at, n - at);
            break;
        case ST_HTTP_CHUNK_DATA:
            at += feed_data(p, data + at, n - at, ST_HTTP_CHUNK_END);
            break;
        case ST_HTTP_CHUNK_END:
            at += feed_chunk_end(p, data + at, n - at);
            break;
        case ST_HTTP_TRAILER:
            at += feed_trailer(p, data + at, n - at);
            break;
        case ST_HTTP_DONE:
        case ST_HTTP_BAD:
            return at;
        }
    }
    return at;
}
