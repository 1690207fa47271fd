/* Inlining and unrolling that the kernel templates rely on to keep tiles in registers. */
#ifndef ST_KERNELS_SIMD_MACROS_H
#define ST_KERNELS_SIMD_MACROS_H

#define ST_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define ST_UNROLL _Pragma("unroll")
#else
#define ST_UNROLL _Pragma("GCC unroll 16")
#endif

#endif
