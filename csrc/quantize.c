/* quantize.c: float32 values into blocks of integers with scales: the other way of formats.c.
 *
 *   Q8_0             d = max |x| / 127           q = x / d, ties away from zero
 *   Q4_0, Q5_0       d = X / -8, X / -16         q = x / d + 8, + 16, where X is the first value of the largest magnitude
 *   Q4_1, Q5_1       d = (max - min) / 15, / 31  q = (x - min) / d, m = min
 *   MXFP4            2^e, the largest power of two for which max |x| >= 4 2^e; the nearest 4-bit float, of two the smaller
 *   Q2_K .. Q6_K     scale and minimum of each sub-block by kernels/quantize.h; d = the largest scale / the largest sc (Q3_K,
 *                    Q6_K: of the largest magnitude, / the least sc), dmin = the largest minimum / the largest mn;
 *                    sc = nearest(scale / d), mn = nearest(minimum / dmin), of which k_round makes the best
 *
 * Order:    of all sums in kernels/quantize.h; here is none.
 * Rounding: every operation to nearest even; no fma. / d is a product with 1 / d, of the d that isn't yet float16; q =
 *           trunc(.. + 0.5) but Q8_0's. Scales to float16, nearest even. Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: the bytes of ggml's
 *           own rounding and of gguf-py's quants.quantize, and MXFP4 but where max |x| is just below a power of two, which
 *           their logarithm takes for one.
 * Edges:    a block that is infinite or NaN somewhere, or too large for its scales, isn't stored: the caller hears of it.
 *           A 1 / d that would be infinite is 0.
 * Cost:     on a core of Zen 5, 350 to 550 values a microsecond; Q2_K, Q4_K, Q5_K 90 to 110, Q3_K and Q6_K 200 with AVX2 or
 *           AVX-512, and 11 to 40 in plain C.
 * Oracle:   llorch.reference.quantize. Tests: tests/kernels/test_quantize.py, also beside gguf-py and llama.cpp. */
#include <stdatomic.h>
#include <string.h>

#include "formats.h"
#include "fpenv.h"
#include "kernels/table.h"

/* Values that are widened together: whole blocks, in the first cache. */
#define PART (8 * LL_BLOCK_VALUES)
/* Values a thread must have to be worth waking. */
#define WORTH_VALUES 16384

/* Inlined, so that the numbers of a format are constants in it. */
#define OF_FORMAT static inline __attribute__((always_inline))

static inline uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* The bits of the largest magnitude; an infinity's are 0x7f800000, a NaN's more. */
static inline uint32_t largest_bits(const float *x, int n)
{
    uint32_t most = 0;
    for (int j = 0; j < n; j++) {
        const uint32_t u = bits_of(x[j]) & 0x7fffffff;
        most = u > most ? u : most;
    }
    return most;
}

#define INFINITE 0x7f800000

/* Two scales (or one twice) as float16 at `to`, and what they are then; 0 where one is infinite. */
static int store_scales(float *first, float *second, uint8_t *to_first, uint8_t *to_second)
{
    const ll_kernels *kernels = ll_table();
    float scales[2] = {*first, *second};
    uint8_t halves[4];
    kernels->cast(scales, LL_F32, halves, LL_F16, 2);
    kernels->cast(halves, LL_F16, scales, LL_F32, 2);
    memcpy(to_first, halves, 2);
    memcpy(to_second, halves + 2, 2);
    *first = scales[0];
    *second = scales[1];
    return largest_bits(scales, 2) < INFINITE;
}

static int store_scale(float d, uint8_t *to) { return store_scales(&d, &(float){d}, to, to); }

/* 1 / d, or 0 where that has no value. */
static float reciprocal(float d)
{
    const float r = d != 0.0f ? 1.0f / d : 0.0f;
    return (bits_of(r) & 0x7fffffff) < INFINITE ? r : 0.0f;
}

/* ---- blocks of 32 values: the lower halves of 16 bytes, then the upper ones ------------------------ */

