/* One question to the gateway of `starling up`, its answer printed as it comes. */
#ifndef ST_CLI_UP_ONCE_H
#define ST_CLI_UP_ONCE_H

#include "cli/up_stack.h"

typedef struct st_up_question {
    const char *model, *api_key; /* api_key: NULL: none */
    const char *prompt;
    int max_tokens;    /* 0: the server's default */
    float temperature; /* NaN: the checkpoint's */
    uint64_t seed;     /* with has_seed */
    bool has_seed;
} st_up_question;

ST_NODISCARD st_status st_up_ask(st_up_stack *s, const char *socket, const st_up_question *q,
                                 st_error *err);

#endif
