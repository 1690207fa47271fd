/* 32 quantized inputs as bytes, for both x86 vec_*.h. */
#ifndef ST_KERNELS_BYTES_AVX2_H
#define ST_KERNELS_BYTES_AVX2_H

#include <immintrin.h>
#include <stdint.h>

typedef __m256i vb;

static inline void vb_store(int8_t *p, vb v)
{
    _mm256_storeu_si256((__m256i *)(void *)p, v);
}
static inline int32_t vb_sum(vb v)
{
    const __m256i bias = _mm256_set1_epi8((char)0x80);
    __m256i s = _mm256_sad_epu8(_mm256_xor_si256(v, bias), _mm256_setzero_si256());
    __m128i h = _mm_add_epi64(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    return _mm_cvtsi128_si32(_mm_add_epi64(h, _mm_unpackhi_epi64(h, h))) - 128 * 32;
}

#endif
