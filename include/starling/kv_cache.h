/* KV memory in blocks, and the pool that hands the blocks out.
 *
 *   st_kv_store   the bytes: per layer, n_blocks blocks of block_size rows
 *   st_block_pool the book-keeping: reference counts, content hashes, LRU of unused blocks
 *
 * A block is the unit of allocation, prefix caching, events, transfer and eviction. Full blocks
 * are content-addressed by a chained hash: hash(parent's hash, the block's token ids, how many of
 * them attended expanded); the root covers the model, KV dtype and the request's salt. A block
 * whose reference count falls to zero keeps its content and stays findable until it is evicted,
 * least recently used first; a tail is released before its prefix so that prefixes survive longer.
 *
 * Neither is thread-safe: the engine's thread owns them. */
#ifndef STARLING_KV_CACHE_H
#define STARLING_KV_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "starling/dtype.h"
#include "starling/kv_row.h"
#include "starling/status.h"

typedef struct st_kv_store {
    int32_t n_layers, n_blocks, block_size;
    st_dtype dtype; /* BF16, F32 or I8 */
    st_kv_row_shape row;
    int32_t row_elems;
    size_t row_bytes, block_bytes; /* of one layer */
    unsigned char **layers;        /* [n_layers]: n_blocks * block_bytes each, 64-byte aligned */
} st_kv_store;

/* Bytes that a store of these sizes takes; ST_EINVAL when they overflow or make no sense. */
ST_NODISCARD st_status st_kv_store_bytes(int32_t n_layers, int32_t n_blocks, int32_t block_size,
                                         st_dtype dtype, st_kv_row_shape row, size_t *bytes);
ST_NODISCARD st_status st_kv_store_new(int32_t n_layers, int32_t n_blocks, int32_t block_size,
                                       st_dtype dtype, st_kv_row_shape row, st_kv_store **out,
                                       st_error *err);
void st_kv_store_free(st_kv_store *s);

/* A 128-bit chained content hash. Zero never occurs as the hash of a block. */
typedef struct st_block_hash {
    uint64_t lo, hi;
} st_block_hash;

/* The chain's root: everything but tokens that must match for KV to be reusable. */
st_block_hash st_block_hash_root(uint64_t fingerprint, st_dtype dtype, const char *salt,
                                 size_t salt_len);
/* n_expanded: the block's first tokens that attended expanded (st_model_expanded_until): the same
 * tokens have other KV bits then. */
st_block_hash st_block_hash_next(st_block_hash parent, const int32_t *tokens, int32_t n,
                                 int32_t n_expanded);

typedef struct st_block_pool st_block_pool;

/* What happened to cached blocks, for KV events. May be NULL. Called synchronously. */
typedef struct st_block_events {
    void (*stored)(void *user, int32_t block, st_block_hash hash, st_block_hash parent,
                   const int32_t *tokens, int32_t n);
    void (*removed)(void *user, int32_t block, st_block_hash hash);
    void *user;
} st_block_events;

ST_NODISCARD st_status st_block_pool_new(int32_t n_blocks, int32_t block_size, bool caching,
                                         const st_block_events *events, st_block_pool **out,
                                         st_error *err);
void st_block_pool_free(st_block_pool *p);

/* Blocks that could be allocated now (never used, or cached and unreferenced). */
int32_t st_block_pool_available(const st_block_pool *p);
int32_t st_block_pool_in_use(const st_block_pool *p); /* reference count > 0 */
int32_t st_block_pool_cached(const st_block_pool *p); /* findable by hash */

/* Takes n blocks (reference count 1 each) into blocks[0..n), evicting as needed: all or none
 * (ST_EFULL). */
ST_NODISCARD st_status st_block_pool_alloc(st_block_pool *p, int32_t n, int32_t *blocks);
/* Finds the longest cached chain for the first n_full blocks' hashes and takes a reference on
 * each block found. Returns how many. */
int32_t st_block_pool_match(st_block_pool *p, const st_block_hash *hashes, int32_t n_full,
                            int32_t *blocks);
/* Makes a full, referenced block findable. When an equal block is already cached the pool keeps
 * the first; the caller goes on using its own. */
void st_block_pool_publish(st_block_pool *p, int32_t block, st_block_hash hash,
                           st_block_hash parent, const int32_t *tokens);
void st_block_pool_ref(st_block_pool *p, int32_t block);
/* Drops one reference on each, in the order that keeps prefixes longest (last block first). */
void st_block_pool_release(st_block_pool *p, const int32_t *blocks, int32_t n);
/* Forgets every cached, unreferenced block. */
void st_block_pool_reset(st_block_pool *p);

#endif
