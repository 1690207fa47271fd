/*
 * Active health checks, by the leader: what an engine says of itself goes
 * into its slot of the shared memory, where its KV events come from to the
 * event feed.
 *
 *   starling         GET /starling/engine     all in one
 *   vllm, sglang     GET /health, /metrics    up or not; load as gauges
 *   vllm, Mooncake   GET /query               at its bootstrap port: engine id
 */

#include "ngx_http_starling.h"
#include "ngx_http_starling_health.h"

#include "base/json_splice.h"


#define NGX_HTTP_STARLING_HEALTH_BODY   (4 * 1024 * 1024)
/* engines that are down are asked more often at first: they may just start */
#define NGX_HTTP_STARLING_HEALTH_RETRY  200


typedef enum {
    NGX_HTTP_STARLING_ASK_ENGINE,
    NGX_HTTP_STARLING_ASK_HEALTH,
    NGX_HTTP_STARLING_ASK_METRICS,
    NGX_HTTP_STARLING_ASK_QUERY
} ngx_http_starling_ask_e;


struct ngx_http_starling_health_s {
    ngx_http_starling_cluster_t  *cluster;
    ngx_http_starling_engine_t   *engine;
    ngx_http_starling_engine_t    bootstrap;   /* the same host, other port */
    ngx_event_t                   timer;
    ngx_http_starling_leg_t       leg;
    ngx_http_starling_ask_e       ask;
    unsigned                      asking:1;
    unsigned                      draining:1;
    st_buf                        body;
    ngx_uint_t                    failures;    /* in a row */
    ngx_msec_t                    retry;
    char                          followed[512];  /* endpoints in the feed */
    char                          engine_id[ST_NAME_MAX];
};


static void ngx_http_starling_health_timer(ngx_event_t *ev);
static void ngx_http_starling_health_ask(ngx_http_starling_health_t *h,
    ngx_http_starling_ask_e ask);
static ngx_int_t ngx_http_starling_health_body(ngx_http_starling_leg_t *leg,
    u_char *p, size_t n);
static void ngx_http_starling_health_done(ngx_http_starling_leg_t *leg,
    ngx_http_starling_leg_error_e error);
static void ngx_http_starling_health_up(ngx_http_starling_health_t *h);
static void ngx_http_starling_health_failed(ngx_http_starling_health_t *h,
    ngx_uint_t now, const char *why);


static const ngx_http_starling_leg_handlers_t
    ngx_http_starling_health_handlers =
{
    NULL,
    ngx_http_starling_health_body,
    NULL,
    ngx_http_starling_health_done
};


void
ngx_http_starling_health_start(ngx_http_starling_cluster_t *cl)
{
    ngx_uint_t                   i, n;
    ngx_http_starling_engine_t  *engine;
    ngx_http_starling_health_t  *h;

    n = cl->engines.nelts;
    engine = cl->engines.elts;

    cl->health = ngx_calloc(n * sizeof(ngx_http_starling_health_t),
                            ngx_cycle->log);
    if (cl->health == NULL) {
        ngx_log_error(NGX_LOG_ALERT, ngx_cycle->log, 0,
                      "starling_cluster \"%V\": no memory for health checks",
                      &cl->name);
        return;
    }

    for (i = 0; i < n; i++) {
        h = &cl->health[i];

        h->cluster = cl;
        h->engine = &engine[i];
        h->retry = NGX_HTTP_STARLING_HEALTH_RETRY;

        h->timer.handler = ngx_http_starling_health_timer;
        h->timer.data = h;
        h->timer.log = ngx_cycle->log;
        /* a worker that shuts down does not wait for it */
        h->timer.cancelable = 1;

        /* not from here: the worker is not in its event loop yet */
        ngx_add_timer(&h->timer, 1);
    }
}


void
ngx_http_starling_health_stop(ngx_http_starling_cluster_t *cl)
{
    ngx_uint_t                   i;
    ngx_http_starling_health_t  *h;

    if (cl->health == NULL) {
        return;
    }

    for (i = 0; i < cl->engines.nelts; i++) {
        h = &cl->health[i];

        if (h->timer.timer_set) {
            ngx_del_timer(&h->timer);
        }

        if (h->asking) {
            ngx_http_starling_leg_close(&h->leg);
        }

        st_buf_free(&h->body);
    }

    ngx_free(cl->health);
    cl->health = NULL;
}


/* asking */

/* until the breaker lets requests through again; 0: it does */

static ngx_msec_t
ngx_http_starling_health_pause(ngx_http_starling_health_t *h)
{
    uint64_t         now, open_until;
    st_engine_slot  *slot;

    slot = st_cluster_engine(h->cluster->shared, h->engine->id);
    now = ngx_http_starling_now();
    open_until = atomic_load(&slot->open_until_ns);

    return open_until > now ? (ngx_msec_t) ((open_until - now) / 1000000) + 1
                            : 0;
}


