/* The vector type of the templates in src/kernels/simd, for AVX-512: 16 floats. Included only by
 * files compiled with AVX-512 flags. Every operation fixes its order of summation. */
#ifndef ST_KERNELS_VEC_AVX512_H
#define ST_KERNELS_VEC_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#include "kernels/avx2/bytes_avx2.h"

typedef __m512 vf;
typedef __m512i vi;
typedef int32_t __attribute__((may_alias, aligned(1))) vi_lane; /* in memory */

enum {
    VL = 16,
    AT_ROWS = 64,  /* attention: most rows of a group */
    DN_AT_ONCE = 8 /* dense attention: keys, or dimensions, by two vectors of queries */
};

/* Attention has keys in lanes for so many rows that share them, for more has rows in lanes. */
#define AT_FEW 15

static inline vf vf_zero(void)
{
    return _mm512_setzero_ps();
}
static inline vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline vf vf_load(const void *p)
{
    return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}
static inline __mmask16 vf_mask(int n)
{
    return (__mmask16)((1u << n) - 1);
}
/* The first n (1..VL) elements; the others are zero and their memory is not touched. */
static inline vf vf_load_n(const void *p, int n)
{
    return _mm512_maskz_loadu_ps(vf_mask(n), p);
}
static inline void vf_store_n(float *p, vf v, int n)
{
    _mm512_mask_storeu_ps(p, vf_mask(n), v);
}
/* The first n (0..VL) lanes, to be used more than once. */
typedef __mmask16 vmask;
static inline vmask vf_lanes(int n)
{
    return vf_mask(n);
}
static inline vf vf_load_lanes(const float *p, vmask m)
{
    return _mm512_maskz_loadu_ps(m, p);
}
static inline void vf_store_lanes(float *p, vf v, vmask m)
{
    _mm512_mask_storeu_ps(p, m, v);
}
static inline vf vf_widen_bf16(__m256i h)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
static inline vf vf_load_bf16(const void *p)
{
    return vf_widen_bf16(_mm256_loadu_si256(p));
}
static inline vf vf_load_bf16_n(const void *p, int n)
{
    return vf_widen_bf16(_mm256_maskz_loadu_epi16(vf_mask(n), p));
}
static inline vf vf_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
static inline vf vf_load_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}
static inline vf vf_load_f16_n(const void *p, int n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(vf_mask(n), p));
}

/* Pairs of BF16, the first of each in v[0]. */
static inline void vf_split_bf16(vi u, vf v[2])
{
    v[0] = _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
    v[1] = _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32((int)0xffff0000u)));
}
/* VL lanes of (column i, column i + VL). */
static inline void vf_load_bf16_pair(const void *p, vf v[2])
{
    vf_split_bf16(_mm512_loadu_si512(p), v);
}
/* The same, of n elements (1..2 VL): zeros behind them. */
static inline void vf_load_bf16_pair_n(const void *p, int n, vf v[2])
{
    vf_split_bf16(_mm512_maskz_loadu_epi16(0xffffffffu >> (32 - n), p), v);
}
/* Of 2 VL pairs of E4M3 the first or second of each; over 256, which comes of reading their bits as
 * F16, and is exact for all but NaN. */
static inline __attribute__((always_inline)) void vf_load_f8(const void *p, int second, vf v[2])
{
    const vi keep = _mm512_set1_epi16((short)0xbf80);
    vi u = _mm512_loadu_si512(p);
    u = _mm512_and_si512(_mm512_srai_epi16(second ? u : _mm512_slli_epi16(u, 8), 1), keep);
    v[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(u));
    v[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(u, 1));
}

static inline vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* acc[j] += w[j] times the float at x. By hand: with intrinsics GCC 12 keeps some of a tile's sums
 * on the stack. */
static inline __attribute__((always_inline)) void vf_add_products(vf acc[2], const float *x,
                                                                  const vf w[2])
{
    vf b;
    __asm__("vbroadcastss %3, %0\n\tvfmadd231ps %4, %0, %1\n\tvfmadd231ps %5, %0, %2"
            : "=&v"(b), "+v"(acc[0]), "+v"(acc[1])
            : "m"(*x), "v"(w[0]), "v"(w[1]));
}
/* c - a*b */
static inline vf vf_fnma(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
/* The larger; b where either is NaN. */
static inline vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
static inline vf vf_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* a where the lane's bit of m (0..15) is set, else b. */
static inline vf vf_where(uint32_t m, vf a, vf b)
{
    return _mm512_mask_blend_ps((__mmask16)m, b, a);
}
/* a*b + c where the bit is set, else c. */
static inline vf vf_fma_where(uint32_t m, vf a, vf b, vf c)
{
    return _mm512_mask3_fmadd_ps(a, b, c, (__mmask16)m);
}
/* Bits of the lanes with a <= b; NaN compares false. */
static inline uint32_t vf_le(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ);
}
/* Lanes that a comparison chose. */
typedef __mmask16 vm;
static inline vm vm_le(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ);
}
static inline vm vm_or(vm a, vm b)
{
    return (vm)(a | b);
}
/* a in the lanes of m, else b. */
static inline vf vm_select(vm m, vf a, vf b)
{
    return _mm512_mask_blend_ps(m, b, a);
}
/* a*b + c in the lanes of m, else c. */
static inline vf vm_fma(vm m, vf a, vf b, vf c)
{
    return _mm512_mask3_fmadd_ps(a, b, c, m);
}
/* p * 2^n for integers n in [-250, 250], 0.5 <= p <= 2; overflow gives infinity, underflow rounds.
 */
