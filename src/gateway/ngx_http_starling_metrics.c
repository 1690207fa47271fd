/*
 * /starling/metrics in Prometheus' text format. All samples of a metric stand
 * together, so the outer loop is over metrics, the inner over clusters.
 */

#include "ngx_http_starling.h"


typedef struct {
    const char  *name;
    const char  *help;
    size_t       offset;
} ngx_http_starling_metric_t;


static const ngx_http_starling_metric_t  ngx_http_starling_counters[] = {
    { "requests", "Requests received.",
      offsetof(st_cluster_metrics, requests) },
    { "requests_ok", "Requests answered in full.",
      offsetof(st_cluster_metrics, ok) },
    { "client_errors", "Requests refused for what the client sent.",
      offsetof(st_cluster_metrics, client_errors) },
    { "engine_errors", "Requests that failed at engines.",
      offsetof(st_cluster_metrics, engine_errors) },
    { "client_left", "Requests whose client closed the connection.",
      offsetof(st_cluster_metrics, client_left) },
    { "rejected_full", "Requests refused because the queue was full.",
      offsetof(st_cluster_metrics, rejected_full) },
    { "rejected_deadline", "Requests that waited in the queue for too long.",
      offsetof(st_cluster_metrics, rejected_deadline) },
    { "rejected_rate", "Requests over the rate limit.",
      offsetof(st_cluster_metrics, rejected_rate) },
    { "retries", "Requests sent to another engine after a failure.",
      offsetof(st_cluster_metrics, retries) },
    { "races_lost", "Choices made again since another worker was faster.",
      offsetof(st_cluster_metrics, races_lost) },
    { "prefill_skipped", "Requests that went to a decode engine alone.",
      offsetof(st_cluster_metrics, prefill_skipped) },
    { "half_failed", "Pairs of which one engine failed.",
      offsetof(st_cluster_metrics, half_failed) },
    { "workers_reaped", "Workers that died and were cleaned up after.",
      offsetof(st_cluster_metrics, workers_reaped) },
    { "prompt_tokens", "Tokens of prompts.",
      offsetof(st_cluster_metrics, prompt_tokens) },
    { "matched_tokens", "Tokens of prompts that engines had cached.",
      offsetof(st_cluster_metrics, matched_tokens) },
    { "generated_tokens", "Tokens generated.",
      offsetof(st_cluster_metrics, generated_tokens) },
    { "tokenize_threads", "Prompts tokenized in the thread pool.",
      offsetof(st_cluster_metrics, tokenize_threads) },
    { "tokenize_inline", "Prompts tokenized at once.",
      offsetof(st_cluster_metrics, tokenize_inline) },
    { NULL, NULL, 0 }
};


static const ngx_http_starling_metric_t  ngx_http_starling_histograms[] = {
    { "time_to_first_token_seconds",
      "Time from a request's arrival to its first token.",
      offsetof(st_cluster_metrics, ttft) },
    { "decision_seconds", "Time a scheduling decision took.",
      offsetof(st_cluster_metrics, decision) },
    { "request_seconds", "Time from a request's arrival to its end.",
      offsetof(st_cluster_metrics, total) },
    { NULL, NULL, 0 }
};


/* of an engine's slot, all uint64_t */
static const ngx_http_starling_metric_t  ngx_http_starling_engine_counters[] =
{
    { "engine_requests", "Requests sent to the engine.",
      offsetof(st_engine_slot, requests) },
    { "engine_broken", "Requests that broke at the engine.",
      offsetof(st_engine_slot, broken) },
    { "engine_busy", "Requests that the engine refused for want of room.",
      offsetof(st_engine_slot, busy) },
    { "engine_retries", "Requests retried elsewhere after this engine.",
      offsetof(st_engine_slot, retries_from) },
    { NULL, NULL, 0 }
};


/* of a rank's event source, all uint64_t */
static const ngx_http_starling_metric_t  ngx_http_starling_source_counters[] =
{
    { "event_batches", "Batches of KV events received.",
      offsetof(st_event_source_state, batches) },
    { "events", "KV events received.",
      offsetof(st_event_source_state, events) },
    { "events_skipped", "KV events that could not be decoded.",
      offsetof(st_event_source_state, skipped) },
    { "event_orphans", "KV events whose parent block is unknown.",
      offsetof(st_event_source_state, orphans) },
    { "event_gaps", "Gaps in the sequence of KV events.",
      offsetof(st_event_source_state, gaps) },
    { "events_replayed", "Batches of KV events got by replay.",
      offsetof(st_event_source_state, replayed) },
    { "event_restarts", "Restarts of the sequence of KV events.",
      offsetof(st_event_source_state, restarts) },
    { NULL, NULL, 0 }
};


