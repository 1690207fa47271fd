/* The engine on a toy model defined here: it writes each token into its KV row and computes logits
 * from all rows that the block table leads to, so that any mistake with blocks changes the answer.
 * It can be told to fail, to return NaN, and to wait, which makes races repeatable. */
#include "cmocka_all.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/sampler.h"
#include "starling/engine.h"

enum { VOCAB = 64, EOS = 0, TOKEN_NAN = 63, TOKEN_FAIL = 62, MAX_LEN = 128, MAX_BATCH = 64 };

/* ---- the model ---- */

struct st_model {
    st_model_config config;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool closed;     /* forward waits */
    int64_t entered; /* calls of forward so far */
};

static st_model toy = {
    .config = {.vocab_size = VOCAB, .n_layers = 2, .eos_ids = {EOS}, .n_eos = 1},
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .changed = PTHREAD_COND_INITIALIZER,
};

const st_model_config *st_model_get_config(const st_model *m)
{
    return &m->config;
}

int32_t st_model_max_len(const st_model *m)
{
    return MAX_LEN;
}

int32_t st_model_max_batch_tokens(const st_model *m)
{
    return MAX_BATCH;
}

int32_t st_model_max_outputs(const st_model *m)
{
    return MAX_BATCH;
}

void st_model_pin_thread(const st_model *m)
{
}

st_kv_row_shape st_model_kv_row(const st_model *m)
{
    return (st_kv_row_shape){.plain = 1};
}

uint64_t st_model_fingerprint(const st_model *m)
{
    return 42;
}

static uint64_t mix(uint64_t h, uint64_t x)
{
    h = (h ^ x) * 0x9E3779B97F4A7C15u;
    return h ^ (h >> 29);
}

static void toy_logits(uint64_t h, int32_t last, float *logits)
{
    for (uint64_t v = 0; v < VOCAB; v++)
        logits[v] = (float)(mix(mix(h, v), 1) >> 40) / (float)(1 << 24) * 6.0f;
    logits[TOKEN_FAIL] = logits[TOKEN_NAN] = -20.0f;
    logits[EOS] -= 3.0f;
    if (last == TOKEN_NAN)
        logits[5] = NAN;
}

static float *kv_row(st_kv_store *kv, int32_t layer, const st_batch_seq *s, int32_t pos)
{
    int32_t block = s->block_table[pos / kv->block_size];
    assert_in_range(block, 0, kv->n_blocks - 1);
    return (float *)(void *)(kv->layers[layer] + (size_t)block * kv->block_bytes) +
           pos % kv->block_size;
}

/* Position and sequence of the last write are kept in layer 1: within a step nobody else may write
 * the same row. */
static void write_rows(const st_batch *b, st_kv_store *kv, int64_t step)
{
    for (int32_t i = 0; i < b->n_seqs; i++)
        for (int32_t j = 0; j < b->seqs[i].count; j++) {
            float *mark = kv_row(kv, 1, &b->seqs[i], b->seqs[i].pos0 + j);
            assert_true(*mark != (float)step);
            *mark = (float)step;
            *kv_row(kv, 0, &b->seqs[i], b->seqs[i].pos0 + j) =
                (float)b->tokens[b->seqs[i].first + j];
        }
}

st_status st_model_forward(st_model *m, const st_batch *b, st_kv_store *kv, float *logits,
                           st_error *err)
{
    pthread_mutex_lock(&m->lock);
    int64_t step = ++m->entered;
    pthread_cond_broadcast(&m->changed);
    while (m->closed)
        pthread_cond_wait(&m->changed, &m->lock);
    pthread_mutex_unlock(&m->lock);
    assert_in_range(b->n_tokens, 1, MAX_BATCH);
    for (int32_t i = 0; i < b->n_tokens; i++)
        if (b->tokens[i] == TOKEN_FAIL)
            return st_fail(err, ST_EINTERNAL, "the toy fails as told");
    write_rows(b, kv, step % 1000003);
    for (int32_t o = 0; o < b->n_outputs; o++) {
        int32_t row = b->output_rows[o], i = 0;
        while (row >= b->seqs[i].first + b->seqs[i].count)
            i++;
        uint64_t h = 7;
        for (int32_t pos = 0; pos <= b->seqs[i].pos0 + row - b->seqs[i].first; pos++)
            h = mix(h, (uint64_t)*kv_row(kv, 0, &b->seqs[i], pos));
        toy_logits(h, b->tokens[row], logits + (size_t)o * VOCAB);
    }
    return ST_OK;
}

static void gate(bool closed)
{
    pthread_mutex_lock(&toy.lock);
    toy.closed = closed;
    pthread_cond_broadcast(&toy.changed);
    pthread_mutex_unlock(&toy.lock);
}

