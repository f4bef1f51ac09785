/* rope_table.c: the cosine and the sine of p f for rotary positions, correctly rounded to float32.
 *
 *   theta = p f            f a double-double, good to 2^-106 of itself; p below 2^53
 *   theta = k pi/2 + r     k = round(theta 2/pi), |r| < 0.7854
 *   cos r, sin r           by their Taylor series: in float64, and where that doesn't decide the rounding, in double-double
 *
 * Baseline code without fma or any function of the C library. No bit hangs on that, as what comes out is rounded correctly.
 *
 * Bounds, with u = 2^-53.
 *   theta: p f_hi = a + b is exact. p f_lo, at most u theta, is rounded: u^2 theta. So is its sum with b: 2 u^2 theta. f
 *          itself is off by u^2 theta at most. Together 4 u^2 theta.
 *   r:     pi/2 = A + B + C within 2^-114. k A and k B are exact, as k has 25 bits and these 28 each; both are taken off
 *          by exact sums. What is left of those sums, of theta and of k C is at most u (theta + 2) and is added with three
 *          roundings: 7 u^2 theta (k = 0 has none of them). Together |r - true r| < 11 u^2 theta < ANGLE theta.
 *   float64:       the series end where what follows is below 2^-58 of the result; some 6 u of rounding; factor and its
 *          product 2 u: far below FAST of the result.
 *   double-double: some 40 u^2 by the bounds of double_double.h, what follows the last term is below 2^-110: far below
 *          SLOW of the result.
 * Neither function is steeper than 1, so a result is off by that much of itself, and by ANGLE theta more. Where adding
 * and subtracting it gives one float32, that is the result; where the double-double doesn't decide either, it is NaN, and
 * the caller needs a longer f. FAST leaves one value in 2^20 undecided, SLOW and ANGLE one in 2^50 where theta is about
 * 2^24, and fewer at smaller ones.
 *
 * Oracle: llorch.reference.rope_table, in integers. Tests: tests/kernels/test_rope.py. */
#include <math.h>
#include <stdatomic.h>

#include "double_double.h"
#include "llorch.h"

#define PI_2_A 0x1.921fb54000000p+0
#define PI_2_B 0x1.10b4612000000p-30
#define PI_2_C -0x1.676733ae8fe48p-60
#define TWO_OVER_PI 0x1.45f306dc9c883p-1

#define ANGLE 0x1p-101
#define FAST 0x1p-45
#define SLOW 0x1p-96
/* Angles for which the bounds hold: k has 25 bits, no product comes near the end of the range. */
#define ANGLE_LEAST 0x1p-100
#define ANGLE_MOST 0x1p24
#define TERMS 28

/* Values a thread must have to be worth waking: some 10 us of work. */
#define WORTH_VALUES 512

typedef struct rope_table_job {
    const double *f_hi, *f_lo;
    size_t half, first;
    dd factor;
    float *cos, *sin;
    _Atomic size_t undecided;
} rope_table_job;

/* r = rest of theta, and which quarter of the circle it is from. */
static dd reduced(dd theta, unsigned *quarter)
{
    const double k = (double)(int64_t)(theta.h * TWO_OVER_PI + 0.5);
    const dd a = two_sum(theta.h, -(k * PI_2_A)), b = two_sum(a.h, -(k * PI_2_B));
    *quarter = (unsigned)((int64_t)k & 3);
    return two_sum(b.h, (a.l + b.l) + (theta.l - k * PI_2_C));
}

static double fast_sine(dd r)
{
    const double z = r.h * r.h;
    double s = 0x1.952c77030ad4ap-49; /* 1/17! and so on */
    s = -0x1.ae7f3e733b81fp-41 + z * s;
    s = 0x1.6124613a86d09p-33 + z * s;
    s = -0x1.ae64567f544e4p-26 + z * s;
    s = 0x1.71de3a556c734p-19 + z * s;
    s = -0x1.a01a01a01a01ap-13 + z * s;
    s = 0x1.1111111111111p-7 + z * s;
    s = -0x1.5555555555555p-3 + z * s;
    return r.h + (r.h * z * s + r.l * (1.0 - 0.5 * z));
}

