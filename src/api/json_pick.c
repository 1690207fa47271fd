/* Members of an object by name: see json_pick.h. */
#include "api/json_pick.h"

static bool fail(const st_json_scan *s, const char **why)
{
    if (why)
        *why = s->why ? s->why : "not an object";
    return false;
}

bool st_json_pick(const char *text, size_t len, const char *const *names, size_t n, st_picked *out,
                  const char **why)
{
    st_json_scan s;
    st_json_token token;
    for (size_t i = 0; i < n; i++)
        out[i] = (st_picked){.type = ST_JSON_ERROR};
    st_json_scan_init(&s, text, len);
    if (st_json_next(&s) != ST_JSON_OBJECT)
        return fail(&s, why);
    while ((token = st_json_next(&s)) == ST_JSON_KEY) {
        char first = text[s.span.begin + 1];
        size_t i = 0;
        /* Most names differ in their first byte; a backslash says nothing yet. */
        while (i < n && ((first != names[i][0] && first != '\\') || !st_json_text_is(&s, names[i])))
            i++;
        st_span value;
        token = st_json_next(&s);
        if (st_json_skip(&s, token, &value))
            return fail(&s, why);
        if (i < n)
            out[i] = (st_picked){token, text + value.begin, value.end - value.begin};
    }
    if (token != ST_JSON_OBJECT_END || st_json_next(&s) != ST_JSON_END)
        return fail(&s, why);
    return true;
}

/* A scanner whose last token is the scalar. */
static st_json_scan rescan(const st_picked *v)
{
    st_json_scan s;
    st_json_scan_init(&s, v->at, v->len);
    (void)st_json_next(&s);
    return s;
}

bool st_picked_int64(const st_picked *v, int64_t *out)
{
    if (v->type != ST_JSON_NUMBER)
        return false;
    st_json_scan s = rescan(v);
    return st_json_int64(&s, out);
}

bool st_picked_is(const st_picked *v, const char *text)
{
    if (v->type != ST_JSON_STRING)
        return false;
    st_json_scan s = rescan(v);
    return st_json_text_is(&s, text);
}

st_status st_picked_text(const st_picked *v, st_buf *out)
{
    if (v->type != ST_JSON_STRING)
        return ST_EFORMAT;
    st_json_scan s = rescan(v);
    return st_json_text(&s, out);
}

st_json_scan st_picked_list(const st_picked *list)
{
    return rescan(list);
}

bool st_json_element(st_json_scan *s, st_picked *element)
{
    st_span value;
    st_json_token token = st_json_next(s);
    if (token == ST_JSON_ARRAY_END || st_json_skip(s, token, &value))
        return false;
    *element = (st_picked){token, s->text + value.begin, value.end - value.begin};
    return true;
}
