/* Chat templates: what the differential test against Jinja2 (tests/oracle/template_compare.py)
 * cannot show: limits, statuses, error texts, loading, threads. */
#include "cmocka_all.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "starling/chat_template.h"

static st_status render(const char *text, const char *context, st_buf *out, st_error *err)
{
    st_chat_template *t;
    st_status st = st_chat_template_parse("test", text, strlen(text), &t, err);
    if (st) {
        assert_null(t);
        return st;
    }
    json_t *c = json_loads(context, 0, NULL);
    assert_non_null(c);
    st = st_chat_template_render(t, c, 0, out, err);
    json_decref(c);
    st_chat_template_free(t);
    return st;
}

static void expect_text(const char *text, const char *context, const char *expected)
{
    st_buf out = ST_BUF_INIT;
    st_error err = {.text = ""};
    st_status st = render(text, context, &out, &err);
    if (st)
        fail_msg("%s: %s", text, err.text);
    assert_string_equal(out.data ? out.data : "", expected);
    st_buf_free(&out);
}

static void expect_error(const char *text, st_status status, const char *part)
{
    st_buf out = ST_BUF_INIT;
    st_error err = {.text = ""};
    assert_int_equal(render(text, "{}", &out, &err), status);
    assert_int_equal(err.status, status);
    if (!strstr(err.text, part))
        fail_msg("'%s' says '%s', without '%s'", text, err.text, part);
    assert_int_equal(out.len, 0);
    st_buf_free(&out);
}

static void renders_a_conversation(void **state)
{
    (void)state;
    expect_text("{% for m in messages %}\n<{{ m.role }}>{{ m['content'] | trim }}\n{% endfor %}\n"
                "{% if add_generation_prompt %}<assistant>{% endif %}",
                "{\"messages\": [{\"role\": \"user\", \"content\": \" h\\u00e9 \"}],"
                " \"add_generation_prompt\": true}",
                "<user>h\xC3\xA9\n<assistant>");
}

static void appends_to_the_output(void **state)
{
    (void)state;
    st_buf out = ST_BUF_INIT;
    assert_int_equal(st_buf_puts(&out, "before "), ST_OK);
    assert_int_equal(render("{{ x }}", "{\"x\": [1, null, true, \"a\"]}", &out, NULL), ST_OK);
    assert_string_equal(out.data, "before [1, None, True, 'a']");
    assert_int_equal(render("{{ x }}{{ 1 / 0 }}", "{\"x\": 1}", &out, NULL), ST_EFORMAT);
    assert_string_equal(out.data, "before [1, None, True, 'a']");
    st_buf_free(&out);
}

static void tools_are_none_unless_given(void **state)
{
    (void)state;
    expect_text("{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}", "{}",
                "True True False");
    expect_text("{{ tools is none }}", "{\"tools\": []}", "False");
}

static void what_a_template_raises_is_passed_on(void **state)
{
    (void)state;
    expect_error("a{{ raise_exception('Roles must alternate: ' ~ 3) }}", ST_EINVAL,
                 "Roles must alternate: 3");
    st_buf out = ST_BUF_INIT;
    st_error err;
    assert_int_equal(render("{{ raise_exception('only this') }}", "{}", &out, &err), ST_EINVAL);
    assert_string_equal(err.text, "only this");
    st_buf_free(&out);
}

static void errors_name_template_and_line(void **state)
{
    (void)state;
    expect_error("a\n\n{{ 1 + 'x' }}", ST_EFORMAT, "test, line 3: '+' does not work on 'int'");
    expect_error("a\n{{ x.y }}", ST_EFORMAT, "test, line 2: 'x' is undefined");
    expect_error("{{ messages }}\n{{ tools.name.first }}", ST_EFORMAT,
                 "line 2: 'NoneType object' has no attribute 'name'");
    expect_error("\n{% if x %}", ST_EFORMAT, "line 2: the template ends where");
    expect_error("\n{% fi %}", ST_EFORMAT, "line 2: there is no statement 'fi'");
    expect_error("{{ x | nope }}", ST_EFORMAT, "there is no filter named 'nope'");
    expect_error("{{ x is nope }}", ST_EFORMAT, "there is no test named 'nope'");
    expect_error("{% include 'x' %}", ST_EFORMAT, "'{% include %}' is not supported");
    expect_error("{{ 'abc }}", ST_EFORMAT, "a string is not closed");
    expect_error("{{ (1 }}", ST_EFORMAT, "unexpected '}'");
    expect_error("{{ [].append(1) }}", ST_EFORMAT, "'append'");
    expect_error("a\xFF", ST_EFORMAT, "not valid UTF-8");
}

