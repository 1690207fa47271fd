/*
 * A plan becomes exchanges with engines: one engine alone, prefill and then
 * decode (the KV is pulled), or both at once (it is pushed, or they meet by
 * themselves).
 */

#include "ngx_http_starling_ctx.h"

#include <sys/random.h>


static ngx_int_t ngx_http_starling_choose_handoff(
    ngx_http_starling_ctx_t *ctx);
static ngx_int_t ngx_http_starling_meeting(ngx_http_starling_ctx_t *ctx);
static ngx_int_t ngx_http_starling_prepare(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side, st_leg_role role, const char **path,
    ngx_str_t *headers);
static ngx_int_t ngx_http_starling_send(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side, st_leg_role role,
    const ngx_http_starling_leg_handlers_t *handlers);
static void ngx_http_starling_upstream(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side, st_leg_role role, st_upstream_plan *up);
static ngx_int_t ngx_http_starling_remote(ngx_http_starling_ctx_t *ctx,
    st_upstream_plan *up);
static ngx_int_t ngx_http_starling_headers(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side, ngx_str_t *headers);
static ngx_int_t ngx_http_starling_prefill_body(ngx_http_starling_leg_t *leg,
    u_char *p, size_t n);
static void ngx_http_starling_prefill_done(ngx_http_starling_leg_t *leg,
    ngx_http_starling_leg_error_e error);
static void ngx_http_starling_prefilled(ngx_http_starling_ctx_t *ctx);


static const ngx_http_starling_leg_handlers_t
    ngx_http_starling_prefill_handlers =
{
    NULL,
    ngx_http_starling_prefill_body,
    NULL,
    ngx_http_starling_prefill_done
};


ngx_int_t
ngx_http_starling_handoff(ngx_http_starling_ctx_t *ctx)
{
    uint64_t             now;
    st_cluster_metrics  *m;

    if (ctx->plan.prefill < 0) {
        ctx->handoff = ST_HANDOFF_NONE;

        m = st_cluster_get_metrics(ctx->cluster->shared);

        if (ctx->decode.engine->role == ST_ROLE_DECODE) {
            atomic_fetch_add_explicit(&m->prefill_skipped, 1,
                                      memory_order_relaxed);
        }

        st_request_phase(ctx->slot, ST_PHASE_PREFILL_RUNNING,
                         ngx_http_starling_now());

        if (ngx_http_starling_send(ctx, &ctx->decode, ST_LEG_WHOLE,
                                   &ngx_http_starling_decode_handlers)
            == NGX_OK)
        {
            ngx_http_starling_note(ctx, &ctx->decode);
        }

        return NGX_OK;
    }

    if (ngx_http_starling_choose_handoff(ctx) != NGX_OK) {
        return NGX_DECLINED;
    }

    if (ngx_http_starling_meeting(ctx) != NGX_OK) {
        return NGX_DECLINED;
    }

    now = ngx_http_starling_now();
    st_request_phase(ctx->slot, ST_PHASE_PREFILL_RUNNING, now);

    if (ctx->handoff == ST_HANDOFF_PULL) {
        (void) ngx_http_starling_send(ctx, &ctx->prefill, ST_LEG_PREFILL,
                                      &ngx_http_starling_prefill_handlers);
        return NGX_OK;
    }

    st_request_phase(ctx->slot, ST_PHASE_DECODE_WAITING, now);
    st_request_phase(ctx->slot, ST_PHASE_DECODE_SCHEDULED, now);

    if (ngx_http_starling_send(ctx, &ctx->prefill, ST_LEG_PREFILL,
                               &ngx_http_starling_prefill_handlers)
        == NGX_OK)
    {
        (void) ngx_http_starling_send(ctx, &ctx->decode, ST_LEG_DECODE,
                                      &ngx_http_starling_decode_handlers);
    }

    return NGX_OK;
}


void
ngx_http_starling_decode(ngx_http_starling_ctx_t *ctx)
{
    if (ngx_http_starling_send(ctx, &ctx->decode, ST_LEG_DECODE,
                               &ngx_http_starling_decode_handlers)
        == NGX_OK)
    {
        ngx_http_starling_note(ctx, &ctx->decode);
    }
}


