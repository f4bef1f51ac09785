/* double_double.h: float64 arithmetic in pairs, for exact.c and rope_table.c.
 *
 * A value is h + l, two float64 with |l| <= ulp(h) / 2. Baseline code without fma or any function of the C library: the
 * same bits everywhere. With u = 2^-53, relative errors at most: add 3 u^2 + 13 u^3, also where terms cancel; multiply
 * some 8 u^2; divide some 16 u^2 (Joldes, Muller, Popescu, "Tight and rigorous error bounds for basic building blocks of
 * double-word arithmetic", ACM TOMS 44, 2017).
 */
#ifndef LL_DOUBLE_DOUBLE_H
#define LL_DOUBLE_DOUBLE_H

#include <stdint.h>
#include <string.h>

typedef struct dd { double h, l; } dd;

/* ---- arithmetic ------------------------------------------------------------------------------- */

/* a + b = h + l exactly; |a| >= |b| or a = 0 */
static inline dd quick_sum(double a, double b)
{
    double h = a + b;
    return (dd){h, b - (h - a)};
}

static inline dd two_sum(double a, double b)
{
    double h = a + b, z = h - a;
    return (dd){h, (a - (h - z)) + (b - z)};
}

/* a * b = h + l exactly (Dekker, Veltkamp), for products far from the ends of the range */
static inline dd two_product(double a, double b)
{
    double p = a * b, s = a * 134217729.0, t = b * 134217729.0;
    double ah = s - (s - a), al = a - ah, bh = t - (t - b), bl = b - bh;
    return (dd){p, ((ah * bh - p) + ah * bl + al * bh) + al * bl};
}

static inline dd add(dd a, dd b)
{
    dd s = two_sum(a.h, b.h), t = two_sum(a.l, b.l);
    s = quick_sum(s.h, s.l + t.h);
    return quick_sum(s.h, s.l + t.l);
}

static inline dd multiply(dd a, dd b)
{
    dd p = two_product(a.h, b.h);
    return quick_sum(p.h, p.l + (a.h * b.l + a.l * b.h));
}

static inline dd negative(dd a) { return (dd){-a.h, -a.l}; }
static inline dd of(double a) { return (dd){a, 0.0}; }

static inline dd divide(dd a, dd b)
{
    double q = a.h / b.h;
    dd rest = add(a, negative(multiply(b, of(q))));
    double q1 = rest.h / b.h;
    rest = add(rest, negative(multiply(b, of(q1))));
    return add(quick_sum(q, q1), of(rest.h / b.h));
}

/* ---- rounding --------------------------------------------------------------------------------- */

/* The float64 next to h: away from 0, or towards it. */
static inline double step(double h, int away)
{
    uint64_t u;
    memcpy(&u, &h, sizeof u);
    u += away ? 1 : (uint64_t)-1;
    memcpy(&h, &u, sizeof h);
    return h;
}

/* To float32, also a subnormal one, once: h + l is first rounded to odd in float64. That can't make or lose a tie. */
static inline float rounded(dd v)
{
    uint64_t u;
    memcpy(&u, &v.h, sizeof u);
    if ((v.l < 0.0 || v.l > 0.0) && !(u & 1))
        v.h = step(v.h, (v.l > 0.0) == (v.h > 0.0));
    return (float)v.h;
}

#endif
