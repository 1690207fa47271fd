/* The functions that every template can call. */
#include <string.h>
#include <time.h>

#include "text/jinja/jinja_eval.h"

#define GLOBAL(name) static jval name(jrt *rt, const jcall *c, const jval *arg)

GLOBAL(g_raise_exception)
{
    const jstr *s = jv_str(rt, arg[0]);
    return s ? jfail(rt, ST_EINVAL, "%.*s", (int)s->len, s->p) : j_undef();
}

GLOBAL(g_strftime_now)
{
    char out[512];
    struct tm tm;
    time_t t = (time_t)rt->now;
    const jstr *fmt = arg[0].type == J_STR ? arg[0].s : NULL;
    if (!fmt || memchr(fmt->p, '\0', fmt->len) || fmt->len >= 256)
        return jtype_error(rt, "strftime_now() needs a format of fewer than 256 bytes");
    char *z = jalloc(rt, fmt->len + 1);
    if (!z || !localtime_r(&t, &tm))
        return jtype_error(rt, "strftime_now(): the time cannot be told");
    memcpy(z, fmt->p, fmt->len);
    size_t n = strftime(out, sizeof out, z, &tm);
    char *kept = jalloc(rt, n + 1);
    if (!kept)
        return j_undef();
    memcpy(kept, out, n);
    return j_str(jstr_new(rt, kept, n));
}

jval jrange_new(jrt *rt, const jcall *c)
{
    int64_t v[3] = {0, 0, 1};
    if (c->n < 1 || c->n > 3 || c->nk)
        return jtype_error(rt, "range() takes one to three integers");
    for (size_t i = 0; i < c->n; i++) {
        if (!jv_is_integral(c->v[i]))
            return jtype_error(rt, "range() takes integers, not '%s'", jv_type_name(c->v[i]));
        v[c->n == 1 ? 1 : i] = jv_int(c->v[i]);
    }
    if (v[2] == 0)
        return jtype_error(rt, "the step of range() cannot be zero");
    bool up = v[2] > 0;
    uint64_t span = up ? (uint64_t)v[1] - (uint64_t)v[0] : (uint64_t)v[0] - (uint64_t)v[1];
    uint64_t by = up ? (uint64_t)v[2] : 0 - (uint64_t)v[2];
    uint64_t n = (up ? v[0] < v[1] : v[0] > v[1]) ? (span - 1) / by + 1 : 0;
    if (n > JINJA_MAX_RANGE)
        return jtype_error(rt, "range() is longer than %d", JINJA_MAX_RANGE);
    jrange *r = jalloc(rt, sizeof *r);
    if (!r)
        return j_undef();
    *r = (jrange){v[0], v[1], v[2], (int64_t)n};
    return (jval){.type = J_RANGE, .r = r};
}

GLOBAL(g_range)
{
    return jrange_new(rt, c);
}

static bool add_pairs(jrt *rt, jdict *d, jval from)
{
    jiter it;
    jval pair;
    if (from.type == J_DICT) {
        for (size_t i = 0; i < from.d->n; i++)
            jdict_set(rt, d, from.d->e[i].key, from.d->e[i].value);
        return !rt->status;
    }
    if (!jiter_init(rt, &it, from))
        return false;
    while (jiter_next(rt, &it, &pair)) {
        jlist *l = jv_to_list(rt, pair);
        if (!l || l->n != 2)
            return jtype_error(rt, "a dict is made from pairs, not from '%s'", jv_type_name(pair)),
                   false;
        jdict_set(rt, d, l->v[0], l->v[1]);
    }
    return !rt->status;
}

static jdict *dict_of_call(jrt *rt, const jcall *c, const char *what)
{
    jdict *d = jdict_new(rt);
    if (c->n > 1)
        return jtype_error(rt, "%s() takes at most one positional argument", what), NULL;
    if (c->n && !add_pairs(rt, d, c->v[0]))
        return NULL;
    for (size_t i = 0; i < c->nk; i++)
        jdict_set(rt, d, j_str(c->names[i]), c->kv[i]);
    return rt->status ? NULL : d;
}

GLOBAL(g_dict)
{
    return j_dict(dict_of_call(rt, c, "dict"));
}

GLOBAL(g_namespace)
{
    jns *ns = jalloc(rt, sizeof *ns);
    jdict *d = dict_of_call(rt, c, "namespace");
    if (!ns || !d)
        return j_undef();
    ns->d = d;
    return (jval){.type = J_NAMESPACE, .ns = ns};
}

static jval cycle_new(jrt *rt, jtype type, const jval *v, size_t n)
{
    jcycle *cy = jalloc(rt, sizeof *cy);
    jval *kept = jalloc_array(rt, n, sizeof *kept);
    if (!cy || !kept)
        return j_undef();
    memcpy(kept, v, n * sizeof *kept);
    *cy = (jcycle){kept, n, 0};
    return (jval){.type = type, .cycle = cy};
}

GLOBAL(g_cycler)
{
    if (c->n == 0 || c->nk)
        return jtype_error(rt, "cycler() needs the values to cycle through");
    return cycle_new(rt, J_CYCLER, c->v, c->n);
}

GLOBAL(g_joiner)
{
    jval sep = arg[0].type == J_MISSING ? j_str(jstr_lit(rt, ", ")) : arg[0];
    return cycle_new(rt, J_JOINER, &sep, 1);
}

const jfunction *jglobal_find(const jstr *name)
{
    static const jfunction globals[] = {
        {"raise_exception", "message*", g_raise_exception},
        {"strftime_now", "format*", g_strftime_now},
        {"range", NULL, g_range},
        {"dict", NULL, g_dict},
        {"namespace", NULL, g_namespace},
        {"cycler", NULL, g_cycler},
        {"joiner", "sep", g_joiner},
    };
    for (size_t i = 0; i < sizeof globals / sizeof *globals; i++)
        if (jstr_is(name, globals[i].name))
            return &globals[i];
    return NULL;
}
