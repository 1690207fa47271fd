/* Publishes an engine's KV events over ZeroMQ, as vLLM's ZmqEventPublisher does: PUB frames
 * [topic, sequence (8 bytes, big endian, from 0), payload], and a ROUTER socket that replays what a
 * subscriber missed: [client, "", start (8 bytes)] -> [client, "", sequence, payload]*, ended by
 * sequence -1 with an empty payload.
 *
 * Its own thread owns the sockets. The other functions are called by the engine's thread alone (the
 * pool's events): they never block and allocate nothing after start. They keep what each block
 * holds and which blocks changed; st_event_publisher_flush hands the changes over through a bounded
 * ring, and what finds no room waits for the next flush, so nothing is ever lost: a block that
 * changed twice meanwhile is published once, as it is.
 *
 * A subscriber that asks for more than is kept for replay gets, with the newest sequence,
 * AllBlocksCleared and then everything that is cached now. */
#ifndef ST_EVENTS_EVENT_PUBLISHER_H
#define ST_EVENTS_EVENT_PUBLISHER_H

#include "starling/kv_cache.h"
#include "starling/status.h"

enum { ST_EVENT_SALT_MAX = 256 };

typedef struct st_event_publisher_options {
    const char *host;     /* address to bind: "*", "127.0.0.1", ... */
    uint16_t port;        /* 0: any free port */
    uint16_t replay_port; /* 0: any free port */
    const char *topic;    /* "": none */
    int dp_rank;
    int32_t block_size;
    int32_t n_blocks;      /* of the pool */
    size_t buffer_batches; /* kept for replay; 0: 10,000, as vLLM */
    bool arrays;           /* the older encoding */
} st_event_publisher_options;

typedef struct st_event_publisher st_event_publisher;

ST_NODISCARD st_status st_event_publisher_new(const st_event_publisher_options *o,
                                              st_event_publisher **out, st_error *err);
void st_event_publisher_free(st_event_publisher *p); /* NULL is fine */
uint16_t st_event_publisher_port(const st_event_publisher *p);
uint16_t st_event_publisher_replay_port(const st_event_publisher *p);

/* For st_block_pool_new: events->user is the publisher. */
st_block_events st_event_publisher_events(st_event_publisher *p);
/* Names a chain's root, and the cache_salt (NULL, 0: none) that it covers, before blocks of that
 * chain are published in the pool: a stored block whose parent is this root is a chain's first.
 * Cheap; call it for every sequence that publishes. Blocks of a chain whose salt is longer than
 * ST_EVENT_SALT_MAX are not announced. */
void st_event_publisher_root(st_event_publisher *p, st_block_hash root, const char *salt,
                             size_t salt_len);
/* Hands what was collected since the last call to the thread as one batch: once per step. False:
 * the ring is full, the rest waits for the next call (before the engine sleeps, call until true).
 */
bool st_event_publisher_flush(st_event_publisher *p);

#endif
