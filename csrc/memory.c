/* memory.c: what is allocated for kernels, by their drivers and by Cython.
 *
 * Working memory of a call is kept for the next one. A fresh block of some megabytes costs a page fault
 * every 4 KB, which is more than packing into it; so one block waits here for those that call, and one for each worker that
 * makes parts of calls. Two callers at once: the second gets a block of its own. A worker's comes from the system: the C library
 * would keep 64 MB of a limited address space for each thread that asks it.
 *
 * What is a thread's own lies at the same place in one call and the next, once there is room for what each needs: so it stays
 * in the caches of its core, and no other's has to be asked for it. (Measured: 512 tokens of a model by float32, on two cores
 * that have a cache each, 3 to 5 % faster.) */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "llorch.h"

/* Larger blocks go back to the system, those of workers, of which there may be many, sooner. */
#define KEEP_BYTES ((size_t)64 << 20)
#define KEEP_BYTES_WORKER ((size_t)16 << 20)
#define ALIGNMENT 64

/* Followed by `bytes` of memory, ALIGNMENT further on: `stride` for each of `threads`, then what is shared. */
typedef struct block {
    size_t bytes, threads, stride, shared;
    unsigned turn; /* of who works in it */
} block;

static _Atomic(block *) spares[LL_MAX_THREADS];

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

