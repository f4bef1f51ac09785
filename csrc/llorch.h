/* llorch.h: the whole C interface of the core, as seen by Cython, the drivers and the C checks.
 *
 * One alphabet for shapes, everywhere in csrc/:
 *   rows    number of rows (all leading dimensions taken together)
 *   n       values in a row (the last axis);  j  index in a row;  lane = j mod 64
 *   M, K, N of a matrix product, x [M, K] @ weight [K, N] = y [M, N]: M is the rows of x, all leading dimensions together
 *   D       values of a head: of a query, key and value;  Dp  D rounded up to whole panels
 *   T       positions of a sequence: Tq of the queries, Tk of the keys and values
 * Strides are in bytes and may be negative or zero (inputs). No pointer needs any alignment.
 */
#ifndef LLORCH_H
#define LLORCH_H

#include <stddef.h>
#include <stdint.h>

#if defined(__FAST_MATH__)
#error "llorch specifies every bit: it can't be compiled with fast-math (see docs/numerics.md)"
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "llorch needs float arithmetic without excess precision (on 32-bit x86: -mfpmath=sse -msse2)"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "llorch is written for little-endian machines"
#endif

/* Exported symbols are few: everything else is hidden by -fvisibility=hidden. */
#define LL_EXPORT __attribute__((visibility("default")))

/* Longest row: 2^24 values, so that n is exact as a float32. Callers refuse longer ones. */
#define LL_MAX_ROW ((size_t)1 << 24)

