/* From logits to a token: a pure function of (logits, the request's tokens, its sampling, the
 * index of the draw). Nothing depends on what else is in the batch. */
#ifndef ST_ENGINE_SAMPLER_H
#define ST_ENGINE_SAMPLER_H

#include "starling/engine.h"

#define ST_MAX_LOGPROBS 20

/* Scratch for one vocabulary size; one per thread that samples. */
typedef struct st_sampler st_sampler;
ST_NODISCARD st_status st_sampler_new(int32_t vocab_size, st_sampler **out, st_error *err);
void st_sampler_free(st_sampler *s); /* NULL is fine */

/* What has been said so far, for penalties. */
typedef struct st_sample_context {
    const int32_t *tokens; /* prompt, then generated */
    int32_t n_prompt, n_tokens;
    const int32_t *eos_ids; /* the model's */
    int32_t n_eos;
} st_sample_context;

typedef struct st_sample {
    int32_t token;
    float logprob;                   /* of token, when sampling->logprobs >= 0 */
    st_logprob top[ST_MAX_LOGPROBS]; /* most likely first; ties: lower id first */
    int32_t n_top;
} st_sample;

/* Chooses a token from logits [vocab_size] (left as they are). The i-th generated token's draw has
 * index i = n_tokens - n_prompt. ST_EINVAL with a text when a logit is NaN or infinite. Does not
 * allocate. */
ST_NODISCARD st_status st_sampler_run(st_sampler *s, const float *logits,
                                      const st_sampling *sampling, const st_sample_context *ctx,
                                      st_sample *out, st_error *err);

/* How many of the largest logits decide the token, when it is less than all of them; else 0. With
 * the others at -FLT_MAX st_sampler_run gives the same sample. */
int32_t st_sampler_decided_by(const st_sampling *sampling, const st_sample_context *ctx);

/* The draw: uniform in [0, 1), 53 bits, from a counter-based generator. */
double st_sampler_uniform(uint64_t seed, uint64_t index);

#endif
