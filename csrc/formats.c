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

/* A float16, widened: its bits as those of a float32 are 2^-112 of it, also where it is subnormal. */
static float half(uint16_t h)
{
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

static uint16_t u16(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return h;
}

/* ---- blocks of 32 values: the lower halves of 16 bytes, then the upper ones ------------------------ */

static void nibbles(const uint8_t *restrict b, uint8_t *restrict q)
{
    for (int j = 0; j < 16; j++)
        q[j] = b[j] & 15;
    for (int j = 0; j < 16; j++)
        q[16 + j] = b[j] >> 4;
}

/* The fifth bits: bit j of 32 is value j's, and adds 16 to it. Eight at a time: byte j of u keeps bit j, its highest bit says
 * whether there is one. */
static void fifth_bits(const uint8_t *b, uint8_t *q)
{
    for (int i = 0; i < 4; i++) {
        const uint64_t low = 0x7f7f7f7f7f7f7f7f, u = b[i] * 0x0101010101010101u & 0x8040201008040201;
        uint64_t eight;
        memcpy(&eight, q + 8 * i, sizeof eight);
        eight |= ((((u & low) + low) | u) & ~low) >> 3;
        memcpy(q + 8 * i, &eight, sizeof eight);
    }
}

static void read_q8_0(const uint8_t *restrict b, ll_block *restrict to)
{
    to->d = u16(b);
    for (int j = 0; j < 32; j++)
        to->q[j] = b[2 + j] ^ 0x80; /* 128 more than the signed one */
}

static void read_q4_0(const uint8_t *b, ll_block *to)
{
    to->d = u16(b);
    nibbles(b + 2, to->q);
}

static void read_q4_1(const uint8_t *b, ll_block *to)
{
    to->d = u16(b), to->m = u16(b + 2);
    nibbles(b + 4, to->q);
}

static void read_q5_0(const uint8_t *b, ll_block *to)
{
    to->d = u16(b);
    nibbles(b + 6, to->q);
    fifth_bits(b + 2, to->q);
}

static void read_q5_1(const uint8_t *b, ll_block *to)
{
    to->d = u16(b), to->m = u16(b + 2);
    nibbles(b + 8, to->q);
    fifth_bits(b + 4, to->q);
}

static void read_mxfp4(const uint8_t *b, ll_block *to)
{
    to->d = b[0];
    nibbles(b + 1, to->q);
}

/* ---- K-quants: 256 values, in sub-blocks of 16 or 32 with scales of their own ----------------------- */

/* Bits [first, first + bits) of 32 bytes, moved up by `up`, as values; or beside the bits that the values have. Eight bytes at
 * a time, as no vector of SSE2 shifts bytes. */
static inline void take_bits(const uint8_t *from, unsigned first, unsigned bits, unsigned up, int beside, uint8_t *q)
{
    const uint64_t fields = (((uint64_t)1 << bits) - 1) * 0x0101010101010101;
    for (int j = 0; j < 32; j += 8) {
        uint64_t x, y = 0;
        memcpy(&x, from + j, sizeof x);
        if (beside)
            memcpy(&y, q + j, sizeof y);
        y |= (x >> first & fields) << up;
        memcpy(q + j, &y, sizeof y);
    }
}

/* 16 bytes: scale and minimum, 4 bits each; 64 bytes: q, 2 bits; d; dmin. Bits i of 32 bytes are 32 values. */
static void read_q2_k(const uint8_t *b, ll_block *to)
{
    to->d = u16(b + 80), to->m = u16(b + 82);
    for (int s = 0; s < 16; s++)
        to->sc[s] = b[s] & 15, to->mn[s] = b[s] >> 4;
    for (unsigned i = 0; i < 8; i++)
        take_bits(b + 16 + i / 4 * 32, 2 * (i % 4), 2, 0, 0, to->q + 32 * i);
}

/* 32 bytes: a bit that is 0 where 4 is taken off; 64 bytes: 2 bits; 12 bytes: scales and 32; d. */
static void read_q3_k(const uint8_t *b, ll_block *to)
{
    const uint8_t *packed = b + 96;
    to->d = u16(b + 108);
    for (int s = 0; s < 16; s++)
        to->sc[s] = (uint8_t)((s < 8 ? packed[s] & 15 : packed[s - 8] >> 4) | (packed[8 + s % 4] >> 2 * (s / 4) & 3) << 4);
    for (unsigned i = 0; i < 8; i++) {
        take_bits(b + 32 + i / 4 * 32, 2 * (i % 4), 2, 0, 0, to->q + 32 * i);
        take_bits(b, i, 1, 2, 1, to->q + 32 * i);
    }
}

/* Scales and minima, 6 bits each, of 12 bytes. */
static void six_bits(const uint8_t *packed, ll_block *to)
{
    for (int i = 0; i < 4; i++) {
        to->sc[i] = packed[i] & 63, to->mn[i] = packed[4 + i] & 63;
        to->sc[4 + i] = (uint8_t)((packed[8 + i] & 15) | packed[i] >> 6 << 4);
        to->mn[4 + i] = (uint8_t)(packed[8 + i] >> 4 | packed[4 + i] >> 6 << 4);
    }
}

/* d; dmin; 12 bytes: scales and minima; 128 bytes: q, 4 bits. */
static void read_q4_k(const uint8_t *b, ll_block *to)
{
    to->d = u16(b), to->m = u16(b + 2);
    six_bits(b + 4, to);
    for (unsigned i = 0; i < 8; i++)
        take_bits(b + 16 + i / 2 * 32, 4 * (i % 2), 4, 0, 0, to->q + 32 * i);
}

/* The same with 32 bytes of fifth bits before q. */
static void read_q5_k(const uint8_t *b, ll_block *to)
{
    to->d = u16(b), to->m = u16(b + 2);
    six_bits(b + 4, to);
    for (unsigned i = 0; i < 8; i++) {
        take_bits(b + 48 + i / 2 * 32, 4 * (i % 2), 4, 0, 0, to->q + 32 * i);
        take_bits(b + 16, i, 1, 4, 1, to->q + 32 * i);
    }
}

/* 128 bytes: 4 bits; 64 bytes: 2 more; 16 signed scales of 16 values each; d. */
static void read_q6_k(const uint8_t *b, ll_block *to)
{
    to->d = u16(b + 208);
    memcpy(to->sc, b + 192, 16);
    for (unsigned i = 0; i < 8; i++) {
        take_bits(b + i / 4 * 64 + i % 2 * 32, i % 4 / 2 * 4, 4, 0, 0, to->q + 32 * i);
        take_bits(b + 128 + i / 4 * 32, 2 * (i % 4), 2, 4, 1, to->q + 32 * i);
    }
}

void ll_block_read(const void *block, int format, ll_block *b)
{
    static void (*const read[LL_FORMATS])(const uint8_t *block, ll_block *b) = {
        [LL_Q8_0] = read_q8_0, [LL_Q4_0] = read_q4_0, [LL_Q4_1] = read_q4_1, [LL_Q5_0] = read_q5_0,
        [LL_Q5_1] = read_q5_1, [LL_Q2_K] = read_q2_k, [LL_Q3_K] = read_q3_k, [LL_Q4_K] = read_q4_k,
        [LL_Q5_K] = read_q5_k, [LL_Q6_K] = read_q6_k, [LL_MXFP4] = read_mxfp4,
    };
    read[format](block, b);
}

/* ---- values --------------------------------------------------------------------------------------------- */

static void mxfp4_values(const ll_block *b, float *y)
{
    const uint64_t u = (uint64_t)(b->d - 128 + 1023) << 52;
    double power;
    memcpy(&power, &u, sizeof power);
    for (int j = 0; j < 32; j++)
        y[j] = (float)power * ll_mxfp4_twice[b->q[j]];
}

/* D of sub-block s; and M. */
static float block_scale(const ll_block *b, int format, size_t s)
{
    const float d = half(b->d);
    if (ll_formats[format].values == 32)
        return d;
    return d * (float)(format == LL_Q6_K ? (int8_t)b->sc[s] : format == LL_Q3_K ? b->sc[s] - 32 : b->sc[s]);
}

static float block_minimum(const ll_block *b, int format, size_t s)
{
    const float m = half(b->m);
    return ll_formats[format].values == 32 ? m : -(m * (float)b->mn[s]);
}

void ll_block_values(const ll_block *b, int format, float *y)
{
    const ll_format *f = &ll_formats[format];
    if (format == LL_MXFP4) {
        mxfp4_values(b, y);
        return;
    }
    for (size_t j = 0; j < f->values; j += LL_SUB_VALUES) { /* a constant length: vectors */
        const float D = block_scale(b, format, j / f->sub);
        if (f->minimum) {
            const float M = block_minimum(b, format, j / f->sub);
            for (size_t i = j; i < j + LL_SUB_VALUES; i++)
                y[i] = D * (float)b->q[i] + M;
        } else {
            for (size_t i = j; i < j + LL_SUB_VALUES; i++)
                y[i] = D * (float)(b->q[i] - f->offset);
        }
    }
}

void ll_dequantize_row(const void *blocks, int format, size_t values, float *y)
{
    if (format < LL_DTYPES) {
        ll_table()->cast(blocks, format, y, LL_F32, values);
        return;
    }
    const ll_format *f = &ll_formats[format];
    const uint8_t *block = blocks;
    for (size_t i = 0; i < values; i += f->values, block += f->bytes) {
        ll_block b;
        ll_block_read(block, format, &b);
        ll_block_values(&b, format, y + i);
    }
}

void ll_dequantize(const void *blocks, int format, size_t values, float *y)
{
    const ll_fpenv saved = ll_fpenv_enter();
    ll_dequantize_row(blocks, format, values, y);
    ll_fpenv_leave(saved);
}
