/* quantize.h: the search for the scales of a K-quant's sub-blocks, sixteen at once: x [J][16], lane s of a row is value j of
 * sub-block s.
 *
 *   fit_above   scale and minimum: x = scale q - minimum, q in [0, levels], minimum >= 0
 *               low = min(0, min x), v = x - low; for c = -1.5, -1, .. 0.5 and t = -0.5, -0.25, .. 0.5, in this order:
 *                 q = nearest(clamp(v r + o)), r = (levels + c) / max v, o = t - c / 2
 *                 det = J sum(q q) - sum(q) sum(q),  base = min(-low, (sum(q q) sum(v) - sum(q) sum(q v)) / det), 0 for det = 0
 *                 scale = (sum(q v) - base sum(q)) / sum(q q),  minimum = -low - base
 *                 gain = base (2 sum(v) - J base) + scale (2 (sum(q v) - base sum(q)) - scale sum(q q))
 *               the first of the largest gain; scale = 0, minimum = -low where none is above 0. For each rounding these are
 *               the scale and minimum of least squares, and the gain is by how much the sum of squares of v falls.
 *   fit_around  scale: x = scale q, q in [-half, half - 1]; X the first value of the largest magnitude
 *               for c = -1, -0.75, .. 1: q = nearest(clamp(x r)), r = -(half + c) / X; scale = sum(q x) / sum(q q),
 *               gain = scale sum(q x); the first of the largest
 *   k_round     scale = d sc, minimum = dmin mn of given whole sc and mn, and of their neighbours:
 *               q = nearest(clamp((x + minimum) (1 / scale))), lost = sum (x - (scale q - minimum))^2; the first of the least
 *
 * Order:    every sum from the first j to the last, from +0.0. Candidates in the order above; k_round: sc, sc - 1, sc + 1,
 *           and for each of them mn, mn - 1, mn + 1.
 * Rounding: every operation as it is written, to nearest even, no fma. nearest(x) = (x + 1.5 2^23) - 1.5 2^23.
 * Edges:    x are finite, below 2^40. A sub-block where max v, or |X|, is below 2^-40 has scale 0. scale 0: q = nearest(0).
 * Cost:     25 and 9 passes over x, 9 and 3 (or 10 and 4); all of it lies in registers and the first cache.
 * Oracle:   llorch.reference.quantize. Tests: tests/kernels/test_quantize.py.
 */
#ifndef LL_QUANTIZE_H
#define LL_QUANTIZE_H

#include "../isa/vec.h"
#include "table.h"

#define QUANTIZE_NEGLIGIBLE 0x1p-40f
/* More than any sum of squares. */
#define QUANTIZE_BOUNDLESS 0x1p120f

LL_INLINE vf quantize_nearest(vf x, float low, float high)
{
    const vf shift = vf_set1(0x1.8p23f);
    x = vf_min(vf_max(x, vf_set1(low)), vf_set1(high));
    return vf_sub(vf_add(x, shift), shift);
}

/* a / b; 0 unless b is above 0. */
LL_INLINE vf quantize_divide(vf a, vf b)
{
    const vf zero = vf_zero();
    return vf_where_less(zero, b, vf_div(a, vf_where_less(zero, b, b, vf_set1(1.0f))), zero);
}

static void LL_SYMBOL(k_fit_above)(const float *x, size_t J, float levels, float *scale, float *minimum)
{
    const vf zero = vf_zero(), count = vf_set1((float)J), two = vf_set1(2.0f), none = vf_set1(-1.0f);
    for (size_t s = 0; s < LL_SUBS; s += LL_VL) {
        vf low = zero, range = vf_load(x + s), sum = zero, best = zero, best_scale = zero;
        for (size_t j = 0; j < J; j++) {
            const vf value = vf_load(x + j * LL_SUBS + s);
            low = vf_min(value, low);
            range = vf_max(value, range);
        }
        range = vf_sub(range, low);
        for (size_t j = 0; j < J; j++)
            sum = vf_add(sum, vf_sub(vf_load(x + j * LL_SUBS + s), low));
        const vf below = vf_sub(zero, low);
        vf best_minimum = below;
        for (int i = 0; i < 25; i++) {
            const float c = (float)(i / 5 - 3) * 0.5f, o = (float)(i % 5 - 2) * 0.25f - c * 0.5f;
            const vf negligible = vf_set1(QUANTIZE_NEGLIGIBLE), offset = vf_set1(o);
            const vf r = vf_div(vf_set1(levels + c), vf_where_less(range, negligible, vf_set1(1.0f), range));
            vf q1 = zero, q2 = zero, qv = zero;
            for (size_t j = 0; j < J; j++) {
                const vf v = vf_sub(vf_load(x + j * LL_SUBS + s), low);
                const vf q = quantize_nearest(vf_add(vf_mul(v, r), offset), 0.0f, levels);
                q1 = vf_add(q1, q);
                q2 = vf_add(q2, vf_mul(q, q));
                qv = vf_add(qv, vf_mul(q, v));
            }
            const vf determinant = vf_sub(vf_mul(count, q2), vf_mul(q1, q1)); /* exact; 0 where all q are one */
            vf base = quantize_divide(vf_sub(vf_mul(q2, sum), vf_mul(q1, qv)), determinant);
            base = vf_min(base, below); /* the minimum isn't negative */
            const vf rest = vf_sub(qv, vf_mul(base, q1)), d = quantize_divide(rest, q2);
            vf gain = vf_add(vf_mul(base, vf_sub(vf_mul(two, sum), vf_mul(count, base))),
                             vf_mul(d, vf_sub(vf_mul(two, rest), vf_mul(d, q2))));
            gain = vf_where_less(range, negligible, none, vf_where_less(zero, d, gain, none));
            best_scale = vf_where_less(best, gain, d, best_scale);
            best_minimum = vf_where_less(best, gain, vf_sub(below, base), best_minimum);
            best = vf_where_less(best, gain, gain, best);
        }
        vf_store(scale + s, best_scale);
        vf_store(minimum + s, best_minimum);
    }
}

