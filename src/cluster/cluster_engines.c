/* Engines as the workers see them: health and breaker, views, claims. */
#include "cluster/cluster_impl.h"

#include <string.h>

#include "base/clock.h"

int32_t st_cluster_engine_find(const st_cluster *c, const char *address)
{
    uint32_t end = atomic_load(&c->region->engines_end);
    for (uint32_t i = 0; i < end; i++) {
        if (atomic_load(&c->engines[i].state) == ST_ENGINE_USED &&
            strcmp(c->engines[i].address, address) == 0) {
            return (int32_t)i;
        }
    }
    return -1;
}

st_engine_slot *st_cluster_engine(st_cluster *c, int32_t id)
{
    return id >= 0 && id < ST_CLUSTER_MAX_ENGINES ? &c->engines[id] : NULL;
}

st_event_source_state *st_cluster_source_state(st_cluster *c, int holder)
{
    return holder >= 0 && holder < ST_INDEX_MAX_HOLDERS ? &c->sources[holder] : NULL;
}

void st_cluster_clear_stale(st_cluster *c)
{
    uint32_t end = atomic_load(&c->region->engines_end);
    for (uint32_t i = 0; i < end; i++) {
        st_engine_slot *e = &c->engines[i];
        if (atomic_load(&e->state) != ST_ENGINE_USED || !atomic_load(&e->stale_holders)) {
            continue;
        }
        uint16_t first = atomic_load(&e->first_holder), n = atomic_load(&e->dp_size);
        for (int h = first; h < first + n && h < ST_INDEX_MAX_HOLDERS; h++) {
            st_prefix_clear(c->index, h);
        }
        atomic_store(&e->stale_holders, false);
    }
}

/* ---- breaker and health ---- */

/* One word: time / 2^16 ns (48 bits) | opened (8) | broken (8). */
static st_breaker unpack(uint64_t w)
{
    return (st_breaker){.broken = w & 255, .opened = w >> 8 & 255, .open_until_ns = w >> 16 << 16};
}

static uint64_t pack(const st_breaker *b)
{
    uint64_t until = (b->open_until_ns + UINT16_MAX) >> 16 << 16; /* up: open never becomes 0 */
    uint64_t opened = b->opened < 255 ? b->opened : 255, broken = b->broken < 255 ? b->broken : 255;
    return until | opened << 8 | broken;
}

/* True when that opened or closed it. */
static bool breaker_step(st_cluster *c, st_engine_slot *e, st_outcome o, uint64_t now_ns)
{
    uint64_t word = atomic_load(&e->breaker_word);
    for (;;) {
        st_breaker before = unpack(word);
        st_breaker after = st_breaker_after(&c->breaker, before, o, now_ns);
        uint64_t next = pack(&after);
        if (next == word) {
            return false;
        }
        if (atomic_compare_exchange_weak(&e->breaker_word, &word, next)) {
            after = unpack(next);
            atomic_store(&e->open_until_ns, after.open_until_ns);
            return st_breaker_open(&before) != st_breaker_open(&after) ||
                   before.open_until_ns != after.open_until_ns;
        }
    }
}

static bool breaker_is_open(const st_engine_slot *e)
{
    st_breaker b = unpack(atomic_load(&e->breaker_word));
    return st_breaker_open(&b);
}

bool st_cluster_outcome(st_cluster *c, int32_t engine, st_outcome o, uint64_t now_ns)
{
    st_engine_slot *e = st_cluster_engine(c, engine);
    if (!e) {
        return false;
    }
    if (o == ST_OUTCOME_OK) {
        atomic_store(&e->last_ok_ns, now_ns);
    } else if (o == ST_OUTCOME_BROKEN) {
        atomic_store(&e->last_broken_ns, now_ns);
        atomic_fetch_add(&e->broken, 1);
    } else {
        atomic_fetch_add(&e->busy, 1);
    }
    if (!breaker_step(c, e, o, now_ns)) {
        return false;
    }
    bool open = breaker_is_open(e);
    atomic_store(&e->health, open ? ST_HEALTH_DOWN : ST_HEALTH_UP);
    if (!open) {
        st_cluster_made_room(c, now_ns);
        return true;
    }
    /* The one that asks after health has a timer to set: for the end of the pause. */
    int leader = (int)(atomic_load(&c->region->leader) & 255) - 1;
    if (leader >= 0) {
        st_cluster_wake(c, leader);
    }
    return true;
}

