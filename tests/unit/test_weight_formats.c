/* Quantized dialects: one small linear layer in each, its numbers back from the packs' canonical
 * rows, and every way in which its tensors can be wrong. */
#include "cmocka_all.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/float_bits.h"
#include "model/weight_source.h"

enum { N = 16, K = 96, GROUP = 32, GROUPS = 3, WORD = 8 };

/* --- checkpoints of a few tensors -------------------------------------------------------- */

typedef struct entry {
    const char *name, *dtype, *shape;
    const void *data;
    size_t bytes;
} entry;

static char folder[64];

static void write_file(const char *name, const char *head, const entry *t)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    if (t) {
        uint64_t n = strlen(head);
        assert_int_equal(fwrite(&n, 8, 1, f), 1);
    }
    fputs(head, f);
    for (; t && t->name; t++)
        assert_int_equal(fwrite(t->data, 1, t->bytes, f), t->bytes);
    assert_int_equal(fclose(f), 0);
}

/* t ends with an entry without a name; what has no data is left out. */
static st_checkpoint *checkpoint(const char *quant, const entry *t)
{
    char config[1024], head[2048] = "{";
    entry there[8] = {0};
    size_t at = 0, n = 0;
    for (; t->name; t++)
        if (t->data)
            there[n++] = *t;
    for (size_t i = 0; i < n; i++) {
        size_t len = strlen(head);
        snprintf(head + len, sizeof head - len,
                 "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                 i ? "," : "", there[i].name, there[i].dtype, there[i].shape, at,
                 at + there[i].bytes);
        at += there[i].bytes;
    }
    strcat(head, "}");
    snprintf(config, sizeof config,
             "{\"model_type\":\"qwen2\",\"vocab_size\":8,\"hidden_size\":4,\"num_hidden_layers\":1,"
             "\"intermediate_size\":4,\"num_attention_heads\":2%s%s}",
             *quant ? ",\"quantization_config\":" : "", quant);
    write_file("config.json", config, NULL);
    write_file("model.safetensors", head, there);
    st_checkpoint *c;
    st_error err = {0};
    if (st_checkpoint_open(folder, &c, &err))
        fail_msg("%s", err.text);
    return c;
}

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/test_weight_formats.XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    char path[128];
    (void)state;
    snprintf(path, sizeof path, "%s/config.json", folder);
    unlink(path);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    unlink(path);
    return rmdir(folder);
}

/* --- one layer, as all dialects mean it -------------------------------------------------- */

static uint8_t q[N][K];         /* 0..15 */
static uint8_t zero[N][GROUPS]; /* 0..15 */
static float scale[N][GROUPS];  /* F16 and BF16 have them exactly */
static int32_t group_of[K];
static uint32_t words[N * K];
static uint32_t zero_words[N * GROUPS];
static uint16_t scales[N * GROUPS];
static int64_t shape[2] = {N, K};

/* Numbers that no two places share by pattern. */
static void make_layer(bool symmetric)
{
    uint32_t r = 12345;
    for (int n = 0; n < N; n++) {
        for (int k = 0; k < K; k++) {
            r = r * 1664525 + 1013904223;
            q[n][k] = (uint8_t)(r >> 28);
            group_of[k] = k / GROUP;
        }
        for (int g = 0; g < GROUPS; g++) {
            zero[n][g] = symmetric ? 8 : (uint8_t)((n * 5 + g * 3) % 16);
            scale[n][g] = (float)(8 + (n + 3 * g) % 8) / 64;
        }
    }
}

static void put(uint32_t *to, size_t word, int nibble, unsigned value)
{
    to[word] |= (uint32_t)value << (4 * nibble);
}

static uint16_t half(float v) /* an exact F16; of make_layer's values */
{
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return (uint16_t)((u >> 13) - (112u << 10));
}

static void clear(void)
{
    memset(words, 0, sizeof words);
    memset(zero_words, 0, sizeof zero_words);
}

