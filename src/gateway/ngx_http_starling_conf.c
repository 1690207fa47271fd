/*
 * The starling_cluster block: its simple directives, their defaults, and what
 * must be true of the whole. Models, pools and engines are read in
 * ngx_http_starling_models.c and ngx_http_starling_pools.c.
 */

#include "ngx_http_starling.h"


#define NGX_HTTP_STARLING_MAX_TIME  (24 * 60 * 60 * 1000.)
/* fewer blocks than this in the index make no sense */
#define NGX_HTTP_STARLING_MIN_BLOCKS  4096


/* of nginx' core; no header has it */
extern ngx_module_t  ngx_thread_pool_module;


typedef struct {
    const char   *name;
    ngx_int_t   (*read)(ngx_conf_t *cf, ngx_http_starling_cluster_t *cl);
    ngx_uint_t    repeatable;
} ngx_http_starling_directive_t;


static ngx_int_t ngx_http_starling_read_zone(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl);
static ngx_int_t ngx_http_starling_read_handoff(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl);
static ngx_int_t ngx_http_starling_read_queue(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl);
static ngx_int_t ngx_http_starling_read_retries(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl);
static ngx_int_t ngx_http_starling_read_timeout(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl);
static ngx_int_t ngx_http_starling_read_health(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl);
static ngx_int_t ngx_http_starling_read_breaker(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl);
static ngx_int_t ngx_http_starling_read_policy(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl);
static ngx_int_t ngx_http_starling_read_keepalive(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl);
static ngx_int_t ngx_http_starling_read_size(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl);
static ngx_int_t ngx_http_starling_read_api_key(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl);
static ngx_int_t ngx_http_starling_read_rate(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl);


static ngx_http_starling_directive_t  ngx_http_starling_directives[] = {
    { "zone", ngx_http_starling_read_zone, 0 },
    { "handoff", ngx_http_starling_read_handoff, 0 },
    { "queue", ngx_http_starling_read_queue, 0 },
    { "retries", ngx_http_starling_read_retries, 0 },
    { "connect_timeout", ngx_http_starling_read_timeout, 0 },
    { "first_token_timeout", ngx_http_starling_read_timeout, 0 },
    { "answer_timeout", ngx_http_starling_read_timeout, 0 },
    { "read_timeout", ngx_http_starling_read_timeout, 0 },
    { "send_timeout", ngx_http_starling_read_timeout, 0 },
    { "health", ngx_http_starling_read_health, 0 },
    { "breaker", ngx_http_starling_read_breaker, 0 },
    { "policy", ngx_http_starling_read_policy, 0 },
    { "keepalive", ngx_http_starling_read_keepalive, 0 },
    { "max_body", ngx_http_starling_read_size, 0 },
    { "body_memory", ngx_http_starling_read_size, 0 },
    { "thread_body", ngx_http_starling_read_size, 0 },
    { "token_cache", ngx_http_starling_read_size, 0 },
    { "api_key", ngx_http_starling_read_api_key, 1 },
    { "rate", ngx_http_starling_read_rate, 0 },
    { NULL, NULL, 0 }
};


ngx_http_starling_cluster_t *
ngx_http_starling_find_cluster(ngx_http_starling_main_conf_t *mcf,
    ngx_str_t *name)
{
    ngx_uint_t                     i;
    ngx_http_starling_cluster_t  **cl;

    cl = mcf->clusters.elts;

    for (i = 0; i < mcf->clusters.nelts; i++) {
        if (cl[i]->name.len == name->len
            && ngx_strncmp(cl[i]->name.data, name->data, name->len) == 0)
        {
            return cl[i];
        }
    }

    return NULL;
}


/* one value that is no "name=value" */

static ngx_int_t
ngx_http_starling_value(ngx_conf_t *cf, ngx_http_starling_param_t p)
{
    p.name = NULL;

    return ngx_http_starling_params(cf, 1, &p, 1);
}


/* directives */

static ngx_int_t
ngx_http_starling_read_zone(ngx_conf_t *cf, ngx_http_starling_cluster_t *cl)
{
    return ngx_http_starling_value(cf, (ngx_http_starling_param_t)
        { NULL, NGX_HTTP_STARLING_SIZE, &cl->zone_size,
          1024 * 1024, 64. * 1024 * 1024 * 1024 });
}


