/* Prometheus exposition: see metrics.h. */
#include "server/metrics.h"

#include <dirent.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* Bucket bounds as vLLM has them; each list ends with 0. */
static const double first_token_s[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                                       0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10,
                                       20,    40,    80,   160,  640,  2560, 0};
static const double token_s[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                 0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80,  0};
static const double request_s[] = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,   20,
                                   30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680, 0};
static const double tokens[] = {1,     2,      5,      10,     20,      50,    100,
                                200,   500,    1000,   2000,   5000,    10000, 20000,
                                50000, 100000, 200000, 500000, 1000000, 0};
static const double choices[] = {1, 2, 5, 10, 20, 0};

static const struct histogram_row {
    const char *name, *help;
    const double *bounds;
} histogram_rows[ST_HISTOGRAMS] = {
    [ST_H_TIME_TO_FIRST_TOKEN] = {"vllm:time_to_first_token_seconds",
                                  "Time from a request's arrival to its first token.",
                                  first_token_s},
    [ST_H_INTER_TOKEN] = {"vllm:inter_token_latency_seconds",
                          "Time between one token and the next.", token_s},
    [ST_H_TIME_PER_OUTPUT_TOKEN] = {"vllm:time_per_output_token_seconds",
                                    "Mean time per token after a request's first.", token_s},
    [ST_H_E2E] = {"vllm:e2e_request_latency_seconds",
                  "Time from a request's arrival to its last token.", request_s},
    [ST_H_QUEUE] = {"vllm:request_queue_time_seconds", "Time spent waiting to be scheduled.",
                    request_s},
    [ST_H_PREFILL] = {"vllm:request_prefill_time_seconds",
                      "Time from being scheduled to the first token.", request_s},
    [ST_H_DECODE] = {"vllm:request_decode_time_seconds", "Time from the first token to the last.",
                     request_s},
    [ST_H_INFERENCE] = {"vllm:request_inference_time_seconds",
                        "Time from being scheduled to the last token.", request_s},
    [ST_H_PROMPT_TOKENS] = {"vllm:request_prompt_tokens", "Prompt tokens per request.", tokens},
    [ST_H_GENERATION_TOKENS] = {"vllm:request_generation_tokens", "Generated tokens per request.",
                                tokens},
    [ST_H_PARAM_N] = {"vllm:request_params_n", "The parameter n of requests.", choices},
    [ST_H_PARAM_MAX_TOKENS] = {"vllm:request_params_max_tokens",
                               "The parameter max_tokens of requests.", tokens},
};

void st_metrics_observe(st_metrics *m, st_histogram_id id, double value)
{
    const double *bounds = histogram_rows[id].bounds;
    st_histogram *h = &m->histograms[id];
    size_t i = 0;
    while (bounds[i] > 0 && value > bounds[i])
        i++;
    h->counts[i]++;
    h->count++;
    h->sum += value;
}

