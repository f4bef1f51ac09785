/* softmax.h: y_j = e_j / Z over the rows of x [rows, n]; its passes are attention's too.
 *
 *   m = max_j x_j        e_j = exp(x_j - m)        Z = sum64(e)        y_j = e_j / Z
 *
 * Order:    the maximum has none. Z is sum64: lane j mod 64 adds its values in order of j, then the halving tree.
 * Rounding: one subtraction, the correctly rounded exp, the adds, one division; 16-bit results once more.
 * Edges:    a NaN, a +infinity or nothing but -infinity makes the row NaN: some x_j - m is NaN then, so Z is. A
 *           single -infinity has the numerator +0. n = 0: nothing to do. y may be x.
 * Cost:     three passes over a row, which stays in the caches. float32 keeps e in y between the passes. 16 bits can't
 *           hold it: there the exponential is taken twice.
 * Oracle:   llorch.reference.softmax. Tests: tests/kernels/test_softmax.py.
 */
#ifndef LL_SOFTMAX_H
#define LL_SOFTMAX_H

#include "unary.h"
#include "table.h"

/* The largest of n >= 1 values; where one is a NaN, anything. Four chains, as a maximum has a latency. */
LL_INLINE float softmax_max(const char *x, size_t n, int dtype)
{
    vf m[4];
    size_t j = 0;
    m[0] = m[1] = m[2] = m[3] = vf_set1(-INFINITY);
    for (; j + 4 * LL_VL <= n; j += 4 * LL_VL)
        LL_UNROLL
        for (size_t i = 0; i < 4; i++)
            m[i] = vf_max(m[i], row_load(x, j + i * LL_VL, dtype));
    for (; j + LL_VL <= n; j += LL_VL)
        m[0] = vf_max(m[0], row_load(x, j, dtype));
    if (j < n)
        m[1] = vf_max(m[1], vf_join(row_load_n(x, j, n - j, dtype), vf_set1(-INFINITY), n - j));
    return vf_most(vf_max(vf_max(m[0], m[1]), vf_max(m[2], m[3])));
}

/* exp(x_j - m) of the values [j, n), at most two vectors; +0 in the lanes past n, where exp is taken of 0: that is not
 * hard. whole: whole vectors behind x may be read. */
LL_INLINE void softmax_exp_rest(const char *x, size_t j, size_t n, vf most, int whole, int dtype, vf v[2])
{
    for (size_t i = 0; i < 2; i++) {
        size_t count = ll_lanes_left(j, i, n);
        v[i] = !count  ? most
               : whole ? row_load(x, j + i * LL_VL, dtype)
                       : row_load_n(x, j + i * LL_VL, count, dtype);
        v[i] = vf_sub(count && count < LL_VL ? vf_join(v[i], most, count) : v[i], most);
    }
    ll_exp_vp(v);
    for (size_t i = 0; i < 2; i++) {
        size_t count = ll_lanes_left(j, i, n);
        v[i] = !count ? vf_zero() : count < LL_VL ? vf_first(v[i], count) : v[i];
    }
}

/* sum64 of exp(x_j - m), which go to e as float32 unless it is NULL. whole: whole vectors
 * behind x and e may be read and written; e gets +0 there. */
LL_INLINE float softmax_exp(const char *x, size_t n, float m, char *e, int whole, int dtype)
{
    vf p[LL_REGS], most = vf_set1(m), v[2];
    size_t j = 0, k = 0;
    for (size_t i = 0; i < LL_REGS; i++)
        p[i] = vf_zero();
    for (; j + 2 * LL_VL <= n; j += 2 * LL_VL) {
        LL_UNROLL
        for (size_t i = 0; i < 2; i++)
            v[i] = vf_sub(row_load(x, j + i * LL_VL, dtype), most);
        ll_exp_vp(v);
        LL_UNROLL
        for (size_t i = 0; i < 2; i++) {
            if (e)
                vf_store(e + (j + i * LL_VL) * sizeof(float), v[i]);
            p[k + i] = vf_add(p[k + i], v[i]);
        }
        k = (k + 2) % LL_REGS;
    }
    if (j < n) {
        softmax_exp_rest(x, j, n, most, whole, dtype, v);
        for (size_t i = 0; i < 2; i++) {
            size_t count = ll_lanes_left(j, i, n);
            if (!count)
                break;
            if (e && whole)
                vf_store(e + (j + i * LL_VL) * sizeof(float), v[i]);
            else if (e)
                row_store_n(e, j + i * LL_VL, v[i], count, LL_F32);
            p[k + i] = vf_add(p[k + i], v[i]);
        }
    }
    return ll_fold64(p);
}

