/* The screened product against the whole one: every output that can be among the best is there with
 * the same bits, and what is left out is not among them. */
#include "kernel_test.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/ops_screen.h"

/* A head and its screen, packed. */
typedef struct head {
    kt_weights w, approx, bound;
    kt_pack packs[3];
    st_screen *screen;
} head;

/* From rows [n][k] of F32. */
static void head_new(head *h, const st_kernels *t, int n, int k, st_weight_type type,
                     const float *rows)
{
    memset(h, 0, sizeof *h);
    kt_weights_new(&h->w, type, n, k, 0, false);
    if (rows)
        memcpy((void *)(uintptr_t)h->w.rows.data, rows, (size_t)n * (size_t)k * sizeof *rows);
    kt_weights_new(&h->approx, ST_WEIGHT_I8, n, k, 0, false);
    kt_weights_new(&h->bound, ST_WEIGHT_F32, n, 2, 0, false);
    st_screen_out out = {(int8_t *)(uintptr_t)h->approx.rows.data,
                         (float *)(uintptr_t)h->approx.rows.scale,
                         (float *)(uintptr_t)h->bound.rows.data};
    st_screen_rows(&h->w.rows, &out);
    kt_pack_new(&h->packs[0], t, &h->w);
    kt_pack_new(&h->packs[1], t, &h->approx);
    kt_pack_new(&h->packs[2], t, &h->bound);
    st_error err;
    assert_int_equal(
        st_screen_new(&h->packs[0].w, &h->packs[1].w, &h->packs[2].w, t, &h->screen, &err), ST_OK);
}

static void head_free(head *h)
{
    st_screen_free(h->screen);
    for (int i = 0; i < 3; i++)
        kt_pack_free(&h->packs[i]);
    kt_weights_free(&h->w);
    kt_weights_free(&h->approx);
    kt_weights_free(&h->bound);
}

enum { MOST_ROWS = ST_SCREEN_ROWS + 9 };

typedef struct input {
    st_act a;
    float x[MOST_ROWS * 256];
    int8_t q[MOST_ROWS * 512];
    float scale[MOST_ROWS];
    int32_t sum[MOST_ROWS * 16];
} input;

static void input_new(input *in, const st_kernels *t, int m, int k)
{
    in->a = (st_act){in->x, (size_t)k, in->q, st_act_ldq(k), in->scale, in->sum, m, k};
    for (int i = 0; i < m * k; i++)
        in->x[i] = kt_normal();
    t->quantize(&in->a);
}

static int descending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* Returns how many outputs were left out, or -1 when the screen gave up. */
static int check(const st_kernels *t, st_ops *ops, const head *h, const st_act *a,
                 const int32_t *best)
{
    int n = h->w.rows.n, left_out = 0;
    size_t ldy = (size_t)n + 3;
    float *want = malloc((size_t)a->m * ldy * sizeof *want), *sorted = malloc(ldy * sizeof *sorted);
    kt_buf got = kt_new((size_t)a->m * ldy, sizeof(float));
    float *y = got.p;
    assert_non_null(want);
    assert_non_null(sorted);
    t->matmul(want, ldy, a, &h->packs[0].w, 0, n);
    bool done = st_op_screened(ops, h->screen, a, best, y, ldy);
    for (int i = 0; i < a->m && done; i++) {
        const float *row = want + (size_t)i * ldy, *mine = y + (size_t)i * ldy;
        memcpy(sorted, row, (size_t)n * sizeof *sorted);
        qsort(sorted, (size_t)n, sizeof *sorted, descending);
        for (int j = 0; j < n; j++) {
            bool needed = row[j] >= sorted[best[i] - 1];
            if (memcmp(&row[j], &mine[j], sizeof *row) == 0)
                continue;
            assert_true(mine[j] == -FLT_MAX);
            assert_false(needed);
            left_out++;
        }
    }
    kt_free(&got);
    free(sorted);
    free(want);
    return done ? left_out : -1;
}

