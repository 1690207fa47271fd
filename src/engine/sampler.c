/* The sampler: see sampler.h. A vocabulary may have 150,000 entries, so the usual path makes two or
 * three passes over the logits and sorts only the likely ones:
 *
 *   scan (maximum, NaN check) -> sum of weights -> candidates, most likely first, fetched in
 *   growing distances from the maximum until the draw is decided
 *
 * Weights are exp((logit - max) / temperature) by a polynomial of our own, so that no libm and no
 * instruction set changes a choice. Sums run in eight lanes of doubles, in fixed order. */
#include "engine/sampler.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LANES      8
#define RADIX_BITS 11
#define RADIX      (1 << RADIX_BITS)

struct st_sampler {
    int32_t n;
    float *work;     /* [n] logits after penalties, bias and mask */
    int32_t *count;  /* [n] zero between calls */
    uint64_t *keys;  /* [n] candidates in order, see key_of */
    uint64_t *spare; /* [n] for sorting */
    uint32_t histogram[3][RADIX];
};

st_status st_sampler_new(int32_t vocab_size, st_sampler **out, st_error *err)
{
    *out = NULL;
    size_t n = vocab_size > 0 ? (size_t)vocab_size : 1;
    st_sampler *s = calloc(1, sizeof *s);
    if (!s)
        return st_fail(err, ST_ENOMEM, "sampler: out of memory");
    s->n = (int32_t)n;
    s->work = malloc(n * sizeof *s->work);
    s->count = calloc(n, sizeof *s->count);
    s->keys = malloc(n * sizeof *s->keys);
    s->spare = malloc(n * sizeof *s->spare);
    if (!s->work || !s->count || !s->keys || !s->spare) {
        st_sampler_free(s);
        return st_fail(err, ST_ENOMEM, "sampler: out of memory for %zu tokens", n);
    }
    *out = s;
    return ST_OK;
}

void st_sampler_free(st_sampler *s)
{
    if (!s)
        return;
    free(s->work);
    free(s->count);
    free(s->keys);
    free(s->spare);
    free(s);
}

/* ---- the draw ---- */

/* SplitMix64's finalizer (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

double st_sampler_uniform(uint64_t seed, uint64_t index)
{
    /* The seed is mixed first: streams of neighbouring seeds are not shifts of each other. */
    uint64_t z = mix(mix(seed + 0x9E3779B97F4A7C15u) + (index + 1) * 0x9E3779B97F4A7C15u);
    return (double)(z >> 11) * 0x1p-53;
}

/* ---- passes over the vocabulary ---- */

/* Four lanes by the compilers' vector extension (SSE2 on x86-64, NEON on armv8): what decides is
 * written once, and one element alone has the same bits as within a vector. */
typedef float v4f __attribute__((vector_size(16)));
typedef uint32_t v4u __attribute__((vector_size(16)));
typedef double v4d __attribute__((vector_size(32)));

static inline v4f load4(const float *p)
{
    v4f v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline v4f splat(float x)
{
    return (v4f){x, x, x, x};
}

static inline bool any(v4u mask)
{
    return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
}

/* exp(x) for x <= 0; below -87 it is 0. Relative error under 2e-7. */
static inline v4f exp_weights(v4f x)
{
    v4f least = splat(-87.0f);
    v4u keep = (v4u)(x > least);
    v4f clamped = (v4f)(((v4u)x & keep) | ((v4u)least & ~keep));
    v4f shifted = clamped * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
    v4f k = shifted - 12582912.0f;
    v4f r = clamped - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
    v4f p = r * 1.9875691500e-4f + 1.3981999507e-3f; /* Cephes' expf coefficients */
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    v4u pow2 = ((v4u)shifted - 0x4B400000u + 127u) << 23;
    return (v4f)((v4u)(p * (v4f)pow2) & keep);
}

static float exp_weight(float x)
{
    return exp_weights(splat(x))[0];
}

/* The largest logit; *finite is false when any is NaN or infinite. */
static float scan(const float *l, int32_t n, bool *finite)
{
    float top[LANES], zero[LANES];
    for (int j = 0; j < LANES; j++) {
        top[j] = -INFINITY;
        zero[j] = 0.0f;
    }
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float x = l[i + j];
            top[j] = x > top[j] ? x : top[j];
            zero[j] += x * 0.0f; /* NaN from here on if x is not finite */
        }
    for (; i < n; i++) {
        top[0] = l[i] > top[0] ? l[i] : top[0];
        zero[0] += l[i] * 0.0f;
    }
    *finite = true;
    for (int j = 0; j < LANES; j++) {
        top[0] = top[j] > top[0] ? top[j] : top[0];
        *finite = *finite && zero[j] == 0.0f;
    }
    return top[0];
}

