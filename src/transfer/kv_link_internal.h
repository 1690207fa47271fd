/* The parts of a KV link, shared by its files.
 *
 *   kv_link.c              calls from other threads, the thread's loop, timers, start and end
 *   kv_link_handshake.c    TCP: listening, connecting, HELLO, noticing that a peer is gone
 *   kv_link_connection.c   UCX endpoints, sending, failure and closing
 *   kv_link_offer.c        the prefill side: offers, wants, rows sent
 *   kv_link_fetch.c        the decode side: fetches, rows received
 *
 * A connection is a TCP connection, over which each side says HELLO with its UCX address, and then
 * a UCX endpoint made from that address. UCX's own listener would do without the first, but ends
 * the process when a stranger sends it bytes. The TCP connection stays open and silent: its end
 * tells at once that the peer died. A message's tag is a token (KV_TOKEN_BYTES) that the receiver
 * has chosen: it says which connection it belongs to.
 *
 * UCX 1.13 ends the process, too, when an endpoint fails or is closed while the answer to a wire-up
 * request of the peer's waits for its transport. So we never let UCX ask for a wire-up: endpoints
 * are made from addresses alone, each side's for its own direction, and only such calls are made as
 * do with that (kv_conns_config): tagged messages, never rendezvous, no keep-alive. Its TCP, too,
 * ends the process when a peer dies while one socket is being made to serve both directions
 * (tcp_ep.c:478, tcp_iface.c:307). So one worker sends and another receives: nobody knows the
 * first's address, the second has no endpoints, and no socket has two directions.
 *
 * Everything belongs to the link's thread, except what is marked "shared", which is under the lock.
 * UCX calls back from inside ucp_worker_progress: there we only mark and count; kv_link_settle,
 * called by the loop, then ends what is marked. An offer or fetch is ended by marking it; its
 * callback comes when no request of UCX reads or writes its blocks any more. */
#ifndef ST_TRANSFER_KV_LINK_INTERNAL_H
#define ST_TRANSFER_KV_LINK_INTERNAL_H

#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>

#include "transfer/kv_link.h"
#include "transfer/kv_link_messages.h"
#include "transfer/kv_row_ranges.h"
#include "transfer/ucx_library.h"

#define KV_NEVER UINT64_MAX

enum {
    KV_BUCKETS = 1024,
    KV_PAST = 512,             /* ended offers that are remembered */
    KV_CONNECTIONS_MAX = 1024, /* accepted ones */
    KV_TOKEN_BYTES = 8,
    KV_MESSAGE_BYTES = 128 << 10, /* of rows */
    KV_WINDOW_BYTES = 1 << 20,    /* of rows on their way over one connection */
    KV_COMING_MAX = 64 << 20,     /* of a message that comes in: block ids, mostly */
    KV_WHY_MAX = 200
};

typedef struct kv_conn kv_conn;
typedef struct kv_offer kv_offer;
typedef struct kv_fetch kv_fetch;

/* A name in one of the link's two maps. First member of offers and fetches. */
typedef struct kv_node {
    st_transfer_id id;
    struct kv_node *next;
    bool cancel;          /* shared: asked for */
    bool lost;            /* shared: an order could not be kept for want of memory */
    char why[KV_WHY_MAX]; /* shared: of the cancel */
} kv_node;

/* How an offer or fetch ends, once it does. */
typedef struct kv_ending {
    bool ended;
    st_error err; /* its status too */
    uint64_t since;
} kv_ending;

struct kv_conn {
    kv_conn *next;
    st_kv_link *link;
    int fd;
    unsigned char *in, *out; /* HELLO, as far as it came and went */
    size_t in_len, in_cap, out_len, out_sent;
    ucp_ep_h ep; /* NULL until they said HELLO */
    uint64_t my_token, their_token;
    bool outgoing;
    bool greeted; /* their HELLO came and fits, and the endpoint is there */
    bool failed, closing;
    st_error why; /* of the failure */
    struct sockaddr_storage addr;
    char name[80];
    uint64_t deadline; /* of HELLO; or, after they hung up, of what they said before */
    int in_flight;     /* messages that UCX will call back about */
    size_t bytes_in_flight;
    void *close_request;
    kv_offer *sending, **sending_tail; /* have rows to send */
};

