/* The publisher's own thread (publisher_impl.h): takes changes out of the ring, publishes a batch,
 * keeps it for replay, and answers those who ask for one. Out of memory costs a batch: the next one
 * then begins with AllBlocksCleared and all that is cached. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <zmq.h>

#include "base/clock.h"
#include "events/kv_event.h"
#include "events/publisher_impl.h"

enum {
    KEPT_BYTES_MAX = 256 << 20, /* of all batches kept for replay */
    REPLAY_RETRY_MS = 2,        /* while a subscriber reads more slowly than we send */
    RUN_BLOCKS_MAX = 4096       /* in one event */
};

#define REPLAY_PATIENCE_NS 10000000000u

/* ---- a batch ---- */

static bool grow(void **array, size_t *cap, size_t n, size_t size)
{
    if (n <= *cap)
        return true;
    size_t want = *cap * 2 > n ? *cap * 2 : n < 64 ? 64 : n;
    void *bigger = realloc(*array, want * size);
    if (!bigger)
        return false;
    *array = bigger;
    *cap = want;
    return true;
}

/* Room for one more event of up to n blocks. Their hashes, tokens and salts follow one another in
 * arrays that may move until seal(). */
static bool batch_room(st_event_publisher *p, size_t n)
{
    size_t token_cap = p->hashes_cap, bs = (size_t)p->options.block_size;
    return grow((void **)&p->events, &p->events_cap, p->n_events + 1, sizeof *p->events) &&
           grow((void **)&p->tokens, &token_cap, p->n_hashes + n, bs * sizeof *p->tokens) &&
           grow((void **)&p->hashes, &p->hashes_cap, p->n_hashes + n, sizeof *p->hashes);
}

static void batch_begin(st_event_publisher *p)
{
    p->n_events = p->n_hashes = 0;
    st_buf_clear(&p->salts);
}

static bool batch_cleared(st_event_publisher *p)
{
    if (!batch_room(p, 0))
        return false;
    p->events[p->n_events++] = (st_kv_event){.type = ST_KV_CLEARED};
    return true;
}

static bool batch_removed(st_event_publisher *p, uint64_t hash)
{
    if (!batch_room(p, 1))
        return false;
    st_kv_event *e = p->n_events ? &p->events[p->n_events - 1] : NULL;
    if (!e || e->type != ST_KV_REMOVED || e->n_hashes == RUN_BLOCKS_MAX) {
        e = &p->events[p->n_events++];
        *e = (st_kv_event){.type = ST_KV_REMOVED};
    }
    e->n_hashes++;
    p->hashes[p->n_hashes++] = hash;
    return true;
}

/* A block as the ledger has it. One that continues the last event's chain joins it. */
static bool batch_stored(st_event_publisher *p, int32_t block)
{
    const ledger_entry *b = &p->cached.entries[block];
    if (!batch_room(p, 1))
        return false;
    size_t bs = (size_t)p->options.block_size;
    st_kv_event *e = p->n_events ? &p->events[p->n_events - 1] : NULL;
    if (!e || e->type != ST_KV_STORED || b->first || p->hashes[p->n_hashes - 1] != b->parent ||
        e->n_hashes == RUN_BLOCKS_MAX) {
        e = &p->events[p->n_events++];
        *e = (st_kv_event){.type = ST_KV_STORED,
                           .has_parent = !b->first,
                           .parent = b->first ? 0 : b->parent,
                           .block_size = p->options.block_size,
                           .salt_len = b->salt_len};
        if (st_buf_append(&p->salts, event_ledger_salt(&p->cached, block), b->salt_len))
            return false;
    }
    memcpy(p->tokens + p->n_hashes * bs, event_ledger_tokens(&p->cached, block),
           bs * sizeof *p->tokens);
    p->hashes[p->n_hashes++] = b->hash;
    e->n_hashes++;
    e->n_tokens += bs;
    return true;
}

/* All that is cached, after AllBlocksCleared. */
static bool batch_everything(st_event_publisher *p)
{
    batch_begin(p);
    bool good = batch_cleared(p);
    const event_ledger *l = &p->cached;
    for (int32_t b = event_ledger_first(l); good && b != l->n; b = l->entries[b].next)
        good = batch_stored(p, b);
    return good;
}