static int32_t first_equal(const float *l, int32_t n, float value)
{
    int32_t i = 0;
    while (i < n - 1 && l[i] != value)
        i++;
    return i;
}

/* Weights of p[0..4), those below min_weight as 0. */
static inline v4f weights_at(const float *p, float max, float inv_t, float min_weight)
{
    v4f w = exp_weights((load4(p) - max) * inv_t);
    return (v4f)((v4u)w & (v4u)(w >= splat(min_weight)));
}

/* The sum of all weights that are at least min_weight. */
static double sum_weights(const float *l, int32_t n, float max, float inv_t, float min_weight)
{
    v4d low = {0}, high = {0};
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        low += __builtin_convertvector(weights_at(l + i, max, inv_t, min_weight), v4d);
        high += __builtin_convertvector(weights_at(l + i + 4, max, inv_t, min_weight), v4d);
    }
    v4d s = low + high;
    double sum = (s[0] + s[1]) + (s[2] + s[3]);
    for (; i < n; i++) {
        float w = exp_weight((l[i] - max) * inv_t);
        sum += w >= min_weight ? (double)w : 0.0;
    }
    return sum;
}

/* ---- candidates, most likely first ---- */

/* Ascending keys are descending logits, equal logits ascending ids. */
static uint64_t key_of(float logit, int32_t id)
{
    uint32_t bits;
    logit += 0.0f; /* -0 equals 0 and must have its key */
    memcpy(&bits, &logit, sizeof bits);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)~bits << 32 | (uint32_t)id;
}

static void insertion_sort(uint64_t *keys, int32_t n)
{
    for (int32_t i = 1; i < n; i++) {
        uint64_t x = keys[i];
        int32_t j = i;
        for (; j > 0 && keys[j - 1] > x; j--)
            keys[j] = keys[j - 1];
        keys[j] = x;
    }
}

/* Sorts by the upper 32 bits in three stable passes; ids already ascend. */
static void radix_sort(st_sampler *s, uint64_t *keys, int32_t n)
{
    memset(s->histogram, 0, sizeof s->histogram);
    for (int32_t i = 0; i < n; i++)
        for (int p = 0; p < 3; p++)
            s->histogram[p][keys[i] >> (32 + p * RADIX_BITS) & (RADIX - 1)]++;
    uint64_t *from = keys, *to = s->spare;
    for (int p = 0; p < 3; p++) {
        uint32_t start = 0;
        for (int d = 0; d < RADIX; d++) {
            uint32_t c = s->histogram[p][d];
            s->histogram[p][d] = start;
            start += c;
        }
        for (int32_t i = 0; i < n; i++)
            to[s->histogram[p][from[i] >> (32 + p * RADIX_BITS) & (RADIX - 1)]++] = from[i];
        uint64_t *swap = from;
        from = to;
        to = swap;
    }
    memcpy(keys, from, (size_t)n * sizeof *keys); /* three passes end in spare */
}

/* A walk over the candidates in order. They are fetched by distance from the maximum (in units of
 * the temperature), nearest first: few draws look beyond the first distances. */
typedef struct walk {
    st_sampler *s;
    const float *logits;
    float max, inv_t, min_weight;
    int32_t count; /* of s->keys */
    int32_t stage;
} walk;

static const float distances[] = {2.5f, 6.0f, 12.0f, 24.0f, 87.0f};
#define N_DISTANCES ((int32_t)(sizeof distances / sizeof *distances))

