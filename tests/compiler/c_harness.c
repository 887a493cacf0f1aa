/* What test_c_artifact.py does from C. Includes the loader, to seal mutated programs as its writer would, and with pages before and behind its
 * memory that nobody may touch. */
#define mmap guarded
#include "sparsec.c"
#undef mmap

#include <dirent.h>
#include <sys/wait.h>
#include <unistd.h>

#define NEED(condition) ((condition) ? (void)0 : (fprintf(stderr, "%s: %s\n", #condition, sparsec_error()), exit(3)))

extern void *mmap(void *, size_t, int, int, int, off_t);

void *guarded(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    char *memory = mmap(at, whole + 2 * page, PROT_NONE, flags, file, offset);
    if (memory == MAP_FAILED || mprotect(memory + page, whole, protection)) return MAP_FAILED;
    return memory + page;
}

/* Memory that ends where a page begins. */
static void *ending(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    char *memory = guarded(NULL, whole + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(memory != MAP_FAILED && !mprotect(memory + whole, page, PROT_NONE));
    return memory + whole - bytes;
}

static char *slurp(const char *folder, const char *name, size_t *bytes) {
    blob b;
    NEED(!read_file(folder, name, 0, &b));
    *bytes = b.bytes;
    char *copy = malloc(b.bytes + 1);
    memcpy(copy, b.memory, b.bytes);
    forget(&b);
    return copy;
}

static void spill(const char *folder, const char *name, const char *data, size_t bytes) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *stream = fopen(path, "wb");
    NEED(stream && fwrite(data, 1, bytes, stream) == bytes);
    fclose(stream);
}

typedef struct {
    sparsec_model *model;
    const void **inputs;
    void **outputs;
    int64_t batch;
    const int64_t *sizes;
    int repeats;
} caller;

static void *call_often(void *given) {
    caller *c = given;
    for (int i = 0; i < c->repeats; i++) NEED(!sparsec_run_sized(c->model, c->inputs, c->outputs, c->batch, c->sizes));
    return NULL;
}

/* run ARTIFACT THREADS BATCH CALLERS FOLDER SIZE: in0.bin, ... -> out0.bin, ...; every caller must get the same. SIZE is that of the only
 * run-time size, 0: the largest. */
static int run(char **words) {
    sparsec_model *m;
    NEED(!sparsec_load(words[0], atoi(words[1]), &m));
    const int64_t batch = atoi(words[2]), size = atoi(words[5]), *sizes = size ? &size : NULL;
    const int callers = atoi(words[3]), ins = sparsec_inputs(m), outs = sparsec_outputs(m);
    const void **inputs = calloc((size_t)ins + 1, sizeof *inputs);
    char name[32];
    size_t bytes;
    for (int i = 0; i < ins; i++) {
        snprintf(name, sizeof name, "in%d.bin", i);
        char *const read = slurp(words[4], name, &bytes);
        inputs[i] = memcpy(ending(bytes), read, bytes);
        free(read);
        NEED(bytes == sparsec_bytes(sparsec_input(m, i), sizes) * (size_t)batch);
    }
    caller *all = calloc((size_t)callers, sizeof *all);
    pthread_t *threads = calloc((size_t)callers, sizeof *threads);
    for (int c = 0; c < callers; c++) {
        all[c] = (caller){m, inputs, calloc((size_t)outs + 1, sizeof(void *)), batch, sizes, callers > 1 ? 20 : 1};
        for (int i = 0; i < outs; i++) all[c].outputs[i] = ending(sparsec_bytes(sparsec_output(m, i), sizes) * (size_t)batch);
        NEED(!pthread_create(threads + c, NULL, call_often, all + c));
    }
    for (int c = 0; c < callers; c++) pthread_join(threads[c], NULL);
    for (int i = 0; i < outs; i++) {
        bytes = sparsec_bytes(sparsec_output(m, i), sizes) * (size_t)batch;
        for (int c = 1; c < callers; c++) NEED(!memcmp(all[c].outputs[i], all[0].outputs[i], bytes));
        snprintf(name, sizeof name, "out%d.bin", i);
        spill(words[4], name, all[0].outputs[i], bytes);
    }
    sparsec_free(m);
    return 0;
}

