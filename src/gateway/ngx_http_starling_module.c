/*
 * The module: its directives, its variables, and what nginx calls when.
 */

#include "ngx_http_starling.h"


/*
 * Contexts of the starling_cluster block and the pool blocks in it. nginx
 * gives HTTP modules no bits for contexts of their own; these two are in no
 * use, neither by its types nor by its flags.
 */
#define NGX_HTTP_STARLING_CLUSTER_CONF  0x00020000
#define NGX_HTTP_STARLING_POOL_CONF     0x00040000


static ngx_int_t ngx_http_starling_add_variables(ngx_conf_t *cf);
static void *ngx_http_starling_create_main_conf(ngx_conf_t *cf);
static void *ngx_http_starling_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_starling_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child);
static char *ngx_http_starling_location(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_starling_status_location(ngx_conf_t *cf,
    ngx_command_t *cmd, void *conf);

static ngx_int_t ngx_http_starling_phase_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_starling_engine_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_starling_count_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_starling_model_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_starling_id_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_starling_handoff_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);


#define NGX_HTTP_STARLING_IN_CLUSTER(name, args, set)                         \
    { ngx_string(name), NGX_HTTP_STARLING_CLUSTER_CONF|args, set,             \
      NGX_HTTP_MAIN_CONF_OFFSET, 0, NULL }

#define NGX_HTTP_STARLING_IN_POOL(name, args, set)                            \
    { ngx_string(name), NGX_HTTP_STARLING_POOL_CONF|args, set,                \
      NGX_HTTP_MAIN_CONF_OFFSET, 0, NULL }


