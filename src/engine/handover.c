/* Offers and fetches of prompts: see handover.h. */
#include "engine/handover.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/engine_impl.h"

#define SECONDS 1000000000ull

enum {
    PUSH_TIMEOUT_S = 300, /* the other engine may still have to compute the prompt */
    PULL_TIMEOUT_S = 60,  /* it has: this is for moving rows */
};

bool st_handover_id(const char text[33], const int32_t *prompt, int32_t n, st_transfer_id *out)
{
    st_transfer_id id;
    st_block_hash h;
    if (!st_transfer_id_parse(text, &id))
        return false;
    memcpy(&h, id.bytes, sizeof h);
    h = st_block_hash_next(h, prompt, n, 0);
    memcpy(out->bytes, &h, sizeof h);
    return true;
}

st_status st_handover_start(st_engine *e, const st_kv_transfer_options *o, st_error *err)
{
    st_kv_link_options link = {.host = o->host ? o->host : "127.0.0.1",
                               .port = o->port,
                               .store = e->kv,
                               .fingerprint = e->fingerprint,
                               .lease_ns = (uint64_t)o->lease_ms * (SECONDS / 1000)};
    st_status s = st_kv_link_new(&link, &e->link, err);
    if (s)
        return s;
    e->fail_on_fetch_error = o->fail_on_error;
    e->ports.transfer = st_kv_link_port(e->link);
    return ST_OK;
}

/* ---- holds ---- */

static st_hold *hold_new(st_engine *e, st_seq *seq, bool is_fetch)
{
    int32_t n = st_sched_blocks(seq->n_prompt, e->limits.block_size);
    st_hold *h = malloc(sizeof *h + (size_t)n * sizeof *h->refs);
    if (!h)
        return NULL;
    *h = (st_hold){.engine = e, .seq = seq, .id = seq->handover_id, .is_fetch = is_fetch};
    seq->hold = h;
    return h;
}

static void hold_free(st_engine *e, st_hold *h)
{
    st_block_pool_release(e->pool, h->refs, h->n_refs);
    if (h->seq)
        h->seq->hold = NULL;
    else if (!h->is_fetch)
        e->n_offered--;
    free(h);
}

/* References blocks [h->n_refs, n). */
static void hold_blocks(st_engine *e, st_hold *h, const int32_t *blocks, int32_t n)
{
    for (; h->n_refs < n; h->n_refs++) {
        st_block_pool_ref(e->pool, blocks[h->n_refs]);
        h->refs[h->n_refs] = blocks[h->n_refs];
    }
}

/* The link's thread: hands the hold to the engine's. */
static void on_over(void *user, const st_transfer_id *id, st_status status, const st_error *err)
{
    (void)id;
    st_hold *h = user;
    st_engine *e = h->engine;
    pthread_mutex_lock(&e->lock);
    h->status = status;
    if (status != ST_OK && err)
        h->err = *err;
    h->next_over = e->overs;
    e->overs = h;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
}

/* ---- offers ---- */

static st_status try_offer(st_engine *e, st_seq *seq, st_error *err)
{
    st_hold *h = hold_new(e, seq, false);
    st_status s = h ? st_kv_offer(e->link, &h->id, seq->n_prompt, on_over, h, err)
                    : st_fail(err, ST_ENOMEM, "memory is short");
    e->now.offers++;
    if (s && h)
        hold_free(e, h);
    return s;
}

bool st_handover_offer(st_engine *e, st_seq *seq)
{
    st_error err = {0};
    if (try_offer(e, seq, &err) == ST_OK)
        return true;
    st_token_event event = {.token = -1, .error = err.text};
    st_engine_finish(e, seq, ST_FINISH_ERROR, &event);
    return false;
}

void st_handover_offer_cancelled(st_engine *e, st_seq *seq)
{
    st_error err;
    if (try_offer(e, seq, &err) != ST_OK)
        st_debug("engine: an offer was not made: %s", err.text);
}

static bool offers_rows(const st_seq *seq, int32_t end)
{
    const st_hold *h = seq->hold;
    return h && !h->is_fetch && end > h->n_announced;
}

void st_handover_announce_cached(st_engine *e, st_seq *seq)
{
    int32_t end = seq->n_computed;
    st_hold *h = seq->hold;
    if (!offers_rows(seq, end))
        return;
    hold_blocks(e, h, seq->blocks, st_sched_blocks(end, e->limits.block_size));
    st_kv_offer_rows(e->link, &h->id, 0, e->kv->n_layers, h->n_announced, end - h->n_announced,
                     seq->blocks);
    h->n_announced = end;
}

void st_handover_announce(st_engine *e, st_seq *seq)
{
    int32_t end = seq->n_computed + seq->chunk;
    if (end > seq->n_prompt)
        end = seq->n_prompt;
    if (!offers_rows(seq, end))
        return;
    st_hold *h = seq->hold;
    hold_blocks(e, h, seq->blocks, st_sched_blocks(end, e->limits.block_size));
    e->announce[e->n_announce++] =
        (st_announcement){.hold = h, .from = h->n_announced, .count = end - h->n_announced};
}

void st_handover_on_layer(void *user, int32_t layer)
{
    st_engine *e = user;
    for (int32_t i = 0; i < e->n_announce; i++) {
        const st_announcement *a = &e->announce[i];
        st_kv_offer_rows(e->link, &a->hold->id, layer, 1, a->from, a->count, a->hold->seq->blocks);
    }
}

void st_handover_announced(st_engine *e)
{
    for (int32_t i = 0; i < e->n_announce; i++)
        e->announce[i].hold->n_announced = e->announce[i].from + e->announce[i].count;
}

