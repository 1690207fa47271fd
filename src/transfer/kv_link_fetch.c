/* The decode side of a KV link: fetches, and the rows that come in (see kv_link_internal.h).
 *
 * A fetch is over when each row of [from, to) of each layer was received once. Rows are
 * copied into the blocks when all of their message is there, so nothing writes blocks of a fetch
 * that is over. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "transfer/kv_link_internal.h"

static void end_fetch(st_kv_link *l, kv_fetch *f, st_status status, const char *text)
{
    if (f->end.ended)
        return;
    kv_end_mark(l, &f->end, status, "%s", text);
    if (f->conn && f->want_sent && status != ST_OK)
        kv_conn_send_end(f->conn, &f->node.id, true, status, text);
}

static void check_done(st_kv_link *l, kv_fetch *f)
{
    if (!f->missing)
        end_fetch(l, f, ST_OK, "");
}

static void send_want(st_kv_link *l, kv_fetch *f)
{
    uint64_t now = st_now_ns(), left = f->deadline > now ? (f->deadline - now) / 1000000u : 0;
    kv_want w = {.id = f->node.id,
                 .from = f->from,
                 .n_tokens = f->to,
                 .wait_ms = left < UINT32_MAX ? (uint32_t)left : UINT32_MAX,
                 .n_blocks = f->n_named};
    unsigned char header[KV_HEADER_MAX];
    f->want_sent = true;
    kv_conn_send(f->conn, KV_MSG_WANT, header, kv_want_encode(&w, header), f->named, f->n_named);
    check_done(l, f);
}

static void connect_fetch(st_kv_link *l, kv_fetch *f)
{
    st_error err;
    f->conn = kv_conn_to(l, &f->addr, &f->reused, &err);
    if (!f->conn)
        end_fetch(l, f, err.status, err.text);
    else if (f->conn->greeted)
        send_want(l, f);
}

void kv_fetch_add(st_kv_link *l, kv_fetch *f)
{
    f->known = true;
    f->next = l->fetches;
    if (f->next)
        f->next->prev = f;
    l->fetches = f;
    kv_link_due(l, f->deadline);
    connect_fetch(l, f);
}

void kv_fetches_greeted(st_kv_link *l, kv_conn *c)
{
    for (kv_fetch *f = l->fetches; f; f = f->next)
        if (f->conn == c && !f->want_sent && !f->end.ended)
            send_want(l, f);
}

/* ---- rows ---- */

static void rows_in_place(st_kv_link *l, kv_fetch *f, int32_t count)
{
    f->missing -= (uint64_t)count;
    kv_link_count(l, &l->stats.rows_bytes_received, (size_t)count * l->o.store->row_bytes);
    check_done(l, f);
}

static st_status check_rows(const st_kv_link *l, const kv_fetch *f, const kv_rows *m, size_t len,
                            st_error *err)
{
    const st_kv_store *s = l->o.store;
    if (m->layer >= s->n_layers)
        return st_fail(err, ST_EFORMAT, "rows of layer %" PRId32 "; there are %" PRId32, m->layer,
                       s->n_layers);
    if (m->first < f->from || m->first > f->to - m->count)
        return st_fail(err, ST_EFORMAT,
                       "rows of tokens [%" PRId32 ", %" PRId32 "); wanted are [%" PRId32
                       ", %" PRId32 ")",
                       m->first, m->first + m->count, f->from, f->to);
    if (len / s->row_bytes != (size_t)m->count || len % s->row_bytes)
        return st_fail(err, ST_EFORMAT, "%" PRId32 " rows in %zu bytes; expected %zu each",
                       m->count, len, s->row_bytes);
    return ST_OK;
}

