/* Statements of the template language: tokens in, nodes out. Expressions are in
 * jinja_parser_expr.c. */
#include "text/jinja/jinja_parser.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MAX_NESTING = 400 };

static jnodes parse_body(jparser *p, const char *const *ends);

/* --- shared with expressions --------------------------------------------------------------- */

jnode *jp_fail(jparser *p, const char *fmt, ...)
{
    char text[600];
    if (p->status)
        return NULL;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    p->status = st_fail(p->err, ST_EFORMAT, "%s, line %d: %s", p->name, p->t->line, text);
    return NULL;
}

void *jp_alloc(jparser *p, size_t n)
{
    if (p->status)
        return NULL;
    void *m = jalloc(p->rt, n);
    if (!m)
        p->status = p->rt->status;
    return m;
}

jnode *jp_node(jparser *p, jkind kind)
{
    jnode *n = jp_alloc(p, sizeof *n);
    if (n) {
        n->kind = kind;
        n->line = p->t->line;
    }
    return n;
}

bool jp_push(jparser *p, jnode_list *l, jnode *node)
{
    if (p->status || !node)
        return false;
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 4;
        jnode **v = jp_alloc(p, cap * sizeof *v);
        if (!v)
            return false;
        if (l->n)
            memcpy(v, l->v, l->n * sizeof *v);
        l->v = v;
        l->cap = cap;
    }
    l->v[l->n++] = node;
    return true;
}

jnodes jp_nodes(const jnode_list *l)
{
    return (jnodes){l->v, l->n};
}

bool jp_enter(jparser *p)
{
    if (p->status)
        return false;
    if (p->depth >= MAX_NESTING)
        return jp_fail(p, "nested more than %d deep", MAX_NESTING), false;
    p->depth++;
    return true;
}

const jstr *jp_atom(jparser *p, const char *text, size_t len)
{
    jstr probe = {text, len, jutf8_count(text, len)};
    const jval *known = jdict_get_str(p->atoms, &probe);
    if (known)
        return known->s;
    char *copy = jp_alloc(p, len);
    if (!copy)
        return NULL;
    memcpy(copy, text, len);
    jval v = j_str(jstr_new(p->rt, copy, len));
    if (!jdict_set(p->rt, p->atoms, v, v)) {
        p->status = p->rt->status;
        return NULL;
    }
    return v.s;
}

bool jp_at(const jparser *p, jtok t)
{
    return p->t->type == t;
}

bool jp_at_name(const jparser *p, const char *name)
{
    return p->t->type == T_NAME && p->t->len == strlen(name) &&
           memcmp(p->t->p, name, p->t->len) == 0;
}

bool jp_skip(jparser *p, jtok t)
{
    if (p->status || p->t->type != t)
        return false;
    p->t++;
    return true;
}

bool jp_skip_name(jparser *p, const char *name)
{
    if (p->status || !jp_at_name(p, name))
        return false;
    p->t++;
    return true;
}

static const char *describe(const jtoken *t, char *buf, size_t cap)
{
    if (t->type != T_NAME)
        return jtok_name(t->type);
    snprintf(buf, cap, "'%.*s'", (int)(t->len > 60 ? 60 : t->len), t->p);
    return buf;
}

bool jp_expect(jparser *p, jtok t)
{
    char buf[80];
    if (jp_skip(p, t))
        return true;
    jp_fail(p, "expected %s, not %s", jtok_name(t), describe(p->t, buf, sizeof buf));
    return false;
}

const jstr *jp_expect_name(jparser *p)
{
    const jtoken *t = p->t;
    return jp_expect(p, T_NAME) ? jp_atom(p, t->p, t->len) : NULL;
}

/* --- assignment targets -------------------------------------------------------------------- */

