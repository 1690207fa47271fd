/* Work threads: see work_queue.h. */
#include "server/work_queue.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_THREADS = 16 };

struct st_work_queue {
    pthread_mutex_t lock;
    pthread_cond_t more;
    st_work *first[2], **tail[2];  /* [large] */
    bool closing, small_lane_open; /* the next thread to start takes small work alone */
    int n_threads;
    pthread_t threads[MAX_THREADS];
};

static st_work *take_from(st_work_queue *q, int lane)
{
    st_work *w = q->first[lane];
    if (!w)
        return NULL;
    q->first[lane] = w->next;
    if (!w->next)
        q->tail[lane] = &q->first[lane];
    return w;
}

/* Large work first: the small has a thread of its own. */
static st_work *take(st_work_queue *q, bool takes_large)
{
    st_work *w = takes_large ? take_from(q, 1) : NULL;
    return w ? w : take_from(q, 0);
}

static void *work_loop(void *arg)
{
    st_work_queue *q = arg;
    pthread_mutex_lock(&q->lock);
    bool takes_large = !q->small_lane_open;
    q->small_lane_open = false;
    for (;;) {
        st_work *w;
        while (!(w = take(q, takes_large)) && !q->closing)
            pthread_cond_wait(&q->more, &q->lock);
        if (!w)
            break;
        pthread_mutex_unlock(&q->lock);
        w->run(w);
        pthread_mutex_lock(&q->lock);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

st_status st_work_queue_new(int n_threads, st_work_queue **out, st_error *err)
{
    st_work_queue *q = calloc(1, sizeof *q);
    *out = NULL;
    if (!q)
        return st_fail(err, ST_ENOMEM, "work queue: memory is short");
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->more, NULL);
    q->tail[0] = &q->first[0];
    q->tail[1] = &q->first[1];
    q->small_lane_open = n_threads > 1;
    /* Signals are the main thread's business. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    int rc = 0;
    while (!rc && q->n_threads < n_threads && q->n_threads < MAX_THREADS) {
        rc = pthread_create(&q->threads[q->n_threads], NULL, work_loop, q);
        q->n_threads += rc == 0;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc) {
        st_work_queue_free(q);
        return st_fail(err, ST_EIO, "cannot start a thread: %s", strerror(rc));
    }
    *out = q;
    return ST_OK;
}

void st_work_queue_free(st_work_queue *q)
{
    if (!q)
        return;
    pthread_mutex_lock(&q->lock);
    q->closing = true;
    pthread_cond_broadcast(&q->more);
    pthread_mutex_unlock(&q->lock);
    for (int i = 0; i < q->n_threads; i++)
        pthread_join(q->threads[i], NULL);
    pthread_cond_destroy(&q->more);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

void st_work_queue_add(st_work_queue *q, st_work *work)
{
    work->next = NULL;
    pthread_mutex_lock(&q->lock);
    *q->tail[work->large] = work;
    q->tail[work->large] = &work->next;
    /* One signal could wake the thread that must leave large work alone. */
    if (work->large)
        pthread_cond_broadcast(&q->more);
    else
        pthread_cond_signal(&q->more);
    pthread_mutex_unlock(&q->lock);
}
