/* Attention of every table: against a two-pass softmax in float64 on the same (rounded) inputs,
 * the hazards of a running maximum, and the promise that a query's bits depend on its own keys
 * alone. */
#include "paged_attention.h"

#include <math.h>

static const struct {
    bool mla;
    st_attn_shape shape;
} shapes[] = {
    {true, {8, 1, 80, 64, 0.144f}},   {true, {5, 1, 27, 19, 0.2f}},
    {true, {16, 1, 576, 512, 0.07f}}, {true, {40, 1, 70, 33, 0.1f}},
    {false, {6, 2, 64, 64, 0.125f}},  {false, {4, 4, 33, 33, 0.2f}},
    {false, {16, 1, 128, 128, 0.1f}}, {false, {35, 1, 16, 16, 0.3f}},
    {false, {16, 2, 33, 33, 0.2f}},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };
static const int lengths[] = {1, 2, 63, 64, 65, 130, 511, 513, 1023, 1025, 2300};

static void matches_float64(void **state)
{
    for (int s = 0; s < N_SHAPES; s++)
        for (int l = 0; l < (int)(sizeof lengths / sizeof *lengths); l++) {
            if (lengths[l] > (kt_slow ? 65 : 600) && s == 2)
                continue; /* slow, and nothing new */
            if (lengths[l] > 600 && kt_slow)
                continue;
            int n_q = kt_int(1, lengths[l] < 5 ? lengths[l] : 5);
            paged p = paged_random(shapes[s].mla, &shapes[s].shape, lengths[l], kt_int(1, 40),
                                   kt_int(0, 1) ? ST_BF16 : ST_F32);
            kt_buf qb;
            float *q =
                kt_floats(&qb, (size_t)n_q * (size_t)p.shape.n_heads * (size_t)p.shape.k_dim);
            paged_check(&p, q, n_q);
            kt_free(&qb);
            paged_free(&p);
        }
}

/* ---- hazards of the running maximum: q is all ones, so a key's score is set directly ---- */

static void score_key(paged *p, int pos, float score)
{
    for (int i = 0; i < p->shape.k_dim; i++)
        paged_value(p, pos)[i] = i == 0 ? score : 0;
}

typedef float score_fn(int pos, int len);
static float rising(int pos, int len)
{
    return (float)pos;
}
static float falling(int pos, int len)
{
    return (float)(len - pos);
}
static float steep(int pos, int len)
{
    return (float)(pos / 64) * 40.0f; /* beyond 2^-30 at every tile */
}
static float cliff(int pos, int len)
{
    return pos < len / 2 ? -5000.0f : 5000.0f; /* beyond 2^-126: earlier keys vanish */
}
static float huge_scores(int pos, int len)
{
    return 1e4f + (float)(pos % 7);
}
static float very_negative(int pos, int len)
{
    return -1e4f - (float)(pos % 7);
}
static float equal(int pos, int len)
{
    return 0;
}

static void hazards_of_the_running_maximum(void **state)
{
    static score_fn *const fns[] = {rising,      falling,       steep, cliff,
                                    huge_scores, very_negative, equal};
    for (size_t f = 0; f < sizeof fns / sizeof *fns; f++)
        for (int len = 100; len < (kt_slow ? 1400 : 3000); len += 1250) {
            /* Many heads that share keys have kernels of their own, and so have eight. */
            static const int counts[] = {4, 8, 17};
            int heads = counts[((size_t)len + f) % 3];
            st_attn_shape shape = {heads, 1, 24, 24, 1.0f};
            paged p = paged_new(false, &shape, len, 16, ST_F32);
            paged_fill(&p);
            for (int pos = 0; pos < len; pos++)
                score_key(&p, pos, fns[f](pos, len));
            paged_store(&p);
            kt_buf qb;
            float *q = kt_floats(&qb, 3 * (size_t)heads * 24);
            for (int i = 0; i < 3 * heads * 24; i++)
                q[i] = 1;
            paged_check(&p, q, 3);
            kt_free(&qb);
            paged_free(&p);
        }
}

