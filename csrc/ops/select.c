/* ops/select.c: columns of a table by number; the place of the largest value. */
#include "../kernels/table.h"

#define WORTH_VALUES 65536

typedef struct embedding_job {
    const ll_embedding_args *args;
    const ll_kernels *kernels;
} embedding_job;

static void embedding_task(void *context, size_t begin, size_t end)
{
    const embedding_job *job = context;
    const ll_embedding_args *a = job->args;
    for (size_t i = begin; i < end; i++)
        ll_weight_column(job->kernels, &a->table, (size_t)a->ids[i], a->y + i * a->table.K);
}

size_t ll_embedding(const ll_embedding_args *a)
{
    embedding_job job = {a, ll_table()};
    for (size_t i = 0; i < a->rows; i++)
        if (a->ids[i] < 0 || (uint64_t)a->ids[i] >= a->table.N)
            return i;
    if (a->table.K)
        ll_parallel_for(a->rows, a->table.K, WORTH_VALUES, 1, embedding_task, &job);
    return a->rows;
}

typedef struct argmax_job {
    const ll_argmax_args *args;
    const ll_kernels *kernels;
} argmax_job;

static void argmax_task(void *context, size_t begin, size_t end)
{
    const argmax_job *job = context;
    job->kernels->argmax(job->args, begin, end);
}

void ll_argmax(const ll_argmax_args *a)
{
    argmax_job job = {a, ll_table()};
    ll_parallel_for(a->rows, a->n, WORTH_VALUES, 1, argmax_task, &job);
}
