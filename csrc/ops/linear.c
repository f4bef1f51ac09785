/* ops/linear.c: packs x into tiles and splits the product over threads, in one of four ways.
 *
 *   LL_BY_PANELS  x is packed once for all threads, then each takes panels of the weight: it is read, and widened, once.
 *   LL_OWN_X      the same, but each thread packs all of x for itself: of a small x that takes less time than fetching what
 *                 another core has written, and nobody waits for it.
 *   LL_BY_BLOCKS  each thread packs a block of rows of x and multiplies all of the weight, as norms and gates take their rows:
 *                 what one core has written is rarely another's to read, which may be far away. The weight is widened in
 *                 each block, so that is for many rows, or where widening costs little (tile.h).
 *   LL_BY_ROWS    each thread takes rows of x, packs them, and multiplies all of the weight: for many rows on a weight that
 *                 the caches hold.
 *
 * A gated product is made a part of its columns at a time, which stay in the caches of the thread that makes them: g, u, then
 * activation(g) * u. So only that goes to memory, and to other cores, a third of what there would be. (Measured on two cores of a
 * Zen 4, by integers: 8 to 512 rows of a model 2 to 4 % faster where the cores have a cache each;
 * where they share one, 8 rows 1 to 3 %, others as fast.)
 */
#include <pthread.h>
#include <stdatomic.h>

#include "../formats.h"
#include "../kernels/table.h"

/* Multiplications a thread must have to be worth waking: some 10 us of work. Fewer rows than GRAIN_ROWS take as long as so
 * many, or nearly: most of it is reading the weight. (Measured: from 65,000 values of it on two threads are faster.) */
#define GRAIN_FMA ((size_t)1 << 19)
#define GRAIN_ROWS 16
/* Panels a thread takes at once at least: those that a kernel has together. The fewer, the less one waits for the other at
 * the end, which tells where the memory is what both wait for, and where there are few: two of what is widened for several
 * rows anyway, and of integers, of which one row takes one panel after the other (measured: 8 and 32 rows of integers 1.7 %
 * faster, one 1 %, 8 rows of float32 1.5 % slower); a strip of columns where few rows meet a plain weight. */
#define GRAIN_PANELS 4
#define GRAIN_PANELS_WIDENED 2
#define GRAIN_PANELS_STRIP 32
/* By rows: from so many tiles a thread on, where the weight has at most so many bytes, or so few panels that they are no
 * work for all. A tile is so many parts at most, so that all threads are done at about the same time, and a thread has at
 * most so many tiles at once, as many as a kernel goes through with a part of the weight (a gated product's, too). */
#define ROWS_TILES 3
#define ROWS_WEIGHT_BYTES ((size_t)4 << 20)
#define MANY_PANELS 32
#define ROWS_PARTS 4
#define TILES_AT_ONCE 43
/* By blocks: rows of one at least, by what it costs to widen a weight once more. (Measured on two cores of a Zen 4: 512 tokens
 * of a model are 3 to 7 % faster where the cores have a cache each, 128 tokens by integers 10 %; where they share one, 0 to 2 %
 * and 0; 64 rows of a 16-bit weight would be 3 % slower there.) With 32 registers a weight is widened beside products, which costs
 * little, or float32 as it is. The least is for two threads then, and more for more, as each thread reads all of the weight.
 * (Measured on the same cores, sharing a cache and not, sequences by parts of them, ops/plan.c: 12 by integers 1.02 and 1.20 to
 * 1.25 x, but 8 0.92 and 1.14; 12 and 16 of 16 bits 1.04 to 1.06 and 1.07 to 1.13; 32 of float32 1.04. A prompt of 12 tokens by
 * integers 1.00, of 14 on 16 bits 1.02 and 1.03, of 34 by float32 1.03, but 20 1.04 and 0.85. Without the registers none gains.) If
 * another caller has the pool, one thread makes all blocks.
 * The panels are so many parts: a smaller one isn't worth fetching another's rows. But a part has no more multiplications than an
 * interrupt can wait for, some 15 ms. */
