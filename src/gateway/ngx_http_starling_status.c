/*
 * /starling/status (JSON for people and tests), /starling/health (may traffic
 * be sent here?); /starling/metrics comes from ngx_http_starling_metrics.c.
 */

#include "ngx_http_starling.h"


/* in /starling/status, the oldest first met */
#define NGX_HTTP_STARLING_STATUS_REQUESTS  1000


static const char *const  ngx_http_starling_roles[] = {
    "", "prefill", "decode", "both"
};

static const char *const  ngx_http_starling_kinds[] = {
    "starling", "vllm", "sglang"
};

static const char *const  ngx_http_starling_healths[] = {
    "unknown", "up", "down", "draining"
};


static st_status
ngx_http_starling_json_text(st_buf *out, const char *key, const char *text)
{
    st_status  s;

    s = st_buf_printf(out, "\"%s\":", key);

    if (s == ST_OK) {
        s = st_buf_json_string(out, text, strlen(text));
    }

    return s == ST_OK ? st_buf_putc(out, ',') : s;
}


static const char *
ngx_http_starling_word(const char *const *words, ngx_uint_t n, ngx_uint_t i)
{
    return i < n ? words[i] : "?";
}


/* loads of all engines, by slot; the status handlers' own memory */

const st_load *
ngx_http_starling_loads(ngx_http_starling_cluster_t *cl)
{
    int32_t                 i, n;
    ngx_uint_t              m;
    static st_load          loads[ST_CLUSTER_MAX_ENGINES];
    static st_route_engine  view[ST_CLUSTER_MAX_ENGINES];

    ngx_memzero(loads, sizeof(loads));

    for (m = 0; m < cl->models.nelts; m++) {
        n = st_cluster_view(cl->shared, m, NULL, 0, view);

        for (i = 0; i < n; i++) {
            loads[view[i].id] = view[i].load;
        }
    }

    return loads;
}


static st_status
ngx_http_starling_status_events(st_buf *out, ngx_http_starling_cluster_t *cl,
    st_engine_slot *slot, const st_prefix_stats *stats)
{
    uint64_t                last;
    st_status               s;
    ngx_uint_t              i, holder;
    st_event_source_state  *e;

    s = st_buf_puts(out, "\"events\":[");

    for (i = 0; s == ST_OK && slot->publishes_events && i < slot->dp_size; i++)
    {
        holder = slot->first_holder + i;
        e = st_cluster_source_state(cl->shared, holder);
        last = atomic_load(&e->last_ns);

        s = st_buf_printf(out, "%s{\"rank\":%d,\"blocks\":%u,\"last_seq\":%lld,"
                          "\"batches\":%llu,\"events\":%llu,\"skipped\":%llu,"
                          "\"orphans\":%llu,\"gaps\":%llu,\"replayed\":%llu,"
                          "\"restarts\":%llu,\"last_ms_ago\":%lld}",
                          i ? "," : "", (int) i, stats->holder_blocks[holder],
                          (long long) atomic_load(&e->last_seq),
                          (unsigned long long) atomic_load(&e->batches),
                          (unsigned long long) atomic_load(&e->events),
                          (unsigned long long) atomic_load(&e->skipped),
                          (unsigned long long) atomic_load(&e->orphans),
                          (unsigned long long) atomic_load(&e->gaps),
                          (unsigned long long) atomic_load(&e->replayed),
                          (unsigned long long) atomic_load(&e->restarts),
                          last ? (long long) ((ngx_http_starling_now() - last)
                                              / 1000000)
                               : -1LL);
    }

    return s == ST_OK ? st_buf_putc(out, ']') : s;
}


static st_status
ngx_http_starling_status_models(st_buf *out, ngx_http_starling_cluster_t *cl,
    uint64_t models)
{
    st_status                   s;
    ngx_uint_t                  i, n;
    ngx_http_starling_model_t  *model;

    model = cl->models.elts;
    s = st_buf_puts(out, "\"models\":[");

    for (i = 0, n = 0; s == ST_OK && i < cl->models.nelts; i++) {
        if (models & (1ULL << i)) {
            s = n++ ? st_buf_putc(out, ',') : ST_OK;

            if (s == ST_OK) {
                s = st_buf_json_string(out, model[i].names[0],
                                       strlen(model[i].names[0]));
            }
        }
    }

    return s == ST_OK ? st_buf_puts(out, "],") : s;
}


