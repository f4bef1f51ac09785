/* unary.h: exp, tanh, erf, sigmoid, silu, gelu, gelu_tanh, relu of every value, correctly rounded.
 *
 *   exp(x)       e^x                            sigmoid(x)    1 / (1 + e^-x)
 *   tanh(x)      E / (E + 2), E = e^2x - 1      silu(x)       x / (1 + e^-x)
 *   erf(x)       x P(x^2) / Q(x^2)              gelu_tanh(x)  x / (1 + e^-2u), 2u = x (A + B x^2),
 *                                                             A = 2 sqrt(2/pi), B = 0.044715 A as real numbers
 *   gelu(x)      max(x, 0) - t T(t)^8, t = |x| <= 4           T(t) = (1 - Phi(t))^(1/8), a polynomial; elsewhere
 *                max(x, 0) - t M(t) e^(-t^2/2)                M(t) = P(t) / Q(t) = (1 - Phi(t)) e^(t^2/2)
 *   relu(x)      x where x > 0, else +0; NaN stays
 *   e^a = 2^k (1 + r q(r)), k = round(a / ln 2), r = a - k ln 2, q a polynomial of degree 8
 *
 * For other kernels, two vectors in place, for any x, no state:
 *   ll_exp_vp  ll_tanh_vp  ll_erf_vp  ll_sigmoid_vp  ll_silu_vp  ll_gelu_vp  ll_gelu_tanh_vp  ll_relu_vp
 *
 * Order:    none, every value is for itself.
 * Rounding: the result is the float32 next to the true value, ties to even. y is computed in float64, with a
 *           relative error below 2^-UNARY_MARGIN (fits 2^-43.5 or better, rounding some 2^-46, most of it in arguments of exp
 *           near 100). Where y (1 - 2^-42) and y (1 + 2^-42) round to the same float32, that is the result, also of a
 *           subnormal or an overflow; where they don't, one lane in 2^17 or so, it is computed again by csrc/exact.c
 *           in double-double. (AVX-512 looks at the bits that float32 has not instead of rounding twice.) So how
 *           float64 operations round here, and whether vd_fma rounds once, changes no bit. Where a table of 32 is an
 *           instruction (vec.h: AVX-512), exp and silu try pairs of float32 first, which leave one lane in 2^10 to float64, by
 *           a margin of the same kind. All 2^32 inputs of each function were compared: docs/exhaustive.md.
 * Edges:    inputs are clamped to where the result isn't yet its limit, so that no exponent leaves float64. Where a fast way is
 *           for small inputs alone (gelu, pairs of float32), others go the slow way whatever it made of them, and so does NaN. -0 and results that vanish keep their sign. Exact results
 *           like exp(0), and those a trifle away from a float32, like tanh of a tiny x, are far from where the two
 *           roundings part: they are fast. Results halfway but for a trifle (silu and gelu of an odd subnormal) aren't.
 * Cost:     one pass. Four chains of float64 vectors for two vectors of float32; one division, but none for exp and
 *           gelu. No table in memory: a gather costs more than the terms it saves. Pairs of float32 take half the time for
 *           exp, four fifths for silu (measured on Zen 4); for gelu they would take longer.
 * Oracle:   llorch.reference.exp and its neighbours. Tests: tests/kernels/test_unary.py.
 * Constants: tools/unary_constants.py, with the largest errors of the fits.
 */
#ifndef LL_UNARY_H
#define LL_UNARY_H

#include "../isa/vec.h"
#include "cast.h"
#include "table.h"

#define UNARY_MARGIN 42

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

