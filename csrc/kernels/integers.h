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
 *           made pairs of 16 bits in the second cache once for INTEGERS_ROWS rows; one row reads them as they lie,
 *           of 4 to 6 bits by bytes where there is a product of bytes (blocks_digits.h).
 * Oracle:   llorch.reference.linear_int16. Tests: tests/kernels/test_blocks.py.
 */
#ifndef LL_INTEGERS_H
#define LL_INTEGERS_H

#include "blocks_digits.h"
#include "blocks_row.h"
#include "pack.h"

/* As linear.h has them; integers of 16 bits take half the room. */
#define INTEGERS_DEPTH 1024
#define INTEGERS_ROWS (LL_VL == 16 ? 516 : 120)

/* ---- rows of x ----------------------------------------------------------------------------------------- */

/* One block of `count` values of R rows, count a multiple of 32, as integers; their scales. The largest of each row is found for
 * as many rows at once as a vector has lanes. */
LL_INLINE void integers_of(const char *x, ptrdiff_t stride, size_t R, size_t k, size_t count, int dtype, int16_t (*q)[LL_BLOCK],
                           float *scales)
{
    for (size_t first = 0; first < R; first += LL_VL, x += LL_VL * stride) {
        const size_t rows = ll_least(LL_VL, R - first);
        vf most[LL_VL];
        float largest[LL_VL];
        int odd[LL_VL];
        for (size_t r = 0; r < (R > 1 ? LL_VL : 1); r++) {
            vf strange = most[r] = vf_zero(); /* a NaN once there is a NaN or an infinity */
            if (r < rows)
                for (size_t i = 0; i < count; i += LL_VL) {
                    __builtin_prefetch(x + (ptrdiff_t)r * stride + (k + count + i) * ll_dtype_size(dtype));
                    const vf v = row_load(x + (ptrdiff_t)r * stride, k + i, dtype);
                    strange = vf_add(strange, vf_sub(v, v));
                    most[r] = vf_max(most[r], vf_abs(v));
                }
            odd[r] = vf_differ(strange, vf_zero());
        }
        if (rows > 1) {
            vf_transpose(most);
            for (size_t l = 1; l < LL_VL; l++)
                most[0] = vf_max(most[0], most[l]);
            vf_store(largest, most[0]);
        } else {
            float lanes[LL_VL];
            vf_store(lanes, most[0]);
            largest[0] = 0.0f;
            for (size_t l = 0; l < LL_VL; l++)
                largest[0] = lanes[l] > largest[0] ? lanes[l] : largest[0];
        }
        float by[LL_VL];
        for (size_t r = 0; r < rows; r++) { /* divisions of several rows at once */
            by[r] = 32767.0f / largest[r];
            scales[first + r] = largest[r] / 32767.0f;
        }
        for (size_t r = 0; r < rows; r++) {
            int16_t *to = q[first + r];
            if (odd[r] || largest[r] < 0x1p-96f) {
                memset(to, 0, count * sizeof *to);
                scales[first + r] = odd[r] ? NAN : 0.0f;
                continue;
            }
            const vf scale = vf_set1(by[r]);
            for (size_t i = 0; i < count; i += LL_VL)
                vi_store_i16(to + i, vi_from_vf(vf_mul(row_load(x + (ptrdiff_t)r * stride, k + i, dtype), scale)));
        }
    }
}

LL_INLINE int32_t integers_total(const int16_t *q, size_t count)
{
    int32_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += q[i];
    return sum;
}

/* The sum of a sub-block, and what begins it. */
LL_INLINE void integers_sum(float *to, int32_t sum, int offset, int minimum)
{
    const float exact = (float)sum;
    sum *= -offset;
    memcpy(to, minimum ? (const void *)&exact : &sum, sizeof sum);
}

/* `pairs` pairs of R rows, transposed: squares, each stored over the unused end of the one before, and the sums of their
 * sub-blocks. What lies behind the last pairs is not written. */
