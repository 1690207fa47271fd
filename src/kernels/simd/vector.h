/* Template: kernels on rows: quantization, norm, rotary embedding, activation, softmax,
 * conversions. */

static void st_simd_quantize_rows(int8_t *q, size_t ldq, float *scale, const float *x, size_t ldx,
                                  int m, int k)
{
    for (int i = 0; i < m; i++) {
        const float *xi = x + (size_t)i * ldx;
        int8_t *qi = q + (size_t)i * ldq;
        vi most = vi_zero();
        int j = 0;
        for (; j + VL <= k; j += VL)
            most = vi_absmax(most, vf_load(xi + j));
        if (j < k)
            most = vi_absmax(most, vf_load_n(xi + j, k - j));
        float s = st_float_of_bits(vi_hmax(most)) / 127.0f;
        scale[i] = s = !isfinite(s) ? NAN : s == 0 ? 1 : s;
        if (isnan(s)) {
            memset(qi, 0, (size_t)k);
            continue;
        }
        vf d = vf_set1(s);
        for (j = 0; j + VL <= k; j += VL)
            vf_store_i8(qi + j, vf_div(vf_load(xi + j), d));
        if (j < k) {
            int8_t tail[VL];
            vf_store_i8(tail, vf_div(vf_load_n(xi + j, k - j), d));
            memcpy(qi + j, tail, (size_t)(k - j));
        }
    }
}

static float sum_of_squares(const float *x, int d)
{
    vf s0 = vf_zero(), s1 = vf_zero(), s2 = vf_zero(), s3 = vf_zero();
    int j = 0;
    for (; j + 4 * VL <= d; j += 4 * VL) {
        vf a = vf_load(x + j), b = vf_load(x + j + VL);
        vf c = vf_load(x + j + 2 * VL), e = vf_load(x + j + 3 * VL);
        s0 = vf_fma(a, a, s0);
        s1 = vf_fma(b, b, s1);
        s2 = vf_fma(c, c, s2);
        s3 = vf_fma(e, e, s3);
    }
    for (; j < d; j += VL) {
        vf a = vf_load_n(x + j, d - j < VL ? d - j : VL);
        s0 = vf_fma(a, a, s0);
    }
    return vf_sum(vf_add(vf_add(s0, s1), vf_add(s2, s3)));
}

static void st_simd_rmsnorm(float *y, size_t ldy, const float *x, size_t ldx, const float *weight,
                            int m, int d, float eps)
{
    for (int i = 0; i < m; i++) {
        const float *xi = x + (size_t)i * ldx;
        float *yi = y + (size_t)i * ldy;
        vf r = vf_set1(1.0f / sqrtf(sum_of_squares(xi, d) / (float)d + eps));
        int j = 0;
        for (; j + VL <= d; j += VL)
            vf_store(yi + j, vf_mul(vf_mul(vf_load(xi + j), r), vf_load(weight + j)));
        if (j < d)
            vf_store_n(yi + j,
                       vf_mul(vf_mul(vf_load_n(xi + j, d - j), r), vf_load_n(weight + j, d - j)),
                       d - j);
    }
}

static void st_simd_rope_interleaved(float *x, int d, const float *cos_sin)
{
    const float *c = cos_sin, *s = cos_sin + d / 2;
    int i = 0;
    for (; i + VL <= d; i += VL) {
        vf v = vf_load(x + i);
        vf turned = vf_mul(vf_swap_pairs(v), vf_load_twice(s + i / 2));
        vf_store(x + i, vf_fmaddsub(v, vf_load_twice(c + i / 2), turned));
    }
    for (; i + 2 <= d; i += 2) {
        float a = x[i], b = x[i + 1];
        x[i] = a * c[i / 2] - b * s[i / 2];
        x[i + 1] = b * c[i / 2] + a * s[i / 2];
    }
}