/* (1 - Phi(t))^(1/8) on [0, 4], relative error 2^-43.0 */
#define TAIL_P0 0x1.d5818dcfba0f8p-1
#define TAIL_P1 -0x1.769c94bc81032p-4
#define TAIL_P2 -0x1.0588e4cff41f4p-5
#define TAIL_P3 -0x1.634443c62317dp-11
#define TAIL_P4 0x1.8c4b537e9693dp-10
#define TAIL_P5 0x1.d79442570d5a9p-16
#define TAIL_P6 -0x1.d834d91207538p-15
#define TAIL_P7 0x1.59b9a18a77447p-18
#define TAIL_P8 0x1.fe790ce095f4bp-21
#define TAIL_P9 -0x1.1b0102552e33ap-21
#define TAIL_P10 0x1.56a3750e08722p-23
#define TAIL_P11 -0x1.1ea32f3bd359ep-25
#define TAIL_P12 0x1.45e572f07fbbbp-28
#define TAIL_P13 -0x1.e7f60d27aa30ap-32
#define TAIL_P14 0x1.b85575866e831p-36
#define TAIL_P15 -0x1.6e3010b38f27ap-41
#define TAIL_MARGIN 39 /* eight times that error, and some rounding */

/* exp in pairs of float32: ln 2 / 32 in two parts; 1/2, 1/6, 1/24; 2^(i/32), and what float32 leaves of it. exp and
 * silu are off by 2^-34.33 (of 2^k) and 2^-35.05 at most, over all inputs as far as MOST; PART is what is allowed for. */
#ifdef LL_LOOKUP_32
#define FLOATS_32_BY_LN_2 0x1.715476p+5f
#define FLOATS_LN_2_BY_32 0x1.62e43p-6f
#define FLOATS_LN_2_BY_32_LOW -0x1.05c61p-34f
#define FLOATS_EXP_P2 0x1p-1f
#define FLOATS_EXP_P3 0x1.555556p-3f
#define FLOATS_EXP_P4 0x1.555556p-5f
#define FLOATS_EXP_PART 0x1p-34f
#define FLOATS_EXP_MOST 87.3f
#define FLOATS_SILU_PART 0x1.6p-35f
#define FLOATS_SILU_MOST 80.0f
_Alignas(64) static const float floats_power[32] = {
    0x1p+0f, 0x1.059b0ep+0f, 0x1.0b5586p+0f, 0x1.11301ep+0f, 0x1.172b84p+0f, 0x1.1d4874p+0f,
    0x1.2387a6p+0f, 0x1.29e9ep+0f, 0x1.306fep+0f, 0x1.371a74p+0f, 0x1.3dea64p+0f, 0x1.44e086p+0f,
    0x1.4bfdaep+0f, 0x1.5342b6p+0f, 0x1.5ab07ep+0f, 0x1.6247ecp+0f, 0x1.6a09e6p+0f, 0x1.71f75ep+0f,
    0x1.7a1148p+0f, 0x1.82589ap+0f, 0x1.8ace54p+0f, 0x1.93737cp+0f, 0x1.9c4918p+0f, 0x1.a5503cp+0f,
    0x1.ae89fap+0f, 0x1.b7f77p+0f, 0x1.c199bep+0f, 0x1.cb720ep+0f, 0x1.d5818ep+0f, 0x1.dfc974p+0f,
    0x1.ea4afap+0f, 0x1.f50766p+0f,
};
_Alignas(64) static const float floats_power_low[32] = {
    0x0p+0f, -0x1.9d4f52p-25f, 0x1.9f3122p-25f, -0x1.fdb496p-25f, -0x1.c15742p-27f, -0x1.d2e8cap-25f,
    0x1.ceac48p-25f, -0x1.5c0424p-25f, 0x1.4636e2p-25f, -0x1.18aac6p-25f, 0x1.824684p-25f, 0x1.8624b4p-30f,
    -0x1.593abcp-25f, -0x1.2c561p-25f, -0x1.5bd5ecp-27f, -0x1.f8b55p-25f, 0x1.9fcef4p-26f, 0x1.1d8beep-25f,
    -0x1.829fdp-25f, -0x1.accc7cp-26f, 0x1.15506ep-27f, -0x1.e64744p-25f, 0x1.51f848p-27f, -0x1.b83b54p-25f,
    -0x1.a94b14p-26f, -0x1.a09438p-25f, -0x1.3d56b2p-27f, -0x1.8837ccp-27f, -0x1.822dbcp-27f, -0x1.908c94p-25f,
    0x1.52486cp-27f, -0x1.246ebp-26f,
};
#endif

