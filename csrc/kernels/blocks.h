/* blocks.h: what kernels read of packed weights in blocks (the layout: formats.h): integers, scales, values.
 *
 *   a value is D (q - offset), or D q + M; MXFP4: D times a number of a table
 *
 * Order:    none, every value is for itself.
 * Rounding: D, M and D (q - offset) are exact; fma(D, q, M) rounds once, as D q is exact.
 * Edges:    whatever D and M are: infinities and NaNs give what the products give. Columns past N are blocks of zeros.
 * Cost:     a value takes a mask, a subtraction and a product; odd k share a shift. q becomes a float by standing in the
 *           fraction of one whose last bits have the place of q's first: no conversion. A pair of integers takes a shift and
 *           a mask; where it may stay at its place, a mask.
 * Oracle:   llorch.reference.dequantize. Tests: tests/kernels/test_blocks.py.
 */
#ifndef LL_BLOCKS_KERNEL_H
#define LL_BLOCKS_KERNEL_H

#include "../formats.h"
#include "tile.h"

/* Before a loop over the values of a run: shifts by constants. Plain C, whose fma is long, keeps its loops. */
#if LL_TILE_ROWS == 2
#define BLOCKS_UNROLL(n)
#else
#define BLOCKS_UNROLL(n) LL_UNROLL_WHOLE(n)
#endif

/* Bytes from word to word of a plane. */
#define BLOCKS_LINE (LL_PANEL * sizeof(uint32_t))

/* v moved so that bit `from` comes to bit `to`. */
LL_INLINE vi blocks_move(vi v, unsigned from, unsigned to)
{
    return from > to ? vi_shr(v, from - to) : from < to ? vi_shl(v, to - from) : v;
}

/* The bit at which blocks_pair_placed leaves pair j: where it lies, if it is a number of 16 bits there. */
LL_INLINE unsigned blocks_place(unsigned j, int format)
{
    const unsigned at = ll_low_place(format, j);
    return at + ll_formats[format].low + ll_formats[format].high < 16 ? at : 0;
}

/* Integers 2 j and 2 j + 1 of a run as pairs of 16 bits, times 2^blocks_place; run: at the vector's first column. */
LL_INLINE vi blocks_pair_placed(const char *run, unsigned j, int format)
{
    const unsigned low = ll_formats[format].low, high = ll_formats[format].high;
    const unsigned at = ll_low_place(format, j), place = blocks_place(j, format), mask = ((1u << low) - 1) << place;
    vi q = vi_load(run + ll_low_line(format, j / (16 / low)) * BLOCKS_LINE);
    q = place == at ? vi_and(q, vi_set1((int32_t)(mask | mask << 16))) : vi_shr16(q, at); /* the highest of its word */
    if (high) {
        const unsigned upper = ((1u << high) - 1) << (place + low);
        const vi h = vi_load(run + ll_high_line(format, j / (16 / high)) * BLOCKS_LINE);
        q = vi_and_or(blocks_move(h, ll_high_place(format, j), place + low), vi_set1((int32_t)(upper | upper << 16)), q);
    }
    return q;
}

/* The same, times 1. */
LL_INLINE vi blocks_pair(const char *run, unsigned j, int format)
{
    const unsigned low = ll_formats[format].low, mask = (1u << low) - 1, place = blocks_place(j, format);
    const vi word = vi_load(run + ll_low_line(format, j / (16 / low)) * BLOCKS_LINE);
    if (!ll_formats[format].high && place) /* the mask of all places is one */
        return vi_and(vi_shr(word, place), vi_set1((int32_t)(mask | mask << 16)));
    return blocks_move(blocks_pair_placed(run, j, format), place, 0);
}

/* Integer i of a run, less the offset, as float32; of MXFP4 the number in its table. */
LL_INLINE vf blocks_integer(const char *run, unsigned i, int format)
{
    const unsigned low = ll_formats[format].low, high = ll_formats[format].high, j = i / 2, odd = i % 2 * 16;
    const unsigned at = ll_low_place(format, j); /* in the word, or in its upper half */
    const vi word = vi_load(run + ll_low_line(format, j / (16 / low)) * BLOCKS_LINE);
    if (format == LL_MXFP4)
        return vf_lookup(ll_mxfp4_twice, blocks_move(word, odd + at, 0));
    vi bits = vi_and_or(blocks_move(word, odd, 0), vi_set1((int32_t)(((1u << low) - 1) << at)),
                        vi_set1((int32_t)((150 - at) << 23)));
    if (high) {
        const vi h = vi_load(run + ll_high_line(format, j / (16 / high)) * BLOCKS_LINE);
        bits = vi_and_or(blocks_move(h, odd + ll_high_place(format, j), at + low),
                         vi_set1((int32_t)(((1u << high) - 1) << (at + low))), bits);
    }
    return vf_sub(vi_as_vf(bits), vf_set1((float)((1u << (23 - at)) + ll_formats[format].offset)));
}

