/*
 * One request: who may ask, what is asked, the body, and every end. The way
 * between is in ngx_http_starling_tokens.c, _schedule.c, _handoff.c and
 * _reply.c.
 */

#include "ngx_http_starling_ctx.h"


static ngx_int_t ngx_http_starling_admit(ngx_http_request_t *r,
    ngx_http_starling_cluster_t *cl);
static ngx_int_t ngx_http_starling_wrong_method(ngx_http_request_t *r);
static ngx_int_t ngx_http_starling_begin(ngx_http_request_t *r,
    ngx_http_starling_cluster_t *cl, st_api_kind kind);
static ngx_http_starling_ctx_t *ngx_http_starling_create(ngx_http_request_t *r,
    ngx_http_starling_cluster_t *cl, st_api_kind kind);
static void ngx_http_starling_body_handler(ngx_http_request_t *r);
static void ngx_http_starling_read_body(ngx_http_request_t *r);
static ngx_int_t ngx_http_starling_take_body(ngx_http_starling_ctx_t *ctx);
static void ngx_http_starling_received(ngx_http_starling_ctx_t *ctx);
static void ngx_http_starling_cleanup(void *data);
static void ngx_http_starling_free(void *data);


ngx_int_t
ngx_http_starling_handler(ngx_http_request_t *r)
{
    size_t                         len;
    u_char                        *p;
    ngx_int_t                      rc;
    ngx_http_starling_cluster_t   *cl;
    ngx_http_starling_loc_conf_t  *lcf;

    lcf = ngx_http_get_module_loc_conf(r, ngx_http_starling_module);
    cl = lcf->cluster;

    /* nothing here is a document: If-None-Match and the like mean nothing */

    r->disable_not_modified = 1;

    rc = ngx_http_starling_admit(r, cl);
    if (rc != NGX_DECLINED) {
        return rc;
    }

    /* what comes after .../v1/, whatever the location's prefix is */

    p = (u_char *) ngx_strnstr(r->uri.data, "/v1/", r->uri.len);

    if (p) {
        p += 4;
        len = r->uri.data + r->uri.len - p;

        if (len >= 6 && ngx_strncmp(p, "models", 6) == 0
            && (len == 6 || p[6] == '/'))
        {
            return r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD)
                   ? ngx_http_starling_models(r, cl, p + 6, len - 6)
                   : ngx_http_starling_wrong_method(r);
        }

        if (len == 16 && ngx_strncmp(p, "chat/completions", 16) == 0) {
            return ngx_http_starling_begin(r, cl, ST_API_CHAT);
        }

        if (len == 11 && ngx_strncmp(p, "completions", 11) == 0) {
            return ngx_http_starling_begin(r, cl, ST_API_COMPLETION);
        }
    }

    return ngx_http_starling_error(r, NGX_HTTP_NOT_FOUND, NULL, NULL, 0,
                                   "Unknown path %V; there are "
                                   "/v1/chat/completions, /v1/completions and "
                                   "/v1/models", &r->uri);
}


/* NGX_DECLINED: the client may ask; anything else is the answer */

static ngx_int_t
ngx_http_starling_admit(ngx_http_request_t *r, ngx_http_starling_cluster_t *cl)
{
    uint64_t             who;
    ngx_uint_t           wait;
    st_cluster_metrics  *m;

    if (ngx_http_starling_authorize(r, cl, &who) != NGX_OK) {
        return ngx_http_starling_error(r, NGX_HTTP_UNAUTHORIZED,
                                       "invalid_api_key", NULL, 0,
                                       "A valid API key is needed: send "
                                       "\"Authorization: Bearer KEY\"");
    }

    if (ngx_http_starling_rate(cl, who, &wait) != NGX_OK) {
        m = st_cluster_get_metrics(cl->shared);
        atomic_fetch_add_explicit(&m->rejected_rate, 1, memory_order_relaxed);

        return ngx_http_starling_error(r, NGX_HTTP_TOO_MANY_REQUESTS,
                                       "rate_limit_exceeded", NULL, wait,
                                       "Too many requests; try again in %ui s",
                                       wait);
    }

    return NGX_DECLINED;
}


