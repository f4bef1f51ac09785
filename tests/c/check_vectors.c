/* check_vectors.c: the kernels without Python, for machines that are only emulated.
 *
 *     check_vectors CASES [spoil]
 *
 * CASES (made by make_cases.py) holds inputs and what an independent oracle, or llorch.reference, makes of them; every
 * instruction set that runs here must reproduce it bit for bit, by every way the interface has: in the ordinary
 * floating-point environment and in a host's that flushes subnormals and rounds upwards, which must be found back.
 * Then what is split over threads, or too large for the caches, must equal the same rows done in parts. With "spoil"
 * one bit of every expected output is wrong, and all must be caught, in each family. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/formats.h"

enum { NORM, LINEAR, UNARY, SOFTMAX, ATTENTION, ARGMAX, EMBEDDING, GATE, CAST, ROPE, TABLE, BLOCKS, POOL, PRODUCTS, QUANTIZE,
       FAMILIES };
static const char *const families[FAMILIES] = {"norm", "linear", "unary", "softmax", "attention", "argmax", "embedding",
                                                 "gate", "cast", "rope", "rope_table", "formats", "pool", "blocks", "quantize"};

/* What a family's numbers are stands with its function; arrays follow, contiguous, the expected output last. */
typedef struct header {
    uint32_t family, n[7];
    float eps;
} header;

static size_t checks[FAMILIES], wrong[FAMILIES];
static int spoil;

/* ---- the environment of a host ------------------------------------------------------------------- */

#if defined(__x86_64__)
#include <xmmintrin.h>
#define HOSTILE 0xdfc0u /* flush, denormals are zero, upwards */
static uint64_t environment(void) { return _mm_getcsr() & ~0x3fu; /* without the sticky flags */ }
static void set_environment(uint64_t v) { _mm_setcsr((unsigned)v); }
#else
#define HOSTILE ((uint64_t)1 << 24 | (uint64_t)1 << 22)
static uint64_t environment(void)
{
    uint64_t v;
    __asm__ volatile("mrs %0, fpcr" : "=r"(v));
    return v;
}
static void set_environment(uint64_t v) { __asm__ volatile("msr fpcr, %0" : : "r"(v) : "memory"); }
#endif

/* ---- comparison ---------------------------------------------------------------------------------- */

static size_t size_of(uint32_t dtype) { return ll_dtype_size((int)dtype); }

/* By integers alone: nothing here depends on the environment. */
static uint32_t encoding(const void *values, size_t i, uint32_t dtype)
{
    static const uint32_t infinity[] = {0x7f800000, 0x7c00, 0x7f80}, magnitude[] = {0x7fffffff, 0x7fff, 0x7fff};
    uint32_t u = 0;
    memcpy(&u, (const char *)values + i * size_of(dtype), size_of(dtype));
    return (u & magnitude[dtype]) > infinity[dtype] ? 0xffffffffu : u; /* any NaN equals any NaN */
}

static size_t differing(const void *a, const void *b, size_t n, uint32_t dtype)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += encoding(a, i, dtype) != encoding(b, i, dtype);
    return count;
}

static void check(int family, const void *got, const void *wanted, size_t n, uint32_t dtype)
{
    checks[family]++;
    wrong[family] += differing(got, wanted, n, dtype) != 0;
}

/* Memory that no test fills by chance. */
static void *blank(size_t bytes)
{
    void *memory = malloc(bytes + 1);
    if (!memory)
        exit(2);
    return memset(memory, 0xff, bytes + 1);
}

static void *read_values(FILE *f, size_t n, uint32_t dtype)
{
    void *values = blank(n * size_of(dtype));
    if (fread(values, size_of(dtype), n, f) != n)
        exit(2);
    return values;
}

/* The same, with one bit of the last value wrong if so wanted. */
static void *read_wanted(FILE *f, size_t n, uint32_t dtype)
{
    char *values = read_values(f, n, dtype), *last = values + (n - 1) * size_of(dtype);
    uint32_t u = 0, flip = encoding(values, n - 1, dtype) == 0xffffffffu ? dtype == LL_F32 ? 0x40000000u : 0x4000u : 1;
    memcpy(&u, last, size_of(dtype));
    u ^= spoil ? flip : 0; /* a NaN becomes a number, a number its neighbour */
    memcpy(last, &u, size_of(dtype));
    return values;
}

