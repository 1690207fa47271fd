/* src/events/kv_event_*: against msgpack-c both ways, in every encoding, and with bytes that nobody
 * should send. */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <msgpack.h>

#include "base/clock.h"
#include "events/kv_event.h"
#include "events/prefix_index.h"

static uint64_t rng_state = 42;

static uint64_t below(uint64_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (rng_state >> 33) % n;
}

/* ---- what was delivered, as text ---- */

typedef struct record {
    st_buf text;
    int events;
} record;

static void write_event(st_buf *b, const st_kv_event *e)
{
    static const char *const types[] = {"stored", "removed", "cleared"};
    assert_true(e->type <= ST_KV_CLEARED);
    st_status s =
        st_buf_printf(b, "%s medium %d group %d", types[e->type], (int)e->medium, (int)e->group);
    if (e->has_parent)
        s |= st_buf_printf(b, " parent %llx", (unsigned long long)e->parent);
    for (size_t i = 0; i < e->n_hashes; i++)
        s |= st_buf_printf(b, " %llx", (unsigned long long)e->hashes[i]);
    if (e->type == ST_KV_STORED)
        s |= st_buf_printf(b, " of %d:", e->block_size);
    for (size_t i = 0; i < e->n_tokens; i++)
        s |= st_buf_printf(b, " %d", e->tokens[i]);
    if (e->lora_name)
        s |= st_buf_printf(b, " lora %.*s", (int)e->lora_name_len, e->lora_name);
    if (e->salt)
        s |= st_buf_printf(b, " salt %.*s", (int)e->salt_len, e->salt);
    s |= st_buf_puts(b, "\n");
    assert_int_equal(s, ST_OK);
}

static void on_event(void *user, const st_kv_event *e)
{
    record *r = user;
    r->events++;
    write_event(&r->text, e);
}

/* Decodes from memory of the exact size. */
static st_status decode(const void *bytes, size_t n, record *r, st_kv_batch_info *info)
{
    static st_kv_decoder *d;
    if (!d)
        assert_int_equal(st_kv_decoder_new(&d), ST_OK);
    *r = (record){.text = ST_BUF_INIT};
    assert_int_equal(st_buf_puts(&r->text, ""), ST_OK);
    void *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, bytes, n);
    st_status s = st_kv_decode(d, copy, n, on_event, r, info);
    free(copy);
    if (n == 0) { /* the last call of a test frees what is shared */
        st_kv_decoder_free(d);
        d = NULL;
    }
    return s;
}

static int end_decoding(void **state)
{
    (void)state;
    record r;
    st_kv_batch_info info;
    int bad = decode("", 0, &r, &info) != ST_EFORMAT;
    st_buf_free(&r.text);
    return bad;
}

/* ---- messages made by msgpack-c ---- */

static void put_str(msgpack_packer *pk, const char *s)
{
    msgpack_pack_str(pk, strlen(s));
    msgpack_pack_str_body(pk, s, strlen(s));
}

/* A hash as an integer of either sign, or as bytes. */
static void put_hash(msgpack_packer *pk, uint64_t v, int how)
{
    if (how == 0) {
        msgpack_pack_uint64(pk, v);
    } else if (how == 1) {
        msgpack_pack_int64(pk, (int64_t)v);
    } else {
        unsigned char bytes[32];
        memset(bytes, 0xee, sizeof bytes);
        for (int i = 0; i < 8; i++)
            bytes[24 + i] = (unsigned char)(v >> (56 - 8 * i));
        size_t n = how == 2 ? 32 : 8;
        msgpack_pack_bin(pk, n);
        msgpack_pack_bin_body(pk, bytes + 32 - n, n);
    }
}

typedef struct form {
    bool maps;
    int hashes;
    int fields; /* of a stored event, with its type */
    bool junk;  /* unknown fields */
} form;

