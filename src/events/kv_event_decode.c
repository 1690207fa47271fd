/* Decodes batches of KV events (kv_event.h). Reads msgpack by pulling one value at a time out of
 * bytes that nobody vouches for: every length is compared with what is left before it is believed,
 * and nothing recurses. */
#include "events/kv_event.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- msgpack ---- */

typedef struct mp_reader {
    const unsigned char *p, *end;
} mp_reader;

typedef enum mp_kind {
    MP_NIL,
    MP_BOOL,
    MP_UINT,
    MP_NEGATIVE,
    MP_FLOAT,
    MP_STR,
    MP_BIN,
    MP_EXT,
    MP_ARRAY,
    MP_MAP
} mp_kind;

typedef struct mp_value {
    mp_kind kind;
    uint64_t u;                 /* integers; a negative one in two's complement */
    const unsigned char *bytes; /* of texts, bytes and extensions */
    size_t n;                   /* bytes, or elements, or pairs */
} mp_value;

static bool big_endian(mp_reader *r, int n, uint64_t *out)
{
    if (r->end - r->p < n)
        return false;
    uint64_t v = 0;
    for (int i = 0; i < n; i++)
        v = v << 8 | *r->p++;
    *out = v;
    return true;
}

static bool integer(mp_reader *r, int n, bool is_signed, mp_value *v)
{
    v->kind = MP_UINT;
    if (!big_endian(r, n, &v->u))
        return false;
    if (is_signed && v->u >> (8 * n - 1)) {
        v->kind = MP_NEGATIVE;
        if (n < 8)
            v->u |= UINT64_MAX << (8 * n);
    }
    return true;
}

static bool text(mp_reader *r, mp_kind kind, uint64_t n, mp_value *v)
{
    if ((uint64_t)(r->end - r->p) < n)
        return false;
    v->kind = kind;
    v->bytes = r->p;
    v->n = (size_t)n;
    r->p += n;
    return true;
}

static bool sized_text(mp_reader *r, mp_kind kind, int n_len, int extra, mp_value *v)
{
    uint64_t n;
    return big_endian(r, n_len, &n) && text(r, kind, n + (uint64_t)extra, v);
}

/* Every element takes a byte at least. */
static bool container(mp_reader *r, mp_kind kind, uint64_t n, mp_value *v)
{
    if ((uint64_t)(r->end - r->p) < (kind == MP_MAP ? 2 * n : n))
        return false;
    v->kind = kind;
    v->n = (size_t)n;
    return true;
}

static bool sized_container(mp_reader *r, mp_kind kind, int n_len, mp_value *v)
{
    uint64_t n;
    return big_endian(r, n_len, &n) && container(r, kind, n, v);
}

/* Bytes 0xc0 .. 0xdf. */
static bool read_marked(mp_reader *r, unsigned char b, mp_value *v)
{
    switch (b) {
    case 0xc0:
        v->kind = MP_NIL;
        return true;
    case 0xc2:
    case 0xc3:
        v->kind = MP_BOOL;
        v->u = b & 1;
        return true;
    case 0xc4:
    case 0xc5:
    case 0xc6:
        return sized_text(r, MP_BIN, 1 << (b - 0xc4), 0, v);
    case 0xc7:
    case 0xc8:
    case 0xc9:
        return sized_text(r, MP_EXT, 1 << (b - 0xc7), 1, v);
    case 0xca:
    case 0xcb:
        v->kind = MP_FLOAT;
        return big_endian(r, b == 0xca ? 4 : 8, &v->u);
    case 0xcc:
    case 0xcd:
    case 0xce:
    case 0xcf:
        return integer(r, 1 << (b - 0xcc), false, v);
    case 0xd0:
    case 0xd1:
    case 0xd2:
    case 0xd3:
        return integer(r, 1 << (b - 0xd0), true, v);
    case 0xd4:
    case 0xd5:
    case 0xd6:
    case 0xd7:
    case 0xd8:
        return text(r, MP_EXT, 1u + (1u << (b - 0xd4)), v);
    case 0xd9:
    case 0xda:
    case 0xdb:
        return sized_text(r, MP_STR, 1 << (b - 0xd9), 0, v);
    case 0xdc:
    case 0xdd:
        return sized_container(r, MP_ARRAY, b == 0xdc ? 2 : 4, v);
    case 0xde:
    case 0xdf:
        return sized_container(r, MP_MAP, b == 0xde ? 2 : 4, v);
    default:
        return false; /* 0xc1 */
    }
}

