/* The routing policies: tables of situations, properties over random views, and a simulated queue.
 */
#include "cmocka_all.h"

#include <stdio.h>
#include <string.h>

#include "route/route.h"

#define MS UINT64_C(1000000)

static uint64_t random_state = 1;

static uint64_t random_below(uint64_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % n;
}

static st_route_policy policy(st_handoff_mode mode)
{
    st_route_policy p;
    st_route_policy_default(&p);
    p.mode = mode;
    return p;
}

static st_route_engine engine(int32_t id, st_engine_role role)
{
    return (st_route_engine){.id = id,
                             .role = (uint8_t)role,
                             .health = ST_HEALTH_UP,
                             .reported_running = -1,
                             .reported_waiting = -1,
                             .kv_usage = -1};
}

static st_route_request request(int64_t prompt)
{
    return (st_route_request){
        .prompt_tokens = prompt, .max_tokens = 100, .disaggregate = true, .sticky = -1};
}

/* Two for prefill (0, 1), two for decode (2, 3). */
static void split_cluster(st_route_engine e[4])
{
    for (int32_t i = 0; i < 4; i++) {
        e[i] = engine(i, i < 2 ? ST_ROLE_PREFILL : ST_ROLE_DECODE);
    }
}

/* ---- the plan: situations ---- */

typedef struct plan_case {
    const char *name;
    st_handoff_mode mode;
    int64_t prompt;
    bool whole; /* the request may not be split */
    st_engine_health health[4];
    uint32_t matched[4];
    int32_t requests[4], max_requests; /* of every engine */
    bool excluded[4];
    st_route_answer answer;
    int32_t prefill, decode; /* -2: either of the role */
    int64_t tokens;
} plan_case;

#define UP4                                                                                        \
    {                                                                                              \
        ST_HEALTH_UP, ST_HEALTH_UP, ST_HEALTH_UP, ST_HEALTH_UP                                     \
    }
#define PDOWN                                                                                      \
    {                                                                                              \
        ST_HEALTH_DOWN, ST_HEALTH_DOWN, ST_HEALTH_UP, ST_HEALTH_UP                                 \
    }
#define DDOWN                                                                                      \
    {                                                                                              \
        ST_HEALTH_UP, ST_HEALTH_UP, ST_HEALTH_DOWN, ST_HEALTH_DRAINING                             \
    }

