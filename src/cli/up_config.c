/* The nginx.conf of `starling up`: see up_config.h. */
#include "cli/up_config.h"

#include <errno.h>
#include <grp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void st_up_engine_socket(const st_up_config *c, bool prefill, int i, char *out, size_t cap)
{
    const char *name = prefill ? "prefill" : c->prefill ? "decode" : "engine";
    snprintf(out, cap, "%s/%s%d.sock", c->dir, name, i);
}

/* Appends text as one word of nginx' configuration. */
static st_status quoted(st_buf *out, const char *prefix, const char *text)
{
    st_status s = st_buf_printf(out, "\"%s", prefix);
    for (; !s && *text; text++) {
        if (*text == '"' || *text == '\\')
            s = st_buf_putc(out, '\\');
        if (!s)
            s = st_buf_putc(out, *text);
    }
    return s ? s : st_buf_putc(out, '"');
}

/* `    name "prefixDIR/file";` */
static st_status path_line(st_buf *out, const char *indent, const char *name, const char *prefix,
                           const char *dir, const char *file)
{
    char path[1024];
    snprintf(path, sizeof path, "%s%s", dir, file);
    st_status s = st_buf_printf(out, "%s%s ", indent, name);
    if (!s)
        s = quoted(out, prefix, path);
    return s ? s : st_buf_puts(out, ";\n");
}

static st_status head(const st_up_config *c, st_buf *out)
{
    st_status s = st_buf_puts(out, "# Made by `starling up`.\n");
    if (!s)
        s = path_line(out, "", "load_module", "", c->module, "");
    const struct passwd *nobody = getuid() == 0 ? getpwnam("nobody") : NULL;
    const struct group *group = nobody ? getgrgid(nobody->pw_gid) : NULL;
    if (!s && group)
        s = st_buf_printf(out, "user nobody %s;\n", group->gr_name);
    if (!s)
        s = path_line(out, "", "pid", "", c->dir, "/nginx.pid");
    if (!s)
        s = st_buf_printf(out,
                          "daemon off;\nerror_log stderr warn;\nworker_processes %d;\n"
                          "worker_shutdown_timeout 30s;\n\n"
                          "events {\n    worker_connections %d;\n}\n\n"
                          "http {\n    access_log off;\n    server_tokens off;\n",
                          c->workers, 4096);
    static const char *const temp[] = {"client_body", "proxy", "fastcgi", "uwsgi", "scgi"};
    for (size_t i = 0; !s && i < sizeof temp / sizeof *temp; i++) {
        char name[64], file[64];
        snprintf(name, sizeof name, "%s_temp_path", temp[i]);
        snprintf(file, sizeof file, "/%s", temp[i]);
        s = path_line(out, "    ", name, "", c->dir, file);
    }
    return s;
}

static st_status model(const st_up_config *c, st_buf *out)
{
    st_status s = st_buf_puts(out, "        model ");
    if (!s)
        s = quoted(out, "", c->names[0]);
    if (!s)
        s = st_buf_puts(out, " ");
    if (!s)
        s = quoted(out, "tokenizer=", c->model_dir);
    for (size_t i = 1; !s && i < c->n_names; i++) {
        s = st_buf_puts(out, " ");
        if (!s)
            s = quoted(out, "alias=", c->names[i]);
    }
    return s ? s : st_buf_puts(out, ";\n");
}

static st_status pool(const st_up_config *c, bool prefill, st_buf *out)
{
    const char *role = prefill ? "prefill" : c->prefill ? "decode" : "both";
    st_status s = st_buf_printf(out, "        pool %s {\n            role %s;\n", role, role);
    for (int i = 0; !s && i < (prefill ? c->prefill : c->decode); i++) {
        char path[1024];
        st_up_engine_socket(c, prefill, i, path, sizeof path);
        s = path_line(out, "            ", "engine", "unix:", path, "");
    }
    return s ? s : st_buf_puts(out, "        }\n");
}

static st_status cluster(const st_up_config *c, st_buf *out)
{
    st_status s = st_buf_puts(out, "\n    starling_cluster main {\n");
    if (!s)
        s = model(c, out);
    if (!s && c->prefill)
        s = pool(c, true, out);
    if (!s)
        s = pool(c, false, out);
    if (!s)
        s = st_buf_printf(out, "        handoff %s;\n        policy skip_prefill=%d;\n",
                          c->parallel ? "parallel" : "sequential", c->skip_prefill);
    for (size_t i = 0; !s && i < c->n_api_keys; i++) {
        s = st_buf_puts(out, "        api_key ");
        if (!s)
            s = quoted(out, "", c->api_keys[i]);
        if (!s)
            s = st_buf_puts(out, ";\n");
    }
    return s ? s : st_buf_puts(out, "    }\n");
}

static st_status server(const st_up_config *c, st_buf *out)
{
    st_status s = st_buf_puts(out, "\n    server {\n");
    if (!s && c->host) {
        bool v6 = strchr(c->host, ':');
        s = st_buf_printf(out, v6 ? "        listen [%s]:%d%s;\n" : "        listen %s:%d%s;\n",
                          c->host, c->port, strcmp(c->host, "::") ? "" : " ipv6only=off");
    }
    if (!s)
        s = path_line(out, "        ", "listen", "unix:", c->dir, "/gateway.sock");
    return s ? s
             : st_buf_puts(out, "        location / { starling main; }\n"
                                "        location /starling/ { starling_status; }\n"
                                "        location = /metrics { starling_status; }\n"
                                "        location = /health { starling_status public; }\n"
                                "    }\n}\n");
}

st_status st_up_nginx_conf(const st_up_config *c, st_buf *out, st_error *err)
{
    for (size_t i = 0; i < c->n_names + c->n_api_keys; i++) {
        const char *t = i < c->n_names ? c->names[i] : c->api_keys[i - c->n_names];
        if (strpbrk(t, "\n\r"))
            return st_fail(err, ST_EINVAL, "a line break in a name or key");
    }
    st_status s = head(c, out);
    if (!s)
        s = cluster(c, out);
    if (!s)
        s = server(c, out);
    return s ? st_fail(err, s, "memory is short") : ST_OK;
}

st_status st_up_check_port(const char *host, int *port, st_error *err)
{
    char service[16];
    snprintf(service, sizeof service, "%d", *port);
    struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM}, *a;
    int rc = getaddrinfo(host, service, &hints, &a);
    if (rc)
        return st_fail(err, ST_EINVAL, "--host %s: %s", host, gai_strerror(rc));
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol), on = 1;
    struct sockaddr_storage got;
    socklen_t len = sizeof got;
    st_status s = ST_OK;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
        bind(fd, a->ai_addr, a->ai_addrlen) || getsockname(fd, (struct sockaddr *)&got, &len))
        s = st_fail(err, ST_EIO, "%s port %d cannot be listened on: %s", host, *port,
                    strerror(errno));
    else if (got.ss_family == AF_INET6)
        *port = ntohs(((struct sockaddr_in6 *)&got)->sin6_port);
    else
        *port = ntohs(((struct sockaddr_in *)&got)->sin_port);
    if (fd >= 0)
        close(fd);
    freeaddrinfo(a);
    return s;
}
