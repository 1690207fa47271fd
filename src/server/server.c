/* The server's life: see starling/server.h. */
#include "starling/server.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>

#include <event2/thread.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/log.h"
#include "server/server_state.h"

enum {
    MAX_HEAD = 64 * 1024,
    MAX_UNSENT = 4 * 1024 * 1024,
    HEAD_TIMEOUT_S = 10,
    IDLE_TIMEOUT_S = 75,
    WRITE_TIMEOUT_S = 60,
    BODIES_AT_ONCE = 16, /* of the largest size */
    DRAIN_TICK_MS = 20,
    FLUSH_GRACE_MS = 2000, /* for last bytes after the drain's deadline */
};

void st_server_options_default(st_server_options *o)
{
    *o = (st_server_options){.host = "0.0.0.0",
                             .port = 8000,
                             .max_body_size = 32 * 1024 * 1024,
                             .max_connections = 4096,
                             .drain_timeout_s = 30,
                             .work_threads = 2,
                             .role = "both",
                             .kv_transfer_host = "127.0.0.1",
                             .events_topic = ""};
    st_api_defaults_init(&o->defaults);
}

static uint64_t ms(uint64_t n)
{
    return n * 1000000u;
}

/* Ends what is left: an error for each client, then a moment for it to be written. */
static void expire(st_server *s)
{
    if (s->expired)
        return;
    s->expired = true;
    s->force_ns = st_now_ns() + ms(FLUSH_GRACE_MS);
    if (s->n_jobs)
        st_warn("ending %d running requests", s->n_jobs);
    st_jobs_expire(s);
}

static void schedule_tick(st_server *s)
{
    struct timeval tv = {0, DRAIN_TICK_MS * 1000};
    event_add(s->drain_tick, &tv);
}

static void on_drain_tick(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    st_server *s = arg;
    uint64_t now = st_now_ns();
    if (!s->expired && now >= s->drain_deadline_ns)
        expire(s);
    /* A finished prompt's decoder may be just about to fetch it. */
    st_engine_stats stats;
    st_engine_get_stats(s->engine, &stats);
    bool offers = stats.offered > 0 && now < s->drain_deadline_ns;
    bool quiet = s->n_jobs == 0 && !st_http_server_busy(s->http) && !offers;
    if (quiet || (s->expired && s->n_jobs == 0 && now >= s->force_ns))
        event_base_loopbreak(s->base);
    else
        schedule_tick(s);
}

static void begin_drain(st_server *s)
{
    s->draining = true;
    s->drain_deadline_ns = st_now_ns() + ms((uint64_t)s->opts.drain_timeout_s * 1000);
    st_info("draining: %d requests run on, at most %d s", s->n_jobs, s->opts.drain_timeout_s);
    st_http_server_drain(s->http);
    schedule_tick(s);
}

static void on_signal(evutil_socket_t sig, short what, void *arg)
{
    (void)sig;
    (void)what;
    st_server *s = arg;
    if (s->draining)
        expire(s);
    else
        begin_drain(s);
}

static void on_stop(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    st_server *s = arg;
    if (!s->draining)
        begin_drain(s);
}

static void raise_fd_limit(void)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur < l.rlim_max) {
        l.rlim_cur = l.rlim_max;
        setrlimit(RLIMIT_NOFILE, &l);
    }
}

static st_status listen_on(st_server *s, st_error *err)
{
    if (s->opts.uds) {
        snprintf(s->address, sizeof s->address, "unix:%s", s->opts.uds);
        return st_http_listen_unix(s->http, s->opts.uds, err);
    }
    st_status st = st_http_listen_tcp(s->http, s->opts.host, &s->opts.port, err);
    const char *host = s->opts.host;
    /* An address that clients can use as it stands. */
    if (strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0)
        host = "127.0.0.1";
    snprintf(s->address, sizeof s->address, strchr(host, ':') ? "http://[%s]:%u" : "http://%s:%u",
             host, s->opts.port);
    return st;
}

