/* Text formatting: '%s' % x and '{}'.format(x), as far as templates use them. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "text/jinja/jinja_eval.h"
#include "text/jinja/jinja_strings.h"

typedef struct spec {
    char fill[5];
    char align; /* '<', '>', '^', '=' or 0 */
    char sign;  /* '+', ' ' or 0 */
    bool alt, zero, comma;
    bool empty;               /* nothing stood behind the colon */
    int64_t width, precision; /* precision -1: not given */
    char type;
} spec;

enum { MAX_WIDTH = 1 << 20, MAX_PRECISION = 300 };

static bool read_number(jrt *rt, const char **p, const char *end, int64_t max, int64_t *out)
{
    for (*out = 0; *p < end && **p >= '0' && **p <= '9'; (*p)++) {
        *out = *out * 10 + (**p - '0');
        if (*out > max)
            return jtype_error(rt, "a width or precision is above %" PRId64, max), false;
    }
    return true;
}

/* Digits of v in a base, without sign; returns their start in buf. */
static char *integer_digits(uint64_t v, unsigned base, bool upper, char buf[66])
{
    char *p = buf + 65;
    *p = '\0';
    do {
        *--p = (upper ? "0123456789ABCDEF" : "0123456789abcdef")[v % base];
        v /= base;
    } while (v);
    return p;
}

static unsigned base_of(char type)
{
    return type == 'x' || type == 'X' ? 16 : type == 'o' ? 8 : type == 'b' ? 2 : 10;
}

/* The number's digits with thousands apart: 1234567.5 -> 1,234,567.5 */
static void group_thousands(const char *digits, char *out)
{
    size_t whole = strspn(digits, "0123456789");
    for (size_t i = 0; i < whole; i++) {
        if (i && (whole - i) % 3 == 0)
            *out++ = ',';
        *out++ = digits[i];
    }
    strcpy(out, digits + whole);
}

/* Sign, prefix, zeros and digits put together and padded to the width. */
static const jstr *lay_out(jrt *rt, const spec *s, bool negative, const char *prefix,
                           const char *digits)
{
    jbuf b = {0};
    char head[8], grouped[900];
    if (s->comma) {
        group_thousands(digits, grouped);
        digits = grouped;
    }
    snprintf(head, sizeof head, "%s%s",
             negative         ? "-"
             : s->sign == '+' ? "+"
             : s->sign == ' ' ? " "
                              : "",
             prefix);
    char align = s->align ? s->align : '>';
    jbuf_puts(rt, &b, head);
    if (align == '=')
        for (int64_t n = (int64_t)(strlen(head) + strlen(digits)); n < s->width; n++)
            if (!jbuf_puts(rt, &b, s->fill))
                return NULL;
    jbuf_puts(rt, &b, digits);
    const jstr *text = jbuf_str(rt, &b), *fill = jstr_lit(rt, s->fill);
    return text && fill ? jstr_pad(rt, text, s->width, align, fill) : NULL;
}

static const jstr *format_int(jrt *rt, const spec *s, int64_t v)
{
    char buf[66];
    uint64_t u = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    const char *prefix = "";
    if (s->alt)
        prefix = s->type == 'x'   ? "0x"
                 : s->type == 'X' ? "0X"
                 : s->type == 'o' ? "0o"
                 : s->type == 'b' ? "0b"
                                  : "";
    return lay_out(rt, s, v < 0, prefix, integer_digits(u, base_of(s->type), s->type == 'X', buf));
}

static const jstr *format_float(jrt *rt, const spec *s, double f)
{
    char fmt[] = "%.*f", text[800];
    int precision = s->precision >= 0 ? (int)s->precision : 6;
    double v = fabs(f);
    if (isnan(f) || isinf(f)) {
        strcpy(text, isnan(f) ? "nan" : "inf");
    } else if (s->type == 0 && s->precision < 0) {
        jfloat_repr(v, text);
    } else {
        if (s->type == '%')
            v *= 100;
        fmt[3] = s->type == 0 ? 'g' : s->type == '%' ? 'f' : s->type;
        snprintf(text, sizeof text - 2, fmt, precision, v);
        if (s->type == '%')
            strcat(text, "%");
        if (s->type == 0 && !strpbrk(text, ".eni"))
            strcat(text, ".0");
    }
    return lay_out(rt, s, signbit(f) && !isnan(f), "", text);
}

