/* INT4 as published: compressed-tensors pack-quantized, GPTQ and AWQ. They differ in how numbers of
 * four bits lie in words of 32, in where a scale lies, and in what is added to zero points; all
 * mean (q - zero) * scale. Groups of inputs that are not together (act-order) cannot stay INT4:
 * such layers become floats. */
#include <stdio.h>
#include <string.h>

#include "kernels/float_bits.h"
#include "model/weight_dialects.h"

enum { I4_WEIGHT, I4_SCALE, I4_ZERO, I4_ORDER };
enum { WORD = 8 };          /* numbers in a word */
enum { MAX_GROUP = 65536 }; /* the kernels' */

/* One dialect's layout. */
struct st_int4_layout {
    const char *weight, *scale, *zero, *order; /* suffixes of tensor names */
    bool outputs_first;                        /* of weights, scales: [n, k]; else [k, n] */
    bool packs_outputs;                        /* a word of weights holds 8 outputs, not inputs */
    bool even_first;                           /* a word holds outputs 0, 2, 4, 6, 1, 3, 5, 7 */
    uint32_t zero_add;                         /* to words of zero points */
};

/* Version 1 of GPTQ stores zero points minus 1. GPTQModel, which writes most of them, subtracts 1
 * from the eight numbers of a word at once: a zero point of 0 borrows from its neighbour, and only
 * the word's sum gives both back. */
enum { ONE_EACH = 0x11111111 };

static const struct st_int4_layout packed = {
    "weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", true, false, false, 0};
static const struct st_int4_layout gptq_v1 = {"qweight", "scales", "qzeros", "g_idx",
                                              false,     false,    false,    ONE_EACH};
static const struct st_int4_layout gptq_v2 = {"qweight", "scales", "qzeros", "g_idx",
                                              false,     false,    false,    0};
static const struct st_int4_layout awq = {"qweight", "scales", "qzeros", NULL,
                                          false,     true,     true,     0};

static const struct st_int4_layout *layout_of(const st_quant_config *q)
{
    switch (q->method) {
    case ST_QUANT_PACKED_INT4:
        return &packed;
    case ST_QUANT_GPTQ:
        return q->zeros_minus_1 ? &gptq_v1 : &gptq_v2;
    case ST_QUANT_AWQ:
        return &awq;
    default:
        return NULL;
    }
}

static uint32_t word_at(const st_tensor *t, size_t i)
{
    uint32_t w;
    memcpy(&w, (const char *)t->data + i * sizeof w, sizeof w);
    return w;
}

/* Where output j of a word's eight lies. */
static size_t nibble_of(const struct st_int4_layout *l, size_t j)
{
    return l->even_first ? j / 2 + j % 2 * 4 : j;
}

/* --- weights ----------------------------------------------------------------------------- */

/* The eight numbers of a word, lowest first. */
static void spread(uint32_t word, uint8_t *out)
{
    for (int i = 0; i < WORD; i++)
        out[i] = word >> (4 * i) & 15;
}

static void rows_of_input_words(const st_weight_source *s, int32_t r0, int32_t r1, uint8_t *out)
{
    size_t k = (size_t)s->k, words = (k + WORD - 1) / WORD, n = (size_t)s->n;
    bool outputs_first = s->layout->outputs_first;
    for (size_t w = 0; w < words; w++) {
        size_t count = k - w * WORD < WORD ? k - w * WORD : WORD;
        for (size_t r = (size_t)r0; r < (size_t)r1; r++) {
            uint8_t eight[WORD];
            spread(word_at(s->tensor[I4_WEIGHT], outputs_first ? r * words + w : w * n + r), eight);
            memcpy(out + (r - (size_t)r0) * k + w * WORD, eight, count);
        }
    }
}

