/* src/base/threads: every task runs exactly once, at any thread count, loop after loop, after
 * workers went to sleep, and several pools side by side. */
#include "cmocka_all.h"

#include <sched.h>

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/threads.h"

enum { MOST_TASKS = 1000 };

typedef struct counts {
    int runs[MOST_TASKS];   /* written without atomics: a task must be ours alone */
    int worker[MOST_TASKS]; /* who ran it */
    int threads;
    atomic_int bad_worker;
} counts;

static void count_task(void *arg, size_t task, int worker)
{
    counts *c = arg;
    c->runs[task]++;
    c->worker[task] = worker;
    if (worker < 0 || worker >= c->threads)
        atomic_fetch_add(&c->bad_worker, 1);
}

static void check_loop(st_pool *pool, size_t n)
{
    counts *c = calloc(1, sizeof *c);
    assert_non_null(c);
    c->threads = st_pool_threads(pool);
    st_pool_run(pool, n, count_task, c);
    for (size_t i = 0; i < MOST_TASKS; i++)
        assert_int_equal(c->runs[i], i < n ? 1 : 0);
    assert_int_equal(atomic_load(&c->bad_worker), 0);
    free(c);
}

static void every_task_runs_once(void **state)
{
    static const int threads[] = {1, 2, 3, 8};
    for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
        st_pool *pool;
        st_error err;
        assert_int_equal(st_pool_new(threads[t], t % 2 == 0, &pool, &err), ST_OK);
        assert_int_equal(st_pool_threads(pool), threads[t]);
        for (int round = 0; round < 300; round++) {
            check_loop(pool, (size_t)(round * 7 % 41));
            if (round % 100 == 0) {
                usleep(2000); /* long enough for the workers to sleep */
                check_loop(pool, MOST_TASKS);
            }
        }
        st_pool_free(pool);
    }
}

static void slow_task(void *arg, size_t task, int worker)
{
    if (task % 2 == 1)
        usleep(1000);
    atomic_fetch_add((atomic_int *)arg, 1);
}

static void caller_waits_for_slow_workers(void **state)
{
    st_pool *pool;
    st_error err;
    assert_int_equal(st_pool_new(3, false, &pool, &err), ST_OK);
    for (int round = 0; round < 20; round++) {
        atomic_int done = 0;
        st_pool_run(pool, 4, slow_task, &done);
        assert_int_equal(atomic_load(&done), 4);
    }
    st_pool_free(pool);
}

static void no_pool_runs_here(void **state)
{
    check_loop(NULL, 17);
    check_loop(NULL, 0);
    assert_int_equal(st_pool_threads(NULL), 1);
}

static void default_and_bad_counts(void **state)
{
    st_pool *pool;
    st_error err;
    assert_int_equal(st_pool_new(0, true, &pool, &err), ST_OK);
    assert_true(st_pool_threads(pool) >= 1);
    int n = st_pool_threads(pool);
    check_loop(pool, 100);
    st_pool_pin_caller(pool); /* the next pool must still see all processors */
    st_pool *second;
    assert_int_equal(st_pool_new(0, true, &second, &err), ST_OK);
    assert_int_equal(st_pool_threads(second), n);
    check_loop(second, 100);
    check_loop(pool, 100);
    st_pool_free(second);
    st_pool_free(pool);
    assert_int_equal(st_pool_new(-1, false, &pool, &err), ST_EINVAL);
    assert_null(pool);
    assert_non_null(strstr(err.text, "-1"));
}

static int processors_of_this_thread(void)
{
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    return CPU_COUNT(&set);
}

/* Threads inherit their maker's binding: a server's would all share one processor. */
static void only_asked_for_is_the_caller_bound(void **state)
{
    st_pool *pool;
    int before = processors_of_this_thread();
    assert_int_equal(st_pool_new(2, true, &pool, NULL), ST_OK);
    check_loop(pool, 100);
    assert_int_equal(processors_of_this_thread(), before);
    st_pool_pin_caller(pool);
    assert_int_equal(processors_of_this_thread(), 1);
    st_pool_free(pool);
}

static void features_are_consistent(void **state)
{
    const st_cpu *c = st_cpu_features();
    assert_ptr_equal(c, st_cpu_features());
    assert_true(!c->avx512 || c->avx2);
    assert_true(!c->avx512_vnni || c->avx512);
    assert_true(!c->avx512_bf16 || c->avx512);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once),
        cmocka_unit_test(caller_waits_for_slow_workers),
        cmocka_unit_test(no_pool_runs_here),
        cmocka_unit_test(only_asked_for_is_the_caller_bound),
        cmocka_unit_test(default_and_bad_counts),
        cmocka_unit_test(features_are_consistent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
