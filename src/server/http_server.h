/* HTTP/1.1 connections on a libevent loop: accepting, reading requests, writing replies and
 * streams, deadlines and limits. Knows nothing of what is served.
 *
 * Everything here runs on the loop's thread. One connection answers one request at a time (an
 * exchange); pipelined requests wait in its input buffer. */
#ifndef ST_SERVER_HTTP_SERVER_H
#define ST_SERVER_HTTP_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <event2/event.h>

#include "server/http_parse.h"
#include "starling/status.h"

typedef struct st_http_server st_http_server;
typedef struct st_http_exchange st_http_exchange;

typedef struct st_http_options {
    size_t max_head, max_body;
    size_t max_total_body;    /* of all requests being read or answered: beyond it 503 */
    size_t max_unsent;        /* bytes a stream's reader may lag behind */
    int max_connections;      /* beyond it the longest waiting without a request is closed */
    int head_timeout_s;       /* from a request's first byte to the end of its head */
    int idle_timeout_s;       /* between requests */
    int write_timeout_s;      /* without any progress */
    const char *allow_origin; /* Access-Control-Allow-Origin, or NULL */
    /* A complete request (status 0), or one that could not be understood: status and why. Must
     * lead to st_http_reply, or st_http_stream_start ... _end, now or later. */
    void (*on_request)(void *user, st_http_exchange *x, int status, const char *why);
    /* After the last byte of a reply was handed to the socket's buffer. */
    void (*on_replied)(void *user, st_http_exchange *x, int status, double ms);
    void *user;
} st_http_options;

ST_NODISCARD st_status st_http_server_new(struct event_base *base, const st_http_options *opts,
                                          st_http_server **out, st_error *err);
void st_http_server_free(st_http_server *s); /* closes everything; NULL is fine */
/* host: a name or address, "::" for all; *port 0 becomes the port that was taken. */
ST_NODISCARD st_status st_http_listen_tcp(st_http_server *s, const char *host, uint16_t *port,
                                          st_error *err);
/* A stale socket file is replaced; one that somebody listens on is an error. */
ST_NODISCARD st_status st_http_listen_unix(st_http_server *s, const char *path, st_error *err);
/* Closes the listeners and connections without a request; later replies end their connection. */
void st_http_server_drain(st_http_server *s);
int st_http_server_connections(const st_http_server *s);
/* A request is being answered, or a reply's last bytes are not written yet. */
bool st_http_server_busy(const st_http_server *s);

st_http_method st_http_method_of(const st_http_exchange *x);
const char *st_http_method_name(const st_http_exchange *x);
const char *st_http_path(const st_http_exchange *x);
const char *st_http_header_of(const st_http_exchange *x, const char *name); /* or NULL */
/* The client is on this machine: a unix socket, or a loopback address. */
bool st_http_is_local(const st_http_exchange *x);
/* Moves the request's body out; the caller frees it. */
st_buf st_http_take_body(st_http_exchange *x);
/* fn runs once, should the client leave before the reply's end; x is gone after it. NULL: none. */
void st_http_on_close(st_http_exchange *x, void (*fn)(void *user), void *user);
/* A header of the reply; before it starts. Name and value outlive the call. */
void st_http_add_header(st_http_exchange *x, const char *name, const char *value);
/* A few words for the access log. */
void st_http_note(st_http_exchange *x, const char *fmt, ...) ST_PRINTF(2, 3);
const char *st_http_get_note(const st_http_exchange *x);

/* The whole reply. x must not be used afterwards. */
void st_http_reply(st_http_exchange *x, int status, const char *type, const char *body, size_t n);
/* A stream: chunked, or ended by closing for HTTP/1.0. */
void st_http_stream_start(st_http_exchange *x, int status, const char *type);
/* ST_EFULL: the reader lags more than max_unsent behind; st_http_abort is the answer. */
ST_NODISCARD st_status st_http_stream_write(st_http_exchange *x, const char *data, size_t n);
void st_http_stream_end(st_http_exchange *x); /* x must not be used afterwards */
/* Closes the connection now, without on_close. */
void st_http_abort(st_http_exchange *x);

#endif
