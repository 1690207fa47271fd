/* Encodes and decodes the messages of KV links (see kv_link_messages.h). */
#include "transfer/kv_link_messages.h"

#include <inttypes.h>
#include <string.h>
#include <xxhash.h>

#include "base/utf8.h"
#include "starling/dtype.h"

/* "STKV" as the first four bytes of HELLO. */
#define MAGIC 0x564B5453u

static void put32(unsigned char *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(v >> (8 * i));
}

static void put64(unsigned char *p, uint64_t v)
{
    put32(p, (uint32_t)v);
    put32(p + 4, (uint32_t)(v >> 32));
}

static uint32_t get32(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t get64(const unsigned char *p)
{
    return (uint64_t)get32(p) | (uint64_t)get32(p + 4) << 32;
}

/* Counts travel as 32 bits and must be those of an int32_t. */
static bool get_count(const unsigned char *p, int32_t *out)
{
    uint32_t v = get32(p);
    *out = (int32_t)(v & INT32_MAX);
    return v <= INT32_MAX;
}

static st_status bad_length(const char *kind, size_t len, size_t expected, st_error *err)
{
    return st_fail(err, ST_EFORMAT, "%s of %zu bytes; expected %zu", kind, len, expected);
}

/* Of everything behind it: UCX trusts addresses, so damaged ones must not reach it. */
static uint64_t hello_check(const unsigned char *p, size_t len)
{
    return XXH3_64bits(p + 16, len - 16);
}

size_t kv_hello_encode(const kv_hello *m, unsigned char *out)
{
    size_t len = KV_HELLO_BYTES + m->address_len;
    put32(out, MAGIC);
    put32(out + 4, m->version);
    put64(out + 16, m->fingerprint);
    put32(out + 24, m->dtype);
    put32(out + 28, m->n_layers);
    put64(out + 32, m->row_bytes);
    put64(out + 40, m->token);
    put32(out + 48, m->address_len);
    put32(out + 52, 0); /* aligns the address */
    memcpy(out + KV_HELLO_BYTES, m->address, m->address_len);
    put64(out + 8, hello_check(out, len));
    return len;
}

st_status kv_hello_decode(const void *bytes, size_t len, kv_hello *m, size_t *need, st_error *err)
{
    const unsigned char *p = bytes;
    *m = (kv_hello){0};
    *need = KV_HELLO_BYTES;
    if (len >= 4 && get32(p) != MAGIC)
        return st_fail(err, ST_EFORMAT, "its first bytes are not those of a KV link");
    if (len >= 8 && get32(p + 4) != KV_LINK_VERSION)
        return st_fail(err, ST_EUNSUPPORTED,
                       "it speaks version %" PRIu32 ", this engine version %d", get32(p + 4),
                       KV_LINK_VERSION);
    if (len < KV_HELLO_BYTES)
        return ST_OK;
    uint32_t address_len = get32(p + 48);
    if (!address_len || address_len > KV_ADDRESS_MAX)
        return st_fail(err, ST_EFORMAT,
                       "HELLO with an address of %" PRIu32 " bytes; expected 1 to "
                       "%d",
                       address_len, KV_ADDRESS_MAX);
    *need = KV_HELLO_BYTES + (size_t)address_len;
    if (len < *need)
        return ST_OK;
    if (len > *need || hello_check(p, len) != get64(p + 8))
        return st_fail(err, ST_EFORMAT, "HELLO of %zu bytes that is damaged", len);
    *m = (kv_hello){.version = KV_LINK_VERSION,
                    .fingerprint = get64(p + 16),
                    .dtype = get32(p + 24),
                    .n_layers = get32(p + 28),
                    .row_bytes = get64(p + 32),
                    .token = get64(p + 40),
                    .address_len = address_len,
                    .address = p + KV_HELLO_BYTES};
    return ST_OK;
}

size_t kv_want_encode(const kv_want *m, unsigned char *out)
{
    memcpy(out, m->id.bytes, 16);
    put32(out + 16, (uint32_t)m->from);
    put32(out + 20, (uint32_t)m->n_tokens);
    put32(out + 24, m->wait_ms);
    put32(out + 28, (uint32_t)m->n_blocks);
    return KV_WANT_BYTES;
}

st_status kv_want_decode(const void *bytes, size_t len, size_t payload_len, kv_want *m,
                         st_error *err)
{
    const unsigned char *p = bytes;
    if (len != KV_WANT_BYTES)
        return bad_length("WANT", len, KV_WANT_BYTES, err);
    memcpy(m->id.bytes, p, 16);
    m->wait_ms = get32(p + 24);
    if (!get_count(p + 16, &m->from) || !get_count(p + 20, &m->n_tokens) ||
        !get_count(p + 28, &m->n_blocks) || m->n_tokens < 1 || m->from > m->n_tokens)
        return st_fail(err, ST_EFORMAT,
                       "WANT of tokens [%" PRIu32 ", %" PRIu32 ") with %" PRIu32
                       " blocks; expected 0 <= first <= last, at least one token",
                       get32(p + 16), get32(p + 20), get32(p + 28));
    if (payload_len != (size_t)m->n_blocks * 4)
        return bad_length("the block ids of WANT", payload_len, (size_t)m->n_blocks * 4, err);
    return ST_OK;
}

size_t kv_rows_encode(const kv_rows *m, unsigned char *out)
{
    memcpy(out, m->id.bytes, 16);
    put32(out + 16, (uint32_t)m->layer);
    put32(out + 20, (uint32_t)m->first);
    put32(out + 24, (uint32_t)m->count);
    return KV_ROWS_BYTES;
}

st_status kv_rows_decode(const void *bytes, size_t len, size_t payload_len, kv_rows *m,
                         st_error *err)
{
    const unsigned char *p = bytes;
    if (len != KV_ROWS_BYTES)
        return bad_length("ROWS", len, KV_ROWS_BYTES, err);
    memcpy(m->id.bytes, p, 16);
    if (!get_count(p + 16, &m->layer) || !get_count(p + 20, &m->first) ||
        !get_count(p + 24, &m->count) || m->count < 1 || m->first > INT32_MAX - m->count)
        return st_fail(err, ST_EFORMAT,
                       "ROWS of layer %" PRIu32 ", %" PRIu32 " rows from %" PRIu32
                       ": no such range of tokens",
                       get32(p + 16), get32(p + 24), get32(p + 20));
    if (payload_len < (size_t)m->count)
        return st_fail(err, ST_EFORMAT, "ROWS with %zu bytes for %" PRId32 " rows", payload_len,
                       m->count);
    return ST_OK;
}

/* Cuts at a character boundary. */
static size_t text_cut(const char *text, size_t max)
{
    size_t n = strnlen(text, max + 1);
    if (n <= max)
        return n;
    n = max;
    return n - st_utf8_incomplete_tail(text, n);
}

size_t kv_end_encode(const kv_end *m, unsigned char *out)
{
    size_t n = text_cut(m->text, KV_TEXT_MAX);
    memcpy(out, m->id.bytes, 16);
    put32(out + 16, m->from_fetcher);
    put32(out + 20, (uint32_t)-m->status);
    memcpy(out + KV_END_BYTES, m->text, n);
    return KV_END_BYTES + n;
}

/* A peer's text goes into logs and replies: control characters and broken UTF-8 do not. */
static void text_clean(const unsigned char *p, size_t n, char *out)
{
    size_t o = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        size_t k = st_utf8_decode((const char *)p + i, n - i, &cp);
        if (cp == ST_UTF8_BAD || cp < 0x20 || (cp >= 0x7F && cp < 0xA0)) {
            out[o++] = '?';
        } else {
            memcpy(out + o, p + i, k);
            o += k;
        }
        i += k;
    }
    out[o] = '\0';
}

