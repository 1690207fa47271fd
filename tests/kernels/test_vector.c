/* Kernels on rows: norm, rotary embedding, activation, softmax, conversions; against float64 at
 * odd sizes and addresses, with guards, infinities, NaN and denormals. */
#include "kernel_test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/float_bits.h"

static const int sizes[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 257, 2055};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static void check_close(const char *table, const char *what, float got, double want, double limit)
{
    if (isnan(want) ? !isnan(got)
                    : !(fabs(got - want) <= limit * (fabs(want) + 1e-30) || got == (float)want))
        fail_msg("%s %s: %.9g, expected %.9g", table, what, got, want);
}

static void rmsnorm_matches(void **state)
{
    for (int t = 0; t < kt_n_tables; t++)
        for (int s = 0; s < N_SIZES; s++) {
            enum { M = 3 };
            int d = sizes[s];
            size_t ldx = (size_t)d + 1, ldy = (size_t)d + 2;
            kt_buf xb, wb, yb = kt_new(M * ldy, 4);
            float *x = kt_floats(&xb, M * ldx), *w = kt_floats(&wb, (size_t)d), *y = yb.p;
            kt_tables[t]->rmsnorm(y, ldy, x, ldx, w, M, d, 1e-5f);
            for (int i = 0; i < M; i++) {
                double sum = 0;
                for (int j = 0; j < d; j++)
                    sum += (double)x[(size_t)i * ldx + (size_t)j] * x[(size_t)i * ldx + (size_t)j];
                double r = 1 / sqrt(sum / d + (double)1e-5f);
                for (int j = 0; j < d; j++)
                    check_close(kt_tables[t]->name, "rmsnorm", y[(size_t)i * ldy + (size_t)j],
                                x[(size_t)i * ldx + (size_t)j] * r * w[j], 1e-6);
                float *one = malloc((size_t)d * 4); /* in place and alone: the same bits */
                memcpy(one, x + (size_t)i * ldx, (size_t)d * 4);
                kt_tables[t]->rmsnorm(one, 0, one, 0, w, 1, d, 1e-5f);
                assert_memory_equal(one, y + (size_t)i * ldy, (size_t)d * 4);
                free(one);
            }
            kt_free(&xb);
            kt_free(&wb);
            kt_free(&yb);
        }
}

/* A sum of a branch and parts, norms and int8 rows. */
typedef struct residual_case {
    int d, n_parts;
    bool branch, branch_norm, norm, int8;
} residual_case;

enum { PARTS = 5 };

typedef struct residual_data {
    kt_buf x, branch, parts, weights[2], y;
    kt_act act; /* one row: q, scale and sum */
    float part_weight[PARTS];
    int32_t part_row[PARTS];
} residual_data;

static void residual_new(residual_data *r, const residual_case *c)
{
    size_t d = (size_t)c->d;
    kt_floats(&r->x, d);
    kt_floats(&r->branch, d);
    kt_floats(&r->parts, PARTS * (d + 3));
    kt_floats(&r->weights[0], d);
    kt_floats(&r->weights[1], d);
    r->y = kt_new(d, 4);
    kt_act_new(&r->act, 1, c->d);
    for (int i = 0; i < PARTS; i++) {
        r->part_weight[i] = kt_normal();
        r->part_row[i] = kt_int(0, PARTS - 1);
    }
}

static void residual_free(residual_data *r)
{
    kt_free(&r->x);
    kt_free(&r->branch);
    kt_free(&r->parts);
    kt_free(&r->weights[0]);
    kt_free(&r->weights[1]);
    kt_free(&r->y);
    kt_act_free(&r->act);
}

static st_residual residual_of(residual_data *r, const residual_case *c)
{
    return (st_residual){.x = r->x.p,
                         .branch = c->branch ? r->branch.p : NULL,
                         .parts = r->parts.p,
                         .ld_parts = (size_t)c->d + 3,
                         .part_row = r->part_row,
                         .part_weight = r->part_weight,
                         .n_parts = c->n_parts,
                         .branch_sum = r->branch.p,
                         .branch_norm = c->branch_norm ? r->weights[0].p : NULL,
                         .norm = c->norm ? r->weights[1].p : NULL,
                         .y = r->y.p,
                         .q = c->int8 ? r->act.a.q : NULL,
                         .scale = r->act.a.scale,
                         .sum = r->act.a.sum};
}

