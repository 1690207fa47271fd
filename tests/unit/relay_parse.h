/* A client's request for the tests of src/api/relay.h. Include after cmocka_all.h. */
#ifndef ST_RELAY_PARSE_H
#define ST_RELAY_PARSE_H

#include <string.h>

#include "api/relay.h"

#define CHAT ST_API_CHAT
#define COMP ST_API_COMPLETION
#define MSG  "\"messages\":[{\"role\":\"user\",\"content\":\"max_tokens\"}]"

static st_relay_request *parse(st_api_kind kind, const char *body)
{
    st_relay_request *r;
    st_api_error err;
    if (st_relay_parse(kind, body, strlen(body), &r, &err))
        fail_msg("%s: %s", body, err.why.text);
    return r;
}

#endif
