/* starling tokenize: text to token ids and back, with nothing but the tokenizer files. */
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "cli/commands.h"
#include "cli/jsonl.h"
#include "cli/options.h"
#include "starling/tokenizer.h"

#define MAX_ARGS 4096

typedef struct options {
    bool jsonl, decode, add_special, no_parse_special, skip_special;
} options;

static unsigned encode_flags(const options *o)
{
    return (o->add_special ? ST_ENCODE_ADD_SPECIAL : 0u) |
           (o->no_parse_special ? ST_ENCODE_PLAIN_SPECIAL : 0u);
}

static st_status put_ids(const st_ids *ids, const char *separator, st_buf *out)
{
    st_status s = ST_OK;
    for (size_t i = 0; i < ids->len && !s; i++)
        s = st_buf_printf(out, "%s%d", i ? separator : "", ids->data[i]);
    return s;
}

/* One line of --jsonl: a JSON string to an array of ids. */
static st_status encode_line(const st_tokenizer *t, const options *o, const json_t *line,
                             st_buf *out, st_error *err)
{
    st_ids ids = ST_IDS_INIT;
    if (!json_is_string(line))
        return st_fail(err, ST_EINVAL, "expected a JSON string");
    st_status s = st_tokenizer_encode(t, json_string_value(line), json_string_length(line),
                                      encode_flags(o), &ids, err);
    if (!s)
        s = st_buf_putc(out, '[');
    if (!s)
        s = put_ids(&ids, ",", out);
    if (!s)
        s = st_buf_putc(out, ']');
    st_ids_free(&ids);
    return s;
}

/* One line of --jsonl --decode: an array of ids to a JSON string. */
static st_status decode_line(const st_tokenizer *t, const options *o, const json_t *line,
                             st_buf *out, st_error *err)
{
    st_ids ids = ST_IDS_INIT;
    st_buf text = ST_BUF_INIT;
    if (!json_is_array(line))
        return st_fail(err, ST_EINVAL, "expected a JSON array of token ids");
    st_status s = ST_OK;
    for (size_t i = 0; i < json_array_size(line) && !s; i++) {
        const json_t *v = json_array_get(line, i);
        json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || id > INT32_MAX)
            s = st_fail(err, ST_EINVAL, "element %zu is no token id", i);
        else
            s = st_ids_push(&ids, (int32_t)id);
    }
    if (!s)
        s = st_tokenizer_decode(t, ids.data, ids.len, o->skip_special, &text, err);
    if (!s)
        s = st_buf_json_string(out, text.data ? text.data : "", text.len);
    st_ids_free(&ids);
    st_buf_free(&text);
    return s;
}

typedef struct line_run {
    const st_tokenizer *t;
    const options *o;
} line_run;

