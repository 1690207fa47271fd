/* The forward pass on the lexicon: goldens, and the same bits however a sequence is fed. */
#include "lexicon_model.h"

#include <float.h>
#include <math.h>
#include <stdio.h>

#include "kernels/kernels.h"

/* Prompts of golden/prompts.json, by number. */
static const int32_t prompt0[] = {4093, 291,  198, 311,  439, 2294, 361,
                                  30,   4094, 198, 4093, 293, 198};
static const int32_t long_prompt[] = {4093, 291, 198,  311, 439,  2294, 361, 30,
                                      4094, 198, 4093, 293, 198,  370,  319, 265,
                                      295,  268, 258,  726, 1378, 2140, 448, 272};

/* float32 [rows, columns] of a .npy file version 1. */
static float *read_npy(const char *path, size_t *rows, size_t *columns)
{
    FILE *f = fopen(path, "rb");
    unsigned char start[10];
    char header[512] = {0};
    assert_non_null(f);
    assert_int_equal(fread(start, 1, sizeof start, f), sizeof start);
    size_t n = start[8] + 256u * start[9];
    assert_true(n < sizeof header && fread(header, 1, n, f) == n);
    const char *shape = strstr(header, "'shape': (");
    assert_non_null(shape);
    assert_int_equal(sscanf(shape, "'shape': (%zu, %zu)", rows, columns), 2);
    float *x = malloc(*rows * *columns * sizeof *x);
    assert_non_null(x);
    assert_int_equal(fread(x, sizeof *x, *rows * *columns, f), *rows * *columns);
    fclose(f);
    return x;
}

