/* blocks_digits.h: one row of integers on a packed weight of 4 to 6 bits, where there is a product of bytes: decoding.
 *
 *   q_k = 256 h_k + l_k,  h_k in [-128, 127], l_k in [0, 255]      S = 256 (sum of h_k w_k) + sum of l_k w_k
 *
 * Formula, order, rounding and edges are those of integers.h, whose sums S are exact: how they are made is free.
 * Cost:     as many products as by pairs of 16 bits, of twice as many values each, but twice; two thirds of the shifts and masks,
 *           which are what limits one row where the weight comes from the caches or from fast memory. (Values of 8 bits would
 *           need as many as before.) All is read once, from front to back, scales first. (Measured on a Zen 4, GB/s of the
 *           weight before and now: a core from the second cache Q4_0 34 and 40, Q4_1 36 and 41, Q5_0 29 and 37, Q4_K 27 and 32,
 *           Q6_K 27 and 34; two cores from memory that has 59: 52 and 59, 47 and 61, 50 and 56, 48 and 55, 51 and 56.)
 * Oracle:   llorch.reference.linear_int16. Tests: tests/kernels/test_blocks.py.
 */
#ifndef LL_BLOCKS_DIGITS_H
#define LL_BLOCKS_DIGITS_H

#include "blocks_row.h"

#ifdef LL_DOT_BYTES

/* Whether one row on this format is kept as digits. */
#define DIGITS(format) (ll_formats[format].low == 4)

/* Eight values of x, which meet a word of a panel's lower plane, are so many words: h of its even pairs, of its odd ones, then l
 * of the same (vi_digits). */
#define DIGITS_WORDS 4

/* count values of a row of integers, in place; count is a multiple of LL_RUN. */
LL_INLINE void digits_of(int16_t *q, size_t count)
{
    for (size_t i = 0; i < count; i += 2 * LL_VL)
        vi_store(q + i, vi_digits(vi_load(q + i)));
}

/* Integers of word i of a run's lower plane, with their upper bits, as bytes: those of even pairs and of odd ones. */
LL_INLINE void digits_weights(const vi *run, unsigned i, int format, vi w[2])
{
    const unsigned high = ll_formats[format].high, in_word = high ? ll_formats[format].low / high : 1;
    const vi nibbles = vi_set1(0x0f0f0f0f), word = run[ll_low_line(format, i)];
    w[0] = vi_and(word, nibbles);
    w[1] = vi_and(vi_shr(word, 4), nibbles);
    if (high) {
        const vi h = run[ll_high_line(format, i / in_word)], upper = vi_set1(0x10101010 * ((1 << high) - 1));
        w[0] = vi_and_or(blocks_move(h, high * (i % in_word), 4), upper, w[0]);
        w[1] = vi_and_or(blocks_move(h, high * (i % in_word) + 4, 4), upper, w[1]);
    }
}

/* Sub-blocks that are summed side by side: of one chain after the other a processor doesn't see enough. */
#define DIGITS_TOGETHER 2
/* Vectors of a run at most. */
#define DIGITS_LINES 6

/* p goes on over the sub-blocks of `count` runs, which begin with run `run` of the group. x: [K], q and the sums; D, M: of
 * these sub-blocks. */
