/*
 * Answers of the gateway itself: errors in OpenAI's shape, whole bodies of
 * JSON, the list of models.
 */

#include "ngx_http_starling_ctx.h"


ngx_int_t
ngx_http_starling_add_header(ngx_http_request_t *r, const char *key,
    const ngx_str_t *value)
{
    ngx_table_elt_t  *h;

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    h->hash = 1;
    h->key.data = (u_char *) key;
    h->key.len = ngx_strlen(key);
    h->value = *value;

    return NGX_OK;
}


ngx_int_t
ngx_http_starling_send_json(ngx_http_request_t *r, ngx_uint_t status,
    u_char *p, size_t n)
{
    ngx_int_t                 rc;
    ngx_buf_t                *b;
    ngx_chain_t               out;
    ngx_http_starling_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_starling_module);

    if (ctx
        && ngx_http_starling_add_header(r, "X-Request-Id", &ctx->request_id)
           != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    r->headers_out.status = status;
    r->headers_out.content_length_n = n;
    ngx_str_set(&r->headers_out.content_type, "application/json");
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    b = ngx_calloc_buf(r->pool);
    if (b == NULL) {
        return NGX_ERROR;
    }

    b->pos = p;
    b->last = p + n;
    b->memory = 1;
    b->last_buf = r == r->main;
    b->last_in_chain = 1;

    out.buf = b;
    out.next = NULL;

    return ngx_http_output_filter(r, &out);
}


