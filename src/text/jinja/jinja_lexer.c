/* Splits a template into tokens: see jinja_lexer.h. The rules for white space are Jinja's with
 * trim_blocks and lstrip_blocks on and keep_trailing_newline off, as Hugging Face sets them. */
#include "text/jinja/jinja_lexer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "base/utf8.h"
#include "text/jinja/jinja_strings.h"

typedef struct lexer {
    const char *name;
    const char *p, *end;
    int line;
    bool line_starting; /* the last tag's token ended with a newline, or nothing came yet */
    jmem *mem;
    jtoken *v;
    size_t n, cap;
    char open[256]; /* closing brackets that are due */
    size_t n_open;
    st_status status;
    st_error *err;
} lexer;

const char *jtok_name(jtok t)
{
    static const char *const names[] = {
        [T_EOF] = "the end of the template",
        [T_DATA] = "text",
        [T_BLOCK_BEGIN] = "'{%'",
        [T_BLOCK_END] = "'%}'",
        [T_VAR_BEGIN] = "'{{'",
        [T_VAR_END] = "'}}'",
        [T_NAME] = "a name",
        [T_STRING] = "a string",
        [T_INT] = "an integer",
        [T_FLOAT] = "a number",
        [T_ADD] = "'+'",
        [T_SUB] = "'-'",
        [T_MUL] = "'*'",
        [T_DIV] = "'/'",
        [T_FLOORDIV] = "'//'",
        [T_MOD] = "'%'",
        [T_POW] = "'**'",
        [T_TILDE] = "'~'",
        [T_EQ] = "'=='",
        [T_NE] = "'!='",
        [T_LT] = "'<'",
        [T_LE] = "'<='",
        [T_GT] = "'>'",
        [T_GE] = "'>='",
        [T_ASSIGN] = "'='",
        [T_DOT] = "'.'",
        [T_COMMA] = "','",
        [T_COLON] = "':'",
        [T_PIPE] = "'|'",
        [T_SEMICOLON] = "';'",
        [T_LPAREN] = "'('",
        [T_RPAREN] = "')'",
        [T_LBRACKET] = "'['",
        [T_RBRACKET] = "']'",
        [T_LBRACE] = "'{'",
        [T_RBRACE] = "'}'",
    };
    return names[t];
}

static void fail(lexer *lx, const char *what)
{
    if (!lx->status)
        lx->status = st_fail(lx->err, ST_EFORMAT, "%s, line %d: %s", lx->name, lx->line, what);
}

static void no_memory(lexer *lx)
{
    if (!lx->status)
        lx->status = st_fail(lx->err, ST_ENOMEM, "%s: the template needs more than %zu MiB",
                             lx->name, lx->mem->limit >> 20);
}

static jtoken *push(lexer *lx, jtok type, const char *p, size_t len)
{
    if (lx->n == lx->cap) {
        size_t cap = lx->cap ? lx->cap * 2 : 256;
        jtoken *v = jmem_alloc(lx->mem, cap * sizeof *v);
        if (!v) {
            no_memory(lx);
            return NULL;
        }
        if (lx->n)
            memcpy(v, lx->v, lx->n * sizeof *v);
        lx->v = v;
        lx->cap = cap;
    }
    jtoken *t = &lx->v[lx->n++];
    *t = (jtoken){.type = type, .line = lx->line, .p = p, .len = len};
    return t;
}

static void advance(lexer *lx, const char *to)
{
    for (; lx->p < to; lx->p++)
        lx->line += *lx->p == '\n';
}

/* Bytes of the white space character at p, 0 when it is none. */
static size_t space_at(const char *p, const char *end)
{
    uint32_t cp;
    if (p >= end)
        return 0;
    size_t n = st_utf8_decode(p, (size_t)(end - p), &cp);
    return jchar_is_space(cp) ? n : 0;
}

static const char *skip_space(const char *p, const char *end)
{
    for (size_t n; (n = space_at(p, end)) > 0;)
        p += n;
    return p;
}

static bool looking_at(const char *p, const char *end, const char *text)
{
    size_t n = strlen(text);
    return (size_t)(end - p) >= n && memcmp(p, text, n) == 0;
}

/* Emits the text before a tag. sign: what follows the tag's opening ('-', '+' or 0). */
static void data(lexer *lx, const char *from, const char *to, char sign, bool variable)
{
    if (sign == '-') {
        to = from + jstr_rstrip_bytes(from, (size_t)(to - from));
    } else if (sign != '+' && !variable) {
        const char *nl = memrchr(from, '\n', (size_t)(to - from));
        const char *line = nl ? nl + 1 : from;
        if ((nl || lx->line_starting) && skip_space(line, to) == to)
            to = line;
    }
    if (to > from)
        push(lx, T_DATA, from, (size_t)(to - from));
}

