/* table.h: what one instruction set offers, to the drivers in ops/. The tables themselves are made in all.h. */
#ifndef LL_TABLE_H
#define LL_TABLE_H

#include <stdatomic.h>

#include "../llorch.h"

/* Rows [begin, end); stream: y is too large for the caches, store around them. */
typedef void (*ll_norm_kernel)(const ll_norm_args *a, int stream, size_t begin, size_t end);
/* A function of every value of x [n]; y may be x. */
typedef void (*ll_unary_kernel)(const void *x, void *y, size_t n);

/* Few rows of x on a weight whose rows are contiguous: it is read as it lies, a strip of columns at a time
 * (kernels/few_rows.h). 16-bit weights that are not packed are rare: with more than two rows they go into panels. */
#define LL_FEW_ROWS 12
static inline int ll_few_rows(const ll_linear_args *a)
{
    const ll_weight *w = &a->weight;
    return !w->packed && w->n_stride == (ptrdiff_t)ll_dtype_size(w->format) && a->M <= (w->format == LL_F32 ? LL_FEW_ROWS : 2);
}

/* ---- attention, between its driver (ops/attention.c) and its kernel ---- */

/* When a group's fresh keys and values are written: another part has done it, as they are the same; before all units; with its
 * only one, by who reads them then: nobody waits for it, and what it takes from memory is near. */
enum { LL_WRITTEN_ALREADY, LL_WRITTEN_BEFORE, LL_WRITTEN_WITH };

/* Heads that follow one another with the same keys and queries at the same positions: these are the rows of one matrix, row r
 * query r / count of head r % count. Or a part of these rows. */
typedef struct ll_attention_group {
    const ll_attention_head *heads; /* [count] */
    const ll_kv *kv;
    size_t count, Tq;
    const float *packed;      /* chunks from first_block on, one behind the other; NULL: those of kv, or its rows */
    size_t first_block;       /* that a row sees anything of */
    size_t tiles, together;   /* tiles of rows; how many of them are a unit */
    size_t first_tile, end_tile; /* those of its units */
    size_t unit, units;       /* its units are [unit, unit + units) of the call */
    size_t score_stride;      /* floats between a tile's rows of scores */
    size_t part, item, items; /* the driver's: groups whose keys are packed together; blocks to pack */
    int writes;               /* LL_WRITTEN_WITH and so on */
} ll_attention_group;

typedef struct ll_span {
    size_t begin, end;
} ll_span;

/* Of a row: which query it is, of which head. A division takes as long as a row of a short product. */
static inline size_t ll_attention_query(const ll_attention_group *g, size_t row) { return g->count == 1 ? row : row / g->count; }
static inline const ll_attention_head *ll_attention_head_of(const ll_attention_group *g, size_t row)
{
    return g->count == 1 ? g->heads : &g->heads[row % g->count];
}

/* Where a row of a group is. */
static inline size_t ll_attention_position(const ll_attention_group *g, size_t row)
{
    return g->kv->Tk - g->heads->behind - g->Tq + ll_attention_query(g, row);
}

/* The positions that a row of a group sees. */
static inline ll_span ll_attention_sees(const ll_attention_args *a, const ll_attention_group *g, size_t row)
{
    if (!a->causal && !a->window)
        return (ll_span){0, g->kv->Tk};
    const size_t p = ll_attention_position(g, row);
    if (a->causal)
        return (ll_span){a->window && p + 1 > a->window ? p + 1 - a->window : 0, p + 1};
    return (ll_span){p > a->window ? p - a->window : 0, ll_least(p + a->window + 1, g->kv->Tk)};
}

/* The first row of a tile of M rows in tiles: as even as can be, so that no tile has one row and waits for its own chains. */
static inline size_t ll_tile_row(size_t tile, size_t tiles, size_t M)
{
    return tile * (M / tiles) + ll_least(tile, M % tiles);
}

/* ---- quantising, between quantize.c and its kernel ---- */

/* Sub-blocks of a K-quant whose scales are sought together. */
#define LL_SUBS 16

typedef struct ll_k_round_args {
    const float *x;                       /* [J][16] */
    size_t J;
    float low, high;                      /* of q */
    const float *d, *dmin;                /* [16] */
    float *sc, *mn;                       /* [16]: whole numbers, in [least_sc, most_sc] and [0, most_sc]; become the chosen */
    float least_sc, most_sc;
    int has_minimum;                      /* else mn and dmin are 0 */
    float *q;                             /* [J][16]: receives whole numbers */
} ll_k_round_args;

