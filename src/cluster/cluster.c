/* The region's layout and a process' handle on it: made, found again after a reload, let go. */
#include "cluster/cluster_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

static const uint64_t region_magic = 0x5354434C55535431; /* STCLUST1 */

static uint32_t requests_of(const st_cluster_spec *spec)
{
    return spec->max_requests_in_flight > 0 ? (uint32_t)spec->max_requests_in_flight : 16384;
}

static uint32_t queue_of(const st_cluster_spec *spec)
{
    return spec->queue_size > 0 ? (uint32_t)spec->queue_size : 1024;
}

/* A region of a build with other structures must not be taken for ours. */
static uint64_t layout_code(void)
{
    uint64_t code = ST_CLUSTER_MAX_ENGINES;
    const size_t sizes[] = {sizeof(st_region),       sizeof(st_engine_slot), sizeof(st_row_head),
                            sizeof(st_request_slot), sizeof(st_queue_entry), ST_RATE_SLOTS,
                            ST_CLUSTER_MAX_WORKERS,  ST_INDEX_MAX_HOLDERS,   ST_PHASES};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        code = code * 1000003 + sizes[i];
    }
    return code;
}

/* Each part begins on a cache line of its own. */
static size_t place_part(size_t *end, size_t bytes)
{
    size_t at = *end;
    *end += (bytes + 63) & ~(size_t)63;
    return at;
}

static st_layout layout_of(uint32_t n_requests, uint32_t queue_size, size_t n_blocks,
                           size_t n_history)
{
    st_layout l;
    size_t end = 0, engines = ST_CLUSTER_MAX_ENGINES, workers = ST_CLUSTER_MAX_WORKERS;
    place_part(&end, sizeof(st_region));
    l.engines = place_part(&end, engines * sizeof(st_engine_slot));
    l.sources = place_part(&end, ST_INDEX_MAX_HOLDERS * sizeof(st_event_source_state));
    l.rows = place_part(&end, workers * sizeof(st_row_head));
    l.loads = place_part(&end, workers * engines * sizeof(st_atomic_load));
    l.requests = place_part(&end, n_requests * sizeof(st_request_slot));
    l.request_map = place_part(&end, ((size_t)n_requests + 63) / 64 * 8);
    l.places = place_part(&end, queue_size * sizeof(uint64_t));
    l.place_map = place_part(&end, ((size_t)queue_size + 63) / 64 * 8);
    l.entries = place_part(&end, queue_size * sizeof(st_queue_entry));
    l.rates = place_part(&end, ST_RATE_SLOTS * sizeof(st_rate_slot));
    l.index_bytes = st_prefix_index_bytes(n_blocks, n_history);
    l.index = place_part(&end, l.index_bytes);
    l.total = end;
    return l;
}

size_t st_cluster_bytes(const st_cluster_spec *spec, size_t n_blocks, size_t n_history)
{
    return layout_of(requests_of(spec), queue_of(spec), n_blocks, n_history).total;
}

static int open_send_socket(void)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        /* Datagrams that slow workers have not read count against it: room for all of them. */
        int bytes = 1 << 20;
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    }
    return fd;
}

/* A handle with pointers into mem; the index is the caller's to set. */
static st_status handle_new(void *mem, const st_layout *l, uint32_t queue_size, st_cluster **out,
                            st_error *err)
{
    st_cluster *c = calloc(1, sizeof *c);
    char *base = mem;
    if (!c) {
        return st_fail(err, ST_ENOMEM, "out of memory for a handle on the cluster");
    }
    c->region = mem;
    c->engines = (st_engine_slot *)(base + l->engines);
    c->sources = (st_event_source_state *)(base + l->sources);
    c->rows = (st_row_head *)(base + l->rows);
    c->loads = (st_atomic_load *)(base + l->loads);
    c->requests = (st_request_slot *)(base + l->requests);
    c->request_map = (_Atomic uint64_t *)(base + l->request_map);
    c->places = (_Atomic uint64_t *)(base + l->places);
    c->place_map = (_Atomic uint64_t *)(base + l->place_map);
    c->entries = (st_queue_entry *)(base + l->entries);
    c->rates = (st_rate_slot *)(base + l->rates);
    for (int i = 0; i < ST_CLUSTER_MAX_WORKERS; i++) {
        c->wake_fds[i] = -1;
    }
    st_route_policy_default(&c->policy);
    st_breaker_policy_default(&c->breaker);
    c->send_fd = open_send_socket();
    if (c->send_fd < 0) {
        st_status st = st_fail(err, ST_EIO, "cannot open a datagram socket: %s", strerror(errno));
        st_cluster_free(c);
        return st;
    }
    if (st_pump_new(queue_size, &c->pump) != ST_OK) {
        st_cluster_free(c);
        return st_fail(err, ST_ENOMEM, "out of memory for a queue of %u requests", queue_size);
    }
    *out = c;
    return ST_OK;
}

