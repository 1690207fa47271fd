/* The thread pool: one loop at a time, tasks handed out by compare-and-swap on one word that also
 * names the loop, so that a worker waking late can never take a task of the wrong loop and the
 * caller never waits for workers that did not take part. */
#include "base/threads.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"

/* How long a waiting thread spins before it sleeps. Long enough to bridge the serial work between
 * two operators of a decode step, short enough not to starve the I/O thread. */
enum { SPIN_NS = 50000, SPINS_PER_CLOCK = 32, MAX_THREADS = 1024 };

typedef struct worker {
    st_pool *pool;
    pthread_t thread;
    int index;
} worker;

struct st_pool {
    /* High half: number of the loop; low half: tasks not yet taken. fn, arg and n_tasks belong to
     * the loop and are written only while no task is left or running. */
    _Alignas(64) _Atomic uint64_t state;
    _Atomic(st_task_fn *) fn;
    _Atomic(void *) arg;
    _Atomic uint32_t n_tasks;
    _Alignas(64) _Atomic uint32_t pending; /* tasks not yet finished; the caller sleeps on it */
    _Atomic uint32_t caller_sleeps;
    _Alignas(64) _Atomic uint32_t wake; /* workers sleep on it */
    _Atomic uint32_t sleepers;
    atomic_bool stop;
    int n_threads, n_started;
    bool pin;
    worker *workers;
};

/* The affinity mask the process started with: a thread that was pinned since then would see only
 * its own processor. */
static cpu_set_t process_cpus;
static int process_cpu_count;
static pthread_once_t cpus_once = PTHREAD_ONCE_INIT;

static void read_cpus(void)
{
    CPU_ZERO(&process_cpus);
    if (sched_getaffinity(0, sizeof process_cpus, &process_cpus) == 0)
        process_cpu_count = CPU_COUNT(&process_cpus);
    if (process_cpu_count < 1)
        process_cpu_count = 1;
}

int st_processors(void)
{
    pthread_once(&cpus_once, read_cpus);
    return process_cpu_count;
}

static void pin_self(int index)
{
    int nth = index % process_cpu_count;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &process_cpus) && nth-- == 0) {
            cpu_set_t one;
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            (void)!pthread_setaffinity_np(pthread_self(), sizeof one, &one);
            return;
        }
}

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* Takes and runs tasks until the loop has none left to take. */
static void work(st_pool *p, int index)
{
    uint64_t s = atomic_load_explicit(&p->state, memory_order_acquire);
    while ((uint32_t)s != 0) {
        st_task_fn *fn = atomic_load_explicit(&p->fn, memory_order_relaxed);
        void *arg = atomic_load_explicit(&p->arg, memory_order_relaxed);
        uint32_t n = atomic_load_explicit(&p->n_tasks, memory_order_relaxed);
        /* Success means the loop of s was still open, so fn, arg and n were its own. */
        if (!atomic_compare_exchange_weak_explicit(&p->state, &s, s - 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        fn(arg, n - (uint32_t)s, index);
        if (atomic_fetch_sub_explicit(&p->pending, 1, memory_order_seq_cst) == 1 &&
            atomic_load_explicit(&p->caller_sleeps, memory_order_seq_cst))
            futex_wake(&p->pending, 1);
        s = atomic_load_explicit(&p->state, memory_order_acquire);
    }
}

/* Spins until there is work or the pool stops; false when the time is up. */
static bool spin_for_work(st_pool *p)
{
    uint64_t until = st_now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < SPINS_PER_CLOCK; i++) {
            if ((uint32_t)atomic_load_explicit(&p->state, memory_order_acquire) != 0 ||
                atomic_load_explicit(&p->stop, memory_order_acquire))
                return true;
            st_relax();
        }
    } while (st_now_ns() < until);
    return false;
}

static void sleep_for_work(st_pool *p)
{
    atomic_fetch_add_explicit(&p->sleepers, 1, memory_order_seq_cst);
    uint32_t seen = atomic_load_explicit(&p->wake, memory_order_seq_cst);
    if ((uint32_t)atomic_load_explicit(&p->state, memory_order_seq_cst) == 0 &&
        !atomic_load_explicit(&p->stop, memory_order_seq_cst))
        futex_wait(&p->wake, seen);
    atomic_fetch_sub_explicit(&p->sleepers, 1, memory_order_seq_cst);
}

static void *worker_main(void *user)
{
    worker *w = user;
    st_pool *p = w->pool;
    if (p->pin)
        pin_self(w->index);
    while (!atomic_load_explicit(&p->stop, memory_order_acquire)) {
        work(p, w->index);
        if (!spin_for_work(p))
            sleep_for_work(p);
    }
    return NULL;
}

