/* Who goes next: short ones first, but nobody waits for ever. */
#include "route/route.h"

static uint64_t waited_ns(const st_route_waiting *w, uint64_t now_ns)
{
    return now_ns > w->since_ns ? now_ns - w->since_ns : 0; /* another worker's clock read */
}

bool st_route_starved(const st_route_policy *p, const st_route_waiting *w, uint64_t now_ns)
{
    uint64_t ms = p->starvation_ms ? p->starvation_ms : 5000;
    return waited_ns(w, now_ns) > ms * 1000000;
}

/* The oldest of those with this priority who starve; -1: nobody does. */
static int32_t oldest_starved(const st_route_policy *p, const st_route_waiting *w, int32_t n,
                              int64_t priority, uint64_t now_ns)
{
    int32_t oldest = -1;
    for (int32_t i = 0; i < n; i++) {
        if (w[i].priority == priority && st_route_starved(p, &w[i], now_ns) &&
            (oldest < 0 || w[i].since_ns < w[oldest].since_ns)) {
            oldest = i;
        }
    }
    return oldest;
}

int32_t st_route_next(const st_route_policy *p, const st_route_waiting *w, int32_t n,
                      uint64_t now_ns)
{
    int64_t priority = w[0].priority;
    for (int32_t i = 1; i < n; i++) {
        priority = w[i].priority < priority ? w[i].priority : priority;
    }
    int32_t best = oldest_starved(p, w, n, priority, now_ns);
    if (best >= 0) {
        return best;
    }
    int64_t most_tokens = 1;
    uint64_t longest = 50 * 1000000;
    for (int32_t i = 0; i < n; i++) {
        if (w[i].priority == priority) {
            most_tokens = w[i].tokens > most_tokens ? w[i].tokens : most_tokens;
            uint64_t ns = waited_ns(&w[i], now_ns);
            longest = ns > longest ? ns : longest;
        }
    }
    double a = (double)p->order_length_weight, best_weight = 0;
    for (int32_t i = 0; i < n; i++) {
        if (w[i].priority != priority) {
            continue;
        }
        double weight = a * (double)(most_tokens - w[i].tokens) / (double)most_tokens +
                        (1 - a) * (double)waited_ns(&w[i], now_ns) / (double)longest;
        if (best < 0 || weight > best_weight ||
            (weight == best_weight && w[i].since_ns < w[best].since_ns)) {
            best = i;
            best_weight = weight;
        }
    }
    return best;
}