static st_status
ngx_http_starling_status_numbers(st_buf *out, st_engine_slot *slot,
    const st_load *load)
{
    uint64_t   now, open_until;
    st_status  s;

    now = ngx_http_starling_now();
    open_until = atomic_load(&slot->open_until_ns);

    s = st_buf_printf(out, "\"load\":{\"requests\":%d,\"prefill_requests\":%d,"
                      "\"prefill_tokens\":%lld,\"decode_requests\":%d,"
                      "\"decode_tokens\":%lld},"
                      "\"reported\":{\"running\":%d,\"waiting\":%d,"
                      "\"kv_usage\":%.4f,\"kv_tokens\":%lld,"
                      "\"block_size\":%d,\"max_model_len\":%d},",
                      load->requests, load->prefill_requests,
                      (long long) load->prefill_tokens, load->decode_requests,
                      (long long) load->decode_tokens,
                      atomic_load(&slot->reported_running),
                      atomic_load(&slot->reported_waiting),
                      (double) atomic_load(&slot->kv_usage),
                      (long long) atomic_load(&slot->kv_tokens),
                      atomic_load(&slot->block_size),
                      atomic_load(&slot->max_model_len));
    if (s != ST_OK) {
        return s;
    }

    return st_buf_printf(out, "\"prefill_tokens_per_s\":%.1f,"
                         "\"decode_ms_per_token\":%.3f,"
                         "\"breaker_open_ms\":%llu,\"requests\":%llu,"
                         "\"broken\":%llu,\"busy\":%llu,\"retries_from\":%llu,",
                         (double) atomic_load(&slot->prefill_tokens_per_s),
                         (double) atomic_load(&slot->decode_ms_per_token),
                         open_until > now
                         ? (unsigned long long) (open_until - now) / 1000000
                         : 0ULL,
                         (unsigned long long) atomic_load(&slot->requests),
                         (unsigned long long) atomic_load(&slot->broken),
                         (unsigned long long) atomic_load(&slot->busy),
                         (unsigned long long) atomic_load(&slot->retries_from));
}


static st_status
ngx_http_starling_status_engine(st_buf *out, ngx_http_starling_cluster_t *cl,
    st_engine_slot *slot, const st_load *load, const st_prefix_stats *stats)
{
    st_status                        s;
    ngx_http_starling_engine_info_t  info;

    ngx_http_starling_get_info(slot, &info);

    s = st_buf_putc(out, '{');

    if (s == ST_OK) {
        s = ngx_http_starling_json_text(out, "address", slot->address);
    }

    if (s == ST_OK) {
        s = ngx_http_starling_json_text(out, "pool", slot->pool);
    }

    if (s == ST_OK) {
        s = ngx_http_starling_json_text(out, "engine_id", info.engine_id);
    }

    if (s == ST_OK) {
        s = st_buf_printf(out, "\"kind\":\"%s\",\"role\":\"%s\","
                          "\"health\":\"%s\",\"leaving\":%s,",
                          ngx_http_starling_word(ngx_http_starling_kinds, 3,
                                                 slot->kind),
                          ngx_http_starling_word(ngx_http_starling_roles, 4,
                                                 slot->role),
                          ngx_http_starling_word(ngx_http_starling_healths, 4,
                                                 atomic_load(&slot->health)),
                          atomic_load(&slot->state) == 2 ? "true" : "false");
    }

    if (s == ST_OK) {
        s = ngx_http_starling_status_models(out, cl, slot->models);
    }

    if (s == ST_OK) {
        s = ngx_http_starling_status_numbers(out, slot, load);
    }

    if (s == ST_OK) {
        s = ngx_http_starling_status_events(out, cl, slot, stats);
    }

    return s == ST_OK ? st_buf_putc(out, '}') : s;
}


