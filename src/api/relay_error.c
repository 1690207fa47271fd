/* Errors that engines report, on their way to the client: OpenAI's shape stays as it is; vLLM's and
 * SGLang's flat ones, bare texts and what proxies say are put into it. */
#include <string.h>

#include "api/json_pick.h"
#include "api/relay.h"
#include "base/utf8.h"

enum { MAX_ERROR_TEXT = 800 };
enum { MESSAGE, TYPE, PARAM, CODE, N_MEMBERS };
static const char *const members[N_MEMBERS] = {"message", "type", "param", "code"};

/* Plain text, as proxies and crashing servers send it; a page of HTML is no message. */
static bool plain_message(const char *body, size_t len, st_buf *out)
{
    while (len && strchr(" \t\r\n", body[len - 1]))
        len--;
    while (len && strchr(" \t\r\n", *body)) {
        body++;
        len--;
    }
    if (len == 0 || memchr("<{[", *body, 3))
        return false;
    len = len < MAX_ERROR_TEXT ? len : MAX_ERROR_TEXT;
    len -= st_utf8_incomplete_tail(body, len);
    return st_utf8_valid(body, len) && !memchr(body, '\0', len) &&
           !st_buf_json_string(out, body, len);
}

/* The members of an error in any of its shapes; *whole: OpenAI's, with nothing missing. false: body
 * is no JSON object. */
static bool find_members(const char *body, size_t len, st_picked *v, bool *whole)
{
    static const char *const names[] = {"error", "detail"};
    st_picked top[2];
    *whole = false;
    if (!st_json_pick(body, len, names, 2, top, NULL))
        return false;
    if (top[0].type == ST_JSON_OBJECT) {
        if (!st_json_pick(top[0].at, top[0].len, members, N_MEMBERS, v, NULL))
            return false;
        *whole = v[MESSAGE].type == ST_JSON_STRING && v[TYPE].type == ST_JSON_STRING &&
                 v[PARAM].type != ST_JSON_ERROR && v[CODE].type != ST_JSON_ERROR;
        return true;
    }
    if (!st_json_pick(body, len, members, N_MEMBERS, v, NULL))
        return false;
    for (size_t i = 0; i < 2 && v[MESSAGE].type != ST_JSON_STRING; i++)
        v[MESSAGE] = top[i];
    return true;
}

static st_status put_members(const st_picked *v, const char *message, int http_status, st_buf *out)
{
    st_status s = st_buf_puts(out, "{\"error\":{");
    for (size_t i = 0; !s && i < N_MEMBERS; i++) {
        bool usable = i <= TYPE ? v[i].type == ST_JSON_STRING : st_picked_given(&v[i]);
        s = st_buf_printf(out, "%s\"%s\":", i ? "," : "", members[i]);
        if (!s && usable)
            s = st_buf_append(out, v[i].at, v[i].len);
        else if (!s && i == TYPE)
            s = st_buf_printf(out, "\"%s\"", st_api_error_type(http_status));
        else if (!s)
            s = st_buf_puts(out, i == MESSAGE ? message : "null");
    }
    return s ? s : st_buf_puts(out, "}}");
}

st_status st_upstream_error(const char *body, size_t len, int http_status, st_buf *out)
{
    st_picked v[N_MEMBERS] = {0};
    st_buf message = ST_BUF_INIT;
    bool whole;
    st_status s = ST_ENOTFOUND;
    if (find_members(body, len, v, &whole)) {
        if (v[MESSAGE].type == ST_JSON_STRING)
            s = whole ? st_buf_append(out, body, len) : put_members(v, NULL, http_status, out);
    } else if (plain_message(body, len, &message)) {
        memset(v, 0, sizeof v);
        s = put_members(v, message.data, http_status, out);
    }
    st_buf_free(&message);
    return s;
}

int st_upstream_error_status(const char *body, size_t len)
{
    st_picked v[N_MEMBERS];
    bool whole;
    int64_t code;
    if (!find_members(body, len, v, &whole) || !st_picked_int64(&v[CODE], &code))
        return 0;
    return code >= 400 && code < 600 ? (int)code : 0;
}
