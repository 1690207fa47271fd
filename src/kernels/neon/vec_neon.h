/* The vector type of the templates in src/kernels/simd, for NEON (armv8-a): 8 floats in two
 * registers, so that 32 registers of 4 hold the tiles that 16 of 8 hold in AVX2. Every operation
 * fixes its order of summation. */
#ifndef ST_KERNELS_VEC_NEON_H
#define ST_KERNELS_VEC_NEON_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

typedef struct vf {
    float32x4_t lo, hi;
} vf;
typedef struct vi {
    int32x4_t lo, hi;
} vi;
/* Lanes that a comparison chose: all their bits. */
typedef struct vm {
    uint32x4_t lo, hi;
} vm;
/* 32 quantized inputs. */
typedef struct vb {
    int8x16_t lo, hi;
} vb;

enum {
    VL = 8,
    QK_ROWS = 2, /* attention scores: rows by 4 keys */
    PV_ROWS = 4, /* attention values: rows by PV_VECS vectors */
    PV_VECS = 2,
    AT_ROWS = 32,  /* attention: rows that a tile of keys is widened for */
    DN_AT_ONCE = 4 /* dense attention: keys, or dimensions, by two vectors of queries */
};
#define AT_FEW 0 /* attention with keys or rows in lanes: AVX-512 only */

#define VN_INLINE static inline __attribute__((always_inline))

VN_INLINE vf vf_of(float32x4_t lo, float32x4_t hi)
{
    return (vf){lo, hi};
}
VN_INLINE vi vi_of(int32x4_t lo, int32x4_t hi)
{
    return (vi){lo, hi};
}

/* ---- loads and stores; void pointers may be at any address ---- */

VN_INLINE vf vf_zero(void)
{
    return vf_of(vdupq_n_f32(0), vdupq_n_f32(0));
}
VN_INLINE vf vf_set1(float x)
{
    return vf_of(vdupq_n_f32(x), vdupq_n_f32(x));
}
VN_INLINE vf vf_load(const void *p)
{
    const uint8_t *b = p;
    return vf_of(vreinterpretq_f32_u8(vld1q_u8(b)), vreinterpretq_f32_u8(vld1q_u8(b + 16)));
}
VN_INLINE void vf_store(float *p, vf v)
{
    vst1q_f32(p, v.lo);
    vst1q_f32(p + 4, v.hi);
}
/* The first n (1..VL) elements; the others are zero and their memory is not touched. */
VN_INLINE vf vf_load_n(const void *p, int n)
{
    float x[VL] = {0};
    memcpy(x, p, (size_t)n * sizeof *x);
    return vf_load(x);
}
VN_INLINE void vf_store_n(float *p, vf v, int n)
{
    float x[VL];
    vf_store(x, v);
    memcpy(p, x, (size_t)n * sizeof *x);
}
/* The first n (0..VL) lanes, to be used more than once: mostly all of them. */
typedef int vmask;
VN_INLINE vmask vf_lanes(int n)
{
    return n;
}
VN_INLINE vf vf_load_lanes(const float *p, vmask n)
{
    return n == VL ? vf_load(p) : vf_load_n(p, n);
}
VN_INLINE void vf_store_lanes(float *p, vf v, vmask n)
{
    if (n == VL)
        vf_store(p, v);
    else
        vf_store_n(p, v, n);
}
VN_INLINE uint16x8_t vf_load_16bit(const void *p)
{
    return vreinterpretq_u16_u8(vld1q_u8(p));
}
VN_INLINE uint16x8_t vf_load_16bit_n(const void *p, int n)
{
    uint16_t h[8] = {0};
    memcpy(h, p, (size_t)n * sizeof *h);
    return vld1q_u16(h);
}
VN_INLINE vf vf_widen_bf16(uint16x8_t h)
{
    return vf_of(vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(h), 16)),
                 vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(h), 16)));
}
VN_INLINE vf vf_load_bf16(const void *p)
{
    return vf_widen_bf16(vf_load_16bit(p));
}
VN_INLINE vf vf_load_bf16_n(const void *p, int n)
{
    return vf_widen_bf16(vf_load_16bit_n(p, n));
}
VN_INLINE vf vf_load_i8(const int8_t *p)
{
    int16x8_t h = vmovl_s8(vld1_s8(p));
    return vf_of(vcvtq_f32_s32(vmovl_s16(vget_low_s16(h))), vcvtq_f32_s32(vmovl_high_s16(h)));
}
VN_INLINE vf vf_widen_f16(uint16x8_t h)
{
    float16x8_t f = vreinterpretq_f16_u16(h);
    return vf_of(vcvt_f32_f16(vget_low_f16(f)), vcvt_high_f32_f16(f));
}
VN_INLINE vf vf_load_f16(const void *p)
{
    return vf_widen_f16(vf_load_16bit(p));
}
VN_INLINE vf vf_load_f16_n(const void *p, int n)
{
    return vf_widen_f16(vf_load_16bit_n(p, n));
}

