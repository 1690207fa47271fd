/* src/api/text_stream: against the plain definition (decode everything, cut at the stop string
 * that ends first), over random texts, stop strings and splits into tokens. */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/text_stream.h"
#include "base/utf8.h"

static st_tokenizer *tok;
static uint64_t seed = 0x9E3779B97F4A7C15u;

static uint32_t rnd(uint32_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 33) % n;
}

static int load(void **state)
{
    (void)state;
    st_error err;
    char dir[4096];
    const char *root = getenv("STARLING_SOURCE_ROOT");
    snprintf(dir, sizeof dir, "%s/models/lexicon/int8", root ? root : ".");
    if (st_tokenizer_load(dir, &tok, &err)) {
        print_error("%s\n", err.text);
        return -1;
    }
    return 0;
}

static int unload(void **state)
{
    (void)state;
    st_tokenizer_free(tok);
    return 0;
}

/* Ids of text: BPE's, or one a byte where that byte is a token. */
static void encode(const char *text, size_t n, bool by_byte, st_ids *out)
{
    st_error err;
    for (size_t i = 0; i < n; i += by_byte ? 1 : n)
        assert_int_equal(
            st_tokenizer_encode(tok, text + i, by_byte ? 1 : n, ST_ENCODE_PLAIN_SPECIAL, out, &err),
            ST_OK);
}

/* Pushes all ids; returns the text, and whether and where it stopped. */
static void stream(const st_ids *ids, const st_text_stream_options *opts, st_buf *out, int *matched)
{
    st_text_stream *s;
    bool stopped = false;
    assert_int_equal(st_text_stream_new(tok, opts, &s), ST_OK);
    for (size_t i = 0; i < ids->len && !stopped; i++) {
        assert_int_equal(st_text_stream_push(s, ids->data[i], out, &stopped), ST_OK);
        if (out->len) /* never half a character */
            assert_int_equal(st_utf8_incomplete_tail(out->data, out->len), 0);
    }
    if (!stopped)
        assert_int_equal(st_text_stream_finish(s, out, &stopped), ST_OK);
    *matched = st_text_stream_matched(s);
    assert_int_equal(stopped, *matched >= 0);
    st_text_stream_free(s);
}

/* The definition: the stop string with the smallest end, then the smallest start. */
static size_t plain_cut(const char *text, size_t n, const st_stop *stops, size_t n_stops,
                        int *matched)
{
    *matched = -1;
    for (size_t end = 1; end <= n; end++) {
        size_t longest = 0;
        for (size_t i = 0; i < n_stops; i++) {
            size_t len = stops[i].len;
            if (len <= end && len > longest && memcmp(text + end - len, stops[i].text, len) == 0) {
                longest = len;
                *matched = (int)i;
            }
        }
        if (longest)
            return end - longest;
    }
    return n;
}

static void random_text(char *text, size_t n)
{
    static const char *const parts[] = {
        "a", "b", "ab", "\xC3\xA9", "\xE4\xBD\xA0", "\xF0\x9F\x98\x80", " "};
    text[0] = '\0';
    for (size_t i = 0; i < n; i++)
        strcat(text, parts[rnd(7)]);
}

static void equals_the_plain_definition(void **state)
{
    (void)state;
    int stopped_runs = 0;
    for (int run = 0; run < 4000; run++) {
        char text[256], stop_text[4][64];
        st_stop stops[4];
        size_t n_stops = rnd(5);
        random_text(text, rnd(40));
        for (size_t i = 0; i < n_stops; i++) {
            random_text(stop_text[i], 1 + rnd(4));
            stops[i] = (st_stop){stop_text[i], strlen(stop_text[i])};
        }
        st_text_stream_options opts = {
            .stops = stops, .n_stops = n_stops, .include_stop = rnd(2) == 1};
        int want, got;
        size_t n = strlen(text), cut = plain_cut(text, n, stops, n_stops, &want);
        if (want >= 0 && opts.include_stop)
            cut += stops[want].len;
        for (int by_byte = 0; by_byte < 2; by_byte++) {
            st_ids ids = ST_IDS_INIT;
            st_buf out = ST_BUF_INIT;
            if (n)
                encode(text, n, false, &ids);
            if (by_byte) { /* another split of the same text: each character by itself */
                st_ids_clear(&ids);
                for (size_t at = 0, len; at < n; at += len) {
                    uint32_t cp;
                    len = st_utf8_decode(text + at, n - at, &cp);
                    encode(text + at, len, false, &ids);
                }
            }
            stream(&ids, &opts, &out, &got);
            /* Duplicates among the stop strings make the index ambiguous, not the text. */
            assert_int_equal(got >= 0, want >= 0);
            assert_int_equal(out.len, cut);
            if (cut)
                assert_memory_equal(out.data, text, cut);
            stopped_runs += got >= 0;
            st_buf_free(&out);
            st_ids_free(&ids);
        }
    }
    assert_true(stopped_runs > 1000);
}

