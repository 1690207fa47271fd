/* Follows the KV events of one source (event_feed.h): sequence, gaps, replay, restarts, and what
 * an event means for the index. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "base/clock.h"
#include "events/feed_impl.h"

enum {
    LIVE_MESSAGE_MAX = 8 << 20, /* bytes */
    LIVE_QUEUE = 128,           /* messages that wait in the socket */
    REPLAY_MESSAGE_MAX = 64 << 20,
    REPLAY_QUEUE = 8,
    MESSAGES_AT_ONCE = 64, /* of one source before the others have their turn */
    CPU_CHUNK = 256
};

#define REPLAY_IDLE_NS  3000000000u  /* a replay that says nothing for so long is given up */
#define REPLAY_WHOLE_NS 60000000000u /* or one that takes longer than this */

/* A block may lie in GPU and CPU memory at once, under one hash: the index then knows two. */
#define CPU_HASH 0x5bd1e9955bd1e995u

static void begin_replay(feed_source *s, int64_t from);
static void probe(feed_source *s);

static int64_t last_seq(const feed_source *s)
{
    return atomic_load_explicit(&s->spec.state->last_seq, memory_order_relaxed);
}

static void set_last_seq(feed_source *s, int64_t seq)
{
    atomic_store_explicit(&s->spec.state->last_seq, seq, memory_order_relaxed);
}

