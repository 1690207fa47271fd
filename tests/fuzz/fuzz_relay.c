/* A client's body through the gateway to every kind of engine, and an engine's bytes back: whatever
 * comes out is JSON that jansson reads, with the fields that the plan asks for. Byte 0 chooses the
 * kind of request, and whether the rest is the body or the engine's answer. */
#include <stdlib.h>
#include <string.h>

#include "api/relay.h"
#include "base/sse_split.h"

#define REQUIRE(x)                                                                                 \
    do {                                                                                           \
        if (!(x))                                                                                  \
            abort();                                                                               \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct {
    st_engine_kind kind;
    st_leg_role role;
    st_handoff handoff;
    bool ids;
} plans[] = {
    {ST_KIND_STARLING, ST_LEG_WHOLE, ST_HANDOFF_NONE, true},
    {ST_KIND_STARLING, ST_LEG_PREFILL, ST_HANDOFF_PUSH, true},
    {ST_KIND_STARLING, ST_LEG_DECODE, ST_HANDOFF_PUSH, true},
    {ST_KIND_VLLM, ST_LEG_WHOLE, ST_HANDOFF_NONE, true},
    {ST_KIND_VLLM, ST_LEG_PREFILL, ST_HANDOFF_PULL, true},
    {ST_KIND_VLLM, ST_LEG_DECODE, ST_HANDOFF_PULL, false},
    {ST_KIND_VLLM, ST_LEG_DECODE, ST_HANDOFF_MOONCAKE, true},
    {ST_KIND_SGLANG, ST_LEG_DECODE, ST_HANDOFF_BOOTSTRAP, true},
};

static st_upstream_plan plan_of(size_t i)
{
    return (st_upstream_plan){.kind = plans[i].kind,
                              .role = plans[i].role,
                              .handoff = plans[i].handoff,
                              .model = "m\"",
                              .ids_json = plans[i].ids ? "[1,2]" : NULL,
                              .ids_json_len = 5,
                              .n_ids = 2,
                              .default_max_tokens = 7,
                              .kv_params = "{\"x\":1}",
                              .kv_params_len = 7,
                              .transfer_id = "t",
                              .remote_host = "h",
                              .remote_port = 1,
                              .bootstrap_addr = "http://h",
                              .remote_engine_id = "e",
                              .bootstrap_host = "::1",
                              .bootstrap_port = 2,
                              .bootstrap_room = 3};
}

static json_int_t whole(const json_t *root, const char *key)
{
    return json_integer_value(json_object_get(root, key));
}

static void check_body(const st_relay_request *r, const st_upstream_plan *plan, const json_t *root)
{
    bool chat = r->kind == ST_API_CHAT;
    const char *ids = chat && plan->kind == ST_KIND_STARLING ? "prompt_token_ids" : "prompt";
    REQUIRE(json_object_size(root) > 0);
    REQUIRE(strcmp(json_string_value(json_object_get(root, "model")), "m\"") == 0);
    if (plan->ids_json) {
        REQUIRE(json_array_size(json_object_get(root, ids)) == 2);
        REQUIRE(!chat || !json_object_get(root, "messages"));
    }
    if (plan->role == ST_LEG_PREFILL) {
        REQUIRE(whole(root, "max_tokens") == 1 && whole(root, "min_tokens") == 1);
        REQUIRE(json_is_false(json_object_get(root, "stream")));
        REQUIRE(!json_object_get(root, "stream_options"));
    }
    REQUIRE(json_is_object(json_object_get(root, "kv_transfer_params")) ==
            (plan->handoff != ST_HANDOFF_NONE && plan->handoff != ST_HANDOFF_BOOTSTRAP));
    const json_t *room = json_object_get(root, "bootstrap_room");
    if (json_is_array(room)) { /* one for each prompt */
        REQUIRE(json_array_size(room) == (size_t)r->n_prompts);
        room = json_array_get(room, 0);
    }
    REQUIRE((json_integer_value(room) == 3) == (plan->handoff == ST_HANDOFF_BOOTSTRAP));
}

static void client_body(st_api_kind kind, const char *body, size_t len)
{
    st_relay_request *r;
    st_api_error err;
    st_status s = st_relay_parse(kind, body, len, &r, &err);
    if (s) {
        REQUIRE(err.http_status == 400 && err.why.text[0]);
        return;
    }
    json_t *original = json_loadb(body, len, 0, NULL);
    for (size_t i = 0; i < sizeof plans / sizeof *plans; i++) {
        st_upstream_plan plan = plan_of(i);
        st_buf out = ST_BUF_INIT;
        const char *path;
        if (plan.ids_json && !st_relay_takes_ids(r, plan.kind))
            plan.ids_json = NULL;
        REQUIRE(st_upstream_body(r, &plan, &path, &out) == ST_OK);
        json_t *root = json_loadb(out.data, out.len, 0, NULL);
        REQUIRE(root || !original);
        if (root && original)
            check_body(r, &plan, root);
        json_decref(root);
        st_buf_free(&out);
    }
    json_decref(original);
    st_relay_request_free(r);
}

static void check_json(const char *text, size_t len)
{
    st_json_scan s;
    st_json_token token;
    st_json_scan_init(&s, text, len);
    while ((token = st_json_next(&s)) != ST_JSON_END)
        REQUIRE(token != ST_JSON_ERROR);
}

/* What the client is sent must be whole events of JSON. */
static void check_events(const st_buf *out)
{
    st_sse_event ev;
    size_t at = 0, n, scanned = 0;
    if (out->len == 0)
        return;
    while ((n = st_sse_next(out->data + at, out->len - at, &scanned, &ev)) > 0) {
        at += n;
        REQUIRE(ev.data);
        check_json(ev.data, ev.data_len);
    }
    REQUIRE(at == out->len);
}

static void engine_answer(bool translate, const char *text, size_t len)
{
    static const char body[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"n\":2,"
                               "\"stream\":true,\"stream_options\":{\"include_usage\":true}}";
    st_relay_request *r;
    st_relay_reply *a;
    st_api_error api_err;
    st_error err;
    st_sse_event ev;
    st_buf out = ST_BUF_INIT, kv = ST_BUF_INIT, message = ST_BUF_INIT;
    size_t n, scanned = 0;
    bool verbatim;
    REQUIRE(st_relay_parse(ST_API_CHAT, body, strlen(body), &r, &api_err) == ST_OK);
    REQUIRE(st_relay_reply_new(r, "m", translate, 1, 1, &a) == ST_OK);
    for (size_t at = 0; (n = st_sse_next(text + at, len - at, &scanned, &ev)) > 0; at += n) {
        st_buf_clear(&out);
        st_status s = st_relay_reply_event(a, text + at, n, &verbatim, &out, &err);
        REQUIRE(s == ST_OK || (s == ST_EFORMAT && out.len == 0 && err.text[0]));
        REQUIRE(!verbatim || out.len == 0);
        check_events(&out);
    }
    st_buf_clear(&out);
    if (!st_relay_reply_whole(a, text, len, &verbatim, &out, &err) && !verbatim) {
        st_splice *whole;
        REQUIRE(st_splice_new(out.data, out.len, &whole, &err) == ST_OK);
        st_splice_free(whole);
    }
    if (!st_upstream_kv_params(text, len, &kv, &err))
        REQUIRE(kv.len >= 2 && kv.data[0] == '{');
    if (!st_upstream_error(text, len, 400, &message))
        check_json(message.data, message.len);
    (void)st_upstream_error_status(text, len);
    st_buf_free(&out);
    st_buf_free(&kv);
    st_buf_free(&message);
    st_relay_reply_free(a);
    st_relay_request_free(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    char *copy = malloc(size);
    memcpy(copy, data + 1, size - 1);
    if (data[0] & 2)
        engine_answer(data[0] & 1, copy, size - 1);
    else
        client_body(data[0] & 1 ? ST_API_CHAT : ST_API_COMPLETION, copy, size - 1);
    free(copy);
    return 0;
}