static const jstr *format_text(jrt *rt, const spec *s, const jstr *text)
{
    const jstr *fill = jstr_lit(rt, s->fill);
    if (!text || !fill)
        return NULL;
    if (s->precision >= 0 && (size_t)s->precision < text->n)
        text = jstr_chars(rt, text, 0, (size_t)s->precision);
    return text ? jstr_pad(rt, text, s->width, s->align ? s->align : '<', fill) : NULL;
}

/* --- '%s' % x ------------------------------------------------------------------------------ */

typedef struct percent {
    jval args; /* a tuple's items one after another, or one value, or a dict */
    size_t next;
} percent;

static jval percent_next(jrt *rt, percent *a)
{
    bool tuple = a->args.type == J_TUPLE;
    size_t n = tuple ? a->args.l->n : 1;
    if (a->next >= n)
        return jtype_error(rt, "not enough arguments for the format string");
    a->next++;
    return tuple ? a->args.l->v[a->next - 1] : a->args;
}

static jval percent_key(jrt *rt, percent *a, const char **p, const char *end)
{
    const char *close = memchr(*p, ')', (size_t)(end - *p));
    if (a->args.type != J_DICT || !close)
        return jtype_error(rt, "'%%(name)' needs a dict on the right");
    jval key = j_str(jstr_new(rt, *p + 1, (size_t)(close - *p - 1)));
    const jval *v = rt->status ? NULL : jdict_get(rt, a->args.d, key);
    *p = close + 1;
    a->next = 1;
    return v ? *v : jtype_error(rt, "the format string's key is not in the dict");
}

static void percent_flags(spec *s, const char **p, const char *end)
{
    for (; *p < end && strchr("-+ #0", **p) && **p; (*p)++) {
        if (**p == '-')
            s->align = '<';
        else if (**p == '#')
            s->alt = true;
        else if (**p == '0')
            s->zero = true;
        else if (s->sign != '+')
            s->sign = **p;
    }
}

static const jstr *percent_value(jrt *rt, spec *s, jval v)
{
    jbuf b = {0};
    if (s->type == 's')
        return format_text(rt, s, jv_str(rt, v));
    if (s->type == 'r' || s->type == 'a')
        return jv_repr(rt, &b, v) ? format_text(rt, s, jbuf_str(rt, &b)) : NULL;
    if (s->type == 'c' && v.type == J_STR && v.s->n == 1)
        return format_text(rt, s, v.s);
    if (s->type == 'c' && jv_is_integral(v)) {
        jbuf_cp(rt, &b, (uint32_t)jv_int(v));
        return format_text(rt, s, jbuf_str(rt, &b));
    }
    if (s->zero && s->align != '<') {
        s->align = '=';
        strcpy(s->fill, "0");
    }
    if (strchr("diuoxX", s->type) && s->type) {
        bool whole = s->type == 'd' || s->type == 'i' || s->type == 'u';
        if (jv_is_integral(v))
            return format_int(rt, s, jv_int(v));
        if (v.type == J_FLOAT && whole && fabs(v.f) < 9.2e18)
            return format_int(rt, s, (int64_t)v.f);
    }
    if (strchr("eEfFgG", s->type) && s->type && jv_is_number(v))
        return format_float(rt, s, jv_double(v));
    jtype_error(rt, "'%%%c' does not format '%s'", s->type, jv_type_name(v));
    return NULL;
}

