/* check_threads.c: several threads of a host call the kernels at once, and the pool works for one of them: for the
 * thread sanitizer (.ci/threads). Each result must have the bits of the same call alone, and attention those of plain rows
 * whoever writes the cache.
 *
 *     check_threads [race]        with "race" two threads write one value: the control, which the sanitizer must see */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/formats.h"
#include "../../csrc/llorch.h"

enum { CALLERS = 3, TIMES = 8, M = 40, K = 150, N = 200, HEADS = 4, T = 200, D = 16, LAST = 50, VALUES = 40000, PARTS = 3,
       LONG = 256, WIDE = 1008, ROWS = 5, BLOCK = 34 };

static float x[M * K], weight[K * N], q[HEADS * T * D], k[HEADS * T * D], v[HEADS * T * D], values[VALUES];

/* A weight of 8 bits as it comes, and packed. */
static unsigned char blocks[WIDE * LONG / 32 * BLOCK];
static _Alignas(64) char panels[2 * sizeof blocks];

typedef struct results {
    float rows[ROWS * WIDE], part_rows[PARTS][ROWS * WIDE];
    float product[M * N], attended[HEADS * T * D], cached[HEADS * T * D], written[HEADS * T * D], fresh[HEADS * LAST * D];
    float last[HEADS * D], softmax[VALUES], gelu[VALUES];
    float parts[PARTS][M * N]; /* the later parts make their product more often: who is done helps */
} results;

/* A cache whose blocks all callers share. */
static ll_cache shared;
static pthread_mutex_t forking = PTHREAD_MUTEX_INITIALIZER;

/* Attention of the last Tq queries; to a cache the call itself writes the last `fresh` positions. */
static void attend(float *y, size_t Tq, const ll_cache *cache, size_t fresh)
{
    ll_attention_head head[HEADS];
    ll_kv kv[HEADS];
    const ptrdiff_t row = D * sizeof(float);
    for (size_t i = 0; i < HEADS; i++) {
        const size_t first = cache ? T - fresh : 0;
        kv[i] = cache ? ll_cache_kv(cache, i, T) : (ll_kv){.Tk = T};
        kv[i].k = k + (i * T + first) * D;
        kv[i].v = v + (i * T + first) * D;
        kv[i].k_stride = kv[i].v_stride = row;
        kv[i].fresh = fresh;
        head[i] = (ll_attention_head){.q = q + (i * T + T - Tq) * D, .y = y + i * Tq * D, .q_stride = row, .y_stride = row,
                                      .Tq = Tq, .kv = i};
    }
    ll_attention_args a = {.heads = head, .kv = kv, .count = HEADS, .kv_count = HEADS, .D = D, .default_scale = 1,
                           .causal = 1};
    if (ll_attention(&a))
        exit(2);
}

/* Positions [first, T) of keys and values to where they are reserved then. */
static void write_rows(ll_cache *cache, size_t first, const float *keys, const float *rest)
{
    const ptrdiff_t row = D * sizeof(float);
    ll_cache_rows rows = {.k = keys + first * D, .v = rest + first * D, .k_head = T * row, .v_head = T * row,
                          .k_stride = row, .v_stride = row, .first = first, .T = T - first};
    if (ll_cache_reserve(cache, rows.T))
        exit(2);
    ll_cache_write(cache, &rows);
}

static void append(ll_cache *cache, size_t first)
{
    write_rows(cache, first, k, v);
    cache->length = T;
}

static void multiply(float *y)
{
    ll_linear_args a = {.x = x, .y = y, .x_stride = K * sizeof(float), .y_stride = N * sizeof(float), .M = M,
                        .weight = {.data = weight, .k_stride = N * sizeof(float), .n_stride = sizeof(float), .K = K, .N = N}};
    if (ll_linear(&a))
        exit(2);
}

/* Rows one after the other, by integers: each is packed where the next but one will be. */
static void multiply_rows(float *y)
{
    for (size_t row = 0; row < ROWS; row++) {
        ll_linear_args a = {.x = values + row * LONG, .y = y + row * WIDE, .M = 1,
                            .weight = {.data = panels, .format = LL_Q8_0, .packed = 1, .compute = LL_INT16, .K = LONG, .N = WIDE}};
        ll_linear_ahead(&a.weight, 1, 0);
        if (ll_linear(&a))
            exit(2);
    }
}

static void part_task(void *context, size_t begin, size_t end)
{
    results *r = context;
    for (size_t part = begin; part < end; part++)
        for (size_t times = 0; times < 2 * part + 1; times++) {
            multiply(r->parts[part]);
            multiply_rows(r->part_rows[part]);
        }
}

