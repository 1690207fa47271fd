/* KV links: messages, the book of rows, and transfers between two links of one process. Those
 * between processes, with deaths: test_kv_link_peers.c. */
#include "cmocka_all.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kv_link_endings.h"
#include "kv_link_stores.h"
#include "transfer/kv_link_internal.h"
#include "transfer/kv_row_ranges.h"

static uint64_t seed = 20261122;

/* ---- what is waited for ---- */

static void await(ending *e)
{
    assert_int_equal(await_calls(e), 1);
}

static void await_status(ending *e, st_status status)
{
    await(e);
    if (e->status != status)
        print_error("status %d: %s\n", e->status, e->text);
    assert_int_equal(e->status, status);
}

static void assert_says(const ending *e, const char *part)
{
    if (!strstr(e->text, part))
        fail_msg("\"%s\" lacks \"%s\"", e->text, part);
}

/* ---- two engines ---- */

typedef struct engine {
    st_kv_store *store;
    st_kv_link *link;
} engine;

static st_kv_link_options options_of(const st_kv_store *s)
{
    return (st_kv_link_options){
        .host = "127.0.0.1", .store = s, .fingerprint = 0xABCDEF0123456789u};
}

static engine engine_new(int32_t n_layers, int32_t n_blocks, int32_t block_size, int32_t row_elems)
{
    engine e;
    st_error err;
    if (st_kv_store_new(n_layers, n_blocks, block_size, ST_BF16, (st_kv_row_shape){0, 0, row_elems},
                        &e.store, &err))
        fail_msg("%s", err.text);
    st_kv_link_options o = options_of(e.store);
    o.lease_ns = 10000 * (uint64_t)MS;
    if (st_kv_link_new(&o, &e.link, &err))
        fail_msg("%s", err.text);
    return e;
}

static void engine_free(engine *e)
{
    st_kv_link_free(e->link);
    st_kv_store_free(e->store);
}

static void offer(engine *e, const st_transfer_id *id, int32_t n, ending *over)
{
    st_error err;
    *over = (ending){0};
    if (st_kv_offer(e->link, id, n, on_over, over, &err))
        fail_msg("%s", err.text);
}

static void offer_all(engine *e, const st_transfer_id *id, int32_t n, const int32_t *table,
                      ending *over)
{
    offer(e, id, n, over);
    st_kv_offer_rows(e->link, id, 0, e->store->n_layers, 0, n, table);
}

static st_kv_fetch_request request_of(const engine *from, const st_transfer_id *id, int32_t n,
                                      const int32_t *table)
{
    return (st_kv_fetch_request){.host = "127.0.0.1",
                                 .port = st_kv_link_port(from->link),
                                 .id = *id,
                                 .n_tokens = n,
                                 .blocks = table};
}

static void fetch(engine *e, const st_kv_fetch_request *r, ending *done)
{
    st_error err;
    *done = (ending){0};
    if (st_kv_fetch(e->link, r, on_over, done, &err))
        fail_msg("%s", err.text);
}

static st_transfer_id new_id(void)
{
    st_transfer_id id;
    assert_int_equal(st_transfer_id_random(&id), ST_OK);
    return id;
}

static void assert_closed(engine *e)
{
    st_kv_link_stats s;
    st_kv_link_get_stats(e->link, &s);
    assert_int_equal(s.offers_open, 0);
    assert_int_equal(s.fetches_open, 0);
}

/* ---- ids and messages ---- */

static void test_ids(void **state)
{
    st_transfer_id a = new_id(), b;
    char text[33];
    st_transfer_id_text(&a, text);
    assert_true(st_transfer_id_parse(text, &b));
    assert_memory_equal(&a, &b, sizeof a);
    b = st_transfer_id_of(text, 32);
    assert_memory_equal(&a, &b, sizeof a);
    assert_true(st_transfer_id_parse("00112233445566778899AABBCCDDEEff", &b));
    assert_int_equal(b.bytes[15], 0xFF);
    assert_false(st_transfer_id_parse("00112233445566778899AABBCCDDEEf", &b));
    assert_false(st_transfer_id_parse("00112233445566778899AABBCCDDEEfff", &b));
    assert_false(st_transfer_id_parse("0011223344556677889gAABBCCDDEEff", &b));
    a = st_transfer_id_of("xfer-1", 6);
    b = st_transfer_id_of("xfer-2", 6);
    assert_memory_not_equal(&a, &b, sizeof a);
}

