/* The engine's life: options, the thread's loop, submission and cancellation from other threads.
 * What happens inside a step is in step.c, who gets into it in scheduler.c. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/human.h"
#include "base/log.h"
#include "base/memory.h"
#include "engine/engine_impl.h"

/* ---- the thread ---- */

void st_engine_publish_stats(st_engine *e)
{
    e->now.running = e->n_running + e->ready.count;
    e->now.fetching = e->fetching.count;
    e->now.offered = e->n_offered;
    e->now.waiting = e->waiting.count;
    e->now.used_blocks = st_block_pool_in_use(e->pool);
    e->now.cached_blocks = st_block_pool_cached(e->pool);
    pthread_mutex_lock(&e->lock);
    e->stats = e->now;
    pthread_mutex_unlock(&e->lock);
}

static void forget(st_engine *e, st_seq *seq)
{
    pthread_mutex_lock(&e->lock);
    st_seq_table_remove(&e->table, seq);
    for (st_seq **at = &e->cancels; *at; at = &(*at)->cancel_next)
        if (*at == seq) {
            *at = seq->cancel_next;
            break;
        }
    pthread_mutex_unlock(&e->lock);
}

static void count_finish(st_engine_stats *s, st_finish finish)
{
    switch (finish) {
    case ST_FINISH_STOP:
        s->finished_stop++;
        break;
    case ST_FINISH_LENGTH:
        s->finished_length++;
        break;
    case ST_FINISH_CANCELLED:
        s->finished_cancelled++;
        break;
    case ST_FINISH_ERROR:
    case ST_FINISH_NONE:
        s->finished_error++;
        break;
    }
}

static void take_off_list(st_engine *e, st_seq *seq)
{
    switch (seq->place) {
    case ST_SEQ_WAITING:
        st_seq_list_remove(&e->waiting, seq);
        return;
    case ST_SEQ_FETCHING:
        st_seq_list_remove(&e->fetching, seq);
        return;
    case ST_SEQ_READY:
        st_seq_list_remove(&e->ready, seq);
        return;
    case ST_SEQ_RUNNING:
        break;
    }
    int32_t i = 0;
    while (e->running[i] != seq)
        i++;
    memmove(&e->running[i], &e->running[i + 1], (size_t)(e->n_running - i - 1) * sizeof(st_seq *));
    e->n_running--;
}

/* An offer's last event names the blocks of its prompt. */
static void name_offered_blocks(const st_engine *e, const st_seq *seq, st_token_event *event)
{
    bool whole = event->finish == ST_FINISH_STOP || event->finish == ST_FINISH_LENGTH;
    if (seq->handover.what != ST_HANDOVER_OFFER || !whole)
        return;
    event->offered_blocks = seq->blocks;
    event->n_offered_blocks = st_sched_blocks(seq->n_prompt, e->limits.block_size);
}

void st_engine_finish(st_engine *e, st_seq *seq, st_finish finish, st_token_event *event)
{
    take_off_list(e, seq);
    st_handover_leave(e, seq, finish);
    st_block_pool_release(e->pool, seq->blocks, seq->n_blocks);
    forget(e, seq);
    count_finish(&e->now, finish);
    st_engine_publish_stats(e);
    event->id = seq->id;
    event->finish = finish;
    event->prompt_tokens = seq->n_prompt;
    event->cached_tokens = seq->cached_tokens;
    event->generated_tokens = seq->n_tokens - seq->n_prompt;
    event->submitted_ns = seq->submitted_ns;
    event->scheduled_ns = seq->scheduled_ns;
    event->now_ns = st_now_ns();
    event->step = e->now.steps;
    name_offered_blocks(e, seq, event);
    seq->on_token(seq->user, event);
    st_seq_free(seq);
}

static void finish_cancelled(st_engine *e, st_seq *seq)
{
    st_token_event event = {.token = -1};
    st_engine_finish(e, seq, ST_FINISH_CANCELLED, &event);
}

/* What other threads have left for the engine's. */
typedef struct orders {
    st_seq_list arrived;
    st_seq *cancels;
    st_hold *overs;
} orders;

