/* Runs the statements of a template: scopes, assignment, blocks, macros. Loops are in
 * jinja_loop.c. */
#include "text/jinja/jinja_eval.h"

#include <string.h>

/* --- scopes -------------------------------------------------------------------------------- */

jscope *jscope_push(jrt *rt)
{
    jscope *s = jalloc(rt, sizeof *s);
    if (!s)
        return NULL;
    s->parent = rt->scope;
    rt->scope = s;
    return s;
}

jscope *jscope_reuse(jrt *rt, jscope *s)
{
    if (!s || s->captured)
        return jscope_push(rt);
    s->n = 0;
    rt->scope = s;
    return s;
}

void jscope_set(jrt *rt, const jstr *name, jval v)
{
    jscope *s = rt->scope;
    if (rt->status)
        return;
    for (size_t i = 0; i < s->n; i++)
        if (jstr_eq(s->names[i], name)) {
            s->values[i] = v;
            return;
        }
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 4;
        const jstr **names = jalloc_array(rt, cap, sizeof *names);
        jval *values = jalloc_array(rt, cap, sizeof *values);
        if (!names || !values)
            return;
        if (s->n) {
            memcpy(names, s->names, s->n * sizeof *names);
            memcpy(values, s->values, s->n * sizeof *values);
        }
        s->names = names;
        s->values = values;
        s->cap = cap;
    }
    s->names[s->n] = name;
    s->values[s->n++] = v;
}

static bool assign_tuple(jrt *rt, const jnode *target, jval v)
{
    jiter it;
    jval item;
    size_t n = 0;
    if (!jiter_init(rt, &it, v))
        return false;
    while (jiter_next(rt, &it, &item)) {
        if (n == target->items.n) {
            jtype_error(rt, "too many values to unpack: expected %zu", n);
            return false;
        }
        if (!jassign(rt, target->items.v[n++], item))
            return false;
    }
    if (n < target->items.n)
        jtype_error(rt, "not enough values to unpack: expected %zu, got %zu", target->items.n, n);
    return !rt->status;
}

bool jassign(jrt *rt, const jnode *target, jval v)
{
    if (rt->status)
        return false;
    if (target->kind == N_TUPLE)
        return assign_tuple(rt, target, v);
    if (target->kind == N_NAME) {
        jscope_set(rt, target->name, v);
        return !rt->status;
    }
    jval ns = jeval(rt, target->get.obj);
    if (ns.type != J_NAMESPACE) {
        jtype_error(rt, "cannot assign to an attribute of '%s': only a namespace has such",
                    jv_type_name(ns));
        return false;
    }
    return jdict_set(rt, ns.ns->d, j_str(target->get.name), v);
}

/* --- macros -------------------------------------------------------------------------------- */

static jval keyword(const jcall *c, const jstr *name, bool *used)
{
    for (size_t i = 0; i < c->nk; i++)
        if (!used[i] && jstr_eq(c->names[i], name)) {
            used[i] = true;
            return c->kv[i];
        }
    return (jval){.type = J_MISSING};
}

/* Parameters get their values first to last; a default may mention earlier ones. */
static void bind_params(jrt *rt, const jmacro_node *m, const jcall *c, bool *used)
{
    size_t first_default = m->n_params - m->defaults.n;
    for (size_t i = 0; i < m->n_params && !rt->status; i++) {
        jval v =
            i < c->n ? c->v[i] : (c->n < m->n_params ? keyword(c, m->params[i], used) : j_undef());
        if (v.type == J_MISSING)
            v = i >= first_default ? jeval(rt, m->defaults.v[i - first_default])
                                   : j_undef_text(rt, "a parameter was not provided");
        jscope_set(rt, m->params[i], v);
    }
}

static bool has_param(const jmacro_node *m, const char *name)
{
    for (size_t i = 0; i < m->n_params; i++)
        if (jstr_is(m->params[i], name))
            return true;
    return false;
}

