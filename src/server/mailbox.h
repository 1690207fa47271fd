/* What other threads tell the I/O thread: engine events and finished work, in order. Posting
 * never blocks for long (a copy under a mutex) and wakes the loop through an eventfd. */
#ifndef ST_SERVER_MAILBOX_H
#define ST_SERVER_MAILBOX_H

#include <event2/event.h>

#include "starling/engine.h"

typedef struct st_mail {
    void *to;          /* the poster's choice */
    bool is_event;     /* else: the work for `to` is done */
    st_token_event ev; /* when is_event; what it points to lives as long as the mail */
    size_t top_at;     /* internal */
    char *error;       /* internal */
    int32_t *blocks;   /* internal */
} st_mail;

typedef struct st_mailbox st_mailbox;

/* deliver runs on base's thread, once per mail. */
ST_NODISCARD st_status st_mailbox_new(struct event_base *base,
                                      void (*deliver)(void *user, const st_mail *mail), void *user,
                                      st_mailbox **out, st_error *err);
void st_mailbox_free(st_mailbox *m); /* undelivered mail is dropped; NULL is fine */
void st_mailbox_post_event(st_mailbox *m, void *to, const st_token_event *ev); /* any thread */
void st_mailbox_post_done(st_mailbox *m, void *to);                            /* any thread */

#endif