/* The kernels that it stands for, one after the other. */
static void residual_in_steps(const st_kernels *k, const st_residual *r, int d, float eps)
{
    size_t n = (size_t)d;
    float *sum = calloc(n, sizeof *sum);
    assert_non_null(sum);
    if (r->branch)
        memcpy(sum, r->branch, n * sizeof *sum);
    for (int i = 0; i < r->n_parts; i++)
        k->add_scaled(sum, r->parts + (size_t)r->part_row[i] * r->ld_parts, r->part_weight[i], d);
    if (r->branch_norm)
        k->rmsnorm(sum, n, sum, n, r->branch_norm, 1, d, eps);
    if (r->branch || r->n_parts)
        k->add(r->x, sum, d);
    if (r->norm)
        k->rmsnorm(r->y, n, r->x, n, r->norm, 1, d, eps);
    st_act a = {.x = r->y, .ld = n, .q = r->q, .scale = r->scale, .sum = r->sum, .m = 1, .k = d};
    if (r->norm && r->q)
        k->quantize(&a);
    free(sum);
}

static void check_residual(const st_kernels *k, const residual_case *c)
{
    residual_data a, b;
    const kt_buf *of_a[] = {&a.x, &a.y, &a.act.q, &a.act.scale, &a.act.sum};
    const kt_buf *of_b[] = {&b.x, &b.y, &b.act.q, &b.act.scale, &b.act.sum};
    residual_new(&a, c);
    b = a;
    b.x = kt_new((size_t)c->d, 4); /* what the kernels write, a second time */
    b.branch = kt_new((size_t)c->d, 4);
    b.y = kt_new((size_t)c->d, 4);
    kt_act_new(&b.act, 1, c->d);
    memcpy(b.x.p, a.x.p, a.x.bytes);
    memcpy(b.branch.p, a.branch.p, a.branch.bytes);
    for (int i = 2; i < 5; i++)
        memcpy(of_b[i]->p, of_a[i]->p, of_a[i]->bytes);
    st_residual fused = residual_of(&a, c), steps = residual_of(&b, c);
    k->residual_norm(&fused, c->d, 1e-5f);
    residual_in_steps(k, &steps, c->d, 1e-5f);
    for (int i = 0; i < 5; i++)
        assert_memory_equal(of_a[i]->p, of_b[i]->p, of_a[i]->bytes);
    kt_free(&b.x);
    kt_free(&b.branch);
    kt_free(&b.y);
    kt_act_free(&b.act);
    residual_free(&a);
}

static void residual_norm_gives_the_bits_of_its_steps(void **state)
{
    for (int t = 0; t < kt_n_tables; t++)
        for (int s = 0; s < N_SIZES; s++)
            for (int bits = 0; bits < 32; bits++) {
                residual_case c = {.d = sizes[s],
                                   .n_parts = bits & 1 ? kt_int(1, PARTS) : 0,
                                   .branch = bits & 2,
                                   .norm = bits & 8,
                                   .int8 = bits & 16};
                c.branch_norm = (bits & 4) && (c.branch || c.n_parts);
                check_residual(kt_tables[t], &c);
            }
}

static void rope_matches(void **state)
{
    for (int t = 0; t < kt_n_tables; t++)
        for (int d = 2; d <= 134; d += 2)
            for (int half = 0; half < 2; half++) {
                kt_buf xb, cb;
                float *x = kt_floats(&xb, (size_t)d), *c = kt_floats(&cb, (size_t)d);
                float *old = malloc((size_t)d * 4);
                memcpy(old, x, (size_t)d * 4);
                (half ? kt_tables[t]->rope_half : kt_tables[t]->rope_interleaved)(x, d, c);
                for (int i = 0; i < d / 2; i++) {
                    int ia = half ? i : 2 * i, ib = half ? i + d / 2 : 2 * i + 1;
                    double a = old[ia], b = old[ib], cs = c[i], sn = c[d / 2 + i];
                    double size = (fabs(a) + fabs(b)) * (fabs(cs) + fabs(sn));
                    assert_true(fabs(x[ia] - (a * cs - b * sn)) <= 2e-7 * size);
                    assert_true(fabs(x[ib] - (b * cs + a * sn)) <= 2e-7 * size);
                }
                free(old);
                kt_free(&xb);
                kt_free(&cb);
            }
}