static void bind_caller(jrt *rt, const jmacro_node *m, const jcall *c, bool *used)
{
    const jstr *name = jstr_lit(rt, "caller");
    if (!m->uses_caller || has_param(m, "caller") || !name)
        return;
    jval v = keyword(c, name, used);
    if (v.type == J_MISSING || v.type == J_NONE)
        v = j_undef_text(rt, "the macro was called without a caller block");
    jscope_set(rt, name, v);
}

static void bind_rest(jrt *rt, const jmacro_node *m, const jcall *c, const bool *used)
{
    jdict *kw = jdict_new(rt);
    jlist *rest = jlist_new(rt, 0);
    for (size_t i = 0; i < c->nk; i++)
        if (!used[i])
            jdict_set(rt, kw, j_str(c->names[i]), c->kv[i]);
    for (size_t i = m->n_params; i < c->n; i++)
        jlist_push(rt, rest, c->v[i]);
    if (rt->status)
        return;
    if (!m->uses_kwargs && kw->n) {
        const jstr *k = kw->e[0].key.s;
        jtype_error(rt, "macro '%.*s' takes no argument '%.*s'", (int)m->name->len, m->name->p,
                    (int)k->len, k->p);
    } else if (!m->uses_varargs && rest->n) {
        jtype_error(rt, "macro '%.*s' takes at most %zu arguments, not %zu", (int)m->name->len,
                    m->name->p, m->n_params, c->n);
    }
    if (m->uses_kwargs)
        jscope_set(rt, jstr_lit(rt, "kwargs"), j_dict(kw));
    if (m->uses_varargs)
        jscope_set(rt, jstr_lit(rt, "varargs"), j_seq(J_TUPLE, rest));
}

jval jmacro_call(jrt *rt, const jmacro *m, const jcall *c)
{
    jscope *outer = rt->scope;
    jval result = j_undef();
    bool *used = jalloc(rt, c->nk * sizeof *used);
    rt->scope = m->scope;
    if (used && jenter(rt)) {
        if (jscope_push(rt)) {
            bind_params(rt, m->node, c, used);
            bind_caller(rt, m->node, c, used);
            bind_rest(rt, m->node, c, used);
            result = j_str(jexec_text(rt, &m->node->body));
        }
        jleave(rt);
    }
    rt->scope = outer;
    return result;
}

bool jmacro_repr(jrt *rt, jbuf *b, const jmacro *m)
{
    jbuf_puts(rt, b, "<Macro ");
    jv_repr(rt, b, j_str(m->node->name));
    return jbuf_puts(rt, b, ">");
}

static jval macro_value(jrt *rt, const jmacro_node *node)
{
    jmacro *m = jalloc(rt, sizeof *m);
    if (!m)
        return j_undef();
    *m = (jmacro){node, rt->scope};
    for (jscope *s = rt->scope; s && !s->captured; s = s->parent)
        s->captured = true;
    return (jval){.type = J_MACRO, .macro = m};
}

/* --- statements ---------------------------------------------------------------------------- */

static void exec_output(jrt *rt, const jnode *n)
{
    for (size_t i = 0; i < n->items.n && !rt->status; i++) {
        const jnode *item = n->items.v[i];
        jv_print(rt, rt->out, item->kind == N_CONST ? item->value : jeval(rt, item));
    }
}

static void exec_scoped(jrt *rt, const jnodes *body)
{
    jscope *outer = rt->scope;
    if (jscope_push(rt))
        jexec(rt, body);
    rt->scope = outer;
}

static const jstr *scoped_text(jrt *rt, const jnodes *body)
{
    jscope *outer = rt->scope;
    const jstr *text = jscope_push(rt) ? jexec_text(rt, body) : NULL;
    rt->scope = outer;
    return text;
}

