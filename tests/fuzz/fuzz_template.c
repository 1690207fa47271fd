/* Fuzzes the template language: a template, and behind a line "@@@" a JSON object as its context.
 * Parsing and rendering must end within the limits, without a crash and without a leak. */
#include <stdint.h>
#include <string.h>

#include "text/chat_template_limits.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char mark[] = "\n@@@\n";
    static const st_template_limits limits = {
        .memory = 32 << 20, .output = 1 << 20, .steps = 50000};
    const char *text = (const char *)data;
    const char *at = size ? memmem(text, size, mark, sizeof mark - 1) : NULL;
    size_t len = at ? (size_t)(at - text) : size;
    json_t *context =
        at ? json_loadb(at + sizeof mark - 1, size - len - (sizeof mark - 1), JSON_ALLOW_NUL, NULL)
           : NULL;
    st_chat_template *t;
    st_error err;
    if (st_chat_template_parse("fuzz", text, len, &t, &err) == ST_OK) {
        st_buf out = ST_BUF_INIT;
        json_t *empty = json_object();
        st_status st = st_chat_template_render_within(t, json_is_object(context) ? context : empty,
                                                      1, &limits, &out, &err);
        if (st && out.len)
            __builtin_trap(); /* a failed render leaves the output as it was */
        st_buf_free(&out);
        json_decref(empty);
        st_chat_template_free(t);
    }
    json_decref(context);
    return 0;
}