static ngx_int_t
ngx_http_starling_choose_handoff(ngx_http_starling_ctx_t *ctx)
{
    st_engine_slot                   *slot;
    ngx_http_starling_engine_t       *p, *d;
    ngx_http_starling_engine_info_t   info;

    p = ctx->prefill.engine;
    d = ctx->plan.decode >= 0 ? ctx->decode.engine : NULL;
    slot = st_cluster_engine(ctx->cluster->shared, p->id);

    if (d && d->kind != p->kind) {
        return NGX_DECLINED;
    }

    if (p->kind == ST_KIND_SGLANG) {
        ctx->handoff = ST_HANDOFF_BOOTSTRAP;
        return d ? NGX_OK : NGX_DECLINED;
    }

    if (p->kind == ST_KIND_STARLING
        && atomic_load_explicit(&slot->kv_port, memory_order_relaxed) == 0)
    {
        /* it was started without a way to hand KV over */
        return NGX_DECLINED;
    }

    if (d == NULL || ctx->cluster->policy.mode == ST_MODE_SEQUENTIAL) {
        ctx->handoff = ST_HANDOFF_PULL;
        return NGX_OK;
    }

    ngx_http_starling_get_info(slot, &info);

    if (info.engine_id[0] == '\0') {
        return NGX_DECLINED;
    }

    ctx->handoff = p->kind == ST_KIND_STARLING ? ST_HANDOFF_PUSH
                                               : ST_HANDOFF_MOONCAKE;
    return NGX_OK;
}


/* where both legs meet: another place at each try, for what the last one left
   behind is not for this one */

static ngx_int_t
ngx_http_starling_meeting(ngx_http_starling_ctx_t *ctx)
{
    u_char  random[24], hex[32];

    if (getrandom(random, sizeof(random), 0) != (ssize_t) sizeof(random)) {
        return NGX_ERROR;
    }

    ngx_memcpy(&ctx->room, random, 8);
    ctx->room >>= 1;

    ngx_hex_dump(hex, random + 8, 16);

    if (ctx->handoff == ST_HANDOFF_MOONCAKE) {
        (void) ngx_sprintf((u_char *) ctx->transfer_id,
                           "xfer-%*s-%*s-%*s-%*s-%*s%Z", (size_t) 8, hex,
                           (size_t) 4, hex + 8, (size_t) 4, hex + 12,
                           (size_t) 4, hex + 16, (size_t) 12, hex + 20);

    } else {
        (void) ngx_sprintf((u_char *) ctx->transfer_id, "%*s%Z",
                           sizeof(hex), hex);
    }

    return NGX_OK;
}


/* what an engine is sent, and what takes its answer */

