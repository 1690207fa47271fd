/* src/events/event_publisher: a real block pool under random load, published, received by plain
 * ZeroMQ sockets and put into a prefix index that must then say what the pool says. */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <zmq.h>

#include "base/clock.h"
#include "events/event_publisher.h"
#include "events/kv_event.h"
#include "events/prefix_index.h"

enum { BS = 4, CHAINS = 300, CHAIN_BLOCKS = 12 };

static uint64_t rng_state = 7;

static uint64_t below(uint64_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (rng_state >> 33) % n;
}

/* ---- a subscriber ---- */

typedef struct subscriber {
    void *context, *sub, *dealer;
    st_prefix_index *index;
    void *mem;
    st_kv_decoder *decoder;
    const char *model;
    int64_t last;
    uint64_t newest; /* hash stored last */
    int batches, cleared, stored, orphans;
    bool again; /* batches come that were applied before */
} subscriber;

static void apply(void *user, const st_kv_event *e)
{
    subscriber *s = user;
    if (e->type == ST_KV_CLEARED) {
        s->cleared++;
        st_prefix_clear(s->index, 0);
    } else if (e->type == ST_KV_REMOVED) {
        for (size_t i = 0; i < e->n_hashes; i++)
            assert_true(st_prefix_remove(s->index, 0, e->hashes[i]) || s->again);
    } else {
        uint64_t root = st_prefix_root("m", 1, NULL, 0, e->salt, e->salt_len);
        s->stored += (int)e->n_hashes;
        s->newest = e->hashes[e->n_hashes - 1];
        assert_int_equal(e->medium, ST_MEDIUM_GPU);
        if (st_prefix_store(s->index, 0, root, e->has_parent, e->parent, e->hashes, e->n_hashes,
                            e->tokens, e->block_size))
            s->orphans++;
    }
}

/* A message's frames behind `skip` others; sequence and payload. */
static bool receive(subscriber *s, void *socket, int timeout_ms, int64_t *seq)
{
    zmq_pollitem_t item = {socket, 0, ZMQ_POLLIN, 0};
    if (zmq_poll(&item, 1, timeout_ms) <= 0)
        return false;
    zmq_msg_t m[3];
    for (int i = 0; i < 3; i++) {
        zmq_msg_init(&m[i]);
        assert_true(zmq_msg_recv(&m[i], socket, 0) >= 0);
        assert_int_equal(zmq_msg_more(&m[i]), i < 2);
    }
    assert_int_equal(zmq_msg_size(&m[1]), 8);
    const unsigned char *b = zmq_msg_data(&m[1]);
    uint64_t v = 0;
    for (int i = 0; i < 8; i++)
        v = v << 8 | b[i];
    *seq = (int64_t)v;
    if (*seq < 0) {
        assert_int_equal(zmq_msg_size(&m[2]), 0);
    } else {
        st_kv_batch_info info;
        assert_int_equal(
            st_kv_decode(s->decoder, zmq_msg_data(&m[2]), zmq_msg_size(&m[2]), apply, s, &info),
            ST_OK);
        assert_int_equal(info.skipped, 0);
        assert_int_equal(info.dp_rank, 3);
        s->batches++;
        s->last = *seq;
    }
    for (int i = 0; i < 3; i++)
        zmq_msg_close(&m[i]);
    return true;
}

static void *connect_to(void *context, int type, uint16_t port)
{
    char endpoint[64];
    int linger = 0, unbounded = 0;
    void *socket = zmq_socket(context, type);
    assert_non_null(socket);
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(socket, ZMQ_RCVHWM, &unbounded, sizeof unbounded);
    if (type == ZMQ_SUB)
        zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "kv@", 3);
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%u", port);
    assert_int_equal(zmq_connect(socket, endpoint), 0);
    return socket;
}

