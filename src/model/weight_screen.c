/* The two sources of a head's screen (kernels/ops_screen.h): INT8 rows and bounds, both made of the
 * head's own floats while they are packed. */
#include "kernels/ops_screen.h"
#include "model/weight_source.h"

static size_t aligned(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

/* INT8 rows first, then their scales, then what base needs. */
static size_t q_bytes(const st_weight_source *s, int32_t n_rows)
{
    return aligned((size_t)n_rows * (size_t)s->k);
}

static size_t approx_scratch(const st_weight_source *s, int32_t n_rows)
{
    return q_bytes(s, n_rows) + aligned((size_t)n_rows * sizeof(float)) +
           st_weight_source_scratch(s->base, n_rows);
}

static st_status approx_read(const st_weight_source *s, int32_t r0, int32_t r1, void *scratch,
                             st_weight_rows *out, st_error *err)
{
    int32_t n = r1 - r0;
    float *scale = (float *)(void *)((char *)scratch + q_bytes(s, n));
    void *below = (char *)scale + aligned((size_t)n * sizeof(float));
    st_weight_rows rows;
    st_status status = st_weight_source_read(s->base, r0, r1, below, &rows, err);
    if (status)
        return status;
    st_screen_rows(&rows, &(st_screen_out){.q = scratch, .scale = scale});
    *out =
        (st_weight_rows){.type = ST_WEIGHT_I8, .n = n, .k = s->k, .data = scratch, .scale = scale};
    return ST_OK;
}

static size_t bound_scratch(const st_weight_source *s, int32_t n_rows)
{
    return aligned(2 * (size_t)n_rows * sizeof(float)) + st_weight_source_scratch(s->base, n_rows);
}

static st_status bound_read(const st_weight_source *s, int32_t r0, int32_t r1, void *scratch,
                            st_weight_rows *out, st_error *err)
{
    int32_t n = r1 - r0;
    st_weight_rows rows;
    st_status status = st_weight_source_read(
        s->base, r0, r1, (char *)scratch + aligned(2 * (size_t)n * sizeof(float)), &rows, err);
    if (status)
        return status;
    st_screen_rows(&rows, &(st_screen_out){.bound = scratch});
    *out = (st_weight_rows){.type = ST_WEIGHT_F32, .n = n, .k = s->k, .data = scratch};
    return ST_OK;
}

static const st_weight_reader approx_reader = {approx_scratch, approx_read, NULL};
static const st_weight_reader bound_reader = {bound_scratch, bound_read, NULL};

void st_weight_source_screen(const st_weight_source *base, st_weight_source *approx,
                             st_weight_source *bound)
{
    *approx = *base;
    approx->base = base;
    *bound = *approx;
    approx->reader = &approx_reader;
    approx->type = ST_WEIGHT_I8;
    bound->reader = &bound_reader;
    bound->type = ST_WEIGHT_F32;
    bound->k = 2;
}