static st_status
ngx_http_starling_status_engines(st_buf *out, ngx_http_starling_cluster_t *cl,
    const st_prefix_stats *stats)
{
    int32_t          i, n;
    st_status        s;
    const st_load   *loads;
    st_engine_slot  *slot;

    loads = ngx_http_starling_loads(cl);
    s = st_buf_puts(out, "\"engines\":[");

    for (i = 0, n = 0; s == ST_OK && i < ST_CLUSTER_MAX_ENGINES; i++) {
        slot = st_cluster_engine(cl->shared, i);

        if (slot == NULL || atomic_load(&slot->state) == 0) {
            continue;
        }

        s = n++ ? st_buf_putc(out, ',') : ST_OK;

        if (s == ST_OK) {
            s = ngx_http_starling_status_engine(out, cl, slot, &loads[i],
                                                stats);
        }
    }

    return s == ST_OK ? st_buf_puts(out, "],") : s;
}


static st_status
ngx_http_starling_status_request(st_buf *out, ngx_http_starling_cluster_t *cl,
    const st_request_slot *r)
{
    int32_t                     at;
    uint32_t                    phase;
    uint64_t                    now, received, since;
    st_status                   s;
    ngx_uint_t                  i;
    st_engine_slot             *engine;
    ngx_http_starling_model_t  *model;

    now = ngx_http_starling_now();
    phase = ngx_min(atomic_load(&r->phase), ST_PHASES - 1);
    received = atomic_load(&r->at_ns[ST_PHASE_RECEIVED]);
    since = atomic_load(&r->at_ns[phase]);
    model = cl->models.elts;

    s = st_buf_printf(out, "{\"id\":\"%016llx\",\"phase\":\"%s\","
                      "\"age_ms\":%llu,\"phase_ms\":%llu,\"stream\":%s,"
                      "\"prompt_tokens\":%u,\"matched_tokens\":%u,"
                      "\"generated_tokens\":%u,",
                      (unsigned long long) r->id, st_phase_names[phase],
                      received && now > received
                      ? (unsigned long long) (now - received) / 1000000 : 0ULL,
                      since && now > since
                      ? (unsigned long long) (now - since) / 1000000 : 0ULL,
                      r->stream ? "true" : "false",
                      atomic_load(&r->prompt_tokens),
                      atomic_load(&r->matched_tokens),
                      atomic_load(&r->generated_tokens));

    for (i = 0; s == ST_OK && i < 2; i++) {
        at = atomic_load(i ? &r->decode : &r->prefill);
        engine = at >= 0 ? st_cluster_engine(cl->shared, at) : NULL;

        if (engine) {
            s = ngx_http_starling_json_text(out, i ? "decode" : "prefill",
                                            engine->address);
        } else {
            s = st_buf_printf(out, "\"%s\":null,", i ? "decode" : "prefill");
        }
    }

    if (s == ST_OK) {
        s = st_buf_puts(out, "\"model\":");
    }

    if (s == ST_OK) {
        s = r->model < cl->models.nelts
            ? st_buf_json_string(out, model[r->model].names[0],
                                 strlen(model[r->model].names[0]))
            : st_buf_puts(out, "null");
    }

    return s == ST_OK ? st_buf_putc(out, '}') : s;
}


static st_status
ngx_http_starling_status_requests(st_buf *out, ngx_http_starling_cluster_t *cl)
{
    size_t                  i, n;
    st_status               s;
    const st_request_slot  *r;

    s = st_buf_puts(out, "\"requests\":[");

    for (i = 0, n = 0; s == ST_OK && n < NGX_HTTP_STARLING_STATUS_REQUESTS;
         i++)
    {
        r = st_cluster_request_at(cl->shared, i);

        if (r == NULL) {
            break;
        }

        if (atomic_load(&r->row_and_state) == 0) {
            continue;
        }

        s = n++ ? st_buf_putc(out, ',') : ST_OK;

        if (s == ST_OK) {
            s = ngx_http_starling_status_request(out, cl, r);
        }
    }

    return s == ST_OK ? st_buf_putc(out, ']') : s;
}