/* AWQ. Eight inputs at a time, so that lines of out are not written byte by byte in turn. */
static void rows_of_output_words(const st_weight_source *s, int32_t r0, int32_t r1, uint8_t *out)
{
    size_t k = (size_t)s->k, words = (size_t)s->n / WORD;
    for (size_t i0 = 0; i0 < k; i0 += WORD) {
        size_t count = k - i0 < WORD ? k - i0 : WORD;
        for (size_t w = (size_t)r0 / WORD; w * WORD < (size_t)r1; w++) {
            uint8_t eight[WORD][WORD];
            for (size_t i = 0; i < count; i++)
                spread(word_at(s->tensor[I4_WEIGHT], (i0 + i) * words + w), eight[i]);
            for (size_t j = 0; j < WORD; j++) {
                size_t r = w * WORD + j, from = nibble_of(s->layout, j);
                if (r < (size_t)r0 || r >= (size_t)r1)
                    continue;
                for (size_t i = 0; i < count; i++)
                    out[(r - (size_t)r0) * k + i0 + i] = eight[i][from];
            }
        }
    }
}

static void read_numbers(const st_weight_source *s, int32_t r0, int32_t r1, uint8_t *out)
{
    if (s->layout->packs_outputs)
        rows_of_output_words(s, r0, r1, out);
    else
        rows_of_input_words(s, r0, r1, out);
}

/* --- scales and zero points -------------------------------------------------------------- */

/* Scales of a row in the tensors. */
static size_t groups_of(const st_weight_source *s)
{
    return (size_t)st_weight_groups(s->k, s->scale_inputs);
}

static st_status read_scale(const st_weight_source *s, size_t r, size_t group, float *out,
                            st_error *err)
{
    size_t at = s->layout->outputs_first ? r * groups_of(s) + group : group * (size_t)s->n + r;
    return st_tensor_scale(s->tensor[I4_SCALE], at, out, err);
}

/* 0..15. Symmetric checkpoints may store zero points too, but then all of them are 8. */
static st_status read_zero(const st_weight_source *s, size_t r, size_t group, uint8_t *out,
                           st_error *err)
{
    const st_tensor *t = s->tensor[I4_ZERO];
    const struct st_int4_layout *l = s->layout;
    int zero = 8;
    if (t && t->dtype == ST_I8) {
        zero = ((const int8_t *)t->data)[r * groups_of(s) + group] + 8;
    } else if (t) {
        size_t at = l->outputs_first ? r / WORD * groups_of(s) + group
                                     : group * ((size_t)s->n / WORD) + r / WORD;
        zero = (int)((word_at(t, at) + l->zero_add) >> (4 * nibble_of(l, r % WORD)) & 15);
    }
    if (zero < 0 || zero > 15)
        return st_fail(err, ST_EFORMAT,
                       "%s: tensor '%s': the zero point of row %zu, group %zu is %d: expected -8 "
                       "to 7",
                       t->file, t->name, r, group, zero - 8);
    if (!s->symmetric || zero == 8) {
        *out = (uint8_t)zero;
        return ST_OK;
    }
    return st_fail(err, ST_EFORMAT,
                   "%s: tensor '%s': the zero point of row %zu, group %zu is %d: expected 8, since "
                   "config.json says that quantization is symmetric",
                   t->file, t->name, r, group, zero);
}

/* --- INT4 that stays INT4 ---------------------------------------------------------------- */