typedef enum {
    NGX_HTTP_STARLING_G_UP,
    NGX_HTTP_STARLING_G_REQUESTS,
    NGX_HTTP_STARLING_G_PREFILL_TOKENS,
    NGX_HTTP_STARLING_G_DECODE_TOKENS,
    NGX_HTTP_STARLING_G_RUNNING,
    NGX_HTTP_STARLING_G_WAITING,
    NGX_HTTP_STARLING_G_KV_USAGE,
    NGX_HTTP_STARLING_G_BREAKER,
    NGX_HTTP_STARLING_G_N
} ngx_http_starling_gauge_e;

static const ngx_http_starling_metric_t
    ngx_http_starling_engine_gauges[NGX_HTTP_STARLING_G_N] =
{
    { "engine_up", "1: the engine is used for new requests.", 0 },
    { "engine_in_flight", "This gateway's requests at the engine.", 0 },
    { "engine_prefill_tokens", "Prompt tokens the engine has yet to compute.",
      0 },
    { "engine_decode_tokens", "Tokens of requests the engine decodes.", 0 },
    { "engine_reported_running", "Running requests, as the engine says.", 0 },
    { "engine_reported_waiting", "Waiting requests, as the engine says.", 0 },
    { "engine_kv_usage", "KV memory in use, 0 to 1, as the engine says.", 0 },
    { "engine_breaker_open", "1: the breaker keeps requests away.", 0 }
};


static st_status
ngx_http_starling_metric_head(st_buf *out, const char *name,
    const char *suffix, const char *type, const char *help)
{
    return st_buf_printf(out, "# HELP starling_%s%s %s\n"
                         "# TYPE starling_%s%s %s\n",
                         name, suffix, help, name, suffix, type);
}


/* `cluster="main"`, its value escaped; of an engine more */

static st_status
ngx_http_starling_label(st_buf *out, const char *name, const char *value)
{
    st_status  s;

    s = st_buf_printf(out, "%s%s=\"", out->len ? "," : "", name);

    for ( /* void */ ; s == ST_OK && *value; value++) {
        if (*value == '\\' || *value == '"') {
            s = st_buf_putc(out, '\\');
        }

        if (s == ST_OK) {
            s = *value == '\n' ? st_buf_puts(out, "\\n")
                               : st_buf_putc(out, *value);
        }
    }

    return s == ST_OK ? st_buf_putc(out, '"') : s;
}


static st_status
ngx_http_starling_cluster_labels(st_buf *out, ngx_http_starling_cluster_t *cl)
{
    st_buf_clear(out);

    return ngx_http_starling_label(out, "cluster", (char *) cl->name.data);
}


static st_status
ngx_http_starling_engine_labels(st_buf *out, ngx_http_starling_cluster_t *cl,
    st_engine_slot *slot)
{
    st_status  s;

    s = ngx_http_starling_cluster_labels(out, cl);

    if (s == ST_OK) {
        s = ngx_http_starling_label(out, "engine", slot->address);
    }

    if (s == ST_OK) {
        s = ngx_http_starling_label(out, "pool", slot->pool);
    }

    return s;
}


static st_status
ngx_http_starling_histogram(st_buf *out, const char *name, const char *labels,
    const st_histogram *h)
{
    uint64_t    sum;
    st_status   s;
    ngx_uint_t  i;

    s = ST_OK;
    sum = 0;

    for (i = 0; s == ST_OK && i < ST_HISTOGRAM_BUCKETS - 1; i++) {
        sum += atomic_load(&h->bucket[i]);
        s = st_buf_printf(out, "starling_%s_bucket{%s,le=\"%g\"} %llu\n", name,
                          labels, st_histogram_bounds[i],
                          (unsigned long long) sum);
    }

    /* counted here, so that the last bucket is the count at any moment */
    sum += atomic_load(&h->bucket[ST_HISTOGRAM_BUCKETS - 1]);

    if (s == ST_OK) {
        s = st_buf_printf(out, "starling_%s_bucket{%s,le=\"+Inf\"} %llu\n"
                          "starling_%s_sum{%s} %.9g\n"
                          "starling_%s_count{%s} %llu\n",
                          name, labels, (unsigned long long) sum,
                          name, labels, (double) atomic_load(&h->sum_ns) / 1e9,
                          name, labels, (unsigned long long) sum);
    }

    return s;
}


