/*
 * ngx_http_starling_module: an nginx content handler that runs LLM requests
 * over prefill and decode engines.
 *
 *   ngx_http_starling_module.c    directives, phases of nginx, variables
 *   ngx_http_starling_conf.c      the starling_cluster block
 *   ngx_http_starling_params.c    values of directives
 *   ngx_http_starling_models.c    models, their tokenizers and templates
 *   ngx_http_starling_pools.c     pools and engines
 *   ngx_http_starling_access.c    API keys, rate limits
 *   ngx_http_starling_worker.c    shared memory, life of a worker process,
 *                                 leadership, KV events
 *   ngx_http_starling_health.c    asks engines how they are
 *   ngx_http_starling_says.c      what engines say of themselves
 *   ngx_http_starling_request.c   one request: who, what, its body, its end
 *   ngx_http_starling_trace.c     names that travel with it
 *   ngx_http_starling_tokens.c    template and tokenizer, in the thread pool
 *   ngx_http_starling_schedule.c  where it goes and when: plan, claim, queue
 *   ngx_http_starling_handoff.c   its one or two exchanges with engines
 *   ngx_http_starling_failure.c   engines that fail: again, or the client's
 *                                 error
 *   ngx_http_starling_leg.c       one HTTP exchange with an engine
 *   ngx_http_starling_reply.c     an engine's answer on its way to the client
 *   ngx_http_starling_answer.c    errors and lists of the gateway itself
 *   ngx_http_starling_status.c    /starling/status, /starling/health
 *   ngx_http_starling_metrics.c   /starling/metrics
 *
 * nginx style here; everything that needs no nginx lives in src/api (relay.h),
 * src/cluster, src/route, src/events and src/base.
 */

#ifndef _NGX_HTTP_STARLING_H_INCLUDED_
#define _NGX_HTTP_STARLING_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>
#include <ngx_thread_pool.h>

#include "api/relay.h"
#include "base/http_response.h"
#include "base/sse_split.h"
#include "cluster/cluster.h"


typedef struct ngx_http_starling_cluster_s  ngx_http_starling_cluster_t;
typedef struct ngx_http_starling_ctx_s      ngx_http_starling_ctx_t;
typedef struct ngx_http_starling_leg_s      ngx_http_starling_leg_t;


/* configuration */

typedef struct {
    ngx_str_t                     name;
    ngx_str_t                     path;       /* tokenizer folder, or empty */
    ngx_str_t                     upstream;   /* the engines' name of it, or
                                                 empty: the same */
    st_tokenizer                 *tok;        /* NULL: text goes to engines */
    st_chat_template             *tmpl;       /* NULL: so do chats */
    ngx_uint_t                    reasons;    /* its engines split answers into
                                                 reasoning and content */
    ngx_uint_t                    pairs_only; /* its engines work two at a
                                                 time: SGLang's pools */
    const char                  **names;      /* NUL-terminated: name, then
                                                 its aliases */
    ngx_uint_t                    nnames;
    st_relay_model                relay;      /* its cache is the worker's */
    int64_t                       max_len;
} ngx_http_starling_model_t;


typedef struct {
    ngx_str_t                     address;    /* as written: its identity */
    ngx_addr_t                   *addrs;      /* resolved when configured */
    ngx_uint_t                    naddrs;
    ngx_str_t                     host;       /* for Host: */
    ngx_str_t                     pool;
    st_engine_kind                kind;
    uint8_t                       role;       /* st_engine_role */
    uint16_t                      dp_size;
    uint64_t                      models;
    ngx_int_t                     max_requests;
    int64_t                       max_prefill_tokens;
    ngx_str_t                     events;     /* "tcp://...", "auto" (ours),
                                                 or empty: history */
    ngx_str_t                     replay;
    ngx_str_t                     api_key;    /* sent to it as a Bearer */
    in_port_t                     bootstrap_port;  /* SGLang, Mooncake */
    int32_t                       block_size; /* until it says another */
    int32_t                       id;         /* slot in the cluster; -1: its
                                                 connections are not kept */
} ngx_http_starling_engine_t;