/* ---- the families -------------------------------------------------------------------------------- */

/* op, rows, n, has weight, has bias; x [rows, n], weight [n], bias [n], where something is added: residual [rows, n] */
static void check_norm(FILE *f, const header *h)
{
    const size_t rows = h->n[1], n = h->n[2];
    float *x = read_values(f, rows * n, LL_F32), *w = h->n[3] ? read_values(f, n, LL_F32) : NULL;
    float *b = h->n[4] ? read_values(f, n, LL_F32) : NULL;
    float *residual = h->n[0] > 1 ? read_values(f, rows * n, LL_F32) : NULL, *wanted = read_wanted(f, rows * n, LL_F32);
    float *y = blank(rows * n * sizeof *y), *sum = blank(rows * n * sizeof *y);
    static void (*const ops[])(const ll_norm_args *) = {ll_layer_norm, ll_rms_norm, ll_add_layer_norm, ll_add_rms_norm};
    ptrdiff_t stride = (ptrdiff_t)(n * sizeof *x);
    ll_norm_args a = {.x = x, .y = y, .x_stride = stride, .y_stride = stride, .weight = w, .bias = b, .rows = rows,
                      .n = n, .eps = (double)h->eps, .residual = residual, .residual_stride = stride, .sum = sum,
                      .sum_stride = stride};
    ops[h->n[0]](&a);
    check(NORM, y, wanted, rows * n, LL_F32);
    free(x), free(w), free(b), free(residual), free(wanted), free(y), free(sum);
}

static void product(int family, ll_linear_args *a, const float *wanted)
{
    const size_t values = a->M * a->weight.N;
    a->y = blank(values * sizeof(float));
    if (ll_linear(a))
        exit(2);
    check(family, a->y, wanted, values, LL_F32);
    free(a->y);
}

/* M, K, N, kept as (dtype), has bias, activation, has residual; x [M, K], weight [K, N] float32, for 16 bits the same
 * rounded, bias [N], residual [M, N]. By rows, by columns and packed. */
static void check_linear(FILE *f, const header *h)
{
    const size_t M = h->n[0], K = h->n[1], N = h->n[2];
    const uint32_t kept = h->n[3];
    float *x = read_values(f, M * K, LL_F32), *weight = read_values(f, K * N, LL_F32);
    void *rounded = kept == LL_F32 ? NULL : read_values(f, K * N, kept);
    float *bias = h->n[4] ? read_values(f, N, LL_F32) : NULL, *residual = h->n[6] ? read_values(f, M * N, LL_F32) : NULL;
    float *wanted = read_wanted(f, M * N, LL_F32);
    ll_linear_args a = {.x = x, .bias = bias, .residual = residual, .M = M, .activation = (int)h->n[5]};
    const ptrdiff_t size = (ptrdiff_t)size_of(kept);
    a.x_stride = (ptrdiff_t)(K * sizeof(float));
    a.y_stride = a.residual_stride = (ptrdiff_t)(N * sizeof(float));
    const void *values = kept == LL_F32 ? weight : rounded;

    a.weight = (ll_weight){.data = values, .format = (int)kept, .k_stride = (ptrdiff_t)N * size, .n_stride = size, .K = K, .N = N};
    product(LINEAR, &a, wanted);

    char *columns = blank(K * N * (size_t)size);
    for (size_t k = 0; k < K; k++)
        for (size_t n = 0; n < N; n++)
            memcpy(columns + (n * K + k) * (size_t)size, (const char *)values + (k * N + n) * (size_t)size, (size_t)size);
    a.weight.data = columns;
    a.weight.k_stride = size, a.weight.n_stride = (ptrdiff_t)K * size;
    product(LINEAR, &a, wanted);

    void *packed = ll_memory_new(ll_packed_bytes(K, N, (int)kept)); /* from float32: rounded here */
    if (!packed)
        exit(2);
    ll_weight wide = {.data = weight, .k_stride = (ptrdiff_t)(N * sizeof(float)), .n_stride = sizeof(float), .K = K, .N = N};
    ll_pack(&wide, (int)kept, packed);
    a.weight.data = packed;
    a.weight.packed = 1;
    product(LINEAR, &a, wanted);
    ll_memory_free(packed);
    free(x), free(weight), free(rounded), free(bias), free(residual), free(wanted), free(columns);
}

