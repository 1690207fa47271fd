/* src/events/prefix_index: against a simple model over 10^6 random operations, its hard size, the
 * history, readers beside the writer, and writers that are killed at any moment. `--bench` prints
 * speed and size instead. */
#include "cmocka_all.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "events/prefix_index.h"

static uint64_t rng_state = 0x243f6a8885a308d3u;

static uint64_t rnd(void)
{
    uint64_t z = rng_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t below(uint64_t n)
{
    return rnd() % n;
}

/* Shared with children; released by unmap. */
static st_prefix_index *new_index(size_t n_blocks, size_t n_history, size_t *bytes)
{
    *bytes = st_prefix_index_bytes(n_blocks, n_history);
    void *mem = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(mem != MAP_FAILED);
    memset(mem, 0xa5, *bytes); /* need not be zeroed */
    st_prefix_index *x;
    assert_int_equal(st_prefix_index_init(mem, *bytes, n_blocks, n_history, &x), ST_OK);
    return x;
}

static st_holder_set all_holders(void)
{
    st_holder_set s;
    memset(&s, 0xff, sizeof s);
    return s;
}

/* ---- a tree of blocks, and who holds which: the model ---- */

enum { BS = 4, TREE = 20000, HOLDERS = 12, MAX_DEPTH = 64 };

typedef struct tree {
    uint64_t root;
    int parent[TREE], depth[TREE]; /* -1: a first block; depth counts from 1 */
    int32_t tokens[TREE][BS];
    uint64_t key[TREE];
    bool has[HOLDERS][TREE];
    uint32_t epoch[HOLDERS]; /* engines hash afresh after a clear */
} tree;

static tree *new_tree(void)
{
    tree *t = calloc(1, sizeof *t);
    assert_non_null(t);
    t->root = st_prefix_root("m", 1, NULL, 0, NULL, 0);
    for (int u = 0; u < TREE; u++) {
        int p = u < 50 ? -1 : (int)below((uint64_t)u);
        if (u >= 50 && below(3) == 0)
            p = u - 1; /* some long chains */
        if (p >= 0 && t->depth[p] >= MAX_DEPTH)
            p = -1;
        t->parent[u] = p;
        t->depth[u] = p < 0 ? 1 : t->depth[p] + 1;
        for (int i = 0; i < BS; i++)
            t->tokens[u][i] = i == 0 ? u : (int32_t)below(1000);
        assert_int_equal(
            st_prefix_keys(p < 0 ? t->root : t->key[p], t->tokens[u], BS, BS, &t->key[u]), 1);
    }
    return t;
}

static uint64_t engine_hash(const tree *t, int h, int u)
{
    return (uint64_t)(u + 1) << 32 | (uint64_t)t->epoch[h] << 8 | (uint64_t)h;
}

/* The chain from a first block down to u. */
static int path(const tree *t, int u, int *out)
{
    int n = t->depth[u];
    for (int i = n - 1; i >= 0; i--, u = t->parent[u])
        out[i] = u;
    return n;
}

/* An event that holds part of the chain of a random block. */
static void random_store(tree *t, st_prefix_index *x)
{
    int nodes[MAX_DEPTH], n = path(t, (int)below(TREE), nodes), h = (int)below(HOLDERS);
    int from = 0;
    if (below(4)) /* go on where the holder's run ends, as engines do */
        while (from < n - 1 && t->has[h][nodes[from]])
            from++;
    else
        from = (int)below((uint64_t)n);
    uint64_t hashes[MAX_DEPTH];
    int32_t tokens[MAX_DEPTH * BS];
    for (int i = from; i < n; i++) {
        hashes[i - from] = engine_hash(t, h, nodes[i]);
        memcpy(tokens + (i - from) * BS, t->tokens[nodes[i]], sizeof t->tokens[0]);
    }
    uint64_t parent = from ? engine_hash(t, h, nodes[from - 1]) : 0;
    st_status got =
        st_prefix_store(x, h, t->root, from > 0, parent, hashes, (size_t)(n - from), tokens, BS);
    if (from && !t->has[h][nodes[from - 1]]) {
        assert_int_equal(got, ST_ENOTFOUND);
        return;
    }
    assert_int_equal(got, ST_OK);
    for (int i = from; i < n; i++)
        t->has[h][nodes[i]] = true;
}

static void random_remove(tree *t, st_prefix_index *x)
{
    int u = (int)below(TREE), h = (int)below(HOLDERS);
    assert_int_equal(st_prefix_remove(x, h, engine_hash(t, h, u)), t->has[h][u]);
    t->has[h][u] = false;
}

static void random_clear(tree *t, st_prefix_index *x)
{
    int h = (int)below(HOLDERS);
    st_prefix_clear(x, h);
    memset(t->has[h], 0, sizeof t->has[h]);
    t->epoch[h]++;
}

static void check_path(const tree *t, const st_prefix_index *x, int u)
{
    int nodes[MAX_DEPTH], n = path(t, u, nodes);
    uint64_t keys[MAX_DEPTH];
    for (int i = 0; i < n; i++)
        keys[i] = t->key[nodes[i]];
    st_holder_set all = all_holders();
    uint32_t depth[ST_INDEX_MAX_HOLDERS];
    st_prefix_match(x, keys, (size_t)n, &all, NULL, 0, 0, depth);
    for (int h = 0; h < ST_INDEX_MAX_HOLDERS; h++) {
        uint32_t want = 0;
        while (h < HOLDERS && want < (uint32_t)n && t->has[h][nodes[want]])
            want++;
        assert_int_equal(depth[h], want);
    }
}

static void check_all(const tree *t, const st_prefix_index *x)
{
    size_t blocks = 0, holdings = 0;
    uint32_t of_holder[HOLDERS] = {0};
    for (int u = 0; u < TREE; u++) {
        check_path(t, x, u);
        int holders = 0;
        for (int h = 0; h < HOLDERS; h++) {
            holders += t->has[h][u];
            of_holder[h] += t->has[h][u];
        }
        blocks += holders > 0;
        holdings += (size_t)holders;
    }
    st_prefix_stats s;
    st_prefix_get_stats(x, &s);
    assert_int_equal(s.blocks, blocks);
    assert_int_equal(s.holdings, holdings);
    assert_int_equal(s.forgotten, 0);
    for (int h = 0; h < HOLDERS; h++)
        assert_int_equal(s.holder_blocks[h], of_holder[h]);
}

static void a_million_random_operations(void **state)
{
    (void)state;
    tree *t = new_tree();
    size_t bytes;
    st_prefix_index *x = new_index(TREE * HOLDERS, 0, &bytes);
    for (int i = 0; i < 1000000; i++) {
        uint64_t r = below(1000);
        if (r < 300)
            random_store(t, x);
        else if (r < 999 || below(5))
            random_remove(t, x);
        else
            random_clear(t, x);
        if (i % 16 == 0)
            check_path(t, x, (int)below(TREE));
    }
    check_all(t, x);
    for (int h = 0; h < HOLDERS; h++) {
        st_prefix_clear(x, h);
        memset(t->has[h], 0, sizeof t->has[h]);
    }
    check_all(t, x);
    munmap(x, bytes);
    free(t);
}

/* ---- one thing at a time ---- */

static void keys_depend_on_everything(void **state)
{
    (void)state;
    int32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    uint64_t a[8], b[8];
    uint64_t root = st_prefix_root("m", 1, NULL, 0, NULL, 0);
    assert_true(root != st_prefix_root("n", 1, NULL, 0, NULL, 0));
    assert_true(root != st_prefix_root("m", 1, "l", 1, NULL, 0));
    assert_true(root != st_prefix_root("m", 1, NULL, 0, "s", 1));
    assert_true(st_prefix_root("m", 1, "s", 1, NULL, 0) != st_prefix_root("m", 1, NULL, 0, "s", 1));
    assert_true(root == st_prefix_root("m", 1, "", 0, "", 0));
    assert_int_equal(st_prefix_keys(root, tokens, 8, 3, a), 2);
    assert_int_equal(st_prefix_keys(root, tokens, 8, 2, b), 4);
    assert_true(a[0] != b[0] && a[1] != b[1]);
    assert_int_equal(st_prefix_keys(root, tokens, 7, 8, a), 0);
    assert_int_equal(st_prefix_keys(root, tokens, 8, 0, a), 0);
    /* The same block after another prefix is another block. */
    st_prefix_keys(root, tokens, 8, 4, a);
    tokens[0] = 9;
    st_prefix_keys(root, tokens, 8, 4, b);
    assert_true(a[1] != b[1]);
}

static void sizes_are_checked(void **state)
{
    (void)state;
    static _Alignas(64) char mem[8192];
    st_prefix_index *x;
    assert_int_equal(st_prefix_index_bytes(0, 0), 0);
    assert_int_equal(st_prefix_index_bytes(SIZE_MAX, 0), 0);
    assert_int_equal(st_prefix_index_bytes(1, SIZE_MAX), 0);
    assert_int_equal(st_prefix_index_init(mem, sizeof mem, 1000, 0, &x), ST_EINVAL);
    assert_null(x);
    assert_int_equal(st_prefix_index_init(mem + 8, sizeof mem - 8, 10, 0, &x), ST_EINVAL);
    assert_null(st_prefix_index_attach(mem, sizeof mem));
    assert_int_equal(st_prefix_index_init(mem, sizeof mem, 10, 0, &x), ST_OK);
    assert_ptr_equal(st_prefix_index_attach(mem, sizeof mem), x);
    assert_null(st_prefix_index_attach(mem, 100));
    int32_t token = 1;
    uint64_t hash = 1;
    assert_int_equal(st_prefix_store(x, -1, 0, false, 0, &hash, 1, &token, 1), ST_EINVAL);
    assert_int_equal(st_prefix_store(x, 256, 0, false, 0, &hash, 1, &token, 1), ST_EINVAL);
    assert_int_equal(st_prefix_store(x, 0, 0, false, 0, &hash, 1, &token, 0), ST_EINVAL);
    assert_false(st_prefix_remove(x, 256, 1));
    /* The bar: at most 100 bytes for a block that one holder has. */
    for (size_t n = 100000; n <= 10000000; n *= 10)
        assert_true(st_prefix_index_bytes(n, 0) <= 100 * n);
}

static uint32_t depth_of(const st_prefix_index *x, int h, const uint64_t *keys, size_t n)
{
    st_holder_set one = {{0}};
    one.bits[h / 64] |= (uint64_t)1 << (h % 64);
    uint32_t depth[ST_INDEX_MAX_HOLDERS];
    st_prefix_match(x, keys, n, &one, NULL, 0, 0, depth);
    return depth[h];
}

/* Block i of the cap test: a chain of one. */
static uint64_t single(int32_t i, int32_t tokens[2])
{
    tokens[0] = tokens[1] = i;
    uint64_t key;
    st_prefix_keys(7, tokens, 2, 2, &key);
    return key;
}

static void store_single(st_prefix_index *x, int h, int32_t i)
{
    int32_t tokens[2];
    single(i, tokens);
    uint64_t hash = (uint64_t)i;
    assert_int_equal(st_prefix_store(x, h, 7, false, 0, &hash, 1, tokens, 2), ST_OK);
}

static bool has_single(const st_prefix_index *x, int h, int32_t i)
{
    int32_t tokens[2];
    uint64_t key = single(i, tokens);
    return depth_of(x, h, &key, 1) == 1;
}

static void the_oldest_are_forgotten(void **state)
{
    (void)state;
    enum { CAP = 1000 };
    size_t bytes;
    st_prefix_index *x = new_index(CAP, 0, &bytes);
    for (int32_t i = 0; i < CAP; i++)
        store_single(x, 3, i);
    for (int32_t i = 0; i < 10; i++)
        store_single(x, 3, i); /* again: young now */
    for (int32_t i = CAP; i < CAP + 500; i++)
        store_single(x, 3, i);
    st_prefix_stats s;
    st_prefix_get_stats(x, &s);
    assert_int_equal(s.blocks, CAP);
    assert_int_equal(s.capacity, CAP);
    assert_int_equal(s.forgotten, 500);
    assert_int_equal(s.holder_blocks[3], CAP);
    assert_int_equal(s.bytes, bytes);
    for (int32_t i = 0; i < CAP + 500; i++)
        assert_int_equal(has_single(x, 3, i), i < 10 || i >= 510);
    assert_false(st_prefix_remove(x, 3, 200));
    assert_true(st_prefix_remove(x, 3, 5));
    /* When many hold the same blocks it is the pairs that run out. */
    for (int h = 0; h < 256; h++)
        for (int32_t i = 0; i < 20; i++)
            store_single(x, h, i);
    st_prefix_get_stats(x, &s);
    assert_true(s.holdings <= CAP + CAP / 8 + CAP / 16 && s.holdings > CAP);
    munmap(x, bytes);
}

static void a_chain_longer_than_the_index_keeps_its_head(void **state)
{
    (void)state;
    enum { CAP = 64, N = 200 };
    size_t bytes;
    st_prefix_index *x = new_index(CAP, 0, &bytes);
    uint64_t hashes[N], keys[N];
    int32_t tokens[N];
    for (int i = 0; i < N; i++)
        hashes[i] = (uint64_t)(tokens[i] = i + 1);
    st_prefix_keys(1, tokens, N, 1, keys);
    assert_int_equal(st_prefix_store(x, 0, 1, false, 0, hashes, N, tokens, 1), ST_OK);
    assert_int_equal(depth_of(x, 0, keys, N), CAP);
    /* One event a block: no hole, and nothing but the cap is ever held. */
    st_prefix_clear(x, 0);
    for (int i = 0; i < CAP; i++)
        assert_int_equal(
            st_prefix_store(x, 0, 1, i > 0, i ? hashes[i - 1] : 0, &hashes[i], 1, &tokens[i], 1),
            ST_OK);
    assert_int_equal(depth_of(x, 0, keys, N), CAP);
    munmap(x, bytes);
}

static void a_hash_may_be_used_again(void **state)
{
    (void)state;
    size_t bytes;
    st_prefix_index *x = new_index(100, 0, &bytes);
    int32_t a[2] = {1, 1}, b[2] = {2, 2}, twice[4] = {3, 3, 4, 4};
    uint64_t ka, kb, k2[2], hash = 77, same[2] = {5, 5};
    st_prefix_keys(9, a, 2, 2, &ka);
    st_prefix_keys(9, b, 2, 2, &kb);
    assert_int_equal(st_prefix_store(x, 1, 9, false, 0, &hash, 1, a, 2), ST_OK);
    assert_int_equal(st_prefix_store(x, 1, 9, false, 0, &hash, 1, b, 2), ST_OK);
    assert_int_equal(depth_of(x, 1, &ka, 1), 0);
    assert_int_equal(depth_of(x, 1, &kb, 1), 1);
    /* Two hashes of one holder for the same block: it is there until both are gone. */
    uint64_t other = 78;
    assert_int_equal(st_prefix_store(x, 1, 9, false, 0, &other, 1, b, 2), ST_OK);
    assert_int_equal(st_prefix_store(x, 2, 9, false, 0, &other, 1, b, 2), ST_OK);
    assert_true(st_prefix_remove(x, 1, 77));
    assert_int_equal(depth_of(x, 1, &kb, 1), 1);
    assert_true(st_prefix_remove(x, 1, 78));
    assert_int_equal(depth_of(x, 1, &kb, 1), 0);
    assert_int_equal(depth_of(x, 2, &kb, 1), 1);
    /* A hash twice in one event names its last block. */
    st_prefix_keys(9, twice, 4, 2, k2);
    assert_int_equal(st_prefix_store(x, 1, 9, false, 0, same, 2, twice, 2), ST_OK);
    assert_int_equal(depth_of(x, 1, k2, 2), 0);
    assert_int_equal(depth_of(x, 1, k2 + 1, 1), 1);
    munmap(x, bytes);
}

/* ---- history ---- */

static void history_remembers_and_ages(void **state)
{
    (void)state;
    const uint64_t second = 1000000000u, now = 1000 * second;
    size_t bytes;
    st_prefix_index *x = new_index(10, 7000, &bytes);
    uint64_t keys[100];
    for (int i = 0; i < 100; i++)
        keys[i] = rnd();
    st_prefix_note(x, 0, keys, 100, now);
    st_prefix_note(x, 200, keys, 40, now + 10 * second);
    st_holder_set all = all_holders(), none = {{0}};
    uint32_t depth[ST_INDEX_MAX_HOLDERS];
    st_prefix_match(x, keys, 100, &none, &all, now + 10 * second, 60 * second, depth);
    assert_int_equal(depth[0], 100);
    assert_int_equal(depth[200], 40);
    assert_int_equal(depth[1], 0);
    /* Only holders that are asked for, and only by their own part. */
    st_prefix_match(x, keys, 100, &all, &none, now, 60 * second, depth);
    assert_int_equal(depth[0], 0);
    st_prefix_match(x, keys, 100, &none, &all, now + 65 * second, 60 * second, depth);
    assert_int_equal(depth[0], 0);
    assert_int_equal(depth[200], 40);
    /* A clock that was read earlier. */
    st_prefix_match(x, keys, 100, NULL, &all, now - second, 60 * second, depth);
    assert_int_equal(depth[0], 100);
    st_prefix_clear(x, 0);
    st_prefix_match(x, keys, 100, &none, &all, now + 10 * second, 60 * second, depth);
    assert_int_equal(depth[0], 0);
    assert_int_equal(depth[200], 40);
    /* A system prompt: as many as 64 holders of one key. */
    for (int h = 0; h < 60; h++)
        st_prefix_note(x, h, keys + 50, 1, now);
    st_prefix_match(x, keys + 50, 1, &none, &all, now, 60 * second, depth);
    for (int h = 0; h < 60; h++)
        assert_int_equal(depth[h], 1);
    munmap(x, bytes);
}

static void history_forgets_by_size(void **state)
{
    (void)state;
    size_t bytes;
    st_prefix_index *x = new_index(10, 7000, &bytes);
    const uint64_t now = 5000000000u;
    uint64_t hot[16], cold[100];
    for (int i = 0; i < 16; i++)
        hot[i] = rnd();
    for (int r = 0; r < 1000; r++) {
        for (int i = 0; i < 100; i++)
            cold[i] = rnd();
        st_prefix_note(x, 1, cold, 100, now);
        st_prefix_note(x, 2, hot, 16, now);
    }
    st_holder_set all = all_holders();
    uint32_t depth[ST_INDEX_MAX_HOLDERS];
    st_prefix_match(x, hot, 16, NULL, &all, now, UINT64_MAX, depth);
    assert_int_equal(depth[2], 16); /* what is used again stays */
    st_prefix_match(x, cold, 100, NULL, &all, now, UINT64_MAX, depth);
    assert_true(depth[1] > 0);
    munmap(x, bytes);
    x = new_index(10, 0, &bytes);
    st_prefix_note(x, 1, cold, 100, now);
    st_prefix_match(x, cold, 100, NULL, &all, now, UINT64_MAX, depth);
    assert_int_equal(depth[1], 0);
    munmap(x, bytes);
}

static void *history_writer(void *arg)
{
    st_prefix_index *x = arg;
    uint64_t keys[64], s = (uint64_t)(uintptr_t)&keys;
    for (int r = 0; r < 2000; r++) {
        for (int i = 0; i < 64; i++)
            keys[i] = (s = s * 6364136223846793005u + 1442695040888963407u) >> 50 | 1;
        st_prefix_note(x, (int)(s >> 56), keys, 64, (uint64_t)r << 26);
        if (r % 100 == 0)
            st_prefix_clear(x, ST_INDEX_MAX_HOLDERS); /* no holder: nothing happens */
    }
    return NULL;
}

static void threads_write_the_history(void **state)
{
    (void)state;
    size_t bytes;
    st_prefix_index *x = new_index(10, 700, &bytes);
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, history_writer, x), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    uint64_t key = UINT64_MAX - 5;
    st_prefix_note(x, 9, &key, 1, 1);
    st_holder_set all = all_holders();
    uint32_t depth[ST_INDEX_MAX_HOLDERS];
    st_prefix_match(x, &key, 1, NULL, &all, 1, UINT64_MAX, depth);
    assert_int_equal(depth[9], 1);
    munmap(x, bytes);
}

