/* attention.h: attention of queries q [Tq, D] to the keys and values [Tk, D] of their sequence.
 *
 *   query i is at position p = Tk - Tq + i and sees the positions t = 0 .. p (causal), max(0, p - window + 1) .. p (causal
 *   with a window), 0 .. Tk - 1 (not causal), or those of them that are at most window before or after p:
 *   s_t = dot128(q, k_t, +0) * scale      with a softcap C: s_t = C * tanh(s_t / C)      with a bias: s_t = s_t + bias[t - p]
 *   m = max_t s_t      e_t = exp(s_t - m)      Z = sum64(e)
 *   o_d = dot128 over t of e_t, v_t,d, init +0               y_d = o_d / Z
 *
 * Order:    dot128 over d in blocks of 128 from d = 0, over t in blocks of 128 from position 0; sum64 with lane
 *           t mod 64. All by absolute position, with a window too: it doesn't matter which queries come together.
 * Rounding: dot128, one multiplication (softcap: one division, tanh correctly, one multiplication; bias: one addition),
 *           the subtraction, exp correctly, sum64, one division; 16-bit results once more.
 * Edges:    positions that a query doesn't see don't exist. A tile gives them the numerator +0, which is neutral beside
 *           finite values; where one isn't finite, the tile's rows are summed one by one, each over its own positions. A
 *           row with a score that is NaN or +infinity, or with none but -infinity, is NaN. y may be q.
 * Cost:     a tile's rows are queries of the heads that share keys (table.h: groups): chunks of keys and values are read
 *           once for all of them. Scores are [rows of a unit][positions they see], in the second cache: chunks that lie
 *           wholly outside a window are not touched, nor are panels before it. A tile runs through packed keys and
 *           values (llorch.h: chunks) as the matrix product does; keys and values that come as rows are packed by the
 *           driver, or here, chunk by chunk, where a group has one unit.
 * Oracle:   llorch.reference.attention. Tests: tests/kernels/test_attention.py.
 */
#include "softmax.h"
#include "tile.h"

#define ATTENTION_TOGETHER 8 /* most tiles of a unit: a chunk that is near serves all of them */
#define ATTENTION_SHORT 128  /* positions that a row sees: up to here two rows share the pairs of vectors of exp */
/* Rows of a tile: so few, as when decoding, take keys and values faster than memory gives them. They call for what they read
 * next; of 128 positions and more that is 1.1 to 1.5 times as fast (measured). */
#define ATTENTION_FEW (2 * LL_TILE_ROWS / 3)

typedef struct attention_tile {
    float *s;                /* [R][score_stride]: scores of the positions from base on, then numerators */
    float *q;                /* [D][R] */
    float *o;                /* [R][Dp] */
    float *z;                /* [R] */
    size_t R, row;           /* rows [row, row + R) of the group */
    size_t base;             /* where the chunk begins that holds the first position a row sees */
    ll_span first, last;     /* what its first row and its last row see */
} attention_tile;

LL_INLINE size_t attention_tile_floats(size_t D, size_t score_stride)
{
    return LL_TILE_ROWS * (ll_whole_panels(D) * 2 + score_stride) + LL_PANEL;
}

/* A unit's workspace, in this order: a chunk of keys or of values, where they come as rows; then each tile's. */
static size_t LL_SYMBOL(attention_floats)(const ll_attention_group *g, size_t D)
{
    return LL_BLOCK * ll_whole_panels(D) + g->together * attention_tile_floats(D, g->score_stride);
}

/* ---- packing ------------------------------------------------------------------------------------ */

/* Rows may lie pages apart, where no hardware prefetcher follows. */
LL_INLINE void attention_prefetch(const char *row, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(row + i, 0, 3);
}
#define ATTENTION_AHEAD 8 /* rows */

