/* The gateway's side of the API: a client's request becomes the requests that engines are sent, and
 * engines' answers become the client's. Pure: bytes in, bytes out; no HTTP, no nginx.
 *
 *   body --st_relay_parse--> st_relay_request        where the fields stand; nothing is copied out
 *        --st_relay_tokenize--> ids                  template and tokenizer, any thread
 *        --st_upstream_body--> bytes for one engine  the same body with bytes spliced
 *   an engine's answer --st_relay_reply--> bytes for the client
 *
 * Engines that take ids in a chat (ours: "prompt_token_ids") answer as the client wants it: their
 * bytes are passed on as they are. vLLM and SGLang take ids on /v1/completions: those answers are
 * turned into chat answers, event by event, by copying the text's JSON bytes. A request whose
 * answer needs parsing that only the engine can do (tools, JSON mode, images, log-probabilities of
 * a chat on a foreign engine) goes as text and comes back as it is.
 *
 * Protocol facts: docs/gateway.md and docs/SOURCES.md. */
#ifndef ST_API_RELAY_H
#define ST_API_RELAY_H

#include "base/json_splice.h"
#include "starling/api.h"
#include "text/token_cache.h"

/* ---- engines ---- */

typedef enum st_engine_kind { ST_KIND_STARLING, ST_KIND_VLLM, ST_KIND_SGLANG } st_engine_kind;

/* Which part of the work this engine does. */
typedef enum st_leg_role { ST_LEG_WHOLE, ST_LEG_PREFILL, ST_LEG_DECODE } st_leg_role;

/* How KV gets from prefill to decode. */
typedef enum st_handoff {
    ST_HANDOFF_NONE,     /* one engine does both */
    ST_HANDOFF_PULL,     /* sequential: kv_transfer_params of the prefill's reply (vLLM NIXL,
                            ours) */
    ST_HANDOFF_PUSH,     /* parallel, ours: transfer_id, decode connects to remote_host:port */
    ST_HANDOFF_MOONCAKE, /* parallel, vLLM: transfer_id, remote_bootstrap_addr, engine id */
    ST_HANDOFF_BOOTSTRAP /* parallel, SGLang: bootstrap_host, _port, _room */
} st_handoff;

/* ---- a client's request ---- */

typedef struct st_relay_request {
    st_api_kind kind;  /* CHAT or COMPLETION */
    st_splice *splice; /* over the body, which must outlive this */
    st_buf model;      /* the name asked for; empty: none */
    bool stream, include_usage;
    int64_t max_tokens; /* -1: not given (max_completion_tokens counts) */
    int64_t n;          /* choices */
    int64_t n_prompts;  /* of a completion; > 1: no disaggregation */
    bool ids_given;     /* the completion's prompt is a list of ids */
    bool wants_logprobs;
    bool text_only; /* only an engine that parses text can answer: tools, response_format, guided
                       decoding, content parts that are not text, ... */
    const char *text_only_why; /* the field */
    const char *whole_only; /* the field for which one engine must do prefill and decode, whatever
                               it speaks: several choices, beam search, ...; NULL: none */
    bool internal_nulls;    /* fields of st_relay_internal are there, as null */
    bool reasons;           /* set by the caller: st_relay_reasons of the model's tokenizer */
    st_buf cache_salt;      /* empty: none */
    int64_t priority;
} st_relay_request;

/* Fields that only gateways may set. */
enum { ST_RELAY_INTERNAL = 10 };
extern const char *const st_relay_internal[ST_RELAY_INTERNAL];

/* Scans body strictly. Fails with what the client gets: 400 for malformed JSON (with the position),
 * duplicate keys, wrong types of the fields above, fields that only gateways may set. Those may be
 * null, as clients that spell out every field of an engine have them: engines do not see them. */
ST_NODISCARD st_status st_relay_parse(st_api_kind kind, const char *body, size_t len,
                                      st_relay_request **out, st_api_error *err);
void st_relay_request_free(st_relay_request *r); /* NULL is fine */

/* What tokenizing needs of a model. All of it immutable but the cache, which locks itself. */
typedef struct st_relay_model {
    const char *name;
    const st_tokenizer *tok;
    const st_chat_template *tmpl; /* may be NULL: completions only */
    st_api_context ctx;
    st_token_cache *cache; /* may be NULL */
} st_relay_model;

/* Whether the vocabulary has marks around a model's reasoning: vLLM and SGLang split such chats'
 * answers into reasoning_content and content, which only their chat endpoints do. */
bool st_relay_reasons(const st_tokenizer *tok);

/* Whether an engine of this kind can be sent the prompt's ids: no text_only request, no batch, and
 * no chat whose answer could not be turned back (log-probabilities, reasoning). */
bool st_relay_takes_ids(const st_relay_request *r, st_engine_kind kind);

/* The prompt's ids (the template rendered, text encoded). Thread-safe. now: seconds since 1970.
 * Not for text_only requests nor n_prompts > 1. Errors are the client's (400, context length). */
