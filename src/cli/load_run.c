/* starling load: the event loop. A client is a connection that sends a request, reads the answer's
 * events, and takes the next request when that is done. */
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>

#include "base/clock.h"
#include "base/http_response.h"
#include "base/json_scan.h"
#include "base/sse_split.h"
#include "cli/load.h"

typedef struct load load;

typedef struct client {
    load *l;
    struct client *next_idle;
    struct bufferevent *bev; /* NULL: not connected */
    st_http_response response;
    st_buf body; /* of the answer: from the first byte that no event has taken yet */
    size_t scanned;
    uint64_t started_ns, last_ns; /* last_ns: of the last token, 0: none yet */
    uint64_t tokens;
    int64_t usage_tokens;
    bool busy, saw_done, saw_error, fresh; /* fresh: nothing was answered on this connection yet */
    st_buf request;
} client;

struct load {
    const st_load_options *o;
    st_load_result *r;
    struct event_base *base;
    struct event *arrival, *end, *interrupt;
    client *clients, *idle;
    int32_t busy;
    uint64_t next, begun_ns, random;
    bool over;     /* nothing is started any more */
    bool starting; /* a request that fails at once must not start the next one from within */
    st_status status;
};

static void start_some(load *l);
static void send_request(client *c);

/* ---- what an event says ---- */

typedef struct event_facts {
    bool text, error;
    int64_t completion, prompt, cached; /* -1: not in it */
} event_facts;

static bool key_in(const st_json_scan *s, const char *const *names)
{
    for (; *names; names++)
        if (st_json_text_is(s, *names))
            return true;
    return false;
}

/* Looks for what matters in a value of the top-level object; nested as deep as it is. */
static bool walk(st_json_scan *s, bool usage, event_facts *f)
{
    static const char *const texts[] = {"text",      "content",   "reasoning_content",
                                        "reasoning", "arguments", NULL};
    int depth = s->depth;
    for (;;) {
        st_json_token t = st_json_next(s);
        if (t == ST_JSON_ERROR || t == ST_JSON_END)
            return false;
        if (s->depth < depth)
            return true;
        if (t != ST_JSON_KEY)
            continue;
        bool is_text = !usage && key_in(s, texts);
        int64_t *number = !usage                                    ? NULL
                          : st_json_text_is(s, "completion_tokens") ? &f->completion
                          : st_json_text_is(s, "prompt_tokens")     ? &f->prompt
                          : st_json_text_is(s, "cached_tokens")     ? &f->cached
                                                                    : NULL;
        if (!is_text && !number)
            continue;
        st_json_scan before = *s;
        t = st_json_next(s);
        if (is_text && t == ST_JSON_STRING && s->span.end - s->span.begin > 2)
            f->text = true;
        else if (number && t == ST_JSON_NUMBER)
            st_json_int64(s, number);
        else
            *s = before; /* a container: walked through as any other */
    }
}

/* False: not JSON as a stream has it. */
static bool read_event(const char *data, size_t len, event_facts *f)
{
    *f = (event_facts){.completion = -1, .prompt = -1, .cached = -1};
    st_json_scan s;
    st_json_scan_init(&s, data, len);
    if (st_json_next(&s) != ST_JSON_OBJECT)
        return false;
    for (;;) {
        st_json_token t = st_json_next(&s);
        if (t == ST_JSON_OBJECT_END)
            return st_json_next(&s) == ST_JSON_END;
        if (t != ST_JSON_KEY)
            return false;
        bool choices = st_json_text_is(&s, "choices"), usage = st_json_text_is(&s, "usage");
        bool error = st_json_text_is(&s, "error");
        t = st_json_next(&s);
        f->error |= error && t != ST_JSON_NULL;
        st_span value;
        if ((choices && t == ST_JSON_ARRAY) || (usage && t == ST_JSON_OBJECT)) {
            if (!walk(&s, usage, f))
                return false;
        } else if (st_json_skip(&s, t, &value)) {
            return false;
        }
    }
}

/* ---- the end of a request ---- */

static void disconnect(client *c)
{
    if (c->bev)
        bufferevent_free(c->bev);
    c->bev = NULL;
}

