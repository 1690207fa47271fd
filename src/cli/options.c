/* Command-line options: see options.h. */
#include "cli/options.h"

#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* True when arg[0..n) is one of the spellings in "--prompt|-p". */
static bool spelled(const char *names, const char *arg, size_t n)
{
    while (*names) {
        size_t len = strcspn(names, "|");
        if (len == n && memcmp(names, arg, n) == 0)
            return true;
        names += len + (names[len] == '|');
    }
    return false;
}

static void print_help(const st_command *cmd, const st_opt *opts, size_t n_opts)
{
    printf("usage: %s\n\n%s\n", cmd->usage, cmd->about);
    if (n_opts && opts[0].type != ST_OPT_HEADING)
        printf("\noptions:\n");
    for (size_t i = 0; i < n_opts; i++) {
        const st_opt *o = &opts[i];
        if (o->type == ST_OPT_HEADING) {
            printf("\n%s:\n", o->name);
            continue;
        }
        char left[80];
        size_t at = 0;
        for (const char *p = o->name; *p && at + 2 < sizeof left; p++) {
            if (*p == '|') {
                left[at++] = ',';
                left[at++] = ' ';
            } else {
                left[at++] = *p;
            }
        }
        snprintf(left + at, sizeof left - at, "%s%s", o->metavar ? " " : "",
                 o->metavar ? o->metavar : "");
        if (strlen(left) > 28)
            printf("  %s\n  %-28s  %s\n", left, "", o->help);
        else
            printf("  %-28s  %s\n", left, o->help);
    }
    printf("  %-28s  show this text\n", "--help, -h");
}

/* Reads "512", "4G", "1.5M"; returns false when it is no size. */
static bool parse_size(const char *s, size_t *out)
{
    char *end;
    errno = 0;
    double v = strtod(s, &end);
    if (end == s || errno || !(v >= 0))
        return false;
    double unit = 1;
    if (*end == 'K' || *end == 'k')
        unit = 1024.0;
    else if (*end == 'M' || *end == 'm')
        unit = 1024.0 * 1024;
    else if (*end == 'G' || *end == 'g')
        unit = 1024.0 * 1024 * 1024;
    if (unit > 1)
        end++;
    if (*end == 'i')
        end++;
    if (*end == 'B')
        end++;
    if (*end || v * unit >= 9e18)
        return false;
    *out = (size_t)(v * unit);
    return true;
}

/* Stores text into the option; returns NULL or what was expected instead. */
static const char *store(const st_opt *o, const char *text, char *buf, size_t cap)
{
    char *end;
    errno = 0;
    switch (o->type) {
    case ST_OPT_STRING:
        *(const char **)o->value = text;
        return NULL;
    case ST_OPT_LIST: {
        st_opt_list *list = o->value;
        if (list->n == ST_OPT_LIST_MAX)
            return "at most 64 of these";
        list->items[list->n++] = text;
        return NULL;
    }
    case ST_OPT_SIZE:
        return parse_size(text, o->value) ? NULL : "a size such as 512M or 4G";
    case ST_OPT_U64: {
        unsigned long long v = strtoull(text, &end, 10);
        if (end == text || *end || errno || *text == '-')
            return "a number from 0 to 18446744073709551615";
        *(uint64_t *)o->value = v;
        return NULL;
    }
    case ST_OPT_INT: {
        long long v = strtoll(text, &end, 10);
        bool ranged = o->min < o->max;
        double lo = ranged ? o->min : INT32_MIN, hi = ranged ? o->max : INT32_MAX;
        if (end == text || *end || errno || (double)v < lo || (double)v > hi) {
            snprintf(buf, cap, "a whole number from %.0f to %.0f", lo, hi);
            return buf;
        }
        *(int32_t *)o->value = (int32_t)v;
        return NULL;
    }
    case ST_OPT_FLOAT: {
        double v = strtod(text, &end);
        if (end == text || *end || v != v || (o->min < o->max && (v < o->min || v > o->max))) {
            if (o->min < o->max)
                snprintf(buf, cap, "a number from %g to %g", o->min, o->max);
            else
                snprintf(buf, cap, "a number");
            return buf;
        }
        *(float *)o->value = (float)v;
        return NULL;
    }
    case ST_OPT_FLAG:
    case ST_OPT_HEADING:
        break;
    }
    return NULL;
}

