/* Requests that take time. A job lives through three hands:
 *
 *   I/O thread    st_job_start: takes the body
 *   work thread   run_job: parses, renders, tokenizes, submits one engine request per choice
 *   I/O thread    mail: the work is done; then tokens, which become the reply
 *
 * The engine sends exactly one final event for each accepted request, so a job is freed when the
 * work is done, all finals have come and the reply has ended or the client has left. */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/server_state.h"

enum { LARGE_BODY = 1024 * 1024 }; /* bytes: tokenizing them takes up to half a second */

typedef struct job_choice {
    st_job *job;
    size_t index;
    uint64_t id; /* the engine's */
    uint64_t first_ns, last_ns;
    bool counted; /* its end is in the metrics */
} job_choice;

struct st_job {
    st_work work; /* first: st_work * is cast to st_job * */
    st_server *server;
    st_job *prev, *next;
    st_api_kind kind;
    st_buf body;
    uint64_t received_ns, reply_id, seed;
    int64_t now;
    atomic_bool gone; /* nobody waits for the answer any more */

    /* Written by the work thread, read by the I/O thread after its mail (choices and reply also
     * by events, which the mailbox orders after their submission). */
    bool failed;
    st_api_error err;
    st_api_request *req;
    st_api_reply *reply;
    st_buf out;        /* the reply's body, of small requests */
    char handover[33]; /* the id under which the prompt's KV is offered or fetched, or "" */
    job_choice *choices;
    size_t n_submitted;

    /* The I/O thread's. */
    st_http_exchange *x; /* NULL: ended, or the client has left */
    size_t n_final;
    bool work_done;
};

/* Work thread */

static st_status no_memory(st_job *j)
{
    return st_api_fail(&j->err, 503, NULL, NULL, "memory is short");
}

static void on_token(void *user, const st_token_event *ev)
{
    job_choice *c = user;
    st_mailbox_post_event(c->job->server->mail, c, ev);
}

static st_status submit_choice(st_job *j, size_t prompt, int32_t i, const st_ids *ids)
{
    st_server *s = j->server;
    job_choice *c = &j->choices[j->n_submitted];
    st_error why;
    *c = (job_choice){.job = j, .index = prompt * (size_t)j->req->n + (size_t)i};
    st_request r = {.prompt = ids->data,
                    .n_prompt = (int32_t)ids->len,
                    .sampling =
                        st_api_choice_sampling(j->req, &s->ctx, j->seed, i, (int32_t)ids->len),
                    .cache_salt = j->req->cache_salt,
                    .priority = j->req->priority,
                    .handover = j->req->handover,
                    .on_token = on_token,
                    .user = c};
    memcpy(r.handover.id, j->handover, sizeof r.handover.id);
    if (atomic_load(&j->gone))
        return st_api_fail(&j->err, 503, NULL, NULL, "the client has left");
    if (st_engine_submit(s->engine, &r, &c->id, &why))
        return st_api_fail_from(&j->err, NULL, &why);
    j->n_submitted++;
    return ST_OK;
}

/* Tokenizes every prompt before the first is submitted, so that a bad one costs nothing. */
static st_status tokenize_prompts(st_job *j, st_ids *ids)
{
    st_server *s = j->server;
    for (size_t p = 0; p < j->req->n_prompts; p++) {
        st_status st =
            st_api_prompt_ids(j->req, p, &s->ctx, s->tok, s->tmpl, j->now, &ids[p], &j->err);
        if (st)
            return st;
        if (j->reply && st_api_reply_prompt(j->reply, p, ids[p].data, ids[p].len))
            return no_memory(j);
    }
    return ST_OK;
}

/* In vLLM's sequential mode the offer's id is the prefill engine's to choose. It is all the
 * authority that a fetch needs, so it must not be guessable. */
static st_status choose_handover_id(st_job *j)
{
    const st_handover_request *h = &j->req->handover;
    unsigned char random[16];
    memcpy(j->handover, h->id, sizeof j->handover);
    if (h->what != ST_HANDOVER_OFFER || h->id[0])
        return ST_OK;
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return st_api_fail(&j->err, 500, NULL, NULL, "the system has no random numbers");
    st_server_hex(random, sizeof random, j->handover);
    return ST_OK;
}

