/* Packed weights in memory or from a cache file: see packs.h. */
#include "model/packs.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "base/clock.h"
#include "base/human.h"
#include "base/memory.h"
#include "model/pack_cache.h"

enum {
    LEAST_MIB = 64, /* fewer are packed faster than a file is found */
    POLL_MS = 50,
    SAY_AFTER_MS = 2000,
    /* Without a byte written: who holds the lock is stopped, or its disk is. */
    GIVE_UP_MS = 300000
};

static void ST_PRINTF(2, 3) say(const st_pack_choice *how, const char *fmt, ...)
{
    char text[1400];
    va_list args;
    if (!how->notice)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    how->notice(how->notice_user, text);
}

/* Anonymous memory, in large pages where the system has them; NULL: none. */
static void *large_pages(size_t bytes)
{
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    (void)madvise(base, bytes, MADV_HUGEPAGE);
    return base;
}

static st_status make_in_memory(const st_pack_plan *p, const st_pack_choice *how, st_pool *pool,
                                st_packs *out, st_error *err)
{
    void *base = NULL;
    if (p->bytes) {
        base = large_pages(p->bytes);
        if (!base)
            return st_fail(err, ST_ENOMEM, "no memory for %s of packed weights",
                           st_human_bytes(p->bytes).s);
    }
    *out = (st_packs){.base = base, .bytes = p->bytes, .map = base, .map_size = p->bytes};
    const st_pack_sink sink = {.base = base};
    st_status status = st_pack_plan_run(p, pool, &sink, how->progress, how->progress_user, err);
    if (!status && base)
        (void)mprotect(base, p->bytes, PROT_READ); /* a stray write ends here */
    return status;
}

/* After a cache could not be used. Another engine of the machine may have come to the same point
 * since memory was looked at. */
static st_status make_instead(const st_pack_plan *p, const st_pack_choice *how, st_pool *pool,
                              const st_error *why, st_packs *out, st_error *err)
{
    size_t room = st_memory_available();
    if (p->bytes > room)
        return st_fail(err, ST_ENOMEM,
                       "%s; and without a pack cache the packed weights take %s of memory, of "
                       "which %s is available here",
                       why->text, st_human_bytes(p->bytes).s, st_human_bytes(room).s);
    say(how, "%s; the weights are packed in memory (%s), this time and the next", why->text,
        st_human_bytes(p->bytes).s);
    return make_in_memory(p, how, pool, out, err);
}

/* What is at path: another file, or the same one changed, has another mark. */
typedef struct mark {
    ino_t inode;
    struct timespec changed;
    off_t size;
} mark;

static mark mark_of(const char *path)
{
    struct stat sb;
    mark m = {0};
    if (stat(path, &sb) == 0)
        m = (mark){sb.st_ino, sb.st_mtim, sb.st_size};
    return m;
}

static bool same(const mark *a, const mark *b)
{
    return a->inode == b->inode && a->size == b->size && a->changed.tv_sec == b->changed.tv_sec &&
           a->changed.tv_nsec == b->changed.tv_nsec;
}

/* Waits a little while another process writes. ST_EDEADLINE when it seems to do no more. */
typedef struct patience {
    uint64_t start_ns, moved_ns;
    mark temp;
    bool said;
} patience;

static st_status wait_a_little(patience *w, const st_pack_writer *writer, const st_pack_choice *how,
                               st_error *err)
{
    uint64_t now = st_now_ns();
    mark temp = mark_of(writer->temp);
    if (!w->start_ns || !same(&temp, &w->temp)) {
        w->start_ns = w->start_ns ? w->start_ns : now;
        w->moved_ns = now;
        w->temp = temp;
    }
    if (now - w->moved_ns > GIVE_UP_MS * 1000000ull)
        return st_fail(err, ST_EDEADLINE,
                       "%s is held by another process, which has not written to it for %d seconds",
                       writer->temp, GIVE_UP_MS / 1000);
    if (!w->said && now - w->start_ns > SAY_AFTER_MS * 1000000ull) {
        say(how, "another process is packing these weights into %s: waiting for it", writer->path);
        w->said = true;
    }
    nanosleep(&(struct timespec){.tv_nsec = POLL_MS * 1000000L}, NULL);
    return ST_OK;
}

