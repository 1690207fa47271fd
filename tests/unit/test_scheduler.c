/* src/engine/scheduler.c: the policy by hand, and as a random simulation whose invariants are
 * checked in every step. */
#include "cmocka_all.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/scheduler.h"

static const st_sched_limits small = {.max_tokens = 16, .max_seqs = 8, .block_size = 4};

static st_sched_seq seq(int32_t n_tokens, int32_t n_computed, uint64_t arrival)
{
    return (st_sched_seq){.n_tokens = n_tokens,
                          .n_computed = n_computed,
                          .n_blocks = st_sched_blocks(n_computed, 4),
                          .arrival = arrival};
}

static void decode_comes_first_then_prompts_share_the_rest(void **state)
{
    (void)state;
    st_sched_seq s[] = {seq(100, 0, 1), seq(9, 8, 2), seq(30, 20, 3), seq(5, 4, 4)};
    int32_t chunk[4];
    st_sched_plan plan = st_sched_running(&small, s, 4, 100, chunk);
    assert_int_equal(plan.victim, -1);
    assert_int_equal(chunk[1], 1);
    assert_int_equal(chunk[3], 1);
    assert_int_equal(chunk[0], 14);
    assert_int_equal(chunk[2], 0);
    assert_int_equal(plan.tokens_left, 0);
    st_sched_limits fair = small;
    fair.max_chunk = 6;
    plan = st_sched_running(&fair, s, 4, 100, chunk);
    assert_int_equal(chunk[0], 6);
    assert_int_equal(chunk[2], 6);
    assert_int_equal(plan.tokens_left, 2);
}

static void the_last_in_rank_gives_its_blocks(void **state)
{
    (void)state;
    /* Both decode and need a block, there is one. */
    st_sched_seq s[] = {seq(9, 8, 5), seq(13, 12, 2)};
    int32_t chunk[2];
    assert_int_equal(st_sched_running(&small, s, 2, 1, chunk).victim, 0);
    s[1].priority = 1; /* less urgent than the later one */
    assert_int_equal(st_sched_running(&small, s, 2, 1, chunk).victim, 1);
    assert_int_equal(st_sched_running(&small, s, 2, 2, chunk).victim, -1);
}

static void a_prompt_without_blocks_waits_or_preempts(void **state)
{
    (void)state;
    st_sched_seq s[] = {seq(10, 9, 1), seq(40, 8, 2)};
    int32_t chunk[2];
    st_sched_plan plan = st_sched_running(&small, s, 2, 0, chunk);
    assert_int_equal(plan.victim, -1);
    assert_int_equal(chunk[0], 1);
    assert_int_equal(chunk[1], 0);
    plan = st_sched_running(&small, s, 2, 2, chunk);
    assert_int_equal(chunk[1], 8); /* as much as two blocks hold */
    s[0].arrival = 3;
    assert_int_equal(st_sched_running(&small, s, 2, 0, chunk).victim, 0);
}

static void admission_keeps_room_for_those_who_run(void **state)
{
    (void)state;
    st_sched_candidate c = {.n_tokens = 20};
    st_sched_room room = {.n_running = 1, .tokens_left = 10, .free_blocks = 6, .reserved = 1};
    int32_t chunk = 0;
    assert_int_equal(st_sched_admit(&small, &room, &c, &chunk), ST_SCHED_ADMIT);
    assert_int_equal(chunk, 10);
    room.reserved = 2;
    assert_int_equal(st_sched_admit(&small, &room, &c, &chunk), ST_SCHED_STOP);
    c.n_cached = 4;
    assert_int_equal(st_sched_admit(&small, &room, &c, &chunk), ST_SCHED_ADMIT);
    room.n_running = 0; /* nobody runs: nothing is reserved */
    room.reserved = 100;
    assert_int_equal(st_sched_admit(&small, &room, &c, &chunk), ST_SCHED_ADMIT);
    c.prefix_is_being_computed = true;
    assert_int_equal(st_sched_admit(&small, &room, &c, &chunk), ST_SCHED_SKIP);
    c.prefix_is_being_computed = false;
    room.tokens_left = 0;
    assert_int_equal(st_sched_admit(&small, &room, &c, &chunk), ST_SCHED_STOP);
    room.tokens_left = 1;
    room.n_running = 8;
    assert_int_equal(st_sched_admit(&small, &room, &c, &chunk), ST_SCHED_STOP);
}

