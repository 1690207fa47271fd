/* src/text: the tokenizer as a whole, on the lexicon's and on small ones made here. The real
 * DeepSeek and Qwen tokenizers are compared with their reference in tests/js/tokenizers. */
#include "cmocka_all.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jansson.h>

#include "base/utf8.h"
#include "starling/tokenizer.h"

static st_tokenizer *lexicon;

static const char *source_root(void)
{
    const char *root = getenv("STARLING_SOURCE_ROOT");
    return root ? root : ".";
}

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

static void expect_ids(const st_tokenizer *t, const char *text, unsigned flags,
                       const int32_t *expected, size_t n)
{
    st_ids ids = ST_IDS_INIT;
    st_error err;
    if (st_tokenizer_encode(t, text, strlen(text), flags, &ids, &err))
        fail_msg("'%s': %s", text, err.text);
    if (ids.len != n)
        fail_msg("'%s': %zu ids, expected %zu", text, ids.len, n);
    for (size_t i = 0; i < n; i++)
        if (ids.data[i] != expected[i])
            fail_msg("'%s': id %zu is %d, expected %d", text, i, ids.data[i], expected[i]);
    st_ids_free(&ids);
}

static void expect_text(const st_tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                        const char *expected)
{
    st_buf text = ST_BUF_INIT;
    st_error err;
    assert_int_equal(st_tokenizer_decode(t, ids, n, skip_special, &text, &err), ST_OK);
    assert_string_equal(text.data ? text.data : "", expected);
    st_buf_free(&text);
}

#define IDS(...) (const int32_t[]){__VA_ARGS__}, sizeof(int32_t[]){__VA_ARGS__} / sizeof(int32_t)

/* ---- the lexicon ---- */

static void lexicon_golden_ids(void **state)
{
    (void)state;
    expect_ids(lexicon, "What does river mean?", 0, IDS(311, 439, 2294, 361, 30));
    expect_ids(lexicon, "", 0, NULL, 0);
    char path[4096];
    snprintf(path, sizeof path, "%s/tests/vectors/lexicon/golden/prompts.json", source_root());
    json_t *prompts = json_load_file(path, 0, NULL);
    assert_non_null(prompts);
    static const char *const kinds[][2] = {
        {"tokens", NULL}, {"greedy", "greedy_text"}, {"int8_greedy", "int8_greedy_text"}};
    size_t i, k;
    json_t *prompt, *id;
    json_array_foreach(prompts, i, prompt)
    {
        for (int kind = 0; kind < 3; kind++) {
            st_ids ids = ST_IDS_INIT;
            json_array_foreach(json_object_get(prompt, kinds[kind][0]), k, id)
                assert_int_equal(st_ids_push(&ids, (int32_t)json_integer_value(id)), ST_OK);
            assert_true(ids.len > 0);
            st_buf text = ST_BUF_INIT;
            assert_int_equal(st_tokenizer_decode(lexicon, ids.data, ids.len, false, &text, NULL),
                             ST_OK);
            expect_ids(lexicon, text.data, 0, ids.data, ids.len);
            if (kinds[kind][1])
                expect_text(lexicon, ids.data, ids.len, true,
                            json_string_value(json_object_get(prompt, kinds[kind][1])));
            st_ids_free(&ids);
            st_buf_free(&text);
        }
    }
    assert_true(i > 0);
    json_decref(prompts);
}

static void limited_encoding_gives_all_or_nothing(void **state)
{
    (void)state;
    static const char text[] = "What does river mean?"; /* 5 ids */
    st_ids ids = ST_IDS_INIT;
    assert_int_equal(st_ids_push(&ids, 7), ST_OK);
    for (size_t most = 0; most < 8; most++) {
        ids.len = 1;
        st_status s =
            st_tokenizer_encode_limited(lexicon, text, sizeof text - 1, 0, most, &ids, NULL);
        assert_int_equal(s, most < 5 ? ST_EFULL : ST_OK);
        assert_int_equal(ids.len, most < 5 ? 1 : 6);
        assert_int_equal(ids.data[0], 7);
    }
    /* One long word: refused without work that grows with its length. */
    size_t n = 1 << 20;
    char *word = malloc(n);
    assert_non_null(word);
    for (size_t i = 0; i < n; i++)
        word[i] = (char)('a' + i * i % 26);
    assert_int_equal(st_tokenizer_encode_limited(lexicon, word, n, 0, 1000, &ids, NULL), ST_EFULL);
    free(word);
    st_ids_free(&ids);
}

