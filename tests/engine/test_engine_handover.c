/* Prefill and decode on two engines, linked by UCX within one process: the decoding engine's
 * tokens and logprobs are bit for bit those of one engine alone, in every order of events; no
 * block stays behind when requests are cancelled or an engine goes away. */
#include "engine_harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MANY = 12, LONG = 700 };

/* Sanitizers make the arithmetic many times slower, and it is not what they are here for: prompts
 * are shorter, and moments further apart. */
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED SLOW_BUILD
#endif

static recorder alone[N_WORKLOAD], prefill[N_WORKLOAD], decode[N_WORKLOAD];
static int32_t long_prompts[MANY][LONG];

/* Two engines: bits do not depend on threads, so they may differ in that. */
typedef struct pair {
    st_engine *p, *d;
} pair;

static st_engine *sharing_engine(int n_threads, const st_engine_options *o)
{
    st_engine_options opts = *o;
    opts.transfer.enabled = true;
    opts.transfer.host = "127.0.0.1";
    st_engine *e = make_engine(harness_model("int8", n_threads), &opts);
    assert_true(st_engine_get_ports(e).transfer > 0);
    return e;
}

static pair make_pair(const st_engine_options *p, const st_engine_options *d)
{
    return (pair){sharing_engine(1, p), sharing_engine(2, d)};
}

static st_engine_stats stats_of(st_engine *e)
{
    st_engine_stats s;
    st_engine_get_stats(e, &s);
    return s;
}

/* The link lets go of blocks a moment after the last request has ended. */
static void wait_quiet(st_engine *e)
{
    st_engine_stats s = stats_of(e);
    for (int i = 0; i < 3000 && (s.used_blocks || s.offered || s.fetching); i++) {
        usleep(10000);
        s = stats_of(e);
    }
    assert_int_equal(s.used_blocks, 0);
    assert_int_equal(s.offered, 0);
    assert_int_equal(s.fetching, 0);
}

static void free_quiet(st_engine *e)
{
    wait_quiet(e);
    free_engine(e);
}

static void free_pair(pair e)
{
    free_quiet(e.d);
    free_quiet(e.p);
}

static void set_id(st_request *r, int n)
{
    snprintf(r->handover.id, sizeof r->handover.id, "%032x", 0x5000 + n);
}

/* The prefill leg as gateways send it: one token, which is thrown away. */
static void offer(st_engine *e, const st_request *r, int id, recorder *rec)
{
    st_request q = *r;
    q.handover.what = ST_HANDOVER_OFFER;
    q.sampling.max_tokens = q.sampling.min_tokens = 1;
    set_id(&q, id);
    submit(e, &q, rec);
}

/* from: the prefill leg's last event, for the block ids; NULL: they are not known yet. */
static void fetch(pair e, const st_request *r, int id, const recorder *from, recorder *rec)
{
    st_request q = *r;
    q.handover.what = ST_HANDOVER_FETCH;
    q.handover.host = "127.0.0.1";
    q.handover.port = st_engine_get_ports(e.p).transfer;
    if (from) {
        q.handover.remote_blocks = from->offered;
        q.handover.n_remote_blocks = from->n_offered;
    }
    set_id(&q, id);
    submit(e.d, &q, rec);
}

static st_request long_request(int i)
{
    st_request r = greedy_request(long_prompts[i], LONG - 13 * i, 24);
    r.sampling.ignore_eos = true;
    if (i % 2) {
        r.sampling.temperature = 0.9f;
        r.sampling.seed = (uint64_t)(77 + i);
        r.sampling.logprobs = 5;
    }
    return r;
}

static st_request less_long_request(int i)
{
    st_request r = long_request(i);
    if (SANITIZED)
        r.n_prompt /= SLOW_BUILD ? 4 : 2;
    return r;
}

