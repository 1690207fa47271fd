/* Matrix products of every table: against float64 (int8: bit for bit against the reference), at
 * odd sizes and addresses, and the promise that a row's result does not depend on its company. */
#include "kernel_test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const int ks[] = {1, 3, 15, 16, 17, 31, 33, 63, 64, 65, 127, 257, 576, 2055};
static const int ms[] = {1, 2, 3, 4, 5, 6, 7, 13};
static const int ns[] = {1, 2, 3, 5, 9};
static const st_dtype float_types[] = {ST_F32, ST_BF16, ST_F16};

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

/* y of one product, inside guards, with gaps between rows that must stay as they were. */
typedef struct product {
    kt_buf y;
    size_t ldy;
} product;

static product run_float(const st_kernels *t, const float *x, size_t ldx, int m, const st_matrix *w)
{
    product p;
    p.ldy = (size_t)w->n + 3;
    p.y = kt_new((size_t)m * p.ldy, sizeof(float));
    t->matmul_f(p.y.p, p.ldy, x, ldx, m, w, 0, w->n);
    return p;
}

static void check_gaps(const product *p, int m, int n)
{
    kt_check_guards(&p->y);
    for (int i = 0; i < m; i++)
        for (size_t b = 0; b < 3 * sizeof(float); b++) {
            size_t at = ((size_t)i * p->ldy + (size_t)n) * sizeof(float) + b;
            assert_int_equal(((unsigned char *)p->y.p)[at], 0xee);
        }
}

static void check_error(const product *p, const float *x, size_t ldx, int m, const kt_matrix *w,
                        const char *table)
{
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < w->m.n; j++) {
            double want = 0, size = 0;
            for (int l = 0; l < w->m.k; l++) {
                double term = (double)x[(size_t)i * ldx + (size_t)l] *
                              w->as_double[(size_t)j * (size_t)w->m.k + (size_t)l];
                want += term;
                size += term * term;
            }
            float got = ((float *)p->y.p)[(size_t)i * p->ldy + (size_t)j];
            if (!(fabs(got - want) <= 1e-6 * sqrt(w->m.k) * sqrt(size) + 1e-30))
                fail_msg("%s %s m %d n %d k %d at %d,%d: %g, expected %g", table,
                         st_dtype_name(w->m.dtype), m, w->m.n, w->m.k, i, j, got, want);
        }
    }
}

static void float_products_match_float64(void **state)
{
    for (int t = 0; t < kt_n_tables; t++)
        for (int d = 0; d < COUNT(float_types); d++)
            for (int a = 0; a < COUNT(ks); a++) {
                int k = ks[a], m = ms[kt_int(0, COUNT(ms) - 1)], n = ns[kt_int(0, COUNT(ns) - 1)];
                size_t ldx = (size_t)k + (size_t)kt_int(0, 3);
                kt_buf xb;
                kt_matrix w;
                float *x = kt_floats(&xb, (size_t)m * ldx);
                kt_matrix_new(&w, float_types[d], n, k);
                product p = run_float(kt_tables[t], x, ldx, m, &w.m);
                check_gaps(&p, m, n);
                check_error(&p, x, ldx, m, &w, kt_tables[t]->name);
                kt_free(&p.y);
                kt_matrix_free(&w);
                kt_free(&xb);
            }
}

/* Every row alone, every column range alone: the same bits as all at once. */
static void check_float_invariance(const st_kernels *t, st_dtype dtype, int m, int n, int k)
{
    kt_buf xb;
    kt_matrix w;
    float *x = kt_floats(&xb, (size_t)m * (size_t)k);
    kt_matrix_new(&w, dtype, n, k);
    product all = run_float(t, x, (size_t)k, m, &w.m);
    float *y = all.y.p;
    for (int i = 0; i < m; i++) {
        product one = run_float(t, x + (size_t)i * (size_t)k, (size_t)k, 1, &w.m);
        assert_memory_equal(y + (size_t)i * all.ldy, one.y.p, (size_t)n * sizeof(float));
        kt_free(&one.y);
    }
    kt_buf part = kt_new((size_t)m * all.ldy, sizeof(float));
    for (int n0 = 0; n0 < n;) {
        int n1 = kt_int(n0 + 1, n);
        t->matmul_f(part.p, all.ldy, x, (size_t)k, m, &w.m, n0, n1);
        n0 = n1;
    }
    for (int i = 0; i < m; i++)
        assert_memory_equal(y + (size_t)i * all.ldy, (float *)part.p + (size_t)i * all.ldy,
                            (size_t)n * sizeof(float));
    kt_free(&part);
    kt_free(&all.y);
    kt_matrix_free(&w);
    kt_free(&xb);
}