/* op, n, dtype; x [n]. Also in place. */
static void check_unary(FILE *f, const header *h)
{
    const size_t n = h->n[1];
    void *x = read_values(f, n, h->n[2]), *wanted = read_wanted(f, n, h->n[2]), *y = blank(n * size_of(h->n[2]));
    ll_unary_args a = {.x = x, .y = y, .rows = 1, .n = n, .dtype = (int)h->n[2], .op = (int)h->n[0]};
    ll_unary(&a);
    check(UNARY, y, wanted, n, h->n[2]);
    a.y = x;
    ll_unary(&a);
    check(UNARY, x, wanted, n, h->n[2]);
    free(x), free(wanted), free(y);
}

/* rows, n, dtype; x [rows, n] */
static void check_softmax(FILE *f, const header *h)
{
    const size_t rows = h->n[0], n = h->n[1], size = size_of(h->n[2]);
    void *x = read_values(f, rows * n, h->n[2]), *wanted = read_wanted(f, rows * n, h->n[2]), *y = blank(rows * n * size);
    ll_softmax_args a = {.x = x, .y = y, .x_stride = (ptrdiff_t)(n * size), .y_stride = (ptrdiff_t)(n * size),
                         .rows = rows, .n = n, .dtype = (int)h->n[2]};
    ll_softmax(&a);
    check(SOFTMAX, y, wanted, rows * n, h->n[2]);
    free(x), free(wanted), free(y);
}

/* rows, n, dtype, sequences, skip (~0: normalize, and no sequences), lengths of at most two of them; x [rows, n] */
static void check_pool(FILE *f, const header *h)
{
    const size_t rows = h->n[0], n = h->n[1], size = size_of(h->n[2]);
    const int normalize = h->n[4] == ~0u;
    const size_t count = normalize ? rows : h->n[3];
    const int64_t starts[3] = {0, h->n[5], (int64_t)h->n[5] + h->n[6]};
    const ptrdiff_t stride = (ptrdiff_t)(n * size);
    void *x = read_values(f, rows * n, h->n[2]), *wanted = read_wanted(f, count * n, h->n[2]), *y = blank(count * n * size);
    if (normalize)
        ll_normalize(&(ll_normalize_args){.x = x, .y = y, .x_stride = stride, .y_stride = stride, .rows = rows, .n = n,
                                          .dtype = (int)h->n[2]});
    else
        ll_mean_pool(&(ll_pool_args){.x = x, .y = y, .x_stride = stride, .y_stride = stride, .starts = starts,
                                     .count = count, .n = n, .skip = h->n[4], .dtype = (int)h->n[2]});
    check(POOL, y, wanted, count * n, h->n[2]);
    free(x), free(wanted), free(y);
}

/* A case of attention, and where a call of it is put together. */
typedef struct attention_case {
    size_t heads, Tq, Tk, D, kv_heads;
    const float *q, *k, *v, *bias, *wanted; /* bias: [heads][2 * args.reach + 1] or NULL */
    ll_cache cache;
    ll_attention_head *head;
    ll_kv *kv;
    size_t *first; /* [head]: the query of the case that is its first */
    ll_attention_args args;
} attention_case;

/* Another sequence of the call: queries [first, end) of the case on its first Tk positions, from rows or from chunks. */
static void add_sequence(attention_case *c, size_t first, size_t end, size_t Tk, int chunks)
{
    const ptrdiff_t row = (ptrdiff_t)(c->D * sizeof(float));
    for (size_t i = 0; i < c->heads; i++) {
        const size_t at = c->args.count++;
        c->first[at] = first;
        c->head[at] = (ll_attention_head){.q = c->q + (i * c->Tq + first) * c->D, .y = blank((end - first) * c->D * sizeof(float)),
                                          .q_stride = row, .y_stride = row, .Tq = end - first,
                                          .kv = c->args.kv_count + i / (c->heads / c->kv_heads)};
        if (c->bias)
            c->head[at].bias = c->bias + i * (2 * c->args.reach + 1) + c->args.reach;
    }
    for (size_t i = 0; i < c->kv_heads; i++)
        c->kv[c->args.kv_count++] = chunks ? ll_cache_kv(&c->cache, i, Tk)
                                           : (ll_kv){.k = c->k + i * c->Tk * c->D, .v = c->v + i * c->Tk * c->D,
                                                     .k_stride = row, .v_stride = row, .Tk = Tk};
}

