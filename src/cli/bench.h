/* The parts of `starling bench`. */
#ifndef ST_CLI_BENCH_H
#define ST_CLI_BENCH_H

#include "cli/bench_plot.h"
#include "cli/bench_rows.h"
#include "kernels/peaks.h"
#include "starling/model.h"

typedef struct st_bench {
    const st_kernels *k;
    st_pool *pool;
    bool quick;
    st_peaks peaks;
    st_bench_rows rows;
    st_plot_panel by_depth, by_batch; /* generation, tokens/s */
} st_bench;

/* Products on synthetic shapes that do not fit in caches, then attention. */
ST_NODISCARD st_status st_bench_kernels(st_bench *b, st_error *err);

ST_NODISCARD st_status st_bench_attention(st_bench *b, st_error *err);

/* The experts of a layer on synthetic weights. */
ST_NODISCARD st_status st_bench_moe(st_bench *b, st_error *err);

typedef struct st_bench_model_options {
    const char *dir;
    const char *pack_cache; /* as in st_model_options */
    int32_t threads;
    st_dtype kv_dtype;
    int32_t prompt, generate; /* tokens */
    int32_t depth;            /* deepest context to generate at */
    int32_t batch;            /* most sequences generating at once */
} st_bench_model_options;

/* A checkpoint end to end: prompt, generation at depth and batched, where the time goes, and the
 * bound that memory sets. */
ST_NODISCARD st_status st_bench_model(st_bench *b, const st_bench_model_options *o, st_error *err);

#endif
