/* Pack cache files: see pack_cache.h. Nothing in a file is believed before its checksum is: offsets
 * and shapes always come from the plan, the file must say the same. */
#include "model/pack_cache.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "base/human.h"
#include "base/regular_file.h"

#define MAGIC "STPACK\r\n"

enum { VERSION = 4, PAGE = 4096 };

typedef struct file_header {
    char magic[8];
    uint32_t version, header_size;
    char kernels[32];
    uint32_t pack_cols, entry_size;
    uint64_t stamp, n_entries, table_size, data_offset, data_size;
    uint64_t table_hash;
    uint64_t header_hash; /* of what comes before it */
} file_header;

typedef struct file_entry {
    uint64_t offset, bytes, hash;
    uint32_t type, n, k, group, has_zero, name_at; /* name_at: from the end of the entries */
} file_entry;

/* --- where ------------------------------------------------------------------------------- */

/* The user's folder for caches. */
static st_status default_folder(char *out, size_t cap, st_error *err)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = -1;
    if (xdg && xdg[0] == '/') /* others are to be ignored, says the specification */
        n = snprintf(out, cap, "%s/starling", xdg);
    else if (home && home[0] == '/')
        n = snprintf(out, cap, "%s/.cache/starling", home);
    if (n < 0 || (size_t)n >= cap)
        return st_fail(err, ST_ENOTFOUND,
                       "there is no folder for the pack cache: neither XDG_CACHE_HOME nor HOME "
                       "names one");
    return ST_OK;
}

/* The checkpoint's name for people, and what tells it from others of that name. The version is in
 * it, so that two programs of different age do not replace each other's files in turn. */
static st_status file_name(const st_checkpoint *c, const st_kernels *k, char *out, size_t cap,
                           st_error *err)
{
    char real[PATH_MAX], name[65];
    size_t n = 0;
    if (!realpath(st_checkpoint_dir(c), real))
        return st_fail(err, ST_ENOTFOUND, "%s: %s", st_checkpoint_dir(c), strerror(errno));
    const char *slash = strrchr(real, '/');
    for (const char *p = slash + 1; *p && n + 1 < sizeof name; p++)
        name[n++] = isalnum((unsigned char)*p) || strchr("._-", *p) ? *p : '_';
    name[n] = '\0';
    snprintf(out, cap, "%s-%016llx-%s-v%d.pack", name,
             (unsigned long long)XXH3_64bits(real, strlen(real)), k->name, VERSION);
    return ST_OK;
}

st_status st_pack_cache_path(const char *where, const st_checkpoint *c, const st_kernels *k,
                             char *out, size_t cap, st_error *err)
{
    char folder[PATH_MAX], name[160];
    st_status status = ST_OK;
    if (where && strcmp(where, "next") == 0) {
        snprintf(name, sizeof name, "starling-%s-v%d.pack", k->name, VERSION);
        where = st_checkpoint_dir(c);
    } else {
        status = file_name(c, k, name, sizeof name, err);
        if (!status && !where) {
            status = default_folder(folder, sizeof folder, err);
            where = folder;
        }
    }
    if (status)
        return status;
    int n = snprintf(out, cap, "%s/%s", where, name);
    if (!*where || n < 0 || (size_t)n >= cap)
        return st_fail(err, ST_ENOTFOUND, "'%.80s' is no folder for the pack cache", where);
    return ST_OK;
}

/* Makes the folders above path that are missing. */
static st_status make_folders(const char *path, st_error *err)
{
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%s", path);
    for (char *p = strchr(folder + 1, '/'); p; p = strchr(p + 1, '/')) {
        *p = '\0';
        if (mkdir(folder, 0777) != 0 && errno != EEXIST) {
            int cause = errno;
            struct stat sb; /* a folder above may be there and yet refuse */
            if (stat(folder, &sb) != 0 || !S_ISDIR(sb.st_mode))
                return st_fail(err, ST_EIO, "%s: this folder cannot be made: %s", folder,
                               strerror(cause));
        }
        *p = '/';
    }
    return ST_OK;
}

/* --- header and table -------------------------------------------------------------------- */

/* What a file for the plan starts with; checksums of packs are still zero. */
typedef struct prefix {
    file_header header;
    char *table; /* entries, names */
} prefix;

static file_entry *entries_of(const prefix *x)
{
    return (file_entry *)(void *)x->table;
}

