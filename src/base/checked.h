/* Overflow-checked size arithmetic for numbers that come from outside. Each returns false (and
 * leaves *out undefined) when the result does not fit. */
#ifndef ST_BASE_CHECKED_H
#define ST_BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>

static inline bool st_add_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline bool st_mul_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

#endif
