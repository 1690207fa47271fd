/* Is that process still the same and alive: pid and start time from /proc. */
#include "cluster/cluster_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PID_BITS = 24 };

/* The state letter and the start time in clock ticks (fields 3 and 22 of proc(5)'s stat). False:
 * no such process, or no /proc. */
static bool process_stat(pid_t pid, char *state, uint64_t *start)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) {
        return false;
    }
    text[n] = 0;
    char *at = strrchr(text, ')'); /* the name before it may hold anything */
    if (!at || at[1] != ' ') {
        return false;
    }
    *state = at[2];
    at += 2;
    for (int field = 3; field < 22; field++) {
        at = strchr(at, ' ');
        if (!at) {
            return false;
        }
        at++;
    }
    *start = strtoull(at, NULL, 10);
    return true;
}

st_identity st_identity_self(void)
{
    pid_t pid = getpid();
    char state;
    uint64_t start = 0;
    if (!process_stat(pid, &state, &start)) {
        start = 0; /* no /proc: the pid alone has to do */
    }
    return (uint64_t)pid | (start & UINT32_MAX) << PID_BITS;
}

bool st_identity_seems_alive(st_identity id)
{
    pid_t pid = (pid_t)(id & ((1u << PID_BITS) - 1));
    return kill(pid, 0) == 0 || errno == EPERM;
}

bool st_identity_alive(st_identity id)
{
    if (!st_identity_seems_alive(id)) {
        return false;
    }
    pid_t pid = (pid_t)(id & ((1u << PID_BITS) - 1));
    char state;
    uint64_t start;
    if (!process_stat(pid, &state, &start)) {
        return st_identity_seems_alive(id); /* died just now, or /proc hides it */
    }
    return state != 'Z' && state != 'X' && (id >> PID_BITS) == (start & UINT32_MAX);
}

st_identity st_cluster_self(st_cluster *c)
{
    st_identity self = atomic_load(&c->self);
    if ((pid_t)(self & ((1u << PID_BITS) - 1)) != getpid()) {
        self = st_identity_self();
        atomic_store(&c->self, self);
    }
    return self;
}
