/*
 * Values of the starling_cluster block's directives: "name=value" by a table
 * of names, types and ranges; what does not fit is refused with what was
 * expected.
 */

#include "ngx_http_starling.h"


static ngx_int_t
ngx_http_starling_number(ngx_conf_t *cf, ngx_http_starling_param_t *p,
    ngx_str_t *text, ngx_str_t *word)
{
    char     *end;
    double    d;
    u_char    lo[32], hi[32];
    ssize_t   n;

    errno = 0;

    switch (p->type) {

    case NGX_HTTP_STARLING_MSEC:
        n = ngx_parse_time(text, 0);
        d = n == NGX_ERROR ? -1 : (double) n;
        break;

    case NGX_HTTP_STARLING_SIZE:
        d = (double) ngx_parse_offset(text);
        break;

    default:
        /* strtod would take "inf", "0x1p3" and blanks, too */
        d = strspn((char *) text->data, "0123456789.") == text->len
            ? strtod((char *) text->data, &end) : -1;
        if (d >= 0 && (text->len == 0 || *end != '\0')) {
            d = -1;
        }
    }

    if (p->type != NGX_HTTP_STARLING_FLOAT && d != (double) (int64_t) d) {
        d = -1;
    }

    if (text->len && d >= p->min && d <= p->max) {
        switch (p->type) {
        case NGX_HTTP_STARLING_INT:
            *(ngx_int_t *) p->value = (ngx_int_t) d;
            break;
        case NGX_HTTP_STARLING_INT64:
            *(int64_t *) p->value = (int64_t) d;
            break;
        case NGX_HTTP_STARLING_FLOAT:
            *(double *) p->value = d;
            break;
        case NGX_HTTP_STARLING_MSEC:
            *(ngx_msec_t *) p->value = (ngx_msec_t) d;
            break;
        default:
            *(size_t *) p->value = (size_t) d;
        }

        return NGX_OK;
    }

    if (p->type == NGX_HTTP_STARLING_MSEC) {
        *ngx_snprintf(lo, sizeof(lo) - 1, "%uLms", (uint64_t) p->min) = '\0';
        *ngx_snprintf(hi, sizeof(hi) - 1, "%uLs", (uint64_t) p->max / 1000)
            = '\0';

    } else if (p->type == NGX_HTTP_STARLING_FLOAT) {
        snprintf((char *) lo, sizeof(lo), "%g", p->min);
        snprintf((char *) hi, sizeof(hi), "%g", p->max);

    } else {
        *ngx_snprintf(lo, sizeof(lo) - 1, "%uL", (uint64_t) p->min) = '\0';
        *ngx_snprintf(hi, sizeof(hi) - 1, "%uL", (uint64_t) p->max) = '\0';
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "\"%V\": \"%V\": expected %s from %s to %s",
                       cf->args->elts, word,
                       p->type == NGX_HTTP_STARLING_MSEC ? "a time (\"30s\")"
                       : p->type == NGX_HTTP_STARLING_SIZE
                         ? "a size (\"64m\")"
                       : p->type == NGX_HTTP_STARLING_FLOAT ? "a number"
                       : "an integer",
                       lo, hi);

    return NGX_ERROR;
}


static ngx_int_t
ngx_http_starling_param(ngx_conf_t *cf, ngx_http_starling_param_t *p,
    ngx_str_t *text, ngx_str_t *word)
{
    ngx_str_t  *item;

    if (p->type != NGX_HTTP_STARLING_STRING
        && p->type != NGX_HTTP_STARLING_LIST)
    {
        return ngx_http_starling_number(cf, p, text, word);
    }

    if (text->len == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\": \"%V\": a value is missing",
                           cf->args->elts, word);
        return NGX_ERROR;
    }

    item = p->type == NGX_HTTP_STARLING_STRING ? p->value
                                               : ngx_array_push(p->value);
    if (item == NULL) {
        return NGX_ERROR;
    }

    *item = *text;

    return NGX_OK;
}


static ngx_int_t
ngx_http_starling_unknown_param(ngx_conf_t *cf,
    ngx_http_starling_param_t *params, ngx_uint_t n, ngx_str_t *word)
{
    u_char      buf[256], *p, *last;
    ngx_uint_t  i;

    p = buf;
    last = buf + sizeof(buf) - 1;

    for (i = 0; i < n; i++) {
        p = ngx_slprintf(p, last, "%s%s=", i ? ", " : "", params[i].name);
    }

    *p = '\0';

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "\"%V\": unknown parameter \"%V\"; expected %s",
                       cf->args->elts, word, buf);

    return NGX_ERROR;
}


ngx_int_t
ngx_http_starling_params(ngx_conf_t *cf, ngx_uint_t first,
    ngx_http_starling_param_t *params, ngx_uint_t n)
{
    uint64_t    seen;
    ngx_str_t  *value, text;
    ngx_uint_t  i, k, len;

    value = cf->args->elts;
    seen = 0;

    if (params[0].name == NULL) {
        return ngx_http_starling_param(cf, &params[0], &value[first],
                                       &value[first]);
    }

    for (i = first; i < cf->args->nelts; i++) {

        for (k = 0; k < n; k++) {
            len = ngx_strlen(params[k].name);

            if (value[i].len > len && value[i].data[len] == '='
                && ngx_strncmp(value[i].data, params[k].name, len) == 0)
            {
                break;
            }
        }

        if (k == n) {
            return ngx_http_starling_unknown_param(cf, params, n, &value[i]);
        }

        if (seen & (1ULL << k) && params[k].type != NGX_HTTP_STARLING_LIST) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"%V\": \"%s=\" stands there twice",
                               value, params[k].name);
            return NGX_ERROR;
        }

        seen |= 1ULL << k;

        text.data = value[i].data + len + 1;
        text.len = value[i].len - len - 1;

        if (ngx_http_starling_param(cf, &params[k], &text, &value[i])
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}