static int q8_0(const float *x, uint8_t *b)
{
    const uint32_t most = largest_bits(x, 32);
    float d;
    memcpy(&d, &most, sizeof d);
    d = d / 127.0f;
    if (most >= INFINITE || !store_scale(d, b))
        return 0;
    const float r = reciprocal(d);
    for (int j = 0; j < 32; j++) {
        const float t = x[j] * r, whole = (float)(int32_t)t, rest = t - whole; /* exact */
        b[2 + j] = (uint8_t)((int32_t)t + (rest >= 0.5f) - (rest <= -0.5f));
    }
    return 1;
}

static void store_nibbles(const uint8_t *q, uint8_t *to)
{
    for (int j = 0; j < 16; j++)
        to[j] = (uint8_t)((q[j] & 15) | q[16 + j] << 4);
}

static void store_fifth_bits(const uint8_t *q, uint8_t *to)
{
    uint32_t bits = 0;
    for (int j = 0; j < 32; j++)
        bits |= (uint32_t)(q[j] >> 4) << j;
    memcpy(to, &bits, sizeof bits);
}

/* q = trunc((x - low) r + half), at most `levels`; never negative. */
OF_FORMAT void rounded(const float *x, float low, float r, float half, int levels, uint8_t *q)
{
    for (int j = 0; j < 32; j++) {
        const int32_t t = (int32_t)((x[j] - low) * r + half);
        q[j] = (uint8_t)(t < levels ? t : levels);
    }
}

/* Around zero: the value of the largest magnitude is -half. */
OF_FORMAT int around_zero(const float *x, int half, uint8_t *b, uint8_t *q)
{
    const uint32_t most = largest_bits(x, 32);
    int first = 0;
    while ((bits_of(x[first]) & 0x7fffffff) < most)
        first++;
    const float d = x[first] / (float)-half;
    if (most >= INFINITE || !store_scale(d, b))
        return 0;
    rounded(x, 0.0f, reciprocal(d), (float)half + 0.5f, 2 * half - 1, q);
    return 1;
}

OF_FORMAT int above_minimum(const float *x, int levels, uint8_t *b, uint8_t *q)
{
    float low = x[0], high = x[0];
    for (int j = 1; j < 32; j++) {
        low = x[j] < low ? x[j] : low;
        high = x[j] > high ? x[j] : high;
    }
    const float d = (high - low) / (float)levels;
    if (largest_bits(x, 32) >= INFINITE || !store_scales(&(float){d}, &(float){low}, b, b + 2))
        return 0;
    rounded(x, low, reciprocal(d), 0.5f, levels, q);
    return 1;
}

static int q4_0(const float *x, uint8_t *b)
{
    uint8_t q[32];
    if (!around_zero(x, 8, b, q))
        return 0;
    store_nibbles(q, b + 2);
    return 1;
}

static int q4_1(const float *x, uint8_t *b)
{
    uint8_t q[32];
    if (!above_minimum(x, 15, b, q))
        return 0;
    store_nibbles(q, b + 4);
    return 1;
}

static int q5_0(const float *x, uint8_t *b)
{
    uint8_t q[32];
    if (!around_zero(x, 16, b, q))
        return 0;
    store_fifth_bits(q, b + 2);
    store_nibbles(q, b + 6);
    return 1;
}

static int q5_1(const float *x, uint8_t *b)
{
    uint8_t q[32];
    if (!above_minimum(x, 31, b, q))
        return 0;
    store_fifth_bits(q, b + 4);
    store_nibbles(q, b + 8);
    return 1;
}

/* A byte e, then 4-bit floats: how many of the midpoints between them |x| is above. */
static int mxfp4(const float *x, uint8_t *b)
{
    static const float midpoint[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f}; /* of 2^(e - 128) */
    const uint32_t most = largest_bits(x, 32);
    if (most >= INFINITE)
        return 0;
    const uint32_t e = most >> 23 > 2 ? (most >> 23) - 2 : 0, power = e > 1 ? (e - 1) << 23 : 0x00200000u << e;
    float unit;
    int32_t code[32] = {0};
    uint8_t q[32];
    memcpy(&unit, &power, sizeof unit);
    for (int i = 0; i < 7; i++) {
        const int32_t above = (int32_t)bits_of(unit * midpoint[i]);
        for (int j = 0; j < 32; j++)
            code[j] += (int32_t)(bits_of(x[j]) & 0x7fffffff) > above;
    }
    for (int j = 0; j < 32; j++)
        q[j] = (uint8_t)(code[j] + (code[j] && bits_of(x[j]) >> 31 ? 8 : 0));
    b[0] = (uint8_t)e;
    store_nibbles(q, b + 1);
    return 1;
}

