/* Threaded operators: what the model's layers call. They split work into tasks that never cut an
 * output element, run them on the pool, and keep every element's reduction order fixed. No
 * allocation: scratch lives in st_ops and is sized when it is made. */
#ifndef ST_KERNELS_OPS_H
#define ST_KERNELS_OPS_H

#include "base/threads.h"
#include "kernels/kernels.h"

typedef struct st_ops st_ops;

/* max_attn: the largest attention shape that will be used (NULL: none). pool may be NULL (one
 * thread) and must outlive the result. */
ST_NODISCARD st_status st_ops_new(const st_kernels *k, st_pool *pool, const st_attn_shape *max_attn,
                                  st_ops **out, st_error *err);
void st_ops_free(st_ops *ops);
const st_kernels *st_ops_kernels(const st_ops *ops);
st_pool *st_ops_pool(const st_ops *ops);

/* y[m, w->n] (row stride ldy) = a . W^T (+ bias[n] when not NULL). I8 and I4 need a.q. */
typedef struct st_matmul_job {
    const st_packed *w;
    st_act a;
    float *y;
    size_t ldy;
    const float *bias;
} st_matmul_job;

/* Runs all jobs as one task list (the experts of a layer; q, k and v; gate and up). */
void st_op_matmul(st_ops *ops, const st_matmul_job *jobs, int n_jobs);

/* Attention over a whole batch: tasks over sequences, query groups and head groups.
 * mla selects attention_mla or attention_gqa; layouts as in kernels.h. */
void st_op_attention(st_ops *ops, bool mla, float *out, const float *q, const st_attn_shape *shape,
                     const st_kv_layer *kv, const st_attn_seq *seqs, int n_seqs);

/* MLA over expanded keys and values: each head's key is [nope | rope], made of a latent row by
 * wk and of its rotated part as it is, its value [v] is made by wv. */
typedef struct st_expand_shape {
    int32_t n_heads, kv_lora, nope, rope, v;
    float scale;
} st_expand_shape;

typedef struct st_expand_job {
    st_expand_shape shape;
    /* [n_heads] of [nope, kv_lora] and [v, kv_lora]. All of integers, or none: with integers the
     * latents are quantized per token. */
    const st_packed *wk, *wv;
    const float *q;        /* [rows][n_heads][nope + rope], rotated */
    float *out;            /* [rows][n_heads][v] */
    const st_kv_layer *kv; /* rows [kv_lora | rope] */
    const st_attn_seq *seqs;
    int n_seqs;
} st_expand_job;

/* Makes the scratch for steps of at most max_queries rows; before the first such attention.
 * shared_rows: latents of a step that are quantized once for all heads rather than by each, where
 * weights are integers. */
ST_NODISCARD st_status st_ops_use_expanded(st_ops *ops, const st_expand_shape *shape,
                                           int max_queries, int shared_rows, st_error *err);
/* What that takes; SIZE_MAX: more than a number holds. */
size_t st_ops_expanded_bytes(const st_kernels *k, const st_expand_shape *shape, int max_queries,
                             int shared_rows, int threads);
void st_op_attention_expanded(st_ops *ops, const st_expand_job *job);

/* Time spent per kind of operator since the last reset, nanoseconds of wall time on the caller:
 * for `starling bench`. */
typedef enum st_op_kind {
    ST_OP_MATMUL_F,
    ST_OP_MATMUL_I8,
    ST_OP_ATTENTION,
    ST_OP_NORM,
    ST_OP_QUANTIZE,
    ST_OP_ELEMENTWISE,
    ST_OP_ROUTER,
    ST_OP_EXPERTS, /* gated MLPs, dense ones too: products, activation, quantization */
    ST_OP_HEAD,    /* the best logits by their screen */
    ST_OP_KIND_COUNT
} st_op_kind;
/* Runs a loop of the caller's own making on the pool and books its time under kind. */
void st_op_run(st_ops *ops, st_op_kind kind, size_t n_tasks, st_task_fn *fn, void *arg);
/* The same for tasks that read weights and lie side by side in memory: a thread takes neighbours
 * one after the other. */
void st_op_run_neighbours(st_ops *ops, st_op_kind kind, size_t n_tasks, st_task_fn *fn, void *arg);
const char *st_op_kind_name(st_op_kind kind);
void st_ops_profile(const st_ops *ops, uint64_t ns[ST_OP_KIND_COUNT]);
void st_ops_profile_reset(st_ops *ops);

#endif
