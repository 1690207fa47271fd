/* What route_limits.c and route_cost.c know of one engine: may it take the request, and how dear
 * would that be. Costs are in tokens of prefill work at the average engine's speed. */
#ifndef ST_ROUTE_ROUTE_COST_H
#define ST_ROUTE_ROUTE_COST_H

#include "route/route.h"

/* What the engine is to do of the request. */
typedef enum st_route_part {
    ST_PART_PREFILL,
    ST_PART_DECODE,
    ST_PART_WHOLE /* a decode engine that computes the prompt as well */
} st_route_part;

/* Averages over the engines of a view that say something; 0: none does. */
typedef struct st_route_means {
    double prefill_tokens_per_s, decode_ms_per_token, kv_tokens;
} st_route_means;

/* Up, of the right role and not tried before. */
bool st_route_usable(const st_route_engine *e, st_route_part part);
/* A usable engine has room by all of its limits. */
bool st_route_fits(const st_route_policy *p, const st_route_request *r, const st_route_engine *e,
                   st_route_part part);
/* Tokens of the prompt that are not known to be there. */
int64_t st_route_uncached(const st_route_request *r, const st_route_engine *e);

st_route_means st_route_view_means(const st_route_engine *engines, int32_t n);
double st_route_cost(const st_route_policy *p, const st_route_request *r, const st_route_engine *e,
                     st_route_part part, const st_route_means *means);

#endif
