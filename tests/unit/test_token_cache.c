/* src/text: the cache of tokenized pieces gives the ids of plain encoding, whatever the added
 * tokens take or demand around them. */
#include "cmocka_all.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "starling/buf.h"
#include "text/token_cache.h"

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

/* A tokenizer of the letters a to z, space, '<' and '>' with some merges, and these added tokens.
 */
static st_tokenizer *with_added(const char *added, const char *more)
{
    st_buf json = ST_BUF_INIT;
    st_status s = st_buf_puts(&json, "{\"model\":{\"vocab\":{\"<\":26,\">\":27,\" \":28,\"ab\":29,"
                                     "\"abc\":30,\"u\":31");
    for (int c = 'a'; c <= 'z' && !s; c++)
        if (c != 'u')
            s = st_buf_printf(&json, ",\"%c\":%d", c, c - 'a');
    if (!s)
        s = st_buf_printf(&json, "},\"merges\":[\"a b\",\"ab c\"]},\"added_tokens\":[%s]%s}", added,
                          more);
    assert_int_equal(s, ST_OK);
    st_tokenizer *t;
    st_error err;
    if (st_tokenizer_parse(json.data, json.len, NULL, 0, &t, &err))
        fail_msg("%s", err.text);
    st_buf_free(&json);
    return t;
}

static void compare(st_token_cache *c, const st_tokenizer *t, const char *text, size_t len,
                    unsigned flags)
{
    st_ids want = ST_IDS_INIT, got = ST_IDS_INIT;
    st_error err = {0};
    assert_int_equal(st_ids_push(&got, 7), ST_OK); /* what stood there before stays */
    assert_int_equal(st_tokenizer_encode(t, text, len, flags, &want, &err), ST_OK);
    assert_int_equal(st_token_cache_encode(c, text, len, flags, SIZE_MAX, &got, &err), ST_OK);
    if (got.len != want.len + 1 || got.data[0] != 7 ||
        (want.len && memcmp(got.data + 1, want.data, want.len * sizeof *want.data) != 0))
        fail_msg("other ids for '%.*s'", (int)len, text);
    /* A bound is kept to the token. */
    got.len = 1;
    assert_int_equal(st_token_cache_encode(c, text, len, flags, want.len, &got, &err), ST_OK);
    assert_int_equal(got.len, want.len + 1);
    got.len = 1;
    if (want.len > 0) {
        assert_int_equal(st_token_cache_encode(c, text, len, flags, want.len - 1, &got, &err),
                         ST_EFULL);
        assert_int_equal(got.len, 1);
    }
    st_ids_free(&want);
    st_ids_free(&got);
}

/* Texts of up to 250 parts drawn from few, so that prefixes and pieces come again and again. */
static void random_texts(const st_tokenizer *t, const char *const *parts, size_t n, int rounds,
                         size_t memory, bool expect_hits)
{
    uint32_t seed = 4711;
    st_token_cache *c;
    assert_int_equal(st_token_cache_new(t, memory, &c), ST_OK);
    for (int i = 0; i < rounds; i++) {
        st_buf text = ST_BUF_INIT;
        int pieces = (int)(next_random(&seed) % 250);
        uint32_t same = next_random(&seed) % 4; /* few beginnings */
        for (int k = 0; k < pieces; k++) {
            uint32_t own = k < 120 ? same * 7919 + (uint32_t)k * 31 : next_random(&seed);
            const char *part = parts[(own ^ own >> 7) % n];
            assert_int_equal(st_buf_puts(&text, part), ST_OK);
        }
        if (i % 11 == 0)
            assert_int_equal(st_buf_puts(&text, "a\xff"), ST_OK); /* ill-formed */
        unsigned flags = i % 5 == 0   ? ST_ENCODE_ADD_SPECIAL
                         : i % 7 == 0 ? ST_ENCODE_PLAIN_SPECIAL
                                      : 0;
        compare(c, t, text.data ? text.data : "", text.len, flags);
        st_buf_free(&text);
    }
    st_token_cache_stats s;
    st_token_cache_get_stats(c, &s);
    assert_true(s.memory <= memory);
    if (expect_hits)
        assert_true(s.hits > 0 && s.bytes_hit > 0 && s.entries > 0 && s.hits <= s.lookups);
    else
        assert_int_equal(s.hits, 0);
    st_token_cache_free(c);
}

