/* Threads for work that would block the I/O thread: parsing bodies, templates, tokenization. */
#ifndef ST_SERVER_WORK_QUEUE_H
#define ST_SERVER_WORK_QUEUE_H

#include "starling/status.h"

typedef struct st_work_queue st_work_queue;

/* A piece of work, embedded by its owner, who keeps it alive until run has returned. */
typedef struct st_work {
    void (*run)(struct st_work *work);
    struct st_work *next;
} st_work;

ST_NODISCARD st_status st_work_queue_new(int n_threads, st_work_queue **out, st_error *err);
/* Runs what is still queued, then joins; NULL is fine. */
void st_work_queue_free(st_work_queue *q);
void st_work_queue_add(st_work_queue *q, st_work *work); /* first come, first served */

#endif
