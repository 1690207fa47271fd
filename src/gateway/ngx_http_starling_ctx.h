/*
 * One request: what its parts share (ngx_http_starling_request.c, _trace.c,
 * _tokens.c, _schedule.c, _handoff.c, _failure.c, _reply.c, _answer.c).
 *
 *   read the body -> tokens (maybe in a thread) -> match -> plan and claim,
 *   or wait in the queue -> legs -> reply -> done
 *
 * A failure before the client got a byte goes back to "plan". Whatever way a
 * request ends, its http cleanup handler ends legs, gives claims and the
 * place in the queue back and frees the slot; its pool cleanup frees memory
 * (later, when a thread is still at work on it).
 */

#ifndef _NGX_HTTP_STARLING_CTX_H_INCLUDED_
#define _NGX_HTTP_STARLING_CTX_H_INCLUDED_


#include "ngx_http_starling.h"


/* engines without events: what was sent there, in blocks of as many tokens */
#define NGX_HTTP_STARLING_HISTORY_BLOCK  16

#define NGX_HTTP_STARLING_ERROR_BODY     65536
#define NGX_HTTP_STARLING_EVENT_MAX      (4 * 1024 * 1024)
#define NGX_HTTP_STARLING_ANSWER_MAX     (64 * 1024 * 1024)


/* one of the two engines a request uses */
typedef struct {
    ngx_http_starling_leg_t       leg;
    ngx_http_starling_engine_t   *engine;
    st_claim                      claim;      /* engine -1: none */
    st_buf                        body;       /* what it is sent */
    st_buf                        answer;     /* what is not a stream */
    size_t                        collected;  /* bytes of it that came */
    uint64_t                      sent_ns;
    int64_t                       ahead;      /* prefill tokens it found there */
    int                           rank;       /* data-parallel */
    unsigned                      active:1;   /* the leg is under way */
} ngx_http_starling_side_t;


struct ngx_http_starling_ctx_s {
    ngx_http_request_t           *request;
    ngx_http_starling_cluster_t  *cluster;
    st_request_slot              *slot;       /* shared; then the copy */
    st_request_slot               copy;       /* for the log, at the end */
    uint64_t                      id;
    uint64_t                      received_ns;
    ngx_str_t                     request_id;
    ngx_str_t                     headers;    /* for engines */

    /* the body, and what became of it */
    st_api_kind                   kind;
    st_buf                        body;
    size_t                        accounted;  /* of it, in cluster->bodies */
    st_relay_request             *relay;
    st_api_error                  error;
    ngx_http_starling_model_t    *model;
    uint32_t                      model_index;
    st_ids                        ids;
    st_buf                        ids_json;
    uint64_t                      tokenized_ns;

    /* matching and planning */
    st_route_request              route;
    uint32_t                     *depth;      /* per holder, in blocks */
    uint64_t                     *history;    /* keys, for engines without
                                                 events */
    size_t                        nhistory;
    st_route_plan                 plan;
    st_handoff                    handoff;
    uint64_t                      tried[ST_CLUSTER_MAX_ENGINES / 64];
    ngx_uint_t                    retries;    /* left */
    ngx_uint_t                    connects;   /* refused ones, not counted as
                                                 retries */

    /* the queue */
    ngx_event_t                   timer;
    uint32_t                      ticket;
    uint64_t                      since_ns;   /* it waits */
    st_route_answer               why;        /* it waits */

    /* engines */
    ngx_http_starling_side_t      prefill;
    ngx_http_starling_side_t      decode;
    st_buf                        kv_params;
    char                          transfer_id[48];
    uint64_t                      room;

    /* the last failure, for the client when nothing is left to try */
    ngx_uint_t                    failed_status;
    ngx_int_t                     retry_after;
    const char                   *failed_why;

    /* the answer */
    st_relay_reply               *reply;
    st_buf                        tail;       /* of an event that is not
                                                 complete */
    size_t                        scanned;
    st_buf                        out;        /* events for the client */
    ngx_buf_t                     buf;        /* over out */
    ngx_chain_t                   link;
    uint64_t                      first_ns;   /* first token */
    uint32_t                      adjusted;   /* events told to the cluster */

