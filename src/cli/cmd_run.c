/* `starling run`: chats in the terminal, or answers one prompt. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/chat_session.h"
#include "cli/commands.h"
#include "cli/options.h"

typedef struct run_args {
    const char *prompt, *system, *kv_cache_dtype;
    st_loading loading;
    float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k, max_tokens, min_tokens;
    uint64_t seed;
    bool raw, ignore_eos;
    st_opt_list stops;
} run_args;

enum { NOT_GIVEN = -2 };

static const st_command command = {
    "run", "starling run [MODEL] [-p PROMPT] [options]",
    "Chats with a checkpoint in the terminal. With -p it answers one prompt on standard output\n"
    "and exits. Ctrl-C stops the answer that is being given; at the prompt it ends the chat.\n"
    "In a chat, /help lists what else can be typed.",
    0, 1};

/* --- options ------------------------------------------------------------------------------- */

static int parse_args(run_args *a, int argc, char **argv, const char **model, int *n_args)
{
    st_engine_options *e = &a->loading.engine;
    const st_opt opts[] = {
        {"--prompt|-p", ST_OPT_STRING, &a->prompt, "TEXT",
         "answer this and exit; - reads standard input", 0, 0},
        {"--system", ST_OPT_STRING, &a->system, "TEXT", "the system message", 0, 0},
        {"--raw", ST_OPT_FLAG, &a->raw, NULL, "complete the text as it is, without chat template",
         0, 0},
        {"sampling (defaults are the checkpoint's)", ST_OPT_HEADING, NULL, NULL, NULL, 0, 0},
        {"--temperature", ST_OPT_FLOAT, &a->temperature, "T", "0: always the likeliest token", 0,
         100},
        {"--top-p", ST_OPT_FLOAT, &a->top_p, "P", "likeliest tokens that hold this probability",
         1e-9, 1},
        {"--top-k", ST_OPT_INT, &a->top_k, "K", "only the K likeliest; 0: all", -1, 1e9},
        {"--min-p", ST_OPT_FLOAT, &a->min_p, "P", "least probability, relative to the likeliest", 0,
         1},
        {"--repetition-penalty", ST_OPT_FLOAT, &a->repetition_penalty, "X", "1: none", 1e-9, 100},
        {"--presence-penalty", ST_OPT_FLOAT, &a->presence_penalty, "X", "0: none", -2, 2},
        {"--frequency-penalty", ST_OPT_FLOAT, &a->frequency_penalty, "X", "0: none", -2, 2},
        {"--seed", ST_OPT_U64, &a->seed, "N", "the same seed gives the same answer", 0, 0},
        {"--max-tokens", ST_OPT_INT, &a->max_tokens, "N", "longest answer", 1, 1e9},
        {"--min-tokens", ST_OPT_INT, &a->min_tokens, "N", "shortest answer", 0, 1e9},
        {"--stop", ST_OPT_LIST, &a->stops, "TEXT", "end the answer before TEXT; may be repeated", 0,
         0},
        {"--ignore-eos", ST_OPT_FLAG, &a->ignore_eos, NULL, "go on behind the end of the answer", 0,
         0},
        {"model", ST_OPT_HEADING, NULL, NULL, NULL, 0, 0},
        {"--chat-template", ST_OPT_STRING, &a->loading.chat_template, "FILE",
         "a chat template instead of the checkpoint's", 0, 0},
        {"--max-model-len", ST_OPT_INT, &e->max_model_len, "N",
         "tokens of the whole conversation (the model's)", 1, 16777216},
        {"--kv-cache-memory", ST_OPT_SIZE, &e->kv_cache_memory, "SIZE", "bytes for KV blocks", 0,
         0},
        {"--kv-cache-dtype", ST_OPT_STRING, &a->kv_cache_dtype, "TYPE", "bf16, f32 or int8 (bf16)",
         0, 0},
        {"--pack-cache", ST_OPT_STRING, &a->loading.pack_cache, "DIR", ST_PACK_CACHE_HELP, 0, 0},
        {"--threads", ST_OPT_INT, &a->loading.threads, "N", "compute threads (all processors)", 0,
         1024},
    };
    return st_options_parse(&command, opts, sizeof opts / sizeof *opts, argc, argv, model, n_args);
}

