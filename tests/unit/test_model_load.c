/* Checkpoints that lie: the lexicon with one thing changed, and the error that names it. */
#include "lexicon_model.h"

#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

/* The lexicon's INT8 file, taken apart. */
typedef struct parts {
    char *header;
    unsigned char *data;
    size_t n_header, n_data;
} parts;

static char *read_file(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    assert_non_null(f);
    assert_int_equal(fstat(fileno(f), &st), 0);
    char *text = malloc((size_t)st.st_size + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, (size_t)st.st_size, f), st.st_size);
    text[st.st_size] = '\0';
    *n = (size_t)st.st_size;
    fclose(f);
    return text;
}

static parts read_lexicon(void)
{
    size_t n;
    uint64_t n_header;
    char *file = read_file(LEXICON "int8/model.safetensors", &n);
    memcpy(&n_header, file, 8);
    parts p = {.n_header = n_header, .n_data = n - 8 - n_header};
    p.header = calloc(n_header + 65, 1);
    p.data = malloc(p.n_data);
    assert_true(p.header && p.data);
    memcpy(p.header, file + 8, n_header);
    memcpy(p.data, file + 8 + n_header, p.n_data);
    free(file);
    return p;
}

/* Replaces the first `from` after `anchor` in the header. */
static void edit(parts *p, const char *anchor, const char *from, const char *to)
{
    char *at = strstr(p->header, anchor);
    assert_non_null(at);
    assert_non_null(at = strstr(at, from));
    assert_true(strlen(to) <= strlen(from) + 32);
    char *rest = strdup(at + strlen(from));
    assert_non_null(rest);
    strcpy(at, to);
    strcat(at, rest);
    free(rest);
    p->n_header = strlen(p->header);
}

/* Where a tensor's bytes begin. */
static unsigned char *data_of(parts *p, const char *name)
{
    char quoted[256];
    size_t begin;
    snprintf(quoted, sizeof quoted, "\"%s\"", name);
    const char *at = strstr(p->header, quoted);
    assert_non_null(at);
    assert_non_null(at = strstr(at, "\"data_offsets\": ["));
    assert_int_equal(sscanf(at, "\"data_offsets\": [%zu", &begin), 1);
    return p->data + begin;
}

static void write_file(const char *dir, const char *name, const void *a, size_t na, const void *b,
                       size_t nb, const void *c, size_t nc)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_true(fwrite(a, 1, na, f) == na && fwrite(b, 1, nb, f) == nb &&
                fwrite(c, 1, nc, f) == nc);
    assert_int_equal(fclose(f), 0);
}

/* Writes the parts as a checkpoint into dir (a template for mkdtemp). */
static void write_checkpoint(char *dir, const parts *p)
{
    size_t n;
    uint64_t n_header = p->n_header;
    char *config = read_file(LEXICON "int8/config.json", &n);
    assert_non_null(mkdtemp(dir));
    write_file(dir, "config.json", config, n, "", 0, "", 0);
    write_file(dir, "model.safetensors", &n_header, 8, p->header, p->n_header, p->data, p->n_data);
    free(config);
}

