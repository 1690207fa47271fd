/* One step of the engine: plan, admit, run the model, publish blocks, sample, call back. */
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/engine_impl.h"

const int32_t st_iteration_bounds[ST_ITERATION_BUCKETS - 1] = {
    1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};

/* ---- planning ---- */

static void give_back_blocks(st_engine *e, st_seq *seq)
{
    st_block_pool_release(e->pool, seq->blocks, seq->n_blocks);
    seq->n_blocks = seq->n_computed = seq->n_published = 0;
    seq->chunk = 0;
}

/* Puts a running request back among the waiting, before all of its priority that came later. Its
 * blocks stay in the cache until they are needed; what is lost is computed again, with the same
 * bits. */
static void preempt(st_engine *e, int32_t index)
{
    st_seq *seq = e->running[index];
    memmove(&e->running[index], &e->running[index + 1],
            (size_t)(e->n_running - index - 1) * sizeof(st_seq *));
    e->n_running--;
    give_back_blocks(e, seq);
    st_handover_lost_blocks(e, seq);
    seq->place = ST_SEQ_WAITING;
    st_seq_list_insert(&e->waiting, seq);
    e->now.preemptions++;
}

/* Takes the blocks that seq's chunk needs. The plan has counted them: there are enough. */
static void take_blocks(st_engine *e, st_seq *seq)
{
    int32_t have = seq->n_blocks;
    int32_t need = st_sched_blocks(seq->n_computed + seq->chunk, e->limits.block_size);
    if (need > have && st_block_pool_alloc(e->pool, need - have, seq->blocks + have) == ST_OK)
        seq->n_blocks = need;
}

static int32_t plan_running(st_engine *e)
{
    for (;;) {
        for (int32_t i = 0; i < e->n_running; i++)
            e->sched[i] = st_seq_for_scheduler(e->running[i]);
        st_sched_plan plan = st_sched_running(&e->limits, e->sched, e->n_running,
                                              st_block_pool_available(e->pool), e->chunk);
        if (plan.victim < 0) {
            for (int32_t i = 0; i < e->n_running; i++) {
                e->running[i]->chunk = e->chunk[i];
                take_blocks(e, e->running[i]);
            }
            return plan.tokens_left;
        }
        preempt(e, plan.victim);
    }
}

/* True when a running request is about to compute the block that seq lacks first. */
static bool prefix_is_being_computed(const st_engine *e, const st_seq *seq, int32_t n_matched)
{
    int32_t usable = (seq->n_tokens - 1) / e->limits.block_size;
    if (!e->prefix_caching || n_matched >= usable)
        return false;
    st_block_hash want = seq->hashes[n_matched];
    for (int32_t i = 0; i < e->n_running; i++) {
        const st_seq *r = e->running[i];
        if (r->n_hashes > n_matched && r->hashes[n_matched].lo == want.lo &&
            r->hashes[n_matched].hi == want.hi &&
            r->n_computed < (n_matched + 1) * e->limits.block_size)
            return true;
    }
    return false;
}

/* Puts an admitted sequence into the step. */
static void run(st_engine *e, st_seq *seq, int32_t chunk)
{
    e->running[e->n_running++] = seq;
    seq->place = ST_SEQ_RUNNING;
    seq->chunk = chunk;
    take_blocks(e, seq);
    if (seq->was_scheduled)
        return;
    seq->was_scheduled = true;
    seq->scheduled_ns = st_now_ns();
    e->now.prefix_queries += e->prefix_caching ? (uint64_t)seq->n_prompt : 0;
    e->now.prefix_hits += (uint64_t)seq->cached_tokens;
    e->now.prompt_tokens += (uint64_t)seq->n_prompt;
}

