/* How KV links find each other: a TCP connection, HELLO both ways, then UCX endpoints. Afterwards
 * the TCP connection stays open and silent, and its end tells that the peer is gone (see
 * kv_link_internal.h). */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "transfer/kv_link_internal.h"

/* What a peer said before it hung up may still be on its way through UCX. */
#define LINGER_NS 20000000u
/* When accept fails. */
#define REST_NS 100000000u

void kv_address_text(const struct sockaddr_storage *a, char *out, size_t cap)
{
    char host[INET6_ADDRSTRLEN] = "?";
    if (a->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)a;
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
        snprintf(out, cap, "[%s]:%u", host, ntohs(in6->sin6_port));
    } else {
        const struct sockaddr_in *in = (const struct sockaddr_in *)a;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        snprintf(out, cap, "%s:%u", host, ntohs(in->sin_port));
    }
}

socklen_t kv_address_len(const struct sockaddr_storage *a)
{
    return a->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
}

/* The rest of the storage is zero on both sides. */
static bool address_equal(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
    return a->ss_family == b->ss_family && !memcmp(a, b, kv_address_len(a));
}

/* A machine that is switched off does not hang up: notice after some 25 s. */
static void set_keepalive(int fd)
{
    int on = 1, idle = 10, interval = 5, count = 3;
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void watch(kv_conn *c, int op, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(c->link->epoll_fd, op, c->fd, &e))
        kv_conn_fail(c, ST_EIO, "epoll: %s", strerror(errno));
}

/* Takes fd, also when it fails (NULL). HELLO is ready to be sent. */
static kv_conn *conn_new(st_kv_link *l, int fd, const struct sockaddr_storage *addr, bool outgoing)
{
    kv_conn *c = calloc(1, sizeof *c);
    kv_hello h = l->hello;
    if (!c || getrandom(&h.token, sizeof h.token, 0) != sizeof h.token ||
        !(c->out = malloc(KV_HELLO_BYTES + l->address_len)) ||
        !(c->in = malloc(KV_HELLO_BYTES + KV_ADDRESS_MAX))) {
        if (c)
            free(c->out);
        free(c);
        close(fd);
        return NULL;
    }
    c->link = l;
    c->fd = fd;
    c->outgoing = outgoing;
    c->addr = *addr;
    kv_address_text(addr, c->name, sizeof c->name);
    c->sending_tail = &c->sending;
    h.address = (const unsigned char *)l->address;
    h.address_len = (uint32_t)l->address_len;
    c->out_len = kv_hello_encode(&h, c->out);
    /* Tokens are compared as they lie in the message. */
    memcpy(&c->my_token, c->out + KV_HELLO_TOKEN, KV_TOKEN_BYTES);
    c->next = l->conns;
    l->conns = c;
    l->n_accepted += !outgoing;
    c->deadline = st_now_ns() + l->o.connect_timeout_ns;
    kv_link_due(l, c->deadline);
    set_keepalive(fd);
    watch(c, EPOLL_CTL_ADD, outgoing ? EPOLLIN | EPOLLOUT : EPOLLIN);
    return c;
}