static void test_hello(void **state)
{
    unsigned char p[KV_HELLO_BYTES + 64];
    st_error err;
    size_t need;
    kv_hello m, h = {.version = KV_LINK_VERSION,
                     .fingerprint = 0x123456789ABCDEF0u,
                     .dtype = ST_BF16,
                     .n_layers = 61,
                     .row_bytes = 1152,
                     .token = 9,
                     .address = (const unsigned char *)"the address",
                     .address_len = 11};
    size_t n = kv_hello_encode(&h, p);
    assert_int_equal(n, KV_HELLO_BYTES + 11);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(kv_hello_decode(p, i, &m, &need, &err), ST_OK);
        assert_true(need > i && need <= n);
    }
    assert_int_equal(kv_hello_decode(p, n, &m, &need, &err), ST_OK);
    assert_int_equal(need, n);
    assert_int_equal(kv_hello_compare(&h, &m, &err), ST_OK);
    assert_int_equal(m.token, 9);
    assert_int_equal(m.address_len, 11);
    assert_memory_equal(m.address, "the address", 11);
    assert_int_equal(kv_hello_decode(p, n + 1, &m, &need, &err), ST_EFORMAT);
    /* No damage passes. */
    for (size_t i = 0; i < n; i++) {
        p[i] ^= 1u << (i % 8);
        st_status st = kv_hello_decode(p, n, &m, &need, &err);
        assert_true(st != ST_OK || need > n);
        p[i] ^= 1u << (i % 8);
    }
    p[4] = 9;
    assert_int_equal(kv_hello_decode(p, n, &m, &need, &err), ST_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "version 9"));
}

static void test_messages(void **state)
{
    unsigned char p[KV_HEADER_MAX];
    st_error err;
    kv_want w = {.id = new_id(), .from = 3, .n_tokens = 100, .wait_ms = 5, .n_blocks = 7}, w2;
    size_t n = kv_want_encode(&w, p);
    assert_int_equal(kv_want_decode(p, n, 28, &w2, &err), ST_OK);
    assert_memory_equal(&w, &w2, sizeof w);
    assert_int_equal(kv_want_decode(p, n, 27, &w2, &err), ST_EFORMAT);
    w.from = 101;
    assert_int_equal(kv_want_decode(p, kv_want_encode(&w, p), 28, &w2, &err), ST_EFORMAT);
    w.from = -1;
    assert_int_equal(kv_want_decode(p, kv_want_encode(&w, p), 28, &w2, &err), ST_EFORMAT);

    kv_rows r = {.id = w.id, .layer = 60, .first = 5, .count = 8}, r2;
    n = kv_rows_encode(&r, p);
    assert_int_equal(kv_rows_decode(p, n, 800, &r2, &err), ST_OK);
    assert_memory_equal(&r, &r2, sizeof r);
    assert_int_equal(kv_rows_decode(p, n, 7, &r2, &err), ST_EFORMAT);
    r.first = INT32_MAX;
    assert_int_equal(kv_rows_decode(p, kv_rows_encode(&r, p), 800, &r2, &err), ST_EFORMAT);
    r = (kv_rows){.layer = 0, .first = 0, .count = 0};
    assert_int_equal(kv_rows_decode(p, kv_rows_encode(&r, p), 800, &r2, &err), ST_EFORMAT);

    kv_end e = {.id = w.id, .from_fetcher = true, .status = ST_EDEADLINE, .text = "a\nb\xFF\x01z"};
    kv_end e2;
    n = kv_end_encode(&e, p);
    assert_int_equal(kv_end_decode(p, n, 0, &e2, &err), ST_OK);
    assert_int_equal(e2.status, ST_EDEADLINE);
    assert_true(e2.from_fetcher);
    assert_string_equal(e2.text, "a?b??z");
    p[20] = 200; /* a status nobody knows */
    assert_int_equal(kv_end_decode(p, n, 0, &e2, &err), ST_OK);
    assert_int_equal(e2.status, ST_EIO);
    assert_int_equal(kv_end_decode(p, KV_END_BYTES - 1, 0, &e2, &err), ST_EFORMAT);
}