static const plan_case plan_cases[] = {
    {"sequential: prefill first", ST_MODE_SEQUENTIAL, 1000, .health = UP4, .answer = ST_ROUTE_GO,
     .prefill = -2, .decode = -1, .tokens = 1000},
    {"parallel: both at once", ST_MODE_PARALLEL, 1000, .health = UP4, .answer = ST_ROUTE_GO,
     .prefill = -2, .decode = -2, .tokens = 1000},
    {"short prompt: decode alone", ST_MODE_SEQUENTIAL, 255, .health = UP4, .answer = ST_ROUTE_GO,
     .prefill = -1, .decode = -2, .tokens = 255},
    {"256 tokens are not short", ST_MODE_SEQUENTIAL, 256, .health = UP4, .answer = ST_ROUTE_GO,
     .prefill = -2, .decode = -1, .tokens = 256},
    {"decode holds the prefix", ST_MODE_SEQUENTIAL, 5000, .health = UP4, .matched = {0, 0, 0, 4900},
     .answer = ST_ROUTE_GO, .prefill = -1, .decode = 3, .tokens = 100},
    {"decode holds some of it", ST_MODE_PARALLEL, 5000, .health = UP4, .matched = {0, 0, 0, 4000},
     .answer = ST_ROUTE_GO, .prefill = -2, .decode = 3, .tokens = 5000},
    {"prefill with the match", ST_MODE_SEQUENTIAL, 5000, .health = UP4, .matched = {0, 3000},
     .answer = ST_ROUTE_GO, .prefill = 1, .decode = -1, .tokens = 2000},
    {"several choices: decode alone", ST_MODE_PARALLEL, 5000, .whole = true, .health = UP4,
     .answer = ST_ROUTE_GO, .prefill = -1, .decode = -2, .tokens = 5000},
    {"prefill is down", ST_MODE_SEQUENTIAL, 5000, .health = PDOWN, .answer = ST_ROUTE_GO,
     .prefill = -1, .decode = -2, .tokens = 5000},
    {"prefill was tried", ST_MODE_SEQUENTIAL, 5000, .health = UP4, .excluded = {true, true},
     .answer = ST_ROUTE_GO, .prefill = -1, .decode = -2, .tokens = 5000},
    {"one was tried", ST_MODE_PARALLEL, 5000, .health = UP4, .excluded = {true, false, false, true},
     .answer = ST_ROUTE_GO, .prefill = 1, .decode = 2, .tokens = 5000},
    {"decode is down", ST_MODE_SEQUENTIAL, 5000, .health = DDOWN, .answer = ST_ROUTE_NOBODY},
    {"prefill is full", ST_MODE_SEQUENTIAL, 5000, .health = UP4, .requests = {4, 4, 0, 0},
     .max_requests = 4, .answer = ST_ROUTE_WAIT},
    {"decode is full", ST_MODE_SEQUENTIAL, 5000, .health = UP4, .requests = {0, 0, 4, 4},
     .max_requests = 4, .answer = ST_ROUTE_WAIT},
    {"prefill is full, prompt short", ST_MODE_SEQUENTIAL, 50, .health = UP4,
     .requests = {4, 4, 0, 4}, .max_requests = 4, .answer = ST_ROUTE_GO, .prefill = -1, .decode = 2,
     .tokens = 50},
    {"the match is at a full one", ST_MODE_SEQUENTIAL, 5000, .health = UP4, .matched = {0, 4000},
     .requests = {0, 4, 0, 0}, .max_requests = 4, .answer = ST_ROUTE_GO, .prefill = 0, .decode = -1,
     .tokens = 5000},
    {"one down, the others full", ST_MODE_PARALLEL, 5000,
     .health = {ST_HEALTH_DOWN, ST_HEALTH_UP, ST_HEALTH_UP, ST_HEALTH_UNKNOWN},
     .requests = {0, 4, 4, 0}, .max_requests = 4, .answer = ST_ROUTE_WAIT},
};

static void plans(void **state)
{
    for (size_t c = 0; c < sizeof plan_cases / sizeof *plan_cases; c++) {
        const plan_case *t = &plan_cases[c];
        st_route_engine e[4];
        split_cluster(e);
        for (int i = 0; i < 4; i++) {
            e[i].health = (uint8_t)t->health[i];
            e[i].matched_tokens = t->matched[i];
            e[i].load.requests = t->requests[i];
            e[i].max_requests = t->max_requests;
            e[i].excluded = t->excluded[i];
        }
        st_route_policy p = policy(t->mode);
        st_route_request r = request(t->prompt);
        r.disaggregate = !t->whole;
        st_route_plan plan;
        st_route_answer a = st_route_plan_request(&p, &r, e, 4, &plan);
        print_message("%s\n", t->name);
        assert_int_equal(a, t->answer);
        if (a != ST_ROUTE_GO) {
            continue;
        }
        assert_true(t->prefill == plan.prefill ||
                    (t->prefill == -2 && (plan.prefill == 0 || plan.prefill == 1)));
        assert_true(t->decode == plan.decode ||
                    (t->decode == -2 && (plan.decode == 2 || plan.decode == 3)));
        assert_int_equal(plan.prefill_tokens, t->tokens);
    }
}

