/* Runs a directory that `sparsec compile` wrote: C11, Linux, no libraries besides libc (and what the directory holds).
 *
 *     cc -O2 -I net.sparsec program.c net.sparsec/sparsec.c -ldl -lpthread
 *
 * Functions that can fail return 0 if they did not; sparsec_error() says what is wrong and what to do. */
#ifndef SPARSEC_H
#define SPARSEC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SPARSEC_MOST_AXES 8

typedef enum { SPARSEC_FLOAT32, SPARSEC_INT64, SPARSEC_INT32, SPARSEC_BOOL } sparsec_dtype;

/* One tensor at the edge of a model. rank, shape and bytes are of one sample: the batch axis comes before them. */
typedef struct {
    const char *name;
    sparsec_dtype dtype;
    int rank;
    int64_t shape[SPARSEC_MOST_AXES];
    size_t bytes;
} sparsec_port;

typedef struct sparsec_model sparsec_model;

/* Loads the artifact in the directory `path` to run on `threads` threads per call. Fails if a file is missing or altered, if the
 * processor lacks instructions, or if there is no room for so many threads. Sets TVM_BIND_THREADS=0 unless the environment has it. */
int sparsec_load(const char *path, int threads, sparsec_model **model);

/* What goes in and out. Names live as long as the model. NULL where `index` is out of range. */
int sparsec_inputs(const sparsec_model *model);
int sparsec_outputs(const sparsec_model *model);
const sparsec_port *sparsec_input(const sparsec_model *model, int index);
const sparsec_port *sparsec_output(const sparsec_model *model, int index);

/* Runs `batch` samples: inputs[i] and outputs[i] are contiguous, batch * bytes long, and do not overlap. Several threads may call at once:
 * each call has its own memory, kept for later calls. Fails for a null or misaligned pointer, and when memory is out. */
int sparsec_run(sparsec_model *model, const void *const *inputs, void *const *outputs, int64_t batch);

/* Frees a model that no call is using; NULL is allowed. */
void sparsec_free(sparsec_model *model);

/* The last failure of this thread: what, where, why; never NULL. Valid until the thread's next failure. */
const char *sparsec_error(void);

#ifdef __cplusplus
}
#endif
#endif
