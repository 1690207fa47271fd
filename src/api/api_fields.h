/* Request fields with a shape of their own; api_request.c's table names them. */
#ifndef ST_API_FIELDS_H
#define ST_API_FIELDS_H

#include "api/api_request.h"

enum {
    ST_API_MAX_CHOICES = 1024, /* prompts * n of one request */
    ST_API_MAX_STOPS = 16,
    ST_API_MAX_STOP_IDS = 128,
    ST_API_MAX_LOGIT_BIAS = 1024,
};

/* v is neither absent nor null. */
typedef st_status st_api_field_fn(st_api_parser *p, const char *key, json_t *v);

st_api_field_fn st_api_field_model;
st_api_field_fn st_api_field_prompt;
st_api_field_fn st_api_field_messages;
st_api_field_fn st_api_field_tools;
st_api_field_fn st_api_field_tool_choice;
st_api_field_fn st_api_field_kwargs;
st_api_field_fn st_api_field_generation_prompt;
st_api_field_fn st_api_field_logit_bias;
st_api_field_fn st_api_field_seed;
st_api_field_fn st_api_field_stop;
st_api_field_fn st_api_field_stop_ids;
st_api_field_fn st_api_field_stream_options;
st_api_field_fn st_api_field_response_format;
st_api_field_fn st_api_field_refused;
st_api_field_fn st_api_field_prompt_ids;  /* a chat's */
st_api_field_fn st_api_field_kv_transfer; /* api_handover.c */

/* What kv_transfer_params and other fields must agree on (api_handover.c). */
ST_NODISCARD st_status st_api_check_handover(st_api_parser *p);

#endif
