/* tile.h: the inner product of everything, dot128, on a tile of R rows and V vectors of columns.
 *
 *   y[r, n] = y[r, n] + p[r, n] for every block of 128 consecutive k, in order,
 *   p[r, n] = fma(a[r, k], b[k, n], p[r, n]) for the k of the block, in order, from +0
 *
 * Order:    one chain of fma an element and block; a tile is many chains side by side and never splits one.
 * Rounding: the fma, and one add a block.
 * Edges:    K = 0: y stays what it was. Values of b beside a tile's last column may be anything finite or not:
 *           a lane never sees its neighbour.
 * Cost:     R + V loads for R * V fma; y goes through the first cache once in 128 k.
 * Oracle:   llorch.reference.dot128. Tests: tests/kernels/test_linear.py, test_attention.py.
 *
 * Who calls it: kernels/linear.h (b packed into panels) and kernels/attention.h (b: packed keys; values,
 * packed or as they lie).
 */
#ifndef LL_TILE_H
#define LL_TILE_H

#include "../isa/vec.h"

/* Vectors of a panel; the most panels at once (chains enough for one row; 8 streams from memory are a tenth slower than
 * 4); how many panels R rows take together. */
#define TILE_PANEL_VECTORS (LL_PANEL / LL_VL)
#define TILE_MOST_PANELS (LL_VL == 4 ? 2 : 4)
#define TILE_PANELS(R) \
    (LL_TILE_ROWS * LL_TILE_PANELS / (R) < TILE_MOST_PANELS ? LL_TILE_ROWS * LL_TILE_PANELS / (R) : TILE_MOST_PANELS)

/* Whether there is room: 32 registers, each a panel's row. Then tiles widen a weight beside their products, as what that takes has
 * other ports of processors meanwhile. With 16 registers that is up to a sixth slower than to widen before all tiles (measured with
 * AVX2 on a Zen 4). */
#define TILE_ROOMY (LL_VL == 16)
_Static_assert(!TILE_ROOMY || TILE_PANEL_VECTORS == 1, "tiles that widen take a panel's row for a vector");

/* Tiles of M rows. */
LL_INLINE size_t tile_count(size_t M) { return (M + LL_TILE_ROWS - 1) / LL_TILE_ROWS; }

/* X(1) X(2) .. for every number of rows that a tile may have. */
#if LL_TILE_ROWS == 2
#define LL_EACH_ROWS(X) X(1) X(2)
#elif LL_TILE_ROWS == 6
#define LL_EACH_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6)
#elif LL_TILE_ROWS == 12
#define LL_EACH_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#else
#error "LL_EACH_ROWS: which numbers of rows?"
#endif

/* Bytes ahead at which 16-bit values, which come straight from memory, are called for: fewer of them than of float32
 * are on their way by the loads alone, as each takes more instructions. Half a block of a panel. */
#define TILE_AHEAD ((size_t)(LL_BLOCK / 2 * LL_PANEL * 2))

/* Vector v of a row of k at b: of the first row of a pair, or the second. */
LL_ALWAYS_INLINE vf tile_load(const char *b, size_t v, size_t panel, size_t b_panel, size_t second, int dtype)
{
    b += v / panel * b_panel * ll_dtype_size(dtype);
    if (dtype != LL_BF16)
        return row_load(b, v % panel * LL_VL, dtype);
    b += v % panel * LL_VL * 4;
    return second ? vf_load_second(b) : vf_load_first(b);
}

/* p += a * b for one k. */
LL_ALWAYS_INLINE void tile_row_fma(size_t R, size_t V, size_t panel, const float *a, size_t a_row, const char *b,
                                   size_t b_panel, size_t second, int dtype, vf *p)
{
    /* the smaller of the two sides waits in registers, or there are too few of them */
    if (R < V) {
        vf x[LL_TILE_ROWS];
        LL_UNROLL
        for (size_t r = 0; r < R; r++)
            x[r] = vf_set1(a[r * a_row]);
        LL_UNROLL
        for (size_t v = 0; v < V; v++) {
            vf w = tile_load(b, v, panel, b_panel, second, dtype);
            LL_UNROLL
            for (size_t r = 0; r < R; r++)
                p[r * V + v] = vf_fma(x[r], w, p[r * V + v]);
        }
    } else {
        vf w[8];
        LL_UNROLL
        for (size_t v = 0; v < V; v++)
            w[v] = tile_load(b, v, panel, b_panel, second, dtype);
        LL_UNROLL
        for (size_t r = 0; r < R; r++) {
            vf x = vf_set1(a[r * a_row]);
            LL_UNROLL
            for (size_t v = 0; v < V; v++)
                p[r * V + v] = vf_fma(x, w[v], p[r * V + v]);
        }
    }
}

