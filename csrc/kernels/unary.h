/* unary.h: exp, tanh, erf, sigmoid, silu, gelu, gelu_tanh of every value, correctly rounded.
 *
 *   exp(x)       e^x                            sigmoid(x)    1 / (1 + e^-x)
 *   tanh(x)      E / (E + 2), E = e^2x - 1      silu(x)       x / (1 + e^-x)
 *   erf(x)       x P(x^2) / Q(x^2)              gelu_tanh(x)  x / (1 + e^-2u), 2u = x (A + B x^2),
 *                                                             A = 2 sqrt(2/pi), B = 0.044715 A as real numbers
 *   gelu(x)      max(x, 0) - |x| M(|x|) e^(-x^2/2)            M(t) = P(t) / Q(t) = (1 - Phi(t)) e^(t^2/2)
 *   e^a = 2^k (1 + r q(r)), k = round(a / ln 2), r = a - k ln 2, q a polynomial of degree 8
 *
 * For other kernels, a vector in and a vector out, for any x, no state:
 *   ll_exp_vf  ll_tanh_vf  ll_erf_vf  ll_sigmoid_vf  ll_silu_vf  ll_gelu_vf  ll_gelu_tanh_vf
 *
 * Order:    none, every value is for itself.
 * Rounding: the result is the float32 next to the true value, ties to even. y is computed in float64, with a
 *           relative error below MARGIN = 2^-42 (fits 2^-43.6 or better, rounding some 2^-46, most of it in arguments
 *           of exp near 100). y (1 - MARGIN) and y (1 + MARGIN) are both rounded to float32: where they agree, that is
 *           the result, also of a subnormal or an overflow; where they don't, one lane in 2^17 or so, it is computed
 *           again by csrc/exact.c in double-double. So how float64 operations round here, and whether vd_fma rounds
 *           once, changes no bit. All 2^32 inputs of each function were compared: docs/exhaustive.md.
 * Edges:    inputs are clamped to where the result isn't yet its limit, so that no exponent leaves float64. NaN
 *           differs from itself and goes the slow way. -0 and results that vanish keep their sign. Exact results
 *           like exp(0), and those a trifle away from a float32, like tanh of a tiny x, are far from where the two
 *           roundings part: they are fast. Results halfway but for a trifle (silu and gelu of an odd subnormal) aren't.
 * Cost:     one pass. Two chains of float64 vectors a vector of float32; one division but for exp. No table: a
 *           gather costs more than the terms it saves.
 * Oracle:   llorch.reference.exp and its neighbours. Tests: tests/test_unary.py.
 * Constants: tools/unary_constants.py, with the largest errors of the fits.
 */
#ifndef LL_UNARY_H
#define LL_UNARY_H

#include "../isa/vec.h"
#include "table.h"

#define MARGIN 0x1p-42

