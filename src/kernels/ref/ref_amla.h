/* AMLA as published (arXiv 2509.25224): the reference beside the lattice that the kernels run. For
 * tests and the ablation of `starling bench` only: on x86 the integer addition saves nothing. */
#ifndef ST_KERNELS_REF_AMLA_H
#define ST_KERNELS_REF_AMLA_H

typedef enum st_amla_form {
    ST_AMLA_FULL,            /* integer addition on O's bits, P and S in bf16, compensated by c */
    ST_AMLA_NO_COMPENSATION, /* the same without epsilon: S16's rounding stays in O */
    ST_AMLA_FA2,             /* FlashAttention-2 with P in bf16: O is multiplied */
    ST_AMLA_LATTICE          /* P = exp2(s*log2(e) + n) in float: rescales are exact */
} st_amla_form;

/* One row: scores s[n_keys] (-infinity: masked) and values v[n_keys][dim], in blocks of `block`
 * keys. out[dim] = softmax(s) v, zeros when all keys are masked; returns log(sum exp(s)), then
 * -infinity. o: dim floats of scratch. */
float st_ref_amla(st_amla_form form, float *out, const float *s, const float *v, int n_keys,
                  int dim, int block, float *o);

/* f * 2^n (1 + epsilon) by adding to f's bits, n <= 0; values that would leave the normal range
 * become zeros of their sign, and zeros stay. */
float st_ref_amla_scale(float f, int n, float epsilon);

#endif