static void engines_that_do_both(void **state)
{
    st_route_policy p = policy(ST_MODE_PARALLEL);
    st_route_request r = request(5000);
    st_route_engine e[3] = {engine(7, ST_ROLE_BOTH), engine(8, ST_ROLE_BOTH),
                            engine(9, ST_ROLE_PREFILL)};
    st_route_plan plan;
    /* A pool without disaggregation: prefix-aware, one engine does it all. */
    e[1].matched_tokens = 3000;
    assert_int_equal(st_route_plan_request(&p, &r, e, 2, &plan), ST_ROUTE_GO);
    assert_int_equal(plan.prefill, -1);
    assert_int_equal(plan.decode, 8);
    assert_int_equal(plan.prefill_tokens, 2000);
    /* With an engine for prefill beside: the two that do both decode, or prefill. */
    assert_int_equal(st_route_plan_request(&p, &r, e, 3, &plan), ST_ROUTE_GO);
    assert_int_equal(plan.decode, 8);
    assert_int_equal(plan.prefill, -1); /* the best for either part is the same: no transfer */
    e[1].load.prefill_tokens = 100000;
    e[0].load.prefill_tokens = 100000;
    assert_int_equal(st_route_plan_request(&p, &r, e, 3, &plan), ST_ROUTE_GO);
    assert_int_equal(plan.prefill, 9);
    assert_int_equal(plan.decode, 8);
    /* Nobody at all. */
    assert_int_equal(st_route_plan_request(&p, &r, e, 0, &plan), ST_ROUTE_NOBODY);
}

/* ---- prefill: queue and speed against affinity ---- */

static void load_outweighs_affinity(void **state)
{
    st_route_policy p = policy(ST_MODE_SEQUENTIAL);
    st_route_request r = request(5000);
    st_route_engine e[4];
    split_cluster(e);
    e[0].matched_tokens = 4000; /* hot: saves 4,000 tokens */
    e[0].load.prefill_tokens = 3000;
    assert_int_equal(st_route_prefill(&p, &r, e, 4, NULL), 0);
    e[0].load.prefill_tokens = 5000; /* its queue is longer than what it saves */
    assert_int_equal(st_route_prefill(&p, &r, e, 4, NULL), 1);
    p.match_weight = 0;
    e[0].load.prefill_tokens = 1000;
    assert_int_equal(st_route_prefill(&p, &r, e, 4, NULL), 1);
}

static void speed_counts(void **state)
{
    st_route_policy p = policy(ST_MODE_SEQUENTIAL);
    st_route_request r = request(1000);
    st_route_engine e[4];
    split_cluster(e);
    e[0].prefill_tokens_per_s = 1000;
    e[1].prefill_tokens_per_s = 4000;
    e[1].load.prefill_tokens = 2000; /* 3,000 / 4,000 against 1,000 / 1,000 */
    assert_int_equal(st_route_prefill(&p, &r, e, 4, NULL), 1);
    e[1].load.prefill_tokens = 4000;
    assert_int_equal(st_route_prefill(&p, &r, e, 4, NULL), 0);
}

/* Many requests with one long common prefix: the hot engine takes more, but not all of them. */
static void no_death_spiral(void **state)
{
    for (int both = 0; both < 2; both++) {
        st_route_policy p = policy(ST_MODE_SEQUENTIAL);
        st_route_request r = request(2100);
        st_route_engine e[4];
        int taken[4] = {0};
        for (int i = 0; i < 4; i++) {
            e[i] = engine(i, both ? ST_ROLE_BOTH : ST_ROLE_PREFILL);
        }
        e[0].matched_tokens = 2000;
        for (int k = 0; k < 400; k++) {
            st_route_plan plan;
            int32_t at = st_route_prefill(&p, &r, e, 4, NULL);
            if (both) {
                assert_int_equal(st_route_plan_request(&p, &r, e, 4, &plan), ST_ROUTE_GO);
                at = plan.decode;
            }
            st_load add = {0};
            st_route_loads(&r, both ? NULL : &e[at], both ? &e[at] : NULL, &add, &add);
            e[at].load.requests += add.requests;
            e[at].load.prefill_tokens += add.prefill_tokens;
            e[at].load.decode_requests += add.decode_requests;
            e[at].load.decode_tokens += add.decode_tokens;
            e[at].version = (uint64_t)k + 1;
            taken[at]++;
        }
        assert_in_range(taken[0], 110, 390);
        for (int i = 1; i < 4; i++) {
            assert_true(taken[i] > 3);
        }
    }
}

