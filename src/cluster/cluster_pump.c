/* The pump: chooses among those who wait as long as there is room, and wakes their owners.
 *
 * One process pumps at a time; others leave it a flag and go on, so nobody ever waits here. The
 * room of who was chosen and has not claimed yet is kept for it by counting what it will add.
 * Somebody who starves and does not fit keeps one engine per part free of others until it does. */
#include "cluster/cluster_impl.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

typedef struct candidate {
    uint32_t place;
    uint64_t word;
    bool sour; /* its owner found no room, and nothing has become free since */
    st_place_body body;
} candidate;

struct st_pump {
    int32_t n_engines, n_view, n_waiting;
    st_route_engine engines[ST_CLUSTER_MAX_ENGINES]; /* with what is kept for chosen ones */
    st_route_engine view[ST_CLUSTER_MAX_ENGINES];    /* as one candidate sees them */
    int16_t index_of[ST_CLUSTER_MAX_ENGINES];        /* engine id -> engines[], -1 */
    uint64_t wake[ST_CLUSTER_MAX_WORKERS / 64];
    st_route_waiting *keys;
    candidate *candidates; /* of the same index */
};

st_status st_pump_new(uint32_t queue_size, struct st_pump **out)
{
    struct st_pump *p = calloc(1, sizeof *p);
    if (!p) {
        return ST_ENOMEM;
    }
    p->keys = calloc(queue_size, sizeof *p->keys);
    p->candidates = calloc(queue_size, sizeof *p->candidates);
    if (!p->keys || !p->candidates) {
        st_pump_free(p);
        return ST_ENOMEM;
    }
    *out = p;
    return ST_OK;
}

void st_pump_free(struct st_pump *p)
{
    if (p) {
        free(p->keys);
        free(p->candidates);
        free(p);
    }
}

/* ---- engines ---- */

static void see_engines(const st_cluster *c, struct st_pump *p)
{
    uint32_t end = atomic_load(&c->region->engines_end);
    p->n_engines = 0;
    for (uint32_t i = 0; i < end; i++) {
        p->index_of[i] = -1;
        if (atomic_load(&c->engines[i].state) != ST_ENGINE_FREE) {
            p->index_of[i] = (int16_t)p->n_engines;
            st_cluster_engine_view(c, (int32_t)i, &p->engines[p->n_engines++]);
        }
    }
    for (uint32_t i = end; i < ST_CLUSTER_MAX_ENGINES; i++) {
        p->index_of[i] = -1;
    }
}

/* The engines as a candidate sees them: of its model, less those it has tried. */
static void see_for(const st_cluster *c, struct st_pump *p, const st_place *place,
                    const st_place_body *b)
{
    p->n_view = 0;
    for (int32_t i = 0; i < p->n_engines; i++) {
        int32_t id = p->engines[i].id;
        uint64_t models = atomic_load_explicit(
            &c->engines[id].models_by_generation[place->generation], memory_order_relaxed);
        if (!(models >> place->model & 1)) {
            continue;
        }
        st_route_engine *e = &p->view[p->n_view++];
        *e = p->engines[i];
        e->excluded = e->excluded || (b->excluded[id / 64] >> id % 64 & 1);
        e->matched_tokens = id == b->deepest ? b->deepest_tokens : 0;
        if (e->role == ST_ROLE_PREFILL && b->request.prompt_tokens > b->key.tokens) {
            /* Which of them holds it is not noted: take the best. Its owner looks exactly. */
            e->matched_tokens = (uint32_t)(b->request.prompt_tokens - b->key.tokens);
        }
    }
}

static void add_load(st_load *l, const st_load *d)
{
    l->requests += d->requests;
    l->prefill_requests += d->prefill_requests;
    l->prefill_tokens += d->prefill_tokens;
    l->decode_requests += d->decode_requests;
    l->decode_tokens += d->decode_tokens;
}

/* Counts what a chosen one is going to claim. */
static void keep_room(struct st_pump *p, const st_place *place, const st_place_body *b)
{
    int at_prefill = place->prefill >= 0 ? p->index_of[place->prefill] : -1;
    int at_decode = place->decode >= 0 ? p->index_of[place->decode] : -1;
    st_route_engine prefill = {0}, decode = {0};
    if (at_prefill >= 0) {
        prefill = p->engines[at_prefill];
        prefill.matched_tokens = (uint32_t)(b->request.prompt_tokens - b->key.tokens);
    }
    if (at_decode >= 0) {
        decode = p->engines[at_decode];
        decode.matched_tokens = place->decode == b->deepest ? b->deepest_tokens : 0;
    }
    bool whole = place->prefill < 0 && place->role != ST_ROLE_DECODE;
    st_load more_prefill = {0}, more_decode = {0};
    st_route_loads(&b->request, whole ? NULL : &prefill, at_decode >= 0 ? &decode : NULL,
                   &more_prefill, &more_decode);
    if (at_prefill >= 0) {
        add_load(&p->engines[at_prefill].load, &more_prefill);
    }
    if (at_decode >= 0) {
        add_load(&p->engines[at_decode].load, &more_decode);
    }
}

