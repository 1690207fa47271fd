/* exp and exp2 on vectors (Cody-Waite reduction, minimax polynomials of degree 6, below 2 ulp) and
 * what every template needs. Include a vec_*.h first. */
#ifndef ST_KERNELS_VEC_MATH_H
#define ST_KERNELS_VEC_MATH_H

#define ST_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define ST_UNROLL _Pragma("unroll")
#else
#define ST_UNROLL _Pragma("GCC unroll 16")
#endif

static inline int st_round_up(int n, int to)
{
    return (n + to - 1) / to * to;
}

/* Coefficients of 1 + c1 r + ... + c6 r^6, fitted for the least relative error. */
static inline vf st_poly6(vf r, float c1, float c2, float c3, float c4, float c5, float c6)
{
    vf p = vf_fma(vf_set1(c6), r, vf_set1(c5));
    p = vf_fma(p, r, vf_set1(c4));
    p = vf_fma(p, r, vf_set1(c3));
    p = vf_fma(p, r, vf_set1(c2));
    p = vf_fma(p, r, vf_set1(c1));
    return vf_fma(p, r, vf_set1(1));
}

/* 2^x; 0 below -200 (and -infinity), NaN for NaN. x <= 128. */
static inline vf vf_exp2(vf x)
{
    x = vf_max(vf_set1(-200), x); /* keeps a NaN: it is the second operand */
    vf n = vf_round(x);
    vf p = st_poly6(vf_sub(x, n), 0x1.62e43p-1f, 0x1.ebfbdcp-3f, 0x1.c6aee8p-5f, 0x1.3b2d4cp-7f,
                    0x1.5f3e54p-10f, 0x1.41fbbcp-13f);
    return vf_scale2(p, n);
}

/* e^x; infinity above 88.7, 0 below -104, NaN for NaN. */
static inline vf vf_exp(vf x)
{
    x = vf_min(vf_set1(100), vf_max(vf_set1(-110), x));
    vf n = vf_round(vf_mul(x, vf_set1(0x1.715476p+0f)));
    vf r = vf_fnma(n, vf_set1(0x1.62e4p-1f), x); /* exact: 15 bits of ln 2 */
    r = vf_fnma(n, vf_set1(0x1.7f7d1cp-20f), r);
    vf p = st_poly6(r, 1.0f, 0x1.fffffcp-2f, 0x1.55541ap-3f, 0x1.555822p-5f, 0x1.126782p-7f,
                    0x1.6ae73p-10f);
    return vf_scale2(p, n);
}

/* Element access by type; dtype is a constant where these are used. */
ST_INLINE vf vf_load_as(st_dtype dtype, const char *data, size_t i)
{
    return dtype == ST_F32    ? vf_load(data + i * 4)
           : dtype == ST_BF16 ? vf_load_bf16(data + i * 2)
                              : vf_load_f16(data + i * 2);
}
ST_INLINE vf vf_load_as_n(st_dtype dtype, const char *data, size_t i, int n)
{
    return dtype == ST_F32    ? vf_load_n(data + i * 4, n)
           : dtype == ST_BF16 ? vf_load_bf16_n(data + i * 2, n)
                              : vf_load_f16_n(data + i * 2, n);
}

#endif
