/* Template values: memory, strings, containers, iteration, arguments. See jinja_value.h. */
#include "text/jinja/jinja_value.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <xxhash.h>

#include "base/checked.h"
#include "base/utf8.h"

enum { BLOCK = 32 * 1024, INDEX_FROM = 8 };

/* --- memory, errors ------------------------------------------------------------------------ */

void *jmem_alloc(jmem *m, size_t n)
{
    size_t need;
    if (!st_add_size(n, 15, &need))
        return NULL;
    need &= ~(size_t)15;
    if (need > m->limit - m->used)
        return NULL;
    if (need > (size_t)(m->end - m->cur)) {
        if (need >= BLOCK / 2) {
            void *p = st_arena_alloc(m->arena, need);
            if (p)
                m->used += need;
            return p;
        }
        m->cur = st_arena_alloc(m->arena, BLOCK);
        m->end = m->cur ? m->cur + BLOCK : NULL;
        if (!m->cur)
            return NULL;
    }
    void *p = m->cur;
    m->cur += need;
    m->used += need;
    return p;
}

void *jalloc(jrt *rt, size_t n)
{
    if (rt->status)
        return NULL;
    void *p = jmem_alloc(&rt->mem, n ? n : 1);
    if (!p)
        jfail(rt, ST_ENOMEM, "rendering needs more than the %zu MiB of memory it may use",
              rt->mem.limit >> 20);
    return p;
}

void *jalloc_array(jrt *rt, size_t n, size_t size)
{
    size_t bytes;
    return jalloc(rt, st_mul_size(n, size, &bytes) ? bytes : SIZE_MAX);
}

jval jfail(jrt *rt, st_status status, const char *fmt, ...)
{
    if (rt->status)
        return j_undef();
    rt->status = status;
    char text[sizeof rt->err->text];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (status == ST_EINVAL)
        st_fail(rt->err, status, "%s", text);
    else
        st_fail(rt->err, status, "%s, line %d: %s", rt->name, rt->line, text);
    return j_undef();
}

jval jtype_error(jrt *rt, const char *fmt, ...)
{
    char text[800];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return jfail(rt, ST_EFORMAT, "%s", text);
}

bool jstep(jrt *rt, size_t n)
{
    if (rt->status)
        return false;
    if ((uint64_t)rt->steps < n) {
        jfail(rt, ST_EDEADLINE, "the template runs too long: its budget of steps is spent");
        return false;
    }
    rt->steps -= (int64_t)n;
    return true;
}

bool jenter(jrt *rt)
{
    if (rt->depth >= JINJA_MAX_DEPTH) {
        jtype_error(rt, "nested more than %d deep", JINJA_MAX_DEPTH);
        return false;
    }
    rt->depth++;
    return !rt->status || (rt->depth--, false);
}

void jleave(jrt *rt)
{
    rt->depth--;
}

/* --- undefined ----------------------------------------------------------------------------- */

static jval undef_new(jrt *rt, const char *owner, const jstr *name, const char *text)
{
    jundef *u = jalloc(rt, sizeof *u);
    if (u)
        *u = (jundef){owner, name, text};
    return (jval){.type = J_UNDEFINED, .u = u};
}

jval j_undef_attr(jrt *rt, jval owner, const jstr *name)
{
    return undef_new(rt, jv_type_name(owner), name, NULL);
}

jval j_undef_var(jrt *rt, const jstr *name)
{
    return undef_new(rt, NULL, name, NULL);
}

jval j_undef_text(jrt *rt, const char *text)
{
    return undef_new(rt, NULL, NULL, text);
}

jval j_undef_error(jrt *rt, jval v)
{
    const jundef *u = v.u;
    if (!u)
        return jtype_error(rt, "an undefined value was used");
    if (u->text)
        return jtype_error(rt, "%s", u->text);
    int n = (int)(u->name->len > 200 ? 200 : u->name->len);
    if (u->owner)
        return jtype_error(rt, "'%s object' has no attribute '%.*s'", u->owner, n, u->name->p);
    return jtype_error(rt, "'%.*s' is undefined", n, u->name->p);
}

/* --- strings ------------------------------------------------------------------------------- */

size_t jutf8_count(const char *p, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        n += ((unsigned char)p[i] & 0xC0) != 0x80;
    return n;
}

static const jstr *str_make(jrt *rt, const char *p, size_t len, size_t n)
{
    jstr *s = jalloc(rt, sizeof *s);
    if (s)
        *s = (jstr){p, len, n};
    return s;
}

const jstr *jstr_new(jrt *rt, const char *p, size_t len)
{
    return str_make(rt, p, len, jutf8_count(p, len));
}

