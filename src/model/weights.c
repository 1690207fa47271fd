/* Tensors to matrices: see weights.h. Taking a tensor only looks at metadata; whatever reads the
 * data is noted as a preparation item and done in parallel by st_weights_prepare. */
#include "model/weights.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/float_bits.h"

typedef enum prep_kind {
    PREP_SCAN,      /* refuse NaN and infinity */
    PREP_ROW_SUM,   /* I8: int32 sum of every row */
    PREP_TRANSPOSE, /* dst[j][i] = src[i][j] */
    PREP_DEQUANTIZE /* dst (F32) = src (I8) * scale of the row */
} prep_kind;

typedef struct prep {
    prep_kind kind;
    st_matrix src;
    void *dst;
    const st_tensor *tensor;
} prep;

struct st_weights {
    const st_checkpoint *ckpt;
    st_arena *arena;
    prep *items;
    size_t n_items, cap;
};

st_status st_weights_new(const st_checkpoint *ckpt, st_arena *arena, st_weights **out,
                         st_error *err)
{
    st_weights *w = calloc(1, sizeof *w);
    if (!w)
        return st_fail(err, ST_ENOMEM, "no memory to load %s", st_checkpoint_dir(ckpt));
    w->ckpt = ckpt;
    w->arena = arena;
    *out = w;
    return ST_OK;
}

void st_weights_free(st_weights *w)
{
    if (!w)
        return;
    free(w->items);
    free(w);
}

bool st_weights_has(const st_weights *w, const char *name)
{
    return st_checkpoint_find(w->ckpt, name) != NULL;
}

static st_status no_memory(const st_weights *w, size_t bytes, st_error *err)
{
    return st_fail(err, ST_ENOMEM, "%s: no memory for %zu bytes of prepared weights",
                   st_checkpoint_dir(w->ckpt), bytes);
}

static st_status allocate(st_weights *w, size_t n, size_t size, void **out, st_error *err)
{
    size_t bytes;
    if (!st_mul_size(n, size, &bytes) || !(*out = st_arena_alloc(w->arena, bytes)))
        return no_memory(w, st_mul_size(n, size, &bytes) ? bytes : SIZE_MAX, err);
    return ST_OK;
}

static st_status add_prep(st_weights *w, prep_kind kind, const st_matrix *src, void *dst,
                          const st_tensor *t, st_error *err)
{
    if (w->n_items == w->cap) {
        size_t cap = w->cap ? 2 * w->cap : 256;
        prep *items = realloc(w->items, cap * sizeof *items);
        if (!items)
            return no_memory(w, cap * sizeof *items, err);
        w->items = items;
        w->cap = cap;
    }
    w->items[w->n_items++] = (prep){.kind = kind, .src = *src, .dst = dst, .tensor = t};
    return ST_OK;
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

/* The tensor called name with shape [n] (k < 0) or [n, k]. */
static st_status find(const st_weights *w, const char *name, int32_t n, int32_t k,
                      const st_tensor **out, st_error *err)
{
    const st_tensor *t = st_checkpoint_find(w->ckpt, name);
    if (!t)
        return st_fail(err, ST_ENOTFOUND, "%s: tensor '%s' is missing from the safetensors files",
                       st_checkpoint_dir(w->ckpt), name);
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

static bool is_float(st_dtype t)
{
    return t == ST_F32 || t == ST_F16 || t == ST_BF16;
}

/* Element i of a float tensor at any alignment. */
static float float_at(const st_tensor *t, size_t i)
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

/* The n elements of t (any float type), copied as floats; all must be finite. */
static st_status to_floats(st_weights *w, const st_tensor *t, int32_t n, const float **out,
                           st_error *err)
{
    void *mem = NULL;
    if (!is_float(t->dtype))
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: tensor '%s' is of type %s: expected F32, F16 or BF16", t->file, t->name,
                       st_dtype_name(t->dtype));
    if (allocate(w, (size_t)n, sizeof(float), &mem, err))
        return ST_ENOMEM;
    float *v = mem;
    for (int32_t i = 0; i < n; i++) {
        v[i] = float_at(t, (size_t)i);
        if (!isfinite(v[i]))
            return st_fail(err, ST_EFORMAT,
                           "%s: tensor '%s': element %d is %g, not a finite number", t->file,
                           t->name, i, (double)v[i]);
    }
    *out = v;
    return ST_OK;
}

st_status st_weights_vector(st_weights *w, const char *name, int32_t n, const float **out,
                            st_error *err)
{
    const st_tensor *t;
    st_status status = find(w, name, n, -1, &t, err);
    return status ? status : to_floats(w, t, n, out, err);
}

/* The matrix over t's bytes: in place when they are aligned for their type, else copied. */
static st_status view(st_weights *w, const st_tensor *t, int32_t n, int32_t k, st_matrix *out,
                      st_error *err)
{
    const void *data = t->data;
    if ((uintptr_t)data % st_dtype_size(t->dtype)) {
        void *copy = NULL;
        if (allocate(w, t->bytes, 1, &copy, err))
            return ST_ENOMEM;
        data = memcpy(copy, data, t->bytes);
    }
    *out = (st_matrix){.dtype = t->dtype, .n = n, .k = k, .data = data};
    return ST_OK;
}

st_status st_weights_float_matrix(st_weights *w, const char *name, int32_t n, int32_t k,
                                  st_matrix *out, st_error *err)
{
    const st_tensor *t;
    st_status status = find(w, name, n, k, &t, err);
    if (status)
        return status;
    if (!is_float(t->dtype))
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: tensor '%s' is of type %s: expected F32, F16 or BF16", t->file, name,
                       st_dtype_name(t->dtype));
    if ((status = view(w, t, n, k, out, err)))
        return status;
    return add_prep(w, PREP_SCAN, out, NULL, t, err);
}