static st_status head(st_buf *out, const char *name, const char *type, const char *help)
{
    return st_buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* A label's value: backslash, quote and newline escaped. */
static st_status labels(const st_metrics *m, st_buf *out)
{
    st_status s = st_buf_puts(out, "engine=\"0\",model_name=\"");
    for (const char *c = m->model; !s && *c; c++) {
        if (*c == '\\' || *c == '"')
            s = st_buf_putc(out, '\\');
        if (!s)
            s = *c == '\n' ? st_buf_puts(out, "\\n") : st_buf_putc(out, *c);
    }
    return s ? s : st_buf_putc(out, '"');
}

static st_status histogram(const st_histogram *h, const struct histogram_row *row,
                           const char *common, st_buf *out)
{
    st_status s = head(out, row->name, "histogram", row->help);
    uint64_t below = 0;
    for (size_t i = 0; !s && row->bounds[i] > 0; i++) {
        below += h->counts[i];
        bool whole = row->bounds[i] == floor(row->bounds[i]);
        s = st_buf_printf(out,
                          whole ? "%s_bucket{%s,le=\"%.1f\"} %" PRIu64 "\n"
                                : "%s_bucket{%s,le=\"%g\"} %" PRIu64 "\n",
                          row->name, common, row->bounds[i], below);
    }
    return s ? s
             : st_buf_printf(out,
                             "%s_bucket{%s,le=\"+Inf\"} %" PRIu64 "\n%s_sum{%s} %.9g\n"
                             "%s_count{%s} %" PRIu64 "\n",
                             row->name, common, h->count, row->name, common, h->sum, row->name,
                             common, h->count);
}

static st_status write_histograms(const st_metrics *m, const char *common, st_buf *out)
{
    st_status s = ST_OK;
    for (int i = 0; !s && i < ST_HISTOGRAMS; i++)
        s = histogram(&m->histograms[i], &histogram_rows[i], common, out);
    return s;
}

/* Gauges and counters that come straight from the engine. */
static st_status write_engine(const st_engine_stats *st, const char *common, st_buf *out)
{
    double used = st->total_blocks ? (double)st->used_blocks / st->total_blocks : 0;
    const struct {
        const char *name, *type, *help;
        double value;
    } rows[] = {
        {"vllm:num_requests_running", "gauge", "Requests in the running batch.", st->running},
        {"vllm:num_requests_waiting", "gauge", "Requests waiting to be scheduled.", st->waiting},
        {"vllm:kv_cache_usage_perc", "gauge", "KV blocks in use; 1 is all.", used},
        {"vllm:gpu_cache_usage_perc", "gauge", "vllm:kv_cache_usage_perc by its older name.", used},
        {"vllm:num_preemptions_total", "counter", "Requests preempted for want of KV blocks.",
         (double)st->preemptions},
        {"vllm:prompt_tokens_total", "counter", "Prompt tokens processed.",
         (double)st->prompt_tokens},
        {"vllm:generation_tokens_total", "counter", "Tokens generated.",
         (double)st->generation_tokens},
        {"vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the cache.",
         (double)st->prefix_queries},
        {"vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the cache.",
         (double)st->prefix_hits},
        {"starling:engine_steps_total", "counter", "Steps the engine has run.", (double)st->steps},
        {"starling:kv_blocks_used", "gauge", "KV blocks held by requests.", st->used_blocks},
        {"starling:num_requests_fetching", "gauge",
         "Requests whose prompt's KV is on its way from another engine.", st->fetching},
        {"starling:kv_offers_open", "gauge",
         "Finished prompts whose KV waits for a decoding engine.", st->offered},
        {"starling:kv_offers_total", "counter", "Prompts whose KV was offered to other engines.",
         (double)st->offers},
        {"starling:kv_offers_expired_total", "counter", "Offers that nobody fetched in time.",
         (double)st->offers_expired},
        {"starling:kv_fetches_total", "counter", "Prompts whose KV was asked of another engine.",
         (double)st->fetches},
        {"starling:kv_fetch_failures_total", "counter",
         "Fetches that failed, so that the prompt was computed here or its request ended.",
         (double)st->fetch_failures},
        {"starling:kv_transfer_sent_bytes_total", "counter", "KV sent to other engines.",
         (double)st->transfer_bytes_sent},
        {"starling:kv_transfer_received_bytes_total", "counter", "KV received from other engines.",
         (double)st->transfer_bytes_received},
        {"starling:kv_blocks_cached", "gauge", "KV blocks findable by content.", st->cached_blocks},
    };
    st_status s = ST_OK;
    for (size_t i = 0; !s && i < sizeof rows / sizeof *rows; i++) {
        s = head(out, rows[i].name, rows[i].type, rows[i].help);
        if (!s)
            s = st_buf_printf(out, "%s{%s} %.15g\n", rows[i].name, common, rows[i].value);
    }
    if (!s)
        s = head(out, "vllm:cache_config_info", "gauge", "The KV cache's configuration.");
    return s ? s
             : st_buf_printf(out,
                             "vllm:cache_config_info{%s,block_size=\"%d\",num_gpu_blocks=\"%d\"} "
                             "1\n",
                             common, st->block_size, st->total_blocks);
}

/* Counted by the engine, which knows its steps. */
static st_status write_iterations(const st_engine_stats *st, const char *common, st_buf *out)
{
    static const char name[] = "vllm:iteration_tokens_total";
    st_status s = head(out, name, "histogram", "Tokens per engine step.");
    uint64_t below = 0;
    for (int i = 0; !s && i < ST_ITERATION_BUCKETS - 1; i++) {
        below += st->iteration_tokens[i];
        s = st_buf_printf(out, "%s_bucket{%s,le=\"%d.0\"} %" PRIu64 "\n", name, common,
                          st_iteration_bounds[i], below);
    }
    below += st->iteration_tokens[ST_ITERATION_BUCKETS - 1];
    return s ? s
             : st_buf_printf(out,
                             "%s_bucket{%s,le=\"+Inf\"} %" PRIu64 "\n%s_sum{%s} %" PRIu64
                             "\n%s_count{%s} %" PRIu64 "\n",
                             name, common, below, name, common, st->step_tokens, name, common,
                             below);
}

static st_status write_finished(const st_metrics *m, const char *common, st_buf *out)
{
    static const char *const reasons[] = {"stop", "length", "abort", "error"};
    static const char name[] = "vllm:request_success_total";
    st_status s = head(out, name, "counter", "Finished requests, by reason.");
    for (int i = 0; !s && i < 4; i++)
        s = st_buf_printf(out, "%s{%s,finished_reason=\"%s\"} %" PRIu64 "\n", name, common,
                          reasons[i], m->finished[i]);
    return s;
}

/* Seconds since 1970 at which this process started: /proc counts ticks since boot. */
static double start_time(void)
{
    FILE *f = fopen("/proc/self/stat", "r");
    char line[1024];
    unsigned long long ticks = 0;
    if (f && fgets(line, sizeof line, f)) {
        const char *p = strrchr(line, ')'); /* the name may hold anything */
        for (int field = 2; p && field < 22; field++)
            p = strchr(p + 1, ' ');
        if (p)
            sscanf(p, "%llu", &ticks);
    }
    if (f)
        fclose(f);
    struct timespec now, up;
    clock_gettime(CLOCK_REALTIME, &now);
    clock_gettime(CLOCK_BOOTTIME, &up);
    return (double)(now.tv_sec - up.tv_sec) + (double)ticks / (double)sysconf(_SC_CLK_TCK);
}

static int open_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    int n = -3; /* ".", ".." and the directory itself */
    if (!d)
        return 0;
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static st_status write_process(int connections, st_buf *out)
{
    unsigned long virt = 0, rss = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f) {
        if (fscanf(f, "%lu %lu", &virt, &rss) != 2)
            virt = rss = 0;
        fclose(f);
    }
    struct rlimit fds = {0, 0};
    struct timespec cpu;
    getrlimit(RLIMIT_NOFILE, &fds);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    double page = (double)sysconf(_SC_PAGESIZE);
    const struct {
        const char *name, *type, *help;
        double value;
    } rows[] = {
        {"process_virtual_memory_bytes", "gauge", "Virtual memory size.", (double)virt * page},
        {"process_resident_memory_bytes", "gauge", "Resident memory size.", (double)rss * page},
        {"process_start_time_seconds", "gauge", "Start time since the epoch.", start_time()},
        {"process_cpu_seconds_total", "counter", "Processor time used.",
         (double)cpu.tv_sec + (double)cpu.tv_nsec / 1e9},
        {"process_open_fds", "gauge", "Open file descriptors.", open_fds()},
        {"process_max_fds", "gauge", "Limit of open file descriptors.", (double)fds.rlim_cur},
        {"starling:http_connections", "gauge", "Open HTTP connections.", connections},
    };
    st_status s = ST_OK;
    for (size_t i = 0; !s && i < sizeof rows / sizeof *rows; i++) {
        s = head(out, rows[i].name, rows[i].type, rows[i].help);
        if (!s)
            s = st_buf_printf(out, "%s %.15g\n", rows[i].name, rows[i].value);
    }
    return s;
}

st_status st_metrics_write(const st_metrics *m, const st_engine_stats *stats, int connections,
                           st_buf *out)
{
    st_buf common = ST_BUF_INIT;
    st_status s = labels(m, &common);
    if (!s)
        s = write_engine(stats, common.data, out);
    if (!s)
        s = write_iterations(stats, common.data, out);
    if (!s)
        s = write_finished(m, common.data, out);
    if (!s)
        s = write_histograms(m, common.data, out);
    if (!s)
        s = write_process(connections, out);
    st_buf_free(&common);
    return s;
}
