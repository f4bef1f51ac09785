/* ops/attention.c: groups heads that share keys, plans tiles and units for each group, writes what is fresh to caches, packs
 * keys and values that come as rows, and splits the units over threads. */
#include "../kernels/table.h"

/* What a thread must have to be worth waking, in multiplications: some 3 us of work, as a step of a model calls for attention
 * while all threads are awake. (Measured: a sequence's decoding behind 64 positions is 2 to 5 % faster than with 10 us.) An
 * exponential counts as EXP, a key's or value's number as READ: it comes from memory, and few queries share it. */
#define GRAIN_FMA (1 << 16)
#define EXP 16
#define READ 4
/* The scores of a unit, which should stay in the second cache; packed keys and values, which should stay in the third. */
#define SCORE_BYTES ((size_t)192 << 10)
#define PACKED_BYTES ((size_t)4 << 20)
/* Values to pack that are worth waking a thread for. */
#define PACK_VALUES 65536
/* Units a thread should have, so that all are done at about the same time. */
#define UNITS_PER_THREAD 4
/* Queries of a part at least. */
#define PART_ROWS 64

typedef struct attention_job {
    const ll_attention_args *args;
    const ll_kernels *kernels;
    ll_attention_group *groups;  /* those of this part */
    size_t count, unit;          /* how many; its first */
    ll_workspaces workspaces;
} attention_job;

/* Of groups [begin, end) of the first part, if several units read it. */
static void write_task(void *context, size_t begin, size_t end)
{
    const attention_job *job = context;
    for (size_t i = begin; i < end; i++)
        if (job->groups[i].writes == LL_WRITTEN_BEFORE)
            job->kernels->kv_write(job->groups[i].kv, job->args->D, job->args->dtype, job->args->dtype);
}

static void units_task(void *context, size_t begin, size_t end)
{
    attention_job *job = context;
    int slot = 0;
    float *workspace = ll_workspace_take(&job->workspaces, &slot);
    job->kernels->attention(job->args, job->groups, job->unit + begin, job->unit + end, workspace);
    ll_workspace_give(&job->workspaces, slot);
}

static void pack_task(void *context, size_t begin, size_t end)
{
    const attention_job *job = context;
    const ll_attention_args *a = job->args;
    const ll_attention_group *g = job->groups;
    for (size_t i = begin; i < end; i++) {
        while (i >= g->item + g->items)
            g++;
        const ll_kv *kv = g->kv;
        const size_t block = i - g->item, t = (g->first_block + block) * LL_BLOCK, count = ll_least(kv->Tk - t, LL_BLOCK);
        float *to = (float *)(uintptr_t)g->packed + block * ll_chunk_floats(a->D);
        job->kernels->attention_keys((const char *)kv->k + (ptrdiff_t)t * kv->k_stride, kv->k_stride, a->dtype, a->D, 0,
                                     count, to);
        job->kernels->attention_values((const char *)kv->v + (ptrdiff_t)t * kv->v_stride, kv->v_stride, a->dtype, a->D, 0,
                                       count, to + LL_BLOCK * a->D);
    }
}

/* Most positions that a query sees of a window. */
static size_t widest(const ll_attention_args *a) { return a->causal ? a->window : 2 * a->window + 1; }

