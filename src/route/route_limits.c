/* May an engine take this request now: role, health, and the limits that are never exceeded. */
#include "route/route_cost.h"

bool st_route_usable(const st_route_engine *e, st_route_part part)
{
    int needed = part == ST_PART_PREFILL ? ST_ROLE_PREFILL : ST_ROLE_DECODE;
    return (e->role & needed) && e->health == ST_HEALTH_UP && !e->excluded;
}

int64_t st_route_uncached(const st_route_request *r, const st_route_engine *e)
{
    int64_t matched = e->matched_tokens;
    return matched < r->prompt_tokens ? r->prompt_tokens - matched : 0;
}

static bool prefill_fits(const st_route_request *r, const st_route_engine *e)
{
    if (e->max_prefill_tokens <= 0 || e->load.prefill_tokens <= 0) {
        return true; /* no limit, or nothing before it: a longer prompt must go somewhere */
    }
    return e->load.prefill_tokens + st_route_uncached(r, e) <= e->max_prefill_tokens;
}

/* The engine's own report of its KV memory holds requests of others, too; ours is fresher. */
static bool kv_fits(const st_route_policy *p, const st_route_request *r, const st_route_engine *e)
{
    double high = p->kv_high_water > 0 ? p->kv_high_water : 0.95;
    bool idle = e->load.requests <= 0 && e->reported_running <= 0 && e->reported_waiting <= 0;
    if (!idle && e->kv_usage > high) {
        return false;
    }
    if (e->kv_tokens <= 0 || e->load.decode_requests <= 0) {
        return true; /* unknown, or alone: the engine itself refuses what can never fit */
    }
    double after = (double)(e->load.decode_tokens + st_route_uncached(r, e));
    return after <= high * (double)e->kv_tokens;
}

bool st_route_fits(const st_route_policy *p, const st_route_request *r, const st_route_engine *e,
                   st_route_part part)
{
    if (e->max_requests > 0 && e->load.requests >= e->max_requests) {
        return false;
    }
    if (part != ST_PART_DECODE && !prefill_fits(r, e)) {
        return false;
    }
    return part == ST_PART_PREFILL || kv_fits(p, r, e);
}