typedef struct kv_ready {
    int32_t layer, n_layers, from, count;
} kv_ready;

struct kv_offer {
    kv_node node;
    kv_offer *next, *prev;
    bool known; /* the thread has it in its list */
    int32_t n_tokens, n_table;
    int32_t *table; /* -1: not named yet */
    kv_coverage offered;
    kv_ready *ready;
    size_t n_ready, cap_ready;
    uint64_t lease; /* ends if nobody came by then; KV_NEVER before all rows are there */
    /* the fetcher, when one came */
    kv_conn *conn;
    int32_t from, to;
    int32_t *named, n_named;
    size_t at; /* in ready; then layer and token within it */
    int32_t at_layer, at_token;
    uint64_t left;      /* rows not handed to UCX */
    uint64_t last_sent; /* when something moved last */
    int in_flight;
    bool queued;
    kv_offer *next_sending;
    kv_ending end;
    st_kv_over_fn *over;
    void *user;
};

struct kv_fetch {
    kv_node node;
    kv_fetch *next, *prev;
    bool known;
    struct sockaddr_storage addr;
    char peer[80];
    int32_t from, to, n_table, n_named;
    int32_t *table, *named;
    kv_coverage seen;
    uint64_t missing; /* rows not in place */
    uint64_t deadline;
    kv_conn *conn;
    bool reused; /* the connection was there before */
    bool want_sent;
    kv_ending end;
    st_kv_over_fn *done;
    void *user;
};

/* A message that comes in. Its connection may end before all of it is there. */
typedef struct kv_message {
    struct kv_message *next, *prev;
    st_kv_link *link;
    uint64_t token;
    size_t len; /* 0: too long, and dropped */
    unsigned char data[];
} kv_message;

/* A WANT that came before its offer. */
typedef struct kv_wait {
    struct kv_wait *next;
    kv_conn *conn;
    kv_want want;
    int32_t *named; /* want.n_blocks of them; NULL for none */
    uint64_t deadline;
} kv_wait;

/* An offer that is over: a WANT that comes too late is told so at once. */
typedef struct kv_past {
    bool used;
    st_transfer_id id;
    st_status status;
    char text[KV_WHY_MAX];
} kv_past;

typedef struct kv_order {
    struct kv_order *next;
    kv_offer *offer; /* a new one, or */
    kv_fetch *fetch; /* a new one, or rows of an offer: */
    st_transfer_id id;
    kv_ready rows;
    int32_t n_blocks; /* those that the rows lie in */
    int32_t blocks[];
} kv_order;

struct st_kv_link {
    const st_ucx *ucx;
    st_kv_link_options o; /* defaults filled in; host is not kept */
    kv_hello hello;
    ucp_context_h context;
    ucp_worker_h worker, sender; /* receives; has the endpoints */
    ucp_address_t *address;
    size_t address_len;
    int epoll_fd, wake_fd, listen_fd;
    uint16_t port;
    pthread_t thread;
    bool has_thread, has_lock;

    pthread_mutex_t lock; /* of the shared part: */
    kv_order *orders, **orders_tail;
    bool signalled, attention, stopping;
    kv_node *offer_map[KV_BUCKETS], *fetch_map[KV_BUCKETS];
    st_kv_link_stats stats;

    uint64_t accept_again; /* when the listener rests */
    kv_offer *offers;
    kv_fetch *fetches;
    kv_conn *conns;
    int n_accepted;
    kv_message *coming;
    kv_wait *waits;
    uint32_t n_waits;
    kv_past past[KV_PAST];
    size_t past_at;
    bool ending;        /* new WANTs are refused */
    bool dirty;         /* something is marked: kv_link_settle has work */
    uint64_t next_scan; /* when to look at deadlines next */
};

/* kv_link.c */
kv_node *kv_link_find(st_kv_link *l, kv_node **map, const st_transfer_id *id);
void kv_link_forget(st_kv_link *l, kv_node **map, kv_node *node);
void kv_link_due(st_kv_link *l, uint64_t deadline);
/* Marks the end; only the first counts. */
void kv_end_mark(st_kv_link *l, kv_ending *e, st_status status, const char *fmt, ...)
    ST_PRINTF(4, 5);
