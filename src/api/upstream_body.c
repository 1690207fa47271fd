/* The body for one engine: the client's, with bytes spliced; and what the prefill leg's reply says
 * for the decode leg. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/json_pick.h"
#include "api/relay.h"

bool st_relay_reasons(const st_tokenizer *tok)
{
    static const char *const marks[] = {"<think>", "<|channel|>", "<seed:think>", "[THINK]"};
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
        if (st_tokenizer_find(tok, marks[i], strlen(marks[i])) >= 0)
            return true;
    return false;
}

bool st_relay_takes_ids(const st_relay_request *r, st_engine_kind kind)
{
    bool as_it_is = r->kind != ST_API_CHAT || kind == ST_KIND_STARLING;
    return !r->text_only && r->n_prompts == 1 && (as_it_is || (!r->wants_logprobs && !r->reasons));
}

bool st_relay_translates(const st_relay_request *r, const st_upstream_plan *plan)
{
    return r->kind == ST_API_CHAT && plan->kind != ST_KIND_STARLING && plan->ids_json;
}

static st_status set_text(st_splice *s, const char *key, const char *json)
{
    return st_splice_set(s, key, json, strlen(json));
}

static st_status set_number(st_splice *s, const char *key, int64_t v)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, v);
    return set_text(s, key, text);
}

static st_status set_string(st_splice *s, const char *key, const char *text)
{
    st_buf json = ST_BUF_INIT;
    st_status st = st_buf_json_string(&json, text, strlen(text));
    if (!st)
        st = st_splice_set(s, key, json.data, json.len);
    st_buf_free(&json);
    return st;
}

static st_status remove_all(st_splice *s, const char *const *keys, size_t n)
{
    st_status st = ST_OK;
    for (size_t i = 0; !st && i < n; i++)
        st = st_splice_remove(s, keys[i]);
    return st;
}

/* ---- ids in the place of text ---- */

/* What made the prompt: of no use beside its ids. */
static const char *const prompt_makers[] = {
    "messages",           "tools",
    "tool_choice",        "functions",
    "function_call",      "documents",
    "chat_template",      "chat_template_kwargs",
    "reasoning_effort",   "add_generation_prompt",
    "add_special_tokens", "continue_final_message",
};

/* What a chat has and a completion has not, or means something else by. */
static const char *const chat_only[] = {
    "parallel_tool_calls",
    "response_format",
    "logprobs",
    "top_logprobs",
    "echo",
    "modalities",
    "audio",
    "store",
    "prediction",
    "service_tier",
    "verbosity",
    "web_search_options",
    "include_reasoning",
    "separate_reasoning",
    "stream_reasoning",
    "mm_processor_kwargs",
    "metadata",
};

/* A completion's fields of SGLang may be absent but not null, where a chat's may be both. */
static st_status remove_nulls(st_splice *s)
{
    for (size_t i = 0; i < st_splice_count(s); i++) {
        const st_member *m = st_splice_member(s, i);
        if (m->type != ST_JSON_NULL)
            continue;
        st_status st = st_splice_remove_at(s, i);
        if (st && st != ST_EINVAL) /* EINVAL: it has been given a value */
            return st;
    }
    return ST_OK;
}

/* Those that the gateway did not set. */
static st_status remove_internal(st_splice *s)
{
    for (size_t i = 0; i < ST_RELAY_INTERNAL; i++) {
        st_status st = st_splice_remove(s, st_relay_internal[i]);
        if (st && st != ST_EINVAL)
            return st;
    }
    return ST_OK;
}

static st_status put_ids(st_relay_request *r, const st_upstream_plan *plan)
{
    st_splice *s = r->splice;
    bool translate = st_relay_translates(r, plan);
    if (r->kind == ST_API_COMPLETION)
        return st_splice_set(s, "prompt", plan->ids_json, plan->ids_json_len);
    st_status st = remove_all(s, prompt_makers, sizeof prompt_makers / sizeof *prompt_makers);
    if (!st && translate)
        st = remove_all(s, chat_only, sizeof chat_only / sizeof *chat_only);
    return st ? st
              : st_splice_set(s, translate ? "prompt" : "prompt_token_ids", plan->ids_json,
                              plan->ids_json_len);
}

/* ---- which part of the work ---- */

