/* ops/softmax.c: splits the rows over threads. */
#include "../kernels/table.h"

/* Values a thread must have to be worth waking: some 10 us of work. */
#define GRAIN_VALUES 8192

static void softmax_task(void *context, size_t begin, size_t end)
{
    ll_table()->softmax(context, begin, end);
}

void ll_softmax(ll_softmax_args *a)
{
    if (a->rows && a->n)
        ll_parallel_for(a->rows, GRAIN_VALUES / a->n + 1, softmax_task, a);
}
