/* Takes tensors out of a checkpoint: checks shape and type, converts norms to float, notes what is
 * to be packed, and has it packed (packs.h) once everything has been taken. */
#ifndef ST_MODEL_WEIGHTS_H
#define ST_MODEL_WEIGHTS_H

#include "model/pack_plan.h"

/* A linear layer: y = x . w^T + bias (NULL: none). w.n 0: there is none. */
typedef struct st_linear {
    st_packed w;
    const float *bias;
} st_linear;

/* Rows to be looked up, as published: [n, k] floats in the mapping. */
typedef struct st_row_table {
    st_dtype dtype;
    int32_t n, k;
    const void *data; /* aligned for its type */
} st_row_table;

typedef struct st_weights st_weights;

/* Everything made lives in arena; ckpt must outlive the tables. */
ST_NODISCARD st_status st_weights_new(const st_checkpoint *ckpt, const st_kernels *k,
                                      st_arena *arena, st_weights **out, st_error *err);
void st_weights_free(st_weights *w); /* NULL is fine; what was taken stays */

bool st_weights_has(const st_weights *w, const char *name);

/* Each looks `name` up and fails with the file, the tensor, what was expected and what was found.
 * A st_packed has its shape at once and its data when the plan has been packed and bound, so it
 * must stay where it is until then. */

/* A vector of n finite floats, from F32, F16 or BF16. */
ST_NODISCARD st_status st_weights_vector(st_weights *w, const char *name, int32_t n,
                                         const float **out, st_error *err);
/* NAME [n, k] in any dialect (weight_source.h); NAME.bias when bias. */
ST_NODISCARD st_status st_weights_linear(st_weights *w, const char *name, int32_t n, int32_t k,
                                         bool bias, st_linear *out, st_error *err);
/* A matrix of floats under its full name. */
ST_NODISCARD st_status st_weights_float(st_weights *w, const char *name, int32_t n, int32_t k,
                                        st_packed *out, st_error *err);
/* The same, not packed. */
ST_NODISCARD st_status st_weights_table(st_weights *w, const char *name, int32_t n, int32_t k,
                                        st_row_table *out, st_error *err);
/* MLA's kv_b, by head: what takes queries into the latent space and latents out of it. */
typedef struct st_kv_b {
    st_packed *uk; /* [n_heads] of [kv_lora, nope]: the keys' part, transposed */
    st_packed *wk; /* [n_heads] of [nope, kv_lora]: the same as published */
    st_packed *uv; /* [n_heads] of [v, kv_lora]: the values' part */
    /* Integers: uk has no scales. What a query is multiplied with before it meets outputs
     * [g * key_group, (g + 1) * key_group) of uk[h]: [n_heads][key_groups][nope]. Else NULL. */
    const float *key_scale;
    int32_t key_group, key_groups;
} st_kv_b;

/* NAME [n_heads * (nope + v), kv_lora], each head's rows nope first. Integers and floats stay what
 * they are, F8 becomes F32. The arrays of out are the caller's, [n_heads]. */
ST_NODISCARD st_status st_weights_kv_b(st_weights *w, const char *name, int32_t n_heads,
                                       int32_t nope, int32_t v, int32_t kv_lora, st_kv_b *out,
                                       st_error *err);

/* For a matrix of floats that st_weights_float or st_weights_linear has taken, under its full name:
 * what finds its largest outputs (kernels/ops_screen.h). */
ST_NODISCARD st_status st_weights_screen(st_weights *w, const char *name, int32_t n, int32_t k,
                                         st_packed *approx, st_packed *bound, st_error *err);

/* All that is to be packed; owned by w. */
const st_pack_plan *st_weights_plan(const st_weights *w);

/* Bytes that the packs of a whole checkpoint take. Fails where loading would (layers_load.c). */
ST_NODISCARD st_status st_layers_measure(const st_checkpoint *ckpt, const st_kernels *k,
                                         size_t *bytes, st_error *err);

#endif