static void test_coverage(void **state)
{
    for (int turn = 0; turn < 300; turn++) {
        int32_t from = kv_test_below(&seed, 50), to = from + 1 + kv_test_below(&seed, 300);
        bool seen[400] = {false};
        kv_coverage c;
        assert_true(kv_coverage_init(&c, 2, from, to));
        uint64_t missing = 2 * (uint64_t)(to - from);
        for (int i = 0; i < 60; i++) {
            int32_t first = from + kv_test_below(&seed, to - from);
            int32_t count = 1 + kv_test_below(&seed, to - first < 40 ? to - first : 40);
            bool is_free = true;
            for (int32_t t = first; t < first + count; t++)
                is_free &= !seen[t];
            assert_int_equal(kv_coverage_take(&c, 1, first, count), is_free);
            for (int32_t t = first; is_free && t < first + count; t++)
                seen[t] = true;
            missing -= is_free ? (uint64_t)count : 0;
            assert_int_equal(c.missing, missing);
        }
        kv_coverage_free(&c);
    }
}

/* ---- transfers ---- */

static void check_transfer(engine *a, engine *b, int32_t n, int32_t from, bool want_first,
                           bool named)
{
    int32_t table_a[64], table_b[64];
    ending over, done;
    st_transfer_id id = new_id();
    uint64_t content = kv_test_random(&seed);
    int32_t blocks = kv_blocks_of(a->store, n);
    kv_test_table(a->store, &seed, table_a, blocks);
    kv_test_table(b->store, &seed, table_b, kv_blocks_of(b->store, n));
    kv_test_fill(a->store, table_a, 0, n, content);
    kv_test_fill(b->store, table_b, 0, n, ~content); /* rows before `from` must stay */
    st_kv_fetch_request r = request_of(a, &id, n, table_b);
    r.from = from;
    r.remote_blocks = named ? table_a : NULL;
    r.n_remote_blocks = named ? blocks : 0;
    if (want_first)
        fetch(b, &r, &done);
    offer_all(a, &id, n, table_a, &over);
    if (!want_first)
        fetch(b, &r, &done);
    await_status(&done, ST_OK);
    await_status(&over, ST_OK);
    assert_int_equal(kv_test_wrong(b->store, table_b, from, n, content), 0);
    assert_int_equal(kv_test_wrong(b->store, table_b, 0, from, ~content), 0);
}

static void test_random_transfers(void **state)
{
    static const struct {
        int32_t layers, size_a, size_b, row;
    } shapes[] = {{3, 16, 16, 64}, {1, 16, 32, 576}, {5, 7, 4, 33}, {2, 1, 16, 8}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        engine a = engine_new(shapes[s].layers, 80, shapes[s].size_a, shapes[s].row);
        engine b = engine_new(shapes[s].layers, 80, shapes[s].size_b, shapes[s].row);
        int32_t most =
            60 * (shapes[s].size_a < shapes[s].size_b ? shapes[s].size_a : shapes[s].size_b);
        for (int i = 0; i < 25; i++) {
            int32_t n = 1 + kv_test_below(&seed, most), from = kv_test_below(&seed, n + 1);
            bool want_first = i & 1, named = !want_first && (i & 2);
            check_transfer(&a, &b, n, i & 4 ? from : 0, want_first, named);
        }
        assert_closed(&a);
        assert_closed(&b);
        engine_free(&b);
        engine_free(&a);
    }
}

/* Rows beyond a message and beyond the window, the engine's own shape, both directions, and from
 * itself. */
static void test_large(void **state)
{
    engine a = engine_new(4, 300, 16, 4096), b = engine_new(4, 300, 16, 4096);
    engine *pairs[][2] = {{&a, &b}, {&b, &a}, {&a, &a}};
    for (int i = 0; i < 3; i++) {
        engine *from = pairs[i][0], *to = pairs[i][1];
        int32_t table[280], n = 2200;
        kv_test_table(a.store, &seed, table, 280);
        kv_test_fill(from->store, table, 0, n, 77);
        ending over, done;
        st_transfer_id id = new_id();
        offer_all(from, &id, n, table, &over);
        st_kv_fetch_request r = request_of(from, &id, n, table + 140);
        fetch(to, &r, &done);
        await_status(&done, ST_OK);
        await_status(&over, ST_OK);
        assert_int_equal(kv_test_wrong(to->store, table + 140, 0, n, 77), 0);
    }
    engine_free(&a);
    engine_free(&b);
}

