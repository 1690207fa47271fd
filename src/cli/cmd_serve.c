/* `starling serve`: the HTTP server. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/human.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/loading.h"
#include "cli/options.h"
#include "starling/server.h"

typedef struct serve_args {
    st_server_options server;
    st_loading loading;
    int32_t port, max_connections, drain_timeout;
    int32_t transfer_port, lease_s, events_port, replay_port;
    size_t kv_cache_memory, max_body_size;
    const char *kv_cache_dtype, *prefix_reuse, *log_level, *failure_policy;
    st_opt_list names, keys;
} serve_args;

static const st_command command = {
    "serve", "starling serve [MODEL] [options]",
    "Serves a checkpoint folder over OpenAI's API: /v1/chat/completions, /v1/completions,\n"
    "/v1/models, and /tokenize, /detokenize, /health, /metrics, /version beside it.\n"
    "SIGTERM lets running requests finish, then exits. The environment's STARLING_API_KEY\n"
    "adds to --api-key. Defaults are in brackets.",
    0, 1};

static int parse_args(serve_args *a, int argc, char **argv, const char **model, int *n_args)
{
    st_engine_options *e = &a->loading.engine;
    const st_opt opts[] = {
        {"address", ST_OPT_HEADING, NULL, NULL, NULL, 0, 0},
        {"--host", ST_OPT_STRING, &a->server.host, "ADDRESS",
         "where to listen; :: for IPv6 and IPv4 (0.0.0.0)", 0, 0},
        {"--port", ST_OPT_INT, &a->port, "PORT", "TCP port; 0: any free one (8000)", 0, 65535},
        {"--uds", ST_OPT_STRING, &a->server.uds, "PATH", "a unix socket instead", 0, 0},
        {"--api-key", ST_OPT_LIST, &a->keys, "KEYS",
         "clients must send one of these; comma-separated or repeated (none)", 0, 0},
        {"--allowed-origin", ST_OPT_STRING, &a->server.allow_origin, "ORIGIN",
         "let web pages of ORIGIN (* for all) call the server", 0, 0},
        {"model", ST_OPT_HEADING, NULL, NULL, NULL, 0, 0},
        {"--served-model-name", ST_OPT_LIST, &a->names, "NAMES",
         "names for the model; comma-separated or repeated (the folder's)", 0, 0},
        {"--chat-template", ST_OPT_STRING, &a->loading.chat_template, "FILE",
         "a chat template instead of the checkpoint's", 0, 0},
        {"--pack-cache", ST_OPT_STRING, &a->loading.pack_cache, "DIR", ST_PACK_CACHE_HELP, 0, 0},
        {"--threads", ST_OPT_INT, &a->loading.threads, "N", "compute threads (all processors)", 0,
         1024},
        {"scheduling and memory", ST_OPT_HEADING, NULL, NULL, NULL, 0, 0},
        {"--max-model-len", ST_OPT_INT, &e->max_model_len, "N",
         "tokens of prompt and answer together (the model's)", 1, 16777216},
        {"--max-num-seqs", ST_OPT_INT, &e->max_num_seqs, "N", "requests running at once (256)", 1,
         65536},
        {"--max-num-batched-tokens", ST_OPT_INT, &e->max_num_batched_tokens, "N",
         "tokens per step; fewer: smoother streams, more: faster prompts (512)", 1, 1048576},
        {"--block-size", ST_OPT_INT, &e->block_size, "N", "tokens per KV block (16)", 1, 1024},
        {"--kv-cache-memory", ST_OPT_SIZE, &e->kv_cache_memory, "SIZE",
         "bytes for KV blocks, such as 4G (up to half of what is free)", 0, 0},
        {"--kv-cache-dtype", ST_OPT_STRING, &a->kv_cache_dtype, "TYPE", "bf16, f32 or int8 (bf16)",
         0, 0},
        {"--num-kv-blocks", ST_OPT_INT, &e->num_kv_blocks, "N",
         "KV blocks, instead of --kv-cache-memory", 1, 1e9},
        {"--no-enable-prefix-caching", ST_OPT_FLAG, &e->disable_prefix_caching, NULL,
         "do not reuse the KV of equal prefixes", 0, 0},
        {"--prefix-reuse", ST_OPT_STRING, &a->prefix_reuse, "MODE",
         "exact: only KV with the very bits that would be computed; more: also where MLA's other "
         "form had computed it, such as an answer that is sent back (exact)",
         0, 0},
        {"--max-waiting", ST_OPT_INT, &e->max_waiting, "N",
         "requests that may queue before others get 429 (8192)", 1, 1000000},
        {"prefill and decode on engines of their own, behind a gateway", ST_OPT_HEADING, NULL, NULL,
         NULL, 0, 0},
        {"--role", ST_OPT_STRING, &a->server.role, "ROLE",
         "prefill: computes prompts for others; decode: fetches their KV and generates; both "
         "(both)",
         0, 0},
        {"--kv-transfer-host", ST_OPT_STRING, &e->transfer.host, "ADDRESS",
         "where this engine's KV is moved, as the others reach it; numeric (127.0.0.1)", 0, 0},
        {"--kv-transfer-port", ST_OPT_INT, &a->transfer_port, "PORT",
         "its TCP port; 0: any free one, told by GET /starling/engine. Given with --role both it "
         "lets this engine share KV as well (0)",
         0, 65535},
        {"--kv-load-failure-policy", ST_OPT_STRING, &a->failure_policy, "POLICY",
         "a prompt whose KV cannot be fetched: recompute it here, or fail its request (recompute)",
         0, 0},
        {"--kv-lease-seconds", ST_OPT_INT, &a->lease_s, "N",
         "how long a finished prompt's KV waits for its decoder (30)", 1, 86400},
        {"--enable-kv-events", ST_OPT_FLAG, &e->events.enabled, NULL,
         "tell gateways over ZeroMQ which prefixes are cached here", 0, 0},
        {"--kv-events-host", ST_OPT_STRING, &e->events.host, "ADDRESS",
         "where to tell them; * for all networks (127.0.0.1)", 0, 0},
        {"--kv-events-port", ST_OPT_INT, &a->events_port, "PORT",
         "TCP port of the events; 0: any free one, told by GET /starling/engine (0)", 0, 65535},
        {"--kv-events-replay-port", ST_OPT_INT, &a->replay_port, "PORT",
         "TCP port where subscribers ask for events they missed; 0: any free one (0)", 0, 65535},
        {"--kv-events-topic", ST_OPT_STRING, &a->server.events_topic, "TEXT",
         "the topic that events are published under (none)", 0, 0},
        {"serving", ST_OPT_HEADING, NULL, NULL, NULL, 0, 0},
        {"--max-body-size", ST_OPT_SIZE, &a->max_body_size, "SIZE", "largest request body (32M)", 0,
         0},
        {"--max-connections", ST_OPT_INT, &a->max_connections, "N",
         "open connections at once (4096)", 1, 1000000},
        {"--drain-timeout", ST_OPT_INT, &a->drain_timeout, "SECONDS",
         "time for running requests after SIGTERM (30)", 0, 86400},
        {"--log-level", ST_OPT_STRING, &a->log_level, "LEVEL",
         "debug, info, warning or error (info)", 0, 0},
    };
    return st_options_parse(&command, opts, sizeof opts / sizeof *opts, argc, argv, model, n_args);
}

static int complain(const char *text)
{
    fprintf(stderr, "starling serve: %s\n", text);
    return ST_EXIT_USAGE;
}

static bool set_log_level(const char *name)
{
    static const char *const names[] = {"debug", "info", "warning", "error"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(name, names[i]) == 0) {
            st_log_set_level((st_log_level)i);
            return true;
        }
    }
    return false;
}

static bool one_of(const char *value, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(value, names[i]) == 0)
            return true;
    return false;
}

/* The options of engines that share KV; returns -1, or an exit code. */
static int apply_sharing(serve_args *a)
{
    static const char *const roles[] = {"both", "prefill", "decode"};
    static const char *const policies[] = {"recompute", "fail"};
    st_engine_options *e = &a->loading.engine;
    if (!one_of(a->server.role, roles, 3))
        return complain("--role: expected prefill, decode or both");
    if (!one_of(a->failure_policy, policies, 2))
        return complain("--kv-load-failure-policy: expected recompute or fail");
    /* It is told to others, who could do nothing with "everywhere". */
    static const char *const everywhere[] = {"0.0.0.0", "::", "*", ""};
    if (one_of(e->transfer.host, everywhere, 4))
        return complain("--kv-transfer-host: expected the address by which other engines reach "
                        "this one, not a wildcard");
    e->transfer.enabled = strcmp(a->server.role, "both") != 0 || a->transfer_port >= 0;
    e->transfer.port = (uint16_t)(a->transfer_port > 0 ? a->transfer_port : 0);
    e->transfer.lease_ms = a->lease_s * 1000;
    e->transfer.fail_on_error = strcmp(a->failure_policy, "fail") == 0;
    e->events.port = (uint16_t)a->events_port;
    e->events.replay_port = (uint16_t)a->replay_port;
    e->events.topic = a->server.events_topic;
    a->server.kv_transfer_host = e->transfer.host;
    return -1;
}