static st_status
ngx_http_starling_status_cluster(st_buf *out, ngx_http_starling_cluster_t *cl)
{
    st_status               s;
    st_cluster_counts       counts;
    static st_prefix_stats  stats;

    st_cluster_get_counts(cl->shared, &counts);
    st_prefix_get_stats(st_cluster_index(cl->shared), &stats);

    s = st_buf_puts(out, "{\"name\":");

    if (s == ST_OK) {
        s = st_buf_json_string(out, (char *) cl->name.data, cl->name.len);
    }

    if (s == ST_OK) {
        s = st_buf_printf(out, ",\"handoff\":\"%s\",\"workers\":%d,"
                          "\"in_flight\":%d,\"waiting\":%d,\"queue_size\":%d,",
                          cl->policy.mode == ST_MODE_PARALLEL ? "parallel"
                                                              : "sequential",
                          counts.workers, counts.in_flight, counts.waiting,
                          (int) cl->queue_size);
    }

    if (s == ST_OK) {
        s = st_buf_printf(out, "\"index\":{\"blocks\":%zu,\"capacity\":%zu,"
                          "\"holdings\":%zu,\"forgotten\":%llu,"
                          "\"bytes\":%zu},", stats.blocks, stats.capacity,
                          stats.holdings, (unsigned long long) stats.forgotten,
                          stats.bytes);
    }

    if (s == ST_OK) {
        s = ngx_http_starling_status_engines(out, cl, &stats);
    }

    if (s == ST_OK) {
        s = ngx_http_starling_status_requests(out, cl);
    }

    return s == ST_OK ? st_buf_putc(out, '}') : s;
}


static st_status
ngx_http_starling_status_all(st_buf *out, ngx_http_starling_main_conf_t *mcf)
{
    st_status                      s;
    ngx_uint_t                     i;
    ngx_http_starling_cluster_t  **cl;

    cl = mcf->clusters.elts;
    s = st_buf_puts(out, "{\"clusters\":[");

    for (i = 0; s == ST_OK && i < mcf->clusters.nelts; i++) {
        s = i ? st_buf_putc(out, ',') : ST_OK;

        if (s == ST_OK) {
            s = ngx_http_starling_status_cluster(out, cl[i]);
        }
    }

    return s == ST_OK ? st_buf_puts(out, "]}\n") : s;
}


/* health */

/* a model is served when somebody who decodes is up */

static ngx_uint_t
ngx_http_starling_served(ngx_http_starling_cluster_t *cl, ngx_uint_t model)
{
    ngx_uint_t                   i;
    st_engine_slot              *slot;
    ngx_http_starling_engine_t  *engine;

    engine = cl->engines.elts;

    for (i = 0; i < cl->engines.nelts; i++) {
        slot = st_cluster_engine(cl->shared, engine[i].id);

        if (engine[i].models & (1ULL << model)
            && engine[i].role & ST_ROLE_DECODE
            && atomic_load(&slot->health) == ST_HEALTH_UP)
        {
            return 1;
        }
    }

    return 0;
}


static st_status
ngx_http_starling_health_all(st_buf *out, ngx_http_starling_main_conf_t *mcf,
    ngx_uint_t *ready)
{
    st_status                      s;
    ngx_uint_t                     i, m;
    ngx_http_starling_model_t     *model;
    ngx_http_starling_cluster_t  **cl;

    *ready = 1;
    cl = mcf->clusters.elts;
    s = st_buf_puts(out, "{\"unserved\":[");

    for (i = 0; i < mcf->clusters.nelts; i++) {
        model = cl[i]->models.elts;

        for (m = 0; s == ST_OK && m < cl[i]->models.nelts; m++) {
            if (ngx_http_starling_served(cl[i], m)) {
                continue;
            }

            s = *ready ? ST_OK : st_buf_putc(out, ',');
            *ready = 0;

            if (s == ST_OK) {
                s = st_buf_json_string(out, model[m].names[0],
                                       strlen(model[m].names[0]));
            }
        }
    }

    return s == ST_OK ? st_buf_printf(out, "],\"status\":\"%s\"}\n",
                                      *ready ? "ready" : "unavailable")
                      : s;
}


/* the handler */

