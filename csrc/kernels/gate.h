/* gate.h: y_j = f(g_j) * u_j, f any function of unary.h, or none.
 *
 * Order:    none, every value is for itself.
 * Rounding: f is correctly rounded to float32, the product is rounded once; 16-bit results once more, at the very end.
 * Edges:    those of f, then of the product: 0 * infinity is NaN. y may be g or u.
 * Cost:     one pass over memory. f runs over GATE_PART values at a time, which stay in the first cache, and meanwhile the next
 *           ones are called for: u is read in bursts, which no processor foresees (measured: a quarter of the time).
 * Oracle:   llorch.reference.gate. Tests: tests/kernels/test_gate.py.
 */
#include "unary.h"
#include "table.h"

#define GATE_PART 128

LL_INLINE void gate_part(const char *g, const char *u, char *y, size_t n, ll_unary_kernel function, int dtype)
{
    _Alignas(64) float buffer[GATE_PART];
    const float *f = buffer;
    size_t j;
    if (dtype == LL_F32 && !function) {
        f = (const float *)(const void *)g;
    } else if (dtype == LL_F32) {
        function(g, buffer, n);
    } else {
        cast_values(g, dtype, (char *)buffer, LL_F32, n);
        if (function)
            function(buffer, buffer, n);
    }
    for (j = 0; j + LL_VL <= n; j += LL_VL)
        row_store(y, j, vf_mul(vf_load(f + j), row_load(u, j, dtype)), dtype);
    if (j < n)
        row_store_n(y, j, vf_mul(vf_load_n(f + j, n - j), row_load_n(u, j, n - j, dtype)), n - j, dtype);
}

/* Values [first, first + n) of rows [begin, end). */
static void LL_SYMBOL(gate)(const ll_gate_args *a, size_t begin, size_t end, size_t first, size_t n)
{
    const size_t size = ll_dtype_size(a->dtype);
    const ll_unary_kernel function = unary_float32[a->op];
    for (size_t i = begin; i < end; i++)
        for (size_t j = first; j < first + n; j += GATE_PART) {
            const char *g = (const char *)a->g + (ptrdiff_t)i * a->g_stride + j * size;
            const char *u = (const char *)a->u + (ptrdiff_t)i * a->u_stride + j * size;
            char *y = (char *)a->y + (ptrdiff_t)i * a->y_stride + j * size;
            const size_t count = ll_least(GATE_PART, first + n - j), back = (j - first) * size;
            const int more = j + count < first + n; /* of this row, or the next one's beginning */
            const char *next_g = more ? g + count * size : g - back + a->g_stride;
            const char *next_u = more ? u + count * size : u - back + a->u_stride;
            for (size_t b = 0; b < GATE_PART * size; b += 64) {
                __builtin_prefetch(next_g + b, 0, 3);
                __builtin_prefetch(next_u + b, 0, 3);
            }
            if (a->dtype == LL_F32)
                gate_part(g, u, y, count, function, LL_F32);
            else if (a->dtype == LL_F16)
                gate_part(g, u, y, count, function, LL_F16);
            else
                gate_part(g, u, y, count, function, LL_BF16);
        }
}
