/* Evaluates expressions: names, operators, calls, filters and tests. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "text/jinja/jinja_eval.h"

/* --- names --------------------------------------------------------------------------------- */

static jval lookup(jrt *rt, const jstr *name)
{
    for (const jscope *s = rt->scope; s; s = s->parent)
        for (size_t i = 0; i < s->n; i++)
            if (jstr_eq(s->names[i], name))
                return s->values[i];
    const jval *v = jdict_get_str(rt->context, name);
    if (v)
        return *v;
    const jfunction *f = jglobal_find(name);
    if (f)
        return (jval){.type = J_FUNCTION, .fn = f};
    return j_undef_var(rt, name);
}

/* --- operators ----------------------------------------------------------------------------- */

static const char *const op_text[] = {
    [OP_ADD] = "+", [OP_SUB] = "-",  [OP_MUL] = "*", [OP_DIV] = "/", [OP_FLOORDIV] = "//",
    [OP_MOD] = "%", [OP_POW] = "**", [OP_EQ] = "==", [OP_NE] = "!=", [OP_LT] = "<",
    [OP_LE] = "<=", [OP_GT] = ">",   [OP_GE] = ">=", [OP_IN] = "in", [OP_NOT_IN] = "not in",
};

static jval type_mismatch(jrt *rt, jop op, jval a, jval b)
{
    if (a.type == J_UNDEFINED || b.type == J_UNDEFINED)
        return j_undef_error(rt, a.type == J_UNDEFINED ? a : b);
    return jtype_error(rt, "'%s' does not work on '%s' and '%s'", op_text[op], jv_type_name(a),
                       jv_type_name(b));
}

static jval too_large(jrt *rt)
{
    return jtype_error(rt, "an integer grows beyond 64 bits");
}

static jval int_power(jrt *rt, int64_t base, int64_t exp)
{
    int64_t r = 1;
    if (exp < 0) {
        if (base == 0)
            return jtype_error(rt, "0 cannot be raised to a negative power");
        return j_float(pow((double)base, (double)exp));
    }
    for (; exp; exp >>= 1) {
        if ((exp & 1) && __builtin_mul_overflow(r, base, &r))
            return too_large(rt);
        if (exp > 1 && __builtin_mul_overflow(base, base, &base))
            return too_large(rt);
    }
    return j_int(r);
}

/* Quotient rounded down, the remainder has the divisor's sign: Python's way. */
static jval int_divide(jrt *rt, jop op, int64_t x, int64_t y)
{
    if (y == 0)
        return jtype_error(rt, "division by zero");
    if (y == -1) /* INT64_MIN / -1 traps */
        return op == OP_MOD ? j_int(0) : x == INT64_MIN ? too_large(rt) : j_int(-x);
    int64_t q = x / y, r = x % y;
    if (r && (r < 0) != (y < 0)) {
        q--;
        r += y;
    }
    return j_int(op == OP_MOD ? r : q);
}

static jval int_math(jrt *rt, jop op, int64_t x, int64_t y)
{
    int64_t r = 0;
    bool over;
    switch (op) {
    case OP_ADD:
        over = __builtin_add_overflow(x, y, &r);
        break;
    case OP_SUB:
        over = __builtin_sub_overflow(x, y, &r);
        break;
    case OP_MUL:
        over = __builtin_mul_overflow(x, y, &r);
        break;
    case OP_DIV:
        return y ? j_float((double)x / (double)y) : jtype_error(rt, "division by zero");
    case OP_POW:
        return int_power(rt, x, y);
    default:
        return int_divide(rt, op, x, y);
    }
    return over ? too_large(rt) : j_int(r);
}

static jval float_divide(jop op, double x, double y)
{
    double r = fmod(x, y);
    double q = (x - r) / y;
    if (r != 0 && (r < 0) != (y < 0)) {
        r += y;
        q -= 1;
    }
    if (op == OP_MOD)
        return j_float(r != 0 ? r : copysign(0.0, y));
    if (q == 0)
        return j_float(copysign(0.0, x / y));
    double f = floor(q);
    return j_float(q - f > 0.5 ? f + 1 : f);
}

