/* Runs an artifact on ones (numbers) and zeros (integers), at the largest run-time sizes:
 *     cc -O2 -I net.sparsec net.sparsec/example.c net.sparsec/sparsec.c -ldl -lpthread -o run && ./run net.sparsec */
#include "sparsec.h"

#include <stdio.h>
#include <stdlib.h>

static void *new_tensor(const sparsec_port *port, size_t batch) {
    const size_t bytes = port->bytes * batch;
    float *data = calloc(bytes + 1, 1);
    for (size_t i = 0; data && port->dtype == SPARSEC_FLOAT32 && i < bytes / sizeof *data; i++) data[i] = 1.0f;
    return data;
}

int main(int count, char **words) {
    sparsec_model *model;
    const int threads = count > 2 ? atoi(words[2]) : 1, batch = count > 3 ? atoi(words[3]) : 1;
    if (count < 2 || sparsec_load(words[1], threads, &model)) {
        fprintf(stderr, "usage: run ARTIFACT [THREADS] [BATCH]\n%s\n", sparsec_error());
        return 1;
    }
    const int in = sparsec_inputs(model), out = sparsec_outputs(model);
    const void **inputs = calloc((size_t)in, sizeof *inputs);
    void **outputs = calloc((size_t)out, sizeof *outputs);
    for (int i = 0; i < in; i++) inputs[i] = new_tensor(sparsec_input(model, i), (size_t)batch);
    for (int i = 0; i < out; i++) outputs[i] = new_tensor(sparsec_output(model, i), (size_t)batch);
    const int failed = sparsec_run(model, inputs, outputs, batch);
    if (failed) fprintf(stderr, "%s\n", sparsec_error());
    for (int i = 0; i < out && !failed; i++) {
        const sparsec_port *port = sparsec_output(model, i);
        printf("%s %zu bytes, begins with %g\n", port->name, port->bytes, *(float *)outputs[i]);
    }
    for (int i = 0; i < in; i++) free((void *)inputs[i]);
    for (int i = 0; i < out; i++) free(outputs[i]);
    free(inputs);
    free(outputs);
    sparsec_free(model);
    return failed != 0;
}
