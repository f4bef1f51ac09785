/* check.c: is y the float32 nearest to f(x)? For every pair of an array; built and called by tools/exhaustive.py.
 *
 * First in float64, by the C library's functions: glibc's exp, tanh, erf and erfc are within 2 units of 2^-53. What is
 * added to that is largest where the argument is rounded before: 4 units of 2^-53 in an exponent up to 113 (gelu_tanh),
 * 1.5 units in the argument z of erfc, which amplifies by 2 z^2 < 211 (gelu): below 2^-44. Where 2^-42 more or less
 * gives the same float32, that must be y. Where it doesn't, MPFR decides, in 200 bits and in more until it can.
 * Nothing of llorch's is used. */
#define _GNU_SOURCE
#include <float.h>
#include <math.h>
#include <mpfr.h>
#include <stdint.h>
#include <string.h>

#define MARGIN 0x1p-42

enum { EXP, TANH, ERF, SIGMOID, SILU, GELU, GELU_TANH };

static uint32_t bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* ---- float64 ---------------------------------------------------------------------------------- */

static double approximate(int op, double x)
{
    switch (op) {
    case EXP: return exp(x);
    case TANH: return tanh(x);
    case ERF: return erf(x);
    case SIGMOID: return 1.0 / (1.0 + exp(-x));
    case SILU: return x / (1.0 + exp(-x));
    case GELU: return 0.5 * x * erfc(-x * 0x1.6a09e667f3bcdp-1);
    default: return x / (1.0 + exp(-x * (0x1.9884533d43651p+0 + 0x1.2444f2a4d8b4bp-4 * x * x)));
    }
}

/* ---- MPFR ------------------------------------------------------------------------------------- */

/* f(x) to nearly the precision of r: a few units in its last place, and where 1 - Phi is taken more were added. */
static void precise(mpfr_t r, int op, double x)
{
    mpfr_prec_t p = mpfr_get_prec(r);
    mpfr_t a, b;
    mpfr_inits2(p + 64, a, b, (mpfr_ptr)0);
    mpfr_set_d(a, x, MPFR_RNDN);
    switch (op) {
    case EXP: mpfr_exp(r, a, MPFR_RNDN); break;
    case TANH: mpfr_tanh(r, a, MPFR_RNDN); break;
    case ERF: mpfr_erf(r, a, MPFR_RNDN); break;
    case SIGMOID:
    case SILU:
        mpfr_neg(b, a, MPFR_RNDN);
        mpfr_exp(b, b, MPFR_RNDN);
        mpfr_add_ui(b, b, 1, MPFR_RNDN);
        if (op == SIGMOID)
            mpfr_ui_div(r, 1, b, MPFR_RNDN);
        else
            mpfr_div(r, a, b, MPFR_RNDN);
        break;
    case GELU: /* x/2 erfc(-x / sqrt 2) */
        mpfr_set_ui(b, 2, MPFR_RNDN);
        mpfr_sqrt(b, b, MPFR_RNDN);
        mpfr_div(b, a, b, MPFR_RNDN);
        mpfr_neg(b, b, MPFR_RNDN);
        mpfr_erfc(b, b, MPFR_RNDN);
        mpfr_mul(b, b, a, MPFR_RNDN);
        mpfr_div_2ui(r, b, 1, MPFR_RNDN);
        break;
    default: { /* x / (1 + exp(-2 sqrt(2/pi) (x + 0.044715 x^3))) */
        mpfr_t c;
        mpfr_init2(c, p + 64);
        mpfr_sqr(b, a, MPFR_RNDN);
        mpfr_mul_ui(b, b, 44715, MPFR_RNDN);
        mpfr_div_ui(b, b, 1000000, MPFR_RNDN);
        mpfr_add_ui(b, b, 1, MPFR_RNDN);
        mpfr_mul(b, b, a, MPFR_RNDN);
        mpfr_const_pi(c, MPFR_RNDN);
        mpfr_ui_div(c, 8, c, MPFR_RNDN); /* 2 sqrt(2/pi) = sqrt(8/pi) */
        mpfr_sqrt(c, c, MPFR_RNDN);
        mpfr_mul(b, b, c, MPFR_RNDN);
        mpfr_neg(b, b, MPFR_RNDN);
        mpfr_exp(b, b, MPFR_RNDN);
        mpfr_add_ui(b, b, 1, MPFR_RNDN);
        mpfr_div(r, a, b, MPFR_RNDN);
        mpfr_clear(c);
    }
    }
    mpfr_clears(a, b, (mpfr_ptr)0);
}

/* The float32 nearest to r, by integers: MPFR's own conversion is not relied upon for subnormal results. */
static float nearest(mpfr_t r)
{
    if (mpfr_zero_p(r))
        return mpfr_signbit(r) ? -0.0f : 0.0f;
    mpfr_exp_t e = mpfr_get_exp(r) - 1; /* |r| in [2^e, 2^(e+1)) */
    mpfr_exp_t unit = (e < -126 ? -126 : e) - 23;
    mpfr_t q;
    mpfr_init2(q, mpfr_get_prec(r) + 8);
    mpfr_div_2si(q, r, unit, MPFR_RNDN);
    mpfr_abs(q, q, MPFR_RNDN);
    mpfr_rint(q, q, MPFR_RNDN); /* ties to even */
    double whole = mpfr_get_d(q, MPFR_RNDN);
    mpfr_clear(q);
    double value = unit > 200 ? INFINITY : ldexp(whole, (int)unit); /* exact */
    float f = (float)value;
    return mpfr_signbit(r) ? -f : f;
}

