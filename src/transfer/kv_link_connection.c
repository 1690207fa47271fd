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
    unsigned char header[KV_KIND_BYTES + KV_HEADER_MAX];
    ucp_dt_iov_t iov[]; /* the header, then the payload */
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

/* Takes s, whose iov has n parts, the first of which is filled in here. */
static void send_message(kv_send *s, unsigned kind, size_t header_len, size_t n)
{
    kv_conn *c = s->conn;
    ucp_request_param_t p = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                             UCP_OP_ATTR_FIELD_USER_DATA |
                                             UCP_OP_ATTR_FIELD_DATATYPE,
                             .cb.send = on_sent,
                             .user_data = s,
                             .datatype = n == 1 ? ucp_dt_make_contig(1) : ucp_dt_make_iov()};
    header_len += KV_KIND_BYTES;
    s->header[0] = (unsigned char)kind;
    s->iov[0] = (ucp_dt_iov_t){.buffer = s->header, .length = header_len};
    c->in_flight++;
    c->bytes_in_flight += s->bytes;
    /* The token as it is: only the one who chose it reads it. */
    ucs_status_ptr_t r =
        n == 1 ? c->link->ucx->ucp_tag_send_nbx(c->ep, s->header, header_len, c->their_token, &p)
               : c->link->ucx->ucp_tag_send_nbx(c->ep, s->iov, n, c->their_token, &p);
    if (!UCS_PTR_IS_PTR(r))
        send_over(s, UCS_PTR_RAW_STATUS(r));
}

void kv_conn_send(kv_conn *c, unsigned kind, const unsigned char *header, size_t len,
                  const int32_t *blocks, int32_t n_blocks)
{
    if (c->failed || c->closing || !c->greeted)
        return;
    kv_send *s = calloc(1, sizeof *s + 2 * sizeof *s->iov);
    size_t bytes = (size_t)n_blocks * 4;
    if (!s || (bytes && !(s->payload = malloc(bytes)))) {
        free(s);
        kv_conn_fail(c, ST_ENOMEM, "out of memory");
        return;
    }
    s->conn = c;
    memcpy(s->header + KV_KIND_BYTES, header, len);
    if (bytes)
        kv_blocks_encode(blocks, n_blocks, s->payload);
    s->iov[1] = (ucp_dt_iov_t){.buffer = s->payload, .length = bytes};
    send_message(s, kind, len, bytes ? 2 : 1);
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
    kv_send *s = calloc(1, sizeof *s + (1 + max) * sizeof *s->iov);
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
                         (kv_piece *)(void *)(s->iov + 1));
    o->in_flight++;
    send_message(s, KV_MSG_ROWS, kv_rows_encode(rows, s->header + KV_KIND_BYTES), 1 + n);
}

ucs_status_t kv_conn_open(kv_conn *c, const unsigned char *address)
{
    ucp_ep_params_t p = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS |
                                       UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                                       UCP_EP_PARAM_FIELD_ERR_HANDLER,
                         .address = (const ucp_address_t *)address,
                         .err_mode = UCP_ERR_HANDLING_MODE_PEER,
                         .err_handler = {.cb = on_error, .arg = c}};
    return c->link->ucx->ucp_ep_create(c->link->sender, &p, &c->ep);
}

/* ---- messages ---- */

static kv_conn *conn_of(st_kv_link *l, uint64_t token)
{
    for (kv_conn *c = l->conns; c; c = c->next)
        if (c->my_token == token)
            return c->failed || c->closing || !c->greeted ? NULL : c;
    return NULL;
}

static st_status handle_want(kv_conn *c, const unsigned char *p, size_t len, st_error *err)
{
    kv_want m;
    size_t n = len < KV_WANT_BYTES ? len : KV_WANT_BYTES;
    st_status st = kv_want_decode(p, n, len - n, &m, err);
    if (st == ST_OK)
        kv_offer_want(c->link, c, &m, p + n);
    return st;
}

static st_status handle_rows(kv_conn *c, const unsigned char *p, size_t len, st_error *err)
{
    kv_rows m;
    size_t n = len < KV_ROWS_BYTES ? len : KV_ROWS_BYTES;
    st_status st = kv_rows_decode(p, n, len - n, &m, err);
    if (st == ST_OK)
        kv_fetch_rows(c, &m, p + n, len - n);
    return st;
}

static st_status handle_end(kv_conn *c, const unsigned char *p, size_t len, st_error *err)
{
    kv_end m;
    st_status st = kv_end_decode(p, len, 0, &m, err);
    if (st == ST_OK && m.from_fetcher)
        kv_offer_stopped(c, &m);
    else if (st == ST_OK)
        kv_fetch_stopped(c, &m);
    return st;
}

