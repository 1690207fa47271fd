/* Which engines hold which prefixes: layout, keys, the writer and the readers of the exact part
 * (prefix_index.h). The region is drawn in prefix_layout.h. */
#include "events/prefix_index.h"

#include <string.h>

#include <xxhash.h>

#include "base/checked.h"
#include "events/prefix_layout.h"

#define INDEX_MAGIC 0x316e697473657270u /* changes with the layout */

/* ---- layout ---- */

typedef struct index_sizes {
    size_t n_nodes, n_pairs, node_buckets, pair_buckets, n_sets;
    size_t node_table, nodes, pair_table, pairs, sets, total; /* offsets */
} index_sizes;

static size_t round_line(size_t v)
{
    return (v + PREFIX_LINE - 1) / PREFIX_LINE * PREFIX_LINE;
}

/* All numbers are bounded first, so that nothing overflows. */
static bool index_layout(size_t n_blocks, size_t n_history, index_sizes *s)
{
    if (n_blocks < 1 || n_blocks > PREFIX_MAX_BLOCKS || n_history > (size_t)1 << 32)
        return false;
    s->n_nodes = n_blocks;
    /* A block is often held by several: room for 1.19 holdings a block keeps the whole below 100
     * bytes for each. */
    s->n_pairs = n_blocks + n_blocks / 8 + n_blocks / 16;
    if (s->n_pairs > PREFIX_MAX_PAIRS)
        s->n_pairs = PREFIX_MAX_PAIRS;
    s->node_buckets = s->n_nodes / BUCKET_FILL + 1;
    s->pair_buckets = s->n_pairs / BUCKET_FILL + 1;
    s->n_sets = (n_history + SET_KEYS - 1) / SET_KEYS;
    s->node_table = round_line(sizeof(st_prefix_index));
    s->nodes = s->node_table + s->node_buckets * sizeof(prefix_bucket);
    s->pair_table = s->nodes + (s->n_nodes + 1) * sizeof(prefix_node);
    s->pairs = s->pair_table + s->pair_buckets * sizeof(prefix_bucket);
    s->sets = round_line(s->pairs + (s->n_pairs + 1) * sizeof(prefix_pair));
    s->total = s->sets + s->n_sets * sizeof(history_set);
    return true;
}

size_t st_prefix_index_bytes(size_t n_blocks, size_t n_history)
{
    index_sizes s;
    return index_layout(n_blocks, n_history, &s) ? s.total : 0;
}

st_status st_prefix_index_init(void *mem, size_t bytes, size_t n_blocks, size_t n_history,
                               st_prefix_index **out)
{
    _Static_assert(sizeof(prefix_node) == PREFIX_LINE, "a node is a cache line");
    _Static_assert(sizeof(prefix_bucket) == PREFIX_LINE, "a bucket is a cache line");
    _Static_assert(sizeof(prefix_pair) == 20, "pairs are packed");
    _Static_assert(sizeof(history_set) == 8 * PREFIX_LINE, "a set is eight cache lines");
    *out = NULL;
    index_sizes s;
    if (!index_layout(n_blocks, n_history, &s) || bytes < s.total || (uintptr_t)mem % PREFIX_LINE)
        return ST_EINVAL;
    st_prefix_index *x = mem;
    memset(x, 0, sizeof *x);
    x->bytes = s.total;
    x->node_offset = s.nodes;
    x->pair_offset = s.pairs;
    x->set_offset = s.sets;
    x->node_table = (prefix_table){s.node_table, (uint32_t)s.node_buckets};
    x->pair_table = (prefix_table){s.pair_table, (uint32_t)s.pair_buckets};
    x->n_sets = (uint32_t)s.n_sets;
    x->nodes = (prefix_free){.n = (uint32_t)s.n_nodes, .fresh = 1};
    x->pairs = (prefix_free){.n = (uint32_t)s.n_pairs, .fresh = 1};
    memset(&prefix_nodes(x)[0], 0, sizeof(prefix_node)); /* the list's sentinel: prev = next = 0 */
    prefix_table_zero(x, x->node_table);
    prefix_table_zero(x, x->pair_table);
    prefix_history_zero(x);
    atomic_thread_fence(memory_order_release);
    x->magic = INDEX_MAGIC;
    *out = x;
    return ST_OK;
}