LL_INLINE void integers_transpose(int16_t (*q)[LL_BLOCK], size_t R, size_t pairs, size_t sub, int end, int offset, int minimum,
                                  float *to, float *sums)
{
    const vi times = vi_set1((int32_t)(0x00010001u * (uint16_t)(minimum ? 1 : -offset)));
    vi sum = vi_zero();
    for (size_t j = 0; j < pairs; j += LL_VL) {
        vf square[LL_VL];
        LL_UNROLL
        for (size_t r = 0; r < LL_VL; r++)
            square[r] = r < R ? vf_load(q[r] + 2 * j) : vf_zero();
        vf_transpose(square);
        LL_UNROLL
        for (size_t l = 0; l < LL_VL; l++) {
            const size_t i = j + l; /* of the pairs */
            sum = vi_dot(i * 2 % sub ? sum : vi_zero(), times, vi_load(square + l));
            if (!end || i * R + LL_VL <= pairs * R)
                vf_store(to + i * R, square[l]);
            else
                vf_store_n(to + i * R, square[l], R);
            if ((i + 1) * 2 % sub == 0)
                vf_store_n(sums + i * 2 / sub * R, minimum ? vi_to_vf(sum) : vi_as_vf(sum), R);
        }
    }
}

/* One block of `count` values from k on of a tile of R rows at x: pairs, sums and scales, each [.][R]. */
LL_INLINE void integers_block(const ll_linear_args *a, const char *x, size_t R, size_t k, size_t count, size_t sub, float *pairs,
                              float *sums, float *scales)
{
    const int offset = ll_formats[a->weight.format].offset, minimum = ll_formats[a->weight.format].minimum;
    _Alignas(64) int16_t q[LL_VL > LL_TILE_ROWS ? LL_VL : LL_TILE_ROWS][LL_BLOCK];
    if (R == 1) { /* its pairs lie as its values do */
        int16_t (*const row)[LL_BLOCK] = (void *)pairs;
        if (a->dtype == LL_F32) /* a constant: no choice a vector */
            integers_of(x, a->x_stride, 1, k, count, LL_F32, row, scales);
        else
            integers_of(x, a->x_stride, 1, k, count, a->dtype, row, scales);
        for (size_t s = 0; s < count / sub; s++)
            integers_sum(sums + s, integers_total(*row + s * sub, sub), offset, minimum);
#ifdef LL_DOT_BYTES
        if (a->M == 1 && DIGITS(a->weight.format))
            digits_of(*row, count);
#endif
        return;
    }
    if (a->dtype == LL_F32)
        integers_of(x, a->x_stride, R, k, count, LL_F32, q, scales);
    else
        integers_of(x, a->x_stride, R, k, count, a->dtype, q, scales);
    if (LL_VL > LL_TILE_ROWS) {
        if (k + count < a->weight.K)
            integers_transpose(q, R, count / 2, sub, 0, offset, minimum, pairs, sums);
        else
            integers_transpose(q, R, count / 2, sub, 1, offset, minimum, pairs, sums);
        return;
    }
    for (size_t i = 0; i < count / sub * R; i++)
        integers_sum(sums + i, integers_total(q[i % R] + i / R * sub, sub), offset, minimum);
    for (size_t i = 0; i < count / 2 * R; i++)
        memcpy(pairs + i, q[i % R] + i / R * 2, sizeof *pairs);
}

/* Tiles [begin, end) of x: tile i, of R rows from row m on, is at packed + m * integers_row, pairs, sums and scales each
 * [.][R]. A sum is an integer, -offset T, or where the format has a minimum T as float32. sub is a constant. */
LL_INLINE void integers_pack(const ll_linear_args *a, float *packed, size_t begin, size_t end, size_t sub)
{
    const size_t tiles = tile_count(a->M), K = a->weight.K;
    for (size_t tile = begin; tile < end; tile++) {
        const size_t m = ll_tile_row(tile, tiles, a->M), R = ll_tile_row(tile + 1, tiles, a->M) - m;
        const char *x = (const char *)a->x + (ptrdiff_t)m * a->x_stride;
        float *to = packed + m * integers_row(K, sub);
        for (size_t k = 0; k < K; k += LL_BLOCK)
            integers_block(a, x, R, k, ll_least(LL_BLOCK, K - k), sub, to + k / 2 * R, to + (integers_sums(K) + k / sub) * R,
                           to + (integers_scales(K, sub) + k / LL_BLOCK) * R);
    }
}

