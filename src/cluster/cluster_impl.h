/* The shared region's layout, and a process' handle on it: for the files of src/cluster.
 *
 *   region  header | engines | event sources | row heads | row loads | request slots and their map
 *           | queue: states, map, bodies | rate table | prefix index
 *
 * Everything in the region is an atomic or is written before the word that publishes it. Offsets
 * follow from the header's sizes, so every process computes the same. */
#ifndef ST_CLUSTER_CLUSTER_IMPL_H
#define ST_CLUSTER_CLUSTER_IMPL_H

#include "cluster/cluster.h"

enum { ST_RATE_SLOTS = 8192, ST_QUEUE_MAX = 65536, ST_REQUESTS_MAX = 1 << 20 };
enum { ST_ENGINE_FREE, ST_ENGINE_USED, ST_ENGINE_LEAVING };

/* ---- who: pid and start time in one word, so that a reused pid is somebody else ---- */

/* pid | low 32 bits of the start time << 24: 56 bits, never 0. */
typedef uint64_t st_identity;
st_identity st_identity_self(void);
/* The same, kept in the handle: reading /proc is slow. */
st_identity st_cluster_self(st_cluster *c);
/* False for zombies, too: what they held can be taken. */
bool st_identity_alive(st_identity id);
/* One system call; a zombie, or somebody else with the same pid, counts as alive. */
bool st_identity_seems_alive(st_identity id);

/* ---- the region ---- */

typedef struct st_atomic_load {
    _Atomic int32_t requests, prefill_requests;
    _Atomic int64_t prefill_tokens, decode_tokens;
    _Atomic int32_t decode_requests;
    int32_t unused;
} st_atomic_load;

enum { ST_ROW_FREE, ST_ROW_USED, ST_ROW_REAPING }; /* the word: identity << 8 | this */

typedef struct st_row_head {
    _Alignas(64) _Atomic uint64_t word;
    _Atomic uint32_t generation;   /* in its socket's name */
    _Atomic uint32_t wake_pending; /* a datagram is on its way: no second one */
} st_row_head;

/* A place in the queue is one word, so that it changes hands in one step:
 *
 *   0..2 state | 3..10 row | 11..19 prefill + 1 | 20..28 decode + 1 | 29..34 model | 35..36 role
 *   | 37..38 configuration | 39..63 times used
 *
 *   FREE -> FILLING -> WAITING -> CHOSEN -> TOLD -> FREE      WAITING -> CHOSEN: any worker's pump;
 *                         ^------------------'                the rest: its owner, or who reaps it
 */
enum {
    ST_PLACE_FREE,
    ST_PLACE_FILLING,
    ST_PLACE_WAITING,
    ST_PLACE_CHOSEN, /* its owner has not looked yet */
    ST_PLACE_TOLD    /* its owner is at it */
};

typedef struct st_place {
    uint8_t state, row, model, role, generation;
    int16_t prefill, decode; /* engines it was chosen for, or -1 */
    uint32_t used;
} st_place;

static inline uint64_t st_place_word(st_place p)
{
    return (uint64_t)p.state | (uint64_t)p.row << 3 | (uint64_t)(p.prefill + 1) << 11 |
           (uint64_t)(p.decode + 1) << 20 | (uint64_t)p.model << 29 | (uint64_t)p.role << 35 |
           (uint64_t)p.generation << 37 | (uint64_t)p.used << 39;
}

static inline st_place st_place_of(uint64_t w)
{
    return (st_place){.state = w & 7,
                      .row = w >> 3 & 255,
                      .prefill = (int16_t)((int)(w >> 11 & 511) - 1),
                      .decode = (int16_t)((int)(w >> 20 & 511) - 1),
                      .model = w >> 29 & 63,
                      .role = w >> 35 & 3,
                      .generation = w >> 37 & 3,
                      .used = (uint32_t)(w >> 39)};
}

typedef struct st_place_body {
    st_route_request request;
    st_route_waiting key;
    uint64_t deadline_ns;
    uint64_t excluded[ST_CLUSTER_MAX_ENGINES / 64];
    int32_t deepest;
    uint32_t deepest_tokens;
} st_place_body;
enum { ST_BODY_WORDS = sizeof(st_place_body) / 8 };
_Static_assert(sizeof(st_place_body) % 8 == 0, "copied by words");

/* Written while FILLING, read while WAITING by others, who check the state word afterwards. */
typedef struct st_queue_entry {
    _Alignas(64) _Atomic uint64_t body[ST_BODY_WORDS];
    _Atomic uint64_t user;         /* the owner's pointer */
    _Atomic uint64_t told_epoch;   /* of room when it was told */
    _Atomic uint64_t failed_epoch; /* there was no room for it then */
} st_queue_entry;

