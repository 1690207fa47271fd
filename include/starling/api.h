/* The OpenAI API without HTTP: request bodies become structs, engine events become JSON or
 * server-sent events. Used by the engine's server and by the gateway.
 *
 *   body --st_api_parse--> st_api_request --st_api_prompt_ids--> ids + sampling  (to the engine)
 *   events --st_api_reply_event--> st_api_reply --st_api_reply_chunks / _end--> bytes (to the
 * client)
 *
 * Field names, defaults and ranges are OpenAI's, with vLLM's additions (top_k, min_p,
 * stop_token_ids, ignore_eos, chat_template_kwargs, ...). Unknown fields are ignored, as both do;
 * what would change the answer but is not there yet (JSON mode, best_of) is refused. */
#ifndef STARLING_API_H
#define STARLING_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "starling/buf.h"
#include "starling/chat_template.h"
#include "starling/engine.h"
#include "starling/status.h"
#include "starling/tokenizer.h"

/* Errors, in the shape {"error": {"message", "type", "param", "code"}}. */
typedef struct st_api_error {
    int http_status;
    char param[64]; /* the field, or "" */
    char code[48];  /* "context_length_exceeded", or "" */
    st_error why;
} st_api_error;

/* Fills *e; param and code may be NULL. Returns ST_EINVAL for 4xx, ST_EINTERNAL for 5xx. */
st_status st_api_fail(st_api_error *e, int http_status, const char *param, const char *code,
                      const char *fmt, ...) ST_PRINTF(5, 6);
/* The same from a library's error: 400, 429, 500 or 503 by its status. */
st_status st_api_fail_from(st_api_error *e, const char *param, const st_error *why);
/* The "type" that OpenAI's own services and clients pair with a status. */
const char *st_api_error_type(int http_status);
ST_NODISCARD st_status st_api_error_json(const st_api_error *e, st_buf *out);

/* What generation_config.json says: used for fields that a request leaves out. NaN and -1: not
 * given (then OpenAI's defaults: temperature 1, top_p 1). `do_sample: false` means temperature 0.
 * max_new_tokens is the default of max_tokens in chats. */
typedef struct st_api_defaults {
    float temperature, top_p, min_p, repetition_penalty;
    int32_t top_k, max_new_tokens;
} st_api_defaults;

/* Reads DIR/generation_config.json; a missing file gives the plain defaults. */
ST_NODISCARD st_status st_api_defaults_load(const char *dir, st_api_defaults *out, st_error *err);
void st_api_defaults_init(st_api_defaults *d);

/* What parsing must know of the server. */
typedef struct st_api_context {
    const char *const *models; /* names a request may ask for; [0] is the default */
    size_t n_models;
    int32_t vocab_size, max_model_len;
    st_api_defaults defaults;
} st_api_context;

typedef enum st_api_kind {
    ST_API_COMPLETION = 1, /* /v1/completions */
    ST_API_CHAT = 2,       /* /v1/chat/completions */
    ST_API_TOKENIZE = 4,   /* /tokenize: a prompt or messages */
    ST_API_DETOKENIZE = 8  /* /detokenize */
} st_api_kind;

/* A stop string: len >= 1 bytes of UTF-8. */
typedef struct st_stop {
    const char *text;
    size_t len;
} st_stop;

/* A prompt of a completion: text, or ids (text == NULL). */
typedef struct st_api_prompt {
    const char *text;
    size_t len;
    const int32_t *ids;
    size_t n_ids;
} st_api_prompt;

/* A parsed request. Owns all that it points to; read-only for its users. */
typedef struct st_api_request {
    st_api_kind kind;
    const char *model; /* one of the context's names */

    st_api_prompt *prompts; /* completions, tokenize, detokenize; a chat has 1, from messages or
                               prompt_token_ids */
    size_t n_prompts;
    json_t *chat; /* the template's variables: messages, tools, add_generation_prompt, ...; NULL
                     when there were no messages */
    bool continue_final_message;
    bool add_special_tokens;

    st_sampling sampling; /* of choice 0; choice i uses seed + i. max_tokens: -1 when not given */
    bool has_seed;        /* else sampling.seed is 0 and the caller draws one */
    int32_t n;            /* choices per prompt */
    st_stop *stops;
    size_t n_stops;
    bool skip_special_tokens, include_stop_str_in_output;
    bool echo, stream, include_usage, continuous_usage, return_token_ids, return_token_strs;
    const char *cache_salt; /* or NULL */
    int32_t priority;
    /* kv_transfer_params. An offer may have no id: whoever submits it draws one. */
    st_handover_request handover;
} st_api_request;

