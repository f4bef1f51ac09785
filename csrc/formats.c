/* formats.c: what the values of a block-quantised weight are, in float32.
 *
 *   d, m, dmin   scale and minimum of a block, float16, widened exactly;  q  the stored integer
 *   sc, mn       scale and minimum of a sub-block, 6 bits (Q2_K: 4 bits; Q6_K: 8 bits and a sign)
 *   Q8_0         d q                     Q4_0, Q5_0         d (q - 8), d (q - 16)
 *   Q4_1, Q5_1   fma(d, q, m)            Q2_K, Q4_K, Q5_K   (d sc) q - (dmin mn)
 *   Q3_K, Q6_K   (d sc) q                MXFP4              2^(e - 127) times the 4-bit float
 *
 * Order:    none, every value is for itself.
 * Rounding: all products are exact: d has 11 bits, sc up to 7, q up to 7 (and 5 where sc has 7). So fma(d, q, m) is d q + m,
 *           rounded once, and no instruction for it is needed: this is plain C, compiled once for all instruction sets.
 * Edges:    a scale that is infinite or NaN gives what the products give. MXFP4: too large is an infinity; no e is a NaN,
 *           and zero has no sign.
 * Cost:     compilers make vectors of the inner loops: 2 to 5 values a nanosecond from the first cache.
 * Oracle:   llorch.reference.dequantize. Tests: tests/kernels/test_formats.py, also beside gguf-py. */
#include <string.h>

#include "formats.h"
#include "fpenv.h"
#include "kernels/table.h"

const ll_format ll_formats[LL_FORMATS] = {
    [LL_F32] = {"F32", 1, 4},       [LL_F16] = {"F16", 1, 2},       [LL_BF16] = {"BF16", 1, 2},
    [LL_Q8_0] = {"Q8_0", 32, 34},   [LL_Q4_0] = {"Q4_0", 32, 18},   [LL_Q4_1] = {"Q4_1", 32, 20},
    [LL_Q5_0] = {"Q5_0", 32, 22},   [LL_Q5_1] = {"Q5_1", 32, 24},   [LL_Q2_K] = {"Q2_K", 256, 84},
    [LL_Q3_K] = {"Q3_K", 256, 110}, [LL_Q4_K] = {"Q4_K", 256, 144}, [LL_Q5_K] = {"Q5_K", 256, 176},
    [LL_Q6_K] = {"Q6_K", 256, 210}, [LL_MXFP4] = {"MXFP4", 32, 17},
};

/* A float16, widened: its bits as those of a float32 are 2^-112 of it, also where it is subnormal. */
static float half(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    uint32_t u = (uint32_t)(h & 0x7fff) << 13;
    float f;
    if (u >= 0x0f800000) { /* infinity, NaN */
        u |= 0x7f800000;
        memcpy(&f, &u, sizeof f);
    } else {
        memcpy(&f, &u, sizeof f);
        f *= 0x1p112f;
    }
    return h & 0x8000 ? -f : f;
}

/* ---- blocks of 32 values: the lower halves of 16 bytes, then the upper ones ------------------------ */

static void q8_0(const uint8_t *b, float *y)
{
    const float d = half(b);
    int8_t q[32];
    memcpy(q, b + 2, sizeof q);
    for (int j = 0; j < 32; j++)
        y[j] = d * (float)q[j];
}

static void q4_0(const uint8_t *b, float *y)
{
    const float d = half(b);
    for (int j = 0; j < 16; j++)
        y[j] = d * (float)((b[2 + j] & 15) - 8);
    for (int j = 0; j < 16; j++)
        y[16 + j] = d * (float)((b[2 + j] >> 4) - 8);
}

static void q4_1(const uint8_t *b, float *y)
{
    const float d = half(b), m = half(b + 2);
    for (int j = 0; j < 16; j++)
        y[j] = d * (float)(b[4 + j] & 15) + m;
    for (int j = 0; j < 16; j++)
        y[16 + j] = d * (float)(b[4 + j] >> 4) + m;
}