/* Reads a value; of a container only its head. */
static bool read_value(mp_reader *r, mp_value *v)
{
    if (r->p == r->end)
        return false;
    unsigned char b = *r->p++;
    if (b < 0x80) {
        v->kind = MP_UINT;
        v->u = b;
        return true;
    }
    if (b >= 0xe0) {
        v->kind = MP_NEGATIVE;
        v->u = UINT64_MAX << 8 | b;
        return true;
    }
    if (b >= 0xc0)
        return read_marked(r, b, v);
    if (b >= 0xa0)
        return text(r, MP_STR, b & 31, v);
    return container(r, b >= 0x90 ? MP_ARRAY : MP_MAP, b & 15, v);
}

/* Bytes of a small integer that starts with b, 0 for all else: most of what events consist of. */
static size_t integer_size(unsigned char b)
{
    if (b < 0x80 || b >= 0xe0)
        return 1;
    return b >= 0xcc && b <= 0xd3 ? 1u + (1u << (b & 3)) : 0;
}

/* Reads past a value and all that is in it. */
static bool skip_value(mp_reader *r)
{
    mp_value v;
    for (uint64_t left = 1; left > 0; left--) {
        size_t n = r->p < r->end ? integer_size(*r->p) : 0;
        if (n && n <= (size_t)(r->end - r->p)) {
            r->p += n;
            continue;
        }
        if (!read_value(r, &v))
            return false;
        if (v.kind == MP_ARRAY)
            left += v.n;
        else if (v.kind == MP_MAP)
            left += 2 * (uint64_t)v.n;
    }
    return true;
}

static bool is_text(const mp_value *v, const char *s)
{
    return v->kind == MP_STR && v->n == strlen(s) && memcmp(v->bytes, s, v->n) == 0;
}

/* ---- an event ---- */

enum {
    F_TYPE,
    F_HASHES,
    F_PARENT,
    F_TOKENS,
    F_BLOCK_SIZE,
    F_LORA_ID,
    F_MEDIUM,
    F_LORA_NAME,
    F_EXTRA_KEYS,
    F_GROUP,
    N_FIELDS
};

#define NAMED(s)                                                                                   \
    {                                                                                              \
        s, sizeof(s) - 1                                                                           \
    }
static const struct {
    const char *name;
    size_t len;
} fields[N_FIELDS] = {NAMED("type"),      NAMED("block_hashes"), NAMED("parent_block_hash"),
                      NAMED("token_ids"), NAMED("block_size"),   NAMED("lora_id"),
                      NAMED("medium"),    NAMED("lora_name"),    NAMED("extra_keys"),
                      NAMED("group_idx")};
#undef NAMED

/* The places of fields in events that are arrays, behind the type. */
static const int stored_places[] = {F_HASHES, F_PARENT,    F_TOKENS,     F_BLOCK_SIZE, F_LORA_ID,
                                    F_MEDIUM, F_LORA_NAME, F_EXTRA_KEYS, F_GROUP};
static const int removed_places[] = {F_HASHES, F_MEDIUM, F_GROUP};

struct st_kv_decoder {
    uint64_t *hashes;
    int32_t *tokens;
    size_t hashes_cap, tokens_cap;
    char lora_id[32];
};

/* Where each field of one event starts; NULL: missing. All of it is well-formed up to `end`. */
typedef struct event_fields {
    const unsigned char *at[N_FIELDS], *end;
    st_kv_event_type type;
} event_fields;

st_status st_kv_decoder_new(st_kv_decoder **out)
{
    *out = calloc(1, sizeof **out);
    return *out ? ST_OK : ST_ENOMEM;
}

void st_kv_decoder_free(st_kv_decoder *d)
{
    if (!d)
        return;
    free(d->hashes);
    free(d->tokens);
    free(d);
}

static st_kv_event_type type_of(const mp_value *v)
{
    if (is_text(v, "BlockStored"))
        return ST_KV_STORED;
    if (is_text(v, "BlockRemoved"))
        return ST_KV_REMOVED;
    return is_text(v, "AllBlocksCleared") ? ST_KV_CLEARED : ST_KV_UNKNOWN;
}