static int threads_now(void) {
    int count = -2;
    DIR *folder = opendir("/proc/self/task");
    while (readdir(folder)) count++;
    closedir(folder);
    return count;
}

typedef struct {
    sparsec_model *model;
    const float *x;
    float *y;
    int repeats;
} small_call;

/* One input and one output of 2 * 96 numbers. */
static void *call_small(void *given) {
    small_call *c = given;
    const void *inputs[] = {c->x};
    void *outputs[] = {c->y};
    for (int i = 0; i < c->repeats; i++) {
        memset(c->y, 0, 2 * 96 * sizeof *c->y);
        NEED(!sparsec_run(c->model, inputs, outputs, 2));
    }
    return NULL;
}

static void call_in_child(small_call call, const float *wanted, int depth) {
    float y[2 * 96];
    int status;
    const pid_t child = fork();
    NEED(child >= 0);
    if (!child) {
        alarm(100);
        call.y = y;
        call_small(&call);
        NEED(!wanted || !memcmp(y, wanted, sizeof y));
        if (depth) call_in_child(call, y, depth - 1);
        _exit(0);
    }
    NEED(waitpid(child, &status, 0) == child && WIFEXITED(status) && !WEXITSTATUS(status));
}

/* forks ARTIFACT THREADS: children of a process that has loaded, has called, is calling, loads; prints the most threads seen. */
static int forks(char **words) {
    enum { OTHERS = 3, SHORT_LIVED = 300 };
    const int threads = atoi(words[1]);
    sparsec_model *m, *again;
    float x[2 * 96], y[2 * 96], others[OTHERS][2 * 96];
    pthread_t ids[OTHERS];
    for (int i = 0; i < 2 * 96; i++) x[i] = (float)i;
    NEED(!sparsec_load(words[0], threads, &m));
    small_call mine = {m, x, y, 20}, many[OTHERS];
    call_in_child(mine, NULL, 1);
    call_small(&mine);
    for (int i = 0; i < OTHERS; i++) {
        many[i] = (small_call){m, x, others[i], 20000};
        NEED(!pthread_create(ids + i, NULL, call_small, many + i));
    }
    for (int i = 0; i < 20; i++) call_in_child(mine, y, 1);
    for (int i = 0; i < OTHERS; i++) pthread_join(ids[i], NULL);
    for (int i = 0; i < OTHERS; i++) NEED(!memcmp(others[i], y, sizeof y));
    for (int i = 0; i < SHORT_LIVED; i++) {
        small_call one = {m, x, others[0], 2};
        NEED(!pthread_create(ids, NULL, call_small, &one));
        pthread_join(*ids, NULL);
    }
    printf("%d\n", threads_now());
    sparsec_free(m);
    NEED(!sparsec_load(words[0], threads, &again));
    call_in_child((small_call){again, x, y, 20}, others[0], 0);
    sparsec_free(again);
    return 0;
}

static uint64_t state;

static uint64_t drawn(uint64_t below) {
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (state >> 33) % below;
}

/* Changes one to four places: a bit, a byte, a word of special value, or where the file ends. */
static size_t mutated(char *data, size_t bytes) {
    static const int64_t special[] = {0, 1, -1, 64, INT32_MAX, INT64_MAX, INT64_MIN, INT64_C(1) << 46, INT64_C(1) << 61, -4096};
    for (uint64_t left = 1 + drawn(4); left && bytes; left--) {
        const size_t at = drawn(bytes);
        switch (drawn(4)) {
        case 0: data[at] ^= (char)(1 << drawn(8)); break;
        case 1: data[at] = (char)drawn(256); break;
        case 2: memcpy(data + at / 8 * 8, special + drawn(10), bytes - at / 8 * 8 < 8 ? 1 : 8); break;
        default:
            if (!drawn(4)) bytes = at;
        }
    }
    return bytes;
}

