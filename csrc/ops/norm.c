/* ops/norm.c: splits the rows over threads and calls the active kernel. */
#include <stdatomic.h>
#include <unistd.h>

#include "../kernels/table.h"

/* Values a thread must have to be worth waking: some 10 us of work. */
#define WORTH_VALUES 8192
/* Rows a kernel likes to have together. */
#define TOGETHER 4

/* Outputs that don't fit the last cache are stored around it: that saves reading every line of y before
 * it is overwritten. Systems overstate that cache (384 MB where one core reaches 32), so there is a limit. */
#define STREAM_MAX ((size_t)32 << 20)
static size_t stream_bytes(void)
{
    static _Atomic size_t cached;
    size_t bytes = atomic_load_explicit(&cached, memory_order_relaxed);
    if (!bytes) {
        long l3 = -1;
#ifdef _SC_LEVEL3_CACHE_SIZE
        l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
        bytes = l3 > 0 && (size_t)l3 < STREAM_MAX ? (size_t)l3 : STREAM_MAX;
        atomic_store_explicit(&cached, bytes, memory_order_relaxed);
    }
    return bytes;
}

typedef struct norm_job {
    const ll_norm_args *args;
    ll_norm_kernel kernel;
    int stream;
} norm_job;

static void norm_task(void *context, size_t begin, size_t end)
{
    const norm_job *job = context;
    job->kernel(job->args, job->stream, begin, end);
}

static void run(const ll_norm_args *a, ll_norm_kernel kernel)
{
    if (!a->rows || !a->n)
        return;
    norm_job job = {.args = a, .kernel = kernel};
    job.stream = a->y != a->x && a->y != a->residual && a->rows * a->n * sizeof(float) > stream_bytes();
    ll_parallel_for(a->rows, a->n, WORTH_VALUES, TOGETHER, norm_task, &job);
}

void ll_layer_norm(const ll_norm_args *a) { run(a, ll_table()->layer_norm[a->dtype]); }
void ll_add_layer_norm(const ll_norm_args *a) { run(a, ll_table()->add_layer_norm[a->dtype]); }
void ll_rms_norm(const ll_norm_args *a) { run(a, ll_table()->rms_norm[a->dtype]); }
void ll_add_rms_norm(const ll_norm_args *a) { run(a, ll_table()->add_rms_norm[a->dtype]); }