static bool reserved(const jstr *name)
{
    static const char *const words[] = {"true", "false", "none", "True", "False", "None"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (jstr_is(name, words[i]))
            return true;
    return false;
}

static bool check_target(jparser *p, const jnode *t)
{
    if (!t || p->status)
        return false;
    if (t->kind == N_NAME && p->fors && jstr_is(t->name, "loop"))
        return jp_fail(p, "'loop' cannot be assigned to inside a loop"), false;
    if (t->kind == N_NAME && !reserved(t->name))
        return true;
    if (t->kind != N_TUPLE)
        return jp_fail(p, "this cannot be assigned to: expected a name"), false;
    for (size_t i = 0; i < t->items.n; i++)
        if (!check_target(p, t->items.v[i]))
            return false;
    return true;
}

static jnode *parse_target(jparser *p, const char *stop)
{
    jnode *t = jp_tuple(p, JP_PRIMARY_ONLY, stop);
    return check_target(p, t) ? t : NULL;
}

/* --- simple statements --------------------------------------------------------------------- */

static jnode *parse_if(jparser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    static const char *const last[] = {"endif", NULL};
    jnode *n = jp_node(p, N_IF);
    if (!n || !jp_enter(p))
        return NULL;
    bool soft = p->soft;
    p->soft = true;
    n->branch.test = jp_tuple(p, JP_NO_COND, NULL);
    n->branch.body = parse_body(p, ends);
    if (jp_skip_name(p, "elif")) {
        jnode_list l = {0};
        jp_push(p, &l, parse_if(p)); /* takes the endif with it */
        n->branch.otherwise = jp_nodes(&l);
    } else if (jp_skip_name(p, "else")) {
        n->branch.otherwise = parse_body(p, last);
        jp_skip_name(p, "endif");
    } else {
        jp_skip_name(p, "endif");
    }
    p->soft = soft;
    p->depth--;
    return p->status ? NULL : n;
}

static jnode *parse_for(jparser *p)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    static const char *const last[] = {"endfor", NULL};
    jnode *n = jp_node(p, N_FOR);
    if (!n || !jp_enter(p))
        return NULL;
    bool soft = p->soft;
    p->fors++;
    n->loop.target = parse_target(p, "in");
    if (!p->status && !jp_skip_name(p, "in"))
        return jp_fail(p, "expected 'in' after the loop's variables");
    n->loop.iter = jp_tuple(p, JP_NO_COND, "recursive");
    p->soft = false;
    if (jp_skip_name(p, "if"))
        n->loop.filter = jp_expr(p);
    n->loop.recursive = jp_skip_name(p, "recursive");
    p->loops++;
    n->loop.body = parse_body(p, ends);
    p->loops--;
    if (jp_skip_name(p, "else"))
        n->loop.otherwise = parse_body(p, last);
    jp_skip_name(p, "endfor");
    p->fors--;
    p->soft = soft;
    p->depth--;
    return p->status ? NULL : n;
}

static jnodes scoped_body(jparser *p, const char *end)
{
    const char *const ends[] = {end, NULL};
    bool soft = p->soft;
    p->soft = false;
    jnodes body = parse_body(p, ends);
    jp_skip_name(p, end);
    p->soft = soft;
    return body;
}

static jnode *parse_set(jparser *p)
{
    jnode *n = jp_node(p, N_SET);
    if (!n)
        return NULL;
    if (p->t->type == T_NAME && p->t[1].type == T_DOT) {
        jnode *t = jp_node(p, N_ATTR), *ns = jp_node(p, N_NAME);
        if (!t || !ns)
            return NULL;
        ns->name = jp_expect_name(p);
        jp_skip(p, T_DOT);
        t->get.name = jp_expect_name(p);
        t->get.obj = ns;
        n->set.target = t;
    } else {
        n->set.target = parse_target(p, NULL);
    }
    if (jp_skip(p, T_ASSIGN)) {
        n->set.value = jp_tuple(p, 0, NULL);
        return p->status ? NULL : n;
    }
    n->kind = N_SET_BLOCK;
    if (jp_skip(p, T_PIPE))
        n->set.value = jp_filters(p, NULL);
    n->set.body = scoped_body(p, "endset");
    return p->status ? NULL : n;
}

static jnode *parse_filter_block(jparser *p)
{
    jnode *n = jp_node(p, N_FILTER_BLOCK);
    if (!n)
        return NULL;
    n->set.value = jp_filters(p, NULL);
    n->set.body = scoped_body(p, "endfilter");
    return p->status ? NULL : n;
}

static jnode *parse_with(jparser *p)
{
    jnode *n = jp_node(p, N_WITH);
    jnode_list targets = {0}, values = {0};
    while (!p->status && !jp_at(p, T_BLOCK_END)) {
        if (targets.n && !jp_expect(p, T_COMMA))
            return NULL;
        jp_push(p, &targets, parse_target(p, NULL));
        jp_expect(p, T_ASSIGN);
        jp_push(p, &values, jp_expr(p));
    }
    if (!n || p->status)
        return NULL;
    n->set.targets = jp_nodes(&targets);
    n->set.values = jp_nodes(&values);
    n->set.body = scoped_body(p, "endwith");
    return p->status ? NULL : n;
}

static jnode *parse_print(jparser *p)
{
    jnode_list l = {0};
    jnode *n = jp_node(p, N_OUTPUT);
    while (!p->status && !jp_at(p, T_BLOCK_END)) {
        if (l.n && !jp_expect(p, T_COMMA))
            return NULL;
        jp_push(p, &l, jp_expr(p));
    }
    if (!n)
        return NULL;
    n->items = jp_nodes(&l);
    return n;
}

