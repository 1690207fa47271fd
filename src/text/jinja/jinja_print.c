/* Printing template values as Python does: str(), repr(), json.dumps(). */
#include "text/jinja/jinja_value.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "base/utf8.h"
#include "text/jinja/jinja_eval.h"

/* The shortest digits that read back as f, laid out as Python's repr: an exponent below 1e-4 and
 * from 1e16 on, otherwise a decimal point. */
void jfloat_repr(double f, char out[40])
{
    char digits[40];
    if (isnan(f) || isinf(f)) {
        strcpy(out, isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
        return;
    }
    for (int p = 0; p < 17; p++) {
        snprintf(digits, sizeof digits, "%.*e", p, f);
        if (strtod(digits, NULL) == f)
            break;
    }
    char *e = strchr(digits, 'e');
    int exp10 = atoi(e + 1);
    if (exp10 < -4 || exp10 >= 16) {
        snprintf(out, 40, "%.*se%c%02d", (int)(e - digits), digits, exp10 < 0 ? '-' : '+',
                 abs(exp10));
        return;
    }
    int decimals = (int)(e - digits) - (digits[0] == '-') - 1; /* digits after the first, and '.' */
    decimals = (decimals > 0 ? decimals - 1 : 0) - exp10;
    snprintf(out, 40, "%.*f", decimals > 0 ? decimals : 1, f);
}

/* Python's str.isprintable. */
static bool printable(uint32_t cp)
{
    if (cp < 0x7F)
        return cp >= 0x20;
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

static bool repr_char(jrt *rt, jbuf *b, uint32_t cp, char quote)
{
    char text[16];
    if (cp == (uint32_t)quote || cp == '\\')
        snprintf(text, sizeof text, "\\%c", (char)cp);
    else if (cp == '\n' || cp == '\r' || cp == '\t')
        snprintf(text, sizeof text, "\\%c", cp == '\n' ? 'n' : cp == '\r' ? 'r' : 't');
    else if (printable(cp))
        return jbuf_cp(rt, b, cp);
    else if (cp < 0x100)
        snprintf(text, sizeof text, "\\x%02x", cp);
    else if (cp < 0x10000)
        snprintf(text, sizeof text, "\\u%04x", cp);
    else
        snprintf(text, sizeof text, "\\U%08x", cp);
    return jbuf_puts(rt, b, text);
}

static bool repr_str(jrt *rt, jbuf *b, const jstr *s)
{
    bool single = memchr(s->p, '\'', s->len), dbl = memchr(s->p, '"', s->len);
    char quote = single && !dbl ? '"' : '\'';
    jbuf_add(rt, b, &quote, 1);
    for (size_t i = 0; i < s->len && jstep(rt, 1);) {
        uint32_t cp;
        i += st_utf8_decode(s->p + i, s->len - i, &cp);
        repr_char(rt, b, cp, quote);
    }
    return jbuf_add(rt, b, &quote, 1);
}

static bool repr_items(jrt *rt, jbuf *b, const jlist *l, const char *open, const char *close)
{
    jbuf_puts(rt, b, open);
    for (size_t i = 0; i < l->n && !rt->status; i++) {
        if (i)
            jbuf_puts(rt, b, ", ");
        jv_repr(rt, b, l->v[i]);
    }
    return jbuf_puts(rt, b, close);
}

static bool repr_dict(jrt *rt, jbuf *b, const jdict *d)
{
    jbuf_puts(rt, b, "{");
    for (size_t i = 0; i < d->n && !rt->status; i++) {
        if (i)
            jbuf_puts(rt, b, ", ");
        jv_repr(rt, b, d->e[i].key);
        jbuf_puts(rt, b, ": ");
        jv_repr(rt, b, d->e[i].value);
    }
    return jbuf_puts(rt, b, "}");
}

static bool repr_range(jrt *rt, jbuf *b, const jrange *r)
{
    char text[100];
    int n = snprintf(text, sizeof text, "range(%" PRId64 ", %" PRId64, r->start, r->stop);
    if (r->step != 1)
        n += snprintf(text + n, sizeof text - (size_t)n, ", %" PRId64, r->step);
    snprintf(text + n, sizeof text - (size_t)n, ")");
    return jbuf_puts(rt, b, text);
}

static bool repr_container(jrt *rt, jbuf *b, jval v)
{
    switch (v.type) {
    case J_LIST:
        return repr_items(rt, b, v.l, "[", "]");
    case J_TUPLE:
        return repr_items(rt, b, v.l, "(", v.l->n == 1 ? ",)" : ")");
    case J_VIEW:
        return jbuf_puts(rt, b, v.l->name) && repr_items(rt, b, v.l, "([", "])");
    case J_DICT:
        return repr_dict(rt, b, v.d);
    case J_NAMESPACE:
        return jbuf_puts(rt, b, "<Namespace ") && repr_dict(rt, b, v.ns->d) &&
               jbuf_puts(rt, b, ">");
    default:
        return jbuf_puts(rt, b, "<") && jbuf_puts(rt, b, jv_type_name(v)) &&
               jbuf_puts(rt, b, " object>");
    }
}

bool jv_repr(jrt *rt, jbuf *b, jval v)
{
    char text[40];
    switch (v.type) {
    case J_MISSING:
    case J_UNDEFINED:
        return jbuf_puts(rt, b, "Undefined");
    case J_NONE:
        return jbuf_puts(rt, b, "None");
    case J_BOOL:
        return jbuf_puts(rt, b, v.b ? "True" : "False");
    case J_INT:
        snprintf(text, sizeof text, "%" PRId64, v.i);
        return jbuf_puts(rt, b, text);
    case J_FLOAT:
        jfloat_repr(v.f, text);
        return jbuf_puts(rt, b, text);
    case J_STR:
        return repr_str(rt, b, v.s);
    case J_RANGE:
        return repr_range(rt, b, v.r);
    case J_LOOP:
        return jloop_repr(rt, b, v.loop);
    case J_MACRO:
        return jmacro_repr(rt, b, v.macro);
    default:
        if (!jenter(rt))
            return false;
        repr_container(rt, b, v);
        jleave(rt);
        return !rt->status;
    }
}

bool jv_print(jrt *rt, jbuf *b, jval v)
{
    if (v.type == J_STR)
        return jbuf_add(rt, b, v.s->p, v.s->len);
    if (v.type == J_UNDEFINED || v.type == J_MISSING)
        return !rt->status;
    return jv_repr(rt, b, v);
}

const jstr *jv_str(jrt *rt, jval v)
{
    if (v.type == J_STR)
        return rt->status ? NULL : v.s;
    jbuf b = {0};
    return jv_print(rt, &b, v) ? jbuf_str(rt, &b) : NULL;
}

/* --- JSON ---------------------------------------------------------------------------------- */

static bool json_char(jrt *rt, jbuf *b, uint32_t cp, bool ascii)
{
    static const char named[] = "\"\\\n\r\t\b\f", letters[] = "\"\\nrtbf";
    char text[16];
    const char *at = cp && cp < 0x80 ? strchr(named, (char)cp) : NULL;
    if (at)
        snprintf(text, sizeof text, "\\%c", letters[at - named]);
    else if (cp < 0x20 || (ascii && cp >= 0x7F && cp < 0x10000))
        snprintf(text, sizeof text, "\\u%04x", cp);
    else if (ascii && cp >= 0x10000)
        snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xD800 + ((cp - 0x10000) >> 10),
                 0xDC00 + ((cp - 0x10000) & 0x3FF));
    else
        return jbuf_cp(rt, b, cp);
    return jbuf_puts(rt, b, text);
}

static bool json_str(jrt *rt, jbuf *b, const jstr *s, bool ascii)
{
    jbuf_add(rt, b, "\"", 1);
    for (size_t i = 0; i < s->len && jstep(rt, 1);) {
        size_t run = i; /* copy what needs no care in one piece */
        while (run < s->len && (unsigned char)s->p[run] >= 0x20 && s->p[run] != '"' &&
               s->p[run] != '\\' && (!ascii || (unsigned char)s->p[run] < 0x7F))
            run++;
        jbuf_add(rt, b, s->p + i, run - i);
        i = run;
        if (i < s->len) {
            uint32_t cp;
            i += st_utf8_decode(s->p + i, s->len - i, &cp);
            json_char(rt, b, cp, ascii);
        }
    }
    return jbuf_add(rt, b, "\"", 1);
}

static bool json_float(jrt *rt, jbuf *b, double f)
{
    char text[40];
    if (isnan(f))
        return jbuf_puts(rt, b, "NaN");
    if (isinf(f))
        return jbuf_puts(rt, b, f < 0 ? "-Infinity" : "Infinity");
    jfloat_repr(f, text);
    return jbuf_puts(rt, b, text);
}

static bool newline_indent(jrt *rt, jbuf *b, const jjson_opts *o, int level)
{
    if (!o->indent)
        return !rt->status;
    jbuf_add(rt, b, "\n", 1);
    for (int i = 0; i < level; i++)
        if (!jbuf_add(rt, b, o->indent->p, o->indent->len))
            return false;
    return true;
}

static bool json_list(jrt *rt, jbuf *b, const jlist *l, const jjson_opts *o, int level)
{
    if (l->n == 0)
        return jbuf_puts(rt, b, "[]");
    jbuf_puts(rt, b, "[");
    for (size_t i = 0; i < l->n && !rt->status; i++) {
        if (i)
            jbuf_add(rt, b, o->item_sep->p, o->item_sep->len);
        newline_indent(rt, b, o, level + 1);
        jv_json(rt, b, l->v[i], o, level + 1);
    }
    newline_indent(rt, b, o, level);
    return jbuf_puts(rt, b, "]");
}

/* Keys that are not strings are written as JSON would write them, in quotes. */
static bool json_key(jrt *rt, jbuf *b, jval k, const jjson_opts *o)
{
    if (k.type == J_STR)
        return json_str(rt, b, k.s, o->ensure_ascii);
    if (!jv_is_number(k) && k.type != J_NONE)
        return jtype_error(rt, "tojson: keys must be strings, numbers, booleans or none, not '%s'",
                           jv_type_name(k)),
               false;
    return jbuf_puts(rt, b, "\"") && jv_json(rt, b, k, o, 0) && jbuf_puts(rt, b, "\"");
}

static int by_key(jrt *rt, const jentry *a, const jentry *b)
{
    return jv_order(rt, a->key, b->key, "<");
}

static void sort_entries(jrt *rt, jentry *e, jentry *tmp, size_t n)
{
    if (n < 2 || rt->status)
        return;
    size_t half = n / 2, i = 0, k = half, at = 0;
    sort_entries(rt, e, tmp, half);
    sort_entries(rt, e + half, tmp, n - half);
    while (i < half && k < n && !rt->status)
        tmp[at++] = by_key(rt, &e[k], &e[i]) < 0 ? e[k++] : e[i++];
    while (i < half)
        tmp[at++] = e[i++];
    memcpy(e, tmp, at * sizeof *e);
}

static bool json_dict(jrt *rt, jbuf *b, const jdict *d, const jjson_opts *o, int level)
{
    if (d->n == 0)
        return jbuf_puts(rt, b, "{}");
    jentry *e = d->e;
    if (o->sort_keys) {
        e = jalloc_array(rt, 2 * d->n, sizeof *e);
        if (!e)
            return false;
        memcpy(e, d->e, d->n * sizeof *e);
        sort_entries(rt, e, e + d->n, d->n);
    }
    jbuf_puts(rt, b, "{");
    for (size_t i = 0; i < d->n && !rt->status; i++) {
        if (i)
            jbuf_add(rt, b, o->item_sep->p, o->item_sep->len);
        newline_indent(rt, b, o, level + 1);
        json_key(rt, b, e[i].key, o);
        jbuf_add(rt, b, o->key_sep->p, o->key_sep->len);
        jv_json(rt, b, e[i].value, o, level + 1);
    }
    newline_indent(rt, b, o, level);
    return jbuf_puts(rt, b, "}");
}

bool jv_json(jrt *rt, jbuf *b, jval v, const jjson_opts *o, int level)
{
    switch (v.type) {
    case J_NONE:
        return jbuf_puts(rt, b, "null");
    case J_BOOL:
        return jbuf_puts(rt, b, v.b ? "true" : "false");
    case J_INT:
        return jv_repr(rt, b, v);
    case J_FLOAT:
        return json_float(rt, b, v.f);
    case J_STR:
        return json_str(rt, b, v.s, o->ensure_ascii);
    case J_LIST:
    case J_TUPLE:
    case J_DICT:
        if (!jenter(rt))
            return false;
        if (v.type == J_DICT)
            json_dict(rt, b, v.d, o, level);
        else
            json_list(rt, b, v.l, o, level);
        jleave(rt);
        return !rt->status;
    default:
        jtype_error(rt, "tojson: an object of type '%s' has no JSON form", jv_type_name(v));
        return false;
    }
}
