/* Expressions of the template language: a recursive descent with Jinja's precedence (filters and
 * tests bind tighter than any operator, `~` between `+` and `*`). */
#include <stdio.h>
#include <string.h>

#include "text/jinja/jinja_parser.h"

static jnode *parse_or(jparser *p);
static jnode *parse_unary(jparser *p, bool with_filter);
static jnode *parse_math1(jparser *p);

static jnode *constant(jparser *p, jval v)
{
    jnode *n = jp_node(p, N_CONST);
    if (n)
        n->value = v;
    return n;
}

static jnode *binary(jparser *p, jkind kind, jop op, jnode *a, jnode *b)
{
    jnode *n = jp_node(p, kind);
    if (!n)
        return NULL;
    n->op = op;
    n->a = a;
    n->b = b;
    return n;
}

jnode *jp_expr(jparser *p)
{
    if (!jp_enter(p))
        return NULL;
    const jnode *unknown = p->unknown;
    jnode *value = parse_or(p);
    while (!p->status && jp_skip_name(p, "if")) {
        jnode *n = jp_node(p, N_COND);
        if (!n)
            break;
        n->a = value;
        n->test = parse_or(p);
        n->b = jp_skip_name(p, "else") ? jp_expr(p) : NULL;
        value = n;
        p->unknown = unknown; /* what is conditional fails only when it is reached */
    }
    p->depth--;
    return p->status ? NULL : value;
}

jnode *jp_expr_no_cond(jparser *p)
{
    return parse_or(p);
}

static jnode *parse_not(jparser *p)
{
    if (!jp_at_name(p, "not"))
        goto compare;
    if (!jp_enter(p))
        return NULL;
    p->t++;
    jnode *a = parse_not(p);
    p->depth--;
    return binary(p, N_NOT, OP_ADD, a, NULL);

compare:;
    enum { MAX_CHAIN = 16 };
    jnode *first = parse_math1(p);
    jnode_list rest = {0};
    jop ops[MAX_CHAIN];
    while (!p->status) {
        jop op;
        if (p->t->type >= T_EQ && p->t->type <= T_GE)
            op = (jop)(OP_EQ + (p->t->type - T_EQ));
        else if (jp_at_name(p, "in"))
            op = OP_IN;
        else if (jp_at_name(p, "not") && p->t[1].type == T_NAME && p->t[1].len == 2 &&
                 memcmp(p->t[1].p, "in", 2) == 0)
            op = OP_NOT_IN;
        else
            break;
        if (rest.n == MAX_CHAIN)
            return jp_fail(p, "more than %d comparisons in a chain", MAX_CHAIN);
        ops[rest.n] = op;
        p->t += op == OP_NOT_IN ? 2 : 1;
        jp_push(p, &rest, parse_math1(p));
    }
    if (rest.n == 0)
        return first;
    jnode *n = jp_node(p, N_COMPARE);
    jop *kept = jp_alloc(p, rest.n * sizeof *kept);
    if (!n || !kept)
        return NULL;
    memcpy(kept, ops, rest.n * sizeof *kept);
    n->compare.first = first;
    n->compare.ops = kept;
    n->compare.rest = jp_nodes(&rest);
    return n;
}

static jnode *parse_and(jparser *p)
{
    jnode *a = parse_not(p);
    while (!p->status && jp_skip_name(p, "and"))
        a = binary(p, N_AND, OP_ADD, a, parse_not(p));
    return a;
}

static jnode *parse_or(jparser *p)
{
    jnode *a = parse_and(p);
    while (!p->status && jp_skip_name(p, "or"))
        a = binary(p, N_OR, OP_ADD, a, parse_and(p));
    return a;
}

static jnode *parse_pow(jparser *p)
{
    jnode *a = parse_unary(p, true);
    while (!p->status && jp_skip(p, T_POW))
        a = binary(p, N_BINARY, OP_POW, a, parse_unary(p, true));
    return a;
}

