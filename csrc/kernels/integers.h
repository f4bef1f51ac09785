/* integers.h: y = activation(x @ weight + bias) + residual of a packed weight in blocks, x in 16-bit integers.
 *
 *   of 128 consecutive k of a row of x:   a = max |x|, r = 32767 / a, s = a / 32767,  q_k = round(x_k r)
 *   of a sub-block of the weight (16 or 32 k), whose values are D w_k, or D w_k + M:
 *       S = sum of q_k w_k,  T = sum of q_k          exact
 *       p = fma(float(S), D, p);  with M also p = fma(float(T), M, p)      from +0 in 128 k
 *   y = fma(p, s, y), from the bias or +0
 *
 * Order:    sub-blocks and blocks in the order of k; the sums of integers are exact, so theirs is free.
 * Rounding: x r to float32, then to an integer, both to nearest even; float(S) to nearest even (T is exact); the fmas.
 * Edges:    a < 2^-96: q = 0 and s = 0. A NaN or an infinity in a row's block of x makes s a NaN: the row is NaN. Sums: |q| is at
 *           most 32767, w has 8 bits, a sub-block 32 values: below 2^28.
 * Cost:     one multiply-add of pairs for two fma. What is kept is q - its offset: S begins at -offset T instead of 0. Panels are
 *           made pairs of 16 bits in the caches once for INTEGERS_ROWS rows, by the first tile beside its products where a
 *           register is a panel's row (tile.h): shifts and masks have other ports, and nothing waits for the stores, two cycles
 *           each. (Measured on a Zen 4: 2 to 8 sequences of Q4_0 1.13 to 1.25 x as fast as with all pairs of a panel made
 *           before, 32 sequences 1.09 to 1.14, 128 tokens 1.04.) One row reads panels as they lie, of 4 to 6 bits by bytes
 *           where there is a product of bytes (blocks_digits.h).
 * Oracle:   llorch.reference.linear_int16. Tests: tests/kernels/test_blocks.py.
 */
#ifndef LL_INTEGERS_H
#define LL_INTEGERS_H

#include "blocks_digits.h"
#include "blocks_row.h"
#include "pack.h"
#include "pack_integers.h"

/* As linear.h has them; integers of 16 bits take half the room. */
#define INTEGERS_DEPTH 1024
#define INTEGERS_ROWS (LL_VL == 16 ? 516 : 120)

/* ---- panels of the weight ------------------------------------------------------------------------------ */

/* A panel's part of kc values in the cache: pairs [kc / 2][16], D [kc / sub][16], M the same. Floats. */
LL_INLINE size_t integers_panel(size_t kc) { return kc / 2 * LL_PANEL + 2 * kc / LL_SUB_VALUES * LL_PANEL; }

LL_INLINE void integers_fetch(const char *panel, size_t K, size_t k, size_t kc, float *to, int format)
{
    const size_t sub = ll_formats[format].sub, subs = LL_RUN / sub;
    float *D_to = to + kc / 2 * LL_PANEL, *M_to = D_to + kc / sub * LL_PANEL;
    for (size_t end = k + kc; k < end; ) {
        const blocks_group g = blocks_at(panel, k, K, format);
        for (; k < end && k < g.first + g.values; k += LL_RUN) {
            const size_t run = (k - g.first) / LL_RUN;
            for (size_t c = 0; c < LL_PANEL; c += LL_VL) {
                const char *from = g.runs + run * ll_run_bytes(format) + c * sizeof(uint32_t);
                for (size_t s = 0; s < subs; s++) {
                    vf D, M;
                    blocks_scale(g.head, run * subs + s, c, format, &D, &M);
                    vf_store(D_to + s * LL_PANEL + c, D);
                    if (ll_formats[format].minimum)
                        vf_store(M_to + s * LL_PANEL + c, M);
                }
                BLOCKS_UNROLL(16)
                for (size_t j = 0; j < LL_RUN / 2; j++)
                    vi_store(to + j * LL_PANEL + c, blocks_pair(from, (unsigned)j, format));
            }
            to += LL_RUN / 2 * LL_PANEL, D_to += subs * LL_PANEL, M_to += subs * LL_PANEL;
        }
    }
}

LL_INLINE void integers_row_of(const ll_linear_args *a, const float *x, size_t begin, size_t end, int format)
{
#ifdef LL_DOT_BYTES
    if (DIGITS(format)) {
        digits_rows(a, x, begin, end, format);
        return;
    }
#endif
    blocks_rows(a, x, begin, end, format, 1);
}