static void put_junk(msgpack_packer *pk)
{
    msgpack_pack_map(pk, 2);
    msgpack_pack_array(pk, 3);
    msgpack_pack_nil(pk);
    msgpack_pack_float(pk, 1.5f);
    msgpack_pack_ext(pk, 5, 7);
    msgpack_pack_ext_body(pk, "abcde", 5);
    msgpack_pack_true(pk);
    put_str(pk, "block_hashes");
    msgpack_pack_int(pk, -70000);
}

static void field(msgpack_packer *pk, const form *f, const char *name)
{
    if (f->maps)
        put_str(pk, name);
}

/* Optional fields from the sixth on; those that were left out are default in the event. */
static void put_optional(msgpack_packer *pk, const form *f, st_kv_event *e)
{
    static const char *const names[] = {"lora_id", "medium", "lora_name", "extra_keys",
                                        "group_idx"};
    for (int i = 0; i < f->fields - 5; i++) {
        field(pk, f, names[i]);
        if (i == 1 && e->medium != ST_MEDIUM_GPU)
            put_str(pk, e->medium == ST_MEDIUM_CPU ? "CPU_TIER2" : "DISK");
        else if (i == 2 && e->lora_name)
            put_str(pk, e->lora_name);
        else if (i == 4 && e->group >= 0)
            msgpack_pack_int(pk, e->group);
        else if (i == 3 && e->salt) {
            msgpack_pack_array(pk, e->n_hashes);
            msgpack_pack_array(pk, e->lora_name ? 3 : 1);
            if (e->lora_name) {
                put_str(pk, e->lora_name);
                put_junk(pk);
            }
            put_str(pk, e->salt);
            for (size_t k = 1; k < e->n_hashes; k++)
                msgpack_pack_nil(pk);
        } else
            msgpack_pack_nil(pk);
    }
    if (f->fields < 7)
        e->medium = ST_MEDIUM_GPU;
    if (f->fields < 8)
        e->lora_name = NULL;
    if (f->fields < 9)
        e->salt = NULL;
    if (f->fields < 10)
        e->group = -1;
}

static void put_stored(msgpack_packer *pk, const form *f, st_kv_event *e)
{
    size_t fields = (size_t)f->fields + f->junk;
    if (f->maps)
        msgpack_pack_map(pk, fields);
    else
        msgpack_pack_array(pk, fields);
    if (f->junk && f->maps) {
        put_junk(pk); /* a key need not be text */
        put_junk(pk);
    }
    if (!f->maps)
        put_str(pk, "BlockStored");
    field(pk, f, "block_hashes");
    msgpack_pack_array(pk, e->n_hashes);
    for (size_t i = 0; i < e->n_hashes; i++)
        put_hash(pk, e->hashes[i], f->hashes);
    field(pk, f, "parent_block_hash");
    if (e->has_parent)
        put_hash(pk, e->parent, f->hashes);
    else
        msgpack_pack_nil(pk);
    field(pk, f, "token_ids");
    msgpack_pack_array(pk, e->n_tokens);
    for (size_t i = 0; i < e->n_tokens; i++)
        msgpack_pack_int32(pk, e->tokens[i]);
    field(pk, f, "block_size");
    msgpack_pack_int32(pk, e->block_size);
    put_optional(pk, f, e);
    if (f->junk && !f->maps)
        put_junk(pk);
    if (f->maps) { /* the type last: order means nothing in a map */
        put_str(pk, "type");
        put_str(pk, "BlockStored");
    }
}

