/* linear.h: y = activation(x @ weight + bias) + residual, x [M, K], weight [K, N].
 *
 *   y[m, n] = dot128(x[m, :], weight[:, n], bias[n])      (tile.h; init +0 without bias)
 *
 * Order:    of k only, blocks of 128. What is computed first, in which tile and by which thread is free.
 * Rounding: dot128; the activation is correctly rounded; the residual is one add; 16-bit results are rounded once,
 *           at the very end.
 * Edges:    K = 0 gives the bias. A NaN or infinity stays in its own row (of x) or column (of weight).
 * Cost:     weight is read from memory once for every LINEAR_ROWS rows of x, y is written once. x is copied into tiles
 *           [K][R] first, so that a tile reads one sequence; weights that are not packed, are blocks, or unless TILE_ROOMY have
 *           16 bits and meet several tiles, go through a buffer of panels in the caches. Others are widened in registers. Few
 *           rows (one tile) read a plain weight as it lies, strip by strip. A tile takes more panels when it has fewer rows, so
 *           that there are always enough chains.
 * Oracle:   llorch.reference.linear. Tests: tests/kernels/test_linear.py.
 */
#include "blocks_row.h"
#include "few_rows.h"
#include "finish.h"
#include "pack.h"
#include "table.h"
#include "tile.h"

/* Rows of k that a part of the weight has: what two panels have of it is in the first cache, or comes from the second while
 * vectors of 16 are busy, which then fetch and put back their sums less often. */
#define LINEAR_DEPTH (LL_VL == 16 ? 512 : 256)
/* Rows of x whose sums, on PACK_GROUP panels, stay in the second cache, beside the rows' values of LINEAR_DEPTH k, while k
 * goes on: the more, the less often a weight is widened. Whoever has vectors of 16 has a megabyte there. */
#define LINEAR_ROWS (LL_VL == 16 ? 516 : 120)

/* With room (tile.h) a tile of LINEAR_BY_ONE rows and more takes one panel after the other: as many chains as rows are enough, and
 * none is left over at the end of a thread's. And every tile widens 16 bits by itself: what widens a row of one panel goes beside
 * the products, and nothing is stored. (Measured on a Zen 4: from the first cache a loop over 16 bits of one panel reaches 0.95 to
 * 1.00 of the peak of fma, of two or three 0.88 to 0.99; over float32 both 0.99 to 1.00. 8 sequences, a
 * tile, were 0.88 to 0.91 x as fast on three panels of 16 bits together, 0.95 to 0.98 on those of blocks. Where several tiles meet
 * 16 bits, a first one that kept what it widened for the others was slower: 32 sequences 0.96, 128 tokens 0.97 to 0.98.) */
#define LINEAR_BY_ONE 6
#define LINEAR_PANELS(R) (TILE_ROOMY && (R) >= LINEAR_BY_ONE ? 1 : TILE_PANELS(R))
_Static_assert(!TILE_ROOMY || LINEAR_BY_ONE <= LL_TILE_ROWS / 2, "all of several tiles take one panel");
/* Then, of a weight that is read as it lies, values of x that go with a part of it if that is deeper than LINEAR_DEPTH: a quarter
 * of the second cache. */
#define LINEAR_X ((size_t)1 << 16)

/* Tiles at most for which what is widened of a weight stays in the first cache: so few don't pay for its way to the second and
 * back. */
#define LINEAR_NEAR 3

/* ---- one tile ---------------------------------------------------------------------------------- */

/* A tile, and the part of the weight that is at hand. */
typedef struct linear_part {
    linear_place at;
    const float *x;     /* [kc][R] */
    const char *b;      /* [panel][.][16] of dtype, panels b_panel values apart */
    size_t b_panel, kc;
    const char *ahead;  /* where the tile calls for the next part of the weight, */
    size_t ahead_k, ahead_panel; /* how far it goes in a step of k, and from panel to panel (bytes) */
} linear_part;