void st_cluster_set_health(st_cluster *c, int32_t engine, st_engine_health h, uint64_t now_ns)
{
    st_engine_slot *e = st_cluster_engine(c, engine);
    if (!e) {
        return;
    }
    if (h == ST_HEALTH_UP && breaker_is_open(e)) {
        /* Only closing is the check's business: the doubling of pauses ends with requests. */
        (void)breaker_step(c, e, ST_OUTCOME_OK, now_ns);
        if (breaker_is_open(e)) {
            return;
        }
    }
    atomic_store(&e->health, (uint32_t)h);
    if (h == ST_HEALTH_UP) {
        atomic_store(&e->last_ok_ns, now_ns);
        st_cluster_made_room(c, now_ns);
    }
}

/* A lost update of two at once loses one measurement. */
static void average_in(_Atomic float *average, float value)
{
    float old = atomic_load_explicit(average, memory_order_relaxed);
    atomic_store_explicit(average, old > 0 ? old + 0.2f * (value - old) : value,
                          memory_order_relaxed);
}

void st_cluster_measure_prefill(st_cluster *c, int32_t engine, int64_t tokens, uint64_t ns)
{
    st_engine_slot *e = st_cluster_engine(c, engine);
    if (e && tokens > 0 && ns > 0) {
        average_in(&e->prefill_tokens_per_s, (float)((double)tokens * 1e9 / (double)ns));
    }
}

void st_cluster_measure_decode(st_cluster *c, int32_t engine, int64_t tokens, uint64_t ns)
{
    st_engine_slot *e = st_cluster_engine(c, engine);
    if (e && tokens > 0 && ns > 0) {
        average_in(&e->decode_ms_per_token, (float)((double)ns * 1e-6 / (double)tokens));
    }
}

/* ---- views ---- */

st_load st_cluster_engine_load(const st_cluster *c, int32_t engine)
{
    st_load sum = {0};
    uint32_t end = atomic_load_explicit(&c->region->rows_end, memory_order_acquire);
    for (uint32_t row = 0; row < end; row++) {
        const st_atomic_load *l = st_row_load(c, (int)row, engine);
        sum.requests += atomic_load(&l->requests);
        sum.prefill_requests += atomic_load(&l->prefill_requests);
        sum.prefill_tokens += atomic_load(&l->prefill_tokens);
        sum.decode_requests += atomic_load(&l->decode_requests);
        sum.decode_tokens += atomic_load(&l->decode_tokens);
    }
    return sum;
}

void st_cluster_engine_view(const st_cluster *c, int32_t id, st_route_engine *out)
{
    const st_engine_slot *e = &c->engines[id];
    uint64_t version = atomic_load_explicit(&e->version, memory_order_acquire);
    uint32_t health = atomic_load(&e->health);
    /* The two change one after the other; the breaker has the last word. */
    health = health == ST_HEALTH_UP && breaker_is_open(e) ? ST_HEALTH_DOWN : health;
    *out = (st_route_engine){.id = id, .health = (uint8_t)health, .version = version};
#define READ(field) atomic_load(&e->field)
    out->role = READ(role);
    out->max_requests = READ(max_requests);
    out->max_prefill_tokens = READ(max_prefill_tokens);
    out->kv_tokens = READ(kv_tokens);
    out->reported_running = READ(reported_running);
    out->reported_waiting = READ(reported_waiting);
    out->kv_usage = READ(kv_usage);
    out->prefill_tokens_per_s = READ(prefill_tokens_per_s);
    out->decode_ms_per_token = READ(decode_ms_per_token);
#undef READ
    out->load = st_cluster_engine_load(c, id);
}

static uint32_t deepest_rank(const st_engine_slot *e, const uint32_t *depth)
{
    uint32_t deepest = 0;
    int first = atomic_load(&e->first_holder), end = first + atomic_load(&e->dp_size);
    for (int h = first; h < end && h < ST_INDEX_MAX_HOLDERS; h++) {
        deepest = depth[h] > deepest ? depth[h] : deepest;
    }
    return deepest;
}

static uint32_t matched_tokens(const st_engine_slot *e, const uint32_t *depth, int32_t block_size)
{
    if (atomic_load(&e->stale_holders)) {
        return 0;
    }
    int32_t own = atomic_load(&e->block_size);
    int64_t size = atomic_load(&e->publishes_events) && own > 0 ? own : block_size;
    int64_t tokens = (int64_t)deepest_rank(e, depth) * size;
    return tokens < UINT32_MAX ? (uint32_t)tokens : UINT32_MAX;
}

