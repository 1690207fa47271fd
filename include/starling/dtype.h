/* Element types of tensors, named as safetensors names them. */
#ifndef STARLING_DTYPE_H
#define STARLING_DTYPE_H

#include <stddef.h>

typedef enum st_dtype {
    ST_F32,
    ST_F16,
    ST_BF16,
    ST_I8,
    ST_U8,
    ST_I16,
    ST_I32,
    ST_I64,
    ST_F64,
    ST_BOOL,
    ST_F8_E4M3,
    ST_F8_E5M2,
    ST_DTYPE_COUNT
} st_dtype;

size_t st_dtype_size(st_dtype t);      /* bytes per element */
const char *st_dtype_name(st_dtype t); /* "F32", "BF16", ... */
/* The type named name[0..n), or ST_DTYPE_COUNT. */
st_dtype st_dtype_from_name(const char *name, size_t n);

#endif
