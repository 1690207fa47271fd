/* Encodes batches of KV events as our engine publishes them (kv_event.h): all fields, as maps, or
 * as the arrays that vLLM had before. */
#include "events/kv_event.h"

#include <msgpack.h>
#include <string.h>

typedef struct encoder {
    msgpack_packer pk;
    bool as_maps, failed;
} encoder;

static int append(void *out, const char *bytes, size_t n)
{
    return st_buf_append(out, bytes, n) == ST_OK ? 0 : -1;
}

static void note(encoder *e, int status)
{
    e->failed |= status != 0;
}

static void put_text(encoder *e, const char *s, size_t n)
{
    note(e, msgpack_pack_str(&e->pk, n));
    note(e, msgpack_pack_str_body(&e->pk, s, n));
}

/* A field's name, where fields have names. */
static void name(encoder *e, const char *s)
{
    if (e->as_maps)
        put_text(e, s, strlen(s));
}

/* The head of a struct of n fields. */
static void begin(encoder *e, size_t n)
{
    note(e, e->as_maps ? msgpack_pack_map(&e->pk, n) : msgpack_pack_array(&e->pk, n));
}

static void put_hashes(encoder *e, const st_kv_event *ev)
{
    name(e, "block_hashes");
    note(e, msgpack_pack_array(&e->pk, ev->n_hashes));
    for (size_t i = 0; i < ev->n_hashes; i++)
        note(e, msgpack_pack_uint64(&e->pk, ev->hashes[i]));
}

static void put_medium(encoder *e, const st_kv_event *ev)
{
    const char *s = ev->medium == ST_MEDIUM_GPU   ? "GPU"
                    : ev->medium == ST_MEDIUM_CPU ? "CPU"
                                                  : "OTHER";
    name(e, "medium");
    put_text(e, s, strlen(s));
}

static void put_extra_keys(encoder *e, const st_kv_event *ev)
{
    name(e, "extra_keys");
    if (!ev->salt || !ev->n_hashes) {
        note(e, msgpack_pack_nil(&e->pk));
        return;
    }
    note(e, msgpack_pack_array(&e->pk, ev->n_hashes));
    note(e, msgpack_pack_array(&e->pk, 1));
    put_text(e, ev->salt, ev->salt_len);
    for (size_t i = 1; i < ev->n_hashes; i++)
        note(e, msgpack_pack_nil(&e->pk));
}

static void put_stored(encoder *e, const st_kv_event *ev)
{
    put_hashes(e, ev);
    name(e, "parent_block_hash");
    if (ev->has_parent)
        note(e, msgpack_pack_uint64(&e->pk, ev->parent));
    else
        note(e, msgpack_pack_nil(&e->pk));
    name(e, "token_ids");
    note(e, msgpack_pack_array(&e->pk, ev->n_tokens));
    for (size_t i = 0; i < ev->n_tokens; i++)
        note(e, msgpack_pack_int32(&e->pk, ev->tokens[i]));
    name(e, "block_size");
    note(e, msgpack_pack_int32(&e->pk, ev->block_size));
    name(e, "lora_id");
    note(e, msgpack_pack_nil(&e->pk));
    put_medium(e, ev);
    name(e, "lora_name");
    if (ev->lora_name)
        put_text(e, ev->lora_name, ev->lora_name_len);
    else
        note(e, msgpack_pack_nil(&e->pk));
    put_extra_keys(e, ev);
}

static void put_event(encoder *e, const st_kv_event *ev)
{
    static const struct {
        const char *type;
        size_t fields;
    } types[] = {[ST_KV_STORED] = {"BlockStored", 9},
                 [ST_KV_REMOVED] = {"BlockRemoved", 3},
                 [ST_KV_CLEARED] = {"AllBlocksCleared", 1}};
    begin(e, types[ev->type].fields);
    name(e, "type");
    put_text(e, types[ev->type].type, strlen(types[ev->type].type));
    if (ev->type == ST_KV_STORED) {
        put_stored(e, ev);
    } else if (ev->type == ST_KV_REMOVED) {
        put_hashes(e, ev);
        put_medium(e, ev);
    }
}

st_status st_kv_encode_batch(const st_kv_event *events, size_t n, double ts, int dp_rank,
                             bool as_maps, st_buf *out)
{
    for (size_t i = 0; i < n; i++)
        if (events[i].type > ST_KV_CLEARED)
            return ST_EINVAL;
    size_t before = out->len;
    encoder e = {.as_maps = as_maps};
    msgpack_packer_init(&e.pk, out, append);
    begin(&e, 3);
    name(&e, "ts");
    note(&e, msgpack_pack_double(&e.pk, ts));
    name(&e, "events");
    note(&e, msgpack_pack_array(&e.pk, n));
    for (size_t i = 0; i < n; i++)
        put_event(&e, &events[i]);
    name(&e, "data_parallel_rank");
    if (dp_rank >= 0)
        note(&e, msgpack_pack_int(&e.pk, dp_rank));
    else
        note(&e, msgpack_pack_nil(&e.pk));
    if (!e.failed)
        return ST_OK;
    out->len = before;
    return ST_ENOMEM;
}
