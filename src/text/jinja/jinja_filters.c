/* Filters on text, numbers and single values, and the look-up of all filters. */
#include "text/jinja/jinja_filters.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "text/jinja/jinja_strings.h"

int64_t jarg_int(jrt *rt, jval v, int64_t missing, const char *what)
{
    if (!jgiven(v))
        return missing;
    if (jv_is_integral(v))
        return jv_int(v);
    jtype_error(rt, "%s must be an integer, not '%s'", what, jv_type_name(v));
    return missing;
}

bool jarg_bool(jrt *rt, jval v, bool missing)
{
    return jgiven(v) ? jv_truthy(rt, v) : missing;
}

/* --- single values ------------------------------------------------------------------------- */

static JFILTER(f_default)
{
    bool absent = in.type == J_UNDEFINED || (jarg_bool(rt, arg[1], false) && !jv_truthy(rt, in));
    return !absent ? in : jgiven(arg[0]) ? arg[0] : j_str(jstr_lit(rt, ""));
}

static JFILTER(f_string)
{
    return j_str(jv_str(rt, in));
}

static JFILTER(f_attr)
{
    const jstr *name = jv_str(rt, arg[0]);
    return name ? jattr_only(rt, in, name) : j_undef();
}

static const jstr *indent_text(jrt *rt, jval v)
{
    if (!jgiven(v) || v.type == J_NONE)
        return NULL;
    if (v.type == J_STR)
        return v.s;
    const jstr *space = jstr_lit(rt, " "), *none = jstr_lit(rt, "");
    int64_t n = jarg_int(rt, v, 0, "tojson: indent");
    return space && none ? jstr_pad(rt, none, n > 1000 ? 1000 : n, '<', space) : NULL;
}

static JFILTER(f_tojson)
{
    jjson_opts o = {
        .ensure_ascii = jarg_bool(rt, arg[0], false),
        .indent = indent_text(rt, arg[1]),
        .sort_keys = jarg_bool(rt, arg[3], false),
    };
    o.item_sep = jstr_lit(rt, o.indent ? "," : ", ");
    o.key_sep = jstr_lit(rt, ": ");
    jval sep = arg[2];
    if (jgiven(sep) && sep.type != J_NONE) {
        bool pair = (sep.type == J_TUPLE || sep.type == J_LIST) && sep.l->n == 2 &&
                    sep.l->v[0].type == J_STR && sep.l->v[1].type == J_STR;
        if (!pair)
            return jtype_error(rt, "tojson: separators must be a pair of strings");
        o.item_sep = sep.l->v[0].s;
        o.key_sep = sep.l->v[1].s;
    }
    jbuf b = {0};
    if (rt->status || !jv_json(rt, &b, in, &o, 0))
        return j_undef();
    return j_str(jbuf_str(rt, &b));
}

/* --- text ---------------------------------------------------------------------------------- */

static JFILTER(f_upper)
{
    const jstr *s = jv_str(rt, in);
    return s ? j_str(jstr_case(rt, s, JCASE_UPPER)) : j_undef();
}

static JFILTER(f_lower)
{
    const jstr *s = jv_str(rt, in);
    return s ? j_str(jstr_case(rt, s, JCASE_LOWER)) : j_undef();
}

static JFILTER(f_capitalize)
{
    const jstr *s = jv_str(rt, in);
    return s ? j_str(jstr_case(rt, s, JCASE_CAPITALIZE)) : j_undef();
}

static bool splits_words(uint32_t cp)
{
    return jchar_is_space(cp) || cp == '-' || cp == '(' || cp == '{' || cp == '[' || cp == '<';
}

static void title_word(jrt *rt, jbuf *b, const jstr *s, size_t from, size_t to)
{
    if (from == to)
        return;
    uint32_t cp;
    size_t n = st_utf8_decode(s->p + from, to - from, &cp);
    const jstr *head = jstr_sub(rt, s, from, from + n), *tail = jstr_sub(rt, s, from + n, to);
    head = head ? jstr_case(rt, head, JCASE_UPPER) : NULL;
    tail = tail ? jstr_case(rt, tail, JCASE_LOWER) : NULL;
    if (head && tail && jbuf_add(rt, b, head->p, head->len))
        jbuf_add(rt, b, tail->p, tail->len);
}

/* Words begin behind white space and opening brackets, not behind every non-letter as with
 * Python's own title(). */