static st_status
ngx_http_starling_metrics_cluster(st_buf *out, st_buf *labels,
    ngx_http_starling_main_conf_t *mcf)
{
    char                          *m;
    st_status                      s;
    ngx_uint_t                     i;
    ngx_http_starling_cluster_t  **cl, **last;
    const ngx_http_starling_metric_t  *c;

    s = ST_OK;
    last = (ngx_http_starling_cluster_t **) mcf->clusters.elts
           + mcf->clusters.nelts;

    for (c = ngx_http_starling_counters; s == ST_OK && c->name; c++) {
        s = ngx_http_starling_metric_head(out, c->name, "_total", "counter",
                                          c->help);

        for (cl = mcf->clusters.elts; s == ST_OK && cl < last; cl++) {
            m = (char *) st_cluster_get_metrics((*cl)->shared);
            s = ngx_http_starling_cluster_labels(labels, *cl);

            if (s == ST_OK) {
                s = st_buf_printf(out, "starling_%s_total{%s} %llu\n", c->name,
                                  labels->data, (unsigned long long)
                             atomic_load((_Atomic uint64_t *) (m + c->offset)));
            }
        }
    }

    for (c = ngx_http_starling_histograms; s == ST_OK && c->name; c++) {
        s = ngx_http_starling_metric_head(out, c->name, "", "histogram",
                                          c->help);

        for (cl = mcf->clusters.elts; s == ST_OK && cl < last; cl++) {
            m = (char *) st_cluster_get_metrics((*cl)->shared);
            s = ngx_http_starling_cluster_labels(labels, *cl);

            if (s == ST_OK) {
                s = ngx_http_starling_histogram(out, c->name, labels->data,
                                          (st_histogram *) (m + c->offset));
            }
        }
    }

    if (s == ST_OK) {
        s = ngx_http_starling_metric_head(out, "phase_seconds", "",
                                          "histogram", "Time from the phase "
                                          "before to this one.");
    }

    for (cl = mcf->clusters.elts; s == ST_OK && cl < last; cl++) {
        for (i = ST_PHASE_TOKENIZED; s == ST_OK && i < ST_PHASES; i++) {
            s = ngx_http_starling_cluster_labels(labels, *cl);

            if (s == ST_OK) {
                s = ngx_http_starling_label(labels, "phase",
                                            st_phase_names[i]);
            }

            if (s == ST_OK) {
                s = ngx_http_starling_histogram(out, "phase_seconds",
                        labels->data,
                        &st_cluster_get_metrics((*cl)->shared)->phase[i]);
            }
        }
    }

    return s;
}


/* what is now */

static st_status
ngx_http_starling_metrics_now(st_buf *out, st_buf *labels,
    ngx_http_starling_main_conf_t *mcf)
{
    double                         v[6];
    st_status                      s;
    ngx_uint_t                     i;
    st_cluster_counts              counts;
    static st_prefix_stats         stats;
    ngx_http_starling_cluster_t  **cl, **last;

    static const ngx_http_starling_metric_t  gauges[6] = {
        { "in_flight", "Requests in the gateway.", 0 },
        { "waiting", "Requests in the queue.", 0 },
        { "workers", "Worker processes.", 0 },
        { "index_blocks", "Distinct blocks in the prefix index.", 0 },
        { "index_capacity_blocks", "Blocks the prefix index has room for.",
          0 },
        { "index_holdings", "Blocks in the prefix index, per engine.", 0 }
    };

    s = ST_OK;
    last = (ngx_http_starling_cluster_t **) mcf->clusters.elts
           + mcf->clusters.nelts;

    for (i = 0; s == ST_OK && i < 6; i++) {
        s = ngx_http_starling_metric_head(out, gauges[i].name, "", "gauge",
                                          gauges[i].help);

        for (cl = mcf->clusters.elts; s == ST_OK && cl < last; cl++) {
            st_cluster_get_counts((*cl)->shared, &counts);
            st_prefix_get_stats(st_cluster_index((*cl)->shared), &stats);

            v[0] = counts.in_flight;
            v[1] = counts.waiting;
            v[2] = counts.workers;
            v[3] = stats.blocks;
            v[4] = stats.capacity;
            v[5] = stats.holdings;

            s = ngx_http_starling_cluster_labels(labels, *cl);

            if (s == ST_OK) {
                s = st_buf_printf(out, "starling_%s{%s} %.17g\n",
                                  gauges[i].name, labels->data, v[i]);
            }
        }
    }

    return s;
}


static double
ngx_http_starling_engine_gauge(ngx_http_starling_gauge_e g,
    st_engine_slot *slot, const st_load *load)
{
    switch (g) {
    case NGX_HTTP_STARLING_G_UP:
        return atomic_load(&slot->health) == ST_HEALTH_UP;
    case NGX_HTTP_STARLING_G_REQUESTS:
        return load->requests;
    case NGX_HTTP_STARLING_G_PREFILL_TOKENS:
        return load->prefill_tokens;
    case NGX_HTTP_STARLING_G_DECODE_TOKENS:
        return load->decode_tokens;
    case NGX_HTTP_STARLING_G_RUNNING:
        return atomic_load(&slot->reported_running);
    case NGX_HTTP_STARLING_G_WAITING:
        return atomic_load(&slot->reported_waiting);
    case NGX_HTTP_STARLING_G_KV_USAGE:
        return (double) atomic_load(&slot->kv_usage);
    default:
        return atomic_load(&slot->open_until_ns) > ngx_http_starling_now();
    }
}


