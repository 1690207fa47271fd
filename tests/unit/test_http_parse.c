/* src/server/http_parse: requests, framing, refusals; independence of how bytes are split. */
#include "cmocka_all.h"

#include <stdlib.h>
#include <string.h>

#include "server/http_parse.h"

static st_http_parser start(void)
{
    st_http_parser p = {.max_head = 512, .max_body = 64};
    st_http_parser_reset(&p);
    return p;
}

/* Feeds text in pieces of n bytes; returns the bytes taken. */
static size_t feed(st_http_parser *p, const char *text, size_t piece)
{
    size_t len = strlen(text), at = 0;
    while (at < len && p->state != ST_HTTP_DONE && p->state != ST_HTTP_BAD) {
        size_t n = len - at < piece ? len - at : piece;
        char *copy = malloc(n); /* exact size: reads past the end are seen by ASan */
        memcpy(copy, text + at, n);
        at += st_http_feed(p, copy, n);
        free(copy);
    }
    return at;
}

static void requests(void **state)
{
    (void)state;
    static const struct {
        const char *text, *path, *body;
        st_http_method method;
        bool keep_alive;
        size_t rest; /* bytes that belong to the next request */
    } cases[] = {
        {"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET", "/", "", ST_HTTP_GET, true, 3},
        {"\r\n\r\nGET /a?b#c HTTP/1.1\r\nHost: x\r\nConnection: x, Close\r\n\r\n", "/a", "",
         ST_HTTP_GET, false, 0},
        {"HEAD http://h:1/p HTTP/1.1\r\nHost:\r\n\r\n", "/p", "", ST_HTTP_HEAD_METHOD, true, 0},
        {"GET http://h HTTP/1.1\r\nHost: h\r\n\r\nxyz", "/", "", ST_HTTP_GET, true, 3},
        {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "*", "", ST_HTTP_OPTIONS, true, 0},
        {"GET /o HTTP/1.0\r\n\r\n", "/o", "", ST_HTTP_GET, false, 0},
        {"BREW /o HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "/o", "", ST_HTTP_OTHER_METHOD, true,
         0},
        {"POST /p HTTP/1.1\r\nHost: x\r\ncontent-length: 5\r\n\r\nhelloGET", "/p", "hello",
         ST_HTTP_POST, true, 3},
        {"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "/p", "", ST_HTTP_POST, true,
         0},
        {"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n"
         "3\r\nabc\r\n0A ;q=1\r\n0123456789\r\n0\r\nT: 1\r\n\r\nrest",
         "/p", "abc0123456789", ST_HTTP_POST, true, 4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t piece = 1; piece < 200; piece += piece < 5 ? 1 : 37) {
            st_http_parser p = start();
            size_t used = feed(&p, cases[i].text, piece);
            if (p.state != ST_HTTP_DONE)
                fail_msg("%s: %s", cases[i].text, p.error ? p.error : "not complete");
            assert_int_equal(used, strlen(cases[i].text) - cases[i].rest);
            assert_string_equal(st_http_parser_path(&p), cases[i].path);
            assert_int_equal(p.method, cases[i].method);
            assert_int_equal(p.keep_alive, cases[i].keep_alive);
            assert_string_equal(p.body.data ? p.body.data : "", cases[i].body);
            st_http_parser_free(&p);
        }
    }
}

#define H "GET / HTTP/1.1\r\nHost: x\r\n"

static void refusals(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int status;
    } cases[] = {
        {"GET\r\n\r\n", 400},
        {"GET  / HTTP/1.1\r\n\r\n", 400},
        {"GET / HTTP/1.12\r\n\r\n", 400},
        {"GET / HTTP/3.0\r\n\r\n", 505},
        {"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400},
        {"G\x01T / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
        {"GET /\x80 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n\r\n", 400},
        {H "Host: y\r\n\r\n", 400},
        {H "a b: c\r\n\r\n", 400},
        {H ": c\r\n\r\n", 400},
        {H "a\r\n\r\n", 400},
        {H "a: b\x01\r\n\r\n", 400},
        {H "a: b\nc: d\r\n\r\n", 400},
        {H "a: b\rc\r\n\r\n", 400},
        {H "Content-Length: 1 1\r\n\r\n", 400},
        {H "Content-Length: +1\r\n\r\n", 400},
        {H "Content-Length:\r\n\r\n", 400},
        {H "Content-Length: 65\r\n\r\n", 413},
        {H "Content-Length: 18446744073709551617\r\n\r\n", 413},
        {H "Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400},
        {H "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
        {H "Transfer-Encoding: chunked, gzip\r\n\r\n", 501},
        {"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
        {H "Transfer-Encoding: chunked\r\n\r\n41\r\n", 413},
        {H "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 413},
        {H "Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400},
        {H "Transfer-Encoding: chunked\r\n\r\n1x\r\n", 400},
        {H "Transfer-Encoding: chunked\r\n\r\n1\nx", 400},
        {H "Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n", 400},
        {H "Expect: x\r\n\r\n", 417},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t piece = 1; piece < 200; piece += piece < 5 ? 1 : 37) {
            st_http_parser p = start();
            feed(&p, cases[i].text, piece);
            if (p.state != ST_HTTP_BAD || p.error_status != cases[i].status)
                fail_msg("%s: state %d, status %d", cases[i].text, p.state, p.error_status);
            assert_false(p.keep_alive);
            st_http_parser_free(&p);
        }
    }
}

static void limits(void **state)
{
    (void)state;
    char text[2048] = H "X: ";
    memset(text + strlen(text), 'y', 600);
    strcat(text, "\r\n\r\n");
    for (size_t piece = 1; piece < 2048; piece *= 2) {
        st_http_parser p = start();
        feed(&p, text, piece);
        assert_int_equal(p.error_status, 431);
        st_http_parser_free(&p);
    }
    st_http_parser p = start();
    p.max_head = 1 << 20;
    strcpy(text, H);
    for (int i = 0; i < ST_HTTP_MAX_HEADERS; i++)
        strcat(text, "a: b\r\n");
    strcat(text, "\r\n");
    feed(&p, text, 100);
    assert_int_equal(p.error_status, 431);
    st_http_parser_free(&p);
}

static void a_reset_parser_is_new(void **state)
{
    (void)state;
    st_http_parser p = start();
    for (int i = 0; i < 3; i++) {
        feed(&p, "POST /p HTTP/1.1\r\nHost: x\r\nA: 1\r\nContent-Length: 2\r\n\r\nhi", 7);
        assert_int_equal(p.state, ST_HTTP_DONE);
        assert_string_equal(p.body.data, "hi");
        assert_string_equal(st_http_parser_header(&p, "a"), "1");
        st_http_parser_reset(&p);
        feed(&p, "GET /g HTTP/1.1\r\nHost: x\r\n\r\n", 7);
        assert_int_equal(p.state, ST_HTTP_DONE);
        assert_int_equal(p.body.len, 0);
        assert_null(st_http_parser_header(&p, "a"));
        st_http_parser_reset(&p);
    }
    st_http_parser_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests),
        cmocka_unit_test(refusals),
        cmocka_unit_test(limits),
        cmocka_unit_test(a_reset_parser_is_new),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