#define UNARY_LOG2_E 0x1.71547652b82fep+0
#define UNARY_LN_2 0x1.62e42fefa39efp-1
#define UNARY_TO_INTEGER 0x1.8p52 /* added to k, it leaves k in the low bits: what vd_scale takes */
#define UNARY_GELU_TANH_A 0x1.9884533d43651p+0
#define UNARY_GELU_TANH_B 0x1.2444f2a4d8b4bp-4

/* ---- rounding --------------------------------------------------------------------------------- */

typedef float (*unary_exact)(float);

/* Whether y = f(x), in float64 and off by at most 2^-margin of itself, may round to another float32 than it does.
 * NaN: yes. */
LL_INLINE_SIMD int unary_unsure(const vf x[2], vw y, int margin, vf rounded[2])
{
#ifdef LL_NEAR_TIE
    vw_narrow(y, rounded);
    return vd_near_tie(y.a, y.b, margin) | vd_near_tie(y.c, y.d, margin) | vf_odd(rounded[0], x[0])
           | vf_odd(rounded[1], x[1]);
#else
    (void)x;
    vf other[2];
    const double part = 1.0 / (double)((int64_t)1 << margin);
    vw_narrow(vw_mul(y, vw_set1(1.0 - part)), rounded);
    vw_narrow(vw_mul(y, vw_set1(1.0 + part)), other);
    return vf_differ(rounded[0], other[0]) | vf_differ(rounded[1], other[1]);
#endif
}

/* x becomes y rounded, where that is sure, and otherwise what exact makes of it. */
LL_NOINLINE void unary_repair(vf x[2], const vw *y, unary_exact exact)
{
    const double part = 1.0 / (double)((int64_t)1 << UNARY_MARGIN);
    float v[2 * LL_VL], l[2 * LL_VL], h[2 * LL_VL];
    vf lo[2], hi[2];
    vw_narrow(vw_mul(*y, vw_set1(1.0 - part)), lo);
    vw_narrow(vw_mul(*y, vw_set1(1.0 + part)), hi);
    for (int i = 0; i < 2; i++) {
        vf_store(v + i * LL_VL, x[i]);
        vf_store(l + i * LL_VL, lo[i]);
        vf_store(h + i * LL_VL, hi[i]);
    }
    for (int i = 0; i < 2 * LL_VL; i++)
        if (!(l[i] == h[i]))
            l[i] = exact(v[i]);
    for (int i = 0; i < 2; i++)
        x[i] = vf_load(l + i * LL_VL);
}

/* x becomes y, rounded. */
LL_INLINE_SIMD void unary_round(vf x[2], vw y, unary_exact exact)
{
    vf rounded[2];
    if (__builtin_expect(unary_unsure(x, y, UNARY_MARGIN, rounded), 0)) {
        vw given = y;
        vf repaired[2] = {x[0], x[1]}; /* copies, so that nothing lies in memory where all is sure */
        unary_repair(repaired, &given, exact);
        rounded[0] = repaired[0];
        rounded[1] = repaired[1];
    }
    x[0] = rounded[0];
    x[1] = rounded[1];
}

/* x becomes y, or, where that isn't sure, what `far` makes of it. */
LL_INLINE_SIMD void unary_choose(vf x[2], const vf y[2], int unsure, void (*far)(vf x[2]))
{
    if (__builtin_expect(unsure, 0)) {
        vf c[2] = {x[0], x[1]}; /* a copy, so that nothing lies in memory where all is sure */
        far(c);
        x[0] = c[0];
        x[1] = c[1];
    } else {
        x[0] = y[0];
        x[1] = y[1];
    }
}

/* ---- parts ------------------------------------------------------------------------------------ */

#define UNARY_CHAIN(value, x, c) value = vw_fma(value, x, vw_set1(c))

/* e^a = 2^k (1 + r q), k as vw_scale takes it. */
typedef struct unary_parts { vw r, q, k; } unary_parts;

