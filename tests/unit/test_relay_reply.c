/* src/api/relay.h: what of an engine's answer reaches the client, event by event. */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "relay_parse.h"

#define HEAD                                                                                       \
    "data: {\"id\":\"chatcmpl-00000000000000ab\",\"object\":\"chat.completion.chunk\","            \
    "\"created\":5,\"model\":\"m\",\"choices\":["
#define ROLE(i)                                                                                    \
    HEAD "{\"index\":" #i                                                                          \
         ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"                 \
         "\"finish_reason\":null}]"
#define TEXT(i, text)                                                                              \
    HEAD "{\"index\":" #i ",\"delta\":{\"content\":" text "},\"logprobs\":null,"                   \
         "\"finish_reason\":null}]"
#define DONE "data: [DONE]\n\n"
#define IN(i, text, finish)                                                                        \
    "data: {\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"choices\":[{\"index\":" #i          \
    ",\"text\":" text ",\"logprobs\":null,\"finish_reason\":" finish "}],\"usage\":null}\n\n"

static const struct {
    const char *body; /* what the client asked for */
    bool translate;
    const char *in[6], *out;
    st_relay_seen seen;
} streams[] = {
    /* passed on */
    {"{" MSG ",\"stream\":true}",
     false,
     {": ping\n\n", "data: {\"choices\":[{\"x\":1}]}\n\n",
      "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,"
      "\"prompt_tokens_details\":{\"cached_tokens\":1}}}\r\n\r\n",
      DONE},
     ": ping\n\ndata: {\"choices\":[{\"x\":1}]}\n\n"
     "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,"
     "\"prompt_tokens_details\":{\"cached_tokens\":1}}}\r\n\r\n" DONE,
     {true, true, false, 1, 3, 2, 1}},
    /* turned back, without usage */
    {"{" MSG ",\"stream\":true}",
     true,
     {": ping\n\n", IN(0, "\"a\\u00e9\\n\"", "null"), IN(0, "\" b\"", "null"),
      "data: {\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"stop\","
      "\"stop_reason\":\"x\"}],\"usage\":{\"prompt_tokens\":3}}\n\n",
      DONE},
     ": ping\n\n" ROLE(0) "}\n\n" TEXT(0, "\"a\\u00e9\\n\"") "}\n\n" TEXT(
         0, "\" b\"") "}\n\n" HEAD
                      "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\","
                      "\"stop_reason\":\"x\"}]}\n\n" DONE,
     {true, true, false, 3, 3, -1, -1}},
    /* with usage; SGLang's fields; text and finish_reason at once */
    {"{" MSG ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}",
     true,
     {"data: {\"choices\":[{\"index\":0,\"text\":\"a\",\"finish_reason\":\"length\","
      "\"matched_stop\":null}],\"usage\":null}\n\n",
      "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\n", DONE},
     ROLE(0) ",\"usage\":null}\n\n" TEXT(
         0, "\"a\"") ",\"usage\":null}\n\n" HEAD
                     "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}],"
                     "\"usage\":null}\n\n" HEAD
                     "],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\n" DONE,
     {true, true, false, 1, 3, 1, -1}},
    /* usage that was not asked for; several choices; ids */
    {"{" MSG ",\"stream\":true,\"n\":2}",
     true,
     {"data: {\"choices\":[{\"index\":1,\"text\":\"b\",\"token_ids\":[7],"
      "\"prompt_token_ids\":[1,2]},{\"index\":0,\"text\":\"\",\"token_ids\":[8]}]}\n\n",
      "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3}}\n\n", DONE},
     ROLE(1) ",\"prompt_token_ids\":[1,2]}\n\n" HEAD
             "{\"index\":1,\"delta\":{\"content\":\"b\"},\"logprobs\":null,\"finish_reason\":null,"
             "\"token_ids\":[7]}]}\n\n" ROLE(0) "}\n\n" HEAD
                                                "{\"index\":0,\"delta\":{\"content\":\"\"},"
                                                "\"logprobs\":null,\"finish_reason\":null,"
                                                "\"token_ids\":[8]}]}\n\n" DONE,
     {true, true, false, 1, 3, -1, -1}},
    /* errors */
    {"{" MSG ",\"stream\":true}",
     true,
     {"data: {\"error\":{\"message\":\"m\",\"type\":\"t\",\"code\":500}}\n\n", DONE},
     "data: {\"error\":{\"message\":\"m\",\"type\":\"t\",\"param\":null,\"code\":500}}\n\n" DONE,
     {false, true, true, 0, -1, -1, -1}},
    {"{" MSG ",\"stream\":true}",
     false,
     {"data: {\"object\":\"error\",\"message\":\"m\\\"\",\"type\":\"t\",\"param\":null,"
      "\"code\":500}\n\n",
      "data: {\"error\":\"bare\"}\n\n", "data: {\"error\":{}}\n\n"},
     "data: {\"error\":{\"message\":\"m\\\"\",\"type\":\"t\",\"param\":null,\"code\":500}}\n\n"
     "data: {\"error\":{\"message\":\"bare\",\"type\":\"server_error\",\"param\":null,"
     "\"code\":null}}\n\n"
     "data: {\"error\":{\"message\":\"the engine reported an error\",\"type\":\"server_error\","
     "\"param\":null,\"code\":null}}\n\n",
     {false, false, true, 0, -1, -1, -1}},
};

