/* `starling up`: engines and the gateway in front of them, on one machine, started and stopped
 * together. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/commands.h"
#include "cli/loading.h"
#include "cli/options.h"
#include "cli/up_config.h"
#include "cli/up_once.h"
#include "cli/up_stack.h"
#include "cli/up_user.h"

typedef struct up_args {
    st_up_config config;
    int32_t port, prefill, decode, workers, threads, max_tokens, drain_timeout;
    const char *host, *kv_cache_dtype, *pack_cache, *handoff, *nginx, *module, *once;
    uint64_t seed;
    float temperature;
    st_opt_list names, keys, engine_options;
    bool dry_run;
} up_args;

static const st_command command = {
    "up", "starling up [MODEL] [options]",
    "Serves a checkpoint by the whole stack on this machine: prefill engines, decode engines, and\n"
    "nginx with the gateway module in front of them. All of it lives in a private folder, runs\n"
    "as the user who calls (as nobody for root), and ends together: SIGTERM or Ctrl-C lets running "
    "requests finish.\n"
    "The environment's STARLING_API_KEY adds to --api-key. Defaults are in brackets.",
    0, 1};

static int parse_args(up_args *a, int argc, char **argv, const char **model, int *n_args)
{
    const st_opt opts[] = {
        {"address", ST_OPT_HEADING, NULL, NULL, NULL, 0, 0},
        {"--host", ST_OPT_STRING, &a->host, "ADDRESS",
         "where to listen; :: for IPv6 and IPv4 (0.0.0.0)", 0, 0},
        {"--port", ST_OPT_INT, &a->port, "PORT", "TCP port; 0: any free one (8000)", 0, 65535},
        {"--api-key", ST_OPT_LIST, &a->keys, "KEY", "clients must send one of these; repeatable", 0,
         0},
        {"engines", ST_OPT_HEADING, NULL, NULL, NULL, 0, 0},
        {"--prefill", ST_OPT_INT, &a->prefill, "N",
         "prefill engines; 0: the others do whole requests (1)", 0, ST_UP_ENGINES_MAX / 2},
        {"--decode", ST_OPT_INT, &a->decode, "N", "decode engines (1)", 1, ST_UP_ENGINES_MAX / 2},
        {"--handoff", ST_OPT_STRING, &a->handoff, "MODE",
         "sequential: decode fetches the prompt's KV; parallel: it is sent as it is made "
         "(sequential)",
         0, 0},
        {"--skip-prefill", ST_OPT_INT, &a->config.skip_prefill, "TOKENS",
         "prompts with fewer tokens left to compute stay with the decode engine (1)", 0, 1 << 30},
        {"--served-model-name", ST_OPT_LIST, &a->names, "NAME",
         "the model's name; more of them are aliases (the folder's)", 0, 0},
        {"--threads", ST_OPT_INT, &a->threads, "N",
         "compute threads of each engine (the processors, shared out)", 1, 1024},
        {"--kv-cache-dtype", ST_OPT_STRING, &a->kv_cache_dtype, "TYPE",
         "KV memory of each engine: bf16, f32 or int8 (bf16)", 0, 0},
        {"--pack-cache", ST_OPT_STRING, &a->pack_cache, "DIR", ST_PACK_CACHE_HELP, 0, 0},
        {"--engine-option", ST_OPT_LIST, &a->engine_options, "OPTION",
         "handed to each engine, such as --engine-option=--max-model-len=4096; repeatable", 0, 0},
        {"gateway", ST_OPT_HEADING, NULL, NULL, NULL, 0, 0},
        {"--workers", ST_OPT_INT, &a->workers, "N", "nginx' worker processes (2)", 1, 128},
        {"--nginx", ST_OPT_STRING, &a->nginx, "PATH", "nginx (/usr/sbin/nginx, or in PATH)", 0, 0},
        {"--module", ST_OPT_STRING, &a->module, "PATH",
         "ngx_http_starling_module.so (beside starling, or where it was installed)", 0, 0},
        {"--drain-timeout", ST_OPT_INT, &a->drain_timeout, "SECONDS",
         "time for running requests after SIGTERM (30)", 0, 86400},
        {"--dry-run", ST_OPT_FLAG, &a->dry_run, NULL, "print nginx.conf and exit", 0, 0},
        {"one question", ST_OPT_HEADING, NULL, NULL, NULL, 0, 0},
        {"--once", ST_OPT_STRING, &a->once, "PROMPT",
         "start all without a TCP port, print the answer, stop", 0, 0},
        {"--max-tokens", ST_OPT_INT, &a->max_tokens, "N", "longest answer", 1, 1e9},
        {"--temperature", ST_OPT_FLOAT, &a->temperature, "T", "0: always the likeliest token", 0,
         100},
        {"--seed", ST_OPT_U64, &a->seed, "N", "the same seed gives the same answer", 0, 0},
    };
    return st_options_parse(&command, opts, sizeof opts / sizeof *opts, argc, argv, model, n_args);
}

/* --- where things are ---------------------------------------------------------------------- */

