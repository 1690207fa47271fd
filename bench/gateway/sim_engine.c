/* A simulated engine for measuring what stands in front of engines: it speaks OpenAI's streaming
 * API and the engine's side of the gateway's protocol, generates nothing, and sends a token every
 * so many microseconds to each of thousands of streams.
 *
 *   sim_engine --port 9001 --role decode --interval-us 20000 --first-ms 0
 *
 * Prompts may be text, messages or ids; they are not looked at. */
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/keyvalq_struct.h>

#include "base/json_scan.h"

typedef struct sim {
    struct event_base *base;
    const char *role, *model;
    int port, interval_us, first_ms;
    char engine_id[33];
    uint64_t requests, running, aborted, prefills;
} sim;

typedef struct stream {
    sim *s;
    struct evhttp_request *req;
    struct event *timer;
    int64_t left, sent, prompt_tokens;
    bool chat, usage;
} stream;

typedef struct facts {
    bool stream, usage, prefill_leg;
    int64_t max_tokens, prompt_tokens;
} facts;

static const char *const pieces[] = {" the", " of", " a",  " model", " that", " speaks",
                                     " and", " in", " it", " word",  " one",  ","};
enum { N_PIECES = sizeof pieces / sizeof *pieces };

/* ---- requests ---- */

static int64_t count_numbers(st_json_scan *j)
{
    int64_t n = 0;
    for (int depth = j->depth; j->depth >= depth; n++)
        if (st_json_next(j) == ST_JSON_ERROR)
            return n;
    return n - 1;
}

static void read_options(st_json_scan *j, facts *f)
{
    for (int depth = j->depth; j->depth >= depth;) {
        st_json_token t = st_json_next(j);
        if (t == ST_JSON_ERROR || t == ST_JSON_OBJECT_END)
            return;
        bool usage = st_json_text_is(j, "include_usage");
        bool prefill = st_json_text_is(j, "do_remote_decode");
        t = st_json_next(j);
        f->usage |= usage && t == ST_JSON_TRUE;
        f->prefill_leg |= prefill && t == ST_JSON_TRUE;
        st_span value;
        if (st_json_skip(j, t, &value))
            return;
    }
}

static bool read_body(const char *text, size_t len, facts *f)
{
    *f = (facts){.max_tokens = 16};
    st_json_scan j;
    st_json_scan_init(&j, text, len);
    if (st_json_next(&j) != ST_JSON_OBJECT)
        return false;
    for (;;) {
        st_json_token t = st_json_next(&j);
        if (t == ST_JSON_OBJECT_END)
            return st_json_next(&j) == ST_JSON_END;
        if (t != ST_JSON_KEY)
            return false;
        bool max =
            st_json_text_is(&j, "max_tokens") || st_json_text_is(&j, "max_completion_tokens");
        bool stream_ = st_json_text_is(&j, "stream");
        bool prompt = st_json_text_is(&j, "prompt") || st_json_text_is(&j, "prompt_token_ids");
        bool options =
            st_json_text_is(&j, "stream_options") || st_json_text_is(&j, "kv_transfer_params");
        t = st_json_next(&j);
        st_span value;
        if (max && t == ST_JSON_NUMBER)
            st_json_int64(&j, &f->max_tokens);
        else if (prompt && t == ST_JSON_ARRAY)
            f->prompt_tokens = count_numbers(&j);
        else if (options && t == ST_JSON_OBJECT)
            read_options(&j, f);
        else if (st_json_skip(&j, t, &value))
            return false;
        f->stream |= stream_ && t == ST_JSON_TRUE;
    }
}

static void reply_json(struct evhttp_request *req, struct evbuffer *body)
{
    evhttp_add_header(evhttp_request_get_output_headers(req), "Content-Type", "application/json");
    evhttp_send_reply(req, 200, "OK", body);
    evbuffer_free(body);
}

/* ---- streams ---- */

static void put_usage(const stream *st, struct evbuffer *out)
{
    evbuffer_add_printf(out,
                        "{\"prompt_tokens\":%" PRId64 ",\"total_tokens\":%" PRId64
                        ",\"completion_tokens\":%" PRId64 "}",
                        st->prompt_tokens, st->prompt_tokens + st->sent, st->sent);
}

static void put_head(const stream *st, struct evbuffer *out)
{
    evbuffer_add_printf(out,
                        "data: {\"id\":\"%s-0123456789abcdef\",\"object\":\"%s\",\"created\":"
                        "1700000000,\"model\":\"%s\",\"choices\":[",
                        st->chat ? "chatcmpl" : "cmpl",
                        st->chat ? "chat.completion.chunk" : "text_completion", st->s->model);
}

