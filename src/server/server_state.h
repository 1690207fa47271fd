/* The server's parts, shared by server.c (life), routes.c (endpoints) and jobs.c (requests that
 * need the engine or a work thread). */
#ifndef ST_SERVER_STATE_H
#define ST_SERVER_STATE_H

#include <event2/event.h>

#include "server/http_server.h"
#include "server/mailbox.h"
#include "server/metrics.h"
#include "server/work_queue.h"
#include "starling/server.h"

typedef struct st_job st_job;

struct st_server {
    st_server_options opts;
    st_engine *engine;
    const st_tokenizer *tok;
    const st_chat_template *tmpl;
    st_api_context ctx;
    int64_t created;
    char address[160];
    char engine_id[33]; /* drawn at start: a gateway sees that an engine was restarted */
    st_engine_ports ports;

    struct event_base *base;
    st_http_server *http;
    st_mailbox *mail;
    st_work_queue *work;
    struct event *signals[2], *stop, *drain_tick;

    st_metrics metrics;
    st_job *jobs; /* all that are not freed */
    int n_jobs;

    bool draining, expired;
    uint64_t drain_deadline_ns, force_ns;
};

/* out[2 * n + 1]: n bytes as small hexadecimal digits. */
void st_server_hex(const unsigned char *bytes, size_t n, char *out);
/* GET /starling/engine: what a gateway must know of this engine. */
ST_NODISCARD st_status st_engine_info_json(const st_server *s, st_buf *out);
/* Replies with an error in OpenAI's shape. */
void st_server_reply_error(st_http_exchange *x, const st_api_error *e);
/* One request that could not be parsed (status, why), or a complete one (status 0). */
void st_server_on_request(void *user, st_http_exchange *x, int status, const char *why);
void st_server_on_replied(void *user, st_http_exchange *x, int status, double ms);

/* Hands a POST to a work thread and answers it when it is done. */
void st_job_start(st_server *s, st_http_exchange *x, st_api_kind kind);
void st_job_deliver(void *server, const st_mail *mail);
/* Ends every job with an error: the drain's deadline. */
void st_jobs_expire(st_server *s);

#endif