/* The file when it is there and right, else by writing it. ST_EIO and ST_EDEADLINE: neither can be
 * done; others are errors of the checkpoint. */
static st_status from_file(const char *path, const st_pack_plan *p, const st_pack_choice *how,
                           st_pool *pool, st_packs *out, st_error *err)
{
    patience wait = {0};
    mark seen = {0};
    st_error unreadable = {0};
    for (bool first = true;; first = false) {
        mark now = mark_of(path);
        st_error fault = {0};
        if (first || !same(&now, &seen)) {
            seen = now;
            st_status status =
                st_pack_cache_open(path, p, pool, how->progress, how->progress_user, out, &fault);
            if (status == ST_OK)
                return ST_OK;
            if (status == ST_EFORMAT)
                say(how, "%s; packing the weights again", fault.text);
            else if (status ==
                     ST_EIO) /* said only if a new one can be written: else that is said */
                unreadable = fault;
            else if (status != ST_ENOTFOUND)
                return st_fail(err, status, "%s", fault.text);
        }
        st_pack_writer w;
        st_status status = st_pack_writer_open(path, &w, err);
        if (status == ST_EFULL) {
            if ((status = wait_a_little(&wait, &w, how, err)))
                return status;
            continue;
        }
        now = mark_of(path);
        if (!status && same(&now, &seen)) {
            if (unreadable.text[0])
                say(how, "%s; packing the weights again", unreadable.text);
            status = st_pack_writer_run(&w, p, pool, how->progress, how->progress_user, out, err);
            st_pack_writer_close(&w);
            return status;
        }
        st_pack_writer_close(&w);
        if (status)
            return status;
    }
}

typedef struct copy_run {
    const char *from;
    char *to;
    size_t bytes;
} copy_run;

enum { COPY_BYTES = 16 << 20 };

static void copy_task(void *arg, size_t task, int worker)
{
    const copy_run *r = arg;
    size_t at = task * COPY_BYTES, left = r->bytes - at;
    memcpy(r->to + at, r->from + at, left < COPY_BYTES ? left : COPY_BYTES);
}

/* A file's pages are small, and the processor's prefetching ends with each: weights that memory
 * holds several times over are copied into large pages (generation 10 to 16% faster). Others
 * stay where processes share them. */
static void into_large_pages(st_packs *p, st_pool *pool)
{
    enum { ROOM = 4 };
    void *base =
        p->bytes && p->bytes <= st_memory_available() / ROOM ? large_pages(p->bytes) : NULL;
    if (!base)
        return;
    copy_run run = {p->base, base, p->bytes};
    st_pool_run(pool, (p->bytes + COPY_BYTES - 1) / COPY_BYTES, copy_task, &run);
    (void)mprotect(base, p->bytes, PROT_READ);
    munmap(p->map, p->map_size);
    *p = (st_packs){.base = base, .bytes = p->bytes, .map = base, .map_size = p->bytes};
}

bool st_packs_in_file(const st_pack_choice *how, size_t bytes)
{
    size_t least = how->cache_least ? how->cache_least : (size_t)LEAST_MIB << 20;
    return bytes >= least && !(how->cache && strcmp(how->cache, "none") == 0);
}

st_status st_packs_make(const st_pack_plan *p, const st_pack_choice *how, st_pool *pool,
                        st_packs *out, st_error *err)
{
    char path[PATH_MAX];
    st_error why = {0};
    st_status status;
    *out = (st_packs){0};
    if (!st_packs_in_file(how, p->bytes)) {
        status = make_in_memory(p, how, pool, out, err);
    } else {
        status = st_pack_cache_path(how->cache, p->ckpt, p->k, path, sizeof path, &why);
        if (!status)
            status = from_file(path, p, how, pool, out, &why);
        if (!status)
            into_large_pages(out, pool);
        if (status == ST_ENOTFOUND || status == ST_EIO || status == ST_EDEADLINE)
            status = make_instead(p, how, pool, &why, out, err);
        else if (status)
            st_fail(err, status, "%s", why.text);
    }
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
