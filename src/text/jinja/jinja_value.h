/* Values of the template language and the state of one render.
 *
 * Values have Python's meaning: strings are sequences of code points, integers and booleans
 * compare and add, printing gives str() and containers print repr(). All but namespaces are
 * immutable once built, as in the immutable sandbox that Hugging Face renders templates in.
 *
 * Everything lives in the render's arena. The first failure sticks in jrt.status: later calls
 * return at once with an undefined value, so callers check the status where it matters (loops,
 * and before they trust a value). */
#ifndef ST_TEXT_JINJA_VALUE_H
#define ST_TEXT_JINJA_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/arena.h"
#include "starling/status.h"

typedef enum jtype {
    J_MISSING, /* an argument that was not given; never visible to templates */
    J_UNDEFINED,
    J_NONE,
    J_BOOL,
    J_INT,
    J_FLOAT,
    J_STR,
    J_LIST,
    J_TUPLE,
    J_DICT,
    J_VIEW,      /* dict.keys(), .values(), .items() */
    J_GENERATOR, /* what map, select, reverse... give: can be walked once */
    J_RANGE,
    J_NAMESPACE,
    J_MACRO,
    J_LOOP,
    J_FUNCTION,
    J_METHOD,
    J_CYCLER,
    J_JOINER
} jtype;

typedef struct jstr {
    const char *p; /* valid UTF-8, not NUL-terminated */
    size_t len;    /* bytes */
    size_t n;      /* code points */
} jstr;

typedef struct jval jval;
typedef struct jlist jlist;
typedef struct jdict jdict;
typedef struct jrange jrange;
typedef struct jundef jundef;
typedef struct jns jns;
typedef struct jmacro jmacro;
typedef struct jloop jloop;
typedef struct jfunction jfunction;
typedef struct jmethod jmethod;
typedef struct jcycle jcycle;
typedef struct jscope jscope;
typedef struct jrt jrt;

struct jval {
    jtype type;
    union {
        bool b;
        int64_t i;
        double f;
        const jstr *s;
        jlist *l;
        jdict *d;
        const jrange *r;
        const jundef *u; /* NULL: nothing more is known */
        jns *ns;
        const jmacro *macro;
        jloop *loop;
        const jfunction *fn;
        const jmethod *m;
        jcycle *cycle;
    };
};

/* LIST, TUPLE, VIEW, GENERATOR */
struct jlist {
    jval *v;
    size_t n, cap;
    size_t next;      /* GENERATOR: what was taken already */
    const char *name; /* VIEW: "dict_items"...; TUPLE: "group" for groupby's pairs */
};

typedef struct jentry {
    jval key, value;
    uint64_t hash;
} jentry;

/* In insertion order; index (open addressing, entry number + 1) only above a few entries. */
struct jdict {
    jentry *e;
    size_t n, cap;
    uint32_t *index;
    size_t index_cap; /* a power of two */
};

struct jrange {
    int64_t start, stop, step;
    int64_t n;
};

/* Why a value is undefined, for the error when it is used. */
struct jundef {
    const char *owner; /* type of the object without the attribute; NULL: a variable */
    const jstr *name;
    const char *text; /* a whole sentence instead */
};

struct jns {
    jdict *d;
};

struct jcycle {
    jval *v;
    size_t n, at;
};

/* Evaluated arguments of a call. */
typedef struct jcall {
    jval *v;
    size_t n;
    const jstr **names;
    jval *kv;
    size_t nk;
} jcall;

struct jfunction {
    const char *name;
    const char *params; /* as in jbind; NULL: the function reads the call itself */
    jval (*fn)(jrt *rt, const jcall *c, const jval *arg);
};

typedef jval jmethod_fn(jrt *rt, jval self, const jcall *c, const jval *arg);

typedef struct jmethod_def {
    const char *name;
    const char *params;
    jmethod_fn *fn;
} jmethod_def;

struct jmethod {
    jval self;
    const jmethod_def *def;
};

/* Text under construction, in the arena. */
typedef struct jbuf {
    char *p;
    size_t len, cap;
} jbuf;

/* Small pieces out of an arena whose own grain is 64 bytes, with a limit on the whole. */
typedef struct jmem {
    st_arena *arena;
    char *cur, *end;
    size_t used, limit;
} jmem;

struct jrt {
    jmem mem;
    st_status status; /* the first failure */
    st_error *err;
    const char *name; /* of the template, for errors */
    int line;
    int depth;
    int64_t steps; /* left */
    size_t max_output;
    jbuf *out;
    jscope *scope;
    const jdict *context;
    int64_t now;
    int flow;                    /* break or continue on its way to the loop */
    char *tail_end, *tail_limit; /* room behind the string built last, see jv_concat */
};

/* --- memory, errors ------------------------------------------------------------------------ */
void *jmem_alloc(jmem *m, size_t n); /* zeroed, aligned to 16; NULL: limit or no memory */
void *jalloc(jrt *rt, size_t n);     /* the same; NULL after setting rt->status */
void *jalloc_array(jrt *rt, size_t n, size_t size);
/* Sets the status unless one is set; the text gets the template's name and line in front, but
 * for ST_EINVAL (what a template raised is passed on as it is). Returns an undefined value. */
