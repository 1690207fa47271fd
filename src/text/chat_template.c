/* Chat templates: finds and parses a checkpoint's template, renders it. The language is in
 * jinja_*.c. */
#include "starling/chat_template.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/regular_file.h"
#include "text/chat_template_limits.h"
#include "text/jinja/jinja_eval.h"

/* Limits of the sandbox. A template of a 500-message conversation takes some 100,000 steps. */
enum { PARSE_MEMORY = 64 << 20, MAX_FILE = 16 << 20 };
static const st_template_limits default_limits = {
    .memory = 256 << 20,
    .output = 64 << 20,
    .steps = 10 * 1000 * 1000,
};

struct st_chat_template {
    st_arena *arena; /* the nodes, and a copy of name and text */
    const char *name;
    jnodes root;
    json_t *variables; /* bos_token, eos_token... of tokenizer_config.json */
};

/* --- parsing ------------------------------------------------------------------------------- */

st_status st_chat_template_parse(const char *name, const char *text, size_t len,
                                 st_chat_template **out, st_error *err)
{
    *out = NULL;
    st_arena *arena = st_arena_new(0);
    st_chat_template *t = arena ? st_arena_alloc(arena, sizeof *t) : NULL;
    char *name_copy = t ? st_arena_strdup(arena, name, strlen(name)) : NULL;
    char *text_copy = name_copy ? st_arena_strdup(arena, text, len) : NULL;
    st_status st = ST_ENOMEM;
    if (!text_copy) {
        st_fail(err, ST_ENOMEM, "%s: no memory for the template's %zu bytes", name, len);
        goto fail;
    }
    t->arena = arena;
    t->name = name_copy;
    jmem mem = {.arena = arena, .limit = PARSE_MEMORY};
    st = jinja_parse(t->name, text_copy, len, &mem, &t->root, err);
    if (st)
        goto fail;
    *out = t;
    return ST_OK;
fail:
    st_arena_free(arena);
    return st;
}

void st_chat_template_free(st_chat_template *t)
{
    if (!t)
        return;
    json_decref(t->variables);
    st_arena_free(t->arena); /* t itself lies in it */
}

/* --- loading ------------------------------------------------------------------------------- */

/* Reads DIR/name; ST_ENOTFOUND when there is no such file. */
static st_status read_file(const char *dir, const char *name, st_buf *out, st_error *err)
{
    char path[4096], chunk[16384];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f;
    st_status st = st_regular_file_stream(path, &f, err);
    if (st)
        return st;
    size_t n;
    while (!st && (n = fread(chunk, 1, sizeof chunk, f)) > 0) {
        st = st_buf_append(out, chunk, n);
        if (st)
            st_fail(err, st, "%s: no memory for the file", path);
        else if (out->len > MAX_FILE)
            st = st_fail(err, ST_EFORMAT, "%s: larger than %d MiB", path, MAX_FILE >> 20);
    }
    if (!st && ferror(f))
        st = st_fail(err, ST_EIO, "%s: %s", path, strerror(errno));
    fclose(f);
    return st;
}

/* The text of `chat_template`: a string, or the "default" of a list of {name, template}. */
static const json_t *pick_template(const json_t *config)
{
    const json_t *t = json_object_get(config, "chat_template"), *item;
    size_t i;
    if (!json_is_array(t))
        return json_is_string(t) ? t : NULL;
    json_array_foreach(t, i, item)
    {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && strcmp(name, "default") == 0)
            return json_object_get(item, "template");
    }
    return NULL;
}

/* Special tokens are variables of the template: a string, or an object with its `content`. */
static json_t *special_tokens(const json_t *config)
{
    static const char *const names[] = {"bos_token", "eos_token", "unk_token",  "sep_token",
                                        "pad_token", "cls_token", "mask_token", NULL};
    json_t *vars = json_object();
    for (const char *const *n = names; vars && *n; n++) {
        json_t *v = json_object_get(config, *n);
        if (json_is_object(v))
            v = json_object_get(v, "content");
        if (json_is_string(v) && json_object_set(vars, *n, v)) {
            json_decref(vars);
            return NULL;
        }
    }
    return vars;
}