static st_status check_memory(const void *mem, size_t bytes, size_t needed, const char *name,
                              st_error *err)
{
    if ((uintptr_t)mem % 64 != 0) {
        return st_fail(err, ST_EINVAL, "cluster %s: the memory must begin at a multiple of 64",
                       name);
    }
    if (bytes < needed) {
        return st_fail(err, ST_EINVAL,
                       "cluster %s: the zone has %zu bytes, expected at least %zu (a larger zone, "
                       "a shorter queue or fewer requests in flight)",
                       name, bytes, needed);
    }
    return ST_OK;
}

st_status st_cluster_init(void *mem, size_t bytes, size_t n_blocks, size_t n_history,
                          const st_cluster_spec *spec, st_cluster **out, st_error *err)
{
    st_cluster *c = NULL;
    const char *name = spec->name ? spec->name : "";
    st_status st = st_cluster_check_spec(spec, err);
    if (st != ST_OK) {
        return st;
    }
    uint32_t n_requests = requests_of(spec), queue_size = queue_of(spec);
    st_layout l = layout_of(n_requests, queue_size, n_blocks, n_history);
    st = check_memory(mem, bytes, l.total, name, err);
    if (st != ST_OK) {
        return st;
    }
    memset(mem, 0, l.index);
    st_region *r = mem;
    r->layout = layout_code();
    r->bytes = bytes;
    r->n_blocks = n_blocks;
    r->n_history = n_history;
    r->n_requests = n_requests;
    r->queue_size = queue_size;
    memcpy(r->name, name, strlen(name));
    if (getrandom(&r->nonce, sizeof r->nonce, 0) != sizeof r->nonce) {
        r->nonce = st_now_ns() ^ (uint64_t)getpid() << 40;
    }
    st = handle_new(mem, &l, queue_size, &c, err);
    if (st != ST_OK) {
        return st;
    }
    st = st_prefix_index_init((char *)mem + l.index, l.index_bytes, n_blocks, n_history, &c->index);
    if (st != ST_OK) {
        st_fail(err, st, "cluster %s: no prefix index of %zu blocks fits into %zu bytes", name,
                n_blocks, l.index_bytes);
        goto fail;
    }
    st = st_cluster_configure(c, spec, err);
    if (st != ST_OK) {
        goto fail;
    }
    r->magic = region_magic;
    *out = c;
    return ST_OK;
fail:
    st_cluster_free(c);
    return st;
}

st_status st_cluster_reload(void *mem, size_t bytes, const st_cluster_spec *spec, st_cluster **out,
                            st_error *err)
{
    st_cluster *c = NULL;
    st_region *r = mem;
    const char *name = spec->name ? spec->name : "";
    st_status st = st_cluster_check_spec(spec, err);
    if (st != ST_OK) {
        return st;
    }
    if ((uintptr_t)mem % 64 != 0 || bytes < sizeof *r || r->magic != region_magic ||
        r->layout != layout_code() || r->bytes != bytes || r->n_requests != requests_of(spec) ||
        r->queue_size != queue_of(spec)) {
        return st_fail(err, ST_EFORMAT,
                       "cluster %s: the zone's content was made with other sizes: it starts anew",
                       name);
    }
    st_layout l = layout_of(r->n_requests, r->queue_size, r->n_blocks, r->n_history);
    st = handle_new(mem, &l, r->queue_size, &c, err);
    if (st != ST_OK) {
        return st;
    }
    c->index = st_prefix_index_attach((char *)mem + l.index, l.index_bytes);
    if (!c->index) {
        st = st_fail(err, ST_EFORMAT, "cluster %s: the zone holds no prefix index: it starts anew",
                     name);
        goto fail;
    }
    st = st_cluster_configure(c, spec, err);
    if (st != ST_OK) {
        goto fail;
    }
    st_cluster_made_room(c, st_now_ns()); /* limits may be wider now */
    *out = c;
    return ST_OK;
fail:
    st_cluster_free(c);
    return st;
}

st_prefix_index *st_cluster_index(st_cluster *c)
{
    return c->index;
}

void st_cluster_free(st_cluster *c)
{
    if (!c) {
        return;
    }
    for (int i = 0; i < ST_CLUSTER_MAX_WORKERS; i++) {
        if (c->wake_fds[i] >= 0) {
            close(c->wake_fds[i]);
        }
    }
    if (c->send_fd >= 0) {
        close(c->send_fd);
    }
    st_pump_free(c->pump);
    free(c);
}

void st_cluster_set_policy(st_cluster *c, const st_route_policy *p, const st_breaker_policy *b)
{
    if (p) {
        c->policy = *p;
    }
    if (b) {
        c->breaker = *b;
    }
}