static void seal(char *data, size_t bytes) {
    if (bytes < 8 * (HEADER + 1)) return;
    const int64_t header[2] = {VERSION, (int64_t)bytes};
    memcpy(data, "SPARSEC", 8);
    memcpy(data + 8, header, 16);
    unsigned char digest[32];
    sha256(data + 8 * HEADER, bytes - 8 * HEADER, digest);
    memcpy(data + 24, digest, sizeof digest);
}

/* mutate ARTIFACT FILE COUNT SEED SEALED THREADS: prints how many mutations loaded and how many were refused, with a text each. */
static int mutate(char **words) {
    size_t bytes;
    char *whole = slurp(words[0], words[1], &bytes), *changed = malloc(bytes + 1);
    const int sealed = atoi(words[4]);
    int loaded = 0, refused = 0;
    state = (uint64_t)atoll(words[3]);
    for (int i = 0; i < atoi(words[2]); i++) {
        memcpy(changed, whole, bytes);
        const size_t left = mutated(changed, bytes);
        if (left == bytes && !memcmp(changed, whole, bytes)) continue;
        if (sealed) seal(changed, left);
        spill(words[0], words[1], changed, left);
        sparsec_model *m = (sparsec_model *)(void *)words;
        message[0] = 0;
        if (sparsec_load(words[0], atoi(words[5]), &m)) NEED(!m && strlen(message) > 20), refused++;
        else loaded++;
        for (int p = 0; m && p < sparsec_sizes(m); p++) NEED(sparsec_size_at(m, p)->least > 0 && !sparsec_size_at(m, -1));
        for (int p = 0; m && p < sparsec_inputs(m); p++) NEED(strlen(sparsec_input(m, p)->name) < bytes);
        sparsec_free(m);
    }
    spill(words[0], words[1], whole, bytes);
    printf("%d %d\n", loaded, refused);
    return 0;
}

static void said(int failed) {
    NEED(failed == -1);
    puts(message);
}

/* wrong ARTIFACT: one line per wrong call. */
static int wrong(char **words) {
    sparsec_model *m, *none;
    float x[2 * 96] = {0}, y[2 * 96];
    const void *good[] = {x}, *null[] = {NULL}, *odd[] = {(char *)x + 1};
    void *out[] = {y}, *null_out[] = {NULL};
    NEED(!sparsec_load(words[0], 1, &m));
    said(sparsec_load(NULL, 1, &none));
    said(sparsec_load(words[0], 1, NULL));
    said(sparsec_load(words[0], 0, &none));
    said(sparsec_load("/nowhere", 1, &none));
    said(sparsec_run(NULL, good, out, 1));
    said(sparsec_run(m, NULL, out, 1));
    said(sparsec_run(m, null, out, 1));
    said(sparsec_run(m, odd, out, 1));
    said(sparsec_run(m, good, null_out, 1));
    said(sparsec_run(m, good, out, -1));
    said(sparsec_run(m, good, out, INT64_C(1) << 40));
    NEED(!sparsec_run(m, NULL, NULL, 0) && !sparsec_run(m, good, out, 2));
    NEED(!sparsec_input(m, 1) && !sparsec_input(m, -1) && !sparsec_output(m, 1) && sparsec_output(m, 0));
    sparsec_free(m);
    sparsec_free(NULL);
    return 0;
}

int main(int count, char **words) {
    if (count == 8 && !strcmp(words[1], "run")) return run(words + 2);
    if (count == 8 && !strcmp(words[1], "mutate")) return mutate(words + 2);
    if (count == 4 && !strcmp(words[1], "forks")) return forks(words + 2);
    return count == 3 && !strcmp(words[1], "wrong") ? wrong(words + 2) : 4;
}
