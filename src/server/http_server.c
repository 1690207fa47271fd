/* HTTP connections: see http_server.h. Life of a connection:
 *
 *   IDLE -> READING -> BUSY -> (reply) -> IDLE ...          keep-alive
 *                                      -> FLUSHING -> LINGERING -> closed
 *
 * LINGERING reads and drops what the client still sends, so that closing does not reset the
 * connection before the client has read the reply. */
#include "server/http_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/listener.h>

#include "base/clock.h"
#include "base/log.h"

enum {
    MAX_LISTENERS = 8,
    MAX_EXTRA_HEADERS = 6,
    LINGER_S = 2,
    BODY_GRACE_S = 30,            /* plus one second for each */
    BODY_BYTES_PER_S = 16 * 1024, /* of these */
    PIPELINE_BYTES = 64 * 1024,   /* read ahead while a request is answered */
    READ_BYTES = 256 * 1024,
    EVICT_AFTER_MS = 1000,
    LEFT_CHECK_MS = 100,
};

typedef enum conn_state { IDLE, READING, BUSY, FLUSHING, LINGERING } conn_state;

struct st_http_exchange {
    st_http_server *server;
    st_http_exchange *prev, *next;
    struct bufferevent *bev;
    struct event *timer;
    conn_state state;
    uint64_t since_ns;   /* when it became IDLE or READING */
    uint64_t request_ns; /* when the request was complete */
    st_http_parser parser;
    size_t body_counted; /* bytes of parser.body in the server's total */
    bool processing, streaming, chunked, close_after, continue_sent;
    bool local; /* the client is on this machine */
    int status;
    void (*on_close)(void *user);
    void *close_user;
    struct {
        const char *name, *value;
    } extra[MAX_EXTRA_HEADERS];
    int n_extra;
    char note[160];
};

struct st_http_server {
    st_http_options opts;
    struct event_base *base;
    struct evconnlistener *listeners[MAX_LISTENERS];
    int n_listeners;
    struct event *relisten;
    char *unix_path;
    st_http_exchange *first, *last; /* oldest first */
    int n_connections;
    size_t total_body;
    bool draining;
};

static void process(st_http_exchange *x);

/* Connections */

static void set_timer(st_http_exchange *x, int seconds)
{
    struct timeval tv = {seconds, 0};
    event_add(x->timer, &tv);
}

static void uncount_body(st_http_exchange *x)
{
    x->server->total_body -= x->body_counted;
    x->body_counted = 0;
}

static void destroy(st_http_exchange *x)
{
    st_http_server *s = x->server;
    void (*on_close)(void *) = x->state == BUSY ? x->on_close : NULL;
    void *user = x->close_user;
    if (x->prev)
        x->prev->next = x->next;
    else
        s->first = x->next;
    if (x->next)
        x->next->prev = x->prev;
    else
        s->last = x->prev;
    s->n_connections--;
    uncount_body(x);
    event_free(x->timer);
    bufferevent_free(x->bev);
    st_http_parser_free(&x->parser);
    free(x);
    if (on_close)
        on_close(user);
}

static void become_idle(st_http_exchange *x)
{
    x->state = IDLE;
    x->since_ns = st_now_ns();
    uncount_body(x);
    st_http_parser_reset(&x->parser);
    x->on_close = NULL;
    x->n_extra = 0;
    x->note[0] = '\0';
    x->streaming = x->chunked = x->continue_sent = false;
    bufferevent_setwatermark(x->bev, EV_READ, 0, READ_BYTES);
    set_timer(x, x->server->opts.idle_timeout_s);
}

/* Closes after what is in the output buffer. */
static void close_soon(st_http_exchange *x)
{
    bool pending = evbuffer_get_length(bufferevent_get_output(x->bev)) > 0;
    x->state = FLUSHING;
    /* The write callback comes when the output is empty; an empty one needs the timer. */
    set_timer(x, pending ? x->server->opts.write_timeout_s : 0);
}