/* The publisher's ring was full: it is asked again after this long. */
enum { FLUSH_AGAIN_NS = 5000000 };

static void wait_orders(st_engine *e, bool unpublished)
{
    if (!unpublished) {
        pthread_cond_wait(&e->wake, &e->lock);
        return;
    }
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += FLUSH_AGAIN_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&e->wake, &e->lock, &until);
}

/* Sleeps while there is nothing to do. stuck: those who are there cannot get on before something
 * changes; unpublished: there are KV events left. Returns false when the engine is to stop. */
static bool take_orders(st_engine *e, bool stuck, bool unpublished, orders *o)
{
    bool work = e->n_running > 0 || e->ready.count > 0 || e->waiting.count > 0;
    pthread_mutex_lock(&e->lock);
    while (!e->stop && e->inbox.count == 0 && !e->cancels && !e->overs && (stuck || !work)) {
        wait_orders(e, unpublished);
        if (unpublished)
            break;
    }
    *o = (orders){e->inbox, e->cancels, e->overs};
    e->inbox = (st_seq_list){0};
    e->cancels = NULL;
    e->overs = NULL;
    e->stats.waiting = e->waiting.count + o->arrived.count;
    bool go_on = !e->stop;
    pthread_mutex_unlock(&e->lock);
    return go_on;
}

static void follow_orders(st_engine *e, orders *o)
{
    while (o->arrived.head) {
        st_seq *seq = o->arrived.head;
        st_seq_list_remove(&o->arrived, seq);
        st_seq_list_insert(&e->waiting, seq);
        if (e->publisher)
            st_event_publisher_root(e->publisher, seq->root, seq->salt, seq->salt_len);
        /* An offer that fails ends its request: not one that is on the list of cancels, too. */
        if (seq->handover.what != ST_HANDOVER_OFFER)
            continue;
        if (atomic_load(&seq->cancelled))
            st_handover_offer_cancelled(e, seq);
        else
            st_handover_offer(e, seq);
    }
    /* cancel_queued stays set: nobody puts them on the list a second time. */
    while (o->cancels) {
        st_seq *seq = o->cancels;
        o->cancels = seq->cancel_next;
        finish_cancelled(e, seq);
    }
    st_handover_settle(e, o->overs);
}

static void cancel_all(st_engine *e)
{
    while (e->n_running > 0)
        finish_cancelled(e, e->running[e->n_running - 1]);
    st_seq_list *lists[] = {&e->ready, &e->fetching, &e->waiting};
    for (int i = 0; i < 3; i++)
        while (lists[i]->head)
            finish_cancelled(e, lists[i]->head);
}

static void *engine_main(void *arg)
{
    st_engine *e = arg;
    orders o;
    bool go_on = true, stuck = false, unpublished = false;
    pthread_setname_np(pthread_self(), "engine");
    st_model_pin_thread(e->model);
    while (go_on) {
        go_on = take_orders(e, stuck, unpublished, &o);
        follow_orders(e, &o);
        if (go_on)
            stuck = !st_engine_step(e);
        unpublished = e->publisher && !st_event_publisher_flush(e->publisher);
    }
    cancel_all(e);
    return NULL;
}

/* ---- options ---- */

static int32_t min_i32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static st_status check_options(const st_engine_options *o, st_error *err)
{
    const struct {
        const char *name;
        int32_t value;
    } counts[] = {
        {"max_num_seqs", o->max_num_seqs},
        {"max_num_batched_tokens", o->max_num_batched_tokens},
        {"max_prefill_chunk", o->max_prefill_chunk},
        {"max_model_len", o->max_model_len},
        {"block_size", o->block_size},
        {"num_kv_blocks", o->num_kv_blocks},
        {"max_waiting", o->max_waiting},
        {"transfer.lease_ms", o->transfer.lease_ms},
        {"events.buffer_batches", o->events.buffer_batches},
    };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (counts[i].value < 0)
            return st_fail(err, ST_EINVAL,
                           "%s: %d: expected a positive number, or 0 for the default",
                           counts[i].name, counts[i].value);
    if (o->kv_dtype != ST_BF16 && o->kv_dtype != ST_F32 && o->kv_dtype != ST_I8)
        return st_fail(err, ST_EINVAL, "kv_dtype: %s: expected BF16, F32 or I8",
                       o->kv_dtype < ST_DTYPE_COUNT ? st_dtype_name(o->kv_dtype) : "unknown");
    return ST_OK;
}