static void random_stored(st_kv_event *e, uint64_t *hashes, int32_t *tokens)
{
    *e = (st_kv_event){.type = ST_KV_STORED,
                       .hashes = hashes,
                       .n_hashes = below(5),
                       .tokens = tokens,
                       .block_size = 1 + (int32_t)below(20),
                       .has_parent = below(2),
                       .medium = (st_kv_medium)below(3),
                       .group = (int32_t)below(3) - 1,
                       .lora_name = below(2) ? "adapter" : NULL,
                       .lora_name_len = 7};
    e->n_tokens = e->n_hashes * (size_t)e->block_size;
    e->parent = e->has_parent ? below(2) ? rng_state : below(300) : 0;
    for (size_t i = 0; i < e->n_hashes; i++) {
        uint64_t v = below(1000);
        hashes[i] = below(2) ? v : (rng_state ^ rng_state << 32);
    }
    for (size_t i = 0; i < e->n_tokens; i++)
        tokens[i] = (int32_t)below(below(2) ? 100 : INT32_MAX);
    if (below(2) && e->n_hashes) {
        e->salt = "tenant";
        e->salt_len = 6;
    }
}

static void put_removed(msgpack_packer *pk, const form *f, const st_kv_event *e)
{
    if (f->maps)
        msgpack_pack_map(pk, 3);
    else
        msgpack_pack_array(pk, 3);
    field(pk, f, "type");
    put_str(pk, "BlockRemoved");
    field(pk, f, "block_hashes");
    msgpack_pack_array(pk, e->n_hashes);
    for (size_t i = 0; i < e->n_hashes; i++)
        put_hash(pk, e->hashes[i], f->hashes);
    field(pk, f, "medium");
    put_str(pk, e->medium == ST_MEDIUM_GPU ? "GPU" : e->medium == ST_MEDIUM_CPU ? "CPU" : "X");
}

static void put_random_event(msgpack_packer *pk, st_buf *want)
{
    uint64_t hashes[8];
    int32_t tokens[8 * 20];
    form f = {below(2), (int)below(4), 5 + (int)below(6), false};
    f.junk = f.maps ? below(2) : f.fields == 10 && below(2);
    st_kv_event e;
    random_stored(&e, hashes, tokens);
    if (below(3)) {
        put_stored(pk, &f, &e);
    } else if (below(2)) {
        e = (st_kv_event){.type = ST_KV_REMOVED,
                          .hashes = hashes,
                          .n_hashes = e.n_hashes,
                          .medium = e.medium,
                          .group = -1};
        put_removed(pk, &f, &e);
    } else {
        e = (st_kv_event){.type = ST_KV_CLEARED, .group = -1};
        if (f.maps)
            msgpack_pack_map(pk, 1);
        else
            msgpack_pack_array(pk, 1);
        field(pk, &f, "type");
        put_str(pk, "AllBlocksCleared");
    }
    write_event(want, &e);
}

/* A batch of random events in random encodings; returns how many. */
static uint32_t put_random_batch(msgpack_sbuffer *sb, st_buf *want, int64_t *rank)
{
    msgpack_packer pk;
    msgpack_packer_init(&pk, sb, msgpack_sbuffer_write);
    form top = {.maps = below(2)};
    uint32_t n = (uint32_t)below(20);
    *rank = below(2) ? (int64_t)below(300) : -1;
    size_t fields = *rank >= 0 ? 3 : 2;
    if (top.maps) {
        msgpack_pack_map(&pk, fields);
        if (*rank >= 0) {
            put_str(&pk, "data_parallel_rank");
            msgpack_pack_int64(&pk, *rank);
        }
    } else {
        msgpack_pack_array(&pk, fields);
    }
    field(&pk, &top, "ts");
    msgpack_pack_double(&pk, 1.25);
    field(&pk, &top, "events");
    msgpack_pack_array(&pk, n);
    for (uint32_t i = 0; i < n; i++)
        put_random_event(&pk, want);
    if (!top.maps && *rank >= 0)
        msgpack_pack_int64(&pk, *rank);
    return n;
}

