/* How dear an engine is for a request. All terms are tokens, so that load and affinity weigh
 * against each other in one unit: a match is worth the tokens it saves and no more, and an engine
 * that everybody likes stops being the best as soon as its queue is longer than that. */
#include "route/route_cost.h"

/* A token whose KV is held slows each step by the attention over it: far less than computing a
 * token of a prompt. A running request costs its place in every step besides. */
enum { RUNNING_REQUEST_TOKENS = 64 };
static const double held_token = 0.1;

static double mean(double sum, int32_t n)
{
    return n > 0 ? sum / n : 0;
}

st_route_means st_route_view_means(const st_route_engine *engines, int32_t n)
{
    double speed = 0, ms = 0, kv = 0;
    int32_t n_speed = 0, n_ms = 0, n_kv = 0;
    for (int32_t i = 0; i < n; i++) {
        const st_route_engine *e = &engines[i];
        if (e->prefill_tokens_per_s > 0) {
            speed += (double)e->prefill_tokens_per_s;
            n_speed++;
        }
        if (e->decode_ms_per_token > 0) {
            ms += (double)e->decode_ms_per_token;
            n_ms++;
        }
        if (e->kv_tokens > 0) {
            kv += (double)e->kv_tokens;
            n_kv++;
        }
    }
    return (st_route_means){.prefill_tokens_per_s = mean(speed, n_speed),
                            .decode_ms_per_token = mean(ms, n_ms),
                            .kv_tokens = mean(kv, n_kv)};
}

static double clamp(double v, double low, double high)
{
    return v < low ? low : v > high ? high : v;
}

/* Requests the engine reports beyond ours: other gateways' and direct ones. A report may be some
 * seconds old, so ours that have ended since are still in it: it errs to the safe side. */
static double foreign(int32_t reported, int32_t ours)
{
    return reported > ours ? reported - ours : 0;
}

static double prefill_cost(const st_route_policy *p, const st_route_request *r,
                           const st_route_engine *e, const st_route_means *means)
{
    double own = (double)r->prompt_tokens -
                 (double)p->match_weight * (double)(r->prompt_tokens - st_route_uncached(r, e));
    /* Others' waiting prompts are taken to be as long as this one. */
    double queued = (double)e->load.prefill_tokens +
                    foreign(e->reported_waiting, e->load.requests) * (double)r->prompt_tokens;
    double speed = 1; /* relative to the average; engines not measured yet are average */
    if (e->prefill_tokens_per_s > 0 && means->prefill_tokens_per_s > 0) {
        speed = (double)e->prefill_tokens_per_s / means->prefill_tokens_per_s;
    }
    return (queued + clamp(own, 0, (double)r->prompt_tokens)) / speed;
}

/* What is running already: each step of this request's decode pays for it. */
static double decode_load(const st_route_engine *e, const st_route_means *means)
{
    double held = (double)e->load.decode_tokens;
    if (e->kv_tokens > 0) {
        double reported = (double)e->kv_usage * (double)e->kv_tokens;
        held = reported > held ? reported : held;
        held *= means->kv_tokens / (double)e->kv_tokens; /* headroom is relative */
    }
    double running = e->load.decode_requests + foreign(e->reported_running, e->load.requests);
    double slow = 1;
    if (e->decode_ms_per_token > 0 && means->decode_ms_per_token > 0) {
        /* A slow engine is slow because it is loaded, in part: do not count that twice. */
        slow = clamp((double)e->decode_ms_per_token / means->decode_ms_per_token, 0.5, 2);
    }
    return slow * (held_token * held + RUNNING_REQUEST_TOKENS * running);
}

double st_route_cost(const st_route_policy *p, const st_route_request *r, const st_route_engine *e,
                     st_route_part part, const st_route_means *means)
{
    switch (part) {
    case ST_PART_PREFILL:
        return prefill_cost(p, r, e, means);
    case ST_PART_WHOLE:
        return prefill_cost(p, r, e, means) + decode_load(e, means);
    case ST_PART_DECODE:
        break;
    }
    /* The prompt's KV that is not there has to be moved there, and held. */
    return decode_load(e, means) + held_token * (double)st_route_uncached(r, e);
}
