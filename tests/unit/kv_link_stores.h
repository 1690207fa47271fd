/* KV stores with random content and random block tables, for the tests and the bench of KV links.
 */
#ifndef ST_TESTS_KV_LINK_STORES_H
#define ST_TESTS_KV_LINK_STORES_H

#include <stdlib.h>
#include <string.h>

#include "starling/kv_cache.h"

/* xorshift64: the same numbers everywhere. */
static inline uint64_t kv_test_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static inline int32_t kv_test_below(uint64_t *state, int32_t n)
{
    return (int32_t)(kv_test_random(state) % (uint64_t)n);
}

/* The first n of a random order of the store's blocks. */
static inline void kv_test_table(const st_kv_store *s, uint64_t *state, int32_t *table, int32_t n)
{
    int32_t *all = malloc((size_t)s->n_blocks * sizeof *all);
    for (int32_t i = 0; i < s->n_blocks; i++)
        all[i] = i;
    for (int32_t i = 0; i < n; i++) {
        int32_t j = i + kv_test_below(state, s->n_blocks - i);
        int32_t t = all[i];
        all[i] = all[j];
        all[j] = t;
        table[i] = all[i];
    }
    free(all);
}

static inline unsigned char *kv_test_row(const st_kv_store *s, int32_t layer, const int32_t *table,
                                         int32_t token)
{
    return s->layers[layer] + (size_t)table[token / s->block_size] * s->block_bytes +
           (size_t)(token % s->block_size) * s->row_bytes;
}

/* Each row's content says what it is: a stream of bytes from seed, layer and token. */
static inline void kv_test_fill_row(unsigned char *row, size_t bytes, uint64_t seed, int32_t layer,
                                    int32_t token)
{
    uint64_t x = seed * 0x9E3779B97F4A7C15u + (uint64_t)layer * 1000003u + (uint64_t)token + 1;
    (void)kv_test_random(&x);
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t v = kv_test_random(&x);
        memcpy(row + i, &v, bytes - i < 8 ? bytes - i : 8);
    }
}

static inline void kv_test_fill(const st_kv_store *s, const int32_t *table, int32_t from,
                                int32_t to, uint64_t seed)
{
    for (int32_t l = 0; l < s->n_layers; l++)
        for (int32_t t = from; t < to; t++)
            kv_test_fill_row(kv_test_row(s, l, table, t), s->row_bytes, seed, l, t);
}

/* The number of rows that differ. */
static inline int kv_test_wrong(const st_kv_store *s, const int32_t *table, int32_t from,
                                int32_t to, uint64_t seed)
{
    unsigned char *want = malloc(s->row_bytes);
    int wrong = 0;
    for (int32_t l = 0; l < s->n_layers; l++)
        for (int32_t t = from; t < to; t++) {
            kv_test_fill_row(want, s->row_bytes, seed, l, t);
            wrong += memcmp(want, kv_test_row(s, l, table, t), s->row_bytes) != 0;
        }
    free(want);
    return wrong;
}

#endif
