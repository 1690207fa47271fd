/* The bounded queue: places, taken and given back by their owners, one word each.
 *
 * No wake-up is lost: a newcomer first shows its place (map bit, WAITING) and then looks for room;
 * who frees room first frees it and then looks at the map. All of these are sequentially
 * consistent, so at least one of the two sees the other. */
#include "cluster/cluster_impl.h"

#include <string.h>

#include "base/clock.h"

bool st_cluster_somebody_waits(const st_cluster *c)
{
    for (uint32_t i = 0; i < (c->region->queue_size + 63) / 64; i++) {
        if (atomic_load(&c->place_map[i])) {
            return true;
        }
    }
    return false;
}

/* ---- bodies ---- */

static void write_body(st_queue_entry *q, const st_place_body *b)
{
    uint64_t words[ST_BODY_WORDS];
    memcpy(words, b, sizeof words);
    for (int i = 0; i < ST_BODY_WORDS; i++) {
        /* Release: whoever reads one of these sees that the place is FILLING. */
        atomic_store_explicit(&q->body[i], words[i], memory_order_release);
    }
}

bool st_place_read(const st_cluster *c, uint32_t place, uint64_t word, st_place_body *out)
{
    const st_queue_entry *q = &c->entries[place];
    uint64_t words[ST_BODY_WORDS];
    for (int i = 0; i < ST_BODY_WORDS; i++) {
        /* Acquire keeps the check below after it. */
        words[i] = atomic_load_explicit(&q->body[i], memory_order_acquire);
    }
    memcpy(out, words, sizeof words);
    return atomic_load(&c->places[place]) == word;
}

void st_wait_from_view(st_wait *w, uint32_t model, uint8_t role, const st_route_request *r,
                       const st_route_engine *view, int32_t n, int64_t priority, uint64_t since_ns,
                       uint64_t deadline_ns)
{
    int64_t left = r->prompt_tokens;
    *w = (st_wait){
        .model = model, .role = role, .request = *r, .deadline_ns = deadline_ns, .deepest = -1};
    for (int32_t i = 0; i < n; i++) {
        const st_route_engine *e = &view[i];
        if (e->excluded) {
            w->excluded[e->id / 64] |= UINT64_C(1) << e->id % 64;
            continue;
        }
        int64_t uncached = r->prompt_tokens - (int64_t)e->matched_tokens;
        left = uncached < left ? uncached : left;
        if ((e->role & ST_ROLE_DECODE) && e->matched_tokens > w->deepest_tokens) {
            w->deepest = e->id;
            w->deepest_tokens = e->matched_tokens;
        }
    }
    w->key = (st_route_waiting){
        .tokens = left > 0 ? left : 0, .since_ns = since_ns, .priority = priority};
}

/* ---- places ---- */

/* A free place for the row: FILLING. False: all are taken. */
static bool take_place(st_cluster *c, int row, uint32_t *place, uint64_t *word)
{
    for (uint32_t i = 0; i < c->region->queue_size; i++) {
        uint64_t w = atomic_load_explicit(&c->places[i], memory_order_relaxed);
        st_place p = st_place_of(w);
        if (p.state != ST_PLACE_FREE) {
            continue;
        }
        st_place mine = {.state = ST_PLACE_FILLING,
                         .row = (uint8_t)row,
                         .prefill = -1,
                         .decode = -1,
                         .used = p.used + 1};
        *word = st_place_word(mine);
        if (atomic_compare_exchange_strong(&c->places[i], &w, *word)) {
            *place = i;
            return true;
        }
    }
    return false;
}

/* From whatever state it is in: the choice of it may come at the same moment. */
static st_place free_place(st_cluster *c, uint32_t place)
{
    atomic_fetch_and(&c->place_map[place / 64], ~(UINT64_C(1) << place % 64));
    uint64_t w = atomic_load(&c->places[place]);
    st_place p;
    st_place free_one;
    do {
        p = st_place_of(w);
        free_one = (st_place){.state = ST_PLACE_FREE, .prefill = -1, .decode = -1, .used = p.used};
    } while (!atomic_compare_exchange_weak(&c->places[place], &w, st_place_word(free_one)));
    return p;
}

void st_queue_free_row(st_cluster *c, int row)
{
    for (uint32_t i = 0; i < c->region->queue_size; i++) {
        st_place p = st_place_of(atomic_load(&c->places[i]));
        if (p.state != ST_PLACE_FREE && p.row == row) {
            (void)free_place(c, i);
        }
    }
}

/* The body must hold what the pump plans with, also from callers that gave only the key. */
static st_place_body body_of(const st_wait *w)
{
    st_place_body b = {.request = w->request,
                       .key = w->key,
                       .deadline_ns = w->deadline_ns,
                       .deepest = w->deepest,
                       .deepest_tokens = w->deepest_tokens};
    memcpy(b.excluded, w->excluded, sizeof b.excluded);
    if (b.request.prompt_tokens < b.key.tokens) {
        b.request.prompt_tokens = b.key.tokens;
    }
    return b;
}

