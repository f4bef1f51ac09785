/* check_threads.c: several threads of a host call the kernels at once, and the pool works for one of them: for the
 * thread sanitizer (.ci/threads). Each result must have the bits of the same call alone.
 *
 *     check_threads [race]        with "race" two threads write one value: the control, which the sanitizer must see */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/llorch.h"

enum { CALLERS = 3, TIMES = 8, M = 40, K = 150, N = 200, HEADS = 4, T = 200, D = 16, VALUES = 40000 };

static float x[M * K], weight[K * N], q[HEADS * T * D], k[HEADS * T * D], v[HEADS * T * D], values[VALUES];

typedef struct results {
    float product[M * N], attended[HEADS * T * D], cached[HEADS * T * D], softmax[VALUES], gelu[VALUES];
} results;

/* Blocks that all callers share, as forks of one cache do. */
static float *shared[(T + LL_BLOCK - 1) / LL_BLOCK];
enum { BLOCKS = sizeof shared / sizeof *shared };

static void attend(float *y, float *const *blocks)
{
    ll_attention_head head[HEADS];
    ll_kv kv[HEADS];
    const ptrdiff_t row = D * sizeof(float);
    for (size_t i = 0; i < HEADS; i++) {
        kv[i] = (ll_kv){.k = k + i * T * D, .v = v + i * T * D, .k_stride = row, .v_stride = row, .blocks = blocks,
                        .offset = i * ll_chunk_floats(D), .Tk = T};
        head[i] = (ll_attention_head){.q = q + i * T * D, .y = y + i * T * D, .q_stride = row, .y_stride = row, .Tq = T,
                                      .kv = i};
    }
    ll_attention_args a = {.heads = head, .kv = kv, .count = HEADS, .kv_count = HEADS, .D = D, .default_scale = 1,
                           .causal = 1};
    if (ll_attention(&a))
        exit(2);
}

static void append(float *const *blocks)
{
    const ptrdiff_t row = D * sizeof(float);
    ll_cache_rows rows = {.k = k, .v = v, .k_head = T * row, .v_head = T * row, .k_stride = row, .v_stride = row,
                          .heads = HEADS, .D = D, .T = T};
    ll_cache_append(&rows, blocks);
}

static void call_all(results *r)
{
    ll_linear_args a = {.x = x, .y = r->product, .x_stride = K * sizeof(float), .y_stride = N * sizeof(float), .M = M,
                        .weight = {.data = weight, .k_stride = N * sizeof(float), .n_stride = sizeof(float), .K = K, .N = N}};
    if (ll_linear(&a))
        exit(2);

    attend(r->attended, NULL);

    float *own[BLOCKS];
    for (size_t i = 0; i < BLOCKS; i++)
        if (!(own[i] = ll_block_new(HEADS, D)))
            exit(2);
    append(own);
    for (size_t i = 0; i < BLOCKS; i++) {
        ll_block_release(own[i]);
        own[i] = ll_block_share(shared[i]);
    }
    attend(r->cached, own);
    for (size_t i = 0; i < BLOCKS; i++)
        ll_block_release(own[i]);

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
    race = argc > 1 && !strcmp(argv[1], "race");
    for (size_t i = 0; i < BLOCKS; i++)
        if (!(shared[i] = ll_block_new(HEADS, D)))
            exit(2);
    append(shared);

    size_t differ = 0;
    for (int isa = 0; ll_isa_name(isa); isa++) {
        if (ll_isa_select(isa))
            continue;
        llorch_set_num_threads(1);
        call_all(&wanted);
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
    for (size_t i = 0; i < BLOCKS; i++)
        ll_block_release(shared[i]);
    printf("%d callers at once, 3 threads: %zu results differ%s\n", CALLERS, differ, raced ? ", and one value was raced for" : "");
    return differ != 0;
}