/* Keys at positions [first, first + count) of a chunk. */
LL_INLINE void attention_pack_keys(const char *k, ptrdiff_t stride, size_t D, size_t first, size_t count, float *keys, int dtype)
{
    const size_t bytes = D * ll_dtype_size(dtype);
    size_t t = first;
    for (size_t i = 0; i < ll_least(ATTENTION_AHEAD, count); i++)
        attention_prefetch(k + (ptrdiff_t)i * stride, bytes);
    while (t < first + count) {
        const size_t step = t % LL_VL == 0 && first + count - t >= LL_VL ? LL_VL : 1;
        for (size_t i = 0; i < step && t + i + ATTENTION_AHEAD < first + count; i++)
            attention_prefetch(k + (ptrdiff_t)(i + ATTENTION_AHEAD) * stride, bytes);
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
            size_t m = ll_least(LL_VL, D - d);
            vf_store(v, row_load_n(k, d, m, dtype));
            for (size_t l = 0; l < m; l++)
                to[(d + l) * LL_PANEL] = v[l];
        }
        k += stride;
        t++;
    }
}

LL_INLINE void attention_pack_values(const char *v, ptrdiff_t stride, size_t D, size_t first, size_t count, float *values, int dtype)
{
    const size_t bytes = D * ll_dtype_size(dtype);
    for (size_t t = first; t < first + count; t++, v += stride) {
        if (t + ATTENTION_AHEAD < first + count)
            attention_prefetch(v + ATTENTION_AHEAD * stride, bytes);
        for (size_t d = 0; d < ll_whole_panels(D); d += LL_VL) {
            vf w = d < D ? row_load_n(v, d, ll_least(LL_VL, D - d), dtype) : vf_zero();
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
    LL_CASE(attention_pack_keys)
}
static void LL_SYMBOL(attention_values)(const char *rows, ptrdiff_t stride, int dtype, size_t D, size_t first,
                                        size_t count, float *to)
{
    LL_CASE(attention_pack_values)
}
#undef LL_CASE

static void LL_SYMBOL(kv_write)(const ll_kv *kv, size_t D, int k_dtype, int v_dtype)
{
    for (size_t done = 0; done < kv->fresh;) {
        const size_t t = kv->Tk - kv->fresh + done, at = t % LL_BLOCK, count = ll_least(kv->fresh - done, LL_BLOCK - at);
        const char *k = (const char *)kv->k + (ptrdiff_t)done * kv->k_stride;
        const char *v = (const char *)kv->v + (ptrdiff_t)done * kv->v_stride;
        float *to = kv->blocks[t / LL_BLOCK] + kv->offset;
        LL_SYMBOL(attention_keys)(k, kv->k_stride, k_dtype, D, at, count, to);
        LL_SYMBOL(attention_values)(v, kv->v_stride, v_dtype, D, at, count, to + LL_BLOCK * D);
        done += count;
    }
}

LL_INLINE const char *attention_query(const ll_attention_group *g, size_t row)
{
    const ll_attention_head *h = ll_attention_head_of(g, row);
    return (const char *)h->q + (ptrdiff_t)ll_attention_query(g, row) * h->q_stride;
}

/* q as the tile's products read it: transposed squares, each stored over the unused end of the one before. */
static void attention_pack_queries(const ll_attention_args *a, const ll_attention_group *g, const attention_tile *t)
{
    const size_t R = t->R, room = LL_TILE_ROWS * ll_whole_panels(a->D);
    const char *q[LL_TILE_ROWS];
    for (size_t r = 0; r < R; r++)
        q[r] = attention_query(g, t->row + r);
    size_t done = 0;
    if (LL_VL >= LL_TILE_ROWS && R > 1)
        for (; done + LL_VL <= a->D; done += LL_VL) {
            vf square[LL_VL];
            for (size_t r = 0; r < LL_VL; r++)
                square[r] = r < R ? row_load(q[r], done, a->dtype) : vf_zero();
            vf_transpose(square);
            LL_UNROLL
            for (size_t l = 0; l < LL_VL; l++)
                if ((done + l) * R + LL_VL <= room)
                    vf_store(t->q + (done + l) * R, square[l]);
                else
                    vf_store_n(t->q + (done + l) * R, square[l], R);
        }
    for (size_t r = 0; r < R; r++)
        for (size_t d = done; d < a->D; d += LL_VL) {
            float v[LL_VL], *to = t->q + d * R + r;
            const size_t m = ll_least(LL_VL, a->D - d);
            vf_store(v, row_load_n(q[r], d, m, a->dtype));
            for (size_t l = 0; l < m; l++)
                to[l * R] = v[l];
        }
}

/* ---- the two products of a tile and a chunk ------------------------------------------------------ */

/* s [R][P * 16] = dot128(q, keys) * scale; `next` is what will be read then, as long */
LL_INLINE void attention_scores_part(const float *q, const float *keys, const float *next, size_t D, float scale, float *s,
                                     size_t s_stride, size_t R, size_t P)
{
    const size_t V = P * TILE_PANEL_VECTORS, lines = R <= ATTENTION_FEW ? P : 0;
    const vf c = vf_set1(scale);
    if (D <= LL_BLOCK) { /* nearly always: no loop, the sums never leave their registers (measured: 4 % of attention) */
        vf p[LL_TILE_ROWS * LL_TILE_PANELS * TILE_PANEL_VECTORS];
        tile_part(R, V, TILE_PANEL_VECTORS, q, 1, R, (const char *)keys, LL_PANEL, D * LL_PANEL, LL_F32, 0, D, lines,
                  (const char *)next, LL_PANEL * sizeof(float), D * LL_PANEL * sizeof(float), p);
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++)
            vf_store(s + i / V * s_stride + i % V * LL_VL, vf_mul(vf_add(vf_zero(), p[i]), c));
        return;
    }
    vf y[LL_TILE_ROWS * LL_TILE_PANELS * TILE_PANEL_VECTORS];
    for (size_t i = 0; i < R * V; i++)
        y[i] = vf_zero();
    tile_dot(R, V, TILE_PANEL_VECTORS, q, 1, R, (const char *)keys, LL_PANEL, D * LL_PANEL, LL_F32, D, y);
    for (size_t r = 0; r < R; r++)
        for (size_t v = 0; v < V; v++)
            vf_store(s + r * s_stride + v * LL_VL, vf_mul(y[r * V + v], c));
}

/* Values of a chunk: packed, panels of columns a whole block apart; or rows of float32 as they lie. */
typedef struct attention_values {
    const char *at;
    size_t stride, panel; /* floats from position to position, from panel to panel */
} attention_values;

/* o [R][P * 16] += one block of dot128(e, values), count positions; `next` as above, at column 0 of them */
LL_INLINE void attention_values_part(const float *e, size_t e_stride, const attention_values *v, const char *next, size_t count,
                                     float *o, size_t o_stride, size_t R, size_t P)
{
    const size_t V = P * TILE_PANEL_VECTORS, lines = R <= ATTENTION_FEW ? P : 0;
    vf p[LL_TILE_ROWS * LL_TILE_PANELS * TILE_PANEL_VECTORS];
    tile_part(R, V, TILE_PANEL_VECTORS, e, e_stride, 1, v->at, v->stride, v->panel, LL_F32, 0, count, lines, next,
              v->stride * sizeof(float), v->panel * sizeof(float), p);
    LL_UNROLL
    for (size_t i = 0; i < R * V; i++) {
        float *to = o + i / V * o_stride + i % V * LL_VL;
        vf_store(to, vf_add(vf_load(to), p[i]));
    }
}

/* As many panels at a time as R rows take, then two, then one by one. Each calls for those after it, the last for `next`; or,
 * with `other`, for those that lie at next as it lies here: of a short sequence that is all that the next unit reads, and nothing
 * else (measured: 8 and 32 sequences of 24 to 80 positions 2 to 3 % faster). */
LL_INLINE void attention_scores_panels(const float *q, const float *keys, const float *next, int other, size_t D, float scale,
                                       float *s, size_t s_stride, size_t panels, size_t R)
{
    const size_t P = TILE_PANELS(R), panel_floats = LL_PANEL * D;
    const float *const begin = keys;
    while (panels) {
        const size_t now = panels >= P ? P : P > 2 && panels >= 2 ? 2 : 1;
        const float *ahead = other ? next + (keys - begin) : panels > now ? keys + now * panel_floats : next;
        if (now == P)
            attention_scores_part(q, keys, ahead, D, scale, s, s_stride, R, P);
        else if (P > 2 && now == 2)
            attention_scores_part(q, keys, ahead, D, scale, s, s_stride, R, 2);
        else
            attention_scores_part(q, keys, ahead, D, scale, s, s_stride, R, 1);
        panels -= now;
        keys += now * panel_floats;
        s += now * LL_PANEL;
    }
}

LL_INLINE void attention_values_panels(const float *e, size_t e_stride, const attention_values *v, const char *next, int other,
                                       size_t count, float *o, size_t o_stride, size_t panels, size_t R)
{
    const size_t P = TILE_PANELS(R), bytes = v->panel * sizeof(float);
    attention_values part = *v;
    while (panels) {
        const size_t now = panels >= P ? P : 1;
        const char *ahead = other ? next + (part.at - v->at) : panels > now ? part.at + now * bytes : next;
        if (now == P)
            attention_values_part(e, e_stride, &part, ahead, count, o, o_stride, R, P);
        else
            attention_values_part(e, e_stride, &part, ahead, count, o, o_stride, R, 1);
        panels -= now;
        part.at += now * bytes;
        o += now * LL_PANEL;
    }
}

typedef struct attention_products {
    void (*scores)(const float *q, const float *keys, const float *next, int other, size_t D, float scale, float *s,
                   size_t s_stride, size_t panels);
    void (*values)(const float *e, size_t e_stride, const attention_values *v, const char *next, int other, size_t count,
                   float *o, size_t o_stride, size_t panels);
} attention_products;
#define LL_DEFINE(R) \
    LL_NOINLINE void attention_scores_##R(const float *q, const float *keys, const float *next, int other, size_t D, \
                                          float scale, float *s, size_t s_stride, size_t panels) \
    { \
        attention_scores_panels(q, keys, next, other, D, scale, s, s_stride, panels, R); \
    } \
    LL_NOINLINE void attention_values_##R(const float *e, size_t e_stride, const attention_values *v, const char *next, \
                                          int other, size_t count, float *o, size_t o_stride, size_t panels) \
    { \
        attention_values_panels(e, e_stride, v, next, other, count, o, o_stride, panels, R); \
    }
