/* What template values mean: truth, length, equality, order, membership, hashes, as in Python.
 * See jinja_value.h. */
#include <math.h>
#include <string.h>

#include <xxhash.h>

#include "text/jinja/jinja_value.h"

const char *jv_type_name(jval v)
{
    static const char *const names[] = {
        [J_MISSING] = "missing",   [J_UNDEFINED] = "Undefined",
        [J_NONE] = "NoneType",     [J_BOOL] = "bool",
        [J_INT] = "int",           [J_FLOAT] = "float",
        [J_STR] = "str",           [J_LIST] = "list",
        [J_TUPLE] = "tuple",       [J_DICT] = "dict",
        [J_VIEW] = "dict_view",    [J_GENERATOR] = "generator",
        [J_RANGE] = "range",       [J_NAMESPACE] = "namespace",
        [J_MACRO] = "macro",       [J_LOOP] = "loop",
        [J_FUNCTION] = "function", [J_METHOD] = "method",
        [J_CYCLER] = "cycler",     [J_JOINER] = "joiner",
    };
    return names[v.type];
}

bool jv_is_number(jval v)
{
    return v.type == J_BOOL || v.type == J_INT || v.type == J_FLOAT;
}

bool jv_is_integral(jval v)
{
    return v.type == J_BOOL || v.type == J_INT;
}

int64_t jv_int(jval v)
{
    return v.type == J_BOOL ? v.b : v.i;
}

double jv_double(jval v)
{
    return v.type == J_FLOAT ? v.f : (double)jv_int(v);
}

bool jv_truthy(jrt *rt, jval v)
{
    switch (v.type) {
    case J_MISSING:
    case J_UNDEFINED:
    case J_NONE:
        return false;
    case J_BOOL:
        return v.b;
    case J_INT:
        return v.i != 0;
    case J_FLOAT:
        return v.f != 0;
    case J_STR:
        return v.s->len != 0;
    case J_LIST:
    case J_TUPLE:
    case J_VIEW:
        return v.l->n != 0;
    case J_DICT:
        return v.d->n != 0;
    case J_RANGE:
        return v.r->n != 0;
    case J_LOOP:
    case J_GENERATOR:
    case J_NAMESPACE:
    case J_MACRO:
    case J_FUNCTION:
    case J_METHOD:
    case J_CYCLER:
    case J_JOINER:
        break;
    }
    return true;
}

int64_t jv_len(jrt *rt, jval v)
{
    switch (v.type) {
    case J_UNDEFINED:
        return 0;
    case J_STR:
        return (int64_t)v.s->n;
    case J_LIST:
    case J_TUPLE:
    case J_VIEW:
        return (int64_t)v.l->n;
    case J_DICT:
        return (int64_t)v.d->n;
    case J_RANGE:
        return v.r->n;
    default:
        jtype_error(rt, "object of type '%s' has no length", jv_type_name(v));
        return 0;
    }
}

/* a <=> b exactly, although doubles cannot hold every int64. 2: not comparable (NaN). */
static int number_order(jval a, jval b)
{
    if (a.type != J_FLOAT && b.type != J_FLOAT) {
        int64_t x = jv_int(a), y = jv_int(b);
        return (x > y) - (x < y);
    }
    double x = jv_double(a), y = jv_double(b);
    if (isnan(x) || isnan(y))
        return 2;
    if (x != y || (a.type == J_FLOAT && b.type == J_FLOAT))
        return (x > y) - (x < y);
    /* Equal as doubles, one an integer: compare as integers where the float fits. */
    double f = a.type == J_FLOAT ? x : y;
    if (f >= 9223372036854775808.0)
        return a.type == J_FLOAT ? 1 : -1;
    int64_t i = a.type == J_FLOAT ? (int64_t)x : jv_int(a);
    int64_t k = b.type == J_FLOAT ? (int64_t)y : jv_int(b);
    return (i > k) - (i < k);
}

static bool list_eq(jrt *rt, const jlist *a, const jlist *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (!jv_eq(rt, a->v[i], b->v[i]))
            return false;
    return true;
}

static bool dict_eq(jrt *rt, const jdict *a, const jdict *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++) {
        const jval *v = jdict_get(rt, b, a->e[i].key);
        if (!v || !jv_eq(rt, a->e[i].value, *v))
            return false;
    }
    return true;
}

static bool range_eq(const jrange *a, const jrange *b)
{
    return a->n == b->n && (a->n == 0 || a->start == b->start) && (a->n < 2 || a->step == b->step);
}

