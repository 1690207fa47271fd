/* The reference kernels: what every table means, written plainly. Sums are taken in double. */
#ifndef ST_KERNELS_REF_H
#define ST_KERNELS_REF_H

#include "kernels/kernels.h"

extern const st_kernels st_kernels_ref;

enum { ST_REF_PACK_COLS = 1 };
size_t st_ref_pack_block_bytes(const st_packed *shape);
void st_ref_pack_block(void *dst, const st_packed *shape, const st_weight_rows *rows);
void st_ref_matmul(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0, int n1);
void st_ref_matmul_float(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0, int n1);
void st_ref_quantize(const st_act *a);
void st_ref_rmsnorm(float *y, size_t ldy, const float *x, size_t ldx, const float *weight, int m,
                    int d, float eps);
void st_ref_residual_norm(const st_residual *r, int d, float eps);
void st_ref_rope_interleaved(float *x, int d, const float *cos_sin);
void st_ref_rope_half(float *x, int d, const float *cos_sin);
void st_ref_silu_mul(float *y, size_t ldy, const float *gate, const float *up, size_t ld, int m,
                     int n);
void st_ref_add(float *y, const float *x, int n);
void st_ref_add_scaled(float *y, const float *x, float a, int n);
float st_ref_softmax(float *x, int n);
void st_ref_to_bf16(uint16_t *y, const float *x, int n);
void st_ref_to_f32(float *y, const void *x, st_dtype dtype, int n);
void st_ref_kv_to_i8(void *row, const float *x, st_kv_row_shape shape);
void st_ref_kv_from_i8(float *x, const void *row, st_kv_row_shape shape);
void st_ref_attention_mla(float *out, const float *q, const st_attn_shape *shape,
                          const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1, int h0,
                          int h1, void *scratch);
void st_ref_attention_gqa(float *out, const float *q, const st_attn_shape *shape,
                          const st_kv_layer *kv, const st_attn_seq *seq, int q0, int q1, int h0,
                          int h1, void *scratch);
size_t st_ref_attn_scratch(const st_attn_shape *shape);
extern const st_dense_kernels st_ref_dense;

#endif
