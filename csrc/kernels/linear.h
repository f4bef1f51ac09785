/* linear.h: y = activation(x @ weight + bias) + residual, x [M, K], weight [K, N].
 *
 *   y[m, n] = dot128(x[m, :], weight[:, n], bias[n])      (tile.h; init +0 without bias)
 *
 * Order:    of k only, blocks of 128. What is computed first, in which tile and by which thread is free.
 * Rounding: dot128; the activation is correctly rounded; the residual is one add; 16-bit results are rounded once,
 *           at the very end.
 * Edges:    K = 0 gives the bias. A NaN or infinity stays in its own row (of x) or column (of weight).
 * Cost:     weight is read from memory once for every BLOCK_ROWS rows of x, y is written once. x is copied into tiles
 *           [K][R] first, so that a tile reads one sequence; weights that are not packed, or have 16 bits and meet several
 *           tiles, go through a buffer of panels in the second cache. Few rows (one tile) widen 16 bits in registers, and
 *           read a plain weight as it lies, strip by strip. A tile takes more panels when it has fewer rows, so that
 *           there are always enough chains.
 * Oracle:   llorch.reference.linear. Tests: tests/test_linear.py.
 */
#include "tile.h"
#include "table.h"
#include "unary.h"

/* Rows of k that a block of the weight has in the first cache. */
#define DEPTH (LL_VL == 16 ? 128 : 256)
/* Rows of x and panels whose sums stay in the second cache, beside the rows' values of DEPTH k, while k goes on. */
#define BLOCK_ROWS 120
#define PANEL_GROUP 4

/* ---- rows of x in tiles ------------------------------------------------------------------------ */

static size_t LL_SYMBOL(linear_tiles)(size_t M) { return tiles_of(M); }

/* Tiles [begin, end) of x: tile i, of R rows from row m on, is [K][R] float32 at packed + m * K. */
static void LL_SYMBOL(linear_pack_x)(const ll_linear_args *a, float *packed, size_t begin, size_t end)
{
    const size_t tiles = tiles_of(a->M), K = a->K;
    for (size_t tile = begin; tile < end; tile++) {
        size_t m = tile_row(tile, tiles, a->M), R = tile_row(tile + 1, tiles, a->M) - m;
        size_t k0 = 0;
        /* Transposed squares, each stored over the unused end of the one before; the last values one by one, as
         * what lies behind them is another thread's. */
        if (LL_VL >= LL_TILE_ROWS)
            for (; k0 + 2 * LL_VL <= K; k0 += LL_VL) {
                vf square[LL_VL];
                LL_UNROLL
                for (size_t r = 0; r < LL_VL; r++)
                    square[r] = r < R ? row_load((const char *)a->x + (ptrdiff_t)(m + r) * a->x_stride, k0, a->dtype)
                                      : vf_zero();
                vf_transpose(square);
                LL_UNROLL
                for (size_t l = 0; l < LL_VL; l++)
                    vf_store(packed + m * K + (k0 + l) * R, square[l]);
            }
        for (size_t r = 0; r < R; r++) {
            const char *x = (const char *)a->x + (ptrdiff_t)(m + r) * a->x_stride;
            float *to = packed + m * K + r;
            for (size_t k = k0; k < K; k += LL_VL) {
                float v[LL_VL];
                size_t count = least(LL_VL, K - k);
                vf_store(v, row_load_n(x, k, count, a->dtype));
                for (size_t l = 0; l < count; l++)
                    to[(k + l) * R] = v[l];
            }
        }
    }
}

/* ---- one tile ---------------------------------------------------------------------------------- */

