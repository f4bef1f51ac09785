/* ops/attention.c: plans a call of attention, packs keys and values that come as rows, and splits the units of queries
 * over threads; the blocks of a cache. */
#include <stdatomic.h>
#include <string.h>

#include "../kernels/table.h"

/* What a thread must have to be worth waking, in multiplications: some 10 us of work. An exponential counts as EXP, a
 * key's or value's number as READ: it comes from memory, and few queries share it. */
#define GRAIN_FMA ((size_t)1 << 18)
#define EXP 16
#define READ 4
/* The scores of a unit, which should stay in the second cache; packed heads, which should stay in the third. */
#define SCORE_BYTES ((size_t)192 << 10)
#define PACKED_BYTES ((size_t)4 << 20)
/* Values from which on packing is shared. */
#define PACK_VALUES 65536

static size_t whole_panels(size_t n) { return (n + LL_PANEL - 1) / LL_PANEL * LL_PANEL; }
static size_t blocks_of(size_t T) { return (T + LL_BLOCK - 1) / LL_BLOCK; }
static size_t least(size_t a, size_t b) { return a < b ? a : b; }

size_t ll_chunk_floats(size_t D) { return LL_BLOCK * (D + whole_panels(D)); }

typedef struct attention_job {
    ll_attention_args *args;
    const ll_kernels *kernels;
    size_t first;         /* head of unit 0 */
    float *packed;        /* [block][head - first][chunk] */
    size_t blocks, packed_heads;
    float *room;          /* [slots][room_floats] */
    size_t room_floats;
    int slots;
    atomic_uchar taken[LL_MAX_THREADS];
} attention_job;

/* A task doesn't know which thread runs it: it takes any room that is free. There are as many as threads. */
static void units_task(void *context, size_t begin, size_t end)
{
    attention_job *job = context;
    int slot = 0;
    while (atomic_exchange_explicit(&job->taken[slot], 1, memory_order_acquire))
        slot = (slot + 1) % job->slots;
    size_t units = (job->args->tiles + job->args->together - 1) / job->args->together;
    job->kernels->attention(job->args, job->first * units + begin, job->first * units + end,
                            job->room + (size_t)slot * job->room_floats);
    atomic_store_explicit(&job->taken[slot], 0, memory_order_release);
}

static void pack_task(void *context, size_t begin, size_t end)
{
    attention_job *job = context;
    const ll_attention_args *a = job->args;
    const size_t chunk = ll_chunk_floats(a->D);
    for (size_t i = begin; i < end; i++) {
        const size_t head = i / job->blocks, t = i % job->blocks * LL_BLOCK, count = least(a->Tk - t, LL_BLOCK);
        const ll_attention_head *h = &a->heads[job->first + head];
        float *to = job->packed + (i % job->blocks * job->packed_heads + head) * chunk;
        job->kernels->attention_keys((const char *)h->k + (ptrdiff_t)t * a->k_stride, a->k_stride, a->dtype, a->D, 0,
                                     count, to);
        job->kernels->attention_values((const char *)h->v + (ptrdiff_t)t * a->v_stride, a->v_stride, a->dtype, a->D, 0,
                                       count, to + LL_BLOCK * a->D);
    }
}

int ll_attention(ll_attention_args *a)
{
    if (!a->count || !a->Tq || !a->D)
        return 0;
    attention_job job = {.args = a, .kernels = ll_table(), .slots = llorch_get_num_threads()};
    const int rows = a->heads[0].blocks == NULL;
    const size_t R = job.kernels->tile_rows, chunk = ll_chunk_floats(a->D);
    a->Tk = 0;
    for (size_t i = 0; i < a->count; i++)
        a->Tk = a->heads[i].Tk > a->Tk ? a->heads[i].Tk : a->Tk;
    /* rows of scores not at a distance of whole pages, which share their places in the first cache */
    a->score_stride = whole_panels(a->Tk) + LL_PANEL;
    a->tiles = (a->Tq + R - 1) / R;
    a->together = SCORE_BYTES / (R * a->score_stride * sizeof(float));
    a->together = least(a->together < 1 ? 1 : a->together, least(a->tiles, job.kernels->attention_together));
    while (a->together > 1 && a->count * ((a->tiles + a->together - 1) / a->together) < 4 * (size_t)job.slots)
        a->together--;
    const size_t units = (a->tiles + a->together - 1) / a->together;

    /* Rows are packed beforehand where several units need them, as many heads at a time as the cache likes. */
    job.blocks = blocks_of(a->Tk);
    a->rows = rows && units == 1;
    const int pack = rows && units > 1;
    if (pack) {
        job.packed_heads = PACKED_BYTES / (job.blocks * chunk * sizeof(float));
        job.packed_heads = least(job.packed_heads < 1 ? 1 : job.packed_heads, a->count);
    }
    job.room_floats = (job.kernels->attention_room(a) + 31) / 16 * 16;
    if (job.room_floats > SIZE_MAX / 16 / LL_MAX_THREADS)
        return -1;
    const size_t packed = pack ? job.blocks * job.packed_heads * chunk : 0;
    const size_t table = pack ? (job.blocks * sizeof(float *) + 63) / 64 * 64 : 0;
    char *scratch = ll_scratch_take(table + (packed + (size_t)job.slots * job.room_floats) * sizeof(float));
    if (!scratch)
        return -1;
    float **blocks = (float **)(void *)scratch;
    job.packed = (float *)(void *)(scratch + table);
    job.room = job.packed + packed;
    for (int i = 0; i < job.slots; i++)
        atomic_init(&job.taken[i], 0);

    const size_t work = (a->Tq * (a->Tk - a->Tq / 2) / units + 1) * (2 * a->D + EXP) + a->Tk * 2 * a->D * READ / units;
    const size_t grain = GRAIN_FMA / work + 1, heads = pack ? job.packed_heads : a->count;
    for (job.first = 0; job.first < a->count; job.first += heads) {
        const size_t now = least(heads, a->count - job.first);
        if (pack) {
            for (size_t i = 0; i < job.blocks; i++)
                blocks[i] = job.packed + i * job.packed_heads * chunk;
            for (size_t i = 0; i < now; i++) {
                a->heads[job.first + i].blocks = blocks;
                a->heads[job.first + i].offset = i * chunk;
            }
            ll_parallel_for(now * job.blocks, PACK_VALUES / chunk + 1, pack_task, &job);
        }
        ll_parallel_for(now * units, grain, units_task, &job);
    }
    ll_scratch_give(scratch);
    return 0;
}

/* ---- the cache ------------------------------------------------------------------------------------ */

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
            const size_t t = a->first + done, count = least(a->T - done, LL_BLOCK - t % LL_BLOCK);
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
