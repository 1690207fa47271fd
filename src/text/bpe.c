/* Byte-pair encoding: see bpe.h. Short words scan for the best pair; long ones use a heap over a
 * linked list, so that a megabyte without a break takes n log n. */
#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "base/checked.h"
#include "base/utf8.h"
#include "text/tokenizer_json.h"

#define NO_RANK    UINT32_MAX
#define SHORT_WORD 48   /* symbols; below this scanning beats the heap */
#define CACHE_SIZE 8192 /* words, a power of two */

/* Open addressing by pair: the rank decides which pair is joined first. */
typedef struct merge {
    int32_t left, right; /* left < 0: empty slot */
    uint32_t rank;
    int32_t joined;
} merge;

struct st_bpe {
    const st_vocab *vocab;
    merge *merges;
    size_t mask;
    bool byte_level, byte_fallback, ignore_merges, fuse_unk;
    int32_t unk;       /* -1: unknown characters are dropped */
    int32_t unit[256]; /* byte-level: the token of one byte; else the <0xNN> token. -1: none */
    size_t longest;    /* no token stands for more bytes; SIZE_MAX: bytes may be dropped or fused */
};

typedef struct st_bpe_cached {
    uint64_t hash;
    size_t off, first; /* the word in text, its ids in out */
    uint32_t len, n;   /* len 0: empty */
} st_bpe_cached;

static size_t pair_slot(const st_bpe *b, int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    return (size_t)(h >> 32) & b->mask;
}

static const merge *find_merge(const st_bpe *b, int32_t left, int32_t right)
{
    size_t i = pair_slot(b, left, right);
    for (; b->merges[i].left >= 0; i = (i + 1) & b->mask)
        if (b->merges[i].left == left && b->merges[i].right == right)
            return &b->merges[i];
    return NULL;
}

/* ---- loading ---- */

/* Splits "left right" or takes ["left", "right"]. */
static st_status merge_parts(const json_t *item, size_t i, st_str *left, st_str *right,
                             st_error *err)
{
    if (json_is_array(item) && json_array_size(item) == 2) {
        const json_t *a = json_array_get(item, 0), *b = json_array_get(item, 1);
        *left = (st_str){json_string_value(a), json_string_length(a)};
        *right = (st_str){json_string_value(b), json_string_length(b)};
        if (left->n && right->n)
            return ST_OK;
    } else if (json_is_string(item)) {
        const char *s = json_string_value(item);
        size_t n = json_string_length(item);
        const char *space = memchr(s, ' ', n);
        if (space && !memchr(space + 1, ' ', (size_t)(s + n - space) - 1)) {
            *left = (st_str){s, (size_t)(space - s)};
            *right = (st_str){space + 1, (size_t)(s + n - space) - 1};
            if (left->n && right->n)
                return ST_OK;
        }
        return st_fail(err, ST_EFORMAT, "model.merges[%zu] is '%.200s', expected 'left right'", i,
                       s);
    }
    return st_fail(err, ST_EFORMAT,
                   "model.merges[%zu] is %s, expected 'left right' or two strings that are not "
                   "empty",
                   i, st_tj_kind(item));
}

static st_status add_merge(st_bpe *b, size_t i, st_str left, st_str right, st_buf *joined,
                           st_error *err)
{
    st_buf_clear(joined);
    st_status s = st_buf_append(joined, left.s, left.n);
    if (!s)
        s = st_buf_append(joined, right.s, right.n);
    if (s)
        return st_fail(err, s, "no memory for model.merges");
    const st_str parts[3] = {left, right, {joined->data, joined->len}};
    int32_t ids[3];
    for (int k = 0; k < 3; k++) {
        ids[k] = st_vocab_find(b->vocab, parts[k].s, parts[k].n);
        if (ids[k] < 0)
            return st_fail(err, ST_EFORMAT,
                           "model.merges[%zu]: '%.*s' is not in model.vocab (all of a merge's "
                           "parts and its result must be)",
                           i, (int)(parts[k].n < 200 ? parts[k].n : 200), parts[k].s);
    }
    size_t slot = pair_slot(b, ids[0], ids[1]);
    while (b->merges[slot].left >= 0 &&
           (b->merges[slot].left != ids[0] || b->merges[slot].right != ids[1]))
        slot = (slot + 1) & b->mask;
    b->merges[slot] = (merge){ids[0], ids[1], (uint32_t)i, ids[2]};
    return ST_OK;
}

