/* widen: y_j = float32(x_j), exact, for float16 and bfloat16.
 *
 * Order, Rounding: none. Edges: infinities and signed zeros keep, NaN gives NaN. Cost: one pass.
 * Oracle: llorch.reference.widen. Tests: tests/kernels/test_dtypes.py. */
#include "../isa/vec.h"
#include "table.h"

static void LL_SYMBOL(widen)(const void *x, int dtype, float *y, size_t n)
{
    size_t j = 0;
    for (; j + LL_VL <= n; j += LL_VL)
        vf_store(y + j, row_load(x, j, dtype));
    if (j < n)
        vf_store_n(y + j, row_load_n(x, j, n - j, dtype), n - j);
}
