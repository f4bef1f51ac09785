/* ops/unary.c: splits the values, or the rows where they have gaps, over threads and calls the active kernel. */
#include "../kernels/table.h"

/* Values a thread must have to be worth waking: some 10 us of work. */
#define WORTH_VALUES 16384

typedef struct unary_job {
    const ll_unary_args *args;
    ll_unary_kernel kernel;
} unary_job;

static void values_task(void *context, size_t begin, size_t end)
{
    const unary_job *job = context;
    const size_t size = ll_dtype_size(job->args->dtype);
    job->kernel((const char *)job->args->x + begin * size, (char *)job->args->y + begin * size, end - begin);
}

static void rows_task(void *context, size_t begin, size_t end)
{
    const unary_job *job = context;
    const ll_unary_args *a = job->args;
    for (size_t i = begin; i < end; i++)
        job->kernel((const char *)a->x + (ptrdiff_t)i * a->x_stride, (char *)a->y + (ptrdiff_t)i * a->y_stride, a->n);
}

void ll_unary(const ll_unary_args *a)
{
    if (!a->rows || !a->n)
        return;
    unary_job job = {a, ll_table()->unary[a->op][a->dtype]};
    ptrdiff_t row = (ptrdiff_t)(a->n * ll_dtype_size(a->dtype));
    if (a->rows == 1 || (a->x_stride == row && a->y_stride == row))
        ll_parallel_for(a->rows * a->n, 1, WORTH_VALUES, LL_LINES, values_task, &job);
    else
        ll_parallel_for(a->rows, a->n, WORTH_VALUES, 1, rows_task, &job);
}
