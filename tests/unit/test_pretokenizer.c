/* src/text: the parts of the tokenizer: regular expressions, pre-tokenizers, normalizers. */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jansson.h>
#include <utf8proc.h>

#include "base/utf8.h"
#include "text/normalizer.h"
#include "text/normalizer_unicode.h"
#include "text/pretokenizer.h"
#include "text/pretokenizer_regex.h"

static json_t *parse(const char *text)
{
    json_error_t why;
    json_t *v = json_loads(text, 0, &why);
    if (!v)
        fail_msg("test data: %s: %s", why.text, text);
    return v;
}

/* Matches, in brackets, within the text. */
static void mark_matches(const char *pattern, const char *text, st_buf *out)
{
    st_regex *re;
    st_regex_run run = {0};
    st_error err;
    size_t start, end, done = 0;
    if (st_regex_new("test", pattern, strlen(pattern), false, &re, &err))
        fail_msg("%s", err.text);
    st_regex_begin(&run, re, text, strlen(text));
    while (st_regex_next(&run, &start, &end))
        if (start < end) {
            assert_int_equal(st_buf_append(out, text + done, start - done), ST_OK);
            assert_int_equal(st_buf_printf(out, "[%.*s]", (int)(end - start), text + start), ST_OK);
            done = end;
        }
    assert_int_equal(st_regex_status(&run, &err), ST_OK);
    assert_int_equal(st_buf_puts(out, text + done), ST_OK);
    st_regex_run_free(&run);
    st_regex_free(re);
}

/* What Oniguruma 6.9.8 answers (checked against libonig). */
static void patterns_mean_what_oniguruma_means(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *text, *marked;
    } cases[] = {
        {"(?i:'s|'t)x", "'Sx 'tx '\u017Fx 's", "['Sx] ['tx] ['\u017Fx] 's"},
        {"\\s",
         "a\u180E\xC2\x85"
         "b\u00A0c\u3000\u200B",
         "a\u180E[\xC2\x85]b[\u00A0]c[\u3000]\u200B"},
        {"[^\\s]+", "a\u180Eb c", "[a\u180Eb] [c]"},
        {"\\S+", "a\u180Eb c", "[a\u180Eb] [c]"},
        {"[\\S]+", "a\u180Eb c", "[a\u180Eb] [c]"},
        {"\\w+", "a\u0301_1\u00B2-b\u200D", "[a\u0301_1\u00B2]-[b]\u200D"},
        {"\\W+", "a\u0301-b", "a\u0301[-]b"},
        {"\\bx\\b", "x ax xb x", "[x] ax xb [x]"},
        {"\\p{Han}+", "\u4E00\u3002\u3400a\u3005", "[\u4E00]\u3002[\u3400]a[\u3005]"},
        {"[\\p{Han}a]+", "\u4E00\u3002a", "[\u4E00]\u3002[a]"},
        {"\\p{L}+", "a\U00031350\u1C89\u0660", "[a\U00031350\u1C89]\u0660"},
        {"\\P{L}+", "a\U00031350\u0660", "a\U00031350[\u0660]"},
        {"\\p{^L}+", "a1b", "a[1]b"},
        {"\\p{Alpha}+", "ab1", "[ab]1"},
        {"[[:alpha:]_]+", "a_1", "[a_]1"},
        {"[[:^alpha:]]+", "a1b", "a[1]b"},
        {"\\h+", "xFf0 g", "x[Ff0] g"},
        {"[a-z&&[^aeiou]]+", "hello", "[h]e[ll]o"},
        {"[\\p{L}&&[^\\p{Han}]]+", "ab\u4E00c", "[ab]\u4E00[c]"},
        {"[^a-z&&[^aeiou]]+", "hello X", "h[e]ll[o X]"},
        {"[a[0-9]b]+", "a1cb", "[a1]c[b]"},
        {"[]a]+", "a]b", "[a]]b"},
        {"a{,2}b", "aaab", "a[aab]"},
        {"(?m:a.b)", "a\nb", "[a\nb]"},
        {"a.b", "a\nb", "a\nb"},
        {"^b$", "a\nb\nc", "a\n[b]\nc"},
        {"\\u0061+", "aab", "[aa]b"},
        {"\\x{4e00}", "\u4E00", "[\u4E00]"},
        {"[\\u4e00-\\u4e02]", "\u4E01", "[\u4E01]"},
        {"x*", "axxb", "a[xx]b"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_buf got = ST_BUF_INIT;
        mark_matches(cases[i].pattern, cases[i].text, &got);
        if (strcmp(got.data, cases[i].marked) != 0)
            fail_msg("%s: expected %s, got %s", cases[i].pattern, cases[i].marked, got.data);
        st_buf_free(&got);
    }
}

