/* ops/pool.c: splits sequences, or rows, over threads. */
#include "../kernels/table.h"

/* Values a thread must have to be worth waking: some 10 us of work. */
#define WORTH_VALUES 65536

typedef struct pool_job {
    const ll_pool_args *pool;
    const ll_normalize_args *normalize;
    const ll_kernels *kernels;
} pool_job;

static void pool_task(void *context, size_t begin, size_t end)
{
    const pool_job *job = context;
    job->kernels->mean_pool(job->pool, begin, end);
}

static void normalize_task(void *context, size_t begin, size_t end)
{
    const pool_job *job = context;
    job->kernels->normalize(job->normalize, begin, end);
}

void ll_mean_pool(const ll_pool_args *a)
{
    pool_job job = {.pool = a, .kernels = ll_table()};
    if (!a->count || !a->n)
        return;
    const size_t values = (size_t)(a->starts[a->count] - a->starts[0]) * a->n / a->count; /* of a sequence */
    ll_parallel_for(a->count, values, WORTH_VALUES, 1, pool_task, &job);
}

void ll_normalize(const ll_normalize_args *a)
{
    pool_job job = {.normalize = a, .kernels = ll_table()};
    if (a->rows && a->n)
        ll_parallel_for(a->rows, a->n, WORTH_VALUES, 1, normalize_task, &job);
}
