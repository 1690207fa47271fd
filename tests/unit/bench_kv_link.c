/* How fast a fetch between two KV links of one process is, over each transport that UCX_TLS names:
 * bench_kv_link [TOKENS [ROUNDS]]. Rows are those of a model with a latent of 576 BF16 elements and
 * 27 layers; block tables are in random order. Prints the median; asserts nothing. */
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

#include "base/clock.h"
#include "kv_link_stores.h"
#include "transfer/kv_link.h"

enum { LAYERS = 27, SIZE = 16, ROW = 576, ROUNDS_MAX = 1000 };

static atomic_int ended, failed;

static void on_over(void *user, const st_transfer_id *id, st_status status, const st_error *err)
{
    if (status != ST_OK) {
        fprintf(stderr, "%s\n", err->text);
        atomic_fetch_add(&failed, 1);
    }
    atomic_fetch_add(&ended, 1);
}

static void check(st_status st, const st_error *err)
{
    if (st == ST_OK)
        return;
    fprintf(stderr, "%s\n", err->text);
    exit(1);
}

static double one_round(st_kv_link *from, st_kv_link *to, int32_t tokens, const int32_t *table_a,
                        const int32_t *table_b)
{
    st_transfer_id id;
    st_error err = {0};
    check(st_transfer_id_random(&id), &err);
    atomic_store(&ended, 0);
    check(st_kv_offer(from, &id, tokens, on_over, NULL, &err), &err);
    st_kv_offer_rows(from, &id, 0, LAYERS, 0, tokens, table_a);
    st_kv_fetch_request r = {.host = "127.0.0.1",
                             .port = st_kv_link_port(from),
                             .id = id,
                             .n_tokens = tokens,
                             .blocks = table_b};
    uint64_t t0 = st_now_ns();
    check(st_kv_fetch(to, &r, on_over, NULL, &err), &err);
    struct timespec nap = {.tv_nsec = 5000};
    while (atomic_load(&ended) < 2)
        nanosleep(&nap, NULL);
    return (double)(st_now_ns() - t0) / 1e9;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    int32_t tokens = argc > 1 ? atoi(argv[1]) : 2048;
    int rounds = argc > 2 ? atoi(argv[2]) : 21;
    if (tokens < 1 || tokens > 1 << 20 || rounds < 1 || rounds > ROUNDS_MAX) {
        fprintf(stderr, "usage: bench_kv_link [TOKENS [ROUNDS]]\n");
        return 2;
    }
    st_kv_store *a, *b;
    st_kv_link *la, *lb;
    st_error err;
    int32_t blocks = (tokens + SIZE - 1) / SIZE;
    check(st_kv_store_new(LAYERS, blocks, SIZE, ST_BF16, (st_kv_row_shape){0, 0, ROW}, &a, &err),
          &err);
    check(st_kv_store_new(LAYERS, blocks, SIZE, ST_BF16, (st_kv_row_shape){0, 0, ROW}, &b, &err),
          &err);
    check(st_kv_link_new(&(st_kv_link_options){.store = a}, &la, &err), &err);
    check(st_kv_link_new(&(st_kv_link_options){.store = b}, &lb, &err), &err);
    int32_t *table_a = malloc((size_t)blocks * sizeof *table_a);
    int32_t *table_b = malloc((size_t)blocks * sizeof *table_b);
    uint64_t seed = 1;
    kv_test_table(a, &seed, table_a, blocks);
    kv_test_table(b, &seed, table_b, blocks);
    kv_test_fill(a, table_a, 0, tokens, 1);
    double first = one_round(la, lb, tokens, table_a, table_b), s[ROUNDS_MAX];
    for (int i = 0; i < rounds; i++)
        s[i] = one_round(la, lb, tokens, table_a, table_b);
    qsort(s, (size_t)rounds, sizeof *s, by_size);
    double gb = (double)tokens * LAYERS * (double)a->row_bytes / 1e9, median = s[rounds / 2];
    printf("%d tokens, %.3f MB: first %.3f ms; median of %d %.3f ms, %.3f GB/s; best %.3f ms; %d "
           "rows wrong\n",
           tokens, gb * 1e3, first * 1e3, rounds, median * 1e3, gb / median, s[0] * 1e3,
           kv_test_wrong(b, table_b, 0, tokens, 1));
    st_kv_link_free(lb);
    st_kv_link_free(la);
    st_kv_store_free(a);
    st_kv_store_free(b);
    free(table_a);
    free(table_b);
    return atomic_load(&failed) != 0;
}