/* The group that begins with this head, of units of at most `most` tiles. */
static ll_attention_group group_at(const ll_attention_args *a, const ll_kernels *kernels, size_t head, size_t most)
{
    const ll_attention_head *h = &a->heads[head];
    const size_t R = kernels->tile_rows;
    ll_attention_group g = {.heads = h, .kv = &a->kv[h->kv], .count = 1, .Tq = h->Tq};
    while (head + g.count < a->count && h[g.count].kv == h->kv && h[g.count].Tq == h->Tq && h[g.count].behind == h->behind)
        g.count++;
    g.tiles = ll_up(g.count * g.Tq, R);
    if (!g.tiles)
        return g;
    size_t most_seen = g.kv->Tk; /* by a tile: from the begin of its first chunk to the end of what its last row sees */
    if (a->window)
        most_seen = ll_least(most_seen, widest(a) + LL_BLOCK + ll_up(R, g.count));
    /* rows of scores not at a distance of whole pages, which share their places in the first cache */
    g.score_stride = ll_whole_panels(most_seen) + LL_PANEL;
    g.together = SCORE_BYTES / (R * g.score_stride * sizeof(float));
    g.together = ll_least(g.together < 1 ? 1 : g.together, ll_least(g.tiles, most));
    g.units = ll_up(g.tiles, g.together);
    g.first_block = ll_attention_sees(a, &g, 0).begin / LL_BLOCK;
    /* Rows are packed beforehand where several units need them. */
    g.items = !g.kv->blocks && g.units > 1 ? ll_up(g.kv->Tk, LL_BLOCK) - g.first_block : 0;
    return g;
}

/* Into how many parts the rows of one sequence, whose heads lie side by side, are divided: a group for each, all heads of a
 * part one after the other. So threads take rows that they have at hand, and make products of next (ops/linear.c). (Measured:
 * 256 to 1024 tokens of a model 1 % faster.) 1 for other calls. */
static size_t row_parts_of(const ll_attention_args *a, size_t threads)
{
    const ll_attention_head *h = a->heads;
    if (h->Tq / PART_ROWS < 2)
        return 1;
    for (size_t i = 0; i < a->count; i++)
        if (!a->kv[h[i].kv].blocks || h[i].Tq != h->Tq || h[i].q_stride != h->q_stride
            || (ptrdiff_t)((uintptr_t)h[i].q - (uintptr_t)h->q) >= h->q_stride)
            return 1;
    return ll_least(h->Tq / PART_ROWS, threads);
}

/* What a call needs. */
typedef struct attention_plan {
    size_t groups, units;
    size_t together;          /* most tiles of a unit */
    size_t workspace;         /* floats, of a thread */
    size_t parts, packed;     /* groups whose keys are packed at a time, as many as the cache likes; floats of the largest */
    size_t fresh;             /* values to write beforehand, of the group that has most */
    double work;
} attention_plan;

/* Of queries that share Tk keys and values and see so many each, in multiplications. */
static double work_of(double queries, double seen, double Tk, double D)
{
    return queries * seen * (2.0 * D + EXP) + Tk * 2.0 * D * READ;
}

/* Fills `groups`, unless it is NULL. */
static attention_plan plan_of(const ll_attention_args *a, const ll_kernels *kernels, size_t row_parts, size_t most,
                              ll_attention_group *groups, float *packed)
{
    const size_t chunk = ll_chunk_floats(a->D), limit = PACKED_BYTES / sizeof(float);
    attention_plan p = {0};
    size_t filled = 0, items = 0; /* of the part */
    for (size_t head = 0, part = 0; part < row_parts; part += head == a->count, head %= a->count) {
        ll_attention_group g = group_at(a, kernels, head, most);
        head += g.count;
        g.first_tile = g.tiles * part / row_parts;
        g.end_tile = g.tiles * (part + 1) / row_parts;
        g.writes = part                           ? LL_WRITTEN_ALREADY
                   : g.units > 1 || row_parts > 1 ? LL_WRITTEN_BEFORE
                                                  : LL_WRITTEN_WITH;
        if (row_parts > 1)
            g.units = ll_up(g.end_tile - g.first_tile, g.together);
        if (!g.units)
            continue;
        if (g.items && filled && filled + g.items * chunk > limit) {
            p.parts++;
            filled = items = 0;
        }
        g.part = p.parts;
        g.unit = p.units;
        g.item = items;
        if (g.items && packed)
            g.packed = packed + filled;
        items += g.items;
        filled += g.items * chunk;
        p.packed = filled > p.packed ? filled : p.packed;
        const size_t floats = kernels->attention_floats(&g, a->D);
        p.workspace = floats > p.workspace ? floats : p.workspace;
        const double Tk = (double)(g.kv->Tk - g.first_block * LL_BLOCK), Tq = (double)g.Tq;
        double seen = a->causal ? Tk - Tq / 2 : Tk;
        if (a->window && (double)widest(a) < seen)
            seen = (double)widest(a);
        const double work = work_of(Tq * (double)g.count, seen, Tk, (double)a->D);
        p.work += work / (double)row_parts;
        if (g.writes == LL_WRITTEN_BEFORE && 2 * g.kv->fresh * a->D > p.fresh)
            p.fresh = 2 * g.kv->fresh * a->D;
        p.units += g.units;
        p.together = g.together > p.together ? g.together : p.together;
        if (groups)
            groups[p.groups] = g;
        p.groups++;
    }
    return p;
}

