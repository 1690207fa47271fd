/* Reference kernels on rows: norm, rotary embedding, activation, softmax, conversions. */
#include <math.h>

#include "kernels/float_bits.h"
#include "kernels/ref/ref.h"

void st_ref_rmsnorm(float *y, size_t ldy, const float *x, size_t ldx, const float *weight, int m,
                    int d, float eps)
{
    for (int i = 0; i < m; i++) {
        const float *xi = x + (size_t)i * ldx;
        float *yi = y + (size_t)i * ldy;
        double sum = 0;
        for (int j = 0; j < d; j++)
            sum += (double)xi[j] * xi[j];
        float r = (float)(1.0 / sqrt(sum / d + eps));
        for (int j = 0; j < d; j++)
            yi[j] = xi[j] * r * weight[j];
    }
}

void st_ref_residual_norm(const st_residual *r, int d, float eps)
{
    bool adds = r->branch || r->n_parts > 0;
    size_t n = (size_t)d;
    for (size_t j = 0; adds && j < n; j++) {
        float b = r->branch ? r->branch[j] : 0;
        for (int i = 0; i < r->n_parts; i++)
            b = fmaf(r->part_weight[i], r->parts[(size_t)r->part_row[i] * r->ld_parts + j], b);
        if (r->branch_norm)
            r->branch_sum[j] = b;
        else
            r->x[j] += b;
    }
    if (r->branch_norm) {
        st_ref_rmsnorm(r->branch_sum, n, r->branch_sum, n, r->branch_norm, 1, d, eps);
        st_ref_add(r->x, r->branch_sum, d);
    }
    if (r->norm)
        st_ref_rmsnorm(r->y, n, r->x, n, r->norm, 1, d, eps);
    if (r->norm && r->q) {
        st_act a = {
            .x = r->y, .ld = n, .q = r->q, .scale = r->scale, .sum = r->sum, .m = 1, .k = d};
        st_ref_quantize(&a);
    }
}

static void rotate(float *a, float *b, float c, float s)
{
    float x = *a, y = *b;
    *a = x * c - y * s;
    *b = y * c + x * s;
}

void st_ref_rope_interleaved(float *x, int d, const float *cos_sin)
{
    for (int i = 0; i < d / 2; i++)
        rotate(&x[2 * i], &x[2 * i + 1], cos_sin[i], cos_sin[d / 2 + i]);
}

void st_ref_rope_half(float *x, int d, const float *cos_sin)
{
    for (int i = 0; i < d / 2; i++)
        rotate(&x[i], &x[i + d / 2], cos_sin[i], cos_sin[d / 2 + i]);
}

void st_ref_silu_mul(float *y, size_t ldy, const float *gate, const float *up, size_t ld, int m,
                     int n)
{
    for (int i = 0; i < m; i++, y += ldy, gate += ld, up += ld)
        for (int j = 0; j < n; j++)
            y[j] = gate[j] / (1.0f + expf(-gate[j])) * up[j];
}

void st_ref_add(float *y, const float *x, int n)
{
    for (int i = 0; i < n; i++)
        y[i] += x[i];
}

void st_ref_add_scaled(float *y, const float *x, float a, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = fmaf(a, x[i], y[i]);
}

float st_ref_softmax(float *x, int n)
{
    float max = -INFINITY;
    for (int i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    double sum = 0;
    for (int i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        sum += x[i];
    }
    for (int i = 0; i < n; i++)
        x[i] = (float)(x[i] / sum);
    return max + (float)log(sum);
}

void st_ref_to_bf16(uint16_t *y, const float *x, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = st_f32_to_bf16(x[i]);
}

void st_ref_to_f32(float *y, const void *x, st_dtype dtype, int n)
{
    if (dtype == ST_F32) {
        memmove(y, x, (size_t)n * 4);
        return;
    }
    for (int i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, (const char *)x + (size_t)i * 2, 2);
        y[i] = dtype == ST_BF16 ? st_bf16_to_f32(h) : st_f16_to_f32(h);
    }
}