static void
ngx_http_starling_health_again(ngx_http_starling_health_t *h, ngx_msec_t msec)
{
    ngx_msec_t  pause;

    /* engines that were started together need not be asked together */

    msec += ngx_random() % (msec / 8 + 1);

    /* the first check after a breaker's pause decides: let it be soon */

    pause = ngx_http_starling_health_pause(h);

    ngx_add_timer(&h->timer, pause ? ngx_min(pause, msec) : msec);
}


void
ngx_http_starling_health_woken(ngx_http_starling_cluster_t *cl)
{
    ngx_uint_t                   i;
    ngx_msec_t                   pause;
    ngx_msec_int_t               left;
    ngx_http_starling_health_t  *h;

    for (i = 0; cl->health && i < cl->engines.nelts; i++) {
        h = &cl->health[i];

        /* who is being asked now has no timer: it is set when all is known */

        if (!h->timer.timer_set) {
            continue;
        }

        pause = ngx_http_starling_health_pause(h);
        left = (ngx_msec_int_t) (h->timer.timer.key - ngx_current_msec);

        if (pause && (ngx_msec_int_t) pause < left) {
            ngx_del_timer(&h->timer);
            ngx_add_timer(&h->timer, pause);
        }
    }
}


static void
ngx_http_starling_health_timer(ngx_event_t *ev)
{
    ngx_http_starling_health_t  *h;

    h = ev->data;

    if (ngx_exiting || !h->cluster->leader) {
        return;
    }

    if (ngx_http_starling_health_pause(h)
        || ngx_cycle->free_connection_n == 0)
    {
        /* our want of connections says nothing of the engine */
        ngx_http_starling_health_again(h, h->cluster->health_interval);
        return;
    }

    ngx_http_starling_health_ask(h, h->engine->kind == ST_KIND_STARLING
                                    ? NGX_HTTP_STARLING_ASK_ENGINE
                                    : NGX_HTTP_STARLING_ASK_HEALTH);
}


static void
ngx_http_starling_health_ask(ngx_http_starling_health_t *h,
    ngx_http_starling_ask_e ask)
{
    ngx_str_t                    none;
    ngx_http_starling_engine_t  *engine;
    static const char *const     paths[] = {
        "/starling/engine", "/health", "/metrics", "/query"
    };

    ngx_str_null(&none);

    engine = ask == NGX_HTTP_STARLING_ASK_QUERY ? &h->bootstrap : h->engine;
    h->ask = ask;
    h->asking = 1;
    st_buf_clear(&h->body);

    if (ngx_http_starling_leg_start(&h->leg, h->cluster, engine, "GET",
                                    paths[ask], &none, NULL,
                                    h->cluster->health_timeout,
                                    &ngx_http_starling_health_handlers, h,
                                    ngx_cycle->log)
        != NGX_OK)
    {
        h->asking = 0;

        /* what this worker lacks says nothing of the engine */

        if (h->leg.error == NGX_HTTP_STARLING_LEG_LOCAL) {
            ngx_http_starling_health_again(h, h->cluster->health_interval);

        } else {
            ngx_http_starling_health_failed(h, 1, "no connection");
        }
    }
}


/* where the bootstrap server is: the engine's host, its own port */

static ngx_int_t
ngx_http_starling_health_bootstrap(ngx_http_starling_health_t *h)
{
    ngx_uint_t   i;
    ngx_addr_t  *addrs;

    if (h->bootstrap.naddrs) {
        return NGX_OK;
    }

    addrs = ngx_pcalloc(ngx_cycle->pool,
                        h->engine->naddrs * sizeof(ngx_addr_t));
    if (addrs == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < h->engine->naddrs; i++) {
        addrs[i] = h->engine->addrs[i];
        addrs[i].sockaddr = ngx_pnalloc(ngx_cycle->pool, addrs[i].socklen);
        if (addrs[i].sockaddr == NULL) {
            return NGX_ERROR;
        }

        ngx_memcpy(addrs[i].sockaddr, h->engine->addrs[i].sockaddr,
                   addrs[i].socklen);
        ngx_inet_set_port(addrs[i].sockaddr, h->engine->bootstrap_port);
    }

    h->bootstrap = *h->engine;
    h->bootstrap.id = -1;
    h->bootstrap.addrs = addrs;
    h->bootstrap.naddrs = h->engine->naddrs;
    ngx_str_null(&h->bootstrap.api_key);

    return NGX_OK;
}


/* answers */

