/* src/base/json_scan: RFC 8259's edges, random and mutated texts against jansson, long strings. */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json_oracle.h"

static bool accepts(const char *text, size_t len)
{
    st_json_scan s;
    st_json_token token;
    st_json_scan_init(&s, text, len);
    while ((token = st_json_next(&s)) != ST_JSON_ERROR)
        if (token == ST_JSON_END)
            return true;
    assert_non_null(s.why);
    assert_true(s.pos <= len);
    return false;
}

#define TEXT(s) s, sizeof s - 1

static const struct {
    const char *text;
    size_t len;
    bool good;
} edges[] = {
    {TEXT("{}"), true},
    {TEXT(" [ ] \n"), true},
    {TEXT("\"\""), true},
    {TEXT("-0.0e-00"), true},
    {TEXT("1E+2"), true},
    {TEXT("[1,2 ,\t3,{\"a\":[{}]}]"), true},
    {TEXT("{\"a\":1,\"a\":2}"), true},
    {TEXT("\"\\u0000\\ud83d\\uDE00\\\"\\\\\\/\\b\\f\\n\\r\\t\""), true},
    {TEXT("\"\x7F\""), true},
    {TEXT("\"\xC2\x80\xDF\xBF\xE0\xA0\x80\xED\x9F\xBF\xEE\x80\x80\xEF\xBF\xBF\""), true},
    {TEXT("\"\xF0\x90\x80\x80\xF4\x8F\xBF\xBF\""), true},
    {TEXT("[9223372036854775808,1e999]"), true},
    {TEXT(""), false},
    {TEXT("  "), false},
    {TEXT("\xEF\xBB\xBF{}"), false},
    {TEXT("{} x"), false},
    {TEXT("{}{}"), false},
    {TEXT("[1,]"), false},
    {TEXT("[,1]"), false},
    {TEXT("[1 2]"), false},
    {TEXT("{\"a\":1,}"), false},
    {TEXT("{\"a\"}"), false},
    {TEXT("{\"a\" 1}"), false},
    {TEXT("{a:1}"), false},
    {TEXT("{1:1}"), false},
    {TEXT("{\"a\":}"), false},
    {TEXT("{,}"), false},
    {TEXT("[}"), false},
    {TEXT("{]"), false},
    {TEXT("]"), false},
    {TEXT("[[1]"), false},
    {TEXT("01"), false},
    {TEXT("-"), false},
    {TEXT("+1"), false},
    {TEXT("1."), false},
    {TEXT(".5"), false},
    {TEXT("1e"), false},
    {TEXT("1e+"), false},
    {TEXT("0x1"), false},
    {TEXT("NaN"), false},
    {TEXT("tru"), false},
    {TEXT("truee"), false},
    {TEXT("nul"), false},
    {TEXT("'a'"), false},
    {TEXT("\"a"), false},
    {TEXT("\"\\\""), false},
    {TEXT("\"\n\""), false},
    {TEXT("\"\0\""), false},
    {TEXT("\"\x1F\""), false},
    {TEXT("\"\\x\""), false},
    {TEXT("\"\\u12\""), false},
    {TEXT("\"\\u12g4\""), false},
    {TEXT("\"\\ud800\""), false},
    {TEXT("\"\\udc00\""), false},
    {TEXT("\"\\ud800\\u0041\""), false},
    {TEXT("\"\\ud800\\ud800\""), false},
    {TEXT("\"\\ud800x\""), false},
    {TEXT("\"\x80\""), false},
    {TEXT("\"\xC0\x80\""), false},
    {TEXT("\"\xC1\xBF\""), false},
    {TEXT("\"\xE0\x9F\xBF\""), false},
    {TEXT("\"\xED\xA0\x80\""), false},
    {TEXT("\"\xF0\x8F\xBF\xBF\""), false},
    {TEXT("\"\xF4\x90\x80\x80\""), false},
    {TEXT("\"\xF5\x80\x80\x80\""), false},
    {TEXT("\"\xE2\x82\""), false},
    {TEXT("\"\xC3"), false},
    {TEXT("\"\xFF\""), false},
    {TEXT("[1]\0"), false},
    {TEXT("\f1"), false},
};

static void edge_cases(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++) {
        const char *wrong = oracle_compare(edges[i].text, edges[i].len);
        if (wrong || accepts(edges[i].text, edges[i].len) != edges[i].good)
            fail_msg("%s: %s", edges[i].text, wrong ? wrong : "judged wrongly");
    }
}

