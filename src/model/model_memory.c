/* Predicts a model's memory and refuses what cannot fit: see model_memory.h. The working arrays
 * are those of work.c, the prepared vectors those of weights.c. */
#include "model/model_memory.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/human.h"
#include "base/memory.h"
#include "kernels/ops_screen.h"
#include "model/model_impl.h"

/* A sum of products that remembers an overflow. */
typedef struct sum {
    size_t bytes;
    bool overflow;
} sum;

static void add(sum *s, size_t rows, size_t width, size_t size)
{
    size_t b = 0;
    if (!st_mul_size(rows, width, &b) || !st_mul_size(b, size, &b) ||
        !st_add_size(s->bytes, b, &s->bytes))
        s->overflow = true;
}

static size_t at_least_0(int32_t n)
{
    return n > 0 ? (size_t)n : 0;
}

/* --- prepared weights -------------------------------------------------------------------- */

static const char embedding[] = "model.embed_tokens.weight";

static void add_prepared(sum *s, const st_tensor *t)
{
    /* Tensor, name, slot in the name table, item of the plan, share of the layers' tables. */
    enum { PER_TENSOR = 640 };
    size_t size = st_dtype_size(t->dtype);
    add(s, 1, 1, PER_TENSOR);
    if (t->rank == 1)
        add(s, t->bytes / size, 1, sizeof(float));
    else if (strstr(t->name, ".kv_b_proj.") && strstr(t->name, "scale"))
        add(s, t->bytes / size, 1, sizeof(float)); /* of the keys: more than half */
    else if (strcmp(t->name, embedding) == 0 && (uintptr_t)t->data % size)
        add(s, t->bytes, 1, 1);
}

/* --- working arrays ---------------------------------------------------------------------- */

/* Activation rows, with their int8 form, scale and sums when some weight takes int8. */
static void add_rows(sum *s, size_t rows, size_t width, bool int8)
{
    int32_t k = width < INT32_MAX ? (int32_t)width : INT32_MAX;
    add(s, rows, width, sizeof(float));
    if (int8) {
        add(s, rows, st_act_ldq(k), 1);
        add(s, rows, 1 + st_act_sums(k), sizeof(float));
    }
}

static void add_attention(sum *s, const st_model_config *c, size_t t)
{
    size_t heads = at_least_0(c->n_heads);
    if (c->attn == ST_ATTN_GQA) {
        size_t dim = at_least_0(c->head_dim);
        add(s, t, 2 * at_least_0(c->n_kv_heads) * dim, sizeof(float)); /* new k and v */
        add(s, t, heads * dim, sizeof(float));                         /* q */
        add_rows(s, t, heads * dim, c->int8_activations);              /* output */
        return;
    }
    size_t lora = at_least_0(c->kv_lora_rank), rope = at_least_0(c->qk_rope_head_dim);
    add(s, t, lora + rope, sizeof(float)); /* new latent rows */
    add(s, t, heads * (at_least_0(c->qk_nope_head_dim) + rope), sizeof(float));
    add_rows(s, t, at_least_0(c->q_lora_rank), c->int8_activations);
    add(s, t, heads * (2 * lora + rope), sizeof(float)); /* absorbed q, latent output */
    add_rows(s, t, heads * at_least_0(c->v_head_dim), c->int8_activations);
}

static void add_mlp(sum *s, const st_model_config *c, size_t t)
{
    size_t hidden = at_least_0(c->hidden_size), width = 0;
    size_t expert = at_least_0(c->moe_intermediate_size);
    bool any_moe = false;
    for (int32_t i = 0; i < c->n_layers; i++) {
        bool moe = st_model_layer_is_moe(c, i);
        size_t w =
            moe ? expert * at_least_0(c->n_shared_experts) : at_least_0(c->intermediate_size);
        width = w > width ? w : width;
        any_moe = any_moe || moe;
    }
    add_rows(s, t, width, c->int8_activations);
    if (!any_moe)
        return;
    size_t chosen = t * at_least_0(c->experts_per_token), experts = at_least_0(c->n_experts);
    add(s, t, experts, sizeof(float));                /* router */
    add(s, chosen, 4, sizeof(int32_t));               /* the lists of choices */
    add(s, experts, 4, 64);                           /* jobs */
    add_rows(s, chosen, hidden, c->int8_activations); /* gathered inputs */
    add_rows(s, chosen, expert, c->int8_activations);
    add(s, chosen, hidden, sizeof(float));
}

static void add_working(sum *s, const st_model_config *c, size_t t, size_t outputs)
{
    size_t hidden = at_least_0(c->hidden_size);
    add(s, t, 2 * hidden, sizeof(float));        /* residual stream, branch */
    add_rows(s, t, hidden, c->int8_activations); /* normed input */
    add(s, t, c->attn == ST_ATTN_MLA ? at_least_0(c->qk_rope_head_dim) : at_least_0(c->head_dim),
        sizeof(float)); /* cosines and sines */
    add(s, t, 1, 96);   /* positions and sequences */
    add_attention(s, c, t);
    add_mlp(s, c, t);
    bool large_head = at_least_0(c->vocab_size) * hidden * sizeof(uint16_t) >= ST_SCREEN_LEAST;
    add_rows(s, outputs, hidden, c->int8_activations || large_head);
    if (large_head)
        add(s, st_screen_bytes(c->vocab_size), 1, 1);
}

