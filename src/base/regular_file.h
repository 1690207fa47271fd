/* Opens the files of folders that somebody else filled. */
#ifndef ST_BASE_REGULAR_FILE_H
#define ST_BASE_REGULAR_FILE_H

#include <stdio.h>
#include <sys/stat.h>

#include "starling/status.h"

/* Opens path for reading without waiting for anything: a pipe, a device or a folder is refused,
 * where plain open() would wait for a pipe's other end for ever. ST_ENOTFOUND: there is no such
 * file. The caller closes *fd; *info is of the open file. */
ST_NODISCARD st_status st_regular_file_open(const char *path, int *fd, struct stat *info,
                                            st_error *err);
/* The same as a stream; the caller closes it. */
ST_NODISCARD st_status st_regular_file_stream(const char *path, FILE **out, st_error *err);

#endif