static ngx_int_t
ngx_http_starling_wrong_method(ngx_http_request_t *r)
{
    return ngx_http_starling_error(r, NGX_HTTP_NOT_ALLOWED, NULL, NULL, 0,
                                   "%V does not take %V", &r->uri,
                                   &r->method_name);
}


static ngx_int_t
ngx_http_starling_begin(ngx_http_request_t *r, ngx_http_starling_cluster_t *cl,
    st_api_kind kind)
{
    ngx_int_t  rc;

    if (r->method != NGX_HTTP_POST) {
        return ngx_http_starling_wrong_method(r);
    }

    if (r->headers_in.content_length_n > (off_t) cl->max_body_size) {
        return ngx_http_starling_error(r, NGX_HTTP_REQUEST_ENTITY_TOO_LARGE,
                                       NULL, NULL, 0,
                                       "The body has %O bytes; at most %uz "
                                       "are taken",
                                       r->headers_in.content_length_n,
                                       cl->max_body_size);
    }

    if (ngx_http_starling_create(r, cl, kind) == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    /* pieces are taken as they come: no temporary files */

    r->request_body_no_buffering = 1;

    rc = ngx_http_read_client_request_body(r, ngx_http_starling_body_handler);

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        return ngx_http_starling_error(r, rc, NULL, NULL, 0,
                                       "The body could not be read");
    }

    return NGX_DONE;
}


static ngx_http_starling_ctx_t *
ngx_http_starling_create(ngx_http_request_t *r, ngx_http_starling_cluster_t *cl,
    st_api_kind kind)
{
    ngx_pool_cleanup_t       *pcln;
    ngx_http_cleanup_t       *cln;
    ngx_http_starling_ctx_t  *ctx;

    ctx = ngx_pcalloc(r->pool, sizeof(ngx_http_starling_ctx_t));
    if (ctx == NULL) {
        return NULL;
    }

    ctx->request = r;
    ctx->cluster = cl;
    ctx->kind = kind;
    ctx->prefill.claim.engine = -1;
    ctx->decode.claim.engine = -1;
    ctx->retry_after = -1;
    ctx->retries = cl->retries;

    cln = ngx_http_cleanup_add(r, 0);
    pcln = ngx_pool_cleanup_add(r->pool, 0);
    if (cln == NULL || pcln == NULL) {
        return NULL;
    }

    cln->handler = ngx_http_starling_cleanup;
    cln->data = ctx;
    pcln->handler = ngx_http_starling_free;
    pcln->data = ctx;

    if (ngx_http_starling_trace(ctx) != NGX_OK) {
        return NULL;
    }

    ngx_http_set_ctx(r, ctx, ngx_http_starling_module);

    return ctx;
}


/* the body */

static void
ngx_http_starling_body_handler(ngx_http_request_t *r)
{
    r->read_event_handler = ngx_http_starling_read_body;
    r->write_event_handler = ngx_http_request_empty_handler;

    ngx_http_starling_read_body(r);
}


static void
ngx_http_starling_read_body(ngx_http_request_t *r)
{
    ngx_int_t                 rc;
    ngx_http_starling_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_starling_module);

    for ( ;; ) {
        if (ngx_http_starling_take_body(ctx) != NGX_OK) {
            return;
        }

        if (!r->reading_body) {
            break;
        }

        rc = ngx_http_read_unbuffered_request_body(r);

        if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
            if (r->connection->error || r->connection->timedout) {
                ngx_http_finalize_request(r, rc);
                return;
            }

            ngx_http_starling_refuse(ctx, rc, NULL, NULL, 0,
                                     "The body could not be read");
            return;
        }

        if (rc == NGX_AGAIN && r->request_body->bufs == NULL) {
            return;
        }
    }

    ngx_http_starling_received(ctx);
}


