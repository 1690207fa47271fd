/* For tests that run the lexicon: loading it, KV memory, feeding sequences in pieces. */
#ifndef ST_TESTS_LEXICON_MODEL_H
#define ST_TESTS_LEXICON_MODEL_H

#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "starling/model.h"

#define LEXICON      ST_SOURCE_ROOT "/models/lexicon/"
#define LEXICON_GOLD ST_SOURCE_ROOT "/tests/vectors/lexicon/golden/"

static inline st_model *load_lexicon(const char *kind, const char *kernels, int32_t threads)
{
    char dir[512];
    snprintf(dir, sizeof dir, LEXICON "%s", kind);
    st_model_options o = {
        .dir = dir, .max_batch_tokens = 96, .n_threads = threads, .kernels = kernels};
    st_model *m;
    st_error err;
    if (st_model_load(&o, &m, &err))
        fail_msg("%s", err.text);
    return m;
}

/* One sequence in KV memory shared with others. */
typedef struct test_seq {
    const int32_t *tokens;
    int32_t n, done, expanded_until;
    int32_t table[256];
    float *logits; /* [n, vocab] */
} test_seq;

typedef struct test_kv {
    st_kv_store *store;
    int32_t next;
} test_kv;

static inline test_kv new_kv(const st_model *m, st_dtype dtype, int32_t block_size)
{
    test_kv kv = {0};
    st_error err;
    if (st_kv_store_new(st_model_get_config(m)->n_layers, 256, block_size, dtype,
                        st_model_kv_row(m), &kv.store, &err))
        fail_msg("%s", err.text);
    /* What nobody wrote must not be read: fill with NaN. */
    for (int32_t l = 0; l < kv.store->n_layers; l++)
        memset(kv.store->layers[l], 0xFF, kv.store->block_bytes * 256);
    return kv;
}

static inline test_seq new_seq(const st_model *m, test_kv *kv, const int32_t *tokens, int32_t n)
{
    test_seq s = {.tokens = tokens, .n = n};
    int32_t blocks = (n - 1) / kv->store->block_size + 1;
    for (int32_t i = 0; i < blocks; i++)
        s.table[i] = (kv->next++ * 37) % 256; /* scattered; 37 and 256 have no common divisor */
    assert_true(kv->next <= 256);
    s.logits = calloc((size_t)n * (size_t)st_model_get_config(m)->vocab_size, sizeof(float));
    assert_non_null(s.logits);
    return s;
}

/* One step: counts[i] further tokens of seqs[i] (0: none), logits of all of them. */
static inline void run_step(st_model *m, test_kv *kv, test_seq *seqs, const int32_t *counts, int n)
{
    enum { MOST = 96 };
    int32_t tokens[MOST], rows[MOST], at = 0, n_seqs = 0;
    st_batch_seq parts[8];
    size_t vocab = (size_t)st_model_get_config(m)->vocab_size;
    for (int i = 0; i < n; i++) {
        if (!counts[i])
            continue;
        parts[n_seqs++] =
            (st_batch_seq){at, counts[i], seqs[i].done, seqs[i].table, seqs[i].expanded_until};
        memcpy(tokens + at, seqs[i].tokens + seqs[i].done, (size_t)counts[i] * sizeof *tokens);
        at += counts[i];
    }
    for (int32_t i = 0; i < at; i++)
        rows[i] = i;
    st_batch b = {.n_tokens = at,
                  .tokens = tokens,
                  .n_seqs = n_seqs,
                  .seqs = parts,
                  .n_outputs = at,
                  .output_rows = rows};
    float *out = malloc((size_t)at * vocab * sizeof *out);
    st_error err;
    assert_non_null(out);
    if (st_model_forward(m, &b, kv->store, out, &err))
        fail_msg("%s", err.text);
    at = 0;
    for (int i = 0; i < n; i++) {
        memcpy(seqs[i].logits + (size_t)seqs[i].done * vocab, out + (size_t)at * vocab,
               (size_t)counts[i] * vocab * sizeof *out);
        seqs[i].done += counts[i];
        at += counts[i];
    }
    free(out);
}

#endif