typedef struct ll_kernels {
    const char *name;
    int (*supported)(void);
    ll_norm_kernel layer_norm[LL_DTYPES], add_layer_norm[LL_DTYPES], rms_norm[LL_DTYPES], add_rms_norm[LL_DTYPES];
    ll_unary_kernel unary[LL_UNARY_OPS][LL_DTYPES];
    void (*cast)(const void *x, int from, void *y, int to, size_t n);
    void (*gate)(const ll_gate_args *a, size_t begin, size_t end, size_t first, size_t n);
    void (*rope)(const ll_rope_args *a, size_t begin, size_t end);
    /* kernels/pack.h: tiles that M rows of x make; tiles [begin, end) of x; panels [begin, end) of a weight as
     * format, in panels of K rows */
    size_t (*pack_tiles)(size_t M);
    void (*pack_x)(const ll_linear_args *a, float *packed, size_t begin, size_t end);
    void (*pack)(const ll_weight *w, int format, char *packed, size_t K, size_t begin, size_t end);
    /* kernels/blocks_pack.h: a panel of a weight in blocks, in its format */
    void (*pack_blocks)(const ll_weight *w, size_t panel, char *to);
    /* kernels/quantize.h: scale [16], and minimum, of x [J][16]; what whole multiples of d and dmin make of it */
    void (*k_fit_above)(const float *x, size_t J, float levels, float *scale, float *minimum);
    void (*k_fit_around)(const float *x, size_t J, float half, float *scale);
    void (*k_round)(const ll_k_round_args *a);
    /* kernels/linear.h: floats of a thread's workspace; tiles of x on panels of the weight */
    size_t (*linear_floats)(const ll_linear_args *a);
    void (*linear)(const ll_linear_args *a, const float *x, size_t tile_begin, size_t tile_end, size_t panel_begin,
                   size_t panel_end, float *workspace);
    /* kernels/integers.h: the same in 16-bit integers: tiles of x; floats; the product */
    void (*pack_integers)(const ll_linear_args *a, float *packed, size_t begin, size_t end);
    size_t (*integers_floats)(const ll_linear_args *a);
    void (*linear_int16)(const ll_linear_args *a, const float *x, size_t tile_begin, size_t tile_end, size_t panel_begin,
                         size_t panel_end, float *workspace);
    /* whether both widen integers and 16 bits beside products, which costs little: TILE_ROOMY (kernels/tile.h) */
    int widens_beside;
    void (*softmax)(const ll_softmax_args *a, size_t begin, size_t end);
    /* kernels/attention.h: rows of a tile and most tiles of a unit; floats of a unit's workspace; rows into chunks, and the
     * fresh ones into those of a cache; units [begin, end), whose groups are among those from `groups` on */
    size_t tile_rows, attention_together;
    size_t (*attention_floats)(const ll_attention_group *g, size_t D);
    void (*attention_keys)(const char *rows, ptrdiff_t stride, int dtype, size_t D, size_t first, size_t count, float *to);
    void (*attention_values)(const char *rows, ptrdiff_t stride, int dtype, size_t D, size_t first, size_t count, float *to);
    void (*kv_write)(const ll_kv *kv, size_t D, int k_dtype, int v_dtype);
    void (*attention)(const ll_attention_args *a, const ll_attention_group *groups, size_t begin, size_t end,
                      float *workspace);
    void (*argmax)(const ll_argmax_args *a, size_t begin, size_t end);
    void (*mean_pool)(const ll_pool_args *a, size_t begin, size_t end);
    void (*normalize)(const ll_normalize_args *a, size_t begin, size_t end);
} ll_kernels;

/* A thread's part of a job's workspace. There are as many as threads; a task takes its own thread's, which is in the caches
 * of its core, or any that is free. */
typedef struct ll_workspaces {
    float *base;
    size_t floats; /* of each, a multiple of 16; 0 for none */
    int threads;
    atomic_uchar taken[LL_MAX_THREADS]; /* all 0 to begin with */
} ll_workspaces;

static inline float *ll_workspace_take(ll_workspaces *w, int *slot)
{
    if (!w->floats)
        return NULL;
    *slot = ll_thread_number() % w->threads;
    while (atomic_exchange_explicit(&w->taken[*slot], 1, memory_order_acquire))
        *slot = (*slot + 1) % w->threads;
    return w->base + (size_t)*slot * w->floats;
}

static inline void ll_workspace_give(ll_workspaces *w, int slot)
{
    if (w->floats)
        atomic_store_explicit(&w->taken[slot], 0, memory_order_release);
}

/* The active table (dispatch.c). */
const ll_kernels *ll_table(void);

/* Column n of a weight, packed or not, widened (ops/pack.c). */
void ll_weight_column(const ll_kernels *kernels, const ll_weight *w, size_t n, float *y);

/* LL_SYMBOL(layer_norm_f32) is ll_layer_norm_f32_<isa>. */
#define LL_PASTE2(name, isa) ll_##name##_##isa
#define LL_PASTE(name, isa) LL_PASTE2(name, isa)
#define LL_SYMBOL(name) LL_PASTE(name, LL_ISA)
#define LL_STRING2(x) #x
#define LL_STRING(x) LL_STRING2(x)

#define LL_EACH_DTYPE(op) \
    {LL_SYMBOL(op##_f32), LL_SYMBOL(op##_f16), LL_SYMBOL(op##_bf16)}

#endif
