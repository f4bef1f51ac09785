/* few_rows.h: the product of few rows of x and a weight that isn't packed and whose rows are contiguous: it is read as
 * it lies, nothing is copied.
 *
 * Formula, order, rounding and edges are linear.h's.
 * Cost:     a strip of columns keeps its chains and sums in the first cache while some rows of the weight stream past it
 *           at a time; 16 bits widen in registers.
 * Oracle:   llorch.reference.linear. Tests: tests/kernels/test_linear.py.
 */
#ifndef LL_FEW_ROWS_H
#define LL_FEW_ROWS_H

#include "finish.h"
#include "tile.h"

#define FEW_STRIP 512
/* Rows of the weight that R rows take at a time: their chains are fetched and put back once for so many. Vectors of
 * columns: chains enough, and no more than registers. */
#define FEW_STEP(R) ((R) > 6 ? 16 : 8)
#define FEW_VECTORS(R) ((R) == 2 || 2 * (R) > LL_TILE_ROWS * LL_TILE_PANELS * LL_PANEL / LL_VL ? 1 : 2)

/* v[r] = fma(x[r], w, v[r]): a row of the weight, V vectors of columns; count is of a single vector that isn't whole. */
LL_INLINE void few_rows_row(const vf *xs, const float *x, size_t R, size_t V, const char *row, ptrdiff_t stride, size_t count,
                            int type, vf *v)
{
    vf w[2];
    for (size_t line = 0; line < V * LL_VL * ll_dtype_size(type); line += 64)
        __builtin_prefetch(row + FEW_STEP(R) * stride + line, 0, 3);
    LL_UNROLL
    for (size_t j = 0; j < V; j++)
        w[j] = count == LL_VL ? row_load(row, j * LL_VL, type) : row_load_n(row, 0, count, type);
    LL_UNROLL
    for (size_t r = 0; r < R; r++) {
        vf xr = R <= 2 ? xs[r] : vf_set1(x[r]);
        LL_UNROLL
        for (size_t j = 0; j < V; j++)
            v[r * V + j] = vf_fma(xr, w[j], v[r * V + j]);
    }
}

/* p[r] = fma(x[i, r], w[i], p[r]) for i < steps. */
LL_INLINE void few_rows_vectors(const vf *xs, const float *x, size_t R, size_t V, const char *row, ptrdiff_t stride,
                                size_t steps, size_t count, int type, float *p)
{
    vf v[LL_TILE_ROWS * 2];
    LL_UNROLL
    for (size_t i = 0; i < R * V; i++)
        v[i] = vf_load(p + i / V * FEW_STRIP + i % V * LL_VL);
    const size_t whole = FEW_STEP(R);
    if (steps == whole) {
        LL_UNROLL
        for (size_t i = 0; i < whole; i++)
            few_rows_row(xs + i * R, x + i * R, R, V, row + (ptrdiff_t)i * stride, stride, count, type, v);
    } else {
        for (size_t i = 0; i < steps; i++)
            few_rows_row(xs + i * R, x + i * R, R, V, row + (ptrdiff_t)i * stride, stride, count, type, v);
    }
    LL_UNROLL
    for (size_t i = 0; i < R * V; i++)
        vf_store(p + i / V * FEW_STRIP + i % V * LL_VL, v[i]);
}

LL_INLINE void few_rows_step(const float *x, size_t R, const char *row, ptrdiff_t stride, size_t steps, size_t columns,
                             int type, float *p)
{
    const size_t V = FEW_VECTORS(R), size = ll_dtype_size(type);
    vf xs[2 * FEW_STEP(2)];
    if (R <= 2) /* in registers through the whole strip */
        for (size_t i = 0; i < steps * R; i++)
            xs[i] = vf_set1(x[i]);
    size_t j = 0;
    for (; j + V * LL_VL <= columns; j += V * LL_VL)
        few_rows_vectors(xs, x, R, V, row + j * size, stride, steps, LL_VL, type, p + j);
    for (; j < columns; j += LL_VL)
        few_rows_vectors(xs, x, R, 1, row + j * size, stride, steps, ll_least(LL_VL, columns - j), type, p + j);
}

