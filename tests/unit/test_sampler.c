/* src/engine/sampler.c against a plain implementation in doubles: sort everything, cut, draw. */
#include "cmocka_all.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/sampler.h"

#define VOCAB 5000

static uint64_t rng;

static uint32_t rnd(uint32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng >> 33) % n;
}

static float gauss(void)
{
    double s = 0;
    for (int i = 0; i < 12; i++)
        s += rnd(1000000) / 1e6;
    return (float)(s - 6);
}

/* ---- the plain implementation ---- */

typedef struct item {
    double logit;
    int id;
} item;

static int by_logit(const void *a, const void *b)
{
    const item *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return x->id - y->id;
}

/* In float like the sampler, so that ties stay ties. */
static void plain_change(float *l, const st_sampling *p, const st_sample_context *c)
{
    for (int t = 0; t < VOCAB; t++) {
        int seen = 0, said = 0;
        for (int i = 0; i < c->n_tokens; i++) {
            seen += c->tokens[i] == t;
            said += c->tokens[i] == t && i >= c->n_prompt;
        }
        if (seen)
            l[t] = l[t] > 0 ? l[t] / p->repetition_penalty : l[t] * p->repetition_penalty;
        l[t] -= p->frequency_penalty * (float)said;
        l[t] -= said ? p->presence_penalty : 0;
    }
    for (int i = 0; i < p->n_logit_bias; i++)
        l[p->logit_bias[i].token] += p->logit_bias[i].bias;
    if (c->n_tokens - c->n_prompt < p->min_tokens) {
        for (int i = 0; i < c->n_eos; i++)
            l[c->eos_ids[i]] = -INFINITY;
        for (int i = 0; i < p->n_stop_ids; i++)
            l[p->stop_ids[i]] = -INFINITY;
    }
}

/* The token, and how far (in probability) the draw was from a decision that rounding could turn. */
static int plain_sample(const float *logits, const st_sampling *p, const st_sample_context *c,
                        double *margin)
{
    static float l[VOCAB];
    static item items[VOCAB];
    static double w[VOCAB];
    memcpy(l, logits, sizeof l);
    plain_change(l, p, c);
    for (int i = 0; i < VOCAB; i++)
        items[i] = (item){(double)l[i], i};
    qsort(items, VOCAB, sizeof *items, by_logit);
    *margin = 1;
    if (p->temperature == 0) {
        return items[0].id;
    }
    int n = p->top_k > 0 && p->top_k < VOCAB ? p->top_k : VOCAB;
    double z = 0;
    int kept = 0;
    for (int i = 0; i < n; i++) {
        w[i] = exp((items[i].logit - items[0].logit) / (double)p->temperature);
        if (p->min_p > 0)
            *margin = fmin(*margin, fabs(w[i] - (double)p->min_p));
        if (w[i] < (double)p->min_p)
            break;
        z += w[i];
        kept++;
    }
    if (p->top_p < 1) {
        double cum = 0, all = z;
        int i = 0;
        while (i < kept && cum < all * (double)p->top_p) {
            cum += w[i++];
            *margin = fmin(*margin, fabs(cum / all - (double)p->top_p));
        }
        kept = i;
        z = cum;
    }
    double u = st_sampler_uniform(p->seed, (uint64_t)(c->n_tokens - c->n_prompt)), cum = 0;
    int id = items[0].id;
    for (int i = 0; i < kept; i++) {
        id = items[i].id;
        cum += w[i] / z;
        *margin = fmin(*margin, fabs(cum - u));
        if (cum > u)
            break;
    }
    return id;
}

/* ---- comparison over random parameters ---- */

