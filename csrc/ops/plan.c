/* ops/plan.c: a model as an array of kernel calls, all rows of all sequences together; no Python between them.
 *
 * Buffers hold rows of float32, one row a position, the sequences one below the other. A call reads and writes columns of
 * them. Where only the last (or the first) positions' results are asked for, the last attention gives one row a sequence,
 * and the rows of those positions are gathered from what else is still needed: from there on, a row is a sequence. */
#include <string.h>

#include "../kernels/table.h"

/* Values a thread must have to be worth waking: some 10 us of work. */
#define PLAN_WORTH_VALUES 65536

/* Calls between two looks at the clock for an interrupt. */
#define PLAN_POLL 8

typedef struct plan_job {
    const ll_run *run;
    const ll_call *call;
} plan_job;

static size_t plan_stride(const ll_run *run, ll_view v) { return run->plan->widths[v.buffer]; }

static float *plan_at(const ll_run *run, ll_view v) { return run->buffers[v.buffer] + v.column; }

/* ---- what has no driver of its own: value by value --------------------------------------------------- */

static void plan_add_task(void *context, size_t begin, size_t end)
{
    const plan_job *job = context;
    const ll_call *c = job->call;
    for (size_t i = begin; i < end; i++) {
        const float *a = plan_at(job->run, c->x) + i * plan_stride(job->run, c->x);
        const float *b = plan_at(job->run, c->x2) + i * plan_stride(job->run, c->x2);
        float *y = plan_at(job->run, c->y) + i * plan_stride(job->run, c->y);
        if (c->op == LL_CALL_ADD)
            for (size_t j = 0; j < c->n; j++)
                y[j] = a[j] + b[j];
        else
            for (size_t j = 0; j < c->n; j++)
                y[j] = a[j] * b[j];
    }
}

/* y = x / number (LL_CALL_DIVIDE), or y = x * number. They are two: the product with 1 / number has other bits. */
static void plan_scale_task(void *context, size_t begin, size_t end)
{
    const plan_job *job = context;
    const ll_call *c = job->call;
    const float number = (float)c->number;
    for (size_t i = begin; i < end; i++) {
        const float *x = plan_at(job->run, c->x) + i * plan_stride(job->run, c->x);
        float *y = plan_at(job->run, c->y) + i * plan_stride(job->run, c->y);
        if (c->op == LL_CALL_DIVIDE)
            for (size_t j = 0; j < c->n; j++)
                y[j] = x[j] / number;
        else
            for (size_t j = 0; j < c->n; j++)
                y[j] = x[j] * number;
    }
}

/* Adds the row of a plain float32 table that belongs to the row's position, or to its token's type. */
static void plan_places_task(void *context, size_t begin, size_t end)
{
    const plan_job *job = context;
    const ll_call *c = job->call;
    const int64_t *places = c->types ? job->run->types : job->run->positions;
    for (size_t i = begin; i < end; i++) {
        const char *row = (const char *)c->weight.data + (ptrdiff_t)places[i] * c->weight.n_stride;
        float *y = plan_at(job->run, c->y) + i * plan_stride(job->run, c->y);
        for (size_t j = 0; j < c->n; j++) {
            float value;
            memcpy(&value, row + j * sizeof value, sizeof value);
            y[j] = y[j] + value;
        }
    }
}

static void plan_rows(const ll_run *run, const ll_call *call, size_t rows, ll_task task)
{
    plan_job job = {run, call};
    ll_parallel_for(rows, call->n, PLAN_WORTH_VALUES, 1, task, &job);
}

/* ---- calls of the drivers ----------------------------------------------------------------------------- */

static int plan_embedding(const ll_run *run, const ll_call *c, size_t rows)
{
    ll_embedding_args a = {.table = c->weight, .ids = run->ids, .y = plan_at(run, c->y), .rows = rows};
    if (ll_embedding(&a) < rows)
        return -1; /* ids were checked: it can't be */
    if (c->number != 1.0) {
        ll_call scale = *c;
        scale.x = c->y;
        scale.op = LL_CALL_SCALE;
        plan_rows(run, &scale, rows, plan_scale_task);
    }
    return 0;
}

static int plan_norm(const ll_run *run, const ll_call *c, size_t rows)
{
    const ptrdiff_t size = sizeof(float);
    for (size_t h = 0; h < c->heads; h++) {
        ll_norm_args a = {.x = plan_at(run, c->x) + h * c->n, .y = plan_at(run, c->y) + h * c->n,
                          .x_stride = (ptrdiff_t)plan_stride(run, c->x) * size,
                          .y_stride = (ptrdiff_t)plan_stride(run, c->y) * size, .weight = c->scale, .bias = c->bias,
                          .rows = rows, .n = c->n, .eps = c->number, .dtype = LL_F32};
        if (c->op == LL_CALL_LAYER_NORM)
            ll_layer_norm(&a);
        else
            ll_rms_norm(&a);
    }
    return 0;
}

/* Tells idle threads what is read next from memory: a linear layer's weight, or of a single sequence its keys and values,
 * newest first; after the last one it is the next run's first. */
