#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../cpu.h"

#define LL_ISA avx512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#include "vec_avx512.h"
#include "../kernels/all.h"

/* With VNNI the product of integers is another, and how it has x (avx512_vnni.c); the others are these. */
void ll_linear_int16_avx512_vnni(const ll_linear_args *a, const float *x, size_t tile_begin, size_t tile_end,
                                 size_t panel_begin, size_t panel_end, float *workspace);
void ll_pack_integers_avx512_vnni(const ll_linear_args *a, float *packed, size_t begin, size_t end);
const ll_kernels ll_kernels_avx512_vnni = LL_TABLE("avx512_vnni", ll_supported_avx512_vnni, ll_pack_integers_avx512_vnni,
                                                   ll_linear_int16_avx512_vnni);
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
typedef int ll_no_avx512_here;
#endif