static void count(_Atomic uint64_t *c, uint64_t n)
{
    atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

/* ---- what events mean ---- */

static st_status store_gpu(feed_source *s, uint64_t root, const st_kv_event *e)
{
    st_prefix_index *x = s->feed->index;
    st_status r = st_prefix_store(x, s->holder, root, e->has_parent, e->parent, e->hashes,
                                  e->n_hashes, e->tokens, e->block_size);
    if (r != ST_ENOTFOUND)
        return r;
    return st_prefix_store(x, s->holder, root, true, e->parent ^ CPU_HASH, e->hashes, e->n_hashes,
                           e->tokens, e->block_size);
}

static st_status store_cpu(feed_source *s, uint64_t root, const st_kv_event *e)
{
    st_prefix_index *x = s->feed->index;
    uint64_t hashes[CPU_CHUNK], parent = e->parent ^ CPU_HASH;
    bool has_parent = e->has_parent;
    for (size_t i = 0; i < e->n_hashes; i += CPU_CHUNK) {
        size_t n = e->n_hashes - i < CPU_CHUNK ? e->n_hashes - i : CPU_CHUNK;
        for (size_t k = 0; k < n; k++)
            hashes[k] = e->hashes[i + k] ^ CPU_HASH;
        const int32_t *tokens = e->tokens + i * (size_t)e->block_size;
        st_status r = st_prefix_store(x, s->holder, root, has_parent, parent, hashes, n, tokens,
                                      e->block_size);
        if (r == ST_ENOTFOUND)
            r = st_prefix_store(x, s->holder, root, true, parent ^ CPU_HASH, hashes, n, tokens,
                                e->block_size);
        if (r)
            return r;
        has_parent = true;
        parent = hashes[n - 1];
    }
    return ST_OK;
}

static void on_event(void *user, const st_kv_event *e)
{
    feed_source *s = user;
    if (e->type == ST_KV_CLEARED) {
        st_prefix_clear(s->feed->index, s->holder);
        return;
    }
    /* Blocks on disk and beyond are not counted as held. Of several kinds of KV cache the first
     * is followed: the others (sliding windows) come and go under the same hashes. */
    if (e->medium == ST_MEDIUM_OTHER || e->group > 0)
        return;
    bool cpu = e->medium == ST_MEDIUM_CPU;
    if (e->type == ST_KV_REMOVED) {
        for (size_t i = 0; i < e->n_hashes; i++)
            (void)st_prefix_remove(s->feed->index, s->holder,
                                   cpu ? e->hashes[i] ^ CPU_HASH : e->hashes[i]);
        return;
    }
    uint64_t root = st_prefix_root(s->spec.model, strlen(s->spec.model), e->lora_name,
                                   e->lora_name_len, e->salt, e->salt_len);
    if ((cpu ? store_cpu(s, root, e) : store_gpu(s, root, e)) != ST_OK)
        count(&s->spec.state->orphans, 1);
    else
        atomic_store(&s->spec.state->block_size, e->block_size);
}

static void clear_holder(feed_source *s)
{
    st_prefix_clear(s->feed->index, s->holder);
}

static uint64_t digest(const feed_message *m)
{
    zmq_msg_t *payload = (zmq_msg_t *)&m->frames[2];
    uint64_t d = XXH3_64bits(zmq_msg_data(payload), zmq_msg_size(payload));
    return d ? d : 1;
}

static void apply(feed_source *s, feed_message *m)
{
    st_event_source_state *state = s->spec.state;
    st_kv_batch_info info;
    st_status r = st_kv_decode(s->feed->decoder, zmq_msg_data(&m->frames[2]),
                               zmq_msg_size(&m->frames[2]), on_event, s, &info);
    count(&state->events, info.events);
    count(&state->skipped, info.skipped);
    count(&state->batches, 1);
    if (r) { /* it may have said that blocks are gone: better none than wrong ones */
        count(&state->skipped, 1);
        clear_holder(s);
    }
    s->last_digest = digest(m);
    set_last_seq(s, m->seq);
    atomic_store_explicit(&state->last_ns, st_now_ns(), memory_order_relaxed);
}

/* ---- sequence ---- */

static void free_message(feed_message *m)
{
    for (int i = 0; i < 3; i++)
        zmq_msg_close(&m->frames[i]);
}

/* Keeps a live message until the replay is over. */
static void hold(feed_source *s, feed_message *m)
{
    s->pending = *m; /* the frames move along */
    s->has_pending = true;
}

static void forget_engine(feed_source *s)
{
    count(&s->spec.state->restarts, 1);
    clear_holder(s);
    set_last_seq(s, -1);
    s->last_digest = 0;
    s->seen = s->repeat_until = -1;
}

/* A message that the one before does not lead up to, and no replay helps. */
static void apply_afresh(feed_source *s, feed_message *m)
{
    clear_holder(s);
    apply(s, m);
}

/* Takes the message over. */
static void on_live(feed_source *s, feed_message *m)
{
    int64_t last = last_seq(s);
    if (m->seq <= last) {
        bool repeated = m->seq > s->seen && m->seq <= s->repeat_until;
        if (repeated)
            s->seen = m->seq;
        bool known = m->seq == last && s->last_digest && s->last_digest == digest(m);
        if (known || (repeated && m->seq < last)) {
            free_message(m);
            return;
        }
        forget_engine(s);
        last = -1;
    }
    s->repeat_until = -1; /* they come in order: the repeats are over */
    if (m->seq != last + 1) {
        if (last >= 0)
            count(&s->spec.state->gaps, 1);
        if (s->spec.replay) {
            hold(s, m);
            begin_replay(s, last + 1);
            return;
        }
        apply_afresh(s, m);
    } else {
        apply(s, m);
    }
    free_message(m);
}

/* Reads a message of three frames, the second being a sequence. False: none there. Others are
 * skipped and counted. */
static bool receive(feed_source *s, void *socket, feed_message *m)
{
    for (;;) {
        int n = 0, more = 1;
        size_t len = sizeof more;
        while (more) {
            zmq_msg_t extra, *frame = n < 3 ? &m->frames[n] : &extra;
            zmq_msg_init(frame);
            if (zmq_msg_recv(frame, socket, ZMQ_DONTWAIT) < 0) {
                zmq_msg_close(frame);
                for (int i = 0; i < n && i < 3; i++)
                    zmq_msg_close(&m->frames[i]);
                return false;
            }
            if (n >= 3)
                zmq_msg_close(&extra);
            n++;
            if (zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &len))
                more = 0;
        }
        if (n == 3 && zmq_msg_size(&m->frames[1]) == 8) {
            const unsigned char *b = zmq_msg_data(&m->frames[1]);
            uint64_t v = 0;
            for (int i = 0; i < 8; i++)
                v = v << 8 | b[i];
            m->seq = (int64_t)v;
            return true;
        }
        count(&s->spec.state->skipped, 1);
        for (int i = 0; i < n && i < 3; i++)
            zmq_msg_close(&m->frames[i]);
    }
}

void feed_source_live(feed_source *s)
{
    feed_message m;
    for (int i = 0; i < MESSAGES_AT_ONCE && !s->dealer && receive(s, s->sub, &m); i++) {
        if (m.seq >= 0) {
            on_live(s, &m);
            continue;
        }
        count(&s->spec.state->skipped, 1);
        free_message(&m);
    }
}