/* Version 1 has words of zero points minus 1 in each number, with borrows. */
static void lay_out_gptq(int version)
{
    clear();
    for (int n = 0; n < N; n++) {
        for (int k = 0; k < K; k++)
            put(words, (size_t)(k / WORD * N + n), k % WORD, q[n][k]);
        for (int g = 0; g < GROUPS; g++) {
            put(zero_words, (size_t)(g * (N / WORD) + n / WORD), n % WORD, zero[n][g]);
            scales[g * N + n] = half(scale[n][g]);
        }
    }
    for (int i = 0; version == 1 && i < GROUPS * N / WORD; i++)
        zero_words[i] -= 0x11111111;
}

static void lay_out_awq(void)
{
    static const int nibble[WORD] = {0, 4, 1, 5, 2, 6, 3, 7}; /* of outputs 0..7 */
    clear();
    for (int n = 0; n < N; n++) {
        for (int k = 0; k < K; k++)
            put(words, (size_t)(k * (N / WORD) + n / WORD), nibble[n % WORD], q[n][k]);
        for (int g = 0; g < GROUPS; g++) {
            put(zero_words, (size_t)(g * (N / WORD) + n / WORD), nibble[n % WORD], zero[n][g]);
            scales[g * N + n] = half(scale[n][g]);
        }
    }
}

static void lay_out_packed(void)
{
    clear();
    for (int n = 0; n < N; n++) {
        for (int k = 0; k < K; k++)
            put(words, (size_t)(n * (K / WORD) + k / WORD), k % WORD, q[n][k]);
        for (int g = 0; g < GROUPS; g++) {
            put(zero_words, (size_t)(n / WORD * GROUPS + g), n % WORD, zero[n][g]);
            scales[n * GROUPS + g] = half(scale[n][g]);
        }
    }
}

#define GPTQ(more)                                                                                 \
    "{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"desc_act\":true" more "}"
#define AWQ "{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32,\"version\":\"gemm\"}"
#define INT4(size, symmetric)                                                                      \
    "{\"weights\":{\"num_bits\":4,\"type\":\"int\",\"strategy\":\"group\","                        \
    "\"symmetric\":" symmetric ",\"group_size\":" size "}}"
#define PACKED(groups)                                                                             \
    "{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":"    \
    "{" groups "}}"
#define SYMMETRIC  PACKED("\"a\":" INT4("32", "true"))
#define ASYMMETRIC PACKED("\"a\":" INT4("32", "false"))
#define FP8        "{\"quant_method\":\"fp8\",\"weight_block_size\":[10,64]}"

enum { WEIGHTS, SCALES, ZEROS, ORDER, SHAPE, PARTS };

static const entry gptq_tensors[PARTS + 1] = {
    {"x.qweight", "I32", "[12,16]", words, 12 * 16 * 4},
    {"x.scales", "F16", "[3,16]", scales, 3 * 16 * 2},
    {"x.qzeros", "I32", "[3,2]", zero_words, 3 * 2 * 4},
    {"x.g_idx", "I32", "[96]", group_of, 96 * 4},
    {"x.unused", "I64", "[2]", shape, 16},
};
static const entry awq_tensors[PARTS + 1] = {
    {"x.qweight", "I32", "[96,2]", words, 96 * 2 * 4},
    {"x.scales", "F16", "[3,16]", scales, 3 * 16 * 2},
    {"x.qzeros", "I32", "[3,2]", zero_words, 3 * 2 * 4},
    {"x.unused", "I32", "[96]", group_of, 96 * 4},
    {"y.unused", "I64", "[2]", shape, 16},
};
static const entry packed_tensors[PARTS + 1] = {
    {"x.weight_packed", "I32", "[16,12]", words, 16 * 12 * 4},
    {"x.weight_scale", "F16", "[16,3]", scales, 16 * 3 * 2},
    {"x.weight_zero_point", "I32", "[2,3]", zero_words, 2 * 3 * 4},
    {"x.weight_g_idx", "I32", "[96]", group_of, 96 * 4},
    {"x.weight_shape", "I64", "[2]", shape, 16},
};