static jval float_math(jrt *rt, jop op, double x, double y)
{
    switch (op) {
    case OP_ADD:
        return j_float(x + y);
    case OP_SUB:
        return j_float(x - y);
    case OP_MUL:
        return j_float(x * y);
    case OP_DIV:
        return y != 0 ? j_float(x / y) : jtype_error(rt, "division by zero");
    case OP_POW: {
        double r = pow(x, y);
        if (isinf(r) && isfinite(x) && isfinite(y))
            return jtype_error(rt, x == 0 ? "0 cannot be raised to a negative power"
                                          : "a power is too large");
        if (isnan(r) && !isnan(x) && !isnan(y))
            return jtype_error(rt, "a negative number has no such power");
        return j_float(r);
    }
    default:
        return y != 0 ? float_divide(op, x, y) : jtype_error(rt, "division by zero");
    }
}

static jval add_lists(jrt *rt, jval a, jval b)
{
    jlist *l = jlist_new(rt, a.l->n + b.l->n);
    if (!l || !jstep(rt, a.l->n + b.l->n))
        return j_undef();
    if (a.l->n)
        memcpy(l->v, a.l->v, a.l->n * sizeof *l->v);
    if (b.l->n)
        memcpy(l->v + a.l->n, b.l->v, b.l->n * sizeof *l->v);
    l->n = a.l->n + b.l->n;
    return j_seq(a.type, l);
}

static jval repeat_str(jrt *rt, const jstr *s, size_t times)
{
    size_t total, done;
    if (s->len == 0 || times == 0)
        return j_str(jstr_lit(rt, ""));
    if (!st_mul_size(s->len, times, &total) || total > rt->max_output)
        return jfail(rt, ST_ENOMEM, "a text repeated %zu times is beyond the limit of %zu bytes",
                     times, rt->max_output);
    char *p = jstep(rt, total / 64) ? jalloc(rt, total) : NULL;
    if (!p)
        return j_undef();
    memcpy(p, s->p, s->len);
    for (done = s->len; done < total; done *= 2)
        memcpy(p + done, p, done < total - done ? done : total - done);
    return j_str(jstr_new(rt, p, total));
}

static jval repeat(jrt *rt, jval v, int64_t times)
{
    if (times < 0)
        times = 0;
    if (v.type == J_STR)
        return repeat_str(rt, v.s, (size_t)times);
    jlist *l = jlist_new(rt, 0);
    for (int64_t i = 0; i < times && v.l->n && jstep(rt, 1); i++)
        for (size_t k = 0; k < v.l->n; k++)
            jlist_push(rt, l, v.l->v[k]);
    return j_seq(v.type, l);
}

static bool repeatable(jval v)
{
    return v.type == J_STR || v.type == J_LIST || v.type == J_TUPLE;
}

jval jbinary(jrt *rt, jop op, jval a, jval b)
{
    if (!jstep(rt, 1))
        return j_undef();
    if (jv_is_integral(a) && jv_is_integral(b))
        return int_math(rt, op, jv_int(a), jv_int(b));
    if (jv_is_number(a) && jv_is_number(b))
        return float_math(rt, op, jv_double(a), jv_double(b));
    if (op == OP_ADD && a.type == J_STR && b.type == J_STR)
        return jv_concat(rt, a.s, b.s);
    if (op == OP_ADD && a.type == b.type && (a.type == J_LIST || a.type == J_TUPLE))
        return add_lists(rt, a, b);
    if (op == OP_MUL && repeatable(a) && jv_is_integral(b))
        return repeat(rt, a, jv_int(b));
    if (op == OP_MUL && repeatable(b) && jv_is_integral(a))
        return repeat(rt, b, jv_int(a));
    if (op == OP_MOD && a.type == J_STR)
        return jpercent_format(rt, a.s, b);
    return type_mismatch(rt, op, a, b);
}