static size_t argmax(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

/* Runs prompt 0 and compares with the golden file: relative error, and rows with equal argmax. */
static double compare_golden(const char *kind, const char *golden, const st_kernels *k,
                             st_dtype dtype, size_t *agree)
{
    char path[512];
    size_t rows, columns;
    snprintf(path, sizeof path, LEXICON_GOLD "%slogits_0.npy", golden);
    float *want = read_npy(path, &rows, &columns);
    st_model *m = load_lexicon(kind, k->name, 2);
    test_kv kv = new_kv(m, dtype, 16);
    int32_t n = sizeof prompt0 / sizeof *prompt0;
    assert_int_equal(rows, n);
    test_seq s = new_seq(m, &kv, prompt0, n);
    run_step(m, &kv, &s, &n, 1);
    double diff = 0, norm = 0;
    *agree = 0;
    for (size_t i = 0; i < rows * columns; i++) {
        diff += pow((double)s.logits[i] - (double)want[i], 2);
        norm += pow((double)want[i], 2);
    }
    for (size_t r = 0; r < rows; r++)
        *agree += argmax(s.logits + r * columns, columns) == argmax(want + r * columns, columns);
    free(want);
    free(s.logits);
    st_kv_store_free(kv.store);
    st_model_free(m);
    return sqrt(diff / norm);
}

static void logits_match_the_goldens(void **state)
{
    const st_kernels *list[8];
    int n = st_kernels_list(list, 8);
    assert_true(n >= 1);
    for (int i = 0; i < n; i++) {
        size_t agree;
        double e = compare_golden("bf16", "", list[i], ST_F32, &agree);
        print_message("%s: relative error %.2g\n", list[i]->name, e);
        assert_true(e <= 1e-4);
        (void)compare_golden("int8", "int8_", list[i], ST_F32, &agree);
        assert_int_equal(agree, 13);
    }
}

/* The reference: one step, one thread, alone. */
static float *run_whole(st_model *m, st_dtype dtype, const int32_t *tokens, int32_t n)
{
    test_kv kv = new_kv(m, dtype, 16);
    test_seq s = new_seq(m, &kv, tokens, n);
    run_step(m, &kv, &s, &n, 1);
    st_kv_store_free(kv.store);
    return s.logits;
}

static void expect_same_bits(const float *want, const float *got, int32_t rows, int32_t vocab,
                             const char *what)
{
    for (int32_t r = 0; r < rows; r++)
        if (memcmp(want + (size_t)r * (size_t)vocab, got + (size_t)r * (size_t)vocab,
                   (size_t)vocab * sizeof *want) != 0)
            fail_msg("%s: row %d differs", what, r);
}

/* Feeds three sequences in steps of a, b and c tokens and compares each with `want`. */
static void run_mixed(st_model *m, st_dtype dtype, int32_t block_size, const int32_t step[3],
                      float *const want[3], const char *what)
{
    const int32_t *tokens[3] = {long_prompt, prompt0, long_prompt + 5};
    const int32_t lengths[3] = {24, 13, 12};
    test_kv kv = new_kv(m, dtype, block_size);
    test_seq seqs[3];
    bool left = true;
    char text[128];
    for (int i = 0; i < 3; i++)
        seqs[i] = new_seq(m, &kv, tokens[i], lengths[i]);
    while (left) {
        int32_t counts[3];
        left = false;
        for (int i = 0; i < 3; i++) {
            counts[i] = seqs[i].n - seqs[i].done < step[i] ? seqs[i].n - seqs[i].done : step[i];
            left = left || counts[i];
        }
        if (left)
            run_step(m, &kv, seqs, counts, 3);
    }
    for (int i = 0; i < 3; i++) {
        snprintf(text, sizeof text, "%s, block size %d, sequence %d in steps of %d", what,
                 block_size, i, step[i]);
        if (seqs[i].done)
            expect_same_bits(want[i], seqs[i].logits, seqs[i].done,
                             st_model_get_config(m)->vocab_size, text);
        free(seqs[i].logits);
    }
    st_kv_store_free(kv.store);
}

static void check_bits(const char *kind, const st_kernels *k, st_dtype dtype)
{
    static const struct {
        int32_t steps[3], block_size, threads;
    } runs[] = {
        {{1, 0, 0}, 4, 1},  {{7, 0, 0}, 64, 2}, {{24, 13, 12}, 4, 2},
        {{1, 5, 3}, 16, 2}, {{9, 1, 1}, 64, 1},
    };
    char what[64];
    snprintf(what, sizeof what, "%s, %s, %s", kind, k->name, st_dtype_name(dtype));
    st_model *one = load_lexicon(kind, k->name, 1);
    float *want[3] = {run_whole(one, dtype, long_prompt, 24), run_whole(one, dtype, prompt0, 13),
                      run_whole(one, dtype, long_prompt + 5, 12)};
    st_model *two = load_lexicon(kind, k->name, 2);
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        run_mixed(runs[i].threads == 1 ? one : two, dtype, runs[i].block_size, runs[i].steps, want,
                  what);
    for (int i = 0; i < 3; i++)
        free(want[i]);
    st_model_free(two);
    st_model_free(one);
}

static void a_row_depends_on_its_own_sequence_alone(void **state)
{
    const st_kernels *list[8];
    int n = st_kernels_list(list, 8);
    for (int i = 0; i < n; i++) {
        check_bits("bf16", list[i], ST_F32);
        check_bits("int8", list[i], ST_BF16);
    }
}

static void only_wanted_rows_are_written(void **state)
{
    st_model *m = load_lexicon("int8", NULL, 0);
    test_kv kv = new_kv(m, ST_BF16, 16);
    size_t vocab = (size_t)st_model_get_config(m)->vocab_size;
    int32_t n = 13;
    test_seq s = new_seq(m, &kv, prompt0, n);
    run_step(m, &kv, &s, &n, 1);
    int32_t rows[] = {12, 3};
    st_batch_seq seq = {0, 13, 0, s.table, 0};
    bool bad[2] = {true, true};
    st_batch b = {.n_tokens = 13,
                  .tokens = prompt0,
                  .n_seqs = 1,
                  .seqs = &seq,
                  .n_outputs = 2,
                  .output_rows = rows,
                  .output_bad = bad};
    float *out = malloc(2 * vocab * sizeof *out);
    assert_non_null(out);
    assert_int_equal(st_model_forward(m, &b, kv.store, out, NULL), ST_OK);
    assert_false(bad[0] || bad[1]);
    assert_memory_equal(out, s.logits + 12 * vocab, vocab * sizeof *out);
    assert_memory_equal(out + vocab, s.logits + 3 * vocab, vocab * sizeof *out);
    b.n_outputs = 0; /* a prompt's chunk that is not its last */
    assert_int_equal(st_model_forward(m, &b, kv.store, NULL, NULL), ST_OK);
    free(out);
    free(s.logits);
    st_kv_store_free(kv.store);
    st_model_free(m);
}

static int32_t left_out(const float *logits, size_t n)
{
    int32_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += logits[i] == -FLT_MAX;
    return count;
}

/* Outputs that need all of their logits do not take the screen from the others; what is computed
 * has the same bits either way. */
static void outputs_are_screened_apart(void **state)
{
    enum { N = 5 };
    static const struct {
        int32_t best[N];
        bool screened[N];
    } cases[] = {
        {{0, 0, 1, 3, 64}, {false, false, true, true, true}},
        {{1, 1, 1, 1, 1}, {true, true, true, true, true}},
        {{65, 1, 1, 1, 1}, {false, true, true, true, true}},
        {{1, 0, 1, 1, 1}, {false, false, false, false, false}}, /* not in order: all */
    };
    static const int32_t rows[N] = {12, 3, 0, 7, 11};
    st_model_options o = {
        .dir = LEXICON "int8", .max_batch_tokens = 96, .n_threads = 2, .screen_least = 1};
    st_model *m;
    assert_int_equal(st_model_load(&o, &m, NULL), ST_OK);
    test_kv kv = new_kv(m, ST_BF16, 16);
    size_t vocab = (size_t)st_model_get_config(m)->vocab_size;
    int32_t n = 13;
    test_seq s = new_seq(m, &kv, prompt0, n);
    run_step(m, &kv, &s, &n, 1);
    st_batch_seq seq = {0, 13, 0, s.table, 0};
    float *out = malloc(N * vocab * sizeof *out);
    assert_non_null(out);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        bool bad[N] = {true, true, true, true, true};
        st_batch b = {.n_tokens = 13,
                      .tokens = prompt0,
                      .n_seqs = 1,
                      .seqs = &seq,
                      .n_outputs = N,
                      .output_rows = rows,
                      .output_best = cases[c].best,
                      .output_bad = bad};
        assert_int_equal(st_model_forward(m, &b, kv.store, out, NULL), ST_OK);
        for (int i = 0; i < N; i++) {
            const float *got = out + (size_t)i * vocab, *want = s.logits + (size_t)rows[i] * vocab;
            assert_false(bad[i]);
            assert_true((left_out(got, vocab) > 0) == cases[c].screened[i]);
            assert_int_equal(argmax(got, vocab), argmax(want, vocab));
            for (size_t j = 0; j < vocab; j++)
                if (got[j] != -FLT_MAX)
                    assert_memory_equal(&got[j], &want[j], sizeof got[j]);
        }
    }
    free(out);
    free(s.logits);
    st_kv_store_free(kv.store);
    st_model_free(m);
}

