/* The prefill side of a KV link: offers, the WANTs that name them, and the rows that go out (see
 * kv_link_internal.h).
 *
 * An offer keeps what was named ready in the order it came, and a cursor into it. Offers of one
 * connection that have rows to send stand in its queue and send a message each in turn, while the
 * window has room. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "transfer/kv_link_internal.h"

/* A WANT that names no block ids may come this long before its offer at most. */
#define WAIT_MAX_NS 600000000000u
#define FETCHED     "these KV rows were fetched already"
/* A fetcher that hangs while its rows are on their way. */
#define GRACE_NS 3000000000u

static kv_offer *find(st_kv_link *l, const st_transfer_id *id)
{
    kv_offer *o = (kv_offer *)kv_link_find(l, l->offer_map, id);
    return o && o->known ? o : NULL;
}

static void end_offer(st_kv_link *l, kv_offer *o, st_status status, const char *text)
{
    if (o->end.ended)
        return;
    kv_end_mark(l, &o->end, status, "%s", text);
    if (o->conn && status != ST_OK)
        kv_conn_send_end(o->conn, &o->node.id, false, status, text);
}

/* ---- sending ---- */

static bool window_open(const kv_conn *c)
{
    return !c->failed && !c->closing && c->bytes_in_flight < KV_WINDOW_BYTES;
}

/* The rows under the cursor, at most a message of them; false: none are ready. */
static bool next_rows(const kv_offer *o, const st_kv_store *store, kv_rows *out)
{
    if (o->at == o->n_ready)
        return false;
    const kv_ready *r = &o->ready[o->at];
    size_t max = KV_MESSAGE_BYTES / store->row_bytes;
    int32_t left = r->from + r->count - o->at_token;
    if ((size_t)left > max)
        left = max ? (int32_t)max : 1;
    *out = (kv_rows){.id = o->node.id, .layer = o->at_layer, .first = o->at_token, .count = left};
    return true;
}

/* Puts the cursor to the first wanted row at or after it. */
static void settle_cursor(kv_offer *o)
{
    for (; o->at < o->n_ready; o->at++) {
        kv_ready *r = &o->ready[o->at];
        /* What nobody wants is cut off once, when the cursor comes to it. */
        int32_t from = r->from > o->from ? r->from : o->from;
        int32_t to = r->from + r->count < o->to ? r->from + r->count : o->to;
        if (o->at_layer < 0) {
            if (from >= to)
                continue;
            r->from = from;
            r->count = to - from;
            o->at_layer = r->layer;
            o->at_token = from;
        }
        if (o->at_token >= r->from + r->count) {
            o->at_layer++;
            o->at_token = r->from;
        }
        if (o->at_layer < r->layer + r->n_layers)
            return;
        o->at_layer = -1;
    }
}

/* False, and the offer ended, when a block is not the one that the request names. */
static bool check_named(st_kv_link *l, kv_offer *o, const kv_rows *rows)
{
    if (!o->named)
        return true;
    int32_t size = l->o.store->block_size;
    for (int32_t b = rows->first / size; b <= (rows->first + rows->count - 1) / size; b++) {
        if (o->named[b] == o->table[b])
            continue;
        char text[KV_WHY_MAX];
        snprintf(text, sizeof text,
                 "the request names block %" PRId32 " as number %" PRId32
                 " of the prompt, which is in block %" PRId32,
                 o->named[b], b, o->table[b]);
        end_offer(l, o, ST_EINVAL, text);
        return false;
    }
    return true;
}

/* One message; true when more is ready. */
static bool send_some(st_kv_link *l, kv_offer *o)
{
    kv_rows rows;
    settle_cursor(o);
    if (o->end.ended || !next_rows(o, l->o.store, &rows) || !check_named(l, o, &rows))
        return false;
    o->at_token += rows.count;
    o->left -= (uint64_t)rows.count;
    kv_conn_send_rows(o->conn, o, &rows);
    settle_cursor(o);
    return o->at < o->n_ready;
}

static void queue(kv_offer *o)
{
    kv_conn *c = o->conn;
    if (o->queued || !c || o->end.ended)
        return;
    o->queued = true;
    o->next_sending = NULL;
    *c->sending_tail = o;
    c->sending_tail = &o->next_sending;
    c->link->dirty = true;
}

static kv_offer *queue_pop(kv_conn *c)
{
    kv_offer *o = c->sending;
    c->sending = o->next_sending;
    if (!c->sending)
        c->sending_tail = &c->sending;
    o->queued = false;
    return o;
}

