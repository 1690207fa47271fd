/* What one token's KV row of one layer holds, and how it is laid out.
 *
 *   elements   n_vectors vectors of `vector` elements, then `plain` more
 *              MLA: the latent (1 x kv_lora), then the rotated key; GQA: keys of all KV heads,
 *              then values (2 * n_kv_heads x head_dim)
 *   F32, BF16  the elements, one after the other
 *   I8         [vectors x int8 | 0..3 bytes | plain x BF16 | 0..3 bytes | n_vectors x float scale]
 *              element = int8 * its vector's scale; in all a multiple of four bytes */
#ifndef STARLING_KV_ROW_H
#define STARLING_KV_ROW_H

#include <stddef.h>
#include <stdint.h>

typedef struct st_kv_row_shape {
    int32_t n_vectors, vector, plain; /* products must fit int32 */
} st_kv_row_shape;

static inline int32_t st_kv_row_elems(st_kv_row_shape s)
{
    return s.n_vectors * s.vector + s.plain;
}

/* Offsets in bytes within an I8 row. */
static inline size_t st_kv_i8_plain_at(st_kv_row_shape s)
{
    return ((size_t)s.n_vectors * (size_t)s.vector + 3) & ~(size_t)3;
}
static inline size_t st_kv_i8_scales_at(st_kv_row_shape s)
{
    return st_kv_i8_plain_at(s) + (((size_t)s.plain * 2 + 3) & ~(size_t)3);
}
static inline size_t st_kv_i8_row_bytes(st_kv_row_shape s)
{
    return st_kv_i8_scales_at(s) + (size_t)s.n_vectors * sizeof(float);
}

#endif
