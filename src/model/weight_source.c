/* Weight sources: see weight_source.h. Here are the plain dialects (floats, INT8 with a scale for
 * each output), slices of sources, and the check that all numbers are finite. */
#include "model/weight_dialects.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/float_bits.h"

/* --- tensors ----------------------------------------------------------------------------- */

bool st_tensor_is_float(const st_tensor *t)
{
    return t->dtype == ST_F32 || t->dtype == ST_F16 || t->dtype == ST_BF16;
}

float st_tensor_float(const st_tensor *t, size_t i)
{
    const unsigned char *p = (const unsigned char *)t->data + i * st_dtype_size(t->dtype);
    uint16_t h;
    float v;
    if (t->dtype == ST_F32) {
        memcpy(&v, p, sizeof v);
        return v;
    }
    memcpy(&h, p, sizeof h);
    return t->dtype == ST_F16 ? st_f16_to_f32(h) : st_bf16_to_f32(h);
}

static const char *shape_text(const st_tensor *t, char *buf, size_t cap)
{
    size_t at = (size_t)snprintf(buf, cap, "[");
    for (int32_t i = 0; i < t->rank && at < cap; i++)
        at += (size_t)snprintf(buf + at, cap - at, i ? ", %" PRId64 : "%" PRId64, t->shape[i]);
    if (at < cap)
        snprintf(buf + at, cap - at, "]");
    return buf;
}

st_status st_tensor_find(const st_checkpoint *c, const char *name, int32_t n, int32_t k,
                         const st_tensor **out, st_error *err)
{
    const st_tensor *t = st_checkpoint_find(c, name);
    if (!t)
        return st_fail(err, ST_ENOTFOUND, "%s: tensor '%s' is missing from the safetensors files",
                       st_checkpoint_dir(c), name);
    int32_t rank = k < 0 ? 1 : 2;
    if (t->rank == rank && t->shape[0] == n && (k < 0 || t->shape[1] == k)) {
        *out = t;
        return ST_OK;
    }
    char found[128], expected[64];
    if (k < 0)
        snprintf(expected, sizeof expected, "[%d]", n);
    else
        snprintf(expected, sizeof expected, "[%d, %d]", n, k);
    return st_fail(err, ST_EFORMAT, "%s: tensor '%s' has shape %s: config.json calls for %s",
                   t->file, name, shape_text(t, found, sizeof found), expected);
}

const st_tensor *st_tensor_beside(const st_checkpoint *c, const char *name, const char *suffix)
{
    char full[320];
    snprintf(full, sizeof full, "%s.%s", name, suffix);
    return st_checkpoint_find(c, full);
}

st_status st_tensor_of_linear(const st_checkpoint *c, const char *name, const char *suffix,
                              int32_t n, int32_t k, const st_tensor **out, st_error *err)
{
    char full[320];
    snprintf(full, sizeof full, "%s.%s", name, suffix);
    return st_tensor_find(c, full, n, k, out, err);
}

st_status st_tensor_want_float(const st_tensor *t, st_error *err)
{
    if (st_tensor_is_float(t))
        return ST_OK;
    return st_fail(err, ST_EUNSUPPORTED, "%s: tensor '%s' is of type %s: expected F32, F16 or BF16",
                   t->file, t->name, st_dtype_name(t->dtype));
}

st_status st_tensor_scale(const st_tensor *t, size_t i, float *out, st_error *err)
{
    *out = st_tensor_float(t, i);
    if (isfinite(*out))
        return ST_OK;
    return st_fail(err, ST_EFORMAT, "%s: tensor '%s': element %zu is %g, not a finite number",
                   t->file, t->name, i, (double)*out);
}

/* --- canonical rows ---------------------------------------------------------------------- */

