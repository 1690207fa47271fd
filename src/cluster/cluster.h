/* The cluster as all gateway workers see it: engines and their load, requests in flight, who waits,
 * counters; in one region of shared memory. No nginx here; processes that fork and die are tested
 * without it.
 *
 *   engines[256]   address, role, limits, health, breaker, what it reports, version
 *   rows[128]      one per worker process: pid, and for each engine what THIS worker has in flight
 *   requests[N]    one per request in flight (<= 256 bytes): phase times, engines, owner's row
 *   waiting[Q]     the bounded queue
 *   metrics        counters and histograms
 *   index          events/prefix_index.h
 *
 * Loads are kept per worker: only the owner writes its row, a view adds the rows up. So a worker
 * killed at any instruction leaves nothing behind: whoever finds its pid dead (the worker nginx
 * starts in its place, at the latest) zeroes the row, frees its requests and its places in the
 * queue, and wakes who waits.
 *
 * A claim: view -> decide -> write own row -> compare-and-swap the engine's version. When the swap
 * fails somebody else was faster: the row is put back and the caller decides again. There is no
 * lock on this way.
 *
 * Waking: st_cluster_pump finds the best who waits for what has room (st_route_next) and marks it;
 * its owner is told by a datagram to the abstract unix socket of its row, whose descriptor sits in
 * the owner's event loop. Nothing polls.
 *
 * Threads: a handle may be used by several threads when each has a row of its own; functions that
 * take a row are for its owner only. */
#ifndef ST_CLUSTER_CLUSTER_H
#define ST_CLUSTER_CLUSTER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "events/event_feed.h"
#include "events/prefix_index.h"
#include "route/route.h"
#include "starling/status.h"

enum {
    ST_CLUSTER_MAX_ENGINES = 256,
    ST_CLUSTER_MAX_WORKERS = 128,
    ST_CLUSTER_MAX_MODELS = 64,
    ST_ADDRESS_MAX = 128,
    ST_NAME_MAX = 96
};

/* ---- what the configuration says ---- */

typedef struct st_engine_spec {
    const char *address; /* "127.0.0.1:8101", "[::1]:8101", "unix:/run/d.sock": its identity */
    const char *pool;
    uint8_t kind;     /* api/relay.h's st_engine_kind: opaque here */
    uint8_t role;     /* st_engine_role */
    uint16_t dp_size; /* data-parallel ranks, each a holder of its own; >= 1 */
    uint64_t models;  /* bit per model of the spec's list */
    int32_t max_requests;
    int64_t max_prefill_tokens;
    bool publishes_events; /* exact matching; else by history */
} st_engine_spec;

typedef struct st_cluster_spec {
    const char *name;
    const st_engine_spec *engines;
    size_t n_engines;
    int32_t max_requests_in_flight; /* slots; 0: 16,384 */
    int32_t queue_size;             /* 0: 1,024 */
} st_cluster_spec;

/* ---- the shared structures (read freely; write through the functions) ---- */

typedef enum st_phase {
    ST_PHASE_RECEIVED,
    ST_PHASE_TOKENIZED,
    ST_PHASE_MATCHED,
    ST_PHASE_PREFILL_WAITING,
    ST_PHASE_PREFILL_SCHEDULED,
    ST_PHASE_PREFILL_RUNNING,
    ST_PHASE_DECODE_WAITING,
    ST_PHASE_DECODE_SCHEDULED,
    ST_PHASE_DECODE_RUNNING,
    ST_PHASE_DONE,
    ST_PHASES
} st_phase;
extern const char *const st_phase_names[ST_PHASES]; /* "received", ..., "prefill_waiting", ... */