/* V columns of exact zeros that turn non-zero after a rise of the maximum, denormals, -0. */
static void zero_and_denormal_values(void **state)
{
    static const int counts[] = {4, 8, 20, 36};
    for (int c = 0; c < 4; c++) {
        int heads = counts[c];
        st_attn_shape shape = {heads, 1, 24, 24, 1.0f};
        paged p = paged_new(false, &shape, 400, 16, ST_F32);
        paged_fill(&p);
        for (int pos = 0; pos < 400; pos++) {
            score_key(&p, pos, (float)(pos / 64) * 9);
            for (int i = 0; i < 12; i++)
                paged_value(&p, pos)[24 + i] = pos < 200 ? (i % 2 ? -0.0f : 0.0f) : (float)i;
            for (int i = 12; i < 24; i++)
                paged_value(&p, pos)[24 + i] = 1e-41f * (float)(i - 18);
        }
        paged_store(&p);
        kt_buf qb;
        float *q = kt_floats(&qb, (size_t)heads * 24);
        for (int i = 0; i < heads * 24; i++)
            q[i] = 1;
        paged_check(&p, q, 1);
        kt_free(&qb);
        paged_free(&p);
    }
}

static void a_nan_stays_with_its_queries(void **state)
{
    static const int chosen[] = {0, 3, 4, 6};
    for (int t = 0; t < kt_n_tables; t++)
        for (int c = 0; c < 4; c++) {
            int s = chosen[c];
            st_attn_shape shape = shapes[s].shape;
            paged p = paged_new(shapes[s].mla, &shape, 200, 16, ST_F32);
            paged_fill(&p);
            paged_value(&p, 195)[3] = NAN; /* a key that only queries 195..199 see */
            paged_store(&p);
            size_t row = (size_t)shape.n_heads * (size_t)shape.v_dim;
            kt_buf qb, out = kt_new(10 * row, sizeof(float));
            float *q = kt_floats(&qb, 10 * (size_t)shape.n_heads * (size_t)shape.k_dim);
            st_attn_seq seq = {.n_q = 10, .pos0 = 190};
            paged_run(kt_tables[t], &p, out.p, q, seq, 0, 10, 0, shape.n_heads);
            for (int i = 0; i < 10; i++) /* head 0 reads element 3 as K in both layouts */
                assert_true(isfinite(((float *)out.p)[(size_t)i * row]) == (190 + i < 195));
            kt_free(&qb);
            kt_free(&out);
            paged_free(&p);
        }
}

/* ---- the same bits ---- */

static void check_invariance(const st_kernels *t, int s, int len, int n_q, st_dtype dtype)
{
    paged p = paged_random(shapes[s].mla, &shapes[s].shape, len, 16, dtype);
    paged_check_bits(t, &p, n_q);
    paged_free(&p);
}

static void a_query_depends_on_its_own_keys_alone(void **state)
{
    for (int t = 0; t < kt_n_tables; t++)
        for (int s = 0; s < N_SHAPES; s++) {
            if (s == 2 && (t == 0 || kt_slow))
                continue;
            st_dtype dtype = kt_int(0, 1) ? ST_BF16 : ST_F32;
            check_invariance(kt_tables[t], s, 70, 13, dtype);
            if (t > 0 && s != 2 && (!kt_slow || s % 4 == 0))
                check_invariance(kt_tables[t], s, 1029, 7, dtype);
        }
}

/* The operator: several sequences, any thread count, split over segments or not. */
static void check_operator(const st_kernels *t, int s, int threads, bool long_context)
{
    paged p = paged_random(shapes[s].mla, &shapes[s].shape, long_context ? 3400 : 150, 16, ST_BF16);
    const st_attn_seq seqs[] = {
        {.q_row = 0, .n_q = 1, .pos0 = p.len - 1, .block_table = p.table},
        {.q_row = 1, .n_q = 0, .pos0 = 5, .block_table = p.table},
        {.q_row = 1, .n_q = 7, .pos0 = 20, .block_table = p.table},
        {.q_row = 8, .n_q = 3, .pos0 = p.len * 3 / 5 + 6, .block_table = p.table}, /* about 2048 */
    };
    paged_check_operator(t, &p, threads, seqs, 4, 11);
    paged_free(&p);
}

static void the_operator_gives_the_same_bits(void **state)
{
    for (int t = 0; t < kt_n_tables; t++)
        for (int s = 0; s < N_SHAPES; s += s == 4 ? 1 : 2)
            for (int threads = 1; threads <= 7; threads += threads == 2 ? 5 : 1)
                if (!kt_slow || (t > 0 && s != 2 && threads == 2))
                    check_operator(kt_tables[t], s, threads, t > 0 && s != 2);
}

int main(void)
{
    kt_start();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_float64),
        cmocka_unit_test(hazards_of_the_running_maximum),
        cmocka_unit_test(zero_and_denormal_values),
        cmocka_unit_test(a_nan_stays_with_its_queries),
        cmocka_unit_test(a_query_depends_on_its_own_keys_alone),
        cmocka_unit_test(the_operator_gives_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
