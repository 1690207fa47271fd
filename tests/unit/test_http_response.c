/* src/base/http_response: framing, refusals, and that the cuts of the bytes never matter. */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/http_response.h"
#include "starling/buf.h"

/* Feeds text in pieces; the body goes to *body. Returns the bytes taken, or -1. */
static long feed(st_http_response *r, const char *text, size_t len, size_t piece, st_buf *body)
{
    st_http_response_init(r);
    assert_int_equal(st_buf_puts(body, ""), ST_OK);
    size_t at = 0;
    while (at < len && !r->complete) {
        size_t n = len - at < piece ? len - at : piece, used = 0;
        char *copy = malloc(n);
        memcpy(copy, text + at, n);
        while (used < n && !r->complete) {
            const char *part;
            size_t part_len;
            long got = st_http_response_feed(r, copy + used, n - used, &part, &part_len);
            if (got < 0) {
                free(copy);
                return -1;
            }
            assert_true(got > 0);
            assert_int_equal(st_buf_append(body, part, part_len), ST_OK);
            used += (size_t)got;
        }
        free(copy);
        at += used;
    }
    return (long)at;
}

#define OK_HEAD "HTTP/1.1 200 OK\r\n"

static const struct {
    const char *text;
    int status;
    st_http_body_kind kind;
    const char *body;
    bool keep_alive, complete_at_eof;
    size_t rest; /* bytes of the next answer */
} answers[] = {
    {OK_HEAD "Content-Length: 5\r\n\r\nhelloHTTP", 200, ST_HTTP_BODY_LENGTH, "hello", true, true,
     4},
    {OK_HEAD "content-length:0\r\n\r\nH", 200, ST_HTTP_BODY_NONE, "", true, true, 1},
    {"HTTP/1.1 204\r\n\r\nH", 204, ST_HTTP_BODY_NONE, "", true, true, 1},
    {"HTTP/1.1 304 Not\r\nContent-Length: 9\r\n\r\n", 304, ST_HTTP_BODY_NONE, "", true, true, 0},
    {"HTTP/1.1 100 Continue\r\nX: y\r\n\r\nHTTP/1.1 102 \r\n\r\nHTTP/1.1 500 E\r\n"
     "Content-Length: 1\r\nConnection: x, Close\r\n\r\nz",
     500, ST_HTTP_BODY_LENGTH, "z", false, true, 0},
    {OK_HEAD "Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0A ;q=1\r\n0123456789\r\n0\r\n"
             "T: 1\r\nContent-Length: 7\r\n\r\nrest",
     200, ST_HTTP_BODY_CHUNKED, "abc0123456789", true, true, 4},
    {OK_HEAD "\r\nto the end", 200, ST_HTTP_BODY_CLOSE, "to the end", false, true, 0},
    {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", 200, ST_HTTP_BODY_LENGTH, "ab", false, true,
     0},
    {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nab", 200,
     ST_HTTP_BODY_LENGTH, "ab", true, true, 0},
    {OK_HEAD "Content-Length: 5\r\n\r\nhell", 200, ST_HTTP_BODY_LENGTH, "hell", false, false, 0},
    {OK_HEAD "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", 200, ST_HTTP_BODY_CHUNKED, "abc",
     false, false, 0},
    {OK_HEAD "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", 200, ST_HTTP_BODY_CHUNKED,
     "abc", false, false, 0},
    {OK_HEAD "Content-Length: 5\r\n", 200, ST_HTTP_BODY_NONE, "", false, false, 0},
};

static void every_split(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        size_t len = strlen(answers[i].text);
        for (size_t piece = 1; piece <= len; piece++) {
            st_http_response r;
            st_buf body = ST_BUF_INIT;
            long used = feed(&r, answers[i].text, len, piece, &body);
            bool whole = st_http_response_eof(&r);
            if (used != (long)(len - answers[i].rest) || whole != answers[i].complete_at_eof ||
                r.status != answers[i].status || r.body_kind != answers[i].kind ||
                r.keep_alive != answers[i].keep_alive || strcmp(body.data, answers[i].body) != 0)
                fail_msg("case %zu, pieces of %zu: used %ld, status %d, kind %d, body '%s', %s", i,
                         piece, used, r.status, (int)r.body_kind, body.data,
                         r.why ? r.why : "no error");
            st_buf_free(&body);
        }
    }
}

