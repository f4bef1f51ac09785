/* norm.h: LayerNorm, RMSNorm, and either after an addition, over the rows of x [rows, n].
 *
 *   layer_norm:  mean = sum64(x) / n           d_j = x_j - mean
 *                D = sum64(d)                  Q = sum64(d * d)
 *                c = D / n                     var = max(Q / n - c * c, +0)          (float64)
 *                r = 1 / sqrt(var + eps)       s = -(c * r)                          (float64, then float32)
 *                t_j = fma(d_j, r, s)          y_j = fma(t_j, w_j, b_j)
 *   rms_norm:    Q = sum64(x * x)              r = 1 / sqrt(Q / n + eps)             (float64, then float32)
 *                t_j = x_j * r                 y_j = t_j * w_j
 *   add_layer_norm: h_j = x_j + residual_j, rounded to the type of the arrays and stored; layer_norm(h).
 *   add_rms_norm:   the same; rms_norm(h).
 *
 * Order:    every sum is sum64: lane j mod 64 adds its values in order of j, starting at +0; then the halving
 *           tree 32, 16, .. 1. A tail lane adds +0, which changes no lane (none is ever -0).
 * Rounding: squares go into their sums by fma; the last two steps are fma. Everything else is one rounded
 *           operation as written. D / n is what rounding left in mean: taking it out again (Chan, Golub and
 *           LeVeque, 1983) keeps rows like 10000 + noise accurate, for one add a value.
 * Edges:    a NaN or infinity makes its row NaN. Finite rows whose sums overflow, or whose var + eps is below
 *           2^-100, are done again in float64 (norm_row_wide). n = 0: nothing to do. y may be x or residual.
 * Cost:     x is read from memory once; the second and third passes find it in the first cache, because
 *           NORM_GROUP rows are taken through the three passes together. That also lets the processor fold and
 *           divide for one row while it adds for the next: alone, a row waits for its own folds.
 * Oracle:   llorch.reference.layer_norm and its neighbours. Tests: tests/kernels/test_norm.py.
 */
#ifndef LL_NORM_H
#define LL_NORM_H

#include <float.h>

#include "../isa/vec.h"
#include "table.h"

#define NORM_GROUP 2
#define NORM_LINE 64
/* How many rows ahead the next data are called for, while this row is summed or squared. */
#define NORM_AHEAD 2
/* Rows from this length on begin with the way to a boundary of vectors. */
#define NORM_ALIGN_FROM 256
/* Groups of rows up to this many bytes of float32; longer rows go one by one. */
#define NORM_GROUP_BYTES (32 * 1024)

/* Up to this length, weight and bias may be copied to the stack, for at least so many rows. */
#define NORM_SCALES 4096
#define NORM_SCALES_ROWS 8

enum norm { LAYER_NORM, ADD_LAYER_NORM, RMS_NORM, ADD_RMS_NORM };

/* One row between its passes. */
typedef struct norm_row {
    const char *x;    /* what the later passes read: x, or the stored sum */
    float mean, r, s; /* RMSNorm: mean and s unused */
    int wide;         /* the range rule applies: float64, or NaN */
} norm_row;

/* ---- where vectors begin ----------------------------------------------------------------------
 *
 * Loads and stores that cross a cache line cost double, so long rows first go to a boundary: of x in the first
 * two passes, of y in the third. That changes no bit. In the third pass every step is lane by lane. In the sums,
 * a way of h values turns the 64 lanes as a whole: value j lands at lane (j - h) mod 64, each lane still adds its
 * values in order, and at every level of the halving tree the partners (h apart modulo 2 h) stay partners. */

/* Values from p to the next boundary of vectors. */
LL_INLINE_SIMD size_t norm_way(const char *p, size_t n, int dtype)
{
    const size_t size = ll_dtype_size(dtype), bytes = LL_VL * size;
    return n >= NORM_ALIGN_FROM ? (bytes - (uintptr_t)p % bytes) % bytes / size : 0;
}

