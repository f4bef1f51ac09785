/* pack.h: rows of x as tiles, a weight as panels of 16 columns: what linear.h and few_rows.h read.
 *
 *   tile i of R rows from row m on:  [K][R] float32           panel:  [K][16] of a format, [K / 2][16][2] of bfloat16
 *
 * Order:    none, nothing is added.
 * Rounding: 16 bits widen exactly; a wider weight is rounded once, to nearest even, where it is kept in 16 bits.
 * Edges:    columns past N are zero. A NaN stays one.
 * Cost:     one pass over what is packed. Rows of x, and columns that lie as rows, are transposed in squares of registers.
 * Oracle:   llorch.reference.widen and narrow. Tests: tests/kernels/test_linear.py.
 */
#ifndef LL_PACK_H
#define LL_PACK_H

#include "blocks.h"
#include "table.h"

/* ---- rows of x in tiles ------------------------------------------------------------------------ */

/* How far ahead values of a row are called for, the last of them at the next tile's rows. */
#define PACK_X_AHEAD 64

LL_NOINLINE size_t LL_SYMBOL(pack_tiles)(size_t M) { return tile_count(M); }

/* Tiles [begin, end) of x: tile i, of R rows from row m on, is [K][R] float32 at packed + m * K. */
LL_NOINLINE void LL_SYMBOL(pack_x)(const ll_linear_args *a, float *packed, size_t begin, size_t end)
{
    const size_t tiles = tile_count(a->M), K = a->weight.K;
    for (size_t tile = begin; tile < end; tile++) {
        size_t m = ll_tile_row(tile, tiles, a->M), R = ll_tile_row(tile + 1, tiles, a->M) - m;
        size_t k0 = 0;
        /* Transposed squares, each stored over the unused end of the one before; the last values one by one, as
         * what lies behind them is another thread's. */
        if (LL_VL >= LL_TILE_ROWS)
            for (; k0 + 2 * LL_VL <= K; k0 += LL_VL) {
                vf square[LL_VL];
                /* rows lie far apart: no processor guesses how many are read */
                const size_t on = k0 + PACK_X_AHEAD < K ? 0 : tile + 1 < end ? R : 0;
                const char *next = (const char *)a->x + (ptrdiff_t)(m + on) * a->x_stride
                                   + (k0 + PACK_X_AHEAD - (on ? K : 0)) * ll_dtype_size(a->dtype);
                for (size_t r = 0; r < R; r++)
                    __builtin_prefetch(next + (ptrdiff_t)r * a->x_stride);
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
                size_t count = ll_least(LL_VL, K - k);
                vf_store(v, row_load_n(x, k, count, a->dtype));
                for (size_t l = 0; l < count; l++)
                    to[(k + l) * R] = v[l];
            }
        }
    }
}

/* ---- panels of the weight ------------------------------------------------------------------------ */

/* How many rows ahead the next are called for: they lie in other pages, where no processor looks for them. */
#define PACK_AHEAD 16

/* Vector j of row i of a panel at `to`, i even, and of the row after it; `rows`: 1 where there is none. */
LL_INLINE void panel_store(char *to, size_t i, size_t j, vf first, vf second, size_t rows, int dtype)
{
    if (dtype == LL_BF16) {
        vf_store_pairs(to + (i * LL_PANEL + 2 * j) * sizeof(uint16_t), first, rows == 2 ? second : vf_zero());
        return;
    }
    row_store(to, i * LL_PANEL + j, first, dtype);
    if (rows == 2)
        row_store(to, (i + 1) * LL_PANEL + j, second, dtype);
}

/* `panels` panels from column n on, of a weight whose rows are contiguous: rows [k, k + kc) as [panel][kc][16] of dtype,
 * panels to_panel values apart. Every column there is < N; k is even. */
LL_INLINE void pack_rows(const ll_weight *w, int from, size_t n, size_t panels, size_t k, size_t kc, int dtype,
                         char *to, size_t to_panel)
{
    const char *row = (const char *)w->data + (ptrdiff_t)k * w->k_stride + n * ll_dtype_size(from);
    for (size_t i = 0; i < kc; i += 2, row += 2 * w->k_stride) {
        const size_t rows = ll_least(2, kc - i);
        for (size_t p = 0; p < panels; p++) {
            const char *next = row + PACK_AHEAD * w->k_stride + p * LL_PANEL * ll_dtype_size(from);
            __builtin_prefetch(next, 0, 3);
            __builtin_prefetch(next + w->k_stride, 0, 3);
            LL_UNROLL
            for (size_t j = 0; j < LL_PANEL; j += LL_VL) {
                vf first = row_load(row, p * LL_PANEL + j, from);
                vf second = rows == 2 ? row_load(row + w->k_stride, p * LL_PANEL + j, from) : vf_zero();
                panel_store(to + p * to_panel * ll_dtype_size(dtype), i, j, first, second, rows, dtype);
            }
        }
    }
}

