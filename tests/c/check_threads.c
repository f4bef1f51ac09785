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
    float product[M * N], attended[HEADS * T * D], cached[HEADS * T * D], written[HEADS * T * D], softmax[VALUES], gelu[VALUES];
} results;

/* A cache whose blocks all callers share. */
static ll_cache shared;

static void attend(float *y, const ll_cache *cache)
{
    ll_attention_head head[HEADS];
    ll_kv kv[HEADS];
    const ptrdiff_t row = D * sizeof(float);
    for (size_t i = 0; i < HEADS; i++) {
        kv[i] = cache ? ll_cache_kv(cache, i, T)
                      : (ll_kv){.k = k + i * T * D, .v = v + i * T * D, .k_stride = row, .v_stride = row, .Tk = T};
        head[i] = (ll_attention_head){.q = q + i * T * D, .y = y + i * T * D, .q_stride = row, .y_stride = row, .Tq = T,
                                      .kv = i};
    }
    ll_attention_args a = {.heads = head, .kv = kv, .count = HEADS, .kv_count = HEADS, .D = D, .default_scale = 1,
                           .causal = 1};
    if (ll_attention(&a))
        exit(2);
}

/* Positions [first, T) of k and v. */
static void append(ll_cache *cache, size_t first)
{
    const ptrdiff_t row = D * sizeof(float);
    ll_cache_rows rows = {.k = k + first * D, .v = v + first * D, .k_head = T * row, .v_head = T * row, .k_stride = row,
                          .v_stride = row, .first = first, .T = T - first};
    if (ll_cache_reserve(cache, rows.T))
        exit(2);
    ll_cache_write(cache, &rows);
    cache->length += rows.T;
}

static void call_all(results *r)
{
    ll_linear_args a = {.x = x, .y = r->product, .x_stride = K * sizeof(float), .y_stride = N * sizeof(float), .M = M,
                        .weight = {.data = weight, .k_stride = N * sizeof(float), .n_stride = sizeof(float), .K = K, .N = N}};
    if (ll_linear(&a))
        exit(2);

    attend(r->attended, NULL);

    ll_cache own;
    if (ll_cache_fork(&shared, &own))
        exit(2);
    attend(r->cached, &own);
    ll_cache_truncate(&own, T - 50); /* within a block that the others read */
    append(&own, T - 50);
    attend(r->written, &own);
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
    printf("%d callers at once, 3 threads: %zu results differ%s\n", CALLERS, differ, raced ? ", and one value was raced for" : "");
    return differ != 0;
}