static st_status
ngx_http_starling_metrics_engine(st_buf *out, st_buf *labels,
    ngx_http_starling_main_conf_t *mcf, ngx_int_t gauge,
    const ngx_http_starling_metric_t *metric)
{
    int32_t                        i;
    st_status                      s;
    const st_load                 *loads;
    st_engine_slot                *slot;
    ngx_http_starling_cluster_t  **cl, **last;

    s = ST_OK;
    last = (ngx_http_starling_cluster_t **) mcf->clusters.elts
           + mcf->clusters.nelts;

    for (cl = mcf->clusters.elts; cl < last; cl++) {
        loads = ngx_http_starling_loads(*cl);

        for (i = 0; s == ST_OK && i < ST_CLUSTER_MAX_ENGINES; i++) {
            slot = st_cluster_engine((*cl)->shared, i);

            if (slot == NULL || atomic_load(&slot->state) == 0) {
                continue;
            }

            s = ngx_http_starling_engine_labels(labels, *cl, slot);
            if (s != ST_OK) {
                break;
            }

            if (gauge >= 0) {
                s = st_buf_printf(out, "starling_%s{%s} %.9g\n", metric->name,
                                  labels->data,
                                  ngx_http_starling_engine_gauge(gauge, slot,
                                                                 &loads[i]));
            } else {
                s = st_buf_printf(out, "starling_%s_total{%s} %llu\n",
                                  metric->name, labels->data,
                                  (unsigned long long)
                                  atomic_load((_Atomic uint64_t *)
                                          ((char *) slot + metric->offset)));
            }
        }
    }

    return s;
}


static st_status
ngx_http_starling_metrics_sources(st_buf *out, st_buf *labels,
    ngx_http_starling_main_conf_t *mcf,
    const ngx_http_starling_metric_t *metric)
{
    char                          *state;
    int32_t                        i;
    st_status                      s;
    ngx_uint_t                     rank;
    st_engine_slot                *slot;
    ngx_http_starling_cluster_t  **cl, **last;

    s = ST_OK;
    last = (ngx_http_starling_cluster_t **) mcf->clusters.elts
           + mcf->clusters.nelts;

    for (cl = mcf->clusters.elts; cl < last; cl++) {
        for (i = 0; s == ST_OK && i < ST_CLUSTER_MAX_ENGINES; i++) {
            slot = st_cluster_engine((*cl)->shared, i);

            if (slot == NULL || atomic_load(&slot->state) == 0
                || !slot->publishes_events)
            {
                continue;
            }

            s = ngx_http_starling_engine_labels(labels, *cl, slot);

            for (rank = 0; s == ST_OK && rank < slot->dp_size; rank++) {
                state = (char *) st_cluster_source_state((*cl)->shared,
                                                slot->first_holder + rank);
                s = st_buf_printf(out,
                                  "starling_%s_total{%s,rank=\"%d\"} %llu\n",
                                  metric->name, labels->data, (int) rank,
                                  (unsigned long long)
                                  atomic_load((_Atomic uint64_t *)
                                              (state + metric->offset)));
            }
        }
    }

    return s;
}


st_status
ngx_http_starling_metrics(ngx_http_starling_main_conf_t *mcf, st_buf *out)
{
    st_buf                             labels;
    st_status                          s;
    ngx_int_t                          i;
    const ngx_http_starling_metric_t  *m;

    labels = (st_buf) ST_BUF_INIT;

    s = ngx_http_starling_metrics_cluster(out, &labels, mcf);

    if (s == ST_OK) {
        s = ngx_http_starling_metrics_now(out, &labels, mcf);
    }

    for (i = 0; s == ST_OK && i < NGX_HTTP_STARLING_G_N; i++) {
        m = &ngx_http_starling_engine_gauges[i];
        s = ngx_http_starling_metric_head(out, m->name, "", "gauge", m->help);

        if (s == ST_OK) {
            s = ngx_http_starling_metrics_engine(out, &labels, mcf, i, m);
        }
    }

    for (m = ngx_http_starling_engine_counters; s == ST_OK && m->name; m++) {
        s = ngx_http_starling_metric_head(out, m->name, "_total", "counter",
                                          m->help);

        if (s == ST_OK) {
            s = ngx_http_starling_metrics_engine(out, &labels, mcf, -1, m);
        }
    }

    for (m = ngx_http_starling_source_counters; s == ST_OK && m->name; m++) {
        s = ngx_http_starling_metric_head(out, m->name, "_total", "counter",
                                          m->help);

        if (s == ST_OK) {
            s = ngx_http_starling_metrics_sources(out, &labels, mcf, m);
        }
    }

    st_buf_free(&labels);

    return s;
}
