/* llorch.h: the whole C interface of the core, as seen by Cython, the drivers and the C checks.
 *
 * One alphabet for shapes, everywhere in csrc/:
 *   rows   number of rows (all leading dimensions taken together)
 *   n      values in a row (the last axis)
 *   j      index in a row;  lane = j mod 64
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

/* ---- element types ------------------------------------------------------------------------- */

enum { LL_F32 = 0, LL_F16 = 1, LL_BF16 = 2, LL_DTYPES = 3 };

/* ---- normalisation (ops/norm.c) ------------------------------------------------------------ */

typedef struct ll_norm_args {
    const void *x;        /* [rows, n] of dtype */
    const void *residual; /* [rows, n] of dtype; add_layer_norm only, else NULL */
    void *sum;            /* [rows, n] of dtype; add_layer_norm only: receives x + residual */
    void *y;              /* [rows, n] of dtype; may be x (or residual) itself, row on row */
    ptrdiff_t x_stride, residual_stride, sum_stride, y_stride; /* bytes from row to row */
    const float *weight;  /* [n] or NULL */
    const float *bias;    /* [n] or NULL */
    size_t rows, n;       /* n <= LL_MAX_ROW */
    double eps;           /* >= 0; rounded to float32 once, then widened */
    int dtype;            /* LL_F32, LL_F16, LL_BF16 */
    int stream;           /* set by the driver: y is too large for the caches, store around them */
} ll_norm_args;

/* y = layer_norm(x) */
void ll_layer_norm(ll_norm_args *a);
/* sum = x + residual (rounded to dtype); y = layer_norm(sum) */
void ll_add_layer_norm(ll_norm_args *a);
/* y = rms_norm(x); bias is ignored */
void ll_rms_norm(ll_norm_args *a);

/* ---- functions of one variable (ops/unary.c, exact.c) --------------------------------------- */

enum { LL_EXP, LL_TANH, LL_ERF, LL_SIGMOID, LL_SILU, LL_GELU, LL_GELU_TANH, LL_UNARY_OPS };

typedef struct ll_unary_args {
    const void *x;                /* [rows, n] of dtype */
    void *y;                      /* [rows, n] of dtype; may be x itself, row on row */
    ptrdiff_t x_stride, y_stride; /* bytes from row to row */
    size_t rows, n;               /* any number: each value is for itself */
    int dtype;                    /* LL_F32, LL_F16, LL_BF16 */
    int op;                       /* LL_EXP and so on */
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

/* Widens n values of dtype (16-bit types) to float32, exactly. x and y don't overlap. */
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
/* Compiler and flags this was built with, for show_config(). */
const char *ll_compiler(void);

/* ---- threads (parallel.c) ------------------------------------------------------------------ */

typedef void (*ll_task)(void *context, size_t begin, size_t end);

/* Calls task on disjoint ranges that cover [0, n), on up to get_num_threads() threads, each range a
 * multiple of grain long (but the last). Returns when all are done. The floating-point environment is
 * the contract's in every thread while task runs, and the caller's own afterwards. One range, on the
 * calling thread, when n <= grain, one thread is allowed, or another thread is using the pool. */
void ll_parallel_for(size_t n, size_t grain, ll_task task, void *context);
LL_EXPORT int llorch_get_num_threads(void);
/* n >= 1; more than LL_MAX_THREADS is cut to it. */
LL_EXPORT void llorch_set_num_threads(int n);
/* What affinity and the control group's quota allow. */
int ll_default_num_threads(void);
#define LL_MAX_THREADS 256

#endif