static void random_sampling(st_sampling *p, st_logit_bias *bias, int32_t *stops)
{
    st_sampling_default(p);
    p->max_tokens = 100;
    p->seed = rnd(1000);
    p->temperature = rnd(4) == 0 ? 0.0f : 0.1f + (float)rnd(30) / 10.0f;
    if (rnd(2))
        p->top_p = 0.05f + (float)rnd(95) / 100.0f;
    if (rnd(2))
        p->top_k = (int32_t)rnd(rnd(2) ? 50 : 2 * VOCAB);
    if (rnd(3) == 0)
        p->min_p = (float)rnd(100) / 200.0f;
    if (rnd(3) == 0)
        p->repetition_penalty = 0.5f + (float)rnd(20) / 10.0f;
    if (rnd(3) == 0)
        p->presence_penalty = (float)rnd(40) / 10.0f - 2.0f;
    if (rnd(3) == 0)
        p->frequency_penalty = (float)rnd(40) / 10.0f - 2.0f;
    if (rnd(3) == 0) {
        p->n_logit_bias = 3;
        for (int i = 0; i < 3; i++)
            bias[i] = (st_logit_bias){(int32_t)rnd(VOCAB), (float)rnd(20) - 10.0f};
        p->logit_bias = bias;
    }
    if (rnd(3) == 0) {
        p->min_tokens = (int32_t)rnd(20);
        p->n_stop_ids = 2;
        stops[0] = (int32_t)rnd(VOCAB);
        stops[1] = (int32_t)rnd(VOCAB);
        p->stop_ids = stops;
    }
}

static void random_logits(float *l)
{
    float spread = (float)(1 + rnd(40)) / 8.0f;
    for (int i = 0; i < VOCAB; i++)
        l[i] = gauss() * spread;
    if (rnd(3) == 0) /* many ties */
        for (int i = 0; i < VOCAB; i++)
            l[i] = roundf(l[i] * 2.0f) / 2.0f;
}

static void agrees_with_the_plain_implementation(void **state)
{
    (void)state;
    const char *fixed = getenv("STARLING_TEST_SEED");
    rng = fixed ? strtoull(fixed, NULL, 0) : (uint64_t)time(NULL);
    print_message("STARLING_TEST_SEED=%llu\n", (unsigned long long)rng);
    st_sampler *s;
    assert_int_equal(st_sampler_new(VOCAB, &s, NULL), ST_OK);
    static float logits[VOCAB], copy[VOCAB];
    int32_t tokens[40], stops[2], eos = 7, compared = 0;
    st_logit_bias bias[3];
    for (int round = 0; round < 1500; round++) {
        st_sampling p;
        random_sampling(&p, bias, stops);
        if (round % 5 == 0)
            random_logits(logits);
        for (int i = 0; i < 40; i++)
            tokens[i] = (int32_t)rnd(rnd(2) ? 30 : VOCAB);
        int32_t n_prompt = 1 + (int32_t)rnd(20);
        st_sample_context c = {tokens, n_prompt, n_prompt + (int32_t)rnd(20), &eos, 1};
        memcpy(copy, logits, sizeof copy);
        st_sample got;
        assert_int_equal(st_sampler_run(s, logits, &p, &c, &got, NULL), ST_OK);
        assert_memory_equal(copy, logits, sizeof copy);
        double margin;
        int want = plain_sample(logits, &p, &c, &margin);
        if (margin < 2e-5)
            continue;
        assert_int_equal(got.token, want);
        compared++;
    }
    print_message("compared %d\n", compared);
    assert_true(compared > 500);
    st_sampler_free(s);
}

static void frequencies_follow_the_distribution(void **state)
{
    (void)state;
    enum { N = 200000 };
    const float logits[4] = {1.0f, 3.0f, 2.0f, -1.0f};
    int32_t token = 0, counts[4] = {0};
    st_sampler *s;
    assert_int_equal(st_sampler_new(4, &s, NULL), ST_OK);
    st_sampling p;
    st_sampling_default(&p);
    p.temperature = 1.5f;
    st_sample_context c = {&token, 1, 1, NULL, 0};
    for (int i = 0; i < N; i++) {
        st_sample got;
        p.seed = (uint64_t)i;
        assert_int_equal(st_sampler_run(s, logits, &p, &c, &got, NULL), ST_OK);
        counts[got.token]++;
    }
    double z = 0;
    for (int i = 0; i < 4; i++)
        z += exp((double)logits[i] / 1.5);
    for (int i = 0; i < 4; i++) {
        double expect = exp((double)logits[i] / 1.5) / z * N;
        assert_true(fabs(counts[i] - expect) < 5 * sqrt(expect));
    }
    st_sampler_free(s);
}