static size_t whole_lines(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* A block of so much; its bytes are 0 where there can't be as many. */
static block block_of(size_t threads, size_t stride, size_t shared)
{
    const int fits = shared <= SIZE_MAX / 4 && (!stride || threads <= SIZE_MAX / 4 / stride);
    return (block){fits ? threads * stride + shared + ALIGNMENT : 0, threads, stride, shared, 0};
}

static size_t keep_bytes(void) { return ll_thread_number() ? KEEP_BYTES_WORKER : KEEP_BYTES; }

static void *from_system(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static block *block_new(const block *wanted)
{
    const size_t bytes = wanted->bytes + ALIGNMENT;
    block *b = !wanted->bytes ? NULL : ll_thread_number() ? from_system(bytes) : aligned_alloc(ALIGNMENT, bytes);
    if (b)
        *b = *wanted;
    return b;
}

/* By the thread that made it, or another of number 0. */
static void block_free(block *b)
{
    if (!ll_thread_number())
        free(b);
    else if (b)
        (void)munmap(b, b->bytes + ALIGNMENT);
}

/* The kept block as it is, or a new one that has room for the calls before, too. Where that is too much: the kept one, divided
 * in another way, or a new one in its place. */
static block *block_for(block *kept, const block *wanted)
{
    if (!kept)
        return block_new(wanted);
    if (kept->threads >= wanted->threads && kept->stride >= wanted->stride && kept->shared >= wanted->shared)
        return kept;
    const block both = block_of(most(kept->threads, wanted->threads), most(kept->stride, wanted->stride),
                                most(kept->shared, wanted->shared));
    block *b = both.bytes <= keep_bytes() ? block_new(&both) : NULL;
    if (!b && wanted->bytes && kept->bytes >= wanted->bytes) {
        *kept = (block){kept->bytes, wanted->threads, wanted->stride, wanted->shared, 0};
        return kept;
    }
    block_free(kept);
    return b ? b : block_new(wanted);
}

int ll_scratch_take(ll_scratch *s, size_t shared, size_t threads, size_t own)
{
    if (shared > SIZE_MAX / 4 || own > SIZE_MAX / 4)
        return -1;
    const block wanted = block_of(own ? threads : 0, whole_lines(own), whole_lines(shared));
    block *b = block_for(atomic_exchange_explicit(&spares[ll_thread_number()], NULL, memory_order_acquire), &wanted);
    if (!b)
        return -1;
    s->own = (char *)b + ALIGNMENT;
    s->stride = b->stride;
    s->shared = s->own + b->threads * b->stride;
    s->turn = &b->turn;
    return 0;
}

void ll_scratch_give(const ll_scratch *s)
{
    block *b = (block *)(void *)(s->own - ALIGNMENT);
    if (b->bytes <= keep_bytes())
        b = atomic_exchange_explicit(&spares[ll_thread_number()], b, memory_order_acq_rel);
    block_free(b);
}

/* ---- memory that stays -------------------------------------------------------------------------- */

/* What is read from front to back again and again: large pages save a walk through the page tables every 4 KB. */
#define LARGE_PAGE ((size_t)2 << 20)

void *ll_memory_new(size_t bytes)
{
    size_t alignment = bytes >= 2 * LARGE_PAGE ? LARGE_PAGE : ALIGNMENT;
    if (bytes > SIZE_MAX - 2 * alignment)
        return NULL;
    size_t rounded = (bytes + alignment) / alignment * alignment; /* one byte at least */
    void *memory = aligned_alloc(alignment, rounded);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (memory && alignment == LARGE_PAGE) /* a wish: small pages do as well; the end has them, for it may be a few KB */
        (void)madvise(memory, bytes / LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE);
#endif
    return memory;
}

void ll_memory_free(void *memory) { free(memory); }

/* ---- weights -------------------------------------------------------------------------------------
 *
 * Most weights of a small model are smaller than a large page. They lie in regions of such pages, one behind the other:
 * products of 34 rows on 42 MB of them are a tenth faster than with a page every 4 KB (measured). A region is freed with
 * its last weight; a page of it goes back with the last weight that has a part of it, whole, as the system can then give it
 * to the next weight as it is. */
#define REGION_PAGES 16
#define REGION_BYTES (REGION_PAGES * LARGE_PAGE)
#define OWN_REGION (4 * LARGE_PAGE) /* from so many bytes on a weight has one to itself */

#if defined(__linux__) && defined(MADV_HUGEPAGE) && !defined(LL_SANITIZE)
#define REGIONS 1
#else /* no large pages to wish for, or somebody who looks at where each weight ends */
#define REGIONS 0
#endif

/* What is told of a weight lies with who has it: written here, it would have the system clear a page for every weight
 * before there is anything to fill in, all on one thread (measured: 17 of the 70 ms that 92 MB of blocks take to load). */
typedef struct ll_region {
    atomic_size_t owners;              /* its weights, and `filling` */
    atomic_size_t owned[REGION_PAGES]; /* of each page the weights in it, and one more: of the first this, of others who fills */
    size_t used, bytes;
} region; /* followed by the weights, HEADER further on */

#define HEADER ((sizeof(region) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT)

/* Where the next weight goes: into the first if there is room, or the second. So what a large weight has no room in is
 * filled by smaller ones. Who takes them out has them alone; of two at once the second makes others, and what is put back
 * last stays. */
static _Atomic(region *) filling[2];

static region *region_new(size_t bytes)
{
    region *r = ll_memory_new(bytes);
    if (!r)
        return NULL;
    atomic_init(&r->owners, 1);
    for (size_t page = 0; page < REGION_PAGES; page++)
        atomic_init(&r->owned[page], 1);
    r->used = HEADER;
    r->bytes = bytes;
    return r;
}

static void region_release(region *r)
{
    if (atomic_fetch_sub_explicit(&r->owners, 1, memory_order_acq_rel) == 1)
        ll_memory_free(r);
}

/* One less has pages [begin, end). */
static void pages_release(region *r, size_t begin, size_t end)
{
#if REGIONS
    for (size_t page = begin; page < end && r->bytes == REGION_BYTES; page++)
        if (atomic_fetch_sub_explicit(&r->owned[page], 1, memory_order_acq_rel) == 1)
            (void)madvise((char *)r + page * LARGE_PAGE, LARGE_PAGE, MADV_DONTNEED);
#else
    (void)r, (void)begin, (void)end;
#endif
}

/* Nothing more goes into a region that the caller has alone. */
static void region_close(region *r)
{
    if (!r)
        return;
    const size_t page = r->used / LARGE_PAGE;
    pages_release(r, page ? page : 1, REGION_PAGES);
    region_release(r);
}

/* The place of a weight in a region that the caller has alone. */
static ll_weight_memory region_place(region *r, size_t bytes)
{
    const ll_weight_memory placed = {(char *)r + r->used, r, bytes};
    const size_t begin = r->used / LARGE_PAGE, end = (r->used + bytes) / LARGE_PAGE;
    r->used += bytes;
    atomic_fetch_add_explicit(&r->owners, 1, memory_order_relaxed);
    if (r->bytes == REGION_BYTES) {
        for (size_t page = begin; page <= end && page < REGION_PAGES; page++)
            atomic_fetch_add_explicit(&r->owned[page], 1, memory_order_relaxed);
        pages_release(r, begin ? begin : 1, end); /* full */
    }
    return placed;
}

/* Closes it; what its last weight has begun of a large page comes in small ones, as a page of which little is used takes
 * memory as a full one does. */
static void region_end(region *r)
{
#if REGIONS
    if (r->used % LARGE_PAGE && r->used < r->bytes)
        (void)madvise((char *)r + r->used / LARGE_PAGE * LARGE_PAGE, LARGE_PAGE, MADV_NOHUGEPAGE);
#endif
    region_close(r);
}

static size_t region_room(const region *r) { return r ? r->bytes - r->used : 0; }

static region *filling_take(int i) { return atomic_exchange_explicit(&filling[i], NULL, memory_order_acq_rel); }

static void filling_put(int i, region *r) { region_close(atomic_exchange_explicit(&filling[i], r, memory_order_acq_rel)); }

/* A weight in a region of its own. */
static ll_weight_memory weight_apart(size_t whole)
{
    ll_weight_memory memory = {0};
    region *r = region_new(HEADER + whole);
    if (r)
        memory = region_place(r, whole);
    region_close(r);
    return memory;
}

ll_weight_memory ll_weight_new(size_t bytes)
{
    ll_weight_memory memory = {0};
    if (bytes > SIZE_MAX - HEADER - 2 * ALIGNMENT)
        return memory;
    const size_t whole = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT; /* one byte at least */
    if (!REGIONS || whole >= OWN_REGION)
        return weight_apart(whole);
    region *first = filling_take(0), *second = filling_take(1);
    if (region_room(first) < whole && region_room(second) < whole) {
        region *const fresh = region_new(REGION_BYTES);
        region *const fuller = region_room(first) < region_room(second) ? first : second;
        if (fresh) {
            first = fuller == first ? second : first;
            second = fresh;
            region_close(fuller);
        }
    }
    region *const r = region_room(first) >= whole ? first : second;
    if (region_room(r) >= whole)
        memory = region_place(r, whole);
    filling_put(0, first);
    filling_put(1, second);
    return memory.data ? memory : weight_apart(whole); /* no room for a region: for this weight there may be */
}

void ll_weights_end(void)
{
    for (int i = 0; i < 2; i++) {
        region *const r = filling_take(i);
        if (region_room(r) > REGION_BYTES - LARGE_PAGE) /* the first page has come with the header: for small models' others */
            filling_put(i, r);
        else if (r)
            region_end(r);
    }
}

void ll_weight_free(const ll_weight_memory *memory)
{
    region *r = memory->region;
    if (!r)
        return;
    const size_t begin = (size_t)((const char *)memory->data - (const char *)r);
    pages_release(r, begin / LARGE_PAGE, ll_least((begin + memory->bytes) / LARGE_PAGE + 1, REGION_PAGES));
    region_release(r);
}