static void decodes_what_msgpack_c_encodes(void **state)
{
    (void)state;
    for (int round = 0; round < 3000; round++) {
        msgpack_sbuffer sb;
        msgpack_sbuffer_init(&sb);
        st_buf want = ST_BUF_INIT;
        assert_int_equal(st_buf_puts(&want, ""), ST_OK);
        int64_t rank;
        uint32_t n = put_random_batch(&sb, &want, &rank);
        record got;
        st_kv_batch_info info;
        assert_int_equal(decode(sb.data, sb.size, &got, &info), ST_OK);
        assert_string_equal(got.text.data, want.data);
        assert_int_equal(info.events, n);
        assert_int_equal(info.skipped, 0);
        assert_int_equal(info.dp_rank, rank);
        st_buf_free(&got.text);
        /* Cut short anywhere: an error, and never more than was there. */
        size_t cut = below(sb.size);
        if (cut > 0) {
            assert_int_equal(decode(sb.data, cut, &got, &info), ST_EFORMAT);
            assert_memory_equal(got.text.data, want.data, got.text.len);
            st_buf_free(&got.text);
        }
        st_buf_free(&want);
        msgpack_sbuffer_destroy(&sb);
    }
}

/* ---- our encoder, read by msgpack-c ---- */

static const msgpack_object *member(const msgpack_object *o, bool maps, uint32_t place,
                                    const char *name)
{
    if (!maps) {
        assert_int_equal(o->type, MSGPACK_OBJECT_ARRAY);
        return place < o->via.array.size ? &o->via.array.ptr[place] : NULL;
    }
    assert_int_equal(o->type, MSGPACK_OBJECT_MAP);
    for (uint32_t i = 0; i < o->via.map.size; i++) {
        const msgpack_object_kv *kv = &o->via.map.ptr[i];
        if (kv->key.via.str.size == strlen(name) &&
            memcmp(kv->key.via.str.ptr, name, strlen(name)) == 0)
            return &kv->val;
    }
    return NULL;
}

static void is_str(const msgpack_object *o, const char *s)
{
    assert_non_null(o);
    assert_int_equal(o->type, MSGPACK_OBJECT_STR);
    assert_int_equal(o->via.str.size, strlen(s));
    assert_memory_equal(o->via.str.ptr, s, strlen(s));
}

static void is_uint(const msgpack_object *o, uint64_t v)
{
    assert_non_null(o);
    assert_int_equal(o->type, MSGPACK_OBJECT_POSITIVE_INTEGER);
    assert_true(o->via.u64 == v);
}

static void check_stored(const msgpack_object *e, bool maps)
{
    is_str(member(e, maps, 0, "type"), "BlockStored");
    const msgpack_object *h = member(e, maps, 1, "block_hashes");
    assert_int_equal(h->via.array.size, 2);
    is_uint(&h->via.array.ptr[0], UINT64_MAX - 1);
    is_uint(&h->via.array.ptr[1], 5);
    assert_int_equal(member(e, maps, 2, "parent_block_hash")->type, MSGPACK_OBJECT_NIL);
    const msgpack_object *t = member(e, maps, 3, "token_ids");
    assert_int_equal(t->via.array.size, 4);
    is_uint(&t->via.array.ptr[3], 151645);
    is_uint(member(e, maps, 4, "block_size"), 2);
    assert_int_equal(member(e, maps, 5, "lora_id")->type, MSGPACK_OBJECT_NIL);
    is_str(member(e, maps, 6, "medium"), "GPU");
    assert_int_equal(member(e, maps, 7, "lora_name")->type, MSGPACK_OBJECT_NIL);
    const msgpack_object *x = member(e, maps, 8, "extra_keys");
    assert_int_equal(x->via.array.size, 2);
    is_str(&x->via.array.ptr[0].via.array.ptr[0], "pepper");
    assert_int_equal(x->via.array.ptr[1].type, MSGPACK_OBJECT_NIL);
}

