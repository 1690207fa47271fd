/* What a model's weights become: a list of packs, where each lies in one region of memory or of a
 * file, and the parallel work of filling, hashing and sampling that region. Knows neither files
 * (pack_cache.h) nor layers (weights.h). */
#ifndef ST_MODEL_PACK_PLAN_H
#define ST_MODEL_PACK_PLAN_H

#include "base/threads.h"
#include "model/weight_source.h"

typedef struct st_pack_item {
    const char *name; /* unique in the plan */
    st_weight_source source;
    st_packed *out;   /* who waits for the pack; NULL: the source is only checked */
    st_packed shape;  /* data is set by st_pack_plan_bind */
    size_t n_blocks;  /* of pack_cols rows each */
    size_t row_bytes; /* a row's share of the source, for progress */
    size_t block_bytes, offset, bytes; /* 0 without out */
} st_pack_item;

typedef struct st_pack_plan {
    const st_checkpoint *ckpt; /* whose pages are given back once packed; NULL: nobody's */
    const st_kernels *k;
    st_pack_item *items;
    size_t n, cap;
    size_t bytes;     /* of the region */
    size_t n_sources; /* bytes that packing reads */
} st_pack_plan;

/* name must live as long as the plan. ST_ENOMEM, or ST_EINVAL when the region's size overflows. */
ST_NODISCARD st_status st_pack_plan_add(st_pack_plan *p, const char *name,
                                        const st_weight_source *source, st_packed *out,
                                        st_error *err);
void st_pack_plan_free(st_pack_plan *p);

/* Where packing goes: a region of memory, or else a function that is called from several threads
 * with one piece each. */
typedef struct st_pack_sink {
    void *base;
    st_status (*write)(void *user, size_t offset, const void *data, size_t n, st_error *err);
    void *user;
    uint64_t *hash; /* [n] receives the checksum of every pack; NULL: not wanted */
} st_pack_sink;

/* Reads, checks and packs everything, in the order of the files. On failure err is that of the
 * first piece in that order. */
ST_NODISCARD st_status st_pack_plan_run(const st_pack_plan *p, st_pool *pool,
                                        const st_pack_sink *sink, st_progress_fn *progress,
                                        void *user, st_error *err);
/* Compares the region at base with checksums [n]; *bad is the first item that differs, or n. */
ST_NODISCARD st_status st_pack_plan_verify(const st_pack_plan *p, st_pool *pool, const void *base,
                                           const uint64_t *hash, st_progress_fn *progress,
                                           void *user, size_t *bad, st_error *err);
/* Packs a few blocks again, of every weight type some, and compares: whether base was made from
 * these sources by these kernels. *bad as above. */
ST_NODISCARD st_status st_pack_plan_sample(const st_pack_plan *p, const void *base, size_t *bad,
                                           st_error *err);
/* Everybody who waits gets its part of the region. */
void st_pack_plan_bind(const st_pack_plan *p, const void *base);

#endif
