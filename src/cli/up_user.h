/* `starling up` started by root: none of it needs root. */
#ifndef ST_CLI_UP_USER_H
#define ST_CLI_UP_USER_H

#include <stddef.h>

/* Becomes `nobody` for good when that user can read all files; a folder stands for the files in it.
 * Returns NULL when that is done, or was not root; else what that user cannot read (static memory),
 * and nothing has changed. */
const char *st_up_drop_root(const char *const *files, size_t n);

#endif