/* 0.7f as 0.7, not as 0.699999988079071. */
static json_t *decimal(float f)
{
    char text[32];
    snprintf(text, sizeof text, "%.7g", (double)f);
    return json_real(strtod(text, NULL));
}

static void set_float(json_t *o, const char *name, float f)
{
    if (!isnan(f))
        json_object_set_new(o, name, decimal(f));
}

static void set_int(json_t *o, const char *name, int32_t i)
{
    if (i != NOT_GIVEN)
        json_object_set_new(o, name, json_integer(i));
}

/* The options as fields of a request. */
static json_t *request_fields(const run_args *a)
{
    json_t *o = json_object();
    set_float(o, "temperature", a->temperature);
    set_float(o, "top_p", a->top_p);
    set_float(o, "min_p", a->min_p);
    set_float(o, "repetition_penalty", a->repetition_penalty);
    set_float(o, "presence_penalty", a->presence_penalty);
    set_float(o, "frequency_penalty", a->frequency_penalty);
    set_int(o, "top_k", a->top_k);
    set_int(o, "max_tokens", a->max_tokens);
    set_int(o, "min_tokens", a->min_tokens);
    if (a->seed != UINT64_MAX)
        json_object_set_new(o, "seed", json_integer((json_int_t)(a->seed & INT64_MAX)));
    if (a->ignore_eos)
        json_object_set_new(o, "ignore_eos", json_true());
    if (a->stops.n) {
        json_t *stops = json_array();
        for (size_t i = 0; i < a->stops.n; i++)
            json_array_append_new(stops, json_string(a->stops.items[i]));
        json_object_set_new(o, "stop", stops);
    }
    return o;
}

/* --- signals ------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupts;
/* A byte for each interrupt: one that comes just before the terminal is read must wake that read,
 * too. */
static int wake_pipe[2];

static void on_interrupt(int sig)
{
    (void)sig;
    int saved = errno;
    interrupts++;
    (void)!write(wake_pipe[1], "", 1);
    errno = saved;
}

/* Waits for a line on the terminal; false: interrupted. */
static bool wait_for_line(void)
{
    struct pollfd fds[] = {{.fd = STDIN_FILENO, .events = POLLIN},
                           {.fd = wake_pipe[0], .events = POLLIN}};
    while (!interrupts) {
        if (poll(fds, 2, -1) < 0)
            continue; /* a signal: looked at above */
        if (!fds[1].revents)
            return true;
        char stale[64]; /* of interrupts that have been dealt with, unless one is new */
        while (read(wake_pipe[0], stale, sizeof stale) > 0)
            ;
    }
    return false;
}

/* Without SA_RESTART: a read from the terminal is to return. */
static bool catch_interrupts(void)
{
    struct sigaction act = {.sa_handler = on_interrupt};
    sigemptyset(&act.sa_mask);
    if (pipe2(wake_pipe, O_NONBLOCK | O_CLOEXEC) || sigaction(SIGINT, &act, NULL)) {
        fprintf(stderr, "starling run: signals: %s\n", strerror(errno));
        return false;
    }
    return true;
}

/* --- output -------------------------------------------------------------------------------- */

static int failed(const st_error *err)
{
    fprintf(stderr, "starling run: %s\n", err->text);
    return ST_EXIT_FAILED;
}

