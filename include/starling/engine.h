/* The engine: runs many requests on one model by continuous batching.
 *
 * One thread owns model, KV blocks and scheduler and runs steps: each step takes every decoding
 * request's next token plus chunks of waiting prompts up to a token budget. Requests come in
 * (st_engine_submit) and are cancelled from any thread; results leave through the request's
 * callback on the engine's thread. The engine speaks token ids only: text, stop strings and JSON
 * belong to its callers.
 *
 * Same request, same bits: a request's tokens depend on its own prompt, sampling and seed, never
 * on what else runs, how its prompt was chunked, whether its prefix was cached or whether it was
 * preempted. */
#ifndef STARLING_ENGINE_H
#define STARLING_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "starling/model.h"
#include "starling/status.h"

/* Moving KV blocks to and from other engines. */
typedef struct st_kv_transfer_options {
    bool enabled;
    const char *host;   /* to listen on, numeric: "127.0.0.1", "::", ... */
    uint16_t port;      /* 0: any free one */
    int32_t lease_ms;   /* how long a prefilled prompt waits for its decoder; 0: 30,000 */
    bool fail_on_error; /* a fetch that fails ends the request; else the prompt is computed here */
} st_kv_transfer_options;

/* Publishing KV events (events/event_publisher.h). */
typedef struct st_kv_events_options {
    bool enabled;
    const char *host;           /* to bind: "*", "127.0.0.1", ... */
    uint16_t port, replay_port; /* 0: any free one */
    const char *topic;
    int32_t buffer_batches; /* 0: 10,000 */
    bool arrays;            /* the older encoding of events */
} st_kv_events_options;

typedef struct st_engine_options {
    int32_t max_num_batched_tokens; /* per step; 0: 512; never above the model's limit */
    int32_t max_num_seqs;           /* requests running at once; 0: 256; never above
                                       max_num_batched_tokens nor the model's max_outputs */
    int32_t max_prefill_chunk;      /* tokens of one prompt in one step; 0: as many as fit */
    int32_t max_model_len;          /* prompt + generated; 0: the model's; never above what the
                                       KV blocks hold */
    int32_t block_size;             /* rows per KV block; 0: 16 */
    size_t kv_cache_memory;         /* bytes; 0: half of the available memory, at most what
                                       max_num_seqs * max_model_len tokens need */
    int32_t num_kv_blocks;          /* overrides kv_cache_memory; 0: not */
    st_dtype kv_dtype;              /* ST_BF16, ST_F32 or ST_I8 */
    bool disable_prefix_caching;
    /* MLA: a cached block is reused, too, where its tokens attended in the other form
     * (st_model_expanded_until), as those of an answer that is part of the next prompt. Saves work
     * in conversations; the bits then depend on what was cached. */
    bool reuse_across_paths;
    int32_t max_waiting; /* queue bound; 0: 8192 */

    /* Prefill and decode apart. */
    st_kv_transfer_options transfer;
    st_kv_events_options events;
} st_engine_options;

typedef struct st_engine st_engine;

/* The model must outlive the engine and is used by it alone. Starts the engine's thread. */
ST_NODISCARD st_status st_engine_new(st_model *model, const st_engine_options *opts,
                                     st_engine **out, st_error *err);
/* Cancels what still runs (callbacks get ST_FINISH_CANCELLED), joins the thread, frees. */
void st_engine_free(st_engine *e);

typedef struct st_logit_bias {
    int32_t token;
    float bias;
} st_logit_bias;

/* How tokens are chosen. Use st_sampling_default, then change. The order of operations is vLLM's:
 * penalties, logit_bias, min_tokens' mask, (logprobs are taken from the raw logits before all of
 * these), temperature, min_p, top_k, top_p, then a draw; temperature 0 is greedy (lowest id
 * wins ties). */
typedef struct st_sampling {
    float temperature, top_p, min_p;
    int32_t top_k; /* 0 or -1: all */
    float repetition_penalty, presence_penalty, frequency_penalty;
    const st_logit_bias *logit_bias;
    int32_t n_logit_bias;
    uint64_t seed; /* the draw for the i-th generated token depends on (seed, i) alone */
    int32_t max_tokens, min_tokens;
    const int32_t *stop_ids; /* beside the model's EOS ids */
    int32_t n_stop_ids;
    bool ignore_eos;
    int32_t logprobs; /* -1: none; n: the chosen token's and the n most likely (<= 20) */
} st_sampling;

void st_sampling_default(st_sampling *s);
/* ST_EINVAL with the field's OpenAI name, the value and the accepted range. */
ST_NODISCARD st_status st_sampling_check(const st_sampling *s, int32_t vocab_size, st_error *err);

typedef enum st_finish {
    ST_FINISH_NONE,
    ST_FINISH_STOP,      /* EOS or a stop id: event.token is it */
    ST_FINISH_LENGTH,    /* max_tokens or max_model_len */
    ST_FINISH_CANCELLED, /* by the caller, or the engine is shutting down */
    ST_FINISH_ERROR      /* event.error says why */
} st_finish;

