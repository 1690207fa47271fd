/* The same request gives the same bits: at any batch size, chunking of the prompt, block size,
 * number of threads, with and without prefix cache, after preemption, wherever a prompt's expanded
 * part ends. */
#include "engine_harness.h"
#include "lexicon_kv_b.h"

#include <stdlib.h>
#include <string.h>

static recorder expected[N_WORKLOAD], got[N_WORKLOAD];

static void greedy_answers_are_the_golden_ones(const char *name, st_dtype kv)
{
    st_engine_options o = {.kv_dtype = kv};
    st_engine *e = make_engine(harness_model(name, 1), &o);
    for (int i = 0; i < N_GOLDEN; i++) {
        st_request r = greedy_request(goldens[i].prompt, goldens[i].n_prompt, 100);
        submit(e, &r, &got[i]);
    }
    for (int i = 0; i < N_GOLDEN; i++) {
        bool int8 = strcmp(name, "int8") == 0;
        int32_t n = int8 ? goldens[i].n_int8_greedy : goldens[i].n_greedy;
        recorder_wait(&got[i]);
        assert_int_equal(got[i].finish, ST_FINISH_STOP);
        assert_int_equal(got[i].n, n);
        assert_memory_equal(got[i].tokens, int8 ? goldens[i].int8_greedy : goldens[i].greedy,
                            (size_t)n * sizeof(int32_t));
        assert_int_equal(got[i].prompt_tokens, goldens[i].n_prompt);
        assert_int_equal(got[i].generated_tokens, n);
        assert_true(got[i].submitted_ns <= got[i].scheduled_ns);
        assert_true(got[i].scheduled_ns < got[i].last_ns);
    }
    free_engine(e);
}

static void golden_int8(void **state)
{
    (void)state;
    greedy_answers_are_the_golden_ones("int8", ST_F32);
    greedy_answers_are_the_golden_ones("int8", ST_BF16);
}

static void golden_bf16(void **state)
{
    (void)state;
    greedy_answers_are_the_golden_ones("bf16", ST_F32);
}

static void compare_with(const char *name, int threads, int at_once, st_engine_options o)
{
    st_engine *e = make_engine(harness_model(name, threads), &o);
    run_workload(e, at_once, got);
    for (int i = 0; i < N_WORKLOAD; i++)
        assert_same(&got[i], &expected[i]);
    free_engine(e);
}

/* The reference: one request after the other, one thread, no cache, whole prompts. */
static void compute_expected(const char *name, st_dtype kv)
{
    st_engine_options o = {.disable_prefix_caching = true, .kv_dtype = kv};
    st_engine *e = make_engine(harness_model(name, 1), &o);
    run_workload(e, 1, expected);
    int varied = 0;
    for (int i = 0; i < N_WORKLOAD; i++) {
        assert_int_equal(expected[i].n_final, 1);
        assert_true(expected[i].finish == ST_FINISH_STOP || expected[i].finish == ST_FINISH_LENGTH);
        const recorder *greedy = &expected[i / 4 * 4];
        varied += expected[i].n != greedy->n || memcmp(expected[i].tokens, greedy->tokens,
                                                       (size_t)greedy->n * sizeof(int32_t)) != 0;
    }
    assert_true(varied > N_WORKLOAD / 4); /* the sampled ones do say something else */
    free_engine(e);
}

static void batches_chunks_and_caches(void **state)
{
    (void)state;
    compute_expected("int8", ST_BF16);
    st_engine_options base = {.kv_dtype = ST_BF16};
    const int at_once[] = {1, 7, N_WORKLOAD};
    const int chunk[] = {1, 16, 512};
    for (int b = 0; b < 3; b++)
        for (int c = 0; c < 3; c++)
            for (int off = 0; off < 2; off++) {
                if (SLOW_BUILD && (b + c + off) % 4 != 3)
                    continue;
                st_engine_options o = base;
                o.max_prefill_chunk = chunk[c];
                o.disable_prefix_caching = off;
                compare_with("int8", 1, at_once[b], o);
            }
}

