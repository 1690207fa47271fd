/* The list of packs and the parallel work on them: see pack_plan.h. Work is cut into pieces of
 * whole blocks, whose bounds depend on shapes alone: a pack's checksum is that of its pieces'. */
#include "model/pack_plan.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "base/checked.h"

enum {
    PIECE_BYTES = 1 << 20,
    GROUP_PIECES = 128, /* between two reports of progress */
    SAMPLES = 16,
    ALIGN = 64
};

static st_status no_memory(st_error *err)
{
    return st_fail(err, ST_ENOMEM, "no memory for the work of packing weights");
}

static size_t rounded_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* --- the list ---------------------------------------------------------------------------- */

static size_t source_bytes(const st_weight_source *s)
{
    size_t bytes = 0;
    const st_weight_source *all = s->base ? s->base : s;
    for (int i = 0; i < ST_SOURCE_TENSORS; i++)
        bytes += s->tensor[i] ? s->tensor[i]->bytes : 0;
    /* A slice's share; at least one byte a row, so that progress moves. */
    double share = (double)s->n * s->k / ((double)all->n * all->k);
    return (size_t)((double)bytes * share) + (size_t)s->n;
}

static st_status place(st_pack_plan *p, st_pack_item *item, st_error *err)
{
    size_t end;
    item->block_bytes = p->k->pack_block_bytes(&item->shape);
    item->offset = rounded_up(p->bytes, ALIGN);
    if (!st_mul_size(item->block_bytes, item->n_blocks, &item->bytes) ||
        !st_add_size(item->offset, item->bytes, &end) || end > SIZE_MAX / 2)
        return st_fail(err, ST_EINVAL, "%s: packed weights [%d, %d] are more than a number holds",
                       item->name, item->shape.n, item->shape.k);
    p->bytes = end;
    return ST_OK;
}

st_status st_pack_plan_add(st_pack_plan *p, const char *name, const st_weight_source *source,
                           st_packed *out, st_error *err)
{
    if (p->n == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 256;
        st_pack_item *items = realloc(p->items, cap * sizeof *items);
        if (!items)
            return no_memory(err);
        p->items = items;
        p->cap = cap;
    }
    st_pack_item *item = &p->items[p->n];
    *item = (st_pack_item){.name = name, .source = *source, .out = out};
    item->shape = (st_packed){.type = source->type,
                              .n = source->n,
                              .k = source->k,
                              .group = source->group,
                              .has_zero = source->has_zero,
                              .scale = source->scale};
    item->n_blocks =
        rounded_up((size_t)source->n, (size_t)p->k->pack_cols) / (size_t)p->k->pack_cols;
    item->row_bytes = source_bytes(source) / (size_t)source->n;
    st_status status = out ? place(p, item, err) : ST_OK;
    if (status)
        return status;
    if (out)
        *out = item->shape;
    p->n_sources += item->row_bytes * (size_t)source->n;
    p->n++;
    return ST_OK;
}

void st_pack_plan_free(st_pack_plan *p)
{
    free(p->items);
    *p = (st_pack_plan){0};
}

void st_pack_plan_bind(const st_pack_plan *p, const void *base)
{
    for (size_t i = 0; i < p->n; i++)
        if (p->items[i].out)
            p->items[i].out->data = (const char *)base + p->items[i].offset;
}

/* --- pieces ------------------------------------------------------------------------------ */

/* Blocks [b0, b1) of an item. */
typedef struct piece {
    const st_pack_item *item;
    size_t b0, b1;
} piece;

typedef struct piece_list {
    piece *at;
    size_t n;
    const st_pack_item **order; /* [p->n] */
    size_t most_bytes;          /* of a piece of the region */
} piece_list;

static size_t blocks_per_piece(const st_pack_plan *p, const st_pack_item *item)
{
    size_t size = item->out ? item->block_bytes : item->row_bytes * (size_t)p->k->pack_cols;
    size_t blocks = PIECE_BYTES / (size ? size : 1);
    return blocks < 1 ? 1 : blocks > item->n_blocks ? item->n_blocks : blocks;
}