const jstr *jstr_lit(jrt *rt, const char *text)
{
    return jstr_new(rt, text, strlen(text));
}

const jstr *jstr_sub(jrt *rt, const jstr *s, size_t from, size_t to)
{
    if (s->n == s->len)
        return str_make(rt, s->p + from, to - from, to - from);
    return jstr_new(rt, s->p + from, to - from);
}

size_t jstr_offset(const jstr *s, size_t chars)
{
    if (s->n == s->len || chars >= s->n)
        return chars >= s->n ? s->len : chars;
    size_t i = 0;
    for (;; i++)
        if (((unsigned char)s->p[i] & 0xC0) != 0x80 && chars-- == 0)
            return i;
}

const jstr *jstr_chars(jrt *rt, const jstr *s, size_t from, size_t to)
{
    if (to < from)
        to = from;
    jstep(rt, s->n == s->len ? 1 : 1 + s->len / 32);
    size_t a = jstr_offset(s, from), b = jstr_offset(s, to);
    return str_make(rt, s->p + a, b - a,
                    to > s->n ? s->n - (from > s->n ? s->n : from) : to - from);
}

bool jstr_eq(const jstr *a, const jstr *b)
{
    return a == b || (a->len == b->len && memcmp(a->p, b->p, a->len) == 0);
}

bool jstr_is(const jstr *s, const char *text)
{
    return s->len == strlen(text) && memcmp(s->p, text, s->len) == 0;
}

/* A string built last keeps room behind it, so that `s = s + piece` in a loop is linear. The
 * shorter string is unharmed: it ends where the piece begins. */
jval jv_concat(jrt *rt, const jstr *a, const jstr *b)
{
    size_t len, n = a->n + b->n;
    if (b->len == 0)
        return j_str(a);
    if (a->len == 0)
        return j_str(b);
    if (!st_add_size(a->len, b->len, &len) || !jstep(rt, 1 + b->len / 64))
        return j_undef();
    if (a->p + a->len == rt->tail_end && (size_t)(rt->tail_limit - rt->tail_end) >= b->len) {
        memcpy(rt->tail_end, b->p, b->len);
        rt->tail_end += b->len;
        return j_str(str_make(rt, a->p, len, n));
    }
    size_t cap = len + (len < 64 ? 32 : len);
    char *p = jalloc(rt, cap);
    if (!p)
        return j_undef();
    memcpy(p, a->p, a->len);
    memcpy(p + a->len, b->p, b->len);
    rt->tail_end = p + len;
    rt->tail_limit = p + cap;
    jstep(rt, len / 64);
    return j_str(str_make(rt, p, len, n));
}

bool jbuf_add(jrt *rt, jbuf *b, const char *p, size_t n)
{
    if (rt->status)
        return false;
    if (n > rt->max_output - b->len) {
        jfail(rt, ST_ENOMEM, "the text grows beyond the limit of %zu bytes", rt->max_output);
        return false;
    }
    if (n > b->cap - b->len) {
        size_t cap = b->cap ? b->cap * 2 : 64;
        while (cap < b->len + n)
            cap *= 2;
        char *q = jalloc(rt, cap);
        if (!q)
            return false;
        if (b->len)
            memcpy(q, b->p, b->len);
        b->p = q;
        b->cap = cap;
    }
    if (n)
        memcpy(b->p + b->len, p, n);
    b->len += n;
    return jstep(rt, n / 64);
}

bool jbuf_puts(jrt *rt, jbuf *b, const char *s)
{
    return jbuf_add(rt, b, s, strlen(s));
}

bool jbuf_cp(jrt *rt, jbuf *b, uint32_t cp)
{
    char s[4];
    size_t n = st_utf8_encode(cp, s);
    return n ? jbuf_add(rt, b, s, n) : jbuf_add(rt, b, "\xEF\xBF\xBD", 3);
}

const jstr *jbuf_str(jrt *rt, const jbuf *b)
{
    return jstr_new(rt, b->p ? b->p : "", b->len);
}

/* --- lists and dicts ----------------------------------------------------------------------- */

jlist *jlist_new(jrt *rt, size_t cap)
{
    jlist *l = jalloc(rt, sizeof *l);
    if (l && cap) {
        l->v = jalloc_array(rt, cap, sizeof *l->v);
        if (!l->v)
            return NULL;
        l->cap = cap;
    }
    return l;
}

bool jlist_push(jrt *rt, jlist *l, jval v)
{
    if (rt->status || !l)
        return false;
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 4;
        jval *q = jalloc_array(rt, cap, sizeof *q);
        if (!q)
            return false;
        if (l->n)
            memcpy(q, l->v, l->n * sizeof *q);
        l->v = q;
        l->cap = cap;
    }
    l->v[l->n++] = v;
    return jstep(rt, 1);
}

