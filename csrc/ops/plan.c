/* ops/plan.c: a model as an array of kernel calls, all rows of all sequences together, or of a thread's; no Python between them.
 *
 * Buffers hold rows of float32, one row a position, the sequences one below the other. A call reads and writes columns of
 * them. Where only the last (or the first) positions' results are asked for, the last attention gives one row a sequence,
 * and the rows of those positions are gathered from what else is still needed: from there on, a row is a sequence. */
#include <stdatomic.h>
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

/* The run's first row of a buffer. */
static float *plan_row0(const ll_run *run, size_t buffer)
{
    const size_t first = buffer == run->plan->output ? run->first_output : run->first;
    return run->buffers[buffer] + first * run->plan->widths[buffer];
}

static float *plan_at(const ll_run *run, ll_view v) { return plan_row0(run, (size_t)v.buffer) + v.column; }

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
 * newest first, if they are several threads'; after the last one it is the next run's first. */
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
        const size_t Tk = s ? s->start + s->T : 0, seen = next->window ? ll_least(next->window, Tk) : Tk;
        if (s && next->op == LL_CALL_ATTENTION && (s->T > 1 || !ll_attention_alone(next->heads, next->kv_heads, next->D, seen))) {
            const ll_cache *cache = &s->caches[next->layer];
            ll_ahead what = {.bytes = ll_chunk_floats(cache->D) * sizeof(float), .n = cache->heads, .grain = 1};
            const size_t blocks = ll_up(Tk, LL_BLOCK);
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
        if (s->caches) { /* the pointers to its blocks: else its first unit waits for memory, and then for what they point to */
            float *const *blocks = s->caches[c->layer].blocks;
            __builtin_prefetch(blocks);
            __builtin_prefetch(blocks + (s->start + s->T - 1) / LL_BLOCK);
        }
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
    float *base = plan_row0(run, (size_t)c->x.buffer);
    size_t first = 0;
    for (size_t i = 0; i < run->sequence_count; i++) {
        const size_t row = first + plan_row(c, &run->sequences[i]);
        if (row != i)
            memcpy(base + i * stride, base + row * stride, stride * sizeof *base);
        first += run->sequences[i].T;
    }
}

/* Calls [begin, end). */
static int plan_calls(ll_run *run, size_t begin, size_t end)
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

/* ---- parts: some of the sequences each --------------------------------------------------------------------
 *
 * A sequence's rows need no other's. Where every product is made by blocks of rows anyway, one for each thread, a thread makes all
 * calls for some of the sequences instead: nobody waits at the end of each, and no row goes from core to core. (Measured on two
 * cores of a Zen 4, a step of 16 and 32 sequences: 8-bit and 4-bit weights by integers 1.02 to 1.05 x as fast where the cores share
 * a cache, 1.10 to 1.14 where they don't; 16-bit weights 1.02 and 1.05.) */

/* Parts are as even as sequences allow. The largest is so many times the mean at most: threads that are done help, but not so
 * well. Rows of a thread at most: of more (measured: 440) a call at a time is as fast, or 1 % faster. */
#define PLAN_UNEVEN 1.25
#define PLAN_ROWS 256
/* What it takes to read a number of a key or a value from memory, in multiplications (ops/attention.c). */
#define PLAN_READ 4

/* Multiplications of a sequence: T * row + end, and of attention, all of it [0] and within a window [1], for each pair of a query
 * and a key that it sees `key`, for each key `read`. */
typedef struct plan_costs {
    double row, end, key[2], read[2], window;
    int causal;
} plan_costs;

/* What all calls take together. 0: some product is better made by all threads. */
static int plan_costs_of(const ll_run *run, size_t threads, plan_costs *costs)
{
    size_t rows = run->rows;
    *costs = (plan_costs){.causal = 1};
    for (const ll_call *c = run->plan->calls; c < run->plan->calls + run->plan->count; c++) {
        if (c->op == LL_CALL_LINEAR) {
            if (!ll_linear_by_blocks(&c->weight, rows, threads))
                return 0;
            *(rows == run->rows ? &costs->row : &costs->end) += (double)c->weight.K * (double)c->weight.N;
        }
        if (c->op == LL_CALL_ATTENTION) {
            costs->key[c->window > 0] += 2.0 * (double)(c->heads * c->D);
            costs->read[c->window > 0] += 2.0 * PLAN_READ * (double)(c->kv_heads * c->D);
            costs->window = c->window ? (double)c->window : costs->window;
            costs->causal = c->causal;
        }
        if (c->op == LL_CALL_ROWS || c->op == LL_CALL_MEAN || (c->op == LL_CALL_ATTENTION && c->rows))
            rows = run->sequence_count;
    }
    return 1;
}

