/*
 * Reads what engines say of themselves: our own's /starling/engine, and the
 * gauges of vLLM and SGLang; and tells the event feed where their KV events
 * come from.
 */

#include "ngx_http_starling_health.h"

#include "base/json_splice.h"


/* /starling/engine */

static st_status
ngx_http_starling_says_int(const st_splice *s, const char *key, int64_t max,
    int64_t *out, st_error *err)
{
    const st_member  *m;

    m = st_splice_find(s, key);

    if (m == NULL || !st_member_int64(s, m, out) || *out < 0 || *out > max) {
        return st_fail(err, ST_EFORMAT, "/starling/engine: \"%s\": expected "
                       "an integer from 0 to %lld", key, (long long) max);
    }

    return ST_OK;
}


static st_status
ngx_http_starling_says_text(const st_splice *s, const char *key, char *out,
    st_error *err)
{
    st_buf            text;
    st_status         rc;
    const st_member  *m;

    text = (st_buf) ST_BUF_INIT;
    m = st_splice_find(s, key);
    rc = m && m->type == ST_JSON_STRING ? st_member_text(s, m, &text)
                                        : ST_EFORMAT;

    if (rc == ST_OK && text.len < ST_NAME_MAX
        && (text.len == 0 || memchr(text.data, 0, text.len) == NULL))
    {
        ngx_memcpy(out, text.len ? text.data : "", text.len);
        out[text.len] = '\0';

    } else {
        rc = st_fail(err, ST_EFORMAT, "/starling/engine: \"%s\": expected a "
                     "text of less than %d bytes", key, ST_NAME_MAX);
    }

    st_buf_free(&text);

    return rc;
}


static float
ngx_http_starling_says_usage(const st_splice *s)
{
    char              number[32];
    size_t            n;
    float             f;
    const st_member  *m;

    m = st_splice_find(s, "kv_usage");

    if (m == NULL || m->type != ST_JSON_NUMBER) {
        return -1;
    }

    n = m->value.end - m->value.begin;

    if (n >= sizeof(number)) {
        return -1;
    }

    ngx_memcpy(number, st_splice_text(s) + m->value.begin, n);
    number[n] = '\0';

    f = strtof(number, NULL);

    return f >= 0 && f <= 1 ? f : -1;
}


st_status
ngx_http_starling_read_engine(const char *body, size_t len,
    ngx_http_starling_engine_says_t *says, st_error *err)
{
    int64_t           v[8];
    st_splice        *s;
    st_status         rc;
    ngx_uint_t        i;
    const st_member  *m;

    static const struct {
        const char  *key;
        int64_t      max;
    } numbers[8] = {
        { "running", INT32_MAX },
        { "waiting", INT32_MAX },
        { "block_size", 65536 },
        { "max_model_len", INT32_MAX },
        { "kv_tokens", INT64_MAX },
        { "kv_transfer_port", 65535 },
        { "events_port", 65535 },
        { "replay_port", 65535 }
    };

    ngx_memzero(says, sizeof(ngx_http_starling_engine_says_t));

    if (len == 0) {
        return st_fail(err, ST_EFORMAT, "/starling/engine: an empty answer");
    }

    rc = st_splice_new(body, len, &s, err);
    if (rc != ST_OK) {
        return st_fail_prefix(err, rc, "/starling/engine");
    }

    for (i = 0; rc == ST_OK && i < 8; i++) {
        rc = ngx_http_starling_says_int(s, numbers[i].key, numbers[i].max,
                                        &v[i], err);
    }

    if (rc == ST_OK) {
        rc = ngx_http_starling_says_text(s, "engine_id", says->engine_id, err);
    }

    if (rc == ST_OK) {
        rc = ngx_http_starling_says_text(s, "kv_transfer_host", says->kv_host,
                                         err);
    }

    if (rc == ST_OK) {
        rc = ngx_http_starling_says_text(s, "events_topic", says->topic, err);
    }

    if (rc == ST_OK && v[2] == 0) {
        rc = st_fail(err, ST_EFORMAT, "/starling/engine: \"block_size\" is 0");
    }

    if (rc == ST_OK) {
        says->running = v[0];
        says->waiting = v[1];
        says->block_size = v[2];
        says->max_model_len = v[3];
        says->kv_tokens = v[4];
        says->kv_port = v[5];
        says->events_port = v[6];
        says->replay_port = v[7];
        says->kv_usage = ngx_http_starling_says_usage(s);

        m = st_splice_find(s, "draining");
        says->draining = m && st_member_is_true(s, m);
    }

    st_splice_free(s);

    return rc;
}


/* gauges */

/*
 * One line of Prometheus' text: true when it is the named metric, with its
 * labels, if any, and its value
 */

