/* The safetensors container: an 8-byte header length, a JSON header that gives every tensor's
 * dtype, shape and byte range, then the bytes. Everything the header claims is checked against the
 * file before any tensor is handed out. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/checked.h"
#include "base/utf8.h"
#include "model/checkpoint.h"

/* The reference implementation's bound on the header. */
#define MAX_HEADER ((uint64_t)100 * 1000 * 1000)
/* A JSON value costs jansson around a hundred bytes however short its text is ("[],[],..."), so
 * the number of values is bounded before parsing: room for half a million tensors. */
#define MAX_VALUES 8000000u
#define MAX_RANK   4

typedef struct entry {
    st_tensor t;
    uint64_t begin, end;
} entry;

typedef struct header {
    const char *path;
    const unsigned char *data; /* the bytes after the header */
    uint64_t data_len;
    entry *entries;
    size_t n;
} header;

/* How many bytes of an outside name fit an error text well, whole characters only. */
static int clip(const char *name)
{
    size_t n = strlen(name);
    if (n > 160) {
        n = 160;
        n -= st_utf8_incomplete_tail(name, n);
    }
    return (int)n;
}

static uint64_t load_le64(const unsigned char *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

static size_t count_values(const char *text, size_t n)
{
    size_t values = 1;
    for (size_t i = 0; i < n; i++)
        values += text[i] == ',' || text[i] == '[' || text[i] == '{';
    return values;
}

static st_status parse_header_json(const char *path, const unsigned char *bytes, size_t len,
                                   uint64_t *header_len, json_t **root, st_error *err)
{
    if (len < 8)
        return st_fail(err, ST_EFORMAT,
                       "%s: the file has %zu bytes; a safetensors file starts with an 8-byte "
                       "header length",
                       path, len);
    uint64_t n = load_le64(bytes);
    if (n > MAX_HEADER)
        return st_fail(err, ST_EFORMAT,
                       "%s: the header claims %" PRIu64 " bytes; at most %" PRIu64
                       " are allowed (is this a safetensors file?)",
                       path, n, MAX_HEADER);
    if (n > len - 8)
        return st_fail(err, ST_EFORMAT,
                       "%s: the header claims %" PRIu64 " bytes but only %zu follow: the file is "
                       "truncated or not a safetensors file",
                       path, n, len - 8);
    const char *text = (const char *)bytes + 8;
    if (n < 2 || text[0] != '{')
        return st_fail(err, ST_EFORMAT, "%s: the header is not a JSON object", path);
    if (count_values(text, n) > MAX_VALUES)
        return st_fail(err, ST_EFORMAT, "%s: the header holds more than %u JSON values", path,
                       MAX_VALUES);
    json_error_t je;
    *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &je);
    if (!*root)
        return st_fail(err, ST_EFORMAT, "%s: the header's JSON is broken at byte %d: %s", path,
                       je.position, je.text);
    *header_len = n;
    return ST_OK;
}

static st_status parse_dtype(const header *h, json_t *value, st_tensor *t, st_error *err)
{
    json_t *dtype = json_object_get(value, "dtype");
    if (!json_is_string(dtype))
        return st_fail(err, ST_EFORMAT, "%s: tensor %.*s has no dtype", h->path, clip(t->name),
                       t->name);
    const char *name = json_string_value(dtype);
    t->dtype = st_dtype_from_name(name, json_string_length(dtype));
    if (t->dtype == ST_DTYPE_COUNT)
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: tensor %.*s has dtype '%.*s'; known are F64, F32, F16, BF16, F8_E4M3, "
                       "F8_E5M2, I64, I32, I16, I8, U8 and BOOL",
                       h->path, clip(t->name), t->name, clip(name), name);
    return ST_OK;
}

