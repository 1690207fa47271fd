/* Rewrites the lexicon's safetensors file with other tensors in place of kv_b_proj's. */
#include "lexicon_kv_b.h"

#include "cmocka_all.h"

#include <jansson.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/float_bits.h"

/* The whole file; freed by the caller. */
static unsigned char *read_all(const char *dir, const char *name, size_t *size)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    *size = (size_t)ftell(f);
    rewind(f);
    unsigned char *data = malloc(*size);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *size, f), *size);
    fclose(f);
    return data;
}

static FILE *create(const char *dir, const char *name)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    return f;
}

static void describe(json_t *header, const char *name, const char *dtype, size_t n, size_t k,
                     size_t bytes, size_t *at)
{
    json_t *t =
        json_pack("{s:s, s:[I,I], s:[I,I]}", "dtype", dtype, "shape", (json_int_t)n, (json_int_t)k,
                  "data_offsets", (json_int_t)*at, (json_int_t)(*at + bytes));
    assert_int_equal(json_object_set_new(header, name, t), 0);
    *at += bytes;
}

/* n rows of k in BF16: their INT8 form, then the scale of each row. */
static void quantize(unsigned char *to, const unsigned char *from, size_t n, size_t k)
{
    for (size_t i = 0; i < n; i++) {
        float x[4096], most = 0, scale;
        assert_true(k <= 4096);
        for (size_t j = 0; j < k; j++) {
            uint16_t h;
            memcpy(&h, from + (i * k + j) * 2, 2);
            x[j] = st_bf16_to_f32(h);
            most = fabsf(x[j]) > most ? fabsf(x[j]) : most;
        }
        scale = most > 0 ? most / 127 : 1;
        for (size_t j = 0; j < k; j++)
            to[i * k + j] = (unsigned char)(int8_t)nearbyintf(x[j] / scale);
        memcpy(to + n * k + i * sizeof scale, &scale, sizeof scale);
    }
}

/* Describes one tensor in the new header and appends its data. */
static void add_tensor(json_t *header, const char *name, json_t *t, const unsigned char *data,
                       unsigned char *out, size_t *at)
{
    json_t *offsets = json_object_get(t, "data_offsets"), *shape = json_object_get(t, "shape");
    size_t from = (size_t)json_integer_value(json_array_get(offsets, 0));
    size_t bytes = (size_t)json_integer_value(json_array_get(offsets, 1)) - from;
    if (!strstr(name, "kv_b_proj.weight")) {
        json_t *same = json_deep_copy(t);
        json_object_set_new(same, "data_offsets",
                            json_pack("[I,I]", (json_int_t)*at, (json_int_t)(*at + bytes)));
        json_object_set_new(header, name, same);
        memcpy(out + *at, data + from, bytes);
        *at += bytes;
        return;
    }
    assert_string_equal(json_string_value(json_object_get(t, "dtype")), "BF16");
    size_t n = (size_t)json_integer_value(json_array_get(shape, 0)), k = bytes / 2 / n;
    char scale[256];
    quantize(out + *at, data + from, n, k);
    snprintf(scale, sizeof scale, "%s_scale", name);
    describe(header, name, "I8", n, k, n * k, at);
    describe(header, scale, "F32", n, 1, n * sizeof(float), at);
}

void lexicon_kv_b_make(const char *source, char dir[64])
{
    strcpy(dir, "/tmp/test_lexicon_kv_b.XXXXXX");
    assert_non_null(mkdtemp(dir));
    size_t size, at = 0;
    unsigned char *config = read_all(source, "config.json", &size);
    FILE *f = create(dir, "config.json");
    assert_int_equal(fwrite(config, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
    free(config);
    unsigned char *file = read_all(source, "model.safetensors", &size);
    uint64_t n;
    memcpy(&n, file, sizeof n);
    json_t *old = json_loadb((const char *)file + 8, n, 0, NULL), *header = json_object(), *t;
    unsigned char *out = malloc(size);
    const char *name;
    assert_true(old && header && out);
    json_object_foreach(old, name, t) if (strcmp(name, "__metadata__") != 0)
        add_tensor(header, name, t, file + 8 + n, out, &at);
    char *text = json_dumps(header, JSON_COMPACT);
    assert_non_null(text);
    n = strlen(text);
    f = create(dir, "model.safetensors");
    assert_int_equal(fwrite(&n, sizeof n, 1, f), 1);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fwrite(out, 1, at, f), at);
    assert_int_equal(fclose(f), 0);
    free(text);
    free(out);
    free(file);
    json_decref(old);
    json_decref(header);
}

void lexicon_kv_b_remove(const char *dir)
{
    char path[600];
    static const char *const names[] = {"config.json", "model.safetensors"};
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}
