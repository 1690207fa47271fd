/* The best few outputs of a large product, exactly, without reading all of the weights: for the
 * head of a language model, whose rows are as many as the vocabulary while a greedy or top-k choice
 * needs a few of its logits.
 *
 * Beside the exact weights w (floats) stands an INT8 copy v and, per row, what v can be off by. For
 * x = x8 + d (x8 its int8 form) Cauchy and Schwarz give
 *
 *   |w.x - v.x8| <= |w - v| |x| + |v| |d|      and sums in float32 add at most gamma |w| |x|
 *
 * so that v.x8 +- that bound encloses every output. The rows with the largest lower ends are
 * computed from w; what the best of these reach is the mark: rows whose upper end is below it are
 * left out, the others are computed too, all by the kernel that would have computed everything, so
 * what is there has the same bits. (Against the lower ends themselves ten times as many are left.)
 * Outputs side by side share one bound, their largest |w - v| and |v| + |w - v|.
 */
#ifndef ST_KERNELS_OPS_SCREEN_H
#define ST_KERNELS_OPS_SCREEN_H

#include "kernels/ops.h"

enum {
    ST_SCREEN_ROWS = 32, /* rows of x at once */
    ST_SCREEN_BEST = 64  /* the largest `best` */
};

/* What st_screen_rows makes of float rows: INT8 rows with scales, and rows [2] of F32 bounds. */
typedef struct st_screen_out {
    int8_t *q;    /* [n][k] */
    float *scale; /* [n] */
    float *bound; /* [n][2] */
} st_screen_out;
/* rows: F32, F16 or BF16; out's arrays may be NULL where not wanted, q and scale go together. */
void st_screen_rows(const st_weight_rows *rows, const st_screen_out *out);

typedef struct st_screen st_screen;

/* The three matrices are borrowed and may get their data later: exact [n, k] in floats, approx
 * [n, k] in I8, bound [n, 2] in F32, the latter two packed from what st_screen_rows made. */
ST_NODISCARD st_status st_screen_new(const st_packed *exact, const st_packed *approx,
                                     const st_packed *bound, const st_kernels *k, st_screen **out,
                                     st_error *err);
void st_screen_free(st_screen *s); /* NULL is fine */
size_t st_screen_bytes(int32_t n); /* that st_screen_new takes, for predictions */

/* y[a->m][n] (row stride ldy): the best[i] largest outputs of row i, all
 * that equal them, and some others; -FLT_MAX elsewhere. Needs a->q. False, and nothing in y that
 * counts, when the bounds leave too much open (or x is not finite): then the exact product is to
 * be computed. 1 <= best[i] <= ST_SCREEN_BEST. */
bool st_op_screened(st_ops *ops, st_screen *s, const st_act *a, const int32_t *best, float *y,
                    size_t ldy);

#endif
