/* parallel.c: all threading. A small pool of our own that splits a range over threads.
 *
 * Why not OpenMP: a process forked after a region of libgomp hangs in its own first region, and
 * multiprocessing forks by default before Python 3.14; a region costs 15 us after a rest; and a second
 * runtime in the process fights the first (PyTorch's) for the cores.
 *
 * Protocol. A job lies in a `job`; its `state` says whether workers may join it:
 *
 *     state = generation << 20 | slots << 10 | joined           joinable while joined < slots
 *
 * The caller writes the job, then stores a new state (release). A worker joins by compare-and-swap of
 * joined + 1 (acquire), takes chunks until there are none, and counts itself as finished (release). The caller takes chunks
 * too; then it closes the job by exchanging the state for one without slots, which also tells how many had joined, and waits
 * for those alone (acquire). A worker that the system had no time for is not waited for: it finds the job closed. As no
 * worker reads the job without having joined, and none is left in it when the caller goes, the job can be written again.
 *
 * Chunks. Each thread has a range of its own, side by side in memory, and takes half of what is left of it, from its front: so
 * a thread reads one stream, begins where it was foreseen to begin, and its last chunks are small. Who has none left takes
 * half of another's, from its end; a thread that never came loses its range so. Whose range it is, is no one's to rely on: a
 * chunk is taken by compare-and-swap.
 *
 * Idle workers look at the state for SPIN_NS, meanwhile call for what the caller said comes next (ll_parallel_ahead: it
 * comes with a job; nothing is read, and what is gone costs a few lines of cache), and then sleep. Sleeping is announced in
 * `sleepers` before the last look at the state, and the caller stores the state before it looks at `sleepers`, both sequentially
 * consistent: one of the two sees the other, and no wake-up is lost. Nobody asleep: no system call.
 *
 * One caller at a time has the pool; others, and calls from within a task, run on their own thread. Workers are made
 * when a job first has work for them; where the system refuses one, those that are there do the work. A
 * forked child starts with no workers.
 *
 * Parts (ll_parallel_parts) are long tasks of many calls, one for each thread, which makes its calls by itself. A thread that has
 * none left helps: it joins calls of those that still have one, each of which then opens a job of its own, by the protocol above.
 * A call within such a call (a signal's handler can make one) runs on its own thread.
 *
 * Interrupts. Where the caller has asked for them (ll_interrupts_on), it looks between its chunks whether the host wants
 * the call to end, and no chunk is then larger than what takes CHUNK_NS. The first of a thread is small, as its time isn't
 * known; what is brief in itself isn't cut, nor are calls of a part after short ones. What is left of an interrupted job, and
 * later jobs of the same call, are dropped, by workers in parts, too, which `stopped` tells. Which thread computes what never
 * changes a bit: a kernel computes each row by itself. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fpenv.h"
#include "llorch.h"

#define SPIN_NS 200000 /* what passes between two calls of a program in Python, where waking up would take 50000 */
#define STACK_BYTES (512 * 1024)
#define SPARE_BYTES ((size_t)64 << 20)
#define CHUNK_NS 20000000
#define ASK_NS 50000000
#define SHORT_NS (CHUNK_NS / 16) /* a part's call may take 16 times as long as those before it */
#define FIRST_CHUNKS 32 /* of a thread's range: the first is one of so many */
#define WORTH_GRAINS 4 /* of what is worth a thread: the last of them is what one waits for another */
#define WORTH_PARTS 8 /* of a thread's range: a smaller one isn't worth fetching what another core has at hand */
#define WORTH_MOST 16 /* times what is worth a thread is a part at most: an interrupt waits for its end */
#define AHEAD_BYTES ((size_t)256 << 10) /* called for by one thread at most: some of its second cache */
/* Between two looks at the state, which a pause divides: what a core can't have under way at once it leaves out. (Measured on
 * Zen 4: of 256 KB called for in one go a third comes; of 12 or 16 lines a pause nearly all, at a core's full speed.) */
#define AHEAD_LINES 12

#define SLOT ((uint64_t)1 << 10)
#define GENERATION ((uint64_t)1 << 20)
#define COUNT_MASK ((uint64_t)1023)

/* [0, n), in grains: the last may be shorter. parts: its grains are. brief: not cut for interrupts. */
typedef struct work {
    ll_task task;
    void *context;
    size_t n, grain, grains;
    int parts, brief;
} work;