/* ---- readers beside the writer ---- */

typedef struct reading {
    const st_prefix_index *x;
    const uint64_t *keys; /* of chains that stay */
    size_t n;
    atomic_bool stop;
    atomic_int wrong;
    atomic_long rounds;
} reading;

static void *reader(void *arg)
{
    reading *r = arg;
    st_holder_set all = all_holders();
    uint32_t depth[ST_INDEX_MAX_HOLDERS];
    while (!atomic_load(&r->stop)) {
        st_prefix_match(r->x, r->keys, r->n, &all, NULL, 0, 0, depth);
        if (depth[0] != r->n)
            atomic_fetch_add(&r->wrong, 1);
        atomic_fetch_add(&r->rounds, 1);
    }
    return NULL;
}

static void threads_find_what_stays(void **state)
{
    (void)state;
    enum { N = 200, CHURN = 30000 };
    size_t bytes;
    st_prefix_index *x = new_index(40000, 0, &bytes); /* room for all */
    uint64_t keys[N], hashes[N];
    int32_t tokens[N];
    for (int i = 0; i < N; i++)
        hashes[i] = (uint64_t)(tokens[i] = i + 1);
    st_prefix_keys(1, tokens, N, 1, keys);
    assert_int_equal(st_prefix_store(x, 0, 1, false, 0, hashes, N, tokens, 1), ST_OK);
    reading r = {.x = x, .keys = keys, .n = N};
    pthread_t t[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&t[i], NULL, reader, &r), 0);
    for (int round = 0; round < 20 || atomic_load(&r.rounds) < 100; round++) {
        for (int32_t i = 0; i < CHURN; i++)
            store_single(x, 1 + round % 5, 1000 + (int32_t)below(5000));
        for (int32_t i = 0; i < CHURN; i++)
            st_prefix_remove(x, 1 + round % 5, 1000 + below(5000));
        if (round % 4 == 0)
            st_prefix_clear(x, 1 + round % 5);
    }
    atomic_store(&r.stop, true);
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(r.wrong, 0);
    munmap(x, bytes);
}