static ngx_uint_t
ngx_http_starling_gauge(const char *line, size_t len, const char *name,
    const char **labels, size_t *labels_len, double *value)
{
    char         number[64];
    char        *end;
    size_t       n;
    const char  *p, *last;

    n = strlen(name);
    last = line + len;

    if (len <= n || memcmp(line, name, n) != 0) {
        return 0;
    }

    p = line + n;
    *labels = p;
    *labels_len = 0;

    if (*p == '{') {
        /* a label's value may hold a '}' : the last one counts */
        p = memrchr(line, '}', len);
        if (p == NULL) {
            return 0;
        }

        *labels_len = ++p - *labels;

    } else if (*p != ' ') {
        return 0;
    }

    while (p < last && *p == ' ') {
        p++;
    }

    if (p == last || (size_t) (last - p) >= sizeof(number)) {
        return 0;
    }

    ngx_memcpy(number, p, last - p);
    number[last - p] = '\0';

    *value = strtod(number, &end);

    return end > number && *value >= 0 && *value < 1e15;
}


static int64_t
ngx_http_starling_label(const char *labels, size_t len, const char *name)
{
    char         number[24];
    size_t       n;
    const char  *p;

    p = memmem(labels, len, name, strlen(name));
    if (p == NULL) {
        return -1;
    }

    p += strlen(name);

    for (n = 0; n < sizeof(number) - 1 && p + n < labels + len
                && p[n] >= '0' && p[n] <= '9'; n++)
    {
        number[n] = p[n];
    }

    number[n] = '\0';

    return n ? strtoll(number, NULL, 10) : -1;
}


static void
ngx_http_starling_add_count(int32_t *sum, double value)
{
    double  d;

    d = (*sum > 0 ? *sum : 0) + value;
    *sum = d < INT32_MAX ? (int32_t) d : INT32_MAX;
}


static void
ngx_http_starling_read_gauge(st_engine_kind kind, const char *line, size_t len,
    ngx_http_starling_gauges_t *g)
{
    double       v;
    size_t       n;
    int64_t      block, blocks;
    ngx_uint_t   vllm;
    const char  *labels;

    vllm = kind == ST_KIND_VLLM;

    if (ngx_http_starling_gauge(line, len,
                                vllm ? "vllm:num_requests_waiting"
                                     : "sglang:num_queue_reqs",
                                &labels, &n, &v))
    {
        ngx_http_starling_add_count(&g->waiting, v);
        return;
    }

    if (ngx_http_starling_gauge(line, len,
                                vllm ? "vllm:num_requests_running"
                                     : "sglang:num_running_reqs",
                                &labels, &n, &v))
    {
        ngx_http_starling_add_count(&g->running, v);
        return;
    }

    if (ngx_http_starling_gauge(line, len,
                                vllm ? "vllm:kv_cache_usage_perc"
                                     : "sglang:token_usage",
                                &labels, &n, &v))
    {
        if (v <= 1 && v > g->kv_usage) {
            g->kv_usage = v;
        }

        return;
    }

    if (vllm && ngx_http_starling_gauge(line, len, "vllm:cache_config_info",
                                        &labels, &n, &v))
    {
        block = ngx_http_starling_label(labels, n, "block_size=\"");
        blocks = ngx_http_starling_label(labels, n, "num_gpu_blocks=\"");

        if (block > 0 && block <= 65536) {
            g->block_size = block;

            if (blocks > 0 && blocks < INT32_MAX) {
                g->kv_tokens = ngx_max(g->kv_tokens, 0) + block * blocks;
            }
        }
    }
}


void
ngx_http_starling_read_gauges(st_engine_kind kind, const char *text,
    size_t len, ngx_http_starling_gauges_t *g)
{
    size_t       n;
    const char  *end, *last, *prefix;

    *g = (ngx_http_starling_gauges_t) { -1, -1, -1, -1, -1 };

    last = text + len;
    prefix = kind == ST_KIND_VLLM ? "vllm:" : "sglang:";
    n = strlen(prefix);

    for ( /* void */ ; text < last; text = end + 1) {
        end = memchr(text, '\n', last - text);
        end = end ? end : last;

        if ((size_t) (end - text) > n && memcmp(text, prefix, n) == 0) {
            ngx_http_starling_read_gauge(kind, text, end - text, g);
        }
    }
}


/* what changes seldom and is longer than a word */

void
ngx_http_starling_set_info(st_engine_slot *slot, const char *engine_id,
    const char *kv_host)
{
    uint32_t  version;

    if (strcmp(slot->engine_id, engine_id) == 0
        && strcmp(slot->kv_host, kv_host) == 0)
    {
        return;
    }

    /* a leader that died here left an odd number */

    version = atomic_load(&slot->info_version) | 1;
    atomic_store(&slot->info_version, version);
    atomic_thread_fence(memory_order_seq_cst);

    ngx_cpystrn((u_char *) slot->engine_id, (u_char *) engine_id, ST_NAME_MAX);
    ngx_cpystrn((u_char *) slot->kv_host, (u_char *) kv_host, ST_NAME_MAX);

    atomic_store(&slot->info_version, version + 1);
}


/* the event feed's sources */

/* events are matched under the name that requests are matched under */

static const char *
ngx_http_starling_follow_model(ngx_http_starling_cluster_t *cl,
    ngx_http_starling_engine_t *engine)
{
    ngx_http_starling_model_t  *model;

    model = cl->models.elts;

    return model[__builtin_ctzll(engine->models)].names[0];
}


