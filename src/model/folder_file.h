/* Small text files of a checkpoint folder, read whole. */
#ifndef ST_MODEL_FOLDER_FILE_H
#define ST_MODEL_FOLDER_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "starling/buf.h"

/* Appends dir/name to out. ST_ENOTFOUND when there is no such file, ST_EFORMAT when it is larger
 * than max bytes, ST_EIO when it cannot be read; all name the file. */
ST_NODISCARD st_status st_folder_file_read(const char *dir, const char *name, size_t max,
                                           st_buf *out, st_error *err);
bool st_folder_file_exists(const char *dir, const char *name);

#endif
