/* src/api: request bodies, accepted and refused. */
#include "cmocka_all.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "starling/api.h"

static const char *const names[] = {"lexicon", "alias"};

static st_api_context context(void)
{
    st_api_context ctx = {
        .models = names, .n_models = 2, .vocab_size = 4096, .max_model_len = 2048};
    st_api_defaults_init(&ctx.defaults);
    return ctx;
}

static st_api_request *accepted(st_api_kind kind, const char *body)
{
    st_api_context ctx = context();
    st_api_request *r;
    st_api_error err;
    if (st_api_parse(kind, body, strlen(body), &ctx, &r, &err))
        fail_msg("%s: %s", body, err.why.text);
    return r;
}

static void refused(st_api_kind kind, const char *body, int status, const char *param,
                    const char *words)
{
    st_api_context ctx = context();
    st_api_request *r;
    st_api_error err;
    if (!st_api_parse(kind, body, strlen(body), &ctx, &r, &err))
        fail_msg("accepted: %s", body);
    assert_null(r);
    assert_int_equal(err.http_status, status);
    assert_string_equal(err.param, param);
    if (!strstr(err.why.text, words))
        fail_msg("%s: '%s' lacks '%s'", body, err.why.text, words);
}

static void defaults_are_openais(void **state)
{
    (void)state;
    st_api_request *r = accepted(ST_API_COMPLETION, "{\"prompt\":\"hi\"}");
    assert_string_equal(r->model, "lexicon");
    assert_true(r->sampling.temperature == 1 && r->sampling.top_p == 1);
    assert_int_equal(r->sampling.max_tokens, 16);
    assert_int_equal(r->sampling.logprobs, -1);
    assert_int_equal(r->n, 1);
    assert_false(r->stream || r->echo || r->has_seed);
    assert_true(r->skip_special_tokens && r->add_special_tokens);
    st_api_request_free(r);
    r = accepted(ST_API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
                              "\"temperature\":null,\"unknown\":{\"a\":[1]}}");
    assert_int_equal(r->sampling.max_tokens, -1);
    assert_false(r->add_special_tokens);
    assert_true(json_is_true(json_object_get(r->chat, "add_generation_prompt")));
    st_api_request_free(r);
}

static void every_sampling_field_arrives(void **state)
{
    (void)state;
    st_api_request *r = accepted(
        ST_API_CHAT,
        "{\"model\":\"alias\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
        "\"temperature\":0.5,\"top_p\":0.25,\"top_k\":7,\"min_p\":0.125,"
        "\"repetition_penalty\":1.5,\"presence_penalty\":-1,\"frequency_penalty\":2,"
        "\"logit_bias\":{\"5\":-100,\"4095\":1.5},\"seed\":-1,\"n\":3,\"max_tokens\":9,"
        "\"max_completion_tokens\":8.0,\"min_tokens\":2,\"stop\":[\"a\",\"bc\"],"
        "\"stop_token_ids\":[1,2],\"ignore_eos\":true,\"logprobs\":true,\"top_logprobs\":4,"
        "\"stream\":true,\"stream_options\":{\"include_usage\":true},\"cache_salt\":\"s\","
        "\"priority\":-3,\"return_token_ids\":true,\"response_format\":{\"type\":\"text\"}}");
    const st_sampling *s = &r->sampling;
    assert_string_equal(r->model, "alias");
    assert_true(s->temperature == 0.5f && s->top_p == 0.25f && s->min_p == 0.125f);
    assert_true(s->repetition_penalty == 1.5f && s->presence_penalty == -1 &&
                s->frequency_penalty == 2);
    assert_int_equal(s->top_k, 7);
    assert_int_equal(s->n_logit_bias, 2);
    assert_int_equal(s->logit_bias[0].token + s->logit_bias[1].token, 4100);
    assert_true(r->has_seed && s->seed == UINT64_MAX);
    assert_int_equal(r->n, 3);
    assert_int_equal(s->max_tokens, 8);
    assert_int_equal(s->min_tokens, 2);
    assert_int_equal(r->n_stops, 2);
    assert_string_equal(r->stops[1].text, "bc");
    assert_int_equal(s->n_stop_ids, 2);
    assert_int_equal(s->stop_ids[1], 2);
    assert_int_equal(s->logprobs, 4);
    assert_true(s->ignore_eos && r->stream && r->include_usage && r->return_token_ids);
    assert_string_equal(r->cache_salt, "s");
    assert_int_equal(r->priority, -3);
    st_api_request_free(r);
}

