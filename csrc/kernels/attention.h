/* attention.h: causal attention of the queries of a head, q [Tq, D], to its keys and values [Tk, D].
 *
 *   query i is at position p = Tk - Tq + i and sees the positions t = 0 .. p:
 *   s_t = dot128(q, k_t, +0) * scale      m = max_t s_t      e_t = exp(s_t - m)      Z = sum64(e)
 *   o_d = dot128 over t of e_t, v_t,d, init +0               y_d = o_d / Z
 *
 * Order:    dot128 over d in blocks of 128 from d = 0, over t in blocks of 128 from position 0; sum64 with lane
 *           t mod 64. All by absolute position: it doesn't matter which queries come together.
 * Rounding: dot128, one multiplication, the subtraction, exp correctly, sum64, one division; 16-bit results once more.
 * Edges:    masked positions don't exist. A tile gives them the weight +0, which is neutral beside finite values; where
 *           one isn't finite, the tile's rows are summed one by one, each to its own end. A row with a score that is
 *           NaN or +infinity, or with none but -infinity, is NaN. y may be q.
 * Cost:     scores are [rows of a unit][Tk], in the second cache. A tile of queries runs through packed keys and
 *           values (llorch.h: chunks) as the matrix product does; keys and values that come as rows are packed by the
 *           driver, or here, chunk by chunk, where a head has one unit of queries.
 * Oracle:   llorch.reference.attention. Tests: tests/test_attention.py.
 */
#include "softmax.h"
#include "tile.h"

/* The largest float scratch a unit needs, in this order: a chunk; then for each tile q, scores, sums, Z. */
LL_INLINE size_t whole_panels(size_t n) { return (n + LL_PANEL - 1) / LL_PANEL * LL_PANEL; }

typedef struct attention_tile {
    float *q;                /* [D][R] */
    float *s;                /* [R][score_stride]: scores, then weights */
    float *o;                /* [R][Dp] */
    float *z;                /* [R] */
    size_t R, row;           /* queries [row, row + R) */
    size_t shortest, longest; /* positions that its first and last query see */
} attention_tile;

LL_INLINE size_t tile_floats(const ll_attention_args *a)
{
    return LL_TILE_ROWS * (whole_panels(a->D) * 2 + a->score_stride) + LL_PANEL;
}

static size_t LL_SYMBOL(attention_room)(const ll_attention_args *a)
{
    return (a->rows ? LL_BLOCK * whole_panels(a->D) : 0) + a->together * tile_floats(a);
}

/* ---- packing ------------------------------------------------------------------------------------ */

/* Rows may lie pages apart, where no processor guesses what comes next: one row is called for while another is read. */
LL_INLINE void call_row(const char *row, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(row + i, 0, 3);
}
#define ROWS_AHEAD 8

/* Keys at positions [first, first + count) of a chunk. */
LL_INLINE void pack_keys(const char *k, ptrdiff_t stride, size_t D, size_t first, size_t count, float *keys, int dtype)
{
    const size_t bytes = D * ll_dtype_size(dtype);
    size_t t = first;
    for (size_t i = 0; i < least(ROWS_AHEAD, count); i++)
        call_row(k + (ptrdiff_t)i * stride, bytes);
    while (t < first + count) {
        const size_t step = t % LL_VL == 0 && first + count - t >= LL_VL ? LL_VL : 1;
        for (size_t i = 0; i < step && t + i + ROWS_AHEAD < first + count; i++)
            call_row(k + (ptrdiff_t)(i + ROWS_AHEAD) * stride, bytes);
        float *to = keys + t / LL_PANEL * LL_PANEL * D + t % LL_PANEL;
        size_t d = 0;
        if (step > 1) {
            for (; d + LL_VL <= D; d += LL_VL) {
                vf square[LL_VL];
                LL_UNROLL
                for (size_t i = 0; i < LL_VL; i++)
                    square[i] = row_load(k + (ptrdiff_t)i * stride, d, dtype);
                vf_transpose(square);
                LL_UNROLL
                for (size_t i = 0; i < LL_VL; i++)
                    vf_store(to + (d + i) * LL_PANEL, square[i]);
            }
            for (size_t i = 0; d < D && i < LL_VL; i++) {
                float v[LL_VL];
                vf_store(v, row_load_n(k + (ptrdiff_t)i * stride, d, D - d, dtype));
                for (size_t l = 0; l < D - d; l++)
                    to[(d + l) * LL_PANEL + i] = v[l];
            }
            k += LL_VL * stride;
            t += LL_VL;
            continue;
        }
        for (; d < D; d += LL_VL) {
            float v[LL_VL];
            size_t m = least(LL_VL, D - d);
            vf_store(v, row_load_n(k, d, m, dtype));
            for (size_t l = 0; l < m; l++)
                to[(d + l) * LL_PANEL] = v[l];
        }
        k += stride;
        t++;
    }
}