static jnode *parse_jump(jparser *p, jkind kind)
{
    if (p->loops == 0)
        return jp_fail(p, "'%s' outside of a loop", kind == N_BREAK ? "break" : "continue");
    return jp_node(p, kind);
}

/* --- macros -------------------------------------------------------------------------------- */

static void parse_signature(jparser *p, jmacro_node *m)
{
    enum { MAX_PARAMS = 64 };
    const jstr *names[MAX_PARAMS];
    jnode_list defaults = {0};
    size_t n = 0;
    jp_expect(p, T_LPAREN);
    while (!p->status && !jp_at(p, T_RPAREN)) {
        if (n && !jp_expect(p, T_COMMA))
            return;
        if (n == MAX_PARAMS) {
            jp_fail(p, "more than %d parameters", MAX_PARAMS);
            return;
        }
        const jstr *name = jp_expect_name(p);
        for (size_t i = 0; i < n; i++)
            if (names[i] == name)
                jp_fail(p, "a parameter is named twice");
        names[n++] = name;
        if (jp_skip(p, T_ASSIGN))
            jp_push(p, &defaults, jp_expr(p));
        else if (defaults.n)
            jp_fail(p, "a parameter without default follows one with a default");
    }
    jp_expect(p, T_RPAREN);
    m->params = jp_alloc(p, n * sizeof *m->params);
    if (!m->params)
        return;
    memcpy(m->params, names, n * sizeof *names);
    m->n_params = n;
    m->defaults = jp_nodes(&defaults);
}

/* A macro's body: a break in it cannot leave a loop around the macro. */
static void parse_macro_body(jparser *p, jmacro_node *m, const char *end)
{
    macro_use use = {p->macros, m};
    int loops = p->loops;
    p->loops = 0;
    p->macros = &use;
    m->body = scoped_body(p, end);
    p->macros = use.outer;
    p->loops = loops;
    for (size_t i = 0; !p->status && i < m->n_params; i++) {
        if (m->uses_caller && jstr_is(m->params[i], "caller") && i < m->n_params - m->defaults.n)
            jp_fail(p, "a parameter named 'caller' needs a default");
        m->uses_varargs &= !jstr_is(m->params[i], "varargs");
        m->uses_kwargs &= !jstr_is(m->params[i], "kwargs");
    }
}

static jnode *parse_macro(jparser *p)
{
    jnode *n = jp_node(p, N_MACRO);
    jmacro_node *m = jp_alloc(p, sizeof *m);
    if (!n || !m)
        return NULL;
    n->macro = m;
    m->name = jp_expect_name(p);
    if (m->name && reserved(m->name))
        return jp_fail(p, "a macro cannot be named '%.*s'", (int)m->name->len, m->name->p);
    parse_signature(p, m);
    parse_macro_body(p, m, "endmacro");
    return p->status ? NULL : n;
}

static jnode *parse_call_block(jparser *p)
{
    jnode *n = jp_node(p, N_CALL_BLOCK);
    jmacro_node *m = jp_alloc(p, sizeof *m);
    if (!n || !m)
        return NULL;
    n->call_block.caller = m;
    m->name = jp_atom(p, "caller", 6);
    if (jp_at(p, T_LPAREN))
        parse_signature(p, m);
    n->call_block.call = jp_expr(p);
    if (!p->status && n->call_block.call->kind != N_CALL)
        return jp_fail(p, "expected a call of a macro after 'call'");
    parse_macro_body(p, m, "endcall");
    return p->status ? NULL : n;
}

static jnode *parse_generation(jparser *p)
{
    jnode *n = jp_node(p, N_SCOPE);
    int loops = p->loops;
    p->loops = 0;
    jnodes body = scoped_body(p, "endgeneration");
    p->loops = loops;
    if (p->status)
        return NULL;
    n->body = body;
    return n;
}

/* --- dispatch ------------------------------------------------------------------------------ */

static jnode *parse_break(jparser *p)
{
    return parse_jump(p, N_BREAK);
}

static jnode *parse_continue(jparser *p)
{
    return parse_jump(p, N_CONTINUE);
}

