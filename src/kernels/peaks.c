/* Machine peaks: see peaks.h. */
#include "kernels/peaks.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"

enum { TRIES = 7, READ_CHUNK = 1 << 20, HUGE_PAGE = 2 << 20, COMPUTE_NS = 10000000 };

typedef struct peak_run {
    double (*loop)(int steps);
    int steps;
    double ops; /* of one task */
    const st_kernels *k;
    const float *memory;
    float *sums; /* [threads] */
} peak_run;

static void compute_task(void *arg, size_t task, int worker)
{
    peak_run *r = arg;
    double ops = r->loop(r->steps);
    if (task == 0)
        r->ops = ops;
}

/* Best rate of `tasks` equal tasks at once, in operations per nanosecond. */
static double compute_peak(st_pool *pool, size_t tasks, double (*loop)(int steps))
{
    if (!loop)
        return 0;
    peak_run r = {.loop = loop, .steps = 100000};
    uint64_t start = st_now_ns();
    loop(r.steps);
    uint64_t once = st_now_ns() - start + 1;
    if (once < COMPUTE_NS)
        r.steps = (int)((uint64_t)r.steps * (COMPUTE_NS / once + 1));
    double best = 0;
    for (int i = 0; i < TRIES; i++) {
        start = st_now_ns();
        st_pool_run(pool, tasks, compute_task, &r);
        double rate = r.ops * (double)tasks / (double)(st_now_ns() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

static void read_task(void *arg, size_t task, int worker)
{
    peak_run *r = arg;
    const size_t n = READ_CHUNK / sizeof *r->memory;
    r->sums[worker] += r->k->peak_read(r->memory + task * n, n);
}

/* In bytes per nanosecond. */
static double read_peak(const st_kernels *k, st_pool *pool, const float *memory, size_t bytes,
                        float *sums)
{
    if (!k->peak_read)
        return 0;
    peak_run r = {.k = k, .memory = memory, .sums = sums};
    double best = 0;
    for (int i = 0; i < TRIES; i++) {
        uint64_t start = st_now_ns();
        st_pool_run(pool, bytes / READ_CHUNK, read_task, &r);
        double rate = (double)bytes / (double)(st_now_ns() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

st_status st_peaks_measure(const st_kernels *k, st_pool *pool, bool quick, st_peaks *out,
                           st_error *err)
{
    size_t threads = (size_t)st_pool_threads(pool);
    /* Well beyond any cache that one socket's share of memory has. */
    size_t bytes = (size_t)(quick ? 128 : 512) << 20;
    float *memory = aligned_alloc(HUGE_PAGE, bytes);
    float *sums = calloc(threads, sizeof *sums);
    if (!memory || !sums) {
        free(memory);
        free(sums);
        return st_fail(err, ST_ENOMEM, "no memory to measure with: %zu bytes", bytes);
    }
    (void)madvise(memory, bytes, MADV_HUGEPAGE); /* as packed weights have it */
    memset(memory, 0, bytes);
    out->float_one = compute_peak(NULL, 1, k->peak_float);
    out->float_all = compute_peak(pool, threads, k->peak_float);
    out->i8_one = compute_peak(NULL, 1, k->peak_i8);
    out->i8_all = compute_peak(pool, threads, k->peak_i8);
    out->read_one = read_peak(k, NULL, memory, bytes, sums);
    out->read_all = read_peak(k, pool, memory, bytes, sums);
    free(memory);
    free(sums);
    return ST_OK;
}
