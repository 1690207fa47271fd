/*
 * One HTTP/1.1 exchange with an engine: a connection from the worker's pool of
 * kept ones or a new one, the request sent, the answer parsed as it arrives.
 *
 * A worker has one read buffer for all of its legs: whoever gets bytes uses
 * or copies them before the next event, so an idle stream costs none.
 */

#include "ngx_http_starling.h"


#define NGX_HTTP_STARLING_READ_SIZE   65536
#define NGX_HTTP_STARLING_KEPT_MSEC   60000

/* what an engine may send ahead while a client does not read */
#define NGX_HTTP_STARLING_RCVBUF      131072


typedef struct {
    ngx_queue_t                   queue;      /* of its engine, newest first */
    ngx_connection_t             *connection;
    ngx_http_starling_cluster_t  *cluster;
    ngx_int_t                     engine;
} ngx_http_starling_kept_t;


static ngx_int_t ngx_http_starling_leg_head(ngx_http_starling_leg_t *leg,
    const char *method, const char *path, const ngx_str_t *headers);
static ngx_int_t ngx_http_starling_leg_open(ngx_http_starling_leg_t *leg,
    ngx_uint_t fresh);
static void ngx_http_starling_leg_attach(ngx_http_starling_leg_t *leg,
    ngx_connection_t *c);
static ngx_int_t ngx_http_starling_leg_send(ngx_http_starling_leg_t *leg);
static void ngx_http_starling_leg_write_handler(ngx_event_t *wev);
static void ngx_http_starling_leg_read_handler(ngx_event_t *rev);
static void ngx_http_starling_leg_read(ngx_http_starling_leg_t *leg);
static ngx_int_t ngx_http_starling_leg_take(ngx_http_starling_leg_t *leg,
    u_char *p, size_t n);
static void ngx_http_starling_leg_failed(ngx_http_starling_leg_t *leg,
    ngx_http_starling_leg_error_e error);
static void ngx_http_starling_leg_finish(ngx_http_starling_leg_t *leg,
    ngx_uint_t keep);
static void ngx_http_starling_leg_drop(ngx_http_starling_leg_t *leg);
static ngx_connection_t *ngx_http_starling_kept_get(
    ngx_http_starling_cluster_t *cl, ngx_int_t engine, ngx_log_t *log);
static ngx_int_t ngx_http_starling_kept_put(ngx_http_starling_cluster_t *cl,
    ngx_int_t engine, ngx_connection_t *c);
static void ngx_http_starling_kept_close(ngx_http_starling_kept_t *kept);
static void ngx_http_starling_kept_handler(ngx_event_t *rev);
static void ngx_http_starling_kept_dummy(ngx_event_t *wev);


static u_char  ngx_http_starling_read_buffer[NGX_HTTP_STARLING_READ_SIZE];