jdict *jdict_new(jrt *rt)
{
    return jalloc(rt, sizeof(jdict));
}

static uint64_t str_hash(const jstr *s)
{
    return XXH3_64bits(s->p, s->len);
}

static bool same_key(jrt *rt, const jentry *e, jval key, uint64_t hash)
{
    if (e->hash != hash)
        return false;
    if (e->key.type == J_STR && key.type == J_STR)
        return jstr_eq(e->key.s, key.s);
    return rt && jv_eq(rt, e->key, key);
}

/* The entry of key, or NULL. rt is needed for keys other than strings only. */
static jentry *find(jrt *rt, const jdict *d, jval key, uint64_t hash)
{
    if (!d->index) {
        for (size_t i = 0; i < d->n; i++)
            if (same_key(rt, &d->e[i], key, hash))
                return &d->e[i];
        return NULL;
    }
    for (size_t i = hash & (d->index_cap - 1);; i = (i + 1) & (d->index_cap - 1)) {
        if (!d->index[i])
            return NULL;
        jentry *e = &d->e[d->index[i] - 1];
        if (same_key(rt, e, key, hash))
            return e;
    }
}

static void index_put(jdict *d, size_t entry)
{
    size_t i = d->e[entry].hash & (d->index_cap - 1);
    while (d->index[i])
        i = (i + 1) & (d->index_cap - 1);
    d->index[i] = (uint32_t)entry + 1;
}

static bool dict_grow(jrt *rt, jdict *d)
{
    size_t cap = d->cap ? d->cap * 2 : 4;
    if (cap > UINT32_MAX / 4)
        return jfail(rt, ST_ENOMEM, "a dict of more than %u entries", UINT32_MAX / 4), false;
    jentry *e = jalloc_array(rt, cap, sizeof *e);
    if (!e)
        return false;
    if (d->n)
        memcpy(e, d->e, d->n * sizeof *e);
    d->e = e;
    d->cap = cap;
    if (cap > INDEX_FROM) {
        d->index = jalloc_array(rt, cap * 2, sizeof *d->index);
        if (!d->index)
            return false;
        d->index_cap = cap * 2;
        for (size_t i = 0; i < d->n; i++)
            index_put(d, i);
    }
    return true;
}

bool jdict_set(jrt *rt, jdict *d, jval key, jval value)
{
    if (rt->status || !d)
        return false;
    uint64_t hash = jv_hash(rt, key);
    jentry *e = find(rt, d, key, hash);
    if (rt->status)
        return false;
    if (e) {
        e->value = value;
        return jstep(rt, 1);
    }
    if (d->n == d->cap && !dict_grow(rt, d))
        return false;
    d->e[d->n++] = (jentry){key, value, hash};
    if (d->index)
        index_put(d, d->n - 1);
    return jstep(rt, 1);
}

const jval *jdict_get(jrt *rt, const jdict *d, jval key)
{
    uint64_t hash = jv_hash(rt, key);
    if (rt->status)
        return NULL;
    const jentry *e = find(rt, d, key, hash);
    return e ? &e->value : NULL;
}

const jval *jdict_get_str(const jdict *d, const jstr *key)
{
    const jentry *e = find(NULL, d, j_str(key), str_hash(key));
    return e ? &e->value : NULL;
}

static jval from_json_object(jrt *rt, const json_t *j)
{
    jdict *d = jdict_new(rt);
    const char *key;
    size_t key_len;
    json_t *v;
    json_object_keylen_foreach((json_t *)j, key, key_len, v)
    {
        if (!jdict_set(rt, d, j_str(jstr_new(rt, key, key_len)), jv_from_json(rt, v)))
            break;
    }
    return j_dict(d);
}

jval jv_from_json(jrt *rt, const json_t *j)
{
    jval r = j_undef();
    if (!j || !jenter(rt))
        return r;
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        r = from_json_object(rt, j);
        break;
    case JSON_ARRAY: {
        size_t n = json_array_size(j);
        jlist *l = jlist_new(rt, n);
        for (size_t i = 0; i < n && !rt->status; i++)
            jlist_push(rt, l, jv_from_json(rt, json_array_get(j, i)));
        r = j_seq(J_LIST, l);
        break;
    }
    case JSON_STRING: {
        const char *p = json_string_value(j);
        size_t len = json_string_length(j);
        if (!st_utf8_valid(p, len))
            jtype_error(rt, "a string of the conversation is not valid UTF-8");
        r = j_str(jstr_new(rt, p, len));
        break;
    }
    case JSON_INTEGER:
        r = j_int(json_integer_value(j));
        break;
    case JSON_REAL:
        r = j_float(json_real_value(j));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        r = j_bool(json_is_true(j));
        break;
    case JSON_NULL:
        r = j_none();
        break;
    }
    jleave(rt);
    return r;
}

