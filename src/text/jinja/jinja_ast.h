/* The parsed template: nodes in an arena, immutable after parsing. */
#ifndef ST_TEXT_JINJA_AST_H
#define ST_TEXT_JINJA_AST_H

#include "text/jinja/jinja_value.h"

typedef struct jnode jnode;

typedef enum jkind {
    /* expressions */
    N_CONST,
    N_NAME,
    N_LIST,
    N_TUPLE,
    N_DICT, /* items: key, value, key, value... */
    N_COND,
    N_AND,
    N_OR,
    N_NOT,
    N_NEG,
    N_POS,
    N_COMPARE,
    N_BINARY,
    N_CONCAT,
    N_ATTR,
    N_ITEM,
    N_SLICE, /* x[a:b:c] */
    N_CALL,
    N_FILTER,
    N_TEST,
    /* statements */
    N_OUTPUT, /* items: constants and expressions, printed in order */
    N_IF,
    N_FOR,
    N_SET,
    N_SET_BLOCK,
    N_MACRO,
    N_CALL_BLOCK,
    N_FILTER_BLOCK,
    N_WITH,
    N_SCOPE, /* {% generation %}: the body, with variables of its own */
    N_BREAK,
    N_CONTINUE
} jkind;

typedef enum jop {
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOORDIV,
    OP_MOD,
    OP_POW,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOT_IN
} jop;

typedef struct jnodes {
    jnode **v;
    size_t n;
} jnodes;

typedef struct jargs {
    jnodes pos;
    const jstr **names; /* of kw */
    jnodes kw;
    jnode *dyn_pos, *dyn_kw; /* *x, **x; NULL: absent */
} jargs;

typedef struct jfilter_def jfilter_def;
typedef struct jtest_def jtest_def;

/* What {% macro %} and {% call %} define. */
struct jmacro_node {
    const jstr *name;
    const jstr **params;
    size_t n_params;
    jnodes defaults; /* of the last parameters */
    jnodes body;
    bool uses_caller, uses_varargs, uses_kwargs;
};
typedef struct jmacro_node jmacro_node;

struct jnode {
    jkind kind;
    jop op; /* BINARY */
    int line;
    union {
        jval value;       /* CONST */
        const jstr *name; /* NAME: interned, equal names are mostly equal pointers */
        jnodes items;     /* LIST, TUPLE, DICT, CONCAT, OUTPUT */
        struct {          /* COND: test ? a : b (b may be NULL); AND, OR: a, b; NOT, NEG, POS: a;
                             BINARY: a op b; SLICE: a[start:stop:step], parts may be NULL */
            jnode *a, *b, *test, *step;
        };
        struct {
            jnode *first;
            jop *ops;
            jnodes rest;
        } compare;
        struct { /* ATTR: obj.name; ITEM: obj[arg] */
            jnode *obj;
            const jstr *name;
            jnode *arg;
        } get;
        struct { /* CALL: fn(args); FILTER, TEST: on fn (NULL: a block's text) */
            jnode *fn;
            const jargs *args;
            const jfilter_def *filter; /* NULL: no such filter, an error once it is reached */
            const jtest_def *test;
            const jstr *name;
            bool negate;
        } call;
        struct {
            jnode *test;
            jnodes body, otherwise;
        } branch; /* IF */
        struct {
            jnode *target, *iter, *filter;
            jnodes body, otherwise;
            bool recursive;
        } loop;
        struct { /* SET: target = value; SET_BLOCK: body, value: filter chain or NULL;
                    FILTER_BLOCK: value over body; WITH: targets = values */
            jnode *target, *value;
            jnodes body, targets, values;
        } set;
        jmacro_node *macro; /* MACRO */
        struct {
            jmacro_node *caller;
            jnode *call;
        } call_block;
        jnodes body; /* SCOPE */
    };
};

/* Parses text (valid UTF-8, kept alive by the caller as long as the nodes) into *root; nodes live
 * in mem. */
ST_NODISCARD st_status jinja_parse(const char *name, const char *text, size_t len, jmem *mem,
                                   jnodes *root, st_error *err);

const jfilter_def *jinja_filter_find(const jstr *name);
const jtest_def *jinja_test_find(const jstr *name);

#endif
