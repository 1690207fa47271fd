/* What the kernel benchmarks share: medians of repeated calls, and memory to work on. */
#ifndef ST_CLI_BENCH_TIME_H
#define ST_CLI_BENCH_TIME_H

#include "cli/bench.h"

/* Sorts x. */
double st_bench_median(double *x, int n);

typedef void st_timed_fn(void *arg);

/* Median seconds of one call, after one that does not count. */
double st_bench_time(const st_bench *b, st_timed_fn *fn, void *arg);
/* 64-byte aligned bytes that are neither zero nor all alike, or floats between -1 and 1; NULL
 * without memory. To be freed. */
void *st_bench_filled(size_t bytes, bool floats);
/* Memory in large pages where there are some, as a model has its packs and its KV; NULL without
 * memory. To be freed. */
void *st_bench_pages(size_t bytes);

#endif
