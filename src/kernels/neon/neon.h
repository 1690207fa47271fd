/* Tables and kernels compiled for NEON, and with its dot products of bytes (SDOT) on top. */
#ifndef ST_KERNELS_NEON_H
#define ST_KERNELS_NEON_H

#include "kernels/kernels.h"

extern const st_kernels st_kernels_neon;
extern const st_kernels st_kernels_neondot;

enum { ST_NEON_PACK_COLS = 16 };
size_t st_neon_pack_block_bytes(const st_packed *shape);
void st_neon_pack_block(void *dst, const st_packed *shape, const st_weight_rows *rows);
void st_neon_matmul(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0, int n1);
void st_neon_matmul_float(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0,
                          int n1);
double st_neon_peak_i8(int steps);

/* Blocks are those of neon, whose float kernels are this table's too. */
size_t st_neondot_pack_block_bytes(const st_packed *shape);
void st_neondot_pack_block(void *dst, const st_packed *shape, const st_weight_rows *rows);
void st_neondot_matmul(float *y, size_t ldy, const st_act *a, const st_packed *w, int n0, int n1);
double st_neondot_peak_i8(int steps);

#endif
