/* Edits of one JSON object by position: see json_splice.h. */
#include "base/json_splice.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

typedef enum edit_kind { EDIT_NONE, EDIT_SET, EDIT_REMOVE } edit_kind;

/* A member of the text or, from n_members on, one that was added. */
typedef struct entry {
    uint32_t hash; /* of the key, escapes undone */
    uint8_t edit;
    size_t json_at, json_len; /* EDIT_SET: in json; an added member's with its key and colon */
    size_t key_at, key_len;   /* the key's text in keys */
} entry;

struct st_splice {
    const char *text;
    size_t len;
    size_t open; /* position after '{' */
    st_member *members;
    entry *entries;
    size_t n_members, n_entries, cap;
    size_t keys_kept; /* bytes of keys that belong to the text's members */
    st_buf keys, json;
};

static uint32_t hash_key(const char *key, size_t len)
{
    uint32_t h = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < len; i++)
        h = (h ^ (unsigned char)key[i]) * 16777619u;
    return h;
}

static entry *find_entry(const st_splice *s, const char *key, size_t len)
{
    uint32_t hash = hash_key(key, len);
    for (size_t i = 0; i < s->n_entries; i++) {
        entry *e = &s->entries[i];
        if (e->hash == hash && e->key_len == len &&
            (len == 0 || memcmp(s->keys.data + e->key_at, key, len) == 0))
            return e;
    }
    return NULL;
}

/* A new entry for the key at keys[at..]. */
static entry *push_entry(st_splice *s, size_t at)
{
    if (s->n_entries == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 32;
        st_member *members = realloc(s->members, cap * sizeof *members);
        if (members)
            s->members = members;
        entry *entries = realloc(s->entries, cap * sizeof *entries);
        if (entries)
            s->entries = entries;
        if (!members || !entries)
            return NULL;
        s->cap = cap;
    }
    entry *e = &s->entries[s->n_entries];
    size_t len = s->keys.len - at;
    *e = (entry){.hash = hash_key(s->keys.data + at, len), .key_at = at, .key_len = len};
    s->n_entries++;
    return e;
}

static st_status malformed(const st_json_scan *scan, st_error *err)
{
    size_t line = 1, column = 1;
    for (size_t i = 0; i < scan->pos; i++) {
        column = scan->text[i] == '\n' ? 1 : column + 1;
        line += scan->text[i] == '\n';
    }
    return st_fail(err, ST_EFORMAT, "not valid JSON: line %zu, column %zu (byte %zu): %s", line,
                   column, scan->pos, scan->why);
}

/* The member whose key was just scanned. */
static st_status take_member(st_splice *s, st_json_scan *scan, st_error *err)
{
    st_span key = scan->span, value;
    size_t at = s->keys.len;
    st_status st = st_json_text(scan, &s->keys);
    if (st)
        return st_fail(err, st, "memory is short");
    size_t len = s->keys.len - at;
    if (find_entry(s, s->keys.data + at, len)) {
        int shown = (int)(len < 64 ? len : 64);
        shown -= (int)st_utf8_incomplete_tail(s->keys.data + at, (size_t)shown);
        return st_fail(err, ST_EINVAL, "the key '%.*s' is there twice", shown, s->keys.data + at);
    }
    if (s->n_members == ST_SPLICE_MAX_MEMBERS)
        return st_fail(err, ST_EINVAL, "the object has more than %d members",
                       ST_SPLICE_MAX_MEMBERS);
    if (!push_entry(s, at))
        return st_fail(err, ST_ENOMEM, "memory is short");
    st_json_token first = st_json_next(scan);
    if (st_json_skip(scan, first, &value))
        return malformed(scan, err);
    s->members[s->n_members++] = (st_member){key, value, (uint8_t)first};
    return ST_OK;
}

static st_status scan_members(st_splice *s, st_error *err)
{
    st_json_scan scan;
    st_json_scan_init(&scan, s->text, s->len);
    st_json_token token = st_json_next(&scan);
    if (token == ST_JSON_ERROR)
        return malformed(&scan, err);
    if (token != ST_JSON_OBJECT)
        return st_fail(err, ST_EFORMAT, "not a JSON object");
    s->open = scan.span.end;
    while ((token = st_json_next(&scan)) == ST_JSON_KEY) {
        st_status st = take_member(s, &scan, err);
        if (st)
            return st;
    }
    if (token != ST_JSON_OBJECT_END || st_json_next(&scan) != ST_JSON_END)
        return malformed(&scan, err);
    s->keys_kept = s->keys.len;
    return ST_OK;
}

st_status st_splice_new(const char *text, size_t len, st_splice **out, st_error *err)
{
    *out = NULL;
    st_splice *s = calloc(1, sizeof *s);
    if (!s)
        return st_fail(err, ST_ENOMEM, "memory is short");
    s->text = text;
    s->len = len;
    st_status st = scan_members(s, err);
    if (st)
        st_splice_free(s);
    else
        *out = s;
    return st;
}

void st_splice_free(st_splice *s)
{
    if (!s)
        return;
    st_buf_free(&s->keys);
    st_buf_free(&s->json);
    free(s->members);
    free(s->entries);
    free(s);
}

