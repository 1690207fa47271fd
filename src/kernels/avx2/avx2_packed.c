/* Products with packed weights in AVX2: tiles of 6 rows by 16 columns. */
#include <math.h>
#include <string.h>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/vec_avx2.h"
#include "kernels/float_bits.h"
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

#define PK_NAME(x)  st_avx2_##x
#define PK_TILE_SET PK_TILE_SET_6
#include "kernels/simd/simd_packed_table.inc"

double st_avx2_peak_i8(int steps)
{
    return pk_wide_peak(steps);
}