/* Adds to a counter under the lock. */
void kv_link_count(st_kv_link *l, uint64_t *counter, uint64_t n);

/* kv_link_handshake.c */
ST_NODISCARD st_status kv_listen(st_kv_link *l, const struct sockaddr_storage *addr, st_error *err);
/* The connection to an address: the one there is, or a new one, whose HELLO is under way. */
kv_conn *kv_conn_to(st_kv_link *l, const struct sockaddr_storage *addr, bool *reused,
                    st_error *err);
uint64_t kv_listener_scan(st_kv_link *l, uint64_t now);
/* Handles what happened to sockets; waits for it, for UCX or for an order. True: something did. */
bool kv_sockets_poll(st_kv_link *l, int timeout_ms);
void kv_address_text(const struct sockaddr_storage *a, char *out, size_t cap);
/* Something came: if the peer hung up, more may. */
void kv_conn_linger(kv_conn *c);
socklen_t kv_address_len(const struct sockaddr_storage *a);

/* kv_link_connection.c */
/* What UCX must be told before it starts. */
ucs_status_t kv_conns_config(const st_kv_link *l, ucp_config_t *config);
ST_NODISCARD st_status kv_conns_start(st_kv_link *l, st_error *err);
/* Lets UCX work, and handles the messages that came; true: something did. */
bool kv_conns_progress(st_kv_link *l);
/* Makes the endpoint. */
ucs_status_t kv_conn_open(kv_conn *c, const unsigned char *address);
void kv_conn_fail(kv_conn *c, st_status status, const char *fmt, ...) ST_PRINTF(3, 4);
/* Sends a header (KV_HEADER_MAX at most) and maybe block ids. Failure fails the connection. */
void kv_conn_send(kv_conn *c, unsigned kind, const unsigned char *header, size_t len,
                  const int32_t *blocks, int32_t n_blocks);
void kv_conn_send_end(kv_conn *c, const st_transfer_id *id, bool from_fetcher, st_status status,
                      const char *text);
/* Sends rows of an offer that is not ended. */
void kv_conn_send_rows(kv_conn *c, kv_offer *o, const kv_rows *rows);
void kv_conns_settle(st_kv_link *l);
uint64_t kv_conns_scan(st_kv_link *l, uint64_t now); /* the next deadline */
/* Closes all, politely where possible, until `until`, then by force. */
void kv_conns_close(st_kv_link *l, uint64_t until);
/* Frees those that UCX did not let go of; after the worker. */
void kv_conns_drop(st_kv_link *l);

/* kv_link_offer.c */
void kv_offer_add(st_kv_link *l, kv_offer *o);
void kv_offer_take_rows(st_kv_link *l, const kv_order *r);
void kv_offer_want(st_kv_link *l, kv_conn *c, const kv_want *w, const unsigned char *blocks);
void kv_offer_rows_sent(kv_offer *o);
void kv_offer_stopped(kv_conn *c, const kv_end *e); /* the fetcher says END */
void kv_offers_conn_failed(st_kv_link *l, kv_conn *c);
void kv_offers_cancel(st_kv_link *l, bool all); /* those marked by the owner */
bool kv_offers_pump(st_kv_link *l);             /* true: something was sent */
void kv_offers_settle(st_kv_link *l);
uint64_t kv_offers_scan(st_kv_link *l, uint64_t now);
void kv_offer_free(kv_offer *o);

/* kv_link_fetch.c */
void kv_fetch_add(st_kv_link *l, kv_fetch *f);
void kv_fetches_greeted(st_kv_link *l, kv_conn *c);
void kv_fetch_rows(kv_conn *c, const kv_rows *rows, const unsigned char *data, size_t len);
void kv_fetch_stopped(kv_conn *c, const kv_end *e);
void kv_fetches_conn_failed(st_kv_link *l, kv_conn *c);
void kv_fetches_cancel(st_kv_link *l, bool all);
void kv_fetches_settle(st_kv_link *l);
uint64_t kv_fetches_scan(st_kv_link *l, uint64_t now);
void kv_fetch_free(kv_fetch *f);

#endif