/*
 * What clients send is bounded not only for each of them: many large bodies at
 * once, whose ends may never come, would take all memory.
 */

static ngx_int_t
ngx_http_starling_account(ngx_http_starling_ctx_t *ctx, size_t size)
{
    ngx_http_starling_cluster_t  *cl;

    cl = ctx->cluster;

    if (cl->body_memory
        && cl->bodies - ctx->accounted + size > cl->body_memory)
    {
        return NGX_BUSY;
    }

    cl->bodies += size - ctx->accounted;
    ctx->accounted = size;

    return NGX_OK;
}


static ngx_int_t
ngx_http_starling_take_body(ngx_http_starling_ctx_t *ctx)
{
    off_t                n;
    ngx_buf_t           *b;
    ngx_chain_t         *cl, *next;
    ngx_http_request_t  *r;

    r = ctx->request;

    if (r->request_body == NULL) {
        return NGX_OK;
    }

    if (ctx->body.data == NULL && r->headers_in.content_length_n > 0
        && r->headers_in.content_length_n <= 1024 * 1024
        && st_buf_reserve(&ctx->body, r->headers_in.content_length_n) != ST_OK)
    {
        goto nomem;
    }

    cl = r->request_body->bufs;
    r->request_body->bufs = NULL;

    for ( /* void */ ; cl; cl = next) {
        next = cl->next;
        b = cl->buf;
        n = b->last - b->pos;

        if (ctx->body.len + n > ctx->cluster->max_body_size) {
            ngx_http_starling_refuse(ctx, NGX_HTTP_REQUEST_ENTITY_TOO_LARGE,
                                     NULL, NULL, 0,
                                     "The body has more than %uz bytes",
                                     ctx->cluster->max_body_size);
            return NGX_ERROR;
        }

        if (ngx_http_starling_account(ctx, ctx->body.len + n) != NGX_OK) {
            ngx_http_starling_refuse(ctx, NGX_HTTP_SERVICE_UNAVAILABLE,
                                     "server_overloaded", NULL, 1,
                                     "The bodies of all requests together "
                                     "have more than %uz bytes",
                                     ctx->cluster->body_memory);
            return NGX_ERROR;
        }

        if (n && st_buf_append(&ctx->body, b->pos, n) != ST_OK) {
            goto nomem;
        }

        b->pos = b->last;
        ngx_free_chain(r->pool, cl);
    }

    return NGX_OK;

nomem:

    ngx_http_starling_refuse(ctx, NGX_HTTP_INTERNAL_SERVER_ERROR, NULL, NULL,
                             0, "out of memory");
    return NGX_ERROR;
}


static void
ngx_http_starling_received(ngx_http_starling_ctx_t *ctx)
{
    st_cluster                   *shared;
    ngx_connection_t             *c;
    st_cluster_metrics           *m;
    ngx_http_request_t           *r;
    ngx_http_starling_cluster_t  *cl;

    r = ctx->request;
    c = r->connection;
    cl = ctx->cluster;
    shared = cl->shared;
    m = st_cluster_get_metrics(shared);

    atomic_fetch_add_explicit(&m->requests, 1, memory_order_relaxed);

    ctx->received_ns = ngx_http_starling_now();
    ctx->slot = st_cluster_request_new(shared, cl->row, ctx->id, 0,
                                       ctx->received_ns);

    if (ctx->slot == NULL) {
        atomic_fetch_add_explicit(&m->rejected_full, 1, memory_order_relaxed);
        ngx_http_starling_refuse(ctx, NGX_HTTP_TOO_MANY_REQUESTS,
                                 "server_overloaded", NULL, 1,
                                 "Too many requests are in flight");
        return;
    }

    /*
     * From now on a client that leaves ends the request, at once. It may have
     * left while its body was read.
     */

    r->read_event_handler = ngx_http_test_reading;

    if ((c->read->ready || c->read->pending_eof)
#if (NGX_HTTP_V2)
        && r->stream == NULL
#endif
       )
    {
        ngx_post_event(c->read, &ngx_posted_events);
    }

    ngx_http_starling_tokens(ctx);
}


