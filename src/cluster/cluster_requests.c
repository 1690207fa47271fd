/* The slots of requests in flight: taken by compare-and-swap of the owner's row, found through a
 * map of bits that are only hints, so that no crash between two stores loses a slot. */
#include "cluster/cluster_impl.h"

const char *const st_phase_names[ST_PHASES] = {
    "received",        "tokenized",      "matched",          "prefill_waiting", "prefill_scheduled",
    "prefill_running", "decode_waiting", "decode_scheduled", "decode_running",  "done"};

static void reset_slot(st_request_slot *r, uint64_t id, uint32_t model, uint64_t now_ns)
{
    for (int p = 0; p < ST_PHASES; p++) {
        atomic_store_explicit(&r->at_ns[p], 0, memory_order_relaxed);
    }
    atomic_store_explicit(&r->id, id, memory_order_relaxed);
    atomic_store_explicit(&r->model, model, memory_order_relaxed);
    atomic_store_explicit(&r->prefill, -1, memory_order_relaxed);
    atomic_store_explicit(&r->decode, -1, memory_order_relaxed);
    atomic_store_explicit(&r->prompt_tokens, 0, memory_order_relaxed);
    atomic_store_explicit(&r->matched_tokens, 0, memory_order_relaxed);
    atomic_store_explicit(&r->generated_tokens, 0, memory_order_relaxed);
    atomic_store_explicit(&r->stream, false, memory_order_relaxed);
    st_request_phase(r, ST_PHASE_RECEIVED, now_ns);
}

/* The first slot from `from` on whose bit is not set; n_requests: none up to the end. */
static uint32_t next_free(const st_cluster *c, uint32_t from)
{
    uint32_t n = c->region->n_requests;
    while (from < n) {
        uint64_t taken = atomic_load_explicit(&c->request_map[from / 64], memory_order_relaxed);
        uint64_t spare = ~taken & (UINT64_MAX << from % 64);
        if (spare) {
            uint32_t i = from / 64 * 64 + (uint32_t)__builtin_ctzll(spare);
            return i < n ? i : n;
        }
        from = from / 64 * 64 + 64;
    }
    return n;
}

st_request_slot *st_cluster_request_new(st_cluster *c, int row, uint64_t id, uint32_t model,
                                        uint64_t now_ns)
{
    uint32_t n = c->region->n_requests, start = c->next_request[row];
    for (int lap = 0; lap < 2; lap++) {
        uint32_t end = lap == 0 ? n : start;
        for (uint32_t i = next_free(c, lap == 0 ? start : 0); i < end; i = next_free(c, i + 1)) {
            st_request_slot *r = &c->requests[i];
            uint32_t is_free = 0;
            if (!atomic_compare_exchange_strong(&r->row_and_state, &is_free, (uint32_t)row + 1)) {
                continue;
            }
            atomic_fetch_or(&c->request_map[i / 64], UINT64_C(1) << i % 64);
            reset_slot(r, id, model, now_ns);
            c->next_request[row] = i + 1 < n ? i + 1 : 0;
            return r;
        }
    }
    return NULL;
}

void st_request_phase(st_request_slot *r, st_phase p, uint64_t now_ns)
{
    atomic_store_explicit(&r->at_ns[p], now_ns, memory_order_relaxed);
    atomic_store_explicit(&r->phase, p, memory_order_relaxed);
}

uint64_t st_request_phase_ns(const st_request_slot *r, st_phase p)
{
    uint64_t at = atomic_load_explicit(&r->at_ns[p], memory_order_relaxed), before = 0;
    for (int q = 0; q < (int)p; q++) {
        /* In parallel mode decode may be ahead of prefill: the latest that is not after us. */
        uint64_t t = atomic_load_explicit(&r->at_ns[q], memory_order_relaxed);
        before = t > before && t <= at ? t : before;
    }
    return at && before ? at - before : 0;
}

static void free_slot(st_cluster *c, st_request_slot *r)
{
    size_t i = (size_t)(r - c->requests);
    atomic_fetch_and(&c->request_map[i / 64], ~(UINT64_C(1) << i % 64));
    atomic_store(&r->row_and_state, 0);
}

void st_cluster_request_free(st_cluster *c, st_request_slot *r)
{
    st_cluster_metrics *m = &c->region->metrics;
    for (int p = 1; p < ST_PHASES; p++) {
        if (atomic_load_explicit(&r->at_ns[p], memory_order_relaxed)) {
            st_histogram_add(&m->phase[p], st_request_phase_ns(r, (st_phase)p));
        }
    }
    uint64_t done = atomic_load_explicit(&r->at_ns[ST_PHASE_DONE], memory_order_relaxed);
    uint64_t received = atomic_load_explicit(&r->at_ns[ST_PHASE_RECEIVED], memory_order_relaxed);
    if (done >= received && done) {
        st_histogram_add(&m->total, done - received);
    }
    free_slot(c, r);
}

void st_requests_free_row(st_cluster *c, int row)
{
    for (uint32_t i = 0; i < c->region->n_requests; i++) {
        if (atomic_load(&c->requests[i].row_and_state) == (uint32_t)row + 1) {
            free_slot(c, &c->requests[i]);
        }
    }
}

const st_request_slot *st_cluster_request_at(const st_cluster *c, size_t i)
{
    return i < c->region->n_requests ? &c->requests[i] : NULL;
}