static JFILTER(f_title)
{
    const jstr *s = jv_str(rt, in);
    jbuf b = {0};
    size_t from = 0;
    for (size_t i = 0, n; s && i < s->len && jstep(rt, 1); i += n) {
        uint32_t cp;
        n = st_utf8_decode(s->p + i, s->len - i, &cp);
        if (!splits_words(cp))
            continue;
        title_word(rt, &b, s, from, i);
        jbuf_add(rt, &b, s->p + i, n);
        from = i + n;
    }
    if (!s)
        return j_undef();
    title_word(rt, &b, s, from, s->len);
    return j_str(jbuf_str(rt, &b));
}

static JFILTER(f_trim)
{
    const jstr *s = jv_str(rt, in), *chars = NULL;
    if (jgiven(arg[0]) && arg[0].type != J_NONE) {
        if (arg[0].type != J_STR)
            return jtype_error(rt, "trim: the characters must be a string");
        chars = arg[0].s;
    }
    return s ? jstr_strip(rt, s, chars, JSTRIP_LEFT | JSTRIP_RIGHT) : j_undef();
}

static JFILTER(f_replace)
{
    const jstr *s = jv_str(rt, in), *from = jv_str(rt, arg[0]), *to = jv_str(rt, arg[1]);
    int64_t max = jgiven(arg[2]) && arg[2].type != J_NONE
                      ? jarg_int(rt, arg[2], -1, "replace: the count")
                      : -1;
    return s && from && to && !rt->status ? j_str(jstr_replace(rt, s, from, to, max)) : j_undef();
}

static JFILTER(f_indent)
{
    if (in.type != J_STR)
        return in.type == J_UNDEFINED
                   ? j_undef_error(rt, in)
                   : jtype_error(rt, "indent works on strings, not '%s'", jv_type_name(in));
    const jstr *space = jstr_lit(rt, " "), *none = jstr_lit(rt, "");
    const jstr *by = arg[0].type == J_STR ? arg[0].s : NULL;
    if (!by && space && none)
        by = jstr_pad(rt, none, jarg_int(rt, arg[0], 4, "indent: the width"), '<', space);
    bool first = jarg_bool(rt, arg[1], false), blank = jarg_bool(rt, arg[2], false);
    jval text = by ? jv_concat(rt, in.s, jstr_lit(rt, "\n")) : j_undef();
    jlist *lines = rt->status ? NULL : jstr_lines(rt, text.s, false);
    jbuf b = {0};
    for (size_t i = 0; lines && i < lines->n && !rt->status; i++) {
        const jstr *line = lines->v[i].s;
        if (i)
            jbuf_add(rt, &b, "\n", 1);
        if (i == 0 ? first : blank || line->len)
            jbuf_add(rt, &b, by->p, by->len);
        jbuf_add(rt, &b, line->p, line->len);
    }
    return j_str(jbuf_str(rt, &b));
}

