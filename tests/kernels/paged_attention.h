/* One sequence in paged memory, of any KV type, and what the tests of attention do with it: run
 * a table's kernels, compare with float64, compare the bits of every way to compute the same. */
#ifndef ST_TESTS_PAGED_ATTENTION_H
#define ST_TESTS_PAGED_ATTENTION_H

#include "kernel_test.h"

typedef struct paged {
    st_attn_shape shape;
    bool mla;
    int len; /* positions with keys */
    int elems;
    st_kv_row_shape row;
    st_kv_layer kv;
    kt_buf memory;
    int32_t *table;
    float *values; /* [len][elems], zero at first */
} paged;

/* Shuffled blocks, odd strides. Rows that were not stored hold NaN: a kernel that reads one and
 * uses it shows. */
paged paged_new(bool mla, const st_attn_shape *shape, int len, int block_size, st_dtype dtype);
void paged_free(paged *p);

float *paged_value(const paged *p, int pos);
void paged_fill(paged *p);  /* random values; stores nothing */
void paged_store(paged *p); /* values to rows; then values are what the rows say */
paged paged_random(bool mla, const st_attn_shape *shape, int len, int block_size, st_dtype dtype);
/* The same rows in blocks of another size. */
paged paged_again(const paged *p, int block_size);

/* Queries [q0, q1) of seq, heads [h0, h1). */
void paged_run(const st_kernels *t, const paged *p, float *out, const float *q, st_attn_seq seq,
               int q0, int q1, int h0, int h1);

/* The last n_q queries, all heads, of every table against float64 in two passes: to 1e-5, and to
 * 1e-2 where q is rounded to 8 bits (scores are off by 0.8% of their spread then at most). */
void paged_check(const paged *p, const float *q, int n_q);
/* The last n_q queries at once, one by one and head by head, in chunks, in parts that are merged,
 * over blocks of another size: the bits must agree. */
void paged_check_bits(const st_kernels *t, const paged *p, int n_q);
/* The operator on several threads against one sequence at a time; rows: of all sequences. */
void paged_check_operator(const st_kernels *t, const paged *p, int threads, const st_attn_seq *seqs,
                          int n, int rows);

#endif
