/* ops/softmax.c: splits the rows over threads. */
#include "../kernels/table.h"

/* Values a thread must have to be worth waking: some 10 us of work. */
#define WORTH_VALUES 8192

typedef struct softmax_job {
    const ll_softmax_args *args;
    const ll_kernels *kernels;
} softmax_job;

static void softmax_task(void *context, size_t begin, size_t end)
{
    const softmax_job *job = context;
    job->kernels->softmax(job->args, begin, end);
}

void ll_softmax(const ll_softmax_args *a)
{
    softmax_job job = {a, ll_table()};
    if (a->rows && a->n)
        ll_parallel_for(a->rows, a->n, WORTH_VALUES, 1, softmax_task, &job);
}
