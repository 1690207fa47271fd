/* Connections of a KV link after HELLO: UCX endpoints, the messages of offers and fetches over
 * them, and what is done when one fails (see kv_link_internal.h). */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "transfer/kv_link_internal.h"

/* How long a message may need to leave at the end of a connection. */
#define CLOSE_NS 2000000000u

/* A message on its way. */
typedef struct kv_send {
    kv_conn *conn;
    kv_offer *offer; /* whose rows; NULL for other messages */
    size_t bytes;
    void *payload; /* owned */
    unsigned char header[KV_TOKEN_BYTES + KV_HEADER_MAX];
    ucp_dt_iov_t iov[];
} kv_send;

void kv_conn_fail(kv_conn *c, st_status status, const char *fmt, ...)
{
    if (c->failed)
        return;
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    c->failed = true;
    c->link->dirty = true;
    (void)st_fail(&c->why, status, "KV transfer with %s: %s", c->name, text);
}

static void on_error(void *arg, ucp_ep_h ep, ucs_status_t status)
{
    kv_conn *c = arg;
    kv_conn_fail(c, ST_EIO, "%s", c->link->ucx->ucs_status_string(status));
}

static void send_over(kv_send *s, ucs_status_t status)
{
    kv_conn *c = s->conn;
    c->in_flight--;
    c->bytes_in_flight -= s->bytes;
    if (status != UCS_OK)
        kv_conn_fail(c, ST_EIO, "%s", c->link->ucx->ucs_status_string(status));
    if (s->offer) {
        if (status == UCS_OK)
            kv_link_count(c->link, &c->link->stats.rows_bytes_sent, s->bytes);
        kv_offer_rows_sent(s->offer);
    }
    c->link->dirty = true;
    free(s->payload);
    free(s);
}

static void on_sent(void *request, ucs_status_t status, void *user)
{
    kv_send *s = user;
    const st_ucx *ucx = s->conn->link->ucx;
    send_over(s, status);
    ucx->ucp_request_free(request);
}

/* Takes s. */
static void send_message(kv_send *s, unsigned kind, size_t header_len, const void *buffer,
                         size_t count, ucp_datatype_t type, unsigned flags)
{
    kv_conn *c = s->conn;
    ucp_request_param_t p = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                             UCP_OP_ATTR_FIELD_USER_DATA |
                                             UCP_OP_ATTR_FIELD_DATATYPE | UCP_OP_ATTR_FIELD_FLAGS,
                             .cb.send = on_sent,
                             .user_data = s,
                             .datatype = type,
                             .flags = flags};
    /* As it is: only the one who chose it reads it. */
    memcpy(s->header, &c->their_token, KV_TOKEN_BYTES);
    header_len += KV_TOKEN_BYTES;
    c->in_flight++;
    c->bytes_in_flight += s->bytes;
    ucs_status_ptr_t r =
        c->link->ucx->ucp_am_send_nbx(c->ep, kind, s->header, header_len, buffer, count, &p);
    if (!UCS_PTR_IS_PTR(r))
        send_over(s, UCS_PTR_RAW_STATUS(r));
}

void kv_conn_send(kv_conn *c, unsigned kind, const unsigned char *header, size_t len,
                  const int32_t *blocks, int32_t n_blocks)
{
    if (c->failed || c->closing || !c->greeted)
        return;
    kv_send *s = calloc(1, sizeof *s);
    size_t bytes = (size_t)n_blocks * 4;
    if (!s || (bytes && !(s->payload = malloc(bytes)))) {
        free(s);
        kv_conn_fail(c, ST_ENOMEM, "out of memory");
        return;
    }
    s->conn = c;
    memcpy(s->header + KV_TOKEN_BYTES, header, len);
    if (bytes)
        kv_blocks_encode(blocks, n_blocks, s->payload);
    send_message(s, kind, len, s->payload, bytes, ucp_dt_make_contig(1), UCP_AM_SEND_FLAG_EAGER);
}

void kv_conn_send_end(kv_conn *c, const st_transfer_id *id, bool from_fetcher, st_status status,
                      const char *text)
{
    kv_end e = {.id = *id, .from_fetcher = from_fetcher, .status = status};
    snprintf(e.text, sizeof e.text, "%.*s", KV_TEXT_MAX, text);
    unsigned char header[KV_HEADER_MAX];
    kv_conn_send(c, KV_MSG_END, header, kv_end_encode(&e, header), NULL, 0);
}

