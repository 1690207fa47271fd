/* From files or memory to a tokenizer: reading, the order of construction, clean-up. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/regular_file.h"
#include "text/tokenizer_internal.h"
#include "text/tokenizer_json.h"

#define MAX_FILE (512u << 20) /* ten times the largest published tokenizer.json */

/* The flags of one added token; the set it belongs to depends on "normalized". */
static st_status load_added(st_tokenizer *t, size_t i, const json_t *item, st_error *err)
{
    char where[64];
    st_added flags = {0};
    bool special, normalized;
    snprintf(where, sizeof where, "added_tokens[%zu]", i);
    st_status s = st_tj_bool(item, where, "special", false, &special, err);
    if (!s)
        s = st_tj_bool(item, where, "normalized", !special, &normalized, err);
    if (!s)
        s = st_tj_bool(item, where, "lstrip", false, &flags.lstrip, err);
    if (!s)
        s = st_tj_bool(item, where, "rstrip", false, &flags.rstrip, err);
    if (!s)
        s = st_tj_bool(item, where, "single_word", false, &flags.single_word, err);
    if (s)
        return s;
    flags.id = (int32_t)json_integer_value(json_object_get(item, "id"));
    st_token *token = &t->vocab.tokens[flags.id];
    token->special = special;
    if (!normalized)
        s = st_added_set_add(&t->raw, token->text, token->text_len, flags);
    if (s || !normalized)
        return s ? st_fail(err, s, "no memory for %s", where) : ST_OK;
    st_buf text = ST_BUF_INIT;
    s = st_normalizer_run(t->normalizer, token->text, token->text_len, &text, err);
    if (!s && text.len) /* a spelling that the normalizer deletes can never be found */
        s = st_added_set_add(&t->normalized, text.data, text.len, flags);
    st_buf_free(&text);
    return s == ST_ENOMEM ? st_fail(err, s, "no memory for %s", where) : s;
}

static st_status build(st_tokenizer *t, const json_t *root, const json_t *config, st_error *err)
{
    const json_t *model = json_object_get(root, "model");
    const json_t *vocab = json_object_get(model, "vocab");
    const json_t *added = json_object_get(root, "added_tokens");
    if (!json_is_object(root) || !json_is_object(model) || !json_is_object(vocab))
        return st_fail(err, ST_EFORMAT, "%s is %s, expected an object",
                       !json_is_object(root)    ? "the file"
                       : !json_is_object(model) ? "model"
                                                : "model.vocab",
                       st_tj_kind(!json_is_object(root)    ? root
                                  : !json_is_object(model) ? model
                                                           : vocab));
    if (added && !json_is_array(added) && !json_is_null(added))
        return st_fail(err, ST_EFORMAT, "added_tokens is %s, expected an array", st_tj_kind(added));
    st_status s = st_vocab_build(&t->vocab, vocab, added, err);
    if (!s && t->vocab.size == 0)
        s = st_fail(err, ST_EFORMAT, "model.vocab is empty");
    if (!s)
        s = st_decoder_build(&t->decoder, json_object_get(root, "decoder"), &t->vocab, err);
    if (!s)
        s = st_normalizer_parse(json_object_get(root, "normalizer"), &t->normalizer, err);
    if (!s)
        s = st_pretokenizer_parse(json_object_get(root, "pre_tokenizer"), &t->pretokenizer, err);
    if (!s)
        s = st_bpe_new(model, &t->vocab, st_pretokenizer_byte_level(t->pretokenizer), &t->bpe, err);
    for (size_t i = 0; !s && i < json_array_size(added); i++)
        s = load_added(t, i, json_array_get(added, i), err);
    st_added_set_sort(&t->raw);
    st_added_set_sort(&t->normalized);
    if (!s)
        s = st_tokenizer_configure(t, json_object_get(root, "post_processor"), config, err);
    return s;
}

static st_status parse_json(const char *name, const char *text, size_t len, size_t flags,
                            json_t **out, st_error *err)
{
    json_error_t why;
    *out = json_loadb(text, len, JSON_REJECT_DUPLICATES | flags, &why);
    if (*out)
        return ST_OK;
    return st_fail(err, ST_EFORMAT, "%s is not valid JSON: %s (line %d, column %d)", name, why.text,
                   why.line, why.column);
}

