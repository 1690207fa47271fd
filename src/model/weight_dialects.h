/* The published dialects besides floats and INT8: FP8 in blocks, and three layouts of INT4. Only
 * weight_source.c calls these. */
#ifndef ST_MODEL_WEIGHT_DIALECTS_H
#define ST_MODEL_WEIGHT_DIALECTS_H

#include "model/weight_source.h"

/* s->tensor[0] is NAME.weight in F8_E4M3, [s->n, s->k]; completes s. */
ST_NODISCARD st_status st_weight_find_f8(const st_checkpoint *c, const char *name,
                                         st_weight_source *s, st_error *err);
/* Whether there is NAME.weight_packed or NAME.qweight. */
bool st_weight_is_i4(const st_checkpoint *c, const char *name);
/* Finds it, by the dialect that config.json names; s has n and k. Metadata only, and g_idx. */
ST_NODISCARD st_status st_weight_find_i4(const st_checkpoint *c, const char *name,
                                         st_weight_source *s, st_error *err);

/* NAME.SUFFIX, or NULL. */
const st_tensor *st_tensor_beside(const st_checkpoint *c, const char *name, const char *suffix);
/* The same with a shape as st_tensor_find wants it; type must be one of floats when floats. */
ST_NODISCARD st_status st_tensor_of_linear(const st_checkpoint *c, const char *name,
                                           const char *suffix, int32_t n, int32_t k,
                                           const st_tensor **out, st_error *err);
ST_NODISCARD st_status st_tensor_want_float(const st_tensor *t, st_error *err);
/* Element i of a tensor of scales: finite. Tools write positive ones; 0 and negative ones are
 * numbers like any other, here as in vLLM. */
ST_NODISCARD st_status st_tensor_scale(const st_tensor *t, size_t i, float *out, st_error *err);

#endif