static size_t aligned(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

static bool is_float(st_weight_type t)
{
    return t == ST_WEIGHT_F32 || t == ST_WEIGHT_F16 || t == ST_WEIGHT_BF16;
}

static size_t element_size(st_weight_type t)
{
    return t == ST_WEIGHT_F32 ? 4 : t == ST_WEIGHT_F16 || t == ST_WEIGHT_BF16 ? 2 : 1;
}

/* Scales in a row. */
static size_t groups_of(st_weight_type type, int32_t k, int32_t group)
{
    return is_float(type) ? 0 : (size_t)st_weight_groups(k, group);
}

static bool finite_32(const void *data, size_t n)
{
    uint32_t bad = 0, v;
    for (size_t i = 0; i < n; i++) {
        memcpy(&v, (const char *)data + i * sizeof v, sizeof v);
        bad |= (uint32_t)((v & 0x7F800000u) == 0x7F800000u);
    }
    return bad == 0;
}

static bool finite_16(const void *data, size_t n, uint16_t exponent)
{
    uint16_t bad = 0, v;
    for (size_t i = 0; i < n; i++) {
        memcpy(&v, (const char *)data + i * sizeof v, sizeof v);
        bad |= (uint16_t)((v & exponent) == exponent);
    }
    return bad == 0;
}

/* E4M3 as published ("fn") has no infinities; all exponent and mantissa bits set is NaN. */
static bool finite_f8(const void *data, size_t n)
{
    const uint8_t *p = data;
    uint8_t bad = 0;
    for (size_t i = 0; i < n; i++)
        bad |= (uint8_t)((p[i] & 0x7F) == 0x7F);
    return bad == 0;
}

static bool rows_finite(const st_weight_rows *r)
{
    size_t n = (size_t)r->n * (size_t)r->k;
    switch (r->type) {
    case ST_WEIGHT_F32:
        return finite_32(r->data, n);
    case ST_WEIGHT_F16:
        return finite_16(r->data, n, 0x7C00);
    case ST_WEIGHT_BF16:
        return finite_16(r->data, n, 0x7F80);
    case ST_WEIGHT_F8:
        if (!finite_f8(r->data, n))
            return false;
        break;
    default:
        break;
    }
    return finite_32(r->scale, (size_t)r->n * groups_of(r->type, r->k, r->group));
}

/* Where element i of row r has its scale. */
static size_t scale_at(const st_weight_rows *w, int32_t r, int32_t i)
{
    size_t groups = groups_of(w->type, w->k, w->group);
    return (size_t)r * groups + (groups > 1 ? (size_t)(i / w->group) : 0);
}

/* Element i of row r of F8 or F32 as a float. */
static float float_of(const st_weight_rows *w, int32_t r, int32_t i)
{
    size_t at = (size_t)r * (size_t)w->k + (size_t)i;
    float v;
    if (w->type == ST_WEIGHT_F8)
        return st_f8_to_f32(((const uint8_t *)w->data)[at]) * w->scale[scale_at(w, r, i)];
    memcpy(&v, (const char *)w->data + at * sizeof v, sizeof v);
    return v;
}

/* Element i of row r of I8 or I4, without its scale. */
static int8_t integer_of(const st_weight_rows *w, int32_t r, int32_t i)
{
    size_t at = (size_t)r * (size_t)w->k + (size_t)i;
    if (w->type == ST_WEIGHT_I8)
        return ((const int8_t *)w->data)[at];
    return (int8_t)(((const uint8_t *)w->data)[at] - (w->zero ? w->zero[scale_at(w, r, i)] : 8));
}

size_t st_weight_source_scratch(const st_weight_source *s, int32_t n_rows)
{
    return s->reader->scratch ? s->reader->scratch(s, n_rows) : 0;
}

st_status st_weight_source_read(const st_weight_source *s, int32_t r0, int32_t r1, void *scratch,
                                st_weight_rows *out, st_error *err)
{
    st_status status = s->reader->read(s, r0, r1, scratch, out, err);
    if (!status && !rows_finite(out))
        status = st_fail(err, ST_EFORMAT, "%s: tensor '%s' holds NaN or infinite weights",
                         s->tensor[0]->file, s->tensor[0]->name);
    return status;
}

/* --- floats and INT8 as published -------------------------------------------------------- */

static st_status float_read(const st_weight_source *s, int32_t r0, int32_t r1, void *scratch,
                            st_weight_rows *out, st_error *err)
{
    size_t row = (size_t)s->k * element_size(s->type);
    *out = (st_weight_rows){.type = s->type,
                            .n = r1 - r0,
                            .k = s->k,
                            .data = (const char *)s->tensor[0]->data + (size_t)r0 * row};
    return ST_OK;
}

static const st_weight_reader float_reader = {NULL, float_read, NULL};

enum { I8_WEIGHT, I8_SCALE, I8_OFFSET, I8_ZERO_POINT };

static size_t i8_scratch(const st_weight_source *s, int32_t n_rows)
{
    return (size_t)n_rows * sizeof(float);
}

/* Only symmetric INT8 runs here: zero points (weight_offset in the dialect of W8A8_DYNAMIC) may be
 * written, but must all be zero. */
static st_status refuse_zero_points(const st_tensor *t, int32_t r0, int32_t r1, st_error *err)
{
    size_t size = t ? st_dtype_size(t->dtype) : 1, all = t ? t->bytes / size : 0;
    for (size_t i = (size_t)r0; i < (size_t)r1 && i < all; i++) {
        const unsigned char *p = (const unsigned char *)t->data + i * size;
        bool sign = st_tensor_is_float(t) || t->dtype == ST_F64; /* -0.0 is zero too */
        unsigned bits = p[size - 1] & (sign ? 0x7F : 0xFF);
        for (size_t b = 0; b + 1 < size; b++)
            bits |= p[b];
        if (bits)
            return st_fail(err, ST_EUNSUPPORTED,
                           "%s: tensor '%s': element %zu is not zero: expected symmetric INT8, "
                           "whose zero points are all zero",
                           t->file, t->name, i);
    }
    return ST_OK;
}

static st_status i8_scales(const st_weight_source *s, int32_t r0, int32_t r1, float *out,
                           st_error *err)
{
    st_status status = ST_OK;
    for (int32_t r = r0; !status && r < r1; r++)
        status = st_tensor_scale(s->tensor[I8_SCALE], (size_t)r, &out[r - r0], err);
    return status;
}

static st_status i8_read(const st_weight_source *s, int32_t r0, int32_t r1, void *scratch,
                         st_weight_rows *out, st_error *err)
{
    st_status status = i8_scales(s, r0, r1, scratch, err);
    if (!status)
        status = refuse_zero_points(s->tensor[I8_OFFSET], r0, r1, err);
    if (!status)
        status = refuse_zero_points(s->tensor[I8_ZERO_POINT], r0, r1, err);
    *out = (st_weight_rows){.type = s->type,
                            .n = r1 - r0,
                            .k = s->k,
                            .data = (const char *)s->tensor[I8_WEIGHT]->data +
                                    (size_t)r0 * (size_t)s->k,
                            .scale = scratch};
    return status;
}

static const st_weight_reader i8_reader = {i8_scratch, i8_read, i8_scales};

/* The scales of an I8 tensor, [n, 1] or [n]. */
static st_status find_i8(const st_checkpoint *c, const char *name, st_weight_source *s,
                         st_error *err)
{
    char full[320];
    const st_tensor *weight = s->tensor[I8_WEIGHT], *t = st_tensor_beside(c, name, "weight_scale");
    snprintf(full, sizeof full, "%s.weight_scale", name);
    if (!t)
        return st_fail(err, ST_EFORMAT,
                       "%s: tensor '%s' is I8, but there is no '%s' with a scale for each of its "
                       "%d rows",
                       weight->file, weight->name, full, s->n);
    st_status status = st_tensor_find(c, full, s->n, t->rank == 1 ? -1 : 1, &t, err);
    if (status || (status = st_tensor_want_float(t, err)))
        return status;
    s->reader = &i8_reader;
    s->type = ST_WEIGHT_I8;
    s->tensor[I8_SCALE] = t;
    s->tensor[I8_OFFSET] = st_tensor_beside(c, name, "weight_offset");
    s->tensor[I8_ZERO_POINT] = st_tensor_beside(c, name, "weight_zero_point");
    return ST_OK;
}

static st_weight_type type_of_floats(st_dtype t)
{
    return t == ST_F32 ? ST_WEIGHT_F32 : t == ST_F16 ? ST_WEIGHT_F16 : ST_WEIGHT_BF16;
}

static st_weight_source float_source(const st_tensor *t, int32_t n, int32_t k)
{
    return (st_weight_source){
        .reader = &float_reader, .type = type_of_floats(t->dtype), .n = n, .k = k, .tensor = {t}};
}

st_status st_weight_source_find(const st_checkpoint *c, const char *name, int32_t n, int32_t k,
                                st_weight_source *out, st_error *err)
{
    const st_tensor *t = st_tensor_beside(c, name, "weight");
    if (!t && st_weight_is_i4(c, name)) {
        *out = (st_weight_source){.n = n, .k = k};
        return st_weight_find_i4(c, name, out, err);
    }
    st_status status = st_tensor_of_linear(c, name, "weight", n, k, &t, err);
    if (status)
        return status;
    *out = float_source(t, n, k);
    if (st_tensor_is_float(t))
        return ST_OK;
    if (t->dtype == ST_I8)
        return find_i8(c, name, out, err);
    if (t->dtype == ST_F8_E4M3)
        return st_weight_find_f8(c, name, out, err);
    return st_fail(err, ST_EUNSUPPORTED,
                   "%s: tensor '%s' is of type %s: expected F32, F16, BF16, I8 with per-channel "
                   "scales, or F8_E4M3 with scales of blocks",
                   t->file, t->name, st_dtype_name(t->dtype));
}

st_status st_weight_source_float(const st_checkpoint *c, const char *name, int32_t n, int32_t k,
                                 st_weight_source *out, st_error *err)
{
    const st_tensor *t;
    int stem = (int)strlen(name) - (int)strlen(".weight");
    char base[320];
    snprintf(base, sizeof base, "%.*s", stem > 0 ? stem : 0, name);
    if (!st_checkpoint_find(c, name) && st_weight_is_i4(c, base))
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: '%s' is published in INT4: embeddings, tied heads and routers are read "
                       "in F32, F16 or BF16 only",
                       st_checkpoint_dir(c), base);
    st_status status = st_tensor_find(c, name, n, k, &t, err);
    if (status || (status = st_tensor_want_float(t, err)))
        return status;
    *out = float_source(t, n, k);
    return ST_OK;
}