static void float_rows_do_not_depend_on_company(void **state)
{
    for (int t = 0; t < kt_n_tables; t++)
        for (int d = 0; d < COUNT(float_types); d++) {
            check_float_invariance(kt_tables[t], float_types[d], 14, 11, 331);
            check_float_invariance(kt_tables[t], float_types[d], kt_int(1, 40), kt_int(1, 30),
                                   kt_int(1, 300));
            /* More rows than one L2 block of x. */
            check_float_invariance(kt_tables[t], float_types[d], 25, 5, 7011);
        }
}

/* ---- int8 ---- */

typedef struct quantized {
    kt_buf q, scale;
    size_t ld;
} quantized;

static quantized random_rows(int m, int k)
{
    quantized r;
    r.ld = (size_t)k + (size_t)kt_int(0, 3);
    r.q = kt_new((size_t)m * r.ld, 1);
    kt_floats(&r.scale, (size_t)m);
    for (size_t i = 0; i < (size_t)m * r.ld; i++)
        ((int8_t *)r.q.p)[i] = (int8_t)kt_int(-127, 127);
    return r;
}

static product run_int8(const st_kernels *t, const quantized *x, int row, int m, const st_matrix *w)
{
    product p;
    p.ldy = (size_t)w->n + 3;
    p.y = kt_new((size_t)m * p.ldy, sizeof(float));
    t->matmul_i8(p.y.p, p.ldy, (int8_t *)x->q.p + (size_t)row * x->ld, x->ld,
                 (float *)x->scale.p + row, m, w, 0, w->n);
    return p;
}

static void check_int8(const quantized *x, const kt_matrix *w, int m, int t)
{
    product want = run_int8(kt_tables[0], x, 0, m, &w->m);
    product got = run_int8(kt_tables[t], x, 0, m, &w->m);
    check_gaps(&got, m, w->m.n);
    assert_memory_equal(got.y.p, want.y.p, got.y.bytes);
    for (int i = 0; i < m; i++) {
        product one = run_int8(kt_tables[t], x, i, 1, &w->m);
        assert_memory_equal((float *)got.y.p + (size_t)i * got.ldy, one.y.p,
                            (size_t)w->m.n * sizeof(float));
        kt_free(&one.y);
    }
    kt_free(&got.y);
    kt_free(&want.y);
}

static void int8_products_are_exact(void **state)
{
    for (int t = 0; t < kt_n_tables; t++)
        for (int a = 0; a < COUNT(ks); a++)
            for (int b = 0; b < COUNT(ms); b++) {
                kt_matrix w;
                kt_matrix_new(&w, ST_I8, ns[kt_int(0, COUNT(ns) - 1)], ks[a]);
                quantized x = random_rows(ms[b], ks[a]);
                check_int8(&x, &w, ms[b], t);
                kt_free(&x.q);
                kt_free(&x.scale);
                kt_matrix_free(&w);
            }
}

/* The largest sums there are: 16-bit saturation or 32-bit overflow would show. */
static void int8_extremes_are_exact(void **state)
{
    static const int8_t xs[] = {127, -127}, ws[] = {127, -128};
    for (int t = 0; t < kt_n_tables; t++)
        for (int c = 0; c < 4; c++) {
            int k = 66000;
            kt_matrix w;
            kt_matrix_new(&w, ST_I8, 5, k);
            memset(w.data.p, ws[c & 1], w.data.bytes);
            for (int j = 0; j < 5; j++)
                w.row_sum[j] = ws[c & 1] * k;
            quantized x = random_rows(2, k);
            memset(x.q.p, xs[c >> 1], x.q.bytes);
            product p = run_int8(kt_tables[t], &x, 0, 2, &w.m);
            float want =
                (float)(xs[c >> 1] * ws[c & 1] * k) * (((float *)x.scale.p)[1] * w.m.scale[4]);
            assert_true(((float *)p.y.p)[p.ldy + 4] == want);
            kt_free(&p.y);
            kt_free(&x.q);
            kt_free(&x.scale);
            kt_matrix_free(&w);
        }
}