void LL_SYMBOL(pack_integers)(const ll_linear_args *a, float *packed, size_t begin, size_t end)
{
    if (ll_formats[a->weight.format].sub == 32)
        integers_pack(a, packed, begin, end, 32);
    else
        integers_pack(a, packed, begin, end, 16);
}

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
    const float *b;                  /* panels as integers_fetch leaves them, b_panel floats apart */
    size_t b_panel, kc, sub;
    int minimum;
    const char *ahead;               /* where the tile calls for what is fetched next, */
    size_t ahead_sub, ahead_panel;   /* how far it goes in a sub-block, and from panel to panel (bytes) */
} integers_part;

/* How many panels R rows take together, and whether the float32 sums of a block of 128 have a register each beside the exact
 * ones. Where they have none, they stay in memory, as y always does: a compiler that knew better would save and restore the
 * exact sums. With 32 wide registers half as many panels leave room, and no store waits (measured: a tenth faster). */
#define INTEGERS_ROOMY (LL_VL == 16)
#define INTEGERS_PANELS(R) \
    (INTEGERS_ROOMY && LL_TILE_ROWS / (R) < TILE_MOST_PANELS ? LL_TILE_ROWS / (R) : TILE_PANELS(R))

LL_INLINE void integers_keep(vf *to, vf v)
{
    vf_store((float *)to, v);
    LL_MEMORY();
}

LL_INLINE void integers_add(vf *p, vf v)
{
    if (INTEGERS_ROOMY)
        *p = v;
    else
        integers_keep(p, v);
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
            for (size_t line = 0; line < t->ahead_sub; line += 64)
                for (size_t v = 0; v < P; v++)
                    __builtin_prefetch(ahead + line + v * t->ahead_panel, 0, 2);
            ahead += t->ahead_sub;
            LL_UNROLL
            for (size_t r = 0; r < R; r++) {
                const vi first = t->minimum ? vi_zero() : vi_set1(blocks_word(sums + r));
                LL_UNROLL
                for (size_t v = 0; v < V; v++)
                    S[r * V + v] = first;
            }
            for (size_t j = 0; j < sub / 2; j++, x += R, b += LL_PANEL) {
                vi w[8];
                LL_UNROLL
                for (size_t v = 0; v < V; v++)
                    w[v] = vi_load(b + v / TILE_PANEL_VECTORS * t->b_panel + v % TILE_PANEL_VECTORS * LL_VL);
                LL_UNROLL
                for (size_t r = 0; r < R; r++) {
                    const vi xs = vi_set1(blocks_word(x + r));
                    LL_UNROLL
                    for (size_t v = 0; v < V; v++)
                        S[r * V + v] = vi_dot(S[r * V + v], xs, w[v]);
                }
            }
            LL_UNROLL
            for (size_t v = 0; v < V; v++)
                d[v] = vf_load(D + v / TILE_PANEL_VECTORS * t->b_panel + v % TILE_PANEL_VECTORS * LL_VL);
            if (t->minimum) {
                LL_UNROLL
                for (size_t v = 0; v < V; v++)
                    m[v] = vf_load(M + v / TILE_PANEL_VECTORS * t->b_panel + v % TILE_PANEL_VECTORS * LL_VL);
                LL_UNROLL
                for (size_t i = 0; i < R * V; i++)
                    integers_add(p + i, vf_fma(vf_set1(sums[i / V]), m[i % V], vf_fma(vi_to_vf(S[i]), d[i % V], p[i])));
            } else {
                LL_UNROLL
                for (size_t i = 0; i < R * V; i++)
                    integers_add(p + i, vf_fma(vi_to_vf(S[i]), d[i % V], p[i]));
            }
            sums += R, D += LL_PANEL, M += LL_PANEL;
        }
        LL_UNROLL
        for (size_t i = 0; i < R * V; i++)
            integers_keep(y + i, vf_fma(p[i], vf_set1(scales[i / V]), vf_load((const float *)(y + i))));
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
            t.ahead += taken * t.ahead_panel; \
            t.at.sums += taken * t.at.sums_panel; \
        } \
    }
