/* Screened products: see ops_screen.h. Outputs are judged in units of some columns: whole blocks of
 * the packs, since a kernel computes no less. */
#include "kernels/ops_screen.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/float_bits.h"

enum {
    UNIT_COLUMNS = 32, /* at least */
    UNITS_PER_TASK = 64,
    /* Above one unit in so many the exact product, read in order, is no slower. */
    WORTH_IT = 4
};

/* Rounding of the sums that make bounds: far more than double needs, far less than matters. */
static const double margin = 1 + 1e-6;

struct st_screen {
    const st_packed *exact, *approx, *bound;
    int32_t unit, n_units;
    float *range; /* [ST_SCREEN_ROWS][n] bounds */
    float *low;   /* [ST_SCREEN_ROWS][n_units] the largest lower end in a unit */
    float *high;  /* the largest upper end; infinite when something is not a number */
};

static float element(const st_weight_rows *r, size_t i)
{
    uint16_t h;
    float f;
    if (r->type == ST_WEIGHT_F32) {
        memcpy(&f, (const char *)r->data + i * sizeof f, sizeof f);
        return f;
    }
    memcpy(&h, (const char *)r->data + i * sizeof h, sizeof h);
    return r->type == ST_WEIGHT_F16 ? st_f16_to_f32(h) : st_bf16_to_f32(h);
}

void st_screen_rows(const st_weight_rows *rows, const st_screen_out *out)
{
    size_t k = (size_t)rows->k;
    for (size_t r = 0; r < (size_t)rows->n; r++) {
        float most = 0;
        for (size_t i = 0; i < k; i++) {
            float w = fabsf(element(rows, r * k + i));
            most = w > most ? w : most;
        }
        /* A scale too small to divide by stands for weights that are all next to zero. */
        float scale = most / 127;
        bool zero = !(scale >= FLT_MIN);
        if (zero)
            scale = 1;
        double off = 0, size = 0;
        for (size_t i = 0; i < k; i++) {
            float w = element(rows, r * k + i), q = zero ? 0 : rintf(w / scale);
            double v = (double)q * (double)scale, d = (double)w - v;
            off += d * d;
            size += v * v;
            if (out->q)
                out->q[r * k + i] = (int8_t)q;
        }
        if (out->scale)
            out->scale[r] = scale;
        if (out->bound) {
            off = sqrt(off) * margin;
            out->bound[2 * r] = nextafterf((float)off, INFINITY);
            out->bound[2 * r + 1] = nextafterf((float)(sqrt(size) * margin + off), INFINITY);
        }
    }
}

static int32_t unit_of(const st_kernels *k)
{
    return (UNIT_COLUMNS + k->pack_cols - 1) / k->pack_cols * k->pack_cols;
}

size_t st_screen_bytes(int32_t n)
{
    size_t units = (size_t)n / UNIT_COLUMNS + 1;
    return sizeof(st_screen) + ST_SCREEN_ROWS * ((size_t)n + 2 * units) * sizeof(float);
}

st_status st_screen_new(const st_packed *exact, const st_packed *approx, const st_packed *bound,
                        const st_kernels *k, st_screen **out, st_error *err)
{
    *out = NULL;
    st_screen *s = calloc(1, sizeof *s);
    if (!s)
        return st_fail(err, ST_ENOMEM, "no memory for the screen of %d outputs", exact->n);
    s->exact = exact;
    s->approx = approx;
    s->bound = bound;
    s->unit = unit_of(k);
    s->n_units = (exact->n + s->unit - 1) / s->unit;
    size_t units = ST_SCREEN_ROWS * (size_t)s->n_units * sizeof(float);
    s->range = malloc(ST_SCREEN_ROWS * (size_t)exact->n * sizeof(float));
    s->low = malloc(units);
    s->high = malloc(units);
    if (!s->range || !s->low || !s->high) {
        st_screen_free(s);
        return st_fail(err, ST_ENOMEM, "no memory for the screen of %d outputs", exact->n);
    }
    *out = s;
    return ST_OK;
}

void st_screen_free(st_screen *s)
{
    if (!s)
        return;
    free(s->range);
    free(s->low);
    free(s->high);
    free(s);
}

/* ---- one call ---- */

typedef struct screen_run {
    st_ops *ops;
    st_screen *s;
    const st_act *a;
    float *y;
    size_t ldy;
    float least[ST_SCREEN_ROWS]; /* what an output must be able to reach */
} screen_run;

/* Units [*first, returned) of a task; tasks count units row by row. */
static int32_t units_of(const st_screen *s, size_t task, int32_t *row, int32_t *first)
{
    size_t tasks = ((size_t)s->n_units + UNITS_PER_TASK - 1) / UNITS_PER_TASK;
    *row = (int32_t)(task / tasks);
    *first = (int32_t)(task % tasks) * UNITS_PER_TASK;
    return s->n_units - *first < UNITS_PER_TASK ? s->n_units : *first + UNITS_PER_TASK;
}

static void run(screen_run *r, st_task_fn *fn)
{
    size_t tasks = ((size_t)r->s->n_units + UNITS_PER_TASK - 1) / UNITS_PER_TASK;
    st_op_run(r->ops, ST_OP_HEAD, tasks * (size_t)r->a->m, fn, r);
}