/* every end */

void
ngx_http_starling_count(ngx_http_starling_ctx_t *ctx)
{
    ngx_uint_t           status;
    st_request_slot     *slot;
    st_cluster_metrics  *m;

    if (ctx->counted || ctx->slot == NULL) {
        return;
    }

    ctx->counted = 1;
    slot = ctx->slot;
    m = st_cluster_get_metrics(ctx->cluster->shared);

    st_request_phase(slot, ST_PHASE_DONE, ngx_http_starling_now());

    if (ctx->first_ns) {
        st_histogram_add(&m->ttft, ctx->first_ns - ctx->received_ns);
    }

    atomic_fetch_add_explicit(&m->prompt_tokens, slot->prompt_tokens,
                              memory_order_relaxed);
    atomic_fetch_add_explicit(&m->matched_tokens, slot->matched_tokens,
                              memory_order_relaxed);
    atomic_fetch_add_explicit(&m->generated_tokens, slot->generated_tokens,
                              memory_order_relaxed);

    status = ctx->request->headers_out.status;

    if (ctx->failed_status >= 500 || status >= 500) {
        atomic_fetch_add_explicit(&m->engine_errors, 1, memory_order_relaxed);

    } else if (status >= 400) {
        atomic_fetch_add_explicit(&m->client_errors, 1, memory_order_relaxed);

    } else {
        atomic_fetch_add_explicit(&m->ok, 1, memory_order_relaxed);
    }
}


/* runs when the request ends, and at once when its client left */

static void
ngx_http_starling_cleanup(void *data)
{
    ngx_http_starling_ctx_t *ctx = data;

    st_cluster_metrics  *m;

    ctx->gone = 1;

    ngx_http_starling_end_legs(ctx);
    ngx_http_starling_wait_end(ctx);

    if (ctx->timer.timer_set) {
        ngx_del_timer(&ctx->timer);
    }

    ngx_http_starling_release(ctx, &ctx->prefill);
    ngx_http_starling_release(ctx, &ctx->decode);

    if (ctx->slot == NULL) {
        return;
    }

    if (!ctx->counted) {
        /* nobody said how it ended: its client left */
        m = st_cluster_get_metrics(ctx->cluster->shared);
        atomic_fetch_add_explicit(&m->client_left, 1, memory_order_relaxed);
        st_request_phase(ctx->slot, ST_PHASE_DONE, ngx_http_starling_now());
        ctx->counted = 1;
    }

    /* the log is written later */

    ngx_memcpy(&ctx->copy, ctx->slot, sizeof(st_request_slot));
    st_cluster_request_free(ctx->cluster->shared, ctx->slot);
    ctx->slot = &ctx->copy;
}


static void
ngx_http_starling_free(void *data)
{
    ngx_http_starling_ctx_t *ctx = data;

    st_relay_reply_free(ctx->reply);
    st_relay_request_free(ctx->relay);
    st_ids_free(&ctx->ids);
    st_buf_free(&ctx->ids_json);
    st_buf_free(&ctx->body);
    ctx->cluster->bodies -= ctx->accounted;
    st_buf_free(&ctx->prefill.body);
    st_buf_free(&ctx->prefill.answer);
    st_buf_free(&ctx->decode.body);
    st_buf_free(&ctx->decode.answer);
    st_buf_free(&ctx->kv_params);
    st_buf_free(&ctx->tail);
    st_buf_free(&ctx->out);
}


st_request_slot *
ngx_http_starling_slot(ngx_http_request_t *r)
{
    ngx_http_starling_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_starling_module);

    return ctx ? ctx->slot : NULL;
}
