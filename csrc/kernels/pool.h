/* pool.h: what makes a sentence's embedding of its positions: their mean, and a row divided by its length.
 *
 *   mean_pool:  m_j = sum64 over t of x_{t,j}, divided by T        the rows t of a sequence x [T, n]
 *   normalize:  Q = sum64(x * x)      r = sqrt(Q)      y_j = x_j / max(r, 1e-12)
 *
 * Order:    sum64. Of the mean each column is a sum of its own: lane t mod 64 adds its rows in order of t, starting at +0;
 *           then the halving tree. A lane past T is +0 and changes none (none is ever -0): it is left out.
 * Rounding: adds, and one division a value. Squares go into their sum by fma; the root is rounded to float32. 16-bit
 *           results are rounded once more.
 * Edges:    a NaN or infinity of x shows in its column's mean; a NaN makes its row NaN in normalize. An infinity divides
 *           the finite values of its row to 0 and is NaN itself; so do squares that overflow divide to 0. Rows shorter than
 *           1e-12, of zeros too, are divided by 1e-12. n = 0: nothing to do. y of normalize may be x.
 * Cost:     x is read once for the mean, twice for a length, from the first cache then.
 * Oracle:   llorch.reference.mean_pool and normalize. Tests: tests/kernels/test_pool.py.
 */
#include "../isa/vec.h"
#include "norm.h"
#include "table.h"

/* Columns [j, j + m) of the mean of T >= 1 rows. */
LL_INLINE void pool_columns(const char *x, ptrdiff_t stride, size_t T, char *y, size_t j, size_t m, int dtype)
{
    vf p[LL_LANES];
    size_t lanes = ll_least(T, LL_LANES);
    for (size_t t = 0; t < lanes; t++)
        p[t] = vf_add(vf_zero(), row_load_n(x + (ptrdiff_t)t * stride, j, m, dtype));
    for (size_t t = LL_LANES; t < T; t++)
        p[t % LL_LANES] = vf_add(p[t % LL_LANES], row_load_n(x + (ptrdiff_t)t * stride, j, m, dtype));
    for (size_t h = LL_LANES / 2; h > 0; h /= 2) {
        for (size_t l = 0; l + h < lanes; l++)
            p[l] = vf_add(p[l], p[l + h]);
        lanes = ll_least(lanes, h);
    }
    row_store_n(y, j, vf_div(p[0], vf_set1((float)T)), m, dtype);
}

LL_INLINE void pool_sequence(const char *x, ptrdiff_t stride, size_t T, char *y, size_t n, int dtype)
{
    size_t j = 0;
    for (; j + LL_VL <= n; j += LL_VL)
        pool_columns(x, stride, T, y, j, LL_VL, dtype);
    if (j < n)
        pool_columns(x, stride, T, y, j, n - j, dtype);
}

/* Sequences [begin, end). */
static void LL_SYMBOL(mean_pool)(const ll_pool_args *a, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++) {
        const size_t first = (size_t)a->starts[i] + a->skip, T = (size_t)a->starts[i + 1] - first;
        const char *x = (const char *)a->x + (ptrdiff_t)first * a->x_stride;
        char *y = (char *)a->y + (ptrdiff_t)i * a->y_stride;
        if (a->dtype == LL_F32)
            pool_sequence(x, a->x_stride, T, y, a->n, LL_F32);
        else if (a->dtype == LL_F16)
            pool_sequence(x, a->x_stride, T, y, a->n, LL_F16);
        else
            pool_sequence(x, a->x_stride, T, y, a->n, LL_BF16);
    }
}

LL_INLINE void normalize_row(const char *x, char *y, size_t n, int dtype)
{
    float Q, r;
    size_t j = 0;
    norm_pass_squares(x, n, 0.0f, 0, NULL, &Q, dtype, NULL);
    r = sqrtf(Q);
    const vf length = vf_set1(r < 1e-12f ? 1e-12f : r); /* a NaN stays */
    for (; j + LL_VL <= n; j += LL_VL)
        row_store(y, j, vf_div(row_load(x, j, dtype), length), dtype);
    if (j < n)
        row_store_n(y, j, vf_div(row_load_n(x, j, n - j, dtype), length), n - j, dtype);
}

static void LL_SYMBOL(normalize)(const ll_normalize_args *a, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++) {
        const char *x = (const char *)a->x + (ptrdiff_t)i * a->x_stride;
        char *y = (char *)a->y + (ptrdiff_t)i * a->y_stride;
        if (a->dtype == LL_F32)
            normalize_row(x, y, a->n, LL_F32);
        else if (a->dtype == LL_F16)
            normalize_row(x, y, a->n, LL_F16);
        else
            normalize_row(x, y, a->n, LL_BF16);
    }
}
