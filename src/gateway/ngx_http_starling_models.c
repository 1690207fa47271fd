/*
 * Models of a starling_cluster block: names, tokenizers, chat templates. The
 * latter are loaded here, in the master, so that "nginx -t" finds a folder
 * that cannot be used and workers share the memory.
 */

#include "ngx_http_starling.h"

#include <jansson.h>


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
