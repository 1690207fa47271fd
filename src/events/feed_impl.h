/* The event feed from inside: event_feed.c is its interface and its thread, feed_source.c follows
 * one source. */
#ifndef ST_EVENTS_FEED_IMPL_H
#define ST_EVENTS_FEED_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include <zmq.h>

#include "events/event_feed.h"
#include "events/kv_event.h"

/* A message of three frames. */
typedef struct feed_message {
    zmq_msg_t frames[3];
    int64_t seq;
} feed_message;

/* What a source is; texts owned. Equal specs mean that nothing needs to change. */
typedef struct feed_spec {
    char *endpoint, *replay, *topic, *model; /* replay: NULL, none */
    st_event_source_state *state;
} feed_spec;

typedef struct feed_source {
    st_event_feed *feed;
    int holder;
    feed_spec spec;
    void *sub, *monitor;  /* the monitor says when sub has connected */
    void *dealer;         /* while a replay runs; sub is not read meanwhile: its messages wait in
                             ZeroMQ's queue, which is bounded */
    uint64_t last_digest; /* of the payload of state->last_seq, to know it again; 0: not known */

    bool probing;     /* the replay began with last_seq itself: is it still the same engine? */
    bool probe_known; /* it was, or something after it came */
    bool probe_again; /* connected anew while a replay ran */
    uint64_t idle_deadline_ns, whole_deadline_ns;
    int64_t before; /* last_seq when the replay began */

    /* After a replay the socket may still hold messages that the replay has brought: those from
     * seen on, up to repeat_until. */
    int64_t seen, repeat_until;
    bool has_pending; /* the live message that showed the gap */
    feed_message pending;
} feed_source;

struct st_event_feed {
    st_prefix_index *index;
    void *context;
    int wake; /* eventfd */
    pthread_t thread;
    bool started;
    atomic_bool stop;
    st_kv_decoder *decoder;
    unsigned n_opened; /* for names of monitors */

    pthread_mutex_t lock;
    feed_spec wanted[ST_INDEX_MAX_HOLDERS]; /* under lock; endpoint NULL: none */
    struct feed_order *first, *last;        /* under lock: orders for the thread */

    feed_source *sources[ST_INDEX_MAX_HOLDERS]; /* the thread's */
};

void feed_spec_free(feed_spec *s); /* and zeroes */
bool feed_spec_equal(const feed_spec *a, const feed_spec *b);

/* Opens sub and monitor. Any thread; afterwards the source belongs to the feed's. */
ST_NODISCARD st_status feed_source_open(st_event_feed *f, int holder, const feed_spec *spec,
                                        unsigned number, feed_source **out, st_error *err);
void feed_source_free(feed_source *s); /* NULL is fine */

/* Takes what has come, a bounded number of messages. */
void feed_source_live(feed_source *s);
void feed_source_replay(feed_source *s);
/* The monitor has something to say: the subscription stands (again). */
void feed_source_connected(feed_source *s);
/* Gives up a replay whose time is over; returns when to look again, UINT64_MAX: not needed. */
uint64_t feed_source_deadline(feed_source *s, uint64_t now_ns);

#endif
