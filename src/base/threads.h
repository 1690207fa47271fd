/* A pool of pinned worker threads for data-parallel loops inside one engine step.
 *
 * The caller of st_pool_run is worker 0; n_threads - 1 others spin briefly for the next loop and
 * then sleep. Tasks are handed out through an atomic counter, so which worker runs a task is not
 * determined: nothing computed may depend on it (ARCHITECTURE.md). */
#ifndef ST_BASE_THREADS_H
#define ST_BASE_THREADS_H

#include <stdbool.h>
#include <stddef.h>

#include "starling/status.h"

typedef struct st_pool st_pool;

int st_processors(void); /* that this process may use, as it started */

/* n_threads >= 1 (0: st_processors). With pin, worker i
 * (>= 1) is bound to the i-th processor of the process' affinity mask; failure to bind is not an
 * error. */
ST_NODISCARD st_status st_pool_new(int n_threads, bool pin, st_pool **out, st_error *err);
void st_pool_free(st_pool *pool); /* NULL is fine; no loop may be running */
/* Binds the calling thread to worker 0's processor, if the pool pins. For the thread that runs the
 * loops, and only for one that starts no other threads: they would inherit the binding. */
void st_pool_pin_caller(const st_pool *pool);
int st_pool_threads(const st_pool *pool);

/* Calls fn(arg, task, worker) once for every task in [0, n_tasks) and returns when all are done.
 * worker < st_pool_threads(pool) indexes per-worker scratch. Not reentrant: one loop at a time,
 * always from the same thread or with external order. pool == NULL runs everything here. */
typedef void st_task_fn(void *arg, size_t task, int worker);
void st_pool_run(st_pool *pool, size_t n_tasks, st_task_fn *fn, void *arg);

/* What a thread does between two looks at a word that another will write. */
static inline void st_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