/* Only symmetric INT8 runs here: zero points (weight_offset in the dialect of W8A8_DYNAMIC) may be
 * written, but must all be zero. */
static st_status refuse_zero_points(const st_weights *w, const char *name, const char *suffix,
                                    st_error *err)
{
    char full[320];
    snprintf(full, sizeof full, "%s.%s", name, suffix);
    const st_tensor *t = st_checkpoint_find(w->ckpt, full);
    size_t n = t ? t->bytes / st_dtype_size(t->dtype) : 0;
    for (size_t i = 0; i < n; i++) {
        size_t size = st_dtype_size(t->dtype);
        const unsigned char *p = (const unsigned char *)t->data + i * size;
        unsigned bits = p[size - 1] & (is_float(t->dtype) ? 0x7F : 0xFF); /* -0.0 is zero too */
        for (size_t b = 0; b + 1 < size; b++)
            bits |= p[b];
        if (bits)
            return st_fail(err, ST_EUNSUPPORTED,
                           "%s: tensor '%s': element %zu is not zero: expected symmetric INT8, "
                           "whose zero points are all zero",
                           t->file, full, i);
    }
    return ST_OK;
}

/* Finds name.weight_scale, [n, 1] or [n]. */
static st_status int8_scale(st_weights *w, const st_tensor *weight, const char *name, int32_t n,
                            const float **out, st_error *err)
{
    char full[320];
    snprintf(full, sizeof full, "%s.weight_scale", name);
    const st_tensor *t = st_checkpoint_find(w->ckpt, full);
    if (!t)
        return st_fail(err, ST_EFORMAT,
                       "%s: tensor '%s' is I8, but there is no '%s' with a scale for each of its "
                       "%d rows",
                       weight->file, weight->name, full, n);
    st_status status = find(w, full, n, t->rank == 1 ? -1 : 1, &t, err);
    if (!status)
        status = refuse_zero_points(w, name, "weight_offset", err);
    if (!status)
        status = refuse_zero_points(w, name, "weight_zero_point", err);
    return status ? status : to_floats(w, t, n, out, err);
}

/* name.weight [n, k] as a matrix, nothing prepared yet. */
static st_status weight_matrix(st_weights *w, const char *name, int32_t n, int32_t k,
                               st_matrix *out, const st_tensor **tensor, st_error *err)
{
    char full[320];
    snprintf(full, sizeof full, "%s.weight", name);
    st_status status = find(w, full, n, k, tensor, err);
    if (status)
        return status;
    const st_tensor *t = *tensor;
    if (!is_float(t->dtype) && t->dtype != ST_I8)
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: tensor '%s' is of type %s: expected F32, F16, BF16, or I8 with "
                       "per-channel scales",
                       t->file, full, st_dtype_name(t->dtype));
    if ((status = view(w, t, n, k, out, err)))
        return status;
    return t->dtype == ST_I8 ? int8_scale(w, t, name, n, &out->scale, err) : ST_OK;
}

st_status st_weights_linear(st_weights *w, const char *name, int32_t n, int32_t k, bool bias,
                            st_linear *out, st_error *err)
{
    const st_tensor *t;
    memset(out, 0, sizeof *out);
    st_status status = weight_matrix(w, name, n, k, &out->w, &t, err);
    if (status)
        return status;
    if (bias) {
        char full[320];
        snprintf(full, sizeof full, "%s.bias", name);
        if ((status = st_weights_vector(w, full, n, &out->bias, err)))
            return status;
    }
    if (out->w.dtype != ST_I8)
        return add_prep(w, PREP_SCAN, &out->w, NULL, t, err);
    void *sums;
    if (allocate(w, (size_t)n, sizeof(int32_t), &sums, err))
        return ST_ENOMEM;
    out->w.row_sum = sums;
    return add_prep(w, PREP_ROW_SUM, &out->w, sums, t, err);
}