static void bad_patterns_are_named(void **state)
{
    (void)state;
    static const char *const bad[] = {"(",         "[a",        "[",        "\\",  "[\\",
                                      "\\p{",      "\\p{Nope}", "[a&&]",    "*",   "(?<n",
                                      "[[:foo:]]", "\\p",       "a{2}{3}(", "\\C", "(?<=a*)b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        st_regex *re = NULL;
        st_error err = {.status = ST_OK};
        if (st_regex_new("here", bad[i], strlen(bad[i]), false, &re, &err) == ST_OK)
            fail_msg("'%s' was accepted", bad[i]);
        assert_null(re);
        assert_memory_equal(err.text, "here", 4);
    }
}

/* The expression backtracks exponentially: it must give up, soon, with an error. */
static void endless_backtracking_ends_with_an_error(void **state)
{
    (void)state;
    static const char pattern[] = "(a|a|aa)+$";
    st_regex *re;
    st_regex_run run = {0};
    st_error err;
    size_t start, end;
    char text[64];
    memset(text, 'a', sizeof text);
    text[63] = 'b';
    assert_int_equal(st_regex_new("here", pattern, sizeof pattern - 1, false, &re, &err), ST_OK);
    st_regex_begin(&run, re, text, sizeof text);
    clock_t began = clock();
    assert_false(st_regex_next(&run, &start, &end));
    assert_int_equal(st_regex_status(&run, &err), ST_EDEADLINE);
    assert_non_null(strstr(err.text, "here"));
    assert_true(clock() - began < 20 * CLOCKS_PER_SEC);
    st_regex_run_free(&run);
    st_regex_free(re);
}

/* Deep recursion of a repeated group needs more than the machine stack. */
static void long_groups_fit_a_larger_stack(void **state)
{
    (void)state;
    st_regex *re;
    st_regex_run run = {0};
    st_error err;
    size_t start, end, n = 200000;
    char *text = malloc(n);
    assert_non_null(text);
    memset(text, 'a', n);
    assert_int_equal(st_regex_new("here", "(?:a|b(?=c))+", 13, false, &re, &err), ST_OK);
    st_regex_begin(&run, re, text, n);
    assert_true(st_regex_next(&run, &start, &end));
    assert_int_equal(start, 0);
    assert_int_equal(end, n);
    st_regex_run_free(&run);
    st_regex_free(re);
    free(text);
}

