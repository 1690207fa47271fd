/* src/base: buffers, UTF-8, arena, status, dtypes. */
#include "cmocka_all.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/checked.h"
#include "base/regular_file.h"
#include "base/utf8.h"
#include "starling/buf.h"
#include "starling/dtype.h"

static void json_string_escapes(void **state)
{
    (void)state;
    st_buf b = ST_BUF_INIT;
    assert_int_equal(st_buf_json_string(&b, "a\"\\\n\x01\xE4\xBD\xA0\xFF\xE4\xBD", 11), ST_OK);
    assert_string_equal(b.data, "\"a\\\"\\\\\\n\\u0001\xE4\xBD\xA0\xEF\xBF\xBD\xEF\xBF\xBD\"");
    st_buf_free(&b);
}

static void utf8_bad_sequences_have_maximal_length(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n, used;
    } cases[] = {
        {"\x80", 1, 1},         {"\xC0\x80", 2, 1},     {"\xE0\x80\x80", 3, 1},
        {"\xED\xA0\x80", 3, 1}, {"\xF4\x90\x80", 3, 1}, {"\xE4\xBD", 2, 2},
        {"\xF0\x9F\x90", 3, 3}, {"\xF0\x9F\x41", 3, 2}, {"\xF5\x80\x80", 3, 1},
        {"\xE4\xBD\x41", 3, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t cp;
        assert_int_equal(st_utf8_decode(cases[i].bytes, cases[i].n, &cp), cases[i].used);
        assert_int_equal(cp, ST_UTF8_BAD);
    }
}

static void utf8_every_character_round_trips(void **state)
{
    (void)state;
    for (uint32_t cp = 0; cp <= 0x10FFFF; cp++) {
        char s[4];
        size_t n = st_utf8_encode(cp, s);
        if (cp >= 0xD800 && cp < 0xE000) {
            assert_int_equal(n, 0);
            continue;
        }
        uint32_t back;
        assert_int_equal(st_utf8_decode(s, n, &back), n);
        assert_int_equal(back, cp);
        assert_int_equal(st_utf8_incomplete_tail(s, n), 0);
        for (size_t cut = 1; cut < n; cut++)
            assert_int_equal(st_utf8_incomplete_tail(s, cut), cut);
    }
}

static void arena_is_zeroed_aligned_and_resets(void **state)
{
    (void)state;
    st_arena *a = st_arena_new(256);
    assert_non_null(a);
    for (int round = 0; round < 2; round++) {
        for (size_t n = 0; n < 1000; n += 37) {
            unsigned char *p = st_arena_alloc(a, n);
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % 64, 0);
            for (size_t i = 0; i < n; i++)
                assert_int_equal(p[i], 0);
            memset(p, 0xAA, n);
        }
        st_arena_reset(a);
        assert_int_equal(st_arena_used(a), 0);
    }
    assert_null(st_arena_alloc(a, SIZE_MAX));
    st_arena_free(a);
}

static void errors_are_cut_at_a_character(void **state)
{
    (void)state;
    st_error e;
    char text[2048];
    memset(text, 'x', sizeof text);
    text[1022] = '\xE4';
    text[1023] = '\xBD';
    text[1024] = '\xA0';
    text[2047] = '\0';
    assert_int_equal(st_fail(&e, ST_EINVAL, "%s", text), ST_EINVAL);
    assert_int_equal(strlen(e.text), 1022);
    assert_int_equal(st_fail_prefix(&e, ST_EIO, "file"), ST_EINVAL);
    assert_memory_equal(e.text, "file: xxx", 9);
}

static void dtypes_have_names(void **state)
{
    (void)state;
    for (int t = 0; t < ST_DTYPE_COUNT; t++) {
        const char *name = st_dtype_name((st_dtype)t);
        assert_int_equal(st_dtype_from_name(name, strlen(name)), t);
    }
    assert_int_equal(st_dtype_from_name("F3", 2), ST_DTYPE_COUNT);
    assert_int_equal(st_dtype_from_name("BF16 ", 5), ST_DTYPE_COUNT);
}

static void checked_sizes(void **state)
{
    (void)state;
    size_t r;
    assert_true(st_mul_size(3, 4, &r) && r == 12);
    assert_false(st_mul_size(SIZE_MAX, 2, &r));
    assert_false(st_add_size(SIZE_MAX, 1, &r));
}

/* What is no file of bytes is refused at once; a pipe without a writer too. */
static void only_regular_files_are_opened(void **state)
{
    (void)state;
    char dir[] = "/tmp/starling-files-XXXXXX", pipe[64], missing[64], below[64];
    struct stat info;
    st_error err;
    FILE *f;
    int fd;
    assert_non_null(mkdtemp(dir));
    snprintf(pipe, sizeof pipe, "%s/pipe", dir);
    snprintf(missing, sizeof missing, "%s/missing", dir);
    snprintf(below, sizeof below, "%s/pipe/below", dir);
    assert_int_equal(mkfifo(pipe, 0600), 0);
    const char *const bad[] = {pipe, dir, "/dev/null"};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(st_regular_file_open(bad[i], &fd, &info, &err), ST_EIO);
        assert_non_null(strstr(err.text, ": not a regular file"));
        assert_memory_equal(err.text, bad[i], strlen(bad[i]));
        assert_int_equal(fd, -1);
        assert_int_equal(st_regular_file_stream(bad[i], &f, NULL), ST_EIO);
        assert_null(f);
    }
    assert_int_equal(st_regular_file_stream(missing, &f, &err), ST_ENOTFOUND);
    assert_non_null(strstr(err.text, "/missing: cannot be opened: No such file"));
    assert_int_equal(st_regular_file_stream(below, &f, &err), ST_ENOTFOUND);
    assert_int_equal(st_regular_file_stream("/proc/self/exe", &f, &err), ST_OK);
    assert_int_equal(fgetc(f), 0x7F);
    fclose(f);
    unlink(pipe);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_string_escapes),
        cmocka_unit_test(utf8_bad_sequences_have_maximal_length),
        cmocka_unit_test(utf8_every_character_round_trips),
        cmocka_unit_test(arena_is_zeroed_aligned_and_resets),
        cmocka_unit_test(errors_are_cut_at_a_character),
        cmocka_unit_test(dtypes_have_names),
        cmocka_unit_test(checked_sizes),
        cmocka_unit_test(only_regular_files_are_opened),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
