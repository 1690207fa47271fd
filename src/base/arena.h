/* A bump allocator: everything a request or a load step needs, released at once. Not thread-safe.
 * Memory is zeroed and aligned to 64 bytes. */
#ifndef ST_BASE_ARENA_H
#define ST_BASE_ARENA_H

#include <stddef.h>

typedef struct st_arena st_arena;

/* chunk: bytes per underlying allocation (0: 64 KiB). NULL when memory is short. */
st_arena *st_arena_new(size_t chunk);
void st_arena_free(st_arena *a); /* NULL is fine */
/* NULL when memory is short; n may be 0 (a valid unique pointer). */
void *st_arena_alloc(st_arena *a, size_t n);
char *st_arena_strdup(st_arena *a, const char *s, size_t n); /* adds a NUL */
/* Forgets everything but keeps the first chunk for reuse. */
void st_arena_reset(st_arena *a);
size_t st_arena_used(const st_arena *a); /* bytes handed out */

#endif
