/* Rotary position embedding: see rope.h. YaRN is "YaRN: Efficient Context Window Extension of
 * Large Language Models" (arXiv 2309.00071), as DeepSeek's published classes apply it. */
#include "model/rope.h"

#include <math.h>

/* The (fractional) pair index whose wavelength makes `rotations` turns over the original context.
 */
static double correction_dim(const st_model_config *c, int32_t dim, double rotations)
{
    double turns = (double)c->yarn_original_positions / (rotations * 2 * M_PI);
    return dim * log(turns) / (2 * log(c->rope_theta));
}

static void apply_yarn(st_rope *r, const st_model_config *c)
{
    double low = floor(correction_dim(c, r->dim, c->yarn_beta_fast));
    double high = ceil(correction_dim(c, r->dim, c->yarn_beta_slow));
    low = fmax(low, 0);
    high = fmin(high, r->dim - 1);
    if (high <= low)
        high = low + 0.001; /* a step instead of a ramp, without dividing by zero */
    for (int32_t i = 0; i < r->dim / 2; i++) {
        double ramp = fmin(fmax((i - low) / (high - low), 0), 1);
        double interpolated = r->inv_freq[i] / c->yarn_factor;
        r->inv_freq[i] = interpolated * ramp + r->inv_freq[i] * (1 - ramp);
    }
    r->magnitude = c->rope_attention_factor;
}

st_status st_rope_init(st_rope *r, const st_model_config *c, st_error *err)
{
    r->dim = c->attn == ST_ATTN_MLA ? c->qk_rope_head_dim : c->head_dim;
    r->interleaved = c->rope_interleaved;
    r->magnitude = 1;
    if (r->dim <= 0 || r->dim % 2 || r->dim > ST_ROPE_MAX_DIM)
        return st_fail(err, ST_EUNSUPPORTED,
                       "config.json: %d rotary dimensions a head: expected an even number from 2 "
                       "to %d",
                       r->dim, ST_ROPE_MAX_DIM);
    for (int32_t i = 0; i < r->dim / 2; i++)
        r->inv_freq[i] = pow(c->rope_theta, -2.0 * i / r->dim);
    if (c->yarn)
        apply_yarn(r, c);
    return ST_OK;
}

void st_rope_cos_sin(const st_rope *r, int32_t pos, float *cos_sin)
{
    int32_t half = r->dim / 2;
    for (int32_t i = 0; i < half; i++) {
        double s, c;
        sincos(pos * r->inv_freq[i], &s, &c);
        cos_sin[i] = (float)(c * r->magnitude);
        cos_sin[half + i] = (float)(s * r->magnitude);
    }
}