static void *scratch_for(const st_weight_source *s, int32_t rows)
{
    void *p = aligned_alloc(64, (st_weight_source_scratch(s, rows) + 63) / 64 * 64 + 64);
    assert_non_null(p);
    return p;
}

static float value_of(const st_weight_rows *rows, int32_t n, int32_t k)
{
    size_t at = (size_t)n * K + (size_t)k, g = (size_t)n * GROUPS + (size_t)(k / 32);
    float v;
    if (rows->type == ST_WEIGHT_I4)
        return (float)(((const uint8_t *)rows->data)[at] - (rows->zero ? rows->zero[g] : 8)) *
               rows->scale[g];
    memcpy(&v, (const char *)rows->data + at * sizeof v, sizeof v);
    return v;
}

/* Rows [r0, r1) as a slice: in the source's own type, and turned around. */
static void expect_slice(const st_weight_source *s, int32_t r0, int32_t r1)
{
    st_weight_source slice;
    st_weight_rows rows;
    st_error err = {0};
    float all_scales[N * GROUPS];
    st_weight_source_slice(s, r0, r1 - r0, false, &slice);
    assert_int_equal(slice.type, s->type);
    assert_int_equal(slice.group, s->group);
    assert_int_equal(slice.has_zero, s->has_zero);
    void *scratch = scratch_for(&slice, r1 - r0);
    assert_int_equal(st_weight_source_read(&slice, 0, r1 - r0, scratch, &rows, &err), ST_OK);
    if (s->type == ST_WEIGHT_I4)
        assert_int_equal(st_weight_source_scales(&slice, 0, r1 - r0, all_scales, &err), ST_OK);
    for (int32_t n = r0; n < r1 && s->type != ST_WEIGHT_F16; n++)
        for (int32_t k = 0; k < K; k++) {
            int32_t g = group_of[k];
            assert_true(value_of(&rows, n - r0, k) == (float)(q[n][k] - zero[n][g]) * scale[n][g]);
            if (s->type == ST_WEIGHT_I4)
                assert_true(all_scales[(n - r0) * GROUPS + k / 32] == scale[n][g]);
        }
    free(scratch);
    if (s->type != ST_WEIGHT_I4)
        return;
    st_weight_source_slice(s, r0, r1 - r0, true, &slice);
    bool four = !s->has_zero; /* zero points other than 8 need more bits */
    assert_true(slice.n == K && slice.k == r1 - r0 && !slice.has_zero);
    assert_int_equal(slice.type, four ? ST_WEIGHT_I4 : ST_WEIGHT_I8);
    assert_int_equal(slice.group, four ? slice.k : 0);
    scratch = scratch_for(&slice, K);
    assert_int_equal(st_weight_source_read(&slice, 0, K, scratch, &rows, &err), ST_OK);
    for (int32_t k = 0; k < K; k++) {
        assert_true(rows.scale[k] == 1);
        for (int32_t n = r0; n < r1; n++) {
            int32_t at = k * (r1 - r0) + n - r0;
            int32_t got = ((const int8_t *)rows.data)[at];
            assert_int_equal(four ? got - 8 : got, q[n][k] - zero[n][group_of[k]]);
        }
    }
    free(scratch);
}

