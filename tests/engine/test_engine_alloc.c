/* No allocation in the decode step: this program is linked with malloc and its kin wrapped, and
 * counts calls from every thread while requests decode. */
#include "engine_harness.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

static atomic_long calls;

/* The linker's --wrap=malloc sends all calls of our libraries here. */
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);

void *__wrap_malloc(size_t n)
{
    atomic_fetch_add(&calls, 1);
    return __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    atomic_fetch_add(&calls, 1);
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    atomic_fetch_add(&calls, 1);
    return __real_realloc(p, n);
}

enum { N = 6, FIRST = 10, LAST = 110 };

static struct seen {
    long first, last;
} seen[N];

static void on_token(void *user, const st_token_event *ev)
{
    struct seen *s = user;
    if (ev->generated_tokens == FIRST)
        s->first = atomic_load(&calls);
    if (ev->generated_tokens == LAST)
        s->last = atomic_load(&calls);
}

static void decoding_does_not_allocate(void **state)
{
    (void)state;
    st_engine_options o = {.block_size = 4};
    st_engine *e = make_engine(harness_model("int8", 2), &o);
    for (int i = 0; i < N; i++) {
        st_request r = workload(i * 5);
        r.sampling.ignore_eos = true;
        r.sampling.min_tokens = 5;
        r.sampling.max_tokens = 130;
        r.on_token = on_token;
        r.user = &seen[i];
        uint64_t id;
        assert_int_equal(st_engine_submit(e, &r, &id, NULL), ST_OK);
    }
    assert_true(atomic_load(&calls) > N); /* the wrap works */
    st_engine_stats s;
    do {
        usleep(1000);
        st_engine_get_stats(e, &s);
    } while (s.finished_length < N);
    for (int i = 0; i < N; i++) {
        assert_true(seen[i].first > 0);
        assert_int_equal(seen[i].first, seen[i].last);
    }
    free_engine(e);
}

static int teardown(void **state)
{
    (void)state;
    harness_free();
    return 0;
}

int main(void)
{
    harness_init();
    const struct CMUnitTest tests[] = {cmocka_unit_test(decoding_does_not_allocate)};
    return cmocka_run_group_tests(tests, NULL, teardown);
}