#define BLOCK_ROWS 64
#define BLOCK_ROWS_16_BITS 192
#define BESIDE_ROWS_INTEGERS 6
#define BESIDE_ROWS_16_BITS 7
#define BESIDE_ROWS_FLOAT32 16
#define BLOCK_PARTS 4
#define BLOCK_FMA ((size_t)1 << 30)
/* x of its own, if it isn't made integers, which takes longer: at most so many values, and of all threads together, and at
 * least so many columns a thread. */
#define OWN_VALUES ((size_t)1 << 18)
#define OWN_VALUES_ALL ((size_t)1 << 22)
#define OWN_COLUMNS 128
/* Panels that are packed and used in turn. */
#define TOGETHER 4
/* Of a gated product: values of g that a thread makes at a time, with as many of u, where that is no less than TOGETHER panels.
 * (Measured: half of it, and TOGETHER panels alone, are up to 1 % slower.) */
#define GATE_VALUES ((size_t)1 << 15)
/* From so many rows on, a weight that is not packed is packed first. */
#define PACK_ROWS 96
/* Values to pack that are worth waking a thread for; values of x that become integers. */
#define PACK_VALUES 65536
#define PACK_INTEGERS 4096

/* Of a packed weight's first panel, which the calling thread begins with: called for before x is packed, as idle threads call for
 * theirs. (Measured on two cores of a Zen 4 that share no cache: a step of one sequence 2 to 4 % faster; of 24 and 32 lines the
 * same.) */
#define FIRST_LINES 16
/* One row of integers, and what other threads read of its product, lie in one of two places in turn, so many bytes each. A line
 * that another core has read takes long to be written, which the calling thread would wait for before others can begin: so it
 * writes to the lines of the next row where it waits for nothing, while it makes the product before. (Measured on two cores of a
 * Zen 4 that share no cache: a row of 576 values is made in 0.3 instead of 0.8 us, of 1536 in 0.5 instead of 1.7.) */
#define ROW_BYTES ((size_t)64 << 10)
/* Multiplications that a result takes as long as, to be stored, and to go through a function, in plain C. */
#define BRIEF_STORE 8
#define BRIEF_FUNCTION 32

typedef enum linear_way { LL_BY_PANELS, LL_OWN_X, LL_BY_BLOCKS, LL_BY_ROWS } linear_way;

typedef struct linear_job {
    const ll_linear_args *args;
    const ll_kernels *kernels;
    void (*pack_x)(const ll_linear_args *, float *, size_t, size_t);
    void (*linear)(const ll_linear_args *, const float *, size_t, size_t, size_t, size_t, float *);
    linear_way way;
    size_t tiles, panels;    /* of a gated product, panels of g */
    size_t parts, most;      /* by rows: of a tile, tiles that a thread has at once; by blocks: of a block, its panels */
    size_t own, room, gate;  /* floats of a thread's workspace: its own x, or its block's; what the kernel works in; g, or u */
    ll_workspaces workspaces;
    unsigned char filled[LL_MAX_THREADS]; /* own x: whether it is there */
    float *x;                /* in tiles, for all threads */
    struct row_next *next;   /* the owner's: of a row that has turns; else NULL */
    pthread_t owner;         /* who called */
    char *packed;            /* where the weight is packed first, or NULL */
    ll_linear_args with_packed;
} linear_job;

/* One row of contiguous float32 is a tile as it lies, at whole floats: tiles are read as floats. */
static int x_is_packed(const ll_linear_args *a)
{
    return a->weight.compute == LL_FLOAT32 && a->M == 1 && a->dtype == LL_F32 && (uintptr_t)a->x % sizeof(float) == 0;
}

/* Many rows read the weight several times: it is packed first. */
static int weight_is_packed_first(const ll_linear_args *a) { return !a->weight.packed && a->M > PACK_ROWS; }

/* Of columns; of a gated product, those of g. */
static size_t panels_of(const ll_linear_args *a) { return ll_panels(a->weight.N) / (a->gated ? 2 : 1); }