/* Every sequence of up to four bytes over the bounds that UTF-8's table names. */
static void utf8_bounds(void **state)
{
    (void)state;
    static const unsigned char at[] = {'a',  0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0,
                                       0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF,
                                       0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xF7, 0xF8, 0xFF};
    static const unsigned char last[] = {'a', 0x80, 0xBF, 0xC0};
    size_t n = sizeof at, total = n * n * n * sizeof last;
    for (size_t i = 0; i < total; i++) {
        char text[6] = {'"',
                        (char)at[i % n],
                        (char)at[i / n % n],
                        (char)at[i / n / n % n],
                        (char)last[i / n / n / n],
                        '"'};
        json_t *v = json_loadb(text, 6, JSON_DECODE_ANY, NULL);
        if (accepts(text, 6) != (v != NULL))
            fail_msg("%02x %02x %02x %02x", text[1] & 255, text[2] & 255, text[3] & 255,
                     text[4] & 255);
        json_decref(v);
    }
}

static uint64_t rng_state;

static uint32_t random_below(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33) % n;
}

static void put(st_buf *out, const char *s)
{
    assert_int_equal(st_buf_puts(out, s), ST_OK);
}

static void random_space(st_buf *out)
{
    static const char *const spaces[] = {"", "", "", " ", "\n", "\t\r\n  "};
    put(out, spaces[random_below(6)]);
}

static void random_string(st_buf *out)
{
    static const char *const parts[] = {"a",
                                        "max_tokens",
                                        "\\\"",
                                        "\\\\",
                                        "\xC3\xA9",
                                        "\\u00e9",
                                        "\\n",
                                        "\xE6\x97\xA5",
                                        "\xF0\x9F\x98\x80",
                                        "\\ud83d\\ude00",
                                        "{[:,",
                                        "\\u0000x"};
    put(out, "\"");
    for (uint32_t i = random_below(12); i > 0; i--)
        put(out, parts[random_below(random_below(20) ? 11 : 12)]);
    put(out, "\"");
}

static void random_value(st_buf *out, int depth)
{
    static const char *const scalars[] = {
        "0", "-1", "12345678901234567", "1.5e-3", "true", "false", "null", "-0.0", "1E5", "99"};
    uint32_t kind = random_below(depth > 6 ? 4 : 8);
    random_space(out);
    if (kind < 2) {
        put(out, scalars[random_below(10)]);
    } else if (kind < 4) {
        random_string(out);
    } else {
        put(out, kind < 6 ? "[" : "{");
        uint32_t n = random_below(5);
        for (uint32_t i = 0; i < n; i++) {
            if (i)
                put(out, ",");
            if (kind >= 6) {
                random_space(out);
                random_string(out);
                random_space(out);
                put(out, ":");
            }
            random_value(out, depth + 1);
        }
        random_space(out);
        put(out, kind < 6 ? "]" : "}");
    }
    random_space(out);
}

/* Well-formed texts, then the same with bytes changed, taken out or put in. */
static void random_texts(void **state)
{
    (void)state;
    static const char bytes[] = "\"\\{}[]:,0 \n1e-u\x80\xE2\xF0\x01t";
    rng_state = 20260101;
    st_buf text = ST_BUF_INIT;
    for (int round = 0; round < 4000; round++) {
        st_buf_clear(&text);
        random_value(&text, 0);
        for (int mutation = 0; mutation < 6; mutation++) {
            const char *wrong = oracle_compare(text.data, text.len);
            if (wrong)
                fail_msg("round %d: %s: %s", round, wrong, text.data);
            uint32_t at = random_below((uint32_t)text.len), kind = random_below(3);
            if (kind == 0) {
                text.data[at] = bytes[random_below(sizeof bytes - 1)];
            } else if (kind == 1 && text.len > 1) {
                memmove(text.data + at, text.data + at + 1, text.len - at - 1);
                text.len--;
            } else {
                assert_int_equal(st_buf_putc(&text, ' '), ST_OK);
                memmove(text.data + at + 1, text.data + at, text.len - at - 1);
                text.data[at] = bytes[random_below(sizeof bytes - 1)];
            }
        }
    }
    st_buf_free(&text);
}

static void nesting(void **state)
{
    (void)state;
    enum { DEEP = 10000 };
    char *text = malloc(2 * DEEP);
    for (int depth = 1; depth <= DEEP; depth = depth < 200 ? depth + 1 : DEEP + (depth == DEEP)) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        assert_int_equal(accepts(text, 2 * (size_t)depth), depth <= ST_JSON_MAX_DEPTH);
        assert_false(accepts(text, 2 * (size_t)depth - 1));
        assert_false(accepts(text, (size_t)depth));
    }
    free(text);
    /* Objects and arrays by turns: which one closes is remembered at every depth. */
    st_buf b = ST_BUF_INIT;
    for (int i = 0; i < ST_JSON_MAX_DEPTH / 2; i++)
        put(&b, "[{\"k\":");
    put(&b, "1");
    for (int i = 0; i < ST_JSON_MAX_DEPTH / 2; i++)
        put(&b, "}]");
    assert_true(accepts(b.data, b.len));
    b.data[b.len - 2] = ']';
    assert_false(accepts(b.data, b.len));
    st_buf_free(&b);
}

