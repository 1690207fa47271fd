/* Rows of a block table as pieces of memory, and the book of which rows were seen. */
#include "transfer/kv_row_ranges.h"

#include <stdlib.h>

int32_t kv_blocks_of(const st_kv_store *s, int32_t n_tokens)
{
    return (int32_t)(((int64_t)n_tokens + s->block_size - 1) / s->block_size);
}

size_t kv_piece_max(const st_kv_store *s, int32_t count)
{
    return (size_t)(count / s->block_size) + 2;
}

size_t kv_pieces(const st_kv_store *s, int32_t layer, const int32_t *blocks, int32_t first,
                 int32_t count, kv_piece *out)
{
    size_t n = 0;
    while (count > 0) {
        int32_t in_block = first % s->block_size;
        int32_t take = s->block_size - in_block < count ? s->block_size - in_block : count;
        unsigned char *data = s->layers[layer] +
                              (size_t)blocks[first / s->block_size] * s->block_bytes +
                              (size_t)in_block * s->row_bytes;
        size_t bytes = (size_t)take * s->row_bytes;
        if (n && out[n - 1].data + out[n - 1].bytes == data)
            out[n - 1].bytes += bytes;
        else
            out[n++] = (kv_piece){data, bytes};
        first += take;
        count -= take;
    }
    return n;
}

bool kv_coverage_init(kv_coverage *c, int32_t n_layers, int32_t from, int32_t to)
{
    *c = (kv_coverage){.n_layers = n_layers, .from = from, .to = to};
    c->words = ((size_t)(to - from) + 63) / 64;
    c->missing = (uint64_t)n_layers * (uint64_t)(to - from);
    c->bits = calloc((size_t)n_layers * c->words + 1, sizeof *c->bits);
    return c->bits != NULL;
}

void kv_coverage_free(kv_coverage *c)
{
    free(c->bits);
    c->bits = NULL;
}

/* The bits of word w that belong to [lo, hi). */
static uint64_t mask_of(size_t w, size_t lo, size_t hi)
{
    uint64_t m = UINT64_MAX;
    if (lo > w * 64)
        m &= UINT64_MAX << (lo - w * 64);
    if (hi < (w + 1) * 64)
        m &= UINT64_MAX >> ((w + 1) * 64 - hi);
    return m;
}

bool kv_coverage_take(kv_coverage *c, int32_t layer, int32_t first, int32_t count)
{
    size_t lo = (size_t)(first - c->from), hi = lo + (size_t)count;
    uint64_t *bits = c->bits + (size_t)layer * c->words;
    for (size_t w = lo / 64; w * 64 < hi; w++)
        if (bits[w] & mask_of(w, lo, hi))
            return false;
    for (size_t w = lo / 64; w * 64 < hi; w++)
        bits[w] |= mask_of(w, lo, hi);
    c->missing -= (uint64_t)count;
    return true;
}
