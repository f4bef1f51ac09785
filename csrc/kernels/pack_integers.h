/* pack_integers.h: rows of x as 16-bit integers, in tiles.
 *
 *   of 128 consecutive k of a row:   a = max |x|, r = 32767 / a, s = a / 32767,  q_k = round(x_k r),  T of a sub-block = sum of q_k
 *
 * What they are for, rounding and edges: integers.h.
 * Cost:     x is read twice, from the caches; a tile is transposed in squares, which also sum.
 * Oracle:   llorch.reference.linear_int16. Tests: tests/kernels/test_blocks.py.
 */
#ifndef LL_PACK_INTEGERS_H
#define LL_PACK_INTEGERS_H

#include "blocks_digits.h"

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

#endif
