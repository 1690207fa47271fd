/* Threads for work that would block the I/O thread: parsing bodies, templates, tokenization.
 *
 * Large work takes seconds where most takes less than a millisecond. Of two or more threads one
 * never takes large work, so that the rest need not wait behind it. */
#ifndef ST_SERVER_WORK_QUEUE_H
#define ST_SERVER_WORK_QUEUE_H

#include <stdbool.h>

#include "starling/status.h"

typedef struct st_work_queue st_work_queue;

/* A piece of work, embedded by its owner, who keeps it alive until run has returned. */
typedef struct st_work {
    void (*run)(struct st_work *work);
    struct st_work *next;
    bool large; /* set by the owner before it is added */
} st_work;

ST_NODISCARD st_status st_work_queue_new(int n_threads, st_work_queue **out, st_error *err);
/* Runs what is still queued, then joins; NULL is fine. */
void st_work_queue_free(st_work_queue *q);
void st_work_queue_add(st_work_queue *q, st_work *work); /* in order */

#endif