LL_INLINE_SIMD unary_parts unary_exp_of(vw a)
{
    vw k = vw_fma(a, vw_set1(UNARY_LOG2_E), vw_set1(UNARY_TO_INTEGER));
    vw r = vw_fma(vw_sub(k, vw_set1(UNARY_TO_INTEGER)), vw_set1(-UNARY_LN_2), a);
    vw s = vw_mul(r, r), q = vw_set1(EXPM1_P8), odd = vw_set1(EXPM1_P7); /* even and odd: twice as many chains */
    UNARY_CHAIN(q, s, EXPM1_P6);
    UNARY_CHAIN(odd, s, EXPM1_P5);
    UNARY_CHAIN(q, s, EXPM1_P4);
    UNARY_CHAIN(odd, s, EXPM1_P3);
    UNARY_CHAIN(q, s, EXPM1_P2);
    UNARY_CHAIN(odd, s, EXPM1_P1);
    UNARY_CHAIN(q, s, EXPM1_P0);
    q = vw_fma(odd, r, q);
    return (unary_parts){r, q, k};
}

/* |a| < 700 */
LL_INLINE_SIMD vw unary_exp(vw a)
{
    unary_parts e = unary_exp_of(a);
    return vw_scale(vw_fma(e.r, e.q, vw_set1(1.0)), e.k);
}

#ifdef LL_LOOKUP_32
/* e^a as two float32, hi + lo times 2^k, hi from 1 - 2^-6 to 2: off by 2^-34.3 at most, for |a| <= 87.3. k is where float32
 * have their exponents. a = n ln 2 / 32 + r + rl, of which r is exact; e^r - 1 = r + s q, s = r^2; 2^(n mod 32 / 32) is of a
 * table, hi + lo too. lo may be as large as 2^-13: |s q| is. */
typedef struct unary_floats { vf hi, lo; vi k; } unary_floats;

LL_INLINE_SIMD unary_floats unary_floats_exp(vf a)
{
    const vf to_integer = vf_set1(0x1.8p23f), n = vf_fma(a, vf_set1(FLOATS_32_BY_LN_2), to_integer);
    const vf m = vf_sub(n, to_integer), r = vf_fma(m, vf_set1(-FLOATS_LN_2_BY_32), a);
    const vf rl = vf_mul(m, vf_set1(-FLOATS_LN_2_BY_32_LOW)), s = vf_mul(r, r);
    const vf q = vf_fma(vf_fma(r, vf_set1(FLOATS_EXP_P4), vf_set1(FLOATS_EXP_P3)), r, vf_set1(FLOATS_EXP_P2));
    const vf t = vf_lookup_32(floats_power, vf_as_vi(n)), tl = vf_lookup_32(floats_power_low, vf_as_vi(n));
    const vf tr = vf_mul(t, r), trl = vf_fma(t, r, vf_sub(vf_zero(), tr)), hi = vf_add(t, tr);
    const vf low = vf_fma(t, rl, tl); /* (t rl + tl) (1 + r) + t s q */
    const vf lo = vf_fma(low, r, vf_fma(t, vf_mul(s, q), low));
    const vi k = vi_shl(vi_and(vf_as_vi(n), vi_set1(~31)), 18); /* 1.5 * 2^23 has nothing in these bits */
    return (unary_floats){hi, vf_add(vf_add(trl, lo), vf_add(vf_sub(t, hi), tr)), k};
}
#endif

/* x / (1 + e^a) */
LL_INLINE_SIMD vw unary_gated(vw x, vw a) { return vw_div(x, vw_add(unary_exp(a), vw_set1(1.0))); }

/* ---- the functions: two vectors in place ------------------------------------------------------- */

#define UNARY_PAIR(vector, value) \
    for (int i = 0; i < 2; i++) \
        vector[i] = (value)

/* x between low and high; NaN stays. */
#define UNARY_CLAMPED(low, high) vf_max(vf_set1(low), vf_min(vf_set1(high), x[i]))