/* After a tag's closing mark at p (which is `-%}`, `+%}` or `%}` with '%' for close): the end of
 * what it swallows, or NULL when p is no closing mark. */
static const char *closing(const char *p, const char *end, char close, bool trim)
{
    char text[4] = {'-', close, '}', 0};
    if (looking_at(p, end, text))
        return skip_space(p + 3, end);
    if (trim && p < end && *p == '+' && looking_at(p + 1, end, text + 1))
        return p + 3;
    if (!looking_at(p, end, text + 1))
        return NULL;
    p += 2;
    return trim && p < end && *p == '\n' ? p + 1 : p;
}

static void close_tag(lexer *lx, const char *after)
{
    lx->line_starting = after[-1] == '\n';
    advance(lx, after);
}

static char sign_at(const char *p, const char *end)
{
    return p < end && (*p == '-' || *p == '+') ? *p : 0;
}

static void comment(lexer *lx)
{
    const char *p = lx->p + 2;
    p += sign_at(p, lx->end) != 0;
    for (; p < lx->end; p++) {
        const char *after = closing(p, lx->end, '#', true);
        if (after) {
            close_tag(lx, after);
            return;
        }
    }
    if (lx->p + 2 < lx->end)
        fail(lx, "a comment '{#' is not closed by '#}'");
    lx->p = lx->end;
}

/* After `{%` and its sign: is this `raw %}`? Returns what follows, or NULL. */
static const char *raw_word(const char *p, const char *end, const char *word)
{
    p = skip_space(p, end);
    if (!looking_at(p, end, word))
        return NULL;
    return skip_space(p + strlen(word), end);
}

static void raw_block(lexer *lx, const char *body)
{
    lx->line_starting = body[-1] == '\n';
    advance(lx, body);
    for (const char *p = body; p < lx->end; p++) {
        if (!looking_at(p, lx->end, "{%"))
            continue;
        char sign = sign_at(p + 2, lx->end);
        const char *q = raw_word(p + 2 + (sign != 0), lx->end, "endraw");
        const char *after = q ? closing(q, lx->end, '%', true) : NULL;
        if (after) {
            data(lx, body, p, sign, false);
            close_tag(lx, after);
            return;
        }
    }
    if (body < lx->end)
        fail(lx, "'{% raw %}' has no '{% endraw %}'");
}

static int digit_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if ((c | 32) >= 'a' && (c | 32) <= 'f')
        return (c | 32) - 'a' + 10;
    return 99;
}

static void integer(lexer *lx, const char *p, const char *end, int base)
{
    int64_t v = 0;
    jtoken *t = push(lx, T_INT, lx->p, (size_t)(end - lx->p));
    for (; p < end; p++) {
        if (*p == '_')
            continue;
        if (__builtin_mul_overflow(v, (int64_t)base, &v) ||
            __builtin_add_overflow(v, (int64_t)digit_value(*p), &v)) {
            fail(lx, "an integer is beyond 64 bits");
            return;
        }
    }
    if (t)
        t->i = v;
    advance(lx, end);
}

static const char *digits(const char *p, const char *end, int base)
{
    while (p < end &&
           (digit_value(*p) < base || (*p == '_' && p + 1 < end && digit_value(p[1]) < base)))
        p++;
    return p;
}

static void real(lexer *lx, const char *end)
{
    char text[400];
    size_t n = 0;
    for (const char *p = lx->p; p < end; p++)
        if (*p != '_' && n + 1 < sizeof text)
            text[n++] = *p;
    text[n] = '\0';
    jtoken *t = push(lx, T_FLOAT, lx->p, (size_t)(end - lx->p));
    if (t)
        t->f = strtod(text, NULL);
    advance(lx, end);
}

static bool is_digit(const char *p, const char *end)
{
    return p < end && *p >= '0' && *p <= '9';
}

static void number(lexer *lx)
{
    const char *p = lx->p, *end = lx->end;
    const char *q = digits(p, end, 10), *r = q;
    bool after_dot = lx->n && lx->v[lx->n - 1].type == T_DOT && lx->v[lx->n - 1].p + 1 == p;
    if (!after_dot) {
        if (r < end && *r == '.' && is_digit(r + 1, end))
            r = digits(r + 1, end, 10);
        const char *e = r < end && (*r | 32) == 'e' ? r + 1 : NULL;
        if (e && e < end && (*e == '+' || *e == '-'))
            e++;
        if (e && is_digit(e, end))
            r = digits(e, end, 10);
        if (r > q) {
            real(lx, r);
            return;
        }
    }
    if (*p == '0' && p + 1 < end) {
        int base = (p[1] | 32) == 'x' ? 16 : (p[1] | 32) == 'o' ? 8 : (p[1] | 32) == 'b' ? 2 : 0;
        const char *from = p + 2;
        if (base && from < end && (digit_value(*from) < base || *from == '_')) {
            integer(lx, from, digits(from, end, base), base);
            return;
        }
        for (q = p + 1; q < end && (*q == '0' || *q == '_');)
            q++;
    }
    integer(lx, p, q, 10);
}

