/* SPDX-License-Identifier: Apache-2.0 */
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

typedef enum { SPARSEC_FLOAT32, SPARSEC_INT64, SPARSEC_INT32, SPARSEC_BOOL, SPARSEC_BFLOAT16, SPARSEC_INT8, SPARSEC_FLOAT16 } sparsec_dtype;

/* One tensor at the edge of a model. rank, shape and bytes are of one sample: the batch axis comes before them. */
typedef struct {
    const char *name;
    sparsec_dtype dtype;
    int rank;
    int64_t shape[SPARSEC_MOST_AXES]; /* the largest, where the first axis follows a run-time size */
    int64_t limit;                    /* elements are indices from 0 to below it; -1: they are not */
    int size;                         /* the run-time size that the first axis follows, -1: none */
    int64_t plus;                     /* the first axis is that size plus this */
    size_t bytes;                     /* at the largest size */
} sparsec_port;

/* A number, such as that of tokens, that each call may choose, from least to most. */
typedef struct {
    const char *name;
    int64_t least, most;
} sparsec_size;

typedef struct sparsec_model sparsec_model;

/* Loads the artifact in the directory `path` to run on `threads` threads per call. Fails if a file is missing or altered, if the
 * processor lacks instructions, if there is no room for so many threads, or if a kernel would leave the program's memory. Of an artifact
 * for several processors it is the first variant that this one can run. */
int sparsec_load(const char *path, int threads, sparsec_model **model);

/* What goes in and out. Names live as long as the model. NULL where `index` is out of range. */
int sparsec_inputs(const sparsec_model *model);
int sparsec_outputs(const sparsec_model *model);
const sparsec_port *sparsec_input(const sparsec_model *model, int index);
const sparsec_port *sparsec_output(const sparsec_model *model, int index);

/* The run-time sizes, and the bytes of one sample of a tensor when they are `sizes` (NULL: the largest). */
int sparsec_sizes(const sparsec_model *model);
const sparsec_size *sparsec_size_at(const sparsec_model *model, int index);
size_t sparsec_bytes(const sparsec_port *port, const int64_t *sizes);

/* Runs `batch` samples: inputs[i] and outputs[i] are contiguous, batch * bytes long, and do not overlap. Several threads may call at once:
 * each call has its own memory, kept for later calls, and all share a pool of fewer threads than the process may use cores. A forked child
 * may go on with its parent's models. Fails for a null or misaligned pointer, for an index that is not below its limit, and
 * when memory is out. sparsec_run_sized runs at other run-time sizes than the largest, one for each of sparsec_sizes(model). */
int sparsec_run(sparsec_model *model, const void *const *inputs, void *const *outputs, int64_t batch);
int sparsec_run_sized(sparsec_model *model, const void *const *inputs, void *const *outputs, int64_t batch, const int64_t *sizes);

/* Frees a model that no call is using; NULL is allowed. */
void sparsec_free(sparsec_model *model);

/* The last failure of this thread: what, where, why; never NULL. Valid until the thread's next failure. */
const char *sparsec_error(void);

#ifdef __cplusplus
}
#endif
#endif
