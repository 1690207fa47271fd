/* starling template: renders conversations with a checkpoint's chat template, with nothing but
 * the tokenizer files. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jansson.h>

#include "cli/commands.h"
#include "cli/jsonl.h"
#include "cli/options.h"
#include "starling/chat_template.h"

typedef struct options {
    const char *file;
    uint64_t now;
    bool jsonl;
} options;

static st_status load_file(const char *path, st_chat_template **out, st_error *err)
{
    st_buf text = ST_BUF_INIT;
    char chunk[16384];
    size_t n;
    st_status st = ST_OK;
    FILE *f = fopen(path, "rb");
    if (!f)
        return st_fail(err, ST_EIO, "%s: %s", path, strerror(errno));
    while (!st && (n = fread(chunk, 1, sizeof chunk, f)) > 0)
        st = st_buf_append(&text, chunk, n);
    if (!st && ferror(f))
        st = st_fail(err, ST_EIO, "%s: %s", path, strerror(errno));
    fclose(f);
    if (!st)
        st = st_chat_template_parse(path, text.data ? text.data : "", text.len, out, err);
    st_buf_free(&text);
    return st;
}

/* Renders the JSON object in text[0..len) to *out. */
static st_status render(const st_chat_template *t, const options *o, const char *text, size_t len,
                        st_buf *out, st_error *err)
{
    json_error_t why;
    json_t *context = json_loadb(text, len, JSON_ALLOW_NUL, &why);
    st_status st;
    if (json_is_object(context)) {
        int64_t now = o->now ? (int64_t)o->now : (int64_t)time(NULL);
        st = st_chat_template_render(t, context, now, out, err);
    } else if (context) {
        st = st_fail(err, ST_EINVAL, "expected a JSON object with messages");
    } else {
        st = st_fail(err, ST_EFORMAT, "not valid JSON: line %d, column %d: %s", why.line,
                     why.column, why.text);
    }
    json_decref(context);
    return st;
}

typedef struct line_run {
    const st_chat_template *t;
    const options *o;
} line_run;

static st_status answer_line(void *user, const char *line, size_t len, st_buf *out, st_error *err)
{
    const line_run *r = user;
    st_buf text = ST_BUF_INIT;
    st_status st = render(r->t, r->o, line, len, &text, err);
    if (!st)
        st = st_buf_json_string(out, text.data ? text.data : "", text.len);
    st_buf_free(&text);
    return st;
}

/* One conversation from standard input, its text to standard output. */
static int run_once(const st_chat_template *t, const options *o)
{
    st_buf in = ST_BUF_INIT, out = ST_BUF_INIT;
    st_error err = {.status = ST_OK};
    char chunk[16384];
    size_t n;
    st_status st = ST_OK;
    while (!st && (n = fread(chunk, 1, sizeof chunk, stdin)) > 0)
        st = st_buf_append(&in, chunk, n);
    if (!st)
        st = render(t, o, in.data ? in.data : "", in.len, &out, &err);
    if (st)
        fprintf(stderr, "starling template: %s\n", err.status ? err.text : st_status_name(st));
    else if (fwrite(out.data ? out.data : "", 1, out.len, stdout) != out.len || fflush(stdout))
        st = ST_EIO;
    st_buf_free(&in);
    st_buf_free(&out);
    return st ? ST_EXIT_FAILED : ST_EXIT_OK;
}

int st_cmd_template(int argc, char **argv)
{
    options o = {0};
    const st_opt opts[] = {
        {"--jsonl", ST_OPT_FLAG, &o.jsonl, NULL,
         "answer each line of stdin with a JSON string or {\"error\": ...}", 0, 0},
        {"--template", ST_OPT_STRING, &o.file, "FILE", "use this template instead of MODEL's", 0,
         0},
        {"--now", ST_OPT_U64, &o.now, "SECONDS", "the template's time, in seconds since 1970 (now)",
         0, 0},
    };
    const st_command cmd = {
        "template", "starling template [MODEL] [--jsonl] [--template FILE] < JSON",
        "Renders a conversation with the chat template of MODEL, a checkpoint folder\n"
        "(tokenizer_config.json or chat_template.jinja is enough). Standard input holds a JSON\n"
        "object: messages, and optionally tools, add_generation_prompt and whatever else the\n"
        "template understands, as in\n"
        "  echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}' | starling template",
        0, 1};
    const char *args[1];
    char dir[4096];
    int n_args;
    int code = st_options_parse(&cmd, opts, sizeof opts / sizeof *opts, argc, argv, args, &n_args);
    if (code >= 0)
        return code;
    st_chat_template *t;
    st_error err = {.status = ST_OK};
    st_status st;
    if (o.file) {
        st = load_file(o.file, &t, &err);
    } else {
        if (st_model_dir(n_args ? args[0] : NULL, dir, sizeof dir))
            return ST_EXIT_FAILED;
        st = st_chat_template_load(dir, &t, &err);
    }
    if (st) {
        fprintf(stderr, "starling template: %s\n", err.status ? err.text : st_status_name(st));
        return ST_EXIT_FAILED;
    }
    line_run lines = {t, &o};
    code = o.jsonl ? st_jsonl_run("template", answer_line, &lines) : run_once(t, &o);
    st_chat_template_free(t);
    return code;
}
