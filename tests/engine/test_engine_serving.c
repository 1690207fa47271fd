/* Serving the lexicon: prefixes shared with running requests, salts, long prompts among decoding
 * requests, cancellation, draining, and what submission refuses. */
#include "engine_harness.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static recorder rec[N_WORKLOAD], other[N_WORKLOAD];

/* While the first request is still answering, others find the blocks of its prompt. What it has
 * generated is found only across paths: in a longer prompt these tokens attend expanded. */
static void share_with_a_running_request(bool across)
{
    static int32_t prompt[400];
    long_prompt(prompt, 400, 0);
    st_engine_options o = {.reuse_across_paths = across};
    st_engine *e = make_engine(harness_model("int8", 1), &o);
    st_request r = greedy_request(prompt, 400, 600);
    r.sampling.ignore_eos = true;
    submit_held(e, &r, &rec[0], 40);
    recorder_wait_tokens(&rec[0], 40);
    r = greedy_request(prompt, 400, 60);
    r.sampling.ignore_eos = true;
    submit_held(e, &r, &rec[1], 60);
    recorder_release(&rec[0], 300); /* the others are done by then */
    recorder_wait(&rec[1]);
    assert_int_equal(rec[1].cached_tokens, 399 / 16 * 16);
    static int32_t longer[432];
    memcpy(longer, prompt, sizeof prompt);
    memcpy(longer + 400, rec[1].tokens, 32 * sizeof(int32_t));
    r = greedy_request(longer, 432, 28);
    r.sampling.ignore_eos = true;
    submit(e, &r, &rec[2]);
    recorder_release(&rec[1], 0);
    recorder_wait(&rec[2]);
    recorder_wait_tokens(&rec[0], 300);
    int32_t found = across ? 416 : 384;
    assert_int_equal(rec[2].cached_tokens, found);
    st_engine_stats s;
    st_engine_get_stats(e, &s);
    assert_int_equal(s.running, 1); /* the first is not done yet: they shared with it */
    assert_int_equal(s.prefix_queries, 400 + 400 + 432);
    assert_int_equal(s.prefix_hits, 384 + found);
    recorder_release(&rec[0], 0);
    recorder_wait(&rec[0]);
    assert_memory_equal(rec[0].tokens, rec[1].tokens, 60 * sizeof(int32_t));
    assert_memory_equal(rec[0].logprobs, rec[1].logprobs, 60 * sizeof(float));
    assert_memory_equal(rec[0].tokens + 32, rec[2].tokens, 28 * sizeof(int32_t));
    if (across)
        assert_memory_equal(rec[0].logprobs + 32, rec[2].logprobs, 28 * sizeof(float));
    free_engine(e);
}

static void prefixes_are_shared_with_running_requests(void **state)
{
    (void)state;
    share_with_a_running_request(false);
    share_with_a_running_request(true);
}

/* Sixteen equal prompts at once: the prefix is computed once, the others wait for it. */
static void a_prefix_is_computed_once(void **state)
{
    (void)state;
    static int32_t prompt[300];
    long_prompt(prompt, 300, 1);
    st_engine_options o = {.max_num_batched_tokens = 128};
    st_engine *e = make_engine(harness_model("int8", 1), &o);
    st_request r = greedy_request(prompt, 300, 8);
    for (int i = 0; i < 16; i++)
        submit(e, &r, &rec[i]);
    for (int i = 0; i < 16; i++) {
        recorder_wait(&rec[i]);
        assert_same(&rec[i], &rec[0]);
        assert_int_equal(rec[i].cached_tokens, i == 0 ? 0 : 288);
    }
    st_engine_stats s;
    st_engine_get_stats(e, &s);
    assert_int_equal(s.prompt_tokens, 16 * 300);
    assert_int_equal(s.generation_tokens, 16 * rec[0].n);
    assert_true(s.step_tokens <= 300 + 15 * 12 + s.generation_tokens);
    uint64_t steps = 0;
    for (int i = 0; i < ST_ITERATION_BUCKETS; i++)
        steps += s.iteration_tokens[i];
    assert_int_equal(steps, s.steps);
    free_engine(e);
}

static void salts_do_not_share(void **state)
{
    (void)state;
    static int32_t prompt[100];
    long_prompt(prompt, 100, 2);
    st_engine_options o = {0};
    st_engine *e = make_engine(harness_model("int8", 1), &o);
    const char *salts[] = {NULL, "a", "b", "a", NULL};
    const int32_t cached[] = {0, 0, 0, 96, 96};
    for (int i = 0; i < 5; i++) {
        st_request r = greedy_request(prompt, 100, 4);
        r.cache_salt = salts[i];
        submit(e, &r, &rec[i]);
        recorder_wait(&rec[i]);
        assert_int_equal(rec[i].cached_tokens, cached[i]);
        assert_same(&rec[i], &rec[0]);
    }
    free_engine(e);
    o.disable_prefix_caching = true;
    e = make_engine(harness_model("int8", 1), &o);
    for (int i = 0; i < 2; i++) {
        st_request r = greedy_request(prompt, 100, 4);
        submit(e, &r, &rec[i]);
        recorder_wait(&rec[i]);
        assert_int_equal(rec[i].cached_tokens, 0);
    }
    free_engine(e);
}

