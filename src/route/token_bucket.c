/* Rate limit by a token bucket that fills with time and holds at most a burst. */
#include "route/route.h"

bool st_bucket_take(st_bucket *b, double rate_per_s, double burst, double cost, uint64_t now_ns,
                    uint32_t *wait_ms)
{
    if (now_ns > b->at_ns) {
        b->tokens += (double)(now_ns - b->at_ns) * 1e-9 * rate_per_s;
        b->at_ns = now_ns;
    }
    b->tokens = b->tokens < burst ? b->tokens : burst;
    if (b->tokens >= cost) {
        b->tokens -= cost;
        *wait_ms = 0;
        return true;
    }
    double ms = rate_per_s > 0 ? (cost - b->tokens) / rate_per_s * 1000 : 1e9;
    *wait_ms = cost > burst || ms > 1e9 ? 1000000000u : (uint32_t)ms + 1;
    return false;
}
