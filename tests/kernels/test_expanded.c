/* Expanded MLA of every table: against a two-pass softmax in float64 over the same latent rows
 * (rounded to 8 bits where weights are integers), against the absorbed form, and the promise that a
 * query's bits depend on its own keys alone. */
#include "kernel_test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/float_bits.h"
#include "kernels/kv_rows.h"
#include "kernels/ops.h"

enum { MAX_HEADS = 4 };

/* A layer's weights and one sequence in shuffled paged memory. */
typedef struct layer {
    st_expand_shape s;
    int len;
    kt_weights wk[MAX_HEADS], wv[MAX_HEADS];
    st_kv_layer kv;
    kt_buf memory;
    int32_t table[512];
    float *rows;     /* [len][kv_lora + rope], as stored */
    float *expanded; /* the same as products with wk and wv take them */
} layer;

static int row_elems(const layer *l)
{
    return l->s.kv_lora + l->s.rope;
}

/* Quantized per token, by kernels.h's words. */
static void round_latent(float *x, int n)
{
    float most = 0;
    for (int i = 0; i < n; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    float scale = most > 0 ? most / 127 : 1;
    for (int i = 0; i < n; i++)
        x[i] = nearbyintf(x[i] / scale) * scale;
}

static void find_expanded(layer *l)
{
    int n = row_elems(l);
    memcpy(l->expanded, l->rows, (size_t)l->len * (size_t)n * sizeof *l->rows);
    if (st_weight_takes_int8(l->wk[0].rows.type) && l->kv.dtype != ST_I8)
        for (int pos = 0; pos < l->len; pos++)
            round_latent(l->expanded + (size_t)pos * (size_t)n, l->s.kv_lora);
}

static void store_rows(layer *l, float (*value)(int pos, int i))
{
    const st_kv_row_shape shape = {1, l->s.kv_lora, l->s.rope};
    int n = row_elems(l);
    for (int pos = 0; pos < l->len; pos++) {
        float *x = l->rows + (size_t)pos * (size_t)n;
        unsigned char *row = (unsigned char *)st_kv_row(&l->kv, l->table, pos);
        for (int i = 0; i < n; i++)
            x[i] = value ? value(pos, i) : kt_normal();
        if (l->kv.dtype == ST_I8) {
            kt_tables[0]->kv_to_i8(row, x, shape);
            kt_tables[0]->kv_from_i8(x, row, shape);
            continue;
        }
        for (int i = 0; i < n; i++) {
            uint16_t h = st_f32_to_bf16(x[i]);
            if (l->kv.dtype == ST_BF16) {
                memcpy(row + (size_t)i * 2, &h, 2);
                x[i] = st_bf16_to_f32(h);
            } else {
                memcpy(row + (size_t)i * 4, &x[i], 4);
            }
        }
    }
    find_expanded(l);
}

/* Shuffled blocks for rows of this type; what is not a row is NaN. */
static void new_memory(layer *l, int block_size, st_dtype dtype)
{
    const st_kv_row_shape shape = {1, l->s.kv_lora, l->s.rope};
    int blocks = (l->len + block_size - 1) / block_size;
    size_t bytes =
        dtype == ST_I8 ? st_kv_i8_row_bytes(shape) : (size_t)row_elems(l) * st_dtype_size(dtype);
    l->kv = (st_kv_layer){.block_size = block_size,
                          .dtype = dtype,
                          .row_stride = bytes,
                          .block_stride = (size_t)block_size * bytes};
    l->memory = kt_new(((size_t)blocks * l->kv.block_stride + 3) / 4, 4);
    memset(l->memory.p, 0xff, l->memory.bytes);
    l->kv.base = l->memory.p;
    assert_true(blocks <= 512);
    for (int i = 0; i < blocks; i++)
        l->table[i] = i;
    for (int i = blocks - 1; i > 0; i--) {
        int j = kt_int(0, i), t = l->table[i];
        l->table[i] = l->table[j];
        l->table[j] = t;
    }
}

static layer layer_new(const st_expand_shape *s, int len, int block_size, st_dtype dtype,
                       st_weight_type weights)
{
    layer l = {.s = *s, .len = len};
    new_memory(&l, block_size, dtype);
    size_t n = (size_t)len * (size_t)row_elems(&l);
    l.rows = malloc(n * sizeof *l.rows);
    l.expanded = malloc(n * sizeof *l.rows);
    assert_true(l.rows && l.expanded);
    int group = weights != ST_WEIGHT_I4 ? 0 : s->kv_lora % 32 ? s->kv_lora : 32 * kt_int(1, 2);
    for (int h = 0; h < s->n_heads; h++) {
        kt_weights_new(&l.wk[h], weights, s->nope, s->kv_lora, group, len % 2);
        kt_weights_new(&l.wv[h], weights, s->v, s->kv_lora, group, len % 2);
    }
    store_rows(&l, NULL);
    return l;
}

static void layer_free(layer *l)
{
    for (int h = 0; h < l->s.n_heads; h++) {
        kt_weights_free(&l->wk[h]);
        kt_weights_free(&l->wv[h]);
    }
    kt_free(&l->memory);
    free(l->rows);
    free(l->expanded);
}

/* Runs the sequences with one table, on so many threads, with room for so many queries and shared
 * latents; out as st_expand_job's. */
static void run_with(const st_kernels *t, const layer *l, const float *q, const st_attn_seq *seqs,
                     int n_seqs, int threads, int max_queries, int shared, float *out)
{
    kt_pack k[MAX_HEADS], v[MAX_HEADS];
    st_packed wk[MAX_HEADS], wv[MAX_HEADS];
    for (int h = 0; h < l->s.n_heads; h++) {
        kt_pack_new(&k[h], t, &l->wk[h]);
        kt_pack_new(&v[h], t, &l->wv[h]);
        wk[h] = k[h].w;
        wv[h] = v[h].w;
    }
    st_pool *pool;
    st_ops *ops;
    assert_int_equal(st_pool_new(threads, false, &pool, NULL), ST_OK);
    assert_int_equal(st_ops_new(t, pool, NULL, &ops, NULL), ST_OK);
    assert_int_equal(st_ops_use_expanded(ops, &l->s, max_queries, shared, NULL), ST_OK);
    st_expand_job job = {.shape = l->s,
                         .wk = wk,
                         .wv = wv,
                         .q = q,
                         .out = out,
                         .kv = &l->kv,
                         .seqs = seqs,
                         .n_seqs = n_seqs};
    st_op_attention_expanded(ops, &job);
    st_ops_free(ops);
    st_pool_free(pool);
    for (int h = 0; h < l->s.n_heads; h++) {
        kt_pack_free(&k[h]);
        kt_pack_free(&v[h]);
    }
}

static void run(const st_kernels *t, const layer *l, const float *q, const st_attn_seq *seqs,
                int n_seqs, int threads, int max_queries, float *out)
{
    run_with(t, l, q, seqs, n_seqs, threads, max_queries, 128, out);
}

/* ---- float64 ---- */

static double dot(const double *w, const float *x, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++)
        s += w[i] * x[i];
    return s;
}