/* Rows of a block at least. */
static size_t block_rows(const ll_weight *w, size_t threads)
{
    const int half = w->format == LL_F16 || w->format == LL_BF16, beside = ll_table()->widens_beside;
    const size_t few = w->compute == LL_INT16 ? BESIDE_ROWS_INTEGERS
                       : half                 ? BESIDE_ROWS_16_BITS
                       : w->format == LL_F32  ? BESIDE_ROWS_FLOAT32
                                              : BLOCK_ROWS;
    return beside ? ll_least(BLOCK_ROWS, few * threads / 2) : half ? BLOCK_ROWS_16_BITS : BLOCK_ROWS;
}

int ll_linear_by_blocks(const ll_weight *w, size_t M, size_t threads)
{
    return threads > 1 && w->packed
           && ll_least(M / block_rows(w, threads), M * (w->K + 1) * w->N / GRAIN_FMA) >= threads;
}

static linear_way way_of(const ll_linear_args *a, size_t tiles, size_t panels, size_t threads)
{
    const ll_weight *w = &a->weight;
    if (panels < MANY_PANELS && panels < tiles)
        return LL_BY_ROWS;
    if (w->packed && w->format == LL_F32 && tiles >= ROWS_TILES * threads
        && ll_packed_bytes(w->K, w->N, LL_F32) <= ROWS_WEIGHT_BYTES)
        return LL_BY_ROWS;
    if (ll_linear_by_blocks(w, a->M, threads))
        return LL_BY_BLOCKS;
    const int own = threads > 1 && w->compute == LL_FLOAT32 && !x_is_packed(a)
                    && a->M * w->K <= ll_least(OWN_VALUES, OWN_VALUES_ALL / threads) && w->N >= OWN_COLUMNS * threads;
    return own ? LL_OWN_X : LL_BY_PANELS;
}

/* Of panels. */
static size_t grain_of(const ll_linear_args *a, size_t tiles, size_t panels)
{
    const ll_weight *w = &a->weight;
    if (w->N * (w->K + 1) < 2 * GRAIN_FMA / (a->M < GRAIN_ROWS ? GRAIN_ROWS : a->M))
        return panels;
    const int widened = w->compute == LL_INT16 || (w->format != LL_F32 && tiles > 1);
    const size_t grain = ll_few_rows(a) ? GRAIN_PANELS_STRIP : widened ? GRAIN_PANELS_WIDENED : GRAIN_PANELS;
    return a->gated ? grain / 2 : grain; /* one of g is one of u, too */
}

/* Values of g that a thread makes at a time, if it has so many rows: no more than are its own, of many threads. */
static size_t gate_values(const linear_job *job, size_t rows)
{
    const size_t panel = LL_PANEL * ll_least(rows, TILES_AT_ONCE * job->kernels->tile_rows);
    const int divided = job->way == LL_BY_PANELS || job->way == LL_OWN_X;
    return ll_least(TOGETHER * panel > GATE_VALUES ? TOGETHER * panel : GATE_VALUES,
                    (divided ? ll_up(job->panels, (size_t)job->workspaces.threads) : job->panels) * panel);
}

/* No more than there is work for: a tile or a panel each. */
static size_t threads_of(size_t tiles, size_t panels)
{
    const size_t work = tiles > panels ? tiles : panels;
    return ll_least((size_t)ll_threads(), work ? work : 1);
}

static linear_job job_of(const ll_linear_args *a)
{
    const ll_kernels *kernels = ll_table();
    const int integers = a->weight.compute == LL_INT16;
    const size_t tiles = kernels->pack_tiles(a->M), panels = panels_of(a), threads = threads_of(tiles, panels);
    linear_job job = {.args = a, .kernels = kernels, .tiles = tiles, .panels = panels,
                      .way = way_of(a, tiles, panels, threads),
                      .pack_x = integers ? kernels->pack_integers : kernels->pack_x,
                      .linear = integers ? kernels->linear_int16 : kernels->linear};
    if (job.way == LL_BY_BLOCKS) {
        const size_t columns = LL_PANEL * (a->gated ? 2 : 1);
        const size_t most = BLOCK_FMA / (ll_up(a->M, threads) * (a->weight.K + 1) * columns) + 1;
        job.most = ll_up(ll_least(ll_up(panels, BLOCK_PARTS), most), TOGETHER) * TOGETHER;
        job.parts = ll_up(panels, job.most);
    } else {
        job.parts = ll_least(ROWS_PARTS, ll_up(panels, GRAIN_PANELS));
        job.most = ll_least(tiles / threads + 1, TILES_AT_ONCE);
    }
    const size_t rows = job.way == LL_OWN_X       ? a->M
                        : job.way == LL_BY_BLOCKS ? ll_up(a->M, threads)
                        : job.way == LL_BY_ROWS   ? ll_least(job.most * kernels->tile_rows, a->M)
                                                  : 0;
    const size_t floats = (integers ? kernels->integers_floats : kernels->linear_floats)(a);
    job.own = (rows * a->weight.K + 15) / 16 * 16; /* whole lines of the cache */
    job.room = (floats + 15) / 16 * 16;
    job.workspaces.threads = (int)threads;
    job.gate = a->gated ? gate_values(&job, rows ? rows : a->M) : 0;
    return job;
}