static void lexicon_special_tokens(void **state)
{
    (void)state;
    assert_int_equal(st_tokenizer_vocab_size(lexicon), 4096);
    assert_int_equal(st_tokenizer_bos(lexicon), -1);
    assert_int_equal(st_tokenizer_eos(lexicon), 4094);
    assert_int_equal(st_tokenizer_find(lexicon, "<|im_start|>", 12), 4093);
    assert_int_equal(st_tokenizer_find(lexicon, "<|im_start|", 11), -1);
    assert_true(st_tokenizer_is_special(lexicon, 4093));
    assert_false(st_tokenizer_is_special(lexicon, 0));
    assert_false(st_tokenizer_is_special(lexicon, -1));
    assert_false(st_tokenizer_is_special(lexicon, 4096));
    expect_ids(lexicon, "<|im_start|>!<|im_end|>", 0, IDS(4093, 0, 4094));
    expect_text(lexicon, IDS(4093, 0, 4094), true, "!");
    st_ids plain = ST_IDS_INIT;
    assert_int_equal(
        st_tokenizer_encode(lexicon, "<|im_end|>", 10, ST_ENCODE_PLAIN_SPECIAL, &plain, NULL),
        ST_OK);
    for (size_t i = 0; i < plain.len; i++)
        assert_false(st_tokenizer_is_special(lexicon, plain.data[i]));
    expect_text(lexicon, plain.data, plain.len, true, "<|im_end|>");
    st_ids_free(&plain);
}

static void ill_formed_text_becomes_replacement_characters(void **state)
{
    (void)state;
    st_ids bad = ST_IDS_INIT, good = ST_IDS_INIT;
    assert_int_equal(st_tokenizer_encode(lexicon, "a\xFF\xE4\xBD z\xF0\x9F", 8, 0, &bad, NULL),
                     ST_OK);
    assert_int_equal(st_tokenizer_encode(lexicon, "a\uFFFD\uFFFD z\uFFFD", 12, 0, &good, NULL),
                     ST_OK);
    assert_int_equal(bad.len, good.len);
    assert_memory_equal(bad.data, good.data, good.len * sizeof *good.data);
    st_ids_free(&bad);
    st_ids_free(&good);
}

static void ids_out_of_the_vocabulary_are_refused(void **state)
{
    (void)state;
    static const int32_t bad[] = {-1, 4096, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const int32_t ids[] = {311, bad[i]};
        st_buf out = ST_BUF_INIT;
        st_error err;
        size_t len = 1;
        assert_int_equal(st_buf_puts(&out, "kept"), ST_OK);
        assert_int_equal(st_tokenizer_decode(lexicon, ids, 2, false, &out, &err), ST_EINVAL);
        assert_non_null(strstr(err.text, "4095"));
        assert_string_equal(out.data, "kept");
        assert_null(st_tokenizer_token_bytes(lexicon, bad[i], &len));
        assert_int_equal(len, 0);
        st_buf_free(&out);
    }
}

/* ---- streaming ---- */

/* Streams ids; every piece must be whole characters and all pieces together the decoded text. */
static void stream(const int32_t *ids, size_t n, bool skip_special)
{
    st_detokenizer *d;
    st_buf pieces = ST_BUF_INIT, whole = ST_BUF_INIT;
    assert_int_equal(st_detokenizer_new(lexicon, skip_special, &d), ST_OK);
    for (size_t i = 0; i <= n; i++) {
        size_t before = pieces.len;
        assert_int_equal(i < n ? st_detokenizer_push(d, ids[i], &pieces)
                               : st_detokenizer_finish(d, &pieces),
                         ST_OK);
        assert_true(pieces.len == before ||
                    st_utf8_valid(pieces.data + before, pieces.len - before));
    }
    assert_int_equal(st_tokenizer_decode(lexicon, ids, n, skip_special, &whole, NULL), ST_OK);
    assert_int_equal(pieces.len, whole.len);
    if (whole.len)
        assert_memory_equal(pieces.data, whole.data, whole.len);
    st_detokenizer_free(d);
    st_buf_free(&pieces);
    st_buf_free(&whole);
}

