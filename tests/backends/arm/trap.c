/* A library of kernels whose one instruction beyond ARMv8.0 is a dot product of bytes. */
#include <arm_neon.h>
#include <stdint.h>

int64_t sparsec_check_program(const int64_t *words) { return words == 0; }

void sparsec_run_program(const int64_t *words) {
    int32x4_t sum = vdupq_n_s32(0);
    __asm__ volatile("sdot %0.4s, %1.16b, %1.16b" : "+w"(sum) : "w"(vdupq_n_s8((int8_t)words[5])));
}