static inline size_t ll_least(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t ll_up(size_t a, size_t b) { return (a + b - 1) / b; } /* a / b, rounded up */

/* ---- element types, formats, functions ------------------------------------------------------ */

/* Of a value, everywhere: dtype. */
enum { LL_F32 = 0, LL_F16 = 1, LL_BF16 = 2, LL_DTYPES = 3 };

static inline size_t ll_dtype_size(int dtype) { return dtype == LL_F32 ? 4 : 2; }

/* Functions of one value: op, activation. */
enum { LL_NONE = 0, LL_EXP, LL_TANH, LL_ERF, LL_SIGMOID, LL_SILU, LL_GELU, LL_GELU_TANH, LL_RELU, LL_UNARY_OPS };

/* ---- weights (ops/pack.c) -------------------------------------------------------------------- */

/* A packed weight is panels of 16 columns: [panel][k][16] of its format, the columns past N zero, so that a kernel
 * reads it from front to back. bfloat16 is in pairs of k, [panel][k / 2][16][2], with a zero behind an odd K: a shift
 * widens the first of each pair, a mask the second. The layout is the same for every instruction set. */
#define LL_PANEL 16

/* Rows that a panel has room for. */
static inline size_t ll_panel_rows(size_t K, int format) { return format == LL_BF16 ? K + K % 2 : K; }

static inline size_t ll_panels(size_t n) { return (n + LL_PANEL - 1) / LL_PANEL; }
/* n rounded up to whole panels */
static inline size_t ll_whole_panels(size_t n) { return ll_panels(n) * LL_PANEL; }

/* How a product is made: of float32, or of x in 16-bit integers and the integers of a packed weight in blocks. */
enum { LL_FLOAT32, LL_INT16 };

/* A matrix [K, N] of parameters, in a format apart from the type of what it is multiplied with. */
typedef struct ll_weight {
    const void *data;
    int format;                   /* how it is stored: LL_F32, LL_F16, LL_BF16; packed also blocks (formats.h) */
    int packed;                   /* in panels; else at the two strides */
    int compute;                  /* of products with it */
    ptrdiff_t k_stride, n_stride; /* bytes from k to k + 1, from column to column; not packed only */
    size_t K, N;                  /* <= LL_MAX_ROW */
} ll_weight;

/* Bytes of a packed [K, N] of format. */
size_t ll_packed_bytes(size_t K, size_t N, int format);
/* A weight that isn't packed into panels of format at `to`: widened exactly or rounded once; blocks may stay as they are. */
void ll_pack(const ll_weight *from, int format, void *to);
/* The same of rows [k, k + from->K) of panels of K rows, k even; blocks that stay are packed with all rows. On this thread. */
void ll_pack_part(const ll_weight *from, int format, size_t k, size_t K, void *to);
/* Column n (K values), or row k (N values), of a packed weight, widened. */
void ll_packed_column(const ll_weight *w, size_t n, float *y);
void ll_packed_row(const ll_weight *w, size_t k, float *y);

/* ---- normalisation (ops/norm.c) ------------------------------------------------------------ */

typedef struct ll_norm_args {
    const void *x;        /* [rows, n] of dtype */
    const void *residual; /* [rows, n] of dtype; the two that add only, else NULL */
    void *sum;            /* [rows, n] of dtype; the two that add only: receives x + residual */
    void *y;              /* [rows, n] of dtype; may be x (or residual) itself, row on row */
    ptrdiff_t x_stride, residual_stride, sum_stride, y_stride; /* bytes from row to row */
    const float *weight;  /* [n] or NULL */
    const float *bias;    /* [n] or NULL */
    size_t rows, n;       /* n <= LL_MAX_ROW */
    double eps;           /* >= 0; rounded to float32 once, then widened */
    int dtype;
} ll_norm_args;

/* y = layer_norm(x) */
void ll_layer_norm(const ll_norm_args *a);
/* sum = x + residual (rounded to dtype); y = layer_norm(sum) */
void ll_add_layer_norm(const ll_norm_args *a);
/* y = rms_norm(x); bias is ignored */
void ll_rms_norm(const ll_norm_args *a);
/* sum = x + residual (rounded to dtype); y = rms_norm(sum) */
void ll_add_rms_norm(const ll_norm_args *a);

/* ---- the matrix product (ops/linear.c) ----------------------------------------------------- */

/* Length of a chain of fma in every inner product (dot128). */
#define LL_BLOCK 128

typedef struct ll_linear_args {
    const void *x;         /* [M, K] of dtype */
    ll_weight weight;      /* [K, N] */
    const float *bias;     /* [N] or NULL */
    const void *residual;  /* [M, N] of dtype, or NULL: added to the result; may be y itself, row on row */
    void *y;               /* [M, N] of dtype: activation(x @ weight + bias) + residual */
    ptrdiff_t x_stride, y_stride, residual_stride; /* bytes from row to row; the last axis is contiguous */
    size_t M;
    int dtype;
    int activation;        /* LL_NONE, or any function of one value */
    int gated;             /* y [M, N / 2] = activation(g) * u, [g u] = x @ weight + bias: the weight is packed, g whole panels,
                              dtype float32, and there is no residual */
} ll_linear_args;

/* 0, or -1: no memory to work in (ll_linear_scratch bytes). */
int ll_linear(const ll_linear_args *a);
size_t ll_linear_scratch(const ll_linear_args *a);
/* Whether a block of rows for each of so many threads is worth it, of M rows in all. */
int ll_linear_by_blocks(const ll_weight *w, size_t M, size_t threads);
/* Tells threads that wait which weight, if it is packed, the product after the next has, and how many rows; and that product's
 * length of rows to the next one. */
void ll_linear_ahead(const ll_weight *w, size_t M, int gated);

/* ---- softmax (ops/softmax.c) ---------------------------------------------------------------- */

typedef struct ll_softmax_args {
    const void *x; /* [rows, n] of dtype */
    void *y;       /* [rows, n] of dtype; may be x itself, row on row */
    ptrdiff_t x_stride, y_stride; /* bytes from row to row */
    size_t rows, n;               /* n <= LL_MAX_ROW */
    int dtype;
} ll_softmax_args;

void ll_softmax(const ll_softmax_args *a);

/* ---- pooling (ops/pool.c) --------------------------------------------------------------------- */

typedef struct ll_pool_args {
    const void *x;         /* rows of n values of dtype: sequences, one below the other */
    void *y;               /* [count, n] of dtype: the mean of each; shares nothing with x */
    ptrdiff_t x_stride, y_stride; /* bytes from row to row */
    const int64_t *starts; /* [count + 1]: sequence i is rows [starts[i], starts[i + 1]), more than skip, <= LL_MAX_ROW */
    size_t count, n, skip; /* the first `skip` rows of each sequence stay out of its mean */
    int dtype;
} ll_pool_args;

void ll_mean_pool(const ll_pool_args *a);

typedef ll_softmax_args ll_normalize_args; /* rows to rows, too */

void ll_normalize(const ll_normalize_args *a);

/* ---- attention (ops/attention.c) ------------------------------------------------------------- *
 *   D      values of a query, key and value;  Dp  D rounded up to whole panels
 *   Tq, Tk positions of the queries; of the keys and values. Query i is at position Tk - behind - Tq + i          */

/* A chunk holds LL_BLOCK positions of one head, packed: keys [panel of positions][D][16], then values
 * [panel of D][LL_BLOCK][16], columns past D zero. A kernel reads both from front to back. The layout is the same for
 * every instruction set. */
static inline size_t ll_chunk_floats(size_t D) { return LL_BLOCK * (D + ll_whole_panels(D)); }

/* Keys and values of one head of one sequence: rows, or chunks, of which number i is at blocks[i] + offset. */
typedef struct ll_kv {
    const void *k, *v;            /* [Tk, D] of dtype; with blocks [fresh, D] */
    ptrdiff_t k_stride, v_stride; /* bytes from row to row */
    float *const *blocks;         /* of a cache; NULL for rows */
    size_t offset, Tk;            /* Tk >= 1, with causal, a window or a bias >= Tq + behind of its heads; <= LL_MAX_ROW */
    size_t fresh;                 /* so many of the last positions are written to the blocks first; then all of its heads
                                     stand side by side, with the same queries */
} ll_kv;

/* The queries of one head. */
typedef struct ll_attention_head {
    const void *q;                /* [Tq, D] of dtype */
    void *y;                      /* [Tq, D] of dtype; may be q itself, row on row */
    ptrdiff_t q_stride, y_stride; /* bytes from row to row */
    size_t Tq, kv;                /* its keys and values are kv[kv] */
    size_t behind;                /* positions behind its last query */
    const float *bias;            /* added to the score of position t for a query at p: bias[t - p], t - p clipped to
                                     [-reach, reach]; NULL for none */
} ll_attention_head;

typedef struct ll_attention_args {
    const ll_attention_head *heads; /* [count]: of any sequences. Those that share keys should stand side by side with the
                                       same queries: such a run reads, and where they are rows packs, its keys once */
    const ll_kv *kv;                /* [kv_count]: of any lengths, rows and chunks */
    size_t count, kv_count, D;      /* D <= LL_MAX_ROW */
    double scale;                   /* rounded to float32 once; with default_scale 1 / sqrt(D) instead */
    double softcap;                 /* rounded to float32 once: s = softcap * tanh(s / softcap); 0 for none */
    int default_scale, dtype;
    int causal;                     /* a query sees the positions up to its own, else all of its sequence */
    size_t window;                  /* with causal: only the last so many of them; else those at most so far from the
                                       query, on both sides; 0 for all */
    size_t reach;                   /* of the heads' biases: <= LL_MAX_ROW */
} ll_attention_args;

/* 0, or -1: no memory to work in, and nothing has been written. */
int ll_attention(const ll_attention_args *a);
/* Whether one thread makes a single query a head behind Tk - 1 positions. */
int ll_attention_alone(size_t heads, size_t kv_heads, size_t D, size_t Tk);

/* ---- the cache of keys and values (ops/cache.c) ----------------------------------------------- */

/* One layer of one sequence: blocks of LL_BLOCK positions, a chunk for each head. Caches share blocks (forks); one that
 * is to be written becomes the writer's own first. One thread at a time may change a cache; who reads meanwhile needs a
 * fork, which may be read and freed by any thread. */
typedef struct ll_cache {
    size_t heads, D, capacity; /* most positions */
    size_t length;             /* positions */
    size_t count;              /* blocks: those of its positions, and what is reserved */
    size_t shared;             /* of those the first ones that others may have, too: no more than count */
    float **blocks;            /* [capacity, in blocks] */
} ll_cache;

static inline size_t ll_cache_block_bytes(const ll_cache *c) { return c->heads * ll_chunk_floats(c->D) * sizeof(float); }

/* The keys and values of a head, as attention takes them: its first Tk positions. */
static inline ll_kv ll_cache_kv(const ll_cache *c, size_t head, size_t Tk)
{
    return (ll_kv){.blocks = c->blocks, .offset = head * ll_chunk_floats(c->D), .Tk = Tk};
}

typedef struct ll_cache_rows {
    const void *k, *v;                             /* [heads, T, D] of k_dtype and v_dtype */
    ptrdiff_t k_head, k_stride, v_head, v_stride;  /* bytes from head to head, from row to row */
    int k_dtype, v_dtype;
    size_t first, T;                               /* they become positions [first, first + T) */
} ll_cache_rows;

/* An empty cache; -1 without memory. A cache of zeros is one that was freed. */
int ll_cache_init(ll_cache *c, size_t heads, size_t D, size_t capacity);
void ll_cache_free(ll_cache *c);
/* Makes ready for T more positions, length + T <= capacity: blocks, of which the one that is begun becomes its own. 0, or
 * -1 without memory, and then nothing has changed. */
int ll_cache_reserve(ll_cache *c, size_t T);
/* To positions that were reserved, length <= first. length stays: who calls moves it when all is written. Positions that
 * are written but not in the length are as if they weren't there. */
void ll_cache_write(ll_cache *c, const ll_cache_rows *rows);
/* Forgets positions, length <= c->length, and lets go of the blocks behind it, reserved ones too. */
void ll_cache_truncate(ll_cache *c, size_t length);
/* Makes `to` a cache of its own with the same positions; -1 without memory, and `to` is freed. It changes what `from` knows of
 * its blocks, so one thread at a time may do it. */
int ll_cache_fork(ll_cache *from, ll_cache *to);
/* All positions as float32 [heads, length, D]: the keys, or the values. */
void ll_cache_read(const ll_cache *c, int values, float *to);

/* ---- rows by number, the largest of a row (ops/select.c) -------------------------------------- */

typedef struct ll_embedding_args {
    ll_weight table; /* [K, N]: column id is what an id stands for, as of an LM head; N ids, packed or not */
    const int64_t *ids;
    float *y;        /* [rows, K], contiguous */
    size_t rows;
} ll_embedding_args;

/* rows, when all is done; else the place of the first id that is not in [0, N), and nothing is written. */
size_t ll_embedding(const ll_embedding_args *a);

typedef struct ll_argmax_args {
    const void *x;   /* [rows, n] of dtype */
    ptrdiff_t x_stride;
    size_t rows, n;  /* n >= 1 */
    int dtype;
    int64_t *y;      /* [rows]: the first place of the largest value, or -1 - the place of the first NaN */
} ll_argmax_args;

void ll_argmax(const ll_argmax_args *a);

/* ---- the plan of a model (ops/plan.c) ----------------------------------------------------------- *
 *   rows   positions of all sequences of a run together, one below the other                          */

enum {
    LL_CALL_EMBEDDING,  /* y = column id of weight, times number */
    LL_CALL_PLACES,     /* y = y + row of weight, plain float32, that belongs to the position; with `types` to the type of
                           the token */
    LL_CALL_LAYER_NORM, /* y = layer_norm(x), of each of `heads` parts of n values by itself; number is eps */
    LL_CALL_RMS_NORM,
    LL_CALL_LINEAR,     /* y = function(x @ weight + bias) + x2 */
    LL_CALL_ROPE,       /* y = x with the first R values of `heads` parts of D rotated by table `table` */
    LL_CALL_ATTENTION,  /* keys k and values v to the caches; y = attention of x; number is scale. rows: of one row of each
                           sequence alone, to row i of y for sequence i */
    LL_CALL_ROWS,       /* that row of each sequence of x's whole buffer moves to row i */
    LL_CALL_FUNCTION,   /* y = function(x) */
    LL_CALL_GATE,       /* y = function(x) * x2 */
    LL_CALL_ADD,        /* y = x + x2 */
    LL_CALL_MULTIPLY,   /* y = x * x2 */
    LL_CALL_SCALE,      /* y = x * number */
    LL_CALL_DIVIDE,     /* y = x / number */
    LL_CALL_SOFTCAP,    /* y = number * tanh(x / number) */
    LL_CALL_MEAN,       /* row i of y = the mean of sequence i's rows of x, the first `skip` of a run left out */
    LL_CALLS
};

enum { LL_ALL_ROWS, LL_LAST_ROW, LL_FIRST_ROW }; /* of a sequence */

/* Columns of a buffer from one on; buffer < 0 for none. */
typedef struct ll_view {
    int buffer;
    size_t column;
} ll_view;

typedef struct ll_call {
    int op, function;          /* LL_CALL_ and so on; LL_EXP and so on, or LL_NONE */
    ll_view x, x2, k, v, y;
    size_t n;                  /* values in a row of y */
    ll_weight weight;
    const float *scale, *bias; /* a norm's weight; its bias, or a linear layer's: [n] or NULL. Of attention, the heads'
                                  biases by distance: [heads][2 * reach + 1] or NULL */
    double number;
    size_t heads, kv_heads, D, R;
    int layer, table;
    double softcap;            /* of attention, as ll_attention_args has them */
    int default_scale, causal;
    int rows;                  /* LL_ALL_ROWS and so on */
    int types;
    int gated;                 /* of a linear layer, as ll_linear_args has it */
    size_t window, reach;
} ll_call;

typedef struct ll_plan {
    const ll_call *calls;
    size_t count;
    const size_t *widths;      /* [buffers]: values in a row */
    size_t output;             /* the buffer that is the result */
    size_t heads, kv_heads;    /* the most of any call, 1 at least */
} ll_plan;

typedef struct ll_sequence {
    size_t T, start;           /* its rows are the positions [start, start + T) */
    ll_cache *caches;          /* one a layer, with room for them; NULL, of all sequences of a run, where start is 0 and
                                  nothing is kept */
} ll_sequence;

typedef struct ll_run {
    const ll_plan *plan;
    size_t rows;               /* becomes sequence_count when one row of each goes on */
    const int64_t *ids, *positions; /* [rows]; ids are in the table */
    const int64_t *types;      /* [rows], in theirs; NULL where no call asks for them */
    const ll_sequence *sequences;
    size_t sequence_count;
    size_t skip;               /* LL_CALL_MEAN's; every sequence has more rows */
    float *const *buffers;     /* [rows][width] each; the result [output_rows] */
    size_t output_rows;        /* rows, or sequence_count where one of each is the result */
    size_t first, first_output; /* rows of the buffers and of the result that are other runs' */
    const float *const *cos, *const *sin; /* tables of rotations, [position][R / 2] */
    ll_attention_head *heads;  /* working memory: [sequence_count * heads], the most of any call */
    ll_kv *kv;                 /* [sequence_count * kv_heads] */
    int64_t *starts;           /* [2 * sequence_count + 1]: a part of the run has one more than sequences */
} ll_run;

/* Calls [begin, end). 0, or -1: no memory to work in. The lengths of the caches stay as they are. All calls, where there are
 * sequences enough for each thread: each makes all of them for some of the sequences. */
int ll_plan_run(ll_run *run, size_t begin, size_t end);

/* ---- memory (memory.c) ------------------------------------------------------------------------ */

/* Memory to work in, kept from call to call, so that each does not fault its pages in again; all aligned to 64. */
typedef struct ll_scratch {
    char *shared; /* of all threads */
    char *own;    /* of each thread one after the other, `stride` bytes apart */
    size_t stride;
    unsigned *turn; /* stays with the memory, 0 in new memory: whose turn it is of two places */
} ll_scratch;

/* At least so many bytes. 0, or -1: there is no memory. Any thread may take and give back. */
int ll_scratch_take(ll_scratch *s, size_t shared, size_t threads, size_t own);
void ll_scratch_give(const ll_scratch *s);

/* Memory for caches and work, aligned to 64 at least; NULL when there is none. */
void *ll_memory_new(size_t bytes);
void ll_memory_free(void *memory);

/* The same for packed weights, which lie side by side in large pages where the system has them. All NULL and 0: there is
 * none. */
typedef struct ll_weight_memory {
    void *data;
    struct ll_region *region; /* that it is in, */
    size_t bytes;             /* and how much of it */
} ll_weight_memory;

ll_weight_memory ll_weight_new(size_t bytes);
void ll_weight_free(const ll_weight_memory *memory);
void ll_weights_end(void); /* a model's are all there, and not filled in yet: the next begin large pages of their own */

/* ---- functions of one variable (ops/unary.c, exact.c) --------------------------------------- */

typedef struct ll_unary_args {
    const void *x;                /* [rows, n] of dtype */
    void *y;                      /* [rows, n] of dtype; may be x itself, row on row */
    ptrdiff_t x_stride, y_stride; /* bytes from row to row */
    size_t rows, n;               /* any number: each value is for itself */
    int dtype, op;                /* op: LL_EXP and what follows */
} ll_unary_args;

/* y = op(x), correctly rounded to float32, then to dtype */
void ll_unary(const ll_unary_args *a);

/* The same for one value, slowly, by itself: what the kernels take where float64 can't decide the rounding. */
float ll_exact_exp(float x);
float ll_exact_tanh(float x);
float ll_exact_erf(float x);
float ll_exact_sigmoid(float x);
float ll_exact_silu(float x);
float ll_exact_gelu(float x);
float ll_exact_gelu_tanh(float x);

/* ---- the gated product (ops/gate.c) ----------------------------------------------------------- */

typedef struct ll_gate_args {
    const void *g, *u;                      /* [rows, n] of dtype */
    void *y;                                /* [rows, n] of dtype: op(g) * u; may be g or u itself, row on row */
    ptrdiff_t g_stride, u_stride, y_stride; /* bytes from row to row */
    size_t rows, n;
    int dtype, op;                          /* op: LL_NONE, or a function of one value */
} ll_gate_args;

void ll_gate(const ll_gate_args *a);

/* ---- rotary positions (ops/rope.c, rope_table.c) ----------------------------------------------- */

typedef struct ll_rope_args {
    const void *x;                           /* [rows, heads, D] of dtype */
    void *y;                                 /* the same; may be x itself, head on head */
    ptrdiff_t x_row, x_head, y_row, y_head;  /* bytes from row to row, from head to head */
    size_t rows, heads, D, R;                /* the first R values of a head are rotated, R even; the rest is copied */
    const float *cos, *sin;                  /* [.][R / 2] */
    const int64_t *positions;                /* [rows]: which row of cos and sin */
    int dtype;
} ll_rope_args;

void ll_rope(const ll_rope_args *a);

/* cos and sin [count][half] of p (f_hi + f_lo)[i] at positions p = first .. first + count - 1, times factor, correctly
 * rounded. f and factor are double-double, each good to 2^-106 of itself, and above 0. Returns how many values couldn't be
 * decided: they are NaN, and need more digits than f has here. */
size_t ll_rope_table(const double *f_hi, const double *f_lo, size_t half, double factor_hi, double factor_lo, size_t first,
                     size_t count, float *cos, float *sin);

/* ---- from type to type (ops/cast.c) ----------------------------------------------------------- */

typedef struct ll_cast_args {
    const void *x;                /* [rows, n] of from */
    void *y;                      /* [rows, n] of to; shares no memory with x */
    ptrdiff_t x_stride, y_stride; /* bytes from row to row */
    size_t rows, n;
    int from, to;                 /* dtypes */
} ll_cast_args;

/* y = x: widened exactly, or rounded once to nearest even */
void ll_cast(const ll_cast_args *a);

/* Widens n values of dtype to float32, exactly, on this thread. x and y don't overlap. */
void ll_widen(const void *x, int dtype, float *y, size_t n);

/* ---- instruction sets (cpu.c, dispatch.c) -------------------------------------------------- */

/* Compiled-in instruction sets, best first. NULL when i is past the end. */
const char *ll_isa_name(int i);
/* 1 if the CPU and the operating system can run it. */
int ll_isa_supported(int i);
/* Index of the active one. */
int ll_isa_active(void);
/* Makes i active for every later call; 0, or -1 if i can't run here. */
int ll_isa_select(int i);
/* The compiler this was built with, for show_config(). */
const char *ll_compiler(void);

/* ---- threads (parallel.c) ------------------------------------------------------------------ */

typedef void (*ll_task)(void *context, size_t begin, size_t end);

/* Calls task on disjoint ranges that cover [0, n), on up to so many threads, each range a multiple of grain long (but the
 * last). Returns when all are done. The floating-point environment is the contract's in every thread while task runs, and
 * the caller's own afterwards. One range, on the calling thread, when n <= grain, one thread is allowed, or another thread
 * is using the pool. For a driver that sizes its workspace by ll_threads(), which may change from one look to the next.
 * brief: all of it has LL_BRIEF_FMA multiplications at most, which take some 15 ms on one thread in plain C, 30 where a weight is
 * widened, so it isn't cut for interrupts. (Measured on two cores of a Zen 4: a step of one sequence, which is 150 such calls,
 * 1.02 x as fast where they share a cache, 1.05 where they don't.) */
#define LL_BRIEF_FMA ((size_t)1 << 23)
void ll_parallel_for_threads(size_t n, size_t grain, int threads, int brief, ll_task task, void *context);
/* Calls task for each part of a long work, [part, part + 1), on as many threads: a part's calls are that thread's own, and of
 * threads that have no part left. 0, and nothing is done: there are fewer than two, or another thread is using the pool. */
int ll_parallel_parts(int parts, ll_task task, void *context);
/* How many times there were parts, and how many chunks of their calls were taken by threads that helped: for tests. */
size_t ll_parts_made(size_t *helped);
/* How many threads a call has here at most: llorch_get_num_threads(), or in a part this one and those that help. */
int ll_threads(void);
/* The same on n items of `each` values, by as many threads as have `worth` values each, which pay for waking one, and
 * ll_threads() at most. Ranges are multiples of `step` items, so small that all threads end at about the same
 * time. */
void ll_parallel_for(size_t n, size_t each, size_t worth, size_t step, ll_task task, void *context);
/* A step of single values: threads don't share the cache lines of an aligned output, of any type. */
#define LL_LINES 64
#define LL_AHEAD_PARTS 4
/* What a job after the next will read: parts up to the first NULL, each of n items in grains, so many bytes an item. */
typedef struct ll_ahead {
    const void *data[LL_AHEAD_PARTS];
    size_t bytes, n, grain;
} ll_ahead;
/* A thread that waits, once it has seen this thread's next job, calls for the first of its own into its caches. It isn't read: it
 * may be gone. */
void ll_parallel_ahead(const ll_ahead *what);
/* Which of the threads this is: 0 for one that calls, 1 and so on for the others. */
int ll_thread_number(void);
/* Interrupts. `check` tells by a number other than 0 that the host wants a call to end; NULL for never. It is asked by
 * the thread that called, between parts of the work and 50 ms apart, where that thread has switched it on; then what is
 * left of the work is dropped, and every later job of that thread, and of those that make its parts, does nothing, until
 * ll_interrupted(), which tells whether that happened and switches it off. What the call should have written is then
 * half written. A driver of many small steps looks between them with ll_interrupt_poll(). */
void ll_set_interrupt_check(int (*check)(void));
void ll_interrupts_on(void);
int ll_interrupted(void);
int ll_interrupt_poll(void);

LL_EXPORT int llorch_get_num_threads(void);
/* n >= 1; more than LL_MAX_THREADS is cut to it. */
LL_EXPORT void llorch_set_num_threads(int n);
/* What affinity and the control group's quota allow. */
int ll_default_num_threads(void);
#define LL_MAX_THREADS 256

#endif