static void print_stats(FILE *to, const st_chat_stats *s)
{
    fprintf(to, "%d prompt tokens (%d cached), first token after %.0f ms, %d generated",
            s->prompt_tokens, s->cached_tokens, s->first_token_s * 1e3, s->generated_tokens);
    if (s->decode_s > 0 && s->generated_tokens > 1)
        fprintf(to, ", %.1f tokens/s", (s->generated_tokens - 1) / s->decode_s);
    fprintf(to, "%s",
            s->finish == ST_FINISH_LENGTH      ? ", cut at the longest length"
            : s->finish == ST_FINISH_CANCELLED ? ", stopped"
                                               : "");
}

static void print_stats_dimmed(const st_chat_stats *s)
{
    if (!isatty(STDERR_FILENO))
        return;
    fputs("\033[2m", stderr);
    print_stats(stderr, s);
    fputs("\033[0m\n", stderr);
}

/* --- one prompt ---------------------------------------------------------------------------- */

static st_status read_all(FILE *f, st_buf *out, st_error *err)
{
    char chunk[16384];
    size_t n;
    while ((n = fread(chunk, 1, sizeof chunk, f)) > 0)
        if (st_buf_append(out, chunk, n))
            return st_fail(err, ST_ENOMEM, "memory is short");
    if (ferror(f))
        return st_fail(err, ST_EIO, "standard input: %s", strerror(errno));
    return ST_OK;
}

static int run_once(st_chat_session *s, const char *prompt)
{
    st_buf text = ST_BUF_INIT;
    st_chat_stats stats;
    st_error err;
    st_status st = strcmp(prompt, "-") == 0     ? read_all(stdin, &text, &err)
                   : st_buf_puts(&text, prompt) ? st_fail(&err, ST_ENOMEM, "memory is short")
                                                : ST_OK;
    /* The newline that ends a file is no part of the question. */
    if (!st && strcmp(prompt, "-") == 0 && text.len && text.data[text.len - 1] == '\n')
        text.len--;
    if (!st)
        st =
            st_chat_session_ask(s, text.data ? text.data : "", text.len, &interrupts, &stats, &err);
    st_buf_free(&text);
    if (st)
        return failed(&err);
    putchar('\n');
    if (fflush(stdout)) {
        fprintf(stderr, "starling run: standard output: %s\n", strerror(errno));
        return ST_EXIT_FAILED;
    }
    print_stats_dimmed(&stats);
    return stats.finish == ST_FINISH_CANCELLED && interrupts ? 128 + SIGINT : ST_EXIT_OK;
}

/* --- chat ---------------------------------------------------------------------------------- */

static void help(void)
{
    puts("/help    this text\n"
         "/reset   forget the conversation\n"
         "/stats   tokens and times of the last answer, and of the engine\n"
         "/exit    end (also Ctrl-D)\n"
         "A line that ends with \\ goes on in the next. Ctrl-C stops an answer.");
}

static void print_engine_stats(const st_loaded *l, const st_chat_session *s,
                               const st_chat_stats *last)
{
    st_engine_stats e;
    st_engine_get_stats(l->engine, &e);
    print_stats(stdout, last);
    printf("\n%zu turns; %llu prompt tokens and %llu generated in all; %d of %d KV blocks of %d "
           "tokens hold a cached prefix; context %d; %s kernels\n",
           st_chat_session_turns(s), (unsigned long long)e.prompt_tokens,
           (unsigned long long)e.generation_tokens, e.cached_blocks, e.total_blocks, e.block_size,
           st_engine_max_model_len(l->engine), st_model_kernels_name(l->model));
}

/* Reads a line, joined with the next while it ends with a backslash. False at the end of the
 * input, or when Ctrl-C came at the prompt. */
static bool read_line(st_buf *out, bool tty)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    bool more = true, some = false;
    st_buf_clear(out);
    while (more) {
        if (tty) {
            fputs(some ? "... " : ">>> ", stdout);
            fflush(stdout);
        }
        if (tty && !wait_for_line())
            break;
        n = getline(&line, &cap, stdin);
        if (n < 0 || interrupts)
            break;
        some = true;
        if (n && line[n - 1] == '\n')
            n--;
        more = n && line[n - 1] == '\\';
        if (st_buf_append(out, line, (size_t)n - more) || (more && st_buf_putc(out, '\n')))
            break;
    }
    free(line);
    return some && !interrupts;
}

