/* What `starling up` runs, and the nginx.conf that says so. */
#ifndef ST_CLI_UP_CONFIG_H
#define ST_CLI_UP_CONFIG_H

#include "cli/options.h"
#include "starling/buf.h"
#include "starling/status.h"

typedef struct st_up_config {
    const char *dir;          /* of sockets and nginx.conf */
    const char *module;       /* ngx_http_starling_module.so */
    const char *model_dir;    /* absolute */
    const char *const *names; /* of the model; the first is the one, the others aliases */
    size_t n_names;
    const char *host; /* NULL: no TCP port, the unix socket alone */
    int port;
    const char *const *api_keys;
    size_t n_api_keys;
    int prefill, decode; /* engines; prefill 0: the others do whole requests */
    bool parallel;
    int skip_prefill; /* tokens */
    int workers;
} st_up_config;

/* "DIR/prefill0.sock" */
void st_up_engine_socket(const st_up_config *c, bool prefill, int i, char *out, size_t cap);
ST_NODISCARD st_status st_up_nginx_conf(const st_up_config *c, st_buf *out, st_error *err);
/* Whether host:port can be listened on; a port of 0 becomes a free one. */
ST_NODISCARD st_status st_up_check_port(const char *host, int *port, st_error *err);

#endif