kv_conn *kv_conn_to(st_kv_link *l, const struct sockaddr_storage *addr, bool *reused, st_error *err)
{
    *reused = true;
    for (kv_conn *c = l->conns; c; c = c->next)
        if (c->outgoing && !c->failed && !c->closing && address_equal(&c->addr, addr))
            return c;
    *reused = false;
    char name[80];
    kv_address_text(addr, name, sizeof name);
    int fd = socket(addr->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int e = fd < 0 ? errno : 0;
    if (!e && connect(fd, (const struct sockaddr *)addr, kv_address_len(addr)) &&
        errno != EINPROGRESS && errno != EINTR)
        e = errno;
    if (e) {
        if (fd >= 0)
            close(fd);
        (void)st_fail(err, ST_EIO, "KV transfer with %s: cannot connect: %s", name, strerror(e));
        return NULL;
    }
    kv_conn *c = conn_new(l, fd, addr, true);
    if (!c)
        (void)st_fail(err, ST_ENOMEM, "KV transfer with %s: out of memory", name);
    return c;
}

/* ---- HELLO ---- */

static void send_hello(kv_conn *c)
{
    while (c->out_sent < c->out_len) {
        ssize_t n = send(c->fd, c->out + c->out_sent, c->out_len - c->out_sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return;
        }
        if (n < 0) {
            kv_conn_fail(c, ST_EIO, "cannot connect: %s", strerror(errno));
            return;
        }
        c->out_sent += (size_t)n;
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

/* Their HELLO is complete. */
static void greet(kv_conn *c, const kv_hello *h)
{
    st_error err;
    st_status st = kv_hello_compare(&c->link->hello, h, &err);
    if (st == ST_OK) {
        memcpy(&c->their_token, c->in + KV_HELLO_TOKEN, KV_TOKEN_BYTES);
        ucs_status_t s = kv_conn_open(c, h->address);
        if (s != UCS_OK)
            st = st_fail(&err, ST_EIO, "no endpoint: %s", c->link->ucx->ucs_status_string(s));
    }
    /* The one who connected hears HELLO in any case, and sees himself what does not fit. */
    if (!c->outgoing)
        send_hello(c);
    if (st != ST_OK) {
        kv_conn_fail(c, st, "%s", err.text);
        return;
    }
    c->greeted = true;
    c->deadline = KV_NEVER;
    free(c->in);
    c->in = NULL;
    if (c->outgoing)
        kv_fetches_greeted(c->link, c);
}

void kv_conn_linger(kv_conn *c)
{
    if (c->deadline != KV_NEVER)
        c->deadline = st_now_ns() + LINGER_NS;
}

/* After HELLO nothing may come but the end. */
static void hung_up(kv_conn *c, ssize_t n)
{
    if (n > 0) {
        kv_conn_fail(c, ST_EFORMAT, "bytes after HELLO");
        return;
    }
    (void)epoll_ctl(c->link->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
    c->deadline = st_now_ns() + LINGER_NS;
    kv_link_due(c->link, c->deadline);
}

static void receive_hello(kv_conn *c)
{
    unsigned char byte;
    while (!c->failed) {
        size_t need = KV_HELLO_BYTES;
        kv_hello h;
        st_error err;
        st_status st = c->greeted ? ST_OK : kv_hello_decode(c->in, c->in_len, &h, &need, &err);
        if (st == ST_EUNSUPPORTED && !c->outgoing)
            send_hello(c); /* so that it can say which version it met */
        if (st != ST_OK) {
            kv_conn_fail(c, st, "%s", err.text);
            return;
        }
        if (!c->greeted && need == c->in_len) {
            greet(c, &h);
            continue;
        }
        ssize_t n = c->greeted ? recv(c->fd, &byte, 1, 0)
                               : recv(c->fd, c->in + c->in_len, need - c->in_len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (c->greeted) {
            hung_up(c, n);
            return;
        }
        if (n <= 0) {
            kv_conn_fail(c, ST_EIO, "cannot connect: %s",
                         n ? strerror(errno) : "it closed the connection");
            return;
        }
        c->in_len += (size_t)n;
    }
}

/* ---- sockets ---- */

st_status kv_listen(st_kv_link *l, const struct sockaddr_storage *addr, st_error *err)
{
    int on = 1;
    struct sockaddr_storage mine;
    socklen_t len = sizeof mine;
    l->listen_fd = socket(addr->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = l};
    if (l->listen_fd < 0 || setsockopt(l->listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
        bind(l->listen_fd, (const struct sockaddr *)addr, kv_address_len(addr)) ||
        listen(l->listen_fd, 256) || getsockname(l->listen_fd, (struct sockaddr *)&mine, &len) ||
        epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, l->listen_fd, &e))
        return st_fail(err, ST_EIO, "KV transfer: cannot listen on host \"%.64s\" port %u: %s",
                       l->o.host, l->o.port, strerror(errno));
    l->port = ntohs(mine.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&mine)->sin6_port
                                               : ((struct sockaddr_in *)&mine)->sin_port);
    return ST_OK;
}

static void watch_listener(st_kv_link *l, bool on)
{
    struct epoll_event e = {.events = on ? EPOLLIN : 0, .data.ptr = l};
    (void)epoll_ctl(l->epoll_fd, EPOLL_CTL_MOD, l->listen_fd, &e);
}

static void rest_listener(st_kv_link *l)
{
    watch_listener(l, false);
    l->accept_again = st_now_ns() + REST_NS;
    kv_link_due(l, l->accept_again);
}

uint64_t kv_listener_scan(st_kv_link *l, uint64_t now)
{
    if (now >= l->accept_again) {
        watch_listener(l, true);
        l->accept_again = KV_NEVER;
    }
    return l->accept_again;
}

static void accept_all(st_kv_link *l)
{
    for (;;) {
        struct sockaddr_storage addr = {0};
        socklen_t len = sizeof addr;
        int fd =
            accept4(l->listen_fd, (struct sockaddr *)&addr, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            /* Without descriptors to spare the listener would be reported again at once. */
            if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
                rest_listener(l);
            return;
        }
        if (l->n_accepted >= KV_CONNECTIONS_MAX)
            close(fd);
        else
            (void)conn_new(l, fd, &addr, false);
    }
}

/* One may have been closed by an event before. */
static bool is_open(const st_kv_link *l, const kv_conn *c)
{
    for (const kv_conn *x = l->conns; x; x = x->next)
        if (x == c)
            return !c->failed && !c->closing;
    return false;
}

bool kv_sockets_poll(st_kv_link *l, int timeout_ms)
{
    struct epoll_event events[32];
    int n = epoll_wait(l->epoll_fd, events, 32, timeout_ms);
    for (int i = 0; i < n; i++) {
        kv_conn *c = events[i].data.ptr;
        if (events[i].data.ptr == l) {
            accept_all(l);
        } else if (c && is_open(l, c)) {
            l->dirty = true;
            if (c->out_sent < c->out_len && (events[i].events & EPOLLOUT))
                send_hello(c);
            if (!c->failed && (events[i].events & ~(uint32_t)EPOLLOUT))
                receive_hello(c);
        }
    }
    return n > 0;
}