LL_INLINE void pack_values(const char *v, ptrdiff_t stride, size_t D, size_t first, size_t count, float *values, int dtype)
{
    const size_t bytes = D * ll_dtype_size(dtype);
    for (size_t t = first; t < first + count; t++, v += stride) {
        if (t + ROWS_AHEAD < first + count)
            call_row(v + ROWS_AHEAD * stride, bytes);
        for (size_t d = 0; d < whole_panels(D); d += LL_VL) {
            vf w = d < D ? row_load_n(v, d, least(LL_VL, D - d), dtype) : vf_zero();
            vf_store(values + (d / LL_PANEL * LL_BLOCK + t) * LL_PANEL + d % LL_PANEL, w);
        }
    }
}

#define LL_CASE(pack) \
    if (dtype == LL_F32) \
        pack(rows, stride, D, first, count, to, LL_F32); \
    else if (dtype == LL_F16) \
        pack(rows, stride, D, first, count, to, LL_F16); \
    else \
        pack(rows, stride, D, first, count, to, LL_BF16);
static void LL_SYMBOL(attention_keys)(const char *rows, ptrdiff_t stride, int dtype, size_t D, size_t first, size_t count,
                                      float *to)
{
    LL_CASE(pack_keys)
}
static void LL_SYMBOL(attention_values)(const char *rows, ptrdiff_t stride, int dtype, size_t D, size_t first,
                                        size_t count, float *to)
{
    LL_CASE(pack_values)
}
#undef LL_CASE

/* q as the tile's products read it. */
static void pack_queries(const ll_attention_args *a, const ll_attention_head *h, const attention_tile *t)
{
    for (size_t r = 0; r < t->R; r++) {
        const char *q = (const char *)h->q + (ptrdiff_t)(t->row + r) * a->q_stride;
        for (size_t d = 0; d < a->D; d += LL_VL) {
            float v[LL_VL];
            size_t m = least(LL_VL, a->D - d);
            vf_store(v, row_load_n(q, d, m, a->dtype));
            for (size_t l = 0; l < m; l++)
                t->q[(d + l) * t->R + r] = v[l];
        }
    }
}

/* ---- the two products of a tile and a chunk ------------------------------------------------------ */

/* s [R][P * 16] = dot128(q, keys) * scale */
LL_INLINE void scores_part(const float *q, const float *keys, size_t D, float scale, float *s, size_t s_stride, size_t R,
                           size_t P)
{
    const size_t V = P * PANEL_VECTORS;
    vf y[LL_TILE_ROWS * LL_TILE_PANELS * PANEL_VECTORS], c = vf_set1(scale);
    for (size_t i = 0; i < R * V; i++)
        y[i] = vf_zero();
    tile_dot(R, V, PANEL_VECTORS, q, 1, R, (const char *)keys, LL_PANEL, D * LL_PANEL, LL_F32, D, NULL, 0, 0, y);
    for (size_t r = 0; r < R; r++)
        for (size_t v = 0; v < V; v++)
            vf_store(s + r * s_stride + v * LL_VL, vf_mul(y[r * V + v], c));
}