st_status st_tokenizer_parse(const char *json, size_t json_len, const char *config,
                             size_t config_len, st_tokenizer **out, st_error *err)
{
    json_t *root = NULL, *conf = NULL;
    *out = NULL;
    st_tokenizer *t = calloc(1, sizeof *t);
    st_status s = t ? ST_OK : st_fail(err, ST_ENOMEM, "no memory for the tokenizer");
    if (!s)
        s = parse_json("tokenizer.json", json, json_len, 0, &root, err);
    /* model_max_length is often 1e30 written out, which no int64 holds. */
    if (!s && config)
        s = parse_json("tokenizer_config.json", config, config_len, JSON_DECODE_INT_AS_REAL, &conf,
                       err);
    if (!s && conf && !json_is_object(conf))
        s = st_fail(err, ST_EFORMAT, "tokenizer_config.json is %s, expected an object",
                    st_tj_kind(conf));
    if (!s) {
        s = build(t, root, conf, err);
        if (s && (!err || strncmp(err->text, "tokenizer_config", 16) != 0))
            s = st_fail_prefix(err, s, "tokenizer.json");
    }
    json_decref(root);
    json_decref(conf);
    if (s) {
        st_tokenizer_free(t);
        return s;
    }
    *out = t;
    return ST_OK;
}

/* Reads DIR/name; *text stays NULL when the file does not exist and optional is set. */
static st_status read_file(const char *dir, const char *name, bool optional, char **text,
                           size_t *len, st_error *err)
{
    st_buf path = ST_BUF_INIT;
    st_status s = st_buf_printf(&path, "%s/%s", dir, name);
    FILE *f = NULL;
    st_buf data = ST_BUF_INIT;
    *text = NULL;
    if (s) {
        s = st_fail(err, ST_ENOMEM, "no memory to read %s", name);
        goto done;
    }
    st_error fault = {0};
    s = st_regular_file_stream(path.data, &f, &fault);
    if (s == ST_ENOTFOUND && optional) {
        s = ST_OK;
        goto done;
    }
    if (s) {
        if (err)
            *err = fault;
        goto done;
    }
    while (!s) {
        s = st_buf_reserve(&data, 1 << 20);
        size_t n = s ? 0 : fread(data.data + data.len, 1, 1 << 20, f);
        data.len += n;
        if (s)
            st_fail(err, s, "no memory to read %s", path.data);
        else if (ferror(f))
            s = st_fail(err, ST_EIO, "%s: %s", path.data, strerror(errno));
        else if (data.len > MAX_FILE)
            s = st_fail(err, ST_EFORMAT, "%s is larger than %u bytes", path.data, MAX_FILE);
        else if (n == 0)
            break;
    }
    if (!s) {
        *text = data.data;
        *len = data.len;
        data = (st_buf)ST_BUF_INIT;
    }
done:
    if (f)
        fclose(f);
    st_buf_free(&path);
    st_buf_free(&data);
    return s;
}

st_status st_tokenizer_load(const char *dir, st_tokenizer **out, st_error *err)
{
    char *json = NULL, *config = NULL;
    size_t json_len = 0, config_len = 0;
    *out = NULL;
    st_status s = read_file(dir, "tokenizer.json", false, &json, &json_len, err);
    if (!s)
        s = read_file(dir, "tokenizer_config.json", true, &config, &config_len, err);
    if (!s) {
        s = st_tokenizer_parse(json, json_len, config, config_len, out, err);
        if (s)
            s = st_fail_prefix(err, s, "%s", dir);
    }
    free(json);
    free(config);
    return s;
}

void st_tokenizer_free(st_tokenizer *t)
{
    if (!t)
        return;
    st_bpe_free(t->bpe);
    st_pretokenizer_free(t->pretokenizer);
    st_normalizer_free(t->normalizer);
    st_added_set_free(&t->raw);
    st_added_set_free(&t->normalized);
    st_decoder_free(&t->decoder);
    st_vocab_free(&t->vocab);
    st_ids_free(&t->prefix);
    st_ids_free(&t->suffix);
    free(t);
}