static st_status load_merges(st_bpe *b, const json_t *merges, st_error *err)
{
    size_t n = json_array_size(merges), slots = 16;
    while (slots < n * 2)
        slots *= 2;
    b->mask = slots - 1;
    b->merges = malloc(slots * sizeof *b->merges);
    if (!b->merges)
        return st_fail(err, ST_ENOMEM, "no memory for %zu merges", n);
    for (size_t i = 0; i < slots; i++)
        b->merges[i].left = -1;
    st_buf joined = ST_BUF_INIT;
    st_status s = ST_OK;
    for (size_t i = 0; i < n && !s; i++) {
        st_str left = {NULL, 0}, right = {NULL, 0};
        s = merge_parts(json_array_get(merges, i), i, &left, &right, err);
        if (!s)
            s = add_merge(b, i, left, right, &joined, err);
    }
    st_buf_free(&joined);
    return s;
}

static void load_units(st_bpe *b)
{
    for (int i = 0; i < 256; i++) {
        char text[8];
        static const char hex[] = "0123456789ABCDEF";
        size_t n = 6;
        if (b->byte_level) {
            n = st_utf8_encode(st_byte_to_char((unsigned char)i), text);
        } else {
            memcpy(text, "<0x..>", 7);
            text[3] = hex[i >> 4];
            text[4] = hex[i & 15];
        }
        b->unit[i] = st_vocab_find(b->vocab, text, n);
    }
}

static st_status load_options(st_bpe *b, const json_t *model, st_error *err)
{
    st_str unk, type;
    const json_t *dropout = json_object_get(model, "dropout");
    st_status s = st_tj_string(model, "model", "type", &type, err);
    if (!s && type.s && !st_str_is(type, "BPE"))
        return st_fail(err, ST_EUNSUPPORTED, "model.type '%s' is not supported, only BPE is",
                       type.s);
    if (!s)
        s = st_tj_bool(model, "model", "byte_fallback", false, &b->byte_fallback, err);
    if (!s)
        s = st_tj_bool(model, "model", "ignore_merges", false, &b->ignore_merges, err);
    if (!s)
        s = st_tj_bool(model, "model", "fuse_unk", false, &b->fuse_unk, err);
    if (!s)
        s = st_tj_string(model, "model", "unk_token", &unk, err);
    if (s)
        return s;
    if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0)
        return st_fail(err, ST_EUNSUPPORTED, "model.dropout is not supported, expected null");
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        st_str affix;
        s = st_tj_string(model, "model", affixes[i], &affix, err);
        if (s)
            return s;
        if (affix.n)
            return st_fail(err, ST_EUNSUPPORTED, "model.%s '%s' is not supported, expected none",
                           affixes[i], affix.s);
    }
    b->unk = unk.s ? st_vocab_find(b->vocab, unk.s, unk.n) : -1;
    if (unk.n && b->unk < 0)
        return st_fail(err, ST_EFORMAT, "model.unk_token '%s' is not in the vocabulary", unk.s);
    return ST_OK;
}

/* A token's spelling in the byte-level alphabet has at least one byte for each of its bytes. */
static void find_longest(st_bpe *b)
{
    b->longest = 1;
    for (int32_t i = 0; i < b->vocab->size; i++)
        if (b->vocab->tokens[i].text && b->vocab->tokens[i].text_len > b->longest)
            b->longest = b->vocab->tokens[i].text_len;
    for (int i = 0; i < 256; i++)
        if (!b->byte_level || b->unit[i] < 0)
            b->longest = SIZE_MAX;
}

size_t st_bpe_fewest_ids(const st_bpe *b, size_t len)
{
    if (b->longest == SIZE_MAX)
        return 0;
    return len / b->longest + (len % b->longest != 0);
}

st_status st_bpe_new(const json_t *model, const st_vocab *vocab, bool byte_level, st_bpe **out,
                     st_error *err)
{
    const json_t *merges;
    *out = NULL;
    st_bpe *b = calloc(1, sizeof *b);
    if (!b)
        return st_fail(err, ST_ENOMEM, "no memory for the tokenizer");
    b->vocab = vocab;
    b->byte_level = byte_level;
    st_status s = load_options(b, model, err);
    if (!s)
        s = st_tj_array(model, "model", "merges", &merges, err);
    if (!s)
        s = load_merges(b, merges, err);
    if (s) {
        st_bpe_free(b);
        return s;
    }
    load_units(b);
    find_longest(b);
    *out = b;
    return ST_OK;
}

void st_bpe_free(st_bpe *b)
{
    if (!b)
        return;
    free(b->merges);
    free(b);
}

