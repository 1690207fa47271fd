/* Products with packed weights in AVX2: tiles of 6 rows by 16 columns. */
#include <math.h>
#include <string.h>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/vec_avx2.h"
#include "kernels/packed_run.h"
#include "kernels/simd/simd_macros.h"
#include "kernels/simd/simd_packed_rows.h"

#define PK_ROWS       6
#define PK_QUAD       0
#define PK_INT_OFFSET 0
#define PK_I4_HIGH    0
#define PK_I4_ROWS    2

#include "kernels/simd/simd_pack.inc"
#include "kernels/simd/simd_packed_tile.inc"

#include "kernels/simd/simd_packed_float.inc"
#include "kernels/simd/simd_packed_wide.inc"

#include "kernels/simd/simd_packed_int.inc"
#include "kernels/simd/simd_packed_mixed.inc"

PK_TILE_SET_6(f32, pk_float_tile, ST_WEIGHT_F32)
PK_TILE_SET_6(f16, pk_float_tile, ST_WEIGHT_F16)
PK_TILE_SET_6(bf16, pk_float_tile, ST_WEIGHT_BF16)
PK_TILE_SET_6(f8, pk_float_tile, ST_WEIGHT_F8)
PK_TILE_SET_6(i8, pk_i8_tile, ST_WEIGHT_I8)
PK_TILE_SET_6(i4, pk_i4_tile, ST_WEIGHT_I4)
PK_TILE_SET_6(mixed_i8, pk_mixed_i8_tile, ST_WEIGHT_I8)
PK_TILE_SET_6(mixed_i4, pk_mixed_i4_tile, ST_WEIGHT_I4)

static const st_tile_set *const sets[ST_WEIGHT_TYPE_COUNT] = {
    [ST_WEIGHT_F32] = &f32, [ST_WEIGHT_F16] = &f16, [ST_WEIGHT_BF16] = &bf16,
    [ST_WEIGHT_F8] = &f8,   [ST_WEIGHT_I8] = &i8,   [ST_WEIGHT_I4] = &i4,
};

size_t st_avx2_pack_block_bytes(const st_packed *shape)
{
    return pk_block_bytes(shape);
}

void st_avx2_pack_block(void *dst, const st_packed *shape, const st_weight_rows *rows)
{
    pk_block(dst, shape, rows);
}

void st_avx2_matmul(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0, int n1)
{
    st_packed_run(sets[w->type], st_weight_takes_int8(w->type), y, ldy, a, w, pk_layout(w), n0, n1);
}

void st_avx2_matmul_float(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0, int n1)
{
    const st_tile_set *set = w->type == ST_WEIGHT_I8   ? &mixed_i8
                             : w->type == ST_WEIGHT_I4 ? &mixed_i4
                                                       : sets[w->type];
    st_packed_run(set, false, y, ldy, a, w, pk_layout(w), n0, n1);
}

/* Independent products from registers: what the processor can do at most. */
double st_avx2_peak_i8(int steps)
{
    enum { CHAINS = 12 };
    vi acc[CHAINS], w = vi_set1(0x01020304);
    ST_UNROLL
    for (int i = 0; i < CHAINS; i++)
        acc[i] = vi_set1(i); /* each its own value */
    for (int s = 0; s < steps; s++) {
        /* The compiler must not see that the same product is added every time. */
        __asm__ volatile("" : "+v"(w));
        ST_UNROLL
        for (int i = 0; i < CHAINS; i++)
            acc[i] = vi_add(acc[i], vi_madd(w, acc[i]));
    }
    ST_UNROLL
    for (int i = 1; i < CHAINS; i++)
        acc[0] = vi_add(acc[0], acc[i]);
    __asm__ volatile("" : : "v"(acc[0]));
    return 4.0 * VL * CHAINS * steps;
}