/* What one engine says, without any sharing. */
static void run_alone(const st_engine_options *o, int n, st_request (*request)(int))
{
    st_engine *e = make_engine(harness_model("int8", 1), o);
    for (int i = 0; i < n; i++) {
        st_request r = request(i);
        submit(e, &r, &alone[i]);
    }
    for (int i = 0; i < n; i++)
        recorder_wait(&alone[i]);
    free_engine(e);
}

static void check_all(int n)
{
    for (int i = 0; i < n; i++) {
        recorder_wait(&prefill[i]);
        recorder_wait(&decode[i]);
        assert_same(&decode[i], &alone[i]);
        assert_int_equal(prefill[i].n, 1);
    }
}

/* Prefill first, then decode with the block ids that prefill has named. */
static void sequential_gives_the_same_bits(void **state)
{
    (void)state;
    static const st_dtype dtypes[] = {ST_BF16, ST_F32};
    for (int k = 0; k < 2; k++) {
        st_engine_options o = {.kv_dtype = dtypes[k]};
        run_alone(&o, N_WORKLOAD, workload);
        pair e = make_pair(&o, &o);
        for (int i = 0; i < N_WORKLOAD; i++) {
            st_request r = workload(i);
            offer(e.p, &r, i, &prefill[i]);
            recorder_wait(&prefill[i]);
            assert_int_equal(prefill[i].n_offered, (r.n_prompt + 15) / 16);
            fetch(e, &r, i, &prefill[i], &decode[i]);
        }
        check_all(N_WORKLOAD);
        wait_quiet(e.p); /* what it sent is counted when it has left */
        st_engine_stats p = stats_of(e.p), d = stats_of(e.d);
        assert_int_equal(p.offers, N_WORKLOAD);
        assert_int_equal(d.fetches, N_WORKLOAD);
        assert_int_equal(d.fetch_failures, 0);
        assert_true(d.transfer_bytes_received > 0);
        assert_true(p.transfer_bytes_sent >= d.transfer_bytes_received);
        free_pair(e);
    }
}

/* Both legs at once, now one first and now the other; long prompts in small chunks, many together;
 * block sizes are the same on both sides. */
static void parallel_gives_the_same_bits(void **state)
{
    (void)state;
    static const struct {
        st_dtype dtype;
        int32_t block_size, p_chunk, d_batch;
    } runs[] = {{ST_BF16, 16, 64, 512}, {ST_F32, 5, 7, 32}, {ST_BF16, 32, 512, 512}};
    int n_runs = SANITIZED ? 1 : 3;
    for (int k = 0; k < n_runs; k++) {
        st_engine_options one = {.kv_dtype = runs[k].dtype};
        run_alone(&one, MANY, less_long_request);
        st_engine_options p = {.kv_dtype = runs[k].dtype,
                               .block_size = runs[k].block_size,
                               .num_kv_blocks = 16384 / runs[k].block_size,
                               .max_prefill_chunk = runs[k].p_chunk};
        st_engine_options d = p;
        d.max_num_batched_tokens = runs[k].d_batch;
        pair e = make_pair(&p, &d);
        for (int i = 0; i < MANY; i++) {
            st_request r = less_long_request(i);
            if (i % 2)
                fetch(e, &r, i, NULL, &decode[i]);
            offer(e.p, &r, i, &prefill[i]);
            if (i % 2 == 0)
                fetch(e, &r, i, NULL, &decode[i]);
        }
        check_all(MANY);
        st_engine_stats s = stats_of(e.d);
        assert_int_equal(s.fetches, MANY);
        assert_int_equal(s.fetch_failures, 0);
        /* The last token of each prompt, and the generated ones: nothing else is computed. */
        assert_true(s.step_tokens <= (uint64_t)MANY * 25);
        free_pair(e);
    }
}

/* 609 tokens: all but the last, which is always computed, fill 38 blocks of 16. */
static st_request whole_blocks(int i)
{
    return long_request(7 + i);
}