/* A tile's place in the product, and the part of the weight that is at hand. */
typedef struct linear_part {
    const ll_linear_args *args;
    const float *x;     /* [kc][R] */
    const char *b;      /* [panel][.][16] of dtype, panels b_panel values apart */
    size_t b_panel, kc;
    const char *ahead;  /* where the tile calls for the next part of the weight, */
    size_t ahead_k, ahead_panel; /* how far it goes in a step of k, and from panel to panel (bytes) */
    size_t m, n;        /* the tile's first row and column */
    int first, last;    /* of the parts along k */
    int again;          /* another tile is finished on these panels next */
    float *sums;        /* y between the parts: [.][16] from the tile's first row on, panels sums_panel values apart */
    size_t sums_panel;
} linear_part;

/* What comes after the sum: columns [n, n + count) of a row of y, at most two vectors. */
LL_NOINLINE void finish(const ll_linear_args *a, vf v[2], ptrdiff_t row, size_t n, size_t count)
{
    if (a->activation == LL_LINEAR_GELU)
        ll_gelu_vp(v);
    else if (a->activation == LL_LINEAR_GELU_TANH)
        ll_gelu_tanh_vp(v);
    else if (a->activation == LL_LINEAR_SILU)
        ll_silu_vp(v);
    if (a->residual) {
        vf residual[2];
        pair_load((const char *)a->residual + row * a->residual_stride, n, n + count, a->dtype, residual);
        v[0] = vf_add(v[0], residual[0]);
        v[1] = vf_add(v[1], residual[1]);
    }
    pair_store((char *)a->y + row * a->y_stride, n, n + count, a->dtype, v);
}

/* Where vector i of a tile [R][V] waits. */
LL_INLINE float *tile_sum(const linear_part *t, size_t V, size_t i)
{
    return t->sums + i % V / PANEL_VECTORS * t->sums_panel + i / V * LL_PANEL + i % PANEL_VECTORS * LL_VL;
}

LL_INLINE void tile_part(const linear_part *t, size_t R, size_t P, int dtype)
{
    const size_t V = P * PANEL_VECTORS, N = t->args->N;
    const ll_linear_args *a = t->args;
    const int whole = t->n + V * LL_VL <= N; /* no column past N: constant loops, which keep to registers */
    vf y[LL_TILE_ROWS * LL_TILE_PANELS * PANEL_VECTORS];
    if (!t->first) {
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++)
            y[i] = vf_load(tile_sum(t, V, i));
    } else if (!a->bias) {
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++)
            y[i] = vf_zero();
    } else {
        for (size_t v = 0; v < V; v++) {
            size_t n = t->n + v * LL_VL, count = n < N ? least(LL_VL, N - n) : 0;
            vf bias = count ? row_load_n((const char *)a->bias, n, count, LL_F32) : vf_zero();
            for (size_t r = 0; r < R; r++)
                y[r * V + v] = bias;
        }
    }
    char *to = (char *)a->y + (ptrdiff_t)t->m * a->y_stride + t->n * ll_dtype_size(a->dtype);
    if (t->again) /* the next tile's rows of y lie far apart, no processor guesses that they are needed */
        for (size_t r = R; r < 2 * R; r++)
            __builtin_prefetch(to + (ptrdiff_t)r * a->y_stride, 1, 3);

    tile_dot(R, V, PANEL_VECTORS, t->x, 1, R, t->b, LL_PANEL, t->b_panel, dtype, t->kc, t->ahead, t->ahead_k, t->ahead_panel,
             y);

    if (!t->last) {
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++)
            vf_store(tile_sum(t, V, i), y[i]);
    } else if (whole && a->dtype == LL_F32 && !a->activation && !a->residual) {
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++)
            vf_store(to + (ptrdiff_t)(i / V) * a->y_stride + i % V * LL_VL * sizeof(float), y[i]);
    } else {
        for (size_t r = 0; r < R; r++)
            for (size_t v = 0; v < V; v += 2) {
                const int two = v + 1 < V;
                const size_t n = t->n + v * LL_VL;
                vf pair[2] = {y[r * V + v], two ? y[r * V + v + 1] : vf_zero()};
                if (n < N)
                    finish(a, pair, (ptrdiff_t)(t->m + r), n, least(two ? 2 * LL_VL : LL_VL, N - n));
            }
    }
}