/* Obeys a line that begins with '/'; false: end. */
static bool obey(const char *line, const st_loaded *l, st_chat_session *s,
                 const st_chat_stats *last)
{
    if (strcmp(line, "/exit") == 0 || strcmp(line, "/quit") == 0 || strcmp(line, "/bye") == 0)
        return false;
    if (strcmp(line, "/help") == 0 || strcmp(line, "/?") == 0)
        help();
    else if (strcmp(line, "/reset") == 0)
        st_chat_session_reset(s);
    else if (strcmp(line, "/stats") == 0)
        print_engine_stats(l, s, last);
    else
        printf("there is no command %s; /help lists them\n", line);
    fflush(stdout);
    return true;
}

static int chat(const st_loaded *l, st_chat_session *s)
{
    bool tty = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    st_buf line = ST_BUF_INIT;
    st_chat_stats stats = {0};
    st_error err;
    if (tty)
        puts("Type a message. /help lists the commands.");
    while (read_line(&line, tty)) {
        if (line.len == 0)
            continue;
        if (line.data[0] == '/') {
            if (!obey(line.data, l, s, &stats))
                break;
            continue;
        }
        interrupts = 0;
        if (st_chat_session_ask(s, line.data, line.len, &interrupts, &stats, &err)) {
            failed(&err);
            if (err.status == ST_EIO)
                break;
        } else {
            putchar('\n');
            fflush(stdout);
            print_stats_dimmed(&stats);
        }
        if (interrupts > 1)
            break;
        interrupts = 0;
    }
    if (tty)
        putchar('\n');
    st_buf_free(&line);
    return ferror(stdout) ? ST_EXIT_FAILED : ST_EXIT_OK;
}

static int run(run_args *a)
{
    st_loaded l;
    st_error err;
    st_chat_session *s = NULL;
    json_t *fields = request_fields(a);
    st_chat_options opts = {.system = a->system, .raw = a->raw, .fields = fields};
    int code = ST_EXIT_FAILED;
    if (st_load_all(&a->loading, &l, &err)) {
        failed(&err);
    } else {
        if (st_chat_session_new(&l, &opts, &s, &err)) {
            failed(&err);
        } else {
            code = !catch_interrupts() ? ST_EXIT_FAILED
                   : a->prompt         ? run_once(s, a->prompt)
                                       : chat(&l, s);
        }
        st_chat_session_free(s);
        st_loaded_free(&l);
    }
    json_decref(fields);
    return code;
}

int st_cmd_run(int argc, char **argv)
{
    run_args a = {.kv_cache_dtype = "bf16",
                  .temperature = NAN,
                  .top_p = NAN,
                  .min_p = NAN,
                  .repetition_penalty = NAN,
                  .presence_penalty = NAN,
                  .frequency_penalty = NAN,
                  .top_k = NOT_GIVEN,
                  .max_tokens = NOT_GIVEN,
                  .min_tokens = NOT_GIVEN,
                  .seed = UINT64_MAX,
                  .loading = {.engine = {.max_num_seqs = 1, .kv_dtype = ST_BF16}}};
    const char *arg = NULL;
    char dir[4096];
    int n_args = 0;
    int code = parse_args(&a, argc, argv, &arg, &n_args);
    if (code >= 0)
        return code;
    if (!st_opt_kv_dtype("run", a.kv_cache_dtype, &a.loading.engine.kv_dtype))
        return ST_EXIT_USAGE;
    if (st_model_dir(n_args ? arg : NULL, dir, sizeof dir))
        return ST_EXIT_FAILED;
    a.loading.dir = dir;
    st_log_set_level(ST_LOG_WARN);
    return run(&a);
}
