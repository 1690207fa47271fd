/* Worker processes on one cluster, killed at random instants and replaced, under reloads: limits
 * hold by a count of the test's own, everybody who waits is served, and in the end every counter is
 * zero. */
#include "cmocka_all.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "cluster/cluster_impl.h"

#define MS UINT64_C(1000000)

enum { WORKERS = 6, ENGINES = 5, IN_FLIGHT = 5, PROMPT = 400 };

static const st_engine_spec engines[ENGINES] = {
    {"p:1", "p", 0, ST_ROLE_PREFILL, 1, 1, 2, 600, false},
    {"p:2", "p", 0, ST_ROLE_PREFILL, 1, 1, 3, 500, false},
    {"d:1", "d", 0, ST_ROLE_DECODE, 1, 1, 3, 0, false},
    {"d:2", "d", 0, ST_ROLE_DECODE, 2, 1, 2, 0, false},
    {"d:3", "d", 0, ST_ROLE_DECODE, 1, 1, 1, 0, false}, /* comes and goes by reloads */
};

/* What a worker holds by its own account: written after a claim and before its release. The
 * observer takes what did not change while it read (changes is even and the same). */
typedef struct ledger {
    _Alignas(64) _Atomic uint64_t changes;
    _Atomic int64_t requests[ENGINES], prefill_tokens[ENGINES];
    _Atomic int leads, ignored;
    _Atomic uint64_t served, timed_out, waited;
} ledger;

typedef struct shared {
    ledger workers[WORKERS];
    _Atomic int stop;
    _Atomic int in_flight; /* requests each worker keeps going */
} shared;

typedef struct automaton {
    enum { IDLE, WAITS, PREFILLS, DECODES } state;
    uint64_t at_ns; /* of the next step; WAITS: the deadline */
    uint32_t ticket;
    uint8_t role; /* waited for */
    st_route_request request;
    st_claim prefill, decode;
    st_request_slot *slot;
} automaton;

typedef struct worker {
    st_cluster *c;
    shared *sh;
    ledger *mine;
    st_route_policy policy;
    int row, fd;
    uint64_t seed;
    automaton a[IN_FLIGHT];
} worker;

static uint64_t below(uint64_t *seed, uint64_t n)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed % n;
}

/* ---- a worker ---- */

static void account(worker *w, const st_claim *claim, int sign)
{
    const char *address = st_cluster_engine(w->c, claim->engine)->address;
    int e = 0;
    while (e < ENGINES - 1 && strcmp(engines[e].address, address) != 0) {
        e++;
    }
    atomic_fetch_add(&w->mine->changes, 1);
    atomic_fetch_add(&w->mine->requests[e], sign * claim->load.requests);
    atomic_fetch_add(&w->mine->prefill_tokens[e], sign * claim->load.prefill_tokens);
    atomic_fetch_add(&w->mine->changes, 1);
}

static void give_back(worker *w, st_claim *claim)
{
    if (claim->engine >= 0) {
        account(w, claim, -1);
        st_cluster_release(w->c, w->row, claim, st_now_ns());
    }
}

static const st_route_engine *by_id(const st_route_engine *view, int32_t n, int32_t id)
{
    for (int32_t i = 0; i < n; i++) {
        if (view[i].id == id) {
            return &view[i];
        }
    }
    return NULL;
}

static bool claim_one(worker *w, const st_route_engine *seen, const st_load *load, st_claim *claim)
{
    st_claim want = {.engine = seen->id, .load = *load};
    if (!st_cluster_claim(w->c, w->row, seen, &want)) {
        return false;
    }
    *claim = want;
    account(w, claim, 1);
    return true;
}