static int by_source(const void *a, const void *b)
{
    const st_pack_item *x = *(const st_pack_item *const *)a, *y = *(const st_pack_item *const *)b;
    uintptr_t px = (uintptr_t)x->source.tensor[0]->data, py = (uintptr_t)y->source.tensor[0]->data;
    if (px != py)
        return (px > py) - (px < py);
    return (x > y) - (x < y); /* slices of one tensor in their own order */
}

static void pieces_free(piece_list *l)
{
    free(l->at);
    free(l->order);
}

/* In the order of the files, or of the region. */
static st_status cut(const st_pack_plan *p, bool of_files, piece_list *l, st_error *err)
{
    *l = (piece_list){.order = malloc((p->n + 1) * sizeof *l->order)};
    for (size_t i = 0; i < p->n; i++) {
        const st_pack_item *item = &p->items[i];
        size_t blocks = blocks_per_piece(p, item);
        size_t bytes = blocks * item->block_bytes;
        l->most_bytes = bytes > l->most_bytes ? bytes : l->most_bytes;
        l->n += (item->n_blocks + blocks - 1) / blocks;
        if (l->order)
            l->order[i] = item;
    }
    l->at = malloc((l->n + 1) * sizeof *l->at);
    if (!l->at || !l->order) {
        pieces_free(l);
        return no_memory(err);
    }
    if (of_files)
        qsort(l->order, p->n, sizeof *l->order, by_source);
    piece *at = l->at;
    for (size_t i = 0; i < p->n; i++) {
        const st_pack_item *item = l->order[i];
        size_t blocks = blocks_per_piece(p, item);
        for (size_t b = 0; b < item->n_blocks; b += blocks)
            *at++ = (piece){item, b, item->n_blocks - b < blocks ? item->n_blocks : b + blocks};
    }
    return ST_OK;
}

/* From the checksums of the pieces of item, whose first is hash[0]. */
static uint64_t hash_of(const st_pack_plan *p, const st_pack_item *item, const uint64_t *hash)
{
    size_t blocks = blocks_per_piece(p, item), n = (item->n_blocks + blocks - 1) / blocks;
    return XXH3_64bits(hash, n * sizeof *hash);
}

/* --- loops over pieces ------------------------------------------------------------------- */

typedef struct pack_run {
    const st_pack_plan *p;
    const piece_list *pieces;
    const st_pack_sink *sink; /* NULL: base is only hashed */
    const void *base;
    uint64_t *piece_hash; /* [pieces->n]; NULL: not wanted */
    size_t first;         /* piece of task 0 */
    char *memory;         /* per worker: a piece (for a sink without base), then scratch */
    size_t worker_bytes, piece_bytes;
    pthread_mutex_t lock; /* of what follows */
    size_t failed;        /* the first piece that failed, or SIZE_MAX */
    st_error error;
} pack_run;

static void note_failure(pack_run *run, size_t at, const st_error *err)
{
    pthread_mutex_lock(&run->lock);
    if (at < run->failed) {
        run->failed = at;
        run->error = *err;
    }
    pthread_mutex_unlock(&run->lock);
}

/* Rows read at once: whole blocks, and not too few for sources that work on several. */
static int32_t read_rows(const st_pack_plan *p)
{
    enum { LEAST = 32 };
    return p->k->pack_cols < LEAST ? LEAST / p->k->pack_cols * p->k->pack_cols : p->k->pack_cols;
}

static st_status pack_piece(const st_pack_plan *p, const piece *at, char *dst, void *scratch,
                            st_error *err)
{
    const st_pack_item *item = at->item;
    int32_t cols = p->k->pack_cols, n = item->shape.n, step = read_rows(p);
    int32_t end = (size_t)n < at->b1 * (size_t)cols ? n : (int32_t)at->b1 * cols;
    for (int32_t r0 = (int32_t)at->b0 * cols; r0 < end; r0 += step) {
        int32_t r1 = end - r0 < step ? end : r0 + step;
        st_weight_rows rows, block;
        st_status status = st_weight_source_read(&item->source, r0, r1, scratch, &rows, err);
        if (status)
            return status;
        for (int32_t r = r0; item->out && r < r1; r += cols, dst += item->block_bytes) {
            st_weight_rows_from(&rows, r - r0, r1 - r < cols ? r1 - r : cols, &block);
            p->k->pack_block(dst, &item->shape, &block);
        }
    }
    return ST_OK;
}