#define LL_DEFINE(name, format) \
    LL_NOINLINE void integers_fetch_##name(const char *panel, size_t K, size_t k, size_t kc, float *to) \
    { \
        integers_fetch(panel, K, k, kc, to, format); \
    } \
    LL_NOINLINE void integers_row_##name(const ll_linear_args *a, const float *x, size_t begin, size_t end) \
    { \
        integers_row_of(a, x, begin, end, format); \
    }
#define LL_ROW(name, format) [format] = integers_fetch_##name,
#define LL_ONE(name, format) [format] = integers_row_##name,
LL_EACH_INTEGERS(LL_DEFINE)
static void (*const integers_fetches[LL_FORMATS])(const char *, size_t, size_t, size_t, float *) = {LL_EACH_INTEGERS(LL_ROW)};
static void (*const integers_one[LL_FORMATS])(const ll_linear_args *, const float *, size_t, size_t) = {
    LL_EACH_INTEGERS(LL_ONE)};
#undef LL_DEFINE
#undef LL_ROW
#undef LL_ONE

/* ---- one tile ------------------------------------------------------------------------------------------ */

typedef struct integers_part {
    linear_place at;
    const float *x, *sums, *scales;  /* of the tile: pairs, sums and scales from this part's k on, each [.][R] */
    float *b;                        /* panels as integers_fetch leaves them, b_panel floats apart */
    size_t b_panel, kc, sub;
    int minimum;
    const char *panel;               /* the panels as they lie in memory, */
    size_t k;                        /* and this part's first k: for a tile that makes b */
    const char *ahead;               /* where the tile calls for what is fetched next, */
    size_t ahead_sub, panel_bytes;   /* how far it goes in a sub-block; from panel to panel in memory */
} integers_part;

/* How many panels R rows take together. With room for more, four chains are enough for a Zen 4, and the fewer panels the fewer are
 * left over at the end of a thread's (measured there: 5 and 6 rows by one panel 1.06 to 1.14 x as fast as by two). */
#define INTEGERS_MOST_PANELS (TILE_ROOMY ? 2 : TILE_MOST_PANELS)
#define INTEGERS_PANELS(R) (!TILE_ROOMY ? TILE_PANELS(R) : (R) > 4 ? 1 : INTEGERS_MOST_PANELS)

LL_INLINE void integers_keep(vf *to, vf v)
{
    vf_store((float *)to, v);
    LL_MEMORY();
}

/* The float32 sums of a block of 128 have a register each beside the exact ones, if there are so many. Else they stay in memory, as
 * y always does: a compiler that knew better would save and restore the exact sums. With 32 registers fewer panels leave room, and
 * no store waits (measured: a tenth faster). */
LL_INLINE void integers_add(vf *p, vf v)
{
    if (TILE_ROOMY)
        *p = v;
    else
        integers_keep(p, v);
}

/* Calls for what is fetched next, a sub-block's part of it. */
LL_INLINE void integers_call(const integers_part *t, size_t P, const char **ahead)
{
    for (size_t line = 0; line < t->ahead_sub; line += 64)
        for (size_t v = 0; v < P; v++)
            __builtin_prefetch(*ahead + line + v * t->panel_bytes, 0, 2);
    *ahead += t->ahead_sub;
}

/* A scale of each column. */
LL_INLINE void integers_scales_of(const integers_part *t, const float *D, size_t V, vf *d)
{
    LL_UNROLL
    for (size_t v = 0; v < V; v++)
        d[v] = vf_load(D + v / TILE_PANEL_VECTORS * t->b_panel + v % TILE_PANEL_VECTORS * LL_VL);
}

/* What the exact sums of a sub-block begin with; sums: of R rows. */
LL_INLINE void integers_begin(const float *sums, size_t R, size_t V, int minimum, vi *S)
{
    LL_UNROLL
    for (size_t r = 0; r < R; r++) {
        const vi first = minimum ? vi_zero() : vi_set1(blocks_word(sums + r));
        LL_UNROLL
        for (size_t v = 0; v < V; v++)
            S[r * V + v] = first;
    }
}

/* A pair of each row, which lie together, times w. */
LL_INLINE void integers_dot(const float *x, size_t R, size_t V, const vi *w, vi *S)
{
    LL_UNROLL
    for (size_t r = 0; r < R; r++) {
        const vi xs = vi_set1(blocks_word(x + r));
        LL_UNROLL
        for (size_t v = 0; v < V; v++)
            S[r * V + v] = vi_dot(S[r * V + v], xs, w[v]);
    }
}