/* Claims what the automaton needs next. WAIT: no room; the view is the one that had none. */
static st_route_answer place_request(worker *w, automaton *a, uint8_t role, st_route_engine *view,
                                     int32_t *n)
{
    for (;;) {
        st_route_plan plan = {.prefill = -1, .decode = -1};
        st_load at_prefill = {0}, at_decode = {0};
        st_route_answer answer;
        *n = st_cluster_view(w->c, 0, NULL, 16, view);
        if (role == ST_ROLE_BOTH) {
            answer = st_route_plan_request(&w->policy, &a->request, view, *n, &plan);
        } else {
            bool full;
            int32_t i = st_route_decode(&w->policy, &a->request, view, *n, &full);
            answer = i >= 0 ? ST_ROUTE_GO : full ? ST_ROUTE_WAIT : ST_ROUTE_NOBODY;
            plan.decode = i >= 0 ? view[i].id : -1;
        }
        if (answer != ST_ROUTE_GO) {
            return answer;
        }
        const st_route_engine *p = by_id(view, *n, plan.prefill), *d = by_id(view, *n, plan.decode);
        bool split = p || role == ST_ROLE_DECODE;
        st_route_loads(&a->request, split ? (p ? p : d) : NULL, d, &at_prefill, &at_decode);
        if (p && !claim_one(w, p, &at_prefill, &a->prefill)) {
            continue;
        }
        if (d && !claim_one(w, d, &at_decode, &a->decode)) {
            give_back(w, &a->prefill);
            continue;
        }
        return ST_ROUTE_GO;
    }
}

static void runs(worker *w, automaton *a)
{
    a->state = a->prefill.engine >= 0 ? PREFILLS : DECODES;
    a->at_ns = st_now_ns() + below(&w->seed, 1500) * 1000;
}

static void try_or_wait(worker *w, automaton *a, uint8_t role)
{
    st_route_engine view[ST_CLUSTER_MAX_ENGINES];
    int32_t n = st_cluster_view(w->c, 0, NULL, 16, view);
    if (!st_cluster_must_wait(w->c, 0, role) &&
        place_request(w, a, role, view, &n) == ST_ROUTE_GO) {
        runs(w, a);
        return;
    }
    uint64_t now = st_now_ns();
    st_wait wait;
    st_wait_from_view(&wait, 0, role, &a->request, view, n, role == ST_ROLE_DECODE ? -1 : 0, now,
                      now + 20000 * MS);
    a->role = role;
    a->at_ns = wait.deadline_ns;
    a->state = WAITS;
    if (st_cluster_wait(w->c, w->row, &wait, a, &a->ticket, now) != ST_OK) {
        _exit(3);
    }
    atomic_fetch_add(&w->mine->waited, 1);
}

static void end(worker *w, automaton *a)
{
    give_back(w, &a->prefill);
    give_back(w, &a->decode);
    st_cluster_request_free(w->c, a->slot);
    a->slot = NULL;
    a->state = IDLE;
    a->at_ns = st_now_ns() + below(&w->seed, 500) * 1000;
}

static void begin(worker *w, automaton *a)
{
    if (atomic_load(&w->sh->stop)) {
        a->at_ns = UINT64_MAX;
        return;
    }
    a->slot = st_cluster_request_new(w->c, w->row, w->seed, 0, st_now_ns());
    if (!a->slot) {
        _exit(4);
    }
    a->request = (st_route_request){.prompt_tokens = 1 + (int64_t)below(&w->seed, PROMPT),
                                    .max_tokens = 10,
                                    .disaggregate = below(&w->seed, 4) > 0,
                                    .sticky = -1};
    try_or_wait(w, a, ST_ROLE_BOTH);
}

static void step(worker *w, automaton *a)
{
    switch (a->state) {
    case IDLE:
        begin(w, a);
        return;
    case WAITS: /* its deadline */
        st_cluster_wait_end(w->c, w->row, a->ticket, st_now_ns());
        atomic_fetch_add(&w->mine->timed_out, 1);
        end(w, a);
        return;
    case PREFILLS:
        give_back(w, &a->prefill);
        if (a->decode.engine >= 0) {
            runs(w, a);
        } else {
            try_or_wait(w, a, ST_ROLE_DECODE);
        }
        return;
    case DECODES: {
        if (below(&w->seed, 3)) { /* a token came */
            st_load more = a->decode.load;
            more.decode_tokens++;
            st_cluster_adjust(w->c, w->row, &a->decode, &more);
            a->at_ns = st_now_ns() + below(&w->seed, 300) * 1000;
            return;
        }
        atomic_fetch_add(&w->mine->served, 1);
        end(w, a);
        return;
    }
    }
}

