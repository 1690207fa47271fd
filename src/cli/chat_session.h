/* A conversation in the terminal: keeps the messages, asks the engine, streams the answer to
 * standard output. What `starling run` is made of. */
#ifndef ST_CLI_CHAT_SESSION_H
#define ST_CLI_CHAT_SESSION_H

#include <signal.h>

#include "cli/loading.h"

typedef struct st_chat_options {
    const char *system; /* NULL: none */
    bool raw;           /* complete the text as it is, no template, no memory of earlier turns */
    json_t *fields;     /* sampling fields of every request, as the API names them; not owned */
} st_chat_options;

/* Of one answer. */
typedef struct st_chat_stats {
    int32_t prompt_tokens, cached_tokens, generated_tokens;
    double first_token_s, decode_s; /* from the question on; from the first token to the last */
    st_finish finish;
} st_chat_stats;

typedef struct st_chat_session st_chat_session;

/* l and opts must outlive the session. ST_ENOTFOUND: not raw, and there is no chat template. */
ST_NODISCARD st_status st_chat_session_new(const st_loaded *l, const st_chat_options *opts,
                                           st_chat_session **out, st_error *err);
void st_chat_session_free(st_chat_session *s);  /* NULL is fine */
void st_chat_session_reset(st_chat_session *s); /* forgets all but the system message */
size_t st_chat_session_turns(const st_chat_session *s);

/* Asks and streams the answer to standard output (no newline behind it). While *stop is above
 * zero the answer is ended early; what came until then stays in the conversation. After a
 * failure the conversation is as it was before. */
ST_NODISCARD st_status st_chat_session_ask(st_chat_session *s, const char *text, size_t len,
                                           const volatile sig_atomic_t *stop, st_chat_stats *stats,
                                           st_error *err);

#endif
