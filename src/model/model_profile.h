/* What `starling bench` asks of a loaded model beside running it. */
#ifndef ST_MODEL_PROFILE_H
#define ST_MODEL_PROFILE_H

#include "kernels/ops.h"
#include "starling/model.h"

/* The model's operators, whose profile counts the time of each kind. */
st_ops *st_model_ops(st_model *m);
/* Bytes of weights that one generated token reads: every matrix once, of the routed experts those
 * that a token chooses. */
size_t st_model_active_bytes(const st_model *m);

#endif
