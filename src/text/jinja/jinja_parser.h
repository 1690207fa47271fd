/* What the two halves of the parser share: statements (jinja_parser.c) and expressions
 * (jinja_parser_expr.c). */
#ifndef ST_TEXT_JINJA_PARSER_H
#define ST_TEXT_JINJA_PARSER_H

#include "text/jinja/jinja_ast.h"
#include "text/jinja/jinja_lexer.h"

typedef struct jparser {
    const char *name;
    const jtoken *t; /* the current token */
    jmem *mem;
    st_status status;
    st_error *err;
    int depth;
    int loops; /* loops that a break here could leave */
    int fors;  /* for statements around here */
    bool soft; /* inside an if: an unknown filter fails only when it is reached */
    const jnode
        *unknown; /* the first filter or test outside of any condition that does not exist */
    jdict *atoms;
    struct macro_use *macros; /* the macros being parsed, innermost first */
    jrt *rt;                  /* an allocation context for strings and the atoms' dict */
} jparser;

/* Names that a macro's body mentions, for its implicit arguments. */
typedef struct macro_use {
    struct macro_use *outer;
    jmacro_node *m;
} macro_use;

/* Collects nodes of a list before it moves to the arena. */
typedef struct jnode_list {
    jnode **v;
    size_t n, cap;
} jnode_list;

jnode *jp_node(jparser *p, jkind kind); /* NULL after a failure */
jnode *jp_fail(jparser *p, const char *fmt, ...) ST_PRINTF(2, 3);
bool jp_push(jparser *p, jnode_list *l, jnode *node);
jnodes jp_nodes(const jnode_list *l);
void *jp_alloc(jparser *p, size_t n);
bool jp_enter(jparser *p);
const jstr *jp_atom(jparser *p, const char *text, size_t len); /* equal texts, equal pointers */

bool jp_at(const jparser *p, jtok t);
bool jp_at_name(const jparser *p, const char *name);
bool jp_skip(jparser *p, jtok t); /* steps over t if it is there */
bool jp_skip_name(jparser *p, const char *name);
bool jp_expect(jparser *p, jtok t); /* fails unless t is there */
const jstr *jp_expect_name(jparser *p);

jnode *jp_expr(jparser *p); /* with `a if b else c` */
jnode *jp_expr_no_cond(jparser *p);
enum { JP_NO_COND = 1, JP_PRIMARY_ONLY = 2, JP_PARENTHESES = 4 };
/* Comma-separated expressions: a single one stays itself. stop: a name that ends the list. */
jnode *jp_tuple(jparser *p, unsigned flags, const char *stop);
jnode *jp_filters(jparser *p, jnode *on); /* `| name(args)`..., the first name without a pipe
                                             when on is NULL */
jnode *jp_postfix(jparser *p, jnode *on);
jnode *jp_primary(jparser *p);

#endif