static void set_limits(st_engine *e, const st_engine_options *o)
{
    int32_t batch = o->max_num_batched_tokens ? o->max_num_batched_tokens : 512;
    int32_t seqs = o->max_num_seqs ? o->max_num_seqs : 256;
    batch = min_i32(batch, st_model_max_batch_tokens(e->model));
    seqs = min_i32(seqs, min_i32(batch, st_model_max_outputs(e->model)));
    e->limits = (st_sched_limits){.max_tokens = batch,
                                  .max_seqs = seqs,
                                  .max_chunk = o->max_prefill_chunk,
                                  .block_size = o->block_size ? o->block_size : 16};
    int32_t longest = st_model_max_len(e->model);
    e->max_model_len = o->max_model_len ? min_i32(o->max_model_len, longest) : longest;
    e->max_waiting = o->max_waiting ? o->max_waiting : 8192;
    e->prefix_caching = !o->disable_prefix_caching;
    e->reuse_across_paths = o->reuse_across_paths;
    e->kv_dtype = o->kv_dtype;
}

/* How many KV blocks: as asked, else what the memory holds, but no more than could ever be used. */
static st_status count_blocks(const st_engine *e, const st_engine_options *o, int32_t *n_blocks,
                              st_error *err)
{
    if (o->num_kv_blocks > 0) {
        *n_blocks = o->num_kv_blocks;
        return ST_OK;
    }
    size_t block_bytes;
    st_kv_row_shape row = st_model_kv_row(e->model);
    if (st_kv_store_bytes(e->config->n_layers, 1, e->limits.block_size, e->kv_dtype, row,
                          &block_bytes) != ST_OK)
        return st_fail(err, ST_EINVAL, "block_size: %d: expected a size whose KV block fits memory",
                       e->limits.block_size);
    size_t memory = o->kv_cache_memory ? o->kv_cache_memory : st_memory_available() / 2;
    size_t blocks = memory / block_bytes;
    size_t most = (size_t)e->limits.max_seqs *
                  (size_t)st_sched_blocks(e->max_model_len, e->limits.block_size);
    if (blocks > most)
        blocks = most;
    if (blocks > 1 << 29)
        blocks = 1 << 29;
    if (blocks < 1)
        return st_fail(err, ST_ENOMEM,
                       "kv_cache_memory: %zu bytes hold no KV block of %d tokens (%zu bytes): "
                       "expected more memory or a smaller block_size",
                       memory, e->limits.block_size, block_bytes);
    *n_blocks = (int32_t)blocks;
    return ST_OK;
}

/* Pages of the store are taken when they are first written: what cannot fit must be refused now,
 * or the process is killed when the cache fills up. */
static st_status check_memory(const st_engine *e, int32_t n_blocks, st_kv_row_shape row,
                              st_error *err)
{
    size_t need, available = st_memory_available();
    if (st_kv_store_bytes(e->config->n_layers, n_blocks, e->limits.block_size, e->kv_dtype, row,
                          &need) == ST_OK &&
        need <= available)
        return ST_OK;
    return st_fail(
        err, ST_ENOMEM,
        "%d KV blocks of %d tokens need more memory than the %s that are available: "
        "expected a smaller kv_cache_memory or num_kv_blocks, or a shorter max_model_len",
        n_blocks, e->limits.block_size, st_human_bytes(available).s);
}

