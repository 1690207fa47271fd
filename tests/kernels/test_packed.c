/* Products with packed weights, every table and weight type: floats against float64, integers bit
 * for bit against the reference, at odd sizes and addresses; and the promise that an output depends
 * neither on the rows beside it nor on how columns are cut. */
#include "kernel_test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/float_bits.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

typedef struct weight_case {
    const char *name;
    st_weight_type type;
    int group; /* 0: none; -1: k */
    bool zero;
    bool floats; /* matmul_float: meets x as it is */
    st_weight_type scale;
} weight_case;

static const weight_case cases[] = {
    {"F32", ST_WEIGHT_F32, 0, false, false, ST_WEIGHT_F32},
    {"F16", ST_WEIGHT_F16, 0, false, false, ST_WEIGHT_F32},
    {"BF16", ST_WEIGHT_BF16, 0, false, false, ST_WEIGHT_F32},
    {"F8 by 128", ST_WEIGHT_F8, 128, false, false, ST_WEIGHT_F32},
    {"F8 by 2", ST_WEIGHT_F8, 2, false, false, ST_WEIGHT_F32},
    {"F8, one group", ST_WEIGHT_F8, -1, false, false, ST_WEIGHT_F32},
    {"I8", ST_WEIGHT_I8, 0, false, false, ST_WEIGHT_F32},
    {"I4 by 32", ST_WEIGHT_I4, 32, false, false, ST_WEIGHT_F16},
    {"I4 by 128", ST_WEIGHT_I4, 128, false, false, ST_WEIGHT_BF16},
    {"I4 by 64, zero points", ST_WEIGHT_I4, 64, true, false, ST_WEIGHT_F32},
    {"I4, one group", ST_WEIGHT_I4, -1, false, false, ST_WEIGHT_F32},
    {"I4, one group, zero points", ST_WEIGHT_I4, -1, true, false, ST_WEIGHT_BF16},
    {"F32, floats", ST_WEIGHT_F32, 0, false, true, ST_WEIGHT_F32},
    {"F8 by 128, floats", ST_WEIGHT_F8, 128, false, true, ST_WEIGHT_F32},
    {"I8, floats", ST_WEIGHT_I8, 0, false, true, ST_WEIGHT_F32},
    {"I4 by 32, floats", ST_WEIGHT_I4, 32, false, true, ST_WEIGHT_F32},
    {"I4 by 64, zero points, floats", ST_WEIGHT_I4, 64, true, true, ST_WEIGHT_F16},
    {"I4, one group, floats", ST_WEIGHT_I4, -1, false, true, ST_WEIGHT_BF16},
    {"I4, one group, zero points, floats", ST_WEIGHT_I4, -1, true, true, ST_WEIGHT_F32},
};

static const weight_case plain; /* matmul */

static bool takes_int8(const weight_case *c)
{
    return st_weight_takes_int8(c->type) && !c->floats;
}

static void multiply(const st_kernels *t, const weight_case *c, float *y, size_t ldy,
                     const st_act *a, const st_packed *w, int n0, int n1)
{
    (c->floats ? t->matmul_float : t->matmul)(y, ldy, a, w, n0, n1);
}

static void make_weights(kt_weights *w, const weight_case *c, int n, int k)
{
    kt_weights_scaled(w, c->type, n, k, c->group < 0 ? k : c->group, c->zero, c->scale);
}

/* y of one product, inside guards, with gaps between rows that must stay as they were. */
typedef struct product {
    kt_buf y;
    size_t ldy;
} product;

static product run(const st_kernels *t, const weight_case *c, const st_act *a, const st_packed *w)
{
    product p;
    p.ldy = (size_t)w->n + 3;
    p.y = kt_new((size_t)a->m * p.ldy, sizeof(float));
    multiply(t, c, p.y.p, p.ldy, a, w, 0, w->n);
    kt_check_guards(&p.y);
    for (size_t i = 0; i < (size_t)a->m; i++)
        for (size_t b = 0; b < 3 * sizeof(float); b++) {
            size_t at = (i * p.ldy + (size_t)w->n) * sizeof(float) + b;
            assert_int_equal(((unsigned char *)p.y.p)[at], 0xee);
        }
    return p;
}