/* ---- writers that die ---- */

enum { CRASH_HOLDERS = 4, CRASH_BLOCKS = 3000 };

/* The child's endless work: blocks of holders 1.. come and go, over the cap, so that every path of
 * the writer is taken. Holder 0 keeps its chain. */
static void churn(st_prefix_index *x, uint64_t seed)
{
    rng_state = seed;
    for (;;) {
        int h = 1 + (int)below(CRASH_HOLDERS - 1);
        uint64_t r = below(1000);
        if (r < 600)
            store_single(x, h, 1000 + (int32_t)below(CRASH_BLOCKS));
        else if (r < 999)
            st_prefix_remove(x, h, 1000 + below(CRASH_BLOCKS));
        else
            st_prefix_clear(x, h);
        if (r % 50 == 0)
            store_single(x, 0, 1);
    }
}

/* The index answers consistently: stats, look-ups and removals agree with one another. */
static void check_consistent(st_prefix_index *x)
{
    st_prefix_stats s;
    st_prefix_get_stats(x, &s);
    size_t holdings = 0, blocks = 0;
    for (int32_t i = 0; i < 1000 + CRASH_BLOCKS; i++) {
        int holders = 0;
        for (int h = 0; h < CRASH_HOLDERS; h++)
            holders += has_single(x, h, i);
        holdings += (size_t)holders;
        blocks += holders > 0;
    }
    assert_int_equal(s.holdings, holdings);
    assert_int_equal(s.blocks, blocks);
}