#define LL_ROW(R) {attention_scores_##R, attention_values_##R},
LL_EACH_ROWS(LL_DEFINE)
static const attention_products attention_of_rows[LL_TILE_ROWS] = {LL_EACH_ROWS(LL_ROW)};
#undef LL_DEFINE
#undef LL_ROW

/* ---- between the products: scores become numerators -------------------------------------------------- */

/* s_t = cap * tanh(s_t / cap) of the scores [begin, end); up to a vector behind them is written. */
LL_NOINLINE void attention_softcap(float *s, size_t begin, size_t end, float cap)
{
    const vf c = vf_set1(cap);
    for (size_t t = begin; t < end; t += 2 * LL_VL) {
        vf v[2];
        for (size_t i = 0; i < 2; i++) {
            const size_t count = ll_lanes_left(t, i, end);
            v[i] = !count ? vf_zero() : count < LL_VL ? vf_first(vf_load(s + t + i * LL_VL), count) : vf_load(s + t + i * LL_VL);
            v[i] = vf_div(v[i], c);
        }
        ll_tanh_vp(v);
        for (size_t i = 0; i < 2; i++)
            if (ll_lanes_left(t, i, end))
                vf_store(s + t + i * LL_VL, vf_mul(v[i], c));
    }
}

/* s_t += b_t of the scores [begin, end); step 0: s_t += b_0 */
LL_INLINE void attention_add(float *s, size_t begin, size_t end, const float *b, int step)
{
    float first; /* of the caller's memory, which may lie at any byte */
    memcpy(&first, b, sizeof first);
    const vf far = vf_set1(first);
    for (size_t t = begin; t < end; t += LL_VL) {
        const size_t count = ll_least(LL_VL, end - t);
        const vf near = step ? row_load_n((const char *)b, t - begin, count, LL_F32) : far;
        row_store_n((char *)s, t, vf_add(row_load_n((const char *)s, t, count, LL_F32), near), count, LL_F32);
    }
}