static void ties_go_round(void **state)
{
    st_route_policy p = policy(ST_MODE_PARALLEL);
    st_route_request r = request(1000);
    st_route_engine e[8];
    int taken[8] = {0};
    for (int i = 0; i < 8; i++) {
        e[i] = engine(i, i < 4 ? ST_ROLE_PREFILL : ST_ROLE_DECODE);
    }
    for (uint64_t k = 1; k <= 40; k++) { /* one at a time: every engine is idle each time */
        st_route_plan plan;
        assert_int_equal(st_route_plan_request(&p, &r, e, 8, &plan), ST_ROUTE_GO);
        taken[plan.prefill]++;
        taken[plan.decode]++;
        e[plan.prefill].version = e[plan.decode].version = k;
    }
    for (int i = 0; i < 8; i++) {
        assert_int_equal(taken[i], 10);
    }
    r.sticky = 6; /* where the conversation was before, other things being equal */
    for (int k = 0; k < 3; k++) {
        int32_t at = st_route_decode(&p, &r, e, 8, NULL);
        assert_int_equal(at, 6);
        e[at].version += 100;
    }
    e[6].load.decode_requests = 20;
    assert_int_not_equal(st_route_decode(&p, &r, e, 8, NULL), 6);
}

/* ---- decode: headroom ---- */

static void decode_headroom(void **state)
{
    st_route_policy p = policy(ST_MODE_PARALLEL);
    st_route_request r = request(1000);
    st_route_engine e[4];
    bool full;
    split_cluster(e);
    e[2].kv_tokens = e[3].kv_tokens = 10000;
    e[2].load = (st_load){.requests = 4, .decode_requests = 4, .decode_tokens = 8000};
    e[3].load = (st_load){.requests = 4, .decode_requests = 4, .decode_tokens = 4000};
    assert_int_equal(st_route_decode(&p, &r, e, 4, &full), 3);
    assert_false(full);
    /* 9,000 + 1,000 is above 95% of 10,000. */
    e[2].load.decode_tokens = e[3].load.decode_tokens = 9000;
    assert_int_equal(st_route_decode(&p, &r, e, 4, &full), -1);
    assert_true(full);
    e[2].matched_tokens = 600; /* shared with what is there: 400 fit */
    assert_int_equal(st_route_decode(&p, &r, e, 4, &full), 2);
    /* The engine's own report counts, too: others may use it. */
    e[2].load.decode_tokens = 1000;
    e[2].kv_usage = 0.97f;
    assert_int_equal(st_route_decode(&p, &r, e, 4, &full), -1);
    e[2].kv_usage = 0.2f;
    assert_int_equal(st_route_decode(&p, &r, e, 4, &full), 2);
    /* A request that is longer than the whole memory goes to an idle engine, which refuses it. */
    r.prompt_tokens = 50000;
    e[3].load = (st_load){0};
    e[3].kv_usage = 0.99f; /* an old report of what has ended */
    assert_int_equal(st_route_decode(&p, &r, e, 4, &full), 3);
    /* The same use is less headroom on a smaller engine. */
    r.prompt_tokens = 100;
    e[2] = e[3] = engine(2, ST_ROLE_DECODE);
    e[3].id = 3;
    e[2].kv_tokens = 100000;
    e[3].kv_tokens = 10000;
    e[2].load = e[3].load = (st_load){.requests = 2, .decode_requests = 2, .decode_tokens = 5000};
    assert_int_equal(st_route_decode(&p, &r, e, 4, &full), 2);
}