static void plan_ahead(const ll_run *run, const ll_call *c)
{
    const ll_plan *plan = run->plan;
    const ll_sequence *s = run->sequence_count == 1 && run->sequences->caches ? run->sequences : NULL;
    const ll_call *next = c;
    for (size_t i = 0; i < plan->count; i++) {
        next = next + 1 < plan->calls + plan->count ? next + 1 : plan->calls;
        if (next->op == LL_CALL_LINEAR) {
            ll_linear_ahead(&next->weight, run->rows, next->gated);
            return;
        }
        if (s && next->op == LL_CALL_ATTENTION) {
            const ll_cache *cache = &s->caches[next->layer];
            ll_ahead what = {.bytes = ll_chunk_floats(cache->D) * sizeof(float), .n = cache->heads, .grain = 1};
            const size_t blocks = (s->start + s->T + LL_BLOCK - 1) / LL_BLOCK;
            for (size_t block = 0; block < LL_AHEAD_PARTS && block < blocks; block++)
                what.data[block] = cache->blocks[blocks - 1 - block];
            ll_parallel_ahead(&what);
            return;
        }
    }
}

static int plan_linear(const ll_run *run, const ll_call *c, size_t rows)
{
    const ptrdiff_t size = sizeof(float);
    ll_linear_args a = {.x = plan_at(run, c->x), .weight = c->weight, .bias = c->bias, .y = plan_at(run, c->y),
                        .x_stride = (ptrdiff_t)plan_stride(run, c->x) * size,
                        .y_stride = (ptrdiff_t)plan_stride(run, c->y) * size, .M = rows, .dtype = LL_F32,
                        .activation = c->function, .gated = c->gated};
    if (c->x2.buffer >= 0) {
        a.residual = plan_at(run, c->x2);
        a.residual_stride = (ptrdiff_t)plan_stride(run, c->x2) * size;
    }
    return ll_linear(&a);
}

static void plan_rope(const ll_run *run, const ll_call *c, size_t rows)
{
    const ptrdiff_t size = sizeof(float);
    ll_rope_args a = {.x = plan_at(run, c->x), .y = plan_at(run, c->y), .x_row = (ptrdiff_t)plan_stride(run, c->x) * size,
                      .x_head = (ptrdiff_t)c->D * size, .y_row = (ptrdiff_t)plan_stride(run, c->y) * size,
                      .y_head = (ptrdiff_t)c->D * size, .rows = rows, .heads = c->heads, .D = c->D, .R = c->R,
                      .cos = run->cos[c->table], .sin = run->sin[c->table], .positions = run->positions, .dtype = LL_F32};
    ll_rope(&a);
}

static void plan_function(const ll_run *run, const ll_call *c, size_t rows)
{
    const ptrdiff_t size = sizeof(float);
    ll_unary_args a = {.x = plan_at(run, c->x), .y = plan_at(run, c->y), .x_stride = (ptrdiff_t)plan_stride(run, c->x) * size,
                       .y_stride = (ptrdiff_t)plan_stride(run, c->y) * size, .rows = rows, .n = c->n, .dtype = LL_F32,
                       .op = c->function};
    ll_unary(&a);
}

static void plan_gate(const ll_run *run, const ll_call *c, size_t rows)
{
    const ptrdiff_t size = sizeof(float);
    ll_gate_args a = {.g = plan_at(run, c->x), .u = plan_at(run, c->x2), .y = plan_at(run, c->y),
                      .g_stride = (ptrdiff_t)plan_stride(run, c->x) * size,
                      .u_stride = (ptrdiff_t)plan_stride(run, c->x2) * size,
                      .y_stride = (ptrdiff_t)plan_stride(run, c->y) * size, .rows = rows, .n = c->n, .dtype = LL_F32,
                      .op = c->function};
    ll_gate(&a);
}

static void plan_softcap(const ll_run *run, const ll_call *c, size_t rows)
{
    ll_call part = *c;
    part.op = LL_CALL_DIVIDE;
    plan_rows(run, &part, rows, plan_scale_task);
    part.x = c->y;
    part.function = LL_TANH;
    plan_function(run, &part, rows);
    part.op = LL_CALL_SCALE;
    plan_rows(run, &part, rows, plan_scale_task);
}

/* Where the rows of a sequence begin that a call is about. */
static size_t plan_row(const ll_call *c, const ll_sequence *s) { return c->rows == LL_LAST_ROW ? s->T - 1 : 0; }