/* The h values of the way at the end of the last register, where the turned lanes have them; the rest +0. */
LL_INLINE_SIMD vf norm_turned(vf v, size_t h) { return vf_join(vf_zero(), v, LL_VL - h); }

/* ---- first pass: sum64(x); the add happens here ---------------------------------------------- */

/* Values [j, j + m) of x, or of x + residual, which are stored. Lanes past m are +0.0. */
LL_INLINE_SIMD vf norm_term(const char *x, const char *residual, char *sum, size_t j, size_t m, int dtype)
{
    vf v = row_load_n(x, j, m, dtype);
    if (residual) {
        v = vf_add(v, row_load_n(residual, j, m, dtype));
        row_store_n(sum, j, v, m, dtype);
        if (dtype != LL_F32 || m < LL_VL)
            v = row_load_n(sum, j, m, dtype); /* what was stored, so that the sum is of that */
    }
    return v;
}

/* ahead, here and below: where a later row lies that will soon be read, or the constant NULL. One call a
 * cache line; more would only take room. */
LL_INLINE_SIMD void norm_call_for(const char *ahead, size_t j, size_t k, int dtype)
{
    const size_t size = ll_dtype_size(dtype);
    if (ahead && k * LL_VL * size % NORM_LINE == 0)
        __builtin_prefetch(ahead + (j + k * LL_VL) * size, 0, 3);
}

LL_INLINE_SIMD float norm_pass_sum(const char *x, const char *residual, char *sum, size_t n, int dtype, const char *ahead)
{
    vf p[LL_REGS];
    size_t j = norm_way(x, n, dtype);
    LL_UNROLL
    for (size_t k = 0; k < LL_REGS; k++)
        p[k] = vf_zero();
    if (j)
        p[LL_REGS - 1] = vf_add(p[LL_REGS - 1], norm_turned(norm_term(x, residual, sum, 0, j, dtype), j));
    for (; j + LL_LANES <= n; j += LL_LANES) {
        LL_UNROLL
        for (size_t k = 0; k < LL_REGS; k++) {
            norm_call_for(ahead, j, k, dtype);
            p[k] = vf_add(p[k], norm_term(x, residual, sum, j + k * LL_VL, LL_VL, dtype));
        }
    }
    if (j < n) {
        LL_UNROLL
        for (size_t k = 0; k < LL_REGS; k++) {
            size_t m = ll_lanes_left(j, k, n);
            if (!m)
                break;
            p[k] = vf_add(p[k], norm_term(x, residual, sum, j + k * LL_VL, m, dtype));
        }
    }
    return ll_fold64(p);
}

/* ---- second pass: D = sum64(d), Q = sum64(d * d), d = x - mean ------------------------------- */

/* The 64 lanes in strips of LL_STRIP registers: two sets of 64 lanes need not fit into the register file.
 * Without centring (RMSNorm) d is x itself and D isn't needed. */