bool jv_eq(jrt *rt, jval a, jval b)
{
    if (jv_is_number(a) && jv_is_number(b))
        return number_order(a, b) == 0;
    if (a.type != b.type || !jstep(rt, 1))
        return false;
    bool r;
    switch (a.type) {
    case J_STR:
        return jstr_eq(a.s, b.s);
    case J_LIST:
    case J_TUPLE:
    case J_DICT:
        if (!jenter(rt))
            return false;
        r = a.type == J_DICT ? dict_eq(rt, a.d, b.d) : list_eq(rt, a.l, b.l);
        jleave(rt);
        return r;
    case J_UNDEFINED:
    case J_NONE:
        return true;
    case J_RANGE:
        return range_eq(a.r, b.r);
    default:
        return a.l == b.l; /* by identity: every member of the union is a pointer here */
    }
}

static int str_order(const jstr *a, const jstr *b)
{
    size_t n = a->len < b->len ? a->len : b->len;
    int c = memcmp(a->p, b->p, n); /* UTF-8 sorts as code points do */
    return c ? (c > 0) - (c < 0) : (a->len > b->len) - (a->len < b->len);
}

int jv_order(jrt *rt, jval a, jval b, const char *op)
{
    if (jv_is_number(a) && jv_is_number(b))
        return number_order(a, b);
    if (!jstep(rt, 1))
        return 0;
    if (a.type == J_STR && b.type == J_STR)
        return str_order(a.s, b.s);
    if (a.type == b.type && (a.type == J_LIST || a.type == J_TUPLE)) {
        if (!jenter(rt))
            return 0;
        size_t n = a.l->n < b.l->n ? a.l->n : b.l->n, i = 0;
        while (i < n && jv_eq(rt, a.l->v[i], b.l->v[i]))
            i++;
        int c =
            i < n ? jv_order(rt, a.l->v[i], b.l->v[i], op) : (a.l->n > b.l->n) - (a.l->n < b.l->n);
        jleave(rt);
        return c;
    }
    if (a.type == J_UNDEFINED || b.type == J_UNDEFINED)
        j_undef_error(rt, a.type == J_UNDEFINED ? a : b);
    else
        jtype_error(rt, "'%s' not supported between '%s' and '%s'", op, jv_type_name(a),
                    jv_type_name(b));
    return 0;
}

bool jv_in(jrt *rt, jval needle, jval hay)
{
    if (hay.type == J_STR) {
        if (needle.type != J_STR) {
            jtype_error(rt, "'in <string>' requires a string on the left, not '%s'",
                        jv_type_name(needle));
            return false;
        }
        jstep(rt, 1 + hay.s->len / 64);
        return memmem(hay.s->p, hay.s->len, needle.s->p, needle.s->len) != NULL;
    }
    if (hay.type == J_DICT)
        return jdict_get(rt, hay.d, needle) != NULL;
    jiter it;
    jval v;
    if (!jiter_init(rt, &it, hay))
        return false;
    while (jiter_next(rt, &it, &v))
        if (jv_eq(rt, v, needle))
            return true;
    return false;
}

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9E3779B97F4A7C15u;
    return h ^ (h >> 29);
}

uint64_t jv_hash(jrt *rt, jval v)
{
    uint64_t h = mix(1, (uint64_t)v.type);
    switch (v.type) {
    case J_STR:
        return XXH3_64bits(v.s->p, v.s->len);
    case J_BOOL:
    case J_INT:
        return mix(2, (uint64_t)jv_int(v));
    case J_FLOAT: /* equal numbers hash alike, whatever their type */
        if (v.f >= -9.2e18 && v.f <= 9.2e18 && v.f == floor(v.f))
            return mix(2, (uint64_t)(int64_t)v.f);
        memcpy(&h, &v.f, sizeof h);
        return mix(3, h);
    case J_TUPLE:
        if (!jenter(rt))
            return 0;
        for (size_t i = 0; i < v.l->n && jstep(rt, 1); i++)
            h = mix(h, jv_hash(rt, v.l->v[i]));
        jleave(rt);
        return h;
    case J_LIST:
    case J_DICT:
    case J_VIEW:
        jtype_error(rt, "unhashable type: '%s'", jv_type_name(v));
        return 0;
    case J_RANGE:
        return mix(h, (uint64_t)v.r->n);
    case J_MISSING:
    case J_UNDEFINED:
    case J_NONE:
        return h;
    default:
        return mix(h, (uint64_t)(uintptr_t)v.l);
    }
}