/* The caller's wait for tasks that others still run. */
static void wait_done(st_pool *p)
{
    uint64_t until = 0;
    for (;;) {
        for (int i = 0; i < SPINS_PER_CLOCK; i++) {
            if (atomic_load_explicit(&p->pending, memory_order_acquire) == 0)
                return;
            st_relax();
        }
        uint64_t now = st_now_ns();
        if (until == 0)
            until = now + SPIN_NS;
        else if (now >= until)
            break;
    }
    atomic_store_explicit(&p->caller_sleeps, 1, memory_order_seq_cst);
    uint32_t left;
    while ((left = atomic_load_explicit(&p->pending, memory_order_seq_cst)) != 0)
        futex_wait(&p->pending, left);
    atomic_store_explicit(&p->caller_sleeps, 0, memory_order_relaxed);
}

/* One loop of at most UINT32_MAX tasks. */
static void run_loop(st_pool *p, uint32_t n, st_task_fn *fn, void *arg)
{
    atomic_store_explicit(&p->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&p->arg, arg, memory_order_relaxed);
    atomic_store_explicit(&p->n_tasks, n, memory_order_relaxed);
    atomic_store_explicit(&p->pending, n, memory_order_relaxed);
    uint64_t loop = (atomic_load_explicit(&p->state, memory_order_relaxed) >> 32) + 1;
    atomic_store_explicit(&p->state, loop << 32 | n, memory_order_seq_cst);
    uint32_t asleep = atomic_load_explicit(&p->sleepers, memory_order_seq_cst);
    if (asleep > 0) {
        atomic_fetch_add_explicit(&p->wake, 1, memory_order_seq_cst);
        futex_wake(&p->wake, n - 1 < asleep ? (int)(n - 1) : (int)asleep);
    }
    work(p, 0);
    wait_done(p);
}

typedef struct shifted {
    st_task_fn *fn;
    void *arg;
    size_t base;
} shifted;

static void run_shifted(void *arg, size_t task, int worker_index)
{
    const shifted *s = arg;
    s->fn(s->arg, s->base + task, worker_index);
}

void st_pool_run(st_pool *pool, size_t n_tasks, st_task_fn *fn, void *arg)
{
    if (!pool || pool->n_threads == 1 || n_tasks <= 1) {
        for (size_t i = 0; i < n_tasks; i++)
            fn(arg, i, 0);
        return;
    }
    const size_t most = INT_MAX;
    for (size_t base = 0; base < n_tasks; base += most) {
        size_t n = n_tasks - base < most ? n_tasks - base : most;
        shifted s = {fn, arg, base};
        if (base == 0)
            run_loop(pool, (uint32_t)n, fn, arg);
        else
            run_loop(pool, (uint32_t)n, run_shifted, &s);
    }
}

void st_pool_pin_caller(const st_pool *pool)
{
    if (pool && pool->pin && pool->n_threads > 1)
        pin_self(0);
}

int st_pool_threads(const st_pool *pool)
{
    return pool ? pool->n_threads : 1;
}

st_status st_pool_new(int n_threads, bool pin, st_pool **out, st_error *err)
{
    *out = NULL;
    const int processors = st_processors();
    if (n_threads < 0 || n_threads > MAX_THREADS)
        return st_fail(err, ST_EINVAL, "thread count %d: expected 0 (all processors) to %d",
                       n_threads, MAX_THREADS);
    if (n_threads == 0)
        n_threads = processors;
    st_pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    if (!p)
        return st_fail(err, ST_ENOMEM, "no memory for a thread pool");
    memset(p, 0, sizeof *p);
    p->n_threads = n_threads;
    p->n_started = 1;
    p->pin = pin;
    p->workers = calloc((size_t)n_threads, sizeof *p->workers);
    if (!p->workers) {
        st_pool_free(p);
        return st_fail(err, ST_ENOMEM, "no memory for %d threads", n_threads);
    }
    for (int i = 1; i < n_threads; i++) {
        worker *w = &p->workers[i];
        w->pool = p;
        w->index = i;
        int e = pthread_create(&w->thread, NULL, worker_main, w);
        if (e != 0) {
            st_pool_free(p);
            return st_fail(err, ST_EIO, "cannot start thread %d of %d: %s", i + 1, n_threads,
                           strerror(e));
        }
        p->n_started = i + 1;
    }
    *out = p;
    return ST_OK;
}

void st_pool_free(st_pool *pool)
{
    if (!pool)
        return;
    atomic_store_explicit(&pool->stop, true, memory_order_seq_cst);
    atomic_fetch_add_explicit(&pool->wake, 1, memory_order_seq_cst);
    futex_wake(&pool->wake, INT_MAX);
    for (int i = 1; i < pool->n_started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    free(pool->workers);
    free(pool);
}
