/* KV rows in INT8: conversion of every table against the reference bit for bit, attention over such
 * rows against float64 on the same rows, and its bits under any split. */
#include "paged_attention.h"

#include <math.h>
#include <string.h>

#include "kernels/float_bits.h"
#include "kernels/kv_rows.h"

/* ---- rows ---- */

/* x: n_vectors * vector + plain floats. */
static void check_row(const float *x, st_kv_row_shape s)
{
    size_t bytes = st_kv_i8_row_bytes(s);
    kt_buf want = kt_new(bytes / 4, 4), back = kt_new((size_t)st_kv_row_elems(s), 4);
    kt_tables[0]->kv_to_i8(want.p, x, s);
    kt_tables[0]->kv_from_i8(back.p, want.p, s);
    const float *y = back.p;
    for (int v = 0; v < s.n_vectors; v++) {
        float scale;
        memcpy(&scale, (char *)want.p + st_kv_i8_scales_at(s) + (size_t)v * 4, 4);
        for (int i = v * s.vector; i < (v + 1) * s.vector; i++)
            assert_true(isnan(scale)
                            ? isnan(y[i])
                            : fabsf(y[i] - x[i]) <= scale * 0.5001f && fabsf(y[i]) <= scale * 127);
    }
    for (int i = s.n_vectors * s.vector; i < st_kv_row_elems(s); i++) {
        float h = st_bf16_to_f32(st_f32_to_bf16(x[i]));
        assert_true(kt_same_bits(&y[i], &h, 4));
    }
    for (int t = 1; t < kt_n_tables; t++) {
        kt_buf got = kt_new(bytes / 4, 4), got_back = kt_new((size_t)st_kv_row_elems(s), 4);
        memset(got.p, 0xee, bytes);
        memset(want.p, 0xee, bytes); /* padding stays as it was */
        kt_tables[0]->kv_to_i8(want.p, x, s);
        kt_tables[t]->kv_to_i8(got.p, x, s);
        kt_tables[t]->kv_from_i8(got_back.p, got.p, s);
        assert_memory_equal(got.p, want.p, bytes);
        assert_true(kt_same_bits(got_back.p, back.p, back.bytes));
        kt_free(&got);
        kt_free(&got_back);
    }
    kt_free(&want);
    kt_free(&back);
}

static void rows_of_every_table_are_the_same(void **state)
{
    (void)state;
    static const st_kv_row_shape shapes[] = {{1, 512, 64}, {1, 19, 9},  {8, 128, 0}, {2, 33, 0},
                                             {1, 1, 1},    {3, 70, 17}, {0, 0, 6}};
    static const float odd[] = {0,    -0.0f, 1e-38f, 1e-45f,   -1e-30f,  3e38f,
                                -1e4, NAN,   -NAN,   INFINITY, -INFINITY};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int round = 0; round < 40; round++) {
            kt_buf xb;
            int n = st_kv_row_elems(shapes[i]);
            float *x = kt_floats(&xb, (size_t)n);
            if (round % 4 == 1)
                x[kt_int(0, n - 1)] = odd[kt_int(0, 10)];
            else if (round % 4 == 2)
                for (int j = 0; j < n; j++)
                    x[j] *= round < 20 ? 1e-40f : 1e-33f; /* denormals; scales below the least */
            else if (round == 3)
                memset(x, 0, (size_t)n * sizeof *x);
            check_row(x, shapes[i]);
            kt_free(&xb);
        }
}

/* ---- accuracy ---- */