/* Grains [begin, end): begin << 32 | end. A line of the cache each. */
typedef struct range {
    _Alignas(64) _Atomic uint64_t left;
} range;

typedef struct job {
    work work;
    int threads;
    int timed; /* chunks end in time for an interrupt */
    atomic_int finished;
    _Alignas(64) _Atomic uint64_t state;
    range *ranges; /* of its threads */
} job;

static range pool_ranges[LL_MAX_THREADS];
static job pool = {.ranges = pool_ranges};

/* A call within a part, with which others help, so many threads at most with it; of each thread. */
#define HELPED 8
typedef struct helped {
    job job;
    range ranges[HELPED];
    int64_t longest; /* ns of a call of the part so far */
} helped;
static helped calls[LL_MAX_THREADS];
static atomic_int stopped; /* the caller of parts was interrupted */
static atomic_int helpers; /* threads of the pool's job that have no part left */
static atomic_size_t parts_made, parts_helped; /* for the tests: jobs of parts, and chunks of their calls that helpers took */

static atomic_int sleepers;
static atomic_flag busy = ATOMIC_FLAG_INIT;
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static int workers; /* belongs to whoever holds busy */
static atomic_int num_threads;

/* What ll_parallel_ahead was told, and the how manieth time that was: by this thread, and by the one that opened a job last. */
typedef struct told {
    ll_ahead what;
    size_t number;
} told;
static _Thread_local told coming; /* of threads that call */
static _Alignas(64) struct {
    _Atomic(const char *) data[LL_AHEAD_PARTS];
    atomic_size_t bytes, n, grain, number;
} ahead;

static inline void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- interrupts -------------------------------------------------------------------------------- */

static _Atomic(int (*)(void)) interrupt_check;
static _Thread_local int interruptible, interrupted;
static _Thread_local int64_t asked; /* when; 0: the call has only begun */

void ll_set_interrupt_check(int (*check)(void)) { atomic_store(&interrupt_check, check); }

void ll_interrupts_on(void)
{
    interruptible = 1;
    interrupted = 0;
    asked = 0;
}

int ll_interrupted(void)
{
    const int was = interrupted;
    interruptible = interrupted = 0;
    return was;
}

static int ask_at(int64_t now)
{
    int (*check)(void) = atomic_load_explicit(&interrupt_check, memory_order_relaxed);
    if (!asked)
        asked = now;
    if (interruptible && !interrupted && now - asked > ASK_NS && check) {
        interrupted = check() != 0;
        asked = now_ns();
    }
    return interrupted;
}

/* fork copies only the calling thread: the child has no workers, and the locks may have been held. */
static void forget_workers(void)
{
    workers = 0;
    atomic_store(&pool.state, 0);
    for (int number = 0; number < LL_MAX_THREADS; number++)
        atomic_store(&calls[number].job.state, 0);
    atomic_store(&helpers, 0);
    atomic_store(&sleepers, 0);
    atomic_flag_clear(&busy);
    pthread_mutex_init(&sleep_lock, NULL);
    pthread_cond_init(&wake, NULL);
}

/* ---- threads ------------------------------------------------------------------------------------ */

/* Where a thread is: in a part of the pool's job or not. */
enum { OUTSIDE, IN_PART };

/* A thread's number and place lie where every thread has room for them. A variable of a thread would have the C library take
 * memory in each new worker: of a limited address space 64 MB each, and where there is none left it ends the process. */
static pthread_key_t thread_key;
static int has_key;
static pthread_once_t set_up_once = PTHREAD_ONCE_INIT;
static void set_up(void)
{
    pthread_atfork(NULL, NULL, forget_workers);
    has_key = !pthread_key_create(&thread_key, NULL);
}

static int thread_value(void)
{
    pthread_once(&set_up_once, set_up);
    return has_key ? (int)(intptr_t)pthread_getspecific(thread_key) : 0;
}

int ll_thread_number(void) { return thread_value() % LL_MAX_THREADS; }

static int place(void) { return thread_value() / LL_MAX_THREADS; }

/* Without a key a thread has the number of those that call, and there are no parts. */
static void set_thread(int number, int place)
{
    if (has_key)
        (void)pthread_setspecific(thread_key, (void *)(intptr_t)(place * LL_MAX_THREADS + number));
}