VN_INLINE vi vi_load(const void *p)
{
    const uint8_t *b = p;
    return vi_of(vreinterpretq_s32_u8(vld1q_u8(b)), vreinterpretq_s32_u8(vld1q_u8(b + 16)));
}
VN_INLINE vf vf_of_vi(vi v)
{
    return vf_of(vreinterpretq_f32_s32(v.lo), vreinterpretq_f32_s32(v.hi));
}
VN_INLINE vi vi_of_vf(vf v)
{
    return vi_of(vreinterpretq_s32_f32(v.lo), vreinterpretq_s32_f32(v.hi));
}

/* VL lanes of (column i, column i + VL). */
VN_INLINE void vf_load_bf16_pair(const void *p, vf v[2])
{
    const int32x4_t high = vdupq_n_s32((int32_t)0xffff0000u);
    vi u = vi_load(p);
    v[0] = vf_of_vi(vi_of(vshlq_n_s32(u.lo, 16), vshlq_n_s32(u.hi, 16)));
    v[1] = vf_of_vi(vi_of(vandq_s32(u.lo, high), vandq_s32(u.hi, high)));
}
/* E4M3 in the lower bytes of lanes of 16 bits as F16, over 256. */
VN_INLINE uint16x8_t vf_f16_of_f8(uint16x8_t u)
{
    int16x8_t s = vshrq_n_s16(vreinterpretq_s16_u16(vshlq_n_u16(u, 8)), 1);
    return vandq_u16(vreinterpretq_u16_s16(s), vdupq_n_u16(0xbf80));
}
/* Of 2 VL pairs of E4M3 the first or second of each; over 256, which comes of reading their bits as
 * F16, and is exact for all but NaN. */
VN_INLINE void vf_load_f8(const void *p, int second, vf v[2])
{
    for (int j = 0; j < 2; j++) {
        uint16x8_t u = vf_load_16bit((const uint8_t *)p + j * 16);
        v[j] = vf_widen_f16(vf_f16_of_f8(second ? vshrq_n_u16(u, 8) : u));
    }
}

/* ---- arithmetic ---- */