/* Keys [len][nope + rope] and values [len][v] of a head. */
static void expand(const layer *l, int h, double *keys, double *values)
{
    const st_expand_shape *s = &l->s;
    for (int p = 0; p < l->len; p++) {
        const float *x = l->expanded + (size_t)p * (size_t)row_elems(l);
        for (int i = 0; i < s->nope; i++)
            *keys++ = dot(l->wk[h].as_double + (size_t)i * (size_t)s->kv_lora, x, s->kv_lora);
        for (int i = 0; i < s->rope; i++)
            *keys++ = x[s->kv_lora + i];
        for (int i = 0; i < s->v; i++)
            *values++ = dot(l->wv[h].as_double + (size_t)i * (size_t)s->kv_lora, x, s->kv_lora);
    }
}

static void attend(const layer *l, const float *q, const double *keys, const double *values,
                   int pos, double *out)
{
    int k_dim = l->s.nope + l->s.rope, v_dim = l->s.v;
    double *e = malloc(((size_t)pos + 1) * sizeof *e), max = -INFINITY, sum = 0;
    assert_non_null(e);
    for (int j = 0; j <= pos; j++) {
        e[j] = dot(keys + (size_t)j * (size_t)k_dim, q, k_dim) * l->s.scale;
        max = e[j] > max ? e[j] : max;
    }
    memset(out, 0, (size_t)v_dim * sizeof *out);
    for (int j = 0; j <= pos; j++) {
        double w = exp(e[j] - max);
        sum += w;
        for (int i = 0; i < v_dim; i++)
            out[i] += w * values[(size_t)j * (size_t)v_dim + (size_t)i];
    }
    for (int i = 0; i < v_dim; i++)
        out[i] /= sum;
    free(e);
}