static void woken(worker *w)
{
    char byte;
    uint32_t ticket;
    void *user;
    while (read(w->fd, &byte, 1) > 0) {
    }
    while (st_cluster_woken(w->c, w->row, &ticket, &user)) {
        automaton *a = user;
        st_route_engine view[ST_CLUSTER_MAX_ENGINES];
        int32_t n;
        if (a->state != WAITS || a->ticket != ticket) {
            _exit(5);
        }
        if (place_request(w, a, a->role, view, &n) == ST_ROUTE_GO) {
            st_cluster_wait_end(w->c, w->row, ticket, st_now_ns());
            runs(w, a);
        } else {
            st_cluster_wait_again(w->c, w->row, ticket);
        }
    }
    if (!atomic_load(&w->mine->leads) && st_cluster_lead(w->c, w->row)) {
        atomic_store(&w->mine->leads, 1);
    }
}

static void worker_main(st_cluster *c, shared *sh, int i, uint64_t seed)
{
    worker w = {.c = c, .sh = sh, .mine = &sh->workers[i], .seed = seed | 1};
    st_route_policy_default(&w.policy);
    w.policy.skip_prefill_tokens = 50;
    w.policy.mode = seed % 2 ? ST_MODE_PARALLEL : ST_MODE_SEQUENTIAL;
    st_cluster_set_policy(c, &w.policy, NULL);
    if (st_cluster_enter(c, &w.row, &w.fd, NULL) != ST_OK) {
        _exit(2);
    }
    int n = atomic_load(&sh->in_flight);
    for (int k = 0; k < n; k++) {
        w.a[k].prefill.engine = w.a[k].decode.engine = -1;
    }
    for (;;) {
        uint64_t now = st_now_ns(), next = now + 50 * MS;
        bool busy = false;
        woken(&w);
        for (int k = 0; k < n; k++) {
            if (w.a[k].at_ns <= now) {
                step(&w, &w.a[k]);
            }
            busy = busy || w.a[k].state != IDLE;
            next = w.a[k].at_ns < next ? w.a[k].at_ns : next;
        }
        if (!busy && atomic_load(&sh->stop)) {
            break;
        }
        now = st_now_ns();
        struct pollfd p = {.fd = w.fd, .events = POLLIN};
        struct timespec t = {.tv_nsec = next > now ? (long)(next - now) : 0};
        ppoll(&p, 1, &t, NULL);
    }
    atomic_store(&w.mine->leads, 0);
    st_cluster_unlead(c, w.row);
    st_cluster_leave(c, w.row);
    _exit(0);
}

/* ---- the observer ---- */

/* True when a quiet moment was caught and read. */
static bool observe(shared *sh)
{
    uint64_t changes[WORKERS];
    int64_t requests[ENGINES] = {0}, tokens[ENGINES] = {0};
    for (int i = 0; i < WORKERS; i++) {
        changes[i] = atomic_load(&sh->workers[i].changes);
        if (changes[i] % 2 && !atomic_load(&sh->workers[i].ignored)) {
            return false;
        }
    }
    for (int i = 0; i < WORKERS; i++) {
        for (int e = 0; e < ENGINES && !atomic_load(&sh->workers[i].ignored); e++) {
            requests[e] += atomic_load(&sh->workers[i].requests[e]);
            tokens[e] += atomic_load(&sh->workers[i].prefill_tokens[e]);
        }
    }
    for (int i = 0; i < WORKERS; i++) {
        if (atomic_load(&sh->workers[i].changes) != changes[i]) {
            return false;
        }
    }
    for (int e = 0; e < ENGINES; e++) {
        assert_in_range(requests[e], 0, engines[e].max_requests);
        if (engines[e].max_prefill_tokens && requests[e] > 1) {
            assert_in_range(tokens[e], 0, engines[e].max_prefill_tokens);
        }
    }
    return true;
}

static int leaders(shared *sh)
{
    int n = 0;
    for (int i = 0; i < WORKERS; i++) {
        n += !atomic_load(&sh->workers[i].ignored) && atomic_load(&sh->workers[i].leads);
    }
    return n;
}

/* ---- the supervisor ---- */

typedef struct stage {
    void *mem;
    size_t bytes;
    st_cluster *c;
    shared *sh;
    pid_t pids[WORKERS];
    uint64_t seed;
} stage;

static void spawn(stage *s, int i)
{
    uint64_t seed = below(&s->seed, UINT32_MAX) * 2654435761u + (uint64_t)i;
    ledger *l = &s->sh->workers[i];
    for (int e = 0; e < ENGINES; e++) {
        atomic_store(&l->requests[e], 0);
        atomic_store(&l->prefill_tokens[e], 0);
    }
    atomic_store(&l->leads, 0);
    atomic_store(&l->changes, (atomic_load(&l->changes) + 1) / 2 * 2);
    atomic_store(&l->ignored, 0);
    s->pids[i] = fork();
    if (s->pids[i] == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that is killed leaves nobody behind */
        worker_main(s->c, s->sh, i, seed);
    }
    assert_true(s->pids[i] > 0);
}