static void finish(client *c)
{
    load *l = c->l;
    c->busy = false;
    l->busy--;
    c->next_idle = l->idle;
    l->idle = c;
    if (l->o->rate <= 0)
        start_some(l);
    if (l->over && l->busy == 0)
        event_base_loopbreak(l->base);
}

static void ST_PRINTF(3, 4) failed(client *c, st_load_failure why, const char *fmt, ...)
{
    st_load_result *r = c->l->r;
    r->failed[why]++;
    if (!r->first_error[0]) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(r->first_error, sizeof r->first_error, fmt, args);
        va_end(args);
    }
    disconnect(c);
    finish(c);
}

static void answered(client *c)
{
    st_load_result *r = c->l->r;
    if (c->response.status != 200) {
        if (c->response.status < 600)
            r->status[c->response.status]++;
        r->failed[ST_LOAD_STATUS]++;
        if (!r->first_error[0])
            snprintf(r->first_error, sizeof r->first_error, "status %d: %.400s", c->response.status,
                     c->body.data ? c->body.data : "");
        if (!c->response.keep_alive)
            disconnect(c);
        finish(c);
        return;
    }
    if (c->saw_error) {
        failed(c, ST_LOAD_EVENT, "%s", "an error event");
        return;
    }
    if (!c->saw_done) {
        failed(c, ST_LOAD_FORMAT, "the stream ended without [DONE]: %.200s",
               c->body.data ? c->body.data : "");
        return;
    }
    r->ok++;
    r->tokens += c->usage_tokens >= 0 ? (uint64_t)c->usage_tokens : c->tokens;
    st_load_times_add(&r->total, st_now_ns() - c->started_ns);
    if (!c->response.keep_alive)
        disconnect(c);
    c->fresh = false;
    finish(c);
}

/* ---- reading ---- */

static bool take_event(client *c, const st_sse_event *ev)
{
    st_load_result *r = c->l->r;
    if (!ev->data)
        return ev->comment || ev->data_lines == 0;
    if (ev->data_len == 6 && memcmp(ev->data, "[DONE]", 6) == 0) {
        c->saw_done = true;
        return true;
    }
    event_facts f;
    if (c->saw_done || !read_event(ev->data, ev->data_len, &f))
        return false;
    if (f.error && !c->saw_error) {
        c->saw_error = true;
        if (!r->first_error[0])
            snprintf(r->first_error, sizeof r->first_error, "%.*s", (int)ev->data_len, ev->data);
    }
    if (f.text) {
        uint64_t now = st_now_ns();
        st_load_times_add(c->last_ns ? &r->itl : &r->ttft,
                          now - (c->last_ns ? c->last_ns : c->started_ns));
        c->last_ns = now;
        c->tokens++;
    }
    if (f.completion >= 0)
        c->usage_tokens = f.completion;
    r->prompt_tokens += f.prompt > 0 ? (uint64_t)f.prompt : 0;
    r->cached_tokens += f.cached > 0 ? (uint64_t)f.cached : 0;
    return true;
}

/* Takes the complete events out of c->body. */
static bool take_events(client *c)
{
    size_t at = 0, n;
    st_sse_event ev;
    bool good = true;
    while (good && (n = st_sse_next(c->body.data + at, c->body.len - at, &c->scanned, &ev)) > 0) {
        good = take_event(c, &ev);
        at += n;
        c->scanned = 0;
    }
    memmove(c->body.data, c->body.data + at, c->body.len - at + 1);
    c->body.len -= at;
    return good;
}

static void on_read(struct bufferevent *bev, void *user)
{
    client *c = user;
    struct evbuffer *in = bufferevent_get_input(bev);
    size_t have;
    while (c->busy && (have = evbuffer_get_contiguous_space(in)) > 0) {
        const char *data = (const char *)evbuffer_pullup(in, (ev_ssize_t)have), *body;
        size_t body_len;
        long taken = st_http_response_feed(&c->response, data, have, &body, &body_len);
        if (taken < 0) {
            failed(c, ST_LOAD_FORMAT, "not HTTP: %s", c->response.why);
            return;
        }
        if (body_len && st_buf_append(&c->body, body, body_len)) {
            c->l->status = ST_ENOMEM;
            event_base_loopbreak(c->l->base);
            return;
        }
        evbuffer_drain(in, (size_t)taken);
        if (c->response.status == 200 && c->body.len && !take_events(c)) {
            failed(c, ST_LOAD_FORMAT, "not an event of the API: %.300s", c->body.data);
            return;
        }
        if (c->response.complete) {
            answered(c);
            return;
        }
    }
}