/* Layer by layer and chunk by chunk, in any order, with the WANT somewhere in between. */
static void test_layer_by_layer(void **state)
{
    engine a = engine_new(6, 80, 16, 64), b = engine_new(6, 80, 16, 64);
    for (int turn = 0; turn < 40; turn++) {
        int32_t table_a[64], table_b[64], n = 40 + kv_test_below(&seed, 900);
        int32_t chunk = 1 + kv_test_below(&seed, n), chunks = (n + chunk - 1) / chunk;
        kv_test_table(a.store, &seed, table_a, 64);
        kv_test_table(b.store, &seed, table_b, 64);
        kv_test_fill(a.store, table_a, 0, n, (uint64_t)turn);
        int32_t pieces = chunks * 6, *order = malloc((size_t)pieces * sizeof *order);
        for (int32_t i = 0; i < pieces; i++) {
            int32_t j = kv_test_below(&seed, i + 1);
            order[i] = order[j];
            order[j] = i;
        }
        ending over, done;
        st_transfer_id id = new_id();
        st_kv_fetch_request r = request_of(&a, &id, n, table_b);
        r.from = kv_test_below(&seed, n);
        int32_t when = kv_test_below(&seed, pieces);
        offer(&a, &id, n, &over);
        for (int32_t i = 0; i < pieces; i++) {
            if (i == when)
                fetch(&b, &r, &done);
            int32_t first = order[i] / 6 * chunk;
            st_kv_offer_rows(a.link, &id, order[i] % 6, 1, first,
                             n - first < chunk ? n - first : chunk, table_a);
            if (turn % 4 == 0)
                nap((uint64_t)kv_test_below(&seed, 200000));
        }
        await_status(&done, ST_OK);
        await_status(&over, ST_OK);
        assert_int_equal(kv_test_wrong(b.store, table_b, r.from, n, (uint64_t)turn), 0);
        free(order);
    }
    assert_closed(&a);
    assert_closed(&b);
    engine_free(&a);
    engine_free(&b);
}

static void test_200_at_once(void **state)
{
    enum { N = 200, TOKENS = 100 };
    engine a = engine_new(4, N * 7, 16, 64), b = engine_new(4, N * 7, 16, 64);
    int32_t *table_a = malloc(N * 7 * sizeof *table_a), *table_b = malloc(N * 7 * sizeof *table_b);
    ending *over = calloc(N, sizeof *over), *done = calloc(N, sizeof *done);
    kv_test_table(a.store, &seed, table_a, N * 7);
    kv_test_table(b.store, &seed, table_b, N * 7);
    for (int i = 0; i < N; i++)
        kv_test_fill(a.store, table_a + 7 * i, 0, TOKENS, (uint64_t)i);
    st_transfer_id ids[N];
    for (int i = 0; i < N; i++) {
        ids[i] = new_id();
        if (i % 3)
            offer_all(&a, &ids[i], TOKENS, table_a + 7 * i, &over[i]);
        st_kv_fetch_request r = request_of(&a, &ids[i], TOKENS, table_b + 7 * i);
        fetch(&b, &r, &done[i]);
    }
    for (int i = 0; i < N; i += 3)
        offer_all(&a, &ids[i], TOKENS, table_a + 7 * i, &over[i]);
    for (int i = 0; i < N; i++) {
        await_status(&done[i], ST_OK);
        await_status(&over[i], ST_OK);
        assert_int_equal(kv_test_wrong(b.store, table_b + 7 * i, 0, TOKENS, (uint64_t)i), 0);
    }
    st_kv_link_stats s;
    st_kv_link_get_stats(b.link, &s);
    assert_int_equal(s.fetches, N);
    assert_int_equal(s.rows_bytes_received, (uint64_t)N * TOKENS * 4 * 128);
    engine_free(&a);
    engine_free(&b);
    free(table_a);
    free(table_b);
    free(over);
    free(done);
}

/* ---- ends before the end ---- */