st_status st_weights_kv_b(st_weights *w, const char *name, int32_t n_heads, int32_t nope, int32_t v,
                          int32_t kv_lora, st_matrix *uk, st_matrix *uv, st_error *err)
{
    const st_tensor *t;
    st_matrix all;
    void *mem = NULL;
    int32_t rows = nope + v;
    st_status status = weight_matrix(w, name, n_heads * rows, kv_lora, &all, &t, err);
    if (status)
        return status;
    if (all.dtype == ST_I8) {
        /* The absorbed products take float rows that no one quantizes: dequantize once. */
        if (allocate(w, (size_t)all.n * (size_t)all.k, sizeof(float), &mem, err))
            return ST_ENOMEM;
        if ((status = add_prep(w, PREP_DEQUANTIZE, &all, mem, t, err)))
            return status;
        all = (st_matrix){.dtype = ST_F32, .n = all.n, .k = all.k, .data = mem};
    } else if ((status = add_prep(w, PREP_SCAN, &all, NULL, t, err))) {
        return status;
    }
    size_t size = st_dtype_size(all.dtype), head = (size_t)nope * (size_t)kv_lora * size;
    if (allocate(w, (size_t)n_heads, head, &mem, err))
        return ST_ENOMEM;
    for (int32_t h = 0; h < n_heads; h++) {
        const char *first = (const char *)all.data + (size_t)h * (size_t)rows * kv_lora * size;
        st_matrix key = {.dtype = all.dtype, .n = nope, .k = kv_lora, .data = first};
        void *dst = (char *)mem + (size_t)h * head;
        uk[h] = (st_matrix){.dtype = all.dtype, .n = kv_lora, .k = nope, .data = dst};
        uv[h] = (st_matrix){.dtype = all.dtype, .n = v, .k = kv_lora, .data = first + head};
        if ((status = add_prep(w, PREP_TRANSPOSE, &key, dst, t, err)))
            return status;
    }
    return ST_OK;
}

/* --- the parallel part --- */

static bool scan_f32(const void *data, size_t n)
{
    const uint32_t *p = data;
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++)
        bad |= (uint32_t)((p[i] & 0x7F800000u) == 0x7F800000u);
    return bad == 0;
}

static bool scan_16(const void *data, size_t n, uint16_t exponent)
{
    const uint16_t *p = data;
    uint16_t bad = 0;
    for (size_t i = 0; i < n; i++)
        bad |= (uint16_t)((p[i] & exponent) == exponent);
    return bad == 0;
}

static bool scan_rows(const st_matrix *m, int32_t r0, int32_t r1)
{
    size_t n = (size_t)(r1 - r0) * (size_t)m->k;
    const char *p = (const char *)m->data + (size_t)r0 * (size_t)m->k * st_dtype_size(m->dtype);
    return m->dtype == ST_F32 ? scan_f32(p, n)
                              : scan_16(p, n, m->dtype == ST_F16 ? 0x7C00 : 0x7F80);
}

static void sum_rows(const st_matrix *m, int32_t *sums, int32_t r0, int32_t r1)
{
    for (int32_t r = r0; r < r1; r++) {
        const int8_t *p = (const int8_t *)m->data + (size_t)r * (size_t)m->k;
        int32_t sum = 0;
        for (int32_t i = 0; i < m->k; i++)
            sum += p[i];
        sums[r] = sum;
    }
}

static void transpose_rows(const st_matrix *m, void *dst, int32_t r0, int32_t r1)
{
    size_t n = (size_t)m->n, k = (size_t)m->k;
    for (size_t r = (size_t)r0; r < (size_t)r1; r++) {
        if (m->dtype == ST_F32) {
            const uint32_t *src = (const uint32_t *)m->data + r * k;
            for (size_t i = 0; i < k; i++)
                ((uint32_t *)dst)[i * n + r] = src[i];
        } else {
            const uint16_t *src = (const uint16_t *)m->data + r * k;
            for (size_t i = 0; i < k; i++)
                ((uint16_t *)dst)[i * n + r] = src[i];
        }
    }
}

static void dequantize_rows(const st_matrix *m, float *dst, int32_t r0, int32_t r1)
{
    for (int32_t r = r0; r < r1; r++) {
        const int8_t *src = (const int8_t *)m->data + (size_t)r * (size_t)m->k;
        float *y = dst + (size_t)r * (size_t)m->k;
        for (int32_t i = 0; i < m->k; i++)
            y[i] = (float)src[i] * m->scale[r];
    }
}