static void on_event(struct bufferevent *bev, short what, void *user)
{
    client *c = user;
    if (what & BEV_EVENT_CONNECTED) {
        int one = 1; /* fails on a unix socket, which needs none */
        setsockopt(bufferevent_getfd(bev), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        return;
    }
    if (!c->busy) { /* a kept connection was closed */
        disconnect(c);
        return;
    }
    int code = errno;
    if (what & BEV_EVENT_TIMEOUT) {
        failed(c, ST_LOAD_TIMEOUT, "nothing came for %g s", (double)c->l->o->timeout_s);
    } else if (c->response.status && st_http_response_eof(&c->response)) {
        answered(c);
    } else if (!c->fresh && !c->response.status && c->response.head_bytes == 0) {
        disconnect(c); /* a kept connection, closed as the request went out: again on a new one */
        send_request(c);
    } else if (!c->response.status && (what & BEV_EVENT_ERROR)) {
        failed(c, ST_LOAD_CONNECT, "%s", evutil_socket_error_to_string(code));
    } else {
        failed(c, ST_LOAD_CUT, "the connection ended before the answer did, after %llu tokens",
               (unsigned long long)c->tokens);
    }
}

/* ---- sending ---- */

static void send_request(client *c)
{
    load *l = c->l;
    if (!c->bev) {
        c->fresh = true;
        c->bev = bufferevent_socket_new(l->base, -1, BEV_OPT_CLOSE_ON_FREE);
        if (!c->bev) {
            failed(c, ST_LOAD_CONNECT, "no socket");
            return;
        }
        struct timeval t = {.tv_sec = (time_t)l->o->timeout_s};
        t.tv_usec = (suseconds_t)((l->o->timeout_s - (float)t.tv_sec) * 1e6f);
        bufferevent_set_timeouts(c->bev, &t, &t);
        bufferevent_setcb(c->bev, on_read, NULL, on_event, c);
        bufferevent_enable(c->bev, EV_READ | EV_WRITE);
        struct bufferevent *bev = c->bev;
        if (bufferevent_socket_connect(bev, (const struct sockaddr *)&l->o->url.addr,
                                       (int)l->o->url.addr_len)) {
            if (c->busy && c->bev == bev)
                failed(c, ST_LOAD_CONNECT, "%s", strerror(errno));
            return;
        }
    }
    st_http_response_init(&c->response);
    st_buf_clear(&c->body);
    c->scanned = 0;
    bufferevent_write(c->bev, c->request.data, c->request.len);
}

static st_status make_request(client *c, uint64_t n)
{
    const st_load_options *o = c->l->o;
    st_buf body = ST_BUF_INIT;
    st_buf_clear(&c->request);
    st_status s = st_load_body(&o->shape, o->seed, n, &body);
    if (!s)
        s = st_buf_printf(&c->request,
                          "POST %s/v1/%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: starling-load\r\n"
                          "Content-Type: application/json\r\nContent-Length: %zu\r\n",
                          o->url.path, o->shape.id_limit ? "completions" : "chat/completions",
                          o->url.host, body.len);
    if (!s && o->api_key)
        s = st_buf_printf(&c->request, "Authorization: Bearer %s\r\n", o->api_key);
    if (!s)
        s = st_buf_puts(&c->request, "\r\n");
    if (!s)
        s = st_buf_append(&c->request, body.data, body.len);
    st_buf_free(&body);
    return s;
}

static bool exhausted(const load *l)
{
    return l->over || (l->o->requests && l->next >= (uint64_t)l->o->requests);
}

static void start_one(load *l)
{
    client *c = l->idle;
    l->idle = c->next_idle;
    l->busy++;
    c->busy = true;
    c->saw_done = c->saw_error = false;
    c->tokens = c->last_ns = 0;
    c->usage_tokens = -1;
    st_status s = make_request(c, l->next++);
    if (s) {
        l->status = s;
        event_base_loopbreak(l->base);
        return;
    }
    l->r->started++;
    c->started_ns = st_now_ns();
    send_request(c);
}

static void start_some(load *l)
{
    if (l->starting)
        return;
    l->starting = true;
    while (l->idle && !exhausted(l) && !l->status)
        start_one(l);
    l->starting = false;
    if (exhausted(l)) {
        l->over = true;
        if (l->busy == 0)
            event_base_loopbreak(l->base);
    }
}

/* ---- time ---- */

static void arm_arrival(load *l)
{
    /* Exponential gaps: a Poisson process. */
    l->random = l->random * 6364136223846793005u + 1442695040888963407u;
    double u = ((double)(l->random >> 11) + 0.5) / 9007199254740992.0;
    double gap = -log(u) / (double)l->o->rate;
    struct timeval t = {.tv_sec = (time_t)gap};
    t.tv_usec = (suseconds_t)((gap - (double)t.tv_sec) * 1e6);
    event_add(l->arrival, &t);
}

static void on_arrival(evutil_socket_t fd, short what, void *user)
{
    load *l = user;
    if (exhausted(l)) {
        start_some(l);
        return;
    }
    if (l->idle) {
        start_one(l);
    } else {
        l->r->dropped++;
        l->next++;
    }
    arm_arrival(l);
}

static void on_end(evutil_socket_t fd, short what, void *user)
{
    load *l = user;
    l->over = true;
    if (l->busy == 0)
        event_base_loopbreak(l->base);
}

static void on_interrupt(evutil_socket_t fd, short what, void *user)
{
    load *l = user;
    l->r->interrupted = true;
    event_base_loopbreak(l->base);
}

static st_status set_up(load *l)
{
    const st_load_options *o = l->o;
    l->base = event_base_new();
    l->clients = calloc((size_t)o->concurrency, sizeof *l->clients);
    if (!l->base || !l->clients)
        return ST_ENOMEM;
    for (int32_t i = o->concurrency; i-- > 0;) {
        l->clients[i].l = l;
        l->clients[i].next_idle = l->idle;
        l->idle = &l->clients[i];
    }
    l->interrupt = evsignal_new(l->base, SIGINT, on_interrupt, l);
    l->arrival = evtimer_new(l->base, on_arrival, l);
    l->end = evtimer_new(l->base, on_end, l);
    if (!l->interrupt || !l->arrival || !l->end)
        return ST_ENOMEM;
    event_add(l->interrupt, NULL);
    if (o->duration_s > 0) {
        struct timeval t = {.tv_sec = (time_t)o->duration_s};
        t.tv_usec = (suseconds_t)((o->duration_s - (float)t.tv_sec) * 1e6f);
        event_add(l->end, &t);
    }
    return ST_OK;
}

static void tear_down(load *l)
{
    for (int32_t i = 0; l->clients && i < l->o->concurrency; i++) {
        disconnect(&l->clients[i]);
        st_buf_free(&l->clients[i].body);
        st_buf_free(&l->clients[i].request);
    }
    free(l->clients);
    struct event *events[] = {l->interrupt, l->arrival, l->end};
    for (size_t i = 0; i < 3; i++)
        if (events[i])
            event_free(events[i]);
    if (l->base)
        event_base_free(l->base);
}

st_status st_load_run(const st_load_options *o, st_load_result *out, st_error *err)
{
    load l = {.o = o, .r = out, .random = o->seed * 2 + 1};
    st_status s = set_up(&l);
    if (s) {
        tear_down(&l);
        return st_fail(err, s, "no memory for %d clients", o->concurrency);
    }
    l.begun_ns = st_now_ns();
    if (o->rate > 0)
        arm_arrival(&l);
    else
        start_some(&l);
    if (!l.status && (!l.over || l.busy))
        event_base_dispatch(l.base);
    out->elapsed_ns = st_now_ns() - l.begun_ns;
    tear_down(&l);
    return l.status ? st_fail(err, l.status, "%s", st_status_name(l.status)) : ST_OK;
}