VN_INLINE vf vf_add(vf a, vf b)
{
    return vf_of(vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi));
}
VN_INLINE vf vf_sub(vf a, vf b)
{
    return vf_of(vsubq_f32(a.lo, b.lo), vsubq_f32(a.hi, b.hi));
}
VN_INLINE vf vf_mul(vf a, vf b)
{
    return vf_of(vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi));
}
VN_INLINE vf vf_div(vf a, vf b)
{
    return vf_of(vdivq_f32(a.lo, b.lo), vdivq_f32(a.hi, b.hi));
}
VN_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return vf_of(vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi));
}
/* acc[j] += w[j] times the float at x. */
VN_INLINE void vf_add_products(vf acc[2], const float *x, const vf w[2])
{
    vf b = vf_set1(*x);
    acc[0] = vf_fma(b, w[0], acc[0]);
    acc[1] = vf_fma(b, w[1], acc[1]);
}
/* c - a*b */
VN_INLINE vf vf_fnma(vf a, vf b, vf c)
{
    return vf_of(vfmsq_f32(c.lo, a.lo, b.lo), vfmsq_f32(c.hi, a.hi, b.hi));
}
/* a in the lanes of m, else b. */
VN_INLINE vf vm_select(vm m, vf a, vf b)
{
    return vf_of(vbslq_f32(m.lo, a.lo, b.lo), vbslq_f32(m.hi, a.hi, b.hi));
}
VN_INLINE vm vm_le(vf a, vf b)
{
    return (vm){vcleq_f32(a.lo, b.lo), vcleq_f32(a.hi, b.hi)};
}
VN_INLINE vm vm_or(vm a, vm b)
{
    return (vm){vorrq_u32(a.lo, b.lo), vorrq_u32(a.hi, b.hi)};
}
/* a*b + c in the lanes of m, else c. */
VN_INLINE vf vm_fma(vm m, vf a, vf b, vf c)
{
    return vm_select(m, vf_fma(a, b, c), c);
}
/* The larger; b where either is NaN, unlike FMAX and FMAXNM. */
VN_INLINE float32x4_t vn_max(float32x4_t a, float32x4_t b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
VN_INLINE vf vf_max(vf a, vf b)
{
    return vf_of(vn_max(a.lo, b.lo), vn_max(a.hi, b.hi));
}
VN_INLINE vf vf_min(vf a, vf b)
{
    return vf_of(vbslq_f32(vcltq_f32(a.lo, b.lo), a.lo, b.lo),
                 vbslq_f32(vcltq_f32(a.hi, b.hi), a.hi, b.hi));
}
VN_INLINE vf vf_round(vf a)
{
    return vf_of(vrndnq_f32(a.lo), vrndnq_f32(a.hi));
}
VN_INLINE float32x4_t vn_scale2(float32x4_t p, float32x4_t n)
{
    const int32x4_t bias = vdupq_n_s32(127);
    int32x4_t i = vcvtnq_s32_f32(n), half = vshrq_n_s32(i, 1);
    int32x4_t a = vshlq_n_s32(vaddq_s32(half, bias), 23);
    int32x4_t b = vshlq_n_s32(vaddq_s32(vsubq_s32(i, half), bias), 23);
    return vmulq_f32(vmulq_f32(p, vreinterpretq_f32_s32(a)), vreinterpretq_f32_s32(b));
}
/* p * 2^n for integers n in [-250, 250], 0.5 <= p <= 2; overflow gives infinity, underflow rounds.
 * In two steps, because 2^n itself may be out of range. */
VN_INLINE vf vf_scale2(vf p, vf n)
{
    return vf_of(vn_scale2(p.lo, n.lo), vn_scale2(p.hi, n.hi));
}

/* The compiler must not leave out what v is made of. */
VN_INLINE void vf_keep(vf v)
{
    __asm__ volatile("" : : "w"(v.lo), "w"(v.hi));
}

/* Horizontal sums of four vectors, each by the same tree. */
VN_INLINE float32x4_t vf_sum4(vf a, vf b, vf c, vf d)
{
    float32x4_t ab = vpaddq_f32(vaddq_f32(a.lo, a.hi), vaddq_f32(b.lo, b.hi));
    float32x4_t cd = vpaddq_f32(vaddq_f32(c.lo, c.hi), vaddq_f32(d.lo, d.hi));
    return vpaddq_f32(ab, cd);
}
VN_INLINE void vf_store4(float *p, float32x4_t v)
{
    vst1q_f32(p, v);
}
VN_INLINE float vf_sum(vf a)
{
    return vgetq_lane_f32(vf_sum4(a, a, a, a), 0);
}
VN_INLINE float vf_hmax(vf a)
{
    float32x4_t m = vn_max(a.lo, a.hi);
    m = vn_max(m, vextq_f32(m, m, 2));
    return vgetq_lane_f32(vn_max(m, vextq_f32(m, m, 1)), 0);
}

/* Exchanges neighbours: b a d c ... */
VN_INLINE vf vf_swap_pairs(vf a)
{
    return vf_of(vrev64q_f32(a.lo), vrev64q_f32(a.hi));
}
/* Half a vector from memory, every element twice: a a b b ... */
VN_INLINE vf vf_load_twice(const float *p)
{
    float32x4_t a = vld1q_f32(p);
    return vf_of(vzip1q_f32(a, a), vzip2q_f32(a, a));
}
/* a*b - c in even elements, a*b + c in odd ones. */
VN_INLINE vf vf_fmaddsub(vf a, vf b, vf c)
{
    const uint32x4_t even = vreinterpretq_u32_u64(vdupq_n_u64(0x80000000u));
    return vf_fma(a, b,
                  vf_of(vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(c.lo), even)),
                        vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(c.hi), even))));
}

VN_INLINE void vn_transpose4(float32x4_t t[4])
{
    float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(t[0], t[1]));
    float64x2_t b = vreinterpretq_f64_f32(vtrn2q_f32(t[0], t[1]));
    float64x2_t c = vreinterpretq_f64_f32(vtrn1q_f32(t[2], t[3]));
    float64x2_t d = vreinterpretq_f64_f32(vtrn2q_f32(t[2], t[3]));
    t[0] = vreinterpretq_f32_f64(vtrn1q_f64(a, c));
    t[1] = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
    t[2] = vreinterpretq_f32_f64(vtrn2q_f64(a, c));
    t[3] = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
}
/* t[i][j] and t[j][i] change places. */
VN_INLINE void vf_transpose(vf t[VL])
{
    float32x4_t a[4], b[4], c[4], d[4]; /* the quarters: upper left, upper right, lower ... */
    for (int i = 0; i < 4; i++) {
        a[i] = t[i].lo;
        b[i] = t[i].hi;
        c[i] = t[i + 4].lo;
        d[i] = t[i + 4].hi;
    }
    vn_transpose4(a);
    vn_transpose4(b);
    vn_transpose4(c);
    vn_transpose4(d);
    for (int i = 0; i < 4; i++) {
        t[i] = vf_of(a[i], c[i]);
        t[i + 4] = vf_of(b[i], d[i]);
    }
}