static void batches_beyond_the_limits_are_refused(void **state)
{
    st_model *m = load_lexicon("int8", NULL, 1);
    test_kv kv = new_kv(m, ST_F32, 16);
    static const int32_t tokens[97];
    static const struct {
        st_batch_seq seqs[2];
        int32_t n_tokens, n_seqs;
        const char *text;
    } cases[] = {
        {{{0, 97, 0, NULL, 0}}, 97, 1, "97 tokens"},
        {{{0, 0, 0, NULL, 0}}, 0, 1, "0 tokens"},
        {{{0, 2, 0, NULL, 0}}, 3, 1, "cover 2 of its 3 rows"},
        {{{0, 2, 0, NULL, 0}, {1, 2, 0, NULL, 0}}, 4, 2, "start at row 2"},
        {{{0, 2, 2047, NULL, 0}}, 2, 1, "position 2048: the model was loaded for 2048"},
        {{{0, 2, INT32_MAX, NULL, 0}}, 2, 1, "position 2147483648"},
        {{{0, 2, -1, NULL, 0}}, 2, 1, "position 0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_error err;
        st_batch b = {.n_tokens = cases[i].n_tokens,
                      .tokens = tokens,
                      .n_seqs = cases[i].n_seqs,
                      .seqs = cases[i].seqs};
        assert_int_equal(st_model_forward(m, &b, kv.store, NULL, &err), ST_EINVAL);
        if (!strstr(err.text, cases[i].text))
            fail_msg("'%s' does not contain '%s'", err.text, cases[i].text);
    }
    int32_t table = 0, row = 2; /* beyond the batch's two rows */
    st_batch_seq seq = {0, 2, 0, &table, 0};
    st_batch b = {.n_tokens = 2,
                  .tokens = tokens,
                  .n_seqs = 1,
                  .seqs = &seq,
                  .n_outputs = 1,
                  .output_rows = &row};
    assert_int_equal(st_model_forward(m, &b, kv.store, NULL, NULL), ST_EINVAL);
    st_kv_store_free(kv.store);
    st_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_match_the_goldens),
        cmocka_unit_test(a_row_depends_on_its_own_sequence_alone),
        cmocka_unit_test(only_wanted_rows_are_written),
        cmocka_unit_test(outputs_are_screened_apart),
        cmocka_unit_test(batches_beyond_the_limits_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
