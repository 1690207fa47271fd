/* Endpoints: which path and method goes where, who may ask, and the small replies. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/log.h"
#include "server/server_state.h"
#include "starling/version.h"

static const char content_json[] = "application/json";

void st_server_reply_error(st_http_exchange *x, const st_api_error *e)
{
    st_buf b = ST_BUF_INIT;
    if (e->http_status == 503 || e->http_status == 429)
        st_http_add_header(x, "Retry-After", "1");
    if (e->http_status == 401)
        st_http_add_header(x, "WWW-Authenticate", "Bearer");
    if (!*st_http_get_note(x))
        st_http_note(x, "%.150s", e->why.text);
    if (st_api_error_json(e, &b))
        st_http_reply(x, e->http_status, NULL, "", 0);
    else
        st_http_reply(x, e->http_status, content_json, b.data, b.len);
    st_buf_free(&b);
}

static void reply_json(st_http_exchange *x, st_status s, st_buf *b)
{
    if (s)
        st_http_reply(x, 503, NULL, "", 0);
    else
        st_http_reply(x, 200, content_json, b->data, b->len);
    st_buf_free(b);
}

static void on_health(st_server *s, st_http_exchange *x)
{
    st_http_reply(x, s->draining ? 503 : 200, NULL, "", 0);
}

static void on_version(st_server *s, st_http_exchange *x)
{
    (void)s;
    static const char body[] = "{\"version\":\"" ST_VERSION "\"}";
    st_http_reply(x, 200, content_json, body, sizeof body - 1);
}

static void on_metrics(st_server *s, st_http_exchange *x)
{
    st_buf b = ST_BUF_INIT;
    st_engine_stats stats;
    st_engine_get_stats(s->engine, &stats);
    if (st_metrics_write(&s->metrics, &stats, st_http_server_connections(s->http), &b))
        st_http_reply(x, 503, NULL, "", 0);
    else
        st_http_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", b.data, b.len);
    st_buf_free(&b);
}

static void on_models(st_server *s, st_http_exchange *x)
{
    st_buf b = ST_BUF_INIT;
    reply_json(x, st_api_models_json(&s->ctx, s->created, &b), &b);
}

static void percent_decode(const char *from, char *to, size_t cap)
{
    size_t n = 0;
    for (; *from && n + 1 < cap; from++) {
        unsigned byte;
        if (*from == '%' && sscanf(from, "%%%2x", &byte) == 1 && from[1] && from[2]) {
            to[n++] = (char)byte;
            from += 2;
        } else {
            to[n++] = *from;
        }
    }
    to[n] = '\0';
}

static void on_model(st_server *s, st_http_exchange *x)
{
    char name[512];
    percent_decode(st_http_path(x) + strlen("/v1/models/"), name, sizeof name);
    for (size_t i = 0; i < s->ctx.n_models; i++) {
        if (strcmp(name, s->ctx.models[i]) == 0) {
            st_buf b = ST_BUF_INIT;
            reply_json(x, st_api_model_json(name, s->created, s->ctx.max_model_len, &b), &b);
            return;
        }
    }
    st_api_error e;
    (void)st_api_fail(&e, 404, "model", "model_not_found", "the model '%s' does not exist", name);
    st_server_reply_error(x, &e);
}

static void on_completions(st_server *s, st_http_exchange *x)
{
    st_job_start(s, x, ST_API_COMPLETION);
}

static void on_chat(st_server *s, st_http_exchange *x)
{
    st_job_start(s, x, ST_API_CHAT);
}

static void on_tokenize(st_server *s, st_http_exchange *x)
{
    st_job_start(s, x, ST_API_TOKENIZE);
}

static void on_detokenize(st_server *s, st_http_exchange *x)
{
    st_job_start(s, x, ST_API_DETOKENIZE);
}

static void on_engine(st_server *s, st_http_exchange *x)
{
    st_buf b = ST_BUF_INIT;
    reply_json(x, st_engine_info_json(s, &b), &b);
}

typedef struct route {
    const char *path; /* ending in '/': a prefix */
    st_http_method method;
    enum {
        KEY,
        OPEN,
        KEY_FROM_AFAR
    } access;   /* OPEN: what probes and scrapers ask;
                   KEY_FROM_AFAR: open to this machine */
    bool quiet; /* logged at debug level */
    void (*handle)(st_server *s, st_http_exchange *x);
} route;

static const route routes[] = {
    {"/health", ST_HTTP_GET, OPEN, true, on_health},
    {"/ping", ST_HTTP_GET, OPEN, true, on_health},
    {"/metrics", ST_HTTP_GET, OPEN, true, on_metrics},
    {"/version", ST_HTTP_GET, OPEN, true, on_version},
    {"/starling/engine", ST_HTTP_GET, KEY_FROM_AFAR, true, on_engine},
    {"/v1/models", ST_HTTP_GET, KEY, false, on_models},
    {"/v1/models/", ST_HTTP_GET, KEY, false, on_model},
    {"/v1/completions", ST_HTTP_POST, KEY, false, on_completions},
    {"/v1/chat/completions", ST_HTTP_POST, KEY, false, on_chat},
    {"/tokenize", ST_HTTP_POST, KEY, false, on_tokenize},
    {"/detokenize", ST_HTTP_POST, KEY, false, on_detokenize},
};

