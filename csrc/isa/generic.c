#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../cpu.h"

#define LL_ISA generic
#include "vec_generic.h"
#include "../kernels/all.h"