/* ---- scratch ---- */

void st_bpe_scratch_cache(st_bpe_scratch *s)
{
    if (!s->cache)
        s->cache = calloc(CACHE_SIZE, sizeof *s->cache);
}

void st_bpe_scratch_free(st_bpe_scratch *s)
{
    free(s->cache);
    free(s->work);
    st_buf_free(&s->spelled);
    *s = (st_bpe_scratch){0};
}

static void *work(st_bpe_scratch *s, size_t bytes)
{
    if (bytes > s->work_bytes) {
        void *p = realloc(s->work, bytes);
        if (!p)
            return NULL;
        s->work = p;
        s->work_bytes = bytes;
    }
    return s->work;
}

/* ---- encoding ---- */

/* Writes the starting symbols of a word to ids (room for len); returns how many. */
static size_t symbols(const st_bpe *b, const char *word, size_t len, int32_t *ids)
{
    size_t n = 0;
    bool after_unk = false;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        size_t used = b->byte_level ? 1 : st_utf8_decode(word + i, len - i, &cp);
        int32_t id = b->byte_level ? b->unit[(unsigned char)word[i]]
                                   : st_vocab_find(b->vocab, word + i, used);
        bool fallback = id < 0 && b->byte_fallback && !b->byte_level;
        for (size_t k = 0; fallback && k < used; k++)
            fallback = b->unit[(unsigned char)word[i + k]] >= 0;
        if (fallback) {
            for (size_t k = 0; k < used; k++)
                ids[n++] = b->unit[(unsigned char)word[i + k]];
        } else if (id >= 0) {
            ids[n++] = id;
        } else if (b->unk >= 0 && !(b->fuse_unk && after_unk)) {
            ids[n++] = b->unk;
        }
        after_unk = id < 0 && !fallback;
        i += used;
    }
    return n;
}

/* Joins pairs in place by scanning; returns the new length. n <= SHORT_WORD. */
static size_t join_short(const st_bpe *b, int32_t *ids, size_t n)
{
    const merge *best[SHORT_WORD];
    for (size_t i = 0; i + 1 < n; i++)
        best[i] = find_merge(b, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t at = 0;
        uint32_t rank = NO_RANK;
        for (size_t i = 0; i + 1 < n; i++)
            if (best[i] && best[i]->rank < rank) {
                rank = best[i]->rank;
                at = i;
            }
        if (rank == NO_RANK)
            break;
        ids[at] = best[at]->joined;
        memmove(&ids[at + 1], &ids[at + 2], (n - at - 2) * sizeof *ids);
        n--;
        memmove(&best[at], &best[at + 1], (n - at) * sizeof *best);
        if (at > 0)
            best[at - 1] = find_merge(b, ids[at - 1], ids[at]);
        if (at + 1 < n)
            best[at] = find_merge(b, ids[at], ids[at + 1]);
    }
    return n;
}

typedef struct candidate {
    uint32_t rank, pos;
    int32_t left, right; /* the symbols when it was entered: stale once they changed */
} candidate;

typedef struct heap {
    candidate *at;
    size_t n;
} heap;

static bool before(const candidate *x, const candidate *y)
{
    return x->rank != y->rank ? x->rank < y->rank : x->pos < y->pos;
}

static void heap_push(heap *h, candidate c)
{
    size_t i = h->n++;
    for (; i > 0 && before(&c, &h->at[(i - 1) / 2]); i = (i - 1) / 2)
        h->at[i] = h->at[(i - 1) / 2];
    h->at[i] = c;
}

static candidate heap_pop(heap *h)
{
    candidate top = h->at[0], last = h->at[--h->n];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= h->n)
            break;
        if (child + 1 < h->n && before(&h->at[child + 1], &h->at[child]))
            child++;
        if (!before(&h->at[child], &last))
            break;
        h->at[i] = h->at[child];
        i = child;
    }
    h->at[i] = last;
    return top;
}

static void consider(const st_bpe *b, heap *h, const int32_t *ids, uint32_t left, uint32_t right)
{
    const merge *m = find_merge(b, ids[left], ids[right]);
    if (m)
        heap_push(h, (candidate){m->rank, left, ids[left], ids[right]});
}

/* Joins pairs with a heap of candidates over a doubly linked list; returns the new length. Every
 * join enters at most two candidates, so 3n bound the heap. Memory: ids, next, prev, heap. */
