/* Errors in OpenAI's shape: see starling/api.h. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "starling/api.h"

static st_status class_of(int http_status)
{
    return http_status >= 500 ? ST_EINTERNAL : ST_EINVAL;
}

st_status st_api_fail(st_api_error *e, int http_status, const char *param, const char *code,
                      const char *fmt, ...)
{
    char text[sizeof e->why.text];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    e->http_status = http_status;
    snprintf(e->param, sizeof e->param, "%s", param ? param : "");
    snprintf(e->code, sizeof e->code, "%s", code ? code : "");
    return st_fail(&e->why, class_of(http_status), "%s", text);
}

st_status st_api_fail_from(st_api_error *e, const char *param, const st_error *why)
{
    int http_status = 500;
    const char *code = NULL;
    switch (why->status) {
    case ST_EINVAL:
    case ST_EFORMAT:
    case ST_EUNSUPPORTED:
        http_status = 400;
        break;
    case ST_ENOTFOUND:
        http_status = 404;
        break;
    case ST_EFULL:
        http_status = 429;
        code = "queue_full";
        break;
    case ST_ECANCELLED:
    case ST_EDEADLINE:
    case ST_ENOMEM:
        http_status = 503;
        break;
    default:
        break;
    }
    return st_api_fail(e, http_status, param, code, "%s", why->text);
}

const char *st_api_error_type(int http_status)
{
    switch (http_status) {
    case 401:
        return "authentication_error";
    case 404:
        return "not_found_error";
    case 429:
        return "rate_limit_error";
    case 503:
        return "overloaded_error";
    default:
        return http_status >= 500 ? "server_error" : "invalid_request_error";
    }
}

static st_status string_or_null(st_buf *out, const char *s)
{
    return *s ? st_buf_json_string(out, s, strlen(s)) : st_buf_puts(out, "null");
}

st_status st_api_error_json(const st_api_error *e, st_buf *out)
{
    st_status s = st_buf_puts(out, "{\"error\":{\"message\":");
    if (!s)
        s = st_buf_json_string(out, e->why.text, strlen(e->why.text));
    if (!s)
        s = st_buf_printf(out, ",\"type\":\"%s\",\"param\":", st_api_error_type(e->http_status));
    if (!s)
        s = string_or_null(out, e->param);
    if (!s)
        s = st_buf_puts(out, ",\"code\":");
    if (!s)
        s = string_or_null(out, e->code);
    return s ? s : st_buf_puts(out, "}}");
}

st_status st_api_error_event(const st_api_error *e, st_buf *out)
{
    st_status s = st_buf_puts(out, "data: ");
    if (!s)
        s = st_api_error_json(e, out);
    return s ? s : st_buf_puts(out, "\n\ndata: [DONE]\n\n");
}