static ngx_uint_t
ngx_http_starling_from_here(ngx_http_request_t *r)
{
    u_char               *p;
    struct sockaddr_in   *sin;
    struct sockaddr_in6  *sin6;

    /* a proxy on this machine asks for somebody else */

    if (ngx_http_starling_find_header(r, "x-forwarded-for", 15)
        || ngx_http_starling_find_header(r, "forwarded", 9)
        || ngx_http_starling_find_header(r, "x-real-ip", 9))
    {
        return 0;
    }

    switch (r->connection->sockaddr->sa_family) {

    case AF_UNIX:
        return 1;

    case AF_INET:
        sin = (struct sockaddr_in *) r->connection->sockaddr;
        return ntohl(sin->sin_addr.s_addr) >> 24 == 127;

    case AF_INET6:
        sin6 = (struct sockaddr_in6 *) r->connection->sockaddr;
        p = sin6->sin6_addr.s6_addr;
        return IN6_IS_ADDR_LOOPBACK(&sin6->sin6_addr)
               || (IN6_IS_ADDR_V4MAPPED(&sin6->sin6_addr) && p[12] == 127);

    default:
        return 0;
    }
}


static void
ngx_http_starling_status_cleanup(void *data)
{
    st_buf_free(data);
}


static ngx_int_t
ngx_http_starling_status_send(ngx_http_request_t *r, ngx_uint_t status,
    ngx_str_t *type, st_buf *text)
{
    ngx_int_t     rc;
    ngx_buf_t    *b;
    ngx_chain_t   out;

    r->headers_out.status = status;
    r->headers_out.content_type = *type;
    r->headers_out.content_type_len = type->len;
    r->headers_out.content_length_n = text->len;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    b = ngx_calloc_buf(r->pool);
    if (b == NULL) {
        return NGX_ERROR;
    }

    b->pos = (u_char *) text->data;
    b->last = b->pos + text->len;
    b->memory = 1;
    b->last_buf = r == r->main;
    b->last_in_chain = 1;

    out.buf = b;
    out.next = NULL;

    return ngx_http_output_filter(r, &out);
}


static ngx_uint_t
ngx_http_starling_path_is(ngx_http_request_t *r, const char *name)
{
    size_t  n;

    n = ngx_strlen(name);

    return r->uri.len >= n
           && ngx_strncmp(r->uri.data + r->uri.len - n, name, n) == 0;
}


ngx_int_t
ngx_http_starling_status_handler(ngx_http_request_t *r)
{
    st_buf                         *text;
    ngx_int_t                       rc;
    st_status                       s;
    ngx_uint_t                      ready;
    ngx_pool_cleanup_t             *cln;
    ngx_http_starling_loc_conf_t   *lcf;
    ngx_http_starling_main_conf_t  *mcf;
    static ngx_str_t                json = ngx_string("application/json");
    static ngx_str_t                plain = ngx_string("text/plain; version="
                                                       "0.0.4; charset=utf-8");

    lcf = ngx_http_get_module_loc_conf(r, ngx_http_starling_module);
    mcf = ngx_http_get_module_main_conf(r, ngx_http_starling_module);

    r->disable_not_modified = 1;

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    if (!lcf->status_public && !ngx_http_starling_from_here(r)) {
        return ngx_http_starling_error(r, NGX_HTTP_FORBIDDEN, NULL, NULL, 0,
                                       "this page is for the gateway's own "
                                       "machine");
    }

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return ngx_http_starling_error(r, NGX_HTTP_NOT_ALLOWED, NULL, NULL, 0,
                                       "only GET is served here");
    }

    cln = ngx_pool_cleanup_add(r->pool, sizeof(st_buf));
    if (cln == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    text = cln->data;
    ngx_memzero(text, sizeof(st_buf));
    cln->handler = ngx_http_starling_status_cleanup;
    ready = 1;

    if (ngx_http_starling_path_is(r, "/status")) {
        s = ngx_http_starling_status_all(text, mcf);

    } else if (ngx_http_starling_path_is(r, "/health")) {
        s = ngx_http_starling_health_all(text, mcf, &ready);

    } else if (ngx_http_starling_path_is(r, "/metrics")) {
        s = ngx_http_starling_metrics(mcf, text);

    } else {
        return ngx_http_starling_error(r, NGX_HTTP_NOT_FOUND, NULL, NULL, 0,
                                       "expected /starling/status, "
                                       "/starling/health or "
                                       "/starling/metrics");
    }

    if (s != ST_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_starling_status_send(r, ready
                                            ? NGX_HTTP_OK
                                            : NGX_HTTP_SERVICE_UNAVAILABLE,
                              ngx_http_starling_path_is(r, "/metrics") ? &plain
                                                                       : &json,
                              text);
}
