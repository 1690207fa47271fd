/* The circuit breaker of one engine, as a function from state and outcome to state. */
#include "route/route.h"

void st_breaker_policy_default(st_breaker_policy *p)
{
    *p = (st_breaker_policy){.broken_to_open = 3, .pause_ms = 500, .max_pause_ms = 30000};
}

bool st_breaker_open(const st_breaker *b)
{
    return b->open_until_ns != 0;
}

static uint64_t pause_ns(const st_breaker_policy *p, uint16_t opened)
{
    uint64_t ms = p->pause_ms ? p->pause_ms : 1;
    for (uint16_t i = 1; i < opened && ms < p->max_pause_ms; i++) {
        ms *= 2;
    }
    return (ms < p->max_pause_ms ? ms : p->max_pause_ms) * 1000000;
}

static st_breaker opened_again(const st_breaker_policy *p, st_breaker b, uint64_t now_ns)
{
    b.opened += b.opened < UINT16_MAX;
    b.broken = 0;
    b.open_until_ns = now_ns + pause_ns(p, b.opened);
    b.open_until_ns += b.open_until_ns == 0; /* 0 means closed */
    return b;
}

st_breaker st_breaker_after(const st_breaker_policy *p, st_breaker b, st_outcome o, uint64_t now_ns)
{
    bool open = st_breaker_open(&b);
    if ((o != ST_OUTCOME_OK && o != ST_OUTCOME_BROKEN) || (open && now_ns < b.open_until_ns)) {
        return b;
    }
    if (o == ST_OUTCOME_OK) {
        b.opened = open ? b.opened : 0;
        b.broken = 0;
        b.open_until_ns = 0;
        return b;
    }
    if (open) {
        return opened_again(p, b, now_ns);
    }
    b.broken += b.broken < UINT16_MAX;
    return b.broken >= p->broken_to_open ? opened_again(p, b, now_ns) : b;
}