static ngx_command_t  ngx_http_starling_commands[] = {

    { ngx_string("starling_cluster"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_BLOCK|NGX_CONF_TAKE1,
      ngx_http_starling_cluster_block,
      NGX_HTTP_MAIN_CONF_OFFSET,
      NGX_HTTP_STARLING_CLUSTER_CONF,
      NULL },

    { ngx_string("starling"),
      NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_starling_location,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("starling_status"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS|NGX_CONF_TAKE1,
      ngx_http_starling_status_location,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("pool"),
      NGX_HTTP_STARLING_CLUSTER_CONF|NGX_CONF_BLOCK|NGX_CONF_TAKE1,
      ngx_http_starling_pool_block,
      NGX_HTTP_MAIN_CONF_OFFSET,
      NGX_HTTP_STARLING_POOL_CONF,
      NULL },

    NGX_HTTP_STARLING_IN_CLUSTER("model", NGX_CONF_1MORE,
                                 ngx_http_starling_model_directive),

    /* one function reads these: ngx_http_starling_conf.c has their table */

    NGX_HTTP_STARLING_IN_CLUSTER("zone", NGX_CONF_TAKE1,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("handoff", NGX_CONF_TAKE1,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("queue", NGX_CONF_1MORE,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("retries", NGX_CONF_TAKE1,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("connect_timeout", NGX_CONF_TAKE1,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("first_token_timeout", NGX_CONF_TAKE1,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("answer_timeout", NGX_CONF_TAKE1,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("read_timeout", NGX_CONF_TAKE1,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("send_timeout", NGX_CONF_TAKE1,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("health", NGX_CONF_1MORE,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("breaker", NGX_CONF_1MORE,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("policy", NGX_CONF_1MORE,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("keepalive", NGX_CONF_TAKE1,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("max_body", NGX_CONF_TAKE1,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("body_memory", NGX_CONF_TAKE1,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("thread_body", NGX_CONF_TAKE1,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("token_cache", NGX_CONF_TAKE1,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("api_key", NGX_CONF_TAKE1,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("rate", NGX_CONF_1MORE,
                                 ngx_http_starling_cluster_directive),
    NGX_HTTP_STARLING_IN_CLUSTER("include", NGX_CONF_TAKE1, ngx_conf_include),

    NGX_HTTP_STARLING_IN_POOL("role", NGX_CONF_TAKE1,
                              ngx_http_starling_pool_directive),
    NGX_HTTP_STARLING_IN_POOL("kind", NGX_CONF_TAKE1,
                              ngx_http_starling_pool_directive),
    NGX_HTTP_STARLING_IN_POOL("engine", NGX_CONF_1MORE,
                              ngx_http_starling_engine_directive),
    NGX_HTTP_STARLING_IN_POOL("include", NGX_CONF_TAKE1, ngx_conf_include),

      ngx_null_command
};


static ngx_http_module_t  ngx_http_starling_module_ctx = {
    ngx_http_starling_add_variables,       /* preconfiguration */
    NULL,                                  /* postconfiguration */

    ngx_http_starling_create_main_conf,    /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_starling_create_loc_conf,     /* create location configuration */
    ngx_http_starling_merge_loc_conf       /* merge location configuration */
};


ngx_module_t  ngx_http_starling_module = {
    NGX_MODULE_V1,
    &ngx_http_starling_module_ctx,         /* module context */
    ngx_http_starling_commands,            /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    ngx_http_starling_init_worker,         /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_starling_exit_worker,         /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


#define NGX_HTTP_STARLING_PHASE(name, phase)                                  \
    { ngx_string("starling_phase_" name), NULL,                               \
      ngx_http_starling_phase_variable, phase, NGX_HTTP_VAR_NOCACHEABLE, 0 }


static ngx_http_variable_t  ngx_http_starling_vars[] = {

    NGX_HTTP_STARLING_PHASE("tokenized", ST_PHASE_TOKENIZED),
    NGX_HTTP_STARLING_PHASE("matched", ST_PHASE_MATCHED),
    NGX_HTTP_STARLING_PHASE("prefill_waiting", ST_PHASE_PREFILL_WAITING),
    NGX_HTTP_STARLING_PHASE("prefill_scheduled", ST_PHASE_PREFILL_SCHEDULED),
    NGX_HTTP_STARLING_PHASE("prefill_running", ST_PHASE_PREFILL_RUNNING),
    NGX_HTTP_STARLING_PHASE("decode_waiting", ST_PHASE_DECODE_WAITING),
    NGX_HTTP_STARLING_PHASE("decode_scheduled", ST_PHASE_DECODE_SCHEDULED),
    NGX_HTTP_STARLING_PHASE("decode_running", ST_PHASE_DECODE_RUNNING),
    NGX_HTTP_STARLING_PHASE("done", ST_PHASE_DONE),

    { ngx_string("starling_prefill"), NULL, ngx_http_starling_engine_variable,
      offsetof(st_request_slot, prefill), NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("starling_decode"), NULL, ngx_http_starling_engine_variable,
      offsetof(st_request_slot, decode), NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("starling_prompt_tokens"), NULL,
      ngx_http_starling_count_variable,
      offsetof(st_request_slot, prompt_tokens), NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("starling_matched_tokens"), NULL,
      ngx_http_starling_count_variable,
      offsetof(st_request_slot, matched_tokens), NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("starling_generated_tokens"), NULL,
      ngx_http_starling_count_variable,
      offsetof(st_request_slot, generated_tokens), NGX_HTTP_VAR_NOCACHEABLE,
      0 },

    { ngx_string("starling_model"), NULL, ngx_http_starling_model_variable, 0,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("starling_request_id"), NULL, ngx_http_starling_id_variable,
      0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("starling_handoff"), NULL, ngx_http_starling_handoff_variable,
      0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

      ngx_http_null_variable
};


static ngx_int_t
ngx_http_starling_add_variables(ngx_conf_t *cf)
{
    ngx_http_variable_t  *var, *v;

    for (v = ngx_http_starling_vars; v->name.len; v++) {
        var = ngx_http_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}


static void *
ngx_http_starling_create_main_conf(ngx_conf_t *cf)
{
    ngx_http_starling_main_conf_t  *mcf;

    mcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_starling_main_conf_t));
    if (mcf == NULL) {
        return NULL;
    }

    if (ngx_array_init(&mcf->clusters, cf->pool, 2,
                       sizeof(ngx_http_starling_cluster_t *))
        != NGX_OK)
    {
        return NULL;
    }

    return mcf;
}


static void *
ngx_http_starling_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_starling_loc_conf_t  *lcf;

    lcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_starling_loc_conf_t));
    if (lcf == NULL) {
        return NULL;
    }

    lcf->status = NGX_CONF_UNSET;
    lcf->status_public = NGX_CONF_UNSET;

    return lcf;
}


/*
 * nginx' defaults are made for pages, not for prompts. Where the core's
 * directives stand at their defaults a starling location has others: the
 * cluster's max_body limits a body (with an answer in JSON), and it is read
 * in larger pieces (ngx_http_starling_request.c takes each away at once; no
 * file on a disk). The core's own merge has been done by now.
 */

static char *
ngx_http_starling_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_starling_loc_conf_t  *lcf = child;

    ngx_http_core_loc_conf_t  *clcf;

    ngx_conf_init_value(lcf->status, 0);
    ngx_conf_init_value(lcf->status_public, 0);

    if (lcf->cluster == NULL) {
        return NGX_CONF_OK;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if (clcf->client_max_body_size == 1 * 1024 * 1024) {
        clcf->client_max_body_size = 0;
    }

    if (clcf->client_body_buffer_size == 2 * ngx_pagesize) {
        clcf->client_body_buffer_size = 32 * 1024;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_starling_location(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_starling_loc_conf_t  *lcf = conf;

    ngx_str_t                      *value;
    ngx_http_core_loc_conf_t       *clcf;
    ngx_http_starling_main_conf_t  *mcf;

    if (lcf->cluster) {
        return "is duplicate";
    }

    if (lcf->status != NGX_CONF_UNSET) {
        return "cannot share a location with \"starling_status\"";
    }

    value = cf->args->elts;
    mcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_starling_module);

    lcf->cluster = ngx_http_starling_find_cluster(mcf, &value[1]);
    if (lcf->cluster == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "there is no starling_cluster \"%V\" above this "
                           "line", &value[1]);
        return NGX_CONF_ERROR;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_starling_handler;

    return NGX_CONF_OK;
}


static char *
ngx_http_starling_status_location(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf)
{
    ngx_http_starling_loc_conf_t  *lcf = conf;

    ngx_str_t                 *value;
    ngx_http_core_loc_conf_t  *clcf;

    if (lcf->status != NGX_CONF_UNSET) {
        return "is duplicate";
    }

    if (lcf->cluster) {
        return "cannot share a location with \"starling\"";
    }

    value = cf->args->elts;
    lcf->status = 1;

    if (cf->args->nelts > 1) {
        if (ngx_strcmp(value[1].data, "public") != 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"starling_status %V\": expected nothing or "
                               "\"public\"", &value[1]);
            return NGX_CONF_ERROR;
        }

        lcf->status_public = 1;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_starling_status_handler;

    return NGX_CONF_OK;
}


/* the request's slot and its cluster; NULL: a variable without a value */

static st_request_slot *
ngx_http_starling_variable_slot(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, ngx_http_starling_cluster_t **cl)
{
    st_request_slot               *slot;
    ngx_http_starling_loc_conf_t  *lcf;

    lcf = ngx_http_get_module_loc_conf(r, ngx_http_starling_module);
    *cl = lcf->cluster;

    slot = *cl ? ngx_http_starling_slot(r) : NULL;

    v->valid = slot != NULL;
    v->not_found = slot == NULL;
    v->no_cacheable = 0;

    return slot;
}


static ngx_int_t
ngx_http_starling_variable_printf(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, size_t size, const char *fmt, ...)
{
    u_char   *p;
    va_list   args;

    p = ngx_pnalloc(r->pool, size);
    if (p == NULL) {
        return NGX_ERROR;
    }

    va_start(args, fmt);
    v->len = ngx_vslprintf(p, p + size, fmt, args) - p;
    va_end(args);

    v->data = p;

    return NGX_OK;
}


/* seconds from the phase that was reached before to this one */

static ngx_int_t
ngx_http_starling_phase_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    uint64_t                      us;
    st_request_slot              *slot;
    ngx_http_starling_cluster_t  *cl;

    slot = ngx_http_starling_variable_slot(r, v, &cl);
    if (slot == NULL) {
        return NGX_OK;
    }

    if (atomic_load(&slot->at_ns[data]) == 0) {
        v->valid = 0;
        v->not_found = 1;
        return NGX_OK;
    }

    us = st_request_phase_ns(slot, data) / 1000;

    return ngx_http_starling_variable_printf(r, v, NGX_INT64_LEN + 8,
                                             "%uL.%06uL", us / 1000000,
                                             us % 1000000);
}


static ngx_int_t
ngx_http_starling_engine_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    int32_t                       id;
    st_engine_slot               *engine;
    st_request_slot              *slot;
    ngx_http_starling_cluster_t  *cl;

    slot = ngx_http_starling_variable_slot(r, v, &cl);
    if (slot == NULL) {
        return NGX_OK;
    }

    id = atomic_load((_Atomic int32_t *) ((char *) slot + data));
    engine = id >= 0 ? st_cluster_engine(cl->shared, id) : NULL;

    if (engine == NULL) {
        v->valid = 0;
        v->not_found = 1;
        return NGX_OK;
    }

    return ngx_http_starling_variable_printf(r, v, ST_ADDRESS_MAX, "%s",
                                             engine->address);
}


static ngx_int_t
ngx_http_starling_count_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    st_request_slot              *slot;
    ngx_http_starling_cluster_t  *cl;

    slot = ngx_http_starling_variable_slot(r, v, &cl);
    if (slot == NULL) {
        return NGX_OK;
    }

    return ngx_http_starling_variable_printf(r, v, NGX_INT32_LEN, "%uD",
                     atomic_load((_Atomic uint32_t *) ((char *) slot + data)));
}


static ngx_int_t
ngx_http_starling_model_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    st_request_slot              *slot;
    ngx_http_starling_model_t    *models;
    ngx_http_starling_cluster_t  *cl;

    slot = ngx_http_starling_variable_slot(r, v, &cl);
    if (slot == NULL) {
        return NGX_OK;
    }

    if (slot->model >= cl->models.nelts) {
        v->valid = 0;
        v->not_found = 1;
        return NGX_OK;
    }

    models = cl->models.elts;
    v->data = models[slot->model].name.data;
    v->len = models[slot->model].name.len;

    return NGX_OK;
}


static ngx_int_t
ngx_http_starling_id_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    st_request_slot              *slot;
    ngx_http_starling_cluster_t  *cl;

    slot = ngx_http_starling_variable_slot(r, v, &cl);
    if (slot == NULL) {
        return NGX_OK;
    }

    return ngx_http_starling_variable_printf(r, v, 16, "%016xL", slot->id);
}


/* "none" when one engine did it all */

static ngx_int_t
ngx_http_starling_handoff_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    const char                   *mode;
    st_request_slot              *slot;
    ngx_http_starling_cluster_t  *cl;

    slot = ngx_http_starling_variable_slot(r, v, &cl);
    if (slot == NULL) {
        return NGX_OK;
    }

    if (atomic_load(&slot->prefill) < 0) {
        mode = "none";

    } else if (cl->policy.mode == ST_MODE_PARALLEL) {
        mode = "parallel";

    } else {
        mode = "sequential";
    }

    v->data = (u_char *) mode;
    v->len = ngx_strlen(mode);

    return NGX_OK;
}