static void prefill_token_limit(void **state)
{
    st_route_policy p = policy(ST_MODE_SEQUENTIAL);
    st_route_request r = request(5000);
    st_route_engine e[4];
    bool full;
    split_cluster(e);
    e[0].max_prefill_tokens = e[1].max_prefill_tokens = 4096;
    e[0].load.prefill_tokens = 1;
    assert_int_equal(st_route_prefill(&p, &r, e, 4, &full), 1); /* longer, but that one is idle */
    e[1].load.prefill_tokens = 1;
    assert_int_equal(st_route_prefill(&p, &r, e, 4, &full), -1);
    assert_true(full);
    e[0].matched_tokens = 905; /* 4,095 + 1 */
    assert_int_equal(st_route_prefill(&p, &r, e, 4, &full), 0);
    e[0].matched_tokens = 904;
    assert_int_equal(st_route_prefill(&p, &r, e, 4, &full), -1);
}

/* ---- properties ---- */

static st_route_engine random_engine(int32_t id)
{
    static const st_engine_role roles[] = {ST_ROLE_PREFILL, ST_ROLE_DECODE, ST_ROLE_BOTH};
    st_route_engine e = engine(id, roles[random_below(3)]);
    e.health = random_below(4) ? ST_HEALTH_UP : (uint8_t)random_below(4);
    e.excluded = random_below(8) == 0;
    e.max_requests = random_below(2) ? (int32_t)random_below(8) : 0;
    e.max_prefill_tokens = random_below(2) ? (int64_t)random_below(8000) : 0;
    e.kv_tokens = random_below(2) ? 1000 + (int64_t)random_below(50000) : 0;
    e.load.prefill_requests = (int32_t)random_below(4);
    e.load.decode_requests = (int32_t)random_below(6);
    e.load.requests = e.load.prefill_requests + e.load.decode_requests;
    e.load.prefill_tokens = e.load.prefill_requests * (int64_t)random_below(3000);
    e.load.decode_tokens = e.load.decode_requests * (int64_t)random_below(6000);
    e.reported_running = (int32_t)random_below(5) - 1;
    e.reported_waiting = (int32_t)random_below(5) - 1;
    e.kv_usage = random_below(3) ? (float)random_below(100) / 100 : -1;
    e.prefill_tokens_per_s = (float)random_below(3) * 1000;
    e.decode_ms_per_token = (float)random_below(3) * 10;
    e.matched_tokens = random_below(2) ? (uint32_t)random_below(4000) : 0;
    e.version = random_below(10);
    return e;
}

static int64_t uncached(const st_route_request *r, const st_route_engine *e)
{
    return r->prompt_tokens > e->matched_tokens ? r->prompt_tokens - e->matched_tokens : 0;
}

/* The limits once more, in the test's own words. */
static bool may(const st_route_policy *p, const st_route_request *r, const st_route_engine *e,
                bool prefill, bool decode)
{
    if (e->health != ST_HEALTH_UP || e->excluded || (prefill && !decode && !(e->role & 1)) ||
        (decode && !(e->role & 2)) || (e->max_requests && e->load.requests >= e->max_requests)) {
        return false;
    }
    if (prefill && e->max_prefill_tokens && e->load.prefill_tokens > 0 &&
        e->load.prefill_tokens + uncached(r, e) > e->max_prefill_tokens) {
        return false;
    }
    if (decode && e->kv_tokens && e->load.decode_requests > 0 &&
        (double)(e->load.decode_tokens + uncached(r, e)) >
            (double)p->kv_high_water * (double)e->kv_tokens) {
        return false;
    }
    return !(decode && e->kv_usage > p->kv_high_water &&
             (e->load.requests > 0 || e->reported_running > 0 || e->reported_waiting > 0));
}