static st_status generate(st_job *j, st_ids *ids)
{
    size_t n = j->req->n_prompts;
    if (choose_handover_id(j))
        return ST_EINVAL;
    if (j->req->has_seed)
        j->seed = j->req->sampling.seed;
    j->choices = calloc(n * (size_t)j->req->n, sizeof *j->choices);
    if (!j->choices || st_api_reply_new(j->req, j->server->tok, j->reply_id, j->now, &j->reply))
        return no_memory(j);
    st_status s = tokenize_prompts(j, ids);
    for (size_t p = 0; !s && p < n; p++)
        for (int32_t i = 0; !s && i < j->req->n; i++)
            s = submit_choice(j, p, i, &ids[p]);
    return s;
}

static st_status answer(st_job *j, st_ids *ids)
{
    st_server *s = j->server;
    if (j->kind & (ST_API_COMPLETION | ST_API_CHAT))
        return generate(j, ids);
    if (j->kind == ST_API_DETOKENIZE)
        return st_api_detokenize_json(j->req, s->tok, &j->out, &j->err);
    st_status st = tokenize_prompts(j, ids);
    if (!st && st_api_tokenize_json(j->req, &s->ctx, s->tok, ids[0].data, ids[0].len, &j->out))
        st = no_memory(j);
    return st;
}

static void run_job(st_work *w)
{
    st_job *j = (st_job *)w;
    st_server *server = j->server;
    st_status s =
        atomic_load(&j->gone)
            ? st_api_fail(&j->err, 503, NULL, NULL, "the client has left")
            : st_api_parse(j->kind, j->body.data, j->body.len, &server->ctx, &j->req, &j->err);
    st_buf_free(&j->body);
    st_ids *ids = s ? NULL : calloc(j->req->n_prompts, sizeof *ids);
    if (!s)
        s = ids ? answer(j, ids) : no_memory(j);
    for (size_t p = 0; ids && p < j->req->n_prompts; p++)
        st_ids_free(&ids[p]);
    free(ids);
    j->failed = s != ST_OK;
    st_mailbox_post_done(server->mail, j);
}

/* I/O thread */

static void free_if_over(st_job *j)
{
    st_server *s = j->server;
    if (!j->work_done || j->x || j->n_final < j->n_submitted)
        return;
    if (j->prev)
        j->prev->next = j->next;
    else
        s->jobs = j->next;
    if (j->next)
        j->next->prev = j->prev;
    s->n_jobs--;
    st_api_reply_free(j->reply);
    st_api_request_free(j->req);
    st_buf_free(&j->body);
    st_buf_free(&j->out);
    free(j->choices);
    free(j);
}

static void count_end(job_choice *c, st_finished how)
{
    if (!c->counted)
        c->job->server->metrics.finished[how]++;
    c->counted = true;
}

/* Nobody waits any more: ends what still runs. Ids are known once the work is done. */
static void cancel_all(st_job *j, st_finished how)
{
    atomic_store(&j->gone, true);
    if (!j->work_done)
        return;
    for (size_t i = 0; i < j->n_submitted; i++) {
        count_end(&j->choices[i], how);
        st_engine_cancel(j->server->engine, j->choices[i].id);
    }
}

static void on_client_left(void *user)
{
    st_job *j = user;
    st_info("client left after %.1f ms: request cancelled",
            (double)(st_now_ns() - j->received_ns) / 1e6);
    j->x = NULL;
    cancel_all(j, ST_DONE_ABORT);
    free_if_over(j);
}

/* Ends the reply with an error: its status if nothing was sent yet, else an event. */
static void end_with_error(st_job *j, const st_api_error *e)
{
    st_http_exchange *x = j->x;
    j->x = NULL;
    cancel_all(j, e->http_status >= 500 ? ST_DONE_ERROR : ST_DONE_ABORT);
    if (!x)
        return;
    if (!j->work_done || !j->req || !j->req->stream || j->failed) {
        st_server_reply_error(x, e);
        return;
    }
    st_buf b = ST_BUF_INIT;
    st_http_note(x, "error: %.100s", e->why.text);
    if (st_api_error_event(e, &b) || st_http_stream_write(x, b.data, b.len))
        st_http_abort(x);
    else
        st_http_stream_end(x);
    st_buf_free(&b);
}

static void note_usage(st_job *j)
{
    st_api_usage u = st_api_reply_usage(j->reply);
    st_http_note(j->x, "%" PRId64 " prompt (%" PRId64 " cached) + %" PRId64 " tokens",
                 u.prompt_tokens, u.cached_tokens, u.completion_tokens);
}