static jnode *parse_math2(jparser *p)
{
    jnode *a = parse_pow(p);
    while (!p->status && p->t->type >= T_MUL && p->t->type <= T_MOD) {
        jop op = (jop)(OP_MUL + (p->t->type - T_MUL));
        p->t++;
        a = binary(p, N_BINARY, op, a, parse_pow(p));
    }
    return a;
}

static jnode *parse_concat(jparser *p)
{
    jnode *a = parse_math2(p);
    if (!jp_at(p, T_TILDE))
        return a;
    jnode_list l = {0};
    jp_push(p, &l, a);
    while (!p->status && jp_skip(p, T_TILDE))
        jp_push(p, &l, parse_math2(p));
    jnode *n = jp_node(p, N_CONCAT);
    if (n)
        n->items = jp_nodes(&l);
    return n;
}

static jnode *parse_math1(jparser *p)
{
    jnode *a = parse_concat(p);
    while (!p->status && (jp_at(p, T_ADD) || jp_at(p, T_SUB))) {
        jop op = jp_at(p, T_ADD) ? OP_ADD : OP_SUB;
        p->t++;
        a = binary(p, N_BINARY, op, a, parse_concat(p));
    }
    return a;
}

static jnode *parse_unary(jparser *p, bool with_filter)
{
    jnode *n;
    if (!jp_enter(p))
        return NULL;
    if (jp_skip(p, T_SUB))
        n = binary(p, N_NEG, OP_SUB, parse_unary(p, false), NULL);
    else if (jp_skip(p, T_ADD))
        n = binary(p, N_POS, OP_ADD, parse_unary(p, false), NULL);
    else
        n = jp_primary(p);
    n = jp_postfix(p, n);
    if (with_filter)
        n = jp_filters(p, n);
    p->depth--;
    return p->status ? NULL : n;
}

/* The name itself may be an implicit argument of the macros around it. */
static void note_use(jparser *p, const jstr *name)
{
    for (macro_use *u = p->macros; u; u = u->outer) {
        u->m->uses_caller |= jstr_is(name, "caller");
        u->m->uses_varargs |= jstr_is(name, "varargs");
        u->m->uses_kwargs |= jstr_is(name, "kwargs");
    }
}

