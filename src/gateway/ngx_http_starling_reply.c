/*
 * An engine's answer on its way to the client. A stream's events go out as
 * they come, all that one read brought in one write, whole events only; what
 * the client cannot take yet stops the reading. An answer that is not a
 * stream is sent when it is complete.
 */

#include "ngx_http_starling_ctx.h"


#define NGX_HTTP_STARLING_ADJUST  32       /* events */
#define NGX_HTTP_STARLING_SNDBUF  131072


static ngx_int_t ngx_http_starling_reply_body(ngx_http_starling_leg_t *leg,
    u_char *p, size_t n);
static ngx_int_t ngx_http_starling_reply_flush(ngx_http_starling_leg_t *leg);
static void ngx_http_starling_reply_done(ngx_http_starling_leg_t *leg,
    ngx_http_starling_leg_error_e error);
static ngx_int_t ngx_http_starling_events(ngx_http_starling_ctx_t *ctx,
    u_char *p, size_t n);
static ngx_int_t ngx_http_starling_split(ngx_http_starling_ctx_t *ctx,
    const char *p, size_t n, size_t *used);
static void ngx_http_starling_seen(ngx_http_starling_ctx_t *ctx);
static void ngx_http_starling_first_token(ngx_http_starling_ctx_t *ctx);
static ngx_int_t ngx_http_starling_start(ngx_http_starling_ctx_t *ctx);
static void ngx_http_starling_prompt_free(ngx_http_starling_ctx_t *ctx);
static ngx_int_t ngx_http_starling_write(ngx_http_starling_ctx_t *ctx,
    ngx_uint_t last);
static ngx_int_t ngx_http_starling_await(ngx_http_starling_ctx_t *ctx);
static void ngx_http_starling_writer(ngx_http_request_t *r);
static void ngx_http_starling_ended(ngx_http_starling_ctx_t *ctx);
static void ngx_http_starling_stream_end(ngx_http_starling_ctx_t *ctx);
static void ngx_http_starling_whole(ngx_http_starling_ctx_t *ctx);


const ngx_http_starling_leg_handlers_t  ngx_http_starling_decode_handlers = {
    NULL,
    ngx_http_starling_reply_body,
    ngx_http_starling_reply_flush,
    ngx_http_starling_reply_done
};


