/* What the operator files share. */
#ifndef ST_KERNELS_OPS_INTERNAL_H
#define ST_KERNELS_OPS_INTERNAL_H

#include <stdatomic.h>

#include "base/clock.h"
#include "kernels/ops.h"

enum {
    OPS_SLICE = 1024, /* jobs or sequences planned at once */
    /* Rows (query, head) that attention handles together: KV is read once for them. */
    OPS_ATTN_ROWS = 64,
    OPS_ATTN_I8_ROWS = 128, /* of I8 rows: preparing them costs more beside faster products */
    EXPERT_MOST_ROWS = 288  /* of an expert's gate|up or down task */
};

/* Tasks [first, end) that a thread has not taken yet: its own from the front, others' from the
 * back. A cache line of its own. */
typedef struct st_ops_share {
    _Alignas(64) _Atomic uint64_t left; /* low half: first; high half: end */
} st_ops_share;

struct st_ops {
    const st_kernels *k;
    st_pool *pool;
    uint64_t ns[ST_OP_KIND_COUNT];
    size_t first_task[OPS_SLICE + 1]; /* of each job or sequence in the running slice */
    st_ops_share *shares;             /* [threads] */
    unsigned char *scratch;           /* one piece per worker */
    size_t scratch_bytes;             /* of a piece */
    float *parts;                     /* split attention's intermediate results */
    size_t parts_cap;                 /* in floats */
    float *expert_scratch;            /* a block of gate and of up for each worker */
    size_t expert_floats;             /* of a worker */
    unsigned char *expand_scratch;    /* expanded attention: one piece per worker */
    size_t expand_bytes;              /* of a piece */
    int expand_queries;               /* that a piece has room for */
    unsigned char *shared_latents;    /* behind the pieces: tiles of quantized latents */
    size_t shared_tiles;              /* that there is room for */
    size_t first_tile[OPS_SLICE + 1]; /* of each sequence in the running slice */
};

/* The job or sequence that task belongs to: the last i with first_task[i] <= task. */
static inline int st_ops_owner(const size_t *first_task, int n, size_t task)
{
    int lo = 0, hi = n;
    while (hi - lo > 1) {
        int mid = lo + (hi - lo) / 2;
        if (first_task[mid] <= task)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

/* Runs tasks [0, n_tasks), each thread a share of neighbours in order, and at the end of others'
 * shares what they have not come to. For tasks that read weights: what is next in memory is next in
 * time. */
void st_ops_run_shares(st_ops *ops, size_t n_tasks, st_task_fn *fn, void *arg);

/* Runs a loop, without waking the pool when all of it is less work than a wake-up. */
static inline void st_ops_run(st_ops *ops, bool tiny, size_t n_tasks, st_task_fn *fn, void *arg)
{
    st_pool_run(tiny ? NULL : ops->pool, n_tasks, fn, arg);
}

#endif