static void random_ids_equal_decode(void **state)
{
    (void)state;
    for (int run = 0; run < 500; run++) {
        st_ids ids = ST_IDS_INIT;
        st_buf out = ST_BUF_INIT, want = ST_BUF_INIT;
        st_error err;
        int matched;
        for (uint32_t i = 0, n = rnd(30); i < n; i++) {
            int32_t id = (int32_t)rnd((uint32_t)st_tokenizer_vocab_size(tok));
            size_t len;
            if (st_tokenizer_token_bytes(tok, id, &len))
                assert_int_equal(st_ids_push(&ids, id), ST_OK);
        }
        stream(&ids, NULL, &out, &matched);
        assert_int_equal(st_tokenizer_decode(tok, ids.data, ids.len, true, &want, &err), ST_OK);
        assert_int_equal(out.len, want.len);
        if (want.len)
            assert_memory_equal(out.data, want.data, want.len);
        st_buf_free(&out);
        st_buf_free(&want);
        st_ids_free(&ids);
    }
}

static void shows_text_as_soon_as_it_is_certain(void **state)
{
    (void)state;
    static const st_stop stops[] = {{"abc", 3}};
    st_text_stream_options opts = {.stops = stops, .n_stops = 1};
    st_text_stream *s;
    st_ids ids = ST_IDS_INIT;
    st_buf out = ST_BUF_INIT;
    bool stopped;
    encode("xababc", 6, true, &ids);
    assert_int_equal(ids.len, 6);
    assert_int_equal(st_text_stream_new(tok, &opts, &s), ST_OK);
    static const char *const shown[] = {"x", "x", "x", "xab", "xab", "xab"};
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(st_text_stream_push(s, ids.data[i], &out, &stopped), ST_OK);
        assert_string_equal(out.data, shown[i]);
        assert_int_equal(stopped, i == 5);
    }
    /* After the stop string nothing more is shown. */
    assert_int_equal(st_text_stream_push(s, ids.data[0], &out, &stopped), ST_OK);
    assert_true(stopped);
    assert_string_equal(out.data, "xab");
    st_text_stream_free(s);
    st_buf_free(&out);
    st_ids_free(&ids);
}

static void min_tokens_hides_early_stop_strings(void **state)
{
    (void)state;
    static const st_stop stops[] = {{"b", 1}};
    st_text_stream_options opts = {.stops = stops, .n_stops = 1, .min_tokens = 3};
    st_ids ids = ST_IDS_INIT;
    st_buf out = ST_BUF_INIT;
    int matched;
    encode("abaab", 5, true, &ids);
    stream(&ids, &opts, &out, &matched);
    assert_string_equal(out.data, "abaa");
    assert_int_equal(matched, 0);
    st_buf_free(&out);
    st_ids_free(&ids);
}

static void special_and_unknown_tokens(void **state)
{
    (void)state;
    int32_t end = st_tokenizer_find(tok, "<|im_end|>", 10);
    assert_true(end >= 0);
    const int32_t list[] = {end, 1 << 20, -5};
    for (int keep = 0; keep < 2; keep++) {
        st_ids ids = ST_IDS_INIT;
        st_buf out = ST_BUF_INIT;
        st_text_stream_options opts = {.keep_special = keep == 1};
        int matched;
        assert_int_equal(st_ids_append(&ids, list, 3), ST_OK);
        stream(&ids, &opts, &out, &matched);
        assert_string_equal(out.data ? out.data : "", keep ? "<|im_end|>" : "");
        st_buf_free(&out);
        st_ids_free(&ids);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_plain_definition),
        cmocka_unit_test(random_ids_equal_decode),
        cmocka_unit_test(shows_text_as_soon_as_it_is_certain),
        cmocka_unit_test(min_tokens_hides_early_stop_strings),
        cmocka_unit_test(special_and_unknown_tokens),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
