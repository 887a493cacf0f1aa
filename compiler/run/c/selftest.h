/* SPDX-License-Identifier: Apache-2.0 */
/* What the self-tests of exported kernels share: blocks of memory filled from a file, and a comparison. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "processor.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Kernels may read, not write, this far past an activation. */
enum { LINE = 64, SLACK = 1 << 16 };

static char *data;
static size_t data_bytes;

/* Whether the processor lacks one of the flags, which have spaces between them. */
static inline int lacks(const char *wanted) {
    char *const flags = processor_flags();
    int bad = 0;
    for (size_t length; !bad && *wanted; wanted += length + (wanted[length] == ' ')) {
        length = strcspn(wanted, " ");
        bad = !flags || !has_flag(flags, wanted, length);
        if (bad) fprintf(stderr, "The processor lacks %.*s.\n", (int)length, wanted);
    }
    free(flags);
    return bad;
}

static inline int open_data(const char *path, size_t bytes) {
    FILE *stream = fopen(path, "rb");
    data = malloc(bytes + 1);
    data_bytes = bytes;
    if (stream && data && fread(data, 1, bytes + 1, stream) == bytes) return fclose(stream);
    fprintf(stderr, "%s does not hold %zu bytes\n", path, bytes);
    return 1;
}

/* `bytes` bytes from the data at `offset` (zeros where offset is negative), on a line boundary, between zeros. */
static inline void *block(long offset, size_t bytes) {
    char *memory = aligned_alloc(LINE, (bytes + 2 * (size_t)SLACK + LINE - 1) / LINE * LINE);
    if (!memory) exit(2);
    memset(memory, 0, bytes + 2 * (size_t)SLACK);
    if (offset >= 0) memcpy(memory + SLACK, data + offset, bytes);
    return memory + SLACK;
}

/* Largest difference over the largest magnitude wanted; NaN in `want` stands for any value. 0 if it is at most `tolerance` and the block
 * of `got` has zeros around it still. */
static inline int compared(const float *got, const float *want, size_t count, double tolerance) {
    double worst = 0, scale = 0;
    size_t strange = 0, outside = 0;
    for (size_t i = 0; i < SLACK / sizeof *got; i++) outside += got[-1 - (ptrdiff_t)i] != 0 || got[count + i] != 0;
    for (size_t i = 0; i < count; i++) {
        if (isnan(want[i])) continue;
        if (!isfinite(got[i])) strange += got[i] != want[i];
        else worst = fmax(worst, fabs((double)got[i] - (double)want[i]));
        if (isfinite(want[i])) scale = fmax(scale, fabs((double)want[i]));
    }
    const double error = scale > 0 ? worst / scale : worst;
    const int bad = strange || outside || error > tolerance;
    printf("%s: error %.1e of the largest value, %.0e allowed; %zu values not finite, %zu written outside\n", bad ? "FAILED" : "passed",
           error, tolerance, strange, outside);
    return bad;
}
