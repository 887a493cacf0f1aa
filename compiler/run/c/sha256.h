/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256 as FIPS 180-4 defines it; the names are those of the standard. */
#ifndef SPARSEC_SHA256_H
#define SPARSEC_SHA256_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static uint32_t sha256_rotated(uint32_t x, int n) { return x >> n | x << (32 - n); }

static uint32_t sha256_word(const unsigned char *bytes) {
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

/* One block of 64 bytes (section 6.2.2). */
static void sha256_block(uint32_t H[8], const unsigned char *block) {
    /* The first 32 bits of the fractional parts of the cube roots of the first 64 primes (section 4.2.2). */
    static const uint32_t K[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
        0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
        0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
        0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
        0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
        0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t W[16], a = H[0], b = H[1], c = H[2], d = H[3], e = H[4], f = H[5], g = H[6], h = H[7];
    for (int t = 0; t < 16; t++) W[t] = sha256_word(block + 4 * t);
    for (int t = 0; t < 64; t += 8) {
        /* Eight rounds, after which the variables have their own names again. */
        if (t >= 16)
            for (int i = t; i < t + 8; i++) {
                const uint32_t x = W[(i + 1) & 15], y = W[(i + 14) & 15];
                const uint32_t s0 = sha256_rotated(x, 7) ^ sha256_rotated(x, 18) ^ x >> 3;
                const uint32_t s1 = sha256_rotated(y, 17) ^ sha256_rotated(y, 19) ^ y >> 10;
                W[i & 15] += s0 + W[(i + 9) & 15] + s1;
            }
#define SHA256_ROUND(a, b, c, d, e, f, g, h, i) \
    h += (sha256_rotated(e, 6) ^ sha256_rotated(e, 11) ^ sha256_rotated(e, 25)) + (g ^ (e & (f ^ g))) + K[t + i] + W[(t + i) & 15]; \
    d += h; \
    h += (sha256_rotated(a, 2) ^ sha256_rotated(a, 13) ^ sha256_rotated(a, 22)) + ((a & b) | (c & (a | b)));
        SHA256_ROUND(a, b, c, d, e, f, g, h, 0)
        SHA256_ROUND(h, a, b, c, d, e, f, g, 1)
        SHA256_ROUND(g, h, a, b, c, d, e, f, 2)
        SHA256_ROUND(f, g, h, a, b, c, d, e, 3)
        SHA256_ROUND(e, f, g, h, a, b, c, d, 4)
        SHA256_ROUND(d, e, f, g, h, a, b, c, 5)
        SHA256_ROUND(c, d, e, f, g, h, a, b, 6)
        SHA256_ROUND(b, c, d, e, f, g, h, a, 7)
#undef SHA256_ROUND
    }
    const uint32_t v[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; i++) H[i] += v[i];
}

/* The digest of `bytes` bytes. */
static void sha256(const void *data, size_t bytes, unsigned char digest[32]) {
    /* The first 32 bits of the fractional parts of the square roots of the first 8 primes (section 5.3.3). */
    uint32_t H[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    const unsigned char *from = data;
    unsigned char last[128] = {0};
    const size_t whole = bytes / 64, left = bytes % 64, end = left < 56 ? 64 : 128;
    for (size_t i = 0; i < whole; i++) sha256_block(H, from + 64 * i);
    if (left) memcpy(last, from + 64 * whole, left);
    last[left] = 0x80;
    for (int i = 0; i < 8; i++) last[end - 1 - i] = (unsigned char)((uint64_t)bytes * 8 >> 8 * i);
    for (size_t i = 0; i < end; i += 64) sha256_block(H, last + i);
    for (int i = 0; i < 32; i++) digest[i] = (unsigned char)(H[i / 4] >> (24 - 8 * (i % 4)));
}

#endif