static void streams_of_random_ids_add_up(void **state)
{
    (void)state;
    uint32_t seed = 7;
    for (int round = 0; round < 20000; round++) {
        int32_t ids[40];
        size_t n = 1 + next_random(&seed) % 40;
        for (size_t i = 0; i < n; i++) {
            /* Often bytes of broken characters: ids below 256 are single bytes here. */
            bool byte = next_random(&seed) % 2;
            ids[i] = (int32_t)(next_random(&seed) % (byte ? 256 : 4096));
        }
        stream(ids, n, round % 2);
    }
}

static void streams_of_single_tokens(void **state)
{
    (void)state;
    for (int32_t id = 0; id < 4096; id++) {
        size_t len;
        const char *bytes = st_tokenizer_token_bytes(lexicon, id, &len);
        assert_non_null(bytes);
        stream(&id, 1, false);
        stream(&id, 1, true);
        if (!st_utf8_valid(bytes, len) || st_tokenizer_is_special(lexicon, id))
            continue;
        st_buf text = ST_BUF_INIT;
        assert_int_equal(st_tokenizer_decode(lexicon, &id, 1, true, &text, NULL), ST_OK);
        assert_int_equal(text.len, len);
        assert_memory_equal(text.data, bytes, len);
        st_buf_free(&text);
    }
}

/* Text cut into single bytes and fed as byte tokens comes out as it went in. */
static void streams_hold_back_half_characters(void **state)
{
    (void)state;
    static const char text[] = "a\u00E9\u4F60\U0001F600z";
    st_detokenizer *d;
    st_buf out = ST_BUF_INIT;
    int32_t byte_ids[256];
    for (int32_t id = 0; id < 256; id++) {
        size_t len;
        const char *b = st_tokenizer_token_bytes(lexicon, id, &len);
        assert_int_equal(len, 1);
        byte_ids[(unsigned char)*b] = id;
    }
    assert_int_equal(st_detokenizer_new(lexicon, false, &d), ST_OK);
    for (size_t i = 0; i < sizeof text - 1; i++) {
        assert_int_equal(st_detokenizer_push(d, byte_ids[(unsigned char)text[i]], &out), ST_OK);
        size_t whole = i + 1 - st_utf8_incomplete_tail(text, i + 1);
        assert_int_equal(out.len, whole);
    }
    assert_int_equal(st_detokenizer_push(d, -1, &out), ST_EINVAL);
    assert_int_equal(st_detokenizer_finish(d, &out), ST_OK);
    assert_string_equal(out.data, text);
    st_detokenizer_free(d);
    st_buf_free(&out);
}

/* ---- byte-pair encoding against the rule itself ---- */

typedef struct pair_rank {
    int32_t left, right, joined, rank;
} pair_rank;

static int by_pair(const void *pa, const void *pb)
{
    const pair_rank *a = pa, *b = pb;
    if (a->left != b->left)
        return a->left < b->left ? -1 : 1;
    return (a->right > b->right) - (a->right < b->right);
}

static pair_rank *lexicon_merges(size_t *n)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/models/lexicon/int8/tokenizer.json", source_root());
    json_t *root = json_load_file(path, 0, NULL), *item;
    json_t *merges = json_object_get(json_object_get(root, "model"), "merges");
    size_t i;
    *n = json_array_size(merges);
    pair_rank *table = calloc(*n, sizeof *table);
    assert_non_null(table);
    json_array_foreach(merges, i, item)
    {
        char joined[256];
        const char *s = json_string_value(item), *space = strchr(s, ' ');
        snprintf(joined, sizeof joined, "%.*s%s", (int)(space - s), s, space + 1);
        table[i] = (pair_rank){st_tokenizer_find(lexicon, s, (size_t)(space - s)),
                               st_tokenizer_find(lexicon, space + 1, strlen(space + 1)),
                               st_tokenizer_find(lexicon, joined, strlen(joined)), (int32_t)i};
    }
    qsort(table, *n, sizeof *table, by_pair);
    json_decref(root);
    return table;
}

