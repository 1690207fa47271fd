/* The threaded operators: the kernels' own bits at any thread count, with bias, gaps between rows
 * and many jobs of mixed types at once; nothing outside the outputs is written. */
#include "kernel_test.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/ops.h"

enum { N_JOBS = 9, MAX_THREADS = 3 };

typedef struct job_data {
    kt_matrix w;
    kt_buf x, q, scale, bias, want, got;
    st_matmul_job job;
} job_data;

static void job_new(job_data *d, st_dtype dtype, int m, int n, int k, bool bias,
                    const st_kernels *t)
{
    kt_matrix_new(&d->w, dtype, n, k);
    size_t ld = (size_t)k + 1;
    float *x = kt_floats(&d->x, (size_t)m * ld);
    d->q = kt_new((size_t)m * (size_t)k, 1);
    d->scale = kt_new((size_t)m, 4);
    kt_floats(&d->bias, (size_t)n);
    size_t ldy = (size_t)n + 2;
    d->want = kt_new((size_t)m * ldy, 4);
    d->got = kt_new((size_t)m * ldy, 4);
    st_matmul_job job = {.w = &d->w.m,
                         .a = {.x = x, .ld = ld, .q = d->q.p, .scale = d->scale.p, .m = m, .k = k},
                         .y = d->got.p,
                         .ldy = ldy,
                         .bias = bias ? d->bias.p : NULL};
    d->job = job;
    float *want = d->want.p;
    t->quantize_rows(d->q.p, (size_t)k, d->scale.p, x, ld, m, k);
    if (dtype == ST_I8)
        t->matmul_i8(want, ldy, d->q.p, (size_t)k, d->scale.p, m, &d->w.m, 0, n);
    else
        t->matmul_f(want, ldy, x, ld, m, &d->w.m, 0, n);
    for (int i = 0; bias && i < m; i++)
        for (int j = 0; j < n; j++)
            want[(size_t)i * ldy + (size_t)j] += ((float *)d->bias.p)[j];
    memset(d->q.p, 0, d->q.bytes); /* st_op_quantize has to fill it again */
}

static void job_free(job_data *d)
{
    kt_matrix_free(&d->w);
    kt_free(&d->x);
    kt_free(&d->q);
    kt_free(&d->scale);
    kt_free(&d->bias);
    kt_free(&d->want);
    kt_free(&d->got);
}

static void check_products(const st_kernels *t, st_ops *const *ops)
{
    static const st_dtype types[] = {ST_F32, ST_BF16, ST_F16, ST_I8};
    job_data *d = calloc(N_JOBS, sizeof *d);
    st_matmul_job jobs[N_JOBS];
    assert_non_null(d);
    for (int i = 0; i < N_JOBS; i++) {
        /* Some small, some of several tasks, one tall. */
        int m = i == 5 ? 70 : kt_int(1, 9), n = i < 3 ? kt_int(900, 1500) : kt_int(1, 60);
        job_new(&d[i], types[kt_int(0, 3)], m, n, kt_int(1, 150), i % 2, t);
        jobs[i] = d[i].job;
    }
    for (int threads = 0; threads < MAX_THREADS; threads++) {
        for (int i = 0; i < N_JOBS; i++) {
            memset(d[i].got.p, 0xee, d[i].got.bytes);
            st_op_quantize(ops[threads], &jobs[i].a);
        }
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

static void check_rows(const st_kernels *t, st_ops *const *ops, int m, int d)
{
    size_t n = (size_t)m * (size_t)d;
    kt_buf xb, wb, ub, want = kt_new(n, 4), got = kt_new(n, 4);
    float *x = kt_floats(&xb, n), *w = kt_floats(&wb, (size_t)d), *u = kt_floats(&ub, n);
    for (int threads = 0; threads < MAX_THREADS; threads++) {
        t->rmsnorm(want.p, (size_t)d, x, (size_t)d, w, m, d, 1e-6f);
        st_op_rmsnorm(ops[threads], got.p, (size_t)d, x, (size_t)d, w, m, d, 1e-6f);
        assert_memory_equal(got.p, want.p, got.bytes);
        t->silu_mul(want.p, x, u, (int)n);
        st_op_silu_mul(ops[threads], got.p, x, u, m, d);
        assert_memory_equal(got.p, want.p, got.bytes);
        t->add(want.p, x, (int)n);
        st_op_add(ops[threads], got.p, x, n);
        assert_memory_equal(got.p, want.p, got.bytes);
    }
    kt_free(&xb);
    kt_free(&wb);
    kt_free(&ub);
    kt_free(&want);
    kt_free(&got);
}

/* Rows go to their slots and nowhere else. */
static void check_kv_write(const st_kernels *t, st_ops *ops, st_dtype dtype)
{
    enum { ROWS = 70, ELEMS = 300, BLOCK = 4, BLOCKS = 40 };
    size_t elem = st_dtype_size(dtype);
    kt_buf memory = kt_new(BLOCKS * BLOCK * ELEMS, elem), xb;
    float *x = kt_floats(&xb, ROWS * (ELEMS + 1));
    st_kv_layer kv = {memory.p, BLOCK * ELEMS * elem, ELEMS * elem, BLOCK, dtype};
    int64_t slots[ROWS];
    for (int i = 0; i < ROWS; i++)
        slots[i] = (i * 37 + 5) % (BLOCKS * BLOCK);
    st_op_kv_write(ops, &kv, slots, x, ELEMS + 1, ROWS, ELEMS);
    unsigned char *seen = calloc(BLOCKS * BLOCK, 1);
    uint16_t bf16[ELEMS];
    for (int i = 0; i < ROWS; i++) {
        const void *row = (unsigned char *)memory.p + (size_t)slots[i] * ELEMS * elem;
        t->to_bf16(bf16, x + (size_t)i * (ELEMS + 1), ELEMS);
        assert_memory_equal(row,
                            dtype == ST_F32 ? (const void *)(x + (size_t)i * (ELEMS + 1)) : bf16,
                            ELEMS * elem);
        seen[slots[i]] = 1;
    }
    for (int s = 0; s < BLOCKS * BLOCK; s++)
        for (size_t b = 0; !seen[s] && b < ELEMS * elem; b++)
            assert_int_equal(((unsigned char *)memory.p)[(size_t)s * ELEMS * elem + b], 0xee);
    free(seen);
    kt_free(&memory);
    kt_free(&xb);
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
        check_rows(kt_tables[t], ops, 1, 7);
        check_rows(kt_tables[t], ops, 60, 1031);
        for (int i = 0; i < MAX_THREADS; i++) {
            check_kv_write(kt_tables[t], ops[i], ST_BF16);
            check_kv_write(kt_tables[t], ops[i], ST_F32);
            st_ops_free(ops[i]);
            st_pool_free(pools[i]);
        }
    }
}

static void time_is_counted_by_kind(void **state)
{
    st_ops *ops;
    uint64_t ns[ST_OP_KIND_COUNT];
    assert_int_equal(st_ops_new(kt_tables[0], NULL, NULL, &ops, NULL), ST_OK);
    kt_buf x;
    kt_floats(&x, 5000);
    st_op_add(ops, x.p, x.p, 5000);
    st_ops_profile(ops, ns);
    for (int i = 0; i < ST_OP_KIND_COUNT; i++) {
        assert_true((ns[i] > 0) == (i == ST_OP_ELEMENTWISE));
        assert_true(strlen(st_op_kind_name((st_op_kind)i)) > 0);
    }
    st_ops_profile_reset(ops);
    st_ops_profile(ops, ns);
    assert_true(ns[ST_OP_ELEMENTWISE] == 0);
    kt_free(&x);
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
