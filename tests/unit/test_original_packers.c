/* Layers that the published tools' own code quantized and packed: what is read must be what their
 * own code makes of the same tensors, bit for bit. tests/vectors/quantized/README.md says how they
 * were made. */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/float_bits.h"
#include "model/weight_source.h"

enum { ROWS = 5 }; /* read at a time: pieces begin anywhere in a word or block */

typedef struct layer {
    const char *folder;
    st_weight_type type;
    bool has_zero;
    int32_t group;
} layer;

static const layer layers[] = {
    {"gptq", ST_WEIGHT_I4, true, 32},
    {"gptq-sym", ST_WEIGHT_I4, false, 64},
    {"gptq-desc-act", ST_WEIGHT_F16, false, 0},
    {"gptqmodel-v1", ST_WEIGHT_I4, true, 32}, /* with zero points of 0, which borrow */
    {"gptqmodel-v2", ST_WEIGHT_I4, true, 32},
    {"gptqmodel-dynamic", ST_WEIGHT_I4, true, 32}, /* config.json's is 64, and symmetric */
    {"awq", ST_WEIGHT_I4, true, 32},
    {"gptqmodel-awq", ST_WEIGHT_I4, true, 64},
    {"pack-quantized", ST_WEIGHT_I4, false, 32},
    {"pack-quantized-asym", ST_WEIGHT_I4, true, 32},
    {"pack-quantized-channel", ST_WEIGHT_I4, true, 64},
    {"pack-quantized-actorder", ST_WEIGHT_F16, false, 0},
    {"int-quantized", ST_WEIGHT_I8, false, 0},
    {"fp8", ST_WEIGHT_F8, false, 16},
    {"float-quantized", ST_WEIGHT_F8, false, 16},
    {"float-quantized-channel", ST_WEIGHT_F8, false, 40},
};

static const char *source_root(void)
{
    const char *root = getenv("STARLING_SOURCE_ROOT");
    return root ? root : ".";
}

/* Element i of row r. */
static float value_of(const st_weight_rows *w, int32_t r, int32_t i)
{
    size_t at = (size_t)r * (size_t)w->k + (size_t)i, scale = 0;
    if (w->type == ST_WEIGHT_F16) {
        uint16_t h;
        memcpy(&h, (const char *)w->data + 2 * at, sizeof h);
        return st_f16_to_f32(h);
    }
    if (w->type == ST_WEIGHT_I8)
        return (float)((const int8_t *)w->data)[at] * w->scale[r];
    scale = (size_t)(r * st_weight_groups(w->k, w->group) + i / w->group);
    uint8_t code = ((const uint8_t *)w->data)[at];
    if (w->type == ST_WEIGHT_F8)
        return st_f8_to_f32(code) * w->scale[scale];
    return (float)(code - (w->zero ? w->zero[scale] : 8)) * w->scale[scale];
}

/* v rounded to the type that the tool computed in, as bits. */
static uint32_t rounded(float v, st_dtype type)
{
    return type == ST_F16    ? st_f32_to_f16(v)
           : type == ST_BF16 ? st_f32_to_bf16(v)
                             : st_bits_of_float(v);
}

static void expect_rows(const layer *l, const st_tensor *expected, int32_t r0,
                        const st_weight_rows *rows)
{
    size_t size = st_dtype_size(expected->dtype);
    for (int32_t r = 0; r < rows->n; r++)
        for (int32_t i = 0; i < rows->k; i++) {
            uint32_t want = 0, got = rounded(value_of(rows, r, i), expected->dtype);
            size_t at = (size_t)(r0 + r) * (size_t)rows->k + (size_t)i;
            memcpy(&want, (const char *)expected->data + at * size, size);
            if (got != want)
                fail_msg("%s: row %d, input %d is %#x: the tool says %#x", l->folder, r0 + r, i,
                         got, want);
        }
}

static void expect_layer(const layer *l)
{
    char dir[512];
    st_checkpoint *c;
    st_weight_source s;
    st_error err = {0};
    snprintf(dir, sizeof dir, "%s/tests/vectors/quantized/%s", source_root(), l->folder);
    if (st_checkpoint_open(dir, &c, &err))
        fail_msg("%s", err.text);
    const st_tensor *expected = st_checkpoint_find(c, "expected");
    assert_non_null(expected);
    int32_t n = (int32_t)expected->shape[0], k = (int32_t)expected->shape[1];
    if (st_weight_source_find(c, "x", n, k, &s, &err))
        fail_msg("%s: %s", l->folder, err.text);
    if (s.type != l->type || s.group != l->group || s.has_zero != l->has_zero)
        fail_msg("%s: type %d, groups of %d, %s zero points", l->folder, (int)s.type, s.group,
                 s.has_zero ? "with" : "no");
    void *scratch = aligned_alloc(64, (st_weight_source_scratch(&s, ROWS) + 127) / 64 * 64);
    assert_non_null(scratch);
    for (int32_t r0 = 0; r0 < n; r0 += ROWS) {
        int32_t r1 = r0 + ROWS < n ? r0 + ROWS : n;
        st_weight_rows rows;
        if (st_weight_source_read(&s, r0, r1, scratch, &rows, &err))
            fail_msg("%s: %s", l->folder, err.text);
        expect_rows(l, expected, r0, &rows);
    }
    free(scratch);
    st_checkpoint_free(c);
}

static void weights_are_the_tools_own(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++)
        expect_layer(&layers[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(weights_are_the_tools_own)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