static ngx_int_t
ngx_http_starling_read_handoff(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl)
{
    ngx_str_t  *value;

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "sequential") == 0) {
        cl->policy.mode = ST_MODE_SEQUENTIAL;
        return NGX_OK;
    }

    if (ngx_strcmp(value[1].data, "parallel") == 0) {
        cl->policy.mode = ST_MODE_PARALLEL;
        return NGX_OK;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "\"handoff\": \"%V\": expected \"sequential\" or "
                       "\"parallel\"", &value[1]);
    return NGX_ERROR;
}


static ngx_int_t
ngx_http_starling_read_queue(ngx_conf_t *cf, ngx_http_starling_cluster_t *cl)
{
    ngx_http_starling_param_t  params[] = {
        { "size", NGX_HTTP_STARLING_INT, &cl->queue_size, 1, 65536 },
        { "timeout", NGX_HTTP_STARLING_MSEC, &cl->queue_timeout, 1,
          NGX_HTTP_STARLING_MAX_TIME },
        { "in_flight", NGX_HTTP_STARLING_INT, &cl->max_in_flight, 1, 1048576 }
    };

    return ngx_http_starling_params(cf, 1, params, 3);
}


static ngx_int_t
ngx_http_starling_read_retries(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl)
{
    return ngx_http_starling_value(cf, (ngx_http_starling_param_t)
        { NULL, NGX_HTTP_STARLING_INT, &cl->retries, 0, 100 });
}


static ngx_int_t
ngx_http_starling_read_timeout(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl)
{
    ngx_str_t   *value;
    ngx_msec_t  *field;

    value = cf->args->elts;

    switch (value[0].data[0]) {
    case 'a':
        field = &cl->answer_timeout;
        break;
    case 'c':
        field = &cl->connect_timeout;
        break;
    case 'f':
        field = &cl->first_token_timeout;
        break;
    case 'r':
        field = &cl->read_timeout;
        break;
    default:
        field = &cl->send_timeout;
    }

    return ngx_http_starling_value(cf, (ngx_http_starling_param_t)
        { NULL, NGX_HTTP_STARLING_MSEC, field, 1,
          NGX_HTTP_STARLING_MAX_TIME });
}


static ngx_int_t
ngx_http_starling_read_health(ngx_conf_t *cf, ngx_http_starling_cluster_t *cl)
{
    ngx_http_starling_param_t  params[] = {
        { "interval", NGX_HTTP_STARLING_MSEC, &cl->health_interval, 10,
          NGX_HTTP_STARLING_MAX_TIME },
        { "timeout", NGX_HTTP_STARLING_MSEC, &cl->health_timeout, 10,
          NGX_HTTP_STARLING_MAX_TIME },
        { "failures", NGX_HTTP_STARLING_INT, &cl->health_failures, 1, 100 }
    };

    return ngx_http_starling_params(cf, 1, params, 3);
}


static ngx_int_t
ngx_http_starling_read_breaker(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl)
{
    ngx_int_t   failures;
    ngx_msec_t  pause, max_pause;

    ngx_http_starling_param_t  params[] = {
        { "failures", NGX_HTTP_STARLING_INT, &failures, 1, 1000 },
        { "pause", NGX_HTTP_STARLING_MSEC, &pause, 1,
          NGX_HTTP_STARLING_MAX_TIME },
        { "max_pause", NGX_HTTP_STARLING_MSEC, &max_pause, 1,
          NGX_HTTP_STARLING_MAX_TIME }
    };

    failures = cl->breaker.broken_to_open;
    pause = cl->breaker.pause_ms;
    max_pause = cl->breaker.max_pause_ms;

    if (ngx_http_starling_params(cf, 1, params, 3) != NGX_OK) {
        return NGX_ERROR;
    }

    if (pause > max_pause) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"breaker\": pause, %Mms, is longer than "
                           "max_pause, %Mms", pause, max_pause);
        return NGX_ERROR;
    }

    cl->breaker.broken_to_open = failures;
    cl->breaker.pause_ms = pause;
    cl->breaker.max_pause_ms = max_pause;

    return NGX_OK;
}