st_prefix_index *st_prefix_index_attach(void *mem, size_t bytes)
{
    st_prefix_index *x = mem;
    if (bytes < sizeof *x || (uintptr_t)mem % PREFIX_LINE || x->magic != INDEX_MAGIC ||
        x->bytes > bytes)
        return NULL;
    return x;
}

/* ---- keys ---- */

uint64_t st_prefix_root(const char *model, size_t model_len, const char *lora, size_t lora_len,
                        const char *salt, size_t salt_len)
{
    /* Each text is hashed alone, so that no border between them can be moved. */
    uint64_t parts[3] = {XXH3_64bits(model_len ? model : "", model_len),
                         XXH3_64bits(lora_len ? lora : "", lora_len),
                         XXH3_64bits(salt_len ? salt : "", salt_len)};
    return XXH3_64bits(parts, sizeof parts);
}

static uint64_t next_key(uint64_t parent, const int32_t *tokens, size_t n)
{
    uint64_t key = XXH3_64bits(tokens, n * sizeof *tokens);
    key = prefix_mix(key ^ (parent << 31 | parent >> 33) * 0x9e3779b97f4a7c15u);
    return key ? key : 1; /* 0 marks a free node */
}

size_t st_prefix_keys(uint64_t root, const int32_t *tokens, size_t n_tokens, int32_t block_size,
                      uint64_t *keys)
{
    size_t bs = (size_t)block_size, n = block_size > 0 ? n_tokens / bs : 0;
    for (size_t i = 0; i < n; i++)
        root = keys[i] = next_key(root, tokens + i * bs, bs);
    return n;
}

/* ---- look-up ---- */

static uint32_t find_node(const st_prefix_index *x, uint64_t key)
{
    const prefix_table t = x->node_table;
    const prefix_bucket *buckets = prefix_buckets(x, t);
    prefix_node *nodes = prefix_nodes(x);
    uint32_t b = prefix_home(key, t.n), tag = prefix_entry(key, 0);
    for (int i = 0; i < BUCKET_CHAIN; i++) {
        for (int s = BUCKET_ENTRIES - 1; s >= 0; s--) {
            uint32_t e = atomic_load_explicit(&buckets[b].entries[s], memory_order_acquire);
            if ((e & ~INDEX_MASK) != tag || e == 0)
                continue;
            uint32_t node = e & INDEX_MASK;
            if (node > 0 && node <= x->nodes.n &&
                atomic_load_explicit(&nodes[node].key, memory_order_acquire) == key)
                return node;
        }
        if (atomic_load_explicit(&buckets[b].overflow, memory_order_acquire) == 0)
            break;
        b = b + 1 == t.n ? 0 : b + 1;
    }
    return 0;
}

static uint32_t find_pair(const st_prefix_index *x, int holder, uint64_t hash)
{
    const prefix_table t = x->pair_table;
    const prefix_bucket *buckets = prefix_buckets(x, t);
    const prefix_pair *pairs = prefix_pairs(x);
    uint64_t slot_hash = pair_slot_hash(holder, hash);
    uint32_t b = prefix_home(slot_hash, t.n), tag = prefix_entry(slot_hash, 0);
    for (int i = 0; i < BUCKET_CHAIN; i++) {
        for (int s = BUCKET_ENTRIES - 1; s >= 0; s--) {
            uint32_t e = atomic_load_explicit(&buckets[b].entries[s], memory_order_relaxed);
            if ((e & ~INDEX_MASK) != tag || e == 0)
                continue;
            const prefix_pair *p = &pairs[e & INDEX_MASK];
            if (pair_hash(p) == hash && pair_holder(p) == holder)
                return e & INDEX_MASK;
        }
        if (atomic_load_explicit(&buckets[b].overflow, memory_order_relaxed) == 0)
            break;
        b = b + 1 == t.n ? 0 : b + 1;
    }
    return 0;
}

/* ---- records and lists (the writer) ---- */

static void count32(_Atomic uint32_t *c, uint32_t by)
{
    /* One writer: no locked instruction is needed. */
    atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + by,
                          memory_order_relaxed);
}

static void count_forgotten(st_prefix_index *x, uint64_t n)
{
    atomic_fetch_add_explicit(&x->forgotten, n, memory_order_relaxed);
}

