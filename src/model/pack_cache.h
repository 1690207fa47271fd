/* The file that keeps packed weights from one start to the next, one for each checkpoint and kernel
 * table:
 *
 *   header   magic, version, kernel table, stamp of the checkpoint, sizes, checksums of header and
 *            table
 *   table    one entry a pack: type, shape, offset, bytes, checksum; then their names
 *   data     the packs, from the next page on
 *
 * In the machine's byte order: caches do not travel. A file appears under its name only when it is
 * complete (written under a temporary name, synced, renamed), and is never changed afterwards, so
 * that processes share its pages. */
#ifndef ST_MODEL_PACK_CACHE_H
#define ST_MODEL_PACK_CACHE_H

#include <limits.h>

#include "model/packs.h"

/* The path of the file for checkpoint c. where: a folder, "next" or NULL, as in st_pack_choice.
 * Looks at the environment, touches nothing. ST_ENOTFOUND when there is no folder for it. */
ST_NODISCARD st_status st_pack_cache_path(const char *where, const st_checkpoint *c,
                                          const st_kernels *k, char *out, size_t cap,
                                          st_error *err);

/* Whether a file for c and k is there whose header can be trusted: for `inspect`. bytes: its size.
 */
bool st_pack_cache_exists(const char *path, const st_checkpoint *c, const st_kernels *k,
                          size_t *bytes);

/* Maps the file when it holds, intact, what the plan calls for. ST_ENOTFOUND: there is none;
 * ST_EIO and ST_EFORMAT: it is unreadable, stale or damaged, and err says how; others are those of
 * reading the checkpoint. */
ST_NODISCARD st_status st_pack_cache_open(const char *path, const st_pack_plan *p, st_pool *pool,
                                          st_progress_fn *progress, void *user, st_packs *out,
                                          st_error *err);

typedef struct st_pack_writer {
    int fd;
    char path[PATH_MAX], temp[PATH_MAX + 8];
} st_pack_writer;

/* Takes the right to write path, creating its folder. ST_EFULL: another process has it; w->temp is
 * the file that grows. ST_EIO: it cannot be written, err says why. */
ST_NODISCARD st_status st_pack_writer_open(const char *path, st_pack_writer *w, st_error *err);
/* Packs into the file, puts it in place and maps it. ST_EIO: what is wrong is the file (no space,
 * for one); others are those of st_pack_plan_run. */
ST_NODISCARD st_status st_pack_writer_run(st_pack_writer *w, const st_pack_plan *p, st_pool *pool,
                                          st_progress_fn *progress, void *user, st_packs *out,
                                          st_error *err);
/* Gives the right back, and removes what is half done. */
void st_pack_writer_close(st_pack_writer *w);

#endif