static void out_of_memory(st_job *j)
{
    st_api_error e;
    (void)st_api_fail(&e, 503, NULL, NULL, "memory is short");
    end_with_error(j, &e);
}

/* Sends bytes of a stream; false when the job has ended over it. */
static bool send_stream(st_job *j, const st_buf *b)
{
    st_status s = st_http_stream_write(j->x, b->data, b->len);
    if (!s)
        return true;
    if (s == ST_EFULL)
        st_warn("a client reads too slowly: its stream was cut");
    st_http_exchange *x = j->x;
    j->x = NULL;
    cancel_all(j, ST_DONE_ABORT);
    st_http_abort(x);
    return false;
}

/* The reply is complete: its last events, or all of it. */
static void end_reply(st_job *j)
{
    st_buf b = ST_BUF_INIT;
    if (st_api_reply_end(j->reply, &b)) {
        out_of_memory(j);
    } else {
        note_usage(j);
        if (!j->req->stream) {
            st_http_exchange *x = j->x;
            j->x = NULL;
            st_http_reply(x, 200, "application/json", b.data, b.len);
        } else if (send_stream(j, &b)) {
            st_http_exchange *x = j->x;
            j->x = NULL;
            st_http_stream_end(x);
        }
    }
    st_buf_free(&b);
}

/* Sends what a choice has to show, and the end when it was the last. */
static void progress(st_job *j, size_t choice)
{
    st_buf b = ST_BUF_INIT;
    if (j->req->stream) {
        if (st_api_reply_chunks(j->reply, choice, &b))
            out_of_memory(j);
        else if (b.len)
            send_stream(j, &b);
        st_buf_free(&b);
    }
    if (j->x && st_api_reply_complete(j->reply))
        end_reply(j);
}

static void observe_params(st_job *j)
{
    st_metrics *m = &j->server->metrics;
    st_metrics_observe(m, ST_H_PARAM_N, j->req->n);
    if (j->req->sampling.max_tokens > 0)
        st_metrics_observe(m, ST_H_PARAM_MAX_TOKENS, j->req->sampling.max_tokens);
}

static void on_work_done(st_job *j)
{
    j->work_done = true;
    if (!j->x) {
        cancel_all(j, ST_DONE_ABORT);
    } else if (j->failed) {
        end_with_error(j, &j->err);
    } else if (!j->reply) {
        st_http_exchange *x = j->x;
        j->x = NULL;
        st_http_reply(x, 200, "application/json", j->out.data, j->out.len);
    } else {
        observe_params(j);
        if (j->req->stream)
            st_http_stream_start(j->x, 200, "text/event-stream; charset=utf-8");
        /* Tokens may have come before this mail. */
        for (size_t i = 0; i < j->n_submitted && j->x; i++)
            progress(j, j->choices[i].index);
    }
    free_if_over(j);
}

static double seconds(uint64_t from, uint64_t to)
{
    return to > from ? (double)(to - from) / 1e9 : 0;
}

static void observe_token(job_choice *c, const st_token_event *ev)
{
    st_metrics *m = &c->job->server->metrics;
    if (ev->token < 0)
        return;
    if (!c->first_ns) {
        c->first_ns = ev->now_ns;
        st_metrics_observe(m, ST_H_TIME_TO_FIRST_TOKEN, seconds(c->job->received_ns, ev->now_ns));
    } else {
        st_metrics_observe(m, ST_H_INTER_TOKEN, seconds(c->last_ns, ev->now_ns));
    }
    c->last_ns = ev->now_ns;
}

/* A choice is complete. */
static void observe_end(job_choice *c, const st_token_event *ev)
{
    st_metrics *m = &c->job->server->metrics;
    const char *reason = st_api_reply_finish_reason(c->job->reply, c->index);
    if (c->counted)
        return;
    count_end(c, reason && strcmp(reason, "stop") == 0 ? ST_DONE_STOP : ST_DONE_LENGTH);
    st_metrics_observe(m, ST_H_E2E, seconds(c->job->received_ns, ev->now_ns));
    st_metrics_observe(m, ST_H_QUEUE, seconds(ev->submitted_ns, ev->scheduled_ns));
    st_metrics_observe(m, ST_H_PROMPT_TOKENS, ev->prompt_tokens);
    st_metrics_observe(m, ST_H_GENERATION_TOKENS, ev->generated_tokens);
    if (!c->first_ns)
        return;
    st_metrics_observe(m, ST_H_PREFILL, seconds(ev->scheduled_ns, c->first_ns));
    st_metrics_observe(m, ST_H_DECODE, seconds(c->first_ns, c->last_ns));
    st_metrics_observe(m, ST_H_INFERENCE, seconds(ev->scheduled_ns, c->last_ns));
    if (ev->generated_tokens > 1)
        st_metrics_observe(m, ST_H_TIME_PER_OUTPUT_TOKEN,
                           seconds(c->first_ns, c->last_ns) / (ev->generated_tokens - 1));
}