struct ngx_http_starling_cluster_s {
    ngx_str_t                     name;
    ngx_array_t                   models;     /* ngx_http_starling_model_t */
    ngx_array_t                   engines;    /* ngx_http_starling_engine_t */
    ngx_shm_zone_t               *zone;
    size_t                        zone_size;
    st_cluster                   *shared;

    st_route_policy               policy;
    st_breaker_policy             breaker;
    ngx_int_t                     max_in_flight;
    ngx_int_t                     queue_size;
    ngx_msec_t                    queue_timeout;
    ngx_uint_t                    retries;
    ngx_msec_t                    connect_timeout;
    ngx_msec_t                    first_token_timeout;
    ngx_msec_t                    answer_timeout;    /* not a stream: to its
                                                        end, in effect */
    ngx_msec_t                    read_timeout;      /* between two reads */
    ngx_msec_t                    send_timeout;
    ngx_msec_t                    health_interval;
    ngx_msec_t                    health_timeout;
    ngx_uint_t                    health_failures;   /* in a row: down */
    ngx_uint_t                    keepalive;         /* idle, per engine */
    size_t                        max_body_size;
    size_t                        body_memory;   /* of all bodies, per worker;
                                                    0: without bound */
    size_t                        thread_body_size;  /* longer: thread pool */
    size_t                        token_cache_size;
    ngx_thread_pool_t            *thread_pool;
    ngx_array_t                  *api_keys;          /* ngx_str_t */
    double                        rate;              /* requests per second */
    double                        burst;

    uint64_t                      seen;       /* directives, while parsing */

    /* the worker's */
    size_t                        bodies;        /* bytes in memory */
    int                           row;
    int                           wake_fd;
    ngx_connection_t             *wake;
    ngx_uint_t                    leader;
    st_event_feed                *feed;
    struct ngx_http_starling_health_s  *health;  /* per engine: the leader's */
    ngx_queue_t                  *idle;              /* per engine slot: kept
                                                        connections */
};


typedef struct {
    ngx_http_starling_cluster_t  *cluster;    /* of "starling NAME" */
    ngx_flag_t                    status;     /* "starling_status" */
    ngx_flag_t                    status_public;
} ngx_http_starling_loc_conf_t;


typedef struct {
    ngx_array_t                   clusters;   /* ngx_http_starling_cluster_t* */
    ngx_http_starling_cluster_t  *cluster;    /* whose block is read */
    ngx_http_starling_engine_t   *pool;       /* what its engines begin with */
} ngx_http_starling_main_conf_t;


extern ngx_module_t  ngx_http_starling_module;


/* one HTTP exchange with an engine (ngx_http_starling_leg.c) */

typedef enum {
    NGX_HTTP_STARLING_LEG_OK = 0,
    NGX_HTTP_STARLING_LEG_CONNECT,   /* refused, unreachable, timed out */
    NGX_HTTP_STARLING_LEG_SEND,
    NGX_HTTP_STARLING_LEG_TIMEOUT,   /* no byte for too long */
    NGX_HTTP_STARLING_LEG_CUT,       /* closed before the end */
    NGX_HTTP_STARLING_LEG_LOCAL,     /* this worker has no connection left: no
                                        word on the engine */
    NGX_HTTP_STARLING_LEG_GARBAGE    /* not HTTP */
} ngx_http_starling_leg_error_e;

/*
 * Called from the event loop, never from within ngx_http_starling_leg_start().
 * What returns NGX_ERROR has closed the leg (or freed what it lies in): it is
 * not touched any more.
 */