bool kv_offers_pump(st_kv_link *l)
{
    bool sent = false;
    for (kv_conn *c = l->conns; c; c = c->next)
        while (c->sending && window_open(c)) {
            kv_offer *o = queue_pop(c);
            if (send_some(l, o))
                queue(o);
            sent = true;
        }
    return sent;
}

/* All rows are with UCX and UCX is through with them. */
static void check_over(kv_offer *o)
{
    if (o->conn && !o->left && !o->in_flight && !o->conn->failed)
        end_offer(o->conn->link, o, ST_OK, "");
}

void kv_offer_rows_sent(kv_offer *o)
{
    o->in_flight--;
    o->last_sent = st_now_ns();
    check_over(o);
}

/* ---- a fetcher comes ---- */

static void refuse(kv_conn *c, const st_transfer_id *id, st_status status, const char *text)
{
    kv_conn_send_end(c, id, false, status, text);
}

/* Takes named, the block ids of w. */
static void attach(st_kv_link *l, kv_offer *o, kv_conn *c, const kv_want *w, int32_t *named)
{
    char text[KV_WHY_MAX];
    int32_t need = kv_blocks_of(l->o.store, w->n_tokens);
    if (o->conn) {
        refuse(c, &w->id, ST_EINVAL, "these KV rows are being fetched already");
    } else if (w->n_tokens > o->n_tokens) {
        snprintf(text, sizeof text,
                 "%" PRId32 " tokens are wanted, the prompt offered has %" PRId32, w->n_tokens,
                 o->n_tokens);
        refuse(c, &w->id, ST_EINVAL, text);
    } else if (w->n_blocks && (w->n_blocks < need || w->n_blocks > o->n_table)) {
        snprintf(text, sizeof text,
                 "%" PRId32 " block ids are named for %" PRId32 " tokens; expected %" PRId32
                 " to %" PRId32,
                 w->n_blocks, w->n_tokens, need, o->n_table);
        refuse(c, &w->id, ST_EINVAL, text);
    } else {
        o->named = named;
        o->n_named = w->n_blocks;
        named = NULL;
        o->conn = c;
        o->from = w->from;
        o->to = w->n_tokens;
        o->left = (uint64_t)l->o.store->n_layers * (uint64_t)(o->to - o->from);
        o->last_sent = st_now_ns();
        check_over(o);
        queue(o);
    }
    free(named);
}

/* Keeps a WANT whose offer is not there yet; takes named. */
static void wait_for_offer(st_kv_link *l, kv_conn *c, const kv_want *w, int32_t *named)
{
    for (const kv_wait *x = l->waits; x; x = x->next)
        if (!memcmp(&x->want.id, &w->id, sizeof w->id)) {
            refuse(c, &w->id, ST_EINVAL, "these KV rows are being waited for already");
            free(named);
            return;
        }
    kv_wait *x = l->n_waits < l->o.max_offers ? calloc(1, sizeof *x) : NULL;
    if (!x) {
        refuse(c, &w->id, ST_EFULL, "too many fetches wait for their prompts here");
        free(named);
        return;
    }
    uint64_t wait = (uint64_t)w->wait_ms * 1000000u;
    x->conn = c;
    x->want = *w;
    x->named = named;
    x->deadline = st_now_ns() + (wait < WAIT_MAX_NS ? wait : WAIT_MAX_NS);
    x->next = l->waits;
    l->waits = x;
    l->n_waits++;
    kv_link_due(l, x->deadline);
}

static const kv_past *find_past(const st_kv_link *l, const st_transfer_id *id)
{
    for (size_t i = 0; i < KV_PAST; i++)
        if (l->past[i].used && !memcmp(&l->past[i].id, id, sizeof *id))
            return &l->past[i];
    return NULL;
}

static int32_t *take(int32_t **p)
{
    int32_t *taken = *p;
    *p = NULL;
    return taken;
}

void kv_offer_want(st_kv_link *l, kv_conn *c, const kv_want *w, const unsigned char *blocks)
{
    kv_offer *o = (kv_offer *)kv_link_find(l, l->offer_map, &w->id);
    const kv_past *past = find_past(l, &w->id);
    int32_t *named = NULL;
    if (w->n_blocks && !(named = malloc((size_t)w->n_blocks * sizeof *named))) {
        refuse(c, &w->id, ST_ENOMEM, "out of memory");
        return;
    }
    if (w->n_blocks)
        kv_blocks_decode(blocks, w->n_blocks, named);
    bool here = o && o->known;
    if (l->ending)
        refuse(c, &w->id, ST_ECANCELLED, "the engine shuts down");
    else if (here && !o->end.ended)
        attach(l, o, c, w, take(&named));
    else if (here)
        refuse(c, &w->id, o->end.err.status == ST_OK ? ST_ENOTFOUND : o->end.err.status,
               o->end.err.status == ST_OK ? FETCHED : o->end.err.text);
    else if (o) /* this thread was away while the prompt was offered, computed and asked for */
        wait_for_offer(l, c, w, take(&named));
    else if (past)
        refuse(c, &w->id, past->status, past->text);
    else if (w->n_blocks)
        refuse(c, &w->id, ST_ENOTFOUND, "no KV rows are offered under this id");
    else
        wait_for_offer(l, c, w, NULL);
    free(named);
}

