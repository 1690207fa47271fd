/* The evaluator's parts: statements (jinja_eval.c), expressions (jinja_expr.c), attributes
 * (jinja_attr.c) and the tables of filters, tests, methods and globals. */
#ifndef ST_TEXT_JINJA_EVAL_H
#define ST_TEXT_JINJA_EVAL_H

#include "text/jinja/jinja_ast.h"

/* Variables of one block. Names are the parser's atoms mostly, so that comparing is quick. */
struct jscope {
    jscope *parent;
    const jstr **names;
    jval *values;
    size_t n, cap;
    bool captured; /* a macro was defined here or inside: it may outlive the block */
};

enum { JFLOW_NONE, JFLOW_BREAK, JFLOW_CONTINUE };

/* A macro with the scope in which it was defined. */
struct jmacro {
    const jmacro_node *node;
    jscope *scope;
};

/* The `loop` variable. Items are taken one ahead at most, so that a filter of the loop sees what
 * the body has done. */
struct jloop {
    jrt *rt;
    const jnode *node;    /* the for statement */
    jscope *scope;        /* around it */
    jscope *filter_scope; /* the loop's filter runs in */
    jiter it;
    jlist *rest; /* all that is left, once somebody asked for the length */
    jval current, previous, after;
    bool has_after, ended;
    bool completed;         /* a body ran to its end: no {% else %} */
    int64_t index0, length; /* length: -1 until it is known */
    int depth0;
    jval changed; /* arguments of the last loop.changed() */
};

struct jfilter_def {
    const char *name;
    const char *params; /* as in jbind; NULL: the filter reads the call itself */
    jval (*fn)(jrt *rt, jval in, const jcall *c, const jval *arg);
};

struct jtest_def {
    const char *name;
    const char *params;
    bool (*fn)(jrt *rt, jval in, const jval *arg);
};

void jexec(jrt *rt, const jnodes *body);
const jstr *jexec_text(jrt *rt, const jnodes *body); /* what the body prints */
jscope *jscope_push(jrt *rt);                        /* NULL after a failure */
/* An empty scope inside of rt->scope: s itself unless it is NULL or captured. */
jscope *jscope_reuse(jrt *rt, jscope *s);
void jscope_set(jrt *rt, const jstr *name, jval v);
bool jassign(jrt *rt, const jnode *target, jval v);
jval jmacro_call(jrt *rt, const jmacro *m, const jcall *c);
bool jmacro_repr(jrt *rt, jbuf *b, const jmacro *m);

jval jloop_run(jrt *rt, const jnode *node, jscope *scope, jval over, int depth0);
jval jloop_call(jrt *rt, jloop *l, const jcall *c); /* loop(children) in a recursive loop */
jval jloop_attr(jrt *rt, jloop *l, const jstr *name);
bool jloop_repr(jrt *rt, jbuf *b, jloop *l);

jval jeval(jrt *rt, const jnode *n);
jval jeval_filters(jrt *rt, const jnode *chain, jval in); /* of a block: the innermost gets in */
jval jcall_value(jrt *rt, jval fn, const jcall *c);
jval jfilter_apply(jrt *rt, const jfilter_def *f, jval in, const jcall *c);
bool jtest_apply(jrt *rt, const jtest_def *t, jval in, const jcall *c);
jval jbinary(jrt *rt, jop op, jval a, jval b);
bool jcompare(jrt *rt, jop op, jval a, jval b);

jval jattr(jrt *rt, jval obj, const jstr *name);      /* obj.name */
jval jattr_only(jrt *rt, jval obj, const jstr *name); /* attributes, never items */
jval jitem(jrt *rt, jval obj, jval key);              /* obj[key] */
jval jslice(jrt *rt, jval obj, jval start, jval stop, jval step);
jval jattr_path(jrt *rt, jval obj, jval path); /* "a.b.0", as filters take it */

const jmethod_def *jmethod_find(jtype type, const jstr *name);
const jfunction *jglobal_find(const jstr *name);
jval jpercent_format(jrt *rt, const jstr *fmt, jval args);  /* '%s' % x */
jval jstr_format(jrt *rt, const jstr *fmt, const jcall *c); /* '{}'.format(x) */
jval jrange_new(jrt *rt, const jcall *c);
jlist *jsort(jrt *rt, jval v, jval *keys, size_t n, bool reverse);

#endif