/* Joins the best pair until there is none: quadratic and obvious. */
static size_t join_naively(const pair_rank *table, size_t n_table, int32_t *ids, size_t n)
{
    for (;;) {
        const pair_rank *best = NULL;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            const pair_rank key = {ids[i], ids[i + 1], 0, 0};
            const pair_rank *m = bsearch(&key, table, n_table, sizeof *table, by_pair);
            if (m && (!best || m->rank < best->rank)) {
                best = m;
                at = i;
            }
        }
        if (!best)
            return n;
        ids[at] = best->joined;
        memmove(ids + at + 1, ids + at + 2, (n - at - 2) * sizeof *ids);
        n--;
    }
}

static void words_of_any_length_are_joined_by_rank(void **state)
{
    (void)state;
    size_t n_table;
    pair_rank *table = lexicon_merges(&n_table);
    uint32_t seed = 99;
    static const char *const alphabets[] = {"abcdefghijklmnopqrstuvwxyz", "aaab", "eerstin",
                                            "tionsh"};
    for (int round = 0; round < 400; round++) {
        char word[201];
        int32_t expected[200];
        const char *alphabet = alphabets[round % 4];
        size_t n = 1 + next_random(&seed) % 200;
        for (size_t i = 0; i < n; i++) {
            word[i] = alphabet[next_random(&seed) % strlen(alphabet)];
            expected[i] = st_tokenizer_find(lexicon, &word[i], 1);
        }
        word[n] = '\0';
        expect_ids(lexicon, word, 0, expected, join_naively(table, n_table, expected, n));
    }
    free(table);
}

/* A megabyte of one kind of character is one word, or one match after another: seconds would mean
 * quadratic time. Decoding must give the text back. */
static void megabytes_without_a_break(void **state)
{
    (void)state;
    static const char *const units[] = {
        "a",          " ",     "\n",      "1",  "!",       "\u4F60", "\u0301", "\u3042",
        "\U0001F600", "\r\n ", "e\u0301", "a ", "<|im_en", "'s",     "\u200D", "\xFF"};
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        st_buf text = ST_BUF_INIT, back = ST_BUF_INIT;
        st_ids ids = ST_IDS_INIT;
        st_error err;
        while (text.len < 1 << 20)
            assert_int_equal(st_buf_puts(&text, units[u]), ST_OK);
        clock_t began = clock();
        if (st_tokenizer_encode(lexicon, text.data, text.len, 0, &ids, &err))
            fail_msg("'%s': %s", units[u], err.text);
        assert_true(clock() - began < 20 * CLOCKS_PER_SEC);
        assert_int_equal(st_tokenizer_decode(lexicon, ids.data, ids.len, false, &back, &err),
                         ST_OK);
        if (strcmp(units[u], "e\u0301") == 0) { /* NFC joins these */
            assert_int_equal(back.len, text.len / 3 * 2);
        } else if (units[u][0] != '\xFF') {
            assert_int_equal(back.len, text.len);
            assert_memory_equal(back.data, text.data, text.len);
        }
        st_buf_free(&text);
        st_buf_free(&back);
        st_ids_free(&ids);
    }
}

/* ---- small tokenizers ---- */

/* Characters a..z, space and some words; `parts` are further fields of the file. */
static st_tokenizer *small(const char *parts, const char *config)
{
    st_buf json = ST_BUF_INIT;
    st_tokenizer *t;
    st_error err;
    assert_int_equal(st_buf_puts(&json, "{\"model\":{\"type\":\"BPE\",\"vocab\":{"), ST_OK);
    for (int c = 'a'; c <= 'z'; c++)
        assert_int_equal(st_buf_printf(&json, "\"%c\":%d,", c, c - 'a'), ST_OK);
    assert_int_equal(st_buf_printf(&json,
                                   "\" \":26,\"<unk>\":27,\"ab\":28,\"abc\":29,\"<0xC3>\":30,"
                                   "\"<0xA9>\":31,\"\u2581\":32,\"\u2581a\":33},"
                                   "\"merges\":[\"a b\",[\"ab\",\"c\"],[\"\u2581\",\"a\"]]%s}",
                                   parts),
                     ST_OK);
    if (st_tokenizer_parse(json.data, json.len, config, config ? strlen(config) : 0, &t, &err))
        fail_msg("%s: %s", parts, err.text);
    st_buf_free(&json);
    return t;
}