static void budgets_blocks_and_threads(void **state)
{
    (void)state;
    st_engine_options o = {.kv_dtype = ST_BF16, .max_num_batched_tokens = 1};
    if (!SLOW_BUILD)
        compare_with("int8", 1, N_WORKLOAD, o);
    o.max_num_batched_tokens = 40;
    o.block_size = 1;
    if (!SLOW_BUILD)
        compare_with("int8", 1, N_WORKLOAD, o);
    o.max_num_batched_tokens = 33;
    o.block_size = 7;
    compare_with("int8", 2, N_WORKLOAD, o);
    o.max_num_batched_tokens = 0;
    o.block_size = 64;
    compare_with("int8", 2, 7, o);
    o.max_num_seqs = 5;
    compare_with("int8", 2, N_WORKLOAD, o);
}

static void other_weights_and_kv_types(void **state)
{
    (void)state;
    st_engine_options o = {.kv_dtype = ST_F32};
    compute_expected("bf16", ST_F32);
    compare_with("bf16", 2, N_WORKLOAD, o);
    o.max_prefill_chunk = 3;
    o.block_size = 4;
    compare_with("bf16", 1, 7, o);
    o = (st_engine_options){.kv_dtype = ST_I8};
    compute_expected("int8", ST_I8);
    compare_with("int8", 2, N_WORKLOAD, o);
    o.max_prefill_chunk = 5;
    o.block_size = 8;
    compare_with("int8", 1, 7, o);
}

/* Few blocks: requests are preempted in the middle of their answers and computed again. */
/* Without log-probabilities a greedy or top-k choice has its few best logits alone computed. */
static void the_best_logits_are_enough(void **state)
{
    (void)state;
    st_engine_options o = {.kv_dtype = ST_BF16};
    st_engine *e = make_engine(harness_model("bf16", 2), &o);
    for (int i = 0; i < N_GOLDEN; i++)
        for (int all = 0; all < 2; all++) {
            st_request r = greedy_request(goldens[i].prompt, goldens[i].n_prompt, 24);
            r.sampling.logprobs = all ? 0 : -1;
            r.sampling.ignore_eos = true;
            if (i % 2) {
                r.sampling.temperature = 1.5f;
                r.sampling.top_k = 1 + 8 * i;
                r.sampling.seed = 7;
            }
            submit(e, &r, &(all ? expected : got)[i]);
            if (i % 3)
                recorder_wait(&(all ? expected : got)[i]); /* alone, or with others */
        }
    for (int i = 0; i < N_GOLDEN; i++) {
        recorder_wait(&got[i]);
        recorder_wait(&expected[i]);
        assert_int_equal(got[i].n, expected[i].n);
        assert_memory_equal(got[i].tokens, expected[i].tokens,
                            (size_t)got[i].n * sizeof got[i].tokens[0]);
    }
    free_engine(e);
}

static void preemption(void **state)
{
    (void)state;
    compute_expected("int8", ST_BF16);
    for (int off = 0; off < 2; off++) {
        st_engine_options o = {.kv_dtype = ST_BF16,
                               .num_kv_blocks = 46,
                               .block_size = 4,
                               .disable_prefix_caching = off};
        st_engine *e = make_engine(harness_model("int8", 1), &o);
        run_workload(e, N_WORKLOAD, got);
        for (int i = 0; i < N_WORKLOAD; i++)
            assert_same(&got[i], &expected[i]);
        st_engine_stats s;
        st_engine_get_stats(e, &s);
        assert_true(s.preemptions > 0);
        print_message("%d preemptions\n", (int)s.preemptions);
        free_engine(e);
    }
}

/* ---- prompts that attend expanded, up to a point that depends on their length ---- */

static const int32_t lengths[] = {16, 17, 33, 255, 256, 257, 512, 513, 545};
enum { N_LENGTHS = sizeof lengths / sizeof *lengths, LONGEST = 545, ANSWER = 20 };
static int32_t text[LONGEST + ANSWER]; /* all prompts begin with it: they share what they may */

static st_request of_length(int32_t n)
{
    st_request r = greedy_request(text, n, ANSWER);
    r.sampling.ignore_eos = true;
    r.sampling.logprobs = 3;
    return r;
}

/* The longest first, so that the others could find its blocks. */
static void run_lengths(st_engine *e, bool at_once, recorder *out)
{
    for (int i = N_LENGTHS - 1; i >= 0; i--) {
        st_request r = of_length(lengths[i]);
        submit(e, &r, &out[i]);
        if (!at_once)
            recorder_wait(&out[i]);
    }
    for (int i = 0; i < N_LENGTHS; i++)
        recorder_wait(&out[i]);
}