/* Returns when a forward call beyond the first n has begun. */
static int64_t wait_entered(int64_t n)
{
    pthread_mutex_lock(&toy.lock);
    while (toy.entered <= n)
        pthread_cond_wait(&toy.changed, &toy.lock);
    n = toy.entered;
    pthread_mutex_unlock(&toy.lock);
    return n;
}

/* ---- what an answer must be ---- */

typedef struct answer {
    int32_t tokens[MAX_LEN];
    int32_t n;
    st_finish finish;
} answer;

static void expect(const st_request *r, st_sampler *s, answer *a)
{
    int32_t all[MAX_LEN], n = r->n_prompt;
    memcpy(all, r->prompt, (size_t)n * sizeof *all);
    *a = (answer){.finish = ST_FINISH_LENGTH};
    while (a->n < r->sampling.max_tokens && n < MAX_LEN) {
        float logits[VOCAB];
        uint64_t h = 7;
        for (int32_t i = 0; i < n; i++)
            h = mix(h, (uint64_t)all[i]);
        toy_logits(h, all[n - 1], logits);
        st_sample_context c = {all, r->n_prompt, n, toy.config.eos_ids, 1};
        st_sample got;
        assert_int_equal(st_sampler_run(s, logits, &r->sampling, &c, &got, NULL), ST_OK);
        all[n++] = a->tokens[a->n++] = got.token;
        if (got.token == EOS) {
            a->finish = ST_FINISH_STOP;
            return;
        }
    }
}

/* ---- requests ---- */

typedef struct job {
    st_request r;
    int32_t prompt[MAX_LEN];
    uint64_t id;
    answer got;
    int n_final;
    char error[128];
    st_engine *engine;
    struct job *cancel_when_running; /* cancelled at this job's second token */
    struct job *submit_when_done;
} job;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t finished = PTHREAD_COND_INITIALIZER;

static void submit(st_engine *e, job *j)
{
    st_error err = {0};
    uint64_t id;
    j->engine = e;
    if (st_engine_submit(e, &j->r, &id, &err) != ST_OK)
        fail_msg("%s", err.text);
    pthread_mutex_lock(&lock);
    j->id = id;
    pthread_mutex_unlock(&lock);
}

static void on_token(void *user, const st_token_event *ev)
{
    job *j = user;
    pthread_mutex_lock(&lock);
    if (ev->token >= 0)
        j->got.tokens[j->got.n++] = ev->token;
    uint64_t cancel = j->cancel_when_running && j->got.n == 2 ? j->cancel_when_running->id : 0;
    pthread_mutex_unlock(&lock);
    if (cancel)
        st_engine_cancel(j->engine, cancel);
    if (ev->finish == ST_FINISH_NONE)
        return;
    if (j->submit_when_done)
        submit(j->engine, j->submit_when_done);
    pthread_mutex_lock(&lock);
    j->got.finish = ev->finish;
    j->n_final++;
    if (ev->error)
        snprintf(j->error, sizeof j->error, "%s", ev->error);
    pthread_cond_broadcast(&finished);
    pthread_mutex_unlock(&lock);
}

static void wait_for(job *j)
{
    pthread_mutex_lock(&lock);
    while (j->n_final == 0)
        pthread_cond_wait(&finished, &lock);
    pthread_mutex_unlock(&lock);
    assert_int_equal(j->n_final, 1);
}

static job *make_job(const int32_t *prompt, int32_t n, int32_t max_tokens)
{
    job *j = calloc(1, sizeof *j);
    assert_non_null(j);
    memcpy(j->prompt, prompt, (size_t)n * sizeof *prompt);
    j->r = (st_request){.prompt = j->prompt, .n_prompt = n, .on_token = on_token, .user = j};
    st_sampling_default(&j->r.sampling);
    j->r.sampling.temperature = 0;
    j->r.sampling.max_tokens = max_tokens;
    return j;
}

static void assert_answer(const job *j)
{
    st_sampler *s;
    answer a;
    assert_int_equal(st_sampler_new(VOCAB, &s, NULL), ST_OK);
    expect(&j->r, s, &a);
    assert_int_equal(j->got.finish, a.finish);
    assert_int_equal(j->got.n, a.n);
    assert_memory_equal(j->got.tokens, a.tokens, (size_t)a.n * sizeof *a.tokens);
    st_sampler_free(s);
}

static st_engine *make_engine(st_engine_options o)
{
    st_error err = {0};
    st_engine *e;
    o.kv_dtype = ST_F32;
    if (o.num_kv_blocks == 0)
        o.num_kv_blocks = 256;
    if (st_engine_new(&toy, &o, &e, &err) != ST_OK)
        fail_msg("%s", err.text);
    return e;
}

static st_engine_stats stats_of(const st_engine *e)
{
    st_engine_stats s;
    st_engine_get_stats(e, &s);
    return s;
}