static void added_tokens_take_spaces_and_stand_alone(void **state)
{
    (void)state;
    st_tokenizer *t =
        small("},\"normalizer\":{\"type\":\"Lowercase\"},\"added_tokens\":["
              "{\"id\":40,\"content\":\"<l>\",\"lstrip\":true,\"normalized\":false},"
              "{\"id\":41,\"content\":\"<r>\",\"rstrip\":true,\"normalized\":false},"
              "{\"id\":42,\"content\":\"cat\",\"single_word\":true,\"normalized\":false},"
              "{\"id\":43,\"content\":\"<r><r>\",\"normalized\":false},"
              "{\"id\":44,\"content\":\"DOG\",\"normalized\":true},"
              "{\"id\":45,\"content\":\"COW\",\"normalized\":false,\"special\":true}]",
              NULL);
    expect_ids(t, "a  <l> b", 0, IDS(0, 40, 26, 1));
    expect_ids(t, "a <r>  b", 0, IDS(0, 26, 41, 1));
    expect_ids(t, "a<r>  <l>b", 0, IDS(0, 41, 40, 1));
    expect_ids(t, "<r><r><r>", 0, IDS(43, 41));
    expect_ids(t, "cat", 0, IDS(42));
    expect_ids(t, "a cat!", 0, IDS(0, 26, 42));
    expect_ids(t, "cats", 0, IDS(2, 0, 19, 18));
    expect_ids(t, "acat", 0, IDS(0, 2, 0, 19));
    expect_ids(t, "xDoGx", 0, IDS(23, 44, 23));
    expect_ids(t, "xCOWcow", 0, IDS(23, 45, 2, 14, 22));
    expect_ids(t, "DOG", ST_ENCODE_PLAIN_SPECIAL, IDS(3, 14, 6));
    assert_false(st_tokenizer_is_special(t, 44));
    assert_true(st_tokenizer_is_special(t, 45));
    st_tokenizer_free(t);
}

static void special_tokens_are_added_where_asked(void **state)
{
    (void)state;
    st_tokenizer *t = small("}", "{\"add_bos_token\":true,\"bos_token\":{\"content\":\"x\"},"
                                 "\"add_eos_token\":true,\"eos_token\":\"y\"}");
    assert_int_equal(st_tokenizer_bos(t), 23);
    assert_int_equal(st_tokenizer_eos(t), 24);
    expect_ids(t, "abc", ST_ENCODE_ADD_SPECIAL, IDS(23, 29, 24));
    expect_ids(t, "", ST_ENCODE_ADD_SPECIAL, IDS(23, 24));
    expect_ids(t, "abc", 0, IDS(29));
    st_tokenizer_free(t);

    static const char template[] =
        "},\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},"
        "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"B\","
        "\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},{\"SpecialToken\":"
        "{\"id\":\"E\"}}],\"special_tokens\":{\"B\":{\"id\":\"B\",\"ids\":[23,25]},"
        "\"E\":{\"id\":\"E\",\"ids\":[24]}}}]}";
    t = small(template, NULL);
    expect_ids(t, "b", ST_ENCODE_ADD_SPECIAL, IDS(23, 25, 1, 24));
    st_tokenizer_free(t);
    t = small(template, "{\"add_bos_token\":true,\"bos_token\":\"x\"}"); /* not twice */
    expect_ids(t, "b", ST_ENCODE_ADD_SPECIAL, IDS(23, 25, 1, 24));
    st_tokenizer_free(t);
}