/* `bits` bits from bit `at` on of the words of a head, and what they are as float32. */
LL_INLINE vi blocks_field(const char *words, size_t at, unsigned bits)
{
    const vi word = vi_load(words + at / 32 * BLOCKS_LINE);
    return vi_and(vi_shr(word, (unsigned)(at % 32)), vi_set1((1 << bits) - 1));
}

/* Six bits: four of `lower` from bit `at` on, two of `upper` from bit `above` on. */
LL_INLINE vi blocks_six(const char *lower, const char *upper, size_t at, size_t above)
{
    const vi word = vi_shr(vi_load(upper + above / 32 * BLOCKS_LINE), (unsigned)(above % 32));
    return vi_and_or(vi_shl(word, 4), vi_set1(0x30), blocks_field(lower, at, 4));
}

/* D and M of sub-block s of a group, for the vector of columns from `column` on. */
LL_INLINE void blocks_scale(const char *head, size_t s, size_t column, int format, vf *D, vf *M)
{
    const int minimum = ll_formats[format].minimum;
    if (format == LL_MXFP4) { /* 2^(e - 128): the exponent's bits are e - 1, or a subnormal */
        float d[LL_VL];
        for (size_t l = 0; l < LL_VL; l++) {
            const uint32_t e = (unsigned char)head[s * LL_PANEL + column + l];
            const uint32_t bits = e > 1 ? (e - 1) << 23 : (uint32_t)0x200000 << e;
            memcpy(d + l, &bits, sizeof bits);
        }
        *D = vf_load(d);
        return;
    }
    if (ll_formats[format].values == LL_RUN) {
        head += s * (minimum ? 2 : 1) * LL_PANEL * sizeof(uint16_t) + column * sizeof(uint16_t);
        *D = vf_load_f16(head);
        if (minimum)
            *M = vf_load_f16(head + LL_PANEL * sizeof(uint16_t));
        return;
    }
    const char *words = head + BLOCKS_LINE + column * sizeof(uint32_t);
    vf sc, mn = vf_zero();
    head += column * sizeof(uint16_t);
    switch (format) {
    case LL_Q2_K:
        sc = vi_to_vf(blocks_field(words, 4 * s, 4));
        mn = vi_to_vf(blocks_field(words + 2 * BLOCKS_LINE, 4 * s, 4));
        break;
    case LL_Q3_K:
        sc = vi_to_vf(blocks_six(words, words + 2 * BLOCKS_LINE, 4 * s, 2 * s));
        sc = vf_sub(sc, vf_set1(32.0f));
        break;
    case LL_Q6_K: /* its byte in the highest place, with the sign: times 2^24 */
        sc = vi_to_vf(vi_and(vi_shl(vi_load(words + s / 4 * BLOCKS_LINE), (unsigned)(24 - s % 4 * 8)),
                             vi_set1((int32_t)0xff000000)));
        sc = vf_mul(sc, vf_set1(0x1p-24f));
        break;
    default: { /* Q4_K, Q5_K */
        const char *upper = words + 2 * BLOCKS_LINE;
        sc = vi_to_vf(blocks_six(words, upper, 4 * s, 2 * s));
        mn = vi_to_vf(blocks_six(words + BLOCKS_LINE, upper, 4 * s, 16 + 2 * s));
    }
    }
    *D = vf_mul(vf_load_f16(head), sc);
    if (minimum)
        *M = vf_mul(vf_mul(vf_load_f16(head + LL_PANEL * sizeof(uint16_t)), vf_set1(-1.0f)), mn);
}

/* The same of all sub-blocks of a K-quant's group, each `step` vectors behind the one before: places and shifts are constants,
 * and nothing waits for them. */
LL_INLINE void blocks_scales(const char *head, size_t column, int format, vf *D, vf *M, size_t step)
{
    BLOCKS_UNROLL(16)
    for (size_t s = 0; s < LL_BLOCK_VALUES / ll_formats[format].sub; s++)
        blocks_scale(head, s, column, format, &D[s * step], &M[s * step]);
}