static void test_cancel(void **state)
{
    engine a = engine_new(8, 200, 16, 1024), b = engine_new(8, 200, 16, 1024);
    int32_t table[180], n = 1400;
    int ok = 0;
    kv_test_table(a.store, &seed, table, 180);
    kv_test_fill(a.store, table, 0, n, 5);
    for (int turn = 0; turn < 120; turn++) {
        ending over, done;
        st_transfer_id id = new_id();
        st_kv_fetch_request r = request_of(&a, &id, n, table + 90);
        if (turn % 3 == 0)
            fetch(&b, &r, &done);
        offer_all(&a, &id, n, table, &over);
        if (turn % 3)
            fetch(&b, &r, &done);
        nap((uint64_t)kv_test_below(&seed, 15 * MS));
        if (turn & 1)
            st_kv_fetch_cancel(b.link, &id);
        else
            st_kv_offer_cancel(a.link, &id, "the request was aborted");
        await(&done);
        if (turn & 1) /* it may not have come so far that the other side heard of it */
            st_kv_offer_cancel(a.link, &id, "the request was aborted");
        await(&over);
        if (done.status == ST_OK) {
            assert_int_equal(kv_test_wrong(b.store, table + 90, 0, n, 5), 0);
            ok++;
        } else {
            assert_int_equal(done.status, ST_ECANCELLED);
            /* The last row may have left when the fetcher cancels. */
            if (!(turn & 1) || over.status != ST_OK)
                assert_int_equal(over.status, ST_ECANCELLED);
            if (!(turn & 1))
                assert_says(&done, "the request was aborted");
        }
        /* What a cancel left behind must not come into the next one's blocks. */
        memset(b.store->layers[0], 0xEE, 200 * b.store->block_bytes);
    }
    print_message("%d of 120 were faster than their cancel\n", ok);
    check_transfer(&a, &b, 500, 20, false, true);
    assert_closed(&a);
    assert_closed(&b);
    engine_free(&a);
    engine_free(&b);
}

static void test_expiry(void **state)
{
    engine a = engine_new(2, 20, 16, 8), b = engine_new(2, 20, 16, 8);
    st_kv_link_free(a.link);
    st_kv_link_options o = options_of(a.store);
    st_error err;
    o.lease_ns = 100 * (uint64_t)MS;
    o.max_offers = 2;
    assert_int_equal(st_kv_link_new(&o, &a.link, &err), ST_OK);
    int32_t table[20];
    kv_test_table(a.store, &seed, table, 20);
    ending over[3], done;
    st_transfer_id ids[3] = {new_id(), new_id(), new_id()};
    offer(&a, &ids[0], 30, &over[0]);
    offer(&a, &ids[1], 30, &over[1]); /* not complete: no lease */
    assert_int_equal(st_kv_offer(a.link, &ids[2], 30, on_over, &over[2], &err), ST_EFULL);
    assert_int_equal(st_kv_offer(a.link, &ids[0], 30, on_over, &over[2], &err), ST_EINVAL);
    st_kv_offer_rows(a.link, &ids[0], 0, 2, 0, 30, table);
    await_status(&over[0], ST_EDEADLINE);
    nap(100 * (uint64_t)MS);
    assert_int_equal(atomic_load(&over[1].calls), 0);
    /* Too late: told at once. */
    st_kv_fetch_request r = request_of(&a, &ids[0], 30, table);
    fetch(&b, &r, &done);
    await_status(&done, ST_EDEADLINE);
    assert_says(&done, "nobody fetched them");
    /* Names block ids, so the offer should be there. */
    r.id = ids[2];
    r.remote_blocks = table;
    r.n_remote_blocks = 2;
    fetch(&b, &r, &done);
    await_status(&done, ST_ENOTFOUND);
    /* Rows that do not come. */
    r = request_of(&a, &ids[1], 30, table);
    r.timeout_ns = 100 * (uint64_t)MS;
    fetch(&b, &r, &done);
    await_status(&done, ST_EDEADLINE);
    await_status(&over[1], ST_EDEADLINE);
    /* An offer that does not come. */
    r.id = new_id();
    fetch(&b, &r, &done);
    await_status(&done, ST_EDEADLINE);
    st_kv_link_stats s;
    st_kv_link_get_stats(a.link, &s);
    assert_int_equal(s.expired, 1);
    engine_free(&a);
    engine_free(&b);
}

static void check_refused(engine *a, const st_kv_store *mine, uint64_t fingerprint,
                          const char *theirs_says, const char *mine_says)
{
    st_kv_link_options o = options_of(mine);
    o.fingerprint = fingerprint;
    engine b = {.store = (st_kv_store *)mine};
    st_error err;
    assert_int_equal(st_kv_link_new(&o, &b.link, &err), ST_OK);
    int32_t table[4] = {0, 1, 2, 3};
    ending over, done;
    st_transfer_id id = new_id();
    offer_all(a, &id, 20, table, &over);
    st_kv_fetch_request r = request_of(a, &id, 20, table);
    fetch(&b, &r, &done);
    await_status(&done, ST_EINVAL);
    assert_says(&done, theirs_says);
    assert_says(&done, mine_says);
    assert_int_equal(atomic_load(&over.calls), 0);
    st_kv_offer_cancel(a->link, &id, "no more");
    await_status(&over, ST_ECANCELLED);
    st_kv_link_free(b.link);
}

