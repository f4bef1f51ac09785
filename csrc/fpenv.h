/* fpenv.h: the floating-point environment of the contract: nearest even, subnormals kept, no traps.
 *
 * A host that was linked with fast-math, or that asked for it, runs with flush-to-zero; every result would
 * depend on it. So each thread sets the environment before a kernel and puts its own back afterwards, sticky
 * flags included. Kernels are called through pointers, so the compiler can't move their arithmetic across. */
#ifndef LL_FPENV_H
#define LL_FPENV_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
typedef unsigned ll_fpenv;

static inline ll_fpenv ll_fpenv_enter(void)
{
    ll_fpenv saved = _mm_getcsr();
    _mm_setcsr(0x1f80); /* the reset value: all exceptions masked, no FTZ, no DAZ, nearest */
    __asm__ volatile("" ::: "memory");
    return saved;
}

static inline void ll_fpenv_leave(ll_fpenv saved)
{
    __asm__ volatile("" ::: "memory");
    _mm_setcsr(saved);
}
#elif defined(__aarch64__)
typedef struct { uint64_t fpcr, fpsr; } ll_fpenv;

static inline ll_fpenv ll_fpenv_enter(void)
{
    ll_fpenv saved;
    __asm__ volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(saved.fpcr), "=r"(saved.fpsr) : : "memory");
    if (saved.fpcr)
        __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0) : "memory");
    return saved;
}

static inline void ll_fpenv_leave(ll_fpenv saved)
{
    __asm__ volatile("msr fpcr, %0\n\tmsr fpsr, %1" : : "r"(saved.fpcr), "r"(saved.fpsr) : "memory");
}
#else
#include <fenv.h>
typedef fenv_t ll_fpenv;

static inline ll_fpenv ll_fpenv_enter(void)
{
    ll_fpenv saved;
    feholdexcept(&saved);
    fesetround(FE_TONEAREST);
    return saved;
}

static inline void ll_fpenv_leave(ll_fpenv saved) { fesetenv(&saved); }
#endif

#endif