static void st_simd_rope_half(float *x, int d, const float *cos_sin)
{
    int half = d / 2;
    for (int i = 0; i < half; i += VL) {
        int n = half - i < VL ? half - i : VL;
        vf c = vf_load_n(cos_sin + i, n), s = vf_load_n(cos_sin + half + i, n);
        vf a = vf_load_n(x + i, n), b = vf_load_n(x + half + i, n);
        vf_store_n(x + i, vf_fnma(b, s, vf_mul(a, c)), n);
        vf_store_n(x + half + i, vf_fma(a, s, vf_mul(b, c)), n);
    }
}

ST_INLINE vf silu_times(vf gate, vf up)
{
    vf e = vf_exp(vf_sub(vf_zero(), gate));
    return vf_mul(vf_div(gate, vf_add(vf_set1(1), e)), up);
}

static void st_simd_silu_mul(float *y, const float *gate, const float *up, int n)
{
    int i = 0;
    for (; i + VL <= n; i += VL)
        vf_store(y + i, silu_times(vf_load(gate + i), vf_load(up + i)));
    if (i < n)
        vf_store_n(y + i, silu_times(vf_load_n(gate + i, n - i), vf_load_n(up + i, n - i)), n - i);
}

static void st_simd_add(float *y, const float *x, int n)
{
    int i = 0;
    for (; i + VL <= n; i += VL)
        vf_store(y + i, vf_add(vf_load(y + i), vf_load(x + i)));
    if (i < n)
        vf_store_n(y + i, vf_add(vf_load_n(y + i, n - i), vf_load_n(x + i, n - i)), n - i);
}

static void st_simd_add_scaled(float *y, const float *x, float a, int n)
{
    int i = 0;
    for (; i + VL <= n; i += VL)
        vf_store(y + i, vf_fma(vf_set1(a), vf_load(x + i), vf_load(y + i)));
    if (i < n)
        vf_store_n(y + i, vf_fma(vf_set1(a), vf_load_n(x + i, n - i), vf_load_n(y + i, n - i)),
                   n - i);
}

static float st_simd_softmax(float *x, int n)
{
    float max = -INFINITY;
    for (int i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    vf sum = vf_zero();
    int i = 0;
    for (; i + VL <= n; i += VL) {
        vf e = vf_exp(vf_sub(vf_load(x + i), vf_set1(max)));
        vf_store(x + i, e);
        sum = vf_add(sum, e);
    }
    if (i < n) {
        float tail[VL] = {0};
        vf_store_n(tail, vf_exp(vf_sub(vf_load_n(x + i, n - i), vf_set1(max))), n - i);
        memcpy(x + i, tail, (size_t)(n - i) * sizeof *x);
        sum = vf_add(sum, vf_load(tail));
    }
    float total = vf_sum(sum);
    vf t = vf_set1(total);
    for (i = 0; i + VL <= n; i += VL)
        vf_store(x + i, vf_div(vf_load(x + i), t));
    if (i < n)
        vf_store_n(x + i, vf_div(vf_load_n(x + i, n - i), t), n - i);
    return max + logf(total);
}

static void st_simd_to_bf16(uint16_t *y, const float *x, int n)
{
    int i = 0;
    for (; i + VL <= n; i += VL)
        vf_store_bf16(y + i, vf_load(x + i));
    if (i < n) {
        uint16_t tail[VL];
        vf_store_bf16(tail, vf_load_n(x + i, n - i));
        memcpy(y + i, tail, (size_t)(n - i) * sizeof *y);
    }
}

ST_INLINE void convert(st_dtype dtype, float *y, const char *x, int n)
{
    int i = 0;
    for (; i + VL <= n; i += VL)
        vf_store(y + i, vf_load_as(dtype, x, (size_t)i));
    if (i < n)
        vf_store_n(y + i, vf_load_as_n(dtype, x, (size_t)i, n - i), n - i);
}

static void st_simd_to_f32(float *y, const void *x, st_dtype dtype, int n)
{
    if (dtype == ST_F32)
        memmove(y, x, (size_t)n * sizeof *y);
    else if (dtype == ST_BF16)
        convert(ST_BF16, y, x, n);
    else
        convert(ST_F16, y, x, n);
}