/* ---- K-quants: 256 values, in sub-blocks of 16 or 32 with scales of their own ----------------------- */

/* Values from here on have no K-quant: the largest is 2^28, and squares must not overflow. */
#define TOO_LARGE 0x53800000 /* 2^40 */

/* A block as the bytes of its parts: q less the least of them, and the scales of its sub-blocks. */
typedef struct k_block {
    uint8_t q[LL_BLOCK_VALUES], sc[LL_SUBS], mn[LL_SUBS];
} k_block;

/* a / b to the nearest integer in [low, high]; 0 for b = 0. */
static float in_units(float a, float b, float low, float high)
{
    if (b == 0.0f)
        return 0.0f;
    const float t = a / b;
    return ((t < low ? low : t > high ? high : t) + 0x1.8p23f) - 0x1.8p23f;
}

/* The first of the largest magnitude. */
static float largest(const float *x, size_t n)
{
    float most = 0.0f;
    for (size_t i = 0; i < n; i++)
        if ((bits_of(x[i]) & 0x7fffffff) > (bits_of(most) & 0x7fffffff))
            most = x[i];
    return most;
}

/* `count` blocks of J values a sub-block, 16 sub-blocks together (those that aren't there are zero): q in [low, high], sc in
 * [least_sc, most_sc]. Scales are stored at d_at and dmin_at of each block, which has `bytes`; dmin_at < 0: no minimum. */
OF_FORMAT int k_blocks(const float *values, int count, int J, float low, float high, float least_sc, float most_sc,
                       k_block *to, uint8_t *blocks, size_t bytes, int d_at, int dmin_at)
{
    const ll_kernels *kernels = ll_table();
    const int subs = LL_BLOCK_VALUES / J; /* of a block */
    float x[32 * LL_SUBS], q[32 * LL_SUBS], scale[LL_SUBS], minimum[LL_SUBS] = {0}, d[LL_SUBS] = {0}, dmin[LL_SUBS] = {0};
    float sc[LL_SUBS] = {0}, mn[LL_SUBS] = {0};
    if (largest_bits(values, count * LL_BLOCK_VALUES) >= TOO_LARGE)
        return 0;
    for (int s = 0; s < LL_SUBS; s++)
        for (int j = 0; j < J; j++)
            x[j * LL_SUBS + s] = s < count * subs ? values[s * J + j] : 0.0f;
    if (dmin_at < 0)
        kernels->k_fit_around(x, (size_t)J, -low, scale);
    else
        kernels->k_fit_above(x, (size_t)J, high, scale, minimum);
    for (int i = 0; i < count; i++) {
        uint8_t *block = blocks + (size_t)i * bytes, nowhere[2];
        float of_scale = largest(scale + i * subs, (size_t)subs) / (dmin_at < 0 ? least_sc : most_sc);
        float of_minimum = largest(minimum + i * subs, (size_t)subs) / most_sc;
        if (!store_scales(&of_scale, &of_minimum, block + d_at, dmin_at < 0 ? nowhere : block + dmin_at))
            return 0;
        for (int s = i * subs; s < (i + 1) * subs; s++) {
            d[s] = of_scale;
            dmin[s] = of_minimum;
            sc[s] = in_units(scale[s], of_scale, least_sc, most_sc);
            mn[s] = in_units(minimum[s], of_minimum, 0.0f, most_sc);
        }
    }
    const ll_k_round_args a = {.x = x, .J = (size_t)J, .low = low, .high = high, .d = d, .dmin = dmin, .sc = sc, .mn = mn,
                               .least_sc = least_sc, .most_sc = most_sc, .has_minimum = dmin_at >= 0, .q = q};
    kernels->k_round(&a);
    for (int s = 0; s < count * subs; s++) {
        k_block *block = &to[s / subs];
        block->sc[s % subs] = (uint8_t)(int32_t)sc[s];
        block->mn[s % subs] = (uint8_t)(int32_t)mn[s];
        for (int j = 0; j < J; j++)
            block->q[s % subs * J + j] = (uint8_t)(int32_t)(q[j * LL_SUBS + s] - low);
    }
    return 1;
}

