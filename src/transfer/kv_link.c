/* A KV link as its owner sees it (kv_link.h): calls from any thread become orders for the link's
 * thread, whose loop, start and end are here too. The other parts: kv_link_internal.h. */
#include "transfer/kv_link_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"

/* After the last thing that happened UCX is polled this long before the thread sleeps. */
#define SPIN_NS 20000u
/* Deadlines are looked at this often at most. */
#define SCAN_NS 10000000u
/* While UCX is busy sockets are looked at this often. */
#define POLL_NS 1000000u
/* At the end: for messages to leave. */
#define GOODBYE_NS 500000000u

/* ---- maps and other shared things ---- */

static size_t bucket_of(const st_transfer_id *id)
{
    uint64_t a, b;
    memcpy(&a, id->bytes, 8);
    memcpy(&b, id->bytes + 8, 8);
    return ((a ^ b) * 0x9E3779B97F4A7C15u) >> 54;
}
_Static_assert(KV_BUCKETS == 1 << (64 - 54), "bucket_of yields the number of a bucket");

static kv_node *find_locked(kv_node **map, const st_transfer_id *id)
{
    kv_node *n = map[bucket_of(id)];
    while (n && memcmp(&n->id, id, sizeof *id))
        n = n->next;
    return n;
}

static void insert_locked(kv_node **map, kv_node *node)
{
    kv_node **at = &map[bucket_of(&node->id)];
    node->next = *at;
    *at = node;
}

kv_node *kv_link_find(st_kv_link *l, kv_node **map, const st_transfer_id *id)
{
    pthread_mutex_lock(&l->lock);
    kv_node *n = find_locked(map, id);
    pthread_mutex_unlock(&l->lock);
    return n;
}

void kv_link_forget(st_kv_link *l, kv_node **map, kv_node *node)
{
    pthread_mutex_lock(&l->lock);
    kv_node **at = &map[bucket_of(&node->id)];
    while (*at != node)
        at = &(*at)->next;
    *at = node->next;
    if (map == l->offer_map)
        l->stats.offers_open--;
    else
        l->stats.fetches_open--;
    pthread_mutex_unlock(&l->lock);
}

void kv_link_count(st_kv_link *l, uint64_t *counter, uint64_t n)
{
    pthread_mutex_lock(&l->lock);
    *counter += n;
    pthread_mutex_unlock(&l->lock);
}

void kv_link_due(st_kv_link *l, uint64_t deadline)
{
    if (deadline < l->next_scan)
        l->next_scan = deadline;
}

void kv_end_mark(st_kv_link *l, kv_ending *e, st_status status, const char *fmt, ...)
{
    if (e->ended)
        return;
    va_list args;
    va_start(args, fmt);
    char text[700];
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    e->ended = true;
    e->since = st_now_ns();
    (void)st_fail(&e->err, status, "%s", text);
    l->dirty = true;
}

void st_kv_link_get_stats(st_kv_link *l, st_kv_link_stats *out)
{
    pthread_mutex_lock(&l->lock);
    *out = l->stats;
    pthread_mutex_unlock(&l->lock);
}

uint16_t st_kv_link_port(const st_kv_link *l)
{
    return l->port;
}

/* ---- calls from other threads ---- */

static void wake_locked(st_kv_link *l)
{
    if (l->signalled)
        return;
    l->signalled = true;
    uint64_t one = 1;
    ssize_t n;
    do
        n = write(l->wake_fd, &one, sizeof one);
    while (n < 0 && errno == EINTR);
}

static void post_locked(st_kv_link *l, kv_order *r)
{
    r->next = NULL;
    *l->orders_tail = r;
    l->orders_tail = &r->next;
    wake_locked(l);
}

/* A copy of a table's ids; NULL for want of memory. */
static int32_t *copy_blocks(const int32_t *blocks, int32_t n)
{
    int32_t *p = malloc(((size_t)n + 1) * sizeof *p);
    if (p && n)
        memcpy(p, blocks, (size_t)n * sizeof *p);
    return p;
}

static kv_offer *offer_new(const st_kv_link *l, const st_transfer_id *id, int32_t n_tokens)
{
    kv_offer *o = calloc(1, sizeof *o);
    if (!o)
        return NULL;
    o->node.id = *id;
    o->n_tokens = n_tokens;
    o->n_table = kv_blocks_of(l->o.store, n_tokens);
    o->lease = KV_NEVER;
    o->at_layer = -1;
    o->table = malloc((size_t)o->n_table * sizeof *o->table);
    if (!o->table || !kv_coverage_init(&o->offered, l->o.store->n_layers, 0, n_tokens)) {
        kv_offer_free(o);
        return NULL;
    }
    memset(o->table, 0xFF, (size_t)o->n_table * sizeof *o->table);
    return o;
}

