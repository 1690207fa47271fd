/* What two KV links say to each other, as bytes: little-endian, fixed sizes, nothing trusted.
 *
 *   HELLO  what the rows are, the sender's UCX address, and the token that it wants to read in
 *          front of each message: over a plain TCP connection, first, each direction
 *   WANT   header; payload: block ids (int32)   decode -> prefill
 *   ROWS   header; payload: the rows            prefill -> decode
 *   END    header with the text in it           either way
 *
 * The last three are messages of UCX, with the token as their tag: kind, header, payload. Decoding
 * checks each value for itself (ranges, lengths that agree); what only the receiver can know (is
 * the id known, the layer there) it checks itself. */
#ifndef ST_TRANSFER_KV_LINK_MESSAGES_H
#define ST_TRANSFER_KV_LINK_MESSAGES_H

#include "transfer/kv_link.h"

enum { KV_MSG_WANT = 1, KV_MSG_ROWS = 2, KV_MSG_END = 3 };

enum {
    KV_LINK_VERSION = 2,
    KV_HELLO_BYTES = 56, /* and the address */
    KV_ADDRESS_MAX = 32768,
    KV_HELLO_TOKEN = 40, /* where the token is */
    KV_KIND_BYTES = 4,
    KV_WANT_BYTES = 32,
    KV_ROWS_BYTES = 28,
    KV_END_BYTES = 24,
    KV_TEXT_MAX = 400,
    KV_HEADER_MAX = KV_END_BYTES + KV_TEXT_MAX
};

typedef struct kv_hello {
    uint32_t version;
    uint64_t fingerprint;
    uint32_t dtype, n_layers;
    uint64_t row_bytes;
    uint64_t token;
    uint32_t address_len;
    const unsigned char *address; /* in the message */
} kv_hello;

typedef struct kv_want {
    st_transfer_id id;
    int32_t from, n_tokens;
    uint32_t wait_ms; /* how long the fetcher waits for rows at most */
    int32_t n_blocks; /* 0: none named */
} kv_want;

typedef struct kv_rows {
    st_transfer_id id;
    int32_t layer, first, count;
} kv_rows;

typedef struct kv_end {
    st_transfer_id id;
    bool from_fetcher; /* else from the one that offered */
    st_status status;  /* never ST_OK */
    char text[KV_TEXT_MAX + 1];
} kv_end;

/* Writes KV_HELLO_BYTES + address_len bytes and returns their number. */
size_t kv_hello_encode(const kv_hello *m, unsigned char *out);
/* Reads HELLO as its bytes arrive. ST_OK with *need > len: more bytes must come (*need is how many
 * are surely needed in all) and m is not filled. ST_EUNSUPPORTED: another version. */
ST_NODISCARD st_status kv_hello_decode(const void *p, size_t len, kv_hello *m, size_t *need,
                                       st_error *err);

/* Each writes to out[KV_HEADER_MAX] and returns the length. */
size_t kv_want_encode(const kv_want *m, unsigned char *out);
size_t kv_rows_encode(const kv_rows *m, unsigned char *out);
size_t kv_end_encode(const kv_end *m, unsigned char *out);

/* ST_EFORMAT with a text when the bytes are no such message. payload_len is that of the message.
 * The text of END comes out as one line of valid UTF-8. */
ST_NODISCARD st_status kv_want_decode(const void *p, size_t len, size_t payload_len, kv_want *m,
                                      st_error *err);
ST_NODISCARD st_status kv_rows_decode(const void *p, size_t len, size_t payload_len, kv_rows *m,
                                      st_error *err);
ST_NODISCARD st_status kv_end_decode(const void *p, size_t len, size_t payload_len, kv_end *m,
                                     st_error *err);
void kv_blocks_encode(const int32_t *blocks, int32_t n, unsigned char *out); /* 4 n bytes */
void kv_blocks_decode(const unsigned char *p, int32_t n, int32_t *blocks);

/* ST_OK when both sides hold the same kind of rows; else ST_EINVAL and a text that names both
 * values of the first difference. */
ST_NODISCARD st_status kv_hello_compare(const kv_hello *mine, const kv_hello *theirs,
                                        st_error *err);

#endif