/* Fields of `bits` bits of q >> from: the lowest of `run` bytes, then the next of the same bytes, .., then of the next. */
OF_FORMAT void store_fields(const uint8_t *q, int from, int bits, int run, uint8_t *to)
{
    const int each = 8 / bits, mask = (1 << bits) - 1;
    for (int i = 0; i < LL_BLOCK_VALUES / each; i++) {
        int byte = 0;
        for (int f = 0; f < each; f++)
            byte |= (q[i / run * run * each + f * run + i % run] >> from & mask) << f * bits;
        to[i] = (uint8_t)byte;
    }
}

static int q2_k(const float *x, int count, uint8_t *b)
{
    k_block block;
    if (!k_blocks(x, count, 16, 0.0f, 3.0f, 0.0f, 15.0f, &block, b, 84, 80, 82))
        return 0;
    for (int s = 0; s < 16; s++)
        b[s] = (uint8_t)(block.sc[s] | block.mn[s] << 4);
    store_fields(block.q, 0, 2, 32, b + 16);
    return 1;
}

static int q3_k(const float *x, int count, uint8_t *b)
{
    k_block block;
    uint8_t *u = block.sc;
    if (!k_blocks(x, count, 16, -4.0f, 3.0f, -32.0f, 31.0f, &block, b, 110, 108, -1))
        return 0;
    for (int s = 0; s < 16; s++)
        u[s] = (uint8_t)(u[s] + 32);
    for (int s = 0; s < 8; s++)
        b[96 + s] = (uint8_t)((u[s] & 15) | (u[8 + s] & 15) << 4);
    for (int s = 0; s < 4; s++)
        b[104 + s] = (uint8_t)(u[s] >> 4 | u[4 + s] >> 4 << 2 | u[8 + s] >> 4 << 4 | u[12 + s] >> 4 << 6);
    store_fields(block.q, 2, 1, 32, b);
    store_fields(block.q, 0, 2, 32, b + 32);
    return 1;
}

static void store_six_bits(const uint8_t *sc, const uint8_t *mn, uint8_t *packed)
{
    for (int i = 0; i < 4; i++) {
        packed[i] = (uint8_t)(sc[i] | sc[4 + i] >> 4 << 6);
        packed[4 + i] = (uint8_t)(mn[i] | mn[4 + i] >> 4 << 6);
        packed[8 + i] = (uint8_t)((sc[4 + i] & 15) | (mn[4 + i] & 15) << 4);
    }
}

static int q4_k(const float *x, int count, uint8_t *b)
{
    k_block blocks[2];
    if (!k_blocks(x, count, 32, 0.0f, 15.0f, 0.0f, 63.0f, blocks, b, 144, 0, 2))
        return 0;
    for (int i = 0; i < count; i++, b += 144) {
        store_six_bits(blocks[i].sc, blocks[i].mn, b + 4);
        store_fields(blocks[i].q, 0, 4, 32, b + 16);
    }
    return 1;
}

static int q5_k(const float *x, int count, uint8_t *b)
{
    k_block blocks[2];
    if (!k_blocks(x, count, 32, 0.0f, 31.0f, 0.0f, 63.0f, blocks, b, 176, 0, 2))
        return 0;
    for (int i = 0; i < count; i++, b += 176) {
        store_six_bits(blocks[i].sc, blocks[i].mn, b + 4);
        store_fields(blocks[i].q, 4, 1, 32, b + 16);
        store_fields(blocks[i].q, 0, 4, 32, b + 48);
    }
    return 1;
}

