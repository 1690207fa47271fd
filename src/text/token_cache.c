/* The cache of tokenized text: see token_cache.h.
 *
 * Texts are cut into pieces, each ending with an added token and at least PIECE_BYTES long; the
 * last may be shorter. A piece's ids depend on the piece alone, so pieces are remembered by their
 * bytes, wherever they stand. Bytes are compared: a hash alone could be forged.
 *
 *   slots  [2^k]  chains of entries by hash
 *   list          all entries, least recently used first */
#include "text/token_cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "base/utf8.h"
#include "text/tokenizer_internal.h"

enum { PIECE_BYTES = 128 };

typedef struct entry {
    struct entry *chain;         /* in its slot */
    struct entry *older, *newer; /* in the list */
    uint64_t hash;
    size_t len, n_ids;
    int32_t ids[]; /* [n_ids], then the piece's bytes [len] */
} entry;

struct st_token_cache {
    const st_tokenizer *tok;
    bool cuts;                      /* false: no text of this tokenizer may be cut */
    const st_added_set *normalized; /* added tokens of the second set that may end a piece */
    size_t max_bytes;
    pthread_mutex_t lock;
    entry **slots;
    uint64_t mask;
    entry *oldest, *newest;
    st_token_cache_stats stats;
};

static char *text_of(entry *e)
{
    return (char *)(e->ids + e->n_ids);
}

static size_t bytes_of(const entry *e)
{
    return sizeof *e + e->n_ids * sizeof *e->ids + e->len;
}

static bool any_single_word(const st_added_set *set)
{
    for (size_t i = 0; i < set->n; i++)
        if (set->items[i].single_word)
            return true;
    return false;
}

/* Whether a text may be cut behind an added token depends on the other added tokens: one that
 * must stand alone looks at the character before it, which a cut would hide. Those of the second
 * set are looked for in normalized text: they are places to cut at when that is the text itself. */
static void find_cuts(st_token_cache *c)
{
    static const st_added_set none;
    const st_tokenizer *tok = c->tok;
    bool same_text = st_normalizer_changes_nothing(tok->normalizer);
    c->normalized = same_text && !any_single_word(&tok->normalized) ? &tok->normalized : &none;
    c->cuts = !any_single_word(&tok->raw) && tok->raw.n + c->normalized->n > 0;
}

st_status st_token_cache_new(const st_tokenizer *tok, size_t max_bytes, st_token_cache **out)
{
    uint64_t n = 64;
    *out = NULL;
    while (n < max_bytes / 1024 && n < 1u << 20)
        n *= 2;
    st_token_cache *c = calloc(1, sizeof *c);
    entry **slots = calloc(n, sizeof(entry *));
    if (!c || !slots || pthread_mutex_init(&c->lock, NULL)) {
        free(c);
        free(slots);
        return ST_ENOMEM;
    }
    c->tok = tok;
    find_cuts(c);
    c->max_bytes = max_bytes;
    c->slots = slots;
    c->mask = n - 1;
    *out = c;
    return ST_OK;
}

void st_token_cache_free(st_token_cache *c)
{
    if (!c)
        return;
    for (entry *e = c->oldest, *next; e; e = next) {
        next = e->newer;
        free(e);
    }
    pthread_mutex_destroy(&c->lock);
    free(c->slots);
    free(c);
}

/* ---- entries, under the lock ---- */

static void unlink_entry(st_token_cache *c, entry *e)
{
    *(e->older ? &e->older->newer : &c->oldest) = e->newer;
    *(e->newer ? &e->newer->older : &c->newest) = e->older;
}

static void link_newest(st_token_cache *c, entry *e)
{
    e->older = c->newest;
    e->newer = NULL;
    *(c->newest ? &c->newest->newer : &c->oldest) = e;
    c->newest = e;
}

static entry *find(st_token_cache *c, uint64_t hash, const char *text, size_t len)
{
    entry *e = c->slots[hash & c->mask];
    while (e && !(e->hash == hash && e->len == len && memcmp(text_of(e), text, len) == 0))
        e = e->chain;
    return e;
}

static void evict_oldest(st_token_cache *c)
{
    entry *e = c->oldest, **at = &c->slots[e->hash & c->mask];
    while (*at != e)
        at = &(*at)->chain;
    *at = e->chain;
    unlink_entry(c, e);
    c->stats.memory -= bytes_of(e);
    c->stats.entries--;
    free(e);
}

/* ---- pieces ---- */

static uint64_t hash_of(const char *text, size_t len)
{
    return XXH3_64bits(text, len);
}

/* Appends a remembered piece's ids. *found: it was there. */
static st_status look_up(st_token_cache *c, const char *text, size_t len, st_ids *out, bool *found)
{
    uint64_t hash = hash_of(text, len);
    st_status s = ST_OK;
    pthread_mutex_lock(&c->lock);
    entry *e = find(c, hash, text, len);
    *found = e != NULL;
    if (e) {
        s = st_ids_append(out, e->ids, e->n_ids);
        unlink_entry(c, e);
        link_newest(c, e);
        c->stats.bytes_hit += len;
    }
    pthread_mutex_unlock(&c->lock);
    return s;
}

