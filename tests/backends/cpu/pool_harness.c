/* The pool with four cores, wherever it runs: callers at once, groups of which each share adds one to its own counter, forks between. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#undef CPU_COUNT
#define CPU_COUNT(set) 4
static int may_stay; /* whether a library can be kept loaded; a program cannot be opened */
#define dlopen(path, mode) (may_stay && (path) != NULL)

#include "pool.c"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { GROUPS = 6 };
#define NEED(condition) ((condition) ? (void)0 : (fprintf(stderr, "%s, line %d\n", #condition, __LINE__), exit(3)))

/* records: [0] moves on with the image, [1 + thread] counts. A share sees what all shares of the group before it did. */
int sparsec_share(int64_t records_, int64_t group_, int32_t mine) {
    int64_t *const records = (int64_t *)(intptr_t)records_;
    const int64_t *const group = (const int64_t *)(intptr_t)group_;
    const int shares = (int)group[1];
    const int64_t before = records[0] * GROUPS + group[0];
    int64_t *const now = records + 1 + (group[0] % 2) * shares, *const last = records + 1 + (1 - group[0] % 2) * shares;
    for (int s = 0; before && s < shares; s++) NEED(last[s] == before);
    NEED(now[mine] != before + 1);
    now[mine] = before + 1;
    return 0;
}

static void call(int shares, int batch) {
    int64_t *const records = calloc((size_t)(1 + 2 * shares), 8), groups[GROUPS][GROUP_WIDTH] = {{0}}, moves[2] = {0, 1};
    for (int g = 0; g < GROUPS; g++) groups[g][0] = g, groups[g][1] = shares;
    const int64_t values[] = {(int64_t)(intptr_t)records, (int64_t)(intptr_t)groups, (int64_t)(intptr_t)moves, GROUPS, 1, batch, shares};
    sparsec_run_program(values);
    NEED(records[0] == batch);
    for (int s = 0; s < shares && batch; s++) NEED(records[1 + (GROUPS - 1) % 2 * shares + s] == (int64_t)batch * GROUPS);
    free(records);
}

static void *caller(void *given) {
    const int repeats = *(int *)given;
    for (int i = 0; i < repeats; i++) call(1 + i % 9, 1);
    return NULL;
}

static int threads_now(void) {
    int count = 0;
    DIR *folder = opendir("/proc/self/task");
    while (readdir(folder)) count++;
    closedir(folder);
    return count - 2;
}

static void at_once(int callers, int repeats) {
    pthread_t threads[64];
    for (int i = 0; i < callers; i++) NEED(!pthread_create(threads + i, NULL, caller, &repeats));
    for (int i = 0; i < callers; i++) pthread_join(threads[i], NULL);
}

static void forked(int depth) {
    int status;
    const pid_t child = fork();
    NEED(child >= 0);
    if (!child) {
        alarm(60);
        for (int i = 0; i < 20; i++) call(4, 1);
        NEED(atomic_load(&made) <= 3);
        if (depth) forked(depth - 1);
        _exit(0);
    }
    NEED(waitpid(child, &status, 0) == child && WIFEXITED(status) && !WEXITSTATUS(status));
}

/* pool_harness CALLERS REPEATS FORKS */
int main(int count, char **words) {
    NEED(count == 4);
    const int callers = atoi(words[1]), repeats = atoi(words[2]), forks = atoi(words[3]);
    alarm(200);
    call(1, 3), call(2, 0), call(MOST_SHARES + 1, 1);
    NEED(atomic_load(&made) == 0);
    call(4, 2); /* without helpers, who might run code that is unloaded */
    NEED(atomic_load(&made) == 0);
    may_stay = 1;
    call(4, 1);
    NEED(atomic_load(&made) == 3);
    for (int round = 0; round < 3; round++) at_once(callers, repeats);
    NEED(atomic_load(&made) == 3 && threads_now() <= 5);
    for (int i = 0; i < forks; i++) {
        pthread_t other;
        int more = 200;
        NEED(!pthread_create(&other, NULL, caller, &more));
        forked(2);
        pthread_join(other, NULL);
    }
    puts("passed");
    return 0;
}
