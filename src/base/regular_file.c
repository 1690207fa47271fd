/* Regular files only, without waiting: see regular_file.h. */
#include "base/regular_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

st_status st_regular_file_open(const char *path, int *fd, struct stat *info, st_error *err)
{
    st_status s = ST_OK;
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (*fd < 0) {
        bool missing = errno == ENOENT || errno == ENOTDIR;
        return st_fail(err, missing ? ST_ENOTFOUND : ST_EIO, "%s: cannot be opened: %s", path,
                       strerror(errno));
    }
    if (fstat(*fd, info) != 0)
        s = st_fail(err, ST_EIO, "%s: cannot be examined: %s", path, strerror(errno));
    else if (!S_ISREG(info->st_mode))
        s = st_fail(err, ST_EIO, "%s: not a regular file", path);
    if (s) {
        close(*fd);
        *fd = -1;
    }
    return s;
}

st_status st_regular_file_stream(const char *path, FILE **out, st_error *err)
{
    struct stat info;
    int fd;
    *out = NULL;
    st_status s = st_regular_file_open(path, &fd, &info, err);
    if (s)
        return s;
    if (!(*out = fdopen(fd, "rb"))) {
        s = st_fail(err, ST_ENOMEM, "%s: no memory to read it", path);
        close(fd);
    }
    return s;
}