static void msgpack_c_reads_what_we_encode(void **state)
{
    (void)state;
    uint64_t hashes[2] = {UINT64_MAX - 1, 5}, gone = 77;
    int32_t tokens[4] = {1, 2, 3, 151645};
    st_kv_event e[3] = {{.type = ST_KV_CLEARED},
                        {.type = ST_KV_REMOVED, .hashes = &gone, .n_hashes = 1},
                        {.type = ST_KV_STORED,
                         .hashes = hashes,
                         .n_hashes = 2,
                         .tokens = tokens,
                         .n_tokens = 4,
                         .block_size = 2,
                         .salt = "pepper",
                         .salt_len = 6}};
    for (int maps = 0; maps < 2; maps++) {
        st_buf b = ST_BUF_INIT;
        assert_int_equal(st_kv_encode_batch(e, 3, 2.5, 4, maps, &b), ST_OK);
        msgpack_unpacked u;
        msgpack_unpacked_init(&u);
        size_t off = 0;
        assert_int_equal(msgpack_unpack_next(&u, b.data, b.len, &off), MSGPACK_UNPACK_SUCCESS);
        assert_int_equal(off, b.len);
        assert_true(member(&u.data, maps, 0, "ts")->via.f64 == 2.5);
        is_uint(member(&u.data, maps, 2, "data_parallel_rank"), 4);
        const msgpack_object *events = member(&u.data, maps, 1, "events");
        assert_int_equal(events->via.array.size, 3);
        is_str(member(&events->via.array.ptr[0], maps, 0, "type"), "AllBlocksCleared");
        is_str(member(&events->via.array.ptr[1], maps, 0, "type"), "BlockRemoved");
        is_uint(&member(&events->via.array.ptr[1], maps, 1, "block_hashes")->via.array.ptr[0], 77);
        is_str(member(&events->via.array.ptr[1], maps, 2, "medium"), "GPU");
        check_stored(&events->via.array.ptr[2], maps);
        msgpack_unpacked_destroy(&u);
        st_buf_free(&b);
    }
    st_buf none = ST_BUF_INIT;
    e[0].type = ST_KV_UNKNOWN;
    assert_int_equal(st_kv_encode_batch(e, 1, 0, -1, true, &none), ST_EINVAL);
}

/* ---- what nobody should send ---- */

#define BYTES(s) s, sizeof(s) - 1

