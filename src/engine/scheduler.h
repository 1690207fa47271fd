/* The scheduling policy as pure functions: numbers in, decision out. No clock, no I/O, no memory
 * of its own; the engine, the simulator and the tests call the same code.
 *
 * One step is planned in two parts. st_sched_running gives every running request that decodes its
 * one token and then divides what is left of the token budget among prompts that are partly
 * computed. Then st_sched_admit is asked for one waiting request after the other whether it may
 * start in this step, and with how many tokens.
 *
 * Invariants: max_seqs <= max_tokens, so decoding requests never compete for the budget and every
 * step leaves at least one token for each unfinished prompt that runs. A decoding request is never
 * left out of a step. When KV blocks run out the lowest in rank gives its blocks back. */
#ifndef ST_ENGINE_SCHEDULER_H
#define ST_ENGINE_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

typedef struct st_sched_limits {
    int32_t max_tokens; /* of one step */
    int32_t max_seqs;   /* running at once, <= max_tokens */
    int32_t max_chunk;  /* tokens of one prompt in one step; 0: no limit of its own */
    int32_t block_size;
} st_sched_limits;

/* A running request. n_tokens counts prompt and generated tokens, of which n_computed have their
 * KV; one missing: it decodes; more: its prompt (or what preemption took) is being computed. */
typedef struct st_sched_seq {
    int32_t n_tokens, n_computed, n_blocks;
    int32_t priority; /* lower is more urgent */
    uint64_t arrival; /* unique; breaks ties */
} st_sched_seq;

typedef struct st_sched_plan {
    int32_t victim; /* >= 0: preempt this one and plan again; nothing else here is valid then */
    int32_t tokens_left;
} st_sched_plan;

/* True when a comes before b: it is served first and preempted last. */
bool st_sched_before(const st_sched_seq *a, const st_sched_seq *b);

/* Blocks that n_tokens rows of KV take. */
int32_t st_sched_blocks(int32_t n_tokens, int32_t block_size);

/* Plans seqs[0..n), in the order in which they were admitted, with free_blocks blocks to give:
 * chunk[i] = tokens of seqs[i] in this step (0: none). */
st_sched_plan st_sched_running(const st_sched_limits *limits, const st_sched_seq *seqs, int32_t n,
                               int32_t free_blocks, int32_t *chunk);

/* Blocks that the running requests are expected to take soon: the rest of prompts that are being
 * computed and one block of growth each. Newcomers must leave them alone. */
int32_t st_sched_reserved(const st_sched_limits *limits, const st_sched_seq *seqs, int32_t n);

typedef struct st_sched_candidate {
    int32_t n_tokens; /* to compute, the cached ones included */
    int32_t n_cached; /* of these, found in the prefix cache (a multiple of block_size) */
    bool prefix_is_being_computed; /* its next block is part of a running request's prompt */
} st_sched_candidate;

typedef struct st_sched_room {
    int32_t n_running;
    int32_t tokens_left;
    int32_t free_blocks; /* without those the candidate found in the cache */
    int32_t reserved;
} st_sched_room;

typedef enum st_sched_answer {
    ST_SCHED_ADMIT,
    ST_SCHED_SKIP, /* not this one now, but ask for the next */
    ST_SCHED_STOP  /* nobody else may start in this step */
} st_sched_answer;

/* May the candidate start? On ADMIT *chunk is how many tokens of it to compute in this step. */
st_sched_answer st_sched_admit(const st_sched_limits *limits, const st_sched_room *room,
                               const st_sched_candidate *c, int32_t *chunk);

#endif
