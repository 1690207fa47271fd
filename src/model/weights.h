/* Takes tensors out of a checkpoint: checks shape and type, makes matrices that point into the
 * mapping, converts norms and scales to float, and prepares the weights (row sums of INT8, a scan
 * for NaN and infinity, transposed copies) in parallel. */
#ifndef ST_MODEL_WEIGHTS_H
#define ST_MODEL_WEIGHTS_H

#include "base/arena.h"
#include "base/threads.h"
#include "kernels/kernels.h"
#include "model/checkpoint.h"

/* A linear layer: y = x . w^T + bias (NULL: none). */
typedef struct st_linear {
    st_matrix w;
    const float *bias;
} st_linear;

typedef struct st_weights st_weights;

/* Everything made lives in arena; ckpt must outlive the matrices. */
ST_NODISCARD st_status st_weights_new(const st_checkpoint *ckpt, st_arena *arena, st_weights **out,
                                      st_error *err);
void st_weights_free(st_weights *w); /* NULL is fine; what was taken stays */

bool st_weights_has(const st_weights *w, const char *name);

/* Each looks `name` up and fails with the file, the tensor, what was expected and what was found.
 */

/* A vector of n finite floats, from F32, F16 or BF16. */
ST_NODISCARD st_status st_weights_vector(st_weights *w, const char *name, int32_t n,
                                         const float **out, st_error *err);
/* NAME.weight [n, k] in F32, F16, BF16, or I8 with NAME.weight_scale; NAME.bias when bias. */
ST_NODISCARD st_status st_weights_linear(st_weights *w, const char *name, int32_t n, int32_t k,
                                         bool bias, st_linear *out, st_error *err);
/* A matrix under its full name that is read row by row or by float kernels: never I8. */
ST_NODISCARD st_status st_weights_float_matrix(st_weights *w, const char *name, int32_t n,
                                               int32_t k, st_matrix *out, st_error *err);
/* MLA's kv_b: NAME.weight [n_heads * (nope + v), kv_lora], each head's rows nope first. uk[h] is
 * the head's key part transposed, [kv_lora, nope] (a copy); uv[h] its value part, [v, kv_lora] (in
 * place, or of an F32 copy when the tensor is I8). */
ST_NODISCARD st_status st_weights_kv_b(st_weights *w, const char *name, int32_t n_heads,
                                       int32_t nope, int32_t v, int32_t kv_lora, st_matrix *uk,
                                       st_matrix *uv, st_error *err);

/* Does the parallel part for everything taken so far. progress may be NULL. */
ST_NODISCARD st_status st_weights_prepare(st_weights *w, st_pool *pool, st_progress_fn *progress,
                                          void *user, st_error *err);

#endif