/* p goes on by the sums of a sub-block, whose scales are d, and m. */
LL_INLINE void integers_scale(const float *sums, size_t R, size_t V, int minimum, const vi *S, const vf *d, const vf *m, vf *p)
{
    if (minimum) {
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++)
            integers_add(p + i, vf_fma(vf_set1(sums[i / V]), m[i % V], vf_fma(vi_to_vf(S[i]), d[i % V], p[i])));
    } else {
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++)
            integers_add(p + i, vf_fma(vi_to_vf(S[i]), d[i % V], p[i]));
    }
}

/* y goes on by the sums of a block of 128. */
LL_INLINE void integers_block_ends(const float *scales, size_t R, size_t V, const vf *p, vf *y)
{
    LL_UNROLL
    for (size_t i = 0; i < R * V; i++)
        integers_keep(y + i, vf_fma(p[i], vf_set1(scales[i / V]), vf_load((const float *)(y + i))));
}

LL_INLINE void integers_tile(const integers_part *t, size_t R, size_t P)
{
    const size_t V = P * TILE_PANEL_VECTORS, sub = t->sub;
    const float *x = t->x, *sums = t->sums, *scales = t->scales;
    const float *b = t->b, *D = b + t->kc / 2 * LL_PANEL, *M = D + t->kc / sub * LL_PANEL;
    const char *ahead = t->ahead;
    vf y[LL_TILE_ROWS * LL_TILE_PANELS * TILE_PANEL_VECTORS], p[LL_TILE_ROWS * LL_TILE_PANELS * TILE_PANEL_VECTORS], d[8], m[8];
    linear_begin(&t->at, R, V, y);
    linear_call(&t->at, R, V);
    for (size_t k = 0; k < t->kc; k += LL_BLOCK) {
        const size_t count = ll_least(LL_BLOCK, t->kc - k);
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++)
            integers_add(p + i, vf_zero());
        for (size_t s = 0; s < count; s += sub) {
            vi S[LL_TILE_ROWS * LL_TILE_PANELS * TILE_PANEL_VECTORS];
            integers_call(t, P, &ahead);
            integers_begin(sums, R, V, t->minimum, S);
            for (size_t j = 0; j < sub / 2; j++, x += R, b += LL_PANEL) {
                vi w[8];
                LL_UNROLL
                for (size_t v = 0; v < V; v++)
                    w[v] = vi_load(b + v / TILE_PANEL_VECTORS * t->b_panel + v % TILE_PANEL_VECTORS * LL_VL);
                integers_dot(x, R, V, w, S);
            }
            integers_scales_of(t, D, V, d);
            if (t->minimum)
                integers_scales_of(t, M, V, m);
            integers_scale(sums, R, V, t->minimum, S, d, m, p);
            sums += R, D += LL_PANEL, M += LL_PANEL;
        }
        integers_block_ends(scales, R, V, p, y);
        scales += R;
    }
    linear_end(&t->at, R, V, y);
}

#define LL_DEFINE(R) \
    LL_NOINLINE void integers_##R(const integers_part *part, size_t panels) \
    { \
        integers_part t = *part; \
        while (panels) { \
            const size_t taken = panels >= INTEGERS_PANELS(R) ? INTEGERS_PANELS(R) : 1; \
            if (taken == INTEGERS_PANELS(R)) \
                integers_tile(&t, R, INTEGERS_PANELS(R)); \
            else \
                integers_tile(&t, R, 1); \
            panels -= taken; \
            t.at.n += taken * LL_PANEL; \
            t.b += taken * t.b_panel; \
            t.ahead += taken * t.panel_bytes; \
            t.at.sums += taken * t.at.sums_panel; \
        } \
    }
#define LL_ROW(R) integers_##R,
LL_EACH_ROWS(LL_DEFINE)
static void (*const integers_tiles[LL_TILE_ROWS])(const integers_part *, size_t panels) = {LL_EACH_ROWS(LL_ROW)};
#undef LL_DEFINE
#undef LL_ROW

/* ---- the first tile of a panel, where it makes the pairs ------------------------------------------------- */

#if TILE_ROOMY

/* Pair j of a run of each panel: made, kept for tiles that follow, and multiplied. run: of the first panel. */
LL_INLINE void integers_pair(const integers_part *t, const char *run, unsigned j, const float *x, float *b, size_t R, size_t P,
                             int format, vi *S)
{
    const size_t bytes = t->panel_bytes;
    vi w[INTEGERS_MOST_PANELS];
    LL_UNROLL
    for (size_t v = 0; v < P; v++) {
        w[v] = blocks_pair(run + v * bytes, j, format);
        vi_store(b + v * t->b_panel, w[v]);
    }
    integers_dot(x, R, P, w, S);
}