static void added_tokens_of_every_kind(void **state)
{
    (void)state;
    static const char *const parts[] = {"<s>", " ",  "  ",  "<e>",   "abc",   "<s><e>",
                                        "ab<", "e>", "<l>", " <l> ", "<r>  ", "<r>",
                                        "<s",  "é",  "<n>", "<N>",   "xyzab"};
    size_t n = sizeof parts / sizeof *parts;
    static const char plain[] = "{\"id\":40,\"content\":\"<s>\",\"normalized\":false},"
                                "{\"id\":41,\"content\":\"<e>\",\"normalized\":false},"
                                "{\"id\":42,\"content\":\"<s><e>\",\"normalized\":false},"
                                "{\"id\":43,\"content\":\"ab<e>x\",\"normalized\":false}";
    static const char strips[] = "{\"id\":40,\"content\":\"<s>\",\"normalized\":false},"
                                 "{\"id\":41,\"content\":\"<e>\",\"normalized\":false},"
                                 "{\"id\":42,\"content\":\"<l>\",\"lstrip\":true,"
                                 "\"normalized\":false},"
                                 "{\"id\":43,\"content\":\"<r>\",\"rstrip\":true,"
                                 "\"normalized\":false},"
                                 "{\"id\":44,\"content\":\"  \",\"normalized\":false},"
                                 "{\"id\":45,\"content\":\"<n>\",\"normalized\":true}";
    static const char single[] = "{\"id\":40,\"content\":\"<s>\",\"normalized\":false},"
                                 "{\"id\":41,\"content\":\"xyz\",\"single_word\":true,"
                                 "\"normalized\":false}";
    static const char normalized[] = "{\"id\":40,\"content\":\"<s>\",\"normalized\":true}";
    /* DeepSeek's: the marks of a chat's turns are "normalized", others are not. */
    static const char mixed[] = "{\"id\":40,\"content\":\"<s>\",\"normalized\":true},"
                                "{\"id\":41,\"content\":\"<e>\",\"normalized\":false},"
                                "{\"id\":42,\"content\":\"<s><e>\",\"normalized\":true},"
                                "{\"id\":43,\"content\":\"ab<\",\"normalized\":true},"
                                "{\"id\":44,\"content\":\"<l> \",\"normalized\":true},"
                                "{\"id\":45,\"content\":\"<r>\",\"rstrip\":true,"
                                "\"normalized\":true},"
                                "{\"id\":46,\"content\":\"<n>\",\"lstrip\":true,"
                                "\"rstrip\":true,\"normalized\":false},"
                                "{\"id\":47,\"content\":\"<N>\",\"lstrip\":true,"
                                "\"normalized\":true},"
                                "{\"id\":48,\"content\":\"  \",\"normalized\":false}";
    static const char mixed_single[] = "{\"id\":40,\"content\":\"<s>\",\"normalized\":true},"
                                       "{\"id\":41,\"content\":\"xyz\",\"single_word\":true,"
                                       "\"normalized\":true}";
    static const struct {
        const char *added, *more;
        bool hits;
    } tokenizers[] = {
        {plain, "", true},
        {plain, ",\"normalizer\":{\"type\":\"NFC\"}", true},
        {strips, "", true},
        {strips, ",\"normalizer\":{\"type\":\"Lowercase\"}", true},
        {strips, ",\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"z\"}", true},
        {single, "", false},
        {normalized, ",\"normalizer\":{\"type\":\"Lowercase\"}", false},
        {normalized, "", true},
        {mixed, "", true},
        {mixed, ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[]}", true},
        {mixed, ",\"normalizer\":{\"type\":\"Lowercase\"}", true},
        {mixed_single, "", false},
    };
    for (size_t i = 0; i < sizeof tokenizers / sizeof *tokenizers; i++) {
        st_tokenizer *t = with_added(tokenizers[i].added, tokenizers[i].more);
        random_texts(t, parts, n, 2000, 1 << 20, tokenizers[i].hits);
        random_texts(t, parts, n, 500, 4000, tokenizers[i].hits);
        st_tokenizer_free(t);
    }
}