static void endless_templates_are_stopped(void **state)
{
    (void)state;
    expect_error("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
                 ST_EDEADLINE, "runs too long");
    expect_error("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", ST_EFORMAT, "deep");
    expect_error("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", ST_EFORMAT, "deep");
    expect_error("{% set n = namespace(x=[]) %}{% for i in range(5000) %}{% set n.x = [n.x] %}"
                 "{% endfor %}{{ n.x }}",
                 ST_EFORMAT, "deep");
    expect_error("{% set n = namespace() %}{% set n.x = n %}{{ n }}", ST_EFORMAT, "deep");
    expect_error("{{ range(100001) }}", ST_EFORMAT, "longer than 100000");
}

static void hungry_templates_are_stopped(void **state)
{
    (void)state;
    expect_error("{{ 'a' * 100000000 }}", ST_ENOMEM, "limit");
    expect_error("{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}"
                 "{% endfor %}",
                 ST_ENOMEM, "");
    expect_error("{% for i in range(100000) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' * 50 }}"
                 "{% endfor %}",
                 ST_ENOMEM, "");
    expect_error("{{ [1] * 100000000 }}", ST_ENOMEM, "");
    expect_error("{{ '%99999999d' % 1 }}", ST_EFORMAT, "width");
    expect_error("{{ 'x'.center(999999999) }}", ST_EDEADLINE, "");
}

static void deep_nesting_is_refused(void **state)
{
    (void)state;
    enum { N = 100000 };
    static const char *const open[] = {"(", "[", "-", "not ", "{% if x %}", "x[", "f(", "{1:"};
    for (size_t k = 0; k < sizeof open / sizeof *open; k++) {
        st_buf text = ST_BUF_INIT;
        bool block = open[k][0] == '{' && open[k][1] == '%';
        assert_int_equal(st_buf_puts(&text, block ? "" : "{{ "), ST_OK);
        for (int i = 0; i < N; i++)
            assert_int_equal(st_buf_puts(&text, open[k]), ST_OK);
        st_error err;
        st_chat_template *t;
        assert_int_equal(st_chat_template_parse("deep", text.data, text.len, &t, &err), ST_EFORMAT);
        assert_non_null(strstr(err.text, "deep"));
        st_buf_free(&text);
    }
    /* Long chains are not deep for the parser, but for the evaluator. */
    st_buf text = ST_BUF_INIT;
    assert_int_equal(st_buf_puts(&text, "{{ 1"), ST_OK);
    for (int i = 0; i < N; i++)
        assert_int_equal(st_buf_puts(&text, " + 1"), ST_OK);
    assert_int_equal(st_buf_puts(&text, " }}"), ST_OK);
    expect_error(text.data, ST_EFORMAT, "deep");
    st_buf_free(&text);
}

static void growing_strings_in_a_loop_is_linear(void **state)
{
    (void)state;
    /* 100,000 appends of 20 bytes: copied each time they would be 100 GB. */
    expect_text("{% set n = namespace(s='') %}{% for i in range(100000) %}"
                "{% set n.s = n.s + 'abcdefghijklmnopqrst' %}{% endfor %}{{ n.s | length }}",
                "{}", "2000000");
    expect_text("{% set a = 'x' + 'y' %}{% set b = a + '1' %}{% set c = a + '2' %}"
                "{{ a }}{{ b }}{{ c }}",
                "{}", "xyxy1xy2");
}

static void strftime_uses_the_given_time(void **state)
{
    (void)state;
    st_chat_template *t;
    static const char text[] = "{{ strftime_now('%Y-%m-%d %H:%M') }}";
    assert_int_equal(st_chat_template_parse("t", text, strlen(text), &t, NULL), ST_OK);
    json_t *c = json_object();
    st_buf out = ST_BUF_INIT;
    setenv("TZ", "UTC", 1);
    tzset();
    assert_int_equal(st_chat_template_render(t, c, 86400 * 365, &out, NULL), ST_OK);
    assert_string_equal(out.data, "1971-01-01 00:00");
    st_buf_free(&out);
    json_decref(c);
    st_chat_template_free(t);
}

/* --- loading ------------------------------------------------------------------------------- */

static void write_file(const char *dir, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
}

static void loaded_text(const char *dir, const char *context, const char *expected)
{
    st_chat_template *t;
    st_error err;
    if (st_chat_template_load(dir, &t, &err))
        fail_msg("%s", err.text);
    json_t *c = json_loads(context, 0, NULL);
    st_buf out = ST_BUF_INIT;
    assert_int_equal(st_chat_template_render(t, c, 0, &out, &err), ST_OK);
    assert_string_equal(out.data, expected);
    st_buf_free(&out);
    json_decref(c);
    st_chat_template_free(t);
}