ngx_int_t
ngx_http_starling_reply_init(ngx_http_starling_ctx_t *ctx, ngx_uint_t translate)
{
    st_relay_reply_free(ctx->reply);
    ctx->reply = NULL;

    st_buf_clear(&ctx->tail);
    st_buf_clear(&ctx->out);
    ctx->scanned = 0;
    ctx->first_ns = 0;
    ctx->adjusted = 0;

    if (st_relay_reply_new(ctx->relay, ctx->relay->model.len
                                       ? ctx->relay->model.data
                                       : ctx->model->names[0],
                           translate, ctx->id, ngx_time(), &ctx->reply)
        != ST_OK)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* NGX_ERROR: the leg is gone, and maybe the request */

static ngx_int_t
ngx_http_starling_reply_body(ngx_http_starling_leg_t *leg, u_char *p, size_t n)
{
    ngx_int_t                 rc;
    ngx_connection_t         *c;
    ngx_http_starling_ctx_t  *ctx;

    ctx = leg->data;
    c = ctx->request->connection;

    if (leg->response.status == 200 && ctx->relay->stream
        && leg->response.event_stream)
    {
        rc = ngx_http_starling_events(ctx, p, n);

        /* an engine that only keeps the connection alive has not begun */
        leg->body_given = ctx->started || ctx->out.len;

    } else {
        rc = ngx_http_starling_collect(&ctx->decode, p, n);
    }

    if (rc == NGX_OK) {
        return NGX_OK;
    }

    ngx_http_set_log_request(c->log, ctx->request);

    /* events in out were complete: reply_error sends them first */

    ngx_http_starling_end_legs(ctx);
    ngx_http_starling_leg_lost(ctx, &ctx->decode,
                               NGX_HTTP_STARLING_LEG_GARBAGE);
    ngx_http_run_posted_requests(c);

    return NGX_ERROR;
}


/*
 * What is not a stream. Of an error only the beginning is of use, but more may
 * come with it: vLLM repeats the whole body.
 */

ngx_int_t
ngx_http_starling_collect(ngx_http_starling_side_t *side, u_char *p, size_t n)
{
    st_buf  *answer;

    answer = &side->answer;
    side->collected += n;

    if (side->collected > NGX_HTTP_STARLING_ANSWER_MAX) {
        return NGX_ERROR;
    }

    if (side->leg.response.status != 200) {
        n = ngx_min(n, NGX_HTTP_STARLING_ERROR_BODY - answer->len);
    }

    if (n && st_buf_append(answer, p, n) != ST_OK) {
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* complete events are read where they are; the rest waits in tail */

static ngx_int_t
ngx_http_starling_events(ngx_http_starling_ctx_t *ctx, u_char *p, size_t n)
{
    size_t   used;
    st_buf  *tail;

    tail = &ctx->tail;

    if (tail->len) {
        if (tail->len + n > NGX_HTTP_STARLING_EVENT_MAX
            || st_buf_append(tail, p, n) != ST_OK)
        {
            return NGX_ERROR;
        }

        if (ngx_http_starling_split(ctx, tail->data, tail->len, &used)
            != NGX_OK)
        {
            return NGX_ERROR;
        }

        if (used) {
            ngx_memmove(tail->data, tail->data + used, tail->len - used);
            tail->len -= used;
        }

    } else {
        if (ngx_http_starling_split(ctx, (char *) p, n, &used) != NGX_OK) {
            return NGX_ERROR;
        }

        if (used < n && st_buf_append(tail, p + used, n - used) != ST_OK) {
            return NGX_ERROR;
        }
    }

    ngx_http_starling_seen(ctx);

    return NGX_OK;
}


static ngx_int_t
ngx_http_starling_split(ngx_http_starling_ctx_t *ctx, const char *p, size_t n,
    size_t *used)
{
    bool          verbatim;
    size_t        len;
    st_error      err;
    st_sse_event  ev;

    *used = 0;

    for ( ;; ) {
        len = st_sse_next(p + *used, n - *used, &ctx->scanned, &ev);

        if (len == 0) {
            return NGX_OK;
        }

        ctx->scanned = 0;

        /* a keep-alive before the first token does not begin the answer */

        if (ev.data_lines || ctx->started || ctx->out.len) {
            verbatim = false;

            if (st_relay_reply_event(ctx->reply, p + *used, len, &verbatim,
                                     &ctx->out, &err)
                != ST_OK)
            {
                ngx_log_error(NGX_LOG_ERR, ctx->request->connection->log, 0,
                              "engine %V: %s", &ctx->decode.engine->address,
                              err.text);
                return NGX_ERROR;
            }

            if (verbatim
                && st_buf_append(&ctx->out, p + *used, len) != ST_OK)
            {
                return NGX_ERROR;
            }
        }

        *used += len;
    }
}


/* what the events told: phases, counts, loads */

static void
ngx_http_starling_seen(ngx_http_starling_ctx_t *ctx)
{
    st_load              load;
    const st_relay_seen *seen;

    seen = st_relay_reply_seen(ctx->reply);

    if (seen->any && ctx->first_ns == 0) {
        ngx_http_starling_first_token(ctx);
    }

    if (seen->events < ctx->adjusted + NGX_HTTP_STARLING_ADJUST) {
        return;
    }

    ctx->adjusted = seen->events;
    atomic_store_explicit(&ctx->slot->generated_tokens, seen->events,
                          memory_order_relaxed);

    if (ctx->decode.claim.engine >= 0) {
        load = ctx->decode.claim.load;
        load.decode_tokens = ctx->route.prompt_tokens + seen->events;
        st_cluster_adjust(ctx->cluster->shared, ctx->cluster->row,
                          &ctx->decode.claim, &load);
    }
}


static void
ngx_http_starling_first_token(ngx_http_starling_ctx_t *ctx)
{
    st_load                       load;
    uint64_t                      now;
    ngx_http_starling_cluster_t  *cl;

    cl = ctx->cluster;
    now = ngx_http_starling_now();
    ctx->first_ns = now;

    if (ctx->handoff == ST_HANDOFF_NONE) {
        st_request_phase(ctx->slot, ST_PHASE_DECODE_WAITING, now);
        st_request_phase(ctx->slot, ST_PHASE_DECODE_SCHEDULED, now);

        if (ctx->relay->stream) {
            st_cluster_measure_prefill(cl->shared, ctx->decode.engine->id,
                                       ctx->decode.ahead
                                       + ctx->plan.prefill_tokens,
                                       now - ctx->decode.sent_ns);
        }
    }

    st_request_phase(ctx->slot, ST_PHASE_DECODE_RUNNING, now);

    (void) st_cluster_outcome(cl->shared, ctx->decode.engine->id,
                              ST_OUTCOME_OK, now);

    if (ctx->decode.claim.engine >= 0
        && ctx->decode.claim.load.prefill_requests)
    {
        load = ctx->decode.claim.load;
        load.prefill_requests = 0;
        load.prefill_tokens = 0;
        st_cluster_adjust(cl->shared, cl->row, &ctx->decode.claim, &load);
    }

    st_buf_free(&ctx->decode.body);
}


static ngx_int_t
ngx_http_starling_reply_flush(ngx_http_starling_leg_t *leg)
{
    ngx_int_t                 rc;
    ngx_connection_t         *c;
    ngx_http_request_t       *r;
    const st_relay_seen      *seen;
    ngx_http_starling_ctx_t  *ctx;

    ctx = leg->data;

    if (ctx->out.len == 0) {
        return NGX_OK;
    }

    r = ctx->request;
    c = r->connection;
    ngx_http_set_log_request(c->log, r);

    if (!ctx->started) {
        seen = st_relay_reply_seen(ctx->reply);

        if (seen->error && !seen->any) {
            /* an error before the first token: somebody else may do better */
            ngx_http_starling_end_legs(ctx);
            ngx_http_starling_reported(ctx);
            ngx_http_run_posted_requests(c);
            return NGX_ERROR;
        }

        rc = ngx_http_starling_start(ctx);

        if (rc != NGX_OK) {
            ngx_http_finalize_request(r, rc);
            ngx_http_run_posted_requests(c);
            return NGX_ERROR;
        }
    }

    rc = ngx_http_starling_write(ctx, 0);

    if (rc == NGX_ERROR) {
        ngx_http_finalize_request(r, NGX_ERROR);
        ngx_http_run_posted_requests(c);
    }

    return rc;
}


/* the head of a stream goes out with its first event */

static ngx_int_t
ngx_http_starling_start(ngx_http_starling_ctx_t *ctx)
{
    int                        size;
    ngx_int_t                  rc;
    ngx_str_t                  value;
    ngx_connection_t          *c;
    ngx_http_request_t        *r;
    ngx_http_core_loc_conf_t  *clcf;

    r = ctx->request;
    c = r->connection;

    r->headers_out.status = NGX_HTTP_OK;
    r->headers_out.content_length_n = -1;
    ngx_str_set(&r->headers_out.content_type, "text/event-stream");
    r->headers_out.content_type_len = r->headers_out.content_type.len;

    if (ngx_http_starling_add_header(r, "X-Request-Id", &ctx->request_id)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    ngx_str_set(&value, "no-cache");
    if (ngx_http_starling_add_header(r, "Cache-Control", &value) != NGX_OK) {
        return NGX_ERROR;
    }

    /* for a proxy in front of us that would collect events */
    ngx_str_set(&value, "no");
    if (ngx_http_starling_add_header(r, "X-Accel-Buffering", &value)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    ctx->started = 1;
    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK) {
        return rc == NGX_ERROR ? NGX_ERROR : rc;
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (clcf->tcp_nodelay && ngx_tcp_nodelay(c) != NGX_OK) {
        return NGX_ERROR;
    }

    /*
     * The kernel would take megabytes of a stream that its client does not
     * read; HTTP/2 has windows of its own.
     */

    size = NGX_HTTP_STARLING_SNDBUF;

    if (
#if (NGX_HTTP_V2)
        r->stream == NULL &&
#endif
        setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, (const void *) &size,
                   sizeof(int))
        == -1)
    {
        ngx_connection_error(c, ngx_socket_errno,
                             "setsockopt(SO_SNDBUF) failed");
        return NGX_ERROR;
    }

    ngx_http_starling_prompt_free(ctx);

    return NGX_OK;
}


/* a stream that has begun is not tried again: its prompt is not needed */

static void
ngx_http_starling_prompt_free(ngx_http_starling_ctx_t *ctx)
{
    st_ids_free(&ctx->ids);
    st_buf_free(&ctx->ids_json);
    st_buf_free(&ctx->body);

    ctx->cluster->bodies -= ctx->accounted;
    ctx->accounted = 0;
}


/* NGX_AGAIN: out is busy until the client takes it */

static ngx_int_t
ngx_http_starling_write(ngx_http_starling_ctx_t *ctx, ngx_uint_t last)
{
    ngx_int_t                  rc;
    ngx_buf_t                 *b;
    ngx_http_request_t        *r;

    r = ctx->request;
    b = &ctx->buf;

    ngx_memzero(b, sizeof(ngx_buf_t));
    b->start = (u_char *) ctx->out.data;
    b->pos = b->start;
    b->last = b->pos + ctx->out.len;
    b->end = b->last;
    b->memory = ctx->out.len != 0;
    b->flush = 1;
    b->last_buf = last;
    b->last_in_chain = last;
    b->tag = (ngx_buf_tag_t) &ngx_http_starling_module;

    ctx->link.buf = b;
    ctx->link.next = NULL;

    rc = ngx_http_output_filter(r, &ctx->link);

    if (rc == NGX_ERROR || last) {
        return rc;
    }

    if (b->pos == b->last && !r->buffered && !r->connection->buffered) {
        ctx->busy = 0;
        st_buf_clear(&ctx->out);
        return NGX_OK;
    }

    ctx->busy = 1;

    r->write_event_handler = ngx_http_starling_writer;

    return ngx_http_starling_await(ctx) == NGX_OK ? NGX_AGAIN : NGX_ERROR;
}


static ngx_int_t
ngx_http_starling_await(ngx_http_starling_ctx_t *ctx)
{
    ngx_event_t               *wev;
    ngx_http_core_loc_conf_t  *clcf;

    wev = ctx->request->connection->write;
    clcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_core_module);

    if (!wev->delayed) {
        ngx_add_timer(wev, ctx->cluster->send_timeout);
    }

    return ngx_handle_write_event(wev, clcf->send_lowat);
}


/* the client takes bytes again */

static void
ngx_http_starling_writer(ngx_http_request_t *r)
{
    ngx_event_t              *wev;
    ngx_connection_t         *c;
    ngx_http_starling_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_starling_module);
    c = r->connection;
    wev = c->write;

    if (!ctx->busy) {
        return;
    }

    if (wev->timedout) {
        ngx_log_error(NGX_LOG_INFO, c->log, NGX_ETIMEDOUT, "client timed out");
        c->timedout = 1;
        ngx_http_finalize_request(r, NGX_HTTP_REQUEST_TIME_OUT);
        return;
    }

    if (!wev->delayed
        && ngx_http_output_filter(r, NULL) == NGX_ERROR)
    {
        ngx_http_finalize_request(r, NGX_ERROR);
        return;
    }

    if (ctx->buf.pos == ctx->buf.last && !r->buffered && !c->buffered) {
        if (wev->timer_set) {
            ngx_del_timer(wev);
        }

        ctx->busy = 0;
        st_buf_clear(&ctx->out);
        ngx_http_starling_leg_resume(&ctx->decode.leg);
        return;
    }

    if (ngx_http_starling_await(ctx) != NGX_OK) {
        ngx_http_finalize_request(r, NGX_ERROR);
    }
}


/* the end */

static void
ngx_http_starling_reply_done(ngx_http_starling_leg_t *leg,
    ngx_http_starling_leg_error_e error)
{
    ngx_connection_t         *c;
    ngx_http_starling_ctx_t  *ctx;

    ctx = leg->data;
    c = ctx->request->connection;
    ngx_http_set_log_request(c->log, ctx->request);

    ctx->decode.active = 0;

    if (error != NGX_HTTP_STARLING_LEG_OK) {
        ngx_http_starling_leg_lost(ctx, &ctx->decode, error);

    } else if (leg->response.status != 200) {
        ngx_http_starling_bad_status(ctx, &ctx->decode);

    } else if (ctx->relay->stream && leg->response.event_stream) {
        ngx_http_starling_stream_end(ctx);

    } else if (ctx->relay->stream) {
        /* a stream was asked for */
        ngx_http_starling_leg_lost(ctx, &ctx->decode,
                                   NGX_HTTP_STARLING_LEG_GARBAGE);

    } else {
        ngx_http_starling_whole(ctx);
    }

    ngx_http_run_posted_requests(c);
}


static void
ngx_http_starling_stream_end(ngx_http_starling_ctx_t *ctx)
{
    ngx_int_t             rc;
    ngx_http_request_t   *r;
    const st_relay_seen  *seen;

    r = ctx->request;
    seen = st_relay_reply_seen(ctx->reply);

    if (!ctx->started && seen->error && !seen->any) {
        ngx_http_starling_reported(ctx);
        return;
    }

    if (!seen->done) {
        /* it ended well as HTTP, but not as an answer */
        ngx_http_starling_leg_lost(ctx, &ctx->decode,
                                   NGX_HTTP_STARLING_LEG_CUT);
        return;
    }

    if (!ctx->started) {
        rc = ngx_http_starling_start(ctx);
        if (rc != NGX_OK) {
            ngx_http_finalize_request(r, rc);
            return;
        }
    }

    ngx_http_starling_ended(ctx);

    rc = ngx_http_starling_write(ctx, 1);
    ngx_http_finalize_request(r, rc);
}


static void
ngx_http_starling_whole(ngx_http_starling_ctx_t *ctx)
{
    bool        verbatim;
    u_char     *p;
    size_t      n;
    st_buf     *answer;
    st_error    err;
    ngx_int_t   rc;

    answer = &ctx->decode.answer;
    verbatim = false;

    if (st_relay_reply_whole(ctx->reply, answer->data ? answer->data : "",
                             answer->len, &verbatim, &ctx->out, &err)
        != ST_OK)
    {
        ngx_log_error(NGX_LOG_ERR, ctx->request->connection->log, 0,
                      "engine %V: %s", &ctx->decode.engine->address, err.text);
        ngx_http_starling_leg_lost(ctx, &ctx->decode,
                                   NGX_HTTP_STARLING_LEG_GARBAGE);
        return;
    }

    if (st_relay_reply_seen(ctx->reply)->error) {
        ngx_http_starling_reported(ctx);
        return;
    }

    ngx_http_starling_first_token(ctx);
    ngx_http_starling_ended(ctx);

    p = (u_char *) (verbatim ? answer->data : ctx->out.data);
    n = verbatim ? answer->len : ctx->out.len;

    ctx->started = 1;
    rc = ngx_http_starling_send_json(ctx->request, NGX_HTTP_OK, p, n);
    ngx_http_finalize_request(ctx->request, rc);
}


/* a complete answer: what was learnt */

static void
ngx_http_starling_ended(ngx_http_starling_ctx_t *ctx)
{
    int64_t                       tokens;
    const st_relay_seen          *seen;
    ngx_http_starling_cluster_t  *cl;

    cl = ctx->cluster;
    seen = st_relay_reply_seen(ctx->reply);

    tokens = seen->completion_tokens >= 0 ? seen->completion_tokens
                                          : (int64_t) seen->events;

    atomic_store_explicit(&ctx->slot->generated_tokens, (uint32_t) tokens,
                          memory_order_relaxed);

    if (ctx->relay->stream && tokens > 1) {
        st_cluster_measure_decode(cl->shared, ctx->decode.engine->id,
                                  tokens - 1,
                                  ngx_http_starling_now() - ctx->first_ns);
    }

    ctx->request->headers_out.status = NGX_HTTP_OK;
    ngx_http_starling_count(ctx);

    ngx_http_starling_release(ctx, &ctx->decode);
}


void
ngx_http_starling_reply_error(ngx_http_starling_ctx_t *ctx, ngx_uint_t status,
    const char *message)
{
    ngx_int_t            rc;
    st_api_error         e;
    ngx_http_request_t  *r;

    r = ctx->request;
    ngx_http_starling_count(ctx);

    /* busy: out is in the middle of being sent; what follows goes behind */

    if (ctx->busy) {
        ngx_http_finalize_request(r, NGX_ERROR);
        return;
    }

    (void) st_api_fail(&e, status, NULL, "engine_failed",
                       "The engine %s; the answer is not complete", message);

    if (st_api_error_event(&e, &ctx->out) != ST_OK) {
        ngx_http_finalize_request(r, NGX_ERROR);
        return;
    }

    rc = ngx_http_starling_write(ctx, 1);
    ngx_http_finalize_request(r, rc);
}