static jnode *parse_statement(jparser *p)
{
    static const struct {
        const char *name;
        jnode *(*parse)(jparser *p);
    } statements[] = {
        {"if", parse_if},
        {"for", parse_for},
        {"set", parse_set},
        {"macro", parse_macro},
        {"call", parse_call_block},
        {"filter", parse_filter_block},
        {"with", parse_with},
        {"print", parse_print},
        {"break", parse_break},
        {"continue", parse_continue},
        {"generation", parse_generation},
    };
    static const char *const unsupported[] = {"include", "import",     "from", "extends",
                                              "block",   "autoescape", "do",   "trans"};
    if (!jp_at(p, T_NAME))
        return jp_fail(p, "expected the name of a statement after '{%%', not %s",
                       jtok_name(p->t->type));
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        if (jp_skip_name(p, statements[i].name))
            return statements[i].parse(p);
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++)
        if (jp_at_name(p, unsupported[i])) {
            jp_fail(p, "'{%% %s %%}' is not supported in chat templates", unsupported[i]);
            return NULL;
        }
    return jp_fail(p, "there is no statement '%.*s'", (int)(p->t->len > 60 ? 60 : p->t->len),
                   p->t->p);
}

static bool at_end(const jparser *p, const char *const *ends)
{
    if (!ends || p->t[0].type != T_BLOCK_BEGIN)
        return false;
    const jtoken *t = &p->t[1];
    for (; *ends; ends++)
        if (t->type == T_NAME && t->len == strlen(*ends) && memcmp(t->p, *ends, t->len) == 0)
            return true;
    return false;
}

/* Adds to the list's last OUTPUT node, or to a new one. */
static void add_output(jparser *p, jnode_list *l, jnode_list *items, jnode *item)
{
    if (items->n == 0) {
        jnode *n = jp_node(p, N_OUTPUT);
        jp_push(p, l, n);
    }
    jp_push(p, items, item);
    if (!p->status)
        l->v[l->n - 1]->items = jp_nodes(items);
}

static jnode *data_node(jparser *p)
{
    jnode *n = jp_node(p, N_CONST);
    if (n)
        n->value = j_str(jstr_new(p->rt, p->t->p, p->t->len));
    p->t++;
    return n;
}

static jnode *variable_node(jparser *p)
{
    p->t++;
    jnode *n = jp_tuple(p, 0, NULL);
    return jp_expect(p, T_VAR_END) ? n : NULL;
}

static void check_unknown(jparser *p)
{
    if (!p->unknown || p->status)
        return;
    const jnode *n = p->unknown;
    p->status =
        st_fail(p->err, ST_EFORMAT, "%s, line %d: there is no %s named '%.*s'", p->name, n->line,
                n->kind == N_FILTER ? "filter" : "test", (int)n->call.name->len, n->call.name->p);
}

/* Nodes up to `{% end`, whose name is left as the current token; to the end of the template when
 * ends is NULL. */
static jnodes parse_nodes(jparser *p, const char *const *ends)
{
    jnode_list l = {0}, items = {0};
    while (!p->status && !at_end(p, ends)) {
        if (jp_at(p, T_EOF)) {
            if (ends)
                jp_fail(p, "the template ends where '{%% %s %%}' was expected",
                        ends[1] && ends[2] ? ends[2]
                        : ends[1]          ? ends[1]
                                           : ends[0]);
            break;
        }
        if (jp_at(p, T_DATA)) {
            add_output(p, &l, &items, data_node(p));
        } else if (jp_at(p, T_VAR_BEGIN)) {
            add_output(p, &l, &items, variable_node(p));
        } else {
            items = (jnode_list){0};
            jp_expect(p, T_BLOCK_BEGIN);
            jp_push(p, &l, parse_statement(p));
            jp_expect(p, T_BLOCK_END);
        }
        check_unknown(p);
    }
    if (!p->status && ends)
        p->t++;
    return jp_nodes(&l);
}

static jnodes parse_body(jparser *p, const char *const *ends)
{
    jnodes none = {0};
    jp_skip(p, T_COLON);
    if (!jp_expect(p, T_BLOCK_END) || !jp_enter(p))
        return none;
    jnodes body = parse_nodes(p, ends);
    p->depth--;
    return p->status ? none : body;
}

st_status jinja_parse(const char *name, const char *text, size_t len, jmem *mem, jnodes *root,
                      st_error *err)
{
    jrt rt = {.mem = *mem, .name = name, .err = err, .steps = INT64_MAX, .max_output = SIZE_MAX};
    jparser p = {.name = name, .mem = &rt.mem, .rt = &rt, .err = err};
    jtoken *tokens;
    size_t n;
    st_status st = jinja_lex(name, text, len, &rt.mem, &tokens, &n, err);
    if (!st) {
        p.t = tokens;
        p.atoms = jdict_new(&rt);
        if (p.atoms)
            *root = parse_nodes(&p, NULL);
        st = p.status ? p.status : rt.status;
    }
    *mem = rt.mem;
    return st;
}