static void judge_task(void *arg, size_t task, int worker)
{
    const screen_run *r = arg;
    const st_screen *s = r->s;
    int32_t row, unit, end = units_of(s, task, &row, &unit);
    const float *y = r->y + (size_t)row * r->ldy, *b = s->range + (size_t)row * (size_t)s->exact->n;
    for (; unit < end; unit++) {
        int32_t j = unit * s->unit, n = s->exact->n - j < s->unit ? s->exact->n : j + s->unit;
        float low = -INFINITY, high = -INFINITY, bad = 0;
        for (; j < n; j++) {
            float l = y[j] - b[j], h = y[j] + b[j];
            low = l > low ? l : low;
            high = h > high ? h : high;
            bad += h * 0; /* NaN from here on unless h is finite */
        }
        size_t at = (size_t)row * (size_t)s->n_units + (size_t)unit;
        s->low[at] = low;
        s->high[at] = bad == 0 ? high : INFINITY;
    }
}

static void exact_task(void *arg, size_t task, int worker)
{
    const screen_run *r = arg;
    const st_screen *s = r->s;
    int32_t row, unit, end = units_of(s, task, &row, &unit);
    float *y = r->y + (size_t)row * r->ldy;
    st_act a = *r->a;
    a.x += (size_t)row * a.ld;
    a.m = 1;
    for (; unit < end; unit++) {
        int32_t j = unit * s->unit, n = s->exact->n - j < s->unit ? s->exact->n : j + s->unit;
        if (s->high[(size_t)row * (size_t)s->n_units + (size_t)unit] >= r->least[row])
            st_ops_kernels(r->ops)->matmul(y, r->ldy, &a, s->exact, j, n);
        else
            for (; j < n; j++)
                y[j] = -FLT_MAX;
    }
}

/* (|x|, |x - x8| + gamma |x|) of a row, rounded up. */
static void sizes_of(const st_act *a, int32_t row, float out[2])
{
    const float *x = a->x + (size_t)row * a->ld;
    const int8_t *q = a->q + (size_t)row * a->ldq;
    double size = 0, off = 0;
    for (int32_t i = 0; i < a->k; i++) {
        double d = (double)x[i] - (double)q[i] * (double)a->scale[row];
        size += (double)x[i] * (double)x[i];
        off += d * d;
    }
    size = sqrt(size) * margin;
    /* Twice what k rounded multiply-adds can lose, for the sums in w's and in v's product. */
    double gamma = 0x1p-22 * (a->k + 16);
    out[0] = nextafterf((float)size, INFINITY);
    out[1] = nextafterf((float)(sqrt(off) * margin + gamma * size), INFINITY);
}

/* A value that at least `best` outputs of the row reach for certain: the best-th largest of the
 * units' lower ends. */
static float reached(const st_screen *s, int32_t row, int32_t best)
{
    float top[ST_SCREEN_BEST];
    const float *low = s->low + (size_t)row * (size_t)s->n_units;
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_units; i++) {
        if (n == best && !(low[i] > top[n - 1]))
            continue;
        int32_t j = n < best ? n++ : n - 1;
        for (; j > 0 && top[j - 1] < low[i]; j--)
            top[j] = top[j - 1];
        top[j] = low[i];
    }
    return n == best ? top[best - 1] : -INFINITY;
}

static bool worth_it(const st_screen *s, int32_t row, float least)
{
    const float *high = s->high + (size_t)row * (size_t)s->n_units;
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_units; i++) {
        if (high[i] == INFINITY)
            return false;
        n += high[i] >= least;
    }
    return n <= s->n_units / WORTH_IT;
}

/* At most ST_SCREEN_ROWS rows. */
static bool screen_rows(st_ops *ops, st_screen *s, const st_act *a, const int32_t *best, float *y,
                        size_t ldy)
{
    float sizes[2 * ST_SCREEN_ROWS];
    screen_run r = {.ops = ops, .s = s, .a = a, .y = y, .ldy = ldy};
    for (int32_t i = 0; i < a->m; i++)
        sizes_of(a, i, sizes + 2 * i);
    st_matmul_job jobs[2] = {{.w = s->approx, .a = *a, .y = y, .ldy = ldy},
                             {.w = s->bound,
                              .a = {.x = sizes, .ld = 2, .m = a->m, .k = 2},
                              .y = s->range,
                              .ldy = (size_t)s->exact->n}};
    st_op_matmul(ops, jobs, 2);
    run(&r, judge_task);
    for (int32_t i = 0; i < a->m; i++) {
        r.least[i] = reached(s, i, best[i]);
        if (!worth_it(s, i, r.least[i]))
            return false;
    }
    run(&r, exact_task);
    return true;
}

bool st_op_screened(st_ops *ops, st_screen *s, const st_act *a, const int32_t *best, float *y,
                    size_t ldy)
{
    for (int32_t i = 0; i < a->m; i += ST_SCREEN_ROWS) {
        st_act some = *a;
        some.x += (size_t)i * a->ld;
        some.q += (size_t)i * a->ldq;
        some.scale += i;
        some.sum += (size_t)i * st_act_sums(a->k);
        some.m = a->m - i < ST_SCREEN_ROWS ? a->m - i : ST_SCREEN_ROWS;
        if (!screen_rows(ops, s, &some, best + i, y + (size_t)i * ldy, ldy))
            return false;
    }
    return true;
}