/* A place of a row: what the other threads read of the product, then x. */
typedef struct row_place {
    ll_linear_args args;
    linear_job job;
    _Alignas(64) char x[];
} row_place;

/* The next row's place, and how many bytes of it are still to be written to. On the stack of who will put it there: a line that
 * others read, too, would be taken from them. */
typedef struct row_next {
    char *place;
    size_t bytes;
} row_next;

/* Of the row that was told last (ll_linear_ahead), or 0. Who sees an old one loses time only. */
static _Alignas(64) atomic_size_t row_coming;

/* Of a place. Pairs, sums of 16 values and more, scales. */
static size_t row_bytes(size_t K) { return sizeof(row_place) + 2 * K + K / 4 + K / 32 + 64; }

/* Whether a row has turns: others will read it, and it fits. */
static int row_has_turns(const linear_job *job)
{
    const ll_linear_args *a = job->args;
    return a->M == 1 && a->weight.compute == LL_INT16 && job->workspaces.threads > 1 && !job->own
           && row_bytes(a->weight.K) <= ROW_BYTES && grain_of(a, job->tiles, job->panels) < job->panels;
}

/* x in tiles, the weight packed; whole lines too. Integers with their sums and scales take less than float32, from a block's
 * values on. */
static size_t x_bytes(const linear_job *job)
{
    const ll_linear_args *a = job->args;
    return job->own || x_is_packed(a) ? 0
           : row_has_turns(job)       ? 2 * ROW_BYTES
                                      : (a->M * a->weight.K * sizeof(float) + 63) / 64 * 64;
}

static size_t packed_bytes(const ll_linear_args *a)
{
    return weight_is_packed_first(a) ? ll_packed_bytes(a->weight.K, a->weight.N, LL_F32) : 0;
}

/* Bytes of a thread's workspace. */
static size_t own_bytes(const linear_job *job) { return (job->own + job->room + 2 * job->gate) * sizeof(float); }

/* Of one row g and u are made like any other columns, and their product then: it waits for memory, which gives more where a thread
 * goes on from panel to panel (measured: a sequence's decoding 3 to 6 % faster). What is made first. */
static ll_linear_args product_of(const ll_linear_args *a)
{
    ll_linear_args product = *a;
    if (a->M == 1 && a->gated) {
        product.gated = 0;
        product.activation = LL_NONE;
    }
    return product;
}

/* g and u, where they are. */
static size_t apart_bytes(const ll_linear_args *a, const ll_linear_args *product)
{
    return product->gated == a->gated ? 0 : (a->weight.N * sizeof(float) + 63) / 64 * 64;
}

size_t ll_linear_scratch(const ll_linear_args *a)
{
    const ll_linear_args product = product_of(a);
    const linear_job job = job_of(&product);
    return x_bytes(&job) + packed_bytes(a) + apart_bytes(a, &product) + (size_t)job.workspaces.threads * own_bytes(&job);
}

