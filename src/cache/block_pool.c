/* The book-keeping of KV blocks (see starling/kv_cache.h). Everything is O(1) a block and nothing
 * is allocated after st_block_pool_new:
 *
 *   blocks  [n]  reference count, hash, links of the free list
 *   free         circular list through the sentinel blocks[n] of all blocks with no reference:
 *                head -> without content ... -> cached, least recently released first -> tail
 *   slots   [2^k >= 2n]  open addressing with linear probing: block + 1 of a cached hash, 0 empty
 */
#include "starling/kv_cache.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

typedef struct block {
    st_block_hash hash; /* zero: not findable */
    int32_t refs;
    int32_t prev, next; /* in the free list, when refs == 0 */
} block;

struct st_block_pool {
    int32_t n, block_size;
    int32_t n_free, n_cached;
    bool caching;
    uint32_t mask; /* slots - 1 */
    st_block_events events;
    block *blocks;   /* [n + 1] */
    uint32_t *slots; /* [mask + 1] */
};

static bool is_zero(st_block_hash h)
{
    return (h.lo | h.hi) == 0;
}

static bool equal(st_block_hash a, st_block_hash b)
{
    return a.lo == b.lo && a.hi == b.hi;
}

st_status st_block_pool_new(int32_t n_blocks, int32_t block_size, bool caching,
                            const st_block_events *events, st_block_pool **out, st_error *err)
{
    *out = NULL;
    if (n_blocks < 1 || n_blocks > 1 << 29 || block_size < 1)
        return st_fail(err, ST_EINVAL,
                       "block pool: %d blocks of %d rows: expected 1 to 536870912 blocks and at "
                       "least 1 row",
                       n_blocks, block_size);
    uint32_t n_slots = 16;
    while (n_slots < 2u * (uint32_t)n_blocks)
        n_slots *= 2;
    st_block_pool *p = calloc(1, sizeof *p);
    block *blocks = calloc((size_t)n_blocks + 1, sizeof *blocks);
    uint32_t *slots = calloc(n_slots, sizeof *slots);
    if (!p || !blocks || !slots) {
        free(p);
        free(blocks);
        free(slots);
        return st_fail(err, ST_ENOMEM, "block pool: out of memory for %d blocks", n_blocks);
    }
    *p = (st_block_pool){.n = n_blocks,
                         .block_size = block_size,
                         .n_free = n_blocks,
                         .caching = caching,
                         .mask = n_slots - 1,
                         .blocks = blocks,
                         .slots = slots};
    if (events)
        p->events = *events;
    for (int32_t i = 0; i <= n_blocks; i++) {
        blocks[i].prev = i == 0 ? n_blocks : i - 1;
        blocks[i].next = i == n_blocks ? 0 : i + 1;
    }
    *out = p;
    return ST_OK;
}

void st_block_pool_free(st_block_pool *p)
{
    if (!p)
        return;
    free(p->blocks);
    free(p->slots);
    free(p);
}

int32_t st_block_pool_available(const st_block_pool *p)
{
    return p->n_free;
}

int32_t st_block_pool_in_use(const st_block_pool *p)
{
    return p->n - p->n_free;
}

int32_t st_block_pool_cached(const st_block_pool *p)
{
    return p->n_cached;
}

/* ---- hash table ---- */

/* The slot that holds hash, or the empty slot where the probe ended. */
static uint32_t find_slot(const st_block_pool *p, st_block_hash hash)
{
    uint32_t i = (uint32_t)hash.lo & p->mask;
    while (p->slots[i] != 0 && !equal(p->blocks[p->slots[i] - 1].hash, hash))
        i = (i + 1) & p->mask;
    return i;
}

/* Backward-shift deletion: entries after the hole move up when their home slot allows it, so that
 * probes need no tombstones and never grow longer with age. */
static void erase_slot(st_block_pool *p, uint32_t hole)
{
    uint32_t i = hole;
    for (;;) {
        i = (i + 1) & p->mask;
        if (p->slots[i] == 0)
            break;
        uint32_t home = (uint32_t)p->blocks[p->slots[i] - 1].hash.lo & p->mask;
        if (((i - home) & p->mask) >= ((i - hole) & p->mask)) {
            p->slots[hole] = p->slots[i];
            hole = i;
        }
    }
    p->slots[hole] = 0;
}

static void forget(st_block_pool *p, int32_t b)
{
    st_block_hash hash = p->blocks[b].hash;
    if (is_zero(hash))
        return;
    erase_slot(p, find_slot(p, hash));
    p->blocks[b].hash = (st_block_hash){0, 0};
    p->n_cached--;
    if (p->events.removed)
        p->events.removed(p->events.user, b, hash);
}

/* ---- free list ---- */

static void unlink_free(st_block_pool *p, int32_t b)
{
    block *x = &p->blocks[b];
    p->blocks[x->prev].next = x->next;
    p->blocks[x->next].prev = x->prev;
    p->n_free--;
}

/* Blocks without content are taken first, cached ones last. */
static void link_free(st_block_pool *p, int32_t b)
{
    int32_t before = is_zero(p->blocks[b].hash) ? p->n : p->blocks[p->n].prev;
    int32_t after = p->blocks[before].next;
    p->blocks[b].prev = before;
    p->blocks[b].next = after;
    p->blocks[before].next = b;
    p->blocks[after].prev = b;
    p->n_free++;
}

/* ---- operations ---- */

st_status st_block_pool_alloc(st_block_pool *p, int32_t n, int32_t *out)
{
    if (n > p->n_free)
        return ST_EFULL;
    for (int32_t i = 0; i < n; i++) {
        int32_t b = p->blocks[p->n].next;
        unlink_free(p, b);
        forget(p, b);
        p->blocks[b].refs = 1;
        out[i] = b;
    }
    return ST_OK;
}

int32_t st_block_pool_match(st_block_pool *p, const st_block_hash *hashes, int32_t n_full,
                            int32_t *out)
{
    int32_t i = 0;
    for (; p->caching && i < n_full; i++) {
        uint32_t slot = p->slots[find_slot(p, hashes[i])];
        if (slot == 0)
            break;
        out[i] = (int32_t)slot - 1;
        st_block_pool_ref(p, out[i]);
    }
    return i;
}

void st_block_pool_publish(st_block_pool *p, int32_t b, st_block_hash hash, st_block_hash parent,
                           const int32_t *tokens)
{
    if (!p->caching || !is_zero(p->blocks[b].hash))
        return;
    uint32_t slot = find_slot(p, hash);
    if (p->slots[slot] != 0)
        return;
    p->slots[slot] = (uint32_t)b + 1;
    p->blocks[b].hash = hash;
    p->n_cached++;
    if (p->events.stored)
        p->events.stored(p->events.user, b, hash, parent, tokens, p->block_size);
}

void st_block_pool_ref(st_block_pool *p, int32_t b)
{
    if (p->blocks[b].refs++ == 0)
        unlink_free(p, b);
}

void st_block_pool_release(st_block_pool *p, const int32_t *blocks, int32_t n)
{
    for (int32_t i = n - 1; i >= 0; i--)
        if (--p->blocks[blocks[i]].refs == 0)
            link_free(p, blocks[i]);
}

void st_block_pool_reset(st_block_pool *p)
{
    for (int32_t b = 0; b < p->n; b++)
        if (p->blocks[b].refs == 0 && !is_zero(p->blocks[b].hash)) {
            forget(p, b);
            unlink_free(p, b);
            link_free(p, b);
        }
}
