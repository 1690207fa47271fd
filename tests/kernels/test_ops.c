/* The threaded operators: the kernels' own bits at any thread count, with bias, gaps between rows
 * and many jobs of mixed types at once; nothing outside the outputs is written. */
#include "kernel_test.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/ops.h"

enum { N_JOBS = 9, MAX_THREADS = 3 };

typedef struct job_data {
    kt_weights w;
    kt_pack pack;
    kt_act a;
    kt_buf bias, want, got;
    st_matmul_job job;
} job_data;

static void job_new(job_data *d, st_weight_type type, int m, int n, int k, bool bias,
                    const st_kernels *t)
{
    bool grouped = type == ST_WEIGHT_I4 || type == ST_WEIGHT_F8;
    kt_weights_new(&d->w, type, n, k, grouped ? 64 : 0, type == ST_WEIGHT_I4);
    kt_pack_new(&d->pack, t, &d->w);
    kt_act_new(&d->a, m, k);
    kt_floats(&d->bias, (size_t)n);
    size_t ldy = (size_t)n + 2;
    d->want = kt_new((size_t)m * ldy, 4);
    d->got = kt_new((size_t)m * ldy, 4);
    st_matmul_job job = {
        .w = &d->pack.w, .a = d->a.a, .y = d->got.p, .ldy = ldy, .bias = bias ? d->bias.p : NULL};
    d->job = job;
    float *want = d->want.p;
    t->matmul(want, ldy, &d->a.a, &d->pack.w, 0, n);
    for (int i = 0; bias && i < m; i++)
        for (int j = 0; j < n; j++)
            want[(size_t)i * ldy + (size_t)j] += ((float *)d->bias.p)[j];
}

static void job_free(job_data *d)
{
    kt_weights_free(&d->w);
    kt_pack_free(&d->pack);
    kt_act_free(&d->a);
    kt_free(&d->bias);
    kt_free(&d->want);
    kt_free(&d->got);
}

static void check_products(const st_kernels *t, st_ops *const *ops)
{
    job_data *d = calloc(N_JOBS, sizeof *d);
    st_matmul_job jobs[N_JOBS];
    assert_non_null(d);
    for (int i = 0; i < N_JOBS; i++) {
        /* Some small, some of several tasks, one tall. */
        int m = i == 5 ? 70 : kt_int(1, 9), n = i < 3 ? kt_int(900, 1500) : kt_int(1, 60);
        job_new(&d[i], (st_weight_type)kt_int(0, ST_WEIGHT_TYPE_COUNT - 1), m, n, kt_int(1, 150),
                i % 2, t);
        jobs[i] = d[i].job;
    }
    for (int threads = 0; threads < MAX_THREADS; threads++) {
        for (int i = 0; i < N_JOBS; i++)
            memset(d[i].got.p, 0xee, d[i].got.bytes);
        st_op_matmul(ops[threads], jobs, N_JOBS);
        for (int i = 0; i < N_JOBS; i++) {
            kt_check_guards(&d[i].got);
            assert_memory_equal(d[i].got.p, d[i].want.p, d[i].got.bytes);
        }
    }
    for (int i = 0; i < N_JOBS; i++)
        job_free(&d[i]);
    free(d);
}

static void operators_give_the_kernels_bits(void **state)
{
    for (int t = 0; t < kt_n_tables; t++) {
        st_pool *pools[MAX_THREADS];
        st_ops *ops[MAX_THREADS];
        for (int i = 0; i < MAX_THREADS; i++) {
            assert_int_equal(st_pool_new(i + 1, false, &pools[i], NULL), ST_OK);
            assert_int_equal(st_ops_new(kt_tables[t], pools[i], NULL, &ops[i], NULL), ST_OK);
        }
        check_products(kt_tables[t], ops);
        check_products(kt_tables[t], ops);
        for (int i = 0; i < MAX_THREADS; i++) {
            st_ops_free(ops[i]);
            st_pool_free(pools[i]);
        }
    }
}

static void count_task(void *arg, size_t task, int worker)
{
    ((int *)arg)[task]++;
}

static void time_is_counted_by_kind(void **state)
{
    st_ops *ops;
    uint64_t ns[ST_OP_KIND_COUNT];
    int ran[1000] = {0};
    assert_int_equal(st_ops_new(kt_tables[0], NULL, NULL, &ops, NULL), ST_OK);
    st_op_run(ops, ST_OP_ELEMENTWISE, 1000, count_task, ran);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(ran[i], 1);
    st_ops_profile(ops, ns);
    for (int i = 0; i < ST_OP_KIND_COUNT; i++) {
        assert_true((ns[i] > 0) == (i == ST_OP_ELEMENTWISE));
        assert_true(strlen(st_op_kind_name((st_op_kind)i)) > 0);
    }
    st_ops_profile_reset(ops);
    st_ops_profile(ops, ns);
    assert_true(ns[ST_OP_ELEMENTWISE] == 0);
    st_ops_free(ops);
}

int main(void)
{
    kt_start();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operators_give_the_kernels_bits),
        cmocka_unit_test(time_is_counted_by_kind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
