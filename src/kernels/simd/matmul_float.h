/* Template: y = x . W^T for W in F32, BF16 or F16, row-major. Each output is one chain of FMAs per
 * lane along k and one fixed tree over the lanes: the tile it is computed in does not matter.
 *
 * A tile is up to MM_ROWS rows of x by 4 rows of w. Columns are taken in blocks whose weights stay
 * in L2 while all rows of x pass by. */

enum {
    MM_COLS = 4,
    MM_X_BLOCK_BYTES = 256 << 10, /* rows of x that stay in L2 while columns pass by */
    MM_PREFETCH_BYTES = 4096
};

ST_INLINE size_t mm_size(st_dtype dtype)
{
    return dtype == ST_F32 ? 4 : 2;
}

/* acc[i][j] over all of k. */
ST_INLINE void mm_accumulate(st_dtype dtype, int mr, int nr, vf acc[MM_ROWS][MM_COLS],
                             const float *x, size_t ldx, const char *w, size_t ldw, int k,
                             size_t ahead)
{
    int i0 = 0;
    for (; i0 + VL <= k; i0 += VL) {
        vf xv[MM_ROWS];
        ST_UNROLL
        for (int i = 0; i < mr; i++)
            xv[i] = vf_load(x + (size_t)i * ldx + i0);
        ST_UNROLL
        for (int j = 0; j < nr; j++) {
            const char *row = w + (size_t)j * ldw;
            vf wv = vf_load_as(dtype, row, (size_t)i0);
            if (mr == 1)
                __builtin_prefetch(row + (size_t)i0 * mm_size(dtype) + ahead);
            ST_UNROLL
            for (int i = 0; i < mr; i++)
                acc[i][j] = vf_fma(xv[i], wv, acc[i][j]);
        }
    }
    if (i0 == k)
        return;
    for (int j = 0; j < nr; j++) {
        vf wv = vf_load_as_n(dtype, w + (size_t)j * ldw, (size_t)i0, k - i0);
        for (int i = 0; i < mr; i++)
            acc[i][j] = vf_fma(vf_load_n(x + (size_t)i * ldx + i0, k - i0), wv, acc[i][j]);
    }
}

ST_INLINE void mm_tile(st_dtype dtype, int mr, int nr, float *y, size_t ldy, const float *x,
                       size_t ldx, const char *w, size_t ldw, int k, size_t ahead)
{
    vf acc[MM_ROWS][MM_COLS];
    ST_UNROLL
    for (int i = 0; i < mr; i++)
        ST_UNROLL
    for (int j = 0; j < MM_COLS; j++)
        acc[i][j] = vf_zero();
    mm_accumulate(dtype, mr, nr, acc, x, ldx, w, ldw, k, ahead);
    ST_UNROLL
    for (int i = 0; i < mr; i++) {
        __m128 s = vf_sum4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
        if (nr == MM_COLS) {
            _mm_storeu_ps(y + (size_t)i * ldy, s);
        } else {
            float t[MM_COLS];
            _mm_storeu_ps(t, s);
            for (int j = 0; j < nr; j++)
                y[(size_t)i * ldy + (size_t)j] = t[j];
        }
    }
}

/* mr rows of x, all columns [n0, n1). */
ST_INLINE void mm_strip(st_dtype dtype, int mr, float *y, size_t ldy, const float *x, size_t ldx,
                        const st_matrix *w, int n0, int n1)
{
    size_t ldw = (size_t)w->k * mm_size(dtype);
    /* Short rows: fetch the next tile's rows; long ones: further along the same row. */
    size_t ahead = MM_COLS * ldw <= 4 * MM_PREFETCH_BYTES ? MM_COLS * ldw : MM_PREFETCH_BYTES / 2;
    const char *data = (const char *)w->data;
    int j = n0;
    for (; j + MM_COLS <= n1; j += MM_COLS)
        mm_tile(dtype, mr, MM_COLS, y + j, ldy, x, ldx, data + (size_t)j * ldw, ldw, w->k, ahead);
    for (; j < n1; j++)
        mm_tile(dtype, mr, 1, y + j, ldy, x, ldx, data + (size_t)j * ldw, ldw, w->k, ahead);
}

/* A block of x rows by four (or fewer) columns: the weights' rows stay in L1. */
ST_INLINE void mm_columns(st_dtype dtype, float *y, size_t ldy, const float *x, size_t ldx, int m,
                          const st_matrix *w, int n0, int n1)
{
    int i = 0;
    for (; i + MM_ROWS <= m; i += MM_ROWS)
        mm_strip(dtype, MM_ROWS, y + (size_t)i * ldy, ldy, x + (size_t)i * ldx, ldx, w, n0, n1);
    y += (size_t)i * ldy;
    x += (size_t)i * ldx;
    switch (m - i) {
#if MM_ROWS > 3
    case 5:
        mm_strip(dtype, 5, y, ldy, x, ldx, w, n0, n1);
        break;
    case 4:
        mm_strip(dtype, 4, y, ldy, x, ldx, w, n0, n1);
        break;
    case 3:
        mm_strip(dtype, 3, y, ldy, x, ldx, w, n0, n1);
        break;
#endif
    case 2:
        mm_strip(dtype, 2, y, ldy, x, ldx, w, n0, n1);
        break;
    case 1:
        mm_strip(dtype, 1, y, ldy, x, ldx, w, n0, n1);
        break;
    default:
        break;
    }
}

ST_INLINE void mm_run(st_dtype dtype, float *y, size_t ldy, const float *x, size_t ldx, int m,
                      const st_matrix *w, int n0, int n1)
{
    if (m <= MM_ROWS) {
        mm_columns(dtype, y, ldy, x, ldx, m, w, n0, n1);
        return;
    }
    int rows = MM_X_BLOCK_BYTES / 4 / (w->k > 0 ? w->k : 1) / MM_ROWS * MM_ROWS;
    rows = rows < MM_ROWS ? MM_ROWS : rows;
    for (int i = 0; i < m; i += rows) {
        int count = m - i < rows ? m - i : rows;
        for (int j = n0; j < n1; j += MM_COLS)
            mm_columns(dtype, y + (size_t)i * ldy, ldy, x + (size_t)i * ldx, ldx, count, w, j,
                       j + MM_COLS < n1 ? j + MM_COLS : n1);
    }
}

static void st_simd_matmul_f(float *y, size_t ldy, const float *x, size_t ldx, int m,
                             const st_matrix *w, int n0, int n1)
{
    if (w->dtype == ST_F32)
        mm_run(ST_F32, y, ldy, x, ldx, m, w, n0, n1);
    else if (w->dtype == ST_BF16)
        mm_run(ST_BF16, y, ldy, x, ldx, m, w, n0, n1);
    else
        mm_run(ST_F16, y, ldy, x, ldx, m, w, n0, n1);
}
