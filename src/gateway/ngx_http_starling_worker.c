/*
 * The shared zone from one cycle to the next, and the life of a worker: its
 * row in the cluster, the descriptor that wakes it, leadership. The leader
 * follows the engines' KV events in a thread and asks after their health.
 */

#include "ngx_http_starling.h"

#include <malloc.h>

#include "base/clock.h"


/* events/prefix_index.h */
#define NGX_HTTP_STARLING_MAX_BLOCKS  ((size_t) (1 << 24) - 2)

/* fewer legs at once than these are not worth a look at the heap */
#define NGX_HTTP_STARLING_PEAK        256
#define NGX_HTTP_STARLING_TRIM_MSEC   500


static void ngx_http_starling_wake_handler(ngx_event_t *rev);
static void ngx_http_starling_wake_dummy(ngx_event_t *wev);
static void ngx_http_starling_lead(ngx_http_starling_cluster_t *cl);
static void ngx_http_starling_unlead(ngx_http_starling_cluster_t *cl);
static void ngx_http_starling_trim(ngx_event_t *ev);


/* legs under way, and the most since memory was last given back */
static ngx_int_t         ngx_http_starling_legs;
static ngx_int_t         ngx_http_starling_peak;
static ngx_event_t       ngx_http_starling_trim_event;
static ngx_connection_t  ngx_http_starling_trim_connection;


uint64_t
ngx_http_starling_now(void)
{
    return st_now_ns();
}


/* the zone */

/*
 * nginx keeps the head of its slab pool in the first page (the master unlocks
 * its mutex when a worker dies); the rest is ours.
 */

static u_char *
ngx_http_starling_zone_memory(ngx_shm_zone_t *zone, size_t *bytes)
{
    *bytes = zone->shm.size - ngx_pagesize;

    return zone->shm.addr + ngx_pagesize;
}


/*
 * How many blocks an index may have in so many bytes; a quarter is history.
 * More than it can have at most a larger zone does not give it.
 */

static size_t
ngx_http_starling_zone_blocks(st_cluster_spec *spec, size_t bytes)
{
    size_t  lo, hi, mid;

    lo = 0;
    hi = ngx_min(bytes / 16, NGX_HTTP_STARLING_MAX_BLOCKS + 1);

    while (hi - lo > 1) {
        mid = lo + (hi - lo) / 2;

        if (st_cluster_bytes(spec, mid, mid / 4) <= bytes) {
            lo = mid;
        } else {
            hi = mid;
        }
    }

    return lo;
}


static ngx_int_t
ngx_http_starling_specify(ngx_http_starling_cluster_t *cl,
    st_cluster_spec *spec, st_engine_spec *engines, ngx_pool_t *pool)
{
    u_char                      *p;
    ngx_uint_t                   i;
    ngx_http_starling_engine_t  *e;

    e = cl->engines.elts;

    for (i = 0; i < cl->engines.nelts; i++) {

        /* addresses are whole words of the configuration */

        p = ngx_pnalloc(pool, e[i].pool.len + 1);
        if (p == NULL) {
            return NGX_ERROR;
        }

        ngx_cpystrn(p, e[i].pool.data, e[i].pool.len + 1);

        engines[i] = (st_engine_spec) {
            .address = (char *) e[i].address.data,
            .pool = (char *) p,
            .kind = e[i].kind,
            .role = e[i].role,
            .dp_size = e[i].dp_size,
            .models = e[i].models,
            .max_requests = e[i].max_requests,
            .max_prefill_tokens = e[i].max_prefill_tokens,
            .publishes_events = e[i].events.len != 0
        };
    }

    *spec = (st_cluster_spec) {
        .name = (char *) cl->name.data,
        .engines = engines,
        .n_engines = cl->engines.nelts,
        .max_requests_in_flight = cl->max_in_flight,
        .queue_size = cl->queue_size
    };

    return NGX_OK;
}