static ngx_int_t
ngx_http_starling_read_policy(ngx_conf_t *cf, ngx_http_starling_cluster_t *cl)
{
    double            match, order, kv;
    ngx_msec_t        starvation;
    st_route_policy  *policy;

    policy = &cl->policy;

    ngx_http_starling_param_t  params[] = {
        { "skip_prefill", NGX_HTTP_STARLING_INT64,
          &policy->skip_prefill_tokens, 0, 1e9 },
        { "match_weight", NGX_HTTP_STARLING_FLOAT, &match, 0, 1 },
        { "order_length", NGX_HTTP_STARLING_FLOAT, &order, 0, 1 },
        { "starvation", NGX_HTTP_STARLING_MSEC, &starvation, 1,
          NGX_HTTP_STARLING_MAX_TIME },
        { "kv_high_water", NGX_HTTP_STARLING_FLOAT, &kv, 0.01, 1 }
    };

    match = policy->match_weight;
    order = policy->order_length_weight;
    starvation = policy->starvation_ms;
    kv = policy->kv_high_water;

    if (ngx_http_starling_params(cf, 1, params, 5) != NGX_OK) {
        return NGX_ERROR;
    }

    policy->match_weight = match;
    policy->order_length_weight = order;
    policy->starvation_ms = starvation;
    policy->kv_high_water = kv;

    return NGX_OK;
}


static ngx_int_t
ngx_http_starling_read_keepalive(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl)
{
    return ngx_http_starling_value(cf, (ngx_http_starling_param_t)
        { NULL, NGX_HTTP_STARLING_INT, &cl->keepalive, 0, 65536 });
}


static ngx_int_t
ngx_http_starling_read_size(ngx_conf_t *cf, ngx_http_starling_cluster_t *cl)
{
    size_t     *field, min;
    ngx_str_t  *value;

    value = cf->args->elts;

    if (value[0].data[0] == 'm') {
        field = &cl->max_body_size;
        min = 1024;

    } else if (value[0].data[0] == 'b') {
        field = &cl->body_memory;
        min = 0;

    } else if (value[0].data[1] == 'h') {
        field = &cl->thread_body_size;
        min = 0;

    } else {
        field = &cl->token_cache_size;
        min = 0;
    }

    return ngx_http_starling_value(cf, (ngx_http_starling_param_t)
        { NULL, NGX_HTTP_STARLING_SIZE, field, min,
          4. * 1024 * 1024 * 1024 });
}


static ngx_int_t
ngx_http_starling_read_rate(ngx_conf_t *cf, ngx_http_starling_cluster_t *cl)
{
    ngx_http_starling_param_t  params[] = {
        { "requests", NGX_HTTP_STARLING_FLOAT, &cl->rate, 0.001, 1e6 },
        { "burst", NGX_HTTP_STARLING_FLOAT, &cl->burst, 1, 1e6 }
    };

    if (ngx_http_starling_params(cf, 1, params, 2) != NGX_OK) {
        return NGX_ERROR;
    }

    if (cl->rate == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"rate\": \"requests=\" is missing");
        return NGX_ERROR;
    }

    if (cl->burst == 0) {
        cl->burst = ngx_max(1, cl->rate);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_starling_add_api_key(ngx_conf_t *cf, ngx_http_starling_cluster_t *cl,
    u_char *p, size_t len)
{
    size_t      i;
    ngx_str_t  *key;

    for (i = 0; i < len && p[i] > ' ' && p[i] < 0x7f; i++) { /* void */ }

    if (len == 0 || len > 512 || i < len) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"api_key\": a key of %uz bytes: expected 1 to "
                           "512 printable ASCII characters without blanks",
                           len);
        return NGX_ERROR;
    }

    key = ngx_array_push(cl->api_keys);
    if (key == NULL) {
        return NGX_ERROR;
    }

    key->len = len;
    key->data = p;

    return NGX_OK;
}


/* a key per line; empty lines and lines that begin with "#" are none */