LL_INLINE vf digits_runs(const blocks_group *g, size_t K, const float *x, size_t run, size_t count, int format, const vf *D,
                         const vf *M, vf p)
{
    const size_t sub = ll_formats[format].sub, subs = LL_RUN / sub, words = sub / 8, k = g->first + run * LL_RUN;
    const size_t lines = ll_run_bytes(format) / sizeof(vi);
    const int minimum = ll_formats[format].minimum;
    const float *sums = x + integers_sums(K) + k / sub;
    vi line[DIGITS_TOGETHER * DIGITS_LINES], h[DIGITS_TOGETHER], l[DIGITS_TOGETHER];
    BLOCKS_UNROLL(DIGITS_TOGETHER * DIGITS_LINES) /* in order: so processors foresee them */
    for (size_t i = 0; i < count * lines; i++)
        line[i] = vi_load_now(g->runs + run * ll_run_bytes(format) + i * sizeof(vi));
    LL_UNROLL
    for (size_t s = 0; s < count * subs; s++) {
        h[s] = vi_zero();
        l[s] = minimum ? vi_zero() : vi_set1(blocks_word(sums + s));
    }
    BLOCKS_UNROLL(4)
    for (size_t i = 0; i < words; i++)
        LL_UNROLL
        for (size_t s = 0; s < count * subs; s++) {
            const size_t word = s % subs * words + i;
            const float *digits = x + k / 2 + (s / subs * (LL_RUN / 8) + word) * DIGITS_WORDS;
            vi w[2];
            digits_weights(line + s / subs * lines, (unsigned)word, format, w);
            for (size_t odd = 0; odd < 2; odd++) {
                h[s] = vi_dot_bytes(h[s], w[odd], vi_set1(blocks_word(digits + odd)));
                l[s] = vi_dot_bytes(l[s], vi_set1(blocks_word(digits + 2 + odd)), w[odd]);
            }
        }
    LL_UNROLL
    for (size_t s = 0; s < count * subs; s++) {
        p = vf_fma(vi_to_vf(vi_add(vi_shl(h[s], 8), l[s])), D[s], p);
        if (minimum)
            p = vf_fma(vf_set1(sums[s]), M[s], p);
    }
    return p;
}

/* A block of 128, which begins with run `run` of the group. D, M: of its sub-blocks. */
LL_INLINE vf digits_block(const blocks_group *g, size_t K, const float *x, size_t run, int format, const vf *D, const vf *M)
{
    const size_t subs = LL_RUN / ll_formats[format].sub, together = DIGITS_TOGETHER / subs;
    vf p = vf_zero();
    BLOCKS_UNROLL(4)
    for (size_t i = 0; i < LL_BLOCK / LL_RUN; i += together)
        p = digits_runs(g, K, x, run + i, together, format, D + i * subs, M + i * subs, p);
    return p;
}

/* One panel, as wide as a vector. The format is a constant. */
LL_INLINE void digits_row(const ll_linear_args *a, const float *x, const char *panel, size_t n, int format)
{
    const size_t K = a->weight.K, most = ll_group_values(format), sub = ll_formats[format].sub;
    const float *scale = x + integers_scales(K, sub);
    const linear_place place = {.args = a, .n = n, .first = 1, .last = 1};
    vf y, D[BLOCKS_SUBS], M[BLOCKS_SUBS];
    linear_begin(&place, 1, 1, &y);
    for (size_t k = 0; k < K; k += most) {
        const blocks_group g = blocks_at(panel, k, K, format);
        if (most == LL_BLOCK_VALUES || g.values == most) {
            BLOCKS_UNROLL(16)
            for (size_t i = 0; i < most / sub; i++)
                blocks_scale(g.head, i, 0, format, &D[i], &M[i]);
            for (size_t i = 0; i < most; i += LL_BLOCK)
                y = vf_fma(digits_block(&g, K, x, i / LL_RUN, format, D + i / sub, M + i / sub), vf_set1(*scale++), y);
        } else { /* the last, of less than a block */
            vf p = vf_zero();
            for (size_t run = 0; run < g.values / LL_RUN; run++) {
                blocks_scale(g.head, run, 0, format, &D[0], &M[0]);
                p = digits_runs(&g, K, x, run, 1, format, D, M, p);
            }
            y = vf_fma(p, vf_set1(*scale), y);
        }
    }
    linear_end(&place, 1, 1, &y);
}

LL_INLINE void digits_rows(const ll_linear_args *a, const float *x, size_t begin, size_t end, int format)
{
    const char *panel = (const char *)a->weight.data + begin * ll_panel_bytes(a->weight.K, format);
    for (; begin < end; begin++, panel += ll_panel_bytes(a->weight.K, format))
        digits_row(a, x, panel, begin * LL_PANEL, format);
}

#endif
#endif
