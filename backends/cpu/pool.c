/* SPDX-License-Identifier: Apache-2.0 */
/* The entry of a kernel library: runs a program's groups on the calling thread and, of a call on several threads, on helpers.
 *
 *     for image in batch: for group: for share of the group, shared out over threads: sparsec_share(records, group, share)
 *
 * All kernel libraries of a process share one pool of helpers, fewer than the process has cores. A call takes those that are idle and
 * never waits for one to come: a share that no helper has begun when the caller is done with its own is the caller's too. So a call
 * ends if its own thread runs, whatever the others do, and what it computes does not depend on who took part.
 *
 * A group on one image is a phase. Phases of a job (a call with helpers, one after the other in the same memory) are numbered once and
 * for all: `open` is the phase that may be worked on, share s of phase p is claimed by raising claimed[s] to p + 1, `done` counts shares.
 * A helper that comes late finds nothing to claim. Memory of jobs and helpers is never freed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

enum { GROUP_WIDTH = 5, MOST_SHARES = 1024, MOST_HELPERS = 1023, MOST_JOBS = 64, LINE = 64 };
/* Turns of a waiting thread: before it lets others run, and before the caller takes shares of helpers. Nanoseconds until it sleeps. */
enum { SPINS = 500, GRACE = 100, PATIENCE = 1000000 };

/* What one thread does of a group: addresses of records and group, number of the thread. The result says nothing. */
typedef int function(int64_t records, int64_t group, int32_t thread);

extern function sparsec_share __attribute__((visibility("hidden")));
__attribute__((visibility("default"))) void sparsec_run_program(const int64_t *values);

/* A number that threads wait for to change. */
typedef struct {
    _Alignas(LINE) _Atomic int64_t value;
    _Atomic int sleeping;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} event;

typedef struct {
    event open, done;
    _Atomic int64_t claimed[MOST_SHARES];
    atomic_bool taken;
    function *share;
    int64_t records, group;
    int shares;
} job;

enum { IDLE, BUSY };
typedef struct {
    event ticket; /* a new number is a new assignment: what follows */
    atomic_int state;
    job *job;
    int64_t first, end; /* phases */
    int part, parts, shares;
    uint64_t rounding;
} helper;

static job jobs[MOST_JOBS];
static helper helpers[MOST_HELPERS];
static atomic_int made;
static pthread_mutex_t growing = PTHREAD_MUTEX_INITIALIZER;

