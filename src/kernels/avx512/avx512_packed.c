/* Products with packed weights in AVX-512 without VNNI: tiles of 12 rows by 32 columns. */
#include <math.h>
#include <string.h>

#include "kernels/avx512/avx512.h"
#include "kernels/avx512/vec_avx512.h"
#include "kernels/float_bits.h"
#include "kernels/packed_run.h"
#include "kernels/simd/simd_macros.h"
#include "kernels/simd/simd_packed_rows.h"

#define PK_ROWS       12
#define PK_QUAD       0
#define PK_INT_OFFSET 0
#define PK_I4_HIGH    0
#define PK_I4_ROWS    6

#include "kernels/simd/simd_pack.inc"
#include "kernels/simd/simd_packed_tile.inc"

#include "kernels/simd/simd_packed_float.inc"
#include "kernels/simd/simd_packed_wide.inc"

#include "kernels/simd/simd_packed_int.inc"
#include "kernels/simd/simd_packed_mixed.inc"

#define PK_NAME(x)  st_avx512_##x
#define PK_TILE_SET PK_TILE_SET_12
#include "kernels/simd/simd_packed_table.inc"

double st_avx512_peak_i8(int steps)
{
    return pk_wide_peak(steps);
}