static inline vf vf_scale2(vf p, vf n)
{
    return _mm512_scalef_ps(p, n);
}

/* The compiler must not leave out what v is made of. */
static inline void vf_keep(vf v)
{
    __asm__ volatile("" : : "v"(v));
}

/* Horizontal sums of four vectors, each by the same tree. */
static inline __m128 vf_sum4(vf a, vf b, vf c, vf d)
{
    vf ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vf cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
    vf s = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
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
    return _mm512_reduce_max_ps(a);
}

/* Exchanges neighbours: b a d c ... */
static inline vf vf_swap_pairs(vf a)
{
    return _mm512_permute_ps(a, 0xb1);
}
/* Half a vector from memory, every element twice: a a b b ... */
static inline vf vf_load_twice(const float *p)
{
    const __m512i idx = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    return _mm512_permutexvar_ps(idx, _mm512_castps256_ps512(_mm256_loadu_ps(p)));
}
/* a*b - c in even elements, a*b + c in odd ones. */
static inline vf vf_fmaddsub(vf a, vf b, vf c)
{
    return _mm512_fmaddsub_ps(a, b, c);
}

/* t[i][j] and t[j][i] change places. */
static inline __attribute__((always_inline)) void vf_transpose(vf t[VL])
{
    vf u[VL];
    for (int i = 0; i < VL; i += 2) {
        u[i] = _mm512_unpacklo_ps(t[i], t[i + 1]);
        u[i + 1] = _mm512_unpackhi_ps(t[i], t[i + 1]);
    }
    for (int i = 0; i < VL; i += 4) /* t[i + c]: column 4q + c of rows i .. i+3 in quarter q */
        for (int j = 0; j < 2; j++) {
            __m512d a = _mm512_castps_pd(u[i + j]), b = _mm512_castps_pd(u[i + j + 2]);
            t[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            t[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int c = 0; c < 4; c++) {
        vf ab = _mm512_shuffle_f32x4(t[c], t[c + 4], 0x88);
        vf cd = _mm512_shuffle_f32x4(t[c + 8], t[c + 12], 0x88);
        u[c] = _mm512_shuffle_f32x4(ab, cd, 0x88);
        u[c + 8] = _mm512_shuffle_f32x4(ab, cd, 0xdd);
        ab = _mm512_shuffle_f32x4(t[c], t[c + 4], 0xdd);
        cd = _mm512_shuffle_f32x4(t[c + 8], t[c + 12], 0xdd);
        u[c + 4] = _mm512_shuffle_f32x4(ab, cd, 0x88);
        u[c + 12] = _mm512_shuffle_f32x4(ab, cd, 0xdd);
    }
    for (int i = 0; i < VL; i++)
        t[i] = u[i];
}

/* Eight floats, twice. */
static inline vf vf_load_8_twice(const float *p)
{
    return _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
}
static inline void vf_store_8(float *p, vf v)
{
    _mm256_storeu_ps(p, _mm512_castps512_ps256(v));
}
static inline vf vf_swap_halves(vf v)
{
    return _mm512_shuffle_f32x4(v, v, 0x4e);
}

/* t[j][d] in order d, j: two vectors become one of 2 VL elements. */
static inline void vf_interleave(vf t[2])
{
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high =
        _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
    vf a = t[0], b = t[1];
    t[0] = _mm512_permutex2var_ps(a, low, b);
    t[1] = _mm512_permutex2var_ps(a, high, b);
}

static inline vi vi_zero(void)
{
    return _mm512_setzero_si512();
}
static inline vi vi_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}
static inline void vi_store(void *p, vi v)
{
    _mm512_storeu_si512(p, v);
}
static inline vi vi_of_vf(vf v)
{
    return _mm512_castps_si512(v);
}
static inline vf vf_of_vi(vi v)
{
    return _mm512_castsi512_ps(v);
}
static inline vf vi_to_float(vi v)
{
    return _mm512_cvtepi32_ps(v);
}
static inline vi vi_add(vi a, vi b)
{
    return _mm512_add_epi32(a, b);
}
static inline vi vi_sub(vi a, vi b)
{
    return _mm512_sub_epi32(a, b);
}
static inline vi vi_shift_left(vi a, int n)
{
    return _mm512_slli_epi32(a, (unsigned)n);
}
static inline vi vi_mul(vi a, vi b)
{
    return _mm512_mullo_epi32(a, b);
}
/* acc[j] += the sums of pairs of w[j] times two 16-bit inputs from x on. By hand: with intrinsics
 * GCC 12 copies accumulators to the stack and back, which halves the speed. */
static inline __attribute__((always_inline)) void vi_add_madd(vi acc[2], const int16_t *x,
                                                              const vi w[2])
{
    vi a, b;
    __asm__("vpbroadcastd %4, %1\n\tvpmaddwd %5, %1, %0\n\tvpmaddwd %6, %1, %1\n\t"
            "vpaddd %0, %2, %2\n\tvpaddd %1, %3, %3"
            : "=&v"(a), "=&v"(b), "+v"(acc[0]), "+v"(acc[1])
            : "m"(*(const vi_lane *)(const void *)x), "v"(w[0]), "v"(w[1]));
}
/* The same in lanes of 16 bits, with unsigned bytes w[j] and four signed ones from x on. */
static inline __attribute__((always_inline)) void vi_add_maddubs(vi acc[2], const int8_t *x,
                                                                 const vi w[2])
{
    vi a, b;
    __asm__("vpbroadcastd %4, %1\n\tvpmaddubsw %1, %5, %0\n\tvpmaddubsw %1, %6, %1\n\t"
            "vpaddw %0, %2, %2\n\tvpaddw %1, %3, %3"
            : "=&v"(a), "=&v"(b), "+v"(acc[0]), "+v"(acc[1])
            : "m"(*(const vi_lane *)(const void *)x), "v"(w[0]), "v"(w[1]));
}
/* Sums of pairs of 16-bit lanes. */
static inline vi vi_pair_sums(vi a)
{
    return _mm512_madd_epi16(a, _mm512_set1_epi16(1));
}
/* VL bytes as 32-bit integers. */
static inline vi vi_load_u8(const void *p)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(p));
}
/* 2 VL bytes as 16-bit integers. */
static inline vi vi_widen_i8(const void *p)
{
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(p));
}
/* The 16-bit halves of lanes of 32. */
static inline vi vi_low_half(vi a)
{
    return _mm512_srai_epi32(_mm512_slli_epi32(a, 16), 16);
}
static inline vi vi_high_half(vi a)
{
    return _mm512_srai_epi32(a, 16);
}
/* 8 VL half bytes as unsigned bytes: v[0] the low ones, v[1] the high ones. */
static inline void vi_widen_i4(const void *p, vi v[2])
{
    const vi low = _mm512_set1_epi8(15);
    vi u = _mm512_loadu_si512(p);
    v[0] = _mm512_and_si512(u, low);
    v[1] = _mm512_and_si512(_mm512_srli_epi16(u, 4), low);
}
/* Four bits of each lane, from bit n on. */
static inline vi vi_four_bits(vi a, int n)
{
    return _mm512_and_si512(_mm512_srli_epi32(a, (unsigned)n), _mm512_set1_epi32(15));
}
/* The larger of |a|'s bits and m, as unsigned integers: NaN is above infinity. */
static inline vi vi_absmax(vi m, vf a)
{
    vi bits = _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff));
    return _mm512_max_epu32(m, bits);
}
static inline vi vi_max(vi a, vi b)
{
    return _mm512_max_epu32(a, b);
}
static inline uint32_t vi_hmax(vi m)
{
    return _mm512_reduce_max_epu32(m);
}
/* Rounds to nearest even and stores VL bytes, clamped to [-127, 127]; no NaN. */
static inline void vf_store_i8(int8_t *q, vf v)
{
    v = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-127)), _mm512_set1_ps(127));
    _mm_storeu_si128((__m128i *)(void *)q, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}
