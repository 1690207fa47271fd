/* KV links between processes, one of which dies (kill -9) or hangs (SIGSTOP) at some moment. The
 * other process is this program again, started with arguments:
 *
 *   offer          prints its port; offers transfer-0, transfer-1, ... whole or layer by layer
 *   fetch PORT     fetches transfer-0, transfer-1, ... from the test */
#include "cmocka_all.h"

#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kv_link_endings.h"
#include "kv_link_stores.h"

enum { LAYERS = 6, BLOCKS = 160, SIZE = 16, ROW = 512, TOKENS = 1100, USED = 69, ROUNDS = 100000 };

static uint64_t seed = 20261123;

static st_transfer_id id_of(int round)
{
    char text[32];
    int n = snprintf(text, sizeof text, "transfer-%d", round);
    return st_transfer_id_of(text, (size_t)n);
}

static st_kv_store *store_new(void)
{
    st_kv_store *s;
    st_error err;
    if (st_kv_store_new(LAYERS, BLOCKS, SIZE, ST_BF16, (st_kv_row_shape){0, 0, ROW}, &s, &err))
        abort();
    return s;
}

static st_kv_link *link_new(const st_kv_store *s, uint64_t lease_ms)
{
    st_kv_link *l;
    st_error err;
    st_kv_link_options o = {.store = s, .fingerprint = 3, .lease_ns = lease_ms * MS};
    if (st_kv_link_new(&o, &l, &err)) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    return l;
}

/* Odd rounds go layer by layer. */
static void offer_round(st_kv_link *l, int round, const int32_t *table, ending *over)
{
    st_transfer_id id = id_of(round);
    st_error err;
    *over = (ending){0};
    if (st_kv_offer(l, &id, TOKENS, on_over, over, &err))
        abort();
    if (round & 1)
        for (int32_t i = 0; i < LAYERS; i++) {
            st_kv_offer_rows(l, &id, i, 1, 0, TOKENS, table);
            nap(200000);
        }
    else
        st_kv_offer_rows(l, &id, 0, LAYERS, 0, TOKENS, table);
}

static st_status fetch_round(st_kv_link *l, int round, uint16_t port, const int32_t *table,
                             uint64_t timeout_ns, ending *done)
{
    st_error err;
    *done = (ending){0};
    st_kv_fetch_request r = {.host = "127.0.0.1",
                             .port = port,
                             .id = id_of(round),
                             .n_tokens = TOKENS,
                             .blocks = table,
                             .timeout_ns = timeout_ns};
    return st_kv_fetch(l, &r, on_over, done, &err);
}

/* ---- the other process ---- */

static void table_of(int round, int32_t *table)
{
    for (int32_t i = 0; i < USED; i++)
        table[i] = (i * 7 + round) % BLOCKS;
}

static int peer_offers(void)
{
    st_kv_store *s = store_new();
    st_kv_link *l = link_new(s, 1000);
    printf("%u\n", st_kv_link_port(l));
    fflush(stdout);
    for (int round = 0; round < ROUNDS; round++) {
        int32_t table[USED];
        ending over;
        table_of(round, table);
        kv_test_fill(s, table, 0, TOKENS, (uint64_t)round);
        offer_round(l, round, table, &over);
        (void)await_calls(&over);
    }
    return 0;
}

static int peer_fetches(uint16_t port)
{
    st_kv_store *s = store_new();
    st_kv_link *l = link_new(s, 1000);
    for (int round = 0; round < ROUNDS; round++) {
        int32_t table[USED];
        ending done;
        table_of(round, table);
        if (fetch_round(l, round, port, table, 0, &done))
            return 1;
        (void)await_calls(&done);
    }
    return 0;
}

typedef struct peer {
    pid_t pid;
    uint16_t port;
} peer;

