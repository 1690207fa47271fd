/* src/api/relay.h: what of a client's body is looked at, its ids, and what engines are sent, byte
 * for byte. */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "relay_parse.h"

/* ---- parsing ---- */

static void refused(void **state)
{
    (void)state;
    static const struct {
        st_api_kind kind;
        const char *body, *param, *says;
    } cases[] = {
        {CHAT, "", "", "empty"},
        {CHAT, "[]", "", "not a JSON object"},
        {CHAT, "{" MSG, "", "line 1, column 53"},
        {CHAT, "{" MSG ",\"n\":1,\"n\":2}", "", "'n' is there twice"},
        {CHAT, "{\"a\":\"\x80\"," MSG "}", "", "UTF-8"},
        {CHAT, "{}", "messages", "is missing"},
        {CHAT, "{\"messages\":null}", "messages", "is missing"},
        {CHAT, "{\"messages\":[]}", "messages", "is a list: expected a non-empty list"},
        {CHAT, "{\"messages\":\"x\"}", "messages", "is a string"},
        {CHAT, "{" MSG ",\"model\":7}", "model", "model is 7: expected a string"},
        {CHAT, "{" MSG ",\"model\":\"a\\u0000b\"}", "model", "U+0000"},
        {CHAT, "{" MSG ",\"stream\":\"yes\"}", "stream", "true or false"},
        {CHAT, "{" MSG ",\"stream_options\":{}}", "stream_options", "stream to be true"},
        {CHAT, "{" MSG ",\"stream\":true,\"stream_options\":[]}", "stream_options", "an object"},
        {CHAT, "{" MSG ",\"max_tokens\":0}", "max_tokens", "max_tokens is 0"},
        {CHAT, "{" MSG ",\"max_tokens\":1.5}", "max_tokens", "1.5"},
        {CHAT, "{" MSG ",\"max_tokens\":99999999999999999999}", "max_tokens", "from 1 to"},
        {CHAT, "{" MSG ",\"max_completion_tokens\":\"9\"}", "max_completion_tokens", "a string"},
        {CHAT, "{" MSG ",\"n\":129}", "n", "from 1 to 128"},
        {CHAT, "{" MSG ",\"logprobs\":3}", "logprobs", "true or false"},
        {CHAT, "{" MSG ",\"priority\":true}", "priority", "is true"},
        {CHAT, "{" MSG ",\"cache_salt\":{}}", "cache_salt", "an object"},
        {CHAT, "{" MSG ",\"kv_transfer_params\":{}}", "kv_transfer_params", "only the gateway"},
        {CHAT, "{" MSG ",\"bootstrap_room\":1}", "bootstrap_room", "only the gateway"},
        {CHAT, "{" MSG ",\"bootstrap_host\":\"h\"}", "bootstrap_host", "only the gateway"},
        {CHAT, "{" MSG ",\"bootstrap_port\":1}", "bootstrap_port", "only the gateway"},
        {CHAT, "{\"prompt_token_ids\":[1]}", "prompt_token_ids", "only the gateway"},
        {COMP, "{\"kv_transfer\\u005fparams\":{},\"prompt\":\"x\"}", "kv_transfer_params", "only"},
        {COMP, "{}", "prompt", "is missing"},
        {COMP, "{\"prompt\":[]}", "prompt", "expected a string"},
        {COMP, "{\"prompt\":7}", "prompt", "expected a string"},
        {COMP, "{\"prompt\":[1,\"a\"]}", "prompt", "expected a string"},
        {COMP, "{\"prompt\":[{}]}", "prompt", "expected a string"},
        {COMP, "{\"prompt\":\"x\",\"logprobs\":true}", "logprobs", "a whole number"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_relay_request *r;
        st_api_error err;
        st_status s = st_relay_parse(cases[i].kind, cases[i].body, strlen(cases[i].body), &r, &err);
        if (!s || r || err.http_status != 400 || strcmp(err.param, cases[i].param) != 0 ||
            !strstr(err.why.text, cases[i].says))
            fail_msg("%s: %s: %s", cases[i].body, s ? err.param : "taken", s ? err.why.text : "");
    }
}

static void fields(void **state)
{
    (void)state;
    st_relay_request *r = parse(
        CHAT,
        "{\"model\":\"le\\u0078\"," MSG ",\"stream\":true,\"stream_options\":"
        "{\"include_usage\":true},\"max_tokens\":5,\"max_completion_tokens\":7.0,\"n\":3,"
        "\"cache_salt\":\"s\",\"priority\":-2,\"logprobs\":true,\"kv_transfer_params\":null}");
    assert_string_equal(r->model.data, "lex");
    assert_true(r->stream && r->include_usage && r->wants_logprobs && !r->text_only);
    assert_true(r->max_tokens == 7 && r->n == 3 && r->priority == -2 && r->n_prompts == 1);
    assert_string_equal(r->cache_salt.data, "s");
    st_relay_request_free(r);
    r = parse(CHAT, "{" MSG "}");
    assert_true(r->model.len == 0 && !r->stream && !r->include_usage && r->max_tokens == -1);
    assert_true(r->n == 1 && !r->wants_logprobs && r->cache_salt.len == 0 && !r->ids_given);
    st_relay_request_free(r);
    static const struct {
        const char *more, *whole_only; /* NULL: prefill and decode may be apart */
    } splits[] = {
        {"", NULL},
        {",\"n\":1,\"use_beam_search\":false,\"prompt_logprobs\":null", NULL},
        {",\"n\":2", "n"},
        {",\"best_of\":2", "best_of"},
        {",\"use_beam_search\":true", "use_beam_search"},
        {",\"prompt_logprobs\":0", "prompt_logprobs"},
    };
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
        char body[128];
        snprintf(body, sizeof body, "{\"prompt\":\"x\"%s}", splits[i].more);
        r = parse(COMP, body);
        if (splits[i].whole_only)
            assert_string_equal(r->whole_only, splits[i].whole_only);
        else
            assert_null(r->whole_only);
        st_relay_request_free(r);
    }
    static const struct {
        const char *body;
        int64_t n_prompts, n;
        bool ids;
    } prompts[] = {
        {"{\"prompt\":\"x\"}", 1, 1, false},
        {"{\"prompt\":[1,2]}", 1, 1, true},
        {"{\"prompt\":[[1,2]]}", 1, 1, true},
        {"{\"prompt\":[\"x\"]}", 1, 1, false},
        {"{\"prompt\":[\"x\",[1]],\"best_of\":2}", 2, 2, false},
        {"{\"prompt_embeds\":\"x\"}", 1, 1, false},
    };
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        r = parse(COMP, prompts[i].body);
        assert_int_equal(r->n_prompts, prompts[i].n_prompts);
        assert_int_equal(r->n, prompts[i].n);
        assert_int_equal(r->ids_given, prompts[i].ids);
        st_relay_request_free(r);
    }
}

