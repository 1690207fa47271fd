/* src/events/event_feed: against a publisher of our own that loses messages, restarts, forgets and
 * sends garbage, and against st_event_publisher. */
#include "cmocka_all.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <zmq.h>

#include "base/clock.h"
#include "events/event_feed.h"
#include "events/event_publisher.h"
#include "events/kv_event.h"

enum { BS = 2, BATCHES = 100 };

/* Stopping waits for nobody: this is what a slow machine may take for it. */
#define STOP_NS 10000000000u

/* ---- an engine's sockets, served while the test waits ---- */

typedef struct fake {
    void *context, *pub, *router;
    char endpoint[64], replay[64];
    st_buf batches[BATCHES]; /* by sequence */
    int64_t next, oldest;
    bool mute; /* answers no replay */
    int asked;
    int64_t asked_from;
} fake;

static void bind_socket(void *socket, const char *want, char endpoint[64])
{
    int linger = 0;
    size_t len = 64;
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    for (int i = 0; zmq_bind(socket, want); i++) { /* a port that was just closed */
        assert_true(i < 500);
        usleep(10000);
    }
    assert_int_equal(zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, endpoint, &len), 0);
}

static void fake_open(fake *f, const char *endpoint, const char *replay)
{
    char want[2][64];
    snprintf(want[0], 64, "%s", endpoint);
    snprintf(want[1], 64, "%s", replay);
    memset(f, 0, sizeof *f);
    f->context = zmq_ctx_new();
    f->pub = zmq_socket(f->context, ZMQ_PUB);
    f->router = zmq_socket(f->context, ZMQ_ROUTER);
    bind_socket(f->pub, want[0], f->endpoint);
    bind_socket(f->router, want[1], f->replay);
}

static void fake_close(fake *f)
{
    zmq_close(f->pub);
    zmq_close(f->router);
    zmq_ctx_term(f->context);
    for (int i = 0; i < BATCHES; i++)
        st_buf_free(&f->batches[i]);
}

static void seq_bytes(int64_t seq, unsigned char out[8])
{
    for (int i = 0; i < 8; i++)
        out[i] = (unsigned char)((uint64_t)seq >> (56 - 8 * i));
}

static void fake_send(fake *f, int64_t seq, const void *payload, size_t len)
{
    unsigned char bytes[8];
    seq_bytes(seq, bytes);
    zmq_send(f->pub, "kv", 2, ZMQ_SNDMORE);
    zmq_send(f->pub, bytes, 8, ZMQ_SNDMORE);
    zmq_send(f->pub, payload, len, 0);
}

/* Makes a batch; lost: it can only be replayed. */
static void fake_publish(fake *f, const st_kv_event *events, size_t n, bool lost)
{
    assert_true(f->next < BATCHES);
    st_buf *b = &f->batches[f->next];
    assert_int_equal(st_kv_encode_batch(events, n, (double)st_now_ns(), 0, f->next % 2, b), ST_OK);
    if (!lost)
        fake_send(f, f->next, b->data, b->len);
    f->next++;
}

static void fake_serve(fake *f)
{
    zmq_pollitem_t item = {f->router, 0, ZMQ_POLLIN, 0};
    if (zmq_poll(&item, 1, 2) <= 0)
        return;
    unsigned char id[256], start[16], bytes[8];
    int id_len = zmq_recv(f->router, id, sizeof id, 0);
    assert_int_equal(zmq_recv(f->router, start, sizeof start, 0), 0);
    assert_int_equal(zmq_recv(f->router, start, sizeof start, 0), 8);
    int64_t from = 0;
    for (int i = 0; i < 8; i++)
        from = from << 8 | start[i];
    f->asked++;
    f->asked_from = from;
    if (f->mute)
        return;
    if (from > f->next)
        from = f->next;
    for (int64_t seq = from < f->oldest ? f->oldest : from; seq <= f->next; seq++) {
        bool end = seq >= f->next;
        seq_bytes(end ? -1 : seq, bytes);
        zmq_send(f->router, id, (size_t)id_len, ZMQ_SNDMORE);
        zmq_send(f->router, "", 0, ZMQ_SNDMORE);
        zmq_send(f->router, bytes, 8, ZMQ_SNDMORE);
        zmq_send(f->router, end ? "" : f->batches[seq].data, end ? 0 : f->batches[seq].len, 0);
    }
}

/* ---- the feed and its index ---- */

static st_prefix_index *index_;
static void *index_memory;
static st_event_feed *feed;
static st_event_source_state states[4];