static void assert_no_step_skipped(const recorder *r)
{
    for (int32_t i = 1; i < r->n; i++)
        assert_int_equal(r->steps[i], r->steps[i - 1] + 1);
}

/* A prompt of 1,500 tokens arrives among decoding requests: each of them is in every step from
 * its first token to its last, and the prompt takes many steps. */
static void a_long_prompt_stalls_nobody(void **state)
{
    (void)state;
    static int32_t prompt[1500];
    long_prompt(prompt, 1500, 3);
    st_engine_options o = {.max_num_batched_tokens = 64, .num_kv_blocks = 400};
    st_engine *e = make_engine(harness_model("int8", 1), &o);
    for (int i = 0; i < 12; i++) {
        st_request r =
            greedy_request(goldens[i % N_GOLDEN].prompt, goldens[i % N_GOLDEN].n_prompt, 150 + i);
        r.sampling.ignore_eos = true;
        submit_held(e, &r, &rec[i], i == 11 ? 3 : 0);
    }
    recorder_wait_tokens(&rec[11], 3);
    st_request r = greedy_request(prompt, 1500, 30);
    r.sampling.ignore_eos = true;
    submit(e, &r, &rec[12]);
    /* A short prompt behind the long one gets its turn as well. */
    r = greedy_request(goldens[0].prompt, goldens[0].n_prompt, 20);
    submit(e, &r, &rec[13]);
    recorder_release(&rec[11], 0);
    uint64_t last_step = 0;
    for (int i = 0; i < 14; i++) {
        recorder_wait(&rec[i]);
        assert_no_step_skipped(&rec[i]);
        if (i < 12 && rec[i].steps[rec[i].n - 1] > last_step)
            last_step = rec[i].steps[rec[i].n - 1];
    }
    assert_true(rec[12].steps[0] < last_step); /* it got through while they were running */
    assert_true(rec[12].steps[0] > rec[0].steps[2] + 1500 / 64);
    st_engine_stats s;
    st_engine_get_stats(e, &s);
    assert_int_equal(s.preemptions, 0);
    free_engine(e);
}

static void cancellation_frees_blocks(void **state)
{
    (void)state;
    static int32_t prompt[1500];
    st_engine_options o = {.max_num_batched_tokens = 48, .max_num_seqs = 12};
    st_engine *e = make_engine(harness_model("int8", 1), &o);
    uint64_t cancelled = 0;
    for (int round = 0; round < 6; round++) {
        for (int i = 0; i < N_WORKLOAD; i++) {
            st_request r = workload(i);
            r.sampling.ignore_eos = true;
            r.sampling.max_tokens = 500;
            if (i % 8 == 7) {
                long_prompt(prompt, 1500, round);
                r.prompt = prompt;
                r.n_prompt = 1500;
            }
            submit(e, &r, &rec[i]);
        }
        usleep((useconds_t)(round * 5000));
        for (int i = N_WORKLOAD - 1; i >= 0; i--)
            st_engine_cancel(e, rec[(i * 7) % N_WORKLOAD].id);
        for (int i = 0; i < N_WORKLOAD; i++) {
            recorder_wait(&rec[i]);
            cancelled += rec[i].finish == ST_FINISH_CANCELLED;
            assert_int_equal(rec[i].n_final, 1);
        }
        st_engine_stats s;
        st_engine_get_stats(e, &s);
        assert_int_equal(s.used_blocks, 0);
        assert_int_equal(s.finished_cancelled, cancelled);
        assert_int_equal(s.finished_cancelled + s.finished_length, (round + 1) * N_WORKLOAD);
    }
    assert_true(cancelled > 5 * N_WORKLOAD);
    st_engine_cancel(e, 0);
    st_engine_cancel(e, rec[0].id);
    st_engine_cancel(e, 1u << 30);
    free_engine(e);
}

static void draining_finishes_what_runs(void **state)
{
    (void)state;
    st_engine_options o = {.max_num_seqs = 4};
    st_engine *e = make_engine(harness_model("int8", 1), &o);
    for (int i = 0; i < N_WORKLOAD; i++) {
        st_request r = workload(i);
        submit(e, &r, &rec[i]);
    }
    st_engine_drain(e);
    st_request r = workload(0);
    st_error err;
    uint64_t id;
    r.on_token = (st_token_fn *)(void (*)(void))free; /* never called */
    assert_int_equal(st_engine_submit(e, &r, &id, &err), ST_ECANCELLED);
    assert_int_equal(id, 0);
    for (int i = 0; i < N_WORKLOAD; i++) {
        recorder_wait(&rec[i]);
        assert_true(rec[i].finish == ST_FINISH_STOP || rec[i].finish == ST_FINISH_LENGTH);
    }
    free_engine(e);
}