static void call_all(results *r)
{
    ll_interrupts_on();
    multiply(r->product);
    multiply_rows(r->rows);
    if (llorch_get_num_threads() == 1 || !ll_parallel_parts(PARTS, part_task, r))
        part_task(r, 0, PARTS);

    attend(r->attended, T, NULL, 0);

    ll_cache own;
    pthread_mutex_lock(&forking); /* one at a time, as Python has it */
    if (ll_cache_fork(&shared, &own))
        exit(2);
    pthread_mutex_unlock(&forking);
    attend(r->cached, T, &own, 0);
    ll_cache_truncate(&own, T - 50); /* within a block that the others read */
    append(&own, T - 50);
    attend(r->written, T, &own, 0);
    ll_cache_truncate(&own, T - 1); /* one unit a head */
    write_rows(&own, T - 1, q, q);  /* what it writes is what counts */
    ll_parallel_ahead(&(ll_ahead){.data = {own.blocks[1], own.blocks[0]}, .bytes = ll_cache_block_bytes(&own) / HEADS,
                                  .n = HEADS, .grain = 1});
    attend(r->last, 1, &own, 1);
    ll_cache_truncate(&own, T - 150); /* several, and positions that begin in the block before */
    write_rows(&own, T - 150, q, q);
    attend(r->fresh, LAST, &own, 150);
    ll_cache_free(&own);

    ll_softmax_args s = {.x = values, .y = r->softmax, .x_stride = 400, .y_stride = 400, .rows = VALUES / 100, .n = 100};
    ll_softmax(&s);
    ll_unary_args u = {.x = values, .y = r->gelu, .rows = 1, .n = VALUES, .op = LL_GELU};
    ll_unary(&u);
}

static results wanted;
static size_t wrong[CALLERS];
static int race, raced;

static void *caller(void *number)
{
    size_t *mine = number;
    results *r = malloc(sizeof *r);
    if (!r)
        exit(2);
    for (int i = 0; i < TIMES; i++) {
        memset(r, 0xff, sizeof *r);
        call_all(r);
        *mine += memcmp(r, &wanted, sizeof *r) != 0;
        if (race)
            raced++;
    }
    free(r);
    return NULL;
}

static float value(uint32_t *state) { return (float)((*state = *state * 1664525u + 1013904223u) >> 8) * 1e-7f - 0.8f; }

int main(int argc, char **argv)
{
    uint32_t state = 1;
    float *const inputs[] = {x, weight, q, k, v, values};
    const size_t sizes[] = {M * K, K * N, HEADS * T * D, HEADS * T * D, HEADS * T * D, VALUES};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t j = 0; j < sizes[i]; j++)
            inputs[i][j] = value(&state);
    for (size_t i = 0; i < sizeof blocks; i++) /* scales are 0.5 */
        blocks[i] = i % BLOCK == 0 ? 0 : i % BLOCK == 1 ? 0x38 : (unsigned char)(int)(value(&state) * 100);
    const ll_weight raw = {.data = blocks, .format = LL_Q8_0, .n_stride = LONG / 32 * BLOCK, .K = LONG, .N = WIDE};
    if (ll_packed_bytes(LONG, WIDE, LL_Q8_0) > sizeof panels)
        exit(2);
    ll_pack(&raw, LL_Q8_0, panels);
    race = argc > 1 && !strcmp(argv[1], "race");
    if (ll_cache_init(&shared, HEADS, D, T))
        exit(2);
    append(&shared, 0);

    size_t differ = 0;
    for (int isa = 0; ll_isa_name(isa); isa++) {
        if (ll_isa_select(isa))
            continue;
        llorch_set_num_threads(1);
        call_all(&wanted);
        differ += memcmp(wanted.cached, wanted.attended, sizeof wanted.attended) != 0;
        differ += memcmp(wanted.written, wanted.attended, sizeof wanted.attended) != 0;
        for (size_t i = 0; i < HEADS; i++) {
            const float *end = wanted.attended + (i + 1) * T * D;
            differ += memcmp(wanted.fresh + i * LAST * D, end - LAST * D, LAST * D * sizeof(float)) != 0;
            differ += memcmp(wanted.last + i * D, end - D, D * sizeof(float)) != 0;
        }
        for (size_t i = 0; i < PARTS; i++)
            differ += memcmp(wanted.parts[i], wanted.product, sizeof wanted.product) != 0
                      || memcmp(wanted.part_rows[i], wanted.rows, sizeof wanted.rows) != 0;
        llorch_set_num_threads(3);
        pthread_t threads[CALLERS];
        for (size_t i = 0; i < CALLERS; i++)
            if (pthread_create(&threads[i], NULL, caller, &wrong[i]))
                exit(2);
        for (size_t i = 0; i < CALLERS; i++) {
            pthread_join(threads[i], NULL);
            differ += wrong[i];
            wrong[i] = 0;
        }
    }
    ll_cache_free(&shared);
    size_t helped;
    if (ll_parts_made(&helped) && !helped) {
        puts("no thread that was done with its part has helped another");
        differ++;
    }
    printf("%d callers at once, 3 threads: %zu results differ%s\n", CALLERS, differ, raced ? ", and one value was raced for" : "");
    return differ != 0;
}