static jnode *parse_name(jparser *p)
{
    static const struct {
        const char *name;
        jtype type;
        bool b;
    } words[] = {{"true", J_BOOL, true},   {"True", J_BOOL, true},  {"false", J_BOOL, false},
                 {"False", J_BOOL, false}, {"none", J_NONE, false}, {"None", J_NONE, false}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (jp_skip_name(p, words[i].name))
            return constant(p, words[i].type == J_NONE ? j_none() : j_bool(words[i].b));
    jnode *n = jp_node(p, N_NAME);
    if (!n)
        return NULL;
    n->name = jp_atom(p, p->t->p, p->t->len);
    if (n->name)
        note_use(p, n->name);
    p->t++;
    return n;
}

/* Neighbouring string literals are one string. */
static jnode *parse_string(jparser *p)
{
    const jtoken *first = p->t;
    size_t len = 0;
    for (; p->t->type == T_STRING; p->t++)
        len += p->t->len;
    if (p->t == first + 1)
        return constant(p, j_str(jstr_new(p->rt, first->p, first->len)));
    char *text = jp_alloc(p, len);
    if (!text)
        return NULL;
    len = 0;
    for (const jtoken *t = first; t < p->t; t++) {
        memcpy(text + len, t->p, t->len);
        len += t->len;
    }
    return constant(p, j_str(jstr_new(p->rt, text, len)));
}

static jnode *parse_list(jparser *p)
{
    jnode_list l = {0};
    jnode *n = jp_node(p, N_LIST);
    p->t++;
    while (!p->status && !jp_at(p, T_RBRACKET)) {
        if (l.n && !jp_expect(p, T_COMMA))
            return NULL;
        if (jp_at(p, T_RBRACKET))
            break;
        jp_push(p, &l, jp_expr(p));
    }
    if (!n || !jp_expect(p, T_RBRACKET))
        return NULL;
    n->items = jp_nodes(&l);
    return n;
}

static jnode *parse_dict(jparser *p)
{
    jnode_list l = {0};
    jnode *n = jp_node(p, N_DICT);
    p->t++;
    while (!p->status && !jp_at(p, T_RBRACE)) {
        if (l.n && !jp_expect(p, T_COMMA))
            return NULL;
        if (jp_at(p, T_RBRACE))
            break;
        jp_push(p, &l, jp_expr(p));
        if (!jp_expect(p, T_COLON))
            return NULL;
        jp_push(p, &l, jp_expr(p));
    }
    if (!n || !jp_expect(p, T_RBRACE))
        return NULL;
    n->items = jp_nodes(&l);
    return n;
}

jnode *jp_primary(jparser *p)
{
    const jtoken *t = p->t;
    if (p->status)
        return NULL;
    switch (t->type) {
    case T_NAME:
        return parse_name(p);
    case T_STRING:
        return parse_string(p);
    case T_INT:
        p->t++;
        return constant(p, j_int(t->i));
    case T_FLOAT:
        p->t++;
        return constant(p, j_float(t->f));
    case T_LPAREN: {
        p->t++;
        jnode *n = jp_tuple(p, JP_PARENTHESES, NULL);
        return jp_expect(p, T_RPAREN) ? n : NULL;
    }
    case T_LBRACKET:
        return parse_list(p);
    case T_LBRACE:
        return parse_dict(p);
    default:
        return jp_fail(p, "expected an expression, not %s", jtok_name(t->type));
    }
}

static bool tuple_ends(const jparser *p, const char *stop)
{
    return jp_at(p, T_VAR_END) || jp_at(p, T_BLOCK_END) || jp_at(p, T_RPAREN) ||
           (stop && jp_at_name(p, stop));
}

jnode *jp_tuple(jparser *p, unsigned flags, const char *stop)
{
    jnode_list l = {0};
    bool is_tuple = false;
    while (!p->status) {
        if (l.n && !jp_expect(p, T_COMMA))
            return NULL;
        if (tuple_ends(p, stop))
            break;
        jp_push(p, &l,
                flags & JP_PRIMARY_ONLY ? jp_primary(p)
                : flags & JP_NO_COND    ? jp_expr_no_cond(p)
                                        : jp_expr(p));
        if (!jp_at(p, T_COMMA))
            break;
        is_tuple = true;
    }
    if (p->status)
        return NULL;
    if (!is_tuple && l.n)
        return l.v[0];
    if (!is_tuple && !(flags & JP_PARENTHESES))
        return jp_fail(p, "expected an expression, not %s", jtok_name(p->t->type));
    jnode *n = jp_node(p, N_TUPLE);
    if (n)
        n->items = jp_nodes(&l);
    return n;
}

/* --- postfix ------------------------------------------------------------------------------- */

/* One index or slice; a slice comes as a SLICE node whose a is filled by the caller. */
static jnode *parse_index(jparser *p)
{
    jnode *part[3] = {NULL, NULL, NULL};
    int n = 0;
    if (!jp_at(p, T_COLON)) {
        part[0] = jp_expr(p);
        if (!jp_at(p, T_COLON))
            return part[0];
    }
    while (!p->status && n < 2 && jp_skip(p, T_COLON)) {
        n++;
        if (!jp_at(p, T_COLON) && !jp_at(p, T_RBRACKET) && !jp_at(p, T_COMMA))
            part[n] = jp_expr(p);
    }
    jnode *s = jp_node(p, N_SLICE);
    if (!s)
        return NULL;
    s->test = part[0];
    s->b = part[1];
    s->step = part[2];
    return s;
}

static jnode *parse_subscript(jparser *p, jnode *obj)
{
    jnode *n = jp_node(p, N_ITEM);
    jnode_list l = {0};
    p->t++;
    while (!p->status && !jp_at(p, T_RBRACKET)) {
        if (l.n && !jp_expect(p, T_COMMA))
            return NULL;
        jp_push(p, &l, parse_index(p));
        if (l.n > 1 && l.v[l.n - 1] && l.v[l.n - 1]->kind == N_SLICE)
            return jp_fail(p, "a slice cannot be one of several indices");
    }
    if (!n || !jp_expect(p, T_RBRACKET))
        return NULL;
    if (l.n == 0)
        return jp_fail(p, "expected an index between '[' and ']'");
    if (l.n == 1 && l.v[0]->kind == N_SLICE) {
        l.v[0]->a = obj;
        return l.v[0];
    }
    if (l.v[0]->kind == N_SLICE)
        return jp_fail(p, "a slice cannot be one of several indices");
    n->get.obj = obj;
    n->get.arg = l.v[0];
    if (l.n > 1) {
        n->get.arg = jp_node(p, N_TUPLE);
        if (n->get.arg)
            n->get.arg->items = jp_nodes(&l);
    }
    return n;
}

static jnode *parse_attribute(jparser *p, jnode *obj)
{
    p->t++;
    const jtoken *t = p->t;
    if (t->type != T_NAME && t->type != T_INT)
        return jp_fail(p, "expected a name or a number after '.', not %s", jtok_name(t->type));
    jnode *n = jp_node(p, t->type == T_NAME ? N_ATTR : N_ITEM);
    if (!n)
        return NULL;
    n->get.obj = obj;
    p->t++;
    if (t->type == T_NAME)
        n->get.name = jp_atom(p, t->p, t->len);
    else
        n->get.arg = constant(p, j_int(t->i));
    return n;
}

static bool keyword_argument(const jparser *p)
{
    return p->t->type == T_NAME && p->t[1].type == T_ASSIGN;
}

static bool parse_argument(jparser *p, jargs *a, jnode_list *pos, jnode_list *kw,
                           const jstr **names, size_t max)
{
    if (jp_skip(p, T_POW)) {
        if (a->dyn_kw)
            return jp_fail(p, "a call has two '**' arguments"), false;
        a->dyn_kw = jp_expr(p);
    } else if (a->dyn_kw) {
        return jp_fail(p, "nothing may follow a call's '**' argument"), false;
    } else if (jp_skip(p, T_MUL)) {
        if (a->dyn_pos)
            return jp_fail(p, "a call has two '*' arguments"), false;
        a->dyn_pos = jp_expr(p);
    } else if (keyword_argument(p)) {
        if (kw->n == max)
            return jp_fail(p, "a call has more than %zu keyword arguments", max), false;
        names[kw->n] = jp_atom(p, p->t->p, p->t->len);
        p->t += 2;
        jp_push(p, kw, jp_expr(p));
    } else {
        if (kw->n || a->dyn_pos)
            return jp_fail(p, "a positional argument follows keyword arguments"), false;
        jp_push(p, pos, jp_expr(p));
    }
    return !p->status;
}

static const jargs *parse_args(jparser *p)
{
    enum { MAX_KEYWORDS = 64 };
    const jstr *names[MAX_KEYWORDS];
    jnode_list pos = {0}, kw = {0};
    jargs *a = jp_alloc(p, sizeof *a);
    if (!a || !jp_expect(p, T_LPAREN))
        return NULL;
    for (bool first = true; !p->status && !jp_at(p, T_RPAREN); first = false) {
        if (!first && !jp_expect(p, T_COMMA))
            return NULL;
        if (!first && jp_at(p, T_RPAREN))
            break;
        if (!parse_argument(p, a, &pos, &kw, names, MAX_KEYWORDS))
            return NULL;
    }
    if (!jp_expect(p, T_RPAREN))
        return NULL;
    a->pos = jp_nodes(&pos);
    a->kw = jp_nodes(&kw);
    a->names = jp_alloc(p, kw.n * sizeof *a->names);
    if (a->names && kw.n)
        memcpy(a->names, names, kw.n * sizeof *names);
    return a->names ? a : NULL;
}

static jnode *parse_call(jparser *p, jnode *fn)
{
    jnode *n = jp_node(p, N_CALL);
    const jargs *a = parse_args(p);
    if (!n || !a)
        return NULL;
    n->call.fn = fn;
    n->call.args = a;
    return n;
}

jnode *jp_postfix(jparser *p, jnode *on)
{
    while (!p->status) {
        if (jp_at(p, T_DOT))
            on = parse_attribute(p, on);
        else if (jp_at(p, T_LBRACKET))
            on = parse_subscript(p, on);
        else if (jp_at(p, T_LPAREN))
            on = parse_call(p, on);
        else
            break;
    }
    return p->status ? NULL : on;
}

/* --- filters and tests --------------------------------------------------------------------- */

static const jstr *dotted_name(jparser *p)
{
    const jstr *name = jp_expect_name(p);
    while (name && jp_skip(p, T_DOT)) {
        const jstr *more = jp_expect_name(p);
        char text[256];
        if (!more || name->len + more->len + 1 > sizeof text)
            return NULL;
        int n = snprintf(text, sizeof text, "%.*s.%.*s", (int)name->len, name->p, (int)more->len,
                         more->p);
        name = jp_atom(p, text, (size_t)n);
    }
    return name;
}

static jnode *parse_filter(jparser *p, jnode *on)
{
    static const jargs none;
    jnode *n = jp_node(p, N_FILTER);
    const jstr *name = dotted_name(p);
    if (!n || !name)
        return NULL;
    n->call.fn = on;
    n->call.name = name;
    n->call.filter = jinja_filter_find(name);
    if (!n->call.filter && !p->soft && !p->unknown)
        p->unknown = n;
    n->call.args = jp_at(p, T_LPAREN) ? parse_args(p) : &none;
    return n->call.args ? n : NULL;
}

static bool test_argument_follows(const jparser *p)
{
    switch (p->t->type) {
    case T_NAME:
        return !jp_at_name(p, "else") && !jp_at_name(p, "or") && !jp_at_name(p, "and");
    case T_STRING:
    case T_INT:
    case T_FLOAT:
    case T_LBRACKET:
    case T_LBRACE:
        return true;
    default:
        return false;
    }
}

static const jargs *test_arguments(jparser *p)
{
    static const jargs none;
    if (jp_at(p, T_LPAREN))
        return parse_args(p);
    if (!test_argument_follows(p))
        return &none;
    if (jp_at_name(p, "is"))
        return jp_fail(p, "tests cannot be chained with 'is'"), NULL;
    jargs *a = jp_alloc(p, sizeof *a);
    jnode_list pos = {0};
    jp_push(p, &pos, jp_postfix(p, jp_primary(p)));
    if (!a || p->status)
        return NULL;
    a->pos = jp_nodes(&pos);
    return a;
}

static jnode *parse_test(jparser *p, jnode *on)
{
    jnode *n = jp_node(p, N_TEST);
    if (!n)
        return NULL;
    n->call.negate = jp_skip_name(p, "not");
    const jstr *name = dotted_name(p);
    if (!name)
        return NULL;
    n->call.fn = on;
    n->call.name = name;
    n->call.test = jinja_test_find(name);
    if (!n->call.test && !p->soft && !p->unknown)
        p->unknown = n;
    n->call.args = test_arguments(p);
    return n->call.args ? n : NULL;
}

jnode *jp_filters(jparser *p, jnode *on)
{
    bool pipe_given = !on && !p->status;
    while (!p->status) {
        if (pipe_given || jp_skip(p, T_PIPE))
            on = parse_filter(p, on);
        else if (on && jp_skip_name(p, "is"))
            on = parse_test(p, on);
        else if (on && jp_at(p, T_LPAREN))
            on = parse_call(p, on);
        else
            break;
        pipe_given = false;
    }
    return p->status ? NULL : on;
}
