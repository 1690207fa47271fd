/* Rotary position embedding: frequencies in double (YaRN included), and the cosine / sine row of
 * one position as the kernels want it. */
#ifndef ST_MODEL_ROPE_H
#define ST_MODEL_ROPE_H

#include "starling/model.h"

#define ST_ROPE_MAX_DIM 1024

typedef struct st_rope {
    int32_t dim; /* rotated elements of a head; even */
    bool interleaved;
    double
        magnitude; /* factor on cosines and sines: YaRN's m(mscale) / m(mscale_all_dim), else 1 */
    double inv_freq[ST_ROPE_MAX_DIM / 2];
} st_rope;

/* The rotary dimension is qk_rope_head_dim (MLA) or head_dim (GQA). ST_EUNSUPPORTED when it is
 * odd or too large. */
ST_NODISCARD st_status st_rope_init(st_rope *r, const st_model_config *c, st_error *err);
/* cos_sin: [dim/2] cosines, then [dim/2] sines. */
void st_rope_cos_sin(const st_rope *r, int32_t pos, float *cos_sin);

#endif