/* s_t += bias of the distance from the query, which for the first of the scores is `distance`. */
LL_NOINLINE void attention_bias(float *s, size_t begin, size_t end, ptrdiff_t distance, const float *bias, size_t reach)
{
    const ptrdiff_t before = -(ptrdiff_t)reach - distance, after = (ptrdiff_t)reach + 1 - distance;
    const size_t near = before > (ptrdiff_t)begin ? ll_least((size_t)before, end) : begin; /* what has a bias of its own */
    const size_t far = after > (ptrdiff_t)near ? ll_least((size_t)after, end) : near;
    attention_add(s, begin, near, bias - reach, 0);
    if (near < far)
        attention_add(s, near, far, bias + (distance + (ptrdiff_t)near), 1);
    attention_add(s, far, end, bias + reach, 0);
}

/* A row's scores, ready for the exponentials: with softcap and bias, and what it doesn't see before them -infinity, of
 * which exp makes +0, from a lane 0 on: so lanes are lanes. Before that, and behind what it sees, are the weights +0. */
LL_INLINE ll_span attention_row(const ll_attention_args *a, const ll_attention_group *g, const attention_tile *t, size_t r)
{
    const ll_span sees = ll_attention_sees(a, g, t->row + r);
    const size_t begin = sees.begin - t->base, end = sees.end - t->base, whole = begin / LL_LANES * LL_LANES;
    float *s = t->s + r * g->score_stride;
    if (a->softcap > 0.0)
        attention_softcap(s, begin, end, (float)a->softcap);
    const float *bias = ll_attention_head_of(g, t->row + r)->bias;
    if (bias)
        attention_bias(s, begin, end, (ptrdiff_t)t->base - (ptrdiff_t)ll_attention_position(g, t->row + r), bias, a->reach);
    for (size_t i = whole; i < begin; i++)
        s[i] = -INFINITY;
    return (ll_span){whole, end};
}