static void put_token(stream *st, struct evbuffer *out)
{
    const char *text = pieces[st->sent % N_PIECES];
    const char *reason = st->left == 1 ? "\"length\"" : "null";
    put_head(st, out);
    if (st->chat)
        evbuffer_add_printf(out,
                            "{\"index\":0,\"delta\":{%s\"content\":\"%s\"},\"logprobs\":null,"
                            "\"finish_reason\":%s}]}\n\n",
                            st->sent ? "" : "\"role\":\"assistant\",", text, reason);
    else
        evbuffer_add_printf(out,
                            "{\"index\":0,\"text\":\"%s\",\"logprobs\":null,\"finish_reason\":%s}"
                            "]}\n\n",
                            text, reason);
    st->sent++;
    st->left--;
}

static void stream_free(stream *st)
{
    st->s->running--;
    if (st->timer)
        event_free(st->timer);
    free(st);
}

static void on_left(struct evhttp_connection *c, void *user)
{
    stream *st = user;
    evhttp_connection_set_closecb(c, NULL, NULL);
    st->s->aborted++;
    stream_free(st);
}

static void wait_more(stream *st, int64_t us)
{
    struct timeval t = {.tv_sec = (time_t)(us / 1000000), .tv_usec = (suseconds_t)(us % 1000000)};
    event_add(st->timer, &t);
}

static void on_token(evutil_socket_t fd, short what, void *user)
{
    stream *st = user;
    struct evbuffer *out = evbuffer_new();
    put_token(st, out);
    if (st->left > 0) {
        evhttp_send_reply_chunk(st->req, out);
        evbuffer_free(out);
        wait_more(st, st->s->interval_us);
        return;
    }
    if (st->usage) {
        put_head(st, out);
        evbuffer_add_printf(out, "],\"usage\":");
        put_usage(st, out);
        evbuffer_add_printf(out, "}\n\n");
    }
    evbuffer_add_printf(out, "data: [DONE]\n\n");
    evhttp_send_reply_chunk(st->req, out);
    evbuffer_free(out);
    evhttp_connection_set_closecb(evhttp_request_get_connection(st->req), NULL, NULL);
    evhttp_send_reply_end(st->req);
    stream_free(st);
}

static void start_stream(sim *s, struct evhttp_request *req, const facts *f, bool chat)
{
    stream *st = calloc(1, sizeof *st);
    if (!st || !(st->timer = evtimer_new(s->base, on_token, st))) {
        free(st);
        evhttp_send_error(req, 500, NULL);
        return;
    }
    st->s = s;
    st->req = req;
    st->left = f->max_tokens > 0 ? f->max_tokens : 1;
    st->prompt_tokens = f->prompt_tokens;
    st->chat = chat;
    st->usage = f->usage;
    s->running++;
    evhttp_connection_set_closecb(evhttp_request_get_connection(req), on_left, st);
    evhttp_add_header(evhttp_request_get_output_headers(req), "Content-Type", "text/event-stream");
    evhttp_send_reply_start(req, 200, "OK");
    wait_more(st, (int64_t)s->first_ms * 1000);
}

static void prefill_reply(sim *s, struct evhttp_request *req, const facts *f)
{
    struct evbuffer *out = evbuffer_new();
    s->prefills++;
    evbuffer_add_printf(
        out,
        "{\"id\":\"cmpl-0\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"%s\","
        "\"choices\":[{\"index\":0,\"text\":\" the\",\"logprobs\":null,\"finish_reason\":"
        "\"length\"}],\"usage\":{\"prompt_tokens\":%" PRId64 ",\"total_tokens\":%" PRId64
        ",\"completion_tokens\":1},\"kv_transfer_params\":{\"do_remote_prefill\":true,"
        "\"do_remote_decode\":false,\"remote_block_ids\":[1,2,3,4,5,6,7,8,9,10,11,12,13],"
        "\"remote_engine_id\":\"%s\",\"remote_request_id\":\"%032" PRIx64 "\","
        "\"remote_host\":\"127.0.0.1\",\"remote_port\":%d,\"tp_size\":1,\"remote_num_tokens\":"
        "%" PRId64 "}}",
        s->model, f->prompt_tokens, f->prompt_tokens + 1, s->engine_id, s->requests, s->port,
        f->prompt_tokens);
    reply_json(req, out);
}

static void on_post(sim *s, struct evhttp_request *req, bool chat)
{
    struct evbuffer *in = evhttp_request_get_input_buffer(req);
    size_t len = evbuffer_get_length(in);
    facts f;
    s->requests++;
    if (!read_body((const char *)evbuffer_pullup(in, -1), len, &f)) {
        evhttp_send_error(req, 400, "not JSON");
        return;
    }
    if (f.prefill_leg) {
        prefill_reply(s, req, &f);
    } else if (f.stream) {
        start_stream(s, req, &f, chat);
    } else {
        struct evbuffer *out = evbuffer_new();
        evbuffer_add_printf(out,
                            "{\"object\":\"%s\",\"choices\":[{\"index\":0,%s,"
                            "\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":"
                            "%" PRId64 ",\"completion_tokens\":%" PRId64 "}}",
                            chat ? "chat.completion" : "text_completion",
                            chat ? "\"message\":{\"role\":\"assistant\",\"content\":\" the\"}"
                                 : "\"text\":\" the\"",
                            f.prompt_tokens, f.max_tokens);
        reply_json(req, out);
    }
}