LL_INLINE void linear_tile(const linear_part *t, size_t R, size_t P, int dtype)
{
    const size_t V = P * TILE_PANEL_VECTORS;
    vf y[LL_TILE_ROWS * LL_TILE_PANELS * TILE_PANEL_VECTORS];
    LL_UNSET(y);
    linear_call(&t->at, R, V);
    if (!t->kc) {
        linear_begin(&t->at, R, V, y);
        linear_end(&t->at, R, V, y);
        return;
    }
    for (size_t k = 0;; k += LL_BLOCK) { /* the sums are in memory only between two blocks: a store takes as long as two fma */
        vf p[LL_TILE_ROWS * LL_TILE_PANELS * TILE_PANEL_VECTORS];
        tile_part(R, V, TILE_PANEL_VECTORS, t->x, 1, R, t->b, LL_PANEL, t->b_panel, dtype, k, t->kc, R > 2 ? P : 1,
                  t->ahead, t->ahead_k, t->ahead_panel, p); /* one row or two have nothing to call for */
        if (k == 0) {
            linear_add_begin(&t->at, R, V, p);
        } else {
            LL_UNROLL
            for (size_t i = 0; i < R * V; i++)
                p[i] = vf_add(y[i], p[i]);
        }
        if (t->kc - k <= LL_BLOCK) {
            linear_end(&t->at, R, V, p);
            return;
        }
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++)
            y[i] = p[i];
    }
}

/* R rows on `panels` panels, as many at a time as R rows take. */
LL_INLINE void linear_panels(const linear_part *part, size_t R, size_t panels, int dtype)
{
    linear_part t = *part;
    const size_t together = LINEAR_PANELS(R);
    while (panels) {
        size_t taken = panels >= together ? together : 1;
        if (taken == together)
            linear_tile(&t, R, together, dtype);
        else
            linear_tile(&t, R, 1, dtype);
        panels -= taken;
        t.at.n += taken * LL_PANEL;
        t.b += taken * t.b_panel * ll_dtype_size(dtype);
        t.ahead += taken * t.ahead_panel;
        t.at.sums += taken * t.at.sums_panel;
    }
}

#define LL_DEFINE(R, type, dtype) \
    LL_NOINLINE void linear_##R##_##type(const linear_part *t, size_t panels) { linear_panels(t, R, panels, dtype); }
#define LL_DEFINE_ROWS(R) LL_DEFINE(R, f32, LL_F32) LL_DEFINE(R, f16, LL_F16) LL_DEFINE(R, bf16, LL_BF16)
#define LL_ROW(R) {linear_##R##_f32, linear_##R##_f16, linear_##R##_bf16},
LL_EACH_ROWS(LL_DEFINE_ROWS)
static void (*const linear_tiles[LL_TILE_ROWS][LL_DTYPES])(const linear_part *, size_t panels) = {LL_EACH_ROWS(LL_ROW)};
#undef LL_DEFINE
#undef LL_DEFINE_ROWS
#undef LL_ROW

/* ---- one row on blocks ----------------------------------------------------------------------------- */

#define LL_DEFINE(name, format) \
    LL_NOINLINE void linear_row_##name(const ll_linear_args *a, const float *x, size_t begin, size_t end) \
    { \
        blocks_rows(a, x, begin, end, format, 0); \
    }
#define LL_ROW(name, format) [format] = linear_row_##name,
LL_EACH_BLOCKS(LL_DEFINE)
static void (*const linear_rows[LL_FORMATS])(const ll_linear_args *, const float *, size_t, size_t) = {LL_EACH_BLOCKS(LL_ROW)};
#undef LL_DEFINE
#undef LL_ROW

/* ---- a range of tiles on a range of panels --------------------------------------------------------- */

/* Whether `count` tiles read a weight as it lies in memory. */
LL_INLINE int linear_direct(const ll_weight *w, size_t count)
{
    return w->packed && w->format < LL_DTYPES && (count == 1 || w->format == LL_F32 || TILE_ROOMY);
}

