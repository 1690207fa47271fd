/*
 * Pools and engines of a starling_cluster block, and what must be true of them
 * all together.
 */

#include "ngx_http_starling.h"


/* what vLLM and SGLang use when nothing else is said */
#define NGX_HTTP_STARLING_BOOTSTRAP_PORT  8998
#define NGX_HTTP_STARLING_EVENTS_PORT     "5557"


static const char *const  ngx_http_starling_kinds[] = {
    "starling", "vllm", "sglang"
};


/* pools */

char *
ngx_http_starling_pool_block(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_starling_main_conf_t  *mcf = conf;

    char                         *rv;
    ngx_str_t                    *value;
    ngx_uint_t                    i, before;
    ngx_conf_t                    save;
    ngx_http_starling_engine_t    pool, *engine;
    ngx_http_starling_cluster_t  *cl;

    cl = mcf->cluster;
    value = cf->args->elts;
    before = cl->engines.nelts;
    engine = cl->engines.elts;

    if (value[1].len == 0 || value[1].len >= ST_NAME_MAX) {
        return "has a name that is empty or longer than 95 bytes";
    }

    for (i = 0; i < before; i++) {
        if (engine[i].pool.len == value[1].len
            && ngx_strncmp(engine[i].pool.data, value[1].data, value[1].len)
               == 0)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "there is a pool \"%V\" already", &value[1]);
            return NGX_CONF_ERROR;
        }
    }

    ngx_memzero(&pool, sizeof(ngx_http_starling_engine_t));
    pool.pool = value[1];
    pool.kind = ST_KIND_STARLING;
    pool.dp_size = 1;
    pool.id = -1;

    save = *cf;
    mcf->pool = &pool;
    cf->cmd_type = cmd->offset;

    rv = ngx_conf_parse(cf, NULL);

    mcf->pool = NULL;
    *cf = save;

    if (rv != NGX_CONF_OK) {
        return rv;
    }

    if (cl->engines.nelts == before) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "pool \"%V\" has no engine", &pool.pool);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* "role" and "kind": what the pool's engines are; they stand above these */

char *
ngx_http_starling_pool_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    ngx_http_starling_main_conf_t  *mcf = conf;

    ngx_str_t                    *value;
    ngx_uint_t                    i, n, is_role;
    ngx_http_starling_engine_t   *pool, *engine;
    static const char *const      roles[] = { "prefill", "decode", "both" };
    const char *const            *names;

    pool = mcf->pool;
    value = cf->args->elts;
    is_role = cmd->name.data[0] == 'r';
    names = is_role ? roles : ngx_http_starling_kinds;

    n = mcf->cluster->engines.nelts;
    engine = mcf->cluster->engines.elts;

    if (n && engine[n - 1].pool.data == pool->pool.data) {
        return "must stand above the pool's engines";
    }

    if (is_role && pool->role) {
        return "is duplicate";
    }

    for (i = 0; i < 3; i++) {
        if (ngx_strcmp(value[1].data, names[i]) == 0) {
            break;
        }
    }

    if (i == 3) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\": \"%V\": expected \"%s\", \"%s\" or \"%s\"",
                           &value[0], &value[1], names[0], names[1], names[2]);
        return NGX_CONF_ERROR;
    }

    if (is_role) {
        pool->role = i + 1;

    } else {
        pool->kind = i;
    }

    return NGX_CONF_OK;
}


/* engines */

ngx_http_starling_engine_t *
ngx_http_starling_find_engine(ngx_http_starling_cluster_t *cl, int32_t id)
{
    ngx_uint_t                   i;
    ngx_http_starling_engine_t  *engine;

    engine = cl->engines.elts;

    for (i = 0; i < cl->engines.nelts; i++) {
        if (engine[i].id == id) {
            return &engine[i];
        }
    }

    return NULL;
}


