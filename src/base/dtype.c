/* Element types: see dtype.h. */
#include "starling/dtype.h"

#include <string.h>

static const struct {
    const char *name;
    size_t size;
} types[ST_DTYPE_COUNT] = {
    [ST_F32] = {"F32", 4},   [ST_F16] = {"F16", 2},         [ST_BF16] = {"BF16", 2},
    [ST_I8] = {"I8", 1},     [ST_U8] = {"U8", 1},           [ST_I16] = {"I16", 2},
    [ST_I32] = {"I32", 4},   [ST_I64] = {"I64", 8},         [ST_F64] = {"F64", 8},
    [ST_BOOL] = {"BOOL", 1}, [ST_F8_E4M3] = {"F8_E4M3", 1}, [ST_F8_E5M2] = {"F8_E5M2", 1},
};

size_t st_dtype_size(st_dtype t)
{
    return types[t].size;
}

const char *st_dtype_name(st_dtype t)
{
    return t < ST_DTYPE_COUNT ? types[t].name : "?";
}

st_dtype st_dtype_from_name(const char *name, size_t n)
{
    for (int t = 0; t < ST_DTYPE_COUNT; t++)
        if (strlen(types[t].name) == n && memcmp(types[t].name, name, n) == 0)
            return (st_dtype)t;
    return ST_DTYPE_COUNT;
}