/* What either side has cached already is not computed, and not sent. */
static void prefixes_are_used_on_either_side(void **state)
{
    (void)state;
    st_engine_options o = {0};
    run_alone(&o, 1, whole_blocks);
    pair e = make_pair(&o, &o);
    st_request r = whole_blocks(0), start = r;
    /* The prefill engine knows the first 320 tokens, the decoding engine the first 160. */
    start.n_prompt = 321;
    start.sampling.max_tokens = 1;
    submit(e.p, &start, &prefill[1]);
    recorder_wait(&prefill[1]);
    start.n_prompt = 161;
    submit(e.d, &start, &decode[1]);
    recorder_wait(&decode[1]);
    fetch(e, &r, 0, NULL, &decode[0]);
    offer(e.p, &r, 0, &prefill[0]);
    check_all(1);
    assert_int_equal(prefill[0].cached_tokens, 320);
    assert_int_equal(decode[0].cached_tokens, 160);
    const st_model_config *c = st_engine_model_config(e.d);
    size_t row = 4 * (size_t)st_model_kv_row_elems(harness_model("int8", 2));
    assert_int_equal(stats_of(e.d).transfer_bytes_received,
                     (size_t)(r.n_prompt - 1 - 160) * row * (size_t)c->n_layers);
    /* Fetched blocks are findable like computed ones, and no fetch is made for what is here. */
    fetch(e, &r, 2, NULL, &decode[2]);
    recorder_wait(&decode[2]);
    assert_same(&decode[2], &alone[0]);
    assert_int_equal(decode[2].cached_tokens, 608);
    /* The prefill engine is told, and keeps no blocks until its lease ends. */
    offer(e.p, &r, 4, &prefill[4]);
    recorder_wait(&prefill[4]);
    assert_int_equal(prefill[4].cached_tokens, 608);
    fetch(e, &r, 4, &prefill[4], &decode[4]);
    recorder_wait(&decode[4]);
    assert_same(&decode[4], &alone[0]);
    for (int i = 0; i < 1500 && stats_of(e.p).offered; i++)
        usleep(10000);
    assert_int_equal(stats_of(e.p).offered, 0);
    st_request one = greedy_request(long_prompts[1], 1, 4);
    fetch(e, &one, 3, NULL, &decode[3]);
    recorder_wait(&decode[3]);
    assert_int_equal(decode[3].finish, ST_FINISH_LENGTH);
    assert_int_equal(stats_of(e.d).fetches, 1);
    free_pair(e);
}

/* No KV is taken for a prompt that it was not computed for. */
static void another_prompts_rows_are_not_taken(void **state)
{
    (void)state;
    st_engine_options o = {0};
    run_alone(&o, 2, long_request);
    o.transfer.lease_ms = 300;
    pair e = make_pair(&o, &o);
    st_request r0 = long_request(0), r1 = long_request(1);
    offer(e.p, &r0, 9, &prefill[0]);
    recorder_wait(&prefill[0]);
    fetch(e, &r1, 9, &prefill[0], &decode[1]);
    recorder_wait(&decode[1]);
    assert_same(&decode[1], &alone[1]);
    assert_int_equal(stats_of(e.d).fetch_failures, 1);
    /* Nobody fetches the offer: its blocks come back when its lease ends. */
    wait_quiet(e.p);
    assert_int_equal(stats_of(e.p).offers_expired, 1);
    free_pair(e);
}

static void an_id_is_offered_once_at_a_time(void **state)
{
    (void)state;
    st_engine_options o = {0};
    run_alone(&o, 1, long_request);
    pair e = make_pair(&o, &o);
    st_request r = long_request(0);
    offer(e.p, &r, 10, &prefill[0]);
    recorder_wait(&prefill[0]);
    offer(e.p, &r, 10, &prefill[1]);
    recorder_wait(&prefill[1]);
    assert_int_equal(prefill[1].finish, ST_FINISH_ERROR);
    assert_non_null(strstr(prefill[1].error, "taken"));
    fetch(e, &r, 10, &prefill[0], &decode[0]);
    check_all(1);
    free_pair(e);
}

