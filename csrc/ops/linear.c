/* ops/linear.c: packs x into tiles, then splits the panels of the weight (or, where those are few, the tiles) over
 * threads. */
#include "../formats.h"
#include "../kernels/table.h"

/* Multiplications a thread must have to be worth waking: some 10 us of work. Fewer rows than GRAIN_ROWS take as long as so
 * many, or nearly: most of it is reading the weight. (Measured: from 65,000 values of it on two threads are faster.) */
#define GRAIN_FMA ((size_t)1 << 19)
#define GRAIN_ROWS 16
/* Panels a thread takes at once at least: those that a kernel has together. The fewer, the less one waits for the other at
 * the end, which tells where the memory is what both wait for, and where there are few; a strip of columns where few rows
 * meet a plain weight. From so many on there are enough for all threads. */
#define GRAIN_PANELS 4
#define GRAIN_PANELS_STRIP 32
#define MANY_PANELS 32
/* Panels that are packed and used in turn. */
#define TOGETHER 4
/* From so many rows on, a weight that is not packed is packed first. */
#define PACK_ROWS 96
/* From so many values of x on, packing them is shared too. */
#define PACK_VALUES 65536

typedef struct linear_job {
    const ll_linear_args *args;
    const ll_kernels *kernels;
    void (*pack_x)(const ll_linear_args *, float *, size_t, size_t);
    void (*linear)(const ll_linear_args *, const float *, size_t, size_t, size_t, size_t, float *);
    float *x;     /* in tiles */
    char *packed; /* where the weight is packed first, or NULL */
    ll_linear_args with_packed;
    size_t tiles, panels;
    ll_workspaces workspaces;
} linear_job;

/* One row of contiguous float32 is a tile as it lies, at whole floats: tiles are read as floats. */
static int x_is_packed(const ll_linear_args *a)
{
    return a->weight.compute == LL_FLOAT32 && a->M == 1 && a->dtype == LL_F32 && (uintptr_t)a->x % sizeof(float) == 0;
}

/* Many rows read the weight several times: it is packed first. */
static int weight_is_packed_first(const ll_linear_args *a) { return !a->weight.packed && a->M > PACK_ROWS; }

/* x in tiles, the weight packed; whole lines too. Integers with their sums and scales take less than float32, from a block's
 * values on. */
static size_t x_bytes(const ll_linear_args *a)
{
    return x_is_packed(a) ? 0 : (a->M * a->weight.K * sizeof(float) + 63) / 64 * 64;
}

static size_t packed_bytes(const ll_linear_args *a)
{
    return weight_is_packed_first(a) ? ll_packed_bytes(a->weight.K, a->weight.N, LL_F32) : 0;
}

/* No more than there is work for: a tile or a panel each. Parts of whole lines of the cache. */
static ll_workspaces workspaces_of(const ll_linear_args *a, const ll_kernels *kernels)
{
    const size_t tiles = kernels->pack_tiles(a->M), panels = ll_panels(a->weight.N);
    const size_t floats = (a->weight.compute == LL_INT16 ? kernels->integers_floats : kernels->linear_floats)(a);
    return (ll_workspaces){.floats = (floats + 15) / 16 * 16,
                           .threads = (int)ll_least((size_t)llorch_get_num_threads(), tiles > panels ? tiles : panels)};
}

static size_t scratch_of(const ll_linear_args *a, const ll_workspaces *w)
{
    return x_bytes(a) + packed_bytes(a) + (size_t)w->threads * w->floats * sizeof(float);
}

size_t ll_linear_scratch(const ll_linear_args *a)
{
    const ll_workspaces w = workspaces_of(a, ll_table());
    return scratch_of(a, &w);
}

static void pack_x_task(void *context, size_t begin, size_t end)
{
    const linear_job *job = context;
    job->pack_x(job->args, job->x, begin, end);
}

static void panels_task(void *context, size_t begin, size_t end)
{
    linear_job *job = context;
    int slot = 0;
    float *workspace = ll_workspace_take(&job->workspaces, &slot);
    if (!job->packed)
        job->linear(job->args, job->x, 0, job->tiles, begin, end, workspace);
    else
        for (size_t panel = begin; panel < end; panel += TOGETHER) { /* used while they are in the second cache */
            size_t stop = end - panel < TOGETHER ? end : panel + TOGETHER;
            job->kernels->pack(&job->args->weight, LL_F32, job->packed, panel, stop);
            job->linear(&job->with_packed, job->x, 0, job->tiles, panel, stop, workspace);
        }
    ll_workspace_give(&job->workspaces, slot);
}

static void pack_weight_task(void *context, size_t begin, size_t end)
{
    const linear_job *job = context;
    job->kernels->pack(&job->args->weight, LL_F32, job->packed, begin, end);
}

static void tiles_task(void *context, size_t begin, size_t end)
{
    linear_job *job = context;
    int slot = 0;
    float *workspace = ll_workspace_take(&job->workspaces, &slot);
    job->linear(job->packed ? &job->with_packed : job->args, job->x, begin, end, 0, job->panels, workspace);
    ll_workspace_give(&job->workspaces, slot);
}

int ll_linear(const ll_linear_args *a)
{
    const size_t M = a->M, K = a->weight.K, N = a->weight.N;
    if (!M || !N)
        return 0;
    const ll_kernels *kernels = ll_table();
    linear_job job = {.args = a, .kernels = kernels, .panels = ll_panels(N), .workspaces = workspaces_of(a, kernels)};
    job.pack_x = a->weight.compute == LL_INT16 ? kernels->pack_integers : kernels->pack_x;
    job.linear = a->weight.compute == LL_INT16 ? kernels->linear_int16 : kernels->linear;
    const int threads = job.workspaces.threads;
    const size_t scratch_bytes = scratch_of(a, &job.workspaces);
    char *scratch = NULL;
    if (scratch_bytes && !(scratch = ll_scratch_take(scratch_bytes)))
        return -1;
    if (job.workspaces.floats)
        job.workspaces.base = (float *)(void *)(scratch + x_bytes(a) + packed_bytes(a));
    job.tiles = kernels->pack_tiles(M);
    if (x_is_packed(a)) {
        job.x = (float *)(uintptr_t)a->x;
    } else {
        job.x = (float *)(void *)scratch;
        ll_parallel_for(job.tiles, PACK_VALUES * job.tiles / (M * (K + 1)) + 1, pack_x_task, &job);
    }
    if (weight_is_packed_first(a)) {
        job.packed = scratch + x_bytes(a);
        job.with_packed = *a;
        job.with_packed.weight = (ll_weight){.data = job.packed, .format = LL_F32, .packed = 1, .K = K, .N = N};
    }
    if (job.panels >= MANY_PANELS || job.panels >= job.tiles) {
        size_t grain = ll_few_rows(a) ? GRAIN_PANELS_STRIP : GRAIN_PANELS;
        if (job.panels * LL_PANEL * (K + 1) < 2 * GRAIN_FMA / (M < GRAIN_ROWS ? GRAIN_ROWS : M))
            grain = job.panels;
        ll_parallel_for_threads(job.panels, grain, threads, panels_task, &job);
    } else {
        const size_t work = M * (K + 1) * N / job.tiles;
        if (job.packed)
            ll_parallel_for(job.panels, PACK_VALUES / (LL_PANEL * (K + 1)) + 1, pack_weight_task, &job);
        ll_parallel_for_threads(job.tiles, GRAIN_FMA / work + 1, threads, tiles_task, &job);
    }
    ll_scratch_give(scratch);
    return 0;
}
