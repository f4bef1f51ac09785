/* ops/rope.c: splits the rows over threads. */
#include "../kernels/table.h"

/* Values a thread must have to be worth waking: some 10 us of work. */
#define WORTH_VALUES 65536

typedef struct rope_job {
    const ll_rope_args *args;
    const ll_kernels *kernels;
} rope_job;

static void rope_task(void *context, size_t begin, size_t end)
{
    const rope_job *job = context;
    job->kernels->rope(job->args, begin, end);
}

void ll_rope(const ll_rope_args *a)
{
    rope_job job = {a, ll_table()};
    if (a->rows && a->heads && a->D)
        ll_parallel_for(a->rows, a->heads * a->D, WORTH_VALUES, 1, rope_task, &job);
}