static void check_seen(const st_relay_seen *a, const st_relay_seen *b, size_t i)
{
    if (a->any != b->any || a->done != b->done || a->error != b->error || a->events != b->events ||
        a->prompt_tokens != b->prompt_tokens || a->completion_tokens != b->completion_tokens ||
        a->cached_tokens != b->cached_tokens)
        fail_msg("case %zu: seen: any %d done %d error %d events %u tokens %d %d %d", i, a->any,
                 a->done, a->error, a->events, (int)a->prompt_tokens, (int)a->completion_tokens,
                 (int)a->cached_tokens);
}

static void reply_streams(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
        st_relay_request *r = parse(CHAT, streams[i].body);
        st_relay_reply *a;
        st_buf out = ST_BUF_INIT;
        st_error err;
        assert_int_equal(st_relay_reply_new(r, "m", streams[i].translate, 0xab, 5, &a), ST_OK);
        for (size_t e = 0; e < 6 && streams[i].in[e]; e++) {
            const char *event = streams[i].in[e];
            size_t before = out.len;
            bool verbatim;
            if (st_relay_reply_event(a, event, strlen(event), &verbatim, &out, &err))
                fail_msg("case %zu: %s", i, err.text);
            if (verbatim) {
                assert_int_equal(out.len, before);
                assert_int_equal(st_buf_puts(&out, event), ST_OK);
            }
        }
        if (strcmp(out.data, streams[i].out) != 0)
            fail_msg("case %zu:\n%s\nexpected\n%s", i, out.data, streams[i].out);
        check_seen(st_relay_reply_seen(a), &streams[i].seen, i);
        st_buf_free(&out);
        st_relay_reply_free(a);
        st_relay_request_free(r);
    }
}

