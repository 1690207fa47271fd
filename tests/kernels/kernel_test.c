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
static uint64_t rng_state;

void kt_start(void)
{
    const char *seed = getenv("STARLING_TEST_SEED");
    rng_state = seed ? strtoull(seed, NULL, 10) : st_now_ns();
    printf("seed: STARLING_TEST_SEED=%llu\n", (unsigned long long)rng_state);
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
    double u = ((double)(kt_u64() >> 11) + 0.5) * 0x1p-53;
    double v = (double)(kt_u64() >> 11) * 0x1p-53;
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
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

static double fill_element(kt_matrix *w, size_t i)
{
    float f = kt_normal();
    switch (w->m.dtype) {
    case ST_F32:
        memcpy((char *)w->data.p + 4 * i, &f, 4);
        return f;
    case ST_I8:
        ((int8_t *)w->data.p)[i] = (int8_t)kt_int(-128, 127);
        return ((int8_t *)w->data.p)[i];
    default: {
        uint16_t h = w->m.dtype == ST_BF16 ? st_f32_to_bf16(f) : kt_to_f16(f);
        memcpy((char *)w->data.p + 2 * i, &h, 2);
        return w->m.dtype == ST_BF16 ? st_bf16_to_f32(h) : st_f16_to_f32(h);
    }
    }
}

void kt_matrix_new(kt_matrix *w, st_dtype dtype, int n, int k)
{
    memset(w, 0, sizeof *w);
    w->m.dtype = dtype;
    w->m.n = n;
    w->m.k = k;
    size_t count = (size_t)n * (size_t)k;
    w->data = kt_new(count, st_dtype_size(dtype));
    w->as_double = malloc((count + 1) * sizeof(double));
    assert_non_null(w->as_double);
    for (size_t i = 0; i < count; i++)
        w->as_double[i] = fill_element(w, i);
    w->m.data = w->data.p;
    if (dtype != ST_I8)
        return;
    w->scale = malloc((size_t)n * sizeof *w->scale);
    w->row_sum = calloc((size_t)n, sizeof *w->row_sum);
    assert_true(w->scale && w->row_sum);
    for (int j = 0; j < n; j++) {
        w->scale[j] = 0.01f * (1.5f + kt_uniform());
        for (int i = 0; i < k; i++)
            w->row_sum[j] += ((int8_t *)w->data.p)[(size_t)j * (size_t)k + (size_t)i];
    }
    w->m.scale = w->scale;
    w->m.row_sum = w->row_sum;
}

void kt_matrix_free(kt_matrix *w)
{
    kt_free(&w->data);
    free(w->scale);
    free(w->row_sum);
    free(w->as_double);
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
