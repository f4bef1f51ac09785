/* blocks.h: weights in blocks, between files' layout and panels. */
#ifndef LL_BLOCKS_H
#define LL_BLOCKS_H

#include "formats.h"

/* Where the words of a K-quant's head are: sub-block s of `what` has `bits` bits of it, from bit `first` on, in a word. */
typedef struct ll_head_field {
    unsigned char word, bits, first, at; /* the first word; bits of a factor from `first` on; the place of sub-block 0's */
} ll_head_field;

typedef struct ll_head_layout {
    ll_head_field sc[2], mn[2]; /* lower and upper bits; bits = 0 for none */
} ll_head_layout;

static const ll_head_layout ll_head_layouts[LL_FORMATS] __attribute__((unused)) = {
    [LL_Q2_K] = {{{0, 4, 0, 0}, {0, 0, 0, 0}}, {{2, 4, 0, 0}, {0, 0, 0, 0}}},
    [LL_Q3_K] = {{{0, 4, 0, 0}, {2, 2, 4, 0}}, {{0, 0, 0, 0}, {0, 0, 0, 0}}},
    [LL_Q4_K] = {{{0, 4, 0, 0}, {2, 2, 4, 0}}, {{1, 4, 0, 0}, {2, 2, 4, 16}}},
    [LL_Q5_K] = {{{0, 4, 0, 0}, {2, 2, 4, 0}}, {{1, 4, 0, 0}, {2, 2, 4, 16}}},
    [LL_Q6_K] = {{{0, 8, 0, 0}, {0, 0, 0, 0}}, {{0, 0, 0, 0}, {0, 0, 0, 0}}},
};

/* Values [k, k + count) of column n of a packed weight in blocks, widened; k and count are whole blocks. */
void ll_blocks_column(const ll_weight *w, size_t n, size_t k, size_t count, float *y);

#endif
