/* The processes of `starling up`: started, watched and stopped together. Each is in a process group
 * of its own, so that Ctrl-C reaches only the parent, and gets SIGTERM when the parent dies. */
#ifndef ST_CLI_UP_STACK_H
#define ST_CLI_UP_STACK_H

#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/types.h>

#include "starling/buf.h"
#include "starling/status.h"

enum { ST_UP_ENGINES_MAX = 64, ST_UP_PATH_MAX = 512 };

typedef struct st_up_child {
    char name[48]; /* "prefill engine 0", "gateway" */
    pid_t pid;     /* 0: ended and waited for */
    pid_t group;   /* its process group */
    bool gateway;
} st_up_child;

typedef struct st_up_stack {
    char dir[ST_UP_PATH_MAX]; /* private: sockets, nginx.conf, log */
    st_up_child children[ST_UP_ENGINES_MAX + 1];
    size_t n;
    int signals; /* signalfd */
    sigset_t before;
    int log;  /* the children's stderr, or -1: ours */
    int stop; /* SIGINT or SIGTERM came so often */
} st_up_stack;

typedef enum st_up_event {
    ST_UP_TIMEOUT,
    ST_UP_READY, /* fd is readable */
    ST_UP_STOP,  /* SIGINT or SIGTERM */
    ST_UP_DIED   /* a child ended; err says which and how */
} st_up_event;

/* Makes the folder and takes the signals. quiet: children write to dir/log instead of stderr. */
ST_NODISCARD st_status st_up_open(st_up_stack *s, bool quiet, st_error *err);
/* argv[0] is the program's path. cpus: those it may run on; NULL: all. */
ST_NODISCARD st_status st_up_spawn(st_up_stack *s, const char *name, bool gateway,
                                   const cpu_set_t *cpus, char *const argv[], st_error *err);
/* Waits for fd (-1: none), a signal or a death. timeout_ms: -1: for ever. */
st_up_event st_up_wait(st_up_stack *s, int fd, int timeout_ms, st_error *err);
/* The gateway first, when its requests are done the engines; removes the folder. A second signal,
 * or drain_s seconds each, ends them at once. */
void st_up_close(st_up_stack *s, int drain_s);

/* A connection to a unix socket, or -1. */
int st_up_connect(const char *path);
/* The answer to a GET: status and body. Gives up after some seconds. */
ST_NODISCARD st_status st_up_get(const char *socket, const char *path, int *status, st_buf *body);

#endif