static int set_up(void **state)
{
    (void)state;
    size_t bytes = st_prefix_index_bytes(10000, 0);
    index_memory = aligned_alloc(64, bytes);
    for (int i = 0; i < 4; i++) {
        memset(&states[i], 0, sizeof states[i]);
        states[i].last_seq = -1;
    }
    st_error err;
    return st_prefix_index_init(index_memory, bytes, 10000, 0, &index_) ||
           st_event_feed_start(index_, &feed, &err);
}

static int tear_down(void **state)
{
    (void)state;
    uint64_t t0 = st_now_ns();
    st_event_feed_stop(feed);
    feed = NULL;
    free(index_memory);
    return st_now_ns() - t0 > STOP_NS;
}

static void follow(int holder, const fake *f, bool with_replay)
{
    st_event_source s = {.holder = holder,
                         .endpoint = f->endpoint,
                         .replay = with_replay ? f->replay : NULL,
                         .topic = "k",
                         .model = "m",
                         .state = &states[holder]};
    st_error err;
    if (st_event_feed_set(feed, &s, &err))
        fail_msg("%s", err.text);
}

/* Chain c: its i-th block has tokens (c, i) and the engine's hash c * 1000 + i + 1. */
typedef struct chain {
    uint64_t hashes[64];
    int32_t tokens[64 * BS];
    st_kv_event event;
} chain;

static const st_kv_event *stored(chain *k, int c, int from, int n)
{
    for (int i = 0; i < n; i++) {
        k->hashes[i] = (uint64_t)(c * 1000 + from + i + 1);
        k->tokens[2 * i] = c;
        k->tokens[2 * i + 1] = from + i;
    }
    k->event = (st_kv_event){.type = ST_KV_STORED,
                             .hashes = k->hashes,
                             .n_hashes = (size_t)n,
                             .has_parent = from > 0,
                             .parent = (uint64_t)(c * 1000 + from),
                             .tokens = k->tokens,
                             .n_tokens = (size_t)n * BS,
                             .block_size = BS};
    return &k->event;
}

static uint32_t depth_with(int holder, int c, const char *lora, const char *salt)
{
    chain k;
    uint64_t keys[64];
    stored(&k, c, 0, 64);
    uint64_t root =
        st_prefix_root("m", 1, lora, lora ? strlen(lora) : 0, salt, salt ? strlen(salt) : 0);
    st_prefix_keys(root, k.tokens, (size_t)64 * BS, BS, keys);
    st_holder_set one = {{(uint64_t)1 << holder}};
    uint32_t depth[ST_INDEX_MAX_HOLDERS];
    st_prefix_match(index_, keys, 64, &one, NULL, 0, 0, depth);
    return depth[holder];
}

static uint32_t depth(int holder, int c)
{
    return depth_with(holder, c, NULL, NULL);
}

#define WAIT_FOR(f, condition)                                                                     \
    do {                                                                                           \
        uint64_t until = st_now_ns() + 20000000000u;                                               \
        while (!(condition) && st_now_ns() < until)                                                \
            fake_serve(f);                                                                         \
        assert_true(condition);                                                                    \
    } while (0)

/* Sends an empty batch again and again until the feed hears it, then starts counting afresh. */
static void join(fake *f, int holder)
{
    uint64_t until = st_now_ns() + 20000000000u;
    while (states[holder].batches == 0 && st_now_ns() < until) {
        st_buf empty = ST_BUF_INIT;
        assert_int_equal(st_kv_encode_batch(NULL, 0, 1, 0, true, &empty), ST_OK);
        if (f->next == 0) {
            f->batches[0] = empty;
            f->next = 1;
            empty = (st_buf)ST_BUF_INIT;
        }
        fake_send(f, 0, f->batches[0].data, f->batches[0].len);
        st_buf_free(&empty);
        fake_serve(f);
        usleep(1000); /* or a slow machine's queues are full of these when the next one comes */
    }
    WAIT_FOR(f, states[holder].last_seq == 0);
}

/* Sends what has no sequence and is skipped, until the feed says that it was: its subscription is
 * there. */
static void wait_subscribed(fake *f, int holder)
{
    uint64_t until = st_now_ns() + 20000000000u, before = states[holder].skipped;
    while (states[holder].skipped == before && st_now_ns() < until) {
        fake_send(f, -7, "x", 1);
        fake_serve(f);
        usleep(1000);
    }
    assert_true(states[holder].skipped > before);
}