LL_INLINE_SIMD void norm_pass_squares(const char *x, size_t n, float mean, int centre, float *D, float *Q, int dtype,
                                      const char *ahead)
{
    vf dsum[LL_REGS], qsum[LL_REGS], mu = vf_set1(mean);
    const size_t head = norm_way(x, n, dtype);
    LL_UNROLL
    for (size_t strip = 0; strip < LL_REGS; strip += LL_STRIP) {
        vf p[LL_STRIP], q[LL_STRIP];
        size_t j = head;
        LL_UNROLL
        for (size_t k = 0; k < LL_STRIP; k++)
            p[k] = q[k] = vf_zero();
        if (head && strip + LL_STRIP == LL_REGS) {
            vf d = row_load_n(x, 0, head, dtype);
            d = norm_turned(centre ? vf_sub(d, mu) : d, head);
            p[LL_STRIP - 1] = vf_add(p[LL_STRIP - 1], d);
            q[LL_STRIP - 1] = vf_fma(d, d, q[LL_STRIP - 1]);
        }
        for (; j + LL_LANES <= n; j += LL_LANES) {
            LL_UNROLL
            for (size_t k = 0; k < LL_STRIP; k++) {
                vf d = row_load(x, j + (strip + k) * LL_VL, dtype);
                norm_call_for(ahead, j, strip + k, dtype);
                if (centre) {
                    d = vf_sub(d, mu);
                    p[k] = vf_add(p[k], d);
                }
                q[k] = vf_fma(d, d, q[k]);
            }
        }
        if (j < n) {
            LL_UNROLL
            for (size_t k = 0; k < LL_STRIP; k++) {
                size_t m = ll_lanes_left(j, strip + k, n);
                if (!m)
                    break;
                vf d = row_load_n(x, j + (strip + k) * LL_VL, m, dtype);
                if (centre) {
                    d = vf_sub(d, mu);
                    if (m < LL_VL)
                        d = vf_first(d, m);
                    p[k] = vf_add(p[k], d);
                }
                q[k] = vf_fma(d, d, q[k]);
            }
        }
        LL_UNROLL
        for (size_t k = 0; k < LL_STRIP; k++) {
            dsum[strip + k] = p[k];
            qsum[strip + k] = q[k];
        }
    }
    if (centre)
        *D = ll_fold64(dsum);
    *Q = ll_fold64(qsum);
}

/* ---- the row's scalars ------------------------------------------------------------------------ */

LL_INLINE_SIMD int norm_finite(float a) { return fabsf(a) <= FLT_MAX; }

LL_INLINE_SIMD void layer_norm_scalars(norm_row *row, float D, float Q, size_t n, double eps)
{
    double count = (double)n, c = (double)D / count, var = (double)Q / count - c * c;
    if (!(var > 0.0))
        var = 0.0;
    var += eps;
    double r = 1.0 / sqrt(var);
    row->r = (float)r;
    row->s = (float)-(c * r);
    row->wide = !(norm_finite(row->mean) && norm_finite(D) && norm_finite(Q) && var >= 0x1p-100);
}

LL_INLINE_SIMD void rms_norm_scalars(norm_row *row, float Q, size_t n, double eps)
{
    double var = (double)Q / (double)n + eps;
    row->r = (float)(1.0 / sqrt(var));
    row->wide = !(norm_finite(Q) && var >= 0x1p-100);
}

/* ---- third pass ------------------------------------------------------------------------------- */

typedef struct norm_out {
    char *y;
    const float *weight, *bias;
    size_t n;
} norm_out;

/* y from t: the only place where weight and bias come in. They are NULL or not as the caller's constants. */
LL_INLINE_SIMD vf norm_scale_shift(vf t, const char *weight, const char *bias, size_t j, size_t m)
{
    if (weight && bias)
        return vf_fma(t, row_load_n(weight, j, m, LL_F32), row_load_n(bias, j, m, LL_F32));
    if (weight)
        return vf_mul(t, row_load_n(weight, j, m, LL_F32));
    if (bias)
        return vf_add(t, row_load_n(bias, j, m, LL_F32));
    return t;
}

LL_INLINE_SIMD vf norm_normalise(vf x, vf mean, vf r, vf s, int centre)
{
    return centre ? vf_fma(vf_sub(x, mean), r, s) : vf_mul(x, r);
}

LL_INLINE_SIMD vf norm_output(const norm_row *row, const char *weight, const char *bias, size_t j, size_t m, int centre,
                              int dtype)
{
    vf t = norm_normalise(row_load_n(row->x, j, m, dtype), vf_set1(row->mean), vf_set1(row->r), vf_set1(row->s), centre);
    return norm_scale_shift(t, weight, bias, j, m);
}