/* (e^r - 1) / r on [-ln 2 / 2, ln 2 / 2], relative error 2^-43.6 */
#define EXPM1_P0 0x1.fffffffffff9dp-1
#define EXPM1_P1 0x1.fffffffff7352p-2
#define EXPM1_P2 0x1.555555556d93dp-3
#define EXPM1_P3 0x1.55555573f770ep-5
#define EXPM1_P4 0x1.111110d8e2ab9p-7
#define EXPM1_P5 0x1.6c164e59326e2p-10
#define EXPM1_P6 0x1.a01a8e4ed8b98p-13
#define EXPM1_P7 0x1.a159d9da10e7ap-16
#define EXPM1_P8 0x1.71dd33f0d1c17p-19
/* (1 - Phi(t)) e^(t^2/2) on [0, 14.5], relative error 2^-45.7 */
#define MILLS_P0 0x1.fffffffffff85p-2
#define MILLS_P1 0x1.42eed4a41634fp-1
#define MILLS_P2 0x1.92bc6516bcbd3p-2
#define MILLS_P3 0x1.362fd7bdc36cfp-3
#define MILLS_P4 0x1.3aef26a11550dp-5
#define MILLS_P5 0x1.a461a39715ab3p-8
#define MILLS_P6 0x1.572de229c712fp-11
#define MILLS_P7 0x1.0c2b97641efa6p-15
#define MILLS_Q0 0x1.0000000000000p+0
#define MILLS_Q1 0x1.07987f215ad52p+1
#define MILLS_Q2 0x1.ee017d7fd1684p+0
#define MILLS_Q3 0x1.1432616018680p+0
#define MILLS_Q4 0x1.9510a60d1d6d2p-2
#define MILLS_Q5 0x1.916e6cccb48fep-4
#define MILLS_Q6 0x1.08bf7a906ec92p-6
#define MILLS_Q7 0x1.ae1c817a985e2p-10
#define MILLS_Q8 0x1.501a02ecbe966p-14
/* erf(x) / x in terms of x^2 on [0, 16], relative error 2^-43.7 */
#define ERF_P0 0x1.20dd750429c69p+0
#define ERF_P1 0x1.6b90be84f70bcp-2
#define ERF_P2 0x1.5f23be9e24d35p-4
#define ERF_P3 0x1.af51d9efa011fp-7
#define ERF_P4 0x1.43c836a1c5755p-10
#define ERF_P5 0x1.af250cc6a7607p-14
#define ERF_P6 0x1.305e8521c7d3cp-18
#define ERF_P7 0x1.8517a62fe80cbp-23
#define ERF_P8 0x1.701c9f704cefbp-30
#define ERF_P9 -0x1.7c78c6c2c7525p-39
#define ERF_Q0 0x1.0000000000000p+0
#define ERF_Q1 0x1.4bc473e0581bep-1
#define ERF_Q2 0x1.8926b660705c3p-3
#define ERF_Q3 0x1.1bfbb3722ec8fp-5
#define ERF_Q4 0x1.16a24c227c543p-8
#define ERF_Q5 0x1.8403f7feb50eap-12
#define ERF_Q6 0x1.8033a2758f712p-16
#define ERF_Q7 0x1.00fe168d3ff59p-20
#define ERF_Q8 0x1.81c2dfa3e36dbp-26

#define LOG2_E 0x1.71547652b82fep+0
#define LN_2 0x1.62e42fefa39efp-1
#define TO_INTEGER 0x1.8p52 /* added to k, it leaves k in the low bits: what vd_scale takes */
#define GELU_TANH_A 0x1.9884533d43651p+0
#define GELU_TANH_B 0x1.2444f2a4d8b4bp-4

/* ---- rounding --------------------------------------------------------------------------------- */

typedef float (*unary_exact)(float);

/* lo, with the lanes where hi is another number (or one is NaN) computed by exact. */
LL_NOINLINE vf unary_repair(vf x, vf lo, vf hi, unary_exact exact)
{
    float v[LL_VL], l[LL_VL], h[LL_VL];
    vf_store(v, x);
    vf_store(l, lo);
    vf_store(h, hi);
    for (int i = 0; i < LL_VL; i++)
        if (!(l[i] == h[i]))
            l[i] = exact(v[i]);
    return vf_load(l);
}

LL_INLINE vf unary_round(vf x, vw y, unary_exact exact)
{
    vf lo = vw_narrow(vw_mul(y, vw_set1(1.0 - MARGIN)));
    vf hi = vw_narrow(vw_mul(y, vw_set1(1.0 + MARGIN)));
    if (__builtin_expect(vf_differ(lo, hi), 0))
        return unary_repair(x, lo, hi, exact);
    return lo;
}

/* ---- parts ------------------------------------------------------------------------------------ */

#define CHAIN(value, x, c) value = vw_fma(value, x, vw_set1(c))

/* e^a = 2^k (1 + r q), k as vw_scale takes it. */
typedef struct exp_parts { vw r, q, k; } exp_parts;

LL_INLINE exp_parts exp_of(vw a)
{
    vw k = vw_fma(a, vw_set1(LOG2_E), vw_set1(TO_INTEGER));
    vw r = vw_fma(vw_sub(k, vw_set1(TO_INTEGER)), vw_set1(-LN_2), a);
    vw q = vw_set1(EXPM1_P8);
    CHAIN(q, r, EXPM1_P7);
    CHAIN(q, r, EXPM1_P6);
    CHAIN(q, r, EXPM1_P5);
    CHAIN(q, r, EXPM1_P4);
    CHAIN(q, r, EXPM1_P3);
    CHAIN(q, r, EXPM1_P2);
    CHAIN(q, r, EXPM1_P1);
    CHAIN(q, r, EXPM1_P0);
    return (exp_parts){r, q, k};
}