st_status st_model_memory_predict(const st_model_config *c, const st_tensor *t, size_t n,
                                  size_t packed, bool shared, const st_memory_steps *steps,
                                  st_memory_need *out, st_error *err)
{
    sum rows = {0}, prepared = {0}, working = {0};
    for (size_t i = 0; i < n; i++) {
        if (st_tensor_layer(t[i].name) >= c->n_layers)
            continue;
        if (strcmp(t[i].name, embedding) == 0)
            add(&rows, t[i].bytes, 1, 1);
        add_prepared(&prepared, &t[i]);
    }
    add_working(&working, c, at_least_0(steps->max_batch_tokens), at_least_0(steps->max_outputs));
    if (c->attn == ST_ATTN_MLA) {
        const st_expand_shape shape = st_expand_shape_of(c);
        add(&working,
            st_ops_expanded_bytes(steps->k, &shape, steps->max_batch_tokens,
                                  st_expand_shared_rows(c), steps->threads),
            1, 1);
    }
    size_t total = 0;
    if (rows.overflow || prepared.overflow || working.overflow ||
        !st_add_size(packed, rows.bytes, &total) || !st_add_size(total, prepared.bytes, &total) ||
        !st_add_size(total, working.bytes, &total))
        return st_fail(err, ST_EINVAL,
                       "the memory for steps of %d tokens and %d outputs is more than a number "
                       "holds",
                       steps->max_batch_tokens, steps->max_outputs);
    *out = (st_memory_need){.packed = packed,
                            .rows = rows.bytes,
                            .prepared = prepared.bytes,
                            .working = working.bytes,
                            .total = total,
                            .shared = shared};
    return ST_OK;
}

/* --- what there is ----------------------------------------------------------------------- */

void st_memory_read_room(size_t limit, st_memory_room *room)
{
    *room = (st_memory_room){limit ? limit : SIZE_MAX, st_memory_available(), SIZE_MAX};
    struct rlimit as;
    size_t pages = 0;
    if (getrlimit(RLIMIT_AS, &as) != 0 || as.rlim_cur == RLIM_INFINITY)
        return;
    FILE *f = fopen("/proc/self/statm", "re");
    bool known = f && fscanf(f, "%zu", &pages) == 1;
    if (f)
        fclose(f);
    size_t used = known ? pages * (size_t)sysconf(_SC_PAGESIZE) : 0;
    room->address_space = as.rlim_cur > used ? (size_t)as.rlim_cur - used : 0;
}

st_status st_memory_fits(const char *dir, const st_memory_need *need, const st_memory_room *room,
                         st_error *err)
{
    static const char advice[] = "choose a smaller or quantized checkpoint, or lower the tokens "
                                 "per step";
    st_human total = st_human_bytes(need->total);
    size_t own = need->packed + need->prepared + need->working;
    char parts[256];
    snprintf(parts, sizeof parts, "packed weights %s%s, embedding %s, prepared %s, working %s",
             st_human_bytes(need->packed).s, need->shared ? " in a file" : "",
             st_human_bytes(need->rows).s, st_human_bytes(need->prepared).s,
             st_human_bytes(need->working).s);
    if (need->total > room->limit)
        return st_fail(err, ST_ENOMEM,
                       "%s needs %s of memory (%s) but the limit set for the model is %s; raise "
                       "it, %s",
                       dir, total.s, parts, st_human_bytes(room->limit).s, advice);
    if (need->total > room->available)
        return st_fail(err, ST_ENOMEM,
                       "%s needs %s of memory (%s) but %s is available here; free memory or raise "
                       "the container's limit, %s",
                       dir, total.s, parts, st_human_bytes(room->available).s, advice);
    if (own > room->address_space)
        return st_fail(err, ST_ENOMEM,
                       "%s needs %s besides its mapped files but the address space limit (ulimit "
                       "-v) leaves %s; raise it",
                       dir, st_human_bytes(own).s, st_human_bytes(room->address_space).s);
    return ST_OK;
}

st_status st_model_memory_check(const st_checkpoint *ckpt, size_t packed, bool shared,
                                const st_memory_steps *steps, size_t memory_limit, st_error *err)
{
    st_memory_need need;
    st_memory_room room;
    st_status s =
        st_model_memory_predict(st_checkpoint_config(ckpt), st_checkpoint_at(ckpt, 0),
                                st_checkpoint_count(ckpt), packed, shared, steps, &need, err);
    if (s)
        return s;
    st_memory_read_room(memory_limit, &room);
    return st_memory_fits(st_checkpoint_dir(ckpt), &need, &room, err);
}