/* Both read past the event's elements; false: the bytes end too early. */
static bool find_in_array(mp_reader *r, size_t n, event_fields *f)
{
    mp_value v = {.kind = MP_NIL};
    const unsigned char *at = r->p;
    if (n > 0 && !skip_value(r))
        return false;
    if (n > 0 && read_value(&(mp_reader){at, r->p}, &v) && v.kind == MP_STR)
        f->type = type_of(&v);
    const int *places = f->type == ST_KV_STORED ? stored_places : removed_places;
    size_t n_places = f->type == ST_KV_STORED    ? sizeof stored_places / sizeof *places
                      : f->type == ST_KV_REMOVED ? sizeof removed_places / sizeof *places
                                                 : 0;
    for (size_t i = 0; i + 1 < n; i++) {
        if (i < n_places)
            f->at[places[i]] = r->p;
        if (!skip_value(r))
            return false;
    }
    return true;
}

/* The field of that name, or -1. Engines write them in the order we have them: the one behind the
 * last is tried first. */
static int field_of(const mp_value *key, int guess)
{
    for (int i = 0; i < N_FIELDS; i++, guess++) {
        if (guess >= N_FIELDS)
            guess = 0;
        if (fields[guess].len == key->n && memcmp(fields[guess].name, key->bytes, key->n) == 0)
            return guess;
    }
    return -1;
}

static bool find_in_map(mp_reader *r, size_t n, event_fields *f)
{
    mp_value key, type;
    int guess = 0;
    for (size_t i = 0; i < n; i++) {
        const unsigned char *at = r->p;
        if (!read_value(r, &key))
            return false;
        if (key.kind == MP_ARRAY || key.kind == MP_MAP) {
            r->p = at;
            if (!skip_value(r))
                return false;
        }
        int k = key.kind == MP_STR ? field_of(&key, guess) : -1;
        if (k >= 0) {
            f->at[k] = r->p;
            guess = k + 1;
        }
        if (!skip_value(r))
            return false;
    }
    if (f->at[F_TYPE] && read_value(&(mp_reader){f->at[F_TYPE], r->p}, &type))
        f->type = type_of(&type);
    return true;
}

static bool read_field(const event_fields *f, int field, mp_reader *r, mp_value *v)
{
    *r = (mp_reader){f->at[field], f->end};
    v->kind = MP_NIL;
    return !r->p || read_value(r, v);
}

static bool to_hash(const mp_value *v, uint64_t *out)
{
    *out = v->u;
    if (v->kind == MP_UINT || v->kind == MP_NEGATIVE)
        return true;
    if ((v->kind != MP_BIN && v->kind != MP_STR) || v->n == 0)
        return false;
    *out = 0;
    for (size_t i = v->n > 8 ? v->n - 8 : 0; i < v->n; i++)
        *out = *out << 8 | v->bytes[i];
    return true;
}

static bool to_i32(const mp_value *v, int32_t *out)
{
    if (v->kind == MP_UINT ? v->u > INT32_MAX : v->kind != MP_NEGATIVE || (int64_t)v->u < INT32_MIN)
        return false;
    *out = (int32_t)v->u;
    return true;
}

/* Room for n elements, n being no more than the bytes that are left. */
static bool grow(void **array, size_t *cap, size_t n, size_t size)
{
    if (n <= *cap)
        return true;
    size_t want = n < 256 ? 256 : n;
    void *bigger = realloc(*array, want * size);
    if (!bigger)
        return false;
    *array = bigger;
    *cap = want;
    return true;
}

static bool get_hashes(st_kv_decoder *d, const event_fields *f, st_kv_event *e)
{
    mp_reader r;
    mp_value v;
    if (!read_field(f, F_HASHES, &r, &v) || v.kind != MP_ARRAY ||
        !grow((void **)&d->hashes, &d->hashes_cap, v.n, sizeof *d->hashes))
        return false;
    e->n_hashes = v.n;
    e->hashes = d->hashes;
    for (size_t i = 0; i < e->n_hashes; i++)
        if (!read_value(&r, &v) || !to_hash(&v, &d->hashes[i]))
            return false;
    return true;
}