void ll_linear_ahead(const ll_weight *w, size_t M, int gated)
{
    const ll_linear_args a = product_of(&(ll_linear_args){.weight = *w, .M = M, .gated = gated});
    const size_t tiles = ll_table()->pack_tiles(M), panels = panels_of(&a), bytes = ll_panel_bytes(w->K, w->format);
    const int from_first = ll_linear_by_blocks(w, M, threads_of(tiles, panels)); /* every thread goes through all of them */
    if (M == 1 && w->compute == LL_INT16 && row_bytes(w->K) <= ROW_BYTES)
        atomic_store_explicit(&row_coming, row_bytes(w->K), memory_order_relaxed);
    if (w->packed)
        ll_parallel_ahead(&(ll_ahead){.data = {w->data, a.gated ? (const char *)w->data + panels * bytes : NULL}, .bytes = bytes,
                                      .n = panels,
                                      .grain = from_first ? panels : grain_of(&a, tiles, panels)});
}

static void pack_x_task(void *context, size_t begin, size_t end)
{
    const linear_job *job = context;
    job->pack_x(job->args, job->x, begin, end);
}

static void pack_weight_task(void *context, size_t begin, size_t end)
{
    const linear_job *job = context;
    job->kernels->pack(&job->args->weight, LL_F32, job->packed, job->args->weight.K, begin, end);
}

/* What of a thread's workspace is the kernel's, or NULL. */
static float *kernels_part(const linear_job *job, float *own)
{
    return job->room ? own + job->own : NULL;
}

/* Panels [begin, end) of g, and of u, of tiles [first, last), then their product: as many panels as `together` at a time. */
static void multiply_gated(const linear_job *job, const ll_linear_args *a, const float *x, size_t first, size_t last,
                           size_t begin, size_t end, float *own)
{
    const size_t tiles = job->kernels->pack_tiles(a->M), m = ll_tile_row(first, tiles, a->M);
    const size_t rows = ll_tile_row(last, tiles, a->M) - m, together = gate_values(job, rows) / (LL_PANEL * rows);
    float *const g = own + job->own + job->room, *const u = g + job->gate;
    for (size_t panel = begin; panel < end; panel += together) {
        const size_t now = ll_least(together, end - panel), other = job->panels + panel;
        const size_t column = LL_PANEL * sizeof(float), row = now * column; /* bytes */
        ll_linear_args part = *a;
        part.gated = 0;
        part.activation = LL_NONE;
        part.y_stride = (ptrdiff_t)row;
        part.y = (void *)((uintptr_t)g - m * row - panel * column); /* its row m begins with this panel */
        job->linear(&part, x, first, last, panel, panel + now, kernels_part(job, own));
        part.y = (void *)((uintptr_t)u - m * row - other * column);
        job->linear(&part, x, first, last, other, other + now, kernels_part(job, own));
        if (a->activation)
            job->kernels->unary[a->activation][LL_F32](g, g, rows * now * LL_PANEL);
        const ll_gate_args gate = {.g = g, .u = u, .g_stride = (ptrdiff_t)row, .u_stride = (ptrdiff_t)row,
                                   .y = (char *)a->y + (ptrdiff_t)m * a->y_stride + panel * column,
                                   .y_stride = a->y_stride, .rows = rows, .n = now * LL_PANEL, .dtype = LL_F32};
        job->kernels->gate(&gate, 0, rows, 0, gate.n);
    }
}

/* Panels [begin, end) of the product of all rows of `a`, whose tiles are at x. own: this thread's workspace. */
static void multiply(const linear_job *job, const ll_linear_args *a, const float *x, size_t begin, size_t end, float *own)
{
    const size_t tiles = job->kernels->pack_tiles(a->M), blocks = ll_up(tiles, TILES_AT_ONCE);
    if (!a->gated) {
        job->linear(a, x, 0, tiles, begin, end, kernels_part(job, own));
        return;
    }
    for (size_t block = 0; block < blocks; block++)
        multiply_gated(job, a, x, tiles * block / blocks, tiles * (block + 1) / blocks, begin, end, own);
}