static void prompts_of_every_shape(void **state)
{
    (void)state;
    st_api_request *r = accepted(ST_API_COMPLETION, "{\"prompt\":\"a\\u0000b\"}");
    assert_int_equal(r->n_prompts, 1);
    assert_int_equal(r->prompts[0].len, 3);
    st_api_request_free(r);
    r = accepted(ST_API_COMPLETION, "{\"prompt\":[\"a\",\"bb\"],\"n\":2}");
    assert_int_equal(r->n_prompts, 2);
    assert_string_equal(r->prompts[1].text, "bb");
    st_api_request_free(r);
    r = accepted(ST_API_COMPLETION, "{\"prompt\":[1,4095]}");
    assert_int_equal(r->n_prompts, 1);
    assert_null(r->prompts[0].text);
    assert_int_equal(r->prompts[0].n_ids, 2);
    assert_int_equal(r->prompts[0].ids[1], 4095);
    st_api_request_free(r);
    r = accepted(ST_API_COMPLETION, "{\"prompt\":[[1],[2,3]]}");
    assert_int_equal(r->n_prompts, 2);
    assert_int_equal(r->prompts[1].n_ids, 2);
    st_api_request_free(r);
    r = accepted(ST_API_DETOKENIZE, "{\"tokens\":[]}");
    assert_int_equal(r->prompts[0].n_ids, 0);
    st_api_request_free(r);
}

#define MSG "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]"

/* Typed clients spell every field out. */
static void values_that_mean_none_are_accepted(void **state)
{
    (void)state;
    st_api_request *r = accepted(ST_API_CHAT, "{" MSG ",\"logprobs\":false,\"top_logprobs\":0,"
                                              "\"stop\":[],\"logit_bias\":{},\"max_tokens\":null}");
    assert_int_equal(r->sampling.logprobs, -1);
    assert_int_equal(r->n_stops + (size_t)r->sampling.n_logit_bias, 0);
    st_api_request_free(r);
}

