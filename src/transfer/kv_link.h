/* Moves KV rows between engines over UCX (shared memory, TCP, RDMA: what UCX finds).
 *
 * The prefill side OFFERS: an id, and rows of an own block table as they become ready. The decode
 * side FETCHES: an id from a host and port, rows [from, n_tokens) of every layer into its own block
 * table. Whether the fetch comes after the prompt is computed (sequential mode: everything is sent
 * at once, by the block ids that the request names) or before or while it is (parallel mode: each
 * layer's rows are sent as soon as st_kv_offer_rows names them) is no difference here.
 *
 *   messages   HELLO  version, fingerprint, dtype, row bytes, layers (each direction, first)
 *              WANT   id, first token, number of tokens, block ids or none    decode -> prefill
 *              ROWS   id, layer, first token, count; payload: the rows        prefill -> decode
 *              END    id, status, text                                        either way
 *
 * One thread per link owns UCX; offers and fetches may be made from any thread and never block.
 * Rows of a block are read between st_kv_offer_rows and the end of the offer: the owner keeps the
 * blocks until `over` was called. The fetcher's blocks are written until its `done` was called,
 * even after a cancel. An id is 16 random bytes and is all the authority there is: it cannot be
 * guessed. */
#ifndef ST_TRANSFER_KV_LINK_H
#define ST_TRANSFER_KV_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "starling/kv_cache.h"
#include "starling/status.h"

typedef struct st_transfer_id {
    unsigned char bytes[16];
} st_transfer_id;

/* 32 hexadecimal digits and a NUL; parse: false unless exactly that. (transfer ids of other shapes,
 * "xfer-<uuid>", are hashed to 16 bytes by parse_any.) */
void st_transfer_id_text(const st_transfer_id *id, char out[33]);
bool st_transfer_id_parse(const char *text, st_transfer_id *out);
st_transfer_id st_transfer_id_of(const char *any_text, size_t len);
ST_NODISCARD st_status st_transfer_id_random(st_transfer_id *out);

typedef struct st_kv_link_options {
    const char *host; /* address to listen on, numeric; "0.0.0.0" or "::" for all */
    uint16_t port;    /* 0: any free one */
    const st_kv_store *store;
    uint64_t fingerprint;        /* of the model: both sides must agree */
    uint64_t lease_ns;           /* an offer that is complete but not fetched ends after this;
                                    0: 30 s */
    uint64_t connect_timeout_ns; /* 0: 5 s */
    uint32_t max_offers;         /* 0: 4096 */
} st_kv_link_options;

typedef struct st_kv_link st_kv_link;

ST_NODISCARD st_status st_kv_link_new(const st_kv_link_options *o, st_kv_link **out, st_error *err);
/* Ends everything (callbacks come with ST_ECANCELLED), joins the thread. */
void st_kv_link_free(st_kv_link *l); /* NULL is fine */
uint16_t st_kv_link_port(const st_kv_link *l);

/* Called on the link's thread, exactly once for each accepted offer or fetch; must not block; may
 * call the functions below. err has a text when status is not ST_OK. */
typedef void st_kv_over_fn(void *user, const st_transfer_id *id, st_status status,
                           const st_error *err);

/* Prefill side. n_tokens rows will be offered in all. ST_EINVAL: the id is taken; ST_EFULL. over:
 * everything was sent (ST_OK; whether it arrived the fetcher knows), nobody came in time
 * (ST_EDEADLINE), cancelled, or the peer failed. */
ST_NODISCARD st_status st_kv_offer(st_kv_link *l, const st_transfer_id *id, int32_t n_tokens,
                                   st_kv_over_fn *over, void *user, st_error *err);
/* Rows [from, from + count) of layers [layer, layer + n_layers) are final, in blocks (the whole
 * table from token 0 on; copied). Unknown ids are ignored. */
void st_kv_offer_rows(st_kv_link *l, const st_transfer_id *id, int32_t layer, int32_t n_layers,
                      int32_t from, int32_t count, const int32_t *blocks);
/* Ends an offer early, telling a waiting fetcher. */
void st_kv_offer_cancel(st_kv_link *l, const st_transfer_id *id, const char *why);

/* Decode side: rows [from, n_tokens) of every layer into blocks (the whole table from token 0 on;
 * copied). remote_blocks: the block ids the prefill's reply named, checked by the other side
 * against the offer; NULL in parallel mode. done ST_OK: all rows are in place and visible to the
 * thread that is told so. */
typedef struct st_kv_fetch_request {
    const char *host;
    uint16_t port;
    st_transfer_id id;
    int32_t from, n_tokens;
    const int32_t *blocks;
    const int32_t *remote_blocks;
    int32_t n_remote_blocks;
    uint64_t timeout_ns; /* for the whole; 0: 60 s */
} st_kv_fetch_request;
ST_NODISCARD st_status st_kv_fetch(st_kv_link *l, const st_kv_fetch_request *r, st_kv_over_fn *done,
                                   void *user, st_error *err);
/* done still comes (ST_ECANCELLED unless it was over already). */
void st_kv_fetch_cancel(st_kv_link *l, const st_transfer_id *id);

typedef struct st_kv_link_stats {
    uint64_t offers, offers_open, fetches, fetches_open;
    uint64_t failed, expired, rows_bytes_sent, rows_bytes_received;
} st_kv_link_stats;
void st_kv_link_get_stats(st_kv_link *l, st_kv_link_stats *out);

#endif
