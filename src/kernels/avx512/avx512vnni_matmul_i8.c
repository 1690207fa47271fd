/* int8 products with vpdpbusd: x is made unsigned by adding 128 (flipping the top bit), and 128
 * times the weights' row sum is taken off at the end. */
#include <immintrin.h>

#include "kernels/avx512/avx512.h"
#include "kernels/simd/simd_macros.h"

#define I8_ROWS         6
#define I8_STEP         64
#define I8_COMPENSATION 128u

typedef __m512i ivec;

ST_INLINE ivec iv_zero(void)
{
    return _mm512_setzero_si512();
}
ST_INLINE ivec iv_load(const int8_t *p)
{
    return _mm512_loadu_si512(p);
}
ST_INLINE ivec iv_load_n(const int8_t *p, size_t n)
{
    return _mm512_maskz_loadu_epi8(((__mmask64)1 << n) - 1, p);
}
ST_INLINE ivec iv_x(ivec v)
{
    return _mm512_xor_si512(v, _mm512_set1_epi8((char)0x80));
}
/* By hand: with the intrinsic GCC 12 copies the 24 accumulators to the stack and back in every
 * round, which halves the speed of the 6 x 4 tile. */
ST_INLINE ivec iv_dot(ivec acc, ivec x, ivec w)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
    return acc;
}
ST_INLINE __m128i iv_sum4(ivec a, ivec b, ivec c, ivec d)
{
    ivec ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    ivec cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    ivec s = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i h = _mm256_add_epi32(_mm512_castsi512_si256(s), _mm512_extracti64x4_epi64(s, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
}

#include "kernels/simd/simd_matmul_int8.inc"

void st_avx512vnni_matmul_i8(float *y, size_t ldy, const int8_t *xq, size_t ldx,
                             const float *x_scale, int m, const st_matrix *w, int n0, int n1)
{
    i8_run(y, ldy, xq, ldx, x_scale, m, w, n0, n1);
}

double st_avx512vnni_peak_i8(int steps)
{
    return i8_peak(steps);
}