static void on_get(sim *s, struct evhttp_request *req, const char *path)
{
    struct evbuffer *out = evbuffer_new();
    if (strcmp(path, "/starling/engine") == 0)
        evbuffer_add_printf(
            out,
            "{\"engine_id\":\"%s\",\"models\":[\"%s\"],\"role\":\"%s\",\"max_model_len\":1048576,"
            "\"block_size\":16,\"kv_transfer_host\":\"127.0.0.1\",\"kv_transfer_port\":%d,"
            "\"events_port\":0,\"replay_port\":0,\"events_topic\":\"\",\"running\":%" PRIu64
            ",\"waiting\":0,\"kv_tokens\":1000000000,\"kv_usage\":0.0,\"draining\":false}",
            s->engine_id, s->model, s->role, s->port, s->running);
    else if (strcmp(path, "/v1/models") == 0)
        evbuffer_add_printf(out,
                            "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":"
                            "\"model\",\"max_model_len\":1048576}]}",
                            s->model);
    else if (strcmp(path, "/sim") == 0)
        evbuffer_add_printf(out,
                            "{\"requests\":%" PRIu64 ",\"running\":%" PRIu64 ",\"aborted\":%" PRIu64
                            ",\"prefills\":%" PRIu64 "}",
                            s->requests, s->running, s->aborted, s->prefills);
    else if (strcmp(path, "/metrics") == 0)
        evbuffer_add_printf(out,
                            "vllm:num_requests_running %" PRIu64 "\nvllm:num_requests_waiting 0\n"
                            "vllm:kv_cache_usage_perc 0\n",
                            s->running);
    reply_json(req, out);
}

static void on_request(struct evhttp_request *req, void *user)
{
    sim *s = user;
    /* Without this the head and the first event wait for each other's acknowledgement. */
    int one = 1;
    struct bufferevent *bev = evhttp_connection_get_bufferevent(evhttp_request_get_connection(req));
    setsockopt(bufferevent_getfd(bev), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    const char *path = evhttp_uri_get_path(evhttp_request_get_evhttp_uri(req));
    if (evhttp_request_get_command(req) == EVHTTP_REQ_GET)
        on_get(s, req, path);
    else if (strcmp(path, "/v1/chat/completions") == 0 || strcmp(path, "/v1/completions") == 0)
        on_post(s, req, path[4] == 'c' && path[5] == 'h');
    else
        evhttp_send_error(req, 404, NULL);
}

static void on_signal(evutil_socket_t fd, short what, void *user)
{
    event_base_loopbreak(((sim *)user)->base);
}

static bool options(sim *s, int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--port") == 0)
            s->port = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--role") == 0)
            s->role = argv[i + 1];
        else if (strcmp(argv[i], "--model") == 0)
            s->model = argv[i + 1];
        else if (strcmp(argv[i], "--interval-us") == 0)
            s->interval_us = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--first-ms") == 0)
            s->first_ms = atoi(argv[i + 1]);
        else
            return false;
    }
    return argc % 2 == 1 && s->port > 0;
}

int main(int argc, char **argv)
{
    sim s = {.role = "both", .model = "lexicon", .interval_us = 10000};
    if (!options(&s, argc, argv)) {
        fprintf(stderr, "usage: sim_engine --port N [--role both|prefill|decode] [--model NAME] "
                        "[--interval-us N] [--first-ms N]\n");
        return 2;
    }
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    signal(SIGPIPE, SIG_IGN);
    snprintf(s.engine_id, sizeof s.engine_id, "%032x", s.port);
    s.base = event_base_new();
    struct evhttp *http = s.base ? evhttp_new(s.base) : NULL;
    if (!http || evhttp_bind_socket(http, "127.0.0.1", (ev_uint16_t)s.port)) {
        fprintf(stderr, "sim_engine: cannot listen on port %d\n", s.port);
        return 1;
    }
    evhttp_set_max_body_size(http, 1 << 28);
    evhttp_set_gencb(http, on_request, &s);
    struct event *term = evsignal_new(s.base, SIGTERM, on_signal, &s);
    event_add(term, NULL);
    printf("serving on http://127.0.0.1:%d\n", s.port);
    fflush(stdout);
    event_base_dispatch(s.base);
    event_free(term);
    evhttp_free(http);
    event_base_free(s.base);
    return 0;
}
