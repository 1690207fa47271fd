/*
 * A request's body becomes fields and ids: here for short ones, in nginx's
 * thread pool for long ones, so that a long prompt never holds up the others.
 */

#include "ngx_http_starling_ctx.h"


static void ngx_http_starling_tokens_work(void *data, ngx_log_t *log);
static void ngx_http_starling_tokens_event(ngx_event_t *ev);
static void ngx_http_starling_tokens_done(ngx_http_starling_ctx_t *ctx);


void
ngx_http_starling_tokens(ngx_http_starling_ctx_t *ctx)
{
    ngx_thread_task_t            *task;
    ngx_http_request_t           *r;
    ngx_http_starling_cluster_t  *cl;
    ngx_http_starling_ctx_t     **arg;

    r = ctx->request;
    cl = ctx->cluster;

    if (ctx->body.len > cl->thread_body_size && cl->thread_pool) {
        task = ngx_thread_task_alloc(r->pool, sizeof(ctx));

        if (task) {
            arg = task->ctx;
            *arg = ctx;
            task->handler = ngx_http_starling_tokens_work;
            task->event.data = ctx;
            task->event.handler = ngx_http_starling_tokens_event;

            if (ngx_thread_task_post(cl->thread_pool, task) == NGX_OK) {
                /* the request outlives its client until the task is done */
                r->main->blocked++;
                ctx->threaded = 1;
                return;
            }
        }
    }

    ngx_http_starling_tokens_work(&ctx, r->connection->log);
    ngx_http_starling_tokens_done(ctx);
}


/*
 * In any thread: touches what only this request owns, and what never changes.
 * Its result: ctx->error.http_status, or relay, model, ids, ids_json.
 */

static void
ngx_http_starling_tokens_work(void *data, ngx_log_t *log)
{
    ngx_http_starling_ctx_t    **arg = data;

    st_status                    rc;
    st_relay_request            *relay;
    ngx_http_starling_ctx_t     *ctx;
    ngx_http_starling_model_t   *model;
    ngx_http_starling_cluster_t *cl;

    ctx = *arg;
    cl = ctx->cluster;

    rc = st_relay_parse(ctx->kind, ctx->body.data ? ctx->body.data : "",
                        ctx->body.len, &ctx->relay, &ctx->error);
    if (rc != ST_OK) {
        goto failed;
    }

    relay = ctx->relay;

    if (relay->model.len) {
        model = ngx_http_starling_find_model(cl, relay->model.data,
                                             relay->model.len);
        if (model == NULL) {
            rc = st_api_fail(&ctx->error, 404, "model", "model_not_found",
                             "The model `%.200s` does not exist; GET /v1/models "
                             "lists those that do", relay->model.data);
            goto failed;
        }

    } else {
        model = cl->models.elts;
    }

    ctx->model = model;
    ctx->model_index = model - (ngx_http_starling_model_t *) cl->models.elts;

    relay->reasons = model->reasons;

    if (model->tok && !relay->text_only && relay->n_prompts <= 1
        && (relay->kind != ST_API_CHAT || model->tmpl))
    {
        rc = st_relay_tokenize(relay, &model->relay, time(NULL), &ctx->ids,
                               &ctx->error);
        if (rc != ST_OK) {
            goto failed;
        }

        rc = st_relay_ids_json(ctx->ids.data, ctx->ids.len, &ctx->ids_json);
        if (rc != ST_OK) {
            goto failed;
        }
    }

    ctx->tokenized_ns = ngx_http_starling_now();
    return;

failed:

    if (ctx->error.http_status == 0) {
        (void) st_api_fail(&ctx->error, 500, NULL, NULL, "%s",
                           st_status_name(rc));
    }
}


static void
ngx_http_starling_tokens_event(ngx_event_t *ev)
{
    ngx_connection_t         *c;
    ngx_http_request_t       *r;
    ngx_http_starling_ctx_t  *ctx;

    ctx = ev->data;
    r = ctx->request;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    r->main->blocked--;

    if (ctx->gone) {
        /* the client left meanwhile: what waited for us goes on */
        r->write_event_handler(r);

    } else {
        ngx_http_starling_tokens_done(ctx);
    }

    ngx_http_run_posted_requests(c);
}


static void
ngx_http_starling_tokens_done(ngx_http_starling_ctx_t *ctx)
{
    st_cluster_metrics  *m;

    if (ctx->error.http_status == 0 && ctx->model->pairs_only
        && ctx->relay->whole_only)
    {
        (void) st_api_fail(&ctx->error, 400, ctx->relay->whole_only, NULL,
                           "%s is given: the engines of this model compute "
                           "prompts apart from answers and cannot do that",
                           ctx->relay->whole_only);
    }

    if (ctx->error.http_status) {
        ngx_http_starling_refuse_api(ctx, &ctx->error);
        return;
    }

    m = st_cluster_get_metrics(ctx->cluster->shared);

    if (ctx->threaded) {
        atomic_fetch_add_explicit(&m->tokenize_threads, 1,
                                  memory_order_relaxed);

    } else {
        atomic_fetch_add_explicit(&m->tokenize_inline, 1,
                                  memory_order_relaxed);
    }

    ctx->slot->model = ctx->model_index;
    ctx->slot->stream = ctx->relay->stream;

    /* text for engines that tokenize themselves: four bytes to a token */
    ctx->route.prompt_tokens = ctx->ids.len ? (int64_t) ctx->ids.len
                                            : (int64_t) ctx->body.len / 4 + 1;
    ctx->route.max_tokens = ctx->relay->max_tokens;
    ctx->route.disaggregate = ctx->relay->whole_only == NULL
                              && (ctx->relay->n_prompts <= 1
                                  || ctx->model->pairs_only);
    ctx->route.sticky = -1;

    atomic_store_explicit(&ctx->slot->prompt_tokens,
                          (uint32_t) ctx->route.prompt_tokens,
                          memory_order_relaxed);
    st_request_phase(ctx->slot, ST_PHASE_TOKENIZED, ctx->tokenized_ns);

    ngx_http_starling_schedule(ctx);
}
