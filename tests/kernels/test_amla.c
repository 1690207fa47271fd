/* AMLA as published: errors of its forms against float64, and the hazards of adding to exponents.
 */
#include "kernel_test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/ref/ref_amla.h"

enum { DIM = 512, BLOCK = 512 };
static const char *const names[] = {"AMLA", "AMLA without compensation", "FA2, bf16 P",
                                    "lattice, float P"};

static void oracle(const float *s, const float *v, int n, double *out, double *lse)
{
    double max = -INFINITY, l = 0;
    for (int j = 0; j < n; j++)
        max = s[j] > max ? s[j] : max;
    memset(out, 0, DIM * sizeof *out);
    for (int j = 0; j < n && max > -INFINITY; j++) {
        double p = exp(s[j] - max);
        l += p;
        for (int i = 0; i < DIM; i++)
            out[i] += p * v[j * DIM + i];
    }
    for (int i = 0; i < DIM; i++)
        out[i] = l > 0 ? out[i] / l : 0;
    *lse = max + log(l);
}

/* One row by one form; returns the relative error. */
static double error_of(st_amla_form form, const float *s, const float *v, int n, int block)
{
    float out[DIM], o[DIM];
    double want[DIM], lse;
    oracle(s, v, n, want, &lse);
    float got = st_ref_amla(form, out, s, v, n, DIM, block, o);
    assert_true(fabs(got - lse) <= 1e-5 * (fabs(lse) + 1));
    return kt_rel_error(out, want, DIM);
}

/* MLA: queries and latents N(0,1), V the latent's first part. Elsewhere
 * measured: 8.0e-4, 1.3e-3, 8.0e-4 and 1.7e-6 for 16 heads, 4096 keys of 576 and blocks of 512. */
static void forms_have_their_errors(void **state)
{
    enum { KEYS = 4096, HEADS = 16, K_DIM = 576 };
    static const double least[] = {4e-4, 8e-4, 4e-4, 0}, most[] = {1.4e-3, 2e-3, 1.4e-3, 1e-5};
    double sum[4] = {0};
    kt_buf kb, qb;
    (void)state;
    float *k = kt_floats(&kb, KEYS * K_DIM), *q = kt_floats(&qb, HEADS * K_DIM);
    float *s = malloc(KEYS * sizeof *s), *v = malloc((size_t)KEYS * DIM * sizeof *v);
    assert_true(s && v);
    for (int j = 0; j < KEYS; j++)
        memcpy(v + j * DIM, k + j * K_DIM, DIM * sizeof *v);
    for (int h = 0; h < HEADS; h++) {
        for (int j = 0; j < KEYS; j++) {
            s[j] = 0;
            for (int i = 0; i < K_DIM; i++)
                s[j] += q[h * K_DIM + i] * k[j * K_DIM + i] / 24;
        }
        for (int f = 0; f < 4; f++) {
            double e = error_of((st_amla_form)f, s, v, KEYS, BLOCK);
            sum[f] += e * e / HEADS;
        }
    }
    for (int f = 0; f < 4; f++)
        print_message("%s: %.2e\n", names[f], sqrt(sum[f]));
    for (int f = 0; f < 4; f++)
        assert_true(sqrt(sum[f]) >= least[f] && sqrt(sum[f]) <= most[f]);
    assert_true(sum[ST_AMLA_FULL] < sum[ST_AMLA_NO_COMPENSATION]);
    free(s);
    free(v);
    kt_free(&kb);
    kt_free(&qb);
}