static const route *find_route(const char *path)
{
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        size_t n = strlen(routes[i].path);
        bool prefix = routes[i].path[n - 1] == '/';
        if (prefix ? strncmp(path, routes[i].path, n) == 0 && path[n]
                   : strcmp(path, routes[i].path) == 0)
            return &routes[i];
    }
    return NULL;
}

/* Takes as long for a wrong key as for a right one of the same length. */
static bool same_key(const char *key, const char *given)
{
    size_t n = strlen(key), m = strlen(given);
    unsigned diff = n != m;
    for (size_t i = 0; i < m; i++)
        diff |= (unsigned char)given[i] ^ (unsigned char)key[n ? i % n : 0];
    return diff == 0;
}

static bool authorized(const st_server *s, const st_http_exchange *x)
{
    const char *given = st_http_header_of(x, "Authorization");
    bool ok = s->opts.n_api_keys == 0;
    if (given && strncasecmp(given, "Bearer ", 7) == 0)
        for (size_t i = 0; i < s->opts.n_api_keys; i++)
            ok |= same_key(s->opts.api_keys[i], given + 7);
    return ok;
}

static bool may_ask(const st_server *s, const st_http_exchange *x, const route *r)
{
    if (r->access == OPEN || (r->access == KEY_FROM_AFAR && st_http_is_local(x)))
        return true;
    return authorized(s, x);
}

/* The caller's name for its request, short and printable, or NULL. */
static const char *request_id(const st_http_exchange *x)
{
    const char *id = st_http_header_of(x, "X-Request-Id");
    size_t n = 0;
    while (id && id[n] > ' ' && id[n] < 0x7F && n < 128)
        n++;
    return id && n > 0 && !id[n] ? id : NULL;
}

/* A browser's preflight question. */
static void preflight(st_http_exchange *x)
{
    st_http_add_header(x, "Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    st_http_add_header(x, "Access-Control-Allow-Headers", "*, Authorization");
    st_http_add_header(x, "Access-Control-Max-Age", "600");
    st_http_reply(x, 204, NULL, "", 0);
}

static void reject(st_http_exchange *x, int status, const char *code, const char *text)
{
    st_api_error e;
    (void)st_api_fail(&e, status, NULL, code, "%s", text);
    st_server_reply_error(x, &e);
}

static void wrong_method(st_http_exchange *x, const route *r)
{
    const char *allow = r->method == ST_HTTP_GET ? "GET, HEAD" : "POST";
    st_api_error e;
    st_http_add_header(x, "Allow", allow);
    (void)st_api_fail(&e, 405, NULL, "method_not_allowed", "%s takes %s, not %.20s", r->path, allow,
                      st_http_method_name(x));
    st_server_reply_error(x, &e);
}

void st_server_on_request(void *user, st_http_exchange *x, int status, const char *why)
{
    st_server *s = user;
    if (status) {
        reject(x, status, NULL, why);
        return;
    }
    const char *id = request_id(x);
    if (id)
        st_http_add_header(x, "X-Request-Id", id);
    st_http_method method = st_http_method_of(x);
    if (method == ST_HTTP_OPTIONS && s->opts.allow_origin) {
        preflight(x);
        return;
    }
    if (method == ST_HTTP_HEAD_METHOD)
        method = ST_HTTP_GET;
    const route *r = find_route(st_http_path(x));
    if (!r) {
        st_api_error e;
        (void)st_api_fail(&e, 404, NULL, "not_found", "there is no %.200s here", st_http_path(x));
        st_server_reply_error(x, &e);
    } else if (r->method != method) {
        wrong_method(x, r);
    } else if (!may_ask(s, x, r)) {
        reject(x, 401, "invalid_api_key",
               "the API key is missing or wrong: expected Authorization: Bearer KEY");
    } else if (s->draining && method == ST_HTTP_POST) {
        reject(x, 503, "draining", "the server is shutting down");
    } else {
        r->handle(s, x);
    }
}

void st_server_on_replied(void *user, st_http_exchange *x, int status, double ms)
{
    (void)user;
    const route *r = find_route(st_http_path(x));
    const char *note = st_http_get_note(x), *id = request_id(x);
    st_log(r && r->quiet ? ST_LOG_DEBUG : ST_LOG_INFO, "%s%s%.20s %.200s %d %.1f ms%s%s",
           id ? id : "", id ? " " : "", st_http_method_name(x), st_http_path(x), status, ms,
           *note ? ": " : "", note);
}