/* Takes a wait out of the list. */
static void drop_wait(st_kv_link *l, kv_wait **at)
{
    kv_wait *x = *at;
    *at = x->next;
    l->n_waits--;
    free(x->named);
    free(x);
}

void kv_offer_stopped(kv_conn *c, const kv_end *e)
{
    st_kv_link *l = c->link;
    kv_offer *o = find(l, &e->id);
    if (o && o->conn == c && !o->end.ended)
        kv_end_mark(l, &o->end, e->status, "KV transfer with %s: %s", c->name, e->text);
    for (kv_wait **at = &l->waits; *at; at = &(*at)->next)
        if ((*at)->conn == c && !memcmp(&(*at)->want.id, &e->id, sizeof e->id)) {
            drop_wait(l, at);
            return;
        }
}

void kv_offers_conn_failed(st_kv_link *l, kv_conn *c)
{
    c->sending = NULL;
    for (kv_offer *o = l->offers; o; o = o->next)
        if (o->conn == c) {
            o->queued = false;
            kv_end_mark(l, &o->end, c->why.status, "%s", c->why.text);
            o->conn = NULL;
        }
    for (kv_wait **at = &l->waits; *at;)
        if ((*at)->conn == c)
            drop_wait(l, at);
        else
            at = &(*at)->next;
}

/* ---- the owner ---- */

void kv_offer_add(st_kv_link *l, kv_offer *o)
{
    o->known = true;
    o->next = l->offers;
    if (o->next)
        o->next->prev = o;
    l->offers = o;
    for (kv_wait **at = &l->waits; *at; at = &(*at)->next)
        if (!memcmp(&(*at)->want.id, &o->node.id, sizeof o->node.id)) {
            attach(l, o, (*at)->conn, &(*at)->want, take(&(*at)->named));
            drop_wait(l, at);
            return;
        }
}

/* NULL, or what is wrong with rows that the owner names. */
static const char *rows_wrong(const st_kv_link *l, const kv_offer *o, const kv_order *r)
{
    const st_kv_store *s = l->o.store;
    const kv_ready *x = &r->rows;
    if (x->layer < 0 || x->n_layers < 1 || x->layer > s->n_layers - x->n_layers)
        return "rows of a layer that does not exist are offered";
    if (x->from < 0 || x->count < 1 || x->from > o->n_tokens - x->count)
        return "rows beyond the prompt are offered";
    for (int32_t i = 0; i < r->n_blocks; i++) {
        int32_t known = o->table[x->from / s->block_size + i];
        if (r->blocks[i] < 0 || r->blocks[i] >= s->n_blocks)
            return "rows in a block that does not exist are offered";
        if (known >= 0 && known != r->blocks[i])
            return "the prompt's blocks are others than before";
    }
    return NULL;
}

static bool keep_rows(kv_offer *o, const kv_ready *rows)
{
    if (o->n_ready == o->cap_ready) {
        size_t cap = o->cap_ready ? 2 * o->cap_ready : 4;
        kv_ready *p = realloc(o->ready, cap * sizeof *p);
        if (!p)
            return false;
        o->ready = p;
        o->cap_ready = cap;
    }
    o->ready[o->n_ready++] = *rows;
    return true;
}

void kv_offer_take_rows(st_kv_link *l, const kv_order *r)
{
    kv_offer *o = find(l, &r->id);
    if (!o || o->end.ended)
        return;
    const char *wrong = rows_wrong(l, o, r);
    if (wrong) {
        end_offer(l, o, ST_EINVAL, wrong);
        return;
    }
    for (int32_t i = 0; i < r->n_blocks; i++)
        o->table[r->rows.from / l->o.store->block_size + i] = r->blocks[i];
    for (int32_t i = 0; i < r->rows.n_layers; i++)
        if (!kv_coverage_take(&o->offered, r->rows.layer + i, r->rows.from, r->rows.count)) {
            end_offer(l, o, ST_EINVAL, "the same rows are offered twice");
            return;
        }
    if (!keep_rows(o, &r->rows)) {
        end_offer(l, o, ST_ENOMEM, "out of memory");
        return;
    }
    if (!o->offered.missing) {
        o->lease = st_now_ns() + l->o.lease_ns;
        kv_link_due(l, o->lease);
    }
    queue(o);
}