static void handle(kv_conn *c, const kv_message *m)
{
    static st_status (*const handlers[])(kv_conn *, const unsigned char *, size_t, st_error *) = {
        [KV_MSG_WANT] = handle_want, [KV_MSG_ROWS] = handle_rows, [KV_MSG_END] = handle_end};
    static const unsigned char zeros[KV_KIND_BYTES - 1];
    unsigned kind =
        m->len < KV_KIND_BYTES || memcmp(m->data + 1, zeros, sizeof zeros) ? 0 : m->data[0];
    st_error err;
    st_status st;
    if (kind < sizeof handlers / sizeof *handlers && handlers[kind])
        st = handlers[kind](c, m->data + KV_KIND_BYTES, m->len - KV_KIND_BYTES, &err);
    else
        st = st_fail(&err, ST_EFORMAT, "a message of an unknown kind, %zu bytes", m->len);
    if (st != ST_OK)
        kv_conn_fail(c, st, "%s", err.text);
}

static void message_over(kv_message *m, ucs_status_t status)
{
    st_kv_link *l = m->link;
    kv_conn *c = conn_of(l, m->token);
    if (m->next)
        m->next->prev = m->prev;
    *(m->prev ? &m->prev->next : &l->coming) = m->next;
    l->dirty = true;
    if (c && status != UCS_OK)
        kv_conn_fail(c, ST_EIO, "%s", l->ucx->ucs_status_string(status));
    else if (c)
        handle(c, m);
    if (c)
        kv_conn_linger(c);
    free(m);
}

static void on_message(void *request, ucs_status_t status, const ucp_tag_recv_info_t *info,
                       void *user)
{
    kv_message *m = user;
    const st_ucx *ucx = m->link->ucx;
    message_over(m, status);
    ucx->ucp_request_free(request);
}

/* A message whose connection is gone, or that is too long, is received into nothing. */
static void receive(st_kv_link *l, ucp_tag_message_h message, const ucp_tag_recv_info_t *info)
{
    bool keep = conn_of(l, info->sender_tag) && info->length <= KV_COMING_MAX;
    size_t len = keep ? info->length : 0;
    kv_message *m = malloc(sizeof *m + len);
    if (!m && !(m = malloc(sizeof *m + (len = 0))))
        return;
    *m = (kv_message){.next = l->coming, .link = l, .token = info->sender_tag, .len = len};
    if (m->next)
        m->next->prev = m;
    l->coming = m;
    ucp_request_param_t p = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                             UCP_OP_ATTR_FIELD_USER_DATA |
                                             UCP_OP_ATTR_FIELD_DATATYPE,
                             .cb.recv = on_message,
                             .user_data = m,
                             .datatype = ucp_dt_make_contig(1)};
    ucs_status_ptr_t r = l->ucx->ucp_tag_msg_recv_nbx(l->worker, m->data, len, message, &p);
    if (!UCS_PTR_IS_PTR(r))
        message_over(m, UCS_PTR_RAW_STATUS(r));
}

bool kv_conns_progress(st_kv_link *l)
{
    bool worked = l->ucx->ucp_worker_progress(l->sender) != 0;
    worked |= l->ucx->ucp_worker_progress(l->worker) != 0;
    ucp_tag_recv_info_t info;
    ucp_tag_message_h message;
    while ((message = l->ucx->ucp_tag_probe_nb(l->worker, 0, 0, 1, &info))) {
        receive(l, message, &info);
        worked = true;
    }
    return worked;
}

/* ---- start ---- */

ucs_status_t kv_conns_config(const st_kv_link *l, ucp_config_t *config)
{
    /* Each of these would have UCX ask the peer for a wire-up (see kv_link_internal.h). That a peer
     * is gone its TCP connection tells, and rows are faster so: rendezvous over TCP waits for an
     * answer per message. */
    static const char *const settings[][2] = {
        {"RNDV_THRESH", "inf"}, {"RESOLVE_REMOTE_EP_ID", "n"}, {"KEEPALIVE_INTERVAL", "inf"}};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        ucs_status_t s = l->ucx->ucp_config_modify(config, settings[i][0], settings[i][1]);
        if (s != UCS_OK)
            return s;
    }
    return UCS_OK;
}

st_status kv_conns_start(st_kv_link *l, st_error *err)
{
    ucs_status_t s = l->ucx->ucp_worker_get_address(l->worker, &l->address, &l->address_len);
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
    for (kv_message *m = l->coming, *next; m; m = next) {
        next = m->next;
        free(m);
    }
    l->coming = NULL;
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
        (void)kv_conns_progress(l);
    for (kv_conn *c = l->conns; c; c = c->next) {
        void *flush = c->closing ? NULL : c->close_request;
        if (!c->closing)
            close_conn(c);
        if (flush) /* UCX ends it with the endpoint, and frees it then */
            l->ucx->ucp_request_free(flush);
    }
    while (l->conns && st_now_ns() < until + CLOSE_NS) {
        (void)kv_conns_progress(l);
        kv_conns_settle(l);
    }
}