static void test_mismatch(void **state)
{
    engine a = engine_new(2, 20, 16, 8);
    st_kv_store *s;
    st_error err;
    uint64_t fingerprint = options_of(a.store).fingerprint;
    check_refused(&a, a.store, 0x1111, "abcdef0123456789", "0000000000001111");
    assert_int_equal(st_kv_store_new(2, 20, 16, ST_F32, (st_kv_row_shape){0, 0, 8}, &s, &err),
                     ST_OK);
    check_refused(&a, s, fingerprint, "BF16", "F32");
    st_kv_store_free(s);
    assert_int_equal(st_kv_store_new(2, 20, 16, ST_I8, (st_kv_row_shape){1, 12, 0}, &s, &err),
                     ST_OK); /* rows of as many bytes */
    check_refused(&a, s, fingerprint, "BF16", "I8");
    st_kv_store_free(s);
    assert_int_equal(st_kv_store_new(3, 20, 16, ST_BF16, (st_kv_row_shape){0, 0, 8}, &s, &err),
                     ST_OK);
    check_refused(&a, s, fingerprint, "2 layers", "has 3");
    st_kv_store_free(s);
    assert_int_equal(st_kv_store_new(2, 20, 16, ST_BF16, (st_kv_row_shape){0, 0, 9}, &s, &err),
                     ST_OK);
    check_refused(&a, s, fingerprint, "16 bytes", "have 18");
    st_kv_store_free(s);
    engine_free(&a);
}

static void test_wrong_requests(void **state)
{
    engine a = engine_new(2, 20, 16, 8), b = engine_new(2, 20, 16, 8);
    int32_t table[4] = {5, 6, 7, 8}, other[4] = {5, 6, 9, 8};
    ending over, done, second;
    st_error err;
    st_transfer_id id = new_id();
    offer(&a, &id, 60, &over);
    st_kv_fetch_request r = request_of(&a, &id, 61, table);
    fetch(&b, &r, &done);
    await_status(&done, ST_EINVAL);
    assert_says(&done, "61 tokens are wanted, the prompt offered has 60");
    r.n_tokens = 60;
    r.remote_blocks = table;
    r.n_remote_blocks = 3;
    fetch(&b, &r, &done);
    await_status(&done, ST_EINVAL);
    assert_says(&done, "3 block ids");
    r.remote_blocks = other;
    r.n_remote_blocks = 4;
    fetch(&b, &r, &done);
    assert_int_equal(st_kv_fetch(b.link, &r, on_over, &second, &err), ST_EINVAL);
    /* Somebody else wants the same: whoever comes second is refused. */
    engine c = engine_new(2, 20, 16, 8);
    fetch(&c, &r, &second);
    while (!atomic_load(&done.calls) && !atomic_load(&second.calls))
        nap(100000);
    ending *late = atomic_load(&done.calls) ? &done : &second;
    await_status(late, ST_EINVAL);
    assert_says(late, "already");
    st_kv_offer_rows(a.link, &id, 0, 2, 0, 60, table);
    ending *early = late == &done ? &second : &done;
    await_status(early, ST_EINVAL);
    assert_says(early, "names block 9");
    await_status(&over, ST_EINVAL);

    int32_t bad[4] = {0, 1, 2, 20};
    r = request_of(&a, &id, 60, bad);
    assert_int_equal(st_kv_fetch(b.link, &r, on_over, &done, &err), ST_EINVAL);
    r.blocks = table;
    r.host = "engine.example";
    assert_int_equal(st_kv_fetch(b.link, &r, on_over, &done, &err), ST_EINVAL);
    r.host = "127.0.0.1";
    r.from = 61;
    assert_int_equal(st_kv_fetch(b.link, &r, on_over, &done, &err), ST_EINVAL);
    /* Nobody listens there. */
    r = request_of(&a, &id, 60, table);
    r.port = 1;
    fetch(&b, &r, &done);
    await(&done);
    assert_int_not_equal(done.status, ST_OK);
    assert_says(&done, "127.0.0.1:1");
    engine_free(&a);
    engine_free(&b);
    engine_free(&c);
}