static void one(fake *f, int c, int from, int n, bool lost)
{
    chain k;
    fake_publish(f, stored(&k, c, from, n), 1, lost);
}

#define ANY "tcp://127.0.0.1:*"

/* ---- tests ---- */

static void live_events_reach_the_index(void **state)
{
    (void)state;
    fake f;
    fake_open(&f, ANY, ANY);
    follow(0, &f, false);
    join(&f, 0);
    one(&f, 1, 0, 3, false);
    one(&f, 1, 3, 2, false); /* the next turn: its parent came in another batch */
    WAIT_FOR(&f, depth(0, 1) == 5);
    chain k;
    st_kv_event removed = {.type = ST_KV_REMOVED, .hashes = k.hashes, .n_hashes = 1};
    k.hashes[0] = 1005;
    fake_publish(&f, &removed, 1, false);
    WAIT_FOR(&f, depth(0, 1) == 4);
    one(&f, 9, 5, 1, false); /* parent unknown */
    WAIT_FOR(&f, states[0].orphans == 1);
    assert_int_equal(depth(0, 9), 0);
    st_kv_event cleared = {.type = ST_KV_CLEARED};
    fake_publish(&f, &cleared, 1, false);
    WAIT_FOR(&f, depth(0, 1) == 0);
    assert_int_equal(states[0].last_seq, 5);
    assert_int_equal(states[0].events, 5);
    assert_int_equal(states[0].gaps + states[0].restarts + states[0].skipped, 0);
    assert_true(states[0].last_ns > 0);
    fake_close(&f);
}

static void media_lora_salt_and_groups(void **state)
{
    (void)state;
    fake f;
    fake_open(&f, ANY, ANY);
    follow(1, &f, false);
    join(&f, 1);
    chain k;
    st_kv_event e = *stored(&k, 1, 0, 4);
    e.lora_name = "a";
    e.lora_name_len = 1;
    fake_publish(&f, &e, 1, false);
    e = *stored(&k, 2, 0, 4);
    e.salt = "s";
    e.salt_len = 1;
    fake_publish(&f, &e, 1, false);
    e = *stored(&k, 3, 0, 4);
    fake_publish(&f, &e, 1, false);
    e.medium = ST_MEDIUM_CPU; /* a copy, and then the original goes */
    fake_publish(&f, &e, 1, false);
    st_kv_event removed = {.type = ST_KV_REMOVED, .hashes = k.hashes, .n_hashes = 4};
    fake_publish(&f, &removed, 1, false);
    e = *stored(&k, 4, 0, 4);
    e.medium = ST_MEDIUM_OTHER;
    fake_publish(&f, &e, 1, false);
    one(&f, 3, 4, 1, false); /* in the GPU, after a parent that is in CPU memory only */
    WAIT_FOR(&f, states[1].last_seq == f.next - 1);
    assert_int_equal(depth_with(1, 1, "a", NULL), 4);
    assert_int_equal(depth(1, 1), 0);
    assert_int_equal(depth_with(1, 2, NULL, "s"), 4);
    assert_int_equal(depth(1, 2), 0);
    assert_int_equal(depth(1, 3), 5);
    assert_int_equal(depth(1, 4), 0);
    removed.medium = ST_MEDIUM_CPU;
    stored(&k, 3, 0, 4);
    fake_publish(&f, &removed, 1, false);
    WAIT_FOR(&f, depth(1, 3) == 0);
    fake_close(&f);
}

static void a_late_joiner_knows_an_idle_engine(void **state)
{
    (void)state;
    fake f;
    fake_open(&f, ANY, ANY);
    for (int i = 0; i < 10; i++)
        one(&f, 1, i, 1, true);
    follow(2, &f, true);
    WAIT_FOR(&f, depth(2, 1) == 10);
    assert_int_equal(states[2].last_seq, 9);
    assert_int_equal(states[2].replayed, 10);
    assert_int_equal(states[2].gaps, 0);
    fake_close(&f);
}

static void a_gap_is_replayed(void **state)
{
    (void)state;
    fake f;
    fake_open(&f, ANY, ANY);
    follow(0, &f, true);
    join(&f, 0);
    one(&f, 1, 0, 1, false);
    WAIT_FOR(&f, depth(0, 1) == 1);
    for (int i = 1; i < 5; i++)
        one(&f, 1, i, 1, true);
    one(&f, 1, 5, 1, false);
    one(&f, 1, 6, 1, false);
    WAIT_FOR(&f, depth(0, 1) == 7);
    assert_int_equal(states[0].gaps, 1);
    assert_int_equal(states[0].orphans + states[0].restarts, 0);
    assert_int_equal(f.asked_from, 2);
    one(&f, 1, 7, 1, false);
    WAIT_FOR(&f, depth(0, 1) == 8);
    assert_int_equal(states[0].last_seq, 8);
    fake_close(&f);
}