static void free_engine(st_engine *e)
{
    st_engine_stats s = stats_of(e);
    assert_int_equal(s.used_blocks, 0);
    assert_int_equal(s.running, 0);
    assert_int_equal(s.waiting, 0);
    st_engine_free(e);
}

/* ---- tests ---- */

static void bad_logits_end_one_request(void **state)
{
    (void)state;
    st_engine *e = make_engine((st_engine_options){.block_size = 4});
    const int32_t good[] = {1, 2, 3, 4, 5}, bad[] = {1, 2, 3, 4, TOKEN_NAN};
    job *jobs[9];
    gate(true); /* so that all of them are in one batch */
    for (int i = 0; i < 9; i++) {
        jobs[i] = make_job(i % 3 == 1 ? bad : good, 5, 20);
        jobs[i]->r.sampling.seed = (uint64_t)i;
        jobs[i]->r.sampling.temperature = 1;
        submit(e, jobs[i]);
    }
    gate(false);
    for (int i = 0; i < 9; i++) {
        wait_for(jobs[i]);
        if (i % 3 == 1) {
            assert_int_equal(jobs[i]->got.finish, ST_FINISH_ERROR);
            assert_int_equal(jobs[i]->got.n, 0);
            assert_non_null(strstr(jobs[i]->error, "not a finite number"));
        } else {
            assert_answer(jobs[i]);
        }
        free(jobs[i]);
    }
    assert_int_equal(stats_of(e).finished_error, 3);
    free_engine(e);
}

static void a_failed_step_ends_its_batch_only(void **state)
{
    (void)state;
    st_engine *e = make_engine((st_engine_options){.block_size = 4});
    const int32_t good[] = {9, 8, 7, 6, 5, 4}, bad[] = {1, TOKEN_FAIL};
    job *fails = make_job(bad, 2, 5), *works = make_job(good, 6, 30);
    submit(e, fails);
    wait_for(fails);
    assert_int_equal(fails->got.finish, ST_FINISH_ERROR);
    assert_string_equal(fails->error, "the toy fails as told");
    submit(e, works);
    wait_for(works);
    assert_answer(works);
    free(fails);
    free(works);
    free_engine(e);
}

/* Cancelled while its step runs: no token of that step reaches it. */
static void cancellation_comes_after_the_running_step(void **state)
{
    (void)state;
    st_engine *e = make_engine((st_engine_options){.block_size = 4});
    const int32_t prompt[] = {9, 8, 7};
    job *j = make_job(prompt, 3, 50), *stays = make_job(prompt, 2, 50);
    int64_t before = toy.entered;
    gate(true);
    submit(e, j);
    wait_entered(before);
    submit(e, stays);
    st_engine_stats s = stats_of(e);
    assert_int_equal(s.waiting, 1);
    st_engine_cancel(e, j->id);
    st_engine_cancel(e, j->id); /* twice is once */
    gate(false);
    wait_for(j);
    assert_int_equal(j->got.finish, ST_FINISH_CANCELLED);
    assert_int_equal(j->got.n, 0);
    wait_for(stays);
    assert_answer(stays);
    free(j);
    free(stays);
    free_engine(e);
}

static void callbacks_may_cancel_and_submit(void **state)
{
    (void)state;
    st_engine *e = make_engine((st_engine_options){.block_size = 4});
    const int32_t a[] = {3, 1, 4, 1, 5}, b[] = {2, 7, 1, 8};
    job *first = make_job(a, 5, 40), *victim = make_job(b, 4, 100), *next = make_job(b, 4, 40);
    job *self = make_job(b, 3, 100);
    first->r.sampling.ignore_eos = victim->r.sampling.ignore_eos = true;
    self->r.sampling.ignore_eos = true;
    self->cancel_when_running = self;
    first->cancel_when_running = victim;
    first->submit_when_done = next;
    gate(true);
    submit(e, victim);
    submit(e, self);
    submit(e, first);
    gate(false);
    wait_for(victim);
    wait_for(next);
    wait_for(self);
    assert_int_equal(victim->got.finish, ST_FINISH_CANCELLED);
    assert_true(victim->got.n < 40);
    assert_int_equal(self->got.finish, ST_FINISH_CANCELLED);
    assert_int_equal(self->got.n, 2);
    assert_int_equal(first->got.n, 40);
    assert_answer(next);
    free(first);
    free(victim);
    free(next);
    free(self);
    free_engine(e);
}

/* ---- random load from several threads ---- */

enum { N_THREADS = 4, N_JOBS = 600 };

typedef struct load {
    st_engine *e;
    uint64_t rng;
    int answered, cancelled;
} load;

static uint32_t rnd(load *l, uint32_t n)
{
    l->rng = l->rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(l->rng >> 33) % n;
}