typedef struct st_logprob {
    int32_t token;
    float logprob;
} st_logprob;

/* One result. Pointers are valid during the callback only. */
typedef struct st_token_event {
    uint64_t id;      /* the request's */
    int32_t token;    /* -1: no token comes with this event */
    st_finish finish; /* other than NONE: the last event of this request */
    float logprob;    /* of token, when asked for */
    const st_logprob *top;
    int32_t n_top;
    int32_t prompt_tokens, cached_tokens, generated_tokens;
    uint64_t submitted_ns, scheduled_ns, now_ns; /* monotonic; scheduled: first time in a step */
    uint64_t step;                               /* number of the step that made it, from 1 */
    /* An offer's last event: the blocks that hold the prompt; they stay until they were fetched or
     * the lease ends. */
    const int32_t *offered_blocks;
    int32_t n_offered_blocks;
    const char *error;
} st_token_event;

/* Runs on the engine's thread and must not block or call back into the engine, except for
 * st_engine_cancel, st_engine_submit and st_engine_get_stats. The request's blocks are released
 * and the stats up to date before its final event. */
typedef void st_token_fn(void *user, const st_token_event *event);

/* A request that shares its prompt's KV with another engine. Ids are transfer/kv_link.h's, as
 * text. */
typedef enum st_handover {
    ST_HANDOVER_NONE,
    ST_HANDOVER_OFFER, /* after (and while) the prompt is computed its KV is offered under id */
    ST_HANDOVER_FETCH  /* the prompt's KV is fetched under id from host:port; only its last token
                          is computed here */
} st_handover;

typedef struct st_handover_request {
    st_handover what;
    char id[33];      /* 32 hexadecimal digits */
    const char *host; /* FETCH: numeric or a name; copied */
    uint16_t port;
    const int32_t *remote_blocks; /* FETCH: those that the offer named, or NULL; copied */
    int32_t n_remote_blocks;
} st_handover_request;

typedef struct st_request {
    const int32_t *prompt; /* copied */
    int32_t n_prompt;
    st_sampling sampling;         /* arrays are copied */
    const char *cache_salt;       /* NULL or "": the shared cache */
    int32_t priority;             /* lower runs first; ties: first come */
    st_handover_request handover; /* zeroed: none */
    st_token_fn *on_token;
    void *user;
} st_request;

/* Checks and queues a request; *id is never 0. Thread-safe. Every accepted request gets exactly
 * one final event. Errors: ST_EINVAL (empty prompt, ids out of the vocabulary, prompt longer than
 * max_model_len - 1, impossible sampling, or a prompt that could never fit in KV memory),
 * ST_EFULL (queue bound), ST_ECANCELLED (draining). */
ST_NODISCARD st_status st_engine_submit(st_engine *e, const st_request *r, uint64_t *id,
                                        st_error *err);
/* Asks to end a request; its final event (CANCELLED) comes from the engine's thread at latest
 * after the running step. Unknown or finished ids are ignored. Thread-safe. */
void st_engine_cancel(st_engine *e, uint64_t id);
/* No new requests from now on; those queued and running go on. Thread-safe. */
void st_engine_drain(st_engine *e);

/* Upper bounds of the buckets of iteration_tokens; the last bucket has none. */
#define ST_ITERATION_BUCKETS 14
extern const int32_t st_iteration_bounds[ST_ITERATION_BUCKETS - 1];

typedef struct st_engine_stats {
    int32_t running, waiting;
    int32_t total_blocks, used_blocks, cached_blocks;
    int32_t block_size;
    uint64_t prompt_tokens, generation_tokens, preemptions, steps;
    uint64_t prefix_queries, prefix_hits; /* in tokens of prompts, at their first admission */
    uint64_t finished_stop, finished_length, finished_cancelled, finished_error;
    int32_t last_step_tokens;
    uint64_t step_tokens;                            /* of all steps */
    uint64_t iteration_tokens[ST_ITERATION_BUCKETS]; /* steps by their number of tokens */
    size_t kv_cache_bytes;
    int32_t fetching; /* requests that wait for their KV from another engine */
    int32_t offered;  /* finished prompts whose blocks wait for a decoder */
    uint64_t fetches, fetch_failures, offers, offers_expired;
    uint64_t transfer_bytes_sent, transfer_bytes_received;
} st_engine_stats;

void st_engine_get_stats(const st_engine *e, st_engine_stats *out); /* thread-safe */
/* Ports that are open for other machines; 0: not enabled. */
typedef struct st_engine_ports {
    uint16_t transfer, events, replay;
} st_engine_ports;
st_engine_ports st_engine_get_ports(const st_engine *e);
int32_t st_engine_max_model_len(const st_engine *e);
int32_t st_engine_max_num_seqs(const st_engine *e);
const st_model_config *st_engine_model_config(const st_engine *e);

#endif