/* The job in its place, whose turn it is; the other place is the next row's. */
static linear_job *row_take_turn(const linear_job *job, const ll_scratch *scratch, row_next *next)
{
    const size_t coming = atomic_load_explicit(&row_coming, memory_order_relaxed);
    const unsigned turn = *scratch->turn;
    char *const places = scratch->shared;
    row_place *const place = (row_place *)(void *)(places + turn * ROW_BYTES);
    *scratch->turn = !turn;
    if (coming)
        atomic_store_explicit(&row_coming, 0, memory_order_relaxed);
    *next = (row_next){places + !turn * ROW_BYTES, coming ? coming : row_bytes(job->args->weight.K)};
    place->args = *job->args;
    place->job = *job;
    place->job.args = &place->args;
    place->job.x = (float *)(void *)place->x;
    place->job.next = next;
    place->job.owner = pthread_self();
    return &place->job;
}

/* By the owner alone, in its first chunk. */
static void row_write_next(const linear_job *job)
{
    if (!job->next || !pthread_equal(job->owner, pthread_self()))
        return;
    const row_next next = *job->next;
    for (size_t byte = 0; byte < next.bytes; byte += 64)
        next.place[byte] = 0;
    job->next->bytes = 0;
}

static void panels_task(void *context, size_t begin, size_t end)
{
    linear_job *job = context;
    int slot = 0;
    row_write_next(job);
    float *const own = ll_workspace_take(&job->workspaces, &slot);
    const float *x = job->own ? own : job->x;
    if (job->own && !job->filled[slot]) {
        job->pack_x(job->args, own, 0, job->tiles);
        job->filled[slot] = 1;
    }
    if (!job->packed)
        multiply(job, job->args, x, begin, end, own);
    else
        for (size_t panel = begin; panel < end; panel += TOGETHER) { /* used while they are in the second cache */
            size_t stop = end - panel < TOGETHER ? end : panel + TOGETHER;
            job->kernels->pack(&job->args->weight, LL_F32, job->packed, job->args->weight.K, panel, stop);
            multiply(job, &job->with_packed, x, panel, stop, own);
        }
    ll_workspace_give(&job->workspaces, slot);
}

/* Rows [m, end) as a product of their own. */
static ll_linear_args rows_of(const ll_linear_args *a, size_t m, size_t end)
{
    ll_linear_args rows = *a;
    rows.M = end - m;
    rows.x = (const char *)a->x + (ptrdiff_t)m * a->x_stride;
    rows.y = (char *)a->y + (ptrdiff_t)m * a->y_stride;
    if (a->residual)
        rows.residual = (const char *)a->residual + (ptrdiff_t)m * a->residual_stride;
    return rows;
}

/* A block, and where its x lies in tiles: with the thread of its number, which most likely packs it. */
static ll_linear_args block_of(const linear_job *job, size_t block, float **x)
{
    const size_t M = job->args->M, blocks = (size_t)job->workspaces.threads;
    *x = job->workspaces.base + block * job->workspaces.floats;
    return rows_of(job->args, ll_tile_row(block, blocks, M), ll_tile_row(block + 1, blocks, M));
}

/* x of blocks [begin, end). */
static void pack_blocks_task(void *context, size_t begin, size_t end)
{
    const linear_job *job = context;
    for (; begin < end; begin++) {
        float *x;
        const ll_linear_args rows = block_of(job, begin, &x);
        job->pack_x(&rows, x, 0, job->kernels->pack_tiles(rows.M));
    }
}

/* Parts [begin, end) of blocks. */
static void blocks_task(void *context, size_t begin, size_t end)
{
    linear_job *job = context;
    int slot = 0;
    float *const own = ll_workspace_take(&job->workspaces, &slot);
    while (begin < end) {
        const size_t first = begin % job->parts, taken = ll_least(end - begin, job->parts - first);
        float *x;
        const ll_linear_args rows = block_of(job, begin / job->parts, &x);
        multiply(job, &rows, x, first * job->most, ll_least(job->panels, (first + taken) * job->most), own);
        begin += taken;
    }
    ll_workspace_give(&job->workspaces, slot);
}