static void whole_replies(void **state)
{
    (void)state;
    static const struct {
        bool translate;
        const char *in, *out; /* NULL: verbatim */
    } cases[] = {
        {false, "{\"choices\":[{}],\"usage\":{\"prompt_tokens\":1}}", NULL},
        {false, "{\"choices\":[{}],\"kv_transfer_params\":null}", NULL},
        {false, "{\"choices\":[{}], \"kv_transfer_params\":{\"remote_host\":\"h\"}}",
         "{\"choices\":[{}]}"},
        {false, "{\"error\":{\"message\":\"m\",\"type\":\"t\",\"param\":null,\"code\":7}}", NULL},
        {false, "{\"object\":\"error\",\"message\":\"m\",\"code\":404}",
         "{\"error\":{\"message\":\"m\",\"type\":\"not_found_error\",\"param\":null,\"code\":404}"
         "}"},
        {true,
         "{\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"choices\":[{\"index\":0,"
         "\"text\":\"a\\u00e9\",\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":7,"
         "\"token_ids\":[3],\"prompt_token_ids\":[1,2]},{\"index\":1,\"text\":\"\","
         "\"finish_reason\":null}],\"usage\":{\"prompt_tokens\":1 },"
         "\"kv_transfer_params\":{}}",
         "{\"id\":\"chatcmpl-00000000000000ab\",\"object\":\"chat.completion\",\"created\":5,"
         "\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
         "\"content\":\"a\\u00e9\",\"refusal\":null},\"logprobs\":null,"
         "\"finish_reason\":\"stop\",\"stop_reason\":7,\"token_ids\":[3]},{\"index\":1,"
         "\"message\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null},"
         "\"logprobs\":null,\"finish_reason\":null}],\"usage\":{\"prompt_tokens\":1 },"
         "\"prompt_token_ids\":[1,2]}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_relay_request *r = parse(CHAT, "{" MSG ",\"n\":2}");
        st_relay_reply *a;
        st_buf out = ST_BUF_INIT;
        st_error err;
        bool verbatim;
        assert_int_equal(st_relay_reply_new(r, "m", cases[i].translate, 0xab, 5, &a), ST_OK);
        if (st_relay_reply_whole(a, cases[i].in, strlen(cases[i].in), &verbatim, &out, &err))
            fail_msg("case %zu: %s", i, err.text);
        assert_int_equal(verbatim, cases[i].out == NULL);
        if (cases[i].out && strcmp(out.data, cases[i].out) != 0)
            fail_msg("case %zu:\n%s\nexpected\n%s", i, out.data, cases[i].out);
        assert_true(st_relay_reply_seen(a)->done);
        st_buf_free(&out);
        st_relay_reply_free(a);
        st_relay_request_free(r);
    }
}

static void garbage(void **state)
{
    (void)state;
    static const char *const events[] = {
        "data: {\"choices\":[{\"index\":0,\"text\":\"a\"}]}\n",
        "data: {\"choices\":[{\"index\":0,\"text\":\"a\"}]}",
        "data: {}\n\n",
        "data: \n\n",
        "data: hello\n\n",
        "data: [1]\n\n",
        "data: {\"choices\":{}}\n\n",
        "data: {\"choices\":[7]}\n\n",
        "data: {\"choices\":[{\"index\":1,\"text\":\"a\"}]}\n\n",
        "data: {\"choices\":[{\"index\":-1,\"text\":\"a\"}]}\n\n",
        "data: {\"choices\":[{\"text\":\"a\"}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"text\":7}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"text\":\"a\",\"finish_reason\":7}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"text\":\"\x80\"}]}\n\n",
        "data: {\"choices\":[\ndata: ]}\n\n",
        "data: {}\n\ndata: {}\n\n",
        "",
    };
    static const char *const answers[] = {"",
                                          "x",
                                          "[]",
                                          "{}",
                                          "{\"choices\":[]}",
                                          "{\"choices\":[{}]}",
                                          "{\"choices\":[{\"index\":0}]}"};
    st_relay_request *r = parse(CHAT, "{" MSG ",\"stream\":true}");
    st_relay_reply *a;
    st_buf out = ST_BUF_INIT;
    st_error err;
    bool verbatim;
    assert_int_equal(st_relay_reply_new(r, "m", true, 0xab, 5, &a), ST_OK);
    for (size_t i = 0; i < sizeof events / sizeof *events; i++) {
        if (st_relay_reply_event(a, events[i], strlen(events[i]), &verbatim, &out, &err) !=
            ST_EFORMAT)
            fail_msg("event %zu is taken: %s", i, events[i]);
        assert_int_equal(out.len, 0);
    }
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        if (st_relay_reply_whole(a, answers[i], strlen(answers[i]), &verbatim, &out, &err) !=
            ST_EFORMAT)
            fail_msg("answer %zu is taken: %s", i, answers[i]);
        assert_int_equal(out.len, 0);
    }
    st_relay_reply_free(a);
    assert_int_equal(st_relay_reply_new(r, "m", true, 0xab, 5, &a), ST_OK);
    assert_int_equal(st_relay_reply_event(a, DONE, strlen(DONE), &verbatim, &out, &err), ST_OK);
    assert_int_equal(st_relay_reply_event(a, DONE, strlen(DONE), &verbatim, &out, &err),
                     ST_EFORMAT);
    st_buf_free(&out);
    st_relay_reply_free(a);
    st_relay_request_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reply_streams),
        cmocka_unit_test(whole_replies),
        cmocka_unit_test(garbage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