static ngx_int_t
ngx_http_starling_engine_address(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl, ngx_http_starling_engine_t *engine,
    ngx_str_t *address)
{
    u_char                      *colon;
    ngx_url_t                    u;
    ngx_uint_t                   i;
    ngx_http_starling_engine_t  *other;

    if (address->len == 0 || address->len >= ST_ADDRESS_MAX) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"engine\": an address of %uz bytes: expected 1 "
                           "to %d", address->len, ST_ADDRESS_MAX - 1);
        return NGX_ERROR;
    }

    other = cl->engines.elts;

    for (i = 0; i < cl->engines.nelts; i++) {
        if (other[i].address.len == address->len
            && ngx_strncmp(other[i].address.data, address->data, address->len)
               == 0)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "there is an engine \"%V\" already, in pool "
                               "\"%V\"", address, &other[i].pool);
            return NGX_ERROR;
        }
    }

    ngx_memzero(&u, sizeof(ngx_url_t));
    u.url = *address;

    if (ngx_strnstr(address->data, "://", address->len)) {
        u.err = "no scheme";

    } else if (ngx_parse_url(cf->pool, &u) == NGX_OK && u.no_port) {
        u.err = "no port";
    }

    if (u.err) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"engine\": \"%V\": %s; expected HOST:PORT, "
                           "[IPv6]:PORT or unix:PATH", address, u.err);
        return NGX_ERROR;
    }

    engine->address = *address;
    engine->addrs = u.addrs;
    engine->naddrs = u.naddrs;

    if (ngx_strncmp(address->data, "unix:", 5) == 0) {
        ngx_str_set(&engine->host, "localhost");

    } else {
        colon = (u_char *) strrchr((char *) address->data, ':');
        engine->host.data = address->data;
        engine->host.len = colon - address->data;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_starling_engine_models(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl, ngx_http_starling_engine_t *engine,
    ngx_str_t *list)
{
    u_char                     *p, *last, *end;
    ngx_str_t                   name;
    ngx_http_starling_model_t  *model;

    if (list->len == 0) {
        return NGX_OK;
    }

    last = list->data + list->len;

    for (p = list->data; p <= last; p = end + 1) {
        end = ngx_strlchr(p, last, ',');
        end = end ? end : last;

        model = ngx_http_starling_find_model(cl, (char *) p, end - p);

        if (model == NULL) {
            name.data = p;
            name.len = end - p;
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"engine\": \"models=%V\": there is no model "
                               "\"%V\" above this line", list, &name);
            return NGX_ERROR;
        }

        engine->models |= 1ULL
                     << (model - (ngx_http_starling_model_t *) cl->models.elts);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_starling_check_endpoint(ngx_conf_t *cf, const char *what,
    ngx_str_t *value)
{
    u_char     *colon;
    ngx_int_t   port;

    if (value->len > 6 && value->len < 256
        && (ngx_strncmp(value->data, "ipc://", 6) == 0))
    {
        return NGX_OK;
    }

    if (value->len > 6 && value->len < 256
        && ngx_strncmp(value->data, "tcp://", 6) == 0)
    {
        colon = (u_char *) strrchr((char *) value->data + 6, ':');

        if (colon > value->data + 6) {
            port = ngx_atoi(colon + 1,
                            value->data + value->len - colon - 1);

            if (port >= 1 && port <= 65535) {
                return NGX_OK;
            }
        }
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "\"engine\": \"%s=%V\": expected %stcp://HOST:PORT or "
                       "ipc://PATH", what, value,
                       what[0] == 'e' ? "auto, off, " : "");
    return NGX_ERROR;
}


/* sets events to "auto", an endpoint, or nothing */

static ngx_int_t
ngx_http_starling_engine_events(ngx_conf_t *cf,
    ngx_http_starling_engine_t *engine)
{
    u_char      *p;
    ngx_str_t   *events;
    ngx_uint_t   is_auto, is_off;

    events = &engine->events;

    is_off = events->len == 3 && ngx_strncmp(events->data, "off", 3) == 0;
    is_auto = events->len == 4 && ngx_strncmp(events->data, "auto", 4) == 0;

    if (events->len == 0 && engine->kind == ST_KIND_STARLING) {
        ngx_str_set(events, "auto");
        is_auto = 1;
    }

    if (is_off || events->len == 0) {
        events->len = 0;

        if (engine->replay.len) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"engine\": \"replay=%V\" without \"events=\"",
                               &engine->replay);
            return NGX_ERROR;
        }

        return NGX_OK;
    }

    if (is_auto && engine->kind != ST_KIND_STARLING) {

        if (ngx_strncmp(engine->address.data, "unix:", 5) == 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"engine\": \"events=auto\" with a unix "
                               "socket: expected tcp://HOST:PORT");
            return NGX_ERROR;
        }

        p = ngx_pnalloc(cf->pool, engine->host.len + 16);
        if (p == NULL) {
            return NGX_ERROR;
        }

        events->data = p;
        events->len = ngx_sprintf(p, "tcp://%V:" NGX_HTTP_STARLING_EVENTS_PORT,
                                  &engine->host)
                      - p;
        is_auto = 0;
    }

    if (is_auto && engine->replay.len) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"engine\": \"replay=%V\" with \"events=auto\": "
                           "the engine says it itself", &engine->replay);
        return NGX_ERROR;
    }

    if (!is_auto
        && ngx_http_starling_check_endpoint(cf, "events", events) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (engine->replay.len
        && ngx_http_starling_check_endpoint(cf, "replay", &engine->replay)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


char *
ngx_http_starling_engine_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    ngx_http_starling_main_conf_t  *mcf = conf;

    ngx_int_t                     dp, bootstrap, block;
    ngx_str_t                    *value, models;
    ngx_http_starling_engine_t    engine, *slot;
    ngx_http_starling_cluster_t  *cl;

    cl = mcf->cluster;
    value = cf->args->elts;
    engine = *mcf->pool;

    if (engine.role == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "pool \"%V\" has no \"role\" above its engines",
                           &engine.pool);
        return NGX_CONF_ERROR;
    }

    if (cl->engines.nelts == ST_CLUSTER_MAX_ENGINES) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "more than %d engines in a cluster",
                           ST_CLUSTER_MAX_ENGINES);
        return NGX_CONF_ERROR;
    }

    dp = 1;
    bootstrap = 0;
    block = engine.kind == ST_KIND_SGLANG ? 1 : 16;
    ngx_str_null(&models);

    ngx_http_starling_param_t  params[] = {
        { "models", NGX_HTTP_STARLING_STRING, &models, 0, 0 },
        { "max_requests", NGX_HTTP_STARLING_INT, &engine.max_requests, 1,
          1e6 },
        { "max_prefill_tokens", NGX_HTTP_STARLING_INT64,
          &engine.max_prefill_tokens, 1, 1e12 },
        { "dp", NGX_HTTP_STARLING_INT, &dp, 1, ST_INDEX_MAX_HOLDERS },
        { "block_size", NGX_HTTP_STARLING_INT, &block, 1, 4096 },
        { "events", NGX_HTTP_STARLING_STRING, &engine.events, 0, 0 },
        { "replay", NGX_HTTP_STARLING_STRING, &engine.replay, 0, 0 },
        { "bootstrap_port", NGX_HTTP_STARLING_INT, &bootstrap, 1, 65535 },
        { "api_key", NGX_HTTP_STARLING_STRING, &engine.api_key, 0, 0 }
    };

    if (ngx_http_starling_engine_address(cf, cl, &engine, &value[1]) != NGX_OK
        || ngx_http_starling_params(cf, 2, params, 9) != NGX_OK
        || ngx_http_starling_engine_models(cf, cl, &engine, &models) != NGX_OK
        || ngx_http_starling_engine_events(cf, &engine) != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    engine.dp_size = dp;
    engine.block_size = block;
    engine.bootstrap_port = bootstrap;

    slot = ngx_array_push(&cl->engines);
    if (slot == NULL) {
        return NGX_CONF_ERROR;
    }

    *slot = engine;

    return NGX_CONF_OK;
}