static float special(int i)
{
    static const float values[] = {0.0f,      -0.0f,   1e-41f,  -1e-41f, 1e-20f, 88.5f,
                                   -88.5f,    -103.9f, -110.0f, 150.0f,  1e30f,  -1e30f,
                                   -INFINITY, NAN,     88.7f,   INFINITY};
    return values[i % (int)(sizeof values / sizeof *values)];
}

static double silu(double g)
{
    return g / (1 + exp(-g));
}

static void silu_mul_matches(void **state)
{
    for (int t = 0; t < kt_n_tables; t++)
        for (int s = 0; s < N_SIZES; s++) {
            int n = sizes[s];
            kt_buf gb, ub, yb = kt_new((size_t)n, 4);
            float *g = kt_floats(&gb, (size_t)n), *u = kt_floats(&ub, (size_t)n), *y = yb.p;
            for (int i = 0; i < n; i++)
                g[i] = n > 30 && i < 16 ? special(i) : g[i] * 10;
            kt_tables[t]->silu_mul(y, (size_t)n, g, u, (size_t)n, 1, n);
            for (int i = 0; i < n; i++) {
                double want = silu(g[i]) * u[i];
                if (fabs(want) < 1e-36 && fabs(y[i]) < 1e-36)
                    continue; /* e^x near the denormals: absolute, not relative */
                check_close(kt_tables[t]->name, "silu_mul", y[i], want, 1e-6);
            }
            kt_tables[t]->silu_mul(g, 0, g, u, 0, 1, n); /* y may be gate */
            for (int i = 0; i < n; i++)
                assert_true(g[i] == y[i] || (isnan(g[i]) && isnan(y[i])));
            kt_free(&gb);
            kt_free(&ub);
            kt_free(&yb);
        }
}

static void sums_match(void **state)
{
    for (int t = 0; t < kt_n_tables; t++)
        for (int s = 0; s < N_SIZES; s++) {
            int n = sizes[s];
            kt_buf xb, yb;
            float *x = kt_floats(&xb, (size_t)n), *y = kt_floats(&yb, (size_t)n);
            float *old = malloc((size_t)n * 4);
            memcpy(old, y, (size_t)n * 4);
            kt_tables[t]->add(y, x, n);
            for (int i = 0; i < n; i++)
                assert_true(y[i] == old[i] + x[i]);
            memcpy(y, old, (size_t)n * 4);
            kt_tables[t]->add_scaled(y, x, 0.3f, n);
            for (int i = 0; i < n; i++)
                assert_true(y[i] == fmaf(0.3f, x[i], old[i]));
            free(old);
            kt_free(&xb);
            kt_free(&yb);
        }
}

static void softmax_matches(void **state)
{
    for (int t = 0; t < kt_n_tables; t++)
        for (int s = 0; s < N_SIZES; s++) {
            int n = sizes[s];
            kt_buf xb;
            float *x = kt_floats(&xb, (size_t)n);
            double max = -INFINITY, sum = 0, *e = malloc((size_t)n * sizeof *e);
            if (n > 5)
                x[3] = -INFINITY;
            for (int i = 0; i < n; i++) {
                x[i] *= 20;
                max = x[i] > max ? x[i] : max;
            }
            for (int i = 0; i < n; i++)
                sum += e[i] = exp(x[i] - max);
            float lse = kt_tables[t]->softmax(x, n);
            check_close(kt_tables[t]->name, "log of sum", lse, max + log(sum), 1e-6);
            for (int i = 0; i < n; i++)
                if (e[i] / sum > 1e-30)
                    check_close(kt_tables[t]->name, "softmax", x[i], e[i] / sum, 5e-6);
                else
                    assert_true(x[i] >= 0 && x[i] < 2e-30f);
            x[n / 2] = NAN;
            kt_tables[t]->softmax(x, n);
            assert_true(isnan(x[0]) && isnan(x[n - 1]));
            free(e);
            kt_free(&xb);
        }
}

