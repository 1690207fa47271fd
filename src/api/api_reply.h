/* Inside of a reply: shared by api_reply.c (state), api_json.c (objects) and api_logprobs.c. */
#ifndef ST_API_REPLY_H
#define ST_API_REPLY_H

#include "api/text_stream.h"
#include "starling/api.h"

/* A generated token's logprobs; its alternatives are tops[top_at .. top_at + n_top). */
typedef struct st_api_token_logprob {
    int32_t token;
    float logprob;
    size_t top_at;
    int32_t n_top;
} st_api_token_logprob;

typedef struct st_api_choice {
    st_text_stream *stream;
    st_buf text; /* a stream's: not sent yet; else all of it */
    st_ids ids;  /* the same, with return_token_ids */
    st_api_token_logprob *logprobs;
    size_t n_logprobs, cap_logprobs;
    st_logprob *tops;
    size_t n_tops, cap_tops;
    size_t chars; /* characters before logprobs[0]: completions' text_offset */
    int32_t n_generated;
    bool started, done, finish_sent;
    st_finish finish;   /* STOP or LENGTH once done */
    int32_t stop_token; /* the stop id that ended it, or -1 */
} st_api_choice;

typedef struct st_api_answered_prompt {
    const int32_t *ids; /* copied when they are to be shown */
    size_t n_ids;
    int32_t cached;
    st_buf echo;
} st_api_answered_prompt;

struct st_api_reply {
    const st_api_request *r;
    const st_tokenizer *tok;
    char id[40];
    st_buf offer; /* ,"kv_transfer_params":{...}, or empty */
    st_buf head;  /* {"id":...,"object":...,"created":...,"model":... */
    st_api_answered_prompt *prompts;
    st_api_choice *choices;
    size_t n_choices, n_done;
};

/* ,"logprobs":{...} or ,"logprobs":null for what the choice holds. */
ST_NODISCARD st_status st_api_write_logprobs(const st_api_reply *a, st_api_choice *c, st_buf *out);
/* A token's text as one JSON string, for token_strs. */
ST_NODISCARD st_status st_api_write_token(const st_tokenizer *tok, int32_t id, st_buf *out);
/* [1,2,3] */
ST_NODISCARD st_status st_api_write_ids(const int32_t *ids, size_t n, st_buf *out);
/* "usage":{...} */
ST_NODISCARD st_status st_api_write_usage(const st_api_usage *u, st_buf *out);

#endif
