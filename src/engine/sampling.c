/* Sampling parameters: defaults and the ranges that a request's values must be in. */
#include <math.h>

#include "engine/sampler.h"

void st_sampling_default(st_sampling *s)
{
    *s = (st_sampling){.temperature = 1.0f,
                       .top_p = 1.0f,
                       .repetition_penalty = 1.0f,
                       .max_tokens = 16,
                       .logprobs = -1};
}

static st_status check_floats(const st_sampling *s, st_error *err)
{
    const struct {
        const char *name;
        double value, low, high;
        bool open_low; /* low itself is not allowed */
        const char *expected;
    } rules[] = {
        {"temperature", s->temperature, 0, 100, false, "a number from 0 to 100"},
        {"top_p", s->top_p, 0, 1, true, "a number above 0 and at most 1"},
        {"min_p", s->min_p, 0, 1, false, "a number from 0 to 1"},
        {"repetition_penalty", s->repetition_penalty, 0, 100, true,
         "a number above 0 and at most 100"},
        {"presence_penalty", s->presence_penalty, -2, 2, false, "a number from -2 to 2"},
        {"frequency_penalty", s->frequency_penalty, -2, 2, false, "a number from -2 to 2"},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        double v = rules[i].value;
        if (!(v >= rules[i].low && v <= rules[i].high) || (rules[i].open_low && v == rules[i].low))
            return st_fail(err, ST_EINVAL, "%s: %g: expected %s", rules[i].name, v,
                           rules[i].expected);
    }
    return ST_OK;
}

static st_status check_arrays(const st_sampling *s, int32_t vocab_size, st_error *err)
{
    if (s->n_logit_bias < 0 || (s->n_logit_bias > 0 && !s->logit_bias))
        return st_fail(err, ST_EINVAL, "logit_bias: %d entries: expected an array",
                       s->n_logit_bias);
    for (int32_t i = 0; i < s->n_logit_bias; i++) {
        const st_logit_bias *b = &s->logit_bias[i];
        if (b->token < 0 || b->token >= vocab_size)
            return st_fail(err, ST_EINVAL, "logit_bias: token %d: expected an id from 0 to %d",
                           b->token, vocab_size - 1);
        if (!(b->bias >= -100 && b->bias <= 100))
            return st_fail(err, ST_EINVAL,
                           "logit_bias: %g for token %d: expected a number from -100 to 100",
                           b->bias, b->token);
    }
    if (s->n_stop_ids < 0 || (s->n_stop_ids > 0 && !s->stop_ids))
        return st_fail(err, ST_EINVAL, "stop_token_ids: %d entries: expected an array",
                       s->n_stop_ids);
    for (int32_t i = 0; i < s->n_stop_ids; i++)
        if (s->stop_ids[i] < 0 || s->stop_ids[i] >= vocab_size)
            return st_fail(err, ST_EINVAL, "stop_token_ids: %d: expected an id from 0 to %d",
                           s->stop_ids[i], vocab_size - 1);
    return ST_OK;
}

st_status st_sampling_check(const st_sampling *s, int32_t vocab_size, st_error *err)
{
    st_status st = check_floats(s, err);
    if (st != ST_OK)
        return st;
    if (s->top_k < -1)
        return st_fail(err, ST_EINVAL, "top_k: %d: expected a positive number, or 0 or -1 for all",
                       s->top_k);
    if (s->max_tokens < 1)
        return st_fail(err, ST_EINVAL, "max_tokens: %d: expected at least 1", s->max_tokens);
    if (s->min_tokens < 0 || s->min_tokens > s->max_tokens)
        return st_fail(err, ST_EINVAL, "min_tokens: %d: expected 0 to max_tokens (%d)",
                       s->min_tokens, s->max_tokens);
    if (s->logprobs < -1 || s->logprobs > ST_MAX_LOGPROBS)
        return st_fail(err, ST_EINVAL, "logprobs: %d: expected 0 to %d (-1: none)", s->logprobs,
                       ST_MAX_LOGPROBS);
    return check_arrays(s, vocab_size, err);
}