static void never_a_wrong_engine(void **state)
{
    st_route_engine e[12];
    int answers[3] = {0};
    for (int round = 0; round < 200000; round++) {
        random_state = 88172645463325252u + (uint64_t)round * 7919;
        int32_t n = (int32_t)random_below(12) + 1;
        for (int32_t i = 0; i < n; i++) {
            e[i] = random_engine(i);
        }
        st_route_policy p = policy(random_below(2) ? ST_MODE_PARALLEL : ST_MODE_SEQUENTIAL);
        st_route_request r = request((int64_t)random_below(6000));
        r.disaggregate = random_below(4) > 0;
        r.sticky = (int32_t)random_below(13) - 1;
        st_route_plan plan;
        st_route_answer a = st_route_plan_request(&p, &r, e, n, &plan);
        answers[a]++;
        bool somebody = false, up = false;
        for (int32_t i = 0; i < n; i++) {
            somebody = somebody || may(&p, &r, &e[i], true, true);
            up = up || (e[i].health == ST_HEALTH_UP && !e[i].excluded && (e[i].role & 2));
        }
        if (a == ST_ROUTE_GO) {
            if (plan.prefill >= 0) {
                assert_true(may(&p, &r, &e[plan.prefill], true, false));
                assert_true(p.mode == ST_MODE_PARALLEL ? plan.decode >= 0 : plan.decode == -1);
            }
            if (plan.decode >= 0) {
                assert_true(may(&p, &r, &e[plan.decode], plan.prefill < 0, true));
            }
            assert_true(plan.prefill >= 0 || plan.decode >= 0);
            assert_int_not_equal(plan.prefill, plan.decode);
        } else {
            assert_int_equal(a == ST_ROUTE_WAIT, up);
            assert_false(somebody && !r.disaggregate);
        }
    }
    for (int i = 0; i < 3; i++) {
        assert_true(answers[i] > 1000); /* the random views reach every answer */
    }
}

/* Another's growing load or shrinking match never draws a request to it; the chosen one's falling
 * load or deeper match never drives it away. */
static void monotonic(void **state)
{
    st_route_engine e[8];
    for (int round = 0; round < 100000; round++) {
        random_state = 0x9E3779B97F4A7C15u + (uint64_t)round * 104729;
        int32_t n = (int32_t)random_below(7) + 2;
        for (int32_t i = 0; i < n; i++) {
            e[i] = random_engine(i);
            e[i].role = ST_ROLE_BOTH;
            /* Ours are among the reported ones, so these do not add up when ours grow. */
            e[i].reported_running = e[i].reported_waiting = -1;
        }
        st_route_policy p = policy(ST_MODE_SEQUENTIAL);
        st_route_request r = request((int64_t)random_below(6000));
        r.disaggregate = false;
        st_route_plan before, after;
        if (st_route_plan_request(&p, &r, e, n, &before) != ST_ROUTE_GO) {
            continue;
        }
        int32_t at = (int32_t)random_below((uint64_t)n);
        if (at != before.decode) {
            e[at].load.requests += 2;
            e[at].load.prefill_tokens += (int64_t)random_below(2000);
            e[at].load.decode_requests += (int32_t)random_below(3);
            e[at].load.decode_tokens += (int64_t)random_below(2000);
            e[at].matched_tokens /= 2;
            if (e[at].load.prefill_tokens == 0) {
                continue;
            }
            assert_int_equal(st_route_plan_request(&p, &r, e, n, &after), ST_ROUTE_GO);
            assert_int_not_equal(after.decode, at);
        } else {
            e[at].load.prefill_tokens /= 2;
            e[at].load.decode_tokens /= 2;
            e[at].matched_tokens += (uint32_t)random_below(1000);
            assert_int_equal(st_route_plan_request(&p, &r, e, n, &after), ST_ROUTE_GO);
            assert_int_equal(after.decode, at);
        }
    }
}

/* ---- order ---- */

