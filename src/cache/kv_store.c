/* KV memory: one anonymous mapping for all layers (see starling/kv_cache.h). Pages are taken from
 * the system when they are first written, so a large store costs nothing until it is used. */
#include "starling/kv_cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"

#define LAYER_ALIGN 64

typedef struct kv_sizes {
    size_t row_bytes, block_bytes, layer_bytes, total;
} kv_sizes;

typedef struct kv_store_full {
    st_kv_store pub; /* first: the pointer handed out */
    void *map;
    size_t map_bytes;
} kv_store_full;

/* A row's elements fit int32, and so does what I8 adds to them. */
static bool row_makes_sense(st_kv_row_shape row)
{
    if (row.n_vectors < 0 || row.vector < 0 || row.plain < 0)
        return false;
    int64_t elems = (int64_t)row.n_vectors * row.vector;
    return elems <= INT32_MAX / 2 && row.plain <= INT32_MAX / 2 && elems + row.plain > 0 &&
           row.n_vectors <= elems;
}

static st_status measure(int32_t n_layers, int32_t n_blocks, int32_t block_size, st_dtype dtype,
                         st_kv_row_shape row, kv_sizes *z)
{
    if (n_layers < 1 || n_blocks < 1 || block_size < 1 || !row_makes_sense(row))
        return ST_EINVAL;
    if (dtype != ST_BF16 && dtype != ST_F32 && dtype != ST_I8)
        return ST_EINVAL;
    if (dtype == ST_I8)
        z->row_bytes = st_kv_i8_row_bytes(row);
    else if (!st_mul_size((size_t)st_kv_row_elems(row), st_dtype_size(dtype), &z->row_bytes))
        return ST_EINVAL;
    if (!st_mul_size(z->row_bytes, (size_t)block_size, &z->block_bytes) ||
        !st_mul_size(z->block_bytes, (size_t)n_blocks, &z->layer_bytes) ||
        !st_add_size(z->layer_bytes, LAYER_ALIGN - 1, &z->layer_bytes))
        return ST_EINVAL;
    z->layer_bytes &= ~(size_t)(LAYER_ALIGN - 1);
    if (!st_mul_size(z->layer_bytes, (size_t)n_layers, &z->total) || z->total > PTRDIFF_MAX)
        return ST_EINVAL;
    return ST_OK;
}

st_status st_kv_store_bytes(int32_t n_layers, int32_t n_blocks, int32_t block_size, st_dtype dtype,
                            st_kv_row_shape row, size_t *bytes)
{
    kv_sizes z;
    st_status st = measure(n_layers, n_blocks, block_size, dtype, row, &z);
    if (st == ST_OK)
        *bytes = z.total;
    return st;
}

st_status st_kv_store_new(int32_t n_layers, int32_t n_blocks, int32_t block_size, st_dtype dtype,
                          st_kv_row_shape row, st_kv_store **out, st_error *err)
{
    *out = NULL;
    kv_sizes z;
    if (measure(n_layers, n_blocks, block_size, dtype, row, &z) != ST_OK)
        return st_fail(err, ST_EINVAL,
                       "KV cache: %d layers x %d blocks x %d rows x (%d x %d + %d) elements of %s: "
                       "every count must be positive, the type BF16, F32 or I8, and the total "
                       "addressable",
                       n_layers, n_blocks, block_size, row.n_vectors, row.vector, row.plain,
                       st_dtype_name(dtype));
    kv_store_full *s = calloc(1, sizeof *s);
    unsigned char **layers = calloc((size_t)n_layers, sizeof *layers);
    if (!s || !layers) {
        free(s);
        free(layers);
        return st_fail(err, ST_ENOMEM, "KV cache: out of memory");
    }
    void *map = mmap(NULL, z.total, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        int e = errno;
        free(s);
        free(layers);
        return st_fail(err, ST_ENOMEM, "KV cache: cannot map %zu bytes: %s", z.total, strerror(e));
    }
    /* Rows of one block are read together, blocks in any order: larger pages save TLB misses. A
     * refusal only costs speed. */
    (void)madvise(map, z.total, MADV_HUGEPAGE);
    for (int32_t i = 0; i < n_layers; i++)
        layers[i] = (unsigned char *)map + (size_t)i * z.layer_bytes;
    s->map = map;
    s->map_bytes = z.total;
    s->pub = (st_kv_store){.n_layers = n_layers,
                           .n_blocks = n_blocks,
                           .block_size = block_size,
                           .dtype = dtype,
                           .row = row,
                           .row_elems = st_kv_row_elems(row),
                           .row_bytes = z.row_bytes,
                           .block_bytes = z.block_bytes,
                           .layers = layers};
    *out = &s->pub;
    return ST_OK;
}

void st_kv_store_free(st_kv_store *pub)
{
    if (!pub)
        return;
    kv_store_full *s = (kv_store_full *)pub;
    munmap(s->map, s->map_bytes);
    free(s->pub.layers);
    free(s);
}