/* the whole */

/*
 * KV goes from one engine to another only where both speak the same
 * protocol: all the engines of a model that has prefill engines are of one
 * kind.
 */

static ngx_int_t
ngx_http_starling_check_model(ngx_conf_t *cf, ngx_http_starling_cluster_t *cl,
    ngx_uint_t m)
{
    ngx_uint_t                   i, roles;
    ngx_http_starling_model_t   *model;
    ngx_http_starling_engine_t  *engine, *first;

    model = (ngx_http_starling_model_t *) cl->models.elts + m;
    engine = cl->engines.elts;
    roles = 0;
    first = NULL;

    for (i = 0; i < cl->engines.nelts; i++) {
        if (engine[i].models & (1ULL << m)) {
            roles |= 1 << engine[i].role;
            first = first ? first : &engine[i];
        }
    }

    if (roles == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "no engine serves model \"%V\"", &model->name);
        return NGX_ERROR;
    }

    if ((roles & (1 << ST_ROLE_DECODE | 1 << ST_ROLE_BOTH)) == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "model \"%V\" has prefill engines only; expected "
                           "a pool of role decode or both", &model->name);
        return NGX_ERROR;
    }

    /* without prefill engines every engine does whole requests */

    if ((roles & 1 << ST_ROLE_PREFILL) == 0) {
        return NGX_OK;
    }

    for (i = 0; i < cl->engines.nelts; i++) {
        if (engine[i].models & (1ULL << m) && engine[i].kind != first->kind) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "engine \"%V\" (%s) and engine \"%V\" (%s) "
                               "serve model \"%V\", but cannot hand its KV to "
                               "each other",
                               &first->address,
                               ngx_http_starling_kinds[first->kind],
                               &engine[i].address,
                               ngx_http_starling_kinds[engine[i].kind],
                               &model->name);
            return NGX_ERROR;
        }
    }

    if (first->kind == ST_KIND_SGLANG
        && cl->policy.mode != ST_MODE_PARALLEL)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "model \"%V\": SGLang hands over in parallel only; "
                           "expected \"handoff parallel\"", &model->name);
        return NGX_ERROR;
    }

    model->pairs_only = first->kind == ST_KIND_SGLANG
                        && (roles & 1 << ST_ROLE_BOTH) == 0;

    return NGX_OK;
}