static st_status start_publisher(st_engine *e, const st_kv_events_options *o,
                                 st_block_events *events, st_error *err)
{
    st_event_publisher_options opts = {.host = o->host ? o->host : "127.0.0.1",
                                       .port = o->port,
                                       .replay_port = o->replay_port,
                                       .topic = o->topic ? o->topic : "",
                                       .block_size = e->limits.block_size,
                                       .n_blocks = e->now.total_blocks,
                                       .buffer_batches = (size_t)o->buffer_batches,
                                       .arrays = o->arrays};
    st_status s = st_event_publisher_new(&opts, &e->publisher, err);
    if (s != ST_OK)
        return s;
    e->ports.events = st_event_publisher_port(e->publisher);
    e->ports.replay = st_event_publisher_replay_port(e->publisher);
    *events = st_event_publisher_events(e->publisher);
    return ST_OK;
}

static st_status make_kv(st_engine *e, const st_engine_options *o, st_error *err)
{
    int32_t n_blocks = 0;
    st_kv_row_shape row = st_model_kv_row(e->model);
    st_status st = count_blocks(e, o, &n_blocks, err);
    if (st != ST_OK)
        return st;
    int64_t rows = (int64_t)n_blocks * e->limits.block_size;
    if (rows < e->max_model_len) {
        st_warn("engine: %d KV blocks hold %ld tokens: max_model_len is %ld instead of %d",
                n_blocks, (long)rows, (long)rows, e->max_model_len);
        e->max_model_len = (int32_t)rows;
    }
    if (e->max_model_len < 2)
        return st_fail(err, ST_EINVAL, "max_model_len: %d: expected at least 2", e->max_model_len);
    if ((st = check_memory(e, n_blocks, row, err)) != ST_OK)
        return st;
    st = st_kv_store_new(e->config->n_layers, n_blocks, e->limits.block_size, e->kv_dtype, row,
                         &e->kv, err);
    if (st != ST_OK)
        return st;
    e->now.total_blocks = n_blocks;
    e->now.block_size = e->limits.block_size;
    e->now.kv_cache_bytes = (size_t)n_blocks * e->kv->block_bytes * (size_t)e->kv->n_layers;
    st_block_events events = {0};
    if (o->events.enabled && (st = start_publisher(e, &o->events, &events, err)) != ST_OK)
        return st;
    return st_block_pool_new(n_blocks, e->limits.block_size, e->prefix_caching, &events, &e->pool,
                             err);
}

static st_status make_buffers(st_engine *e, st_error *err)
{
    size_t seqs = (size_t)e->limits.max_seqs, tokens = (size_t)e->limits.max_tokens;
    e->running = calloc(seqs, sizeof(st_seq *));
    e->sched = calloc(seqs, sizeof *e->sched);
    e->chunk = calloc(seqs, sizeof *e->chunk);
    e->tokens = calloc(tokens, sizeof *e->tokens);
    e->seqs = calloc(seqs, sizeof *e->seqs);
    e->output_rows = calloc(seqs, sizeof *e->output_rows);
    e->output_seqs = calloc(seqs, sizeof(st_seq *));
    e->output_best = calloc(seqs, sizeof *e->output_best);
    e->output_bad = calloc(seqs, sizeof *e->output_bad);
    e->announce = calloc(seqs, sizeof *e->announce);
    e->logits = calloc(seqs * (size_t)e->config->vocab_size, sizeof *e->logits);
    if (!e->running || !e->sched || !e->chunk || !e->tokens || !e->seqs || !e->output_rows ||
        !e->output_seqs || !e->output_best || !e->output_bad || !e->announce || !e->logits ||
        st_seq_table_init(&e->table, min_i32(e->max_waiting, 1 << 16)) != ST_OK)
        return st_fail(err, ST_ENOMEM, "engine: out of memory for %d sequences of %d logits each",
                       e->limits.max_seqs, e->config->vocab_size);
    return st_sampler_new(e->config->vocab_size, &e->sampler, err);
}

static st_status make_lock(st_engine *e, st_error *err)
{
    e->lock_made = pthread_mutex_init(&e->lock, NULL) == 0;
    e->wake_made = pthread_cond_init(&e->wake, NULL) == 0;
    if (e->lock_made && e->wake_made)
        return ST_OK;
    return st_fail(err, ST_ENOMEM, "engine: out of memory");
}

