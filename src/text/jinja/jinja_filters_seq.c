/* Filters on sequences and mappings. Those that Jinja makes lazy give a generator here as well:
 * it has no length and can be walked once. */
#include <string.h>

#include "text/jinja/jinja_filters.h"
#include "text/jinja/jinja_strings.h"

/* --- helpers ------------------------------------------------------------------------------- */

/* An attribute path applied to an item; a default replaces what is undefined on the way. */
static jval get_path(jrt *rt, jval item, jval path, jval otherwise)
{
    bool has_default = jgiven(otherwise) && otherwise.type != J_NONE;
    if (!jgiven(path) || path.type == J_NONE)
        return item;
    if (path.type != J_STR || !has_default) {
        jval v = jattr_path(rt, item, path);
        return has_default && v.type == J_UNDEFINED ? otherwise : v;
    }
    jstr dot = {".", 1, 1};
    jlist *parts = jstr_split(rt, path.s, &dot, -1);
    for (size_t i = 0; parts && i < parts->n && !rt->status; i++) {
        item = jattr_path(rt, item, parts->v[i]);
        if (item.type == J_UNDEFINED)
            item = otherwise;
    }
    return item;
}

static jval fold_case(jrt *rt, jval v, bool case_sensitive)
{
    return v.type == J_STR && !case_sensitive ? j_str(jstr_case(rt, v.s, JCASE_LOWER)) : v;
}

static void merge_sort(jrt *rt, jval *v, jval *key, jval *tv, jval *tk, size_t n, bool reverse)
{
    if (n < 2 || rt->status)
        return;
    size_t half = n / 2, i = 0, k = half, at = 0;
    merge_sort(rt, v, key, tv, tk, half, reverse);
    merge_sort(rt, v + half, key + half, tv, tk, n - half, reverse);
    while (i < half && k < n && jstep(rt, 1)) {
        bool right = reverse ? jv_order(rt, key[i], key[k], "<") == -1
                             : jv_order(rt, key[k], key[i], "<") == -1;
        size_t from = right ? k++ : i++;
        tv[at] = v[from];
        tk[at++] = key[from];
    }
    for (; i < half; i++) {
        tv[at] = v[i];
        tk[at++] = key[i];
    }
    memcpy(v, tv, at * sizeof *v);
    memcpy(key, tk, at * sizeof *key);
}

/* Sorts l by keys[0..l->n), stable also in reverse. */
static bool sort_by(jrt *rt, jlist *l, jval *keys, bool reverse)
{
    jval *tmp = jalloc_array(rt, 2 * l->n, sizeof *tmp);
    if (!tmp || rt->status)
        return false;
    merge_sort(rt, l->v, keys, tmp, tmp + l->n, l->n, reverse);
    return !rt->status;
}

static jval generator(jlist *l)
{
    return j_seq(J_GENERATOR, l);
}

/* --- simple -------------------------------------------------------------------------------- */

static JFILTER(f_length)
{
    return j_int(jv_len(rt, in));
}

static JFILTER(f_first)
{
    jiter it;
    jval v;
    if (!jiter_init(rt, &it, in))
        return j_undef();
    if (jiter_next(rt, &it, &v))
        return v;
    return j_undef_text(rt, "there is no first item: the sequence is empty");
}

static bool reversible(jval v)
{
    return v.type == J_STR || v.type == J_LIST || v.type == J_TUPLE || v.type == J_DICT ||
           v.type == J_VIEW || v.type == J_RANGE || v.type == J_UNDEFINED;
}

static JFILTER(f_last)
{
    if (!reversible(in))
        return jtype_error(rt, "last: '%s' object cannot be walked backwards", jv_type_name(in));
    if (in.type == J_STR && in.s->n)
        return j_str(jstr_chars(rt, in.s, in.s->n - 1, in.s->n));
    jlist *l = jv_to_list(rt, in);
    if (l && l->n)
        return l->v[l->n - 1];
    return j_undef_text(rt, "there is no last item: the sequence is empty");
}

static JFILTER(f_list)
{
    return j_seq(J_LIST, jv_to_list(rt, in));
}

static JFILTER(f_reverse)
{
    if (in.type == J_STR)
        return jslice(rt, in, j_none(), j_none(), j_int(-1));
    jlist *l = jv_to_list(rt, in);
    for (size_t i = 0; l && i < l->n / 2; i++) {
        jval t = l->v[i];
        l->v[i] = l->v[l->n - 1 - i];
        l->v[l->n - 1 - i] = t;
    }
    return reversible(in) ? generator(l) : j_seq(J_LIST, l);
}

