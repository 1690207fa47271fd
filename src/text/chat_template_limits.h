/* Rendering within chosen limits: the public st_chat_template_render has generous ones. */
#ifndef ST_TEXT_CHAT_TEMPLATE_LIMITS_H
#define ST_TEXT_CHAT_TEMPLATE_LIMITS_H

#include "starling/chat_template.h"

typedef struct st_template_limits {
    size_t memory; /* bytes for values and texts of one render */
    size_t output; /* bytes of any one text */
    int64_t steps; /* nodes evaluated, items walked, and one for each 64 bytes moved */
} st_template_limits;

/* As st_chat_template_render. */
ST_NODISCARD st_status st_chat_template_render_within(const st_chat_template *t,
                                                      const json_t *context, int64_t now,
                                                      const st_template_limits *limits, st_buf *out,
                                                      st_error *err);

#endif
