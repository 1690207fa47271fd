/* src/base/json_splice: edits leave every other byte as it was, and jansson reads the result. */
#include "cmocka_all.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_splice.h"

static st_splice *make(const char *text)
{
    st_splice *s;
    st_error err;
    if (st_splice_new(text, strlen(text), &s, &err))
        fail_msg("%s: %s", text, err.text);
    return s;
}

/* edits: "key=json" sets, "-key" removes. */
static void exact_bytes(void **state)
{
    (void)state;
    static const struct {
        const char *text, *edits[4], *result;
    } cases[] = {
        {" { \"a\" : 1 , \"b\":2 }\n", {NULL}, " { \"a\" : 1 , \"b\":2 }\n"},
        {" { \"a\" : 1 , \"b\":2 }\n", {"a=[7]"}, " { \"a\" : [7] , \"b\":2 }\n"},
        {" { \"a\" : 1 , \"b\":2 }\n", {"-a"}, " {\"b\":2 }\n"},
        {" { \"a\" : 1 , \"b\":2 }\n", {"-b"}, " { \"a\" : 1 }\n"},
        {" { \"a\" : 1 , \"b\":2 }\n", {"-a", "-b"}, " { }\n"},
        {"{\"a\":1,\"b\":2,\"c\":3}", {"-a", "-b"}, "{\"c\":3}"},
        {"{\"a\":1,\"b\":2,\"c\":3}", {"-b", "-c"}, "{\"a\":1}"},
        {"{\"a\":1,\"b\":2,\"c\":3}", {"-b", "c=0"}, "{\"a\":1,\"c\":0}"},
        {"{\"a\":1,\"b\":2,\"c\":3}", {"-a", "-c", "d=4"}, "{\"b\":2,\"d\":4}"},
        {"{\"a\":1}", {"-a", "d=4", "e=5"}, "{\"d\":4,\"e\":5}"},
        {"{}", {"d=4", "e=5"}, "{\"d\":4,\"e\":5}"},
        {"{ }", {"d=4"}, "{\"d\":4 }"},
        {"{}", {"-x"}, "{}"},
        {"{\"a\":\"max_tokens\\\":\",\"max_tokens\":9}",
         {"max_tokens=1"},
         "{\"a\":\"max_tokens\\\":\",\"max_tokens\":1}"},
        {"{\"m\":{\"max_tokens\":5}}",
         {"max_tokens=1"},
         "{\"m\":{\"max_tokens\":5},\"max_tokens\":1}"},
        {"{\"\\u0061\":1}", {"a=2"}, "{\"\\u0061\":2}"},
        {"{\"a\":1}", {"q\"=2"}, "{\"a\":1,\"q\\\"\":2}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_splice *s = make(cases[i].text);
        for (int again = 0; again < 2; again++) {
            st_buf out = ST_BUF_INIT;
            for (int e = 0; e < 4 && cases[i].edits[e]; e++) {
                const char *edit = cases[i].edits[e], *eq = strchr(edit, '=');
                char key[32];
                snprintf(key, sizeof key, "%.*s", (int)(eq ? eq - edit : 0), edit);
                assert_int_equal(eq ? st_splice_set(s, key, eq + 1, strlen(eq + 1))
                                    : st_splice_remove(s, edit + 1),
                                 ST_OK);
            }
            assert_int_equal(st_splice_apply(s, &out), ST_OK);
            assert_string_equal(out.data, cases[i].result);
            st_buf_free(&out);
            st_splice_reset(s);
        }
        st_splice_free(s);
    }
}

static void once_only(void **state)
{
    (void)state;
    st_splice *s = make("{\"a\":1,\"b\":2}");
    assert_int_equal(st_splice_set(s, "a", "3", 1), ST_OK);
    assert_int_equal(st_splice_set(s, "a", "4", 1), ST_EINVAL);
    assert_int_equal(st_splice_remove(s, "a"), ST_EINVAL);
    assert_int_equal(st_splice_set(s, "n", "3", 1), ST_OK);
    assert_int_equal(st_splice_set(s, "n", "4", 1), ST_EINVAL);
    assert_int_equal(st_splice_remove(s, "n"), ST_EINVAL);
    assert_null(st_splice_find(s, "n"));
    assert_int_equal(st_splice_count(s), 2);
    st_splice_free(s);
}

static void members(void **state)
{
    (void)state;
    st_splice *s =
        make("{\"s\":\"x\\ny\",\"t\":true,\"i\":-12,\"r\":1.5,\"o\":{\"k\":[1]},\"f\":false}");
    st_buf text = ST_BUF_INIT;
    int64_t v = 0;
    assert_int_equal(st_member_text(s, st_splice_find(s, "s"), &text), ST_OK);
    assert_string_equal(text.data, "x\ny");
    assert_int_equal(st_member_text(s, st_splice_find(s, "t"), &text), ST_EINVAL);
    assert_true(st_member_is_true(s, st_splice_find(s, "t")));
    assert_false(st_member_is_true(s, st_splice_find(s, "f")));
    assert_true(st_member_int64(s, st_splice_find(s, "i"), &v) && v == -12);
    assert_false(st_member_int64(s, st_splice_find(s, "r"), &v));
    assert_false(st_member_int64(s, st_splice_find(s, "s"), &v));
    const st_member *o = st_splice_find(s, "o");
    assert_int_equal(o->type, ST_JSON_OBJECT);
    assert_memory_equal(st_splice_text(s) + o->value.begin, "{\"k\":[1]}",
                        o->value.end - o->value.begin);
    assert_null(st_splice_find(s, "k"));
    assert_ptr_equal(st_splice_member(s, 4), o);
    st_buf_free(&text);
    st_splice_free(s);
}

static void refusals(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        st_status status;
        const char *says;
    } cases[] = {
        {"", ST_EFORMAT, "line 1, column 1"},
        {"[1]", ST_EFORMAT, "not a JSON object"},
        {"{\"a\":1}x", ST_EFORMAT, "byte 7"},
        {"{\n\"a\":\n 1,,}", ST_EFORMAT, "line 3, column 4"},
        {"{\"a\":1,\"b\":2,\"a\":3}", ST_EINVAL, "'a' is there twice"},
        {"{\"a\":1,\"\\u0061\":3}", ST_EINVAL, "'a' is there twice"},
        {"{\"a\":{\"b\":1,\"b\":2}", ST_EFORMAT, "ends within"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_splice *s;
        st_error err;
        assert_int_equal(st_splice_new(cases[i].text, strlen(cases[i].text), &s, &err),
                         cases[i].status);
        assert_null(s);
        if (!strstr(err.text, cases[i].says))
            fail_msg("%s: %s", cases[i].text, err.text);
    }
}

static void too_many(void **state)
{
    (void)state;
    for (int n = ST_SPLICE_MAX_MEMBERS; n <= ST_SPLICE_MAX_MEMBERS + 1; n++) {
        st_buf text = ST_BUF_INIT;
        st_splice *s;
        st_error err;
        for (int i = 0; i < n; i++)
            assert_int_equal(st_buf_printf(&text, "%c\"k%d\":%d", i ? ',' : '{', i, i), ST_OK);
        assert_int_equal(st_buf_putc(&text, '}'), ST_OK);
        assert_int_equal(st_splice_new(text.data, text.len, &s, &err),
                         n == ST_SPLICE_MAX_MEMBERS ? ST_OK : ST_EINVAL);
        st_splice_free(s);
        st_buf_free(&text);
    }
}

static uint32_t rng = 7;

static uint32_t random_below(uint32_t n)
{
    rng = rng * 1664525u + 1013904223u;
    return (rng >> 8) % n;
}

/* Random edits of random objects: jansson reads the result as the tree with the same edits. */
static void random_edits(void **state)
{
    (void)state;
    for (int round = 0; round < 3000; round++) {
        json_t *tree = json_object();
        char key[32], value[64];
        for (uint32_t i = random_below(8); i > 0; i--) {
            snprintf(key, sizeof key, "k%u%s", random_below(10), i % 2 ? "\"" : "");
            json_object_set_new(tree, key, i % 3 ? json_integer(i) : json_string(key));
        }
        char *text = json_dumps(tree, round % 2 ? JSON_INDENT(2) : JSON_COMPACT);
        st_splice *s = make(text);
        for (uint32_t i = 0; i < 10; i++) {
            snprintf(key, sizeof key, "k%u%s", i, random_below(2) ? "\"" : "");
            uint32_t what = random_below(3);
            snprintf(value, sizeof value, "[%u]", i);
            if (what == 1) {
                assert_int_equal(st_splice_set(s, key, value, strlen(value)), ST_OK);
                json_object_set_new(tree, key, json_loads(value, 0, NULL));
            } else if (what == 2) {
                assert_int_equal(st_splice_remove(s, key), ST_OK);
                json_object_del(tree, key);
            }
        }
        st_buf out = ST_BUF_INIT;
        assert_int_equal(st_splice_apply(s, &out), ST_OK);
        json_t *back = json_loadb(out.data, out.len, JSON_REJECT_DUPLICATES, NULL);
        if (!back || !json_equal(back, tree))
            fail_msg("%s -> %s", text, out.data);
        json_decref(back);
        json_decref(tree);
        st_buf_free(&out);
        st_splice_free(s);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_bytes), cmocka_unit_test(once_only), cmocka_unit_test(members),
        cmocka_unit_test(refusals),    cmocka_unit_test(too_many),  cmocka_unit_test(random_edits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