static const char *const refused[] = {
    "HTTP/2 200 OK\r\n",
    "HTTP/1.2 200 OK\r\n",
    "HTTP/1.1 20 OK\r\n",
    "HTTP/1.1 2000\r\n",
    "HTTP/1.1 099 x\r\n",
    "HTTP/1.1 101 Switching Protocols\r\n",
    "garbage\r\n",
    "\r\n",
    OK_HEAD "a b: c\r\n",
    OK_HEAD ": c\r\n",
    OK_HEAD "a\r\n",
    OK_HEAD " folded: c\r\n",
    OK_HEAD "a: b\x01\r\n",
    OK_HEAD "a: b\nc: d\r\n",
    OK_HEAD "a: b\rc\r\n",
    OK_HEAD "Content-Length: 1 1\r\n",
    OK_HEAD "Content-Length: +1\r\n",
    OK_HEAD "Content-Length: -1\r\n",
    OK_HEAD "Content-Length:\r\n",
    OK_HEAD "Content-Length: 18446744073709551616\r\n",
    OK_HEAD "Content-Length: 1\r\nContent-Length: 1\r\n",
    OK_HEAD "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    OK_HEAD "Transfer-Encoding: gzip, chunked\r\n",
    OK_HEAD "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n",
    OK_HEAD "Content-Encoding: gzip\r\n",
    OK_HEAD "Transfer-Encoding: chunked\r\n\r\n-1\r\n",
    OK_HEAD "Transfer-Encoding: chunked\r\n\r\n1x\r\n",
    OK_HEAD "Transfer-Encoding: chunked\r\n\r\n\r\n",
    OK_HEAD "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    OK_HEAD "Transfer-Encoding: chunked\r\n\r\n1\nx",
    OK_HEAD "Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n",
    OK_HEAD "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nbad trailer\r\n",
};

static void refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        size_t len = strlen(refused[i]);
        for (size_t piece = 1; piece <= len; piece++) {
            st_http_response r;
            st_buf body = ST_BUF_INIT;
            if (feed(&r, refused[i], len, piece, &body) != -1 || !r.why || r.keep_alive)
                fail_msg("case %zu, pieces of %zu is taken", i, piece);
            assert_false(st_http_response_eof(&r));
            st_buf_free(&body);
        }
    }
}

static void headers(void **state)
{
    (void)state;
    st_http_response r;
    st_buf body = ST_BUF_INIT;
    const char *text = OK_HEAD "Content-Type: Text/Event-Stream; charset=utf-8\r\n"
                               "Retry-After: 7\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_true(feed(&r, text, strlen(text), 1000, &body) > 0);
    assert_true(r.head_done && r.event_stream && !r.json && r.retry_after == 7);
    text = OK_HEAD "Content-Type:application/json\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n"
                   "Content-Length: 3\r\n\r\n";
    assert_true(feed(&r, text, strlen(text), 1000, &body) > 0);
    assert_true(r.head_done && r.json && !r.event_stream && r.retry_after == -1 && r.length == 3);
    st_buf_free(&body);
}

/* Long lines pass; a head without end does not. */
static void long_heads(void **state)
{
    (void)state;
    for (int lines = 1; lines <= 8; lines++) {
        st_buf text = ST_BUF_INIT, body = ST_BUF_INIT;
        st_http_response r;
        assert_int_equal(st_buf_puts(&text, OK_HEAD), ST_OK);
        for (int i = 0; i < lines; i++)
            assert_int_equal(st_buf_printf(&text, "X-Long: %03000d\r\n", i), ST_OK);
        assert_int_equal(st_buf_puts(&text, "Content-Length: 1\r\n\r\nx"), ST_OK);
        assert_int_equal(feed(&r, text.data, text.len, 4096, &body) > 0, lines <= 5);
        assert_int_equal(r.complete, lines <= 5);
        st_buf_free(&text);
        st_buf_free(&body);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_split),
        cmocka_unit_test(refusals),
        cmocka_unit_test(headers),
        cmocka_unit_test(long_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
