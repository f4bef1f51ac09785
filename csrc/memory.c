/* memory.c: what is allocated for kernels, by their drivers and by Cython.
 *
 * Working memory of a call is kept for the next one. A fresh block of some megabytes costs a page fault
 * every 4 KB, which is more than packing into it; so one block waits here. Two callers at once: the second gets a
 * block of its own. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdlib.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "llorch.h"

/* Larger blocks go back to the system. */
#define KEEP_BYTES ((size_t)64 << 20)
#define ALIGNMENT 64

typedef struct block {
    size_t bytes;
} block; /* followed by the memory, ALIGNMENT further on */

static _Atomic(block *) spare;

void *ll_scratch_take(size_t bytes)
{
    block *b = atomic_exchange_explicit(&spare, NULL, memory_order_acquire);
    if (!b || b->bytes < bytes) {
        free(b);
        if (bytes > SIZE_MAX - 2 * ALIGNMENT)
            return NULL;
        size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        b = aligned_alloc(ALIGNMENT, rounded + ALIGNMENT);
        if (!b)
            return NULL;
        b->bytes = rounded;
    }
    return (char *)b + ALIGNMENT;
}

void ll_scratch_give(void *scratch)
{
    if (!scratch)
        return;
    block *b = (block *)((char *)scratch - ALIGNMENT);
    if (b->bytes <= KEEP_BYTES)
        b = atomic_exchange_explicit(&spare, b, memory_order_acq_rel);
    free(b);
}

/* Weights are read from front to back again and again: large pages save a walk through the page tables every 4 KB. */
#define LARGE_PAGE ((size_t)2 << 20)

void *ll_memory_new(size_t bytes)
{
    size_t alignment = bytes >= 2 * LARGE_PAGE ? LARGE_PAGE : ALIGNMENT;
    if (bytes > SIZE_MAX - 2 * alignment)
        return NULL;
    size_t rounded = (bytes + alignment) / alignment * alignment; /* one byte at least */
    void *memory = aligned_alloc(alignment, rounded);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (memory && alignment == LARGE_PAGE) /* a wish: small pages do as well; the end has them, for it may be a few KB */
        (void)madvise(memory, bytes / LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE);
#endif
    return memory;
}

void ll_memory_free(void *memory) { free(memory); }
