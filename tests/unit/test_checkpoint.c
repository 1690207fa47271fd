/* Checkpoint folders: which files are taken, what an index may say, and the lexicon as published.
 */
#include "cmocka_all.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "model/checkpoint.h"

static const char config[] =
    "{\"model_type\":\"qwen2\",\"vocab_size\":8,\"hidden_size\":4,\"num_hidden_layers\":1,"
    "\"intermediate_size\":4,\"num_attention_heads\":2,\"num_key_value_heads\":1}";

static void write_bytes(const char *dir, const char *name, const void *bytes, size_t n)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void write_text(const char *dir, const char *name, const char *text)
{
    write_bytes(dir, name, text, strlen(text));
}

/* A safetensors file of one-element U8 tensors, names separated by ','. */
static void write_tensors(const char *dir, const char *name, const char *tensors)
{
    char bytes[2048], *at = bytes + 8;
    int n = 0;
    at += sprintf(at, "{");
    for (const char *p = tensors; *p; n++) {
        int len = (int)strcspn(p, ",");
        at += sprintf(at, "%s\"%.*s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                      n ? "," : "", len, p, n, n + 1);
        p += len + (p[len] == ',');
    }
    at += sprintf(at, "}");
    uint64_t header = (uint64_t)(at - bytes - 8);
    for (int i = 0; i < 8; i++)
        bytes[i] = (char)(header >> (8 * i));
    memset(at, n, (size_t)n);
    write_bytes(dir, name, bytes, (size_t)(at - bytes) + (size_t)n);
}

static int make_dir(void **state)
{
    char *dir = malloc(256);
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, 256, "%s/starling-checkpoint-XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir));
    write_text(dir, "config.json", config);
    *state = dir;
    return 0;
}

static int remove_dir(void **state)
{
    char *dir = *state, path[600];
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (unlink(path) != 0)
            (void)rmdir(path);
    }
    closedir(d);
    rmdir(dir);
    free(dir);
    return 0;
}

static void refused(const char *dir, st_status status, const char *text)
{
    st_checkpoint *c = (st_checkpoint *)1;
    st_error err = {0};
    st_status s = st_checkpoint_open(dir, &c, &err);
    if (s != status || !strstr(err.text, text))
        fail_msg("status %d, text '%s', expected %d '%s'", s, err.text, status, text);
    assert_null(c);
}

static st_checkpoint *opened(const char *dir)
{
    st_checkpoint *c;
    st_error err = {0};
    if (st_checkpoint_open(dir, &c, &err))
        fail_msg("%s: %s", dir, err.text);
    return c;
}

static void one_file(void **state)
{
    const char *dir = *state;
    write_tensors(dir, "model.safetensors", "x,y");
    write_tensors(dir, "other.safetensors", "z"); /* not named: not read */
    st_checkpoint *c = opened(dir);
    assert_int_equal(st_checkpoint_count(c), 2);
    assert_int_equal(st_checkpoint_total_bytes(c), 2);
    assert_string_equal(st_checkpoint_at(c, 0)->name, "x");
    const st_tensor *y = st_checkpoint_find(c, "y");
    assert_non_null(y);
    assert_int_equal(*(const unsigned char *)y->data, 2);
    assert_non_null(strstr(y->file, "/model.safetensors"));
    assert_null(st_checkpoint_find(c, "z"));
    assert_null(st_checkpoint_find(c, ""));
    st_checkpoint_free(c);
}

static void several_files_by_index(void **state)
{
    const char *dir = *state;
    write_tensors(dir, "model-1.safetensors", "x,y");
    write_tensors(dir, "model-2.safetensors", "z");
    write_text(dir, "model.safetensors.index.json",
               "{\"metadata\":{},\"weight_map\":{\"z\":\"model-2.safetensors\","
               "\"x\":\"model-1.safetensors\",\"y\":\"model-1.safetensors\"}}");
    st_checkpoint *c = opened(dir);
    assert_int_equal(st_checkpoint_count(c), 3);
    assert_non_null(strstr(st_checkpoint_find(c, "z")->file, "/model-2.safetensors"));
    st_checkpoint_free(c);
}

static void several_files_without_an_index(void **state)
{
    const char *dir = *state;
    write_tensors(dir, "b.safetensors", "x");
    write_tensors(dir, "a.safetensors", "y");
    st_checkpoint *c = opened(dir);
    assert_int_equal(st_checkpoint_count(c), 2);
    assert_string_equal(st_checkpoint_at(c, 0)->name, "y");
    st_checkpoint_free(c);
    write_tensors(dir, "c.safetensors", "y");
    refused(dir, ST_EFORMAT, "tensor y is in two files: ");
}

