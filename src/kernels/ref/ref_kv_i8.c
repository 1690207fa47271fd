/* Reference: KV rows between float and I8 (starling/kv_row.h). */
#include <math.h>
#include <string.h>

#include "kernels/float_bits.h"
#include "kernels/kv_rows.h"
#include "kernels/ref/ref.h"

static float quantize_vector(int8_t *q, const float *x, int n)
{
    uint32_t most = 0;
    for (int i = 0; i < n; i++) {
        uint32_t bits = st_bits_of_float(x[i]) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    float scale = st_kv_i8_scale(most);
    for (int i = 0; i < n; i++) {
        float v = isnan(scale) ? 0 : nearbyintf(x[i] / scale);
        q[i] = (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
    }
    return scale;
}

void st_ref_kv_to_i8(void *row, const float *x, st_kv_row_shape s)
{
    unsigned char *to = row;
    for (int i = 0; i < s.n_vectors; i++, x += s.vector) {
        size_t at = (size_t)i * (size_t)s.vector;
        float scale = quantize_vector((int8_t *)to + at, x, s.vector);
        memcpy(to + st_kv_i8_scales_at(s) + (size_t)i * sizeof scale, &scale, sizeof scale);
    }
    for (int i = 0; i < s.plain; i++) {
        uint16_t h = st_f32_to_bf16(x[i]);
        memcpy(to + st_kv_i8_plain_at(s) + (size_t)i * sizeof h, &h, sizeof h);
    }
}

void st_ref_kv_from_i8(float *x, const void *row, st_kv_row_shape s)
{
    const unsigned char *from = row;
    for (int i = 0; i < s.n_vectors; i++, x += s.vector) {
        float scale;
        memcpy(&scale, from + st_kv_i8_scales_at(s) + (size_t)i * sizeof scale, sizeof scale);
        for (int j = 0; j < s.vector; j++)
            x[j] = (float)(int8_t)from[(size_t)i * (size_t)s.vector + (size_t)j] * scale;
    }
    for (int i = 0; i < s.plain; i++) {
        uint16_t h;
        memcpy(&h, from + st_kv_i8_plain_at(s) + (size_t)i * sizeof h, sizeof h);
        x[i] = st_bf16_to_f32(h);
    }
}