LL_INLINE_SIMD void unary_exp_wide(vf x[2])
{
    vf c[2];
    UNARY_PAIR(c, UNARY_CLAMPED(-104.0f, 89.0f));
    unary_round(x, unary_exp(vw_widen(c)), ll_exact_exp);
}

LL_INLINE_SIMD void unary_silu_wide(vf x[2])
{
    vf c[2], a[2];
    UNARY_PAIR(c, vf_max(vf_set1(-112.0f), x[i])); /* from below alone: above, the result is x */
    UNARY_PAIR(a, vf_sub(vf_zero(), vf_min(vf_set1(112.0f), c[i])));
    unary_round(x, unary_gated(vw_widen(c), vw_widen(a)), ll_exact_silu);
}

#ifndef LL_LOOKUP_32
LL_INLINE_SIMD void ll_exp_vp(vf x[2]) { unary_exp_wide(x); }
LL_INLINE_SIMD void ll_silu_vp(vf x[2]) { unary_silu_wide(x); }
#else
LL_NOINLINE void unary_exp_far(vf x[2]) { unary_exp_wide(x); }
LL_NOINLINE void unary_silu_far(vf x[2]) { unary_silu_wide(x); }

LL_INLINE_SIMD void ll_exp_vp(vf x[2])
{
    vf y[2];
    int unsure = 0;
    LL_UNROLL
    for (size_t i = 0; i < 2; i++) {
        const unary_floats e = unary_floats_exp(x[i]);
        y[i] = vf_add(e.hi, vf_add(e.lo, vf_set1(FLOATS_EXP_PART))); /* hi is about 1 to 2: a part of 1 will do */
        unsure |= vf_differ(y[i], vf_add(e.hi, vf_sub(e.lo, vf_set1(FLOATS_EXP_PART))));
        unsure |= vf_beyond(x[i], FLOATS_EXP_MOST);
        y[i] = vi_as_vf(vi_add(vf_as_vi(y[i]), e.k));
    }
    unary_choose(x, y, unsure, unary_exp_far);
}

LL_INLINE_SIMD void ll_silu_vp(vf x[2])
{
    const vf one = vf_set1(1.0f);
    vf y[2];
    int unsure = 0;
    LL_UNROLL
    for (size_t i = 0; i < 2; i++) {
        const unary_floats e = unary_floats_exp(vf_sub(vf_zero(), x[i]));
        const vf power = vi_as_vf(vi_add(vf_as_vi(one), e.k)), sum = vf_add(e.hi, e.lo);
        const vf hi = vf_mul(sum, power), lo = vf_mul(vf_sub(e.lo, vf_sub(sum, e.hi)), power);
        const vf d = vf_add(one, hi), rest = vf_sub(d, one); /* 1 + hi + lo = d + dl: the larger of 1 and hi isn't known */
        const vf dl = vf_add(vf_add(vf_sub(one, vf_sub(d, rest)), vf_sub(hi, rest)), lo), inverse = vf_div(one, d);
        const vf q = vf_mul(x[i], inverse), minus = vf_sub(vf_zero(), q);
        const vf ql = vf_mul(vf_fma(minus, dl, vf_fma(minus, d, x[i])), inverse);
        y[i] = vf_add(q, vf_fma(q, vf_set1(FLOATS_SILU_PART), ql));
        unsure |= vf_differ(y[i], vf_add(q, vf_fma(q, vf_set1(-FLOATS_SILU_PART), ql)));
        unsure |= vf_beyond(x[i], FLOATS_SILU_MOST) | vf_odd(y[i], x[i]);
        y[i] = vf_or_sign(y[i], x[i]);
    }
    unary_choose(x, y, unsure, unary_silu_far);
}
#endif