/* 32 floats as integers, nearest even; no NaN, within [-128, 127]. */
static inline vb vf_to_i8(const vf v[2])
{
    return _mm256_set_m128i(_mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v[1])),
                            _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v[0])));
}
static inline void vf_store_bf16(uint16_t *y, vf v)
{
    vi u = _mm512_castps_si512(v);
    vi odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    vi r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))),
                             16);
    vi quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
    r = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), r, quiet);
    _mm256_storeu_si256((__m256i *)(void *)y, _mm512_cvtepi32_epi16(r));
}

/* 16 bytes of four rows each. */
static inline __attribute__((always_inline)) vi vi_load_quarters(const char *const *rows, size_t at)
{
    const __m128i *a = (const void *)(rows[0] + at), *b = (const void *)(rows[1] + at);
    const __m128i *c = (const void *)(rows[8] + at), *d = (const void *)(rows[9] + at);
    vi v = _mm512_castsi128_si512(_mm_loadu_si128(a));
    v = _mm512_mask_broadcast_i32x4(v, 0x00f0, _mm_loadu_si128(b));
    v = _mm512_mask_broadcast_i32x4(v, 0x0f00, _mm_loadu_si128(c));
    return _mm512_mask_broadcast_i32x4(v, 0xf000, _mm_loadu_si128(d));
}
/* The same, rows four apart. */
static inline __attribute__((always_inline)) vi vi_load_quarters_4(const char *const *rows,
                                                                   size_t at)
{
    const __m128i *a = (const void *)(rows[0] + at), *b = (const void *)(rows[4] + at);
    const __m128i *c = (const void *)(rows[8] + at), *d = (const void *)(rows[12] + at);
    vi v = _mm512_castsi128_si512(_mm_loadu_si128(a));
    v = _mm512_mask_broadcast_i32x4(v, 0x00f0, _mm_loadu_si128(b));
    v = _mm512_mask_broadcast_i32x4(v, 0x0f00, _mm_loadu_si128(c));
    return _mm512_mask_broadcast_i32x4(v, 0xf000, _mm_loadu_si128(d));
}
/* Within quarters, t[i][j] and t[j][i] change places. */
static inline __attribute__((always_inline)) void vi_transpose_quarters(vi t[4])
{
    vi a = _mm512_unpacklo_epi32(t[0], t[1]), b = _mm512_unpackhi_epi32(t[0], t[1]);
    vi c = _mm512_unpacklo_epi32(t[2], t[3]), d = _mm512_unpackhi_epi32(t[2], t[3]);
    t[0] = _mm512_unpacklo_epi64(a, c);
    t[1] = _mm512_unpackhi_epi64(a, c);
    t[2] = _mm512_unpacklo_epi64(b, d);
    t[3] = _mm512_unpackhi_epi64(b, d);
}
/* 16 bytes of 16 rows: t[i] is word i of all. Lane 4q + i is row 2i + q % 2 + q / 2 * 8, as
 * vf_rows_to_keys wants it. */