st_status st_weight_source_scales(const st_weight_source *s, int32_t r0, int32_t r1, float *out,
                                  st_error *err)
{
    return s->reader->scales(s, r0, r1, out, err);
}

void st_weight_rows_from(const st_weight_rows *all, int32_t first, int32_t n, st_weight_rows *out)
{
    size_t groups = groups_of(all->type, all->k, all->group);
    *out = *all;
    out->n = n;
    out->data = (const char *)all->data + (size_t)first * (size_t)all->k * element_size(all->type);
    if (all->scale)
        out->scale = all->scale + (size_t)first * groups;
    if (all->zero)
        out->zero = all->zero + (size_t)first * groups;
}

/* --- slices ------------------------------------------------------------------------------ */

/* Rows of base that are read at once to transpose them. */
enum { TRANSPOSE_ROWS = 16 };

/* Result first, then what base needs. */
static size_t result_bytes(const st_weight_source *s, int32_t n_rows)
{
    return aligned((size_t)n_rows * (size_t)s->k * element_size(s->type));
}

static size_t slice_scratch(const st_weight_source *s, int32_t n_rows)
{
    size_t own = s->base->type == s->type ? 0 : result_bytes(s, n_rows);
    return own + st_weight_source_scratch(s->base, n_rows);
}

static st_status slice_read(const st_weight_source *s, int32_t r0, int32_t r1, void *scratch,
                            st_weight_rows *out, st_error *err)
{
    bool same = s->base->type == s->type;
    char *own = scratch;
    st_weight_rows rows;
    st_status status =
        s->base->reader->read(s->base, s->first + r0, s->first + r1,
                              same ? own : own + result_bytes(s, r1 - r0), &rows, err);
    if (status || same) {
        *out = rows;
        return status;
    }
    float *y = scratch;
    for (int32_t r = 0; r < rows.n; r++)
        for (int32_t i = 0; i < rows.k; i++)
            *y++ = float_of(&rows, r, i);
    *out = (st_weight_rows){.type = ST_WEIGHT_F32, .n = r1 - r0, .k = s->k, .data = scratch};
    return ST_OK;
}