static void text_only(void **state)
{
    (void)state;
    static const struct {
        const char *field, *why; /* NULL: ids will do */
    } cases[] = {
        {"\"tools\":[{\"type\":\"function\"}]", "tools"},
        {"\"tools\":[{}],\"tool_choice\":\"auto\"", "tools"},
        {"\"tools\":[{}],\"tool_choice\":\"none\"", NULL},
        {"\"tools\":[ ]", NULL},
        {"\"tools\":null", NULL},
        {"\"functions\":[{}]", "functions"},
        {"\"response_format\":{\"type\":\"text\"}", NULL},
        {"\"response_format\":{\"type\":\"json_object\"}", "response_format"},
        {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{}}", "response_format"},
        {"\"response_format\":\"text\"", "response_format"},
        {"\"guided_json\":{}", "guided_json"},
        {"\"guided_regex\":\"a\"", "guided_regex"},
        {"\"structured_outputs\":{}", "structured_outputs"},
        {"\"ebnf\":\"a\"", "ebnf"},
        {"\"guided_json\":null", NULL},
        {"\"chat_template\":\"x\"", "chat_template"},
        {"\"chat_template_kwargs\":{\"guided_json\":1}", NULL},
        {"\"modalities\":[\"text\"]", NULL},
        {"\"modalities\":[\"text\",\"audio\"]", "modalities"},
        {"\"prompt_logprobs\":1", "prompt_logprobs"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[256];
        snprintf(body, sizeof body, "{%s," MSG "}", cases[i].field);
        st_relay_request *r = parse(CHAT, body);
        if (r->text_only != (cases[i].why != NULL) ||
            (cases[i].why && strcmp(r->text_only_why, cases[i].why) != 0))
            fail_msg("%s: %s", body, r->text_only ? r->text_only_why : "not text only");
        assert_int_equal(st_relay_takes_ids(r, ST_KIND_VLLM), !r->text_only);
        st_relay_request_free(r);
    }
    static const char *const parts[] = {"\"text\",\"text\":\"x\"", "\"image_url\",\"image_url\":{}",
                                        "\"input_audio\""};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char body[256];
        snprintf(body, sizeof body,
                 "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":%s}]}]}", parts[i]);
        st_relay_request *r = parse(CHAT, body);
        assert_int_equal(r->text_only, i > 0);
        st_relay_request_free(r);
    }
    st_relay_request *r = parse(CHAT, "{" MSG ",\"logprobs\":true}");
    assert_true(st_relay_takes_ids(r, ST_KIND_STARLING));
    assert_false(st_relay_takes_ids(r, ST_KIND_VLLM) || st_relay_takes_ids(r, ST_KIND_SGLANG));
    st_relay_request_free(r);
}

