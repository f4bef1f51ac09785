/* blocks.h: weights in blocks, between files' layout and panels. */
#ifndef LL_BLOCKS_H
#define LL_BLOCKS_H

#include "formats.h"

/* A panel of a weight in blocks that isn't packed, at `to` in the layout of formats.h; columns past N are zero. */
void ll_blocks_pack(const ll_weight *w, size_t panel, char *to);
/* Values [k, k + count) of column n of a packed weight in blocks, widened; k and count are whole blocks. */
void ll_blocks_column(const ll_weight *w, size_t n, size_t k, size_t count, float *y);

#endif