/* Every element of the source, as a float, read in pieces that begin anywhere. */
static void expect_layer(const st_checkpoint *c, st_weight_type type)
{
    st_weight_source s;
    st_error err = {0};
    if (st_weight_source_find(c, "x", N, K, &s, &err))
        fail_msg("%s", err.text);
    assert_int_equal(s.type, type);
    void *scratch = scratch_for(&s, N);
    for (int32_t r0 = 0, step = 1; r0 < N; r0 += step, step = 5) {
        int32_t r1 = r0 + step < N ? r0 + step : N;
        st_weight_rows rows;
        if (st_weight_source_read(&s, r0, r1, scratch, &rows, &err))
            fail_msg("%s", err.text);
        expect_slice(&s, r0, r1);
        for (int32_t n = r0; n < r1; n++)
            for (int32_t k = 0; k < K; k++) {
                int32_t g = group_of[k];
                size_t at = (size_t)(n - r0) * K + (size_t)k;
                float want = (float)(q[n][k] - zero[n][g]) * scale[n][g];
                if (type == ST_WEIGHT_I4)
                    assert_int_equal(((const uint8_t *)rows.data)[at], q[n][k]);
                if (type == ST_WEIGHT_F16)
                    assert_true(((const uint16_t *)rows.data)[at] ==
                                (want == 0 ? 0 : (half(fabsf(want)) | (want < 0 ? 0x8000 : 0))));
            }
    }
    free(scratch);
}

static void expect_quant(const char *quant, const entry *tensors, st_weight_type type)
{
    st_checkpoint *c = checkpoint(quant, tensors);
    expect_layer(c, type);
    st_checkpoint_free(c);
}

/* --- what is right ----------------------------------------------------------------------- */

static void order_of_groups(void **state)
{
    (void)state;
    make_layer(false);
    lay_out_gptq(1);
    for (int k = 0; k < K; k++)
        group_of[k] = (k / GROUP + 1) % GROUPS; /* other names for the same groups */
    expect_quant(GPTQ(""), gptq_tensors, ST_WEIGHT_I4);
    for (int k = 0; k < K; k++)
        group_of[k] = k * 7 % GROUPS; /* apart: F16, as the scales */
    expect_quant(GPTQ(""), gptq_tensors, ST_WEIGHT_F16);
    make_layer(true);
    lay_out_packed();
    for (int k = 0; k < K; k++)
        group_of[k] = k * 7 % GROUPS;
    entry t[PARTS + 1];
    float wide[N * GROUPS];
    memcpy(t, packed_tensors, sizeof t);
    t[ZEROS].data = NULL;
    expect_quant(SYMMETRIC, t, ST_WEIGHT_F16);
    for (int n = 0; n < N; n++)
        for (int g = 0; g < GROUPS; g++)
            wide[n * GROUPS + g] = scale[n][g];
    t[SCALES] = (entry){"x.weight_scale", "F32", "[16,3]", wide, sizeof wide};
    expect_quant(SYMMETRIC, t, ST_WEIGHT_F32);
    int32_t unset[K];
    memset(unset, -1, sizeof unset); /* as it is before an algorithm orders */
    t[ORDER].data = unset;
    for (int k = 0; k < K; k++)
        group_of[k] = k / GROUP;
    expect_quant(SYMMETRIC, t, ST_WEIGHT_I4);
}

static void awq_and_pack_quantized(void **state)
{
    (void)state;
    make_layer(false);
    lay_out_awq();
    expect_quant(AWQ, awq_tensors, ST_WEIGHT_I4);
    lay_out_packed();
    /* Layers with different groups: the shapes tell. */
    expect_quant(PACKED("\"a\":" INT4("32", "true") ",\"b\":" INT4("64", "true")), packed_tensors,
                 ST_WEIGHT_I4);
    int8_t bytes[N * GROUPS];
    for (int n = 0; n < N; n++)
        for (int g = 0; g < GROUPS; g++)
            bytes[n * GROUPS + g] = (int8_t)(zero[n][g] - 8);
    entry t[PARTS + 1];
    memcpy(t, packed_tensors, sizeof t);
    t[ZEROS] = (entry){"x.weight_zero_point", "I8", "[16,3]", bytes, sizeof bytes};
    expect_quant(ASYMMETRIC, t, ST_WEIGHT_I4);
    make_layer(true);
    lay_out_packed();
    t[ZEROS].data = t[ORDER].data = t[SHAPE].data = NULL;
    expect_quant(SYMMETRIC, t, ST_WEIGHT_I4);
}

