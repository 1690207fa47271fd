/* Publishes an engine's KV events over ZeroMQ, as vLLM's ZmqEventPublisher does: PUB frames
 * [topic, sequence (8 bytes, big endian, from 0), payload], and a ROUTER socket that replays what a
 * subscriber missed: [client, "", start (8 bytes)] -> [client, "", sequence, payload]*, ended by
 * sequence -1 with an empty payload.
 *
 * Its own thread owns the sockets. st_event_publisher_* are called by the engine's thread
 * (st_block_ events), never block and allocate nothing after start: events go through a bounded
 * ring; when it is full the whole ring is dropped, AllBlocksCleared is published in its place,
 * followed by everything that is still cached (the source of truth is asked again): an index never
 * keeps what is not there. */
#ifndef ST_EVENTS_EVENT_PUBLISHER_H
#define ST_EVENTS_EVENT_PUBLISHER_H

#include "starling/kv_cache.h"
#include "starling/status.h"

typedef struct st_event_publisher_options {
    const char *host;     /* address to bind: "*", "127.0.0.1", ... */
    uint16_t port;        /* 0: any free port */
    uint16_t replay_port; /* 0: any free port */
    const char *topic;    /* "": none */
    int dp_rank;
    int32_t block_size;
    size_t buffer_batches; /* kept for replay; 0: 10,000, as vLLM */
    bool arrays;           /* the older encoding */
} st_event_publisher_options;

typedef struct st_event_publisher st_event_publisher;

ST_NODISCARD st_status st_event_publisher_new(const st_event_publisher_options *o,
                                              st_event_publisher **out, st_error *err);
void st_event_publisher_free(st_event_publisher *p); /* NULL is fine */
uint16_t st_event_publisher_port(const st_event_publisher *p);
uint16_t st_event_publisher_replay_port(const st_event_publisher *p);

/* For st_block_pool_new: events->user is the publisher. Salts are not passed on by the pool: the
 * hash covers them, and extra_keys carries the salt of a chain's first block when
 * st_event_publisher_salt named it for that root before. */
st_block_events st_event_publisher_events(st_event_publisher *p);
/* Hands what was collected since the last call to the thread as one batch: once per step. */
void st_event_publisher_flush(st_event_publisher *p);

#endif
