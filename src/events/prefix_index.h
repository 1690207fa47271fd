/* Which engines hold which prefixes, in one region of (shared) memory with a hard size.
 *
 * Two parts, both fixed arrays in the region; offsets, no pointers, so every process may map it
 * anywhere:
 *
 *   exact     fed by KV events. Node per distinct block: {own key, holders' bit mask}; table
 *             (holder, engine's hash) -> node for removals. ONE writer at a time (the caller sees
 *             to it); any number of readers in any process, without locks: stores are ordered so
 *             that a reader, or a writer that takes over after a crash at any instruction, finds a
 *             usable index. When the nodes run out the least recently stored are forgotten;
 *             within a chain the head counts as the younger, as tails are worth nothing alone.
 *   history   for engines that publish nothing: "this prefix was sent there". Any process writes:
 *             slots claimed by compare-and-swap, aged out by time and by size. A hint that is lost
 *             or wrong for a moment costs speed, never correctness.
 *
 * Keys are ours: a 64-bit chained hash of (root, tokens of block 0), (that, tokens of block 1)...
 * so that engines' own hashing, seeds and block sizes need not be known. The root covers the
 * model's name, LoRA name and cache salt. */
#ifndef ST_EVENTS_PREFIX_INDEX_H
#define ST_EVENTS_PREFIX_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "starling/status.h"

enum { ST_INDEX_MAX_HOLDERS = 256 };

typedef struct st_holder_set {
    uint64_t bits[ST_INDEX_MAX_HOLDERS / 64];
} st_holder_set;

typedef struct st_prefix_index st_prefix_index;

/* Bytes for about n_blocks distinct blocks in the exact part and n_history in the other. <= 100
 * bytes per block that one holder has. */
size_t st_prefix_index_bytes(size_t n_blocks, size_t n_history);
/* Makes an index in mem (64-byte aligned, zeroed or not). ST_EINVAL: too small, or n_blocks is not
 * in 1 .. 2^24 - 2 (for which st_prefix_index_bytes is 0). */
ST_NODISCARD st_status st_prefix_index_init(void *mem, size_t bytes, size_t n_blocks,
                                            size_t n_history, st_prefix_index **out);
/* One that is there already, made by another process of the same build; NULL: it is not one. */
st_prefix_index *st_prefix_index_attach(void *mem, size_t bytes);

/* ---- keys ---- */

uint64_t st_prefix_root(const char *model, size_t model_len, const char *lora, size_t lora_len,
                        const char *salt, size_t salt_len);
/* keys[i] names tokens [0, (i + 1) * block_size). Returns n_tokens / block_size. */
size_t st_prefix_keys(uint64_t root, const int32_t *tokens, size_t n_tokens, int32_t block_size,
                      uint64_t *keys);

/* ---- exact: the one writer ---- */

/* hashes[0..n) are the engine's, in chain order; the first one's parent is the root (has_parent
 * false) or a block the holder has stored before. ST_ENOTFOUND: the parent is unknown. tokens:
 * n * block_size. */
ST_NODISCARD st_status st_prefix_store(st_prefix_index *x, int holder, uint64_t root,
                                       bool has_parent, uint64_t parent, const uint64_t *hashes,
                                       size_t n, const int32_t *tokens, int32_t block_size);
/* false: the holder had no such block. */
bool st_prefix_remove(st_prefix_index *x, int holder, uint64_t hash);
void st_prefix_clear(st_prefix_index *x, int holder); /* of both parts */
/* To be called by a writer that takes over: repairs what the last one left half done, if it died
 * in the middle. The operation it was in may have been done or not. Milliseconds per 100,000
 * blocks, during which readers may match less. */
void st_prefix_recover(st_prefix_index *x);

/* ---- history: any process ---- */

/* Up to 64 holders are remembered for a key, the latest; times are kept to 67 ms. */
void st_prefix_note(st_prefix_index *x, int holder, const uint64_t *keys, size_t n,
                    uint64_t now_ns);

/* ---- reading: any process ---- */

/* depth[h] = length of the longest run keys[0..depth) that holder h has, for the holders in
 * `exact` by the exact part and in `history` by the other (entries younger than max_age_ns). Both
 * sets may be empty. O(keys until nobody matches). depth has ST_INDEX_MAX_HOLDERS entries. */
void st_prefix_match(const st_prefix_index *x, const uint64_t *keys, size_t n,
                     const st_holder_set *exact, const st_holder_set *history, uint64_t now_ns,
                     uint64_t max_age_ns, uint32_t *depth);

typedef struct st_prefix_stats {
    size_t blocks, capacity; /* distinct blocks in the exact part */
    size_t holdings;         /* (holder, hash) pairs */
    uint64_t forgotten;      /* for want of room */
    size_t bytes;
    uint32_t holder_blocks[ST_INDEX_MAX_HOLDERS];
} st_prefix_stats;
void st_prefix_get_stats(const st_prefix_index *x, st_prefix_stats *out);

#endif