/* The reply is in the output buffer; close once it is written, or look at the next request. */
static void finish(st_http_exchange *x)
{
    st_http_server *s = x->server;
    double ms = (double)(st_now_ns() - x->request_ns) / 1e6;
    if (s->opts.on_replied)
        s->opts.on_replied(s->opts.user, x, x->status, ms);
    bufferevent_enable(x->bev, EV_READ); /* pause_reading */
    if (!x->close_after && !s->draining) {
        become_idle(x);
        if (!x->processing)
            process(x);
        return;
    }
    uncount_body(x);
    close_soon(x);
}

static void linger(st_http_exchange *x)
{
    shutdown(bufferevent_getfd(x->bev), SHUT_WR);
    x->state = LINGERING;
    bufferevent_setwatermark(x->bev, EV_READ, 0, READ_BYTES);
    bufferevent_enable(x->bev, EV_READ);
    set_timer(x, LINGER_S);
}

/* Enough is read ahead while a request is answered: reading stops. libevent calls back again and
 * again while a buffer is at its high watermark, so reading is disabled; then nobody tells that
 * the client has left, so that is asked for now and then. */
static void pause_reading(st_http_exchange *x)
{
    struct timeval tv = {0, LEFT_CHECK_MS * 1000};
    if (x->state != BUSY || evbuffer_get_length(bufferevent_get_input(x->bev)) < PIPELINE_BYTES)
        return;
    bufferevent_disable(x->bev, EV_READ);
    event_add(x->timer, &tv);
}

static bool has_left(const st_http_exchange *x)
{
    struct pollfd p = {.fd = bufferevent_getfd(x->bev), .events = POLLRDHUP};
    return poll(&p, 1, 0) == 1 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    st_http_exchange *x = arg;
    (void)fd;
    (void)what;
    switch (x->state) {
    case READING:
        /* Too slow with its head or body: say so, then close. */
        x->close_after = true;
        x->state = BUSY;
        x->request_ns = st_now_ns();
        x->server->opts.on_request(x->server->opts.user, x, 408,
                                   "the request did not arrive in time");
        return;
    case FLUSHING:
        if (evbuffer_get_length(bufferevent_get_output(x->bev)) == 0) {
            linger(x);
            return;
        }
        break;
    case IDLE:
    case LINGERING:
        break;
    case BUSY:
        if (!has_left(x)) {
            pause_reading(x);
            return;
        }
        break;
    }
    destroy(x);
}

/* End of file, error, or a write without progress. A client that is being answered and closes
 * its side has left; one whose answer is complete may just have nothing more to say. */
static void on_event(struct bufferevent *bev, short what, void *arg)
{
    st_http_exchange *x = arg;
    bool unsent = evbuffer_get_length(bufferevent_get_output(bev)) > 0;
    if (what == (BEV_EVENT_EOF | BEV_EVENT_READING) && unsent &&
        (x->state == IDLE || x->state == FLUSHING)) {
        bufferevent_disable(bev, EV_READ);
        close_soon(x);
        return;
    }
    destroy(x);
}

static void on_written(struct bufferevent *bev, void *arg)
{
    st_http_exchange *x = arg;
    if (x->state == FLUSHING && evbuffer_get_length(bufferevent_get_output(bev)) == 0)
        linger(x);
}

/* Requests */

static void hand_over(st_http_exchange *x, int status, const char *why)
{
    x->state = BUSY;
    x->request_ns = st_now_ns();
    x->close_after = status != 0 || !x->parser.keep_alive;
    event_del(x->timer);
    bufferevent_setwatermark(x->bev, EV_READ, 0, PIPELINE_BYTES);
    pause_reading(x);
    x->server->opts.on_request(x->server->opts.user, x, status, why);
}

/* Keeps the sum of all bodies within its limit; a body's declared size counts at once. */
static bool count_body(st_http_exchange *x)
{
    size_t now = x->parser.body.len;
    if (x->parser.state == ST_HTTP_BODY_SIZED || x->parser.state == ST_HTTP_CHUNK_DATA)
        now += (size_t)x->parser.remaining;
    if (now > x->body_counted &&
        now - x->body_counted > x->server->opts.max_total_body - x->server->total_body)
        return false;
    x->server->total_body += now - x->body_counted;
    x->body_counted = now;
    return true;
}

