/* FP8: E4M3 weights, and a scale for each block of rows and inputs to multiply with. Blocks at the
 * edges may be smaller. DeepSeek calls the scales weight_scale_inv, compressed-tensors
 * weight_scale. */
#include "model/weight_dialects.h"

enum { F8_WEIGHT, F8_SCALE };

static size_t f8_scratch(const st_weight_source *s, int32_t n_rows)
{
    return (size_t)n_rows * (size_t)st_weight_groups(s->k, s->group) * sizeof(float);
}

/* The kernels take a scale for each row and group: a block's is repeated. */
static st_status f8_read(const st_weight_source *s, int32_t r0, int32_t r1, void *scratch,
                         st_weight_rows *out, st_error *err)
{
    size_t groups = (size_t)st_weight_groups(s->k, s->group);
    float *scale = scratch;
    for (int32_t r = r0; r < r1; r++)
        for (size_t g = 0; g < groups; g++) {
            size_t at = (size_t)(r / s->scale_rows) * groups + g;
            st_status status = st_tensor_scale(s->tensor[F8_SCALE], at, scale++, err);
            if (status)
                return status;
        }
    *out = (st_weight_rows){.type = ST_WEIGHT_F8,
                            .n = r1 - r0,
                            .k = s->k,
                            .group = s->group,
                            .data = (const char *)s->tensor[F8_WEIGHT]->data +
                                    (size_t)r0 * (size_t)s->k,
                            .scale = scratch};
    return ST_OK;
}

static const st_weight_reader f8_reader = {f8_scratch, f8_read, NULL};

st_status st_weight_find_f8(const st_checkpoint *c, const char *name, st_weight_source *s,
                            st_error *err)
{
    const st_quant_config *q = &st_checkpoint_config(c)->quant;
    const st_tensor *t = s->tensor[F8_WEIGHT];
    if (q->method != ST_QUANT_FP8)
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: tensor '%s' is of type F8_E4M3, but config.json has no "
                       "quantization_config with quant_method fp8: expected F32, F16, BF16 or I8",
                       t->file, t->name);
    s->reader = &f8_reader;
    s->type = ST_WEIGHT_F8;
    s->group = q->block_inputs < s->k ? q->block_inputs : s->k;
    s->scale_rows = q->block_rows;
    bool plain = st_tensor_beside(c, name, "weight_scale") != NULL;
    st_status status = st_tensor_of_linear(
        c, name, plain ? "weight_scale" : "weight_scale_inv", st_weight_groups(s->n, q->block_rows),
        st_weight_groups(s->k, s->group), &s->tensor[F8_SCALE], err);
    return status ? status : st_tensor_want_float(s->tensor[F8_SCALE], err);
}
