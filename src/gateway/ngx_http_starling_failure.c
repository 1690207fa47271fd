/*
 * Engines that fail, refuse or are no longer wanted: what is tried again, what
 * the client is told, and legs that end before their time.
 */

#include "ngx_http_starling_ctx.h"


#define NGX_HTTP_STARLING_ORPHAN_MSEC  30000
#define NGX_HTTP_STARLING_CONNECTS     16


/* a prefill that must not be cut off in the middle of a transfer, whose
   client has left */
typedef struct {
    ngx_http_starling_leg_t       leg;
    st_buf                        body;
    st_claim                      claim;
    ngx_event_t                   timer;
} ngx_http_starling_orphan_t;


static void ngx_http_starling_mistake(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side, ngx_uint_t status, const char *body,
    size_t len);
static ngx_int_t ngx_http_starling_orphan(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side);
static ngx_int_t ngx_http_starling_orphan_body(ngx_http_starling_leg_t *leg,
    u_char *p, size_t n);
static void ngx_http_starling_orphan_done(ngx_http_starling_leg_t *leg,
    ngx_http_starling_leg_error_e error);
static void ngx_http_starling_orphan_timeout(ngx_event_t *ev);


static const ngx_http_starling_leg_handlers_t
    ngx_http_starling_orphan_handlers =
{
    NULL,
    ngx_http_starling_orphan_body,
    NULL,
    ngx_http_starling_orphan_done
};


void
ngx_http_starling_leg_lost(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side, ngx_http_starling_leg_error_e error)
{
    switch (error) {

    case NGX_HTTP_STARLING_LEG_CONNECT:
        ngx_http_starling_failed(ctx, side, ST_OUTCOME_BROKEN, 0, -1,
                                 "could not be reached");
        return;

    case NGX_HTTP_STARLING_LEG_LOCAL:
        ngx_http_starling_failed(ctx, side, ST_OUTCOME_BUSY,
                                 NGX_HTTP_SERVICE_UNAVAILABLE, -1,
                                 "could not be asked: the gateway has no "
                                 "connection left");
        return;

    case NGX_HTTP_STARLING_LEG_TIMEOUT:
        ngx_http_starling_failed(ctx, side,
                                 side->leg.body_given ? ST_OUTCOME_BROKEN
                                                      : ST_OUTCOME_SLOW,
                                 NGX_HTTP_GATEWAY_TIME_OUT, -1,
                                 "did not answer in time");
        return;

    case NGX_HTTP_STARLING_LEG_GARBAGE:
        ngx_http_starling_failed(ctx, side, ST_OUTCOME_BROKEN,
                                 NGX_HTTP_BAD_GATEWAY, -1,
                                 "sent an invalid answer");
        return;

    default:
        ngx_http_starling_failed(ctx, side, ST_OUTCOME_BROKEN,
                                 NGX_HTTP_BAD_GATEWAY, -1,
                                 "closed the connection");
    }
}


/* status 0: it was never reached */

