/* ops/cache.c: keys and values of one layer of one sequence, in blocks that caches share until one of them writes.
 *
 * A block is LL_BLOCK positions of all heads, a chunk each (llorch.h). Its owners are counted. A cache writes only to blocks
 * that it alone owns, so no cache ever changes another's bits, and who reads a fork is safe from what the original does. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/table.h"

/* Values to pack that are worth waking a thread for. */
#define PACK_VALUES 65536

/* ---- blocks -------------------------------------------------------------------------------------- */

/* The owners' count lies in front of a block, a cache line away. */
#define HEADER 64

static atomic_size_t *owners(const float *block) { return (atomic_size_t *)(uintptr_t)((const char *)block - HEADER); }

/* With one owner; NULL without memory. */
static float *block_new(const ll_cache *c)
{
    const size_t chunk = ll_chunk_floats(c->D);
    if (c->heads && chunk > (SIZE_MAX - HEADER) / sizeof(float) / c->heads)
        return NULL;
    char *memory = ll_memory_new(HEADER + ll_cache_block_bytes(c));
    if (!memory)
        return NULL;
    float *block = (float *)(void *)(memory + HEADER);
    atomic_init(owners(block), 1);
    return block;
}

static float *block_share(float *block)
{
    atomic_fetch_add_explicit(owners(block), 1, memory_order_relaxed);
    return block;
}

static void block_release(float *block)
{
    if (block && atomic_fetch_sub_explicit(owners(block), 1, memory_order_acq_rel) == 1)
        ll_memory_free((char *)block - HEADER);
}

static int block_is_shared(const float *block) { return atomic_load_explicit(owners(block), memory_order_acquire) > 1; }

/* ---- caches -------------------------------------------------------------------------------------- */

static size_t blocks_of(size_t T) { return (T + LL_BLOCK - 1) / LL_BLOCK; }

int ll_cache_init(ll_cache *c, size_t heads, size_t D, size_t capacity)
{
    *c = (ll_cache){.heads = heads, .D = D, .capacity = capacity};
    c->blocks = malloc((blocks_of(capacity) + 1) * sizeof *c->blocks);
    return c->blocks ? 0 : -1;
}

void ll_cache_free(ll_cache *c)
{
    while (c->count)
        block_release(c->blocks[--c->count]);
    free(c->blocks);
    *c = (ll_cache){0};
}

int ll_cache_reserve(ll_cache *c, size_t T)
{
    const size_t before = c->count, begun = c->length / LL_BLOCK, wanted = blocks_of(c->length + T);
    float *own = NULL;
    if (!T)
        return 0;
    /* A block that was never shared isn't looked at: many sequences have many, none of which is in the caches. */
    const int copy = c->length % LL_BLOCK && begun < c->shared && block_is_shared(c->blocks[begun]);
    if (copy && !(own = block_new(c)))
        return -1;
    while (c->count < wanted) {
        float *block = block_new(c);
        if (!block) {
            while (c->count > before)
                block_release(c->blocks[--c->count]);
            block_release(own);
            return -1;
        }
        c->blocks[c->count++] = block;
    }
    if (copy) {
        memcpy(own, c->blocks[begun], ll_cache_block_bytes(c));
        block_release(c->blocks[begun]);
        c->blocks[begun] = own;
    }
    if (c->length % LL_BLOCK)
        c->shared = ll_least(c->shared, begun);
    return 0;
}

typedef struct write_job {
    const ll_cache *cache;
    const ll_cache_rows *rows;
    const ll_kernels *kernels;
} write_job;

static void write_task(void *context, size_t begin, size_t end)
{
    const write_job *job = context;
    const ll_cache_rows *a = job->rows;
    for (size_t head = begin; head < end; head++) {
        ll_kv kv = ll_cache_kv(job->cache, head, a->first + a->T);
        kv.k = (const char *)a->k + (ptrdiff_t)head * a->k_head;
        kv.v = (const char *)a->v + (ptrdiff_t)head * a->v_head;
        kv.k_stride = a->k_stride;
        kv.v_stride = a->v_stride;
        kv.fresh = a->T;
        job->kernels->kv_write(&kv, job->cache->D, a->k_dtype, a->v_dtype);
    }
}

void ll_cache_write(ll_cache *c, const ll_cache_rows *rows)
{
    write_job job = {c, rows, ll_table()};
    if (rows->T && c->D)
        ll_parallel_for(c->heads, 2 * rows->T * c->D, PACK_VALUES, 1, write_task, &job);
}

void ll_cache_truncate(ll_cache *c, size_t length)
{
    c->length = length;
    while (c->count > blocks_of(length))
        block_release(c->blocks[--c->count]);
    c->shared = ll_least(c->shared, c->count);
}

int ll_cache_fork(ll_cache *from, ll_cache *to)
{
    if (ll_cache_init(to, from->heads, from->D, from->capacity))
        return -1;
    to->length = from->length;
    for (; to->count < blocks_of(from->length); to->count++)
        to->blocks[to->count] = block_share(from->blocks[to->count]);
    from->shared = to->shared = to->count;
    return 0;
}

void ll_cache_read(const ll_cache *c, int values, float *to)
{
    for (size_t head = 0; head < c->heads; head++)
        for (size_t t = 0; t < c->length; t++) {
            const float *chunk = c->blocks[t / LL_BLOCK] + head * ll_chunk_floats(c->D) + (values ? LL_BLOCK * c->D : 0);
            const size_t at = t % LL_BLOCK;
            for (size_t d = 0; d < c->D; d++)
                *to++ = values ? chunk[(d / LL_PANEL * LL_BLOCK + at) * LL_PANEL + d % LL_PANEL]
                               : chunk[at / LL_PANEL * LL_PANEL * c->D + d * LL_PANEL + at % LL_PANEL];
        }
}
