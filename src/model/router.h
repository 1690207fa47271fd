/* Which experts a token goes to, and with what weights: a pure function of the router's logits. */
#ifndef ST_MODEL_ROUTER_H
#define ST_MODEL_ROUTER_H

#include "kernels/kernels.h"
#include "starling/model.h"

#define ST_ROUTER_MAX_GROUPS 64

/* logits [n_experts] is overwritten with the scores. bias (NULL: none) takes part in choosing
 * only. Experts go to choice[experts_per_token] by descending score for choosing, equal scores by
 * ascending index; weight[] holds the factors of their outputs. A score that is not a number is
 * never preferred to one that is. */
void st_router_choose(const st_model_config *c, const st_kernels *k, float *logits,
                      const float *bias, int32_t *choice, float *weight);

#endif
