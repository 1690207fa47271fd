/* No allocation in a step: every allocator is wrapped at link time (see meson.build) and counted
 * while st_model_forward runs. */
#include "lexicon_model.h"

#include <stdatomic.h>

void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
int __wrap_posix_memalign(void **out, size_t align, size_t n);
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
int __real_posix_memalign(void **out, size_t align, size_t n);

static atomic_int calls;

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

void *__wrap_aligned_alloc(size_t align, size_t n)
{
    atomic_fetch_add(&calls, 1);
    return __real_aligned_alloc(align, n);
}

int __wrap_posix_memalign(void **out, size_t align, size_t n)
{
    atomic_fetch_add(&calls, 1);
    return __real_posix_memalign(out, align, n);
}

static void a_step_allocates_nothing(void **state)
{
    static const int32_t tokens[40] = {4093, 291, 198, 311};
    atomic_store(&calls, 0);
    st_model *m = load_lexicon("int8", NULL, 2);
    assert_true(atomic_load(&calls) > 10); /* the guard works */
    test_kv kv = new_kv(m, ST_BF16, 16);
    test_seq s = new_seq(m, &kv, tokens, 40);
    float *logits = malloc((size_t)st_model_get_config(m)->vocab_size * sizeof *logits);
    assert_non_null(logits);
    int32_t row = 29;
    st_batch_seq seq = {0, 30, 0, s.table, 16};
    st_batch b = {.n_tokens = 30,
                  .tokens = tokens,
                  .n_seqs = 1,
                  .seqs = &seq,
                  .n_outputs = 1,
                  .output_rows = &row};
    atomic_store(&calls, 0);
    assert_int_equal(st_model_forward(m, &b, kv.store, logits, NULL), ST_OK);
    for (int32_t i = 30; i < 40; i++) {
        row = 0;
        seq = (st_batch_seq){0, 1, i, s.table, 16};
        b.n_tokens = 1;
        b.tokens = tokens + i;
        assert_int_equal(st_model_forward(m, &b, kv.store, logits, NULL), ST_OK);
    }
    assert_int_equal(atomic_load(&calls), 0);
    free(logits);
    free(s.logits);
    st_kv_store_free(kv.store);
    st_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_step_allocates_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