static st_status prefix_make(const st_pack_plan *p, prefix *out, st_error *err)
{
    size_t names = 0, entries = p->n * sizeof(file_entry);
    for (size_t i = 0; i < p->n; i++)
        names += strlen(p->items[i].name) + 1;
    size_t table = entries + names;
    file_header *h = &out->header;
    memset(h, 0, sizeof *h);
    memcpy(h->magic, MAGIC, sizeof h->magic);
    snprintf(h->kernels, sizeof h->kernels, "%s", p->k->name);
    h->version = VERSION;
    h->header_size = sizeof *h;
    h->pack_cols = (uint32_t)p->k->pack_cols;
    h->entry_size = sizeof(file_entry);
    h->stamp = st_checkpoint_stamp(p->ckpt);
    h->n_entries = p->n;
    h->table_size = table;
    h->data_offset = (sizeof *h + table + PAGE - 1) / PAGE * PAGE;
    h->data_size = p->bytes;
    if (names > UINT32_MAX || !(out->table = calloc(table + 1, 1)))
        return st_fail(err, ST_ENOMEM, "no memory for the table of %zu packs", p->n);
    char *name = out->table + entries;
    for (size_t i = 0; i < p->n; i++) {
        const st_pack_item *item = &p->items[i];
        size_t n = strlen(item->name) + 1;
        entries_of(out)[i] = (file_entry){.offset = item->offset,
                                          .bytes = item->bytes,
                                          .type = (uint32_t)item->shape.type,
                                          .n = (uint32_t)item->shape.n,
                                          .k = (uint32_t)item->shape.k,
                                          .group = (uint32_t)item->shape.group,
                                          .has_zero = item->shape.has_zero,
                                          .name_at = (uint32_t)(name - out->table - entries)};
        memcpy(name, item->name, n);
        name += n;
    }
    return ST_OK;
}

static uint64_t header_hash(const file_header *h)
{
    return XXH3_64bits(h, offsetof(file_header, header_hash));
}

