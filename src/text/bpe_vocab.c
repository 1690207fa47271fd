/* The vocabulary tables: see bpe_vocab.h. */
#include "text/bpe_vocab.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "text/tokenizer_json.h"

static bool byte_is_printable(uint32_t b)
{
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
}

uint32_t st_byte_to_char(unsigned char byte)
{
    if (byte_is_printable(byte))
        return byte;
    /* The unprintable ones in order: 00..20 (33 of them), 7F..A0 (34), AD. */
    if (byte <= 0x20)
        return 0x100u + byte;
    if (byte <= 0xA0)
        return 0x100u + 33 + (byte - 0x7Fu);
    return 0x100u + 67;
}

int st_char_to_byte(uint32_t cp)
{
    if (cp < 0x100)
        return byte_is_printable(cp) ? (int)cp : -1;
    uint32_t k = cp - 0x100;
    if (k < 33)
        return (int)k;
    if (k < 67)
        return (int)(k - 33 + 0x7F);
    return k == 67 ? 0xAD : -1;
}

int32_t st_vocab_find(const st_vocab *v, const char *text, size_t len)
{
    size_t i = XXH3_64bits(text, len) & v->slot_mask;
    for (; v->slots[i]; i = (i + 1) & v->slot_mask) {
        const st_token *t = &v->tokens[v->slots[i] - 1];
        if (t->text_len == len && memcmp(t->text, text, len) == 0)
            return (int32_t)(v->slots[i] - 1);
    }
    return -1;
}

/* Enters a spelling; *store is where the next spelling is copied to. The same spelling with the
 * same id twice is fine (added tokens repeat entries of the vocabulary). */
static st_status enter(st_vocab *v, const char *where, const char *text, size_t len, int32_t id,
                       bool added, char **store, st_error *err)
{
    int32_t known = st_vocab_find(v, text, len);
    st_token *t = &v->tokens[id];
    if (known >= 0 && known != id)
        return st_fail(err, ST_EFORMAT, "%s: '%.*s' has id %d here and id %d elsewhere", where,
                       (int)(len < 200 ? len : 200), text, id, known);
    if (t->text && (known != id || (added && t->added)))
        return st_fail(err, ST_EFORMAT, "%s: id %d is given to '%.*s' and to '%.*s'", where, id,
                       (int)(t->text_len < 200 ? t->text_len : 200), t->text,
                       (int)(len < 200 ? len : 200), text);
    t->added = added;
    if (known == id)
        return ST_OK;
    memcpy(*store, text, len);
    t->text = *store;
    t->text_len = (uint32_t)len;
    *store += len;
    size_t i = XXH3_64bits(text, len) & v->slot_mask;
    while (v->slots[i])
        i = (i + 1) & v->slot_mask;
    v->slots[i] = (uint32_t)id + 1;
    return ST_OK;
}

static st_status check_id(const char *where, const char *text, const json_t *id, st_error *err)
{
    if (!json_is_integer(id))
        return st_fail(err, ST_EFORMAT, "%s: the id of '%.200s' is %s, expected a whole number",
                       where, text, st_tj_kind(id));
    json_int_t n = json_integer_value(id);
    if (n < 0 || n >= ST_VOCAB_MAX_ID)
        return st_fail(err, ST_EFORMAT, "%s: the id of '%.200s' is %lld, expected 0 to %d", where,
                       text, (long long)n, ST_VOCAB_MAX_ID - 1);
    return ST_OK;
}

/* First pass: checks types, and finds the largest id and the bytes that all spellings take. */
static st_status measure(const json_t *vocab, const json_t *added, int32_t *size, size_t *bytes,
                         size_t *count, st_error *err)
{
    const char *key;
    size_t key_len, i;
    json_t *id;
    json_int_t largest = -1;
    *bytes = 0;
    *count = json_object_size(vocab) + json_array_size(added);
    json_object_keylen_foreach((json_t *)vocab, key, key_len, id)
    {
        st_status s = check_id("model.vocab", key, id, err);
        if (s)
            return s;
        if (json_integer_value(id) > largest)
            largest = json_integer_value(id);
        *bytes += key_len; /* cannot overflow: the spellings are in memory */
    }
    json_array_foreach(added, i, id)
    {
        const json_t *content = json_object_get(id, "content"), *n = json_object_get(id, "id");
        if (!json_is_string(content) || json_string_length(content) == 0)
            return st_fail(err, ST_EFORMAT,
                           "added_tokens[%zu].content is %s, expected a string that is not empty",
                           i, json_is_string(content) ? "empty" : st_tj_kind(content));
        st_status s = check_id("added_tokens", json_string_value(content), n, err);
        if (s)
            return s;
        if (json_integer_value(n) > largest)
            largest = json_integer_value(n);
        *bytes += json_string_length(content);
    }
    if (*bytes > INT32_MAX)
        return st_fail(err, ST_EUNSUPPORTED, "model.vocab spells %zu bytes, expected below 2^31",
                       *bytes);
    *size = (int32_t)(largest + 1);
    return ST_OK;
}

st_status st_vocab_build(st_vocab *v, const json_t *vocab, const json_t *added, st_error *err)
{
    size_t bytes, count, i;
    *v = (st_vocab){0};
    st_status s = measure(vocab, added, &v->size, &bytes, &count, err);
    if (s)
        return s;
    size_t slots = 16;
    while (slots < count * 2)
        slots *= 2;
    v->slot_mask = slots - 1;
    v->tokens = calloc((size_t)v->size + 1, sizeof *v->tokens);
    v->slots = calloc(slots, sizeof *v->slots);
    v->texts = malloc(bytes + 1);
    if (!v->tokens || !v->slots || !v->texts) {
        s = st_fail(err, ST_ENOMEM, "no memory for a vocabulary of %zu tokens", count);
        goto fail;
    }
    char *store = v->texts;
    const char *key;
    size_t key_len;
    json_t *item;
    json_object_keylen_foreach((json_t *)vocab, key, key_len, item)
    {
        s = enter(v, "model.vocab", key, key_len, (int32_t)json_integer_value(item), false, &store,
                  err);
        if (s)
            goto fail;
    }
    json_array_foreach(added, i, item)
    {
        const json_t *content = json_object_get(item, "content");
        s = enter(v, "added_tokens", json_string_value(content), json_string_length(content),
                  (int32_t)json_integer_value(json_object_get(item, "id")), true, &store, err);
        if (s)
            goto fail;
    }
    return ST_OK;
fail:
    st_vocab_free(v);
    return s;
}

void st_vocab_free(st_vocab *v)
{
    free(v->tokens);
    free(v->slots);
    free(v->texts);
    *v = (st_vocab){0};
}
