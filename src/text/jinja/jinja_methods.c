/* Methods of strings, lists, dicts and the small helper objects, with Python's meaning. */
#include <string.h>

#include "base/utf8.h"
#include "text/jinja/jinja_eval.h"
#include "text/jinja/jinja_strings.h"

#define METHOD(name) static jval name(jrt *rt, jval self, const jcall *c, const jval *arg)

static bool given(jval v)
{
    return v.type != J_MISSING;
}

/* A string argument, or a failure; what names it in the error. */
static const jstr *want_str(jrt *rt, jval v, const char *what)
{
    if (v.type == J_STR)
        return v.s;
    jtype_error(rt, "%s must be a string, not '%s'", what, jv_type_name(v));
    return NULL;
}

static int64_t want_int(jrt *rt, jval v, int64_t missing, const char *what)
{
    if (!given(v))
        return missing;
    if (jv_is_integral(v))
        return jv_int(v);
    jtype_error(rt, "%s must be an integer, not '%s'", what, jv_type_name(v));
    return missing;
}

/* A separator or set of characters: none and missing mean white space. */
static bool optional_str(jrt *rt, jval v, const jstr **out, const char *what)
{
    *out = NULL;
    if (!given(v) || v.type == J_NONE)
        return true;
    *out = want_str(rt, v, what);
    return *out != NULL;
}

/* --- strings ------------------------------------------------------------------------------- */

METHOD(m_split)
{
    const jstr *sep;
    int64_t max = want_int(rt, arg[1], -1, "split(): maxsplit");
    if (!optional_str(rt, arg[0], &sep, "split(): the separator") || rt->status)
        return j_undef();
    return j_seq(J_LIST, jstr_split(rt, self.s, sep, max));
}

METHOD(m_rsplit)
{
    const jstr *sep;
    int64_t max = want_int(rt, arg[1], -1, "rsplit(): maxsplit");
    if (!optional_str(rt, arg[0], &sep, "rsplit(): the separator") || rt->status)
        return j_undef();
    return j_seq(J_LIST, jstr_rsplit(rt, self.s, sep, max));
}

static jval strip(jrt *rt, jval self, jval chars, unsigned sides)
{
    const jstr *s;
    if (!optional_str(rt, chars, &s, "strip(): the characters"))
        return j_undef();
    return jstr_strip(rt, self.s, s, sides);
}

METHOD(m_strip)
{
    return strip(rt, self, arg[0], JSTRIP_LEFT | JSTRIP_RIGHT);
}

METHOD(m_lstrip)
{
    return strip(rt, self, arg[0], JSTRIP_LEFT);
}

METHOD(m_rstrip)
{
    return strip(rt, self, arg[0], JSTRIP_RIGHT);
}

/* Byte range of the optional start and end arguments; false when start is behind the end. */
static bool text_range(jrt *rt, const jstr *s, jval start, jval end, size_t *from, size_t *to)
{
    int64_t n = (int64_t)s->n;
    int64_t a = start.type == J_NONE ? 0 : want_int(rt, start, 0, "start");
    int64_t b = end.type == J_NONE ? n : want_int(rt, end, n, "end");
    a = a < 0 ? (a + n < 0 ? 0 : a + n) : a;
    b = b < 0 ? (b + n < 0 ? 0 : b + n) : b > n ? n : b;
    if (rt->status || a > b)
        return false;
    *from = jstr_offset(s, (size_t)a);
    *to = jstr_offset(s, (size_t)b);
    return true;
}

static bool affix(const jstr *s, size_t from, size_t to, const jstr *x, bool end)
{
    return x->len <= to - from && memcmp(end ? s->p + to - x->len : s->p + from, x->p, x->len) == 0;
}