/* ---- who waits ---- */

static void see_place(st_cluster *c, struct st_pump *p, uint32_t i, uint64_t epoch, uint64_t now_ns,
                      bool took_over)
{
    candidate *k = &p->candidates[p->n_waiting];
    uint64_t word;
    st_place place;
    do {
        word = atomic_load(&c->places[i]);
        place = st_place_of(word);
        if (place.state < ST_PLACE_WAITING) {
            return;
        }
    } while (!st_place_read(c, i, word, &k->body));
    if (place.state != ST_PLACE_WAITING) {
        keep_room(p, &place, &k->body);
        if (took_over && place.state == ST_PLACE_CHOSEN) {
            p->wake[place.row / 64] |= UINT64_C(1) << place.row % 64;
        }
        return;
    }
    if (k->body.deadline_ns && k->body.deadline_ns < now_ns) {
        return; /* its owner is about to refuse it */
    }
    k->place = i;
    k->word = word;
    k->sour = atomic_load_explicit(&c->entries[i].failed_epoch, memory_order_relaxed) == epoch;
    p->keys[p->n_waiting++] = k->body.key;
}

static void see_queue(st_cluster *c, struct st_pump *p, uint64_t now_ns, bool took_over)
{
    uint64_t epoch = atomic_load(&c->region->room_epoch);
    p->n_waiting = 0;
    for (uint32_t i = 0; i < (c->region->queue_size + 63) / 64; i++) {
        uint64_t bits = atomic_load(&c->place_map[i]);
        for (; bits; bits &= bits - 1) {
            see_place(c, p, i * 64 + (uint32_t)__builtin_ctzll(bits), epoch, now_ns, took_over);
        }
    }
}

static void drop(struct st_pump *p, int32_t i)
{
    p->n_waiting--;
    p->keys[i] = p->keys[p->n_waiting];
    p->candidates[i] = p->candidates[p->n_waiting];
}

/* ---- choosing ---- */

static st_route_answer plan(const st_cluster *c, struct st_pump *p, st_place *place,
                            const st_place_body *b)
{
    see_for(c, p, place, b);
    const st_route_request *r = &b->request;
    place->prefill = place->decode = -1;
    if (place->role == ST_ROLE_BOTH) {
        st_route_plan got;
        st_route_answer a = st_route_plan_request(&c->policy, r, p->view, p->n_view, &got);
        place->prefill = (int16_t)got.prefill;
        place->decode = (int16_t)got.decode;
        return a;
    }
    bool full;
    bool prefill = place->role == ST_ROLE_PREFILL;
    int32_t i = prefill ? st_route_prefill(&c->policy, r, p->view, p->n_view, &full)
                        : st_route_decode(&c->policy, r, p->view, p->n_view, &full);
    if (i < 0) {
        return full ? ST_ROUTE_WAIT : ST_ROUTE_NOBODY;
    }
    *(prefill ? &place->prefill : &place->decode) = (int16_t)p->view[i].id;
    return ST_ROUTE_GO;
}

/* Keeps others from the engine that will be free for it first. The view is the candidate's. */
static void reserve(struct st_pump *p, int role)
{
    const st_route_engine *best = NULL;
    int64_t least = 0;
    for (int32_t i = 0; i < p->n_view; i++) {
        const st_route_engine *e = &p->view[i];
        if (!(e->role & role) || e->health != ST_HEALTH_UP || e->excluded) {
            continue;
        }
        int64_t load = role == ST_ROLE_PREFILL ? e->load.prefill_tokens : e->load.decode_tokens;
        if (!best || load < least) {
            best = e;
            least = load;
        }
    }
    if (best) {
        p->engines[p->index_of[best->id]].excluded = true;
    }
}

/* Little enough to compute that it goes to decode alone: fails for other reasons than the rest. */
static bool is_short(const st_cluster *c, const st_place_body *b)
{
    return b->request.prompt_tokens - (int64_t)b->deepest_tokens < c->policy.skip_prefill_tokens;
}