static void open_subscriber(subscriber *s, const st_event_publisher *p, size_t n_blocks)
{
    *s = (subscriber){.context = zmq_ctx_new(), .last = -1};
    size_t bytes = st_prefix_index_bytes(n_blocks, 0);
    s->mem = aligned_alloc(64, bytes);
    assert_non_null(s->mem);
    assert_int_equal(st_prefix_index_init(s->mem, bytes, n_blocks, 0, &s->index), ST_OK);
    assert_int_equal(st_kv_decoder_new(&s->decoder), ST_OK);
    s->sub = connect_to(s->context, ZMQ_SUB, st_event_publisher_port(p));
    s->dealer = connect_to(s->context, ZMQ_DEALER, st_event_publisher_replay_port(p));
}

static void close_subscriber(subscriber *s)
{
    zmq_close(s->sub);
    zmq_close(s->dealer);
    zmq_ctx_term(s->context);
    st_kv_decoder_free(s->decoder);
    free(s->mem);
}

/* Asks for a replay and takes all of it. Returns how many batches came. */
static int replay(subscriber *s, int64_t from)
{
    unsigned char start[8];
    for (int i = 0; i < 8; i++)
        start[i] = (unsigned char)((uint64_t)from >> (56 - 8 * i));
    zmq_send(s->dealer, "", 0, ZMQ_SNDMORE);
    zmq_send(s->dealer, start, 8, 0);
    int64_t seq;
    for (int n = 0;; n++) {
        assert_true(receive(s, s->dealer, 10000, &seq));
        if (seq < 0)
            return n;
    }
}

/* ---- an engine ---- */

typedef struct engine {
    st_event_publisher *publisher;
    st_block_pool *pool;
    int32_t tokens[CHAINS][CHAIN_BLOCKS * BS];
    st_block_hash root[CHAINS], hashes[CHAINS][CHAIN_BLOCKS];
    const char *salt[CHAINS];
} engine;

static engine *new_engine(int32_t n_blocks, size_t buffer_batches, bool arrays)
{
    engine *e = calloc(1, sizeof *e);
    assert_non_null(e);
    st_event_publisher_options o = {.host = "127.0.0.1",
                                    .topic = "kv@test",
                                    .dp_rank = 3,
                                    .block_size = BS,
                                    .n_blocks = n_blocks,
                                    .buffer_batches = buffer_batches,
                                    .arrays = arrays};
    st_error err;
    if (st_event_publisher_new(&o, &e->publisher, &err))
        fail_msg("%s", err.text);
    st_block_events events = st_event_publisher_events(e->publisher);
    assert_int_equal(st_block_pool_new(n_blocks, BS, true, &events, &e->pool, NULL), ST_OK);
    static const char *const salts[] = {NULL, NULL, "tenant a", "tenant b"};
    for (int c = 0; c < CHAINS; c++) {
        /* Conversations that share their beginnings. */
        int like = c ? (int)below((uint64_t)c) : 0, shared = (int)below(CHAIN_BLOCKS * BS);
        for (int i = 0; i < CHAIN_BLOCKS * BS; i++)
            e->tokens[c][i] = i < shared ? e->tokens[like][i] : (int32_t)below(150000);
        e->salt[c] = salts[below(4)];
        e->root[c] = st_block_hash_root(1, ST_BF16, e->salt[c], e->salt[c] ? 8 : 0);
        for (int i = 0; i < CHAIN_BLOCKS; i++)
            e->hashes[c][i] = st_block_hash_next(i ? e->hashes[c][i - 1] : e->root[c],
                                                 e->tokens[c] + i * BS, BS, 0);
    }
    return e;
}

static void free_engine(engine *e)
{
    st_block_pool_free(e->pool);
    st_event_publisher_free(e->publisher);
    free(e);
}

/* One request, as the engine runs it: what is cached is shared, the rest computed. */
static void run_chain(engine *e, int c, int n)
{
    int32_t blocks[CHAIN_BLOCKS];
    int32_t have = st_block_pool_match(e->pool, e->hashes[c], n, blocks);
    assert_int_equal(st_block_pool_alloc(e->pool, n - have, blocks + have), ST_OK);
    st_event_publisher_root(e->publisher, e->root[c], e->salt[c], e->salt[c] ? 8 : 0);
    for (int i = have; i < n; i++)
        st_block_pool_publish(e->pool, blocks[i], e->hashes[c][i],
                              i ? e->hashes[c][i - 1] : e->root[c], e->tokens[c] + i * BS);
    st_block_pool_release(e->pool, blocks, n);
}

