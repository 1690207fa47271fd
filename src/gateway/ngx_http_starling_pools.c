/*
 * Models, pools and engines of a starling_cluster block. Tokenizers and chat
 * templates are loaded here, in the master, so that "nginx -t" finds a folder
 * that cannot be used and workers share the memory.
 */

#include "ngx_http_starling.h"

#include <jansson.h>


/* what vLLM and SGLang use when nothing else is said */
#define NGX_HTTP_STARLING_BOOTSTRAP_PORT  8998
#define NGX_HTTP_STARLING_EVENTS_PORT     "5557"


static const char *const  ngx_http_starling_kinds[] = {
    "starling", "vllm", "sglang"
};


/* models */

ngx_http_starling_model_t *
ngx_http_starling_find_model(ngx_http_starling_cluster_t *cl,
    const char *name, size_t len)
{
    ngx_uint_t                  i, k;
    ngx_http_starling_model_t  *model;

    model = cl->models.elts;

    for (i = 0; i < cl->models.nelts; i++) {
        for (k = 0; k < model[i].nnames; k++) {
            if (strlen(model[i].names[k]) == len
                && memcmp(model[i].names[k], name, len) == 0)
            {
                return &model[i];
            }
        }
    }

    return NULL;
}


static void
ngx_http_starling_free_model(void *data)
{
    ngx_http_starling_model_t  *model = data;

    st_chat_template_free(model->tmpl);
    st_tokenizer_free(model->tok);
}


/* the checkpoint's context length; 0: its config.json does not say */

static int64_t
ngx_http_starling_context_length(const char *dir)
{
    char      path[NGX_MAX_PATH];
    json_t   *config, *n;
    int64_t   len;

    if (snprintf(path, sizeof(path), "%s/config.json", dir)
        >= (int) sizeof(path))
    {
        return 0;
    }

    config = json_load_file(path, 0, NULL);
    n = json_object_get(config, "max_position_embeddings");

    if (n == NULL) {
        n = json_object_get(json_object_get(config, "text_config"),
                            "max_position_embeddings");
    }

    len = json_integer_value(n);
    json_decref(config);

    return len > 0 && len <= INT32_MAX ? len : 0;
}


static ngx_int_t
ngx_http_starling_load_model(ngx_conf_t *cf, ngx_http_starling_model_t *model)
{
    char                       *dir;
    st_error                    err;
    st_status                   s;
    ngx_pool_cleanup_t         *cln;
    ngx_http_starling_model_t  *owned;

    cln = ngx_pool_cleanup_add(cf->pool, sizeof(ngx_http_starling_model_t));
    if (cln == NULL || ngx_conf_full_name(cf->cycle, &model->path, 1)
                       != NGX_OK)
    {
        return NGX_ERROR;
    }

    owned = cln->data;
    ngx_memzero(owned, sizeof(ngx_http_starling_model_t));
    cln->handler = ngx_http_starling_free_model;

    dir = (char *) model->path.data;

    s = st_tokenizer_load(dir, &owned->tok, &err);

    if (s == ST_OK) {
        s = st_chat_template_load(dir, &owned->tmpl, &err);

        if (s == ST_ENOTFOUND) {
            ngx_conf_log_error(NGX_LOG_WARN, cf, 0,
                               "model \"%V\" has no chat template: chats go "
                               "to its engines as text", &model->name);
            s = ST_OK;
        }
    }

    if (s == ST_OK) {
        s = st_api_defaults_load(dir, &model->relay.ctx.defaults, &err);
    }

    if (s != ST_OK) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "the tokenizer of model \"%V\" cannot be loaded: "
                           "%s", &model->name, err.text);
        return NGX_ERROR;
    }

    model->tok = owned->tok;
    model->tmpl = owned->tmpl;
    model->reasons = st_relay_reasons(model->tok);

    if (model->max_len == 0) {
        model->max_len = ngx_http_starling_context_length(dir);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_starling_name_model(ngx_conf_t *cf, ngx_http_starling_cluster_t *cl,
    ngx_http_starling_model_t *model, ngx_array_t *aliases)
{
    size_t      len;
    ngx_str_t  *name;
    ngx_uint_t  i, k;

    model->names = ngx_pcalloc(cf->pool,
                               (aliases->nelts + 1) * sizeof(char *));
    if (model->names == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i <= aliases->nelts; i++) {
        name = i ? (ngx_str_t *) aliases->elts + i - 1 : &model->name;
        len = name->len;

        if (len == 0 || len >= 512) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"model\": a name of %uz bytes: expected 1 to "
                               "511", len);
            return NGX_ERROR;
        }

        for (k = 0; k < i; k++) {
            if (ngx_strcmp(model->names[k], name->data) == 0) {
                break;
            }
        }

        if (k < i
            || ngx_http_starling_find_model(cl, (char *) name->data, len))
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "there is a model \"%V\" already", name);
            return NGX_ERROR;
        }

        model->names[i] = (char *) name->data;
        model->nnames = i + 1;
    }

    return NGX_OK;
}


char *
ngx_http_starling_model_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    ngx_http_starling_main_conf_t  *mcf = conf;

    ngx_str_t                    *value;
    ngx_array_t                   aliases;
    ngx_http_starling_model_t     model, *slot;
    ngx_http_starling_cluster_t  *cl;

    cl = mcf->cluster;
    value = cf->args->elts;

    ngx_memzero(&model, sizeof(ngx_http_starling_model_t));
    model.name = value[1];
    st_api_defaults_init(&model.relay.ctx.defaults);

    ngx_http_starling_param_t  params[] = {
        { "tokenizer", NGX_HTTP_STARLING_STRING, &model.path, 0, 0 },
        { "upstream", NGX_HTTP_STARLING_STRING, &model.upstream, 0, 0 },
        { "max_len", NGX_HTTP_STARLING_INT64, &model.max_len, 1, INT32_MAX },
        { "alias", NGX_HTTP_STARLING_LIST, &aliases, 0, 0 }
    };

    if (cl->models.nelts == ST_CLUSTER_MAX_MODELS) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "more than %d models in a cluster",
                           ST_CLUSTER_MAX_MODELS);
        return NGX_CONF_ERROR;
    }

    if (ngx_array_init(&aliases, cf->pool, 4, sizeof(ngx_str_t)) != NGX_OK
        || ngx_http_starling_params(cf, 2, params, 4) != NGX_OK
        || ngx_http_starling_name_model(cf, cl, &model, &aliases) != NGX_OK
        || (model.path.len
            && ngx_http_starling_load_model(cf, &model) != NGX_OK))
    {
        return NGX_CONF_ERROR;
    }

    model.relay.name = model.names[0];
    model.relay.tok = model.tok;
    model.relay.tmpl = model.tmpl;
    model.relay.ctx.models = model.names;
    model.relay.ctx.n_models = model.nnames;
    model.relay.ctx.vocab_size = model.tok ? st_tokenizer_vocab_size(model.tok)
                                           : 0;
    model.relay.ctx.max_model_len = model.max_len ? model.max_len : INT32_MAX;

    slot = ngx_array_push(&cl->models);
    if (slot == NULL) {
        return NGX_CONF_ERROR;
    }

    *slot = model;

    return NGX_CONF_OK;
}


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