static st_status start_thread(st_engine *e, st_error *err)
{
    e->stats = e->now;
    e->thread_made = pthread_create(&e->thread, NULL, engine_main, e) == 0;
    if (!e->thread_made)
        return st_fail(err, ST_ENOMEM, "engine: cannot start a thread");
    return ST_OK;
}

st_status st_engine_new(st_model *model, const st_engine_options *opts, st_engine **out,
                        st_error *err)
{
    *out = NULL;
    st_status st = check_options(opts, err);
    if (st != ST_OK)
        return st;
    st_engine *e = calloc(1, sizeof *e);
    if (!e)
        return st_fail(err, ST_ENOMEM, "engine: out of memory");
    e->model = model;
    e->config = st_model_get_config(model);
    e->fingerprint = st_model_fingerprint(model);
    set_limits(e, opts);
    if ((st = make_kv(e, opts, err)) != ST_OK || (st = make_buffers(e, err)) != ST_OK ||
        (st = make_lock(e, err)) != ST_OK ||
        (opts->transfer.enabled && (st = st_handover_start(e, &opts->transfer, err)) != ST_OK) ||
        (st = start_thread(e, err)) != ST_OK) {
        st_engine_free(e);
        return st;
    }
    *out = e;
    return ST_OK;
}

void st_engine_free(st_engine *e)
{
    if (!e)
        return;
    if (e->thread_made) {
        pthread_mutex_lock(&e->lock);
        e->stop = e->draining = true;
        pthread_cond_signal(&e->wake);
        pthread_mutex_unlock(&e->lock);
        pthread_join(e->thread, NULL);
    }
    if (e->link)
        st_handover_stop(e);
    if (e->wake_made)
        pthread_cond_destroy(&e->wake);
    if (e->lock_made)
        pthread_mutex_destroy(&e->lock);
    st_sampler_free(e->sampler);
    st_seq_table_free(&e->table);
    st_block_pool_free(e->pool);
    st_event_publisher_free(e->publisher);
    st_kv_store_free(e->kv);
    free(e->running);
    free(e->sched);
    free(e->chunk);
    free(e->tokens);
    free(e->seqs);
    free(e->output_rows);
    free(e->output_seqs);
    free(e->output_best);
    free(e->output_bad);
    free(e->announce);
    free(e->logits);
    free(e);
}

/* ---- orders from other threads ---- */

static st_status check_handover(const st_engine *e, const st_handover_request *h, st_error *err)
{
    st_transfer_id id;
    if (h->what == ST_HANDOVER_NONE)
        return ST_OK;
    if (!e->link)
        return st_fail(err, ST_EINVAL,
                       "kv_transfer_params: this engine shares no KV: expected one that was "
                       "started with a role of prefill or decode");
    if (!st_transfer_id_parse(h->id, &id))
        return st_fail(err, ST_EINVAL, "handover.id: '%.40s': expected 32 hexadecimal digits",
                       h->id);
    if (h->what == ST_HANDOVER_FETCH && (!h->host || !*h->host || !h->port))
        return st_fail(err, ST_EINVAL, "handover: expected a host and a port to fetch from");
    return ST_OK;
}

static st_status check_request(const st_engine *e, const st_request *r, st_error *err)
{
    if (r->n_prompt < 1 || !r->prompt)
        return st_fail(err, ST_EINVAL, "prompt: empty: expected at least one token");
    if (r->n_prompt > e->max_model_len - 1)
        return st_fail(err, ST_EINVAL,
                       "prompt: %d tokens: expected at most %d, so that one more fits into the "
                       "context of %d tokens",
                       r->n_prompt, e->max_model_len - 1, e->max_model_len);
    for (int32_t i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || r->prompt[i] >= e->config->vocab_size)
            return st_fail(err, ST_EINVAL,
                           "prompt: token %d at index %d: expected an id from 0 to %d",
                           r->prompt[i], i, e->config->vocab_size - 1);
    if (!r->on_token)
        return st_fail(err, ST_EINVAL, "on_token: missing: expected a function");
    st_status st = check_handover(e, &r->handover, err);
    if (st != ST_OK)
        return st;
    return st_sampling_check(&r->sampling, e->config->vocab_size, err);
}

