/* The part of a prefix index that remembers where prefixes were sent, for engines that publish no
 * events (prefix_index.h). Sets of seven keys; a key slot remembers sixteen holders with the time;
 * a key that more holders have may take several slots. All processes write, nobody waits: two that
 * collide may lose a hint. */
#include "events/prefix_layout.h"

#define HISTORY_BUSY UINT64_MAX

enum {
    STAMP_SHIFT = 26, /* a unit of time is 2^26 ns = 67 ms; 24 bits of them are 13 days */
    STAMP_AHEAD = 1024,
    KEY_SLOTS = 4 /* of one key at most: 64 holders */
};

#define STAMP_MASK 0xffffffu

static history_set *set_of(const st_prefix_index *x, uint64_t key)
{
    return &prefix_sets(x)[prefix_home(key, x->n_sets)];
}

static uint32_t stamp_of(int holder, uint64_t now_ns)
{
    uint32_t t = (uint32_t)(now_ns >> STAMP_SHIFT) & STAMP_MASK;
    uint32_t stamp = (uint32_t)holder << 24 | t;
    return stamp ? stamp : 1; /* 0 means none */
}

static uint32_t stamp_age(uint32_t stamp, uint64_t now_ns)
{
    uint32_t age = ((uint32_t)(now_ns >> STAMP_SHIFT) - stamp) & STAMP_MASK;
    return age > STAMP_MASK - STAMP_AHEAD ? 0 : age; /* the caller's clock may be read earlier */
}

void prefix_history_zero(st_prefix_index *x)
{
    history_set *sets = prefix_sets(x);
    for (uint32_t s = 0; s < x->n_sets; s++) {
        for (int k = 0; k < SET_KEYS; k++) {
            atomic_store_explicit(&sets[s].keys[k], 0, memory_order_relaxed);
            for (int i = 0; i < SET_STAMPS; i++)
                atomic_store_explicit(&sets[s].stamps[k][i], 0, memory_order_relaxed);
        }
        atomic_store_explicit(&sets[s].clock, 0, memory_order_relaxed);
    }
}

void prefix_history_clear(st_prefix_index *x, int holder)
{
    /* Taken back before the sweep: a note made meanwhile sets it again. */
    if (!atomic_exchange_explicit(&x->noted[holder], 0, memory_order_acq_rel))
        return;
    history_set *sets = prefix_sets(x);
    for (uint32_t s = 0; s < x->n_sets; s++)
        for (int k = 0; k < SET_KEYS; k++)
            for (int i = 0; i < SET_STAMPS; i++) {
                uint32_t v = atomic_load_explicit(&sets[s].stamps[k][i], memory_order_relaxed);
                if (v && (int)(v >> 24) == holder)
                    atomic_compare_exchange_strong_explicit(
                        &sets[s].stamps[k][i], &v, 0, memory_order_relaxed, memory_order_relaxed);
            }
}

/* The slot that the clock's hand gives away: one that is free, else the first that was not used
 * since the hand passed it. */
static int victim(history_set *set)
{
    for (int k = 0; k < SET_KEYS; k++)
        if (atomic_load_explicit(&set->keys[k], memory_order_relaxed) == 0)
            return k;
    uint64_t clock = atomic_load_explicit(&set->clock, memory_order_relaxed);
    int hand = (int)(clock >> 56) % SET_KEYS;
    for (int i = 0; i < SET_KEYS && (clock >> hand & 1); i++) {
        clock &= ~((uint64_t)1 << hand);
        hand = (hand + 1) % SET_KEYS;
    }
    clock = (clock & 0xff) | (uint64_t)((hand + 1) % SET_KEYS) << 56;
    atomic_store_explicit(&set->clock, clock, memory_order_relaxed);
    return hand;
}

/* Gives a slot of the set to the key; -1: another process took it meanwhile. */
static int claim(history_set *set, uint64_t key)
{
    int k = victim(set);
    uint64_t old = atomic_load_explicit(&set->keys[k], memory_order_relaxed);
    if (!atomic_compare_exchange_strong_explicit(&set->keys[k], &old, HISTORY_BUSY,
                                                 memory_order_acq_rel, memory_order_relaxed))
        return -1;
    for (int i = 0; i < SET_STAMPS; i++)
        atomic_store_explicit(&set->stamps[k][i], 0, memory_order_relaxed);
    atomic_store_explicit(&set->keys[k], key, memory_order_release);
    return k;
}