/* Takes a waiting sequence in; its first n_matched blocks were found in the cache. */
static void admit(st_engine *e, st_seq *seq, int32_t n_matched, int32_t chunk)
{
    st_seq_list_remove(&e->waiting, seq);
    seq->n_blocks = seq->n_published = n_matched;
    seq->n_computed = n_matched * e->limits.block_size;
    if (!seq->was_scheduled)
        seq->cached_tokens = seq->n_computed;
    if (st_handover_wants_fetch(seq, seq->n_computed)) {
        seq->chunk = seq->n_tokens - seq->n_computed;
        take_blocks(e, seq);
        seq->chunk = 0;
        st_handover_fetch(e, seq, n_matched);
        return;
    }
    st_handover_announce_cached(e, seq);
    run(e, seq, chunk);
    st_handover_not_needed(e, seq);
}

/* What admitted sequences will need soon. */
static int32_t reserved(st_engine *e)
{
    int32_t n = 0;
    for (int32_t i = 0; i < e->n_running; i++) {
        e->sched[n] = st_seq_for_scheduler(e->running[i]);
        e->sched[n++].n_computed += e->running[i]->chunk;
    }
    for (const st_seq *s = e->fetching.head; s; s = s->next)
        e->sched[n++] = st_seq_for_scheduler(s);
    for (const st_seq *s = e->ready.head; s; s = s->next)
        e->sched[n++] = st_seq_for_scheduler(s);
    return st_sched_reserved(&e->limits, e->sched, n);
}

static int32_t n_admitted(const st_engine *e)
{
    return e->n_running + e->fetching.count + e->ready.count;
}

/* Asks the policy about one waiting request. At least one token must be left to compute: its
 * logits are the first result. Fetching takes blocks, but no tokens of the step's budget. */
static st_sched_answer consider(st_engine *e, st_seq *seq, int32_t *tokens_left)
{
    int32_t usable = (seq->n_tokens - 1) / e->limits.block_size;
    int32_t n_matched = st_block_pool_match(
        e->pool, seq->hashes, usable < seq->n_hashes ? usable : seq->n_hashes, seq->blocks);
    bool fetches = st_handover_wants_fetch(seq, n_matched * e->limits.block_size);
    st_sched_room room = {.n_running = n_admitted(e),
                          .tokens_left = fetches ? e->limits.max_tokens : *tokens_left,
                          .free_blocks = st_block_pool_available(e->pool),
                          .reserved = reserved(e)};
    st_sched_candidate c = {.n_tokens = seq->n_tokens,
                            .n_cached = n_matched * e->limits.block_size,
                            .prefix_is_being_computed =
                                !fetches && prefix_is_being_computed(e, seq, n_matched)};
    int32_t chunk = 0;
    st_sched_answer answer = st_sched_admit(&e->limits, &room, &c, &chunk);
    if (answer != ST_SCHED_ADMIT) {
        st_block_pool_release(e->pool, seq->blocks, n_matched);
        return answer;
    }
    admit(e, seq, n_matched, chunk);
    *tokens_left -= fetches ? 0 : chunk;
    return answer;
}

/* Sequences whose fetch is over: mostly one token each. They hold their blocks already. */
static int32_t plan_ready(st_engine *e, int32_t tokens_left)
{
    while (e->ready.head && tokens_left > 0) {
        st_seq *seq = e->ready.head;
        int32_t chunk = seq->n_tokens - seq->n_computed, most = e->limits.max_chunk;
        if (most > 0 && chunk > most)
            chunk = most;
        if (chunk > tokens_left)
            chunk = tokens_left;
        st_seq_list_remove(&e->ready, seq);
        run(e, seq, chunk);
        tokens_left -= chunk;
    }
    return tokens_left;
}

static void plan_waiting(st_engine *e, int32_t tokens_left)
{
    /* Each look costs a match; those behind the first max_seqs could not all start anyway. */
    int32_t looks = e->limits.max_seqs;
    st_seq *next = NULL;
    for (st_seq *seq = e->waiting.head; seq && looks-- > 0; seq = next) {
        next = seq->next;
        if (n_admitted(e) >= e->limits.max_seqs)
            return;
        if (tokens_left <= 0 && seq->handover.what != ST_HANDOVER_FETCH)
            continue;
        if (consider(e, seq, &tokens_left) == ST_SCHED_STOP)
            return;
    }
}