/* A part of the weight, widened or packed, unless tiles read it as it lies. */
LL_INLINE size_t linear_room(const ll_linear_args *a)
{
    return linear_direct(&a->weight, tile_count(a->M)) ? 0 : PACK_GROUP * LINEAR_DEPTH * LL_PANEL;
}

/* That, and the sums, which one tile that reads as it lies has no need of, nor has one row on blocks. */
static size_t LL_SYMBOL(linear_floats)(const ll_linear_args *a)
{
    if (ll_few_rows(a) || (a->weight.packed && (a->M == 1 || (tile_count(a->M) == 1 && a->weight.format < LL_DTYPES))))
        return 0;
    return linear_room(a) + PACK_GROUP * ll_least(a->M, LINEAR_ROWS) * LL_PANEL;
}

/* Whether a packed weight is a single stream for tiles, whose first has R rows, though LINEAR_PANELS says more: processors foresee
 * it, or tiles have the time to call for it. (Measured where one tile reads it as it lies: 1 or 2 rows a tenth faster with float32
 * and a quarter with 16 bits; in between chains are too few. With 32 registers 4 rows of 16 bits and of blocks are up to 1.06 x as
 * fast.) */
LL_INLINE int linear_one_stream(const ll_weight *w, size_t R, size_t count)
{
    if (TILE_ROOMY && R >= 4)
        return w->packed && w->format != LL_F32;
    return linear_direct(w, 1) && count == 1 && R <= 2;
}