/* p += a * b for one k, or two of bfloat16, which lie together: a step of tile_fma, which begins at k. */
LL_ALWAYS_INLINE void tile_step(size_t R, size_t V, size_t panel, const float *a, size_t a_row, size_t a_k, const char *b,
                                size_t b_panel, int dtype, size_t k, size_t lines, const char *ahead, size_t ahead_panel,
                                size_t stream, vf *p)
{
    LL_UNROLL
    for (size_t i = 0; i < lines; i++)
        __builtin_prefetch(ahead + i * ahead_panel, 0, 2);
    if (dtype != LL_F32 && V > panel && k % 2 == 0) /* a single stream is foreseen */
        for (size_t v = 0; v < V; v += panel)
            __builtin_prefetch(b + (v / panel) * b_panel * ll_dtype_size(dtype) + stream, 0, 2);
    tile_row_fma(R, V, panel, a, a_row, b, b_panel, 0, dtype, p);
    if (dtype == LL_BF16)
        tile_row_fma(R, V, panel, a + a_k, a_row, b, b_panel, 1, dtype, p);
}

/* p += a * b over kc values of k, kc at most what is left of a block of 128.
 *   a      value (r, k) is a[r * a_row + k * a_k]
 *   b      vector v of row k is at b + k * b_k + (v / panel) * b_panel + (v % panel) * LL_VL, counted in values of
 *          dtype, which widen exactly; panel is how many vectors lie side by side. bfloat16 is in pairs of k (llorch.h)
 *   ahead  what will be read later and is called for into the second cache, ahead_k bytes on for every k: `lines` lines,
 *          ahead_panel bytes apart
 *   stream how far ahead of itself b is called for, in bytes, where dtype has 16 bits; into the second cache, as calls into the
 *          first wait for places there (measured: a tenth slower)
 * R, V, panel, dtype and lines are constants wherever this is called: p then stays in registers. */
LL_ALWAYS_INLINE void tile_loop(size_t R, size_t V, size_t panel, const float *a, size_t a_row, size_t a_k, const char *b,
                                size_t b_k, size_t b_panel, int dtype, size_t kc, size_t lines, const char *ahead,
                                size_t ahead_k, size_t ahead_panel, size_t stream, vf *p)
{
    const size_t rows = dtype == LL_BF16 ? 2 : 1; /* that lie together */
    const size_t a_step = rows * a_k, b_step = rows * b_k * ll_dtype_size(dtype), ahead_step = rows * ahead_k;
    size_t k = 0;
    /* A long step goes by itself: of several clang loads all first, into more registers than there are. With vectors of 8 four
     * go together, and nothing is loaded before its step: instructions are what limits them where a core has another thread
     * (measured on a Zen 3: 7 to 14 % faster). */
    if (R > (LL_VL == 16 ? 3 : 2) && LL_VL != 8) {
        for (; k + rows <= kc; k += rows, a += a_step, b += b_step, ahead += ahead_step)
            tile_step(R, V, panel, a, a_row, a_k, b, b_panel, dtype, k, lines, ahead, ahead_panel, stream, p);
    } else {
        LL_UNROLL_BY(4)
        for (; k + rows <= kc; k += rows, a += a_step, b += b_step, ahead += ahead_step) {
            tile_step(R, V, panel, a, a_row, a_k, b, b_panel, dtype, k, lines, ahead, ahead_panel, stream, p);
            if (LL_VL == 8 && R > 2)
                LL_MEMORY();
        }
    }
    if (k < kc) /* the last of an odd K */
        tile_row_fma(R, V, panel, a, a_row, b, b_panel, 0, dtype, p);
}

/* The same. Under a sanitizer R and V are no constants: the usual tiles have loops of their own there, for which they are. Most of
 * the tests' time would be in the one for all. */
