/* What the tests of attention share; see paged_attention.h. */
#include "paged_attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/float_bits.h"
#include "kernels/kv_rows.h"
#include "kernels/ops.h"

paged paged_new(bool mla, const st_attn_shape *shape, int len, int block_size, st_dtype dtype)
{
    paged p = {.shape = *shape, .mla = mla, .len = len, .row = st_kv_attn_row(mla, shape)};
    int blocks = (len + block_size - 1) / block_size;
    size_t elem = dtype == ST_I8 ? 4 : st_dtype_size(dtype); /* what rows are aligned to */
    p.elems = st_kv_row_elems(p.row);
    p.kv.block_size = block_size;
    p.kv.dtype = dtype;
    p.kv.row_stride = dtype == ST_I8 ? st_kv_i8_row_bytes(p.row) : (size_t)p.elems * elem;
    p.kv.block_stride = (size_t)block_size * p.kv.row_stride + elem; /* odd on purpose */
    p.memory = kt_new((size_t)blocks * p.kv.block_stride / elem, elem);
    memset(p.memory.p, 0xff, p.memory.bytes);
    p.kv.base = p.memory.p;
    p.table = malloc((size_t)blocks * sizeof *p.table);
    p.values = calloc((size_t)len * (size_t)p.elems, sizeof *p.values);
    assert_true(p.table && p.values);
    for (int i = 0; i < blocks; i++)
        p.table[i] = i;
    for (int i = blocks - 1; i > 0; i--) {
        int j = kt_int(0, i), t = p.table[i];
        p.table[i] = p.table[j];
        p.table[j] = t;
    }
    return p;
}

void paged_free(paged *p)
{
    kt_free(&p->memory);
    free(p->table);
    free(p->values);
}

float *paged_value(const paged *p, int pos)
{
    return p->values + (size_t)pos * (size_t)p->elems;
}

void paged_fill(paged *p)
{
    for (int i = 0; i < p->len * p->elems; i++)
        p->values[i] = kt_normal();
}

void paged_store(paged *p)
{
    for (int pos = 0; pos < p->len; pos++) {
        unsigned char *row = (unsigned char *)st_kv_row(&p->kv, p->table, pos);
        float *x = paged_value(p, pos);
        if (p->kv.dtype == ST_I8) {
            kt_tables[0]->kv_to_i8(row, x, p->row);
            kt_tables[0]->kv_from_i8(x, row, p->row);
        } else if (p->kv.dtype == ST_F32) {
            memcpy(row, x, p->kv.row_stride);
        } else {
            for (int i = 0; i < p->elems; i++) {
                uint16_t h = st_f32_to_bf16(x[i]);
                memcpy(row + (size_t)i * 2, &h, 2);
                x[i] = st_bf16_to_f32(h);
            }
        }
    }
}

paged paged_random(bool mla, const st_attn_shape *shape, int len, int block_size, st_dtype dtype)
{
    paged p = paged_new(mla, shape, len, block_size, dtype);
    paged_fill(&p);
    paged_store(&p);
    return p;
}

paged paged_again(const paged *p, int block_size)
{
    paged r = paged_new(p->mla, &p->shape, p->len, block_size, p->kv.dtype);
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

void paged_run(const st_kernels *t, const paged *p, float *out, const float *q, st_attn_seq seq,
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
            e[j] += (double)q[i] * paged_value(p, j)[k0 + i];
        e[j] *= s->scale;
        max = e[j] > max ? e[j] : max;
    }
    memset(out, 0, (size_t)s->v_dim * sizeof *out);
    for (int j = 0; j <= pos; j++) {
        double w = exp(e[j] - max);
        sum += w;
        for (int i = 0; i < s->v_dim; i++)
            out[i] += w * paged_value(p, j)[v0 + i];
    }
    for (int i = 0; i < s->v_dim; i++)
        out[i] /= sum;
    free(e);
}

static double limit_of(const st_kernels *t, const paged *p)
{
    bool by_integers = strcmp(t->name, "avx512vnni") == 0 && p->kv.dtype == ST_I8 &&
                       (p->mla ? p->shape.n_heads >= 16 : p->shape.k_dim % 16 == 0);
    return by_integers ? 1e-2 : 1e-5;
}

void paged_check(const paged *p, const float *q, int n_q)
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
        double limit = limit_of(kt_tables[t], p);
        kt_buf out = kt_new(n, sizeof(float));
        paged_run(kt_tables[t], p, out.p, q, seq, 0, n_q, 0, s->n_heads);
        double e = kt_rel_error(out.p, want, n);
        if (!(e <= limit))
            fail_msg("%s %s: %d heads, k %d v %d, %d keys, %d queries: relative error %g > %g",
                     kt_tables[t]->name, p->mla ? "mla" : "gqa", s->n_heads, s->k_dim, s->v_dim,
                     p->len, n_q, e, limit);
        kt_free(&out);
    }
    free(want);
}

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

void paged_check_bits(const st_kernels *t, const paged *p, int n_q)
{
    paged other = paged_again(p, 7);
    int heads = p->shape.n_heads, pos0 = p->len - n_q;
    size_t n = (size_t)n_q * (size_t)heads * (size_t)p->shape.v_dim;
    kt_buf qb, a = kt_new(n, sizeof(float)), b = kt_new(n, sizeof(float));
    float *q = kt_floats(&qb, (size_t)n_q * (size_t)heads * (size_t)p->shape.k_dim);
    paged_run(t, p, a.p, q, (st_attn_seq){.n_q = n_q, .pos0 = pos0}, 0, n_q, 0, heads);
    for (int i = 0; i < n_q; i++)
        for (int h = 0; h < heads; h++) {
            st_attn_seq one = {.q_row = i, .n_q = 1, .pos0 = pos0 + i};
            paged_run(t, &other, b.p, q, one, 0, 1, h, h + 1);
        }
    assert_memory_equal(a.p, b.p, a.bytes);
    memset(b.p, 0, b.bytes);
    for (int i = 0; i < n_q;) { /* chunks of random size */
        int c = kt_int(1, n_q - i);
        st_attn_seq chunk = {.q_row = i, .n_q = c, .pos0 = pos0 + i};
        paged_run(t, &other, b.p, q, chunk, 0, c, 0, heads);
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
}

void paged_check_operator(const st_kernels *t, const paged *p, int threads, const st_attn_seq *seqs,
                          int n, int rows)
{
    const st_attn_shape *shape = &p->shape;
    size_t values = (size_t)rows * (size_t)shape->n_heads * (size_t)shape->v_dim;
    kt_buf qb, want = kt_new(values, sizeof(float)), got = kt_new(values, sizeof(float));
    float *q = kt_floats(&qb, (size_t)rows * (size_t)shape->n_heads * (size_t)shape->k_dim);
    for (int i = 0; i < n; i++)
        paged_run(t, p, want.p, q, seqs[i], 0, seqs[i].n_q, 0, shape->n_heads);
    st_pool *pool;
    st_ops *ops;
    assert_int_equal(st_pool_new(threads, false, &pool, NULL), ST_OK);
    assert_int_equal(st_ops_new(t, pool, shape, &ops, NULL), ST_OK);
    st_op_attention(ops, p->mla, got.p, q, shape, &p->kv, seqs, n);
    assert_memory_equal(got.p, want.p, got.bytes);
    st_ops_free(ops);
    st_pool_free(pool);
    kt_free(&want);
    kt_free(&got);
    kt_free(&qb);
}
