/* Bytes as messages of a KV link. Byte 0 chooses the kind, bytes 1 and 2 the payload's length. What
 * is accepted must be in range and must encode to a message that decodes to the same. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "transfer/kv_link_messages.h"

#define REQUIRE(x)                                                                                 \
    do {                                                                                           \
        if (!(x))                                                                                  \
            abort();                                                                               \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_hello(const unsigned char *p, size_t n)
{
    kv_hello m, again;
    st_error err;
    size_t need = 0;
    st_status st = kv_hello_decode(p, n, &m, &need, &err);
    if (st != ST_OK) {
        REQUIRE(st_utf8_valid(err.text, strlen(err.text)));
        return;
    }
    REQUIRE(need >= n && need <= KV_HELLO_BYTES + KV_ADDRESS_MAX);
    if (need > n)
        return;
    REQUIRE(m.address >= p && m.address + m.address_len == p + n);
    (void)kv_hello_compare(&m, &(kv_hello){.n_layers = 3}, &err);
    unsigned char *out = malloc(n);
    REQUIRE(out && kv_hello_encode(&m, out) == n);
    REQUIRE(kv_hello_decode(out, n, &again, &need, &err) == ST_OK);
    REQUIRE(kv_hello_compare(&m, &again, &err) == ST_OK && m.token == again.token);
    free(out);
}

/* Damaged by chance, HELLO would hardly ever pass its own check: repair it. */
static void try_repaired_hello(const unsigned char *p, size_t n)
{
    unsigned char out[KV_HELLO_BYTES + 256];
    kv_hello m = {.version = KV_LINK_VERSION, .address = p, .address_len = (uint32_t)n};
    if (!n || n > 256)
        return;
    memcpy(&m.fingerprint, p, n < 8 ? n : 8);
    try_hello(out, kv_hello_encode(&m, out));
}

static void try_want(const unsigned char *p, size_t n, size_t payload)
{
    kv_want m, again;
    st_error err;
    unsigned char out[KV_HEADER_MAX];
    if (kv_want_decode(p, n, payload, &m, &err) != ST_OK)
        return;
    REQUIRE(m.from >= 0 && m.from <= m.n_tokens && m.n_tokens > 0);
    REQUIRE(m.n_blocks >= 0 && (size_t)m.n_blocks * 4 == payload);
    REQUIRE(kv_want_decode(out, kv_want_encode(&m, out), payload, &again, &err) == ST_OK);
    REQUIRE(!memcmp(&m, &again, sizeof m));
}

static void try_rows(const unsigned char *p, size_t n, size_t payload)
{
    kv_rows m, again;
    st_error err;
    unsigned char out[KV_HEADER_MAX];
    if (kv_rows_decode(p, n, payload, &m, &err) != ST_OK)
        return;
    REQUIRE(m.layer >= 0 && m.first >= 0 && m.count > 0 && m.first <= INT32_MAX - m.count);
    REQUIRE(kv_rows_decode(out, kv_rows_encode(&m, out), payload, &again, &err) == ST_OK);
    REQUIRE(!memcmp(&m, &again, sizeof m));
}

static void try_end(const unsigned char *p, size_t n, size_t payload)
{
    kv_end m, again;
    st_error err;
    unsigned char out[KV_HEADER_MAX];
    if (kv_end_decode(p, n, payload, &m, &err) != ST_OK)
        return;
    size_t len = strlen(m.text);
    REQUIRE(len <= KV_TEXT_MAX && st_utf8_valid(m.text, len) && !strpbrk(m.text, "\r\n\t\x1b"));
    REQUIRE(m.status < 0 && m.status >= ST_EINTERNAL);
    REQUIRE(kv_end_decode(out, kv_end_encode(&m, out), 0, &again, &err) == ST_OK);
    REQUIRE(!strcmp(m.text, again.text) && m.status == again.status);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3)
        return 0;
    size_t n = size - 3, payload = (size_t)data[1] | (size_t)data[2] << 8;
    /* From memory of that exact size. */
    unsigned char *p = malloc(n ? n : 1);
    REQUIRE(p);
    memcpy(p, data + 3, n);
    switch (data[0] % 5) {
    case 0:
        try_hello(p, n);
        break;
    case 1:
        try_repaired_hello(p, n);
        break;
    case 2:
        try_want(p, n, payload);
        break;
    case 3:
        try_rows(p, n, payload);
        break;
    default:
        try_end(p, n, payload);
    }
    free(p);
    return 0;
}