/* What a unit reads, to be called for while the one before it is computed, a few rows at a time: of what a core can't have under
 * way at once it leaves out (parallel.c). Queries; keys and values that come as rows, if they are few. */
typedef struct attention_ahead {
    const ll_attention_group *g;
    size_t row, row_end, t, t_end;
} attention_ahead;

LL_INLINE attention_ahead attention_ahead_of(const ll_attention_group *g, ll_span tiles)
{
    const size_t rows = g->count * g->Tq;
    return (attention_ahead){g, ll_tile_row(tiles.begin, g->tiles, rows), ll_tile_row(tiles.end, g->tiles, rows), 0,
                             g->packed || g->kv->blocks || g->kv->Tk > LL_BLOCK ? 0 : g->kv->Tk};
}

/* The next `count` rows of each. */
LL_INLINE void attention_call(const ll_attention_args *a, attention_ahead *c, size_t count)
{
    const size_t bytes = a->D * ll_dtype_size(a->dtype);
    for (size_t i = 0; i < count && c->row < c->row_end; i++, c->row++)
        attention_prefetch(attention_query(c->g, c->row), bytes);
    for (size_t i = 0; i < count && c->t < c->t_end; i++, c->t++) {
        attention_prefetch((const char *)c->g->kv->k + (ptrdiff_t)c->t * c->g->kv->k_stride, bytes);
        attention_prefetch((const char *)c->g->kv->v + (ptrdiff_t)c->t * c->g->kv->v_stride, bytes);
    }
}