static const struct {
    bool mla;
    st_attn_shape shape;
} shapes[] = {
    {true, {16, 1, 576, 512, 0.042f}}, {true, {40, 1, 70, 33, 0.1f}},
    {true, {17, 1, 27, 19, 0.2f}},     {true, {8, 1, 80, 64, 0.11f}},
    {true, {20, 1, 64, 64, 0.1f}},     {false, {6, 2, 64, 64, 0.12f}},
    {false, {16, 1, 33, 33, 0.17f}},   {false, {16, 2, 48, 48, 0.14f}},
    {false, {20, 1, 80, 80, 0.11f}},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void matches_float64(void **state)
{
    (void)state;
    static const int lengths[] = {1, 3, 64, 65, 255, 256, 257, 515, 1100};
    for (int s = 0; s < N_SHAPES; s++)
        for (int l = 0; l < (int)(sizeof lengths / sizeof *lengths); l++) {
            if (s == 0 && lengths[l] > (kt_slow ? 65 : 300))
                continue; /* slow, and nothing new */
            if (kt_slow && lengths[l] > 257)
                continue;
            int n_q = kt_int(1, lengths[l] < 4 ? lengths[l] : 4);
            paged p =
                paged_random(shapes[s].mla, &shapes[s].shape, lengths[l], kt_int(1, 40), ST_I8);
            kt_buf qb;
            float *q =
                kt_floats(&qb, (size_t)n_q * (size_t)p.shape.n_heads * (size_t)p.shape.k_dim);
            paged_check(&p, q, n_q);
            kt_free(&qb);
            paged_free(&p);
        }
}

/* A sequence whose scores are set directly: by the rotated part, whose first element of q is 1. */
typedef struct scored {
    paged p;
    kt_buf qb;
    float *q;
} scored;

enum { LORA = 36, ROPE = 4, HEADS = 33 };

static scored scored_new(int len)
{
    st_attn_shape shape = {HEADS, 1, LORA + ROPE, LORA, 1.0f};
    scored s = {.p = paged_new(true, &shape, len, 16, ST_I8)};
    paged_fill(&s.p);
    for (int pos = 0; pos < len; pos++)
        memset(paged_value(&s.p, pos) + LORA, 0, ROPE * sizeof(float));
    s.q = kt_floats(&s.qb, 3 * HEADS * (LORA + ROPE));
    memset(s.q, 0, s.qb.bytes);
    for (int r = 0; r < 3 * HEADS; r++)
        s.q[r * (LORA + ROPE) + LORA] = 1;
    return s;
}

static void set_score(scored *s, int pos, float score)
{
    paged_value(&s->p, pos)[LORA] = score;
}

static void scored_check(scored *s)
{
    paged_store(&s->p);
    paged_check(&s->p, s->q, 3);
    kt_free(&s->qb);
    paged_free(&s->p);
}

static void running_maximum(void **state)
{
    (void)state;
    const int len = kt_slow ? 330 : 1100;
    for (int kind = 0; kind < 7; kind++) {
        scored s = scored_new(len);
        for (int pos = 0; pos < len; pos++)
            set_score(&s, pos,
                      kind == 0   ? (float)pos
                      : kind == 1 ? (float)(len - pos)
                      : kind == 2 ? (float)(pos / 64) * 40.0f
                      : kind == 3 ? (pos < len / 2 ? -5000.0f : 5000.0f)
                      : kind == 4 ? 1e4f + (float)(pos % 7) * 64
                      : kind == 5 ? -1e4f - (float)(pos % 7) * 64
                                  : 0);
        scored_check(&s);
    }
}

/* Many keys that each weigh little beside one: they must not vanish. */
static void a_flat_tail_survives_a_spike(void **state)
{
    (void)state;
    static const float below[] = {6.4f, 8, 10, 11, 12};
    for (int i = 0; i < 5; i++) {
        scored s = scored_new(2000);
        for (int pos = 0; pos < 2000; pos++) {
            set_score(&s, pos, pos == 700 ? 0 : -below[i]);
            for (int d = 0; d < LORA; d++) /* the tail points elsewhere than the spike */
                paged_value(&s.p, pos)[d] = d % 2 == (pos == 700) ? 1.0f + 0.1f * kt_normal() : 0;
        }
        scored_check(&s);
    }
}

/* Token scales over many powers of two, rows of zeros, and zeros that turn into values. */
static void scales_of_tokens_differ(void **state)
{
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        scored s = scored_new(600);
        for (int pos = 0; pos < 600; pos++) {
            float by = kind == 0   ? ldexpf(1, kt_int(-12, 12))
                       : kind == 1 ? (pos % 3 ? 0 : 1)
                       : kind == 2 ? (pos < 300 ? 0 : 5)
                                   : ldexpf(1, pos % 2 ? -60 : 60);
            for (int d = 0; d < LORA; d++)
                paged_value(&s.p, pos)[d] *= by;
            set_score(&s, pos, (float)(pos % 5));
        }
        scored_check(&s);
    }
}

static void all_zero_rows_give_zero(void **state)
{
    (void)state;
    st_attn_shape shape = {HEADS, 1, LORA + ROPE, LORA, 1.0f};
    paged p = paged_new(true, &shape, 300, 16, ST_I8);
    paged_store(&p);
    for (int t = 0; t < kt_n_tables; t++) {
        kt_buf qb, out = kt_new(HEADS * LORA, sizeof(float));
        float *q = kt_floats(&qb, HEADS * (LORA + ROPE));
        paged_run(kt_tables[t], &p, out.p, q, (st_attn_seq){.n_q = 1, .pos0 = 299}, 0, 1, 0, HEADS);
        for (int i = 0; i < HEADS * LORA; i++)
            assert_true(((float *)out.p)[i] == 0);
        kt_free(&qb);
        kt_free(&out);
    }
    paged_free(&p);
}