/* The fifth bits: bit j of 32 is value j's, and becomes a byte of 16 or 0. Eight at a time: byte j of u keeps bit j, its
 * highest bit says whether there is one. */
static void fifth_bits(const uint8_t *b, uint8_t *q)
{
    for (int i = 0; i < 4; i++) {
        const uint64_t low = 0x7f7f7f7f7f7f7f7f, u = b[i] * 0x0101010101010101 & 0x8040201008040201;
        const uint64_t found = ((((u & low) + low) | u) & ~low) >> 3;
        memcpy(q + 8 * i, &found, sizeof found);
    }
}

static void q5_0(const uint8_t *b, float *y)
{
    const float d = half(b);
    uint8_t high[32];
    fifth_bits(b + 2, high);
    for (int j = 0; j < 16; j++)
        y[j] = d * (float)((b[6 + j] & 15) + high[j] - 16);
    for (int j = 0; j < 16; j++)
        y[16 + j] = d * (float)((b[6 + j] >> 4) + high[16 + j] - 16);
}

static void q5_1(const uint8_t *b, float *y)
{
    const float d = half(b), m = half(b + 2);
    uint8_t high[32];
    fifth_bits(b + 4, high);
    for (int j = 0; j < 16; j++)
        y[j] = d * (float)((b[8 + j] & 15) + high[j]) + m;
    for (int j = 0; j < 16; j++)
        y[16 + j] = d * (float)((b[8 + j] >> 4) + high[16 + j]) + m;
}

/* A byte e, then 4-bit floats; with e, sixteen values. */
static void mxfp4(const uint8_t *b, float *y)
{
    static const double magnitude[8] = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};
    float value[16];
    const uint64_t u = (uint64_t)(b[0] - 127 + 1023) << 52;
    double power;
    memcpy(&power, &u, sizeof power);
    for (int i = 0; i < 8; i++) {
        value[i] = (float)(power * magnitude[i]);
        value[8 + i] = i ? -value[i] : 0.0f;
    }
    for (int j = 0; j < 16; j++) {
        y[j] = value[b[1 + j] & 15];
        y[16 + j] = value[b[1 + j] >> 4];
    }
}

/* ---- K-quants: 256 values, in sub-blocks of 16 or 32 with scales of their own ----------------------- */

/* y = scale q - minimum, or without minimum, over a sub-block. */
static inline void scaled(const uint8_t *q, int n, float scale, float minimum, float *y)
{
    for (int j = 0; j < n; j++)
        y[j] = scale * (float)q[j] - minimum;
}

static inline void centred(const int8_t *q, int n, float scale, float *y)
{
    for (int j = 0; j < n; j++)
        y[j] = scale * (float)q[j];
}

/* 16 bytes: scale and minimum, 4 bits each; 64 bytes: q, 2 bits; d; dmin. Bits i of 32 bytes are 32 values. */
static void q2_k(const uint8_t *b, float *y)
{
    const float d = half(b + 80), dmin = half(b + 82);
    for (int i = 0; i < 8; i++) {
        uint8_t q[32];
        for (int j = 0; j < 32; j++)
            q[j] = b[16 + i / 4 * 32 + j] >> 2 * (i % 4) & 3;
        for (int s = 0; s < 2; s++) {
            const uint8_t packed = b[2 * i + s];
            scaled(q + 16 * s, 16, d * (float)(packed & 15), dmin * (float)(packed >> 4), y + 32 * i + 16 * s);
        }
    }
}

/* 32 bytes: a bit that is 0 where 4 is taken off; 64 bytes: 2 bits; 12 bytes: scales and 32; d. */
static void q3_k(const uint8_t *b, float *y)
{
    const float d = half(b + 108);
    const uint8_t *packed = b + 96;
    for (int i = 0; i < 8; i++) {
        int8_t q[32];
        for (int j = 0; j < 32; j++)
            q[j] = (int8_t)((b[32 + i / 4 * 32 + j] >> 2 * (i % 4) & 3) + 4 * (b[j] >> i & 1) - 4);
        for (int s = 2 * i; s < 2 * i + 2; s++) {
            const int low = s < 8 ? packed[s] & 15 : packed[s - 8] >> 4, high = packed[8 + s % 4] >> 2 * (s / 4) & 3;
            centred(q + 16 * (s % 2), 16, d * (float)(low + 16 * high - 32), y + 16 * s);
        }
    }
}

