/* cpu.c: detection. A flag in CPUID says that the processor has an instruction set; XGETBV says that the
 * operating system saves its registers. Both are needed. Written out instead of __builtin_cpu_supports,
 * whose list of names differs between compilers, so that it can be read and compared with /proc/cpuinfo. */
#include "cpu.h"

int ll_supported_generic(void) { return 1; }

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>

static uint64_t xgetbv0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static int all(uint64_t have, uint64_t want) { return (have & want) == want; }

int ll_supported_avx2(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return 0;
    if (!all(c, 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29)) /* FMA, OSXSAVE, AVX, F16C */
        return 0;
    if (!all(xgetbv0(), 0x6)) /* XMM and YMM state */
        return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && all(b, 1u << 5);
}

int ll_supported_avx512(void)
{
    unsigned a, b, c, d;
    if (!ll_supported_avx2() || !all(xgetbv0(), 0xe6)) /* and opmask, upper ZMM, ZMM16-31 */
        return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && all(b, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31); /* F DQ BW VL */
}

int ll_supported_avx512_vnni(void)
{
    unsigned a, b, c, d;
    return ll_supported_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && all(c, 1u << 11);
}
#else
int ll_supported_avx2(void) { return 0; }
int ll_supported_avx512(void) { return 0; }
int ll_supported_avx512_vnni(void) { return 0; }
#endif

#if defined(__aarch64__)
int ll_supported_neon(void) { return 1; } /* part of the base architecture */
#else
int ll_supported_neon(void) { return 0; }
#endif
