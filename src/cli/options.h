/* Command-line options from one table: parsing, checking and --help come from the same rows. */
#ifndef ST_CLI_OPTIONS_H
#define ST_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

#include "starling/dtype.h"

typedef enum st_opt_type {
    ST_OPT_FLAG,   /* bool *: set to true */
    ST_OPT_INT,    /* int32_t *, min..max */
    ST_OPT_U64,    /* uint64_t * */
    ST_OPT_SIZE,   /* size_t *: bytes, suffixes K M G (powers of 1024) */
    ST_OPT_FLOAT,  /* float *, min..max */
    ST_OPT_STRING, /* const char ** */
    ST_OPT_LIST,   /* st_opt_list *: may be given several times */
    ST_OPT_HEADING /* not an option: starts a group in --help */
} st_opt_type;

enum { ST_OPT_LIST_MAX = 64 };

typedef struct st_opt_list {
    const char *items[ST_OPT_LIST_MAX];
    size_t n;
} st_opt_list;

typedef struct st_opt {
    const char *name; /* "--port"; several spellings separated by '|': "--prompt|-p" */
    st_opt_type type;
    void *value;
    const char *metavar; /* "PORT" */
    const char *help;
    double min, max; /* for INT and FLOAT, when min < max */
} st_opt;

typedef struct st_command {
    const char *name;       /* "serve" */
    const char *usage;      /* "starling serve [MODEL] [options]" */
    const char *about;      /* a paragraph or more */
    int min_args, max_args; /* positional arguments */
} st_command;

/* Parses argv[1..argc). `--name value` and `--name=value`; `--` ends options. Positional
 * arguments go to args[0..*n_args). Returns -1 to go on, else the exit code: 0 after --help, 2
 * after printing to stderr what was wrong and how to get help. */
int st_options_parse(const st_command *cmd, const st_opt *opts, size_t n_opts, int argc,
                     char **argv, const char **args, int *n_args);

/* The type that --kv-cache-dtype names; false after printing what the command expected. */
bool st_opt_kv_dtype(const char *command, const char *name, st_dtype *out);

enum { ST_EXIT_OK = 0, ST_EXIT_FAILED = 1, ST_EXIT_USAGE = 2 };

/* The folder of MODEL: the argument itself, or the lexicon's when arg is NULL: $STARLING_LEXICON,
 * ../models/lexicon/int8 beside the binary's folder, ../share/starling/models/lexicon/int8.
 * Writes to out; returns 0, or 1 after printing a message. */
int st_model_dir(const char *arg, char *out, size_t cap);

#endif
