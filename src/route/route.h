/* Where a request goes and when: pure functions. Structs in, decision out; no clock, no I/O, no
 * memory of their own, nothing global. The gateway, the tests and (later) the simulator call the
 * same code.
 *
 * A decision is made from a view: an array of engines as they are known now. Loads in it are sums
 * over all gateway workers; the caller commits with st_cluster_claim and asks again with a fresh
 * view when it lost a race. */
#ifndef ST_ROUTE_ROUTE_H
#define ST_ROUTE_ROUTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum st_engine_role {
    ST_ROLE_PREFILL = 1,
    ST_ROLE_DECODE = 2,
    ST_ROLE_BOTH = 3 /* does whole requests, or either part */
} st_engine_role;

typedef enum st_engine_health {
    ST_HEALTH_UNKNOWN, /* not asked yet: not used until it answers */
    ST_HEALTH_UP,
    ST_HEALTH_DOWN,    /* does not answer its health check, or the breaker is open */
    ST_HEALTH_DRAINING /* leaves: finishes what it has */
} st_engine_health;

/* What is in flight at an engine, of all workers together. */
typedef struct st_load {
    int32_t requests; /* any part */
    int32_t prefill_requests;
    int64_t prefill_tokens; /* to be computed: prompts less what was matched */
    int32_t decode_requests;
    int64_t decode_tokens; /* KV of its own: prompt less what was matched there, + generated */
} st_load;

typedef struct st_route_engine {
    int32_t id; /* slot in the cluster */
    uint8_t role, health;
    uint16_t pool;
    /* limits; 0: none */
    int32_t max_requests;
    int64_t max_prefill_tokens; /* queued at once; a single longer prompt may still go to an idle
                                   engine */
    int64_t kv_tokens;          /* capacity of its KV memory in tokens; 0: unknown */
    st_load load;
    /* what the engine says itself (metrics), with the requests that are not ours in it */
    int32_t reported_running, reported_waiting; /* -1: unknown */
    float kv_usage;                             /* 0..1; < 0: unknown */
    float prefill_tokens_per_s;                 /* measured; 0: unknown */
    float decode_ms_per_token;                  /* measured; 0: unknown */
    uint32_t matched_tokens; /* of this request's prompt: its longest known prefix there */
    bool excluded;           /* tried for this request already */
    uint64_t version;        /* for the claim */
} st_route_engine;

typedef struct st_route_request {
    int64_t prompt_tokens;
    int64_t max_tokens; /* generated at most; -1: unknown */
    bool disaggregate;  /* the API allows it: one prompt, one choice */
    int32_t sticky;     /* engine that served this conversation's last turn, or -1 */
} st_route_request;

typedef enum st_handoff_mode { ST_MODE_SEQUENTIAL, ST_MODE_PARALLEL } st_handoff_mode;

typedef struct st_route_policy {
    st_handoff_mode mode;
    int64_t skip_prefill_tokens; /* fewer tokens left to compute than this go straight to decode */
    /* choosing a prefill engine: the least of (queued + own uncached tokens) / speed; matches count
     * through the tokens they save, so load outweighs affinity by itself */
    float match_weight; /* 1: a matched token saves a token; 0: ignore matches */
    /* ordering */
    float order_length_weight; /* 0.8: the rest is waiting time */
    uint32_t starvation_ms;    /* who waits longer goes first, oldest first; 0: 5,000 */
    float kv_high_water;       /* no decode where usage is above; 0: 0.95 */
} st_route_policy;

void st_route_policy_default(st_route_policy *p);

typedef enum st_route_answer {
    ST_ROUTE_GO,    /* plan is filled */
    ST_ROUTE_WAIT,  /* engines are up but all are full: queue */
    ST_ROUTE_NOBODY /* no engine of the needed role is up: wait for one, or 503 */
} st_route_answer;

typedef struct st_route_plan {
    int32_t prefill; /* engine id, or -1: decode does it all */
    int32_t decode;  /* engine id; sequential mode: -1 when it is to be chosen after prefill */
    int64_t prefill_tokens; /* to be computed by prefill (or decode when prefill < 0) */
} st_route_plan;

/* Index into engines of the best engine for prefill, or -1. *somebody_is_full (may be NULL): an
 * engine of the role is up, but full.
 * Costs that differ by less than a sixteenth are a tie: the sticky engine has it, else the one
 * whose last claim is longest ago (the smallest version). */
