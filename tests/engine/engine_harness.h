/* What the engine's integration tests share: the lexicon, a workload with known prompts, and
 * recorders that collect a request's events from the engine's thread. */
#ifndef ST_TESTS_ENGINE_HARNESS_H
#define ST_TESTS_ENGINE_HARNESS_H

#include "cmocka_all.h"

#include "starling/engine.h"

/* TSan makes everything ten times slower: there fewer combinations must do. */
#if defined(__SANITIZE_THREAD__)
#define SLOW_BUILD 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SLOW_BUILD 1
#endif
#endif
#ifndef SLOW_BUILD
#define SLOW_BUILD 0
#endif

#define MAX_EVENTS 2100
#define N_WORKLOAD (SLOW_BUILD ? 16 : 32)

/* Everything a request sent back. Written on the engine's thread, read after recorder_wait. */
typedef struct recorder {
    uint64_t id;
    int32_t n;
    int32_t tokens[MAX_EVENTS];
    float logprobs[MAX_EVENTS];
    float top_sums[MAX_EVENTS]; /* of the top logprobs */
    uint64_t steps[MAX_EVENTS];
    int32_t prompt_tokens, cached_tokens, generated_tokens;
    uint64_t submitted_ns, scheduled_ns, last_ns;
    st_finish finish;
    int n_final; /* must end as 1 */
    char error[256];
    int32_t offered[160], n_offered; /* the blocks that an offer's last event names */
    int32_t notify_at;               /* recorder_wait_tokens */
    int32_t hold_at;                 /* submit_held; 0: nowhere */
} recorder;

/* A prompt of tests/vectors/lexicon/golden/prompts.json. */
typedef struct golden {
    int32_t prompt[64], greedy[64], int8_greedy[64];
    int32_t n_prompt, n_greedy, n_int8_greedy;
} golden;

#define N_GOLDEN 8
extern golden goldens[N_GOLDEN];

/* Loads what is missing; call first. STARLING_SOURCE_ROOT names the repository. */
void harness_init(void);
/* The folder of "int8" or "bf16". */
void harness_lexicon(const char *name, char *dir, size_t size);
/* "int8", "bf16" or another folder; loaded once per (name, threads) and kept. */
st_model *harness_model(const char *name, int n_threads);
void harness_free(void);

st_engine *make_engine(st_model *m, const st_engine_options *o);
/* Frees the engine after checking that no block is in use. */
void free_engine(st_engine *e);

/* Request i of the workload: golden prompt i / 4, sampled in one of four ways (0: greedy). */
st_request workload(int i);
st_request greedy_request(const int32_t *prompt, int32_t n, int32_t max_tokens);

void submit(st_engine *e, const st_request *r, recorder *rec);
/* The same, and the engine's thread waits in the callback of the n-th token until recorder_release:
 * what the test does meanwhile comes in time, however slow the machine is. */
void submit_held(st_engine *e, const st_request *r, recorder *rec, int32_t n);
/* Lets the engine go on, to the next_n-th token (0: to the end). */
void recorder_release(recorder *rec, int32_t next_n);
void recorder_wait(recorder *rec);
/* Returns when rec has at least n tokens or its final event. */
void recorder_wait_tokens(recorder *rec, int32_t n);
/* The same bits: tokens, logprobs and how it ended. */
void assert_same(const recorder *a, const recorder *b);

/* Submits the workload `at_once` requests at a time and waits for all. */
void run_workload(st_engine *e, int at_once, recorder *out);

/* A prompt of n tokens made of golden text; `kind` varies the beginning. */
void long_prompt(int32_t *out, int32_t n, int kind);

#endif