/* Calls, compares and begins anew. */
static void attend(attention_case *c)
{
    size_t differ = 0;
    if (ll_attention(&c->args))
        exit(2);
    for (size_t i = 0; i < c->args.count; i++) {
        const ll_attention_head *h = &c->head[i];
        differ += differing(h->y, c->wanted + (i % c->heads * c->Tq + c->first[i]) * c->D, h->Tq * c->D, LL_F32);
        free(h->y);
    }
    checks[ATTENTION]++;
    wrong[ATTENTION] += differ != 0;
    c->args.count = c->args.kv_count = 0;
}

/* heads, Tq, Tk, D, heads of keys, window (0: none), causal + 2 * distances (0: no bias); eps is the softcap; q [heads, Tq,
 * D], k and v [heads of keys, Tk, D], the bias [heads, distances]. By arrays at once, the last query alone, by a cache that
 * was filled in three steps, and all that as sequences of one call beside a shorter one, in two orders. */
static void check_attention(FILE *f, const header *h)
{
    const size_t heads = h->n[0], Tq = h->n[1], Tk = h->n[2], D = h->n[3], kv_heads = h->n[4];
    float *q = read_values(f, heads * Tq * D, LL_F32), *k = read_values(f, kv_heads * Tk * D, LL_F32);
    const size_t distances = h->n[6] / 2;
    float *v = read_values(f, kv_heads * Tk * D, LL_F32), *bias = distances ? read_values(f, heads * distances, LL_F32) : NULL;
    float *wanted = read_wanted(f, heads * Tq * D, LL_F32);
    const ptrdiff_t row = (ptrdiff_t)(D * sizeof(float));
    const size_t parts[] = {0, Tk / 3, Tk / 3 + (Tk > 1), Tk};
    attention_case c = {.heads = heads, .Tq = Tq, .Tk = Tk, .D = D, .kv_heads = kv_heads, .q = q, .k = k, .v = v,
                        .bias = bias, .wanted = wanted, .head = blank(4 * heads * sizeof *c.head),
                        .kv = blank(4 * kv_heads * sizeof *c.kv), .first = blank(4 * heads * sizeof *c.first)};
    if (ll_cache_init(&c.cache, kv_heads, D, Tk))
        exit(2);
    for (size_t i = 0; i < 3; i++) {
        ll_cache_rows rows = {.k = k + parts[i] * D, .v = v + parts[i] * D, .k_stride = row, .v_stride = row,
                              .k_head = (ptrdiff_t)Tk * row, .v_head = (ptrdiff_t)Tk * row, .first = parts[i],
                              .T = parts[i + 1] - parts[i]};
        if (ll_cache_reserve(&c.cache, rows.T))
            exit(2);
        ll_cache_write(&c.cache, &rows);
        c.cache.length += rows.T;
    }
    const int causal = h->n[6] % 2 != 0, placed = h->n[5] || bias; /* by its position; not causal, keys behind it are seen */
    const size_t half = placed && !causal ? Tq : (Tq + 1) / 2, fewer = causal ? Tk - Tq + half : Tk;
    c.args = (ll_attention_args){.heads = c.head, .kv = c.kv, .D = D, .default_scale = 1, .causal = causal,
                                 .window = h->n[5], .softcap = (double)h->eps, .reach = distances / 2};
    add_sequence(&c, 0, Tq, Tk, 0);
    attend(&c);
    add_sequence(&c, Tq - 1, Tq, Tk, 0);
    attend(&c);
    add_sequence(&c, 0, Tq, Tk, 1);
    attend(&c);
    for (int order = 0; order < 2; order++) {
        for (int i = 0; i < 4; i++) {
            const int sequence = order ? 3 - i : i;
            if (sequence == 0)
                add_sequence(&c, 0, Tq, Tk, 0);
            else if (sequence == 1)
                add_sequence(&c, Tq - 1, Tq, Tk, 1);
            else if (sequence == 2)
                add_sequence(&c, 0, Tq, Tk, 1);
            else
                add_sequence(&c, half - 1, half, fewer, 0); /* the spoilt value isn't here, but in the others */
        }
        attend(&c);
    }
    ll_cache_free(&c.cache);
    free(q), free(k), free(v), free(bias), free(wanted), free(c.head), free(c.kv), free(c.first);
}

