/* starling load: where requests go and what is in them. */
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/un.h>

#include "cli/load.h"

static st_status unix_address(const char *path, st_load_url *out, st_error *err)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof un.sun_path)
        return st_fail(err, ST_EINVAL, "--url: the socket's path is longer than %zu bytes",
                       sizeof un.sun_path - 1);
    strcpy(un.sun_path, path);
    memcpy(&out->addr, &un, sizeof un);
    out->addr_len = sizeof un;
    strcpy(out->host, "localhost");
    return ST_OK;
}

static st_status look_up(const char *host, const char *port, st_load_url *out, st_error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int code = getaddrinfo(host, port, &hints, &found);
    if (code)
        return st_fail(err, ST_EINVAL, "--url: %s port %s: %s", host, port, gai_strerror(code));
    memcpy(&out->addr, found->ai_addr, found->ai_addrlen);
    out->addr_len = found->ai_addrlen;
    freeaddrinfo(found);
    return ST_OK;
}

st_status st_load_url_parse(const char *text, st_load_url *out, st_error *err)
{
    memset(out, 0, sizeof *out);
    if (strncmp(text, "unix:", 5) == 0)
        return unix_address(text + 5, out, err);
    if (strncasecmp(text, "http://", 7) != 0)
        return st_fail(err, ST_EINVAL,
                       "--url: '%s': expected http://host[:port][/path] or unix:/path", text);
    const char *at = text + 7;
    size_t n = strcspn(at, "/");
    size_t path = strlen(at + n);
    while (path && at[n + path - 1] == '/')
        path--;
    if (n == 0 || n >= sizeof out->host || path >= sizeof out->path)
        return st_fail(err, ST_EINVAL, "--url: '%s': no host, or too long", text);
    memcpy(out->host, at, n);
    memcpy(out->path, at + n, path);
    char host[sizeof out->host], port[16] = "80";
    strcpy(host, out->host);
    char *colon = strrchr(host, ':'), *name = host;
    if (colon && !strchr(colon, ']')) {
        *colon = '\0';
        snprintf(port, sizeof port, "%s", colon + 1);
    }
    if (*name == '[') { /* an IPv6 address */
        name++;
        name[strcspn(name, "]")] = '\0';
    }
    return look_up(name, port, out, err);
}

/* splitmix64: any n is a good seed. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Short and common, so that most tokenizers have one token for each with its space. */
static const char *const words[] = {
    "the",  "of",   "and",   "to",    "in",    "is",   "that",  "for",  "it",    "as",    "was",
    "with", "be",   "by",    "on",    "not",   "he",   "his",   "but",  "at",    "are",   "this",
    "have", "from", "or",    "had",   "an",    "they", "which", "one",  "you",   "were",  "all",
    "her",  "she",  "there", "would", "their", "we",   "him",   "been", "has",   "when",  "who",
    "will", "no",   "more",  "if",    "out",   "so",   "up",    "said", "what",  "its",   "about",
    "than", "into", "them",  "can",   "only",  "time", "new",   "some", "could", "these",
};
enum { N_WORDS = sizeof words / sizeof *words };

static st_status put_token(const st_load_shape *s, uint64_t random, bool first, st_buf *out)
{
    if (s->id_limit)
        return st_buf_printf(out, first ? "%u" : ",%u", (unsigned)(random % (uint64_t)s->id_limit));
    const char *w = words[random % N_WORDS];
    return st_buf_printf(out, first ? "%s" : " %s", w);
}

static st_status put_prompt(const st_load_shape *s, uint64_t seed, uint64_t n, st_buf *out)
{
    uint64_t shared = seed, own = seed ^ (n + 1) * 0xd1342543de82ef95u;
    st_status st = ST_OK;
    for (int32_t i = 0; i < s->prompt_tokens && !st; i++)
        st = put_token(s, next_random(i < s->shared_tokens ? &shared : &own), i == 0, out);
    return st;
}

st_status st_load_body(const st_load_shape *s, uint64_t seed, uint64_t n, st_buf *out)
{
    st_status st = st_buf_putc(out, '{');
    if (!st && s->model) {
        st = st_buf_puts(out, "\"model\":");
        if (!st)
            st = st_buf_json_string(out, s->model, strlen(s->model));
        if (!st)
            st = st_buf_putc(out, ',');
    }
    if (!st)
        st = st_buf_puts(out, s->id_limit ? "\"prompt\":["
                                          : "\"messages\":[{\"role\":\"user\",\"content\":\"");
    if (!st)
        st = put_prompt(s, seed, n, out);
    if (!st)
        st = st_buf_printf(out,
                           "%s,\"max_tokens\":%d,\"temperature\":0,%s\"stream\":true,"
                           "\"stream_options\":{\"include_usage\":true}}",
                           s->id_limit ? "]" : "\"}]", s->max_tokens,
                           s->ignore_eos ? "\"ignore_eos\":true," : "");
    return st;
}
