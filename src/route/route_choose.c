/* Which engine: the cheapest that is usable and has room, and the plan of a whole request. */
#include "route/route_cost.h"

void st_route_policy_default(st_route_policy *p)
{
    *p = (st_route_policy){.mode = ST_MODE_SEQUENTIAL,
                           .skip_prefill_tokens = 256,
                           .match_weight = 1,
                           .order_length_weight = 0.8f,
                           .starvation_ms = 5000,
                           .kv_high_water = 0.95f};
}

/* Two passes, so that "about as good as the best" does not depend on the order of the engines. */
static int32_t cheapest(const st_route_policy *p, const st_route_request *r,
                        const st_route_engine *engines, int32_t n, st_route_part part,
                        bool *somebody_is_full)
{
    st_route_means means = st_route_view_means(engines, n);
    double least = -1;
    bool full = false;
    for (int32_t i = 0; i < n; i++) {
        if (!st_route_usable(&engines[i], part)) {
            continue;
        }
        if (!st_route_fits(p, r, &engines[i], part)) {
            full = true;
            continue;
        }
        double cost = st_route_cost(p, r, &engines[i], part, &means);
        if (least < 0 || cost < least) {
            least = cost;
        }
    }
    if (somebody_is_full) {
        *somebody_is_full = full;
    }
    if (least < 0) {
        return -1;
    }
    int32_t best = -1;
    for (int32_t i = 0; i < n; i++) {
        const st_route_engine *e = &engines[i];
        if (!st_route_usable(e, part) || !st_route_fits(p, r, e, part) ||
            st_route_cost(p, r, e, part, &means) > least * (1 + 1.0 / 16)) {
            continue;
        }
        if (e->id == r->sticky && r->sticky >= 0 && part != ST_PART_PREFILL) {
            return i;
        }
        if (best < 0 || e->version < engines[best].version ||
            (e->version == engines[best].version && e->id < engines[best].id)) {
            best = i;
        }
    }
    return best;
}

int32_t st_route_prefill(const st_route_policy *p, const st_route_request *r,
                         const st_route_engine *engines, int32_t n, bool *somebody_is_full)
{
    return cheapest(p, r, engines, n, ST_PART_PREFILL, somebody_is_full);
}

int32_t st_route_decode(const st_route_policy *p, const st_route_request *r,
                        const st_route_engine *engines, int32_t n, bool *somebody_is_full)
{
    return cheapest(p, r, engines, n, ST_PART_DECODE, somebody_is_full);
}

static st_route_answer plan_whole(const st_route_policy *p, const st_route_request *r,
                                  const st_route_engine *engines, int32_t n, st_route_plan *plan)
{
    bool full;
    int32_t i = cheapest(p, r, engines, n, ST_PART_WHOLE, &full);
    if (i < 0) {
        return full ? ST_ROUTE_WAIT : ST_ROUTE_NOBODY;
    }
    *plan = (st_route_plan){.prefill = -1,
                            .decode = engines[i].id,
                            .prefill_tokens = st_route_uncached(r, &engines[i])};
    return ST_ROUTE_GO;
}

/* Engines that all do both share the load without moving KV about. */
static bool roles_are_split(const st_route_engine *engines, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        if (engines[i].role != ST_ROLE_BOTH) {
            return true;
        }
    }
    return false;
}

/* Little is left to compute where decode would go anyway: moving KV costs more than it saves. */
static bool plan_skips_prefill(const st_route_policy *p, const st_route_request *r,
                               const st_route_engine *decode, st_route_plan *plan)
{
    if (st_route_uncached(r, decode) >= p->skip_prefill_tokens ||
        !st_route_fits(p, r, decode, ST_PART_WHOLE)) {
        return false;
    }
    *plan = (st_route_plan){
        .prefill = -1, .decode = decode->id, .prefill_tokens = st_route_uncached(r, decode)};
    return true;
}

st_route_answer st_route_plan_request(const st_route_policy *p, const st_route_request *r,
                                      const st_route_engine *engines, int32_t n,
                                      st_route_plan *plan)
{
    *plan = (st_route_plan){.prefill = -1, .decode = -1};
    if (!r->disaggregate || !roles_are_split(engines, n)) {
        return plan_whole(p, r, engines, n, plan);
    }
    bool prefill_full, decode_full;
    int32_t d = st_route_decode(p, r, engines, n, &decode_full);
    if (d < 0) {
        return decode_full ? ST_ROUTE_WAIT : ST_ROUTE_NOBODY;
    }
    if (plan_skips_prefill(p, r, &engines[d], plan)) {
        return ST_ROUTE_GO;
    }
    int32_t f = st_route_prefill(p, r, engines, n, &prefill_full);
    if (f < 0) {
        return prefill_full ? ST_ROUTE_WAIT : plan_whole(p, r, engines, n, plan);
    }
    int64_t tokens = st_route_uncached(r, &engines[f]);
    if (f == d) { /* room for either part is room for both: the limits are the same */
        *plan = (st_route_plan){.prefill = -1, .decode = engines[d].id, .prefill_tokens = tokens};
        return ST_ROUTE_GO;
    }
    *plan = (st_route_plan){.prefill = engines[f].id,
                            .decode = p->mode == ST_MODE_PARALLEL ? engines[d].id : -1,
                            .prefill_tokens = tokens};
    return ST_ROUTE_GO;
}

void st_route_loads(const st_route_request *r, const st_route_engine *prefill,
                    const st_route_engine *decode, st_load *at_prefill, st_load *at_decode)
{
    if (prefill && at_prefill) {
        *at_prefill = (st_load){
            .requests = 1, .prefill_requests = 1, .prefill_tokens = st_route_uncached(r, prefill)};
    }
    if (decode && at_decode) {
        int64_t left = st_route_uncached(r, decode);
        *at_decode = (st_load){.requests = 1,
                               .prefill_requests = prefill ? 0 : 1,
                               .prefill_tokens = prefill ? 0 : left,
                               .decode_requests = 1,
                               .decode_tokens = left};
    }
}