static void lying_indexes(void **state)
{
    const char *dir = *state;
    static const struct {
        const char *index;
        st_status status;
        const char *text;
    } rows[] = {
        {"", ST_EFORMAT, "model.safetensors.index.json: broken JSON in line 1"},
        {"{}", ST_EFORMAT, "weight_map is missing or empty"},
        {"{\"weight_map\":{}}", ST_EFORMAT, "weight_map is missing or empty"},
        {"{\"weight_map\":[1]}", ST_EFORMAT, "weight_map is missing or empty"},
        {"{\"weight_map\":{\"x\":1}}", ST_EFORMAT, "weight_map[\"x\"] is not a file name"},
        {"{\"weight_map\":{\"x\":\"../m.safetensors\"}}", ST_EFORMAT,
         "weight_map[\"x\"] is '../m.safetensors'; expected the name of a .safetensors file in "
         "the"},
        {"{\"weight_map\":{\"x\":\"/etc/x.safetensors\"}}", ST_EFORMAT, "'/etc/x.safetensors'"},
        {"{\"weight_map\":{\"x\":\"a/b.safetensors\"}}", ST_EFORMAT, "'a/b.safetensors'"},
        {"{\"weight_map\":{\"x\":\"..\"}}", ST_EFORMAT, "'..'"},
        {"{\"weight_map\":{\"x\":\"m.bin\"}}", ST_EFORMAT, "'m.bin'"},
        {"{\"weight_map\":{\"x\":\"none.safetensors\"}}", ST_ENOTFOUND,
         "/none.safetensors: cannot be opened"},
        {"{\"weight_map\":{\"x\":\"m.safetensors\",\"w\":\"m.safetensors\"}}", ST_EFORMAT,
         "m.safetensors: tensor w is not in this file, where model.safetensors.index.json puts it"},
        {"{\"weight_map\":{\"x\":\"n.safetensors\",\"z\":\"m.safetensors\"}}", ST_EFORMAT,
         "but model.safetensors.index.json puts it in "},
        {"{\"weight_map\":{\"x\":\"m.safetensors\",\"x\":\"n.safetensors\"}}", ST_EFORMAT,
         "duplicate object key"},
        {"{\"weight_map\":{\"x\":\"d.safetensors\"}}", ST_EIO, "not a regular file"},
        {"{\"weight_map\":{\"x\":\"p.safetensors\"}}", ST_EIO, "p.safetensors: not a regular file"},
        {"{\"weight_map\":{\"x\":\"e.safetensors\"}}", ST_EFORMAT, "the file has 0 bytes"},
        {"{\"weight_map\":{\"x\":\"l.safetensors\"}}", ST_ENOTFOUND, "l.safetensors: cannot be"},
    };
    char path[512];
    write_tensors(dir, "m.safetensors", "x,y");
    write_tensors(dir, "n.safetensors", "z");
    write_text(dir, "e.safetensors", "");
    snprintf(path, sizeof path, "%s/d.safetensors", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof path, "%s/p.safetensors", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    snprintf(path, sizeof path, "%s/l.safetensors", dir);
    assert_int_equal(symlink("nowhere", path), 0);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        write_text(dir, "model.safetensors.index.json", rows[i].index);
        refused(dir, rows[i].status, rows[i].text);
    }
}

static void folders_that_are_none(void **state)
{
    char *dir = *state, path[512];
    refused("/nonexistent", ST_ENOTFOUND, "/nonexistent: no checkpoint folder there");
    snprintf(path, sizeof path, "%s/config.json", dir);
    refused(path, ST_EINVAL, "not a folder");
    refused(dir, ST_ENOTFOUND, "no weights: expected model.safetensors");
    write_text(dir, "model.safetensors", "short");
    refused(dir, ST_EFORMAT, "model.safetensors: the file has 5 bytes");
    write_text(dir, "a.safetensors.index.json", "{}");
    write_text(dir, "b.safetensors.index.json", "{}");
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    unlink(path);
    refused(dir, ST_EFORMAT, "more than one index of weights: a.safetensors.index.json and b.");
    write_text(dir, "generation_config.json", "[1]");
    refused(dir, ST_EFORMAT, "generation_config.json: expected a JSON object");
    write_text(dir, "generation_config.json", "{}");
    write_text(dir, "config.json", "{}");
    refused(dir, ST_EFORMAT, "config.json: model_type is missing");
    snprintf(path, sizeof path, "%s/config.json", dir);
    unlink(path);
    refused(dir, ST_ENOTFOUND, "/config.json: cannot be opened");
    assert_int_equal(mkfifo(path, 0600), 0); /* nobody will ever write to it */
    refused(dir, ST_EIO, "/config.json: not a regular file");
}

static void quantization_by_description(void **state)
{
    const char *dir = *state;
    write_tensors(dir, "model.safetensors", "x.weight");
    write_text(dir, "quant_model_description.json",
               "{\"model_quant_type\":\"W8A8_DYNAMIC\",\"x.weight\":\"W8A8_DYNAMIC\","
               "\"y.weight\":\"FLOAT\",\"version\":\"1\"}");
    st_checkpoint_free(opened(dir));
    write_text(dir, "quant_model_description.json", "{\"x.weight\":\"W4A8_DYNAMIC\"}");
    refused(dir, ST_EUNSUPPORTED,
            "quant_model_description.json: x.weight is W4A8_DYNAMIC; supported are FLOAT and");
}