static void adding_to_bits_scales(void **state)
{
    (void)state;
    for (int i = 0; i < 10000; i++) {
        float f = ldexpf(kt_uniform(), kt_int(-20, 20));
        int n = -kt_int(0, 30);
        if (f != 0)
            assert_true(st_ref_amla_scale(f, n, 0) == ldexpf(f, n));
        float e = 0.004f * kt_uniform(), g = st_ref_amla_scale(f, n, 1.5f * e);
        assert_true(fabsf(g - ldexpf(f, n) * (1 + e)) <= fabsf(ldexpf(f, n)) * 0.003f);
    }
    static const float odd[] = {0, 1e-45f, 1e-38f, 1.5e-38f, 1e-30f, 3e38f};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
        for (int n = 0; n >= -30; n--)
            for (int sign = -1; sign <= 1; sign += 2) {
                float f = odd[i] * (float)sign, g = st_ref_amla_scale(f, n, -0.004f);
                assert_true(isfinite(g) && fabsf(g) <= fabsf(f));
                assert_true(signbit(g) == signbit(f)); /* no borrow from the sign */
                assert_true(fabs((double)g - ldexp(f, n)) <= fabs(ldexp(f, n)) * 0.004 + 2.4e-38);
            }
}

/* s and v of KEYS keys for each hazard; every form must stay within its error. */
static void hazards(void **state)
{
    enum { KEYS = 640, HAZARDS = 10 };
    static const double limit[] = {8e-3, 1.2e-2, 8e-3, 1e-5};
    kt_buf sb, vb;
    (void)state;
    for (int h = 0; h < HAZARDS; h++) {
        float *s = kt_floats(&sb, KEYS), *v = kt_floats(&vb, KEYS * DIM);
        for (int j = 0; j < KEYS; j++) {
            int b = j / 64;
            s[j] = h == 0   ? s[j] + (float)b                       /* rising */
                   : h == 1 ? s[j] - (float)b                       /* falling */
                   : h == 2 ? s[j] + (float)b * 25                  /* beyond 2^-30 a block */
                   : h == 3 ? s[j] + (b < 5 ? -5000.0f : 5000.0f)   /* beyond 2^-126 */
                   : h == 4 ? (b < 2 ? -INFINITY : s[j])            /* first blocks masked */
                   : h == 5 ? (b > 2 && b < 6 ? -INFINITY : s[j])   /* middle */
                   : h == 6 ? (j % 3 ? -INFINITY : s[j] + (float)b) /* within blocks */
                   : h == 7 ? s[j] - (b == 0 ? 0 : 1e4f)            /* all but the first tiny */
                            : s[j] + (float)b * 2;
            for (int i = 0; i < DIM / 2; i++)
                if (h == 8)
                    v[j * DIM + i] = j < 300 ? (i % 2 ? -0.0f : 0.0f) : 1; /* zeros, then values */
                else if (h == 9)
                    v[j * DIM + i] *= 1e-40f; /* denormals */
        }
        for (int f = 0; f < 4; f++) {
            double e = error_of((st_amla_form)f, s, v, KEYS, 64);
            if (!(e <= limit[f]))
                fail_msg("hazard %d, %s: relative error %g", h, names[f], e);
        }
        kt_free(&sb);
        kt_free(&vb);
    }
}

static void all_masked_gives_zeros(void **state)
{
    static float s[100], v[100 * DIM], out[DIM], o[DIM];
    (void)state;
    for (int j = 0; j < 100; j++)
        s[j] = -INFINITY;
    for (int i = 0; i < 100 * DIM; i++)
        v[i] = NAN; /* masked values may be anything */
    for (int f = 0; f < 4; f++) {
        assert_true(st_ref_amla((st_amla_form)f, out, s, v, 100, DIM, 64, o) == -INFINITY);
        for (int i = 0; i < DIM; i++)
            assert_true(out[i] == 0);
        s[70] = 3; /* one key alone */
        for (int i = 0; i < DIM; i++)
            v[70 * DIM + i] = 2;
        st_ref_amla((st_amla_form)f, out, s, v, 100, DIM, 64, o);
        for (int i = 0; i < DIM; i++)
            assert_true(fabsf(out[i] - 2) <= 0.01f);
        s[70] = -INFINITY;
    }
}

int main(void)
{
    kt_start();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forms_have_their_errors),
        cmocka_unit_test(adding_to_bits_scales),
        cmocka_unit_test(hazards),
        cmocka_unit_test(all_masked_gives_zeros),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