static st_status make_parts(st_server *s, st_error *err)
{
    if (evthread_use_pthreads() || !(s->base = event_base_new()))
        return st_fail(err, ST_EIO, "the event loop could not be made");
    size_t all_bodies;
    if (!st_mul_size(s->opts.max_body_size, BODIES_AT_ONCE, &all_bodies))
        all_bodies = SIZE_MAX;
    st_http_options h = {.max_head = MAX_HEAD,
                         .max_body = s->opts.max_body_size,
                         .max_total_body = all_bodies,
                         .max_unsent = MAX_UNSENT,
                         .max_connections = s->opts.max_connections,
                         .head_timeout_s = HEAD_TIMEOUT_S,
                         .idle_timeout_s = IDLE_TIMEOUT_S,
                         .write_timeout_s = WRITE_TIMEOUT_S,
                         .allow_origin = s->opts.allow_origin,
                         .on_request = st_server_on_request,
                         .on_replied = st_server_on_replied,
                         .user = s};
    st_status st = st_http_server_new(s->base, &h, &s->http, err);
    if (!st)
        st = st_mailbox_new(s->base, st_job_deliver, s, &s->mail, err);
    if (!st)
        st = st_work_queue_new(s->opts.work_threads, &s->work, err);
    if (st)
        return st;
    s->signals[0] = evsignal_new(s->base, SIGTERM, on_signal, s);
    s->signals[1] = evsignal_new(s->base, SIGINT, on_signal, s);
    s->stop = event_new(s->base, -1, 0, on_stop, s);
    s->drain_tick = event_new(s->base, -1, 0, on_drain_tick, s);
    if (!s->signals[0] || !s->signals[1] || !s->stop || !s->drain_tick)
        return st_fail(err, ST_ENOMEM, "server: memory is short");
    return listen_on(s, err);
}

st_status st_server_new(st_engine *engine, const st_tokenizer *tok, const st_chat_template *tmpl,
                        const st_server_options *opts, st_server **out, st_error *err)
{
    *out = NULL;
    if (opts->n_model_names == 0)
        return st_fail(err, ST_EINVAL, "server: expected at least one model name");
    st_server *s = calloc(1, sizeof *s);
    if (!s)
        return st_fail(err, ST_ENOMEM, "server: memory is short");
    s->opts = *opts;
    s->engine = engine;
    s->tok = tok;
    s->tmpl = tmpl;
    s->created = (int64_t)time(NULL);
    s->ports = st_engine_get_ports(engine);
    s->metrics.model = opts->model_names[0];
    s->ctx = (st_api_context){.models = opts->model_names,
                              .n_models = opts->n_model_names,
                              .vocab_size = st_engine_model_config(engine)->vocab_size,
                              .max_model_len = st_engine_max_model_len(engine),
                              .defaults = opts->defaults};
    raise_fd_limit();
    signal(SIGPIPE, SIG_IGN);
    unsigned char random[16];
    st_status st = ST_OK;
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        st = st_fail(err, ST_EIO, "the system has no random numbers: %s", strerror(errno));
    st_server_hex(random, sizeof random, s->engine_id);
    if (!st)
        st = make_parts(s, err);
    if (st)
        st_server_free(s);
    else
        *out = s;
    return st;
}

st_status st_server_check_address(const st_server_options *opts, st_error *err)
{
    st_server s = {.opts = *opts};
    st_http_options h = {0};
    if (!(s.base = event_base_new()))
        return st_fail(err, ST_EIO, "the event loop could not be made");
    st_status st = st_http_server_new(s.base, &h, &s.http, err);
    if (!st)
        st = listen_on(&s, err);
    st_http_server_free(s.http);
    event_base_free(s.base);
    return st;
}

const char *st_server_address(const st_server *s)
{
    return s->address;
}

st_status st_server_run(st_server *s, st_error *err)
{
    for (int i = 0; i < 2; i++)
        if (event_add(s->signals[i], NULL))
            return st_fail(err, ST_EIO, "signals: %s", strerror(errno));
    int rc = event_base_loop(s->base, EVLOOP_NO_EXIT_ON_EMPTY);
    for (int i = 0; i < 2; i++)
        event_del(s->signals[i]);
    if (rc < 0)
        return st_fail(err, ST_EIO, "the event loop failed");
    return ST_OK;
}

void st_server_stop(st_server *s)
{
    event_active(s->stop, EV_TIMEOUT, 0);
}

static void free_event(struct event *e)
{
    if (e)
        event_free(e);
}

void st_server_free(st_server *s)
{
    if (!s)
        return;
    st_work_queue_free(s->work);
    st_http_server_free(s->http);
    st_mailbox_free(s->mail);
    free_event(s->signals[0]);
    free_event(s->signals[1]);
    free_event(s->stop);
    free_event(s->drain_tick);
    if (s->base)
        event_base_free(s->base);
    free(s);
}
