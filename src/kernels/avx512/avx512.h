/* Tables and kernels compiled for AVX-512 (F, BW, DQ, VL), and with VNNI on top. */
#ifndef ST_KERNELS_AVX512_H
#define ST_KERNELS_AVX512_H

#include "kernels/packed_run.h"

extern const st_kernels st_kernels_avx512;
extern const st_kernels st_kernels_avx512vnni;

/* MLA over I8 rows: shapes it takes, scratch, and the two forms of kernels.h. */
bool st_avx512vnni_attention_i8_takes(const st_attn_shape *shape);
size_t st_avx512vnni_attention_i8_scratch(const st_attn_shape *shape);
void st_avx512vnni_attention_i8(float *out, const float *q, const st_attn_shape *shape,
                                const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1,
                                int h0, int h1, void *scratch);
void st_avx512vnni_attention_i8_part(float *part, const float *q, const st_attn_shape *shape,
                                     const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1,
                                     int h0, int h1, int segment, int n_segments, void *scratch);

extern const st_dense_kernels st_avx512vnni_dense;

/* GQA over I8 rows: a segment of ST_ATTN_SEGMENT keys (simd_attention_keys.inc has the rest). */
typedef struct st_gqa_i8 {
    int n_rows, dim;                           /* (query, head) rows; a multiple of 16 */
    float c;                                   /* scale * log2(e) */
    size_t k_at, v_at, k_scale_at, v_scale_at; /* bytes in a KV row */
    struct st_gqa_i8_work *work;               /* ..._bytes, 64-byte aligned */
    float *o;                                  /* [n_rows][o_ld], room for multiples of 64 dims */
    size_t o_ld;
    float *n, *l; /* [n_rows]: o's exponent, sum of weights */
} st_gqa_i8;
size_t st_avx512vnni_gqa_i8_bytes(int dim);
/* Takes row r's query. */
void st_avx512vnni_gqa_i8_query(const st_gqa_i8 *g, int r, const float *q);
/* o, n, l of the segment's `most` keys, whose KV rows are `rows` (there may be read up to the next
 * multiple of 16), of which row r sees valid[r]. rows[ST_ATTN_SEGMENT] on are n_far to come. */
void st_avx512vnni_gqa_i8_segment(const st_gqa_i8 *g, const char *const *rows, int most, int n_far,
                                  const int *valid);
/* Puts o's dimensions in order. */
void st_avx512vnni_gqa_i8_plain(float *o, int dims);

enum { ST_AVX512_PACK_COLS = 32 };
size_t st_avx512_pack_block_bytes(const st_packed *shape);
void st_avx512_pack_block(void *dst, const st_packed *shape, const st_weight_rows *rows);
void st_avx512_matmul(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0, int n1);
void st_avx512_matmul_float(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0,
                            int n1);
double st_avx512_peak_i8(int steps);

size_t st_avx512vnni_pack_block_bytes(const st_packed *shape);
void st_avx512vnni_pack_block(void *dst, const st_packed *shape, const st_weight_rows *rows);
void st_avx512vnni_matmul(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0,
                          int n1);
void st_avx512vnni_matmul_float(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0,
                                int n1);
/* For rows in two planes (avx512vnni_planes.c): their tiles by rows of x, and where things are. */
const st_tile_set *st_avx512vnni_plane_tiles(st_weight_type type);
st_pack_layout st_avx512vnni_pack_layout(const st_packed *w);
double st_avx512vnni_peak_i8(int steps);

#endif