LL_INLINE_HOT void tile_fma(size_t R, size_t V, size_t panel, const float *a, size_t a_row, size_t a_k, const char *b,
                            size_t b_k, size_t b_panel, int dtype, size_t kc, size_t lines, const char *ahead, size_t ahead_k,
                            size_t ahead_panel, size_t stream, vf *p)
{
#ifdef LL_SANITIZE
#define LL_CASE(R, V) \
        case R: \
            tile_loop(R, V, TILE_PANEL_VECTORS, a, a_row, a_k, b, b_k, b_panel, LL_F32, kc, lines, ahead, ahead_k, ahead_panel, \
                      stream, p); \
            return;
#define LL_USUAL(R) LL_CASE(R, TILE_PANELS(R) * TILE_PANEL_VECTORS)
#define LL_SINGLE(R) LL_CASE(R, TILE_PANEL_VECTORS)
    if (V == TILE_PANELS(R) * TILE_PANEL_VECTORS && panel == TILE_PANEL_VECTORS && dtype == LL_F32)
        switch (R) {
        LL_EACH_ROWS(LL_USUAL)
        }
    if (V == TILE_PANEL_VECTORS && panel == TILE_PANEL_VECTORS && dtype == LL_F32)
        switch (R) {
        LL_EACH_ROWS(LL_SINGLE)
        }
#undef LL_CASE
#undef LL_USUAL
#undef LL_SINGLE
#endif
    tile_loop(R, V, panel, a, a_row, a_k, b, b_k, b_panel, dtype, kc, lines, ahead, ahead_k, ahead_panel, stream, p);
}

/* p = the block of dot128 that begins at k, of K values of k: its products' sums, from +0. */
LL_INLINE void tile_part(size_t R, size_t V, size_t panel, const float *a, size_t a_row, size_t a_k, const char *b,
                         size_t b_k, size_t b_panel, int dtype, size_t k, size_t K, size_t lines, const char *ahead,
                         size_t ahead_k, size_t ahead_panel, vf *p)
{
    const float *ak = a + k * a_k;
    const char *bk = b + k * b_k * ll_dtype_size(dtype), *next = ahead + k * ahead_k;
    LL_UNROLL
    for (size_t i = 0; i < R * V; i++)
        p[i] = vf_zero();
    if (K - k == LL_BLOCK && dtype != LL_F32 && V > panel) { /* what comes after these panels' ends are the next ones */
        const size_t half = LL_BLOCK / 2, ends = TILE_AHEAD + (V / panel - 1) * b_panel * ll_dtype_size(dtype);
        tile_fma(R, V, panel, ak, a_row, a_k, bk, b_k, b_panel, dtype, half, lines, next, ahead_k, ahead_panel, TILE_AHEAD, p);
        next += half * ahead_k;
        ak += half * a_k;
        bk += half * b_k * ll_dtype_size(dtype);
        tile_fma(R, V, panel, ak, a_row, a_k, bk, b_k, b_panel, dtype, half, lines, next, ahead_k, ahead_panel, ends, p);
    } else if (K - k >= LL_BLOCK) { /* a constant length: fewer branches, and one that is foreseen */
        tile_fma(R, V, panel, ak, a_row, a_k, bk, b_k, b_panel, dtype, LL_BLOCK, lines, next, ahead_k, ahead_panel, TILE_AHEAD, p);
    } else {
        tile_fma(R, V, panel, ak, a_row, a_k, bk, b_k, b_panel, dtype, K - k, lines, next, ahead_k, ahead_panel, TILE_AHEAD, p);
    }
}

/* y += dot128 over K values of k that begin at a boundary of blocks: y [R * V] vectors, in memory. */
LL_INLINE void tile_dot(size_t R, size_t V, size_t panel, const float *a, size_t a_row, size_t a_k, const char *b,
                        size_t b_k, size_t b_panel, int dtype, size_t K, vf *y)
{
    for (size_t k = 0; k < K; k += LL_BLOCK) {
        vf p[LL_TILE_ROWS * LL_TILE_PANELS * LL_PANEL / LL_VL];
        tile_part(R, V, panel, a, a_row, a_k, b, b_k, b_panel, dtype, k, K, 0, b, 0, 0, p);
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++)
            y[i] = vf_add(y[i], p[i]);
    }
}

#endif
