/* starling load: clients that stream answers from an OpenAI server and measure them. One thread,
 * one event loop; every client is a connection that is kept between its requests. */
#ifndef ST_CLI_LOAD_H
#define ST_CLI_LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "starling/buf.h"
#include "starling/status.h"

/* ---- durations: a histogram with buckets 1.6% wide, so that memory does not grow ---- */

enum { ST_LOAD_SUB_BUCKETS = 64, ST_LOAD_BUCKETS = 41 * ST_LOAD_SUB_BUCKETS };

typedef struct st_load_times {
    uint64_t count, sum_ns, max_ns;
    uint32_t bucket[ST_LOAD_BUCKETS];
} st_load_times;

void st_load_times_add(st_load_times *t, uint64_t ns);
/* The smallest duration that a share q (0..1) of all does not exceed, in ns; 0 without any. */
uint64_t st_load_times_quantile(const st_load_times *t, double q);

/* ---- what to send ---- */

typedef struct st_load_url {
    char host[256]; /* as Host: has it */
    char path[512]; /* in front of /v1/...; without a slash at its end */
    struct sockaddr_storage addr;
    socklen_t addr_len;
} st_load_url;

/* "http://host[:port][/path]" or "unix:/path"; looks the host up. */
ST_NODISCARD st_status st_load_url_parse(const char *text, st_load_url *out, st_error *err);

typedef struct st_load_shape {
    const char *model;     /* NULL: none is named */
    int32_t prompt_tokens; /* words, about a token each; with id_limit: exactly */
    int32_t shared_tokens; /* of these so many are the same in every request */
    int32_t max_tokens;
    int32_t id_limit; /* > 0: completions of random ids below it; 0: chats in words */
    bool ignore_eos;
} st_load_shape;

/* Appends request number n's body; the same n and seed give the same bytes. */
ST_NODISCARD st_status st_load_body(const st_load_shape *s, uint64_t seed, uint64_t n, st_buf *out);

/* ---- running ---- */

typedef struct st_load_options {
    st_load_url url;
    st_load_shape shape;
    int32_t concurrency; /* at most so many requests at once */
    int32_t requests;    /* in all; 0: until the duration is over */
    float rate;          /* new requests per second (Poisson); 0: as one ends the next begins */
    float duration_s;    /* 0: no limit */
    float timeout_s;     /* without a byte */
    uint64_t seed;
    const char *api_key; /* NULL: none */
} st_load_options;

typedef enum st_load_failure {
    ST_LOAD_CONNECT, /* refused, unreachable */
    ST_LOAD_TIMEOUT,
    ST_LOAD_CUT,    /* closed before the end */
    ST_LOAD_STATUS, /* other than 200 */
    ST_LOAD_EVENT,  /* an error within the stream */
    ST_LOAD_FORMAT, /* not HTTP, not an event stream, or it ends without [DONE] */
    ST_LOAD_FAILURES
} st_load_failure;
extern const char *const st_load_failure_names[ST_LOAD_FAILURES];

typedef struct st_load_result {
    uint64_t ok, failed[ST_LOAD_FAILURES], status[600];
    uint64_t started, dropped; /* dropped: due by the rate, but all connections were busy */
    uint64_t tokens;           /* generated: events with a choice that has text, or usage's count */
    uint64_t prompt_tokens;    /* of usage */
    uint64_t cached_tokens;
    uint64_t elapsed_ns;
    bool interrupted;
    char first_error[512]; /* what the first failure said */
    st_load_times ttft, itl, total;
} st_load_result;

/* Fails only when nothing can be run at all; failed requests are counted. */
ST_NODISCARD st_status st_load_run(const st_load_options *o, st_load_result *out, st_error *err);

void st_load_print(const st_load_options *o, const st_load_result *r);
ST_NODISCARD st_status st_load_print_json(const st_load_options *o, const st_load_result *r);

#endif
