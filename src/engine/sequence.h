/* A request inside the engine: its tokens, its KV blocks, and where it stands. */
#ifndef ST_ENGINE_SEQUENCE_H
#define ST_ENGINE_SEQUENCE_H

#include <stdatomic.h>

#include "engine/handover.h"
#include "engine/scheduler.h"
#include "starling/engine.h"
#include "starling/kv_cache.h"

/* Which list a sequence is on. */
typedef enum st_seq_place {
    ST_SEQ_WAITING,
    ST_SEQ_FETCHING, /* admitted; its prompt's KV is on its way from another engine */
    ST_SEQ_READY,    /* admitted; that is over, its next step is not planned yet */
    ST_SEQ_RUNNING
} st_seq_place;

typedef struct st_seq {
    uint64_t id; /* also the order of arrival */
    int32_t priority;
    st_sampling sampling; /* its arrays live in this allocation */
    st_token_fn *on_token;
    void *user;

    int32_t n_prompt, n_tokens; /* prompt; prompt + generated */
    int32_t max_total;          /* n_tokens ends here */
    int32_t n_computed;         /* tokens whose KV is in the blocks */
    int32_t n_blocks, n_hashes, n_published;
    int32_t *tokens;       /* [max_total] */
    int32_t *blocks;       /* [blocks of max_total] */
    st_block_hash *hashes; /* [full blocks of max_total], n_hashes of them known */
    st_block_hash root;
    int32_t expanded_until; /* tokens below attend expanded (st_model_expanded_until) */
    int32_t hashed_until;   /* the same as the hashes tell it */
    const char *salt;       /* that the root covers; in this allocation */
    size_t salt_len;

    int32_t chunk;         /* tokens in the step being planned */
    int32_t cached_tokens; /* found in the prefix cache when it was first admitted */
    bool was_scheduled;
    uint64_t submitted_ns, scheduled_ns;

    st_handover_request handover; /* its arrays live in this allocation */
    st_transfer_id handover_id;
    st_hold *hold; /* what the link has of its blocks; NULL: nothing */

    atomic_bool cancelled; /* set by any thread; the list below is under the engine's lock */
    bool cancel_queued;
    st_seq_place place;
    struct st_seq *cancel_next;
    struct st_seq *prev, *next; /* inbox, waiting, fetching or ready list */
    struct st_seq *bucket_next; /* id table */
} st_seq;

/* What a sequence has from the engine. */
typedef struct st_seq_setting {
    int32_t max_model_len, block_size;
    st_block_hash root;
    int32_t expanded_until, hashed_until;
} st_seq_setting;

/* Copies a checked request. Everything a sequence will ever need is one allocation; pages of long
 * sequences that are never reached are never touched. */
ST_NODISCARD st_status st_seq_new(const st_request *r, const st_seq_setting *setting, st_seq **out);
void st_seq_free(st_seq *seq);

/* Computes the hashes of blocks that are full of known tokens. */
void st_seq_extend_hashes(st_seq *seq, int32_t block_size);
st_sched_seq st_seq_for_scheduler(const st_seq *seq);

/* Waiting sequences in scheduling order: by priority, then arrival. */
typedef struct st_seq_list {
    st_seq *head, *tail;
    int32_t count;
} st_seq_list;

void st_seq_list_append(st_seq_list *list, st_seq *seq);
void st_seq_list_insert(st_seq_list *list, st_seq *seq); /* keeps the order; O(1) for the last */
void st_seq_list_remove(st_seq_list *list, st_seq *seq);

/* Sequences by id. */
typedef struct st_seq_table {
    st_seq **buckets;
    uint64_t mask;
} st_seq_table;

ST_NODISCARD st_status st_seq_table_init(st_seq_table *t, int32_t expected);
void st_seq_table_free(st_seq_table *t);
void st_seq_table_add(st_seq_table *t, st_seq *seq);
void st_seq_table_remove(st_seq_table *t, st_seq *seq);
st_seq *st_seq_table_find(const st_seq_table *t, uint64_t id);

#endif
