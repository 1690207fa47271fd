/* Products with packed int8 and int4 weights by vpdpbusd: weights are the unsigned factor (I8 plus
 * 128, I4 as they are), four inputs of x are broadcast from memory as the signed one. */
#include <math.h>
#include <string.h>

#include "kernels/avx512/avx512.h"
#include "kernels/avx512/vec_avx512.h"
#include "kernels/float_bits.h"
#include "kernels/packed_run.h"
#include "kernels/simd/simd_macros.h"
#include "kernels/simd/simd_packed_rows.h"

#define PK_ROWS       12
#define PK_QUAD       1
#define PK_INT_OFFSET 128
#define PK_I4_HIGH    4 /* high halves are masked, not shifted */
#define PK_I4_ROWS    6

#include "kernels/simd/simd_pack.inc"
#include "kernels/simd/simd_packed_tile.inc"

/* acc += w by four inputs of x's row 0, 1 or 2, rows being ld bytes apart.
 *
 * By hand: with the intrinsic GCC 12 copies the 24 accumulators to the stack and back in every
 * round, which halves the speed, and of a memory operand's address it makes a sum of its own for
 * most rows. What is read is not said: pk_int_rounds orders it behind all that was stored. */
ST_INLINE vi dot(vi acc, vi w, const int8_t *x, size_t ld, int row)
{
    if (row == 0)
        __asm__("vpdpbusd (%2)%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "r"(x));
    else if (row == 1)
        __asm__("vpdpbusd (%2,%3)%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "r"(x), "r"(ld));
    else
        __asm__("vpdpbusd (%2,%3,2)%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "r"(x), "r"(ld));
    return acc;
}

/* `rounds` times 16 inputs from k on, for weights from w on. *fetch moves on by `lines` lines a
 * round. */
ST_INLINE void pk_int_rounds(st_weight_type type, int mr, vi acc[PK_ROWS][2], const st_tile *t,
                             int k, int rounds, const unsigned char *w, const unsigned char **fetch,
                             int lines)
{
    const int8_t *base[PK_BASES];
    vi low = _mm512_set1_epi8(15);
    const unsigned char *ahead = *fetch;
    size_t ld = t->ldx;
    /* Else the complement takes a register too. */
    __asm__("" : "+v"(low));
    ST_UNROLL
    for (int i = 0; i < PK_BASES; i++) {
        base[i] = (const int8_t *)t->x + (k - t->k0) + (i * 3 < mr ? (size_t)i * 3 * ld : 0);
        /* After this, and so after all stores to x, come the products. */
        __asm__("" : "+r"(base[i]) : "m"(*(const int8_t(*)[1 << 30]) t->x));
    }
    for (int r = 0; r < rounds; r++) {
        ahead = pk_fetch(ahead, t->fetch_end, lines);
        ST_UNROLL
        for (int u = 0; u < PK_STEP; u += 4) {
            vi w0 = _mm512_load_si512(w), w1;
            if (type == ST_WEIGHT_I8) {
                w1 = _mm512_load_si512(w + 64);
                w += 128;
                /* Else GCC loads them again for each of three rows. */
                __asm__("" : "+v"(w0), "+v"(w1));
            } else {
                w1 = _mm512_andnot_si512(low, w0);
                w0 = _mm512_and_si512(w0, low);
                w += 64;
            }
            ST_UNROLL
            for (int i = 0; i < mr; i++) {
                acc[i][0] = dot(acc[i][0], w0, base[i / 3], ld, i % 3);
                acc[i][1] = dot(acc[i][1], w1, base[i / 3], ld, i % 3);
            }
            ST_UNROLL
            for (int i = 0; i < PK_BASES; i++)
                base[i] += 4;
        }
    }
    *fetch = ahead;
}

#include "kernels/simd/simd_packed_int.inc"
#include "kernels/simd/simd_packed_planes.inc"

PK_TILE_SET_12(i8, pk_i8_tile, ST_WEIGHT_I8)
PK_TILE_SET_6(i4, pk_i4_tile, ST_WEIGHT_I4)
PK_TILE_SET_6(planes_i8, pk_planes_i8_tile, ST_WEIGHT_I8)
PK_TILE_SET_6(planes_i4, pk_planes_i4_tile, ST_WEIGHT_I4)

const st_tile_set *st_avx512vnni_plane_tiles(st_weight_type type)
{
    return type == ST_WEIGHT_I8 ? &planes_i8 : &planes_i4;
}

st_pack_layout st_avx512vnni_pack_layout(const st_packed *w)
{
    return pk_layout(w);
}

size_t st_avx512vnni_pack_block_bytes(const st_packed *shape)
{
    return pk_block_bytes(shape);
}

void st_avx512vnni_pack_block(void *dst, const st_packed *shape, const st_weight_rows *rows)
{
    pk_block(dst, shape, rows);
}

void st_avx512vnni_matmul(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0, int n1)
{
    if (!st_weight_takes_int8(w->type))
        st_avx512_matmul(y, ldy, a, w, n0, n1);
    else
        st_packed_run(w->type == ST_WEIGHT_I8 ? &i8 : &i4, true, y, ldy, a, w, pk_layout(w), n0,
                      n1);
}

/* Independent products from registers: what the processor can do at most. */
double st_avx512vnni_peak_i8(int steps)
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
            __asm__("vpdpbusd %1, %1, %0" : "+v"(acc[i]) : "v"(w));
    }
    ST_UNROLL
    for (int i = 1; i < CHAINS; i++)
        acc[0] = vi_add(acc[0], acc[i]);
    __asm__ volatile("" : : "v"(acc[0]));
    return 8.0 * VL * CHAINS * steps;
}
