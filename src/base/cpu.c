/* CPU features: what CPUID reports and the operating system saves on a context switch (XCR0); on
 * ARM, what the kernel says in the auxiliary vector. */
#include "base/cpu.h"

#include <pthread.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

static st_cpu features;
static pthread_once_t once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)
/* XCR0 bits: SSE and AVX state; opmask, upper ZMM, upper 16 ZMM; AMX tile configuration and data.
 */
enum { XCR0_AVX = 0x6, XCR0_AVX512 = 0xe6, XCR0_AMX = 0x60000 };

static unsigned read_xcr0(void)
{
    unsigned lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return lo;
}

static bool bit(unsigned word, int i)
{
    return (word >> i) & 1;
}

static void detect(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27))
        return; /* no XSAVE enabled by the operating system: nothing beyond SSE */
    unsigned xcr0 = read_xcr0();
    bool fma = bit(c, 12) && bit(c, 29); /* FMA and F16C */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return;
    unsigned b7 = b, c7 = c, d7 = d;
    unsigned a71 = 0;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d))
        a71 = a;
    features.avx2 = (xcr0 & XCR0_AVX) == XCR0_AVX && fma && bit(b7, 5) && bit(b7, 8);
    bool zmm = features.avx2 && (xcr0 & XCR0_AVX512) == XCR0_AVX512;
    features.avx512 = zmm && bit(b7, 16) && bit(b7, 17) && bit(b7, 30) && bit(b7, 31);
    features.avx512_vnni = features.avx512 && bit(c7, 11);
    features.avx512_bf16 = features.avx512 && bit(a71, 5);
    features.avx_vnni = features.avx2 && bit(a71, 4);
    features.amx_int8 = (xcr0 & XCR0_AMX) == XCR0_AMX && bit(d7, 24) && bit(d7, 25);
}
#elif defined(__aarch64__)
static void detect(void)
{
    unsigned long caps = getauxval(AT_HWCAP);
    features.neon = caps & HWCAP_ASIMD;
    features.neon_dot = features.neon && caps & HWCAP_ASIMDDP;
}
#else
static void detect(void)
{
}
#endif

const st_cpu *st_cpu_features(void)
{
    pthread_once(&once, detect);
    return &features;
}