/* What options mean to the libraries; returns -1, or an exit code. */
static int apply_args(serve_args *a)
{
    if (!st_opt_kv_dtype("serve", a->kv_cache_dtype, &a->loading.engine.kv_dtype))
        return ST_EXIT_USAGE;
    if (strcmp(a->prefix_reuse, "exact") != 0 && strcmp(a->prefix_reuse, "more") != 0)
        return complain("--prefix-reuse: expected exact or more");
    if (!set_log_level(a->log_level))
        return complain("--log-level: expected debug, info, warning or error");
    if (a->max_body_size < 1024)
        return complain("--max-body-size: expected at least 1K");
    a->loading.engine.reuse_across_paths = strcmp(a->prefix_reuse, "more") == 0;
    a->server.port = (uint16_t)a->port;
    a->server.max_body_size = a->max_body_size;
    a->server.max_connections = a->max_connections;
    a->server.drain_timeout_s = a->drain_timeout;
    return apply_sharing(a);
}

/* Splits the comma-separated items of a list, in memory that *copy owns. */
static st_status split(const st_opt_list *list, const char *more, char **copy, st_opt_list *out,
                       st_error *err)
{
    st_buf all = ST_BUF_INIT;
    st_status s = ST_OK;
    for (size_t i = 0; !s && i <= list->n; i++) {
        const char *item = i < list->n ? list->items[i] : more;
        if (item)
            s = st_buf_printf(&all, "%s,", item);
    }
    *copy = all.data;
    out->n = 0;
    if (s)
        return st_fail(err, s, "memory is short");
    char *state = NULL;
    for (char *t = all.data ? strtok_r(all.data, ",", &state) : NULL; t;
         t = strtok_r(NULL, ",", &state)) {
        if (out->n == ST_OPT_LIST_MAX)
            return st_fail(err, ST_EINVAL, "more than %d names or keys", ST_OPT_LIST_MAX);
        out->items[out->n++] = t;
    }
    return ST_OK;
}