LL_NOINLINE void attention_numerators(const ll_attention_args *a, const ll_attention_group *g, const attention_tile *t,
                                      attention_ahead *ahead)
{
    const size_t last = t->last.end - t->base;
    for (size_t r = 0; r < t->R; r += 2) {
        const size_t rows = ll_least(t->R - r, 2);
        ll_span own[2];
        float *s[2], m[2];
        attention_call(a, ahead, 2);
        for (size_t i = 0; i < rows; i++)
            own[i] = attention_row(a, g, t, r + i);
        const size_t whole = own[0].begin; /* the first row's is the least */
        for (size_t i = 0; i < rows; i++) {
            float *row = t->s + (r + i) * g->score_stride;
            for (size_t j = whole; j < own[i].begin; j++)
                row[j] = -INFINITY;
            s[i] = row + whole;
            own[i].end -= whole;
            m[i] = softmax_max((const char *)s[i], own[i].end, LL_F32);
        }
        if (rows == 2 && own[0].end <= ATTENTION_SHORT)
            softmax_exp_two(s, (const size_t[]){own[0].end, own[1].end}, m, t->z + r);
        else
            for (size_t i = 0; i < rows; i++)
                t->z[r + i] = softmax_exp((const char *)s[i], own[i].end, m[i], (char *)s[i], 1, LL_F32);
        for (size_t i = 0; i < rows; i++) {
            if (whole)
                memset(s[i] - whole, 0, whole * sizeof(float));
            if (last - whole > own[i].end)
                memset(s[i] + own[i].end, 0, (last - whole - own[i].end) * sizeof(float));
        }
    }
}

/* Whether the values at positions [begin, end) of a chunk are all finite: 0 times them is 0. */
LL_INLINE int attention_finite(const attention_values *v, size_t panels, size_t begin, size_t end)
{
    vf sum[TILE_PANEL_VECTORS];
    for (size_t i = 0; i < TILE_PANEL_VECTORS; i++)
        sum[i] = vf_zero();
    for (size_t t = begin; t < end; t++)
        for (size_t panel = 0; panel < panels; panel++)
            LL_UNROLL
            for (size_t i = 0; i < TILE_PANEL_VECTORS; i++)
                sum[i] = vf_fma(vf_load(v->at + (t * v->stride + panel * v->panel + i * LL_VL) * sizeof(float)), vf_zero(),
                                sum[i]);
    for (size_t i = 1; i < TILE_PANEL_VECTORS; i++)
        sum[0] = vf_add(sum[0], sum[i]);
    return vf_fold(sum[0]) == 0.0f;
}

/* Positions of a span that lie in the chunk from `first` on, counted from there. */
LL_INLINE ll_span attention_inside(ll_span s, size_t first)
{
    const size_t end = s.end > first ? ll_least(s.end - first, LL_BLOCK) : 0;
    return (ll_span){s.begin > first ? ll_least(s.begin - first, end) : 0, end};
}

/* The tile's sums over the chunk of positions from `first` on. */
static void attention_sum(const ll_attention_args *a, const ll_attention_group *g, const attention_tile *t,
                          const attention_values *v, const char *next, int other, size_t first)
{
    const size_t o_stride = ll_whole_panels(a->D), panels = o_stride / LL_PANEL;
    const size_t begin = attention_inside(t->first, first).begin, end = attention_inside(t->last, first).end;
    const ll_span all = {attention_inside(t->last, first).begin, attention_inside(t->first, first).end}; /* rows see these */
    const float *e = t->s + (first - t->base);
    if ((all.begin == begin || attention_finite(v, panels, begin, all.begin))
        && (all.end == end || attention_finite(v, panels, all.end, end))) {
        const attention_values from = {v->at + begin * v->stride * sizeof(float), v->stride, v->panel};
        next += other ? begin * v->stride * sizeof(float) : 0;
        attention_of_rows[t->R - 1].values(e + begin, g->score_stride, &from, next, other, end - begin, t->o, o_stride, panels);
        return;
    }
    for (size_t r = 0; r < t->R; r++) {
        const ll_span own = attention_inside(ll_attention_sees(a, g, t->row + r), first);
        const attention_values from = {v->at + own.begin * v->stride * sizeof(float), v->stride, v->panel};
        if (own.begin < own.end)
            attention_of_rows[0].values(e + r * g->score_stride + own.begin, g->score_stride, &from, next, other,
                                        own.end - own.begin, t->o + r * o_stride, o_stride, panels);
    }
}

