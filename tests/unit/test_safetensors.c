/* Safetensors containers: what is read from good ones, and what each malformed one is refused
 * with. */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/checkpoint.h"

/* An allocation of exactly the file's size, so that a sanitizer sees any read past the end. */
typedef struct file {
    unsigned char *bytes;
    size_t len;
} file;

static file make(const char *header, uint64_t claimed, size_t data_len)
{
    size_t n = strlen(header);
    file f = {malloc(8 + n + data_len + 1), 8 + n + data_len};
    assert_non_null(f.bytes);
    for (int i = 0; i < 8; i++)
        f.bytes[i] = (unsigned char)(claimed >> (8 * i));
    memcpy(f.bytes + 8, header, n);
    for (size_t i = 0; i < data_len; i++)
        f.bytes[8 + n + i] = (unsigned char)i;
    f.bytes = realloc(f.bytes, f.len);
    assert_non_null(f.bytes);
    return f;
}

typedef struct seen {
    int n;
    char names[8][32];
    st_tensor t[8];
    const file *f;
} seen;

static st_status note(void *user, const st_tensor *t)
{
    seen *s = user;
    const unsigned char *p = t->data;
    assert_true(p >= s->f->bytes && p + t->bytes <= s->f->bytes + s->f->len);
    if (s->n < 8) {
        snprintf(s->names[s->n], sizeof s->names[0], "%s", t->name);
        s->t[s->n] = *t;
    }
    s->n++;
    return ST_OK;
}

static st_status parse(const file *f, seen *s, st_error *err)
{
    memset(s, 0, sizeof *s);
    s->f = f;
    return st_safetensors_parse("x.safetensors", f->bytes, f->len, note, s, err);
}