/* Rows [r0, r1) of an item: small enough to spread and to report progress after a few. */
typedef struct piece {
    uint32_t item;
    int32_t r0, r1;
} piece;

typedef struct prep_run {
    const st_weights *w;
    const piece *pieces;
    _Atomic uint32_t first_bad; /* the lowest item with a value that is not finite */
} prep_run;

static void prep_task(void *arg, size_t task, int worker)
{
    prep_run *run = arg;
    const piece *p = &run->pieces[task];
    const prep *item = &run->w->items[p->item];
    switch (item->kind) {
    case PREP_SCAN:
        if (!scan_rows(&item->src, p->r0, p->r1)) {
            uint32_t seen = atomic_load(&run->first_bad);
            while (p->item < seen && !atomic_compare_exchange_weak(&run->first_bad, &seen, p->item))
                ;
        }
        break;
    case PREP_ROW_SUM:
        sum_rows(&item->src, item->dst, p->r0, p->r1);
        break;
    case PREP_TRANSPOSE:
        transpose_rows(&item->src, item->dst, p->r0, p->r1);
        break;
    case PREP_DEQUANTIZE:
        dequantize_rows(&item->src, item->dst, p->r0, p->r1);
        break;
    }
}

static size_t row_bytes(const prep *item)
{
    return (size_t)item->src.k * st_dtype_size(item->src.dtype);
}

static int32_t rows_per_piece(const prep *item)
{
    size_t rows = ((size_t)1 << 18) / row_bytes(item);
    return rows < 1 ? 1 : rows > (size_t)item->src.n ? item->src.n : (int32_t)rows;
}

static st_status cut_pieces(const st_weights *w, piece **out, size_t *n_out, size_t *bytes,
                            st_error *err)
{
    size_t n = 0;
    *bytes = 0;
    for (size_t i = 0; i < w->n_items; i++) {
        int32_t rows = rows_per_piece(&w->items[i]);
        n += ((size_t)w->items[i].src.n + (size_t)rows - 1) / (size_t)rows;
        *bytes += (size_t)w->items[i].src.n * row_bytes(&w->items[i]);
    }
    piece *pieces = malloc((n + 1) * sizeof *pieces);
    if (!pieces)
        return no_memory(w, n * sizeof *pieces, err);
    size_t at = 0;
    for (size_t i = 0; i < w->n_items; i++) {
        int32_t rows = rows_per_piece(&w->items[i]), total = w->items[i].src.n;
        for (int32_t r = 0; r < total; r += rows)
            pieces[at++] = (piece){(uint32_t)i, r, total - r < rows ? total : r + rows};
    }
    *out = pieces;
    *n_out = n;
    return ST_OK;
}

/* Transposes read what dequantization wrote: the sources come first. */
static int by_kind(const void *a, const void *b)
{
    const prep *x = a, *y = b;
    int late_x = x->kind == PREP_TRANSPOSE, late_y = y->kind == PREP_TRANSPOSE;
    if (late_x != late_y)
        return late_x - late_y;
    uintptr_t px = (uintptr_t)x->src.data, py = (uintptr_t)y->src.data; /* file order */
    return (px > py) - (px < py);
}

st_status st_weights_prepare(st_weights *w, st_pool *pool, st_progress_fn *progress, void *user,
                             st_error *err)
{
    piece *pieces = NULL;
    size_t n = 0, total = 0, done = 0;
    if (w->n_items == 0)
        return ST_OK;
    qsort(w->items, w->n_items, sizeof *w->items, by_kind);
    st_status status = cut_pieces(w, &pieces, &n, &total, err);
    if (status)
        return status;
    prep_run run = {.w = w, .first_bad = UINT32_MAX};
    size_t group = 256;
    for (size_t at = 0; at < n;) {
        size_t end = at;
        bool late = w->items[pieces[at].item].kind == PREP_TRANSPOSE;
        while (end < n && end - at < group &&
               (w->items[pieces[end].item].kind == PREP_TRANSPOSE) == late)
            end++;
        run.pieces = pieces + at;
        st_pool_run(pool, end - at, prep_task, &run);
        for (; at < end; at++)
            done += (size_t)(pieces[at].r1 - pieces[at].r0) * row_bytes(&w->items[pieces[at].item]);
        if (progress)
            progress(user, done, total);
        uint32_t bad = atomic_load(&run.first_bad);
        if (bad != UINT32_MAX) {
            const st_tensor *t = w->items[bad].tensor;
            status = st_fail(err, ST_EFORMAT, "%s: tensor '%s' holds NaN or infinite weights",
                             t->file, t->name);
            break;
        }
    }
    free(pieces);
    if (!status)
        w->n_items = 0;
    return status;
}
