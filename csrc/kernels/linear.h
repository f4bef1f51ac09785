/* linear.h: y = activation(x @ weight + bias) + residual, x [M, K], weight [K, N].
 *
 *   y[m, n] = dot128(x[m, :], weight[:, n], bias[n])      (tile.h; init +0 without bias)
 *
 * Order:    of k only, blocks of 128. What is computed first, in which tile and by which thread is free.
 * Rounding: dot128; the activation is correctly rounded; the residual is one add; 16-bit results are rounded once,
 *           at the very end.
 * Edges:    K = 0 gives the bias. A NaN or infinity stays in its own row (of x) or column (of weight).
 * Cost:     weight is read from memory once for every BLOCK rows of x. x is copied into tiles [K][R] first, so that
 *           a tile reads one sequence; weights that are not packed, or have 16 bits and meet several tiles, go
 *           through a buffer of panels in the second cache. Few rows (one tile) widen 16 bits in registers.
 *           A tile takes more panels when it has fewer rows, so that there are always enough chains.
 * Oracle:   llorch.reference.linear. Tests: tests/test_linear.py.
 */
#include "tile.h"
#include "table.h"

/* Rows of k that a block of the weight has in the first cache. */
#define DEPTH (LL_VL == 16 ? 128 : 256)
/* Bytes of packed x that stay in the second cache while the weight streams by; rows of x in one go. */
#define NEAR_BYTES (256 * 1024)
#define BLOCK_ROWS 252

/* ---- rows of x in tiles ------------------------------------------------------------------------ */

static size_t LL_SYMBOL(linear_tiles)(size_t M) { return tiles_of(M); }

