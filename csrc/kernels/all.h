/* all.h: every kernel family, then the table, ll_kernels_<isa>. Included once, at the end of each isa/<isa>.c, which
 * defines LL_ISA and the primitives. */
#include "attention.h"
#include "blocks_pack.h"
#include "cast.h"
#include "gate.h"
#include "integers.h"
#include "linear.h"
#include "norm.h"
#include "pack.h"
#include "pool.h"
#include "quantize.h"
#include "rope.h"
#include "select.h"
#include "softmax.h"
#include "table.h"
#include "unary.h"

/* An initialiser; `int16` is the product of integers, of what `tiles_of_integers` has made of x. */
#define LL_TABLE(its_name, is_supported, tiles_of_integers, int16) { \
    .name = its_name, \
    .supported = is_supported, \
    .layer_norm = LL_EACH_DTYPE(layer_norm), \
    .add_layer_norm = LL_EACH_DTYPE(add_layer_norm), \
    .rms_norm = LL_EACH_DTYPE(rms_norm), \
    .add_rms_norm = LL_EACH_DTYPE(add_rms_norm), \
    .unary = { \
        [LL_EXP] = LL_EACH_DTYPE(exp), \
        [LL_TANH] = LL_EACH_DTYPE(tanh), \
        [LL_ERF] = LL_EACH_DTYPE(erf), \
        [LL_SIGMOID] = LL_EACH_DTYPE(sigmoid), \
        [LL_SILU] = LL_EACH_DTYPE(silu), \
        [LL_GELU] = LL_EACH_DTYPE(gelu), \
        [LL_GELU_TANH] = LL_EACH_DTYPE(gelu_tanh), \
        [LL_RELU] = LL_EACH_DTYPE(relu), \
    }, \
    .cast = LL_SYMBOL(cast), \
    .gate = LL_SYMBOL(gate), \
    .rope = LL_SYMBOL(rope), \
    .pack_tiles = LL_SYMBOL(pack_tiles), \
    .pack_x = LL_SYMBOL(pack_x), \
    .pack = LL_SYMBOL(pack), \
    .pack_blocks = LL_SYMBOL(pack_blocks), \
    .k_fit_above = LL_SYMBOL(k_fit_above), \
    .k_fit_around = LL_SYMBOL(k_fit_around), \
    .k_round = LL_SYMBOL(k_round), \
    .linear_floats = LL_SYMBOL(linear_floats), \
    .linear = LL_SYMBOL(linear), \
    .pack_integers = tiles_of_integers, \
    .integers_floats = LL_SYMBOL(integers_floats), \
    .linear_int16 = int16, \
    .softmax = LL_SYMBOL(softmax), \
    .tile_rows = LL_TILE_ROWS, \
    .widens_beside = TILE_ROOMY, \
    .attention_together = ATTENTION_TOGETHER, \
    .attention_floats = LL_SYMBOL(attention_floats), \
    .attention_keys = LL_SYMBOL(attention_keys), \
    .attention_values = LL_SYMBOL(attention_values), \
    .kv_write = LL_SYMBOL(kv_write), \
    .attention = LL_SYMBOL(attention), \
    .argmax = LL_SYMBOL(argmax), \
    .mean_pool = LL_SYMBOL(mean_pool), \
    .normalize = LL_SYMBOL(normalize), \
}

const ll_kernels LL_PASTE(kernels, LL_ISA) =
    LL_TABLE(LL_STRING(LL_ISA), LL_PASTE(supported, LL_ISA), LL_SYMBOL(pack_integers), LL_SYMBOL(linear_int16));