static st_status slice_scales(const st_weight_source *s, int32_t r0, int32_t r1, float *out,
                              st_error *err)
{
    return st_weight_source_scales(s->base, s->first + r0, s->first + r1, out, err);
}

static const st_weight_reader slice_reader = {slice_scratch, slice_read, slice_scales};

/* Scales of the result: for integers, all are 1. */
static size_t ones_bytes(const st_weight_source *s, int32_t n_rows)
{
    return st_weight_takes_int8(s->type) ? aligned((size_t)n_rows * sizeof(float)) : 0;
}

static size_t transposed_scratch(const st_weight_source *s, int32_t n_rows)
{
    return result_bytes(s, n_rows) + ones_bytes(s, n_rows) +
           st_weight_source_scratch(s->base, TRANSPOSE_ROWS);
}

/* Columns [r0, r1) of rows, which become elements [at, at + rows->n) of as many results. */
static void put_transposed(const st_weight_source *s, const st_weight_rows *rows, int32_t r0,
                           int32_t r1, int32_t at, void *result)
{
    size_t k = (size_t)s->k, from = (size_t)rows->k;
    for (int32_t c = r0; c < r1; c++) {
        size_t to = (size_t)(c - r0) * k + (size_t)at;
        for (int32_t r = 0; r < rows->n; r++) {
            size_t i = (size_t)r * from + (size_t)c;
            if (s->type == ST_WEIGHT_I8)
                ((int8_t *)result)[to + (size_t)r] = integer_of(rows, r, c);
            else if (s->type == ST_WEIGHT_I4)
                ((uint8_t *)result)[to + (size_t)r] = ((const uint8_t *)rows->data)[i];
            else if (element_size(s->type) == 2)
                memcpy((uint16_t *)result + to + r, (const char *)rows->data + 2 * i, 2);
            else
                ((float *)result)[to + (size_t)r] = float_of(rows, r, c);
        }
    }
}