/* Blocks of 10 rows and 64 inputs: partial ones at both edges. */
static void fp8_in_blocks(void **state)
{
    static uint8_t codes[N * K];
    static const float inverse[2][2] = {{0.5f, 2}, {0.25f, 8}};
    (void)state;
    memset(codes, 0x38, sizeof codes); /* 1.0 */
    codes[11 * K + 70] = 0x7E;         /* 448 */
    codes[3] = 0x81;                   /* -2^-9 */
    const entry t[] = {{"x.weight", "F8_E4M3", "[16,96]", codes, sizeof codes},
                       {"x.weight_scale_inv", "F32", "[2,2]", inverse, sizeof inverse},
                       {0}};
    st_checkpoint *c = checkpoint(FP8, t);
    st_weight_source s, slice;
    st_weight_rows rows;
    st_error err = {0};
    _Alignas(64) char scratch[16384];
    if (st_weight_source_find(c, "x", N, K, &s, &err))
        fail_msg("%s", err.text);
    assert_true(s.type == ST_WEIGHT_F8 && s.group == 64);
    st_weight_source_slice(&s, 0, N, false, &slice);
    assert_true(st_weight_source_scratch(&slice, N) <= sizeof scratch);
    assert_int_equal(st_weight_source_read(&slice, 0, N, scratch, &rows, &err), ST_OK);
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) {
            float code = n == 11 && k == 70 ? 448 : n == 0 && k == 3 ? -0x1p-9f : 1;
            assert_true(((const float *)rows.data)[n * K + k] == code * inverse[n / 10][k / 64]);
        }
    st_checkpoint_free(c);
}

/* Every half comes back; what lies between two goes to the nearer, from the middle to the even. */
static void floats_round_to_halves(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7C00; h++) {
        float v = st_f16_to_f32((uint16_t)h), next = st_f16_to_f32((uint16_t)(h + 1));
        float middle = v + (h + 1 < 0x7C00 ? next - v : v - st_f16_to_f32((uint16_t)(h - 1))) / 2;
        assert_int_equal(st_f32_to_f16(v), h);
        assert_int_equal(st_f32_to_f16(-v), h | 0x8000);
        assert_int_equal(st_f32_to_f16(middle), h + (h & 1));
        assert_int_equal(st_f32_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(st_f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
    }
    assert_int_equal(st_f32_to_f16(INFINITY), 0x7C00);
    assert_int_equal(st_f32_to_f16(-1e30f), 0xFC00);
    assert_int_equal(st_f32_to_f16(NAN) & 0x7FFF, 0x7E00);
}

/* --- what is wrong ----------------------------------------------------------------------- */

/* Finding or reading x fails and says so. */
static void expect_refused(const char *quant, const entry *tensors, st_status status,
                           const char *text)
{
    st_checkpoint *c = checkpoint(quant, tensors);
    st_weight_source s;
    st_weight_rows rows;
    st_error err = {0};
    _Alignas(64) static char scratch[65536];
    st_status got = st_weight_source_find(c, "x", N, K, &s, &err);
    if (!got) {
        assert_true(st_weight_source_scratch(&s, N) <= sizeof scratch);
        got = st_weight_source_read(&s, 0, N, scratch, &rows, &err);
    }
    st_checkpoint_free(c);
    if (got != status || !strstr(err.text, text))
        fail_msg("status %d, '%s'; expected %d, '%s'", got, err.text, status, text);
}

typedef struct wrong {
    const char *quant;
    const entry *tensors;
    int part;
    entry instead; /* no name: part is missing */
    st_status status;
    const char *text;
} wrong;

static void expect_all_refused(const wrong *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        entry t[PARTS + 1];
        memcpy(t, rows[i].tensors, sizeof t);
        if (rows[i].instead.name)
            t[rows[i].part] = rows[i].instead;
        else
            t[rows[i].part].data = NULL;
        expect_refused(rows[i].quant, t, rows[i].status, rows[i].text);
    }
}