static void
ngx_http_starling_free_handle(void *data)
{
    st_cluster_free(data);
}


/* data: the cycle's before, when it had a zone of this name and size */

ngx_int_t
ngx_http_starling_init_zone(ngx_shm_zone_t *zone, void *data)
{
    ngx_http_starling_cluster_t  *cl = zone->data;

    void                        *mem;
    size_t                       bytes, blocks;
    st_error                     err;
    st_status                    s;
    ngx_uint_t                   i;
    ngx_pool_t                  *pool;
    st_engine_slot              *slot;
    st_engine_spec              *engines;
    st_cluster_spec              spec;
    ngx_pool_cleanup_t          *cln;
    ngx_http_starling_engine_t  *e;

    pool = cl->engines.pool;
    mem = ngx_http_starling_zone_memory(zone, &bytes);
    engines = ngx_palloc(pool, cl->engines.nelts * sizeof(st_engine_spec));
    cln = ngx_pool_cleanup_add(pool, 0);

    if (engines == NULL || cln == NULL
        || ngx_http_starling_specify(cl, &spec, engines, pool) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (data) {
        s = st_cluster_reload(mem, bytes, &spec, &cl->shared, &err);

    } else {
        blocks = ngx_http_starling_zone_blocks(&spec, bytes);
        s = st_cluster_init(mem, bytes, blocks, blocks / 4, &spec,
                            &cl->shared, &err);
    }

    if (s != ST_OK) {
        ngx_log_error(NGX_LOG_EMERG, zone->shm.log, 0,
                      "starling_cluster \"%V\": zone \"%V\": %s",
                      &cl->name, &zone->shm.name, err.text);
        return NGX_ERROR;
    }

    cln->handler = ngx_http_starling_free_handle;
    cln->data = cl->shared;

    st_cluster_set_policy(cl->shared, &cl->policy, &cl->breaker);

    e = cl->engines.elts;

    for (i = 0; i < cl->engines.nelts; i++) {
        e[i].id = st_cluster_engine_find(cl->shared,
                                         (char *) e[i].address.data);

        if (e[i].id < 0) {
            ngx_log_error(NGX_LOG_EMERG, zone->shm.log, 0,
                          "starling_cluster \"%V\": no place for engine "
                          "\"%V\": engines that left the configuration still "
                          "have requests", &cl->name, &e[i].address);
            return NGX_ERROR;
        }

        slot = st_cluster_engine(cl->shared, e[i].id);
        atomic_store(&slot->bootstrap_port, e[i].bootstrap_port);

        if (atomic_load(&slot->block_size) == 0) {
            atomic_store(&slot->block_size, e[i].block_size);
        }
    }

    return NGX_OK;
}


void
ngx_http_starling_get_info(st_engine_slot *slot,
    ngx_http_starling_engine_info_t *info)
{
    uint32_t    version;
    ngx_uint_t  i;

    /* the leader may die in the middle of a change: do not wait for ever */

    for (i = 0; i < 1000; i++) {
        version = atomic_load_explicit(&slot->info_version,
                                       memory_order_acquire);

        ngx_memcpy(info->engine_id, slot->engine_id, ST_NAME_MAX);
        ngx_memcpy(info->kv_host, slot->kv_host, ST_NAME_MAX);

        atomic_thread_fence(memory_order_acquire);

        if (version % 2 == 0
            && version == atomic_load_explicit(&slot->info_version,
                                               memory_order_relaxed))
        {
            break;
        }
    }

    info->engine_id[ST_NAME_MAX - 1] = '\0';
    info->kv_host[ST_NAME_MAX - 1] = '\0';
}


/* workers */

static ngx_int_t
ngx_http_starling_open_wake(ngx_http_starling_cluster_t *cl, ngx_log_t *log)
{
    ngx_connection_t  *c;

    c = ngx_get_connection(cl->wake_fd, log);
    if (c == NULL) {
        return NGX_ERROR;
    }

    c->data = cl;
    c->read->log = log;
    c->write->log = log;
    c->read->handler = ngx_http_starling_wake_handler;
    c->write->handler = ngx_http_starling_wake_dummy;

    /*
     * nginx calls the read handlers of idle connections when a worker begins
     * to shut down gracefully: the only way to learn of it without asking
     * again and again.
     */
    c->idle = 1;

    cl->wake = c;

    return ngx_add_event(c->read, NGX_READ_EVENT,
                         ngx_event_flags & NGX_USE_CLEAR_EVENT
                         ? NGX_CLEAR_EVENT : NGX_LEVEL_EVENT);
}


static ngx_int_t
ngx_http_starling_enter(ngx_cycle_t *cycle, ngx_http_starling_cluster_t *cl)
{
    st_error                    err;
    ngx_uint_t                  i;
    ngx_http_starling_model_t  *model;

    if (st_cluster_enter(cl->shared, &cl->row, &cl->wake_fd, &err) != ST_OK) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                      "starling_cluster \"%V\": %s", &cl->name, err.text);
        return NGX_ERROR;
    }

    if (ngx_http_starling_open_wake(cl, cycle->log) != NGX_OK) {
        return NGX_ERROR;
    }

    cl->idle = ngx_palloc(cycle->pool,
                          ST_CLUSTER_MAX_ENGINES * sizeof(ngx_queue_t));
    if (cl->idle == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < ST_CLUSTER_MAX_ENGINES; i++) {
        ngx_queue_init(&cl->idle[i]);
    }

    model = cl->models.elts;

    for (i = 0; i < cl->models.nelts; i++) {
        if (model[i].tok == NULL || cl->token_cache_size == 0) {
            continue;
        }

        if (st_token_cache_new(model[i].tok,
                               cl->token_cache_size / cl->models.nelts,
                               &model[i].relay.cache)
            != ST_OK)
        {
            return NGX_ERROR;
        }
    }

    ngx_http_starling_lead(cl);

    return NGX_OK;
}