static void order(void **state)
{
    st_route_policy p = policy(ST_MODE_SEQUENTIAL);
    uint64_t now = 100000 * MS;
    st_route_waiting w[3] = {{1000, now - 10 * MS, 0}, {100, now - 10 * MS, 0}, {500, now, 0}};
    assert_int_equal(st_route_next(&p, w, 3, now), 1); /* the shortest */
    w[0].since_ns = now - 40 * MS;
    w[1].tokens = 990; /* 0.2 x 10/50 + 0.008 against 0.2 x 40/50 */
    assert_int_equal(st_route_next(&p, w, 2, now), 0);
    w[2].priority = -1;
    assert_int_equal(st_route_next(&p, w, 3, now), 2);
    w[2].priority = 1;
    w[2].since_ns = 0; /* however long: it is of lower rank */
    assert_int_equal(st_route_next(&p, w, 3, now), 0);
    st_route_waiting s[3] = {
        {50000, now - 5001 * MS, 0}, {1, now - 10 * MS, 0}, {60000, now - 6000 * MS, 0}};
    assert_int_equal(st_route_next(&p, s, 3, now), 2); /* who starves, the oldest first */
    assert_true(st_route_starved(&p, &s[0], now));
    assert_false(st_route_starved(&p, &s[1], now));
    st_route_waiting z[2] = {{0, now + 5, 0}, {0, now + 4, 0}}; /* a clock read later than ours */
    assert_int_equal(st_route_next(&p, z, 2, now), 1);
}

/* One server of 1,000 tokens a second, offered more than it can do for a while: everybody is
 * served, and nobody overtakes one who starves. */
static void nobody_starves(void **state)
{
    enum { TOTAL = 3000, ROOM = 512 };
    static st_route_waiting w[ROOM];
    st_route_policy p = policy(ST_MODE_SEQUENTIAL);
    random_state = 424242;
    uint64_t now = 1000 * MS, worst = 0, next_arrival = now;
    int32_t n = 0, arrived = 0, served = 0;
    while (served < TOTAL) {
        while (arrived < TOTAL && n < ROOM && next_arrival <= now) {
            int64_t tokens = random_below(10) ? (int64_t)random_below(100) : 5000;
            w[n++] = (st_route_waiting){tokens + 1, next_arrival, 0};
            next_arrival += random_below(arrived < 200 ? 10 : 1200) * MS;
            arrived++;
        }
        if (n == 0) {
            now = next_arrival;
            continue;
        }
        int32_t i = st_route_next(&p, w, n, now);
        for (int32_t k = 0; k < n; k++) {
            if (st_route_starved(&p, &w[k], now)) {
                assert_true(w[i].since_ns <= w[k].since_ns);
            }
        }
        uint64_t waited = now - w[i].since_ns;
        worst = waited > worst ? waited : worst;
        now += (uint64_t)w[i].tokens * MS;
        w[i] = w[--n];
        served++;
    }
    assert_true(worst < 600000 * MS); /* about what it takes to work off the first burst */
}

/* ---- breaker ---- */