static st_status find_nginx(const char **nginx, char *out, size_t cap, st_error *err)
{
    if (*nginx)
        return access(*nginx, X_OK)
                   ? st_fail(err, ST_ENOTFOUND, "--nginx %s: %s", *nginx, strerror(errno))
                   : ST_OK;
    const char *path = getenv("PATH");
    char dirs[4096];
    snprintf(dirs, sizeof dirs, "/usr/sbin:%s:/usr/local/sbin", path ? path : "");
    char *state = NULL;
    for (char *d = strtok_r(dirs, ":", &state); d; d = strtok_r(NULL, ":", &state)) {
        snprintf(out, cap, "%s/nginx", d);
        if (d[0] == '/' && access(out, X_OK) == 0) {
            *nginx = out;
            return ST_OK;
        }
    }
    return st_fail(err, ST_ENOTFOUND,
                   "nginx is neither in PATH nor in /usr/sbin (Debian: apt install nginx); "
                   "--nginx says where it is");
}

/* self: the path of this program */
static st_status find_module(const char **module, const char *self, char *out, size_t cap,
                             st_error *err)
{
    static const char *const places[] = {"", "../lib/nginx/modules/",
                                         "../lib/x86_64-linux-gnu/nginx/modules/",
                                         "../lib/aarch64-linux-gnu/nginx/modules/"};
    int dir = (int)(strrchr(self, '/') + 1 - self);
    if (*module) {
        if (!realpath(*module, out))
            return st_fail(err, ST_ENOTFOUND, "--module %s: %s", *module, strerror(errno));
        *module = out;
        return ST_OK;
    }
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(out, cap, "%.*s%sngx_http_starling_module.so", dir, self, places[i]);
        if (access(out, R_OK) == 0) {
            *module = out;
            return ST_OK;
        }
    }
    return st_fail(err, ST_ENOTFOUND,
                   "ngx_http_starling_module.so is not beside %s: it is built where nginx-dev is "
                   "installed; --module says where it is",
                   self);
}

/* The last part of the folder's real path; the built-in model has a name of its own. */
static const char *model_name(const char *arg, const char *dir)
{
    const char *slash = strrchr(dir, '/');
    return !arg ? "lexicon" : slash && slash[1] ? slash + 1 : dir;
}

/* --- starting ------------------------------------------------------------------------------ */

/* Engine k of n gets processors of its own: each pins its threads from its first one on, and two
 * that pin to the same would take turns. False: there are fewer processors than engines. */
static bool engine_cpus(int n, int k, cpu_set_t *out)
{
    cpu_set_t all;
    if (sched_getaffinity(0, sizeof all, &all) || CPU_COUNT(&all) < n)
        return false;
    int count = CPU_COUNT(&all), from = k * count / n, to = (k + 1) * count / n, nth = 0;
    CPU_ZERO(out);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all)) {
            if (nth >= from && nth < to)
                CPU_SET(cpu, out);
            nth++;
        }
    return true;
}

