/* The configuration's engines in the shared slots, at the start and after a reload while the
 * workers of the configuration before are still at work on them. */
#include "cluster/cluster_impl.h"

#include <string.h>

/* ---- is it sound ---- */

static st_status check_engine(const st_cluster_spec *spec, size_t i, st_error *err)
{
    const st_engine_spec *e = &spec->engines[i];
    const char *name = spec->name ? spec->name : "";
    if (!e->address || !*e->address || strlen(e->address) >= ST_ADDRESS_MAX) {
        return st_fail(err, ST_EINVAL,
                       "cluster %s: engine %zu: the address is \"%s\", expected one of 1 to %d "
                       "characters",
                       name, i, e->address ? e->address : "", ST_ADDRESS_MAX - 1);
    }
    if (!e->pool || strlen(e->pool) >= ST_NAME_MAX) {
        return st_fail(err, ST_EINVAL,
                       "cluster %s: engine %s: the pool's name is \"%s\", expected at most %d "
                       "characters",
                       name, e->address, e->pool ? e->pool : "", ST_NAME_MAX - 1);
    }
    if (e->role < ST_ROLE_PREFILL || e->role > ST_ROLE_BOTH) {
        return st_fail(err, ST_EINVAL, "cluster %s: engine %s: unknown role %u", name, e->address,
                       e->role);
    }
    if (e->dp_size < 1 || e->dp_size > ST_INDEX_MAX_HOLDERS) {
        return st_fail(err, ST_EINVAL, "cluster %s: engine %s: dp is %u, expected 1 to %d ranks",
                       name, e->address, e->dp_size, ST_INDEX_MAX_HOLDERS);
    }
    for (size_t k = 0; k < i; k++) {
        if (strcmp(spec->engines[k].address, e->address) == 0) {
            return st_fail(err, ST_EINVAL, "cluster %s: engine %s is listed twice", name,
                           e->address);
        }
    }
    return ST_OK;
}

st_status st_cluster_check_spec(const st_cluster_spec *spec, st_error *err)
{
    const char *name = spec->name ? spec->name : "";
    if (strlen(name) >= ST_NAME_MAX) {
        return st_fail(err, ST_EINVAL, "cluster \"%s\": the name is longer than %d characters",
                       name, ST_NAME_MAX - 1);
    }
    if (spec->n_engines > ST_CLUSTER_MAX_ENGINES) {
        return st_fail(err, ST_EINVAL, "cluster %s: %zu engines, expected at most %d", name,
                       spec->n_engines, ST_CLUSTER_MAX_ENGINES);
    }
    if (spec->queue_size < 0 || spec->queue_size > ST_QUEUE_MAX) {
        return st_fail(err, ST_EINVAL, "cluster %s: queue size is %d, expected at most %d", name,
                       spec->queue_size, ST_QUEUE_MAX);
    }
    if (spec->max_requests_in_flight < 0 || spec->max_requests_in_flight > ST_REQUESTS_MAX) {
        return st_fail(err, ST_EINVAL, "cluster %s: %d requests in flight, expected at most %d",
                       name, spec->max_requests_in_flight, ST_REQUESTS_MAX);
    }
    size_t ranks = 0;
    for (size_t i = 0; i < spec->n_engines; i++) {
        st_status st = check_engine(spec, i, err);
        if (st != ST_OK) {
            return st;
        }
        ranks += spec->engines[i].dp_size;
    }
    if (ranks > ST_INDEX_MAX_HOLDERS) {
        return st_fail(err, ST_EINVAL,
                       "cluster %s: the engines have %zu data-parallel ranks, expected at most %d",
                       name, ranks, ST_INDEX_MAX_HOLDERS);
    }
    return ST_OK;
}

/* ---- holders ---- */

/* A run of holders that no slot has; -1: none. Leaving engines keep theirs while they can: what
 * they publish must not be taken for another's. */
static int find_holders(const st_cluster *c, int n, bool leaving_count, const st_engine_slot *but)
{
    bool taken[ST_INDEX_MAX_HOLDERS] = {false};
    for (int i = 0; i < ST_CLUSTER_MAX_ENGINES; i++) {
        const st_engine_slot *e = &c->engines[i];
        uint32_t state = atomic_load(&e->state);
        if (e == but || state == ST_ENGINE_FREE || (state == ST_ENGINE_LEAVING && !leaving_count)) {
            continue;
        }
        int first = atomic_load(&e->first_holder), end = first + atomic_load(&e->dp_size);
        for (int h = first; h < end && h < ST_INDEX_MAX_HOLDERS; h++) {
            taken[h] = true;
        }
    }
    int run = 0;
    for (int h = 0; h < ST_INDEX_MAX_HOLDERS; h++) {
        run = taken[h] ? 0 : run + 1;
        if (run == n) {
            return h - n + 1;
        }
    }
    return -1;
}

