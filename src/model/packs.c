/* Packed weights in memory or from a cache file: see packs.h. */
#include "model/packs.h"

#include <sys/mman.h>

/* Anonymous memory, in large pages where the system has them. */
static st_status make_in_memory(const st_pack_plan *p, const st_pack_choice *how, st_pool *pool,
                                st_packs *out, st_error *err)
{
    void *base = NULL;
    if (p->bytes) {
        base = mmap(NULL, p->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED)
            return st_fail(err, ST_ENOMEM, "no memory for %zu bytes of packed weights", p->bytes);
        (void)madvise(base, p->bytes, MADV_HUGEPAGE);
    }
    *out = (st_packs){.base = base, .bytes = p->bytes, .map = base, .map_size = p->bytes};
    const st_pack_sink sink = {.base = base};
    st_status status = st_pack_plan_run(p, pool, &sink, how->progress, how->progress_user, err);
    if (!status && base)
        (void)mprotect(base, p->bytes, PROT_READ); /* a stray write ends here */
    return status;
}

st_status st_packs_make(const st_pack_plan *p, const st_pack_choice *how, st_pool *pool,
                        st_packs *out, st_error *err)
{
    *out = (st_packs){0};
    st_status status = make_in_memory(p, how, pool, out, err);
    if (status)
        st_packs_free(out);
    else
        st_pack_plan_bind(p, out->base);
    return status;
}

void st_packs_free(st_packs *p)
{
    if (p->map)
        munmap(p->map, p->map_size);
    *p = (st_packs){0};
}