static void remove_checkpoint(const char *dir)
{
    char path[256];
    snprintf(path, sizeof path, "%s/config.json", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    unlink(path);
    rmdir(dir);
}

static void expect_refused(parts *p, st_status status, const char *const *words)
{
    char dir[] = "/tmp/test_model_load.XXXXXX";
    st_error err = {0};
    st_model *m = NULL;
    write_checkpoint(dir, p);
    st_status got = st_model_load(&(st_model_options){.dir = dir, .n_threads = 2}, &m, &err);
    remove_checkpoint(dir);
    if (got != status)
        fail_msg("status %d (%s), expected %d", got, err.text, status);
    assert_null(m);
    for (; *words; words++)
        if (!strstr(err.text, *words))
            fail_msg("'%s' does not contain '%s'", err.text, *words);
    free(p->header);
    free(p->data);
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void a_missing_tensor_is_named(void **state)
{
    parts p = read_lexicon();
    edit(&p, "\"model.norm.weight\"", "norm", "morn");
    expect_refused(&p, ST_ENOTFOUND, WORDS("model.norm.weight", "missing"));
}

static void a_wrong_shape_is_named(void **state)
{
    parts p = read_lexicon();
    edit(&p, "\"model.layers.3.mlp.experts.7.up_proj.weight\"", "[128, 256]", "[256, 128]");
    expect_refused(&p, ST_EFORMAT,
                   WORDS("model.safetensors", "model.layers.3.mlp.experts.7.up_proj.weight",
                         "[256, 128]", "[128, 256]"));
}

static void an_unknown_weight_type_is_named(void **state)
{
    parts p = read_lexicon();
    edit(&p, "\"model.layers.0.self_attn.o_proj.weight\"", "\"I8\"", "\"F8_E4M3\"");
    expect_refused(&p, ST_EUNSUPPORTED, WORDS("layers.0.self_attn.o_proj.weight", "F8_E4M3", "I8"));
}

static void int8_without_scale_is_refused(void **state)
{
    parts p = read_lexicon();
    edit(&p, "\"model.layers.0.mlp.down_proj.weight_scale\"", "weight_scale", "weight_sc");
    expect_refused(&p, ST_EFORMAT, WORDS("layers.0.mlp.down_proj.weight_scale", "I8", "256"));
}

static void nan_in_a_norm_is_refused(void **state)
{
    parts p = read_lexicon();
    unsigned char *norm = data_of(&p, "model.layers.2.post_mlp_layernorm.weight");
    norm[2 * 17] = 0xC0;
    norm[2 * 17 + 1] = 0x7F;
    expect_refused(&p, ST_EFORMAT,
                   WORDS("model.layers.2.post_mlp_layernorm.weight", "element 17", "nan"));
}

static void infinity_in_a_weight_is_refused(void **state)
{
    parts p = read_lexicon();
    unsigned char *w = data_of(&p, "model.layers.1.mlp.gate.weight");
    w[2 * 1000] = 0x80;
    w[2 * 1000 + 1] = 0xFF;
    expect_refused(&p, ST_EFORMAT, WORDS("model.layers.1.mlp.gate.weight", "NaN or infinite"));
}

static void infinity_in_a_scale_is_refused(void **state)
{
    parts p = read_lexicon();
    float inf = __builtin_inff();
    memcpy(data_of(&p, "model.layers.1.self_attn.q_b_proj.weight_scale") + 8, &inf, 4);
    expect_refused(&p, ST_EFORMAT, WORDS("q_b_proj.weight_scale", "element 2", "inf"));
}

static void a_memory_limit_is_kept(void **state)
{
    st_error err;
    st_model *m;
    st_model_options o = {.dir = LEXICON "int8", .memory_limit = 1 << 20};
    assert_int_equal(st_model_load(&o, &m, &err), ST_ENOMEM);
    assert_null(m);
}

static void lengths_beyond_the_checkpoint_are_refused(void **state)
{
    st_error err;
    st_model *m;
    st_model_options o = {.dir = LEXICON "int8", .max_model_len = 2049};
    assert_int_equal(st_model_load(&o, &m, &err), ST_EINVAL);
    assert_non_null(strstr(err.text, "2048"));
}

typedef struct progress {
    size_t done, total, calls;
} progress;

static void note_progress(void *user, size_t done, size_t total)
{
    progress *p = user;
    assert_true(done > p->done && done <= total);
    *p = (progress){done, total, p->calls + 1};
}

static void progress_reaches_its_total(void **state)
{
    progress p = {0};
    st_model *m;
    st_model_options o = {.dir = LEXICON "int8", .progress = note_progress, .progress_user = &p};
    assert_int_equal(st_model_load(&o, &m, NULL), ST_OK);
    assert_true(p.calls >= 1 && p.done == p.total);
    st_model_free(m);
}

/* Finite weights whose products overflow: the request fails, not the process. */
static void logits_that_overflow_are_flagged(void **state)
{
    char dir[] = "/tmp/test_model_load.XXXXXX";
    parts p = read_lexicon();
    unsigned char *head = data_of(&p, "lm_head.weight");
    for (size_t i = 0; i < 256; i++)
        memcpy(head + 2 * (256 * 9 + i), (uint16_t[]){i % 2 ? 0x7F7F : 0xFF7F}, 2); /* 3.4e38 */
    write_checkpoint(dir, &p);
    st_model *m;
    st_error err;
    st_status status = st_model_load(&(st_model_options){.dir = dir}, &m, &err);
    remove_checkpoint(dir);
    if (status)
        fail_msg("%s", err.text);
    test_kv kv = new_kv(m, ST_F32, 16);
    float *logits = malloc(4096 * sizeof *logits);
    assert_non_null(logits);
    int32_t row = 0, token = 311, table = 0;
    bool bad = false;
    st_batch_seq seq = {0, 1, 0, &table, 0};
    st_batch b = {.n_tokens = 1,
                  .tokens = &token,
                  .n_seqs = 1,
                  .seqs = &seq,
                  .n_outputs = 1,
                  .output_rows = &row,
                  .output_bad = &bad};
    assert_int_equal(st_model_forward(m, &b, kv.store, logits, &err), ST_OK);
    assert_true(bad);
    b.output_bad = NULL;
    assert_int_equal(st_model_forward(m, &b, kv.store, logits, &err), ST_EFORMAT);
    assert_non_null(strstr(err.text, "row 0"));
    free(logits);
    free(p.header);
    free(p.data);
    st_kv_store_free(kv.store);
    st_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_missing_tensor_is_named),
        cmocka_unit_test(a_wrong_shape_is_named),
        cmocka_unit_test(an_unknown_weight_type_is_named),
        cmocka_unit_test(int8_without_scale_is_refused),
        cmocka_unit_test(nan_in_a_norm_is_refused),
        cmocka_unit_test(infinity_in_a_weight_is_refused),
        cmocka_unit_test(infinity_in_a_scale_is_refused),
        cmocka_unit_test(a_memory_limit_is_kept),
        cmocka_unit_test(lengths_beyond_the_checkpoint_are_refused),
        cmocka_unit_test(progress_reaches_its_total),
        cmocka_unit_test(logits_that_overflow_are_flagged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
