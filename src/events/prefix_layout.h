/* The region of a prefix index (prefix_index.h): what lies where, shared by prefix_index.c,
 * prefix_recover.c and prefix_history.c.
 *
 *   header | node buckets | nodes | pair buckets | pairs | history sets
 *
 *   bucket   64 bytes: 15 entries of (8 bits of the hash, 24 bits of index), and how many entries
 *            that belonged here went on to a later bucket. Entries never move, so a reader
 *            without locks cannot miss one that stays.
 *   node     64 bytes: a distinct block. In the list by age (sentinel: node 0, youngest next) and
 *            head of the chain of its pairs.
 *   pair     (holder, engine's hash) -> node. Pairs, and the keys of the nodes that they name, are
 *            the truth: all else can be made again from them (st_prefix_recover). */
#ifndef ST_EVENTS_PREFIX_LAYOUT_H
#define ST_EVENTS_PREFIX_LAYOUT_H

#include <stdatomic.h>

#include "events/prefix_index.h"

enum {
    PREFIX_LINE = 64,
    BUCKET_ENTRIES = 15,
    BUCKET_FILL = 12,  /* entries a bucket on average when full */
    BUCKET_CHAIN = 64, /* buckets that one search looks at, at most */
    INDEX_BITS = 24,   /* of an entry; the rest are bits of the hash */
    HOLDER_WORDS = ST_INDEX_MAX_HOLDERS / 64,
    SET_KEYS = 7,    /* keys of a history set */
    SET_STAMPS = 16, /* holders a key slot remembers */
};

#define PREFIX_MAX_BLOCKS ((1u << INDEX_BITS) - 2)
#define PREFIX_MAX_PAIRS  ((1u << INDEX_BITS) - 2)
#define INDEX_MASK        ((1u << INDEX_BITS) - 1)

typedef struct prefix_bucket {
    _Atomic uint32_t entries[BUCKET_ENTRIES]; /* 0: free */
    _Atomic uint32_t overflow;
} prefix_bucket;

typedef struct prefix_node {
    _Atomic uint64_t key; /* 0: free */
    _Atomic uint64_t bits[HOLDER_WORDS];
    uint32_t pairs;      /* head of its chain; 0: none */
    uint32_t prev, next; /* by age; next is also the link of free nodes */
    uint32_t shared;     /* some holder has had it under two hashes at once */
    uint32_t mark;       /* scratch of recovery */
    uint32_t unused;
} prefix_node;

typedef struct prefix_pair {
    uint32_t hash[2];    /* low, high: 20 bytes without padding */
    uint32_t ref;        /* holder << 24 | node; 0: free */
    uint32_t prev, next; /* in the node's chain; next is also the link of free pairs */
} prefix_pair;

/* A table of buckets. */
typedef struct prefix_table {
    uint64_t offset; /* from the header */
    uint32_t n;      /* buckets */
} prefix_table;

/* Free records of an array: a stack of used ones, then those never used yet. */
typedef struct prefix_free {
    uint32_t n;     /* records 1..n */
    uint32_t fresh; /* the first never used */
    uint32_t stack; /* 0: empty */
} prefix_free;

typedef struct history_set {
    _Atomic uint64_t keys[SET_KEYS]; /* 0: free, HISTORY_BUSY: being given away */
    _Atomic uint64_t
        clock; /* a bit per slot: used since the hand passed; the hand in the top byte */
    _Atomic uint32_t stamps[SET_KEYS][SET_STAMPS]; /* holder << 24 | time; 0: none */
} history_set;

struct st_prefix_index {
    uint64_t magic, bytes;
    uint64_t node_offset, pair_offset, set_offset;
    prefix_table node_table, pair_table;
    uint32_t n_sets;

    /* The writer's. */
    uint32_t busy; /* inside an operation: recovery is needed when its writer died */
    prefix_free nodes, pairs;
    _Atomic uint32_t n_blocks, n_holdings;
    _Atomic uint64_t forgotten;
    _Atomic uint32_t holder_blocks[ST_INDEX_MAX_HOLDERS];
    _Atomic uint8_t noted[ST_INDEX_MAX_HOLDERS]; /* has stamps in the history */
};

static inline prefix_node *prefix_nodes(const st_prefix_index *x)
{
    return (prefix_node *)((char *)x + x->node_offset);
}

static inline prefix_pair *prefix_pairs(const st_prefix_index *x)
{
    return (prefix_pair *)((char *)x + x->pair_offset);
}

static inline prefix_bucket *prefix_buckets(const st_prefix_index *x, prefix_table t)
{
    return (prefix_bucket *)((char *)x + t.offset);
}

static inline history_set *prefix_sets(const st_prefix_index *x)
{
    return (history_set *)((char *)x + x->set_offset);
}

/* Stores before it stay before those after it. Against a crash of this process the program's
 * order is enough: what was executed is in memory. */
static inline void prefix_step(void)
{
    atomic_signal_fence(memory_order_seq_cst);
}

static inline uint64_t prefix_mix(uint64_t v)
{
    v ^= v >> 32;
    v *= 0xd6e8feb86659fd93u;
    v ^= v >> 32;
    v *= 0xd6e8feb86659fd93u;
    return v ^ v >> 32;
}

/* The top bits choose the bucket, the low ones tag the entry. */
static inline uint32_t prefix_home(uint64_t hash, uint32_t n)
{
    return (uint32_t)(((unsigned __int128)hash * n) >> 64);
}

static inline uint32_t prefix_entry(uint64_t hash, uint32_t index)
{
    return (uint32_t)hash << INDEX_BITS | index;
}

static inline uint64_t pair_hash(const prefix_pair *p)
{
    return (uint64_t)p->hash[1] << 32 | p->hash[0];
}

static inline uint64_t pair_slot_hash(int holder, uint64_t hash)
{
    return prefix_mix(hash + (uint64_t)holder * 0x9e3779b97f4a7c15u);
}

static inline int pair_holder(const prefix_pair *p)
{
    return (int)(p->ref >> INDEX_BITS);
}

static inline uint32_t pair_node(const prefix_pair *p)
{
    return p->ref & INDEX_MASK;
}

/* prefix_table.c. false: no room within BUCKET_CHAIN. */
ST_NODISCARD bool prefix_table_add(const st_prefix_index *x, prefix_table t, uint64_t hash,
                                   uint32_t index);
/* The entry must be there. */
void prefix_table_del(const st_prefix_index *x, prefix_table t, uint64_t hash, uint32_t index);
void prefix_table_zero(const st_prefix_index *x, prefix_table t);
static inline void prefix_prefetch(const st_prefix_index *x, prefix_table t, uint64_t hash)
{
    __builtin_prefetch(&prefix_buckets(x, t)[prefix_home(hash, t.n)]);
}

/* prefix_index.c, for recovery. */
void prefix_link(st_prefix_index *x, uint32_t node, uint32_t after);
void prefix_unlink(st_prefix_index *x, uint32_t node);
void prefix_give(prefix_free *f, uint32_t *link, uint32_t record);

/* prefix_history.c */
void prefix_history_zero(st_prefix_index *x);
void prefix_history_clear(st_prefix_index *x, int holder);
/* Which holders have the key in the history, younger than max_age. */
void prefix_history_holders(const st_prefix_index *x, uint64_t key, uint64_t now_ns,
                            uint64_t max_age_ns, uint64_t bits[HOLDER_WORDS]);
void prefix_history_prefetch(const st_prefix_index *x, uint64_t key);

#endif