/* weight and bias are NULL or not as constants: one loop for each case. */
LL_INLINE_SIMD void norm_apply_case(const norm_row *of, const char *weight, const char *bias, char *y, size_t n, int centre,
                                    int dtype)
{
    const norm_row own = *of, *row = &own; /* in registers, whatever is stored to y */
    size_t j = norm_way(y, n, dtype);
    if (j)
        row_store_n(y, 0, norm_output(row, weight, bias, 0, j, centre, dtype), j, dtype);
    LL_UNROLL_BY(4)
    for (; j + LL_VL <= n; j += LL_VL)
        row_store(y, j, norm_output(row, weight, bias, j, LL_VL, centre, dtype), dtype);
    if (j < n)
        row_store_n(y, j, norm_output(row, weight, bias, j, n - j, centre, dtype), n - j, dtype);
}

LL_INLINE_SIMD void norm_pass_apply(const norm_row *row, const char *w, const char *b, char *y, size_t n, int centre, int dtype)
{
    if (w && b)
        norm_apply_case(row, w, b, y, n, centre, dtype);
    else if (w)
        norm_apply_case(row, w, NULL, y, n, centre, dtype);
    else if (b)
        norm_apply_case(row, NULL, b, y, n, centre, dtype);
    else
        norm_apply_case(row, NULL, NULL, y, n, centre, dtype);
}

/* What a stream still holds: the last m values of the row before, that share their vector with the next row's
 * first. An ordinary store of a part of a line would wait behind the stream, and loads that look alike to the
 * processor (the same place in their pages) behind it: measured, up to three times slower. */
typedef struct norm_edge {
    vf v;
    size_t m;
} norm_edge;

LL_INLINE_SIMD void norm_edge_store(norm_edge *edge, char *end)
{
    if (edge->m)
        vf_store_n(end - edge->m * sizeof(float), edge->v, edge->m);
    edge->m = 0;
}

/* norm_pass_apply for float32 past the caches; y follows the row before without a gap, n >= NORM_ALIGN_FROM. A thread that
 * waits for the pool sees these stores: the pool counts its finished workers by a locked add, which drains them. */
LL_INLINE_SIMD void norm_pass_stream(const norm_row *of, const char *w, const char *b, char *y, size_t n, int centre,
                                     norm_edge *edge)
{
    const norm_row own = *of, *row = &own;
    size_t j = norm_way(y, n, LL_F32);
    if (j) {
        vf v = norm_output(row, w, b, 0, j, centre, LL_F32);
        if (edge->m)
            vf_stream(y - edge->m * sizeof(float), vf_join(edge->v, v, edge->m));
        else
            vf_store_n(y, v, j);
    }
    LL_UNROLL_BY(4)
    for (; j + LL_VL <= n; j += LL_VL)
        vf_stream(y + j * sizeof(float), norm_output(row, w, b, j, LL_VL, centre, LL_F32));
    edge->m = n - j;
    if (j < n)
        edge->v = norm_output(row, w, b, j, n - j, centre, LL_F32);
}

/* ---- the range rule ---------------------------------------------------------------------------- */

/* The row again with float64 elements, or NaN if it isn't finite. Rare, so one value at a time and one
 * instance for all types; the compiler may use vectors, it has no freedom that could change a bit. */
