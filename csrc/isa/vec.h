/* vec.h: the primitives every kernel is written on, documented once. vec_<isa>.h defines them.
 *
 *   LL_VL                    lanes of a vector: a power of two that divides 64
 *   LL_STRIP                 registers that two sets of accumulators may fill (the rest is for the data):
 *                            a divisor of 64 / LL_VL
 *   LL_TILE_ROWS             rows of x that a tile of the matrix product takes at most, and
 *   LL_TILE_PANELS           panels of 16 columns that it takes then: the accumulators LL_TILE_ROWS x
 *                            LL_TILE_PANELS x 16 / LL_VL fill the register file, but for the operands
 *   LL_UNROLL                before a loop over registers, of constant turns: unroll it, so that they are registers
 *                            (LL_UNROLL_WHOLE)
 *   vf                       a vector of LL_VL float32
 *
 *   vf_zero()  vf_set1(a)                     every lane +0.0, every lane a
 *   vf_load(p)  vf_store(p, v)                LL_VL float32 at any address
 *   vf_load_n(p, m)  vf_store_n(p, v, m)      the first m lanes, 0 < m < LL_VL; loads fill with +0.0, touch nothing else
 *   vf_stream(p, v)                           store around the caches; p aligned to the vector's size
 *   vf_load_f16(p)  vf_store_f16(p, v)        LL_VL float16: widened exactly, rounded once to nearest even
 *   vf_load_bf16(p)  vf_store_bf16(p, v)      the same for bfloat16
 *   vf_load_first(p)  vf_load_second(p)       of LL_VL pairs of bfloat16: the first of each, or the second, widened
 *   vf_store_pairs(p, a, b)                   LL_VL pairs: a's values are the first, b's the second, rounded
 *   vf_add  vf_sub  vf_mul  vf_div  vf_fma(a, b, c)   lane by lane; vf_fma rounds a * b + c once
 *   vf_first(v, m)                            the first m lanes of v, +0.0 in the others
 *   vf_join(a, b, m)                          the first m lanes of a, then the first of b
 *   vf_fold(v)                                for h = LL_VL/2 .. 1: v[j] = v[j] + v[j+h] for j < h; v[0]
 *   vf_most(v)                                the largest lane; where one is a NaN, any
 *   vf_min(a, b)  vf_max(a, b)                lane by lane; NaN where b is NaN; of two zeros any
 *   vf_where_less(a, b, v, w)                 lane by lane: v where a < b, else w
 *   vf_abs(v)  vf_or_sign(v, s)               without the sign bit; with it where s has it (else v's own)
 *   vf_differ(a, b)                           not 0 if a != b in any lane; a NaN differs from everything
 *   vf_beyond(v, a)                           not 0 if |v| > a in any lane, or is a NaN
 *   vf_equal(a, b)                            a bit for each lane, 1 where a == b (never where one is a NaN)
 *   vf_transpose(v)                           of LL_VL vectors: v[i] lane j becomes v[j] lane i
 *
 *   vi                                        a vector of LL_VL integers of 32 bits, or as many pairs of 16 bits
 *   vi_zero()  vi_set1(a)  vi_load(p)  vi_store(p, v)
 *   vi_shr(v, n)  vi_shr16(v, n)              logical shifts, of 32 bits or of each 16
 *   vi_sar(v, n)                              an arithmetic shift of 32 bits
 *   vi_shl(v, n)  vi_add(a, b)  vi_and(a, b)  vi_or(a, b)   vi_and_or(a, b, c): (a & b) | c
 *   vi_dot(v, a, b)                           v + the sum of the products of a's and b's pairs of signed 16 bits
 *   vi_dot_chain(v, a, b)                     the same, of long chains of which few are side by side: newer clangs make two
 *                                             instructions of one there, for its latency; optional, LL_DOT_CHAIN
 *   vi_dot_bytes(v, a, b)                     v + the sum of the products of a's four unsigned bytes and b's signed ones; optional,
 *                                             LL_DOT_BYTES says it is there, with the next two
 *   vi_digits(v)                              of signed 16-bit integers, each quarter of a vector for itself: the upper bytes of
 *                                             the integers 0, 4, 1, 5, 2, 6, 3, 7, then the lower bytes of the same
 *   vi_load_now(p)                            vi_load(p), once and into a register: not again where it is used
 *   vi_to_vf(v)  vi_from_vf(v)                signed integers to float32 and back, rounded to nearest even
 *   vi_as_vf(v)                               the same bits
 *   vi_store_i16(p, v)                        LL_VL integers, which fit, as 16 bits
 *   vf_lookup(table, v)                       lane by lane the float32 of a table of 16 that v's lowest 4 bits number
 *   vf_lookup_32(table, v)  vf_as_vi(v)       the same of a table of 32 and v's lowest 5 bits; the same bits. Optional:
 *                                             LL_LOOKUP_32 says they are there, and take no longer than an fma
 *
 *   vd                                        a vector of LL_VL / 2 float64
 *   vd_set1(a)  vd_add  vd_sub  vd_mul  vd_div  vd_max  vd_abs
 *   vd_fma(a, b, c)                           a * b + c rounded once, or (generic) twice: for results that are
 *                                             rounded to float32 with a margin, never for ones that are bits
 *   vd_scale(v, t)                            v * 2^k for t = 1.5 * 2^52 + k; v and the result are normal numbers
 *   vd_low(v)  vd_high(v)                     the first half of a vf's lanes, and the other, exactly
 *   vf_narrow(a, b)                           back to float32, rounded to nearest even
 *   vd_near_tie(a, b, m)  vf_odd(v, x)        optional, LL_NEAR_TIE says they are there: not 0 if a lane of a or b lies
 *                                             within 2^-m of itself from halfway between two normal float32; if a lane
 *                                             of v is NaN, subnormal or 0, but where x is 0
 *
 * Everything below is made of these and is the same for every instruction set.
 */
