/* The vector type of the templates in src/kernels/simd, for AVX2 + FMA + F16C: 8 floats. Included
 * only by files compiled with AVX2 flags. Every operation fixes its order of summation. */
#ifndef ST_KERNELS_VEC_AVX2_H
#define ST_KERNELS_VEC_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels/avx2/bytes_avx2.h"

typedef __m256 vf;
typedef __m256i vi;
typedef int32_t __attribute__((may_alias, aligned(1))) vi_lane; /* in memory */

enum {
    VL = 8,
    QK_ROWS = 2, /* attention scores: rows by 4 keys */
    PV_ROWS = 4, /* attention values: rows by PV_VECS vectors */
    PV_VECS = 2,
    AT_ROWS = 32,  /* attention: rows that a tile of keys is widened for */
    DN_AT_ONCE = 4 /* dense attention: keys, or dimensions, by two vectors of queries */
};
#define AT_FEW 0 /* attention with keys or rows in lanes: AVX-512 only */

static inline vf vf_zero(void)
{
    return _mm256_setzero_ps();
}
static inline vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}
static inline vf vf_load(const void *p)
{
    return _mm256_loadu_ps(p);
}
static inline void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v);
}
static inline __m256i vf_mask(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
/* The first n (1..VL) elements; the others are zero and their memory is not touched. */
static inline vf vf_load_n(const void *p, int n)
{
    return _mm256_maskload_ps(p, vf_mask(n));
}
static inline void vf_store_n(float *p, vf v, int n)
{
    _mm256_maskstore_ps(p, vf_mask(n), v);
}
/* The first n (0..VL) lanes, to be used more than once. */
typedef __m256i vmask;
static inline vmask vf_lanes(int n)
{
    return vf_mask(n);
}
static inline vf vf_load_lanes(const float *p, vmask m)
{
    return _mm256_maskload_ps(p, m);
}
static inline void vf_store_lanes(float *p, vf v, vmask m)
{
    _mm256_maskstore_ps(p, m, v);
}
static inline vf vf_widen_bf16(__m128i h)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
static inline __m128i vf_load_16bit_n(const void *p, int n)
{
    uint16_t h[8] = {0};
    memcpy(h, p, (size_t)n * sizeof *h);
    return _mm_loadu_si128((const __m128i *)(const void *)h);
}
static inline vf vf_load_bf16(const void *p)
{
    return vf_widen_bf16(_mm_loadu_si128(p));
}
static inline vf vf_load_bf16_n(const void *p, int n)
{
    return vf_widen_bf16(vf_load_16bit_n(p, n));
}
static inline vf vf_load_i8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
static inline vf vf_load_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}
static inline vf vf_load_f16_n(const void *p, int n)
{
    return _mm256_cvtph_ps(vf_load_16bit_n(p, n));
}

/* VL lanes of (column i, column i + VL). */
static inline void vf_load_bf16_pair(const void *p, vf v[2])
{
    vi u = _mm256_loadu_si256(p);
    v[0] = _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
    v[1] = _mm256_castsi256_ps(_mm256_and_si256(u, _mm256_set1_epi32((int)0xffff0000u)));
}
/* Of 2 VL pairs of E4M3 the first or second of each; over 256, which comes of reading their bits as
 * F16, and is exact for all but NaN. */
static inline __attribute__((always_inline)) void vf_load_f8(const void *p, int second, vf v[2])
{
    const vi keep = _mm256_set1_epi16((short)0xbf80);
    vi u = _mm256_loadu_si256(p);
    u = _mm256_and_si256(_mm256_srai_epi16(second ? u : _mm256_slli_epi16(u, 8), 1), keep);
    v[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(u));
    v[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(u, 1));
}

static inline vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
/* acc[j] += w[j] times the float at x. By hand: with intrinsics GCC 12 keeps some of a tile's sums
 * on the stack. */