static void
ngx_http_starling_follow(ngx_http_starling_cluster_t *cl,
    ngx_http_starling_engine_t *engine, st_engine_slot *slot, ngx_uint_t rank,
    const char *events, const char *replay, const char *topic)
{
    st_error         err;
    st_event_source  source;

    source.holder = slot->first_holder + rank;
    source.endpoint = events;
    source.replay = replay;
    source.topic = topic;
    source.model = ngx_http_starling_follow_model(cl, engine);
    source.state = st_cluster_source_state(cl->shared, source.holder);

    if (st_event_feed_set(cl->feed, &source, &err) != ST_OK) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "starling_cluster \"%V\": engine %V: its KV events "
                      "cannot be followed: %s", &cl->name, &engine->address,
                      err.text);
    }
}


void
ngx_http_starling_follow_nothing(ngx_http_starling_cluster_t *cl,
    ngx_http_starling_engine_t *engine, st_engine_slot *slot)
{
    ngx_uint_t  i;

    for (i = 0; cl->feed && i < engine->dp_size; i++) {
        if (st_event_feed_drop(cl->feed, slot->first_holder + i) != ST_OK) {
            ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                          "starling_cluster \"%V\": engine %V: its KV events "
                          "cannot be forgotten", &cl->name, &engine->address);
        }
    }
}


void
ngx_http_starling_follow_engine(ngx_http_starling_cluster_t *cl,
    ngx_http_starling_engine_t *engine, st_engine_slot *slot,
    const ngx_http_starling_engine_says_t *says, char *engine_id,
    char *followed, size_t size)
{
    char        events[256], replay[256], now[512], host[ST_ADDRESS_MAX];
    ngx_uint_t  restarted;

    if (engine->events.len == 0) {
        return;
    }

    if (engine->events.len != 4
        || ngx_strncmp(engine->events.data, "auto", 4) != 0)
    {
        ngx_http_starling_follow_configured(cl, engine, slot, followed, size);
        return;
    }

    /* what publishes nothing is matched by history, until it does */

    atomic_store(&slot->publishes_events,
                 cl->feed != NULL && says->events_port != 0);

    if (cl->feed == NULL) {
        return;
    }

    if (ngx_strncmp(engine->address.data, "unix:", 5) == 0) {
        snprintf(host, sizeof(host), "%s",
                 says->kv_host[0] ? says->kv_host : "127.0.0.1");

    } else {
        snprintf(host, sizeof(host), "%.*s", (int) engine->host.len,
                 (char *) engine->host.data);
    }

    restarted = engine_id[0] && strcmp(engine_id, says->engine_id) != 0;
    ngx_cpystrn((u_char *) engine_id, (u_char *) says->engine_id, ST_NAME_MAX);

    snprintf(events, sizeof(events), "tcp://%s:%u", host, says->events_port);
    snprintf(replay, sizeof(replay), "tcp://%s:%u", host, says->replay_port);
    snprintf(now, sizeof(now), "%.250s %.250s", events,
             says->replay_port ? replay : "");

    if (!restarted && strcmp(now, followed) == 0) {
        return;
    }

    if (followed[0] && (restarted || says->events_port == 0)) {
        ngx_http_starling_follow_nothing(cl, engine, slot);
    }

    followed[0] = '\0';

    if (says->events_port) {
        ngx_http_starling_follow(cl, engine, slot, 0, events,
                                 says->replay_port ? replay : NULL,
                                 says->topic[0] ? says->topic : NULL);
        snprintf(followed, size, "%s", now);
    }
}


/* rank r publishes at its port + r; a path has no port */

static void
ngx_http_starling_rank_endpoint(ngx_str_t *base, ngx_uint_t rank, char *out,
    size_t size)
{
    char    *colon;
    size_t   n;

    snprintf(out, size, "%.*s", (int) base->len, (char *) base->data);

    if (rank == 0) {
        return;
    }

    colon = strrchr(out, ':');
    n = colon + 1 - out;

    if (strncmp(out, "ipc://", 6) == 0) {
        n = strlen(out);
        snprintf(out + n, size - n, "_%u", (unsigned) rank);

    } else {
        snprintf(out + n, size - n, "%d", atoi(out + n) + (int) rank);
    }
}


void
ngx_http_starling_follow_configured(ngx_http_starling_cluster_t *cl,
    ngx_http_starling_engine_t *engine, st_engine_slot *slot, char *followed,
    size_t size)
{
    char        events[280], replay[280];
    ngx_uint_t  i;

    if (cl->feed == NULL || engine->events.len == 0 || followed[0]) {
        return;
    }

    for (i = 0; i < engine->dp_size; i++) {
        ngx_http_starling_rank_endpoint(&engine->events, i, events,
                                        sizeof(events));
        ngx_http_starling_rank_endpoint(&engine->replay, i, replay,
                                        sizeof(replay));
        ngx_http_starling_follow(cl, engine, slot, i, events,
                                 engine->replay.len ? replay : NULL, NULL);
    }

    snprintf(followed, size, "configured");
}