static void attention_finish(const ll_attention_args *a, const ll_attention_group *g, const attention_tile *t)
{
    for (size_t r = 0; r < t->R; r++) {
        const ll_attention_head *h = ll_attention_head_of(g, t->row + r);
        const float *o = t->o + r * ll_whole_panels(a->D);
        char *y = (char *)h->y + (ptrdiff_t)ll_attention_query(g, t->row + r) * h->y_stride;
        vf z = vf_set1(t->z[r]);
        for (size_t d = 0; d < a->D; d += LL_VL)
            row_store_n(y, d, vf_div(vf_load(o + d), z), ll_least(LL_VL, a->D - d), a->dtype);
    }
}

/* ---- units: some tiles of one group ------------------------------------------------------------------ */

/* Chunk i of a group whose keys and values are packed: keys, then values. */
LL_INLINE const float *attention_chunk(const ll_attention_group *g, size_t D, size_t i)
{
    return g->packed ? g->packed + (i - g->first_block) * ll_chunk_floats(D) : g->kv->blocks[i] + g->kv->offset;
}

/* `then` is where the next unit begins to read, or NULL; `ahead` is what else it reads. */
LL_INLINE void attention_unit(const ll_attention_args *a, const ll_attention_group *g, float scale, size_t tile_begin,
                              size_t tile_end, const float *then, attention_ahead *ahead, float *workspace)
{
    const size_t D = a->D, tiles = tile_end - tile_begin, rows = g->count * g->Tq, Dp = ll_whole_panels(D);
    const ll_kv *kv = g->kv;
    const int come_as_rows = !g->packed && !kv->blocks;
    attention_tile tile[ATTENTION_TOGETHER];
    float *chunk = workspace;
    workspace += LL_BLOCK * Dp;
    for (size_t i = 0; i < tiles; i++, workspace += attention_tile_floats(D, g->score_stride)) {
        attention_tile *t = &tile[i];
        t->row = ll_tile_row(tile_begin + i, g->tiles, rows);
        t->R = ll_tile_row(tile_begin + i + 1, g->tiles, rows) - t->row;
        t->first = ll_attention_sees(a, g, t->row);
        t->last = ll_attention_sees(a, g, t->row + t->R - 1);
        t->base = t->first.begin / LL_BLOCK * LL_BLOCK;
        t->s = workspace;
        t->q = t->s + LL_TILE_ROWS * g->score_stride;
        t->o = t->q + LL_TILE_ROWS * Dp;
        t->z = t->o + LL_TILE_ROWS * Dp;
        memset(t->o, 0, t->R * Dp * sizeof *t->o);
    }
    const size_t row_begin = ll_tile_row(tile_begin, g->tiles, rows), row_end = ll_tile_row(tile_end, g->tiles, rows);
    for (size_t i = 0; i < tiles; i++)
        attention_pack_queries(a, g, &tile[i]);
    const int other = then && tiles == 1 && kv->Tk <= LL_BLOCK && !come_as_rows; /* all that it reads is one chunk */
    /* positions that some row sees, and what is before them in their first chunk */
    const size_t base = ll_attention_sees(a, g, row_begin).begin / LL_BLOCK * LL_BLOCK;
    const size_t end = ll_attention_sees(a, g, row_end - 1).end;
    for (size_t first = base; first < end; first += LL_BLOCK) {
        const float *keys = chunk;
        if (come_as_rows)
            LL_SYMBOL(attention_keys)((const char *)kv->k + (ptrdiff_t)first * kv->k_stride, kv->k_stride, a->dtype, D, 0,
                                      ll_least(end - first, LL_BLOCK), chunk);
        else
            keys = attention_chunk(g, D, first / LL_BLOCK);
        const float *next = come_as_rows             ? keys
                            : first + LL_BLOCK < end ? attention_chunk(g, D, first / LL_BLOCK + 1)
                                                     : attention_chunk(g, D, base / LL_BLOCK) + LL_BLOCK * D;
        for (size_t i = 0; i < tiles; i++) {
            const attention_tile *t = &tile[i];
            if (first < t->base || first >= t->last.end)
                continue;
            const ll_span all = {attention_inside(t->first, first).begin, attention_inside(t->last, first).end};
            const size_t panel = all.begin / LL_PANEL, skipped = panel * LL_PANEL;
            attention_of_rows[t->R - 1].scores(t->q, keys + skipped * D, other ? then + skipped * D : next, other, D, scale,
                                               t->s + (first - t->base) + skipped, g->score_stride,
                                               ll_whole_panels(all.end) / LL_PANEL - panel);
        }
    }
    for (size_t i = 0; i < tiles; i++)
        attention_numerators(a, g, &tile[i], ahead);
    /* whole panels of float32 at whole floats can be read as they lie */
    const int as_they_lie = come_as_rows && a->dtype == LL_F32 && D == Dp && kv->v_stride >= 0 && kv->v_stride % sizeof(float) == 0;
    for (size_t first = base; first < end; first += LL_BLOCK) {
        attention_values v = {(const char *)chunk, LL_PANEL, LL_BLOCK * LL_PANEL};
        const char *values = (const char *)kv->v + (ptrdiff_t)first * kv->v_stride;
        if (as_they_lie)
            v = (attention_values){values, (size_t)kv->v_stride / sizeof(float), LL_PANEL};
        else if (come_as_rows)
            LL_SYMBOL(attention_values)(values, kv->v_stride, a->dtype, D, 0, ll_least(end - first, LL_BLOCK), chunk);
        else
            v.at = (const char *)(attention_chunk(g, D, first / LL_BLOCK) + LL_BLOCK * D);
        const char *next = other ? (const char *)(then + LL_BLOCK * D) : then ? (const char *)then : v.at;
        if (!come_as_rows && first + LL_BLOCK < end)
            next = (const char *)(attention_chunk(g, D, first / LL_BLOCK + 1) + LL_BLOCK * D);
        for (size_t i = 0; i < tiles; i++)
            if (first >= tile[i].base && first < tile[i].last.end)
                attention_sum(a, g, &tile[i], &v, next, other, first);
    }
    for (size_t i = 0; i < tiles; i++)
        attention_finish(a, g, &tile[i]);
}