/* Where the holder's stamp goes in the slots of the key: its own, a free one, or the oldest. */
static _Atomic uint32_t *place_in(history_set *set, int k, int holder, uint64_t now_ns, bool *good)
{
    _Atomic uint32_t *oldest = NULL, *free_one = NULL;
    uint32_t age = 0;
    *good = true;
    for (int i = 0; i < SET_STAMPS; i++) {
        uint32_t v = atomic_load_explicit(&set->stamps[k][i], memory_order_relaxed);
        if (v && (int)(v >> 24) == holder)
            return &set->stamps[k][i];
        if (!v && !free_one)
            free_one = &set->stamps[k][i];
        if (v && (!oldest || stamp_age(v, now_ns) > age)) {
            oldest = &set->stamps[k][i];
            age = stamp_age(v, now_ns);
        }
    }
    *good = free_one != NULL;
    return free_one ? free_one : oldest;
}

static void note_key(st_prefix_index *x, int holder, uint64_t key, uint64_t now_ns)
{
    history_set *set = set_of(x, key);
    _Atomic uint32_t *place = NULL;
    int slots = 0, slot = -1;
    bool room = false;
    for (int k = 0; k < SET_KEYS; k++) {
        if (atomic_load_explicit(&set->keys[k], memory_order_acquire) != key)
            continue;
        slots++;
        bool good;
        _Atomic uint32_t *p = place_in(set, k, holder, now_ns, &good);
        uint32_t v = atomic_load_explicit(p, memory_order_relaxed);
        bool own = good && v;
        if (own || !room) {
            place = p;
            slot = k;
        }
        room |= good;
        if (own)
            break;
    }
    if (!room && slots < KEY_SLOTS) {
        int k = claim(set, key);
        if (k >= 0) {
            slot = k;
            place = &set->stamps[k][0];
        }
    }
    if (!place)
        return;
    atomic_store_explicit(place, stamp_of(holder, now_ns), memory_order_release);
    atomic_fetch_or_explicit(&set->clock, (uint64_t)1 << slot, memory_order_relaxed);
}

void st_prefix_note(st_prefix_index *x, int holder, const uint64_t *keys, size_t n, uint64_t now_ns)
{
    if (holder < 0 || holder >= ST_INDEX_MAX_HOLDERS || !x->n_sets || !n)
        return;
    if (!atomic_load_explicit(&x->noted[holder], memory_order_relaxed))
        atomic_store_explicit(&x->noted[holder], 1, memory_order_release);
    for (size_t i = 0; i < n; i++) {
        if (i + 4 < n)
            prefix_history_prefetch(x, keys[i + 4]);
        note_key(x, holder, keys[i], now_ns);
    }
}

void prefix_history_prefetch(const st_prefix_index *x, uint64_t key)
{
    if (x->n_sets)
        __builtin_prefetch(set_of(x, key));
}

void prefix_history_holders(const st_prefix_index *x, uint64_t key, uint64_t now_ns,
                            uint64_t max_age_ns, uint64_t bits[HOLDER_WORDS])
{
    for (int w = 0; w < HOLDER_WORDS; w++)
        bits[w] = 0;
    if (!x->n_sets)
        return;
    history_set *set = set_of(x, key);
    uint64_t max_age = max_age_ns >> STAMP_SHIFT;
    for (int k = 0; k < SET_KEYS; k++) {
        if (atomic_load_explicit(&set->keys[k], memory_order_acquire) != key)
            continue;
        for (int i = 0; i < SET_STAMPS; i++) {
            uint32_t v = atomic_load_explicit(&set->stamps[k][i], memory_order_acquire);
            if (v && stamp_age(v, now_ns) <= max_age)
                bits[v >> 30] |= (uint64_t)1 << (v >> 24 & 63);
        }
    }
}
