/* Runs artifacts on tensors from files: files_harness FOLDER..., each with an artifact, in<i>.bin and out<i>.bin, which are written back. */
#include "sparsec.h"

#include <stdio.h>
#include <stdlib.h>

#define NEED(condition) ((condition) ? (void)0 : (fprintf(stderr, "%s: %s, %s\n", folder, #condition, sparsec_error()), exit(1)))

static void *read_file(const char *folder, const char *kind, int number, size_t bytes, const char *mode, void *memory) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s%d.bin", folder, kind, number);
    FILE *stream = fopen(path, mode);
    NEED(stream);
    if (!memory) {
        memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
        NEED(memory && fread(memory, 1, bytes, stream) == bytes && fgetc(stream) == EOF);
    } else
        NEED(fwrite(memory, 1, bytes, stream) == bytes);
    NEED(!fclose(stream));
    return memory;
}

static void run(const char *folder) {
    sparsec_model *model;
    NEED(!sparsec_load(folder, 1, &model));
    const int in = sparsec_inputs(model), out = sparsec_outputs(model);
    const void **inputs = calloc((size_t)in + 1, sizeof *inputs);
    void **outputs = calloc((size_t)out + 1, sizeof *outputs);
    for (int i = 0; i < in; i++) inputs[i] = read_file(folder, "in", i, sparsec_input(model, i)->bytes, "rb", NULL);
    for (int i = 0; i < out; i++) outputs[i] = read_file(folder, "out", i, sparsec_output(model, i)->bytes, "rb", NULL);
    NEED(!sparsec_run(model, inputs, outputs, 1));
    for (int i = 0; i < out; i++) read_file(folder, "out", i, sparsec_output(model, i)->bytes, "wb", outputs[i]);
    sparsec_free(model);
}

int main(int count, char **words) {
    for (int i = 1; i < count; i++) run(words[i]);
    return 0;
}