static void greedy_takes_the_lowest_id_of_equals(void **state)
{
    (void)state;
    float logits[40];
    for (int i = 0; i < 40; i++)
        logits[i] = i == 13 || i == 5 || i == 39 ? 2.5f : -1.0f;
    int32_t token = 0;
    st_sampler *s;
    assert_int_equal(st_sampler_new(40, &s, NULL), ST_OK);
    st_sampling p;
    st_sampling_default(&p);
    p.temperature = 0;
    p.logprobs = 4;
    st_sample_context c = {&token, 1, 1, NULL, 0};
    st_sample got;
    assert_int_equal(st_sampler_run(s, logits, &p, &c, &got, NULL), ST_OK);
    assert_int_equal(got.token, 5);
    assert_int_equal(got.n_top, 4);
    const int32_t order[4] = {5, 13, 39, 0};
    for (int i = 0; i < 4; i++)
        assert_int_equal(got.top[i].token, order[i]);
    st_sampler_free(s);
}

static void logprobs_are_of_the_raw_logits(void **state)
{
    (void)state;
    static float logits[VOCAB];
    rng = 99;
    random_logits(logits);
    int32_t token = 3, stops[1] = {4};
    st_sampler *s;
    assert_int_equal(st_sampler_new(VOCAB, &s, NULL), ST_OK);
    st_logit_bias bias = {17, 100.0f};
    st_sampling p;
    st_sampling_default(&p);
    p.temperature = 0.3f;
    p.logit_bias = &bias;
    p.n_logit_bias = 1;
    p.logprobs = 20;
    p.min_tokens = 2;
    p.stop_ids = stops;
    p.n_stop_ids = 1;
    st_sample_context c = {&token, 1, 1, NULL, 0};
    st_sample got;
    assert_int_equal(st_sampler_run(s, logits, &p, &c, &got, NULL), ST_OK);
    assert_int_equal(got.token, 17);
    double z = 0;
    for (int i = 0; i < VOCAB; i++)
        z += exp((double)logits[i]);
    assert_true(fabs((double)got.logprob - ((double)logits[17] - log(z))) < 1e-5);
    assert_int_equal(got.n_top, 20);
    for (int i = 0; i < 20; i++) {
        double want = (double)logits[got.top[i].token] - log(z);
        assert_true(fabs((double)got.top[i].logprob - want) < 1e-5);
        if (i > 0)
            assert_true(got.top[i].logprob <= got.top[i - 1].logprob);
    }
    st_sampler_free(s);
}

static void bad_logits_are_an_error(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    int32_t token = 0;
    st_sampler *s;
    assert_int_equal(st_sampler_new(37, &s, NULL), ST_OK);
    st_sampling p;
    st_sampling_default(&p);
    st_sample_context c = {&token, 1, 1, NULL, 0};
    for (int i = 0; i < 37; i++)
        for (int b = 0; b < 3; b++) {
            float logits[37] = {0};
            logits[i] = bad[b];
            st_sample got;
            st_error err;
            assert_int_equal(st_sampler_run(s, logits, &p, &c, &got, &err), ST_EINVAL);
            assert_non_null(strstr(err.text, "not a finite number"));
        }
    float logits[37] = {0};
    int32_t all[37];
    for (int i = 0; i < 37; i++)
        all[i] = i;
    p.stop_ids = all;
    p.n_stop_ids = 37;
    p.min_tokens = 1;
    st_sample got;
    assert_int_equal(st_sampler_run(s, logits, &p, &c, &got, NULL), ST_EINVAL);
    st_sampler_free(s);
}

