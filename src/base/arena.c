/* Bump allocator: see arena.h. Chunks form a list, newest first. */
#include "base/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN 64

typedef struct chunk {
    struct chunk *next;
    size_t cap, used; /* of the bytes after the header, which takes one ALIGN unit */
} chunk;

struct st_arena {
    chunk *head;
    size_t chunk_size;
    size_t used;
};

static chunk *chunk_new(size_t cap)
{
    chunk *c = NULL;
    if (cap > SIZE_MAX - 2 * ALIGN || posix_memalign((void **)&c, ALIGN, cap + ALIGN))
        return NULL;
    c->next = NULL;
    c->cap = cap;
    c->used = 0;
    return c;
}

st_arena *st_arena_new(size_t chunk_size)
{
    st_arena *a = calloc(1, sizeof *a);
    if (a)
        a->chunk_size = chunk_size ? chunk_size : 64 * 1024;
    return a;
}

void st_arena_free(st_arena *a)
{
    if (!a)
        return;
    while (a->head) {
        chunk *next = a->head->next;
        free(a->head);
        a->head = next;
    }
    free(a);
}

void *st_arena_alloc(st_arena *a, size_t n)
{
    if (n > SIZE_MAX - ALIGN)
        return NULL;
    size_t need = (n + ALIGN - 1) / ALIGN * ALIGN;
    if (need == 0)
        need = ALIGN;
    chunk *c = a->head;
    if (!c || c->cap - c->used < need) {
        c = chunk_new(need > a->chunk_size ? need : a->chunk_size);
        if (!c)
            return NULL;
        c->next = a->head;
        a->head = c;
    }
    char *p = (char *)c + ALIGN + c->used;
    c->used += need;
    a->used += need;
    return memset(p, 0, need);
}

char *st_arena_strdup(st_arena *a, const char *s, size_t n)
{
    if (n == SIZE_MAX)
        return NULL;
    char *p = st_arena_alloc(a, n + 1);
    if (p && n)
        memcpy(p, s, n);
    return p;
}

void st_arena_reset(st_arena *a)
{
    while (a->head && a->head->next) {
        chunk *next = a->head->next;
        free(a->head);
        a->head = next;
    }
    if (a->head)
        a->head->used = 0;
    a->used = 0;
}

size_t st_arena_used(const st_arena *a)
{
    return a->used;
}