static void a_killed_writer_leaves_a_usable_index(void **state)
{
    (void)state;
    size_t bytes;
    st_prefix_index *x = new_index(2000, 0, &bytes);
    for (int round = 0; round < 150; round++) {
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            churn(x, (uint64_t)round);
            _exit(0);
        }
        struct timespec t = {0, (long)(1000000 + below(3000000))};
        nanosleep(&t, NULL);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        /* Readers get along before anyone recovers it. */
        for (int32_t i = 0; i < 500; i++)
            (void)has_single(x, 1, 1000 + i);
        assert_ptr_equal(st_prefix_index_attach(x, bytes), x);
        st_prefix_recover(x);
        check_consistent(x);
    }
    /* Everything can still be taken out, and the room is all there. */
    for (int h = 1; h < CRASH_HOLDERS; h++)
        for (int32_t i = 1000; i < 1000 + CRASH_BLOCKS; i++) {
            bool had = has_single(x, h, i);
            assert_int_equal(st_prefix_remove(x, h, (uint64_t)i), had);
        }
    st_prefix_clear(x, 0);
    st_prefix_stats s;
    st_prefix_get_stats(x, &s);
    assert_int_equal(s.blocks, 0);
    assert_int_equal(s.holdings, 0);
    uint64_t forgotten = s.forgotten;
    for (int32_t i = 0; i < 2000; i++)
        store_single(x, 1, i);
    st_prefix_get_stats(x, &s);
    assert_int_equal(s.blocks, 2000);
    assert_int_equal(s.forgotten, forgotten);
    munmap(x, bytes);
}