static inline __attribute__((always_inline)) void vi_load_words(const char *const *rows, size_t at,
                                                                vi t[4])
{
    t[0] = vi_load_quarters(rows, at);
    t[1] = vi_load_quarters(rows + 2, at);
    t[2] = vi_load_quarters(rows + 4, at);
    t[3] = vi_load_quarters(rows + 6, at);
    vi_transpose_quarters(t);
}
/* The same, lane i being row i. */
static inline __attribute__((always_inline)) void vi_load_words_in_order(const char *const *rows,
                                                                         size_t at, vi t[4])
{
    t[0] = vi_load_quarters_4(rows, at);
    t[1] = vi_load_quarters_4(rows + 1, at);
    t[2] = vi_load_quarters_4(rows + 2, at);
    t[3] = vi_load_quarters_4(rows + 3, at);
    vi_transpose_quarters(t);
}
/* a and b: four rows each, transposed in quarters; as two keys of eight rows each. */
static inline __attribute__((always_inline)) void vi_join_quarters(float *first, float *second,
                                                                   vi a, vi b)
{
    const __m512i low = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
    const __m512i high = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
    _mm512_storeu_si512(first, _mm512_permutex2var_epi64(a, low, b));
    _mm512_storeu_si512(second, _mm512_permutex2var_epi64(a, high, b));
}
/* x[row][lane], lanes as of vi_load_words, to s[16 keys][8 rows]. */
static inline __attribute__((always_inline)) void vf_rows_to_keys(float *s, const vf x[8])
{
    vi a[4] = {vi_of_vf(x[0]), vi_of_vf(x[1]), vi_of_vf(x[2]), vi_of_vf(x[3])};
    vi b[4] = {vi_of_vf(x[4]), vi_of_vf(x[5]), vi_of_vf(x[6]), vi_of_vf(x[7])};
    vi_transpose_quarters(a);
    vi_transpose_quarters(b);
    vi_join_quarters(s, s + 64, a[0], b[0]);
    vi_join_quarters(s + 16, s + 80, a[1], b[1]);
    vi_join_quarters(s + 32, s + 96, a[2], b[2]);
    vi_join_quarters(s + 48, s + 112, a[3], b[3]);
}

#endif