/* After bytes were taken for an incomplete request: its deadline, and 100 Continue. */
static void keep_reading(st_http_exchange *x)
{
    st_http_parser *p = &x->parser;
    if (x->state == IDLE && p->head.len) {
        x->state = READING;
        x->since_ns = st_now_ns();
        set_timer(x, x->server->opts.head_timeout_s);
    }
    if (x->state != READING || p->state == ST_HTTP_HEAD)
        return;
    if (p->expect_continue && !x->continue_sent) {
        x->continue_sent = true;
        static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
        bufferevent_write(x->bev, go_on, sizeof go_on - 1);
    }
    uint64_t spent_s = (st_now_ns() - x->since_ns) / 1000000000u;
    uint64_t allowed_s = BODY_GRACE_S + p->body.len / BODY_BYTES_PER_S;
    set_timer(x, allowed_s > spent_s ? (int)(allowed_s - spent_s) : 0);
}

/* Reads requests from the input as long as they are answered at once. */
static void process(st_http_exchange *x)
{
    struct evbuffer *in = bufferevent_get_input(x->bev);
    st_http_parser *p = &x->parser;
    x->processing = true;
    while (x->state == IDLE || x->state == READING) {
        size_t n = evbuffer_get_contiguous_space(in);
        if (n == 0)
            break;
        const char *data = (const char *)evbuffer_pullup(in, (ev_ssize_t)n);
        evbuffer_drain(in, st_http_feed(p, data, n));
        if (p->state == ST_HTTP_BAD)
            hand_over(x, p->error_status, p->error);
        else if (!count_body(x))
            hand_over(x, 503, "too many large requests at once");
        else if (p->state == ST_HTTP_DONE)
            hand_over(x, 0, NULL);
        else
            keep_reading(x);
    }
    x->processing = false;
}

static void on_readable(struct bufferevent *bev, void *arg)
{
    st_http_exchange *x = arg;
    if (x->state == LINGERING || x->state == FLUSHING) {
        struct evbuffer *in = bufferevent_get_input(bev);
        evbuffer_drain(in, evbuffer_get_length(in));
        return;
    }
    pause_reading(x);
    process(x);
}

/* Accepting */

static void refuse(evutil_socket_t fd)
{
    static const char text[] =
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        "Retry-After: 1\r\nConnection: close\r\nContent-Length: 113\r\n\r\n"
        "{\"error\":{\"message\":\"too many connections\",\"type\":\"overloaded_error\","
        "\"param\":null,\"code\":\"too_many_connections\"}}";
    (void)!send(fd, text, sizeof text - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    evutil_closesocket(fd);
}

/* Closes the connection that has waited longest without a complete request. */
static bool make_room(st_http_server *s)
{
    st_http_exchange *oldest = NULL;
    for (st_http_exchange *x = s->first; x; x = x->next)
        if ((x->state == IDLE || x->state == READING) &&
            (!oldest || x->since_ns < oldest->since_ns))
            oldest = x;
    if (!oldest || st_now_ns() - oldest->since_ns < EVICT_AFTER_MS * 1000000ull)
        return false;
    destroy(oldest);
    return true;
}

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET) {
        struct sockaddr_in v4;
        memcpy(&v4, a, sizeof v4);
        return ntohl(v4.sin_addr.s_addr) >> 24 == 127;
    }
    if (a->sa_family == AF_INET6) {
        struct sockaddr_in6 v6;
        memcpy(&v6, a, sizeof v6);
        return IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr) ||
               (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr) && v6.sin6_addr.s6_addr[12] == 127);
    }
    return a->sa_family == AF_UNIX;
}