/* Special bytes at every position of words and of the four-word rounds. */
static void positions(void **state)
{
    (void)state;
    static const char *const put_in[] = {"\\n",      "\xC3\xA9", "\xE6\x97\xA5", "\x01",
                                         "\xE6\x97", "\"",       "\\",           "\x7F"};
    char text[128];
    for (size_t len = 0; len < 100; len++) {
        for (size_t at = 0; at <= len; at++) {
            for (size_t i = 0; i < sizeof put_in / sizeof *put_in; i++) {
                int n = snprintf(text, sizeof text, "\"%.*s%s%.*s\"", (int)at,
                                 "abcdefghijklmnopqrstuvwxyz abcdefghijklmnopqrstuvwxyz "
                                 "abcdefghijklmnopqrstuvwxyz abcdefghijklmnopqrst",
                                 put_in[i], (int)(len - at),
                                 "ABCDEFGHIJKLMNOPQRSTUVWXYZ ABCDEFGHIJKLMNOPQRSTUVWXYZ "
                                 "ABCDEFGHIJKLMNOPQRSTUVWXYZ ABCDEFGHIJKLMNOPQRST");
                const char *wrong = oracle_compare(text, (size_t)n);
                if (wrong)
                    fail_msg("%s: %s", wrong, text);
            }
        }
    }
}

static void long_string(void **state)
{
    (void)state;
    size_t len = (size_t)64 << 20;
    char *text = malloc(len);
    memset(text, 'x', len);
    text[0] = text[len - 1] = '"';
    assert_true(accepts(text, len));
    text[len - 2] = '\\';
    assert_false(accepts(text, len));
    text[len - 2] = '\x80';
    assert_false(accepts(text, len));
    text[len - 2] = 'x';
    assert_false(accepts(text, len - 1));
    free(text);
}

static void tokens(void **state)
{
    (void)state;
    static const char text[] = "{\"a\\u0062\": [1, -7], \"max_tokens\" :\"max_tokens\", \"c\":{}}";
    st_json_scan s;
    st_span value;
    int64_t v;
    st_json_scan_init(&s, text, sizeof text - 1);
    assert_int_equal(st_json_next(&s), ST_JSON_OBJECT);
    assert_int_equal(st_json_next(&s), ST_JSON_KEY);
    assert_true(s.escaped && st_json_text_is(&s, "ab"));
    assert_false(st_json_text_is(&s, "a") || st_json_text_is(&s, "abc"));
    assert_int_equal(st_json_next(&s), ST_JSON_ARRAY);
    assert_int_equal(s.depth, 2);
    assert_int_equal(st_json_next(&s), ST_JSON_NUMBER);
    assert_true(st_json_int64(&s, &v) && v == 1);
    assert_int_equal(st_json_next(&s), ST_JSON_NUMBER);
    assert_true(st_json_int64(&s, &v) && v == -7);
    assert_int_equal(st_json_next(&s), ST_JSON_ARRAY_END);
    assert_int_equal(st_json_next(&s), ST_JSON_KEY);
    assert_true(st_json_text_is(&s, "max_tokens"));
    assert_int_equal(st_json_next(&s), ST_JSON_STRING);
    assert_int_equal(st_json_skip(&s, ST_JSON_STRING, &value), ST_OK);
    assert_memory_equal(text + value.begin, "\"max_tokens\"", value.end - value.begin);
    assert_int_equal(st_json_next(&s), ST_JSON_KEY);
    st_json_token first = st_json_next(&s);
    assert_int_equal(st_json_skip(&s, first, &value), ST_OK);
    assert_memory_equal(text + value.begin, "{}", value.end - value.begin);
    assert_int_equal(st_json_next(&s), ST_JSON_OBJECT_END);
    assert_int_equal(st_json_next(&s), ST_JSON_END);
    assert_int_equal(st_json_next(&s), ST_JSON_END);
}

static void integers(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool fits;
        int64_t v;
    } cases[] = {
        {"0", true, 0},
        {"-0", true, 0},
        {"9223372036854775807", true, INT64_MAX},
        {"-9223372036854775808", true, INT64_MIN},
        {"9223372036854775808", false, 0},
        {"-9223372036854775809", false, 0},
        {"99999999999999999999999", false, 0},
        {"1.0", false, 0},
        {"1e3", false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_json_scan s;
        int64_t v = 0;
        st_json_scan_init(&s, cases[i].text, strlen(cases[i].text));
        assert_int_equal(st_json_next(&s), ST_JSON_NUMBER);
        assert_int_equal(st_json_int64(&s, &v), cases[i].fits);
        assert_true(v == cases[i].v);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(edge_cases), cmocka_unit_test(utf8_bounds), cmocka_unit_test(random_texts),
        cmocka_unit_test(nesting),    cmocka_unit_test(positions),   cmocka_unit_test(long_string),
        cmocka_unit_test(tokens),     cmocka_unit_test(integers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
