/* Chat messages -> the variables of a chat template. Content parts become one string, tool-call
 * arguments objects; everything else reaches the template as the client sent it. */
#include <stdio.h>
#include <string.h>

#include "api/api_request.h"

static st_status no_memory(const st_api_parser *p)
{
    return st_api_fail(p->err, 503, NULL, NULL, "memory is short");
}

/* Joins [{type: "text", text}, ...] with newlines, as vLLM's "string" content format does. */
static st_status join_parts(st_api_parser *p, size_t index, const json_t *parts, st_buf *out)
{
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *text = json_object_get(part, "text");
        if (!type || (strcmp(type, "text") == 0 && !json_is_string(text)))
            return st_api_fail(p->err, 400, "messages", NULL,
                               "messages[%zu].content[%zu]: expected {\"type\": \"text\", "
                               "\"text\": string}",
                               index, i);
        if (strcmp(type, "text") != 0)
            return st_api_fail(p->err, 400, "messages", NULL,
                               "messages[%zu].content[%zu] is of type '%.40s': this model reads "
                               "text only",
                               index, i, type);
        if (i && st_buf_putc(out, '\n'))
            return no_memory(p);
        if (st_buf_append(out, json_string_value(text), json_string_length(text)))
            return no_memory(p);
    }
    return ST_OK;
}

static st_status flatten_content(st_api_parser *p, size_t index, json_t *message)
{
    const json_t *content = json_object_get(message, "content");
    if (!content || json_is_null(content) || json_is_string(content))
        return ST_OK;
    if (!json_is_array(content))
        return st_api_fail(p->err, 400, "messages", NULL,
                           "messages[%zu].content: expected a string or a list of text parts",
                           index);
    st_buf text = ST_BUF_INIT;
    st_status s = join_parts(p, index, content, &text);
    if (!s &&
        json_object_set_new(message, "content", json_stringn(text.data ? text.data : "", text.len)))
        s = no_memory(p);
    st_buf_free(&text);
    return s;
}

static st_status check_message(st_api_parser *p, size_t index, json_t *message)
{
    if (!json_is_object(message))
        return st_api_fail(p->err, 400, "messages", NULL, "messages[%zu]: expected an object",
                           index);
    const json_t *role = json_object_get(message, "role");
    if (!json_is_string(role) || json_string_length(role) == 0)
        return st_api_fail(p->err, 400, "messages", NULL,
                           "messages[%zu].role: expected a string such as 'user'", index);
    const json_t *content = json_object_get(message, "content"),
                 *calls = json_object_get(message, "tool_calls");
    if ((!content || json_is_null(content)) && strcmp(json_string_value(role), "assistant") != 0)
        return st_api_fail(p->err, 400, "messages", NULL,
                           "messages[%zu].content is missing: expected a string or a list of text "
                           "parts",
                           index);
    if (calls && !json_is_null(calls) && !json_is_array(calls))
        return st_api_fail(p->err, 400, "messages", NULL,
                           "messages[%zu].tool_calls: expected a list", index);
    return flatten_content(p, index, message);
}

/* Replaces function.arguments strings that hold JSON objects by those objects; *changed when
 * there was one. Without apply it only asks. */
static st_status parse_arguments(json_t *messages, bool apply, bool *changed)
{
    for (size_t m = 0; m < json_array_size(messages); m++) {
        json_t *calls = json_object_get(json_array_get(messages, m), "tool_calls");
        for (size_t c = 0; c < json_array_size(calls); c++) {
            json_t *fn = json_object_get(json_array_get(calls, c), "function");
            const json_t *text = json_object_get(fn, "arguments");
            if (!json_is_string(text))
                continue;
            json_t *parsed =
                json_loadb(json_string_value(text), json_string_length(text), JSON_ALLOW_NUL, NULL);
            bool usable = json_is_object(parsed);
            *changed |= usable;
            if (usable && apply && json_object_set(fn, "arguments", parsed)) {
                json_decref(parsed);
                return ST_ENOMEM;
            }
            json_decref(parsed);
        }
    }
    return ST_OK;
}

/* The variables without messages; a new object. */
static json_t *variables(st_api_parser *p)
{
    json_t *vars = json_object();
    if (!vars ||
        json_object_set_new(vars, "add_generation_prompt",
                            json_boolean(p->add_generation_prompt)) ||
        json_object_update(vars, p->template_vars) ||
        (p->chat_kwargs && json_object_update(vars, p->chat_kwargs))) {
        json_decref(vars);
        return NULL;
    }
    return vars;
}

static json_t *with_messages(st_api_parser *p, json_t *messages)
{
    json_t *vars = variables(p);
    if (vars && json_object_set(vars, "messages", messages)) {
        json_decref(vars);
        return NULL;
    }
    return vars;
}

st_status st_api_build_chat(st_api_parser *p)
{
    st_api_request *r = &p->req->pub;
    for (size_t i = 0; i < json_array_size(p->messages); i++) {
        st_status s = check_message(p, i, json_array_get(p->messages, i));
        if (s)
            return s;
    }
    if (r->continue_final_message) {
        if (p->generation_prompt_given && p->add_generation_prompt)
            return st_api_fail(p->err, 400, "continue_final_message", NULL,
                               "continue_final_message and add_generation_prompt are both true: "
                               "expected at most one of them");
        p->add_generation_prompt = false;
    }
    bool has_arguments = false;
    if (parse_arguments(p->messages, false, &has_arguments))
        return no_memory(p);
    if (has_arguments) {
        json_t *original = json_deep_copy(p->messages);
        p->req->chat_text_arguments = original ? with_messages(p, original) : NULL;
        json_decref(original);
        if (!p->req->chat_text_arguments || parse_arguments(p->messages, true, &has_arguments))
            return no_memory(p);
    }
    r->chat = with_messages(p, p->messages);
    r->n_prompts = 1;
    return r->chat ? ST_OK : no_memory(p);
}
