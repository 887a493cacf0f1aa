/* SPDX-License-Identifier: Apache-2.0 */
/* The loader behind sparsec.h. program.bin holds a program's tables (compiler/run/flat_program.py says how); no entry is used before it is known
 * to point inside the file, the arena, the weights or the caller's tensors, and no kernel runs before the kernel library has said that it
 * stays there (backends/cpu/extents.h). The library itself is machine code: who loads it trusts it. */
#define _GNU_SOURCE
#include "sparsec.h"
#include "processor.h"
#include "sha256.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

enum { VERSION = 5, HEADER = 7, FILE_WIDTH = 6, LINE = 64, RECORD_WIDTH = 48, GROUP_WIDTH = 5, PORT_WIDTH = 6 + SPARSEC_MOST_AXES, MOST_PATH = 4096, MOST_VARIANTS = 64 };
/* Of a place: field, segment, bytes before the address in it and from there on. Of a record: what a library remembers of its tables. */
enum { PLACE_WIDTH = 4, SCAN_WORDS = 16 };
enum { KERNELS, WEIGHTS, FILE_COUNT };
/* What a variant is that another processor needs: nothing is wrong with it. */
enum { ELSEWHERE = 1 };
enum { ARENA, CONSTANTS, INPUT, OUTPUT, SEGMENTS };
/* Sizes stay so small that sums and products of two indices cannot overflow. Kernels may read SLACK bytes past the arena. */
static const int64_t MOST = INT64_C(1) << 46;
static const int64_t MOST_FACTOR = INT64_C(1) << 30;
static const size_t SLACK = 1 << 16;
static const int64_t item_bytes[] = {4, 8, 4, 1, 2, 1, 2};

/* The functions of a kernel library, called with words: see `run` in backends/cpu/pool.c and `checked` in backends/cpu/extents.h. */
typedef void runner(const int64_t *words);
typedef int64_t checker(const int64_t *words);

typedef struct {
    int64_t rows, width;
    const int64_t *data;
} table;

/* Memory of one running call: tables with absolute addresses, then the arena. `checked`: for the sizes that it has. */
typedef struct instance {
    struct instance *next;
    size_t bytes;
    bool checked;
    int64_t *records, *groups, *steps, *sizes, *places;
    char *arena;
} instance;

/* A file in memory, `shift` bytes behind a page boundary. */
typedef struct {
    char *memory;
    size_t mapped, shift, bytes;
} blob;

struct sparsec_model {
    blob file, constants; /* program.bin and the weights' file */
    table program, inputs, outputs, sizes, records, groups, patches, moves, files, weights, machine, strings, runner, variants;
    sparsec_port *ports;
    sparsec_size *ranges;
    int64_t edges; /* moves at the caller's tensors */
    int threads;
    void *kernels;
    runner *run;
    checker *check;
    int64_t *scans; /* SCAN_WORDS for each record */
    instance *idle;
};

static _Thread_local char message[1024];
/* Libraries, and the idle memory of all models. A fork waits for both, so that the child finds them free and whole. */
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER, keeping = PTHREAD_MUTEX_INITIALIZER;

static void hold(void) {
    pthread_mutex_lock(&loading);
    pthread_mutex_lock(&keeping);
}

static void release(void) {
    pthread_mutex_unlock(&keeping);
    pthread_mutex_unlock(&loading);
}

__attribute__((constructor)) static void expect_forks(void) { pthread_atfork(hold, release, release); }

const char *sparsec_error(void) { return message; }

__attribute__((format(printf, 1, 2))) static int fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    return -1;
}

static int damaged(const char *what) { return fail("The artifact is damaged: %s. Copy or save it again.", what); }