static void reservation_counts_what_prompts_lack(void **state)
{
    (void)state;
    st_sched_seq s[] = {seq(9, 8, 1), seq(40, 8, 2)};
    assert_int_equal(st_sched_reserved(&small, s, 2), (1 + 1) + (8 + 1));
    assert_int_equal(st_sched_reserved(&small, s, 0), 0);
}

/* ---- simulation ---- */

#define SIM_SEQS 60

typedef struct sim_seq {
    st_sched_seq s;
    int32_t ends; /* n_tokens at which it is done */
    bool running, done;
} sim_seq;

typedef struct sim {
    st_sched_limits limits;
    int32_t total_blocks, free_blocks;
    sim_seq seqs[SIM_SEQS];
    int order[SIM_SEQS], n_running;
    int n_done, preemptions;
    uint64_t rng;
} sim;

static int32_t rnd(sim *m, int32_t n)
{
    m->rng = m->rng * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((uint32_t)(m->rng >> 33) % (uint32_t)n);
}

static void sim_stop(sim *m, int at)
{
    sim_seq *q = &m->seqs[m->order[at]];
    m->free_blocks += q->s.n_blocks;
    q->s.n_blocks = q->s.n_computed = 0;
    q->running = false;
    memmove(&m->order[at], &m->order[at + 1], (size_t)(m->n_running - at - 1) * sizeof *m->order);
    m->n_running--;
}

static void sim_take(sim *m, sim_seq *q, int32_t chunk)
{
    int32_t need = st_sched_blocks(q->s.n_computed + chunk, m->limits.block_size) - q->s.n_blocks;
    assert_true(need <= m->free_blocks);
    if (need > 0) {
        m->free_blocks -= need;
        q->s.n_blocks += need;
    }
}

static int sim_next_waiting(const sim *m)
{
    int best = -1;
    for (int i = 0; i < SIM_SEQS; i++)
        if (!m->seqs[i].running && !m->seqs[i].done &&
            (best < 0 || st_sched_before(&m->seqs[i].s, &m->seqs[best].s)))
            best = i;
    return best;
}

/* Plans one step like the engine does; chunks by index of sequence. */
static void sim_plan(sim *m, int32_t chunks[SIM_SEQS])
{
    st_sched_seq view[SIM_SEQS];
    int32_t chunk[SIM_SEQS];
    st_sched_plan plan;
    for (;;) {
        for (int i = 0; i < m->n_running; i++)
            view[i] = m->seqs[m->order[i]].s;
        plan = st_sched_running(&m->limits, view, m->n_running, m->free_blocks, chunk);
        if (plan.victim < 0)
            break;
        for (int i = 0; i < m->n_running; i++)
            assert_false(st_sched_before(&view[plan.victim], &view[i]) && i != plan.victim);
        sim_stop(m, plan.victim);
        m->preemptions++;
    }
    for (int i = 0; i < m->n_running; i++) {
        chunks[m->order[i]] = chunk[i];
        if (view[i].n_tokens - view[i].n_computed == 1)
            assert_int_equal(chunk[i], 1); /* nobody who decodes skips a step */
        sim_take(m, &m->seqs[m->order[i]], chunk[i]);
    }
    for (int w; (w = sim_next_waiting(m)) >= 0;) {
        for (int i = 0; i < m->n_running; i++) {
            view[i] = m->seqs[m->order[i]].s;
            view[i].n_computed += chunks[m->order[i]];
        }
        st_sched_room room = {.n_running = m->n_running,
                              .tokens_left = plan.tokens_left,
                              .free_blocks = m->free_blocks,
                              .reserved = st_sched_reserved(&m->limits, view, m->n_running)};
        st_sched_candidate c = {.n_tokens = m->seqs[w].s.n_tokens};
        int32_t n;
        if (st_sched_admit(&m->limits, &room, &c, &n) != ST_SCHED_ADMIT)
            break;
        assert_true(n > 0);
        m->seqs[w].running = true;
        m->order[m->n_running++] = w;
        chunks[w] = n;
        plan.tokens_left -= n;
        sim_take(m, &m->seqs[w], n);
    }
}

