/* Where the KV row of a position lies in paged memory. */
#ifndef ST_KERNELS_KV_ROWS_H
#define ST_KERNELS_KV_ROWS_H

#include "kernels/kernels.h"

static inline const unsigned char *st_kv_row(const st_kv_layer *kv, const int32_t *block_table,
                                             int32_t pos)
{
    size_t block = (size_t)block_table[pos / kv->block_size];
    return kv->base + block * kv->block_stride + (size_t)(pos % kv->block_size) * kv->row_stride;
}

#endif
