/* Reference attention over dense keys and values: a running softmax in double, query by query. */
#include <math.h>

#include "kernels/ref/ref.h"

/* A query's state: maximum, sum of weights, v_dim sums; then the query itself. */
enum { STATE_MAX, STATE_SUM, STATE_OUT };

static size_t state_size(int k_dim, int v_dim)
{
    return STATE_OUT + (size_t)v_dim + (size_t)k_dim;
}

static size_t scratch(int n_q, int k_dim, int v_dim)
{
    return (size_t)n_q * state_size(k_dim, v_dim) * sizeof(double);
}

static void start(const st_dense_attn *a, const float *q, size_t ldq)
{
    double *s = a->state;
    for (int i = 0; i < a->n_q; i++, s += state_size(a->k_dim, a->v_dim)) {
        s[STATE_MAX] = -INFINITY;
        for (int d = STATE_SUM; d < STATE_OUT + a->v_dim; d++)
            s[d] = 0;
        for (int d = 0; d < a->k_dim; d++)
            s[STATE_OUT + a->v_dim + d] = q[(size_t)i * ldq + (size_t)d];
    }
}

static void add_key(double *s, const float *k, const float *v, int k_dim, int v_dim, float scale)
{
    const double *q = s + STATE_OUT + v_dim;
    double score = 0;
    for (int d = 0; d < k_dim; d++)
        score += q[d] * k[d];
    score *= scale;
    double max = score > s[STATE_MAX] || isnan(score) ? score : s[STATE_MAX];
    double by = s[STATE_MAX] == max ? 1 : exp(s[STATE_MAX] - max), w = exp(score - max);
    s[STATE_MAX] = max;
    s[STATE_SUM] = s[STATE_SUM] * by + w;
    for (int d = 0; d < v_dim; d++)
        s[STATE_OUT + d] = s[STATE_OUT + d] * by + w * v[d];
}

static void keys(const st_dense_attn *a, const float *k, const float *v, int first, int count)
{
    double *s = a->state;
    size_t ldk = st_dense_stride(a->k_dim), ldv = st_dense_stride(a->v_dim);
    for (int i = 0; i < a->n_q; i++, s += state_size(a->k_dim, a->v_dim))
        for (int j = 0; j < count && first + j <= a->pos0 + i; j++)
            add_key(s, k + (size_t)j * ldk, v + (size_t)j * ldv, a->k_dim, a->v_dim, a->scale);
}

static void finish(const st_dense_attn *a, float *out, size_t ldo)
{
    const double *s = a->state;
    for (int i = 0; i < a->n_q; i++, s += state_size(a->k_dim, a->v_dim))
        for (int d = 0; d < a->v_dim; d++)
            out[(size_t)i * ldo + (size_t)d] = (float)(s[STATE_OUT + d] / s[STATE_SUM]);
}

const st_dense_kernels st_ref_dense = {scratch, start, keys, finish};