static bool prefills_only(const st_upstream_plan *plan)
{
    return plan->role == ST_LEG_PREFILL &&
           (plan->handoff == ST_HANDOFF_PULL || plan->handoff == ST_HANDOFF_PUSH ||
            plan->handoff == ST_HANDOFF_MOONCAKE);
}

static st_status set_prefill_length(st_splice *s)
{
    st_status st = set_text(s, "stream", "false");
    if (!st)
        st = st_splice_remove(s, "stream_options");
    if (!st)
        st = set_text(s, "max_tokens", "1");
    if (!st)
        st = set_text(s, "max_completion_tokens", "1");
    return st ? st : set_text(s, "min_tokens", "1");
}

/* A chat that goes as a completion: the same length under a completion's name. */
static st_status set_completion_length(const st_relay_request *r, const st_upstream_plan *plan)
{
    int64_t most = r->max_tokens > 0 ? r->max_tokens : plan->default_max_tokens;
    st_status st = st_splice_remove(r->splice, "max_completion_tokens");
    if (!st && most > 0)
        st = set_number(r->splice, "max_tokens", most);
    return st;
}

/* ,"key":"text" */
static st_status add_string(st_buf *out, const char *key, const char *text)
{
    st_status st = st_buf_printf(out, ",\"%s\":", key);
    return st ? st : st_buf_json_string(out, text ? text : "", text ? strlen(text) : 0);
}

static st_status decode_params(const st_upstream_plan *plan, st_buf *out)
{
    st_status st = st_buf_puts(out, "{\"do_remote_prefill\":true,\"do_remote_decode\":false");
    if (!st)
        st = add_string(out, "transfer_id", plan->transfer_id);
    if (!st && plan->handoff == ST_HANDOFF_PUSH) {
        st = add_string(out, "remote_host", plan->remote_host);
        if (!st)
            st = st_buf_printf(out, ",\"remote_port\":%d", plan->remote_port);
    } else if (!st) {
        st = add_string(out, "remote_bootstrap_addr", plan->bootstrap_addr);
    }
    if (!st)
        st = add_string(out, "remote_engine_id", plan->remote_engine_id);
    return st ? st : st_buf_putc(out, '}');
}

static st_status prefill_params(const st_upstream_plan *plan, st_buf *out)
{
    st_status st = st_buf_puts(out, "{\"do_remote_decode\":true,\"do_remote_prefill\":false");
    if (!st && plan->handoff == ST_HANDOFF_PULL)
        st = st_buf_puts(out, ",\"remote_engine_id\":null,\"remote_block_ids\":null,"
                              "\"remote_host\":null,\"remote_port\":null");
    else if (!st)
        st = add_string(out, "transfer_id", plan->transfer_id);
    return st ? st : st_buf_putc(out, '}');
}

static st_status set_kv_params(st_splice *s, const st_upstream_plan *plan)
{
    if (plan->role == ST_LEG_DECODE && plan->handoff == ST_HANDOFF_PULL)
        return st_splice_set(s, "kv_transfer_params", plan->kv_params, plan->kv_params_len);
    st_buf json = ST_BUF_INIT;
    st_status st =
        plan->role == ST_LEG_DECODE ? decode_params(plan, &json) : prefill_params(plan, &json);
    if (!st)
        st = st_splice_set(s, "kv_transfer_params", json.data, json.len);
    st_buf_free(&json);
    return st;
}

/* A value, or for a batch of prompts a list of n: the same each time, or, of rooms, the following
 * ones. */
static st_status set_each(st_splice *s, const char *key, int64_t n, const char *text,
                          uint64_t first, uint64_t step)
{
    st_buf json = ST_BUF_INIT;
    st_status st = n > 1 ? st_buf_putc(&json, '[') : ST_OK;
    for (int64_t i = 0; !st && i < n; i++) {
        st = i ? st_buf_putc(&json, ',') : ST_OK;
        if (!st && text)
            st = st_buf_json_string(&json, text, strlen(text));
        else if (!st)
            st = st_buf_printf(&json, "%" PRIu64,
                               (first + (uint64_t)i * step) & (uint64_t)INT64_MAX);
    }
    if (!st && n > 1)
        st = st_buf_putc(&json, ']');
    if (!st)
        st = st_splice_set(s, key, json.data, json.len);
    st_buf_free(&json);
    return st;
}