const st_member *st_splice_find(const st_splice *s, const char *key)
{
    const entry *e = find_entry(s, key, strlen(key));
    size_t i = e ? (size_t)(e - s->entries) : s->n_members;
    return i < s->n_members ? &s->members[i] : NULL;
}

size_t st_splice_count(const st_splice *s)
{
    return s->n_members;
}

const st_member *st_splice_member(const st_splice *s, size_t i)
{
    return &s->members[i];
}

const char *st_splice_text(const st_splice *s)
{
    return s->text;
}

bool st_member_is_true(const st_splice *s, const st_member *m)
{
    (void)s;
    return m->type == ST_JSON_TRUE;
}

/* A scanner whose last token is the member's scalar value. */
static st_json_scan rescan(const st_splice *s, const st_member *m)
{
    st_json_scan scan;
    st_json_scan_init(&scan, s->text + m->value.begin, m->value.end - m->value.begin);
    (void)st_json_next(&scan);
    return scan;
}

bool st_member_int64(const st_splice *s, const st_member *m, int64_t *out)
{
    if (m->type != ST_JSON_NUMBER)
        return false;
    st_json_scan scan = rescan(s, m);
    return st_json_int64(&scan, out);
}

st_status st_member_text(const st_splice *s, const st_member *m, st_buf *out)
{
    if (m->type != ST_JSON_STRING)
        return ST_EINVAL;
    st_json_scan scan = rescan(s, m);
    return st_json_text(&scan, out);
}

static st_status add_member(st_splice *s, const char *key, const char *json, size_t len)
{
    size_t at = s->keys.len, json_at = s->json.len, key_len = strlen(key);
    st_status st = st_buf_append(&s->keys, key, key_len);
    if (!st)
        st = st_buf_json_string(&s->json, key, key_len);
    if (!st)
        st = st_buf_putc(&s->json, ':');
    if (!st)
        st = st_buf_append(&s->json, json, len);
    entry *e = st ? NULL : push_entry(s, at);
    if (!e)
        return ST_ENOMEM;
    e->edit = EDIT_SET;
    e->json_at = json_at;
    e->json_len = s->json.len - json_at;
    return ST_OK;
}

st_status st_splice_set(st_splice *s, const char *key, const char *json, size_t len)
{
    entry *e = find_entry(s, key, strlen(key));
    if (!e)
        return add_member(s, key, json, len);
    if (e->edit != EDIT_NONE)
        return ST_EINVAL;
    size_t at = s->json.len;
    st_status st = st_buf_append(&s->json, json, len);
    if (st)
        return st;
    e->edit = EDIT_SET;
    e->json_at = at;
    e->json_len = len;
    return ST_OK;
}

static st_status remove_entry(entry *e)
{
    if (e->edit != EDIT_NONE)
        return ST_EINVAL;
    e->edit = EDIT_REMOVE;
    return ST_OK;
}

st_status st_splice_remove(st_splice *s, const char *key)
{
    entry *e = find_entry(s, key, strlen(key));
    return e ? remove_entry(e) : ST_OK;
}

st_status st_splice_remove_at(st_splice *s, size_t i)
{
    return remove_entry(&s->entries[i]);
}

void st_splice_reset(st_splice *s)
{
    for (size_t i = 0; i < s->n_members; i++)
        s->entries[i].edit = EDIT_NONE;
    s->n_entries = s->n_members;
    s->keys.len = s->keys_kept;
    st_buf_clear(&s->json);
}

/* Room for it was reserved. */
static void copy(st_buf *out, const char *from, size_t begin, size_t end)
{
    if (end > begin)
        memcpy(out->data + out->len, from + begin, end - begin);
    out->len += end - begin;
}

/* Text that stays is copied in runs: [from, ..) has not been copied yet. */
st_status st_splice_apply(const st_splice *s, st_buf *out)
{
    size_t commas = s->n_entries;
    if (commas > SIZE_MAX - s->len || s->json.len > SIZE_MAX - s->len - commas ||
        st_buf_reserve(out, s->len + s->json.len + commas))
        return ST_ENOMEM;
    size_t from = 0;
    bool any = false;
    for (size_t i = 0; i < s->n_members; i++) {
        const st_member *m = &s->members[i];
        const entry *e = &s->entries[i];
        /* What stands before the member: '{' or the member before it, with its comma. */
        size_t before = i ? s->members[i - 1].value.end : s->open;
        if (e->edit == EDIT_REMOVE) {
            copy(out, s->text, from, before);
            from = m->value.end;
            continue;
        }
        if (!any && i) {
            copy(out, s->text, from, before);
            from = m->key.begin;
        }
        any = true;
        if (e->edit == EDIT_SET) {
            copy(out, s->text, from, m->value.begin);
            copy(out, s->json.data, e->json_at, e->json_at + e->json_len);
            from = m->value.end;
        }
    }
    size_t end = s->n_members ? s->members[s->n_members - 1].value.end : s->open;
    copy(out, s->text, from, end);
    for (size_t i = s->n_members; i < s->n_entries; i++) {
        if (any)
            out->data[out->len++] = ',';
        any = true;
        const entry *e = &s->entries[i];
        copy(out, s->json.data, e->json_at, e->json_at + e->json_len);
    }
    copy(out, s->text, end, s->len);
    out->data[out->len] = '\0';
    return ST_OK;
}