/* Fills rank, shape and bytes. */
static st_status parse_shape(const header *h, json_t *value, st_tensor *t, st_error *err)
{
    json_t *shape = json_object_get(value, "shape");
    if (!json_is_array(shape))
        return st_fail(err, ST_EFORMAT, "%s: tensor %.*s has no shape array", h->path,
                       clip(t->name), t->name);
    size_t rank = json_array_size(shape);
    if (rank > MAX_RANK)
        return st_fail(err, ST_EUNSUPPORTED,
                       "%s: tensor %.*s has %zu dimensions; at most %d are supported", h->path,
                       clip(t->name), t->name, rank, MAX_RANK);
    t->rank = (int32_t)rank;
    t->bytes = st_dtype_size(t->dtype);
    for (size_t i = 0; i < rank; i++) {
        json_t *dim = json_array_get(shape, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return st_fail(err, ST_EFORMAT,
                           "%s: tensor %.*s: shape[%zu] is not a whole number from 0 up", h->path,
                           clip(t->name), t->name, i);
        t->shape[i] = json_integer_value(dim);
        if (!st_mul_size(t->bytes, (size_t)t->shape[i], &t->bytes))
            return st_fail(err, ST_EFORMAT, "%s: tensor %.*s: the size of its shape overflows",
                           h->path, clip(t->name), t->name);
    }
    return ST_OK;
}

static st_status parse_offsets(const header *h, json_t *value, entry *e, st_error *err)
{
    const char *name = e->t.name;
    json_t *off = json_object_get(value, "data_offsets");
    json_t *b = json_array_get(off, 0), *x = json_array_get(off, 1);
    if (json_array_size(off) != 2 || !json_is_integer(b) || !json_is_integer(x) ||
        json_integer_value(b) < 0 || json_integer_value(x) < 0)
        return st_fail(err, ST_EFORMAT,
                       "%s: tensor %.*s: data_offsets is not a pair of whole numbers [begin, end]",
                       h->path, clip(name), name);
    e->begin = (uint64_t)json_integer_value(b);
    e->end = (uint64_t)json_integer_value(x);
    if (e->begin > e->end)
        return st_fail(err, ST_EFORMAT,
                       "%s: tensor %.*s: data_offsets end before they begin (%" PRIu64 ", %" PRIu64
                       ")",
                       h->path, clip(name), name, e->begin, e->end);
    if (e->end > h->data_len)
        return st_fail(err, ST_EFORMAT,
                       "%s: tensor %.*s: data_offsets end at %" PRIu64
                       " but the file holds %" PRIu64 " bytes of data: it is truncated",
                       h->path, clip(name), name, e->end, h->data_len);
    if (e->end - e->begin != e->t.bytes)
        return st_fail(err, ST_EFORMAT,
                       "%s: tensor %.*s: data_offsets span %" PRIu64
                       " bytes but its dtype %s and shape take %zu",
                       h->path, clip(name), name, e->end - e->begin, st_dtype_name(e->t.dtype),
                       e->t.bytes);
    e->t.data = h->data + e->begin;
    return ST_OK;
}

static st_status parse_entries(header *h, json_t *root, st_error *err)
{
    const char *name;
    json_t *value;
    json_object_foreach(root, name, value)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        entry *e = &h->entries[h->n++];
        e->t.name = name;
        e->t.file = h->path;
        if (!json_is_object(value))
            return st_fail(err, ST_EFORMAT, "%s: the header's entry %.*s is not an object", h->path,
                           clip(name), name);
        st_status s;
        if ((s = parse_dtype(h, value, &e->t, err)) || (s = parse_shape(h, value, &e->t, err)) ||
            (s = parse_offsets(h, value, e, err)))
            return s;
    }
    return ST_OK;
}

static int by_offset(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return strcmp(x->t.name, y->t.name);
}

/* The format wants the data area covered exactly: no overlaps, no holes, nothing after the last
 * tensor. */
static st_status check_layout(const header *h, st_error *err)
{
    uint64_t at = 0;
    for (size_t i = 0; i < h->n; i++) {
        const entry *e = &h->entries[i];
        const char *name = e->t.name;
        if (e->begin < at)
            return st_fail(err, ST_EFORMAT, "%s: tensors %.*s and %.*s overlap", h->path,
                           clip(e[-1].t.name), e[-1].t.name, clip(name), name);
        if (e->begin > at)
            return st_fail(err, ST_EFORMAT,
                           "%s: %" PRIu64 " bytes before tensor %.*s belong to no tensor", h->path,
                           e->begin - at, clip(name), name);
        at = e->end;
    }
    if (at != h->data_len)
        return st_fail(err, ST_EFORMAT, "%s: %" PRIu64 " bytes after the last tensor", h->path,
                       h->data_len - at);
    return ST_OK;
}

st_status st_safetensors_parse(const char *path, const void *data, size_t len,
                               st_safetensors_fn *found, void *user, st_error *err)
{
    json_t *root = NULL;
    header h = {.path = path};
    uint64_t header_len = 0;
    st_status s = parse_header_json(path, data, len, &header_len, &root, err);
    if (s)
        goto done;
    h.data = (const unsigned char *)data + 8 + header_len;
    h.data_len = len - 8 - header_len;
    h.entries = calloc(json_object_size(root) + 1, sizeof *h.entries);
    if (!h.entries) {
        s = st_fail(err, ST_ENOMEM, "%s: no memory for %zu tensors", path, json_object_size(root));
        goto done;
    }
    if ((s = parse_entries(&h, root, err)))
        goto done;
    qsort(h.entries, h.n, sizeof *h.entries, by_offset);
    if ((s = check_layout(&h, err)))
        goto done;
    for (size_t i = 0; i < h.n && s == ST_OK; i++)
        s = found(user, &h.entries[i].t);
done:
    free(h.entries);
    json_decref(root);
    return s;
}
