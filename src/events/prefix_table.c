/* The two hash tables of a prefix index (prefix_layout.h): buckets of one cache line whose entries
 * never move, with a count of those that had to go on to a later bucket. */
#include "events/prefix_layout.h"

#include <string.h>

bool prefix_table_add(const st_prefix_index *x, prefix_table t, uint64_t hash, uint32_t index)
{
    prefix_bucket *buckets = prefix_buckets(x, t);
    uint32_t home = prefix_home(hash, t.n), b = home;
    int slot = -1;
    for (int i = 0; i < BUCKET_CHAIN; i++) {
        for (slot = BUCKET_ENTRIES - 1; slot >= 0; slot--)
            if (atomic_load_explicit(&buckets[b].entries[slot], memory_order_relaxed) == 0)
                break;
        if (slot >= 0)
            break;
        b = b + 1 == t.n ? 0 : b + 1;
        if (b == home)
            return false;
    }
    if (slot < 0)
        return false;
    /* First the way to it, then the entry. */
    for (uint32_t i = home; i != b; i = i + 1 == t.n ? 0 : i + 1)
        atomic_fetch_add_explicit(&buckets[i].overflow, 1, memory_order_release);
    atomic_store_explicit(&buckets[b].entries[slot], prefix_entry(hash, index),
                          memory_order_release);
    return true;
}

void prefix_table_del(const st_prefix_index *x, prefix_table t, uint64_t hash, uint32_t index)
{
    prefix_bucket *buckets = prefix_buckets(x, t);
    uint32_t home = prefix_home(hash, t.n), b = home, entry = prefix_entry(hash, index);
    for (int i = 0; i < BUCKET_CHAIN; i++) {
        for (int s = 0; s < BUCKET_ENTRIES; s++) {
            if (atomic_load_explicit(&buckets[b].entries[s], memory_order_relaxed) != entry)
                continue;
            atomic_store_explicit(&buckets[b].entries[s], 0, memory_order_release);
            for (uint32_t k = home; k != b; k = k + 1 == t.n ? 0 : k + 1)
                atomic_fetch_sub_explicit(&buckets[k].overflow, 1, memory_order_release);
            return;
        }
        b = b + 1 == t.n ? 0 : b + 1;
    }
}

void prefix_table_zero(const st_prefix_index *x, prefix_table t)
{
    prefix_bucket *buckets = prefix_buckets(x, t);
    for (uint32_t b = 0; b < t.n; b++) {
        for (int s = 0; s < BUCKET_ENTRIES; s++)
            atomic_store_explicit(&buckets[b].entries[s], 0, memory_order_relaxed);
        atomic_store_explicit(&buckets[b].overflow, 0, memory_order_relaxed);
    }
}