static void a_failed_fetch_ends_the_request_where_asked(void **state)
{
    (void)state;
    st_engine_options o = {0}, strict = {.transfer.fail_on_error = true};
    pair e = make_pair(&o, &strict);
    st_request r = long_request(0);
    recorder none = {.offered = {1, 2}, .n_offered = 2};
    fetch(e, &r, 1, &none, &decode[0]);
    recorder_wait(&decode[0]);
    assert_int_equal(decode[0].finish, ST_FINISH_ERROR);
    assert_true(strlen(decode[0].error) > 0);
    st_engine_stats s = stats_of(e.d);
    assert_int_equal(s.fetch_failures, 1);
    assert_int_equal(s.finished_error, 1);
    free_pair(e);
}

static void bad_handovers_are_refused(void **state)
{
    (void)state;
    st_engine_options o = {0};
    st_engine *plain = make_engine(harness_model("int8", 1), &o);
    st_engine *e = sharing_engine(2, &o);
    static const struct {
        st_handover_request h;
        const char *says;
    } bad[] = {
        {{.what = ST_HANDOVER_OFFER, .id = "12"}, "32 hexadecimal"},
        {{.what = ST_HANDOVER_FETCH, .id = "00112233445566778899aabbccddeeff", .port = 7}, "host"},
        {{.what = ST_HANDOVER_FETCH, .id = "00112233445566778899aabbccddeeff", .host = "h"},
         "port"},
    };
    st_request r = long_request(0);
    st_error err = {0};
    uint64_t id;
    r.on_token = (st_token_fn *)abort;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        r.handover = bad[i].h;
        assert_int_equal(st_engine_submit(e, &r, &id, &err), ST_EINVAL);
        if (!strstr(err.text, bad[i].says))
            fail_msg("'%s' lacks '%s'", err.text, bad[i].says);
        assert_int_equal(st_engine_submit(plain, &r, &id, &err), ST_EINVAL);
        assert_non_null(strstr(err.text, "shares no KV"));
    }
    free_engine(plain);
    free_engine(e);
}

/* Either leg is cancelled at many moments: before, while and after its work. Nothing stays. */
static void cancels_at_every_phase_leave_nothing(void **state)
{
    (void)state;
    st_engine_options o = {.max_prefill_chunk = 32, .transfer.lease_ms = 200};
    pair e = make_pair(&o, &o);
    int rounds = SANITIZED ? 12 : 60;
    for (int i = 0; i < rounds; i++) {
        /* Another prompt each time, or the caches would make all of it trivial. */
        st_request r = less_long_request(i % MANY);
        char salt[16];
        snprintf(salt, sizeof salt, "%d", i);
        r.cache_salt = salt;
        bool cancel_prefill = i % 2, cancel_decode = i % 3 != 1;
        int moment = SANITIZED ? i * 2700 % 34000 : i * 700 % 17000;
        offer(e.p, &r, 100 + i, &prefill[0]);
        if (i % 5)
            fetch(e, &r, 100 + i, NULL, &decode[0]);
        else
            decode[0].n_final = 0;
        usleep((useconds_t)moment);
        if (cancel_prefill)
            st_engine_cancel(e.p, prefill[0].id);
        if (cancel_decode && i % 5)
            st_engine_cancel(e.d, decode[0].id);
        recorder_wait(&prefill[0]);
        if (i % 5) {
            recorder_wait(&decode[0]);
            assert_true(cancel_decode || decode[0].finish == ST_FINISH_LENGTH);
        }
    }
    wait_quiet(e.d);
    wait_quiet(e.p);
    /* Both go on as if nothing had been. */
    free_pair(e);
    st_engine_options one = {0};
    run_alone(&one, 2, less_long_request);
    e = make_pair(&o, &o);
    for (int i = 0; i < 2; i++) {
        st_request r = less_long_request(i);
        offer(e.p, &r, i, &prefill[i]);
        fetch(e, &r, i, NULL, &decode[i]);
    }
    check_all(2);
    free_pair(e);
}

/* The prefill engine goes away in the middle: the prompt is computed at the other, with the same
 * bits. The decoding engine goes away: the prefill engine's blocks come back. */
