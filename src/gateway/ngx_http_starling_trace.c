/*
 * The names that travel with a request: x-request-id, traceparent and
 * tracestate, the client's or new ones, the same for both engines.
 */

#include "ngx_http_starling_ctx.h"

#include <sys/random.h>


ngx_table_elt_t *
ngx_http_starling_find_header(ngx_http_request_t *r, const char *name,
    size_t len)
{
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    part = &r->headers_in.headers.part;
    h = part->elts;

    for (i = 0; /* void */ ; i++) {
        if (i >= part->nelts) {
            if (part->next == NULL) {
                return NULL;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        if (h[i].key.len == len
            && ngx_strncmp(h[i].lowcase_key, name, len) == 0)
        {
            return &h[i];
        }
    }
}


/* the client's if it is fit for a header's value, or a new one */

static ngx_int_t
ngx_http_starling_trace_id(ngx_http_starling_ctx_t *ctx, u_char *random)
{
    size_t            i;
    ngx_str_t        *id;
    ngx_table_elt_t  *h;

    id = &ctx->request_id;
    h = ngx_http_starling_find_header(ctx->request, "x-request-id", 12);

    if (h && h->value.len && h->value.len <= 128) {
        for (i = 0; i < h->value.len && h->value.data[i] > 0x20
                    && h->value.data[i] < 0x7f; i++)
        {
            /* void */
        }

        if (i == h->value.len) {
            *id = h->value;
            return NGX_OK;
        }
    }

    id->data = ngx_pnalloc(ctx->request->pool, 32);
    if (id->data == NULL) {
        return NGX_ERROR;
    }

    id->len = ngx_hex_dump(id->data, random, 16) - id->data;

    return NGX_OK;
}


ngx_int_t
ngx_http_starling_trace(ngx_http_starling_ctx_t *ctx)
{
    u_char               random[48], *p;
    size_t               len;
    ngx_str_t            parent, state;
    ngx_table_elt_t     *h;
    ngx_http_request_t  *r;

    r = ctx->request;

    if (getrandom(random, sizeof(random), 0) != (ssize_t) sizeof(random)
        || ngx_http_starling_trace_id(ctx, random) != NGX_OK)
    {
        return NGX_ERROR;
    }

    ngx_memcpy(&ctx->id, random, 8);

    ngx_str_null(&parent);
    ngx_str_null(&state);

    h = ngx_http_starling_find_header(r, "traceparent", 11);

    if (h && h->value.len >= 55 && h->value.len <= 128) {
        parent = h->value;
        h = ngx_http_starling_find_header(r, "tracestate", 10);

        if (h && h->value.len <= 512) {
            state = h->value;
        }
    }

    len = sizeof("X-Request-Id: \r\ntraceparent: \r\ntracestate: \r\n") - 1
          + ctx->request_id.len + ngx_max(parent.len, 55) + state.len;

    p = ngx_pnalloc(r->pool, len);
    if (p == NULL) {
        return NGX_ERROR;
    }

    ctx->headers.data = p;
    p = ngx_sprintf(p, "X-Request-Id: %V\r\ntraceparent: ", &ctx->request_id);

    if (parent.len) {
        p = ngx_cpymem(p, parent.data, parent.len);

    } else {
        p = ngx_cpymem(p, "00-", 3);
        p = ngx_hex_dump(p, random + 16, 16);
        *p++ = '-';
        p = ngx_hex_dump(p, random + 32, 8);
        p = ngx_cpymem(p, "-01", 3);
    }

    p = ngx_cpymem(p, "\r\n", 2);

    if (state.len) {
        p = ngx_sprintf(p, "tracestate: %V\r\n", &state);
    }

    ctx->headers.len = p - ctx->headers.data;

    return NGX_OK;
}
