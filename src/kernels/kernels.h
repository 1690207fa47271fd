/* The kernel table: one plain C reference and faster twins per instruction set.
 *
 * Chosen once at start by features (st_kernels_select) or by name (STARLING_CPU=ref|avx2|...).
 * A kernel works on one thread; src/kernels/ops.h splits work over the pool. Every output element
 * is reduced in an order fixed by the shapes alone (k, head sizes, key position), never by m, the
 * thread count or what else is in the batch: the same inputs give the same bits at any batch size
 * (ARCHITECTURE.md). Pointers need the alignment of their element type, no more. */
#ifndef ST_KERNELS_KERNELS_H
#define ST_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/packed.h"
#include "starling/dtype.h"
#include "starling/kv_row.h"
#include "starling/status.h"

/* Paged KV memory of one layer. Row r of block b is at base + b*block_stride + r*row_stride.
 * MLA: a row is [kv_lora | rope]. GQA: a row is [n_kv_heads*head_dim of k | the same of v]. I8 rows
 * are laid out as kv_row.h says. */
typedef struct st_kv_layer {
    unsigned char *base;
    size_t block_stride, row_stride; /* bytes */
    int32_t block_size;              /* rows per block */
    st_dtype dtype;                  /* BF16, F32 or I8 */
} st_kv_layer;

/* One sequence's part of a batch for attention: queries at positions pos0 .. pos0+n_q-1, each
 * attending to keys at positions 0 .. its own. */
typedef struct st_attn_seq {
    int32_t q_row; /* first row of q and out */
    int32_t n_q;
    int32_t pos0;
    const int32_t *block_table; /* block of position p: block_table[p / block_size] */
} st_attn_seq;

typedef struct st_attn_shape {
    int32_t n_heads;
    int32_t n_kv_heads; /* GQA only */
    int32_t k_dim;      /* MLA: kv_lora + rope; GQA: head_dim */
    int32_t v_dim;      /* MLA: kv_lora (the row's first part); GQA: head_dim */
    float scale;
} st_attn_shape;

/* One row of a layer's residual stream between two products: x += branch (a sum of parts, with a
 * norm of its own where branch_norm is set), y = norm(x), and y in int8. */
typedef struct st_residual {
    float *x;            /* [d]; only read when there is neither branch nor parts */
    const float *branch; /* [d] or NULL */
    /* branch += part_weight[i] * row part_row[i] of parts, in order */
    const float *parts;
    size_t ld_parts;
    const int32_t *part_row;
    const float *part_weight;
    int n_parts;
    float *branch_sum;        /* [d], may be branch; used with branch_norm */
    const float *branch_norm; /* [d] or NULL */
    const float *norm;        /* [d]; NULL: no y */
    float *y;                 /* [d], may be x when there is nothing to add */
    int8_t *q;                /* as st_act's row, NULL: none */
    float *scale;
    int32_t *sum;
} st_residual;

/* Attention of one head for n_q queries, at positions pos0 on, over keys and values that are dense
 * float rows for a moment only: expanded MLA makes them tile by tile. Query i sees the keys at
 * positions 0 .. pos0 + i. */
typedef struct st_dense_attn {
    int32_t n_q, pos0;
    int32_t k_dim, v_dim;
    float scale;
    void *state; /* `scratch` bytes, 64-byte aligned, private to the thread */
} st_dense_attn;

/* start takes the queries in (row stride ldq), keys adds the keys at positions first .. first +
 * count - 1, finish writes the outputs (row stride ldo). Keys come in order in tiles of
 * ST_DENSE_KEYS at multiples of it, of which only the last may have fewer; k and v have room for
 * ST_DENSE_KEYS rows, of st_dense_stride floats each; what lies behind dim or count may be
 * anything. A query's bits depend on its own keys alone. */
