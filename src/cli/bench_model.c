/* End-to-end benchmark of a checkpoint: st_model_forward alone, without scheduler or sampler, so
 * that the figures are the kernels' and the layers'. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cli/bench.h"
#include "cli/bench_time.h"
#include "cli/loading.h"
#include "model/model_profile.h"

enum { BLOCK = 16, STEP = 512, MAX_RUNS = 64, BEYOND_CACHES = 128 << 20 };

typedef struct runner {
    st_bench *b;
    const st_bench_model_options *o;
    st_model *m;
    st_kv_store *kv;
    int32_t *table;  /* [batch][blocks_each]: every sequence has its own blocks */
    int32_t *tokens; /* [STEP or batch] */
    int32_t *rows;
    int32_t *best;      /* [batch] ones: as a greedy request */
    st_batch_seq *seqs; /* [batch] */
    float *logits;
    int32_t blocks_each;
    st_error *err;
} runner;

/* Ids all over the vocabulary, so that experts are chosen as in real use rather than always the
 * same ones. */
static void fill_tokens(runner *r, int32_t n, int32_t salt)
{
    int32_t vocab = st_model_get_config(r->m)->vocab_size;
    for (int32_t i = 0; i < n; i++)
        r->tokens[i] = (int32_t)(((uint32_t)(i + salt * 131) * 2654435761u >> 3) % (uint32_t)vocab);
}

/* count tokens from pos of a prompt of n, as sequence 0; the last one's logits. */
static st_status prompt_step(runner *r, int32_t n, int32_t pos, int32_t count)
{
    fill_tokens(r, count, pos);
    r->seqs[0] =
        (st_batch_seq){.count = count,
                       .pos0 = pos,
                       .block_table = r->table,
                       .expanded_until = st_model_expanded_until(st_model_get_config(r->m), n)};
    r->rows[0] = count - 1;
    st_batch batch = {.n_tokens = count,
                      .tokens = r->tokens,
                      .n_seqs = 1,
                      .seqs = r->seqs,
                      .n_outputs = 1,
                      .output_rows = r->rows,
                      .output_best = r->best};
    return st_model_forward(r->m, &batch, r->kv, r->logits, r->err);
}

/* Sequence 0 from position pos up to n. */
static st_status prompt_from(runner *r, int32_t pos, int32_t n)
{
    st_status s = ST_OK;
    for (; pos < n && !s; pos += STEP)
        s = prompt_step(r, n, pos, n - pos < STEP ? n - pos : STEP);
    return s;
}

static st_status prompt(runner *r, int32_t n)
{
    return prompt_from(r, 0, n);
}

/* One token for each of n sequences at position pos. */
static st_status generate_step(runner *r, int32_t n, int32_t pos)
{
    fill_tokens(r, n, pos);
    for (int32_t i = 0; i < n; i++) {
        r->seqs[i] = (st_batch_seq){.first = i,
                                    .count = 1,
                                    .pos0 = pos,
                                    .block_table = r->table + (size_t)i * (size_t)r->blocks_each};
        r->rows[i] = i;
    }
    st_batch batch = {.n_tokens = n,
                      .tokens = r->tokens,
                      .n_seqs = n,
                      .seqs = r->seqs,
                      .n_outputs = n,
                      .output_rows = r->rows,
                      .output_best = r->best};
    return st_model_forward(r->m, &batch, r->kv, r->logits, r->err);
}

static st_status bench_prompt(runner *r)
{
    double t[3];
    char shape[64];
    int32_t n = r->o->prompt;
    int runs = r->b->quick ? 1 : 3;
    st_status s = prompt(r, n < 16 ? n : 16);
    for (int i = 0; i < runs && !s; i++) {
        uint64_t start = st_now_ns();
        s = prompt(r, n);
        t[i] = (double)(st_now_ns() - start) * 1e-9;
    }
    if (s)
        return s;
    snprintf(shape, sizeof shape, "%d tokens", n);
    return st_bench_add(&r->b->rows, "prompt", shape, n / st_bench_median(t, runs), "tokens/s", 0);
}

