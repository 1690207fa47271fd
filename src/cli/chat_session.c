/* A conversation in the terminal: see chat_session.h. Requests take the same way as in the
 * server (src/api), so fields, defaults and errors are the same. */
#include "cli/chat_session.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "api/text_stream.h"
#include "base/clock.h"

/* Tokens on their way from the engine's thread. */
typedef struct inbox {
    pthread_mutex_t lock;
    pthread_cond_t arrived;
    st_ids ids;
    st_finish finish;
    bool no_memory;
    uint64_t first_ns, last_ns;
    st_chat_stats stats;
    char error[512];
} inbox;

struct st_chat_session {
    const st_loaded *l;
    const st_chat_options *opts;
    const char *model_name;
    st_api_context ctx;
    json_t *messages;
    inbox in;
};

/* --- the session --------------------------------------------------------------------------- */

static st_status no_memory(st_error *err)
{
    return st_fail(err, ST_ENOMEM, "memory is short");
}

static json_t *message(const char *role, const char *text, size_t len)
{
    return json_pack("{s:s, s:o}", "role", role, "content", json_stringn(text, len));
}

void st_chat_session_reset(st_chat_session *s)
{
    json_array_clear(s->messages);
    if (s->opts->system)
        json_array_append_new(s->messages,
                              message("system", s->opts->system, strlen(s->opts->system)));
}

size_t st_chat_session_turns(const st_chat_session *s)
{
    return (json_array_size(s->messages) - (s->opts->system != NULL)) / 2;
}

st_status st_chat_session_new(const st_loaded *l, const st_chat_options *opts,
                              st_chat_session **out, st_error *err)
{
    *out = NULL;
    if (!opts->raw && !l->tmpl)
        return st_fail(err, ST_ENOTFOUND,
                       "the checkpoint has no chat template: name one with --chat-template FILE, "
                       "or complete plain text with --raw");
    st_chat_session *s = calloc(1, sizeof *s);
    json_t *messages = json_array();
    if (!s || !messages) {
        free(s);
        json_decref(messages);
        return no_memory(err);
    }
    s->l = l;
    s->opts = opts;
    s->model_name = "model";
    s->messages = messages;
    s->ctx = (st_api_context){.models = &s->model_name,
                              .n_models = 1,
                              .vocab_size = st_model_get_config(l->model)->vocab_size,
                              .max_model_len = st_engine_max_model_len(l->engine),
                              .defaults = l->defaults};
    pthread_mutex_init(&s->in.lock, NULL);
    pthread_cond_init(&s->in.arrived, NULL);
    st_chat_session_reset(s);
    *out = s;
    return ST_OK;
}

void st_chat_session_free(st_chat_session *s)
{
    if (!s)
        return;
    json_decref(s->messages);
    st_ids_free(&s->in.ids);
    pthread_cond_destroy(&s->in.arrived);
    pthread_mutex_destroy(&s->in.lock);
    free(s);
}

/* --- asking -------------------------------------------------------------------------------- */

static void on_token(void *user, const st_token_event *ev)
{
    inbox *in = user;
    pthread_mutex_lock(&in->lock);
    if (ev->token >= 0 && ev->finish != ST_FINISH_STOP) {
        in->no_memory |= st_ids_push(&in->ids, ev->token) != ST_OK;
        if (!in->first_ns)
            in->first_ns = ev->now_ns;
        in->last_ns = ev->now_ns;
    }
    if (ev->finish != ST_FINISH_NONE) {
        in->stats.prompt_tokens = ev->prompt_tokens;
        in->stats.cached_tokens = ev->cached_tokens;
        in->stats.generated_tokens = ev->generated_tokens;
        if (ev->error)
            snprintf(in->error, sizeof in->error, "%s", ev->error);
        in->finish = ev->finish;
    }
    pthread_cond_signal(&in->arrived);
    pthread_mutex_unlock(&in->lock);
}

/* The request that an HTTP client would send for this turn. */
static st_status build_request(const st_chat_session *s, const char *text, size_t len,
                               st_api_request **out, st_error *err)
{
    json_t *body = json_copy(s->opts->fields);
    st_api_error why = {0};
    st_status st = ST_ENOMEM;
    if (s->opts->raw) {
        int32_t max = s->l->defaults.max_new_tokens;
        json_object_set_new(body, "prompt", json_stringn(text, len));
        if (!json_object_get(body, "max_tokens"))
            json_object_set_new(body, "max_tokens",
                                json_integer(max > 0 ? max : s->ctx.max_model_len));
    } else {
        json_object_set(body, "messages", s->messages);
    }
    char *dump = body ? json_dumps(body, JSON_COMPACT) : NULL;
    if (dump)
        st = st_api_parse(s->opts->raw ? ST_API_COMPLETION : ST_API_CHAT, dump, strlen(dump),
                          &s->ctx, out, &why);
    if (!dump)
        no_memory(err);
    else if (st)
        st_fail(err, st, "%s", why.why.text);
    free(dump);
    json_decref(body);
    return st;
}

