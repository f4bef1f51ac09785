/* ops/pack.c: weights into panels, and out of them again. */
#include <string.h>

#include "../kernels/table.h"

/* From so many values on, packing is shared. */
#define PACK_VALUES 65536

typedef struct pack_job {
    const ll_weight *from;
    const ll_kernels *kernels;
    int format;
    char *to;
} pack_job;

static void pack_task(void *context, size_t begin, size_t end)
{
    const pack_job *job = context;
    job->kernels->pack(job->from, job->format, job->to, begin, end);
}

size_t ll_packed_bytes(size_t K, size_t N, int format) { return ll_whole_panels(N) * K * ll_dtype_size(format); }

void ll_pack(const ll_weight *from, int format, void *to)
{
    pack_job job = {from, ll_table(), format, to};
    ll_parallel_for(ll_panels(from->N), PACK_VALUES / (LL_PANEL * (from->K + 1)) + 1, pack_task, &job);
}

void ll_weight_column(const ll_kernels *kernels, const ll_weight *w, size_t n, float *y)
{
    const size_t size = ll_dtype_size(w->format);
    const char *from = w->data;
    ptrdiff_t stride = w->k_stride;
    if (w->packed) {
        stride = (ptrdiff_t)(LL_PANEL * size);
        from += (n / LL_PANEL * w->K * LL_PANEL + n % LL_PANEL) * size;
    } else {
        from += (ptrdiff_t)n * w->n_stride;
    }
    if (stride == (ptrdiff_t)size) {
        kernels->widen(from, w->format, y, w->K);
        return;
    }
    for (size_t k = 0; k < w->K;) { /* gathered in parts, then widened together */
        uint32_t part[64];
        const size_t count = ll_least(64, w->K - k), first = k;
        if (w->format == LL_F32) {
            for (; k < first + count; k++)
                memcpy(y + k, from + (ptrdiff_t)k * stride, sizeof *y);
            continue;
        }
        for (; k < first + count; k++)
            memcpy((char *)part + (k - first) * size, from + (ptrdiff_t)k * stride, size);
        kernels->widen(part, w->format, y + first, count);
    }
}

void ll_packed_column(const ll_weight *w, size_t n, float *y) { ll_weight_column(ll_table(), w, n, y); }

void ll_packed_row(const ll_weight *w, size_t k, float *y)
{
    const ll_kernels *kernels = ll_table();
    const size_t size = ll_dtype_size(w->format);
    for (size_t n = 0; n < w->N; n += LL_PANEL)
        kernels->widen((const char *)w->data + (n * w->K + k * LL_PANEL) * size, w->format, y + n,
                       ll_least(LL_PANEL, w->N - n));
}