static st_tokenizer *load_lexicon(void)
{
    char dir[4096];
    st_tokenizer *t;
    st_error err;
    const char *root = getenv("STARLING_SOURCE_ROOT");
    snprintf(dir, sizeof dir, "%s/models/lexicon/int8", root ? root : ".");
    if (st_tokenizer_load(dir, &t, &err))
        fail_msg("%s", err.text);
    return t;
}

/* A chat that grows: each prompt repeats the earlier one. */
static st_buf chat(int turns)
{
    st_buf b = ST_BUF_INIT;
    st_status s = st_buf_puts(&b, "<|im_start|>system\nYou are a helpful lexicon.<|im_end|>\n");
    for (int i = 0; i < turns && !s; i++)
        s = st_buf_printf(&b,
                          "<|im_start|>user\nWhat does word number %d mean, please? It stands in "
                          "a sentence of some length.<|im_end|>\n<|im_start|>assistant\nIt is a "
                          "kind of word that means %d.<|im_end|>\n",
                          i, i * i);
    if (!s)
        s = st_buf_puts(&b, "<|im_start|>user\nAnd this?<|im_end|>\n<|im_start|>assistant\n");
    assert_int_equal(s, ST_OK);
    return b;
}

static void a_chat_is_tokenized_turn_by_turn(void **state)
{
    (void)state;
    st_tokenizer *t = load_lexicon();
    st_token_cache *c;
    st_token_cache_stats before, after;
    assert_int_equal(st_token_cache_new(t, 1 << 20, &c), ST_OK);
    for (int turns = 0; turns < 40; turns++) {
        st_buf text = chat(turns);
        st_token_cache_get_stats(c, &before);
        compare(c, t, text.data, text.len, 0);
        st_token_cache_get_stats(c, &after);
        /* The first of compare's encodings knows all but about a turn, the others all pieces. */
        if (turns > 8)
            assert_true(after.bytes_hit - before.bytes_hit > 2 * text.len + text.len / 4);
        st_buf_free(&text);
    }
    assert_true(after.memory > 0 && after.memory < 100000);
    st_token_cache_free(c);
    st_tokenizer_free(t);
}

static void what_was_used_last_stays(void **state)
{
    (void)state;
    st_tokenizer *t = with_added("{\"id\":40,\"content\":\"<s>\",\"normalized\":false}", "");
    st_token_cache *c;
    st_token_cache_stats s;
    assert_int_equal(st_token_cache_new(t, 8000, &c), ST_OK);
    char text[3][260];
    for (int i = 0; i < 3; i++) {
        memset(text[i], 'd' + i, 200);
        strcpy(text[i] + 200, "<s>d");
    }
    /* Each piece takes about 1.1 kB: seven fit. */
    uint64_t hits = 0;
    for (int i = 0; i < 40; i++) {
        char other[260];
        snprintf(other, sizeof other, "%s", text[0]);
        for (int k = 0, x = i; k < 6; k++, x /= 2)
            other[k] = x & 1 ? 'x' : 'y';
        compare(c, t, text[1], strlen(text[1]), 0);
        compare(c, t, other, strlen(other), 0);
        st_token_cache_get_stats(c, &s);
        assert_true(s.memory <= 8000 && s.entries <= 7);
        /* three encodings each: text[1] misses once, the other once every time */
        hits += i == 0 ? 2 + 2 : 3 + 2;
        assert_int_equal(s.hits, hits);
    }
    st_token_cache_free(c);
    st_tokenizer_free(t);
}

typedef struct shared {
    st_token_cache *c;
    st_tokenizer *t;
} shared;

static void *encode_many(void *arg)
{
    shared *s = arg;
    for (int i = 0; i < 60; i++) {
        st_buf text = chat(i % 20);
        compare(s->c, s->t, text.data, text.len, 0);
        st_buf_free(&text);
    }
    return NULL;
}

static void threads_share_a_cache(void **state)
{
    (void)state;
    shared s = {.t = load_lexicon()};
    pthread_t threads[3];
    assert_int_equal(st_token_cache_new(s.t, 10000, &s.c), ST_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_many, &s), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    st_token_cache_free(s.c);
    st_tokenizer_free(s.t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(added_tokens_of_every_kind),
        cmocka_unit_test(a_chat_is_tokenized_turn_by_turn),
        cmocka_unit_test(what_was_used_last_stays),
        cmocka_unit_test(threads_share_a_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