static st_status load_config(const char *dir, json_t **out, st_error *err)
{
    st_buf text = ST_BUF_INIT;
    json_error_t jerr;
    *out = NULL;
    st_status st = read_file(dir, "tokenizer_config.json", &text, err);
    if (!st) {
        /* model_max_length is often 1e30 written out: no int64 holds it. */
        *out = json_loadb(text.data ? text.data : "", text.len, JSON_DECODE_INT_AS_REAL, &jerr);
        if (!json_is_object(*out)) {
            json_decref(*out);
            *out = NULL;
            st = st_fail(err, ST_EFORMAT,
                         "%s/tokenizer_config.json, line %d: expected a JSON object: %s", dir,
                         jerr.line, jerr.text);
        }
    }
    st_buf_free(&text);
    return st;
}

st_status st_chat_template_load(const char *dir, st_chat_template **out, st_error *err)
{
    st_buf text = ST_BUF_INIT;
    json_t *config = NULL;
    char name[4096];
    *out = NULL;
    st_status st = load_config(dir, &config, err);
    if (st && st != ST_ENOTFOUND)
        goto done;
    snprintf(name, sizeof name, "%s/chat_template.jinja", dir);
    st = read_file(dir, "chat_template.jinja", &text, err);
    if (st == ST_ENOTFOUND) {
        const json_t *t = pick_template(config);
        if (!json_is_string(t)) {
            st = st_fail(err, ST_ENOTFOUND,
                         "%s has no chat template: expected chat_template.jinja, or a string "
                         "chat_template in tokenizer_config.json",
                         dir);
            goto done;
        }
        snprintf(name, sizeof name, "%s/tokenizer_config.json, chat_template", dir);
        st = st_buf_append(&text, json_string_value(t), json_string_length(t));
        if (st)
            st_fail(err, st, "%s: no memory", name);
    }
    if (!st)
        st = st_chat_template_parse(name, text.data ? text.data : "", text.len, out, err);
    if (!st && config) {
        (*out)->variables = special_tokens(config);
        if (!(*out)->variables) {
            st_chat_template_free(*out);
            *out = NULL;
            st = st_fail(err, ST_ENOMEM, "%s: no memory", name);
        }
    }
done:
    json_decref(config);
    st_buf_free(&text);
    return st;
}

/* --- rendering ----------------------------------------------------------------------------- */

/* What Hugging Face passes even when the caller does not: templates ask `tools is none`. */
static void set_defaults(jrt *rt, jdict *d)
{
    jdict_set(rt, d, j_str(jstr_lit(rt, "tools")), j_none());
    jdict_set(rt, d, j_str(jstr_lit(rt, "documents")), j_none());
    jdict_set(rt, d, j_str(jstr_lit(rt, "add_generation_prompt")), j_bool(false));
}

static void set_variables(jrt *rt, jdict *d, const json_t *vars)
{
    jval v = jv_from_json(rt, vars);
    if (v.type != J_DICT)
        return;
    for (size_t i = 0; i < v.d->n; i++)
        jdict_set(rt, d, v.d->e[i].key, v.d->e[i].value);
}

st_status st_chat_template_render(const st_chat_template *t, const json_t *context, int64_t now,
                                  st_buf *out, st_error *err)
{
    return st_chat_template_render_within(t, context, now, &default_limits, out, err);
}

st_status st_chat_template_render_within(const st_chat_template *t, const json_t *context,
                                         int64_t now, const st_template_limits *limits, st_buf *out,
                                         st_error *err)
{
    jbuf text = {0};
    jrt rt = {
        .mem = {.arena = st_arena_new(0), .limit = limits->memory},
        .err = err,
        .name = t->name,
        .line = 1,
        .steps = limits->steps,
        .max_output = limits->output,
        .out = &text,
        .now = now,
    };
    if (!rt.mem.arena)
        return st_fail(err, ST_ENOMEM, "%s: no memory to render", t->name);
    jdict *vars = jdict_new(&rt);
    set_defaults(&rt, vars);
    set_variables(&rt, vars, t->variables);
    set_variables(&rt, vars, context);
    rt.context = vars;
    if (jscope_push(&rt))
        jexec(&rt, &t->root);
    st_status st = rt.status;
    if (!st && text.len) {
        st = st_buf_append(out, text.p, text.len);
        if (st)
            st_fail(err, st, "%s: no memory for the rendered text", t->name);
    }
    st_arena_free(rt.mem.arena);
    return st;
}