/* The tiles of a unit. The last queries of a group, which see most, come first. */
LL_INLINE ll_span attention_tiles(const ll_attention_group *g, size_t unit)
{
    const size_t begin = g->first_tile + (g->unit + g->units - 1 - unit) * g->together;
    return (ll_span){begin, ll_least(begin + g->together, g->end_tile)};
}

/* Where a unit begins to read, if keys are packed; else NULL. */
LL_INLINE const float *attention_begin(const ll_attention_args *a, const ll_attention_group *g, size_t tile_begin)
{
    const size_t row = ll_tile_row(tile_begin, g->tiles, g->count * g->Tq);
    return g->packed || g->kv->blocks ? attention_chunk(g, a->D, ll_attention_sees(a, g, row).begin / LL_BLOCK) : NULL;
}

/* Units [begin, end) of all groups. What a unit reads is called for while the one before it is computed. */
static void LL_SYMBOL(attention)(const ll_attention_args *a, const ll_attention_group *groups, size_t begin, size_t end,
                                 float *workspace)
{
    const float scale = a->default_scale ? (float)(1.0 / sqrt((double)a->D)) : (float)a->scale;
    const ll_attention_group *g = groups, *next = groups;
    while (begin < end && begin >= g->unit + g->units)
        g++;
    attention_ahead ahead = begin < end ? attention_ahead_of(g, attention_tiles(g, begin)) : (attention_ahead){0};
    for (size_t i = begin; i < end; i++, g = next) {
        const ll_span tiles = attention_tiles(g, i);
        const float *then = NULL;
        attention_call(a, &ahead, SIZE_MAX); /* what is left of this unit's */
        if (g->writes == LL_WRITTEN_WITH)
            LL_SYMBOL(kv_write)(g->kv, a->D, a->dtype, a->dtype);
        if (i + 1 < end) {
            while (i + 1 >= next->unit + next->units)
                next++;
            const ll_span coming = attention_tiles(next, i + 1);
            ahead = attention_ahead_of(next, coming);
            then = attention_begin(a, next, coming.begin);
            attention_call(a, &ahead, ATTENTION_AHEAD);
        }
        attention_unit(a, g, scale, tiles.begin, tiles.end, then, &ahead, workspace);
    }
}