static ngx_int_t
ngx_http_starling_error_headers(ngx_http_request_t *r, ngx_uint_t status,
    ngx_uint_t retry_after)
{
    ngx_str_t  value;

    if (retry_after) {
        value.data = ngx_pnalloc(r->pool, NGX_INT_T_LEN);
        if (value.data == NULL) {
            return NGX_ERROR;
        }

        value.len = ngx_sprintf(value.data, "%ui", retry_after) - value.data;

        if (ngx_http_starling_add_header(r, "Retry-After", &value) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if (status == NGX_HTTP_UNAUTHORIZED) {
        ngx_str_set(&value, "Bearer");

        return ngx_http_starling_add_header(r, "WWW-Authenticate", &value);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_starling_send_error(ngx_http_request_t *r, ngx_uint_t status,
    ngx_uint_t retry_after, const st_buf *json)
{
    u_char  *p;

    /* an answer to what was not read to its end */

    if (r->request_body == NULL
        && ngx_http_discard_request_body(r) != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    p = ngx_pnalloc(r->pool, json->len);

    if (p == NULL
        || ngx_http_starling_error_headers(r, status, retry_after) != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_memcpy(p, json->data, json->len);

    return ngx_http_starling_send_json(r, status, p, json->len);
}


static ngx_int_t
ngx_http_starling_send_api_error(ngx_http_request_t *r, const st_api_error *e,
    ngx_uint_t retry_after)
{
    st_buf     json = ST_BUF_INIT;
    ngx_int_t  rc;

    rc = NGX_HTTP_INTERNAL_SERVER_ERROR;

    if (st_api_error_json(e, &json) == ST_OK) {
        rc = ngx_http_starling_send_error(r, e->http_status, retry_after,
                                          &json);
    }

    st_buf_free(&json);

    return rc;
}


static void
ngx_http_starling_fill_error(st_api_error *e, ngx_uint_t status,
    const char *code, const char *param, const char *fmt, va_list args)
{
    u_char  text[1024], *p;

    p = ngx_vslprintf(text, text + sizeof(text) - 1, fmt, args);
    *p = '\0';

    (void) st_api_fail(e, status, param, code, "%s", (char *) text);
}


ngx_int_t
ngx_http_starling_error(ngx_http_request_t *r, ngx_uint_t status,
    const char *code, const char *param, ngx_uint_t retry_after,
    const char *fmt, ...)
{
    va_list       args;
    st_api_error  e;

    va_start(args, fmt);
    ngx_http_starling_fill_error(&e, status, code, param, fmt, args);
    va_end(args);

    return ngx_http_starling_send_api_error(r, &e, retry_after);
}


void
ngx_http_starling_refuse(ngx_http_starling_ctx_t *ctx, ngx_uint_t status,
    const char *code, const char *param, ngx_uint_t retry_after,
    const char *fmt, ...)
{
    va_list              args;
    ngx_int_t            rc;
    st_api_error         e;
    ngx_http_request_t  *r;

    r = ctx->request;

    va_start(args, fmt);
    ngx_http_starling_fill_error(&e, status, code, param, fmt, args);
    va_end(args);

    rc = ngx_http_starling_send_api_error(r, &e, retry_after);
    ngx_http_starling_count(ctx);
    ngx_http_finalize_request(r, rc);
}


void
ngx_http_starling_refuse_api(ngx_http_starling_ctx_t *ctx,
    const st_api_error *e)
{
    ngx_int_t  rc;

    rc = ngx_http_starling_send_api_error(ctx->request, e, 0);
    ngx_http_starling_count(ctx);
    ngx_http_finalize_request(ctx->request, rc);
}


void
ngx_http_starling_refuse_json(ngx_http_starling_ctx_t *ctx, ngx_uint_t status,
    const st_buf *json)
{
    ngx_int_t  rc;

    rc = ngx_http_starling_send_error(ctx->request, status, 0, json);
    ngx_http_starling_count(ctx);
    ngx_http_finalize_request(ctx->request, rc);
}


static st_status
ngx_http_starling_models_json(ngx_http_starling_cluster_t *cl, st_buf *out)
{
    st_status                   rc;
    ngx_uint_t                  i, j;
    ngx_http_starling_model_t  *model;

    model = cl->models.elts;
    rc = st_buf_puts(out, "{\"object\":\"list\",\"data\":[");

    for (i = 0; rc == ST_OK && i < cl->models.nelts; i++) {
        for (j = 0; rc == ST_OK && j < model[i].nnames; j++) {
            if (i || j) {
                rc = st_buf_putc(out, ',');
            }

            if (rc == ST_OK) {
                rc = st_api_model_json(model[i].names[j], ngx_time(),
                                       (int32_t) model[i].max_len, out);
            }
        }
    }

    return rc == ST_OK ? st_buf_puts(out, "]}") : rc;
}


ngx_int_t
ngx_http_starling_models(ngx_http_request_t *r, ngx_http_starling_cluster_t *cl,
    u_char *name, size_t len)
{
    st_buf                      out = ST_BUF_INIT;
    u_char                     *p;
    st_status                   rc;
    ngx_int_t                   rv;
    ngx_http_starling_model_t  *model;

    if (len > 1) {
        /* names may have slashes in them: all of the rest is the name */
        model = ngx_http_starling_find_model(cl, (char *) name + 1, len - 1);
        if (model == NULL) {
            return ngx_http_starling_error(r, NGX_HTTP_NOT_FOUND,
                                           "model_not_found", "model", 0,
                                           "The model `%*s` does not exist",
                                           len - 1, name + 1);
        }

        p = ngx_pnalloc(r->pool, len);
        if (p == NULL) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        ngx_cpystrn(p, name + 1, len);
        rc = st_api_model_json((char *) p, ngx_time(),
                               (int32_t) model->max_len, &out);

    } else {
        rc = ngx_http_starling_models_json(cl, &out);
    }

    rv = NGX_HTTP_INTERNAL_SERVER_ERROR;

    if (rc == ST_OK) {
        p = ngx_pnalloc(r->pool, out.len);

        if (p && ngx_http_discard_request_body(r) == NGX_OK) {
            ngx_memcpy(p, out.data, out.len);
            rv = ngx_http_starling_send_json(r, NGX_HTTP_OK, p, out.len);
        }
    }

    st_buf_free(&out);
    return rv;
}