/* Keys and values go to the caches, and every head of every sequence is done, in one call. */
static int plan_attention(const ll_run *run, const ll_call *c)
{
    const size_t q_stride = plan_stride(run, c->x), y_stride = plan_stride(run, c->y), k_stride = plan_stride(run, c->k);
    const size_t v_stride = plan_stride(run, c->v);
    const ptrdiff_t size = sizeof(float);
    ll_attention_head *head = run->heads;
    ll_kv *kv = run->kv;
    size_t row = 0;
    for (size_t i = 0; i < run->sequence_count; i++) {
        const ll_sequence *s = &run->sequences[i];
        const float *q = plan_at(run, c->x) + row * q_stride, *k = plan_at(run, c->k) + row * k_stride;
        const float *v = plan_at(run, c->v) + row * v_stride;
        float *y = plan_at(run, c->y) + (c->rows ? i : row) * y_stride;
        const size_t first_kv = (size_t)(kv - run->kv);
        for (size_t g = 0; g < c->kv_heads; g++, kv++) {
            *kv = s->caches ? ll_cache_kv(&s->caches[c->layer], g, s->start + s->T) : (ll_kv){.Tk = s->T};
            kv->k = k + g * c->D;
            kv->v = v + g * c->D;
            kv->k_stride = (ptrdiff_t)k_stride * size;
            kv->v_stride = (ptrdiff_t)v_stride * size;
            kv->fresh = s->caches ? s->T : 0;
        }
        for (size_t h = 0; h < c->heads; h++)
            *head++ = (ll_attention_head){.q = q + plan_row(c, s) * q_stride + h * c->D, .y = y + h * c->D,
                                          .q_stride = (ptrdiff_t)q_stride * size, .y_stride = (ptrdiff_t)y_stride * size,
                                          .Tq = c->rows ? 1 : s->T, .kv = first_kv + h / (c->heads / c->kv_heads),
                                          .behind = c->rows ? s->T - 1 - plan_row(c, s) : 0,
                                          .bias = c->bias ? c->bias + h * (2 * c->reach + 1) + c->reach : NULL};
        row += s->T;
    }
    ll_attention_args a = {.heads = run->heads, .kv = run->kv, .count = (size_t)(head - run->heads),
                           .kv_count = (size_t)(kv - run->kv), .D = c->D, .scale = c->number, .softcap = c->softcap,
                           .default_scale = c->default_scale, .causal = c->causal, .dtype = LL_F32, .window = c->window,
                           .reach = c->reach};
    return ll_attention(&a);
}

static void plan_mean(const ll_run *run, const ll_call *c)
{
    const ptrdiff_t size = sizeof(float);
    run->starts[0] = 0;
    for (size_t i = 0; i < run->sequence_count; i++)
        run->starts[i + 1] = run->starts[i] + (int64_t)run->sequences[i].T;
    ll_pool_args a = {.x = plan_at(run, c->x), .y = plan_at(run, c->y), .x_stride = (ptrdiff_t)plan_stride(run, c->x) * size,
                      .y_stride = (ptrdiff_t)plan_stride(run, c->y) * size, .starts = run->starts,
                      .count = run->sequence_count, .n = c->n, .skip = run->skip, .dtype = LL_F32};
    ll_mean_pool(&a);
}

/* The last or first row of each sequence moves to row i: never past one that is still to be moved. */
static void plan_gather(const ll_run *run, const ll_call *c)
{
    const size_t stride = plan_stride(run, c->x);
    float *base = run->buffers[c->x.buffer];
    size_t first = 0;
    for (size_t i = 0; i < run->sequence_count; i++) {
        const size_t row = first + plan_row(c, &run->sequences[i]);
        if (row != i)
            memcpy(base + i * stride, base + row * stride, stride * sizeof *base);
        first += run->sequences[i].T;
    }
}

int ll_plan_run(ll_run *run, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++) {
        const ll_call *c = &run->plan->calls[i];
        int failed = 0;
        switch (c->op) {
        case LL_CALL_EMBEDDING: failed = plan_embedding(run, c, run->rows); break;
        case LL_CALL_PLACES: plan_rows(run, c, run->rows, plan_places_task); break;
        case LL_CALL_LAYER_NORM:
        case LL_CALL_RMS_NORM: failed = plan_norm(run, c, run->rows); break;
        case LL_CALL_LINEAR:
            plan_ahead(run, c);
            failed = plan_linear(run, c, run->rows);
            break;
        case LL_CALL_ROPE: plan_rope(run, c, run->rows); break;
        case LL_CALL_ATTENTION:
            plan_ahead(run, c);
            failed = plan_attention(run, c);
            if (c->rows)
                run->rows = run->sequence_count;
            break;
        case LL_CALL_ROWS:
            plan_gather(run, c);
            run->rows = run->sequence_count;
            break;
        case LL_CALL_FUNCTION: plan_function(run, c, run->rows); break;
        case LL_CALL_GATE: plan_gate(run, c, run->rows); break;
        case LL_CALL_ADD:
        case LL_CALL_MULTIPLY: plan_rows(run, c, run->rows, plan_add_task); break;
        case LL_CALL_SCALE:
        case LL_CALL_DIVIDE: plan_rows(run, c, run->rows, plan_scale_task); break;
        case LL_CALL_SOFTCAP: plan_softcap(run, c, run->rows); break;
        case LL_CALL_MEAN:
            plan_mean(run, c);
            run->rows = run->sequence_count;
            break;
        }
        if (failed)
            return -1;
        if (i % PLAN_POLL == PLAN_POLL - 1 && ll_interrupt_poll())
            break; /* the caller asks ll_interrupted() */
    }
    return 0;
}
