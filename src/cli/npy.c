/* Writes .npy files: see npy.h. */
#include "cli/npy.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NPY_HEADER = 128 }; /* magic to newline; data starts at a multiple of 64 */

/* Removes an unfinished file, but never a device such as /dev/null. */
static void discard(const char *path)
{
    struct stat st;
    if (lstat(path, &st) == 0 && S_ISREG(st.st_mode))
        unlink(path);
}

st_status st_npy_create(st_npy_writer *w, const char *path, size_t rows, size_t columns,
                        st_error *err)
{
    char header[NPY_HEADER + 1];
    memset(header, ' ', NPY_HEADER);
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = (char)(NPY_HEADER - 10); /* length of what follows, little-endian */
    header[9] = 0;
    int n =
        snprintf(header + 10, NPY_HEADER - 10,
                 "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }", rows, columns);
    header[10 + n] = ' '; /* the terminator */
    header[NPY_HEADER - 1] = '\n';
    w->path = path;
    w->file = fopen(path, "wb");
    if (!w->file)
        return st_fail(err, ST_EIO, "cannot write %s: %s", path, strerror(errno));
    if (fwrite(header, 1, NPY_HEADER, w->file) != NPY_HEADER) {
        int why = errno;
        fclose(w->file);
        discard(path);
        return st_fail(err, ST_EIO, "cannot write %s: %s", path, strerror(why));
    }
    return ST_OK;
}

st_status st_npy_append(st_npy_writer *w, const float *x, size_t n, st_error *err)
{
    if (fwrite(x, sizeof *x, n, w->file) != n)
        return st_fail(err, ST_EIO, "cannot write %s: %s", w->path, strerror(errno));
    return ST_OK;
}

st_status st_npy_close(st_npy_writer *w, bool keep, st_error *err)
{
    int failed = fclose(w->file), why = errno;
    w->file = NULL;
    if (failed || !keep)
        discard(w->path);
    return failed ? st_fail(err, ST_EIO, "cannot write %s: %s", w->path, strerror(why)) : ST_OK;
}