static ngx_int_t
ngx_http_starling_health_body(ngx_http_starling_leg_t *leg, u_char *p,
    size_t n)
{
    ngx_http_starling_health_t  *h;

    h = leg->data;

    if (h->body.len + n > NGX_HTTP_STARLING_HEALTH_BODY
        || st_buf_append(&h->body, p, n) != ST_OK)
    {
        h->asking = 0;
        ngx_http_starling_leg_close(leg);
        ngx_http_starling_health_failed(h, 0, "its answer is too long");
        return NGX_ERROR;
    }

    return NGX_OK;
}


static st_status
ngx_http_starling_health_apply_info(ngx_http_starling_health_t *h,
    st_engine_slot *slot, st_error *err)
{
    st_status                         s;
    ngx_http_starling_engine_says_t   says;

    s = ngx_http_starling_read_engine(h->body.data, h->body.len, &says, err);
    if (s != ST_OK) {
        return s;
    }

    atomic_store(&slot->reported_running, says.running);
    atomic_store(&slot->reported_waiting, says.waiting);
    atomic_store(&slot->kv_usage, says.kv_usage);
    atomic_store(&slot->kv_tokens, says.kv_tokens);
    atomic_store(&slot->block_size, says.block_size);
    atomic_store(&slot->max_model_len, says.max_model_len);
    atomic_store(&slot->kv_port, says.kv_port);

    ngx_http_starling_set_info(slot, says.engine_id, says.kv_host);

    h->draining = says.draining;
    ngx_http_starling_follow_engine(h->cluster, h->engine, slot, &says,
                                    h->engine_id, h->followed,
                                    sizeof(h->followed));

    return ST_OK;
}


static void
ngx_http_starling_health_apply_metrics(ngx_http_starling_health_t *h,
    st_engine_slot *slot)
{
    ngx_http_starling_gauges_t  gauges;

    ngx_http_starling_read_gauges(h->engine->kind,
                                  h->body.data ? h->body.data : "",
                                  h->body.len, &gauges);

    atomic_store(&slot->reported_running, gauges.running);
    atomic_store(&slot->reported_waiting, gauges.waiting);
    atomic_store(&slot->kv_usage, gauges.kv_usage);

    if (gauges.kv_tokens > 0) {
        atomic_store(&slot->kv_tokens, gauges.kv_tokens);
    }

    if (gauges.block_size > 0) {
        atomic_store(&slot->block_size, gauges.block_size);
    }
}


/* the next question, or NGX_DONE: all is known */

static ngx_int_t
ngx_http_starling_health_next(ngx_http_starling_health_t *h)
{
    if (h->ask == NGX_HTTP_STARLING_ASK_HEALTH) {
        ngx_http_starling_health_ask(h, NGX_HTTP_STARLING_ASK_METRICS);
        return NGX_OK;
    }

    if (h->ask == NGX_HTTP_STARLING_ASK_METRICS
        && h->engine->kind == ST_KIND_VLLM
        && h->engine->bootstrap_port
        && h->engine->role != ST_ROLE_DECODE
        && h->cluster->policy.mode == ST_MODE_PARALLEL
        && ngx_http_starling_health_bootstrap(h) == NGX_OK)
    {
        ngx_http_starling_health_ask(h, NGX_HTTP_STARLING_ASK_QUERY);
        return NGX_OK;
    }

    return NGX_DONE;
}


static void
ngx_http_starling_health_lost(ngx_http_starling_health_t *h,
    ngx_http_starling_leg_error_e error)
{
    char         text[64];
    const char  *why;

    switch (error) {

    case NGX_HTTP_STARLING_LEG_OK:
        snprintf(text, sizeof(text), "it answers with status %d",
                 h->leg.response.status);
        why = text;
        break;

    case NGX_HTTP_STARLING_LEG_CONNECT:
        why = "no connection";
        break;

    case NGX_HTTP_STARLING_LEG_TIMEOUT:
        why = "no answer";
        break;

    case NGX_HTTP_STARLING_LEG_GARBAGE:
        why = "its answer is not HTTP";
        break;

    default:
        why = "the connection was cut";
    }

    ngx_http_starling_health_failed(h, error == NGX_HTTP_STARLING_LEG_CONNECT,
                                    why);
}


static ngx_int_t
ngx_http_starling_health_apply_query(ngx_http_starling_health_t *h,
    st_engine_slot *slot)
{
    st_buf     id = ST_BUF_INIT;
    st_error   err;
    ngx_int_t  rc;

    rc = NGX_DECLINED;

    if (st_upstream_mooncake_engine_id(h->body.data ? h->body.data : "",
                                       h->body.len, 0, &id, &err)
        == ST_OK
        && id.len)
    {
        ngx_http_starling_set_info(slot, id.data, "");
        rc = NGX_OK;
    }

    st_buf_free(&id);

    return rc;
}