static st_status start_engine(st_up_stack *s, const up_args *a, const char *self, bool prefill,
                              int i, st_error *err)
{
    const st_up_config *c = &a->config;
    char uds[ST_UP_PATH_MAX + 32], name[48], threads[24];
    cpu_set_t cpus;
    bool own_cpus = engine_cpus(c->prefill + c->decode, prefill ? i : c->prefill + i, &cpus);
    char *argv[3 * ST_OPT_LIST_MAX + 16]; /* a name takes two */
    size_t n = 0;
    const char *role = prefill ? "prefill" : c->prefill ? "decode" : "both";
    st_up_engine_socket(c, prefill, i, uds, sizeof uds);
    snprintf(name, sizeof name, "%s%sengine %d", c->prefill ? role : "", c->prefill ? " " : "", i);
    snprintf(threads, sizeof threads, "%d",
             a->threads ? a->threads
             : own_cpus ? CPU_COUNT(&cpus)
                        : 1);
    argv[n++] = (char *)self;
    argv[n++] = "serve";
    argv[n++] = (char *)c->model_dir;
    argv[n++] = "--uds";
    argv[n++] = uds;
    argv[n++] = "--role";
    argv[n++] = (char *)role;
    argv[n++] = "--enable-kv-events";
    argv[n++] = "--threads";
    argv[n++] = threads;
    for (size_t k = 0; k < c->n_names; k++) {
        argv[n++] = "--served-model-name";
        argv[n++] = (char *)c->names[k];
    }
    if (a->kv_cache_dtype) {
        argv[n++] = "--kv-cache-dtype";
        argv[n++] = (char *)a->kv_cache_dtype;
    }
    if (a->pack_cache) {
        argv[n++] = "--pack-cache";
        argv[n++] = (char *)a->pack_cache;
    }
    for (size_t k = 0; k < a->engine_options.n; k++)
        argv[n++] = (char *)a->engine_options.items[k];
    argv[n] = NULL;
    return st_up_spawn(s, name, false, own_cpus ? &cpus : NULL, argv, err);
}

/* Waits until the engine answers: a socket that only takes connections may be that of its check,
 * before loading, whether the address is free. Root's sockets are opened for the gateway's workers.
 */
static st_status wait_engine(st_up_stack *stack, const char *uds, st_error *err)
{
    for (;;) {
        st_buf body = ST_BUF_INIT;
        int status = 0;
        st_status s = st_up_get(uds, "/health", &status, &body);
        st_buf_free(&body);
        if (s == ST_OK && status == 200) {
            if (getuid() == 0 && chmod(uds, 0666))
                return st_fail(err, ST_EIO, "%s: %s", uds, strerror(errno));
            return ST_OK;
        }
        switch (st_up_wait(stack, -1, 20, err)) {
        case ST_UP_STOP:
            return st_fail(err, ST_ECANCELLED, "interrupted");
        case ST_UP_DIED:
            return ST_EIO;
        default:
            break;
        }
    }
}

static st_status start_engines(st_up_stack *s, const up_args *a, const char *self, st_error *err)
{
    const st_up_config *c = &a->config;
    int n = c->prefill + c->decode;
    st_status st = ST_OK;
    for (int i = 0; !st && i < n; i++) {
        bool prefill = i < c->prefill;
        st = start_engine(s, a, self, prefill, prefill ? i : i - c->prefill, err);
    }
    for (int i = 0; !st && i < n; i++) {
        bool prefill = i < c->prefill;
        char uds[ST_UP_PATH_MAX + 32];
        st_up_engine_socket(c, prefill, prefill ? i : i - c->prefill, uds, sizeof uds);
        st = wait_engine(s, uds, err);
    }
    return st;
}

static st_status write_conf(const char *path, const st_buf *conf, st_error *err)
{
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
    bool ok = fd >= 0 && write(fd, conf->data, conf->len) == (ssize_t)conf->len;
    if (fd >= 0)
        ok &= close(fd) == 0;
    return ok ? ST_OK : st_fail(err, ST_EIO, "%s: %s", path, strerror(errno));
}

static int engines_up(const char *socket)
{
    st_buf body = ST_BUF_INIT;
    int status, n = 0;
    if (st_up_get(socket, "/starling/status", &status, &body) == ST_OK && status == 200)
        for (const char *p = body.data; p && (p = strstr(p, "\"health\":\"up\"")); p++)
            n++;
    st_buf_free(&body);
    return n;
}