static void a_nan_stays_with_its_queries(void **state)
{
    (void)state;
    for (int bad = 0; bad < 3; bad++)
        for (int t = 0; t < kt_n_tables; t++) {
            st_attn_shape shape = {HEADS, 1, LORA + ROPE, LORA, 0.1f};
            paged p = paged_new(true, &shape, 270, 16, ST_I8);
            paged_fill(&p);
            paged_value(&p, 265)[bad == 0 ? 3 : LORA + 1] = bad == 2 ? INFINITY : NAN;
            paged_store(&p);
            kt_buf qb, out = kt_new(20 * HEADS * LORA, sizeof(float));
            float *q = kt_floats(&qb, 20 * HEADS * (LORA + ROPE));
            q[7 * HEADS * (LORA + ROPE) + 5] = NAN; /* query 7, head 0 */
            st_attn_seq seq = {.n_q = 20, .pos0 = 250};
            paged_run(kt_tables[t], &p, out.p, q, seq, 0, 20, 0, HEADS);
            for (int r = 0; r < 20 * HEADS; r++)
                for (int i = 0; i < LORA; i++) {
                    bool fine = r / HEADS < 15 && r != 7 * HEADS;
                    /* An infinite score may also leave one key alone with all the weight. */
                    if (fine || bad < 2)
                        assert_true(isfinite(((float *)out.p)[r * LORA + i]) == fine);
                }
            kt_free(&qb);
            kt_free(&out);
            paged_free(&p);
        }
}

/* In a key or value of the second KV head, at a position that queries 15 to 19 see. */
static void a_nan_stays_with_its_kv_head(void **state)
{
    (void)state;
    enum { GQA_HEADS = 6, DIM = 32, QUERIES = 20 };
    for (int value = 0; value < 2; value++)
        for (int t = 0; t < kt_n_tables; t++) {
            st_attn_shape shape = {GQA_HEADS, 2, DIM, DIM, 0.1f};
            paged p = paged_new(false, &shape, 270, 16, ST_I8);
            paged_fill(&p);
            paged_value(&p, 265)[value * 2 * DIM + DIM + 3] = NAN;
            paged_store(&p);
            kt_buf qb, out = kt_new(QUERIES * GQA_HEADS * DIM, sizeof(float));
            float *q = kt_floats(&qb, QUERIES * GQA_HEADS * DIM);
            q[7 * GQA_HEADS * DIM + 5] = NAN; /* query 7, head 0 */
            st_attn_seq seq = {.n_q = QUERIES, .pos0 = 250};
            paged_run(kt_tables[t], &p, out.p, q, seq, 0, QUERIES, 0, GQA_HEADS);
            for (int r = 0; r < QUERIES * GQA_HEADS; r++) {
                bool sees = r / GQA_HEADS >= 15 && r % GQA_HEADS >= GQA_HEADS / 2;
                for (int i = 0; i < DIM; i++)
                    assert_true(isfinite(((float *)out.p)[r * DIM + i]) ==
                                (!sees && r != 7 * GQA_HEADS));
            }
            kt_free(&qb);
            kt_free(&out);
            paged_free(&p);
        }
}

/* ---- the same bits ---- */

static void check_bits(const st_kernels *t, int shape, int len, int n_q)
{
    paged p = paged_random(shapes[shape].mla, &shapes[shape].shape, len, 16, ST_I8);
    paged_check_bits(t, &p, n_q);
    paged_free(&p);
}

static void a_query_depends_on_its_own_keys_alone(void **state)
{
    (void)state;
    for (int t = 0; t < kt_n_tables; t++)
        for (int s = t == 0 || kt_slow; s < N_SHAPES; s++) {
            check_bits(kt_tables[t], s, 70, s == 0 ? 3 : 9);
            if (t > 0 && s > 0 && (!kt_slow || s % 3 == 0))
                check_bits(kt_tables[t], s, 1029, 7);
        }
}

static void the_operator_gives_the_same_bits(void **state)
{
    (void)state;
    for (int t = 1; t < kt_n_tables; t++)
        for (int threads = kt_slow ? 3 : 1; threads <= 3; threads++) {
            int s = threads == 2 ? 5 : 1;
            paged p = paged_random(shapes[s].mla, &shapes[s].shape, 3400, 16, ST_I8);
            const st_attn_seq seqs[] = {
                {.q_row = 0, .n_q = 1, .pos0 = p.len - 1, .block_table = p.table},
                {.q_row = 1, .n_q = 7, .pos0 = 2044, .block_table = p.table}};
            paged_check_operator(kt_tables[t], &p, threads, seqs, 2, 8);
            paged_free(&p);
        }
}

int main(void)
{
    kt_start();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_of_every_table_are_the_same),
        cmocka_unit_test(matches_float64),
        cmocka_unit_test(running_maximum),
        cmocka_unit_test(a_flat_tail_survives_a_spike),
        cmocka_unit_test(scales_of_tokens_differ),
        cmocka_unit_test(all_zero_rows_give_zero),
        cmocka_unit_test(a_nan_stays_with_its_queries),
        cmocka_unit_test(a_nan_stays_with_its_kv_head),
        cmocka_unit_test(a_query_depends_on_its_own_keys_alone),
        cmocka_unit_test(the_operator_gives_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
