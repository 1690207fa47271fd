/* The processes of `starling up`: see up_stack.h. */
#include "cli/up_stack.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/http_response.h"

/* A unix socket's path is short; names of sockets follow. */
enum { DIR_MAX = 80 };

static st_status make_dir(st_up_stack *s, st_error *err)
{
    const char *roots[] = {getenv("XDG_RUNTIME_DIR"), getenv("TMPDIR"), "/tmp"};
    for (size_t i = 0; i < 3; i++) {
        if (!roots[i] || roots[i][0] != '/' || strlen(roots[i]) > DIR_MAX - 20)
            continue;
        snprintf(s->dir, sizeof s->dir, "%s/starling-XXXXXX", roots[i]);
        if (mkdtemp(s->dir)) {
            /* Started by root, the gateway's workers are nobody: they may pass, not look. */
            if (getuid() == 0 && chmod(s->dir, 0711))
                break;
            return ST_OK;
        }
    }
    s->dir[0] = '\0';
    return st_fail(err, ST_EIO, "a folder for sockets cannot be made in /tmp: %s", strerror(errno));
}

st_status st_up_open(st_up_stack *s, bool quiet, st_error *err)
{
    memset(s, 0, sizeof *s);
    s->log = -1;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, &s->before);
    s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (s->signals < 0)
        return st_fail(err, ST_EIO, "signals cannot be followed: %s", strerror(errno));
    st_status st = make_dir(s, err);
    if (st || !quiet)
        return st;
    char path[ST_UP_PATH_MAX + 8];
    snprintf(path, sizeof path, "%s/log", s->dir);
    s->log = open(path, O_CREAT | O_RDWR | O_APPEND | O_CLOEXEC, 0600);
    return s->log < 0 ? st_fail(err, ST_EIO, "%s: %s", path, strerror(errno)) : ST_OK;
}

/* In the child: never returns. */
_Noreturn static void run_child(const st_up_stack *s, pid_t parent, const cpu_set_t *cpus,
                                char *const argv[])
{
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(127);
    sigprocmask(SIG_SETMASK, &s->before, NULL);
    if (cpus)
        sched_setaffinity(0, sizeof *cpus, cpus);
    /* Clients are descriptors. */
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    int null = open("/dev/null", O_RDWR);
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    if (s->log >= 0)
        dup2(s->log, STDERR_FILENO);
    execv(argv[0], argv);
    dprintf(STDERR_FILENO, "%s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

st_status st_up_spawn(st_up_stack *s, const char *name, bool gateway, const cpu_set_t *cpus,
                      char *const argv[], st_error *err)
{
    st_up_child *c = &s->children[s->n];
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid < 0)
        return st_fail(err, ST_EIO, "%s: no process can be started: %s", name, strerror(errno));
    if (pid == 0)
        run_child(s, parent, cpus, argv);
    snprintf(c->name, sizeof c->name, "%s", name);
    c->pid = c->group = pid;
    c->gateway = gateway;
    s->n++;
    return ST_OK;
}

/* Waits for those that ended; the first one's end goes to err. */
static bool reap(st_up_stack *s, st_error *err)
{
    bool died = false;
    for (size_t i = 0; i < s->n; i++) {
        st_up_child *c = &s->children[i];
        int status;
        if (!c->pid || waitpid(c->pid, &status, WNOHANG) != c->pid)
            continue;
        if (!died && WIFSIGNALED(status))
            st_fail(err, ST_EIO, "the %s (process %d) was killed by signal %d (%s)", c->name,
                    (int)c->pid, WTERMSIG(status), strsignal(WTERMSIG(status)));
        else if (!died)
            st_fail(err, ST_EIO, "the %s (process %d) ended with exit code %d", c->name,
                    (int)c->pid, WEXITSTATUS(status));
        c->pid = 0;
        died = true;
    }
    return died;
}

st_up_event st_up_wait(st_up_stack *s, int fd, int timeout_ms, st_error *err)
{
    struct pollfd fds[2] = {{s->signals, POLLIN, 0}, {fd, POLLIN, 0}};
    int n = poll(fds, fd < 0 ? 1 : 2, timeout_ms);
    if (n > 0 && fds[0].revents) {
        struct signalfd_siginfo info;
        bool stop = false;
        while (read(s->signals, &info, sizeof info) == sizeof info)
            stop |= info.ssi_signo != SIGCHLD;
        s->stop += stop;
        if (reap(s, err))
            return ST_UP_DIED;
        if (stop)
            return ST_UP_STOP;
    }
    return n > 0 && fds[1].revents ? ST_UP_READY : ST_UP_TIMEOUT;
}

static bool alive(const st_up_stack *s, bool gateway)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->children[i].pid && s->children[i].gateway == gateway)
            return true;
    return false;
}