/* Values of a chunk: packed, panels of columns a whole block apart; or rows of float32 as they lie. */
typedef struct attention_values {
    const char *at;
    size_t stride, panel; /* floats from position to position, from panel to panel */
} attention_values;

/* o [R][P * 16] += one block of dot128(e, values), count positions */
LL_INLINE void values_part(const float *e, size_t e_stride, const attention_values *v, size_t column, size_t count,
                           float *o, size_t o_stride, size_t R, size_t P)
{
    const size_t V = P * PANEL_VECTORS;
    vf y[LL_TILE_ROWS * LL_TILE_PANELS * PANEL_VECTORS];
    for (size_t r = 0; r < R; r++)
        for (size_t i = 0; i < V; i++)
            y[r * V + i] = vf_load(o + r * o_stride + i * LL_VL);
    tile_dot(R, V, PANEL_VECTORS, e, e_stride, 1, v->at + column * v->panel * sizeof(float), v->stride, v->panel, LL_F32,
             count, NULL, 0, 0, y);
    for (size_t r = 0; r < R; r++)
        for (size_t i = 0; i < V; i++)
            vf_store(o + r * o_stride + i * LL_VL, y[r * V + i]);
}

/* As many panels at a time as R rows take, then one by one. */
LL_INLINE void scores_panels(const float *q, const float *keys, size_t D, float scale, float *s, size_t s_stride,
                             size_t panels, size_t R)
{
    const size_t P = PANELS(R);
    size_t panel = 0;
    for (; panel + P <= panels; panel += P)
        scores_part(q, keys + panel * LL_PANEL * D, D, scale, s + panel * LL_PANEL, s_stride, R, P);
    for (; panel < panels; panel++)
        scores_part(q, keys + panel * LL_PANEL * D, D, scale, s + panel * LL_PANEL, s_stride, R, 1);
}

LL_INLINE void values_panels(const float *e, size_t e_stride, const attention_values *v, size_t count, float *o,
                             size_t o_stride, size_t panels, size_t R)
{
    const size_t P = PANELS(R);
    size_t panel = 0;
    for (; panel + P <= panels; panel += P)
        values_part(e, e_stride, v, panel, count, o + panel * LL_PANEL, o_stride, R, P);
    for (; panel < panels; panel++)
        values_part(e, e_stride, v, panel, count, o + panel * LL_PANEL, o_stride, R, 1);
}

typedef struct attention_products {
    void (*scores)(const float *q, const float *keys, size_t D, float scale, float *s, size_t s_stride, size_t panels);
    void (*values)(const float *e, size_t e_stride, const attention_values *v, size_t count, float *o, size_t o_stride,
                   size_t panels);
} attention_products;
#define LL_DEFINE(R) \
    LL_NOINLINE void scores_##R(const float *q, const float *keys, size_t D, float scale, float *s, size_t s_stride, \
                                size_t panels) \
    { \
        scores_panels(q, keys, D, scale, s, s_stride, panels, R); \
    } \
    LL_NOINLINE void values_##R(const float *e, size_t e_stride, const attention_values *v, size_t count, float *o, \
                                size_t o_stride, size_t panels) \
    { \
        values_panels(e, e_stride, v, count, o, o_stride, panels, R); \
    }
#define LL_ROW(R) {scores_##R, values_##R}
LL_DEFINE(1)
LL_DEFINE(2)
#if LL_TILE_ROWS > 2
LL_DEFINE(3)
LL_DEFINE(4)
LL_DEFINE(5)
LL_DEFINE(6)
#endif
#if LL_TILE_ROWS > 6
LL_DEFINE(7)
LL_DEFINE(8)
LL_DEFINE(9)
LL_DEFINE(10)
LL_DEFINE(11)
LL_DEFINE(12)
#endif
static const attention_products products[LL_TILE_ROWS] = {
    LL_ROW(1), LL_ROW(2),
#if LL_TILE_ROWS > 2
    LL_ROW(3), LL_ROW(4), LL_ROW(5), LL_ROW(6),
#endif
#if LL_TILE_ROWS > 6
    LL_ROW(7), LL_ROW(8), LL_ROW(9), LL_ROW(10), LL_ROW(11), LL_ROW(12),
#endif
};
#undef LL_DEFINE
#undef LL_ROW