static jval has_affix(jrt *rt, jval self, const jval *arg, bool end)
{
    size_t from = 0, to = 0;
    bool some = text_range(rt, self.s, arg[1], arg[2], &from, &to), yes = false;
    if (arg[0].type == J_TUPLE) {
        for (size_t i = 0; i < arg[0].l->n && !yes; i++) {
            const jstr *x = want_str(rt, arg[0].l->v[i], "a prefix or suffix");
            yes = x && some && affix(self.s, from, to, x, end);
        }
    } else {
        const jstr *x =
            want_str(rt, arg[0], end ? "endswith(): the suffix" : "startswith(): the prefix");
        yes = x && some && affix(self.s, from, to, x, end);
    }
    return j_bool(yes);
}

METHOD(m_startswith)
{
    return has_affix(rt, self, arg, false);
}

METHOD(m_endswith)
{
    return has_affix(rt, self, arg, true);
}

METHOD(m_upper)
{
    return j_str(jstr_case(rt, self.s, JCASE_UPPER));
}

METHOD(m_lower)
{
    return j_str(jstr_case(rt, self.s, JCASE_LOWER));
}

METHOD(m_title)
{
    return j_str(jstr_case(rt, self.s, JCASE_TITLE));
}

METHOD(m_capitalize)
{
    return j_str(jstr_case(rt, self.s, JCASE_CAPITALIZE));
}

METHOD(m_swapcase)
{
    return j_str(jstr_case(rt, self.s, JCASE_SWAP));
}

/* The code point position of arg[0] in the text, -1 when it is not there. */
static int64_t find(jrt *rt, jval self, const jval *arg, bool last)
{
    size_t from, to;
    const jstr *x = want_str(rt, arg[0], "find(): the text");
    if (!x || !text_range(rt, self.s, arg[1], arg[2], &from, &to))
        return -1;
    jstep(rt, 1 + self.s->len / (last ? 8 : 32));
    size_t at = jstr_find(self.s, x, from, to, last);
    return at == SIZE_MAX ? -1 : (int64_t)jutf8_count(self.s->p, at);
}

METHOD(m_find)
{
    return j_int(find(rt, self, arg, false));
}

METHOD(m_rfind)
{
    return j_int(find(rt, self, arg, true));
}

static jval index_of(jrt *rt, jval self, const jval *arg, bool last)
{
    int64_t i = find(rt, self, arg, last);
    return i >= 0 ? j_int(i) : jtype_error(rt, "index(): the text is not there");
}

METHOD(m_index)
{
    return index_of(rt, self, arg, false);
}

METHOD(m_rindex)
{
    return index_of(rt, self, arg, true);
}

METHOD(m_count)
{
    size_t from, to;
    int64_t n = 0;
    const jstr *x = want_str(rt, arg[0], "count(): the text");
    if (!x || !text_range(rt, self.s, arg[1], arg[2], &from, &to))
        return j_int(0);
    if (x->len == 0)
        return j_int((int64_t)jutf8_count(self.s->p + from, to - from) + 1);
    jstep(rt, 1 + self.s->len / 32);
    for (size_t at; (at = jstr_find(self.s, x, from, to, false)) != SIZE_MAX && jstep(rt, 1); n++)
        from = at + x->len;
    return j_int(n);
}

METHOD(m_join)
{
    jbuf b = {0};
    jiter it;
    jval v;
    if (!jiter_init(rt, &it, arg[0]))
        return j_undef();
    for (size_t i = 0; jiter_next(rt, &it, &v); i++) {
        const jstr *s = want_str(rt, v, "join(): an item");
        if (!s)
            return j_undef();
        if (i)
            jbuf_add(rt, &b, self.s->p, self.s->len);
        jbuf_add(rt, &b, s->p, s->len);
    }
    return j_str(jbuf_str(rt, &b));
}

METHOD(m_replace)
{
    const jstr *from = want_str(rt, arg[0], "replace(): the old text");
    const jstr *to = want_str(rt, arg[1], "replace(): the new text");
    int64_t max = want_int(rt, arg[2], -1, "replace(): the count");
    return from && to && !rt->status ? j_str(jstr_replace(rt, self.s, from, to, max)) : j_undef();
}

METHOD(m_format)
{
    return jstr_format(rt, self.s, c);
}

METHOD(m_splitlines)
{
    return j_seq(J_LIST, jstr_lines(rt, self.s, given(arg[0]) && jv_truthy(rt, arg[0])));
}

