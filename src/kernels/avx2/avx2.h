/* Table and kernels compiled for AVX2, FMA, F16C and BMI2. */
#ifndef ST_KERNELS_AVX2_H
#define ST_KERNELS_AVX2_H

#include "kernels/kernels.h"

extern const st_kernels st_kernels_avx2;

void st_avx2_matmul_i8(float *y, size_t ldy, const int8_t *xq, size_t ldx, const float *x_scale,
                       int m, const st_matrix *w, int n0, int n1);
double st_avx2_peak_i8(int steps);

#endif