static st_status transposed_read(const st_weight_source *s, int32_t r0, int32_t r1, void *scratch,
                                 st_weight_rows *out, st_error *err)
{
    float *ones = (float *)(void *)((char *)scratch + result_bytes(s, r1 - r0));
    char *below = (char *)ones + ones_bytes(s, r1 - r0);
    for (int32_t at = 0; at < s->k; at += TRANSPOSE_ROWS) {
        int32_t end = s->k - at < TRANSPOSE_ROWS ? s->k : at + TRANSPOSE_ROWS;
        st_weight_rows rows;
        st_status status =
            s->base->reader->read(s->base, s->first + at, s->first + end, below, &rows, err);
        if (status)
            return status;
        put_transposed(s, &rows, r0, r1, at, scratch);
    }
    bool integers = st_weight_takes_int8(s->type);
    for (int32_t i = 0; integers && i < r1 - r0; i++)
        ones[i] = 1;
    *out = (st_weight_rows){.type = s->type,
                            .n = r1 - r0,
                            .k = s->k,
                            .group = s->group,
                            .data = scratch,
                            .scale = integers ? ones : NULL};
    return ST_OK;
}

static const st_weight_reader transposed_reader = {transposed_scratch, transposed_read, NULL};

/* What a slice of such a source is of. Zero points of their own would lie along the inputs of a
 * transposed one. */
static st_weight_type slice_type(const st_weight_source *base, bool transposed)
{
    if (base->type == ST_WEIGHT_F8)
        return ST_WEIGHT_F32;
    return transposed && base->has_zero ? ST_WEIGHT_I8 : base->type;
}

/* I4 is one group where it is transposed: of scales that are 1. */
static int32_t slice_group(const st_weight_source *base, int32_t n, bool transposed)
{
    if (base->type != ST_WEIGHT_I4 || (transposed && base->has_zero))
        return 0;
    return transposed ? n : base->group;
}

void st_weight_source_slice(const st_weight_source *base, int32_t first, int32_t n, bool transposed,
                            st_weight_source *out)
{
    *out = (st_weight_source){.reader = transposed ? &transposed_reader : &slice_reader,
                              .type = slice_type(base, transposed),
                              .n = transposed ? base->k : n,
                              .k = transposed ? n : base->k,
                              .group = slice_group(base, n, transposed),
                              .has_zero = !transposed && base->has_zero,
                              .scale = base->scale,
                              .base = base,
                              .first = first};
    memcpy(out->tensor, base->tensor, sizeof out->tensor);
}
