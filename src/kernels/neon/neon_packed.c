/* Products with packed weights in NEON: tiles of 6 rows by 16 columns. Bytes are multiplied to 16
 * bits, where two products fit: weights are -128..127, x is -127..127. */
#include <math.h>
#include <string.h>

#include "kernels/float_bits.h"
#include "kernels/neon/neon.h"
#include "kernels/neon/pack_neon.h"
#include "kernels/neon/vec_neon.h"
#include "kernels/packed_run.h"
#include "kernels/simd/simd_macros.h"
#include "kernels/simd/simd_packed_rows.h"

#include "kernels/simd/simd_pack.inc"
#include "kernels/simd/simd_packed_tile.inc"

#include "kernels/simd/simd_packed_float.inc"

/* Two inputs of 8 columns each. */
typedef struct neon_pair {
    int8x16_t first, second; /* inputs 0 and 1, inputs 2 and 3 */
} neon_pair;

ST_INLINE neon_pair neon_pair_of(uint8x16_t a, uint8x16_t b)
{
    int16x8_t u = vreinterpretq_s16_u8(a), v = vreinterpretq_s16_u8(b);
    return (neon_pair){vreinterpretq_s8_s16(vuzp1q_s16(u, v)),
                       vreinterpretq_s8_s16(vuzp2q_s16(u, v))};
}

/* Four inputs of the block's columns: v[j] columns j VL on. */
ST_INLINE void neon_four(st_weight_type type, const unsigned char *w, neon_pair v[2])
{
    uint8x16_t a = vld1q_u8(w), b = vld1q_u8(w + 16);
    if (type == ST_WEIGHT_I8) {
        v[0] = neon_pair_of(a, b);
        v[1] = neon_pair_of(vld1q_u8(w + 32), vld1q_u8(w + 48));
    } else {
        const uint8x16_t low = vdupq_n_u8(15);
        v[0] = neon_pair_of(vandq_u8(a, low), vandq_u8(b, low));
        v[1] = neon_pair_of(vshrq_n_u8(a, 4), vshrq_n_u8(b, 4));
    }
}

ST_INLINE vi neon_dot(vi acc, neon_pair w, int8x16_t x01, int8x16_t x23)
{
    int16x8_t lo = vmull_s8(vget_low_s8(w.first), vget_low_s8(x01));
    int16x8_t hi = vmull_high_s8(w.first, x01);
    lo = vmlal_s8(lo, vget_low_s8(w.second), vget_low_s8(x23));
    hi = vmlal_high_s8(hi, w.second, x23);
    return vi_of(vpadalq_s16(acc.lo, lo), vpadalq_s16(acc.hi, hi));
}

/* `rounds` times 16 inputs from k on, for weights from w on. *fetch moves on by `lines` lines a
 * round. */
ST_INLINE void pk_int_rounds(st_weight_type type, int mr, vi acc[PK_ROWS][2], const st_tile *t,
                             int k, int rounds, const unsigned char *w, const unsigned char **fetch,
                             int lines)
{
    const unsigned char *ahead = *fetch;
    const int8_t *x = (const int8_t *)t->x + (k - t->k0);
    size_t four = PK_COLS * st_weight_bits(type) / 2;
    for (int r = 0; r < rounds; r++, x += PK_STEP) {
        ahead = pk_fetch(ahead, t->fetch_end, lines);
        for (int u = 0; u < PK_STEP; u += 4, w += four) {
            neon_pair v[2];
            neon_four(type, w, v);
            ST_UNROLL
            for (int i = 0; i < mr; i++) {
                int16_t two[2];
                memcpy(two, x + (size_t)i * t->ldx + u, sizeof two);
                int8x16_t x01 = vreinterpretq_s8_s16(vdupq_n_s16(two[0]));
                int8x16_t x23 = vreinterpretq_s8_s16(vdupq_n_s16(two[1]));
                acc[i][0] = neon_dot(acc[i][0], v[0], x01, x23);
                acc[i][1] = neon_dot(acc[i][1], v[1], x01, x23);
            }
            /* Else weights of the next inputs take the registers of the sums. */
            __asm__ volatile("" : : : "memory");
        }
    }
    *fetch = ahead;
}

/* Four inputs of all columns as 32-bit integers, for products with floats. */
ST_INLINE void pk_four_inputs(st_weight_type type, const unsigned char *w, vi v[4][2])
{
    const int32x4_t low = vdupq_n_s32(15);
    ST_UNROLL
    for (int s = 0; s < 4; s++)
        ST_UNROLL
    for (int j = 0; j < 2; j++) {
        vi u = vi_load(type == ST_WEIGHT_I8 ? w + j * 32 : w);
        /* Left until the input is on top, then right. */
        const int32x4_t left = vdupq_n_s32(24 - 8 * s), right = vdupq_n_s32(-8 * s - 4 * j);
        if (type == ST_WEIGHT_I8)
            v[s][j] = vi_of(vshrq_n_s32(vshlq_s32(u.lo, left), 24),
                            vshrq_n_s32(vshlq_s32(u.hi, left), 24));
        else
            v[s][j] = vi_of(vandq_s32(vshlq_s32(u.lo, right), low),
                            vandq_s32(vshlq_s32(u.hi, right), low));
    }
}

#include "kernels/simd/simd_packed_int.inc"
#include "kernels/simd/simd_packed_mixed.inc"

#define PK_NAME(x)  st_neon_##x
#define PK_TILE_SET PK_TILE_SET_6
#include "kernels/simd/simd_packed_table.inc"

/* Independent products from registers: what the processor can do at most. */
double st_neon_peak_i8(int steps)
{
    enum { CHAINS = 12 };
    vi acc[CHAINS];
    int8x16_t x = vdupq_n_s8(1);
    neon_pair w = {vdupq_n_s8(2), vdupq_n_s8(3)};
    ST_UNROLL
    for (int i = 0; i < CHAINS; i++)
        acc[i] = vi_set1(i); /* each its own value */
    for (int s = 0; s < steps; s++) {
        ST_UNROLL
        for (int i = 0; i < CHAINS; i++) {
            /* The compiler must not see that the same product is added every time. */
            __asm__ volatile("" : "+w"(x));
            acc[i] = neon_dot(acc[i], w, x, x);
        }
    }
    ST_UNROLL
    for (int i = 1; i < CHAINS; i++)
        acc[0] = vi_add(acc[0], acc[i]);
    vf_keep(vf_of_vi(acc[0]));
    return 8.0 * VL * CHAINS * steps;
}
