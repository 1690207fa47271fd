/* Rows of a block table as pieces of memory, and the book of which rows were seen. */
#ifndef ST_TRANSFER_KV_ROW_RANGES_H
#define ST_TRANSFER_KV_ROW_RANGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "starling/kv_cache.h"

typedef struct kv_piece {
    unsigned char *data;
    size_t bytes;
} kv_piece;

/* Blocks that rows [0, n_tokens) take. */
int32_t kv_blocks_of(const st_kv_store *s, int32_t n_tokens);

/* Where rows [first, first + count) of a layer lie, in order; neighbouring blocks make one piece.
 * blocks is the whole table from token 0 on, every id in it checked. out has room for
 * kv_piece_max(s, count). Returns how many. */
size_t kv_pieces(const st_kv_store *s, int32_t layer, const int32_t *blocks, int32_t first,
                 int32_t count, kv_piece *out);
size_t kv_piece_max(const st_kv_store *s, int32_t count);

/* One bit per row and layer. */
typedef struct kv_coverage {
    int32_t n_layers, from, to;
    size_t words;   /* of one layer */
    uint64_t *bits; /* [n_layers][words] */
    uint64_t missing;
} kv_coverage;

bool kv_coverage_init(kv_coverage *c, int32_t n_layers, int32_t from,
                      int32_t to); /* false: memory */
void kv_coverage_free(kv_coverage *c);
/* Marks rows [first, first + count), which lie in [from, to); false, and nothing marked, when one
 * of them is marked already. */
bool kv_coverage_take(kv_coverage *c, int32_t layer, int32_t first, int32_t count);

#endif
