/* finish.h: what comes after the sums of a product: y = activation(sum) + residual, for linear.h and few_rows.h.
 *
 * Rounding: the activation is correctly rounded; the residual is one add; 16 bits are rounded once, at the very end.
 */
#ifndef LL_FINISH_H
#define LL_FINISH_H

#include "unary.h"

/* Columns [n, n + count) of a row of y, at most two vectors. */
LL_NOINLINE void linear_finish(const ll_linear_args *a, vf v[2], ptrdiff_t row, size_t n, size_t count)
{
    if (a->activation)
        unary_float32[a->activation](v, v, 2 * LL_VL);
    if (a->residual) {
        vf residual[2];
        pair_load((const char *)a->residual + row * a->residual_stride, n, n + count, a->dtype, residual);
        v[0] = vf_add(v[0], residual[0]);
        v[1] = vf_add(v[1], residual[1]);
    }
    pair_store((char *)a->y + row * a->y_stride, n, n + count, a->dtype, v);
}

#endif
