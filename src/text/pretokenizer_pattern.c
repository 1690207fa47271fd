/* Oniguruma's syntax (Ruby, Unicode), which tokenizer.json uses, rewritten for PCRE2:
 *
 *   \s          White_Space; PCRE2's also takes U+180E
 *   \w \b       Alphabetic, marks, digits, connectors; PCRE2's has no marks
 *   \p{Han}     the script; PCRE2 reads script extensions: \p{sc:Han}
 *   \p{L} ...   with the characters that PCRE2's older Unicode does not know
 *   \h          a hexadecimal digit; a horizontal space in PCRE2
 *   [a&&[b]]    intersections and nested classes, which PCRE2 takes for something else
 *   (?m)        dot matches newline: (?s)
 *   {,3}        {0,3} */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pretokenizer_regex.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include <pcre2.h>

#include "text/pretokenizer_unicode.h"

#define SPACE     "\\t-\\r\\x{85}\\p{Z}"
#define HEX       "0-9A-Fa-f"
#define MAX_DEPTH 16
#define MAX_NAME  64

typedef struct rewriter {
    const char *where, *at, *end;
    st_error *err;
    st_status status; /* the first failure; later appends do nothing */
} rewriter;

static void fail(rewriter *r, st_status s, const char *what)
{
    if (!r->status)
        r->status = st_fail(r->err, s, "%s.pattern: %s", r->where, what);
}

static void put(rewriter *r, st_buf *out, const char *s, size_t n)
{
    if (!r->status && st_buf_append(out, s, n))
        fail(r, ST_ENOMEM, "no memory");
}

static void puts_(rewriter *r, st_buf *out, const char *s)
{
    put(r, out, s, strlen(s));
}

static void put_buf(rewriter *r, st_buf *out, const st_buf *b)
{
    put(r, out, b->data ? b->data : "", b->len);
}

/* ---- properties: all are produced as the inside of a class ---- */

static void put_ranges(rewriter *r, st_buf *out, const st_unicode_range *list, size_t n,
                       const char *category)
{
    size_t len = strlen(category);
    for (size_t i = 0; i < n; i++) {
        if (strncmp(list[i].category, category, len) != 0)
            continue;
        uint32_t first = list[i].first, last = list[i].last;
        while (i + 1 < n && list[i + 1].first == last + 1 &&
               strncmp(list[i + 1].category, category, len) == 0)
            last = list[++i].last;
        char text[40];
        snprintf(text, sizeof text, "\\x{%X}-\\x{%X}", first, last);
        puts_(r, out, text);
    }
}

static void put_category(rewriter *r, st_buf *out, const char *category)
{
    static const size_t n = sizeof st_unicode_additions / sizeof *st_unicode_additions;
    char text[16];
    snprintf(text, sizeof text, "\\p{%s}", category);
    puts_(r, out, text);
    if (strcmp(category, "L&") == 0) {
        put_ranges(r, out, st_unicode_additions, n, "Lu");
        put_ranges(r, out, st_unicode_additions, n, "Ll");
        put_ranges(r, out, st_unicode_additions, n, "Lt");
    } else {
        put_ranges(r, out, st_unicode_additions, n, category);
    }
}

static void put_word(rewriter *r, st_buf *out)
{
    puts_(r, out, "\\p{Alphabetic}");
    put_category(r, out, "L");
    put_category(r, out, "M");
    put_category(r, out, "Nd");
    put_category(r, out, "Pc");
}