LL_NOINLINE void norm_row_wide(const char *x, const char *weight, const char *bias, char *y, size_t n, double eps,
                               int centre, int dtype)
{
    int finite = 1;
    float v[LL_VL];
    double mean = 0.0, c = 0.0, r;

    double p[LL_LANES] = {0.0}, q[LL_LANES] = {0.0};
    for (size_t j = 0; j < n; j += LL_VL) {
        size_t m = n - j < LL_VL ? n - j : LL_VL;
        vf_store(v, row_load_n(x, j, m, dtype));
        for (size_t l = 0; l < m; l++) {
            finite &= norm_finite(v[l]);
            p[(j + l) % LL_LANES] += (double)v[l];
        }
    }
    for (size_t h = LL_LANES / 2; h > 0; h /= 2)
        for (size_t l = 0; l < h; l++)
            p[l] += p[l + h];
    if (centre)
        mean = p[0] / (double)n;

    memset(p, 0, sizeof p);
    for (size_t j = 0; j < n; j += LL_VL) {
        size_t m = n - j < LL_VL ? n - j : LL_VL;
        vf_store(v, row_load_n(x, j, m, dtype));
        for (size_t l = 0; l < m; l++) {
            double d = centre ? (double)v[l] - mean : (double)v[l];
            p[(j + l) % LL_LANES] += d;
            q[(j + l) % LL_LANES] += d * d;
        }
    }
    for (size_t h = LL_LANES / 2; h > 0; h /= 2)
        for (size_t l = 0; l < h; l++) {
            p[l] += p[l + h];
            q[l] += q[l + h];
        }
    double var = q[0] / (double)n;
    if (centre) {
        c = p[0] / (double)n;
        var -= c * c;
        if (!(var > 0.0))
            var = 0.0;
    }
    r = 1.0 / sqrt(var + eps);

    for (size_t j = 0; j < n; j += LL_VL) {
        size_t m = n - j < LL_VL ? n - j : LL_VL;
        vf_store(v, row_load_n(x, j, m, dtype));
        for (size_t l = 0; l < m; l++) {
            double d = centre ? ((double)v[l] - mean) - c : (double)v[l];
            v[l] = finite ? (float)(d * r) : NAN;
        }
        row_store_n(y, j, norm_scale_shift(vf_load(v), weight, bias, j, m), m, dtype);
    }
}

/* ---- rows -------------------------------------------------------------------------------------- */

LL_INLINE_SIMD char *norm_row_at(const void *base, size_t i, ptrdiff_t stride)
{
    return (char *)(uintptr_t)base + (ptrdiff_t)i * stride;
}

/* Rows [first, first + count), count <= NORM_GROUP, through all three passes. edge is NULL where y isn't streamed. */
LL_INLINE_SIMD void norm_group(const ll_norm_args *a, size_t first, size_t count, const char *weight, const char *bias,
                               double eps, enum norm op, int dtype, norm_edge *edge)
{
    const size_t n = a->n;
    const int stream = edge != NULL;
    const int centre = op == LAYER_NORM || op == ADD_LAYER_NORM, add = op == ADD_LAYER_NORM || op == ADD_RMS_NORM;
    norm_row row[NORM_GROUP];
    const char *ahead[NORM_GROUP];
    float D[NORM_GROUP], Q[NORM_GROUP];

    for (size_t i = 0; i < count; i++) {
        size_t later = first + i + NORM_AHEAD < a->rows ? first + i + NORM_AHEAD : first + i;
        ahead[i] = norm_row_at(a->x, later, a->x_stride);
        row[i].x = norm_row_at(a->x, first + i, a->x_stride);
        row[i].mean = row[i].s = 0.0f;
        if (add) {
            char *to = norm_row_at(a->sum, first + i, a->sum_stride);
            const char *residual = norm_row_at(a->residual, first + i, a->residual_stride);
            const float sum = norm_pass_sum(row[i].x, residual, to, n, dtype, ahead[i]);
            if (centre)
                row[i].mean = sum / (float)n;
            row[i].x = to;
        } else if (op == LAYER_NORM) {
            row[i].mean = norm_pass_sum(row[i].x, NULL, NULL, n, dtype, stream ? ahead[i] : NULL) / (float)n;
        }
    }
    /* In cache, the next rows come from the second level during the second pass; from memory, the wait is
     * longer and they are called for during the first. */
    for (size_t i = 0; i < count; i++)
        norm_pass_squares(row[i].x, n, row[i].mean, centre, &D[i], &Q[i], dtype,
                     add || (stream && centre) ? NULL : ahead[i]);
    for (size_t i = 0; i < count; i++) {
        if (centre)
            layer_norm_scalars(&row[i], D[i], Q[i], n, eps);
        else
            rms_norm_scalars(&row[i], Q[i], n, eps);
    }
    for (size_t i = 0; i < count; i++) {
        char *y = norm_row_at(a->y, first + i, a->y_stride);
        if (__builtin_expect(row[i].wide, 0)) {
            if (stream)
                norm_edge_store(edge, y);
            norm_row_wide(row[i].x, weight, bias, y, n, eps, centre, dtype);
        } else if (stream) {
            norm_pass_stream(&row[i], weight, bias, y, n, centre, edge);
        } else {
            norm_pass_apply(&row[i], weight, bias, y, n, centre, dtype);
        }
    }
}

