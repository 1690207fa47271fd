/* int8 products with vpmaddubsw: |w| as the unsigned factor (a weight of -128 becomes 128) times x
 * with w's sign. Pairs are at most 2*128*127 = 32512, so the 16-bit sums are exact. */
#include <immintrin.h>
#include <string.h>

#include "kernels/avx2/avx2.h"
#include "kernels/simd/simd_macros.h"

#define I8_ROWS         3
#define I8_STEP         32
#define I8_COMPENSATION 0u

typedef __m256i ivec;

ST_INLINE ivec iv_zero(void)
{
    return _mm256_setzero_si256();
}
ST_INLINE ivec iv_load(const int8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}
ST_INLINE ivec iv_load_n(const int8_t *p, size_t n)
{
    int8_t t[I8_STEP] = {0};
    memcpy(t, p, n);
    return iv_load(t);
}
ST_INLINE ivec iv_x(ivec v)
{
    return v;
}
ST_INLINE ivec iv_dot(ivec acc, ivec x, ivec w)
{
    ivec pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
ST_INLINE __m128i iv_sum4(ivec a, ivec b, ivec c, ivec d)
{
    ivec s = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
}

#include "kernels/simd/simd_matmul_int8.inc"

void st_avx2_matmul_i8(float *y, size_t ldy, const int8_t *xq, size_t ldx, const float *x_scale,
                       int m, const st_matrix *w, int n0, int n1)
{
    i8_run(y, ldy, xq, ldx, x_scale, m, w, n0, n1);
}

double st_avx2_peak_i8(int steps)
{
    return i8_peak(steps);
}