METHOD(m_removeprefix)
{
    const jstr *x = want_str(rt, arg[0], "removeprefix(): the prefix");
    if (!x || !affix(self.s, 0, self.s->len, x, false))
        return self;
    return j_str(jstr_sub(rt, self.s, x->len, self.s->len));
}

METHOD(m_removesuffix)
{
    const jstr *x = want_str(rt, arg[0], "removesuffix(): the suffix");
    if (!x || !affix(self.s, 0, self.s->len, x, true))
        return self;
    return j_str(jstr_sub(rt, self.s, 0, self.s->len - x->len));
}

static jval partition(jrt *rt, jval self, jval sep, bool last)
{
    const jstr *x = want_str(rt, sep, "partition(): the separator");
    jlist *l = jlist_new(rt, 3);
    if (!x || !l)
        return j_undef();
    if (x->len == 0)
        return jtype_error(rt, "partition(): the separator is empty");
    jstep(rt, 1 + self.s->len / 8);
    size_t at = jstr_find(self.s, x, 0, self.s->len, last), n = self.s->len;
    bool none = at == SIZE_MAX;
    size_t head = none ? (last ? 0 : n) : at, tail = none ? head : at + x->len;
    jlist_push(rt, l, j_str(jstr_sub(rt, self.s, 0, head)));
    jlist_push(rt, l, none ? j_str(jstr_lit(rt, "")) : sep);
    jlist_push(rt, l, j_str(jstr_sub(rt, self.s, tail, n)));
    return j_seq(J_TUPLE, l);
}

METHOD(m_partition)
{
    return partition(rt, self, arg[0], false);
}

METHOD(m_rpartition)
{
    return partition(rt, self, arg[0], true);
}

static jval pad(jrt *rt, jval self, const jval *arg, char align)
{
    jval blank = j_str(jstr_lit(rt, " "));
    int64_t width = want_int(rt, arg[0], 0, "the width");
    const jstr *fill = want_str(rt, given(arg[1]) ? arg[1] : blank, "the fill character");
    if (!fill || rt->status)
        return j_undef();
    if (fill->n != 1)
        return jtype_error(rt, "the fill character must be one character");
    /* center() puts the odd one to the left when the width is odd */
    if (align == '^') {
        int64_t room = width - (int64_t)self.s->n;
        int64_t left = room > 0 ? room / 2 + (room & width & 1) : 0;
        const jstr *s = jstr_pad(rt, self.s, (int64_t)self.s->n + left, '>', fill);
        return s ? j_str(jstr_pad(rt, s, width, '<', fill)) : j_undef();
    }
    return j_str(jstr_pad(rt, self.s, width, align, fill));
}

METHOD(m_ljust)
{
    return pad(rt, self, arg, '<');
}

METHOD(m_rjust)
{
    return pad(rt, self, arg, '>');
}

METHOD(m_center)
{
    return pad(rt, self, arg, '^');
}

METHOD(m_zfill)
{
    const jstr *s = self.s, *zero = jstr_lit(rt, "0");
    int64_t width = want_int(rt, arg[0], 0, "zfill(): the width");
    size_t sign = s->len && (s->p[0] == '-' || s->p[0] == '+');
    const jstr *digits = jstr_sub(rt, s, sign, s->len);
    if (!zero || !digits)
        return j_undef();
    digits = jstr_pad(rt, digits, width - (int64_t)sign, '>', zero);
    return digits ? jv_concat(rt, jstr_sub(rt, s, 0, sign), digits) : j_undef();
}

static bool all_chars(jrt *rt, const jstr *s, bool (*is)(uint32_t cp))
{
    for (size_t i = 0; i < s->len && jstep(rt, 1);) {
        uint32_t cp;
        i += st_utf8_decode(s->p + i, s->len - i, &cp);
        if (!is(cp))
            return false;
    }
    return s->len != 0;
}

static bool is_alnum(uint32_t cp)
{
    return jchar_is_alpha(cp) || jchar_is_numeric(cp);
}

static bool is_ascii(uint32_t cp)
{
    return cp < 0x80;
}