/* Where one finds no room, those like it who need as much or more find none either. */
static void drop_like(const st_cluster *c, struct st_pump *p, const st_place *place,
                      const st_place_body *b)
{
    for (int32_t i = p->n_waiting - 1; i >= 0; i--) {
        const st_place_body *o = &p->candidates[i].body;
        st_place other = st_place_of(p->candidates[i].word);
        if (other.model == place->model && other.generation == place->generation &&
            other.role == place->role && o->key.priority == b->key.priority &&
            o->request.disaggregate == b->request.disaggregate &&
            o->request.prompt_tokens >= b->request.prompt_tokens &&
            o->key.tokens >= b->key.tokens && is_short(c, o) == is_short(c, b)) {
            drop(p, i);
        }
    }
}

static void no_room(const st_cluster *c, struct st_pump *p, int32_t i, uint64_t now_ns)
{
    candidate k = p->candidates[i];
    st_place place = st_place_of(k.word);
    static const uint64_t none[ST_CLUSTER_MAX_ENGINES / 64];
    bool starved = st_route_starved(&c->policy, &k.body.key, now_ns);
    drop(p, i);
    if (starved) {
        see_for(c, p, &place, &k.body);
        if (place.role & ST_ROLE_PREFILL) {
            reserve(p, ST_ROLE_PREFILL);
        }
        if (place.role & ST_ROLE_DECODE) {
            reserve(p, ST_ROLE_DECODE);
        }
    } else if (!k.sour && memcmp(k.body.excluded, none, sizeof none) == 0) {
        drop_like(c, p, &place, &k.body);
    }
}

static void choose(st_cluster *c, struct st_pump *p, uint64_t now_ns)
{
    while (p->n_waiting > 0) {
        int32_t i = st_route_next(&c->policy, p->keys, p->n_waiting, now_ns);
        candidate *k = &p->candidates[i];
        st_place place = st_place_of(k->word);
        st_route_answer a = k->sour ? ST_ROUTE_WAIT : plan(c, p, &place, &k->body);
        if (a == ST_ROUTE_WAIT) {
            no_room(c, p, i, now_ns);
            continue;
        }
        if (a == ST_ROUTE_GO) {
            place.state = ST_PLACE_CHOSEN;
            if (atomic_compare_exchange_strong(&c->places[k->place], &k->word,
                                               st_place_word(place))) {
                keep_room(p, &place, &k->body);
                p->wake[place.row / 64] |= UINT64_C(1) << place.row % 64;
            }
        }
        drop(p, i);
    }
}

/* True when an owner does not listen any more: it has died. */
static bool wake_owners(st_cluster *c, struct st_pump *p, bool took_over)
{
    bool somebody_died = false;
    for (int row = 0; row < ST_CLUSTER_MAX_WORKERS; row++) {
        if (p->wake[row / 64] >> row % 64 & 1) {
            somebody_died = !st_row_wake(c, row, took_over) || somebody_died;
        }
    }
    return somebody_died;
}

/* ---- whose turn ---- */

/* False: somebody alive pumps, and will see the flag that was set before this. */
static bool take_pump(st_cluster *c, uint64_t mine, bool thorough, bool *took_over)
{
    uint64_t holder = 0;
    if (atomic_compare_exchange_strong(&c->region->pump_holder, &holder, mine)) {
        return true;
    }
    if (thorough ? st_identity_alive(holder >> 8) : st_identity_seems_alive(holder >> 8)) {
        return false;
    }
    if (!atomic_compare_exchange_strong(&c->region->pump_holder, &holder, mine)) {
        return false; /* taken by another: who saw the flag, too */
    }
    *took_over = true;
    return true;
}

void st_cluster_pump_with(st_cluster *c, uint64_t now_ns, bool thorough)
{
    if (!st_cluster_somebody_waits(c)) {
        return;
    }
    uint64_t mine = st_cluster_self(c) << 8 | 1;
    bool somebody_died = false, took_over = false;
    atomic_store(&c->region->pump_wanted, 1);
    while (atomic_load(&c->region->pump_wanted) && take_pump(c, mine, thorough, &took_over)) {
        while (atomic_exchange(&c->region->pump_wanted, 0) || took_over) {
            struct st_pump *p = c->pump;
            memset(p->wake, 0, sizeof p->wake);
            see_engines(c, p);
            see_queue(c, p, now_ns, took_over);
            choose(c, p, now_ns);
            somebody_died = wake_owners(c, p, took_over) || somebody_died;
            took_over = false;
        }
        atomic_store(&c->region->pump_holder, 0);
    }
    if (somebody_died) {
        st_cluster_reap(c); /* pumps again when it found one */
    }
}

void st_cluster_pump(st_cluster *c, uint64_t now_ns)
{
    st_cluster_pump_with(c, now_ns, false);
}

void st_cluster_made_room(st_cluster *c, uint64_t now_ns)
{
    if (st_cluster_somebody_waits(c)) {
        atomic_fetch_add(&c->region->room_epoch, 1);
        st_cluster_pump_with(c, now_ns, false);
    }
}