/* rows, n; x [rows, n]; the places as float32, -1 - place for a NaN */
static void check_argmax(FILE *f, const header *h)
{
    const size_t rows = h->n[0], n = h->n[1];
    float *x = read_values(f, rows * n, LL_F32), *wanted = read_wanted(f, rows, LL_F32), *y = blank(rows * sizeof *y);
    int64_t *places = blank(rows * sizeof *places);
    ll_argmax_args a = {.x = x, .x_stride = (ptrdiff_t)(n * sizeof *x), .rows = rows, .n = n, .y = places};
    ll_argmax(&a);
    for (size_t i = 0; i < rows; i++)
        y[i] = (float)places[i];
    check(ARGMAX, y, wanted, rows, LL_F32);
    free(x), free(wanted), free(y), free(places);
}

/* length, n, dtype; table [length, n]; the rows backwards, widened. As it lies, and packed. */
static void check_embedding(FILE *f, const header *h)
{
    const size_t rows = h->n[0], n = h->n[1], size = size_of(h->n[2]);
    void *table = read_values(f, rows * n, h->n[2]);
    float *wanted = read_wanted(f, rows * n, LL_F32), *y = blank(rows * n * sizeof *y);
    int64_t *ids = blank(rows * sizeof *ids);
    for (size_t i = 0; i < rows; i++)
        ids[i] = (int64_t)(rows - 1 - i);
    ll_weight w = {.data = table, .format = (int)h->n[2], .k_stride = (ptrdiff_t)size, .n_stride = (ptrdiff_t)(n * size),
                   .K = n, .N = rows};
    ll_embedding_args a = {.table = w, .ids = ids, .y = y, .rows = rows};
    if (ll_embedding(&a) != rows)
        exit(2);
    check(EMBEDDING, y, wanted, rows * n, LL_F32);
    void *packed = ll_memory_new(ll_packed_bytes(n, rows, w.format));
    if (!packed)
        exit(2);
    ll_pack(&w, w.format, packed);
    a.table.data = packed;
    a.table.packed = 1;
    memset(y, 0xff, rows * n * sizeof *y);
    if (ll_embedding(&a) != rows)
        exit(2);
    check(EMBEDDING, y, wanted, rows * n, LL_F32);
    ll_memory_free(packed);
    free(table), free(wanted), free(y), free(ids);
}

/* op, rows, n, dtype; g, u [rows, n]. Also over g and over u, and by rows with gaps. */
static void check_gate(FILE *f, const header *h)
{
    const size_t rows = h->n[1], n = h->n[2], size = size_of(h->n[3]);
    char *g = read_values(f, rows * n, h->n[3]), *u = read_values(f, rows * n, h->n[3]);
    void *wanted = read_wanted(f, rows * n, h->n[3]), *y = blank(rows * n * size);
    const ptrdiff_t stride = (ptrdiff_t)(n * size);
    ll_gate_args a = {.g = g, .u = u, .y = y, .g_stride = stride, .u_stride = stride, .y_stride = stride, .rows = rows,
                      .n = n, .dtype = (int)h->n[3], .op = (int)h->n[0]};
    ll_gate(&a);
    check(GATE, y, wanted, rows * n, h->n[3]);
    char *both = blank(2 * rows * n * size); /* a row of g, a row of u */
    for (size_t i = 0; i < rows; i++) {
        memcpy(both + 2 * i * n * size, g + i * n * size, n * size);
        memcpy(both + (2 * i + 1) * n * size, u + i * n * size, n * size);
    }
    a.g = both, a.u = both + stride, a.g_stride = a.u_stride = 2 * stride;
    memset(y, 0xff, rows * n * size);
    ll_gate(&a);
    check(GATE, y, wanted, rows * n, h->n[3]);
    a.g = g, a.u = u, a.g_stride = a.u_stride = stride, a.y = u;
    ll_gate(&a);
    check(GATE, u, wanted, rows * n, h->n[3]);
    free(g), free(u), free(wanted), free(y), free(both);
}