static void pack_task(void *arg, size_t task, int worker)
{
    pack_run *run = arg;
    size_t i = run->first + task;
    const piece *at = &run->pieces->at[i];
    const st_pack_sink *sink = run->sink;
    char *own = run->memory + (size_t)worker * run->worker_bytes;
    size_t offset = at->item->offset + at->b0 * at->item->block_bytes;
    size_t bytes = (at->b1 - at->b0) * at->item->block_bytes;
    char *dst = sink->base ? (char *)sink->base + offset : own;
    st_error err = {0};
    st_status status = pack_piece(run->p, at, dst, own + run->piece_bytes, &err);
    if (!status && run->piece_hash)
        run->piece_hash[i] = XXH3_64bits(dst, bytes);
    if (!status && !sink->base && at->item->out)
        status = sink->write(sink->user, offset, dst, bytes, &err);
    if (status)
        note_failure(run, i, &err);
}

static void hash_task(void *arg, size_t task, int worker)
{
    pack_run *run = arg;
    const piece *at = &run->pieces->at[run->first + task];
    size_t offset = at->item->offset + at->b0 * at->item->block_bytes;
    run->piece_hash[run->first + task] =
        XXH3_64bits((const char *)run->base + offset, (at->b1 - at->b0) * at->item->block_bytes);
}

/* What a piece counts for in progress. */
static size_t piece_weight(const pack_run *run, const piece *at)
{
    if (!run->sink)
        return (at->b1 - at->b0) * at->item->block_bytes;
    size_t cols = (size_t)run->p->k->pack_cols, n = (size_t)at->item->shape.n;
    size_t r0 = at->b0 * cols, r1 = at->b1 * cols;
    return ((r1 < n ? r1 : n) - r0) * at->item->row_bytes;
}

/* Gives back the pages of what has been packed: they are not looked at again. */
static void release(const pack_run *run, size_t i, size_t end)
{
    for (; run->p->ckpt && i < end; i++) {
        const piece *at = &run->pieces->at[i];
        for (int t = 0; at->b1 == at->item->n_blocks && t < ST_SOURCE_TENSORS; t++)
            if (at->item->source.tensor[t] && at->item->out)
                st_checkpoint_release(run->p->ckpt, at->item->source.tensor[t]);
    }
}

static st_status run_pieces(pack_run *run, st_pool *pool, st_progress_fn *progress, void *user,
                            st_error *err)
{
    size_t done = 0, total = run->sink ? run->p->n_sources : run->p->bytes;
    for (size_t at = 0; at < run->pieces->n;) {
        size_t end = run->pieces->n - at < GROUP_PIECES ? run->pieces->n : at + GROUP_PIECES;
        run->first = at;
        st_pool_run(pool, end - at, run->sink ? pack_task : hash_task, run);
        if (run->failed != SIZE_MAX) {
            if (err)
                *err = run->error;
            return run->error.status;
        }
        size_t before = done;
        for (size_t i = at; i < end; i++)
            done += piece_weight(run, &run->pieces->at[i]);
        if (run->sink)
            release(run, at, end);
        at = end;
        if (progress && done > before)
            progress(user, done, total);
    }
    return ST_OK;
}

/* --- runs -------------------------------------------------------------------------------- */

static size_t scratch_bytes(const st_pack_plan *p)
{
    size_t most = 0;
    for (size_t i = 0; i < p->n; i++) {
        size_t n = st_weight_source_scratch(&p->items[i].source, read_rows(p));
        most = n > most ? n : most;
    }
    return rounded_up(most, ALIGN);
}

static st_status run_allocate(pack_run *run, st_pool *pool, st_error *err)
{
    size_t all;
    run->piece_bytes = run->sink->base ? 0 : rounded_up(run->pieces->most_bytes, ALIGN);
    run->worker_bytes = run->piece_bytes + scratch_bytes(run->p) + ALIGN;
    if (!st_mul_size(run->worker_bytes, (size_t)st_pool_threads(pool), &all) ||
        !(run->memory = aligned_alloc(ALIGN, all)))
        return no_memory(err);
    if (run->sink->hash && !(run->piece_hash = malloc((run->pieces->n + 1) * sizeof(uint64_t))))
        return no_memory(err);
    return ST_OK;
}

