/* formats.h: how weights are stored: element types, and blocks of integers with scales as GGUF files have them.
 *
 * A format says what each value is in float32, and nothing else (docs/numerics.md). */
#ifndef LL_FORMATS_H
#define LL_FORMATS_H

#include "llorch.h"

/* Behind the element types of llorch.h: a weight that isn't packed may have these. Its columns are rows of blocks along K,
 * n_stride bytes apart, K a multiple of a block's values; k_stride says nothing. */
enum {
    LL_Q8_0 = LL_DTYPES, LL_Q4_0, LL_Q4_1, LL_Q5_0, LL_Q5_1, LL_Q2_K, LL_Q3_K, LL_Q4_K, LL_Q5_K, LL_Q6_K, LL_MXFP4,
    LL_FORMATS
};

typedef struct ll_format {
    const char *name;     /* as GGUF calls it */
    size_t values, bytes; /* of a block */
} ll_format;

extern const ll_format ll_formats[LL_FORMATS];

/* The most values of a block. */
#define LL_BLOCK_VALUES 256

/* y [values]: whole blocks of format, widened. On this thread; blocks and y don't overlap. */
void ll_dequantize(const void *blocks, int format, size_t values, float *y);
/* The same, for who is in the contract's floating-point environment. */
void ll_dequantize_row(const void *blocks, int format, size_t values, float *y);

#endif