/* log2 of how far r is from the nearer of the two middles beside f, its rounded value, relative to r. */
static double from_middle(mpfr_t r, float f)
{
    double g = fabs((double)f), best = INFINITY;
    /* half way to either neighbour; infinity counts as 2^128 */
    double above = isinf(g) ? INFINITY : (g + (g == FLT_MAX ? 0x1p128 : (double)nextafterf((float)g, INFINITY))) / 2;
    double below = isinf(g) ? ((double)FLT_MAX + 0x1p128) / 2 : g > 0 ? (g + (double)nextafterf((float)g, 0.0f)) / 2 : g;
    mpfr_t d;
    mpfr_init2(d, mpfr_get_prec(r));
    mpfr_abs(r, r, MPFR_RNDN);
    for (int side = 0; side < 2; side++) {
        double middle = side ? above : below;
        if (isinf(middle) || middle == g)
            continue;
        mpfr_sub_d(d, r, middle, MPFR_RNDN);
        mpfr_abs(d, d, MPFR_RNDN);
        mpfr_div(d, d, r, MPFR_RNDN);
        mpfr_log2(d, d, MPFR_RNDN);
        double v = mpfr_get_d(d, MPFR_RNDN);
        best = v < best ? v : best;
    }
    mpfr_clear(d);
    return best;
}

/* Rounds f(x); distance as above. */
static float decide(int op, float x, double *distance)
{
    for (mpfr_prec_t p = 200;; p *= 2) {
        mpfr_t r, low, high;
        mpfr_inits2(p, r, low, high, (mpfr_ptr)0);
        precise(r, op, (double)x);
        mpfr_set(low, r, MPFR_RNDN);
        mpfr_set(high, r, MPFR_RNDN);
        for (int i = 0; i < 64; i++)
            mpfr_nextbelow(low), mpfr_nextabove(high);
        float a = nearest(low), b = nearest(high), f = nearest(r);
        int clear = bits(a) == bits(b) || mpfr_zero_p(r);
        if (clear || p > 20000) {
            *distance = from_middle(r, f);
            mpfr_clears(r, low, high, (mpfr_ptr)0);
            return f;
        }
        mpfr_clears(r, low, high, (mpfr_ptr)0);
    }
}

/* ---- limits ----------------------------------------------------------------------------------- */

static float limit(int op, float x)
{
    int negative = signbit(x) != 0;
    switch (op) {
    case EXP: return negative ? 0.0f : INFINITY;
    case TANH:
    case ERF: return negative ? -1.0f : 1.0f;
    case SIGMOID: return negative ? 0.0f : 1.0f;
    default: return negative ? -0.0f : INFINITY;
    }
}

/* 1 where y is right. near: a result that float64 leaves open. */
static int right(int op, float x, float y, int *near, float *wanted, double *distance)
{
    *near = 0;
    if (isnan(x)) {
        *wanted = x;
        return isnan(y);
    }
    if (isinf(x))
        return bits(y) == bits(*wanted = limit(op, x));
    if (x == 0.0f) {
        *wanted = op == EXP ? 1.0f : op == SIGMOID ? 0.5f : x;
        return bits(y) == bits(*wanted);
    }
    double r = approximate(op, (double)x);
    float low = (float)(r * (1.0 - MARGIN)), high = (float)(r * (1.0 + MARGIN));
    if (r == 0.0) { /* vanished even in float64, which none does but for negative x */
        *wanted = limit(op, -INFINITY);
    } else if (bits(low) == bits(high)) {
        *wanted = low;
    } else {
        *near = 1;
        *wanted = decide(op, x, distance);
    }
    return bits(y) == bits(*wanted);
}

typedef struct wrong { float x, y, wanted; } wrong;
typedef struct hard { float x, wanted; double distance; } hard;

/* Checks y[i] = op(float32 whose encoding is first + i step). Keeps the first `room` wrong ones and, of the `open` inputs
 * that float64 leaves open, the `hard_room` hardest, hardest first. */
uint64_t check(int op, uint32_t first, uint32_t step, const float *y, uint64_t n, wrong *wrongs, uint64_t room, uint64_t *open,
               hard *hards, uint64_t hard_room, uint64_t *hard_count)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t u = first + (uint32_t)i * step;
        float x, wanted;
        double distance;
        int near;
        memcpy(&x, &u, sizeof x);
        if (!right(op, x, y[i], &near, &wanted, &distance)) {
            if (count < room)
                wrongs[count] = (wrong){x, y[i], wanted};
            count++;
        }
        if (!near)
            continue;
        ++*open;
        if (fabsf(x) < 0x1p-30f) /* x/2 and a trifle: hard, but all alike */
            continue;
        if (*hard_count == hard_room && hards[hard_room - 1].distance <= distance)
            continue;
        uint64_t at = *hard_count < hard_room ? (*hard_count)++ : hard_room - 1;
        for (; at > 0 && hards[at - 1].distance > distance; at--)
            hards[at] = hards[at - 1];
        hards[at] = (hard){x, wanted, distance};
    }
    return count;
}

/* The right result for one input. */
float wanted_of(int op, float x)
{
    int near;
    float wanted;
    double distance;
    right(op, x, 0.0f, &near, &wanted, &distance);
    return wanted;
}

void set_up(void) { mpfr_set_emin(-100000); }
