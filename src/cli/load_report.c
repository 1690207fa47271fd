/* starling load: durations as histograms, and the report. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/load.h"

const char *const st_load_failure_names[ST_LOAD_FAILURES] = {
    "connect", "timeout", "cut short", "status", "error event", "format",
};

/* Bucket 64 * e + m holds [(64 + m) << e, (64 + m + 1) << e) nanoseconds; the first 64 hold one
 * nanosecond each. */
static size_t bucket_of(uint64_t ns)
{
    if (ns < ST_LOAD_SUB_BUCKETS)
        return (size_t)ns;
    int e = 63 - __builtin_clzll(ns) - 6;
    size_t b = (size_t)(e + 1) * ST_LOAD_SUB_BUCKETS + (size_t)((ns >> e) - ST_LOAD_SUB_BUCKETS);
    return b < ST_LOAD_BUCKETS ? b : ST_LOAD_BUCKETS - 1;
}

static uint64_t bucket_end(size_t b)
{
    if (b < ST_LOAD_SUB_BUCKETS)
        return b;
    uint64_t m = b % ST_LOAD_SUB_BUCKETS, e = b / ST_LOAD_SUB_BUCKETS - 1;
    return ((ST_LOAD_SUB_BUCKETS + m + 1) << e) - 1;
}

void st_load_times_add(st_load_times *t, uint64_t ns)
{
    t->bucket[bucket_of(ns)]++;
    t->count++;
    t->sum_ns += ns;
    if (ns > t->max_ns)
        t->max_ns = ns;
}

uint64_t st_load_times_quantile(const st_load_times *t, double q)
{
    uint64_t seen = 0, want = (uint64_t)(q * (double)t->count + 0.999999);
    for (size_t b = 0; b < ST_LOAD_BUCKETS; b++) {
        seen += t->bucket[b];
        if (t->bucket[b] && seen >= want) {
            uint64_t end = bucket_end(b);
            return end < t->max_ns ? end : t->max_ns;
        }
    }
    return t->max_ns;
}

static double ms(uint64_t ns)
{
    return (double)ns / 1e6;
}

static double mean_ms(const st_load_times *t)
{
    return t->count ? ms(t->sum_ns) / (double)t->count : 0;
}

static uint64_t all_failed(const st_load_result *r)
{
    uint64_t n = 0;
    for (int i = 0; i < ST_LOAD_FAILURES; i++)
        n += r->failed[i];
    return n;
}

static const struct {
    const char *name, *key;
    size_t at;
} rows[] = {
    {"time to first token", "ttft_ms", offsetof(st_load_result, ttft)},
    {"between tokens", "itl_ms", offsetof(st_load_result, itl)},
    {"whole answer", "total_ms", offsetof(st_load_result, total)},
};
static const struct {
    const char *key;
    double q;
} quantiles[] = {{"p50", 0.5}, {"p90", 0.9}, {"p95", 0.95}, {"p99", 0.99}};
enum { N_ROWS = sizeof rows / sizeof *rows, N_QUANTILES = sizeof quantiles / sizeof *quantiles };

static const st_load_times *row_times(const st_load_result *r, size_t i)
{
    return (const st_load_times *)((const char *)r + rows[i].at);
}