/* ---- bodies ---- */

#define STARLING ST_KIND_STARLING
#define VLLM     ST_KIND_VLLM
#define SGLANG   ST_KIND_SGLANG
#define WHOLE    .role = ST_LEG_WHOLE
#define IDS      .ids_json = "[1,2]", .ids_json_len = 5, .n_ids = 2
#define CHATS    "/v1/chat/completions"
#define COMPS    "/v1/completions"

static const struct {
    st_api_kind kind;
    const char *body;
    st_upstream_plan plan;
    const char *path, *result;
} bodies[] = {
    /* text, one engine: untouched */
    {CHAT, " { " MSG " }\n", {.kind = VLLM, WHOLE}, CHATS, " { " MSG " }\n"},
    {CHAT,
     "{\"model\":\"a\"," MSG "}",
     {.kind = SGLANG, WHOLE, .model = "b\"c"},
     CHATS,
     "{\"model\":\"b\\\"c\"," MSG "}"},
    {CHAT,
     "{" MSG "}",
     {.kind = STARLING, WHOLE, .model = "b"},
     CHATS,
     "{" MSG ",\"model\":\"b\"}"},
    /* ids */
    {CHAT,
     "{\"model\":\"a\"," MSG ",\"temperature\":0, \"logprobs\":true,\"tools\":[{}],"
     "\"tool_choice\":\"none\"}",
     {.kind = STARLING, WHOLE, IDS, .default_max_tokens = 9},
     CHATS,
     "{\"model\":\"a\",\"temperature\":0, \"logprobs\":true,\"prompt_token_ids\":[1,2]}"},
    {COMP,
     "{\"prompt\":\"max_tokens\",\"max_tokens\":4}",
     {.kind = VLLM, WHOLE, IDS, .default_max_tokens = 9},
     COMPS,
     "{\"prompt\":[1,2],\"max_tokens\":4}"},
    {COMP, "{\"prompt\":[[1,2]]}", {.kind = STARLING, WHOLE, IDS}, COMPS, "{\"prompt\":[1,2]}"},
    /* a chat as a completion */
    {CHAT,
     "{\"model\":\"a\"," MSG ",\"max_completion_tokens\":30,\"max_tokens\":20,\"top_k\":5}",
     {.kind = VLLM, WHOLE, IDS, .default_max_tokens = 9},
     COMPS,
     "{\"model\":\"a\",\"max_tokens\":30,\"top_k\":5,\"prompt\":[1,2]}"},
    {CHAT,
     "{" MSG ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}",
     {.kind = SGLANG, WHOLE, IDS, .default_max_tokens = 9},
     COMPS,
     "{\"stream\":true,\"stream_options\":{\"include_usage\":true},\"prompt\":[1,2],"
     "\"max_tokens\":9}"},
    {CHAT,
     "{" MSG ",\"temperature\":null,\"max_tokens\":null,\"logprobs\":false,\"top_logprobs\":0,"
     "\"response_format\":{\"type\":\"text\"},\"echo\":true,\"skip_special_tokens\":false,"
     "\"stop\":[\"x\"],\"continue_final_message\":false,\"model\":null}",
     {.kind = SGLANG, WHOLE, IDS, .default_max_tokens = 9, .model = "m"},
     COMPS,
     "{\"max_tokens\":9,\"skip_special_tokens\":false,\"stop\":[\"x\"],\"model\":\"m\","
     "\"prompt\":[1,2]}"},
    {CHAT, "{" MSG ",\"user\":null}", {.kind = VLLM, WHOLE, IDS}, COMPS, "{\"prompt\":[1,2]}"},
    /* vLLM's NIXL, and our pull */
    {CHAT,
     "{" MSG ",\"stream\":true,\"stream_options\":{\"include_usage\":true},\"max_tokens\":50,"
     "\"min_tokens\":7}",
     {.kind = VLLM, .role = ST_LEG_PREFILL, .handoff = ST_HANDOFF_PULL},
     CHATS,
     "{" MSG ",\"stream\":false,\"max_tokens\":1,\"min_tokens\":1,\"max_completion_tokens\":1,"
     "\"kv_transfer_params\":{\"do_remote_decode\":true,\"do_remote_prefill\":false,"
     "\"remote_engine_id\":null,\"remote_block_ids\":null,\"remote_host\":null,"
     "\"remote_port\":null}}"},
    {CHAT,
     "{" MSG ",\"stream\":true,\"max_completion_tokens\":50}",
     {.kind = VLLM,
      .role = ST_LEG_PREFILL,
      .handoff = ST_HANDOFF_PULL,
      IDS,
      .default_max_tokens = 9},
     COMPS,
     "{\"stream\":false,\"max_completion_tokens\":1,\"prompt\":[1,2],\"max_tokens\":1,"
     "\"min_tokens\":1,\"kv_transfer_params\":{\"do_remote_decode\":true,"
     "\"do_remote_prefill\":false,\"remote_engine_id\":null,\"remote_block_ids\":null,"
     "\"remote_host\":null,\"remote_port\":null}}"},
    {CHAT,
     "{" MSG ",\"stream\":true,\"max_tokens\":50}",
     {.kind = VLLM,
      .role = ST_LEG_DECODE,
      .handoff = ST_HANDOFF_PULL,
      .kv_params = "{ \"x\" : [1.50] }",
      .kv_params_len = 16},
     CHATS,
     "{" MSG ",\"stream\":true,\"max_tokens\":50,\"kv_transfer_params\":{ \"x\" : [1.50] }}"},
    {COMP,
     "{\"prompt\":\"a\",\"kv_transfer_params\":null}",
     {.kind = STARLING,
      .role = ST_LEG_DECODE,
      .handoff = ST_HANDOFF_PULL,
      IDS,
      .kv_params = "{}",
      .kv_params_len = 2},
     COMPS,
     "{\"prompt\":[1,2],\"kv_transfer_params\":{}}"},
    /* our push */
    {CHAT,
     "{" MSG "}",
     {.kind = STARLING,
      .role = ST_LEG_PREFILL,
      .handoff = ST_HANDOFF_PUSH,
      IDS,
      .transfer_id = "ab"},
     CHATS,
     "{\"prompt_token_ids\":[1,2],\"stream\":false,\"max_tokens\":1,\"max_completion_tokens\":1,"
     "\"min_tokens\":1,\"kv_transfer_params\":{\"do_remote_decode\":true,"
     "\"do_remote_prefill\":false,\"transfer_id\":\"ab\"}}"},
    {CHAT,
     "{" MSG "}",
     {.kind = STARLING,
      .role = ST_LEG_DECODE,
      .handoff = ST_HANDOFF_PUSH,
      IDS,
      .transfer_id = "ab",
      .remote_host = "::1",
      .remote_port = 7,
      .remote_engine_id = "e"},
     CHATS,
     "{\"prompt_token_ids\":[1,2],\"kv_transfer_params\":{\"do_remote_prefill\":true,"
     "\"do_remote_decode\":false,\"transfer_id\":\"ab\",\"remote_host\":\"::1\","
     "\"remote_port\":7,\"remote_engine_id\":\"e\"}}"},
    /* vLLM's Mooncake */
    {COMP,
     "{\"prompt\":\"a\"}",
     {.kind = VLLM,
      .role = ST_LEG_PREFILL,
      .handoff = ST_HANDOFF_MOONCAKE,
      .transfer_id = "xfer-1"},
     COMPS,
     "{\"prompt\":\"a\",\"stream\":false,\"max_tokens\":1,\"max_completion_tokens\":1,"
     "\"min_tokens\":1,\"kv_transfer_params\":{\"do_remote_decode\":true,"
     "\"do_remote_prefill\":false,\"transfer_id\":\"xfer-1\"}}"},
    {COMP,
     "{\"prompt\":\"a\"}",
     {.kind = VLLM,
      .role = ST_LEG_DECODE,
      .handoff = ST_HANDOFF_MOONCAKE,
      .transfer_id = "xfer-1",
      .bootstrap_addr = "http://p:8998",
      .remote_engine_id = "e"},
     COMPS,
     "{\"prompt\":\"a\",\"kv_transfer_params\":{\"do_remote_prefill\":true,"
     "\"do_remote_decode\":false,\"transfer_id\":\"xfer-1\","
     "\"remote_bootstrap_addr\":\"http://p:8998\",\"remote_engine_id\":\"e\"}}"},
    /* SGLang's bootstrap */
    {COMP,
     "{\"prompt\":\"a\",\"stream\":true}",
     {.kind = SGLANG,
      .role = ST_LEG_PREFILL,
      .handoff = ST_HANDOFF_BOOTSTRAP,
      .bootstrap_host = "fe80::1",
      .bootstrap_port = 8998,
      .bootstrap_room = INT64_MAX},
     COMPS,
     "{\"prompt\":\"a\",\"stream\":true,\"bootstrap_host\":\"[fe80::1]\",\"bootstrap_port\":8998,"
     "\"bootstrap_room\":9223372036854775807}"},
    {CHAT,
     "{" MSG ",\"bootstrap_room\":null}",
     {.kind = SGLANG,
      .role = ST_LEG_DECODE,
      .handoff = ST_HANDOFF_BOOTSTRAP,
      .bootstrap_host = "10.0.0.1",
      .bootstrap_port = 1,
      .bootstrap_room = 0,
      IDS,
      .default_max_tokens = 5},
     COMPS,
     "{\"bootstrap_room\":0,\"prompt\":[1,2],\"max_tokens\":5,\"bootstrap_host\":\"10.0.0.1\","
     "\"bootstrap_port\":1}"},
    /* several prompts: lists, a room for each */
    {COMP,
     "{\"prompt\":[\"a\",\"b\"]}",
     {.kind = SGLANG,
      .role = ST_LEG_DECODE,
      .handoff = ST_HANDOFF_BOOTSTRAP,
      .bootstrap_host = "h",
      .bootstrap_port = 1,
      .bootstrap_room = INT64_MAX},
     COMPS,
     "{\"prompt\":[\"a\",\"b\"],\"bootstrap_host\":[\"h\",\"h\"],\"bootstrap_port\":[1,1],"
     "\"bootstrap_room\":[9223372036854775807,0]}"},
    /* null where only the gateway may say something */
    {CHAT,
     "{\"kv_transfer_params\":null," MSG ",\"input_ids\":null}",
     {.kind = VLLM},
     CHATS,
     "{" MSG "}"},
};