st_status st_cluster_wait(st_cluster *c, int row, const st_wait *w, void *user, uint32_t *ticket,
                          uint64_t now_ns)
{
    uint32_t place;
    uint64_t word;
    if (!take_place(c, row, &place, &word)) {
        return ST_EFULL;
    }
    st_queue_entry *q = &c->entries[place];
    st_place_body body = body_of(w);
    write_body(q, &body);
    atomic_store_explicit(&q->user, (uint64_t)(uintptr_t)user, memory_order_relaxed);
    atomic_store_explicit(&q->failed_epoch, UINT64_MAX, memory_order_relaxed);
    st_place p = st_place_of(word);
    p.state = ST_PLACE_WAITING;
    p.model = w->model & 63;
    p.role = w->role & 3;
    p.generation = c->generation & 3;
    /* The bit first: whoever sees the place wait finds it. */
    atomic_fetch_or(&c->place_map[place / 64], UINT64_C(1) << place % 64);
    atomic_store(&c->places[place], st_place_word(p));
    *ticket = place;
    st_cluster_pump(c, now_ns);
    return ST_OK;
}

static bool is_mine(const st_cluster *c, int row, uint32_t ticket)
{
    if (ticket >= c->region->queue_size) {
        return false;
    }
    st_place p = st_place_of(atomic_load(&c->places[ticket]));
    return p.state != ST_PLACE_FREE && p.row == row;
}

void st_cluster_wait_end(st_cluster *c, int row, uint32_t ticket, uint64_t now_ns)
{
    if (!is_mine(c, row, ticket)) {
        return;
    }
    (void)free_place(c, ticket);
    /* The room that was kept for it, or that it held back from others as one who starves. */
    st_cluster_pump(c, now_ns);
}

void st_cluster_wait_again(st_cluster *c, int row, uint32_t ticket)
{
    if (!is_mine(c, row, ticket)) {
        return;
    }
    st_queue_entry *q = &c->entries[ticket];
    uint64_t w = atomic_load(&c->places[ticket]);
    st_place p = st_place_of(w);
    if (p.state != ST_PLACE_TOLD) {
        return; /* chosen anew meanwhile, or never: it waits already */
    }
    uint64_t told = atomic_load_explicit(&q->told_epoch, memory_order_relaxed);
    atomic_store_explicit(&q->failed_epoch, told, memory_order_relaxed);
    p.state = ST_PLACE_WAITING;
    p.prefill = p.decode = -1;
    atomic_store(&c->places[ticket], st_place_word(p));
    st_cluster_pump(c, st_now_ns()); /* others may use what was kept for it */
}

bool st_cluster_woken(st_cluster *c, int row, uint32_t *ticket, void **user)
{
    /* Before looking: who chooses one of ours from now on sends a datagram. */
    atomic_exchange(&c->rows[row].wake_pending, 0);
    for (uint32_t i = 0; i < (c->region->queue_size + 63) / 64; i++) {
        uint64_t bits = atomic_load(&c->place_map[i]);
        for (; bits; bits &= bits - 1) {
            uint32_t place = i * 64 + (uint32_t)__builtin_ctzll(bits);
            uint64_t w = atomic_load(&c->places[place]);
            st_place p = st_place_of(w);
            if (p.state != ST_PLACE_CHOSEN || p.row != row) {
                continue;
            }
            /* Before its owner's view: what becomes free later makes it choosable again. */
            uint64_t epoch = atomic_load(&c->region->room_epoch);
            atomic_store_explicit(&c->entries[place].told_epoch, epoch, memory_order_relaxed);
            p.state = ST_PLACE_TOLD;
            atomic_store(&c->places[place], st_place_word(p));
            *ticket = place;
            *user = (void *)(uintptr_t)atomic_load_explicit(&c->entries[place].user,
                                                            memory_order_relaxed);
            return true;
        }
    }
    return false;
}

bool st_cluster_must_wait(const st_cluster *c, uint32_t model, uint8_t role)
{
    uint64_t sharing = c->models_sharing[model & 63];
    for (uint32_t i = 0; i < (c->region->queue_size + 63) / 64; i++) {
        uint64_t bits = atomic_load(&c->place_map[i]);
        for (; bits; bits &= bits - 1) {
            uint32_t place = i * 64 + (uint32_t)__builtin_ctzll(bits);
            st_place p = st_place_of(atomic_load(&c->places[place]));
            /* Models are numbered anew by each configuration: of another one we cannot tell. */
            bool same_engines = p.generation != (c->generation & 3) || (sharing >> p.model & 1);
            if (p.state >= ST_PLACE_WAITING && (p.role & role) && same_engines) {
                return true;
            }
        }
    }
    return false;
}