static st_status give_holders(st_cluster *c, st_engine_slot *e, int n, st_error *err)
{
    int first = find_holders(c, n, true, e);
    if (first < 0) {
        first = find_holders(c, n, false, e);
    }
    if (first < 0) {
        return st_fail(err, ST_EFULL,
                       "cluster %s: engine %s: no %d places side by side are left for its ranks "
                       "among %d; restart to tidy up",
                       c->region->name, e->address, n, ST_INDEX_MAX_HOLDERS);
    }
    atomic_store(&e->stale_holders, true); /* an engine before it may have had them */
    atomic_store(&e->first_holder, (uint16_t)first);
    atomic_store(&e->dp_size, (uint16_t)n);
    for (int h = first; h < first + n; h++) {
        st_event_source_state *s = &c->sources[h];
        memset(s, 0, sizeof *s);
        atomic_store(&s->last_seq, -1);
    }
    return ST_OK;
}

/* ---- slots ---- */

static bool has_load(const st_cluster *c, int32_t engine)
{
    /* Of the rows one by one: a claim that is being taken back may hide in a sum. */
    uint32_t end = atomic_load(&c->region->rows_end);
    for (uint32_t row = 0; row < end; row++) {
        const st_atomic_load *l = st_row_load(c, (int)row, engine);
        if (atomic_load(&l->requests) != 0 || atomic_load(&l->decode_tokens) != 0 ||
            atomic_load(&l->prefill_tokens) != 0) {
            return true;
        }
    }
    return false;
}

/* A new version, so that claims from older views fail. By exchange: claims that came before it are
 * seen in their rows afterwards. */
static void new_version(st_cluster *c, st_engine_slot *e)
{
    (void)atomic_exchange(&e->version, atomic_fetch_add(&c->region->claim_clock, 1) + 1);
}

static void clear_slot(st_engine_slot *e)
{
    for (int g = 0; g < 4; g++) {
        atomic_store(&e->models_by_generation[g], 0);
    }
    atomic_store(&e->health, ST_HEALTH_UNKNOWN);
    atomic_store(&e->breaker_word, 0);
    atomic_store(&e->open_until_ns, 0);
    atomic_store(&e->reported_running, -1);
    atomic_store(&e->reported_waiting, -1);
    atomic_store(&e->block_size, 0);
    atomic_store(&e->max_model_len, 0);
    atomic_store(&e->kv_tokens, 0);
    atomic_store(&e->kv_usage, -1.0f);
    atomic_store(&e->prefill_tokens_per_s, 0.0f);
    atomic_store(&e->decode_ms_per_token, 0.0f);
    atomic_store(&e->kv_port, 0);
    atomic_store(&e->bootstrap_port, 0);
    atomic_fetch_or(&e->info_version, 1);
    memset(e->engine_id, 0, sizeof e->engine_id);
    memset(e->kv_host, 0, sizeof e->kv_host);
    atomic_fetch_add(&e->info_version, 1);
    atomic_store(&e->last_ok_ns, 0);
    atomic_store(&e->last_broken_ns, 0);
    atomic_store(&e->requests, 0);
    atomic_store(&e->broken, 0);
    atomic_store(&e->busy, 0);
    atomic_store(&e->retries_from, 0);
}

/* A free slot, or one of an engine that has left and has nothing in flight. */
static st_engine_slot *take_slot(st_cluster *c)
{
    for (int pass = 0; pass < 2; pass++) {
        for (int32_t i = 0; i < ST_CLUSTER_MAX_ENGINES; i++) {
            st_engine_slot *e = &c->engines[i];
            uint32_t wanted = pass == 0 ? ST_ENGINE_FREE : ST_ENGINE_LEAVING;
            if (atomic_load(&e->state) != wanted || has_load(c, i)) {
                continue;
            }
            atomic_store(&e->state, ST_ENGINE_FREE);
            clear_slot(e);
            uint32_t end = atomic_load(&c->region->engines_end);
            if (end < (uint32_t)i + 1) {
                atomic_store(&c->region->engines_end, (uint32_t)i + 1);
            }
            return e;
        }
    }
    return NULL;
}