METHOD(m_isdigit)
{
    return j_bool(all_chars(rt, self.s, jchar_is_digit));
}

METHOD(m_isdecimal)
{
    return j_bool(all_chars(rt, self.s, jchar_is_decimal));
}

METHOD(m_isnumeric)
{
    return j_bool(all_chars(rt, self.s, jchar_is_numeric));
}

METHOD(m_isalpha)
{
    return j_bool(all_chars(rt, self.s, jchar_is_alpha));
}

METHOD(m_isalnum)
{
    return j_bool(all_chars(rt, self.s, is_alnum));
}

METHOD(m_isspace)
{
    return j_bool(all_chars(rt, self.s, jchar_is_space));
}

METHOD(m_isascii)
{
    return j_bool(self.s->len == 0 || all_chars(rt, self.s, is_ascii));
}

static bool all_cased(jrt *rt, const jstr *s, bool (*is)(uint32_t cp))
{
    bool some = false;
    for (size_t i = 0; i < s->len && jstep(rt, 1);) {
        uint32_t cp;
        i += st_utf8_decode(s->p + i, s->len - i, &cp);
        if (jchar_is_cased(cp) && !is(cp))
            return false;
        some |= jchar_is_cased(cp);
    }
    return some;
}

METHOD(m_isupper)
{
    return j_bool(all_cased(rt, self.s, jchar_is_upper));
}

METHOD(m_islower)
{
    return j_bool(all_cased(rt, self.s, jchar_is_lower));
}

METHOD(m_istitle)
{
    bool some = false, in_word = false;
    for (size_t i = 0; i < self.s->len && jstep(rt, 1);) {
        uint32_t cp;
        i += st_utf8_decode(self.s->p + i, self.s->len - i, &cp);
        bool cased = jchar_is_cased(cp);
        if (cased && jchar_is_lower(cp) != in_word)
            return j_bool(false);
        some |= cased;
        in_word = cased;
    }
    return j_bool(some);
}

/* --- lists, dicts, helpers ----------------------------------------------------------------- */

METHOD(m_list_index)
{
    for (size_t i = 0; i < self.l->n && !rt->status; i++)
        if (jv_eq(rt, self.l->v[i], arg[0]))
            return j_int((int64_t)i);
    return jtype_error(rt, "index(): the value is not in the list");
}

METHOD(m_list_count)
{
    int64_t n = 0;
    for (size_t i = 0; i < self.l->n && !rt->status; i++)
        n += jv_eq(rt, self.l->v[i], arg[0]);
    return j_int(n);
}

METHOD(m_copy)
{
    return self; /* nothing can change it */
}

METHOD(m_get)
{
    const jval *v = jdict_get(rt, self.d, arg[0]);
    return v ? *v : given(arg[1]) ? arg[1] : j_none();
}

static jval view(jrt *rt, const jdict *d, const char *name, bool keys, bool values)
{
    jlist *l = jlist_new(rt, d->n);
    for (size_t i = 0; i < d->n && !rt->status; i++) {
        jval v = keys ? d->e[i].key : d->e[i].value;
        if (keys && values) {
            jlist *pair = jlist_new(rt, 2);
            jlist_push(rt, pair, d->e[i].key);
            jlist_push(rt, pair, d->e[i].value);
            v = j_seq(J_TUPLE, pair);
        }
        jlist_push(rt, l, v);
    }
    if (l)
        l->name = name;
    return j_seq(J_VIEW, l);
}

METHOD(m_keys)
{
    return view(rt, self.d, "dict_keys", true, false);
}

METHOD(m_values)
{
    return view(rt, self.d, "dict_values", false, true);
}

METHOD(m_items)
{
    return view(rt, self.d, "dict_items", true, true);
}

METHOD(m_cycler_next)
{
    jcycle *cy = self.cycle;
    jval v = cy->v[cy->at];
    cy->at = (cy->at + 1) % cy->n;
    return v;
}

METHOD(m_cycler_reset)
{
    self.cycle->at = 0;
    return j_none();
}

