/* ops/cache.c: the blocks of a cache of keys and values. */
#include <stdatomic.h>
#include <string.h>

#include "../kernels/table.h"

/* Values from which on packing is shared. */
#define PACK_VALUES 65536

/* The owners' count lies in front of a block, a cache line away. */
#define HEADER 64

static atomic_size_t *owners(const float *block) { return (atomic_size_t *)(uintptr_t)((const char *)block - HEADER); }

float *ll_block_new(size_t heads, size_t D)
{
    const size_t chunk = ll_chunk_floats(D);
    if (heads && chunk > (SIZE_MAX - HEADER) / sizeof(float) / heads)
        return NULL;
    char *memory = ll_memory_new(HEADER + heads * chunk * sizeof(float));
    if (!memory)
        return NULL;
    float *block = (float *)(void *)(memory + HEADER);
    atomic_init(owners(block), 1);
    return block;
}

float *ll_block_share(float *block)
{
    atomic_fetch_add_explicit(owners(block), 1, memory_order_relaxed);
    return block;
}

void ll_block_release(float *block)
{
    if (block && atomic_fetch_sub_explicit(owners(block), 1, memory_order_acq_rel) == 1)
        ll_memory_free((char *)block - HEADER);
}

int ll_block_shared(const float *block) { return atomic_load_explicit(owners(block), memory_order_acquire) > 1; }

typedef struct append_job {
    const ll_cache_rows *rows;
    float *const *blocks;
} append_job;

static void append_task(void *context, size_t begin, size_t end)
{
    const append_job *job = context;
    const ll_cache_rows *a = job->rows;
    const ll_kernels *kernels = ll_table();
    const size_t chunk = ll_chunk_floats(a->D);
    for (size_t head = begin; head < end; head++)
        for (size_t done = 0; done < a->T;) {
            const size_t t = a->first + done, count = ll_least(a->T - done, LL_BLOCK - t % LL_BLOCK);
            float *to = job->blocks[t / LL_BLOCK] + head * chunk;
            const char *k = (const char *)a->k + (ptrdiff_t)head * a->k_head + (ptrdiff_t)done * a->k_stride;
            const char *v = (const char *)a->v + (ptrdiff_t)head * a->v_head + (ptrdiff_t)done * a->v_stride;
            kernels->attention_keys(k, a->k_stride, a->k_dtype, a->D, t % LL_BLOCK, count, to);
            kernels->attention_values(v, a->v_stride, a->v_dtype, a->D, t % LL_BLOCK, count, to + LL_BLOCK * a->D);
            done += count;
        }
}

void ll_cache_append(const ll_cache_rows *rows, float *const *blocks)
{
    append_job job = {rows, blocks};
    if (rows->T && rows->D)
        ll_parallel_for(rows->heads, PACK_VALUES / (2 * rows->T * rows->D) + 1, append_task, &job);
}

void ll_cache_read(float *const *blocks, size_t heads, size_t D, size_t T, int values, float *to)
{
    for (size_t head = 0; head < heads; head++)
        for (size_t t = 0; t < T; t++) {
            const float *chunk = blocks[t / LL_BLOCK] + head * ll_chunk_floats(D) + (values ? LL_BLOCK * D : 0);
            const size_t at = t % LL_BLOCK;
            for (size_t d = 0; d < D; d++)
                *to++ = values ? chunk[(d / LL_PANEL * LL_BLOCK + at) * LL_PANEL + d % LL_PANEL]
                               : chunk[at / LL_PANEL * LL_PANEL * D + d * LL_PANEL + at % LL_PANEL];
        }
}
