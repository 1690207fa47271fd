/* Compiling and matching: see pretokenizer_regex.h. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pretokenizer_regex.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pcre2.h>

#include "base/utf8.h"

#define MAX_PATTERN    65536
#define MATCH_LIMIT    10000000 /* PCRE2's own default; long texts get more in proportion */
#define JIT_STACK_MAX  (16u << 20)
#define HEAP_LIMIT_KIB (256u << 10)

struct st_regex {
    pcre2_code *code; /* NULL: literal */
    bool jit;
    char *literal;
    size_t literal_len;
    char where[128];
};

bool st_is_white_space(uint32_t cp)
{
    return (cp >= 9 && cp <= 13) || cp == 0x20 || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F ||
           cp == 0x205F || cp == 0x3000;
}

static st_status compile(st_regex *re, const char *where, const char *pattern, size_t len,
                         st_error *err)
{
    st_buf text = ST_BUF_INIT;
    int code;
    PCRE2_SIZE at;
    st_status s = st_pattern_rewrite(where, pattern, len, &text, err);
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!s && !context)
        s = st_fail(err, ST_ENOMEM, "no memory for %s", where);
    if (!s) {
        /* Ruby's ^ and $ always work line by line, and only \n ends a line. */
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        re->code = pcre2_compile((PCRE2_SPTR)text.data, text.len,
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                                 &code, &at, context);
        if (!re->code) {
            char why[128] = "?";
            pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
            s = st_fail(err, ST_EFORMAT,
                        "%s: the regular expression '%.*s' is not usable: %s (at byte %zu of "
                        "'%.300s')",
                        where, (int)(len < 300 ? len : 300), pattern, why, (size_t)at, text.data);
        }
    }
    /* Without JIT (refused by the kernel's memory policy, say) matching is only slower. */
    if (!s)
        re->jit = pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE) == 0;
    pcre2_compile_context_free(context);
    st_buf_free(&text);
    return s;
}

st_status st_regex_new(const char *where, const char *pattern, size_t len, bool literal,
                       st_regex **out, st_error *err)
{
    *out = NULL;
    if (len == 0 || len > MAX_PATTERN)
        return st_fail(err, ST_EFORMAT, "%s.pattern has %zu bytes, expected 1 to %d", where, len,
                       MAX_PATTERN);
    st_regex *re = calloc(1, sizeof *re);
    if (!re)
        return st_fail(err, ST_ENOMEM, "no memory for %s", where);
    snprintf(re->where, sizeof re->where, "%s", where);
    st_status s = ST_OK;
    if (literal) {
        re->literal = malloc(len);
        re->literal_len = len;
        if (re->literal)
            memcpy(re->literal, pattern, len);
        else
            s = st_fail(err, ST_ENOMEM, "no memory for %s", where);
    } else {
        s = compile(re, where, pattern, len, err);
    }
    if (s) {
        st_regex_free(re);
        return s;
    }
    *out = re;
    return ST_OK;
}

void st_regex_free(st_regex *re)
{
    if (!re)
        return;
    pcre2_code_free(re->code);
    free(re->literal);
    free(re);
}

void st_regex_begin(st_regex_run *run, const st_regex *re, const char *text, size_t len)
{
    run->re = re;
    run->text = text;
    run->len = len;
    run->at = run->last_end = 0;
    run->any = false;
    run->error = 0;
}

/* Allocates what the first match needs, and grows the limit with the text: every character of a
 * long run may be stepped over several times without anything being wrong. */
static bool prepare(st_regex_run *run)
{
    if (!run->match_data)
        run->match_data = pcre2_match_data_create(1, NULL);
    if (!run->context)
        run->context = pcre2_match_context_create(NULL);
    if (!run->match_data || !run->context) {
        run->error = PCRE2_ERROR_NOMEMORY;
        return false;
    }
    size_t limit = MATCH_LIMIT;
    if (run->len > MATCH_LIMIT / 16)
        limit = run->len < UINT32_MAX / 16 ? run->len * 16 : UINT32_MAX;
    pcre2_set_match_limit(run->context, (uint32_t)limit);
    pcre2_set_heap_limit(run->context, HEAP_LIMIT_KIB);
    return true;
}

static int match_once(st_regex_run *run, size_t from)
{
    const pcre2_code *code = run->re->code;
    PCRE2_SPTR text = (PCRE2_SPTR)run->text;
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (run->re->jit)
        rc = pcre2_jit_match(code, text, run->len, from, 0, run->match_data, run->context);
    if (run->re->jit && rc == PCRE2_ERROR_JIT_STACKLIMIT && !run->jit_stack) {
        /* The machine stack's 32 KiB were not enough: from here on use a larger one. */
        run->jit_stack = pcre2_jit_stack_create(64u << 10, JIT_STACK_MAX, NULL);
        if (run->jit_stack) {
            pcre2_jit_stack_assign(run->context, NULL, run->jit_stack);
            rc = pcre2_jit_match(code, text, run->len, from, 0, run->match_data, run->context);
        }
    }
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(code, text, run->len, from, PCRE2_NO_JIT | PCRE2_NO_UTF_CHECK,
                         run->match_data, run->context);
    return rc;
}

static bool next_literal(st_regex_run *run, size_t *start, size_t *end)
{
    const char *hit = run->at <= run->len ? memmem(run->text + run->at, run->len - run->at,
                                                   run->re->literal, run->re->literal_len)
                                          : NULL;
    if (!hit)
        return false;
    *start = (size_t)(hit - run->text);
    *end = run->at = *start + run->re->literal_len;
    return true;
}

bool st_regex_next(st_regex_run *run, size_t *start, size_t *end)
{
    if (run->error || run->len == 0)
        return false;
    if (!run->re->code)
        return next_literal(run, start, end);
    if (!run->any && !prepare(run))
        return false;
    while (run->at <= run->len) {
        int rc = match_once(run, run->at);
        if (rc < 0) {
            run->error = rc == PCRE2_ERROR_NOMATCH ? 0 : rc;
            return false;
        }
        const PCRE2_SIZE *pos = pcre2_get_ovector_pointer(run->match_data);
        if (pos[0] > pos[1] || pos[0] < run->last_end) { /* \K can do that */
            run->error = PCRE2_ERROR_BADOFFSET;
            return false;
        }
        bool empty = pos[0] == pos[1], skip = empty && run->any && pos[0] == run->last_end;
        *start = pos[0];
        *end = run->at = pos[1];
        if (empty) { /* go on behind the next character */
            uint32_t cp;
            run->at += run->at < run->len
                           ? st_utf8_decode(run->text + run->at, run->len - run->at, &cp)
                           : 1;
        }
        if (skip)
            continue;
        run->any = true;
        run->last_end = pos[1];
        return true;
    }
    return false;
}

st_status st_regex_status(const st_regex_run *run, st_error *err)
{
    if (!run->error)
        return ST_OK;
    char why[128] = "?";
    pcre2_get_error_message(run->error, (PCRE2_UCHAR *)why, sizeof why);
    if (run->error == PCRE2_ERROR_NOMEMORY)
        return st_fail(err, ST_ENOMEM, "no memory to match the regular expression of %s",
                       run->re->where);
    return st_fail(err, ST_EDEADLINE,
                   "the regular expression of %s gave up on a text of %zu bytes: %s",
                   run->re->where, run->len, why);
}

void st_regex_run_free(st_regex_run *run)
{
    pcre2_match_data_free(run->match_data);
    pcre2_match_context_free(run->context);
    pcre2_jit_stack_free(run->jit_stack);
    *run = (st_regex_run){0};
}
