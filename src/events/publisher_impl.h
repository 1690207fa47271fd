/* The publisher from inside: event_publisher.c is what the engine's thread calls, and the ring;
 * publisher_thread.c owns the sockets. */
#ifndef ST_EVENTS_PUBLISHER_IMPL_H
#define ST_EVENTS_PUBLISHER_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "events/event_ledger.h"
#include "events/event_publisher.h"
#include "starling/buf.h"

/* A change of one block on its way through the ring; a stored one is followed by its tokens and
 * then its salt. Sizes are rounded up to eight bytes. */
typedef struct ring_record {
    uint32_t bytes; /* of all of it */
    int32_t block;  /* -1: nothing, up to the ring's end */
    uint64_t hash, parent;
    uint16_t salt_len;
    bool stored, first;
    uint32_t unused;
} ring_record;

/* One writer, one reader; positions only grow. */
typedef struct event_ring {
    unsigned char *bytes;
    uint64_t size; /* a power of two */
    _Alignas(64) _Atomic uint64_t written;
    _Alignas(64) _Atomic uint64_t read;
} event_ring;

typedef struct kept_batch {
    char *payload;
    size_t len;
} kept_batch;

/* A replay that is being sent. */
typedef struct replay_client {
    unsigned char id[255];
    uint8_t id_len;
    bool active;
    int64_t next;         /* sequence */
    uint64_t progress_ns; /* when something could last be sent */
} replay_client;

enum { REPLAY_CLIENTS = 16 };

struct st_event_publisher {
    st_event_publisher_options options;
    char *topic;
    uint16_t port, replay_port;
    void *context, *pub, *router;
    int wake; /* eventfd */
    pthread_t thread;
    bool started;
    atomic_bool stop;
    event_ring ring;

    /* The engine's thread. */
    event_ledger changes;
    st_block_hash root; /* of the chain that may begin now */
    char salt[ST_EVENT_SALT_MAX];
    size_t salt_len;
    bool salted_too_long;

    /* The publishing thread. */
    event_ledger cached;
    st_buf payload, salts;
    struct st_kv_event *events; /* [events_cap], of the batch that is being made */
    uint64_t *hashes;
    int32_t *tokens;
    size_t n_events, n_hashes, events_cap, hashes_cap;
    int64_t next_seq;
    kept_batch *kept; /* [buffer_batches], ring by sequence */
    int64_t oldest;   /* sequence of the oldest kept */
    size_t kept_bytes;
    replay_client clients[REPLAY_CLIENTS];
};

/* The next record of the ring, NULL when there is none; valid until event_ring_done. */
const ring_record *event_ring_next(event_ring *r, uint64_t *at);
void event_ring_done(event_ring *r, uint64_t at);

void *event_publisher_run(void *publisher);

#endif