/* ---- speed ---- */

static void bench_store(st_prefix_index *x, size_t n, const char *what)
{
    enum { PER = 8, B = 16 };
    int32_t tokens[PER * B];
    uint64_t hashes[PER], start = st_now_ns();
    for (size_t i = 0; i < n; i += PER) {
        for (int k = 0; k < PER * B; k++)
            tokens[k] = (int32_t)(i * B) + k;
        for (int k = 0; k < PER; k++)
            hashes[k] = rnd();
        if (st_prefix_store(x, 0, 1, false, 0, hashes, PER, tokens, B) != ST_OK)
            exit(1);
    }
    double s = (double)(st_now_ns() - start) / 1e9;
    printf("store, %-28s %8.0f blocks/s\n", what, (double)n / s);
}

static void bench_match(void)
{
    enum { N = 1000, H = 100, FILL = 500000 };
    size_t bytes;
    st_prefix_index *x = new_index(FILL + N * H, 0, &bytes);
    bench_store(x, FILL, "new");
    int32_t *tokens = calloc(N, 16 * sizeof *tokens);
    uint64_t hashes[N], keys[N], best = UINT64_MAX, sum = 0;
    for (int i = 0; i < N; i++)
        tokens[16 * i] = -1 - i;
    for (int h = 0; h < H; h++) {
        for (int i = 0; i < N; i++)
            hashes[i] = rnd();
        if (st_prefix_store(x, h, 1, false, 0, hashes, (size_t)(N - h), tokens, 16) != ST_OK)
            exit(1);
    }
    st_prefix_keys(1, tokens, N * 16, 16, keys);
    st_holder_set all = all_holders();
    uint32_t depth[ST_INDEX_MAX_HOLDERS];
    char *cold = malloc(64 << 20);
    for (int r = 0; r < 50; r++) {
        memset(cold, r, 64 << 20); /* out of the caches */
        uint64_t t0 = st_now_ns();
        st_prefix_match(x, keys, N, &all, NULL, 0, 0, depth);
        uint64_t t = st_now_ns() - t0;
        best = t < best ? t : best;
        sum += t;
        if (depth[0] != N || depth[H - 1] != N - (H - 1))
            exit(1);
    }
    printf("match, %d keys x %d holders, cold    %.1f us (best %.1f)\n", N, H, (double)sum / 50e3,
           (double)best / 1e3);
    uint64_t t0 = st_now_ns();
    for (int r = 0; r < 1000; r++)
        st_prefix_match(x, keys, N, &all, NULL, 0, 0, depth);
    printf("match, %d keys x %d holders, warm    %.1f us\n", N, H,
           (double)(st_now_ns() - t0) / 1e6);
    free(cold);
    free(tokens);
    munmap(x, bytes);
}

static int bench(void)
{
    size_t n = 1000000, bytes;
    printf("bytes a block: %.2f\n", (double)st_prefix_index_bytes(n, 0) / (double)n);
    st_prefix_index *x = new_index(n, 0, &bytes);
    bench_store(x, n, "new");
    bench_store(x, n, "each forgets another");
    uint64_t t0 = st_now_ns();
    st_prefix_clear(x, 0);
    printf("clear of %zu blocks %.1f ms\n", n, (double)(st_now_ns() - t0) / 1e6);
    munmap(x, bytes);
    bench_match();
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bench") == 0)
        return bench();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_depend_on_everything),
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(the_oldest_are_forgotten),
        cmocka_unit_test(a_chain_longer_than_the_index_keeps_its_head),
        cmocka_unit_test(a_hash_may_be_used_again),
        cmocka_unit_test(a_million_random_operations),
        cmocka_unit_test(history_remembers_and_ages),
        cmocka_unit_test(history_forgets_by_size),
        cmocka_unit_test(threads_write_the_history),
        cmocka_unit_test(threads_find_what_stays),
        cmocka_unit_test(a_killed_writer_leaves_a_usable_index),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
