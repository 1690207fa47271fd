/* An object and edits of its members: jansson must read the edited text as the tree with the same
 * edits. Byte 0 chooses the edits; the rest is the object. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_splice.h"

#define REQUIRE(x)                                                                                 \
    do {                                                                                           \
        if (!(x))                                                                                  \
            abort();                                                                               \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char value[] = "{\"spliced\":[1,\"\\\"}\"]}";

/* Edits the member in both; bits of choice: what is done. */
static void edit(st_splice *s, json_t *tree, const char *key, unsigned choice)
{
    json_t *v = json_loads(value, 0, NULL);
    if (choice % 3 == 1) {
        REQUIRE(st_splice_set(s, key, value, sizeof value - 1) == ST_OK);
        REQUIRE(json_object_set(tree, key, v) == 0);
    } else if (choice % 3 == 2) {
        REQUIRE(st_splice_remove(s, key) == ST_OK);
        json_object_del(tree, key);
    }
    json_decref(v);
}

static void edit_all(st_splice *s, json_t *tree, unsigned choice)
{
    for (size_t i = 0; i < st_splice_count(s); i++) {
        const st_member *m = st_splice_member(s, i);
        st_json_scan scan;
        st_buf key = ST_BUF_INIT;
        st_json_scan_init(&scan, st_splice_text(s) + m->key.begin, m->key.end - m->key.begin);
        REQUIRE(st_json_next(&scan) == ST_JSON_STRING && st_json_text(&scan, &key) == ST_OK);
        REQUIRE(st_splice_find(s, key.data) == m);
        edit(s, tree, key.data, choice >> i % 5);
        st_buf_free(&key);
    }
    if (!st_splice_find(s, "added"))
        edit(s, tree, "added", choice >> 5);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    st_splice *s;
    st_error err;
    st_buf out = ST_BUF_INIT;
    if (size == 0)
        return 0;
    char *copy = malloc(size);
    memcpy(copy, data + 1, size - 1);
    json_t *tree = json_loadb(copy, size - 1, 0, NULL);
    if (st_splice_new(copy, size - 1, &s, &err)) {
        json_decref(tree);
        free(copy);
        return 0;
    }
    REQUIRE(st_splice_apply(s, &out) == ST_OK);
    REQUIRE(out.len == size - 1 && memcmp(out.data, copy, out.len) == 0);
    if (tree) { /* else U+0000 or numbers that jansson does not take */
        edit_all(s, tree, data[0]);
        st_buf_clear(&out);
        REQUIRE(st_splice_apply(s, &out) == ST_OK);
        json_t *back = json_loadb(out.data, out.len, 0, NULL);
        REQUIRE(back && json_equal(back, tree));
        json_decref(back);
        st_splice_reset(s);
        st_buf_clear(&out);
        REQUIRE(st_splice_apply(s, &out) == ST_OK);
        REQUIRE(out.len == size - 1 && memcmp(out.data, copy, out.len) == 0);
    }
    json_decref(tree);
    st_buf_free(&out);
    st_splice_free(s);
    free(copy);
    return 0;
}
