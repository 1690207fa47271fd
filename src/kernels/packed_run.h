/* How a product with packed weights is cut into tiles: common to all instruction sets. A tile is a
 * few rows of x by one block of columns over a part of k; accumulators that a tile does not finish
 * wait in y. Tile and part never reach the bits: floats go on where they stopped, integers are
 * exact. */
#ifndef ST_KERNELS_PACKED_RUN_H
#define ST_KERNELS_PACKED_RUN_H

#include "kernels/kernels.h"

enum { ST_TILE_ROWS_MAX = 12, ST_TILE_COLS_MAX = 32, ST_TILE_LINE = 64, ST_TILE_UNPACKED = 1024 };

typedef struct st_tile {
    float *y; /* first row, first column of the block */
    size_t ldy;
    int cols;      /* to be stored, 1..pack_cols */
    const void *x; /* the first row's x or q, at k0 */
    size_t ldx;    /* bytes */
    const float *x_scale;
    const int32_t *sum; /* the first row's sums */
    size_t lds;
    const unsigned char *w;     /* the block's data at k0 */
    const unsigned char *scale; /* the block's scales (I4: with the weights) */
    const st_packed *matrix;
    int k0, k1;
    /* Weights to bring into L2 meanwhile, evenly: they are needed next. */
    const unsigned char *fetch, *fetch_end;
} st_tile;

typedef void st_tile_fn(const st_tile *t);

/* One weight type's tiles in one table. */
typedef struct st_tile_set {
    st_tile_fn *tile[ST_TILE_ROWS_MAX + 1]; /* by rows; [0] is unused */
    int rows;                               /* of the largest */
    int cols;                               /* pack_cols */
    /* Where many rows meet weights that take long to become floats: writes a tile's weights as F32,
     * at most ST_TILE_UNPACKED inputs, for the tiles of `unpacked`; the same bits. NULL: none. */
    void (*unpack)(float *w, const st_tile *t);
    const struct st_tile_set *unpacked;
} st_tile_set;

/* Where a table's packing puts things in a block. */
typedef struct st_pack_layout {
    size_t block_bytes, scale_offset;
    size_t group_bytes; /* from one group's weights to the next one's; 0: nothing lies between */
} st_pack_layout;

/* set: of w's type; it reads a's int8 form or its floats. */
void st_packed_run(const st_tile_set *set, bool int8, float *y, size_t ldy, const st_act *a,
                   const st_packed *w, st_pack_layout layout, int n0, int n1);

/* Bits of one weight in a block. */
static inline size_t st_weight_bits(st_weight_type type)
{
    switch (type) {
    case ST_WEIGHT_F32:
        return 32;
    case ST_WEIGHT_F16:
    case ST_WEIGHT_BF16:
        return 16;
    case ST_WEIGHT_I4:
        return 4;
    default:
        return 8;
    }
}

#endif
