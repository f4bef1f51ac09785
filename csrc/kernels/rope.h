/* rope.h: rotary positions, by halves, over x [rows, heads, D]: the first R values of a head are rotated.
 *
 *   a, b = x_i, x_{i + R/2}        c, s = row `position` of the tables cos, sin, at i        i = 0 .. R/2 - 1
 *   y_i = fma(a, c, -(b * s))      y_{i + R/2} = fma(b, c, a * s)                           y_j = x_j for j >= R
 *
 * Order:    none, every pair is for itself.
 * Rounding: one product, then one fma; 16 bits widen exactly and are rounded once.
 * Edges:    -(b * s) is b * -s: the sign of a zero is that of the negated product. NaN and infinity stay in their pair.
 *           y may be x.
 * Cost:     one pass. A row's cosines and sines stay in the first cache for all its heads.
 * Oracle:   llorch.reference.rope. Tests: tests/kernels/test_rope.py.
 */
#include "../isa/vec.h"
#include "table.h"

/* Values [j, j + m), m <= LL_VL, of both halves. */
LL_INLINE void rope_pairs(const char *x, char *y, const char *cos, const char *sin, size_t half, size_t j, size_t m, int dtype)
{
    vf a = row_load_n(x, j, m, dtype), b = row_load_n(x, half + j, m, dtype);
    vf c = row_load_n(cos, j, m, LL_F32), s = row_load_n(sin, j, m, LL_F32);
    vf minus = vf_mul(s, vf_set1(-1.0f));
    row_store_n(y, j, vf_fma(a, c, vf_mul(b, minus)), m, dtype);
    row_store_n(y, half + j, vf_fma(b, c, vf_mul(a, s)), m, dtype);
}

LL_INLINE void rope_rows(const ll_rope_args *a, size_t begin, size_t end, int dtype)
{
    const size_t half = a->R / 2, size = ll_dtype_size(dtype), rest = (a->D - a->R) * size;
    for (size_t i = begin; i < end; i++) {
        const size_t at = (size_t)a->positions[i] * half;
        const char *cos = (const char *)(a->cos + at), *sin = (const char *)(a->sin + at);
        for (size_t h = 0; h < a->heads; h++) {
            const char *x = (const char *)a->x + (ptrdiff_t)i * a->x_row + (ptrdiff_t)h * a->x_head;
            char *y = (char *)a->y + (ptrdiff_t)i * a->y_row + (ptrdiff_t)h * a->y_head;
            size_t j = 0;
            for (; j + LL_VL <= half; j += LL_VL)
                rope_pairs(x, y, cos, sin, half, j, LL_VL, dtype);
            if (j < half)
                rope_pairs(x, y, cos, sin, half, j, half - j, dtype);
            if (rest && x != y)
                memcpy(y + a->R * size, x + a->R * size, rest);
        }
    }
}

/* Rows [begin, end). */
static void LL_SYMBOL(rope)(const ll_rope_args *a, size_t begin, size_t end)
{
    if (a->dtype == LL_F32)
        rope_rows(a, begin, end, LL_F32);
    else if (a->dtype == LL_F16)
        rope_rows(a, begin, end, LL_F16);
    else
        rope_rows(a, begin, end, LL_BF16);
}