/* A tile on panels as they lie in memory; t->b has them as integers_fetch would leave them. Without upper bits the words of a plane
 * are alike but for their place: a loop goes over them. */
LL_INLINE void integers_first_tile(const integers_part *t, size_t R, size_t P, int format)
{
    const size_t sub = ll_formats[format].sub, subs = LL_RUN / sub, in_word = 16 / ll_formats[format].low, bytes = t->panel_bytes;
    const int minimum = ll_formats[format].minimum;
    const float *x = t->x, *sums = t->sums, *scales = t->scales;
    float *b = t->b, *D = b + t->kc / 2 * LL_PANEL, *M = D + t->kc / sub * LL_PANEL;
    const char *ahead = t->ahead;
    vf y[LL_TILE_ROWS], p[LL_TILE_ROWS], d[INTEGERS_MOST_PANELS], m[INTEGERS_MOST_PANELS];
    linear_begin(&t->at, R, P, y);
    linear_call(&t->at, R, P);
    for (size_t k = 0; k < t->kc; k += LL_BLOCK) {
        const blocks_group g = blocks_at(t->panel, t->k + k, t->at.args->weight.K, format);
        const size_t first = (t->k + k - g.first) / LL_RUN, runs = ll_least(LL_BLOCK, t->kc - k) / LL_RUN;
        LL_UNROLL
        for (size_t i = 0; i < R * P; i++)
            p[i] = vf_zero();
        for (size_t run = first; run < first + runs; run++) {
            const char *from = g.runs + run * ll_run_bytes(format);
            LL_UNROLL
            for (size_t s = 0; s < subs; s++) {
                vi S[LL_TILE_ROWS];
                integers_call(t, P, &ahead);
                integers_begin(sums, R, P, minimum, S);
                if (ll_formats[format].high) { /* each pair of a run has its own shifts */
                    BLOCKS_UNROLL(16)
                    for (size_t j = 0; j < sub / 2; j++)
                        integers_pair(t, from, (unsigned)(s * sub / 2 + j), x + j * R, b + j * LL_PANEL, R, P, format, S);
                    x += sub / 2 * R, b += sub / 2 * LL_PANEL;
                } else {
                    for (size_t j = 0; j < sub / 2; j += in_word, from += BLOCKS_LINE, x += in_word * R, b += in_word * LL_PANEL)
                        BLOCKS_UNROLL(8)
                        for (size_t i = 0; i < in_word; i++)
                            integers_pair(t, from, (unsigned)i, x + i * R, b + i * LL_PANEL, R, P, format, S);
                }
                LL_UNROLL
                for (size_t v = 0; v < P; v++) {
                    blocks_scale(g.head + v * bytes, run * subs + s, 0, format, &d[v], &m[v]);
                    vf_store(D + v * t->b_panel, d[v]);
                    if (minimum)
                        vf_store(M + v * t->b_panel, m[v]);
                }
                integers_scale(sums, R, P, minimum, S, d, m, p);
                sums += R, D += LL_PANEL, M += LL_PANEL;
            }
        }
        integers_block_ends(scales, R, P, p, y);
        scales += R;
    }
    linear_end(&t->at, R, P, y);
}

/* One row is no tile. */
#define INTEGERS_EACH_FIRST(X) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#define LL_DEFINE(R, name, format) \
    LL_NOINLINE void integers_first_##R##_##name(const integers_part *t) \
    { \
        integers_first_tile(t, R, INTEGERS_PANELS(R), format); \
    }
#define LL_DEFINE_ROWS(R) LL_EACH_INTEGERS_OF(LL_DEFINE, R)
#define LL_ONE(R, name, format) [format] = integers_first_##R##_##name,
#define LL_ROW(R) [R - 1] = {LL_EACH_INTEGERS_OF(LL_ONE, R)},
INTEGERS_EACH_FIRST(LL_DEFINE_ROWS)
static void (*const integers_first[LL_TILE_ROWS][LL_FORMATS])(const integers_part *) = {INTEGERS_EACH_FIRST(LL_ROW)};
#undef LL_DEFINE
#undef LL_DEFINE_ROWS
#undef LL_ONE
#undef LL_ROW
#endif

/* ---- a range of tiles on a range of panels --------------------------------------------------------------- */

#define INTEGERS_ROOM (INTEGERS_MOST_PANELS * (INTEGERS_DEPTH / 2 + 2 * INTEGERS_DEPTH / LL_SUB_VALUES) * LL_PANEL)