typedef struct st_rate_slot {
    _Atomic uint64_t key;
    _Atomic uint64_t full_at_ns; /* when the bucket will be full again */
} st_rate_slot;

typedef struct st_region {
    uint64_t magic;
    uint64_t layout; /* sizes of the structures: a region of another build is not ours */
    uint64_t bytes;
    uint64_t n_blocks, n_history;
    uint32_t n_requests, queue_size;
    uint64_t nonce; /* in the sockets' names */
    char name[ST_NAME_MAX];
    _Atomic uint32_t generation; /* of the configuration */
    _Atomic uint32_t engines_end, rows_end;

    _Alignas(64) _Atomic uint64_t claim_clock; /* versions of engines are drawn from it */
    _Alignas(64) _Atomic uint64_t leader;      /* identity << 8 | row + 1, or 0 */
    _Alignas(64) _Atomic uint64_t pump_holder; /* identity << 8 | 1, or 0 */
    _Atomic uint32_t pump_wanted;
    _Atomic uint64_t room_epoch; /* grows whenever something becomes free while somebody waits */
    _Alignas(64) st_cluster_metrics metrics;
} st_region;

/* Where things are in a region. */
typedef struct st_layout {
    size_t engines, sources, rows, loads, requests, request_map, places, place_map, entries, rates,
        index, index_bytes, total;
} st_layout;

struct st_cluster {
    st_region *region;
    st_engine_slot *engines;
    st_event_source_state *sources;
    st_row_head *rows;
    st_atomic_load *loads; /* [row][engine] */
    st_request_slot *requests;
    _Atomic uint64_t *request_map; /* hints: a bit per slot in use */
    _Atomic uint64_t *places;
    _Atomic uint64_t *place_map; /* a bit per place that waits, is chosen or told */
    st_queue_entry *entries;
    st_rate_slot *rates;
    st_prefix_index *index;

    st_route_policy policy;
    st_breaker_policy breaker;
    uint32_t generation;                            /* of the configuration it was made for */
    uint64_t models_sharing[ST_CLUSTER_MAX_MODELS]; /* models that have an engine in common */
    _Atomic uint64_t self; /* identity of this process, or of its parent before a fork */
    int send_fd;           /* unbound datagram socket */
    int wake_fds[ST_CLUSTER_MAX_WORKERS];          /* this process' rows; else -1 */
    uint32_t next_request[ST_CLUSTER_MAX_WORKERS]; /* where to look first */
    struct st_pump *pump;                          /* scratch of who holds the pump */
};

static inline st_atomic_load *st_row_load(const st_cluster *c, int row, int32_t engine)
{
    return &c->loads[(size_t)row * ST_CLUSTER_MAX_ENGINES + (size_t)engine];
}

/* Applies the configuration's engines to the slots (cluster_config.c). */
ST_NODISCARD st_status st_cluster_check_spec(const st_cluster_spec *spec, st_error *err);
ST_NODISCARD st_status st_cluster_configure(st_cluster *c, const st_cluster_spec *spec,
                                            st_error *err);

/* Loads of all rows, added up. Reads the version first: a claim against it fails when any other
 * claim came between. */
st_load st_cluster_engine_load(const st_cluster *c, int32_t engine);
/* What the routing sees of one engine; matched_tokens is left 0. */
void st_cluster_engine_view(const st_cluster *c, int32_t id, st_route_engine *out);

/* Something became free: whoever waits for it is chosen and told. */
void st_cluster_made_room(st_cluster *c, uint64_t now_ns);
/* As st_cluster_pump; thorough: the holder of the pump is looked at closely, after a death. */
void st_cluster_pump_with(st_cluster *c, uint64_t now_ns, bool thorough);
bool st_cluster_somebody_waits(const st_cluster *c);
/* A copy of what waits at a place; false: it has changed meanwhile. */
bool st_place_read(const st_cluster *c, uint32_t place, uint64_t word, st_place_body *out);
/* Frees the places and the requests of a row. */
void st_queue_free_row(st_cluster *c, int row);
void st_requests_free_row(st_cluster *c, int row);
/* Sends the datagram. forced: even if one seems to be on its way. False: nobody listens there. */
bool st_row_wake(st_cluster *c, int row, bool forced);

ST_NODISCARD st_status st_pump_new(uint32_t queue_size, struct st_pump **out);
void st_pump_free(struct st_pump *p);

#endif