/* Whether the host wants the call to end. A worker hears it from the thread that called, in parts. */
static int stop_at(int number, int64_t now)
{
    if (number)
        return atomic_load_explicit(&stopped, memory_order_relaxed);
    const int stop = ask_at(now);
    if (stop && place() == IN_PART)
        atomic_store_explicit(&stopped, 1, memory_order_relaxed);
    return stop;
}

int ll_interrupt_poll(void)
{
    const int number = ll_thread_number();
    return number || interruptible ? stop_at(number, number ? 0 : now_ns()) : 0;
}

/* ---- chunks ------------------------------------------------------------------------------------ */

static size_t first_of(size_t grains, size_t threads, size_t thread) { return grains * thread / threads; }

/* Grains of [0, n), no more than a range can number; they become larger where there are more. */
static work work_of(size_t n, size_t grain, int brief, ll_task task, void *context)
{
    work w = {task, context, n, grain, (n - 1) / grain + 1, 0, brief};
    for (; w.grains > UINT32_MAX / LL_MAX_THREADS; w.grains = (n - 1) / w.grain + 1)
        w.grain *= 2;
    return w;
}

/* Grains [begin, end): the one place where a task runs. */
static void run(const work *w, size_t begin, size_t end)
{
    ll_fpenv saved = ll_fpenv_enter();
    w->task(w->context, begin * w->grain, ll_least(end * w->grain, w->n));
    ll_fpenv_leave(saved);
}

/* The same of a job that others have joined. */
static void run_joined(const work *w, size_t begin, size_t end)
{
    const int number = w->parts ? ll_thread_number() : 0;
    if (w->parts) {
        calls[number].longest = 0;
        set_thread(number, IN_PART);
    }
    run(w, begin, end);
    if (w->parts)
        set_thread(number, OUTSIDE);
}

/* How many of so many grains a thread takes at first, where chunks are timed. */
static size_t first_most(size_t grains, int timed) { return timed ? grains / FIRST_CHUNKS + 1 : grains; }

/* Runs a chunk; how many grains the next may have. */
static size_t run_timed(const work *w, size_t begin, size_t end, int64_t *now)
{
    const int64_t start = *now;
    run_joined(w, begin, end);
    *now = now_ns();
    const double most = (double)(end - begin) * CHUNK_NS / (double)(*now - start + 1);
    return most >= (double)w->grains ? w->grains : (size_t)most + 1;
}

/* Half of what is left of a range, at most so many grains; 0: nothing is. */
static size_t take(range *r, size_t most, int from_end, size_t *begin)
{
    uint64_t left = atomic_load_explicit(&r->left, memory_order_relaxed);
    for (;;) {
        const uint64_t first = left >> 32, end = left & UINT32_MAX;
        if (first >= end)
            return 0;
        const uint64_t count = ll_least((end - first + 1) / 2, most);
        const uint64_t rest = from_end ? first << 32 | (end - count) : (first + count) << 32 | end;
        if (atomic_compare_exchange_weak_explicit(&r->left, &left, rest, memory_order_relaxed, memory_order_relaxed)) {
            *begin = from_end ? end - count : first;
            return count;
        }
    }
}

/* The same of thread `number`'s range, or of the next one that has something left. */
static size_t take_any(const job *j, int number, size_t most, size_t *begin)
{
    const int own = number % j->threads;
    size_t count = take(&j->ranges[own], most, 0, begin);
    for (int other = 1; !count && other < j->threads; other++)
        count = take(&j->ranges[(own + other) % j->threads], most, 1, begin);
    return count;
}

/* number: of a worker, from 1 on; 0 for the one that called, who asks for interrupts. How many chunks there were. */
static size_t take_chunks(const job *j, int number)
{
    const work *w = &j->work;
    size_t most = first_most(w->grains / (size_t)j->threads, j->timed), begin = 0, count, taken = 0;
    int64_t now = j->timed ? now_ns() : 0;
    for (; (count = take_any(j, number, most, &begin)); taken++) {
        if (j->timed)
            most = run_timed(w, begin, begin + count, &now);
        else
            run_joined(w, begin, begin + count);
        if (j->timed && stop_at(number, now))
            for (int t = 0; t < j->threads; t++)
                atomic_store_explicit(&j->ranges[t].left, 0, memory_order_relaxed);
    }
    return taken;
}