static void upstream_bodies(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        st_relay_request *r = parse(bodies[i].kind, bodies[i].body);
        for (int again = 0; again < 2; again++) {
            st_buf out = ST_BUF_INIT;
            const char *path;
            assert_int_equal(st_upstream_body(r, &bodies[i].plan, &path, &out), ST_OK);
            assert_string_equal(path, bodies[i].path);
            if (strcmp(out.data, bodies[i].result) != 0)
                fail_msg("case %zu:\n%s\nexpected\n%s", i, out.data, bodies[i].result);
            st_buf_free(&out);
        }
        st_relay_request_free(r);
    }
    /* Ids where text is needed. */
    st_relay_request *r = parse(CHAT, "{" MSG ",\"tools\":[{}]}");
    st_upstream_plan plan = {.kind = VLLM, IDS};
    st_buf out = ST_BUF_INIT;
    const char *path;
    assert_int_equal(st_upstream_body(r, &plan, &path, &out), ST_EINVAL);
    st_buf_free(&out);
    st_relay_request_free(r);
}

static void engine_says(void **state)
{
    (void)state;
    static const struct {
        const char *body, *kv, *message, *engine_id; /* NULL: none */
    } cases[] = {
        {"{\"id\":1,\"kv_transfer_params\": {\"a\":[1.50, {}]} }", "{\"a\":[1.50, {}]}", NULL,
         NULL},
        {"{\"kv_transfer_params\":null}", NULL, NULL, NULL},
        {"{\"x\":{\"kv_transfer_params\":{}}}", NULL, NULL, NULL},
        {"{\"kv_transfer_params\":{}", NULL, NULL, NULL},
        {"{\"error\":{\"message\":\"a\\nb\",\"code\":5}}", NULL,
         "{\"error\":{\"message\":\"a\\nb\",\"type\":\"not_found_error\",\"param\":null,\"code\":5}"
         "}",
         NULL},
        {"{\"object\":\"error\",\"message\":\"flat\"}", NULL,
         "{\"error\":{\"message\":\"flat\",\"type\":\"not_found_error\",\"param\":null,\"code\":"
         "null}}",
         NULL},
        {"{\"object\":\"error\",\"message\":\"f\",\"type\":\"T\",\"param\":\"p\",\"code\":400}",
         NULL, "{\"error\":{\"message\":\"f\",\"type\":\"T\",\"param\":\"p\",\"code\":400}}", NULL},
        {"{\"error\" : {\"message\":\"w\",\"type\":\"T\",\"param\":null,\"code\":\"c\",\"x\":[]}, "
         "\"y\":1}",
         NULL,
         "{\"error\" : {\"message\":\"w\",\"type\":\"T\",\"param\":null,\"code\":\"c\",\"x\":[]}, "
         "\"y\":1}",
         NULL},
        {"{\"error\":\"bare\"}", NULL,
         "{\"error\":{\"message\":\"bare\",\"type\":\"not_found_error\",\"param\":null,\"code\":"
         "null}}",
         NULL},
        {"{\"detail\":\"fast\"}", NULL,
         "{\"error\":{\"message\":\"fast\",\"type\":\"not_found_error\",\"param\":null,\"code\":"
         "null}}",
         NULL},
        {"{\"detail\":[{}]}", NULL, NULL, NULL},
        {" Bad Gateway\r\n", NULL,
         "{\"error\":{\"message\":\"Bad "
         "Gateway\",\"type\":\"not_found_error\",\"param\":null,\"code\":null}}",
         NULL},
        {"<html>502</html>", NULL, NULL, NULL},
        {"\xFF\xFE", NULL, NULL, NULL},
        {"", NULL, NULL, NULL},
        {"{\"0\":{\"engine_id\":\"x\"},\"1\":{\"engine_id\":\"e\\u0031\",\"b\":[]}}", NULL, NULL,
         "e1"},
        {"{\"1\":{\"engine_id\":7}}", NULL, NULL, NULL},
        {"{\"1\":\"x\"}", NULL, NULL, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_buf kv = ST_BUF_INIT, message = ST_BUF_INIT, id = ST_BUF_INIT;
        st_error err;
        size_t len = strlen(cases[i].body);
        assert_int_equal(st_upstream_kv_params(cases[i].body, len, &kv, &err),
                         cases[i].kv ? ST_OK : ST_EFORMAT);
        assert_int_equal(st_upstream_error(cases[i].body, len, 404, &message),
                         cases[i].message ? ST_OK : ST_ENOTFOUND);
        assert_int_equal(st_upstream_mooncake_engine_id(cases[i].body, len, 1, &id, &err),
                         cases[i].engine_id ? ST_OK : ST_EFORMAT);
        if (cases[i].kv)
            assert_string_equal(kv.data, cases[i].kv);
        if (cases[i].message)
            assert_string_equal(message.data, cases[i].message);
        if (cases[i].engine_id)
            assert_string_equal(id.data, cases[i].engine_id);
        st_buf_free(&kv);
        st_buf_free(&message);
        st_buf_free(&id);
    }
}
/* ---- ids ---- */

static st_relay_model lexicon(st_token_cache **cache)
{
    static const char *const names[] = {"lexicon"};
    static const char dir[] = ST_SOURCE_ROOT "/models/lexicon/int8";
    st_tokenizer *tok;
    st_chat_template *tmpl;
    st_relay_model m = {.name = "lexicon"};
    assert_int_equal(st_tokenizer_load(dir, &tok, NULL), ST_OK);
    assert_int_equal(st_chat_template_load(dir, &tmpl, NULL), ST_OK);
    assert_int_equal(st_token_cache_new(tok, 1 << 20, cache), ST_OK);
    m.tok = tok;
    m.tmpl = tmpl;
    m.ctx =
        (st_api_context){.models = names, .n_models = 1, .vocab_size = 4096, .max_model_len = 2048};
    st_api_defaults_init(&m.ctx.defaults);
    return m;
}

static void free_model(st_relay_model *m, st_token_cache *cache)
{
    st_token_cache_free(cache);
    st_chat_template_free((st_chat_template *)m->tmpl);
    st_tokenizer_free((st_tokenizer *)m->tok);
}

/* The engine's own way from the body to ids. */
static st_status engine_ids(st_api_kind kind, const char *body, const st_relay_model *m,
                            st_ids *out, st_api_error *err)
{
    st_api_request *q;
    st_status s = st_api_parse(kind, body, strlen(body), &m->ctx, &q, err);
    if (s)
        return s;
    s = st_api_prompt_ids(q, 0, &m->ctx, m->tok, m->tmpl, 0, out, err);
    st_api_request_free(q);
    return s;
}

static const struct {
    st_api_kind kind;
    const char *body;
} prompts[] = {
    {CHAT, "{" MSG "}"},
    {CHAT, "{\"messages\":[{\"role\":\"system\",\"content\":\"be \\u00e9\\ud83d\\ude00 brief\"},"
           "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\","
           "\"text\":\"b\"}]},{\"role\":\"assistant\",\"content\":\"c\"},{\"role\":\"user\","
           "\"content\":\"def ine a word\"}]}"},
    {CHAT, "{" MSG ",\"add_generation_prompt\":false,\"chat_template_kwargs\":{\"x\":[1.5,true,"
           "null,{\"y\":-3}]}}"},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"assistant\","
           "\"content\":\"the \"}],\"continue_final_message\":true}"},
    {CHAT, "{\"messages\":[{\"content\":\"no role\"}]}"},
    {CHAT, "{\"messages\":[7]}"},
    {CHAT, "{\"messages\":[{\"role\":\"user\"}]}"},
    {COMP, "{\"prompt\":\"define: wor\\u0064\"}"},
    {COMP, "{\"prompt\":[\"one of one\"],\"add_special_tokens\":false}"},
    {COMP, "{\"prompt\":\"\"}"},
    {COMP, "{\"prompt\":[5,4095,0]}"},
    {COMP, "{\"prompt\":[[5,6]]}"},
    {COMP, "{\"prompt\":[[]]}"},
    {COMP, "{\"prompt\":[5,4096]}"},
    {COMP, "{\"prompt\":[-1]}"},
    {COMP, "{\"prompt\":[1.5]}"},
};