/* Forgetting to remember is no error: without memory the piece is tokenized again next time. */
static void remember(st_token_cache *c, const char *text, size_t len, const int32_t *ids,
                     size_t n_ids)
{
    size_t bytes = sizeof(entry) + n_ids * sizeof *ids + len;
    entry *e = bytes <= c->max_bytes / 4 ? malloc(bytes) : NULL;
    if (!e)
        return;
    *e = (entry){.hash = hash_of(text, len), .len = len, .n_ids = n_ids};
    memcpy(e->ids, ids, n_ids * sizeof *ids);
    memcpy(text_of(e), text, len);
    pthread_mutex_lock(&c->lock);
    if (find(c, e->hash, text, len)) { /* another thread was faster */
        free(e);
    } else {
        while (c->oldest && c->stats.memory + bytes > c->max_bytes)
            evict_oldest(c);
        e->chain = c->slots[e->hash & c->mask];
        c->slots[e->hash & c->mask] = e;
        link_newest(c, e);
        c->stats.memory += bytes;
        c->stats.entries++;
    }
    pthread_mutex_unlock(&c->lock);
}

/* A pass over a text's added tokens as the tokenizer makes it: those of the second set in each
 * section between two of the first. */
typedef struct cut_scan {
    const st_added_set *normalized;
    st_added_scan raw, section;
    size_t base, stop; /* where the section begins; where the token behind it ends */
    bool in_section, at_end;
} cut_scan;

static void next_section(cut_scan *cs)
{
    size_t start = cs->raw.len;
    int32_t id;
    cs->base = cs->raw.done;
    cs->at_end = !st_added_next(&cs->raw, &start, &cs->stop, &id);
    cs->section = (st_added_scan){cs->normalized, cs->raw.text + cs->base, start - cs->base, 0, 0};
    cs->in_section = true;
}

/* Finds the end of the piece that starts at `from`, behind an added token; false: none ends
 * before the text does. Where the scan goes on right behind the token and no spaces beyond it are
 * taken, its state is that of a new scan: tokenizing may start afresh there. */
static bool next_cut(cut_scan *cs, size_t from, size_t *end)
{
    size_t start, stop;
    int32_t id;
    for (;;) {
        if (!cs->in_section)
            next_section(cs);
        while (st_added_next(&cs->section, &start, &stop, &id)) {
            *end = cs->base + stop;
            if (cs->section.at == stop && *end - from >= PIECE_BYTES)
                return true;
        }
        if (cs->at_end)
            return false;
        cs->in_section = false;
        *end = cs->stop;
        if (cs->raw.at == *end && *end - from >= PIECE_BYTES)
            return true;
    }
}

typedef struct pieces {
    st_token_cache *c;
    const char *text;
    size_t len, max_len; /* max_len: of out */
    st_ids *out;
    st_error *err;
    bool hit;
} pieces;

static st_status too_many(pieces *p)
{
    return st_fail(p->err, ST_EFULL, "the text has more tokens than are wanted");
}

static st_status encode_fresh(pieces *p, const char *text, size_t len)
{
    if (p->out->len > p->max_len)
        return too_many(p);
    return st_tokenizer_encode_limited(p->c->tok, text, len, 0, p->max_len - p->out->len, p->out,
                                       p->err);
}

static st_status encode_piece(pieces *p, const char *text, size_t len)
{
    bool found;
    size_t before = p->out->len;
    st_status s = look_up(p->c, text, len, p->out, &found);
    if (s)
        return st_fail(p->err, s, "no memory to tokenize");
    if (found) {
        p->hit = true;
        return p->out->len > p->max_len ? too_many(p) : ST_OK;
    }
    s = encode_fresh(p, text, len);
    if (!s)
        remember(p->c, text, len, p->out->data + before, p->out->len - before);
    return s;
}

static st_status encode_pieces(pieces *p)
{
    cut_scan scan = {.normalized = p->c->normalized,
                     .raw = {&p->c->tok->raw, p->text, p->len, 0, 0}};
    size_t from = 0, end;
    st_status s = ST_OK;
    while (!s && next_cut(&scan, from, &end)) {
        s = encode_piece(p, p->text + from, end - from);
        from = end;
    }
    return s ? s : encode_fresh(p, p->text + from, p->len - from);
}

static void count(st_token_cache *c, size_t len, bool hit)
{
    pthread_mutex_lock(&c->lock);
    c->stats.lookups++;
    c->stats.bytes_asked += len;
    c->stats.hits += hit;
    pthread_mutex_unlock(&c->lock);
}

st_status st_token_cache_encode(st_token_cache *c, const char *text, size_t len, unsigned flags,
                                size_t max_ids, st_ids *out, st_error *err)
{
    /* Ill-formed text is mended as a whole; plain text has no added tokens to cut at. */
    if (!c->cuts || len <= PIECE_BYTES || (flags & ST_ENCODE_PLAIN_SPECIAL) ||
        !st_utf8_valid(text, len))
        return st_tokenizer_encode_limited(c->tok, text, len, flags, max_ids, out, err);
    const st_tokenizer *t = c->tok;
    bool special = flags & ST_ENCODE_ADD_SPECIAL;
    size_t before = out->len;
    pieces p = {.c = c, .text = text, .len = len, .out = out, .err = err};
    p.max_len = max_ids < SIZE_MAX - before ? before + max_ids : SIZE_MAX;
    st_status s = special ? st_ids_append(out, t->prefix.data, t->prefix.len) : ST_OK;
    if (s)
        s = st_fail(err, s, "no memory to tokenize");
    if (!s)
        s = encode_pieces(&p);
    if (!s && special && st_ids_append(out, t->suffix.data, t->suffix.len))
        s = st_fail(err, ST_ENOMEM, "no memory to tokenize");
    if (!s && out->len > p.max_len)
        s = too_many(&p);
    if (s)
        out->len = before;
    count(c, len, p.hit);
    return s;
}

void st_token_cache_get_stats(st_token_cache *c, st_token_cache_stats *out)
{
    pthread_mutex_lock(&c->lock);
    *out = c->stats;
    pthread_mutex_unlock(&c->lock);
}