/* All of a job on this thread. */
static void run_alone(const work *w)
{
    const int number = ll_thread_number();
    if (w->grains == 1 || w->brief || !(number ? pool.timed : interruptible)) {
        run(w, 0, w->grains);
        return;
    }
    size_t most = first_most(w->grains, 1);
    int64_t now = now_ns();
    for (size_t begin = 0; begin < w->grains && !stop_at(number, now);) {
        const size_t end = begin + ll_least(most, w->grains - begin);
        most = run_timed(w, begin, end, &now);
        begin = end;
    }
}

static int joinable(uint64_t s, uint64_t seen)
{
    return s / GENERATION != seen && (s & COUNT_MASK) < (s / SLOT & COUNT_MASK);
}

static void sleep_until_joinable(uint64_t seen)
{
    pthread_mutex_lock(&sleep_lock);
    atomic_fetch_add(&sleepers, 1);
    while (!joinable(atomic_load(&pool.state), seen))
        pthread_cond_wait(&wake, &sleep_lock);
    atomic_fetch_sub(&sleepers, 1);
    pthread_mutex_unlock(&sleep_lock);
}

/* It goes to the workers with the next job. (Told at once, it would take a line away from all that look at it, and the next job had
 * to wait: measured on two cores that share no cache, a step of one sequence 2 % slower.) In a part nobody waits. Numbers of
 * threads begin far from each other. */
void ll_parallel_ahead(const ll_ahead *what)
{
    if (place() == OUTSIDE)
        coming = (told){*what, (coming.number ? coming.number : (size_t)(uintptr_t)&coming << 20) + 1};
}

/* By who has the pool and is about to open a job. Who looks at it without having joined may see it torn: a call in vain. */
static void tell_ahead(void)
{
    if (atomic_load_explicit(&ahead.number, memory_order_relaxed) == coming.number)
        return;
    for (int part = 0; part < LL_AHEAD_PARTS; part++)
        atomic_store_explicit(&ahead.data[part], coming.what.data[part], memory_order_relaxed);
    atomic_store_explicit(&ahead.bytes, coming.what.bytes, memory_order_relaxed);
    atomic_store_explicit(&ahead.n, coming.what.n, memory_order_relaxed);
    atomic_store_explicit(&ahead.grain, coming.what.grain, memory_order_relaxed);
    atomic_store_explicit(&ahead.number, coming.number, memory_order_relaxed);
}

/* What a waiting thread has called for. */
typedef struct called {
    told told;
    int part;             /* the next */
    const char *at, *end; /* of the one before */
    size_t left;          /* bytes */
} called;

/* What has been told now, if it is anything new. */
static void called_told(called *c)
{
    told now = {.number = atomic_load_explicit(&ahead.number, memory_order_relaxed)};
    if (now.number == c->told.number)
        return;
    for (int part = 0; part < LL_AHEAD_PARTS; part++)
        now.what.data[part] = atomic_load_explicit(&ahead.data[part], memory_order_relaxed);
    now.what.bytes = atomic_load_explicit(&ahead.bytes, memory_order_relaxed);
    now.what.n = atomic_load_explicit(&ahead.n, memory_order_relaxed);
    now.what.grain = atomic_load_explicit(&ahead.grain, memory_order_relaxed);
    *c = (called){.told = now, .left = AHEAD_BYTES};
}

/* The thread's own of the next part, if there is one. */
static void called_next(called *c, int thread)
{
    const ll_ahead *what = &c->told.what;
    const char *data = what->data[c->part++];
    if (!data) {
        c->part = LL_AHEAD_PARTS;
        return;
    }
    const size_t grains = what->grain ? ll_up(what->n, what->grain) : 0;
    const size_t threads = ll_least((size_t)llorch_get_num_threads(), grains ? grains : 1), own = (size_t)thread % threads;
    c->at = data + first_of(grains, threads, own) * what->grain * what->bytes;
    c->end = data + ll_least(what->n, first_of(grains, threads, own + 1) * what->grain) * what->bytes;
}