static void on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *addr, int len,
                      void *arg)
{
    (void)l;
    (void)len;
    st_http_server *s = arg;
    if (s->n_connections >= s->opts.max_connections && !make_room(s)) {
        refuse(fd);
        return;
    }
    st_http_exchange *x = calloc(1, sizeof *x);
    struct bufferevent *bev = x ? bufferevent_socket_new(s->base, fd, BEV_OPT_CLOSE_ON_FREE) : NULL;
    struct event *timer = bev ? event_new(s->base, -1, 0, on_timer, x) : NULL;
    if (!timer) {
        if (bev)
            bufferevent_free(bev);
        else
            evutil_closesocket(fd);
        free(x);
        return;
    }
    if (addr->sa_family != AF_UNIX) {
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    x->server = s;
    x->local = is_loopback(addr);
    x->bev = bev;
    x->timer = timer;
    x->parser.max_head = s->opts.max_head;
    x->parser.max_body = s->opts.max_body;
    x->prev = s->last;
    *(s->last ? &s->last->next : &s->first) = x;
    s->last = x;
    s->n_connections++;
    struct timeval write_timeout = {s->opts.write_timeout_s, 0};
    bufferevent_set_timeouts(bev, NULL, &write_timeout);
    bufferevent_setcb(bev, on_readable, on_written, on_event, x);
    become_idle(x);
    bufferevent_enable(bev, EV_READ | EV_WRITE);
}

static void set_listening(st_http_server *s, bool on)
{
    for (int i = 0; i < s->n_listeners; i++) {
        if (on)
            evconnlistener_enable(s->listeners[i]);
        else
            evconnlistener_disable(s->listeners[i]);
    }
}

static void on_relisten(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    set_listening(arg, true);
}

/* Out of file descriptors, most likely: a listener left on would spin. */
static void on_accept_error(struct evconnlistener *l, void *arg)
{
    (void)l;
    st_http_server *s = arg;
    struct timeval pause = {0, 200000};
    st_warn("cannot accept a connection: %s", strerror(errno));
    set_listening(s, false);
    event_add(s->relisten, &pause);
}

static st_status add_listener(st_http_server *s, evutil_socket_t fd, st_error *err)
{
    if (s->n_listeners == MAX_LISTENERS)
        return st_fail(err, ST_EFULL, "more than %d listening addresses", MAX_LISTENERS);
    struct evconnlistener *l = evconnlistener_new(
        s->base, on_accept, s, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 1024, fd);
    if (!l)
        return st_fail(err, ST_EIO, "listen: %s", strerror(errno));
    evconnlistener_set_error_cb(l, on_accept_error);
    s->listeners[s->n_listeners++] = l;
    return ST_OK;
}

static int bind_one(const struct addrinfo *a)
{
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1, zero = 0;
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (a->ai_family == AF_INET6) /* "::" serves IPv4 too */
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    /* listen here: two servers may both bind, only one may listen. */
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, 1024) == 0)
        return fd;
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

static uint16_t bound_port(int fd)
{
    struct sockaddr_storage a;
    socklen_t len = sizeof a;
    if (getsockname(fd, (struct sockaddr *)&a, &len))
        return 0;
    return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                         : ((struct sockaddr_in *)&a)->sin_port);
}

st_status st_http_listen_tcp(st_http_server *s, const char *host, uint16_t *port, st_error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list;
    char port_text[8];
    snprintf(port_text, sizeof port_text, "%u", *port);
    int rc = getaddrinfo(host, port_text, &hints, &list);
    if (rc)
        return st_fail(err, ST_EINVAL, "--host %s: %s", host, gai_strerror(rc));
    int fd = bind_one(list);
    int saved = errno;
    freeaddrinfo(list);
    if (fd < 0 && saved == EADDRINUSE)
        return st_fail(err, ST_EIO,
                       "port %u of %s is in use: another server runs there; choose another with "
                       "--port",
                       *port, host);
    if (fd < 0)
        return st_fail(err, ST_EIO, "cannot listen on %s port %u: %s", host, *port,
                       strerror(saved));
    *port = bound_port(fd);
    st_status st = add_listener(s, fd, err);
    if (st)
        close(fd);
    return st;
}