bool jcompare(jrt *rt, jop op, jval a, jval b)
{
    int c;
    switch (op) {
    case OP_EQ:
        return jv_eq(rt, a, b);
    case OP_NE:
        return !jv_eq(rt, a, b);
    case OP_IN:
        return jv_in(rt, a, b);
    case OP_NOT_IN:
        return !jv_in(rt, a, b);
    default:
        break;
    }
    c = jv_order(rt, a, b, op_text[op]);
    if (c == 2)
        return false;
    return op == OP_LT ? c < 0 : op == OP_LE ? c <= 0 : op == OP_GT ? c > 0 : c >= 0;
}

static jval eval_compare(jrt *rt, const jnode *n)
{
    jval a = jeval(rt, n->compare.first);
    for (size_t i = 0; i < n->compare.rest.n && !rt->status; i++) {
        jval b = jeval(rt, n->compare.rest.v[i]);
        if (rt->status || !jcompare(rt, n->compare.ops[i], a, b))
            return j_bool(false);
        a = b;
    }
    return j_bool(true);
}

static jval eval_sign(jrt *rt, const jnode *n)
{
    jval v = jeval(rt, n->a);
    if (v.type == J_FLOAT)
        return n->kind == N_NEG ? j_float(-v.f) : v;
    if (jv_is_integral(v)) {
        int64_t i = jv_int(v);
        if (n->kind == N_POS)
            return j_int(i);
        return i == INT64_MIN ? too_large(rt) : j_int(-i);
    }
    if (v.type == J_UNDEFINED)
        return j_undef_error(rt, v);
    return jtype_error(rt, "'%s' has no sign", jv_type_name(v));
}

/* --- containers ---------------------------------------------------------------------------- */

static jval eval_list(jrt *rt, const jnode *n)
{
    jlist *l = jlist_new(rt, n->items.n);
    for (size_t i = 0; i < n->items.n && !rt->status; i++)
        jlist_push(rt, l, jeval(rt, n->items.v[i]));
    return j_seq(n->kind == N_LIST ? J_LIST : J_TUPLE, l);
}

static jval eval_dict(jrt *rt, const jnode *n)
{
    jdict *d = jdict_new(rt);
    for (size_t i = 0; i + 1 < n->items.n && !rt->status; i += 2) {
        jval k = jeval(rt, n->items.v[i]);
        jdict_set(rt, d, k, jeval(rt, n->items.v[i + 1]));
    }
    return j_dict(d);
}

static jval eval_concat(jrt *rt, const jnode *n)
{
    jbuf b = {0};
    for (size_t i = 0; i < n->items.n && !rt->status; i++)
        jv_print(rt, &b, jeval(rt, n->items.v[i]));
    return j_str(jbuf_str(rt, &b));
}

/* --- calls --------------------------------------------------------------------------------- */

static void spread_keywords(jrt *rt, jval more, jcall *c, size_t fixed)
{
    if (more.type != J_DICT) {
        jtype_error(rt, "the argument after '**' must be a dict, not '%s'", jv_type_name(more));
        return;
    }
    const jstr **names = jalloc_array(rt, fixed + more.d->n, sizeof *names);
    jval *kv = jalloc_array(rt, fixed + more.d->n, sizeof *kv);
    if (!names || !kv)
        return;
    for (size_t i = 0; i < c->nk; i++) {
        names[i] = c->names[i];
        kv[i] = c->kv[i];
    }
    for (size_t i = 0; i < more.d->n; i++) {
        if (more.d->e[i].key.type != J_STR) {
            jtype_error(rt, "keywords must be strings");
            return;
        }
        names[c->nk] = more.d->e[i].key.s;
        kv[c->nk++] = more.d->e[i].value;
    }
    c->names = names;
    c->kv = kv;
}