int32_t st_route_prefill(const st_route_policy *p, const st_route_request *r,
                         const st_route_engine *engines, int32_t n, bool *somebody_is_full);
int32_t st_route_decode(const st_route_policy *p, const st_route_request *r,
                        const st_route_engine *engines, int32_t n, bool *somebody_is_full);

/* The whole plan for a request whose prompt is known. engines: those that serve its model.
 *
 *   decode alone    the decode engine's match leaves fewer than skip_prefill_tokens; or the request
 *                   is not to be split; or every engine does both; or the engines for prefill are
 *                   all down (or tried already)
 *   prefill only    sequential mode: decode is chosen with st_route_decode when prefill is done;
 *                   goes ahead only while some decode engine has room, so that finished prompts do
 *                   not pile up on the prefill side
 *   both            parallel mode; when one engine is the best for both it does the whole */
st_route_answer st_route_plan_request(const st_route_policy *p, const st_route_request *r,
                                      const st_route_engine *engines, int32_t n,
                                      st_route_plan *plan);

/* What the request adds to the engines of a plan: the loads to claim. prefill NULL: decode does it
 * all; decode NULL: only prefill is claimed now. Either output may be NULL. */
void st_route_loads(const st_route_request *r, const st_route_engine *prefill,
                    const st_route_engine *decode, st_load *at_prefill, st_load *at_decode);

/* ---- order ----
 *
 * The lowest priority number first. Among equals whoever waited longer than starvation_ms, the
 * oldest first; else the greatest
 *     a (Tmax - T) / Tmax + (1 - a) W / max(Wmax, 50 ms)
 * with T tokens left, W time waited, a = order_length_weight. Ties: the older, the lower index. */

typedef struct st_route_waiting {
    int64_t tokens;    /* left to compute after the match */
    uint64_t since_ns; /* when it began to wait */
    int64_t priority;  /* lower first */
} st_route_waiting;

/* Index of who goes next among n > 0. */
int32_t st_route_next(const st_route_policy *p, const st_route_waiting *w, int32_t n,
                      uint64_t now_ns);
/* Waited so long that nobody of its priority may overtake it any more. */
bool st_route_starved(const st_route_policy *p, const st_route_waiting *w, uint64_t now_ns);

/* ---- breaker ----
 *
 *   closed --broken_to_open BROKEN in a row--> open --pause over, OK--> closed
 *
 * While the pause lasts outcomes of requests that were already there change nothing. A BROKEN after
 * it opens again for twice as long, also when an OK closed it between: only an OK while it is
 * closed ends the doubling, so an engine that answers health checks but breaks requests is asked
 * ever more seldom. */

typedef enum st_outcome {
    ST_OUTCOME_OK,    /* an answer came, or at least its first byte */
    ST_OUTCOME_BUSY,  /* 429 or 503: load; never opens the breaker */
    ST_OUTCOME_SLOW,  /* gave up waiting for the first token: load, too */
    ST_OUTCOME_BROKEN /* refused, reset, garbage, 500, cut short */
} st_outcome;

typedef struct st_breaker {
    uint16_t broken;        /* in a row, without an OK between them */
    uint16_t opened;        /* times in a row: the pause doubles */
    uint64_t open_until_ns; /* 0: closed */
} st_breaker;

typedef struct st_breaker_policy {
    uint16_t broken_to_open;         /* 3 */
    uint32_t pause_ms, max_pause_ms; /* 500, 30,000 */
} st_breaker_policy;

st_breaker st_breaker_after(const st_breaker_policy *p, st_breaker b, st_outcome o,
                            uint64_t now_ns);
/* open: nobody may; half open (the pause is over): one health check decides. */
bool st_breaker_open(const st_breaker *b);
void st_breaker_policy_default(st_breaker_policy *p);

/* ---- rate limit: token bucket ---- */

typedef struct st_bucket {
    double tokens;
    uint64_t at_ns;
} st_bucket;
/* Takes cost if there is as much; else false and *wait_ms until there will be. */
bool st_bucket_take(st_bucket *b, double rate_per_s, double burst, double cost, uint64_t now_ns,
                    uint32_t *wait_ms);

#endif
