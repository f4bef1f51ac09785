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

#include "../block_read.h"
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

/* Factors of sub-blocks in the words of a head. */
LL_INLINE void blocks_put_field(const ll_head_field *f, const uint8_t *factors, size_t subs, char *words)
{
    if (!f->bits)
        return;
    for (size_t s = 0; s < subs;) {
        size_t at = f->at + f->bits * s;
        char *place = words + (f->word + at / 32) * LL_PANEL * sizeof(uint32_t);
        uint32_t word;
        memcpy(&word, place, sizeof word);
        do { /* all of a word's before it goes back */
            word |= (uint32_t)(factors[s++] >> f->first & ((1u << f->bits) - 1)) << at % 32;
            at += f->bits;
        } while (s < subs && at % 32);
        memcpy(place, &word, sizeof word);
    }
}

/* What block i of a group's column has of the group's head, which is all 0 before the first. */
LL_INLINE void blocks_put_head(const ll_block *b, int format, char *head, size_t i, size_t column)
{
    const ll_format *f = &ll_formats[format];
    if (format == LL_MXFP4) {
        head[i * LL_PANEL + column] = (char)b->d;
        return;
    }
    if (f->values == LL_RUN) {
        head += i * (f->minimum ? 2 : 1) * LL_PANEL * sizeof b->d;
    } else {
        const ll_head_layout *layout = &ll_head_layouts[format];
        char *words = head + 2 * LL_PANEL * sizeof b->d + column * sizeof(uint32_t);
        for (int part = 0; part < 2; part++) {
            blocks_put_field(&layout->sc[part], b->sc, f->values / f->sub, words);
            blocks_put_field(&layout->mn[part], b->mn, f->values / f->sub, words);
        }
    }
    memcpy(head + column * sizeof b->d, &b->d, sizeof b->d);
    if (f->minimum)
        memcpy(head + (LL_PANEL + column) * sizeof b->m, &b->m, sizeof b->m);
}

/* Of a group of so many blocks: heads, and the values as bytes. */
LL_INLINE void blocks_take(const char *from, ptrdiff_t stride, size_t columns, size_t blocks, int format, char *head,
                           uint32_t (*rows)[BLOCKS_WORDS])
{
    const ll_format *f = &ll_formats[format];
    for (size_t column = 0; column < columns; column++) {
        const char *block = from + (ptrdiff_t)column * stride;
        for (size_t i = 0; i < blocks; i++, block += f->bytes) {
            ll_block b;
            LL_UNSET(b.sc); /* which has as many as are read */
            block_read((const uint8_t *)block, format, &b, (uint8_t *)rows[column] + i * f->values);
            blocks_put_head(&b, format, head, i, column);
        }
    }
}

typedef struct blocks_packer {
    void (*take)(const char *from, ptrdiff_t stride, size_t columns, size_t blocks, char *head, uint32_t (*rows)[BLOCKS_WORDS]);
    void (*runs)(const uint32_t (*words)[LL_PANEL], size_t runs, char *to);
} blocks_packer;

/* The format is a constant: so are all places then. */
#define LL_DEFINE(name, format) \
    LL_NOINLINE void blocks_take_##name(const char *from, ptrdiff_t stride, size_t columns, size_t blocks, char *head, \
                                        uint32_t (*rows)[BLOCKS_WORDS]) \
    { \
        blocks_take(from, stride, columns, blocks, format, head, rows); \
    } \
    LL_NOINLINE void blocks_runs_##name(const uint32_t (*words)[LL_PANEL], size_t runs, char *to) \
    { \
        for (size_t run = 0; run < runs; run++) \
            blocks_run(words + run * (LL_RUN / 4), format, to + run * ll_run_bytes(format)); \
    }
#define LL_ROW(name, format) [format] = {blocks_take_##name, blocks_runs_##name},
LL_EACH_BLOCKS(LL_DEFINE)
static const blocks_packer blocks_packers[LL_FORMATS] = {LL_EACH_BLOCKS(LL_ROW)};
#undef LL_DEFINE
#undef LL_ROW

/* A panel of a weight in blocks that isn't packed. */
static void LL_SYMBOL(pack_blocks)(const ll_weight *w, size_t panel, char *to)
{
    const ll_format *f = &ll_formats[w->format];
    const blocks_packer *packer = &blocks_packers[w->format];
    const size_t most = ll_group_values(w->format), first = panel * LL_PANEL, columns = ll_least(LL_PANEL, w->N - first);
    const char *from = (const char *)w->data + (ptrdiff_t)first * w->n_stride;
    _Alignas(64) uint32_t rows[LL_PANEL][BLOCKS_WORDS] = {{0}}, words[BLOCKS_WORDS][LL_PANEL];
    for (size_t k = 0; k < w->K; k += most) {
        const size_t values = ll_least(most, w->K - k), head = ll_head_bytes(w->format, values / LL_RUN);
        memset(to, 0, head);
        packer->take(from + k / f->values * f->bytes, w->n_stride, columns, values / f->values, to, rows);
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
        packer->runs((const uint32_t (*)[LL_PANEL])words, values / LL_RUN, to + head);
        to += ll_group_bytes(w->format, values);
    }
}

#endif