static bool name_char(uint32_t cp, bool first)
{
    if (cp < 0x80)
        return cp == '_' || ((cp | 32) >= 'a' && (cp | 32) <= 'z') ||
               (!first && cp >= '0' && cp <= '9');
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO) || c == UTF8PROC_CATEGORY_NL ||
           (!first && (c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC ||
                       c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_PC));
}

static bool word(lexer *lx)
{
    const char *p = lx->p;
    uint32_t cp;
    while (p < lx->end) {
        size_t n = st_utf8_decode(p, (size_t)(lx->end - p), &cp);
        if (!name_char(cp, p == lx->p))
            break;
        p += n;
    }
    if (p == lx->p)
        return false;
    push(lx, T_NAME, lx->p, (size_t)(p - lx->p));
    lx->p = p;
    return true;
}

/* Reads up to max digits of an escape; returns how many. */
static size_t escape_digits(const char *p, const char *end, int base, size_t max, uint32_t *cp)
{
    size_t n = 0;
    for (*cp = 0; n < max && p + n < end && digit_value(p[n]) < base; n++)
        *cp = *cp * (uint32_t)base + (uint32_t)digit_value(p[n]);
    return n;
}

/* Decodes the escape at p (behind the backslash) to out; returns the bytes read, 0 when the
 * escape is malformed. Unknown escapes keep their backslash, as in Python. */
static size_t escape(const char *p, const char *end, char *out, size_t *n)
{
    static const char from[] = "ntrabfv\\'\"", to[] = "\n\t\r\a\b\f\v\\'\"";
    uint32_t cp;
    const char *at = strchr(from, *p);
    *n = 0;
    if (*p == '\n')
        return 1;
    if (at && *p) {
        out[(*n)++] = to[at - from];
        return 1;
    }
    size_t want = *p == 'x' ? 2 : *p == 'u' ? 4 : *p == 'U' ? 8 : 0;
    size_t used;
    if (want) {
        used = escape_digits(p + 1, end, 16, want, &cp) + 1;
        if (used != want + 1)
            return 0;
    } else if (*p >= '0' && *p <= '7') {
        used = escape_digits(p, end, 8, 3, &cp);
    } else if (*p == 'N') {
        return 0;
    } else {
        out[(*n)++] = '\\';
        return 0 + (out[(*n)++] = *p, 1);
    }
    size_t bytes = st_utf8_encode(cp, out);
    if (!bytes && cp > 0x10FFFF)
        return 0;
    if (!bytes) { /* half a surrogate pair has no UTF-8 form */
        memcpy(out, "\xEF\xBF\xBD", 3);
        bytes = 3;
    }
    *n = bytes;
    return used;
}

static void string(lexer *lx)
{
    char quote = *lx->p;
    const char *p = lx->p + 1;
    bool escapes = false;
    for (; p < lx->end && *p != quote; p++)
        if (*p == '\\') {
            escapes = true;
            p++;
        }
    if (p >= lx->end) {
        fail(lx, "a string is not closed");
        return;
    }
    const char *from = lx->p + 1;
    size_t len = (size_t)(p - from);
    if (escapes) {
        char *out = jmem_alloc(lx->mem, len + 16); /* no escape grows, but \xHH < 3 bytes */
        if (!out) {
            no_memory(lx);
            return;
        }
        size_t at = 0;
        for (const char *q = from; q < p;) {
            if (*q != '\\') {
                out[at++] = *q++;
                continue;
            }
            size_t n, used = escape(q + 1, p, out + at, &n);
            if (!used) {
                fail(lx, "a string holds an escape that is not known or not complete");
                return;
            }
            q += 1 + used;
            at += n;
        }
        from = out;
        len = at;
    }
    push(lx, T_STRING, from, len);
    advance(lx, p + 1);
}

static bool bracket(lexer *lx, char c)
{
    static const char opening[] = "([{", closers[] = ")]}";
    const char *at = strchr(opening, c);
    if (at) {
        if (lx->n_open == sizeof lx->open) {
            fail(lx, "brackets are nested too deep");
            return false;
        }
        lx->open[lx->n_open++] = closers[at - opening];
        return true;
    }
    if (strchr(closers, c)) {
        if (lx->n_open == 0 || lx->open[lx->n_open - 1] != c) {
            char text[40] = "unexpected ' '";
            text[12] = c;
            fail(lx, text);
            return false;
        }
        lx->n_open--;
    }
    return true;
}

