/* Products with packed int8 and int4 weights by SDOT: four inputs of a column at once. */
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

/* A quarter of the block's columns, four inputs each. */
ST_INLINE void neondot_four(st_weight_type type, const unsigned char *w, int8x16_t v[4])
{
    if (type == ST_WEIGHT_I8) {
        ST_UNROLL
        for (int j = 0; j < 4; j++)
            v[j] = vreinterpretq_s8_u8(vld1q_u8(w + j * 16));
    } else {
        ST_UNROLL
        for (int j = 0; j < 2; j++) {
            uint8x16_t u = vld1q_u8(w + j * 16);
            v[j] = vreinterpretq_s8_u8(vandq_u8(u, vdupq_n_u8(15)));
            v[2 + j] = vreinterpretq_s8_u8(vshrq_n_u8(u, 4));
        }
    }
}

ST_INLINE vi neondot(vi acc, int8x16_t w0, int8x16_t w1, int8x16_t x)
{
    return vi_of(vdotq_s32(acc.lo, w0, x), vdotq_s32(acc.hi, w1, x));
}

/* `rounds` times 16 inputs from k on, for weights from w on. *fetch moves on by `lines` lines a
 * round. */
ST_INLINE void pk_int_rounds(st_weight_type type, int mr, vi acc[PK_ROWS][2], const st_tile *t,
                             int k, int rounds, const unsigned char *w, const unsigned char **fetch,
                             int lines)
{
    const unsigned char *ahead = *fetch;
    const int8_t *q = (const int8_t *)t->x + (k - t->k0);
    size_t four = PK_COLS * st_weight_bits(type) / 2;
    for (int r = 0; r < rounds; r++, q += PK_STEP) {
        ahead = pk_fetch(ahead, t->fetch_end, lines);
        for (int u = 0; u < PK_STEP; u += 4, w += four) {
            int8x16_t v[4];
            neondot_four(type, w, v);
            ST_UNROLL
            for (int i = 0; i < mr; i++) {
                int32_t quad;
                memcpy(&quad, q + (size_t)i * t->ldx + u, sizeof quad);
                int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(quad));
                acc[i][0] = neondot(acc[i][0], v[0], v[1], x);
                acc[i][1] = neondot(acc[i][1], v[2], v[3], x);
            }
            /* Else weights of the next inputs take the registers of the sums. */
            __asm__ volatile("" : : : "memory");
        }
    }
    *fetch = ahead;
}

#include "kernels/simd/simd_packed_int.inc"

PK_TILE_SET_6(i8, pk_i8_tile, ST_WEIGHT_I8)
PK_TILE_SET_6(i4, pk_i4_tile, ST_WEIGHT_I4)

size_t st_neondot_pack_block_bytes(const st_packed *shape)
{
    return pk_block_bytes(shape);
}

void st_neondot_pack_block(void *dst, const st_packed *shape, const st_weight_rows *rows)
{
    pk_block(dst, shape, rows);
}

void st_neondot_matmul(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0, int n1)
{
    if (!st_weight_takes_int8(w->type))
        st_neon_matmul(y, ldy, a, w, n0, n1);
    else
        st_packed_run(w->type == ST_WEIGHT_I8 ? &i8 : &i4, true, y, ldy, a, w, pk_layout(w), n0,
                      n1);
}

/* Independent products from registers: what the processor can do at most. */
double st_neondot_peak_i8(int steps)
{
    enum { CHAINS = 12 };
    vi acc[CHAINS];
    int8x16_t w = vdupq_n_s8(2);
    ST_UNROLL
    for (int i = 0; i < CHAINS; i++)
        acc[i] = vi_set1(i); /* each its own value */
    for (int s = 0; s < steps; s++) {
        ST_UNROLL
        for (int i = 0; i < CHAINS; i++) {
            /* The compiler must not see that the same product is added every time. */
            __asm__ volatile("" : "+w"(w));
            acc[i] = neondot(acc[i], w, w, w);
        }
    }
    ST_UNROLL
    for (int i = 1; i < CHAINS; i++)
        acc[0] = vi_add(acc[0], acc[i]);
    vf_keep(vf_of_vi(acc[0]));
    return 8.0 * VL * CHAINS * steps;
}