static void fetch(walk *w)
{
    float far = -distances[w->stage], near = w->stage > 0 ? -distances[w->stage - 1] : 1.0f;
    w->stage++;
    uint64_t *keys = w->s->keys + w->count;
    int32_t n = 0, i = 0;
    for (; i + 4 <= w->s->n; i += 4) {
        v4f x = (load4(w->logits + i) - w->max) * w->inv_t;
        v4u in = (v4u)(x > splat(far)) & (v4u)(x <= splat(near));
        if (!any(in))
            continue;
        for (int j = 0; j < 4; j++)
            if (in[j])
                keys[n++] = key_of(w->logits[i + j], i + j);
    }
    for (; i < w->s->n; i++) {
        float x = (w->logits[i] - w->max) * w->inv_t;
        if (x > far && x <= near)
            keys[n++] = key_of(w->logits[i], i);
    }
    if (n < 64)
        insertion_sort(keys, n);
    else
        radix_sort(w->s, keys, n);
    w->count += n;
}

/* The i-th candidate's weight and id; 0 when there are no more. */
static float candidate(walk *w, int32_t i, int32_t *id)
{
    while (i >= w->count && w->stage < N_DISTANCES)
        fetch(w);
    if (i >= w->count)
        return 0.0f;
    *id = (int32_t)(uint32_t)w->s->keys[i];
    float weight = exp_weight((w->logits[*id] - w->max) * w->inv_t);
    return weight >= w->min_weight ? weight : 0.0f;
}

/* min_p, top_k, top_p, draw. Each cuts the ordered candidates at some length, so they are applied
 * as one length and the sum of the weights within. */
static int32_t draw(st_sampler *s, const float *logits, float max, const st_sampling *p,
                    uint64_t index)
{
    walk w = {.s = s,
              .logits = logits,
              .max = max,
              .inv_t = 1.0f / p->temperature,
              .min_weight = p->min_p};
    int32_t limit = s->n, id = first_equal(logits, s->n, max);
    double sum = 0;
    if (p->top_k > 0 && p->top_k < s->n) {
        float x;
        for (limit = 0; limit < p->top_k && (x = candidate(&w, limit, &id)) > 0; limit++)
            sum += (double)x;
    } else {
        sum = sum_weights(logits, s->n, max, w.inv_t, w.min_weight);
    }
    if (p->top_p < 1.0f) {
        double enough = sum * (double)p->top_p, seen = 0;
        float x;
        int32_t i = 0;
        while (i < limit && seen < enough && (x = candidate(&w, i, &id)) > 0) {
            seen += (double)x;
            i++;
        }
        limit = i;
        sum = seen;
    }
    double target = sum * st_sampler_uniform(p->seed, index), seen = 0;
    float x;
    for (int32_t i = 0; i < limit && (x = candidate(&w, i, &id)) > 0; i++) {
        seen += (double)x;
        if (seen > target)
            break;
    }
    /* Rounding may leave seen == target at the end: then it is the last candidate. */
    return id;
}

/* ---- changes to the logits ---- */

static bool changes_logits(const st_sampling *p, const st_sample_context *c)
{
    return p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f ||
           p->frequency_penalty != 0.0f || p->n_logit_bias > 0 ||
           c->n_tokens - c->n_prompt < p->min_tokens;
}

static float keep_finite(float x)
{
    return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x;
}

/* Divides positive and multiplies negative logits of every token seen, prompt included (Keskar et
 * al. 2019, CTRL); presence and frequency penalties look at generated tokens only (OpenAI). */
static void apply_penalties(st_sampler *s, const st_sampling *p, const st_sample_context *c)
{
    if (p->repetition_penalty != 1.0f) {
        for (int32_t i = 0; i < c->n_tokens; i++) {
            int32_t t = c->tokens[i];
            if (s->count[t]++ > 0)
                continue;
            float x = s->work[t];
            x = x > 0 ? x / p->repetition_penalty : x * p->repetition_penalty;
            s->work[t] = keep_finite(x);
        }
        for (int32_t i = 0; i < c->n_tokens; i++)
            s->count[c->tokens[i]] = 0;
    }
    if (p->presence_penalty != 0.0f || p->frequency_penalty != 0.0f) {
        for (int32_t i = c->n_prompt; i < c->n_tokens; i++)
            s->count[c->tokens[i]]++;
        for (int32_t i = c->n_prompt; i < c->n_tokens; i++) {
            int32_t t = c->tokens[i];
            if (s->count[t] == 0)
                continue;
            s->work[t] -= p->frequency_penalty * (float)s->count[t];
            s->work[t] -= p->presence_penalty;
            s->count[t] = 0;
        }
    }
}