/* R rows on `panels` panels, as many at a time as R rows take. */
LL_INLINE void tile_panels(const linear_part *part, size_t R, size_t panels, int dtype)
{
    linear_part t = *part;
    const size_t together = PANELS(R);
    while (panels) {
        size_t taken = panels >= together ? together : 1;
        if (taken == together)
            tile_part(&t, R, together, dtype);
        else
            tile_part(&t, R, 1, dtype);
        panels -= taken;
        t.n += taken * LL_PANEL;
        t.b += taken * t.b_panel * ll_dtype_size(dtype);
        t.sums += taken * t.sums_panel;
    }
}

#define LL_DEFINE(R, type, dtype) \
    LL_NOINLINE void tile_##R##_##type(const linear_part *t, size_t panels) { tile_panels(t, R, panels, dtype); }
#define LL_DEFINE_ROWS(R) LL_DEFINE(R, f32, LL_F32) LL_DEFINE(R, f16, LL_F16) LL_DEFINE(R, bf16, LL_BF16)
#define LL_ROW(R) {tile_##R##_f32, tile_##R##_f16, tile_##R##_bf16}
typedef void (*tile_function)(const linear_part *, size_t panels);
LL_DEFINE_ROWS(1)
LL_DEFINE_ROWS(2)
#if LL_TILE_ROWS > 2
LL_DEFINE_ROWS(3)
LL_DEFINE_ROWS(4)
LL_DEFINE_ROWS(5)
LL_DEFINE_ROWS(6)
#endif
#if LL_TILE_ROWS > 6
LL_DEFINE_ROWS(7)
LL_DEFINE_ROWS(8)
LL_DEFINE_ROWS(9)
LL_DEFINE_ROWS(10)
LL_DEFINE_ROWS(11)
LL_DEFINE_ROWS(12)
#endif
static const tile_function tile_functions[LL_TILE_ROWS][LL_DTYPES] = {
    LL_ROW(1), LL_ROW(2),
#if LL_TILE_ROWS > 2
    LL_ROW(3), LL_ROW(4), LL_ROW(5), LL_ROW(6),
#endif
#if LL_TILE_ROWS > 6
    LL_ROW(7), LL_ROW(8), LL_ROW(9), LL_ROW(10), LL_ROW(11), LL_ROW(12),
#endif
};
#undef LL_DEFINE
#undef LL_DEFINE_ROWS
#undef LL_ROW

/* ---- panels of the weight ------------------------------------------------------------------------ */

/* How many rows ahead the next are called for: they lie in other pages, where no processor looks for them. */
#define WEIGHT_AHEAD 16

/* `panels` panels from column n on, of a weight whose rows are contiguous: rows [k, k + kc) as [panel][kc][16] of dtype,
 * panels to_panel values apart. Every column there is < N. */
LL_INLINE void gather_rows(const ll_linear_args *a, int from, size_t n, size_t panels, size_t k, size_t kc, int dtype,
                           char *to, size_t to_panel)
{
    const char *row = (const char *)a->weight + (ptrdiff_t)k * a->weight_k + n * ll_dtype_size(from);
    for (size_t i = 0; i < kc; i++, row += a->weight_k)
        for (size_t p = 0; p < panels; p++) {
            __builtin_prefetch(row + WEIGHT_AHEAD * a->weight_k + p * LL_PANEL * ll_dtype_size(from), 0, 3);
            LL_UNROLL
            for (size_t j = 0; j < LL_PANEL; j += LL_VL)
                row_store(to, p * to_panel + i * LL_PANEL + j, row_load(row, p * LL_PANEL + j, from), dtype);
        }
}

