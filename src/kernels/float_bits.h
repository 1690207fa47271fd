/* Scalar conversions between float32 and the 16-bit formats, by bits: no rounding mode, no
 * instruction set. */
#ifndef ST_KERNELS_FLOAT_BITS_H
#define ST_KERNELS_FLOAT_BITS_H

#include <stdint.h>
#include <string.h>

static inline float st_float_of_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t st_bits_of_float(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float st_bf16_to_f32(uint16_t h)
{
    return st_float_of_bits((uint32_t)h << 16);
}

/* Round to nearest even; a NaN stays a (quiet) NaN with its sign and upper payload. */
static inline uint16_t st_f32_to_bf16(float f)
{
    uint32_t u = st_bits_of_float(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

static inline float st_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31)
        return st_float_of_bits(sign | 0x7f800000u | mantissa << 13 |
                                (mantissa ? 0x400000u : 0)); /* quiet, as vcvtph2ps does */
    if (exponent != 0)
        return st_float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float value = (float)mantissa * 0x1p-24f; /* exact: denormals are multiples of 2^-24 */
    return st_float_of_bits(st_bits_of_float(value) | sign);
}

/* Round to nearest even; what is too large becomes infinite. */
static inline uint16_t st_f32_to_f16(float f)
{
    uint32_t u = st_bits_of_float(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00);
    if (a >= 0x477ff000u) /* 65520 */
        return (uint16_t)(sign | 0x7c00);
    if (a < 0x38800000u) /* 2^-14: beside 0.5 the last bit is 2^-24, that of denormals */
        return (uint16_t)(sign | (st_bits_of_float(st_float_of_bits(a) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | (a + 0xfff + (a >> 13 & 1) - (112u << 23)) >> 13);
}

/* E4M3 without infinities: bias 7, the largest is 448; all ones is NaN. */
static inline float st_f8_to_f32(uint8_t b)
{
    uint32_t sign = (uint32_t)(b & 0x80) << 24;
    uint32_t exponent = b >> 3 & 15, mantissa = b & 7;
    if (exponent == 15 && mantissa == 7)
        return st_float_of_bits(sign | 0x7fc00000u);
    if (exponent != 0)
        return st_float_of_bits(sign | (exponent + 120) << 23 | mantissa << 20);
    return st_float_of_bits(st_bits_of_float((float)mantissa * 0x1p-9f) | sign);
}

#endif