/* What the owner names must make sense, too. */
static void test_wrong_rows(void **state)
{
    engine a = engine_new(2, 20, 16, 8);
    static const int32_t good[4] = {5, 6, 7, 8}, beyond[4] = {5, 20, 7, 8}, moved[4] = {9, 6, 7, 8};
    const struct {
        int32_t layer, n_layers, from, count;
        const int32_t *blocks;
    } wrong[] = {{2, 1, 0, 60, good},   {-1, 1, 0, 60, good}, {0, 3, 0, 60, good},
                 {0, 1, 0, 61, good},   {0, 1, -1, 5, good},  {0, 1, 3, 0, good},
                 {0, 1, 0, 60, beyond}, {0, 1, 4, 5, moved},  {1, 1, 9, 2, good}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        ending over;
        st_transfer_id id = new_id();
        offer(&a, &id, 60, &over);
        st_kv_offer_rows(a.link, &id, 1, 1, 0, 10, good);
        st_kv_offer_rows(a.link, &id, wrong[i].layer, wrong[i].n_layers, wrong[i].from,
                         wrong[i].count, wrong[i].blocks);
        await_status(&over, ST_EINVAL);
    }
    engine_free(&a);
}

static void test_free_in_the_middle(void **state)
{
    for (int turn = 0; turn < 16; turn++) {
        engine a = engine_new(8, 200, 16, 1024), b = engine_new(8, 200, 16, 1024);
        int32_t table[90];
        ending over[6], done[6];
        kv_test_table(a.store, &seed, table, 90);
        for (int i = 0; i < 6; i++) {
            st_transfer_id id = new_id();
            if (i != 4)
                offer_all(&a, &id, 1400, table, &over[i]);
            else
                over[i] = (ending){.calls = 1};
            st_kv_fetch_request r = request_of(&a, &id, 1400, table);
            if (i != 5)
                fetch(&b, &r, &done[i]);
            else
                done[i] = (ending){.calls = 1};
        }
        nap((uint64_t)kv_test_below(&seed, 60 * MS));
        engine *first = turn & 1 ? &a : &b, *second = turn & 1 ? &b : &a;
        st_kv_link_free(first->link);
        for (int i = 0; i < 6; i++)
            assert_int_equal(atomic_load(turn & 1 ? &over[i].calls : &done[i].calls), 1);
        for (int i = 0; turn & 1 && i < 6; i++)
            await(&done[i]);
        st_kv_link_free(second->link);
        for (int i = 0; i < 6; i++) {
            assert_int_equal(atomic_load(&over[i].calls), 1);
            assert_int_equal(atomic_load(&done[i].calls), 1);
        }
        st_kv_store_free(a.store);
        st_kv_store_free(b.store);
    }
}

/* The peer is another one on the same port: the old connection is not held against it. */
static void test_restart(void **state)
{
    engine a = engine_new(2, 80, 16, 8), b = engine_new(2, 80, 16, 8);
    uint16_t port = st_kv_link_port(a.link);
    for (int turn = 0; turn < 5; turn++) {
        check_transfer(&a, &b, 100, 0, false, true);
        st_kv_link_free(a.link);
        st_kv_link_options o = options_of(a.store);
        o.port = port;
        st_error err;
        if (st_kv_link_new(&o, &a.link, &err))
            fail_msg("%s", err.text);
    }
    check_transfer(&a, &b, 100, 0, true, false);
    engine_free(&a);
    engine_free(&b);
}

static void throw_bytes(uint16_t port, int kind)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port)};
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fd, (struct sockaddr *)&in, sizeof in), 0);
    unsigned char bytes[600];
    size_t n = 1 + (size_t)kv_test_below(&seed, sizeof bytes);
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)kv_test_random(&seed);
    if (kind == 1)
        n = (size_t)snprintf((char *)bytes, sizeof bytes, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    else if (kind == 2) /* small numbers where lengths are read */
        for (size_t i = 0; i < 16; i++)
            bytes[i] = i % 8 ? 0 : (unsigned char)(bytes[i] % 64);
    (void)!send(fd, bytes, n, MSG_NOSIGNAL);
    nap((uint64_t)kv_test_below(&seed, 3 * MS));
    close(fd);
}