static void unknown_characters_and_byte_fallback(void **state)
{
    (void)state;
    st_tokenizer *t = small("}", NULL);
    expect_ids(t, "a\u00E9b", 0, IDS(28)); /* dropped, and the neighbours meet */
    st_tokenizer_free(t);
    t = small(",\"unk_token\":\"<unk>\"}", NULL);
    expect_ids(t, "\u00E9\u00E9b", 0, IDS(27, 27, 1));
    st_tokenizer_free(t);
    t = small(",\"unk_token\":\"<unk>\",\"fuse_unk\":true}", NULL);
    expect_ids(t, "\u00E9\u00E9b", 0, IDS(27, 1));
    st_tokenizer_free(t);
    t = small(",\"unk_token\":\"<unk>\",\"byte_fallback\":true},\"normalizer\":{\"type\":"
              "\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\u2581\"},"
              "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\u2581\"}]},"
              "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\","
              "\"pattern\":{\"String\":\"\u2581\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},"
              "{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}",
              NULL);
    expect_ids(t, "a \u00E9\u4F60", 0, IDS(33, 32, 30, 31, 27));
    expect_text(t, IDS(33, 32, 30, 31), false, "a \u00E9");
    expect_text(t, IDS(32, 32, 33, 30), false, "  a\uFFFD");
    st_tokenizer_free(t);
}

static void ignore_merges_takes_whole_words(void **state)
{
    (void)state;
    static const char json[] =
        "{\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"\u0120\":2,\"\u0120ab\":3},"
        "\"merges\":[],\"ignore_merges\":%s},\"pre_tokenizer\":{\"type\":"
        "\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":"
        "\"ByteLevel\"}}";
    for (int ignore = 0; ignore < 2; ignore++) {
        char text[512];
        st_tokenizer *t;
        snprintf(text, sizeof text, json, ignore ? "true" : "false");
        assert_int_equal(st_tokenizer_parse(text, strlen(text), NULL, 0, &t, NULL), ST_OK);
        if (ignore)
            expect_ids(t, "b ab", 0, IDS(1, 3));
        else
            expect_ids(t, "b ab", 0, IDS(1, 2, 0, 1));
        expect_text(t, IDS(1, 3), false, "b ab");
        st_tokenizer_free(t);
    }
}

/* ---- threads ---- */

static void *encode_many(void *arg)
{
    st_buf *out = arg;
    uint32_t seed = 5;
    for (int round = 0; round < 300; round++) {
        char text[600];
        st_ids ids = ST_IDS_INIT;
        for (size_t i = 0; i < sizeof text; i++)
            text[i] = "river mean  courage\n<|im_end|>\xC3\xA9"[next_random(&seed) % 32];
        if (st_tokenizer_encode(lexicon, text, sizeof text, 0, &ids, NULL) ||
            st_buf_append(out, ids.data, ids.len * sizeof *ids.data) ||
            st_tokenizer_decode(lexicon, ids.data, ids.len, false, out, NULL))
            st_buf_clear(out);
        st_ids_free(&ids);
    }
    return NULL;
}

static void threads_share_a_tokenizer(void **state)
{
    (void)state;
    pthread_t thread[2];
    st_buf out[3] = {ST_BUF_INIT, ST_BUF_INIT, ST_BUF_INIT};
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, encode_many, &out[i]), 0);
    encode_many(&out[2]);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_join(thread[i], NULL), 0);
    assert_true(out[2].len > 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(out[i].len, out[2].len);
        assert_memory_equal(out[i].data, out[2].data, out[2].len);
    }
    for (int i = 0; i < 3; i++)
        st_buf_free(&out[i]);
}

/* ---- bad files ---- */

#define MODEL(vocab, merges) "{\"model\":{\"vocab\":" vocab ",\"merges\":" merges "}"
#define AB                   "{\"a\":0,\"b\":1,\"ab\":2}"
#define GOOD                 MODEL(AB, "[\"a b\"]")

