/* Bytes as a batch of KV events. What our decoder follows to its end msgpack-c must be able to
 * read; what it delivers must come back the same when it is encoded and decoded again. */
#include <stdlib.h>
#include <string.h>

#include <msgpack.h>

#include "events/kv_event.h"

#define REQUIRE(x)                                                                                 \
    do {                                                                                           \
        if (!(x))                                                                                  \
            abort();                                                                               \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct again {
    st_kv_decoder *decoder;
    const st_kv_event *first;
    int seen;
} again;

static void same_text(const char *a, size_t a_len, const char *b, size_t b_len)
{
    REQUIRE(!a == !b && a_len == b_len && (!a || memcmp(a, b, a_len) == 0));
}

static void compare(void *user, const st_kv_event *e)
{
    again *g = user;
    const st_kv_event *f = g->first;
    g->seen++;
    REQUIRE(e->type == f->type && e->n_hashes == f->n_hashes && e->n_tokens == f->n_tokens);
    REQUIRE(e->has_parent == f->has_parent && e->parent == f->parent);
    REQUIRE(e->block_size == f->block_size && e->medium == f->medium);
    for (size_t i = 0; i < e->n_hashes; i++)
        REQUIRE(e->hashes[i] == f->hashes[i]);
    for (size_t i = 0; i < e->n_tokens; i++)
        REQUIRE(e->tokens[i] == f->tokens[i]);
    same_text(e->lora_name, e->lora_name_len, f->lora_name, f->lora_name_len);
    if (f->n_hashes)
        same_text(e->salt, e->salt_len, f->salt, f->salt_len);
}

static void on_event(void *user, const st_kv_event *e)
{
    again *g = user;
    g->first = e;
    for (int maps = 0; maps < 2; maps++) {
        st_buf b = ST_BUF_INIT;
        REQUIRE(st_kv_encode_batch(e, 1, 1.5, 3, maps, &b) == ST_OK);
        st_kv_batch_info info;
        g->seen = 0;
        REQUIRE(st_kv_decode(g->decoder, b.data, b.len, compare, g, &info) == ST_OK);
        REQUIRE(g->seen == 1 && info.events == 1 && info.skipped == 0 && info.dp_rank == 3);
        st_buf_free(&b);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    st_kv_decoder *d;
    again g;
    REQUIRE(st_kv_decoder_new(&d) == ST_OK && st_kv_decoder_new(&g.decoder) == ST_OK);
    char *copy = malloc(size ? size : 1); /* memory of that exact size */
    REQUIRE(copy);
    memcpy(copy, data, size);
    st_kv_batch_info info;
    if (st_kv_decode(d, copy, size, on_event, &g, &info) == ST_OK) {
        msgpack_unpacked u;
        msgpack_unpacked_init(&u);
        size_t off = 0;
        msgpack_unpack_return got = msgpack_unpack_next(&u, copy, size, &off);
        REQUIRE(got == MSGPACK_UNPACK_NOMEM_ERROR || /* nested deeper than msgpack-c follows */
                (got == MSGPACK_UNPACK_SUCCESS && off == size));
        msgpack_unpacked_destroy(&u);
    }
    free(copy);
    st_kv_decoder_free(d);
    st_kv_decoder_free(g.decoder);
    return 0;
}