/* The last n_q queries of the sequence. */
static double *oracle(const layer *l, const float *q, int n_q)
{
    size_t k_dim = (size_t)(l->s.nope + l->s.rope), v_dim = (size_t)l->s.v;
    size_t heads = (size_t)l->s.n_heads, len = (size_t)l->len;
    double *keys = malloc(len * k_dim * sizeof *keys), *values = malloc(len * v_dim * sizeof *keys);
    double *out = malloc((size_t)n_q * heads * v_dim * sizeof *out);
    assert_true(keys && values && out);
    for (size_t h = 0; h < heads; h++) {
        expand(l, (int)h, keys, values);
        for (int i = 0; i < n_q; i++) {
            size_t row = (size_t)i * heads + h;
            attend(l, q + row * k_dim, keys, values, l->len - n_q + i, out + row * v_dim);
        }
    }
    free(keys);
    free(values);
    return out;
}

static float *new_queries(kt_buf *b, const layer *l, int n_q)
{
    return kt_floats(b, (size_t)n_q * (size_t)l->s.n_heads * (size_t)(l->s.nope + l->s.rope));
}

/* rounded: the most a table may be off that attends by integers what integers expanded. */
static void check_against_oracle(const layer *l, const float *q, int n_q, double rounded)
{
    bool integers = st_weight_takes_int8(l->wk[0].rows.type);
    size_t n = (size_t)n_q * (size_t)l->s.n_heads * (size_t)l->s.v;
    double *want = oracle(l, q, n_q);
    st_attn_seq seq = {.n_q = n_q, .pos0 = l->len - n_q, .block_table = l->table};
    for (int t = 0; t < kt_n_tables; t++) {
        kt_buf out = kt_new(n, sizeof(float));
        run(kt_tables[t], l, q, &seq, 1, 1, 64, out.p);
        double e = kt_rel_error(out.p, want, n);
        if (!(e <= (integers && kt_tables[t]->dense_int ? rounded : 1e-5)))
            fail_msg("%s: kv_lora %d, %d/%d/%d, %d keys, %d queries: relative error %g",
                     kt_tables[t]->name, l->s.kv_lora, l->s.nope, l->s.rope, l->s.v, l->len, n_q,
                     e);
        kt_free(&out);
    }
    free(want);
}