static double plan_cost(const plan_costs *c, const ll_sequence *s)
{
    const double T = (double)s->T, all = (double)s->start + T, widest = c->causal ? c->window : 2 * c->window + 1;
    const double seen = c->causal ? all - T / 2 : all; /* by a query */
    return T * c->row + c->end + T * seen * c->key[0] + all * c->read[0]
           + T * (seen < widest ? seen : widest) * c->key[1] + (all < widest + T ? all : widest + T) * c->read[1];
}

typedef struct plan_parts {
    const ll_run *run;
    size_t first[LL_MAX_THREADS + 1], row[LL_MAX_THREADS + 1]; /* sequence and row that each part begins with; all */
    atomic_int failed;
} plan_parts;

/* As many parts as threads, which are no more than sequences. 0: they would be too uneven. */
static int plan_divide(plan_parts *p, size_t threads, const plan_costs *costs)
{
    const ll_sequence *s = p->run->sequences;
    const size_t count = p->run->sequence_count;
    double all = 0, done = 0, most = 0;
    for (size_t i = 0; i < count; i++)
        all += plan_cost(costs, &s[i]);
    const double mean = all / (double)threads;
    size_t i = 0, row = 0;
    for (size_t part = 0; part < threads; part++) {
        const size_t end = count - (threads - 1 - part); /* each that follows has one */
        const double begun = done;
        p->first[part] = i;
        p->row[part] = row;
        do {
            done += plan_cost(costs, &s[i]);
            row += s[i++].T;
        } while (i < end && (part + 1 == threads || done + plan_cost(costs, &s[i]) / 2 <= mean * (double)(part + 1)));
        most = done - begun > most ? done - begun : most;
    }
    p->first[threads] = count;
    p->row[threads] = row;
    return most <= PLAN_UNEVEN * mean;
}

static void plan_part_task(void *context, size_t begin, size_t end)
{
    plan_parts *p = context;
    for (size_t part = begin; part < end; part++) {
        const size_t first = p->first[part], row = p->row[part];
        ll_run run = *p->run;
        run.rows = p->row[part + 1] - row;
        run.sequence_count = p->first[part + 1] - first;
        run.ids += row;
        run.positions += row;
        if (run.types)
            run.types += row;
        run.sequences += first;
        run.first = row;
        run.first_output = run.output_rows == p->run->rows ? row : first;
        run.heads += first * run.plan->heads;
        run.kv += first * run.plan->kv_heads;
        run.starts += first + part;
        if (plan_calls(&run, 0, run.plan->count))
            atomic_store_explicit(&p->failed, 1, memory_order_relaxed);
    }
}

/* Whether there were parts, which have been run then; failed: for lack of memory. If another caller has the pool there are none:
 * each call asks for it again. */
static int plan_by_parts(ll_run *run, size_t threads, int *failed)
{
    plan_parts p = {.run = run};
    plan_costs costs;
    if (!plan_costs_of(run, threads, &costs) || !plan_divide(&p, threads, &costs)
        || !ll_parallel_parts((int)threads, plan_part_task, &p))
        return 0;
    run->rows = run->output_rows;
    *failed = atomic_load_explicit(&p.failed, memory_order_relaxed);
    return 1;
}

int ll_plan_run(ll_run *run, size_t begin, size_t end)
{
    const size_t threads = (size_t)ll_threads();
    int failed = 0;
    if (threads > 1 && run->sequence_count >= threads && run->rows <= PLAN_ROWS * threads && begin == 0 && end == run->plan->count
        && plan_by_parts(run, threads, &failed))
        return failed ? -1 : 0;
    return plan_calls(run, begin, end);
}