static size_t join_long(const st_bpe *b, int32_t *ids, size_t n, uint32_t *next, uint32_t *prev,
                        candidate *room)
{
    heap h = {room, 0};
    uint32_t end = (uint32_t)n;
    for (uint32_t i = 0; i < end; i++) {
        next[i] = i + 1;
        prev[i] = i - 1; /* wraps for the first: compared with end below */
    }
    for (uint32_t i = 0; i + 1 < end; i++)
        consider(b, &h, ids, i, i + 1);
    while (h.n) {
        candidate c = heap_pop(&h);
        uint32_t r = next[c.pos];
        if (ids[c.pos] != c.left || r >= end || ids[r] != c.right)
            continue;
        ids[c.pos] = find_merge(b, c.left, c.right)->joined;
        ids[r] = -1;
        next[c.pos] = next[r];
        if (next[r] < end)
            prev[next[r]] = c.pos;
        if (prev[c.pos] < end)
            consider(b, &h, ids, prev[c.pos], c.pos);
        if (next[c.pos] < end)
            consider(b, &h, ids, c.pos, next[c.pos]);
    }
    size_t kept = 0;
    for (uint32_t i = 0; i < end; i = next[i])
        ids[kept++] = ids[i];
    return kept;
}

static st_status encode_word(const st_bpe *b, st_bpe_scratch *scratch, const char *word, size_t len,
                             st_ids *out, st_error *err)
{
    int32_t few[SHORT_WORD];
    if (len <= SHORT_WORD) {
        size_t n = join_short(b, few, symbols(b, word, len, few));
        return st_ids_append(out, few, n);
    }
    size_t per_symbol = sizeof(int32_t) + 2 * sizeof(uint32_t) + 3 * sizeof(candidate), bytes;
    if (len > UINT32_MAX / 4 || !st_mul_size(len, per_symbol, &bytes))
        return st_fail(err, ST_EINVAL, "a word of %zu bytes is too long to tokenize", len);
    char *mem = work(scratch, bytes);
    if (!mem)
        return st_fail(err, ST_ENOMEM, "no memory to tokenize a word of %zu bytes", len);
    candidate *room = (candidate *)mem;
    int32_t *ids = (int32_t *)(room + 3 * len);
    uint32_t *next = (uint32_t *)(ids + len), *prev = next + len;
    size_t n = symbols(b, word, len, ids);
    n = join_long(b, ids, n, next, prev, room);
    return st_ids_append(out, ids, n);
}

/* ignore_merges: a word that is a token as a whole is that token. *id: the token, or -1. */
static st_status whole_word(const st_bpe *b, st_bpe_scratch *scratch, const char *word, size_t len,
                            int32_t *id)
{
    st_buf *spelled = &scratch->spelled;
    st_buf_clear(spelled);
    for (size_t i = 0; b->byte_level && i < len; i++) {
        char c[4];
        size_t n = st_utf8_encode(st_byte_to_char((unsigned char)word[i]), c);
        st_status s = st_buf_append(spelled, c, n);
        if (s)
            return s;
    }
    *id = b->byte_level ? st_vocab_find(b->vocab, spelled->data, spelled->len)
                        : st_vocab_find(b->vocab, word, len);
    return ST_OK;
}

st_status st_bpe_encode(const st_bpe *b, st_bpe_scratch *scratch, const st_buf *text, size_t off,
                        size_t len, st_ids *out, st_error *err)
{
    const char *word = text->data + off;
    if (len == 0)
        return ST_OK;
    st_bpe_cached *slot = NULL;
    uint64_t hash = 0;
    if (scratch->cache && len <= SHORT_WORD) {
        hash = XXH3_64bits(word, len);
        slot = &scratch->cache[hash & (CACHE_SIZE - 1)];
        if (slot->hash == hash && slot->len == len &&
            memcmp(text->data + slot->off, word, len) == 0) {
            /* Through the stack: appending may move the vector that holds them. */
            int32_t ids[SHORT_WORD];
            if (slot->n == 0)
                return ST_OK;
            memcpy(ids, out->data + slot->first, slot->n * sizeof *ids);
            return st_ids_append(out, ids, slot->n);
        }
    }
    size_t first = out->len;
    int32_t whole = -1;
    st_status s = b->ignore_merges ? whole_word(b, scratch, word, len, &whole) : ST_OK;
    if (!s)
        s = whole >= 0 ? st_ids_push(out, whole) : encode_word(b, scratch, word, len, out, err);
    if (!s && slot)
        *slot = (st_bpe_cached){hash, off, first, (uint32_t)len, (uint32_t)(out->len - first)};
    return s;
}
