/* A prompt's KV on its way between engines, as the engine's thread sees it: which blocks the link
 * reads (offers) or writes (fetches), for whom, and what happens when it is done.
 *
 * A hold keeps its own references on these blocks, from the first row that the link may touch to
 * the link's last word about it. So a sequence may end, or lose its blocks to preemption, at any
 * time. */
#ifndef ST_ENGINE_HANDOVER_H
#define ST_ENGINE_HANDOVER_H

#include "starling/engine.h"
#include "transfer/kv_link.h"

struct st_seq;

typedef struct st_hold {
    st_engine *engine;
    struct st_seq *seq; /* NULL once it has ended */
    st_transfer_id id;
    bool is_fetch;
    int32_t n_announced;       /* OFFER: rows of all layers that the link was told of */
    struct st_hold *next_over; /* these three under the engine's lock */
    st_status status;
    st_error err;
    int32_t n_refs;
    int32_t refs[]; /* [n_refs] the referenced blocks, at most those of the prompt */
} st_hold;

/* A step's announcement: rows of a sequence that every layer will write. */
typedef struct st_announcement {
    st_hold *hold;
    int32_t from, count;
} st_announcement;

/* The id that the link sees: a digest of the request's and of the prompt, so that rows of another
 * prompt are never taken for this one's. */
bool st_handover_id(const char text[33], const int32_t *prompt, int32_t n, st_transfer_id *out);

/* Makes the link; *port is where it listens. */
ST_NODISCARD st_status st_handover_start(st_engine *e, const st_kv_transfer_options *o,
                                         st_error *err);
/* Frees the link and all holds. The engine's thread has ended. */
void st_handover_stop(st_engine *e);

/* ---- the engine's thread ---- */

/* A request that offers its prompt has arrived: fetchers may come from now on. False: it could not
 * be offered and has ended. */
bool st_handover_offer(st_engine *e, struct st_seq *seq);
/* It was cancelled before: its end, which follows, then ends the offer, and whoever comes for it is
 * told at once instead of waiting for one that never comes. */
void st_handover_offer_cancelled(st_engine *e, struct st_seq *seq);
/* It was admitted with its first rows found in the cache. */
void st_handover_announce_cached(st_engine *e, struct st_seq *seq);
/* It takes part in the step being built with its chunk. */
void st_handover_announce(st_engine *e, struct st_seq *seq);
/* Tells the link of a layer's rows (st_batch.on_layer); user is the engine. */
void st_handover_on_layer(void *user, int32_t layer);
/* The step's rows are final in all layers. */
void st_handover_announced(st_engine *e);
/* It lost its blocks to preemption: the offer ends. */
void st_handover_lost_blocks(st_engine *e, struct st_seq *seq);

/* True when the sequence still has something to fetch beyond its first n_cached tokens. */
bool st_handover_wants_fetch(const struct st_seq *seq, int32_t n_cached);
/* Starts fetching; the sequence, just taken off the waiting list, has all its prompt's blocks, of
 * which the first n_matched hold their rows already. */
void st_handover_fetch(st_engine *e, struct st_seq *seq, int32_t n_matched);

/* The sequence, just put into the step, found all of its prompt here: the other engine is told, so
 * that it need not keep the blocks. */
void st_handover_not_needed(st_engine *e, struct st_seq *seq);

/* The sequence ends. */
void st_handover_leave(st_engine *e, struct st_seq *seq, st_finish finish);
/* Deals with what the link has finished; overs by next_over. */
void st_handover_settle(st_engine *e, st_hold *overs);

#endif