static void a_gap_that_nobody_fills_clears(void **state)
{
    (void)state;
    fake f;
    fake_open(&f, ANY, ANY);
    follow(0, &f, false);
    join(&f, 0);
    one(&f, 1, 0, 3, false);
    WAIT_FOR(&f, depth(0, 1) == 3);
    one(&f, 2, 0, 3, true);
    one(&f, 3, 0, 3, false);
    WAIT_FOR(&f, depth(0, 3) == 3);
    assert_int_equal(depth(0, 1), 0);
    assert_int_equal(states[0].gaps, 1);
    /* Now with a replay that no longer has it all. */
    follow(0, &f, true);
    WAIT_FOR(&f, f.asked > 0);
    wait_subscribed(&f, 0);           /* nothing follows what is sent now */
    assert_int_equal(depth(0, 3), 3); /* a replay address that is learned changes nothing */
    one(&f, 4, 0, 1, true);
    one(&f, 5, 0, 1, true);
    f.oldest = f.next - 1;
    one(&f, 6, 0, 1, false);
    WAIT_FOR(&f, depth(0, 6) == 1);
    assert_int_equal(depth(0, 3) + depth(0, 4), 0);
    assert_int_equal(depth(0, 5), 1);
    fake_close(&f);
}

static void a_replay_that_never_answers_is_given_up(void **state)
{
    (void)state;
    fake f;
    fake_open(&f, ANY, ANY);
    follow(0, &f, true);
    join(&f, 0);
    f.mute = true;
    one(&f, 1, 0, 3, true);
    one(&f, 2, 0, 3, false);
    one(&f, 2, 3, 3, false); /* waits meanwhile */
    WAIT_FOR(&f, depth(0, 2) == 6);
    assert_true(f.asked > 0);
    assert_int_equal(states[0].last_seq, 3);
    fake_close(&f);
}

static void a_restart_is_noticed(void **state)
{
    (void)state;
    fake f, g;
    fake_open(&f, ANY, ANY);
    follow(0, &f, true);
    join(&f, 0);
    one(&f, 1, 0, 3, false);
    one(&f, 1, 3, 3, false);
    WAIT_FOR(&f, depth(0, 1) == 6);
    fake_close(&f);
    /* The next one says nothing on its own: what it has comes by replay, what was there goes. */
    fake_open(&g, f.endpoint, f.replay);
    one(&g, 2, 0, 2, true);
    WAIT_FOR(&g, depth(0, 2) == 2);
    assert_int_equal(depth(0, 1), 0);
    assert_int_equal(states[0].last_seq, 0);
    assert_true(states[0].restarts >= 1);
    one(&g, 2, 2, 2, false);
    WAIT_FOR(&g, depth(0, 2) == 4);
    fake_close(&g);
    /* One that has come as far as the last, but is another. */
    fake_open(&f, g.endpoint, g.replay);
    one(&f, 3, 0, 2, true);
    one(&f, 3, 2, 2, true);
    WAIT_FOR(&f, depth(0, 3) == 4);
    assert_int_equal(depth(0, 2), 0);
    fake_close(&f);
}

/* The engine starts anew after two batches, and what it had before is forgotten. */
static void begins_again(fake *f)
{
    st_buf_free(&f->batches[0]);
    st_buf_free(&f->batches[1]);
    f->next = 0;
    one(f, 2, 0, 2, false);
    WAIT_FOR(f, depth(0, 2) == 2);
    assert_int_equal(depth(0, 1), 0);
    assert_int_equal(states[0].restarts, 1);
}

static void a_sequence_that_goes_back_clears(void **state)
{
    (void)state;
    fake f;
    fake_open(&f, ANY, ANY);
    follow(0, &f, false);
    join(&f, 0);
    one(&f, 1, 0, 3, false);
    one(&f, 1, 3, 3, false);
    WAIT_FOR(&f, depth(0, 1) == 6);
    begins_again(&f);
    one(&f, 2, 2, 2, false);
    WAIT_FOR(&f, depth(0, 2) == 4);
    fake_close(&f);
}

/* What was replayed and never came live, because the subscription came later, is no reason to take
 * a new engine's beginning for it. */
