/* dispatch.c: which instruction set runs. One table each, in order of preference; the first that the
 * machine supports is taken, unless the caller selects another. */
#include <stdatomic.h>

#include "kernels/table.h"

extern const ll_kernels ll_kernels_generic;
#if defined(__x86_64__)
extern const ll_kernels ll_kernels_avx2, ll_kernels_avx512, ll_kernels_avx512_vnni;
#elif defined(__aarch64__)
extern const ll_kernels ll_kernels_neon;
#endif

static const ll_kernels *const tables[] = {
#if defined(__x86_64__)
    &ll_kernels_avx512_vnni,
    &ll_kernels_avx512,
    &ll_kernels_avx2,
#elif defined(__aarch64__)
    &ll_kernels_neon,
#endif
    &ll_kernels_generic,
};
enum { TABLES = sizeof tables / sizeof *tables };

/* -1: not chosen yet. Two threads that choose at once choose the same. */
static atomic_int active = -1;

const char *ll_isa_name(int i) { return i >= 0 && i < TABLES ? tables[i]->name : 0; }

int ll_isa_supported(int i) { return i >= 0 && i < TABLES && tables[i]->supported(); }

int ll_isa_active(void)
{
    int i = atomic_load_explicit(&active, memory_order_relaxed);
    if (i < 0) {
        for (i = 0; !tables[i]->supported(); i++) /* generic always is */
            ;
        atomic_store_explicit(&active, i, memory_order_relaxed);
    }
    return i;
}

int ll_isa_select(int i)
{
    if (!ll_isa_supported(i))
        return -1;
    atomic_store_explicit(&active, i, memory_order_relaxed);
    return 0;
}

const ll_kernels *ll_table(void) { return tables[ll_isa_active()]; }

const char *ll_compiler(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#else
    return "gcc " __VERSION__;
#endif
}
