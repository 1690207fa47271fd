/* Loads UCX on first use (see ucx_library.h). */
#include "transfer/ucx_library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#define LIBRARY "libucp.so.0"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool loaded;
static st_ucx table;

/* UCX reads these in its constructors. Which transports it uses is left to it and to the user. With
 * peers that may die UCX 1.13 takes TCP between processes of one machine;
 * UCX_POSIX_ERROR_HANDLING=y makes it take shared memory, several times as fast, but its requests
 * to a peer that was killed then sometimes never end (test_kv_link_peers fails), so it is not set
 * here. */
static void set_defaults(void)
{
    /* Errors reach us as statuses; UCX would print them as well. */
    (void)setenv("UCX_LOG_LEVEL", "fatal", 0);
    /* Signals belong to the program. */
    (void)setenv("UCX_ERROR_SIGNALS", "", 0);
    (void)setenv("UCX_HANDLE_ERRORS", "none", 0);
    /* No patching of mmap, munmap and the like: KV memory is never unmapped while a link lives. */
    (void)setenv("UCX_MEM_EVENTS", "n", 0);
    (void)setenv("UCX_VFS_ENABLE", "n", 0);
}

static st_status load(st_error *err)
{
    set_defaults();
    void *lib = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        return st_fail(err, ST_EUNSUPPORTED,
                       "KV transfer needs UCX (package libucx0), which cannot be loaded: %s",
                       dlerror());
    const char *missing = NULL;
#define RESOLVE(name)                                                                              \
    if (!(table.name = (__typeof__(name) *)dlsym(lib, #name)))                                     \
        missing = #name;
    ST_UCX_FUNCTIONS(RESOLVE)
#undef RESOLVE
    if (missing) {
        dlclose(lib);
        return st_fail(err, ST_EUNSUPPORTED,
                       "KV transfer: %s has no function %s; expected UCX 1.13 or newer", LIBRARY,
                       missing);
    }
    loaded = true;
    return ST_OK;
}

st_status st_ucx_load(const st_ucx **out, st_error *err)
{
    pthread_mutex_lock(&lock);
    st_status st = loaded ? ST_OK : load(err);
    pthread_mutex_unlock(&lock);
    *out = st == ST_OK ? &table : NULL;
    return st;
}