/* Parts [begin, end) of tiles: what is less than a tile by itself, whole ones together. */
static void rows_task(void *context, size_t begin, size_t end)
{
    linear_job *job = context;
    const ll_linear_args *a = job->packed ? &job->with_packed : job->args;
    int slot = 0;
    float *const own = ll_workspace_take(&job->workspaces, &slot);
    while (begin < end) {
        const size_t tile = begin / job->parts, first = begin % job->parts, left = end - begin;
        const int whole = !first && left >= job->parts;
        const size_t tiles = whole ? ll_least(left / job->parts, job->most) : 1;
        const size_t taken = whole ? tiles * job->parts : ll_least(left, job->parts - first);
        const size_t m = ll_tile_row(tile, job->tiles, a->M);
        const ll_linear_args rows = rows_of(a, m, ll_tile_row(tile + tiles, job->tiles, a->M));
        job->pack_x(&rows, own, 0, job->kernels->pack_tiles(rows.M));
        multiply(job, &rows, own, whole ? 0 : job->panels * first / job->parts,
                 whole ? job->panels : job->panels * (first + taken) / job->parts, own);
        begin += taken;
    }
    ll_workspace_give(&job->workspaces, slot);
}

int ll_linear(const ll_linear_args *wanted)
{
    ll_linear_args product = product_of(wanted);
    const ll_linear_args *const a = &product;
    const size_t M = a->M, K = a->weight.K, N = a->weight.N;
    if (!M || !N)
        return 0;
    linear_job job = job_of(a);
    const int threads = job.workspaces.threads;
    ll_scratch scratch;
    const size_t shared = x_bytes(&job) + packed_bytes(a);
    const size_t apart = apart_bytes(wanted, a);
    if (ll_scratch_take(&scratch, shared + apart, (size_t)threads, own_bytes(&job)))
        return -1;
    if (apart)
        product.y = scratch.shared + shared;
    job.workspaces.base = (float *)(void *)scratch.own;
    job.workspaces.floats = own_bytes(&job) ? scratch.stride / sizeof(float) : 0;
    row_next next;
    linear_job *const j = row_has_turns(&job) ? row_take_turn(&job, &scratch, &next) : &job; /* which all threads see */
    if (a->weight.packed && threads > 1)
        for (size_t line = 0; line < ll_least(FIRST_LINES, ll_panel_bytes(K, a->weight.format) / 64); line++)
            __builtin_prefetch((const char *)a->weight.data + line * 64, 0, 2);
    if (x_is_packed(a)) {
        j->x = (float *)(uintptr_t)a->x;
    } else if (!j->own) {
        if (!j->next)
            j->x = (float *)(void *)scratch.shared;
        const size_t worth = a->weight.compute == LL_INT16 ? PACK_INTEGERS : PACK_VALUES;
        ll_parallel_for(j->tiles, M * K / j->tiles, worth, 1, pack_x_task, j);
    }
    if (weight_is_packed_first(a)) {
        j->packed = scratch.shared + x_bytes(j);
        j->with_packed = *a;
        j->with_packed.weight = (ll_weight){.data = j->packed, .format = LL_F32, .packed = 1, .K = K, .N = N};
    }
    if (j->way == LL_BY_ROWS) {
        const size_t work = M * (K + 1) * N / (j->tiles * j->parts);
        if (j->packed)
            ll_parallel_for(j->panels, LL_PANEL * K, PACK_VALUES, 1, pack_weight_task, j);
        ll_parallel_for_threads(j->tiles * j->parts, GRAIN_FMA / (work + 1) + 1, threads, 0, rows_task, j);
    } else if (j->way == LL_BY_BLOCKS) {
        ll_parallel_for_threads((size_t)threads, 1, threads, 0, pack_blocks_task, j);
        ll_parallel_for_threads((size_t)threads * j->parts, 1, threads, 0, blocks_task, j);
    } else {
        const size_t values = a->activation ? BRIEF_FUNCTION : BRIEF_STORE; /* what a result takes beside its products */
        const int brief = a->weight.packed && M * (K + values) * N <= LL_BRIEF_FMA;
        ll_parallel_for_threads(j->panels, grain_of(a, j->tiles, j->panels), threads, brief, panels_task, j);
    }
    if (apart) {
        const ll_gate_args gate = {.g = a->y, .u = (const float *)a->y + N / 2, .y = wanted->y, .rows = 1, .n = N / 2,
                                   .dtype = LL_F32, .op = wanted->activation};
        ll_gate(&gate);
    }
    ll_scratch_give(&scratch);
    return 0;
}