static inline __attribute__((always_inline)) void vf_add_products(vf acc[2], const float *x,
                                                                  const vf w[2])
{
    vf b;
    __asm__("vbroadcastss %3, %0\n\tvfmadd231ps %4, %0, %1\n\tvfmadd231ps %5, %0, %2"
            : "=&x"(b), "+x"(acc[0]), "+x"(acc[1])
            : "m"(*x), "x"(w[0]), "x"(w[1]));
}
/* c - a*b */
static inline vf vf_fnma(vf a, vf b, vf c)
{
    return _mm256_fnmadd_ps(a, b, c);
}
/* The larger; b where either is NaN. */
static inline vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
static inline vf vf_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* Lanes that a comparison chose: all their bits. */
typedef __m256 vm;
static inline vm vm_le(vf a, vf b)
{
    return _mm256_cmp_ps(a, b, _CMP_LE_OQ);
}
static inline vm vm_or(vm a, vm b)
{
    return _mm256_or_ps(a, b);
}
/* a in the lanes of m, else b. */
static inline vf vm_select(vm m, vf a, vf b)
{
    return _mm256_blendv_ps(b, a, m);
}
/* a*b + c in the lanes of m, else c. */
static inline vf vm_fma(vm m, vf a, vf b, vf c)
{
    return _mm256_blendv_ps(c, _mm256_fmadd_ps(a, b, c), m);
}
static inline vf vf_power2(__m256i n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
/* p * 2^n for integers n in [-250, 250], 0.5 <= p <= 2; overflow gives infinity, underflow rounds.
 * In two steps, because 2^n itself may be out of range. */
static inline vf vf_scale2(vf p, vf n)
{
    __m256i i = _mm256_cvtps_epi32(n);
    __m256i half = _mm256_srai_epi32(i, 1);
    return _mm256_mul_ps(_mm256_mul_ps(p, vf_power2(half)), vf_power2(_mm256_sub_epi32(i, half)));
}

/* The compiler must not leave out what v is made of. */
static inline void vf_keep(vf v)
{
    __asm__ volatile("" : : "v"(v));
}

/* Horizontal sums of four vectors, each by the same tree. */
static inline __m128 vf_sum4(vf a, vf b, vf c, vf d)
{
    vf ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    vf cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    __m256d x = _mm256_castps_pd(ab), y = _mm256_castps_pd(cd);
    vf s = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)),
                         _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}
static inline void vf_store4(float *p, __m128 v)
{
    _mm_storeu_ps(p, v);
}
static inline float vf_sum(vf a)
{
    return _mm_cvtss_f32(vf_sum4(a, a, a, a));
}
static inline float vf_hmax(vf a)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* Exchanges neighbours: b a d c ... */
static inline vf vf_swap_pairs(vf a)
{
    return _mm256_permute_ps(a, 0xb1);
}
/* Half a vector from memory, every element twice: a a b b ... */
static inline vf vf_load_twice(const float *p)
{
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)),
                                    _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
}
/* a*b - c in even elements, a*b + c in odd ones. */
static inline vf vf_fmaddsub(vf a, vf b, vf c)
{
    return _mm256_fmaddsub_ps(a, b, c);
}

