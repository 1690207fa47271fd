/* src/cache: KV memory, content hashes, and the block pool against a simple model of it. */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "starling/kv_cache.h"

/* ---- KV memory ---- */

static void store_sizes_are_checked(void **state)
{
    (void)state;
    size_t bytes = 0;
    assert_int_equal(st_kv_store_bytes(3, 5, 4, ST_BF16, (st_kv_row_shape){0, 0, 80}, &bytes),
                     ST_OK);
    assert_int_equal(bytes, 3 * 3200);
    assert_int_equal(st_kv_store_bytes(1, 1, 1, ST_BF16, (st_kv_row_shape){0, 0, 3}, &bytes),
                     ST_OK);
    assert_int_equal(bytes, 64); /* a layer is rounded up to its alignment */
    assert_int_equal(st_kv_store_bytes(1, 0, 16, ST_F32, (st_kv_row_shape){0, 0, 80}, &bytes),
                     ST_EINVAL);
    assert_int_equal(st_kv_store_bytes(1, 1, 16, ST_F32, (st_kv_row_shape){0, 0, -80}, &bytes),
                     ST_EINVAL);
    assert_int_equal(st_kv_store_bytes(1, 1, 16, ST_U8, (st_kv_row_shape){0, 0, 80}, &bytes),
                     ST_EINVAL);
    assert_int_equal(st_kv_store_bytes(INT32_MAX, INT32_MAX, INT32_MAX, ST_F32,
                                       (st_kv_row_shape){0, 0, INT32_MAX}, &bytes),
                     ST_EINVAL);
    /* I8: [512 x int8 | 64 x BF16 | scale]; [4 x 33 x int8 | 3 bytes | 4 scales] and odd plain. */
    assert_int_equal(st_kv_store_bytes(1, 64, 1, ST_I8, (st_kv_row_shape){1, 512, 64}, &bytes),
                     ST_OK);
    assert_int_equal(bytes, 64 * 644);
    assert_int_equal(st_kv_store_bytes(1, 64, 1, ST_I8, (st_kv_row_shape){4, 33, 0}, &bytes),
                     ST_OK);
    assert_int_equal(bytes, 64 * (132 + 16));
    assert_int_equal(st_kv_store_bytes(1, 64, 1, ST_I8, (st_kv_row_shape){1, 19, 9}, &bytes),
                     ST_OK);
    assert_int_equal(bytes, 64 * (20 + 20 + 4));
    assert_int_equal(
        st_kv_store_bytes(1, 1, 1, ST_I8, (st_kv_row_shape){1 << 20, 1 << 20, 0}, &bytes),
        ST_EINVAL);
    assert_int_equal(st_kv_store_bytes(1, 1, 1, ST_I8, (st_kv_row_shape){1 << 20, 0, 1}, &bytes),
                     ST_EINVAL);
    st_kv_store *s;
    st_error err;
    assert_int_equal(st_kv_store_new(1, 1, 16, ST_F16, (st_kv_row_shape){0, 0, 80}, &s, &err),
                     ST_EINVAL);
    assert_null(s);
    assert_non_null(strstr(err.text, "F16"));
}

static void store_is_aligned_zeroed_and_disjoint(void **state)
{
    (void)state;
    st_kv_store *s;
    assert_int_equal(st_kv_store_new(4, 7, 3, ST_BF16, (st_kv_row_shape){0, 0, 5}, &s, NULL),
                     ST_OK);
    assert_int_equal(s->row_bytes, 10);
    assert_int_equal(s->block_bytes, 30);
    size_t n = (size_t)s->n_blocks * s->block_bytes;
    for (int l = 0; l < 4; l++) {
        assert_int_equal((uintptr_t)s->layers[l] % 64, 0);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(s->layers[l][i], 0);
    }
    for (int l = 0; l < 4; l++)
        memset(s->layers[l], l + 1, n);
    for (int l = 0; l < 4; l++)
        for (size_t i = 0; i < n; i++)
            assert_int_equal(s->layers[l][i], l + 1);
    st_kv_store_free(s);
    st_kv_store_free(NULL);
}

/* ---- hashes ---- */