typedef struct st_engine_slot {
    _Atomic uint64_t version; /* grows with every claim; odd-even means nothing */
    _Atomic uint32_t state;   /* 0 free, 1 in use, 2 leaving (no longer configured) */
    _Atomic uint32_t health;  /* st_engine_health */
    char address[ST_ADDRESS_MAX], pool[ST_NAME_MAX];
    _Atomic uint8_t kind, role;
    _Atomic uint16_t dp_size, first_holder; /* holders [first_holder, first_holder + dp_size) */
    _Atomic uint64_t models;                /* by the newest configuration's list */
    _Atomic uint64_t
        models_by_generation[4]; /* by that of generation & 3: old workers have theirs */
    _Atomic int32_t max_requests;
    _Atomic int64_t max_prefill_tokens;
    _Atomic bool publishes_events;
    _Atomic bool stale_holders; /* blocks of an engine before it are in the index still */
    /* the breaker: changed by compare-and-swap of one word (st_cluster_outcome) */
    _Atomic uint64_t breaker_word;
    _Atomic uint64_t open_until_ns;
    /* what the engine says of itself; written by the worker that asks */
    _Atomic int32_t reported_running, reported_waiting, block_size, max_model_len;
    _Atomic int64_t kv_tokens;
    _Atomic float kv_usage, prefill_tokens_per_s, decode_ms_per_token;
    _Atomic uint32_t kv_port, bootstrap_port;
    char engine_id[ST_NAME_MAX], kv_host[ST_NAME_MAX]; /* under info_version: even: stable */
    _Atomic uint32_t info_version;
    _Atomic uint64_t last_ok_ns, last_broken_ns;
    /* counters */
    _Atomic uint64_t requests, broken, busy, retries_from;
} st_engine_slot;

typedef struct st_request_slot {
    _Atomic uint32_t row_and_state; /* row + 1, or 0: free */
    _Atomic uint32_t phase;
    _Atomic uint64_t id;               /* the request's, random */
    _Atomic uint64_t at_ns[ST_PHASES]; /* monotonic; 0: not reached */
    _Atomic int32_t prefill, decode;   /* engine ids, -1: none */
    _Atomic uint32_t model;
    _Atomic uint32_t prompt_tokens, matched_tokens, generated_tokens;
    _Atomic bool stream;
} st_request_slot;
_Static_assert(sizeof(st_request_slot) <= 256, "a request's slot is small");

typedef struct st_cluster st_cluster;

/* ---- life ---- */

size_t st_cluster_bytes(const st_cluster_spec *spec, size_t n_blocks, size_t n_history);
/* Makes the region's content (any bytes in it before). */
ST_NODISCARD st_status st_cluster_init(void *mem, size_t bytes, size_t n_blocks, size_t n_history,
                                       const st_cluster_spec *spec, st_cluster **out,
                                       st_error *err);
/* After a reload, with the same region (the old workers may be at work): keeps engines that are
 * still configured (by address) with their load, health, speed and blocks; adds new ones; marks the
 * others as leaving. ST_EFORMAT: the region is not ours or of another size: init it. */
ST_NODISCARD st_status st_cluster_reload(void *mem, size_t bytes, const st_cluster_spec *spec,
                                         st_cluster **out, st_error *err);
st_prefix_index *st_cluster_index(st_cluster *c);
/* An st_cluster is a process' handle on the region (made before a fork it serves the children,
 * too); the region outlives it. The policy is the handle's. */
void st_cluster_free(st_cluster *c);
void st_cluster_set_policy(st_cluster *c, const st_route_policy *p, const st_breaker_policy *b);

/* ---- workers ---- */

/* Takes a row for the calling process; reaps rows of dead processes first. *wake_fd: a non-blocking
 * datagram socket that becomes readable when this worker should look at its waiting requests (read
 * it empty, then call st_cluster_woken). */
ST_NODISCARD st_status st_cluster_enter(st_cluster *c, int *row, int *wake_fd, st_error *err);
void st_cluster_leave(st_cluster *c, int row);
/* Zeroes rows of dead processes; returns how many. */
int st_cluster_reap(st_cluster *c);

/* Tells the owner of the row (all of them: -1) to look at its requests and to ask for the lead. */
void st_cluster_wake(st_cluster *c, int row);