/* t[i][j] and t[j][i] change places. */
static inline __attribute__((always_inline)) void vf_transpose(vf t[VL])
{
    vf u[VL];
    for (int i = 0; i < VL; i += 2) {
        u[i] = _mm256_unpacklo_ps(t[i], t[i + 1]);
        u[i + 1] = _mm256_unpackhi_ps(t[i], t[i + 1]);
    }
    for (int i = 0; i < VL; i += 4) /* t[i + c]: column 4q + c of rows i .. i+3 in half q */
        for (int j = 0; j < 2; j++) {
            __m256d a = _mm256_castps_pd(u[i + j]), b = _mm256_castps_pd(u[i + j + 2]);
            t[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
            t[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
        }
    for (int c = 0; c < 4; c++) {
        u[c] = _mm256_permute2f128_ps(t[c], t[c + 4], 0x20);
        u[c + 4] = _mm256_permute2f128_ps(t[c], t[c + 4], 0x31);
    }
    for (int i = 0; i < VL; i++)
        t[i] = u[i];
}

static inline vi vi_zero(void)
{
    return _mm256_setzero_si256();
}
static inline vi vi_set1(int32_t x)
{
    return _mm256_set1_epi32(x);
}
static inline void vi_store(void *p, vi v)
{
    _mm256_storeu_si256(p, v);
}
static inline vi vi_of_vf(vf v)
{
    return _mm256_castps_si256(v);
}
static inline vf vf_of_vi(vi v)
{
    return _mm256_castsi256_ps(v);
}
static inline vf vi_to_float(vi v)
{
    return _mm256_cvtepi32_ps(v);
}
static inline vi vi_add(vi a, vi b)
{
    return _mm256_add_epi32(a, b);
}
static inline vi vi_sub(vi a, vi b)
{
    return _mm256_sub_epi32(a, b);
}
static inline vi vi_shift_left(vi a, int n)
{
    return _mm256_slli_epi32(a, n);
}
static inline vi vi_mul(vi a, vi b)
{
    return _mm256_mullo_epi32(a, b);
}
/* acc[j] += the sums of pairs of w[j] times two 16-bit inputs from x on. By hand: with intrinsics
 * GCC 12 copies accumulators to the stack and back, which halves the speed. */
static inline __attribute__((always_inline)) void vi_add_madd(vi acc[2], const int16_t *x,
                                                              const vi w[2])
{
    vi a, b;
    __asm__("vpbroadcastd %4, %1\n\tvpmaddwd %5, %1, %0\n\tvpmaddwd %6, %1, %1\n\t"
            "vpaddd %0, %2, %2\n\tvpaddd %1, %3, %3"
            : "=&x"(a), "=&x"(b), "+x"(acc[0]), "+x"(acc[1])
            : "m"(*(const vi_lane *)(const void *)x), "x"(w[0]), "x"(w[1]));
}
/* The same in lanes of 16 bits, with unsigned bytes w[j] and four signed ones from x on. */
static inline __attribute__((always_inline)) void vi_add_maddubs(vi acc[2], const int8_t *x,
                                                                 const vi w[2])
{
    vi a, b;
    __asm__("vpbroadcastd %4, %1\n\tvpmaddubsw %1, %5, %0\n\tvpmaddubsw %1, %6, %1\n\t"
            "vpaddw %0, %2, %2\n\tvpaddw %1, %3, %3"
            : "=&x"(a), "=&x"(b), "+x"(acc[0]), "+x"(acc[1])
            : "m"(*(const vi_lane *)(const void *)x), "x"(w[0]), "x"(w[1]));
}
/* Sums of pairs of 16-bit lanes. */
static inline vi vi_pair_sums(vi a)
{
    return _mm256_madd_epi16(a, _mm256_set1_epi16(1));
}
/* VL bytes as 32-bit integers. */
static inline vi vi_load_u8(const void *p)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(p));
}
/* 2 VL bytes as 16-bit integers. */
static inline vi vi_widen_i8(const void *p)
{
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(p));
}
/* The 16-bit halves of lanes of 32. */
static inline vi vi_low_half(vi a)
{
    return _mm256_srai_epi32(_mm256_slli_epi32(a, 16), 16);
}
static inline vi vi_high_half(vi a)
{
    return _mm256_srai_epi32(a, 16);
}
/* 8 VL half bytes as unsigned bytes: v[0] the low ones, v[1] the high ones. */
static inline void vi_widen_i4(const void *p, vi v[2])
{
    const vi low = _mm256_set1_epi8(15);
    vi u = _mm256_loadu_si256(p);
    v[0] = _mm256_and_si256(u, low);
    v[1] = _mm256_and_si256(_mm256_srli_epi16(u, 4), low);
}
/* Four bits of each lane, from bit n on. */
static inline vi vi_four_bits(vi a, int n)
{
    return _mm256_and_si256(_mm256_srli_epi32(a, n), _mm256_set1_epi32(15));
}
/* The larger of |a|'s bits and m, as unsigned integers: NaN is above infinity. */
static inline vi vi_absmax(vi m, vf a)
{
    vi bits = _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fffffff));
    return _mm256_max_epu32(m, bits);
}
static inline vi vi_max(vi a, vi b)
{
    return _mm256_max_epu32(a, b);
}
static inline uint32_t vi_hmax(vi m)
{
    __m128i h = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0x4e));
    h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(h);
}
/* Rounds to nearest even and stores VL bytes, clamped to [-127, 127]; no NaN. */
static inline void vf_store_i8(int8_t *q, vf v)
{
    v = _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps(-127)), _mm256_set1_ps(127));
    __m256i i = _mm256_cvtps_epi32(v);
    __m128i h = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64((__m128i *)(void *)q, _mm_packs_epi16(h, h));
}
/* 32 floats as integers, nearest even; no NaN, within [-128, 127]. */
static inline vb vf_to_i8(const vf v[4])
{
    vi a = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
    vi b = _mm256_packs_epi32(_mm256_cvtps_epi32(v[2]), _mm256_cvtps_epi32(v[3]));
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b),
                                       _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
static inline void vf_store_bf16(uint16_t *y, vf v)
{
    vi u = _mm256_castps_si256(v);
    vi high = _mm256_srli_epi32(u, 16);
    vi odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    vi r = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))),
                             16);
    vi quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    r = _mm256_blendv_epi8(r, quiet, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    __m128i h = _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
    _mm_storeu_si128((__m128i *)(void *)y, h);
}

#endif