ngx_int_t
ngx_http_starling_leg_start(ngx_http_starling_leg_t *leg,
    ngx_http_starling_cluster_t *cl, ngx_http_starling_engine_t *engine,
    const char *method, const char *path, const ngx_str_t *headers,
    const st_buf *body, ngx_msec_t first_byte_timeout,
    const ngx_http_starling_leg_handlers_t *handlers, void *data,
    ngx_log_t *log)
{
    ngx_memzero(leg, sizeof(ngx_http_starling_leg_t));

    leg->cluster = cl;
    leg->engine = engine;
    leg->handlers = handlers;
    leg->data = data;
    leg->log = log;
    leg->body = body;
    leg->first_byte_timeout = first_byte_timeout;
    leg->started = ngx_current_msec;
    leg->error = NGX_HTTP_STARLING_LEG_CONNECT;

    if (ngx_http_starling_leg_head(leg, method, path, headers) != NGX_OK
        || ngx_http_starling_leg_open(leg, 0) != NGX_OK)
    {
        st_buf_free(&leg->head);
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_starling_leg_head(ngx_http_starling_leg_t *leg, const char *method,
    const char *path, const ngx_str_t *headers)
{
    st_buf                      *b;
    ngx_http_starling_engine_t  *engine;

    b = &leg->head;
    engine = leg->engine;

    if (st_buf_reserve(b, 512 + headers->len) != ST_OK
        || st_buf_printf(b, "%s %s HTTP/1.1\r\nHost: %.*s\r\n"
                         "Accept: application/json, text/event-stream\r\n",
                         method, path, (int) engine->host.len,
                         (char *) engine->host.data)
           != ST_OK)
    {
        return NGX_ERROR;
    }

    if (engine->api_key.len
        && st_buf_printf(b, "Authorization: Bearer %.*s\r\n",
                         (int) engine->api_key.len,
                         (char *) engine->api_key.data)
           != ST_OK)
    {
        return NGX_ERROR;
    }

    if (leg->body
        && st_buf_printf(b, "Content-Type: application/json\r\n"
                         "Content-Length: %zu\r\n", leg->body->len)
           != ST_OK)
    {
        return NGX_ERROR;
    }

    if (st_buf_append(b, headers->data, headers->len) != ST_OK
        || st_buf_append(b, "\r\n", 2) != ST_OK)
    {
        return NGX_ERROR;
    }

    leg->length = b->len + (leg->body ? leg->body->len : 0);

    return NGX_OK;
}


/* fresh: no kept connection */

static ngx_int_t
ngx_http_starling_leg_open(ngx_http_starling_leg_t *leg, ngx_uint_t fresh)
{
    ngx_int_t                    rc;
    ngx_addr_t                  *addr;
    ngx_connection_t            *c;
    ngx_peer_connection_t       *pc;
    ngx_http_starling_engine_t  *engine;

    engine = leg->engine;
    pc = &leg->peer;

    st_http_response_init(&leg->response);
    leg->sent = 0;
    leg->answered = 0;
    leg->head_given = 0;

    if (!fresh) {
        c = ngx_http_starling_kept_get(leg->cluster, engine->id, leg->log);

        if (c) {
            pc->connection = c;
            leg->reused = 1;
            leg->connected = 1;
            ngx_http_starling_leg_attach(leg, c);

            if (ngx_http_starling_leg_send(leg) == NGX_OK) {
                return NGX_OK;
            }

            ngx_http_starling_leg_drop(leg);
            leg->sent = 0;
        }
    }

    leg->reused = 0;
    leg->connected = 0;

    while (leg->address < engine->naddrs) {
        addr = &engine->addrs[leg->address];

        ngx_memzero(pc, sizeof(ngx_peer_connection_t));
        pc->sockaddr = addr->sockaddr;
        pc->socklen = addr->socklen;
        pc->name = &addr->name;
        pc->get = ngx_event_get_peer;
        pc->log = leg->log;
        pc->log_error = NGX_ERROR_ERR;
        pc->so_keepalive = 1;
        pc->rcvbuf = NGX_HTTP_STARLING_RCVBUF;

        rc = ngx_event_connect_peer(pc);

        if (rc == NGX_ERROR) {
            /* no file or connection left here, or no memory */
            leg->error = NGX_HTTP_STARLING_LEG_LOCAL;
            return NGX_ERROR;
        }

        if (rc == NGX_OK || rc == NGX_AGAIN) {
            c = pc->connection;
            ngx_http_starling_leg_attach(leg, c);

            if (c->tcp_nodelay == NGX_TCP_NODELAY_UNSET
                && ngx_tcp_nodelay(c) != NGX_OK)
            {
                ngx_http_starling_leg_drop(leg);
                return NGX_ERROR;
            }

            if (rc == NGX_AGAIN) {
                ngx_add_timer(c->write, leg->cluster->connect_timeout);
                return NGX_OK;
            }

            leg->connected = 1;

            if (ngx_http_starling_leg_send(leg) == NGX_OK) {
                return NGX_OK;
            }

            ngx_http_starling_leg_drop(leg);
            leg->sent = 0;
        }

        leg->address++;
    }

    leg->error = NGX_HTTP_STARLING_LEG_CONNECT;
    return NGX_ERROR;
}


static void
ngx_http_starling_leg_attach(ngx_http_starling_leg_t *leg, ngx_connection_t *c)
{
    leg->open = 1;
    ngx_http_starling_load(1);
    c->data = leg;
    c->read->handler = ngx_http_starling_leg_read_handler;
    c->write->handler = ngx_http_starling_leg_write_handler;
}


static ngx_int_t
ngx_http_starling_leg_send(ngx_http_starling_leg_t *leg)
{
    off_t              before;
    size_t             head;
    ngx_buf_t          bufs[2];
    ngx_chain_t        chain[2], *cl;
    ngx_connection_t  *c;

    c = leg->peer.connection;
    head = leg->head.len;

    if (leg->sent < leg->length) {
        ngx_memzero(bufs, sizeof(bufs));
        cl = NULL;

        if (leg->length > head) {
            bufs[1].memory = 1;
            bufs[1].pos = (u_char *) leg->body->data;
            bufs[1].last = bufs[1].pos + leg->body->len;
            if (leg->sent > head) {
                bufs[1].pos += leg->sent - head;
            }

            chain[1].buf = &bufs[1];
            chain[1].next = NULL;
            cl = &chain[1];
        }

        if (leg->sent < head) {
            bufs[0].memory = 1;
            bufs[0].pos = (u_char *) leg->head.data + leg->sent;
            bufs[0].last = (u_char *) leg->head.data + head;

            chain[0].buf = &bufs[0];
            chain[0].next = cl;
            cl = &chain[0];
        }

        before = c->sent;

        if (c->send_chain(c, cl, 0) == NGX_CHAIN_ERROR) {
            return NGX_ERROR;
        }

        leg->sent += c->sent - before;
    }

    if (leg->sent < leg->length) {
        ngx_add_timer(c->write, leg->cluster->send_timeout);

    } else {
        if (c->write->timer_set) {
            ngx_del_timer(c->write);
        }

        if (!c->read->timer_set && !leg->paused) {
            ngx_add_timer(c->read, leg->first_byte_timeout);
        }
    }

    return ngx_handle_write_event(c->write, 0);
}


static void
ngx_http_starling_leg_write_handler(ngx_event_t *wev)
{
    int                       err;
    socklen_t                 len;
    ngx_connection_t         *c;
    ngx_http_starling_leg_t  *leg;

    c = wev->data;
    leg = c->data;

    if (wev->timedout) {
        ngx_http_starling_leg_failed(leg, leg->connected
                                          ? NGX_HTTP_STARLING_LEG_SEND
                                          : NGX_HTTP_STARLING_LEG_CONNECT);
        return;
    }

    if (!leg->connected) {
        err = 0;
        len = sizeof(int);

        if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, (void *) &err, &len)
            == -1)
        {
            err = ngx_socket_errno;
        }

        if (err) {
            ngx_log_error(NGX_LOG_ERR, leg->log, err,
                          "connect() to engine %V failed",
                          &leg->engine->address);
            ngx_http_starling_leg_failed(leg, NGX_HTTP_STARLING_LEG_CONNECT);
            return;
        }

        leg->connected = 1;
    }

    if (leg->sent < leg->length && ngx_http_starling_leg_send(leg) != NGX_OK)
    {
        ngx_http_starling_leg_failed(leg, NGX_HTTP_STARLING_LEG_SEND);
        return;
    }

    /* a read event that came before "connected" was passed over */

    if (c->read->ready && !leg->paused) {
        ngx_post_event(c->read, &ngx_posted_events);
    }
}