/* Folders that differ in any way must not share cached KV. */
static void fingerprints_differ(void **state)
{
    const char *dir = *state;
    uint64_t seen[4];
    for (int i = 0; i < 4; i++) {
        write_tensors(dir, "model.safetensors", i == 1 ? "x,z" : "x,y");
        if (i == 2)
            write_text(dir, "config.json",
                       "{\"rope_theta\":5,\"model_type\":\"qwen2\","
                       "\"vocab_size\":8,\"hidden_size\":4,"
                       "\"num_hidden_layers\":1,\"intermediate_size\":4,"
                       "\"num_attention_heads\":2}");
        if (i == 3) {
            write_text(dir, "config.json", config);
            char path[512];
            snprintf(path, sizeof path, "%s/model.safetensors", dir);
            FILE *f = fopen(path, "r+b");
            assert_non_null(f);
            fseek(f, -1, SEEK_END);
            fputc(77, f);
            fclose(f);
        }
        st_checkpoint *c = opened(dir), *again = opened(dir);
        seen[i] = st_checkpoint_fingerprint(c);
        assert_int_equal(seen[i], st_checkpoint_fingerprint(again));
        st_checkpoint_free(c);
        st_checkpoint_free(again);
        for (int k = 0; k < i; k++)
            assert_true(seen[k] != seen[i]);
    }
}

static void layer_numbers_in_names(void **state)
{
    (void)state;
    assert_int_equal(st_tensor_layer("model.layers.12.mlp.gate.weight"), 12);
    assert_int_equal(st_tensor_layer("model.layers.0.x"), 0);
    assert_int_equal(st_tensor_layer("model.layers.x.y"), -1);
    assert_int_equal(st_tensor_layer("model.layers.12"), -1);
    assert_int_equal(st_tensor_layer("model.layers.99999999999.x"), -1);
    assert_int_equal(st_tensor_layer("lm_head.weight"), -1);
}

static json_t *described(const char *dir)
{
    st_buf text = ST_BUF_INIT;
    st_error err = {0};
    if (st_model_describe(dir, true, true, &text, &err))
        fail_msg("%s", err.text);
    json_error_t je;
    json_t *root = json_loadb(text.data, text.len, 0, &je);
    if (!root)
        fail_msg("%s", je.text);
    st_buf_free(&text);
    return root;
}

static json_int_t integer(json_t *root, const char *a, const char *b)
{
    json_t *o = json_object_get(root, a);
    return json_integer_value(b ? json_object_get(o, b) : o);
}

/* Numbers of the lexicon's README: 23.6 M parameters with the MTP layer, about 5 M active. */
static void the_lexicon_is_described(void **state)
{
    (void)state;
    static const char *const kinds[] = {"bf16", "int8"};
    for (int i = 0; i < 2; i++) {
        char dir[600];
        snprintf(dir, sizeof dir, ST_SOURCE_ROOT "/models/lexicon/%s", kinds[i]);
        json_t *d = described(dir);
        assert_int_equal(integer(d, "parameters", "total"), 20036800);
        assert_int_equal(integer(d, "parameters", "active"), 5225664);
        assert_int_equal(integer(d, "parameters", "mtp"), 3565472);
        assert_int_equal(integer(d, "experts", "layers"), 5);
        assert_int_equal(integer(d, "kv_bytes_per_token", NULL), 6 * (64 + 16) * 2);
        assert_int_equal(integer(d, "weights", "tensors"),
                         json_array_size(json_object_get(d, "tensor_list")));
        const char *quant = json_string_value(json_object_get(d, "quantization"));
        assert_true(i ? quant && strcmp(quant, "w8a8") == 0 : !quant);
        assert_string_equal(json_string_value(json_object_get(d, "tokenizer")), "tokenizer.json");
        assert_true(json_is_true(json_object_get(d, "chat_template")));
        json_decref(d);
        st_buf text = ST_BUF_INIT;
        st_error err = {0};
        assert_int_equal(st_model_describe(dir, false, false, &text, &err), ST_OK);
        assert_non_null(strstr(text.data, "20.0 M, 5.23 M active per token"));
        assert_non_null(strstr(text.data, "960 B per token in BF16"));
        st_buf_free(&text);
    }
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(one_file),
        IN_FOLDER(several_files_by_index),
        IN_FOLDER(several_files_without_an_index),
        IN_FOLDER(lying_indexes),
        IN_FOLDER(folders_that_are_none),
        IN_FOLDER(quantization_by_description),
        IN_FOLDER(fingerprints_differ),
        cmocka_unit_test(layer_numbers_in_names),
        cmocka_unit_test(the_lexicon_is_described),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