void prefix_link(st_prefix_index *x, uint32_t node, uint32_t after)
{
    prefix_node *n = prefix_nodes(x);
    uint32_t next = n[after].next;
    n[node].prev = after;
    n[node].next = next;
    prefix_step(); /* the way from young to old is whole at any instruction */
    n[after].next = node;
    n[next].prev = node;
}

void prefix_unlink(st_prefix_index *x, uint32_t node)
{
    prefix_node *n = prefix_nodes(x);
    n[n[node].prev].next = n[node].next;
    n[n[node].next].prev = n[node].prev;
}

static uint32_t take(prefix_free *f, const uint32_t *link, size_t stride)
{
    uint32_t r = f->stack;
    if (r) {
        memcpy(&f->stack, (const char *)link + r * stride, sizeof f->stack);
        return r;
    }
    return f->fresh <= f->n ? f->fresh++ : 0;
}

void prefix_give(prefix_free *f, uint32_t *link, uint32_t record)
{
    *link = f->stack;
    f->stack = record;
}

static void set_bit(prefix_node *n, int holder, bool on)
{
    _Atomic uint64_t *w = &n->bits[holder / 64];
    uint64_t bit = (uint64_t)1 << (holder % 64), v = atomic_load_explicit(w, memory_order_relaxed);
    atomic_store_explicit(w, on ? v | bit : v & ~bit, memory_order_release);
}

static bool has_bit(const prefix_node *n, int holder)
{
    return atomic_load_explicit(&n->bits[holder / 64], memory_order_relaxed) >> (holder % 64) & 1;
}

static void free_node(st_prefix_index *x, uint32_t node)
{
    prefix_node *n = &prefix_nodes(x)[node];
    prefix_table_del(x, x->node_table, n->key, node);
    prefix_unlink(x, node);
    atomic_store_explicit(&n->key, 0, memory_order_release);
    prefix_step();
    prefix_give(&x->nodes, &n->next, node);
    count32(&x->n_blocks, (uint32_t)-1);
}

/* Is there another pair of this holder in the node's chain? */
static bool held_otherwise(const st_prefix_index *x, const prefix_node *n, int holder)
{
    const prefix_pair *pairs = prefix_pairs(x);
    for (uint32_t p = n->shared ? n->pairs : 0; p; p = pairs[p].next)
        if (pair_holder(&pairs[p]) == holder)
            return true;
    return false;
}

/* Drops a pair, and its node with the last one. */
static void drop_pair(st_prefix_index *x, uint32_t p)
{
    prefix_pair *pairs = prefix_pairs(x), *pair = &pairs[p];
    int holder = pair_holder(pair);
    uint32_t node = pair_node(pair);
    prefix_node *n = &prefix_nodes(x)[node];
    prefix_table_del(x, x->pair_table, pair_slot_hash(holder, pair_hash(pair)), p);
    pair->ref = 0;
    prefix_step();
    if (pair->prev)
        pairs[pair->prev].next = pair->next;
    else
        n->pairs = pair->next;
    if (pair->next)
        pairs[pair->next].prev = pair->prev;
    if (!held_otherwise(x, n, holder)) {
        set_bit(n, holder, false);
        count32(&x->holder_blocks[holder], (uint32_t)-1);
    }
    prefix_give(&x->pairs, &pair->next, p);
    count32(&x->n_holdings, (uint32_t)-1);
    if (!n->pairs)
        free_node(x, node);
}

/* Forgets the block that was stored longest ago; false when that is `keep`, or there is none. */
static bool forget_oldest(st_prefix_index *x, uint32_t keep)
{
    prefix_node *nodes = prefix_nodes(x);
    uint32_t node = nodes[0].prev;
    if (!node || node == keep)
        return false;
    for (uint32_t p = nodes[node].pairs, next; p; p = next) {
        next = prefix_pairs(x)[p].next;
        drop_pair(x, p);
    }
    count_forgotten(x, 1);
    return true;
}

static uint32_t new_pair(st_prefix_index *x, uint32_t keep)
{
    uint32_t p;
    prefix_pair *pairs = prefix_pairs(x);
    if (!x->pairs.stack && x->pairs.fresh <= x->pairs.n) {
        pairs[x->pairs.fresh].ref = 0; /* recovery looks at every record that was ever taken */
        prefix_step();
    }
    while (!(p = take(&x->pairs, &pairs->next, sizeof *pairs)))
        if (!forget_oldest(x, keep))
            return 0;
    return p;
}