static st_status enqueue(st_engine *e, st_seq *seq, uint64_t *id, st_error *err)
{
    st_status st = ST_OK;
    pthread_mutex_lock(&e->lock);
    if (e->draining) {
        st = st_fail(err, ST_ECANCELLED, "the engine is shutting down and takes no new requests");
    } else if (e->stats.waiting + e->inbox.count >= e->max_waiting) {
        st = st_fail(err, ST_EFULL, "%d requests are waiting already: expected fewer than %d",
                     e->stats.waiting + e->inbox.count, e->max_waiting);
    } else {
        seq->id = *id = ++e->last_id;
        st_seq_table_add(&e->table, seq);
        st_seq_list_append(&e->inbox, seq);
        pthread_cond_signal(&e->wake);
    }
    pthread_mutex_unlock(&e->lock);
    return st;
}

st_status st_engine_submit(st_engine *e, const st_request *r, uint64_t *id, st_error *err)
{
    *id = 0;
    st_status st = check_request(e, r, err);
    if (st != ST_OK)
        return st;
    size_t salt_len = r->cache_salt ? strlen(r->cache_salt) : 0;
    st_seq_setting setting = {
        .max_model_len = e->max_model_len,
        .block_size = e->limits.block_size,
        .root = st_block_hash_root(e->fingerprint, e->kv_dtype, r->cache_salt, salt_len),
        .expanded_until = st_model_expanded_until(e->config, r->n_prompt)};
    setting.hashed_until = e->reuse_across_paths ? 0 : setting.expanded_until;
    st_seq *seq;
    st = st_seq_new(r, &setting, &seq);
    if (st != ST_OK)
        return st_fail(err, st, "prompt: %d tokens: out of memory", r->n_prompt);
    if (e->prefix_caching)
        st_seq_extend_hashes(seq, e->limits.block_size);
    if (r->handover.what != ST_HANDOVER_NONE)
        (void)st_handover_id(r->handover.id, r->prompt, r->n_prompt, &seq->handover_id);
    seq->submitted_ns = st_now_ns();
    st = enqueue(e, seq, id, err);
    if (st != ST_OK)
        st_seq_free(seq);
    return st;
}

void st_engine_cancel(st_engine *e, uint64_t id)
{
    pthread_mutex_lock(&e->lock);
    st_seq *seq = st_seq_table_find(&e->table, id);
    if (seq && !seq->cancel_queued) {
        seq->cancel_queued = true;
        atomic_store(&seq->cancelled, true);
        seq->cancel_next = e->cancels;
        e->cancels = seq;
        pthread_cond_signal(&e->wake);
    }
    pthread_mutex_unlock(&e->lock);
}

void st_engine_drain(st_engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->draining = true;
    pthread_mutex_unlock(&e->lock);
}

void st_engine_get_stats(const st_engine *e, st_engine_stats *out)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&e->lock; /* the lock is not part of the state */
    pthread_mutex_lock(lock);
    *out = e->stats;
    out->waiting += e->inbox.count;
    pthread_mutex_unlock(lock);
    if (e->link) {
        st_kv_link_stats link;
        st_kv_link_get_stats(e->link, &link);
        out->transfer_bytes_sent = link.rows_bytes_sent;
        out->transfer_bytes_received = link.rows_bytes_received;
    }
}

st_engine_ports st_engine_get_ports(const st_engine *e)
{
    return e->ports;
}

int32_t st_engine_max_model_len(const st_engine *e)
{
    return e->max_model_len;
}

int32_t st_engine_max_num_seqs(const st_engine *e)
{
    return e->limits.max_seqs;
}

const st_model_config *st_engine_model_config(const st_engine *e)
{
    return e->config;
}