/* ---- between the products: scores become weights -------------------------------------------------- */

LL_NOINLINE void weigh(const ll_attention_args *a, const attention_tile *t)
{
    for (size_t r = 0; r < t->R; r++) {
        char *s = (char *)(t->s + r * a->score_stride);
        const size_t seen = t->shortest + r;
        t->z[r] = row_exp(s, seen, row_max(s, seen, LL_F32), s, 1, LL_F32);
        memset(s + seen * sizeof(float), 0, (t->longest - seen) * sizeof(float));
    }
}

/* Whether the values at positions [begin, end) of a chunk are all finite: 0 times them is 0. */
LL_INLINE int finite_values(const attention_values *v, size_t panels, size_t begin, size_t end)
{
    vf sum[PANEL_VECTORS];
    for (size_t i = 0; i < PANEL_VECTORS; i++)
        sum[i] = vf_zero();
    for (size_t t = begin; t < end; t++)
        for (size_t panel = 0; panel < panels; panel++)
            LL_UNROLL
            for (size_t i = 0; i < PANEL_VECTORS; i++)
                sum[i] = vf_fma(vf_load(v->at + (t * v->stride + panel * v->panel + i * LL_VL) * sizeof(float)), vf_zero(),
                                sum[i]);
    for (size_t i = 1; i < PANEL_VECTORS; i++)
        sum[0] = vf_add(sum[0], sum[i]);
    return vf_fold(sum[0]) == 0.0f;
}

/* The tile's sums over the chunk of positions from `first` on. */
static void weighted_values(const ll_attention_args *a, const attention_tile *t, const attention_values *v, size_t first)
{
    const size_t o_stride = whole_panels(a->D), panels = o_stride / LL_PANEL;
    const size_t end = least(t->longest - first, LL_BLOCK);
    const size_t all = t->shortest > first ? least(t->shortest - first, LL_BLOCK) : 0; /* seen by every row */
    if (all == end || finite_values(v, panels, all, end)) {
        products[t->R - 1].values(t->s + first, a->score_stride, v, end, t->o, o_stride, panels);
        return;
    }
    for (size_t r = 0; r < t->R; r++) {
        const size_t seen = t->shortest + r;
        if (seen > first)
            products[0].values(t->s + r * a->score_stride + first, a->score_stride, v, least(seen - first, LL_BLOCK),
                               t->o + r * o_stride, o_stride, panels);
    }
}

static void attention_finish(const ll_attention_args *a, const ll_attention_head *h, const attention_tile *t)
{
    for (size_t r = 0; r < t->R; r++) {
        const float *o = t->o + r * whole_panels(a->D);
        char *y = (char *)h->y + (ptrdiff_t)(t->row + r) * a->y_stride;
        vf z = vf_set1(t->z[r]);
        for (size_t d = 0; d < a->D; d += LL_VL)
            row_store_n(y, d, vf_div(vf_load(o + d), z), least(LL_VL, a->D - d), a->dtype);
    }
}

/* ---- units: `together` tiles of one head, so that a chunk that is near serves all of them ----------- */

#define MOST_TOGETHER 8