/* The last part of the folder's path; the built-in model has a name of its own. */
static void default_name(const char *arg, char *out, size_t cap)
{
    char whole[PATH_MAX];
    if (!arg) {
        snprintf(out, cap, "lexicon");
        return;
    }
    /* "." and ".." are no names, and a folder that is missing is not our complaint to make. */
    size_t len = strlen(arg);
    if (len && arg[len - 1] == '.' && realpath(arg, whole))
        arg = whole;
    size_t n = strlen(arg);
    while (n > 1 && arg[n - 1] == '/')
        n--;
    size_t from = n;
    while (from > 0 && arg[from - 1] != '/')
        from--;
    snprintf(out, cap, "%.*s", (int)(n - from), arg + from);
}

static void announce(const serve_args *a, const st_loaded *l, const st_server *s, uint64_t start)
{
    st_engine_stats stats;
    st_engine_get_stats(l->engine, &stats);
    const char *address = st_server_address(s);
    printf("%s ready in %.2f s: %s kernels, context %d, %d KV blocks of %d tokens\n",
           a->server.model_names[0], (double)(st_now_ns() - start) / 1e9,
           st_model_kernels_name(l->model), st_engine_max_model_len(l->engine), stats.total_blocks,
           stats.block_size);
    st_engine_ports ports = st_engine_get_ports(l->engine);
    if (ports.transfer)
        printf("role %s: KV moves on %s port %u\n", a->server.role, a->server.kv_transfer_host,
               ports.transfer);
    if (ports.events)
        printf("KV events on port %u, replay on port %u\n", ports.events, ports.replay);
    printf("serving on %s\n\n", address);
    if (a->server.uds)
        printf("curl --unix-socket %s http://localhost/v1/chat/completions", a->server.uds);
    else
        printf("curl %s/v1/chat/completions", address);
    printf(" -H 'Content-Type: application/json'%s -d '{\"messages\": [{\"role\": \"user\", "
           "\"content\": \"What does courage mean?\"}]}'\n\n",
           a->server.n_api_keys ? " -H 'Authorization: Bearer KEY'" : "");
    fflush(stdout);
}