static void LL_SYMBOL(k_fit_around)(const float *x, size_t J, float half, float *scale)
{
    const vf zero = vf_zero();
    for (size_t s = 0; s < LL_SUBS; s += LL_VL) {
        vf most = zero, best = zero, best_scale = zero;
        for (size_t j = 0; j < J; j++) {
            const vf value = vf_load(x + j * LL_SUBS + s);
            most = vf_where_less(vf_abs(most), vf_abs(value), value, most);
        }
        for (int i = 0; i < 9; i++) {
            const float c = (float)(i - 4) * 0.25f;
            const vf negligible = vf_where_less(vf_abs(most), vf_set1(QUANTIZE_NEGLIGIBLE), zero, vf_set1(1.0f));
            const vf r = vf_mul(vf_div(vf_set1(-(half + c)), vf_where_less(zero, negligible, most, vf_set1(1.0f))), negligible);
            vf q2 = zero, qx = zero;
            for (size_t j = 0; j < J; j++) {
                const vf value = vf_load(x + j * LL_SUBS + s);
                const vf q = quantize_nearest(vf_mul(value, r), -half, half - 1.0f);
                q2 = vf_add(q2, vf_mul(q, q));
                qx = vf_add(qx, vf_mul(q, value));
            }
            const vf d = quantize_divide(qx, q2), gain = vf_mul(d, qx);
            best_scale = vf_where_less(best, gain, d, best_scale);
            best = vf_where_less(best, gain, gain, best);
        }
        vf_store(scale + s, best_scale);
    }
}

/* q of these scale and minimum, and what is lost; q NULL: not kept. */
LL_INLINE vf quantize_lost(const ll_k_round_args *a, size_t s, vf scale, vf minimum, float *q)
{
    const vf zero = vf_zero(), one = vf_set1(1.0f);
    /* scales have both signs where there is no minimum */
    const vf there = vf_where_less(zero, vf_abs(scale), one, zero);
    const vf r = vf_mul(vf_div(one, vf_where_less(zero, there, scale, one)), there);
    vf lost = zero;
    for (size_t j = 0; j < a->J; j++) {
        const vf x = vf_load(a->x + j * LL_SUBS + s);
        const vf n = quantize_nearest(vf_mul(vf_add(x, minimum), r), a->low, a->high);
        const vf from = vf_sub(x, vf_sub(vf_mul(scale, n), minimum));
        lost = vf_add(lost, vf_mul(from, from));
        if (q)
            vf_store(q + j * LL_SUBS + s, n);
    }
    return lost;
}

static void LL_SYMBOL(k_round)(const ll_k_round_args *a)
{
    static const float neighbours[3] = {0.0f, -1.0f, 1.0f};
    for (size_t s = 0; s < LL_SUBS; s += LL_VL) {
        const vf d = vf_load(a->d + s), dmin = vf_load(a->dmin + s), sc = vf_load(a->sc + s), mn = vf_load(a->mn + s);
        vf best = vf_set1(QUANTIZE_BOUNDLESS), best_sc = sc, best_mn = mn;
        for (int i = 0; i < (a->has_minimum ? 9 : 3); i++) {
            const float to_sc = neighbours[a->has_minimum ? i / 3 : i], to_mn = neighbours[a->has_minimum ? i % 3 : 0];
            const vf try_sc = vf_min(vf_max(vf_add(sc, vf_set1(to_sc)), vf_set1(a->least_sc)), vf_set1(a->most_sc));
            const vf try_mn = vf_min(vf_max(vf_add(mn, vf_set1(to_mn)), vf_zero()), vf_set1(a->most_sc));
            const vf lost = quantize_lost(a, s, vf_mul(d, try_sc), vf_mul(dmin, try_mn), NULL);
            best_sc = vf_where_less(lost, best, try_sc, best_sc);
            best_mn = vf_where_less(lost, best, try_mn, best_mn);
            best = vf_where_less(lost, best, lost, best);
        }
        quantize_lost(a, s, vf_mul(d, best_sc), vf_mul(dmin, best_mn), a->q);
        vf_store(a->sc + s, best_sc);
        vf_store(a->mn + s, best_mn);
    }
}

#endif
