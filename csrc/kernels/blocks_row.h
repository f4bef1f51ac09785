/* blocks_row.h: one row of x on a packed weight in blocks, which is read as it lies and widened in registers: decoding.
 *
 * Formula, order, rounding and edges are linear.h's; with `integers` those of integers.h.
 * Cost:     the weight is read from memory once, front to back; of float32 some panels side by side for chains enough. A
 *           value of float32 takes a mask, a subtraction, a product and an fma: two vectors of products a vector of weights,
 *           which on many processors is what limits it. Integers take a shift and a mask a pair, and half a multiply-add.
 * Oracle:   llorch.reference.linear and linear_int16. Tests: tests/kernels/test_blocks.py.
 */
#ifndef LL_BLOCKS_ROW_H
#define LL_BLOCKS_ROW_H

#include "blocks.h"
#include "finish.h"

/* The four bytes at p as an integer. */
LL_INLINE int32_t blocks_word(const float *p)
{
    int32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

/* A row of x as integers.h has it: pairs of 16 bits [K / 2] (or digits, blocks_digits.h), then of each sub-block the sum
 * [K / sub], then the scale of each block. */
LL_INLINE size_t integers_sums(size_t K) { return K / 2; }
LL_INLINE size_t integers_scales(size_t K, size_t sub) { return K / 2 + K / sub; }
LL_INLINE size_t integers_row(size_t K, size_t sub) { return integers_scales(K, sub) + (K + LL_BLOCK - 1) / LL_BLOCK; }

/* Panels at once. Integers take one after the other: the weight is then a single stream, which processors foresee by
 * themselves, and comes as fast as memory can be read, where four streams come at two thirds of that (measured; so do
 * streams within a panel, and calls by hand for a single one). Two chains of a sub-block, whose sums are exact, keep the
 * products busy. Float32 is too slow to wait for memory, and has a chain a panel: four, or with 16 registers, of which the
 * compiler keeps too few for so many, two (measured: faster by 8 to 40 %). */
#define BLOCKS_PANELS(integers) ((integers) ? 1 : LL_VL == 8 ? 2 : TILE_MOST_PANELS)

/* Chains of a sub-block, side by side. Of 4 bits and more a chain has the pairs of one place in their words, times 2^place:
 * that they stay there saves a shift a pair and costs one a chain. Its sums stay below 2^31: |x| is below 2^15, and what a
 * sub-block has at the highest such place, 2^8, is below 2^16 (4 values of 6 bits, 8 of 5 bits or of 4). Of 2 bits there
 * are too few of one place. */
#define BLOCKS_CHAINS 4
#define BLOCKS_PLACED(format) (ll_formats[format].low == 4)
#define BLOCKS_CHAIN(format, j) (BLOCKS_PLACED(format) ? (j) % 4 : (j) % 2)

/* How far ahead of itself each panel is called for, in bytes, into the second cache: calls into the first one wait for places
 * there (measured: two thirds of the speed). 3072 reaches nine tenths of it. A single one, which isn't called for where vectors
 * have 16 lanes, is with 8: processors that have no wider ones foresee less (measured on a Zen 3: Q8_0 3 to 14 % faster, 4 bits
 * 19 to 30 %). */
#define BLOCKS_CALLS(P) ((P) > 1 || LL_VL == 8)
#define BLOCKS_AHEAD(P) ((size_t)((P) > 1 ? 8192 : 4096))

/* Vectors of columns of some panels at most; scales of a K-quant's group in one. Those are made where the group begins: where
 * they lie and how far they are shifted are then constants, and no product waits for them (measured: one row on Q6_K in 0.8 of
 * the time). */
#define BLOCKS_VECTORS (TILE_MOST_PANELS * TILE_PANEL_VECTORS)
#define BLOCKS_SUBS (LL_BLOCK_VALUES / LL_SUB_VALUES)

/* P panels from column n on, at `panel`. x: [K] float32, or the row of integers. Format and P are constants. */
LL_INLINE void blocks_row(const ll_linear_args *a, const float *x, const char *panel, size_t n, size_t P, int format,
                          int integers)
{
    const size_t V = P * TILE_PANEL_VECTORS, K = a->weight.K, sub = ll_formats[format].sub, subs = LL_RUN / sub;
    const size_t bytes = ll_panel_bytes(K, format), run_bytes = ll_run_bytes(format);
    const int minimum = ll_formats[format].minimum, at_once = ll_formats[format].values == LL_BLOCK_VALUES;
    const linear_place place = {.args = a, .n = n, .first = 1, .last = 1};
    vf y[BLOCKS_VECTORS], group_D[BLOCKS_SUBS * BLOCKS_VECTORS], group_M[BLOCKS_SUBS * BLOCKS_VECTORS];
    linear_begin(&place, 1, V, y);
    for (size_t k = 0; k < K; ) {
        const blocks_group g = blocks_at(panel, k, K, format);
        for (size_t v = 0; at_once && v < V; v++)
            blocks_scales(g.head + v / TILE_PANEL_VECTORS * bytes, v % TILE_PANEL_VECTORS * LL_VL, format, group_D + v,
                          group_M + v, V);
        while (k < g.first + g.values) {
            const size_t stop = ll_least(k + LL_BLOCK, g.first + g.values), block = k / LL_BLOCK;
            vf p[BLOCKS_VECTORS];
            LL_UNROLL
            for (size_t v = 0; v < V; v++)
                p[v] = vf_zero();
            for (; k < stop; k += LL_RUN) {
                const size_t run = (k - g.first) / LL_RUN;
                const char *from = g.runs + run * run_bytes;
                /* behind these panels' ends are the next ones */
                const size_t ahead = BLOCKS_AHEAD(P) + (from + BLOCKS_AHEAD(P) < panel + bytes ? 0 : (P - 1) * bytes);
                for (size_t v = 0; BLOCKS_CALLS(P) && v < V; v += TILE_PANEL_VECTORS)
                    for (size_t line = 0; line < run_bytes; line += 64)
                        __builtin_prefetch(from + v / TILE_PANEL_VECTORS * bytes + line + ahead, 0, 2);
                BLOCKS_UNROLL(2)
                for (size_t s = 0; s < subs; s++) {
                    const size_t at = run * subs + s;
                    vf D[BLOCKS_VECTORS], M[BLOCKS_VECTORS];
                    LL_UNROLL
                    for (size_t v = 0; v < V; v++)
                        if (!at_once) {
                            blocks_scale(g.head + v / TILE_PANEL_VECTORS * bytes, at, v % TILE_PANEL_VECTORS * LL_VL, format,
                                         &D[v], &M[v]);
                        } else {
                            D[v] = group_D[at * V + v];
                            if (minimum)
                                M[v] = group_M[at * V + v];
                        }
                    if (integers) {
                        const float *sum = x + integers_sums(K) + k / sub + s;
                        vi S[BLOCKS_CHAINS * BLOCKS_PANELS(1) * TILE_PANEL_VECTORS];
                        const size_t chains = BLOCKS_PLACED(format) ? 4 : 2;
                        LL_UNROLL
                        for (size_t v = 0; v < chains * V; v++)
                            S[v] = minimum || v >= V ? vi_zero() : vi_set1(blocks_word(sum));
                        BLOCKS_UNROLL(16)
                        for (size_t j = s * sub / 2; j < (s + 1) * sub / 2; j++) {
                            const vi xs = vi_set1(blocks_word(x + k / 2 + j));
                            LL_UNROLL
                            for (size_t v = 0; v < V; v++) {
                                const char *q = from + v / TILE_PANEL_VECTORS * bytes + v % TILE_PANEL_VECTORS * sizeof(vi);
                                vi *const chain = S + BLOCKS_CHAIN(format, j) * V + v;
                                const vi w = BLOCKS_PLACED(format) ? blocks_pair_placed(q, (unsigned)j, format)
                                                                   : blocks_pair(q, (unsigned)j, format);
                                *chain = vi_dot_chain(*chain, xs, w);
                            }
                        }
                        LL_UNROLL
                        for (size_t v = V; v < chains * V; v++) {
                            const unsigned place = BLOCKS_PLACED(format) ? blocks_place((unsigned)(v / V), format) : 0;
                            S[v % V] = vi_add(S[v % V], place ? vi_sar(S[v], place) : S[v]);
                        }
                        LL_UNROLL
                        for (size_t v = 0; v < V; v++) {
                            p[v] = vf_fma(vi_to_vf(S[v]), D[v], p[v]);
                            if (minimum)
                                p[v] = vf_fma(vf_set1(*sum), M[v], p[v]);
                        }
                    } else {
                        BLOCKS_UNROLL(32)
                        for (size_t i = s * sub; i < (s + 1) * sub; i++) {
                            const vf xs = vf_set1(x[k + i]);
                            LL_UNROLL
                            for (size_t v = 0; v < V; v++) {
                                const char *q = from + v / TILE_PANEL_VECTORS * bytes + v % TILE_PANEL_VECTORS * sizeof(vi);
                                const vf w = blocks_integer(q, (unsigned)i, format);
                                p[v] = vf_fma(xs, minimum ? vf_fma(D[v], w, M[v]) : vf_mul(D[v], w), p[v]);
                            }
                        }
                    }
                }
            }
            const vf scale = vf_set1(integers ? x[integers_scales(K, sub) + block] : 0.0f);
            LL_UNROLL
            for (size_t v = 0; v < V; v++)
                y[v] = integers ? vf_fma(p[v], scale, y[v]) : vf_add(y[v], p[v]);
        }
    }
    linear_end(&place, 1, V, y);
}

/* Panels [begin, end), some at a time. */
LL_INLINE void blocks_rows(const ll_linear_args *a, const float *x, size_t begin, size_t end, int format, int integers)
{
    const size_t bytes = ll_panel_bytes(a->weight.K, format);
    while (begin < end) {
        const char *panel = (const char *)a->weight.data + begin * bytes;
        if (end - begin >= BLOCKS_PANELS(integers)) {
            blocks_row(a, x, panel, begin * LL_PANEL, BLOCKS_PANELS(integers), format, integers);
            begin += BLOCKS_PANELS(integers);
        } else {
            blocks_row(a, x, panel, begin * LL_PANEL, 1, format, integers);
            begin++;
        }
    }
}

#endif
