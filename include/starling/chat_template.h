/* Chat templates: the part of Jinja2 that published models' templates use, run in a sandbox with
 * limits on time, depth and memory.
 *
 * A parsed template is immutable; any number of threads may render it at once. */
#ifndef STARLING_CHAT_TEMPLATE_H
#define STARLING_CHAT_TEMPLATE_H

#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "starling/buf.h"
#include "starling/status.h"

typedef struct st_chat_template st_chat_template;

/* Finds the template of a checkpoint folder: chat_template.jinja, else `chat_template` in
 * tokenizer_config.json (a string, or a list of {name, template}: "default" is taken). Also keeps
 * bos_token, eos_token etc. from tokenizer_config.json as variables. ST_ENOTFOUND: no template. */
ST_NODISCARD st_status st_chat_template_load(const char *dir, st_chat_template **out,
                                             st_error *err);
/* Parses a template text; name is used in error texts. */
ST_NODISCARD st_status st_chat_template_parse(const char *name, const char *text, size_t len,
                                              st_chat_template **out, st_error *err);
void st_chat_template_free(st_chat_template *t); /* NULL is fine */

/* Renders with context (a JSON object: messages, tools, add_generation_prompt and whatever the
 * caller passes on) as the variables. Appends to *out. Errors: ST_EINVAL when the template itself
 * raised (err->text is its message), ST_EFORMAT for a run-time type error with the line,
 * ST_EDEADLINE / ST_ENOMEM when a limit was hit. now: seconds since 1970 for strftime_now. */
ST_NODISCARD st_status st_chat_template_render(const st_chat_template *t, const json_t *context,
                                               int64_t now, st_buf *out, st_error *err);

#endif
