/* Prometheus metrics under vLLM's names and meanings, so that its dashboards and the routers that
 * scrape it work here. One table each for histograms and for counters; text by
 * st_metrics_write. Not thread-safe: the I/O thread's. */
#ifndef ST_SERVER_METRICS_H
#define ST_SERVER_METRICS_H

#include "starling/buf.h"
#include "starling/engine.h"

typedef enum st_histogram_id {
    ST_H_TIME_TO_FIRST_TOKEN, /* from the request's arrival */
    ST_H_INTER_TOKEN,
    ST_H_TIME_PER_OUTPUT_TOKEN, /* mean of a request after its first token */
    ST_H_E2E,
    ST_H_QUEUE, /* submitted to first scheduled */
    ST_H_PREFILL,
    ST_H_DECODE,
    ST_H_INFERENCE,
    ST_H_PROMPT_TOKENS,
    ST_H_GENERATION_TOKENS,
    ST_H_PARAM_N,
    ST_H_PARAM_MAX_TOKENS,
    ST_HISTOGRAMS
} st_histogram_id;

typedef enum st_finished { ST_DONE_STOP, ST_DONE_LENGTH, ST_DONE_ABORT, ST_DONE_ERROR } st_finished;

enum { ST_MAX_BUCKETS = 28 };

typedef struct st_histogram {
    uint64_t counts[ST_MAX_BUCKETS + 1]; /* per bucket, the last: above all bounds */
    uint64_t count;
    double sum;
} st_histogram;

typedef struct st_metrics {
    const char *model; /* the label model_name */
    st_histogram histograms[ST_HISTOGRAMS];
    uint64_t finished[4];
} st_metrics;

void st_metrics_observe(st_metrics *m, st_histogram_id id, double value);
/* The whole exposition. connections: HTTP connections open now. */
ST_NODISCARD st_status st_metrics_write(const st_metrics *m, const st_engine_stats *stats,
                                        int connections, st_buf *out);

#endif