/* Of units. */
static size_t grain_of(double work, size_t units) { return (size_t)(GRAIN_FMA / (work / (double)units)) + 1; }

int ll_attention_alone(size_t heads, size_t kv_heads, size_t D, size_t Tk)
{
    const double work = (double)kv_heads * work_of((double)(heads / kv_heads), (double)Tk, (double)Tk, (double)D);
    return grain_of(work, kv_heads) >= kv_heads;
}

int ll_attention(const ll_attention_args *a)
{
    if (!a->count || !a->D)
        return 0;
    attention_job job = {.args = a, .kernels = ll_table(), .workspaces = {.threads = ll_threads()}};
    ll_workspaces *w = &job.workspaces;
    const size_t row_parts = row_parts_of(a, (size_t)w->threads);
    attention_plan plan = plan_of(a, job.kernels, row_parts, job.kernels->attention_together, NULL, NULL);
    while (plan.together > 1 && plan.units < UNITS_PER_THREAD * (size_t)w->threads)
        plan = plan_of(a, job.kernels, row_parts, plan.together - 1, NULL, NULL);
    if (!plan.units)
        return 0;

    /* no more workspaces than there is work */
    const size_t grain = grain_of(plan.work, plan.units);
    w->threads = (int)ll_least((size_t)w->threads, ll_up(plan.units, grain));
    const size_t table = (plan.groups * sizeof *job.groups + 63) / 64 * 64;
    ll_scratch scratch;
    if (plan.workspace > SIZE_MAX / 16 || plan.packed > SIZE_MAX / 16
        || ll_scratch_take(&scratch, table + plan.packed * sizeof(float), (size_t)w->threads,
                           (plan.workspace + 16) * sizeof(float)))
        return -1;
    ll_attention_group *groups = (ll_attention_group *)(void *)scratch.shared;
    float *packed = (float *)(void *)(scratch.shared + table);
    w->base = (float *)(void *)scratch.own;
    w->floats = scratch.stride / sizeof(float);
    plan_of(a, job.kernels, row_parts, plan.together, groups, packed);

    job.groups = groups;
    if (plan.fresh)
        ll_parallel_for(plan.groups / row_parts, plan.fresh, PACK_VALUES, 1, write_task, &job);
    const size_t chunk = ll_chunk_floats(a->D);
    for (size_t i = 0; i < plan.groups;) {
        size_t items = 0, units = 0;
        job.groups = &groups[i];
        job.unit = groups[i].unit;
        for (const size_t part = groups[i].part; i < plan.groups && groups[i].part == part; i++) {
            items += groups[i].items;
            units += groups[i].units;
        }
        job.count = (size_t)(&groups[i] - job.groups);
        if (items)
            ll_parallel_for(items, chunk, PACK_VALUES, 1, pack_task, &job);
        ll_parallel_for_threads(units, grain, w->threads, plan.work <= (double)LL_BRIEF_FMA, units_task, &job);
    }
    ll_scratch_give(&scratch);
    return 0;
}
