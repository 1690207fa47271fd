/* A model's packed weights in memory: mapped from a cache file that processes share, or made
 * afresh. */
#ifndef ST_MODEL_PACKS_H
#define ST_MODEL_PACKS_H

#include "model/pack_plan.h"

typedef struct st_packs {
    void *base; /* NULL: there are none */
    size_t bytes;
    bool shared; /* pages of a file */
    void *map;   /* what is mapped, in which base lies */
    size_t map_size;
} st_packs;

/* How packs are to be had; of st_model_options. */
typedef struct st_pack_choice {
    const char *cache;  /* a folder, "next" (in the checkpoint's), "none", NULL: the user's */
    size_t cache_least; /* less is made in memory each time; 0: 64 MiB */
    st_progress_fn *progress;
    void *progress_user;
    st_notice_fn *notice;
    void *notice_user;
} st_pack_choice;

/* Whether so many bytes of packs are to come from a file. */
bool st_packs_in_file(const st_pack_choice *how, size_t bytes);
/* Makes or maps everything in the plan, checks what must be checked, and binds the plan. Only what
 * is wrong with the checkpoint or with memory is an error; what is wrong with the cache is a
 * notice. */
ST_NODISCARD st_status st_packs_make(const st_pack_plan *p, const st_pack_choice *how,
                                     st_pool *pool, st_packs *out, st_error *err);
void st_packs_free(st_packs *p); /* safe on a zeroed one */

#endif