/* x: the tiles of pack_x. workspace: linear_floats, of this thread; NULL where that is 0. */
static void LL_SYMBOL(linear)(const ll_linear_args *a, const float *x, size_t tile_begin, size_t tile_end,
                              size_t panel_begin, size_t panel_end, float *workspace)
{
    _Alignas(64) float few[PACK_GROUP * LL_TILE_ROWS * LL_PANEL];
    float *const room = workspace, *const sums = workspace ? workspace + linear_room(a) : few;
    const ll_weight *w = &a->weight;
    const int in_blocks = w->format >= LL_DTYPES;
    const size_t M = a->M, tiles = tile_count(M), K = w->K, size = ll_dtype_size(w->format);
    const size_t K_packed = ll_panel_rows(K, w->format), bytes = ll_panel_bytes(K, w->format);
    const int by_rows = !w->packed && w->n_stride == (ptrdiff_t)size;
    if (ll_few_rows(a)) {
        few_rows(a, x, tile_begin, tile_end, panel_begin * LL_PANEL, ll_least(panel_end * LL_PANEL, w->N));
        return;
    }
    if (in_blocks && a->M == 1) {
        linear_rows[w->format](a, x, panel_begin, panel_end);
        return;
    }
    /* blocks of tiles as even as can be: each reads the weight once more */
    const size_t blocks = (tile_end - tile_begin + LINEAR_ROWS / LL_TILE_ROWS - 1) / (LINEAR_ROWS / LL_TILE_ROWS);
    const size_t block_tiles = (tile_end - tile_begin + blocks - 1) / blocks;
    for (size_t block = tile_begin; block < tile_end; block += block_tiles) {
        const size_t block_end = ll_least(block + block_tiles, tile_end), count = block_end - block;
        const size_t m = ll_tile_row(block, tiles, M), rows = ll_tile_row(block_end, tiles, M) - m;
        const int direct = linear_direct(w, count);
        const size_t first_rows = ll_tile_row(block + 1, tiles, M) - m;
        const size_t together = linear_one_stream(w, first_rows, count) ? 1 : LINEAR_PANELS(first_rows);
        /* a tile goes through panels that it reads one by one as they lie: its rows stay in the first cache */
        const size_t at_once = TILE_ROOMY && direct && LINEAR_PANELS(first_rows) == 1 ? PACK_GROUP : together;
        const int near = !direct && w->packed && count <= LINEAR_NEAR;
        const size_t of_x = LINEAR_X / rows / LL_BLOCK * LL_BLOCK;
        const size_t most = near                                          ? blocks_near(together, sizeof(float))
                            : direct && TILE_ROOMY && of_x > LINEAR_DEPTH ? of_x
                                                                          : LINEAR_DEPTH;
        const size_t depth = count == 1 && direct ? K : blocks_depth(K, most);
        const size_t group = near ? together : PACK_GROUP;
        /* whether tiles call for what they read: 16 bits of several panels call for themselves, and few rows have no time */
        const int calls = K && w->packed && (!direct || (rows > 2 && (w->format == LL_F32 || (TILE_ROOMY && together == 1))));
        for (size_t panel = panel_begin; panel < panel_end; panel += group) {
            const size_t panels = ll_least(group, panel_end - panel);
            size_t k = 0;
            do {
                const size_t kc = ll_least(depth, K - k);
                const int last = k + kc == K;
                /* the next part; where it and this one lie in a panel, and how far a step of k calls for them */
                const size_t after = last ? 0 : k + kc;
                size_t lies[2] = {0}, step[2] = {0};
                for (size_t i = 0; calls && i < (direct && at_once < panels ? 2 : 1); i++) {
                    lies[i] = blocks_byte(bytes, K_packed, i ? k : after);
                    step[i] = blocks_call(bytes, K_packed, i ? k : after, depth, count, kc);
                }
                if (!w->packed) /* rows that lie in many pages: once for all */
                    pack_fetch(w, panel, panels, k, kc, room);
                for (size_t p = 0; p < panels; p += at_once) {
                    const char *packed = (const char *)w->data + ((panel + p) * K_packed + k) * LL_PANEL * size;
                    linear_part part = {
                        .at = {.args = a, .m = m, .n = (panel + p) * LL_PANEL, .first = k == 0, .last = last,
                               .sums = sums + p * rows * LL_PANEL, .sums_panel = rows * LL_PANEL},
                        .kc = kc,
                        .b = direct ? packed : (const char *)room + (w->packed ? 0 : p * kc * LL_PANEL * sizeof(float)),
                        .b_panel = (direct ? K_packed : kc) * LL_PANEL,
                        .ahead = (const char *)x};
                    const size_t now = ll_least(at_once, panels - p);
                    if (!direct && w->packed)
                        pack_fetch(w, panel + p, now, k, kc, room);
                    /* Of panels that are read as they lie what follows, else the same panels of the next part. Of plain rows the
                     * first tile alone, a line each. */
                    const int sooner = direct && p + at_once < panels;
                    const size_t next = panel + (sooner ? p + at_once : direct ? 0 : p) + (!sooner && last ? group : 0);
                    if (by_rows) {
                        part.ahead = (const char *)w->data + (ptrdiff_t)after * w->k_stride + next * LL_PANEL * size;
                        part.ahead_k = (size_t)w->k_stride;
                        part.ahead_panel = LL_PANEL * size;
                    } else if (calls && next < ll_panels(w->N)) {
                        part.ahead = (const char *)w->data + next * bytes + lies[sooner];
                        part.ahead_k = step[sooner];
                        part.ahead_panel = bytes;
                    }
                    for (size_t tile = block; tile < block_end; tile++) {
                        const size_t R = ll_tile_row(tile + 1, tiles, M) - part.at.m;
                        part.x = x + part.at.m * K + k * R;
                        part.at.again = tile + 1 < block_end && last;
                        linear_tiles[R - 1][direct ? w->format : LL_F32](&part, now);
                        part.at.m += R;
                        part.at.sums += R * LL_PANEL;
                        if (by_rows)
                            part.ahead = (const char *)x, part.ahead_k = part.ahead_panel = 0;
                        part.ahead += part.ahead_k * kc;
                    }
                }
                k += depth;
            } while (k < K);
        }
    }
}