LL_INLINE_SIMD void ll_tanh_vp(vf x[2])
{
    vf c[2], sign[2] = {x[0], x[1]};
    UNARY_PAIR(c, UNARY_CLAMPED(-10.0f, 10.0f));
    UNARY_PAIR(c, vf_add(c[i], c[i]));
    unary_parts e = unary_exp_of(vw_widen(c));
    vw power = vw_scale(vw_set1(1.0), e.k);
    vw expm1 = vw_fma(power, vw_mul(e.r, e.q), vw_sub(power, vw_set1(1.0)));
    unary_round(x, vw_div(expm1, vw_add(expm1, vw_set1(2.0))), ll_exact_tanh);
    UNARY_PAIR(x, vf_or_sign(x[i], sign[i])); /* expm1(-0) came out as +0 */
}

LL_INLINE_SIMD void ll_sigmoid_vp(vf x[2])
{
    vf c[2];
    UNARY_PAIR(c, vf_sub(vf_zero(), UNARY_CLAMPED(-104.0f, 104.0f)));
    unary_round(x, unary_gated(vw_set1(1.0), vw_widen(c)), ll_exact_sigmoid);
}

LL_INLINE_SIMD void ll_gelu_tanh_vp(vf x[2])
{
    vf c[2], a[2];
    UNARY_PAIR(c, vf_max(vf_set1(-11.0f), x[i]));
    UNARY_PAIR(a, vf_min(vf_set1(11.0f), c[i]));
    vw z = vw_widen(a);
    z = vw_mul(z, vw_fma(vw_mul(z, z), vw_set1(-UNARY_GELU_TANH_B), vw_set1(-UNARY_GELU_TANH_A)));
    unary_round(x, unary_gated(vw_widen(c), z), ll_exact_gelu_tanh);
}

/* gelu anywhere. */
LL_NOINLINE void unary_gelu_far(vf x[2])
{
    vf c[2], t[2], above[2], sign[2] = {x[0], x[1]};
    UNARY_PAIR(c, vf_max(vf_set1(-14.5f), x[i]));
    UNARY_PAIR(t, vf_min(vf_set1(14.5f), vf_abs(c[i])));
    UNARY_PAIR(above, vf_max(vf_zero(), c[i]));
    vw w = vw_widen(t);
    vw e = unary_exp(vw_mul(vw_mul(w, vw_set1(-0.5)), w)); /* the argument is exact */
    vw p = vw_set1(MILLS_P7), q = vw_set1(MILLS_Q8);
    UNARY_CHAIN(q, w, MILLS_Q7);
    UNARY_CHAIN(p, w, MILLS_P6);
    UNARY_CHAIN(q, w, MILLS_Q6);
    UNARY_CHAIN(p, w, MILLS_P5);
    UNARY_CHAIN(q, w, MILLS_Q5);
    UNARY_CHAIN(p, w, MILLS_P4);
    UNARY_CHAIN(q, w, MILLS_Q4);
    UNARY_CHAIN(p, w, MILLS_P3);
    UNARY_CHAIN(q, w, MILLS_Q3);
    UNARY_CHAIN(p, w, MILLS_P2);
    UNARY_CHAIN(q, w, MILLS_Q2);
    UNARY_CHAIN(p, w, MILLS_P1);
    UNARY_CHAIN(q, w, MILLS_Q1);
    UNARY_CHAIN(p, w, MILLS_P0);
    UNARY_CHAIN(q, w, MILLS_Q0);
    vw y = vw_sub(vw_widen(above), vw_div(vw_mul(vw_mul(w, e), p), q));
    unary_round(x, y, ll_exact_gelu);
    UNARY_PAIR(x, vf_or_sign(x[i], sign[i])); /* 0 - 0 was +0 */
}

/* Where all |x| <= 4, which is nearly everywhere, without exp and division: (1 - Phi(t))^(1/8) is so tame that a
 * polynomial reaches 2^-40.0 in its eighth power. */
