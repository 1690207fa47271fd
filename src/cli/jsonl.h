/* Commands that answer each line of standard input with a line of JSON. */
#ifndef ST_CLI_JSONL_H
#define ST_CLI_JSONL_H

#include <stddef.h>

#include "starling/buf.h"
#include "starling/status.h"

/* Appends the answer to one line (its newline included, if it has one) to out. On failure what was
 * appended is dropped and the line is answered with {"error": ...}. */
typedef st_status st_jsonl_fn(void *user, const char *line, size_t len, st_buf *out, st_error *err);

/* Reads until the end of input, writing each answer at once, for programs that ask and wait.
 * Returns the exit code; errors of input and output go to stderr under the command's name. */
int st_jsonl_run(const char *command, st_jsonl_fn *answer, void *user);

#endif
