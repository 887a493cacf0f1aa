/* Runs an artifact on inputs of ones:
 *     cc -O2 -I net.sparsec examples/run_artifact.c net.sparsec/sparsec.c -ldl -lpthread -o run && ./run net.sparsec */
#include "sparsec.h"

#include <stdio.h>
#include <stdlib.h>

static float *ones(size_t bytes) {
    float *data = malloc(bytes + 1);
    for (size_t i = 0; data && i < bytes / sizeof *data; i++) data[i] = 1.0f;
    return data;
}

int main(int count, char **words) {
    sparsec_model *model;
    const int batch = count > 3 ? atoi(words[3]) : 1;
    if (count < 2 || sparsec_load(words[1], count > 2 ? atoi(words[2]) : 1, &model)) {
        fprintf(stderr, "%s\nusage: run ARTIFACT [THREADS] [BATCH]\n", sparsec_error());
        return 1;
    }
    const int in = sparsec_inputs(model), out = sparsec_outputs(model);
    const void **inputs = calloc((size_t)in, sizeof *inputs);
    void **outputs = calloc((size_t)out, sizeof *outputs);
    for (int i = 0; i < in; i++) inputs[i] = ones(sparsec_input(model, i)->bytes * (size_t)batch);
    for (int i = 0; i < out; i++) outputs[i] = ones(sparsec_output(model, i)->bytes * (size_t)batch);
    if (sparsec_run(model, inputs, outputs, batch)) {
        fprintf(stderr, "%s\n", sparsec_error());
        return 1;
    }
    for (int i = 0; i < out; i++) printf("%s %zu bytes, begins with %g\n", sparsec_output(model, i)->name, sparsec_output(model, i)->bytes, ((float *)outputs[i])[0]);
    for (int i = 0; i < in; i++) free((void *)inputs[i]);
    for (int i = 0; i < out; i++) free(outputs[i]);
    free(inputs);
    free(outputs);
    sparsec_free(model);
    return 0;
}