ngx_int_t
ngx_http_starling_init_worker(ngx_cycle_t *cycle)
{
    ngx_uint_t                      i;
    ngx_http_starling_cluster_t   **cl;
    ngx_http_starling_main_conf_t  *mcf;

    if (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE)
    {
        return NGX_OK;
    }

    mcf = ngx_http_cycle_get_module_main_conf(cycle,
                                              ngx_http_starling_module);
    if (mcf == NULL) {
        return NGX_OK;
    }

    cl = mcf->clusters.elts;

    for (i = 0; i < mcf->clusters.nelts; i++) {
        if (ngx_http_starling_enter(cycle, cl[i]) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static void
ngx_http_starling_leave(ngx_http_starling_cluster_t *cl)
{
    ngx_uint_t                  i;
    ngx_http_starling_model_t  *model;

    if (cl->row < 0) {
        return;
    }

    ngx_http_starling_unlead(cl);

    if (cl->wake) {
        /* the descriptor is the cluster's */
        if (cl->wake->read->active) {
            ngx_del_event(cl->wake->read, NGX_READ_EVENT, 0);
        }

        ngx_free_connection(cl->wake);
        cl->wake->fd = (ngx_socket_t) -1;
        cl->wake = NULL;
    }

    st_cluster_leave(cl->shared, cl->row);
    cl->row = -1;

    model = cl->models.elts;

    for (i = 0; i < cl->models.nelts; i++) {
        st_token_cache_free(model[i].relay.cache);
        model[i].relay.cache = NULL;
    }
}


void
ngx_http_starling_exit_worker(ngx_cycle_t *cycle)
{
    ngx_uint_t                      i;
    ngx_http_starling_cluster_t   **cl;
    ngx_http_starling_main_conf_t  *mcf;

    mcf = ngx_http_cycle_get_module_main_conf(cycle,
                                              ngx_http_starling_module);
    if (mcf == NULL) {
        return;
    }

    cl = mcf->clusters.elts;

    for (i = 0; i < mcf->clusters.nelts; i++) {
        ngx_http_starling_leave(cl[i]);
    }
}


/*
 * The descriptor is readable, or the worker begins to shut down: then it goes
 * on with what it has, but leads no more.
 */

static void
ngx_http_starling_wake_handler(ngx_event_t *rev)
{
    char                          buf[64];
    ssize_t                       n;
    ngx_connection_t             *c;
    ngx_http_starling_cluster_t  *cl;

    c = rev->data;
    cl = c->data;

    do {
        n = recv(c->fd, buf, sizeof(buf), MSG_DONTWAIT);
    } while (n >= 0 || ngx_socket_errno == NGX_EINTR);

    rev->ready = 0;

    if (c->close || ngx_exiting || ngx_terminate) {
        ngx_http_starling_unlead(cl);

    } else {
        ngx_http_starling_lead(cl);
    }

    ngx_http_starling_woken(cl);

    /* last: a wake from here on comes as a datagram of its own */

    if (cl->leader) {
        ngx_http_starling_health_woken(cl);
    }
}


static void
ngx_http_starling_wake_dummy(ngx_event_t *wev)
{
}


/*
 * malloc keeps what was freed below the end of the heap: a worker would stay
 * as large as at its highest peak. Whole free pages go back when the worker
 * has had nothing to do for a while: that takes 0.2 ms a megabyte, for which
 * requests under way would have to wait, wherever it is done.
 */

void
ngx_http_starling_load(ngx_int_t n)
{
    ngx_event_t  *ev;

    ev = &ngx_http_starling_trim_event;

    ngx_http_starling_legs += n;

    if (ngx_http_starling_legs > ngx_http_starling_peak) {
        ngx_http_starling_peak = ngx_http_starling_legs;
    }

    if (ngx_http_starling_legs || ev->timer_set
        || ngx_http_starling_peak < NGX_HTTP_STARLING_PEAK)
    {
        return;
    }

    ngx_http_starling_trim_connection.fd = (ngx_socket_t) -1;

    ev->handler = ngx_http_starling_trim;
    ev->data = &ngx_http_starling_trim_connection;
    ev->log = ngx_cycle->log;
    ev->cancelable = 1;

    ngx_add_timer(ev, NGX_HTTP_STARLING_TRIM_MSEC);
}


static void
ngx_http_starling_trim(ngx_event_t *ev)
{
    if (ngx_http_starling_legs == 0) {
        ngx_http_starling_peak = 0;
        (void) malloc_trim(0);
    }
}


/* leadership */

static void
ngx_http_starling_lead(ngx_http_starling_cluster_t *cl)
{
    st_error  err;

    if (cl->leader || !st_cluster_lead(cl->shared, cl->row)) {
        return;
    }

    cl->leader = 1;

    ngx_log_error(NGX_LOG_INFO, ngx_cycle->log, 0,
                  "starling_cluster \"%V\": this worker follows events and "
                  "asks after health", &cl->name);

    /* nobody else writes the index now */
    st_prefix_recover(st_cluster_index(cl->shared));
    st_cluster_clear_stale(cl->shared);

    if (st_event_feed_start(st_cluster_index(cl->shared), &cl->feed, &err)
        != ST_OK)
    {
        cl->feed = NULL;
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "starling_cluster \"%V\": KV events are not followed: "
                      "%s", &cl->name, err.text);
    }

    ngx_http_starling_health_start(cl);
}


static void
ngx_http_starling_unlead(ngx_http_starling_cluster_t *cl)
{
    if (!cl->leader) {
        return;
    }

    cl->leader = 0;

    ngx_http_starling_health_stop(cl);
    st_event_feed_stop(cl->feed);
    cl->feed = NULL;

    st_cluster_unlead(cl->shared, cl->row);
}
