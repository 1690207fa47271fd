/*
 * Where a request goes and when: the prefixes engines hold, the plan of
 * src/route, the claims that make it true, and the queue.
 */

#include "ngx_http_starling_ctx.h"


#define NGX_HTTP_STARLING_RACES            16

/* lengths of blocks that are told apart: more than engines come with */
#define NGX_HTTP_STARLING_GROUPS           9

/* what was sent to an engine is taken to be there for so long */
#define NGX_HTTP_STARLING_HISTORY_SECONDS  600


/* engines whose blocks have the same length */
typedef struct {
    int32_t                       size;       /* tokens */
    ngx_uint_t                    any;
    st_holder_set                 holders;
} ngx_http_starling_group_t;


static void ngx_http_starling_match(ngx_http_starling_ctx_t *ctx);
static st_route_answer ngx_http_starling_plan(ngx_http_starling_ctx_t *ctx);
static int32_t ngx_http_starling_view(ngx_http_starling_ctx_t *ctx,
    st_route_policy *policy);
static ngx_uint_t ngx_http_starling_needs_prefill(
    ngx_http_starling_cluster_t *cl, const st_route_engine *e);
static st_route_answer ngx_http_starling_choose(ngx_http_starling_ctx_t *ctx,
    const st_route_policy *policy, int32_t n);
static ngx_int_t ngx_http_starling_claim(ngx_http_starling_ctx_t *ctx,
    int32_t n);
static void ngx_http_starling_go(ngx_http_starling_ctx_t *ctx);
static void ngx_http_starling_wait(ngx_http_starling_ctx_t *ctx);
static void ngx_http_starling_deadline(ngx_event_t *ev);
static void ngx_http_starling_nobody(ngx_http_starling_ctx_t *ctx,
    st_route_answer why);


/* the event loop's: a decision is made without a break */
static st_route_engine  ngx_http_starling_engines[ST_CLUSTER_MAX_ENGINES];


void
ngx_http_starling_schedule(ngx_http_starling_ctx_t *ctx)
{
    uint64_t                      now;
    st_route_answer               answer;
    ngx_http_starling_cluster_t  *cl;

    cl = ctx->cluster;

    if (!ctx->matched) {
        ctx->matched = 1;
        ngx_http_starling_match(ctx);
        st_request_phase(ctx->slot, ST_PHASE_MATCHED, ngx_http_starling_now());
    }

    now = ngx_http_starling_now();
    st_request_phase(ctx->slot, ctx->decode_stage ? ST_PHASE_DECODE_WAITING
                                                  : ST_PHASE_PREFILL_WAITING,
                     now);

    /* who comes later queues up behind those who wait for the same */

    answer = ST_ROUTE_WAIT;

    if (!st_cluster_must_wait(cl->shared, ctx->model_index,
                              ctx->decode_stage ? ST_ROLE_DECODE
                                                : ST_ROLE_BOTH))
    {
        answer = ngx_http_starling_plan(ctx);
    }

    if (answer == ST_ROUTE_GO) {
        ngx_http_starling_go(ctx);
        return;
    }

    if (answer == ST_ROUTE_NOBODY && ctx->failed_busy) {
        /* all were asked and have too much to do: so the client is told */
        ngx_http_starling_give_up(ctx);
        return;
    }

    ctx->why = answer;
    ngx_http_starling_wait(ctx);
}


/* until an engine says another: as st_cluster_view has it */

static int32_t
ngx_http_starling_block_size(st_engine_slot *slot)
{
    int32_t  size;

    size = slot->publishes_events
           ? atomic_load_explicit(&slot->block_size, memory_order_relaxed) : 0;

    return size > 0 ? size : NGX_HTTP_STARLING_HISTORY_BLOCK;
}


/* engines by the length of their blocks; the first group: those without
   events */

