/* KV rows in INT8: conversion of every table against the reference bit for bit, attention over such
 * rows against float64 on the same rows, and its bits under any split. */
#include "kernel_test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/float_bits.h"
#include "kernels/kv_rows.h"
#include "kernels/ops.h"

/* Integer products round q to 8 bits: their scores are off by 0.8% of their spread at most. */
#define LIMIT_WIDENED 1e-5
#define LIMIT_INTEGER 1e-2

/* One sequence in paged memory; values: the rows as float. */
typedef struct paged {
    st_attn_shape shape;
    bool mla;
    int len, elems;
    st_kv_row_shape row;
    st_kv_layer kv;
    kt_buf memory;
    int32_t *table;
    float *values;
} paged;

/* Blocks in reverse; what nobody wrote is NaN. */
static paged paged_new(bool mla, const st_attn_shape *shape, int len, int block_size)
{
    paged p = {.shape = *shape, .mla = mla, .len = len, .row = st_kv_attn_row(mla, shape)};
    int blocks = (len + block_size - 1) / block_size;
    p.elems = st_kv_row_elems(p.row);
    p.kv = (st_kv_layer){
        .block_size = block_size, .row_stride = st_kv_i8_row_bytes(p.row), .dtype = ST_I8};
    p.kv.block_stride = (size_t)block_size * p.kv.row_stride + 4;
    p.memory = kt_new((size_t)blocks * p.kv.block_stride / 4, 4);
    memset(p.memory.p, 0xff, p.memory.bytes);
    p.kv.base = p.memory.p;
    p.table = malloc((size_t)blocks * sizeof *p.table);
    p.values = calloc((size_t)len * (size_t)p.elems, sizeof *p.values);
    assert_true(p.table && p.values);
    for (int i = 0; i < blocks; i++)
        p.table[i] = blocks - 1 - i;
    return p;
}

static void paged_free(paged *p)
{
    kt_free(&p->memory);
    free(p->table);
    free(p->values);
}

static float *value(const paged *p, int pos)
{
    return p->values + (size_t)pos * (size_t)p->elems;
}

/* Stores the values, and keeps what the rows then say. */
static void store(paged *p)
{
    for (int pos = 0; pos < p->len; pos++) {
        unsigned char *row = (unsigned char *)st_kv_row(&p->kv, p->table, pos);
        kt_tables[0]->kv_to_i8(row, value(p, pos), p->row);
        kt_tables[0]->kv_from_i8(value(p, pos), row, p->row);
    }
}

static void fill_random(paged *p)
{
    for (int i = 0; i < p->len * p->elems; i++)
        p->values[i] = kt_normal();
}

static paged repaged(const paged *p, int block_size)
{
    paged r = paged_new(p->mla, &p->shape, p->len, block_size);
    memcpy(r.values, p->values, (size_t)p->len * (size_t)p->elems * sizeof *p->values);
    for (int pos = 0; pos < p->len; pos++)
        memcpy((unsigned char *)st_kv_row(&r.kv, r.table, pos), st_kv_row(&p->kv, p->table, pos),
               p->kv.row_stride);
    return r;
}

static void *new_scratch(const st_kernels *t, const st_attn_shape *shape)
{
    void *scratch = aligned_alloc(64, (t->attn_scratch(shape) + 63) & ~(size_t)63);
    assert_non_null(scratch);
    return scratch;
}

static void run(const st_kernels *t, const paged *p, float *out, const float *q, st_attn_seq seq,
                int q0, int q1, int h0, int h1)
{
    void *scratch = new_scratch(t, &p->shape);
    seq.block_table = p->table;
    (p->mla ? t->attention_mla : t->attention_gqa)(out, q, &p->shape, &p->kv, &seq, q0, q1, h0, h1,
                                                   scratch);
    free(scratch);
}

/* Float64, two passes. */
static void oracle(const paged *p, const float *q, int pos, int head, double *out)
{
    const st_attn_shape *s = &p->shape;
    int kv_head = p->mla ? 0 : head / (s->n_heads / s->n_kv_heads);
    int k0 = kv_head * s->k_dim;
    int v0 = p->mla ? 0 : s->n_kv_heads * s->k_dim + kv_head * s->v_dim;
    double *e = calloc((size_t)pos + 1, sizeof *e), max = -INFINITY, sum = 0;
    assert_non_null(e);
    for (int j = 0; j <= pos; j++) {
        for (int i = 0; i < s->k_dim; i++)
            e[j] += (double)q[i] * value(p, j)[k0 + i];
        e[j] *= s->scale;
        max = e[j] > max ? e[j] : max;
    }
    memset(out, 0, (size_t)s->v_dim * sizeof *out);
    for (int j = 0; j <= pos; j++) {
        double w = exp(e[j] - max);
        sum += w;
        for (int i = 0; i < s->v_dim; i++)
            out[i] += w * value(p, j)[v0 + i];
    }
    for (int i = 0; i < s->v_dim; i++)
        out[i] /= sum;
    free(e);
}