/* The name changes only when an engine moves to another pool; it is read for the status page. */
static void set_pool(st_engine_slot *e, const char *pool)
{
    if (strcmp(e->pool, pool) != 0) {
        memset(e->pool, 0, sizeof e->pool);
        memcpy(e->pool, pool, strlen(pool));
    }
}

static void apply(st_cluster *c, st_engine_slot *e, const st_engine_spec *s)
{
    set_pool(e, s->pool);
    atomic_store(&e->kind, s->kind);
    atomic_store(&e->role, s->role);
    atomic_store(&e->max_requests, s->max_requests);
    atomic_store(&e->max_prefill_tokens, s->max_prefill_tokens);
    atomic_store(&e->publishes_events, s->publishes_events);
    atomic_store(&e->models_by_generation[c->generation & 3], s->models);
    atomic_store(&e->models, s->models);
}

/* The slot of an engine that is configured already, or is leaving and comes back. */
static st_engine_slot *find_slot(st_cluster *c, const char *address)
{
    for (int i = 0; i < ST_CLUSTER_MAX_ENGINES; i++) {
        if (atomic_load(&c->engines[i].state) != ST_ENGINE_FREE &&
            strcmp(c->engines[i].address, address) == 0) {
            return &c->engines[i];
        }
    }
    return NULL;
}

static st_status put_engine(st_cluster *c, const st_engine_spec *s, st_error *err)
{
    st_engine_slot *e = find_slot(c, s->address);
    if (e) {
        st_status st = ST_OK;
        if (atomic_load(&e->dp_size) != s->dp_size) {
            st = give_holders(c, e, s->dp_size, err);
        }
        apply(c, e, s);
        atomic_store(&e->state, ST_ENGINE_USED);
        return st;
    }
    e = take_slot(c);
    if (!e) {
        return st_fail(err, ST_EFULL,
                       "cluster %s: engine %s: all %d slots are taken, by engines that are leaving "
                       "with requests in flight; reload again when they have ended",
                       c->region->name, s->address, ST_CLUSTER_MAX_ENGINES);
    }
    memset(e->address, 0, sizeof e->address);
    memcpy(e->address, s->address, strlen(s->address));
    st_status st = give_holders(c, e, s->dp_size, err);
    if (st != ST_OK) {
        return st;
    }
    apply(c, e, s);
    new_version(c, e);
    atomic_store(&e->state, ST_ENGINE_USED);
    return ST_OK;
}

static void note_models_sharing(st_cluster *c, const st_cluster_spec *spec)
{
    memset(c->models_sharing, 0, sizeof c->models_sharing);
    for (size_t i = 0; i < spec->n_engines; i++) {
        for (int m = 0; m < ST_CLUSTER_MAX_MODELS; m++) {
            if (spec->engines[i].models >> m & 1) {
                c->models_sharing[m] |= spec->engines[i].models;
            }
        }
    }
}

static bool is_listed(const st_cluster_spec *spec, const char *address)
{
    for (size_t k = 0; k < spec->n_engines; k++) {
        if (strcmp(spec->engines[k].address, address) == 0) {
            return true;
        }
    }
    return false;
}

st_status st_cluster_configure(st_cluster *c, const st_cluster_spec *spec, st_error *err)
{
    c->generation = atomic_load(&c->region->generation) + 1;
    for (int i = 0; i < ST_CLUSTER_MAX_ENGINES; i++) {
        st_engine_slot *e = &c->engines[i];
        if (atomic_load(&e->state) == ST_ENGINE_FREE) {
            continue;
        }
        atomic_store(&e->models_by_generation[c->generation & 3], 0);
        if (!is_listed(spec, e->address) && atomic_load(&e->state) == ST_ENGINE_USED) {
            atomic_store(&e->state, ST_ENGINE_LEAVING);
            new_version(c, e);
        }
    }
    for (size_t i = 0; i < spec->n_engines; i++) {
        st_status st = put_engine(c, &spec->engines[i], err);
        if (st != ST_OK) {
            return st;
        }
    }
    note_models_sharing(c, spec);
    atomic_store(&c->region->generation, c->generation);
    return ST_OK;
}