static ngx_int_t
ngx_http_starling_prepare(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side, st_leg_role role, const char **path,
    ngx_str_t *headers)
{
    char                              host[NGX_SOCKADDR_STRLEN + 32];
    char                              addr[NGX_SOCKADDR_STRLEN + 32];
    st_engine_slot                   *slot;
    st_upstream_plan                  up;
    ngx_http_starling_engine_info_t   info;

    ngx_http_starling_upstream(ctx, side, role, &up);

    if (ctx->handoff != ST_HANDOFF_NONE && ctx->handoff != ST_HANDOFF_PULL) {
        up.bootstrap_host = host;
        up.bootstrap_addr = addr;
        up.remote_host = info.kv_host;
        up.remote_engine_id = info.engine_id;

        slot = st_cluster_engine(ctx->cluster->shared,
                                 ctx->prefill.engine->id);
        ngx_http_starling_get_info(slot, &info);

        if (ngx_http_starling_remote(ctx, &up) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    st_buf_clear(&side->body);
    st_buf_clear(&side->answer);
    side->collected = 0;

    if (st_upstream_body(ctx->relay, &up, path, &side->body) != ST_OK
        || ngx_http_starling_headers(ctx, side, headers) != NGX_OK)
    {
        return NGX_ERROR;
    }

    return role == ST_LEG_PREFILL
           ? NGX_OK
           : ngx_http_starling_reply_init(ctx, st_relay_translates(ctx->relay,
                                                                   &up));
}


/* NGX_ERROR: it failed, and that was taken care of */

static ngx_int_t
ngx_http_starling_send(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side, st_leg_role role,
    const ngx_http_starling_leg_handlers_t *handlers)
{
    ngx_str_t                     headers;
    ngx_msec_t                    timeout;
    const char                   *path;
    st_engine_slot               *slot;
    ngx_http_starling_cluster_t  *cl;

    cl = ctx->cluster;

    if (ngx_http_starling_prepare(ctx, side, role, &path, &headers) != NGX_OK)
    {
        ngx_http_starling_end_legs(ctx);
        ngx_http_starling_release(ctx, &ctx->prefill);
        ngx_http_starling_release(ctx, &ctx->decode);
        ngx_http_starling_refuse(ctx, NGX_HTTP_INTERNAL_SERVER_ERROR, NULL,
                                 NULL, 0, "The request for an engine could "
                                 "not be made");
        return NGX_ERROR;
    }

    slot = st_cluster_engine(cl->shared, side->engine->id);
    atomic_fetch_add_explicit(&slot->requests, 1, memory_order_relaxed);

    side->sent_ns = ngx_http_starling_now();
    side->active = 1;

    /* what is not a stream comes at once, when all of it is generated */

    timeout = role == ST_LEG_PREFILL || ctx->relay->stream
              ? cl->first_token_timeout : cl->answer_timeout;

    if (ngx_http_starling_leg_start(&side->leg, cl, side->engine, "POST", path,
                                    &headers, &side->body, timeout, handlers,
                                    ctx, ctx->request->connection->log)
        != NGX_OK)
    {
        side->active = 0;
        ngx_http_starling_leg_lost(ctx, side, side->leg.error);
        return NGX_ERROR;
    }

    return NGX_OK;
}


static void
ngx_http_starling_upstream(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side, st_leg_role role, st_upstream_plan *up)
{
    int64_t                     max_len;
    st_engine_slot             *slot;
    ngx_http_starling_model_t  *model;

    model = ctx->model;
    slot = st_cluster_engine(ctx->cluster->shared, side->engine->id);

    ngx_memzero(up, sizeof(st_upstream_plan));
    up->kind = side->engine->kind;
    up->role = role;
    up->handoff = ctx->handoff;
    up->model = model->upstream.len ? (char *) model->upstream.data
                                    : model->names[0];

    if (ctx->ids_json.len
        && st_relay_takes_ids(ctx->relay, side->engine->kind))
    {
        up->ids_json = ctx->ids_json.data;
        up->ids_json_len = ctx->ids_json.len;
        up->n_ids = ctx->ids.len;
    }

    max_len = model->max_len > 0
              ? model->max_len
              : atomic_load_explicit(&slot->max_model_len,
                                     memory_order_relaxed);

    up->default_max_tokens = max_len > ctx->route.prompt_tokens
                             ? max_len - ctx->route.prompt_tokens : 0;

    if (ctx->kv_params.len) {
        up->kv_params = ctx->kv_params.data;
        up->kv_params_len = ctx->kv_params.len;
    }
}


/* how two engines find each other; fills what up's pointers point to */

static ngx_int_t
ngx_http_starling_remote(ngx_http_starling_ctx_t *ctx, st_upstream_plan *up)
{
    int                          port;
    u_char                      *p, text[NGX_SOCKADDR_STRLEN];
    size_t                       n;
    ngx_addr_t                  *a;
    st_engine_slot              *slot;
    ngx_http_starling_engine_t  *engine;

    engine = ctx->prefill.engine;
    slot = st_cluster_engine(ctx->cluster->shared, engine->id);
    a = &engine->addrs[0];

    if (a->sockaddr->sa_family == AF_UNIX) {
        n = ngx_cpymem(text, "127.0.0.1", 9) - text;

    } else {
        n = ngx_sock_ntop(a->sockaddr, a->socklen, text, sizeof(text), 0);
    }

    p = ngx_cpymem((u_char *) up->bootstrap_host, text, n);
    *p = '\0';

    port = atomic_load_explicit(&slot->bootstrap_port, memory_order_relaxed);
    if (port == 0) {
        port = engine->bootstrap_port ? engine->bootstrap_port : 8998;
    }

    up->bootstrap_port = port;
    up->bootstrap_room = ctx->room;
    up->transfer_id = ctx->transfer_id;

    p = ngx_sprintf((u_char *) up->bootstrap_addr,
                    a->sockaddr->sa_family == AF_INET6 ? "http://[%*s]:%d%Z"
                                                       : "http://%*s:%d%Z",
                    n, text, port);

    /* a listener on all addresses is met at the one we know */

    if (up->remote_host[0] == '\0' || ngx_strcmp(up->remote_host, "0.0.0.0") == 0
        || ngx_strcmp(up->remote_host, "::") == 0)
    {
        up->remote_host = up->bootstrap_host;
    }

    up->remote_port = atomic_load_explicit(&slot->kv_port,
                                           memory_order_relaxed);

    return p ? NGX_OK : NGX_ERROR;
}


static ngx_int_t
ngx_http_starling_headers(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side, ngx_str_t *headers)
{
    u_char  *p;

    *headers = ctx->headers;
    side->rank = 0;

    if (side->engine->dp_size <= 1 || ctx->depth == NULL) {
        return NGX_OK;
    }

    side->rank = st_cluster_best_rank(ctx->cluster->shared, side->engine->id,
                                      ctx->depth);

    p = ngx_pnalloc(ctx->request->pool, headers->len + 48);
    if (p == NULL) {
        return NGX_ERROR;
    }

    headers->len = ngx_sprintf(p, "%VX-data-parallel-rank: %d\r\n",
                               &ctx->headers, side->rank)
                   - p;
    headers->data = p;

    return NGX_OK;
}


/* the prefill leg */

static ngx_int_t
ngx_http_starling_prefill_body(ngx_http_starling_leg_t *leg, u_char *p,
    size_t n)
{
    ngx_connection_t          *c;
    ngx_http_starling_ctx_t   *ctx;
    ngx_http_starling_side_t  *side;

    ctx = leg->data;
    side = &ctx->prefill;
    c = ctx->request->connection;

    if (ngx_http_starling_collect(side, p, n) == NGX_OK) {
        return NGX_OK;
    }

    ngx_http_set_log_request(c->log, ctx->request);
    ngx_http_starling_leg_close(leg);
    side->active = 0;
    ngx_http_starling_leg_lost(ctx, side, NGX_HTTP_STARLING_LEG_GARBAGE);
    ngx_http_run_posted_requests(c);

    return NGX_ERROR;
}


static void
ngx_http_starling_prefill_done(ngx_http_starling_leg_t *leg,
    ngx_http_starling_leg_error_e error)
{
    ngx_connection_t         *c;
    ngx_http_starling_ctx_t  *ctx;

    ctx = leg->data;
    c = ctx->request->connection;
    ngx_http_set_log_request(c->log, ctx->request);

    ctx->prefill.active = 0;

    if (error != NGX_HTTP_STARLING_LEG_OK) {
        ngx_http_starling_leg_lost(ctx, &ctx->prefill, error);

    } else if (leg->response.status != 200) {
        ngx_http_starling_bad_status(ctx, &ctx->prefill);

    } else {
        ngx_http_starling_prefilled(ctx);
    }

    ngx_http_run_posted_requests(c);
}


static void
ngx_http_starling_prefilled(ngx_http_starling_ctx_t *ctx)
{
    uint64_t                      now;
    st_error                      err;
    st_status                     rc;
    st_cluster_metrics           *m;
    ngx_http_starling_side_t     *side;
    ngx_http_starling_cluster_t  *cl;

    cl = ctx->cluster;
    side = &ctx->prefill;
    now = ngx_http_starling_now();

    (void) st_cluster_outcome(cl->shared, side->engine->id, ST_OUTCOME_OK, now);
    ngx_http_starling_note(ctx, side);

    st_cluster_measure_prefill(cl->shared, side->engine->id,
                               side->ahead + ctx->plan.prefill_tokens,
                               now - side->sent_ns);

    ngx_http_starling_release(ctx, side);

    if (ctx->handoff != ST_HANDOFF_PULL) {
        st_buf_free(&side->body);
        return;
    }

    st_buf_clear(&ctx->kv_params);
    rc = st_upstream_kv_params(side->answer.data ? side->answer.data : "",
                               side->answer.len, &ctx->kv_params, &err);

    st_buf_free(&side->body);
    st_buf_free(&side->answer);

    if (rc != ST_OK) {
        /* it computes, but does not hand over: one engine does it all */
        ngx_log_error(NGX_LOG_ERR, ctx->request->connection->log, 0,
                      "engine %V has nothing to hand over: %s",
                      &side->engine->address, err.text);

        m = st_cluster_get_metrics(cl->shared);
        atomic_fetch_add_explicit(&m->half_failed, 1, memory_order_relaxed);

        st_buf_clear(&ctx->kv_params);
        ngx_http_starling_release(ctx, &ctx->decode);
        ctx->route.disaggregate = false;
        ngx_http_starling_schedule(ctx);
        return;
    }

    if (ctx->decode.claim.engine >= 0) {
        st_request_phase(ctx->slot, ST_PHASE_DECODE_WAITING, now);
        st_request_phase(ctx->slot, ST_PHASE_DECODE_SCHEDULED, now);
        ngx_http_starling_decode(ctx);
        return;
    }

    ctx->decode_stage = 1;
    ngx_http_starling_schedule(ctx);
}