void kv_fetch_rows(kv_conn *c, const kv_rows *m, const unsigned char *data, size_t len)
{
    st_kv_link *l = c->link;
    kv_fetch *f = (kv_fetch *)kv_link_find(l, l->fetch_map, &m->id);
    if (!f || !f->known || f->conn != c || f->end.ended)
        return; /* rows may still come after a cancel */
    st_error err;
    if (check_rows(l, f, m, len, &err) != ST_OK) {
        kv_conn_fail(c, ST_EFORMAT, "%s", err.text);
        return;
    }
    if (!kv_coverage_take(&f->seen, m->layer, m->first, m->count)) {
        kv_conn_fail(c, ST_EFORMAT, "rows of layer %" PRId32 ", tokens from %" PRId32 " came twice",
                     m->layer, m->first);
        return;
    }
    kv_piece *pieces = malloc(kv_piece_max(l->o.store, m->count) * sizeof *pieces);
    if (!pieces) {
        end_fetch(l, f, ST_ENOMEM, "out of memory");
        return;
    }
    size_t n = kv_pieces(l->o.store, m->layer, f->table, m->first, m->count, pieces);
    for (size_t i = 0; i < n; i++) {
        memcpy(pieces[i].data, data, pieces[i].bytes);
        data += pieces[i].bytes;
    }
    free(pieces);
    rows_in_place(l, f, m->count);
}

/* ---- ends ---- */

void kv_fetch_stopped(kv_conn *c, const kv_end *e)
{
    kv_fetch *f = (kv_fetch *)kv_link_find(c->link, c->link->fetch_map, &e->id);
    if (f && f->known && f->conn == c)
        kv_end_mark(c->link, &f->end, e->status, "KV transfer with %s: %s", c->name, e->text);
}

void kv_fetches_conn_failed(st_kv_link *l, kv_conn *c)
{
    for (kv_fetch *f = l->fetches; f; f = f->next) {
        if (f->conn != c)
            continue;
        f->conn = NULL;
        uint64_t all = (uint64_t)l->o.store->n_layers * (uint64_t)(f->to - f->from);
        /* A connection from before may be that of an engine which has restarted since. */
        if (f->reused && f->seen.missing == all && !f->end.ended) {
            f->want_sent = false;
            connect_fetch(l, f);
        } else {
            kv_end_mark(l, &f->end, c->why.status, "%s", c->why.text);
        }
    }
}

void kv_fetches_cancel(st_kv_link *l, bool all)
{
    for (kv_fetch *f = l->fetches; f; f = f->next) {
        pthread_mutex_lock(&l->lock);
        bool cancel = f->node.cancel;
        pthread_mutex_unlock(&l->lock);
        if (cancel || all)
            end_fetch(l, f, ST_ECANCELLED,
                      cancel ? "the fetch was cancelled" : "the engine that fetches shuts down");
    }
}

void kv_fetch_free(kv_fetch *f)
{
    if (!f)
        return;
    kv_coverage_free(&f->seen);
    free(f->table);
    free(f->named);
    free(f);
}

static void fetch_over(st_kv_link *l, kv_fetch *f)
{
    if (f->next)
        f->next->prev = f->prev;
    *(f->prev ? &f->prev->next : &l->fetches) = f->next;
    kv_link_forget(l, l->fetch_map, &f->node);
    st_status st = f->end.err.status;
    if (st != ST_OK && st != ST_ECANCELLED)
        kv_link_count(l, &l->stats.failed, 1);
    st_transfer_id id = f->node.id;
    f->done(f->user, &id, st, &f->end.err);
    kv_fetch_free(f);
}

void kv_fetches_settle(st_kv_link *l)
{
    for (kv_fetch *f = l->fetches, *next; f; f = next) {
        next = f->next;
        if (f->end.ended)
            fetch_over(l, f);
    }
}

uint64_t kv_fetches_scan(st_kv_link *l, uint64_t now)
{
    uint64_t next = KV_NEVER;
    for (kv_fetch *f = l->fetches; f; f = f->next) {
        if (f->end.ended)
            continue;
        if (now < f->deadline) {
            next = f->deadline < next ? f->deadline : next;
            continue;
        }
        char text[160];
        (void)snprintf(text, sizeof text,
                       "KV transfer with %s: %" PRIu64 " rows did not come in time", f->peer,
                       f->missing);
        end_fetch(l, f, ST_EDEADLINE, text);
    }
    return next;
}
