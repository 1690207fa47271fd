/* See engine_harness.h. */
#include "engine_harness.h"

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

golden goldens[N_GOLDEN];

static struct {
    char name[64];
    int n_threads;
    st_model *model;
} models[8];
static int n_models;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static const char *source_root(void)
{
    const char *root = getenv("STARLING_SOURCE_ROOT");
    return root ? root : ".";
}

static int32_t read_ids(const json_t *array, int32_t out[64])
{
    size_t n = json_array_size(array);
    assert_in_range(n, 1, 64);
    for (size_t i = 0; i < n; i++)
        out[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return (int32_t)n;
}

void harness_init(void)
{
    if (goldens[0].n_prompt > 0)
        return;
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/vectors/lexicon/golden/prompts.json", source_root());
    json_error_t err;
    json_t *root = json_load_file(path, 0, &err);
    if (!root)
        fail_msg("%s: %s", path, err.text);
    assert_int_equal(json_array_size(root), N_GOLDEN);
    for (size_t i = 0; i < N_GOLDEN; i++) {
        const json_t *g = json_array_get(root, i);
        goldens[i].n_prompt = read_ids(json_object_get(g, "tokens"), goldens[i].prompt);
        goldens[i].n_greedy = read_ids(json_object_get(g, "greedy"), goldens[i].greedy);
        goldens[i].n_int8_greedy =
            read_ids(json_object_get(g, "int8_greedy"), goldens[i].int8_greedy);
    }
    json_decref(root);
}

void harness_lexicon(const char *name, char *dir, size_t size)
{
    snprintf(dir, size, "%s/models/lexicon/%s", source_root(), name);
}

st_model *harness_model(const char *name, int n_threads)
{
    for (int i = 0; i < n_models; i++)
        if (strcmp(models[i].name, name) == 0 && models[i].n_threads == n_threads)
            return models[i].model;
    char dir[1024];
    if (name[0] == '/')
        snprintf(dir, sizeof dir, "%s", name);
    else
        harness_lexicon(name, dir, sizeof dir);
    st_model_options o = {.dir = dir,
                          .max_batch_tokens = 512,
                          .max_outputs = 64,
                          .n_threads = n_threads,
                          .screen_least = 1};
    st_error err = {0};
    st_model *m;
    if (st_model_load(&o, &m, &err) != ST_OK)
        fail_msg("%s", err.text);
    snprintf(models[n_models].name, sizeof models[n_models].name, "%s", name);
    models[n_models].n_threads = n_threads;
    models[n_models++].model = m;
    return m;
}

void harness_free(void)
{
    while (n_models > 0)
        st_model_free(models[--n_models].model);
}

st_engine *make_engine(st_model *m, const st_engine_options *o)
{
    st_engine_options opts = *o;
    if (opts.kv_dtype == 0)
        opts.kv_dtype = ST_F32;
    if (opts.num_kv_blocks == 0)
        opts.num_kv_blocks = 8192 / (opts.block_size ? opts.block_size : 16);
    st_error err = {0};
    st_engine *e;
    if (st_engine_new(m, &opts, &e, &err) != ST_OK)
        fail_msg("%s", err.text);
    return e;
}

void free_engine(st_engine *e)
{
    st_engine_stats s;
    st_engine_get_stats(e, &s);
    assert_int_equal(s.used_blocks, 0);
    assert_int_equal(s.running, 0);
    assert_int_equal(s.waiting, 0);
    st_engine_free(e);
}

static void record(void *user, const st_token_event *ev)
{
    recorder *r = user;
    pthread_mutex_lock(&lock);
    if (ev->token >= 0 && r->n < MAX_EVENTS) {
        r->tokens[r->n] = ev->token;
        r->logprobs[r->n] = ev->logprob;
        r->steps[r->n] = ev->step;
        r->top_sums[r->n] = 0;
        for (int32_t i = 0; i < ev->n_top; i++)
            r->top_sums[r->n] += ev->top[i].logprob * (float)(i + 1);
        r->n++;
    }
    r->prompt_tokens = ev->prompt_tokens;
    r->cached_tokens = ev->cached_tokens;
    r->generated_tokens = ev->generated_tokens;
    r->submitted_ns = ev->submitted_ns;
    r->scheduled_ns = ev->scheduled_ns;
    r->last_ns = ev->now_ns;
    if (ev->finish != ST_FINISH_NONE) {
        r->finish = ev->finish;
        r->n_final++;
        r->n_offered = ev->n_offered_blocks;
        for (int32_t i = 0; i < ev->n_offered_blocks && i < 160; i++)
            r->offered[i] = ev->offered_blocks[i];
        if (ev->error)
            snprintf(r->error, sizeof r->error, "%s", ev->error);
    }
    bool held = ev->token >= 0 && r->n == r->hold_at;
    if (ev->finish != ST_FINISH_NONE || r->n == r->notify_at || held)
        pthread_cond_broadcast(&changed);
    while (held && r->n == r->hold_at)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

void submit(st_engine *e, const st_request *r, recorder *rec)
{
    submit_held(e, r, rec, 0);
}

void submit_held(st_engine *e, const st_request *r, recorder *rec, int32_t n)
{
    memset(rec, 0, sizeof *rec);
    rec->hold_at = n;
    st_request q = *r;
    q.on_token = record;
    q.user = rec;
    st_error err = {0};
    uint64_t id;
    if (st_engine_submit(e, &q, &id, &err) != ST_OK)
        fail_msg("%s", err.text);
    assert_int_not_equal(id, 0);
    rec->id = id; /* the callback does not touch it */
}

void recorder_wait_tokens(recorder *rec, int32_t n)
{
    pthread_mutex_lock(&lock);
    rec->notify_at = n;
    while (rec->n_final == 0 && rec->n < n)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

void recorder_release(recorder *rec, int32_t next_n)
{
    pthread_mutex_lock(&lock);
    rec->hold_at = next_n;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

void recorder_wait(recorder *rec)
{
    recorder_wait_tokens(rec, INT32_MAX);
}

void assert_same(const recorder *a, const recorder *b)
{
    assert_int_equal(a->n_final, 1);
    assert_int_equal(b->n_final, 1);
    assert_int_equal(a->finish, b->finish);
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->tokens, b->tokens, (size_t)a->n * sizeof *a->tokens);
    assert_memory_equal(a->logprobs, b->logprobs, (size_t)a->n * sizeof *a->logprobs);
    assert_memory_equal(a->top_sums, b->top_sums, (size_t)a->n * sizeof *a->top_sums);
}

st_request greedy_request(const int32_t *prompt, int32_t n, int32_t max_tokens)
{
    st_request r = {.prompt = prompt, .n_prompt = n};
    st_sampling_default(&r.sampling);
    r.sampling.temperature = 0;
    r.sampling.max_tokens = max_tokens;
    r.sampling.logprobs = 0;
    return r;
}

st_request workload(int i)
{
    static const st_logit_bias bias[] = {{258, 1.5f}, {1378, -3.0f}};
    const golden *g = &goldens[i / 4 % N_GOLDEN];
    st_request r = greedy_request(g->prompt, g->n_prompt, 40);
    st_sampling *s = &r.sampling;
    s->seed = (uint64_t)(1000 + i);
    switch (i % 4) {
    case 0:
        break;
    case 1: /* goes on past its answer, alone in its cache */
        s->temperature = 0.8f;
        s->ignore_eos = true;
        s->logprobs = 5;
        r.cache_salt = "other";
        break;
    case 2:
        s->temperature = 1.5f;
        s->top_p = 0.95f;
        s->top_k = 50;
        s->repetition_penalty = 1.1f;
        s->frequency_penalty = 0.3f;
        s->min_tokens = 25;
        break;
    default:
        s->temperature = 2.0f;
        s->min_p = 0.001f;
        s->presence_penalty = 0.5f;
        s->logit_bias = bias;
        s->n_logit_bias = 2;
        s->logprobs = 20;
        s->max_tokens = 30;
    }
    return r;
}

void run_workload(st_engine *e, int at_once, recorder *out)
{
    for (int i = 0; i < N_WORKLOAD; i += at_once) {
        int end = i + at_once < N_WORKLOAD ? i + at_once : N_WORKLOAD;
        for (int j = i; j < end; j++) {
            st_request r = workload(j);
            submit(e, &r, &out[j]);
        }
        for (int j = i; j < end; j++)
            recorder_wait(&out[j]);
    }
}

void long_prompt(int32_t *out, int32_t n, int kind)
{
    for (int32_t i = 0, g = kind, at = 0; i < n; i++) {
        out[i] = goldens[g % N_GOLDEN].prompt[at++];
        if (at == goldens[g % N_GOLDEN].n_prompt) {
            at = 0;
            g++;
        }
    }
}
