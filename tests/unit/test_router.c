/* Expert choice: ties, groups, biases, normalisation, scores that are no numbers. */
#include "cmocka_all.h"

#include <math.h>
#include <string.h>

#include "model/router.h"

static const st_kernels *reference(void)
{
    const st_kernels *k;
    assert_int_equal(st_kernels_select("ref", &k, NULL), ST_OK);
    return k;
}

static st_model_config config(int32_t n, int32_t top)
{
    st_model_config c = {.n_experts = n,
                         .experts_per_token = top,
                         .router = ST_ROUTER_SIGMOID,
                         .routed_scaling_factor = 1,
                         .n_group = 1,
                         .topk_group = 1};
    return c;
}

static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

static void expect(const st_model_config *c, const float *logits, const float *bias,
                   const int32_t *choice, const float *weight)
{
    float scores[16], got_weight[16];
    int32_t got[16];
    memcpy(scores, logits, (size_t)c->n_experts * sizeof *scores);
    st_router_choose(c, reference(), scores, bias, got, got_weight);
    for (int32_t i = 0; i < c->experts_per_token; i++) {
        assert_int_equal(got[i], choice[i]);
        if (weight)
            assert_true(fabsf(got_weight[i] - weight[i]) <= 1e-6f * fabsf(weight[i]));
    }
}

static void equal_scores_go_to_the_lower_index(void **state)
{
    st_model_config c = config(6, 3);
    expect(&c, (float[]){1, 2, 2, 1, 2, 2}, NULL, (int32_t[]){1, 2, 4}, NULL);
    expect(&c, (float[]){0, 0, 0, 0, 0, 0}, NULL, (int32_t[]){0, 1, 2}, NULL);
}

static void the_bias_chooses_but_does_not_weigh(void **state)
{
    st_model_config c = config(4, 2);
    c.norm_topk_prob = true;
    c.routed_scaling_factor = 2.5f;
    float a = sigmoid(1), d = sigmoid(-1);
    expect(&c, (float[]){1, 0.5f, 0, -1}, (float[]){0, 0, 0, 5}, (int32_t[]){3, 0},
           (float[]){2.5f * d / (a + d), 2.5f * a / (a + d)});
}

static void groups_limit_the_choice(void **state)
{
    st_model_config c = config(8, 3);
    c.n_group = 4;
    c.topk_group = 2;
    /* Sums of the two best: the groups (4, 5) and (6, 7) win; expert 0, the best, is out. */
    expect(&c, (float[]){3, -9, -8, -8, 2, 1.5f, 2.5f, 1}, NULL, (int32_t[]){6, 4, 5}, NULL);
    c.router = ST_ROUTER_SOFTMAX; /* the best alone counts */
    expect(&c, (float[]){3, -9, -8, -8, 2, 1.5f, 2.5f, 1}, NULL, (int32_t[]){0, 6, 7}, NULL);
}

static void softmax_is_over_all_experts(void **state)
{
    st_model_config c = config(3, 2);
    c.router = ST_ROUTER_SOFTMAX;
    double sum = exp(1) + exp(2) + exp(3);
    expect(&c, (float[]){1, 3, 2}, NULL, (int32_t[]){1, 2},
           (float[]){(float)(exp(3) / sum), (float)(exp(2) / sum)});
    c.norm_topk_prob = true;
    expect(&c, (float[]){1, 3, 2}, NULL, (int32_t[]){1, 2},
           (float[]){(float)(exp(3) / (exp(3) + exp(2))), (float)(exp(2) / (exp(3) + exp(2)))});
}

static void choices_are_valid_whatever_the_logits(void **state)
{
    st_model_config c = config(8, 4);
    float nan = NAN, inf = INFINITY;
    expect(&c, (float[]){nan, 0, nan, 1, nan, 2, -inf, 3}, NULL, (int32_t[]){7, 5, 3, 1}, NULL);
    expect(&c, (float[]){nan, nan, nan, nan, nan, nan, nan, nan}, NULL, (int32_t[]){0, 1, 2, 3},
           NULL);
    c.n_group = 4;
    c.topk_group = 2;
    expect(&c, (float[]){nan, nan, nan, nan, nan, nan, nan, nan}, NULL, (int32_t[]){0, 1, 2, 3},
           NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_scores_go_to_the_lower_index),
        cmocka_unit_test(the_bias_chooses_but_does_not_weigh),
        cmocka_unit_test(groups_limit_the_choice),
        cmocka_unit_test(softmax_is_over_all_experts),
        cmocka_unit_test(choices_are_valid_whatever_the_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