/* Removes a socket file that nobody listens on any more. */
static st_status clear_stale(const struct sockaddr_un *a, st_error *err)
{
    struct stat sb;
    if (lstat(a->sun_path, &sb) != 0)
        return ST_OK;
    if (!S_ISSOCK(sb.st_mode))
        return st_fail(err, ST_EIO, "--uds %s: the file exists and is no socket", a->sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool alive = fd >= 0 && connect(fd, (const struct sockaddr *)a, sizeof *a) == 0;
    if (fd >= 0)
        close(fd);
    if (alive)
        return st_fail(err, ST_EIO, "--uds %s: another server listens there", a->sun_path);
    unlink(a->sun_path);
    return ST_OK;
}

st_status st_http_listen_unix(st_http_server *s, const char *path, st_error *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof a.sun_path)
        return st_fail(err, ST_EINVAL, "--uds %s: expected at most %zu bytes", path,
                       sizeof a.sun_path - 1);
    strcpy(a.sun_path, path);
    st_status st = clear_stale(&a, err);
    if (st)
        return st;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) != 0) {
        st = st_fail(err, ST_EIO, "--uds %s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return st;
    }
    st = add_listener(s, fd, err);
    if (st) {
        close(fd);
        unlink(path);
        return st;
    }
    s->unix_path = strdup(path);
    return ST_OK;
}

st_status st_http_server_new(struct event_base *base, const st_http_options *opts,
                             st_http_server **out, st_error *err)
{
    st_http_server *s = calloc(1, sizeof *s);
    *out = s;
    if (s)
        s->relisten = event_new(base, -1, 0, on_relisten, s);
    if (!s || !s->relisten) {
        free(s);
        *out = NULL;
        return st_fail(err, ST_ENOMEM, "HTTP server: memory is short");
    }
    s->opts = *opts;
    s->base = base;
    return ST_OK;
}

static void stop_listening(st_http_server *s)
{
    for (int i = 0; i < s->n_listeners; i++)
        evconnlistener_free(s->listeners[i]);
    s->n_listeners = 0;
    event_del(s->relisten);
    if (s->unix_path)
        unlink(s->unix_path);
    free(s->unix_path);
    s->unix_path = NULL;
}

void st_http_server_drain(st_http_server *s)
{
    s->draining = true;
    stop_listening(s);
    for (st_http_exchange *x = s->first, *next; x; x = next) {
        next = x->next;
        if (x->state == IDLE)
            close_soon(x);
    }
}

void st_http_server_free(st_http_server *s)
{
    if (!s)
        return;
    stop_listening(s);
    while (s->first)
        destroy(s->first);
    event_free(s->relisten);
    free(s);
}

int st_http_server_connections(const st_http_server *s)
{
    return s->n_connections;
}

bool st_http_server_busy(const st_http_server *s)
{
    for (const st_http_exchange *x = s->first; x; x = x->next)
        if (x->state == BUSY || x->state == FLUSHING)
            return true;
    return false;
}

/* Exchanges */

st_http_method st_http_method_of(const st_http_exchange *x)
{
    return x->parser.method;
}

const char *st_http_method_name(const st_http_exchange *x)
{
    return x->parser.target ? st_http_parser_method_name(&x->parser) : "-";
}

const char *st_http_path(const st_http_exchange *x)
{
    return x->parser.target ? st_http_parser_path(&x->parser) : "-";
}

const char *st_http_header_of(const st_http_exchange *x, const char *name)
{
    return st_http_parser_header(&x->parser, name);
}

bool st_http_is_local(const st_http_exchange *x)
{
    return x->local;
}

st_buf st_http_take_body(st_http_exchange *x)
{
    st_buf b = x->parser.body;
    x->parser.body = (st_buf)ST_BUF_INIT;
    return b;
}

void st_http_on_close(st_http_exchange *x, void (*fn)(void *user), void *user)
{
    x->on_close = fn;
    x->close_user = user;
}

