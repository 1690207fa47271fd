/* Tensors to matrices: see weights.h. Taking a tensor only looks at metadata, except for norms and
 * biases; whatever reads weights is an item of the plan and done in parallel. */
#include "model/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

struct st_weights {
    const st_checkpoint *ckpt;
    st_arena *arena;
    st_pack_plan plan;
};

st_status st_weights_new(const st_checkpoint *ckpt, const st_kernels *k, st_arena *arena,
                         st_weights **out, st_error *err)
{
    st_weights *w = calloc(1, sizeof *w);
    if (!w)
        return st_fail(err, ST_ENOMEM, "no memory to load %s", st_checkpoint_dir(ckpt));
    w->ckpt = ckpt;
    w->arena = arena;
    w->plan = (st_pack_plan){.ckpt = ckpt, .k = k};
    *out = w;
    return ST_OK;
}

void st_weights_free(st_weights *w)
{
    if (!w)
        return;
    st_pack_plan_free(&w->plan);
    free(w);
}

const st_pack_plan *st_weights_plan(const st_weights *w)
{
    return &w->plan;
}

bool st_weights_has(const st_weights *w, const char *name)
{
    return st_checkpoint_find(w->ckpt, name) != NULL;
}

static st_status allocate(st_weights *w, size_t n, size_t size, void **out, st_error *err)
{
    size_t bytes;
    if (!st_mul_size(n, size, &bytes) || !(*out = st_arena_alloc(w->arena, bytes)))
        return st_fail(err, ST_ENOMEM, "%s: no memory for %zu x %zu bytes of prepared weights",
                       st_checkpoint_dir(w->ckpt), n, size);
    return ST_OK;
}

st_status st_weights_vector(st_weights *w, const char *name, int32_t n, const float **out,
                            st_error *err)
{
    void *mem = NULL;
    const st_tensor *t;
    st_status status = st_tensor_find(w->ckpt, name, n, -1, &t, err);
    if (status)
        return status;
    if (!st_tensor_is_float(t))
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: tensor '%s' is of type %s: expected F32, F16 or BF16", t->file, t->name,
                       st_dtype_name(t->dtype));
    if (allocate(w, (size_t)n, sizeof(float), &mem, err))
        return ST_ENOMEM;
    float *v = mem;
    for (int32_t i = 0; i < n; i++) {
        v[i] = st_tensor_float(t, (size_t)i);
        if (!isfinite(v[i]))
            return st_fail(err, ST_EFORMAT,
                           "%s: tensor '%s': element %d is %g, not a finite number", t->file,
                           t->name, i, (double)v[i]);
    }
    *out = v;
    return ST_OK;
}

/* The plan's names live in the arena. */
static st_status add(st_weights *w, const char *name, const st_weight_source *source,
                     st_packed *out, st_error *err)
{
    char *copy = st_arena_strdup(w->arena, name, strlen(name));
    if (!copy)
        return st_fail(err, ST_ENOMEM, "%s: no memory for its tensors' names",
                       st_checkpoint_dir(w->ckpt));
    return st_pack_plan_add(&w->plan, copy, source, out, err);
}

st_status st_weights_linear(st_weights *w, const char *name, int32_t n, int32_t k, bool bias,
                            st_linear *out, st_error *err)
{
    char full[320];
    st_weight_source source;
    memset(out, 0, sizeof *out);
    snprintf(full, sizeof full, "%s.bias", name);
    st_status status = st_weight_source_find(w->ckpt, name, n, k, &source, err);
    if (!status)
        status = add(w, name, &source, &out->w, err);
    return status || !bias ? status : st_weights_vector(w, full, n, &out->bias, err);
}

st_status st_weights_float(st_weights *w, const char *name, int32_t n, int32_t k, st_packed *out,
                           st_error *err)
{
    st_weight_source source;
    st_status status = st_weight_source_float(w->ckpt, name, n, k, &source, err);
    return status ? status : add(w, name, &source, out, err);
}

st_status st_weights_table(st_weights *w, const char *name, int32_t n, int32_t k, st_row_table *out,
                           st_error *err)
{
    st_weight_source source;
    st_status status = st_weight_source_float(w->ckpt, name, n, k, &source, err);
    if (status)
        return status;
    const st_tensor *t = source.tensor[0];
    *out = (st_row_table){.dtype = t->dtype, .n = n, .k = k, .data = t->data};
    if ((uintptr_t)t->data % st_dtype_size(t->dtype)) {
        void *copy = NULL;
        if (allocate(w, t->bytes, 1, &copy, err))
            return ST_ENOMEM;
        out->data = memcpy(copy, t->data, t->bytes);
    }
    return add(w, name, &source, NULL, err);
}

