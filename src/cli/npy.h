/* NumPy's .npy format (version 1.0) for float32 matrices: what `starling logits` writes. */
#ifndef ST_CLI_NPY_H
#define ST_CLI_NPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "starling/status.h"

typedef struct st_npy_writer {
    FILE *file;
    const char *path; /* borrowed */
} st_npy_writer;

/* Creates path with a header for float32 [rows, columns]. */
ST_NODISCARD st_status st_npy_create(st_npy_writer *w, const char *path, size_t rows,
                                     size_t columns, st_error *err);
/* Appends n values, row-major. */
ST_NODISCARD st_status st_npy_append(st_npy_writer *w, const float *x, size_t n, st_error *err);
/* Closes the file. With keep false, or when closing fails, it is removed. */
ST_NODISCARD st_status st_npy_close(st_npy_writer *w, bool keep, st_error *err);

#endif