#ifndef LL_VEC_H
#define LL_VEC_H

#include <string.h>

#include "../llorch.h"

/* LL_INLINE is for functions that are inlined for the constants they are called with. Under a sanitizer they are functions like
 * any other: its checks in every call's place take compilers many minutes. So are those that are LL_INLINE_SIMD in plain C, where
 * their lanes took compilers a minute for little. Primitives, and what the loop of a tile is made of, are LL_ALWAYS_INLINE.
 * LL_INLINE_HOT is for what most of the tests' time goes to: it is optimised under a sanitizer, too. */
#define LL_ALWAYS_INLINE static inline __attribute__((always_inline, unused))
#ifdef LL_SANITIZE
#define LL_INLINE static __attribute__((unused))
#define LL_INLINE_HOT LL_INLINE __attribute__((optimize("O3")))
#else
#define LL_INLINE LL_ALWAYS_INLINE
#define LL_INLINE_HOT LL_INLINE
#endif
#ifdef LL_PLAIN
#define LL_INLINE_SIMD static __attribute__((unused))
#else
#define LL_INLINE_SIMD LL_INLINE
#endif
#define LL_NOINLINE static __attribute__((noinline, unused))
/* What is in memory stays there: no value is kept in a register from before to after. */
#define LL_MEMORY() __asm__ volatile("" ::: "memory")
/* An array that is written before it is read, where no compiler sees it. */
#define LL_UNSET(array) __asm__("" : "=m"(array))

/* Before a loop: n times its body; or, of at most n turns, a constant, the whole of it. clang doesn't get an array apart into
 * registers while a loop over it is there, and unrolls by a number too late for that. Not under a sanitizer: its checks would be
 * repeated with the body, which takes compilers many minutes, and where the loops stay loops it sees every index of a register,
 * too. */
#define LL_PRAGMA(words) _Pragma(#words)
#if defined(LL_SANITIZE)
#define LL_UNROLL_BY(n) LL_PRAGMA(GCC unroll 1)
#define LL_UNROLL_WHOLE(n) LL_PRAGMA(GCC unroll 1)
#elif defined(__clang__)
#define LL_UNROLL_BY(n) LL_PRAGMA(clang loop unroll_count(n))
#define LL_UNROLL_WHOLE(n) LL_PRAGMA(clang loop unroll(full))
#else
#define LL_UNROLL_BY(n) LL_PRAGMA(GCC unroll n)
#define LL_UNROLL_WHOLE(n) LL_PRAGMA(GCC unroll n)
#endif

#ifndef LL_DOT_CHAIN
LL_ALWAYS_INLINE vi vi_dot_chain(vi v, vi a, vi b) { return vi_dot(v, a, b); }
#endif

#define LL_LANES 64
#define LL_REGS (LL_LANES / LL_VL)