static bool read_at(int fd, void *data, size_t n, size_t at)
{
    for (char *p = data; n;) {
        ssize_t got = pread(fd, p, n, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        p += got;
        at += (size_t)got;
        n -= (size_t)got;
    }
    return true;
}

/* Why a file with this header is not the one wanted; NULL: it is. */
static const char *header_fault(const file_header *h, const char *kernels, uint32_t pack_cols,
                                uint64_t stamp)
{
    if (memcmp(h->magic, MAGIC, sizeof h->magic) != 0)
        return "is not a pack cache";
    if (h->version != VERSION || h->header_size != sizeof *h)
        return "is of another version";
    if (h->header_hash != header_hash(h))
        return "has a damaged header";
    if (strncmp(h->kernels, kernels, sizeof h->kernels) != 0 || h->pack_cols != pack_cols)
        return "was made for other kernels";
    if (h->stamp != stamp)
        return "was made from other weight files than are there now";
    return NULL;
}

/* Compares the file with what the plan calls for; hash [p->n] receives the packs' checksums. */
static const char *prefix_fault(int fd, const prefix *want, const st_pack_plan *p, size_t size,
                                uint64_t *hash)
{
    const file_header *w = &want->header;
    file_header h;
    if (!read_at(fd, &h, sizeof h, 0))
        return "is cut short";
    const char *fault = header_fault(&h, w->kernels, w->pack_cols, w->stamp);
    if (fault)
        return fault;
    if (h.n_entries != w->n_entries || h.table_size != w->table_size ||
        h.data_offset != w->data_offset || h.data_size != w->data_size ||
        h.entry_size != w->entry_size)
        return "holds other packs than the model needs";
    if (size != h.data_offset + h.data_size)
        return "is cut short";
    char *table = malloc((size_t)h.table_size + 1);
    if (!table || !read_at(fd, table, (size_t)h.table_size, sizeof h)) {
        free(table);
        return "cannot be read";
    }
    if (XXH3_64bits(table, (size_t)h.table_size) != h.table_hash)
        fault = "has a damaged table";
    file_entry *entries = (file_entry *)(void *)table;
    for (size_t i = 0; i < p->n; i++) {
        hash[i] = entries[i].hash;
        entries[i].hash = 0;
    }
    if (!fault && memcmp(table, want->table, (size_t)h.table_size) != 0)
        fault = "holds other packs than the model needs";
    free(table);
    return fault;
}

/* --- reading ----------------------------------------------------------------------------- */

static st_status map_packs(int fd, const char *path, const st_pack_plan *p, size_t data_offset,
                           st_packs *out, st_error *err)
{
    size_t size = data_offset + p->bytes;
    void *map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return st_fail(err, errno == ENOMEM ? ST_ENOMEM : ST_EIO,
                       "%s: %zu bytes cannot be mapped: %s", path, size, strerror(errno));
    *out = (st_packs){.base = (char *)map + data_offset,
                      .bytes = p->bytes,
                      .shared = true,
                      .map = map,
                      .map_size = size};
    return ST_OK;
}

/* The packs themselves: intact, and made by these kernels from these weights. */
static st_status check_packs(const char *path, const st_pack_plan *p, st_pool *pool,
                             const uint64_t *hash, const void *base, st_progress_fn *progress,
                             void *user, st_error *err)
{
    size_t bad;
    st_status status = st_pack_plan_verify(p, pool, base, hash, progress, user, &bad, err);
    if (!status && bad < p->n)
        return st_fail(err, ST_EFORMAT, "%s: the pack of '%s' is damaged", path,
                       p->items[bad].name);
    if (!status)
        status = st_pack_plan_sample(p, base, &bad, err);
    if (!status && bad < p->n)
        return st_fail(err, ST_EFORMAT,
                       "%s: the pack of '%s' is not what these kernels make of the checkpoint",
                       path, p->items[bad].name);
    return status;
}

static st_status open_fd(int fd, size_t size, const char *path, const st_pack_plan *p,
                         st_pool *pool, st_progress_fn *progress, void *user, st_packs *out,
                         st_error *err)
{
    prefix want = {0};
    st_status status = prefix_make(p, &want, err);
    if (status)
        return status;
    uint64_t *hash = calloc(p->n + 1, sizeof *hash);
    const char *fault = hash ? prefix_fault(fd, &want, p, size, hash) : NULL;
    if (!hash)
        status = st_fail(err, ST_ENOMEM, "%s: no memory to check it", path);
    else if (fault)
        status = st_fail(err, ST_EFORMAT, "%s %s", path, fault);
    else
        status = map_packs(fd, path, p, (size_t)want.header.data_offset, out, err);
    if (!status)
        status = check_packs(path, p, pool, hash, out->base, progress, user, err);
    if (status)
        st_packs_free(out);
    free(hash);
    free(want.table);
    return status;
}

st_status st_pack_cache_open(const char *path, const st_pack_plan *p, st_pool *pool,
                             st_progress_fn *progress, void *user, st_packs *out, st_error *err)
{
    *out = (st_packs){0};
    struct stat sb;
    int fd;
    st_status status = st_regular_file_open(path, &fd, &sb, err);
    if (status)
        return status;
    status = open_fd(fd, (size_t)sb.st_size, path, p, pool, progress, user, out, err);
    close(fd);
    return status;
}

bool st_pack_cache_exists(const char *path, const st_checkpoint *c, const st_kernels *k,
                          size_t *bytes)
{
    file_header h;
    struct stat sb;
    int fd;
    bool there = st_regular_file_open(path, &fd, &sb, NULL) == ST_OK &&
                 read_at(fd, &h, sizeof h, 0) &&
                 !header_fault(&h, k->name, (uint32_t)k->pack_cols, st_checkpoint_stamp(c)) &&
                 (uint64_t)sb.st_size == h.data_offset + h.data_size;
    if (there)
        *bytes = (size_t)sb.st_size;
    if (fd >= 0)
        close(fd);
    return there;
}

/* --- writing ----------------------------------------------------------------------------- */

/* The lock is on the temporary file itself: the kernel drops it with its holder, and the file that
 * a dead process left is simply taken over. */
st_status st_pack_writer_open(const char *path, st_pack_writer *w, st_error *err)
{
    snprintf(w->path, sizeof w->path, "%s", path);
    snprintf(w->temp, sizeof w->temp, "%s.new", path);
    w->fd = -1;
    st_status status = make_folders(path, err);
    while (!status) {
        struct stat mine, named;
        w->fd = open(w->temp, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
        if (w->fd < 0)
            return st_fail(err, ST_EIO, "%s: cannot be written: %s", w->temp, strerror(errno));
        if (flock(w->fd, LOCK_EX | LOCK_NB) != 0) {
            status = st_fail(err, errno == EWOULDBLOCK ? ST_EFULL : ST_EIO,
                             "%s: cannot be locked: %s", w->temp, strerror(errno));
        } else if (fstat(w->fd, &mine) == 0 && stat(w->temp, &named) == 0 &&
                   mine.st_ino == named.st_ino && mine.st_dev == named.st_dev) {
            return S_ISREG(mine.st_mode) ? ST_OK
                                         : st_fail(err, ST_EIO, "%s: not a regular file", w->temp);
        }
        close(w->fd); /* renamed or removed by its last holder: try again */
        w->fd = -1;
    }
    return status;
}

void st_pack_writer_close(st_pack_writer *w)
{
    if (w->fd < 0)
        return;
    struct stat mine, named; /* after a rename the temporary name may be another's already */
    if (fstat(w->fd, &mine) == 0 && stat(w->temp, &named) == 0 && mine.st_ino == named.st_ino &&
        mine.st_dev == named.st_dev)
        unlink(w->temp);
    close(w->fd);
    w->fd = -1;
}

static st_status write_at(const st_pack_writer *w, const void *data, size_t n, size_t at,
                          st_error *err)
{
    for (const char *p = data; n;) {
        ssize_t put = pwrite(w->fd, p, n, (off_t)at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return st_fail(err, ST_EIO, "%s: cannot be written: %s", w->temp,
                           strerror(put < 0 ? errno : ENOSPC));
        p += put;
        at += (size_t)put;
        n -= (size_t)put;
    }
    return ST_OK;
}

/* Takes the space first: a lack of it should not show after minutes of packing. */
static st_status reserve(const st_pack_writer *w, size_t size, st_error *err)
{
    struct rlimit most; /* writing beyond it would be a signal, not an error */
    if (getrlimit(RLIMIT_FSIZE, &most) == 0 && most.rlim_cur != RLIM_INFINITY &&
        size > most.rlim_cur)
        return st_fail(err, ST_EIO, "%s: files may have %s here (ulimit -f), the packs need %s",
                       w->temp, st_human_bytes((size_t)most.rlim_cur).s, st_human_bytes(size).s);
    if (ftruncate(w->fd, 0) != 0)
        return st_fail(err, ST_EIO, "%s: cannot be emptied: %s", w->temp, strerror(errno));
    int got;
    while ((got = fallocate(w->fd, 0, 0, (off_t)size)) != 0 && errno == EINTR)
        ;
    if (got != 0 && errno != EOPNOTSUPP && errno != ENOSYS)
        return st_fail(err, ST_EIO, "%s: no room for %s of packs: %s", w->temp,
                       st_human_bytes(size).s, strerror(errno));
    return ST_OK;
}

typedef struct data_sink {
    const st_pack_writer *w;
    size_t data_offset;
} data_sink;

static st_status write_piece(void *user, size_t offset, const void *data, size_t n, st_error *err)
{
    const data_sink *s = user;
    return write_at(s->w, data, n, s->data_offset + offset, err);
}

/* Under its name only when all of it is on the disk. */
static st_status put_in_place(const st_pack_writer *w, st_error *err)
{
    if (fsync(w->fd) != 0)
        return st_fail(err, ST_EIO, "%s: cannot be written: %s", w->temp, strerror(errno));
    if (rename(w->temp, w->path) != 0)
        return st_fail(err, ST_EIO, "%s: cannot be renamed to %s: %s", w->temp, w->path,
                       strerror(errno));
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%s", w->path);
    *strrchr(folder, '/') = '\0';
    int dir = open(*folder ? folder : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir >= 0) {
        (void)fsync(dir); /* without it a crash may undo the rename: then it is made again */
        close(dir);
    }
    return ST_OK;
}

static st_status write_all(st_pack_writer *w, const st_pack_plan *p, prefix *x, st_pool *pool,
                           st_progress_fn *progress, void *user, st_error *err)
{
    file_header *h = &x->header;
    uint64_t *hash = calloc(p->n + 1, sizeof *hash);
    if (!hash)
        return st_fail(err, ST_ENOMEM, "%s: no memory for checksums", w->temp);
    data_sink to = {w, (size_t)h->data_offset};
    const st_pack_sink sink = {.write = write_piece, .user = &to, .hash = hash};
    st_status status = reserve(w, (size_t)(h->data_offset + h->data_size), err);
    if (!status)
        status = st_pack_plan_run(p, pool, &sink, progress, user, err);
    for (size_t i = 0; i < p->n; i++)
        entries_of(x)[i].hash = hash[i];
    free(hash);
    h->table_hash = XXH3_64bits(x->table, (size_t)h->table_size);
    h->header_hash = header_hash(h);
    if (!status)
        status = write_at(w, x->table, (size_t)h->table_size, sizeof *h, err);
    if (!status)
        status = write_at(w, h, sizeof *h, 0, err);
    return status ? status : put_in_place(w, err);
}

st_status st_pack_writer_run(st_pack_writer *w, const st_pack_plan *p, st_pool *pool,
                             st_progress_fn *progress, void *user, st_packs *out, st_error *err)
{
    prefix x = {0};
    *out = (st_packs){0};
    st_status status = prefix_make(p, &x, err);
    if (!status)
        status = write_all(w, p, &x, pool, progress, user, err);
    if (!status)
        status = map_packs(w->fd, w->path, p, (size_t)x.header.data_offset, out, err);
    free(x.table);
    return status;
}
