/* Expert choice: see router.h. Formulas: DeepSeek-V2 (arXiv 2405.04434, softmax), DeepSeek-V3
 * (arXiv 2412.19437, sigmoid with a correction bias and group limits), Qwen3 (softmax over all,
 * then renormalised). */
#include "model/router.h"

#include <math.h>

/* The score that decides; NaN sinks below every number. */
static float key_of(float score, const float *bias, int32_t i)
{
    float v = bias ? score + bias[i] : score;
    return v == v ? v : -INFINITY;
}

/* A group's score: the sum of its two best (sigmoid) or its best (softmax). */
static float group_score(const st_model_config *c, const float *scores, const float *bias,
                         int32_t first, int32_t n)
{
    float best = -INFINITY, second = -INFINITY;
    for (int32_t i = first; i < first + n; i++) {
        float v = key_of(scores[i], bias, i);
        if (v > best) {
            second = best;
            best = v;
        } else if (v > second) {
            second = v;
        }
    }
    return c->router == ST_ROUTER_SIGMOID && n > 1 ? best + second : best;
}

/* Inserts (index, key) into the n best so far, kept in descending order; cap at most. The caller
 * goes through indices in ascending order, so an equal key stays behind. */
static int32_t insert_best(int32_t *index, float *key, int32_t n, int32_t cap, int32_t i, float v)
{
    if (n == cap && !(v > key[n - 1]))
        return n;
    int32_t at = n < cap ? n : cap - 1;
    for (; at > 0 && v > key[at - 1]; at--) {
        index[at] = index[at - 1];
        key[at] = key[at - 1];
    }
    index[at] = i;
    key[at] = v;
    return n < cap ? n + 1 : n;
}

/* allowed[g]: groups whose experts may be chosen. */
static void choose_groups(const st_model_config *c, const float *scores, const float *bias,
                          bool *allowed)
{
    int32_t per_group = c->n_experts / c->n_group, n = 0;
    int32_t index[ST_ROUTER_MAX_GROUPS];
    float key[ST_ROUTER_MAX_GROUPS];
    for (int32_t g = 0; g < c->n_group; g++) {
        allowed[g] = false;
        n = insert_best(index, key, n, c->topk_group, g,
                        group_score(c, scores, bias, g * per_group, per_group));
    }
    for (int32_t i = 0; i < n; i++)
        allowed[index[i]] = true;
}

static void scores_of(const st_model_config *c, const st_kernels *k, float *logits)
{
    if (c->router == ST_ROUTER_SOFTMAX) {
        k->softmax(logits, c->n_experts);
        return;
    }
    for (int32_t i = 0; i < c->n_experts; i++)
        logits[i] = 1.0f / (1.0f + expf(-logits[i]));
}

void st_router_choose(const st_model_config *c, const st_kernels *k, float *logits,
                      const float *bias, int32_t *choice, float *weight)
{
    scores_of(c, k, logits);
    bool allowed[ST_ROUTER_MAX_GROUPS], limited = c->n_group > 1 && c->topk_group < c->n_group;
    if (limited)
        choose_groups(c, logits, bias, allowed);
    int32_t n = 0, per_group = limited ? c->n_experts / c->n_group : c->n_experts;
    for (int32_t i = 0; i < c->n_experts; i++)
        if (!limited || allowed[i / per_group])
            n = insert_best(choice, weight, n, c->experts_per_token, i, key_of(logits[i], bias, i));
    float sum = 0;
    for (int32_t i = 0; i < n; i++) {
        weight[i] = logits[choice[i]];
        sum += weight[i];
    }
    float factor = c->routed_scaling_factor;
    if (c->norm_topk_prob)
        factor /= sum + 1e-20f;
    for (int32_t i = 0; i < n; i++)
        weight[i] *= factor;
}