/* One conversion, p behind its '%'. */
static const char *percent_one(jrt *rt, jbuf *out, percent *a, const char *p, const char *end)
{
    spec s = {.fill = " ", .align = '>', .precision = -1};
    jval v = {.type = J_MISSING};
    if (p < end && *p == '(')
        v = percent_key(rt, a, &p, end);
    percent_flags(&s, &p, end);
    if (!read_number(rt, &p, end, MAX_WIDTH, &s.width))
        return end;
    if (p < end && *p == '.') {
        p++;
        read_number(rt, &p, end, MAX_PRECISION, &s.precision);
    }
    while (p < end && (*p == 'l' || *p == 'h' || *p == 'L'))
        p++;
    if (p >= end) {
        jtype_error(rt, "the format string ends within a conversion");
        return end;
    }
    s.type = *p++;
    if (s.type == '%') {
        jbuf_puts(rt, out, "%");
        return p;
    }
    if (v.type == J_MISSING)
        v = percent_next(rt, a);
    const jstr *text = rt->status ? NULL : percent_value(rt, &s, v);
    if (text)
        jbuf_add(rt, out, text->p, text->len);
    return p;
}

jval jpercent_format(jrt *rt, const jstr *fmt, jval args)
{
    percent a = {args, 0};
    jbuf out = {0};
    const char *p = fmt->p, *end = p + fmt->len;
    while (p < end && !rt->status) {
        const char *mark = memchr(p, '%', (size_t)(end - p));
        jbuf_add(rt, &out, p, (size_t)((mark ? mark : end) - p));
        p = mark ? percent_one(rt, &out, &a, mark + 1, end) : end;
    }
    bool mapping = args.type == J_DICT || args.type == J_LIST || args.type == J_UNDEFINED ||
                   args.type == J_RANGE;
    size_t given = args.type == J_TUPLE ? args.l->n : 1;
    if (!rt->status && !mapping && a.next < given)
        return jtype_error(rt, "not all arguments were used by the format string");
    return j_str(jbuf_str(rt, &out));
}

/* --- '{}'.format(x) ------------------------------------------------------------------------ */

typedef struct braces {
    const jcall *c;
    size_t next;
    bool numbered, automatic;
} braces;

static bool parse_spec(jrt *rt, const char *p, const char *end, spec *s)
{
    *s = (spec){.fill = " ", .precision = -1, .empty = p == end};
    if (p < end) {
        uint32_t cp;
        size_t n = st_utf8_decode(p, (size_t)(end - p), &cp);
        if (p + n < end && strchr("<>^=", p[n]) && p[n]) {
            memcpy(s->fill, p, n);
            s->fill[n] = '\0';
            s->align = p[n];
            p += n + 1;
        } else if (strchr("<>^=", *p) && *p) {
            s->align = *p++;
        }
    }
    for (; p < end && (*p == '+' || *p == '-' || *p == ' '); p++)
        s->sign = *p == '-' ? 0 : *p;
    if (p < end && *p == '#') {
        s->alt = true;
        p++;
    }
    if (p < end && *p == '0') {
        if (!s->align) {
            s->align = '=';
            strcpy(s->fill, "0");
        }
        s->zero = true;
        p++;
    }
    if (!read_number(rt, &p, end, MAX_WIDTH, &s->width))
        return false;
    if (p < end && *p == ',') {
        s->comma = true;
        p++;
    }
    if (p < end && *p == '.') {
        p++;
        if (!read_number(rt, &p, end, MAX_PRECISION, &s->precision))
            return false;
    }
    if (p < end)
        s->type = *p++;
    if (p == end)
        return true;
    jtype_error(rt, "a format specification is not understood");
    return false;
}

static const jstr *braces_value(jrt *rt, const spec *s, jval v)
{
    if (jv_is_integral(v) && (v.type == J_INT || !s->empty) &&
        (!s->type || strchr("dnoxXb", s->type)))
        return format_int(rt, s, jv_int(v));
    if (jv_is_number(v) && (v.type == J_FLOAT || s->type) &&
        (!s->type || strchr("eEfFgG%", s->type)))
        return format_float(rt, s, jv_double(v));
    if (s->type && s->type != 's') {
        jtype_error(rt, "format '%c' does not suit '%s'", s->type, jv_type_name(v));
        return NULL;
    }
    if (v.type == J_STR) {
        if (s->align == '=' && !s->zero)
            return jtype_error(rt, "'=' does not align strings"), NULL;
        spec text = *s;
        if (s->align == '=')
            text.align = '<';
        return format_text(rt, &text, v.s);
    }
    return format_text(rt, s, jv_str(rt, v));
}