void
ngx_http_starling_failed(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side, st_outcome outcome, ngx_uint_t status,
    ngx_int_t retry_after, const char *why)
{
    int32_t                       id;
    ngx_uint_t                    level;
    st_cluster_metrics           *m;
    ngx_http_starling_cluster_t  *cl;

    cl = ctx->cluster;
    id = side->engine->id;
    m = st_cluster_get_metrics(cl->shared);

    (void) st_cluster_outcome(cl->shared, id, outcome, ngx_http_starling_now());

    level = outcome == ST_OUTCOME_BUSY ? NGX_LOG_WARN : NGX_LOG_ERR;
    ngx_log_error(level, ctx->request->connection->log, 0, "engine %V %s",
                  &side->engine->address, why);

    if (side == &ctx->prefill && ctx->started) {
        /* the decode engine has had what it needs */
        ngx_http_starling_release(ctx, side);
        return;
    }

    if (side == &ctx->prefill ? ctx->decode.active : ctx->prefill.active) {
        atomic_fetch_add_explicit(&m->half_failed, 1, memory_order_relaxed);
    }

    ngx_http_starling_end_legs(ctx);
    ngx_http_starling_release(ctx, &ctx->prefill);
    ngx_http_starling_release(ctx, &ctx->decode);

    ctx->failed_status = status ? status : NGX_HTTP_BAD_GATEWAY;
    ctx->failed_why = why;
    ctx->failed_busy = outcome == ST_OUTCOME_BUSY;
    ctx->retry_after = retry_after;

    if (ctx->started) {
        ngx_http_starling_reply_error(ctx, ctx->failed_status, why);
        return;
    }

    /* where nothing was sent nothing is lost, until the breaker says so */

    if (status == 0 && ctx->connects < NGX_HTTP_STARLING_CONNECTS) {
        ctx->connects++;

    } else if (ctx->retries) {
        ctx->retries--;

    } else {
        ngx_http_starling_give_up(ctx);
        return;
    }

    atomic_fetch_add_explicit(&m->retries, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&st_cluster_engine(cl->shared, id)->retries_from,
                              1, memory_order_relaxed);

    ctx->tried[id / 64] |= UINT64_C(1) << (id % 64);
    ctx->excluding = 1;
    ctx->decode_stage = 0;
    st_buf_clear(&ctx->kv_params);

    ngx_http_starling_schedule(ctx);
}


void
ngx_http_starling_give_up(ngx_http_starling_ctx_t *ctx)
{
    ngx_uint_t  wait;

    wait = 0;

    if (ctx->failed_status == NGX_HTTP_TOO_MANY_REQUESTS
        || ctx->failed_status == NGX_HTTP_SERVICE_UNAVAILABLE)
    {
        wait = ctx->retry_after > 0 ? (ngx_uint_t) ctx->retry_after : 1;
    }

    ngx_http_starling_refuse(ctx, ctx->failed_status, "engine_failed", NULL,
                             wait, "No engine could answer; the last one that "
                             "was tried %s", ctx->failed_why);
}


void
ngx_http_starling_bad_status(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side)
{
    int        status;
    ngx_int_t  retry_after;

    status = side->leg.response.status;
    retry_after = side->leg.response.retry_after;

    if (status == 429 || status == 503) {
        ngx_http_starling_failed(ctx, side, ST_OUTCOME_BUSY, status,
                                 retry_after, "is busy");
        return;
    }

    if (status == 401 || status == 403) {
        ngx_http_starling_failed(ctx, side, ST_OUTCOME_OK,
                                 NGX_HTTP_BAD_GATEWAY, -1,
                                 "refused the gateway's API key");
        return;
    }

    if (status < 400 || status >= 500) {
        ngx_http_starling_failed(ctx, side, ST_OUTCOME_BROKEN,
                                 NGX_HTTP_BAD_GATEWAY, -1,
                                 "reported an error");
        return;
    }

    ngx_http_starling_mistake(ctx, side, status,
                              side->answer.data ? side->answer.data : "",
                              side->answer.len);
}


/* the client's own mistake, which any engine would find */

static void
ngx_http_starling_mistake(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side, ngx_uint_t status, const char *body,
    size_t len)
{
    st_buf     json = ST_BUF_INIT;
    st_status  rc;

    (void) st_cluster_outcome(ctx->cluster->shared, side->engine->id,
                              ST_OUTCOME_OK, ngx_http_starling_now());

    if (side == &ctx->prefill && ctx->started) {
        ngx_http_starling_release(ctx, side);
        return;
    }

    ngx_http_starling_end_legs(ctx);
    ngx_http_starling_release(ctx, &ctx->prefill);
    ngx_http_starling_release(ctx, &ctx->decode);

    rc = st_upstream_error(body, len, (int) status, &json);

    if (rc == ST_OK) {
        ngx_http_starling_refuse_json(ctx, status, &json);

    } else {
        ngx_http_starling_refuse(ctx, status, NULL, NULL, 0,
                                 "The engine refused the request with status "
                                 "%ui", status);
    }

    st_buf_free(&json);
}


/* an answer that begins as well as can be, but with an error */