/* |a| < 700 */
LL_INLINE vw exp_vw(vw a)
{
    exp_parts e = exp_of(a);
    return vw_scale(vw_fma(e.r, e.q, vw_set1(1.0)), e.k);
}

/* x / (1 + e^a) */
LL_INLINE vw gated(vw x, vw a) { return vw_div(x, vw_add(exp_vw(a), vw_set1(1.0))); }

/* Between low and high; NaN stays. */
LL_INLINE vf at_least(vf x, float low) { return vf_max(vf_set1(low), x); }
LL_INLINE vf at_most(vf x, float high) { return vf_min(vf_set1(high), x); }
LL_INLINE vf minus(vf x) { return vf_sub(vf_zero(), x); }

/* ---- the functions ---------------------------------------------------------------------------- */

LL_INLINE vf ll_exp_vf(vf x)
{
    return unary_round(x, exp_vw(vw_widen(at_least(at_most(x, 89.0f), -104.0f))), ll_exact_exp);
}

/* exp of `count` vectors in place, a constant: step by step for all, as one vector's chain is longer than what the
 * processor looks ahead. */
LL_INLINE void ll_exp_vfs(vf *v, size_t count)
{
    const double chain[] = {EXPM1_P7, EXPM1_P6, EXPM1_P5, EXPM1_P4, EXPM1_P3, EXPM1_P2, EXPM1_P1, EXPM1_P0, 1.0};
    vw k[4], r[4], q[4];
    LL_UNROLL
    for (size_t i = 0; i < count; i++) {
        r[i] = vw_widen(at_least(at_most(v[i], 89.0f), -104.0f));
        k[i] = vw_fma(r[i], vw_set1(LOG2_E), vw_set1(TO_INTEGER));
    }
    LL_UNROLL
    for (size_t i = 0; i < count; i++) {
        r[i] = vw_fma(vw_sub(k[i], vw_set1(TO_INTEGER)), vw_set1(-LN_2), r[i]);
        q[i] = vw_set1(EXPM1_P8);
    }
    LL_UNROLL
    for (size_t c = 0; c < sizeof chain / sizeof *chain; c++)
        LL_UNROLL
        for (size_t i = 0; i < count; i++)
            CHAIN(q[i], r[i], chain[c]);
    LL_UNROLL
    for (size_t i = 0; i < count; i++)
        v[i] = unary_round(v[i], vw_scale(q[i], k[i]), ll_exact_exp);
}

LL_INLINE vf ll_tanh_vf(vf x)
{
    vf c = at_least(at_most(x, 10.0f), -10.0f);
    exp_parts e = exp_of(vw_widen(vf_add(c, c)));
    vw power = vw_scale(vw_set1(1.0), e.k);
    vw expm1 = vw_fma(power, vw_mul(e.r, e.q), vw_sub(power, vw_set1(1.0)));
    vw y = vw_div(expm1, vw_add(expm1, vw_set1(2.0)));
    return vf_or_sign(unary_round(x, y, ll_exact_tanh), x); /* expm1(-0) came out as +0 */
}

LL_INLINE vf ll_sigmoid_vf(vf x)
{
    vf c = at_least(at_most(x, 104.0f), -104.0f);
    return unary_round(x, gated(vw_set1(1.0), vw_widen(minus(c))), ll_exact_sigmoid);
}

LL_INLINE vf ll_silu_vf(vf x)
{
    vf c = at_least(x, -112.0f); /* from below alone: above, the result is x */
    return unary_round(x, gated(vw_widen(c), vw_widen(minus(at_most(c, 112.0f)))), ll_exact_silu);
}

LL_INLINE vf ll_gelu_tanh_vf(vf x)
{
    vf c = at_least(x, -11.0f);
    vw z = vw_widen(at_most(c, 11.0f));
    vw a = vw_mul(z, vw_fma(vw_mul(z, z), vw_set1(-GELU_TANH_B), vw_set1(-GELU_TANH_A)));
    return unary_round(x, gated(vw_widen(c), a), ll_exact_gelu_tanh);
}

