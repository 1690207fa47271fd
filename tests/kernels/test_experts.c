/* The experts' task list against a plain loop: the bits of gathering, two products, silu_mul,
 * quantize and the last product one after the other, for every type of weight, any number of rows
 * and threads; nothing outside the outputs is written. */
#include "kernel_test.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/ops_experts.h"

enum { MAX_JOBS = 9, N_POOLS = 4 };

static st_ops *pools_ops[N_POOLS];

static void weights_new(kt_pack *p, const st_kernels *t, st_weight_type type, int n, int k)
{
    kt_weights w;
    int group = type == ST_WEIGHT_I4 ? 32 : type == ST_WEIGHT_F8 ? 128 : 0;
    kt_weights_new(&w, type, n, k, group, type == ST_WEIGHT_I4 && kt_int(0, 1));
    kt_pack_new(p, t, &w);
    kt_weights_free(&w);
}

/* ---- rows ---- */

typedef struct act_data {
    st_expert_rows r;
    int32_t n, k;
} act_data;

static act_data act_new(int32_t n, int32_t k)
{
    act_data a = {.n = n, .k = k};
    size_t rows = (size_t)n + 1; /* never nothing */
    a.r.ld = (size_t)k + 3;
    a.r.ldq = st_act_ldq(k);
    a.r.x = aligned_alloc(64, (rows * a.r.ld * sizeof(float) + 63) / 64 * 64);
    a.r.q = aligned_alloc(64, rows * a.r.ldq);
    a.r.scale = malloc(rows * sizeof(float));
    a.r.sum = malloc(rows * st_act_sums(k) * sizeof(int32_t));
    assert_true(a.r.x && a.r.q && a.r.scale && a.r.sum);
    return a;
}

static void act_free(act_data *a)
{
    free(a->r.x);
    free(a->r.q);
    free(a->r.scale);
    free(a->r.sum);
}

static st_act act_of(const act_data *a, int32_t first, int32_t n)
{
    size_t i = (size_t)first;
    return (st_act){.x = a->r.x + i * a->r.ld,
                    .ld = a->r.ld,
                    .q = a->r.q + i * a->r.ldq,
                    .ldq = a->r.ldq,
                    .scale = a->r.scale + i,
                    .sum = a->r.sum + i * st_act_sums(a->k),
                    .m = n,
                    .k = a->k};
}

/* ---- jobs ---- */

typedef struct job_data {
    kt_pack gate, up, down;
    int32_t *rows;
    act_data gathered, h;
    kt_buf want, got;
} job_data;

/* What the operator should do, plainly. */
static void expect(const st_kernels *t, const job_data *d, const st_expert_job *job, float *want)
{
    size_t n = (size_t)job->n, width = (size_t)d->gate.w.n, hidden = (size_t)d->gate.w.k;
    act_data in = act_new(job->n, d->gate.w.k), h = act_new(job->n, d->gate.w.n);
    float *gate = malloc((n * width + 1) * sizeof *gate), *up = malloc((n * width + 1) * 4);
    assert_true(gate && up);
    for (size_t i = 0; i < n; i++)
        memcpy(in.r.x + i * in.r.ld,
               job->in->x + (job->rows ? (size_t)job->rows[i] : i) * job->in->ld,
               hidden * sizeof *gate);
    st_act a = act_of(&in, 0, job->n);
    t->quantize(&a);
    t->matmul(gate, width, &a, &d->gate.w, 0, d->gate.w.n);
    t->matmul(up, width, &a, &d->up.w, 0, d->up.w.n);
    t->silu_mul(h.r.x, h.r.ld, gate, up, width, job->n, d->gate.w.n);
    a = act_of(&h, 0, job->n);
    t->quantize(&a);
    t->matmul(want, job->ldy, &a, &d->down.w, 0, d->down.w.n);
    free(up);
    free(gate);
    act_free(&h);
    act_free(&in);
}

static st_expert_job job_new(const st_kernels *t, job_data *d, const st_act *in, int32_t n,
                             bool chosen, int32_t width)
{
    st_weight_type type = (st_weight_type)kt_int(0, ST_WEIGHT_TYPE_COUNT - 1);
    bool alike = kt_int(0, 1);
    st_weight_type other[2] = {type, type};
    for (int i = 0; i < 2 && !alike; i++)
        other[i] = (st_weight_type)kt_int(0, ST_WEIGHT_TYPE_COUNT - 1);
    weights_new(&d->gate, t, type, width, in->k);
    weights_new(&d->up, t, other[0], width, in->k);
    weights_new(&d->down, t, other[1], in->k, width);
    d->gathered = act_new(n, in->k);
    d->h = act_new(n, width);
    size_t ldy = (size_t)in->k + 2;
    d->want = kt_new((size_t)n * ldy + 1, 4);
    d->got = kt_new((size_t)n * ldy + 1, 4);
    if (chosen) {
        d->rows = malloc(((size_t)n + 1) * sizeof *d->rows);
        assert_non_null(d->rows);
        for (int32_t i = 0; i < n; i++)
            d->rows[i] = kt_int(0, in->m - 1);
    }
    st_expert_job job = {.gate = &d->gate.w,
                         .up = &d->up.w,
                         .down = &d->down.w,
                         .in = in,
                         .rows = d->rows,
                         .n = n,
                         .gathered = d->gathered.r,
                         .h = d->h.r,
                         .y = d->got.p,
                         .ldy = ldy};
    expect(t, d, &job, d->want.p);
    return job;
}