/* A node without pairs, findable, behind `after` in age. */
static uint32_t new_node(st_prefix_index *x, uint64_t key, uint32_t after)
{
    uint32_t node;
    prefix_node *nodes = prefix_nodes(x);
    while (!(node = take(&x->nodes, &nodes->next, sizeof *nodes)))
        if (!forget_oldest(x, after))
            return 0;
    prefix_node *n = &nodes[node];
    for (int w = 0; w < HOLDER_WORDS; w++)
        atomic_store_explicit(&n->bits[w], 0, memory_order_relaxed);
    n->pairs = n->shared = 0;
    atomic_store_explicit(&n->key, key, memory_order_release);
    if (!prefix_table_add(x, x->node_table, key, node)) {
        atomic_store_explicit(&n->key, 0, memory_order_relaxed);
        prefix_give(&x->nodes, &n->next, node);
        return 0;
    }
    prefix_link(x, node, after);
    count32(&x->n_blocks, 1);
    return node;
}

/* ---- storing ---- */

static void touch(st_prefix_index *x, uint32_t node, uint32_t after)
{
    if (node == after || prefix_nodes(x)[after].next == node)
        return;
    prefix_unlink(x, node);
    prefix_link(x, node, after);
}

/* pair becomes (holder, hash) of the node: the truth first, then what follows from it. */
static bool bind_pair(st_prefix_index *x, uint32_t p, int holder, uint64_t hash, uint32_t node)
{
    prefix_pair *pairs = prefix_pairs(x), *pair = &pairs[p];
    prefix_node *n = &prefix_nodes(x)[node];
    pair->hash[0] = (uint32_t)hash;
    pair->hash[1] = (uint32_t)(hash >> 32);
    pair->prev = 0;
    pair->next = n->pairs;
    prefix_step();
    pair->ref = (uint32_t)holder << INDEX_BITS | node;
    prefix_step();
    if (!prefix_table_add(x, x->pair_table, pair_slot_hash(holder, hash), p)) {
        pair->ref = 0;
        prefix_give(&x->pairs, &pair->next, p);
        return false;
    }
    if (pair->next)
        pairs[pair->next].prev = p;
    n->pairs = p;
    count32(&x->n_holdings, 1);
    if (has_bit(n, holder)) {
        n->shared = 1;
    } else {
        set_bit(n, holder, true);
        count32(&x->holder_blocks[holder], 1);
    }
    return true;
}

/* One block, in age behind `after` (0: the youngest). Returns its node; 0: no room. */
static uint32_t store_one(st_prefix_index *x, int holder, uint64_t hash, uint64_t key,
                          uint32_t after)
{
    prefix_node *nodes = prefix_nodes(x);
    uint32_t p = find_pair(x, holder, hash);
    if (p) {
        uint32_t node = pair_node(&prefix_pairs(x)[p]);
        if (nodes[node].key == key) {
            touch(x, node, after);
            return node;
        }
        /* The engine uses the hash for something else now. */
        drop_pair(x, p);
        if (after && !nodes[after].pairs)
            after = 0;
    }
    if (!(p = new_pair(x, after)))
        return 0;
    uint32_t node = find_node(x, key);
    if (node)
        touch(x, node, after);
    else
        node = new_node(x, key, after);
    if (!node) {
        prefix_give(&x->pairs, &prefix_pairs(x)[p].next, p);
        return 0;
    }
    if (bind_pair(x, p, holder, hash, node))
        return node;
    if (!nodes[node].pairs)
        free_node(x, node);
    return 0;
}

static void begin(st_prefix_index *x)
{
    x->busy = 1;
    prefix_step();
}

static void end(st_prefix_index *x)
{
    prefix_step();
    x->busy = 0;
}

enum { STORE_AHEAD = 16 };

/* Stores up to STORE_AHEAD blocks; the memory of all of them is asked for first. */
static size_t store_some(st_prefix_index *x, int holder, uint64_t *key, uint32_t *after,
                         const uint64_t *hashes, size_t n, const int32_t *tokens, size_t bs)
{
    uint64_t keys[STORE_AHEAD];
    for (size_t i = 0; i < n; i++) {
        keys[i] = *key = next_key(*key, tokens + i * bs, bs);
        prefix_prefetch(x, x->node_table, keys[i]);
        prefix_prefetch(x, x->pair_table, pair_slot_hash(holder, hashes[i]));
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t node = store_one(x, holder, hashes[i], keys[i], *after);
        if (!node)
            return i;
        *after = node;
    }
    return n;
}