int32_t st_cluster_view(const st_cluster *c, uint32_t model, const uint32_t *depth,
                        int32_t block_size, st_route_engine *engines)
{
    uint32_t end = atomic_load(&c->region->engines_end);
    int32_t n = 0;
    for (uint32_t i = 0; i < end; i++) {
        const st_engine_slot *e = &c->engines[i];
        /* One that is leaving has no models but for workers of the configuration that had it: those
         * whom they still serve may have no other. */
        if (atomic_load(&e->state) == ST_ENGINE_FREE ||
            !(atomic_load(&e->models_by_generation[c->generation & 3]) >> (model & 63) & 1)) {
            continue;
        }
        st_cluster_engine_view(c, (int32_t)i, &engines[n]);
        if (depth) {
            engines[n].matched_tokens = matched_tokens(e, depth, block_size);
        }
        n++;
    }
    return n;
}

int st_cluster_best_rank(st_cluster *c, int32_t engine, const uint32_t *depth)
{
    st_engine_slot *e = st_cluster_engine(c, engine);
    int first = e ? atomic_load(&e->first_holder) : 0, n = e ? atomic_load(&e->dp_size) : 0;
    if (n <= 1 || first + n > ST_INDEX_MAX_HOLDERS) {
        return 0;
    }
    uint32_t deepest = depth ? deepest_rank(e, depth) : 0;
    int start = (int)(atomic_load(&e->requests) % (uint64_t)n);
    for (int k = 0; k < n; k++) {
        int rank = (start + k) % n;
        if (!depth || depth[first + rank] == deepest) {
            return rank;
        }
    }
    return 0;
}

/* ---- claims ---- */

/* Only the row's owner writes it: no read-modify-write is needed. The stores come before the look
 * at who waits, in the one order that all see (cluster_queue.c). */
static void add(st_atomic_load *l, const st_load *d, int sign)
{
#define ADD(field)                                                                                 \
    if (d->field != 0) {                                                                           \
        atomic_store(&l->field,                                                                    \
                     atomic_load_explicit(&l->field, memory_order_relaxed) + sign * d->field);     \
    }
    ADD(requests)
    ADD(prefill_requests)
    ADD(prefill_tokens)
    ADD(decode_requests)
    ADD(decode_tokens)
#undef ADD
}

bool st_cluster_claim(st_cluster *c, int row, const st_route_engine *seen, const st_claim *claim)
{
    st_engine_slot *e = &c->engines[claim->engine];
    st_atomic_load *mine = st_row_load(c, row, claim->engine);
    uint64_t version = seen->version;
    add(mine, &claim->load, 1);
    uint64_t next = atomic_fetch_add(&c->region->claim_clock, 1) + 1;
    /* Release: whoever sees the new version sees the row. */
    if (atomic_compare_exchange_strong(&e->version, &version, next)) {
        return true;
    }
    add(mine, &claim->load, -1);
    atomic_fetch_add_explicit(&c->region->metrics.races_lost, 1, memory_order_relaxed);
    /* Somebody may have seen the engine full in between and gone to wait. */
    st_cluster_made_room(c, st_now_ns());
    return false;
}

void st_cluster_adjust(st_cluster *c, int row, st_claim *claim, const st_load *now)
{
    if (claim->engine < 0) {
        return;
    }
    const st_load *old = &claim->load;
    st_load d = {.requests = now->requests - old->requests,
                 .prefill_requests = now->prefill_requests - old->prefill_requests,
                 .prefill_tokens = now->prefill_tokens - old->prefill_tokens,
                 .decode_requests = now->decode_requests - old->decode_requests,
                 .decode_tokens = now->decode_tokens - old->decode_tokens};
    add(st_row_load(c, row, claim->engine), &d, 1);
    claim->load = *now;
    if (d.requests < 0 || d.prefill_requests < 0 || d.prefill_tokens < 0 || d.decode_requests < 0 ||
        d.decode_tokens < 0) {
        st_cluster_made_room(c, st_now_ns());
    }
}

void st_cluster_release(st_cluster *c, int row, st_claim *claim, uint64_t now_ns)
{
    if (claim->engine < 0) {
        return;
    }
    add(st_row_load(c, row, claim->engine), &claim->load, -1);
    *claim = (st_claim){.engine = -1};
    st_cluster_made_room(c, now_ns);
}
