/* formats.h: how weights are stored: element types, and blocks of integers with scales as GGUF files have them.
 *
 * A format says what each value is in float32, and nothing else (docs/numerics.md). */
#ifndef LL_FORMATS_H
#define LL_FORMATS_H

#include "llorch.h"

/* Behind the element types of llorch.h. A weight that isn't packed lies as files have it: its columns are rows of blocks
 * along K, n_stride bytes apart, K a multiple of a block's values; k_stride says nothing. */
enum {
    LL_Q8_0 = LL_DTYPES, LL_Q4_0, LL_Q4_1, LL_Q5_0, LL_Q5_1, LL_Q2_K, LL_Q3_K, LL_Q4_K, LL_Q5_K, LL_Q6_K, LL_MXFP4,
    LL_FORMATS
};

typedef struct ll_format {
    const char *name;     /* as GGUF calls it */
    size_t values, bytes; /* of a block */
    /* A value is D (q - offset), or D q + M, of integers q >= 0 with `low` + `high` bits; D and M belong to `sub` values.
     * (MXFP4: q numbers the 16 values of a table.) */
    unsigned char low, high, sub, offset, minimum;
} ll_format;

/* In the header, so that what a kernel asks of a constant format is a constant. */
static const ll_format ll_formats[LL_FORMATS] __attribute__((unused)) = {
    [LL_F32] = {"F32", 1, 4, 0, 0, 0, 0, 0},
    [LL_F16] = {"F16", 1, 2, 0, 0, 0, 0, 0},
    [LL_BF16] = {"BF16", 1, 2, 0, 0, 0, 0, 0},
    [LL_Q8_0] = {"Q8_0", 32, 34, 8, 0, 32, 128, 0},
    [LL_Q4_0] = {"Q4_0", 32, 18, 4, 0, 32, 8, 0},
    [LL_Q4_1] = {"Q4_1", 32, 20, 4, 0, 32, 0, 1},
    [LL_Q5_0] = {"Q5_0", 32, 22, 4, 1, 32, 16, 0},
    [LL_Q5_1] = {"Q5_1", 32, 24, 4, 1, 32, 0, 1},
    [LL_Q2_K] = {"Q2_K", 256, 84, 2, 0, 16, 0, 1},
    [LL_Q3_K] = {"Q3_K", 256, 110, 2, 1, 16, 4, 0},
    [LL_Q4_K] = {"Q4_K", 256, 144, 4, 0, 32, 0, 1},
    [LL_Q5_K] = {"Q5_K", 256, 176, 4, 1, 32, 0, 1},
    [LL_Q6_K] = {"Q6_K", 256, 210, 4, 2, 16, 32, 0},
    [LL_MXFP4] = {"MXFP4", 32, 17, 4, 0, 32, 0, 0},
};

/* X(a, name, format) of every format whose values are integers times a scale; X(name, format) of these, and of all. */
#define LL_EACH_INTEGERS_OF(X, a) \
    X(a, q8_0, LL_Q8_0) X(a, q4_0, LL_Q4_0) X(a, q4_1, LL_Q4_1) X(a, q5_0, LL_Q5_0) X(a, q5_1, LL_Q5_1) X(a, q2_k, LL_Q2_K) \
    X(a, q3_k, LL_Q3_K) X(a, q4_k, LL_Q4_K) X(a, q5_k, LL_Q5_K) X(a, q6_k, LL_Q6_K)
#define LL_WITH_NOTHING(X, name, format) X(name, format)
#define LL_EACH_INTEGERS(X) LL_EACH_INTEGERS_OF(LL_WITH_NOTHING, X)
#define LL_EACH_BLOCKS(X) LL_EACH_INTEGERS(X) X(mxfp4, LL_MXFP4)

/* What a 4-bit float of MXFP4 is, twice: so its exponent's power is a float32 also where the value is too large. Zero has no
 * sign. */
static const float ll_mxfp4_twice[16] __attribute__((unused)) = {0,  1,  2,  3,  4,  6,  8,  12,
                                                                 0, -1, -2, -3, -4, -6, -8, -12};

/* The most values of a block, and the least of a sub-block. */
#define LL_BLOCK_VALUES 256
#define LL_SUB_VALUES 16

/* A block taken apart. */
typedef struct ll_block {
    uint16_t d, m;                                            /* float16: scale, minimum; MXFP4: d is its exponent's byte */
    uint8_t sc[LL_BLOCK_VALUES / LL_SUB_VALUES];              /* factor of d of each sub-block of a K-quant, as stored */
    uint8_t mn[LL_BLOCK_VALUES / LL_SUB_VALUES];              /* factor of m */
    uint8_t q[LL_BLOCK_VALUES];
} ll_block;

void ll_block_read(const void *block, int format, ll_block *b);
/* y: the block's values. */
void ll_block_values(const ll_block *b, int format, float *y);

/* y [values]: whole blocks of format, widened. On this thread; blocks and y don't overlap. */
void ll_dequantize(const void *blocks, int format, size_t values, float *y);
/* The same, for who is in the contract's floating-point environment. */
void ll_dequantize_row(const void *blocks, int format, size_t values, float *y);