static bool same(st_block_hash a, st_block_hash b)
{
    return a.lo == b.lo && a.hi == b.hi;
}

static void hashes_cover_everything(void **state)
{
    (void)state;
    st_block_hash roots[] = {
        st_block_hash_root(1, ST_BF16, NULL, 0), st_block_hash_root(2, ST_BF16, NULL, 0),
        st_block_hash_root(1, ST_F32, NULL, 0),  st_block_hash_root(1, ST_BF16, "a", 1),
        st_block_hash_root(1, ST_BF16, "b", 1),  st_block_hash_root(1, ST_BF16, "a\0", 2),
    };
    int32_t tokens[4] = {1, 2, 3, 4}, other[4] = {1, 2, 3, 5};
    for (size_t i = 0; i < sizeof roots / sizeof *roots; i++) {
        st_block_hash a = st_block_hash_next(roots[i], tokens, 4, 0);
        assert_true(same(a, st_block_hash_next(roots[i], tokens, 4, 0)));
        assert_false(same(a, st_block_hash_next(roots[i], other, 4, 0)));
        assert_false(same(a, st_block_hash_next(roots[i], tokens, 3, 0)));
        assert_false(same(a, st_block_hash_next(roots[i], tokens, 4, 4)));
        assert_false(same(a, st_block_hash_next(roots[i], tokens, 4, 3)));
        assert_false(same(a, st_block_hash_next(a, tokens, 4, 0)));
        for (size_t j = 0; j < i; j++) {
            assert_false(same(roots[i], roots[j]));
            assert_false(same(a, st_block_hash_next(roots[j], tokens, 4, 0)));
        }
    }
}

/* ---- pool, by hand ---- */

static st_block_hash h(uint64_t lo)
{
    return (st_block_hash){.lo = lo, .hi = 7};
}

static void tail_is_evicted_before_its_prefix(void **state)
{
    (void)state;
    st_block_pool *p;
    int32_t b[4], got[4], tokens[2] = {0, 0};
    assert_int_equal(st_block_pool_new(4, 2, true, NULL, &p, NULL), ST_OK);
    assert_int_equal(st_block_pool_alloc(p, 5, b), ST_EFULL);
    assert_int_equal(st_block_pool_alloc(p, 4, b), ST_OK);
    for (int i = 0; i < 4; i++)
        st_block_pool_publish(p, b[i], h(i + 1), h(i), tokens);
    assert_int_equal(st_block_pool_available(p), 0);
    st_block_pool_release(p, b, 4);
    assert_int_equal(st_block_pool_available(p), 4);
    assert_int_equal(st_block_pool_cached(p), 4);
    assert_int_equal(st_block_pool_alloc(p, 1, got), ST_OK);
    assert_int_equal(got[0], b[3]);
    st_block_hash chain[4] = {h(1), h(2), h(3), h(4)};
    assert_int_equal(st_block_pool_match(p, chain, 4, got), 3);
    assert_memory_equal(got, b, 3 * sizeof *b);
    assert_int_equal(st_block_pool_in_use(p), 4);
    st_block_pool_release(p, got, 3);
    st_block_pool_release(p, &b[3], 1);
    st_block_pool_reset(p);
    assert_int_equal(st_block_pool_cached(p), 0);
    assert_int_equal(st_block_pool_match(p, chain, 4, got), 0);
    st_block_pool_free(p);
}

static void first_of_equal_blocks_stays(void **state)
{
    (void)state;
    st_block_pool *p;
    int32_t b[2], got, tokens[2] = {0, 0};
    st_block_hash hash = h(9);
    assert_int_equal(st_block_pool_new(3, 2, true, NULL, &p, NULL), ST_OK);
    assert_int_equal(st_block_pool_alloc(p, 2, b), ST_OK);
    st_block_pool_publish(p, b[0], hash, h(0), tokens);
    st_block_pool_publish(p, b[1], hash, h(0), tokens);
    assert_int_equal(st_block_pool_cached(p), 1);
    assert_int_equal(st_block_pool_match(p, &hash, 1, &got), 1);
    assert_int_equal(got, b[0]);
    st_block_pool_free(p);
}