LL_NOINLINE size_t LL_SYMBOL(integers_floats)(const ll_linear_args *a)
{
    return a->M == 1 ? 0 : INTEGERS_ROOM + PACK_GROUP * ll_least(a->M, INTEGERS_ROWS) * LL_PANEL;
}

/* x: the tiles of pack_integers. workspace: integers_floats, of this thread; NULL where that is 0. */
void LL_SYMBOL(linear_int16)(const ll_linear_args *a, const float *x, size_t tile_begin, size_t tile_end, size_t panel_begin,
                             size_t panel_end, float *workspace)
{
    const ll_weight *w = &a->weight;
    if (a->M == 1) {
        integers_one[w->format](a, x, panel_begin, panel_end);
        return;
    }
    float *const room = workspace, *const sums = workspace + INTEGERS_ROOM;
    const size_t M = a->M, tiles = tile_count(M), K = w->K, sub = ll_formats[w->format].sub, bytes = ll_panel_bytes(K, w->format);
    const size_t of_row = integers_row(K, sub), of_sums = integers_sums(K), of_scales = integers_scales(K, sub);
    const size_t blocks = (tile_end - tile_begin + INTEGERS_ROWS / LL_TILE_ROWS - 1) / (INTEGERS_ROWS / LL_TILE_ROWS);
    const size_t block_tiles = (tile_end - tile_begin + blocks - 1) / blocks;
    for (size_t block = tile_begin; block < tile_end; block += block_tiles) {
        const size_t block_end = ll_least(block + block_tiles, tile_end);
        const size_t m = ll_tile_row(block, tiles, M), rows = ll_tile_row(block_end, tiles, M) - m;
        const size_t together = INTEGERS_PANELS(ll_tile_row(block + 1, tiles, M) - m);
        const size_t count = block_end - block;
        const size_t most = count == 1 && !TILE_ROOMY ? blocks_near(together, sizeof(int16_t)) : INTEGERS_DEPTH;
        const size_t depth = blocks_depth(K, most), group = count == 1 ? together : PACK_GROUP;
        for (size_t panel = panel_begin; panel < panel_end; panel += group) {
            const size_t panels = ll_least(group, panel_end - panel);
            size_t k = 0;
            do {
                const size_t kc = ll_least(depth, K - k);
                const int last = k + kc == K;
                const size_t after = last ? 0 : k + kc; /* the next part */
                /* all divisions here, not for each tile of each panel (measured from the caches: two tiles 0.5 % faster) */
                const size_t subs = kc / sub, from = blocks_byte(bytes, K, after);
                const size_t ahead_sub = K ? blocks_call(bytes, K, after, depth, count, subs) : 0;
                const size_t sums_k = of_sums + k / sub, scales_k = of_scales + k / LL_BLOCK;
                for (size_t p = 0; p < panels; p += together) {
                    const size_t now = ll_least(together, panels - p);
                    const size_t next = panel + p + (last ? group : 0);
                    integers_part part = {
                        .at = {.args = a, .m = m, .n = (panel + p) * LL_PANEL, .first = k == 0, .last = last,
                               .sums = sums + p * rows * LL_PANEL, .sums_panel = rows * LL_PANEL},
                        .b = room, .b_panel = integers_panel(kc), .kc = kc, .sub = sub,
                        .minimum = ll_formats[w->format].minimum,
                        .panel = (const char *)w->data + (panel + p) * bytes, .k = k,
                        .ahead = (const char *)w->data + next * bytes + from,
                        .ahead_sub = next < ll_panels(w->N) ? ahead_sub : 0,
                        .panel_bytes = bytes};
                    const int widens = TILE_ROOMY && now == together; /* the first tile */
                    for (size_t i = 0; i < now && !widens; i++)
                        integers_fetches[w->format](part.panel + i * bytes, K, k, kc, room + i * part.b_panel);
                    for (size_t tile = block; tile < block_end; tile++) {
                        const size_t R = ll_tile_row(tile + 1, tiles, M) - part.at.m;
                        const float *of_tile = x + part.at.m * of_row;
                        part.x = of_tile + k / 2 * R;
                        part.sums = of_tile + sums_k * R;
                        part.scales = of_tile + scales_k * R;
                        part.at.again = tile + 1 < block_end && last;
#if TILE_ROOMY
                        if (widens && tile == block)
                            integers_first[R - 1][w->format](&part);
                        else
#endif
                            integers_tiles[R - 1](&part, now);
                        part.at.m += R;
                        part.at.sums += R * LL_PANEL;
                        part.ahead += subs * part.ahead_sub;
                    }
                }
                k += depth;
            } while (k < K);
        }
    }
}

#endif
