/* A stream of events, whole and in pieces whose sizes byte 0 chooses: the same events. */
#include <stdlib.h>
#include <string.h>

#include "base/sse_split.h"
#include "starling/buf.h"

#define REQUIRE(x)                                                                                 \
    do {                                                                                           \
        if (!(x))                                                                                  \
            abort();                                                                               \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void note(st_buf *log, const st_sse_event *ev, size_t n)
{
    size_t numbers[] = {n, ev->data_len, ev->name_len, (size_t)ev->data_lines, ev->comment};
    REQUIRE(st_buf_append(log, numbers, sizeof numbers) == ST_OK);
    REQUIRE(st_buf_append(log, ev->data, ev->data_len) == ST_OK);
    REQUIRE(st_buf_append(log, ev->name, ev->name_len) == ST_OK);
}

static void split(const char *text, size_t len, size_t piece, st_buf *log)
{
    size_t start = 0, scanned = 0;
    for (size_t end = 0; end < len;) {
        end = len - end < piece ? len : end + piece;
        size_t have = end - start, at = 0, n;
        char *copy = malloc(have ? have : 1);
        memcpy(copy, text + start, have);
        st_sse_event ev;
        while ((n = st_sse_next(copy + at, have - at, &scanned, &ev)) > 0) {
            REQUIRE(n <= have - at && scanned == 0);
            note(log, &ev, n);
            at += n;
        }
        REQUIRE(scanned <= have - at);
        start += at;
        free(copy);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    st_buf whole = ST_BUF_INIT, pieces = ST_BUF_INIT;
    if (size == 0)
        return 0;
    split((const char *)data + 1, size - 1, size, &whole);
    split((const char *)data + 1, size - 1, 1 + data[0] % 16, &pieces);
    REQUIRE(whole.len == pieces.len);
    REQUIRE(whole.len == 0 || memcmp(whole.data, pieces.data, whole.len) == 0);
    st_buf_free(&whole);
    st_buf_free(&pieces);
    return 0;
}