st_status kv_end_decode(const void *bytes, size_t len, size_t payload_len, kv_end *m, st_error *err)
{
    const unsigned char *p = bytes;
    if (len < KV_END_BYTES || len > KV_HEADER_MAX || payload_len)
        return st_fail(err, ST_EFORMAT, "END of %zu and %zu bytes; expected %d to %d and none", len,
                       payload_len, KV_END_BYTES, KV_HEADER_MAX);
    memcpy(m->id.bytes, p, 16);
    m->from_fetcher = get32(p + 16) != 0;
    uint32_t status = get32(p + 20);
    /* A status of a later version is still an end. */
    m->status =
        status >= 1 && status <= (uint32_t)-ST_EINTERNAL ? (st_status) - (int)status : ST_EIO;
    text_clean(p + KV_END_BYTES, len - KV_END_BYTES, m->text);
    return ST_OK;
}

void kv_blocks_encode(const int32_t *blocks, int32_t n, unsigned char *out)
{
    for (int32_t i = 0; i < n; i++)
        put32(out + (size_t)i * 4, (uint32_t)blocks[i]);
}

void kv_blocks_decode(const unsigned char *p, int32_t n, int32_t *blocks)
{
    for (int32_t i = 0; i < n; i++)
        blocks[i] = (int32_t)get32(p + (size_t)i * 4);
}

static const char *dtype_name(uint32_t dtype)
{
    return dtype == ST_BF16 || dtype == ST_F32 || dtype == ST_I8 ? st_dtype_name((st_dtype)dtype)
                                                                 : "an unknown type";
}

st_status kv_hello_compare(const kv_hello *mine, const kv_hello *theirs, st_error *err)
{
    if (mine->fingerprint != theirs->fingerprint)
        return st_fail(err, ST_EINVAL,
                       "it serves another model: fingerprint %016" PRIx64 ", this engine's is "
                       "%016" PRIx64,
                       theirs->fingerprint, mine->fingerprint);
    if (mine->dtype != theirs->dtype)
        return st_fail(err, ST_EINVAL, "its KV rows are %s, this engine's are %s",
                       dtype_name(theirs->dtype), dtype_name(mine->dtype));
    if (mine->n_layers != theirs->n_layers)
        return st_fail(err, ST_EINVAL, "it has %" PRIu32 " layers, this engine has %" PRIu32,
                       theirs->n_layers, mine->n_layers);
    if (mine->row_bytes != theirs->row_bytes)
        return st_fail(err, ST_EINVAL,
                       "its KV rows have %" PRIu64 " bytes, this engine's have %" PRIu64,
                       theirs->row_bytes, mine->row_bytes);
    return ST_OK;
}