LL_INLINE vf ll_gelu_vf(vf x)
{
    vf c = at_least(x, -14.5f);
    vw t = vw_widen(at_most(vf_abs(c), 14.5f));
    vw e = exp_vw(vw_mul(vw_mul(t, vw_set1(-0.5)), t)); /* the argument is exact */
    vw p = vw_set1(MILLS_P7), q = vw_set1(MILLS_Q8);
    CHAIN(q, t, MILLS_Q7);
    CHAIN(p, t, MILLS_P6);
    CHAIN(q, t, MILLS_Q6);
    CHAIN(p, t, MILLS_P5);
    CHAIN(q, t, MILLS_Q5);
    CHAIN(p, t, MILLS_P4);
    CHAIN(q, t, MILLS_Q4);
    CHAIN(p, t, MILLS_P3);
    CHAIN(q, t, MILLS_Q3);
    CHAIN(p, t, MILLS_P2);
    CHAIN(q, t, MILLS_Q2);
    CHAIN(p, t, MILLS_P1);
    CHAIN(q, t, MILLS_Q1);
    CHAIN(p, t, MILLS_P0);
    CHAIN(q, t, MILLS_Q0);
    vw y = vw_sub(vw_widen(at_least(c, 0.0f)), vw_div(vw_mul(vw_mul(t, e), p), q));
    return vf_or_sign(unary_round(x, y, ll_exact_gelu), x); /* 0 - 0 was +0 */
}

LL_INLINE vf ll_erf_vf(vf x)
{
    vw c = vw_widen(at_least(at_most(x, 4.0f), -4.0f)), w = vw_mul(c, c);
    vw p = vw_set1(ERF_P9), q = vw_set1(ERF_Q8);
    CHAIN(p, w, ERF_P8);
    CHAIN(q, w, ERF_Q7);
    CHAIN(p, w, ERF_P7);
    CHAIN(q, w, ERF_Q6);
    CHAIN(p, w, ERF_P6);
    CHAIN(q, w, ERF_Q5);
    CHAIN(p, w, ERF_P5);
    CHAIN(q, w, ERF_Q4);
    CHAIN(p, w, ERF_P4);
    CHAIN(q, w, ERF_Q3);
    CHAIN(p, w, ERF_P3);
    CHAIN(q, w, ERF_Q2);
    CHAIN(p, w, ERF_P2);
    CHAIN(q, w, ERF_Q1);
    CHAIN(p, w, ERF_P1);
    CHAIN(q, w, ERF_Q0);
    CHAIN(p, w, ERF_P0);
    return unary_round(x, vw_div(vw_mul(c, p), q), ll_exact_erf);
}
#undef CHAIN

/* ---- arrays ----------------------------------------------------------------------------------- */

#define LL_DEFINE(name, function, dtype)                                                \
    static void LL_SYMBOL(name)(const void *x, void *y, size_t n)                       \
    {                                                                                   \
        size_t j = 0;                                                                   \
        for (; j + LL_VL <= n; j += LL_VL)                                              \
            row_store(y, j, function(row_load(x, j, dtype)), dtype);                    \
        if (j < n)                                                                      \
            row_store_n(y, j, function(row_load_n(x, j, n - j, dtype)), n - j, dtype);  \
    }
#define LL_DEFINE_ALL(name) \
    LL_DEFINE(name##_f32, ll_##name##_vf, LL_F32) \
    LL_DEFINE(name##_f16, ll_##name##_vf, LL_F16) \
    LL_DEFINE(name##_bf16, ll_##name##_vf, LL_BF16)

LL_DEFINE_ALL(exp)
LL_DEFINE_ALL(tanh)
LL_DEFINE_ALL(erf)
LL_DEFINE_ALL(sigmoid)
LL_DEFINE_ALL(silu)
LL_DEFINE_ALL(gelu)
LL_DEFINE_ALL(gelu_tanh)
#undef LL_DEFINE_ALL
#undef LL_DEFINE

#endif