static bool by_integers(const st_kernels *t, const paged *p)
{
    return strcmp(t->name, "avx512vnni") == 0 && p->mla && p->shape.n_heads >= 16;
}

/* The last n_q queries, all heads, of every table. */
static void check_against_oracle(const paged *p, const float *q, int n_q)
{
    const st_attn_shape *s = &p->shape;
    size_t n = (size_t)n_q * (size_t)s->n_heads * (size_t)s->v_dim;
    double *want = malloc(n * sizeof *want);
    assert_non_null(want);
    st_attn_seq seq = {.n_q = n_q, .pos0 = p->len - n_q};
    for (int i = 0; i < n_q; i++)
        for (int h = 0; h < s->n_heads; h++) {
            size_t r = (size_t)i * (size_t)s->n_heads + (size_t)h;
            oracle(p, q + r * (size_t)s->k_dim, seq.pos0 + i, h, want + r * (size_t)s->v_dim);
        }
    for (int t = 0; t < kt_n_tables; t++) {
        double limit = by_integers(kt_tables[t], p) ? LIMIT_INTEGER : LIMIT_WIDENED;
        kt_buf out = kt_new(n, sizeof(float));
        run(kt_tables[t], p, out.p, q, seq, 0, n_q, 0, s->n_heads);
        double e = kt_rel_error(out.p, want, n);
        if (!(e <= limit))
            fail_msg("%s %s: %d heads, k %d v %d, %d keys, %d queries: relative error %g > %g",
                     kt_tables[t]->name, p->mla ? "mla" : "gqa", s->n_heads, s->k_dim, s->v_dim,
                     p->len, n_q, e, limit);
        kt_free(&out);
    }
    free(want);
}

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
    {false, {16, 1, 33, 33, 0.17f}},
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
            paged p = paged_new(shapes[s].mla, &shapes[s].shape, lengths[l], kt_int(1, 40));
            fill_random(&p);
            store(&p);
            kt_buf qb;
            float *q =
                kt_floats(&qb, (size_t)n_q * (size_t)p.shape.n_heads * (size_t)p.shape.k_dim);
            check_against_oracle(&p, q, n_q);
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
    scored s = {.p = paged_new(true, &shape, len, 16)};
    fill_random(&s.p);
    for (int pos = 0; pos < len; pos++)
        memset(value(&s.p, pos) + LORA, 0, ROPE * sizeof(float));
    s.q = kt_floats(&s.qb, 3 * HEADS * (LORA + ROPE));
    memset(s.q, 0, s.qb.bytes);
    for (int r = 0; r < 3 * HEADS; r++)
        s.q[r * (LORA + ROPE) + LORA] = 1;
    return s;
}

static void set_score(scored *s, int pos, float score)
{
    value(&s->p, pos)[LORA] = score;
}

static void scored_check(scored *s)
{
    store(&s->p);
    check_against_oracle(&s->p, s->q, 3);
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
                value(&s.p, pos)[d] = d % 2 == (pos == 700) ? 1.0f + 0.1f * kt_normal() : 0;
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
                value(&s.p, pos)[d] *= by;
            set_score(&s, pos, (float)(pos % 5));
        }
        scored_check(&s);
    }
}

