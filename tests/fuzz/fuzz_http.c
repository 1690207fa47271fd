/* Bytes into the HTTP request parser. The result must not depend on how they were split: the same
 * bytes go in whole and in pieces whose sizes byte 0 chooses. */
#include <stdlib.h>
#include <string.h>

#include "server/http_parse.h"

#define REQUIRE(x)                                                                                 \
    do {                                                                                           \
        if (!(x))                                                                                  \
            abort();                                                                               \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Feeds at most n bytes, from memory of that exact size. */
static size_t feed_piece(st_http_parser *p, const uint8_t *data, size_t n)
{
    char *copy = malloc(n ? n : 1);
    REQUIRE(copy);
    memcpy(copy, data, n);
    size_t used = st_http_feed(p, copy, n);
    REQUIRE(used <= n);
    REQUIRE(used == n || p->state == ST_HTTP_DONE || p->state == ST_HTTP_BAD);
    free(copy);
    return used;
}

static size_t feed_all(st_http_parser *p, const uint8_t *data, size_t size, size_t piece)
{
    size_t at = 0;
    while (at < size && p->state != ST_HTTP_DONE && p->state != ST_HTTP_BAD)
        at += feed_piece(p, data + at, size - at < piece ? size - at : piece);
    return at;
}

static void same(const st_http_parser *a, const st_http_parser *b)
{
    REQUIRE(a->state == b->state && a->error_status == b->error_status);
    if (a->state != ST_HTTP_DONE)
        return;
    REQUIRE(a->method == b->method && a->keep_alive == b->keep_alive && a->minor == b->minor);
    REQUIRE(a->n_headers == b->n_headers && a->body.len == b->body.len);
    REQUIRE(strcmp(st_http_parser_path(a), st_http_parser_path(b)) == 0);
    REQUIRE(a->body.len == 0 || memcmp(a->body.data, b->body.data, a->body.len) == 0);
    REQUIRE(a->body.len <= a->max_body);
    for (size_t i = 0; i < a->n_headers; i++)
        REQUIRE(strcmp(a->head.data + a->headers[i].value, b->head.data + b->headers[i].value) ==
                0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    st_http_parser whole = {.max_head = 1024, .max_body = 4096}, split = whole;
    size_t piece = 1 + data[0] % 32;
    data++;
    size--;
    st_http_parser_reset(&whole);
    st_http_parser_reset(&split);
    /* Several requests, as a kept connection sends them. */
    for (int i = 0; i < 4 && size; i++) {
        size_t a = feed_all(&whole, data, size, size), b = feed_all(&split, data, size, piece);
        same(&whole, &split);
        if (whole.state != ST_HTTP_DONE)
            break;
        REQUIRE(a == b);
        data += a;
        size -= a;
        st_http_parser_reset(&whole);
        st_http_parser_reset(&split);
    }
    st_http_parser_free(&whole);
    st_http_parser_free(&split);
    return 0;
}
