/* What measures on a board: a module for TVM's RPC servers, which loads kernel libraries as they are shipped and times their entry.

   Functions are in the calling convention of TVM-FFI (struct layouts: tvm/ffi/c_api.h and dlpack.h). All that they take are tensors on the
   board and whole numbers. A kernel that crashes or hangs ends the session's process, with the status of success, and the server serves on.

   plan, int64 [images, 7 + 2 * ranges]: the words of sparsec_run_program, then address and bytes of what is read before the clock starts. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct {
  int32_t type_index;
  uint32_t padding;
  union {
    int64_t integer;
    void *pointer;
  };
} Any;

typedef struct {
  void *data;
  struct {
    int32_t type, id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} Tensor;

enum { NONE = 0, INTEGER = 1, WORDS = 7, LINE = 16 };

typedef void (*Entry)(int64_t words);

/* Servers hand tensors over as DLTensor pointers. */
static const Tensor *tensor(const Any *argument) { return argument->pointer; }

static void *data(const Any *argument) {
  const Tensor *it = tensor(argument);
  return (char *)it->data + it->byte_offset;
}

static int answer(Any *result, int64_t value) {
  result->type_index = INTEGER;
  result->padding = 0;
  result->integer = value;
  return 0;
}

static void end_session(int signal) {
  (void)signal;
  _exit(0);
}

/* address(tensor): where its elements are. */
__attribute__((visibility("default"))) int __tvm_ffi_sparsec_address(void *self, const Any *arguments, int32_t count, Any *result) {
  (void)self, (void)count;
  return answer(result, (int64_t)data(arguments));
}

/* read(path, into): the first bytes of a file of the board, and how many there are; -1 without such a file. uint8 tensors. */
__attribute__((visibility("default"))) int __tvm_ffi_sparsec_read(void *self, const Any *arguments, int32_t count, Any *result) {
  (void)self, (void)count;
  char *into = data(arguments + 1);
  int64_t room = tensor(arguments + 1)->shape[0], had = 0, more = 1;
  int file = open(data(arguments), O_RDONLY);
  if (file < 0) return answer(result, -1);
  while (had < room && (more = read(file, into + had, room - had)) > 0) had += more;
  close(file);
  return answer(result, had);
}

/* load(text): the entry of the uploaded kernel library of this name, whose file is removed; 0 and why in ``text``, uint8, where it cannot be had. */
__attribute__((visibility("default"))) int __tvm_ffi_sparsec_load(void *self, const Any *arguments, int32_t count, Any *result) {
  (void)self, (void)count;
  char *text = data(arguments), path[4096];
  int64_t room = tensor(arguments)->shape[0];
  Dl_info here;
  const char *slash = dladdr(data, &here) ? strrchr(here.dli_fname, '/') : NULL;
  snprintf(path, sizeof path, "%.*s/%s", slash ? (int)(slash - here.dli_fname) : 1, slash ? here.dli_fname : ".", text);
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL), *entry = library ? dlsym(library, "sparsec_run_program") : NULL;
  if (!entry) {
    const char *why = dlerror();
    snprintf(text, room, "%s", why ? why : "no entry");
  }
  unlink(path);
  return answer(result, (int64_t)entry);
}

static int64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Brings every line of 64 bytes into the caches. */
static float touch(const float *values, int64_t bytes) {
  float total = 0;
  for (int64_t i = 0; i < bytes / 4; i += LINE) total += values[i];
  return total;
}

/* time(entry, plan, samples, seconds): nanoseconds of runs, image after image, into ``samples``, int64; at most so many seconds. */
__attribute__((visibility("default"))) int __tvm_ffi_sparsec_time(void *self, const Any *arguments, int32_t count, Any *result) {
  (void)self, (void)count;
  static const int deadly[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGALRM};
  Entry run = (Entry)arguments[0].integer;
  const int64_t *plan = data(arguments + 1);
  int64_t *samples = data(arguments + 2);
  int64_t images = tensor(arguments + 1)->shape[0], width = tensor(arguments + 1)->shape[1], wanted = tensor(arguments + 2)->shape[0];
  volatile float seen = 0;
  for (unsigned i = 0; i < sizeof deadly / sizeof *deadly; i++) signal(deadly[i], end_session);
  alarm((unsigned)arguments[3].integer);
  for (int64_t i = 0; i < wanted; i++) {
    const int64_t *row = plan + i % images * width;
    for (int64_t at = WORDS; at < width; at += 2) seen += touch((const float *)row[at], row[at + 1]);
    int64_t begin = nanoseconds();
    run((int64_t)row);
    samples[i] = nanoseconds() - begin;
  }
  alarm(0);
  result->type_index = NONE;
  result->padding = 0;
  result->integer = 0;
  return 0;
}