/* n, from, to; x [n] */
static void check_cast(FILE *f, const header *h)
{
    const size_t n = h->n[0];
    void *x = read_values(f, n, h->n[1]), *wanted = read_wanted(f, n, h->n[2]), *y = blank(n * size_of(h->n[2]));
    ll_cast_args a = {.x = x, .y = y, .rows = 1, .n = n, .from = (int)h->n[1], .to = (int)h->n[2]};
    ll_cast(&a);
    check(CAST, y, wanted, n, h->n[2]);
    free(x), free(wanted), free(y);
}

/* heads, T, D, R, dtype; x [heads, T, D], cos and sin [T, R / 2]. Also in place, and the last row alone. */
static void check_rope(FILE *f, const header *h)
{
    const size_t heads = h->n[0], T = h->n[1], D = h->n[2], R = h->n[3], size = size_of(h->n[4]);
    char *x = read_values(f, heads * T * D, h->n[4]);
    float *cos = read_values(f, T * R / 2, LL_F32), *sin = read_values(f, T * R / 2, LL_F32);
    char *wanted = read_wanted(f, heads * T * D, h->n[4]), *y = blank(heads * T * D * size);
    int64_t *positions = blank(T * sizeof *positions), last = (int64_t)T - 1;
    for (size_t i = 0; i < T; i++)
        positions[i] = (int64_t)i;
    const ptrdiff_t row = (ptrdiff_t)(D * size), head = (ptrdiff_t)(T * D * size);
    ll_rope_args a = {.x = x, .y = y, .x_row = row, .x_head = head, .y_row = row, .y_head = head, .rows = T, .heads = heads,
                      .D = D, .R = R, .cos = cos, .sin = sin, .positions = positions, .dtype = (int)h->n[4]};
    ll_rope(&a);
    check(ROPE, y, wanted, heads * T * D, h->n[4]);
    memset(y, 0xff, heads * T * D * size);
    ll_rope_args one = a;
    one.rows = 1, one.positions = &last, one.x = x + (T - 1) * D * size, one.y = y + (T - 1) * D * size;
    ll_rope(&one);
    check(ROPE, y + (heads * T - 1) * D * size, wanted + (heads * T - 1) * D * size, D, h->n[4]);
    a.y = x;
    ll_rope(&a);
    check(ROPE, x, wanted, heads * T * D, h->n[4]);
    free(x), free(cos), free(sin), free(wanted), free(y), free(positions);
}

/* half, first, count; f_hi, f_lo [half] as pairs of float32; the sines, then the cosines, both [count, half] */
static void check_table(FILE *f, const header *h)
{
    const size_t half = h->n[0], count = h->n[2];
    double *f_hi = read_values(f, 2 * half, LL_F32), *f_lo = read_values(f, 2 * half, LL_F32);
    float *sines = read_values(f, count * half, LL_F32), *cosines = read_wanted(f, count * half, LL_F32);
    float *cos = blank(count * half * sizeof *cos), *sin = blank(count * half * sizeof *sin);
    if (ll_rope_table(f_hi, f_lo, half, 1.0, 0.0, h->n[1], count, cos, sin) || differing(sin, sines, count * half, LL_F32))
        exit(2);
    check(TABLE, cos, cosines, count * half, LL_F32);
    free(f_hi), free(f_lo), free(sines), free(cosines), free(cos), free(sin);
}