/* Prompts share beginnings of several lengths, so that caches are hit at every turn. */
static job *random_job(load *l)
{
    int32_t prompt[MAX_LEN], n = 1 + (int32_t)rnd(l, rnd(l, 4) ? 20 : 90);
    int32_t family = 1 + (int32_t)rnd(l, 3), common = (int32_t)rnd(l, 40);
    for (int32_t i = 0; i < n; i++)
        prompt[i] = i < common ? 1 + (family * 7 + i) % 60 : 1 + (int32_t)rnd(l, 60);
    job *j = make_job(prompt, n, 1 + (int32_t)rnd(l, 60));
    st_sampling *s = &j->r.sampling;
    s->temperature = rnd(l, 2) ? 0.0f : 0.9f;
    s->seed = rnd(l, 5);
    s->presence_penalty = rnd(l, 3) ? 0.0f : 1.0f;
    s->top_k = rnd(l, 3) ? 0 : 10;
    j->r.priority = (int32_t)rnd(l, 3);
    j->r.cache_salt = rnd(l, 5) ? NULL : "x";
    return j;
}

static void *run_load(void *arg)
{
    load *l = arg;
    enum { WINDOW = 8 };
    job *open[WINDOW] = {NULL};
    for (int i = 0; i < N_JOBS + WINDOW; i++) {
        job **slot = &open[i % WINDOW];
        if (*slot) {
            if (rnd(l, 6) == 0)
                st_engine_cancel(l->e, (*slot)->id);
            wait_for(*slot);
            if ((*slot)->got.finish == ST_FINISH_CANCELLED) {
                l->cancelled++;
            } else {
                assert_answer(*slot);
                l->answered++;
            }
            free(*slot);
            *slot = NULL;
        }
        if (i >= N_JOBS)
            continue;
        *slot = random_job(l);
        submit(l->e, *slot);
        if (rnd(l, 20) == 0)
            st_engine_cancel(l->e, open[rnd(l, WINDOW)] ? (*slot)->id : 0);
        if (rnd(l, 30) == 0)
            usleep(rnd(l, 300));
    }
    return NULL;
}

static void random_load(st_engine_options o, uint64_t seed)
{
    st_engine *e = make_engine(o);
    pthread_t threads[N_THREADS];
    load loads[N_THREADS];
    for (int i = 0; i < N_THREADS; i++) {
        loads[i] = (load){.e = e, .rng = seed * 31 + (uint64_t)i};
        assert_int_equal(pthread_create(&threads[i], NULL, run_load, &loads[i]), 0);
    }
    int answered = 0, cancelled = 0;
    for (int i = 0; i < N_THREADS; i++) {
        pthread_join(threads[i], NULL);
        answered += loads[i].answered;
        cancelled += loads[i].cancelled;
    }
    st_engine_stats s = stats_of(e);
    print_message("%d answered, %d cancelled, %d steps, %d preemptions, %d of %d tokens cached\n",
                  answered, cancelled, (int)s.steps, (int)s.preemptions, (int)s.prefix_hits,
                  (int)s.prefix_queries);
    assert_int_equal(answered + cancelled, N_THREADS * N_JOBS);
    assert_int_equal(s.finished_stop + s.finished_length, answered);
    assert_int_equal(s.finished_cancelled, cancelled);
    assert_true(answered > cancelled);
    assert_true(s.prefix_hits == 0 ? o.disable_prefix_caching : !o.disable_prefix_caching);
    free_engine(e);
}

static void random_loads_give_the_right_answers(void **state)
{
    (void)state;
    const char *fixed = getenv("STARLING_TEST_SEED");
    uint64_t seed = fixed ? strtoull(fixed, NULL, 0) : (uint64_t)time(NULL);
    print_message("STARLING_TEST_SEED=%llu\n", (unsigned long long)seed);
    random_load((st_engine_options){.block_size = 4, .num_kv_blocks = 40}, seed);
    random_load(
        (st_engine_options){
            .block_size = 3, .num_kv_blocks = 60, .max_num_seqs = 9, .max_num_batched_tokens = 12},
        seed);
    random_load((st_engine_options){.block_size = 1, .num_kv_blocks = 150, .max_prefill_chunk = 5},
                seed);
    random_load(
        (st_engine_options){.block_size = 8, .num_kv_blocks = 20, .disable_prefix_caching = true},
        seed);
    random_load((st_engine_options){.block_size = 16, .num_kv_blocks = 500}, seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_logits_end_one_request),
        cmocka_unit_test(a_failed_step_ends_its_batch_only),
        cmocka_unit_test(cancellation_comes_after_the_running_step),
        cmocka_unit_test(callbacks_may_cancel_and_submit),
        cmocka_unit_test(random_loads_give_the_right_answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