static void bad_files_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *json, *says;
    } cases[] = {
        {"", "not valid JSON"},
        {"{", "not valid JSON"},
        {"[]", "an array, expected an object"},
        {"{}", "model is missing"},
        {"{\"model\":7}", "model is a whole number"},
        {"{\"model\":{}}", "model.vocab is missing"},
        {"{\"model\":{\"vocab\":[]}}", "model.vocab is an array"},
        {MODEL("{}", "[]") "}", "empty"},
        {"{\"model\":{\"vocab\":" AB "}}", "model.merges is missing"},
        {MODEL("{\"a\":0,\"a\":1}", "[]") "}", "duplicate"},
        {MODEL("{\"a\":0,\"b\":0}", "[]") "}", "id 0 is given to 'a' and to 'b'"},
        {MODEL("{\"a\":-1}", "[]") "}", "-1"},
        {MODEL("{\"a\":1.5}", "[]") "}", "a number with a fraction"},
        {MODEL("{\"a\":\"0\"}", "[]") "}", "a string, expected a whole number"},
        {MODEL("{\"a\":4000000000}", "[]") "}", "4000000000"},
        {MODEL("{\"a\":99999999999999999999}", "[]") "}", "not valid JSON"},
        {MODEL(AB, "{}") "}", "model.merges is an object"},
        {MODEL(AB, "[1]") "}", "model.merges[0] is a whole number"},
        {MODEL(AB, "[\"a\"]") "}", "model.merges[0] is 'a'"},
        {MODEL(AB, "[\"a b c\"]") "}", "model.merges[0]"},
        {MODEL(AB, "[\" b\"]") "}", "model.merges[0]"},
        {MODEL(AB, "[[\"a\"]]") "}", "model.merges[0]"},
        {MODEL(AB, "[[\"a\",\"\"]]") "}", "model.merges[0]"},
        {MODEL(AB, "[\"a b\",\"a x\"]") "}", "model.merges[1]: 'x' is not in model.vocab"},
        {MODEL(AB, "[\"b a\"]") "}", "'ba' is not in model.vocab"},
        {MODEL(AB, "[\"ab ab\"]") "}", "'abab' is not in model.vocab"},
        {GOOD ",\"added_tokens\":{}}", "added_tokens is an object"},
        {GOOD ",\"added_tokens\":[7]}", "added_tokens[0].content"},
        {GOOD ",\"added_tokens\":[{\"id\":3,\"content\":\"\"}]}", "added_tokens[0].content"},
        {GOOD ",\"added_tokens\":[{\"content\":\"x\"}]}", "the id of 'x' is missing"},
        {GOOD ",\"added_tokens\":[{\"id\":0,\"content\":\"x\"}]}", "id 0 is given"},
        {GOOD ",\"added_tokens\":[{\"id\":3,\"content\":\"a\"}]}", "id 3 here and id 0"},
        {GOOD ",\"added_tokens\":[{\"id\":3,\"content\":\"x\"},{\"id\":3,\"content\":\"x\"}]}",
         "id 3 is given"},
        {GOOD ",\"added_tokens\":[{\"id\":3,\"content\":\"x\",\"lstrip\":1}]}",
         "added_tokens[0].lstrip is a whole number"},
        {GOOD ",\"normalizer\":7}", "normalizer is a whole number"},
        {GOOD ",\"normalizer\":{\"type\":\"Precompiled\"}}", "'Precompiled' is not supported"},
        {GOOD ",\"normalizer\":{\"type\":\"Replace\",\"content\":\"\"}}", "normalizer.pattern"},
        {GOOD ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{}]}}",
         "normalizer[1].type is missing"},
        {GOOD ",\"pre_tokenizer\":{\"type\":\"Metaspace\"}}", "'Metaspace' is not supported"},
        {GOOD ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"}}}",
         "regular expression '('"},
        {GOOD ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},"
              "\"behavior\":\"Sideways\"}}",
         "'Sideways' is not supported"},
        {GOOD ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":"
              "\"ByteLevel\"},{\"type\":\"Digits\"}]}}",
         "Digits after ByteLevel"},
        {GOOD ",\"decoder\":{\"type\":\"WordPiece\"}}", "'WordPiece' is not supported"},
        {GOOD ",\"post_processor\":{\"type\":\"BertProcessing\"}}", "'BertProcessing'"},
        {GOOD ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
              "{\"id\":\"B\"}}],\"special_tokens\":{\"B\":{\"ids\":[9]}}}}",
         "is not an id"},
        {GOOD ",\"added_tokens\":[{\"id\":9,\"content\":\"x\"}],\"post_processor\":{\"type\":"
              "\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"B\"}}],"
              "\"special_tokens\":{\"B\":{\"ids\":[8]}}}}",
         "is not an id"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":{\"a\":0},\"merges\":[]}}", "'Unigram'"},
        {"{\"model\":{\"dropout\":0.1,\"vocab\":{\"a\":0},\"merges\":[]}}", "dropout"},
        {"{\"model\":{\"unk_token\":\"u\",\"vocab\":{\"a\":0},\"merges\":[]}}", "unk_token 'u'"},
        {"{\"model\":{\"end_of_word_suffix\":\"_\",\"vocab\":{\"a\":0},\"merges\":[]}}",
         "end_of_word_suffix '_' is not supported"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_tokenizer *t = (void *)&t;
        st_error err = {.status = ST_OK};
        st_status s = st_tokenizer_parse(cases[i].json, strlen(cases[i].json), NULL, 0, &t, &err);
        if (!s)
            fail_msg("accepted: %s", cases[i].json);
        assert_null(t);
        assert_int_equal(err.status, s);
        assert_memory_equal(err.text, "tokenizer.json", 14);
        if (!strstr(err.text, cases[i].says))
            fail_msg("%s: says '%s', expected '%s'", cases[i].json, err.text, cases[i].says);
        assert_int_equal(
            st_tokenizer_parse(cases[i].json, strlen(cases[i].json), NULL, 0, &t, NULL), s);
    }
}