static st_status serve(serve_args *a, uint64_t start, st_error *err)
{
    st_loaded l = {0};
    st_server *server = NULL;
    /* An address that is taken is better known before a long load than after it. */
    st_status s = st_server_check_address(&a->server, err);
    if (!s)
        s = st_load_all(&a->loading, &l, err);
    a->server.defaults = l.defaults;
    if (!s)
        s = st_server_new(l.engine, l.tok, l.tmpl, &a->server, &server, err);
    if (!s) {
        announce(a, &l, server, start);
        s = st_server_run(server, err);
    }
    st_server_free(server);
    st_loaded_free(&l);
    return s;
}

int st_cmd_serve(int argc, char **argv)
{
    serve_args a = {.port = 8000,
                    .max_connections = 4096,
                    .drain_timeout = 30,
                    .max_body_size = 32 * 1024 * 1024,
                    .kv_cache_dtype = "bf16",
                    .prefix_reuse = "exact",
                    .transfer_port = -1,
                    .lease_s = 30,
                    .failure_policy = "recompute",
                    .loading.engine = {.transfer.host = "127.0.0.1", .events.host = "127.0.0.1"},
                    .log_level = "info"};
    uint64_t start = st_now_ns();
    const char *arg = NULL;
    int n_args = 0;
    char dir[4096], name[256], *name_memory = NULL, *key_memory = NULL;
    st_opt_list names, keys;
    st_error err = {0};
    st_server_options_default(&a.server);
    int code = parse_args(&a, argc, argv, &arg, &n_args);
    if (code < 0)
        code = apply_args(&a);
    if (code >= 0)
        return code;
    if (st_model_dir(n_args ? arg : NULL, dir, sizeof dir))
        return ST_EXIT_FAILED;
    a.loading.dir = dir;
    default_name(n_args ? arg : NULL, name, sizeof name);
    st_status s = split(&a.names, a.names.n ? NULL : name, &name_memory, &names, &err);
    if (!s)
        s = split(&a.keys, getenv("STARLING_API_KEY"), &key_memory, &keys, &err);
    if (!s && names.n == 0)
        s = st_fail(&err, ST_EINVAL, "--served-model-name: expected a name");
    if (!s) {
        a.server.model_names = names.items;
        a.server.n_model_names = names.n;
        a.server.api_keys = keys.items;
        a.server.n_api_keys = keys.n;
        s = serve(&a, start, &err);
    }
    if (s)
        fprintf(stderr, "starling serve: %s\n", err.text);
    free(name_memory);
    free(key_memory);
    return s ? ST_EXIT_FAILED : ST_EXIT_OK;
}