static JFILTER(f_join)
{
    jiter it;
    jval v;
    jbuf b = {0};
    const jstr *sep = jgiven(arg[0]) ? jv_str(rt, arg[0]) : NULL;
    if (!jiter_init(rt, &it, in))
        return j_undef();
    for (size_t i = 0; jiter_next(rt, &it, &v); i++) {
        if (i && sep)
            jbuf_add(rt, &b, sep->p, sep->len);
        v = get_path(rt, v, arg[1], (jval){.type = J_MISSING});
        if (rt->status || !jv_print(rt, &b, v))
            break;
    }
    return j_str(jbuf_str(rt, &b));
}

static JFILTER(f_items)
{
    static const jstr name = {"items", 5, 5};
    if (in.type == J_UNDEFINED)
        return generator(jlist_new(rt, 0));
    if (in.type != J_DICT)
        return jtype_error(rt, "items needs a mapping, not '%s'", jv_type_name(in));
    jval view = jmethod_find(J_DICT, &name)->fn(rt, in, c, arg);
    return rt->status ? j_undef() : generator(jv_to_list(rt, view));
}

static JFILTER(f_sum)
{
    jiter it;
    jval v, total = jgiven(arg[1]) ? arg[1] : j_int(0);
    if (total.type == J_STR)
        return jtype_error(rt, "sum does not add strings: join does");
    if (!jiter_init(rt, &it, in))
        return j_undef();
    while (jiter_next(rt, &it, &v)) {
        v = get_path(rt, v, arg[0], (jval){.type = J_MISSING});
        if (rt->status)
            break;
        total = jbinary(rt, OP_ADD, total, v);
    }
    return total;
}

static jval extreme(jrt *rt, jval in, const jval *arg, int sign)
{
    jiter it;
    jval v, best = {.type = J_MISSING}, best_key = best;
    bool sensitive = jarg_bool(rt, arg[0], false);
    if (!jiter_init(rt, &it, in))
        return j_undef();
    while (jiter_next(rt, &it, &v)) {
        jval key = get_path(rt, v, arg[1], (jval){.type = J_MISSING});
        key = rt->status ? j_undef() : fold_case(rt, key, sensitive);
        if (rt->status)
            return j_undef();
        int order =
            best.type == J_MISSING ? sign : jv_order(rt, key, best_key, sign < 0 ? "<" : ">");
        if (order != 2 && (order < 0 ? -1 : order > 0) == sign) {
            best = v;
            best_key = key;
        }
    }
    if (best.type == J_MISSING)
        return j_undef_text(rt, "there is no smallest or largest item: the sequence is empty");
    return best;
}

static JFILTER(f_min)
{
    return extreme(rt, in, arg, -1);
}

static JFILTER(f_max)
{
    return extreme(rt, in, arg, 1);
}

/* --- map, select --------------------------------------------------------------------------- */

static jcall tail(const jcall *c, size_t skip)
{
    jcall t = *c;
    if (t.n > 0) /* without arguments v may be NULL, to which nothing may be added */
        t.v += skip;
    t.n -= skip;
    return t;
}

static jval keyword(const jcall *c, const char *name)
{
    for (size_t i = 0; i < c->nk; i++)
        if (jstr_is(c->names[i], name))
            return c->kv[i];
    return (jval){.type = J_MISSING};
}

static const jfilter_def *named_filter(jrt *rt, jval name)
{
    const jfilter_def *f = name.type == J_STR ? jinja_filter_find(name.s) : NULL;
    if (!f) {
        const jstr *s = jv_str(rt, name);
        jtype_error(rt, "map: there is no filter named '%.*s'", s ? (int)s->len : 0, s ? s->p : "");
    }
    return f;
}

static JFILTER(f_map)
{
    jiter it;
    jval v;
    jlist *l = jlist_new(rt, 0);
    if (!jv_truthy(rt, in))
        return generator(l);
    const jfilter_def *f = NULL;
    jcall rest = *c;
    jval path = c->n ? (jval){.type = J_MISSING} : keyword(c, "attribute");
    jval otherwise = keyword(c, "default");
    if (!jgiven(path)) {
        if (c->n == 0)
            return jtype_error(rt, "map needs the name of a filter, or attribute=");
        f = named_filter(rt, c->v[0]);
        rest = tail(c, 1);
    } else if (c->nk > 1u + jgiven(otherwise)) {
        return jtype_error(rt, "map: with attribute= only default= may be given");
    }
    if (rt->status || !jiter_init(rt, &it, in))
        return j_undef();
    while (jiter_next(rt, &it, &v)) {
        v = f ? jfilter_apply(rt, f, v, &rest) : get_path(rt, v, path, otherwise);
        if (!jlist_push(rt, l, v))
            break;
    }
    return generator(l);
}