/* POSIX brackets, and the same names as properties. Returns false when name is none of them. */
static bool put_posix(rewriter *r, st_buf *out, const char *name)
{
    static const struct {
        const char *name, *inside, *categories; /* categories: separated by spaces */
    } table[] = {
        {"alpha", "\\p{Alphabetic}", "L"},
        {"alnum", "\\p{Alphabetic}", "L Nd"},
        {"digit", "", "Nd"},
        {"lower", "\\p{Lowercase}", "Ll"},
        {"upper", "\\p{Uppercase}", "Lu"},
        {"space", SPACE, ""},
        {"punct", "", "P"},
        {"cntrl", "\\p{Cc}", ""},
        {"xdigit", HEX, ""},
        {"blank", "\\t\\p{Zs}", ""},
        {"letter", "", "L"},
        {"mark", "", "M"},
        {"number", "", "N"},
        {"punctuation", "", "P"},
        {"symbol", "", "S"},
        {"separator", "", "Z"},
        {"other", "", "C"},
        {"any", "\\p{Any}", ""},
        {"uppercaseletter", "", "Lu"},
        {"lowercaseletter", "", "Ll"},
        {"titlecaseletter", "", "Lt"},
        {"modifierletter", "", "Lm"},
        {"otherletter", "", "Lo"},
        {"nonspacingmark", "", "Mn"},
        {"spacingmark", "", "Mc"},
        {"enclosingmark", "", "Me"},
        {"decimalnumber", "", "Nd"},
        {"letternumber", "", "Nl"},
        {"othernumber", "", "No"},
    };
    if (strcmp(name, "word") == 0) {
        put_word(r, out);
        return true;
    }
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (strcmp(name, table[i].name) != 0)
            continue;
        puts_(r, out, table[i].inside);
        for (const char *c = table[i].categories; *c; c += *c == ' ') {
            char one[4];
            size_t len = strcspn(c, " ");
            snprintf(one, sizeof one, "%.*s", (int)len, c);
            put_category(r, out, one);
            c += len;
        }
        return true;
    }
    return false;
}

static bool is_script(const char *name)
{
    char pattern[MAX_NAME + 16];
    int code;
    PCRE2_SIZE at;
    snprintf(pattern, sizeof pattern, "\\p{sc:%s}", name);
    pcre2_code *c =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &at, NULL);
    pcre2_code_free(c);
    return c != NULL;
}

static void put_property(rewriter *r, st_buf *out, const char *name)
{
    char plain[MAX_NAME + 1], text[MAX_NAME + 16];
    size_t n = 0;
    for (const char *c = name; *c; c++)
        if (*c != '_' && *c != ' ' && *c != '-')
            plain[n++] = (char)tolower((unsigned char)*c);
    plain[n] = '\0';
    if (n <= 2) {
        if (n > 0)
            plain[0] = (char)toupper((unsigned char)plain[0]);
        put_category(r, out, plain);
    } else if (!put_posix(r, out, plain)) {
        bool script = !strpbrk(name, ":=") && is_script(name);
        snprintf(text, sizeof text, script ? "\\p{sc:%s}" : "\\p{%s}", name);
        puts_(r, out, text);
        if (strcmp(plain, "han") == 0)
            put_ranges(r, out, st_unicode_additions_han,
                       sizeof st_unicode_additions_han / sizeof *st_unicode_additions_han, "Han");
    }
}

/* Reads the name behind \p or \P (r->at is behind that letter); *negated counts \P and ^. */
static void read_property(rewriter *r, st_buf *inside, bool *negated)
{
    char name[MAX_NAME + 1];
    const char *from = r->at;
    size_t n = 1;
    if (from < r->end && *from == '{') {
        const char *close = memchr(from, '}', (size_t)(r->end - from));
        from++;
        n = close ? (size_t)(close - from) : 0;
        if (n && *from == '^') {
            *negated = !*negated;
            from++;
            n--;
        }
        r->at = close ? close + 1 : r->end;
    } else {
        r->at += from < r->end;
        n = from < r->end;
    }
    bool good = n > 0 && n <= MAX_NAME;
    for (size_t i = 0; good && i < n; i++)
        good = isalnum((unsigned char)from[i]) || strchr("_ -&=:", from[i]);
    if (!good) {
        fail(r, ST_EFORMAT, "\\p without the name of a property");
        return;
    }
    snprintf(name, sizeof name, "%.*s", (int)n, from);
    put_property(r, inside, name);
}

/* The set that an escape stands for, as the inside of a class. r->at is behind the letter c.
 * Returns false (and writes nothing) when c does not name a set. Oniguruma counts superscripts and
 * fractions as \w, except in a class. */
static bool escape_set(rewriter *r, char c, bool in_class, st_buf *inside, bool *negated)
{
    *negated = isupper((unsigned char)c);
    switch (c) {
    case 's':
    case 'S':
        puts_(r, inside, SPACE);
        return true;
    case 'w':
    case 'W':
        put_word(r, inside);
        if (!in_class)
            puts_(r, inside, "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}");
        return true;
    case 'd':
    case 'D':
        put_category(r, inside, "Nd");
        return true;
    case 'h':
    case 'H':
        puts_(r, inside, HEX);
        return true;
    case 'p':
    case 'P':
        read_property(r, inside, negated);
        return true;
    default:
        return false;
    }
}

