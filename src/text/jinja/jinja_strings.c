/* Python's string operations: see jinja_strings.h. Character classes come from utf8proc. */
#include "text/jinja/jinja_strings.h"

#include <string.h>

#include <utf8proc.h>

#include "base/utf8.h"
#include "text/jinja/jinja_casing_table.h"

/* --- characters ---------------------------------------------------------------------------- */

static utf8proc_category_t category(uint32_t cp)
{
    return utf8proc_category((utf8proc_int32_t)cp);
}

bool jchar_is_space(uint32_t cp)
{
    if (cp < 0x80)
        return cp == ' ' || (cp >= 9 && cp <= 13) || (cp >= 28 && cp <= 31);
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

bool jchar_is_alpha(uint32_t cp)
{
    utf8proc_category_t c = category(cp);
    return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}

bool jchar_is_decimal(uint32_t cp)
{
    return category(cp) == UTF8PROC_CATEGORY_ND;
}

/* Decimals and what has Numeric_Type=Digit: superscripts, subscripts, circled digits... */
bool jchar_is_digit(uint32_t cp)
{
    static const uint32_t ranges[][2] = {
        {0x00B2, 0x00B3},   {0x00B9, 0x00B9},   {0x1369, 0x1371},   {0x19DA, 0x19DA},
        {0x2070, 0x2070},   {0x2074, 0x2079},   {0x2080, 0x2089},   {0x2460, 0x2468},
        {0x2474, 0x247C},   {0x2488, 0x2490},   {0x24EA, 0x24EA},   {0x24F5, 0x24FD},
        {0x24FF, 0x24FF},   {0x2776, 0x277E},   {0x2780, 0x2788},   {0x278A, 0x2792},
        {0x10A40, 0x10A43}, {0x10E60, 0x10E68}, {0x11052, 0x1105A}, {0x1F100, 0x1F10A}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (cp >= ranges[i][0] && cp <= ranges[i][1])
            return true;
    return jchar_is_decimal(cp);
}

bool jchar_is_numeric(uint32_t cp)
{
    /* Han characters that are numbers are letters by category. */
    static const uint32_t han[] = {0x3007, 0x4E00, 0x4E03, 0x4E07, 0x4E09, 0x4E24,
                                   0x4E5D, 0x4E8C, 0x4E94, 0x5104, 0x516B, 0x516D,
                                   0x5341, 0x5343, 0x56DB, 0x767E, 0x842C, 0x96F6};
    for (size_t i = 0; i < sizeof han / sizeof *han; i++)
        if (cp == han[i])
            return true;
    utf8proc_category_t c = category(cp);
    return c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO;
}

bool jchar_is_upper(uint32_t cp)
{
    return category(cp) == UTF8PROC_CATEGORY_LU || (cp >= 0x2160 && cp <= 0x216F) ||
           (cp >= 0x24B6 && cp <= 0x24CF);
}

bool jchar_is_lower(uint32_t cp)
{
    return category(cp) == UTF8PROC_CATEGORY_LL || cp == 0xAA || cp == 0xBA ||
           (cp >= 0x2170 && cp <= 0x217F) || (cp >= 0x24D0 && cp <= 0x24E9) ||
           (cp >= 0x2B0 && cp <= 0x2B8);
}

bool jchar_is_cased(uint32_t cp)
{
    return jchar_is_upper(cp) || jchar_is_lower(cp) || category(cp) == UTF8PROC_CATEGORY_LT;
}

/* Characters that do not end a word when Σ looks for its final form. */
static bool case_ignorable(uint32_t cp)
{
    switch (category(cp)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
        return true;
    default:
        return cp == '\'' || cp == '.' || cp == ':' || cp == 0xB7 || cp == 0x2018 || cp == 0x2019 ||
               cp == 0x2024 || cp == 0x2027;
    }
}

/* --- trimming ------------------------------------------------------------------------------ */

/* The start of the character that ends at p + len. */
static size_t char_start(const char *p, size_t len)
{
    do
        len--;
    while (len && ((unsigned char)p[len] & 0xC0) == 0x80);
    return len;
}

size_t jstr_rstrip_bytes(const char *p, size_t len)
{
    while (len) {
        uint32_t cp;
        size_t at = char_start(p, len);
        st_utf8_decode(p + at, len - at, &cp);
        if (!jchar_is_space(cp))
            break;
        len = at;
    }
    return len;
}

static bool strips(jrt *rt, const char *p, size_t n, const jstr *chars)
{
    uint32_t cp;
    if (chars) {
        jstep(rt, chars->len / 64);
        return memmem(chars->p, chars->len, p, n) != NULL;
    }
    st_utf8_decode(p, n, &cp);
    return jchar_is_space(cp);
}

jval jstr_strip(jrt *rt, const jstr *s, const jstr *chars, unsigned sides)
{
    size_t from = 0, to = s->len;
    while ((sides & JSTRIP_LEFT) && from < to && !rt->status) {
        uint32_t cp;
        size_t n = st_utf8_decode(s->p + from, to - from, &cp);
        if (!strips(rt, s->p + from, n, chars))
            break;
        from += n;
    }
    while ((sides & JSTRIP_RIGHT) && to > from && !rt->status) {
        size_t at = from + char_start(s->p + from, to - from);
        if (!strips(rt, s->p + at, to - at, chars))
            break;
        to = at;
    }
    return from == 0 && to == s->len ? j_str(s) : j_str(jstr_sub(rt, s, from, to));
}

/* --- case ---------------------------------------------------------------------------------- */

static const jcasing *special(uint32_t cp)
{
    size_t lo = 0, hi = sizeof jcasing_table / sizeof *jcasing_table;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (jcasing_table[mid].cp == cp)
            return &jcasing_table[mid];
        if (jcasing_table[mid].cp < cp)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

static void put_upper(jrt *rt, jbuf *b, uint32_t cp, bool title)
{
    if (cp < 0x80) {
        jbuf_cp(rt, b, cp >= 'a' && cp <= 'z' ? cp - 32 : cp);
        return;
    }
    const jcasing *c = special(cp);
    if (c) {
        const uint32_t *to = title ? c->title : c->upper;
        for (int i = 0; i < 3 && to[i]; i++)
            jbuf_cp(rt, b, to[i]);
    } else {
        utf8proc_int32_t u = (utf8proc_int32_t)cp;
        jbuf_cp(rt, b, (uint32_t)(title ? utf8proc_totitle(u) : utf8proc_toupper(u)));
    }
}

/* Is the Σ at byte i the last cased letter of a word? */
static bool final_sigma(jrt *rt, const jstr *s, size_t i)
{
    uint32_t cp = 0;
    size_t at = i;
    bool before = false;
    while (at && !before && jstep(rt, 1)) {
        at = char_start(s->p, at);
        st_utf8_decode(s->p + at, s->len - at, &cp);
        before = jchar_is_cased(cp) && !case_ignorable(cp);
        if (!before && !case_ignorable(cp))
            return false;
    }
    if (!before)
        return false;
    for (at = i + 2; at < s->len && jstep(rt, 1);) {
        at += st_utf8_decode(s->p + at, s->len - at, &cp);
        if (!case_ignorable(cp))
            return !jchar_is_cased(cp);
    }
    return true;
}

static void put_lower(jrt *rt, jbuf *b, const jstr *s, size_t i, uint32_t cp)
{
    if (cp < 0x80)
        jbuf_cp(rt, b, cp >= 'A' && cp <= 'Z' ? cp + 32 : cp);
    else if (cp == 0x130)
        jbuf_puts(rt, b, "i\xCC\x87");
    else if (cp == 0x3A3)
        jbuf_puts(rt, b, final_sigma(rt, s, i) ? "\xCF\x82" : "\xCF\x83");
    else
        jbuf_cp(rt, b, (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp));
}

const jstr *jstr_case(jrt *rt, const jstr *s, jcase how)
{
    jbuf b = {0};
    bool in_word = false;
    for (size_t i = 0, n; i < s->len && jstep(rt, 1); i += n) {
        uint32_t cp;
        n = st_utf8_decode(s->p + i, s->len - i, &cp);
        bool up = how == JCASE_UPPER || (how == JCASE_TITLE && !in_word) ||
                  (how == JCASE_CAPITALIZE && i == 0) || (how == JCASE_SWAP && jchar_is_lower(cp));
        if (up)
            put_upper(rt, &b, cp, how == JCASE_TITLE || how == JCASE_CAPITALIZE);
        else if (how == JCASE_SWAP && !jchar_is_upper(cp))
            jbuf_cp(rt, &b, cp);
        else
            put_lower(rt, &b, s, i, cp);
        in_word = jchar_is_cased(cp);
    }
    return jbuf_str(rt, &b);
}

/* --- searching ----------------------------------------------------------------------------- */

size_t jstr_find(const jstr *s, const jstr *needle, size_t from, size_t to, bool last)
{
    if (from > to || needle->len > to - from)
        return SIZE_MAX;
    if (last) {
        for (size_t i = to - needle->len + 1; i-- > from;)
            if (memcmp(s->p + i, needle->p, needle->len) == 0)
                return i;
        return SIZE_MAX;
    }
    const char *p = memmem(s->p + from, to - from, needle->p, needle->len);
    return p ? (size_t)(p - s->p) : SIZE_MAX;
}

static bool push_sub(jrt *rt, jlist *l, const jstr *s, size_t from, size_t to)
{
    return jlist_push(rt, l, j_str(jstr_sub(rt, s, from, to)));
}

static size_t next_space(const jstr *s, size_t i, bool want_space)
{
    while (i < s->len) {
        uint32_t cp;
        size_t n = st_utf8_decode(s->p + i, s->len - i, &cp);
        if (jchar_is_space(cp) == want_space)
            break;
        i += n;
    }
    return i;
}

static jlist *split_space(jrt *rt, const jstr *s, int64_t max)
{
    jlist *l = jlist_new(rt, 0);
    size_t at = next_space(s, 0, false);
    jstep(rt, s->len / 32);
    while (at < s->len && !rt->status) {
        if (max >= 0 && max-- == 0) {
            push_sub(rt, l, s, at, s->len);
            break;
        }
        size_t end = next_space(s, at, true);
        push_sub(rt, l, s, at, end);
        at = next_space(s, end, false);
    }
    return l;
}

jlist *jstr_split(jrt *rt, const jstr *s, const jstr *sep, int64_t max)
{
    if (!sep)
        return split_space(rt, s, max);
    if (sep->len == 0)
        return jtype_error(rt, "split(): the separator is empty"), NULL;
    jlist *l = jlist_new(rt, 0);
    size_t at = 0;
    jstep(rt, s->len / 32);
    while (!rt->status) {
        size_t hit = max >= 0 && max-- == 0 ? SIZE_MAX : jstr_find(s, sep, at, s->len, false);
        push_sub(rt, l, s, at, hit == SIZE_MAX ? s->len : hit);
        if (hit == SIZE_MAX)
            break;
        at = hit + sep->len;
    }
    return l;
}

static void reverse(jlist *l)
{
    for (size_t i = 0; l && i < l->n / 2; i++) {
        jval t = l->v[i];
        l->v[i] = l->v[l->n - 1 - i];
        l->v[l->n - 1 - i] = t;
    }
}

static size_t previous_space(const jstr *s, size_t end, bool want_space)
{
    while (end) {
        uint32_t cp;
        size_t at = char_start(s->p, end);
        st_utf8_decode(s->p + at, end - at, &cp);
        if (jchar_is_space(cp) == want_space)
            break;
        end = at;
    }
    return end;
}

static jlist *rsplit_space(jrt *rt, const jstr *s, int64_t max)
{
    jlist *l = jlist_new(rt, 0);
    size_t end = previous_space(s, s->len, false);
    jstep(rt, s->len / 32);
    while (end && !rt->status) {
        if (max-- == 0) {
            push_sub(rt, l, s, 0, end);
            break;
        }
        size_t at = previous_space(s, end, true);
        push_sub(rt, l, s, at, end);
        end = previous_space(s, at, false);
    }
    reverse(l);
    return l;
}

jlist *jstr_rsplit(jrt *rt, const jstr *s, const jstr *sep, int64_t max)
{
    if (max < 0)
        return jstr_split(rt, s, sep, -1);
    if (!sep)
        return rsplit_space(rt, s, max);
    if (sep->len == 0)
        return jtype_error(rt, "rsplit(): the separator is empty"), NULL;
    jlist *l = jlist_new(rt, 0);
    size_t end = s->len;
    jstep(rt, s->len / 8);
    while (!rt->status) {
        size_t hit = max-- == 0 ? SIZE_MAX : jstr_find(s, sep, 0, end, true);
        push_sub(rt, l, s, hit == SIZE_MAX ? 0 : hit + sep->len, end);
        if (hit == SIZE_MAX)
            break;
        end = hit;
    }
    reverse(l);
    return l;
}

/* Bytes of the line end at i, 0 when there is none. */
static size_t line_end(const jstr *s, size_t i)
{
    uint32_t cp;
    size_t n = st_utf8_decode(s->p + i, s->len - i, &cp);
    if (cp == '\r' && i + 1 < s->len && s->p[i + 1] == '\n')
        return 2;
    return (cp >= 10 && cp <= 13) || (cp >= 28 && cp <= 30) || cp == 0x85 || cp == 0x2028 ||
                   cp == 0x2029
               ? n
               : 0;
}

jlist *jstr_lines(jrt *rt, const jstr *s, bool keep_ends)
{
    jlist *l = jlist_new(rt, 0);
    size_t from = 0;
    for (size_t i = 0; i < s->len && jstep(rt, 1);) {
        size_t n = line_end(s, i);
        if (!n) {
            i++;
            while (i < s->len && ((unsigned char)s->p[i] & 0xC0) == 0x80)
                i++;
            continue;
        }
        push_sub(rt, l, s, from, keep_ends ? i + n : i);
        from = i += n;
    }
    if (from < s->len)
        push_sub(rt, l, s, from, s->len);
    return l;
}

/* An empty `from` matches before every character and at the end. */
static const jstr *replace_empty(jrt *rt, const jstr *s, const jstr *to, int64_t max)
{
    jbuf b = {0};
    size_t i = 0;
    while (!rt->status) {
        if (max < 0 || max-- > 0)
            jbuf_add(rt, &b, to->p, to->len);
        else
            max = 0;
        if (i >= s->len)
            break;
        uint32_t cp;
        size_t n = st_utf8_decode(s->p + i, s->len - i, &cp);
        jbuf_add(rt, &b, s->p + i, n);
        i += n;
        jstep(rt, 1);
    }
    return jbuf_str(rt, &b);
}

const jstr *jstr_replace(jrt *rt, const jstr *s, const jstr *from, const jstr *to, int64_t max)
{
    if (from->len == 0)
        return replace_empty(rt, s, to, max);
    jbuf b = {0};
    size_t at = 0;
    jstep(rt, s->len / 32);
    while (max != 0 && jstep(rt, 1)) {
        size_t hit = jstr_find(s, from, at, s->len, false);
        if (hit == SIZE_MAX)
            break;
        jbuf_add(rt, &b, s->p + at, hit - at);
        jbuf_add(rt, &b, to->p, to->len);
        at = hit + from->len;
        max -= max > 0;
    }
    if (at == 0)
        return s;
    jbuf_add(rt, &b, s->p + at, s->len - at);
    return jbuf_str(rt, &b);
}

static void put_fill(jrt *rt, jbuf *b, const jstr *fill, int64_t n)
{
    while (n-- > 0 && jbuf_add(rt, b, fill->p, fill->len))
        jstep(rt, 1);
}

const jstr *jstr_pad(jrt *rt, const jstr *s, int64_t width, char align, const jstr *fill)
{
    int64_t room = width - (int64_t)s->n;
    if (room <= 0)
        return s;
    jbuf b = {0};
    int64_t left = align == '<' ? 0 : align == '>' ? room : room / 2;
    put_fill(rt, &b, fill, left);
    jbuf_add(rt, &b, s->p, s->len);
    put_fill(rt, &b, fill, room - left);
    return jbuf_str(rt, &b);
}