static void caching_off_finds_nothing(void **state)
{
    (void)state;
    st_block_pool *p;
    int32_t b, tokens[2] = {0, 0};
    st_block_hash hash = h(9);
    assert_int_equal(st_block_pool_new(3, 2, false, NULL, &p, NULL), ST_OK);
    assert_int_equal(st_block_pool_alloc(p, 1, &b), ST_OK);
    st_block_pool_publish(p, b, hash, h(0), tokens);
    assert_int_equal(st_block_pool_cached(p), 0);
    assert_int_equal(st_block_pool_match(p, &hash, 1, &b), 0);
    st_block_pool_free(p);
    st_error err;
    assert_int_equal(st_block_pool_new(0, 2, false, NULL, &p, &err), ST_EINVAL);
    assert_null(p);
}

/* ---- pool, 10^5 random operations against a model ----
 *
 * The model keeps, per block, references, hash and the time it became free, and finds everything
 * by scanning. Eviction order: blocks without content before cached ones, those by time. */

#define N_BLOCKS 37
#define N_HASHES 61
#define N_HELD   64

typedef struct sim {
    st_block_pool *pool;
    int refs[N_BLOCKS];
    uint64_t hash[N_BLOCKS]; /* 0: none */
    long freed[N_BLOCKS];
    long clock;
    int32_t held[N_HELD][8]; /* references that the test owns */
    int held_n[N_HELD], n_held;
    uint64_t event_hash[N_BLOCKS]; /* what the events say is cached */
    uint64_t rng;
} sim;

static uint32_t rnd(sim *s, uint32_t n)
{
    s->rng = s->rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(s->rng >> 33) % n;
}

static void on_stored(void *user, int32_t b, st_block_hash hash, st_block_hash parent,
                      const int32_t *tokens, int32_t n)
{
    sim *s = user;
    assert_int_equal(s->event_hash[b], 0);
    assert_int_equal(parent.lo, hash.lo + 1000);
    assert_int_equal(tokens[0], (int32_t)hash.lo);
    assert_int_equal(n, 4);
    s->event_hash[b] = hash.lo;
}

static void on_removed(void *user, int32_t b, st_block_hash hash)
{
    sim *s = user;
    assert_int_equal(s->event_hash[b], hash.lo);
    s->event_hash[b] = 0;
}

static int model_find(const sim *s, uint64_t hash)
{
    for (int b = 0; b < N_BLOCKS; b++)
        if (s->hash[b] == hash)
            return b;
    return -1;
}

/* The block the model expects to be taken next among the cached ones, or -1 when one without
 * content must be taken (any of those will do). */
static int model_victim(const sim *s)
{
    int best = -1;
    for (int b = 0; b < N_BLOCKS; b++) {
        if (s->refs[b] > 0)
            continue;
        if (s->hash[b] == 0)
            return -1;
        if (best < 0 || s->freed[b] < s->freed[best])
            best = b;
    }
    return best;
}

static int model_free_count(const sim *s)
{
    int n = 0;
    for (int b = 0; b < N_BLOCKS; b++)
        n += s->refs[b] == 0;
    return n;
}

static void op_alloc(sim *s)
{
    int n = 1 + (int)rnd(s, 8);
    if (s->n_held == N_HELD)
        return;
    int32_t *out = s->held[s->n_held];
    if (n > model_free_count(s)) {
        assert_int_equal(st_block_pool_alloc(s->pool, n, out), ST_EFULL);
        return;
    }
    int32_t got[8];
    assert_int_equal(st_block_pool_alloc(s->pool, n, got), ST_OK);
    for (int i = 0; i < n; i++) {
        int victim = model_victim(s);
        if (victim >= 0)
            assert_int_equal(got[i], victim);
        else
            assert_int_equal(s->hash[got[i]], 0);
        assert_int_equal(s->refs[got[i]], 0);
        s->refs[got[i]] = 1;
        s->hash[got[i]] = 0;
        out[i] = got[i];
    }
    s->held_n[s->n_held++] = n;
}

