/* Reference attention: a two-pass softmax in double for one (query, head) at a time. */
#include <math.h>

#include "kernels/float_bits.h"
#include "kernels/kv_rows.h"
#include "kernels/ref/ref.h"

/* Element i of a row. */
static double kv_element(const unsigned char *row, st_dtype dtype, st_kv_row_shape s, int i)
{
    float f;
    if (dtype == ST_F32) {
        memcpy(&f, row + (size_t)i * 4, 4);
        return f;
    }
    size_t at = (size_t)i * 2;
    if (dtype == ST_I8) {
        int vectors = s.n_vectors * s.vector;
        if (i < vectors) {
            memcpy(&f, row + st_kv_i8_scales_at(s) + (size_t)(i / s.vector) * sizeof f, sizeof f);
            return (double)(int8_t)row[i] * f;
        }
        at = st_kv_i8_plain_at(s) + (size_t)(i - vectors) * 2;
    }
    uint16_t h;
    memcpy(&h, row + at, 2);
    return st_bf16_to_f32(h);
}

static double score(const float *q, const unsigned char *row, st_dtype dtype, st_kv_row_shape s,
                    int k_first, int k_dim)
{
    double sum = 0;
    for (int i = 0; i < k_dim; i++)
        sum += q[i] * kv_element(row, dtype, s, k_first + i);
    return sum;
}

/* One head of one query over keys 0..pos; k and v start at elements k_first and v_first of a row.
 * The scores are computed twice so that no memory grows with the context. */
static void attend(float *out, const float *q, const st_attn_shape *shape, const st_kv_layer *kv,
                   const int32_t *table, int pos, st_kv_row_shape layout, int k_first, int v_first,
                   double *acc)
{
    double max = -INFINITY, sum = 0;
    for (int p = 0; p <= pos; p++) {
        double s = score(q, st_kv_row(kv, table, p), kv->dtype, layout, k_first, shape->k_dim);
        s *= shape->scale;
        max = s > max || isnan(s) ? s : max;
    }
    for (int i = 0; i < shape->v_dim; i++)
        acc[i] = 0;
    for (int p = 0; p <= pos; p++) {
        const unsigned char *row = st_kv_row(kv, table, p);
        double e =
            exp(score(q, row, kv->dtype, layout, k_first, shape->k_dim) * shape->scale - max);
        sum += e;
        for (int i = 0; i < shape->v_dim; i++)
            acc[i] += e * kv_element(row, kv->dtype, layout, v_first + i);
    }
    for (int i = 0; i < shape->v_dim; i++)
        out[i] = (float)(acc[i] / sum);
}

void st_ref_attention_mla(float *out, const float *q, const st_attn_shape *shape,
                          const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1, int h0,
                          int h1, void *scratch)
{
    for (int i = q0; i < q1; i++)
        for (int h = h0; h < h1; h++) {
            size_t r = (size_t)(seq->q_row + i) * (size_t)shape->n_heads + (size_t)h;
            attend(out + r * (size_t)shape->v_dim, q + r * (size_t)shape->k_dim, shape, kv,
                   seq->block_table, seq->pos0 + i, st_kv_attn_row(true, shape), 0, 0, scratch);
        }
}

void st_ref_attention_gqa(float *out, const float *q, const st_attn_shape *shape,
                          const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1, int h0,
                          int h1, void *scratch)
{
    int group = shape->n_heads / shape->n_kv_heads;
    for (int i = q0; i < q1; i++)
        for (int h = h0; h < h1; h++) {
            size_t r = (size_t)(seq->q_row + i) * (size_t)shape->n_heads + (size_t)h;
            int k_first = h / group * shape->k_dim;
            int v_first = shape->n_kv_heads * shape->k_dim + h / group * shape->v_dim;
            attend(out + r * (size_t)shape->v_dim, q + r * (size_t)shape->k_dim, shape, kv,
                   seq->block_table, seq->pos0 + i, st_kv_attn_row(false, shape), k_first, v_first,
                   scratch);
        }
}

size_t st_ref_attn_scratch(const st_attn_shape *shape)
{
    return (size_t)shape->v_dim * sizeof(double);
}