static void breaker(void **state)
{
    st_breaker_policy p;
    st_breaker_policy_default(&p);
    st_breaker b = {0};
    uint64_t t = 1;
    for (int i = 0; i < 100; i++) { /* load alone never opens it */
        b = st_breaker_after(&p, b, i % 2 ? ST_OUTCOME_BUSY : ST_OUTCOME_SLOW, t);
    }
    assert_false(st_breaker_open(&b));
    b = st_breaker_after(&p, b, ST_OUTCOME_BROKEN, t);
    b = st_breaker_after(&p, b, ST_OUTCOME_BROKEN, t);
    b = st_breaker_after(&p, b, ST_OUTCOME_OK, t); /* not in a row */
    b = st_breaker_after(&p, b, ST_OUTCOME_BROKEN, t);
    b = st_breaker_after(&p, b, ST_OUTCOME_BROKEN, t);
    assert_false(st_breaker_open(&b));
    b = st_breaker_after(&p, b, ST_OUTCOME_BUSY, t);
    b = st_breaker_after(&p, b, ST_OUTCOME_BROKEN, t);
    assert_true(st_breaker_open(&b));
    assert_int_equal(b.open_until_ns, t + 500 * MS);
    /* Those that were under way change nothing. */
    st_breaker same = st_breaker_after(&p, b, ST_OUTCOME_BROKEN, t + 100 * MS);
    assert_int_equal(same.open_until_ns, b.open_until_ns);
    assert_int_equal(same.opened, b.opened);
    same = st_breaker_after(&p, b, ST_OUTCOME_OK, t + 100 * MS);
    assert_true(st_breaker_open(&same));
    /* Health checks fail: twice as long each time, up to 30 s. */
    uint64_t pause = 500;
    for (int i = 0; i < 20; i++) {
        t = b.open_until_ns;
        b = st_breaker_after(&p, b, ST_OUTCOME_BROKEN, t);
        pause = pause * 2 < 30000 ? pause * 2 : 30000;
        assert_int_equal(b.open_until_ns - t, pause * MS);
    }
    /* It answers the check, but breaks requests again: the pause stays long. */
    t = b.open_until_ns;
    b = st_breaker_after(&p, b, ST_OUTCOME_OK, t);
    assert_false(st_breaker_open(&b));
    for (int i = 0; i < 3; i++) {
        b = st_breaker_after(&p, b, ST_OUTCOME_BROKEN, t);
    }
    assert_int_equal(b.open_until_ns - t, 30000 * MS);
    /* A request that goes well ends that. */
    t = b.open_until_ns;
    b = st_breaker_after(&p, b, ST_OUTCOME_OK, t);
    b = st_breaker_after(&p, b, ST_OUTCOME_OK, t);
    for (int i = 0; i < 3; i++) {
        b = st_breaker_after(&p, b, ST_OUTCOME_BROKEN, t);
    }
    assert_int_equal(b.open_until_ns - t, 500 * MS);
}

/* ---- rate ---- */

static void bucket(void **state)
{
    uint64_t t = 1000 * MS;
    st_bucket b = {.tokens = 5, .at_ns = t};
    uint32_t wait;
    for (int i = 0; i < 5; i++) {
        assert_true(st_bucket_take(&b, 10, 5, 1, t, &wait));
    }
    assert_false(st_bucket_take(&b, 10, 5, 1, t, &wait));
    assert_in_range(wait, 100, 101);
    assert_false(st_bucket_take(&b, 10, 5, 1, t + 99 * MS, &wait));
    assert_in_range(wait, 1, 2);
    assert_true(st_bucket_take(&b, 10, 5, 1, t + 101 * MS, &wait));
    assert_int_equal(wait, 0);
    int taken = 0; /* an hour later: a burst, no more */
    while (st_bucket_take(&b, 10, 5, 1, t + 3600000 * MS, &wait)) {
        taken++;
    }
    assert_int_equal(taken, 5);
    assert_false(st_bucket_take(&b, 10, 5, 6, t + 7200000 * MS, &wait)); /* never */
    assert_int_equal(wait, 1000000000);
    assert_true(
        st_bucket_take(&b, 10, 5, 1, t, &wait)); /* a clock read earlier takes nothing away */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans),
        cmocka_unit_test(engines_that_do_both),
        cmocka_unit_test(load_outweighs_affinity),
        cmocka_unit_test(speed_counts),
        cmocka_unit_test(no_death_spiral),
        cmocka_unit_test(ties_go_round),
        cmocka_unit_test(decode_headroom),
        cmocka_unit_test(prefill_token_limit),
        cmocka_unit_test(never_a_wrong_engine),
        cmocka_unit_test(monotonic),
        cmocka_unit_test(order),
        cmocka_unit_test(nobody_starves),
        cmocka_unit_test(breaker),
        cmocka_unit_test(bucket),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