st_status st_prefix_store(st_prefix_index *x, int holder, uint64_t root, bool has_parent,
                          uint64_t parent, const uint64_t *hashes, size_t n, const int32_t *tokens,
                          int32_t block_size)
{
    if (holder < 0 || holder >= ST_INDEX_MAX_HOLDERS || block_size < 1)
        return ST_EINVAL;
    uint64_t key = root;
    uint32_t after = 0;
    begin(x);
    if (has_parent) {
        uint32_t p = find_pair(x, holder, parent);
        if (!p) {
            end(x);
            return ST_ENOTFOUND;
        }
        uint32_t node = pair_node(&prefix_pairs(x)[p]);
        key = prefix_nodes(x)[node].key;
        touch(x, node, 0);
        after = node;
    }
    size_t bs = (size_t)block_size;
    for (size_t i = 0; i < n;) {
        size_t some = n - i < STORE_AHEAD ? n - i : STORE_AHEAD;
        size_t done = store_some(x, holder, &key, &after, hashes + i, some, tokens + i * bs, bs);
        i += done;
        if (done < some) { /* what follows could not be matched either */
            count_forgotten(x, n - i);
            break;
        }
    }
    end(x);
    return ST_OK;
}

bool st_prefix_remove(st_prefix_index *x, int holder, uint64_t hash)
{
    if (holder < 0 || holder >= ST_INDEX_MAX_HOLDERS)
        return false;
    uint32_t p = find_pair(x, holder, hash);
    if (!p)
        return false;
    begin(x);
    drop_pair(x, p);
    end(x);
    return true;
}

void st_prefix_clear(st_prefix_index *x, int holder)
{
    if (holder < 0 || holder >= ST_INDEX_MAX_HOLDERS)
        return;
    begin(x);
    const prefix_pair *pairs = prefix_pairs(x);
    for (uint32_t p = 1; p < x->pairs.fresh && x->holder_blocks[holder]; p++)
        if (pairs[p].ref && pair_holder(&pairs[p]) == holder)
            drop_pair(x, p);
    end(x);
    prefix_history_clear(x, holder);
}

/* ---- reading ---- */

/* Holders of a key, whose node most likely is `guess`. The node may be given to another key
 * meanwhile: then its key has changed by the time its holders are read, or they are those of a
 * moment ago. */
static void exact_holders(const st_prefix_index *x, uint64_t key, uint32_t guess,
                          uint64_t bits[HOLDER_WORDS])
{
    prefix_node *n = &prefix_nodes(x)[guess];
    memset(bits, 0, HOLDER_WORDS * sizeof *bits);
    if (!guess || atomic_load_explicit(&n->key, memory_order_acquire) != key) {
        n = &prefix_nodes(x)[find_node(x, key)];
        if (n == prefix_nodes(x)) /* none */
            return;
    }
    for (int w = 0; w < HOLDER_WORDS; w++)
        bits[w] = atomic_load_explicit(&n->bits[w], memory_order_acquire);
    if (atomic_load_explicit(&n->key, memory_order_acquire) != key)
        memset(bits, 0, HOLDER_WORDS * sizeof *bits);
}

/* Takes those that are not in `present` out of `alive` and notes how far they came. */
static bool narrow(uint64_t alive[HOLDER_WORDS], const uint64_t present[HOLDER_WORDS], size_t i,
                   uint32_t *depth)
{
    uint64_t any = 0;
    for (int w = 0; w < HOLDER_WORDS; w++) {
        for (uint64_t gone = alive[w] & ~present[w]; gone; gone &= gone - 1) {
            int h = w * 64 + __builtin_ctzll(gone);
            if (depth[h] < i)
                depth[h] = (uint32_t)i;
        }
        any |= alive[w] &= present[w];
    }
    return any != 0;
}

static bool any_holder(const uint64_t bits[HOLDER_WORDS])
{
    return (bits[0] | bits[1] | bits[2] | bits[3]) != 0;
}