static size_t aligned(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

typedef struct parts {
    uint8_t *numbers;
    float *scale;
    uint8_t *zero;
    size_t bytes; /* of all */
} parts;

static parts parts_of(const st_weight_source *s, int32_t n_rows, void *scratch)
{
    char *p = scratch;
    size_t numbers = aligned((size_t)n_rows * (size_t)s->k), groups = groups_of(s);
    size_t scale = aligned((size_t)n_rows * groups * sizeof(float));
    size_t bytes = numbers + scale + aligned((size_t)n_rows * groups);
    if (!p)
        return (parts){.bytes = bytes};
    return (parts){(uint8_t *)p, (float *)(void *)(p + numbers), (uint8_t *)p + numbers + scale,
                   bytes};
}

static size_t i4_scratch(const st_weight_source *s, int32_t n_rows)
{
    return parts_of(s, n_rows, NULL).bytes;
}

/* The group that inputs [g * scale_inputs, ...) belong to: act-order may have renumbered them. */
static size_t group_of_block(const st_weight_source *s, size_t g)
{
    const st_tensor *order = s->tensor[I4_ORDER];
    return order ? word_at(order, g * (size_t)s->scale_inputs) : g;
}

static st_status i4_scales(const st_weight_source *s, int32_t r0, int32_t r1, float *out,
                           st_error *err)
{
    size_t groups = groups_of(s);
    st_status status = ST_OK;
    for (int32_t r = r0; !status && r < r1; r++)
        for (size_t g = 0; !status && g < groups; g++)
            status = read_scale(s, (size_t)r, group_of_block(s, g), out++, err);
    return status;
}

static st_status i4_read(const st_weight_source *s, int32_t r0, int32_t r1, void *scratch,
                         st_weight_rows *out, st_error *err)
{
    parts p = parts_of(s, r1 - r0, scratch);
    size_t groups = groups_of(s), at = 0;
    st_status status = i4_scales(s, r0, r1, p.scale, err);
    read_numbers(s, r0, r1, p.numbers);
    for (int32_t r = r0; !status && r < r1; r++)
        for (size_t g = 0; !status && g < groups; g++, at++)
            status = read_zero(s, (size_t)r, group_of_block(s, g), &p.zero[at], err);
    *out = (st_weight_rows){.type = ST_WEIGHT_I4,
                            .n = r1 - r0,
                            .k = s->k,
                            .group = s->group,
                            .data = p.numbers,
                            .scale = p.scale,
                            .zero = s->has_zero ? p.zero : NULL};
    return status;
}

static const st_weight_reader i4_reader = {i4_scratch, i4_read, i4_scales};

/* --- INT4 whose groups are not together -------------------------------------------------- */

static size_t element_size(const st_weight_source *s)
{
    return s->type == ST_WEIGHT_F16 ? 2 : 4;
}

static size_t float_bytes(const st_weight_source *s, int32_t n_rows)
{
    return aligned((size_t)n_rows * (size_t)s->k * element_size(s));
}

static size_t ordered_scratch(const st_weight_source *s, int32_t n_rows)
{
    return float_bytes(s, n_rows) + parts_of(s, n_rows, NULL).bytes;
}

/* F16 scales give F16 weights, rounded once: what the format's own products in half precision
 * work with. Other scales give F32, which is exact. */
static st_status ordered_read(const st_weight_source *s, int32_t r0, int32_t r1, void *scratch,
                              st_weight_rows *out, st_error *err)
{
    parts p = parts_of(s, r1 - r0, (char *)scratch + float_bytes(s, r1 - r0));
    size_t groups = groups_of(s), k = (size_t)s->k;
    read_numbers(s, r0, r1, p.numbers);
    for (int32_t r = r0; r < r1; r++) {
        size_t row = (size_t)(r - r0) * k;
        for (size_t g = 0; g < groups; g++) {
            st_status status = read_scale(s, (size_t)r, g, &p.scale[g], err);
            if (!status)
                status = read_zero(s, (size_t)r, g, &p.zero[g], err);
            if (status)
                return status;
        }
        for (size_t i = 0; i < k; i++) {
            size_t g = word_at(s->tensor[I4_ORDER], i);
            float v = (float)(p.numbers[row + i] - p.zero[g]) * p.scale[g];
            if (s->type == ST_WEIGHT_F16)
                ((uint16_t *)scratch)[row + i] = st_f32_to_f16(v);
            else
                ((float *)scratch)[row + i] = v;
        }
    }
    *out = (st_weight_rows){.type = s->type, .n = r1 - r0, .k = s->k, .data = scratch};
    return ST_OK;
}

static const st_weight_reader ordered_reader = {ordered_scratch, ordered_read, NULL};

/* --- finding ----------------------------------------------------------------------------- */

static st_status refuse_type(const st_tensor *t, const char *expected, st_error *err)
{
    return st_fail(err, ST_EUNSUPPORTED, "%s: tensor '%s' is of type %s: expected %s", t->file,
                   t->name, st_dtype_name(t->dtype), expected);
}

/* Words of eight fit the shape, and groups fit the kernels. */
static st_status check_sizes(const st_weight_source *s, const char *name, const st_tensor *t,
                             st_error *err)
{
    const struct st_int4_layout *l = s->layout;
    if (!l->outputs_first && (s->n % WORD || (!l->packs_outputs && s->k % WORD)))
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: tensor '%s': %s has %d outputs and %d inputs: expected multiples of 8, "
                       "which are packed into a word",
                       t->file, t->name, name, s->n, s->k);
    if ((s->scale_inputs < s->k && s->scale_inputs % 32) || s->scale_inputs > MAX_GROUP)
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: tensor '%s': groups of %d inputs: expected a multiple of 32, or all "
                       "inputs, and at most %d",
                       t->file, t->name, s->scale_inputs, MAX_GROUP);
    return ST_OK;
}