LL_INLINE_SIMD void ll_gelu_vp(vf x[2])
{
    vf y[2];
    vw z = vw_widen(x), w = vw_abs(z), s = vw_mul(z, z);
    vw p = vw_set1(TAIL_P14), q = vw_set1(TAIL_P15); /* even and odd: twice as many chains */
    UNARY_CHAIN(p, s, TAIL_P12);
    UNARY_CHAIN(q, s, TAIL_P13);
    UNARY_CHAIN(p, s, TAIL_P10);
    UNARY_CHAIN(q, s, TAIL_P11);
    UNARY_CHAIN(p, s, TAIL_P8);
    UNARY_CHAIN(q, s, TAIL_P9);
    UNARY_CHAIN(p, s, TAIL_P6);
    UNARY_CHAIN(q, s, TAIL_P7);
    UNARY_CHAIN(p, s, TAIL_P4);
    UNARY_CHAIN(q, s, TAIL_P5);
    UNARY_CHAIN(p, s, TAIL_P2);
    UNARY_CHAIN(q, s, TAIL_P3);
    UNARY_CHAIN(p, s, TAIL_P0);
    UNARY_CHAIN(q, s, TAIL_P1);
    p = vw_fma(q, w, p);
    p = vw_mul(p, p);
    p = vw_mul(p, p);
    p = vw_mul(p, p);
    int unsure = unary_unsure(x, vw_sub(vw_max(z, vw_set1(0.0)), vw_mul(w, p)), TAIL_MARGIN, y);
    unsure |= vf_beyond(x[0], 4.0f) | vf_beyond(x[1], 4.0f);
    UNARY_PAIR(y, vf_or_sign(y[i], x[i]));
    unary_choose(x, y, unsure, unary_gelu_far);
}

LL_INLINE_SIMD void ll_erf_vp(vf x[2])
{
    vf a[2];
    UNARY_PAIR(a, UNARY_CLAMPED(-4.0f, 4.0f));
    vw c = vw_widen(a), w = vw_mul(c, c), p = vw_set1(ERF_P9), q = vw_set1(ERF_Q8);
    UNARY_CHAIN(p, w, ERF_P8);
    UNARY_CHAIN(q, w, ERF_Q7);
    UNARY_CHAIN(p, w, ERF_P7);
    UNARY_CHAIN(q, w, ERF_Q6);
    UNARY_CHAIN(p, w, ERF_P6);
    UNARY_CHAIN(q, w, ERF_Q5);
    UNARY_CHAIN(p, w, ERF_P5);
    UNARY_CHAIN(q, w, ERF_Q4);
    UNARY_CHAIN(p, w, ERF_P4);
    UNARY_CHAIN(q, w, ERF_Q3);
    UNARY_CHAIN(p, w, ERF_P3);
    UNARY_CHAIN(q, w, ERF_Q2);
    UNARY_CHAIN(p, w, ERF_P2);
    UNARY_CHAIN(q, w, ERF_Q1);
    UNARY_CHAIN(p, w, ERF_P1);
    UNARY_CHAIN(q, w, ERF_Q0);
    UNARY_CHAIN(p, w, ERF_P0);
    unary_round(x, vw_div(vw_mul(c, p), q), ll_exact_erf);
}

LL_INLINE_SIMD void ll_relu_vp(vf x[2])
{
    UNARY_PAIR(x, vf_add(vf_max(vf_zero(), x[i]), vf_zero())); /* the larger of +0 and -0 may be either: + 0 makes it +0 */
}
#undef UNARY_CLAMPED
#undef UNARY_PAIR
#undef UNARY_CHAIN

/* ---- arrays ----------------------------------------------------------------------------------- */

/* Values [j, n) of a row, at most two vectors; what is past n is 0, which no function finds hard. */
LL_INLINE_SIMD void pair_load(const char *row, size_t j, size_t n, int dtype, vf v[2])
{
    for (size_t i = 0; i < 2; i++) {
        size_t count = ll_lanes_left(j, i, n);
        v[i] = count ? row_load_n(row, j + i * LL_VL, count, dtype) : vf_zero();
    }
}

LL_INLINE_SIMD void pair_store(char *row, size_t j, size_t n, int dtype, const vf v[2])
{
    for (size_t i = 0; i < 2; i++) {
        size_t count = ll_lanes_left(j, i, n);
        if (count)
            row_store_n(row, j + i * LL_VL, v[i], count, dtype);
    }
}