/* In some of the ways below; each has this KV. */
static void check_lengths(const char *model, st_dtype kv, size_t first, size_t end)
{
    static const struct {
        int threads;
        bool at_once;
        st_engine_options o;
    } runs[] = {
        {1, true, {.max_prefill_chunk = 16}},
        {2, true, {.disable_prefix_caching = true}},
        {2, false, {.max_prefill_chunk = 100}},
        {1, false, {.block_size = 7, .max_prefill_chunk = 512}},
        {2, true, {.block_size = 32, .max_num_batched_tokens = 90}},
    };
    long_prompt(text, LONGEST, 3);
    st_engine_options alone = {.kv_dtype = kv, .disable_prefix_caching = true};
    st_engine *e = make_engine(harness_model(model, 1), &alone);
    run_lengths(e, false, expected);
    free_engine(e);
    end = end < sizeof runs / sizeof *runs ? end : sizeof runs / sizeof *runs;
    for (size_t i = first; i < end; i++) {
        if (SLOW_BUILD && i > first + 1)
            break;
        st_engine_options o = runs[i].o;
        o.kv_dtype = kv;
        e = make_engine(harness_model(model, runs[i].threads), &o);
        run_lengths(e, runs[i].at_once, got);
        for (int j = 0; j < N_LENGTHS; j++)
            assert_same(&got[j], &expected[j]);
        free_engine(e);
    }
}

static void expanded_prompts(void **state)
{
    (void)state;
    check_lengths("int8", ST_BF16, 0, SIZE_MAX);
}

/* Where kv_b_proj is INT8 too the expanded tokens' latents are quantized. */
static void expanded_by_integers(void **state)
{
    (void)state;
    char source[512], dir[64];
    harness_lexicon("int8", source, sizeof source);
    lexicon_kv_b_make(source, dir);
    check_lengths(dir, ST_BF16, 0, 3);
    check_lengths(dir, ST_I8, 2, 4);
    lexicon_kv_b_remove(dir);
}

static void one_token_at_a_time(void **state)
{
    (void)state;
    long_prompt(text, LONGEST, 3);
    for (int chunk = 1; chunk >= 0; chunk--) {
        st_engine_options o = {.kv_dtype = ST_F32, .max_prefill_chunk = chunk};
        st_engine *e = make_engine(harness_model("int8", 1), &o);
        st_request r = of_length(113);
        submit(e, &r, &got[chunk]);
        recorder_wait(&got[chunk]);
        free_engine(e);
    }
    assert_same(&got[1], &got[0]);
}

/* An answer that comes back as part of the next prompt attends otherwise there: its blocks are not
 * taken for the prompt's. */
static void an_answer_that_is_sent_back(void **state)
{
    (void)state;
    long_prompt(text, LONGEST, 5);
    for (int cached = 0; cached < 2; cached++) {
        st_engine_options o = {.kv_dtype = ST_BF16, .disable_prefix_caching = !cached};
        st_engine *e = make_engine(harness_model("int8", 1), &o);
        st_request r = of_length(44);
        submit(e, &r, &got[2]);
        recorder_wait(&got[2]);
        memcpy(text + 44, got[2].tokens, ANSWER * sizeof *text);
        r = of_length(44 + ANSWER + 20);
        submit(e, &r, &got[cached]);
        recorder_wait(&got[cached]);
        free_engine(e);
    }
    assert_same(&got[1], &got[0]);
    assert_int_equal(got[1].cached_tokens, 32); /* of 64 that the first request had left behind */
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
        cmocka_unit_test(golden_int8),
        cmocka_unit_test(golden_bf16),
        cmocka_unit_test(batches_chunks_and_caches),
        cmocka_unit_test(budgets_blocks_and_threads),
        cmocka_unit_test(other_weights_and_kv_types),
        cmocka_unit_test(the_best_logits_are_enough),
        cmocka_unit_test(preemption),
        cmocka_unit_test(expanded_prompts),
        cmocka_unit_test(expanded_by_integers),
        cmocka_unit_test(one_token_at_a_time),
        cmocka_unit_test(an_answer_that_is_sent_back),
    };
    return cmocka_run_group_tests(tests, NULL, teardown);
}