static void same_ids(void **state)
{
    (void)state;
    st_token_cache *cache;
    st_relay_model m = lexicon(&cache);
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        st_ids expected = ST_IDS_INIT;
        st_api_error expected_err, err;
        st_status s = engine_ids(prompts[i].kind, prompts[i].body, &m, &expected, &expected_err);
        st_relay_request *r = parse(prompts[i].kind, prompts[i].body);
        for (int cached = 0; cached < 3; cached++) {
            st_ids ids = ST_IDS_INIT;
            m.cache = cached ? cache : NULL;
            st_status s2 = st_relay_tokenize(r, &m, 0, &ids, &err);
            if (!s != !s2 || (s && (err.http_status != expected_err.http_status ||
                                    strcmp(err.param, expected_err.param) != 0)))
                fail_msg("%s: %s, expected %s", prompts[i].body, s2 ? err.why.text : "taken",
                         s ? expected_err.why.text : "taken");
            assert_true(s || (ids.len == expected.len &&
                              memcmp(ids.data, expected.data, ids.len * sizeof *ids.data) == 0));
            st_ids_free(&ids);
        }
        st_ids_free(&expected);
        st_relay_request_free(r);
    }
    free_model(&m, cache);
}

static void bad_prompts(void **state)
{
    (void)state;
    static const struct {
        const char *body, *says;
    } cases[] = {
        {"{" MSG ",\"chat_template_kwargs\":{\"a\":1,\"a\":2}}", "same key twice"},
        {"{" MSG ",\"chat_template_kwargs\":{\"a\\u0000\":1}}", "U+0000"},
        {"{" MSG ",\"chat_template_kwargs\":{\"a\":[99999999999999999999]}}", "too large"},
        {"{" MSG ",\"chat_template_kwargs\":{\"a\":[-1e999]}}", "too large"},
    };
    st_token_cache *cache;
    st_relay_model m = lexicon(&cache);
    st_ids ids = ST_IDS_INIT;
    st_api_error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_relay_request *r = parse(CHAT, cases[i].body);
        assert_int_equal(st_relay_tokenize(r, &m, 0, &ids, &err), ST_EINVAL);
        assert_int_equal(err.http_status, 400);
        assert_string_equal(err.param, "chat_template_kwargs");
        if (!strstr(err.why.text, cases[i].says))
            fail_msg("%s: %s", cases[i].body, err.why.text);
        st_relay_request_free(r);
    }
    /* Too long for the context, as ids and as text. */
    st_buf body = ST_BUF_INIT;
    for (int text = 0; text < 2; text++) {
        st_buf_clear(&body);
        assert_int_equal(st_buf_puts(&body, text ? "{\"prompt\":\"" : "{\"prompt\":[1"), ST_OK);
        for (int i = 0; i < 2048; i++)
            assert_int_equal(st_buf_puts(&body, text ? "word " : ",1"), ST_OK);
        assert_int_equal(st_buf_puts(&body, text ? "\"}" : "]}"), ST_OK);
        st_relay_request *r = parse(COMP, body.data);
        assert_int_equal(st_relay_tokenize(r, &m, 0, &ids, &err), ST_EINVAL);
        assert_string_equal(err.code, "context_length_exceeded");
        st_relay_request_free(r);
    }
    st_buf_free(&body);
    st_ids_free(&ids);
    free_model(&m, cache);
}

