/* The scheduling policy: see scheduler.h. */
#include "engine/scheduler.h"

static int32_t min_i32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

bool st_sched_before(const st_sched_seq *a, const st_sched_seq *b)
{
    if (a->priority != b->priority)
        return a->priority < b->priority;
    return a->arrival < b->arrival;
}

int32_t st_sched_blocks(int32_t n_tokens, int32_t block_size)
{
    return n_tokens / block_size + (n_tokens % block_size != 0);
}

/* Blocks that seq lacks for its next n tokens. */
static int32_t lacking(const st_sched_limits *limits, const st_sched_seq *seq, int32_t n)
{
    int32_t need = st_sched_blocks(seq->n_computed + n, limits->block_size) - seq->n_blocks;
    return need > 0 ? need : 0;
}

static int32_t last_in_rank(const st_sched_seq *seqs, int32_t n)
{
    int32_t last = 0;
    for (int32_t i = 1; i < n; i++)
        if (st_sched_before(&seqs[last], &seqs[i]))
            last = i;
    return last;
}

/* Tokens of a prompt that fit into the budget and into the blocks. */
static int32_t chunk_that_fits(const st_sched_limits *limits, const st_sched_seq *seq,
                               int32_t tokens_left, int32_t free_blocks)
{
    int32_t chunk = min_i32(seq->n_tokens - seq->n_computed, tokens_left);
    if (limits->max_chunk > 0)
        chunk = min_i32(chunk, limits->max_chunk);
    int64_t rows = ((int64_t)seq->n_blocks + free_blocks) * limits->block_size - seq->n_computed;
    return rows < chunk ? (int32_t)rows : chunk;
}

st_sched_plan st_sched_running(const st_sched_limits *limits, const st_sched_seq *seqs, int32_t n,
                               int32_t free_blocks, int32_t *chunk)
{
    st_sched_plan plan = {.victim = -1, .tokens_left = limits->max_tokens};
    for (int32_t i = 0; i < n; i++) {
        chunk[i] = 0;
        if (seqs[i].n_tokens - seqs[i].n_computed != 1)
            continue;
        int32_t need = lacking(limits, &seqs[i], 1);
        if (need > free_blocks) {
            plan.victim = last_in_rank(seqs, n);
            return plan;
        }
        free_blocks -= need;
        plan.tokens_left--;
        chunk[i] = 1;
    }
    for (int32_t i = 0; i < n && plan.tokens_left > 0; i++) {
        if (chunk[i] > 0)
            continue;
        chunk[i] = chunk_that_fits(limits, &seqs[i], plan.tokens_left, free_blocks);
        if (chunk[i] == 0) {
            /* No block for a single token. The last in rank waits for others to finish, anyone
             * else takes the blocks of the last: so somebody always gets on. */
            int32_t last = last_in_rank(seqs, n);
            if (last == i)
                continue;
            plan.victim = last;
            return plan;
        }
        free_blocks -= lacking(limits, &seqs[i], chunk[i]);
        plan.tokens_left -= chunk[i];
    }
    return plan;
}

int32_t st_sched_reserved(const st_sched_limits *limits, const st_sched_seq *seqs, int32_t n)
{
    int32_t total = 0;
    for (int32_t i = 0; i < n; i++)
        total += lacking(limits, &seqs[i], seqs[i].n_tokens - seqs[i].n_computed) + 1;
    return total;
}

st_sched_answer st_sched_admit(const st_sched_limits *limits, const st_sched_room *room,
                               const st_sched_candidate *c, int32_t *chunk)
{
    if (room->n_running >= limits->max_seqs || room->tokens_left <= 0)
        return ST_SCHED_STOP;
    /* Waiting costs it nothing: the running prompt goes first in every step, and what it computes
     * the candidate will find in the cache. */
    if (c->prefix_is_being_computed)
        return ST_SCHED_SKIP;
    st_sched_seq seq = {.n_tokens = c->n_tokens,
                        .n_computed = c->n_cached,
                        .n_blocks = c->n_cached / limits->block_size};
    /* Its whole prompt must find room beside what the running ones will need, or it would soon be
     * preempted again. Later ones must not overtake it for being smaller: it would starve. */
    int32_t need = lacking(limits, &seq, c->n_tokens - c->n_cached);
    int32_t reserved = room->n_running > 0 ? room->reserved : 0;
    if (need > room->free_blocks - reserved)
        return ST_SCHED_STOP;
    *chunk = chunk_that_fits(limits, &seq, room->tokens_left, room->free_blocks);
    return ST_SCHED_ADMIT;
}
