/* obj.name, obj[key] and slices, with the sandbox's rules: an attribute that could change a list
 * or a dict, or that begins with '_', is undefined and fails when it is used. */
#include <stdio.h>
#include <string.h>

#include "text/jinja/jinja_eval.h"

static bool one_of(const jstr *name, const char *const *words)
{
    for (; *words; words++)
        if (jstr_is(name, *words))
            return true;
    return false;
}

/* Attributes that Python's types have and a template must not use. */
static bool unsafe(jval obj, const jstr *name)
{
    static const char *const list[] = {"append", "clear",   "extend", "insert", "pop",
                                       "remove", "reverse", "sort",   NULL};
    static const char *const dict[] = {"clear", "pop", "popitem", "setdefault", "update", NULL};
    if (obj.type == J_LIST)
        return one_of(name, list);
    return obj.type == J_DICT && one_of(name, dict);
}

static jval unsafe_undefined(jrt *rt, jval obj, const jstr *name)
{
    char *text = jalloc(rt, 160);
    if (!text)
        return j_undef();
    snprintf(text, 160, "access to attribute '%.*s' of a '%s' is not allowed in the sandbox",
             (int)(name->len > 60 ? 60 : name->len), name->p, jv_type_name(obj));
    return j_undef_text(rt, text);
}

/* What Python's getattr would find; J_MISSING when nothing. */
static jval attribute(jrt *rt, jval obj, const jstr *name)
{
    const jval missing = {.type = J_MISSING};
    if (obj.type == J_NAMESPACE) {
        const jval *v = jdict_get_str(obj.ns->d, name);
        if (!v)
            return missing;
        return name->len && name->p[0] == '_' ? unsafe_undefined(rt, obj, name) : *v;
    }
    if (obj.type == J_LOOP)
        return jloop_attr(rt, obj.loop, name);
    if (obj.type == J_MACRO && jstr_is(name, "name"))
        return j_str(obj.macro->node->name);
    if (obj.type == J_CYCLER && jstr_is(name, "current"))
        return obj.cycle->v[obj.cycle->at];
    if (obj.type == J_TUPLE && obj.l->name && obj.l->n == 2) { /* a pair of groupby */
        if (jstr_is(name, "grouper"))
            return obj.l->v[0];
        if (jstr_is(name, "list"))
            return obj.l->v[1];
    }
    if (unsafe(obj, name))
        return unsafe_undefined(rt, obj, name);
    const jmethod_def *def = jmethod_find(obj.type, name);
    if (!def)
        return missing;
    jmethod *m = jalloc(rt, sizeof *m);
    if (!m)
        return j_undef();
    *m = (jmethod){obj, def};
    return (jval){.type = J_METHOD, .m = m};
}

/* A sequence's item or J_MISSING. */
static jval index_item(jrt *rt, jval obj, jval key)
{
    const jval missing = {.type = J_MISSING};
    if (obj.type == J_DICT) {
        /* A key that cannot be hashed is simply not there. */
        if (key.type == J_LIST || key.type == J_DICT || key.type == J_VIEW)
            return missing;
        const jval *v = jdict_get(rt, obj.d, key);
        return v ? *v : missing;
    }
    bool seq =
        obj.type == J_STR || obj.type == J_LIST || obj.type == J_TUPLE || obj.type == J_RANGE;
    if (!seq || !jv_is_integral(key))
        return missing;
    int64_t i = jv_int(key), n = jv_len(rt, obj);
    if (i < 0)
        i += n;
    if (i < 0 || i >= n)
        return missing;
    if (obj.type == J_RANGE)
        return j_int(obj.r->start + i * obj.r->step);
    if (obj.type == J_STR)
        return j_str(jstr_chars(rt, obj.s, (size_t)i, (size_t)i + 1));
    return obj.l->v[i];
}

jval jattr_only(jrt *rt, jval obj, const jstr *name)
{
    if (obj.type == J_UNDEFINED)
        return j_undef_error(rt, obj);
    jval v = attribute(rt, obj, name);
    return v.type == J_MISSING ? j_undef_attr(rt, obj, name) : v;
}

/* What every Python object has. */
static bool is_internal(const jstr *name)
{
    static const char *const words[] = {
        "__class__",  "__delattr__", "__dir__",     "__doc__",           "__eq__",
        "__format__", "__ge__",      "__getattr__", "__getattribute__",  "__getstate__",
        "__gt__",     "__hash__",    "__init__",    "__init_subclass__", "__le__",
        "__lt__",     "__ne__",      "__new__",     "__reduce__",        "__reduce_ex__",
        "__repr__",   "__setattr__", "__sizeof__",  "__str__",           "__subclasshook__",
        NULL};
    return name->len > 4 && memcmp(name->p, "__", 2) == 0 && one_of(name, words);
}

jval jattr(jrt *rt, jval obj, const jstr *name)
{
    if (is_internal(name))
        return unsafe_undefined(rt, obj, name);
    if (obj.type == J_UNDEFINED)
        return j_undef_error(rt, obj);
    jval v = attribute(rt, obj, name);
    if (v.type == J_MISSING)
        v = index_item(rt, obj, j_str(name));
    return v.type == J_MISSING ? j_undef_attr(rt, obj, name) : v;
}