/* Encodes the batch into p->payload. */
static bool seal(st_event_publisher *p)
{
    size_t at = 0, salt_at = 0, bs = (size_t)p->options.block_size;
    for (size_t i = 0; i < p->n_events; i++) {
        st_kv_event *e = &p->events[i];
        e->salt = e->salt_len ? p->salts.data + salt_at : NULL;
        salt_at += e->salt_len;
        if (e->n_hashes) { /* else there may be no arrays yet */
            e->hashes = p->hashes + at;
            e->tokens = p->tokens + at * bs;
        }
        at += e->n_hashes;
    }
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    st_buf_clear(&p->payload);
    return st_kv_encode_batch(p->events, p->n_events, (double)t.tv_sec + (double)t.tv_nsec / 1e9,
                              p->options.dp_rank, !p->options.arrays, &p->payload) == ST_OK;
}

/* ---- publishing ---- */

static void sequence_bytes(int64_t seq, unsigned char out[8])
{
    for (int i = 0; i < 8; i++)
        out[i] = (unsigned char)((uint64_t)seq >> (56 - 8 * i));
}

static kept_batch *kept_slot(st_event_publisher *p, int64_t seq)
{
    return &p->kept[(size_t)seq % p->options.buffer_batches];
}

static void drop_oldest(st_event_publisher *p)
{
    kept_batch *k = kept_slot(p, p->oldest++);
    p->kept_bytes -= k->len;
    free(k->payload);
    *k = (kept_batch){0};
}

/* Keeps p->payload as the batch of a sequence. Without memory nothing older is kept either: what
 * is kept has no holes. */
static void keep(st_event_publisher *p, int64_t seq)
{
    while (p->oldest < seq && ((size_t)(seq - p->oldest) >= p->options.buffer_batches ||
                               p->kept_bytes + p->payload.len > KEPT_BYTES_MAX))
        drop_oldest(p);
    char *copy = malloc(p->payload.len);
    if (!copy) {
        while (p->oldest < seq)
            drop_oldest(p);
        p->oldest = seq + 1;
        return;
    }
    memcpy(copy, p->payload.data, p->payload.len);
    *kept_slot(p, seq) = (kept_batch){copy, p->payload.len};
    p->kept_bytes += p->payload.len;
}

static void publish(st_event_publisher *p)
{
    unsigned char seq[8];
    sequence_bytes(p->next_seq, seq);
    keep(p, p->next_seq++);
    /* A PUB socket never blocks: a subscriber that is too slow loses messages, sees the gap, and
     * asks for a replay. */
    if (zmq_send(p->pub, p->topic, strlen(p->topic), ZMQ_SNDMORE) >= 0 &&
        zmq_send(p->pub, seq, sizeof seq, ZMQ_SNDMORE) >= 0)
        (void)zmq_send(p->pub, p->payload.data, p->payload.len, 0);
}

/* Takes a record over into the ledger and the batch. */
static bool apply(st_event_publisher *p, const ring_record *rec)
{
    event_ledger *l = &p->cached;
    ledger_entry *e = &l->entries[rec->block];
    if (!rec->stored) {
        event_ledger_unlink(l, rec->block);
        e->present = false;
        return batch_removed(p, rec->hash);
    }
    size_t token_bytes = (size_t)l->block_size * sizeof(int32_t);
    e->hash = rec->hash;
    e->parent = rec->parent;
    e->first = rec->first;
    e->salt_len = rec->salt_len;
    e->present = true;
    memcpy(event_ledger_tokens(l, rec->block), rec + 1, token_bytes);
    memcpy(event_ledger_salt(l, rec->block), (const char *)(rec + 1) + token_bytes, rec->salt_len);
    event_ledger_append(l, rec->block);
    return batch_stored(p, rec->block);
}

/* Publishes what is in the ring as one batch. `whole` is set while the last batch could not be
 * made: then everything is published again. */
static void drain(st_event_publisher *p, bool *whole)
{
    uint64_t at = atomic_load_explicit(&p->ring.read, memory_order_relaxed), start = at;
    const ring_record *rec;
    batch_begin(p);
    bool good = !*whole;
    while ((rec = event_ring_next(&p->ring, &at)))
        good &= apply(p, rec);
    event_ring_done(&p->ring, at);
    if (at == start && !*whole)
        return;
    good = (good || batch_everything(p)) && seal(p);
    *whole = !good;
    if (good)
        publish(p);
}

/* ---- replay ---- */

static int receive(void *socket, void *buf, size_t cap, bool *more)
{
    int n = zmq_recv(socket, buf, cap, ZMQ_DONTWAIT), flag = 0;
    size_t len = sizeof flag;
    *more = zmq_getsockopt(socket, ZMQ_RCVMORE, &flag, &len) == 0 && flag;
    return n;
}

