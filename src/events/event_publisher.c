/* Publishes an engine's KV events (event_publisher.h): what the engine's thread calls, the ring to
 * the publishing thread (publisher_thread.c), and the life of both. */
#include "events/event_publisher.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <zmq.h>

#include "events/kv_event.h"
#include "events/publisher_impl.h"

/* ---- the ring ---- */

static size_t round8(size_t n)
{
    return (n + 7) / 8 * 8;
}

static st_status ring_init(event_ring *r, int32_t n_blocks, int32_t block_size)
{
    size_t record = sizeof(ring_record) + 4 * (size_t)block_size + ST_EVENT_SALT_MAX + 16;
    size_t want = 2 * (size_t)n_blocks * record;
    want = want > (size_t)8 << 20 ? (size_t)8 << 20 : want;
    r->size = 64 << 10;
    while (r->size < want || r->size < 8 * record)
        r->size *= 2;
    r->bytes = calloc(1, r->size);
    return r->bytes ? ST_OK : ST_ENOMEM;
}

/* Room for a record at *at, which goes past it; NULL: full. Nothing is visible before ring_show. */
static ring_record *ring_room(event_ring *r, uint64_t *at, size_t bytes)
{
    uint64_t read = atomic_load_explicit(&r->read, memory_order_acquire);
    uint64_t left_here = r->size - (*at & (r->size - 1));
    uint64_t need = bytes <= left_here ? bytes : left_here + bytes;
    if (*at + need - read > r->size)
        return NULL;
    if (bytes > left_here) { /* not in one piece: a record of nothing up to the end */
        if (left_here >= sizeof(ring_record)) {
            ring_record *pad = (ring_record *)(r->bytes + (*at & (r->size - 1)));
            *pad = (ring_record){.bytes = (uint32_t)left_here, .block = -1};
        }
        *at += left_here;
    }
    ring_record *rec = (ring_record *)(r->bytes + (*at & (r->size - 1)));
    *at += bytes;
    return rec;
}

const ring_record *event_ring_next(event_ring *r, uint64_t *at)
{
    uint64_t written = atomic_load_explicit(&r->written, memory_order_acquire);
    while (*at < written) {
        uint64_t left_here = r->size - (*at & (r->size - 1));
        const ring_record *rec = (const ring_record *)(r->bytes + (*at & (r->size - 1)));
        if (left_here < sizeof *rec || rec->block < 0) {
            *at += left_here;
            continue;
        }
        *at += rec->bytes;
        return rec;
    }
    return NULL;
}

void event_ring_done(event_ring *r, uint64_t at)
{
    atomic_store_explicit(&r->read, at, memory_order_release);
}

/* ---- the engine's thread ---- */

static void on_stored(void *user, int32_t block, st_block_hash hash, st_block_hash parent,
                      const int32_t *tokens, int32_t n)
{
    st_event_publisher *p = user;
    event_ledger *l = &p->changes;
    ledger_entry *e = &l->entries[block];
    e->first = parent.lo == p->root.lo && parent.hi == p->root.hi;
    e->present = !(e->first && p->salted_too_long);
    e->hash = hash.lo;
    e->parent = parent.lo;
    e->salt_len = 0;
    if (e->first && e->present && p->salt_len) {
        e->salt_len = (uint16_t)p->salt_len;
        memcpy(event_ledger_salt(l, block), p->salt, p->salt_len);
    }
    memcpy(event_ledger_tokens(l, block), tokens, (size_t)n * sizeof *tokens);
    /* At the end: what is stored is handed over in the order of storing, parents first. */
    event_ledger_append(l, block);
}

static void on_removed(void *user, int32_t block, st_block_hash hash)
{
    st_event_publisher *p = user;
    (void)hash;
    p->changes.entries[block].present = false;
    if (!p->changes.entries[block].linked)
        event_ledger_append(&p->changes, block);
}

st_block_events st_event_publisher_events(st_event_publisher *p)
{
    return (st_block_events){.stored = on_stored, .removed = on_removed, .user = p};
}

void st_event_publisher_root(st_event_publisher *p, st_block_hash root, const char *salt,
                             size_t salt_len)
{
    p->root = root;
    p->salted_too_long = salt_len > ST_EVENT_SALT_MAX;
    p->salt_len = p->salted_too_long ? 0 : salt_len;
    if (p->salt_len)
        memcpy(p->salt, salt, p->salt_len);
}

/* Hands over that what was there is gone, of every block that changed. A hash may have moved to
 * another block: removals go before all that is stored. */
