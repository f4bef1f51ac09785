/* exact.c: functions of one variable for one value, in double-double, rounded once to float32.
 *
 * What kernels/unary.h computes in float64 it hands over here where that isn't enough to round: one value in some
 * 10^5, and what isn't a number. So this is written to be right, not fast. Baseline code, compiled once, without fma
 * or any function of the C library: the same bits everywhere.
 *
 *   A value is a dd of double_double.h; every operation is good to about 2^-102.
 *   exp:   a = k ln 2 + r, |r| <= 0.35, 26 terms of the series of exp(r) - 1
 *   Phi:   phi(t) t sum of t^(2n) / (2n+1)!! is Phi(t) - 1/2, all terms positive; from TAIL on, where that would
 *          cancel, phi(t) / (t + 1/(t + 2/(t + 3/(t + ...)))) is 1 - Phi(t)
 *   Results are good to 2^-90; the closest any of the 2^32 inputs comes to a rounding boundary, apart from the ones
 *   named below, is 2^-76.6 (docs/exhaustive.md).
 *
 * Where |x| is tiny the result is a float32 or halfway between two, and a trifle away from it, which no precision
 * would resolve: `nudged` rounds those.
 *
 * Constants: tools/unary_constants.py. */
#include "double_double.h"
#include "llorch.h"

#define LN2_A 0x1.62e42fef00000p-1
#define LN2_B 0x1.473de6ae00000p-34
#define LN2_C 0x1.278ece600fcbep-66
#define TWO_OVER_SQRT_PI {0x1.20dd750429b6dp+0, 0x1.1ae3a914fed80p-56}
#define ONE_OVER_SQRT_2PI {0x1.9884533d43651p-2, -0x1.cbc0d30ebfd15p-56}
#define GELU_A {0x1.9884533d43651p+0, -0x1.cbc0d30ebfd15p-54}
#define GELU_B {0x1.2444f2a4d8b4bp-4, -0x1.6c843a29d1c70p-61}

/* From here the tail is a continued fraction, and how many of its levels give 2^-95. */
#define TAIL 2.75
#define LEVELS 200
#define TERMS 26

/* ---- rounding --------------------------------------------------------------------------------- */

/* 2^k for a normal result */
static double power_of_two(int k)
{
    uint64_t u = (uint64_t)(1023 + k) << 52;
    double p;
    memcpy(&p, &u, sizeof p);
    return p;
}

/* The result is v and a trifle more (away from 0) or less. */
static float nudged(double v, int away) { return (float)step(v, away); }

/* ---- exp -------------------------------------------------------------------------------------- */

/* exp(a) - 1 = 2^k p + (2^k - 1); |a| < 700 */
static dd expm1_part(dd a, int *k)
{
    double t = a.h * 0x1.71547652b82fep+0;
    *k = (int)(t < 0.0 ? t - 0.5 : t + 0.5);
    dd r = add(a, of(-(*k * LN2_A)));
    r = add(r, of(-(*k * LN2_B)));
    r = add(r, of(-(*k * LN2_C)));
    dd s = of(1.0);
    for (int n = TERMS; n > 1; n--)
        s = add(of(1.0), divide(multiply(r, s), of((double)n)));
    return multiply(r, s);
}

static dd scaled(dd v, double power) { return (dd){v.h * power, v.l * power}; }

static dd exponential(dd a)
{
    int k;
    dd p = expm1_part(a, &k);
    return scaled(add(of(1.0), p), power_of_two(k));
}

/* ---- the normal distribution ------------------------------------------------------------------ */

/* sum of w^n / (2n+1)!!, w <= 40 */
static dd odd_series(double w)
{
    dd term = of(1.0), sum = of(1.0);
    for (int n = 1; n < 400 && term.h > sum.h * 0x1p-110; n++) {
        term = divide(multiply(term, of(w)), of(2.0 * n + 1.0));
        sum = add(sum, term);
    }
    return sum;
}

