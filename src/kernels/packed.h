/* Packed weights and the activations they meet: y = x W^T.
 *
 * A weight matrix is packed once per kernel table into blocks of pack_cols columns (outputs),
 * outputs in lanes, k in the table's own steps. A block is contiguous and stands for itself (data,
 * then scales), so block b is at data + b * block bytes and a product with one row streams memory
 * strictly in order. Columns are padded to whole blocks and k to the table's step inside. */
#ifndef ST_KERNELS_PACKED_H
#define ST_KERNELS_PACKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum st_weight_type {
    ST_WEIGHT_F32,
    ST_WEIGHT_F16,
    ST_WEIGHT_BF16,
    ST_WEIGHT_F8, /* E4M3 (no infinities), a scale per output and group of inputs */
    ST_WEIGHT_I8, /* a scale per output */
    ST_WEIGHT_I4, /* 0..15 minus a zero point, a scale per output and group of inputs */
    ST_WEIGHT_TYPE_COUNT
} st_weight_type;

/* Rows of a weight matrix in canonical form: what pack_block takes. Row-major, k elements each;
 * data needs no alignment. */
typedef struct st_weight_rows {
    st_weight_type type;
    int32_t n, k;  /* n rows are present here */
    int32_t group; /* inputs per scale. I4: a multiple of 32, or k, at most 65536; F8: even, or k;
                      else 0 */
    const void *data;    /* F32, F16, BF16, F8: elements; I8: int8; I4: a byte each, 0..15 */
    const float *scale;  /* I8: [n]; I4, F8: [n][groups]; else NULL */
    const uint8_t *zero; /* I4: [n][groups], 0..16 (checkpoints have 0..15); NULL: 8 everywhere */
} st_weight_rows;

/* A packed matrix W [n, k]. The memory is borrowed, 64-byte aligned. */
typedef struct st_packed {
    st_weight_type type;
    int32_t n, k;
    int32_t group; /* as in st_weight_rows */
    bool has_zero; /* I4: zero points are stored; otherwise they are 8 */
    /* I4: what scales may be stored as: F32, or F16 or BF16 where that holds every one exactly. */
    st_weight_type scale;
    const void *data;
} st_packed;

/* Activations: float rows, and their int8 form for weights in I8 and I4. */
typedef struct st_act {
    const float *x; /* [m, k], row stride ld */
    size_t ld;
    int8_t *q;    /* [m, k], by st_kernels.quantize; NULL where only float weights are met */
    size_t ldq;   /* row stride of q: st_act_ldq(k) */
    float *scale; /* [m] */
    int32_t *sum; /* [m][st_act_sums(k)]: sums of q's first 0, 32, 64 ... inputs, then of all k */
    int32_t m, k;
} st_act;

enum { ST_ACT_STEP = 64, ST_ACT_SUM = 32 };

/* Groups of inputs that have a scale of their own; 1 for types without groups. */
static inline int32_t st_weight_groups(int32_t k, int32_t group)
{
    return group > 0 ? (k + group - 1) / group : 1;
}

/* Bytes from one row of q to the next: k rounded up to ST_ACT_STEP (the rest is zero), and an odd
 * number of cache lines so that rows side by side do not fall into the same sets. */
static inline size_t st_act_ldq(int32_t k)
{
    return (((size_t)k + ST_ACT_STEP - 1) / ST_ACT_STEP | 1) * ST_ACT_STEP;
}

/* Elements of one row of sum. */
static inline size_t st_act_sums(int32_t k)
{
    return ((size_t)k + ST_ACT_SUM - 1) / ST_ACT_SUM + 1;
}

/* Whether a product with w reads the activations' int8 form. */
static inline bool st_weight_takes_int8(st_weight_type type)
{
    return type == ST_WEIGHT_I8 || type == ST_WEIGHT_I4;
}

#endif
