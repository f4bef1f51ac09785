/* select.h: argmax, the place of the largest value of a row of x [rows, n], n >= 1.
 *
 *   y = the least j with x_j = max x        or -1 - j for the first NaN at j
 *
 * Order, Rounding: none. Edges: +0 and -0 are equal; infinities are values like others; a NaN is reported.
 * Cost:     one pass; the part of ARGMAX_PART values that held the largest is looked at once more, for its place.
 * Oracle:   llorch.reference.argmax. Tests: tests/kernels/test_select.py.
 */
#include "../isa/vec.h"
#include "table.h"

#define ARGMAX_PART 1024
#define ARGMAX_EVERY_LANE ((1u << LL_VL) - 1)

/* The first place of a value in [begin, end), or of a NaN. It is there, unless another thread writes to x meanwhile:
 * then begin. */
LL_INLINE size_t argmax_place(const char *x, size_t begin, size_t end, float value, int nan, int dtype)
{
    for (size_t j = begin; j < end; j += LL_VL) {
        size_t count = end - j < LL_VL ? end - j : LL_VL;
        vf v = row_load_n(x, j, count, dtype);
        unsigned found = nan ? ~vf_equal(v, v) : vf_equal(v, vf_set1(value));
        found &= ARGMAX_EVERY_LANE >> (LL_VL - count);
        if (found)
            return j + (size_t)__builtin_ctz(found);
    }
    return begin;
}

LL_INLINE int64_t argmax_row(const char *x, size_t n, int dtype)
{
    float best = -INFINITY;
    size_t where = 0;
    for (size_t begin = 0; begin < n; begin += ARGMAX_PART) {
        size_t end = n - begin < ARGMAX_PART ? n : begin + ARGMAX_PART, j = begin;
        unsigned ordered = ARGMAX_EVERY_LANE;
        vf m[4];
        float lane[LL_VL];
        m[0] = m[1] = m[2] = m[3] = vf_set1(-INFINITY);
        for (; j + 4 * LL_VL <= end; j += 4 * LL_VL)
            LL_UNROLL
            for (size_t i = 0; i < 4; i++) {
                vf v = row_load(x, j + i * LL_VL, dtype);
                ordered &= vf_equal(v, v);
                m[i] = vf_max(m[i], v);
            }
        for (; j < end; j += LL_VL) {
            size_t count = end - j < LL_VL ? end - j : LL_VL;
            vf v = vf_join(row_load_n(x, j, count, dtype), vf_set1(-INFINITY), count);
            ordered &= vf_equal(v, v);
            m[0] = vf_max(m[0], v);
        }
        if (ordered != ARGMAX_EVERY_LANE)
            return -1 - (int64_t)argmax_place(x, begin, end, 0.0f, 1, dtype);
        vf_store(lane, vf_max(vf_max(m[0], m[1]), vf_max(m[2], m[3])));
        for (size_t l = 0; l < LL_VL; l++)
            if (lane[l] > best) {
                best = lane[l];
                where = begin;
            }
    }
    return (int64_t)argmax_place(x, where, n, best, 0, dtype);
}

static void LL_SYMBOL(argmax)(const ll_argmax_args *a, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++) {
        const char *x = (const char *)a->x + (ptrdiff_t)i * a->x_stride;
        if (a->dtype == LL_F32)
            a->y[i] = argmax_row(x, a->n, LL_F32);
        else if (a->dtype == LL_F16)
            a->y[i] = argmax_row(x, a->n, LL_F16);
        else
            a->y[i] = argmax_row(x, a->n, LL_BF16);
    }
}
#undef ARGMAX_PART
#undef ARGMAX_EVERY_LANE
