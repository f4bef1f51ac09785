/* Stands in for the correctly rounded exponential until it comes: the C library's, in binary64. */
#ifndef LL_EXP_H
#define LL_EXP_H
#include "../isa/vec.h"
LL_INLINE vf vf_exp(vf x)
{
    float v[LL_VL];
    vf_store(v, x);
    for (size_t l = 0; l < LL_VL; l++)
        v[l] = (float)exp((double)v[l]);
    return vf_load(v);
}
#endif