static jval select_items(jrt *rt, jval in, const jcall *c, bool want, bool by_attr)
{
    jiter it;
    jval v;
    jlist *l = jlist_new(rt, 0);
    if (!jv_truthy(rt, in))
        return generator(l);
    if (by_attr && c->n == 0)
        return jtype_error(rt, "selectattr and rejectattr need the name of an attribute");
    const jtest_def *test = NULL;
    jcall rest = tail(c, by_attr);
    if (rest.n) {
        test = rest.v[0].type == J_STR ? jinja_test_find(rest.v[0].s) : NULL;
        if (!test) {
            const jstr *s = jv_str(rt, rest.v[0]);
            return jtype_error(rt, "there is no test named '%.*s'", s ? (int)s->len : 0,
                               s ? s->p : "");
        }
        rest = tail(&rest, 1);
    }
    if (!jiter_init(rt, &it, in))
        return j_undef();
    while (jiter_next(rt, &it, &v)) {
        jval x = by_attr ? get_path(rt, v, c->v[0], (jval){.type = J_MISSING}) : v;
        if (rt->status)
            break;
        bool yes = test ? jtest_apply(rt, test, x, &rest) : jv_truthy(rt, x);
        if (yes == want && !jlist_push(rt, l, v))
            break;
    }
    return generator(l);
}

static JFILTER(f_select)
{
    return select_items(rt, in, c, true, false);
}

static JFILTER(f_reject)
{
    return select_items(rt, in, c, false, false);
}

static JFILTER(f_selectattr)
{
    return select_items(rt, in, c, true, true);
}

static JFILTER(f_rejectattr)
{
    return select_items(rt, in, c, false, true);
}

/* --- order --------------------------------------------------------------------------------- */

/* "a,b.c" gives the list of both values, so that sorting goes by one after the other. */
static jval sort_key(jrt *rt, jval item, jval attribute, bool sensitive)
{
    jlist *key = jlist_new(rt, 1);
    jstr comma = {",", 1, 1};
    jlist *paths = attribute.type == J_STR ? jstr_split(rt, attribute.s, &comma, -1) : NULL;
    if (!paths) {
        jval v = get_path(rt, item, attribute, (jval){.type = J_MISSING});
        jlist_push(rt, key, fold_case(rt, v, sensitive));
    }
    for (size_t i = 0; paths && i < paths->n && !rt->status; i++) {
        jval v = get_path(rt, item, paths->v[i], (jval){.type = J_MISSING});
        if (!rt->status)
            jlist_push(rt, key, fold_case(rt, v, sensitive));
    }
    return j_seq(J_LIST, key);
}

static JFILTER(f_sort)
{
    bool reverse = jarg_bool(rt, arg[0], false), sensitive = jarg_bool(rt, arg[1], false);
    jlist *l = jv_to_list(rt, in);
    jval *keys = l ? jalloc_array(rt, l->n, sizeof *keys) : NULL;
    if (!keys)
        return j_undef();
    for (size_t i = 0; i < l->n && !rt->status; i++)
        keys[i] = sort_key(rt, l->v[i], arg[2], sensitive);
    return sort_by(rt, l, keys, reverse) ? j_seq(J_LIST, l) : j_undef();
}

static JFILTER(f_dictsort)
{
    bool sensitive = jarg_bool(rt, arg[0], false), reverse = jarg_bool(rt, arg[2], false);
    bool by_value = arg[1].type == J_STR && jstr_is(arg[1].s, "value");
    if (jgiven(arg[1]) && !by_value && !(arg[1].type == J_STR && jstr_is(arg[1].s, "key")))
        return jtype_error(rt, "dictsort sorts by 'key' or 'value'");
    if (in.type != J_DICT)
        return in.type == J_UNDEFINED
                   ? j_undef_error(rt, in)
                   : jtype_error(rt, "dictsort needs a dict, not '%s'", jv_type_name(in));
    jval pairs = f_items(rt, in, c, arg);
    jval *keys = jalloc_array(rt, in.d->n, sizeof *keys);
    if (!keys)
        return j_undef();
    for (size_t i = 0; i < in.d->n && !rt->status; i++)
        keys[i] = fold_case(rt, by_value ? in.d->e[i].value : in.d->e[i].key, sensitive);
    return sort_by(rt, pairs.l, keys, reverse) ? j_seq(J_LIST, pairs.l) : j_undef();
}

static JFILTER(f_unique)
{
    jiter it;
    jval v;
    jlist *l = jlist_new(rt, 0);
    jdict *seen = jdict_new(rt);
    bool sensitive = jarg_bool(rt, arg[0], false);
    if (!jiter_init(rt, &it, in))
        return j_undef();
    while (jiter_next(rt, &it, &v)) {
        jval key = get_path(rt, v, arg[1], (jval){.type = J_MISSING});
        key = rt->status ? j_undef() : fold_case(rt, key, sensitive);
        if (rt->status)
            break;
        if (!jdict_get(rt, seen, key) && (!jdict_set(rt, seen, key, key) || !jlist_push(rt, l, v)))
            break;
    }
    return generator(l);
}

