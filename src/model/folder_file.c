/* Reads the small files of a checkpoint folder: see folder_file.h. */
#include "model/folder_file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/regular_file.h"

static st_status read_all(FILE *f, const char *path, size_t max, st_buf *out, st_error *err)
{
    size_t start = out->len;
    for (;;) {
        if (st_buf_reserve(out, 16384))
            return st_fail(err, ST_ENOMEM, "%s: no memory to read it", path);
        size_t n = fread(out->data + out->len, 1, 16384, f);
        out->len += n;
        out->data[out->len] = '\0';
        if (out->len - start > max)
            return st_fail(err, ST_EFORMAT, "%s: larger than %zu bytes", path, max);
        if (n == 0)
            break;
    }
    if (ferror(f))
        return st_fail(err, ST_EIO, "%s: cannot be read: %s", path, strerror(errno));
    return ST_OK;
}

st_status st_folder_file_read(const char *dir, const char *name, size_t max, st_buf *out,
                              st_error *err)
{
    st_buf path = ST_BUF_INIT;
    FILE *f = NULL;
    st_status s = st_buf_printf(&path, "%s/%s", dir, name);
    if (s) {
        s = st_fail(err, s, "%s/%s: no memory", dir, name);
        goto done;
    }
    s = st_regular_file_stream(path.data, &f, err);
    if (!s)
        s = read_all(f, path.data, max, out, err);
done:
    if (f)
        fclose(f);
    st_buf_free(&path);
    return s;
}

bool st_folder_file_exists(const char *dir, const char *name)
{
    st_buf path = ST_BUF_INIT;
    struct stat sb;
    bool there = st_buf_printf(&path, "%s/%s", dir, name) == ST_OK && stat(path.data, &sb) == 0;
    st_buf_free(&path);
    return there;
}
