"""The constants of csrc/kernels/unary.h and csrc/exact.c, from their definitions, as C text.

    python tools/unary_constants.py            # needs mpmath; some seconds

Polynomials and quotients are fitted in 80 digits, rounded to float64, and what is printed beside them is the largest
relative error of the rounded coefficients, evaluated exactly, on a grid of its own.
"""

import numpy as np
from mpmath import mp, mpf

mp.dps = 80


def chebyshev(count, low, high):
    """Points that crowd at both ends, where the errors of a fit are largest."""
    middle, half = (mpf(low) + high) / 2, (mpf(high) - low) / 2
    return [middle + half * mp.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)]


def horner(coefficients, x):
    """Lowest degree first."""
    value = mpf(0)
    for c in reversed(coefficients):
        value = value * x + c
    return value


def fit(f, low, high, numerator, denominator, rounds=8):
    """P, Q of these degrees (Q[0] = 1) with P(x)/Q(x) near f(x), relatively, in [low, high].

    Least squares of (P - f Q) / (f Q_before), repeated until Q stays (Loeb); the points' weights grow where the error
    is large (Lawson), which brings it near to the smallest largest error.
    """
    unknowns = numerator + denominator + 1
    points = chebyshev(6 * unknowns, low, high)
    values = [f(x) for x in points]
    Q = [mpf(1)] + [mpf(0)] * denominator
    weights = [mpf(1)] * len(points)
    best = None
    for _ in range(rounds):
        rows, right = mp.matrix(len(points), unknowns), mp.matrix(len(points), 1)
        for i, (x, y) in enumerate(zip(points, values, strict=True)):
            w = mp.sqrt(weights[i]) / (y * horner(Q, x))
            for j in range(numerator + 1):
                rows[i, j] = w * x**j
            for j in range(1, denominator + 1):
                rows[i, numerator + j] = -w * y * x**j
            right[i] = w * y
        # normal equations: 80 digits are enough for their condition
        solution = mp.lu_solve(rows.T * rows, rows.T * right)
        P = [solution[j] for j in range(numerator + 1)]
        Q = [mpf(1)] + [solution[numerator + j] for j in range(1, denominator + 1)]
        errors = [abs(horner(P, x) / horner(Q, x) / y - 1) for x, y in zip(points, values, strict=True)]
        if best is None or max(errors) < best[0]:
            best = (max(errors), P, Q)
        mean = sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)
        weights = [w * (e / mean + mpf("0.05")) for w, e in zip(weights, errors, strict=True)]
    return best[1], best[2]


def show(name, f, low, high, numerator, denominator):
    P, Q = fit(f, low, high, numerator, denominator)
    P, Q = [mpf(float(c)) for c in P], [mpf(float(c)) for c in Q]
    grid = [x for x in chebyshev(2003, low, high) if x != 0]
    worst = max(abs(horner(P, x) / horner(Q, x) / f(x) - 1) for x in grid)
    interval = f"[{mp.nstr(mpf(low), 5)}, {mp.nstr(mpf(high), 5)}]"
    print(f"/* {name}: on {interval}, relative error 2^{float(mp.log(worst, 2)):.1f} */")
    for what, coefficients in (("p", P), ("q", Q if denominator else [])):
        for i, c in enumerate(coefficients):
            print(f"#define {name}_{what.upper()}{i} {float(c).hex()}")


def show_double_double(name, value):
    high = float(value)
    print(f"#define {name} {{{high.hex()}, {float(value - mpf(high)).hex()}}}")


def expm1_over(r):
    return mp.expm1(r) / r if r else mpf(1)


def mills(t):
    """erfc(t / sqrt 2) * exp(t^2 / 2) / 2: the normal tail without its exponential."""
    return mp.erfc(t / mp.sqrt(2)) * mp.exp(t * t / 2) / 2


def tail(t):
    """The eighth root of the normal tail."""
    return mp.root(mp.erfc(t / mp.sqrt(2)) / 2, 8)


def erf_over(w):
    """erf(x) / x as a function of w = x^2."""
    return mp.erf(mp.sqrt(w)) / mp.sqrt(w) if w else 2 / mp.sqrt(mp.pi)


def exact_parts():
    """The constants of exact.c: ln 2 in three parts that leave room for an 11-bit factor, the others in two."""
    rest, parts = mp.log(2), []
    for bits in (33, 65):
        part = mp.floor(rest * mpf(2) ** bits) / mpf(2) ** bits
        parts.append(float(part))
        rest -= part
    parts.append(float(rest))
    for name, part in zip(("LN2_A", "LN2_B", "LN2_C"), parts, strict=True):
        print(f"#define {name} {part.hex()}")
    show_double_double("TWO_OVER_SQRT_PI", 2 / mp.sqrt(mp.pi))
    show_double_double("ONE_OVER_SQRT_2PI", 1 / mp.sqrt(2 * mp.pi))
    show_double_double("GELU_A", 2 * mp.sqrt(2 / mp.pi))
    show_double_double("GELU_B", 2 * mp.sqrt(2 / mp.pi) * mpf("0.044715"))


def float32(value):
    return mpf(float(np.float32(float(value))))


def show_floats():
    """The constants of exp in pairs of float32: ln 2 / 32 in two parts, and 2^(i / 32)."""
    step = mp.log(2) / 32
    high = float32(step)
    for name, value in (("32_BY_LN_2", 1 / step), ("LN_2_BY_32", high), ("LN_2_BY_32_LOW", step - high)):
        print(f"#define FLOATS_{name} {float(float32(value)).hex()}f")
    for i in (2, 3, 4):
        print(f"#define FLOATS_EXP_P{i} {float(float32(1 / mp.factorial(i))).hex()}f")
    powers = [mpf(2) ** (mpf(i) / 32) for i in range(32)]
    for name, values in (("power", powers), ("power_low", [p - float32(p) for p in powers])):
        print(f"floats_{name}[32] = {{{', '.join(f'{float(float32(v)).hex()}f' for v in values)}}}")


if __name__ == "__main__":
    half = mp.log(2) / 2 * mpf("1.0001")
    show("EXPM1", expm1_over, -half, half, 8, 0)
    show("MILLS", mills, 0, mpf("14.5"), 7, 8)
    show("TAIL", tail, 0, 4, 15, 0)
    show("ERF", erf_over, 0, 16, 9, 8)
    show_floats()
    print("/* exact.c */")
    exact_parts()