st_status st_kv_offer(st_kv_link *l, const st_transfer_id *id, int32_t n_tokens,
                      st_kv_over_fn *over, void *user, st_error *err)
{
    if (n_tokens < 1)
        return st_fail(err, ST_EINVAL, "KV offer of %d tokens; expected at least one", n_tokens);
    kv_order *r = calloc(1, sizeof *r);
    kv_offer *o = offer_new(l, id, n_tokens);
    if (!r || !o) {
        free(r);
        kv_offer_free(o);
        return st_fail(err, ST_ENOMEM, "KV offer: out of memory");
    }
    o->over = over;
    o->user = user;
    r->offer = o;
    char text[33];
    st_transfer_id_text(id, text);
    st_status st = ST_OK;
    pthread_mutex_lock(&l->lock);
    if (l->stopping) {
        st = st_fail(err, ST_ECANCELLED, "KV offer: the engine shuts down");
    } else if (find_locked(l->offer_map, id)) {
        st = st_fail(err, ST_EINVAL, "KV offer: the transfer id %s is taken", text);
    } else if (l->stats.offers_open >= l->o.max_offers) {
        st = st_fail(err, ST_EFULL, "KV offer: %u prompts are on offer, no more are allowed",
                     l->o.max_offers);
    } else {
        insert_locked(l->offer_map, &o->node);
        l->stats.offers++;
        l->stats.offers_open++;
        post_locked(l, r);
    }
    pthread_mutex_unlock(&l->lock);
    if (st != ST_OK) {
        free(r);
        kv_offer_free(o);
    }
    return st;
}

void st_kv_offer_rows(st_kv_link *l, const st_transfer_id *id, int32_t layer, int32_t n_layers,
                      int32_t from, int32_t count, const int32_t *blocks)
{
    int32_t size = l->o.store->block_size, first = 0, n = 0;
    /* A range that makes no sense ends the offer; its table is not looked at. */
    if (from >= 0 && count > 0 && from <= INT32_MAX - count) {
        first = from / size;
        n = (from + count - 1) / size - first + 1;
    }
    kv_order *r = malloc(sizeof *r + (size_t)n * sizeof r->blocks[0]);
    if (r) {
        *r = (kv_order){.id = *id, .rows = {layer, n_layers, from, count}, .n_blocks = n};
        memcpy(r->blocks, blocks + first, (size_t)n * sizeof r->blocks[0]);
    }
    pthread_mutex_lock(&l->lock);
    kv_node *node = find_locked(l->offer_map, id);
    if (node && r) {
        post_locked(l, r);
        r = NULL;
    } else if (node) {
        node->lost = true;
        l->attention = true;
        wake_locked(l);
    }
    pthread_mutex_unlock(&l->lock);
    free(r);
}

static void cancel(st_kv_link *l, kv_node **map, const st_transfer_id *id, const char *why)
{
    pthread_mutex_lock(&l->lock);
    kv_node *n = find_locked(map, id);
    if (n && !n->cancel) {
        n->cancel = true;
        snprintf(n->why, sizeof n->why, "%s", why);
        l->attention = true;
        wake_locked(l);
    }
    pthread_mutex_unlock(&l->lock);
}

void st_kv_offer_cancel(st_kv_link *l, const st_transfer_id *id, const char *why)
{
    cancel(l, l->offer_map, id, why ? why : "the KV rows are not offered any more");
}

void st_kv_fetch_cancel(st_kv_link *l, const st_transfer_id *id)
{
    cancel(l, l->fetch_map, id, "");
}

/* Numeric hosts only: a name would have to be looked up, which blocks. */
static bool address_of(const char *host, uint16_t port, struct sockaddr_storage *out)
{
    struct sockaddr_in *in = (struct sockaddr_in *)out;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)out;
    *out = (struct sockaddr_storage){0};
    if (!strcmp(host, "localhost"))
        host = "127.0.0.1";
    if (inet_pton(AF_INET, host, &in->sin_addr) == 1) {
        in->sin_family = AF_INET;
        in->sin_port = htons(port);
        return true;
    }
    if (inet_pton(AF_INET6, host, &in6->sin6_addr) == 1) {
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons(port);
        return true;
    }
    return false;
}

