/*
 * Who may come in, and how often: API keys and rate limits.
 */

#include "ngx_http_starling.h"

#include <xxhash.h>


static void
ngx_http_starling_sent_key(ngx_http_request_t *r, ngx_str_t *key)
{
    ngx_str_t        *v;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *header;

    ngx_str_null(key);

    if (r->headers_in.authorization) {
        v = &r->headers_in.authorization->value;

        if (v->len > 7 && ngx_strncasecmp(v->data, (u_char *) "bearer ", 7)
                          == 0)
        {
            key->data = v->data + 7;
            key->len = v->len - 7;
        }

        return;
    }

    /* Anthropic's clients */

    part = &r->headers_in.headers.part;
    header = part->elts;

    for (i = 0; /* void */ ; i++) {

        if (i >= part->nelts) {
            if (part->next == NULL) {
                return;
            }

            part = part->next;
            header = part->elts;
            i = 0;
        }

        if (header[i].key.len == sizeof("x-api-key") - 1
            && ngx_strncasecmp(header[i].key.data, (u_char *) "x-api-key",
                               sizeof("x-api-key") - 1) == 0)
        {
            *key = header[i].value;
            return;
        }
    }
}


/* in a time that tells the length of the known key and nothing else */

static ngx_uint_t
ngx_http_starling_same_key(ngx_str_t *known, ngx_str_t *sent)
{
    size_t           i;
    volatile size_t  diff;

    diff = known->len ^ sent->len;

    for (i = 0; i < known->len; i++) {
        diff |= known->data[i] ^ sent->data[i % sent->len];
    }

    return diff == 0;
}


ngx_int_t
ngx_http_starling_authorize(ngx_http_request_t *r,
    ngx_http_starling_cluster_t *cl, uint64_t *who)
{
    ngx_str_t   key, *known;
    ngx_uint_t  i, found;

    if (cl->api_keys == NULL) {
        *who = XXH3_64bits(r->connection->addr_text.data,
                           r->connection->addr_text.len);
        return NGX_OK;
    }

    ngx_http_starling_sent_key(r, &key);

    if (key.len == 0) {
        return NGX_DECLINED;
    }

    known = cl->api_keys->elts;
    found = 0;

    for (i = 0; i < cl->api_keys->nelts; i++) {
        found |= ngx_http_starling_same_key(&known[i], &key);
    }

    *who = XXH3_64bits(key.data, key.len);

    return found ? NGX_OK : NGX_DECLINED;
}


ngx_int_t
ngx_http_starling_rate(ngx_http_starling_cluster_t *cl, uint64_t who,
    ngx_uint_t *retry_after)
{
    uint32_t  wait;

    if (cl->rate == 0
        || st_cluster_rate_take(cl->shared, who, cl->rate, cl->burst, 1,
                                ngx_http_starling_now(), &wait))
    {
        return NGX_OK;
    }

    *retry_after = ngx_max(1, (wait + 999) / 1000);

    return NGX_BUSY;
}