#define LL_DEFINE(R, type, dtype) \
    LL_NOINLINE void few_##R##_##type(const float *x, const char *row, ptrdiff_t stride, size_t steps, size_t columns, \
                                      float *p) \
    { \
        if (steps == FEW_STEP(R)) /* a constant length: registers */ \
            few_rows_step(x, R, row, stride, FEW_STEP(R), columns, dtype, p); \
        else \
            few_rows_step(x, R, row, stride, steps, columns, dtype, p); \
    }
#define LL_DEFINE_F32(R) LL_DEFINE(R, f32, LL_F32)
#define LL_ROW(R) few_##R##_f32,
typedef void (*few_kernel)(const float *x, const char *row, ptrdiff_t stride, size_t steps, size_t columns, float *p);
LL_EACH_ROWS(LL_DEFINE_F32)
LL_DEFINE(1, f16, LL_F16) LL_DEFINE(2, f16, LL_F16) LL_DEFINE(1, bf16, LL_BF16) LL_DEFINE(2, bf16, LL_BF16)
static const few_kernel few_float32[LL_TILE_ROWS] = {LL_EACH_ROWS(LL_ROW)};
static const few_kernel few_narrow[2][2] = {{few_1_f16, few_2_f16}, {few_1_bf16, few_2_bf16}};
#undef LL_DEFINE
#undef LL_DEFINE_F32
#undef LL_ROW

LL_INLINE few_kernel few_function(size_t R, int format)
{
    return format == LL_F32 ? few_float32[R - 1] : few_narrow[format == LL_BF16][R - 1];
}

/* Tiles [tile_begin, tile_end) on columns [begin, end). */
LL_NOINLINE void few_rows(const ll_linear_args *a, const float *x, size_t tile_begin, size_t tile_end, size_t begin,
                          size_t end)
{
    _Alignas(64) float p[LL_FEW_ROWS * FEW_STRIP], y[LL_FEW_ROWS * FEW_STRIP];
    const ll_weight *w = &a->weight;
    const size_t M = a->M, K = w->K, tiles = tile_count(M), size = ll_dtype_size(w->format);
    const size_t first = ll_tile_row(tile_begin, tiles, M), stop = ll_tile_row(tile_end, tiles, M);
    const size_t step = FEW_STEP(ll_tile_row(1, tiles, M)); /* of the tile with the most rows, which is the first */
    for (size_t n = begin; n < end; n += FEW_STRIP) {
        const size_t columns = ll_least(FEW_STRIP, end - n), padded = (columns + 2 * LL_VL - 1) / (2 * LL_VL) * (2 * LL_VL);
        for (size_t m = first; m < stop; m++) {
            memset(y + m * FEW_STRIP, 0, padded * sizeof *y);
            if (a->bias)
                memcpy(y + m * FEW_STRIP, a->bias + n, columns * sizeof *y);
        }
        for (size_t k = 0; k < K; k += LL_BLOCK) {
            const size_t kc = ll_least(LL_BLOCK, K - k);
            memset(p + first * FEW_STRIP, 0, (stop - first) * FEW_STRIP * sizeof *p);
            for (size_t i = 0; i < kc; i += step) /* the rows of the weight are in the first cache for all tiles */
                for (size_t tile = tile_begin; tile < tile_end; tile++) {
                    const size_t m = ll_tile_row(tile, tiles, M), R = ll_tile_row(tile + 1, tiles, M) - m;
                    few_function(R, w->format)(
                        x + m * K + (k + i) * R, (const char *)w->data + (ptrdiff_t)(k + i) * w->k_stride + n * size,
                        w->k_stride, ll_least(step, kc - i), columns, p + m * FEW_STRIP);
                }
            for (size_t m = first; m < stop; m++)
                for (size_t j = m * FEW_STRIP; j < m * FEW_STRIP + padded; j += LL_VL)
                    vf_store(y + j, vf_add(vf_load(y + j), vf_load(p + j)));
        }
        for (size_t m = first; m < stop; m++) {
            linear_activate(a, y + m * FEW_STRIP, columns);
            for (size_t j = 0; j < columns; j += 2 * LL_VL) {
                vf pair[2] = {vf_load(y + m * FEW_STRIP + j), vf_load(y + m * FEW_STRIP + j + LL_VL)};
                linear_finish(a, pair, (ptrdiff_t)m, n + j, ll_least(2 * LL_VL, columns - j));
            }
        }
    }
}

#endif
