/* A connection's bytes, whole and in pieces whose sizes byte 0 chooses: the same answers. */
#include <stdlib.h>
#include <string.h>

#include "base/http_response.h"
#include "starling/buf.h"

#define REQUIRE(x)                                                                                 \
    do {                                                                                           \
        if (!(x))                                                                                  \
            abort();                                                                               \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Feeds one answer; returns the bytes taken, or -1. */
static long feed(st_http_response *r, const uint8_t *data, size_t len, size_t piece, st_buf *body)
{
    size_t at = 0;
    st_http_response_init(r);
    while (at < len && !r->complete) {
        size_t n = len - at < piece ? len - at : piece, used = 0;
        char *copy = malloc(n);
        memcpy(copy, data + at, n);
        while (used < n && !r->complete) {
            const char *part;
            size_t part_len;
            long got = st_http_response_feed(r, copy + used, n - used, &part, &part_len);
            if (got < 0) {
                free(copy);
                return -1;
            }
            REQUIRE(got > 0 && (size_t)got <= n - used);
            REQUIRE(part >= copy + used && part + part_len <= copy + used + got);
            REQUIRE(st_buf_append(body, part, part_len) == ST_OK);
            used += (size_t)got;
        }
        free(copy);
        at += used;
    }
    return (long)at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    size_t piece = 1 + data[0] % 32;
    data++;
    size--;
    bool again = true;
    while (size && again) {
        st_http_response a, b;
        st_buf whole = ST_BUF_INIT, pieces = ST_BUF_INIT;
        long used = feed(&a, data, size, size, &whole);
        REQUIRE(used == feed(&b, data, size, piece, &pieces));
        REQUIRE(st_http_response_eof(&a) == st_http_response_eof(&b));
        REQUIRE(a.status == b.status && a.keep_alive == b.keep_alive && a.complete == b.complete);
        REQUIRE(a.body_kind == b.body_kind && a.json == b.json && a.retry_after == b.retry_after);
        REQUIRE(!a.complete == (a.why != NULL) && (a.why != NULL) == (b.why != NULL));
        REQUIRE(!a.why || strcmp(a.why, b.why) == 0);
        REQUIRE(whole.len == pieces.len);
        REQUIRE(whole.len == 0 || memcmp(whole.data, pieces.data, whole.len) == 0);
        again = used > 0 && a.complete && a.keep_alive;
        data += used > 0 ? used : 0;
        size -= used > 0 ? (size_t)used : 0;
        st_buf_free(&whole);
        st_buf_free(&pieces);
    }
    return 0;
}