ST_NODISCARD st_status st_relay_tokenize(const st_relay_request *r, const st_relay_model *m,
                                         int64_t now, st_ids *out, st_api_error *err);

/* Appends "[1,2,3]". */
ST_NODISCARD st_status st_relay_ids_json(const int32_t *ids, size_t n, st_buf *out);

/* ---- what an engine is sent ---- */

typedef struct st_upstream_plan {
    st_engine_kind kind;
    st_leg_role role;
    st_handoff handoff;
    const char *model; /* the engine's name of the model; NULL: as the client said */
    /* The prompt's ids as a JSON list (st_relay_ids_json), made once for all legs; NULL: text. */
    const char *ids_json;
    size_t ids_json_len, n_ids;
    int64_t default_max_tokens; /* > 0: what a chat without max_tokens may generate, put in where a
                                   completion's default would be 16 */
    /* PULL, decode leg: the prefill reply's kv_transfer_params, verbatim JSON. */
    const char *kv_params;
    size_t kv_params_len;
    /* PUSH and MOONCAKE */
    const char *transfer_id;
    const char *remote_host; /* PUSH, decode: the prefill engine's KV address */
    int remote_port;
    const char *bootstrap_addr;   /* MOONCAKE, decode: "http://P:8998" */
    const char *remote_engine_id; /* PUSH and MOONCAKE, decode */
    /* BOOTSTRAP, both legs; of several prompts each has a room of its own, from this one on */
    const char *bootstrap_host; /* an IPv6 address gets its brackets here */
    int bootstrap_port;
    uint64_t bootstrap_room; /* below 2^63 */
} st_upstream_plan;

/* Whether a chat goes to /v1/completions with this plan, so that its answer is to be turned back
 * (st_relay_reply_new's translate). */
bool st_relay_translates(const st_relay_request *r, const st_upstream_plan *plan);

/* Appends the body for one engine and gives its path ("/v1/completions", ...). Thread-safe for
 * different requests (uses r's splice). ST_EINVAL: ids where st_relay_takes_ids says no. */
ST_NODISCARD st_status st_upstream_body(st_relay_request *r, const st_upstream_plan *plan,
                                        const char **path, st_buf *out);

/* The prefill leg's reply: appends its top-level kv_transfer_params, verbatim. ST_EFORMAT when the
 * reply is not an object or has none (err says so). */
ST_NODISCARD st_status st_upstream_kv_params(const char *body, size_t len, st_buf *out,
                                             st_error *err);
/* An engine's error body for the client: as it is when it has OpenAI's shape; vLLM's and SGLang's
 * flat one, a bare text or a proxy's plain one put into it, with a type that goes with http_status
 * where there is none. ST_ENOTFOUND: it has no message. */
ST_NODISCARD st_status st_upstream_error(const char *body, size_t len, int http_status,
                                         st_buf *out);
/* The HTTP status that an error's "code" says, as errors within streams have it; 0: none. */
int st_upstream_error_status(const char *body, size_t len);
/* MOONCAKE's GET /query: the engine_id of a rank. */
ST_NODISCARD st_status st_upstream_mooncake_engine_id(const char *body, size_t len, int dp_rank,
                                                      st_buf *out, st_error *err);

/* ---- what the client is sent ---- */

typedef struct st_relay_reply st_relay_reply;

typedef struct st_relay_seen {
    bool any;   /* an event with a choice came: the first token is out */
    bool done;  /* [DONE] */
    bool error; /* an event {"error": ...} */
    uint32_t events;
    int64_t prompt_tokens, completion_tokens, cached_tokens; /* of usage; -1: none came */
} st_relay_seen;

/* translate: turn completions into chats (st_upstream_body sent a chat to /v1/completions);
 * otherwise events pass as they are. id and created are used when translating. */
ST_NODISCARD st_status st_relay_reply_new(const st_relay_request *r, const char *model,
                                          bool translate, uint64_t id, int64_t created,
                                          st_relay_reply **out);
void st_relay_reply_free(st_relay_reply *a);
const st_relay_seen *st_relay_reply_seen(const st_relay_reply *a);
/* {"error":...} of the last error that was seen, empty: none; and st_upstream_error_status of it.
 */
const st_buf *st_relay_reply_error(const st_relay_reply *a, int *http_status);

/* One complete event of the engine's stream, its blank line included. When it can pass unchanged
 * *verbatim is true and nothing is appended; else the client's event(s) are appended to out.
 * ST_EFORMAT: the engine sends what is not its protocol (err). */
ST_NODISCARD st_status st_relay_reply_event(st_relay_reply *a, const char *event, size_t len,
                                            bool *verbatim, st_buf *out, st_error *err);
/* A whole answer that is not a stream: the same. */
ST_NODISCARD st_status st_relay_reply_whole(st_relay_reply *a, const char *body, size_t len,
                                            bool *verbatim, st_buf *out, st_error *err);

#endif