static void all_zero_rows_give_zero(void **state)
{
    (void)state;
    st_attn_shape shape = {HEADS, 1, LORA + ROPE, LORA, 1.0f};
    paged p = paged_new(true, &shape, 300, 16);
    store(&p);
    for (int t = 0; t < kt_n_tables; t++) {
        kt_buf qb, out = kt_new(HEADS * LORA, sizeof(float));
        float *q = kt_floats(&qb, HEADS * (LORA + ROPE));
        run(kt_tables[t], &p, out.p, q, (st_attn_seq){.n_q = 1, .pos0 = 299}, 0, 1, 0, HEADS);
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
            paged p = paged_new(true, &shape, 270, 16);
            fill_random(&p);
            value(&p, 265)[bad == 0 ? 3 : LORA + 1] = bad == 2 ? INFINITY : NAN;
            store(&p);
            kt_buf qb, out = kt_new(20 * HEADS * LORA, sizeof(float));
            float *q = kt_floats(&qb, 20 * HEADS * (LORA + ROPE));
            q[7 * HEADS * (LORA + ROPE) + 5] = NAN; /* query 7, head 0 */
            st_attn_seq seq = {.n_q = 20, .pos0 = 250};
            run(kt_tables[t], &p, out.p, q, seq, 0, 20, 0, HEADS);
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

/* ---- the same bits ---- */

/* Parts and their merge, one query at a time. */
static void run_parts(const st_kernels *t, const paged *p, float *out, const float *q, int n_q)
{
    const st_attn_shape *s = &p->shape;
    size_t part = (size_t)s->v_dim + ST_ATTN_PART_EXTRA;
    int group = p->mla ? s->n_heads : s->n_heads / s->n_kv_heads;
    float *parts = malloc(16 * (size_t)group * part * sizeof *parts);
    void *scratch = new_scratch(t, s);
    assert_non_null(parts);
    for (int i = 0; i < n_q; i++)
        for (int h = 0; h < s->n_heads; h += group) {
            st_attn_seq seq = {
                .q_row = i, .n_q = 1, .pos0 = p->len - n_q + i, .block_table = p->table};
            int segments = seq.pos0 / ST_ATTN_SEGMENT + 1, n = 0;
            int whole = kt_int(0, (segments + ST_ATTN_STRETCH - 1) / ST_ATTN_STRETCH);
            size_t stride = (size_t)group * part;
            for (int g = 0; g < segments; n++) {
                int left = segments - g, most = n < whole ? ST_ATTN_STRETCH : 1;
                t->attention_part(parts + (size_t)n * stride, p->mla, q, s, &p->kv, &seq, 0, 1, h,
                                  h + group, g, left < most ? left : most, scratch);
                g += most;
            }
            for (int r = 0; r < group; r++)
                t->attention_merge(out + ((size_t)(i * s->n_heads + h + r)) * (size_t)s->v_dim,
                                   parts + (size_t)r * part, stride, whole, n, s->v_dim);
        }
    free(scratch);
    free(parts);
}

static void check_bits(const st_kernels *t, int shape, int len, int n_q)
{
    paged p = paged_new(shapes[shape].mla, &shapes[shape].shape, len, 16);
    fill_random(&p);
    store(&p);
    paged other = repaged(&p, 7);
    int heads = p.shape.n_heads;
    size_t n = (size_t)n_q * (size_t)heads * (size_t)p.shape.v_dim;
    kt_buf qb, a = kt_new(n, 4), b = kt_new(n, 4);
    float *q = kt_floats(&qb, (size_t)n_q * (size_t)heads * (size_t)p.shape.k_dim);
    run(t, &p, a.p, q, (st_attn_seq){.n_q = n_q, .pos0 = len - n_q}, 0, n_q, 0, heads);
    for (int i = 0; i < n_q; i++)
        for (int h = 0; h < heads; h++)
            run(t, &other, b.p, q, (st_attn_seq){.q_row = i, .n_q = 1, .pos0 = len - n_q + i}, 0, 1,
                h, h + 1);
    assert_memory_equal(a.p, b.p, a.bytes);
    memset(b.p, 0, b.bytes);
    for (int i = 0; i < n_q;) {
        int c = kt_int(1, n_q - i);
        run(t, &other, b.p, q, (st_attn_seq){.q_row = i, .n_q = c, .pos0 = len - n_q + i}, 0, c, 0,
            heads);
        i += c;
    }
    assert_memory_equal(a.p, b.p, a.bytes);
    if (t->attention_part) {
        memset(b.p, 0, b.bytes);
        run_parts(t, &other, b.p, q, n_q);
        assert_memory_equal(a.p, b.p, a.bytes);
    }
    kt_free(&a);
    kt_free(&b);
    kt_free(&qb);
    paged_free(&other);
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
            paged p = paged_new(true, &shapes[1].shape, 3400, 16);
            const st_attn_shape *shape = &p.shape;
            fill_random(&p);
            store(&p);
            const st_attn_seq seqs[] = {
                {.q_row = 0, .n_q = 1, .pos0 = p.len - 1, .block_table = p.table},
                {.q_row = 1, .n_q = 7, .pos0 = 2044, .block_table = p.table}};
            size_t row = (size_t)shape->n_heads * (size_t)shape->v_dim;
            kt_buf qb, want = kt_new(8 * row, 4), got = kt_new(8 * row, 4);
            float *q = kt_floats(&qb, 8 * (size_t)shape->n_heads * (size_t)shape->k_dim);
            for (int i = 0; i < 2; i++)
                run(kt_tables[t], &p, want.p, q, seqs[i], 0, seqs[i].n_q, 0, shape->n_heads);
            st_pool *pool;
            st_ops *ops;
            assert_int_equal(st_pool_new(threads, false, &pool, NULL), ST_OK);
            assert_int_equal(st_ops_new(kt_tables[t], pool, shape, &ops, NULL), ST_OK);
            st_op_attention(ops, true, got.p, q, shape, &p.kv, seqs, 2);
            assert_memory_equal(got.p, want.p, got.bytes);
            st_ops_free(ops);
            st_pool_free(pool);
            kt_free(&want);
            kt_free(&got);
            kt_free(&qb);
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
        cmocka_unit_test(a_query_depends_on_its_own_keys_alone),
        cmocka_unit_test(the_operator_gives_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
