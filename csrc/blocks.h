/* blocks.h: weights in blocks, between files' layout and panels. */
#ifndef LL_BLOCKS_H
#define LL_BLOCKS_H

#include "formats.h"

/* What block i of a group's column has of the group's head, which is all 0 before the first. */
void ll_block_head(const ll_block *b, int format, char *head, size_t i, size_t column);
/* Values [k, k + count) of column n of a packed weight in blocks, widened; k and count are whole blocks. */
void ll_blocks_column(const ll_weight *w, size_t n, size_t k, size_t count, float *y);

#endif