/* Every 16-bit pattern widened; random float patterns narrowed: as the reference, bit for bit. */
static void conversions_are_exact(void **state)
{
    enum { N = 65536 + 5 };
    kt_buf hb = kt_new(N, 2), fb[2] = {kt_new(N, 4), kt_new(N, 4)};
    kt_buf nb[2] = {kt_new(N, 2), kt_new(N, 2)};
    for (int i = 0; i < N; i++)
        ((uint16_t *)hb.p)[i] = (uint16_t)i;
    for (int t = 1; t < kt_n_tables; t++) {
        for (int type = 0; type < 2; type++) {
            for (int r = 0; r < 2; r++)
                kt_tables[r * t]->to_f32(fb[r].p, hb.p, type ? ST_F16 : ST_BF16, N);
            assert_memory_equal(fb[0].p, fb[1].p, fb[0].bytes);
        }
        for (int i = 0; i < N; i++) {
            uint32_t u = i < 32 ? 0x7f800000u + (uint32_t)i * 0x1001u : (uint32_t)kt_u64();
            ((float *)fb[0].p)[i] = st_float_of_bits(u);
        }
        for (int s = 0; s < N_SIZES; s++)
            for (int r = 0; r < 2; r++)
                kt_tables[r * t]->to_bf16((uint16_t *)nb[r].p + s * 100, fb[0].p, sizes[s]);
        for (int r = 0; r < 2; r++)
            kt_tables[r * t]->to_bf16(nb[r].p, fb[0].p, N);
        assert_memory_equal(nb[0].p, nb[1].p, nb[0].bytes);
        for (int i = 0; i < N; i++) {
            float f = ((float *)fb[0].p)[i], h = st_bf16_to_f32(((uint16_t *)nb[1].p)[i]);
            assert_true(isnan(f) == isnan(h));
            if (fabsf(f) < 3e38f)
                assert_true(fabsf(f - h) <= fabsf(f) * 0x1p-8f + 0x1p-133f);
        }
    }
    for (int r = 0; r < 2; r++) {
        kt_free(&fb[r]);
        kt_free(&nb[r]);
    }
    kt_free(&hb);
}

static void known_half_precision_values(void **state)
{
    static const struct {
        uint16_t h;
        float f;
    } known[] = {{0x3c00, 1.0f},     {0xc000, -2.0f},        {0x7bff, 65504.0f},
                 {0x0001, 0x1p-24f}, {0x03ff, 0x1.ff8p-15f}, {0x0400, 0x1p-14f},
                 {0x7c00, INFINITY}, {0xfc00, -INFINITY}};
    for (int t = 0; t < kt_n_tables; t++)
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
            float f;
            kt_tables[t]->to_f32(&f, &known[i].h, ST_F16, 1);
            assert_true(f == known[i].f);
        }
    float zero;
    uint16_t minus_zero = 0x8000;
    kt_tables[0]->to_f32(&zero, &minus_zero, ST_F16, 1);
    assert_true(zero == 0 && signbit(zero));
}

static void a_named_table_is_chosen(void **state)
{
    const st_kernels *k;
    st_error err;
    for (int t = 0; t < kt_n_tables; t++) {
        assert_int_equal(st_kernels_select(kt_tables[t]->name, &k, &err), ST_OK);
        assert_ptr_equal(k, kt_tables[t]);
        setenv("STARLING_CPU", kt_tables[t]->name, 1);
        assert_int_equal(st_kernels_select(NULL, &k, &err), ST_OK);
        assert_ptr_equal(k, kt_tables[t]);
    }
    setenv("STARLING_CPU", "z80", 1);
    assert_int_equal(st_kernels_select(NULL, &k, &err), ST_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "z80"));
    assert_non_null(strstr(err.text, "ref"));
    unsetenv("STARLING_CPU");
    assert_int_equal(st_kernels_select(NULL, &k, &err), ST_OK);
    assert_ptr_equal(k, kt_tables[kt_n_tables - 1]);
}

int main(void)
{
    kt_start();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rmsnorm_matches),
        cmocka_unit_test(residual_norm_gives_the_bits_of_its_steps),
        cmocka_unit_test(rope_matches),
        cmocka_unit_test(silu_mul_matches),
        cmocka_unit_test(sums_match),
        cmocka_unit_test(softmax_matches),
        cmocka_unit_test(conversions_are_exact),
        cmocka_unit_test(known_half_precision_values),
        cmocka_unit_test(a_named_table_is_chosen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
