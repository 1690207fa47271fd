/* The engine's HTTP server: OpenAI's API, health and metrics on one I/O thread.
 *
 *   I/O thread    connections, replies, metrics
 *   work threads  bodies -> requests -> token ids -> st_engine_submit
 *   engine thread tokens -> mailbox -> I/O thread
 *
 * A client that leaves has its requests cancelled at once. */
#ifndef STARLING_SERVER_H
#define STARLING_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "starling/api.h"
#include "starling/chat_template.h"
#include "starling/engine.h"
#include "starling/status.h"
#include "starling/tokenizer.h"

typedef struct st_server_options {
    const char *host;               /* name or address; "::" serves IPv4 and IPv6 */
    uint16_t port;                  /* 0: any free port */
    const char *uds;                /* a unix socket's path instead of host and port, or NULL */
    const char *const *model_names; /* what requests may call the model; at least one */
    size_t n_model_names;
    const char *const *api_keys; /* none: open to all */
    size_t n_api_keys;
    const char *allow_origin; /* for browsers: Access-Control-Allow-Origin, or NULL */
    size_t max_body_size;     /* bytes */
    int max_connections;
    int drain_timeout_s;
    int work_threads;
    st_api_defaults defaults; /* for fields that requests leave out */
    /* What GET /starling/engine tells gateways beside the engine's own ports. */
    const char *role;             /* "both", "prefill" or "decode" */
    const char *kv_transfer_host; /* where other engines reach this one's KV */
    const char *events_topic;
} st_server_options;

void st_server_options_default(st_server_options *o);

typedef struct st_server st_server;

/* Binds and listens; requests wait until st_server_run. All arguments but opts (whose strings
 * must live on too) outlive the server; tmpl may be NULL. ST_EIO: the address is taken. Raises
 * the process' limit of open files to its maximum. */
ST_NODISCARD st_status st_server_new(st_engine *engine, const st_tokenizer *tok,
                                     const st_chat_template *tmpl, const st_server_options *opts,
                                     st_server **out, st_error *err);
/* Whether st_server_new could listen on opts' address now. */
ST_NODISCARD st_status st_server_check_address(const st_server_options *opts, st_error *err);
/* "http://127.0.0.1:8000", or "unix:PATH". */
const char *st_server_address(const st_server *s);

/* Serves until SIGTERM, SIGINT or st_server_stop; then drains: the listener closes, new requests
 * get 503, running ones finish or are ended with an error after drain_timeout_s; a second signal
 * ends them at once. On return the engine has no request of this server left. */
ST_NODISCARD st_status st_server_run(st_server *s, st_error *err);
void st_server_stop(st_server *s); /* begins draining; any thread */
void st_server_free(st_server *s); /* not while running; NULL is fine */

#endif