/* One process at a time follows events and asks after health: true for the caller from now on, if
 * nobody alive is it. Crash-safe (the holder's death passes it on to who asks next; nginx starts a
 * new worker in place of a dead one, which asks). */
bool st_cluster_lead(st_cluster *c, int row);
void st_cluster_unlead(st_cluster *c, int row); /* wakes all workers: one of them will ask */

/* ---- engines ---- */

int32_t st_cluster_engine_find(const st_cluster *c, const char *address); /* id or -1 */
st_engine_slot *st_cluster_engine(st_cluster *c, int32_t id);
st_event_source_state *st_cluster_source_state(st_cluster *c, int holder);
/* The one that follows events calls this when it begins to lead, and after a reload: clears what
 * the index has of engines whose places others have now. Until then those match nothing. */
void st_cluster_clear_stale(st_cluster *c);
/* Feeds the measured speeds (moving averages). Prefill: tokens that stood before the request at
 * the engine when it came, plus its own, over the time to its first token. Decode: the time of
 * tokens after the first. */
void st_cluster_measure_prefill(st_cluster *c, int32_t engine, int64_t tokens, uint64_t ns);
void st_cluster_measure_decode(st_cluster *c, int32_t engine, int64_t tokens, uint64_t ns);
/* Reports an outcome to the breaker; true when that opened or closed it (and health changed). Wakes
 * the leader when it opened: the end of its pause is the moment to ask after the engine. */
bool st_cluster_outcome(st_cluster *c, int32_t engine, st_outcome o, uint64_t now_ns);
/* The health check's result: up closes the breaker (once its pause is over) and wakes who waits;
 * call it after writing what the engine reported. */
void st_cluster_set_health(st_cluster *c, int32_t engine, st_engine_health h, uint64_t now_ns);

/* Fills engines[] (room for ST_CLUSTER_MAX_ENGINES) with those that serve model, loads added up;
 * depth: per holder, from st_prefix_match in blocks (may be NULL), times block_size (of an engine
 * that publishes events: times the size it reported, if it did) is matched_tokens of the best rank.
 * Returns how many. */
int32_t st_cluster_view(const st_cluster *c, uint32_t model, const uint32_t *depth,
                        int32_t block_size, st_route_engine *engines);
/* The rank of engine with the deepest match; those with the same take turns. */
int st_cluster_best_rank(st_cluster *c, int32_t engine, const uint32_t *depth);

/* What a request adds to an engine. */
typedef struct st_claim {
    int32_t engine; /* -1: none */
    st_load load;
} st_claim;
/* false: somebody else claimed since the view: look again. */
bool st_cluster_claim(st_cluster *c, int row, const st_route_engine *seen, const st_claim *claim);
/* Changes a claim's share (prefill done: fewer prefill tokens; a token came: one more). */
void st_cluster_adjust(st_cluster *c, int row, st_claim *claim, const st_load *now);
/* Gives it back and pumps the queue. */
void st_cluster_release(st_cluster *c, int row, st_claim *claim, uint64_t now_ns);

/* ---- requests ---- */

st_request_slot *st_cluster_request_new(st_cluster *c, int row, uint64_t id, uint32_t model,
                                        uint64_t now_ns); /* NULL: all slots are taken */
void st_request_phase(st_request_slot *r, st_phase p, uint64_t now_ns);
/* Time from the phase reached before it to this one; 0: not reached. */
uint64_t st_request_phase_ns(const st_request_slot *r, st_phase p);
/* Adds its phases' times and, when it is DONE, the whole to the histograms. */
void st_cluster_request_free(st_cluster *c, st_request_slot *r);
/* The i-th slot, for the status page; NULL: beyond the last. Free ones have row_and_state 0. */
const st_request_slot *st_cluster_request_at(const st_cluster *c, size_t i);

/* ---- the queue ---- */