static ngx_uint_t
ngx_http_starling_group(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_group_t *groups)
{
    int32_t                       size;
    ngx_uint_t                    i, j, k, h, n;
    st_engine_slot               *slot;
    ngx_http_starling_engine_t   *engine;
    ngx_http_starling_cluster_t  *cl;

    cl = ctx->cluster;
    engine = cl->engines.elts;

    ngx_memzero(groups, sizeof(ngx_http_starling_group_t));
    groups[0].size = NGX_HTTP_STARLING_HISTORY_BLOCK;
    n = 1;

    for (i = 0; i < cl->engines.nelts; i++) {
        if (engine[i].id < 0
            || !(engine[i].models & (UINT64_C(1) << ctx->model_index)))
        {
            continue;
        }

        slot = st_cluster_engine(cl->shared, engine[i].id);
        j = 0;

        if (slot->publishes_events) {
            size = ngx_http_starling_block_size(slot);

            for (j = 1; j < n && groups[j].size != size; j++) { /* void */ }

            if (j == NGX_HTTP_STARLING_GROUPS) {
                continue;
            }

            if (j == n) {
                ngx_memzero(&groups[n], sizeof(ngx_http_starling_group_t));
                groups[n++].size = size;
            }
        }

        for (h = 0; h < slot->dp_size; h++) {
            k = slot->first_holder + h;
            groups[j].holders.bits[k / 64] |= UINT64_C(1) << (k % 64);
            groups[j].any = 1;
        }
    }

    return n;
}


static ngx_int_t
ngx_http_starling_match_group(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_group_t *group, uint64_t root, ngx_uint_t history)
{
    size_t                       n;
    uint32_t                     found[ST_INDEX_MAX_HOLDERS];
    uint64_t                    *keys;
    ngx_uint_t                   h;
    static const st_holder_set   none;

    n = ctx->ids.len / group->size;

    if (n == 0 || !group->any) {
        return NGX_OK;
    }

    keys = ngx_palloc(ctx->request->pool, n * sizeof(uint64_t));
    if (keys == NULL) {
        return NGX_ERROR;
    }

    n = st_prefix_keys(root, ctx->ids.data, ctx->ids.len, group->size, keys);

    st_prefix_match(st_cluster_index(ctx->cluster->shared), keys, n,
                    history ? &none : &group->holders,
                    history ? &group->holders : &none,
                    ngx_http_starling_now(),
                    NGX_HTTP_STARLING_HISTORY_SECONDS * UINT64_C(1000000000),
                    found);

    for (h = 0; h < ST_INDEX_MAX_HOLDERS; h++) {
        if (found[h]) {
            ctx->depth[h] = found[h];
        }
    }

    if (history) {
        ctx->history = keys;
        ctx->nhistory = n;

    } else {
        ngx_pfree(ctx->request->pool, keys);
    }

    return NGX_OK;
}


/* depths of all holders, in blocks of each one's size */

static void
ngx_http_starling_match(ngx_http_starling_ctx_t *ctx)
{
    uint64_t                    root;
    ngx_str_t                  *name;
    ngx_uint_t                  i, n;
    ngx_http_starling_group_t   groups[NGX_HTTP_STARLING_GROUPS];

    ctx->depth = ngx_pcalloc(ctx->request->pool,
                             ST_INDEX_MAX_HOLDERS * sizeof(uint32_t));

    if (ctx->depth == NULL || ctx->ids.len == 0
        || ctx->cluster->policy.match_weight == 0)
    {
        return;
    }

    n = ngx_http_starling_group(ctx, groups);
    name = &ctx->model->name;
    root = st_prefix_root((char *) name->data, name->len, NULL, 0,
                          ctx->relay->cache_salt.data,
                          ctx->relay->cache_salt.len);

    for (i = 0; i < n; i++) {
        if (ngx_http_starling_match_group(ctx, &groups[i], root, i == 0)
            != NGX_OK)
        {
            return;
        }
    }
}


void
ngx_http_starling_note(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side)
{
    st_engine_slot  *slot;

    slot = st_cluster_engine(ctx->cluster->shared, side->engine->id);

    if (ctx->nhistory && !slot->publishes_events) {
        st_prefix_note(st_cluster_index(ctx->cluster->shared),
                       slot->first_holder + side->rank, ctx->history,
                       ctx->nhistory, ngx_http_starling_now());
    }
}


/* on ST_ROUTE_GO the plan's engines are claimed */

