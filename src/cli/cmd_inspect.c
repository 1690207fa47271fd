/* `starling inspect`: prints what was understood of a checkpoint. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/options.h"
#include "starling/model.h"

int st_cmd_inspect(int argc, char **argv)
{
    bool json = false, tensors = false;
    const char *arg = NULL;
    int n_args = 0;
    char dir[4096];
    const st_opt opts[] = {
        {"--json", ST_OPT_FLAG, &json, NULL, "one JSON object instead of text", 0, 0},
        {"--tensors", ST_OPT_FLAG, &tensors, NULL, "list every tensor too", 0, 0},
    };
    static const st_command cmd = {
        "inspect", "starling inspect [MODEL] [options]",
        "Checks a checkpoint folder's configuration and tensor files and prints what was\n"
        "understood: family, sizes, parameters, weights by type, memory per token of context\n"
        "and memory needed. Nothing is loaded. Parameters active per token leave out the\n"
        "routed experts a token does not choose and an untied input embedding.",
        0, 1};
    int code = st_options_parse(&cmd, opts, sizeof opts / sizeof *opts, argc, argv, &arg, &n_args);
    if (code >= 0)
        return code;
    if (st_model_dir(n_args ? arg : NULL, dir, sizeof dir))
        return ST_EXIT_FAILED;
    st_buf text = ST_BUF_INIT;
    st_error err = {0};
    if (st_model_describe(dir, json, tensors, &text, &err)) {
        fprintf(stderr, "starling inspect: %s\n", err.text);
        code = ST_EXIT_FAILED;
    } else {
        bool written = fwrite(text.data, 1, text.len, stdout) == text.len && fflush(stdout) == 0;
        code = written ? ST_EXIT_OK : ST_EXIT_FAILED;
        if (!written)
            fprintf(stderr, "starling inspect: standard output: %s\n", strerror(errno));
    }
    st_buf_free(&text);
    return code;
}