static bool eval_args(jrt *rt, const jargs *a, jcall *c)
{
    jlist *pos = jlist_new(rt, a->pos.n);
    *c = (jcall){0};
    for (size_t i = 0; i < a->pos.n && !rt->status; i++)
        jlist_push(rt, pos, jeval(rt, a->pos.v[i]));
    if (a->kw.n) {
        c->names = a->names;
        c->kv = jalloc_array(rt, a->kw.n, sizeof *c->kv);
        for (size_t i = 0; i < a->kw.n && !rt->status; i++)
            c->kv[i] = jeval(rt, a->kw.v[i]);
        c->nk = a->kw.n;
    }
    if (a->dyn_pos) {
        jiter it;
        jval v;
        if (jiter_init(rt, &it, jeval(rt, a->dyn_pos)))
            while (jiter_next(rt, &it, &v))
                jlist_push(rt, pos, v);
    }
    if (a->dyn_kw && !rt->status)
        spread_keywords(rt, jeval(rt, a->dyn_kw), c, a->kw.n);
    if (rt->status)
        return false;
    c->v = pos->v;
    c->n = pos->n;
    return true;
}

jval jcall_value(jrt *rt, jval fn, const jcall *c)
{
    jval arg[JBIND_MAX];
    if (rt->status)
        return j_undef();
    switch (fn.type) {
    case J_MACRO:
        return jmacro_call(rt, fn.macro, c);
    case J_FUNCTION:
        if (fn.fn->params && !jbind(rt, fn.fn->name, fn.fn->params, c, arg))
            return j_undef();
        return fn.fn->fn(rt, c, arg);
    case J_METHOD:
        if (fn.m->def->params && !jbind(rt, fn.m->def->name, fn.m->def->params, c, arg))
            return j_undef();
        return fn.m->def->fn(rt, fn.m->self, c, arg);
    case J_LOOP:
        return jloop_call(rt, fn.loop, c);
    case J_JOINER:
        return fn.cycle->at++ ? fn.cycle->v[0] : j_str(jstr_lit(rt, ""));
    case J_UNDEFINED:
        return j_undef_error(rt, fn);
    default:
        return jtype_error(rt, "'%s' object is not callable", jv_type_name(fn));
    }
}

static jval eval_call(jrt *rt, const jnode *n)
{
    jcall c;
    jval fn = jeval(rt, n->call.fn);
    if (rt->status || !eval_args(rt, n->call.args, &c))
        return j_undef();
    rt->line = n->line;
    return jcall_value(rt, fn, &c);
}

jval jfilter_apply(jrt *rt, const jfilter_def *f, jval in, const jcall *c)
{
    jval arg[JBIND_MAX];
    if (!jstep(rt, 1) || (f->params && !jbind(rt, f->name, f->params, c, arg)))
        return j_undef();
    return f->fn(rt, in, c, arg);
}

bool jtest_apply(jrt *rt, const jtest_def *t, jval in, const jcall *c)
{
    jval arg[JBIND_MAX];
    if (!jstep(rt, 1) || !jbind(rt, t->name, t->params, c, arg))
        return false;
    return t->fn(rt, in, arg);
}

static jval unknown(jrt *rt, const char *what, const jstr *name)
{
    return jtype_error(rt, "there is no %s named '%.*s'", what, (int)name->len, name->p);
}

static jval eval_filter(jrt *rt, const jnode *n, jval in)
{
    jcall c;
    if (!n->call.filter)
        return unknown(rt, "filter", n->call.name);
    if (rt->status || !eval_args(rt, n->call.args, &c))
        return j_undef();
    rt->line = n->line;
    return jfilter_apply(rt, n->call.filter, in, &c);
}