static void job_free(job_data *d)
{
    kt_pack_free(&d->gate);
    kt_pack_free(&d->up);
    kt_pack_free(&d->down);
    free(d->rows);
    act_free(&d->gathered);
    act_free(&d->h);
    kt_free(&d->want);
    kt_free(&d->got);
}

/* The same layer at every number of threads. rows[i] < 0: all of the input's, in place. */
static void check_layer(const st_kernels *t, int32_t tokens, int32_t hidden, int32_t width,
                        const int32_t *rows, int n_jobs)
{
    job_data d[MAX_JOBS] = {0};
    st_expert_job jobs[MAX_JOBS];
    act_data x = act_new(tokens, hidden);
    for (size_t i = 0; i < (size_t)tokens * x.r.ld; i++)
        x.r.x[i] = kt_normal();
    st_act in = act_of(&x, 0, tokens);
    t->quantize(&in);
    for (int i = 0; i < n_jobs; i++)
        jobs[i] = job_new(t, &d[i], &in, rows[i] < 0 ? tokens : rows[i], rows[i] >= 0, width);
    for (int p = 0; p < N_POOLS; p++) {
        for (int i = 0; i < n_jobs; i++)
            memset(d[i].got.p, 0xee, d[i].got.bytes);
        st_op_experts(pools_ops[p], jobs, n_jobs);
        for (int i = 0; i < n_jobs; i++) {
            kt_check_guards(&d[i].got);
            assert_memory_equal(d[i].got.p, d[i].want.p, d[i].got.bytes);
        }
    }
    for (int i = 0; i < n_jobs; i++)
        job_free(&d[i]);
    act_free(&x);
}

static void check_table(const st_kernels *t)
{
    static const int32_t one[] = {1}, all[] = {-1}, none[] = {0, 0}, mixed[] = {0, 1, 0, 64, 2, -1};
    for (int32_t m = 1; m <= 70; m += m < 10 ? 1 : 7) {
        int32_t rows[MAX_JOBS], n = kt_int(1, MAX_JOBS);
        for (int i = 0; i < n; i++)
            rows[i] = kt_int(-1, m);
        check_layer(t, m, kt_int(1, 150), kt_int(1, 100), rows, n);
    }
    check_layer(t, 1, 70, 33, one, 1);
    check_layer(t, 70, 64, 96, all, 1);
    check_layer(t, 3, 64, 32, none, 2);
    check_layer(t, 64, 129, 65, mixed, 6);
    check_layer(t, 601, 7, 40, all, 1);    /* several groups of rows */
    check_layer(t, 150, 1000, 20, all, 1); /* and because there are too few columns */
}

static void the_list_gives_the_bits_of_a_loop(void **state)
{
    static const int threads[N_POOLS] = {1, 2, 3, 7};
    for (int t = 0; t < kt_n_tables; t++) {
        st_pool *pools[N_POOLS];
        for (int i = 0; i < N_POOLS; i++) {
            assert_int_equal(st_pool_new(threads[i], false, &pools[i], NULL), ST_OK);
            assert_int_equal(st_ops_new(kt_tables[t], pools[i], NULL, &pools_ops[i], NULL), ST_OK);
        }
        check_table(kt_tables[t]);
        for (int i = 0; i < N_POOLS; i++) {
            st_ops_free(pools_ops[i]);
            st_pool_free(pools[i]);
        }
    }
}

/* A list that does next to nothing, often: threads come to jobs that are finished, half finished,
 * or waiting for one last task. */
static void short_lists_end(void **state)
{
    enum { ROUNDS = 500, EXPERTS = 5 };
    const st_kernels *t = kt_tables[kt_n_tables - 1];
    st_pool *pool;
    st_ops *ops;
    assert_int_equal(st_pool_new(3, false, &pool, NULL), ST_OK);
    assert_int_equal(st_ops_new(t, pool, NULL, &ops, NULL), ST_OK);
    job_data d[EXPERTS] = {0};
    st_expert_job jobs[EXPERTS];
    act_data x = act_new(4, 8);
    for (size_t i = 0; i < 4 * x.r.ld; i++)
        x.r.x[i] = kt_normal();
    st_act in = act_of(&x, 0, 4);
    t->quantize(&in);
    for (int i = 0; i < EXPERTS; i++)
        jobs[i] = job_new(t, &d[i], &in, i, i > 0, 2 * t->pack_cols + 1);
    for (int r = 0; r < ROUNDS; r++) {
        st_op_experts(ops, jobs, EXPERTS);
        for (int i = 0; i < EXPERTS; i++)
            assert_memory_equal(d[i].got.p, d[i].want.p, d[i].got.bytes);
    }
    for (int i = 0; i < EXPERTS; i++)
        job_free(&d[i]);
    act_free(&x);
    st_ops_free(ops);
    st_pool_free(pool);
}

int main(void)
{
    kt_start();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_list_gives_the_bits_of_a_loop),
        cmocka_unit_test(short_lists_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