void st_load_print(const st_load_options *o, const st_load_result *r)
{
    double s = (double)r->elapsed_ns / 1e9;
    printf("requests    %" PRIu64 " ok, %" PRIu64 " failed in %.2f s%s, up to %d at once\n", r->ok,
           all_failed(r), s, r->interrupted ? " (interrupted)" : "", o->concurrency);
    if (r->dropped)
        printf("            %" PRIu64 " were due by the rate but all %d connections were busy\n",
               r->dropped, o->concurrency);
    printf("throughput  %.1f requests/s, %.1f output tokens/s, %.1f prompt tokens/s\n",
           (double)r->ok / s, (double)r->tokens / s, (double)r->prompt_tokens / s);
    if (r->prompt_tokens)
        printf("cache       %.1f%% of prompt tokens came from a prefix cache\n",
               100.0 * (double)r->cached_tokens / (double)r->prompt_tokens);
    printf("\n%-22s %9s", "ms", "mean");
    for (size_t q = 0; q < N_QUANTILES; q++)
        printf(" %9s", quantiles[q].key);
    printf(" %9s\n", "max");
    for (size_t i = 0; i < N_ROWS; i++) {
        const st_load_times *t = row_times(r, i);
        printf("%-22s %9.2f", rows[i].name, mean_ms(t));
        for (size_t q = 0; q < N_QUANTILES; q++)
            printf(" %9.2f", ms(st_load_times_quantile(t, quantiles[q].q)));
        printf(" %9.2f\n", ms(t->max_ns));
    }
    if (!all_failed(r))
        return;
    printf("\nfailed     ");
    for (int i = 0; i < ST_LOAD_FAILURES; i++)
        if (r->failed[i] && i != ST_LOAD_STATUS)
            printf(" %s: %" PRIu64, st_load_failure_names[i], r->failed[i]);
    for (int i = 0; i < 600; i++)
        if (r->status[i])
            printf(" status %d: %" PRIu64, i, r->status[i]);
    printf("\nfirst of them: %s\n", r->first_error);
}

static st_status json_times(const st_load_result *r, size_t i, st_buf *out)
{
    const st_load_times *t = row_times(r, i);
    st_status s = st_buf_printf(out, ",\"%s\":{\"mean\":%.4f", rows[i].key, mean_ms(t));
    for (size_t q = 0; q < N_QUANTILES && !s; q++)
        s = st_buf_printf(out, ",\"%s\":%.4f", quantiles[q].key,
                          ms(st_load_times_quantile(t, quantiles[q].q)));
    return s ? s : st_buf_printf(out, ",\"max\":%.4f}", ms(t->max_ns));
}

static st_status json_failures(const st_load_result *r, st_buf *out)
{
    st_status s = st_buf_puts(out, ",\"failures\":{");
    const char *comma = "";
    for (int i = 0; i < ST_LOAD_FAILURES && !s; i++)
        if (r->failed[i] && i != ST_LOAD_STATUS) {
            s = st_buf_printf(out, "%s\"%s\":%" PRIu64, comma, st_load_failure_names[i],
                              r->failed[i]);
            comma = ",";
        }
    for (int i = 0; i < 600 && !s; i++)
        if (r->status[i]) {
            s = st_buf_printf(out, "%s\"%d\":%" PRIu64, comma, i, r->status[i]);
            comma = ",";
        }
    if (!s)
        s = st_buf_puts(out, "},\"first_error\":");
    return s ? s : st_buf_json_string(out, r->first_error, strlen(r->first_error));
}

st_status st_load_print_json(const st_load_options *o, const st_load_result *r)
{
    st_buf out = ST_BUF_INIT;
    double t = (double)r->elapsed_ns / 1e9;
    st_status s = st_buf_printf(
        &out,
        "{\"ok\":%" PRIu64 ",\"failed\":%" PRIu64 ",\"dropped\":%" PRIu64
        ",\"interrupted\":%s,\"concurrency\":%d,\"elapsed_s\":%.4f,\"requests_per_s\":%.3f,"
        "\"output_tokens\":%" PRIu64 ",\"output_tokens_per_s\":%.3f,\"prompt_tokens\":%" PRIu64
        ",\"cached_tokens\":%" PRIu64,
        r->ok, all_failed(r), r->dropped, r->interrupted ? "true" : "false", o->concurrency, t,
        (double)r->ok / t, r->tokens, (double)r->tokens / t, r->prompt_tokens, r->cached_tokens);
    for (size_t i = 0; i < N_ROWS && !s; i++)
        s = json_times(r, i, &out);
    if (!s)
        s = json_failures(r, &out);
    if (!s)
        s = st_buf_puts(&out, "}\n");
    if (!s)
        fwrite(out.data, 1, out.len, stdout);
    st_buf_free(&out);
    return s;
}