static void freeing_cancels_the_rest(void **state)
{
    (void)state;
    st_engine_options o = {.max_num_seqs = 4};
    st_engine *e = make_engine(harness_model("int8", 1), &o);
    for (int i = 0; i < N_WORKLOAD; i++) {
        st_request r = workload(i);
        r.sampling.ignore_eos = true;
        r.sampling.max_tokens = 1900;
        submit(e, &r, &rec[i]);
    }
    recorder_wait_tokens(&rec[0], 2);
    st_engine_free(e);
    for (int i = 0; i < N_WORKLOAD; i++) {
        assert_int_equal(rec[i].n_final, 1);
        if (rec[i].finish != ST_FINISH_CANCELLED) /* the first, should this thread have slept */
            assert_int_equal(rec[i].finish, ST_FINISH_LENGTH);
    }
    assert_int_equal(rec[N_WORKLOAD - 1].finish, ST_FINISH_CANCELLED);
}

static void refuse(st_engine *e, st_request r, st_status status, const char *text)
{
    st_error err = {0};
    uint64_t id = 77;
    r.on_token = (st_token_fn *)(void (*)(void))free; /* never called */
    assert_int_equal(st_engine_submit(e, &r, &id, &err), status);
    assert_int_equal(id, 0);
    if (!strstr(err.text, text))
        fail_msg("\"%s\" does not mention \"%s\"", err.text, text);
}

static void bad_requests_are_refused(void **state)
{
    (void)state;
    static int32_t prompt[2048];
    long_prompt(prompt, 2048, 0);
    st_engine_options o = {.max_model_len = 300, .num_kv_blocks = 16};
    st_engine *e = make_engine(harness_model("int8", 1), &o);
    assert_int_equal(st_engine_max_model_len(e), 256); /* what 16 blocks hold */
    refuse(e, greedy_request(prompt, 0, 5), ST_EINVAL, "prompt: empty");
    refuse(e, greedy_request(NULL, 5, 5), ST_EINVAL, "prompt: empty");
    refuse(e, greedy_request(prompt, 256, 5), ST_EINVAL, "256 tokens: expected at most 255");
    int32_t ids[3] = {5, 4096, 7};
    refuse(e, greedy_request(ids, 3, 5), ST_EINVAL, "token 4096 at index 1");
    ids[1] = -1;
    refuse(e, greedy_request(ids, 3, 5), ST_EINVAL, "token -1 at index 1");
    refuse(e, greedy_request(prompt, 5, 0), ST_EINVAL, "max_tokens: 0");
    st_request r = greedy_request(prompt, 5, 5);
    r.sampling.temperature = -1;
    refuse(e, r, ST_EINVAL, "temperature: -1");
    /* As long as fits, and to the end of the context. */
    r = greedy_request(prompt, 255, 50);
    submit(e, &r, &rec[0]);
    recorder_wait(&rec[0]);
    assert_int_equal(rec[0].n, 1);
    r = greedy_request(prompt, 250, 50);
    r.sampling.ignore_eos = true;
    submit(e, &r, &rec[0]);
    recorder_wait(&rec[0]);
    assert_int_equal(rec[0].n, 6);
    assert_int_equal(rec[0].finish, ST_FINISH_LENGTH);
    free_engine(e);
}

static void the_queue_is_bounded(void **state)
{
    (void)state;
    st_engine_options o = {.max_num_seqs = 1, .max_waiting = 3};
    st_engine *e = make_engine(harness_model("int8", 1), &o);
    st_request r = greedy_request(goldens[0].prompt, goldens[0].n_prompt, 1500);
    r.sampling.ignore_eos = true;
    submit_held(e, &r, &rec[0], 1);
    recorder_wait_tokens(&rec[0], 1);
    for (int i = 1; i < 4; i++)
        submit(e, &r, &rec[i]);
    refuse(e, r, ST_EFULL, "3 requests are waiting");
    for (int i = 0; i < 4; i++)
        st_engine_cancel(e, rec[i].id);
    recorder_release(&rec[0], 0);
    for (int i = 0; i < 4; i++)
        recorder_wait(&rec[i]);
    free_engine(e);
}

