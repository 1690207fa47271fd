/* Sharing a prompt's KV with another engine: the request's kv_transfer_params, in the fields of
 * vLLM's connectors, and the reply's, which the next engine is sent as they are. */
#include <string.h>

#include "api/api_fields.h"
#include "api/api_reply.h"

enum { MAX_HOST = 255, MAX_BLOCKS = 1 << 20 };

/* A member of kv_transfer_params; null means not given. */
static json_t *member(json_t *params, const char *key)
{
    json_t *v = json_object_get(params, key);
    return json_is_null(v) ? NULL : v;
}

static st_status bad_member(st_api_parser *p, const char *key, const json_t *v,
                            const char *expected)
{
    char path[64];
    snprintf(path, sizeof path, "kv_transfer_params.%s", key);
    return st_api_bad_value(p, path, v, expected);
}

static st_status read_flag(st_api_parser *p, json_t *params, const char *key, bool *out)
{
    json_t *v = member(params, key);
    *out = json_is_true(v);
    return !v || json_is_boolean(v) ? ST_OK : bad_member(p, key, v, "true or false");
}

/* 32 hexadecimal digits, as small letters. */
static bool copy_id(const json_t *v, char out[33])
{
    const char *s = json_string_value(v);
    if (!s || json_string_length(v) != 32)
        return false;
    for (int i = 0; i < 32; i++) {
        char c = s[i] >= 'A' && s[i] <= 'F' ? (char)(s[i] - 'A' + 'a') : s[i];
        if (!(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'f'))
            return false;
        out[i] = c;
    }
    out[32] = '\0';
    return true;
}

static st_status read_id(st_api_parser *p, json_t *params, const char *key, char out[33])
{
    json_t *v = member(params, key);
    return !v || copy_id(v, out) ? ST_OK : bad_member(p, key, v, "32 hexadecimal digits");
}

static st_status read_blocks(st_api_parser *p, json_t *params, st_handover_request *h)
{
    json_t *v = member(params, "remote_block_ids");
    size_t n = json_array_size(v);
    if (!v)
        return ST_OK;
    if (!json_is_array(v) || n > MAX_BLOCKS)
        return bad_member(p, "remote_block_ids", v, "a list of block ids");
    int32_t *blocks = st_arena_alloc(p->req->arena, n * sizeof *blocks);
    if (!blocks)
        return st_api_fail(p->err, 503, NULL, NULL, "memory is short");
    for (size_t i = 0; i < n; i++) {
        const json_t *b = json_array_get(v, i);
        json_int_t id = json_integer_value(b);
        if (!json_is_integer(b) || id < 0 || id > INT32_MAX)
            return bad_member(p, "remote_block_ids", b, "a list of block ids");
        blocks[i] = (int32_t)id;
    }
    h->remote_blocks = blocks;
    h->n_remote_blocks = (int32_t)n;
    return ST_OK;
}

/* Where to fetch, and under which id: transfer_id when both legs run at once, remote_request_id
 * when the prefill engine has answered. */
static st_status read_fetch(st_api_parser *p, json_t *params, st_handover_request *h)
{
    json_t *host = member(params, "remote_host"), *port = member(params, "remote_port");
    char request_id[33] = "";
    st_status s = read_id(p, params, "remote_request_id", request_id);
    if (s)
        return s;
    if (!h->id[0])
        memcpy(h->id, request_id, sizeof h->id);
    if (!h->id[0])
        return st_api_fail(p->err, 400, "kv_transfer_params", NULL,
                           "kv_transfer_params: expected transfer_id or remote_request_id with "
                           "do_remote_prefill");
    const char *name = json_string_value(host);
    size_t len = json_string_length(host);
    if (!name || len == 0 || len > MAX_HOST || strlen(name) != len)
        return bad_member(p, "remote_host", host ? host : json_null(), "a host's name or address");
    json_int_t number = json_integer_value(port);
    if (!json_is_integer(port) || number < 1 || number > 65535)
        return bad_member(p, "remote_port", port ? port : json_null(),
                          "a whole number from 1 to 65535");
    h->host = name;
    h->port = (uint16_t)number;
    return read_blocks(p, params, h);
}

st_status st_api_field_kv_transfer(st_api_parser *p, const char *key, json_t *v)
{
    st_handover_request *h = &p->req->pub.handover;
    bool offer, fetch;
    if (!json_is_object(v))
        return st_api_bad_value(p, key, v, "an object");
    st_status s = read_flag(p, v, "do_remote_decode", &offer);
    if (!s)
        s = read_flag(p, v, "do_remote_prefill", &fetch);
    if (!s && (offer || fetch))
        s = read_id(p, v, "transfer_id", h->id);
    if (s)
        return s;
    if (offer && fetch)
        return st_api_fail(p->err, 400, key, NULL,
                           "kv_transfer_params: do_remote_decode and do_remote_prefill are both "
                           "true: expected at most one of them");
    h->what = offer ? ST_HANDOVER_OFFER : fetch ? ST_HANDOVER_FETCH : ST_HANDOVER_NONE;
    return fetch ? read_fetch(p, v, h) : ST_OK;
}

st_status st_api_check_handover(st_api_parser *p)
{
    const st_api_request *r = &p->req->pub;
    static const char key[] = "kv_transfer_params";
    if (r->handover.what == ST_HANDOVER_NONE)
        return ST_OK;
    if (r->n > 1 || r->n_prompts > 1)
        return st_api_fail(p->err, 400, key, NULL,
                           "kv_transfer_params with %zu prompts and n = %d: expected one prompt "
                           "and n = 1",
                           r->n_prompts, r->n);
    if (r->handover.what == ST_HANDOVER_OFFER && r->stream)
        return st_api_fail(p->err, 400, key, NULL,
                           "kv_transfer_params.do_remote_decode with stream: expected stream to be "
                           "false");
    return ST_OK;
}

st_status st_api_reply_offer(st_api_reply *a, const st_api_offer *o)
{
    st_buf *out = &a->offer;
    st_buf_clear(out);
    st_status s = st_buf_puts(out, ",\"kv_transfer_params\":{\"do_remote_prefill\":true,"
                                   "\"do_remote_decode\":false,\"remote_block_ids\":");
    if (!s)
        s = st_api_write_ids(o->blocks, (size_t)o->n_blocks, out);
    if (!s)
        s = st_buf_printf(out, ",\"remote_engine_id\":\"%s\",\"remote_request_id\":\"%s\"",
                          o->engine_id, o->request_id);
    if (!s)
        s = st_buf_puts(out, ",\"remote_host\":");
    if (!s)
        s = st_buf_json_string(out, o->host, strlen(o->host));
    return s ? s
             : st_buf_printf(out, ",\"remote_port\":%u,\"tp_size\":1,\"remote_num_tokens\":%d}",
                             (unsigned)o->port, o->n_tokens);
}