static void bad_requests_are_named(void **state)
{
    (void)state;
    static const struct {
        st_api_kind kind;
        const char *body;
        int status;
        const char *param, *words;
    } cases[] = {
        {ST_API_CHAT, "", 400, "", "empty"},
        {ST_API_CHAT, "{", 400, "", "not valid JSON"},
        {ST_API_CHAT, "[1]", 400, "", "not a JSON object"},
        {ST_API_CHAT, "{\"a\":1,\"a\":2}", 400, "", "duplicate"},
        {ST_API_CHAT, "{\"messages\":\"\xff\"}", 400, "", "not valid JSON"},
        {ST_API_CHAT, "{}", 400, "messages", "required"},
        {ST_API_COMPLETION, "{}", 400, "prompt", "required"},
        {ST_API_CHAT, "{\"messages\":[]}", 400, "messages", "non-empty"},
        {ST_API_CHAT, "{\"messages\":[1]}", 400, "messages", "messages[0]"},
        {ST_API_CHAT, "{\"messages\":[{\"content\":\"x\"}]}", 400, "messages", "role"},
        {ST_API_CHAT, "{\"messages\":[{\"role\":\"user\"}]}", 400, "messages", "content"},
        {ST_API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
         400, "messages", "image_url"},
        {ST_API_CHAT, "{\"model\":\"gpt\"," MSG "}", 404, "model", "gpt"},
        {ST_API_CHAT, "{" MSG ",\"temperature\":-1}", 400, "temperature", "-1"},
        {ST_API_CHAT, "{" MSG ",\"temperature\":\"hot\"}", 400, "temperature", "'hot'"},
        {ST_API_CHAT, "{" MSG ",\"top_p\":0}", 400, "top_p", "above 0"},
        {ST_API_CHAT, "{" MSG ",\"top_p\":1.1}", 400, "top_p", "1.1"},
        {ST_API_CHAT, "{" MSG ",\"top_k\":-2}", 400, "top_k", "-2"},
        {ST_API_CHAT, "{" MSG ",\"min_p\":2}", 400, "min_p", "2"},
        {ST_API_CHAT, "{" MSG ",\"repetition_penalty\":0}", 400, "repetition_penalty", "0"},
        {ST_API_CHAT, "{" MSG ",\"presence_penalty\":3}", 400, "presence_penalty", "3"},
        {ST_API_CHAT, "{" MSG ",\"n\":0}", 400, "n", "1 to 128"},
        {ST_API_CHAT, "{" MSG ",\"n\":1.5}", 400, "n", "1.5"},
        {ST_API_CHAT, "{" MSG ",\"max_tokens\":0}", 400, "max_tokens", "0"},
        {ST_API_CHAT, "{" MSG ",\"max_tokens\":1e30}", 400, "max_tokens", "1e+30"},
        {ST_API_CHAT, "{" MSG ",\"min_tokens\":5,\"max_tokens\":4}", 400, "min_tokens", "4"},
        {ST_API_CHAT, "{" MSG ",\"stop\":\"\"}", 400, "stop", "non-empty"},
        {ST_API_CHAT, "{" MSG ",\"stop\":[1]}", 400, "stop", "1"},
        {ST_API_CHAT, "{" MSG ",\"stop_token_ids\":[4096]}", 400, "stop_token_ids", "[0]"},
        {ST_API_CHAT, "{" MSG ",\"logit_bias\":{\"4096\":1}}", 400, "logit_bias", "4096"},
        {ST_API_CHAT, "{" MSG ",\"logit_bias\":{\"1\":101}}", 400, "logit_bias", "101"},
        {ST_API_CHAT, "{" MSG ",\"top_logprobs\":3}", 400, "top_logprobs", "logprobs"},
        {ST_API_CHAT, "{" MSG ",\"logprobs\":true,\"top_logprobs\":21}", 400, "top_logprobs", "21"},
        {ST_API_CHAT, "{" MSG ",\"stream_options\":{}}", 400, "stream_options", "stream"},
        {ST_API_CHAT, "{" MSG ",\"response_format\":{\"type\":\"json_object\"}}", 400,
         "response_format", "json_object"},
        {ST_API_CHAT, "{" MSG ",\"seed\":1.5}", 400, "seed", "1.5"},
        {ST_API_CHAT, "{" MSG ",\"guided_json\":{}}", 400, "guided_json", "not supported"},
        {ST_API_CHAT, "{" MSG ",\"tools\":[1]}", 400, "tools[0]", "object"},
        {ST_API_CHAT, "{" MSG ",\"stream\":\"yes\"}", 400, "stream", "'yes'"},
        {ST_API_COMPLETION, "{\"prompt\":[]}", 400, "prompt", "non-empty"},
        {ST_API_COMPLETION, "{\"prompt\":[1,\"a\"]}", 400, "prompt", "prompt[1]"},
        {ST_API_COMPLETION, "{\"prompt\":[-1]}", 400, "prompt", "-1"},
        {ST_API_COMPLETION, "{\"prompt\":[[1],[4096]]}", 400, "prompt", "prompt[1][0]"},
        {ST_API_COMPLETION, "{\"prompt\":\"x\",\"best_of\":2}", 400, "best_of", "2"},
        {ST_API_COMPLETION, "{\"prompt\":\"x\",\"echo\":true,\"logprobs\":1}", 400, "echo",
         "logprobs"},
        {ST_API_COMPLETION, "{\"prompt\":\"x\",\"suffix\":\"y\"}", 400, "suffix", "suffix"},
        {ST_API_TOKENIZE, "{\"prompt\":\"x\"," MSG "}", 400, "prompt", "only one"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(cases[i].kind, cases[i].body, cases[i].status, cases[i].param, cases[i].words);
}

static void nesting_is_limited(void **state)
{
    (void)state;
    enum { DEPTH = 10000 };
    static char body[2 * DEPTH + 64];
    size_t at = (size_t)sprintf(body, "{\"x\":");
    memset(body + at, '[', DEPTH);
    memset(body + at + DEPTH, ']', DEPTH);
    strcpy(body + at + 2 * DEPTH, "}");
    refused(ST_API_CHAT, body, 400, "", "depth");
}

static void messages_become_template_variables(void **state)
{
    (void)state;
    st_api_request *r = accepted(
        ST_API_CHAT,
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
        "{\"type\":\"text\",\"text\":\"b\"}]},{\"role\":\"assistant\",\"content\":null,"
        "\"tool_calls\":[{\"id\":\"1\",\"type\":\"function\",\"function\":{\"name\":\"f\","
        "\"arguments\":\"{\\\"x\\\":1}\"}}]}],\"tools\":[{\"type\":\"function\"}],"
        "\"tool_choice\":\"auto\",\"chat_template_kwargs\":{\"enable_thinking\":false},"
        "\"continue_final_message\":true}");
    json_t *m = json_object_get(r->chat, "messages");
    assert_string_equal(json_string_value(json_object_get(json_array_get(m, 0), "content")),
                        "a\nb");
    json_t *call = json_array_get(json_object_get(json_array_get(m, 1), "tool_calls"), 0);
    assert_true(json_is_object(json_object_get(json_object_get(call, "function"), "arguments")));
    assert_int_equal(json_array_size(json_object_get(r->chat, "tools")), 1);
    assert_string_equal(json_string_value(json_object_get(r->chat, "tool_choice")), "auto");
    assert_true(json_is_false(json_object_get(r->chat, "enable_thinking")));
    assert_true(json_is_false(json_object_get(r->chat, "add_generation_prompt")));
    assert_true(r->continue_final_message);
    st_api_request_free(r);
}

static void errors_have_openais_shape(void **state)
{
    (void)state;
    st_api_error e;
    st_buf b = ST_BUF_INIT;
    (void)st_api_fail(&e, 404, "model", "model_not_found", "no \"%s\"", "x");
    assert_int_equal(st_api_error_json(&e, &b), ST_OK);
    assert_string_equal(b.data, "{\"error\":{\"message\":\"no \\\"x\\\"\",\"type\":"
                                "\"not_found_error\",\"param\":\"model\",\"code\":"
                                "\"model_not_found\"}}");
    st_buf_clear(&b);
    (void)st_api_fail(&e, 400, NULL, NULL, "bad");
    assert_int_equal(st_api_error_event(&e, &b), ST_OK);
    assert_string_equal(b.data, "data: {\"error\":{\"message\":\"bad\",\"type\":"
                                "\"invalid_request_error\",\"param\":null,\"code\":null}}\n\n"
                                "data: [DONE]\n\n");
    st_buf_free(&b);
}

/* A model's vocabulary may be larger than its tokenizer's: such ids have no text, but two of them
 * must not become the same key of one object. */
static void ids_without_text_keep_their_own_keys(void **state)
{
    (void)state;
    st_tokenizer *tok;
    st_api_reply *a;
    st_buf out = ST_BUF_INIT;
    bool done = false;
    const int32_t prompt[] = {64};
    const st_logprob top[] = {{5000, -1}, {5001, -2}, {64, -3}};
    st_api_request *r = accepted(ST_API_COMPLETION, "{\"prompt\":\"a\",\"logprobs\":3}");
    assert_int_equal(st_tokenizer_load(ST_SOURCE_ROOT "/models/lexicon/int8", &tok, NULL), ST_OK);
    assert_int_equal(st_api_reply_new(r, tok, 1, 1, &a), ST_OK);
    assert_int_equal(st_api_reply_prompt(a, 0, prompt, 1), ST_OK);
    st_token_event ev = {
        .token = 5000, .finish = ST_FINISH_LENGTH, .logprob = -1, .top = top, .n_top = 3};
    assert_int_equal(st_api_reply_event(a, 0, &ev, &done), ST_OK);
    assert_true(done);
    assert_int_equal(st_api_reply_end(a, &out), ST_OK);
    assert_non_null(strstr(out.data, "{\"token_id:5000\":-1,\"token_id:5001\":-2,\"a\":-3}"));
    st_buf_free(&out);
    st_api_reply_free(a);
    st_tokenizer_free(tok);
    st_api_request_free(r);
}

static void generation_config_gives_defaults(void **state)
{
    (void)state;
    char dir[] = "/tmp/st_api_XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/generation_config.json", dir);
    st_api_context ctx = context();
    st_error err;
    assert_int_equal(st_api_defaults_load(dir, &ctx.defaults, &err), ST_OK);
    assert_true(isnan(ctx.defaults.temperature));
    FILE *f = fopen(path, "w");
    fputs("{\"do_sample\":false,\"temperature\":0.6,\"top_k\":20,\"top_p\":0.95,"
          "\"max_new_tokens\":200}",
          f);
    fclose(f);
    assert_int_equal(st_api_defaults_load(dir, &ctx.defaults, &err), ST_OK);
    assert_true(ctx.defaults.temperature == 0);
    st_api_request *r;
    st_api_error ae;
    static const char body[] = "{" MSG "}";
    assert_int_equal(st_api_parse(ST_API_CHAT, body, strlen(body), &ctx, &r, &ae), ST_OK);
    assert_int_equal(r->sampling.top_k, 20);
    assert_true(r->sampling.temperature == 0 && r->sampling.top_p == 0.95f);
    assert_int_equal(st_api_choice_sampling(r, &ctx, 5, 2, 100).max_tokens, 200);
    assert_int_equal(st_api_choice_sampling(r, &ctx, 5, 2, 2000).max_tokens, 48);
    assert_int_equal(st_api_choice_sampling(r, &ctx, 5, 2, 100).seed, 7);
    st_api_request_free(r);
    f = fopen(path, "w");
    fputs("{\"top_p\":7}", f);
    fclose(f);
    assert_int_equal(st_api_defaults_load(dir, &ctx.defaults, &err), ST_EFORMAT);
    assert_non_null(strstr(err.text, "top_p"));
    remove(path);
    remove(dir);
}

static void a_chat_takes_ids(void **state)
{
    (void)state;
    st_api_request *r = accepted(ST_API_CHAT, "{\"prompt_token_ids\":[1,2,4095],\"max_tokens\":3}");
    assert_int_equal(r->n_prompts, 1);
    assert_int_equal(r->prompts[0].n_ids, 3);
    assert_int_equal(r->prompts[0].ids[2], 4095);
    assert_null(r->chat);
    st_api_context ctx = context();
    st_ids ids = ST_IDS_INIT;
    st_api_error err;
    assert_int_equal(st_api_prompt_ids(r, 0, &ctx, NULL, NULL, 0, &ids, &err), ST_OK);
    assert_int_equal(ids.len, 3);
    st_ids_free(&ids);
    st_api_request_free(r);
    refused(ST_API_CHAT, "{\"prompt_token_ids\":[]}", 400, "prompt_token_ids", "non-empty list");
    refused(ST_API_CHAT, "{\"prompt_token_ids\":[1,4096]}", 400, "prompt_token_ids", "[1] is 4096");
    refused(ST_API_CHAT, "{\"prompt_token_ids\":\"hi\"}", 400, "prompt_token_ids", "'hi'");
    refused(ST_API_CHAT,
            "{\"prompt_token_ids\":[1],\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", 400,
            "prompt_token_ids", "only one of them");
}

#define HANDOVER(members) "{\"prompt\":[1,2],\"kv_transfer_params\":{" members "}}"
#define DIGITS            "00112233445566778899aAbBcCdDeEfF"

static void handovers_are_read(void **state)
{
    (void)state;
    st_api_request *r = accepted(
        ST_API_COMPLETION,
        HANDOVER("\"do_remote_decode\":true,\"do_remote_prefill\":false,\"remote_engine_id\":null,"
                 "\"remote_block_ids\":null,\"remote_host\":null,\"remote_port\":null"));
    assert_int_equal(r->handover.what, ST_HANDOVER_OFFER);
    assert_string_equal(r->handover.id, "");
    st_api_request_free(r);
    r = accepted(ST_API_CHAT, "{\"prompt_token_ids\":[1],\"kv_transfer_params\":{"
                              "\"do_remote_decode\":true,\"transfer_id\":\"" DIGITS "\"}}");
    assert_int_equal(r->handover.what, ST_HANDOVER_OFFER);
    assert_string_equal(r->handover.id, "00112233445566778899aabbccddeeff");
    st_api_request_free(r);
    r = accepted(ST_API_COMPLETION,
                 HANDOVER("\"do_remote_prefill\":true,\"do_remote_decode\":false,"
                          "\"remote_block_ids\":[3,1,2],\"remote_engine_id\":\"x\","
                          "\"remote_request_id\":\"" DIGITS "\",\"remote_host\":\"::1\","
                          "\"remote_port\":65535,\"tp_size\":1,\"remote_num_tokens\":2,"
                          "\"anything\":{\"else\":1}"));
    assert_int_equal(r->handover.what, ST_HANDOVER_FETCH);
    assert_string_equal(r->handover.host, "::1");
    assert_int_equal(r->handover.port, 65535);
    assert_int_equal(r->handover.n_remote_blocks, 3);
    assert_int_equal(r->handover.remote_blocks[1], 1);
    st_api_request_free(r);
    r = accepted(ST_API_COMPLETION, HANDOVER("\"do_remote_prefill\":false,\"remote_port\":0"));
    assert_int_equal(r->handover.what, ST_HANDOVER_NONE);
    st_api_request_free(r);
}

static void handovers_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *body, *param, *words;
    } bad[] = {
        {"{\"prompt\":[1],\"kv_transfer_params\":[]}", "kv_transfer_params", "expected an object"},
        {HANDOVER("\"do_remote_decode\":1"), "kv_transfer_params.do_remote_decode", "true or"},
        {HANDOVER("\"do_remote_decode\":true,\"do_remote_prefill\":true"), "kv_transfer_params",
         "both true"},
        {HANDOVER("\"do_remote_decode\":true,\"transfer_id\":\"xfer\""),
         "kv_transfer_params.transfer_id", "32 hexadecimal"},
        {HANDOVER("\"do_remote_prefill\":true,\"remote_host\":\"h\",\"remote_port\":1"),
         "kv_transfer_params", "expected transfer_id or"},
        {HANDOVER("\"do_remote_prefill\":true,\"transfer_id\":\"" DIGITS "\",\"remote_port\":1"),
         "kv_transfer_params.remote_host", "null"},
        {HANDOVER("\"do_remote_prefill\":true,\"transfer_id\":\"" DIGITS
                  "\",\"remote_host\":\"h\",\"remote_port\":70000"),
         "kv_transfer_params.remote_port", "70000"},
        {HANDOVER("\"do_remote_prefill\":true,\"transfer_id\":\"" DIGITS
                  "\",\"remote_host\":\"h\",\"remote_port\":7,\"remote_block_ids\":[1,-2]"),
         "kv_transfer_params.remote_block_ids", "-2"},
        {"{\"prompt\":[1],\"n\":2,\"kv_transfer_params\":{\"do_remote_decode\":true}}",
         "kv_transfer_params", "n = 2"},
        {"{\"prompt\":[1],\"stream\":true,\"kv_transfer_params\":{\"do_remote_decode\":true}}",
         "kv_transfer_params", "expected stream to be false"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused(ST_API_COMPLETION, bad[i].body, 400, bad[i].param, bad[i].words);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_openais),
        cmocka_unit_test(every_sampling_field_arrives),
        cmocka_unit_test(values_that_mean_none_are_accepted),
        cmocka_unit_test(prompts_of_every_shape),
        cmocka_unit_test(bad_requests_are_named),
        cmocka_unit_test(nesting_is_limited),
        cmocka_unit_test(messages_become_template_variables),
        cmocka_unit_test(errors_have_openais_shape),
        cmocka_unit_test(ids_without_text_keep_their_own_keys),
        cmocka_unit_test(generation_config_gives_defaults),
        cmocka_unit_test(a_chat_takes_ids),
        cmocka_unit_test(handovers_are_read),
        cmocka_unit_test(handovers_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