/* The index says of every chain what the pool says. */
static int check_same(engine *e, const subscriber *s)
{
    int total = 0;
    for (int c = 0; c < CHAINS; c++) {
        int32_t blocks[CHAIN_BLOCKS];
        int32_t want = st_block_pool_match(e->pool, e->hashes[c], CHAIN_BLOCKS, blocks);
        st_block_pool_release(e->pool, blocks, want);
        uint64_t keys[CHAIN_BLOCKS];
        st_prefix_keys(st_prefix_root("m", 1, NULL, 0, e->salt[c], e->salt[c] ? 8 : 0),
                       e->tokens[c], CHAIN_BLOCKS * BS, BS, keys);
        st_holder_set one = {{1}};
        uint32_t depth[ST_INDEX_MAX_HOLDERS];
        st_prefix_match(s->index, keys, CHAIN_BLOCKS, &one, NULL, 0, 0, depth);
        assert_int_equal(depth[0], want);
        total += want;
    }
    st_prefix_stats stats;
    st_prefix_get_stats(s->index, &stats);
    assert_int_equal(stats.holder_blocks[0], st_block_pool_cached(e->pool));
    return total;
}

/* Publishes one block more and receives until it comes: then all that was before has come, too. */
static int64_t settle(engine *e, subscriber *s)
{
    static int32_t count;
    int32_t block, tokens[BS] = {-1, -1, -1, --count};
    st_block_hash root = st_block_hash_root(2, ST_BF16, NULL, 0);
    st_block_hash hash = st_block_hash_next(root, tokens, BS, 0);
    assert_int_equal(st_block_pool_alloc(e->pool, 1, &block), ST_OK);
    st_event_publisher_root(e->publisher, root, NULL, 0);
    st_block_pool_publish(e->pool, block, hash, root, tokens);
    st_block_pool_release(e->pool, &block, 1);
    st_event_publisher_flush(e->publisher);
    while (s->newest != hash.lo) {
        int64_t seq, before = s->last;
        bool all = st_event_publisher_flush(e->publisher);
        if (receive(s, s->sub, all ? 10000 : 1, &seq))
            assert_int_equal(seq, before + 1);
        else
            assert_false(all);
    }
    return s->last;
}

/* Waits until the subscription has reached the publisher: until something comes live. */
static void join(engine *e, subscriber *s)
{
    int64_t seq;
    do {
        int32_t block, tokens[BS] = {-2, -2, -2, (int32_t)s->last};
        st_block_hash root = st_block_hash_root(3, ST_BF16, NULL, 0);
        assert_int_equal(st_block_pool_alloc(e->pool, 1, &block), ST_OK);
        st_event_publisher_root(e->publisher, root, NULL, 0);
        st_block_pool_publish(e->pool, block, st_block_hash_next(root, tokens, BS, 0), root,
                              tokens);
        st_block_pool_release(e->pool, &block, 1);
        st_event_publisher_flush(e->publisher);
        s->last++;
    } while (!receive(s, s->sub, 20, &seq));
    st_block_pool_reset(e->pool);
    st_event_publisher_flush(e->publisher);
    st_prefix_clear(s->index, 0);
    s->again = true; /* what it missed is removed */
    settle(e, s);
    s->again = false;
}

/* ---- tests ---- */