/* ---- replay ---- */

static int set_int(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value);
}

/* What all sockets of a source have: nothing lingers, and reconnecting goes on for ever. */
static int common_options(void *socket, int queue, int64_t message_max)
{
    return set_int(socket, ZMQ_LINGER, 0) || set_int(socket, ZMQ_IPV6, 1) ||
           set_int(socket, ZMQ_RCVHWM, queue) || set_int(socket, ZMQ_RECONNECT_IVL, 50) ||
           set_int(socket, ZMQ_RECONNECT_IVL_MAX, 2000) ||
           set_int(socket, ZMQ_CONNECT_TIMEOUT, 2000) || set_int(socket, ZMQ_TCP_KEEPALIVE, 1) ||
           set_int(socket, ZMQ_TCP_KEEPALIVE_IDLE, 10) ||
           set_int(socket, ZMQ_TCP_KEEPALIVE_INTVL, 5) ||
           set_int(socket, ZMQ_TCP_KEEPALIVE_CNT, 3) ||
           zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &message_max, sizeof message_max);
}

static void close_dealer(feed_source *s)
{
    if (s->dealer)
        zmq_close(s->dealer);
    s->dealer = NULL;
}

/* The replay is over, or given up: live again, beginning with what was held. */
static void go_live(feed_source *s)
{
    close_dealer(s);
    s->seen = s->before;
    s->repeat_until = last_seq(s);
    if (s->has_pending) {
        s->has_pending = false;
        int64_t last = last_seq(s);
        if (s->pending.seq > last + 1)
            apply_afresh(s, &s->pending); /* what lies between is lost */
        else if (s->pending.seq == last + 1)
            apply(s, &s->pending);
        if (s->pending.seq <= last)
            s->seen = s->pending.seq;
        else
            s->repeat_until = -1;
        free_message(&s->pending);
    }
    if (s->probe_again && !s->dealer)
        probe(s);
}