/* The node that a key most likely is in, asked for without waiting for it; 0: none is likely. */
static uint32_t likely_node(const st_prefix_index *x, uint64_t key)
{
    const prefix_table t = x->node_table;
    const prefix_bucket *b = &prefix_buckets(x, t)[prefix_home(key, t.n)];
    uint32_t tag = prefix_entry(key, 0), found = 0;
    /* Without branches: a free entry is told by its index, and of several the last will do. */
    for (int s = 0; s < BUCKET_ENTRIES; s++) {
        uint32_t e = atomic_load_explicit(&b->entries[s], memory_order_acquire);
        found = (e ^ tag) <= INDEX_MASK && (e & INDEX_MASK) ? e & INDEX_MASK : found;
    }
    if (found > x->nodes.n)
        found = 0;
    __builtin_prefetch(&prefix_nodes(x)[found]);
    return found;
}

enum { MATCH_BUCKETS_AHEAD = 16, MATCH_NODES_AHEAD = 8 };

static void match_exact(const st_prefix_index *x, const uint64_t *keys, size_t n,
                        uint64_t alive[HOLDER_WORDS], uint32_t *depth)
{
    uint64_t present[HOLDER_WORDS];
    uint32_t likely[MATCH_NODES_AHEAD];
    for (size_t i = 0; i < n && i < MATCH_BUCKETS_AHEAD; i++)
        prefix_prefetch(x, x->node_table, keys[i]);
    for (size_t i = 0; i < n && i < MATCH_NODES_AHEAD; i++)
        likely[i] = likely_node(x, keys[i]);
    for (size_t i = 0; i < n; i++) {
        if (i + MATCH_BUCKETS_AHEAD < n)
            prefix_prefetch(x, x->node_table, keys[i + MATCH_BUCKETS_AHEAD]);
        uint32_t guess = likely[i % MATCH_NODES_AHEAD];
        if (i + MATCH_NODES_AHEAD < n)
            likely[i % MATCH_NODES_AHEAD] = likely_node(x, keys[i + MATCH_NODES_AHEAD]);
        exact_holders(x, keys[i], guess, present);
        if (!narrow(alive, present, i, depth))
            return;
    }
    memset(present, 0, sizeof present);
    narrow(alive, present, n, depth);
}

static void match_history(const st_prefix_index *x, const uint64_t *keys, size_t n,
                          uint64_t alive[HOLDER_WORDS], uint64_t now_ns, uint64_t max_age_ns,
                          uint32_t *depth)
{
    uint64_t present[HOLDER_WORDS];
    for (size_t i = 0; i < n; i++) {
        if (i + MATCH_NODES_AHEAD < n)
            prefix_history_prefetch(x, keys[i + MATCH_NODES_AHEAD]);
        prefix_history_holders(x, keys[i], now_ns, max_age_ns, present);
        if (!narrow(alive, present, i, depth))
            return;
    }
    memset(present, 0, sizeof present);
    narrow(alive, present, n, depth);
}

void st_prefix_match(const st_prefix_index *x, const uint64_t *keys, size_t n,
                     const st_holder_set *exact, const st_holder_set *history, uint64_t now_ns,
                     uint64_t max_age_ns, uint32_t *depth)
{
    memset(depth, 0, ST_INDEX_MAX_HOLDERS * sizeof *depth);
    st_holder_set alive = exact ? *exact : (st_holder_set){{0}};
    if (any_holder(alive.bits))
        match_exact(x, keys, n, alive.bits, depth);
    alive = history ? *history : (st_holder_set){{0}};
    if (any_holder(alive.bits))
        match_history(x, keys, n, alive.bits, now_ns, max_age_ns, depth);
}

void st_prefix_get_stats(const st_prefix_index *x, st_prefix_stats *out)
{
    *out = (st_prefix_stats){
        .blocks = atomic_load_explicit(&x->n_blocks, memory_order_relaxed),
        .capacity = x->nodes.n,
        .holdings = atomic_load_explicit(&x->n_holdings, memory_order_relaxed),
        .forgotten = atomic_load_explicit(&x->forgotten, memory_order_relaxed),
        .bytes = x->bytes,
    };
    for (int h = 0; h < ST_INDEX_MAX_HOLDERS; h++)
        out->holder_blocks[h] = atomic_load_explicit(&x->holder_blocks[h], memory_order_relaxed);
}