static st_status start_gateway(st_up_stack *s, const up_args *a, const char *socket, st_error *err)
{
    const st_up_config *c = &a->config;
    char path[ST_UP_PATH_MAX + 32];
    st_buf conf = ST_BUF_INIT;
    snprintf(path, sizeof path, "%s/nginx.conf", s->dir);
    st_status st = st_up_nginx_conf(c, &conf, err);
    if (!st)
        st = write_conf(path, &conf, err);
    st_buf_free(&conf);
    char *argv[] = {(char *)a->nginx, "-p", s->dir, "-c", path, "-e", "stderr", NULL};
    if (!st)
        st = st_up_spawn(s, "gateway", true, NULL, argv, err);
    while (!st && engines_up(socket) < c->prefill + c->decode) {
        st_up_event e = st_up_wait(s, -1, 20, err);
        if (e == ST_UP_DIED || e == ST_UP_STOP)
            st = e == ST_UP_STOP ? st_fail(err, ST_ECANCELLED, "interrupted") : ST_EIO;
    }
    return st;
}

/* --- running ------------------------------------------------------------------------------- */

static void announce(const up_args *a, uint64_t start)
{
    const st_up_config *c = &a->config;
    bool any = strcmp(c->host, "0.0.0.0") == 0 || strcmp(c->host, "::") == 0;
    bool v6 = !any && strchr(c->host, ':');
    char url[512];
    snprintf(url, sizeof url, "http://%s%s%s:%d", v6 ? "[" : "", any ? "127.0.0.1" : c->host,
             v6 ? "]" : "", c->port);
    if (c->prefill)
        printf("%s ready in %.2f s: %d prefill and %d decode engine%s, %s handoff\n", c->names[0],
               (double)(st_now_ns() - start) / 1e9, c->prefill, c->decode, c->decode > 1 ? "s" : "",
               c->parallel ? "parallel" : "sequential");
    else
        printf("%s ready in %.2f s: %d engine%s\n", c->names[0],
               (double)(st_now_ns() - start) / 1e9, c->decode, c->decode > 1 ? "s" : "");
    printf("serving on %s; what goes on: %s/starling/status\n\n", url, url);
    printf("curl %s/v1/chat/completions -H 'Content-Type: application/json'%s -d '{\"model\": "
           "\"%s\", \"messages\": [{\"role\": \"user\", \"content\": \"What does courage mean?\"}]}"
           "'\n\n",
           url, c->n_api_keys ? " -H 'Authorization: Bearer KEY'" : "", c->names[0]);
    fflush(stdout);
}

/* The last lines of what the children said, for --once, where they are silent. */
static void show_log(const st_up_stack *s)
{
    char text[4096];
    off_t size = s->log < 0 ? 0 : lseek(s->log, 0, SEEK_END);
    off_t from = size > (off_t)sizeof text ? size - (off_t)sizeof text : 0;
    ssize_t n = size > 0 ? pread(s->log, text, sizeof text, from) : 0;
    if (n > 0)
        fwrite(text, 1, (size_t)n, stderr);
}

static st_status run(st_up_stack *s, up_args *a, const char *self, uint64_t start, st_error *err)
{
    char socket[ST_UP_PATH_MAX + 32];
    snprintf(socket, sizeof socket, "%s/gateway.sock", s->dir);
    st_status st = start_engines(s, a, self, err);
    if (!st)
        st = start_gateway(s, a, socket, err);
    if (!st && a->once) {
        st_up_question q = {.model = a->config.names[0],
                            .api_key = a->config.n_api_keys ? a->config.api_keys[0] : NULL,
                            .prompt = a->once,
                            .max_tokens = a->max_tokens,
                            .temperature = a->temperature,
                            .seed = a->seed,
                            .has_seed = a->seed != UINT64_MAX};
        return st_up_ask(s, socket, &q, err);
    }
    if (!st)
        announce(a, start);
    while (!st) {
        st_up_event e = st_up_wait(s, -1, -1, err);
        if (e == ST_UP_STOP)
            break;
        if (e == ST_UP_DIED)
            st = ST_EIO;
    }
    return st;
}

static st_status dry_run(up_args *a, st_error *err)
{
    st_buf conf = ST_BUF_INIT;
    a->config.dir = "/run/starling";
    st_status s = st_up_nginx_conf(&a->config, &conf, err);
    if (!s)
        fwrite(conf.data, 1, conf.len, stdout);
    st_buf_free(&conf);
    return s;
}