/* scale, or a copy of it in room, at y's distance from a cache line. */
LL_INLINE_SIMD const char *norm_beside(float *room, const char *scale, const void *y, size_t n)
{
    if (!scale || ((uintptr_t)scale - (uintptr_t)y) % NORM_LINE == 0)
        return scale;
    char *copy = (char *)room + (NORM_LINE - (uintptr_t)room % NORM_LINE) + (uintptr_t)y % NORM_LINE;
    return memcpy(copy, scale, n * sizeof(float));
}

LL_INLINE_SIMD void norm(const ll_norm_args *a, int stream, size_t begin, size_t end, enum norm op, int dtype)
{
    const char *w = (const char *)a->weight, *b = op == RMS_NORM || op == ADD_RMS_NORM ? NULL : (const char *)a->bias;
    const double eps = (double)(float)a->eps;
    /* weight and bias where their loads are aligned when y's stores are: read for every row, copied once. */
    float copies[2][NORM_SCALES + 2 * NORM_LINE / sizeof(float)];
    if (dtype == LL_F32 && a->n >= NORM_ALIGN_FROM && a->n <= NORM_SCALES && end - begin >= NORM_SCALES_ROWS && a->y_stride % NORM_LINE == 0) {
        w = norm_beside(copies[0], w, a->y, a->n);
        b = norm_beside(copies[1], b, a->y, a->n);
    }
    /* From memory, single rows were fastest. */
    if (stream && dtype == LL_F32 && w && (op == RMS_NORM || op == ADD_RMS_NORM || b) && a->n >= NORM_ALIGN_FROM
        && (uintptr_t)a->y % sizeof(float) == 0 && a->y_stride == (ptrdiff_t)(a->n * sizeof(float))) {
        norm_edge edge = {.m = 0};
        for (size_t i = begin; i < end; i++)
            norm_group(a, i, 1, w, b, eps, op, LL_F32, &edge);
        norm_edge_store(&edge, norm_row_at(a->y, end, a->y_stride));
        return;
    }
    const size_t group = a->n * sizeof(float) * NORM_GROUP <= NORM_GROUP_BYTES ? NORM_GROUP : 1;
    for (size_t i = begin; i < end; i += group)
        norm_group(a, i, end - i < group ? end - i : group, w, b, eps, op, dtype, NULL);
}

#define LL_DEFINE(name, op, dtype) \
    static void LL_SYMBOL(name)(const ll_norm_args *a, int stream, size_t begin, size_t end) \
    { \
        norm(a, stream, begin, end, op, dtype); \
    }

LL_DEFINE(layer_norm_f32, LAYER_NORM, LL_F32)
LL_DEFINE(layer_norm_f16, LAYER_NORM, LL_F16)
LL_DEFINE(layer_norm_bf16, LAYER_NORM, LL_BF16)
LL_DEFINE(add_layer_norm_f32, ADD_LAYER_NORM, LL_F32)
LL_DEFINE(add_layer_norm_f16, ADD_LAYER_NORM, LL_F16)
LL_DEFINE(add_layer_norm_bf16, ADD_LAYER_NORM, LL_BF16)
LL_DEFINE(rms_norm_f32, RMS_NORM, LL_F32)
LL_DEFINE(rms_norm_f16, RMS_NORM, LL_F16)
LL_DEFINE(rms_norm_bf16, RMS_NORM, LL_BF16)
LL_DEFINE(add_rms_norm_f32, ADD_RMS_NORM, LL_F32)
LL_DEFINE(add_rms_norm_f16, ADD_RMS_NORM, LL_F16)
LL_DEFINE(add_rms_norm_bf16, ADD_RMS_NORM, LL_BF16)
#undef LL_DEFINE

#endif
