/* cast.h: y_j = x_j as another type of value.
 *
 * Order:    none.
 * Rounding: a wider type is exact, a narrower one is rounded once, to nearest even; between the two types of 16 bits the
 *           way leads through float32, which is exact.
 * Edges:    infinities and signed zeros stay; too large becomes an infinity; NaN gives NaN; subnormal values stay.
 * Cost:     one pass.
 * Oracle:   llorch.reference.cast. Tests: tests/kernels/test_dtypes.py, tests/kernels/test_gate.py.
 */
#ifndef LL_CAST_H
#define LL_CAST_H

#include "../isa/vec.h"
#include "table.h"

LL_INLINE void cast_values(const char *x, int from, char *y, int to, size_t n)
{
    size_t j = 0;
    for (; j + LL_VL <= n; j += LL_VL)
        row_store(y, j, row_load(x, j, from), to);
    if (j < n)
        row_store_n(y, j, row_load_n(x, j, n - j, from), n - j, to);
}

LL_NOINLINE void LL_SYMBOL(cast)(const void *x, int from, void *y, int to, size_t n)
{
#define LL_CASE(in, out) \
    if (from == in && to == out) \
        cast_values(x, in, y, out, n);
    LL_CASE(LL_F32, LL_F32) LL_CASE(LL_F32, LL_F16) LL_CASE(LL_F32, LL_BF16)
    LL_CASE(LL_F16, LL_F32) LL_CASE(LL_F16, LL_F16) LL_CASE(LL_F16, LL_BF16)
    LL_CASE(LL_BF16, LL_F32) LL_CASE(LL_BF16, LL_F16) LL_CASE(LL_BF16, LL_BF16)
#undef LL_CASE
}

#endif