/* What options mean; strings that are made live in the caller's memory. */
static st_status apply_args(up_args *a, const char *self, char *nginx, char *module, size_t cap,
                            st_error *err)
{
    st_up_config *c = &a->config;
    c->parallel = strcmp(a->handoff, "parallel") == 0;
    if (!c->parallel && strcmp(a->handoff, "sequential") != 0)
        return st_fail(err, ST_EINVAL, "--handoff %s: expected sequential or parallel", a->handoff);
    const char *key = getenv("STARLING_API_KEY");
    if (key && *key) {
        if (a->keys.n == ST_OPT_LIST_MAX)
            return st_fail(err, ST_EINVAL, "more than %d keys", ST_OPT_LIST_MAX);
        a->keys.items[a->keys.n++] = key;
    }
    c->names = a->names.items;
    c->n_names = a->names.n;
    c->api_keys = a->keys.items;
    c->n_api_keys = a->keys.n;
    c->prefill = a->prefill;
    c->decode = a->decode;
    c->workers = a->workers;
    c->host = a->once ? NULL : a->host;
    c->port = a->port;
    st_status s = find_nginx(&a->nginx, nginx, cap, err);
    if (!s)
        s = find_module(&a->module, self, module, cap, err);
    c->module = a->module;
    if (!s && c->host && !a->dry_run)
        s = st_up_check_port(c->host, &c->port, err);
    /* The gateway asks for keys; its engines sit behind sockets of this user. */
    unsetenv("STARLING_API_KEY");
    return s;
}

/* Only ports below 1024 need root. */
static void give_up_root(const st_up_config *c, const char *self, const char *nginx, bool quiet)
{
    const char *const files[] = {self, nginx, c->module, c->model_dir};
    if (c->host && c->port < 1024)
        return;
    const char *why = st_up_drop_root(files, sizeof files / sizeof *files);
    if (why && !quiet)
        fprintf(stderr, "starling up: engines run as root, since user nobody cannot read %s\n",
                why);
}

int st_cmd_up(int argc, char **argv)
{
    up_args a = {.port = 8000,
                 .host = "0.0.0.0",
                 .prefill = 1,
                 .decode = 1,
                 .workers = 2,
                 .handoff = "sequential",
                 .config.skip_prefill = 1,
                 .drain_timeout = 30,
                 .temperature = NAN,
                 .seed = UINT64_MAX};
    uint64_t start = st_now_ns();
    const char *arg = NULL;
    int n_args = 0;
    char found[4096], dir[PATH_MAX], self[PATH_MAX], nginx[PATH_MAX], module[PATH_MAX];
    st_error err = {0};
    int code = parse_args(&a, argc, argv, &arg, &n_args);
    if (code >= 0)
        return code;
    if (st_model_dir(n_args ? arg : NULL, found, sizeof found))
        return ST_EXIT_FAILED;
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = '\0';
    if (n <= 0 || !realpath(found, dir)) {
        fprintf(stderr, "starling up: %s: %s\n", n <= 0 ? "/proc/self/exe" : found,
                strerror(errno));
        return ST_EXIT_FAILED;
    }
    a.config.model_dir = dir;
    if (!a.names.n)
        a.names.items[a.names.n++] = model_name(n_args ? arg : NULL, dir);
    st_status s = apply_args(&a, self, nginx, module, sizeof nginx, &err);
    if (!s && !a.dry_run)
        give_up_root(&a.config, self, a.nginx, a.once != NULL);
    if (!s && a.dry_run) {
        s = dry_run(&a, &err);
    } else if (!s) {
        st_up_stack stack;
        s = st_up_open(&stack, a.once != NULL, &err);
        a.config.dir = stack.dir;
        if (!s)
            s = run(&stack, &a, self, start, &err);
        if (s && s != ST_ECANCELLED)
            show_log(&stack);
        if (s)
            fprintf(stderr, "starling up: %s%s\n", err.text,
                    s == ST_ECANCELLED ? "" : "; all of it is stopped");
        st_up_close(&stack, s ? 1 : a.drain_timeout);
        return s ? ST_EXIT_FAILED : ST_EXIT_OK;
    }
    if (s)
        fprintf(stderr, "starling up: %s\n", err.text);
    return s ? ST_EXIT_FAILED : ST_EXIT_OK;
}