static void tensors_that_do_not_fit_are_named(void **state)
{
    (void)state;
    static int64_t other[2] = {K, N};
    make_layer(true);
    lay_out_gptq(1);
    static const wrong rows[] = {
        {GPTQ(""), gptq_tensors, SCALES, {0}, ST_ENOTFOUND, "'x.scales' is missing"},
        {GPTQ(""), gptq_tensors, ZEROS, {0}, ST_ENOTFOUND, "'x.qzeros' is missing"},
        {AWQ, awq_tensors, ZEROS, {0}, ST_ENOTFOUND, "'x.qzeros' is missing"},
        {ASYMMETRIC, packed_tensors, ZEROS, {0}, ST_ENOTFOUND, "'x.weight_zero_point' is missing"},
        {SYMMETRIC, packed_tensors, SCALES, {0}, ST_ENOTFOUND, "'x.weight_scale' is missing"},
        {"", gptq_tensors, SHAPE, {0}, ST_EUNSUPPORTED, "no quantization_config with"},
        {SYMMETRIC, gptq_tensors, SHAPE, {0}, ST_ENOTFOUND, "'x.weight_packed' is missing"},
        {GPTQ(""), awq_tensors, SHAPE, {0}, ST_EFORMAT, "[96, 2]: config.json calls for [12, 16]"},
        {AWQ, gptq_tensors, SHAPE, {0}, ST_EFORMAT, "[12, 16]: config.json calls for [96, 2]"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":64}",
         gptq_tensors,
         SHAPE,
         {0},
         ST_EFORMAT,
         "'x.scales' has shape [3, 16]: config.json calls for [2, 16]"},
        {GPTQ(""),
         gptq_tensors,
         WEIGHTS,
         {"x.qweight", "F32", "[12,16]", words, 12 * 16 * 4},
         ST_EUNSUPPORTED,
         "'x.qweight' is of type F32: expected I32"},
        {GPTQ(""),
         gptq_tensors,
         SCALES,
         {"x.scales", "I16", "[3,16]", scales, 96},
         ST_EUNSUPPORTED,
         "'x.scales' is of type I16: expected F32, F16 or BF16"},
        {GPTQ(""),
         gptq_tensors,
         ZEROS,
         {"x.qzeros", "F32", "[3,2]", zero_words, 24},
         ST_EUNSUPPORTED,
         "'x.qzeros' is of type F32: expected I32"},
        {GPTQ(""),
         gptq_tensors,
         ZEROS,
         {"x.qzeros", "I32", "[2,3]", zero_words, 24},
         ST_EFORMAT,
         "'x.qzeros' has shape [2, 3]"},
        {GPTQ(""),
         gptq_tensors,
         ORDER,
         {"x.g_idx", "I64", "[96]", words, 96 * 8},
         ST_EUNSUPPORTED,
         "'x.g_idx' is of type I64"},
        {GPTQ(""),
         gptq_tensors,
         ORDER,
         {"x.g_idx", "I32", "[95]", group_of, 95 * 4},
         ST_EFORMAT,
         "'x.g_idx' has shape [95]"},
        {ASYMMETRIC,
         packed_tensors,
         SHAPE,
         {"x.weight_shape", "I64", "[2]", other, 16},
         ST_EFORMAT,
         "'x.weight_shape' holds [96, 16]: config.json calls for [16, 96]"},
        {ASYMMETRIC,
         packed_tensors,
         SHAPE,
         {"x.weight_shape", "I64", "[1]", other, 8},
         ST_EFORMAT,
         "'x.weight_shape' holds [0, 0]"},
        {ASYMMETRIC,
         packed_tensors,
         SHAPE,
         {"x.weight_shape", "F32", "[4]", other, 16},
         ST_EUNSUPPORTED,
         "'x.weight_shape' is of type F32"},
    };
    expect_all_refused(rows, sizeof rows / sizeof *rows);
}