typedef struct {
    /* the head is complete: leg->response has status and kind; may be NULL;
       must not close the leg */
    void      (*head)(ngx_http_starling_leg_t *leg);
    /* a piece of the body, valid during the call; NGX_AGAIN: as of flush.
       It may take back body_given: the wait for the first byte goes on */
    ngx_int_t (*body)(ngx_http_starling_leg_t *leg, u_char *p, size_t n);
    /*
     * all that one read brought was given (unless it brought the end); may be
     * NULL; NGX_AGAIN: read no more before ngx_http_starling_leg_resume()
     */
    ngx_int_t (*flush)(ngx_http_starling_leg_t *leg);
    /* the end: complete, or an error; the leg is closed before the call and
       may be started again in it */
    void      (*done)(ngx_http_starling_leg_t *leg,
                      ngx_http_starling_leg_error_e error);
} ngx_http_starling_leg_handlers_t;

struct ngx_http_starling_leg_s {
    ngx_http_starling_cluster_t             *cluster;
    ngx_http_starling_engine_t              *engine;
    const ngx_http_starling_leg_handlers_t  *handlers;
    void                                    *data;
    ngx_log_t                               *log;

    st_http_response                         response;
    ngx_peer_connection_t                    peer;
    st_buf                                   head;     /* of the request */
    const st_buf                            *body;     /* the caller's, or NULL */
    size_t                                   length;   /* of both */
    size_t                                   sent;
    ngx_msec_t                               first_byte_timeout;
    ngx_msec_t                               started;  /* ngx_current_msec */
    ngx_uint_t                               address;  /* of engine->addrs */
    ngx_http_starling_leg_error_e            error;
    unsigned                                 open:1;
    unsigned                                 connected:1;
    unsigned                                 reused:1; /* a kept connection: a
                                                          close before the first
                                                          byte means: again */
    unsigned                                 answered:1;   /* a byte came */
    unsigned                                 head_given:1;
    unsigned                                 body_given:1;
    unsigned                                 paused:1;
};

/*
 * method, path, extra header lines ("a: b\r\n...", may be empty), body (NULL:
 * none; must stay until the answer's first byte came). first_byte_timeout: to the first
 * byte of the answer's body. NGX_ERROR: leg->error says why, nothing is open,
 * no handler will be called.
 */
ngx_int_t ngx_http_starling_leg_start(ngx_http_starling_leg_t *leg,
    ngx_http_starling_cluster_t *cl, ngx_http_starling_engine_t *engine,
    const char *method, const char *path, const ngx_str_t *headers,
    const st_buf *body, ngx_msec_t first_byte_timeout,
    const ngx_http_starling_leg_handlers_t *handlers, void *data,
    ngx_log_t *log);
void ngx_http_starling_leg_resume(ngx_http_starling_leg_t *leg);
/*
 * Ends the exchange; the connection is closed. No handler is called. A leg of
 * zeroes, or one that is closed already, is fine.
 */
void ngx_http_starling_leg_close(ngx_http_starling_leg_t *leg);


/* a request (ngx_http_starling_request.c) */

ngx_int_t ngx_http_starling_handler(ngx_http_request_t *r);
/* name in lower case; NULL: it was not sent */
ngx_table_elt_t *ngx_http_starling_find_header(ngx_http_request_t *r,
    const char *name, size_t len);
/* this worker's requests that were chosen from the queue */
void ngx_http_starling_woken(ngx_http_starling_cluster_t *cl);
/* of a request's slot, for variables; NULL before it is received */
st_request_slot *ngx_http_starling_slot(ngx_http_request_t *r);

/* answers of the gateway itself (ngx_http_starling_answer.c) */

/* an error in OpenAI's shape; retry_after in seconds, 0: none */
ngx_int_t ngx_http_starling_error(ngx_http_request_t *r, ngx_uint_t status,
    const char *code, const char *param, ngx_uint_t retry_after,
    const char *fmt, ...);


/* configuration (ngx_http_starling_conf.c, _models.c, _pools.c) */

