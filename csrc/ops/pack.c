/* ops/pack.c: weights into panels, and out of them again. */
#include <string.h>

#include "../blocks.h"
#include "../fpenv.h"
#include "../kernels/table.h"

/* Values to pack that are worth waking a thread for. */
#define PACK_VALUES 65536

typedef struct pack_job {
    const ll_weight *from;
    const ll_kernels *kernels;
    int format;
    char *to;
    size_t K; /* rows of the panels there */
} pack_job;

/* Values of k of a panel that are widened together: whole blocks, in the first cache. */
#define PACK_BLOCKS LL_BLOCK_VALUES
/* Floats from column to column: not whole pages apart, which share their places in that cache. */
#define PACK_ROW (PACK_BLOCKS + LL_PANEL)

/* Panels of a weight in blocks: its columns, which are rows of blocks, are widened in parts and packed from there. */
static void pack_widened(const pack_job *job, size_t begin, size_t end)
{
    _Alignas(64) float part[LL_PANEL * PACK_ROW];
    const ll_weight *w = job->from;
    const ll_format *format = &ll_formats[w->format];
    const size_t size = LL_PANEL * ll_dtype_size(job->format), rows = ll_panel_rows(job->K, job->format);
    for (size_t panel = begin; panel < end; panel++) {
        const size_t first = panel * LL_PANEL, columns = ll_least(LL_PANEL, w->N - first);
        for (size_t k = 0; k < w->K; k += PACK_BLOCKS) {
            const size_t count = ll_least(PACK_BLOCKS, w->K - k);
            for (size_t n = 0; n < columns; n++)
                ll_dequantize_row((const char *)w->data + (ptrdiff_t)(first + n) * w->n_stride
                                      + k / format->values * format->bytes,
                                  w->format, count, part + n * PACK_ROW);
            const ll_weight wide = {.data = part, .format = LL_F32, .k_stride = sizeof(float),
                                    .n_stride = PACK_ROW * sizeof(float), .K = count, .N = columns};
            job->kernels->pack(&wide, job->format, job->to + (panel * rows + k) * size, count, 0, 1);
        }
    }
}

static void pack_task(void *context, size_t begin, size_t end)
{
    const pack_job *job = context;
    if (job->from->format == job->format && job->format >= LL_DTYPES)
        for (size_t panel = begin; panel < end; panel++)
            job->kernels->pack_blocks(job->from, panel, job->to + panel * ll_panel_bytes(job->from->K, job->format));
    else if (job->from->format >= LL_DTYPES)
        pack_widened(job, begin, end);
    else
        job->kernels->pack(job->from, job->format, job->to, job->K, begin, end);
}

size_t ll_packed_bytes(size_t K, size_t N, int format)
{
    return ll_panels(N) * ll_panel_bytes(K, format);
}

void ll_pack(const ll_weight *from, int format, void *to)
{
    pack_job job = {from, ll_table(), format, to, from->K};
    ll_parallel_for(ll_panels(from->N), LL_PANEL * from->K, PACK_VALUES, 1, pack_task, &job);
}

void ll_pack_part(const ll_weight *from, int format, size_t k, size_t K, void *to)
{
    pack_job job = {from, ll_table(), format, (char *)to + k * LL_PANEL * ll_dtype_size(format), K};
    const ll_fpenv saved = ll_fpenv_enter();
    pack_task(&job, 0, ll_panels(from->N));
    ll_fpenv_leave(saved);
}

void ll_weight_column(const ll_kernels *kernels, const ll_weight *w, size_t n, float *y)
{
    const size_t size = ll_dtype_size(w->format);
    const char *from = w->data;
    ptrdiff_t stride = w->k_stride;
    if (w->format >= LL_DTYPES && w->packed) {
        ll_blocks_column(w, n, 0, w->K, y);
        return;
    }
    if (w->format >= LL_DTYPES) {
        ll_dequantize_row(from + (ptrdiff_t)n * w->n_stride, w->format, w->K, y);
        return;
    }
    size_t together = 1; /* values that lie side by side at each stride */
    if (w->packed) {
        together = w->format == LL_BF16 ? 2 : 1;
        stride = (ptrdiff_t)(LL_PANEL * together * size);
        from += (n / LL_PANEL * ll_panel_rows(w->K, w->format) * LL_PANEL + n % LL_PANEL * together) * size;
    } else {
        from += (ptrdiff_t)n * w->n_stride;
    }
    if (stride == (ptrdiff_t)size) {
        kernels->cast(from, w->format, y, LL_F32, w->K);
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
        for (; k < first + count; k += together)
            memcpy((char *)part + (k - first) * size, from + (ptrdiff_t)(k / together) * stride, together * size);
        k = first + count;
        kernels->cast(part, w->format, y + first, LL_F32, count);
    }
}

void ll_packed_column(const ll_weight *w, size_t n, float *y)
{
    const ll_fpenv saved = ll_fpenv_enter();
    ll_weight_column(ll_table(), w, n, y);
    ll_fpenv_leave(saved);
}

static void packed_row(const ll_kernels *kernels, const ll_weight *w, size_t k, float *y)
{
    if (w->format >= LL_DTYPES) {
        const size_t values = ll_formats[w->format].values;
        for (size_t n = 0; n < w->N; n++) {
            float block[LL_BLOCK_VALUES];
            ll_blocks_column(w, n, k / values * values, values, block);
            y[n] = block[k % values];
        }
        return;
    }
    const size_t size = ll_dtype_size(w->format), together = w->format == LL_BF16 ? 2 : 1;
    const size_t to_panel = ll_panel_rows(w->K, w->format) * LL_PANEL;
    for (size_t n = 0; n < w->N; n += LL_PANEL) {
        const char *from = (const char *)w->data + (n / LL_PANEL * to_panel + k / together * together * LL_PANEL) * size;
        uint32_t row[LL_PANEL]; /* of its format */
        for (size_t j = 0; j < LL_PANEL; j++)
            memcpy((char *)row + j * size, from + (j * together + k % together) * size, size);
        kernels->cast(row, w->format, y + n, LL_F32, ll_least(LL_PANEL, w->N - n));
    }
}

void ll_packed_row(const ll_weight *w, size_t k, float *y)
{
    const ll_fpenv saved = ll_fpenv_enter();
    packed_row(ll_table(), w, k, y);
    ll_fpenv_leave(saved);
}