static void values_that_cannot_be_are_named(void **state)
{
    (void)state;
    static int8_t bytes[N * GROUPS];
    make_layer(true);
    lay_out_gptq(1);
    group_of[50] = 3;
    expect_refused(GPTQ(""), gptq_tensors, ST_EFORMAT,
                   "'x.g_idx': element 50 is 3: expected a group from 0 to 2");
    group_of[50] = -1;
    expect_refused(GPTQ(""), gptq_tensors, ST_EFORMAT, "element 50 is -1");
    group_of[50] = 1;
    zero_words[1] += 1u << 8; /* output 10 of group 0 */
    expect_refused(GPTQ(",\"sym\":true"), gptq_tensors, ST_EFORMAT,
                   "'x.qzeros': the zero point of row 10, group 0 is 9: expected 8");
    lay_out_gptq(2);
    expect_quant(GPTQ(",\"sym\":true,\"checkpoint_format\":\"gptq_v2\""), gptq_tensors,
                 ST_WEIGHT_I4);
    scales[2 * N + 7] = 0x7E00;
    expect_refused(GPTQ(""), gptq_tensors, ST_EFORMAT, "'x.scales': element 39 is nan");
    group_of[0] = 2; /* and so where groups are apart */
    expect_refused(GPTQ(""), gptq_tensors, ST_EFORMAT, "'x.scales': element 39 is nan");
    lay_out_packed();
    group_of[0] = 0;
    bytes[5] = 8;
    entry t[PARTS + 1];
    memcpy(t, packed_tensors, sizeof t);
    t[ZEROS] = (entry){"x.weight_zero_point", "I8", "[16,3]", bytes, sizeof bytes};
    expect_refused(ASYMMETRIC, t, ST_EFORMAT,
                   "zero point of row 1, group 2 is 8: expected -8 to 7");
}

/* Shapes that the layout or the kernels cannot have: [n, k] of another layer. */
static void sizes_that_cannot_be_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *quant;
        const entry *tensors;
        int32_t n, k;
        const char *text;
    } rows[] = {
        {GPTQ(""), gptq_tensors, 12, K, "x has 12 outputs and 96 inputs: expected multiples of 8"},
        {GPTQ(""), gptq_tensors, N, 92, "x has 16 outputs and 92 inputs: expected multiples of 8"},
        {AWQ, awq_tensors, 20, K, "x has 20 outputs and 96 inputs"},
        {"{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":-1}", awq_tensors, N, 80000,
         "groups of 80000 inputs: expected a multiple of 32, or all inputs, and at most 65536"},
        {PACKED("\"a\":" INT4("32", "true") ",\"b\":" INT4("64", "true")), packed_tensors, N, 120,
         "groups of 40 inputs"},
        {PACKED("\"a\":" INT4("32", "true") ",\"b\":" INT4("64", "true")), packed_tensors, N, 100,
         "'x.weight_scale' has 3 groups: expected a divisor of 100 inputs"},
    };
    make_layer(true);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        st_checkpoint *c = checkpoint(rows[i].quant, rows[i].tensors);
        st_weight_source s;
        st_error err = {0};
        st_status got = st_weight_source_find(c, "x", rows[i].n, rows[i].k, &s, &err);
        st_checkpoint_free(c);
        if (got == ST_OK || !strstr(err.text, rows[i].text))
            fail_msg("row %zu: %d '%s'", i, got, err.text);
    }
}