typedef struct st_wait {
    uint32_t model;
    uint8_t role; /* what it waits for: ST_ROLE_PREFILL, _DECODE, or _BOTH: a whole plan */
    st_route_request request;
    st_route_waiting key;
    uint64_t deadline_ns; /* not chosen any more after it; 0: none. The timer is the owner's */
    /* So that the choice for it is that of its owner: engines it has tried, and the engine for
     * decode that holds most of its prompt (-1: none). */
    uint64_t excluded[ST_CLUSTER_MAX_ENGINES / 64];
    int32_t deepest;
    uint32_t deepest_tokens;
} st_wait;

/* Fills all of it from the view that had no room. */
void st_wait_from_view(st_wait *w, uint32_t model, uint8_t role, const st_route_request *r,
                       const st_route_engine *view, int32_t n, int64_t priority, uint64_t since_ns,
                       uint64_t deadline_ns);

/* Puts a request into the queue; user is given back by st_cluster_woken. *ticket names the place.
 * ST_EFULL: the queue is full. Pumps. */
ST_NODISCARD st_status st_cluster_wait(st_cluster *c, int row, const st_wait *w, void *user,
                                       uint32_t *ticket, uint64_t now_ns);
/* Leaves the queue: it got its engines, its deadline passed, or its client left. Pumps when the
 * place had been chosen. */
void st_cluster_wait_end(st_cluster *c, int row, uint32_t ticket, uint64_t now_ns);
/* A chosen one lost its race, or its view after st_cluster_woken had no room: it waits on, at its
 * old place, and is not chosen again before something has become free since it was woken. */
void st_cluster_wait_again(st_cluster *c, int row, uint32_t ticket);
/* The next of this worker's requests that was chosen; false: no more. It must view, plan and claim,
 * then call st_cluster_wait_end, or st_cluster_wait_again: until then the room is kept for it. */
bool st_cluster_woken(st_cluster *c, int row, uint32_t *ticket, void **user);
/* True when others wait for the same: a newcomer must queue up behind them. */
bool st_cluster_must_wait(const st_cluster *c, uint32_t model, uint8_t role);
/* Chooses among those who wait as long as there is room, and wakes their owners. Called by the
 * functions above whenever something became free or somebody came. */
void st_cluster_pump(st_cluster *c, uint64_t now_ns);

/* ---- metrics ---- */

enum { ST_HISTOGRAM_BUCKETS = 20 };
extern const double st_histogram_bounds[ST_HISTOGRAM_BUCKETS - 1]; /* seconds */

typedef struct st_histogram {
    _Atomic uint64_t bucket[ST_HISTOGRAM_BUCKETS];
    _Atomic uint64_t sum_ns, count;
} st_histogram;
void st_histogram_add(st_histogram *h, uint64_t ns);

typedef struct st_cluster_metrics {
    st_histogram phase[ST_PHASES]; /* time from the phase before to this one */
    st_histogram ttft, decision, total;
    _Atomic uint64_t requests, ok, client_errors, engine_errors, client_left, rejected_full,
        rejected_deadline, rejected_rate, retries, races_lost, prefill_skipped, half_failed,
        workers_reaped, prompt_tokens, matched_tokens, generated_tokens, tokenize_threads,
        tokenize_inline;
} st_cluster_metrics;
st_cluster_metrics *st_cluster_get_metrics(st_cluster *c);

typedef struct st_cluster_counts {
    int32_t in_flight, waiting, workers;
    st_load load; /* over all engines */
} st_cluster_counts;
void st_cluster_get_counts(const st_cluster *c, st_cluster_counts *out);

/* ---- rate limits: one bucket per key, shared by the workers ---- */

/* key: a hash of the API key or address. Crash-safe and lossy: a bucket is one slot of a fixed
 * table, by compare-and-swap. */
bool st_cluster_rate_take(st_cluster *c, uint64_t key, double rate_per_s, double burst, double cost,
                          uint64_t now_ns, uint32_t *wait_ms);

#endif
