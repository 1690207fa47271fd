/* Cuts a product with packed weights into tiles: see packed_run.h.
 *
 * Up to a tile's rows of x: each block is read once, strictly in order, all of k at a time.
 * More rows: parts of k whose x stays in L2 while blocks pass by, each block's part taken by one
 * strip of rows after the other. Whatever comes next from memory is prefetched into L2, spread over
 * the strips that compute meanwhile, beyond the last column too: the thread that asked for these
 * columns most likely goes on with the next. */
#include "kernels/packed_run.h"

enum {
    PART_BYTES = 2048, /* of a row of x: a strip of 12 and some weights fit in L1 */
    /* Of floats: longer parts, as these also leave and fetch y less often. */
    FLOAT_PART = ST_TILE_UNPACKED * 4,
    PANEL_BYTES = 384 << 10, /* rows of x that stay in L2 */
    /* How far a single strip prefetches: what a core needs on the way to read at full speed. */
    AHEAD = 8192
};

typedef struct run {
    const st_tile_set *set;
    const st_act *a;
    const st_packed *w;
    float *y;
    size_t ldy, x_bytes, step_bits; /* of an x; of a block per input */
    st_pack_layout layout;
    int n0, n1, part, unaided;
    bool int8;    /* x's int8 form is read */
    bool cold;    /* the first strip waits for weights that nobody has prefetched */
    float *panel; /* weights as floats, NULL: as they are */
} run;

/* Bytes of a block before input k, which starts a part or is their end: all of the block then, with
 * the scales that may stand behind its weights. */
static size_t bytes_before(const run *r, int k)
{
    if (k >= r->w->k)
        return r->layout.block_bytes;
    return r->layout.group_bytes ? (size_t)(k / r->w->group) * r->layout.group_bytes
                                 : (size_t)k * r->step_bits / 8;
}

/* Rows up to which nothing is prefetched: where a line of weights is spent in so few instructions
 * that those the processor looks ahead at reach memory's latency, its own prefetching does better
 * than ours, which shares the buffers that loads wait in. */
static int unaided_rows(const st_packed *w, bool int8)
{
    switch (w->type) {
    case ST_WEIGHT_F32:
        return 3;
    case ST_WEIGHT_F16:
    case ST_WEIGHT_BF16:
        return 1;
    case ST_WEIGHT_I8:
        return int8 ? 5 : 0;
    case ST_WEIGHT_I4:
        return int8 ? 2 : 0;
    default:
        return 0;
    }
}

static const unsigned char *piece(const run *r, int j, int k0)
{
    return (const unsigned char *)r->w->data + (size_t)(j / r->set->cols) * r->layout.block_bytes +
           bytes_before(r, k0);
}

static int part_end(const run *r, int k0)
{
    return r->w->k - k0 < r->part ? r->w->k : k0 + r->part;
}

/* What follows the part [k0, k1) of the block at column j: at the very end the block that the same
 * thread most likely comes to next, an empty range where the matrix ends. */
static void next_piece(const run *r, int j, int k0, const unsigned char **from,
                       const unsigned char **to)
{
    j += r->set->cols;
    if (j >= r->n1) {
        k0 = part_end(r, k0);
        if (k0 < r->w->k)
            j = r->n0;
        else
            k0 = 0;
    }
    *from = *to = NULL;
    if (j >= r->w->n)
        return;
    *from = piece(r, j, k0);
    *to = piece(r, j, part_end(r, k0));
}

/* Asks for the lines of y that a tile will write: its stores would wait for one after the other. */
static void fetch_outputs(const st_tile *t, int rows)
{
    for (int i = 0; i < rows; i++) {
        const float *y = t->y + (size_t)i * t->ldy;
        for (int j = 0; j < t->cols; j += ST_TILE_LINE / (int)sizeof *y)
            __builtin_prefetch(y + j, 1, 3);
    }
}