/* The other way (quantize.c): x [values] into whole blocks of format, which is none of the element types. For a row of a
 * weight that is packed into blocks, as for any others. On this thread; x is aligned as floats are, and doesn't overlap
 * the blocks. The same bytes on every machine. Returns 0; or -1 where x has a NaN, an infinity, or values too large for
 * the format's scales: the blocks are then anything. */
int ll_quantize(const float *x, int format, size_t values, void *blocks);

typedef struct ll_quantize_args {
    const void *x;      /* [rows, n] of dtype; n a multiple of a block's values */
    void *y;            /* rows of blocks of format, one behind the other; shares nothing with x */
    ptrdiff_t x_stride; /* bytes from row to row */
    size_t rows, n;
    int dtype, format;
} ll_quantize_args;

/* The same for rows, split over threads. Returns rows, or the first that can't be stored. */
size_t ll_quantize_rows(const ll_quantize_args *a);

/* ---- blocks in panels (ops/pack.c, kernels/blocks.h) --------------------------------------------------
 *
 * A panel of 16 columns is groups along K, of LL_BLOCK values, of K-quants a block's 256; the last may be shorter. A group
 * has a head and then runs of 32 values of k:
 *
 *   head   of a run of Q8_0 .. Q5_1: d [16], and with a minimum m [16], float16; of MXFP4: e [16]; all runs' together in whole
 *          lines. Of a K-quant: d [16], then m [16] or nothing; then words [.][16] of 32 bits, as sub-blocks have
 *            Q2_K        4 bits of sc, sub-blocks 0 .. 7; 8 .. 15; the same of mn
 *            Q3_K        4 lower bits of sc, 0 .. 7; 8 .. 15; 2 upper bits of all
 *            Q4_K, Q5_K  4 lower bits of sc; of mn; 2 upper bits of sc, then of mn
 *            Q6_K        8 bits of sc, 0 .. 3; and so on
 *   run    a lower plane and an upper one. A plane of b bits is words [b][16]: word i has 32 / b values of k of a column,
 *          those of even k in bits 0 to 15, those of odd k at the same places of bits 16 to 31. So a shift and a mask give
 *          pairs of 16-bit integers of neighbouring k. The pairs of a lower plane lie one above the other. Those of an upper
 *          one lie so that one shift brings the bits of all pairs of a word of the lower plane above theirs; each of its words
 *          lies before the lower ones that it belongs to, so that all is read from front to back (measured: from memory one
 *          row on Q6_K takes 0.6 to 0.7 of the time, Q5_0 and Q5_K 0.75 to 0.9).
 *
 * It takes the bits of the file, but for heads that don't fill a line: less than 2 % where K is a multiple of 128. */
#define LL_RUN 32

/* The lowest bit of pair j of a run (values 2 j and 2 j + 1) in its word of the lower plane, and of the upper one. */
static inline unsigned ll_low_place(int format, unsigned j)
{
    const unsigned low = ll_formats[format].low;
    return low * (j % (16 / low));
}

static inline unsigned ll_high_place(int format, unsigned j)
{
    const unsigned low = ll_formats[format].low, high = ll_formats[format].high;
    return ll_low_place(format, j) + high * (j / (16 / low) % (low / high));
}

/* Where word i of a plane is in a run, in lines of 16 words. */
static inline size_t ll_low_line(int format, size_t i)
{
    const size_t low = ll_formats[format].low, high = ll_formats[format].high;
    return high ? i + i / (low / high) + 1 : i;
}

static inline size_t ll_high_line(int format, size_t i)
{
    return i * (1u + ll_formats[format].low / ll_formats[format].high);
}

static inline size_t ll_group_values(int format) { return ll_formats[format].values == 256 ? 256 : LL_BLOCK; }

/* Bytes of the head of a group of so many runs. */
static inline size_t ll_head_bytes(int format, size_t runs)
{
    switch (format) {
    case LL_Q8_0: case LL_Q4_0: case LL_Q5_0: return (runs * 32 + 63) / 64 * 64;
    case LL_MXFP4: return (runs * 16 + 63) / 64 * 64;
    case LL_Q2_K: case LL_Q6_K: return 64 + 4 * 64;
    case LL_Q3_K: case LL_Q4_K: case LL_Q5_K: return 64 + 3 * 64;
    default: return runs * 64;
    }
}

static inline size_t ll_run_bytes(int format)
{
    return (size_t)(ll_formats[format].low + ll_formats[format].high) * LL_PANEL * sizeof(uint32_t);
}

/* Bytes of a group of so many values. */
static inline size_t ll_group_bytes(int format, size_t values)
{
    const size_t runs = values / LL_RUN;
    return ll_head_bytes(format, runs) + runs * ll_run_bytes(format);
}

/* Bytes of a panel of any format. */
static inline size_t ll_panel_bytes(size_t K, int format)
{
    if (format < LL_DTYPES)
        return ll_panel_rows(K, format) * LL_PANEL * ll_dtype_size(format);
    const size_t group = ll_group_values(format), rest = K % group;
    return K / group * ll_group_bytes(format, group) + (rest ? ll_group_bytes(format, rest) : 0);
}

#endif