static void start_replay(st_event_publisher *p, const unsigned char *id, size_t id_len,
                         int64_t from)
{
    replay_client *c = NULL;
    for (int i = 0; i < REPLAY_CLIENTS; i++) {
        replay_client *k = &p->clients[i];
        if (k->active && k->id_len == id_len && memcmp(k->id, id, id_len) == 0) {
            c = k; /* asks again: from there */
            break;
        }
        if (!k->active && !c)
            c = k;
    }
    if (!c) /* the one that has waited longest gives way */
        for (int i = 0; i < REPLAY_CLIENTS; i++)
            if (!c || p->clients[i].progress_ns < c->progress_ns)
                c = &p->clients[i];
    *c = (replay_client){.id_len = (uint8_t)id_len,
                         .active = true,
                         .next = from < 0 ? 0 : from,
                         .progress_ns = st_now_ns()};
    memcpy(c->id, id, id_len);
}

/* Reads one request: [id, "", start]. False: there is none. */
static bool read_request(st_event_publisher *p)
{
    unsigned char id[256], empty[1], start[9], rest[1];
    bool more;
    int id_len = receive(p->router, id, sizeof id, &more);
    if (id_len < 0)
        return false;
    int empty_len = more ? receive(p->router, empty, sizeof empty, &more) : -1;
    int start_len = more ? receive(p->router, start, sizeof start, &more) : -1;
    bool good = id_len <= 255 && empty_len == 0 && start_len == 8 && !more;
    while (more)
        receive(p->router, rest, sizeof rest, &more);
    if (!good)
        return true;
    uint64_t from = 0;
    for (int i = 0; i < 8; i++)
        from = from << 8 | start[i];
    start_replay(p, id, (size_t)id_len, (int64_t)from);
    return true;
}

/* Sends [id, "", seq, payload]; false when it must wait, or the subscriber is gone. */
static bool send_reply(st_event_publisher *p, replay_client *c, int64_t seq, const void *payload,
                       size_t len)
{
    unsigned char bytes[8];
    sequence_bytes(seq, bytes);
    if (zmq_send(p->router, c->id, c->id_len, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0) {
        if (zmq_errno() != EAGAIN)
            c->active = false;
        return false;
    }
    if (zmq_send(p->router, "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0 ||
        zmq_send(p->router, bytes, sizeof bytes, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0 ||
        zmq_send(p->router, payload, len, ZMQ_DONTWAIT) < 0) {
        c->active = false;
        return false;
    }
    c->progress_ns = st_now_ns();
    return true;
}

/* Sends what a subscriber still misses, as far as it takes it. */
static void go_on(st_event_publisher *p, replay_client *c)
{
    while (c->active && c->next < p->next_seq) {
        if (c->next < p->oldest) { /* no longer kept: all that is cached, as of the newest */
            if (!batch_everything(p) || !seal(p)) {
                c->active = false;
                return;
            }
            if (!send_reply(p, c, p->next_seq - 1, p->payload.data, p->payload.len))
                return;
            c->next = p->next_seq;
        } else {
            const kept_batch *k = kept_slot(p, c->next);
            if (!send_reply(p, c, c->next, k->payload, k->len))
                return;
            c->next++;
        }
    }
    if (c->active && send_reply(p, c, -1, "", 0))
        c->active = false;
}

static bool serve_replays(st_event_publisher *p)
{
    bool waiting = false;
    for (int i = 0; i < REPLAY_CLIENTS; i++) {
        replay_client *c = &p->clients[i];
        if (!c->active)
            continue;
        go_on(p, c);
        if (st_now_ns() - c->progress_ns > REPLAY_PATIENCE_NS)
            c->active = false;
        waiting |= c->active;
    }
    return waiting;
}

/* ---- the thread ---- */

void *event_publisher_run(void *arg)
{
    st_event_publisher *p = arg;
    /* The first batch of this start: nothing is cached. Nobody hears it, but a replay begins with
     * it, so that a subscriber that comes back can tell that the engine has restarted. */
    bool whole = true, waiting = false;
    drain(p, &whole);
    while (!atomic_load_explicit(&p->stop, memory_order_relaxed)) {
        zmq_pollitem_t items[2] = {{NULL, p->wake, ZMQ_POLLIN, 0}, {p->router, 0, ZMQ_POLLIN, 0}};
        long timeout = waiting || whole ? REPLAY_RETRY_MS : -1;
        if (zmq_poll(items, 2, timeout) < 0 && zmq_errno() != EINTR)
            break;
        uint64_t woken;
        if (items[0].revents && read(p->wake, &woken, sizeof woken) < 0)
            woken = 0;
        drain(p, &whole);
        for (int i = 0; i < REPLAY_CLIENTS && read_request(p); i++)
            ;
        waiting = serve_replays(p);
    }
    return NULL;
}