METHOD(m_bit_length)
{
    int64_t i = jv_int(self);
    uint64_t u = i < 0 ? 0 - (uint64_t)i : (uint64_t)i;
    return j_int(u ? 64 - __builtin_clzll(u) : 0);
}

METHOD(m_is_integer)
{
    return j_bool(self.f - self.f == 0 && self.f == __builtin_floor(self.f));
}

/* --- tables -------------------------------------------------------------------------------- */

static const jmethod_def str_methods[] = {
    {"split", "sep maxsplit", m_split},
    {"rsplit", "sep maxsplit", m_rsplit},
    {"strip", "/chars", m_strip},
    {"lstrip", "/chars", m_lstrip},
    {"rstrip", "/chars", m_rstrip},
    {"startswith", "/prefix* start end", m_startswith},
    {"endswith", "/suffix* start end", m_endswith},
    {"upper", "", m_upper},
    {"lower", "", m_lower},
    {"casefold", "", m_lower},
    {"title", "", m_title},
    {"capitalize", "", m_capitalize},
    {"swapcase", "", m_swapcase},
    {"find", "/sub* start end", m_find},
    {"rfind", "/sub* start end", m_rfind},
    {"index", "/sub* start end", m_index},
    {"rindex", "/sub* start end", m_rindex},
    {"count", "/sub* start end", m_count},
    {"join", "/iterable*", m_join},
    {"replace", "/old* new* count", m_replace},
    {"format", NULL, m_format},
    {"splitlines", "keepends", m_splitlines},
    {"removeprefix", "/prefix*", m_removeprefix},
    {"removesuffix", "/suffix*", m_removesuffix},
    {"partition", "/sep*", m_partition},
    {"rpartition", "/sep*", m_rpartition},
    {"ljust", "/width* fillchar", m_ljust},
    {"rjust", "/width* fillchar", m_rjust},
    {"center", "/width* fillchar", m_center},
    {"zfill", "/width*", m_zfill},
    {"isdigit", "", m_isdigit},
    {"isdecimal", "", m_isdecimal},
    {"isnumeric", "", m_isnumeric},
    {"isalpha", "", m_isalpha},
    {"isalnum", "", m_isalnum},
    {"isspace", "", m_isspace},
    {"isascii", "", m_isascii},
    {"isupper", "", m_isupper},
    {"islower", "", m_islower},
    {"istitle", "", m_istitle},
    {NULL, NULL, NULL},
};

static const jmethod_def list_methods[] = {
    {"index", "/value*", m_list_index},
    {"count", "/value*", m_list_count},
    {"copy", "", m_copy},
    {NULL, NULL, NULL},
};

static const jmethod_def tuple_methods[] = {
    {"index", "/value*", m_list_index},
    {"count", "/value*", m_list_count},
    {NULL, NULL, NULL},
};

static const jmethod_def dict_methods[] = {
    {"get", "/key* default", m_get}, {"keys", "", m_keys}, {"values", "", m_values},
    {"items", "", m_items},          {"copy", "", m_copy}, {NULL, NULL, NULL},
};

static const jmethod_def cycler_methods[] = {
    {"next", "", m_cycler_next},
    {"reset", "", m_cycler_reset},
    {NULL, NULL, NULL},
};

static const jmethod_def int_methods[] = {
    {"bit_length", "", m_bit_length},
    {NULL, NULL, NULL},
};

static const jmethod_def float_methods[] = {
    {"is_integer", "", m_is_integer},
    {NULL, NULL, NULL},
};

const jmethod_def *jmethod_find(jtype type, const jstr *name)
{
    const jmethod_def *m = type == J_STR                     ? str_methods
                           : type == J_LIST                  ? list_methods
                           : type == J_TUPLE                 ? tuple_methods
                           : type == J_DICT                  ? dict_methods
                           : type == J_CYCLER                ? cycler_methods
                           : type == J_INT || type == J_BOOL ? int_methods
                           : type == J_FLOAT                 ? float_methods
                                                             : NULL;
    for (; m && m->name; m++)
        if (jstr_is(name, m->name))
            return m;
    return NULL;
}