/* sum64 of n values that are not negative, or NaN. Whole vectors behind e may be read; +0 is there. */
LL_INLINE float softmax_sum(const float *e, size_t n)
{
    vf p[LL_REGS];
    LL_UNROLL
    for (size_t k = 0; k < LL_REGS; k++)
        p[k] = k * LL_VL < n ? vf_load(e + k * LL_VL) : vf_zero();
    for (size_t j = LL_LANES; j < n; j += LL_LANES)
        LL_UNROLL
        for (size_t k = 0; k < LL_REGS; k++)
            if (j + k * LL_VL < n)
                p[k] = vf_add(p[k], vf_load(e + j + k * LL_VL));
    return ll_fold64(p);
}

/* softmax_exp of two rows of float32 in their places, one vector of each at a time: rows shorter than a few vectors leave no
 * half of a pair to do for nothing. Whole vectors behind both may be read and written; they get +0 there. */
LL_INLINE void softmax_exp_two(float *const x[2], const size_t n[2], const float m[2], float z[2])
{
    const vf most[2] = {vf_set1(m[0]), vf_set1(m[1])};
    const size_t both = ll_least(n[0], n[1]) / LL_VL * LL_VL, all = n[0] > n[1] ? n[0] : n[1];
    size_t j = 0;
    vf v[2];
    for (; j < both; j += LL_VL) {
        v[0] = vf_sub(vf_load(x[0] + j), most[0]);
        v[1] = vf_sub(vf_load(x[1] + j), most[1]);
        ll_exp_vp(v);
        vf_store(x[0] + j, v[0]);
        vf_store(x[1] + j, v[1]);
    }
    for (; j < all; j += LL_VL) {
        size_t count[2];
        for (size_t i = 0; i < 2; i++) {
            count[i] = n[i] > j ? ll_least(n[i] - j, LL_VL) : 0;
            v[i] = vf_sub(count[i] ? vf_join(vf_load(x[i] + j), most[i], count[i]) : most[i], most[i]);
        }
        ll_exp_vp(v);
        for (size_t i = 0; i < 2; i++)
            if (count[i])
                vf_store(x[i] + j, vf_first(v[i], count[i]));
    }
    z[0] = softmax_sum(x[0], n[0]);
    z[1] = softmax_sum(x[1], n[1]);
}

LL_INLINE void softmax_row(const char *x, char *y, size_t n, int dtype)
{
    float m = softmax_max(x, n, dtype);
    vf z = vf_set1(softmax_exp(x, n, m, dtype == LL_F32 ? y : NULL, 0, dtype)), most = vf_set1(m);
    for (size_t j = 0; j < n; j += 2 * LL_VL) {
        vf e[2];
        if (dtype == LL_F32)
            pair_load(y, j, n, LL_F32, e);
        else
            softmax_exp_rest(x, j, n, most, 0, dtype, e);
        e[0] = vf_div(e[0], z);
        e[1] = vf_div(e[1], z);
        pair_store(y, j, n, dtype, e);
    }
}

static void LL_SYMBOL(softmax)(const ll_softmax_args *a, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++) {
        const char *x = (const char *)a->x + (ptrdiff_t)i * a->x_stride;
        char *y = (char *)a->y + (ptrdiff_t)i * a->y_stride;
        if (a->dtype == LL_F32)
            softmax_row(x, y, a->n, LL_F32);
        else if (a->dtype == LL_F16)
            softmax_row(x, y, a->n, LL_F16);
        else
            softmax_row(x, y, a->n, LL_BF16);
    }
}

#endif