static void hostile_batches(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        st_status want;
        uint32_t events, skipped;
    } cases[] = {
        {BYTES("\xc0"), ST_EFORMAT, 0, 0},
        {BYTES("\x90"), ST_EFORMAT, 0, 0},
        {BYTES("\x91\x01"), ST_EFORMAT, 0, 0},
        {BYTES("\x92\x01\x90"), ST_OK, 0, 0},
        {BYTES("\x92\x01\x90\x00"), ST_EFORMAT, 0, 0}, /* and then something else */
        {BYTES("\x80"), ST_EFORMAT, 0, 0},             /* no events */
        {BYTES("\x81\xa6"
               "events\x90"),
         ST_OK, 0, 0},
        {BYTES("\x92\x01\xdd\xff\xff\xff\xff"), ST_EFORMAT, 0, 0}, /* 4 Gi events */
        {BYTES("\xdf\xff\xff\xff\xff\x01\x01"), ST_EFORMAT, 0, 0},
        {BYTES("\x92\x01\x91\xdd\x7f\xff\xff\xff"), ST_EFORMAT, 0, 0},
        {BYTES("\x92\x01\x91\xdb\xff\xff\xff\xff"
               "a"),
         ST_EFORMAT, 0, 0},
        {BYTES("\x92\x01\x91\xc6\xff\xff\xff\xff"
               "a"),
         ST_EFORMAT, 0, 0},
        {BYTES("\x92\x01\x91\xc9\xff\xff\xff\xff"
               "a"),
         ST_EFORMAT, 0, 0},
        {BYTES("\x92\x01\x91\xc1"), ST_EFORMAT, 0, 0},
        {BYTES("\x92\x01\xc0"), ST_EFORMAT, 0, 0}, /* events is nil */
        {BYTES("\x92\x01\x92\xc0\x05"), ST_OK, 0, 2},
        {BYTES("\x92\x01\x92\x90\x80"), ST_OK, 0, 2},
        {BYTES("\x92\x01\x91\x91\xa3"
               "New"),
         ST_OK, 0, 1}, /* a later version's */
        {BYTES("\x92\x01\x92\x91\xb0"
               "AllBlocksCleared\x91\xa3"
               "New"),
         ST_OK, 1, 1},
        {BYTES("\x92\x01\x91\x91\xac"
               "BlockRemoved"),
         ST_OK, 0, 1}, /* no hashes */
        {BYTES("\x92\x01\x91\x92\xac"
               "BlockRemoved\xc0"),
         ST_OK, 0, 1}, /* nil */
        {BYTES("\x92\x01\x91\x92\xac"
               "BlockRemoved\x05"),
         ST_OK, 0, 1}, /* not a list */
        {BYTES("\x92\x01\x91\x92\xac"
               "BlockRemoved\x91\xc4\x00"),
         ST_OK, 0, 1}, /* no bytes */
        {BYTES("\x92\x01\x91\x92\xac"
               "BlockRemoved\x91\xc4\x01\x07"),
         ST_OK, 1, 0},
        {BYTES("\x92\x01\x91\x92\xac"
               "BlockRemoved\x91\xca\0\0\0\0"),
         ST_OK, 0, 1}, /* a float */
        {BYTES("\x92\x01\x91\x93\xac"
               "BlockRemoved\x91\x07\x05"),
         ST_OK, 0, 1}, /* medium 5 */
        {BYTES("\x92\x01\x91\x95\xab"
               "BlockStored\x91\x01\xc0\x92\x05\x06\x02"),
         ST_OK, 1, 0},
        {BYTES("\x92\x01\x91\x95\xab"
               "BlockStored\x91\x01\xc0\x92\x05\x06\x03"),
         ST_OK, 0, 1},
        {BYTES("\x92\x01\x91\x95\xab"
               "BlockStored\x91\x01\xc0\x90\x00"),
         ST_OK, 0, 1},
        {BYTES("\x92\x01\x91\x95\xab"
               "BlockStored\x91\x01\xc0\x91\x05\xff"),
         ST_OK, 0, 1},
        {BYTES("\x92\x01\x91\x95\xab"
               "BlockStored\x91\x01\xc2\x91\x05\x01"),
         ST_OK, 0, 1},
        {BYTES("\x92\x01\x91\x95\xab"
               "BlockStored\x91\x01\xc0\x91\xce\x80\0\0\0\x01"),
         ST_OK, 0, 1}, /* a token beyond 31 bits */
        {BYTES("\x92\x01\x91\x94\xab"
               "BlockStored\x91\x01\xc0\x91\x05"),
         ST_OK, 0, 1},
        {BYTES("\x92\x01\x91\x96\xab"
               "BlockStored\x91\x01\xc0\x91\x05\x01\xc3"),
         ST_OK, 0, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        record r;
        st_kv_batch_info info;
        st_status got = decode(cases[i].bytes, cases[i].n, &r, &info);
        if (got != cases[i].want || info.events != cases[i].events ||
            info.skipped != cases[i].skipped || (uint32_t)r.events != info.events)
            fail_msg("case %zu: status %d, %u events, %u skipped", i, (int)got, info.events,
                     info.skipped);
        st_buf_free(&r.text);
    }
}

static void older_lora_ids_keep_apart(void **state)
{
    (void)state;
    record r;
    st_kv_batch_info info;
    assert_int_equal(decode(BYTES("\x92\x01\x91\x96\xab"
                                  "BlockStored\x91\x01\xc0\x91\x05\x01\x03"),
                            &r, &info),
                     ST_OK);
    assert_non_null(strstr(r.text.data, " lora #3"));
    st_buf_free(&r.text);
}

