/* ops/select.c: rows of a table by number; the place of the largest value. */
#include <string.h>

#include "../kernels/table.h"

#define GRAIN_VALUES 65536

static size_t value_bytes(int dtype) { return dtype == LL_F32 ? 4 : 2; }

static void embedding_task(void *context, size_t begin, size_t end)
{
    const ll_embedding_args *a = context;
    const size_t size = value_bytes(a->dtype);
    for (size_t i = begin; i < end; i++) {
        const char *from = (const char *)a->table + (ptrdiff_t)a->ids[i] * a->table_stride;
        float *to = a->y + i * a->n;
        if (a->table_value == (ptrdiff_t)size) {
            if (a->dtype == LL_F32)
                memcpy(to, from, a->n * size);
            else
                ll_widen(from, a->dtype, to, a->n);
            continue;
        }
        for (size_t j = 0; j < a->n;) { /* gathered in parts, then widened together */
            uint32_t part[64];
            size_t count = 0, first = j;
            for (; count < 64 && j < a->n; j++, count++)
                memcpy((char *)part + count * size, from + (ptrdiff_t)j * a->table_value, size);
            if (a->dtype == LL_F32)
                memcpy(to + first, part, count * size);
            else
                ll_widen(part, a->dtype, to + first, count);
        }
    }
}

size_t ll_embedding(const ll_embedding_args *a)
{
    for (size_t i = 0; i < a->rows; i++)
        if (a->ids[i] < 0 || (uint64_t)a->ids[i] >= a->length)
            return i;
    if (a->n)
        ll_parallel_for(a->rows, GRAIN_VALUES / a->n + 1, embedding_task, (void *)(uintptr_t)a);
    return a->rows;
}

static void argmax_task(void *context, size_t begin, size_t end)
{
    ll_table()->argmax(context, begin, end);
}

void ll_argmax(const ll_argmax_args *a)
{
    ll_parallel_for(a->rows, GRAIN_VALUES / a->n + 1, argmax_task, (void *)(uintptr_t)a);
}
