/* Rate limits shared by the workers: a table of token buckets, each one word. A bucket is kept as
 * the time when it will be full; once that has passed it says nothing and its slot is anybody's.
 * Two keys that meet in a slot at one instant may lose a token's count: never more. */
#include "cluster/cluster_impl.h"

enum { WAYS = 8 };

static st_rate_slot *find_slot(st_cluster *c, uint64_t key, uint64_t now_ns)
{
    st_rate_slot *set =
        &c->rates[(key * 0x9E3779B97F4A7C15u >> 32) % (ST_RATE_SLOTS / WAYS) * WAYS];
    st_rate_slot *oldest = NULL;
    uint64_t oldest_full = UINT64_MAX;
    for (int i = 0; i < WAYS; i++) {
        if (atomic_load(&set[i].key) == key) {
            return &set[i];
        }
        uint64_t full = atomic_load(&set[i].full_at_ns);
        if (full < oldest_full) {
            oldest_full = full;
            oldest = &set[i];
        }
    }
    /* The emptied one, or under attack the one that would be emptied first. */
    uint64_t old = atomic_load(&oldest->key);
    if (atomic_compare_exchange_strong(&oldest->key, &old, key)) {
        atomic_store(&oldest->full_at_ns, now_ns);
    }
    return oldest;
}

bool st_cluster_rate_take(st_cluster *c, uint64_t key, double rate_per_s, double burst, double cost,
                          uint64_t now_ns, uint32_t *wait_ms)
{
    *wait_ms = 0;
    if (rate_per_s <= 0) {
        return true; /* no limit */
    }
    st_rate_slot *s = find_slot(c, key ? key : 1, now_ns);
    uint64_t full_at = atomic_load(&s->full_at_ns);
    for (;;) {
        double missing = full_at > now_ns ? (double)(full_at - now_ns) * 1e-9 * rate_per_s : 0;
        st_bucket b = {.tokens = burst - missing, .at_ns = now_ns};
        if (!st_bucket_take(&b, rate_per_s, burst, cost, now_ns, wait_ms)) {
            return false;
        }
        uint64_t next = now_ns + (uint64_t)((burst - b.tokens) / rate_per_s * 1e9);
        if (atomic_compare_exchange_weak(&s->full_at_ns, &full_at, next)) {
            return true;
        }
    }
}