/* Parses a body. On failure *out is NULL and *err is what the client gets. */
ST_NODISCARD st_status st_api_parse(st_api_kind kind, const char *body, size_t len,
                                    const st_api_context *ctx, st_api_request **out,
                                    st_api_error *err);
void st_api_request_free(st_api_request *r); /* NULL is fine */

/* Appends the ids of prompt i (< n_prompts): renders the template for messages (tmpl may be NULL:
 * an error then), encodes text, checks ids. now: seconds since 1970, for the template. Thread-safe
 * for different requests. */
ST_NODISCARD st_status st_api_prompt_ids(const st_api_request *r, size_t i,
                                         const st_api_context *ctx, const st_tokenizer *tok,
                                         const st_chat_template *tmpl, int64_t now, st_ids *out,
                                         st_api_error *err);

/* The sampling to submit for a choice of a prompt of n_prompt tokens: seed + i, and max_tokens
 * filled in and cut to the room left in the context. */
st_sampling st_api_choice_sampling(const st_api_request *r, const st_api_context *ctx,
                                   uint64_t seed, int32_t choice, int32_t n_prompt);

/* The answer to a completion or chat while it is being made. Choice p * n + i is the i-th answer
 * to prompt p. Not thread-safe. */
typedef struct st_api_reply st_api_reply;

/* r and tok must outlive the reply. id: 64 random bits; created: seconds since 1970. */
ST_NODISCARD st_status st_api_reply_new(const st_api_request *r, const st_tokenizer *tok,
                                        uint64_t id, int64_t created, st_api_reply **out);
void st_api_reply_free(st_api_reply *a);            /* NULL is fine */
const char *st_api_reply_id(const st_api_reply *a); /* "chatcmpl-..." */

/* The ids of prompt p: counted in usage, and shown by echo and return_token_ids. Before the
 * prompt's first event. */
ST_NODISCARD st_status st_api_reply_prompt(st_api_reply *a, size_t p, const int32_t *ids, size_t n);
/* Takes an engine event of a choice (finish STOP, LENGTH or NONE; the caller turns CANCELLED and
 * ERROR into error replies). Sets *done when the choice is complete: with a finish of NONE that
 * means a stop string matched and the caller should cancel the engine's request. Events of
 * complete choices are ignored. */
ST_NODISCARD st_status st_api_reply_event(st_api_reply *a, size_t choice, const st_token_event *ev,
                                          bool *done);
bool st_api_reply_complete(const st_api_reply *a); /* every choice is */
/* "stop" or "length" once the choice is complete, else NULL. */
const char *st_api_reply_finish_reason(const st_api_reply *a, size_t choice);

/* Streaming: appends server-sent events with what is new in a choice since the last call. */
ST_NODISCARD st_status st_api_reply_chunks(st_api_reply *a, size_t choice, st_buf *out);
/* The end: for a stream the usage event (when asked for) and [DONE]; else the whole object. */
ST_NODISCARD st_status st_api_reply_end(st_api_reply *a, st_buf *out);

/* Where the KV of an offered prompt can be fetched: the reply's kv_transfer_params. Before
 * st_api_reply_end; everything is copied. */
typedef struct st_api_offer {
    const char *engine_id, *request_id, *host;
    uint16_t port;
    const int32_t *blocks;
    int32_t n_blocks, n_tokens;
} st_api_offer;
ST_NODISCARD st_status st_api_reply_offer(st_api_reply *a, const st_api_offer *o);
/* An error within a stream: its event and [DONE]. */
ST_NODISCARD st_status st_api_error_event(const st_api_error *e, st_buf *out);

typedef struct st_api_usage {
    int64_t prompt_tokens, completion_tokens, cached_tokens;
} st_api_usage;
st_api_usage st_api_reply_usage(const st_api_reply *a);

/* The other objects. */
ST_NODISCARD st_status st_api_model_json(const char *name, int64_t created, int32_t max_model_len,
                                         st_buf *out);
ST_NODISCARD st_status st_api_models_json(const st_api_context *ctx, int64_t created, st_buf *out);
ST_NODISCARD st_status st_api_tokenize_json(const st_api_request *r, const st_api_context *ctx,
                                            const st_tokenizer *tok, const int32_t *ids, size_t n,
                                            st_buf *out);
ST_NODISCARD st_status st_api_detokenize_json(const st_api_request *r, const st_tokenizer *tok,
                                              st_buf *out, st_api_error *err);

#endif
