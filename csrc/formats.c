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

#include "block_read.h"
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

void ll_block_read(const void *block, int format, ll_block *b)
{
    switch (format) {
#define LL_CASE(name, format) case format: block_read(block, format, b, b->q); break;
    LL_EACH_BLOCKS(LL_CASE)
#undef LL_CASE
    }
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