static void the_index_follows_the_pool(void **state)
{
    (void)state;
    for (int arrays = 0; arrays < 2; arrays++) {
        engine *e = new_engine(500, 0, arrays);
        subscriber s;
        open_subscriber(&s, e->publisher, 1000);
        assert_int_equal(replay(&s, 0), 1); /* the first batch of this start */
        assert_int_equal(s.cleared, 1);
        join(e, &s);
        int cleared = s.cleared;
        for (int r = 0; r < 3000; r++) {
            run_chain(e, (int)below(CHAINS), 1 + (int)below(CHAIN_BLOCKS));
            if (r % 1000 == 999)
                st_block_pool_reset(e->pool);
            if (below(3))
                st_event_publisher_flush(e->publisher);
        }
        for (int r = 0; r < 50; r++) /* something stays */
            run_chain(e, (int)below(CHAINS), CHAIN_BLOCKS);
        st_event_publisher_flush(e->publisher);
        settle(e, &s);
        assert_true(check_same(e, &s) > 100);
        assert_int_equal(s.orphans, 0);
        assert_int_equal(s.cleared, cleared);
        assert_true(s.stored > 3000);
        close_subscriber(&s);
        free_engine(e);
    }
}

static void replay_gives_what_was_missed(void **state)
{
    (void)state;
    engine *e = new_engine(500, 0, false);
    subscriber s, late;
    open_subscriber(&s, e->publisher, 1000);
    join(e, &s);
    for (int r = 0; r < 500; r++) {
        run_chain(e, (int)below(CHAINS), CHAIN_BLOCKS);
        st_event_publisher_flush(e->publisher);
    }
    int64_t last = settle(e, &s);
    check_same(e, &s);
    open_subscriber(&late, e->publisher, 1000);
    assert_int_equal(replay(&late, 0), last + 1);
    assert_int_equal(late.last, last);
    check_same(e, &late);
    late.again = true;
    assert_int_equal(replay(&late, last), 1);
    assert_int_equal(replay(&late, last + 1), 0);
    assert_int_equal(replay(&late, INT64_MAX), 0);
    assert_int_equal(replay(&late, -5), last + 1);
    close_subscriber(&late);
    close_subscriber(&s);
    free_engine(e);
}

static void what_is_no_longer_kept_comes_whole(void **state)
{
    (void)state;
    engine *e = new_engine(500, 8, false);
    subscriber watch, s;
    open_subscriber(&watch, e->publisher, 1000);
    join(e, &watch);
    for (int r = 0; r < 300; r++) {
        run_chain(e, (int)below(CHAINS), CHAIN_BLOCKS);
        st_event_publisher_flush(e->publisher);
        if (r % 10 == 9) /* all is published, and more than eight batches in the end */
            settle(e, &watch);
    }
    close_subscriber(&watch);
    open_subscriber(&s, e->publisher, 1000);
    assert_int_equal(replay(&s, 0), 1);
    assert_true(s.last > 8);
    assert_int_equal(s.cleared, 1);
    check_same(e, &s);
    int64_t last = s.last;
    s.again = true;
    assert_int_equal(replay(&s, last - 7), 8); /* still kept */
    close_subscriber(&s);
    free_engine(e);
}

/* More changes in one step than the ring holds: the rest goes with the next flush. */
static void a_full_ring_loses_nothing(void **state)
{
    (void)state;
    enum { N = 300000 };
    engine *e = new_engine(N, 0, false);
    subscriber s;
    open_subscriber(&s, e->publisher, N);
    join(e, &s);
    int before = s.stored;
    int32_t *blocks = calloc(N, sizeof *blocks);
    assert_non_null(blocks);
    assert_int_equal(st_block_pool_alloc(e->pool, N - 1, blocks), ST_OK);
    st_event_publisher_root(e->publisher, e->root[0], NULL, 0);
    st_block_hash parent = e->root[0];
    for (int i = 0; i < N - 1; i++) {
        int32_t tokens[BS] = {i, i, i, i};
        st_block_hash h = st_block_hash_next(parent, tokens, BS, 0);
        st_block_pool_publish(e->pool, blocks[i], h, parent, tokens);
        parent = h;
    }
    int64_t seq;
    st_event_publisher_flush(e->publisher);
    assert_true(receive(&s, s.sub, 10000, &seq));
    int first = s.stored - before;
    assert_true(first > 0 && first < N - 1);
    while (s.stored - before < N - 1) {
        st_event_publisher_flush(e->publisher);
        while (receive(&s, s.sub, 10, &seq))
            ;
    }
    assert_int_equal(s.orphans, 0);
    st_prefix_stats stats;
    st_prefix_get_stats(s.index, &stats);
    assert_int_equal(stats.holder_blocks[0], st_block_pool_cached(e->pool));
    free(blocks);
    close_subscriber(&s);
    free_engine(e);
}