static void
ngx_http_starling_health_done(ngx_http_starling_leg_t *leg,
    ngx_http_starling_leg_error_e error)
{
    st_error                     err;
    ngx_uint_t                   ok;
    st_engine_slot              *slot;
    ngx_http_starling_health_t  *h;

    h = leg->data;
    h->asking = 0;

    if (error == NGX_HTTP_STARLING_LEG_LOCAL) {
        ngx_http_starling_health_again(h, h->cluster->health_interval);
        return;
    }

    ok = error == NGX_HTTP_STARLING_LEG_OK && leg->response.status == 200;
    slot = st_cluster_engine(h->cluster->shared, h->engine->id);

    if (!ok && (h->ask == NGX_HTTP_STARLING_ASK_ENGINE
                || h->ask == NGX_HTTP_STARLING_ASK_HEALTH))
    {
        ngx_http_starling_health_lost(h, error);
        return;
    }

    h->draining = 0;

    if (h->ask == NGX_HTTP_STARLING_ASK_ENGINE
        && ngx_http_starling_health_apply_info(h, slot, &err) != ST_OK)
    {
        ngx_http_starling_health_failed(h, 0, err.text);
        return;
    }

    if (h->ask == NGX_HTTP_STARLING_ASK_METRICS && ok) {
        ngx_http_starling_health_apply_metrics(h, slot);
    }

    if (h->ask == NGX_HTTP_STARLING_ASK_QUERY
        && (!ok || ngx_http_starling_health_apply_query(h, slot) != NGX_OK))
    {
        ngx_http_starling_health_failed(h, 0, "its bootstrap server does not "
                                        "tell its engine id");
        return;
    }

    if (ngx_http_starling_health_next(h) == NGX_DONE) {
        ngx_http_starling_health_up(h);
    }
}


/* results */

/*
 * Prompts are cut into blocks as long as those of the engine's events: what
 * they say is truer than what is configured, or than a gauge.
 */

static void
ngx_http_starling_health_block_size(ngx_http_starling_health_t *h,
    st_engine_slot *slot)
{
    int32_t                 size;
    st_event_source_state  *events;

    events = st_cluster_source_state(h->cluster->shared, slot->first_holder);
    size = h->engine->events.len ? atomic_load(&events->block_size) : 0;

    if (size > 0) {
        atomic_store(&slot->block_size, size);
    }
}


static void
ngx_http_starling_health_up(ngx_http_starling_health_t *h)
{
    st_engine_slot    *slot;
    st_engine_health   health;

    slot = st_cluster_engine(h->cluster->shared, h->engine->id);
    health = h->draining ? ST_HEALTH_DRAINING : ST_HEALTH_UP;

    if (atomic_load(&slot->health) != health) {
        ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                      "starling_cluster \"%V\": engine %V is %s",
                      &h->cluster->name, &h->engine->address,
                      h->draining ? "draining" : "up");
    }

    if (h->engine->kind != ST_KIND_STARLING) {
        ngx_http_starling_follow_configured(h->cluster, h->engine, slot,
                                            h->followed, sizeof(h->followed));
        ngx_http_starling_health_block_size(h, slot);
    }

    h->failures = 0;
    h->retry = NGX_HTTP_STARLING_HEALTH_RETRY;

    st_cluster_set_health(h->cluster->shared, h->engine->id, health,
                          ngx_http_starling_now());
    st_cluster_reap(h->cluster->shared);

    ngx_http_starling_health_again(h, h->cluster->health_interval);
}


/* now: one such failure is enough */

static void
ngx_http_starling_health_failed(ngx_http_starling_health_t *h, ngx_uint_t now,
    const char *why)
{
    st_engine_slot  *slot;

    slot = st_cluster_engine(h->cluster->shared, h->engine->id);
    h->failures++;

    if (now || h->failures >= h->cluster->health_failures) {

        if (atomic_load(&slot->health) != ST_HEALTH_DOWN) {
            ngx_log_error(NGX_LOG_WARN, ngx_cycle->log, 0,
                          "starling_cluster \"%V\": engine %V is down: %s",
                          &h->cluster->name, &h->engine->address, why);
        }

        if (now && h->followed[0]) {
            /* nobody listens there: what it had cached is gone */
            ngx_http_starling_follow_nothing(h->cluster, h->engine, slot);
            h->followed[0] = '\0';
        }

        st_cluster_set_health(h->cluster->shared, h->engine->id,
                              ST_HEALTH_DOWN, ngx_http_starling_now());
    }

    ngx_http_starling_health_again(h, h->retry);
    h->retry = ngx_min(h->retry * 2, h->cluster->health_interval);
}