    unsigned                      waiting:1;
    unsigned                      decode_stage:1; /* prefill is done: only a
                                                     decode engine is sought */
    unsigned                      matched:1;
    unsigned                      excluding:1;    /* tried has bits */
    unsigned                      failed_busy:1;  /* the last failure was load */
    unsigned                      threaded:1;
    unsigned                      started:1;  /* bytes went to the client */
    unsigned                      busy:1;     /* out is being sent */
    unsigned                      counted:1;  /* its end is in the metrics */
    unsigned                      gone:1;     /* cleaned up */
};


/* ngx_http_starling_request.c */

/* stamps DONE and counts, once */
void ngx_http_starling_count(ngx_http_starling_ctx_t *ctx);

/* ngx_http_starling_trace.c */

/* x-request-id and traceparent: the client's, or new ones */
ngx_int_t ngx_http_starling_trace(ngx_http_starling_ctx_t *ctx);

/* ngx_http_starling_answer.c */

/* GET .../v1/models and .../v1/models/NAME; name: what follows "models" */
ngx_int_t ngx_http_starling_models(ngx_http_request_t *r,
    ngx_http_starling_cluster_t *cl, u_char *name, size_t len);
/* ends the request with an error in OpenAI's shape */
void ngx_http_starling_refuse(ngx_http_starling_ctx_t *ctx, ngx_uint_t status,
    const char *code, const char *param, ngx_uint_t retry_after,
    const char *fmt, ...);
/* the same from an error of src/api */
void ngx_http_starling_refuse_api(ngx_http_starling_ctx_t *ctx,
    const st_api_error *e);
/* the same with an error's JSON, which is copied */
void ngx_http_starling_refuse_json(ngx_http_starling_ctx_t *ctx,
    ngx_uint_t status, const st_buf *json);
/* a whole JSON body, copied or kept until the pool goes; what to finalize
   with */
ngx_int_t ngx_http_starling_send_json(ngx_http_request_t *r, ngx_uint_t status,
    u_char *p, size_t n);
ngx_int_t ngx_http_starling_add_header(ngx_http_request_t *r, const char *key,
    const ngx_str_t *value);

/* ngx_http_starling_tokens.c: ends in ngx_http_starling_schedule() */

void ngx_http_starling_tokens(ngx_http_starling_ctx_t *ctx);

/* ngx_http_starling_schedule.c */

/* matches, plans, claims and starts, or waits */
void ngx_http_starling_schedule(ngx_http_starling_ctx_t *ctx);
void ngx_http_starling_wait_end(ngx_http_starling_ctx_t *ctx);
void ngx_http_starling_release(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side);
/* the sent prefix will be there: for engines without events */
void ngx_http_starling_note(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side);

/* ngx_http_starling_handoff.c */

/* the plan is claimed: sends it; NGX_DECLINED: these two cannot hand over,
   plan without */
ngx_int_t ngx_http_starling_handoff(ngx_http_starling_ctx_t *ctx);
/* claimed after prefill is done (sequential) */
void ngx_http_starling_decode(ngx_http_starling_ctx_t *ctx);

/* ngx_http_starling_failure.c */

/* an engine failed: the other leg is ended; tries again, or tells the
   client */
void ngx_http_starling_failed(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side, st_outcome outcome, ngx_uint_t status,
    ngx_int_t retry_after, const char *why);
/* of a leg that ended in an error */
void ngx_http_starling_leg_lost(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side, ngx_http_starling_leg_error_e error);
/* nothing is left to try: the last failure is the answer */
void ngx_http_starling_give_up(ngx_http_starling_ctx_t *ctx);
/* an answer with another status than 200 */
void ngx_http_starling_bad_status(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side);
/* the decode engine's answer begins with an error */
void ngx_http_starling_reported(ngx_http_starling_ctx_t *ctx);
/* the client left or the request ends: legs ended (or orphaned) */
void ngx_http_starling_end_legs(ngx_http_starling_ctx_t *ctx);

/* ngx_http_starling_reply.c */

extern const ngx_http_starling_leg_handlers_t  ngx_http_starling_decode_handlers;

/* before a decode leg starts */
ngx_int_t ngx_http_starling_collect(ngx_http_starling_side_t *side,
    u_char *p, size_t n);
ngx_int_t ngx_http_starling_reply_init(ngx_http_starling_ctx_t *ctx,
    ngx_uint_t translate);
/* after bytes went out: an error event and [DONE] */
void ngx_http_starling_reply_error(ngx_http_starling_ctx_t *ctx,
    ngx_uint_t status, const char *message);


#endif /* _NGX_HTTP_STARLING_CTX_H_INCLUDED_ */
