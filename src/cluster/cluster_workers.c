/* Worker processes: rows, the sockets that wake them, the death of one, and who leads. */
#include "cluster/cluster_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"

/* ---- waking ---- */

/* In the abstract namespace: no file to be left behind, gone with the process. */
static socklen_t socket_address(const st_cluster *c, int row, struct sockaddr_un *a)
{
    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX;
    int n = snprintf(a->sun_path + 1, sizeof a->sun_path - 1, "starling-%016" PRIx64 "-%d-%u",
                     c->region->nonce, row, atomic_load(&c->rows[row].generation));
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
}

bool st_row_wake(st_cluster *c, int row, bool forced)
{
    if (atomic_exchange(&c->rows[row].wake_pending, 1) && !forced) {
        return true; /* its owner will clear this before it looks: it cannot miss us */
    }
    struct sockaddr_un a;
    socklen_t len = socket_address(c, row, &a);
    for (int i = 0; i < 3; i++) {
        if (sendto(c->send_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&a, len) >=
            0) {
            return true;
        }
        if (errno == ECONNREFUSED || errno == ENOENT) {
            return false;
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK) {
            return true; /* its queue is full: it is readable */
        }
    }
    atomic_store(&c->rows[row].wake_pending, 0); /* out of memory: the next one tries again */
    return true;
}

static void wake_rows(st_cluster *c, bool forced)
{
    uint32_t end = atomic_load(&c->region->rows_end);
    for (uint32_t row = 0; row < end; row++) {
        if ((atomic_load(&c->rows[row].word) & 255) == ST_ROW_USED) {
            (void)st_row_wake(c, (int)row, forced);
        }
    }
}

void st_cluster_wake(st_cluster *c, int row)
{
    if (row < 0) {
        wake_rows(c, false);
    } else {
        (void)st_row_wake(c, row, false);
    }
}

static int open_wake_socket(st_cluster *c, int row, st_error *err)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        st_fail(err, ST_EIO, "cannot open the socket that wakes worker %d: %s", row,
                strerror(errno));
        return -1;
    }
    atomic_fetch_add(&c->rows[row].generation, 1);
    atomic_store(&c->rows[row].wake_pending, 0);
    struct sockaddr_un a;
    socklen_t len = socket_address(c, row, &a);
    if (bind(fd, (struct sockaddr *)&a, len) < 0) {
        st_fail(err, ST_EIO, "cannot bind the socket that wakes worker %d: %s", row,
                strerror(errno));
        close(fd);
        return -1;
    }
    return fd;
}

/* ---- rows ---- */

/* What a worker leaves behind. Each step may be done twice: whoever does it may die over it. */
static void clean_row(st_cluster *c, int row)
{
    for (int32_t e = 0; e < ST_CLUSTER_MAX_ENGINES; e++) {
        st_atomic_load *l = st_row_load(c, row, e);
        atomic_store(&l->requests, 0);
        atomic_store(&l->prefill_requests, 0);
        atomic_store(&l->prefill_tokens, 0);
        atomic_store(&l->decode_requests, 0);
        atomic_store(&l->decode_tokens, 0);
    }
    st_queue_free_row(c, row);
    st_requests_free_row(c, row);
    uint64_t leader = atomic_load(&c->region->leader);
    if ((leader & 255) == (uint64_t)row + 1) {
        atomic_compare_exchange_strong(&c->region->leader, &leader, 0);
    }
}

int st_cluster_reap(st_cluster *c)
{
    st_identity self = st_identity_self();
    uint32_t end = atomic_load(&c->region->rows_end);
    int reaped = 0;
    for (uint32_t row = 0; row < end; row++) {
        uint64_t word = atomic_load(&c->rows[row].word);
        if ((word & 255) == ST_ROW_FREE || st_identity_alive(word >> 8)) {
            continue;
        }
        uint64_t mine = self << 8 | ST_ROW_REAPING;
        if (!atomic_compare_exchange_strong(&c->rows[row].word, &word, mine)) {
            continue;
        }
        clean_row(c, (int)row);
        atomic_store(&c->rows[row].word, ST_ROW_FREE);
        reaped++;
    }
    if (reaped > 0) {
        atomic_fetch_add(&c->region->metrics.workers_reaped, (uint64_t)reaped);
        /* The dead may have been about to wake somebody: all look, whatever the flags say. */
        atomic_fetch_add(&c->region->room_epoch, 1);
        st_cluster_pump_with(c, st_now_ns(), true);
        wake_rows(c, true);
    }
    return reaped;
}

static int take_row(st_cluster *c)
{
    uint64_t mine = st_identity_self() << 8 | ST_ROW_USED;
    for (int row = 0; row < ST_CLUSTER_MAX_WORKERS; row++) {
        /* First, so that who adds up the rows never misses one that is used. */
        uint32_t end = atomic_load(&c->region->rows_end);
        while (end < (uint32_t)row + 1 &&
               !atomic_compare_exchange_weak(&c->region->rows_end, &end, (uint32_t)row + 1)) {
        }
        uint64_t is_free = ST_ROW_FREE;
        if (atomic_compare_exchange_strong(&c->rows[row].word, &is_free, mine)) {
            return row;
        }
    }
    return -1;
}

st_status st_cluster_enter(st_cluster *c, int *row, int *wake_fd, st_error *err)
{
    st_cluster_reap(c);
    int r = take_row(c);
    if (r < 0) {
        return st_fail(err, ST_EFULL, "cluster %s: all %d rows are taken by running workers",
                       c->region->name, ST_CLUSTER_MAX_WORKERS);
    }
    int fd = open_wake_socket(c, r, err);
    if (fd < 0) {
        atomic_store(&c->rows[r].word, ST_ROW_FREE);
        return ST_EIO;
    }
    c->wake_fds[r] = fd;
    c->next_request[r] = (uint32_t)((uint64_t)r * c->region->n_requests / ST_CLUSTER_MAX_WORKERS);
    *row = r;
    *wake_fd = fd;
    return ST_OK;
}

void st_cluster_leave(st_cluster *c, int row)
{
    bool led = (atomic_load(&c->region->leader) & 255) == (uint64_t)row + 1;
    clean_row(c, row);
    close(c->wake_fds[row]);
    c->wake_fds[row] = -1;
    atomic_store(&c->rows[row].word, ST_ROW_FREE);
    if (led) {
        wake_rows(c, false);
    }
    st_cluster_made_room(c, st_now_ns());
}

/* ---- who leads ---- */

bool st_cluster_lead(st_cluster *c, int row)
{
    uint64_t mine = (atomic_load(&c->rows[row].word) >> 8) << 8 | ((uint64_t)row + 1);
    uint64_t leader = atomic_load(&c->region->leader);
    if (leader == mine) {
        return true;
    }
    if (leader != 0 && st_identity_alive(leader >> 8)) {
        return false;
    }
    return atomic_compare_exchange_strong(&c->region->leader, &leader, mine);
}

void st_cluster_unlead(st_cluster *c, int row)
{
    uint64_t leader = atomic_load(&c->region->leader);
    if ((leader & 255) == (uint64_t)row + 1 &&
        atomic_compare_exchange_strong(&c->region->leader, &leader, 0)) {
        wake_rows(c, false);
    }
}
