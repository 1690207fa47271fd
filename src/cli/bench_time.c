/* Timing for benchmarks: see bench_time.h. */
#include "cli/bench_time.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"

enum { MAX_RUNS = 31 };

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double st_bench_median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return x[n / 2];
}

double st_bench_time(const st_bench *b, st_timed_fn *fn, void *arg)
{
    double t[MAX_RUNS];
    uint64_t budget = b->quick ? 150000000u : 500000000u, begin = st_now_ns();
    int n = 0;
    fn(arg); /* pages, caches, clocks */
    while (n < MAX_RUNS && (n < 3 || st_now_ns() - begin < budget)) {
        uint64_t start = st_now_ns();
        fn(arg);
        t[n++] = (double)(st_now_ns() - start) * 1e-9;
    }
    return st_bench_median(t, n);
}

void *st_bench_filled(size_t bytes, bool floats)
{
    unsigned char *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    uint32_t x = 12345;
    if (!p)
        return NULL;
    for (size_t i = 0; i + 4 <= bytes; i += 4) {
        x = x * 1664525u + 1013904223u;
        float f = (float)(int32_t)x * 0x1p-31f;
        memcpy(p + i, floats ? (void *)&f : (void *)&x, 4);
    }
    return p;
}

void *st_bench_pages(size_t bytes)
{
    const size_t page = 2 << 20, all = (bytes + page - 1) / page * page;
    void *p = aligned_alloc(page, all);
    if (p)
        (void)madvise(p, all, MADV_HUGEPAGE);
    return p;
}