static void
ngx_http_starling_leg_read_handler(ngx_event_t *rev)
{
    ngx_connection_t         *c;
    ngx_http_starling_leg_t  *leg;

    c = rev->data;
    leg = c->data;

    if (rev->timedout) {
        ngx_http_starling_leg_failed(leg, NGX_HTTP_STARLING_LEG_TIMEOUT);
        return;
    }

    /* before the connection is made its failure comes as both events */

    if (leg->connected && !leg->paused) {
        ngx_http_starling_leg_read(leg);
    }
}


static void
ngx_http_starling_leg_read(ngx_http_starling_leg_t *leg)
{
    ssize_t            n;
    ngx_event_t       *rev;
    ngx_connection_t  *c;

    c = leg->peer.connection;
    rev = c->read;

    do {
        n = c->recv(c, ngx_http_starling_read_buffer,
                    NGX_HTTP_STARLING_READ_SIZE);

        if (n == NGX_AGAIN) {
            break;
        }

        if (n <= 0) {
            if (n == 0 && st_http_response_eof(&leg->response)) {
                ngx_http_starling_leg_finish(leg, 0);

            } else {
                ngx_http_starling_leg_failed(leg, NGX_HTTP_STARLING_LEG_CUT);
            }

            return;
        }

        leg->answered = 1;

        if (leg->sent == leg->length) {
            /* it will not be sent again */
            st_buf_free(&leg->head);
        }

        if (ngx_http_starling_leg_take(leg, ngx_http_starling_read_buffer, n)
            != NGX_OK)
        {
            return;
        }

    } while (rev->ready && !leg->paused);

    if (leg->paused) {
        if (rev->timer_set) {
            ngx_del_timer(rev);
        }

    } else if (leg->body_given) {
        ngx_add_timer(rev, leg->cluster->read_timeout);
    }

    if (ngx_handle_read_event(rev, 0) != NGX_OK) {
        ngx_http_starling_leg_failed(leg, NGX_HTTP_STARLING_LEG_CUT);
    }
}