static st_route_answer
ngx_http_starling_plan(ngx_http_starling_ctx_t *ctx)
{
    int32_t              n;
    uint64_t             start;
    ngx_uint_t           i;
    st_route_answer      answer;
    st_route_policy      policy;
    st_cluster_metrics  *m;

    m = st_cluster_get_metrics(ctx->cluster->shared);
    start = ngx_http_starling_now();

    for (i = 0; i < NGX_HTTP_STARLING_RACES; i++) {
        n = ngx_http_starling_view(ctx, &policy);
        answer = ngx_http_starling_choose(ctx, &policy, n);

        if (answer == ST_ROUTE_NOBODY && ctx->excluding
            && !ctx->failed_busy)
        {
            /* who failed once is better than nobody */
            ngx_memzero(ctx->tried, sizeof(ctx->tried));
            ctx->excluding = 0;
            continue;
        }

        if (answer != ST_ROUTE_GO) {
            break;
        }

        if (ngx_http_starling_claim(ctx, n) == NGX_OK) {
            st_histogram_add(&m->decision, ngx_http_starling_now() - start);
            return ST_ROUTE_GO;
        }

        answer = ST_ROUTE_WAIT;
    }

    return answer;
}


static int32_t
ngx_http_starling_view(ngx_http_starling_ctx_t *ctx, st_route_policy *policy)
{
    int32_t                       i, n, id;
    st_route_engine              *e;
    ngx_http_starling_cluster_t  *cl;

    cl = ctx->cluster;
    e = ngx_http_starling_engines;
    *policy = cl->policy;

    n = st_cluster_view(cl->shared, ctx->model_index, ctx->depth,
                        NGX_HTTP_STARLING_HISTORY_BLOCK, e);

    for (i = 0; i < n; i++) {
        id = e[i].id;
        e[i].excluded = (ctx->tried[id / 64] >> (id % 64)) & 1;

        /* SGLang's pairs always work at the same time */

        if (st_cluster_engine(cl->shared, id)->kind == ST_KIND_SGLANG) {
            policy->mode = ST_MODE_PARALLEL;
        }

        if (ngx_http_starling_needs_prefill(cl, &e[i])) {
            policy->skip_prefill_tokens = 0;
            e[i].excluded |= !ctx->route.disaggregate;
        }
    }

    return n;
}


/* an SGLang server started for decoding refuses a request without its pair */

static ngx_uint_t
ngx_http_starling_needs_prefill(ngx_http_starling_cluster_t *cl,
    const st_route_engine *e)
{
    return e->role == ST_ROLE_DECODE
           && st_cluster_engine(cl->shared, e->id)->kind == ST_KIND_SGLANG;
}


static st_route_answer
ngx_http_starling_choose(ngx_http_starling_ctx_t *ctx,
    const st_route_policy *policy, int32_t n)
{
    bool             full;
    int32_t          i;
    st_route_answer  answer;

    if (!ctx->decode_stage) {
        answer = st_route_plan_request(policy, &ctx->route,
                                       ngx_http_starling_engines, n,
                                       &ctx->plan);

        for (i = 0; answer == ST_ROUTE_GO && ctx->plan.prefill < 0 && i < n;
             i++)
        {
            if (ngx_http_starling_engines[i].id == ctx->plan.decode
                && ngx_http_starling_needs_prefill(ctx->cluster,
                                                 &ngx_http_starling_engines[i]))
            {
                return ST_ROUTE_NOBODY;
            }
        }

        return answer;
    }

    full = false;
    i = st_route_decode(policy, &ctx->route, ngx_http_starling_engines, n,
                        &full);

    if (i < 0) {
        return full ? ST_ROUTE_WAIT : ST_ROUTE_NOBODY;
    }

    ctx->plan.decode = ngx_http_starling_engines[i].id;
    return ST_ROUTE_GO;
}


