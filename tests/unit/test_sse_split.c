/* src/base/sse_split: fields and line ends as the standard has them, however the bytes are cut. */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sse_split.h"
#include "starling/buf.h"

static void describe(st_buf *out, const st_sse_event *ev, size_t n)
{
    assert_int_equal(st_buf_printf(out, "%zu:%.*s:%.*s:%d:%d|", n, (int)ev->name_len,
                                   ev->name ? ev->name : "", (int)ev->data_len,
                                   ev->data ? ev->data : "", ev->data_lines, ev->comment),
                     ST_OK);
}

/* Feeds text in pieces of n bytes into memory of the exact size, describes the events. */
static char *split(const char *text, size_t len, size_t piece)
{
    st_buf out = ST_BUF_INIT;
    size_t start = 0, scanned = 0;
    assert_int_equal(st_buf_puts(&out, ""), ST_OK);
    for (size_t end = 0; end < len;) {
        end = len - end < piece ? len : end + piece;
        char *copy = malloc(end - start + 1);
        memcpy(copy, text + start, end - start);
        size_t at = 0, n;
        st_sse_event ev;
        char *exact = realloc(copy, end - start ? end - start : 1);
        while ((n = st_sse_next(exact + at, end - start - at, &scanned, &ev)) > 0) {
            describe(&out, &ev, n);
            at += n;
        }
        start += at;
        free(exact);
    }
    return out.data;
}

static const struct {
    const char *text, *events;
} cases[] = {
    {"data: a\n\n", "9::a:1:0|"},
    {"data:a\n\ndata:  b\n\n", "8::a:1:0|10:: b:1:0|"},
    {"data: a\r\n\r\ndata: b\r\n\r\n", "11::a:1:0|11::b:1:0|"},
    {"data: a\r\rdata: b\r\rx", "9::a:1:0|9::b:1:0|"},
    {"data: a\r\n\ndata: b\n\r\nx", "10::a:1:0|10::b:1:0|"},
    {": ping\n\n", "8:::0:1|"},
    {": x\ndata: a\n\n", "13::a:1:0|"},
    {"event: e\ndata: a\nid: 7\nretry: 3\n\n", "33:e:a:1:0|"},
    {"data: a\ndata: b\n\n", "17:::2:0|"},
    {"data\n\n", "6:::1:0|"},
    {"data:\n\n", "7:::1:0|"},
    {"\n\ndata: x\n\n", "1:::0:0|1:::0:0|9::x:1:0|"},
    {"datax: a\n dat: b\n\n", "18:::0:0|"},
    {"data: half\n", ""},
    {"data: half", ""},
    {"data: a\n\ndata: b\n", "9::a:1:0|"},
    {"data: {\"a\":\"\\n\\n\"}\n\n", "20::{\"a\":\"\\n\\n\"}:1:0|"},
};

static void every_split(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t len = strlen(cases[i].text);
        for (size_t piece = 1; piece <= len + 1; piece++) {
            char *events = split(cases[i].text, len, piece);
            if (strcmp(events, cases[i].events) != 0)
                fail_msg("case %zu in pieces of %zu: %s", i, piece, events);
            free(events);
        }
    }
}

/* The end is the first blank line; found byte by byte, without words. */
static size_t slow_end(const char *t, size_t len)
{
    size_t line = 0;
    for (size_t p = 0; p < len; p++) {
        if (t[p] != '\n' && t[p] != '\r')
            continue;
        size_t start = p;
        if (t[p] == '\r') {
            if (p + 1 == len)
                return 0;
            p += t[p + 1] == '\n';
        }
        if (start == line)
            return p + 1;
        line = p + 1;
    }
    return 0;
}

static void random_bytes(void **state)
{
    (void)state;
    static const char bytes[] = "\n\r\r\n:d a\tdata: xyz long enough for words";
    char text[200];
    uint32_t rng = 99;
    for (int round = 0; round < 20000; round++) {
        size_t len = round % sizeof text;
        for (size_t i = 0; i < len; i++) {
            rng = rng * 1664525u + 1013904223u;
            text[i] = bytes[(rng >> 16) % (round % 3 ? sizeof bytes - 1 : 6)];
        }
        char *whole = split(text, len, len + 1);
        char *pieces = split(text, len, 1 + round % 13);
        assert_string_equal(whole, pieces);
        st_sse_event ev;
        size_t scanned = 0;
        assert_int_equal(st_sse_next(text, len, &scanned, &ev), slow_end(text, len));
        free(whole);
        free(pieces);
    }
}

/* A megabyte in one line, arriving in small reads, is looked at once. */
static void linear(void **state)
{
    (void)state;
    size_t len = (size_t)4 << 20, scanned = 0;
    char *text = malloc(len);
    memset(text, 'x', len);
    memcpy(text, "data: ", 6);
    memcpy(text + len - 2, "\n\n", 2);
    st_sse_event ev;
    for (size_t n = 16; n < len; n += 16) {
        assert_int_equal(st_sse_next(text, n, &scanned, &ev), 0);
        assert_int_equal(scanned, n);
    }
    assert_int_equal(st_sse_next(text, len, &scanned, &ev), len);
    assert_int_equal(ev.data_len, len - 8);
    assert_int_equal(scanned, 0);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_split),
        cmocka_unit_test(random_bytes),
        cmocka_unit_test(linear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