/* Median time of a generation step, seconds. */
static st_status time_generation(runner *r, int32_t n_seqs, int32_t depth, double *median)
{
    double t[MAX_RUNS];
    int runs = r->o->generate < MAX_RUNS ? r->o->generate : MAX_RUNS;
    st_status s = ST_OK;
    if (depth > 0)
        s = generate_step(r, n_seqs, depth - 1); /* warm */
    for (int i = 0; i < runs && !s; i++) {
        uint64_t start = st_now_ns();
        s = generate_step(r, n_seqs, depth + i);
        t[i] = (double)(st_now_ns() - start) * 1e-9;
    }
    *median = s ? 0 : st_bench_median(t, runs);
    return s;
}

static st_status bench_generation(runner *r, int32_t n_seqs, int32_t depth)
{
    char shape[64];
    double t, active = (double)st_model_active_bytes(r->m);
    st_status s = time_generation(r, n_seqs, depth, &t);
    if (s)
        return s;
    snprintf(shape, sizeof shape, "%d sequence%s at depth %d", n_seqs, n_seqs == 1 ? "" : "s",
             depth);
    /* One sequence reads every active weight once a token, from memory unless caches hold them;
     * more sequences share them. */
    bool bound = n_seqs == 1 && active > BEYOND_CACHES;
    double peak = bound ? r->b->peaks.read_all * 1e9 / active : 0;
    if (n_seqs == 1)
        st_plot_add(&r->b->by_depth, depth, 1 / t);
    if (depth == 0)
        st_plot_add(&r->b->by_batch, n_seqs, n_seqs / t);
    return st_bench_add(&r->b->rows, "generation", shape, n_seqs / t, "tokens/s", peak);
}

/* Share of each kind of operator in `seconds` of wall time. */
static st_status add_shares(runner *r, const char *what, double seconds)
{
    uint64_t ns[ST_OP_KIND_COUNT];
    char name[48];
    double rest = seconds;
    st_status s = ST_OK;
    st_ops_profile(st_model_ops(r->m), ns);
    for (int k = 0; k < ST_OP_KIND_COUNT && !s; k++) {
        double t = (double)ns[k] * 1e-9;
        rest -= t;
        snprintf(name, sizeof name, "time in %s", st_op_kind_name((st_op_kind)k));
        if (ns[k])
            s = st_bench_add(&r->b->rows, name, what, 100 * t / seconds, "%", 0);
    }
    return s ? s : st_bench_add(&r->b->rows, "time in other", what, 100 * rest / seconds, "%", 0);
}

/* Where the time of generation goes with n_seqs sequences. */
static st_status generation_shares(runner *r, int32_t n_seqs, const char *what)
{
    const uint64_t least = r->b->quick ? 100000000u : 500000000u; /* ns */
    st_status s = ST_OK;
    st_ops_profile_reset(st_model_ops(r->m));
    uint64_t start = st_now_ns();
    for (int i = 0; !s && (i == 0 || st_now_ns() - start < least); i++)
        s = generate_step(r, n_seqs, i % r->o->generate);
    return s ? s : add_shares(r, what, (double)(st_now_ns() - start) * 1e-9);
}

static st_status bench_shares(runner *r)
{
    char what[32];
    st_ops_profile_reset(st_model_ops(r->m));
    uint64_t start = st_now_ns();
    st_status s = prompt(r, r->o->prompt);
    if (!s)
        s = add_shares(r, "prompt", (double)(st_now_ns() - start) * 1e-9);
    if (!s)
        s = generation_shares(r, 1, "generation");
    snprintf(what, sizeof what, "%d sequences", r->o->batch);
    return s || r->o->batch == 1 ? s : generation_shares(r, r->o->batch, what);
}