/* A token in one of the shapes that nearly all have. */
static bool common_token(mp_reader *r, int32_t *out)
{
    const unsigned char *p = r->p;
    if (r->end - p < 5)
        return false;
    if (*p == 0xcd) {
        *out = p[1] << 8 | p[2];
        r->p += 3;
    } else if (*p == 0xce && p[1] < 0x80) {
        *out = p[1] << 24 | p[2] << 16 | p[3] << 8 | p[4];
        r->p += 5;
    } else if (*p < 0x80) {
        *out = *p;
        r->p++;
    } else {
        return false;
    }
    return true;
}

static bool get_tokens(st_kv_decoder *d, const event_fields *f, st_kv_event *e)
{
    mp_reader r;
    mp_value v;
    if (!read_field(f, F_TOKENS, &r, &v) || v.kind != MP_ARRAY ||
        !grow((void **)&d->tokens, &d->tokens_cap, v.n, sizeof *d->tokens))
        return false;
    e->n_tokens = v.n;
    e->tokens = d->tokens;
    for (size_t i = 0; i < e->n_tokens; i++)
        if (!common_token(&r, &d->tokens[i]) && (!read_value(&r, &v) || !to_i32(&v, &d->tokens[i])))
            return false;
    return true;
}

static bool get_medium_and_group(const event_fields *f, st_kv_event *e)
{
    mp_reader r;
    mp_value v;
    if (!read_field(f, F_MEDIUM, &r, &v) || (v.kind != MP_NIL && v.kind != MP_STR))
        return false;
    if (v.kind == MP_STR && !is_text(&v, "GPU"))
        e->medium = v.n >= 3 && memcmp(v.bytes, "CPU", 3) == 0 ? ST_MEDIUM_CPU : ST_MEDIUM_OTHER;
    if (!read_field(f, F_GROUP, &r, &v))
        return false;
    if (v.kind == MP_UINT && v.u <= INT32_MAX)
        e->group = (int32_t)v.u;
    return true;
}

static bool get_lora(st_kv_decoder *d, const event_fields *f, st_kv_event *e)
{
    mp_reader r;
    mp_value name, id;
    if (!read_field(f, F_LORA_NAME, &r, &name) || !read_field(f, F_LORA_ID, &r, &id) ||
        (name.kind != MP_NIL && name.kind != MP_STR))
        return false;
    if (name.kind == MP_STR && name.n > 0) {
        e->lora_name = (const char *)name.bytes;
        e->lora_name_len = name.n;
    } else if (id.kind == MP_UINT || id.kind == MP_NEGATIVE) {
        /* Older engines name no adapter: its number keeps it apart from the base model. */
        e->lora_name_len =
            (size_t)snprintf(d->lora_id, sizeof d->lora_id, "#%lld", (long long)id.u);
        e->lora_name = d->lora_id;
    } else if (id.kind != MP_NIL) {
        return false;
    }
    return true;
}

/* extra_keys: per block nil or a list, in which a LoRA's name and lists about images may come
 * before the salt. Other shapes are none of ours. */
static bool get_salt(const event_fields *f, st_kv_event *e)
{
    mp_reader r;
    mp_value v;
    if (!read_field(f, F_EXTRA_KEYS, &r, &v))
        return false;
    if (v.kind != MP_ARRAY || v.n == 0 || !read_value(&r, &v) || v.kind != MP_ARRAY)
        return true;
    for (size_t left = v.n; left > 0; left--) {
        const unsigned char *at = r.p;
        if (!read_value(&r, &v))
            return false;
        bool is_lora = e->lora_name && v.kind == MP_STR && v.n == e->lora_name_len &&
                       memcmp(v.bytes, e->lora_name, v.n) == 0;
        if ((v.kind == MP_STR || v.kind == MP_BIN) && !is_lora) {
            e->salt = (const char *)v.bytes;
            e->salt_len = v.n;
            return true;
        }
        r.p = at;
        if (!skip_value(&r))
            return false;
    }
    return true;
}

static bool get_stored(st_kv_decoder *d, const event_fields *f, st_kv_event *e)
{
    mp_reader r;
    mp_value v;
    if (!read_field(f, F_PARENT, &r, &v))
        return false;
    e->has_parent = v.kind != MP_NIL;
    if (e->has_parent && !to_hash(&v, &e->parent))
        return false;
    if (!read_field(f, F_BLOCK_SIZE, &r, &v) || !to_i32(&v, &e->block_size) || e->block_size < 1)
        return false;
    return get_hashes(d, f, e) && get_tokens(d, f, e) &&
           e->n_tokens == (uint64_t)e->n_hashes * (uint64_t)e->block_size &&
           get_medium_and_group(f, e) && get_lora(d, f, e) && get_salt(f, e);
}