static void a_restart_after_a_replay_is_noticed(void **state)
{
    (void)state;
    fake f;
    fake_open(&f, ANY, ANY);
    one(&f, 1, 0, 1, true);
    follow(0, &f, true);
    WAIT_FOR(&f, depth(0, 1) == 1);
    wait_subscribed(&f, 0);
    one(&f, 1, 1, 1, false);
    WAIT_FOR(&f, depth(0, 1) == 2);
    begins_again(&f);
    fake_close(&f);
}

static void garbage_is_counted(void **state)
{
    (void)state;
    fake f;
    fake_open(&f, ANY, ANY);
    follow(0, &f, false);
    join(&f, 0);
    one(&f, 1, 0, 3, false);
    WAIT_FOR(&f, depth(0, 1) == 3);
    zmq_send(f.pub, "kv", 2, 0);
    zmq_send(f.pub, "kv", 2, ZMQ_SNDMORE);
    zmq_send(f.pub, "short", 5, ZMQ_SNDMORE);
    zmq_send(f.pub, "x", 1, 0);
    for (int i = 0; i < 6; i++)
        zmq_send(f.pub, "kv", 2, i < 5 ? ZMQ_SNDMORE : 0);
    fake_send(&f, -7, "x", 1);
    WAIT_FOR(&f, states[0].skipped == 4);
    assert_int_equal(depth(0, 1), 3); /* no batch of the sequence is missing */
    fake_send(&f, 2, "\x92\x01\xdd\xff\xff\xff\xff", 7);
    WAIT_FOR(&f, states[0].skipped == 5);
    assert_int_equal(depth(0, 1), 0);
    f.next = 3;
    fake_send(&f, 3, "\x92\x01\x91\x91\xa3New", 8); /* a type that is not known yet */
    WAIT_FOR(&f, states[0].skipped == 6);
    f.next = 4;
    one(&f, 2, 0, 2, false);
    WAIT_FOR(&f, depth(0, 2) == 2);
    assert_int_equal(states[0].last_seq, 4);
    fake_close(&f);
}

static void sources_come_and_go(void **state)
{
    (void)state;
    fake f, g;
    fake_open(&f, ANY, ANY);
    fake_open(&g, ANY, ANY);
    one(&f, 1, 0, 3, true);
    one(&g, 1, 0, 2, true);
    follow(0, &f, true);
    follow(1, &g, true);
    WAIT_FOR(&f, depth(0, 1) == 3);
    WAIT_FOR(&g, depth(1, 1) == 2);
    assert_int_equal(st_event_feed_drop(feed, 0), ST_OK);
    WAIT_FOR(&f, depth(0, 1) == 0);
    assert_int_equal(depth(1, 1), 2);
    states[0].last_seq = -1;
    follow(0, &g, true); /* another engine in its place */
    WAIT_FOR(&g, depth(0, 1) == 2);
    follow(0, &f, true);
    WAIT_FOR(&f, depth(0, 1) == 3);
    fake_close(&f);
    fake_close(&g);
}

static void another_feed_goes_on(void **state)
{
    (void)state;
    fake f;
    fake_open(&f, ANY, ANY);
    follow(0, &f, true);
    join(&f, 0);
    one(&f, 1, 0, 3, false);
    WAIT_FOR(&f, depth(0, 1) == 3);
    uint64_t replayed = states[0].replayed;
    st_event_feed_stop(feed);
    one(&f, 1, 3, 2, false);
    assert_int_equal(st_event_feed_start(index_, &feed, NULL), ST_OK);
    assert_int_equal(depth(0, 1), 3);
    follow(0, &f, true);
    WAIT_FOR(&f, depth(0, 1) == 5);
    assert_int_equal(states[0].restarts + states[0].gaps, 0);
    assert_int_equal(states[0].replayed, replayed + 1);
    fake_close(&f);
}

static void bad_sources_are_named(void **state)
{
    (void)state;
    st_error err;
    st_event_source s = {.holder = 0, .endpoint = "nonsense", .state = &states[0]};
    assert_int_equal(st_event_feed_set(feed, &s, &err), ST_EINVAL);
    assert_non_null(strstr(err.text, "nonsense"));
    s.holder = ST_INDEX_MAX_HOLDERS;
    assert_int_equal(st_event_feed_set(feed, &s, &err), ST_EINVAL);
    s = (st_event_source){.holder = 0, .endpoint = "", .state = &states[0]};
    assert_int_equal(st_event_feed_set(feed, &s, &err), ST_EINVAL);
    s = (st_event_source){.holder = 0, .endpoint = "tcp://127.0.0.1:1"};
    assert_int_equal(st_event_feed_set(feed, &s, &err), ST_EINVAL);
    assert_int_equal(st_event_feed_drop(feed, -1), ST_EINVAL);
    /* Many that nobody answers: the feed still ends at once. */
    for (int h = 0; h < 60; h++) {
        s = (st_event_source){.holder = h,
                              .endpoint = "tcp://127.0.0.1:1",
                              .replay = "tcp://127.0.0.1:1",
                              .state = &states[0]};
        assert_int_equal(st_event_feed_set(feed, &s, &err), ST_OK);
    }
}

