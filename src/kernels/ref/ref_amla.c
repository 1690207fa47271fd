/* AMLA's published form, with its hazards handled: see ref_amla.h. The invariant of a row is
 * O = 2^n / c * sum of exp(s_j) v_j, so that rescaling is an integer added to O's exponents. */
#include "kernels/ref/ref_amla.h"

#include <math.h>
#include <string.h>

#include "kernels/float_bits.h"

/* A rescale by less is below every bit of O that stays. */
enum { LEAST_STEP = -30 };

static float to_bf16(float f)
{
    return st_bf16_to_f32(st_f32_to_bf16(f));
}

float st_ref_amla_scale(float f, int n, float epsilon)
{
    uint32_t bits = st_bits_of_float(f), exponent = bits >> 23 & 255;
    int32_t add = (int32_t)lrint(((double)n + (double)epsilon) * 0x1p23);
    /* A zero, or what would become denormal, would borrow from the sign: flush. The mantissa may
     * borrow one more. */
    if ((int)exponent <= -n + (epsilon < 0))
        return exponent == 255 ? f : st_float_of_bits(bits & 0x80000000u);
    return exponent == 255 ? f : st_float_of_bits(bits + (uint32_t)add);
}

/* A row's state between blocks. */
typedef struct amla_row {
    float max, l; /* of the keys so far; sum of exp(s - max) */
    int n;        /* round(-max / ln 2) */
    float c;      /* S32 / S16 */
    float s16;
    int blocks; /* with keys that are not masked */
} amla_row;

static float block_max(const float *s, int n)
{
    float max = -INFINITY;
    for (int i = 0; i < n; i++)
        max = s[i] > max ? s[i] : max;
    return max;
}

/* Brings O and the row to the new maximum; returns what P is multiplied by. */
static float rescale(st_amla_form form, amla_row *r, float max, float *o, int dim)
{
    float new_max = max > r->max ? max : r->max;
    float by = r->blocks ? expf(r->max - new_max) : 0;
    int n = (int)rintf(-new_max * 1.44269504f);
    float s32 = (float)exp(0.6931471805599453 * (n + (double)new_max * 1.4426950408889634));
    float s16 = form == ST_AMLA_FA2 ? 1 : form == ST_AMLA_LATTICE ? s32 : to_bf16(s32);
    float c = form == ST_AMLA_FULL ? s32 / s16 : 1;
    float epsilon = r->blocks ? 1.5f * (r->c / c - 1) : 0;
    int step = n - r->n < LEAST_STEP ? LEAST_STEP : n - r->n;
    for (int i = 0; r->blocks && i < dim; i++)
        if (form == ST_AMLA_FA2)
            o[i] *= by;
        else if (form == ST_AMLA_LATTICE)
            o[i] = ldexpf(o[i], n - r->n);
        else
            o[i] = st_ref_amla_scale(o[i], step, epsilon);
    *r = (amla_row){new_max, r->l * by, n, c, s16, r->blocks + 1};
    return s16;
}

float st_ref_amla(st_amla_form form, float *out, const float *s, const float *v, int n_keys,
                  int dim, int block, float *o)
{
    amla_row r = {.max = -INFINITY};
    memset(o, 0, (size_t)dim * sizeof *o);
    for (int first = 0; first < n_keys; first += block) {
        int n = n_keys - first < block ? n_keys - first : block;
        float max = block_max(s + first, n);
        if (max == -INFINITY)
            continue; /* all masked: nothing may reach n, l or O */
        float by = rescale(form, &r, max, o, dim);
        for (int j = first; j < first + n; j++) {
            if (s[j] == -INFINITY)
                continue;
            float p = expf(s[j] - r.max);
            r.l += p;
            p = form == ST_AMLA_LATTICE ? p * by : to_bf16(p * by);
            for (int i = 0; i < dim; i++)
                o[i] = fmaf(p, v[(size_t)j * (size_t)dim + (size_t)i], o[i]);
        }
    }
    for (int i = 0; i < dim; i++)
        out[i] = r.l > 0 ? o[i] / (r.l * r.s16) : 0;
    return r.l > 0 ? r.max + logf(r.l) : -INFINITY;
}