/* Reads one event; false: the bytes end too early. */
static bool one_event(st_kv_decoder *d, mp_reader *r, st_kv_event_fn *on_event, void *user,
                      st_kv_batch_info *info)
{
    event_fields f = {.type = ST_KV_UNKNOWN};
    const unsigned char *at = r->p;
    mp_value head;
    bool whole;
    if (!read_value(r, &head))
        return false;
    if (head.kind == MP_ARRAY) {
        whole = find_in_array(r, head.n, &f);
    } else if (head.kind == MP_MAP) {
        whole = find_in_map(r, head.n, &f);
    } else {
        r->p = at;
        whole = skip_value(r);
    }
    if (!whole)
        return false;
    f.end = r->p;
    st_kv_event e = {.type = f.type, .medium = ST_MEDIUM_GPU, .group = -1};
    bool good = false;
    if (f.type == ST_KV_STORED)
        good = get_stored(d, &f, &e);
    else if (f.type == ST_KV_REMOVED)
        good = get_hashes(d, &f, &e) && get_medium_and_group(&f, &e);
    else if (f.type == ST_KV_CLEARED)
        good = true;
    if (good) {
        info->events++;
        on_event(user, &e);
    } else {
        info->skipped++;
    }
    return true;
}

/* ---- a batch ---- */

static bool event_list(st_kv_decoder *d, mp_reader *r, st_kv_event_fn *on_event, void *user,
                       st_kv_batch_info *info)
{
    mp_value v;
    if (!read_value(r, &v) || v.kind != MP_ARRAY)
        return false;
    for (size_t i = 0; i < v.n; i++)
        if (!one_event(d, r, on_event, user, info))
            return false;
    return true;
}

static bool rank_field(mp_reader *r, st_kv_batch_info *info)
{
    mp_value v;
    mp_reader at = *r;
    if (read_value(&at, &v) && v.kind == MP_UINT && v.u <= INT64_MAX)
        info->dp_rank = (int64_t)v.u;
    return skip_value(r);
}

static bool batch_array(st_kv_decoder *d, mp_reader *r, size_t n, st_kv_event_fn *on_event,
                        void *user, st_kv_batch_info *info)
{
    if (n < 2 || !skip_value(r) || !event_list(d, r, on_event, user, info))
        return false;
    if (n > 2 && !rank_field(r, info))
        return false;
    for (size_t i = 3; i < n; i++)
        if (!skip_value(r))
            return false;
    return true;
}

static bool batch_map(st_kv_decoder *d, mp_reader *r, size_t n, st_kv_event_fn *on_event,
                      void *user, st_kv_batch_info *info)
{
    mp_reader events = {NULL, r->end};
    for (size_t i = 0; i < n; i++) {
        mp_reader at = *r;
        mp_value key;
        if (!skip_value(r) || !read_value(&at, &key))
            return false;
        if (is_text(&key, "events"))
            events.p = r->p;
        if (is_text(&key, "data_parallel_rank") || is_text(&key, "dp_rank")) {
            if (!rank_field(r, info))
                return false;
        } else if (!skip_value(r)) {
            return false;
        }
    }
    return events.p && event_list(d, &events, on_event, user, info);
}

st_status st_kv_decode(st_kv_decoder *d, const void *payload, size_t len, st_kv_event_fn *on_event,
                       void *user, st_kv_batch_info *info)
{
    st_kv_batch_info unused;
    if (!info)
        info = &unused;
    *info = (st_kv_batch_info){.dp_rank = -1};
    if (len == 0)
        return ST_EFORMAT;
    mp_reader r = {payload, (const unsigned char *)payload + len};
    mp_value v;
    bool good = read_value(&r, &v);
    if (good && v.kind == MP_ARRAY)
        good = batch_array(d, &r, v.n, on_event, user, info);
    else if (good && v.kind == MP_MAP)
        good = batch_map(d, &r, v.n, on_event, user, info);
    else
        good = false;
    return good && r.p == r.end ? ST_OK : ST_EFORMAT;
}
