/* {% for %} and the `loop` variable. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "text/jinja/jinja_eval.h"

/* Takes the next item that the loop's filter lets through. */
static bool pull(jrt *rt, jloop *l, jval *out)
{
    if (l->rest) {
        if (l->rest->next >= l->rest->n)
            return false;
        *out = l->rest->v[l->rest->next++];
        return true;
    }
    while (jiter_next(rt, &l->it, out)) {
        if (!l->node->loop.filter)
            return true;
        jscope *outer = rt->scope;
        rt->scope = l->scope;
        bool keep = false;
        l->filter_scope = jscope_reuse(rt, l->filter_scope);
        if (l->filter_scope) {
            jassign(rt, l->node->loop.target, *out);
            keep = jv_truthy(rt, jeval(rt, l->node->loop.filter));
        }
        rt->scope = outer;
        if (rt->status)
            return false;
        if (keep)
            return true;
    }
    return false;
}

static bool peek(jrt *rt, jloop *l)
{
    if (!l->has_after && !l->ended) {
        l->has_after = pull(rt, l, &l->after);
        l->ended = !l->has_after;
    }
    return l->has_after;
}

static bool advance(jrt *rt, jloop *l)
{
    if (!peek(rt, l))
        return false;
    l->previous = l->current;
    l->current = l->after;
    l->has_after = false;
    l->index0++;
    return true;
}

/* How many items there are in all: a filtered loop has to look at those that are left. */
static int64_t length(jrt *rt, jloop *l)
{
    if (l->length >= 0)
        return l->length;
    jlist *rest = jlist_new(rt, 0);
    jval v;
    while (pull(rt, l, &v))
        if (!jlist_push(rt, rest, v))
            return 0;
    l->rest = rest;
    l->length = l->index0 + 1 + l->has_after + (rest ? (int64_t)rest->n : 0);
    return l->length;
}

static void run_body(jrt *rt, jloop *l)
{
    static const jstr name = {"loop", 4, 4};
    jval self = {.type = J_LOOP, .loop = l};
    jscope *scope = NULL;
    while (advance(rt, l) && !rt->status) {
        rt->scope = l->scope;
        scope = jscope_reuse(rt, scope);
        if (!scope)
            return;
        jscope_set(rt, &name, self);
        if (!jassign(rt, l->node->loop.target, l->current))
            return;
        jexec(rt, &l->node->loop.body);
        int flow = rt->flow;
        rt->flow = JFLOW_NONE;
        l->completed |= flow == JFLOW_NONE;
        if (flow == JFLOW_BREAK)
            return;
        rt->line = l->node->line;
    }
}

jval jloop_run(jrt *rt, const jnode *node, jscope *scope, jval over, int depth0)
{
    jscope *outer = rt->scope;
    jloop *l = jalloc(rt, sizeof *l);
    if (!l || !jiter_init(rt, &l->it, over))
        return j_undef();
    l->rt = rt;
    l->node = node;
    l->scope = scope;
    l->current = l->previous = l->changed = (jval){.type = J_MISSING};
    l->index0 = -1;
    l->depth0 = depth0;
    l->length = node->loop.filter || over.type == J_GENERATOR ? -1 : jv_len(rt, over);
    run_body(rt, l);
    /* As in Jinja, {% else %} also runs when every body was left by break or continue. */
    if (!l->completed && !rt->status) {
        rt->scope = scope;
        if (jscope_push(rt))
            jexec(rt, &node->loop.otherwise);
    }
    rt->scope = outer;
    return j_none();
}

jval jloop_call(jrt *rt, jloop *l, const jcall *c)
{
    jval arg[JBIND_MAX];
    if (!l->node->loop.recursive)
        return jtype_error(rt, "the loop must have the 'recursive' mark to be called");
    if (!jbind(rt, "loop()", "iterable*", c, arg) || !jenter(rt))
        return j_undef();
    jbuf text = {0}, *outer = rt->out;
    int flow = rt->flow;
    rt->out = &text;
    rt->flow = JFLOW_NONE;
    jloop_run(rt, l->node, l->scope, arg[0], l->depth0 + 1);
    rt->out = outer;
    rt->flow = flow;
    jleave(rt);
    return j_str(jbuf_str(rt, &text));
}

static jval cycle(jrt *rt, jval self, const jcall *c, const jval *arg)
{
    (void)arg;
    if (c->n == 0 || c->nk)
        return jtype_error(rt, "loop.cycle() needs the values to cycle through");
    return c->v[(size_t)self.loop->index0 % c->n];
}

static jval changed(jrt *rt, jval self, const jcall *c, const jval *arg)
{
    (void)arg;
    jlist *l = jlist_new(rt, c->n);
    for (size_t i = 0; i < c->n; i++)
        jlist_push(rt, l, c->v[i]);
    jval now = j_seq(J_TUPLE, l);
    bool same = self.loop->changed.type == J_TUPLE && jv_eq(rt, self.loop->changed, now);
    self.loop->changed = now;
    return j_bool(!same);
}

static jval method(jrt *rt, jloop *l, const jmethod_def *def)
{
    jmethod *m = jalloc(rt, sizeof *m);
    if (!m)
        return j_undef();
    *m = (jmethod){{.type = J_LOOP, .loop = l}, def};
    return (jval){.type = J_METHOD, .m = m};
}

jval jloop_attr(jrt *rt, jloop *l, const jstr *name)
{
    static const jmethod_def cycle_def = {"cycle", NULL, cycle};
    static const jmethod_def changed_def = {"changed", NULL, changed};
    if (jstr_is(name, "index"))
        return j_int(l->index0 + 1);
    if (jstr_is(name, "index0"))
        return j_int(l->index0);
    if (jstr_is(name, "first"))
        return j_bool(l->index0 == 0);
    if (jstr_is(name, "last"))
        return j_bool(!peek(rt, l));
    if (jstr_is(name, "length"))
        return j_int(length(rt, l));
    if (jstr_is(name, "revindex"))
        return j_int(length(rt, l) - l->index0);
    if (jstr_is(name, "revindex0"))
        return j_int(length(rt, l) - l->index0 - 1);
    if (jstr_is(name, "previtem"))
        return l->index0 == 0 ? j_undef_text(rt, "there is no previous item") : l->previous;
    if (jstr_is(name, "nextitem"))
        return peek(rt, l) ? l->after : j_undef_text(rt, "there is no next item");
    if (jstr_is(name, "depth"))
        return j_int(l->depth0 + 1);
    if (jstr_is(name, "depth0"))
        return j_int(l->depth0);
    if (jstr_is(name, "cycle"))
        return method(rt, l, &cycle_def);
    if (jstr_is(name, "changed"))
        return method(rt, l, &changed_def);
    return j_undef_attr(rt, (jval){.type = J_LOOP, .loop = l}, name);
}

bool jloop_repr(jrt *rt, jbuf *b, jloop *l)
{
    char text[80];
    int64_t n = length(rt, l);
    snprintf(text, sizeof text, "<LoopContext %" PRId64 "/%" PRId64 ">", l->index0 + 1, n);
    return jbuf_puts(rt, b, text);
}