static bool hand_over_removed(st_event_publisher *p, uint64_t *at)
{
    event_ledger *l = &p->changes;
    for (int32_t b = event_ledger_first(l), next; b != l->n; b = next) {
        ledger_entry *e = &l->entries[b];
        next = e->next;
        if (e->sent && (!e->present || e->hash != e->sent_hash)) {
            ring_record *rec = ring_room(&p->ring, at, sizeof *rec);
            if (!rec)
                return false;
            *rec = (ring_record){.bytes = sizeof *rec, .block = b, .hash = e->sent_hash};
            e->sent = false;
        }
        if (!e->present || e->sent)
            event_ledger_unlink(l, b);
    }
    return true;
}

static bool hand_over_stored(st_event_publisher *p, uint64_t *at)
{
    event_ledger *l = &p->changes;
    size_t token_bytes = (size_t)l->block_size * sizeof(int32_t);
    for (int32_t b = event_ledger_first(l), next; b != l->n; b = next) {
        ledger_entry *e = &l->entries[b];
        next = e->next;
        size_t bytes = round8(sizeof(ring_record) + token_bytes + e->salt_len);
        ring_record *rec = ring_room(&p->ring, at, bytes);
        if (!rec)
            return false;
        *rec = (ring_record){.bytes = (uint32_t)bytes,
                             .block = b,
                             .hash = e->hash,
                             .parent = e->parent,
                             .salt_len = e->salt_len,
                             .stored = true,
                             .first = e->first};
        memcpy(rec + 1, event_ledger_tokens(l, b), token_bytes);
        memcpy((char *)(rec + 1) + token_bytes, event_ledger_salt(l, b), e->salt_len);
        e->sent = true;
        e->sent_hash = e->hash;
        event_ledger_unlink(l, b);
    }
    return true;
}

static void wake_thread(st_event_publisher *p)
{
    uint64_t one = 1;
    ssize_t n;
    do
        n = write(p->wake, &one, sizeof one);
    while (n < 0 && errno == EINTR); /* EAGAIN: it is awake already */
}

bool st_event_publisher_flush(st_event_publisher *p)
{
    if (event_ledger_first(&p->changes) == p->changes.n)
        return true;
    uint64_t start = atomic_load_explicit(&p->ring.written, memory_order_relaxed), at = start;
    /* What finds no room stays in the list. */
    bool all = hand_over_removed(p, &at) && hand_over_stored(p, &at);
    atomic_store_explicit(&p->ring.written, at, memory_order_release);
    if (at != start)
        wake_thread(p);
    return all;
}

/* ---- life ---- */

/* Binds to host and port (0: any) and says which port it became. */
static st_status bind_to(void *socket, const char *host, uint16_t port, uint16_t *out,
                         st_error *err)
{
    char endpoint[300], number[8] = "*";
    bool bare_v6 = strchr(host, ':') && host[0] != '[';
    if (port)
        snprintf(number, sizeof number, "%u", port);
    snprintf(endpoint, sizeof endpoint, bare_v6 ? "tcp://[%s]:%s" : "tcp://%s:%s", host, number);
    if (zmq_bind(socket, endpoint))
        return st_fail(err, ST_EIO, "KV events: cannot bind to %s: %s", endpoint,
                       zmq_strerror(zmq_errno()));
    size_t len = sizeof endpoint;
    const char *colon;
    if (zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, endpoint, &len) ||
        !(colon = strrchr(endpoint, ':')))
        return st_fail(err, ST_EIO, "KV events: ZeroMQ does not say where it is bound: %s",
                       zmq_strerror(zmq_errno()));
    *out = (uint16_t)strtoul(colon + 1, NULL, 10);
    return ST_OK;
}

static int set_int(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value);
}

static st_status open_sockets(st_event_publisher *p, const char *host, st_error *err)
{
    p->context = zmq_ctx_new();
    p->pub = p->context ? zmq_socket(p->context, ZMQ_PUB) : NULL;
    p->router = p->pub ? zmq_socket(p->context, ZMQ_ROUTER) : NULL;
    if (!p->router || set_int(p->pub, ZMQ_LINGER, 0) || set_int(p->router, ZMQ_LINGER, 0) ||
        set_int(p->pub, ZMQ_IPV6, 1) || set_int(p->router, ZMQ_IPV6, 1) ||
        set_int(p->pub, ZMQ_SNDHWM, 10000) ||
        /* A replay is sent as fast as it is taken (publisher_thread.c), not dropped. */
        set_int(p->router, ZMQ_SNDHWM, 64) || set_int(p->router, ZMQ_ROUTER_MANDATORY, 1) ||
        set_int(p->router, ZMQ_RCVHWM, 64))
        return st_fail(err, ST_EIO, "KV events: ZeroMQ: %s", zmq_strerror(zmq_errno()));
    int64_t small = 256; /* what a request for a replay may be */
    if (zmq_setsockopt(p->router, ZMQ_MAXMSGSIZE, &small, sizeof small))
        return st_fail(err, ST_EIO, "KV events: ZeroMQ: %s", zmq_strerror(zmq_errno()));
    st_status s = bind_to(p->pub, host, p->options.port, &p->port, err);
    return s ? s : bind_to(p->router, host, p->options.replay_port, &p->replay_port, err);
}