static st_status check_fetch(const st_kv_link *l, const st_kv_fetch_request *r, st_error *err)
{
    const st_kv_store *s = l->o.store;
    if (r->n_tokens < 1 || r->from < 0 || r->from > r->n_tokens)
        return st_fail(err, ST_EINVAL, "KV fetch of tokens [%d, %d); expected 0 <= first <= last",
                       r->from, r->n_tokens);
    for (int32_t i = r->from / s->block_size; i < kv_blocks_of(s, r->n_tokens); i++)
        if (r->blocks[i] < 0 || r->blocks[i] >= s->n_blocks)
            return st_fail(err, ST_EINVAL, "KV fetch into block %d; there are %d", r->blocks[i],
                           s->n_blocks);
    if (r->remote_blocks && r->n_remote_blocks < kv_blocks_of(s, 1))
        return st_fail(err, ST_EINVAL, "KV fetch names %d remote blocks", r->n_remote_blocks);
    return ST_OK;
}

static kv_fetch *fetch_new(const st_kv_link *l, const st_kv_fetch_request *r)
{
    kv_fetch *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->node.id = r->id;
    f->from = r->from;
    f->to = r->n_tokens;
    f->n_table = kv_blocks_of(l->o.store, r->n_tokens);
    f->n_named = r->remote_blocks ? r->n_remote_blocks : 0;
    f->table = copy_blocks(r->blocks, f->n_table);
    f->named = copy_blocks(r->remote_blocks, f->n_named);
    f->deadline = st_now_ns() + (r->timeout_ns ? r->timeout_ns : 60000000000u);
    bool ok = kv_coverage_init(&f->seen, l->o.store->n_layers, r->from, r->n_tokens);
    f->missing = f->seen.missing;
    if (ok && f->table && f->named)
        return f;
    kv_fetch_free(f);
    return NULL;
}

/* Takes the fetch when it returns ST_OK. */
static st_status fetch_post(st_kv_link *l, kv_fetch *f, st_error *err)
{
    kv_order *order = calloc(1, sizeof *order);
    if (!order)
        return st_fail(err, ST_ENOMEM, "KV fetch: out of memory");
    order->fetch = f;
    char text[33];
    st_transfer_id_text(&f->node.id, text);
    st_status st = ST_OK;
    pthread_mutex_lock(&l->lock);
    if (l->stopping) {
        st = st_fail(err, ST_ECANCELLED, "KV fetch: the engine shuts down");
    } else if (find_locked(l->fetch_map, &f->node.id)) {
        st = st_fail(err, ST_EINVAL, "KV fetch: the transfer id %s is taken", text);
    } else {
        insert_locked(l->fetch_map, &f->node);
        l->stats.fetches++;
        l->stats.fetches_open++;
        post_locked(l, order);
    }
    pthread_mutex_unlock(&l->lock);
    if (st != ST_OK)
        free(order);
    return st;
}

st_status st_kv_fetch(st_kv_link *l, const st_kv_fetch_request *r, st_kv_over_fn *done, void *user,
                      st_error *err)
{
    st_status st = check_fetch(l, r, err);
    if (st != ST_OK)
        return st;
    struct sockaddr_storage addr;
    if (!r->port || !address_of(r->host, r->port, &addr))
        return st_fail(err, ST_EINVAL,
                       "KV fetch from host \"%.64s\" port %u; expected a numeric address and a "
                       "port",
                       r->host, r->port);
    kv_fetch *f = fetch_new(l, r);
    if (!f)
        return st_fail(err, ST_ENOMEM, "KV fetch: out of memory");
    f->addr = addr;
    kv_address_text(&addr, f->peer, sizeof f->peer);
    f->done = done;
    f->user = user;
    st = fetch_post(l, f, err);
    if (st != ST_OK)
        kv_fetch_free(f);
    return st;
}

/* ---- the thread ---- */

/* True when there were any. */
static bool take_orders(st_kv_link *l)
{
    pthread_mutex_lock(&l->lock);
    if (!l->signalled) {
        pthread_mutex_unlock(&l->lock);
        return false;
    }
    kv_order *r = l->orders;
    bool attention = l->attention;
    l->orders = NULL;
    l->orders_tail = &l->orders;
    l->signalled = l->attention = false;
    uint64_t count;
    (void)!read(l->wake_fd, &count, sizeof count);
    pthread_mutex_unlock(&l->lock);
    for (kv_order *next; r; r = next) {
        next = r->next;
        if (r->offer)
            kv_offer_add(l, r->offer);
        else if (r->fetch)
            kv_fetch_add(l, r->fetch);
        else
            kv_offer_take_rows(l, r);
        free(r);
    }
    if (attention) {
        kv_offers_cancel(l, false);
        kv_fetches_cancel(l, false);
    }
    return true;
}