static void deep_nesting_is_skipped(void **state)
{
    (void)state;
    enum { DEEP = 1000000 };
    char *b = malloc(DEEP + 4);
    assert_non_null(b);
    memcpy(b, "\x92\x01\x91", 3);
    memset(b + 3, 0x91, DEEP);
    b[DEEP + 3] = 0x01;
    record r;
    st_kv_batch_info info;
    assert_int_equal(decode(b, DEEP + 4, &r, &info), ST_OK);
    assert_int_equal(info.skipped, 1);
    st_buf_free(&r.text);
    assert_int_equal(decode(b, DEEP + 3, &r, &info), ST_EFORMAT);
    st_buf_free(&r.text);
    free(b);
}

static void damaged_batches_never_hurt(void **state)
{
    (void)state;
    for (int round = 0; round < 300; round++) {
        msgpack_sbuffer sb;
        msgpack_sbuffer_init(&sb);
        st_buf want = ST_BUF_INIT;
        int64_t rank;
        put_random_batch(&sb, &want, &rank);
        for (int k = 0; k < 30; k++) {
            char keep = sb.data[0];
            size_t at = below(sb.size);
            keep = sb.data[at];
            sb.data[at] = (char)below(256);
            record r;
            st_kv_batch_info info;
            st_status s = decode(sb.data, sb.size, &r, &info);
            assert_true(s == ST_OK || s == ST_EFORMAT);
            assert_int_equal(r.events, info.events);
            st_buf_free(&r.text);
            sb.data[at] = keep;
        }
        st_buf_free(&want);
        msgpack_sbuffer_destroy(&sb);
    }
}

/* ---- speed: decode and store ---- */

static void store_event(void *user, const st_kv_event *e)
{
    if (st_prefix_store(user, 0, 1, e->has_parent, e->parent, e->hashes, e->n_hashes, e->tokens,
                        e->block_size) != ST_OK)
        exit(1);
}

static int bench(void)
{
    enum { N = 1000000, B = 16 };
    for (int per = 1; per <= 8; per *= 8)
        for (int maps = 0; maps < 2; maps++) {
            size_t bytes = st_prefix_index_bytes(N, 0);
            st_prefix_index *x;
            void *mem = aligned_alloc(64, bytes);
            st_kv_decoder *d;
            if (!mem || st_prefix_index_init(mem, bytes, N, 0, &x) || st_kv_decoder_new(&d))
                return 1;
            uint64_t spent = 0, hashes[8];
            int32_t tokens[8 * B];
            st_buf b = ST_BUF_INIT;
            for (int i = 0; i < N; i += per) {
                for (int k = 0; k < per; k++)
                    hashes[k] = (uint64_t)(i + k + 1) * 0x9e3779b97f4a7c15u;
                for (int k = 0; k < per * B; k++)
                    tokens[k] = (i * B + k) % 150000;
                st_kv_event e = {.type = ST_KV_STORED,
                                 .hashes = hashes,
                                 .n_hashes = (size_t)per,
                                 .tokens = tokens,
                                 .n_tokens = (size_t)per * B,
                                 .block_size = B};
                st_buf_clear(&b);
                if (st_kv_encode_batch(&e, 1, 1.0, 0, maps, &b) != ST_OK)
                    return 1;
                st_kv_batch_info info;
                uint64_t t0 = st_now_ns();
                if (st_kv_decode(d, b.data, b.len, store_event, x, &info) != ST_OK)
                    return 1;
                spent += st_now_ns() - t0;
            }
            printf("decode and store, %s, %d blocks an event: %.0f blocks/s\n",
                   maps ? "maps" : "arrays", per, N / ((double)spent / 1e9));
            st_buf_free(&b);
            st_kv_decoder_free(d);
            free(mem);
        }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bench") == 0)
        return bench();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_what_msgpack_c_encodes),
        cmocka_unit_test(msgpack_c_reads_what_we_encode),
        cmocka_unit_test(hostile_batches),
        cmocka_unit_test(older_lora_ids_keep_apart),
        cmocka_unit_test(deep_nesting_is_skipped),
        cmocka_unit_test(damaged_batches_never_hurt),
    };
    return cmocka_run_group_tests(tests, NULL, end_decoding);
}