/* One panel of a weight at any strides: rows [k, k + kc) as [kc][16]; columns past N are zero. */
LL_INLINE void gather_panel(const ll_linear_args *a, int from, size_t n, size_t k, size_t kc, int dtype, char *to)
{
    const size_t size = ll_dtype_size(from), columns = least(LL_PANEL, a->N - n);
    const char *w = (const char *)a->weight + (ptrdiff_t)n * a->weight_n + (ptrdiff_t)k * a->weight_k;
    size_t i = 0;
    if (a->weight_k == (ptrdiff_t)size && columns == LL_PANEL) /* columns lie in rows: transpose squares */
        for (; i + LL_VL <= kc; i += LL_VL)
            for (size_t j = 0; j < LL_PANEL; j += LL_VL) {
                vf square[LL_VL];
                LL_UNROLL
                for (size_t l = 0; l < LL_VL; l++)
                    square[l] = row_load(w + (ptrdiff_t)(j + l) * a->weight_n, i, from);
                vf_transpose(square);
                LL_UNROLL
                for (size_t l = 0; l < LL_VL; l++)
                    row_store(to, (i + l) * LL_PANEL + j, square[l], dtype);
            }
    for (; i < kc; i++) /* what is left, value by value */
        for (size_t j = 0; j < LL_PANEL; j += LL_VL) {
            float values[LL_VL] = {0.0f};
            for (size_t l = 0; l < LL_VL && j + l < columns; l++)
                vf_store_n(values + l, row_load_n(w + (ptrdiff_t)i * a->weight_k + (ptrdiff_t)(j + l) * a->weight_n, 0, 1, from), 1);
            row_store(to, i * LL_PANEL + j, vf_load(values), dtype);
        }
}

/* The same for several panels, by whichever way the weight lies. The types are constants. */
LL_INLINE void gather(const ll_linear_args *a, int from, size_t panel, size_t panels, size_t k, size_t kc, int dtype,
                      char *to, size_t to_panel)
{
    size_t p = 0;
    if (a->weight_n == (ptrdiff_t)ll_dtype_size(from)) {
        p = panel + panels <= a->N / LL_PANEL ? panels : panels - 1;
        gather_rows(a, from, panel * LL_PANEL, p, k, kc, dtype, to, to_panel);
    }
    for (; p < panels; p++)
        gather_panel(a, from, (panel + p) * LL_PANEL, k, kc, dtype, to + p * to_panel * ll_dtype_size(dtype));
}

/* Panels [begin, end) of a weight, packed as dtype. */
static void LL_SYMBOL(linear_pack)(const ll_linear_args *a, int dtype, char *packed, size_t begin, size_t end)
{
    const size_t to_panel = a->K * LL_PANEL;
    for (size_t panel = begin; panel < end; panel += PANEL_GROUP) {
        const size_t panels = least(PANEL_GROUP, end - panel);
        char *to = packed + panel * to_panel * ll_dtype_size(dtype);
#define LL_CASE(in, out) \
    if (a->weight_dtype == in && dtype == out) \
        gather(a, in, panel, panels, 0, a->K, out, to, to_panel);
        LL_CASE(LL_F32, LL_F32) LL_CASE(LL_F32, LL_F16) LL_CASE(LL_F32, LL_BF16)
        LL_CASE(LL_F16, LL_F32) LL_CASE(LL_F16, LL_F16) LL_CASE(LL_F16, LL_BF16)
        LL_CASE(LL_BF16, LL_F32) LL_CASE(LL_BF16, LL_F16) LL_CASE(LL_BF16, LL_BF16)
#undef LL_CASE
    }
}

/* ---- a range of tiles on a range of panels --------------------------------------------------------- */

/* Rows [k, k + kc) of `panels` panels from `panel` on, as float32 [panel][kc][16] in room. */
LL_INLINE void fetch_panels(const ll_linear_args *a, size_t panel, size_t panels, size_t k, size_t kc, float *room)
{
    const size_t size = ll_dtype_size(a->weight_dtype), to_panel = kc * LL_PANEL;
#define LL_CASE(type) \
    if (a->weight_dtype == type && !a->packed) \
        gather(a, type, panel, panels, k, kc, LL_F32, (char *)room, to_panel); \
    else if (a->weight_dtype == type) \
        for (size_t p = 0; p < panels; p++) { \
            const char *packed = (const char *)a->weight + ((panel + p) * a->K + k) * LL_PANEL * size; \
            for (size_t j = 0; j < to_panel; j += LL_VL) \
                vf_store(room + p * to_panel + j, row_load(packed, j, type)); \
        }
    LL_CASE(LL_F32) LL_CASE(LL_F16) LL_CASE(LL_BF16)
#undef LL_CASE
}