static int q6_k(const float *x, int count, uint8_t *b)
{
    k_block block;
    if (!k_blocks(x, count, 16, -32.0f, 31.0f, -128.0f, 127.0f, &block, b, 210, 208, -1))
        return 0;
    memcpy(b + 192, block.sc, sizeof block.sc);
    store_fields(block.q, 0, 4, 64, b);
    store_fields(block.q, 4, 2, 32, b + 128);
    return 1;
}

/* ---- rows of blocks ---------------------------------------------------------------------------------- */

static int (*const to_block[LL_FORMATS])(const float *x, uint8_t *block) = {
    [LL_Q8_0] = q8_0, [LL_Q4_0] = q4_0, [LL_Q4_1] = q4_1, [LL_Q5_0] = q5_0, [LL_Q5_1] = q5_1, [LL_MXFP4] = mxfp4,
};

/* `together` blocks fill the lanes of the search. */
static const struct {
    int (*to_blocks)(const float *x, int count, uint8_t *blocks);
    int together;
} of_k[LL_FORMATS] = {
    [LL_Q2_K] = {q2_k, 1}, [LL_Q3_K] = {q3_k, 1}, [LL_Q4_K] = {q4_k, 2}, [LL_Q5_K] = {q5_k, 2}, [LL_Q6_K] = {q6_k, 1},
};

/* 0, or -1 for what can't be stored. */
static int quantize_blocks(const float *x, int format, size_t values, uint8_t *block)
{
    const ll_format *f = &ll_formats[format];
    const size_t step = f->values * (size_t)(of_k[format].together ? of_k[format].together : 1);
    for (size_t i = 0; i < values; i += step) {
        const size_t count = ll_least(step, values - i) / f->values;
        uint8_t *to = block + i / f->values * f->bytes;
        if (!(of_k[format].to_blocks ? of_k[format].to_blocks(x + i, (int)count, to) : to_block[format](x + i, to)))
            return -1;
    }
    return 0;
}

int ll_quantize(const float *x, int format, size_t values, void *blocks)
{
    const ll_fpenv saved = ll_fpenv_enter();
    const int status = quantize_blocks(x, format, values, blocks);
    ll_fpenv_leave(saved);
    return status;
}

typedef struct quantize_job {
    const ll_quantize_args *args;
    const ll_kernels *kernels;
    atomic_size_t first; /* row that can't be stored */
} quantize_job;

/* Row i: 0, or -1. */
static int quantize_row(const quantize_job *job, size_t i)
{
    float part[PART];
    const ll_quantize_args *a = job->args;
    const ll_format *format = &ll_formats[a->format];
    const char *x = (const char *)a->x + (ptrdiff_t)i * a->x_stride;
    uint8_t *y = (uint8_t *)a->y + i * (a->n / format->values * format->bytes);
    for (size_t k = 0; k < a->n; k += PART) {
        const size_t count = ll_least(PART, a->n - k);
        job->kernels->cast(x + k * ll_dtype_size(a->dtype), a->dtype, part, LL_F32, count);
        if (quantize_blocks(part, a->format, count, y + k / format->values * format->bytes))
            return -1;
    }
    return 0;
}

static void rows_task(void *context, size_t begin, size_t end)
{
    quantize_job *job = context;
    for (size_t i = begin; i < end; i++) {
        if (!quantize_row(job, i))
            continue;
        size_t first = atomic_load_explicit(&job->first, memory_order_relaxed);
        while (i < first && !atomic_compare_exchange_weak_explicit(&job->first, &first, i, memory_order_relaxed,
                                                                   memory_order_relaxed))
            ;
        return;
    }
}

size_t ll_quantize_rows(const ll_quantize_args *a)
{
    quantize_job job = {.args = a, .kernels = ll_table()};
    atomic_init(&job.first, a->rows);
    ll_parallel_for(a->rows, a->n, WORTH_VALUES, 1, rows_task, &job);
    return atomic_load_explicit(&job.first, memory_order_relaxed);
}
