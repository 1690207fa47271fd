/* Histograms and counts for the metrics and the status page. */
#include "cluster/cluster_impl.h"

const double st_histogram_bounds[ST_HISTOGRAM_BUCKETS - 1] = {
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.25,   0.5,     1,      2.5,   5,      10,    30,   60,    300};

void st_histogram_add(st_histogram *h, uint64_t ns)
{
    double seconds = (double)ns * 1e-9;
    int b = 0;
    while (b < ST_HISTOGRAM_BUCKETS - 1 && seconds > st_histogram_bounds[b]) {
        b++;
    }
    atomic_fetch_add_explicit(&h->bucket[b], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_ns, ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->count, 1, memory_order_relaxed);
}

st_cluster_metrics *st_cluster_get_metrics(st_cluster *c)
{
    return &c->region->metrics;
}

static int32_t count_bits(const _Atomic uint64_t *map, uint32_t n)
{
    int32_t sum = 0;
    for (uint32_t i = 0; i < (n + 63) / 64; i++) {
        sum += __builtin_popcountll(atomic_load(&map[i]));
    }
    return sum;
}

void st_cluster_get_counts(const st_cluster *c, st_cluster_counts *out)
{
    *out = (st_cluster_counts){.in_flight = count_bits(c->request_map, c->region->n_requests),
                               .waiting = count_bits(c->place_map, c->region->queue_size)};
    uint32_t rows = atomic_load(&c->region->rows_end);
    for (uint32_t row = 0; row < rows; row++) {
        out->workers += (atomic_load(&c->rows[row].word) & 255) == ST_ROW_USED;
    }
    uint32_t engines = atomic_load(&c->region->engines_end);
    for (uint32_t e = 0; e < engines; e++) {
        st_load l = st_cluster_engine_load(c, (int32_t)e);
        out->load.requests += l.requests;
        out->load.prefill_requests += l.prefill_requests;
        out->load.prefill_tokens += l.prefill_tokens;
        out->load.decode_requests += l.decode_requests;
        out->load.decode_tokens += l.decode_tokens;
    }
}