/* \uHHHH, which PCRE2 spells \x{HHHH}; other escapes are the same in both. r->at is behind c. */
static void copy_escape(rewriter *r, st_buf *out, char c)
{
    if (c == 'u' && r->end - r->at >= 4) {
        puts_(r, out, "\\x{");
        put(r, out, r->at, 4);
        puts_(r, out, "}");
        r->at += 4;
        return;
    }
    char text[2] = {'\\', c};
    put(r, out, text, 2);
}

/* ---- classes ---- */

/* One operand of a class: plain items, and atoms (nested classes and negated sets) beside them. */
typedef struct operand {
    st_buf inside, atoms; /* atoms: alternatives joined by '|' */
} operand;

static void operand_free(operand *o)
{
    st_buf_free(&o->inside);
    st_buf_free(&o->atoms);
}

static void add_atom(rewriter *r, operand *o, const char *open, const st_buf *text,
                     const char *close)
{
    if (o->atoms.len)
        puts_(r, &o->atoms, "|");
    puts_(r, &o->atoms, open);
    put_buf(r, &o->atoms, text);
    puts_(r, &o->atoms, close);
}

/* Writes an operand as an expression for one character. */
static void put_operand(rewriter *r, st_buf *out, const operand *o)
{
    bool both = o->inside.len && o->atoms.len;
    if (o->atoms.len)
        puts_(r, out, "(?:");
    if (o->inside.len) {
        puts_(r, out, "[");
        put_buf(r, out, &o->inside);
        puts_(r, out, "]");
    }
    if (both)
        puts_(r, out, "|");
    put_buf(r, out, &o->atoms);
    if (o->atoms.len)
        puts_(r, out, ")");
}

static void class_escape(rewriter *r, operand *o)
{
    st_buf set = ST_BUF_INIT;
    bool negated;
    r->at++;
    if (r->at == r->end) {
        fail(r, ST_EFORMAT, "a backslash at the end");
        return;
    }
    char c = *r->at++;
    if (!escape_set(r, c, true, &set, &negated))
        copy_escape(r, &o->inside, c);
    else if (negated)
        add_atom(r, o, "[^", &set, "]");
    else
        put_buf(r, &o->inside, &set);
    st_buf_free(&set);
}

/* [:name:] inside a class; returns false when r->at does not start one. */
static bool class_posix(rewriter *r, operand *o)
{
    if (r->end - r->at < 4 || r->at[1] != ':')
        return false;
    const char *from = r->at + 2;
    bool negated = *from == '^';
    from += negated;
    size_t n = 0;
    while (from + n < r->end && isalpha((unsigned char)from[n]))
        n++;
    if (n == 0 || n > MAX_NAME || r->end - from < (ptrdiff_t)n + 2 || from[n] != ':' ||
        from[n + 1] != ']')
        return false;
    char name[MAX_NAME + 1];
    snprintf(name, sizeof name, "%.*s", (int)n, from);
    st_buf set = ST_BUF_INIT;
    if (!put_posix(r, &set, name))
        fail(r, ST_EUNSUPPORTED, "an unknown [:name:]");
    if (negated)
        add_atom(r, o, "[^", &set, "]");
    else
        put_buf(r, &o->inside, &set);
    st_buf_free(&set);
    r->at = from + n + 2;
    return true;
}

static void rewrite_class(rewriter *r, st_buf *out, int depth);

/* Reads up to the closing bracket or "&&". Returns true at "&&". */
static bool class_operand(rewriter *r, operand *o, bool first, int depth)
{
    while (!r->status) {
        if (r->at == r->end) {
            fail(r, ST_EFORMAT, "a character class without ']'");
            break;
        }
        if (*r->at == ']' && !first)
            return false;
        if (r->end - r->at >= 2 && memcmp(r->at, "&&", 2) == 0) {
            r->at += 2;
            return true;
        }
        if (*r->at == '\\') {
            class_escape(r, o);
        } else if (*r->at == '[') {
            st_buf nested = ST_BUF_INIT;
            if (!class_posix(r, o)) {
                rewrite_class(r, &nested, depth + 1);
                add_atom(r, o, "", &nested, "");
            }
            st_buf_free(&nested);
        } else if (*r->at == ']') {
            puts_(r, &o->inside, "\\]");
            r->at++;
        } else {
            put(r, &o->inside, r->at++, 1);
        }
        first = false;
    }
    return false;
}

