/* Helpers of the kernel tests: see kernel_test.h. */
#include "kernel_test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "kernels/float_bits.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#endif
#endif
#if !defined(ASAN_POISON_MEMORY_REGION)
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p))
#endif

const st_kernels *kt_tables[KT_MAX_TABLES];
int kt_n_tables;
bool kt_slow;
static uint64_t rng_state;

void kt_start(void)
{
    const char *seed = getenv("STARLING_TEST_SEED");
    rng_state = seed ? strtoull(seed, NULL, 10) : st_now_ns();
    printf("seed: STARLING_TEST_SEED=%llu\n", (unsigned long long)rng_state);
    kt_slow = getenv("STARLING_TEST_SLOW") != NULL;
    kt_n_tables = st_kernels_list(kt_tables, KT_MAX_TABLES);
    for (int i = 0; i < kt_n_tables; i++)
        printf("table: %s\n", kt_tables[i]->name);
}

uint64_t kt_u64(void)
{
    /* splitmix64 */
    uint64_t z = rng_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

int kt_int(int lo, int hi)
{
    return lo + (int)(kt_u64() % (uint64_t)(hi - lo + 1));
}

float kt_uniform(void)
{
    return (float)((double)(kt_u64() >> 11) * 0x1p-52 - 1.0);
}

float kt_normal(void)
{
    double sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (double)(int64_t)(kt_u64() >> 11) * 0x1p-53;
    return (float)((sum - 2) * 1.7320508075688772);
}

/* Half of the buffers end where a page that may not be touched begins: one byte too many, read or
 * written, faults, with or without a sanitizer. The others have guard bytes behind them, so that
 * they can start at an odd address. */
static void place_before_a_guard_page(kt_buf *b, size_t before)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t pages = (before + b->bytes + page - 1) / page * page;
    b->mapped = pages + page;
    b->raw = mmap(NULL, b->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(b->raw != MAP_FAILED);
    assert_int_equal(mprotect(b->raw + pages, page, PROT_NONE), 0);
    b->p = b->raw + pages - b->bytes;
}

kt_buf kt_new(size_t n, size_t size)
{
    kt_buf b = {.bytes = n * size};
    size_t before = KT_GUARD + size;
    if (kt_u64() & 1) {
        place_before_a_guard_page(&b, before);
    } else {
        /* malloc aligns to 16 at least: an extra `size` puts the first element off that. */
        b.raw = malloc(before + b.bytes + KT_GUARD);
        assert_non_null(b.raw);
        b.p = b.raw + before;
        memset((unsigned char *)b.p + b.bytes, 0xa5, KT_GUARD);
    }
    memset((unsigned char *)b.p - before, 0xa5, before);
    memset(b.p, 0xee, b.bytes);
    return b;
}

void kt_check_guards(const kt_buf *b)
{
    const unsigned char *p = b->p;
    for (int i = 1; i <= KT_GUARD; i++)
        assert_int_equal(p[-i], 0xa5);
    for (int i = 0; i < KT_GUARD && !b->mapped; i++)
        assert_int_equal(p[b->bytes + (size_t)i], 0xa5);
}

void kt_free(kt_buf *b)
{
    kt_check_guards(b);
    if (b->mapped)
        munmap(b->raw, b->mapped);
    else
        free(b->raw);
}

float *kt_floats(kt_buf *b, size_t n)
{
    *b = kt_new(n, sizeof(float));
    float *f = b->p;
    for (size_t i = 0; i < n; i++)
        f[i] = kt_normal();
    return f;
}

uint16_t kt_to_f16(float f)
{
    /* Scaling by 2^-112 moves F16's exponent range to the bottom of float's, denormals included;
     * adding and dropping bits then rounds. Good for |f| < 65504. */
    uint32_t u = st_bits_of_float(fabsf(f) * 0x1p-112f);
    uint32_t r = (u + 0xfff + (u >> 13 & 1)) >> 13;
    return (uint16_t)(r | (signbit(f) ? 0x8000 : 0));
}

static size_t weight_bytes(st_weight_type type)
{
    return type == ST_WEIGHT_F32 ? 4 : type == ST_WEIGHT_F16 || type == ST_WEIGHT_BF16 ? 2 : 1;
}

/* A random weight at p; returns its value without scale and zero point. */
static double fill_weight(st_weight_type type, unsigned char *p)
{
    float f = kt_normal();
    uint16_t h = type == ST_WEIGHT_BF16 ? st_f32_to_bf16(f) : kt_to_f16(f);
    switch (type) {
    case ST_WEIGHT_F32:
        memcpy(p, &f, 4);
        return f;
    case ST_WEIGHT_F16:
    case ST_WEIGHT_BF16:
        memcpy(p, &h, 2);
        return type == ST_WEIGHT_BF16 ? st_bf16_to_f32(h) : st_f16_to_f32(h);
    case ST_WEIGHT_F8:
        do
            *p = (uint8_t)kt_int(0, 255);
        while ((*p & 0x7f) == 0x7f);
        return st_f8_to_f32(*p);
    case ST_WEIGHT_I8:
        *p = (uint8_t)kt_int(0, 255);
        return (int8_t)*p;
    default:
        *p = (uint8_t)kt_int(0, 15);
        return *p;
    }
}

void kt_weights_new(kt_weights *w, st_weight_type type, int n, int k, int group, bool zero)
{
    kt_weights_scaled(w, type, n, k, group, zero, ST_WEIGHT_F32);
}

static float rounded(float f, st_weight_type type)
{
    return type == ST_WEIGHT_F16    ? st_f16_to_f32(st_f32_to_f16(f))
           : type == ST_WEIGHT_BF16 ? st_bf16_to_f32(st_f32_to_bf16(f))
                                    : f;
}

void kt_weights_scaled(kt_weights *w, st_weight_type type, int n, int k, int group, bool zero,
                       st_weight_type scale)
{
    memset(w, 0, sizeof *w);
    size_t groups = (size_t)st_weight_groups(k, group), size = weight_bytes(type);
    w->data = kt_new((size_t)n * (size_t)k, size);
    w->scale = malloc((size_t)n * groups * sizeof *w->scale);
    w->zero = malloc((size_t)n * groups);
    w->as_double = malloc((size_t)n * (size_t)k * sizeof(double));
    assert_true(w->scale && w->zero && w->as_double);
    for (size_t i = 0; i < (size_t)n * groups; i++) {
        w->scale[i] = rounded(0.01f * (1.5f + kt_uniform()), scale);
        w->zero[i] = (uint8_t)(zero ? kt_int(0, 16) : 8);
    }
    for (size_t j = 0; j < (size_t)n; j++)
        for (size_t l = 0; l < (size_t)k; l++) {
            size_t i = j * (size_t)k + l;
            size_t g = j * groups + (group > 0 ? l / (size_t)group : 0);
            double v = fill_weight(type, (unsigned char *)w->data.p + i * size);
            if (type == ST_WEIGHT_I4)
                v -= w->zero[g];
            bool scaled = type == ST_WEIGHT_F8 || st_weight_takes_int8(type);
            w->as_double[i] = scaled ? v * w->scale[g] : v;
        }
    w->has_zero = zero;
    w->scale_type = scale;
    w->rows = (st_weight_rows){.type = type, .n = n, .k = k, .group = group, .data = w->data.p};
    if (type == ST_WEIGHT_F8 || st_weight_takes_int8(type))
        w->rows.scale = w->scale;
    if (zero)
        w->rows.zero = w->zero;
}

void kt_weights_free(kt_weights *w)
{
    kt_free(&w->data);
    free(w->scale);
    free(w->zero);
    free(w->as_double);
}

void kt_pack_new(kt_pack *p, const st_kernels *t, const kt_weights *w)
{
    const st_weight_rows *all = &w->rows;
    p->w = (st_packed){.type = all->type, .n = all->n, .k = all->k, .group = all->group};
    p->w.has_zero = w->has_zero;
    p->w.scale = w->scale_type;
    size_t block = t->pack_block_bytes(&p->w);
    size_t groups = (size_t)st_weight_groups(all->k, all->group);
    size_t blocks = ((size_t)all->n + (size_t)t->pack_cols - 1) / (size_t)t->pack_cols;
    p->mem = (kt_buf){.bytes = block * blocks};
    place_before_a_guard_page(&p->mem, KT_GUARD);
    memset((char *)p->mem.p - KT_GUARD, 0xa5, KT_GUARD);
    for (size_t b = 0; b < blocks; b++) {
        size_t j = b * (size_t)t->pack_cols;
        st_weight_rows part = *all;
        part.n = all->n - (int)j < t->pack_cols ? all->n - (int)j : t->pack_cols;
        part.data = (const char *)all->data + j * (size_t)all->k * weight_bytes(all->type);
        part.scale = all->scale ? all->scale + j * groups : NULL;
        part.zero = all->zero ? all->zero + j * groups : NULL;
        t->pack_block((char *)p->mem.p + b * block, &p->w, &part);
    }
    kt_check_guards(&p->mem);
    p->w.data = p->mem.p;
}

void kt_pack_free(kt_pack *p)
{
    kt_free(&p->mem);
}

void kt_act_new(kt_act *a, int m, int k)
{
    size_t ld = (size_t)k + (size_t)kt_int(0, 3), ldq = st_act_ldq(k);
    size_t padded = ((size_t)k + ST_ACT_STEP - 1) / ST_ACT_STEP * ST_ACT_STEP;
    size_t before = (size_t)m - 1;
    float *x = kt_floats(&a->x, before * ld + (size_t)k);
    a->q = kt_new(before * ldq + padded, 1);
    float *scale = kt_floats(&a->scale, (size_t)m);
    a->sum = kt_new((size_t)m * st_act_sums(k), sizeof(int32_t));
    for (size_t i = 0; i < (size_t)m; i++)
        for (size_t l = 0; l < padded; l++)
            ((int8_t *)a->q.p)[i * ldq + l] = (int8_t)(l < (size_t)k ? kt_int(-127, 127) : 0);
    a->a = (st_act){
        .x = x, .ld = ld, .q = a->q.p, .ldq = ldq, .scale = scale, .sum = a->sum.p, .m = m, .k = k};
    kt_act_sum(a);
}

void kt_act_sum(kt_act *a)
{
    size_t sums = st_act_sums(a->a.k);
    for (size_t i = 0; i < (size_t)a->a.m; i++) {
        int32_t *sum = a->a.sum + i * sums;
        sum[0] = 0;
        for (size_t at = 1, l = 0; at < sums; at++)
            for (sum[at] = sum[at - 1]; l < at * ST_ACT_SUM && l < (size_t)a->a.k; l++)
                sum[at] += a->a.q[i * a->a.ldq + l];
    }
}

st_act kt_act_rows(const kt_act *a, int row, int m)
{
    st_act r = a->a;
    size_t i = (size_t)row;
    r.x += i * r.ld;
    r.q += i * r.ldq;
    r.scale += i;
    r.sum += i * st_act_sums(r.k);
    r.m = m;
    return r;
}

void kt_act_free(kt_act *a)
{
    kt_free(&a->x);
    kt_free(&a->q);
    kt_free(&a->scale);
    kt_free(&a->sum);
}

double kt_rel_error(const float *got, const double *want, size_t n)
{
    double d2 = 0, w2 = 0;
    for (size_t i = 0; i < n; i++) {
        double d = got[i] - want[i];
        d2 += d * d;
        w2 += want[i] * want[i];
    }
    if (!(d2 >= 0) || !isfinite(d2))
        return INFINITY; /* a NaN must not pass a comparison */
    return w2 > 0 ? sqrt(d2 / w2) : sqrt(d2);
}

bool kt_same_bits(const void *a, const void *b, size_t bytes)
{
    return memcmp(a, b, bytes) == 0;
}