char *ngx_http_starling_cluster_block(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_starling_cluster_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_starling_model_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_starling_pool_block(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_starling_pool_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_starling_engine_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
/* what must be true when the block ends */
ngx_int_t ngx_http_starling_check_pools(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl);
ngx_http_starling_cluster_t *ngx_http_starling_find_cluster(
    ngx_http_starling_main_conf_t *mcf, ngx_str_t *name);
/* by name or alias; its place in the array is its bit in masks of models */
ngx_http_starling_model_t *ngx_http_starling_find_model(
    ngx_http_starling_cluster_t *cl, const char *name, size_t len);
/* by slot; NULL: it is not configured any more */
ngx_http_starling_engine_t *ngx_http_starling_find_engine(
    ngx_http_starling_cluster_t *cl, int32_t id);

typedef struct {
    const char                   *name;       /* "size" of "size=1024" */
    enum {
        NGX_HTTP_STARLING_INT,                /* ngx_int_t */
        NGX_HTTP_STARLING_INT64,
        NGX_HTTP_STARLING_FLOAT,              /* double */
        NGX_HTTP_STARLING_MSEC,               /* ngx_msec_t */
        NGX_HTTP_STARLING_SIZE,               /* size_t */
        NGX_HTTP_STARLING_STRING,             /* ngx_str_t, not empty */
        NGX_HTTP_STARLING_LIST                /* ngx_array_t of ngx_str_t:
                                                 may be repeated */
    } type;
    void                         *value;
    double                        min;
    double                        max;
} ngx_http_starling_param_t;

/*
 * cf->args from the first'th on, each "name=value" of the table, or, when
 * the table's first name is NULL, one bare value for it; complains and
 * returns NGX_ERROR
 */
ngx_int_t ngx_http_starling_params(ngx_conf_t *cf, ngx_uint_t first,
    ngx_http_starling_param_t *params, ngx_uint_t n);


/* access (ngx_http_starling_access.c) */

/*
 * NGX_OK or NGX_DECLINED: a key is needed and none, or an unknown one, was
 * sent; *who is a hash of the key, or of the client's address: whose rate
 * limit counts
 */
ngx_int_t ngx_http_starling_authorize(ngx_http_request_t *r,
    ngx_http_starling_cluster_t *cl, uint64_t *who);
/* NGX_OK or NGX_BUSY: not before *retry_after seconds */
ngx_int_t ngx_http_starling_rate(ngx_http_starling_cluster_t *cl, uint64_t who,
    ngx_uint_t *retry_after);


/* workers (ngx_http_starling_worker.c) */

ngx_int_t ngx_http_starling_init_zone(ngx_shm_zone_t *zone, void *data);
ngx_int_t ngx_http_starling_init_worker(ngx_cycle_t *cycle);
void ngx_http_starling_exit_worker(ngx_cycle_t *cycle);
/* a leg begins (1) or has ended (-1): memory is given back after peaks */
void ngx_http_starling_load(ngx_int_t n);
uint64_t ngx_http_starling_now(void);         /* monotonic, in ns */

/* what an engine's slot says under info_version, copied whole */
typedef struct {
    char                          engine_id[ST_NAME_MAX];
    char                          kv_host[ST_NAME_MAX];
} ngx_http_starling_engine_info_t;

void ngx_http_starling_get_info(st_engine_slot *slot,
    ngx_http_starling_engine_info_t *info);


/* health checks (ngx_http_starling_health.c) */

void ngx_http_starling_health_start(ngx_http_starling_cluster_t *cl);
void ngx_http_starling_health_stop(ngx_http_starling_cluster_t *cl);
/* a breaker may have opened: its engine is asked when the pause is over */
void ngx_http_starling_health_woken(ngx_http_starling_cluster_t *cl);


/* /starling/... (ngx_http_starling_status.c, ngx_http_starling_metrics.c) */

ngx_int_t ngx_http_starling_status_handler(ngx_http_request_t *r);
/* by slot, ST_CLUSTER_MAX_ENGINES of them, until the next call */
const st_load *ngx_http_starling_loads(ngx_http_starling_cluster_t *cl);
st_status ngx_http_starling_metrics(ngx_http_starling_main_conf_t *mcf,
    st_buf *out) ST_NODISCARD;


#endif /* _NGX_HTTP_STARLING_H_INCLUDED_ */