static void run_strips(run *r, st_tile *t, int j, int row0, int row1)
{
    const st_tile_set *set = r->set;
    int m = row1 - row0, strips = (m + set->rows - 1) / set->rows;
    const unsigned char *next, *next_end;
    next_piece(r, j, t->k0, &next, &next_end);
    int fetchers = r->cold && strips > 1 ? strips - 1 : strips;
    size_t share = (size_t)(next_end - next) / (size_t)fetchers / ST_TILE_LINE * ST_TILE_LINE;
    share += ST_TILE_LINE;
    if (r->panel) {
        set->unpack(r->panel, t);
        t->w = (const unsigned char *)r->panel;
        set = set->unpacked;
    }
    for (int s = 0; s < strips; s++) {
        int i0 = row0 + (int)((int64_t)m * s / strips);
        int rows = row0 + (int)((int64_t)m * (s + 1) / strips) - i0;
        size_t i = (size_t)i0;
        if (strips == 1 || (r->cold && s == 0)) {
            /* In order, from one block into the next. */
            const unsigned char *end = piece(r, r->w->n - 1, 0) + r->layout.block_bytes;
            size_t bytes = bytes_before(r, t->k1) - bytes_before(r, t->k0);
            t->fetch = t->w + AHEAD;
            t->fetch_end = t->fetch + (rows <= r->unaided ? 0 : bytes);
            if (t->fetch_end > end)
                t->fetch_end = end;
        } else {
            t->fetch = next;
            t->fetch_end = (size_t)(next_end - next) < share ? next_end : next + share;
            next = t->fetch_end;
        }
        t->y = r->y + i * r->ldy + j;
        t->x = (const char *)(r->int8 ? (const void *)r->a->q : (const void *)r->a->x) +
               i * t->ldx + (size_t)t->k0 * r->x_bytes;
        t->x_scale = r->a->scale ? r->a->scale + i : NULL;
        t->sum = r->a->sum ? r->a->sum + i * t->lds : NULL;
        if (rows > r->unaided)
            fetch_outputs(t, rows);
        set->tile[rows](t);
    }
    r->cold = false;
}

static void run_rows(run *r, int row0, int row1)
{
    st_tile t = {.ldy = r->ldy,
                 .ldx = r->int8 ? r->a->ldq : r->a->ld * sizeof(float),
                 .lds = st_act_sums(r->w->k),
                 .matrix = r->w};
    /* Who asks for later columns has mostly just had those before. */
    r->cold = r->n0 == 0 && !r->panel;
    for (t.k0 = 0; t.k0 < r->w->k; t.k0 = t.k1) {
        t.k1 = part_end(r, t.k0);
        for (int j = r->n0; j < r->n1; j += r->set->cols) {
            t.cols = r->n1 - j < r->set->cols ? r->n1 - j : r->set->cols;
            t.w = piece(r, j, t.k0);
            t.scale = piece(r, j, 0) + r->layout.scale_offset;
            run_strips(r, &t, j, row0, row1);
        }
    }
}

/* Inputs that a tile takes at once when rows need several strips: of I4 whole groups. */
static int part_inputs(const st_packed *w, size_t x_bytes)
{
    int part = (x_bytes == sizeof(float) ? FLOAT_PART : PART_BYTES) / (int)x_bytes;
    if (w->group > 0 && w->type != ST_WEIGHT_F8)
        part = w->group >= part ? w->group : part / w->group * w->group;
    return part < w->k ? part : w->k;
}

/* Chunks of rows, each through all columns. */
static void run_chunks(run *r)
{
    int64_t m = r->a->m, rows = r->set->rows;
    int64_t most = PANEL_BYTES / (r->part * (int64_t)r->x_bytes + 1) / rows * rows;
    most = most < rows ? rows : most;
    int64_t chunks = m <= rows ? 1 : (m + most - 1) / most;
    for (int64_t c = 0; c < chunks; c++)
        run_rows(r, (int)(m * c / chunks), (int)(m * (c + 1) / chunks));
}

/* Weights are unpacked block by block, a part of k each, for all strips of a chunk. */
static void run_unpacked(run *r)
{
    _Alignas(ST_TILE_LINE) float panel[ST_TILE_UNPACKED * ST_TILE_COLS_MAX];
    r->panel = panel;
    run_chunks(r);
}

void st_packed_run(const st_tile_set *set, bool int8, float *y, size_t ldy, const st_act *a,
                   const st_packed *w, st_pack_layout layout, int n0, int n1)
{
    run r = {.set = set, .a = a, .w = w, .y = y, .ldy = ldy, .n0 = n0, .n1 = n1};
    r.layout = layout;
    r.int8 = int8;
    r.unaided = unaided_rows(w, int8);
    r.x_bytes = int8 ? 1 : sizeof(float);
    r.step_bits = (size_t)set->cols * st_weight_bits(w->type);
    r.part = a->m <= set->rows ? w->k : part_inputs(w, r.x_bytes);
    if (a->m <= 0 || n0 >= n1)
        return;
    if (set->unpack && a->m > set->rows)
        run_unpacked(&r);
    else
        run_chunks(&r);
}