static void test_random(void **state)
{
    static const st_weight_type types[] = {ST_WEIGHT_F32, ST_WEIGHT_BF16, ST_WEIGHT_F16};
    static const int columns[] = {64, 257, 6000};
    input *in = malloc(sizeof *in);
    assert_non_null(in);
    for (int t = 0; t < kt_n_tables; t++)
        for (int c = 0; c < 9; c++) {
            const st_kernels *k = kt_tables[t];
            int n = columns[c % 3], dim = c < 3 ? 256 : kt_int(1, 256),
                m = kt_int(1, c % 3 == 2 ? 6 : MOST_ROWS);
            bool easy = c == 2; /* independent rows, one wanted: most are far from it */
            m = easy ? 1 : m;
            int32_t best[MOST_ROWS];
            for (int i = 0; i < m; i++)
                best[i] = easy ? 1 : kt_int(1, 6);
            head h;
            st_pool *pool;
            st_ops *ops;
            st_error err;
            head_new(&h, k, n, dim, types[c / 3], NULL);
            assert_int_equal(st_pool_new(2, false, &pool, &err), ST_OK);
            assert_int_equal(st_ops_new(k, pool, NULL, &ops, &err), ST_OK);
            input_new(in, k, m, dim);
            int left_out = check(k, ops, &h, &in->a, best);
            if (easy)
                assert_true(left_out > n / 2);
            st_ops_free(ops);
            st_pool_free(pool);
            head_free(&h);
        }
    free(in);
}

/* Rows in pairs that differ by one rounding: both of the best pair are there. */
static void test_ties(void **state)
{
    enum { N = 4096, K = 64 };
    float *rows = malloc(N * K * sizeof *rows);
    input *in = malloc(sizeof *in);
    assert_true(rows && in);
    for (int i = 0; i < N / 2; i++)
        for (int j = 0; j < K; j++) {
            float w = kt_normal();
            rows[i * K + j] = w;
            rows[(i + N / 2) * K + j] = i % 2 ? w : nextafterf(w, 0);
        }
    for (int t = 0; t < kt_n_tables; t++) {
        head h;
        st_ops *ops;
        st_error err;
        int32_t best[1] = {1};
        head_new(&h, kt_tables[t], N, K, ST_WEIGHT_F32, rows);
        assert_int_equal(st_ops_new(kt_tables[t], NULL, NULL, &ops, &err), ST_OK);
        input_new(in, kt_tables[t], 1, K);
        assert_true(check(kt_tables[t], ops, &h, &in->a, best) > 0);
        st_ops_free(ops);
        head_free(&h);
    }
    free(in);
    free(rows);
}

/* What leaves everything open: equal rows, rows and inputs that are not numbers, zeros. */
static void test_gives_up(void **state)
{
    enum { N = 512, K = 32 };
    static float rows[N * K];
    input *in = malloc(sizeof *in);
    assert_non_null(in);
    int32_t best[1] = {1};
    for (int t = 0; t < kt_n_tables; t++)
        for (int c = 0; c < 4; c++) {
            for (int i = 0; i < N * K; i++)
                rows[i] = c == 0 ? 0 : c == 1 ? 1 + (float)(i % K) : kt_normal();
            head h;
            st_ops *ops;
            st_error err;
            head_new(&h, kt_tables[t], N, K, ST_WEIGHT_F32, rows);
            assert_int_equal(st_ops_new(kt_tables[t], NULL, NULL, &ops, &err), ST_OK);
            input_new(in, kt_tables[t], 1, K);
            if (c >= 2)
                in->x[kt_int(0, K - 1)] = c == 2 ? NAN : INFINITY;
            kt_tables[t]->quantize(&in->a);
            float *y = malloc(N * sizeof *y);
            assert_non_null(y);
            assert_false(st_op_screened(ops, h.screen, &in->a, best, y, N));
            free(y);
            st_ops_free(ops);
            head_free(&h);
        }
    free(in);
}

/* The bounds hold for weights of any size: outliers in a row, denormals, very large ones. */
static void test_wide_range(void **state)
{
    enum { N = 600, K = 100 };
    float *rows = malloc(N * K * sizeof *rows);
    input *in = malloc(sizeof *in);
    assert_true(rows && in);
    for (int i = 0; i < N * K; i++)
        rows[i] = ldexpf(kt_normal(), kt_int(0, 9) ? 0 : kt_int(-140, 20));
    for (int t = 0; t < kt_n_tables; t++) {
        head h;
        st_ops *ops;
        st_error err;
        int32_t best[4] = {1, 2, 3, ST_SCREEN_BEST};
        head_new(&h, kt_tables[t], N, K, ST_WEIGHT_F32, rows);
        assert_int_equal(st_ops_new(kt_tables[t], NULL, NULL, &ops, &err), ST_OK);
        input_new(in, kt_tables[t], 4, K);
        check(kt_tables[t], ops, &h, &in->a, best);
        st_ops_free(ops);
        head_free(&h);
    }
    free(in);
    free(rows);
}

int main(void)
{
    kt_start();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_gives_up),
        cmocka_unit_test(test_wide_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