jval jfail(jrt *rt, st_status status, const char *fmt, ...) ST_PRINTF(3, 4);
jval jtype_error(jrt *rt, const char *fmt, ...) ST_PRINTF(2, 3); /* ST_EFORMAT */
bool jstep(jrt *rt, size_t n); /* counts work; false when failed or the budget is spent */
bool jenter(jrt *rt);          /* recursion: false (failed) when too deep; else pair with jleave */
void jleave(jrt *rt);

enum { JINJA_MAX_DEPTH = 900, JINJA_MAX_RANGE = 100000 };

/* --- making values ------------------------------------------------------------------------- */
static inline jval j_none(void)
{
    return (jval){.type = J_NONE};
}
static inline jval j_bool(bool b)
{
    return (jval){.type = J_BOOL, .b = b};
}
static inline jval j_int(int64_t i)
{
    return (jval){.type = J_INT, .i = i};
}
static inline jval j_float(double f)
{
    return (jval){.type = J_FLOAT, .f = f};
}
static inline jval j_str(const jstr *s)
{
    return s ? (jval){.type = J_STR, .s = s} : (jval){.type = J_UNDEFINED};
}
static inline jval j_undef(void)
{
    return (jval){.type = J_UNDEFINED};
}
static inline jval j_seq(jtype t, jlist *l)
{
    return l ? (jval){.type = t, .l = l} : (jval){.type = J_UNDEFINED};
}
static inline jval j_dict(jdict *d)
{
    return d ? (jval){.type = J_DICT, .d = d} : (jval){.type = J_UNDEFINED};
}

jval j_undef_attr(jrt *rt, jval owner, const jstr *name); /* 'X' has no attribute 'name' */
jval j_undef_var(jrt *rt, const jstr *name);
jval j_undef_text(jrt *rt, const char *text);             /* text: lives as long as the render */
jval j_undef_error(jrt *rt, jval v);                      /* the failure of using v */
const jstr *jstr_new(jrt *rt, const char *p, size_t len); /* does not copy p */
const jstr *jstr_lit(jrt *rt, const char *text);
const jstr *jstr_sub(jrt *rt, const jstr *s, size_t from, size_t to);   /* byte offsets */
const jstr *jstr_chars(jrt *rt, const jstr *s, size_t from, size_t to); /* code points */
size_t jstr_offset(const jstr *s, size_t chars); /* byte offset of a code point */
size_t jutf8_count(const char *p, size_t len);
bool jstr_eq(const jstr *a, const jstr *b);
bool jstr_is(const jstr *s, const char *text);
jval jv_concat(jrt *rt, const jstr *a, const jstr *b);
jlist *jlist_new(jrt *rt, size_t cap);
bool jlist_push(jrt *rt, jlist *l, jval v);
jdict *jdict_new(jrt *rt);
bool jdict_set(jrt *rt, jdict *d, jval key, jval value);  /* fails on unhashable keys */
const jval *jdict_get(jrt *rt, const jdict *d, jval key); /* NULL: absent, or failed */
const jval *jdict_get_str(const jdict *d, const jstr *key);
jval jv_from_json(jrt *rt, const json_t *j);

/* --- text ---------------------------------------------------------------------------------- */
bool jbuf_add(jrt *rt, jbuf *b, const char *p, size_t n);
bool jbuf_puts(jrt *rt, jbuf *b, const char *s);
bool jbuf_cp(jrt *rt, jbuf *b, uint32_t cp);
const jstr *jbuf_str(jrt *rt, const jbuf *b);
bool jv_print(jrt *rt, jbuf *b, jval v); /* str(v) */
bool jv_repr(jrt *rt, jbuf *b, jval v);
const jstr *jv_str(jrt *rt, jval v); /* str(v); NULL after a failure */
void jfloat_repr(double f, char out[40]);

typedef struct jjson_opts {
    bool ensure_ascii, sort_keys;
    const jstr *indent; /* NULL: one line */
    const jstr *item_sep, *key_sep;
} jjson_opts;
bool jv_json(jrt *rt, jbuf *b, jval v, const jjson_opts *o, int level);

/* --- meaning ------------------------------------------------------------------------------- */
const char *jv_type_name(jval v); /* Python's name of the type */
bool jv_truthy(jrt *rt, jval v);
bool jv_eq(jrt *rt, jval a, jval b);
int jv_order(jrt *rt, jval a, jval b, const char *op); /* <0, 0, >0; 2: unordered (NaN) */
bool jv_in(jrt *rt, jval needle, jval hay);
uint64_t jv_hash(jrt *rt, jval v); /* fails for unhashable values */
bool jv_is_number(jval v);         /* bool, int, float */
bool jv_is_integral(jval v);       /* bool, int */
int64_t jv_int(jval v);            /* of an integral value */
double jv_double(jval v);          /* of a number */
int64_t jv_len(jrt *rt, jval v);   /* fails where len() does */

/* Walks whatever Python could iterate. */
typedef struct jiter {
    jval v;
    size_t at; /* item or byte */
} jiter;
bool jiter_init(jrt *rt, jiter *it, jval v); /* fails where iter() does */
bool jiter_next(jrt *rt, jiter *it, jval *out);
jlist *jv_to_list(jrt *rt, jval v); /* a fresh list; NULL after a failure */

/* Puts a call's arguments in the order of params ("name name* ...": * means required; a leading
 * '/' means that none can be given by name) into arg[0..JBIND_MAX); those not given are
 * J_MISSING. */
enum { JBIND_MAX = 6 };
bool jbind(jrt *rt, const char *what, const char *params, const jcall *c, jval *arg);

#endif