static st_status check_options(const st_event_publisher_options *o, st_error *err)
{
    if (!o->host || strlen(o->host) > 255)
        return st_fail(err, ST_EINVAL, "KV events: host: expected 1 to 255 characters");
    if (o->n_blocks < 1 || o->block_size < 1 || o->block_size > 1 << 20)
        return st_fail(err, ST_EINVAL,
                       "KV events: %d blocks of %d tokens: expected at least one block of 1 to "
                       "1048576 tokens",
                       o->n_blocks, o->block_size);
    if (o->port && o->port == o->replay_port)
        return st_fail(err, ST_EINVAL, "KV events: port and replay port are both %u", o->port);
    return ST_OK;
}

static st_status take_memory(st_event_publisher *p, const char *topic)
{
    p->topic = strdup(topic ? topic : "");
    p->kept = calloc(p->options.buffer_batches, sizeof *p->kept);
    if (!p->topic || !p->kept ||
        event_ledger_init(&p->changes, p->options.n_blocks, p->options.block_size) ||
        event_ledger_init(&p->cached, p->options.n_blocks, p->options.block_size))
        return ST_ENOMEM;
    return ring_init(&p->ring, p->options.n_blocks, p->options.block_size);
}

/* Signals are for the program's own threads: ZeroMQ's and ours are started with all blocked. */
static st_status start(st_event_publisher *p, const char *host, st_error *err)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    st_status s = open_sockets(p, host, err);
    if (s == ST_OK && pthread_create(&p->thread, NULL, event_publisher_run, p))
        s = st_fail(err, ST_EIO, "KV events: cannot start a thread");
    else if (s == ST_OK)
        p->started = true;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return s;
}

st_status st_event_publisher_new(const st_event_publisher_options *o, st_event_publisher **out,
                                 st_error *err)
{
    *out = NULL;
    st_status s = check_options(o, err);
    if (s)
        return s;
    st_event_publisher *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    if (!p)
        return st_fail(err, ST_ENOMEM, "KV events: out of memory");
    memset(p, 0, sizeof *p);
    p->options = *o;
    p->options.host = p->options.topic = NULL; /* the caller's; not needed later */
    if (!p->options.buffer_batches)
        p->options.buffer_batches = 10000;
    p->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (p->wake < 0)
        s = st_fail(err, ST_EIO, "KV events: eventfd: %s", strerror(errno));
    else if (take_memory(p, o->topic))
        s = st_fail(err, ST_ENOMEM, "KV events: out of memory for %d blocks", o->n_blocks);
    else
        s = start(p, o->host, err);
    if (s) {
        st_event_publisher_free(p);
        return s;
    }
    *out = p;
    return ST_OK;
}

void st_event_publisher_free(st_event_publisher *p)
{
    if (!p)
        return;
    if (p->started) {
        atomic_store(&p->stop, true);
        wake_thread(p);
        pthread_join(p->thread, NULL);
    }
    if (p->pub)
        zmq_close(p->pub);
    if (p->router)
        zmq_close(p->router);
    if (p->context)
        zmq_ctx_term(p->context);
    if (p->wake >= 0)
        close(p->wake);
    for (size_t i = 0; p->kept && i < p->options.buffer_batches; i++)
        free(p->kept[i].payload);
    free(p->kept);
    free(p->topic);
    free(p->ring.bytes);
    event_ledger_free(&p->changes);
    event_ledger_free(&p->cached);
    st_buf_free(&p->payload);
    st_buf_free(&p->salts);
    free(p->events);
    free(p->hashes);
    free(p->tokens);
    free(p);
}

uint16_t st_event_publisher_port(const st_event_publisher *p)
{
    return p->port;
}

uint16_t st_event_publisher_replay_port(const st_event_publisher *p)
{
    return p->replay_port;
}