static void stop_ids_and_lengths(void **state)
{
    (void)state;
    st_engine_options o = {0};
    st_engine *e = make_engine(harness_model("int8", 1), &o);
    const golden *g = &goldens[0];
    st_request r = greedy_request(g->prompt, g->n_prompt, 5);
    submit(e, &r, &rec[0]);
    int32_t stops[] = {9, g->int8_greedy[7]};
    r = greedy_request(g->prompt, g->n_prompt, 100);
    r.sampling.stop_ids = stops;
    r.sampling.n_stop_ids = 2;
    submit(e, &r, &rec[1]);
    r.sampling.min_tokens = 12; /* says something else instead of the stop id */
    submit(e, &r, &rec[2]);
    stops[1] = 0; /* the engine has its own copy */
    for (int i = 0; i < 3; i++)
        recorder_wait(&rec[i]);
    assert_int_equal(rec[0].finish, ST_FINISH_LENGTH);
    assert_int_equal(rec[0].n, 5);
    assert_int_equal(rec[1].finish, ST_FINISH_STOP);
    assert_int_equal(rec[1].n, 8);
    assert_int_equal(rec[1].tokens[7], g->int8_greedy[7]);
    assert_true(rec[2].n >= 12);
    assert_int_not_equal(rec[2].tokens[7], g->int8_greedy[7]);
    free_engine(e);
}

/* Lower numbers run first, whatever came first. */
static void priority_decides_who_waits(void **state)
{
    (void)state;
    st_engine_options o = {.max_num_seqs = 1};
    st_engine *e = make_engine(harness_model("int8", 1), &o);
    st_request r = greedy_request(goldens[0].prompt, goldens[0].n_prompt, 300);
    r.sampling.ignore_eos = true;
    submit_held(e, &r, &rec[0], 1);
    recorder_wait_tokens(&rec[0], 1);
    const int32_t priorities[] = {5, 0, 5, -3};
    for (int i = 0; i < 4; i++) {
        r = greedy_request(goldens[i].prompt, goldens[i].n_prompt, 4);
        r.priority = priorities[i];
        submit(e, &r, &other[i]);
    }
    recorder_release(&rec[0], 0);
    for (int i = 0; i < 4; i++)
        recorder_wait(&other[i]);
    assert_true(other[3].steps[0] < other[1].steps[0]);
    assert_true(other[1].steps[0] < other[0].steps[0]);
    assert_true(other[0].steps[0] < other[2].steps[0]);
    free_engine(e);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    const struct {
        st_engine_options o;
        const char *text;
    } cases[] = {
        {{.max_num_seqs = -1, .kv_dtype = ST_BF16}, "max_num_seqs: -1"},
        {{.block_size = -16, .kv_dtype = ST_BF16}, "block_size: -16"},
        {{.max_model_len = -5, .kv_dtype = ST_F32}, "max_model_len: -5"},
        {{.kv_dtype = ST_F16}, "kv_dtype: F16"},
        {{.kv_dtype = ST_BF16, .kv_cache_memory = 100}, "kv_cache_memory: 100 bytes"},
        {{.kv_dtype = ST_BF16, .num_kv_blocks = 1, .block_size = 1}, "max_model_len: 1"},
        {{.kv_dtype = ST_BF16, .block_size = INT32_MAX}, "kv_cache_memory"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_error err = {0};
        st_engine *e;
        assert_true(st_engine_new(harness_model("int8", 1), &cases[i].o, &e, &err) != ST_OK);
        assert_null(e);
        if (!strstr(err.text, cases[i].text))
            fail_msg("\"%s\" does not mention \"%s\"", err.text, cases[i].text);
    }
    st_engine_free(NULL);
    /* Defaults: memory for all sequences at full length at most. */
    st_engine_options o = {.kv_dtype = ST_BF16};
    st_error err = {0};
    st_engine *e;
    assert_int_equal(st_engine_new(harness_model("int8", 1), &o, &e, &err), ST_OK);
    assert_int_equal(st_engine_max_num_seqs(e), 64); /* the model's max_outputs */
    assert_int_equal(st_engine_max_model_len(e), 2048);
    st_engine_stats s;
    st_engine_get_stats(e, &s);
    assert_in_range(s.total_blocks, 128, 64 * 128);
    assert_int_equal(s.block_size, 16);
    free_engine(e);
}

static int teardown(void **state)
{
    (void)state;
    harness_free();
    return 0;
}

int main(void)
{
    harness_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefixes_are_shared_with_running_requests),
        cmocka_unit_test(a_prefix_is_computed_once),
        cmocka_unit_test(salts_do_not_share),
        cmocka_unit_test(a_long_prompt_stalls_nobody),
        cmocka_unit_test(cancellation_frees_blocks),
        cmocka_unit_test(draining_finishes_what_runs),
        cmocka_unit_test(freeing_cancels_the_rest),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(the_queue_is_bounded),
        cmocka_unit_test(stop_ids_and_lengths),
        cmocka_unit_test(priority_decides_who_waits),
        cmocka_unit_test(bad_options_are_refused),
    };
    return cmocka_run_group_tests_name("engine_serving", tests, NULL, teardown);
}