/* t + 1/(t + 2/(t + ...)) */
static dd mills_fraction(double t)
{
    dd f = of(t);
    for (int n = LEVELS; n > 0; n--)
        f = add(of(t), divide(of((double)n), f));
    return f;
}

/* ---- the functions ---------------------------------------------------------------------------- */

static float absolute(float x) { return x < 0.0f ? -x : x; }

float ll_exact_exp(float x)
{
    if (x != x)
        return x;
    if (x > 89.0f)
        return (float)0x1p200;
    if (x < -104.0f)
        return 0.0f;
    return rounded(exponential(of((double)x)));
}

float ll_exact_tanh(float x)
{
    int k;
    if (x != x || absolute(x) < 0x1p-30f) /* x - x^3 / 3 rounds to x */
        return x;
    if (absolute(x) > 10.0f)
        return x < 0.0f ? -1.0f : 1.0f;
    dd p = expm1_part(of(2.0 * (double)x), &k);
    dd e = add(of(power_of_two(k) - 1.0), scaled(p, power_of_two(k)));
    return rounded(divide(e, add(e, of(2.0))));
}

float ll_exact_sigmoid(float x)
{
    if (x != x)
        return x;
    if (x < -104.0f)
        return 0.0f;
    if (x > 40.0f)
        return 1.0f;
    return rounded(divide(of(1.0), add(of(1.0), exponential(of(-(double)x)))));
}

/* x / (1 + exp(-a)) where a = x or more; x in a range where exp(-a) is a normal float64 */
static float gated(float x, dd a) { return rounded(divide(of((double)x), add(of(1.0), exponential(negative(a))))); }

/* x / 2 + c x^2 with c > 0, for the three below where |x| is so small that this is all there is */
static float half_of(float x) { return x == 0.0f ? x : nudged((double)x * 0.5, x > 0.0f); }

float ll_exact_silu(float x)
{
    if (x != x || x > 40.0f)
        return x;
    if (x < -112.0f)
        return -0.0f;
    if (absolute(x) < 0x1p-40f)
        return half_of(x);
    return gated(x, of((double)x));
}

float ll_exact_gelu_tanh(float x)
{
    static const dd a = GELU_A, b = GELU_B;
    if (x != x || x > 11.0f)
        return x;
    if (x < -11.0f)
        return -0.0f;
    if (absolute(x) < 0x1p-40f)
        return half_of(x);
    double w = (double)x * (double)x; /* exact */
    return gated(x, multiply(of((double)x), add(a, multiply(b, of(w)))));
}

float ll_exact_gelu(float x)
{
    static const dd c = ONE_OVER_SQRT_2PI;
    if (x != x || x > 14.5f)
        return x;
    if (x < -14.5f)
        return -0.0f;
    if (absolute(x) < 0x1p-40f)
        return half_of(x);
    double t = (double)absolute(x), w = t * t; /* exact */
    dd density = multiply(c, exponential(of(-0.5 * w))), probability;
    if (t < TAIL) {
        dd above = multiply(multiply(density, of(t)), odd_series(w)); /* Phi(t) - 1/2 */
        probability = add(of(0.5), x > 0.0f ? above : negative(above));
    } else {
        dd tail = divide(density, mills_fraction(t));
        probability = x > 0.0f ? add(of(1.0), negative(tail)) : tail;
    }
    return rounded(multiply(of((double)x), probability));
}

float ll_exact_erf(float x)
{
    static const dd c = TWO_OVER_SQRT_PI;
    if (x != x || x == 0.0f)
        return x;
    if (absolute(x) > 4.0f)
        return x < 0.0f ? -1.0f : 1.0f;
    double z = (double)x, w = z * z; /* exact */
    return rounded(multiply(multiply(multiply(c, exponential(of(-w))), odd_series(2.0 * w)), of(z)));
}
