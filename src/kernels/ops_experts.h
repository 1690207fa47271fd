/* Gated MLPs as one task list: the experts of a layer, shared ones included, or one dense MLP.
 * Per expert y = down(silu(gate(x)) * up(x)) over the rows that chose it.
 *
 * An expert passes through four stages; a stage's tasks may start when all of the stage before are
 * done, and nothing is waited for between experts:
 *
 *   gather    copies its rows of the layer's input together (more than one row)
 *   gate|up   a block of columns of both matrices for a group of rows, then silu(gate) * up
 *   quantize  whole rows of that, where down takes int8
 *   down      a block of columns for a group of rows
 *
 * Threads start at different experts and go round all of them, so that each streams whole experts
 * from memory while there is enough to do and all share what is left at the end. A task never
 * waits; a thread that finds every task of a stage taken goes on to the next expert and comes
 * back, so some thread always moves. */
#ifndef ST_KERNELS_OPS_EXPERTS_H
#define ST_KERNELS_OPS_EXPERTS_H

#include <stdatomic.h>

#include "kernels/ops.h"

enum { ST_EXPERT_STAGES = 4 };

/* How far an expert has come. A cache line of its own: workers of other experts write theirs. */
typedef struct st_expert_state {
    _Alignas(64) _Atomic uint32_t taken[ST_EXPERT_STAGES];
    _Atomic uint32_t done[ST_EXPERT_STAGES];
    uint32_t tasks[ST_EXPERT_STAGES];
    int32_t group;                    /* rows of a gate|up or down task */
    int32_t up_columns, down_columns; /* of a task */
    uint64_t cost;                    /* bytes of weights times passes over them */
} st_expert_state;

/* Rows that the operator writes; ld in elements. */
typedef struct st_expert_rows {
    float *x; /* [n][ld] */
    size_t ld;
    int8_t *q; /* [n][ldq], scale [n], sum: as st_act's; used where an int8 product follows */
    size_t ldq;
    float *scale;
    int32_t *sum;
} st_expert_rows;

typedef struct st_expert_job {
    const st_packed *gate, *up; /* [width, hidden] */
    const st_packed *down;      /* [hidden, width] */
    const st_act *in;           /* the layer's input */
    const int32_t *rows;        /* [n] which rows of in, NULL: the first n */
    int32_t n;
    st_expert_rows gathered; /* [n][hidden]; not used with rows NULL or n 1 */
    st_expert_rows h;        /* [n][width] */
    float *y;                /* [n][hidden], row stride ldy */
    size_t ldy;
    st_expert_state state; /* the operator's own */
} st_expert_job;

/* Runs all jobs. Jobs without rows are fine. Bits are those of st_op_matmul, silu_mul,
 * quantize and st_op_matmul, one after the other. */
void st_op_experts(st_ops *ops, st_expert_job *jobs, int n_jobs);

#endif