static void long_salts_are_kept_back(void **state)
{
    (void)state;
    engine *e = new_engine(50, 0, false);
    subscriber s;
    open_subscriber(&s, e->publisher, 100);
    replay(&s, 0);
    char salt[ST_EVENT_SALT_MAX + 1];
    memset(salt, 's', sizeof salt);
    int32_t blocks[2], tokens[BS] = {1, 2, 3, 4};
    assert_int_equal(st_block_pool_alloc(e->pool, 2, blocks), ST_OK);
    for (int i = 0; i < 2; i++) {
        size_t len = sizeof salt - (size_t)i;
        st_block_hash root = st_block_hash_root(1, ST_F32, salt, len);
        st_event_publisher_root(e->publisher, root, salt, len);
        st_block_pool_publish(e->pool, blocks[i], st_block_hash_next(root, tokens, BS, 0), root,
                              tokens);
    }
    st_event_publisher_flush(e->publisher);
    struct timespec t = {0, 1000000};
    while (s.stored == 0) { /* until the thread has published it */
        nanosleep(&t, NULL);
        replay(&s, 1);
    }
    assert_int_equal(s.stored, 1);
    close_subscriber(&s);
    free_engine(e);
}

static void bad_requests_are_ignored(void **state)
{
    (void)state;
    engine *e = new_engine(50, 0, false);
    subscriber s;
    open_subscriber(&s, e->publisher, 100);
    char big[1000] = {0};
    zmq_send(s.dealer, "", 0, 0);
    zmq_send(s.dealer, "x", 1, ZMQ_SNDMORE);
    zmq_send(s.dealer, big, 8, 0);
    zmq_send(s.dealer, "", 0, ZMQ_SNDMORE);
    zmq_send(s.dealer, big, 9, 0);
    zmq_send(s.dealer, "", 0, ZMQ_SNDMORE);
    zmq_send(s.dealer, big, 8, ZMQ_SNDMORE);
    zmq_send(s.dealer, "", 0, 0);
    assert_int_equal(replay(&s, 0), 1);
    close_subscriber(&s);
    free_engine(e);
}

static void bad_options_are_named(void **state)
{
    (void)state;
    st_event_publisher *p;
    st_error err;
    st_event_publisher_options o = {.host = "127.0.0.1", .block_size = 16, .n_blocks = 10};
    o.host = "no such host";
    assert_int_equal(st_event_publisher_new(&o, &p, &err), ST_EIO);
    assert_non_null(strstr(err.text, "no such host"));
    o.host = "127.0.0.1";
    o.n_blocks = 0;
    assert_int_equal(st_event_publisher_new(&o, &p, &err), ST_EINVAL);
    o.n_blocks = 10;
    assert_int_equal(st_event_publisher_new(&o, &p, &err), ST_OK);
    o.port = st_event_publisher_port(p);
    st_event_publisher *q;
    assert_int_equal(st_event_publisher_new(&o, &q, &err), ST_EIO); /* in use */
    assert_null(q);
    uint64_t t0 = st_now_ns();
    st_event_publisher_free(p);
    assert_true(st_now_ns() - t0 < 10000000000u); /* it waits for nobody */
    st_event_publisher_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_index_follows_the_pool),
        cmocka_unit_test(replay_gives_what_was_missed),
        cmocka_unit_test(what_is_no_longer_kept_comes_whole),
        cmocka_unit_test(a_full_ring_loses_nothing),
        cmocka_unit_test(long_salts_are_kept_back),
        cmocka_unit_test(bad_requests_are_ignored),
        cmocka_unit_test(bad_options_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