/* NGX_DONE: the leg is not to be touched any more */

static ngx_int_t
ngx_http_starling_leg_take(ngx_http_starling_leg_t *leg, u_char *p, size_t n)
{
    long         took;
    size_t       len;
    ngx_int_t    rc;
    const char  *body;

    while (n) {
        took = st_http_response_feed(&leg->response, (char *) p, n, &body,
                                     &len);

        if (took < 0 || (took == 0 && !leg->response.complete)) {
            ngx_log_error(NGX_LOG_ERR, leg->log, 0,
                          "engine %V sent an invalid response: %s",
                          &leg->engine->address,
                          leg->response.why ? leg->response.why : "");
            ngx_http_starling_leg_failed(leg, NGX_HTTP_STARLING_LEG_GARBAGE);
            return NGX_DONE;
        }

        p += took;
        n -= took;

        if (leg->response.head_done && !leg->head_given) {
            leg->head_given = 1;

            if (leg->handlers->head) {
                leg->handlers->head(leg);
            }
        }

        if (len) {
            leg->body_given = 1;
            rc = leg->handlers->body(leg, (u_char *) body, len);

            if (rc == NGX_ERROR) {
                return NGX_DONE;
            }

            if (rc == NGX_AGAIN) {
                leg->paused = 1;
            }
        }

        if (leg->response.complete) {
            /* bytes nobody asked for: this connection is not to be trusted */
            ngx_http_starling_leg_finish(leg, n == 0);
            return NGX_DONE;
        }
    }

    if (leg->handlers->flush) {
        rc = leg->handlers->flush(leg);

        if (rc == NGX_ERROR) {
            return NGX_DONE;
        }

        if (rc == NGX_AGAIN) {
            leg->paused = 1;
        }
    }

    return NGX_OK;
}


void
ngx_http_starling_leg_resume(ngx_http_starling_leg_t *leg)
{
    ngx_event_t  *rev;

    if (!leg->open || !leg->paused) {
        return;
    }

    leg->paused = 0;
    rev = leg->peer.connection->read;

    ngx_add_timer(rev, leg->cluster->read_timeout);
    ngx_post_event(rev, &ngx_posted_events);
}


static void
ngx_http_starling_leg_failed(ngx_http_starling_leg_t *leg,
    ngx_http_starling_leg_error_e error)
{
    ngx_uint_t  again;

    /*
     * An engine may close a kept connection just when it is used again; and
     * a name may have further addresses.
     */

    again = 0;

    if (error == NGX_HTTP_STARLING_LEG_CONNECT) {
        leg->address++;
        again = 1;

    } else if (leg->reused && !leg->answered
               && (error == NGX_HTTP_STARLING_LEG_SEND
                   || error == NGX_HTTP_STARLING_LEG_CUT))
    {
        again = 1;
    }

    ngx_http_starling_leg_drop(leg);

    if (again) {
        if (ngx_http_starling_leg_open(leg, 1) == NGX_OK) {
            return;
        }

        error = leg->error;
    }

    st_buf_free(&leg->head);
    leg->error = error;
    leg->handlers->done(leg, error);
}


static void
ngx_http_starling_leg_finish(ngx_http_starling_leg_t *leg, ngx_uint_t keep)
{
    ngx_connection_t  *c;

    c = leg->peer.connection;

    if (keep && leg->response.keep_alive && leg->sent == leg->length
        && !c->error && !c->read->eof && !c->read->error
        && !c->read->pending_eof && !ngx_terminate && !ngx_exiting
        && ngx_http_starling_kept_put(leg->cluster, leg->engine->id, c)
           == NGX_OK)
    {
        leg->peer.connection = NULL;
        leg->open = 0;
        ngx_http_starling_load(-1);

    } else {
        ngx_http_starling_leg_drop(leg);
    }

    st_buf_free(&leg->head);
    leg->error = NGX_HTTP_STARLING_LEG_OK;
    leg->handlers->done(leg, NGX_HTTP_STARLING_LEG_OK);
}