static ngx_int_t
ngx_http_starling_read_api_keys(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl, ngx_str_t *name)
{
    FILE       *f;
    char        line[1024];
    size_t      n;
    u_char     *key;
    ngx_int_t   rc;
    ngx_uint_t  before;

    if (ngx_conf_full_name(cf->cycle, name, 1) != NGX_OK) {
        return NGX_ERROR;
    }

    f = fopen((char *) name->data, "re");
    if (f == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "\"api_key\": file \"%V\" cannot be opened", name);
        return NGX_ERROR;
    }

    rc = NGX_OK;
    before = cl->api_keys->nelts;

    while (rc == NGX_OK && fgets(line, sizeof(line), f)) {
        n = strcspn(line, "\r\n");

        if (n == 0 || line[0] == '#') {
            continue;
        }

        key = ngx_pnalloc(cf->pool, n);
        if (key == NULL) {
            rc = NGX_ERROR;
            break;
        }

        ngx_memcpy(key, line, n);
        rc = ngx_http_starling_add_api_key(cf, cl, key, n);
    }

    fclose(f);

    /* an empty file must not mean that everybody may come in */
    if (rc == NGX_OK && cl->api_keys->nelts == before) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"api_key\": file \"%V\" holds no key", name);
        rc = NGX_ERROR;
    }

    return rc;
}


static ngx_int_t
ngx_http_starling_read_api_key(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl)
{
    ngx_str_t  *value, name;

    value = cf->args->elts;

    if (cl->api_keys == NULL) {
        cl->api_keys = ngx_array_create(cf->pool, 4, sizeof(ngx_str_t));
        if (cl->api_keys == NULL) {
            return NGX_ERROR;
        }
    }

    if (ngx_strncmp(value[1].data, "file=", 5) == 0) {
        name.data = value[1].data + 5;
        name.len = value[1].len - 5;
        return ngx_http_starling_read_api_keys(cf, cl, &name);
    }

    return ngx_http_starling_add_api_key(cf, cl, value[1].data, value[1].len);
}


char *
ngx_http_starling_cluster_directive(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    ngx_http_starling_main_conf_t  *mcf = conf;

    ngx_uint_t                      i;
    ngx_http_starling_cluster_t    *cl;
    ngx_http_starling_directive_t  *d;

    cl = mcf->cluster;

    for (i = 0; ngx_strcmp(ngx_http_starling_directives[i].name,
                           cmd->name.data)
                != 0; i++)
    {
        /* void */
    }

    d = &ngx_http_starling_directives[i];

    if (cl->seen & (1ULL << i) && !d->repeatable) {
        return "is duplicate";
    }

    cl->seen |= 1ULL << i;

    return d->read(cf, cl) == NGX_OK ? NGX_CONF_OK : NGX_CONF_ERROR;
}


/* the block */

static void
ngx_http_starling_cluster_defaults(ngx_http_starling_cluster_t *cl)
{
    st_route_policy_default(&cl->policy);
    cl->policy.mode = ST_MODE_SEQUENTIAL;

    cl->breaker.broken_to_open = 3;
    cl->breaker.pause_ms = 500;
    cl->breaker.max_pause_ms = 30000;

    cl->zone_size = 64 * 1024 * 1024;
    cl->max_in_flight = 16384;
    cl->queue_size = 1024;
    cl->queue_timeout = 30000;
    cl->retries = 2;
    cl->connect_timeout = 1000;
    cl->first_token_timeout = 300000;
    cl->answer_timeout = 600000;
    cl->read_timeout = 60000;
    cl->send_timeout = 30000;
    cl->health_interval = 2000;
    cl->health_timeout = 5000;
    cl->health_failures = 2;
    cl->keepalive = 64;
    cl->max_body_size = 32 * 1024 * 1024;
    cl->body_memory = 1024 * 1024 * 1024;
    cl->thread_body_size = 16 * 1024;
    cl->token_cache_size = 64 * 1024 * 1024;

    cl->row = -1;
    cl->wake_fd = -1;
}


/*
 * Long prompts are tokenized in the thread pool "starling". Where the
 * configuration has none, it is made by calling the directive as if it stood
 * there: nginx has no other way to make one with a given number of threads.
 */