static void an_engine_goes_away(void **state)
{
    (void)state;
    st_engine_options one = {0}, slow = {.max_num_batched_tokens = 16, .transfer.lease_ms = 500};
    run_alone(&one, 4, less_long_request);
    for (int k = 0; k < 4; k++) {
        pair e = make_pair(&slow, &one);
        for (int i = 0; i < 4; i++) {
            st_request r = less_long_request(i);
            offer(e.p, &r, i, &prefill[i]);
            fetch(e, &r, i, NULL, &decode[i]);
        }
        usleep((useconds_t)(k * 4000));
        if (k % 2 == 0) {
            st_engine_free(e.p);
            for (int i = 0; i < 4; i++) {
                recorder_wait(&decode[i]);
                assert_same(&decode[i], &alone[i]);
            }
            free_quiet(e.d);
        } else {
            st_engine_free(e.d);
            for (int i = 0; i < 4; i++) {
                recorder_wait(&prefill[i]);
                recorder_wait(&decode[i]);
            }
            free_quiet(e.p);
        }
    }
}

/* More prompts than blocks: those that fetch and hold blocks never keep each other waiting for
 * ever, and decoding preempts as without fetches. */
static void few_blocks_are_enough(void **state)
{
    (void)state;
    st_engine_options one = {0};
    int n = SANITIZED ? MANY / 2 : MANY;
    run_alone(&one, n, long_request);
    /* 700 tokens take 44 blocks, 24 more tokens two more. */
    st_engine_options p = {0}, d = {.num_kv_blocks = 100};
    pair e = make_pair(&p, &d);
    for (int i = 0; i < n; i++) {
        st_request r = long_request(i);
        offer(e.p, &r, i, &prefill[i]);
        fetch(e, &r, i, NULL, &decode[i]);
    }
    check_all(n);
    free_pair(e);
}

/* A prompt that is being offered loses its blocks to one that decodes: neither waits for ever, and
 * the fetcher computes the prompt. */
static void a_preempted_offer_stays_right(void **state)
{
    (void)state;
    st_engine_options one = {0};
    run_alone(&one, 1, long_request);
    st_engine_options p = {.max_num_batched_tokens = 6, .num_kv_blocks = 52}, d = {0};
    pair e = make_pair(&p, &d);
    st_request busy = greedy_request(goldens[0].prompt, goldens[0].n_prompt, 700);
    busy.sampling.ignore_eos = true;
    busy.priority = -1;
    submit_held(e.p, &busy, &prefill[1], 1);
    recorder_wait_tokens(&prefill[1], 1);
    st_request r = long_request(0);
    offer(e.p, &r, 0, &prefill[0]);
    fetch(e, &r, 0, NULL, &decode[0]);
    recorder_release(&prefill[1], 0);
    check_all(1);
    recorder_wait(&prefill[1]);
    assert_true(stats_of(e.p).preemptions > 0);
    assert_int_equal(prefill[0].n_offered, 0);
    assert_int_equal(stats_of(e.d).fetch_failures, 1);
    free_pair(e);
}

static int set_up(void **state)
{
    (void)state;
    harness_init();
    for (int i = 0; i < MANY; i++)
        long_prompt(long_prompts[i], LONG, i);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    harness_free();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sequential_gives_the_same_bits),
        cmocka_unit_test(parallel_gives_the_same_bits),
        cmocka_unit_test(prefixes_are_used_on_either_side),
        cmocka_unit_test(another_prompts_rows_are_not_taken),
        cmocka_unit_test(an_id_is_offered_once_at_a_time),
        cmocka_unit_test(a_failed_fetch_ends_the_request_where_asked),
        cmocka_unit_test(bad_handovers_are_refused),
        cmocka_unit_test(cancels_at_every_phase_leave_nothing),
        cmocka_unit_test(an_engine_goes_away),
        cmocka_unit_test(few_blocks_are_enough),
        cmocka_unit_test(a_preempted_offer_stays_right),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