static void operator_(lexer *lx)
{
    static const struct {
        char text[3];
        jtok t;
    } ops[] = {
        {"//", T_FLOORDIV}, {"**", T_POW},   {"==", T_EQ},      {"!=", T_NE},
        {">=", T_GE},       {"<=", T_LE},    {"+", T_ADD},      {"-", T_SUB},
        {"*", T_MUL},       {"/", T_DIV},    {"%", T_MOD},      {"~", T_TILDE},
        {"<", T_LT},        {">", T_GT},     {"=", T_ASSIGN},   {".", T_DOT},
        {",", T_COMMA},     {":", T_COLON},  {"|", T_PIPE},     {";", T_SEMICOLON},
        {"(", T_LPAREN},    {")", T_RPAREN}, {"[", T_LBRACKET}, {"]", T_RBRACKET},
        {"{", T_LBRACE},    {"}", T_RBRACE},
    };
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        if (!looking_at(lx->p, lx->end, ops[i].text))
            continue;
        size_t n = strlen(ops[i].text);
        if (bracket(lx, *lx->p))
            push(lx, ops[i].t, lx->p, n);
        lx->p += n;
        return;
    }
    char text[48] = "unexpected character '";
    uint32_t cp;
    size_t n = st_utf8_decode(lx->p, (size_t)(lx->end - lx->p), &cp), at = strlen(text);
    memcpy(text + at, lx->p, n);
    memcpy(text + at + n, "'", 2);
    fail(lx, text);
}

/* The inside of a tag, up to and with its end. */
static void tag(lexer *lx, bool block)
{
    lx->n_open = 0;
    while (!lx->status) {
        advance(lx, skip_space(lx->p, lx->end));
        if (lx->p >= lx->end)
            return; /* the parser meets T_EOF and says what it expected */
        const char *after = lx->n_open ? NULL : closing(lx->p, lx->end, block ? '%' : '}', block);
        if (after) {
            push(lx, block ? T_BLOCK_END : T_VAR_END, lx->p, 2);
            close_tag(lx, after);
            return;
        }
        if (is_digit(lx->p, lx->end))
            number(lx);
        else if (*lx->p == '\'' || *lx->p == '"')
            string(lx);
        else if (!word(lx))
            operator_(lx);
    }
}

static const char *next_tag(const char *p, const char *end)
{
    for (; (p = memchr(p, '{', (size_t)(end - p))) != NULL; p++)
        if (p + 1 < end && (p[1] == '%' || p[1] == '{' || p[1] == '#'))
            return p;
    return NULL;
}

static void root(lexer *lx)
{
    while (!lx->status && lx->p < lx->end) {
        const char *p = next_tag(lx->p, lx->end);
        if (!p) {
            push(lx, T_DATA, lx->p, (size_t)(lx->end - lx->p));
            advance(lx, lx->end);
            return;
        }
        char sign = sign_at(p + 2, lx->end);
        const char *inside = p + 2 + (sign != 0);
        data(lx, lx->p, p, sign, p[1] == '{');
        advance(lx, p);
        if (p[1] == '#') {
            comment(lx);
            continue;
        }
        const char *raw = p[1] == '%' ? raw_word(inside, lx->end, "raw") : NULL;
        const char *body = raw ? closing(raw, lx->end, '%', false) : NULL;
        if (body) {
            raw_block(lx, body);
            continue;
        }
        push(lx, p[1] == '%' ? T_BLOCK_BEGIN : T_VAR_BEGIN, p, 2);
        lx->p = inside;
        tag(lx, p[1] == '%');
    }
}

/* Newlines become "\n" and one at the very end is dropped. */
static const char *normalize(lexer *lx, const char *text, size_t *len)
{
    size_t n = *len, at = 0;
    if (memchr(text, '\r', n)) {
        char *out = jmem_alloc(lx->mem, n);
        if (!out) {
            no_memory(lx);
            return text;
        }
        for (size_t i = 0; i < n; i++) {
            if (text[i] == '\r' && i + 1 < n && text[i + 1] == '\n')
                continue;
            out[at++] = text[i] == '\r' ? '\n' : text[i];
        }
        text = out;
        n = at;
    }
    *len = n && text[n - 1] == '\n' ? n - 1 : n;
    return text;
}

st_status jinja_lex(const char *name, const char *text, size_t len, jmem *mem, jtoken **tokens,
                    size_t *n, st_error *err)
{
    lexer lx = {.name = name, .line = 1, .line_starting = true, .mem = mem, .err = err};
    if (!st_utf8_valid(text, len))
        return st_fail(err, ST_EFORMAT, "%s: the template is not valid UTF-8", name);
    lx.p = normalize(&lx, text, &len);
    lx.end = lx.p + len;
    root(&lx);
    push(&lx, T_EOF, lx.end, 0);
    *tokens = lx.v;
    *n = lx.n;
    return lx.status;
}