static st_status answer_line(void *user, const char *line, size_t len, st_buf *out, st_error *err)
{
    const line_run *r = user;
    json_error_t why;
    json_t *v = json_loadb(line, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    st_status s = v ? (r->o->decode ? decode_line : encode_line)(r->t, r->o, v, out, err)
                    : st_fail(err, ST_EFORMAT, "not valid JSON: %s", why.text);
    json_decref(v);
    return s;
}

/* Adds the ids of "12" or "1,2,3"; false when arg is anything else. */
static bool read_ids(const char *arg, st_ids *ids)
{
    for (;;) {
        char *end;
        errno = 0;
        long v = strtol(arg, &end, 10);
        if (end == arg || errno || v < 0 || v > INT32_MAX || (*end && *end != ','))
            return false;
        if (st_ids_push(ids, (int32_t)v))
            return false;
        if (!*end)
            return true;
        arg = end + 1;
    }
}

static int run_args(const st_tokenizer *t, const options *o, const char **args, int n_args)
{
    st_ids ids = ST_IDS_INIT;
    st_buf out = ST_BUF_INIT;
    st_error err = {.status = ST_OK};
    st_status s = ST_OK;
    if (o->decode) {
        for (int i = 0; i < n_args && !s; i++)
            if (!read_ids(args[i], &ids))
                s = st_fail(&err, ST_EINVAL, "'%s' is not a token id", args[i]);
        if (!s)
            s = st_tokenizer_decode(t, ids.data, ids.len, o->skip_special, &out, &err);
    } else {
        s = st_tokenizer_encode(t, args[0], strlen(args[0]), encode_flags(o), &ids, &err);
        if (!s)
            s = put_ids(&ids, " ", &out);
    }
    if (!s)
        s = st_buf_putc(&out, '\n');
    if (!s && (fwrite(out.data, 1, out.len, stdout) != out.len || fflush(stdout)))
        s = st_fail(&err, ST_EIO, "standard output: %s", strerror(errno));
    if (s)
        fprintf(stderr, "starling tokenize: %s\n", err.status ? err.text : st_status_name(s));
    st_ids_free(&ids);
    st_buf_free(&out);
    return s ? ST_EXIT_FAILED : ST_EXIT_OK;
}

/* Whether args[0] is the folder: with --jsonl always; with --decode when it is no id; else when a
 * text follows it. */
static bool first_is_dir(const options *o, const char **args, int n_args)
{
    if (o->jsonl)
        return n_args > 0;
    if (!o->decode)
        return n_args > 1;
    st_ids ids = ST_IDS_INIT;
    bool is_id = n_args > 0 && read_ids(args[0], &ids);
    st_ids_free(&ids);
    return n_args > 0 && !is_id;
}

int st_cmd_tokenize(int argc, char **argv)
{
    options o = {0};
    const st_opt opts[] = {
        {"--jsonl", ST_OPT_FLAG, &o.jsonl, NULL,
         "answer each line of stdin: a JSON string with an array of ids", 0, 0},
        {"--decode|-d", ST_OPT_FLAG, &o.decode, NULL, "the other way: ids to text", 0, 0},
        {"--add-special", ST_OPT_FLAG, &o.add_special, NULL,
         "add the BOS and EOS tokens that the tokenizer asks for", 0, 0},
        {"--no-parse-special", ST_OPT_FLAG, &o.no_parse_special, NULL,
         "text that spells an added token stays plain text", 0, 0},
        {"--skip-special", ST_OPT_FLAG, &o.skip_special, NULL,
         "leave special tokens out of decoded text", 0, 0},
    };
    const st_command cmd = {
        "tokenize",
        "starling tokenize [DIR] TEXT\n"
        "       starling tokenize [DIR] --decode ID...\n"
        "       starling tokenize [DIR] --jsonl [--decode]",
        "Turns text into token ids and back. DIR needs only tokenizer.json and, if there is one,\n"
        "tokenizer_config.json; without it the lexicon's are used. With --jsonl a line that\n"
        "cannot be answered gets {\"error\": ...} and the next line goes on.",
        0, MAX_ARGS};
    static const char *args[MAX_ARGS];
    int n_args;
    int code = st_options_parse(&cmd, opts, sizeof opts / sizeof *opts, argc, argv, args, &n_args);
    if (code >= 0)
        return code;
    bool has_dir = first_is_dir(&o, args, n_args);
    int n_rest = n_args - has_dir;
    if (o.jsonl ? n_rest > 0 : o.decode ? n_rest < 1 : n_rest != 1) {
        fprintf(stderr, "usage: %s\n`starling tokenize --help` explains\n", cmd.usage);
        return ST_EXIT_USAGE;
    }
    char dir[PATH_MAX];
    st_tokenizer *t;
    st_error err;
    if (st_model_dir(has_dir ? args[0] : NULL, dir, sizeof dir))
        return ST_EXIT_FAILED;
    if (st_tokenizer_load(dir, &t, &err)) {
        fprintf(stderr, "starling tokenize: %s\n", err.text);
        return ST_EXIT_FAILED;
    }
    line_run lines = {t, &o};
    code = o.jsonl ? st_jsonl_run("tokenize", answer_line, &lines)
                   : run_args(t, &o, args + has_dir, n_rest);
    st_tokenizer_free(t);
    return code;
}