#define LL_ROW(R) integers_##R,
LL_EACH_ROWS(LL_DEFINE)
static void (*const integers_tiles[LL_TILE_ROWS])(const integers_part *, size_t panels) = {LL_EACH_ROWS(LL_ROW)};
#undef LL_DEFINE
#undef LL_ROW

/* ---- a range of tiles on a range of panels --------------------------------------------------------------- */

#define INTEGERS_ROOM (PACK_GROUP * (INTEGERS_DEPTH / 2 + 2 * INTEGERS_DEPTH / LL_SUB_VALUES) * LL_PANEL)

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
    const size_t tiles = tile_count(a->M), K = w->K, sub = ll_formats[w->format].sub, bytes = ll_panel_bytes(K, w->format);
    const size_t blocks = (tile_end - tile_begin + INTEGERS_ROWS / LL_TILE_ROWS - 1) / (INTEGERS_ROWS / LL_TILE_ROWS);
    const size_t block_tiles = (tile_end - tile_begin + blocks - 1) / blocks;
    for (size_t block = tile_begin; block < tile_end; block += block_tiles) {
        const size_t block_end = ll_least(block + block_tiles, tile_end);
        const size_t m = ll_tile_row(block, tiles, a->M), rows = ll_tile_row(block_end, tiles, a->M) - m;
        const size_t together = INTEGERS_PANELS(ll_tile_row(block + 1, tiles, a->M) - m);
        const size_t count = block_end - block, depth = count == 1 ? blocks_near(together, sizeof(int16_t)) : INTEGERS_DEPTH;
        const size_t group = count == 1 ? together : PACK_GROUP;
        for (size_t panel = panel_begin; panel < panel_end; panel += group) {
            const size_t panels = ll_least(group, panel_end - panel);
            size_t k = 0;
            do {
                const size_t kc = ll_least(depth, K - k);
                for (size_t p = 0; p < panels; p++)
                    integers_fetches[w->format]((const char *)w->data + (panel + p) * bytes, K, k, kc,
                                                room + p * integers_panel(kc));
                for (size_t p = 0; p < panels; p += together) {
                    const size_t now = ll_least(together, panels - p);
                    const int last = k + kc == K;
                    const size_t next = panel + p + (last ? group : 0);
                    integers_part part = {
                        .at = {.args = a, .m = m, .n = (panel + p) * LL_PANEL, .first = k == 0, .last = last,
                               .sums = sums + p * rows * LL_PANEL, .sums_panel = rows * LL_PANEL},
                        .b = room + p * integers_panel(kc), .b_panel = integers_panel(kc), .kc = kc, .sub = sub,
                        .minimum = ll_formats[w->format].minimum,
                        .ahead = (const char *)w->data + next * bytes + (last ? 0 : (k + kc) / sub * (bytes * sub / K)),
                        .ahead_sub = K && next < ll_panels(w->N) ? bytes * sub / K / count + 1 : 0, .ahead_panel = bytes};
                    for (size_t tile = block; tile < block_end; tile++) {
                        const size_t R = ll_tile_row(tile + 1, tiles, a->M) - part.at.m;
                        const float *of_tile = x + part.at.m * integers_row(K, sub);
                        part.x = of_tile + k / 2 * R;
                        part.sums = of_tile + (integers_sums(K) + k / sub) * R;
                        part.scales = of_tile + (integers_scales(K, sub) + k / LL_BLOCK) * R;
                        part.at.again = tile + 1 < block_end && part.at.last;
                        integers_tiles[R - 1](&part, now);
                        part.at.m += R;
                        part.at.sums += R * LL_PANEL;
                        part.ahead += kc / sub * part.ahead_sub;
                    }
                }
                k += depth;
            } while (k < K);
        }
    }
}

#endif