static void tell(const st_up_stack *s, bool gateway, int sig)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->children[i].pid && s->children[i].gateway == gateway)
            kill(s->children[i].pid, sig);
}

static void end(st_up_stack *s, bool gateway, int gently, int drain_s)
{
    st_error ignored;
    uint64_t until = st_now_ns() + (uint64_t)drain_s * 1000000000u;
    int stops = s->stop;
    tell(s, gateway, gently);
    while (alive(s, gateway) && s->stop == stops && st_now_ns() < until)
        st_up_wait(s, -1, 100, &ignored);
    if (!alive(s, gateway))
        return;
    /* nginx' workers end with their master's SIGTERM; SIGKILL would leave them. */
    tell(s, gateway, SIGTERM);
    for (int i = 0; i < 20 && alive(s, gateway); i++)
        st_up_wait(s, -1, 100, &ignored);
    tell(s, gateway, SIGKILL);
    for (int i = 0; i < 20 && alive(s, gateway); i++)
        st_up_wait(s, -1, 100, &ignored);
}

/* nginx' workers outlive a master that was killed, and would keep the port. They are in its process
 * group, and ours since we are their reaper, so that the number cannot be somebody else's. */
static void end_orphans(const st_up_stack *s)
{
    for (size_t i = 0; i < s->n; i++)
        for (int n = 0; n < 40 && waitpid(-s->children[i].group, NULL, WNOHANG) >= 0; n++) {
            kill(-s->children[i].group, n < 20 ? SIGTERM : SIGKILL);
            poll(NULL, 0, 50);
        }
}

static int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *at)
{
    return remove(path);
}

void st_up_close(st_up_stack *s, int drain_s)
{
    end(s, true, SIGQUIT, drain_s);
    end(s, false, SIGTERM, drain_s);
    end_orphans(s);
    if (s->dir[0])
        nftw(s->dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    if (s->log >= 0)
        close(s->log);
    if (s->signals >= 0)
        close(s->signals);
    sigprocmask(SIG_SETMASK, &s->before, NULL);
}

int st_up_connect(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof a.sun_path)
        return -1;
    strcpy(a.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a)) {
        close(fd);
        return -1;
    }
    return fd;
}

st_status st_up_get(const char *socket, const char *path, int *status, st_buf *body)
{
    int fd = st_up_connect(socket);
    if (fd < 0)
        return ST_EIO;
    struct timeval limit = {5, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    st_http_response r;
    st_http_response_init(&r);
    st_status s = ST_OK;
    char head[256];
    int len = snprintf(head, sizeof head,
                       "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path);
    if (send(fd, head, (size_t)len, MSG_NOSIGNAL) != len)
        s = ST_EIO;
    while (!s && !r.complete) {
        char data[4096];
        ssize_t n = read(fd, data, sizeof data);
        if (n <= 0) {
            s = n == 0 && st_http_response_eof(&r) ? ST_OK : ST_EIO;
            break;
        }
        for (long at = 0, used; !s && at < n && !r.complete; at += used) {
            const char *part;
            size_t part_len;
            used = st_http_response_feed(&r, data + at, (size_t)(n - at), &part, &part_len);
            s = used < 0 ? ST_EFORMAT : st_buf_append(body, part, part_len);
        }
    }
    close(fd);
    *status = r.status;
    return s;
}