void
ngx_http_starling_reported(ngx_http_starling_ctx_t *ctx)
{
    int            status;
    const st_buf  *error;

    error = st_relay_reply_error(ctx->reply, &status);

    if (status == 429 || status == 503) {
        ngx_http_starling_failed(ctx, &ctx->decode, ST_OUTCOME_BUSY, status,
                                 -1, "is busy");

    } else if (status >= 400 && status < 500 && status != 401
               && status != 403)
    {
        ngx_http_starling_mistake(ctx, &ctx->decode, status, error->data,
                                  error->len);

    } else {
        ngx_http_starling_failed(ctx, &ctx->decode, ST_OUTCOME_BROKEN,
                                 NGX_HTTP_BAD_GATEWAY, -1,
                                 "reported an error");
    }
}


void
ngx_http_starling_end_legs(ngx_http_starling_ctx_t *ctx)
{
    if (ctx->decode.active) {
        ctx->decode.active = 0;
        ngx_http_starling_leg_close(&ctx->decode.leg);
    }

    if (ctx->prefill.active) {
        ctx->prefill.active = 0;

        if (!ctx->gone || ctx->handoff != ST_HANDOFF_PULL
            || ctx->prefill.engine->kind != ST_KIND_VLLM
            || ngx_http_starling_orphan(ctx, &ctx->prefill) != NGX_OK)
        {
            ngx_http_starling_leg_close(&ctx->prefill.leg);
        }
    }
}


/*
 * vLLM's blocks may be on their way when a prefill is cut off; so it goes on
 * for a bounded time, with its claim, and its answer is dropped.
 */

static ngx_int_t
ngx_http_starling_orphan(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side)
{
    ngx_connection_t            *c;
    ngx_http_starling_orphan_t  *o;

    c = side->leg.peer.connection;
    o = ngx_calloc(sizeof(ngx_http_starling_orphan_t), ngx_cycle->log);

    if (c == NULL || o == NULL) {
        if (o) {
            ngx_free(o);
        }

        return NGX_ERROR;
    }

    o->leg = side->leg;
    o->body = side->body;
    o->claim = side->claim;
    ngx_memzero(&side->leg, sizeof(ngx_http_starling_leg_t));
    ngx_memzero(&side->body, sizeof(st_buf));
    side->claim.engine = -1;

    o->leg.body = &o->body;
    o->leg.data = o;
    o->leg.handlers = &ngx_http_starling_orphan_handlers;
    o->leg.log = ngx_cycle->log;
    o->leg.peer.log = ngx_cycle->log;

    c->data = &o->leg;
    c->log = ngx_cycle->log;
    c->read->log = ngx_cycle->log;
    c->write->log = ngx_cycle->log;

    o->timer.handler = ngx_http_starling_orphan_timeout;
    o->timer.data = o;
    o->timer.log = ngx_cycle->log;
    ngx_add_timer(&o->timer, NGX_HTTP_STARLING_ORPHAN_MSEC);

    return NGX_OK;
}


static ngx_int_t
ngx_http_starling_orphan_body(ngx_http_starling_leg_t *leg, u_char *p, size_t n)
{
    return NGX_OK;
}


static void
ngx_http_starling_orphan_done(ngx_http_starling_leg_t *leg,
    ngx_http_starling_leg_error_e error)
{
    ngx_http_starling_orphan_t   *o;
    ngx_http_starling_cluster_t  *cl;

    o = leg->data;
    cl = leg->cluster;

    if (o->timer.timer_set) {
        ngx_del_timer(&o->timer);
    }

    if (o->claim.engine >= 0) {
        st_cluster_release(cl->shared, cl->row, &o->claim,
                           ngx_http_starling_now());
    }

    st_buf_free(&o->body);
    ngx_free(o);
}


static void
ngx_http_starling_orphan_timeout(ngx_event_t *ev)
{
    ngx_http_starling_orphan_t  *o;

    o = ev->data;
    ngx_http_starling_leg_close(&o->leg);
    ngx_http_starling_orphan_done(&o->leg, NGX_HTTP_STARLING_LEG_TIMEOUT);
}
