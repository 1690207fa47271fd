/* UCX, loaded when the first link is made. Merely linking libucp costs each start of the program
 * some milliseconds (its constructors look at the whole machine), and a machine that moves no KV
 * needs no UCX installed at all. */
#ifndef ST_TRANSFER_UCX_LIBRARY_H
#define ST_TRANSFER_UCX_LIBRARY_H

#include <ucp/api/ucp.h>

#include "starling/status.h"

#define ST_UCX_FUNCTIONS(X)                                                                        \
    X(ucp_config_read)                                                                             \
    X(ucp_config_modify)                                                                           \
    X(ucp_config_release)                                                                          \
    X(ucp_init_version)                                                                            \
    X(ucp_cleanup)                                                                                 \
    X(ucp_worker_create)                                                                           \
    X(ucp_worker_destroy)                                                                          \
    X(ucp_worker_get_efd)                                                                          \
    X(ucp_worker_arm)                                                                              \
    X(ucp_worker_get_address)                                                                      \
    X(ucp_worker_release_address)                                                                  \
    X(ucp_worker_progress)                                                                         \
    X(ucp_ep_create)                                                                               \
    X(ucp_ep_close_nbx)                                                                            \
    X(ucp_ep_flush_nbx)                                                                            \
    X(ucp_tag_send_nbx)                                                                            \
    X(ucp_tag_probe_nb)                                                                            \
    X(ucp_tag_msg_recv_nbx)                                                                        \
    X(ucp_request_check_status)                                                                    \
    X(ucp_request_free)                                                                            \
    X(ucs_status_string)

typedef struct st_ucx {
#define ST_UCX_MEMBER(name) __typeof__(name) *name;
    ST_UCX_FUNCTIONS(ST_UCX_MEMBER)
#undef ST_UCX_MEMBER
} st_ucx;

/* Loads libucp once per process; it stays. Settings that a host program needs (no signal handlers,
 * no hooks in the allocator, no chatter) are put into the environment first, where the user has not
 * set them; so the first call should come before threads that use the environment. */
ST_NODISCARD st_status st_ucx_load(const st_ucx **out, st_error *err);

#endif