/* What the decode engine is to be told about the blocks that were offered. */
static st_status tell_offer(st_job *j, const st_token_event *ev)
{
    st_server *s = j->server;
    st_api_offer offer = {.engine_id = s->engine_id,
                          .request_id = j->handover,
                          .host = s->opts.kv_transfer_host,
                          .port = s->ports.transfer,
                          .blocks = ev->offered_blocks,
                          .n_blocks = ev->n_offered_blocks,
                          .n_tokens = ev->prompt_tokens};
    return st_api_reply_offer(j->reply, &offer);
}

/* The engine ended a request that its client still waits for. */
static void on_engine_failure(st_job *j, const st_token_event *ev)
{
    st_api_error e;
    if (ev->finish == ST_FINISH_CANCELLED)
        (void)st_api_fail(&e, 503, NULL, NULL, "the server is shutting down");
    else
        (void)st_api_fail(&e, 500, NULL, NULL, "the engine failed: %s",
                          ev->error ? ev->error : "no reason given");
    st_err("request %s: %s", st_api_reply_id(j->reply), e.why.text);
    end_with_error(j, &e);
}

static void on_event(job_choice *c, const st_token_event *ev)
{
    st_job *j = c->job;
    bool done = st_api_reply_finish_reason(j->reply, c->index) != NULL;
    if (ev->finish != ST_FINISH_NONE)
        j->n_final++;
    if (done || !j->x) {
        free_if_over(j);
        return;
    }
    observe_token(c, ev);
    if (ev->finish == ST_FINISH_CANCELLED || ev->finish == ST_FINISH_ERROR) {
        on_engine_failure(j, ev);
    } else if ((ev->offered_blocks && tell_offer(j, ev)) ||
               st_api_reply_event(j->reply, c->index, ev, &done)) {
        out_of_memory(j);
    } else {
        if (done)
            observe_end(c, ev);
        if (done && ev->finish == ST_FINISH_NONE) /* a stop string: the engine does not know */
            st_engine_cancel(j->server->engine, ev->id);
        if (j->work_done)
            progress(j, c->index);
    }
    free_if_over(j);
}

void st_job_deliver(void *server, const st_mail *mail)
{
    (void)server;
    if (mail->is_event)
        on_event(mail->to, &mail->ev);
    else
        on_work_done(mail->to);
}

void st_job_start(st_server *s, st_http_exchange *x, st_api_kind kind)
{
    st_job *j = calloc(1, sizeof *j);
    st_api_error e;
    uint64_t random[2] = {0, 0};
    if (!j) {
        (void)st_api_fail(&e, 503, NULL, NULL, "memory is short");
        st_server_reply_error(x, &e);
        return;
    }
    (void)!getrandom(random, sizeof random, 0);
    j->work.run = run_job;
    j->server = s;
    j->kind = kind;
    j->x = x;
    j->body = st_http_take_body(x);
    j->work.large = j->body.len > LARGE_BODY;
    j->received_ns = st_now_ns();
    j->reply_id = random[0];
    j->seed = random[1];
    j->now = (int64_t)time(NULL);
    j->next = s->jobs;
    if (s->jobs)
        s->jobs->prev = j;
    s->jobs = j;
    s->n_jobs++;
    st_http_on_close(x, on_client_left, j);
    st_work_queue_add(s->work, &j->work);
}

void st_jobs_expire(st_server *s)
{
    st_api_error e;
    (void)st_api_fail(&e, 503, NULL, NULL, "the server is shutting down");
    for (st_job *j = s->jobs, *next; j; j = next) {
        next = j->next;
        end_with_error(j, &e);
        free_if_over(j);
    }
}
