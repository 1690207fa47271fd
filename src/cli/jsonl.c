/* Lines in, JSON lines out: see jsonl.h. */
#include "cli/jsonl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/options.h"

/* Fails only without memory. */
static st_status answer_line(st_jsonl_fn *answer, void *user, const char *line, size_t len,
                             st_buf *out)
{
    st_error err = {.status = ST_OK};
    st_buf_clear(out);
    st_status s = answer(user, line, len, out, &err);
    if (s) {
        const char *why = err.status ? err.text : st_status_name(s);
        st_buf_clear(out);
        s = st_buf_puts(out, "{\"error\": ");
        if (!s)
            s = st_buf_json_string(out, why, strlen(why));
        if (!s)
            s = st_buf_putc(out, '}');
    }
    return s ? s : st_buf_putc(out, '\n');
}

int st_jsonl_run(const char *command, st_jsonl_fn *answer, void *user)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    st_buf out = ST_BUF_INIT;
    int code = ST_EXIT_OK;
    while (code == ST_EXIT_OK && (n = getline(&line, &cap, stdin)) >= 0) {
        if (answer_line(answer, user, line, (size_t)n, &out)) {
            fprintf(stderr, "starling %s: out of memory\n", command);
            code = ST_EXIT_FAILED;
        } else if (fwrite(out.data, 1, out.len, stdout) != out.len || fflush(stdout)) {
            fprintf(stderr, "starling %s: standard output: %s\n", command, strerror(errno));
            code = ST_EXIT_FAILED;
        }
    }
    if (ferror(stdin)) {
        fprintf(stderr, "starling %s: standard input: %s\n", command, strerror(errno));
        code = ST_EXIT_FAILED;
    }
    free(line);
    st_buf_free(&out);
    return code;
}