static void kill_one(stage *s, int i)
{
    int status;
    atomic_store(&s->sh->workers[i].ignored, 1);
    kill(s->pids[i], SIGKILL);
    assert_int_equal(waitpid(s->pids[i], &status, 0), s->pids[i]);
    if (!WIFSIGNALED(status)) {
        fail_msg("a worker ended by itself with %d", WEXITSTATUS(status));
    }
}

static void up(stage *s)
{
    for (int e = 0; e < ENGINES; e++) {
        int32_t id = st_cluster_engine_find(s->c, engines[e].address);
        if (id >= 0) {
            atomic_store(&st_cluster_engine(s->c, id)->kv_tokens, 2000);
            st_cluster_set_health(s->c, id, ST_HEALTH_UP, st_now_ns());
        }
    }
}

static void reload(stage *s)
{
    st_cluster *after;
    st_error err;
    st_cluster_spec spec = {.name = "crash",
                            .engines = engines,
                            .n_engines = ENGINES - below(&s->seed, 2),
                            .max_requests_in_flight = 256,
                            .queue_size = 64};
    if (st_cluster_reload(s->mem, s->bytes, &spec, &after, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    st_cluster_free(s->c);
    s->c = after;
    up(s);
}

static void open_stage(stage *s, int in_flight)
{
    st_error err;
    st_cluster_spec spec = {.name = "crash",
                            .engines = engines,
                            .n_engines = ENGINES,
                            .max_requests_in_flight = 256,
                            .queue_size = 64};
    s->bytes = st_cluster_bytes(&spec, 1000, 100);
    s->mem = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    s->sh = mmap(NULL, sizeof *s->sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(s->mem != MAP_FAILED && s->sh != MAP_FAILED);
    if (st_cluster_init(s->mem, s->bytes, 1000, 100, &spec, &s->c, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    atomic_store(&s->sh->in_flight, in_flight);
    up(s);
    for (int i = 0; i < WORKERS; i++) {
        spawn(s, i);
    }
}

/* Lets everybody finish and checks that nothing is left. */
static void close_stage(stage *s, const char *what)
{
    uint64_t served = 0, timed_out = 0, waited = 0;
    atomic_store(&s->sh->stop, 1);
    for (int i = 0; i < WORKERS; i++) {
        int status = -1;
        for (int ms = 0; waitpid(s->pids[i], &status, WNOHANG) == 0; ms++) {
            usleep(1000);
            if (ms == 40000) {
                kill(s->pids[i], SIGKILL);
            }
        }
        assert_int_equal(status, 0);
        served += atomic_load(&s->sh->workers[i].served);
        timed_out += atomic_load(&s->sh->workers[i].timed_out);
        waited += atomic_load(&s->sh->workers[i].waited);
    }
    st_cluster_counts n, zero = {0};
    st_cluster_metrics *m = st_cluster_get_metrics(s->c);
    print_message(
        "%s: %lu served, %lu of them waited, %lu timed out, %lu workers reaped, %lu races "
        "lost\n",
        what, (unsigned long)served, (unsigned long)waited, (unsigned long)timed_out,
        (unsigned long)atomic_load(&m->workers_reaped), (unsigned long)atomic_load(&m->races_lost));
    st_cluster_get_counts(s->c, &n);
    assert_memory_equal(&n, &zero, sizeof n);
    assert_int_equal(timed_out, 0);
    assert_true(served > 10);
    for (size_t i = 0; st_cluster_request_at(s->c, i); i++) {
        assert_int_equal(atomic_load(&st_cluster_request_at(s->c, i)->row_and_state), 0);
    }
    st_cluster_free(s->c);
    munmap(s->mem, s->bytes);
    munmap(s->sh, sizeof *s->sh);
}

static void observe_for(stage *s, uint64_t ns, int *observed)
{
    uint64_t until = st_now_ns() + ns;
    do {
        *observed += observe(s->sh);
        usleep(20);
    } while (st_now_ns() < until);
}

static void killed_at_random(void **state)
{
    stage s = {.seed = 20240607};
    int observed = 0, kills = 0;
    open_stage(&s, IN_FLIGHT);
    uint64_t until = st_now_ns() + 4000 * MS;
    while (st_now_ns() < until) {
        observe_for(&s, below(&s.seed, 8) * MS, &observed);
        int i = (int)below(&s.seed, WORKERS);
        kill_one(&s, i);
        kills++;
        observe_for(&s, below(&s.seed, 2) * MS, &observed);
        spawn(&s, i);
    }
    print_message("%d kills, %d observations\n", kills, observed);
    assert_true(observed > 100);
    close_stage(&s, "killed at random");
}

static void reloaded_under_load(void **state)
{
    stage s = {.seed = 777};
    int observed = 0;
    open_stage(&s, 3);
    uint64_t until = st_now_ns() + 2000 * MS;
    while (st_now_ns() < until) {
        observe_for(&s, below(&s.seed, 20) * MS, &observed);
        reload(&s);
        int i = (int)below(&s.seed, WORKERS); /* one with the new configuration, in place of one */
        kill_one(&s, i);
        spawn(&s, i);
    }
    close_stage(&s, "reloaded under load");
}

/* Every time the last ones finish, nothing happens any more that could make up for a wake-up that
 * was lost. */
static void many_times_to_the_end(void **state)
{
    for (int round = 0; round < 20; round++) {
        stage s = {.seed = 99 + (uint64_t)round};
        int observed = 0;
        open_stage(&s, 1 + round % IN_FLIGHT);
        observe_for(&s, 60 * MS, &observed);
        close_stage(&s, "to the end");
    }
}

static void the_lead_passes_on(void **state)
{
    stage s = {.seed = 5};
    open_stage(&s, 1);
    for (int round = 0; round < 50; round++) {
        uint64_t until = st_now_ns() + 20000 * MS;
        while (leaders(s.sh) == 0 && st_now_ns() < until) {
            usleep(100);
        }
        assert_int_equal(leaders(s.sh), 1);
        for (int i = 0; i < WORKERS; i++) {
            if (atomic_load(&s.sh->workers[i].leads)) {
                kill_one(&s, i);
                spawn(&s, i);
            }
        }
    }
    close_stage(&s, "the lead passes on");
}

/* ---- one death at a time ---- */

/* One engine with room for one; the row is the parent's. */
typedef struct duel {
    void *mem;
    size_t bytes;
    st_cluster *c;
    int row, fd;
    _Atomic int *ready;
} duel;

static void open_duel(duel *d)
{
    static const st_engine_spec one = {"a:1", "a", 0, ST_ROLE_BOTH, 1, 1, 1, 0, false};
    st_cluster_spec spec = {.name = "duel", .engines = &one, .n_engines = 1};
    st_error err;
    d->bytes = st_cluster_bytes(&spec, 100, 10);
    d->mem = mmap(NULL, d->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    d->ready = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(d->mem != MAP_FAILED && (void *)d->ready != MAP_FAILED);
    assert_int_equal(st_cluster_init(d->mem, d->bytes, 100, 10, &spec, &d->c, &err), ST_OK);
    st_cluster_set_health(d->c, 0, ST_HEALTH_UP, st_now_ns());
    assert_int_equal(st_cluster_enter(d->c, &d->row, &d->fd, &err), ST_OK);
}

static void close_duel(duel *d)
{
    st_cluster_counts n, zero = {0};
    st_cluster_leave(d->c, d->row);
    st_cluster_get_counts(d->c, &n);
    assert_memory_equal(&n, &zero, sizeof n);
    st_cluster_free(d->c);
    munmap(d->mem, d->bytes);
    munmap((void *)d->ready, 4096);
}

static bool is_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static bool claim_the_one(st_cluster *c, int row)
{
    st_route_engine view[ST_CLUSTER_MAX_ENGINES];
    st_claim claim = {.engine = 0, .load = {.requests = 1, .decode_requests = 1}};
    return st_cluster_view(c, 0, NULL, 16, view) == 1 && view[0].load.requests == 0 &&
           st_cluster_claim(c, row, &view[0], &claim);
}

static uint32_t queue_up(st_cluster *c, int row, void *user)
{
    uint32_t ticket;
    st_wait w;
    st_route_request r = {.prompt_tokens = 10, .sticky = -1};
    st_wait_from_view(&w, 0, ST_ROLE_BOTH, &r, NULL, 0, 0, st_now_ns(), 0);
    assert_int_equal(st_cluster_wait(c, row, &w, user, &ticket, st_now_ns()), ST_OK);
    return ticket;
}

/* A child with a row that has a claim, a request and a place in the queue; or is only chosen. */
static pid_t child_that(duel *d, bool claims)
{
    pid_t pid = fork();
    if (pid == 0) {
        int row, fd;
        if (st_cluster_enter(d->c, &row, &fd, NULL) != ST_OK ||
            (claims && !claim_the_one(d->c, row)) ||
            !st_cluster_request_new(d->c, row, 1, 0, st_now_ns())) {
            _exit(1);
        }
        (void)queue_up(d->c, row, NULL);
        (void)st_cluster_lead(d->c, row);
        atomic_store(d->ready, 1);
        for (;;) {
            pause();
        }
    }
    while (!atomic_load(d->ready)) {
        usleep(100);
    }
    return pid;
}

static void the_dead_give_back(void **state)
{
    for (int claims = 0; claims < 2; claims++) {
        duel d;
        int status, mark;
        uint32_t got;
        void *user;
        open_duel(&d);
        pid_t pid = child_that(&d, claims);
        uint32_t ticket = queue_up(d.c, d.row, &mark);
        assert_false(st_cluster_woken(d.c, d.row, &got, &user));
        assert_false(st_cluster_lead(d.c, d.row));
        assert_int_equal(st_cluster_reap(d.c), 0);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        while (is_readable(d.fd)) {
            char byte;
            assert_int_equal(read(d.fd, &byte, 1), 1);
        }
        assert_int_equal(st_cluster_reap(d.c), 1);
        assert_true(is_readable(d.fd));
        assert_true(st_cluster_woken(d.c, d.row, &got, &user));
        assert_int_equal(got, ticket);
        assert_ptr_equal(user, &mark);
        assert_true(st_cluster_lead(d.c, d.row));
        st_cluster_wait_end(d.c, d.row, ticket, st_now_ns());
        close_duel(&d);
    }
}

/* Who pumps dies between choosing and telling, with its flag left behind: the next one tells. */
static void a_pump_that_died(void **state)
{
    duel d;
    int status;
    uint32_t got;
    void *user;
    open_duel(&d);
    pid_t pid = fork();
    if (pid == 0) {
        atomic_store(&d.c->region->pump_holder, st_identity_self() << 8 | 1);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    atomic_store(&d.c->rows[d.row].wake_pending, 1);
    uint32_t ticket = queue_up(d.c, d.row, NULL);
    assert_true(is_readable(d.fd));
    assert_true(st_cluster_woken(d.c, d.row, &got, &user));
    assert_int_equal(got, ticket);
    assert_int_equal(atomic_load(&d.c->region->pump_holder), 0);
    st_cluster_wait_end(d.c, d.row, ticket, st_now_ns());
    close_duel(&d);
}

/* A claim that is taken back may have made the engine look full for a moment. */
static void a_lost_race_wakes(void **state)
{
    duel d;
    uint32_t got;
    void *user;
    st_route_engine old[ST_CLUSTER_MAX_ENGINES];
    open_duel(&d);
    assert_int_equal(st_cluster_view(d.c, 0, NULL, 16, old), 1);
    assert_true(claim_the_one(d.c, d.row));
    st_claim first = {.engine = 0, .load = {.requests = 1, .decode_requests = 1}}, late = first;
    st_cluster_release(d.c, d.row, &first, st_now_ns());
    uint32_t ticket = queue_up(d.c, d.row, NULL);
    assert_true(st_cluster_woken(d.c, d.row, &got, &user));
    st_cluster_wait_again(d.c, d.row, ticket);
    assert_false(st_cluster_woken(d.c, d.row, &got, &user));
    assert_false(st_cluster_claim(d.c, d.row, &old[0], &late));
    assert_true(st_cluster_woken(d.c, d.row, &got, &user));
    st_cluster_wait_end(d.c, d.row, ticket, st_now_ns());
    close_duel(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_dead_give_back),  cmocka_unit_test(a_pump_that_died),
        cmocka_unit_test(a_lost_race_wakes),   cmocka_unit_test(killed_at_random),
        cmocka_unit_test(reloaded_under_load), cmocka_unit_test(many_times_to_the_end),
        cmocka_unit_test(the_lead_passes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