/* y = f(x) [n]: float32, then the other types, which go through float32, UNARY_PART values at a time, in the first cache.
 * Each function is compiled once: what is left at the end goes through two vectors of its own. */
#define UNARY_PART 512

LL_INLINE_SIMD void unary_parts_of(ll_unary_kernel function, const char *x, char *y, size_t n, int dtype)
{
    _Alignas(64) float part[UNARY_PART];
    const size_t size = ll_dtype_size(dtype);
    for (size_t j = 0; j < n; j += UNARY_PART) {
        const size_t count = ll_least(UNARY_PART, n - j);
        cast_values(x + j * size, dtype, (char *)part, LL_F32, count);
        function(part, part, count);
        cast_values((const char *)part, LL_F32, y + j * size, dtype, count);
    }
}

LL_NOINLINE void unary_widened(ll_unary_kernel function, const void *x, void *y, size_t n, int dtype)
{
    if (dtype == LL_F16)
        unary_parts_of(function, x, y, n, LL_F16);
    else
        unary_parts_of(function, x, y, n, LL_BF16);
}

#define LL_DEFINE(name)                                                                                                 \
    LL_NOINLINE void LL_SYMBOL(name##_f32)(const void *x, void *y, size_t n)                                            \
    {                                                                                                                   \
        vf v[2];                                                                                                        \
        size_t j = 0;                                                                                                   \
        for (; j + 2 * LL_VL <= n; j += 2 * LL_VL) {                                                                    \
            v[0] = row_load(x, j, LL_F32);                                                                              \
            v[1] = row_load(x, j + LL_VL, LL_F32);                                                                      \
            ll_##name##_vp(v);                                                                                          \
            row_store(y, j, v[0], LL_F32);                                                                              \
            row_store(y, j + LL_VL, v[1], LL_F32);                                                                      \
        }                                                                                                               \
        if (j < n) {                                                                                                    \
            float rest[2 * LL_VL];                                                                                      \
            pair_load(x, j, n, LL_F32, v);                                                                              \
            vf_store(rest, v[0]);                                                                                       \
            vf_store(rest + LL_VL, v[1]);                                                                               \
            LL_SYMBOL(name##_f32)(rest, rest, 2 * LL_VL);                                                               \
            v[0] = vf_load(rest);                                                                                       \
            v[1] = vf_load(rest + LL_VL);                                                                               \
            pair_store(y, j, n, LL_F32, v);                                                                             \
        }                                                                                                               \
    }                                                                                                                   \
    LL_NOINLINE void LL_SYMBOL(name##_f16)(const void *x, void *y, size_t n)                                                 \
    {                                                                                                                   \
        unary_widened(LL_SYMBOL(name##_f32), x, y, n, LL_F16);                                                          \
    }                                                                                                                   \
    LL_NOINLINE void LL_SYMBOL(name##_bf16)(const void *x, void *y, size_t n)                                                \
    {                                                                                                                   \
        unary_widened(LL_SYMBOL(name##_f32), x, y, n, LL_BF16);                                                         \
    }

LL_DEFINE(exp)
LL_DEFINE(tanh)
LL_DEFINE(erf)
LL_DEFINE(sigmoid)
LL_DEFINE(silu)
LL_DEFINE(gelu)
LL_DEFINE(gelu_tanh)
LL_DEFINE(relu)
#undef LL_DEFINE

/* By number: LL_EXP and so on; NULL is no function. */
static const ll_unary_kernel unary_float32[LL_UNARY_OPS] = {
    [LL_EXP] = LL_SYMBOL(exp_f32),
    [LL_TANH] = LL_SYMBOL(tanh_f32),
    [LL_ERF] = LL_SYMBOL(erf_f32),
    [LL_SIGMOID] = LL_SYMBOL(sigmoid_f32),
    [LL_SILU] = LL_SYMBOL(silu_f32),
    [LL_GELU] = LL_SYMBOL(gelu_f32),
    [LL_GELU_TANH] = LL_SYMBOL(gelu_tanh_f32),
    [LL_RELU] = LL_SYMBOL(relu_f32),
};

#endif