static const st_expand_shape shapes[] = {
    {2, 512, 128, 64, 128, 0.005f},
    {3, 96, 32, 16, 40, 0.02f},
    {1, 33, 19, 6, 11, 0.05f},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void matches_float64(void **state)
{
    (void)state;
    static const int lengths[] = {1, 2, 63, 64, 65, 100, 257, 530};
    static const st_dtype dtypes[] = {ST_BF16, ST_F32, ST_I8};
    static const st_weight_type weights[] = {ST_WEIGHT_I8, ST_WEIGHT_BF16, ST_WEIGHT_I4,
                                             ST_WEIGHT_F32, ST_WEIGHT_F16};
    for (int s = 0; s < N_SHAPES; s++)
        for (int i = 0; i < (int)(sizeof lengths / sizeof *lengths); i++) {
            int n_q = kt_int(1, lengths[i]);
            n_q = n_q > 70 ? 70 : n_q;
            if (kt_slow && s == 0 && lengths[i] > 2)
                continue;
            layer l = layer_new(&shapes[s], lengths[i], kt_int(2, 40), dtypes[(s + i) % 3],
                                weights[(s + 2 * i) % 5]);
            kt_buf b;
            float *q = new_queries(&b, &l, n_q);
            check_against_oracle(&l, q, n_q, 1e-3);
            kt_free(&b);
            layer_free(&l);
        }
}

/* Scores that rise tile by tile beyond 2^-30, then fall. */
static float steep(int pos, int i)
{
    return i == 33 ? (pos < 300 ? (float)(pos / 64) * 40.0f : -500.0f) : (float)(pos % 5 + i % 3);
}

/* Earlier keys vanish behind 2^-126. */
static float cliff(int pos, int i)
{
    return i == 33 ? (pos < 200 ? -5000.0f : 5000.0f) : (float)(pos % 7 - i % 2);
}

static void hazards_of_the_running_maximum(void **state)
{
    (void)state;
    /* Scores of thousands lose digits where they are sums of 16-bit integers. */
    static const struct {
        float (*value)(int, int);
        st_weight_type weights;
        double rounded;
    } cases[] = {{steep, ST_WEIGHT_F32, 0},
                 {steep, ST_WEIGHT_I8, 1e-2},
                 {cliff, ST_WEIGHT_F32, 0},
                 {cliff, ST_WEIGHT_I8, 1e-1}};
    for (int f = 0; f < 4; f++) {
        st_expand_shape s = {2, 33, 8, 1, 16, 1.0f};
        layer l = layer_new(&s, 400, 16, ST_F32, cases[f].weights);
        store_rows(&l, cases[f].value);
        kt_buf b;
        float *q = new_queries(&b, &l, 250);
        for (int i = 0; i < 250 * 2; i++)
            for (int d = 0; d < 9; d++) /* the rotated part alone decides */
                q[i * 9 + d] = d == 8 ? 1 : 0;
        check_against_oracle(&l, q, 250, cases[f].rounded);
        kt_free(&b);
        layer_free(&l);
    }
}

/* q . (W_k c) = (W_k^T q) . c, and the value's expansion of the attended latents. */
static void matches_the_absorbed_form(void **state)
{
    (void)state;
    const st_expand_shape *s = &shapes[kt_slow ? 1 : 0];
    enum { LEN = 200, N_Q = 40 };
    layer l = layer_new(s, LEN, 16, ST_BF16, ST_WEIGHT_BF16);
    st_attn_shape wide = {s->n_heads, 1, s->kv_lora + s->rope, s->kv_lora, s->scale};
    size_t rows = (size_t)N_Q * (size_t)s->n_heads, n = rows * (size_t)s->v;
    kt_buf b;
    float *q = new_queries(&b, &l, N_Q), *x = malloc(rows * (size_t)wide.k_dim * sizeof *x);
    float *latent = malloc(rows * (size_t)wide.v_dim * sizeof *x), *out = malloc(n * sizeof *out);
    double *want = malloc(n * sizeof *want);
    assert_true(x && latent && out && want);
    for (size_t r = 0; r < rows; r++) {
        const double *w = l.wk[r % (size_t)s->n_heads].as_double;
        const float *from = q + r * (size_t)(s->nope + s->rope);
        for (int i = 0; i < s->kv_lora; i++) {
            double sum = 0;
            for (int d = 0; d < s->nope; d++)
                sum += from[d] * w[(size_t)d * (size_t)s->kv_lora + (size_t)i];
            x[r * (size_t)wide.k_dim + (size_t)i] = (float)sum;
        }
        memcpy(x + r * (size_t)wide.k_dim + s->kv_lora, from + s->nope,
               (size_t)s->rope * sizeof *x);
    }
    st_attn_seq seq = {.n_q = N_Q, .pos0 = LEN - N_Q, .block_table = l.table};
    for (int t = 0; t < kt_n_tables; t++) {
        void *scratch = aligned_alloc(64, (kt_tables[t]->attn_scratch(&wide) + 63) & ~(size_t)63);
        assert_non_null(scratch);
        kt_tables[t]->attention_mla(latent, x, &wide, &l.kv, &seq, 0, N_Q, 0, s->n_heads, scratch);
        for (size_t i = 0; i < n; i++) {
            size_t r = i / (size_t)s->v, d = i % (size_t)s->v;
            want[i] = dot(l.wv[r % (size_t)s->n_heads].as_double + d * (size_t)s->kv_lora,
                          latent + r * (size_t)s->kv_lora, s->kv_lora);
        }
        run(kt_tables[t], &l, q, &seq, 1, 2, N_Q, out);
        assert_true(kt_rel_error(out, want, n) <= 1e-5);
        free(scratch);
    }
    free(x);
    free(latent);
    free(out);
    free(want);
    kt_free(&b);
    layer_free(&l);
}

/* All queries of a sequence at once, then cut in other ways, among others, on more threads, with
 * latents quantized for all heads or by each. */
static void check_company(const layer *l, const st_kernels *t)
{
    size_t row = (size_t)l->s.n_heads * (size_t)l->s.v, len = (size_t)l->len;
    kt_buf b, x = kt_new(len * row, 4), y = kt_new(len * row, 4);
    float *q = new_queries(&b, l, l->len);
    st_attn_seq all = {.n_q = l->len, .block_table = l->table};
    run_with(t, l, q, &all, 1, 1, l->len, 0, x.p);
    run_with(t, l, q, &all, 1, 3, 160, 1000, y.p);
    assert_memory_equal(x.p, y.p, x.bytes);
    bool integers = st_weight_takes_int8(l->wk[0].rows.type);
    for (int shared = 0; shared <= (integers ? 100 : 0); shared += 100) {
        memset(y.p, 0, y.bytes);
        st_attn_seq parts[40];
        int n = 0;
        for (int pos = 0; pos < l->len; n++) {
            int count = n < 3 ? 1 : kt_int(1, 90);
            count = count > l->len - pos || n == 39 ? l->len - pos : count;
            parts[n] = (st_attn_seq){pos, count, pos, l->table};
            pos += count;
        }
        run_with(t, l, q, parts, n, 2, l->len, shared, y.p);
        assert_memory_equal(x.p, y.p, x.bytes);
    }
    kt_free(&b);
    kt_free(&x);
    kt_free(&y);
}

static void the_same_bits_in_any_company(void **state)
{
    (void)state;
    static const st_weight_type weights[] = {ST_WEIGHT_BF16, ST_WEIGHT_I8, ST_WEIGHT_I4};
    for (int s = kt_slow ? 1 : 0; s < N_SHAPES; s++)
        for (int w = 0; w < 3; w++) {
            layer l =
                layer_new(&shapes[s], w ? 200 : 330, 16, w && s % 2 ? ST_I8 : ST_BF16, weights[w]);
            for (int t = kt_slow ? 1 : 0; t < kt_n_tables; t++)
                check_company(&l, kt_tables[t]);
            layer_free(&l);
        }
}

static const layer *source;

/* The rotated part as I8 rows hold it. */
static float from_source(int pos, int i)
{
    float x = source->rows[(size_t)pos * (size_t)row_elems(source) + (size_t)i];
    return i < source->s.kv_lora ? x : st_bf16_to_f32(st_f32_to_bf16(x));
}

/* A latent is quantized to the same bits when it is cached and when it is expanded. */
static void quantized_rows_are_taken_as_they_are(void **state)
{
    (void)state;
    static const st_weight_type weights[] = {ST_WEIGHT_I8, ST_WEIGHT_I4};
    for (int s = kt_slow ? 1 : 0; s < N_SHAPES; s++)
        for (int w = 0; w < 2; w++) {
            layer l = layer_new(&shapes[s], 70 + w, 16, ST_F32, weights[w]), i8 = l;
            size_t n = (size_t)l.len * (size_t)l.s.n_heads * (size_t)l.s.v;
            source = &l;
            store_rows(&l, from_source);
            memset(l.rows, 0, (size_t)l.s.kv_lora * sizeof *l.rows); /* a token of nothing */
            store_rows(&l, from_source);
            i8.rows = malloc((size_t)l.len * (size_t)row_elems(&l) * sizeof(float));
            assert_non_null(i8.rows);
            new_memory(&i8, 5, ST_I8);
            store_rows(&i8, from_source);
            kt_buf b, x = kt_new(n, 4), y = kt_new(n, 4);
            float *q = new_queries(&b, &l, l.len);
            for (int t = 0; t < kt_n_tables; t++) {
                st_attn_seq seq = {.n_q = l.len, .block_table = l.table};
                run(kt_tables[t], &l, q, &seq, 1, 1, l.len, x.p);
                seq.block_table = i8.table;
                run(kt_tables[t], &i8, q, &seq, 1, 1, l.len, y.p);
                assert_memory_equal(x.p, y.p, x.bytes);
            }
            kt_free(&b);
            kt_free(&x);
            kt_free(&y);
            kt_free(&i8.memory);
            free(i8.rows);
            layer_free(&l);
        }
}

static void a_nan_stays_with_its_queries(void **state)
{
    (void)state;
    static const st_weight_type weights[] = {ST_WEIGHT_F32, ST_WEIGHT_I8, ST_WEIGHT_I4};
    for (int t = 0; t < kt_n_tables; t++)
        for (int w = 0; w < 3; w++) {
            layer l = layer_new(&shapes[1], 200, 16, ST_F32, weights[w]);
            float nan = NAN;
            memcpy((unsigned char *)st_kv_row(&l.kv, l.table, 150), &nan, sizeof nan);
            size_t row = (size_t)l.s.n_heads * (size_t)l.s.v;
            kt_buf b, out = kt_new(200 * row, sizeof(float));
            float *q = new_queries(&b, &l, 200);
            st_attn_seq seq = {.n_q = 200, .block_table = l.table};
            run(kt_tables[t], &l, q, &seq, 1, 1, 200, out.p);
            for (size_t i = 0; i < 200 * row; i++)
                assert_true(isfinite(((float *)out.p)[i]) == (i / row < 150));
            kt_free(&b);
            kt_free(&out);
            layer_free(&l);
        }
}

int main(void)
{
    kt_start();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_float64),
        cmocka_unit_test(hazards_of_the_running_maximum),
        cmocka_unit_test(matches_the_absorbed_form),
        cmocka_unit_test(the_same_bits_in_any_company),
        cmocka_unit_test(quantized_rows_are_taken_as_they_are),
        cmocka_unit_test(a_nan_stays_with_its_queries),
    };
    return cmocka_run_group_tests_name("expanded", tests, NULL, NULL);
}