/* A group of a packed weight: where it is, how many values it has. */
typedef struct blocks_group {
    const char *head, *runs; /* of its first panel */
    size_t first, values;    /* of k */
} blocks_group;

/* The group of k, of the panel at `panel`. */
LL_INLINE blocks_group blocks_at(const char *panel, size_t k, size_t K, int format)
{
    const size_t most = ll_group_values(format), index = k / most;
    const size_t values = ll_least(most, K - index * most);
    const char *head = panel + index * ll_group_bytes(format, most);
    return (blocks_group){head, head + ll_head_bytes(format, values / LL_RUN), index * most, values};
}

/* ---- panels into the cache --------------------------------------------------------------------------- */

/* Panels whose sums wait together, so that they share a part of x. */
#define PACK_GROUP 4

/* Values of k that `panels` panels have for so few tiles of rows that widening tells, where one takes `size` bytes: they stay
 * in the first cache, beside the rows. */
#define BLOCKS_NEAR ((size_t)24 << 10)

LL_INLINE size_t blocks_near(size_t panels, size_t size)
{
    const size_t blocks = BLOCKS_NEAR / (panels * LL_PANEL * size * LL_BLOCK);
    return blocks > 1 ? blocks * LL_BLOCK : LL_BLOCK;
}

/* How many of K values a part has, of at most `most`, a multiple of LL_BLOCK: parts are as even as can be, as each calls for the
 * next one. */
LL_INLINE size_t blocks_depth(size_t K, size_t most)
{
    return K > most ? ll_up(ll_up(K, ll_up(K, most)), LL_BLOCK) * LL_BLOCK : most;
}

/* Where values from k on lie in a panel of K values, which has so many bytes. */
LL_INLINE size_t blocks_byte(size_t bytes, size_t K, size_t k) { return K ? bytes * k / K : 0; }

/* Bytes of the next part, which begins at k, that a step calls for, when `steps` of each of `tiles` tiles call for all of it.
 * (A step over floats has the time to call for one line: the last part of K, if it is short, calls for less.) */
LL_INLINE size_t blocks_call(size_t bytes, size_t K, size_t k, size_t depth, size_t tiles, size_t steps)
{
    return ll_up(blocks_byte(bytes, K, ll_least(depth, K - k)), tiles * steps);
}

/* Values [k, k + kc) of a panel as float32 [kc][16]; k is a multiple of LL_BLOCK. */
LL_INLINE void blocks_widen(const char *panel, size_t K, size_t k, size_t kc, float *to, int format)
{
    const size_t sub = ll_formats[format].sub;
    for (size_t end = k + kc; k < end; ) {
        const blocks_group g = blocks_at(panel, k, K, format);
        for (; k < end && k < g.first + g.values; k += LL_RUN, to += LL_RUN * LL_PANEL) {
            const size_t run = (k - g.first) / LL_RUN;
            for (size_t c = 0; c < LL_PANEL; c += LL_VL) {
                const char *from = g.runs + run * ll_run_bytes(format) + c * sizeof(uint32_t);
                vf D[2], M[2];
                for (size_t s = 0; s < LL_RUN / sub; s++)
                    blocks_scale(g.head, run * (LL_RUN / sub) + s, c, format, &D[s], &M[s]);
                BLOCKS_UNROLL(32)
                for (size_t i = 0; i < LL_RUN; i++) {
                    const vf q = blocks_integer(from, (unsigned)i, format);
                    const vf y = ll_formats[format].minimum ? vf_fma(D[i / sub], q, M[i / sub]) : vf_mul(D[i / sub], q);
                    vf_store(to + i * LL_PANEL + c, y);
                }
            }
        }
    }
}

#define LL_DEFINE(name, format) \
    LL_NOINLINE void blocks_widen_##name(const char *panel, size_t K, size_t k, size_t kc, float *to) \
    { \
        blocks_widen(panel, K, k, kc, to, format); \
    }
#define LL_ROW(name, format) [format] = blocks_widen_##name,
LL_EACH_BLOCKS(LL_DEFINE)
static void (*const blocks_wideners[LL_FORMATS])(const char *, size_t, size_t, size_t, float *) __attribute__((unused)) = {
    LL_EACH_BLOCKS(LL_ROW)};
#undef LL_DEFINE
#undef LL_ROW

#endif
