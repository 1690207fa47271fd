/* GET /starling/engine: what a gateway must know of an engine to send it requests, to move KV
 * between it and others, and to follow its cache. */
#include <string.h>

#include "server/server_state.h"

void st_server_hex(const unsigned char *bytes, size_t n, char *out)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * n] = '\0';
}

static st_status text(st_buf *out, const char *key, const char *value)
{
    st_status s = st_buf_printf(out, "\"%s\":", key);
    if (!s)
        s = st_buf_json_string(out, value, strlen(value));
    return s ? s : st_buf_putc(out, ',');
}

static st_status models(const st_server *s, st_buf *out)
{
    st_status st = st_buf_puts(out, "\"models\":[");
    for (size_t i = 0; !st && i < s->ctx.n_models; i++) {
        if (i)
            st = st_buf_putc(out, ',');
        if (!st)
            st = st_buf_json_string(out, s->ctx.models[i], strlen(s->ctx.models[i]));
    }
    return st ? st : st_buf_puts(out, "],");
}

st_status st_engine_info_json(const st_server *s, st_buf *out)
{
    st_engine_stats stats;
    st_engine_get_stats(s->engine, &stats);
    double used = stats.total_blocks ? (double)stats.used_blocks / stats.total_blocks : 0;
    st_status st = st_buf_putc(out, '{');
    if (!st)
        st = text(out, "engine_id", s->engine_id);
    if (!st)
        st = models(s, out);
    if (!st)
        st = text(out, "role", s->opts.role);
    if (!st)
        st = text(out, "kv_transfer_host", s->opts.kv_transfer_host);
    if (!st)
        st = text(out, "events_topic", s->opts.events_topic);
    return st ? st
              : st_buf_printf(out,
                              "\"max_model_len\":%d,\"block_size\":%d,\"kv_transfer_port\":%u,"
                              "\"events_port\":%u,\"replay_port\":%u,\"running\":%d,"
                              "\"waiting\":%d,\"kv_tokens\":%lld,\"kv_usage\":%.6g,"
                              "\"draining\":%s}",
                              s->ctx.max_model_len, stats.block_size, s->ports.transfer,
                              s->ports.events, s->ports.replay, stats.running + stats.fetching,
                              stats.waiting, (long long)stats.total_blocks * stats.block_size, used,
                              s->draining ? "true" : "false");
}