static void bad_configs_are_refused(void **state)
{
    (void)state;
    static const char *const configs[] = {"7",
                                          "{",
                                          "{\"bos_token\":7}",
                                          "{\"add_bos_token\":1}",
                                          "{\"add_bos_token\":true}",
                                          "{\"add_eos_token\":true,\"eos_token\":\"none\"}"};
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
        st_tokenizer *t;
        st_error err;
        assert_int_not_equal(st_tokenizer_parse(GOOD "}", strlen(GOOD "}"), configs[i],
                                                strlen(configs[i]), &t, &err),
                             ST_OK);
        assert_memory_equal(err.text, "tokenizer_config.json", 21);
    }
    st_tokenizer *t;
    st_error err;
    /* What Llama's says is no int64, but no mistake either. */
    static const char large[] = "{\"model_max_length\":1000000000000000019884624838656}";
    assert_int_equal(st_tokenizer_parse(GOOD "}", strlen(GOOD "}"), large, strlen(large), &t, &err),
                     ST_OK);
    st_tokenizer_free(t);
    assert_int_equal(st_tokenizer_load("/nowhere/at/all", &t, &err), ST_ENOTFOUND);
    assert_non_null(strstr(err.text, "/nowhere/at/all/tokenizer.json"));
}

static int load_lexicon(void **state)
{
    (void)state;
    char dir[4096];
    st_error err;
    snprintf(dir, sizeof dir, "%s/models/lexicon/int8", source_root());
    if (st_tokenizer_load(dir, &lexicon, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    return 0;
}

static int free_lexicon(void **state)
{
    (void)state;
    st_tokenizer_free(lexicon);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lexicon_golden_ids),
        cmocka_unit_test(limited_encoding_gives_all_or_nothing),
        cmocka_unit_test(lexicon_special_tokens),
        cmocka_unit_test(ill_formed_text_becomes_replacement_characters),
        cmocka_unit_test(ids_out_of_the_vocabulary_are_refused),
        cmocka_unit_test(streams_of_random_ids_add_up),
        cmocka_unit_test(streams_of_single_tokens),
        cmocka_unit_test(streams_hold_back_half_characters),
        cmocka_unit_test(words_of_any_length_are_joined_by_rank),
        cmocka_unit_test(megabytes_without_a_break),
        cmocka_unit_test(added_tokens_take_spaces_and_stand_alone),
        cmocka_unit_test(special_tokens_are_added_where_asked),
        cmocka_unit_test(unknown_characters_and_byte_fallback),
        cmocka_unit_test(ignore_merges_takes_whole_words),
        cmocka_unit_test(threads_share_a_tokenizer),
        cmocka_unit_test(bad_files_are_refused),
        cmocka_unit_test(bad_configs_are_refused),
    };
    return cmocka_run_group_tests(tests, load_lexicon, free_lexicon);
}