/* For x as fixed point of 16 bits, an element's error is a part of the row's largest. */
static void check_float64(const product *p, const st_act *a, const kt_weights *w, bool fixed,
                          const char *what)
{
    for (size_t i = 0; i < (size_t)a->m; i++) {
        const float *x = a->x + i * a->ld;
        for (size_t j = 0; j < (size_t)w->rows.n; j++) {
            const double *row = w->as_double + j * (size_t)w->rows.k;
            double want = 0, size = 0, most = 0, weights = 0;
            for (int l = 0; l < w->rows.k; l++) {
                double term = (double)x[l] * row[l];
                want += term;
                size += term * term;
                most = fmax(most, fabs((double)x[l]));
                weights += row[l] * row[l];
            }
            double step = fixed ? most / (127 << 8) * sqrt(weights) : 0;
            float got = ((float *)p->y.p)[i * p->ldy + j];
            if (!(fabs(got - want) <= 1e-6 * sqrt(w->rows.k) * sqrt(size) + 2 * step + 1e-30))
                fail_msg("%s m %d n %d k %d at %zu,%zu: %g, expected %g", what, a->m, w->rows.n,
                         w->rows.k, i, j, got, want);
        }
    }
}

static void check_same(const product *got, const product *want, const st_act *a, int n,
                       const char *what)
{
    for (size_t i = 0; i < (size_t)a->m; i++)
        for (size_t j = 0; j < (size_t)n; j++) {
            size_t at = i * got->ldy + j;
            float g = ((float *)got->y.p)[at], w = ((float *)want->y.p)[at];
            if (st_bits_of_float(g) != st_bits_of_float(w))
                fail_msg("%s m %d n %d k %d at %zu,%zu: %g, expected %g", what, a->m, n, a->k, i, j,
                         g, w);
        }
}

static void check_product(const st_kernels *t, const weight_case *c, int m, int n, int k)
{
    char what[96];
    kt_weights w;
    kt_act a;
    kt_pack pack, ref;
    snprintf(what, sizeof what, "%s %s", t->name, c->name);
    make_weights(&w, c, n, k);
    kt_act_new(&a, m, k);
    kt_pack_new(&pack, t, &w);
    product got = run(t, c, &a.a, &pack.w);
    if (takes_int8(c)) {
        kt_pack_new(&ref, kt_tables[0], &w);
        product want = run(kt_tables[0], c, &a.a, &ref.w);
        check_same(&got, &want, &a.a, n, what);
        kt_free(&want.y);
        kt_pack_free(&ref);
    } else {
        bool fixed = strcmp(t->name, "avx512vnni") == 0 && st_weight_takes_int8(c->type);
        check_float64(&got, &a.a, &w, fixed, what);
    }
    kt_free(&got.y);
    kt_pack_free(&pack);
    kt_act_free(&a);
    kt_weights_free(&w);
}

static void products_match(void **state)
{
    static const int ks[] = {1, 3, 15, 16, 17, 31, 33, 64, 65, 127, 257, 576};
    for (int t = 0; t < kt_n_tables; t++)
        for (int c = 0; c < COUNT(cases); c++) {
            for (int a = 0; a < COUNT(ks); a++)
                check_product(kt_tables[t], &cases[c], kt_int(1, 14), kt_int(1, 40), ks[a]);
            for (int a = 0; a < (kt_slow ? 1 : 4); a++)
                check_product(kt_tables[t], &cases[c], kt_int(1, 40), kt_int(1, 200),
                              kt_int(1, 600));
        }
}

/* The integer reference against float64: what all others are compared with bit for bit. */
static void the_reference_matches_float64(void **state)
{
    for (int c = 0; c < COUNT(cases); c++) {
        kt_weights w;
        kt_act a;
        kt_pack pack;
        if (!takes_int8(&cases[c]))
            continue;
        make_weights(&w, &cases[c], 9, 301);
        kt_act_new(&a, 4, 301);
        float *x = a.x.p;
        for (size_t i = 0; i < 4; i++)
            for (size_t l = 0; l < 301; l++)
                x[i * a.a.ld + l] = a.a.scale[i] * a.a.q[i * a.a.ldq + l];
        kt_pack_new(&pack, kt_tables[0], &w);
        product p = run(kt_tables[0], &cases[c], &a.a, &pack.w);
        check_float64(&p, &a.a, &w, false, cases[c].name);
        kt_free(&p.y);
        kt_pack_free(&pack);
        kt_act_free(&a);
        kt_weights_free(&w);
    }
}