/* A socket of its own for every replay: no answer to an earlier one can come. */
static void begin_replay(feed_source *s, int64_t from)
{
    unsigned char start[8];
    for (int i = 0; i < 8; i++)
        start[i] = (unsigned char)((uint64_t)from >> (56 - 8 * i));
    s->before = last_seq(s);
    s->probing = s->before >= 0 && from == s->before;
    s->probe_known = false;
    s->idle_deadline_ns = st_now_ns() + REPLAY_IDLE_NS;
    s->whole_deadline_ns = st_now_ns() + REPLAY_WHOLE_NS;
    s->dealer = zmq_socket(s->feed->context, ZMQ_DEALER);
    if (!s->dealer)
        go_live(s);
    else if (common_options(s->dealer, REPLAY_QUEUE, REPLAY_MESSAGE_MAX) ||
             zmq_connect(s->dealer, s->spec.replay) ||
             zmq_send(s->dealer, "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0 ||
             zmq_send(s->dealer, start, sizeof start, ZMQ_DONTWAIT) < 0)
        s->idle_deadline_ns = 0; /* given up at the next look */
}

/* The engine does not have what was asked for: it is another one than before. */
static void replay_from_start(feed_source *s)
{
    forget_engine(s);
    close_dealer(s);
    begin_replay(s, 0);
}

static void end_replay(feed_source *s)
{
    if (s->probing && !s->probe_known)
        replay_from_start(s);
    else
        go_live(s);
}

/* Takes the message over. */
static void on_replayed(feed_source *s, feed_message *m)
{
    int64_t last = last_seq(s);
    if (s->probing && m->seq == last && !s->probe_known) {
        bool same = !s->last_digest || s->last_digest == digest(m);
        s->probe_known = true;
        s->last_digest = digest(m);
        free_message(m);
        if (!same)
            replay_from_start(s);
        return;
    }
    if (m->seq > last) {
        s->probe_known = true;
        if (m->seq == last + 1) {
            apply(s, m);
        } else { /* the rest is no longer kept */
            if (last >= 0)
                count(&s->spec.state->gaps, 1);
            apply_afresh(s, m);
        }
        count(&s->spec.state->replayed, 1);
    }
    free_message(m);
}

void feed_source_replay(feed_source *s)
{
    feed_message m;
    for (int i = 0; i < MESSAGES_AT_ONCE && s->dealer && receive(s, s->dealer, &m); i++) {
        s->idle_deadline_ns = st_now_ns() + REPLAY_IDLE_NS;
        if (m.seq >= 0) {
            on_replayed(s, &m);
            continue;
        }
        free_message(&m);
        end_replay(s);
    }
}

uint64_t feed_source_deadline(feed_source *s, uint64_t now_ns)
{
    if (!s->dealer)
        return UINT64_MAX;
    uint64_t at =
        s->idle_deadline_ns < s->whole_deadline_ns ? s->idle_deadline_ns : s->whole_deadline_ns;
    if (now_ns < at)
        return at;
    go_live(s);
    return s->dealer ? now_ns : UINT64_MAX;
}

/* Messages may have gone by, and the engine may be another one: asks for what came after the last
 * one, and for that one itself to compare. */
static void probe(feed_source *s)
{
    s->probe_again = false;
    begin_replay(s, last_seq(s) < 0 ? 0 : last_seq(s));
}

void feed_source_connected(feed_source *s)
{
    bool any = false;
    for (;;) {
        zmq_msg_t m;
        zmq_msg_init(&m);
        bool got = zmq_msg_recv(&m, s->monitor, ZMQ_DONTWAIT) >= 0;
        /* The first frame of a report holds its kind; only one kind was asked for. */
        any |= got && zmq_msg_more(&m);
        zmq_msg_close(&m);
        if (!got)
            break;
    }
    if (!any || !s->spec.replay)
        return;
    if (s->dealer)
        s->probe_again = true;
    else
        probe(s);
}

/* ---- life ---- */

void feed_source_free(feed_source *s)
{
    if (!s)
        return;
    if (s->has_pending)
        free_message(&s->pending);
    if (s->dealer)
        zmq_close(s->dealer);
    if (s->sub) {
        zmq_socket_monitor(s->sub, NULL, 0);
        zmq_close(s->sub);
    }
    if (s->monitor)
        zmq_close(s->monitor);
    feed_spec_free(&s->spec);
    free(s);
}

static char *copy(const char *s)
{
    return s ? strdup(s) : NULL;
}

st_status feed_source_open(st_event_feed *f, int holder, const feed_spec *spec, unsigned number,
                           feed_source **out, st_error *err)
{
    *out = NULL;
    feed_source *s = calloc(1, sizeof *s);
    if (!s)
        return st_fail(err, ST_ENOMEM, "KV events of %s: out of memory", spec->endpoint);
    s->feed = f;
    s->holder = holder;
    s->seen = s->repeat_until = -1;
    s->spec = (feed_spec){copy(spec->endpoint), copy(spec->replay), copy(spec->topic),
                          copy(spec->model), spec->state};
    char name[64];
    snprintf(name, sizeof name, "inproc://connected-%u", number);
    s->sub = zmq_socket(f->context, ZMQ_SUB);
    s->monitor = zmq_socket(f->context, ZMQ_PAIR);
    bool copied =
        s->spec.endpoint && s->spec.topic && s->spec.model && (!spec->replay || s->spec.replay);
    if (!copied || !s->sub || !s->monitor || set_int(s->monitor, ZMQ_LINGER, 0) ||
        common_options(s->sub, LIVE_QUEUE, LIVE_MESSAGE_MAX) ||
        zmq_setsockopt(s->sub, ZMQ_SUBSCRIBE, spec->topic, strlen(spec->topic)) ||
        zmq_socket_monitor(s->sub, name, ZMQ_EVENT_HANDSHAKE_SUCCEEDED) ||
        zmq_connect(s->monitor, name)) {
        st_status r = st_fail(err, copied ? ST_EIO : ST_ENOMEM, "KV events of %s: ZeroMQ: %s",
                              spec->endpoint, zmq_strerror(zmq_errno()));
        feed_source_free(s);
        return r;
    }
    if (zmq_connect(s->sub, spec->endpoint)) {
        st_status r = st_fail(err, ST_EINVAL, "KV events: cannot connect to '%s': %s",
                              spec->endpoint, zmq_strerror(zmq_errno()));
        feed_source_free(s);
        return r;
    }
    *out = s;
    return ST_OK;
}