/* r->at is at '['. Appends an expression for one character. */
static void rewrite_class(rewriter *r, st_buf *out, int depth)
{
    st_buf rest = ST_BUF_INIT; /* lookaheads for all operands but the first */
    operand first = {0};
    bool negated = r->end - r->at >= 2 && r->at[1] == '^';
    if (depth > MAX_DEPTH)
        fail(r, ST_EUNSUPPORTED, "character classes nested too deep");
    r->at += negated ? 2 : 1;
    bool more = class_operand(r, &first, true, depth);
    while (more && !r->status) {
        operand next = {0};
        more = class_operand(r, &next, false, depth);
        if (!next.inside.len && !next.atoms.len)
            fail(r, ST_EFORMAT, "&& without a set behind it");
        puts_(r, &rest, "(?=");
        put_operand(r, &rest, &next);
        puts_(r, &rest, ")");
        operand_free(&next);
    }
    if (!first.inside.len && !first.atoms.len)
        fail(r, ST_EFORMAT, "an empty character class");
    if (!r->status)
        r->at++; /* the closing bracket */
    if (!rest.len && !first.atoms.len) {
        puts_(r, out, negated ? "[^" : "[");
        put_buf(r, out, &first.inside);
        puts_(r, out, "]");
    } else {
        puts_(r, out, negated ? "(?:(?!" : "(?:");
        put_buf(r, out, &rest);
        put_operand(r, out, &first);
        puts_(r, out, negated ? ")\\p{Any})" : ")");
    }
    operand_free(&first);
    st_buf_free(&rest);
}

/* ---- outside of classes ---- */

static void put_boundary(rewriter *r, st_buf *out, bool negated)
{
    st_buf word = ST_BUF_INIT;
    static const char *const parts[2][5] = {
        {"(?:(?<![", "])(?=[", "])|(?<=[", "])(?![", "]))"},
        {"(?:(?<![", "])(?![", "])|(?<=[", "])(?=[", "]))"},
    };
    put_word(r, &word);
    for (int i = 0; i < 5; i++) {
        puts_(r, out, parts[negated][i]);
        if (i < 4)
            put_buf(r, out, &word);
    }
    st_buf_free(&word);
}

static void rewrite_escape(rewriter *r, st_buf *out)
{
    st_buf set = ST_BUF_INIT;
    bool negated;
    r->at++;
    if (r->at == r->end) {
        fail(r, ST_EFORMAT, "a backslash at the end");
        return;
    }
    char c = *r->at++;
    if (c == 'b' || c == 'B') {
        put_boundary(r, out, c == 'B');
    } else if (escape_set(r, c, false, &set, &negated)) {
        puts_(r, out, negated ? "[^" : "[");
        put_buf(r, out, &set);
        puts_(r, out, "]");
    } else {
        copy_escape(r, out, c);
    }
    st_buf_free(&set);
}

/* The start of a group; option letters change their meaning. r->at is at "(?". */
static void rewrite_options(rewriter *r, st_buf *out)
{
    put(r, out, r->at, 2);
    r->at += 2;
    const char *p = r->at;
    while (p < r->end && (strchr("imx-", *p) && *p))
        p++;
    if (p == r->end || (*p != ')' && *p != ':'))
        return; /* (?:, (?=, (?<name> and the like: the same in both */
    for (; r->at < p; r->at++)
        puts_(r, out, *r->at == 'm' ? "s" : *r->at == 'i' ? "i" : *r->at == 'x' ? "x" : "-");
}

/* "{,3}": r->at is at the brace. */
static void put_lower_bound(rewriter *r, st_buf *out)
{
    puts_(r, out, "{0");
    r->at++;
}

st_status st_pattern_rewrite(const char *where, const char *pattern, size_t len, st_buf *out,
                             st_error *err)
{
    rewriter r = {where, pattern, pattern + len, err, ST_OK};
    while (r.at < r.end && !r.status) {
        if (*r.at == '\\')
            rewrite_escape(&r, out);
        else if (*r.at == '[')
            rewrite_class(&r, out, 0);
        else if (r.end - r.at >= 2 && r.at[0] == '(' && r.at[1] == '?')
            rewrite_options(&r, out);
        else if (r.end - r.at >= 3 && r.at[0] == '{' && r.at[1] == ',' &&
                 isdigit((unsigned char)r.at[2]))
            put_lower_bound(&r, out);
        else
            put(&r, out, r.at++, 1);
    }
    return r.status;
}
