/* cpu.h: what this processor and operating system can run. Baseline code only. */
#ifndef LL_CPU_H
#define LL_CPU_H

int ll_supported_generic(void);
int ll_supported_avx2(void);
int ll_supported_avx512(void);
int ll_supported_avx512_vnni(void);
int ll_supported_neon(void);

#endif
