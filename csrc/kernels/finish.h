/* finish.h: what comes before the sums of a product, and after them: y = activation(sum) + residual, for all that makes
 * products. The activation comes first, of as many sums as lie together; then the rest, two vectors at a time.
 *
 * Rounding: the activation is correctly rounded; the residual is one add; 16 bits are rounded once, at the very end.
 */
#ifndef LL_FINISH_H
#define LL_FINISH_H

#include "tile.h"
#include "unary.h"

/* sums [n] become activation(sums); what lies beside the last column is anything, and is not looked at later. */
LL_INLINE void linear_activate(const ll_linear_args *a, void *sums, size_t n)
{
    if (a->activation)
        unary_float32[a->activation](sums, sums, n);
}

/* Columns [n, n + count) of a row of y, at most two vectors, which the activation has been applied to. */
LL_NOINLINE void linear_finish(const ll_linear_args *a, vf v[2], ptrdiff_t row, size_t n, size_t count)
{
    if (a->residual) {
        vf residual[2];
        pair_load((const char *)a->residual + row * a->residual_stride, n, n + count, a->dtype, residual);
        v[0] = vf_add(v[0], residual[0]);
        v[1] = vf_add(v[1], residual[1]);
    }
    pair_store((char *)a->y + row * a->y_stride, n, n + count, a->dtype, v);
}

/* ---- a tile of R rows and V vectors of columns ------------------------------------------------------- */

/* Its place in the product. */
typedef struct linear_place {
    const ll_linear_args *args;
    size_t m, n;       /* its first row and column */
    int first, last;   /* of the parts along k */
    int again;         /* another tile is finished on these panels next */
    float *sums;       /* y between the parts: [.][16] from the tile's first row on, panels sums_panel values apart */
    size_t sums_panel;
} linear_place;

/* Where vector i of the tile waits. */
LL_INLINE float *linear_sum(const linear_place *t, size_t V, size_t i)
{
    return t->sums + i % V / TILE_PANEL_VECTORS * t->sums_panel + i / V * LL_PANEL + i % TILE_PANEL_VECTORS * LL_VL;
}

/* Vectors of columns of a tile, at most. */
#define LINEAR_MOST (TILE_MOST_PANELS * TILE_PANEL_VECTORS)

LL_INLINE void linear_bias(const linear_place *t, size_t V, vf *bias)
{
    const size_t N = t->args->weight.N;
    const char *from = (const char *)t->args->bias;
    LL_UNROLL
    for (size_t v = 0; v < V; v++) {
        const size_t n = t->n + v * LL_VL, count = from && n < N ? ll_least(LL_VL, N - n) : 0;
        bias[v] = count ? row_load_n(from, n, count, LL_F32) : vf_zero();
    }
}

/* y is the bias, or what the part before has left. */
LL_INLINE void linear_begin(const linear_place *t, size_t R, size_t V, vf *y)
{
    if (!t->first) {
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++)
            y[i] = vf_load(linear_sum(t, V, i));
        return;
    }
    vf bias[LINEAR_MOST];
    linear_bias(t, V, bias);
    LL_UNROLL
    for (size_t i = 0; i < R * V; i++)
        y[i] = bias[i % V];
}

/* p = that + p */
LL_INLINE void linear_add_begin(const linear_place *t, size_t R, size_t V, vf *p)
{
    if (!t->first) {
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++)
            p[i] = vf_add(vf_load(linear_sum(t, V, i)), p[i]);
        return;
    }
    vf bias[LINEAR_MOST];
    linear_bias(t, V, bias);
    LL_UNROLL
    for (size_t i = 0; i < R * V; i++)
        p[i] = vf_add(bias[i % V], p[i]);
}

LL_INLINE char *linear_to(const linear_place *t)
{
    return (char *)t->args->y + (ptrdiff_t)t->m * t->args->y_stride + t->n * ll_dtype_size(t->args->dtype);
}

/* `bytes` of each of R rows. */
LL_INLINE void linear_call_rows(const char *row, ptrdiff_t stride, size_t R, size_t bytes)
{
    for (size_t column = 0; column < bytes; column += 64)
        LL_UNROLL
        for (size_t r = 0; r < R; r++)
            __builtin_prefetch(row + (ptrdiff_t)r * stride + column, 0, 2);
}

/* Calls for the next tile's rows of y, and of what is added to them: they lie far apart, no processor guesses that they are
 * needed. Into the second cache: what this tile still reads would push them out of the first. */
LL_INLINE void linear_call(const linear_place *t, size_t R, size_t V)
{
    const ll_linear_args *a = t->args;
    const size_t size = ll_dtype_size(a->dtype), bytes = V * LL_VL * size, next = t->m + R;
    if (!t->again)
        return;
    linear_call_rows((const char *)a->y + (ptrdiff_t)next * a->y_stride + t->n * size, a->y_stride, R, bytes);
    if (a->residual)
        linear_call_rows((const char *)a->residual + (ptrdiff_t)next * a->residual_stride + t->n * size, a->residual_stride, R,
                         bytes);
}

/* float32 to its place, after the activation: constant loops, which keep to registers. */
LL_INLINE void linear_store(const linear_place *t, size_t R, size_t V, const vf *y)
{
    const ll_linear_args *a = t->args;
    char *to = linear_to(t);
    const ptrdiff_t stride = a->y_stride, residual_stride = a->residual_stride;
    if (a->residual) {
        const char *residual = (const char *)a->residual + (ptrdiff_t)t->m * residual_stride + t->n * sizeof(float);
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++) {
            const vf other = vf_load(residual + (ptrdiff_t)(i / V) * residual_stride + i % V * sizeof(vf));
            vf_store(to + (ptrdiff_t)(i / V) * stride + i % V * sizeof(vf), vf_add(y[i], other));
        }
        return;
    }
    LL_UNROLL
    for (size_t i = 0; i < R * V; i++)
        vf_store(to + (ptrdiff_t)(i / V) * stride + i % V * sizeof(vf), y[i]);
}

/* p to where the next part finds it, or finished to its place. */
LL_INLINE void linear_end(const linear_place *t, size_t R, size_t V, const vf *p)
{
    const ll_linear_args *a = t->args;
    const size_t N = a->weight.N;
    if (!t->last) {
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++)
            vf_store(linear_sum(t, V, i), p[i]);
        return;
    }
    const int inside = t->n + V * LL_VL <= N && a->dtype == LL_F32; /* no column past N */
    if (inside && !a->activation) {
        linear_store(t, R, V, p);
        return;
    }
    vf y[LL_TILE_ROWS * LL_TILE_PANELS * TILE_PANEL_VECTORS];
    LL_UNROLL
    for (size_t i = 0; i < R * V; i++)
        y[i] = p[i];
    linear_activate(a, y, R * V * LL_VL);
    if (inside) {
        linear_store(t, R, V, y);
        return;
    }
    for (size_t r = 0; r < R; r++)
        for (size_t v = 0; v < V; v += 2) {
            const int two = v + 1 < V;
            const size_t n = t->n + v * LL_VL;
            vf pair[2] = {y[r * V + v], two ? y[r * V + v + 1] : vf_zero()};
            if (n < N)
                linear_finish(a, pair, (ptrdiff_t)(t->m + r), n, ll_least(two ? 2 * LL_VL : LL_VL, N - n));
        }
}

#endif