/* format, K, N, bytes / 2; the blocks of N rows of K values; the values. Widened, and packed from the blocks. */
static void check_formats(FILE *f, const header *h)
{
    const size_t K = h->n[1], N = h->n[2];
    void *blocks = read_values(f, h->n[3], LL_F16);
    float *wanted = read_wanted(f, K * N, LL_F32), *y = blank(K * N * sizeof *y);
    const ll_format *format = &ll_formats[h->n[0]];
    ll_dequantize(blocks, (int)h->n[0], K * N, y);
    check(BLOCKS, y, wanted, K * N, LL_F32);
    ll_weight w = {.data = blocks, .format = (int)h->n[0], .n_stride = (ptrdiff_t)(K / format->values * format->bytes), .K = K,
                   .N = N};
    void *packed = ll_memory_new(ll_packed_bytes(K, N, LL_F32));
    if (!packed)
        exit(2);
    ll_pack(&w, LL_F32, packed);
    w = (ll_weight){.data = packed, .format = LL_F32, .packed = 1, .K = K, .N = N};
    memset(y, 0xff, K * N * sizeof *y);
    for (size_t n = 0; n < N; n++)
        ll_packed_column(&w, n, y + n * K);
    check(BLOCKS, y, wanted, K * N, LL_F32);
    ll_memory_free(packed);
    free(blocks), free(wanted), free(y);
}

/* format, M, K, N, compute, bytes / 2, has bias; the blocks of N rows of K values, x [M, K], bias [N]. A product with a packed
 * weight that keeps its blocks. */
static void check_products(FILE *f, const header *h)
{
    const size_t M = h->n[1], K = h->n[2], N = h->n[3];
    const int kept = (int)h->n[0];
    void *blocks = read_values(f, h->n[5], LL_F16);
    float *x = read_values(f, M * K, LL_F32), *bias = h->n[6] ? read_values(f, N, LL_F32) : NULL;
    float *wanted = read_wanted(f, M * N, LL_F32);
    void *packed = ll_memory_new(ll_packed_bytes(K, N, kept));
    if (!packed)
        exit(2);
    const ll_weight w = {.data = blocks, .format = kept, .K = K, .N = N,
                         .n_stride = (ptrdiff_t)(K / ll_formats[kept].values * ll_formats[kept].bytes)};
    ll_pack(&w, kept, packed);
    ll_linear_args a = {.x = x, .bias = bias, .M = M, .x_stride = (ptrdiff_t)(K * sizeof(float)),
                        .y_stride = (ptrdiff_t)(N * sizeof(float))};
    a.weight = (ll_weight){.data = packed, .format = kept, .packed = 1, .compute = (int)h->n[4], .K = K, .N = N};
    product(PRODUCTS, &a, wanted);
    ll_memory_free(packed);
    free(blocks), free(x), free(bias), free(wanted);
}

/* format, K, N; N rows of K values; their blocks. */
static void check_quantize(FILE *f, const header *h)
{
    const ll_format *format = &ll_formats[h->n[0]];
    const size_t K = h->n[1], N = h->n[2], bytes = N * K / format->values * format->bytes;
    float *x = read_values(f, N * K, LL_F32);
    void *wanted = read_wanted(f, bytes / 2, LL_F16), *blocks = blank(bytes);
    const ll_quantize_args a = {.x = x, .y = blocks, .x_stride = (ptrdiff_t)(K * sizeof *x), .rows = N, .n = K,
                                .format = (int)h->n[0]};
    checks[QUANTIZE]++;
    wrong[QUANTIZE] += ll_quantize_rows(&a) < N || memcmp(blocks, wanted, bytes);
    memset(blocks, 0xff, bytes);
    checks[QUANTIZE]++;
    wrong[QUANTIZE] += ll_quantize(x, (int)h->n[0], N * K, blocks) || memcmp(blocks, wanted, bytes);
    free(x), free(wanted), free(blocks);
}

static int check_cases(const char *path)
{
    static void (*const by_family[FAMILIES])(FILE *, const header *) = {
        check_norm, check_linear, check_unary, check_softmax, check_attention, check_argmax, check_embedding, check_gate,
        check_cast, check_rope, check_table, check_formats, check_pool, check_products, check_quantize};
    header h;
    FILE *f = fopen(path, "rb");
    if (!f)
        exit(2);
    memset(checks, 0, sizeof checks), memset(wrong, 0, sizeof wrong);
    while (fread(&h, sizeof h, 1, f) == 1)
        by_family[h.family](f, &h);
    fclose(f);
    int failed = 0;
    for (int i = 0; i < FAMILIES; i++) {
        printf(" %s %zu of %zu%s", families[i], wrong[i], checks[i], i + 1 < FAMILIES ? "," : " checks differ");
        failed |= spoil ? wrong[i] != checks[i] : wrong[i] != 0;
        failed |= !checks[i];
    }
    return failed;
}