/* A few lines of what comes next, if there are any left. */
static void call_ahead(called *c, int thread)
{
    if (c->at >= c->end && c->part < LL_AHEAD_PARTS)
        called_next(c, thread);
    for (int line = 0; line < AHEAD_LINES && c->at < c->end && c->left; line++, c->at += 64, c->left -= 64)
        __builtin_prefetch(c->at, 0, 2);
}

/* Whether this thread has joined the job in that state: then it takes chunks, and counts itself as finished. */
static int join(job *j, uint64_t state)
{
    return atomic_compare_exchange_strong_explicit(&j->state, &state, state + 1, memory_order_acquire, memory_order_relaxed);
}

/* Others may join from here on, threads - 1 of them. */
static void open_job(job *j, const work *w, int threads, int timed)
{
    j->work = *w;
    j->threads = threads;
    j->timed = timed;
    for (int t = 0; t < threads; t++)
        atomic_store_explicit(&j->ranges[t].left, (uint64_t)first_of(w->grains, (size_t)threads, (size_t)t) << 32
                                                      | first_of(w->grains, (size_t)threads, (size_t)t + 1),
                              memory_order_relaxed);
    atomic_store_explicit(&j->finished, 0, memory_order_relaxed);
    const uint64_t generation = atomic_load_explicit(&j->state, memory_order_relaxed) / GENERATION + 1;
    atomic_store(&j->state, generation * GENERATION + (uint64_t)(threads - 1) * SLOT);
}

/* Nobody may join any more, and those who have are done. */
static void close_job(job *j)
{
    const uint64_t generation = atomic_load_explicit(&j->state, memory_order_relaxed) / GENERATION;
    const uint64_t last = atomic_exchange_explicit(&j->state, generation * GENERATION, memory_order_acq_rel);
    const int joined = (int)(last & COUNT_MASK);
    for (unsigned look = 1; atomic_load_explicit(&j->finished, memory_order_acquire) != joined; look++) {
        if (look % 1024)
            pause_cpu();
        else
            sched_yield(); /* the worker may have lost its core to us */
    }
}

/* This thread has no part left. It helps with calls of those that have one, until nobody has. A worker that has joined the job
 * may still find a part: it counts from then on. */
static void help(int number)
{
    if (!pool.work.parts)
        return;
    uint64_t seen[LL_MAX_THREADS] = {0};
    atomic_fetch_add_explicit(&helpers, 1, memory_order_release);
    for (unsigned look = 1;; look++) {
        const uint64_t joined = atomic_load_explicit(&pool.state, memory_order_relaxed) & COUNT_MASK;
        if ((uint64_t)atomic_load_explicit(&helpers, memory_order_acquire) > joined)
            break;
        for (int other = 0; other <= workers; other++) {
            job *j = &calls[other].job;
            const uint64_t s = atomic_load_explicit(&j->state, memory_order_relaxed);
            if (joinable(s, seen[other]) && join(j, s)) {
                seen[other] = s / GENERATION;
                atomic_fetch_add_explicit(&parts_helped, take_chunks(j, number), memory_order_relaxed);
                atomic_fetch_add_explicit(&j->finished, 1, memory_order_release);
            }
        }
        if (look % 64 == 0 && !number && pool.timed && ask_at(now_ns()))
            atomic_store_explicit(&stopped, 1, memory_order_relaxed);
        if (look % 1024)
            pause_cpu();
        else
            sched_yield();
    }
}

static void *worker(void *mine)
{
    const int number = (int)(intptr_t)mine;
    set_thread(number, OUTSIDE); /* without a key it takes the first workspace that is free */
    uint64_t seen = 0, told_with = 0; /* generations begin at 1 */
    called called = {.part = LL_AHEAD_PARTS};
    int64_t rest_from = now_ns();
    for (unsigned look = 1;; look++) {
        const uint64_t s = atomic_load_explicit(&pool.state, memory_order_relaxed);
        if (joinable(s, seen)) {
            if (join(&pool, s)) {
                seen = told_with = s / GENERATION;
                __builtin_prefetch(&ahead); /* for after the chunks */
                (void)take_chunks(&pool, number);
                called_told(&called);
                help(number);
                atomic_fetch_add_explicit(&pool.finished, 1, memory_order_release);
                rest_from = now_ns();
            }
        } else if (s / GENERATION != told_with) { /* a job of fewer threads */
            told_with = s / GENERATION;
            called_told(&called);
        } else if (look % 64 == 0 && now_ns() - rest_from > SPIN_NS) {
            sleep_until_joinable(seen);
            rest_from = now_ns();
        } else {
            call_ahead(&called, number);
            pause_cpu();
        }
    }
    return NULL;
}