static jval braces_first(jrt *rt, braces *a, const char *p, size_t n)
{
    int64_t i = 0;
    const char *q = p;
    if (n == 0) {
        if (a->numbered)
            return jtype_error(rt, "format() mixes '{}' and '{0}'");
        a->automatic = true;
        i = (int64_t)a->next++;
    } else if (*p >= '0' && *p <= '9') {
        if (!read_number(rt, &q, p + n, 1000000, &i) || q != p + n)
            return jtype_error(rt, "format(): a field is no number and no name");
        if (a->automatic)
            return jtype_error(rt, "format() mixes '{}' and '{0}'");
        a->numbered = true;
    } else {
        for (size_t k = 0; k < a->c->nk; k++)
            if (a->c->names[k]->len == n && memcmp(a->c->names[k]->p, p, n) == 0)
                return a->c->kv[k];
        return jtype_error(rt, "format(): no argument is named '%.*s'", (int)n, p);
    }
    if ((size_t)i >= a->c->n)
        return jtype_error(rt, "format(): there is no argument %" PRId64, i);
    return a->c->v[i];
}

/* name(.attribute | [index])* */
static jval braces_field(jrt *rt, braces *a, const char *p, size_t n)
{
    size_t at = 0;
    while (at < n && p[at] != '.' && p[at] != '[')
        at++;
    jval v = braces_first(rt, a, p, at);
    while (at < n && !rt->status) {
        bool item = p[at++] == '[';
        size_t from = at;
        while (at < n && (item ? p[at] != ']' : p[at] != '.' && p[at] != '['))
            at++;
        const jstr *name = jstr_new(rt, p + from, at - from);
        const char *q = p + from;
        int64_t i = 0;
        if (!name)
            break;
        bool number = item && name->len && read_number(rt, &q, p + at, 1000000, &i) && q == p + at;
        v = number ? jitem(rt, v, j_int(i)) : item ? jitem(rt, v, j_str(name)) : jattr(rt, v, name);
        at += item;
    }
    return v;
}

static const char *braces_one(jrt *rt, jbuf *out, braces *a, const char *p, const char *end)
{
    const char *close = memchr(p, '}', (size_t)(end - p));
    if (!close || memchr(p, '{', (size_t)(close - p))) {
        jtype_error(rt, close ? "format(): nested fields are not supported"
                              : "format(): a '{' is not closed");
        return end;
    }
    const char *colon = memchr(p, ':', (size_t)(close - p));
    const char *name_end = colon ? colon : close;
    const char *bang = memchr(p, '!', (size_t)(name_end - p));
    jval v = braces_field(rt, a, p, (size_t)((bang ? bang : name_end) - p));
    spec s;
    if (rt->status || !parse_spec(rt, colon ? colon + 1 : close, close, &s))
        return end;
    if (bang) {
        jbuf text = {0};
        if (name_end - bang != 2 || !strchr("rs", bang[1]))
            jtype_error(rt, "format(): a conversion is '!r' or '!s'");
        else if (bang[1] == 'r')
            jv_repr(rt, &text, v);
        else
            jv_print(rt, &text, v);
        v = j_str(jbuf_str(rt, &text));
    }
    const jstr *text = rt->status ? NULL : braces_value(rt, &s, v);
    if (text)
        jbuf_add(rt, out, text->p, text->len);
    return close + 1;
}

jval jstr_format(jrt *rt, const jstr *fmt, const jcall *c)
{
    braces a = {.c = c};
    jbuf out = {0};
    const char *p = fmt->p, *end = p + fmt->len;
    while (p < end && jstep(rt, 1)) {
        if (*p != '{' && *p != '}') {
            jbuf_add(rt, &out, p++, 1);
        } else if (p + 1 < end && p[1] == *p) {
            jbuf_add(rt, &out, p, 1);
            p += 2;
        } else if (*p == '{') {
            p = braces_one(rt, &out, &a, p + 1, end);
        } else {
            return jtype_error(rt, "format(): a '}' stands alone");
        }
    }
    return j_str(jbuf_str(rt, &out));
}