typedef struct st_dense_kernels {
    size_t (*scratch)(int n_q, int k_dim, int v_dim);
    void (*start)(const st_dense_attn *a, const float *q, size_t ldq);
    void (*keys)(const st_dense_attn *a, const float *k, const float *v, int first, int count);
    void (*finish)(const st_dense_attn *a, float *out, size_t ldo);
} st_dense_kernels;

typedef struct st_kernels {
    const char *name; /* "ref", "avx2", "avx512", "avx512vnni", "neon", "neondot" */

    /* Packed weights (packed.h). pack_block_bytes: of one block of pack_cols columns (shape's data
     * is not read). pack_block writes a block from the rows that are its columns (rows->n <=
     * pack_cols); dst is 64-byte aligned. */
    int pack_cols;
    size_t (*pack_block_bytes)(const st_packed *shape);
    void (*pack_block)(void *dst, const st_packed *shape, const st_weight_rows *rows);
    /* y[i*ldy + j] for i < a->m and n0 <= j < n1, n0 a multiple of pack_cols.
     * F32, F16, BF16, F8: float32 math, one chain of multiply-adds along k per output, in order.
     * I8: float(integer dot product) * (a->scale[i] * scale[j]).
     * I4: groups in order: v = fma(float(integer dot product of the group), scale, v); then
     * v * a->scale[i]. */
    void (*matmul)(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0, int n1);
    /* Products with a->x itself, whatever the weights are; k is at most ST_MAX_FLOAT_K. As exact as
     * float32 math: F32, F16, BF16, F8 as matmul; I8: one chain of multiply-adds along k, times
     * scale[j]; I4: groups in order: v = fma(the group's chain, scale, v). Where integers are
     * faster, I8 and I4 meet a row as fixed point of 16 bits instead, absmax/127 being 2^8 steps
     * (zeros where absmax is below 2^-100), whose two bytes are multiplied as matmul does:
     * d = fma(float(high dot product), 256, float(low dot product)); I8: d * (step * scale[j]);
     * I4: groups in order: v = fma(d of the group, scale, v), then v * step. */
    void (*matmul_float)(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0, int n1);
    /* Fills a->q, a->scale and a->sum from a->x. Per row: scale = absmax/127 (1 for a row of
     * zeros, NaN and zeros for a row that is not finite), q = round half to even of x / scale,
     * zero beyond k. */
    void (*quantize)(const st_act *a);
    /* y = x / sqrt(mean(x^2) + eps) * weight, per row of d. y may be x. */
    void (*rmsnorm)(float *y, size_t ldy, const float *x, size_t ldx, const float *weight, int m,
                    int d, float eps);
    /* Bits: add_scaled for each part, rmsnorm of the branch, add, rmsnorm, quantize. */
    void (*residual_norm)(const st_residual *r, int d, float eps);
    /* Rotates one head vector of d elements in place. cos_sin: [d/2] cosines then [d/2] sines.
     * interleaved: pairs (2i, 2i+1); half: pairs (i, i + d/2). */
    void (*rope_interleaved)(float *x, int d, const float *cos_sin);
    void (*rope_half)(float *x, int d, const float *cos_sin);
    /* y[i*ldy + j] = silu(gate[i*ld + j]) * up[i*ld + j] for i < m, j < n; y may be gate. */
    void (*silu_mul)(float *y, size_t ldy, const float *gate, const float *up, size_t ld, int m,
                     int n);
    void (*add)(float *y, const float *x, int n);                 /* y += x */
    void (*add_scaled)(float *y, const float *x, float a, int n); /* y += a*x */
    /* In place; returns the log of the sum before normalisation (max included). */
    float (*softmax)(float *x, int n);
    void (*to_bf16)(uint16_t *y, const float *x, int n); /* round to nearest even; NaN stays NaN */
    void (*to_f32)(float *y, const void *x, st_dtype dtype, int n); /* from F32, F16, BF16 */
    /* A KV row to I8 (kv_row.h) and back. Per vector: scale = absmax/127, q = round half to even of
     * x / scale; a vector whose scale were below 2^-100 becomes zeros with that scale, one that is
     * not finite zeros with the scale NaN. Every table gives the same bits. */
    void (*kv_to_i8)(void *row, const float *x, st_kv_row_shape shape);
    void (*kv_from_i8)(float *x, const void *row, st_kv_row_shape shape);

    /* Attention of heads [h0, h1) for queries [q0, q1) of seq.
     * MLA: q [rows][n_heads][k_dim] (latent part first, then rotated part), out
     * [rows][n_heads][v_dim] in latent space. GQA: q and out [rows][n_heads][head_dim].
     * scratch: at least attn_scratch(shape) bytes, 64-byte aligned, private to the thread. */
    void (*attention_mla)(float *out, const float *q, const st_attn_shape *shape,
                          const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1, int h0,
                          int h1, void *scratch);
    void (*attention_gqa)(float *out, const float *q, const st_attn_shape *shape,
                          const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1, int h0,
                          int h1, void *scratch);
    size_t (*attn_scratch)(const st_attn_shape *shape);

    /* The same attention in two steps, so that long contexts spread over threads; NULL where a
     * table has no such kernels. Keys are taken in segments of ST_ATTN_SEGMENT positions, and
     * ST_ATTN_STRETCH segments at multiples of it are a stretch. attention_part leaves the
     * unnormalised result of n_segments segments from `segment` on, all of one stretch: v_dim +
     * ST_ATTN_PART_EXTRA floats for every (query, head) of [q0, q1) x [h0, h1), queries outermost;
     * the heads share one KV head. attention_merge joins n parts of one (query, head), stride
     * floats apart, which it may write to: the first `whole` are stretches, those after them
     * segments; the last part has keys of the row. Segments are joined to stretches and those to
     * each other in order; the one-step kernels do exactly this, so both ways give the same
     * bits. */
    void (*attention_part)(float *part, bool mla, const float *q, const st_attn_shape *shape,
                           const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1, int h0,
                           int h1, int segment, int n_segments, void *scratch);
    void (*attention_merge)(float *out, float *parts, size_t stride, int whole, int n, int v_dim);

    const st_dense_kernels *dense;
    /* For keys and values that products of integers have made: what is rounded here is far below
     * what was rounded there. NULL where a table is no faster with integers. */
    const st_dense_kernels *dense_int;

    /* For measuring what the machine can do (peaks.h); NULL where a table has none. Each runs
     * `steps` rounds of independent instructions from registers and returns the operations done
     * (a multiply-add is two). */
    double (*peak_float)(int steps);
    double (*peak_i8)(int steps);
    /* Reads floats from memory as fast as it can; returns something that depends on all. */
    float (*peak_read)(const float *p, size_t n);
} st_kernels;

enum {
    ST_ATTN_SEGMENT = 256,
    ST_ATTN_STRETCH = 4,    /* segments */
    ST_ATTN_PART_EXTRA = 2, /* the exponent that the row's weights were scaled by; their sum */
    ST_DENSE_KEYS = 64,
    ST_MAX_FLOAT_K = 4096, /* matmul_float with I8, I4: tables may keep rows on the stack */
    ST_MAX_K = 1 << 17     /* I8, I4: k beyond this could overflow the 32-bit sums */
};

/* Floats between rows of dense keys or values of dim elements: an odd number of cache lines, so
 * that neighbours never fall into the same set. */
static inline size_t st_dense_stride(int dim)
{
    return ((size_t)(dim + 15) / 16 | 1) * 16;
}

/* The best table this processor runs, or the one named by STARLING_CPU. ST_EUNSUPPORTED when the
 * named one is unknown or cannot run here (err lists the choices). */
ST_NODISCARD st_status st_kernels_select(const char *name, const st_kernels **out, st_error *err);
/* Every table that can run here, the reference first; returns the count (<= cap). */
int st_kernels_list(const st_kernels **out, int cap);

#endif