st_status st_weights_screen(st_weights *w, const char *name, int32_t n, int32_t k,
                            st_packed *approx, st_packed *bound, st_error *err)
{
    void *mem = NULL;
    char full[320];
    if (allocate(w, 1, sizeof(st_weight_source), &mem, err))
        return ST_ENOMEM;
    st_weight_source *base = mem, source[2]; /* these point to base */
    st_status status = st_weight_source_float(w->ckpt, name, n, k, base, err);
    if (status)
        return status;
    st_weight_source_screen(base, &source[0], &source[1]);
    snprintf(full, sizeof full, "%s, screen", name);
    if ((status = add(w, full, &source[0], approx, err)))
        return status;
    snprintf(full, sizeof full, "%s, screen's bounds", name);
    return add(w, full, &source[1], bound, err);
}

/* The scales of every head's keys, a group of inputs after the other. */
static st_status key_scales(st_weights *w, const st_weight_source *all, int32_t n_heads,
                            int32_t nope, int32_t rows, st_kv_b *out, st_error *err)
{
    size_t groups = (size_t)st_weight_groups(all->k, all->group), n = (size_t)nope;
    void *mem = NULL, *row = NULL;
    size_t each;
    if (all->k > ST_MAX_FLOAT_K || nope > ST_MAX_FLOAT_K)
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: tensor '%s' expands %d latent elements to keys of %d: expected at most "
                       "%d where it is quantized",
                       all->tensor[0]->file, all->tensor[0]->name, all->k, nope, ST_MAX_FLOAT_K);
    if (!st_mul_size(groups, n, &each) ||
        allocate(w, (size_t)n_heads, each * sizeof(float), &mem, err) ||
        allocate(w, groups, sizeof(float), &row, err))
        return ST_ENOMEM;
    float *to = mem, *from = row;
    out->key_scale = mem;
    out->key_groups = (int32_t)groups;
    out->key_group = groups > 1 ? all->group : all->k;
    for (int32_t h = 0; h < n_heads; h++, to += each)
        for (size_t i = 0; i < n; i++) {
            int32_t r = h * rows + (int32_t)i;
            st_status status = st_weight_source_scales(all, r, r + 1, from, err);
            if (status)
                return status;
            for (size_t g = 0; g < groups; g++)
                to[g * n + i] = from[g];
        }
    return ST_OK;
}

/* One kind of every head's matrices, side by side in memory: they are read one after the other. */
static st_status add_heads(st_weights *w, const char *name, const char *kind,
                           const st_weight_source *all, int32_t n_heads, int32_t first, int32_t n,
                           bool transposed, st_packed *out, st_error *err)
{
    int32_t rows = all->n / n_heads;
    for (int32_t h = 0; h < n_heads; h++) {
        char full[320];
        st_weight_source part;
        snprintf(full, sizeof full, "%s, head %d, %s", name, h, kind);
        st_weight_source_slice(all, h * rows + first, n, transposed, &part);
        st_status status = add(w, full, &part, &out[h], err);
        if (status)
            return status;
    }
    return ST_OK;
}

st_status st_weights_kv_b(st_weights *w, const char *name, int32_t n_heads, int32_t nope, int32_t v,
                          int32_t kv_lora, st_kv_b *out, st_error *err)
{
    void *mem = NULL;
    if (allocate(w, 1, sizeof(st_weight_source), &mem, err))
        return ST_ENOMEM;
    st_weight_source *all = mem; /* the heads' sources point to it */
    int32_t rows = nope + v;
    st_status status = st_weight_source_find(w->ckpt, name, n_heads * rows, kv_lora, all, err);
    if (!status && st_weight_takes_int8(all->type))
        status = key_scales(w, all, n_heads, nope, rows, out, err);
    if (!status)
        status =
            add_heads(w, name, "keys as published", all, n_heads, 0, nope, false, out->wk, err);
    if (!status)
        status = add_heads(w, name, "keys", all, n_heads, 0, nope, true, out->uk, err);
    if (!status)
        status = add_heads(w, name, "values", all, n_heads, nope, v, false, out->uv, err);
    return status;
}