/* One panel of a weight at any strides: rows [k, k + kc) as [kc][16]; columns past N are zero. */
LL_INLINE void pack_panel(const ll_weight *w, int from, size_t n, size_t k, size_t kc, int dtype, char *to)
{
    const size_t size = ll_dtype_size(from), columns = ll_least(LL_PANEL, w->N - n);
    const char *values = (const char *)w->data + (ptrdiff_t)n * w->n_stride + (ptrdiff_t)k * w->k_stride;
    size_t i = 0;
    if (w->k_stride == (ptrdiff_t)size && columns == LL_PANEL) /* columns lie in rows: transpose squares */
        for (; i + LL_VL <= kc; i += LL_VL)
            for (size_t j = 0; j < LL_PANEL; j += LL_VL) {
                vf square[LL_VL];
                LL_UNROLL
                for (size_t l = 0; l < LL_VL; l++)
                    square[l] = row_load(values + (ptrdiff_t)(j + l) * w->n_stride, i, from);
                vf_transpose(square);
                LL_UNROLL
                for (size_t l = 0; l < LL_VL; l += 2)
                    panel_store(to, i + l, j, square[l], square[l + 1], 2, dtype);
            }
    for (; i < kc; i += 2) { /* what is left, value by value */
        const size_t rows = ll_least(2, kc - i);
        for (size_t j = 0; j < LL_PANEL; j += LL_VL) {
            float lane[2][LL_VL] = {{0.0f}};
            for (size_t r = 0; r < rows; r++) {
                const char *row = values + (ptrdiff_t)(i + r) * w->k_stride;
                for (size_t l = 0; l < LL_VL && j + l < columns; l++)
                    vf_store_n(lane[r] + l, row_load_n(row + (ptrdiff_t)(j + l) * w->n_stride, 0, 1, from), 1);
            }
            panel_store(to, i, j, vf_load(lane[0]), vf_load(lane[1]), rows, dtype);
        }
    }
}

/* The same for several panels, by whichever way the weight lies. The types are constants. */
LL_INLINE void pack_panels(const ll_weight *w, int from, size_t panel, size_t panels, size_t k, size_t kc, int dtype,
                           char *to, size_t to_panel)
{
    size_t p = 0;
    if (w->n_stride == (ptrdiff_t)ll_dtype_size(from)) {
        p = panel + panels <= w->N / LL_PANEL ? panels : panels - 1;
        pack_rows(w, from, panel * LL_PANEL, p, k, kc, dtype, to, to_panel);
    }
    for (; p < panels; p++)
        pack_panel(w, from, (panel + p) * LL_PANEL, k, kc, dtype, to + p * to_panel * ll_dtype_size(dtype));
}

/* Panels [begin, end) of a weight, packed as dtype into the first rows of panels of K at `packed`. */
LL_NOINLINE void LL_SYMBOL(pack)(const ll_weight *w, int dtype, char *packed, size_t K, size_t begin, size_t end)
{
    const size_t to_panel = ll_panel_rows(K, dtype) * LL_PANEL;
    for (size_t panel = begin; panel < end; panel += PACK_GROUP) {
        const size_t panels = ll_least(PACK_GROUP, end - panel);
        char *to = packed + panel * to_panel * ll_dtype_size(dtype);
#define LL_CASE(in, out) \
    if (w->format == in && dtype == out) \
        pack_panels(w, in, panel, panels, 0, w->K, out, to, to_panel);
        LL_CASE(LL_F32, LL_F32) LL_CASE(LL_F32, LL_F16) LL_CASE(LL_F32, LL_BF16)
        LL_CASE(LL_F16, LL_F32) LL_CASE(LL_F16, LL_F16) LL_CASE(LL_F16, LL_BF16)
        LL_CASE(LL_BF16, LL_F32) LL_CASE(LL_BF16, LL_F16) LL_CASE(LL_BF16, LL_BF16)
#undef LL_CASE
    }
}

/* kc rows of a packed panel as float32 [kc][16]. */
LL_INLINE void pack_widen(const char *packed, int type, size_t kc, float *room)
{
    if (type != LL_BF16) {
        for (size_t j = 0; j < kc * LL_PANEL; j += LL_VL)
            vf_store(room + j, row_load(packed, j, type));
        return;
    }
    for (size_t k = 0; k < kc; k++) {
        const char *pairs = packed + k / 2 * LL_PANEL * 4;
        LL_UNROLL
        for (size_t v = 0; v < TILE_PANEL_VECTORS; v++)
            vf_store(room + k * LL_PANEL + v * LL_VL, tile_load(pairs, v, TILE_PANEL_VECTORS, 0, k % 2, type));
    }
}

/* Rows [k, k + kc) of `panels` panels from `panel` on, as float32 [panel][kc][16] in room; k is even. */
LL_INLINE void pack_fetch(const ll_weight *w, size_t panel, size_t panels, size_t k, size_t kc, float *room)
{
    const size_t size = ll_dtype_size(w->format), to_panel = kc * LL_PANEL, rows = ll_panel_rows(w->K, w->format);
#define LL_CASE(type) \
    if (w->format == type && !w->packed) \
        pack_panels(w, type, panel, panels, k, kc, LL_F32, (char *)room, to_panel); \
    else if (w->format == type) \
        for (size_t p = 0; p < panels; p++) \
            pack_widen((const char *)w->data + ((panel + p) * rows + k) * LL_PANEL * size, type, kc, room + p * to_panel);
    LL_CASE(LL_F32) LL_CASE(LL_F16) LL_CASE(LL_BF16)
#undef LL_CASE
    if (w->format >= LL_DTYPES)
        for (size_t p = 0; p < panels; p++)
            blocks_wideners[w->format]((const char *)w->data + (panel + p) * ll_panel_bytes(w->K, w->format), w->K, k, kc,
                                       room + p * to_panel);
}

#endif
