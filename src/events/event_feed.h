/* Follows the KV events of many engines and keeps a prefix index up to date. One thread, started by
 * st_event_feed_start; sources come and go while it runs (any thread).
 *
 * Per source (one data-parallel rank of one engine = one holder of the index):
 *   connected, for the first time or again -> replay is asked of the engine's ROUTER from the last
 *                                             message on, and that one compared: an engine that
 *                                             restarted is noticed, and one that is idle known
 *   a gap in the sequence                  -> replay of what is missing; live messages wait in a
 *                                             bounded queue. What cannot be replayed any more: the
 *                                             holder is cleared and filled again as events come
 *   the sequence goes back                 -> the engine restarted: clear
 *   BlockStored whose parent is unknown    -> counted (orphans), not stored
 *   a batch that cannot be decoded         -> counted (skipped), the holder cleared: it may have
 *                                             said that blocks are gone
 * Blocks in GPU and in CPU memory count as held. Nothing an engine sends can stop the thread or
 * grow memory without bound. */
#ifndef ST_EVENTS_EVENT_FEED_H
#define ST_EVENTS_EVENT_FEED_H

#include "events/prefix_index.h"
#include "starling/status.h"

typedef struct st_event_feed st_event_feed;

/* Shared counters of one source, in memory that outlives the feed (the cluster's shared memory):
 * a feed in another process goes on from seq and epoch. */
typedef struct st_event_source_state {
    _Atomic int64_t last_seq; /* -1: nothing yet */
    _Atomic uint64_t batches, events, skipped, orphans, gaps, replayed, restarts;
    _Atomic uint64_t last_ns;   /* monotonic time of the last batch */
    _Atomic int32_t block_size; /* tokens, as the last stored block says; 0: nothing yet */
} st_event_source_state;

typedef struct st_event_source {
    int holder;           /* of the index */
    const char *endpoint; /* "tcp://10.0.0.1:5557"; copied */
    const char *replay;   /* "tcp://10.0.0.1:5558", or NULL: none */
    const char *topic;    /* prefix; NULL: all */
    const char *model;    /* for st_prefix_root, as requests are matched; copied */
    st_event_source_state *state;
} st_event_source;

/* The caller sees to it that the feed is the index's only writer; what a writer that died left half
 * done is repaired. Call it after fork. */
ST_NODISCARD st_status st_event_feed_start(st_prefix_index *index, st_event_feed **out,
                                           st_error *err);
/* Joins the thread; at most some milliseconds. The index stays as it is. */
void st_event_feed_stop(st_event_feed *f); /* NULL is fine */

/* Adds a source, or replaces that of its holder; nothing happens when it is the same. Another
 * endpoint, topic or model: the holder is cleared. The thread does it soon after. */
ST_NODISCARD st_status st_event_feed_set(st_event_feed *f, const st_event_source *s, st_error *err);
/* Stops following a holder and clears its blocks (the engine is gone), soon after. */
ST_NODISCARD st_status st_event_feed_drop(st_event_feed *f, int holder);

#endif