static void test_garbage(void **state)
{
    engine a = engine_new(2, 80, 16, 8), b = engine_new(2, 80, 16, 8);
    for (int i = 0; i < 60; i++) {
        throw_bytes(st_kv_link_port(a.link), i % 3);
        if (i % 20 == 0)
            check_transfer(&a, &b, 100, 0, false, true);
    }
    check_transfer(&a, &b, 100, 0, true, false);
    engine_free(&a);
    engine_free(&b);
}

/* A link on 127.0.0.1 is for this machine: UCX, too, listens nowhere else. */
static void test_local(void **state)
{
    engine a = engine_new(2, 80, 16, 8);
    int listening = 0;
    for (int fd = 3; fd < 1024; fd++) {
        int yes = 0;
        socklen_t len = sizeof yes;
        struct sockaddr_in at;
        socklen_t at_len = sizeof at;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &yes, &len) || !yes ||
            getsockname(fd, (struct sockaddr *)&at, &at_len) || at.sin_family != AF_INET)
            continue;
        listening++;
        assert_int_equal(ntohl(at.sin_addr.s_addr) >> 24, 127);
    }
    assert_true(listening > 0);
    engine_free(&a);
}

/* A WANT that names blocks may overtake the order by which the link's thread hears of the offer:
 * when that thread was away for as long as the prompt took. No thread here, and a connection that
 * says nothing. */
static void test_offer_not_known_yet(void **state)
{
    engine a = engine_new(2, 80, 16, 8);
    st_kv_link l = {.o = options_of(a.store)};
    l.o.max_offers = 4;
    assert_int_equal(pthread_mutex_init(&l.lock, NULL), 0);
    l.orders_tail = &l.orders;
    l.wake_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    assert_true(l.wake_fd >= 0);
    kv_conn conn = {.link = &l};
    conn.sending_tail = &conn.sending;
    st_transfer_id id = new_id();
    ending over = {0};
    assert_int_equal(st_kv_offer(&l, &id, 40, on_over, &over, NULL), ST_OK);
    int32_t named[3] = {7, 5, 3};
    unsigned char bytes[sizeof named];
    kv_blocks_encode(named, 3, bytes);
    kv_want w = {.id = id, .n_tokens = 39, .wait_ms = 1000, .n_blocks = 3};
    kv_offer_want(&l, &conn, &w, bytes);
    assert_int_equal(l.n_waits, 1);
    kv_offer *o = l.orders->offer;
    kv_offer_add(&l, o);
    assert_int_equal(l.n_waits, 0);
    assert_ptr_equal(o->conn, &conn);
    assert_int_equal(o->n_named, 3);
    assert_memory_equal(o->named, named, sizeof named);
    free(l.orders);
    kv_offer_free(o);
    close(l.wake_fd);
    pthread_mutex_destroy(&l.lock);
    engine_free(&a);
}

/* A link that does nothing takes no processor time. */
static void test_idle(void **state)
{
    engine a = engine_new(2, 80, 16, 8), b = engine_new(2, 80, 16, 8);
    check_transfer(&a, &b, 100, 0, false, true);
    int32_t table[4] = {1, 2, 3, 4};
    ending over, done;
    st_transfer_id id = new_id();
    st_kv_fetch_request r = request_of(&a, &id, 60, table);
    offer(&a, &id, 60, &over);
    fetch(&b, &r, &done); /* waits for rows */
    nap(50 * (uint64_t)MS);
    struct timespec t0, t1;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t0);
    nap(500 * (uint64_t)MS);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t1);
    double ms = (double)(t1.tv_sec - t0.tv_sec) * 1e3 + (double)(t1.tv_nsec - t0.tv_nsec) / 1e6;
    print_message("%.2f ms of processor time in 500 ms\n", ms);
    assert_true(ms < 50);
    st_kv_fetch_cancel(b.link, &id);
    await_status(&done, ST_ECANCELLED);
    await_status(&over, ST_ECANCELLED);
    engine_free(&a);
    engine_free(&b);
}

int main(void)
{
    print_message("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_hello),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_coverage),
        cmocka_unit_test(test_random_transfers),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_layer_by_layer),
        cmocka_unit_test(test_200_at_once),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_expiry),
        cmocka_unit_test(test_mismatch),
        cmocka_unit_test(test_wrong_requests),
        cmocka_unit_test(test_wrong_rows),
        cmocka_unit_test(test_free_in_the_middle),
        cmocka_unit_test(test_restart),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_local),
        cmocka_unit_test(test_offer_not_known_yet),
        cmocka_unit_test(test_idle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
