/* Follows the KV events of many engines (event_feed.h): the interface, and the thread that waits
 * for all sources at once. feed_source.c follows one. */
#include "events/event_feed.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "events/feed_impl.h"

enum {
    ENDPOINT_MAX = 1024,
    /* With many sources every wait costs a look at each: then events are collected for a moment. */
    MANY_SOURCES = 8,
    COLLECT_MS = 1
};

/* An order for the thread: source NULL drops the holder. */
typedef struct feed_order {
    struct feed_order *next;
    int holder;
    feed_source *source;
} feed_order;

/* ---- specs ---- */

void feed_spec_free(feed_spec *s)
{
    free(s->endpoint);
    free(s->replay);
    free(s->topic);
    free(s->model);
    *s = (feed_spec){0};
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

bool feed_spec_equal(const feed_spec *a, const feed_spec *b)
{
    return same_text(a->endpoint, b->endpoint) && same_text(a->replay, b->replay) &&
           same_text(a->topic, b->topic) && same_text(a->model, b->model) && a->state == b->state;
}

static bool spec_copy(const feed_spec *from, feed_spec *to)
{
    *to = (feed_spec){strdup(from->endpoint), from->replay ? strdup(from->replay) : NULL,
                      strdup(from->topic), strdup(from->model), from->state};
    if (to->endpoint && to->topic && to->model && !to->replay == !from->replay)
        return true;
    feed_spec_free(to);
    return false;
}

/* ---- the thread ---- */

static void take_order(st_event_feed *f, feed_order *o)
{
    feed_source *old = f->sources[o->holder], *new = o->source;
    /* Another address is another engine. A replay address that was learned later is not. */
    bool another = old && (!new || !same_text(old->spec.endpoint, new->spec.endpoint) ||
                           !same_text(old->spec.topic, new->spec.topic) ||
                           !same_text(old->spec.model, new->spec.model));
    if (another || !new)
        st_prefix_clear(f->index, o->holder);
    if (another)
        atomic_store(&old->spec.state->last_seq, -1);
    if (old && new && !another)
        new->last_digest = old->last_digest;
    feed_source_free(old);
    f->sources[o->holder] = new;
    free(o);
}

static void take_orders(st_event_feed *f)
{
    uint64_t n;
    if (read(f->wake, &n, sizeof n) < 0 && errno != EAGAIN && errno != EINTR)
        return;
    pthread_mutex_lock(&f->lock);
    feed_order *o = f->first;
    f->first = f->last = NULL;
    pthread_mutex_unlock(&f->lock);
    while (o) {
        feed_order *next = o->next;
        take_order(f, o);
        o = next;
    }
}

/* What the thread waits for: orders, and per source its connection and either its live messages
 * or its replay. */
typedef struct feed_wait {
    zmq_pollitem_t items[1 + 2 * ST_INDEX_MAX_HOLDERS];
    feed_source *of[ST_INDEX_MAX_HOLDERS];
    int n; /* sources */
    uint64_t deadline_ns;
} feed_wait;

static void prepare(st_event_feed *f, feed_wait *w)
{
    uint64_t now = st_now_ns();
    w->n = 0;
    w->deadline_ns = UINT64_MAX;
    w->items[0] = (zmq_pollitem_t){NULL, f->wake, ZMQ_POLLIN, 0};
    for (int h = 0; h < ST_INDEX_MAX_HOLDERS; h++) {
        feed_source *s = f->sources[h];
        if (!s)
            continue;
        uint64_t at = feed_source_deadline(s, now);
        w->deadline_ns = at < w->deadline_ns ? at : w->deadline_ns;
        w->items[1 + 2 * w->n] = (zmq_pollitem_t){s->monitor, 0, ZMQ_POLLIN, 0};
        w->items[2 + 2 * w->n] = (zmq_pollitem_t){s->dealer ? s->dealer : s->sub, 0, ZMQ_POLLIN, 0};
        w->of[w->n++] = s;
    }
}

static bool wait_and_serve(st_event_feed *f, feed_wait *w)
{
    prepare(f, w);
    long timeout = -1;
    if (w->deadline_ns != UINT64_MAX) {
        uint64_t now = st_now_ns();
        timeout = w->deadline_ns > now ? (long)((w->deadline_ns - now) / 1000000) + 1 : 0;
    }
    if (zmq_poll(w->items, 1 + 2 * w->n, timeout) < 0)
        return zmq_errno() == EINTR;
    for (int i = 0; i < w->n; i++) {
        feed_source *s = w->of[i];
        bool replaying = s->dealer != NULL;
        if (w->items[2 + 2 * i].revents && replaying)
            feed_source_replay(s);
        else if (w->items[2 + 2 * i].revents)
            feed_source_live(s);
        if (w->items[1 + 2 * i].revents)
            feed_source_connected(s);
    }
    if (w->items[0].revents)
        take_orders(f);
    return true;
}

static void *run(void *arg)
{
    st_event_feed *f = arg;
    feed_wait w = {.n = 0};
    while (!atomic_load(&f->stop) && wait_and_serve(f, &w))
        if (w.n > MANY_SOURCES) {
            struct pollfd order = {f->wake, POLLIN, 0};
            (void)poll(&order, 1, COLLECT_MS);
        }
    for (int h = 0; h < ST_INDEX_MAX_HOLDERS; h++)
        feed_source_free(f->sources[h]);
    return NULL;
}

/* ---- the interface ---- */

static void wake_thread(st_event_feed *f)
{
    uint64_t one = 1;
    ssize_t n;
    do
        n = write(f->wake, &one, sizeof one);
    while (n < 0 && errno == EINTR);
}

static st_status start_thread(st_event_feed *f, st_error *err)
{
    /* Signals are for the program's own threads: ZeroMQ's, which the first socket starts, and ours
     * are started with all blocked. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    st_status r = ST_OK;
    void *first = zmq_socket(f->context, ZMQ_PAIR);
    if (!first)
        r = st_fail(err, ST_EIO, "KV events: ZeroMQ: %s", zmq_strerror(zmq_errno()));
    else if (zmq_close(first) || pthread_create(&f->thread, NULL, run, f))
        r = st_fail(err, ST_EIO, "KV events: cannot start a thread");
    else
        f->started = true;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return r;
}

st_status st_event_feed_start(st_prefix_index *index, st_event_feed **out, st_error *err)
{
    *out = NULL;
    st_event_feed *f = calloc(1, sizeof *f);
    if (!f)
        return st_fail(err, ST_ENOMEM, "KV events: out of memory");
    f->index = index;
    st_prefix_recover(index); /* the last writer may have died */
    pthread_mutex_init(&f->lock, NULL);
    f->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    f->context = zmq_ctx_new();
    st_status r = ST_OK;
    if (f->wake < 0 || !f->context ||
        zmq_ctx_set(f->context, ZMQ_MAX_SOCKETS, 4 * ST_INDEX_MAX_HOLDERS + 64))
        r = st_fail(err, ST_EIO, "KV events: %s", strerror(errno));
    else if (st_kv_decoder_new(&f->decoder))
        r = st_fail(err, ST_ENOMEM, "KV events: out of memory");
    else
        r = start_thread(f, err);
    if (r) {
        st_event_feed_stop(f);
        return r;
    }
    *out = f;
    return ST_OK;
}

void st_event_feed_stop(st_event_feed *f)
{
    if (!f)
        return;
    if (f->started) {
        atomic_store(&f->stop, true);
        wake_thread(f);
        pthread_join(f->thread, NULL);
    }
    while (f->first) { /* orders that came too late */
        feed_order *o = f->first;
        f->first = o->next;
        feed_source_free(o->source);
        free(o);
    }
    if (f->context)
        zmq_ctx_term(f->context);
    if (f->wake >= 0)
        close(f->wake);
    for (int h = 0; h < ST_INDEX_MAX_HOLDERS; h++)
        feed_spec_free(&f->wanted[h]);
    st_kv_decoder_free(f->decoder);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

/* Under lock. The order is made before anything changes, so that nothing stays half done. */
static void give_order(st_event_feed *f, feed_order *o, feed_spec *wanted)
{
    feed_spec_free(&f->wanted[o->holder]);
    f->wanted[o->holder] = *wanted;
    if (f->last)
        f->last->next = o;
    else
        f->first = o;
    f->last = o;
    wake_thread(f);
}

static st_status check_source(const st_event_source *s, st_error *err)
{
    if (s->holder < 0 || s->holder >= ST_INDEX_MAX_HOLDERS)
        return st_fail(err, ST_EINVAL, "KV events: holder %d: expected 0 to %d", s->holder,
                       ST_INDEX_MAX_HOLDERS - 1);
    if (!s->endpoint || !s->endpoint[0] || strlen(s->endpoint) > ENDPOINT_MAX ||
        (s->replay && strlen(s->replay) > ENDPOINT_MAX))
        return st_fail(err, ST_EINVAL, "KV events: endpoint: expected 1 to %d characters",
                       ENDPOINT_MAX);
    if (!s->state)
        return st_fail(err, ST_EINVAL, "KV events of %s: no memory for its state", s->endpoint);
    return ST_OK;
}

st_status st_event_feed_set(st_event_feed *f, const st_event_source *source, st_error *err)
{
    st_status r = check_source(source, err);
    if (r)
        return r;
    feed_spec spec = {(char *)source->endpoint,
                      (char *)(source->replay && source->replay[0] ? source->replay : NULL),
                      (char *)(source->topic ? source->topic : ""),
                      (char *)(source->model ? source->model : ""), source->state};
    feed_spec wanted = {0};
    feed_order *o = NULL;
    pthread_mutex_lock(&f->lock);
    if (feed_spec_equal(&spec, &f->wanted[source->holder]))
        goto done;
    o = calloc(1, sizeof *o);
    if (!o || !spec_copy(&spec, &wanted)) {
        r = st_fail(err, ST_ENOMEM, "KV events of %s: out of memory", source->endpoint);
        goto done;
    }
    o->holder = source->holder;
    r = feed_source_open(f, source->holder, &spec, f->n_opened++, &o->source, err);
    if (r == ST_OK) {
        give_order(f, o, &wanted);
        o = NULL;
    } else {
        feed_spec_free(&wanted);
    }
done:
    pthread_mutex_unlock(&f->lock);
    free(o);
    return r;
}

st_status st_event_feed_drop(st_event_feed *f, int holder)
{
    if (holder < 0 || holder >= ST_INDEX_MAX_HOLDERS)
        return ST_EINVAL;
    feed_order *o = calloc(1, sizeof *o);
    if (!o)
        return ST_ENOMEM;
    o->holder = holder;
    feed_spec none = {0};
    pthread_mutex_lock(&f->lock);
    give_order(f, o, &none);
    pthread_mutex_unlock(&f->lock);
    return ST_OK;
}