static void extremes_do_not_break_the_draw(void **state)
{
    (void)state;
    float logits[9] = {-3e38f, 3e38f, 0, 1, 2, 3, 4, 5, 6};
    int32_t tokens[3] = {1, 1, 0};
    st_sampler *s;
    assert_int_equal(st_sampler_new(9, &s, NULL), ST_OK);
    st_sampling p;
    st_sampling_default(&p);
    p.temperature = 1e-4f;
    p.repetition_penalty = 1e-30f;
    p.logprobs = 2;
    st_sample_context c = {tokens, 1, 3, NULL, 0};
    for (int i = 0; i < 100; i++) {
        st_sample got;
        p.seed = (uint64_t)i;
        assert_int_equal(st_sampler_run(s, logits, &p, &c, &got, NULL), ST_OK);
        assert_int_equal(got.token, 1);
    }
    st_sampler_free(s);
}

static void parameters_out_of_range_are_named(void **state)
{
    (void)state;
    st_error err;
#define REFUSED(field, v)                                                                          \
    do {                                                                                           \
        st_sampling q;                                                                             \
        st_sampling_default(&q);                                                                   \
        q.field = (v);                                                                             \
        assert_int_equal(st_sampling_check(&q, 10, &err), ST_EINVAL);                              \
        assert_ptr_equal(strstr(err.text, NAME_OF(#field)), err.text);                             \
    } while (0)
#define NAME_OF(field) (strncmp(field, "n_", 2) == 0 ? (field) + 2 : (field))
    REFUSED(temperature, -0.1f);
    REFUSED(temperature, NAN);
    REFUSED(temperature, INFINITY);
    REFUSED(top_p, 0.0f);
    REFUSED(top_p, 1.1f);
    REFUSED(top_p, NAN);
    REFUSED(min_p, -0.1f);
    REFUSED(min_p, 1.5f);
    REFUSED(top_k, -2);
    REFUSED(repetition_penalty, 0.0f);
    REFUSED(repetition_penalty, -1.0f);
    REFUSED(presence_penalty, 2.1f);
    REFUSED(frequency_penalty, -2.1f);
    REFUSED(max_tokens, 0);
    REFUSED(min_tokens, 17);
    REFUSED(min_tokens, -1);
    REFUSED(logprobs, 21);
    REFUSED(logprobs, -2);
    REFUSED(n_logit_bias, 1);
    REFUSED(n_logit_bias, -1);
#undef REFUSED
    st_sampling p;
    st_sampling_default(&p);
    assert_int_equal(st_sampling_check(&p, 10, &err), ST_OK);
    int32_t stop = 10;
    p.stop_ids = &stop;
    p.n_stop_ids = 1;
    assert_int_equal(st_sampling_check(&p, 10, &err), ST_EINVAL);
    p.n_stop_ids = 0;
    st_logit_bias bias = {9, 101.0f};
    p.logit_bias = &bias;
    p.n_logit_bias = 1;
    assert_int_equal(st_sampling_check(&p, 10, &err), ST_EINVAL);
    bias = (st_logit_bias){10, 1.0f};
    assert_int_equal(st_sampling_check(&p, 10, &err), ST_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_plain_implementation),
        cmocka_unit_test(frequencies_follow_the_distribution),
        cmocka_unit_test(greedy_takes_the_lowest_id_of_equals),
        cmocka_unit_test(logprobs_are_of_the_raw_logits),
        cmocka_unit_test(bad_logits_are_an_error),
        cmocka_unit_test(extremes_do_not_break_the_draw),
        cmocka_unit_test(parameters_out_of_range_are_named),
    };
    return cmocka_run_group_tests_name("sampler", tests, NULL, NULL);
}