static void reasoning(void **state)
{
    (void)state;
    static const char *const tokens[] = {"<think>", "<|im_end|>"};
    for (size_t i = 0; i < 2; i++) {
        char json[512];
        st_tokenizer *tok;
        st_error err;
        int n = snprintf(json, sizeof json,
                         "{\"added_tokens\":[{\"id\":1,\"content\":\"%s\",\"special\":true,"
                         "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                         "\"normalized\":false}],\"normalizer\":null,\"pre_tokenizer\":{\"type\":"
                         "\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false},"
                         "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\","
                         "\"vocab\":{\"a\":0},\"merges\":[]}}",
                         tokens[i]);
        if (st_tokenizer_parse(json, (size_t)n, NULL, 0, &tok, &err))
            fail_msg("%s", err.text);
        assert_int_equal(st_relay_reasons(tok), i == 0);
        st_tokenizer_free(tok);
    }
    st_relay_request *r = parse(CHAT, "{" MSG "}");
    r->reasons = true;
    assert_true(st_relay_takes_ids(r, ST_KIND_STARLING));
    assert_false(st_relay_takes_ids(r, ST_KIND_VLLM) || st_relay_takes_ids(r, ST_KIND_SGLANG));
    st_relay_request_free(r);
    r = parse(COMP, "{\"prompt\":\"x\"}");
    r->reasons = true;
    assert_true(st_relay_takes_ids(r, ST_KIND_VLLM));
    st_relay_request_free(r);
}

static void ids_json(void **state)
{
    (void)state;
    static const int32_t ids[] = {0, 9, 10, 123456, INT32_MAX, INT32_MIN, -1};
    st_buf out = ST_BUF_INIT;
    assert_int_equal(st_relay_ids_json(ids, 7, &out), ST_OK);
    assert_string_equal(out.data, "[0,9,10,123456,2147483647,-2147483648,-1]");
    assert_int_equal(st_relay_ids_json(NULL, 0, &out), ST_OK);
    assert_string_equal(out.data + 41, "[]");
    st_buf_free(&out);
}
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused),     cmocka_unit_test(fields),
        cmocka_unit_test(text_only),   cmocka_unit_test(upstream_bodies),
        cmocka_unit_test(engine_says), cmocka_unit_test(same_ids),
        cmocka_unit_test(bad_prompts), cmocka_unit_test(reasoning),
        cmocka_unit_test(ids_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
