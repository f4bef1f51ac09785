/* ops/gate.c: splits the values, or the rows where they have gaps, over threads. */
#include "../kernels/table.h"

/* Values a thread must have to be worth waking: some 10 us of work. */
#define WORTH_VALUES 16384

typedef struct gate_job {
    const ll_gate_args *args;
    const ll_kernels *kernels;
} gate_job;

static void values_task(void *context, size_t begin, size_t end)
{
    const gate_job *job = context;
    job->kernels->gate(job->args, 0, 1, begin, end - begin);
}

static void rows_task(void *context, size_t begin, size_t end)
{
    const gate_job *job = context;
    job->kernels->gate(job->args, begin, end, 0, job->args->n);
}

void ll_gate(const ll_gate_args *a)
{
    gate_job job = {a, ll_table()};
    const ptrdiff_t row = (ptrdiff_t)(a->n * ll_dtype_size(a->dtype));
    if (!a->rows || !a->n)
        return;
    if (a->rows == 1 || (a->g_stride == row && a->u_stride == row && a->y_stride == row))
        ll_parallel_for(a->rows * a->n, 1, WORTH_VALUES, LL_LINES, values_task, &job);
    else
        ll_parallel_for(a->rows, a->n, WORTH_VALUES, 1, rows_task, &job);
}
