/* block_read.h: a block as files have it, taken apart: of a constant format, in place. Plain C.
 *
 * Tests: tests/kernels/test_formats.py, tests/kernels/test_blocks.py. */
#ifndef LL_BLOCK_READ_H
#define LL_BLOCK_READ_H

#include <string.h>

#include "formats.h"

static inline uint16_t u16(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return h;
}

/* ---- blocks of 32 values: the lower halves of 16 bytes, then the upper ones ------------------------ */

/* Eight at a time, as integers: the bytes one by one, inlined, become anything from two instructions to two hundred. */
static inline void nibbles(const uint8_t *restrict b, uint8_t *restrict q)
{
    for (int i = 0; i < 4; i++) {
        uint64_t eight;
        memcpy(&eight, b + 8 * (i % 2), sizeof eight);
        eight = eight >> 4 * (i / 2) & 0x0f0f0f0f0f0f0f0f;
        memcpy(q + 8 * i, &eight, sizeof eight);
    }
}

/* The same with fifth bits: bit j of 32 is value j's, and adds 16 to it. Eight at a time: byte j of u keeps bit j, its highest
 * bit says whether there is one. */
static inline void nibbles_and_fifth(const uint8_t *restrict b, const uint8_t *restrict fifth, uint8_t *restrict q)
{
    for (int i = 0; i < 4; i++) {
        const uint64_t low = 0x7f7f7f7f7f7f7f7f, u = fifth[i] * 0x0101010101010101u & 0x8040201008040201;
        uint64_t eight;
        memcpy(&eight, b + 8 * (i % 2), sizeof eight);
        eight = (eight >> 4 * (i / 2) & 0x0f0f0f0f0f0f0f0f) | ((((u & low) + low) | u) & ~low) >> 3;
        memcpy(q + 8 * i, &eight, sizeof eight);
    }
}

static inline void read_q8_0(const uint8_t *restrict b, ll_block *restrict to, uint8_t *restrict q)
{
    to->d = u16(b);
    for (int j = 0; j < 32; j++)
        q[j] = b[2 + j] ^ 0x80; /* 128 more than the signed one */
}

static inline void read_q4_0(const uint8_t *restrict b, ll_block *restrict to, uint8_t *restrict q)
{
    to->d = u16(b);
    nibbles(b + 2, q);
}

static inline void read_q4_1(const uint8_t *restrict b, ll_block *restrict to, uint8_t *restrict q)
{
    to->d = u16(b), to->m = u16(b + 2);
    nibbles(b + 4, q);
}

static inline void read_q5_0(const uint8_t *restrict b, ll_block *restrict to, uint8_t *restrict q)
{
    to->d = u16(b);
    nibbles_and_fifth(b + 6, b + 2, q);
}

static inline void read_q5_1(const uint8_t *restrict b, ll_block *restrict to, uint8_t *restrict q)
{
    to->d = u16(b), to->m = u16(b + 2);
    nibbles_and_fifth(b + 8, b + 4, q);
}

static inline void read_mxfp4(const uint8_t *restrict b, ll_block *restrict to, uint8_t *restrict q)
{
    to->d = b[0];
    nibbles(b + 1, q);
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
static inline void read_q2_k(const uint8_t *restrict b, ll_block *restrict to, uint8_t *restrict q)
{
    to->d = u16(b + 80), to->m = u16(b + 82);
    for (int s = 0; s < 16; s++)
        to->sc[s] = b[s] & 15, to->mn[s] = b[s] >> 4;
    for (unsigned i = 0; i < 8; i++)
        take_bits(b + 16 + i / 4 * 32, 2 * (i % 4), 2, 0, 0, q + 32 * i);
}

/* 32 bytes: a bit that is 0 where 4 is taken off; 64 bytes: 2 bits; 12 bytes: scales and 32; d. */
static inline void read_q3_k(const uint8_t *restrict b, ll_block *restrict to, uint8_t *restrict q)
{
    const uint8_t *packed = b + 96;
    to->d = u16(b + 108);
    for (int s = 0; s < 16; s++)
        to->sc[s] = (uint8_t)((s < 8 ? packed[s] & 15 : packed[s - 8] >> 4) | (packed[8 + s % 4] >> 2 * (s / 4) & 3) << 4);
    for (unsigned i = 0; i < 8; i++) {
        take_bits(b + 32 + i / 4 * 32, 2 * (i % 4), 2, 0, 0, q + 32 * i);
        take_bits(b, i, 1, 2, 1, q + 32 * i);
    }
}

/* Scales and minima, 6 bits each, of 12 bytes. */
static inline void six_bits(const uint8_t *packed, ll_block *to)
{
    for (int i = 0; i < 4; i++) {
        to->sc[i] = packed[i] & 63, to->mn[i] = packed[4 + i] & 63;
        to->sc[4 + i] = (uint8_t)((packed[8 + i] & 15) | packed[i] >> 6 << 4);
        to->mn[4 + i] = (uint8_t)(packed[8 + i] >> 4 | packed[4 + i] >> 6 << 4);
    }
}

/* d; dmin; 12 bytes: scales and minima; 128 bytes: q, 4 bits. */
static inline void read_q4_k(const uint8_t *restrict b, ll_block *restrict to, uint8_t *restrict q)
{
    to->d = u16(b), to->m = u16(b + 2);
    six_bits(b + 4, to);
    for (unsigned i = 0; i < 8; i++)
        take_bits(b + 16 + i / 2 * 32, 4 * (i % 2), 4, 0, 0, q + 32 * i);
}

/* The same with 32 bytes of fifth bits before q. */
static inline void read_q5_k(const uint8_t *restrict b, ll_block *restrict to, uint8_t *restrict q)
{
    to->d = u16(b), to->m = u16(b + 2);
    six_bits(b + 4, to);
    for (unsigned i = 0; i < 8; i++) {
        take_bits(b + 48 + i / 2 * 32, 4 * (i % 2), 4, 0, 0, q + 32 * i);
        take_bits(b + 16, i, 1, 4, 1, q + 32 * i);
    }
}

/* 128 bytes: 4 bits; 64 bytes: 2 more; 16 signed scales of 16 values each; d. */
static inline void read_q6_k(const uint8_t *restrict b, ll_block *restrict to, uint8_t *restrict q)
{
    to->d = u16(b + 208);
    memcpy(to->sc, b + 192, 16);
    for (unsigned i = 0; i < 8; i++) {
        take_bits(b + i / 4 * 64 + i % 2 * 32, i % 4 / 2 * 4, 4, 0, 0, q + 32 * i);
        take_bits(b + 128 + i / 4 * 32, 2 * (i % 4), 2, 4, 1, q + 32 * i);
    }
}

/* All but b->q; the integers go to q, which may be that. */
static inline void block_read(const uint8_t *block, int format, ll_block *b, uint8_t *q)
{
    switch (format) {
#define LL_CASE(name, format) case format: read_##name(block, b, q); break;
    LL_EACH_BLOCKS(LL_CASE)
#undef LL_CASE
    }
}

#endif