static void sim_step(sim *m)
{
    int32_t chunks[SIM_SEQS] = {0}, tokens = 0;
    sim_plan(m, chunks);
    assert_true(m->n_running <= m->limits.max_seqs);
    for (int i = m->n_running - 1; i >= 0; i--) {
        sim_seq *q = &m->seqs[m->order[i]];
        int32_t n = chunks[m->order[i]];
        tokens += n;
        if (m->limits.max_chunk)
            assert_true(n <= m->limits.max_chunk);
        q->s.n_computed += n;
        assert_true(q->s.n_computed <= q->s.n_blocks * m->limits.block_size);
        assert_true(q->s.n_computed <= q->s.n_tokens);
        if (q->s.n_computed == q->s.n_tokens && ++q->s.n_tokens >= q->ends) {
            q->done = true;
            m->n_done++;
            sim_stop(m, i);
        }
    }
    assert_true(tokens <= m->limits.max_tokens);
    assert_true(tokens > 0); /* every step gets something done */
}

static void simulate(uint64_t seed, int *preemptions)
{
    sim *m = calloc(1, sizeof *m);
    m->rng = seed;
    m->limits.max_seqs = 1 + rnd(m, 12);
    m->limits.max_tokens = m->limits.max_seqs + rnd(m, 40);
    m->limits.max_chunk = rnd(m, 2) ? 1 + rnd(m, 20) : 0;
    m->limits.block_size = 1 + rnd(m, 8);
    m->total_blocks = m->free_blocks = 1 + rnd(m, 60);
    int32_t rows = m->total_blocks * m->limits.block_size;
    for (int i = 0; i < SIM_SEQS; i++) {
        int32_t prompt = 1 + rnd(m, rows);
        m->seqs[i].s =
            (st_sched_seq){.n_tokens = prompt, .priority = rnd(m, 3), .arrival = (uint64_t)i};
        m->seqs[i].ends = prompt + 1 + rnd(m, rows - prompt + 1);
        if (m->seqs[i].ends > rows)
            m->seqs[i].ends = rows;
    }
    int steps = 0;
    while (m->n_done < SIM_SEQS) {
        sim_step(m);
        assert_true(++steps < 2000000);
    }
    assert_int_equal(m->free_blocks, m->total_blocks);
    *preemptions += m->preemptions;
    free(m);
}

static void random_loads_always_finish(void **state)
{
    (void)state;
    const char *fixed = getenv("STARLING_TEST_SEED");
    uint64_t seed = fixed ? strtoull(fixed, NULL, 0) : (uint64_t)time(NULL);
    print_message("STARLING_TEST_SEED=%llu\n", (unsigned long long)seed);
    int preemptions = 0;
    for (uint64_t i = 0; i < 200; i++)
        simulate(seed + i, &preemptions);
    assert_true(preemptions > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_comes_first_then_prompts_share_the_rest),
        cmocka_unit_test(the_last_in_rank_gives_its_blocks),
        cmocka_unit_test(a_prompt_without_blocks_waits_or_preempts),
        cmocka_unit_test(admission_keeps_room_for_those_who_run),
        cmocka_unit_test(reservation_counts_what_prompts_lack),
        cmocka_unit_test(random_loads_always_finish),
    };
    return cmocka_run_group_tests_name("scheduler", tests, NULL, NULL);
}
