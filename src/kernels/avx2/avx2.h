/* Table and kernels compiled for AVX2, FMA, F16C and BMI2. */
#ifndef ST_KERNELS_AVX2_H
#define ST_KERNELS_AVX2_H

#include "kernels/kernels.h"

extern const st_kernels st_kernels_avx2;

enum { ST_AVX2_PACK_COLS = 16 };
size_t st_avx2_pack_block_bytes(const st_packed *shape);
void st_avx2_pack_block(void *dst, const st_packed *shape, const st_weight_rows *rows);
void st_avx2_matmul(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0, int n1);
void st_avx2_matmul_float(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0,
                          int n1);
double st_avx2_peak_i8(int steps);

#endif