/* A NaN or infinite activation, or weight, reaches its output and no other row. */
static void non_finite_values_propagate(void **state)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    enum { M = 7, N = 6, K = 37 };
    for (int t = 0; t < kt_n_tables; t++)
        for (int b = 0; b < COUNT(bad); b++) {
            kt_buf xb, qb = kt_new(M * K, 1), sb = kt_new(M, sizeof(float));
            kt_matrix w, w8;
            float *x = kt_floats(&xb, M * K);
            kt_matrix_new(&w, ST_BF16, N, K);
            kt_matrix_new(&w8, ST_I8, N, K);
            int row = kt_int(0, M - 1);
            x[row * K + kt_int(0, K - 1)] = bad[b];
            product p = run_float(kt_tables[t], x, K, M, &w.m);
            kt_tables[t]->quantize_rows(qb.p, K, sb.p, x, K, M, K);
            kt_buf y8 = kt_new(M * N, sizeof(float));
            kt_tables[t]->matmul_i8(y8.p, N, qb.p, K, sb.p, M, &w8.m, 0, N);
            for (int i = 0; i < M; i++)
                for (int j = 0; j < N; j++) {
                    assert_true(isfinite(((float *)p.y.p)[(size_t)i * p.ldy + (size_t)j]) ==
                                (i != row));
                    assert_true(isfinite(((float *)y8.p)[i * N + j]) == (i != row));
                }
            kt_free(&y8);
            kt_free(&p.y);
            kt_matrix_free(&w);
            kt_matrix_free(&w8);
            kt_free(&xb);
            kt_free(&qb);
            kt_free(&sb);
        }
}

/* ---- quantization ---- */

static void special_row(float *x, int k, int kind)
{
    for (int j = 0; j < k; j++)
        x[j] = kind == 0   ? 0.0f
               : kind == 1 ? kt_normal() * 1e-41f
               : kind == 2 ? kt_normal() * 1e37f
               : kind == 3 ? (float)kt_int(-254, 254) * 0.5f /* halves: ties */
                           : kt_normal();
    if (kind == 3)
        x[kt_int(0, k - 1)] = -127;
    if (kind == 4)
        x[kt_int(0, k - 1)] = NAN;
    if (kind == 5)
        x[kt_int(0, k - 1)] = -INFINITY;
}

static void quantization_matches_the_reference(void **state)
{
    for (int t = 0; t < kt_n_tables; t++)
        for (int a = 0; a < COUNT(ks); a++) {
            enum { M = 8 };
            int k = ks[a];
            size_t ldx = (size_t)k + 1, ldq = (size_t)k + 2;
            kt_buf xb, q[2], s[2];
            float *x = kt_floats(&xb, M * ldx);
            for (int i = 0; i < M; i++)
                special_row(x + (size_t)i * ldx, k, i);
            for (int r = 0; r < 2; r++) {
                q[r] = kt_new(M * ldq, 1);
                s[r] = kt_new(M, sizeof(float));
                kt_tables[r * t]->quantize_rows(q[r].p, ldq, s[r].p, x, ldx, M, k);
                kt_check_guards(&q[r]);
            }
            assert_memory_equal(q[0].p, q[1].p, q[0].bytes);
            for (int i = 0; i < M; i++) {
                float w = ((float *)s[0].p)[i], g = ((float *)s[1].p)[i];
                assert_true(w == g || (isnan(w) && isnan(g)));
                assert_true(isnan(g) == (i == 4 || i == 5));
            }
            for (int r = 0; r < 2; r++) {
                kt_free(&q[r]);
                kt_free(&s[r]);
            }
            kt_free(&xb);
        }
}

int main(void)
{
    kt_start();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(float_products_match_float64),
        cmocka_unit_test(float_rows_do_not_depend_on_company),
        cmocka_unit_test(int8_products_are_exact),
        cmocka_unit_test(int8_extremes_are_exact),
        cmocka_unit_test(non_finite_values_propagate),
        cmocka_unit_test(quantization_matches_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
