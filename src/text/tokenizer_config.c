/* Which special tokens there are and where they go: tokenizer_config.json and the post_processor
 * of tokenizer.json. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "text/tokenizer_internal.h"
#include "text/tokenizer_json.h"

/* bos_token and the like are null, a string, or an object with "content". */
static st_status named_token(const st_tokenizer *t, const json_t *config, const char *key,
                             int32_t *id, st_str *name, st_error *err)
{
    const json_t *v = json_object_get(config, key);
    *id = -1;
    *name = (st_str){NULL, 0};
    if (!v || json_is_null(v))
        return ST_OK;
    const json_t *content = json_is_object(v) ? json_object_get(v, "content") : v;
    if (!json_is_string(content))
        return st_fail(err, ST_EFORMAT,
                       "tokenizer_config.json: %s is %s, expected a string, null, or an object "
                       "with \"content\"",
                       key, st_tj_kind(v));
    *name = (st_str){json_string_value(content), json_string_length(content)};
    *id = st_vocab_find(&t->vocab, name->s, name->n);
    return ST_OK;
}

/* Adds the special tokens of a TemplateProcessing's "single" to prefix and suffix. */
static st_status read_template(st_tokenizer *t, const json_t *json, const char *where,
                               st_error *err)
{
    const json_t *single, *specials = json_object_get(json, "special_tokens");
    bool behind = false;
    st_status s = st_tj_array(json, where, "single", &single, err);
    for (size_t i = 0; !s && i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i);
        if (json_object_get(item, "Sequence")) {
            behind = true;
            continue;
        }
        const json_t *name = json_object_get(json_object_get(item, "SpecialToken"), "id");
        if (!json_is_string(name))
            return st_fail(err, ST_EFORMAT,
                           "%s.single[%zu] is %s, expected {\"Sequence\"} or {\"SpecialToken\": "
                           "{\"id\": \"...\"}}",
                           where, i, st_tj_kind(item));
        const json_t *ids =
            json_object_get(json_object_get(specials, json_string_value(name)), "ids");
        if (!json_is_array(ids))
            return st_fail(err, ST_EFORMAT, "%s.special_tokens has no ids for '%.100s'", where,
                           json_string_value(name));
        for (size_t k = 0; !s && k < json_array_size(ids); k++) {
            const json_t *v = json_array_get(ids, k);
            json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
            if (id < 0 || id >= t->vocab.size || !t->vocab.tokens[id].text)
                return st_fail(err, ST_EFORMAT,
                               "%s.special_tokens['%.100s'].ids[%zu] is not an id of this "
                               "vocabulary",
                               where, json_string_value(name), k);
            if (st_ids_push(behind ? &t->suffix : &t->prefix, (int32_t)id))
                s = st_fail(err, ST_ENOMEM, "no memory for %s", where);
        }
    }
    return s;
}

static st_status read_post_processor(st_tokenizer *t, const json_t *json, const char *where,
                                     int depth, st_error *err)
{
    const char *type;
    const json_t *list;
    if (!json || json_is_null(json))
        return ST_OK;
    st_status s = st_tj_type(json, where, &type, err);
    if (s)
        return s;
    if (strcmp(type, "ByteLevel") == 0)
        return ST_OK; /* trims offsets, which nobody asks for here */
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(t, json, where, err);
    if (strcmp(type, "Sequence") != 0 || depth >= 8)
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s.type '%.100s' is not supported; supported: ByteLevel, "
                       "TemplateProcessing, Sequence",
                       where, type);
    s = st_tj_array(json, where, "processors", &list, err);
    for (size_t i = 0; !s && i < json_array_size(list); i++) {
        char path[256];
        snprintf(path, sizeof path, "%s[%zu]", where, i);
        s = read_post_processor(t, json_array_get(list, i), path, depth + 1, err);
    }
    return s;
}

/* additional_special_tokens counts as special even where tokenizer.json forgets to say so. */
static void mark_additional(st_tokenizer *t, const json_t *list)
{
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v)
    {
        const json_t *name = json_is_object(v) ? json_object_get(v, "content") : v;
        if (!json_is_string(name))
            continue;
        int32_t id = st_vocab_find(&t->vocab, json_string_value(name), json_string_length(name));
        if (id >= 0)
            t->vocab.tokens[id].special = true;
    }
}

static st_status configure_end(st_tokenizer *t, const json_t *config, const char *token_key,
                               const char *add_key, int32_t *id, bool front, st_error *err)
{
    bool add;
    st_str name;
    st_status s = named_token(t, config, token_key, id, &name, err);
    if (!s)
        s = st_tj_bool(config, "tokenizer_config.json", add_key, false, &add, err);
    if (s || !add)
        return s;
    if (*id < 0)
        return st_fail(err, ST_EFORMAT,
                       "tokenizer_config.json: %s is true, but %s '%.100s' is not in "
                       "tokenizer.json",
                       add_key, token_key, name.s ? name.s : "null");
    st_ids *ends = front ? &t->prefix : &t->suffix;
    size_t at = front ? 0 : ends->len - 1;
    if (ends->len && ends->data[at] == *id)
        return ST_OK; /* the post-processor puts it there already */
    if (st_ids_push(ends, *id))
        return st_fail(err, ST_ENOMEM, "no memory for the tokenizer");
    if (front) {
        memmove(ends->data + 1, ends->data, (ends->len - 1) * sizeof *ends->data);
        ends->data[0] = *id;
    }
    return ST_OK;
}

st_status st_tokenizer_configure(st_tokenizer *t, const json_t *post_processor,
                                 const json_t *config, st_error *err)
{
    t->bos = t->eos = -1;
    st_status s = read_post_processor(t, post_processor, "post_processor", 0, err);
    if (s || !config)
        return s;
    mark_additional(t, json_object_get(config, "additional_special_tokens"));
    s = configure_end(t, config, "bos_token", "add_bos_token", &t->bos, true, err);
    return s ? s : configure_end(t, config, "eos_token", "add_eos_token", &t->eos, false, err);
}
