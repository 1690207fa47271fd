/* What the tests of KV links wait for: the end of an offer or fetch. */
#ifndef ST_TESTS_KV_LINK_ENDINGS_H
#define ST_TESTS_KV_LINK_ENDINGS_H

#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

#include "base/clock.h"
#include "transfer/kv_link.h"

#define MS 1000000u

typedef struct ending {
    atomic_int calls;
    st_status status;
    char text[1024];
} ending;

static inline void on_over(void *user, const st_transfer_id *id, st_status status,
                           const st_error *err)
{
    (void)id;
    ending *e = user;
    e->status = status;
    snprintf(e->text, sizeof e->text, "%s", status == ST_OK ? "" : err->text);
    atomic_fetch_add(&e->calls, 1);
}

static inline void nap(uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    nanosleep(&t, NULL);
}

/* How often it was called by then; a sound link needs a fraction of the time allowed. */
static inline int await_calls(ending *e)
{
    uint64_t until = st_now_ns() + 30000 * (uint64_t)MS;
    while (!atomic_load(&e->calls) && st_now_ns() < until)
        nap(100000);
    return atomic_load(&e->calls);
}

#endif
