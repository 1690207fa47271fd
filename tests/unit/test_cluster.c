/* The cluster's shared memory in one process: configuration and reload, claims, the queue, the
 * breaker, the lead, requests, rates, and threads with rows of their own. Processes that die are in
 * test_cluster_crash.c. */
#include "cmocka_all.h"

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "cluster/cluster.h"

#define MS UINT64_C(1000000)

enum { BLOCKS = 1000, HISTORY = 1000 };

typedef struct fixture {
    void *mem;
    size_t bytes;
    st_cluster *c;
    int row, fd;
} fixture;

static st_engine_spec engine_spec(const char *address, st_engine_role role, int32_t max_requests)
{
    return (st_engine_spec){.address = address,
                            .pool = role == ST_ROLE_PREFILL ? "prefill" : "decode",
                            .role = (uint8_t)role,
                            .dp_size = 1,
                            .models = 1,
                            .max_requests = max_requests};
}

static void all_up(st_cluster *c)
{
    for (int32_t i = 0; i < ST_CLUSTER_MAX_ENGINES; i++) {
        if (atomic_load(&st_cluster_engine(c, i)->state) == 1) {
            st_cluster_set_health(c, i, ST_HEALTH_UP, st_now_ns());
        }
    }
}

static void start(fixture *f, const st_cluster_spec *spec)
{
    st_error err;
    f->bytes = st_cluster_bytes(spec, BLOCKS, HISTORY);
    f->mem = aligned_alloc(64, (f->bytes + 63) / 64 * 64);
    assert_non_null(f->mem);
    memset(f->mem, 0xA5, f->bytes);
    if (st_cluster_init(f->mem, f->bytes, BLOCKS, HISTORY, spec, &f->c, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    assert_int_equal(st_cluster_enter(f->c, &f->row, &f->fd, &err), ST_OK);
    all_up(f->c);
}

static void stop(fixture *f)
{
    st_cluster_counts n;
    st_cluster_leave(f->c, f->row);
    st_cluster_get_counts(f->c, &n);
    st_cluster_counts zero = {0};
    assert_memory_equal(&n, &zero, sizeof n);
    st_cluster_free(f->c);
    free(f->mem);
}

static st_route_request request(int64_t prompt)
{
    return (st_route_request){
        .prompt_tokens = prompt, .max_tokens = 10, .disaggregate = true, .sticky = -1};
}

/* Plans and claims a whole request on a cluster whose engines all do both. */
static bool take(st_cluster *c, int row, const st_route_request *r, st_claim *claim)
{
    st_route_engine view[ST_CLUSTER_MAX_ENGINES];
    st_route_policy p;
    st_route_policy_default(&p);
    for (;;) {
        int32_t n = st_cluster_view(c, 0, NULL, 16, view);
        st_route_plan plan;
        if (st_route_plan_request(&p, r, view, n, &plan) != ST_ROUTE_GO) {
            return false;
        }
        for (int32_t i = 0; i < n; i++) {
            if (view[i].id == plan.decode) {
                *claim = (st_claim){.engine = plan.decode};
                st_route_loads(r, NULL, &view[i], NULL, &claim->load);
                if (st_cluster_claim(c, row, &view[i], claim)) {
                    return true;
                }
            }
        }
    }
}

static bool readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void drain(int fd)
{
    char c;
    while (read(fd, &c, 1) > 0) {
    }
}

static st_wait waiting(int64_t prompt, uint64_t since_ns)
{
    st_wait w;
    st_route_request r = request(prompt);
    st_wait_from_view(&w, 0, ST_ROLE_BOTH, &r, NULL, 0, 0, since_ns, 0);
    return w;
}

/* ---- configuration ---- */

static void refuses_nonsense(void **state)
{
    st_engine_spec e[2] = {engine_spec("a:1", ST_ROLE_BOTH, 1),
                           engine_spec("a:1", ST_ROLE_BOTH, 1)};
    st_cluster_spec spec = {.name = "x", .engines = e, .n_engines = 2};
    st_cluster *c;
    st_error err;
    size_t bytes = (st_cluster_bytes(&spec, BLOCKS, HISTORY) + 63) / 64 * 64;
    char *mem = aligned_alloc(64, bytes);
    assert_int_equal(st_cluster_init(mem, bytes, BLOCKS, HISTORY, &spec, &c, &err), ST_EINVAL);
    assert_non_null(strstr(err.text, "a:1 is listed twice"));
    e[1].address = "";
    assert_int_equal(st_cluster_init(mem, bytes, BLOCKS, HISTORY, &spec, &c, &err), ST_EINVAL);
    e[1].address = "a:2";
    e[1].role = 9;
    assert_int_equal(st_cluster_init(mem, bytes, BLOCKS, HISTORY, &spec, &c, &err), ST_EINVAL);
    e[1].role = ST_ROLE_DECODE;
    e[1].dp_size = 256;
    assert_int_equal(st_cluster_init(mem, bytes, BLOCKS, HISTORY, &spec, &c, &err), ST_EINVAL);
    assert_non_null(strstr(err.text, "257 data-parallel ranks"));
    e[1].dp_size = 1;
    assert_int_equal(st_cluster_init(mem, bytes / 2, BLOCKS, HISTORY, &spec, &c, &err), ST_EINVAL);
    assert_non_null(strstr(err.text, "bytes, expected at least"));
    memset(mem, 0x5A, bytes);
    assert_int_equal(st_cluster_reload(mem, bytes, &spec, &c, &err), ST_EFORMAT);
    assert_int_equal(st_cluster_init(mem, bytes, BLOCKS, HISTORY, &spec, &c, &err), ST_OK);
    st_cluster_free(c);
    spec.queue_size = 7;
    assert_int_equal(st_cluster_reload(mem, bytes, &spec, &c, &err), ST_EFORMAT);
    free(mem);
}

static st_cluster *reload(fixture *f, const st_cluster_spec *spec)
{
    st_cluster *c;
    st_error err;
    if (st_cluster_reload(f->mem, f->bytes, spec, &c, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    return c;
}

static void reload_keeps_what_applies(void **state)
{
    fixture f;
    st_engine_spec e[3] = {engine_spec("a:1", ST_ROLE_BOTH, 4), engine_spec("b:1", ST_ROLE_BOTH, 4),
                           engine_spec("c:1", ST_ROLE_BOTH, 4)};
    st_cluster_spec spec = {.name = "x", .engines = e, .n_engines = 3};
    e[1].dp_size = 3;
    start(&f, &spec);
    int32_t a = st_cluster_engine_find(f.c, "a:1"), b = st_cluster_engine_find(f.c, "b:1");
    st_route_request r = request(100);
    st_claim claims[3];
    for (int i = 0; i < 3; i++) {
        assert_true(take(f.c, f.row, &r, &claims[i])); /* one each: ties go round */
    }
    int at_a = claims[0].engine == a ? 0 : claims[1].engine == a ? 1 : 2;
    st_cluster_measure_prefill(f.c, a, 1000, 1000 * MS);
    uint16_t holders_of_b = atomic_load(&st_cluster_engine(f.c, b)->first_holder);

    /* b goes, d comes, a has other limits, the models' numbers change. */
    st_engine_spec now[3] = {engine_spec("d:1", ST_ROLE_DECODE, 4), e[2], e[0]};
    now[2].max_requests = 9;
    now[2].models = 2;
    spec.engines = now;
    st_cluster *after = reload(&f, &spec);
    assert_int_equal(st_cluster_engine_find(after, "a:1"), a);
    assert_int_equal(st_cluster_engine_find(after, "b:1"), -1);
    int32_t d = st_cluster_engine_find(after, "d:1");
    assert_true(d >= 0 && d != b); /* b's slot has load yet */
    st_route_engine view[ST_CLUSTER_MAX_ENGINES];
    int32_t n = st_cluster_view(after, 1, NULL, 16, view);
    assert_int_equal(n, 1);
    assert_int_equal(view[0].id, a);
    assert_int_equal(view[0].max_requests, 9);
    assert_int_equal(view[0].load.requests, 1);
    assert_int_equal(view[0].health, ST_HEALTH_UP);
    assert_true(view[0].prefill_tokens_per_s > 999);
    /* A worker of the configuration before goes by its own list, b included: those whom it still
     * serves may have no other. */
    n = st_cluster_view(f.c, 0, NULL, 16, view);
    assert_int_equal(n, 3);
    /* Once b is idle its place serves another; what it held counts for nobody. */
    for (int i = 0; i < 3; i++) {
        if (i != at_a) {
            st_cluster_release(f.c, f.row, &claims[i], st_now_ns());
        }
    }
    st_engine_spec many[5] = {now[0], now[1], now[2], engine_spec("e:1", ST_ROLE_BOTH, 4),
                              engine_spec("f:1", ST_ROLE_BOTH, 4)};
    spec.engines = many;
    spec.n_engines = 5;
    for (int i = 4; i < ST_CLUSTER_MAX_ENGINES; i++) { /* no slot is free but b's */
        if (atomic_load(&st_cluster_engine(after, i)->state) == 0 && i != 4) {
            atomic_store(&st_cluster_engine(after, i)->state, 2);
            atomic_store(&st_cluster_engine(after, i)->dp_size, 0);
        }
    }
    st_cluster *third = reload(&f, &spec);
    int32_t e_id = st_cluster_engine_find(third, "e:1"),
            f_id = st_cluster_engine_find(third, "f:1");
    assert_true(e_id == b || f_id == b);
    n = st_cluster_view(f.c, 0, NULL, 16, view);
    for (int i = 0; i < n; i++) {
        assert_int_not_equal(view[i].id, b); /* its place is another's now */
    }
    assert_true(atomic_load(&st_cluster_engine(third, b)->stale_holders));
    st_cluster_clear_stale(third);
    assert_false(atomic_load(&st_cluster_engine(third, b)->stale_holders));
    assert_int_equal(atomic_load(&st_cluster_engine(third, b)->health), ST_HEALTH_UNKNOWN);
    (void)holders_of_b;
    st_cluster_release(f.c, f.row, &claims[at_a], st_now_ns());
    st_cluster_free(third);
    st_cluster_free(after);
    stop(&f);
}

static void a_returning_engine_has_its_load(void **state)
{
    fixture f;
    st_engine_spec e[2] = {engine_spec("a:1", ST_ROLE_BOTH, 4),
                           engine_spec("b:1", ST_ROLE_BOTH, 4)};
    st_cluster_spec spec = {.name = "x", .engines = e, .n_engines = 1};
    start(&f, &spec);
    st_route_request r = request(100);
    st_claim claim;
    st_route_engine old[ST_CLUSTER_MAX_ENGINES], view[ST_CLUSTER_MAX_ENGINES];
    assert_true(take(f.c, f.row, &r, &claim));
    assert_int_equal(st_cluster_view(f.c, 0, NULL, 16, old), 1);
    spec.engines = e + 1;
    st_cluster *without = reload(&f, &spec);
    st_claim late = {.engine = old[0].id, .load = {.requests = 1}};
    assert_false(st_cluster_claim(f.c, f.row, &old[0], &late)); /* by a view from before */
    spec.engines = e;
    st_cluster *with = reload(&f, &spec);
    assert_int_equal(st_cluster_view(with, 0, NULL, 16, view), 1);
    assert_int_equal(view[0].id, old[0].id);
    assert_int_equal(view[0].load.requests, 1);
    st_cluster_release(f.c, f.row, &claim, st_now_ns());
    st_cluster_free(with);
    st_cluster_free(without);
    stop(&f);
}

/* ---- matching ---- */

static void depths_become_tokens(void **state)
{
    fixture f;
    st_engine_spec e[2] = {engine_spec("a:1", ST_ROLE_BOTH, 4),
                           engine_spec("b:1", ST_ROLE_BOTH, 4)};
    st_cluster_spec spec = {.name = "x", .engines = e, .n_engines = 2};
    e[0].dp_size = 4;
    e[1].publishes_events = true;
    start(&f, &spec);
    st_cluster_clear_stale(f.c);
    uint32_t depth[ST_INDEX_MAX_HOLDERS] = {0};
    int32_t a = st_cluster_engine_find(f.c, "a:1"), b = st_cluster_engine_find(f.c, "b:1");
    uint16_t first_a = atomic_load(&st_cluster_engine(f.c, a)->first_holder);
    uint16_t first_b = atomic_load(&st_cluster_engine(f.c, b)->first_holder);
    assert_true(first_b >= first_a + 4 || first_b < first_a);
    depth[first_a + 1] = 3;
    depth[first_a + 2] = 7;
    depth[first_b] = 5;
    atomic_store(&st_cluster_engine(f.c, b)->block_size, 64);
    st_route_engine view[ST_CLUSTER_MAX_ENGINES];
    assert_int_equal(st_cluster_view(f.c, 0, depth, 16, view), 2);
    assert_int_equal(view[0].matched_tokens, 7 * 16);
    assert_int_equal(view[1].matched_tokens, 5 * 64);
    assert_int_equal(st_cluster_best_rank(f.c, a, depth), 2);
    assert_int_equal(st_cluster_best_rank(f.c, b, depth), 0);
    assert_int_equal(st_cluster_view(f.c, 1, depth, 16, view), 0); /* nobody has that model */
    stop(&f);
}

/* ---- claims ---- */

static void a_claim_by_an_old_view_loses(void **state)
{
    fixture f;
    st_engine_spec e = engine_spec("a:1", ST_ROLE_BOTH, 1);
    st_cluster_spec spec = {.name = "x", .engines = &e, .n_engines = 1};
    start(&f, &spec);
    int other, fd;
    assert_int_equal(st_cluster_enter(f.c, &other, &fd, NULL), ST_OK);
    st_route_engine mine[ST_CLUSTER_MAX_ENGINES], theirs[ST_CLUSTER_MAX_ENGINES];
    st_cluster_view(f.c, 0, NULL, 16, mine);
    st_cluster_view(f.c, 0, NULL, 16, theirs);
    st_claim one = {.engine = 0,
                    .load = {.requests = 1, .decode_requests = 1, .decode_tokens = 50}};
    st_claim two = one;
    assert_true(st_cluster_claim(f.c, other, &theirs[0], &two));
    assert_false(st_cluster_claim(f.c, f.row, &mine[0], &one));
    st_cluster_view(f.c, 0, NULL, 16, mine);
    assert_int_equal(mine[0].load.requests, 1);
    assert_int_equal(mine[0].load.decode_tokens, 50);
    st_load more = two.load;
    more.decode_tokens = 51;
    st_cluster_adjust(f.c, other, &two, &more);
    st_cluster_view(f.c, 0, NULL, 16, mine);
    assert_int_equal(mine[0].load.decode_tokens, 51);
    st_cluster_release(f.c, other, &two, st_now_ns());
    assert_int_equal(two.engine, -1);
    st_cluster_release(f.c, other, &two, st_now_ns()); /* twice does no harm */
    assert_int_equal(atomic_load(&st_cluster_get_metrics(f.c)->races_lost), 1);
    st_cluster_leave(f.c, other);
    stop(&f);
}

/* ---- the queue ---- */

static void the_best_is_chosen(void **state)
{
    fixture f;
    st_engine_spec e = engine_spec("a:1", ST_ROLE_BOTH, 1);
    st_cluster_spec spec = {.name = "x", .engines = &e, .n_engines = 1, .queue_size = 3};
    start(&f, &spec);
    uint64_t now = st_now_ns();
    st_route_request r = request(100);
    st_claim claim;
    int marks[4];
    uint32_t tickets[4], ticket;
    void *user;
    assert_true(take(f.c, f.row, &r, &claim));
    assert_false(st_cluster_must_wait(f.c, 0, ST_ROLE_BOTH));
    const int64_t lengths[3] = {900, 500, 700};
    for (int i = 0; i < 3; i++) {
        st_wait w = waiting(lengths[i], now);
        assert_int_equal(st_cluster_wait(f.c, f.row, &w, &marks[i], &tickets[i], now), ST_OK);
    }
    st_wait w = waiting(1, now);
    assert_int_equal(st_cluster_wait(f.c, f.row, &w, &marks[3], &tickets[3], now), ST_EFULL);
    assert_true(st_cluster_must_wait(f.c, 0, ST_ROLE_BOTH));
    assert_true(st_cluster_must_wait(f.c, 0, ST_ROLE_DECODE));
    assert_false(st_cluster_must_wait(f.c, 5, ST_ROLE_BOTH)); /* other engines */
    assert_false(readable(f.fd));
    assert_false(st_cluster_woken(f.c, f.row, &ticket, &user));
    const int expected[3] = {1, 2, 0};
    for (int i = 0; i < 3; i++) {
        st_cluster_release(f.c, f.row, &claim, now);
        assert_true(readable(f.fd));
        drain(f.fd);
        assert_true(st_cluster_woken(f.c, f.row, &ticket, &user));
        assert_ptr_equal(user, &marks[expected[i]]);
        assert_int_equal(ticket, tickets[expected[i]]);
        assert_false(st_cluster_woken(f.c, f.row, &ticket, &user)); /* room for one */
        assert_true(take(f.c, f.row, &r, &claim));
        st_cluster_wait_end(f.c, f.row, tickets[expected[i]], now);
        assert_false(readable(f.fd));
    }
    st_cluster_release(f.c, f.row, &claim, now);
    assert_false(st_cluster_must_wait(f.c, 0, ST_ROLE_BOTH));
    stop(&f);
}

static void arrives_after_the_last_release(void **state)
{
    fixture f;
    st_engine_spec e = engine_spec("a:1", ST_ROLE_BOTH, 1);
    st_cluster_spec spec = {.name = "x", .engines = &e, .n_engines = 1};
    start(&f, &spec);
    uint32_t ticket, got;
    void *user;
    st_wait w = waiting(10, st_now_ns());
    assert_int_equal(st_cluster_wait(f.c, f.row, &w, &w, &ticket, st_now_ns()), ST_OK);
    assert_true(readable(f.fd)); /* it saw a full engine that is not full any more */
    assert_true(st_cluster_woken(f.c, f.row, &got, &user));
    assert_int_equal(got, ticket);
    st_cluster_wait_end(f.c, f.row, ticket, st_now_ns());
    stop(&f);
}

static void room_of_who_leaves_goes_on(void **state)
{
    fixture f;
    st_engine_spec e = engine_spec("a:1", ST_ROLE_BOTH, 1);
    st_cluster_spec spec = {.name = "x", .engines = &e, .n_engines = 1};
    start(&f, &spec);
    uint64_t now = st_now_ns();
    uint32_t tickets[3], got;
    void *user;
    int other, other_fd;
    assert_int_equal(st_cluster_enter(f.c, &other, &other_fd, NULL), ST_OK);
    st_wait w = waiting(10, now);
    /* The first is chosen at once; the room is kept for it. */
    assert_int_equal(st_cluster_wait(f.c, f.row, &w, &w, &tickets[0], now), ST_OK);
    assert_int_equal(st_cluster_wait(f.c, other, &w, &w, &tickets[1], now), ST_OK);
    assert_int_equal(st_cluster_wait(f.c, other, &w, &w, &tickets[2], now), ST_OK);
    assert_true(readable(f.fd));
    assert_false(readable(other_fd));
    /* Its client leaves before it has looked. */
    st_cluster_wait_end(f.c, f.row, tickets[0], now);
    assert_true(readable(other_fd));
    drain(other_fd);
    assert_true(st_cluster_woken(f.c, other, &got, &user));
    assert_int_equal(got, tickets[1]);
    /* It finds no room (says it): the next may try; it is not asked again, as nothing came free. */
    st_cluster_wait_again(f.c, other, got);
    assert_true(readable(other_fd));
    drain(other_fd);
    assert_true(st_cluster_woken(f.c, other, &got, &user));
    assert_int_equal(got, tickets[2]);
    st_cluster_wait_again(f.c, other, got);
    assert_false(readable(other_fd));
    assert_false(st_cluster_woken(f.c, other, &got, &user));
    /* Something becomes free: asked again, in order. */
    st_cluster_set_health(f.c, 0, ST_HEALTH_UP, now);
    assert_true(readable(other_fd));
    drain(other_fd);
    assert_true(st_cluster_woken(f.c, other, &got, &user));
    assert_int_equal(got, tickets[1]);
    /* The whole worker goes. */
    st_cluster_leave(f.c, other);
    stop(&f);
}

/* Something became free between the view of the chosen one and its giving up. */
static void no_lost_wake_up(void **state)
{
    fixture f;
    st_engine_spec e = engine_spec("a:1", ST_ROLE_BOTH, 1);
    st_cluster_spec spec = {.name = "x", .engines = &e, .n_engines = 1};
    start(&f, &spec);
    uint64_t now = st_now_ns();
    uint32_t ticket, got;
    void *user;
    st_wait w = waiting(10, now);
    st_route_request r = request(10);
    st_claim thief;
    assert_int_equal(st_cluster_wait(f.c, f.row, &w, &w, &ticket, now), ST_OK);
    assert_true(st_cluster_woken(f.c, f.row, &got, &user));
    assert_true(take(f.c, f.row, &r, &thief)); /* takes its room: it views now, and finds none */
    st_cluster_release(f.c, f.row, &thief, now);
    drain(f.fd);
    st_cluster_wait_again(f.c, f.row, ticket);
    assert_true(readable(f.fd));
    assert_true(st_cluster_woken(f.c, f.row, &got, &user));
    st_cluster_wait_end(f.c, f.row, ticket, now);
    stop(&f);
}

static void a_long_one_is_not_starved(void **state)
{
    fixture f;
    st_engine_spec e[2] = {engine_spec("a:1", ST_ROLE_BOTH, 0),
                           engine_spec("b:1", ST_ROLE_BOTH, 0)};
    st_cluster_spec spec = {.name = "x", .engines = e, .n_engines = 2};
    e[0].max_prefill_tokens = e[1].max_prefill_tokens = 1000;
    start(&f, &spec);
    uint64_t now = st_now_ns();
    st_route_request r = request(400);
    st_claim running[2];
    assert_true(take(f.c, f.row, &r, &running[0]));
    assert_true(take(f.c, f.row, &r, &running[1]));
    uint32_t big, small[3], got;
    void *user;
    st_wait w = waiting(5000, now); /* fits only where nothing else is */
    assert_int_equal(st_cluster_wait(f.c, f.row, &w, &w, &big, now), ST_OK);
    st_wait s = waiting(100, now);
    assert_int_equal(st_cluster_wait(f.c, f.row, &s, &s, &small[0], now), ST_OK);
    assert_true(st_cluster_woken(f.c, f.row, &got, &user)); /* short ones pass it */
    assert_int_equal(got, small[0]);
    st_cluster_wait_end(f.c, f.row, small[0], now);
    now += 6000 * MS; /* starved: one engine is kept free for it, the other goes on */
    s = waiting(100, now);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(st_cluster_wait(f.c, f.row, &s, &s, &small[i], now), ST_OK);
        assert_true(st_cluster_woken(f.c, f.row, &got, &user));
        assert_int_equal(got, small[i]);
    }
    for (int i = 0; i < 3; i++) { /* 400 + 3 x 100 + 400 is all that one engine may have */
        st_wait t = waiting(400, now);
        uint32_t more;
        assert_int_equal(st_cluster_wait(f.c, f.row, &t, &t, &more, now), ST_OK);
        assert_false(st_cluster_woken(f.c, f.row, &got, &user));
        st_cluster_wait_end(f.c, f.row, more, now);
    }
    for (int i = 0; i < 3; i++) {
        st_cluster_wait_end(f.c, f.row, small[i], now);
    }
    for (int i = 0; i < 2; i++) {
        st_cluster_release(f.c, f.row, &running[i], now);
    }
    assert_true(st_cluster_woken(f.c, f.row, &got, &user));
    assert_int_equal(got, big);
    st_cluster_wait_end(f.c, f.row, big, now);
    stop(&f);
}

static void tried_engines_and_other_models(void **state)
{
    fixture f;
    st_engine_spec e[2] = {engine_spec("a:1", ST_ROLE_BOTH, 1),
                           engine_spec("b:1", ST_ROLE_BOTH, 1)};
    st_cluster_spec spec = {.name = "x", .engines = e, .n_engines = 2};
    e[1].models = 2;
    start(&f, &spec);
    uint64_t now = st_now_ns();
    uint32_t ticket, got;
    void *user;
    st_route_engine view[ST_CLUSTER_MAX_ENGINES];
    st_route_request r = request(10);
    int32_t n = st_cluster_view(f.c, 0, NULL, 16, view);
    assert_int_equal(n, 1);
    view[0].excluded = true;
    st_wait w;
    st_wait_from_view(&w, 0, ST_ROLE_BOTH, &r, view, n, 0, now, 0);
    assert_int_equal(st_cluster_wait(f.c, f.row, &w, &w, &ticket, now), ST_OK);
    assert_false(st_cluster_woken(f.c, f.row, &got, &user)); /* only an engine it has tried */
    w = waiting(10, now);
    w.model = 1;
    uint32_t second;
    assert_false(st_cluster_must_wait(f.c, 1, ST_ROLE_BOTH));
    assert_int_equal(st_cluster_wait(f.c, f.row, &w, &w, &second, now), ST_OK);
    assert_true(st_cluster_woken(f.c, f.row, &got, &user));
    assert_int_equal(got, second);
    /* Past its deadline nobody is chosen. */
    st_wait late = waiting(10, now);
    late.deadline_ns = now - 1;
    uint32_t third;
    assert_int_equal(st_cluster_wait(f.c, f.row, &late, &late, &third, now), ST_OK);
    assert_false(st_cluster_woken(f.c, f.row, &got, &user));
    st_cluster_wait_end(f.c, f.row, ticket, now);
    st_cluster_wait_end(f.c, f.row, second, now);
    st_cluster_wait_end(f.c, f.row, third, now);
    stop(&f);
}

/* ---- health, lead, requests, rates ---- */

static void health_and_breaker(void **state)
{
    fixture f;
    st_engine_spec e = engine_spec("a:1", ST_ROLE_BOTH, 1);
    st_cluster_spec spec = {.name = "x", .engines = &e, .n_engines = 1};
    start(&f, &spec);
    uint64_t t = st_now_ns();
    uint32_t ticket, got;
    void *user;
    st_engine_slot *slot = st_cluster_engine(f.c, 0);
    for (int i = 0; i < 50; i++) {
        assert_false(st_cluster_outcome(f.c, 0, ST_OUTCOME_BUSY, t));
        assert_false(st_cluster_outcome(f.c, 0, ST_OUTCOME_SLOW, t));
    }
    assert_false(st_cluster_outcome(f.c, 0, ST_OUTCOME_BROKEN, t));
    assert_false(st_cluster_outcome(f.c, 0, ST_OUTCOME_BROKEN, t));
    assert_true(st_cluster_outcome(f.c, 0, ST_OUTCOME_BROKEN, t));
    assert_int_equal(atomic_load(&slot->health), ST_HEALTH_DOWN);
    assert_in_range(atomic_load(&slot->open_until_ns), t + 500 * MS, t + 501 * MS);
    st_cluster_set_health(f.c, 0, ST_HEALTH_UP, t + 100 * MS); /* not before the pause is over */
    assert_int_equal(atomic_load(&slot->health), ST_HEALTH_DOWN);
    st_wait w = waiting(10, t);
    assert_int_equal(st_cluster_wait(f.c, f.row, &w, &w, &ticket, t), ST_OK);
    assert_false(st_cluster_woken(f.c, f.row, &got, &user));
    st_cluster_set_health(f.c, 0, ST_HEALTH_UP, t + 600 * MS);
    assert_int_equal(atomic_load(&slot->health), ST_HEALTH_UP);
    assert_true(st_cluster_woken(f.c, f.row, &got, &user));
    st_cluster_wait_end(f.c, f.row, ticket, t);
    st_cluster_set_health(f.c, 0, ST_HEALTH_DRAINING, t + 700 * MS);
    st_claim claim;
    st_route_request r = request(10);
    assert_false(take(f.c, f.row, &r, &claim));
    stop(&f);
}

static void one_leads(void **state)
{
    fixture f;
    st_cluster_spec spec = {.name = "x"};
    start(&f, &spec);
    int other, fd;
    assert_int_equal(st_cluster_enter(f.c, &other, &fd, NULL), ST_OK);
    assert_true(st_cluster_lead(f.c, f.row));
    assert_true(st_cluster_lead(f.c, f.row));
    assert_false(st_cluster_lead(f.c, other));
    st_cluster_unlead(f.c, other); /* not his to give */
    assert_false(st_cluster_lead(f.c, other));
    assert_false(readable(fd));
    st_cluster_unlead(f.c, f.row);
    assert_true(readable(fd));
    assert_true(st_cluster_lead(f.c, other));
    drain(f.fd);
    uint32_t ticket;
    void *user;
    assert_false(st_cluster_woken(f.c, f.row, &ticket, &user));
    st_cluster_leave(f.c, other); /* leaving gives it up, too */
    assert_true(readable(f.fd));
    assert_true(st_cluster_lead(f.c, f.row));
    stop(&f);
}

static void requests_and_phases(void **state)
{
    fixture f;
    st_cluster_spec spec = {.name = "x", .max_requests_in_flight = 100};
    start(&f, &spec);
    st_request_slot *slots[100];
    for (int i = 0; i < 100; i++) {
        slots[i] = st_cluster_request_new(f.c, f.row, (uint64_t)i, 0, 1000);
        assert_non_null(slots[i]);
    }
    assert_null(st_cluster_request_new(f.c, f.row, 100, 0, 1000));
    st_cluster_request_free(f.c, slots[63]);
    st_cluster_request_free(f.c, slots[64]);
    slots[63] = st_cluster_request_new(f.c, f.row, 100, 0, 1000);
    slots[64] = st_cluster_request_new(f.c, f.row, 101, 0, 1000);
    assert_non_null(slots[63]);
    assert_non_null(slots[64]);
    assert_ptr_not_equal(slots[63], slots[64]);
    st_request_phase(slots[0], ST_PHASE_TOKENIZED, 1500);
    st_request_phase(slots[0], ST_PHASE_DECODE_RUNNING, 1700); /* parallel: ahead of prefill */
    st_request_phase(slots[0], ST_PHASE_PREFILL_RUNNING, 1800);
    st_request_phase(slots[0], ST_PHASE_DONE, 3000);
    assert_int_equal(st_request_phase_ns(slots[0], ST_PHASE_TOKENIZED), 500);
    assert_int_equal(st_request_phase_ns(slots[0], ST_PHASE_DECODE_RUNNING), 200);
    assert_int_equal(st_request_phase_ns(slots[0], ST_PHASE_PREFILL_RUNNING), 300);
    assert_int_equal(st_request_phase_ns(slots[0], ST_PHASE_DONE), 1200);
    assert_int_equal(st_request_phase_ns(slots[0], ST_PHASE_MATCHED), 0);
    st_cluster_counts n;
    st_cluster_get_counts(f.c, &n);
    assert_int_equal(n.in_flight, 100);
    for (int i = 0; i < 100; i++) {
        st_cluster_request_free(f.c, slots[i]);
    }
    st_cluster_metrics *m = st_cluster_get_metrics(f.c);
    assert_int_equal(atomic_load(&m->total.count), 1);
    assert_int_equal(atomic_load(&m->total.sum_ns), 2000);
    assert_int_equal(atomic_load(&m->phase[ST_PHASE_TOKENIZED].count), 1);
    assert_int_equal(atomic_load(&m->phase[ST_PHASE_MATCHED].count), 0);
    assert_null(st_cluster_request_at(f.c, 100));
    assert_int_equal(atomic_load(&st_cluster_request_at(f.c, 99)->row_and_state), 0);
    stop(&f);
}

static void rates(void **state)
{
    fixture f;
    st_cluster_spec spec = {.name = "x"};
    start(&f, &spec);
    uint64_t t = st_now_ns();
    uint32_t wait;
    for (int i = 0; i < 20; i++) {
        assert_true(st_cluster_rate_take(f.c, 42, 10, 20, 1, t, &wait));
    }
    assert_false(st_cluster_rate_take(f.c, 42, 10, 20, 1, t, &wait));
    assert_in_range(wait, 99, 102);
    assert_true(st_cluster_rate_take(f.c, 43, 10, 20, 1, t, &wait)); /* another key */
    assert_true(st_cluster_rate_take(f.c, 42, 10, 20, 1, t + 105 * MS, &wait));
    assert_false(st_cluster_rate_take(f.c, 42, 10, 20, 1, t + 105 * MS, &wait));
    int taken = 0;
    while (st_cluster_rate_take(f.c, 42, 10, 20, 1, t + 60000 * MS, &wait)) {
        taken++;
    }
    assert_in_range(taken, 19, 20);
    /* Keys without end do not fill it up for ever, nor free a busy one soon. */
    for (uint64_t key = 1000; key < 200000; key++) {
        assert_true(st_cluster_rate_take(f.c, key, 1000, 20, 1, t + 60000 * MS, &wait));
    }
    assert_true(st_cluster_rate_take(f.c, 7, 0, 0, 1, t, &wait)); /* no limit */
    stop(&f);
}

/* ---- threads ---- */

enum { THREADS = 4, ROUNDS = 3000, LIMIT = 2 };

typedef struct thread_case {
    st_cluster *c;
    _Atomic int *held; /* per engine, by the test's own count */
    _Atomic int exceeded;
    int served;
} thread_case;

/* Claims, holds, gives back; waits in the queue when there is no room. */
static void *claim_and_wait(void *arg)
{
    thread_case *t = arg;
    int row, fd;
    st_route_request r = request(50);
    if (st_cluster_enter(t->c, &row, &fd, NULL) != ST_OK) {
        return NULL;
    }
    for (int i = 0; i < ROUNDS; i++) {
        st_claim claim;
        uint32_t ticket, got;
        void *user;
        if (!take(t->c, row, &r, &claim)) {
            st_wait w = waiting(50, st_now_ns());
            if (st_cluster_wait(t->c, row, &w, t, &ticket, st_now_ns()) != ST_OK) {
                return NULL;
            }
            for (bool done = false; !done;) {
                struct pollfd p = {.fd = fd, .events = POLLIN};
                if (poll(&p, 1, 10000) != 1) {
                    return NULL; /* a wake-up was lost */
                }
                drain(fd);
                while (st_cluster_woken(t->c, row, &got, &user)) {
                    done = take(t->c, row, &r, &claim);
                    if (done) {
                        st_cluster_wait_end(t->c, row, got, st_now_ns());
                    } else {
                        st_cluster_wait_again(t->c, row, got);
                    }
                }
            }
        }
        if (atomic_fetch_add(&t->held[claim.engine], 1) >= LIMIT) {
            atomic_store(&t->exceeded, 1);
        }
        if (i % 16 == 0) {
            usleep(50);
        }
        atomic_fetch_sub(&t->held[claim.engine], 1);
        st_cluster_release(t->c, row, &claim, st_now_ns());
        t->served++;
    }
    st_cluster_leave(t->c, row);
    return NULL;
}

static void threads_share_a_cluster(void **state)
{
    fixture f;
    st_engine_spec e = engine_spec("a:1", ST_ROLE_BOTH, LIMIT);
    st_cluster_spec spec = {.name = "x", .engines = &e, .n_engines = 1};
    start(&f, &spec);
    _Atomic int held[1] = {0};
    thread_case cases[THREADS];
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        cases[i] = (thread_case){.c = f.c, .held = held};
        assert_int_equal(pthread_create(&threads[i], NULL, claim_and_wait, &cases[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(cases[i].served, ROUNDS);
        assert_int_equal(atomic_load(&cases[i].exceeded), 0);
    }
    stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_nonsense),
        cmocka_unit_test(reload_keeps_what_applies),
        cmocka_unit_test(a_returning_engine_has_its_load),
        cmocka_unit_test(depths_become_tokens),
        cmocka_unit_test(a_claim_by_an_old_view_loses),
        cmocka_unit_test(the_best_is_chosen),
        cmocka_unit_test(arrives_after_the_last_release),
        cmocka_unit_test(room_of_who_leaves_goes_on),
        cmocka_unit_test(no_lost_wake_up),
        cmocka_unit_test(a_long_one_is_not_starved),
        cmocka_unit_test(tried_engines_and_other_models),
        cmocka_unit_test(health_and_breaker),
        cmocka_unit_test(one_leads),
        cmocka_unit_test(requests_and_phases),
        cmocka_unit_test(rates),
        cmocka_unit_test(threads_share_a_cluster),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
