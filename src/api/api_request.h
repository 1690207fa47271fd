/* Inside of a parsed request: what src/api's files share and callers need not see. */
#ifndef ST_API_REQUEST_H
#define ST_API_REQUEST_H

#include "base/arena.h"
#include "starling/api.h"
#include "text/token_cache.h"

typedef struct st_api_parsed {
    st_api_request pub; /* first: st_api_request * is cast to this */
    st_arena *arena;
    json_t *root; /* the body; strings of pub point into it */
    /* The chat with tool-call arguments as the strings that the client sent; NULL when there are
     * none. Templates disagree: most want objects (pub.chat), DeepSeek's concatenate strings. */
    json_t *chat_text_arguments;
} st_api_parsed;

/* State of one parse: the field being looked at and where errors go. */
typedef struct st_api_parser {
    st_api_parsed *req;
    const st_api_context *ctx;
    st_api_kind kind;
    st_api_error *err;
    json_t *chat_kwargs, *messages; /* borrowed from root */
    json_t *template_vars;          /* owned: tools, tool_choice, ... */
    bool logprobs_wanted, top_logprobs_given, generation_prompt_given, add_generation_prompt;
    int32_t top_logprobs, best_of, max_tokens, max_completion_tokens;
    bool min_tokens_given, stream_options_given;
} st_api_parser;

/* "stop is 7: expected a string": fails with 400 naming the field, its value and what was
 * expected. */
st_status st_api_bad_value(const st_api_parser *p, const char *key, const json_t *v,
                           const char *expected);

/* Checks messages, normalises their content and makes pub.chat of them (chat_messages.c). */
ST_NODISCARD st_status st_api_build_chat(st_api_parser *p);

/* A list of token ids, in the vocabulary; path names it in errors. */
ST_NODISCARD st_status st_api_parse_ids(const st_api_parser *p, const char *key, const char *path,
                                        const json_t *list, const int32_t **ids, size_t *n);

/* st_api_parse of a body that is a tree already; takes root over, also on failure. */
ST_NODISCARD st_status st_api_parse_tree(st_api_kind kind, json_t *root, const st_api_context *ctx,
                                         st_api_request **out, st_api_error *err);
/* st_api_prompt_ids through a cache (may be NULL). */
ST_NODISCARD st_status st_api_prompt_ids_cached(const st_api_request *r, size_t i,
                                                const st_api_context *ctx, const st_tokenizer *tok,
                                                const st_chat_template *tmpl, st_token_cache *cache,
                                                int64_t now, st_ids *out, st_api_error *err);
/* Whether a prompt of n tokens leaves room for an answer; param names it in errors. */
ST_NODISCARD st_status st_api_check_length(st_api_kind kind, const char *param,
                                           const st_api_context *ctx, size_t n, st_api_error *err);

#endif