static void *new_memory(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static const char *content(const blob *b) { return b->memory + b->shift; }

static void forget(blob *b) {
    if (b->memory) munmap(b->memory, b->mapped);
    b->memory = NULL;
}

static int read_stream(FILE *stream, const char *path, blob *b) {
    enum { SPARE = 256 }; /* kernels may read whole vectors past the end of a constant */
    struct stat about;
    if (fstat(fileno(stream), &about) || !S_ISREG(about.st_mode)) return fail("%s is not a file.", path);
    b->bytes = (size_t)about.st_size;
    b->mapped = b->shift + b->bytes + SPARE;
    if (!(b->memory = new_memory(b->mapped))) return fail("There is not enough memory to read %s (%zu bytes).", path, b->bytes);
    return fread(b->memory + b->shift, 1, b->bytes, stream) == b->bytes ? 0 : fail("%s cannot be read to its end.", path);
}

static int join(char path[MOST_PATH], const char *folder, const char *name) {
    return snprintf(path, MOST_PATH, "%s/%s", folder, name) < MOST_PATH ? 0 : fail("The path %.99s... is too long.", folder);
}

static int read_file(const char *folder, const char *name, size_t shift, blob *b) {
    char path[MOST_PATH];
    *b = (blob){.shift = shift};
    if (join(path, folder, name)) return -1;
    /* Opening a pipe would wait for its writer. */
    const int handle = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    FILE *stream = handle < 0 ? NULL : fdopen(handle, "rb");
    if (!stream && handle >= 0) close(handle);
    if (!stream) return fail("%s cannot be read. Is %s a directory that `sparsec compile` wrote?", path, folder);
    const int bad = read_stream(stream, path, b);
    fclose(stream);
    if (bad) forget(b);
    return bad;
}

/* Whether `folder`/`name` is, links followed, a file of the folder itself. */
static bool inside(const char *folder, const char *name) {
    char path[MOST_PATH], *home = realpath(folder, NULL), *real = NULL;
    if (home && !join(path, folder, name)) real = realpath(path, NULL);
    const size_t length = home ? strlen(home) : 0;
    const bool found = real && !strncmp(real, home, length) && real[length] == '/' && !strchr(real + length + 1, '/');
    free(real);
    free(home);
    return found;
}

/* `wanted`: a digest as four words of a table. */
static bool same_digest(const char *data, size_t bytes, const int64_t *wanted) {
    unsigned char found[32];
    sha256(data, bytes, found);
    return !memcmp(found, wanted, sizeof found);
}

/* ---- program.bin ---- */

static int read_sections(sparsec_model *m) {
    struct {
        char tag[8];
        table *place;
        int64_t width;
    } known[] = {{"PROGRAM", &m->program, 5},
                 {"INPUTS", &m->inputs, PORT_WIDTH},
                 {"OUTPUTS", &m->outputs, PORT_WIDTH},
                 {"RECORDS", &m->records, RECORD_WIDTH},
                 {"GROUPS", &m->groups, GROUP_WIDTH},
                 {"MOVES", &m->moves, 4},
                 {"FILES", &m->files, FILE_WIDTH},
                 {"WEIGHTS", &m->weights, 2},
                 {"SIZES", &m->sizes, 3},
                 {"PATCHES", &m->patches, 6},
                 {"MACHINE", &m->machine, 1},
                 {"STRINGS", &m->strings, 1},
                 {"RUNNER", &m->runner, 1}, /* these two need not be there */
                 {"VARIANTS", &m->variants, 5}};
    const size_t count = sizeof known / sizeof *known, bytes = m->file.bytes;
    const int64_t *words = (const int64_t *)(const void *)content(&m->file), length = (int64_t)(bytes / 8);
    if (bytes < 8 * (HEADER + 1) || memcmp(words, "SPARSEC", 8)) return damaged("program.bin is not the file of a program");
    if (words[1] != VERSION)
        return fail("program.bin has version %lld, this loader reads %d. Use the sparsec.c of the same directory.", (long long)words[1],
                    VERSION);
    if (words[2] != (int64_t)bytes || bytes % 8) return damaged("program.bin is not complete");
    if (!same_digest((const char *)(words + HEADER), bytes - 8 * HEADER, words + 3)) return damaged("program.bin has been altered");
    if (words[HEADER] < 0 || words[HEADER] > (length - HEADER - 1) / 4) return damaged("program.bin has no directory");
    for (int64_t s = 0; s < words[HEADER]; s++) {
        const int64_t *row = words + HEADER + 1 + 4 * s, first = row[1], rows = row[2], width = row[3];
        if (first < 0 || first > length || rows < 0 || width < 1 || width > length || rows > (length - first) / width)
            return damaged("a section of program.bin is not inside it");
        size_t k = 0;
        while (k < count && memcmp(row, known[k].tag, 8)) k++;
        if (k < count && width >= known[k].width) *known[k].place = (table){rows, width, words + first};
        else if (k < count) return damaged("a section of program.bin is too narrow");
        else if (*(const char *)row >= 'A' && *(const char *)row <= 'Z')
            return fail("program.bin has a part %.8s that this loader does not know. Use the sparsec.c of the same directory.",
                        (const char *)row);
    }
    if (m->variants.data) return m->strings.data ? 0 : damaged("it does not name its variants");
    for (size_t k = 0; k + 2 < count; k++)
        if (!known[k].place->data) return damaged("a section of program.bin is missing");
    return 0;
}

/* A string of section STRINGS; NULL if it does not lie in it. */
static const char *text_at(const sparsec_model *m, int64_t offset) {
    const int64_t bytes = 8 * m->strings.rows * m->strings.width;
    const char *text = (const char *)m->strings.data;
    return offset >= 0 && offset < bytes && memchr(text + offset, 0, (size_t)(bytes - offset)) ? text + offset : NULL;
}

static const int64_t *row_of(const table *t, int64_t row) { return t->data + row * t->width; }

static int read_sizes(sparsec_model *m) {
    if (m->sizes.rows > MOST || !(m->ranges = calloc((size_t)m->sizes.rows + 1, sizeof *m->ranges)))
        return fail("There is not enough memory.");
    for (int64_t i = 0; i < m->sizes.rows; i++) {
        const int64_t *row = row_of(&m->sizes, i);
        m->ranges[i] = (sparsec_size){text_at(m, row[0]), row[1], row[2]};
        if (!m->ranges[i].name || row[1] < 1 || row[1] > row[2] || row[2] > MOST_FACTOR) return damaged("a run-time size has no range");
    }
    return 0;
}

static int read_port(sparsec_model *m, const int64_t *row, sparsec_port *port) {
    port->name = text_at(m, row[0]);
    if (!port->name || row[1] < 0 || row[1] > SPARSEC_FLOAT16 || row[2] < 0 || row[2] > SPARSEC_MOST_AXES)
        return damaged("a tensor is malformed");
    port->dtype = (sparsec_dtype)row[1];
    port->rank = (int)row[2];
    port->limit = row[3];
    int64_t bytes = item_bytes[row[1]];
    for (int axis = 0; axis < port->rank; axis++) {
        const int64_t size = port->shape[axis] = row[6 + axis];
        if (size < 0 || (size && bytes > MOST / size)) return damaged("the size of a tensor makes no sense");
        bytes *= size;
    }
    port->bytes = (size_t)bytes;
    port->size = row[4] == -1 ? -1 : (int)row[4];
    port->plus = row[5];
    if (row[4] < -1 || row[4] >= m->sizes.rows || row[5] < -MOST || row[5] > MOST) return damaged("a tensor follows an unknown size");
    if (port->limit < -1 || (port->limit >= 0 && port->dtype != SPARSEC_INT64 && port->dtype != SPARSEC_INT32))
        return damaged("the limit of a tensor makes no sense");
    if (port->size < 0) return 0;
    const sparsec_size *range = m->ranges + port->size;
    return port->rank && port->shape[0] == range->most + port->plus && range->least + port->plus >= 0
               ? 0
               : damaged("a tensor does not follow its size");
}

static int read_ports(sparsec_model *m) {
    const int64_t ins = m->inputs.rows, outs = m->outputs.rows;
    m->ports = calloc((size_t)(ins + outs + 1), sizeof *m->ports);
    if (!m->ports) return fail("There is not enough memory.");
    for (int64_t i = 0; i < ins + outs; i++)
        if (read_port(m, i < ins ? row_of(&m->inputs, i) : row_of(&m->outputs, i - ins), m->ports + i)) return -1;
    return 0;
}

static bool within(int64_t value, int64_t end) { return value >= 0 && value < end; }

/* As check_tables in program.py. */
static int check_move(const sparsec_model *m, const int64_t *move) {
    const int64_t field = move[0], segment = move[1], offset = move[2], port = move[3];
    const int64_t width = m->records.width, fields = m->records.rows * width;
    if (!within(field, fields) || field % width == 0) return damaged("an address has no place in a record");
    if (!within(segment, SEGMENTS)) return damaged("an address is in an unknown segment");
    if (segment == INPUT && !within(port, m->inputs.rows)) return damaged("an address is in an unknown input");
    if (segment == OUTPUT && !within(port, m->outputs.rows)) return damaged("an address is in an unknown output");
    const int64_t sizes[] = {m->program.data[0], m->weights.data[1], segment == INPUT ? (int64_t)m->ports[port].bytes : 0,
                             segment == OUTPUT ? (int64_t)m->ports[m->inputs.rows + port].bytes : 0};
    if (!within(offset, sizes[segment] + 1)) return damaged("an address is outside its segment");
    if (segment != ARENA || field + 1 >= fields) return 0;
    const int64_t slot = m->records.data[field + 1], slots = m->program.data[1] ? m->program.data[1] : 1;
    if (slot < 0 || slot > (sizes[ARENA] - offset) / slots) return damaged("a strip buffer is outside the arena");
    return slot && m->threads > 1 && !m->program.data[1]
               ? fail("The artifact does not say how many threads it has room for: load it for one.")
               : 0;
}

/* times * ceil((size + plus) / over) */
static int64_t patched(const int64_t *patch, int64_t size) {
    const int64_t sum = size + patch[3], over = patch[4];
    return patch[5] * (sum / over + (sum % over > 0));
}

static int check_patch(const sparsec_model *m, const int64_t *patch) {
    const table *t = patch[0] ? &m->groups : &m->records;
    if (!within(patch[0], 2) || !within(patch[1], t->rows * t->width) || !within(patch[2], m->sizes.rows))
        return damaged("a patch is outside the tables");
    const int64_t column = patch[1] % t->width;
    if (patch[0] ? column != 2 : column == 0) return damaged("a patch is of an entry that cannot follow a size");
    for (int64_t i = 0; !patch[0] && i < m->moves.rows; i++)
        if (*row_of(&m->moves, i) == patch[1]) return damaged("a patch is of an address");
    if (patch[3] < -MOST_FACTOR || patch[3] > MOST_FACTOR || patch[4] < 1 || patch[4] > MOST_FACTOR || !within(patch[5], MOST_FACTOR))
        return damaged("a patch makes no sense");
    const sparsec_size *range = m->ranges + patch[2];
    return patched(patch, range->least) >= 0 && patched(patch, range->most) == t->data[patch[1]]
               ? 0
               : damaged("a patch differs from its table");
}

static int check_tables(const sparsec_model *m) {
    const int64_t *p = m->program.data;
    if (m->program.rows != 1 || p[3] < 0 || p[4] < -1 || (p[4] >= 0 && p[4] < p[3])) return damaged("it serves no batch size");
    if (m->weights.rows != 1 || !within(p[0], MOST) || p[1] < 0 || p[1] > INT32_MAX)
        return damaged("its sizes make no sense");
    if (!within(m->weights.data[0], MOST) || !within(m->weights.data[1], MOST)) return damaged("its weights make no sense");
    if (m->records.width != RECORD_WIDTH || m->groups.width != GROUP_WIDTH || m->groups.rows > INT32_MAX || m->moves.rows > INT32_MAX)
        return damaged("its tables make no sense");
    if (p[1] && m->threads > p[1])
        return fail("The artifact was compiled for at most %lld thread(s), %d were asked for.", (long long)p[1], m->threads);
    for (int64_t i = 0; i < m->records.rows; i++)
        if (!within(*row_of(&m->records, i), p[2])) return damaged("a record names an unknown kernel");
    int64_t done = 0;
    for (int64_t i = 0; i < m->groups.rows; done = row_of(&m->groups, i)[1], i++) {
        const int64_t *g = row_of(&m->groups, i);
        if (g[0] != done || !within(g[1], m->records.rows + 1) || g[1] < g[0] || !within(g[2], INT64_C(1) << 31) ||
            !within(g[3], INT64_C(1) << 31))
            return damaged("a group is not the next range of records");
    }
    if (done != m->records.rows) return damaged("a record is in no group");
    for (int64_t i = 0; i < m->moves.rows; i++) {
        if (check_move(m, row_of(&m->moves, i))) return -1;
        if (i && row_of(&m->moves, i)[0] <= row_of(&m->moves, i - 1)[0]) return damaged("its addresses are not in order");
    }
    for (int64_t i = 0; i < m->patches.rows; i++)
        if (check_patch(m, row_of(&m->patches, i))) return -1;
    return 0;
}

static int check_executor(const sparsec_model *m) {
    const char *name = m->runner.rows ? text_at(m, m->runner.data[0]) : "cpu";
    if (!name) return damaged("it does not say what runs it");
    return strcmp(name, "cpu") ? fail("The program needs the executor '%.64s', this one is 'cpu'. Compile the model again with --target native.", name)
                               : 0;
}

/* 0, ELSEWHERE or, where that cannot be said, -1. */
static int check_machine(const sparsec_model *m) {
    struct utsname here;
    const char *arch = m->machine.rows ? text_at(m, m->machine.data[0]) : NULL;
    if (!arch || uname(&here)) return damaged("it does not say which machine it needs");
    if (strcmp(arch, here.machine)) {
        fail("The artifact is for %s processors, this one is %s. Compile the model on this machine.", arch, here.machine);
        return ELSEWHERE;
    }
    char *const flags = processor_flags();
    int bad = flags ? 0 : fail("/proc/cpuinfo, which says what the processor can do, cannot be read.");
    for (int64_t i = 1; i < m->machine.rows && !bad; i++) {
        const char *flag = text_at(m, *row_of(&m->machine, i));
        if (!flag || !*flag) bad = damaged("it does not say which machine it needs");
        else if (!has_flag(flags, flag, strlen(flag))) {
            fail("The artifact needs %s, which this processor does not have. Compile the model on this machine.", flag);
            bad = ELSEWHERE;
        }
    }
    free(flags);
    return bad;
}

/* ---- the other files ---- */

/* Checks every file that the artifact will use and keeps the weights, on a line boundary. */
static int read_files(sparsec_model *m, const char *folder) {
    /* Their names begin like this: no file is taken for another one. */
    static const char *const names[FILE_COUNT] = {"kernels-", "weights.safetensors"};
    if (m->files.rows < FILE_COUNT) return damaged("its list of files is incomplete");
    for (int64_t i = 0; i < m->files.rows; i++) {
        const int64_t *row = row_of(&m->files, i);
        const char *name = text_at(m, row[0]);
        blob b;
        if (!name || !*name || strchr(name, '/')) return damaged("it names a file outside its directory");
        if (i < FILE_COUNT && strncmp(name, names[i], strlen(names[i]))) return damaged("it takes one file for another");
        if (read_file(folder, name, i == WEIGHTS ? (size_t)(LINE - m->weights.data[0] % LINE) : 0, &b)) return -1;
        const bool whole = (int64_t)b.bytes == row[1] && same_digest(content(&b), b.bytes, row + 2);
        if (i == WEIGHTS) m->constants = b;
        else forget(&b);
        if (!inside(folder, name)) return fail("%s/%s is a link out of the artifact. Copy the file itself.", folder, name);
        if (!whole) return fail("%s/%s is incomplete or altered. Copy or save the artifact again.", folder, name);
    }
    const int64_t offset = m->weights.data[0], size = m->weights.data[1], bytes = (int64_t)m->constants.bytes;
    return offset <= bytes && size <= bytes - offset ? 0 : damaged("its weights are not in their file");
}

static const char *file_name(const sparsec_model *m, int file) { return text_at(m, *row_of(&m->files, file)); }

static int load_kernels(sparsec_model *m, const char *folder) {
    char path[MOST_PATH];
    if (join(path, folder, file_name(m, KERNELS))) return -1;
    if (!(m->kernels = dlopen(path, RTLD_NOW | RTLD_LOCAL))) return fail("%s cannot be loaded: %s.", path, dlerror());
    *(void **)&m->run = dlsym(m->kernels, "sparsec_run_program");
    *(void **)&m->check = dlsym(m->kernels, "sparsec_check_program");
    return m->run && m->check ? 0 : fail("%s is not a library of kernels.", path);
}

static instance *new_instance(const sparsec_model *m);
static int check_extents(const sparsec_model *m, instance *made, bool may_scan);

/* What kernels read of tables in the weights is looked at once, here. */
static int check_first(sparsec_model *m) {
    if (!(m->scans = calloc((size_t)m->records.rows + 1, SCAN_WORDS * sizeof *m->scans))) return fail("There is not enough memory.");
    return (m->idle = new_instance(m)) ? check_extents(m, m->idle, true) : -1;
}

/* What a folder holds of variant `row`, in a model that holds nothing. `path` becomes its folder. */
static int open_variant(sparsec_model *m, const sparsec_model *list, const int64_t *row, const char *folder, char path[MOST_PATH]) {
    const char *name = text_at(list, row[0]);
    if (!name || !*name || strchr(name, '/')) return damaged("it names a variant outside its directory");
    if (join(path, folder, name) || read_file(path, "program.bin", 0, &m->file)) return -1;
    if (!inside(folder, name)) return fail("%s is a link out of the artifact. Copy the folder itself.", path);
    if (!same_digest(content(&m->file), m->file.bytes, row + 1))
        return fail("%s is not the variant that was saved with the artifact. Copy or save it again.", path);
    if (read_sections(m)) return -1;
    return m->variants.data ? damaged("a variant has variants") : check_machine(m);
}

/* Takes the first variant for this processor in place of their list. `path` becomes its folder. */
static int choose_variant(sparsec_model *m, const char *folder, char path[MOST_PATH]) {
    sparsec_model list = *m;
    int bad = ELSEWHERE;
    m->file = (blob){0};
    if (list.variants.rows > MOST_VARIANTS) bad = damaged("it has too many variants");
    else if (!list.variants.rows) bad = damaged("it has no variant");
    for (int64_t i = 0; i < list.variants.rows && bad == ELSEWHERE; i++) {
        forget(&m->file);
        *m = (sparsec_model){.threads = list.threads};
        bad = open_variant(m, &list, row_of(&list.variants, i), folder, path);
    }
    forget(&list.file);
    if (bad != ELSEWHERE) return bad;
    char last[sizeof message];
    memcpy(last, message, sizeof last);
    return fail("No variant of the artifact can run here; of the last: %s", last);
}

static int load(sparsec_model *m, const char *folder) {
    char path[MOST_PATH];
    if (read_file(folder, "program.bin", 0, &m->file) || read_sections(m)) return -1;
    const bool listed = m->variants.data;
    if (listed ? choose_variant(m, folder, path) : check_machine(m)) return -1;
    if (listed) folder = path;
    if (check_executor(m) || read_sizes(m) || read_ports(m) || check_tables(m) || read_files(m, folder)) return -1;
    for (int64_t i = 0; i < m->moves.rows; i++) m->edges += row_of(&m->moves, i)[1] >= INPUT;
    pthread_mutex_lock(&loading);
    const int bad = load_kernels(m, folder);
    pthread_mutex_unlock(&loading);
    return bad ? bad : check_first(m);
}

int sparsec_load(const char *path, int threads, sparsec_model **model) {
    if (!model || !path) return fail("sparsec_load needs a path and a place for the model.");
    *model = NULL;
    if (threads < 1) return fail("The number of threads must be at least 1, it is %d.", threads);
    sparsec_model *m = calloc(1, sizeof *m);
    if (!m) return fail("There is not enough memory.");
    m->threads = threads;
    if (load(m, path)) {
        sparsec_free(m);
        return -1;
    }
    *model = m;
    return 0;
}

void sparsec_free(sparsec_model *m) {
    if (!m) return;
    for (instance *next, *i = m->idle; i; i = next) next = i->next, munmap(i, i->bytes);
    if (m->kernels) dlclose(m->kernels);
    forget(&m->constants);
    forget(&m->file);
    free(m->scans);
    free(m->ports);
    free(m->ranges);
    free(m);
}

/* ---- running ---- */

static int64_t parts(int64_t amount, int64_t part) { return (amount + part - 1) / part; }

/* Strip lengths and shares for a number of threads, as split() in runtime.py. */
static void split(int64_t *group, int64_t threads) {
    const int64_t share = parts(group[2], threads);
    group[3] = group[3] > 0 && group[3] < share ? group[3] : share;
    if (!group[3]) group[3] = 1;
    group[4] = parts(parts(group[2], group[3]), threads);
}

static size_t lines(size_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

static int64_t segment_bytes(const sparsec_model *m, const int64_t *move, const int64_t *sizes) {
    if (move[1] < INPUT) return move[1] == ARENA ? m->program.data[0] : m->weights.data[1];
    return (int64_t)sparsec_bytes(m->ports + (move[1] == INPUT ? 0 : m->inputs.rows) + move[3], sizes);
}

/* Asks the kernel library whether the tables of an instance keep their kernels inside their memory. */
static int check_extents(const sparsec_model *m, instance *made, bool may_scan) {
    const int64_t words[] = {(int64_t)(intptr_t)made->records, (int64_t)(intptr_t)made->groups, (int64_t)(intptr_t)made->places,
                             (int64_t)(intptr_t)m->scans, m->records.rows, m->groups.rows, m->moves.rows, m->threads, may_scan};
    const int64_t refused = m->check(words);
    made->checked = !refused;
    return made->checked ? 0 : fail("The program would leave its memory: record %lld, field %lld. Copy or save the artifact again.",
                                    (long long)((refused - 1) / RECORD_WIDTH), (long long)((refused - 1) % RECORD_WIDTH));
}

/* The sizes of a call: tables follow them, and so does the step from one sample of a caller's tensor to the next. */
static void fit(const sparsec_model *m, instance *made, const int64_t *sizes) {
    made->checked = false;
    for (int64_t i = 0; i < m->sizes.rows; i++) made->sizes[i] = sizes ? sizes[i] : m->ranges[i].most;
    memcpy(made->groups, m->groups.data, (size_t)(m->groups.rows * GROUP_WIDTH) * 8);
    for (int64_t i = 0; i < m->patches.rows; i++) {
        const int64_t *patch = row_of(&m->patches, i);
        (patch[0] ? made->groups : made->records)[patch[1]] = patched(patch, made->sizes[patch[2]]);
    }
    for (int64_t i = 0; i < m->groups.rows; i++) split(made->groups + i * GROUP_WIDTH, m->threads);
    int64_t *step = made->steps;
    for (int64_t i = 0; i < m->moves.rows; i++) {
        const int64_t *move = row_of(&m->moves, i), bytes = segment_bytes(m, move, made->sizes);
        memcpy(made->places + i * PLACE_WIDTH, (int64_t[PLACE_WIDTH]){move[0], move[1], move[2], bytes - move[2]}, PLACE_WIDTH * 8);
        if (move[1] < INPUT) continue;
        *step++ = move[0];
        *step++ = bytes;
    }
}

static bool fits(const sparsec_model *m, const instance *made, const int64_t *sizes) {
    for (int64_t i = 0; i < m->sizes.rows; i++)
        if (made->sizes[i] != (sizes ? sizes[i] : m->ranges[i].most)) return false;
    return true;
}

static void settle(const sparsec_model *m, instance *made) {
    const char *const constants = content(&m->constants) + m->weights.data[0];
    memcpy(made->records, m->records.data, (size_t)(m->records.rows * m->records.width) * 8);
    for (int64_t i = 0; i < m->moves.rows; i++) {
        const int64_t *move = row_of(&m->moves, i);
        if (move[1] < INPUT) made->records[move[0]] = (int64_t)(intptr_t)(move[1] == ARENA ? made->arena : constants) + move[2];
    }
    fit(m, made, NULL);
}

static instance *new_instance(const sparsec_model *m) {
    const size_t records = lines((size_t)(m->records.rows * m->records.width) * 8),
                 groups = lines((size_t)(m->groups.rows * GROUP_WIDTH) * 8);
    const size_t head = lines(sizeof(instance)), steps = lines((size_t)m->edges * 16 + 16);
    const size_t sizes = lines((size_t)m->sizes.rows * 8), places = lines((size_t)m->moves.rows * PLACE_WIDTH * 8);
    const size_t bytes = head + records + groups + steps + sizes + places + (size_t)m->program.data[0] + SLACK;
    char *memory = new_memory(bytes);
    if (!memory) {
        fail("There is not enough memory to run the network (%zu bytes).", bytes);
        return NULL;
    }
    instance *made = (instance *)(void *)memory;
    made->bytes = bytes;
    made->records = (int64_t *)(void *)(memory + head);
    made->groups = made->records + records / 8;
    made->steps = made->groups + groups / 8;
    made->sizes = made->steps + steps / 8;
    made->places = made->sizes + sizes / 8;
    made->arena = (char *)(made->places + places / 8);
    settle(m, made);
    return made;
}

static instance *take(sparsec_model *m) {
    pthread_mutex_lock(&keeping);
    instance *found = m->idle;
    if (found) m->idle = found->next;
    pthread_mutex_unlock(&keeping);
    return found ? found : new_instance(m);
}

static void give_back(sparsec_model *m, instance *used) {
    pthread_mutex_lock(&keeping);
    used->next = m->idle;
    m->idle = used;
    pthread_mutex_unlock(&keeping);
}

static void bind(const sparsec_model *m, instance *made, const void *const *inputs, void *const *outputs) {
    for (int64_t i = 0; i < m->moves.rows; i++) {
        const int64_t *move = row_of(&m->moves, i);
        if (move[1] >= INPUT) made->records[move[0]] = (int64_t)(intptr_t)(move[1] == INPUT ? inputs[move[3]] : outputs[move[3]]) + move[2];
    }
}

/* Whether indices are below their limit: they would be read from there. */
static int check_indices(const sparsec_port *port, const void *data, size_t bytes) {
    for (size_t i = 0; port->limit >= 0 && i < bytes / (size_t)item_bytes[port->dtype]; i++) {
        const int64_t index = port->dtype == SPARSEC_INT64 ? ((const int64_t *)data)[i] : ((const int32_t *)data)[i];
        if (!within(index, port->limit))
            return fail("%s holds the index %lld, its table has rows 0 to %lld.", port->name, (long long)index, (long long)port->limit - 1);
    }
    return 0;
}

static int check_tensor(const sparsec_port *port, const void *data) {
    if (!data && port->bytes) return fail("There is no memory for %s.", port->name);
    if ((uintptr_t)data % (uintptr_t)item_bytes[port->dtype])
        return fail("The memory of %s is not aligned to %d bytes.", port->name, (int)item_bytes[port->dtype]);
    return 0;
}

static int check_call(const sparsec_model *m, const void *const *inputs, void *const *outputs, int64_t batch, const int64_t *sizes) {
    const int64_t ins = m->inputs.rows, outs = m->outputs.rows;
    if (batch < 0 || batch > INT32_MAX) return fail("The batch size must be between 0 and %d, it is %lld.", INT32_MAX, (long long)batch);
    const int64_t least = m->program.data[3], most = m->program.data[4];
    if (least == most && batch != most)
        return fail("The model was compiled for a batch of %lld, not %lld: what it does depends on it.", (long long)most, (long long)batch);
    if (batch < least || (most >= 0 && batch > most))
        return fail("The model was compiled for batches of %lld to %lld, not %lld: what it does depends on it.", (long long)least,
                    (long long)(most < 0 ? INT32_MAX : most), (long long)batch);
    for (int64_t i = 0; sizes && i < m->sizes.rows; i++)
        if (sizes[i] < m->ranges[i].least || sizes[i] > m->ranges[i].most)
            return fail("%s must be between %lld and %lld, it is %lld.", m->ranges[i].name, (long long)m->ranges[i].least,
                        (long long)m->ranges[i].most, (long long)sizes[i]);
    if (batch && ((ins && !inputs) || (outs && !outputs))) return fail("There are no inputs or no outputs.");
    for (int64_t i = 0; batch && i < ins + outs; i++)
        if (check_tensor(m->ports + i, i < ins ? inputs[i] : outputs[i - ins])) return -1;
    for (int64_t i = 0; batch && i < ins; i++)
        if (check_indices(m->ports + i, inputs[i], (size_t)batch * sparsec_bytes(m->ports + i, sizes))) return -1;
    return 0;
}

int sparsec_run(sparsec_model *m, const void *const *inputs, void *const *outputs, int64_t batch) {
    return sparsec_run_sized(m, inputs, outputs, batch, NULL);
}

int sparsec_run_sized(sparsec_model *m, const void *const *inputs, void *const *outputs, int64_t batch, const int64_t *sizes) {
    if (!m) return fail("There is no model.");
    if (check_call(m, inputs, outputs, batch, sizes)) return -1;
    if (!batch) return 0;
    instance *mine = take(m);
    if (!mine) return -1;
    if (!fits(m, mine, sizes)) fit(m, mine, sizes);
    if (!mine->checked && check_extents(m, mine, false)) {
        give_back(m, mine);
        return -1;
    }
    bind(m, mine, inputs, outputs);
    const int64_t words[] = {(int64_t)(intptr_t)mine->records, (int64_t)(intptr_t)mine->groups, (int64_t)(intptr_t)mine->steps,
                             m->groups.rows, m->edges, batch, m->threads};
    m->run(words);
    give_back(m, mine);
    return 0;
}

int sparsec_inputs(const sparsec_model *m) { return (int)m->inputs.rows; }

int sparsec_outputs(const sparsec_model *m) { return (int)m->outputs.rows; }

const sparsec_port *sparsec_input(const sparsec_model *m, int index) { return within(index, m->inputs.rows) ? m->ports + index : NULL; }

const sparsec_port *sparsec_output(const sparsec_model *m, int index) {
    return within(index, m->outputs.rows) ? m->ports + m->inputs.rows + index : NULL;
}

int sparsec_sizes(const sparsec_model *m) { return (int)m->sizes.rows; }

const sparsec_size *sparsec_size_at(const sparsec_model *m, int index) { return within(index, m->sizes.rows) ? m->ranges + index : NULL; }

size_t sparsec_bytes(const sparsec_port *port, const int64_t *sizes) {
    if (!sizes || port->size < 0 || !port->shape[0]) return port->bytes;
    return port->bytes / (size_t)port->shape[0] * (size_t)(sizes[port->size] + port->plus);
}
