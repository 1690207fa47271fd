/* Reference matrix products and the quantization of activations. */
#include <math.h>

#include "kernels/float_bits.h"
#include "kernels/ref/ref.h"

/* Element i of a float tensor; memcpy because mapped checkpoints promise no alignment. */
static float element(const void *data, st_dtype dtype, size_t i)
{
    if (dtype == ST_F32) {
        float f;
        memcpy(&f, (const char *)data + i * 4, 4);
        return f;
    }
    uint16_t h;
    memcpy(&h, (const char *)data + i * 2, 2);
    return dtype == ST_BF16 ? st_bf16_to_f32(h) : st_f16_to_f32(h);
}

void st_ref_matmul_f(float *y, size_t ldy, const float *x, size_t ldx, int m, const st_matrix *w,
                     int n0, int n1)
{
    for (int i = 0; i < m; i++)
        for (int j = n0; j < n1; j++) {
            double sum = 0;
            for (int k = 0; k < w->k; k++)
                sum += (double)x[(size_t)i * ldx + (size_t)k] *
                       element(w->data, w->dtype, (size_t)j * (size_t)w->k + (size_t)k);
            y[(size_t)i * ldy + (size_t)j] = (float)sum;
        }
}

void st_ref_matmul_i8(float *y, size_t ldy, const int8_t *xq, size_t ldx, const float *x_scale,
                      int m, const st_matrix *w, int n0, int n1)
{
    for (int i = 0; i < m; i++)
        for (int j = n0; j < n1; j++) {
            const int8_t *row = (const int8_t *)w->data + (size_t)j * (size_t)w->k;
            const int8_t *xi = xq + (size_t)i * ldx;
            int32_t sum = 0;
            for (int k = 0; k < w->k; k++)
                sum += xi[k] * row[k];
            y[(size_t)i * ldy + (size_t)j] = (float)sum * (x_scale[i] * w->scale[j]);
        }
}

void st_ref_quantize_rows(int8_t *q, size_t ldq, float *scale, const float *x, size_t ldx, int m,
                          int k)
{
    for (int i = 0; i < m; i++) {
        const float *xi = x + (size_t)i * ldx;
        /* As integers, so that NaN counts as the largest. */
        uint32_t absmax = 0;
        for (int j = 0; j < k; j++) {
            uint32_t u = st_bits_of_float(xi[j]) & 0x7fffffffu;
            absmax = u > absmax ? u : absmax;
        }
        float s = st_float_of_bits(absmax) / 127.0f;
        if (!isfinite(s))
            s = NAN;
        else if (s == 0)
            s = 1;
        scale[i] = s;
        for (int j = 0; j < k; j++) {
            float v = isnan(s) ? 0 : rintf(xi[j] / s);
            q[(size_t)i * ldq + (size_t)j] = (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
        }
    }
}
