/* OpenAI request bodies: byte 0 chooses the endpoint, the rest is the JSON. What is accepted must
 * keep the promises of starling/api.h. */
#include <stdlib.h>

#include "starling/api.h"

#define REQUIRE(x)                                                                                 \
    do {                                                                                           \
        if (!(x))                                                                                  \
            abort();                                                                               \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const st_api_request *r)
{
    const st_sampling *s = &r->sampling;
    REQUIRE(s->temperature >= 0 && s->top_p > 0 && s->top_p <= 1 && s->min_p >= 0 && s->min_p <= 1);
    REQUIRE(s->repetition_penalty > 0 && s->top_k >= -1 && s->logprobs >= -1 && s->logprobs <= 20);
    REQUIRE(r->n >= 1 && r->n <= 128 && r->n_prompts >= 1 && r->n_stops <= 16);
    REQUIRE(s->max_tokens == -1 || s->max_tokens >= 1);
    for (int32_t i = 0; i < s->n_stop_ids; i++)
        REQUIRE(s->stop_ids[i] >= 0 && s->stop_ids[i] < 100);
    for (int32_t i = 0; i < s->n_logit_bias; i++)
        REQUIRE(s->logit_bias[i].token >= 0 && s->logit_bias[i].token < 100);
    for (size_t i = 0; i < r->n_stops; i++)
        REQUIRE(r->stops[i].len > 0);
    for (size_t i = 0; !r->chat && i < r->n_prompts; i++)
        for (size_t k = 0; k < r->prompts[i].n_ids; k++)
            REQUIRE(r->prompts[i].ids[k] >= 0 && r->prompts[i].ids[k] < 100);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const models[] = {"m"};
    st_api_context ctx = {.models = models, .n_models = 1, .vocab_size = 100, .max_model_len = 64};
    st_api_request *r;
    st_api_error err;
    if (size == 0)
        return 0;
    st_api_defaults_init(&ctx.defaults);
    st_api_kind kind = (st_api_kind)(1 << (data[0] & 3));
    if (st_api_parse(kind, (const char *)data + 1, size - 1, &ctx, &r, &err)) {
        st_buf b = ST_BUF_INIT;
        REQUIRE(err.http_status >= 400 && err.http_status < 600);
        REQUIRE(st_api_error_json(&err, &b) == ST_OK);
        json_t *back = json_loadb(b.data, b.len, 0, NULL);
        REQUIRE(back);
        json_decref(back);
        st_buf_free(&b);
        return 0;
    }
    check(r);
    st_sampling s = st_api_choice_sampling(r, &ctx, 1, 0, 10);
    REQUIRE(s.max_tokens >= 1 && s.max_tokens <= 54 && s.min_tokens <= s.max_tokens);
    st_api_request_free(r);
    return 0;
}