void kv_offers_cancel(st_kv_link *l, bool all)
{
    for (kv_offer *o = l->offers; o; o = o->next) {
        char why[KV_WHY_MAX];
        pthread_mutex_lock(&l->lock);
        bool cancel = o->node.cancel, lost = o->node.lost;
        memcpy(why, o->node.why, sizeof why);
        pthread_mutex_unlock(&l->lock);
        if (cancel)
            end_offer(l, o, ST_ECANCELLED, why);
        else if (lost)
            end_offer(l, o, ST_ENOMEM, "out of memory");
        else if (all)
            end_offer(l, o, ST_ECANCELLED, "the engine that offers the KV rows shuts down");
    }
    for (kv_wait **at = &l->waits; all && *at;) {
        refuse((*at)->conn, &(*at)->want.id, ST_ECANCELLED, "the engine shuts down");
        drop_wait(l, at);
    }
}

static void remember(st_kv_link *l, const kv_offer *o)
{
    kv_past *p = &l->past[l->past_at++ % KV_PAST];
    *p = (kv_past){.used = true, .id = o->node.id, .status = o->end.err.status};
    if (p->status == ST_OK)
        p->status = ST_ENOTFOUND;
    snprintf(p->text, sizeof p->text, "%.*s", (int)sizeof p->text - 1,
             o->end.err.status == ST_OK ? FETCHED : o->end.err.text);
}

void kv_offer_free(kv_offer *o)
{
    if (!o)
        return;
    kv_coverage_free(&o->offered);
    free(o->table);
    free(o->ready);
    free(o->named);
    free(o);
}

/* Removes it from wherever it is and calls back. */
static void offer_over(st_kv_link *l, kv_offer *o)
{
    if (o->next)
        o->next->prev = o->prev;
    *(o->prev ? &o->prev->next : &l->offers) = o->next;
    remember(l, o);
    kv_link_forget(l, l->offer_map, &o->node);
    st_status st = o->end.err.status;
    if (st != ST_OK && st != ST_ECANCELLED)
        kv_link_count(l, st == ST_EDEADLINE && !o->conn ? &l->stats.expired : &l->stats.failed, 1);
    st_transfer_id id = o->node.id;
    o->over(o->user, &id, st, &o->end.err);
    kv_offer_free(o);
}

/* It may stand in its connection's queue. */
static void leave_queue(kv_offer *o)
{
    if (!o->queued)
        return;
    kv_conn *c = o->conn;
    kv_offer **at = &c->sending;
    while (*at != o)
        at = &(*at)->next_sending;
    *at = o->next_sending;
    if (!*at)
        c->sending_tail = at;
    o->queued = false;
}

void kv_offers_settle(st_kv_link *l)
{
    for (kv_offer *o = l->offers, *next; o; o = next) {
        next = o->next;
        if (!o->end.ended)
            continue;
        leave_queue(o);
        if (!o->in_flight)
            offer_over(l, o);
        else
            kv_link_due(l, o->end.since + GRACE_NS);
    }
}

uint64_t kv_offers_scan(st_kv_link *l, uint64_t now)
{
    uint64_t next = KV_NEVER;
    for (kv_offer *o = l->offers; o; o = o->next) {
        uint64_t due = o->conn ? KV_NEVER : o->lease;
        if (o->conn && o->in_flight)
            due = o->end.ended ? o->end.since + GRACE_NS : o->last_sent + l->o.lease_ns;
        if (now < due) {
            next = due < next ? due : next;
        } else if (o->conn) {
            kv_conn_fail(o->conn, ST_EDEADLINE, "it takes no KV rows any more");
        } else if (!o->end.ended) {
            kv_end_mark(l, &o->end, ST_EDEADLINE,
                        "the KV rows were offered for %.3g s and nobody fetched them",
                        (double)l->o.lease_ns / 1e9);
        }
    }
    for (kv_wait **at = &l->waits; *at;) {
        if (now < (*at)->deadline) {
            next = (*at)->deadline < next ? (*at)->deadline : next;
            at = &(*at)->next;
            continue;
        }
        refuse((*at)->conn, &(*at)->want.id, ST_EDEADLINE, "the prompt's KV rows did not come");
        drop_wait(l, at);
    }
    return next;
}