static void pre_tokenizers_split(void **state)
{
    (void)state;
#define SPLIT(pattern, behavior, invert)                                                           \
    "{\"type\":\"Split\",\"pattern\":" pattern ",\"behavior\":\"" behavior "\",\"invert\":" invert \
    "}"
#define DASH  "{\"String\":\"-\"}"
#define DIGIT "{\"Regex\":\"\\\\d\"}"
    static const struct {
        const char *json, *text, *words;
    } cases[] = {
        {"null", "a b", "a b"},
        {SPLIT(DASH, "Isolated", "false"), "-a--b-", "-|a|-|-|b|-"},
        {SPLIT(DASH, "Removed", "false"), "-a--b-", "a|b"},
        {SPLIT(DASH, "Removed", "true"), "-a--b-", "-|-|-|-"},
        {SPLIT(DASH, "MergedWithPrevious", "false"), "-a--b-", "-|a-|-|b-"},
        {SPLIT(DASH, "MergedWithNext", "false"), "-a--b-", "-a|-|-b|-"},
        {SPLIT(DASH, "Contiguous", "false"), "-a--b-", "-|a|--|b|-"},
        {SPLIT(DIGIT, "Isolated", "false"), "a12b", "a|1|2|b"},
        {SPLIT(DIGIT, "Contiguous", "true"), "a12bc", "a|12|bc"},
        {"{\"type\":\"Digits\",\"individual_digits\":true}", "a12\u2167b", "a|1|2|\u2167|b"},
        {"{\"type\":\"Digits\"}", "a12b", "a|12|b"},
        {"{\"type\":\"Punctuation\"}", "a,.b$\u3002", "a|,|.|b|$|\u3002"},
        {"{\"type\":\"Punctuation\",\"behavior\":\"Contiguous\"}", "a,.b", "a|,.|b"},
        {"{\"type\":\"Whitespace\"}", "it's  5 ok!?", "it|'|s|5|ok|!?"},
        {"{\"type\":\"WhitespaceSplit\"}", " it's\t5 ", "it's|5"},
        {"{\"type\":\"CharDelimiterSplit\",\"delimiter\":\"_\"}", "a_b__c", "a|b|c"},
        {"{\"type\":\"ByteLevel\",\"add_prefix_space\":false}", "Hello  don't 42!",
         "Hello| | don|'t| 42|!"},
        {"{\"type\":\"ByteLevel\",\"use_regex\":false}", "a b", " a b"},
        {"{\"type\":\"ByteLevel\"}", " a", " a"},
        {"{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"WhitespaceSplit\"},"
         "{\"type\":\"Digits\"},{\"type\":\"ByteLevel\"}]}",
         "a1 b", " a| 1| b"},
        {"{\"type\":\"Sequence\",\"pretokenizers\":[]}", "a b", "a b"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *json = parse(cases[i].json[0] == 'n' ? "{}" : cases[i].json);
        st_pretokenizer *p;
        st_pretokenizer_scratch scratch = {0};
        st_error err;
        st_buf text = ST_BUF_INIT, got = ST_BUF_INIT;
        if (st_pretokenizer_parse(cases[i].json[0] == 'n' ? NULL : json, &p, &err))
            fail_msg("%s: %s", cases[i].json, err.text);
        /* Not at the buffer's start, to see that positions are absolute. */
        assert_int_equal(st_buf_printf(&text, "??%s", cases[i].text), ST_OK);
        assert_int_equal(st_pretokenizer_run(p, &scratch, &text, 2, text.len - 2, &err), ST_OK);
        for (size_t k = 0; k < scratch.words.len; k++)
            assert_int_equal(st_buf_printf(&got, "%s%.*s", k ? "|" : "",
                                           (int)scratch.words.data[k].len,
                                           text.data + scratch.words.data[k].off),
                             ST_OK);
        if (strcmp(got.data, cases[i].words) != 0)
            fail_msg("%s: expected %s, got %s", cases[i].json, cases[i].words, got.data);
        st_pretokenizer_scratch_free(&scratch);
        st_pretokenizer_free(p);
        st_buf_free(&text);
        st_buf_free(&got);
        json_decref(json);
    }
}

static void normalizers_rewrite(void **state)
{
    (void)state;
    static const struct {
        const char *json, *text, *out;
    } cases[] = {
        {"{\"type\":\"NFC\"}", "e\u0301\u1112\u1161\u11AB\uF900", "\u00E9\uD55C\u8C48"},
        {"{\"type\":\"NFD\"}", "\u00E9\uD55C", "e\u0301\u1112\u1161\u11AB"},
        {"{\"type\":\"NFKC\"}", "\uFB01\u2460\u00A0e\u0301", "fi1 \u00E9"},
        {"{\"type\":\"NFKD\"}", "\uFB01\u00E9", "fie\u0301"},
        {"{\"type\":\"Lowercase\"}", "A\u00C9\u0130\u03A3x", "a\u00E9i\u0307\u03C3x"},
        {"{\"type\":\"StripAccents\"}", "e\u0301\u0903a", "ea"},
        {"{\"type\":\"Strip\"}", " \u00A0a b\u3000 ", "a b"},
        {"{\"type\":\"Strip\",\"strip_left\":false}", " a ", " a"},
        {"{\"type\":\"Strip\",\"strip_right\":false}", " a ", "a "},
        {"{\"type\":\"Strip\"}", "  ", ""},
        {"{\"type\":\"Prepend\",\"prepend\":\"_\"}", "a", "_a"},
        {"{\"type\":\"Prepend\",\"prepend\":\"_\"}", "", ""},
        {"{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"__\"}", " a b",
         "__a__b"},
        {"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"\\\\s+\"},\"content\":\"\"}", " a  b",
         "ab"},
        {"{\"type\":\"Sequence\",\"normalizers\":[]}", "e\u0301", "e\u0301"},
        {"{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFD\"},{\"type\":\"StripAccents\"},"
         "{\"type\":\"Lowercase\"}]}",
         "\u00C9a", "ea"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *json = parse(cases[i].json);
        st_normalizer *n;
        st_error err;
        st_buf got = ST_BUF_INIT;
        if (st_normalizer_parse(json, &n, &err))
            fail_msg("%s: %s", cases[i].json, err.text);
        assert_int_equal(st_normalizer_run(n, cases[i].text, strlen(cases[i].text), &got, &err),
                         ST_OK);
        if (strcmp(got.data ? got.data : "", cases[i].out) != 0)
            fail_msg("%s: expected '%s', got '%s'", cases[i].json, cases[i].out, got.data);
        st_normalizer_free(n);
        st_buf_free(&got);
        json_decref(json);
    }
}

/* The four forms against utf8proc_map on random text that is rich in marks, jamo and characters
 * with decompositions. */
static void forms_agree_with_utf8proc(void **state)
{
    (void)state;
    static const struct {
        uint32_t first, last;
    } pools[] = {{0x20, 0x7E},       {0xA0, 0x2FF},    {0x300, 0x36F},     {0x1100, 0x11FF},
                 {0xAC00, 0xAC40},   {0x900, 0xDFF},   {0x1E00, 0x1FFF},   {0x3040, 0x30FF},
                 {0xF900, 0xFAFF},   {0xFB1D, 0xFDFF}, {0x1D15E, 0x1D164}, {0x591, 0x5F4},
                 {0x2F800, 0x2FA1D}, {0x2100, 0x24FF}};
    static const int options[] = {
        [ST_NFC] = UTF8PROC_COMPOSE,
        [ST_NFD] = UTF8PROC_DECOMPOSE,
        [ST_NFKC] = UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [ST_NFKD] = UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    uint32_t seed = 12345;
    for (int round = 0; round < 20000; round++) {
        char text[256];
        size_t len = 0;
        for (int i = 0; i < 24; i++) {
            seed = seed * 1664525 + 1013904223;
            uint32_t r = seed >> 8, pool = r % (sizeof pools / sizeof *pools);
            len += st_utf8_encode(pools[pool].first +
                                      (r >> 5) % (pools[pool].last - pools[pool].first + 1),
                                  text + len);
        }
        st_unicode_form form = (st_unicode_form)(round % 4);
        utf8proc_uint8_t *expected;
        utf8proc_ssize_t n =
            utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)len, &expected,
                         (utf8proc_option_t)(options[form] | UTF8PROC_STABLE));
        assert_true(n > 0);
        st_buf got = ST_BUF_INIT;
        assert_int_equal(st_unicode_normalize(form, text, len, &got), ST_OK);
        if (got.len != (size_t)n || memcmp(got.data, expected, got.len) != 0)
            fail_msg("round %d: '%.*s' became '%s', not '%.*s'", round, (int)len, text, got.data,
                     (int)n, expected);
        free(expected);
        st_buf_free(&got);
    }
}

/* A million marks in the worst order: linear, where exchanging neighbours would take hours. */
static void marks_are_ordered_in_linear_time(void **state)
{
    (void)state;
    st_buf text = ST_BUF_INIT, got = ST_BUF_INIT;
    assert_int_equal(st_buf_putc(&text, 'x'), ST_OK);
    for (int i = 0; i < 500000; i++)
        assert_int_equal(st_buf_puts(&text, "\u0301\u0323"), ST_OK);
    clock_t began = clock();
    assert_int_equal(st_unicode_normalize(ST_NFC, text.data, text.len, &got), ST_OK);
    assert_true(clock() - began < 20 * CLOCKS_PER_SEC);
    assert_int_equal(got.len, text.len);
    assert_memory_equal(got.data, "x\u0323\u0323", 5);
    assert_memory_equal(got.data + got.len - 4, "\u0301\u0301", 4);
    st_buf_free(&text);
    st_buf_free(&got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patterns_mean_what_oniguruma_means),
        cmocka_unit_test(bad_patterns_are_named),
        cmocka_unit_test(endless_backtracking_ends_with_an_error),
        cmocka_unit_test(long_groups_fit_a_larger_stack),
        cmocka_unit_test(pre_tokenizers_split),
        cmocka_unit_test(normalizers_rewrite),
        cmocka_unit_test(forms_agree_with_utf8proc),
        cmocka_unit_test(marks_are_ordered_in_linear_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