/* Whether stacks may take more of a limited address space: the last of it is the host's. */
static int space_is_left(void)
{
    void *space = mmap(NULL, SPARE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return space != MAP_FAILED && !munmap(space, SPARE_BYTES);
}

/* Fewer than wanted is no error. Signals stay with the host's threads. */
static void make_workers(int wanted)
{
    pthread_once(&set_up_once, set_up);
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (pthread_t id; workers < wanted; workers++)
        if (!space_is_left() || pthread_create(&id, &attributes, worker, (void *)(intptr_t)(workers + 1)))
            break;
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void ll_parallel_for(size_t n, size_t each, size_t worth, size_t step, ll_task task, void *context)
{
    const size_t paid = n * each / worth, all = (size_t)ll_threads();
    const size_t least = (worth / WORTH_GRAINS / (each + 1) + step) / step * step;
    const size_t part = ll_least(n / (all * WORTH_PARTS) / step * step, WORTH_MOST * worth / (each + 1) / step * step);
    const size_t grain = part > least ? part : least;
    ll_parallel_for_threads(n, paid < 2 ? n : grain, (int)ll_least(paid, all), 0, task, context);
}

/* By all of the pool, which this thread has taken. */
static void run_by_pool(const work *w, int threads)
{
    if (workers < threads - 1)
        make_workers(threads - 1);
    atomic_store_explicit(&stopped, 0, memory_order_relaxed);
    atomic_store_explicit(&helpers, 0, memory_order_relaxed);
    tell_ahead();
    open_job(&pool, w, threads, interruptible && !w->brief);
    if (atomic_load(&sleepers)) {
        pthread_mutex_lock(&sleep_lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&sleep_lock);
    }
    (void)take_chunks(&pool, 0);
    help(0);
    close_job(&pool);
    atomic_flag_clear_explicit(&busy, memory_order_release);
}

/* Whether this thread has the pool now: no other had it. */
static int take_pool(void) { return !atomic_flag_test_and_set_explicit(&busy, memory_order_acquire); }

/* By this thread, which makes a part, and those that help. Where all calls of the part so far were short, this one isn't cut for
 * interrupts: it would begin with a small chunk, as its time isn't known (measured: 16 and 32 sequences 1 to 2 % slower). */
static void run_in_part(const work *w, int threads, int number)
{
    helped *h = &calls[number];
    const int64_t start = now_ns();
    const int timed = pool.timed && !w->brief && !(h->longest && h->longest < SHORT_NS);
    const int is_open = (atomic_load_explicit(&h->job.state, memory_order_relaxed) / SLOT & COUNT_MASK) > 0;
    if (threads > 1 && !is_open) {
        h->job.ranges = h->ranges;
        open_job(&h->job, w, threads > HELPED ? HELPED : threads, timed);
        (void)take_chunks(&h->job, number);
        close_job(&h->job);
    } else if (timed) {
        run_alone(w);
    } else {
        run(w, 0, w->grains);
    }
    const int64_t took = now_ns() - start;
    h->longest = took > h->longest ? took : h->longest;
}

void ll_parallel_for_threads(size_t n, size_t grain, int threads, int brief, ll_task task, void *context)
{
    const int number = ll_thread_number(), in_part = place() == IN_PART;
    if (!n || (number ? in_part && atomic_load_explicit(&stopped, memory_order_relaxed) : interrupted))
        return;
    const work w = work_of(n, grain, brief, task, context);
    if (w.grains < (size_t)threads) /* more threads would have none */
        threads = (int)w.grains;
    threads = threads > LL_MAX_THREADS ? LL_MAX_THREADS : threads;
    if (in_part)
        run_in_part(&w, threads, number);
    else if (threads <= 1 || !take_pool())
        run_alone(&w);
    else
        run_by_pool(&w, threads);
}

int ll_parallel_parts(int parts, ll_task task, void *context)
{
    pthread_once(&set_up_once, set_up);
    if (!has_key || parts < 2 || parts > LL_MAX_THREADS || place() == IN_PART || !take_pool())
        return 0;
    work w = work_of((size_t)parts, 1, 0, task, context);
    w.parts = 1;
    atomic_fetch_add_explicit(&parts_made, 1, memory_order_relaxed);
    run_by_pool(&w, parts);
    return 1;
}

size_t ll_parts_made(size_t *helped)
{
    *helped = atomic_load_explicit(&parts_helped, memory_order_relaxed);
    return atomic_load_explicit(&parts_made, memory_order_relaxed);
}

/* ---- how many --------------------------------------------------------------------------------- */

#if defined(__linux__)
/* The smaller of `limit` and what one control group's file allows, rounded up. */
static int quota_of(const char *directory, const char *group, int limit)
{
    char path[4608];
    char quota[32] = "";
    long long period = 0;
    FILE *f;
    snprintf(path, sizeof path, "%s%s/cpu.max", directory, group); /* version 2: "max 100000", "150000 100000" */
    if ((f = fopen(path, "r"))) {
        if (fscanf(f, "%31s %lld", quota, &period) != 2)
            period = 0;
        fclose(f);
    } else { /* version 1 */
        snprintf(path, sizeof path, "%s%s/cpu.cfs_quota_us", directory, group);
        if (!(f = fopen(path, "r")))
            return limit;
        if (fscanf(f, "%31s", quota) != 1)
            quota[0] = 0;
        fclose(f);
        snprintf(path, sizeof path, "%s%s/cpu.cfs_period_us", directory, group);
        if ((f = fopen(path, "r"))) {
            if (fscanf(f, "%lld", &period) != 1)
                period = 0;
            fclose(f);
        }
    }
    long long microseconds = 0;
    if (period <= 0 || sscanf(quota, "%lld", &microseconds) != 1 || microseconds <= 0)
        return limit;
    long long cores = (microseconds + period - 1) / period;
    return cores < limit ? (int)cores : limit;
}

/* Whether `name` is in a list that commas divide and a colon ends. */
static int is_listed(const char *list, const char *name)
{
    for (size_t length; *list && *list != ':'; list += length + (list[length] == ',')) {
        length = strcspn(list, ",:");
        if (length == strlen(name) && !strncmp(list, name, length))
            return 1;
    }
    return 0;
}

/* Every group from the process's own up to the root can have a quota. */
static int cgroup_quota(int limit)
{
    char line[4096];
    FILE *f = fopen("/proc/self/cgroup", "r");
    if (!f)
        return limit;
    while (fgets(line, sizeof line, f)) { /* "0::/path" or "4:cpu,cpuacct:/path" */
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        group++;
        group[strcspn(group, "\n")] = 0;
        int unified = controllers[1] == ':';
        if (!unified && !is_listed(controllers + 1, "cpu"))
            continue;
        const char *directory = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
        for (;;) {
            char *slash = strrchr(group, '/');
            if (slash && !slash[1])
                *slash = 0; /* the root: "" */
            limit = quota_of(directory, group, limit);
            if (!(slash = strrchr(group, '/')))
                break;
            *slash = 0;
        }
    }
    fclose(f);
    return limit;
}
#endif

int ll_default_num_threads(void)
{
    static atomic_int cached;
    int n = atomic_load_explicit(&cached, memory_order_relaxed);
    if (n)
        return n;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set))
        cores = CPU_COUNT(&set);
#endif
    n = cores < 1 ? 1 : cores > LL_MAX_THREADS ? LL_MAX_THREADS : (int)cores;
#if defined(__linux__)
    n = cgroup_quota(n);
#endif
    atomic_store_explicit(&cached, n, memory_order_relaxed);
    return n;
}

int ll_threads(void)
{
    if (place() == OUTSIDE)
        return llorch_get_num_threads();
    const int others = place() == IN_PART ? atomic_load_explicit(&helpers, memory_order_relaxed) : 0;
    return 1 + (others < HELPED ? others : HELPED - 1);
}

int llorch_get_num_threads(void)
{
    int n = atomic_load_explicit(&num_threads, memory_order_relaxed);
    return n ? n : ll_default_num_threads();
}

void llorch_set_num_threads(int n)
{
    atomic_store_explicit(&num_threads, n < 1 ? 1 : n > LL_MAX_THREADS ? LL_MAX_THREADS : n, memory_order_relaxed);
}