/* Values [j, j + LL_VL) of a row. dtype is a constant wherever these are in a hot loop. */
LL_ALWAYS_INLINE vf row_load(const char *row, size_t j, int dtype)
{
    const char *p = row + j * ll_dtype_size(dtype);
    return dtype == LL_F32 ? vf_load(p) : dtype == LL_F16 ? vf_load_f16(p) : vf_load_bf16(p);
}

LL_ALWAYS_INLINE void row_store(char *row, size_t j, vf v, int dtype)
{
    char *p = row + j * ll_dtype_size(dtype);
    if (dtype == LL_F32)
        vf_store(p, v);
    else if (dtype == LL_F16)
        vf_store_f16(p, v);
    else
        vf_store_bf16(p, v);
}

/* Values [j, j + m), 0 < m <= LL_VL; lanes past m are +0.0. */
LL_ALWAYS_INLINE vf row_load_n(const char *row, size_t j, size_t m, int dtype)
{
    if (m == LL_VL)
        return row_load(row, j, dtype);
    if (dtype == LL_F32)
        return vf_load_n(row + j * 4, m);
    uint16_t half[LL_VL] = {0};
    memcpy(half, row + j * 2, m * 2);
    return row_load((const char *)half, 0, dtype);
}

LL_ALWAYS_INLINE void row_store_n(char *row, size_t j, vf v, size_t m, int dtype)
{
    if (m == LL_VL) {
        row_store(row, j, v, dtype);
    } else if (dtype == LL_F32) {
        vf_store_n(row + j * 4, v, m);
    } else {
        uint16_t half[LL_VL];
        row_store((char *)half, 0, v, dtype);
        memcpy(row + j * 2, half, m * 2);
    }
}

/* How many of the values [j, n) register k of a block of 64 takes: 0 .. LL_VL. */
LL_ALWAYS_INLINE size_t ll_lanes_left(size_t j, size_t k, size_t n)
{
    size_t start = j + k * LL_VL;
    return start >= n ? 0 : n - start < LL_VL ? n - start : LL_VL;
}

/* The halving tree of sum64 over 64 / LL_VL registers of lanes. */
LL_ALWAYS_INLINE float ll_fold64(vf p[LL_REGS])
{
    LL_UNROLL
    for (size_t h = LL_REGS / 2; h > 0; h /= 2)
        LL_UNROLL
        for (size_t k = 0; k < h; k++)
            p[k] = vf_add(p[k], p[k + h]);
    return vf_fold(p[0]);
}

/* ---- vw: 2 * LL_VL float64 ---------------------------------------------------------------------
 *
 * As many as two vf have lanes, so that what is written on them reads like code on vf. Every step is done for all four
 * parts before the next: they are independent, and one vector's chain of steps is longer than what a processor looks
 * ahead (measured: two vf together take a fifth less time each than one by one; four are no faster). */
typedef struct vw { vd a, b, c, d; } vw;

LL_ALWAYS_INLINE vw vw_set1(double x) { return (vw){vd_set1(x), vd_set1(x), vd_set1(x), vd_set1(x)}; }
LL_ALWAYS_INLINE vw vw_widen(const vf v[2]) { return (vw){vd_low(v[0]), vd_high(v[0]), vd_low(v[1]), vd_high(v[1])}; }
LL_ALWAYS_INLINE void vw_narrow(vw x, vf v[2])
{
    v[0] = vf_narrow(x.a, x.b);
    v[1] = vf_narrow(x.c, x.d);
}
#define LL_DEFINE(op)                                                                              \
    LL_ALWAYS_INLINE vw vw_##op(vw x, vw y)                                                        \
    {                                                                                              \
        return (vw){vd_##op(x.a, y.a), vd_##op(x.b, y.b), vd_##op(x.c, y.c), vd_##op(x.d, y.d)};   \
    }
LL_DEFINE(add) LL_DEFINE(sub) LL_DEFINE(mul) LL_DEFINE(div) LL_DEFINE(max) LL_DEFINE(scale)
#undef LL_DEFINE
LL_ALWAYS_INLINE vw vw_abs(vw x) { return (vw){vd_abs(x.a), vd_abs(x.b), vd_abs(x.c), vd_abs(x.d)}; }
LL_ALWAYS_INLINE vw vw_fma(vw x, vw y, vw z)
{
    return (vw){vd_fma(x.a, y.a, z.a), vd_fma(x.b, y.b, z.b), vd_fma(x.c, y.c, z.c), vd_fma(x.d, y.d, z.d)};
}

#endif