static const char good[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
    "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
    "\"empty\":{\"dtype\":\"I8\",\"shape\":[0,7],\"data_offsets\":[16,16]},"
    "\"c\":{\"data_offsets\":[16,19],\"dtype\":\"F8_E4M3\",\"shape\":[1,1,3,1]}}   ";

static void a_good_file_is_read_in_offset_order(void **state)
{
    (void)state;
    file f = make(good, sizeof good - 1, 19);
    seen s;
    st_error err = {0};
    assert_int_equal(parse(&f, &s, &err), ST_OK);
    assert_int_equal(s.n, 4);
    static const char *const names[] = {"a", "b", "empty", "c"};
    for (int i = 0; i < 4; i++)
        assert_string_equal(s.names[i], names[i]);
    assert_int_equal(s.t[0].rank, 0);
    assert_int_equal(s.t[0].bytes, 4);
    assert_int_equal(s.t[1].dtype, ST_BF16);
    assert_int_equal(s.t[1].shape[0], 2);
    assert_int_equal(s.t[1].shape[1], 3);
    assert_int_equal(((const unsigned char *)s.t[1].data)[0], 4);
    assert_int_equal(s.t[3].dtype, ST_F8_E4M3);
    assert_int_equal(s.t[3].rank, 4);
    free(f.bytes);
}

static void an_empty_header_is_a_file_without_tensors(void **state)
{
    (void)state;
    file f = make("{}", 2, 0);
    seen s;
    st_error err = {0};
    assert_int_equal(parse(&f, &s, &err), ST_OK);
    assert_int_equal(s.n, 0);
    free(f.bytes);
}

static void every_truncation_is_an_error(void **state)
{
    (void)state;
    file whole = make(good, sizeof good - 1, 19);
    for (size_t len = 0; len < whole.len; len++) {
        file cut = {malloc(len ? len : 1), len};
        assert_non_null(cut.bytes);
        memcpy(cut.bytes, whole.bytes, len);
        seen s;
        st_error err = {0};
        assert_int_equal(parse(&cut, &s, &err), ST_EFORMAT);
        assert_non_null(strstr(err.text, "x.safetensors: "));
        free(cut.bytes);
    }
    free(whole.bytes);
}

/* Any single changed byte either is refused or leaves every tensor inside the file (note checks).
 */
static void every_changed_byte_is_survived(void **state)
{
    (void)state;
    static const unsigned char values[] = {0, '"', '0', '9', '[', '}', ',', ' ', 0x80, 0xFF};
    file f = make(good, sizeof good - 1, 19);
    int refused = 0;
    for (size_t i = 0; i < f.len; i++)
        for (size_t v = 0; v < sizeof values; v++) {
            unsigned char old = f.bytes[i];
            seen s;
            st_error err = {0};
            f.bytes[i] = values[v];
            st_status status = parse(&f, &s, &err);
            if (status) {
                refused++;
                assert_int_equal(err.status, status);
            }
            f.bytes[i] = old;
        }
    assert_true(refused > 1000);
    free(f.bytes);
}

#define T(dtype, shape, offsets)                                                                   \
    "{\"t\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define TWO(first, second)                                                                         \
    "{\"a\":{\"dtype\":\"U8\",\"shape\":" first "},\"b\":{\"dtype\":\"U8\",\"shape\":" second "}}"

static const struct {
    const char *header;
    uint64_t claimed; /* 0: the header's true length */
    size_t data_len;
    st_status status;
    const char *text;
} bad[] = {
    /* The length field */
    {"{}", 3, 0, ST_EFORMAT, "claims 3 bytes but only 2 follow"},
    {"{}", 1, 0, ST_EFORMAT, "not a JSON object"},
    {"{}", UINT64_MAX, 0, ST_EFORMAT, "at most 100000000 are allowed"},
    {"{}", 100000001, 0, ST_EFORMAT, "at most 100000000 are allowed"},
    {"{}", 100000000, 0, ST_EFORMAT, "truncated"},
    /* The JSON */
    {"[]", 0, 0, ST_EFORMAT, "not a JSON object"},
    {" {}", 0, 0, ST_EFORMAT, "not a JSON object"},
    {"{\"t\":}", 0, 0, ST_EFORMAT, "JSON is broken at byte"},
    {"{}{}", 0, 0, ST_EFORMAT, "JSON is broken at byte"},
    {"{\"\xFF\":{}}", 0, 0, ST_EFORMAT, "JSON is broken at byte"},
    {"{\"a\\u0000b\":{}}", 0, 0, ST_EFORMAT, "JSON is broken at byte"},
    {"{\"t\":1}", 0, 0, ST_EFORMAT, "entry t is not an object"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
     0, 2, ST_EFORMAT, "duplicate object key"},
    /* dtype */
    {"{\"t\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 0, 4, ST_EFORMAT, "t has no dtype"},
    {T("7", "[1]", "[0,4]"), 0, 4, ST_EFORMAT, "t has no dtype"},
    {T("\"F33\"", "[1]", "[0,4]"), 0, 4, ST_EUNSUPPORTED, "tensor t has dtype 'F33'; known are"},
    {T("\"f32\"", "[1]", "[0,4]"), 0, 4, ST_EUNSUPPORTED, "dtype 'f32'"},
    {T("\"F32\"", "[2]", "[0,4]"), 0, 4, ST_EFORMAT, "span 4 bytes but its dtype F32 and shape"},
    {T("\"BF16\"", "[1]", "[0,4]"), 0, 4, ST_EFORMAT, "take 2"},
    /* shape */
    {"{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 0, 4, ST_EFORMAT, "no shape array"},
    {T("\"F32\"", "4", "[0,4]"), 0, 4, ST_EFORMAT, "no shape array"},
    {T("\"F32\"", "[-1]", "[0,4]"), 0, 4, ST_EFORMAT, "shape[0] is not a whole number"},
    {T("\"F32\"", "[1,1.0]", "[0,4]"), 0, 4, ST_EFORMAT, "shape[1] is not a whole number"},
    {T("\"F32\"", "[null]", "[0,4]"), 0, 4, ST_EFORMAT, "shape[0] is not a whole number"},
    {T("\"F32\"", "[1,1,1,1,1]", "[0,4]"), 0, 4, ST_EUNSUPPORTED, "t has 5 dimensions; at most 4"},
    {T("\"F32\"", "[4294967296,4294967296]", "[0,4]"), 0, 4, ST_EFORMAT, "size of its shape over"},
    {T("\"F32\"", "[9223372036854775807]", "[0,4]"), 0, 4, ST_EFORMAT, "size of its shape over"},
    {T("\"U8\"", "[9223372036854775807]", "[0,4]"), 0, 4, ST_EFORMAT, "take 9223372036854775807"},
    {T("\"F32\"", "[99999999999999999999]", "[0,4]"), 0, 4, ST_EFORMAT, "JSON is broken"},
    /* data_offsets */
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", 0, 4, ST_EFORMAT, "not a pair"},
    {T("\"F32\"", "[1]", "[0]"), 0, 4, ST_EFORMAT, "not a pair"},
    {T("\"F32\"", "[1]", "[0,4,8]"), 0, 4, ST_EFORMAT, "not a pair"},
    {T("\"F32\"", "[1]", "[-4,0]"), 0, 4, ST_EFORMAT, "not a pair"},
    {T("\"F32\"", "[1]", "{\"0\":0,\"1\":4}"), 0, 4, ST_EFORMAT, "not a pair"},
    {T("\"F32\"", "[1]", "[4,0]"), 0, 4, ST_EFORMAT, "end before they begin (4, 0)"},
    {T("\"F32\"", "[1]", "[1,5]"), 0, 4, ST_EFORMAT, "end at 5 but the file holds 4 bytes"},
    {T("\"F32\"", "[1]", "[0,9223372036854775807]"), 0, 4, ST_EFORMAT, "but the file holds 4"},
    {T("\"F32\"", "[1]", "[0,3]"), 0, 4, ST_EFORMAT, "span 3 bytes"},
    /* The layout as a whole */
    {TWO("[4],\"data_offsets\":[0,4]", "[4],\"data_offsets\":[2,6]"), 0, 6, ST_EFORMAT,
     "tensors a and b overlap"},
    {TWO("[4],\"data_offsets\":[0,4]", "[4],\"data_offsets\":[0,4]"), 0, 4, ST_EFORMAT,
     "tensors a and b overlap"},
    {TWO("[1],\"data_offsets\":[0,1]", "[1],\"data_offsets\":[2,3]"), 0, 3, ST_EFORMAT,
     "1 bytes before tensor b belong to no tensor"},
    {T("\"U8\"", "[1]", "[1,2]"), 0, 2, ST_EFORMAT, "1 bytes before tensor t"},
    {T("\"U8\"", "[1]", "[0,1]"), 0, 5, ST_EFORMAT, "4 bytes after the last tensor"},
    {"{}", 0, 5, ST_EFORMAT, "5 bytes after the last tensor"},
};

static void malformed_files_are_refused_by_name(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        file f = make(bad[i].header, bad[i].claimed ? bad[i].claimed : strlen(bad[i].header),
                      bad[i].data_len);
        seen s;
        st_error err = {0};
        st_status status = parse(&f, &s, &err);
        if (status != bad[i].status || !strstr(err.text, bad[i].text) ||
            strncmp(err.text, "x.safetensors: ", 15) != 0)
            fail_msg("row %zu %s: status %d, text '%s', expected %d '%s'", i, bad[i].header, status,
                     err.text, bad[i].status, bad[i].text);
        free(f.bytes);
    }
}

static void a_header_of_countless_values_is_refused_before_parsing(void **state)
{
    (void)state;
    size_t n = 20u << 20;
    char *header = malloc(n + 1);
    assert_non_null(header);
    memset(header, '[', n);
    header[0] = '{';
    header[n] = '\0';
    file f = make(header, n, 0);
    seen s;
    st_error err = {0};
    assert_int_equal(parse(&f, &s, &err), ST_EFORMAT);
    assert_non_null(strstr(err.text, "more than 8000000 JSON values"));
    free(f.bytes);
    free(header);
}

/* A name of any length must leave the reason readable. */
static void long_names_are_cut_in_messages(void **state)
{
    (void)state;
    char header[5000] = "{\"";
    size_t at = strlen(header);
    while (at < 4000) {
        memcpy(header + at, "\xE4\xBD\xA0", 3);
        at += 3;
    }
    strcpy(header + at, "\":{\"dtype\":\"XX\"}}");
    file f = make(header, strlen(header), 0);
    seen s;
    st_error err = {0};
    assert_int_equal(parse(&f, &s, &err), ST_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "dtype 'XX'"));
    free(f.bytes);
}

static st_status stop_at_second(void *user, const st_tensor *t)
{
    (void)t;
    return ++*(int *)user == 2 ? ST_ECANCELLED : ST_OK;
}

static void the_callback_can_end_the_parse(void **state)
{
    (void)state;
    file f = make(good, sizeof good - 1, 19);
    int calls = 0;
    st_error err = {0};
    assert_int_equal(st_safetensors_parse("x", f.bytes, f.len, stop_at_second, &calls, &err),
                     ST_ECANCELLED);
    assert_int_equal(calls, 2);
    free(f.bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_file_is_read_in_offset_order),
        cmocka_unit_test(an_empty_header_is_a_file_without_tensors),
        cmocka_unit_test(every_truncation_is_an_error),
        cmocka_unit_test(every_changed_byte_is_survived),
        cmocka_unit_test(malformed_files_are_refused_by_name),
        cmocka_unit_test(a_header_of_countless_values_is_refused_before_parsing),
        cmocka_unit_test(long_names_are_cut_in_messages),
        cmocka_unit_test(the_callback_can_end_the_parse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