/* Joins the pieces' checksums, in whatever order their items came. */
static void join_hashes(const pack_run *run, uint64_t *hash)
{
    for (size_t i = 0; i < run->pieces->n; i++) {
        const piece *at = &run->pieces->at[i];
        if (at->b0 == 0)
            hash[at->item - run->p->items] =
                at->item->out ? hash_of(run->p, at->item, &run->piece_hash[i]) : 0;
    }
}

st_status st_pack_plan_run(const st_pack_plan *p, st_pool *pool, const st_pack_sink *sink,
                           st_progress_fn *progress, void *user, st_error *err)
{
    piece_list pieces;
    st_status status = cut(p, true, &pieces, err);
    if (status)
        return status;
    pack_run run = {.p = p,
                    .pieces = &pieces,
                    .sink = sink,
                    .lock = PTHREAD_MUTEX_INITIALIZER,
                    .failed = SIZE_MAX};
    if (!(status = run_allocate(&run, pool, err)) &&
        !(status = run_pieces(&run, pool, progress, user, err)) && sink->hash)
        join_hashes(&run, sink->hash);
    pthread_mutex_destroy(&run.lock);
    free(run.memory);
    free(run.piece_hash);
    pieces_free(&pieces);
    return status;
}

st_status st_pack_plan_verify(const st_pack_plan *p, st_pool *pool, const void *base,
                              const uint64_t *hash, st_progress_fn *progress, void *user,
                              size_t *bad, st_error *err)
{
    piece_list pieces;
    st_status status = cut(p, false, &pieces, err);
    if (status)
        return status;
    uint64_t *found = calloc(p->n + 1, sizeof *found);
    pack_run run = {.p = p,
                    .pieces = &pieces,
                    .base = base,
                    .piece_hash = malloc((pieces.n + 1) * sizeof(uint64_t)),
                    .failed = SIZE_MAX};
    status = found && run.piece_hash ? run_pieces(&run, pool, progress, user, err) : no_memory(err);
    if (!status) {
        join_hashes(&run, found);
        for (*bad = 0; *bad < p->n && found[*bad] == hash[*bad]; ++*bad)
            ;
    }
    free(found);
    free(run.piece_hash);
    pieces_free(&pieces);
    return status;
}

/* Which items are sampled: the first of each type, and some others evenly. */
static bool is_sample(const st_pack_plan *p, size_t i, unsigned *types)
{
    const st_pack_item *item = &p->items[i];
    unsigned type = 1u << item->shape.type;
    bool first = item->out && !(*types & type);
    if (item->out)
        *types |= type;
    return item->out && (first || i % (p->n / SAMPLES + 1) == 0);
}

st_status st_pack_plan_sample(const st_pack_plan *p, const void *base, size_t *bad, st_error *err)
{
    size_t scratch = scratch_bytes(p), most = 0;
    unsigned types = 0;
    st_status status = ST_OK;
    for (size_t i = 0; i < p->n; i++)
        most = p->items[i].block_bytes > most ? p->items[i].block_bytes : most;
    char *memory = aligned_alloc(ALIGN, rounded_up(scratch + most + 1, ALIGN));
    if (!memory)
        return no_memory(err);
    *bad = p->n;
    for (size_t i = 0; !status && *bad == p->n && i < p->n; i++) {
        const st_pack_item *item = &p->items[i];
        if (!is_sample(p, i, &types))
            continue;
        size_t b = (i * 7) % item->n_blocks;
        const piece at = {item, b, b + 1};
        memset(memory + scratch, 0, item->block_bytes);
        status = pack_piece(p, &at, memory + scratch, memory, err);
        if (!status &&
            memcmp(memory + scratch, (const char *)base + item->offset + b * item->block_bytes,
                   item->block_bytes) != 0)
            *bad = i;
    }
    free(memory);
    return status;
}