static void exec_with(jrt *rt, const jnode *n)
{
    jscope *outer = rt->scope;
    jval *v = jalloc_array(rt, n->set.values.n, sizeof *v);
    for (size_t i = 0; i < n->set.values.n && !rt->status; i++)
        v[i] = jeval(rt, n->set.values.v[i]);
    if (v && jscope_push(rt)) {
        for (size_t i = 0; i < n->set.values.n; i++)
            jassign(rt, n->set.targets.v[i], v[i]);
        jexec(rt, &n->set.body);
    }
    rt->scope = outer;
}

static void exec_set_block(jrt *rt, const jnode *n)
{
    jval v = j_str(scoped_text(rt, &n->set.body));
    if (n->set.value)
        v = jeval_filters(rt, n->set.value, v);
    if (!rt->status)
        jassign(rt, n->set.target, v);
}

static void exec_call_block(jrt *rt, const jnode *n)
{
    jval caller = macro_value(rt, n->call_block.caller);
    const jargs *given = n->call_block.call->call.args;
    jnode value = {.kind = N_CONST, .line = n->line, .value = caller};
    /* The caller goes along as one more keyword argument. */
    jargs args = *given;
    args.names = jalloc_array(rt, given->kw.n + 1, sizeof *args.names);
    args.kw.v = jalloc_array(rt, given->kw.n + 1, sizeof *args.kw.v);
    if (!args.names || !args.kw.v)
        return;
    for (size_t i = 0; i < given->kw.n; i++) {
        args.names[i] = given->names[i];
        args.kw.v[i] = given->kw.v[i];
    }
    args.names[given->kw.n] = n->call_block.caller->name;
    args.kw.v[given->kw.n] = &value;
    args.kw.n++;
    jnode call = *n->call_block.call;
    call.call.args = &args;
    jval v = jeval(rt, &call);
    if (!rt->status)
        jv_print(rt, rt->out, v);
}

static void exec_one(jrt *rt, const jnode *n)
{
    switch (n->kind) {
    case N_OUTPUT:
        exec_output(rt, n);
        break;
    case N_IF:
        if (jv_truthy(rt, jeval(rt, n->branch.test)))
            jexec(rt, &n->branch.body);
        else
            jexec(rt, &n->branch.otherwise);
        break;
    case N_FOR: {
        jval over = jeval(rt, n->loop.iter);
        if (!rt->status)
            jloop_run(rt, n, rt->scope, over, 0);
        break;
    }
    case N_SET: {
        jval v = jeval(rt, n->set.value);
        if (!rt->status)
            jassign(rt, n->set.target, v);
        break;
    }
    case N_SET_BLOCK:
        exec_set_block(rt, n);
        break;
    case N_MACRO:
        jscope_set(rt, n->macro->name, macro_value(rt, n->macro));
        break;
    case N_CALL_BLOCK:
        exec_call_block(rt, n);
        break;
    case N_FILTER_BLOCK: {
        jval v = jeval_filters(rt, n->set.value, j_str(scoped_text(rt, &n->set.body)));
        if (!rt->status)
            jv_print(rt, rt->out, v);
        break;
    }
    case N_WITH:
        exec_with(rt, n);
        break;
    case N_SCOPE:
        exec_scoped(rt, &n->body);
        break;
    default: /* N_BREAK, N_CONTINUE */
        rt->flow = n->kind == N_BREAK ? JFLOW_BREAK : JFLOW_CONTINUE;
        break;
    }
}

void jexec(jrt *rt, const jnodes *body)
{
    if (body->n == 0 || !jenter(rt))
        return;
    for (size_t i = 0; i < body->n && !rt->status && rt->flow == JFLOW_NONE; i++) {
        rt->line = body->v[i]->line;
        if (jstep(rt, 1))
            exec_one(rt, body->v[i]);
    }
    jleave(rt);
}

const jstr *jexec_text(jrt *rt, const jnodes *body)
{
    jbuf text = {0}, *outer = rt->out;
    rt->out = &text;
    jexec(rt, body);
    rt->out = outer;
    return jbuf_str(rt, &text);
}
