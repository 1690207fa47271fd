/* src/server/metrics: the exposition's text. */
#include "cmocka_all.h"

#include <string.h>

#include "server/metrics.h"

static void contains(const st_buf *b, const char *line)
{
    if (!strstr(b->data, line))
        fail_msg("missing: %s", line);
}

static void exposition(void **state)
{
    (void)state;
    st_metrics m = {.model = "a\"b\\c\nd"};
    st_engine_stats st = {.running = 3,
                          .waiting = 2,
                          .total_blocks = 8,
                          .used_blocks = 2,
                          .block_size = 16,
                          .prompt_tokens = 1ull << 40,
                          .step_tokens = 77};
    st.iteration_tokens[0] = 2;
    st.iteration_tokens[ST_ITERATION_BUCKETS - 1] = 1;
    st_buf b = ST_BUF_INIT;
    static const double seen[] = {0.0005, 0.001, 0.0011, 3, 1e9};
    for (size_t i = 0; i < 5; i++)
        st_metrics_observe(&m, ST_H_TIME_TO_FIRST_TOKEN, seen[i]);
    m.finished[ST_DONE_ABORT] = 4;
    assert_int_equal(st_metrics_write(&m, &st, 9, &b), ST_OK);
#define L "{engine=\"0\",model_name=\"a\\\"b\\\\c\\nd\""
    contains(&b, "\nvllm:num_requests_running" L "} 3\n");
    contains(&b, "\nvllm:num_requests_waiting" L "} 2\n");
    contains(&b, "\nvllm:kv_cache_usage_perc" L "} 0.25\n");
    contains(&b, "\nvllm:prompt_tokens_total" L "} 1099511627776\n");
    contains(&b, "\nvllm:cache_config_info" L ",block_size=\"16\",num_gpu_blocks=\"8\"} 1\n");
    contains(&b, "\nvllm:request_success_total" L ",finished_reason=\"abort\"} 4\n");
    contains(&b, "# TYPE vllm:time_to_first_token_seconds histogram\n");
    /* Bounds are inclusive, buckets cumulative. */
    contains(&b, "\nvllm:time_to_first_token_seconds_bucket" L ",le=\"0.001\"} 2\n");
    contains(&b, "\nvllm:time_to_first_token_seconds_bucket" L ",le=\"0.005\"} 3\n");
    contains(&b, "\nvllm:time_to_first_token_seconds_bucket" L ",le=\"5.0\"} 4\n");
    contains(&b, "\nvllm:time_to_first_token_seconds_bucket" L ",le=\"+Inf\"} 5\n");
    contains(&b, "\nvllm:time_to_first_token_seconds_count" L "} 5\n");
    contains(&b, "\nvllm:iteration_tokens_total_bucket" L ",le=\"+Inf\"} 3\n");
    contains(&b, "\nvllm:iteration_tokens_total_sum" L "} 77\n");
    contains(&b, "\nprocess_resident_memory_bytes ");
    contains(&b, "\nstarling:http_connections 9\n");
    st_buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(exposition)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