static ngx_int_t
ngx_http_starling_claim_one(ngx_http_starling_ctx_t *ctx, int32_t n,
    ngx_http_starling_side_t *side, int32_t id, const st_load *load)
{
    int32_t                       i;
    ngx_http_starling_cluster_t  *cl;

    cl = ctx->cluster;
    i = 0;

    while (i < n && ngx_http_starling_engines[i].id != id) {
        i++;
    }

    side->engine = ngx_http_starling_find_engine(cl, id);

    if (i == n || side->engine == NULL) {
        return NGX_DECLINED;
    }

    side->claim.engine = id;
    side->claim.load = *load;
    side->ahead = ngx_http_starling_engines[i].load.prefill_tokens;

    if (!st_cluster_claim(cl->shared, cl->row, &ngx_http_starling_engines[i],
                          &side->claim))
    {
        side->claim.engine = -1;
        return NGX_DECLINED;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_starling_claim(ngx_http_starling_ctx_t *ctx, int32_t n)
{
    st_load         load;
    st_route_plan  *plan;

    plan = &ctx->plan;

    if (!ctx->decode_stage && plan->prefill >= 0) {
        ngx_memzero(&load, sizeof(load));
        load.requests = 1;
        load.prefill_requests = 1;
        load.prefill_tokens = plan->prefill_tokens;

        if (ngx_http_starling_claim_one(ctx, n, &ctx->prefill, plan->prefill,
                                        &load)
            != NGX_OK)
        {
            return NGX_DECLINED;
        }
    }

    if (plan->decode >= 0) {
        ngx_memzero(&load, sizeof(load));
        load.requests = 1;
        load.decode_requests = 1;
        load.decode_tokens = ctx->route.prompt_tokens;

        if (plan->prefill < 0) {
            load.prefill_requests = 1;
            load.prefill_tokens = plan->prefill_tokens;
        }

        if (ngx_http_starling_claim_one(ctx, n, &ctx->decode, plan->decode,
                                        &load)
            != NGX_OK)
        {
            if (!ctx->decode_stage) {
                ngx_http_starling_release(ctx, &ctx->prefill);
            }

            return NGX_DECLINED;
        }
    }

    return NGX_OK;
}


void
ngx_http_starling_release(ngx_http_starling_ctx_t *ctx,
    ngx_http_starling_side_t *side)
{
    if (side->claim.engine >= 0) {
        st_cluster_release(ctx->cluster->shared, ctx->cluster->row,
                           &side->claim, ngx_http_starling_now());
        side->claim.engine = -1;
    }
}


/* the plan is claimed */

static void
ngx_http_starling_go(ngx_http_starling_ctx_t *ctx)
{
    int32_t           id;
    uint32_t          matched;
    ngx_uint_t        h;
    st_engine_slot   *slot;
    st_request_slot  *s;

    s = ctx->slot;

    if (ctx->decode_stage) {
        atomic_store_explicit(&s->decode, ctx->plan.decode,
                              memory_order_relaxed);
        st_request_phase(s, ST_PHASE_DECODE_SCHEDULED, ngx_http_starling_now());
        ngx_http_starling_decode(ctx);
        return;
    }

    st_request_phase(s, ST_PHASE_PREFILL_SCHEDULED, ngx_http_starling_now());

    atomic_store_explicit(&s->prefill, ctx->plan.prefill,
                          memory_order_relaxed);
    atomic_store_explicit(&s->decode, ctx->plan.decode, memory_order_relaxed);

    /* what the engine that computes the prompt need not compute */

    id = ctx->plan.prefill >= 0 ? ctx->plan.prefill : ctx->plan.decode;
    matched = 0;

    if (ctx->depth) {
        slot = st_cluster_engine(ctx->cluster->shared, id);

        for (h = slot->first_holder; h < (ngx_uint_t) slot->first_holder
                                         + slot->dp_size; h++)
        {
            matched = ngx_max(matched, ctx->depth[h]);
        }

        matched *= ngx_http_starling_block_size(slot);
    }

    atomic_store_explicit(&s->matched_tokens, matched, memory_order_relaxed);

    if (ngx_http_starling_handoff(ctx) == NGX_DECLINED) {
        ngx_http_starling_release(ctx, &ctx->prefill);
        ngx_http_starling_release(ctx, &ctx->decode);
        ctx->route.disaggregate = false;
        ngx_http_starling_schedule(ctx);
    }
}


/* the queue */

static void
ngx_http_starling_wait(ngx_http_starling_ctx_t *ctx)
{
    int32_t                       n;
    st_wait                       w;
    uint64_t                      now;
    st_status                     rc;
    st_route_policy               policy;
    st_cluster_metrics           *m;
    ngx_http_starling_cluster_t  *cl;

    cl = ctx->cluster;
    now = ngx_http_starling_now();

    n = ngx_http_starling_view(ctx, &policy);

    if (ctx->since_ns == 0) {
        ctx->since_ns = now;
    }

    st_wait_from_view(&w, ctx->model_index,
                      ctx->decode_stage ? ST_ROLE_DECODE : ST_ROLE_BOTH,
                      &ctx->route, ngx_http_starling_engines, n,
                      ctx->relay->priority, ctx->since_ns,
                      now + (uint64_t) cl->queue_timeout * 1000000);

    /* set before: the queue may choose it at once */

    ctx->waiting = 1;
    rc = st_cluster_wait(cl->shared, cl->row, &w, ctx, &ctx->ticket, now);

    if (rc != ST_OK) {
        ctx->waiting = 0;
        m = st_cluster_get_metrics(cl->shared);
        atomic_fetch_add_explicit(&m->rejected_full, 1, memory_order_relaxed);
        ngx_http_starling_refuse(ctx, NGX_HTTP_TOO_MANY_REQUESTS,
                                 "server_overloaded", NULL, 1,
                                 "All engines are busy and the queue is full");
        return;
    }

    ctx->timer.handler = ngx_http_starling_deadline;
    ctx->timer.data = ctx;
    ctx->timer.log = ctx->request->connection->log;
    ngx_add_timer(&ctx->timer, cl->queue_timeout);
}


void
ngx_http_starling_wait_end(ngx_http_starling_ctx_t *ctx)
{
    if (!ctx->waiting) {
        return;
    }

    ctx->waiting = 0;

    if (ctx->timer.timer_set) {
        ngx_del_timer(&ctx->timer);
    }

    st_cluster_wait_end(ctx->cluster->shared, ctx->cluster->row, ctx->ticket,
                        ngx_http_starling_now());
}


void
ngx_http_starling_woken(ngx_http_starling_cluster_t *cl)
{
    void                     *user;
    uint32_t                  ticket;
    ngx_connection_t         *c;
    st_route_answer           answer;
    ngx_http_request_t       *r;
    ngx_http_starling_ctx_t  *ctx;

    while (st_cluster_woken(cl->shared, cl->row, &ticket, &user)) {
        ctx = user;
        r = ctx->request;
        c = r->connection;
        ngx_http_set_log_request(c->log, r);

        answer = ngx_http_starling_plan(ctx);

        if (answer == ST_ROUTE_GO) {
            ngx_http_starling_wait_end(ctx);
            ngx_http_starling_go(ctx);

        } else {
            ctx->why = answer;
            st_cluster_wait_again(cl->shared, cl->row, ticket);
        }

        ngx_http_run_posted_requests(c);
    }
}


static void
ngx_http_starling_deadline(ngx_event_t *ev)
{
    ngx_connection_t         *c;
    ngx_http_starling_ctx_t  *ctx;

    ctx = ev->data;
    c = ctx->request->connection;
    ngx_http_set_log_request(c->log, ctx->request);

    ngx_http_starling_wait_end(ctx);
    ngx_http_starling_nobody(ctx, ctx->why);

    ngx_http_run_posted_requests(c);
}


/* it waited as long as it may */

static void
ngx_http_starling_nobody(ngx_http_starling_ctx_t *ctx, st_route_answer why)
{
    ngx_uint_t           wait;
    st_cluster_metrics  *m;

    m = st_cluster_get_metrics(ctx->cluster->shared);
    atomic_fetch_add_explicit(&m->rejected_deadline, 1, memory_order_relaxed);

    ngx_http_starling_release(ctx, &ctx->prefill);
    wait = ctx->retry_after > 0 ? (ngx_uint_t) ctx->retry_after : 1;

    if (why == ST_ROUTE_NOBODY) {
        ngx_http_starling_refuse(ctx, NGX_HTTP_SERVICE_UNAVAILABLE,
                                 "no_engine", NULL, wait,
                                 "No engine is ready for this model");
        return;
    }

    ngx_http_starling_refuse(ctx, NGX_HTTP_TOO_MANY_REQUESTS,
                             "server_overloaded", NULL, wait,
                             "All engines are busy: the request waited %M ms",
                             ctx->cluster->queue_timeout);
}