/* Takes the hold from its sequence; the link's last word frees it. */
static void detach(st_engine *e, st_hold *h)
{
    h->seq->hold = NULL;
    h->seq = NULL;
    e->n_offered += !h->is_fetch;
}

/* Blocks were short: an offer that went on holding them would keep all others waiting, and itself
 * with them. The fetcher is told, and computes the prompt. */
void st_handover_lost_blocks(st_engine *e, st_seq *seq)
{
    st_hold *h = seq->hold;
    if (!h)
        return;
    st_kv_offer_cancel(e->link, &h->id, "the prefill engine is short of KV blocks");
    detach(e, h);
    seq->handover.what = ST_HANDOVER_NONE;
}

/* ---- fetches ---- */

/* The prompt's last token is computed here: its logits are the first result. */
static int32_t rows_to_fetch(const st_seq *seq)
{
    return seq->n_prompt - 1;
}

bool st_handover_wants_fetch(const st_seq *seq, int32_t n_cached)
{
    return seq->handover.what == ST_HANDOVER_FETCH && n_cached < rows_to_fetch(seq);
}

static void make_ready(st_engine *e, st_seq *seq)
{
    st_seq_list_remove(&e->fetching, seq);
    st_seq_list_insert(&e->ready, seq);
    seq->place = ST_SEQ_READY;
}

static void fetch_failed(st_engine *e, st_seq *seq, const char *why)
{
    e->now.fetch_failures++;
    if (e->fail_on_fetch_error) {
        st_token_event event = {.token = -1, .error = why};
        st_engine_finish(e, seq, ST_FINISH_ERROR, &event);
        return;
    }
    st_warn("engine: a prompt of %d tokens is computed here, fetching it failed: %s", seq->n_prompt,
            why);
    make_ready(e, seq);
}

void st_handover_fetch(st_engine *e, st_seq *seq, int32_t n_matched)
{
    const st_handover_request *r = &seq->handover;
    st_error err = {0};
    st_kv_fetch_request f = {.host = r->host,
                             .port = r->port,
                             .id = seq->handover_id,
                             .from = n_matched * e->limits.block_size,
                             .n_tokens = rows_to_fetch(seq),
                             .blocks = seq->blocks,
                             .remote_blocks = r->remote_blocks,
                             .n_remote_blocks = r->n_remote_blocks,
                             .timeout_ns =
                                 (r->remote_blocks ? PULL_TIMEOUT_S : PUSH_TIMEOUT_S) * SECONDS};
    seq->handover.what = ST_HANDOVER_NONE; /* once only: preempted, it is computed here */
    seq->place = ST_SEQ_FETCHING;
    st_seq_list_append(&e->fetching, seq);
    e->now.fetches++;
    st_hold *h = hold_new(e, seq, true);
    if (h)
        hold_blocks(e, h, seq->blocks, seq->n_blocks);
    st_status s = h ? st_kv_fetch(e->link, &f, on_over, h, &err)
                    : st_fail(&err, ST_ENOMEM, "memory is short");
    if (!s)
        return;
    if (h)
        hold_free(e, h);
    fetch_failed(e, seq, err.text);
}

void st_handover_not_needed(st_engine *e, st_seq *seq)
{
    const st_handover_request *r = &seq->handover;
    if (r->what != ST_HANDOVER_FETCH)
        return;
    int32_t n = rows_to_fetch(seq) > 0 ? rows_to_fetch(seq) : 1;
    st_kv_fetch_request f = {.host = r->host,
                             .port = r->port,
                             .id = seq->handover_id,
                             .from = n,
                             .n_tokens = n,
                             .blocks = seq->blocks,
                             .timeout_ns = PULL_TIMEOUT_S * SECONDS};
    seq->handover.what = ST_HANDOVER_NONE;
    st_hold *h = hold_new(e, seq, true);
    if (!h)
        return;
    detach(e, h);
    /* If it cannot be told, its lease ends it. */
    if (st_kv_fetch(e->link, &f, on_over, h, NULL) != ST_OK)
        hold_free(e, h);
}

/* ---- ends ---- */

void st_handover_leave(st_engine *e, st_seq *seq, st_finish finish)
{
    st_hold *h = seq->hold;
    if (!h)
        return;
    detach(e, h);
    if (h->is_fetch)
        st_kv_fetch_cancel(e->link, &h->id);
    else if (finish != ST_FINISH_STOP && finish != ST_FINISH_LENGTH)
        st_kv_offer_cancel(e->link, &h->id, "the prefill request has ended");
}

static void fetch_over(st_engine *e, st_hold *h)
{
    st_seq *seq = h->seq;
    st_status status = h->status;
    st_error err = h->err;
    hold_free(e, h);
    if (!seq)
        return;
    if (status != ST_OK) {
        fetch_failed(e, seq, err.text);
        return;
    }
    seq->n_computed = rows_to_fetch(seq);
    st_engine_publish_blocks(e, seq);
    make_ready(e, seq);
}

void st_handover_settle(st_engine *e, st_hold *overs)
{
    for (st_hold *h = overs, *next; h; h = next) {
        next = h->next_over;
        if (h->is_fetch) {
            fetch_over(e, h);
            continue;
        }
        if (h->status == ST_EDEADLINE)
            e->now.offers_expired++;
        if (h->status != ST_OK)
            st_debug("engine: an offer ended: %s", h->err.text);
        hold_free(e, h);
    }
    if (overs)
        st_engine_publish_stats(e);
}

void st_handover_stop(st_engine *e)
{
    st_kv_link_free(e->link);
    st_handover_settle(e, e->overs);
}
