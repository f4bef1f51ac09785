/* blocks_pack.h: blocks as files have them into a panel as kernels read it (formats.h).
 *
 * Order:    none: every bit of a block goes to its place, nothing is computed with them.
 * Edges:    columns past N are blocks of zeros.
 * Cost:     four bytes, which are two pairs of values, of all columns are a vector, once they are transposed; a value then takes
 *           a shift and a mask. A group of a panel stays in the first cache.
 * Oracle:   llorch.reference.dequantize. Tests: tests/kernels/test_blocks.py.
 */
#ifndef LL_BLOCKS_PACK_H
#define LL_BLOCKS_PACK_H

#include "../blocks.h"
#include "blocks.h"
#include "table.h"

#define BLOCKS_WORDS (LL_BLOCK_VALUES / 4) /* of four values, that a column has of a group */

/* Word i of a plane of `bits` bits, from bit `first` of each value on; words: a run's, of LL_VL columns. */
LL_INLINE vi blocks_packed_word(const vi *words, int format, unsigned i, unsigned first, unsigned bits, int upper)
{
    const unsigned mask = (1u << bits) - 1;
    vi word = vi_zero();
    LL_UNROLL
    for (unsigned pair = 0; pair < 16 / bits; pair++) {
        const unsigned j = i * (16 / bits) + pair, from = j % 2 * 16 + first;
        const unsigned to = upper ? ll_high_place(format, j) : ll_low_place(format, j);
        word = vi_and_or(blocks_move(words[j / 2], from, to), vi_set1((int32_t)(mask << to)), word);
        word = vi_and_or(blocks_move(words[j / 2], from + 8, to + 16), vi_set1((int32_t)(mask << (to + 16))), word);
    }
    return word;
}

/* The integers of a run of 16 columns; words: [8][16], four values each. */
LL_INLINE void blocks_run(const uint32_t (*words)[LL_PANEL], int format, char *run)
{
    const unsigned low = ll_formats[format].low, high = ll_formats[format].high;
    for (size_t column = 0; column < LL_PANEL; column += LL_VL) {
        vi four[LL_RUN / 4];
        LL_UNROLL
        for (size_t t = 0; t < LL_RUN / 4; t++)
            four[t] = vi_load(words[t] + column);
        LL_UNROLL
        for (unsigned i = 0; i < low; i++)
            vi_store(run + ll_low_line(format, i) * BLOCKS_LINE + column * sizeof(uint32_t),
                     blocks_packed_word(four, format, i, 0, low, 0));
        LL_UNROLL
        for (unsigned i = 0; i < high; i++)
            vi_store(run + ll_high_line(format, i) * BLOCKS_LINE + column * sizeof(uint32_t),
                     blocks_packed_word(four, format, i, low, high, 1));
    }
}

#define LL_DEFINE(name, format) \
    LL_NOINLINE void blocks_runs_##name(const uint32_t (*words)[LL_PANEL], size_t runs, char *to) \
    { \
        for (size_t run = 0; run < runs; run++) \
            blocks_run(words + run * (LL_RUN / 4), format, to + run * ll_run_bytes(format)); \
    }
#define LL_ROW(name, format) [format] = blocks_runs_##name,
LL_EACH_BLOCKS(LL_DEFINE)
static void (*const blocks_runs[LL_FORMATS])(const uint32_t (*)[LL_PANEL], size_t runs, char *) = {LL_EACH_BLOCKS(LL_ROW)};
#undef LL_DEFINE
#undef LL_ROW

/* A panel of a weight in blocks that isn't packed. */
static void LL_SYMBOL(pack_blocks)(const ll_weight *w, size_t panel, char *to)
{
    const ll_format *f = &ll_formats[w->format];
    const size_t most = ll_group_values(w->format), first = panel * LL_PANEL, columns = ll_least(LL_PANEL, w->N - first);
    const char *from = (const char *)w->data + (ptrdiff_t)first * w->n_stride;
    _Alignas(64) uint32_t rows[LL_PANEL][BLOCKS_WORDS] = {{0}}, words[BLOCKS_WORDS][LL_PANEL];
    for (size_t k = 0; k < w->K; k += most) {
        const size_t values = ll_least(most, w->K - k), blocks = values / f->values;
        char *runs = to + ll_head_bytes(w->format, values / LL_RUN);
        memset(to, 0, (size_t)(runs - to));
        for (size_t column = 0; column < columns; column++) {
            const char *block = from + (ptrdiff_t)column * w->n_stride + k / f->values * f->bytes;
            for (size_t i = 0; i < blocks; i++, block += f->bytes) {
                ll_block b;
                ll_block_read(block, w->format, &b);
                ll_block_head(&b, w->format, to, i, column);
                for (size_t j = 0; j < f->values; j += LL_RUN / 2) /* as they were written: no load waits for two stores */
                    memcpy((char *)rows[column] + i * f->values + j, b.q + j, LL_RUN / 2);
            }
        }
        for (size_t column = 0; column < LL_PANEL; column += LL_VL)
            for (size_t t = 0; t < values / 4; t += LL_VL) {
                vf square[LL_VL];
                LL_UNROLL
                for (size_t l = 0; l < LL_VL; l++)
                    square[l] = vf_load(rows[column + l] + t);
                vf_transpose(square);
                LL_UNROLL
                for (size_t l = 0; l < LL_VL; l++)
                    vf_store(words[t + l] + column, square[l]);
            }
        blocks_runs[w->format]((const uint32_t (*)[LL_PANEL])words, values / LL_RUN, runs);
        to += ll_group_bytes(w->format, values);
    }
}

#endif