static JFILTER(f_escape)
{
    static const char from[] = "&<>'\"";
    static const char *const to[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    const jstr *s = jv_str(rt, in);
    jbuf b = {0};
    for (size_t i = 0; s && i < s->len && jstep(rt, 1); i++) {
        const char *at = s->p[i] ? strchr(from, s->p[i]) : NULL;
        if (at)
            jbuf_puts(rt, &b, to[at - from]);
        else
            jbuf_add(rt, &b, s->p + i, 1);
    }
    return s ? j_str(jbuf_str(rt, &b)) : j_undef();
}

static JFILTER(f_wordcount)
{
    const jstr *s = jv_str(rt, in);
    int64_t words = 0;
    bool in_word = false;
    for (size_t i = 0; s && i < s->len && jstep(rt, 1);) {
        uint32_t cp;
        i += st_utf8_decode(s->p + i, s->len - i, &cp);
        bool w = cp == '_' || jchar_is_alpha(cp) || jchar_is_numeric(cp);
        words += w && !in_word;
        in_word = w;
    }
    return j_int(words);
}

static JFILTER(f_center)
{
    const jstr *s = jv_str(rt, in);
    jval call[] = {jgiven(arg[0]) ? arg[0] : j_int(80), {.type = J_MISSING}};
    jstr name = {"center", 6, 6};
    return s ? jmethod_find(J_STR, &name)->fn(rt, j_str(s), c, call) : j_undef();
}

static JFILTER(f_truncate)
{
    const jstr *end = jgiven(arg[2]) ? jv_str(rt, arg[2]) : jstr_lit(rt, "...");
    int64_t length = jarg_int(rt, arg[0], 255, "truncate: the length");
    int64_t leeway = jgiven(arg[3]) && arg[3].type != J_NONE
                         ? jarg_int(rt, arg[3], 5, "truncate: the leeway")
                         : 5;
    if (in.type != J_STR || !end || length < (int64_t)end->n || leeway < 0)
        return jtype_error(rt, "truncate needs a string and a length of at least that of its end");
    if ((int64_t)in.s->n - leeway <= length)
        return in;
    const jstr *s = jstr_chars(rt, in.s, 0, (size_t)(length - (int64_t)end->n));
    if (s && !jarg_bool(rt, arg[1], false)) {
        const char *space = memrchr(s->p, ' ', s->len);
        s = jstr_sub(rt, s, 0, space ? (size_t)(space - s->p) : s->len);
    }
    return s ? jv_concat(rt, s, end) : j_undef();
}

static JFILTER(f_format)
{
    const jstr *s = jv_str(rt, in);
    if (!s || (c->n && c->nk))
        return jtype_error(rt, "format takes positional or keyword arguments, not both");
    if (c->nk) {
        jdict *d = jdict_new(rt);
        for (size_t i = 0; i < c->nk; i++)
            jdict_set(rt, d, j_str(c->names[i]), c->kv[i]);
        return rt->status ? j_undef() : jpercent_format(rt, s, j_dict(d));
    }
    jlist *l = jlist_new(rt, c->n);
    for (size_t i = 0; i < c->n; i++)
        jlist_push(rt, l, c->v[i]);
    return rt->status ? j_undef() : jpercent_format(rt, s, j_seq(J_TUPLE, l));
}

/* --- numbers ------------------------------------------------------------------------------- */

/* s without surrounding white space and single underscores between digits, as a C string. */
static bool number_text(const jstr *s, char *out, size_t cap)
{
    size_t n = 0, to = jstr_rstrip_bytes(s->p, s->len), i = 0;
    while (i < to) {
        uint32_t cp;
        size_t k = st_utf8_decode(s->p + i, to - i, &cp);
        if (!jchar_is_space(cp))
            break;
        i += k;
    }
    for (; i < to; i++) {
        if (s->p[i] == '_' && n && isalnum((unsigned char)out[n - 1]) && i + 1 < to &&
            isalnum((unsigned char)s->p[i + 1]))
            continue;
        if (n + 1 >= cap || s->p[i] == '_' || isspace((unsigned char)s->p[i]) || s->p[i] == 0)
            return false;
        out[n++] = s->p[i];
    }
    out[n] = '\0';
    return n > 0;
}

static bool parse_int(const jstr *s, int64_t base, int64_t *out)
{
    char text[128], *end, *p = text;
    if (!number_text(s, text, sizeof text))
        return false;
    bool negative = *p == '-';
    p += *p == '-' || *p == '+';
    if (!isalnum((unsigned char)*p))
        return false;
    int prefix = (p[1] | 32) == 'x' ? 16 : (p[1] | 32) == 'o' ? 8 : (p[1] | 32) == 'b' ? 2 : 0;
    if (*p == '0' && prefix && isalnum((unsigned char)p[2]) && (base == 0 || base == prefix)) {
        base = prefix;
        p += 2;
    } else if (base == 0) {
        if (*p == '0' && p[strspn(p, "0")])
            return false;
        base = 10;
    }
    if (p[0] == '0' && (p[1] | 32) == 'x') /* strtoull would take it for a prefix */
        return false;
    errno = 0;
    unsigned long long v = strtoull(p, &end, (int)base);
    if (end == p || *end || errno || v > (unsigned long long)INT64_MAX)
        return false;
    *out = negative ? -(int64_t)v : (int64_t)v;
    return true;
}

static bool parse_float(const jstr *s, double *out)
{
    char text[512], *end;
    if (!number_text(s, text, sizeof text) || strpbrk(text, "xXpP("))
        return false;
    *out = strtod(text, &end);
    return *end == '\0';
}

static JFILTER(f_int)
{
    jval otherwise = jgiven(arg[0]) ? arg[0] : j_int(0);
    int64_t base = jarg_int(rt, arg[1], 10, "int: the base"), i;
    double f = NAN;
    if (in.type == J_UNDEFINED)
        return j_undef_error(rt, in);
    if (jv_is_integral(in))
        return j_int(jv_int(in));
    if (in.type == J_FLOAT)
        f = in.f;
    if (in.type == J_FLOAT && isinf(f))
        return jtype_error(rt, "infinity is no integer");
    if (in.type == J_STR) {
        if (base != 0 && (base < 2 || base > 36))
            return otherwise;
        if (parse_int(in.s, base, &i))
            return j_int(i);
        parse_float(in.s, &f);
    }
    if (isnan(f) || isinf(f))
        return otherwise;
    return fabs(f) < 9.2e18 ? j_int((int64_t)f)
                            : jtype_error(rt, "int: a number is beyond 64 bits");
}

static JFILTER(f_float)
{
    double f;
    if (in.type == J_UNDEFINED)
        return j_undef_error(rt, in);
    if (jv_is_number(in))
        return j_float(jv_double(in));
    if (in.type == J_STR && parse_float(in.s, &f))
        return j_float(f);
    return jgiven(arg[0]) ? arg[0] : j_float(0.0);
}

/* Half to even, decided on the exact binary value: what printf does. */
static double round_decimals(double f, int64_t digits)
{
    char text[700];
    if (!isfinite(f) || digits > 300)
        return f;
    if (digits >= 0) {
        snprintf(text, sizeof text, "%.*f", (int)digits, f);
        return strtod(text, NULL);
    }
    double unit = pow(10, (double)(digits < -400 ? 400 : -digits));
    return isinf(unit) ? copysign(0.0, f) : nearbyint(f / unit) * unit;
}

static jval round_int(jrt *rt, int64_t i, int64_t digits)
{
    if (digits >= 0)
        return j_int(i);
    int64_t unit = 1;
    for (int64_t k = 0; k > digits; k--)
        if (__builtin_mul_overflow(unit, (int64_t)10, &unit))
            return j_int(0);
    int64_t q = i / unit, r = i % unit, half = unit / 2;
    if (r > half || (r == half && (q & 1)))
        q++;
    else if (-r > half || (-r == half && (q & 1)))
        q--;
    return jbinary(rt, OP_MUL, j_int(q), j_int(unit));
}

static JFILTER(f_round)
{
    int64_t digits = jarg_int(rt, arg[0], 0, "round: the precision");
    const jstr *method = arg[1].type == J_STR ? arg[1].s : NULL;
    if (jgiven(arg[1]) && (!method || (!jstr_is(method, "common") && !jstr_is(method, "ceil") &&
                                       !jstr_is(method, "floor"))))
        return jtype_error(rt, "round: the method must be 'common', 'ceil' or 'floor'");
    if (!jv_is_number(in))
        return in.type == J_UNDEFINED
                   ? j_undef_error(rt, in)
                   : jtype_error(rt, "round needs a number, not '%s'", jv_type_name(in));
    if (method && !jstr_is(method, "common")) {
        double unit = pow(10, (double)digits), v = jv_double(in) * unit;
        return j_float((jstr_is(method, "ceil") ? ceil(v) : floor(v)) / unit);
    }
    if (jv_is_integral(in))
        return round_int(rt, jv_int(in), digits);
    return j_float(round_decimals(in.f, digits));
}

static JFILTER(f_abs)
{
    if (in.type == J_FLOAT)
        return j_float(fabs(in.f));
    if (jv_is_integral(in))
        return jv_int(in) < 0 ? jbinary(rt, OP_SUB, j_int(0), in) : j_int(jv_int(in));
    if (in.type == J_UNDEFINED)
        return j_undef_error(rt, in);
    return jtype_error(rt, "abs needs a number, not '%s'", jv_type_name(in));
}

/* --- look-up ------------------------------------------------------------------------------- */

static const jfilter_def filters[] = {
    {"default", "default_value boolean", f_default},
    {"d", "default_value boolean", f_default},
    {"string", "", f_string},
    {"safe", "", f_string},
    {"attr", "name*", f_attr},
    {"tojson", "ensure_ascii indent separators sort_keys", f_tojson},
    {"upper", "", f_upper},
    {"lower", "", f_lower},
    {"capitalize", "", f_capitalize},
    {"title", "", f_title},
    {"trim", "chars", f_trim},
    {"replace", "old* new* count", f_replace},
    {"indent", "width first blank", f_indent},
    {"escape", "", f_escape},
    {"e", "", f_escape},
    {"forceescape", "", f_escape},
    {"wordcount", "", f_wordcount},
    {"center", "width", f_center},
    {"truncate", "length killwords end leeway", f_truncate},
    {"format", NULL, f_format},
    {"int", "default base", f_int},
    {"float", "default", f_float},
    {"round", "precision method", f_round},
    {"abs", "", f_abs},
    {NULL, NULL, NULL},
};

const jfilter_def *jinja_filter_find(const jstr *name)
{
    for (const jfilter_def *f = filters; f->name; f++)
        if (jstr_is(name, f->name))
            return f;
    for (const jfilter_def *f = jinja_filters_seq; f->name; f++)
        if (jstr_is(name, f->name))
            return f;
    return NULL;
}
