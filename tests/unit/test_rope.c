/* Rotary tables: plain and YaRN, against values from an independent float64 program. */
#include "cmocka_all.h"

#include <math.h>

#include "model/rope.h"

static void expect_near(float got, double want)
{
    if (fabs((double)got - want) > 1e-6)
        fail_msg("%.9g, expected %.9g", (double)got, want);
}

static void plain_frequencies(void **state)
{
    st_model_config c = {.attn = ST_ATTN_GQA, .head_dim = 8, .rope_theta = 10000};
    st_rope r;
    float cs[8];
    assert_int_equal(st_rope_init(&r, &c, NULL), ST_OK);
    assert_int_equal(r.dim, 8);
    assert_false(r.interleaved);
    st_rope_cos_sin(&r, 0, cs);
    for (int i = 0; i < 4; i++) {
        expect_near(cs[i], 1);
        expect_near(cs[4 + i], 0);
    }
    st_rope_cos_sin(&r, 12345, cs);
    for (int i = 0; i < 4; i++) {
        double angle = 12345 * pow(10, -i); /* 10000^(-2i/8) */
        expect_near(cs[i], cos(angle));
        expect_near(cs[4 + i], sin(angle));
    }
}

static void yarn_frequencies(void **state)
{
    /* tests/oracle/forward.py's Rope with the same settings. */
    static const struct {
        int32_t pos, i;
        double cos, sin;
    } cases[] = {
        {1000, 0, 0.6105898095180963, 0.8977649461603789},
        {1000, 10, 1.032460949607255, -0.33589611724129664},
        {1000, 15, -0.501873595923705, 0.9627692910330609},
        {1000, 20, 0.7637441553802018, 0.7716843131516123},
        {1000, 25, 1.0855356083373122, 0.020353306204027147},
        {1000, 31, 1.0857203657464087, 0.0036195918523359997},
        {150000, 0, 0.05820461303669207, 1.0841651336687335},
        {150000, 15, 1.0686612561757063, -0.19174184100152689},
        {150000, 31, 0.9527778362996382, 0.5205921711838095},
    };
    st_model_config c = {.attn = ST_ATTN_MLA,
                         .qk_rope_head_dim = 64,
                         .rope_interleaved = true,
                         .rope_theta = 10000,
                         .yarn = true,
                         .yarn_factor = 40,
                         .yarn_original_positions = 4096,
                         .yarn_beta_fast = 32,
                         .yarn_beta_slow = 1,
                         .yarn_mscale = 1,
                         .yarn_mscale_all_dim = 0.707,
                         /* m(1) / m(0.707), m(s) = 0.1 s ln 40 + 1 */
                         .rope_attention_factor = 1.0857263993f};
    st_rope r;
    float cs[64];
    assert_int_equal(st_rope_init(&r, &c, NULL), ST_OK);
    assert_true(r.interleaved);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_rope_cos_sin(&r, cases[i].pos, cs);
        expect_near(cs[cases[i].i], cases[i].cos);
        expect_near(cs[32 + cases[i].i], cases[i].sin);
    }
}

static void impossible_dimensions_are_refused(void **state)
{
    static const int32_t dims[] = {0, -2, 7, ST_ROPE_MAX_DIM + 2};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        st_model_config c = {.attn = ST_ATTN_GQA, .head_dim = dims[i], .rope_theta = 10000};
        st_rope r;
        st_error err;
        assert_int_equal(st_rope_init(&r, &c, &err), ST_EUNSUPPORTED);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_frequencies),
        cmocka_unit_test(yarn_frequencies),
        cmocka_unit_test(impossible_dimensions_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