/* A new process: UCX starts there afresh. */
static peer spawn(const char *role, uint16_t port)
{
    extern char **environ;
    int fds[2];
    char number[16], *args[] = {"test_kv_link_peers", (char *)role, number, NULL};
    snprintf(number, sizeof number, "%u", port);
    assert_int_equal(pipe(fds), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fds[1], 1);
    posix_spawn_file_actions_addclose(&actions, fds[0]);
    peer p = {0};
    assert_int_equal(posix_spawn(&p.pid, "/proc/self/exe", &actions, NULL, args, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(fds[1]);
    FILE *out = fdopen(fds[0], "r");
    if (!strcmp(role, "offer")) {
        unsigned got = 0;
        assert_int_equal(fscanf(out, "%u", &got), 1);
        p.port = (uint16_t)got;
    }
    fclose(out);
    return p;
}

static void end_peer(peer *p)
{
    kill(p->pid, SIGKILL);
    waitpid(p->pid, NULL, 0);
}

/* ---- tests ---- */

/* A death is noticed at once, well before this. */
#define LONG_NS (20000 * (uint64_t)MS)

/* Mostly in the middle of rows; every third time while the two make each other's acquaintance. */
static uint64_t moment_of(int turn)
{
    return (uint64_t)kv_test_below(&seed, (turn % 3 ? 150 : 8) * (int32_t)MS);
}

/* Fetches rounds from a peer that gets `signal` after some time; the first failure then ends it.
 * One before comes from a machine too busy for the timeout, and the next round is tried. */
static void fetch_until(st_kv_link *l, st_kv_store *s, int signal, uint64_t when,
                        uint64_t timeout_ns)
{
    peer p = spawn("offer", 0);
    uint64_t at = st_now_ns() + when;
    bool sent = false, failed = false;
    for (int round = 0; !sent || !failed; round++) {
        int32_t table[USED];
        ending done;
        kv_test_table(s, &seed, table, USED);
        assert_int_equal(fetch_round(l, round, p.port, table, timeout_ns, &done), ST_OK);
        while (!atomic_load(&done.calls) && !sent) {
            if (st_now_ns() >= at) {
                kill(p.pid, signal);
                sent = true;
                at = st_now_ns();
            }
        }
        assert_int_equal(await_calls(&done), 1);
        failed = done.status != ST_OK;
        if (failed && !sent)
            assert_int_equal(done.status, ST_EDEADLINE);
        if (!failed)
            assert_int_equal(kv_test_wrong(s, table, 0, TOKENS, (uint64_t)round), 0);
    }
    assert_true(st_now_ns() - at < LONG_NS / 2);
    end_peer(&p);
}

static void test_offering_peer_dies(void **state)
{
    st_kv_store *s = store_new();
    st_kv_link *l = link_new(s, 1000);
    for (int turn = 0; turn < 18; turn++)
        fetch_until(l, s, SIGKILL, moment_of(turn), LONG_NS);
    st_kv_link_free(l);
    st_kv_store_free(s);
}

static void test_offering_peer_hangs(void **state)
{
    st_kv_store *s = store_new();
    st_kv_link *l = link_new(s, 1000);
    for (int turn = 0; turn < 2; turn++)
        fetch_until(l, s, SIGSTOP, (uint64_t)(20 + kv_test_below(&seed, 60)) * MS,
                    400 * (uint64_t)MS);
    st_kv_link_free(l);
    st_kv_store_free(s);
}

/* Offers rounds to a peer that gets `signal` after some time after its first fetch; the same. */
static void offer_until(st_kv_link *l, st_kv_store *s, int signal, uint64_t when)
{
    peer p = spawn("fetch", st_kv_link_port(l));
    uint64_t at = UINT64_MAX;
    bool sent = false, failed = false;
    for (int round = 0; !sent || !failed; round++) {
        int32_t table[USED];
        ending over;
        st_kv_link_stats stats;
        kv_test_table(s, &seed, table, USED);
        offer_round(l, round, table, &over);
        while (!atomic_load(&over.calls) && !sent) {
            st_kv_link_get_stats(l, &stats);
            if (at == UINT64_MAX && stats.rows_bytes_sent)
                at = st_now_ns() + when;
            if (st_now_ns() >= at) {
                kill(p.pid, signal);
                sent = true;
            }
        }
        assert_int_equal(await_calls(&over), 1);
        failed = over.status != ST_OK;
    }
    end_peer(&p);
}

static void test_fetching_peer_dies(void **state)
{
    st_kv_store *s = store_new();
    for (int turn = 0; turn < 18; turn++) {
        st_kv_link *l = link_new(s, 100);
        offer_until(l, s, SIGKILL, moment_of(turn));
        st_kv_link_free(l);
    }
    st_kv_store_free(s);
}

static void test_fetching_peer_hangs(void **state)
{
    st_kv_store *s = store_new();
    st_kv_link *l = link_new(s, 300);
    offer_until(l, s, SIGSTOP, (uint64_t)(20 + kv_test_below(&seed, 60)) * MS);
    st_kv_link_free(l);
    st_kv_store_free(s);
}

int main(int argc, char **argv)
{
    if (argc > 1) /* not to outlive a test that fails */
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (argc > 1 && !strcmp(argv[1], "offer"))
        return peer_offers();
    if (argc > 2 && !strcmp(argv[1], "fetch"))
        return peer_fetches((uint16_t)atoi(argv[2]));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_offering_peer_dies),
        cmocka_unit_test(test_offering_peer_hangs),
        cmocka_unit_test(test_fetching_peer_dies),
        cmocka_unit_test(test_fetching_peer_hangs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