static void relax(void) {
#if defined __x86_64__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

/* Rounding and what becomes of denormals: helpers compute as their caller does. */
static uint64_t rounding(void) {
    uint64_t now = 0;
#if defined __x86_64__
    now = __builtin_ia32_stmxcsr();
#elif defined __aarch64__
    __asm__ volatile("mrs %0, fpcr" : "=r"(now));
#endif
    return now;
}

static void set_rounding(uint64_t wanted) {
#if defined __x86_64__
    __builtin_ia32_ldmxcsr((unsigned)wanted);
#elif defined __aarch64__
    __asm__ volatile("msr fpcr, %0" : : "r"(wanted));
#else
    (void)wanted;
#endif
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---- events ---- */

static void renew(event *e) {
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->changed, NULL);
    atomic_store(&e->sleeping, 0);
}

static void wake(event *e) {
    if (!atomic_load(&e->sleeping)) return; /* whoever falls asleep looks at the value once more after it is counted */
    pthread_mutex_lock(&e->lock);
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

static void set(event *e, int64_t value) {
    atomic_store(&e->value, value);
    wake(e);
}

/* The value when it is no longer `old`. */
static int64_t after(event *e, int64_t old) {
    int64_t found, begin = 0;
    for (int turn = 0; (found = atomic_load(&e->value)) == old; turn++) {
        if (turn < SPINS) relax();
        else if (!begin) begin = nanoseconds();
        else if (turn % 16 || nanoseconds() - begin < PATIENCE) sched_yield();
        else break;
    }
    if (found != old) return found;
    pthread_mutex_lock(&e->lock);
    atomic_fetch_add(&e->sleeping, 1);
    while ((found = atomic_load(&e->value)) == old) pthread_cond_wait(&e->changed, &e->lock);
    atomic_fetch_sub(&e->sleeping, 1);
    pthread_mutex_unlock(&e->lock);
    return found;
}

/* ---- shares ---- */

static bool claim(job *j, int share, int64_t phase) {
    int64_t found = atomic_load(&j->claimed[share]);
    while (found <= phase)
        if (atomic_compare_exchange_weak(&j->claimed[share], &found, phase + 1)) return true;
    return false;
}

/* The job may be over as soon as its last share is counted. */
static void count_done(job *j) {
    atomic_fetch_add(&j->done.value, 1);
    wake(&j->done);
}

/* ---- helpers ---- */

/* A helper is idle before its last share is counted: the caller's next call finds it. */
static void follow(helper *me) {
    job *const j = me->job;
    for (int64_t phase = atomic_load(&j->open.value); phase < me->end; phase = after(&j->open, phase)) {
        for (int share = me->part; phase >= me->first && share < me->shares; share += me->parts) {
            if (!claim(j, share, phase)) continue;
            j->share(j->records, j->group, share);
            const bool last = phase == me->end - 1 && share + me->parts >= me->shares;
            if (last) atomic_store(&me->state, IDLE);
            count_done(j);
            if (last) return;
        }
    }
    atomic_store(&me->state, IDLE);
}

static void *help(void *given) {
    helper *const me = given;
    for (int64_t ticket = 0;;) {
        ticket = after(&me->ticket, ticket);
        set_rounding(me->rounding);
        follow(me);
    }
    return NULL;
}

static int cores(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

/* Starts a helper, busy; false where there are enough. Signals are for the threads that the process knows of. */
static bool grow(void) {
    const int room = cores() - 1 < MOST_HELPERS ? cores() - 1 : MOST_HELPERS;
    if (atomic_load(&made) >= room) return false;
    pthread_mutex_lock(&growing);
    const int number = atomic_load(&made);
    bool grown = number < room;
    if (grown) {
        pthread_t thread;
        sigset_t all, before;
        helper *const h = helpers + number;
        renew(&h->ticket);
        atomic_store(&h->ticket.value, 0);
        atomic_store(&h->state, BUSY);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        grown = !pthread_create(&thread, NULL, help, h);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (grown) pthread_setname_np(thread, "sparsec"), pthread_detach(thread), atomic_store(&h->state, IDLE), atomic_store(&made, number + 1);
    }
    pthread_mutex_unlock(&growing);
    return grown;
}

/* Takes up to `wanted` idle helpers. */
static int hire(int wanted, helper **hired) {
    int count = 0;
    do {
        for (int i = 0; i < atomic_load(&made) && count < wanted; i++) {
            int idle = IDLE;
            if (atomic_load(&helpers[i].state) == IDLE && atomic_compare_exchange_strong(&helpers[i].state, &idle, BUSY))
                hired[count++] = helpers + i;
        }
    } while (count < wanted && grow());
    return count;
}

static job *take_job(void) {
    for (int i = 0; i < MOST_JOBS; i++)
        if (!atomic_load(&jobs[i].taken) && !atomic_exchange(&jobs[i].taken, true)) return jobs + i;
    return NULL;
}

/* A job of `phases` phases with the helpers that are there; NULL if there are none. */
static job *begin(function *share, int64_t records, int shares, int64_t phases, int *parts) {
    helper *hired[MOST_HELPERS];
    job *const j = shares > 1 && shares <= MOST_SHARES && phases ? take_job() : NULL;
    const int count = j ? hire(shares - 1 < MOST_HELPERS ? shares - 1 : MOST_HELPERS, hired) : 0;
    if (j && !count) atomic_store(&j->taken, false);
    if (!count) return NULL;
    j->share = share, j->records = records, j->shares = shares, *parts = count + 1;
    const int64_t first = atomic_load(&j->open.value) + 1;
    for (int i = 0; i < count; i++) {
        helper *const h = hired[i];
        h->job = j, h->first = first, h->end = first + phases, h->part = i + 1, h->parts = count + 1, h->shares = shares;
        h->rounding = rounding();
        set(&h->ticket, atomic_load(&h->ticket.value) + 1);
    }
    return j;
}

static void claim_and_run(job *j, int share, int64_t phase) {
    if (!claim(j, share, phase)) return;
    j->share(j->records, j->group, share);
    count_done(j);
}

static void run_phase(job *j, int parts, int64_t group) {
    const int64_t phase = atomic_load(&j->open.value) + 1, end = atomic_load(&j->done.value) + j->shares;
    j->group = group;
    set(&j->open, phase);
    for (int share = 0; share < j->shares; share += parts) claim_and_run(j, share, phase);
    for (int turn = 0; turn < GRACE && atomic_load(&j->done.value) != end; turn++) relax();
    for (int share = 0; share < j->shares && atomic_load(&j->done.value) != end; share++) claim_and_run(j, share, phase);
    for (int64_t done = atomic_load(&j->done.value); done != end;) done = after(&j->done, done);
}

/* Opens the phase after the last, which is none: helpers leave. */
static void finish(job *j) {
    set(&j->open, atomic_load(&j->open.value) + 1);
    atomic_store(&j->taken, false);
}

/* ---- calls ---- */

typedef void runner(function *share, const int64_t *values);

/* values: addresses of records, groups and moves, numbers of groups and moves, batch, threads. A move is a field of the records and what
 * is added to it after each image. Without a job this thread does everything. */
static void run_phases(function *share, const int64_t *values, job *j, int parts) {
    int64_t *const records = (int64_t *)(intptr_t)values[0];
    const int64_t *const moves = (const int64_t *)(intptr_t)values[2], groups = values[3], batch = values[5];
    const int shares = (int)values[6];
    for (int64_t image = 0; image < batch; image++) {
        for (int64_t g = 0; g < groups; g++) {
            const int64_t group = values[1] + g * GROUP_WIDTH * 8;
            if (j) run_phase(j, parts, group);
            else for (int s = 0; s < shares; s++) share(values[0], group, s);
        }
        for (int64_t m = 0; m < values[4]; m++) records[moves[2 * m]] += moves[2 * m + 1];
    }
    if (j) finish(j);
}

static void run(function *share, const int64_t *values) {
    int parts = 1;
    job *const j = begin(share, values[0], (int)values[6], values[5] * values[3], &parts);
    run_phases(share, values, j, parts);
}

/* In a forked child there are no helpers, and no other call. */
static void forget_helpers(void) {
    const int count = atomic_exchange(&made, 0);
    pthread_mutex_init(&growing, NULL);
    for (int i = 0; i < count; i++) renew(&helpers[i].ticket);
    for (int i = 0; i < MOST_JOBS; i++) {
        if (!atomic_load(&jobs[i].open.value) && !atomic_load(&jobs[i].taken)) continue;
        renew(&jobs[i].open), renew(&jobs[i].done);
        atomic_store(&jobs[i].taken, false);
    }
}

/* ---- one pool per process ---- */

/* The runner of the process's pool: one variable for all libraries that have it, as the dynamic linker keeps one of a unique symbol (ELF,
 * STB_GNU_UNIQUE), however they are opened. Where it does not, libraries have pools of their own. A new number: what the runner is called with
 * has changed. */
extern _Atomic(runner *) sparsec_pool_2;
__asm__(".pushsection .bss.sparsec_pool_2, \"aw\", %nobits\n"
        ".balign 8\n"
        ".type sparsec_pool_2, %gnu_unique_object\n"
        ".size sparsec_pool_2, 8\n"
        "sparsec_pool_2:\n"
        ".zero 8\n"
        ".popsection\n");

/* Whether this library stays loaded for ever, as that of the pool has to. */
static bool stays(void) {
    Dl_info here;
    return dladdr((const void *)&jobs, &here) && dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
}

/* This library's pool becomes that of the process, unless another was faster. NULL where this one may be unloaded. */
static runner *shared_runner(void) {
    runner *found = atomic_load(&sparsec_pool_2);
    if (found || !stays()) return found;
    if (!atomic_compare_exchange_strong(&sparsec_pool_2, &found, run)) return found;
    pthread_atfork(NULL, NULL, forget_helpers);
    return run;
}

/* See `run_phases`. Helpers are those of the process's pool: a library that may be unloaded has none of its own. */
void sparsec_run_program(const int64_t *values) {
    runner *const shared = values[6] > 1 ? shared_runner() : NULL;
    if (shared) shared(sparsec_share, values);
    else run_phases(sparsec_share, values, NULL, 1);
}
