/* Where the KV row of a position lies in paged memory, and what the I8 form of a row is. */
#ifndef ST_KERNELS_KV_ROWS_H
#define ST_KERNELS_KV_ROWS_H

#include <math.h>

#include "kernels/float_bits.h"
#include "kernels/kernels.h"

#define ST_KV_I8_MIN_SCALE 0x1p-100f

static inline const unsigned char *st_kv_row(const st_kv_layer *kv, const int32_t *block_table,
                                             int32_t pos)
{
    size_t block = (size_t)block_table[pos / kv->block_size];
    return kv->base + block * kv->block_stride + (size_t)(pos % kv->block_size) * kv->row_stride;
}

/* How the I8 rows of a layer of this shape are laid out. */
static inline st_kv_row_shape st_kv_attn_row(bool mla, const st_attn_shape *s)
{
    if (mla)
        return (st_kv_row_shape){1, s->v_dim, s->k_dim - s->v_dim};
    return (st_kv_row_shape){2 * s->n_kv_heads, s->k_dim, 0};
}

/* The scale of a vector with this largest magnitude (as bits: NaN is above infinity). */
static inline float st_kv_i8_scale(uint32_t absmax_bits)
{
    float scale = st_float_of_bits(absmax_bits) / 127.0f;
    return absmax_bits >= 0x7f800000u   ? NAN
           : scale < ST_KV_I8_MIN_SCALE ? ST_KV_I8_MIN_SCALE
                                        : scale;
}

#endif