/* Where layers differ in their groups, the scales' shape tells; groups are of one size then. */
static st_status size_of_groups(const st_checkpoint *c, const char *name, st_weight_source *s,
                                st_error *err)
{
    int32_t group = st_checkpoint_config(c)->quant.group;
    const st_tensor *t = st_tensor_beside(c, name, s->layout->scale);
    if (group < 0 && t && t->rank == 2) {
        int64_t groups = t->shape[s->layout->outputs_first ? 1 : 0];
        if (groups < 1 || s->k % groups)
            return st_fail(err, ST_EFORMAT,
                           "%s: tensor '%s' has %d groups: expected a divisor of %d inputs",
                           t->file, t->name, (int)groups, s->k);
        group = (int32_t)(s->k / groups);
    }
    s->scale_inputs = group > 0 && group < s->k ? group : s->k;
    return ST_OK;
}

static st_status find_weights(const st_checkpoint *c, const char *name, st_weight_source *s,
                              st_error *err)
{
    const struct st_int4_layout *l = s->layout;
    const st_tensor *t = st_tensor_beside(c, name, l->weight);
    if (!t)
        return st_fail(err, ST_ENOTFOUND,
                       "%s: tensor '%s.%s' is missing from the safetensors files",
                       st_checkpoint_dir(c), name, l->weight);
    st_status status = check_sizes(s, name, t, err);
    int32_t n = s->n, k = (s->k + WORD - 1) / WORD;
    if (!l->outputs_first) {
        n = l->packs_outputs ? s->k : k;
        k = l->packs_outputs ? s->n / WORD : s->n;
    }
    if (!status)
        status = st_tensor_of_linear(c, name, l->weight, n, k, &s->tensor[I4_WEIGHT], err);
    if (!status && t->dtype != ST_I32)
        status = refuse_type(t, "I32", err);
    return status;
}

/* weight_shape of compressed-tensors repeats what config.json implies. */
static st_status check_shape_tensor(const st_checkpoint *c, const char *name,
                                    const st_weight_source *s, st_error *err)
{
    const st_tensor *t = st_tensor_beside(c, name, "weight_shape");
    int64_t shape[2] = {0, 0};
    if (!t || !s->layout->outputs_first)
        return ST_OK;
    if (t->dtype != ST_I64 && t->dtype != ST_I32)
        return refuse_type(t, "I64", err);
    for (size_t i = 0; i < 2 && t->bytes == 2 * st_dtype_size(t->dtype); i++) {
        if (t->dtype == ST_I64)
            memcpy(&shape[i], (const char *)t->data + i * sizeof shape[i], sizeof shape[i]);
        else
            shape[i] = (int32_t)word_at(t, i);
    }
    if (shape[0] == s->n && shape[1] == s->k)
        return ST_OK;
    return st_fail(err, ST_EFORMAT,
                   "%s: tensor '%s' holds [%lld, %lld]: config.json calls for [%d, %d]", t->file,
                   t->name, (long long)shape[0], (long long)shape[1], s->n, s->k);
}

static st_status find_zeros(const st_checkpoint *c, const char *name, st_weight_source *s,
                            st_error *err)
{
    const struct st_int4_layout *l = s->layout;
    const st_tensor *t = st_tensor_beside(c, name, l->zero);
    int32_t groups = (int32_t)groups_of(s);
    s->symmetric = st_checkpoint_config(c)->quant.symmetric;
    if (!t && s->symmetric)
        return ST_OK;
    if (l->outputs_first) {
        bool bytes = t && t->dtype == ST_I8;
        s->symmetric = false; /* stored only where they matter */
        return st_tensor_of_linear(c, name, l->zero, bytes ? s->n : (s->n + WORD - 1) / WORD,
                                   groups, &s->tensor[I4_ZERO], err);
    }
    return st_tensor_of_linear(c, name, l->zero, groups, s->n / WORD, &s->tensor[I4_ZERO], err);
}