/* Tiles [begin, end) of x: tile i, of R rows from row m on, is [K][R] float32 at packed + m * K. */
static void LL_SYMBOL(linear_pack_x)(const ll_linear_args *a, float *packed, size_t begin, size_t end)
{
    const size_t tiles = tiles_of(a->M), K = a->K;
    for (size_t tile = begin; tile < end; tile++) {
        size_t m = tile_row(tile, tiles, a->M), R = tile_row(tile + 1, tiles, a->M) - m;
        for (size_t r = 0; r < R; r++) {
            const char *x = (const char *)a->x + (ptrdiff_t)(m + r) * a->x_stride;
            float *to = packed + m * K + r;
            for (size_t k = 0; k < K; k += LL_VL) {
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
    size_t m, n;        /* the tile's first row and column */
    int first, last;    /* of the parts along k */
    char *sum;          /* [., N] float32, rows sum_stride bytes apart: y between the parts */
    ptrdiff_t sum_stride;
} linear_part;

LL_INLINE vf activate(vf v, int activation)
{
    (void)activation;
    return v;
}

LL_INLINE void tile_part(const linear_part *t, size_t R, size_t P, int dtype)
{
    const size_t V = P * PANEL_VECTORS, N = t->args->N;
    const ll_linear_args *a = t->args;
    vf y[LL_TILE_ROWS * LL_TILE_PANELS * PANEL_VECTORS];
    for (size_t r = 0; r < R; r++)
        for (size_t v = 0; v < V; v++) {
            size_t n = t->n + v * LL_VL, count = n < N ? least(LL_VL, N - n) : 0;
            if (!t->first)
                y[r * V + v] = count ? row_load_n(t->sum + (ptrdiff_t)(t->m + r) * t->sum_stride, n, count, LL_F32) : vf_zero();
            else
                y[r * V + v] = a->bias && count ? row_load_n((const char *)a->bias, n, count, LL_F32) : vf_zero();
        }
    tile_dot(R, V, PANEL_VECTORS, t->x, 1, R, t->b, LL_PANEL, t->b_panel, dtype, t->kc, y);
    for (size_t r = 0; r < R; r++)
        for (size_t v = 0; v < V; v++) {
            size_t n = t->n + v * LL_VL, count = n < N ? least(LL_VL, N - n) : 0;
            if (!count)
                break;
            vf out = y[r * V + v];
            if (!t->last) {
                row_store_n(t->sum + (ptrdiff_t)(t->m + r) * t->sum_stride, n, out, count, LL_F32);
                continue;
            }
            if (a->activation)
                out = activate(out, a->activation);
            if (a->residual)
                out = vf_add(out, row_load_n((const char *)a->residual + (ptrdiff_t)(t->m + r) * a->residual_stride, n, count, a->dtype));
            row_store_n((char *)a->y + (ptrdiff_t)(t->m + r) * a->y_stride, n, out, count, a->dtype);
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

/* Rows [k, k + kc) of `panels` packed 16-bit panels, widened: [panel][kc][16]. */
LL_INLINE void widen_panels(const char *from, size_t from_panel, size_t panels, size_t kc, int dtype, float *to)
{
    for (size_t p = 0; p < panels; p++)
        for (size_t j = 0; j < kc * LL_PANEL; j += LL_VL)
            vf_store(to + p * kc * LL_PANEL + j, row_load(from + p * from_panel * 2, j, dtype));
}

/* Panel values (k, n .. n + 16) of a weight at any strides, k in [k0, k0 + kc), columns past N zero, as `to`
 * [kc][16] of dtype. */
LL_INLINE void gather_panel(const char *weight, int from, ptrdiff_t weight_k, ptrdiff_t weight_n, size_t N, size_t n,
                            size_t k0, size_t kc, int dtype, char *to)
{
    const size_t size = ll_dtype_size(from), columns = least(LL_PANEL, N - n);
    const char *w = weight + (ptrdiff_t)n * weight_n + (ptrdiff_t)k0 * weight_k;
    size_t k = 0;
    if (weight_n == (ptrdiff_t)size && columns == LL_PANEL) {
        for (; k < kc; k++)
            LL_UNROLL
            for (size_t j = 0; j < LL_PANEL; j += LL_VL)
                row_store(to, k * LL_PANEL + j, row_load(w + (ptrdiff_t)k * weight_k, j, from), dtype);
        return;
    }
    if (weight_k == (ptrdiff_t)size && columns == LL_PANEL) /* columns lie in rows: transpose squares */
        for (; k + LL_VL <= kc; k += LL_VL)
            for (size_t j = 0; j < LL_PANEL; j += LL_VL) {
                vf square[LL_VL];
                LL_UNROLL
                for (size_t i = 0; i < LL_VL; i++)
                    square[i] = row_load(w + (ptrdiff_t)(j + i) * weight_n, k, from);
                vf_transpose(square);
                LL_UNROLL
                for (size_t i = 0; i < LL_VL; i++)
                    row_store(to, (k + i) * LL_PANEL + j, square[i], dtype);
            }
    for (; k < kc; k++) /* what is left, value by value */
        for (size_t j = 0; j < LL_PANEL; j += LL_VL) {
            float values[LL_VL] = {0.0f};
            for (size_t i = 0; i < LL_VL && j + i < columns; i++)
                vf_store_n(values + i, row_load_n(w + (ptrdiff_t)k * weight_k + (ptrdiff_t)(j + i) * weight_n, 0, 1, from), 1);
            row_store(to, k * LL_PANEL + j, vf_load(values), dtype);
        }
}

static void LL_SYMBOL(linear_pack)(const ll_linear_args *a, int dtype, char *packed, size_t begin, size_t end)
{
    const size_t size = ll_dtype_size(dtype);
    for (size_t panel = begin; panel < end; panel++) {
        char *to = packed + panel * a->K * LL_PANEL * size;
        /* the types as constants: three that come in, three that are kept */
#define LL_CASE(in, out) \
    if (a->weight_dtype == in && dtype == out) \
        gather_panel(a->weight, in, a->weight_k, a->weight_n, a->N, panel * LL_PANEL, 0, a->K, out, to);
        LL_CASE(LL_F32, LL_F32) LL_CASE(LL_F32, LL_F16) LL_CASE(LL_F32, LL_BF16)
        LL_CASE(LL_F16, LL_F32) LL_CASE(LL_F16, LL_F16) LL_CASE(LL_F16, LL_BF16)
        LL_CASE(LL_BF16, LL_F32) LL_CASE(LL_BF16, LL_F16) LL_CASE(LL_BF16, LL_BF16)
#undef LL_CASE
    }
}

/* ---- a range of tiles on a range of panels --------------------------------------------------------- */

/* x: the tiles of linear_pack_x. sum: [M, N] float32 for what y can't hold between parts of k, or NULL: y can. */
static void LL_SYMBOL(linear)(const ll_linear_args *a, const float *x, float *sum, size_t tile_begin, size_t tile_end,
                              size_t panel_begin, size_t panel_end)
{
    _Alignas(64) float room[MOST_PANELS * DEPTH * LL_PANEL];
    const size_t tiles = tiles_of(a->M), K = a->K, block_tiles = BLOCK_ROWS / LL_TILE_ROWS;
    const size_t size = ll_dtype_size(a->weight_dtype);
    linear_part part = {.args = a, .sum = sum ? (char *)sum : (char *)a->y,
                        .sum_stride = sum ? (ptrdiff_t)(a->N * sizeof(float)) : a->y_stride};
    for (size_t block = tile_begin; block < tile_end; block += block_tiles) {
        const size_t block_end = least(block + block_tiles, tile_end);
        const size_t m = tile_row(block, tiles, a->M), rows = tile_row(block_end, tiles, a->M) - m;
        const int alone = block_end - block == 1;
        const int direct = a->packed && (alone || a->weight_dtype == LL_F32);
        const size_t depth = alone && direct ? K : DEPTH;
        const size_t wide = rows * K * sizeof(float) <= NEAR_BYTES ? K : depth;
        const size_t most = tile_row(block + 1, tiles, a->M) - m;
        const size_t together = a->packed ? PANELS(most) : MOST_PANELS;
        size_t kw = 0;
        do {
            for (size_t panel = panel_begin; panel < panel_end; panel += together) {
                const size_t panels = least(together, panel_end - panel);
                size_t k = kw;
                do {
                    const char *packed = (const char *)a->weight + (panel * K + k) * LL_PANEL * size;
                    part.kc = least(depth, K - k);
                    part.n = panel * LL_PANEL;
                    part.first = k == 0;
                    part.last = k + part.kc == K;
                    part.b = direct ? packed : (const char *)room;
                    part.b_panel = (direct ? K : part.kc) * LL_PANEL;
                    if (!direct && a->packed) {
                        if (a->weight_dtype == LL_F16)
                            widen_panels(packed, K * LL_PANEL, panels, part.kc, LL_F16, room);
                        else
                            widen_panels(packed, K * LL_PANEL, panels, part.kc, LL_BF16, room);
                    } else if (!direct) {
                        for (size_t p = 0; p < panels; p++) {
                            char *to = (char *)(room + p * part.b_panel);
                            size_t n = (panel + p) * LL_PANEL;
                            if (a->weight_dtype == LL_F32)
                                gather_panel(a->weight, LL_F32, a->weight_k, a->weight_n, a->N, n, k, part.kc, LL_F32, to);
                            else if (a->weight_dtype == LL_F16)
                                gather_panel(a->weight, LL_F16, a->weight_k, a->weight_n, a->N, n, k, part.kc, LL_F32, to);
                            else
                                gather_panel(a->weight, LL_BF16, a->weight_k, a->weight_n, a->N, n, k, part.kc, LL_F32, to);
                        }
                    }
                    for (size_t tile = block; tile < block_end; tile++) {
                        part.m = tile_row(tile, tiles, a->M);
                        const size_t R = tile_row(tile + 1, tiles, a->M) - part.m;
                        part.x = x + part.m * K + k * R;
                        tile_functions[R - 1][direct ? a->weight_dtype : LL_F32](&part, panels);
                    }
                    k += depth;
                } while (k < least(kw + wide, K));
            }
            kw += wide;
        } while (kw < K);
    }
}