/* ---- integers ---- */

VN_INLINE vi vi_zero(void)
{
    return vi_of(vdupq_n_s32(0), vdupq_n_s32(0));
}
VN_INLINE vi vi_set1(int32_t x)
{
    return vi_of(vdupq_n_s32(x), vdupq_n_s32(x));
}
VN_INLINE vf vi_to_float(vi v)
{
    return vf_of(vcvtq_f32_s32(v.lo), vcvtq_f32_s32(v.hi));
}
VN_INLINE vi vi_add(vi a, vi b)
{
    return vi_of(vaddq_s32(a.lo, b.lo), vaddq_s32(a.hi, b.hi));
}
VN_INLINE vi vi_sub(vi a, vi b)
{
    return vi_of(vsubq_s32(a.lo, b.lo), vsubq_s32(a.hi, b.hi));
}
VN_INLINE vi vi_shift_left(vi a, int n)
{
    return vi_of(vshlq_s32(a.lo, vdupq_n_s32(n)), vshlq_s32(a.hi, vdupq_n_s32(n)));
}
VN_INLINE vi vi_mul(vi a, vi b)
{
    return vi_of(vmulq_s32(a.lo, b.lo), vmulq_s32(a.hi, b.hi));
}
/* VL bytes as 32-bit integers. */
VN_INLINE vi vi_load_u8(const void *p)
{
    int16x8_t h = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(p)));
    return vi_of(vmovl_s16(vget_low_s16(h)), vmovl_high_s16(h));
}
VN_INLINE vi vi_max(vi a, vi b)
{
    return vi_of(
        vreinterpretq_s32_u32(vmaxq_u32(vreinterpretq_u32_s32(a.lo), vreinterpretq_u32_s32(b.lo))),
        vreinterpretq_s32_u32(vmaxq_u32(vreinterpretq_u32_s32(a.hi), vreinterpretq_u32_s32(b.hi))));
}
/* The larger of |a|'s bits and m, as unsigned integers: NaN is above infinity. */
VN_INLINE vi vi_absmax(vi m, vf a)
{
    return vi_max(m, vi_of_vf(vf_of(vabsq_f32(a.lo), vabsq_f32(a.hi))));
}
VN_INLINE uint32_t vi_hmax(vi m)
{
    return vmaxvq_u32(vmaxq_u32(vreinterpretq_u32_s32(m.lo), vreinterpretq_u32_s32(m.hi)));
}
/* VL floats to 16-bit integers, nearest even. */
VN_INLINE int16x8_t vn_to_i16(vf v)
{
    return vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(v.lo)), vcvtnq_s32_f32(v.hi));
}
/* Rounds to nearest even and stores VL bytes, clamped to [-127, 127]; no NaN. */
VN_INLINE void vf_store_i8(int8_t *q, vf v)
{
    vst1_s8(q, vqmovn_s16(vn_to_i16(vf_min(vf_max(v, vf_set1(-127)), vf_set1(127)))));
}
/* 32 floats as integers, nearest even; no NaN, within [-128, 127]. */
VN_INLINE vb vf_to_i8(const vf v[4])
{
    return (vb){vqmovn_high_s16(vqmovn_s16(vn_to_i16(v[0])), vn_to_i16(v[1])),
                vqmovn_high_s16(vqmovn_s16(vn_to_i16(v[2])), vn_to_i16(v[3]))};
}
VN_INLINE void vb_store(int8_t *p, vb v)
{
    vst1q_s8(p, v.lo);
    vst1q_s8(p + 16, v.hi);
}
VN_INLINE int32_t vb_sum(vb v)
{
    return vaddlvq_s16(vaddq_s16(vpaddlq_s8(v.lo), vpaddlq_s8(v.hi)));
}
VN_INLINE uint16x4_t vn_to_bf16(float32x4_t v)
{
    uint32x4_t u = vreinterpretq_u32_f32(v), high = vshrq_n_u32(u, 16);
    uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
    uint32x4_t r = vshrq_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    uint32x4_t quiet = vorrq_u32(high, vdupq_n_u32(0x40));
    return vmovn_u32(vbslq_u32(vceqq_f32(v, v), r, quiet));
}
VN_INLINE void vf_store_bf16(uint16_t *y, vf v)
{
    vst1q_u16(y, vcombine_u16(vn_to_bf16(v.lo), vn_to_bf16(v.hi)));
}

#endif
