/* The decode side of a KV link: fetches, and the rows that come in (see kv_link_internal.h).
 *
 * A fetch is over when each row of [from, to) of each layer was received once. Rows go straight
 * into the blocks: copied from the message, or written there by UCX (rendezvous). */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "transfer/kv_link_internal.h"

/* How long rows of an ended fetch may still be on their way before its connection is closed. */
#define GRACE_NS 1000000000u

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

/* A receive that UCX carries on by itself. */
typedef struct kv_receive {
    kv_conn *conn;
    kv_fetch *fetch;
    int32_t count;
    kv_piece pieces[];
} kv_receive;

static void receive_over(kv_receive *r, ucs_status_t status)
{
    kv_conn *c = r->conn;
    c->in_flight--;
    r->fetch->in_flight--;
    c->link->dirty = true;
    if (status != UCS_OK)
        kv_conn_fail(c, ST_EIO, "%s", c->link->ucx->ucs_status_string(status));
    else
        rows_in_place(c->link, r->fetch, r->count);
    free(r);
}

static void on_received(void *request, ucs_status_t status, size_t len, void *user)
{
    kv_receive *r = user;
    const st_ucx *ucx = r->conn->link->ucx;
    receive_over(r, status);
    ucx->ucp_request_free(request);
}

/* Lets UCX write the rows into the blocks. */
static void receive(kv_conn *c, kv_receive *r, void *descriptor, size_t n, size_t len)
{
    ucp_request_param_t p = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                             UCP_OP_ATTR_FIELD_USER_DATA |
                                             UCP_OP_ATTR_FIELD_DATATYPE,
                             .cb.recv_am = on_received,
                             .user_data = r,
                             .datatype = n == 1 ? ucp_dt_make_contig(1) : ucp_dt_make_iov()};
    c->in_flight++;
    r->fetch->in_flight++;
    ucs_status_ptr_t s = c->link->ucx->ucp_am_recv_data_nbx(
        c->link->worker, descriptor, n == 1 ? (void *)r->pieces[0].data : (void *)r->pieces,
        n == 1 ? len : n, &p);
    if (!UCS_PTR_IS_PTR(s))
        receive_over(r, UCS_PTR_RAW_STATUS(s));
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

ucs_status_t kv_fetch_rows(kv_conn *c, const kv_rows *m, void *data, size_t len, bool rndv)
{
    st_kv_link *l = c->link;
    kv_fetch *f = (kv_fetch *)kv_link_find(l, l->fetch_map, &m->id);
    if (!f || !f->known || f->conn != c || f->end.ended)
        return UCS_OK; /* rows may still come after a cancel */
    st_error err;
    if (check_rows(l, f, m, len, &err) != ST_OK) {
        kv_conn_fail(c, ST_EFORMAT, "%s", err.text);
        return UCS_OK;
    }
    if (!kv_coverage_take(&f->seen, m->layer, m->first, m->count)) {
        kv_conn_fail(c, ST_EFORMAT, "rows of layer %" PRId32 ", tokens from %" PRId32 " came twice",
                     m->layer, m->first);
        return UCS_OK;
    }
    kv_receive *r = malloc(sizeof *r + kv_piece_max(l->o.store, m->count) * sizeof r->pieces[0]);
    if (!r) {
        end_fetch(l, f, ST_ENOMEM, "out of memory");
        return UCS_OK;
    }
    *r = (kv_receive){.conn = c, .fetch = f, .count = m->count};
    size_t n = kv_pieces(l->o.store, m->layer, f->table, m->first, m->count, r->pieces);
    if (rndv) {
        receive(c, r, data, n, len);
        return UCS_OK;
    }
    const unsigned char *at = data;
    for (size_t i = 0; i < n; i++) {
        memcpy(r->pieces[i].data, at, r->pieces[i].bytes);
        at += r->pieces[i].bytes;
    }
    free(r);
    rows_in_place(l, f, m->count);
    return UCS_OK;
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
        if (f->end.ended && !f->in_flight)
            fetch_over(l, f);
        else if (f->end.ended)
            kv_link_due(l, f->end.since + GRACE_NS);
    }
}

uint64_t kv_fetches_scan(st_kv_link *l, uint64_t now)
{
    uint64_t next = KV_NEVER;
    for (kv_fetch *f = l->fetches; f; f = f->next) {
        uint64_t due = !f->end.ended ? f->deadline : f->conn ? f->end.since + GRACE_NS : KV_NEVER;
        if (now < due) {
            next = due < next ? due : next;
        } else if (f->end.ended) {
            kv_conn_fail(f->conn, ST_EDEADLINE, "it sends no KV rows any more");
        } else {
            char text[160];
            (void)snprintf(text, sizeof text,
                           "KV transfer with %s: %" PRIu64 " rows did not come in time", f->peer,
                           f->missing);
            end_fetch(l, f, ST_EDEADLINE, text);
        }
    }
    return next;
}
