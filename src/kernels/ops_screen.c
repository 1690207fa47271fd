/* Screened products: see ops_screen.h. Outputs are judged in units of some columns: whole blocks of
 * the packs, since a kernel computes no less. */
#include "kernels/ops_screen.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/float_bits.h"
#include "kernels/ops_internal.h"

enum {
    UNIT_COLUMNS = 32, /* at least */
    UNITS_PER_TASK = 8,
    MOST_UNIT = 64,     /* columns of a unit at most, since pack_cols is no more */
    JUDGE_LANES = 8,    /* side by side, so that the compiler makes vectors */
    EXACT_PER_TASK = 4, /* units that one task computes exactly */
    EXACT_FETCH = 4096, /* bytes of the next unit asked for before this one is computed */
    /* Above one unit in so many the exact product, read in order, is no slower. */
    WORTH_IT = 4
};

/* Rounding of the sums that make bounds: far more than double needs, far less than matters. */
static const double margin = 1 + 1e-6;

struct st_screen {
    const st_packed *exact, *approx, *bound;
    int32_t unit, n_units;
    float *low;  /* [ST_SCREEN_ROWS][n_units] what a unit's largest output reaches for certain */
    float *high; /* what it can be at most; infinite when something is not a number */
    float *most; /* [n_units][2] the largest of each bound among a unit's columns */
    bool has_most;
    int32_t *open; /* [ST_SCREEN_ROWS][n_units] a row's units that are to be computed exactly */
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

static size_t room_of(int32_t n_units)
{
    return (size_t)n_units *
           (ST_SCREEN_ROWS * (2 * sizeof(float) + sizeof(int32_t)) + 2 * sizeof(float));
}

size_t st_screen_bytes(int32_t n)
{
    return sizeof(st_screen) + room_of(n / UNIT_COLUMNS + 1);
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
    s->low = malloc(room_of(s->n_units));
    if (!s->low) {
        st_screen_free(s);
        return st_fail(err, ST_ENOMEM, "no memory for the screen of %d outputs", exact->n);
    }
    s->high = s->low + ST_SCREEN_ROWS * (size_t)s->n_units;
    s->most = s->high + ST_SCREEN_ROWS * (size_t)s->n_units;
    s->open = (int32_t *)(s->most + 2 * (size_t)s->n_units);
    *out = s;
    return ST_OK;
}

void st_screen_free(st_screen *s)
{
    if (!s)
        return;
    free(s->low);
    free(s);
}

/* ---- one call ---- */

typedef struct screen_run {
    st_ops *ops;
    st_screen *s;
    const st_act *a;
    const float *sizes;  /* [a->m][2] what a row's bounds are made of */
    const int32_t *best; /* wanted of each row */
    float *y;
    size_t ldy;
    int32_t n_open[ST_SCREEN_ROWS];        /* units in `open`; -1: too many, or not finite */
    size_t first_task[ST_SCREEN_ROWS + 1]; /* of each row's */
} screen_run;

/* Columns [*j, returned) of a unit. */
static int32_t unit_columns(const st_screen *s, int32_t unit, int32_t *j)
{
    *j = unit * s->unit;
    return s->exact->n - *j < s->unit ? s->exact->n : *j + s->unit;
}

/* The largest bounds of each unit: one for all its columns, so that judging them is finding their
 * largest output. Taken out of the pack, whose form is the table's, by a product. */
static void find_most(st_ops *ops, st_screen *s)
{
    static const float one[4] = {1, 0, 0, 1};
    const st_act a = {.x = (float *)(uintptr_t)one, .ld = 2, .m = 2, .k = 2};
    float b[2 * MOST_UNIT];
    for (int32_t unit = 0; unit < s->n_units; unit++) {
        int32_t first, n = unit_columns(s, unit, &first) - first;
        st_packed w = *s->bound;
        size_t block = (size_t)(first / ops->k->pack_cols);
        w.data = (const char *)w.data + block * ops->k->pack_block_bytes(s->bound);
        w.n = n;
        ops->k->matmul(b, MOST_UNIT, &a, &w, 0, n);
        for (int i = 0; i < 2; i++) {
            float most = 0;
            for (int32_t j = 0; j < n; j++)
                most = b[i * MOST_UNIT + j] > most ? b[i * MOST_UNIT + j] : most;
            s->most[2 * unit + i] = most;
        }
    }
    s->has_most = true;
}

/* The largest of n approximate outputs, infinite when one is not a number; y itself is done with.
 */
static float largest(float *y, int32_t n)
{
    float most[JUDGE_LANES], bad[JUDGE_LANES] = {0};
    for (int i = 0; i < JUDGE_LANES; i++)
        most[i] = -INFINITY;
    for (int32_t j = 0; j < n; j += JUDGE_LANES) {
        int lanes = n - j < JUDGE_LANES ? n - j : JUDGE_LANES;
        for (int i = 0; i < lanes; i++) {
            float v = y[j + i];
            most[i] = v > most[i] ? v : most[i];
            bad[i] += v * 0; /* NaN from here on unless v is finite */
            y[j + i] = -FLT_MAX;
        }
    }
    for (int i = 1; i < JUDGE_LANES; i++) {
        most[0] = most[i] > most[0] ? most[i] : most[0];
        bad[0] += bad[i];
    }
    return bad[0] == 0 ? most[0] : INFINITY;
}

static void judge(const screen_run *r, int32_t unit)
{
    const st_screen *s = r->s;
    const float *most = s->most + 2 * (size_t)unit;
    int32_t first, n = unit_columns(s, unit, &first) - first;
    for (int32_t row = 0; row < r->a->m; row++) {
        size_t at = (size_t)row * (size_t)s->n_units + (size_t)unit;
        float y = largest(r->y + (size_t)row * r->ldy + first, n);
        float b = (r->sizes[2 * row] * most[0] + r->sizes[2 * row + 1] * most[1]) * (float)margin;
        s->low[at] = y - b;
        s->high[at] = y + b < INFINITY ? y + b : INFINITY;
    }
}

static void judge_task(void *arg, size_t task, int worker)
{
    const screen_run *r = arg;
    const st_screen *s = r->s;
    int32_t unit = (int32_t)task * UNITS_PER_TASK, first, end;
    int32_t last = s->n_units - unit < UNITS_PER_TASK ? s->n_units - 1 : unit + UNITS_PER_TASK - 1;
    end = unit_columns(s, last, &first);
    r->ops->k->matmul(r->y, r->ldy, r->a, s->approx, unit * s->unit, end);
    for (; unit <= last; unit++)
        judge(r, unit);
}

static void compute_exactly(const screen_run *r, int32_t row, int32_t unit)
{
    st_act a = *r->a;
    int32_t first, end = unit_columns(r->s, unit, &first);
    a.x += (size_t)row * a.ld;
    a.m = 1;
    r->ops->k->matmul(r->y + (size_t)row * r->ldy, r->ldy, &a, r->s->exact, first, end);
}

/* Puts v into the n largest so far, top[0 .. n), of at most `most`; returns their number. */
static int32_t keep_largest(float *top, int32_t *which, int32_t n, int32_t most, float v, int32_t i)
{
    if (n == most && !(v > top[n - 1]))
        return n;
    int32_t j = n < most ? n++ : n - 1;
    for (; j > 0 && top[j - 1] < v; j--) {
        top[j] = top[j - 1];
        which[j] = which[j - 1];
    }
    top[j] = v;
    which[j] = i;
    return n;
}

/* A value that at least `best` outputs of the row reach: the best-th largest of those in the units
 * with the largest lower ends, which are computed for it. */
static float reached(const screen_run *r, int32_t row, int32_t best)
{
    const st_screen *s = r->s;
    float top[ST_SCREEN_BEST], *high = s->high + (size_t)row * (size_t)s->n_units;
    const float *low = s->low + (size_t)row * (size_t)s->n_units;
    int32_t units[ST_SCREEN_BEST], which[ST_SCREEN_BEST], n = 0, found = 0;
    for (int32_t i = 0; i < s->n_units; i++)
        n = keep_largest(top, units, n, best, low[i], i);
    if (n < best)
        return -INFINITY;
    for (int32_t i = 0; i < n; i++) {
        int32_t j, end = unit_columns(s, units[i], &j);
        const float *y = r->y + (size_t)row * r->ldy;
        compute_exactly(r, row, units[i]);
        high[units[i]] = -INFINITY; /* nothing open here any more */
        for (; j < end; j++)
            found = keep_largest(top, which, found, best, y[j], j);
    }
    return top[best - 1];
}

/* Which of a row's units are open still. */
static void choose_task(void *arg, size_t task, int worker)
{
    screen_run *r = arg;
    const st_screen *s = r->s;
    size_t at = task * (size_t)s->n_units;
    const float *high = s->high + at;
    int32_t n = 0, *open = s->open + at;
    float most = -INFINITY;
    r->n_open[task] = -1;
    for (int32_t i = 0; i < s->n_units; i++)
        most = high[i] > most ? high[i] : most;
    if (most == INFINITY)
        return;
    float least = reached(r, (int32_t)task, r->best[task]);
    for (int32_t i = 0; i < s->n_units; i++) {
        open[n] = i;
        n += high[i] >= least;
    }
    r->n_open[task] = n <= s->n_units / WORTH_IT ? n : -1;
}

static void exact_task(void *arg, size_t task, int worker)
{
    const screen_run *r = arg;
    const st_screen *s = r->s;
    const size_t unit_bytes =
        r->ops->k->pack_block_bytes(s->exact) * (size_t)(s->unit / r->ops->k->pack_cols);
    int32_t row = st_ops_owner(r->first_task, r->a->m, task);
    int32_t i = (int32_t)(task - r->first_task[row]) * EXACT_PER_TASK;
    int32_t end = r->n_open[row] - i < EXACT_PER_TASK ? r->n_open[row] : i + EXACT_PER_TASK;
    const int32_t *open = s->open + (size_t)row * (size_t)s->n_units;
    for (; i < end; i++) {
        const char *next = (const char *)s->exact->data;
        size_t bytes = i + 1 < end ? EXACT_FETCH : 0;
        next += i + 1 < end ? (size_t)open[i + 1] * unit_bytes : 0;
        for (size_t b = 0; b < bytes && b < unit_bytes; b += 64)
            __builtin_prefetch(next + b, 0, 2);
        compute_exactly(r, row, open[i]);
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

/* At most ST_SCREEN_ROWS rows. */
static bool screen_rows(st_ops *ops, st_screen *s, const st_act *a, const int32_t *best, float *y,
                        size_t ldy)
{
    float sizes[2 * ST_SCREEN_ROWS];
    screen_run r = {.ops = ops, .s = s, .a = a, .sizes = sizes, .best = best, .y = y, .ldy = ldy};
    for (int32_t i = 0; i < a->m; i++)
        sizes_of(a, i, sizes + 2 * i);
    if (!s->has_most)
        find_most(ops, s);
    st_ops_run_shares(ops, ((size_t)s->n_units + UNITS_PER_TASK - 1) / UNITS_PER_TASK, judge_task,
                      &r);
    st_pool_run(ops->pool, (size_t)a->m, choose_task, &r);
    size_t tasks = 0;
    for (int32_t i = 0; i < a->m; i++) {
        if (r.n_open[i] < 0)
            return false;
        r.first_task[i] = tasks;
        tasks += ((size_t)r.n_open[i] + EXACT_PER_TASK - 1) / EXACT_PER_TASK;
    }
    r.first_task[a->m] = tasks;
    st_pool_run(ops->pool, tasks, exact_task, &r);
    return true;
}

static bool screen_all(st_ops *ops, st_screen *s, const st_act *a, const int32_t *best, float *y,
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

bool st_op_screened(st_ops *ops, st_screen *s, const st_act *a, const int32_t *best, float *y,
                    size_t ldy)
{
    uint64_t start = st_now_ns();
    bool done = screen_all(ops, s, a, best, y, ldy);
    ops->ns[ST_OP_HEAD] += st_now_ns() - start;
    return done;
}