/* ---- running ---- */

static st_sample_context context_of(const st_engine *e, const st_seq *seq)
{
    return (st_sample_context){.tokens = seq->tokens,
                               .n_prompt = seq->n_prompt,
                               .n_tokens = seq->n_tokens,
                               .eos_ids = e->config->eos_ids,
                               .n_eos = e->config->n_eos};
}

static void add_output(st_engine *e, int32_t at, int32_t row, int32_t best, st_seq *seq)
{
    e->output_rows[at] = row;
    e->output_best[at] = best;
    e->output_seqs[at] = seq;
}

/* Those that need all of their logits come first: the model serves them apart from the others. */
static void insert_output(st_engine *e, int32_t n, int32_t *n_whole, int32_t row, st_seq *seq)
{
    st_sample_context ctx = context_of(e, seq);
    int32_t best = st_sampler_decided_by(&seq->sampling, &ctx), at = n;
    if (best == 0) {
        at = (*n_whole)++;
        add_output(e, n, e->output_rows[at], e->output_best[at], e->output_seqs[at]);
    }
    add_output(e, at, row, best, seq);
}

/* Lays the running requests' chunks out as one batch. */
static st_batch build_batch(st_engine *e)
{
    /* With output_bad the model leaves rows that are not finite to us: the sampler finds them
     * again, and only their requests end. */
    st_batch b = {.tokens = e->tokens,
                  .seqs = e->seqs,
                  .output_rows = e->output_rows,
                  .output_best = e->output_best,
                  .output_bad = e->output_bad};
    int32_t n_whole = 0;
    e->n_announce = 0;
    for (int32_t i = 0; i < e->n_running; i++) {
        st_seq *seq = e->running[i];
        if (seq->chunk == 0)
            continue;
        if (seq->hold)
            st_handover_announce(e, seq);
        memcpy(e->tokens + b.n_tokens, seq->tokens + seq->n_computed,
               (size_t)seq->chunk * sizeof *e->tokens);
        e->seqs[b.n_seqs++] = (st_batch_seq){.first = b.n_tokens,
                                             .count = seq->chunk,
                                             .pos0 = seq->n_computed,
                                             .block_table = seq->blocks,
                                             .expanded_until = seq->expanded_until};
        b.n_tokens += seq->chunk;
        if (seq->n_computed + seq->chunk == seq->n_tokens)
            insert_output(e, b.n_outputs++, &n_whole, b.n_tokens - 1, seq);
    }
    if (e->n_announce > 0) {
        b.on_layer = st_handover_on_layer;
        b.on_layer_user = e;
    }
    return b;
}

static void count_step(st_engine *e, int32_t n_tokens)
{
    int bucket = 0;
    while (bucket < ST_ITERATION_BUCKETS - 1 && n_tokens > st_iteration_bounds[bucket])
        bucket++;
    e->now.iteration_tokens[bucket]++;
    e->now.step_tokens += (uint64_t)n_tokens;
    e->now.last_step_tokens = n_tokens;
    e->now.steps++;
}

/* Makes what the step has filled findable, for requests that are still waiting, too. */
void st_engine_publish_blocks(st_engine *e, st_seq *seq)
{
    int32_t bs = e->limits.block_size, full = seq->n_computed / bs;
    if (!e->prefix_caching || full <= seq->n_published)
        return;
    st_seq_extend_hashes(seq, bs);
    for (int32_t i = seq->n_published; i < full; i++)
        st_block_pool_publish(e->pool, seq->blocks[i], seq->hashes[i],
                              i > 0 ? seq->hashes[i - 1] : seq->root,
                              seq->tokens + (size_t)i * (size_t)bs);
    seq->n_published = full;
}

