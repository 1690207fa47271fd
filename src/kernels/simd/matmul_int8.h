/* Template: y = xq . W^T for int8 weights, row-major, exact 32-bit sums. The including file
 * defines: I8_ROWS (rows of x in a tile, 3 or 6), I8_STEP (bytes a vector holds), and
 *   ivec, iv_zero(), iv_load(p), iv_load_n(p, n) (zero beyond n), iv_x(v) (a prepared vector of x),
 *   iv_dot(acc, x, w), iv_sum4(a, b, c, d), and I8_COMPENSATION (x + I8_COMPENSATION is what
 *   iv_dot multiplied). */

enum { I8_COLS = 4, I8_X_BLOCK_BYTES = 256 << 10, I8_PREFETCH_BYTES = 2048 };

ST_INLINE void i8_accumulate(int mr, int nr, ivec acc[I8_ROWS][I8_COLS], const int8_t *x,
                             size_t ldx, const int8_t *w, size_t k, size_t ahead)
{
    size_t i0 = 0;
    for (; i0 + I8_STEP <= k; i0 += I8_STEP) {
        ivec xv[I8_ROWS];
        ST_UNROLL
        for (int i = 0; i < mr; i++)
            xv[i] = iv_x(iv_load(x + (size_t)i * ldx + i0));
        ST_UNROLL
        for (int j = 0; j < nr; j++) {
            const int8_t *row = w + (size_t)j * k + i0;
            ivec wv = iv_load(row);
            if (mr == 1)
                __builtin_prefetch(row + ahead);
            ST_UNROLL
            for (int i = 0; i < mr; i++)
                acc[i][j] = iv_dot(acc[i][j], xv[i], wv);
        }
    }
    if (i0 == k)
        return;
    for (int j = 0; j < nr; j++) {
        ivec wv = iv_load_n(w + (size_t)j * k + i0, k - i0);
        for (int i = 0; i < mr; i++)
            acc[i][j] = iv_dot(acc[i][j], iv_x(iv_load_n(x + (size_t)i * ldx + i0, k - i0)), wv);
    }
}

/* Tile of mr rows of x by nr rows of w from column j0. */
ST_INLINE void i8_tile(int mr, int nr, float *y, size_t ldy, const int8_t *x, size_t ldx,
                       const float *x_scale, const st_matrix *w, int j0, size_t ahead)
{
    ivec acc[I8_ROWS][I8_COLS];
    ST_UNROLL
    for (int i = 0; i < mr; i++)
        ST_UNROLL
    for (int j = 0; j < I8_COLS; j++)
        acc[i][j] = iv_zero();
    size_t k = (size_t)w->k;
    i8_accumulate(mr, nr, acc, x, ldx, (const int8_t *)w->data + (size_t)j0 * k, k, ahead);
    float scale[I8_COLS] = {0};
    int32_t excess[I8_COLS] = {0};
    for (int j = 0; j < nr; j++) {
        scale[j] = w->scale[j0 + j];
        /* Unsigned: with k near ST_MAX_K sums may wrap on the way, and wrap back. */
        excess[j] = (int32_t)((uint32_t)w->row_sum[j0 + j] * I8_COMPENSATION);
    }
    __m128 ws = _mm_loadu_ps(scale);
    __m128i ex = _mm_loadu_si128((const __m128i *)(const void *)excess);
    ST_UNROLL
    for (int i = 0; i < mr; i++) {
        __m128i sum = _mm_sub_epi32(iv_sum4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]), ex);
        __m128 v = _mm_mul_ps(_mm_cvtepi32_ps(sum), _mm_mul_ps(_mm_set1_ps(x_scale[i]), ws));
        float *yi = y + (size_t)i * ldy + j0;
        if (nr == I8_COLS) {
            _mm_storeu_ps(yi, v);
        } else {
            float t[I8_COLS];
            _mm_storeu_ps(t, v);
            for (int j = 0; j < nr; j++)
                yi[j] = t[j];
        }
    }
}

/* mr rows of x, columns [n0, n1). */
ST_INLINE void i8_strip(int mr, float *y, size_t ldy, const int8_t *x, size_t ldx,
                        const float *x_scale, const st_matrix *w, int n0, int n1)
{
    /* Short rows: fetch the next tile's rows; long ones: further along the same row. */
    size_t tile = I8_COLS * (size_t)w->k;
    size_t ahead = tile <= 8 * I8_PREFETCH_BYTES ? tile : I8_PREFETCH_BYTES;
    int j = n0;
    for (; j + I8_COLS <= n1; j += I8_COLS)
        i8_tile(mr, I8_COLS, y, ldy, x, ldx, x_scale, w, j, ahead);
    for (; j < n1; j++)
        i8_tile(mr, 1, y, ldy, x, ldx, x_scale, w, j, ahead);
}

static void i8_columns(float *y, size_t ldy, const int8_t *x, size_t ldx, const float *x_scale,
                       int m, const st_matrix *w, int n0, int n1)
{
    int i = 0;
    for (; i + I8_ROWS <= m; i += I8_ROWS)
        i8_strip(I8_ROWS, y + (size_t)i * ldy, ldy, x + (size_t)i * ldx, ldx, x_scale + i, w, n0,
                 n1);
    y += (size_t)i * ldy;
    x += (size_t)i * ldx;
    x_scale += i;
    switch (m - i) {
#if I8_ROWS > 3
    case 5:
        i8_strip(5, y, ldy, x, ldx, x_scale, w, n0, n1);
        break;
    case 4:
        i8_strip(4, y, ldy, x, ldx, x_scale, w, n0, n1);
        break;
    case 3:
        i8_strip(3, y, ldy, x, ldx, x_scale, w, n0, n1);
        break;
#endif
    case 2:
        i8_strip(2, y, ldy, x, ldx, x_scale, w, n0, n1);
        break;
    case 1:
        i8_strip(1, y, ldy, x, ldx, x_scale, w, n0, n1);
        break;
    default:
        break;
    }
}

static void i8_run(float *y, size_t ldy, const int8_t *x, size_t ldx, const float *x_scale, int m,
                   const st_matrix *w, int n0, int n1)
{
    if (m <= I8_ROWS) {
        i8_columns(y, ldy, x, ldx, x_scale, m, w, n0, n1);
        return;
    }
    /* Rows of x that stay in L2 while columns pass by; the weights of four columns stay in L1. */
    int rows = I8_X_BLOCK_BYTES / (w->k > 0 ? w->k : 1) / I8_ROWS * I8_ROWS;
    rows = rows < I8_ROWS ? I8_ROWS : rows;
    for (int i = 0; i < m; i += rows) {
        int count = m - i < rows ? m - i : rows;
        for (int j = n0; j < n1; j += I8_COLS)
            i8_columns(y + (size_t)i * ldy, ldy, x + (size_t)i * ldx, ldx, x_scale + i, count, w, j,
                       j + I8_COLS < n1 ? j + I8_COLS : n1);
    }
}
