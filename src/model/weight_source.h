/* Where the numbers of a weight matrix come from: one or several published tensors, and the
 * function that turns rows of them into the canonical form that kernels pack (st_weight_rows).
 * Every dialect of a checkpoint is a reader of its own; nothing else looks into such tensors. */
#ifndef ST_MODEL_WEIGHT_SOURCE_H
#define ST_MODEL_WEIGHT_SOURCE_H

#include "base/arena.h"
#include "kernels/kernels.h"
#include "model/checkpoint.h"

typedef struct st_weight_source st_weight_source;

/* One dialect. Both functions are pure, and called from several threads at once. */
typedef struct st_weight_reader {
    /* Bytes of scratch that read needs for so many rows; NULL: none. */
    size_t (*scratch)(const st_weight_source *s, int32_t n_rows);
    /* Rows [r0, r1) in canonical form: pointers into the mapped tensors or into scratch (64-byte
     * aligned, private to the caller; the mapping promises no alignment), valid until scratch is
     * used again. Fails with the file, the tensor and what is wrong where values cannot be used;
     * that floats are finite is checked by st_weight_source_read for all. */
    st_status (*read)(const st_weight_source *s, int32_t r0, int32_t r1, void *scratch,
                      st_weight_rows *out, st_error *err);
    /* The scales of these rows alone, as read would give them. NULL: no integers come of this. */
    st_status (*scales)(const st_weight_source *s, int32_t r0, int32_t r1, float *out,
                        st_error *err);
} st_weight_reader;

enum { ST_SOURCE_TENSORS = 4 };

/* A matrix [n, k] as kernels will see it. Lives in the arena of the load; tensors are borrowed from
 * the checkpoint. */
struct st_weight_source {
    const st_weight_reader *reader;
    st_weight_type type;
    int32_t n, k, group;  /* group as in st_weight_rows */
    bool has_zero;        /* I4: zero points may differ from 8 */
    st_weight_type scale; /* I4: the type of scales in the tensors, as in st_packed */
    /* [0] holds the weights (it names the source in errors and fixes the order of reading); the
     * others are the dialect's: scales, zero points, order of groups. NULL: not there. */
    const st_tensor *tensor[ST_SOURCE_TENSORS];
    /* F8, INT4: outputs and inputs that share a scale in the tensors. INT4: how they are laid out,
     * and whether zero points must all be 8. */
    int32_t scale_rows, scale_inputs;
    const struct st_int4_layout *layout;
    bool symmetric;
    /* A view of rows of another source (st_weight_source_slice). */
    const st_weight_source *base;
    int32_t first;
};

/* Finds what stands for NAME (without ".weight"), a linear layer of n outputs and k inputs, in
 * whatever dialect the checkpoint has it. Looks at metadata only. ST_ENOTFOUND when there is
 * nothing, ST_EFORMAT for shapes that cannot be, ST_EUNSUPPORTED for types nobody reads. */
ST_NODISCARD st_status st_weight_source_find(const st_checkpoint *c, const char *name, int32_t n,
                                             int32_t k, st_weight_source *out, st_error *err);
/* A tensor of floats under its full name. */
ST_NODISCARD st_status st_weight_source_float(const st_checkpoint *c, const char *name, int32_t n,
                                              int32_t k, st_weight_source *out, st_error *err);

/* Rows [first, first + n) of base as a source of their own, in base's type; but F8 becomes F32, for
 * weights that meet float inputs. transposed: the result has base's k rows of n elements; integers
 * come without their scales then (with scales of 1; I8 where I4 has zero points), which belong to
 * its inputs. base must stay where it is. */
void st_weight_source_slice(const st_weight_source *base, int32_t first, int32_t n, bool transposed,
                            st_weight_source *out);

/* The INT8 copy [n, k] of base (floats) and its bounds [n, 2], for kernels/ops_screen.h. base must
 * stay where it is. */
void st_weight_source_screen(const st_weight_source *base, st_weight_source *approx,
                             st_weight_source *bound);

size_t st_weight_source_scratch(const st_weight_source *s, int32_t n_rows);
/* reader->read, and every float (weights and scales) is finite. */
ST_NODISCARD st_status st_weight_source_read(const st_weight_source *s, int32_t r0, int32_t r1,
                                             void *scratch, st_weight_rows *out, st_error *err);

/* I8 and I4: the scales of rows [r0, r1), [rows][groups], finite. */
ST_NODISCARD st_status st_weight_source_scales(const st_weight_source *s, int32_t r0, int32_t r1,
                                               float *out, st_error *err);

/* Rows [first, first + n) of those in all. */
void st_weight_rows_from(const st_weight_rows *all, int32_t first, int32_t n, st_weight_rows *out);

/* --- for readers ------------------------------------------------------------------------- */

bool st_tensor_is_float(const st_tensor *t); /* F32, F16 or BF16 */
/* Element i of a float tensor at any alignment. */
float st_tensor_float(const st_tensor *t, size_t i);
/* The tensor called name with shape [n] (k < 0) or [n, k]; errors name what was expected. */
ST_NODISCARD st_status st_tensor_find(const st_checkpoint *c, const char *name, int32_t n,
                                      int32_t k, const st_tensor **out, st_error *err);

#endif
