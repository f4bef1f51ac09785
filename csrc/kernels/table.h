/* table.h: what one instruction set offers. Included once by each isa/<isa>.c, after its primitives; the
 * last thing there is its table, ll_kernels_<isa>. */
#ifndef LL_TABLE_H
#define LL_TABLE_H

#include "../llorch.h"

/* A kernel on rows [begin, end) of its arguments. */
typedef void (*ll_norm_kernel)(const ll_norm_args *a, size_t begin, size_t end);
/* A function of every value of x [n]; y may be x. */
typedef void (*ll_unary_kernel)(const void *x, void *y, size_t n);

/* Few rows of x on a weight whose rows are contiguous: it is read as it lies, a strip of columns at a time
 * (kernels/linear.h). 16-bit weights that are not packed are rare: with more than two rows they go into panels. */
#define LL_FEW_ROWS 12
static inline int ll_few_rows(const ll_linear_args *a)
{
    const int narrow = a->weight_dtype != LL_F32;
    return !a->packed && a->weight_n == (narrow ? 2 : 4) && a->M <= (narrow ? 2 : LL_FEW_ROWS);
}

typedef struct ll_kernels {
    const char *name;
    int (*supported)(void);
    ll_norm_kernel layer_norm[LL_DTYPES], add_layer_norm[LL_DTYPES], rms_norm[LL_DTYPES];
    ll_unary_kernel unary[LL_UNARY_OPS][LL_DTYPES];
    void (*widen)(const void *x, int dtype, float *y, size_t n);
    /* kernels/linear.h says what these do */
    size_t (*linear_tiles)(size_t M);
    void (*linear_pack_x)(const ll_linear_args *a, float *packed, size_t begin, size_t end);
    void (*linear_pack)(const ll_linear_args *a, int dtype, char *packed, size_t begin, size_t end);
    void (*linear)(const ll_linear_args *a, const float *x, size_t tile_begin, size_t tile_end, size_t panel_begin,
                   size_t panel_end);
    void (*softmax)(const ll_softmax_args *a, size_t begin, size_t end);
    /* kernels/attention.h: rows of a tile and most tiles of a unit; floats of working memory; rows into chunks; units */
    size_t tile_rows, attention_together;
    size_t (*attention_room)(const ll_attention_args *a);
    void (*attention_keys)(const char *rows, ptrdiff_t stride, int dtype, size_t D, size_t first, size_t count, float *to);
    void (*attention_values)(const char *rows, ptrdiff_t stride, int dtype, size_t D, size_t first, size_t count, float *to);
    void (*attention)(const ll_attention_args *a, size_t begin, size_t end, float *room);
    void (*argmax)(const ll_argmax_args *a, size_t begin, size_t end);
} ll_kernels;

/* The active table (dispatch.c). */
const ll_kernels *ll_table(void);

/* LL_SYMBOL(layer_norm_f32) is ll_layer_norm_f32_<isa>. */
#define LL_PASTE2(name, isa) ll_##name##_##isa
#define LL_PASTE(name, isa) LL_PASTE2(name, isa)
#define LL_SYMBOL(name) LL_PASTE(name, LL_ISA)
#define LL_STRING2(x) #x
#define LL_STRING(x) LL_STRING2(x)

#define LL_EACH_DTYPE(op) \
    {LL_SYMBOL(op##_f32), LL_SYMBOL(op##_f16), LL_SYMBOL(op##_bf16)}

#endif