void kv_conn_send_rows(kv_conn *c, kv_offer *o, const kv_rows *rows)
{
    const st_kv_store *store = c->link->o.store;
    size_t max = kv_piece_max(store, rows->count);
    kv_send *s = calloc(1, sizeof *s + max * sizeof *s->iov);
    if (!s) {
        kv_conn_fail(c, ST_ENOMEM, "out of memory");
        return;
    }
    s->conn = c;
    s->offer = o;
    s->bytes = (size_t)rows->count * store->row_bytes;
    _Static_assert(sizeof(kv_piece) == sizeof(ucp_dt_iov_t) &&
                       offsetof(kv_piece, bytes) == offsetof(ucp_dt_iov_t, length),
                   "pieces are UCX's vectors");
    size_t n = kv_pieces(store, rows->layer, o->table, rows->first, rows->count,
                         (kv_piece *)(void *)s->iov);
    o->in_flight++;
    size_t len = kv_rows_encode(rows, s->header + KV_TOKEN_BYTES);
    /* One piece in memory travels without being gathered. */
    if (n == 1)
        send_message(s, KV_MSG_ROWS, len, s->iov[0].buffer, s->bytes, ucp_dt_make_contig(1), 0);
    else
        send_message(s, KV_MSG_ROWS, len, s->iov, n, ucp_dt_make_iov(), 0);
}

ucs_status_t kv_conn_open(kv_conn *c, const unsigned char *address)
{
    ucp_ep_params_t p = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS |
                                       UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                                       UCP_EP_PARAM_FIELD_ERR_HANDLER,
                         .address = (const ucp_address_t *)address,
                         .err_mode = UCP_ERR_HANDLING_MODE_PEER,
                         .err_handler = {.cb = on_error, .arg = c}};
    return c->link->ucx->ucp_ep_create(c->link->worker, &p, &c->ep);
}

/* ---- messages ---- */

static kv_conn *conn_of(st_kv_link *l, const unsigned char *token)
{
    for (kv_conn *c = l->conns; c; c = c->next)
        if (!memcmp(&c->my_token, token, KV_TOKEN_BYTES))
            return c->failed || c->closing || !c->greeted ? NULL : c;
    return NULL;
}

static ucs_status_t on_message(st_kv_link *l, unsigned kind, const unsigned char *header,
                               size_t len, void *data, size_t data_len,
                               const ucp_am_recv_param_t *param)
{
    kv_conn *c = len >= KV_TOKEN_BYTES ? conn_of(l, header) : NULL;
    if (!c)
        return UCS_OK;
    header += KV_TOKEN_BYTES;
    len -= KV_TOKEN_BYTES;
    l->dirty = true;
    bool rndv = param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV;
    st_error err;
    st_status st = ST_OK;
    union {
        kv_want want;
        kv_rows rows;
        kv_end end;
    } m;
    if (rndv && kind != KV_MSG_ROWS)
        st = st_fail(&err, ST_EFORMAT, "message %u by rendezvous", kind);
    else if (kind == KV_MSG_WANT)
        st = kv_want_decode(header, len, data_len, &m.want, &err);
    else if (kind == KV_MSG_ROWS)
        st = kv_rows_decode(header, len, data_len, &m.rows, &err);
    else
        st = kv_end_decode(header, len, data_len, &m.end, &err);
    if (st != ST_OK)
        kv_conn_fail(c, st, "%s", err.text);
    else if (kind == KV_MSG_WANT)
        kv_offer_want(l, c, &m.want, data);
    else if (kind == KV_MSG_ROWS)
        return kv_fetch_rows(c, &m.rows, data, data_len, rndv);
    else if (m.end.from_fetcher)
        kv_offer_stopped(c, &m.end);
    else
        kv_fetch_stopped(c, &m.end);
    return UCS_OK;
}

/* UCX tells a handler only its own argument, not the id. */
#define ON(name, kind)                                                                             \
    static ucs_status_t name(void *arg, const void *header, size_t len, void *data,                \
                             size_t data_len, const ucp_am_recv_param_t *param)                    \
    {                                                                                              \
        return on_message(arg, kind, header, len, data, data_len, param);                          \
    }
ON(on_want, KV_MSG_WANT)
ON(on_rows, KV_MSG_ROWS)
ON(on_end, KV_MSG_END)
#undef ON

static ucs_status_t set_handlers(st_kv_link *l)
{
    static const struct {
        unsigned id;
        ucp_am_recv_callback_t cb;
    } handlers[] = {{KV_MSG_WANT, on_want}, {KV_MSG_ROWS, on_rows}, {KV_MSG_END, on_end}};
    for (size_t i = 0; i < sizeof handlers / sizeof *handlers; i++) {
        ucp_am_handler_param_t p = {
            .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                          UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
            .id = handlers[i].id,
            .flags = UCP_AM_FLAG_WHOLE_MSG,
            .cb = handlers[i].cb,
            .arg = l};
        ucs_status_t s = l->ucx->ucp_worker_set_am_recv_handler(l->worker, &p);
        if (s != UCS_OK)
            return s;
    }
    return UCS_OK;
}

