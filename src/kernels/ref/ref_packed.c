/* Reference products with packed weights, and the quantization of activations. A block is one row:
 * its elements as they came, then its scales, then its zero points. */
#include <math.h>
#include <string.h>

#include "kernels/float_bits.h"
#include "kernels/ref/ref.h"

enum { BLOCK_ALIGN = 8 };

static size_t element_bytes(st_weight_type type)
{
    switch (type) {
    case ST_WEIGHT_F32:
        return 4;
    case ST_WEIGHT_F16:
    case ST_WEIGHT_BF16:
        return 2;
    default:
        return 1;
    }
}

static bool has_scale(st_weight_type type)
{
    return type == ST_WEIGHT_F8 || type == ST_WEIGHT_I8 || type == ST_WEIGHT_I4;
}

static size_t scale_offset(const st_packed *w)
{
    return ((size_t)w->k * element_bytes(w->type) + 3) & ~(size_t)3;
}

static size_t zero_offset(const st_packed *w)
{
    size_t groups = (size_t)st_weight_groups(w->k, w->group);
    return scale_offset(w) + (has_scale(w->type) ? groups * sizeof(float) : 0);
}

size_t st_ref_pack_block_bytes(const st_packed *w)
{
    size_t groups = (size_t)st_weight_groups(w->k, w->group);
    size_t bytes = zero_offset(w) + (w->has_zero ? groups : 0);
    return (bytes + BLOCK_ALIGN - 1) & ~(size_t)(BLOCK_ALIGN - 1);
}

void st_ref_pack_block(void *dst, const st_packed *w, const st_weight_rows *rows)
{
    unsigned char *p = dst;
    size_t groups = (size_t)st_weight_groups(w->k, w->group);
    memset(p, 0, st_ref_pack_block_bytes(w));
    memcpy(p, rows->data, (size_t)w->k * element_bytes(w->type));
    if (has_scale(w->type))
        memcpy(p + scale_offset(w), rows->scale, groups * sizeof(float));
    if (w->has_zero && rows->zero)
        memcpy(p + zero_offset(w), rows->zero, groups);
    else if (w->has_zero)
        memset(p + zero_offset(w), 8, groups);
}

/* Element l of a row of floats, unscaled. */
static float element(st_weight_type type, const unsigned char *row, int l)
{
    float f;
    uint16_t h;
    switch (type) {
    case ST_WEIGHT_F32:
        memcpy(&f, row + (size_t)l * sizeof f, sizeof f);
        return f;
    case ST_WEIGHT_F8:
        return st_f8_to_f32(row[l]);
    default:
        memcpy(&h, row + (size_t)l * sizeof h, sizeof h);
        return type == ST_WEIGHT_BF16 ? st_bf16_to_f32(h) : st_f16_to_f32(h);
    }
}

static float scale_at(const st_packed *w, const unsigned char *row, int group)
{
    float f;
    memcpy(&f, row + scale_offset(w) + (size_t)group * sizeof f, sizeof f);
    return f;
}

/* Element l of a row, scaled. */
static double value(const st_packed *w, const unsigned char *row, int l)
{
    int g = w->group > 0 ? l / w->group : 0;
    switch (w->type) {
    case ST_WEIGHT_I8:
        return (double)(int8_t)row[l] * scale_at(w, row, 0);
    case ST_WEIGHT_I4:
        return (double)(row[l] - (w->has_zero ? row[zero_offset(w) + (size_t)g] : 8)) *
               scale_at(w, row, g);
    case ST_WEIGHT_F8:
        return (double)element(w->type, row, l) * scale_at(w, row, g);
    default:
        return element(w->type, row, l);
    }
}

static float float_product(const st_packed *w, const unsigned char *row, const float *x)
{
    double sum = 0;
    for (int l = 0; l < w->k; l++)
        sum += (double)x[l] * value(w, row, l);
    return (float)sum;
}

/* Unsigned: with k near ST_MAX_K partial sums may wrap on the way, and wrap back. */
static int32_t int_product(const int8_t *q, const uint8_t *row, int32_t zero, bool is_signed,
                           int l0, int l1)
{
    uint32_t sum = 0;
    for (int l = l0; l < l1; l++)
        sum += (uint32_t)(q[l] * ((is_signed ? (int8_t)row[l] : row[l]) - zero));
    return (int32_t)sum;
}

static float i4_product(const st_packed *w, const unsigned char *row, const int8_t *q)
{
    float v = 0;
    for (int g = 0; g < st_weight_groups(w->k, w->group); g++) {
        int l0 = g * w->group, l1 = w->k - l0 < w->group ? w->k : l0 + w->group;
        int32_t zero = w->has_zero ? row[zero_offset(w) + (size_t)g] : 8;
        v = fmaf((float)int_product(q, row, zero, false, l0, l1), scale_at(w, row, g), v);
    }
    return v;
}

void st_ref_matmul(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0, int n1)
{
    size_t block = st_ref_pack_block_bytes(w);
    for (int i = 0; i < a->m; i++)
        for (int j = n0; j < n1; j++) {
            const unsigned char *row = (const unsigned char *)w->data + (size_t)j * block;
            const int8_t *q = a->q ? a->q + (size_t)i * a->ldq : NULL;
            float v;
            if (w->type == ST_WEIGHT_I8)
                v = (float)int_product(q, row, 0, true, 0, w->k) *
                    (a->scale[i] * scale_at(w, row, 0));
            else if (w->type == ST_WEIGHT_I4)
                v = i4_product(w, row, q) * a->scale[i];
            else
                v = float_product(w, row, a->x + (size_t)i * a->ld);
            y[(size_t)i * ldy + (size_t)j] = v;
        }
}

void st_ref_matmul_float(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0, int n1)
{
    size_t block = st_ref_pack_block_bytes(w);
    for (int i = 0; i < a->m; i++)
        for (int j = n0; j < n1; j++)
            y[(size_t)i * ldy + (size_t)j] = float_product(
                w, (const unsigned char *)w->data + (size_t)j * block, a->x + (size_t)i * a->ld);
}

static float row_scale(const float *x, int k)
{
    /* As integers, so that NaN counts as the largest. */
    uint32_t absmax = 0;
    for (int l = 0; l < k; l++) {
        uint32_t u = st_bits_of_float(x[l]) & 0x7fffffffu;
        absmax = u > absmax ? u : absmax;
    }
    float s = st_float_of_bits(absmax) / 127.0f;
    return !isfinite(s) ? NAN : s == 0 ? 1 : s;
}

void st_ref_quantize(const st_act *a)
{
    size_t padded = ((size_t)a->k + ST_ACT_STEP - 1) & ~(size_t)(ST_ACT_STEP - 1);
    size_t sums = st_act_sums(a->k);
    for (size_t i = 0; i < (size_t)a->m; i++) {
        const float *x = a->x + i * a->ld;
        int8_t *q = a->q + i * a->ldq;
        int32_t *sum = a->sum + i * sums;
        float s = a->scale[i] = row_scale(x, a->k);
        memset(q, 0, padded);
        memset(sum, 0, sums * sizeof *sum);
        for (int l = 0; l < a->k; l++) {
            float v = isnan(s) ? 0 : rintf(x[l] / s);
            q[l] = (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
            sum[l / ST_ACT_SUM + 1] += q[l];
        }
        for (size_t g = 1; g < sums; g++)
            sum[g] += sum[g - 1];
    }
}
