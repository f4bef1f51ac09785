/* finish.h: what comes after the sums of a product: y = activation(sum) + residual, for linear.h and few_rows.h. The
 * activation comes first, of as many sums as lie together; then the rest, two vectors at a time.
 *
 * Rounding: the activation is correctly rounded; the residual is one add; 16 bits are rounded once, at the very end.
 */
#ifndef LL_FINISH_H
#define LL_FINISH_H

#include "unary.h"

/* sums [n] become activation(sums); what lies beside the last column is anything, and is not looked at later. */
LL_INLINE void linear_activate(const ll_linear_args *a, void *sums, size_t n)
{
    if (a->activation)
        unary_float32[a->activation](sums, sums, n);
}

/* Columns [n, n + count) of a row of y, at most two vectors, which the activation has been applied to. */
LL_NOINLINE void linear_finish(const ll_linear_args *a, vf v[2], ptrdiff_t row, size_t n, size_t count)
{
    if (a->residual) {
        vf residual[2];
        pair_load((const char *)a->residual + row * a->residual_stride, n, n + count, a->dtype, residual);
        v[0] = vf_add(v[0], residual[0]);
        v[1] = vf_add(v[1], residual[1]);
    }
    pair_store((char *)a->y + row * a->y_stride, n, n + count, a->dtype, v);
}

#endif