/* --- iteration ----------------------------------------------------------------------------- */

bool jiter_init(jrt *rt, jiter *it, jval v)
{
    *it = (jiter){v, 0};
    switch (v.type) {
    case J_UNDEFINED:
    case J_STR:
    case J_LIST:
    case J_TUPLE:
    case J_VIEW:
    case J_GENERATOR:
    case J_DICT:
    case J_RANGE:
        return !rt->status;
    default:
        it->v = j_undef();
        jtype_error(rt, "'%s' object is not iterable", jv_type_name(v));
        return false;
    }
}

bool jiter_next(jrt *rt, jiter *it, jval *out)
{
    jval v = it->v;
    if (!jstep(rt, 1))
        return false;
    switch (v.type) {
    case J_STR: {
        if (it->at >= v.s->len)
            return false;
        uint32_t cp;
        size_t n = st_utf8_decode(v.s->p + it->at, v.s->len - it->at, &cp);
        *out = j_str(str_make(rt, v.s->p + it->at, n, 1));
        it->at += n;
        return !rt->status;
    }
    case J_LIST:
    case J_TUPLE:
    case J_VIEW:
        if (it->at >= v.l->n)
            return false;
        *out = v.l->v[it->at++];
        return true;
    case J_GENERATOR:
        if (v.l->next >= v.l->n)
            return false;
        *out = v.l->v[v.l->next++];
        return true;
    case J_DICT:
        if (it->at >= v.d->n)
            return false;
        *out = v.d->e[it->at++].key;
        return true;
    case J_RANGE:
        if ((int64_t)it->at >= v.r->n)
            return false;
        *out = j_int(v.r->start + (int64_t)it->at++ * v.r->step);
        return true;
    default:
        return false;
    }
}

jlist *jv_to_list(jrt *rt, jval v)
{
    jiter it;
    jval item;
    if (!jiter_init(rt, &it, v))
        return NULL;
    jlist *l = jlist_new(rt, 0);
    while (jiter_next(rt, &it, &item))
        if (!jlist_push(rt, l, item))
            break;
    return rt->status ? NULL : l;
}

/* --- arguments ----------------------------------------------------------------------------- */

/* The k-th word of params, without its '*'; returns its length, 0 when there is none. */
static size_t param(const char *params, size_t k, const char **word, bool *required)
{
    const char *p = params + (*params == '/');
    for (;; k--) {
        p += strspn(p, " ");
        size_t n = strcspn(p, " ");
        if (k == 0 || n == 0) {
            *word = p;
            *required = n && p[n - 1] == '*';
            return n - *required;
        }
        p += n;
    }
}

static bool bind_keyword(jrt *rt, const char *what, const char *params, const jstr *name, jval v,
                         jval *arg)
{
    const char *word;
    bool required;
    for (size_t k = 0, n; *params != '/' && (n = param(params, k, &word, &required)) > 0; k++) {
        if (name->len != n || memcmp(name->p, word, n) != 0)
            continue;
        if (arg[k].type != J_MISSING)
            return jtype_error(rt, "%s: argument '%.*s' is given twice", what, (int)n, word), false;
        arg[k] = v;
        return true;
    }
    jtype_error(rt, "%s takes no argument '%.*s'", what, (int)name->len, name->p);
    return false;
}

bool jbind(jrt *rt, const char *what, const char *params, const jcall *c, jval *arg)
{
    const char *word;
    bool required;
    for (size_t k = 0; k < JBIND_MAX; k++)
        arg[k] = (jval){.type = J_MISSING};
    if (rt->status)
        return false;
    for (size_t k = 0; k < c->n; k++) {
        if (k >= JBIND_MAX || param(params, k, &word, &required) == 0)
            return jtype_error(rt, "%s takes at most %zu arguments, not %zu", what, k, c->n), false;
        arg[k] = c->v[k];
    }
    for (size_t k = 0; k < c->nk; k++)
        if (!bind_keyword(rt, what, params, c->names[k], c->kv[k], arg))
            return false;
    for (size_t k = 0, n; (n = param(params, k, &word, &required)) > 0; k++)
        if (required && arg[k].type == J_MISSING)
            return jtype_error(rt, "%s needs an argument '%.*s'", what, (int)n, word), false;
    return true;
}