/* ---- with our own publisher, in a forked process as nginx's workers are ---- */

typedef struct addresses {
    char endpoint[64], replay[64];
} addresses;

/* Forked before there are threads, as nginx's workers are, and told where the engine is. */
static void run_child(st_event_source_state *state, int stop_fd)
{
    st_error err;
    st_event_feed *child;
    addresses at;
    char c;
    if (read(stop_fd, &at, sizeof at) != sizeof at)
        _exit(4);
    st_event_source s = {
        .holder = 5, .endpoint = at.endpoint, .replay = at.replay, .model = "m", .state = state};
    if (st_event_feed_start(index_, &child, &err) || st_event_feed_set(child, &s, &err))
        _exit(1);
    if (read(stop_fd, &c, 1) != 1)
        _exit(2);
    uint64_t t0 = st_now_ns();
    st_event_feed_stop(child);
    _exit(st_now_ns() - t0 < STOP_NS ? 0 : 3);
}

static void a_forked_process_follows_our_engine(void **state)
{
    (void)state;
    size_t bytes = st_prefix_index_bytes(10000, 0);
    void *mem = mmap(NULL, bytes + 64, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(mem != MAP_FAILED);
    st_prefix_index *own = index_;
    assert_int_equal(st_prefix_index_init(mem, bytes, 10000, 0, &index_), ST_OK);
    st_event_source_state *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared->last_seq = -1;
    int stop[2];
    assert_int_equal(pipe(stop), 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(stop[1]); /* a parent that dies ends the child */
        run_child(shared, stop[0]);
    }
    st_event_publisher_options o = {
        .host = "127.0.0.1", .block_size = BS, .n_blocks = 64, .buffer_batches = 4};
    st_event_publisher *p;
    assert_int_equal(st_event_publisher_new(&o, &p, NULL), ST_OK);
    addresses at = {0};
    snprintf(at.endpoint, sizeof at.endpoint, "tcp://127.0.0.1:%u", st_event_publisher_port(p));
    snprintf(at.replay, sizeof at.replay, "tcp://127.0.0.1:%u", st_event_publisher_replay_port(p));
    assert_int_equal(write(stop[1], &at, sizeof at), sizeof at);
    st_block_events ev = st_event_publisher_events(p);
    st_block_hash root = {1, 2}, parent = root;
    st_event_publisher_root(p, root, NULL, 0);
    for (int i = 0; i < 64; i++) {
        int32_t tokens[BS] = {1, i};
        st_block_hash h = st_block_hash_next(parent, tokens, BS, 0);
        ev.stored(ev.user, i, h, parent, tokens, BS);
        parent = h;
        if (i % 8 == 7) {
            assert_true(st_event_publisher_flush(p));
            usleep(20000);
        }
    }
    for (int i = 0; i < 2000 && depth(5, 1) != 64; i++)
        usleep(10000);
    assert_int_equal(depth(5, 1), 64);
    assert_int_equal(write(stop[1], "", 1), 1);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    st_event_publisher_free(p);
    close(stop[0]);
    close(stop[1]);
    munmap(shared, sizeof *shared);
    munmap(mem, bytes + 64);
    index_ = own;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(live_events_reach_the_index),
        TEST(media_lora_salt_and_groups),
        TEST(a_late_joiner_knows_an_idle_engine),
        TEST(a_gap_is_replayed),
        TEST(a_gap_that_nobody_fills_clears),
        TEST(a_replay_that_never_answers_is_given_up),
        TEST(a_restart_is_noticed),
        TEST(a_sequence_that_goes_back_clears),
        TEST(a_restart_after_a_replay_is_noticed),
        TEST(garbage_is_counted),
        TEST(sources_come_and_go),
        TEST(another_feed_goes_on),
        TEST(bad_sources_are_named),
        cmocka_unit_test(a_forked_process_follows_our_engine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