static void after_forward(st_engine *e)
{
    for (int32_t i = 0; i < e->n_running; i++) {
        st_seq *seq = e->running[i];
        seq->n_computed += seq->chunk;
        if (seq->chunk > 0)
            st_engine_publish_blocks(e, seq);
        seq->chunk = 0;
    }
}

/* The model refused the batch: its requests end, the engine goes on. */
static void fail_batch(st_engine *e, const st_error *err)
{
    st_err("engine: step %lu failed: %s", (unsigned long)e->now.steps, err->text);
    for (int32_t i = e->n_running - 1; i >= 0; i--)
        if (e->running[i]->chunk > 0) {
            st_token_event event = {.token = -1, .error = err->text};
            st_engine_finish(e, e->running[i], ST_FINISH_ERROR, &event);
        }
}

/* ---- results ---- */

static bool contains(const int32_t *ids, int32_t n, int32_t id)
{
    for (int32_t i = 0; i < n; i++)
        if (ids[i] == id)
            return true;
    return false;
}

static st_finish why_finished(const st_engine *e, const st_seq *seq, int32_t token)
{
    if (!seq->sampling.ignore_eos && contains(e->config->eos_ids, e->config->n_eos, token))
        return ST_FINISH_STOP;
    if (contains(seq->sampling.stop_ids, seq->sampling.n_stop_ids, token))
        return ST_FINISH_STOP;
    return seq->n_tokens >= seq->max_total ? ST_FINISH_LENGTH : ST_FINISH_NONE;
}

static void emit(st_engine *e, st_seq *seq, const float *logits)
{
    st_sample_context ctx = context_of(e, seq);
    st_sample sample;
    st_error err;
    st_token_event event = {.token = -1};
    if (st_sampler_run(e->sampler, logits, &seq->sampling, &ctx, &sample, &err) != ST_OK) {
        event.error = err.text;
        st_engine_finish(e, seq, ST_FINISH_ERROR, &event);
        return;
    }
    seq->tokens[seq->n_tokens++] = sample.token;
    e->now.generation_tokens++;
    event.token = sample.token;
    event.logprob = sample.logprob;
    event.top = sample.top;
    event.n_top = sample.n_top;
    st_finish finish = why_finished(e, seq, sample.token);
    if (finish != ST_FINISH_NONE) {
        st_engine_finish(e, seq, finish, &event);
        return;
    }
    event.id = seq->id;
    event.prompt_tokens = seq->n_prompt;
    event.cached_tokens = seq->cached_tokens;
    event.generated_tokens = seq->n_tokens - seq->n_prompt;
    event.submitted_ns = seq->submitted_ns;
    event.scheduled_ns = seq->scheduled_ns;
    event.now_ns = st_now_ns();
    event.step = e->now.steps;
    seq->on_token(seq->user, &event);
}

bool st_engine_step(st_engine *e)
{
    plan_waiting(e, plan_ready(e, plan_running(e)));
    st_batch batch = build_batch(e);
    if (batch.n_tokens == 0) {
        st_engine_publish_stats(e);
        return false;
    }
    count_step(e, batch.n_tokens);
    st_engine_publish_stats(e); /* a step may take long: who runs and who waits is known now */
    st_error err = {0};
    if (st_model_forward(e->model, &batch, e->kv, e->logits, &err) != ST_OK) {
        fail_batch(e, &err);
        return true;
    }
    st_handover_announced(e);
    after_forward(e);
    for (int32_t i = 0; i < batch.n_outputs; i++) {
        /* A cancelled request gets no more tokens: it ends before the next step. */
        if (!atomic_load(&e->output_seqs[i]->cancelled))
            emit(e, e->output_seqs[i], e->logits + (size_t)i * (size_t)e->config->vocab_size);
    }
    st_engine_publish_stats(e);
    return true;
}