static int complain(const st_command *cmd, const char *what, const char *arg, const char *expected)
{
    fprintf(stderr, "starling %s: %s '%s'", cmd->name, what, arg);
    if (expected)
        fprintf(stderr, ": expected %s", expected);
    fprintf(stderr, "\n`starling %s --help` lists the options\n", cmd->name);
    return ST_EXIT_USAGE;
}

int st_options_parse(const st_command *cmd, const st_opt *opts, size_t n_opts, int argc,
                     char **argv, const char **args, int *n_args)
{
    bool options_end = false;
    *n_args = 0;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (options_end || arg[0] != '-' || arg[1] == '\0') {
            if (*n_args >= cmd->max_args)
                return complain(cmd, "unexpected argument", arg, NULL);
            args[(*n_args)++] = arg;
            continue;
        }
        if (strcmp(arg, "--") == 0) {
            options_end = true;
            continue;
        }
        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            print_help(cmd, opts, n_opts);
            return ST_EXIT_OK;
        }
        size_t len = strcspn(arg, "=");
        const st_opt *o = NULL;
        for (size_t k = 0; k < n_opts && !o; k++)
            if (opts[k].type != ST_OPT_HEADING && spelled(opts[k].name, arg, len))
                o = &opts[k];
        if (!o)
            return complain(cmd, "unknown option", arg, NULL);
        if (o->type == ST_OPT_FLAG) {
            if (arg[len])
                return complain(cmd, "option takes no value:", arg, NULL);
            *(bool *)o->value = true;
            continue;
        }
        const char *text = arg[len] ? arg + len + 1 : i + 1 < argc ? argv[++i] : NULL;
        if (!text)
            return complain(cmd, "option needs a value:", arg, NULL);
        char buf[128];
        const char *expected = store(o, text, buf, sizeof buf);
        if (expected) {
            fprintf(stderr, "starling %s: %.*s does not take '%s': expected %s\n", cmd->name,
                    (int)len, arg, text, expected);
            return ST_EXIT_USAGE;
        }
    }
    if (*n_args < cmd->min_args) {
        fprintf(stderr, "usage: %s\n`starling %s --help` explains\n", cmd->usage, cmd->name);
        return ST_EXIT_USAGE;
    }
    return -1;
}

int st_model_dir(const char *arg, char *out, size_t cap)
{
    static const char *const beside[] = {"../models/lexicon/int8",
                                         "../share/starling/models/lexicon/int8"};
    const char *env = getenv("STARLING_LEXICON");
    if (arg && !*arg) { /* a script's variable that was never set */
        fprintf(stderr, "starling: MODEL is empty: expected a checkpoint folder\n");
        return 1;
    }
    if (arg || env) {
        snprintf(out, cap, "%s", arg ? arg : env);
        return 0;
    }
    char exe[PATH_MAX], probe[PATH_MAX + 64];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n > 0) {
        exe[n] = '\0';
        *strrchr(exe, '/') = '\0';
        for (size_t i = 0; i < sizeof beside / sizeof *beside; i++) {
            snprintf(probe, sizeof probe, "%s/%s/config.json", exe, beside[i]);
            char file[PATH_MAX];
            if (realpath(probe, file)) {
                snprintf(out, cap, "%.*s", (int)(strrchr(file, '/') - file), file);
                return 0;
            }
        }
    }
    fprintf(stderr, "starling: the lexicon model was not found beside the binary; name a "
                    "checkpoint folder, or set STARLING_LEXICON to the lexicon's folder\n");
    return 1;
}

bool st_opt_kv_dtype(const char *command, const char *name, st_dtype *out)
{
    static const struct {
        const char *name;
        st_dtype dtype;
    } names[] = {{"bf16", ST_BF16}, {"bfloat16", ST_BF16}, {"auto", ST_BF16},
                 {"f32", ST_F32},   {"float32", ST_F32},   {"int8", ST_I8}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i].name) == 0) {
            *out = names[i].dtype;
            return true;
        }
    fprintf(stderr,
            "starling %s: --kv-cache-dtype does not take '%s': expected bf16, f32 or int8\n",
            command, name);
    return false;
}