jval jitem(jrt *rt, jval obj, jval key)
{
    if (obj.type == J_UNDEFINED)
        return j_undef_error(rt, obj);
    jval v = index_item(rt, obj, key);
    if (v.type == J_MISSING && key.type == J_STR)
        v = attribute(rt, obj, key.s);
    if (v.type != J_MISSING)
        return v;
    return j_undef_attr(rt, obj, key.type == J_STR ? key.s : jv_str(rt, key));
}

/* --- slices -------------------------------------------------------------------------------- */

static bool bound(jrt *rt, jval v, int64_t missing, int64_t *out)
{
    *out = missing;
    if (v.type == J_NONE)
        return true;
    if (!jv_is_integral(v)) {
        jtype_error(rt, "slice indices must be integers or none, not '%s'", jv_type_name(v));
        return false;
    }
    *out = jv_int(v);
    return true;
}

static int64_t clamp(int64_t i, int64_t n, int64_t lo, int64_t hi)
{
    if (i < 0)
        i += n;
    return i < lo ? lo : i > hi ? hi : i;
}

/* Python's slice.indices: the positions are start, start + step... count times. */
static bool slice_bounds(jrt *rt, const jval part[3], int64_t n, int64_t *start, int64_t *step,
                         int64_t *count)
{
    int64_t stop;
    if (!bound(rt, part[2], 1, step))
        return false;
    if (*step == 0)
        return jtype_error(rt, "the step of a slice cannot be zero"), false;
    if (*step == INT64_MIN)
        *step = -INT64_MAX;
    bool down = *step < 0;
    if (!bound(rt, part[0], 0, start) || !bound(rt, part[1], 0, &stop))
        return false;
    int64_t lo = down ? -1 : 0, hi = down ? n - 1 : n;
    *start = part[0].type == J_NONE ? (down ? hi : lo) : clamp(*start, n, lo, hi);
    stop = part[1].type == J_NONE ? (down ? lo : hi) : clamp(stop, n, lo, hi);
    int64_t span = down ? *start - stop : stop - *start, by = down ? -*step : *step;
    *count = span > 0 ? (span - 1) / by + 1 : 0;
    return true;
}

static jval slice_str(jrt *rt, const jstr *s, int64_t start, int64_t step, int64_t count)
{
    if (step == 1)
        return j_str(jstr_chars(rt, s, (size_t)start, (size_t)(start + count)));
    jbuf b = {0};
    size_t *at = jalloc_array(rt, s->n + 1, sizeof *at);
    if (!at)
        return j_undef();
    size_t k = 0;
    for (size_t i = 0; i < s->len; i++)
        if (((unsigned char)s->p[i] & 0xC0) != 0x80)
            at[k++] = i;
    at[k] = s->len;
    for (int64_t i = 0, c = start; i < count && jstep(rt, 1); i++, c += step)
        jbuf_add(rt, &b, s->p + at[c], at[c + 1] - at[c]);
    return j_str(jbuf_str(rt, &b));
}

jval jslice(jrt *rt, jval obj, jval from, jval to, jval by)
{
    const jval part[3] = {from, to, by};
    int64_t start, step, count;
    if (obj.type == J_UNDEFINED)
        return j_undef_error(rt, obj);
    if (obj.type != J_STR && obj.type != J_LIST && obj.type != J_TUPLE && obj.type != J_RANGE)
        return jtype_error(rt, "'%s' object cannot be sliced", jv_type_name(obj));
    if (!slice_bounds(rt, part, jv_len(rt, obj), &start, &step, &count))
        return j_undef();
    if (obj.type == J_STR)
        return slice_str(rt, obj.s, start, step, count);
    if (obj.type == J_RANGE) {
        jrange *r = jalloc(rt, sizeof *r);
        if (!r)
            return j_undef();
        *r = (jrange){obj.r->start + start * obj.r->step, 0, obj.r->step, count};
        if (__builtin_mul_overflow(obj.r->step, step, &r->step) ||
            __builtin_add_overflow(r->start, count * r->step, &r->stop))
            return jtype_error(rt, "the slice's step is too large");
        return (jval){.type = J_RANGE, .r = r};
    }
    jlist *l = jlist_new(rt, (size_t)count);
    for (int64_t i = 0, c = start; i < count && jlist_push(rt, l, obj.l->v[c]); i++)
        c += i + 1 < count ? step : 0;
    return j_seq(obj.type, l);
}

/* --- paths --------------------------------------------------------------------------------- */

static jval path_part(jrt *rt, jval obj, const char *p, size_t n)
{
    int64_t i = 0;
    bool number = n > 0 && n < 18;
    for (size_t k = 0; k < n && number; k++) {
        number = p[k] >= '0' && p[k] <= '9';
        i = i * 10 + (p[k] - '0');
    }
    return jitem(rt, obj, number ? j_int(i) : j_str(jstr_new(rt, p, n)));
}

jval jattr_path(jrt *rt, jval obj, jval path)
{
    if (path.type != J_STR)
        return jitem(rt, obj, path);
    const char *p = path.s->p, *end = p + path.s->len;
    while (!rt->status) {
        const char *dot = memchr(p, '.', (size_t)(end - p));
        obj = path_part(rt, obj, p, (size_t)((dot ? dot : end) - p));
        if (!dot)
            break;
        p = dot + 1;
    }
    return obj;
}