static jval group_pair(jrt *rt, jval key, jlist *items)
{
    jlist *pair = jlist_new(rt, 2);
    jlist_push(rt, pair, key);
    jlist_push(rt, pair, j_seq(J_LIST, items));
    if (pair)
        pair->name = "group";
    return j_seq(J_TUPLE, pair);
}

static JFILTER(f_groupby)
{
    bool sensitive = jarg_bool(rt, arg[2], false);
    jlist *l = jv_to_list(rt, in), *groups = jlist_new(rt, 0), *group = NULL;
    jval *keys = l ? jalloc_array(rt, l->n, sizeof *keys) : NULL;
    if (!keys)
        return j_undef();
    for (size_t i = 0; i < l->n && !rt->status; i++)
        keys[i] = fold_case(rt, get_path(rt, l->v[i], arg[0], arg[1]), sensitive);
    if (!sort_by(rt, l, keys, false))
        return j_undef();
    for (size_t i = 0; i < l->n && !rt->status; i++) {
        if (i == 0 || !jv_eq(rt, keys[i], keys[i - 1])) {
            group = jlist_new(rt, 0);
            /* The name shown is that of the group's first item, in its own case. */
            jlist_push(rt, groups, group_pair(rt, get_path(rt, l->v[i], arg[0], arg[1]), group));
        }
        jlist_push(rt, group, l->v[i]);
    }
    return j_seq(J_LIST, groups);
}

/* --- pieces -------------------------------------------------------------------------------- */

static JFILTER(f_batch)
{
    int64_t size = jarg_int(rt, arg[0], 1, "batch: the number of items");
    bool fill = jgiven(arg[1]) && arg[1].type != J_NONE;
    jlist *rows = jlist_new(rt, 0), *row = NULL;
    jiter it;
    jval v;
    if (!jiter_init(rt, &it, in))
        return j_undef();
    while (jiter_next(rt, &it, &v)) {
        if (!row || (int64_t)row->n == size) {
            row = jlist_new(rt, 0);
            jlist_push(rt, rows, j_seq(J_LIST, row));
        }
        if (!jlist_push(rt, row, v))
            break;
    }
    while (fill && row && (int64_t)row->n < size && jlist_push(rt, row, arg[1]))
        continue;
    return generator(rows);
}

static JFILTER(f_slice)
{
    int64_t slices = jarg_int(rt, arg[0], 1, "slice: the number of slices");
    bool fill = jgiven(arg[1]) && arg[1].type != J_NONE;
    jlist *l = jv_to_list(rt, in), *out = jlist_new(rt, 0);
    if (!l || !out)
        return j_undef();
    if (slices == 0)
        return jtype_error(rt, "slice: the number of slices is zero");
    size_t at = 0;
    for (int64_t k = 0; k < slices && !rt->status; k++) {
        size_t extra = l->n % (size_t)slices, n = l->n / (size_t)slices + ((size_t)k < extra);
        jlist *part = jlist_new(rt, n + 1);
        for (size_t i = 0; i < n; i++)
            jlist_push(rt, part, l->v[at++]);
        if (fill && (size_t)k >= extra)
            jlist_push(rt, part, arg[1]);
        jlist_push(rt, out, j_seq(J_LIST, part));
    }
    return generator(out);
}

const jfilter_def jinja_filters_seq[] = {
    {"length", "", f_length},
    {"count", "", f_length},
    {"first", "", f_first},
    {"last", "", f_last},
    {"list", "", f_list},
    {"reverse", "", f_reverse},
    {"join", "d attribute", f_join},
    {"items", "", f_items},
    {"sum", "attribute start", f_sum},
    {"min", "case_sensitive attribute", f_min},
    {"max", "case_sensitive attribute", f_max},
    {"map", NULL, f_map},
    {"select", NULL, f_select},
    {"reject", NULL, f_reject},
    {"selectattr", NULL, f_selectattr},
    {"rejectattr", NULL, f_rejectattr},
    {"sort", "reverse case_sensitive attribute", f_sort},
    {"dictsort", "case_sensitive by reverse", f_dictsort},
    {"unique", "case_sensitive attribute", f_unique},
    {"groupby", "attribute* default case_sensitive", f_groupby},
    {"batch", "linecount* fill_with", f_batch},
    {"slice", "slices* fill_with", f_slice},
    {NULL, NULL, NULL},
};