/* Few rows of x on a weight whose rows are contiguous: nothing is copied. A strip of columns keeps its chains and sums
 * in the first caches while some rows of the weight stream past it at a time. */
#define STRIP 512
/* Rows of the weight that R rows take at a time: their chains are fetched and put back once for so many. Vectors of
 * columns: chains enough, and no more than registers. */
#define FEW_STEP(R) ((R) > 6 ? 16 : 8)
#define FEW_VECTORS(R) ((R) <= 2 || 2 * (R) > LL_TILE_ROWS * LL_TILE_PANELS * LL_PANEL / LL_VL ? 1 : 2)

/* p[r] = fma(x[i, r], w[i], p[r]) for i < steps, V vectors of columns; count is of a single vector that isn't whole. */
LL_INLINE void few_rows_vectors(const vf *xs, const float *x, size_t R, size_t V, const char *row, ptrdiff_t stride,
                                size_t steps, size_t count, int type, float *p)
{
    vf v[LL_TILE_ROWS * 2];
    LL_UNROLL
    for (size_t i = 0; i < R * V; i++)
        v[i] = vf_load(p + i / V * STRIP + i % V * LL_VL);
    LL_UNROLL
    for (size_t i = 0; i < steps; i++, row += stride) {
        vf w[2];
        for (size_t line = 0; line < V * LL_VL * ll_dtype_size(type); line += 64)
            __builtin_prefetch(row + FEW_STEP(R) * stride + line, 0, 3);
        LL_UNROLL
        for (size_t j = 0; j < V; j++)
            w[j] = count == LL_VL ? row_load(row, j * LL_VL, type) : row_load_n(row, 0, count, type);
        LL_UNROLL
        for (size_t r = 0; r < R; r++) {
            vf xr = R <= 2 ? xs[i * R + r] : vf_set1(x[i * R + r]);
            LL_UNROLL
            for (size_t j = 0; j < V; j++)
                v[r * V + j] = vf_fma(xr, w[j], v[r * V + j]);
        }
    }
    LL_UNROLL
    for (size_t i = 0; i < R * V; i++)
        vf_store(p + i / V * STRIP + i % V * LL_VL, v[i]);
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
        few_rows_vectors(xs, x, R, 1, row + j * size, stride, steps, least(LL_VL, columns - j), type, p + j);
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
typedef void (*few_function)(const float *x, const char *row, ptrdiff_t stride, size_t steps, size_t columns, float *p);
LL_DEFINE(1, f16, LL_F16) LL_DEFINE(1, bf16, LL_BF16) LL_DEFINE(2, f16, LL_F16) LL_DEFINE(2, bf16, LL_BF16)
LL_DEFINE(1, f32, LL_F32) LL_DEFINE(2, f32, LL_F32)
#if LL_TILE_ROWS > 2
LL_DEFINE(3, f32, LL_F32) LL_DEFINE(4, f32, LL_F32) LL_DEFINE(5, f32, LL_F32) LL_DEFINE(6, f32, LL_F32)
#endif
#if LL_TILE_ROWS > 6
LL_DEFINE(7, f32, LL_F32) LL_DEFINE(8, f32, LL_F32) LL_DEFINE(9, f32, LL_F32)
LL_DEFINE(10, f32, LL_F32) LL_DEFINE(11, f32, LL_F32) LL_DEFINE(12, f32, LL_F32)
#endif
static const few_function few_functions[LL_TILE_ROWS][LL_DTYPES] = {
    {few_1_f32, few_1_f16, few_1_bf16}, {few_2_f32, few_2_f16, few_2_bf16},
#if LL_TILE_ROWS > 2
    {few_3_f32}, {few_4_f32}, {few_5_f32}, {few_6_f32},
#endif
#if LL_TILE_ROWS > 6
    {few_7_f32}, {few_8_f32}, {few_9_f32}, {few_10_f32}, {few_11_f32}, {few_12_f32},
#endif
};
#undef LL_DEFINE

/* Tiles [tile_begin, tile_end) on columns [begin, end). */
LL_NOINLINE void few_rows(const ll_linear_args *a, const float *x, size_t tile_begin, size_t tile_end, size_t begin,
                          size_t end)
{
    _Alignas(64) float p[LL_FEW_ROWS * STRIP], y[LL_FEW_ROWS * STRIP];
    const size_t M = a->M, K = a->K, tiles = tiles_of(M), size = ll_dtype_size(a->weight_dtype);
    const size_t first = tile_row(tile_begin, tiles, M), stop = tile_row(tile_end, tiles, M);
    const size_t step = FEW_STEP(tile_row(1, tiles, M)); /* of the tile with the most rows, which is the first */
    for (size_t n = begin; n < end; n += STRIP) {
        const size_t columns = least(STRIP, end - n), padded = (columns + 2 * LL_VL - 1) / (2 * LL_VL) * (2 * LL_VL);
        for (size_t m = first; m < stop; m++) {
            memset(y + m * STRIP, 0, padded * sizeof *y);
            if (a->bias)
                memcpy(y + m * STRIP, a->bias + n, columns * sizeof *y);
        }
        for (size_t k = 0; k < K; k += LL_BLOCK) {
            const size_t kc = least(LL_BLOCK, K - k);
            memset(p + first * STRIP, 0, (stop - first) * STRIP * sizeof *p);
            for (size_t i = 0; i < kc; i += step) /* the rows of the weight are in the first cache for all tiles */
                for (size_t tile = tile_begin; tile < tile_end; tile++) {
                    const size_t m = tile_row(tile, tiles, M), R = tile_row(tile + 1, tiles, M) - m;
                    few_functions[R - 1][a->weight_dtype](
                        x + m * K + (k + i) * R, (const char *)a->weight + (ptrdiff_t)(k + i) * a->weight_k + n * size,
                        a->weight_k, least(step, kc - i), columns, p + m * STRIP);
                }
            for (size_t m = first; m < stop; m++)
                for (size_t j = m * STRIP; j < m * STRIP + padded; j += LL_VL)
                    vf_store(y + j, vf_add(vf_load(y + j), vf_load(p + j)));
        }
        for (size_t m = first; m < stop; m++)
            for (size_t j = 0; j < columns; j += 2 * LL_VL) {
                vf pair[2] = {vf_load(y + m * STRIP + j), vf_load(y + m * STRIP + j + LL_VL)};
                finish(a, pair, (ptrdiff_t)m, n + j, least(2 * LL_VL, columns - j));
            }
    }
}

/* x: the tiles of linear_pack_x. */
static void LL_SYMBOL(linear)(const ll_linear_args *a, const float *x, size_t tile_begin, size_t tile_end,
                              size_t panel_begin, size_t panel_end)
{
    _Alignas(64) float room[PANEL_GROUP * DEPTH * LL_PANEL];
    _Alignas(64) float sums[PANEL_GROUP * BLOCK_ROWS * LL_PANEL];
    const size_t tiles = tiles_of(a->M), K = a->K, size = ll_dtype_size(a->weight_dtype);
    const int by_rows = !a->packed && a->weight_n == (ptrdiff_t)size;
    if (ll_few_rows(a)) {
        few_rows(a, x, tile_begin, tile_end, panel_begin * LL_PANEL, least(panel_end * LL_PANEL, a->N));
        return;
    }
    /* blocks of tiles as even as can be: each reads the weight once more */
    const size_t blocks = (tile_end - tile_begin + BLOCK_ROWS / LL_TILE_ROWS - 1) / (BLOCK_ROWS / LL_TILE_ROWS);
    const size_t block_tiles = (tile_end - tile_begin + blocks - 1) / blocks;
    for (size_t block = tile_begin; block < tile_end; block += block_tiles) {
        const size_t block_end = least(block + block_tiles, tile_end), count = block_end - block;
        const size_t m = tile_row(block, tiles, a->M), rows = tile_row(block_end, tiles, a->M) - m;
        const int direct = a->packed && (count == 1 || a->weight_dtype == LL_F32);
        const size_t depth = count == 1 && direct ? K : DEPTH;
        const size_t together = PANELS(tile_row(block + 1, tiles, a->M) - m);
        for (size_t panel = panel_begin; panel < panel_end; panel += PANEL_GROUP) {
            const size_t panels = least(PANEL_GROUP, panel_end - panel);
            size_t k = 0;
            do {
                const size_t kc = least(depth, K - k);
                const int last = k + kc == K;
                if (!direct)
                    fetch_panels(a, panel, panels, k, kc, room);
                for (size_t p = 0; p < panels; p += together) {
                    const char *packed = (const char *)a->weight + ((panel + p) * K + k) * LL_PANEL * size;
                    linear_part part = {.args = a, .kc = kc, .n = (panel + p) * LL_PANEL, .first = k == 0, .last = last,
                                        .b = direct ? packed : (const char *)(room + p * kc * LL_PANEL),
                                        .b_panel = (direct ? K : kc) * LL_PANEL, .ahead = (const char *)x,
                                        .sums_panel = rows * LL_PANEL, .m = m};
                    part.sums = sums + p * part.sums_panel;
                    if (direct && count > 1) { /* the tiles share the calls for what comes after */
                        const ptrdiff_t whole = (ptrdiff_t)(K * LL_PANEL * size), in = (ptrdiff_t)(k * LL_PANEL * size);
                        part.ahead = p + together < panels ? packed + (ptrdiff_t)together * whole
                                     : !last ? packed - (ptrdiff_t)p * whole + (ptrdiff_t)(kc * LL_PANEL * size)
                                     : panel + PANEL_GROUP < panel_end ? packed + (ptrdiff_t)(PANEL_GROUP - p) * whole - in
                                                                 : packed;
                        part.ahead_k = LL_PANEL * size / count;
                        part.ahead_panel = (size_t)whole;
                    }
                    const size_t now = least(together, panels - p);
                    if (!direct) { /* the same panels of the next part; of plain rows the first tile alone, a line each */
                        const size_t k_next = last ? 0 : k + kc, next = panel + p + (last ? PANEL_GROUP : 0);
                        if (by_rows) {
                            part.ahead = (const char *)a->weight + (ptrdiff_t)k_next * a->weight_k + next * LL_PANEL * size;
                            part.ahead_k = (size_t)a->weight_k;
                            part.ahead_panel = LL_PANEL * size;
                        } else if (a->packed) {
                            part.ahead = (const char *)a->weight + (next * K + k_next) * LL_PANEL * size;
                            part.ahead_k = LL_PANEL * size / count;
                            part.ahead_panel = K * LL_PANEL * size;
                        }
                    }
                    for (size_t tile = block; tile < block_end; tile++) {
                        const size_t R = tile_row(tile + 1, tiles, a->M) - part.m;
                        part.x = x + part.m * K + k * R;
                        part.again = tile + 1 < block_end && last;
                        tile_functions[R - 1][direct ? a->weight_dtype : LL_F32](&part, now);
                        part.m += R;
                        part.sums += R * LL_PANEL;
                        if (by_rows)
                            part.ahead = (const char *)x, part.ahead_k = part.ahead_panel = 0;
                        part.ahead += part.ahead_k * kc;
                    }
                }
                k += depth;
            } while (k < K);
        }
    }
}