st_status kv_conns_start(st_kv_link *l, st_error *err)
{
    ucs_status_t s = set_handlers(l);
    if (s == UCS_OK)
        s = l->ucx->ucp_worker_get_address(l->worker, &l->address, &l->address_len);
    if (s != UCS_OK)
        return st_fail(err, ST_EUNSUPPORTED, "KV transfer: UCX cannot be used here: %s",
                       l->ucx->ucs_status_string(s));
    if (l->address_len > KV_ADDRESS_MAX)
        return st_fail(err, ST_EUNSUPPORTED,
                       "KV transfer: UCX has an address of %zu bytes; "
                       "expected at most %d",
                       l->address_len, KV_ADDRESS_MAX);
    return ST_OK;
}

/* ---- ending ---- */

static void close_conn(kv_conn *c)
{
    ucp_request_param_t p = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
                             .flags = UCP_EP_CLOSE_FLAG_FORCE};
    c->closing = true;
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    if (!c->ep)
        return;
    ucs_status_ptr_t r = c->link->ucx->ucp_ep_close_nbx(c->ep, &p);
    c->close_request = UCS_PTR_IS_PTR(r) ? r : NULL;
}

/* True when UCX has let go of it. */
static bool conn_closed(kv_conn *c)
{
    const st_ucx *ucx = c->link->ucx;
    if (c->close_request && ucx->ucp_request_check_status(c->close_request) != UCS_INPROGRESS) {
        ucx->ucp_request_free(c->close_request);
        c->close_request = NULL;
    }
    return !c->close_request && !c->in_flight;
}

static void conn_free(kv_conn *c)
{
    free(c->in);
    free(c->out);
    free(c);
}

void kv_conns_drop(st_kv_link *l)
{
    for (kv_offer *o = l->offers; o; o = o->next) {
        o->conn = NULL;
        o->queued = false;
    }
    for (kv_fetch *f = l->fetches; f; f = f->next)
        f->conn = NULL;
    for (kv_conn *c = l->conns, *next; c; c = next) {
        next = c->next;
        conn_free(c);
    }
    l->conns = NULL;
}

void kv_conns_settle(st_kv_link *l)
{
    for (kv_conn **at = &l->conns; *at;) {
        kv_conn *c = *at;
        if (c->failed && !c->closing) {
            kv_offers_conn_failed(l, c);
            kv_fetches_conn_failed(l, c);
            close_conn(c);
        }
        if (c->closing && conn_closed(c)) {
            /* A connection of kv_fetches_conn_failed may have come in front of it. */
            while (*at != c)
                at = &(*at)->next;
            *at = c->next;
            l->n_accepted -= !c->outgoing;
            conn_free(c);
        } else {
            at = &c->next;
        }
    }
}

uint64_t kv_conns_scan(st_kv_link *l, uint64_t now)
{
    uint64_t next = KV_NEVER;
    for (kv_conn *c = l->conns; c; c = c->next) {
        if (c->closing) { /* nothing tells when UCX has let go: look again */
            l->dirty = true;
            next = now;
        } else if (!c->failed && now >= c->deadline) {
            if (c->greeted)
                kv_conn_fail(c, ST_EIO, "the peer is gone");
            else
                kv_conn_fail(c, ST_EDEADLINE, "no answer in %.3g s",
                             (double)l->o.connect_timeout_ns / 1e9);
        } else if (c->deadline < next) {
            next = c->deadline;
        }
    }
    return next;
}

/* True while something said may not have left yet. */
static bool flushing(st_kv_link *l)
{
    bool any = false;
    for (kv_conn *c = l->conns; c; c = c->next) {
        if (c->close_request && !c->closing &&
            l->ucx->ucp_request_check_status(c->close_request) != UCS_INPROGRESS) {
            l->ucx->ucp_request_free(c->close_request);
            c->close_request = NULL;
        }
        any |= !c->failed && c->close_request;
    }
    return any;
}

void kv_conns_close(st_kv_link *l, uint64_t until)
{
    static const ucp_request_param_t none;
    for (kv_conn *c = l->conns; c; c = c->next)
        if (c->greeted && !c->failed) {
            ucs_status_ptr_t r = l->ucx->ucp_ep_flush_nbx(c->ep, &none);
            c->close_request = UCS_PTR_IS_PTR(r) ? r : NULL;
        }
    while (flushing(l) && st_now_ns() < until)
        (void)l->ucx->ucp_worker_progress(l->worker);
    for (kv_conn *c = l->conns; c; c = c->next) {
        void *flush = c->closing ? NULL : c->close_request;
        if (!c->closing)
            close_conn(c);
        if (flush) /* UCX ends it with the endpoint, and frees it then */
            l->ucx->ucp_request_free(flush);
    }
    while (l->conns && st_now_ns() < until + CLOSE_NS) {
        (void)l->ucx->ucp_worker_progress(l->worker);
        kv_conns_settle(l);
    }
}
