/* `starling up --once`: see up_once.h. A client of the gateway like any other. */
#include "cli/up_once.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/http_response.h"
#include "base/sse_split.h"

typedef struct answer {
    int fd;
    st_http_response head;
    st_buf body; /* what of it is not an event yet; all of an error */
    size_t scanned;
    bool done;
} answer;

static st_status request(const st_up_question *q, st_buf *out)
{
    json_t *body = json_pack("{s:s, s:[{s:s, s:s}], s:b}", "model", q->model, "messages", "role",
                             "user", "content", q->prompt, "stream", 1);
    if (body && q->max_tokens)
        json_object_set_new(body, "max_tokens", json_integer(q->max_tokens));
    if (body && !isnan(q->temperature))
        json_object_set_new(body, "temperature", json_real(q->temperature));
    if (body && q->has_seed)
        json_object_set_new(body, "seed", json_integer((json_int_t)q->seed));
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    st_status s = text ? st_buf_puts(out, "POST /v1/chat/completions HTTP/1.1\r\n"
                                          "Host: localhost\r\nConnection: close\r\n"
                                          "Content-Type: application/json\r\n")
                       : ST_EINVAL;
    if (!s && q->api_key)
        s = st_buf_printf(out, "Authorization: Bearer %s\r\n", q->api_key);
    if (!s)
        s = st_buf_printf(out, "Content-Length: %zu\r\n\r\n%s", strlen(text), text);
    free(text);
    json_decref(body);
    return s;
}

/* {"error": {"message": ...}} */
static st_status complain(const json_t *j, int status, st_error *err)
{
    const char *why = json_string_value(json_object_get(json_object_get(j, "error"), "message"));
    return st_fail(err, ST_EIO, "the gateway answers with status %d: %s", status,
                   why ? why : "no message");
}

static st_status event(answer *a, const st_sse_event *e, st_error *err)
{
    if (!e->data)
        return ST_OK;
    if (e->data_len == 6 && memcmp(e->data, "[DONE]", 6) == 0) {
        a->done = true;
        return ST_OK;
    }
    json_t *j = json_loadb(e->data, e->data_len, 0, NULL);
    const json_t *choice = json_array_get(json_object_get(j, "choices"), 0);
    const char *text =
        json_string_value(json_object_get(json_object_get(choice, "delta"), "content"));
    if (text) {
        fputs(text, stdout);
        fflush(stdout);
    }
    st_status s = ST_OK;
    if (!j)
        s = st_fail(err, ST_EFORMAT, "the gateway sends an event that is not JSON");
    else if (json_object_get(j, "error"))
        s = complain(j, a->head.status, err);
    json_decref(j);
    return s;
}

static st_status events(answer *a, st_error *err)
{
    st_status s = ST_OK;
    size_t at = 0, n;
    st_sse_event e;
    while (!s && (n = st_sse_next(a->body.data + at, a->body.len - at, &a->scanned, &e)) > 0) {
        s = event(a, &e, err);
        at += n;
        a->scanned = 0;
    }
    if (at) {
        memmove(a->body.data, a->body.data + at, a->body.len - at);
        a->body.len -= at;
    }
    return s;
}

static st_status feed(answer *a, const char *data, size_t n, st_error *err)
{
    st_status s = ST_OK;
    for (size_t at = 0; !s && at < n && !a->head.complete;) {
        const char *part;
        size_t len;
        long used = st_http_response_feed(&a->head, data + at, n - at, &part, &len);
        if (used < 0)
            return st_fail(err, ST_EFORMAT, "the gateway's answer is not HTTP: %s", a->head.why);
        at += (size_t)used;
        s = st_buf_append(&a->body, part, len);
    }
    return !s && a->head.event_stream && a->body.len ? events(a, err) : s;
}

static st_status end(answer *a, st_error *err)
{
    if (!a->head.complete)
        return st_fail(err, ST_EIO, "the gateway's answer was cut short");
    if (a->head.event_stream)
        return a->done ? ST_OK : st_fail(err, ST_EIO, "the gateway's answer has no end");
    json_t *j = json_loadb(a->body.data ? a->body.data : "", a->body.len, 0, NULL);
    st_status s = complain(j, a->head.status, err);
    json_decref(j);
    return s;
}

st_status st_up_ask(st_up_stack *stack, const char *socket, const st_up_question *q, st_error *err)
{
    answer a = {.fd = st_up_connect(socket)};
    st_buf out = ST_BUF_INIT;
    st_http_response_init(&a.head);
    st_status s = request(q, &out);
    if (s)
        st_fail(err, s, "the prompt is not valid UTF-8");
    for (size_t at = 0; !s && at < out.len;) {
        ssize_t n = send(a.fd, out.data + at, out.len - at, MSG_NOSIGNAL);
        if (n <= 0)
            s = st_fail(err, ST_EIO, "the gateway does not take the question");
        else
            at += (size_t)n;
    }
    while (!s && !a.head.complete) {
        char data[8192];
        st_up_event e = st_up_wait(stack, a.fd, -1, err);
        if (e == ST_UP_DIED || e == ST_UP_STOP) {
            s = e == ST_UP_STOP ? st_fail(err, ST_ECANCELLED, "interrupted") : ST_EIO;
        } else if (e == ST_UP_READY) {
            ssize_t n = read(a.fd, data, sizeof data);
            if (n <= 0)
                break;
            s = feed(&a, data, (size_t)n, err);
        }
    }
    if (!s)
        s = end(&a, err);
    if (!s)
        puts("");
    if (a.fd >= 0)
        close(a.fd);
    st_buf_free(&a.body);
    st_buf_free(&out);
    return s;
}