/* Ends what was marked and sends what may be sent. */
static void settle(st_kv_link *l)
{
    while (l->dirty) {
        l->dirty = false;
        kv_conns_settle(l);
        kv_fetches_settle(l);
        kv_offers_settle(l);
        (void)kv_offers_pump(l);
    }
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static void scan(st_kv_link *l, uint64_t now)
{
    l->next_scan = KV_NEVER;
    uint64_t next = earlier(kv_conns_scan(l, now), kv_listener_scan(l, now));
    next = earlier(next, kv_offers_scan(l, now));
    next = earlier(next, kv_fetches_scan(l, now));
    next = earlier(next, l->next_scan);
    l->next_scan = next == KV_NEVER || next > now + SCAN_NS ? next : now + SCAN_NS;
}

/* Until something happens, or the next deadline. */
static void sleep_until_work(st_kv_link *l)
{
    if (l->ucx->ucp_worker_arm(l->worker) != UCS_OK || l->ucx->ucp_worker_arm(l->sender) != UCS_OK)
        return;
    uint64_t now = st_now_ns();
    int timeout = -1;
    if (l->next_scan != KV_NEVER) {
        uint64_t ms = l->next_scan > now ? (l->next_scan - now) / 1000000u + 1 : 0;
        timeout = ms < 60000 ? (int)ms : 60000;
    }
    (void)kv_sockets_poll(l, timeout);
}

static bool is_stopping(st_kv_link *l)
{
    pthread_mutex_lock(&l->lock);
    bool stopping = l->stopping;
    pthread_mutex_unlock(&l->lock);
    return stopping;
}

static void stop_ucx(st_kv_link *l)
{
    if (l->address)
        l->ucx->ucp_worker_release_address(l->worker, l->address);
    if (l->sender)
        l->ucx->ucp_worker_destroy(l->sender);
    if (l->worker)
        l->ucx->ucp_worker_destroy(l->worker);
    if (l->context)
        l->ucx->ucp_cleanup(l->context);
    l->address = NULL;
    l->worker = l->sender = NULL;
    l->context = NULL;
}

/* Ends everything: tells the peers, lets what was said leave, closes. */
static void stop(st_kv_link *l)
{
    uint64_t until = st_now_ns() + GOODBYE_NS;
    l->ending = true;
    (void)take_orders(l);
    kv_offers_cancel(l, true);
    kv_fetches_cancel(l, true);
    settle(l);
    kv_conns_close(l, until);
    /* From here on nothing reads or writes blocks, whatever UCX said of its requests. */
    stop_ucx(l);
    kv_conns_drop(l);
    for (kv_offer *o = l->offers; o; o = o->next)
        o->in_flight = 0;
    kv_fetches_settle(l);
    kv_offers_settle(l);
}

static void *run(void *arg)
{
    st_kv_link *l = arg;
    uint64_t last = st_now_ns(), polled = last;
    while (!is_stopping(l)) {
        bool worked = take_orders(l);
        for (int i = 0; i < 32 && kv_conns_progress(l); i++)
            worked = true;
        settle(l);
        uint64_t now = st_now_ns();
        if (now >= l->next_scan) {
            scan(l, now);
            settle(l);
        }
        if (worked)
            last = now;
        if (!worked && now - last >= SPIN_NS)
            sleep_until_work(l);
        else if (now - polled >= POLL_NS)
            (void)kv_sockets_poll(l, 0);
        else
            continue;
        polled = now;
    }
    stop(l);
    return NULL;
}

/* ---- start and end ---- */

/* A link on this machine alone: UCX would listen on the other networks, too, and trusts whoever
 * comes. A user who names devices knows better. */
static bool is_local(const st_kv_link *l)
{
    struct sockaddr_storage a;
    if (getenv("UCX_NET_DEVICES") || !address_of(l->o.host, l->o.port, &a))
        return false;
    const struct sockaddr_in *in = (const struct sockaddr_in *)&a;
    return a.ss_family == AF_INET6
               ? IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)&a)->sin6_addr)
               : ntohl(in->sin_addr.s_addr) >> 24 == 127;
}