LL_INLINE void attention_unit(const ll_attention_args *a, const ll_attention_head *h, size_t tile_begin, size_t tile_end,
                              float *room)
{
    const float scale = a->default_scale ? (float)(1.0 / sqrt((double)a->D)) : (float)a->scale;
    const size_t D = a->D, tiles = tile_end - tile_begin, before = h->Tk - a->Tq, Dp = whole_panels(D);
    attention_tile tile[MOST_TOGETHER];
    float *chunk = room;
    if (a->rows)
        room += LL_BLOCK * Dp;
    for (size_t i = 0; i < tiles; i++, room += tile_floats(a)) {
        attention_tile *t = &tile[i];
        t->row = tile_row(tile_begin + i, a->tiles, a->Tq);
        t->R = tile_row(tile_begin + i + 1, a->tiles, a->Tq) - t->row;
        t->shortest = before + t->row + 1;
        t->longest = t->shortest + t->R - 1;
        t->s = room;
        t->q = t->s + LL_TILE_ROWS * a->score_stride;
        t->o = t->q + LL_TILE_ROWS * Dp;
        t->z = t->o + LL_TILE_ROWS * Dp;
        memset(t->o, 0, t->R * Dp * sizeof *t->o);
    }
    const size_t row_end = tile_row(tile_end, a->tiles, a->Tq);
    for (size_t i = tile_row(tile_begin, a->tiles, a->Tq); i < row_end; i++)
        call_row((const char *)h->q + (ptrdiff_t)i * a->q_stride, D * ll_dtype_size(a->dtype));
    for (size_t i = 0; i < tiles; i++)
        pack_queries(a, h, &tile[i]);
    const size_t end = before + row_end; /* positions that the last query sees */
    for (size_t first = 0; first < end; first += LL_BLOCK) {
        const float *keys = chunk;
        if (a->rows)
            LL_SYMBOL(attention_keys)((const char *)h->k + (ptrdiff_t)first * a->k_stride, a->k_stride, a->dtype, D, 0,
                                      least(end - first, LL_BLOCK), chunk);
        else
            keys = h->blocks[first / LL_BLOCK] + h->offset;
        for (size_t i = 0; i < tiles; i++) {
            const attention_tile *t = &tile[i];
            if (t->longest > first)
                products[t->R - 1].scores(t->q, keys, D, scale, t->s + first, a->score_stride,
                                          whole_panels(least(t->longest - first, LL_BLOCK)) / LL_PANEL);
        }
    }
    for (size_t i = 0; i < tiles; i++)
        weigh(a, &tile[i]);
    /* whole panels of float32 at whole floats can be read as they lie */
    const int as_they_lie = a->rows && a->dtype == LL_F32 && D == Dp && a->v_stride >= 0 && a->v_stride % sizeof(float) == 0;
    for (size_t first = 0; first < end; first += LL_BLOCK) {
        attention_values v = {(const char *)chunk, LL_PANEL, LL_BLOCK * LL_PANEL};
        const char *rows = (const char *)h->v + (ptrdiff_t)first * a->v_stride;
        if (as_they_lie)
            v = (attention_values){rows, (size_t)a->v_stride / sizeof(float), LL_PANEL};
        else if (a->rows)
            LL_SYMBOL(attention_values)(rows, a->v_stride, a->dtype, D, 0, least(end - first, LL_BLOCK), chunk);
        else
            v.at = (const char *)(h->blocks[first / LL_BLOCK] + h->offset + LL_BLOCK * D);
        for (size_t i = 0; i < tiles; i++)
            if (tile[i].longest > first)
                weighted_values(a, &tile[i], &v, first);
    }
    for (size_t i = 0; i < tiles; i++)
        attention_finish(a, h, &tile[i]);
}

/* Units [begin, end) of all heads. The last queries of a head, which see most, come first. */
static void LL_SYMBOL(attention)(const ll_attention_args *a, size_t begin, size_t end, float *room)
{
    const size_t units = (a->tiles + a->together - 1) / a->together;
    for (size_t i = begin; i < end; i++) {
        size_t unit = units - 1 - i % units;
        attention_unit(a, &a->heads[i / units], unit * a->together, least(unit * a->together + a->together, a->tiles), room);
    }
}