/* Scale and minimum i of 8, 6 bits each, of 12 bytes. */
static void six_bits(const uint8_t *packed, int i, int *sc, int *mn)
{
    if (i < 4) {
        *sc = packed[i] & 63;
        *mn = packed[4 + i] & 63;
    } else {
        *sc = (packed[4 + i] & 15) | packed[i - 4] >> 6 << 4;
        *mn = packed[4 + i] >> 4 | packed[i] >> 6 << 4;
    }
}

/* d; dmin; 12 bytes: scales and minima; 128 bytes: q, 4 bits. */
static void q4_k(const uint8_t *b, float *y)
{
    const float d = half(b), dmin = half(b + 2);
    for (int i = 0; i < 8; i++) {
        uint8_t q[32];
        int sc, mn;
        six_bits(b + 4, i, &sc, &mn);
        for (int j = 0; j < 32; j++)
            q[j] = b[16 + i / 2 * 32 + j] >> 4 * (i % 2) & 15;
        scaled(q, 32, d * (float)sc, dmin * (float)mn, y + 32 * i);
    }
}

/* The same with 32 bytes of fifth bits before q. */
static void q5_k(const uint8_t *b, float *y)
{
    const float d = half(b), dmin = half(b + 2);
    for (int i = 0; i < 8; i++) {
        uint8_t q[32];
        int sc, mn;
        six_bits(b + 4, i, &sc, &mn);
        for (int j = 0; j < 32; j++)
            q[j] = (uint8_t)((b[48 + i / 2 * 32 + j] >> 4 * (i % 2) & 15) | (b[16 + j] >> i & 1) << 4);
        scaled(q, 32, d * (float)sc, dmin * (float)mn, y + 32 * i);
    }
}

/* 128 bytes: 4 bits; 64 bytes: 2 more; 16 signed scales of 16 values each; d. */
static void q6_k(const uint8_t *b, float *y)
{
    const float d = half(b + 208);
    int8_t sc[16];
    memcpy(sc, b + 192, sizeof sc);
    for (int i = 0; i < 8; i++) {
        int8_t q[32];
        const uint8_t *low = b + i / 4 * 64 + i % 2 * 32, *high = b + 128 + i / 4 * 32;
        for (int j = 0; j < 32; j++)
            q[j] = (int8_t)(((low[j] >> (i % 4 / 2 * 4) & 15) | (high[j] >> 2 * (i % 4) & 3) << 4) - 32);
        for (int s = 0; s < 2; s++)
            centred(q + 16 * s, 16, d * (float)sc[2 * i + s], y + 32 * i + 16 * s);
    }
}

/* ---- rows of blocks ---------------------------------------------------------------------------------- */

static void (*const of_block[LL_FORMATS])(const uint8_t *block, float *y) = {
    [LL_Q8_0] = q8_0, [LL_Q4_0] = q4_0, [LL_Q4_1] = q4_1, [LL_Q5_0] = q5_0, [LL_Q5_1] = q5_1, [LL_Q2_K] = q2_k,
    [LL_Q3_K] = q3_k, [LL_Q4_K] = q4_k, [LL_Q5_K] = q5_k, [LL_Q6_K] = q6_k, [LL_MXFP4] = mxfp4,
};

void ll_dequantize_row(const void *blocks, int format, size_t values, float *y)
{
    if (format < LL_DTYPES) {
        ll_table()->cast(blocks, format, y, LL_F32, values);
        return;
    }
    const ll_format *f = &ll_formats[format];
    const uint8_t *block = blocks;
    for (size_t i = 0; i < values; i += f->values, block += f->bytes)
        of_block[format](block, y + i);
}

void ll_dequantize(const void *blocks, int format, size_t values, float *y)
{
    const ll_fpenv saved = ll_fpenv_enter();
    ll_dequantize_row(blocks, format, values, y);
    ll_fpenv_leave(saved);
}
