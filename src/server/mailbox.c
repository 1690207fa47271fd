/* Mail to the I/O thread: see mailbox.h. Two arrays take turns: one is filled under the lock
 * while the other is being delivered. Memory that cannot be had for a mail would lose a request's
 * end, so a post then waits for the loop to make room by retrying. */
#include "server/mailbox.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

typedef struct mail_list {
    st_mail *mails;
    size_t n, cap;
    st_logprob *tops;
    size_t n_tops, cap_tops;
} mail_list;

struct st_mailbox {
    pthread_mutex_t lock;
    mail_list filling, delivering;
    int fd;
    struct event *readable;
    void (*deliver)(void *user, const st_mail *mail);
    void *user;
};

static void *grown(void *data, size_t *cap, size_t need, size_t size)
{
    if (need <= *cap)
        return data;
    size_t cap2 = *cap ? *cap * 2 : 64;
    while (cap2 < need)
        cap2 *= 2;
    void *p = realloc(data, cap2 * size);
    if (p)
        *cap = cap2;
    return p;
}

/* Room for one mail with n_top alternatives; false when memory is short. */
static bool make_room(mail_list *l, size_t n_top)
{
    void *p = grown(l->mails, &l->cap, l->n + 1, sizeof *l->mails);
    if (!p)
        return false;
    l->mails = p;
    if (n_top == 0)
        return true;
    p = grown(l->tops, &l->cap_tops, l->n_tops + n_top, sizeof *l->tops);
    if (!p)
        return false;
    l->tops = p;
    return true;
}

static void post(st_mailbox *m, const st_mail *mail)
{
    size_t n_top = mail->is_event && mail->ev.n_top > 0 ? (size_t)mail->ev.n_top : 0;
    pthread_mutex_lock(&m->lock);
    mail_list *l = &m->filling;
    while (!make_room(l, n_top)) {
        pthread_mutex_unlock(&m->lock);
        nanosleep(&(struct timespec){0, 1000000}, NULL);
        pthread_mutex_lock(&m->lock);
    }
    bool wake = l->n == 0;
    st_mail *to = &l->mails[l->n++];
    *to = *mail;
    to->top_at = l->n_tops;
    if (n_top)
        memcpy(l->tops + l->n_tops, mail->ev.top, n_top * sizeof *l->tops);
    l->n_tops += n_top;
    pthread_mutex_unlock(&m->lock);
    if (wake) {
        uint64_t one = 1;
        while (write(m->fd, &one, sizeof one) < 0 && errno == EINTR)
            ;
    }
}

void st_mailbox_post_event(st_mailbox *m, void *to, const st_token_event *ev)
{
    st_mail mail = {.to = to, .is_event = true, .ev = *ev};
    mail.error = ev->error ? strdup(ev->error) : NULL;
    if (ev->n_offered_blocks > 0) {
        size_t bytes = (size_t)ev->n_offered_blocks * sizeof *mail.blocks;
        mail.blocks = malloc(bytes);
        if (mail.blocks)
            memcpy(mail.blocks, ev->offered_blocks, bytes);
        else
            mail.ev.n_offered_blocks = 0; /* the fetcher can do without */
    }
    post(m, &mail);
}

void st_mailbox_post_done(st_mailbox *m, void *to)
{
    st_mail mail = {.to = to};
    post(m, &mail);
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
    (void)what;
    st_mailbox *m = arg;
    uint64_t count;
    (void)!read(fd, &count, sizeof count);
    pthread_mutex_lock(&m->lock);
    mail_list list = m->filling;
    m->filling = m->delivering;
    m->filling.n = m->filling.n_tops = 0;
    pthread_mutex_unlock(&m->lock);
    for (size_t i = 0; i < list.n; i++) {
        st_mail *mail = &list.mails[i];
        if (mail->is_event) {
            mail->ev.top = list.tops ? list.tops + mail->top_at : NULL;
            mail->ev.error = mail->error;
            mail->ev.offered_blocks = mail->blocks;
        }
        m->deliver(m->user, mail);
        free(mail->error);
        free(mail->blocks);
    }
    m->delivering = list;
}

st_status st_mailbox_new(struct event_base *base, void (*deliver)(void *user, const st_mail *mail),
                         void *user, st_mailbox **out, st_error *err)
{
    *out = NULL;
    st_mailbox *m = calloc(1, sizeof *m);
    if (!m)
        return st_fail(err, ST_ENOMEM, "mailbox: memory is short");
    m->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (m->fd >= 0)
        m->readable = event_new(base, m->fd, EV_READ | EV_PERSIST, on_readable, m);
    if (!m->readable || event_add(m->readable, NULL)) {
        if (m->readable)
            event_free(m->readable);
        if (m->fd >= 0)
            close(m->fd);
        free(m);
        return st_fail(err, ST_EIO, "mailbox: %s", strerror(errno));
    }
    pthread_mutex_init(&m->lock, NULL);
    m->deliver = deliver;
    m->user = user;
    *out = m;
    return ST_OK;
}

void st_mailbox_free(st_mailbox *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->filling.n; i++) {
        free(m->filling.mails[i].error);
        free(m->filling.mails[i].blocks);
    }
    free(m->filling.mails);
    free(m->filling.tops);
    free(m->delivering.mails);
    free(m->delivering.tops);
    event_free(m->readable);
    close(m->fd);
    pthread_mutex_destroy(&m->lock);
    free(m);
}