static st_status bench_all(runner *r)
{
    size_t active = st_model_active_bytes(r->m);
    st_bench_heading(&r->b->rows, "\nend to end (one step after another, no server)");
    st_status s = st_bench_add(&r->b->rows, "active weights", "bytes read per token",
                               (double)active * 1e-6, "MB", 0);
    if (!s)
        s = bench_prompt(r);
    for (int32_t depth = 0, filled = 0; depth <= r->o->depth && !s;
         depth = depth ? depth * 2 : 1024) {
        s = prompt_from(r, filled, depth);
        filled = depth;
        if (!s)
            s = bench_generation(r, 1, depth);
    }
    for (int32_t n = 2; n <= r->o->batch && !s; n *= 2)
        s = bench_generation(r, n, 0);
    st_bench_heading(&r->b->rows, "\nwhere the time goes");
    return s ? s : bench_shares(r);
}

/* Memory for the longest context of one sequence, and for the batch at depth 0. */
static st_status prepare(runner *r, st_error *err)
{
    const st_bench_model_options *o = r->o;
    const st_model_config *c = st_model_get_config(r->m);
    int32_t longest =
        o->depth + o->generate + 1 > o->prompt ? o->depth + o->generate + 1 : o->prompt;
    r->blocks_each = (longest + BLOCK - 1) / BLOCK;
    int32_t blocks = r->blocks_each + (o->batch - 1) * ((o->generate + BLOCK) / BLOCK + 1);
    st_status s = st_kv_store_new(c->n_layers, blocks, BLOCK, o->kv_dtype, st_model_kv_row(r->m),
                                  &r->kv, err);
    if (s)
        return s;
    size_t width = o->batch > STEP ? (size_t)o->batch : STEP;
    size_t entries = (size_t)o->batch * (size_t)r->blocks_each;
    r->table = malloc(entries * sizeof *r->table);
    r->tokens = malloc(width * sizeof *r->tokens);
    r->rows = malloc(width * sizeof *r->rows);
    r->best = malloc((size_t)o->batch * sizeof *r->best);
    r->seqs = malloc((size_t)o->batch * sizeof *r->seqs);
    r->logits = malloc((size_t)o->batch * (size_t)c->vocab_size * sizeof *r->logits);
    if (!r->table || !r->tokens || !r->rows || !r->best || !r->seqs || !r->logits)
        return st_fail(err, ST_ENOMEM, "no memory for a batch of %d", o->batch);
    for (int32_t i = 0; i < o->batch; i++)
        r->best[i] = 1;
    for (size_t i = 0; i < entries; i++)
        r->table[i] = (int32_t)(i < (size_t)blocks ? i : 0);
    int32_t next = r->blocks_each;
    for (int32_t i = 1; i < o->batch; i++)
        for (int32_t j = 0; j < r->blocks_each; j++)
            r->table[(size_t)i * (size_t)r->blocks_each + (size_t)j] =
                j <= (o->generate + BLOCK) / BLOCK ? next++ : 0;
    for (int32_t l = 0; l < c->n_layers; l++)
        memset(r->kv->layers[l], 0, (size_t)blocks * r->kv->block_bytes);
    return ST_OK;
}

st_status st_bench_model(st_bench *b, const st_bench_model_options *options, st_error *err)
{
    st_bench_model_options o = *options;
    runner r = {.b = b, .o = &o, .err = err};
    st_model_options load = {.dir = o.dir,
                             .max_batch_tokens = o.batch > STEP ? o.batch : STEP,
                             .max_outputs = o.batch,
                             .n_threads = o.threads,
                             .kernels = b->k->name,
                             .pack_cache = o.pack_cache,
                             .notice = st_print_notice};
    st_status s = st_model_load(&load, &r.m, err);
    if (!s) {
        st_model_pin_thread(r.m);
        int32_t max = st_model_max_len(r.m) - o.generate - 1;
        if (max < 1)
            s = st_fail(err, ST_EINVAL, "--generate %d does not fit a context of %d positions",
                        o.generate, st_model_max_len(r.m));
        o.depth = o.depth < max ? o.depth : max;
        o.prompt = o.prompt < max ? o.prompt : max;
    }
    if (!s)
        s = prepare(&r, err);
    if (!s)
        s = bench_all(&r);
    free(r.logits);
    free(r.seqs);
    free(r.best);
    free(r.rows);
    free(r.tokens);
    free(r.table);
    st_kv_store_free(r.kv);
    st_model_free(r.m);
    return s;
}