/* Every row alone, some rows alone, every range of columns alone: the same bits as all at once. */
static void check_invariance(const st_kernels *t, const weight_case *c, int m, int n, int k)
{
    kt_weights w;
    kt_act a;
    kt_pack pack;
    make_weights(&w, c, n, k);
    kt_act_new(&a, m, k);
    kt_pack_new(&pack, t, &w);
    product all = run(t, c, &a.a, &pack.w);
    for (int i = 0; i < m;) {
        int rows = kt_int(0, 1) ? 1 : kt_int(1, m - i);
        st_act some = kt_act_rows(&a, i, rows);
        product one = run(t, c, &some, &pack.w);
        product part = {.y = {.p = (float *)all.y.p + (size_t)i * all.ldy}, .ldy = all.ldy};
        check_same(&one, &part, &some, n, c->name);
        kt_free(&one.y);
        i += rows;
    }
    product cut = {.y = kt_new((size_t)m * all.ldy, sizeof(float)), .ldy = all.ldy};
    for (int n0 = 0; n0 < n;) {
        int n1 = n0 + kt_int(1, 3) * t->pack_cols;
        n1 = n1 < n ? n1 : n;
        multiply(t, c, cut.y.p, cut.ldy, &a.a, &pack.w, n0, n1);
        n0 = n1;
    }
    check_same(&cut, &all, &a.a, n, c->name);
    kt_free(&cut.y);
    kt_free(&all.y);
    kt_pack_free(&pack);
    kt_act_free(&a);
    kt_weights_free(&w);
}

static void rows_and_cuts_do_not_matter(void **state)
{
    for (int t = 1; t < kt_n_tables; t++)
        for (int c = 0; c < COUNT(cases); c++) {
            check_invariance(kt_tables[t], &cases[c], 14, 75, 331);
            check_invariance(kt_tables[t], &cases[c], kt_int(1, 40), kt_int(1, 200),
                             kt_int(1, 600));
            /* Several parts of k, and more rows than one panel of x. */
            check_invariance(kt_tables[t], &cases[c], kt_int(13, 30), 37,
                             kt_int(2049, cases[c].floats ? ST_MAX_FLOAT_K : 5000));
            check_invariance(kt_tables[t], &cases[c], kt_int(193, 230), 33, 515);
        }
}

/* The largest sums there are: 16-bit saturation or 32-bit overflow would show. */
static void extremes_are_exact(void **state)
{
    static const int8_t xs[] = {127, -127};
    static const uint8_t i8[] = {127, 0x80}, i4[] = {15, 0};
    enum { K = 65536, M = 2 };
    const int N = kt_slow ? 17 : 40;
    for (int t = 1; t < kt_n_tables; t++)
        for (int e = 0; e < 8; e++) {
            bool four = e & 4;
            kt_weights w;
            kt_act a;
            kt_pack pack;
            kt_weights_new(&w, four ? ST_WEIGHT_I4 : ST_WEIGHT_I8, N, K, four ? K : 0, four);
            memset(w.data.p, four ? i4[e & 1] : i8[e & 1], w.data.bytes);
            memset(w.zero, e & 1 ? 16 : 0, (size_t)N);
            kt_act_new(&a, M, K);
            for (size_t i = 0; i < M; i++)
                memset(a.a.q + i * a.a.ldq, xs[e >> 1 & 1], K);
            kt_act_sum(&a);
            kt_pack_new(&pack, kt_tables[t], &w);
            product p = run(kt_tables[t], &plain, &a.a, &pack.w);
            int value = four ? (e & 1 ? -16 : 15) : (int8_t)i8[e & 1];
            float sum = (float)(xs[e >> 1 & 1] * value * K);
            for (size_t i = 0; i < M; i++)
                for (size_t j = 0; j < (size_t)N; j++) {
                    float want = four ? fmaf(sum, w.scale[j], 0) * a.a.scale[i]
                                      : sum * (a.a.scale[i] * w.scale[j]);
                    assert_true(((float *)p.y.p)[i * p.ldy + j] == want);
                }
            kt_free(&p.y);
            kt_pack_free(&pack);
            kt_act_free(&a);
            kt_weights_free(&w);
        }
}

