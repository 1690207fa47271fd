/* Edits of a JSON text by position: bytes outside the edited ranges stay as they are. Collect edits
 * in any order, then apply them in one pass.
 *
 * For the members of one object st_splice_* know about commas: removing a member takes its comma
 * along, adding one puts a comma where it is needed. */
#ifndef ST_BASE_JSON_SPLICE_H
#define ST_BASE_JSON_SPLICE_H

#include "base/json_scan.h"

enum { ST_SPLICE_MAX_MEMBERS = 1024 }; /* of the edited object */

/* A top-level member of an object, as found by st_splice_new. */
typedef struct st_member {
    st_span key;   /* with quotes */
    st_span value; /* the whole value */
    uint8_t type;  /* st_json_token of the value's first token */
} st_member;

typedef struct st_splice st_splice;

/* text must be one JSON object (else ST_EFORMAT, err says where) and outlive the splice. Scans it
 * once, strictly and completely. Duplicate top-level keys: ST_EINVAL, naming the key; more than
 * ST_SPLICE_MAX_MEMBERS members: ST_EINVAL. */
ST_NODISCARD st_status st_splice_new(const char *text, size_t len, st_splice **out, st_error *err);
void st_splice_free(st_splice *s); /* NULL is fine */

/* NULL when there is no such top-level member. Owned by s. */
const st_member *st_splice_find(const st_splice *s, const char *key);
size_t st_splice_count(const st_splice *s);
const st_member *st_splice_member(const st_splice *s, size_t i);
const char *st_splice_text(const st_splice *s);

/* Reads of a member's value. */
bool st_member_is_true(const st_splice *s, const st_member *m);
bool st_member_int64(const st_splice *s, const st_member *m, int64_t *out);
ST_NODISCARD st_status st_member_text(const st_splice *s, const st_member *m, st_buf *out);

/* Edits. json is JSON text, copied. A member may be edited once (again: ST_EINVAL); set adds it
 * when it is absent, removing an absent one does nothing. */
ST_NODISCARD st_status st_splice_set(st_splice *s, const char *key, const char *json, size_t len);
ST_NODISCARD st_status st_splice_remove(st_splice *s, const char *key);
ST_NODISCARD st_status st_splice_remove_at(st_splice *s, size_t i); /* member i of the text */
void st_splice_reset(st_splice *s); /* forgets the edits: the same body for another engine */
/* Appends the edited text. */
ST_NODISCARD st_status st_splice_apply(const st_splice *s, st_buf *out);

#endif