static st_status set_bootstrap(const st_relay_request *r, const st_upstream_plan *plan)
{
    char host[300];
    bool bare_ipv6 = strchr(plan->bootstrap_host, ':') && plan->bootstrap_host[0] != '[';
    if (plan->bootstrap_room >> 63 || snprintf(host, sizeof host, bare_ipv6 ? "[%s]" : "%s",
                                               plan->bootstrap_host) >= (int)sizeof host)
        return ST_EINVAL;
    uint64_t port = (uint64_t)plan->bootstrap_port;
    st_status st = set_each(r->splice, "bootstrap_host", r->n_prompts, host, 0, 0);
    if (!st)
        st = set_each(r->splice, "bootstrap_port", r->n_prompts, NULL, port, 0);
    return st ? st
              : set_each(r->splice, "bootstrap_room", r->n_prompts, NULL, plan->bootstrap_room, 1);
}

static st_status set_handoff(st_relay_request *r, const st_upstream_plan *plan)
{
    if (plan->role == ST_LEG_WHOLE || plan->handoff == ST_HANDOFF_NONE)
        return ST_OK;
    return plan->handoff == ST_HANDOFF_BOOTSTRAP ? set_bootstrap(r, plan)
                                                 : set_kv_params(r->splice, plan);
}

static st_status edit(st_relay_request *r, const st_upstream_plan *plan)
{
    bool translate = st_relay_translates(r, plan);
    st_status st = plan->ids_json ? put_ids(r, plan) : ST_OK;
    if (!st && plan->model)
        st = set_string(r->splice, "model", plan->model);
    if (!st && prefills_only(plan))
        st = set_prefill_length(r->splice);
    else if (!st && translate)
        st = set_completion_length(r, plan);
    if (!st)
        st = set_handoff(r, plan);
    if (!st && r->internal_nulls)
        st = remove_internal(r->splice);
    return st || !translate ? st : remove_nulls(r->splice);
}

st_status st_upstream_body(st_relay_request *r, const st_upstream_plan *plan, const char **path,
                           st_buf *out)
{
    if (plan->ids_json && !st_relay_takes_ids(r, plan->kind))
        return ST_EINVAL;
    *path = r->kind == ST_API_CHAT && !st_relay_translates(r, plan) ? "/v1/chat/completions"
                                                                    : "/v1/completions";
    st_splice_reset(r->splice);
    st_status st = edit(r, plan);
    if (!st)
        st = st_splice_apply(r->splice, out);
    st_splice_reset(r->splice);
    return st;
}

/* ---- what engines say to the gateway ---- */

st_status st_upstream_kv_params(const char *body, size_t len, st_buf *out, st_error *err)
{
    static const char *const names[] = {"kv_transfer_params"};
    const char *why;
    st_picked params;
    if (!st_json_pick(body, len, names, 1, &params, &why))
        return st_fail(err, ST_EFORMAT, "the prefill engine's answer is no JSON object: %s", why);
    if (params.type != ST_JSON_OBJECT)
        return st_fail(err, ST_EFORMAT,
                       "the prefill engine's answer has no kv_transfer_params object: is it run "
                       "with a KV connector?");
    st_status st = st_buf_append(out, params.at, params.len);
    return st ? st_fail(err, st, "memory is short") : ST_OK;
}

st_status st_upstream_mooncake_engine_id(const char *body, size_t len, int dp_rank, st_buf *out,
                                         st_error *err)
{
    static const char *const names[] = {"engine_id"};
    char rank[16];
    const char *rank_name = rank, *why;
    st_picked of_rank, id;
    snprintf(rank, sizeof rank, "%d", dp_rank);
    if (!st_json_pick(body, len, &rank_name, 1, &of_rank, &why))
        return st_fail(err, ST_EFORMAT, "the answer to /query is no JSON object: %s", why);
    if (of_rank.type != ST_JSON_OBJECT ||
        !st_json_pick(of_rank.at, of_rank.len, names, 1, &id, NULL) || id.type != ST_JSON_STRING)
        return st_fail(err, ST_EFORMAT, "the answer to /query has no engine_id for rank %d",
                       dp_rank);
    st_status st = st_picked_text(&id, out);
    return st ? st_fail(err, st, "memory is short") : ST_OK;
}