static st_status start_worker(st_kv_link *l, st_error *err)
{
    ucp_config_t *config = NULL;
    ucs_status_t s = l->ucx->ucp_config_read(NULL, NULL, &config);
    if (s == UCS_OK)
        s = kv_conns_config(l, config);
    if (s == UCS_OK && is_local(l))
        s = l->ucx->ucp_config_modify(config, "NET_DEVICES", "lo");
    if (s == UCS_OK) {
        ucp_params_t p = {.field_mask = UCP_PARAM_FIELD_FEATURES,
                          .features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP};
        s = l->ucx->ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &p, config, &l->context);
        l->ucx->ucp_config_release(config);
    }
    if (s == UCS_OK) {
        ucp_worker_params_t p = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                 .thread_mode = UCS_THREAD_MODE_SERIALIZED};
        s = l->ucx->ucp_worker_create(l->context, &p, &l->worker);
        if (s == UCS_OK)
            s = l->ucx->ucp_worker_create(l->context, &p, &l->sender);
    }
    int receiver_fd = -1, sender_fd = -1;
    if (s == UCS_OK)
        s = l->ucx->ucp_worker_get_efd(l->worker, &receiver_fd);
    if (s == UCS_OK)
        s = l->ucx->ucp_worker_get_efd(l->sender, &sender_fd);
    if (s != UCS_OK)
        return st_fail(err, ST_EUNSUPPORTED, "KV transfer: UCX cannot start: %s",
                       l->ucx->ucs_status_string(s));
    struct epoll_event none = {.events = EPOLLIN};
    if (epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, receiver_fd, &none) ||
        epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, sender_fd, &none) ||
        epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, l->wake_fd, &none))
        return st_fail(err, ST_EIO, "KV transfer: epoll: %s", strerror(errno));
    return kv_conns_start(l, err);
}

static st_status start_listener(st_kv_link *l, st_error *err)
{
    struct sockaddr_storage addr;
    if (!address_of(l->o.host, l->o.port, &addr))
        return st_fail(err, ST_EINVAL,
                       "KV transfer: cannot listen on host \"%.64s\"; expected a numeric address",
                       l->o.host);
    return kv_listen(l, &addr, err);
}

/* Signals belong to the program's other threads. */
static st_status start_thread(st_kv_link *l, st_error *err)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int e = pthread_create(&l->thread, NULL, run, l);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (e)
        return st_fail(err, ST_EIO, "KV transfer: cannot start a thread: %s", strerror(e));
    l->has_thread = true;
    return ST_OK;
}

static void link_init(st_kv_link *l, const st_kv_link_options *o)
{
    l->o = *o;
    if (!l->o.host)
        l->o.host = "127.0.0.1";
    if (!l->o.lease_ns)
        l->o.lease_ns = 30000000000u;
    if (!l->o.connect_timeout_ns)
        l->o.connect_timeout_ns = 5000000000u;
    if (!l->o.max_offers)
        l->o.max_offers = 4096;
    l->hello = (kv_hello){.version = KV_LINK_VERSION,
                          .fingerprint = o->fingerprint,
                          .dtype = (uint32_t)o->store->dtype,
                          .n_layers = (uint32_t)o->store->n_layers,
                          .row_bytes = o->store->row_bytes};
    l->orders_tail = &l->orders;
    l->next_scan = l->accept_again = KV_NEVER;
    l->wake_fd = l->epoll_fd = l->listen_fd = -1;
    l->has_lock = !pthread_mutex_init(&l->lock, NULL);
}

st_status st_kv_link_new(const st_kv_link_options *o, st_kv_link **out, st_error *err)
{
    *out = NULL;
    st_kv_link *l = calloc(1, sizeof *l);
    if (!l)
        return st_fail(err, ST_ENOMEM, "KV transfer: out of memory");
    link_init(l, o);
    st_status st = st_ucx_load(&l->ucx, err);
    if (st != ST_OK)
        goto fail;
    l->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (l->wake_fd < 0 || l->epoll_fd < 0) {
        st = st_fail(err, ST_EIO, "KV transfer: no eventfd or epoll: %s", strerror(errno));
        goto fail;
    }
    st = start_worker(l, err);
    if (st == ST_OK)
        st = start_listener(l, err);
    if (st == ST_OK)
        st = start_thread(l, err);
    if (st != ST_OK)
        goto fail;
    l->o.host = NULL;
    *out = l;
    return ST_OK;
fail:
    st_kv_link_free(l);
    return st;
}

void st_kv_link_free(st_kv_link *l)
{
    if (!l)
        return;
    if (l->has_thread) {
        pthread_mutex_lock(&l->lock);
        l->stopping = true;
        wake_locked(l);
        pthread_mutex_unlock(&l->lock);
        pthread_join(l->thread, NULL);
    }
    if (l->listen_fd >= 0)
        close(l->listen_fd);
    stop_ucx(l);
    if (l->epoll_fd >= 0)
        close(l->epoll_fd);
    if (l->wake_fd >= 0)
        close(l->wake_fd);
    if (l->has_lock)
        pthread_mutex_destroy(&l->lock);
    free(l);
}