static void op_release(sim *s)
{
    if (s->n_held == 0)
        return;
    int k = (int)rnd(s, (uint32_t)s->n_held);
    st_block_pool_release(s->pool, s->held[k], s->held_n[k]);
    for (int i = s->held_n[k] - 1; i >= 0; i--)
        if (--s->refs[s->held[k][i]] == 0)
            s->freed[s->held[k][i]] = s->clock++;
    s->n_held--;
    memcpy(s->held[k], s->held[s->n_held], sizeof s->held[k]);
    s->held_n[k] = s->held_n[s->n_held];
}

static void op_publish(sim *s)
{
    if (s->n_held == 0)
        return;
    int k = (int)rnd(s, (uint32_t)s->n_held);
    int b = s->held[k][rnd(s, (uint32_t)s->held_n[k])];
    uint64_t x = 1 + rnd(s, N_HASHES);
    int32_t tokens[4] = {(int32_t)x, 0, 0, 0};
    st_block_pool_publish(s->pool, b, h(x), h(x + 1000), tokens);
    if (s->hash[b] == 0 && model_find(s, x) < 0)
        s->hash[b] = x;
}

static void op_match(sim *s)
{
    if (s->n_held == N_HELD)
        return;
    int n = 1 + (int)rnd(s, 8);
    st_block_hash want[8];
    int32_t *out = s->held[s->n_held];
    for (int i = 0; i < n; i++)
        want[i] = h(1 + rnd(s, N_HASHES));
    int got = st_block_pool_match(s->pool, want, n, out);
    int expect = 0;
    for (; expect < n && model_find(s, want[expect].lo) >= 0; expect++) {
        assert_int_equal(out[expect], model_find(s, want[expect].lo));
        s->refs[out[expect]]++;
    }
    assert_int_equal(got, expect);
    if (got > 0)
        s->held_n[s->n_held++] = got;
}

static void op_reset(sim *s)
{
    st_block_pool_reset(s->pool);
    for (int b = 0; b < N_BLOCKS; b++)
        if (s->refs[b] == 0)
            s->hash[b] = 0;
}

static void compare(const sim *s)
{
    int cached = 0;
    for (int b = 0; b < N_BLOCKS; b++) {
        cached += s->hash[b] != 0;
        assert_int_equal(s->event_hash[b], s->hash[b]);
    }
    assert_int_equal(st_block_pool_cached(s->pool), cached);
    assert_int_equal(st_block_pool_available(s->pool), model_free_count(s));
    assert_int_equal(st_block_pool_in_use(s->pool), N_BLOCKS - model_free_count(s));
}

static void random_operations_match_the_model(void **state)
{
    (void)state;
    const char *fixed = getenv("STARLING_TEST_SEED");
    sim *s = calloc(1, sizeof *s);
    s->rng = fixed ? strtoull(fixed, NULL, 0) : (uint64_t)time(NULL);
    print_message("STARLING_TEST_SEED=%llu\n", (unsigned long long)s->rng);
    st_block_events events = {on_stored, on_removed, s};
    assert_int_equal(st_block_pool_new(N_BLOCKS, 4, true, &events, &s->pool, NULL), ST_OK);
    for (int i = 0; i < 100000; i++) {
        uint32_t x = rnd(s, 1000);
        if (x < 250)
            op_alloc(s);
        else if (x < 550)
            op_release(s);
        else if (x < 800)
            op_publish(s);
        else if (x < 998)
            op_match(s);
        else
            op_reset(s);
        compare(s);
    }
    while (s->n_held > 0)
        op_release(s);
    assert_int_equal(st_block_pool_in_use(s->pool), 0);
    st_block_pool_free(s->pool);
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(store_sizes_are_checked),
        cmocka_unit_test(store_is_aligned_zeroed_and_disjoint),
        cmocka_unit_test(hashes_cover_everything),
        cmocka_unit_test(tail_is_evicted_before_its_prefix),
        cmocka_unit_test(first_of_equal_blocks_stays),
        cmocka_unit_test(caching_off_finds_nothing),
        cmocka_unit_test(random_operations_match_the_model),
    };
    return cmocka_run_group_tests_name("block_pool", tests, NULL, NULL);
}
