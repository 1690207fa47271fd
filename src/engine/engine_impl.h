/* Inside of st_engine. Fields up to the lock belong to the engine's thread alone (and to
 * st_engine_new before it starts); the others are shared under the lock. */
#ifndef ST_ENGINE_IMPL_H
#define ST_ENGINE_IMPL_H

#include <pthread.h>

#include "engine/handover.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "events/event_publisher.h"

struct st_engine {
    /* fixed after st_engine_new */
    st_model *model;
    const st_model_config *config;
    st_sched_limits limits;
    int32_t max_model_len, max_waiting;
    bool prefix_caching, reuse_across_paths, fail_on_fetch_error;
    st_dtype kv_dtype;
    uint64_t fingerprint;
    st_engine_ports ports;
    st_kv_link *link;              /* NULL: shares no KV */
    st_event_publisher *publisher; /* NULL: publishes no events */

    /* the engine's thread */
    st_kv_store *kv;
    st_block_pool *pool;
    st_sampler *sampler;
    st_seq **running; /* [max_seqs], in the order of admission */
    int32_t n_running;
    st_seq_list waiting;
    st_seq_list fetching, ready; /* admitted; with the running at most max_seqs */
    int32_t n_offered;           /* offers whose request has ended */
    st_announcement *announce;   /* [max_seqs] of the step */
    int32_t n_announce;
    st_sched_seq *sched;  /* [max_seqs] scratch of the plan */
    int32_t *chunk;       /* [max_seqs] */
    int32_t *tokens;      /* [max_tokens] the batch */
    st_batch_seq *seqs;   /* [max_seqs] */
    int32_t *output_rows; /* [max_seqs] */
    st_seq **output_seqs; /* [max_seqs] */
    int32_t *output_best; /* [max_seqs] */
    bool *output_bad;     /* [max_seqs] */
    float *logits;        /* [max_seqs, vocab] */
    st_engine_stats now;  /* copied to stats when somebody may look */

    pthread_mutex_t lock;
    pthread_cond_t wake;
    st_seq_list inbox; /* submitted, not yet seen by the engine's thread */
    st_seq *cancels;   /* by cancel_next */
    st_hold *overs;    /* by next_over: what the link has finished */
    st_seq_table table;
    uint64_t last_id;
    bool draining, stop;
    st_engine_stats stats;

    pthread_t thread;
    bool lock_made, wake_made, thread_made;
};

/* Plans and runs one step. False: nobody could get on, so nothing was run; that changes only with
 * the next order from another thread. */
bool st_engine_step(st_engine *e);

/* Makes seq's full blocks findable. */
void st_engine_publish_blocks(st_engine *e, st_seq *seq);

/* Ends a request from the engine's thread: takes it off every list, releases its blocks, brings
 * the stats up to date, calls back with `event` (token, logprobs and error filled in by the
 * caller), and frees it. */
void st_engine_finish(st_engine *e, st_seq *seq, st_finish finish, st_token_event *event);

/* Makes the stats visible to other threads. */
void st_engine_publish_stats(st_engine *e);

#endif