static void fp8_without_sense_is_named(void **state)
{
    (void)state;
    static uint8_t codes[N * K];
    static float inverse[4] = {1, 1, 1, 1};
    entry t[PARTS + 1] = {{"x.weight", "F8_E4M3", "[16,96]", codes, sizeof codes},
                          {"x.weight_scale_inv", "F32", "[2,2]", inverse, sizeof inverse}};
    expect_refused("", t, ST_EUNSUPPORTED, "'x.weight' is of type F8_E4M3, but config.json has no");
    inverse[3] = INFINITY;
    expect_refused(FP8, t, ST_EFORMAT, "'x.weight_scale_inv': element 3 is inf");
    inverse[3] = 1;
    codes[100] = 0xFF;
    expect_refused(FP8, t, ST_EFORMAT, "'x.weight' holds NaN or infinite weights");
    t[0].dtype = "F8_E5M2";
    expect_refused(FP8, t, ST_EUNSUPPORTED, "'x.weight' is of type F8_E5M2");
    t[0].dtype = "F8_E4M3";
    t[1].dtype = "I32";
    expect_refused(FP8, t, ST_EUNSUPPORTED, "'x.weight_scale_inv' is of type I32");
    t[1].shape = "[4]";
    expect_refused(FP8, t, ST_EFORMAT, "has shape [4]: config.json calls for [2, 2]");
    t[1].data = NULL;
    expect_refused(FP8, t, ST_ENOTFOUND, "'x.weight_scale_inv' is missing");
}

/* Embeddings, tied heads and routers. */
static void int4_where_floats_are_wanted_is_named(void **state)
{
    (void)state;
    make_layer(true);
    lay_out_gptq(1);
    st_checkpoint *c = checkpoint(GPTQ(""), gptq_tensors);
    st_weight_source s;
    st_error err = {0};
    assert_int_equal(st_weight_source_float(c, "x.weight", N, K, &s, &err), ST_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "'x' is published in INT4: embeddings"));
    st_checkpoint_free(c);
}

/* Eight numbers to a word are eight parameters; scales, zero points and orders are none. */
static void what_inspect_says(void **state)
{
    (void)state;
    static const struct {
        const char *quant;
        const entry *tensors;
        const char *name, *text;
    } rows[] = {
        {GPTQ(""), gptq_tensors, "\"gptq\"", "INT4 weights in groups (GPTQ)"},
        {AWQ, awq_tensors, "\"awq\"", "INT4 weights in groups (AWQ)"},
        {ASYMMETRIC, packed_tensors, "\"pack-quantized\"", "INT4 weights in groups (compressed-"},
    };
    make_layer(true);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        entry t[PARTS + 1];
        st_buf json = ST_BUF_INIT, text = ST_BUF_INIT;
        st_error err = {0};
        memcpy(t, rows[i].tensors, sizeof t);
        if (rows[i].tensors != packed_tensors)
            t[SHAPE].data = NULL; /* not of this format */
        if (rows[i].tensors == awq_tensors)
            t[ORDER].data = NULL;
        st_checkpoint_free(checkpoint(rows[i].quant, t));
        if (st_model_describe(folder, true, false, &json, &err) ||
            st_model_describe(folder, false, false, &text, &err))
            fail_msg("%s", err.text);
        assert_non_null(strstr(json.data, "\"total\": 1536,"));
        assert_non_null(strstr(json.data, rows[i].name));
        assert_non_null(strstr(text.data, rows[i].text));
        st_buf_free(&json);
        st_buf_free(&text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_of_groups),
        cmocka_unit_test(awq_and_pack_quantized),
        cmocka_unit_test(fp8_in_blocks),
        cmocka_unit_test(floats_round_to_halves),
        cmocka_unit_test(tensors_that_do_not_fit_are_named),
        cmocka_unit_test(values_that_cannot_be_are_named),
        cmocka_unit_test(sizes_that_cannot_be_are_named),
        cmocka_unit_test(fp8_without_sense_is_named),
        cmocka_unit_test(int4_where_floats_are_wanted_is_named),
        cmocka_unit_test(what_inspect_says),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