static void templates_are_found(void **state)
{
    (void)state;
    char dir[] = "/tmp/starling-template-XXXXXX", cmd[600];
    st_chat_template *t;
    st_error err;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(st_chat_template_load(dir, &t, &err), ST_ENOTFOUND);
    assert_non_null(strstr(err.text, "no chat template"));
    write_file(dir, "tokenizer_config.json", "{\"bos_token\": \"<s>\"}");
    assert_int_equal(st_chat_template_load(dir, &t, &err), ST_ENOTFOUND);
    write_file(dir, "tokenizer_config.json",
               "{\"model_max_length\": 1000000000000000019884624838656,"
               " \"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"},"
               " \"pad_token\": null, \"chat_template\":"
               " \"{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}\"}");
    loaded_text(dir, "{}", "<s></s>False");
    loaded_text(dir, "{\"bos_token\": \"B\"}", "B</s>False");
    write_file(dir, "tokenizer_config.json",
               "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"no\"},"
               " {\"name\": \"default\", \"template\": \"yes\"}]}");
    loaded_text(dir, "{}", "yes");
    write_file(dir, "chat_template.jinja", "file\n");
    loaded_text(dir, "{}", "file");
    write_file(dir, "chat_template.jinja", "\n{{");
    assert_int_equal(st_chat_template_load(dir, &t, &err), ST_EFORMAT);
    assert_non_null(strstr(err.text, "chat_template.jinja, line 2"));
    write_file(dir, "tokenizer_config.json", "[1");
    assert_int_equal(st_chat_template_load(dir, &t, &err), ST_EFORMAT);
    assert_non_null(strstr(err.text, "tokenizer_config.json"));
    snprintf(cmd, sizeof cmd, "rm '%s/chat_template.jinja' && mkfifo '%s/chat_template.jinja'", dir,
             dir);
    assert_int_equal(system(cmd), 0);
    write_file(dir, "tokenizer_config.json", "{}");
    assert_int_equal(st_chat_template_load(dir, &t, &err), ST_EIO);
    assert_non_null(strstr(err.text, "chat_template.jinja: not a regular file"));
    snprintf(cmd, sizeof cmd, "rm -r '%s'", dir);
    assert_int_equal(system(cmd), 0);
}

/* --- threads ------------------------------------------------------------------------------- */

typedef struct job {
    const st_chat_template *t;
    int n;
    bool ok;
} job;

static void *render_often(void *arg)
{
    job *j = arg;
    char context[64], expected[64];
    snprintf(context, sizeof context, "{\"n\": %d}", j->n);
    snprintf(expected, sizeof expected, "%d,%d,%d,", j->n, j->n + 1, j->n + 2);
    json_t *c = json_loads(context, 0, NULL);
    j->ok = true;
    for (int i = 0; i < 500; i++) {
        st_buf out = ST_BUF_INIT;
        j->ok = j->ok && !st_chat_template_render(j->t, c, 0, &out, NULL) &&
                strcmp(out.data, expected) == 0;
        st_buf_free(&out);
    }
    json_decref(c);
    return NULL;
}

static void threads_share_a_template(void **state)
{
    (void)state;
    static const char text[] = "{% macro m(x) %}{{ x }},{% endmacro %}"
                               "{% for i in range(3) %}{% set y = n + i %}{{ m(y) }}{% endfor %}";
    st_chat_template *t;
    pthread_t threads[4];
    job jobs[4];
    assert_int_equal(st_chat_template_parse("t", text, strlen(text), &t, NULL), ST_OK);
    for (int i = 0; i < 4; i++) {
        jobs[i] = (job){t, i * 100, false};
        assert_int_equal(pthread_create(&threads[i], NULL, render_often, &jobs[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_true(jobs[i].ok);
    }
    st_chat_template_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(renders_a_conversation),
        cmocka_unit_test(appends_to_the_output),
        cmocka_unit_test(tools_are_none_unless_given),
        cmocka_unit_test(what_a_template_raises_is_passed_on),
        cmocka_unit_test(errors_name_template_and_line),
        cmocka_unit_test(endless_templates_are_stopped),
        cmocka_unit_test(hungry_templates_are_stopped),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(growing_strings_in_a_loop_is_linear),
        cmocka_unit_test(strftime_uses_the_given_time),
        cmocka_unit_test(templates_are_found),
        cmocka_unit_test(threads_share_a_template),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