ngx_int_t
ngx_http_starling_check_pools(ngx_conf_t *cf, ngx_http_starling_cluster_t *cl)
{
    uint64_t                     all;
    ngx_uint_t                   i, holders;
    ngx_http_starling_engine_t  *engine;

    if (cl->models.nelts == 0 || cl->engines.nelts == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"starling_cluster %V\" has no %s", &cl->name,
                           cl->models.nelts ? "pool" : "model");
        return NGX_ERROR;
    }

    all = cl->models.nelts == 64 ? ~0ULL : (1ULL << cl->models.nelts) - 1;
    engine = cl->engines.elts;
    holders = 0;

    for (i = 0; i < cl->engines.nelts; i++) {
        holders += engine[i].dp_size;

        if (engine[i].models == 0) {
            engine[i].models = all;
        }

        /* SGLang always has one, vLLM with Mooncake's connector */
        if (engine[i].bootstrap_port == 0
            && engine[i].role != ST_ROLE_DECODE
            && engine[i].kind != ST_KIND_STARLING
            && cl->policy.mode == ST_MODE_PARALLEL)
        {
            engine[i].bootstrap_port = NGX_HTTP_STARLING_BOOTSTRAP_PORT;
        }
    }

    if (holders > ST_INDEX_MAX_HOLDERS) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"starling_cluster %V\" has %ui data-parallel "
                           "ranks; expected at most %d", &cl->name, holders,
                           ST_INDEX_MAX_HOLDERS);
        return NGX_ERROR;
    }

    for (i = 0; i < cl->models.nelts; i++) {
        if (ngx_http_starling_check_model(cf, cl, i) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}
