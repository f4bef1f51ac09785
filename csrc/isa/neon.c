#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../cpu.h"

#define LL_ISA neon
#include "vec_neon.h"
#include "../kernels/all.h"
#else
typedef int ll_no_neon_here;
#endif