static st_status submit(st_chat_session *s, const st_api_request *r, uint64_t *id, st_error *err)
{
    st_ids ids = ST_IDS_INIT;
    st_api_error why = {0};
    uint64_t seed = r->sampling.seed;
    st_status st =
        st_api_prompt_ids(r, 0, &s->ctx, s->l->tok, s->l->tmpl, (int64_t)time(NULL), &ids, &why);
    if (st)
        st_fail(err, st, "%s", why.why.text);
    if (!st && !r->has_seed && getrandom(&seed, sizeof seed, 0) != sizeof seed)
        seed = st_now_ns();
    if (!st) {
        st_request q = {.prompt = ids.data,
                        .n_prompt = (int32_t)ids.len,
                        .sampling = st_api_choice_sampling(r, &s->ctx, seed, 0, (int32_t)ids.len),
                        .on_token = on_token,
                        .user = &s->in};
        st_ids_clear(&s->in.ids);
        s->in.finish = ST_FINISH_NONE;
        s->in.no_memory = false;
        s->in.first_ns = s->in.last_ns = 0;
        s->in.error[0] = '\0';
        s->in.stats = (st_chat_stats){0};
        st = st_engine_submit(s->l->engine, &q, id, err);
    }
    st_ids_free(&ids);
    return st;
}

/* Waits for news, at most a moment, so that a signal is noticed. Takes the ids that came. */
static st_finish take(inbox *in, st_ids *ids)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 50 * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&in->lock);
    if (in->ids.len == 0 && in->finish == ST_FINISH_NONE)
        pthread_cond_timedwait(&in->arrived, &in->lock, &until);
    st_ids none = *ids; /* swap: both keep their memory */
    *ids = in->ids;
    in->ids = none;
    st_ids_clear(&in->ids);
    st_finish finish = in->finish;
    pthread_mutex_unlock(&in->lock);
    return finish;
}

static st_status show(st_buf *text, size_t *shown, st_error *err)
{
    size_t n = text->len - *shown;
    if (n && (fwrite(text->data + *shown, 1, n, stdout) != n || fflush(stdout)))
        return st_fail(err, ST_EIO, "standard output: %s", strerror(errno));
    *shown = text->len;
    return ST_OK;
}

/* Streams until the request's final event; even after a failure it waits for that event, for
 * the engine still has our inbox. */
static st_status stream(st_chat_session *s, uint64_t id, st_text_stream *ts, st_buf *text,
                        const volatile sig_atomic_t *stop, st_error *err)
{
    st_ids ids = ST_IDS_INIT;
    st_finish finish = ST_FINISH_NONE;
    st_status st = ST_OK;
    size_t shown = 0;
    bool ended = false;
    while (finish == ST_FINISH_NONE) {
        finish = take(&s->in, &ids);
        for (size_t i = 0; i < ids.len && !st && !ended; i++)
            if (st_text_stream_push(ts, ids.data[i], text, &ended))
                st = no_memory(err);
        if (!st)
            st = show(text, &shown, err);
        if (finish == ST_FINISH_NONE && (st || ended || *stop > 0))
            st_engine_cancel(s->l->engine, id);
    }
    if (!st && s->in.no_memory)
        st = no_memory(err);
    if (!st && !ended && st_text_stream_finish(ts, text, &ended))
        st = no_memory(err);
    if (!st)
        st = show(text, &shown, err);
    if (!st && finish == ST_FINISH_ERROR)
        st = st_fail(err, ST_EINTERNAL, "%s", s->in.error);
    st_ids_free(&ids);
    return st;
}

static st_status answer(st_chat_session *s, const char *text, size_t len, st_buf *reply,
                        const volatile sig_atomic_t *stop, st_chat_stats *stats, st_error *err)
{
    st_api_request *r = NULL;
    st_text_stream *ts = NULL;
    uint64_t id, start = st_now_ns();
    st_status st = build_request(s, text, len, &r, err);
    if (!st) {
        st_text_stream_options o = {.stops = r->stops,
                                    .n_stops = r->n_stops,
                                    .min_tokens = r->sampling.min_tokens,
                                    .keep_special = !r->skip_special_tokens,
                                    .include_stop = r->include_stop_str_in_output};
        if (st_text_stream_new(s->l->tok, &o, &ts))
            st = no_memory(err);
    }
    if (!st)
        st = submit(s, r, &id, err);
    if (!st)
        st = stream(s, id, ts, reply, stop, err);
    if (!st) {
        *stats = s->in.stats;
        stats->finish = s->in.finish;
        if (s->in.first_ns) {
            stats->first_token_s = (double)(s->in.first_ns - start) / 1e9;
            stats->decode_s = (double)(s->in.last_ns - s->in.first_ns) / 1e9;
        }
    }
    st_text_stream_free(ts);
    st_api_request_free(r);
    return st;
}

st_status st_chat_session_ask(st_chat_session *s, const char *text, size_t len,
                              const volatile sig_atomic_t *stop, st_chat_stats *stats,
                              st_error *err)
{
    st_buf reply = ST_BUF_INIT;
    size_t before = json_array_size(s->messages);
    *stats = (st_chat_stats){0};
    if (!s->opts->raw && json_array_append_new(s->messages, message("user", text, len)))
        return st_fail(err, ST_EINVAL, "the text is not valid UTF-8");
    st_status st = answer(s, text, len, &reply, stop, stats, err);
    if (!st && !s->opts->raw &&
        json_array_append_new(s->messages,
                              message("assistant", reply.data ? reply.data : "", reply.len)))
        st = no_memory(err);
    while (st && json_array_size(s->messages) > before)
        json_array_remove(s->messages, before);
    st_buf_free(&reply);
    return st;
}