static double fast_cosine(dd r)
{
    const double z = r.h * r.h;
    double s = -0x1.6827863b97d97p-53; /* -1/18! and so on */
    s = 0x1.ae7f3e733b81fp-45 + z * s;
    s = -0x1.93974a8c07c9dp-37 + z * s;
    s = 0x1.1eed8eff8d898p-29 + z * s;
    s = -0x1.27e4fb7789f5cp-22 + z * s;
    s = 0x1.a01a01a01a01ap-16 + z * s;
    s = -0x1.6c16c16c16c17p-10 + z * s;
    s = 0x1.5555555555555p-5 + z * s;
    return 1.0 - (0.5 * z - (z * z * s - r.h * r.l));
}

/* 1 - z / (first (first + 1)) (1 - z / ((first + 2) (first + 3)) (1 - ..)) */
static dd series(dd z, int first)
{
    dd s = of(1.0);
    for (int n = TERMS - first % 2; n >= first; n -= 2)
        s = add(of(1.0), negative(divide(multiply(z, s), of((double)n * (n + 1)))));
    return s;
}

static float slow(dd v, double e)
{
    const float low = rounded(add(v, of(-e))), high = rounded(add(v, of(e)));
    return low == high ? low : NAN;
}

static void rope_table_task(void *context, size_t begin, size_t end)
{
    rope_table_job *job = context;
    size_t undecided = 0;
    for (size_t row = begin; row < end; row++)
        for (size_t i = 0; i < job->half; i++) {
            const double p = (double)(job->first + row), factor = job->factor.h;
            float *to[2] = {&job->cos[row * job->half + i], &job->sin[row * job->half + i]};
            if (p == 0.0) {
                *to[0] = job->factor.l == 0.0 ? (float)factor : slow(job->factor, factor * SLOW);
                *to[1] = 0.0f;
                undecided += *to[0] != *to[0];
                continue;
            }
            const dd product = two_product(p, job->f_hi[i]), theta = quick_sum(product.h, product.l + p * job->f_lo[i]);
            if (!(theta.h > ANGLE_LEAST && theta.h < ANGLE_MOST)) {
                *to[0] = *to[1] = NAN;
                undecided += 2;
                continue;
            }
            unsigned quarter;
            const dd r = reduced(theta, &quarter);
            const double c = fast_cosine(r), s = fast_sine(r), angle = factor * theta.h * ANGLE;
            for (int which = 0; which < 2; which++) { /* cosine; sine, which is the cosine a quarter before */
                const unsigned turned = (quarter + (which ? 3u : 0u)) & 3;
                const double sign = turned == 1 || turned == 2 ? -1.0 : 1.0;
                const double v = (turned % 2 ? s : c) * factor * sign, e = fabs(v) * FAST + angle;
                const float low = (float)(v - e), high = (float)(v + e);
                *to[which] = low;
                if (low == high)
                    continue;
                const dd z = multiply(r, r);
                dd exact = turned % 2 ? multiply(r, series(z, 2)) : series(z, 1);
                exact = multiply(multiply(exact, job->factor), of(sign));
                *to[which] = slow(exact, fabs(exact.h) * SLOW + angle);
                undecided += *to[which] != *to[which];
            }
        }
    if (undecided)
        atomic_fetch_add_explicit(&job->undecided, undecided, memory_order_relaxed);
}

size_t ll_rope_table(const double *f_hi, const double *f_lo, size_t half, double factor_hi, double factor_lo, size_t first,
                     size_t count, float *cos, float *sin)
{
    rope_table_job job = {.f_hi = f_hi, .f_lo = f_lo, .half = half, .first = first, .factor = {factor_hi, factor_lo},
                          .cos = cos, .sin = sin};
    if (half && count)
        ll_parallel_for(count, half, WORTH_VALUES, 1, rope_table_task, &job);
    return atomic_load_explicit(&job.undecided, memory_order_relaxed);
}