/* g_idx: the group of each input. Dropped where it says nothing; *together: INT4 can stay. */
static st_status find_order(const st_checkpoint *c, const char *name, st_weight_source *s,
                            bool *together, st_error *err)
{
    const st_tensor *t = s->layout->order ? st_tensor_beside(c, name, s->layout->order) : NULL;
    size_t inputs = (size_t)s->scale_inputs;
    bool plain = true;
    *together = true;
    if (!t)
        return ST_OK;
    st_status status = st_tensor_of_linear(c, name, s->layout->order, s->k, -1, &t, err);
    if (status)
        return status;
    if (t->dtype != ST_I32)
        return refuse_type(t, "I32", err);
    /* compressed-tensors: what no algorithm ordered is -1 from end to end. */
    if (s->layout->outputs_first && word_at(t, 0) == UINT32_MAX)
        return ST_OK;
    for (size_t i = 0; i < (size_t)s->k; i++) {
        uint32_t group = word_at(t, i);
        if (group >= groups_of(s))
            return st_fail(err, ST_EFORMAT,
                           "%s: tensor '%s': element %zu is %d: expected a group from 0 to %zu",
                           t->file, t->name, i, (int32_t)group, groups_of(s) - 1);
        plain = plain && group == i / inputs;
        *together = *together && group == word_at(t, i / inputs * inputs);
    }
    s->tensor[I4_ORDER] = plain ? NULL : t;
    return ST_OK;
}

bool st_weight_is_i4(const st_checkpoint *c, const char *name)
{
    return st_tensor_beside(c, name, "weight_packed") || st_tensor_beside(c, name, "qweight");
}

/* What follows from the tensors found. */
static void choose_type(st_weight_source *s, bool together)
{
    st_dtype dtype = s->tensor[I4_SCALE]->dtype;
    if (together) {
        s->reader = &i4_reader;
        s->type = ST_WEIGHT_I4;
        s->group = s->scale_inputs;
        s->has_zero = s->tensor[I4_ZERO] && !s->symmetric;
        s->scale = dtype == ST_F16    ? ST_WEIGHT_F16
                   : dtype == ST_BF16 ? ST_WEIGHT_BF16
                                      : ST_WEIGHT_F32;
    } else {
        s->reader = &ordered_reader;
        s->type = dtype == ST_F16 ? ST_WEIGHT_F16 : ST_WEIGHT_F32;
    }
}

st_status st_weight_find_i4(const st_checkpoint *c, const char *name, st_weight_source *s,
                            st_error *err)
{
    bool together = true;
    s->layout = layout_of(&st_checkpoint_config(c)->quant);
    if (!s->layout)
        return st_fail(
            err, ST_EUNSUPPORTED,
            "%s: '%s' has INT4 tensors, but config.json has no quantization_config with "
            "quant_method compressed-tensors (pack-quantized), gptq or awq (older folders "
            "have it in quantize_config.json or quant_config.json: add it to config.json)",
            st_checkpoint_dir(c), name);
    st_status status = size_of_groups(c, name, s, err);
    if (status || (status = find_weights(c, name, s, err)) ||
        (status = check_shape_tensor(c, name, s, err)))
        return status;
    int32_t groups = (int32_t)groups_of(s);
    bool rows = s->layout->outputs_first;
    status = st_tensor_of_linear(c, name, s->layout->scale, rows ? s->n : groups,
                                 rows ? groups : s->n, &s->tensor[I4_SCALE], err);
    if (status || (status = st_tensor_want_float(s->tensor[I4_SCALE], err)) ||
        (status = find_zeros(c, name, s, err)) || (status = find_order(c, name, s, &together, err)))
        return status;
    const st_tensor *zero = s->tensor[I4_ZERO];
    if (zero && zero->dtype != ST_I32 && !(rows && zero->dtype == ST_I8))
        return refuse_type(zero, "I32", err);
    choose_type(s, together);
    return ST_OK;
}
