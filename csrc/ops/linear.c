/* ops/linear.c: packs x into tiles, then splits the panels of the weight (or, where those are few, the tiles) over
 * threads. */
#include <string.h>

#include "../kernels/table.h"

/* Multiplications a thread must have to be worth waking: some 10 us of work. */
#define GRAIN_FMA ((size_t)1 << 19)
/* Panels a thread likes to have together: the fewer, the less one waits for the other at the end, which tells where the
 * memory is what both wait for; a strip of columns where few rows meet a plain weight. */
#define GRAIN_PANELS 8
#define GRAIN_PANELS_FEW 4
#define GRAIN_PANELS_STRIP 32
/* Panels that are packed and used in turn. */
#define TOGETHER 4
/* From so many rows on, a weight that is not packed is packed first. */
#define PACK_ROWS 96
/* From so many values of x on, packing them is shared too. */
#define PACK_VALUES 65536

typedef struct linear_job {
    const ll_linear_args *args;
    const ll_kernels *kernels;
    float *x;     /* in tiles */
    char *packed; /* where the weight is packed first, or NULL */
    ll_linear_args with_packed;
    size_t tiles, panels;
} linear_job;

static size_t panels_of(size_t N) { return (N + LL_PANEL - 1) / LL_PANEL; }

/* One row of contiguous float32 is a tile as it lies, at whole floats: tiles are read as floats. */
static int x_is_packed(const ll_linear_args *a)
{
    return a->M == 1 && a->dtype == LL_F32 && (uintptr_t)a->x % sizeof(float) == 0;
}

/* Many rows read the weight several times: it is packed first. */
static int weight_is_packed_first(const ll_linear_args *a) { return !a->packed && a->M > PACK_ROWS; }

size_t ll_linear_scratch(const ll_linear_args *a)
{
    return (x_is_packed(a) ? 0 : a->M * a->K * sizeof(float))
           + (weight_is_packed_first(a) ? ll_packed_bytes(a->K, a->N, LL_F32) : 0);
}

static void pack_x_task(void *context, size_t begin, size_t end)
{
    const linear_job *job = context;
    job->kernels->linear_pack_x(job->args, job->x, begin, end);
}

static void panels_task(void *context, size_t begin, size_t end)
{
    const linear_job *job = context;
    if (!job->packed) {
        job->kernels->linear(job->args, job->x, 0, job->tiles, begin, end);
        return;
    }
    for (size_t panel = begin; panel < end; panel += TOGETHER) { /* used while they are in the second cache */
        size_t stop = end - panel < TOGETHER ? end : panel + TOGETHER;
        job->kernels->linear_pack(job->args, LL_F32, job->packed, panel, stop);
        job->kernels->linear(&job->with_packed, job->x, 0, job->tiles, panel, stop);
    }
}

static void pack_weight_task(void *context, size_t begin, size_t end)
{
    const linear_job *job = context;
    job->kernels->linear_pack(job->args, LL_F32, job->packed, begin, end);
}

static void tiles_task(void *context, size_t begin, size_t end)
{
    const linear_job *job = context;
    job->kernels->linear(job->packed ? &job->with_packed : job->args, job->x, begin, end, 0, job->panels);
}

void ll_linear(ll_linear_args *a)
{
    if (!a->M || !a->N)
        return;
    linear_job job = {.args = a, .kernels = ll_table(), .x = a->scratch, .panels = panels_of(a->N)};
    job.tiles = job.kernels->linear_tiles(a->M);
    if (x_is_packed(a)) {
        job.x = (float *)(uintptr_t)a->x;
    } else {
        ll_parallel_for(job.tiles, PACK_VALUES * job.tiles / (a->M * (a->K + 1)) + 1, pack_x_task, &job);
    }
    if (weight_is_packed_first(a)) {
        job.packed = (char *)a->scratch + a->M * a->K * sizeof(float);
        job.with_packed = *a;
        job.with_packed.weight = job.packed;
        job.with_packed.weight_dtype = LL_F32;
        job.with_packed.packed = 1;
    }
    if (job.panels >= 4 * GRAIN_PANELS || job.panels >= job.tiles) {
        size_t grain = ll_few_rows(a) ? GRAIN_PANELS_STRIP
                       : a->packed && a->M <= LL_FEW_ROWS ? GRAIN_PANELS_FEW : GRAIN_PANELS;
        if (job.panels * LL_PANEL * (a->K + 1) < 2 * GRAIN_FMA / a->M)
            grain = job.panels;
        ll_parallel_for(job.panels, grain, panels_task, &job);
    } else {
        size_t work = a->M * (a->K + 1) * a->N / job.tiles;
        if (job.packed)
            ll_parallel_for(job.panels, PACK_VALUES / (LL_PANEL * (a->K + 1)) + 1, pack_weight_task, &job);
        ll_parallel_for(job.tiles, GRAIN_FMA / work + 1, tiles_task, &job);
    }
}

/* ---- packed weights ------------------------------------------------------------------------------ */

typedef struct pack_job {
    ll_linear_args args;
    const ll_kernels *kernels;
    int dtype;
    char *packed;
} pack_job;

static void pack_task(void *context, size_t begin, size_t end)
{
    const pack_job *job = context;
    job->kernels->linear_pack(&job->args, job->dtype, job->packed, begin, end);
}

static size_t value_bytes(int dtype) { return dtype == LL_F32 ? 4 : 2; }

size_t ll_packed_bytes(size_t K, size_t N, int dtype) { return panels_of(N) * LL_PANEL * K * value_bytes(dtype); }

void ll_pack(const void *weight, int from, ptrdiff_t weight_k, ptrdiff_t weight_n, size_t K, size_t N, int dtype,
             void *packed)
{
    pack_job job = {.kernels = ll_table(), .dtype = dtype, .packed = packed};
    job.args.weight = weight;
    job.args.weight_dtype = from;
    job.args.weight_k = weight_k;
    job.args.weight_n = weight_n;
    job.args.K = K;
    job.args.N = N;
    ll_parallel_for(panels_of(N), PACK_VALUES / (LL_PANEL * (K + 1)) + 1, pack_task, &job);
}

void ll_packed_column(const void *packed, int dtype, size_t K, size_t N, size_t n, float *y)
{
    (void)N;
    const size_t size = value_bytes(dtype);
    const char *from = (const char *)packed + (n / LL_PANEL * K * LL_PANEL + n % LL_PANEL) * size;
    if (dtype == LL_F32) {
        for (size_t k = 0; k < K; k++)
            memcpy(y + k, from + k * LL_PANEL * size, sizeof *y);
        return;
    }
    for (size_t k = 0; k < K;) { /* gathered in parts, then widened together */
        uint16_t part[256];
        size_t count = 0, first = k;
        for (; count < 256 && k < K; k++)
            memcpy(part + count++, from + k * LL_PANEL * size, size);
        ll_widen(part, dtype, y + first, count);
    }
}

void ll_packed_row(const void *packed, int dtype, size_t K, size_t N, size_t k, float *y)
{
    const size_t size = value_bytes(dtype);
    for (size_t n = 0; n < N; n += LL_PANEL) {
        const char *from = (const char *)packed + (n * K + k * LL_PANEL) * size;
        size_t count = N - n < LL_PANEL ? N - n : LL_PANEL;
        if (dtype == LL_F32)
            memcpy(y + n, from, count * size);
        else
            ll_widen(from, dtype, y + n, count);
    }
}