/* ---- in parts ------------------------------------------------------------------------------------ */

static float value(uint32_t *state) { return (float)((*state = *state * 1664525u + 1013904223u) >> 8); }

/* Values of an output too large for the caches that differ from its rows in parts. */
static size_t check_large(void)
{
    const size_t n = 257, rows = ((size_t)36 << 20) / sizeof(float) / n, part = 1000;
    float *x = blank(rows * n * sizeof *x), *y = blank((rows * n + 1) * sizeof *y), *parts = blank(part * n * sizeof *x);
    float weight[257], bias[257];
    uint32_t state = 1;
    size_t differ = 0;
    ptrdiff_t stride = (ptrdiff_t)(n * sizeof *x);
    for (size_t i = 0; i < rows * n; i++)
        x[i] = value(&state) * (i / n % 50 == 7 ? 1e32f : 1e-6f);
    for (size_t j = 0; j < n; j++)
        weight[j] = 1.0f + (float)j / 1000.0f, bias[j] = (float)j / 500.0f - 0.2f;
    ll_norm_args a = {.x = x, .y = y + 1, .x_stride = stride, .y_stride = stride, .weight = weight, .bias = bias,
                      .rows = rows, .n = n, .eps = 1e-5};
    ll_layer_norm(&a);
    for (size_t i = 0; i < rows; i += part) {
        ll_norm_args p = a;
        p.x = x + i * n, p.y = parts, p.rows = rows - i < part ? rows - i : part;
        ll_layer_norm(&p);
        differ += differing(y + 1 + i * n, parts, p.rows * n, LL_F32);
    }
    free(x), free(y), free(parts);
    return differ;
}

/* Values of a product on three threads, in the host's environment, that differ from its rows done one by one on one. */
static size_t check_threads(void)
{
    enum { M = 100, K = 150, N = 200 };
    static float x[M * K], weight[K * N], y[M * N], row[N];
    uint32_t state = 1;
    size_t differ = 0;
    for (size_t i = 0; i < M * K; i++)
        x[i] = value(&state) * 1e-7f - 0.8f;
    for (size_t i = 0; i < K * N; i++)
        weight[i] = (value(&state) * 1e-7f - 0.8f) * (i % N < N / 2 ? 1e-39f : 1.0f);
    ll_linear_args a = {.x = x, .y = y, .x_stride = K * sizeof *x, .y_stride = N * sizeof *y, .M = M,
                        .weight = {.data = weight, .k_stride = N * sizeof *weight, .n_stride = sizeof *weight, .K = K, .N = N}};
    const uint64_t before = environment();
    llorch_set_num_threads(3);
    set_environment(HOSTILE);
    int failed = ll_linear(&a);
    set_environment(before);
    llorch_set_num_threads(1);
    a.M = 1, a.y = row; /* a row of float32 is a tile as it lies */
    for (size_t i = 0; i < M; i++) {
        a.x = x + i * K;
        failed |= ll_linear(&a);
        differ += differing(row, y + i * N, N, LL_F32);
    }
    if (failed)
        exit(2);
    return differ;
}

int main(int argc, char **argv)
{
    int failed = 0;
    if (argc < 2)
        return 2;
    spoil = argc > 2;
    for (int i = 0; ll_isa_name(i); i++) {
        if (ll_isa_select(i)) {
            printf("%s: not on this machine\n", ll_isa_name(i));
            continue;
        }
        printf("%s:", ll_isa_name(i));
        failed |= check_cases(argv[1]);
        const uint64_t before = environment();
        set_environment(HOSTILE);
        printf("\n%s, host's environment:", ll_isa_name(i));
        failed |= check_cases(argv[1]);
        const int lost = environment() != HOSTILE;
        set_environment(before);
        size_t large = check_large(), threads = check_threads();
        printf("%s; in parts, %zu values of a large output differ, %zu on three threads\n", lost ? ", which is LOST" : "",
               large, threads);
        failed |= lost || large || threads;
    }
    return failed;
}