void st_http_add_header(st_http_exchange *x, const char *name, const char *value)
{
    if (x->n_extra < MAX_EXTRA_HEADERS) {
        x->extra[x->n_extra].name = name;
        x->extra[x->n_extra++].value = value;
    }
}

void st_http_note(st_http_exchange *x, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(x->note, sizeof x->note, fmt, ap);
    va_end(ap);
}

const char *st_http_get_note(const st_http_exchange *x)
{
    return x->note;
}

static const char *reason(int status)
{
    static const struct {
        int status;
        const char *text;
    } known[] = {{200, "OK"},
                 {204, "No Content"},
                 {400, "Bad Request"},
                 {401, "Unauthorized"},
                 {404, "Not Found"},
                 {405, "Method Not Allowed"},
                 {408, "Request Timeout"},
                 {413, "Content Too Large"},
                 {417, "Expectation Failed"},
                 {429, "Too Many Requests"},
                 {431, "Request Header Fields Too Large"},
                 {500, "Internal Server Error"},
                 {501, "Not Implemented"},
                 {503, "Service Unavailable"},
                 {505, "HTTP Version Not Supported"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].status == status)
            return known[i].text;
    return "Unknown";
}

/* Status line and headers; length < 0: none is known. */
static void write_head(st_http_exchange *x, int status, const char *type, ptrdiff_t length)
{
    struct evbuffer *out = bufferevent_get_output(x->bev);
    const char *origin = x->server->opts.allow_origin;
    x->status = status;
    if (x->server->draining || (length < 0 && !x->chunked))
        x->close_after = true;
    evbuffer_add_printf(out, "HTTP/1.1 %d %s\r\n", status, reason(status));
    if (type)
        evbuffer_add_printf(out, "Content-Type: %s\r\n", type);
    if (length >= 0 && status != 204)
        evbuffer_add_printf(out, "Content-Length: %td\r\n", length);
    if (x->chunked)
        evbuffer_add_printf(out, "Transfer-Encoding: chunked\r\n");
    if (length < 0)
        evbuffer_add_printf(out, "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n");
    if (origin)
        evbuffer_add_printf(out, "Access-Control-Allow-Origin: %s\r\n", origin);
    for (int i = 0; i < x->n_extra; i++)
        evbuffer_add_printf(out, "%s: %s\r\n", x->extra[i].name, x->extra[i].value);
    if (x->close_after)
        evbuffer_add_printf(out, "Connection: close\r\n");
    else if (x->parser.minor == 0)
        evbuffer_add_printf(out, "Connection: keep-alive\r\n");
    evbuffer_add(out, "\r\n", 2);
}

void st_http_reply(st_http_exchange *x, int status, const char *type, const char *body, size_t n)
{
    write_head(x, status, type, (ptrdiff_t)n);
    if (n && x->parser.method != ST_HTTP_HEAD_METHOD)
        bufferevent_write(x->bev, body, n);
    finish(x);
}

void st_http_stream_start(st_http_exchange *x, int status, const char *type)
{
    x->streaming = true;
    x->chunked = x->parser.minor == 1;
    write_head(x, status, type, -1);
}

st_status st_http_stream_write(st_http_exchange *x, const char *data, size_t n)
{
    struct evbuffer *out = bufferevent_get_output(x->bev);
    if (n == 0) /* an empty chunk would end the stream */
        return ST_OK;
    if (evbuffer_get_length(out) + n > x->server->opts.max_unsent)
        return ST_EFULL;
    int rc = 0;
    if (x->chunked)
        rc |= evbuffer_add_printf(out, "%zx\r\n", n) < 0;
    rc |= evbuffer_add(out, data, n);
    if (x->chunked)
        rc |= evbuffer_add(out, "\r\n", 2);
    return rc ? ST_ENOMEM : ST_OK;
}

void st_http_stream_end(st_http_exchange *x)
{
    if (x->chunked)
        bufferevent_write(x->bev, "0\r\n\r\n", 5);
    finish(x);
}

void st_http_abort(st_http_exchange *x)
{
    x->on_close = NULL;
    destroy(x);
}
