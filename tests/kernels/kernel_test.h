/* What the kernel tests share: every table of this machine, a printed seed, inputs at odd
 * addresses, buffers that end at a guard page or between guard bytes. */
#ifndef ST_TESTS_KERNEL_TEST_H
#define ST_TESTS_KERNEL_TEST_H

#include "cmocka_all.h"

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum { KT_MAX_TABLES = 8, KT_GUARD = 64 };

extern const st_kernels *kt_tables[KT_MAX_TABLES];
extern int kt_n_tables;
/* STARLING_TEST_SLOW is set: on an emulated processor, say, where the largest sizes take too long.
 */
extern bool kt_slow;

/* Finds the tables and seeds the generator from STARLING_TEST_SEED or the clock; prints the seed.
 */
void kt_start(void);

uint64_t kt_u64(void);
int kt_int(int lo, int hi); /* lo..hi */
float kt_uniform(void);     /* -1..1 */
float kt_normal(void);      /* nearly so: a sum of four uniform ones, -3.5..3.5 */

/* n elements of `size` bytes between guards, the first at an address that is a multiple of `size`
 * and, where possible, of nothing more. Guards are filled with 0xa5, content with 0xee; ASan
 * reports whoever reads a guard. */
typedef struct kt_buf {
    unsigned char *raw;
    void *p;
    size_t bytes;
    size_t mapped; /* bytes mapped at raw; 0: raw is from malloc */
} kt_buf;

kt_buf kt_new(size_t n, size_t size);
void kt_check_guards(const kt_buf *b); /* until kt_free, ASan no longer watches them then */
void kt_free(kt_buf *b);               /* checks the guards too */

float *kt_floats(kt_buf *b, size_t n); /* new, filled with kt_normal */

/* A random weight matrix in canonical form. Floats are rounded normals, F8 any code but NaN, I8 the
 * whole range -128..127, I4 0..15. zero: I4 has zero points. as_double: its values, [n][k]. */
typedef struct kt_weights {
    st_weight_rows rows;
    bool has_zero;
    st_weight_type scale_type; /* I4: what the scales are rounded to, and packed as */
    kt_buf data;
    float *scale;
    uint8_t *zero;
    double *as_double;
} kt_weights;

void kt_weights_new(kt_weights *w, st_weight_type type, int n, int k, int group, bool zero);
void kt_weights_scaled(kt_weights *w, st_weight_type type, int n, int k, int group, bool zero,
                       st_weight_type scale);
void kt_weights_free(kt_weights *w);

/* The same packed by a table, right before a guard page. */
typedef struct kt_pack {
    st_packed w;
    kt_buf mem;
} kt_pack;

void kt_pack_new(kt_pack *p, const st_kernels *t, const kt_weights *w);
void kt_pack_free(kt_pack *p);

/* Activations with gaps between their rows; q (any int8 but -128) and its sums are random, not x
 * quantized. */
typedef struct kt_act {
    st_act a;
    kt_buf x, q, scale, sum;
} kt_act;

void kt_act_new(kt_act *a, int m, int k);
void kt_act_sum(kt_act *a);                          /* takes the sums again */
st_act kt_act_rows(const kt_act *a, int row, int m); /* rows [row, row + m) */
void kt_act_free(kt_act *a);

/* Relative Frobenius error of got against want. */
double kt_rel_error(const float *got, const double *want, size_t n);
bool kt_same_bits(const void *a, const void *b, size_t bytes);
uint16_t kt_to_f16(float f); /* for values of moderate size; round to nearest even */

#endif
