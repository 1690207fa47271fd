/* What this processor can do: x86's CPUID features that the operating system also saves (XCR0), or
 * what Linux reports of an ARM one (AT_HWCAP). */
#ifndef ST_BASE_CPU_H
#define ST_BASE_CPU_H

#include <stdbool.h>

typedef struct st_cpu {
    bool avx2;        /* AVX2 + FMA + F16C + BMI2 */
    bool avx512;      /* F, BW, DQ, VL */
    bool avx512_vnni; /* vpdpbusd on zmm */
    bool avx512_bf16;
    bool avx_vnni;
    bool amx_int8;
    bool neon;     /* every armv8-a has it */
    bool neon_dot; /* SDOT and UDOT */
} st_cpu;

const st_cpu *st_cpu_features(void); /* detected once; thread-safe */

#endif