/* Each E4M3 code in a column of its own: value times scale, exactly, at even and odd k. */
static void every_f8_code_is_right(void **state)
{
    static const float scales[] = {1, 0.37f, 0x1p-100f, 0x1p100f};
    for (int t = 0; t < kt_n_tables; t++)
        for (int at = 0; at < 5; at++)
            for (int s = 0; s < COUNT(scales); s++) {
                kt_weights w;
                kt_act a;
                kt_pack pack;
                kt_weights_new(&w, ST_WEIGHT_F8, 256, 5, 128, false);
                memset(w.data.p, 0, w.data.bytes);
                for (int j = 0; j < 256; j++) {
                    ((uint8_t *)w.data.p)[j * 5 + at] = (uint8_t)j;
                    w.scale[j] = scales[s];
                }
                kt_act_new(&a, 1, 5);
                ((float *)a.x.p)[at] = 1;
                kt_pack_new(&pack, kt_tables[t], &w);
                product p = run(kt_tables[t], &plain, &a.a, &pack.w);
                for (int j = 0; j < 256; j++) {
                    float got = ((float *)p.y.p)[j], want = st_f8_to_f32((uint8_t)j) * scales[s];
                    assert_true(got == want || (isnan(got) && isnan(want)));
                }
                kt_free(&p.y);
                kt_pack_free(&pack);
                kt_act_free(&a);
                kt_weights_free(&w);
            }
}

static void float_of_f8_matches_its_definition(void **state)
{
    for (int b = 0; b < 256; b++) {
        int e = b >> 3 & 15, m = b & 7;
        double want = e ? ldexp(8 + m, e - 10) : ldexp(m, -9);
        float got = st_f8_to_f32((uint8_t)b);
        if ((b & 0x7f) == 0x7f)
            assert_true(isnan(got));
        else
            assert_true(got == (b & 0x80 ? -want : want));
        assert_true(!!signbit(got) == !!(b & 0x80));
    }
}

/* A NaN or infinite activation reaches its row and no other, in every type. */
static void non_finite_values_propagate(void **state)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    enum { M = 15, N = 37, K = 70 };
    for (int t = 0; t < kt_n_tables; t++)
        for (int c = 0; c < COUNT(cases); c++)
            for (int b = 0; b < COUNT(bad); b++) {
                kt_weights w;
                kt_act a;
                kt_pack pack;
                make_weights(&w, &cases[c], N, K);
                kt_act_new(&a, M, K);
                int row = kt_int(0, M - 1);
                ((float *)a.x.p)[(size_t)row * a.a.ld + (size_t)kt_int(0, K - 1)] = bad[b];
                kt_tables[t]->quantize(&a.a);
                kt_pack_new(&pack, kt_tables[t], &w);
                product p = run(kt_tables[t], &cases[c], &a.a, &pack.w);
                for (int i = 0; i < M; i++)
                    for (int j = 0; j < N; j++)
                        assert_true(isfinite(((float *)p.y.p)[(size_t)i * p.ldy + (size_t)j]) ==
                                    (i != row));
                kt_free(&p.y);
                kt_pack_free(&pack);
                kt_act_free(&a);
                kt_weights_free(&w);
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
               : kind == 6 ? kt_normal() * 1e-30f
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
    enum { M = 8 };
    static const int ks[] = {1, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 257, 576, 2055};
    for (int t = 0; t < kt_n_tables; t++)
        for (int c = 0; c < COUNT(ks); c++) {
            kt_act got, want;
            int k = ks[c];
            kt_act_new(&got, M, k);
            kt_act_new(&want, M, k);
            for (size_t i = 0; i < M; i++)
                special_row((float *)got.x.p + i * got.a.ld, k, (int)i);
            want.a.x = got.a.x;
            want.a.ld = got.a.ld;
            memset(got.q.p, 0x55, got.q.bytes);
            memset(want.q.p, 0x55, want.q.bytes);
            kt_tables[t]->quantize(&got.a);
            kt_tables[0]->quantize(&want.a);
            assert_memory_equal(got.q.p, want.q.p, got.q.bytes);
            assert_memory_equal(got.sum.p, want.sum.p, got.sum.bytes);
            for (int i = 0; i < M; i++) {
                float g = got.a.scale[i], w = want.a.scale[i];
                assert_true(w == g || (isnan(w) && isnan(g)));
                assert_true(isnan(g) == (i == 4 || i == 5));
            }
            kt_act_sum(&want);
            assert_memory_equal(got.sum.p, want.sum.p, got.sum.bytes);
            kt_act_free(&got);
            kt_act_free(&want);
        }
}

int main(void)
{
    kt_start();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(float_of_f8_matches_its_definition),
        cmocka_unit_test(every_f8_code_is_right),
        cmocka_unit_test(the_reference_matches_float64),
        cmocka_unit_test(products_match),
        cmocka_unit_test(rows_and_cuts_do_not_matter),
        cmocka_unit_test(extremes_are_exact),
        cmocka_unit_test(non_finite_values_propagate),
        cmocka_unit_test(quantization_matches_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
