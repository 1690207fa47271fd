/* Finding added tokens: see tokenizer_added.h. */
#include "text/tokenizer_added.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "base/utf8.h"
#include "text/pretokenizer_regex.h"

st_status st_added_set_add(st_added_set *set, const char *text, size_t len, st_added flags)
{
    if (set->n == set->cap) {
        size_t cap = set->cap ? set->cap * 2 : 32;
        st_added *p = cap > SIZE_MAX / sizeof *p ? NULL : realloc(set->items, cap * sizeof *p);
        if (!p)
            return ST_ENOMEM;
        set->items = p;
        set->cap = cap;
    }
    char *copy = malloc(len + 1);
    if (!copy)
        return ST_ENOMEM;
    memcpy(copy, text, len);
    flags.text = copy;
    flags.len = len;
    set->items[set->n++] = flags;
    set->starts[(unsigned char)copy[0]] = true;
    return ST_OK;
}

static int compare(const void *pa, const void *pb)
{
    const st_added *a = pa, *b = pb;
    int c = memcmp(a->text, b->text, a->len < b->len ? a->len : b->len);
    return c ? c : (a->len > b->len) - (a->len < b->len);
}

void st_added_set_sort(st_added_set *set)
{
    if (set->n)
        qsort(set->items, set->n, sizeof *set->items, compare);
}

void st_added_set_free(st_added_set *set)
{
    for (size_t i = 0; i < set->n; i++)
        free((char *)set->items[i].text);
    free(set->items);
    *set = (st_added_set){0};
}

/* First item of [lo, hi) whose byte at `depth` is at least c. All of them are longer than depth. */
static size_t lower_bound(const st_added_set *set, size_t lo, size_t hi, size_t depth, int c)
{
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if ((unsigned char)set->items[mid].text[depth] < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The longest item that text starts with, or NULL: narrows the sorted list byte by byte. */
static const st_added *longest(const st_added_set *set, const char *text, size_t len)
{
    const st_added *best = NULL;
    size_t lo = 0, hi = set->n;
    for (size_t depth = 0; depth < len && lo < hi; depth++) {
        int c = (unsigned char)text[depth];
        lo = lower_bound(set, lo, hi, depth, c);
        hi = lower_bound(set, lo, hi, depth, c + 1);
        if (lo < hi && set->items[lo].len == depth + 1)
            best = &set->items[lo++]; /* the shortest sorts first; longer ones follow */
    }
    return best;
}

static bool is_word(uint32_t cp)
{
    if (cp == 0x200C || cp == 0x200D || (cp >= 0x24B6 && cp <= 0x24E9))
        return true;
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_NL) || c == UTF8PROC_CATEGORY_PC;
}

/* The character that ends at text + at (at > 0); *start is where it begins. */
static uint32_t char_before(const char *text, size_t at, size_t *start)
{
    uint32_t cp;
    size_t i = at - 1;
    while (i > 0 && ((unsigned char)text[i] & 0xC0) == 0x80)
        i--;
    st_utf8_decode(text + i, at - i, &cp);
    *start = i;
    return cp;
}

static bool stands_alone(const st_added_scan *scan, size_t start, size_t stop)
{
    uint32_t cp;
    size_t ignored;
    if (start > 0 && is_word(char_before(scan->text, start, &ignored)))
        return false;
    if (stop < scan->len) {
        st_utf8_decode(scan->text + stop, scan->len - stop, &cp);
        return !is_word(cp);
    }
    return true;
}

bool st_added_next(st_added_scan *scan, size_t *start, size_t *stop, int32_t *id)
{
    const st_added_set *set = scan->set;
    while (set->n && scan->at < scan->len) {
        size_t at = scan->at;
        while (at < scan->len && !set->starts[(unsigned char)scan->text[at]])
            at++;
        scan->at = at;
        if (at == scan->len)
            break;
        const st_added *hit = longest(set, scan->text + at, scan->len - at);
        scan->at += hit ? hit->len : 1;
        if (!hit || (hit->single_word && !stands_alone(scan, at, at + hit->len)))
            continue;
        size_t from = at, to = at + hit->len, before;
        while (hit->lstrip && from > scan->done &&
               st_is_white_space(char_before(scan->text, from, &before)))
            from = before;
        while (hit->rstrip && to < scan->len) {
            uint32_t cp;
            size_t used = st_utf8_decode(scan->text + to, scan->len - to, &cp);
            if (!st_is_white_space(cp))
                break;
            to += used;
        }
        /* An earlier match may have taken the spaces that this one starts with. */
        *start = from > scan->done ? from : scan->done;
        *stop = to > scan->done ? to : scan->done;
        *id = hit->id;
        scan->done = *stop;
        return true;
    }
    return false;
}