static ngx_int_t
ngx_http_starling_thread_pool(ngx_conf_t *cf, ngx_http_starling_cluster_t *cl)
{
    ngx_str_t           *word;
    ngx_array_t         *args;
    ngx_command_t       *cmd;
    static ngx_str_t     name = ngx_string("starling");
    static ngx_str_t     words[] = {
        ngx_string("thread_pool"),
        ngx_string("starling"),
        ngx_string("threads=2"),
        ngx_string("max_queue=65536")
    };

    cl->thread_pool = ngx_thread_pool_get((ngx_cycle_t *) cf->cycle, &name);

    if (cl->thread_pool == NULL) {
        args = cf->args;

        cf->args = ngx_array_create(cf->pool, 4, sizeof(ngx_str_t));
        if (cf->args == NULL) {
            return NGX_ERROR;
        }

        word = ngx_array_push_n(cf->args, 4);
        ngx_memcpy(word, words, sizeof(words));

        cmd = ngx_thread_pool_module.commands;

        if (cmd->set(cf, cmd, NULL) != NGX_CONF_OK) {
            return NGX_ERROR;
        }

        cf->args = args;

        cl->thread_pool = ngx_thread_pool_get((ngx_cycle_t *) cf->cycle,
                                              &name);
    }

    return cl->thread_pool ? NGX_OK : NGX_ERROR;
}


static ngx_int_t
ngx_http_starling_cluster_zone(ngx_conf_t *cf,
    ngx_http_starling_cluster_t *cl)
{
    size_t           need;
    u_char          *p;
    ngx_str_t        name;
    st_cluster_spec  spec;

    ngx_memzero(&spec, sizeof(st_cluster_spec));
    spec.max_requests_in_flight = cl->max_in_flight;
    spec.queue_size = cl->queue_size;

    need = st_cluster_bytes(&spec, NGX_HTTP_STARLING_MIN_BLOCKS,
                            NGX_HTTP_STARLING_MIN_BLOCKS / 4)
           + ngx_pagesize;

    if (cl->zone_size < need) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"starling_cluster %V\": a zone of %uz bytes is "
                           "too small for its queue and index; expected at "
                           "least %uzk", &cl->name, cl->zone_size,
                           need / 1024 + 1);
        return NGX_ERROR;
    }

    /*
     * What the memory's layout depends on is in the name: another layout is
     * another zone, and the old workers keep theirs till they end.
     */

    name.len = sizeof("starling:::") - 1 + cl->name.len + 2 * NGX_INT32_LEN;
    name.data = ngx_pnalloc(cf->pool, name.len);
    if (name.data == NULL) {
        return NGX_ERROR;
    }

    p = ngx_sprintf(name.data, "starling:%V:%i:%i", &cl->name,
                    cl->max_in_flight, cl->queue_size);
    name.len = p - name.data;

    cl->zone = ngx_shared_memory_add(cf, &name, cl->zone_size,
                                     &ngx_http_starling_module);
    if (cl->zone == NULL) {
        return NGX_ERROR;
    }

    cl->zone->init = ngx_http_starling_init_zone;
    cl->zone->data = cl;

    return NGX_OK;
}


char *
ngx_http_starling_cluster_block(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_starling_main_conf_t  *mcf = conf;

    char                          *rv;
    ngx_str_t                     *value;
    ngx_conf_t                     save;
    ngx_http_starling_cluster_t   *cl, **slot;

    value = cf->args->elts;

    if (value[1].len == 0 || value[1].len >= ST_NAME_MAX) {
        return "has a name that is empty or longer than 95 bytes";
    }

    if (ngx_http_starling_find_cluster(mcf, &value[1])) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "there is a starling_cluster \"%V\" already",
                           &value[1]);
        return NGX_CONF_ERROR;
    }

    cl = ngx_pcalloc(cf->pool, sizeof(ngx_http_starling_cluster_t));
    slot = ngx_array_push(&mcf->clusters);

    if (cl == NULL || slot == NULL
        || ngx_array_init(&cl->models, cf->pool, 2,
                          sizeof(ngx_http_starling_model_t)) != NGX_OK
        || ngx_array_init(&cl->engines, cf->pool, 8,
                          sizeof(ngx_http_starling_engine_t)) != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    *slot = cl;
    cl->name = value[1];
    ngx_http_starling_cluster_defaults(cl);

    save = *cf;
    mcf->cluster = cl;
    cf->cmd_type = cmd->offset;

    rv = ngx_conf_parse(cf, NULL);

    *cf = save;

    if (rv != NGX_CONF_OK) {
        return rv;
    }

    if (ngx_http_starling_check_pools(cf, cl) != NGX_OK
        || ngx_http_starling_thread_pool(cf, cl) != NGX_OK
        || ngx_http_starling_cluster_zone(cf, cl) != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}