static void
ngx_http_starling_leg_drop(ngx_http_starling_leg_t *leg)
{
    if (leg->peer.connection) {
        ngx_close_connection(leg->peer.connection);
        leg->peer.connection = NULL;
    }

    if (leg->open) {
        leg->open = 0;
        ngx_http_starling_load(-1);
    }
}


void
ngx_http_starling_leg_close(ngx_http_starling_leg_t *leg)
{
    ngx_http_starling_leg_drop(leg);
    st_buf_free(&leg->head);
}


static ngx_connection_t *
ngx_http_starling_kept_get(ngx_http_starling_cluster_t *cl, ngx_int_t engine,
    ngx_log_t *log)
{
    ngx_queue_t               *q;
    ngx_connection_t          *c;
    ngx_http_starling_kept_t  *kept;

    if (engine < 0 || ngx_queue_empty(&cl->idle[engine])) {
        return NULL;
    }

    q = ngx_queue_head(&cl->idle[engine]);
    ngx_queue_remove(q);

    kept = ngx_queue_data(q, ngx_http_starling_kept_t, queue);
    c = kept->connection;
    ngx_free(kept);

    c->idle = 0;
    c->sent = 0;
    c->log = log;
    c->read->log = log;
    c->write->log = log;

    if (c->read->timer_set) {
        ngx_del_timer(c->read);
    }

    return c;
}


static ngx_int_t
ngx_http_starling_kept_put(ngx_http_starling_cluster_t *cl, ngx_int_t engine,
    ngx_connection_t *c)
{
    ngx_uint_t                 n;
    ngx_queue_t               *q, *queue;
    ngx_http_starling_kept_t  *kept;

    if (engine < 0 || cl->keepalive == 0) {
        return NGX_DECLINED;
    }

    queue = &cl->idle[engine];
    n = 0;

    for (q = ngx_queue_head(queue);
         q != ngx_queue_sentinel(queue);
         q = ngx_queue_next(q))
    {
        n++;
    }

    if (n >= cl->keepalive) {
        q = ngx_queue_last(queue);
        ngx_http_starling_kept_close(ngx_queue_data(q, ngx_http_starling_kept_t,
                                                    queue));
    }

    if (ngx_handle_read_event(c->read, 0) != NGX_OK) {
        return NGX_ERROR;
    }

    kept = ngx_alloc(sizeof(ngx_http_starling_kept_t), ngx_cycle->log);
    if (kept == NULL) {
        return NGX_ERROR;
    }

    kept->connection = c;
    kept->cluster = cl;
    kept->engine = engine;
    ngx_queue_insert_head(queue, &kept->queue);

    if (c->write->timer_set) {
        ngx_del_timer(c->write);
    }

    ngx_add_timer(c->read, NGX_HTTP_STARLING_KEPT_MSEC);

    c->data = kept;
    c->idle = 1;
    c->log = ngx_cycle->log;
    c->read->log = ngx_cycle->log;
    c->write->log = ngx_cycle->log;
    c->read->handler = ngx_http_starling_kept_handler;
    c->write->handler = ngx_http_starling_kept_dummy;

    if (c->read->ready) {
        ngx_post_event(c->read, &ngx_posted_events);
    }

    return NGX_OK;
}


static void
ngx_http_starling_kept_close(ngx_http_starling_kept_t *kept)
{
    ngx_queue_remove(&kept->queue);
    ngx_close_connection(kept->connection);
    ngx_free(kept);
}


/* the engine closed it, its time is over, or the worker exits */

static void
ngx_http_starling_kept_handler(ngx_event_t *rev)
{
    int                n;
    char               buf[1];
    ngx_connection_t  *c;

    c = rev->data;

    if (!c->close && !rev->timedout) {
        n = recv(c->fd, buf, 1, MSG_PEEK);

        if (n == -1 && ngx_socket_errno == NGX_EAGAIN) {
            rev->ready = 0;

            if (ngx_handle_read_event(rev, 0) == NGX_OK) {
                return;
            }
        }
    }

    ngx_http_starling_kept_close(c->data);
}


static void
ngx_http_starling_kept_dummy(ngx_event_t *wev)
{
    ngx_log_debug0(NGX_LOG_DEBUG_EVENT, wev->log, 0, "starling kept: write");
}