static void change_logits(st_sampler *s, const float *logits, const st_sampling *p,
                          const st_sample_context *c)
{
    memcpy(s->work, logits, (size_t)s->n * sizeof *s->work);
    apply_penalties(s, p, c);
    for (int32_t i = 0; i < p->n_logit_bias; i++)
        s->work[p->logit_bias[i].token] =
            keep_finite(s->work[p->logit_bias[i].token] + p->logit_bias[i].bias);
    if (c->n_tokens - c->n_prompt < p->min_tokens) {
        for (int32_t i = 0; i < c->n_eos; i++)
            if (c->eos_ids[i] >= 0 && c->eos_ids[i] < s->n)
                s->work[c->eos_ids[i]] = -INFINITY;
        for (int32_t i = 0; i < p->n_stop_ids; i++)
            s->work[p->stop_ids[i]] = -INFINITY;
    }
}

/* ---- log-probabilities ---- */

static void fill_logprobs(const float *l, int32_t n, float max, int32_t want, st_sample *out)
{
    double log_sum = log(sum_weights(l, n, max, 1.0f, 0.0f));
    out->logprob = (float)((double)(l[out->token] - max) - log_sum);
    want = want < n ? want : n;
    int32_t have = 0;
    for (int32_t i = 0; i < n && want > 0; i++) {
        if (have == want && l[i] <= out->top[have - 1].logprob)
            continue;
        int32_t j = have < want ? have++ : have - 1;
        for (; j > 0 && out->top[j - 1].logprob < l[i]; j--)
            out->top[j] = out->top[j - 1];
        out->top[j] = (st_logprob){.token = i, .logprob = l[i]};
    }
    for (int32_t i = 0; i < have; i++)
        out->top[i].logprob = (float)((double)(out->top[i].logprob - max) - log_sum);
    out->n_top = have;
}

/* vLLM takes temperatures below this for greedy, too: 1/t would overflow. */
#define GREEDY_BELOW 1e-5f

int32_t st_sampler_decided_by(const st_sampling *p, const st_sample_context *ctx)
{
    if (p->logprobs >= 0 || changes_logits(p, ctx))
        return 0;
    if (p->temperature < GREEDY_BELOW)
        return 1;
    return p->top_k > 0 && p->top_k <= ST_BATCH_BEST_MAX ? p->top_k : 0;
}

st_status st_sampler_run(st_sampler *s, const float *logits, const st_sampling *p,
                         const st_sample_context *ctx, st_sample *out, st_error *err)
{
    bool finite;
    float raw_max = scan(logits, s->n, &finite);
    out->n_top = 0;
    out->logprob = 0;
    if (!finite)
        return st_fail(err, ST_EINVAL,
                       "the model computed a logit that is not a finite number at position %d: "
                       "its weights may be damaged",
                       ctx->n_tokens - 1);
    const float *l = logits;
    float max = raw_max;
    if (changes_logits(p, ctx)) {
        change_logits(s, logits, p, ctx);
        l = s->work;
        max = scan(l, s->n, &finite);
        if (max == -INFINITY)
            return st_fail(err, ST_EINVAL,
                           "min_tokens: %d: every token of the vocabulary ends the "
                           "text",
                           p->min_tokens);
    }
    if (p->temperature < GREEDY_BELOW)
        out->token = first_equal(l, s->n, max);
    else
        out->token = draw(s, l, max, p, (uint64_t)(ctx->n_tokens - ctx->n_prompt));
    if (p->logprobs >= 0)
        fill_logprobs(logits, s->n, raw_max, p->logprobs, out);
    return ST_OK;
}
