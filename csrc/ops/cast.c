/* ops/cast.c: from one element type to another, the values, or the rows where they have gaps, split over threads. */
#include "../fpenv.h"
#include "../kernels/table.h"

/* Values a thread must have to be worth waking: some 10 us of work. */
#define WORTH_VALUES 65536

typedef struct cast_job {
    const ll_cast_args *args;
    const ll_kernels *kernels;
} cast_job;

static void values_task(void *context, size_t begin, size_t end)
{
    const cast_job *job = context;
    const ll_cast_args *a = job->args;
    job->kernels->cast((const char *)a->x + begin * ll_dtype_size(a->from), a->from,
                       (char *)a->y + begin * ll_dtype_size(a->to), a->to, end - begin);
}

static void rows_task(void *context, size_t begin, size_t end)
{
    const cast_job *job = context;
    const ll_cast_args *a = job->args;
    for (size_t i = begin; i < end; i++)
        job->kernels->cast((const char *)a->x + (ptrdiff_t)i * a->x_stride, a->from,
                           (char *)a->y + (ptrdiff_t)i * a->y_stride, a->to, a->n);
}

void ll_cast(const ll_cast_args *a)
{
    cast_job job = {a, ll_table()};
    if (!a->rows || !a->n)
        return;
    if (a->rows == 1 || (a->x_stride == (ptrdiff_t)(a->n * ll_dtype_size(a->from))
                         && a->y_stride == (ptrdiff_t)(a->n * ll_dtype_size(a->to))))
        ll_parallel_for(a->rows * a->n, 1, WORTH_VALUES, LL_LINES, values_task, &job);
    else
        ll_parallel_for(a->rows, a->n, WORTH_VALUES, 1, rows_task, &job);
}

void ll_widen(const void *x, int dtype, float *y, size_t n)
{
    const ll_fpenv saved = ll_fpenv_enter();
    ll_table()->cast(x, dtype, y, LL_F32, n);
    ll_fpenv_leave(saved);
}