jval jeval_filters(jrt *rt, const jnode *chain, jval in)
{
    jval v = in;
    if (!jenter(rt))
        return j_undef();
    if (chain->kind == N_FILTER) {
        if (chain->call.fn)
            v = jeval_filters(rt, chain->call.fn, in);
        v = rt->status ? j_undef() : eval_filter(rt, chain, v);
    } else {
        v = jtype_error(rt, "a block can be given filters only");
    }
    jleave(rt);
    return v;
}

static jval eval_test(jrt *rt, const jnode *n)
{
    jcall c;
    if (!n->call.test)
        return unknown(rt, "test", n->call.name);
    jval in = jeval(rt, n->call.fn);
    if (rt->status || !eval_args(rt, n->call.args, &c))
        return j_undef();
    rt->line = n->line;
    return j_bool(jtest_apply(rt, n->call.test, in, &c) != n->call.negate);
}

/* --- dispatch ------------------------------------------------------------------------------ */

static jval eval_slice(jrt *rt, const jnode *n)
{
    jval obj = jeval(rt, n->a);
    jval start = n->test ? jeval(rt, n->test) : j_none();
    jval stop = n->b ? jeval(rt, n->b) : j_none();
    jval step = n->step ? jeval(rt, n->step) : j_none();
    return rt->status ? j_undef() : jslice(rt, obj, start, stop, step);
}

static jval eval_access(jrt *rt, const jnode *n)
{
    jval obj = jeval(rt, n->get.obj);
    if (n->kind == N_ATTR)
        return rt->status ? j_undef() : jattr(rt, obj, n->get.name);
    jval key = jeval(rt, n->get.arg);
    return rt->status ? j_undef() : jitem(rt, obj, key);
}

static jval eval_logic(jrt *rt, const jnode *n)
{
    jval a = jeval(rt, n->a);
    if (rt->status || jv_truthy(rt, a) == (n->kind == N_OR))
        return a;
    return jeval(rt, n->b);
}

static jval eval_cond(jrt *rt, const jnode *n)
{
    bool yes = jv_truthy(rt, jeval(rt, n->test));
    if (rt->status)
        return j_undef();
    if (yes)
        return jeval(rt, n->a);
    return n->b ? jeval(rt, n->b)
                : j_undef_text(rt, "an 'if' without 'else' has no value when it is false");
}

static jval eval_kind(jrt *rt, const jnode *n)
{
    switch (n->kind) {
    case N_LIST:
    case N_TUPLE:
        return eval_list(rt, n);
    case N_DICT:
        return eval_dict(rt, n);
    case N_COND:
        return eval_cond(rt, n);
    case N_AND:
    case N_OR:
        return eval_logic(rt, n);
    case N_NOT:
        return j_bool(!jv_truthy(rt, jeval(rt, n->a)));
    case N_NEG:
    case N_POS:
        return eval_sign(rt, n);
    case N_COMPARE:
        return eval_compare(rt, n);
    case N_BINARY: {
        jval a = jeval(rt, n->a);
        jval b = jeval(rt, n->b);
        return rt->status ? j_undef() : jbinary(rt, n->op, a, b);
    }
    case N_CONCAT:
        return eval_concat(rt, n);
    case N_ATTR:
    case N_ITEM:
        return eval_access(rt, n);
    case N_SLICE:
        return eval_slice(rt, n);
    case N_CALL:
        return eval_call(rt, n);
    case N_FILTER: {
        jval in = n->call.fn ? jeval(rt, n->call.fn) : j_undef();
        return rt->status ? j_undef() : eval_filter(rt, n, in);
    }
    default:
        return eval_test(rt, n);
    }
}

jval jeval(jrt *rt, const jnode *n)
{
    if (n->kind == N_CONST)
        return n->value;
    if (!jstep(rt, 1))
        return j_undef();
    if (n->kind == N_NAME)
        return lookup(rt, n->name);
    if (!jenter(rt))
        return j_undef();
    rt->line = n->line;
    jval v = eval_kind(rt, n);
    jleave(rt);
    return v;
}
