/* Picks some members of a JSON object in one strict scan, without allocating. */
#ifndef ST_API_JSON_PICK_H
#define ST_API_JSON_PICK_H

#include "base/json_scan.h"

/* A value's range; type is ST_JSON_ERROR when there is none. */
typedef struct st_picked {
    st_json_token type;
    const char *at;
    size_t len;
} st_picked;

/* Fills out[0..n) with the values of the members names[0..n); of equal keys the last counts, as
 * for engines. false: text is no JSON object; *why (may be NULL) says how. */
ST_NODISCARD bool st_json_pick(const char *text, size_t len, const char *const *names, size_t n,
                               st_picked *out, const char **why);

/* Scalars; a value of another type, or none: false. */
bool st_picked_int64(const st_picked *v, int64_t *out);
bool st_picked_is(const st_picked *v, const char *text); /* a string that says text */
ST_NODISCARD st_status st_picked_text(const st_picked *v, st_buf *out); /* ST_EFORMAT: no string */

/* Walks a list: for (s = st_picked_list(&v); st_json_element(&s, &element);). The text was scanned
 * before. */
st_json_scan st_picked_list(const st_picked *list);
bool st_json_element(st_json_scan *s, st_picked *element);

static inline bool st_picked_given(const st_picked *v)
{
    return v->type != ST_JSON_ERROR && v->type != ST_JSON_NULL;
}

#endif
